"""Conclusions read from a study: the sets of families that share something learned, and when they are universal."""

from itertools import combinations

import numpy as np
import pytest
import xarray as xr

from repsim.study import reading
from repsim.study.reading import LEVELS, Level, claimed_sets


def largest_sets(families: str, claimed: set[frozenset[str]]) -> set[tuple[str, ...]]:
    """Return all sets of which every pair is claimed, and which are in no larger one."""
    sets = [
        names
        for size in range(2, len(families) + 1)
        for names in combinations(families, size)
        if all(frozenset(pair) in claimed for pair in combinations(names, 2))
    ]
    return {names for names in sets if not any(set(names) < set(other) for other in sets)}


@pytest.mark.parametrize("families", ["", "a", "ab", "abc", "cadbe", "abcdefg"])
def test_claimed_sets_are_the_largest_of_all_subsets(families: str, rng: np.random.Generator) -> None:
    for _ in range(20):
        levels: dict[tuple[str, str], Level] = {
            (a, b): LEVELS[k] for (a, b), k in zip(combinations(families, 2), rng.integers(0, 3, 99), strict=False)
        }
        for level in ("networks", "architectures"):
            enough = {"networks": {"networks", "architectures"}, "architectures": {"architectures"}}[level]
            claimed = {frozenset(pair) for pair, reached in levels.items() if reached in enough}
            sets = claimed_sets(families, levels, level)
            assert set(sets) == largest_sets(families, claimed)
            assert len(set(sets)) == len(sets)
            assert [len(names) for names in sets] == sorted((len(names) for names in sets), reverse=True)


def study(
    levels: dict[str, Level], *, kernels: tuple[str, ...] = ("cka", "cka given input"), effect: float = 0.2
) -> xr.Dataset:
    """Make a study of three families of which only the levels of the pairs matter."""
    pairs = list(combinations("abc", 2))
    return xr.Dataset(
        {
            "claim_level": ("families", [levels.get("".join(pair), "") for pair in pairs]),
            "effect": (("measure", "families"), np.full((len(kernels), 3), effect)),
        },
        coords={
            "model": list("xyz"), "family": ("model", list("abc")), "kernel": list(kernels), "measure": list(kernels),
            "family_a": ("families", [a for a, _ in pairs]), "family_b": ("families", [b for _, b in pairs]),
        },
    )  # fmt: skip


def test_universal_is_what_every_pair_of_families_shares_at_the_higher_level() -> None:
    all_pairs: dict[str, Level] = dict.fromkeys(("ab", "ac", "bc"), "architectures")
    cases: list[tuple[dict[str, Level], bool]] = [
        (all_pairs, True), (all_pairs | {"bc": "networks"}, False), (all_pairs | {"ac": ""}, False), ({}, False),
    ]  # fmt: skip
    for levels, expected in cases:
        assert reading.verdict(study(levels)) is expected
        assert reading.name_of(study(levels), "universal") == ("universal" if expected else "common to families")
        assert reading.name_of(study(levels), "family") == "family"
    assert reading.verdict(study(all_pairs, kernels=("cka",))) is None  # the input is not known
    assert reading.verdict(study(all_pairs, effect=np.nan)) is None  # no pair has controls
    one = study(all_pairs).assign_coords(family=("model", ["a"] * 3))
    assert reading.verdict(one) is None


def test_claims_name_families_in_the_order_of_the_study() -> None:
    mixed = study({"ab": "architectures", "bc": "networks"})
    assert reading.claims(mixed) == [("a", "b"), ("b", "c")]
    assert reading.claims(mixed, "architectures") == [("a", "b")]
