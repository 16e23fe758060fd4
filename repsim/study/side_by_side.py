"""Put the values of pairs of families side by side: raw, given controls, in units of energy, and what energy was left.

One value alone misleads: a partial similarity is relative to the energy that the controls leave, which may be little.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import xarray as xr

from repsim.results.variables import CONTROL_PAIRS

TRAINED = "both trained"
_TRAINED_SIDES = dict(zip((TRAINED, *CONTROL_PAIRS), ((True, True), (False, False), (True, False), (False, True)),
                          strict=True))  # fmt: skip
"""Which of the two networks are trained."""


@dataclass(frozen=True)
class GivenControls:
    """Similarity of two families under one kind of debiased CKA."""

    value: float
    """Similarity, relative to the energy that is left."""
    energy: float
    """The same in units of energy; NaN if nothing is projected out."""
    left: tuple[float, float]
    """Share of the energy that is left of the networks of the first family, and of the second."""


@dataclass(frozen=True)
class Row:
    """Values of the trained networks of two families, or of one of their controls."""

    families: str
    networks: str
    """Which networks they are, in words."""
    by_kernel: Mapping[str, GivenControls]


def control_in_words(control: str, a: str, b: str) -> str:
    """Describe which networks of two families are compared.

    >>> control_in_words("first trained", "cnn", "vit")
    'trained cnn, untrained vit'
    """
    first, second = ("trained" if trained else "untrained" for trained in _TRAINED_SIDES[control])
    return f"{first} {a}, {second} {b}"


def side_by_side(study: xr.Dataset) -> Iterator[Row]:
    """Yield a row for the trained networks of every pair of families that has controls, and for each of its controls.

    Kernels that have no values of families, such as CKA given the untrained networks, are left out.
    """
    kernels = study["kernel"].values.tolist()
    for families in study["families"].values.tolist() if study.sizes.get("families") else []:
        of_pair = study.sel(families=families)
        if np.isnan(of_pair["trained_value"].sel(measure=kernels).values).all():
            continue
        a, b = str(of_pair["family_a"].item()), str(of_pair["family_b"].item())
        for networks, trained in _TRAINED_SIDES.items():
            by_kernel = {}
            for kernel in kernels:
                at = of_pair.sel(measure=kernel, kernel=kernel)
                one = at if networks == TRAINED else at.sel(control_pair=networks)
                names = ("trained_value", "trained_energy") if networks == TRAINED else (
                    "control_value", "control_energy")  # fmt: skip
                value, energy = (float(one[name]) for name in names)
                first, second = (_left(study, kernel, family, side) for family, side in zip((a, b), trained,
                                                                                           strict=True))  # fmt: skip
                by_kernel[kernel] = GivenControls(value, energy, (first, second))
            yield Row(families, control_in_words(networks, a, b), by_kernel)


def _left(study: xr.Dataset, kernel: str, family: str, trained: bool) -> float:
    """Return the mean share of energy that is left of the trained or the untrained networks of a family."""
    members = (study["network_family"].values == family) & ((study["network_state"].values == "trained") == trained)
    return float(study["energy_left"].sel(kernel=kernel).values[members].mean()) if members.any() else np.nan
