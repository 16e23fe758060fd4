"""Chance levels in results, tables, figures and files."""

import json
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

import repsim
from repsim.figures.heatmaps import figure, heatmap
from repsim.metrics.base import Array
from repsim.report import parts
from repsim.results.chance import chance_in_words, chance_of
from repsim.results.export import to_json
from repsim.results.summary import closest

N = 120
METRICS = ["cka", "svcca", "pwcca", "procrustes", "mutual_knn:k=5", "linear_regression"]


@pytest.fixture(scope="module")
def layers() -> tuple[dict[str, Array], dict[str, Array]]:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(N, 12))
    a = {"seen": x + 2 * rng.normal(size=(N, 12)), "own": rng.normal(size=(N, 20))}
    return a, {"seen": x, "wide noise": rng.normal(size=(N, 100))}


@pytest.fixture(scope="module")
def result(layers: tuple[dict[str, Array], dict[str, Array]], tmp_path_factory: pytest.TempPathFactory) -> xr.Dataset:
    folder = tmp_path_factory.mktemp("stores")
    a, b = (
        repsim.write_store(folder / f"{name}.h5", side, model=name) for name, side in zip("ab", layers, strict=True)
    )
    repsim.compare(a, b, METRICS, out=folder / "result.nc")
    return repsim.open_result(folder / "result.nc")


@pytest.mark.parametrize("spec", ["svcca", "linear_regression", "procrustes", "mutual_knn:k=5", "cka"])
def test_chance_levels_are_means_over_permutations(
    result: xr.Dataset, layers: tuple[dict[str, Array], dict[str, Array]], spec: str
) -> None:
    metric, rng = repsim.metrics.get(spec), np.random.default_rng(1)
    levels = chance_of(result[spec])
    assert levels is not None
    (x, *_), (_, y) = (list(side.values()) for side in layers)
    a = metric.recipe(repsim.metrics.base.as_samples(x))
    draws = [metric.pair(a, metric.recipe(repsim.metrics.base.as_samples(y[rng.permutation(N)]))) for _ in range(60)]
    assert levels[0, 1] == pytest.approx(
        np.mean(draws), abs=4 * np.std(draws) / np.sqrt(60) + 0.02 * abs(np.mean(draws))
    )


def test_what_is_known_of_chance_is_recorded(result: xr.Dataset) -> None:
    kinds = {str(name): variable.attrs["chance"] for name, variable in result.data_vars.items()}
    assert kinds == {
        "cka": "zero", "svcca": "known", "pwcca": "unknown", "procrustes": "known", "mutual_knn:k=5": "known",
        "linear_regression": "known",
    }  # fmt: skip
    assert chance_in_words(result["cka"]) == ""
    assert chance_in_words(result["mutual_knn:k=5"]) == "by chance 0.042"
    assert chance_in_words(result["pwcca"]) == "chance level not computed"


def test_the_closest_layer_is_the_one_farthest_above_chance(result: xr.Dataset) -> None:
    """The widest layer has the largest SVCCA and linear regression, by chance."""
    for spec in ("svcca", "linear_regression"):
        assert result[spec].values[0].argmax() == 1
        table = closest(result[spec])
        assert table.rows[0][1] == "seen"
        assert table.heads[-1] == ">by chance"
        assert table.rows[0][3] == f"{result[spec + '.chance'].values[0, 0]:.4f}"
        assert "by the difference of the value and its chance level" in table.title
    below = result["svcca"].copy(data=result["svcca.chance"].values - 0.01)
    assert [row[1] for row in closest(below).rows] == ["none is above chance"] * 2
    assert closest(result["pwcca"]).title.endswith("chance level not computed")
    assert "chance" not in closest(result["cka"]).title


@pytest.mark.slow
def test_figures_pages_and_tables_show_chance(result: xr.Dataset) -> None:
    bar = heatmap(result["svcca"]).images[0].colorbar
    assert bar is not None
    low, high = (f"{end:.3f}" for end in (result["svcca.chance"].min(), result["svcca.chance"].max()))
    assert f"by chance {low} to {high}" in " ".join(bar.ax.get_ylabel().split())
    (bracket,) = [line for line in bar.ax.lines if line.get_gid() == "chance"]
    np.testing.assert_allclose(
        np.asarray(bracket.get_ydata(), float), [result["svcca.chance"].min(), result["svcca.chance"].max()]
    )
    assert "Bracket at the colour bar" in " ".join(figure(result).get_supxlabel().split())
    part = parts.of_comparison(result, METRICS, "")
    assert [bool(packed) for packed in part["matrices"]["chance"]] == [True, True, False, True, True, True]
    assert part["warnings"].count("pwcca: chance level not computed") == 1
    frame = repsim.to_frame(result)
    np.testing.assert_array_equal(frame["svcca.chance"], result["svcca.chance"].values.ravel())
    assert json.loads(json.dumps(to_json(result)))["metrics"]["svcca"]["chance_values"]


def test_a_result_that_grows_keeps_its_chance_levels(tmp_path: Path, result: xr.Dataset) -> None:
    rng = np.random.default_rng(2)
    stores = [repsim.write_store(tmp_path / f"{m}.h5", {"x": rng.normal(size=(40, 5))}, model=m) for m in "abc"]
    repsim.compare(stores[:2], metrics=["svcca"], out=tmp_path / "grown.nc")
    grown = repsim.compare(stores, metrics=["svcca"], out=tmp_path / "grown.nc")
    fresh = repsim.compare(stores, metrics=["svcca"])
    np.testing.assert_array_equal(grown["svcca.chance"], fresh["svcca.chance"])
    renamed = result.drop_vars("svcca")  # its chance levels stay as a coordinate
    repsim.save_result(renamed, tmp_path / "part.nc")
    assert "svcca" not in repsim.open_result(tmp_path / "part.nc")
