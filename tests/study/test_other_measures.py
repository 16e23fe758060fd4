"""Measures other than CKA: chance levels, affordable permutations, half-samples, and distances as similarities."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr

from repsim import metrics as registry
from repsim.engine.checkpoints import Checkpoints
from repsim.engine.resampling import permuted, random_permutations, random_subsamples
from repsim.engine.uncertainty import half_samples
from repsim.metrics import Metric
from repsim.metrics.recipes.groups import Groups
from repsim.runtime import tuning
from repsim.stores.writer import write_store
from repsim.study import other_measures
from repsim.study.chance import calibrated, p_value, threshold
from repsim.study.design import Design, Pair, design
from repsim.study.layer_matching import mbm
from repsim.study.other_measures import MeasureResult, Setting, measure
from repsim.study.units import Sharing
from repsim.study.universality import universality
from repsim.testing.examples import TRAINED, UNTRAINED, Array, unrelated_layers, write_network, write_networks

N, COUNT, HALVES = 26, 19, 8
ORDERS = random_permutations(N, COUNT, 0)


@pytest.fixture(scope="module", autouse=True)
def few_halves() -> Iterator[None]:
    with tuning.using(half_samples=HALVES):
        yield


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Design]:
    with ExitStack() as stack:
        rng, folder = np.random.default_rng(6), tmp_path_factory.mktemp("stores")
        models = (TRAINED[0], TRAINED[2], UNTRAINED[0], UNTRAINED[2])
        stores = write_networks(folder, rng, N, learned=1, seen=0.5, models=models, depth=2)
        yield design([stack.enter_context(store) for store in stores])


def layers(study: Design, model: int) -> list[Array]:
    member = study.members[model]
    return [member.store[array][:] for array in member.arrays]


def run_measure(study: Design, spec: str, **options: Any) -> MeasureResult:
    both = [*study.pairs, *chain(*study.controls_of(study.pairs[0]).values())]
    return measure(registry.get(spec), Setting(both, study.pairs, ORDERS, **{"seed": 3, **options}))


def test_values_and_chance_of_neighbours(study: Design) -> None:
    """The chance level is k / (n - 1); the standard deviation is that over permutations."""
    measured, metric = run_measure(study, "mutual_knn:k=4"), registry.get("mutual_knn:k=4")
    (pair,) = study.pairs
    a, b = layers(study, 0), layers(study, 1)
    np.testing.assert_allclose(measured.values[pair.name], [[metric(x, y) for y in b] for x in a], atol=1e-12)
    np.testing.assert_allclose(measured.chance[pair.name], 4 / (N - 1), atol=1e-12)
    drawn = permuted(a, b, metric, random_permutations(N, 300, 9))
    np.testing.assert_allclose(measured.chance_sd[pair.name], drawn.std(0), rtol=0.15)
    np.testing.assert_array_equal(measured.permuted[pair.name], permuted(a, b, metric, ORDERS))
    assert [name for name in measured.values if name != pair.name] == [
        "cnn+random-seed0 x vit+random-seed0", "cnn.seed0 x vit+random-seed0", "cnn+random-seed0 x vit.seed0",
    ]  # fmt: skip
    assert set(measured.permuted) == set(measured.chance) == {pair.name}  # only tested pairs


@pytest.mark.parametrize("metric", registry.select("all"), ids=lambda metric: metric.spec)
@pytest.mark.slow
def test_every_measure_can_be_part_of_a_study(study: Design, metric: Metric[Any]) -> None:
    if metric.min_samples > N:
        return
    measured, (pair,) = run_measure(study, metric.spec), study.pairs
    # cka_units: units of these layers have nothing in common
    assert np.isfinite(measured.values[pair.name]).any() or metric.name == "cka_units"
    if measured.permuted:
        values = permuted(layers(study, 0), layers(study, 1), metric, ORDERS)
        expected = values if metric.sense == "similarity" else -values
        np.testing.assert_allclose(
            measured.permuted[pair.name], expected[: len(measured.permuted[pair.name])], atol=1e-9
        )


def test_half_samples_keep_the_share_of_neighbours(study: Design) -> None:
    measured, (pair,) = run_measure(study, "mutual_knn:k=6"), study.pairs
    a, b, metric = layers(study, 0), layers(study, 1), registry.get("mutual_knn:k=3")
    samples = random_subsamples(N, N // 2, HALVES, 3)
    expected = [[[metric(x[half], y[half]) for y in b] for x in a] for half in samples]
    np.testing.assert_allclose(measured.halves[pair.name], expected, atol=1e-12)
    assert len(measured.halves) == 4  # untrained networks use the same halves


def test_unaffordable_permutations_are_reported(study: Design, tuned: Callable[..., None]) -> None:
    (scarce,) = run_measure(study, "svcca").notes
    assert scarce.startswith(f"all values: n = {N} samples are too few for ")
    seconds = other_measures._seconds(registry.get("svcca"), study.pairs, N, prepared=True)
    tuned(study_seconds=18.5 * seconds)
    few = run_measure(study, "svcca")
    assert few.notes[0] == "not permuted: fewer than 19 permutations are affordable at this size"
    assert few.permuted == {}
    assert np.isfinite(few.values[study.pairs[0].name]).all()
    tuned(study_seconds=19.5 * seconds)
    orders = random_permutations(N, 30, 0)
    limited = measure(registry.get("svcca"), Setting(study.pairs, study.pairs, orders))
    assert limited.notes[0] == "19 of 30 permutations are affordable at this size"
    np.testing.assert_array_equal(
        limited.permuted[study.pairs[0].name], run_measure(study, "svcca").permuted[study.pairs[0].name]
    )
    tuned(study_seconds=0)
    assert "no interval: half-samples take too long at this size" in run_measure(study, "svcca").notes


@pytest.mark.parametrize("spec", ["mutual_knn:k=6", "svcca"])
def test_a_study_that_grows_computes_new_pairs_only(
    study: Design, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spec: str
) -> None:
    """Values, permutations and half-samples of earlier pairs are read, even if fewer are affordable for all pairs."""
    compared: list[tuple[str, str]] = []
    blocks = other_measures._blocks

    def counted(metric: Metric[Any], a: Any, b: Any) -> Any:
        compared.append((metric.spec, f"{len(a)} x {len(b)}"))
        return blocks(metric, a, b)

    monkeypatch.setattr(other_measures, "_blocks", counted)
    trained, vit, twin = (study.members[k] for k in (0, 1, 2))
    few, all_pairs = [Pair(trained, vit)], [Pair(trained, vit), Pair(trained, twin), Pair(twin, vit)]
    metric, sharing = registry.get(spec), Sharing(Checkpoints(tmp_path / "parts", keep=True))

    def on_disk() -> dict[str, int]:
        return {path.name: path.stat().st_mtime_ns for path in (tmp_path / "parts").glob("*.part")}

    alone = measure(metric, Setting(few, few, ORDERS, sharing=sharing))
    once, before = len(compared), on_disk()
    assert len(before) == 2  # values and permutations, and half-samples
    assert once >= 1 + HALVES
    compared.clear()
    grown = measure(metric, Setting(all_pairs, few, ORDERS, sharing=sharing))
    after = on_disk()
    assert {name: after[name] for name in before} == before
    assert len(after) == 2 * len(all_pairs)
    assert len(compared) == 2 * (1 + HALVES)  # two new pairs
    fresh = measure(metric, Setting(all_pairs, few, ORDERS))
    for kind in ("values", "chance", "permuted", "halves"):
        for name, values in getattr(fresh, kind).items():
            np.testing.assert_array_equal(getattr(grown, kind)[name], values)
    np.testing.assert_array_equal(grown.halves[few[0].name], alone.halves[few[0].name])


def test_too_few_samples(study: Design) -> None:
    measured = run_measure(study, "mutual_knn:k=40")
    assert measured.notes == ["26 samples are too few: it needs at least 42"]
    assert all(np.isnan(values).all() for values in measured.values.values())
    assert measured.permuted == measured.halves == {}


def test_unpaired_measures_are_not_permuted(study: Design) -> None:
    measured = run_measure(study, "uniformity_difference")
    assert measured.permuted == {}
    unpaired, scarce = measured.notes
    assert unpaired == "not permuted: its value does not depend on the order of the samples"
    assert scarce.startswith(f"all values: n = {N} samples are too few for ")
    assert scarce.endswith("its value depends on which samples they are with fewer than 200")


def test_no_pairs(study: Design) -> None:
    alone = measure(registry.get("svcca"), Setting([], [], ORDERS))
    assert (alone.values, alone.notes) == ({}, [])


@pytest.fixture(scope="module")
def whole(study: Design) -> xr.Dataset:
    stores = [member.store for member in study.members]
    return universality(stores, ["procrustes", "linear_regression"], permutations=COUNT, draws=50)


def test_a_distance_is_there_as_its_negative(study: Design, whole: xr.Dataset) -> None:
    metric, (pair,) = registry.get("procrustes"), study.pairs
    S = -np.array([[metric(x, y) for y in layers(study, 1)] for x in layers(study, 0)])
    row = whole.sel(measure="procrustes", pair=pair.name)
    assert row["index"] == pytest.approx(mbm(S), abs=1e-12)
    assert row["largest"] == pytest.approx(S.max(), abs=1e-12)
    shape = whole["value"].sel(measure="procrustes").values[:2, 2:]
    np.testing.assert_allclose(shape, S, atol=1e-12)
    drawn = -permuted(layers(study, 0), layers(study, 1), metric, random_permutations(N, COUNT, 0))
    assert row["p_index"] == p_value(mbm(S), mbm(drawn)) == 1 / (COUNT + 1)
    tau = threshold(mbm(S), mbm(drawn))
    assert row["threshold_index"] == pytest.approx(tau, abs=1e-12)
    assert row["calibrated_index"] == pytest.approx((mbm(S) - tau) / (0 - tau), abs=1e-12)  # 1 at a distance of 0
    assert 0 < row["calibrated_index"] < 1


@pytest.mark.filterwarnings("ignore::repsim.errors.UnreliableValueWarning")
def test_what_a_distance_has_learned(study: Design, whole: xr.Dataset) -> None:
    """Trained networks are nearer than those of every control, so the effect is above 0.

    It is that against the nearest control, and its interval has the smallest ends of those of all controls, from joint
    halves.
    """
    metric: Metric[Any] = registry.get("procrustes")

    def indices(rows: Any = slice(None)) -> list[float]:
        """Return the index of the trained networks, and that of each control."""
        return [
            float(mbm(-np.array([[metric(x[rows], y[rows]) for y in layers(study, b)] for x in layers(study, a)])))
            for a, b in ((0, 1), (2, 3), (0, 3), (2, 1))
        ]

    row = whole.sel(measure="procrustes", pair=study.pairs[0].name)
    trained, *levels = indices()
    assert row["control_name"] == ("both untrained", "first trained", "second trained")[np.argmax(levels)]
    assert row["control"] == pytest.approx(max(levels), abs=1e-12)
    assert row["learned"] == pytest.approx(trained - max(levels), abs=1e-12)
    assert row["learned"] > 0.05
    halves = np.array([indices(half) for half in random_subsamples(N, N // 2, HALVES, 0)])
    intervals = [half_samples(trained - level, halves[:, 0] - halves[:, k + 1], N) for k, level in enumerate(levels)]
    ends = min(float(one.low) for one in intervals), min(float(one.high) for one in intervals)
    np.testing.assert_allclose([row["learned_low"], row["learned_high"]], ends, atol=1e-12)
    of_families = whole.sel(measure="procrustes", families="cnn x vit")
    np.testing.assert_allclose(of_families["control_value"], levels, atol=1e-12)
    assert of_families["trained_value"] == pytest.approx(trained, abs=1e-12)
    np.testing.assert_allclose([of_families[f"effect{end}"] for end in ("_low", "_high")], ends, atol=1e-12)


def test_a_pair_in_the_other_order_has_the_transposed_values(study: Design) -> None:
    measured, (pair,) = run_measure(study, "mutual_knn:k=4"), study.pairs
    reverse = Pair(pair.b, pair.a)
    np.testing.assert_array_equal(measured.of(measured.values, reverse), measured.values[pair.name].T)
    np.testing.assert_array_equal(measured.of(measured.halves, reverse), measured.halves[pair.name].transpose(0, 2, 1))
    mean = measured.mean_index(measured.halves, [pair, reverse])
    np.testing.assert_allclose(mean, mbm(measured.halves[pair.name]), atol=1e-12)


@pytest.mark.filterwarnings("ignore::repsim.errors.UnreliableValueWarning")
def test_an_asymmetric_measure_is_not_mirrored(study: Design, whole: xr.Dataset) -> None:
    metric = registry.get("linear_regression")
    values = whole["value"].sel(measure="linear_regression").values
    expected = [[metric(x, y) for y in layers(study, 1)] for x in layers(study, 0)]
    np.testing.assert_allclose(values[:2, 2:], expected, atol=1e-12)
    assert np.isnan(values[2:, :2]).all()
    assert "linear_regression: asymmetric: the first model of each pair given the second" in whole.attrs["warnings"]


def test_scales() -> None:
    assert other_measures.identity_value(registry.get("procrustes")) == 0
    assert other_measures.identity_value(registry.get("mutual_knn")) == 1
    assert other_measures.identity_value(registry.get("cknna")) == np.inf
    assert calibrated(0.5, 0.2) == pytest.approx(0.375)


def test_values_that_are_not_determined_are_cautions_of_the_pair(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    shared = rng.normal(size=(N * 4, 4))
    a = write_store(tmp_path / "a.h5", {"x": np.c_[shared * [1, 2, 3, 4], rng.normal(size=(N * 4, 2))]}, model="a")
    b = write_store(tmp_path / "b.h5", {"x": np.c_[shared, rng.normal(size=(N * 4, 3))]}, model="b")
    pairs = design([a, b]).pairs
    orders = random_permutations(N * 4, COUNT, 0)
    measured = measure(registry.get("pwcca"), Setting(pairs, pairs, orders))
    assert [text.partition(",")[0] for text in measured.cautions["a x b"]] == ["the value is not determined"]


def test_half_samples_are_of_whole_groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pair of samples in one group is in each half, or in none."""
    rng, groups = np.random.default_rng(0), Groups.of(np.arange(40) // 2)
    with ExitStack() as stack:
        stores = [
            stack.enter_context(write_network(tmp_path, model, unrelated_layers(rng, 40, 6, 6))) for model in "ab"
        ]
        halves: list[list[int]] = []
        select = other_measures._select_samples

        def record(rows: Callable[[], Any], samples: torch.Tensor) -> torch.Tensor:
            halves.append(samples.tolist())
            return select(rows, samples)

        monkeypatch.setattr(other_measures, "_select_samples", record)
        orders = random_permutations(40, 19, groups=np.arange(40) // 2)
        result = run(design(stores), orders, groups)
        assert halves
        assert all({k ^ 1 for k in half} == set(half) and len(half) == 20 for half in halves)
        assert result.halves["a x b"].shape[1:] == (2, 2)
        few = run(design(stores), orders, Groups.of(np.arange(40) // 6))
        assert "no interval: 7 groups of samples are too few to be halved" in few.notes


def run(study: Design, orders: np.ndarray, groups: Groups) -> MeasureResult:
    return measure(registry.get("procrustes"), Setting(study.pairs, study.pairs, orders, groups=groups))
