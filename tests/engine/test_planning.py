"""Test that plans use the cheaper algorithm, fit into the memory, and state the cost of the formulas."""

import dataclasses
import math
import re
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from repsim.engine.planning import LayerShape, Limits, Meter, Plan, Stage, plan, with_widths
from repsim.errors import TooLittleMemoryError
from repsim.metrics import get
from repsim.metrics.recipes.cost import NOMINAL, Cost
from repsim.metrics.recipes.subspace import PrincipalSubspace
from repsim.runtime.memory import parse_size
from repsim.runtime.processes import ALONE, Ranks

PLENTY = Limits(2**44)
RESNET50 = (64, *[256] * 3, *[512] * 4, *[1024] * 6, *[2048] * 3)
VIT_B = (768,) * 13


def net(name: str, widths: Sequence[int], itemsize: int = 4) -> list[LayerShape]:
    return [LayerShape(f"{name}/{i}", p, itemsize) for i, p in enumerate(widths)]


def planned(
    rows: Sequence[LayerShape], columns: Sequence[LayerShape], n: int, *specs: str, limits: Limits = PLENTY
) -> Plan:
    return plan(rows, columns, n, [get(spec) for spec in specs or ("cka",)], limits)


def only(*args: object, **options: object) -> Stage:
    (stage,) = planned(*args, **options).stages  # type: ignore[arg-type]
    return stage


def switch(rows: Sequence[LayerShape], columns: Sequence[LayerShape]) -> int:
    """Return the largest n for which the plan uses Gram space, by bisection."""
    low, high = 100, 10**6
    assert (only(rows, columns, low).algorithm, only(rows, columns, high).algorithm) == ("gram", "moments")
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if only(rows, columns, middle).algorithm == "gram" else (low, middle)
    return low


# --- the cheaper algorithm


def test_a_resnet_and_a_vit_are_compared_in_gram_space_below_about_12_000_samples() -> None:
    """2nDD' and the norms equal n^2 (D + D' + LL') at n = 13,033; sums in float64 favour feature space."""
    resnet, vit = net("resnet", RESNET50), net("vit", VIT_B)
    n = switch(resnet, vit)
    stage = only(resnet, vit, n)
    assert stage.other is not None
    wide, tall = sum(RESNET50), sum(VIT_B)
    gram = wide + tall + 17 * 13
    moments = 2 * wide * tall + sum(p * p for p in RESNET50 + VIT_B)
    assert stage.cost.flop32 == pytest.approx(n * (n + stage.tile / 2) * gram)  # diagonal tiles are computed twice
    assert stage.other.flop32 == n * moments
    assert moments / gram == pytest.approx(13033, abs=1)
    # at this n, the time in Gram space (2e11 flop and 2.5e9 centred values a second) equals that in feature space
    sums = wide * tall + sum(p * p for p in RESNET50 + VIT_B)
    by_hand = (moments / 2e11 + sums / 4096 / 2.5e9 - stage.tile / 2 * gram / 2e11) / (gram / 2e11 + 30 / 2.5e9)
    assert n == pytest.approx(by_hand, rel=0.01)
    assert n == pytest.approx(11_798, rel=0.01)


def test_with_more_models_gram_space_wins_up_to_more_samples() -> None:
    resnet, vit = net("resnet", RESNET50), net("vit", VIT_B)
    two, three = resnet + vit, resnet + vit + net("resnet2", RESNET50)
    four = three + net("vit2", VIT_B)
    switches = [switch(resnet, vit), *(switch(many, many) for many in (two, three, four))]
    assert switches == sorted(switches)
    assert switches[2] > 20_000
    assert switches[3] > 30_000


def test_measures_with_one_algorithm_use_it() -> None:
    a, b = net("a", [8] * 2), net("b", [900] * 2)
    assert only(a, b, 10**6, "cka:kernel=rbf").algorithm == "gram"
    assert only(b, a, 100, "svcca").algorithm == "moments"
    assert only(a, b, 100, "svcca").other is None


# --- measures that share their preparation


def test_measures_with_a_common_recipe_make_one_stage() -> None:
    a = net("a", [30, 40])
    comparison_plan = planned(a, a, 1000, "cka", "svcca", "cka:estimator=biased", "cca", "pwcca", "cka:kernel=rbf")
    assert [[metric.spec for metric in stage.metrics] for stage in comparison_plan.stages] == [
        ["cka", "cka:estimator=biased"],
        ["svcca", "cca", "pwcca"],
        ["cka:kernel=rbf"],
    ]
    assert comparison_plan.stages[1].recipe == PrincipalSubspace(loadings=True)
    assert only(a, a, 1000, "svcca", "svcca:variance=0.9").recipe == PrincipalSubspace(variance=0.99)


def test_only_layers_of_one_kind_are_compared_by_measures_that_can_read_them() -> None:
    mean = net("a", [30, 40])
    gram = [LayerShape("a/gram", 256**2, 4, "grams", "gram:256")]
    comparison_plan = planned(mean + gram, mean + gram, 1024, "cka", "svcca")
    stages = [
        (stage.form, [metric.spec for metric in stage.metrics], len(stage.rows)) for stage in comparison_plan.stages
    ]
    assert stages == [("features", ["cka"], 2), ("features", ["svcca"], 2), ("grams", ["cka"], 1)]
    assert planned(mean, gram, 1024).stages == ()
    assert comparison_plan.stages[2].kept, "Gram matrices are not read in parts"


# --- the cost, by hand


def test_the_cost_of_gram_space() -> None:
    rows, columns, n = net("a", [100, 200]), net("b", [300]), 200
    stage = only(rows, columns, n)
    assert stage.algorithm == "gram"
    calls = stage.preparing.calls, stage.comparing.calls
    assert stage.preparing == Cost(touched=3 * n * 600, read=4 * n * 600, calls=calls[0])
    assert stage.comparing == Cost(flop32=1.5 * n * n * (600 + 2), added=n * n * 3, calls=calls[1])  # one tile: 3/4
    more = only(rows + net("c", [100]), columns, n)
    assert 3 * more.preparing.calls == 4 * calls[0], "the same calls for every layer"
    assert more.reporting.calls > stage.reporting.calls, "and for every pair"
    both = only(rows, columns, n, "cka", "cka:estimator=biased")
    assert both.cost.flop32 == 1.5 * n * n * (600 + 2 * 2), "every measure has products of its own"
    assert both.cost.added == 2 * stage.cost.added
    wide = only(net("a", [100, 200], 8), net("b", [300], 8), n).cost
    assert (wide.flop32, wide.flop64) == (0, stage.cost.flop32)
    assert wide.read == 8 * n * 600


def test_the_cost_of_feature_space() -> None:
    rows, columns, n = net("a", [10, 20]), net("b", [30]), 8192
    stage = only(rows, columns, n)
    assert stage.algorithm == "moments"
    products, squares = (10 + 20) * 30, 10**2 + 20**2 + 30**2
    assert stage.cost.flop32 == 2 * n * products + n * squares
    assert stage.cost.added + stage.cost.summed == 2 * (products + squares)  # two runs of 4096 samples
    assert stage.preparing.touched == 3 * n * 60
    itself = only(rows, rows, n)
    assert itself.cost.flop32 == 2 * n * 10 * 20 + n * (10**2 + 20**2), "each pair is counted once"


def test_the_cost_of_a_decomposition() -> None:
    narrow, wide = (
        only(net("a", [100]), net("b", [100]), 1000, "svcca"),
        only(net("a", [900]), net("b", [900]), 200, "svcca"),
    )
    assert narrow.preparing.decomposed == 2 * 9 * 100**3
    assert narrow.preparing.flop64 == 2 * 3 * 1000 * 100**2  # X'X, and the basis
    assert narrow.comparing.decomposed == 4.5 * 100**3  # eigenvalues of a pair
    assert narrow.comparing.flop64 == 2 * 100**3
    assert narrow.cost.flop32 == 2 * 1000 * 100**2  # no norms
    assert wide.preparing.decomposed == 2 * 9 * 200**3
    assert wide.preparing.flop64 == 2 * 200**2 * 900  # XX'
    assert wide.cost.flop32 == 2 * 200 * 199**2


def test_canonical_correlations_with_a_whole_sample_space_cost_nothing() -> None:
    def decomposed(*widths: int, measure: str = "cca") -> float:
        return only(net("a", [widths[0]]), net("b", [widths[1]]), 200, measure).comparing.decomposed

    assert decomposed(100, 900) == decomposed(900, 900) == decomposed(900, 100, measure="pwcca") == 0
    assert decomposed(100, 198) > 0
    assert decomposed(900, 900, measure="nuclear") > 0


def test_the_cost_of_an_rbf_kernel_and_of_minibatches() -> None:
    a, n = net("a", [50]), 4096
    linear = only(a, a, n, "cka:estimator=minibatch,batch=256")
    assert linear.cost.flop32 == 1.5 * n * 256 * (50 + 1)
    assert only(a, a, n, "cka:kernel=rbf").preparing.flop32 == 3 * n * n * 50  # twice for the median, once for row sums
    assert only(a, a, n, "cka:kernel=rbf,sigma=1.0").preparing.flop32 == n * n * 50
    assert only(a, a, n, "distance_correlation").preparing.flop32 == n * n * 50


def test_the_cost_counts_every_reading() -> None:
    rows, columns, n = net("a", [1000] * 5), net("b", [1000] * 5), 8000
    stage = only(rows, columns, n, "cka:kernel=rbf", limits=Limits(2**28 + 2**26))
    assert (stage.algorithm, stage.kept) == ("gram", False)
    panels, stay = math.ceil(n / stage.panel), stage.held - 1
    passed = sum(panels - first for first in range(0, panels, stay))  # panels read while others stay in memory
    again = stage.cost.read - stage.preparing.read
    assert again == pytest.approx(passed / panels * 4 * n * 10_000)
    assert again > 4 * n * 10_000
    moments = only(rows, columns, 40_000, limits=Limits(2**28 + 2**26))
    assert (moments.algorithm, moments.kept) == ("moments", False)
    assert moments.cost.read > moments.preparing.read + 4 * 40_000 * 10_000


def test_stages_add_up() -> None:
    a = net("a", [30, 40])
    comparison_plan = planned(a, a, 1000, "cka", "svcca", limits=Limits(2**40, base=1000))
    assert comparison_plan.seconds(NOMINAL) == sum(stage.seconds(NOMINAL) for stage in comparison_plan.stages)
    assert all(stage.cost == stage.preparing + stage.comparing for stage in comparison_plan.stages)
    assert comparison_plan.memory == 1000 + max(stage.memory for stage in comparison_plan.stages)
    rates = dataclasses.replace(NOMINAL, read=1e9)
    assert Cost(flop32=2e11, added=2.5e9, read=1e9).seconds(rates) == 2, "reading overlaps with computing"
    assert Cost(flop32=2e11, read=3e9).seconds(rates) == 3


# --- memory


def test_layers_stay_in_memory_if_and_only_if_they_fit() -> None:
    a, n = net("a", [500] * 8), 6000
    least = only(a, a, n, "cka:kernel=rbf").memory
    values = 4 * n * 500 * 8
    assert least > values
    assert only(a, a, n, "cka:kernel=rbf", limits=Limits(least)).kept
    tight = only(a, a, n, "cka:kernel=rbf", limits=Limits(least - 1))
    assert not tight.kept
    assert tight.memory <= least - 1
    assert only(a, a, n, "cka:kernel=rbf", limits=Limits(least + 999, base=999)).kept
    assert not only(a, a, n, "cka:kernel=rbf", limits=Limits(least + 998, base=999)).kept


def test_a_minibatch_is_never_cut() -> None:
    a = net("a", [1000] * 8)
    stage = only(a, a, 40_000, "cka:estimator=minibatch,batch=1500", limits=Limits(4 * 10**8))
    assert not stage.kept
    assert stage.panel >= 1500


def test_memory_counts_loadings_and_the_layer_that_is_being_read() -> None:
    a, n = net("a", [600]), 2000
    assert only(a, a, n, "pwcca").memory - only(a, a, n, "cca").memory == 8 * 600 * 600
    one = only(net("a", [30_000]), net("b", [2]), 300)
    assert one.algorithm == "gram"
    assert one.memory > 300 * 30_000 * (4 + 4 + 8), "stored, centred, and temporarily in float64"


def test_memory_counts_the_workspace_of_a_recipe() -> None:
    """The ranks of one layer are sorted while those of the others are in memory."""
    n = 6000
    pairs = n * (n - 1) // 2
    one, two = (only(net("a", [10] * count), net("a", [10] * count), n, "rsa").memory for count in (1, 2))
    assert two - one == 4 * pairs
    assert one > (4 + 40) * pairs
    assert (
        only(net("a", [10]), net("b", [10]), n, "rsm_difference").memory > 3 * 8 * n * n
    )  # two matrices and their difference


widths = st.lists(st.integers(1, 3000), min_size=1, max_size=12)
shapes = st.tuples(widths, st.just([]) | widths, st.sampled_from([2, 4, 8])).map(
    lambda drawn: (net("a", drawn[0], drawn[2]), net("b", drawn[1], drawn[2]) or net("a", drawn[0], drawn[2]))
)
SPECS = ["cka", "cka:estimator=biased", "cka:kernel=rbf", "cka:estimator=minibatch,batch=256", "svcca", "pwcca", "cca"]
limited = st.builds(Limits, st.integers(2**20, 2**34), st.sampled_from([0, 600 * 2**20]))
samples = st.integers(256, 100_000)


def amount(error: TooLittleMemoryError) -> int:
    """Return the memory that the message asks for, in bytes."""
    match = re.search(r"takes ([\d.]+ .B) of memory at least", str(error))
    assert match is not None, error
    return parse_size(match[1])


@pytest.mark.slow
@settings(max_examples=150)
@given(shapes, samples, st.lists(st.sampled_from(SPECS), min_size=1, max_size=3, unique=True), limited)
def test_a_plan_fits_or_the_error_names_enough_memory(
    sides: tuple[list[LayerShape], list[LayerShape]], n: int, specs: list[str], limits: Limits
) -> None:
    for _ in range(1 + len(specs)):  # the error is about one measure at a time
        try:
            comparison_plan = planned(*sides, n, *specs, limits=limits)
        except TooLittleMemoryError as error:
            limits, before = dataclasses.replace(limits, memory=amount(error)), limits
            if limits.memory <= before.memory:
                pytest.fail(f"refused, although the memory is enough: {error}")
        else:
            assert comparison_plan.memory <= limits.memory
            return
    pytest.fail("the memory named in the error was not enough")


@pytest.mark.slow
@settings(max_examples=150)
@given(shapes, samples, st.sampled_from(SPECS), limited, st.floats(1, 10))
def test_more_memory_never_costs_more(
    sides: tuple[list[LayerShape], list[LayerShape]], n: int, spec: str, limits: Limits, more: float
) -> None:
    try:
        less = planned(*sides, n, spec, limits=limits)
    except TooLittleMemoryError:
        return
    plenty = planned(*sides, n, spec, limits=dataclasses.replace(limits, memory=int(limits.memory * more)))
    assert plenty.seconds(NOMINAL) <= less.seconds(NOMINAL) * (1 + 1e-9)


@settings(max_examples=100)
@given(shapes, samples, st.sampled_from(SPECS), limited)
def test_a_minibatch_is_read_whole_and_a_tile_lies_within_its_panel(
    sides: tuple[list[LayerShape], list[LayerShape]], n: int, spec: str, limits: Limits
) -> None:
    try:
        stage = only(*sides, n, spec, limits=limits)
    except TooLittleMemoryError:
        return
    assert 1 <= stage.tile <= stage.panel
    assert stage.held >= 2
    if "batch" in spec:
        assert stage.panel >= 256


# --- description


def test_lines_of_a_plan() -> None:
    resnet, vit = net("resnet", RESNET50), net("vit", VIT_B)
    comparison_plan = planned(resnet, vit, 5000, "cka", "svcca")
    assert comparison_plan.lines() == [
        "cka: 17 x 13 layers, 5,000 samples",
        "  Gram space, tiles of 512 x 512, panels of 2,048 samples (0.667 TFLOP; feature space: 1.65 TFLOP)",
        "  each layer prepared once (centred gram), kept in memory",
        "svcca: 17 x 13 layers, 5,000 samples",
        f"  feature space, runs of 4,096 samples ({_tera(comparison_plan.stages[1].cost)} TFLOP)",
        "  each layer prepared once (principal subspace), kept in memory",
        "  as if 99 % of the variance took all directions; known when layers are prepared, and often less",
    ]
    tight = planned(resnet, vit, 5000, limits=Limits(3 * 10**8)).lines()
    assert tight[-1].startswith("  each layer prepared once (centred gram), read again as needed, ")
    family = planned(resnet, vit, 5000, "cca", "svcca", "pwcca").lines()
    assert family[0].startswith("cca, svcca, pwcca: 17 x 13 layers")
    assert family[2] == "  each layer prepared once (principal subspace) for all 3 metrics, kept in memory"
    assert "GFLOP" in planned(net("a", [4]), net("a", [4]), 100).lines()[1]


def _tera(cost: Cost) -> str:
    return f"{(cost.flop32 + cost.flop64 + cost.decomposed) / 1e12:.3g}"


# --- progress


def percentages(comparison_plan: Plan, me: Ranks, units: int) -> list[int]:
    """Return the percentages that the first process reports."""
    seen: list[tuple[int, int]] = []
    meter = Meter(comparison_plan, me, lambda done, total: seen.append((done, total)))
    for stage in comparison_plan.stages:
        prepared, compared = meter.preparing(stage), meter.comparing(stage, units)
        for _ in range(math.ceil(len(stage.layers) / me.world)):
            prepared()
        for _ in range(units // me.world):
            compared()
        meter.finished(stage)
    assert {total for _, total in seen} == {100}
    return [done for done, _ in seen]


@pytest.mark.parametrize("world", [1, 2, 3])
@pytest.mark.parametrize("units", [1, 7, 500])
def test_progress_only_grows_and_ends_at_100(world: int, units: int) -> None:
    a, b = net("a", [300] * 5), net("b", [200] * 3)
    comparison_plan = planned(a, b, 3000, "cka", "svcca")
    percent = percentages(comparison_plan, Ranks(0, world), units)
    assert percent == sorted(percent)
    assert percent[-1] == 100


def test_progress_is_in_proportion_to_the_work() -> None:
    a = net("a", [300] * 4)
    comparison_plan = planned(a, a, 3000)
    (stage,) = comparison_plan.stages
    seen: list[int] = []
    meter = Meter(comparison_plan, ALONE, lambda done, _: seen.append(done))
    step = meter.preparing(stage)
    for _ in range(4):
        step()
    assert seen[-1] == round(100 * stage.preparing.seconds(NOMINAL) / stage.seconds(NOMINAL))
    meter.comparing(stage, 2)()
    half = stage.preparing.seconds(NOMINAL) + stage.comparing.seconds(NOMINAL) / 2
    assert seen[-1] == round(100 * half / stage.seconds(NOMINAL))


@pytest.mark.parametrize("world", [2, 4])
def test_the_steps_of_one_process_stand_for_those_of_all(world: int) -> None:
    """The layers of streaming recipes, and the units, are shared among processes."""
    a = net("a", [300] * 8)
    comparison_plan = planned(a, a, 3000)
    (stage,) = comparison_plan.stages
    seen: list[int] = []
    meter = Meter(comparison_plan, Ranks(0, world), lambda done, _: seen.append(done))
    prepared, compared = meter.preparing(stage), meter.comparing(stage, 12)
    for _ in range(8 // world):
        prepared()
    assert seen[-1] == round(100 * stage.preparing.seconds(NOMINAL) / stage.seconds(NOMINAL))
    for _ in range(12 // world):
        compared()
    assert seen[-1] == round(100 - 100 * stage.reporting.seconds(NOMINAL) / stage.seconds(NOMINAL))
    meter.finished(stage)
    assert seen[-1] == 100


def test_units_of_an_earlier_run_and_shares_of_the_running_one() -> None:
    """The time left is predicted again after units that take no time."""
    a = net("a", [300] * 4)
    comparison_plan = planned(a, a, 3000)
    (stage,) = comparison_plan.stages
    rates = dataclasses.replace(NOMINAL, flop32=1e9)

    class Shown:
        def __init__(self) -> None:
            self.percent, self.expected = 0, 0.0

        def __call__(self, percent: int, _: int) -> None:
            self.percent = percent

        def expect(self, seconds: float | None) -> None:
            assert seconds is not None
            self.expected = seconds

    shown, total = Shown(), stage.seconds(rates)
    meter = Meter(comparison_plan, ALONE, shown, rates)
    assert shown.expected == comparison_plan.seconds(rates)
    step = meter.comparing(stage, 4)
    step.skip(2)
    of_unit = stage.comparing.seconds(rates) / 4
    assert shown.expected == pytest.approx(total - 2 * of_unit)
    assert shown.percent == round(200 * of_unit / total)
    step.share(0.5)
    assert shown.percent == round(250 * of_unit / total)
    step.share(0.1)
    assert shown.percent == round(250 * of_unit / total), "it never falls"
    step()
    assert shown.percent == round(300 * of_unit / total)
    assert shown.expected == pytest.approx(total - 2 * of_unit), "units that are computed change no prediction"
    Meter(comparison_plan, ALONE, other := Shown())
    assert other.expected == 0, "nominal rates predict no time"


def test_prepared_layers_correct_the_prediction() -> None:
    """A plan counts all directions; once layers are prepared, the rest is predicted from those that are kept."""
    a, b = net("a", [300, 200]), net("b", [250])
    comparison_plan = planned(a, b, 3000, "svcca")
    (stage,) = comparison_plan.stages
    assert with_widths(stage, 3000, {layer.name: layer.p for layer in stage.layers}) == stage
    few = with_widths(stage, 3000, {"a/0": 30, "a/1": 20, "b/0": 25})
    (narrow,) = planned(net("a", [30, 20]), net("b", [25]), 3000, "svcca").stages
    assert few.comparing == narrow.comparing
    without = with_widths(stage, 3000, {"a/0": 30, "b/0": 25})
    (narrow,) = planned(net("a", [30]), net("b", [25]), 3000, "svcca").stages
    assert without.comparing == narrow.comparing, "undefined layers cost nothing"
    assert with_widths(stage, 3000, {"b/0": 25}) == stage, "no pair is left, and nothing is compared"

    seen: list[int] = []
    meter = Meter(comparison_plan, ALONE, lambda done, _: seen.append(done))
    prepared = meter.preparing(stage)
    for _ in range(3):
        prepared()
    meter.correct(stage, few)
    compared = meter.comparing(few, 2)
    compared()
    half = stage.preparing.seconds(NOMINAL) + few.comparing.seconds(NOMINAL) / 2
    assert seen[-1] == round(100 * half / few.seconds(NOMINAL))
    compared()
    meter.finished(stage)
    assert seen[-1] == 100
