"""Claims about pairs of families: every level and every reason is reached by made-up values with one change."""

from typing import Any

import numpy as np
import pytest

from repsim.study.claims import Case, Decision, Part, decide
from repsim.study.multiple_tests import hommel

CONTROL = "trained cnn with untrained vit (0.120)"


def part(kind: str = "input", **changes: Any) -> Part:
    """Make a part of which everything can be claimed."""
    settings: dict[str, Any] = {
        "of": "architectures", "name": "", "kind": kind, "in_energy": False, "value": 0.3, "low": 0.2, "high": 0.4,
        "control": CONTROL, "p_samples": 0.001, "support": 100.0, "units": 300,
        "p_exchange": 0.01, "p_exchange_least": 0.01, "network_low": 0.1, "network_high": 0.5, "p_crossed": 0.001,
    }  # fmt: skip
    return Part(**settings | changes)


def parts(kind: str = "input", *, energy: dict[str, Any] | None = None, **changes: Any) -> list[Part]:
    """Make both parts of a pair of architectures; ``energy`` changes only the one in units of energy."""
    return [part(kind, **changes), part(kind, in_energy=True, **changes | (energy or {}))]


BOTH = "input and labels"


def case(**changes: Any) -> Case:
    settings: dict[str, Any] = {
        "families": ("cnn", "vit"), "without_twins": (), "partly_without": (), "parts": [*parts(), *parts(BOTH)],
        "classes_unknown": "", "without_pixels": (), "common_twins": (), "energy_left": {"cnn": 0.6, "vit": 0.7},
        "contradicting": (),
    }  # fmt: skip
    return Case(**settings | changes)


def decision(one: Case, *, dependent: bool = False) -> Decision:
    (only,) = decide([one], dependent=dependent)
    return only


def test_everything_that_can_be_claimed() -> None:
    assert (decision(case()).level, decision(case()).reason) == ("architectures", "")
    assert decision(case(parts=parts())).level == "architectures"  # without class labels


LOW: dict[str, Any] = {"low": -0.01, "value": 0.1, "high": 0.2}
BELOW: dict[str, Any] = {"low": -0.3, "value": -0.2, "high": -0.1}
LITTLE: dict[str, Any] = {"low": 0.001, "value": 0.009, "high": 0.02}
UNKNOWN: dict[str, Any] = {"low": np.nan, "value": np.nan, "high": np.nan}
SEED: dict[str, Any] = {"of": "trained network", "name": "cnn.seed2"}
RANDOM: dict[str, Any] = {"of": "untrained network", "name": "cnn+random-seed1"}


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"without_twins": ("resnet50",)}, "no untrained network of resnet50, so there is no control"),
        ({"parts": []}, "the input is not known"),
        ({"without_pixels": ("cnn.seed0",)}, "the input of cnn.seed0 is not stored, so it is not controlled for"),
        (
            {"classes_unknown": "some groups have samples of several classes"},
            "it cannot be told whether anything goes beyond the classes: some groups have samples of several classes",
        ),
        ({"energy_left": {"cnn": 0.09, "vit": 0.5}}, "almost all of the energy, and leaves 0.090 of cnn: too little"),
        ({"energy_left": {"cnn": 0.05, "vit": np.nan}}, "leaves 0.050 of cnn and nan of vit: too little to judge"),
        (
            {"parts": parts(**LOW)},
            f"given the input, trained networks are not shown to be more alike than {CONTROL}: the effect is 0.100 (-0",
        ),
        ({"parts": parts(**BELOW)}, f"given the input, trained networks are less alike than {CONTROL}: the effect is"),
        (
            {"parts": parts(energy=LOW)},
            f"not shown to be more alike than {CONTROL}: the effect in units of energy is 0.100 (-0.010 to 0.200)",
        ),
        ({"parts": parts(low=0.0)}, "not shown to be more alike"),
        ({"parts": parts(**UNKNOWN)}, "given the input, the effect has no interval"),
        ({"parts": parts(energy=UNKNOWN)}, "the effect in units of energy has no interval"),
        (
            {"parts": parts(energy=LITTLE)},
            "given the input, the effect is 0.009 (0.001 to 0.020) of the energy, which is too little to be called",
        ),
        ({"parts": [*parts(), *parts(BOTH, **LOW)]}, "not beyond the classes: given the input and the class labels, t"),
        ({"parts": [*parts(), *parts(BOTH, energy=LITTLE)]}, "not beyond the classes: given the input and the class"),
        ({"parts": [*parts(), part(name="resnet50 with vit", **LOW)]}, "trained networks of resnet50 with vit are not"),
        ({"parts": [*parts(), part(**SEED, **LOW)]}, f"cnn.seed2 is not shown to be more alike than {CONTROL}: the ef"),
        ({"parts": [*parts(), part(**SEED, **BELOW)]}, f"given the input, cnn.seed2 is less alike than {CONTROL}"),
        ({"parts": [*parts(), part(**RANDOM, **LOW)]}, "trained networks are not shown to be more alike than trained"),
        ({"parts": [*parts(), *parts(BOTH), part(BOTH, **SEED, **LOW)]}, "not beyond the classes: given the input and"),
        ({"parts": parts(support=4.9)}, "the interval of the effect rests on few samples, as if there were 4.9"),
        ({"parts": [*parts(), *parts(BOTH, p_samples=0.03)]}, "is above 0, but not beyond doubt (p = 0.030)"),
        ({"parts": [*parts(p_samples=0.03), *parts(BOTH)]}, "not beyond doubt"),  # the larger p is that of both parts
        ({"parts": parts(p_samples=np.nan)}, "not beyond doubt"),
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
            {"parts": parts(p_exchange_least=0.06)},
            "with so few networks the exact test cannot reach 0.05 (its smallest p is 0.060)",
        ),
        (
            {"parts": [*parts(), part(name="resnet50 with vit", p_exchange_least=0.06)]},
            "with so few networks of resnet50 with vit the exact test cannot reach 0.05",
        ),
        (
            {"parts": [*parts(), *parts(BOTH, energy={"network_low": np.nan})]},
            "an architecture has a single trained or a single untrained network",
        ),
        ({"parts": [*parts(), *parts(BOTH, p_exchange=0.06)]}, "exchanging trained and untrained networks gives p = 0"),
        ({"parts": parts(p_exchange=0.06)}, "exchanging trained and untrained networks gives p = 0.060"),
        ({"parts": parts(network_low=-0.2)}, "interval over networks and samples begins at -0.200"),
        ({"parts": parts(energy={"network_low": 0.0})}, "interval over networks and samples begins at 0"),
        ({"parts": parts(p_crossed=0.06)}, "p = 0.060 over networks and samples"),
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
    """One-sided p of 0.025 over samples, p of 0.05 over networks, and effects of the least size are enough."""
    at_bounds = parts(
        p_samples=0.025, p_exchange=0.05, p_exchange_least=0.05, p_crossed=0.05, support=5.0, energy={"value": 0.01}
    )
    assert decision(case(parts=at_bounds, energy_left={"cnn": 0.1, "vit": 0.1})).level == "architectures"


def test_a_small_effect_of_a_single_network_is_enough() -> None:
    """That an effect has a size is asked of the architectures; of a network, that it is above 0."""
    assert decision(case(parts=[*parts(), part(**SEED, in_energy=True, **LITTLE)])).level == "architectures"


@pytest.mark.parametrize("kind", ["input", BOTH])
def test_p_values_are_adjusted_over_pairs_of_families(kind: str) -> None:
    """Each of three pairs is judged by the adjusted value of the largest p of its parts."""

    def of_cases(name: str, *p: float) -> list[Decision]:
        changes: list[dict[str, Any]] = [{name: x} for x in p]
        cases = [
            case(parts=[*parts(**change if kind == "input" else {}), *parts(BOTH, **change if kind == BOTH else {})])
            for change in changes
        ]
        return decide(cases, dependent=False)

    def levels(name: str, *p: float) -> list[str]:
        return [one.level for one in of_cases(name, *p)]

    assert levels("p_samples", 0.02, 0.02, 0.02) == ["architectures"] * 3
    assert (hommel([0.02, 0.002, 0.5]) <= 0.025).tolist() == [False, True, False]
    assert levels("p_samples", 0.02, 0.002, 0.5) == ["", "architectures", ""]
    assert of_cases("p_samples", 0.02, 0.002, 0.5)[0].reason.endswith("adjusted for 3 pairs of families)")
    for name in ("p_exchange", "p_crossed"):
        assert levels(name, 0.05, 0.05, 0.05) == ["architectures"] * 3
        assert levels(name, 0.04, 0.01, 0.5) == ["networks", "architectures", "networks"]
        assert of_cases(name, 0.04, 0.01, 0.5)[0].reason.endswith("adjusted for 3 pairs of families")


def test_the_p_over_samples_counts_for_architectures_too() -> None:
    """0.02 three times is enough for the networks; with p = 0.5 over networks of two pairs it is not for the third."""
    one, other = case(parts=parts(p_samples=0.02)), case(parts=parts(p_samples=0.02, p_exchange=0.5))
    assert [reached.level for reached in decide([one, other, other], dependent=False)] == [
        "networks", "networks", "networks",
    ]  # fmt: skip
    assert decide([case(parts=parts()), other, other], dependent=False)[0].level == "architectures"


def test_of_few_groups_a_part_is_enough() -> None:
    assert decision(case(parts=parts(support=1.25, units=10))).level == "architectures"
    assert "rests on few samples" in decision(case(parts=parts(support=1.2, units=10))).reason


def test_single_networks_do_not_enter_the_p_values() -> None:
    alone = case(parts=[*parts(), part(**SEED, p_samples=0.02, p_exchange=np.nan, p_crossed=np.nan)])
    (reached,) = decide([alone], dependent=False)
    assert (reached.level, reached.p_networks, reached.p_architectures) == ("architectures", 0.001, 0.01)


def test_pairs_without_a_test_do_not_count() -> None:
    untested = case(parts=[])
    levels = [one.level for one in decide([case(parts=parts(p_samples=0.02)), untested], dependent=False)]
    assert levels == ["architectures", ""]


def test_twins_of_both_families_cannot_be_exchanged() -> None:
    shared = decision(case(common_twins=("vit+random-seed0",)))
    assert shared.level == "networks"
    assert shared.reason == "the untrained networks are those of both families (vit+random-seed0)"
