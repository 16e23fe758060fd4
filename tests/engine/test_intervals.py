"""Intervals of similarities and tests of their differences, against samples left out one by one."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import xarray as xr
from scipy import stats

import repsim
from repsim.engine.comparison import Comparison
from repsim.engine.intervals import Difference, Estimate
from repsim.errors import InvalidArgumentError, InvalidInputError, TooLittleMemoryError, UndefinedValueError
from repsim.metrics.base import Array
from repsim.report import parts
from repsim.results.export import result_as_json, text_pieces
from repsim.results.intervals import ends_of
from repsim.results.summary import closest
from tests.engine.test_grouped import cosine
from tests.metrics import references

N = 24


@pytest.fixture
def layers(rng: np.random.Generator) -> list[Array]:
    x = rng.normal(size=(N, 6))
    y = np.hstack([x[:, :4] + rng.normal(size=(N, 4)), rng.normal(size=(N, 2))])
    return [x, y, np.hstack([x[:, 2:], rng.normal(size=(N, 30))])]


@pytest.fixture
def models(layers: list[Array], rng: np.random.Generator) -> dict[str, dict[str, Array]]:
    x, y, z = layers
    return {"a": {"in": x, "out": y}, "b": {"in": z, "out": x[:, :2]}, "c": {"all": y + rng.normal(size=y.shape)}}


def interval(value: float, left_out: Array, level: float) -> tuple[float, float, float]:
    """Return the standard error and the ends of a jackknife interval, by its textbook formula."""
    m = len(left_out)
    se = np.sqrt((m - 1) / m * sum((one - left_out.mean()) ** 2 for one in left_out))
    margin = stats.t(m - 1).ppf(0.5 + level / 2) * se
    return float(se), float(value - margin), float(value + margin)


def without_each(x: Array, y: Array) -> tuple[float, Array]:
    """Return CKA of Song et al.'s formula, and CKA of all samples but one, each from its own Gram matrices."""
    parts = [np.arange(N), *(np.delete(np.arange(N), i) for i in range(N))]
    value, *left_out = [references.cka(x[kept], y[kept]) for kept in parts]
    return value, np.array(left_out)


def without_each_group(x: Array, y: Array, groups: Array) -> tuple[float, Array]:
    """Return the cosine of least-squares residuals on pairs of different groups, without each group."""
    values = []
    for group in [-1, *dict.fromkeys(groups.tolist())]:
        kept = groups != group
        values.append(cosine(x[kept] @ x[kept].T, y[kept] @ y[kept].T, groups[kept]))
    return values[0], np.array(values[1:])


def test_an_interval_is_that_of_samples_left_out_one_by_one(layers: list[Array]) -> None:
    x, y, _ = layers
    value, left_out = without_each(x, y)
    estimate = repsim.similarity(x, y, interval=0.9)
    se, low, high = interval(value, left_out, 0.9)
    computed = [estimate.value, estimate.se, estimate.low, estimate.high]
    np.testing.assert_allclose(computed, [value, se, low, high], rtol=0, atol=1e-9)
    assert (estimate.level, estimate.n, estimate.groups) == (0.9, N, None)
    assert estimate.value == repsim.similarity(x, y) == float(estimate)
    assert repsim.similarity(x, y, interval=True) == repsim.similarity(x, y, "cka", interval=0.95)


def test_a_difference_is_that_of_samples_left_out_one_by_one(layers: list[Array]) -> None:
    x, y, z = layers
    (one, without_one), (other, without_other) = without_each(x, y), without_each(x, z)
    difference = repsim.similarity_difference((x, y), (x, z), level=0.8)
    se, low, high = interval(one - other, without_one - without_other, 0.8)
    p = 2 * stats.t(N - 1).sf(abs(one - other) / se)
    computed = [difference.value, difference.se, difference.low, difference.high, difference.p]
    np.testing.assert_allclose(computed, [one - other, se, low, high, p], rtol=0, atol=1e-9)
    np.testing.assert_allclose([difference.first, difference.second], [one, other], rtol=0, atol=1e-9)


def test_whole_groups_are_left_out(layers: list[Array], rng: np.random.Generator) -> None:
    x, y, z = layers
    groups = rng.permutation(np.repeat(np.arange(8), [1, 1, 3, 3, 4, 4, 4, 4]))
    (one, without_one), (other, without_other) = (without_each_group(x, side, groups) for side in (y, z))
    estimate = repsim.similarity(x, y, interval=0.95, groups=groups)
    expected = [one, *interval(one, without_one, 0.95)]
    np.testing.assert_allclose([estimate.value, estimate.se, estimate.low, estimate.high], expected, rtol=0, atol=1e-9)
    assert (estimate.n, estimate.groups) == (N, 8)
    difference = repsim.similarity_difference((x, y), (x, z), groups=[f"scene {k}" for k in groups])
    se, low, high = interval(one - other, without_one - without_other, 0.95)
    p = 2 * stats.t(7).sf(abs(one - other) / se)
    computed = [difference.value, difference.low, difference.high, difference.p]
    np.testing.assert_allclose(computed, [one - other, low, high, p], rtol=0, atol=1e-9)
    singles = repsim.similarity(x, y, interval=0.95, groups=np.arange(N))
    assert singles == repsim.similarity(x, y, interval=0.95)


def test_a_difference_is_antisymmetric_and_of_any_two_pairs(layers: list[Array]) -> None:
    x, y, z = layers
    one, other = repsim.similarity_difference((x, y), (z, y)), repsim.similarity_difference((z, y), (x, y))
    np.testing.assert_allclose(
        [one.value, one.low, one.high, one.p], [-other.value, -other.high, -other.low, other.p], rtol=1e-9
    )


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_equal_similarities_have_no_small_p(layers: list[Array], dtype: type) -> None:
    """Layers that differ by rotation, scale and shift are equally near; rounding errors are no difference."""
    x, y, _ = layers
    rotation = np.linalg.qr(np.random.default_rng(1).normal(size=(6, 6)))[0]
    equal = repsim.similarity_difference(
        (x.astype(dtype), y.astype(dtype)), (x.astype(dtype), (3 * y @ rotation + 1).astype(dtype))
    )
    assert equal.p == 1
    assert abs(equal.value) < 1e-6


def test_estimates_are_written_in_words(layers: list[Array]) -> None:
    assert str(Estimate(0.8061, 0.779, 0.8331, 0.95, 0.01, 1200, None)) == (
        "0.806 (95 % interval 0.779 to 0.833, 1,200 samples)"
    )
    assert str(Difference(0.1, 0.02, 0.18, 0.9, 0.01, 60, 20, 0.0321, 0.5, 0.4)) == (
        "0.500 - 0.400 = 0.100 (90 % interval 0.020 to 0.180, 60 samples in 20 groups), p = 0.032"
    )
    x, y, z = layers
    difference = repsim.similarity_difference((x, y), (x, z))
    assert str(difference).endswith(f"p = {difference.p:.2g}")


def test_arrays_of_other_libraries_have_intervals(layers: list[Array]) -> None:
    x, y, _ = layers
    expected = repsim.similarity(x, y, interval=0.95)
    tensor = torch.tensor(x, requires_grad=True)
    assert repsim.similarity(tensor, pd.DataFrame(y), interval=0.95) == expected
    with pytest.raises(InvalidInputError, match="row 0 is 'b' in x and 'a' in y"):
        repsim.similarity(
            pd.DataFrame(x, index=["b", "a", *map(str, range(2, N))]),
            pd.DataFrame(y, index=["a", "b", *map(str, range(2, N))]),
            interval=0.95,
        )


def test_what_has_no_interval_is_refused(layers: list[Array]) -> None:
    x, y, z = layers
    for metric in ("svcca", "cka:estimator=biased", "cka:estimator=minibatch,batch=8", "mutual_knn"):
        with pytest.raises(InvalidInputError, match="has no exact leave-one-out; take debiased CKA: cka or cka:kernel"):
            repsim.similarity(x, y, metric, interval=0.95)
    for level in (0, 1, 95, "0.9"):
        with pytest.raises(InvalidInputError, match=r"a number between 0 and 1, such as 0\.95"):
            repsim.similarity(x, y, interval=level)  # type: ignore[arg-type]
    with pytest.raises(InvalidInputError, match="groups are those of an interval; add interval=True"):
        repsim.similarity(x, y, groups=np.arange(N))  # type: ignore[call-overload]
    with pytest.raises(InvalidInputError, match="4 samples are too few"):
        repsim.similarity(x[:4], y[:4], interval=0.95)
    with pytest.raises(InvalidInputError, match="expected two pairs of arrays"):
        repsim.similarity_difference(x, y)  # type: ignore[arg-type]
    with pytest.raises(InvalidInputError, match="layers have 20 and 24 samples"):
        repsim.similarity_difference((x, y), (x[:20], z[:20]))
    alone = np.zeros((N, 2))
    alone[:2] = [[1, 2], [3, -1]]
    with pytest.raises(UndefinedValueError, match="undefined without one of the samples"):
        repsim.similarity(x, alone, interval=0.95)


# Comparisons of stores


def test_a_comparison_has_the_intervals_of_its_pairs(models: dict[str, dict[str, Array]]) -> None:
    for metric in ("cka", "cka:kernel=rbf,sigma=3.0"):
        result = repsim.compare(models["a"], models["b"], metrics=[metric], interval=0.9)
        plain = repsim.compare(models["a"], models["b"], metrics=[metric])
        np.testing.assert_array_equal(result[metric].values, plain[metric].values)
        for i, x in enumerate(models["a"].values()):
            for j, y in enumerate(models["b"].values()):
                one = repsim.similarity(x, y, metric, interval=0.9)
                ends = [result[f"{metric}.{end}"].values[i, j] for end in ("low", "high")]
                np.testing.assert_allclose(ends, [one.low, one.high], rtol=0, atol=1e-9)
        assert result[metric].attrs["interval"] == 0.9
    assert "interval" not in plain[metric].attrs


def test_matrices_of_all_layers_are_symmetric(models: dict[str, dict[str, Array]]) -> None:
    result = repsim.compare(models, interval=True)
    ends = ends_of(result["cka"])
    np.testing.assert_array_equal(ends, ends.swapaxes(1, 2))
    np.testing.assert_allclose(np.diagonal(ends, axis1=1, axis2=2), 1, atol=1e-9)  # a layer and itself
    one = repsim.similarity(models["a"]["out"], models["c"]["all"], interval=0.95)
    np.testing.assert_allclose(ends[:, 1, 4], [one.low, one.high], rtol=0, atol=1e-9)


def test_intervals_do_not_depend_on_how_the_work_is_divided(
    models: dict[str, dict[str, Array]], tuned: Callable[..., None]
) -> None:
    whole = repsim.compare(models, interval=True)
    grouped = repsim.compare(models, interval=True, groups=np.arange(N) // 2)
    tuned(panel=7, tile=5, unit_memory=1)
    for expected, groups in ((whole, None), (grouped, np.arange(N) // 2)):
        again = repsim.compare(models, interval=True, groups=groups)
        np.testing.assert_allclose(ends_of(again["cka"]), ends_of(expected["cka"]), rtol=0, atol=1e-9)


def test_groups_of_a_comparison(models: dict[str, dict[str, Array]], tmp_path: Path) -> None:
    """Groups come from the caller or the stores; values are then those of pairs of different groups."""
    groups = np.repeat(np.arange(8), 3)
    result = repsim.compare(models["a"], models["b"], interval=True, groups=groups)
    x, y = models["a"]["out"], models["b"]["in"]
    one = repsim.similarity(x, y, interval=0.95, groups=groups)
    computed = [result[name].values[1, 0] for name in ("cka", "cka.low", "cka.high")]
    np.testing.assert_allclose(computed, [one.value, one.low, one.high], rtol=0, atol=1e-9)
    record = json.loads(result.attrs["groups"])
    assert (record["count"], record["largest"]) == (8, 3)
    names = [f"scene{k}/{i}.png" for i, k in enumerate(groups)]
    a, b = (repsim.write_store(tmp_path / f"{m}.h5", models[m], model=m, groups=groups, sample_ids=names) for m in "ab")
    for chosen in (None, "folders"):
        held = repsim.compare(a, b, interval=True, groups=chosen)
        np.testing.assert_array_equal(held["cka"].values, result["cka"].values)
        np.testing.assert_array_equal(ends_of(held["cka"]), ends_of(result["cka"]))
        assert json.loads(held["cka"].attrs["remarks"]) == [
            "from pairs of samples of different groups; 8 groups are left out as wholes"
        ]
    assert "groups" not in repsim.compare(a, b).attrs  # without intervals every sample counts as independent
    with pytest.raises(InvalidInputError, match="3 groups are too few"):
        repsim.compare(a, b, interval=True, groups=np.arange(N) // 8)
    with pytest.raises(InvalidInputError, match="groups are those of an interval"):
        repsim.compare(a, b, groups="folders")


def test_numbers_and_truth_values_of_numpy_are_levels(models: dict[str, dict[str, Array]]) -> None:
    x, y = (next(iter(models[name].values())) for name in "ab")
    same: Any
    for same in (True, np.bool_(True), np.float64(0.95)):
        assert repsim.similarity(x, y, interval=same) == repsim.similarity(x, y, interval=0.95)
        ends = repsim.compare(models["a"], models["b"], interval=same)["cka.low"]
        assert ends.identical(repsim.compare(models["a"], models["b"], interval=0.95)["cka.low"])
    none: Any = np.bool_(False)
    assert isinstance(repsim.similarity(x, y, interval=none), float)
    with pytest.raises(InvalidArgumentError, match="interval is a number between 0 and 1"):
        repsim.similarity(x, y, interval=np.float64(1))


def test_measures_without_intervals_say_so(models: dict[str, dict[str, Array]]) -> None:
    result = repsim.compare(models["a"], models["b"], metrics=["cka", "nuclear"], interval=True)
    assert set(result.coords) >= {"cka.low", "cka.high"}
    assert "nuclear.low" not in result.coords
    (remark,) = [text for text in json.loads(result["nuclear"].attrs["remarks"]) if "interval" in text]
    assert remark.startswith("no interval: only debiased CKA")
    with pytest.raises(InvalidInputError, match=r"no interval for nuclear, svcca: .* take debiased CKA"):
        repsim.compare(models["a"], models["b"], metrics=["nuclear", "svcca"], interval=True)


def test_a_value_without_an_interval_has_a_caution(models: dict[str, dict[str, Array]]) -> None:
    alone = np.zeros((N, 2))
    alone[:2] = [[1, 2], [3, -1]]
    result = repsim.compare(models["a"], {"two": alone, "fine": models["b"]["in"]}, interval=True)
    assert np.isfinite(result["cka"].values).all()
    np.testing.assert_array_equal(np.isnan(ends_of(result["cka"])).all((0, 1)), [True, False])
    cautions = json.loads(result["cka"].attrs["cautions"])
    assert sum(text.endswith("without one of the samples or groups the value is undefined") for text in cautions) == 2


def test_a_result_with_intervals_is_saved_and_extended(models: dict[str, dict[str, Array]], tmp_path: Path) -> None:
    paths = [repsim.write_store(tmp_path / f"{m}.h5", models[m], model=m) for m in "abc"]
    out = tmp_path / "result.nc"
    repsim.compare(paths[:2], out=out)
    first = repsim.compare(paths[:2], interval=True, out=out)  # a result without intervals gets them
    assert repsim.open_result(out)["cka"].identical(first["cka"])
    fresh = repsim.compare(paths, metrics=["cka", "svcca"], interval=True)
    grown = repsim.compare(paths, metrics=["svcca"], out=out)  # new pairs get the intervals that the result has
    for name in ("cka", "cka.low", "cka.high", "svcca"):
        np.testing.assert_allclose(grown[name].values, fresh[name].values, rtol=0, atol=1e-9)
    modified = out.stat().st_mtime_ns
    repsim.compare(paths, out=out, interval=True)
    assert out.stat().st_mtime_ns == modified  # nothing was left to compute
    wider = repsim.compare(paths, out=out, interval=0.99)
    assert (wider["cka.low"].values <= grown["cka.low"].values).all()
    with pytest.raises(InvalidInputError, match="the earlier result is about single samples"):
        repsim.compare(paths, out=out, interval=True, groups=np.arange(N) // 2)


def test_a_result_of_named_groups_grows_with_its_level(models: dict[str, dict[str, Array]], tmp_path: Path) -> None:
    paths = [repsim.write_store(tmp_path / f"{m}.h5", models[m], model=m) for m in "abc"]
    out, groups = tmp_path / "result.nc", np.arange(N) // 2
    repsim.compare(paths[:2], interval=0.8, groups=groups, out=out)
    grown = repsim.compare(paths, groups=groups, out=out)
    assert grown["cka"].attrs["interval"] == 0.8
    fresh = repsim.compare(paths, interval=0.8, groups=groups)
    np.testing.assert_allclose(grown["cka.low"].values, fresh["cka.low"].values, rtol=0, atol=1e-9)
    with pytest.raises(InvalidInputError, match=f"samples in {N // 2} groups: name the same groups"):
        repsim.compare(paths, metrics=["svcca"], out=out)


def test_the_plan_counts_the_intervals(models: dict[str, dict[str, Array]]) -> None:
    plans = []
    for wanted in (None, True):
        with Comparison(models["a"], models["b"], ["cka"], interval=wanted) as planned:
            plans.append(planned.plan)
    (plain,), (stage,) = (plan.stages for plan in plans)
    assert stage.leaving_out.flop32 + stage.leaving_out.flop64 > 0
    assert any(line.startswith("  intervals: each sample left out") for line in plans[1].lines())
    assert plain.comparing == stage.comparing
    with pytest.raises(TooLittleMemoryError, match="memory"):
        Comparison(models["a"], models["b"], ["cka"], interval=True, memory="1MB")


def test_sketches_have_the_interval_of_their_leave_one_out(rng: np.random.Generator, tmp_path: Path) -> None:
    x = rng.normal(size=(N, 5))
    sketches = np.stack([x @ rng.normal(size=(5, 64)) / 8 for _ in range(2)], 1)
    layers = {"one": sketches, "two": sketches[:, ::-1]}
    repsim.write_store(tmp_path / "s.h5", layers, model="s", readout="sketch:64").close()
    result = repsim.compare(tmp_path / "s.h5", interval=True)
    with repsim.open_store(tmp_path / "s.h5") as store:
        left_out = repsim.leave_one_out(store, store)
    _, low, high = interval(float(result["cka"][0, 1]), left_out[:, 0, 1], 0.95)
    np.testing.assert_allclose(ends_of(result["cka"])[:, 0, 1], [low, high], rtol=0, atol=1e-9)
    with pytest.raises(InvalidInputError, match="compressed readouts have no estimator for samples in groups"):
        repsim.compare(tmp_path / "s.h5", interval=True, groups=np.arange(N) // 2)


@pytest.mark.slow
def test_gram_matrices_of_blocks_have_no_interval(tmp_path: Path) -> None:
    store = repsim.extract(
        "digits_resnet.seed0", "digits", tmp_path, split="test", limit=32, layers="stages", readout="mean,gram:16"
    )
    result = repsim.compare(store, readouts=["mean", "gram:16"], interval=True)
    assert {"cka@mean.low", "cka@mean.high"} <= result.coords.keys()
    assert "cka@gram:16.low" not in result.coords
    assert any(text.startswith("no interval") for text in json.loads(result["cka@gram:16"].attrs["remarks"]))


def wrong(change: Callable[[xr.Dataset], Any], message: str, result: xr.Dataset, path: Path) -> None:
    with pytest.raises(InvalidInputError, match=message):
        repsim.save_result(change(result.copy(deep=True)), path)


def test_files_with_wrong_intervals_are_refused(models: dict[str, dict[str, Array]], tmp_path: Path) -> None:
    result = repsim.compare(models["a"], models["b"], interval=True)
    path = tmp_path / "result.nc"
    wrong(lambda r: r.drop_vars("cka.low"), "cka has a part of an interval", result, path)
    wrong(lambda r: r.assign(cka=r["cka"].assign_attrs(interval=2.0)), "attribute interval of cka", result, path)
    low = result["cka.low"]
    wrong(lambda r: r.assign_coords({"cka.low": low + 1}), "values outside of their own intervals", result, path)
    one_side = xr.Variable("layer_a", low.values[:, 0])
    wrong(lambda r: r.assign_coords({"cka.low": one_side}), r"cka.low is float64 .*expected numbers", result, path)
    repsim.save_result(result.drop_vars("cka").assign(cka=result["cka"]), path)
    assert repsim.open_result(path)["cka.high"].equals(result["cka.high"])


def test_tables_and_exports_show_intervals(models: dict[str, dict[str, Array]]) -> None:
    result = repsim.compare(models["a"], models["b"], interval=0.9)
    table = closest(result["cka"])
    assert table.heads[-1] == ">90 % interval"
    at = result["cka"].values[0].argmax()
    low, high = (result[f"cka.{end}"].values[0, at] for end in ("low", "high"))
    assert table.rows[0][-1] == f"{low:z.4f} to {high:z.4f}"
    frame = repsim.to_frame(result)
    np.testing.assert_array_equal(frame["cka.low"], result["cka.low"].values.ravel())
    assert frame.attrs["columns"]["cka.high"] == "upper end of the 90 % interval of cka"
    assert "cka,cka.low,cka.high" in next(text_pieces(result, "csv"))
    np.testing.assert_array_equal(result_as_json(result)["metrics"]["cka"]["low"], result["cka.low"].values)
    part = parts.of_comparison(result, ["cka"], "")
    assert part["interval"] == "90 % interval"
    assert all(part["matrices"][end][0] for end in ("low", "high"))
    assert "low" not in parts.of_comparison(repsim.compare(models["a"], models["b"]), ["cka"], "")["matrices"]


@pytest.mark.slow
def test_intervals_are_those_of_a_study(rng: np.random.Generator) -> None:
    """`repsim.universality` has the same intervals for pairs of layers of plain CKA."""
    x = rng.normal(size=(40, 8))
    models = {f"net{k}": {"in": x + rng.normal(size=x.shape), "out": x[:, : 3 + k]} for k in range(2)}
    study = repsim.universality([repsim.as_store(layers, model=name) for name, layers in models.items()])
    result = repsim.compare(models, interval=True)
    for name in ("low", "high"):
        of_study = study[name].sel(measure="cka").values
        apart = ~np.isnan(of_study)
        assert apart.sum() >= 8
        np.testing.assert_allclose(result[f"cka.{name}"].values[apart], of_study[apart], rtol=0, atol=1e-9)
