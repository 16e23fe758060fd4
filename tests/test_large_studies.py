"""Tests of what is done with results and studies of many networks: nothing is lost, and what is left out is said."""

import json
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from repsim import figures
from repsim.engine.comparison import compare
from repsim.engine.null_moments import CubicMoments
from repsim.presentation.thinning import MOST_PAIRS, left_out, thinned
from repsim.results import export
from repsim.results.chance import chance_of
from repsim.results.files import open_study, save_result
from repsim.results.schema import problem
from repsim.results.summary import closest, mean_of_closest
from repsim.study import tables, words
from repsim.study.chance import skewness, skewnesses
from repsim.testing.examples import related_layers, small_study, write_network
from repsim.testing.large import enlarged_study

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def study() -> xr.Dataset:
    return small_study(30, ["mutual_knn:k=4"], draws=5)


@pytest.fixture(scope="module")
def large(study: xr.Dataset) -> xr.Dataset:
    return enlarged_study(study, 30)


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> xr.Dataset:
    """Return a comparison of 16 networks under measures of each sense; one layer is constant."""
    rng, folder = np.random.default_rng(3), tmp_path_factory.mktemp("many")
    stores = [
        write_network(folder, f"net{k:02d}", [*related_layers(rng, 24, 3, 4), *([np.ones((24, 2))] if k == 5 else [])])
        for k in range(16)
    ]
    result = compare(stores, metrics=["cka", "procrustes", "mutual_knn:k=4"])
    for store in stores:
        store.close()
    return result


def test_an_enlarged_study_of_a_measure_that_is_not_symmetric_is_a_study() -> None:
    large = enlarged_study(small_study(20, metrics=["cka", "linear_regression"], draws=5), 9)
    assert problem(large) is None
    assert float(large["value"].sel(measure="linear_regression").notnull().mean()) > 0.2


def test_an_enlarged_study_is_a_study(large: xr.Dataset, study: xr.Dataset, tmp_path: Path) -> None:
    assert problem(large) is None
    save_result(large, tmp_path / "large.nc")
    xr.testing.assert_equal(open_study(tmp_path / "large.nc"), large)
    assert (large.sizes["model"], large.sizes["pair"], len(set(large["pair"].values))) == (30, 435, 435)
    pair = "cnn.seed0+2 x vit.seed1+5"
    np.testing.assert_array_equal(
        large["index"].sel(pair=pair).values, study["index"].sel(pair="cnn.seed0 x vit.seed1").values
    )
    a, b = (large[f"layer_{side}"][large[f"model_{side}"].values == model] for side, model in zip(
        "ab", pair.split(" x "), strict=True))  # fmt: skip
    rows, columns = study["model_a"].values == "cnn.seed0", study["model_b"].values == "vit.seed1"
    own = study["value"].values[:, rows][:, :, columns]
    np.testing.assert_array_equal(large["value"].sel(layer_a=a, layer_b=b).values, own)


@pytest.mark.parametrize("rows", [1, 7, 90, 10_000])
@pytest.mark.parametrize("table", ["pairs", "layers", "matches", "families", "network_pairs", "maps", "layer_map"])
def test_an_export_in_pieces_equals_the_whole(
    study: xr.Dataset, monkeypatch: pytest.MonkeyPatch, table: str, rows: int
) -> None:
    monkeypatch.setattr(export, "_ROWS", rows)
    pieces = list(export.text_pieces(study, "csv", table))
    assert "".join(pieces) == export.to_csv(export.to_frame(study, table))
    assert max(piece.count("\n") for piece in pieces) <= rows + 1  # the first has the heads
    assert "".join(export.text_pieces(study, "json", table)) == json.dumps(export.to_json(study, table)) + "\n"


def test_an_export_of_a_comparison_in_pieces_equals_the_whole(
    many: xr.Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = export.to_csv(export.to_frame(many))
    monkeypatch.setattr(export, "_ROWS", 50)
    pieces = list(export.text_pieces(many, "csv"))
    assert len(pieces) > 20
    assert "".join(pieces) == whole


@given(st.lists(st.tuples(st.floats(0, 1), st.sampled_from("abc")), min_size=1, max_size=200), st.integers(6, 60))
def test_a_thinned_figure_has_the_ends_of_every_kind(pairs: list[tuple[float, str]], most: int) -> None:
    values, kinds = [value for value, _ in pairs], [kind for _, kind in pairs]
    order = sorted(set(kinds))
    chosen = thinned(values, kinds, order, most)
    assert len(chosen) == len(set(chosen)) <= max(most, len(values) if len(values) <= most else 0)
    assert [kinds[k] for k in chosen] == sorted(kinds[k] for k in chosen)
    for kind in order:
        own = [values[k] for k in chosen if kinds[k] == kind]
        every = [value for value, other in pairs if other == kind]
        assert own == sorted(own, reverse=True)
        assert (own[0], own[-1]) == (max(every), min(every)) or len(every) == 1
    assert bool(left_out(len(chosen), len(values))) == (len(chosen) < len(values))


def test_figures_of_many_pairs_keep_their_size_and_say_what_is_left_out(large: xr.Dataset) -> None:
    for plot, count, noun in (
        (figures.plot_pairs, 435, "pairs of models"), (figures.plot_families, 105, "pairs of families")
    ):  # fmt: skip
        ax = plot(large)
        caption = " ".join(ax.figure.figure.get_supxlabel().split())
        rows = len(ax.get_yticks())
        assert f"of {count} {noun} are drawn" in caption
        assert rows <= MOST_PAIRS + 3
        assert ax.figure.figure.get_figheight() < 20
    ax = figures.plot_depths(large)
    assert "some of the pairs of models" in " ".join(ax.figure.figure.get_supxlabel().split())


def test_a_heatmap_of_many_models_names_some_and_says_so(many: xr.Dataset) -> None:
    figure = figures.figure(many, ["cka"])
    assert "is named" not in " ".join(figure.get_supxlabel().split())
    assert len(figure.axes[0].get_yticklabels()) == 16
    rng, labels = np.random.default_rng(0), [f"m{m:03d}/l{k}" for m in range(150) for k in range(2)]
    models = [label[:4] for label in labels]
    value = xr.DataArray(
        rng.uniform(size=(300, 300)), dims=("layer_a", "layer_b"), name="cka",
        coords={"layer_a": labels, "layer_b": labels, "model_a": ("layer_a", models), "model_b": ("layer_b", models)},
    )  # fmt: skip
    figure = figures.figure(value)
    names = [tick.get_text() for tick in figure.axes[0].get_yticklabels()]
    every = int(names[1][1:])
    assert every > 1
    assert names == [f"m{m:03d}" for m in range(0, 150, every)]
    assert f"150 models, of which one in {every} is named" in " ".join(figure.get_supxlabel().split())


def test_tables_of_many_pairs_show_both_ends_and_say_so(large: xr.Dataset, study: xr.Dataset) -> None:
    by_title = {table.title: table for table in tables.all_tables(large)}
    (title,) = [title for title in by_title if "of 435 pairs of models" in title]
    kernel = title.split(":")[0]
    values = large.sel(measure=kernel).set_index(pair="pair")["split_half"]
    rows = by_title[title].rows
    assert len(rows) == 2 * tables.SHOWN
    shown = [float(values.sel(pair=row[0])) for row in rows]
    assert max(shown) == float(values.max())
    assert min(shown) == float(values.min())
    assert sum(len(table.rows) for table in by_title.values()) < 150
    assert not any("most and the" in table.title for table in tables.all_tables(study))


def test_the_summary_of_many_families_has_no_more_sentences(large: xr.Dataset, study: xr.Dataset) -> None:
    sentences = words.summary(large)
    assert len(sentences) <= len(words.summary(study)) + 15
    assert sum("relative to the ceiling" in sentence for sentence in sentences) <= 1
    assert any("pairs of families" in sentence for sentence in sentences)


def _mean_of_closest(variable: xr.DataArray) -> NDArray[np.float64]:
    sign = 1 if variable.attrs["sense"] == "similarity" else -1
    levels = chance_of(variable)
    above = sign * (variable.values - (0 if levels is None else levels))
    models = list(dict.fromkeys(variable["model_a"].values.tolist()))
    means = np.full((len(models), len(models)), np.nan)
    for i, a in enumerate(models):
        for j, b in enumerate(models):
            rows, columns = (np.flatnonzero(variable[f"model_{s}"].values == m) for s, m in (("a", a), ("b", b)))
            chosen = [
                variable.values[row, columns[np.nanargmax(above[row, columns])]]
                for row in rows
                if not np.isnan(above[row, columns]).all()
            ]
            if chosen and a != b:
                means[i, j] = np.mean(chosen)
    return means


@pytest.mark.parametrize("name", ["cka", "procrustes", "mutual_knn:k=4"])
def test_the_closest_layers_of_many_models_are_those_of_a_loop(many: xr.Dataset, name: str) -> None:
    variable = many[name]
    expected = _mean_of_closest(variable)
    np.testing.assert_allclose(mean_of_closest(variable)[0], expected, rtol=1e-12)
    table = closest(variable)
    assert "10 farthest of 240 ordered pairs of models" in table.title
    assert len(table.rows) == 20


def test_the_skewness_of_all_layers_is_that_of_every_two() -> None:
    rng = np.random.default_rng(0)
    moments = [CubicMoments(50, *rng.uniform(0.1, 1, 3).tolist()) for _ in range(4)]
    expected = [[skewness(a, b) for b in moments] for a in moments]
    np.testing.assert_allclose(skewnesses(moments), expected, rtol=1e-14)
