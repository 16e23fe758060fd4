"""Claims about pairs of families: every level and every reason is reached by made-up values with one change."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import xarray as xr

from repsim.results.variables import CONTROL_PAIRS
from repsim.study.claims import Case, Decision, decide
from repsim.study.multiple_tests import hommel


def values(**changes: Any) -> xr.Dataset:
    """Make the values of a pair of families with one control projected out, of which everything can be claimed."""
    numbers = {
        "effect": 0.3, "effect_low": 0.2, "effect_high": 0.4, "effect_network_low": 0.1,
        "effect_energy": 0.2, "effect_energy_low": 0.1, "effect_energy_high": 0.3, "effect_energy_network_low": 0.05,
        "p_samples": 0.001, "p_exchange": 0.01, "p_exchange_least": 0.01, **changes,
    }  # fmt: skip
    levels = {name: numbers.pop(name, [0.1, 0.12, 0.05]) for name in ("control_value", "control_energy")}
    return xr.Dataset(
        {**numbers, **{name: ("control_pair", level) for name, level in levels.items()}},
        coords={"family_a": "cnn", "family_b": "vit", "control_pair": list(CONTROL_PAIRS)},
    )


def case(**changes: Any) -> Case:
    settings: dict[str, Any] = {
        "families": ("cnn", "vit"), "without_twins": (), "partly_without": (), "given_input": values(),
        "given_both": values(), "without_pixels": (),
        "common_twins": (), "energy_left": {"cnn": 0.6, "vit": 0.7}, "contradicting": (),
    }  # fmt: skip
    return Case(**settings | changes)


def decision(one: Case, *, dependent: bool = False) -> Decision:
    (only,) = decide([one], dependent=dependent)
    return only


def test_everything_that_can_be_claimed() -> None:
    assert (decision(case()).level, decision(case()).reason) == ("architectures", "")
    assert decision(case(given_both=None)).level == "architectures"  # without class labels


LOW = {"effect_low": -0.01, "effect": 0.1, "effect_high": 0.2}
BELOW = {"effect_low": -0.3, "effect": -0.2, "effect_high": -0.1}
LOW_ENERGY = {"effect_energy_low": 0.0, "effect_energy": 0.1, "effect_energy_high": 0.2}
LITTLE = {"effect_energy_low": 0.001, "effect_energy": 0.009, "effect_energy_high": 0.02}


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"without_twins": ("resnet50",)}, "no untrained network of resnet50, so there is no control"),
        ({"given_input": None}, "the input is not known"),
        ({"without_pixels": ("cnn.seed0",)}, "the input of cnn.seed0 is not stored, so it is not controlled for"),
        ({"energy_left": {"cnn": 0.09, "vit": 0.5}}, "almost all of the energy, and leaves 0.090 of cnn: too little"),
        ({"energy_left": {"cnn": 0.05, "vit": np.nan}}, "leaves 0.050 of cnn and nan of vit: too little to judge"),
        (
            {"given_input": values(**LOW)},
            "not shown to be more alike than trained cnn with untrained vit (0.120): the effect is 0.100 (-0.010 to",
        ),
        ({"given_input": values(**BELOW)}, "given the input, trained networks are less alike than trained cnn"),
        (
            {"given_input": values(**LOW, control_value=[0.5, 0.1, 0.2])},
            "to be more alike than untrained cnn with untrained vit (0.500)",
        ),
        (
            {"given_input": values(**LOW, control_value=[0.5, np.nan, 0.7])},
            "to be more alike than untrained cnn with trained vit (0.700)",
        ),
        (
            {"given_input": values(**LOW_ENERGY, control_energy=[0.5, 0.1, 0.2])},
            "than untrained cnn with untrained vit (0.500): the effect in units of energy is 0.100 (0 to 0.200)",
        ),
        ({"given_input": values(effect_low=np.nan)}, "given the input, the effect has no interval"),
        ({"given_input": values(effect_low=np.nan, control_value=[np.nan] * 3)}, "the effect has no interval"),
        ({"given_input": values(effect_energy_low=np.nan)}, "the effect in units of energy has no interval"),
        (
            {"given_input": values(**LITTLE)},
            "given the input, the effect is 0.009 (0.001 to 0.020) of the energy, which is too little to be called",
        ),
        ({"given_both": values(**LOW)}, "not beyond the classes: given the input and the class labels, trained"),
        ({"given_both": values(**LITTLE)}, "not beyond the classes: given the input and the class labels, the effect"),
        (
            {"given_both": values(p_samples=0.03)},
            "the effect is above 0, but not beyond doubt among so many pairs of families (p = 0.030)",
        ),
        ({"given_input": values(p_samples=0.03)}, "but not beyond doubt"),  # the larger p is that of both parts
        ({"given_both": None, "given_input": values(p_samples=0.03)}, "given the input, the effect is above 0, but"),
        ({"given_input": values(p_samples=np.nan)}, "but not beyond doubt"),
        ({"contradicting": ("mutual_knn",)}, "the measures disagree: under mutual_knn a control is more alike"),
    ],
)
def test_why_nothing_is_claimed(changes: dict[str, Any], reason: str) -> None:
    reached = decision(case(**changes))
    assert reached.level == ""
    assert reason in reached.reason


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"partly_without": ("resnet18",)}, "no untrained network of resnet18"),
        (
            {"given_input": values(p_exchange_least=0.06)},
            "with so few networks the exact test cannot reach 0.05 (its smallest p is 0.060)",
        ),
        (
            {"given_both": values(effect_energy_network_low=np.nan)},
            "an architecture has a single trained or a single untrained network",
        ),
        ({"given_both": values(p_exchange=0.06)}, "exchanging trained and untrained networks gives p = 0.060"),
        ({"given_input": values(p_exchange=0.06)}, "exchanging trained and untrained networks gives p = 0.060"),
        ({"given_input": values(effect_network_low=-0.2)}, "interval over networks and samples begins at -0.200"),
        ({"given_both": values(effect_energy_network_low=0.0)}, "interval over networks and samples begins at 0"),
    ],
)
def test_why_it_is_claimed_only_of_these_networks(changes: dict[str, Any], reason: str) -> None:
    reached = decision(case(**changes))
    assert reached.level == "networks"
    assert reason in reached.reason


def test_samples_that_depend_on_each_other_forbid_every_claim() -> None:
    reached = decision(case(), dependent=True)
    assert reached.level == ""
    assert reached.reason == "some samples are alike and not declared as groups, so there is no interval that holds"


def test_the_bounds_are_claimed() -> None:
    """One-sided p of 0.025 over samples, p of 0.05 of the exact test, and effects of the least size are enough."""
    at_bounds = values(p_samples=0.025, p_exchange=0.05, p_exchange_least=0.05, effect_energy=0.01)
    assert decision(case(given_input=at_bounds, energy_left={"cnn": 0.1, "vit": 0.1})).level == "architectures"


@pytest.mark.parametrize("part", ["given_input", "given_both"])
def test_p_values_are_adjusted_over_pairs_of_families(part: str) -> None:
    """Each of three pairs is judged by the adjusted value of the largest p of its parts."""

    def of_cases(change: Callable[[float], dict[str, float]], *p: float) -> list[str]:
        return [one.level for one in decide([case(**{part: values(**change(x))}) for x in p], dependent=False)]

    def by_samples(p: float) -> dict[str, float]:
        return {"p_samples": p}

    assert of_cases(by_samples, 0.02, 0.02, 0.02) == ["architectures"] * 3
    assert (hommel([0.02, 0.002, 0.5]) <= 0.025).tolist() == [False, True, False]
    assert of_cases(by_samples, 0.02, 0.002, 0.5) == ["", "architectures", ""]

    def by_exchange(p: float) -> dict[str, float]:
        return {"p_exchange": p}

    assert of_cases(by_exchange, 0.05, 0.05, 0.05) == ["architectures"] * 3
    assert of_cases(by_exchange, 0.04, 0.01, 0.5) == ["networks", "architectures", "networks"]


def test_the_p_over_samples_counts_for_architectures_too() -> None:
    """0.02 three times is enough for the networks; with p = 0.5 over networks of two pairs it is not for the third."""
    one, other = case(given_input=values(p_samples=0.02)), case(given_input=values(p_samples=0.02, p_exchange=0.5))
    assert [reached.level for reached in decide([one, other, other], dependent=False)] == [
        "networks", "networks", "networks",
    ]  # fmt: skip
    alone = replace(one, given_input=values(p_samples=0.001))
    assert decide([alone, other, other], dependent=False)[0].level == "architectures"


def test_pairs_without_a_test_do_not_count() -> None:
    untested = case(given_input=None, given_both=None)
    levels = [one.level for one in decide([case(given_input=values(p_samples=0.02)), untested], dependent=False)]
    assert levels == ["architectures", ""]


def test_twins_of_both_families_cannot_be_exchanged() -> None:
    shared = decision(case(common_twins=("vit+random-seed0",)))
    assert shared.level == "networks"
    assert shared.reason == "the untrained networks are those of both families (vit+random-seed0)"
