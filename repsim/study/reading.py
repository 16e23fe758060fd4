"""Read conclusions from the data set of a study: its strictest kernel, the identified shares, what is claimed."""

import math
from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
import xarray as xr
from jaxtyping import Float64
from numpy.typing import ArrayLike

ALPHA = 0.05
"""Significance level."""
Level = Literal["", "networks", "architectures"]
"""What a claim is about: nothing, the networks of the study, or networks of these architectures."""
LEVELS: tuple[Level, ...] = ("", "networks", "architectures")
LEVEL_NAMES: dict[str, str] = {"": "not shown", "networks": "these networks", "architectures": "these architectures"}
"""Levels in the words of tables, figures and pages."""


AGREEMENT_SIGNAL = 2.0
"""Variance of the samples' influences, relative to that between unrelated networks, from which samples stand out."""


def stands_out(study: xr.Dataset, kernel: str) -> bool | None:
    """Return whether networks agree more on some samples than on others, beyond noise; None if it is not known."""
    index = means_over_pairs(study, "index", kernel)
    signal = float(study["agreement_signal"].sel(kernel=kernel))
    if np.isnan(signal):
        return None
    return signal > AGREEMENT_SIGNAL and (index[1] > 0 or math.isnan(index[1]))


def claimed_sets(
    families: Sequence[str], pairs: Mapping[tuple[str, str], Level], level: Level
) -> list[tuple[str, ...]]:
    """Return the largest sets of families of which every pair is claimed at a level or a higher one.

    Parameters
    ----------
    families
        Names of all families.
    pairs
        Level of each pair of families, in the order of ``families``.
    level
        The lowest level that counts.

    Examples
    --------
    >>> claimed_sets("abcd", {("a", "b"): "networks", ("a", "c"): "networks", ("b", "c"): "networks"}, "networks")
    [('a', 'b', 'c')]
    """
    claimed = {
        frozenset(pair) for pair, reached in pairs.items() if reached and LEVELS.index(reached) >= LEVELS.index(level)
    }
    largest: list[tuple[str, ...]] = []

    def grow(members: tuple[str, ...], candidates: list[str], excluded: list[str]) -> None:
        """Extend a set by every candidate that is claimed with all of its members (Bron and Kerbosch 1973)."""
        if not candidates and not excluded and len(members) > 1:
            largest.append(members)
        for name in list(candidates):

            def related(other: str, name: str = name) -> bool:
                return frozenset({name, other}) in claimed

            grow((*members, name), list(filter(related, candidates)), list(filter(related, excluded)))
            candidates.remove(name)
            excluded.append(name)

    grow((), list(families), [])
    return sorted(largest, key=lambda names: (-len(names), [families.index(name) for name in names]))


def claims(study: xr.Dataset, level: Level = "networks") -> list[tuple[str, ...]]:
    """Return the largest sets of families that share something learned, shown for every pair of them at this level.

    Parameters
    ----------
    study
        A study.
    level
        "networks": shown for the networks of the study; "architectures": for networks of these architectures.
    """
    families = list(dict.fromkeys(study["family"].values.tolist()))
    levels = dict(
        zip(
            zip(study["family_a"].values.tolist(), study["family_b"].values.tolist(), strict=True),
            study["claim_level"].values.tolist(),
            strict=True,
        )
    )
    return claimed_sets(families, levels, level)


def is_decided(study: xr.Dataset) -> bool:
    """Return whether it was decided what may be claimed; studies of earlier versions did not.

    Whatever is not claimed has a reason.
    """
    return any(study["claim_level"].values.tolist()) or any(study["claim_reason"].values.tolist())


def modalities(study: xr.Dataset) -> dict[str, str]:
    """Return the modality of each family; empty for families of which it is not known, and of earlier studies."""
    if "modality" not in study.coords:
        return dict.fromkeys(study["family"].values.tolist(), "")
    of_family: dict[str, str] = {}
    for family, modality in zip(study["family"].values.tolist(), study["modality"].values.tolist(), strict=True):
        of_family[family] = of_family.get(family) or modality
    return of_family


def verdict(study: xr.Dataset) -> bool | None:
    """Return whether something learned is universal across all families; None if the study cannot say.

    It is universal if every pair of families shares something learned, shown for networks of these architectures and
    not for the networks of the study alone (`repsim.study.claims`). The study cannot say without the input, or without
    controls of any pair of families.
    """
    families = list(dict.fromkeys(study["family"].values.tolist()))
    if len(families) < 2 or strictest(study) == "cka" or np.isnan(study["effect"].sel(measure=strictest(study))).all():
        return None
    return claims(study, "architectures") == [tuple(families)]


def name_of(study: xr.Dataset, share: str) -> str:
    """Return the label of a share. It is called universal only if `verdict` is True."""
    return "common to families" if share == "universal" and not verdict(study) else share


def known_shares(study: xr.Dataset) -> dict[str, str]:
    """Return labels of the shares that these models identify, and of sums of shares that are identified only together.

    The label of a sum names its parts. Without stored pixels the input is part of what all families share.
    """
    names = study["share_of"].values.tolist()
    defined = [name for name in names if not np.isnan(study["share"].sel(share_of=name).values).all()]
    identified = [name for name in defined if "_and_" not in name or not set(name.split("_and_")) & set(defined)]
    labels = {name: " + ".join(name_of(study, part) for part in name.split("_and_")) for name in identified}
    if "input" in identified:
        return labels
    return {name: f"input + {label}" if name.startswith("universal") else label for name, label in labels.items()}


def share_places(study: xr.Dataset) -> dict[str, int]:
    """Return the position of every share in the study, so that its colour and marker are always the same."""
    return {str(name): place for place, name in enumerate(study["share_of"].values)}


def axis_shares(eigenvalues: ArrayLike) -> Float64[np.ndarray, " axes"]:
    """Return the share of the squared distances along each axis of a map; zeros if all points are equal.

    >>> axis_shares([3.0, 1.0, -0.5]).tolist()
    [0.75, 0.25, 0.0]
    """
    positive = np.nan_to_num(np.asarray(eigenvalues, np.float64)).clip(0)
    total = positive.sum()
    return positive / total if total > 0 else positive


def extremes(agreement: ArrayLike, count: int) -> tuple[list[int], list[int]]:
    """Return the positions of the stimuli with the largest and with the smallest values, the most extreme ones first.

    Values are rounded, so that rounding errors do not decide between ties. No stimulus is in both lists.

    >>> extremes([0.1, 0.3, np.nan, -0.2, 0.2], 2)
    ([1, 4], [3, 0])
    """
    values = np.asarray(agreement, np.float64).round(9)
    count = min(count, int(np.isfinite(values).sum()) // 2)
    most, least = (np.argsort(sign * values, kind="stable")[:count].tolist() for sign in (-1, 1))  # NaN goes last
    return most, least


def strictest(study: xr.Dataset) -> str:
    """Return the strictest kernel of a study: CKA given the input, or plain CKA if no pixels are stored."""
    return "cka given input" if "cka given input" in study["kernel"].values else "cka"


def headline(study: xr.Dataset, measure: str) -> str:
    """Return the variable with the main value of pairs of models under a measure: "split_half", or else "index"."""
    return "split_half" if study["split_half"].sel(measure=measure).notnull().any() else "index"


def strictest_controlled(study: xr.Dataset) -> list[str]:
    """Return the kernels that a claim rests on: given the input and, with labels, given both; plain CKA without input.

    The last one has the most controls.
    """
    both = "cka given input and labels"
    return [strictest(study), *([both] if both in study["kernel"].values else [])]


def controls_of_pairs(study: xr.Dataset) -> xr.DataArray:
    """Return the values of all controls of every pair of trained models: (measure, pair, control_pair).

    Only debiased CKA has values of all networks; of other measures the strongest control alone is known.
    """
    dims = ("measure", "pair", "control_pair")
    names = study["control_pair"].values.tolist()
    values = np.full([study.sizes[dim] for dim in dims], np.nan)
    kernels, kinds = study["kernel"].values.tolist(), study["control_name"].values
    networks, owners = study["network"].values.tolist(), study["network_architecture"].values
    untrained = study["network_state"].values == "untrained"
    places = {name: np.array([networks.index(name)]) for name in study["model"].values.tolist()}
    twins = {name: np.flatnonzero(untrained & (owners == owners[place])) for name, place in places.items()}
    for m, measure in enumerate(study["measure"].values.tolist()):
        for p, (a, b) in enumerate(zip(study["pair_a"].values.tolist(), study["pair_b"].values.tolist(), strict=True)):
            if kinds[m, p] not in names:
                continue
            if measure not in kernels:
                values[m, p, names.index(kinds[m, p])] = study["control"].values[m, p]
                continue
            similarity = study["network_similarity"].values[kernels.index(measure)]
            of_control = (twins[a], twins[b]), (places[a], twins[b]), (twins[a], places[b])
            for c, sides in enumerate(of_control):
                of_pairs = similarity[np.ix_(*sides)]
                if (other := of_pairs[~np.isnan(of_pairs)]).size:  # a network with itself is NaN
                    values[m, p, c] = other.mean()
    return xr.DataArray(values, dims=dims, coords={dim: study[dim].values for dim in dims})


def means_over_pairs(
    study: xr.Dataset, what: str, kernel: str, relation: str = "other family"
) -> tuple[float, float, float]:
    """Return the mean of "index", "trained", "control" or "learned" over pairs of one kind, and its interval.

    They are NaN if the study has no such pairs.
    """
    if relation not in study["kind_of_pair"].values:
        return np.nan, np.nan, np.nan
    selection = {"kernel": kernel, "kind_of_pair": relation}
    value, low, high = (float(study[f"{what}_mean{end}"].sel(selection)) for end in ("", "_low", "_high"))
    return value, low, high
