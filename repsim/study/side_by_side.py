"""Put the values of pairs of families side by side: raw, given controls, in units of energy, and what energy was left.

One value alone misleads: a partial similarity is relative to the energy that the controls leave, which may be little.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import xarray as xr
from numpy.typing import NDArray

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
    if not study.sizes.get("families"):
        return
    kernels = study["kernel"].values.tolist()
    trained, controls = (  # arrays, because a study of a hundred models has thousands of pairs of families
        np.stack([study[f"{name}_value"].sel(measure=kernels).values, study[f"{name}_energy"].values], axis=-1)
        for name in ("trained", "control")
    )
    kinds = study["control_pair"].values.tolist()
    ends = [study[f"family_{side}"].values.tolist() for side in "ab"]
    left = {
        (family, state): _left(study, family, trained=state)
        for family in {*ends[0], *ends[1]}
        for state in (True, False)
    }
    for k, (families, a, b) in enumerate(zip(study["families"].values.tolist(), *ends, strict=True)):
        if np.isnan(trained[:, k, 0]).all():
            continue
        for networks, states in _TRAINED_SIDES.items():
            values = trained[:, k] if networks == TRAINED else controls[:, k, kinds.index(networks)]
            of_sides = np.stack([left[family, state] for family, state in zip((a, b), states, strict=True)], axis=-1)
            by_kernel = {
                kernel: GivenControls(value, energy, (first, second))
                for kernel, (value, energy), (first, second) in zip(
                    kernels, values.tolist(), of_sides.tolist(), strict=True
                )
            }
            yield Row(families, control_in_words(networks, a, b), by_kernel)


def _left(study: xr.Dataset, family: str, *, trained: bool) -> NDArray[np.float64]:
    """Return the mean share of energy that each kernel leaves of the trained or the untrained networks of a family."""
    members = (study["network_family"].values == family) & ((study["network_state"].values == "trained") == trained)
    energies = study["energy_left"].values
    return energies[:, members].mean(axis=1) if members.any() else np.full(len(energies), np.nan)
