"""Cases that a reviewer found: names, missing layers and points, asymmetric and unbounded measures, odd options."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import repsim
from repsim.errors import RepsimError

rng = np.random.default_rng(0)
RAW = {"measure": "cka", "comparison": "reference"}


@pytest.fixture
def store(tmp_path: Path) -> Any:
    def written(name: str, layers: Mapping[str, Any], axes: dict[str, Any], **more: Any) -> Path:
        path = tmp_path / f"{len(list(tmp_path.iterdir()))}.h5"
        repsim.write_store(path, layers, model=name, axes=axes, **more).close()
        return path

    return written


def _texts(series: Any, key: str = "summary") -> str:
    return " ".join(json.loads(series.attrs[key]))


def test_names_of_models_and_layers_do_not_collide_with_those_of_controls(store: Any) -> None:
    pixels = rng.normal(size=(40, 3, 2, 2))
    layers = [{"0": rng.normal(size=(40, 6)), "1": rng.normal(size=(40, 6))} for _ in range(2)]
    values = []
    for name in ("input", "other"):
        paths = [store(f"{name}{k or ''}", values_of, {"step": k}, pixels=pixels) for k, values_of in enumerate(layers)]
        values.append(repsim.series(paths)["similarity"].values)
    np.testing.assert_array_equal(values[0], values[1])


def test_a_layer_may_be_called_network(store: Any) -> None:
    paths = [store(f"m{k}", {"network": rng.normal(size=(30, 4)), "b": rng.normal(size=(30, 4))}, {"width": k})
             for k in range(1, 5)]  # fmt: skip
    series = repsim.series(paths, axis="width")
    assert series["trend_of"].values.tolist() == ["network", "network (layer)", "b"]


def test_places_that_only_some_runs_have_are_no_part_of_a_trend(store: Any) -> None:
    """Two runs are alike, and a third, which is shorter, is not: no pair of runs changes."""
    base = rng.normal(size=(60, 8))
    paths = []
    for width in range(1, 11):
        for run in "abc"[: 3 if width <= 5 else 2]:
            x = base + 0.5 * rng.normal(size=base.shape) if run in "ab" else rng.normal(size=base.shape)
            paths.append(store(f"{run}{width}", {"out": x}, {"width": width, "run": run}))
    series = repsim.series(paths, axis="width")
    trend = series.sel(measure="cka", comparison="other runs", trend_of="network")
    assert float(trend["trend_p"]) > 0.05
    assert "of different runs rises" not in _texts(series)


def test_layers_that_are_constant_at_some_points_are_no_part_of_the_mean(store: Any) -> None:
    base = rng.normal(size=(60, 8))
    paths = []
    for width in range(1, 10):
        high = base + 0.3 * rng.normal(size=base.shape)
        layers = {"low": rng.normal(size=base.shape), "high": high if width > 4 else np.zeros((60, 2))}
        paths.append(store(f"w{width}", layers, {"width": width}))
    series = repsim.series(paths, axis="width")
    np.testing.assert_array_equal(series["network"].sel(RAW), series["similarity"].sel({**RAW, "layer": "low"}))
    assert "rises along width" not in _texts(series).split("Kendall")[0]
    assert "Means over layers are of the layers that have a value at all points" in _texts(series, "warnings")


def test_networks_without_a_defined_layer_have_no_value(store: Any) -> None:
    constant, varying = {"out": np.zeros((20, 3))}, [{"out": rng.normal(size=(20, 3))} for _ in range(2)]
    paths = [store(f"m{k}", layers, {"step": k}) for k, layers in enumerate((constant, *varying))]
    series = repsim.series(paths)
    assert np.isnan(series["similarity"].sel({**RAW, "point": "m0"})).all()
    assert float(series["similarity"].sel({**RAW, "point": "m2"}).item()) == pytest.approx(1)
    assert "out of m0" in _texts(series, "warnings")
    empty = [store(f"c{k}", constant, {"step": k}) for k in range(2)]
    everything = repsim.series(empty, ["mutual_knn", "svcca"], all_pairs=True)
    assert np.isnan(everything["similarity"]).all()
    assert np.isnan(everything["every_point"]).all()


@pytest.mark.slow
def test_many_layers_of_other_depth_have_names_of_their_own(store: Any) -> None:
    paths = [store(f"d{n}", {f"l{k}": rng.normal(size=(12, 2)) for k in range(n)}, {"depth": n}) for n in (102, 103)]
    series = repsim.series(paths, axis="depth")
    assert len(set(series["layer"].values.tolist())) == 102


@pytest.mark.parametrize("reference", ["first", "last", "m1"])
def test_asymmetric_measures_are_of_the_point_given_what_it_is_compared_with(store: Any, reference: str) -> None:
    paths = [store(f"m{k}", {"out": rng.normal(size=(30, 2 + 2 * k))}, {"width": k}) for k in range(3)]
    series = repsim.series(paths, ["linear_regression"], axis="width", reference=reference)
    values = series["similarity"].sel(measure="linear_regression", comparison="reference", layer="out").values
    other = {"first": 0, "last": 2, "m1": 1}[reference]
    expected = [repsim.compare(path, paths[other], ["linear_regression"])["linear_regression"].item() for path in paths]
    np.testing.assert_allclose(values, expected)
    assert "linear_regression is asymmetric" in _texts(series, "warnings")


def test_distances_and_measures_without_a_bound_are_said(store: Any) -> None:
    base = rng.normal(size=(40, 5))
    paths = [store(f"m{k}", {"out": base + rng.normal(size=base.shape) / (1 + k)}, {"width": k}) for k in range(6)]
    series = repsim.series(paths, ["procrustes_size", "cknna"], axis="width")
    assert "procrustes_size is a distance" in _texts(series, "warnings")
    assert "minus procrustes_size with the last point" in _texts(series)
    assert np.isnan(series["settled"].sel(measure="cknna")).all()
    assert np.isfinite(series["settled"].sel(measure="cka")).all()


def test_runs_of_other_length_are_said_with_what_they_have(store: Any) -> None:
    base = rng.normal(size=(60, 8))
    paths = []
    for seed, steps in ((0, (0, 1, 10, 100)), (1, (0, 1, 10)), (2, (1, 10, 100))):
        for step in steps:
            x = base + rng.normal(size=base.shape) / (1 + step)
            paths.append(store(f"s{seed}.{step}", {"a": x, "b": x[:, :4]}, {"step": step, "seed": seed}))
    series = repsim.series(paths)
    network = series["network"].sel(RAW)
    of_step = [float(network.sel(point=f"s{seed}.10")) for seed in (0, 2)]
    assert f"{np.mean(of_step):.3f} at step 10" in _texts(series), "the last point of seed 1 is compared with itself"
    assert "(of 1 runs that stand at both)" in _texts(series)
    assert "nan" not in _texts(series)
    assert "nan" not in _texts(repsim.series(paths, reference="run=1"))


def test_one_layer_has_no_order(store: Any) -> None:
    base = rng.normal(size=(40, 5))
    paths = [store(f"m{k}", {"out": base + rng.normal(size=base.shape) / (1 + k)}, {"step": k}) for k in range(5)]
    text = _texts(repsim.series(paths))
    assert "order of depth" not in text
    assert "layers have gone 90 % of the way" in text


@pytest.mark.parametrize(
    ("keywords", "message"),
    [({"points": "state"}, "points"), ({"scale": "Log"}, "scale"), ({"scale": "log"}, "values below 0")],
)
def test_odd_options_are_refused(store: Any, keywords: dict[str, Any], message: str) -> None:
    paths = [store(f"m{k}", {"out": rng.normal(size=(20, 3))}, {"shift": k}) for k in (-1, 0, 1)]
    with pytest.raises(RepsimError, match=message):
        repsim.series(paths, axis="shift", **keywords)


def test_tables_of_axes_and_readouts_that_are_left_out_are_said(store: Any, tmp_path: Path) -> None:
    paths = [store(f"m{k}", {"out": rng.normal(size=(20, 3))}, {}) for k in (1, 2)]
    table = tmp_path / "axes.csv"
    table.write_text("model,step\nm1,1\nm2,2\nm3,3\n")
    assert "1 models of" in _texts(repsim.series(paths, axes_file=table), "warnings")


def test_a_run_that_is_called_nan_is_a_name(store: Any) -> None:
    paths = [store(f"m{k}", {"out": rng.normal(size=(20, 3))}, {"step": k, "run": "nan"}) for k in (100, 0, 10)]
    assert repsim.series(paths)["value"].values.tolist() == [0, 10, 100]
