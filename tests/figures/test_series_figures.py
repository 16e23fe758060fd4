"""Tests of figures of series: lines, bands, cells and trends are those of the file, on an axis that shows 0."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
from click.testing import CliRunner
from matplotlib.axes import Axes
from matplotlib.collections import PolyCollection
from matplotlib.container import ErrorbarContainer
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from repsim import figures
from repsim.cli import main
from repsim.errors import InvalidInputError, UnknownNameError
from repsim.presentation.series import itself
from repsim.results.files import save_result
from tests.series_example import LAYERS, STEPS, training, widths

PLOTS = (
    figures.plot_trajectories, figures.plot_layers_by_step, figures.plot_convergence, figures.plot_trend,
    figures.plot_runs, figures.plot_every_point, figures.plot_drift,
)  # fmt: skip


@pytest.fixture(scope="module")
def series() -> xr.Dataset:
    return training(every_point=True)


def lines(ax: Axes, gid: str) -> list[Line2D]:
    return [line for line in ax.lines if str(line.get_gid()).startswith(gid)]


def text_of(ax: Axes) -> str:
    return str(ax.figure.figure.get_supxlabel()).replace("\n", " ")


def bars(ax: Axes) -> dict[str, Any]:
    """Return the points with error bars of a figure, by the id of their marks."""
    return {str(item.lines[0].get_gid()): item for item in ax.containers if isinstance(item, ErrorbarContainer)}


def written_above(ax: Axes) -> str:
    return " ".join(text.get_text() for text in ax.texts if text.get_gid() == "statistics")


def image(ax: Axes) -> Any:
    """Return the values of the image of a figure, NaN where they are missing."""
    return np.ma.filled(np.ma.asarray(ax.images[0].get_array()), np.nan)


def heights(line: Line2D) -> Any:
    return np.asarray(line.get_ydata(), float)


def band(ax: Axes, k: int) -> Any:
    polygons = [item for item in ax.collections if isinstance(item, PolyCollection)]
    return polygons[k].get_paths()[0].vertices


def test_trajectories_are_the_similarities_of_one_run_with_their_intervals(series: xr.Dataset) -> None:
    ax = figures.plot_trajectories(series, measure="cka given input", run="b")
    at = series.sel(measure="cka given input", comparison="reference").isel(point=series["run"].values == "b")
    for k, line in enumerate(lines(ax, "layer ")):
        assert line.get_gid() == f"layer {LAYERS[k]}"
        np.testing.assert_array_equal(line.get_xdata(), STEPS)
        np.testing.assert_array_equal(line.get_ydata(), at["similarity"].values[:, k])
        ends = band(ax, k)
        for step, low, high in zip(STEPS, at["similarity_low"][:, k], at["similarity_high"][:, k], strict=True):
            assert {float(low), float(high)} <= set(ends[ends[:, 0] == step, 1].tolist())
    assert k + 1 == len(LAYERS)
    assert "run b" in text_of(ax)
    assert "the first of" not in text_of(ax)
    assert "(the first of 2)" in text_of(figures.plot_trajectories(series))


def test_a_logarithmic_axis_shows_0_at_its_place_and_marks_the_break(series: xr.Dataset) -> None:
    ax = figures.plot_trajectories(series)
    to = ax.transData.transform
    places = [to((value, 0))[0] for value in (0, 1, 10, 100, 1000)]
    gaps = np.diff(places)
    np.testing.assert_allclose(gaps[1:], gaps[1], rtol=1e-6)  # decades are equally wide
    assert 0.2 * gaps[1] < gaps[0] < gaps[1]
    assert len(lines(ax, "break")) == 1
    assert [tick.get_text() for tick in ax.get_xticklabels()] == ["0", "1", "10", "100", "1000"]
    assert not lines(figures.plot_trajectories(widths()), "break")
    linear = figures.plot_trajectories(series.assign_attrs(scale="linear"))
    assert linear.get_xscale() == "linear"
    assert not lines(linear, "break")


def test_the_ticks_of_widths_are_the_widths() -> None:
    ax = figures.plot_trajectories(widths())
    assert [tick.get_text() for tick in ax.get_xticklabels()] == ["16", "32", "64", "128", "256"]


def test_layers_by_step_is_the_table_with_missing_values_hatched(series: xr.Dataset) -> None:
    at = series.sel(measure="cka", comparison="previous").isel(point=slice(0, 8))
    ax = figures.plot_layers_by_step(series, comparison="previous")
    np.testing.assert_array_equal(image(ax), at["similarity"].values.T)
    assert ax.patch.get_hatch()
    assert ax.images[0].get_clim() == (0, 1)  # the declared range without negative values, which do not occur
    shown = image(figures.plot_layers_by_step(series, show="calibrated"))
    np.testing.assert_array_equal(shown, series["calibrated"].sel(measure="cka", comparison="reference")[:8].T)


def test_convergence_has_a_line_for_every_run_and_leaves_out_what_has_not_settled(series: xr.Dataset) -> None:
    changed = series.copy(deep=True)
    changed["settled"][0, 1, 2] = np.nan
    ax = figures.plot_convergence(changed)
    for run, one in zip("ab", changed["settled"][0].values, strict=True):
        container = bars(ax)[f"run {run}"]
        np.testing.assert_array_equal(container.lines[0].get_ydata(), one)
        drawn = np.array([segment[:, 1] for segment in container.lines[2][0].get_segments() if len(segment)])
        ends = [series[f"settled_{end}"].sel(one_run=run)[0].values[np.isfinite(one)] for end in ("low", "high")]
        np.testing.assert_allclose(drawn, np.transpose(ends))
    assert ax.get_yscale() == "log"
    assert "1 layer of a run without a value" in text_of(ax)


@pytest.mark.parametrize("log", [True, False])
def test_the_line_of_the_trend_has_its_slope_and_goes_through_the_mean_of_the_points(
    series: xr.Dataset, *, log: bool
) -> None:
    series = series.assign_attrs(scale="log" if log else "linear")
    ax = figures.plot_trend(series, layer="fc")
    trend = series.sel(measure="cka", comparison="reference", trend_of="fc")
    (line,) = lines(ax, "trend")
    x, y = np.asarray(line.get_xdata(), float), np.asarray(line.get_ydata(), float)
    along = np.log10(x) if log else x
    np.testing.assert_allclose(np.diff(y) / np.diff(along), float(trend["trend_slope"]))
    points, values = trend["similarity"].sel(layer="fc").values, series["value"].values
    use = ~itself(series) & ((values > 0) | (not log))
    mean_x = (np.log10(values[use]) if log else values[use]).mean()
    assert np.interp(mean_x, along, y) == pytest.approx(points[use].mean())
    low, high = (float(trend[f"trend_slope_{end}"].sel(over="runs")) for end in ("low", "high"))
    ends = band(ax, 0)
    at_end = ends[ends[:, 0] == x[-1], 1]
    expected = [points[use].mean() + slope * (along[-1] - mean_x) for slope in (low, high)]
    np.testing.assert_allclose([at_end.min(), at_end.max()], expected)
    assert "over runs" in text_of(ax)
    assert ("for a factor of 10" in written_above(ax)) == log


def test_points_that_are_their_own_reference_are_open(series: xr.Dataset) -> None:
    ax = figures.plot_trend(series)
    marks = {name: item.lines[0] for name, item in bars(ax).items()}
    assert marks["reference a"].get_xdata().tolist() == [5000]
    assert marks["reference a"].get_markerfacecolor() == "white"
    assert marks["run a"].get_xdata().tolist() == list(STEPS[:-1])
    assert [name for name in marks if name.startswith("reference")] == ["reference a", "reference b"]
    assert itself(series.assign_attrs(reference="first")).nonzero()[0].tolist() == [0, 8]
    named = itself(series.assign_attrs(reference=series["point"].values[3]))
    assert named.nonzero()[0].tolist() == [3]


def test_runs_are_compared_at_equal_values(series: xr.Dataset) -> None:
    at = series["similarity"].sel(measure="cka", comparison="other runs").values
    ax = figures.plot_runs(series)
    for k, line in enumerate(lines(ax, "layer ")):
        np.testing.assert_allclose(heights(line), (at[:8, k] + at[8:, k]) / 2)
    three = training(("a", "b", "c"))
    three["similarity"][0, 2, 16:] -= 0.1  # the third run is less similar to the others
    ax = figures.plot_runs(three)
    at = three["similarity"].sel(measure="cka", comparison="other runs").values.reshape(3, 8, -1)
    np.testing.assert_allclose(heights(lines(ax, "layer ")[2]), at[..., 2].mean(0))
    ends = band(ax, 2)
    np.testing.assert_allclose([ends[:, 1].min(), ends[:, 1].max()], [at[..., 2].min(), at[..., 2].max()])
    assert "bands: their range" in text_of(ax)


@pytest.mark.slow
def test_every_point_shows_one_layer_or_the_mean(series: xr.Dataset) -> None:
    table = series["every_point"].sel(measure="cka")
    np.testing.assert_allclose(image(figures.plot_every_point(series)), table.mean("layer"))
    one = figures.plot_every_point(series, layer="fc", run="b")
    np.testing.assert_array_equal(image(one), table.sel(layer="fc")[8:, 8:])
    assert "Layer fc." in text_of(one)


def test_drift_is_1_minus_the_similarity(series: xr.Dataset) -> None:
    at = series.sel(measure="cka", comparison="reference")
    ax = figures.plot_drift(series)
    for k, line in enumerate(lines(ax, "point ")):
        np.testing.assert_array_equal(line.get_xdata(), series["depth"])
        np.testing.assert_allclose(heights(line), 1 - at["similarity"].values[k])
        np.testing.assert_allclose(band(ax, k)[:, 1].max(), 1 - at["similarity_low"].values[k].min())


def test_the_drift_of_a_distance_is_the_distance(series: xr.Dataset) -> None:
    """A series holds the negative of a distance."""
    distances = series.sel(measure=["cka"]).assign_coords(measure=["procrustes"])
    distances["similarity"] = distances["similarity"] - 1
    drawn = figures.plot_drift(distances)
    np.testing.assert_allclose(heights(lines(drawn, "point ")[0]), -distances["similarity"].values[0, 0, 0])
    assert drawn.get_ylabel().startswith("drift: ")
    assert "\N{MINUS SIGN}" not in drawn.get_ylabel()
    assert "(its negative)" in figures.plot_trajectories(distances).get_ylabel().replace("\n", " ")


def test_many_layers_have_a_colour_bar_instead_of_a_legend() -> None:
    few = widths()
    many = few.isel(layer=np.tile(np.arange(5), 5)).assign_coords(
        layer=[f"{k / 24:.2f}" for k in range(25)], depth=("layer", np.arange(25) / 24)
    )
    assert figures.plot_trajectories(few).get_legend() is not None
    ax = figures.plot_trajectories(many)
    assert ax.get_legend() is None
    assert [child.get_ylabel() for child in ax.child_axes] == ["relative depth"]


@pytest.mark.parametrize("plot", PLOTS, ids=lambda plot: plot.__name__)
def test_every_figure_takes_axes_and_refuses_unknown_names_and_other_data(plot: Any, series: xr.Dataset) -> None:
    mine = Figure(figsize=(4, 3), layout="constrained").subplots()
    assert plot(series, mine) is mine
    assert str(mine.figure.figure.get_supxlabel()) == ""  # a footnote only on a figure of its own
    assert mine.get_xlabel()
    assert mine.get_ylabel()
    with pytest.raises(UnknownNameError, match="measure of this series"):
        plot(series, measure="cca")
    with pytest.raises(InvalidInputError, match=r"expected a series of repsim\.series"):
        plot(series.drop_attrs())


@pytest.mark.parametrize("plot", PLOTS, ids=lambda plot: plot.__name__)
def test_a_figure_without_a_value_is_refused(plot: Any, series: xr.Dataset) -> None:
    empty = series.map(lambda values: values * np.nan, keep_attrs=True)
    with pytest.raises(InvalidInputError, match="there is nothing to draw"):
        plot(empty)


def test_names_that_look_like_formulas_are_shown_as_they_are(series: xr.Dataset) -> None:
    strange = series.assign_coords(layer=["$x$", *LAYERS[1:]]).assign_attrs(axis="$step_1$")
    ax = figures.plot_trajectories(strange)
    assert ax.get_xlabel() == r"\$step_1\$"
    ax.figure.figure.canvas.draw()


@pytest.mark.slow
def test_the_command_draws_all_figures_and_reports_what_it_cannot_draw(series: xr.Dataset, tmp_path: Path) -> None:
    save_result(series, tmp_path / "training.nc")
    save_result(widths(), tmp_path / "widths.nc")
    done = CliRunner().invoke(main, ["figures", str(tmp_path / "training.nc"), "-o", str(tmp_path / "a")])
    assert done.exit_code == 0
    names = ["trajectories", "layers", "convergence", "trend", "runs", "every_point", "drift"]
    assert [Path(line.split("  ")[0]).stem for line in done.stdout.splitlines()] == names
    assert sorted(path.stem for path in (tmp_path / "a").iterdir()) == sorted(names)
    done = CliRunner().invoke(main, ["figures", str(tmp_path / "widths.nc"), "-o", str(tmp_path / "b")])
    assert "no runs: this series compares no runs with each other" in done.stdout
    assert "no every_point: this series does not have all pairs of points" in done.stdout
    refused = CliRunner().invoke(main, ["heatmap", str(tmp_path / "widths.nc"), "-o", str(tmp_path / "x.png")])
    assert refused.exit_code == 2
    assert "`repsim figures` draws its figures" in refused.stderr


@pytest.mark.parametrize("sign", [1, -1])
def test_the_legend_of_a_trend_stands_where_the_trend_is_not(series: xr.Dataset, sign: int) -> None:
    series["trend_slope"] = sign * abs(series["trend_slope"])
    ax = figures.plot_trend(series)
    legend = ax.get_legend()
    assert legend is not None
    box = legend.get_window_extent().transformed(ax.transAxes.inverted())
    assert (box.y0 + box.y1 < 1) == (sign > 0)
