"""Draw series: similarity along training steps, widths or any other axis, by layer."""

from collections.abc import Callable, Mapping
from itertools import pairwise
from typing import Any, Literal, Unpack, get_args

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.colors import Colormap
from numpy.typing import NDArray

from repsim.errors import InvalidInputError, UnknownNameError
from repsim.figures.canvas import (
    COLOURS,
    MARKERS,
    finish_layout,
    make_axes,
    namer,
    reserve_above,
    room_of,
    set_title,
    style_axes,
    write_above,
)
from repsim.figures.lettering import escape_text, wrap
from repsim.figures.scales import ImageKeywords, ImageOptions
from repsim.figures.series_axes import (
    FEW_LINES,
    Selection,
    check_series,
    colours_of_lines,
    draw_table,
    name_lines,
    samples,
    select,
    set_axis_scale,
)
from repsim.figures.styles import StyleName, column_width, em, in_style, legend_size, mark, note_size, paper, stroke
from repsim.presentation.series import (
    compared_with,
    drift_of,
    is_logarithmic,
    itself,
    label_of,
    run_name,
    value_texts,
)
from repsim.results.modalities import samples_of
from repsim.results.series_variables import NETWORK, PICTURES
from repsim.study.formatting import number, p_value
from repsim.trends.names import over_in_words

_FEW_POINTS = 30
"""Largest number of points that have markers."""
_SLACK = 0.05
"""Distance beyond 0 and 1 of similarities that are drawn on an axis from 0 to 1."""
Show = Literal["similarity", "calibrated"]


@in_style
def plot_trajectories(
    series: xr.Dataset,
    ax: Axes | None = None,
    *,
    measure: str | None = None,
    comparison: str | None = None,
    run: str | None = None,
    show: Show = "similarity",
    cmap: str | Colormap | None = None,
    title: str | None = None,
    labels: Mapping[str, str] | None = None,
    width: float | None = None,
    style: StyleName | None = None,
) -> Axes:
    """Draw the similarity of every layer along the axis, with 95 % intervals over samples as bands.

    Lines are dark for the first layer and bright for the last. The axis has the scale of the series. If it is
    logarithmic, 0 has its place on a short linear part with a break mark.

    docs/figures.md has an example and its picture.

    Parameters
    ----------
    series : xarray.Dataset
        Series of `repsim.series`.
    ax : Axes, optional
        Axes to draw on; by default those of a new figure, with a footnote.
    measure, comparison, run : str, optional
        Names in the series; by default the first of each.
    show : {"similarity", "calibrated"}
        Similarity with its interval, or calibrated similarity, which is 0 for unrelated layers.
    cmap : str or Colormap, optional
        Colours of the lines, from the first layer to the last.
    title : str, optional
        Title of the axes.
    labels : mapping of str to str, optional
        Names to show for layers, by their names in the series.
    width : float, optional
        Width of a new figure in inches; by default one column.
    style : {"nature", "neurips", "talk"}, optional
        Fonts, sizes and widths (`repsim.figures.style_context`).

    Returns
    -------
    Axes

    Raises
    ------
    UnknownNameError
        The series does not have the measure, the comparison or the run.
    InvalidInputError
        The data set is no series, or has no value to draw.
    """
    at = select(series, measure, comparison, run)
    _check_any(_shown(at, show), f"{at.measure}, {at.comparison}")
    own = ax is None
    ax = make_axes(column_width(width), 0.62 * column_width(width)) if ax is None else ax
    label = at.similarity_label if show == "similarity" else f"{at.similarity_label}, calibrated"
    style_axes(ax, escape_text(series.attrs["axis"]), label)
    bands = _draw_layers(ax, series, at, show, cmap=cmap, labels=labels)
    set_title(ax, title)
    if own:
        finish_layout(ax.figure.figure, [f"{at.footnote} {_bands(series)}" if bands else at.footnote])
    return ax


def _shown(at: Selection, show: Show) -> xr.DataArray:
    """Return the variable that a figure shows; raise `InvalidInputError` for anything that it cannot show."""
    if show not in get_args(Show):
        raise InvalidInputError(f"expected show={' or show='.join(map(repr, get_args(Show)))}, got {show!r}")
    return at.points[show]


def _draw_layers(
    ax: Axes,
    series: xr.Dataset,
    at: Selection,
    show: Show,
    *,
    cmap: str | Colormap | None,
    labels: Mapping[str, str] | None,
) -> bool:
    """Draw a line for every layer along the axis; return whether there are bands."""
    x, layers = at.values, at.points["layer"].values.tolist()
    set_axis_scale(ax, "x", x, series)
    lines, bands = [], False
    for k, colour in enumerate(colours_of_lines(len(layers), cmap)):
        layer = at.points.isel(layer=k)
        lines += ax.plot(
            x, layer[show], color=colour, linewidth=stroke(1.1), gid=f"layer {layers[k]}", **_marks(len(x))
        )
        low, high = layer["similarity_low"].values, layer["similarity_high"].values
        if show == "similarity" and np.isfinite(low).any():
            ax.fill_between(x, low, high, color=colour, alpha=_shade(len(layers)), linewidth=0)
            bands = True
    _limit(ax, at.points[show].values)
    name_lines(ax, lines, layers, _layers_title(series), labels)
    return bands


@in_style
def plot_layers_by_step(
    series: xr.Dataset,
    ax: Axes | None = None,
    *,
    measure: str | None = None,
    comparison: str | None = None,
    run: str | None = None,
    show: Show = "similarity",
    title: str | None = None,
    labels: Mapping[str, str] | None = None,
    width: float | None = None,
    style: StyleName | None = None,
    **image: Unpack[ImageKeywords],
) -> Axes:
    """Draw a heatmap of layers by values of the axis: a column for every point of a run.

    Columns are equally wide, whatever the distance of their values. Colours span the range that the measure declares,
    as in `repsim.heatmap`.

    docs/figures.md has an example and its picture. Parameters, return value and errors are those of
    `plot_trajectories`, and keywords of the image those of `repsim.heatmap`.
    """
    at = select(series, measure, comparison, run)
    table = _shown(at, show).transpose("layer", "point").values
    _check_any(_shown(at, show), f"{at.measure}, {at.comparison}")
    own = ax is None
    ax = (
        make_axes(column_width(width), min(0.62 * column_width(width), em() * max(1.2, 0.14 * len(table))))
        if ax is None
        else ax
    )
    style_axes(ax, escape_text(series.attrs["axis"]), _layers_title(series))
    names = at.points["layer"].values.tolist()
    up = [*map(namer(labels, names, "layer of this series"), names)]
    across = [*map(escape_text, value_texts(at.values.tolist()))]
    draw_table(ax, table, at.measure, across=across, up=up, size=room_of(ax), image=image)
    set_title(ax, title)
    if own:
        shown, reading = "Calibrated similarity. " if show == "calibrated" else "", ImageOptions(**image).reading
        finish_layout(
            ax.figure.figure, [f"{at.footnote} {shown}{reading} Columns are not to scale.".replace("  ", " ")]
        )
    return ax


@in_style
def plot_convergence(
    series: xr.Dataset,
    ax: Axes | None = None,
    *,
    measure: str | None = None,
    title: str | None = None,
    labels: Mapping[str, str] | None = None,
    width: float | None = None,
    style: StyleName | None = None,
) -> Axes:
    """Draw the value of the axis at which every layer has settled, by depth, with a line for every run.

    A layer has settled where its similarity to the last point of its run has gone the share ``settled_at`` of the way
    from its first value to 1, and stays there. A rising line means that lower layers settle first, as in Figure 2 of
    Raghu et al., SVCCA (NeurIPS 2017). Bars are 95 % intervals over samples. Layers that have not settled are left
    out.

    docs/figures.md has an example and its picture. Parameters, return value and errors are those of
    `plot_trajectories`; ``labels`` names runs.
    """
    check_series(series)
    at = select(series, measure, runs=True)
    settled = series.sel(measure=at.measure)
    _check_any(settled["settled"], "no layer has settled")
    own = ax is None
    ax = make_axes(column_width(width), 0.62 * column_width(width)) if ax is None else ax
    depth, axis, runs = series["depth"].values, series.attrs["axis"], series["one_run"].values.tolist()
    shown = _run_namer(series, labels)
    percent = f"{100 * series.attrs['settled_at']:g} %"
    style_axes(ax, "relative depth of the layer", escape_text(f"{axis} at which it has settled ({percent})"))
    for k, run in enumerate(runs):
        one = settled.sel(one_run=run)
        value, low, high = (one[f"settled{end}"].values for end in ("", "_low", "_high"))
        shift = 0.008 * (k - (len(runs) - 1) / 2)  # so that bars of several runs do not hide each other
        colour, marker = _look(k)
        error = np.nan_to_num(np.abs(np.stack([value - low, high - value])))
        ax.errorbar(
            depth + shift, value, error, color=colour, marker=marker, markersize=mark(3.2), linewidth=stroke(1.1),
            elinewidth=stroke(0.8), capsize=1.6, label=shown(run), gid=f"run {run}",
        )  # fmt: skip
    drawn = np.concatenate([settled[f"settled{end}"].values.ravel() for end in ("", "_low", "_high")])
    set_axis_scale(ax, "y", drawn, series)
    ax.set_xlim(-0.04, 1.04)
    if len(runs) > 1:
        _legend(ax)
    set_title(ax, title)
    if own:
        count = int(np.isnan(settled["settled"].values).sum())
        late = f" {count} layer{'s' * (count > 1)} of a run without a value: not drawn." if count else ""
        on = escape_text(f"{label_of(at.measure)}; {samples(series)}.")
        sentence = f"Settled: similarity to the last point stays above {percent} of the way there."
        finish_layout(ax.figure.figure, [f"{on} {sentence} Bars: 95 % intervals over {samples_of(series)}.{late}"])
    return ax


@in_style
def plot_trend(
    series: xr.Dataset,
    ax: Axes | None = None,
    *,
    measure: str | None = None,
    comparison: str | None = None,
    layer: str | None = None,
    title: str | None = None,
    labels: Mapping[str, str] | None = None,
    width: float | None = None,
    style: StyleName | None = None,
) -> Axes:
    """Draw the similarity of networks against the value of the axis, with the trend and its interval.

    A point is a network, with its 95 % interval over samples; colours and markers are runs. The line has the slope of
    the series, on the scale of the axis, through the mean of the points; the band lies between the lines with the ends
    of the interval of the slope, over runs if it is known, otherwise over samples. As in the slope, a point that is
    its own reference does not count, and on a logarithmic axis none at 0.

    docs/figures.md has an example and its picture. Parameters, return value and errors are those of
    `plot_trajectories`; ``layer`` draws one layer instead of the mean over layers, and ``labels`` names
    runs.
    """
    at = select(series, measure, comparison, runs=True)
    trend_of = NETWORK if layer is None else layer
    if trend_of not in series["trend_of"].values:
        raise UnknownNameError("layer of this series", trend_of, series["layer"].values.tolist())
    names = ("network", "network_low", "network_high")
    one = at.points
    if layer is not None:
        one, names = one.sel(layer=layer), ("similarity", "similarity_low", "similarity_high")
    y, low, high = (one[name].values for name in names)
    _check_any(one[names[0]], f"{at.measure}, {at.comparison}")
    own = ax is None
    ax = make_axes(column_width(width), 0.62 * column_width(width)) if ax is None else ax
    of_what = "" if layer is not None else ", mean over layers"
    style_axes(ax, escape_text(series.attrs["axis"]), at.similarity_label + (of_what or escape_text(f", {layer}")))
    set_axis_scale(ax, "x", at.values, series)
    runs = series["one_run"].values.tolist()
    shown = _run_namer(series, labels)
    own_reference = itself(series) & (at.comparison == "reference")
    for k, run in enumerate(runs):
        colour, marker = _look(k)
        error = np.nan_to_num(np.abs(np.stack([y - low, high - y])))
        for open_mark in (False, True):
            mine = (one["run"].values == run) & (own_reference == open_mark)
            ax.errorbar(
                at.values[mine], y[mine], error[:, mine], color=colour, marker=marker, markersize=mark(3.2),
                linestyle="none", elinewidth=stroke(0.8),
                label=None if open_mark else shown(run),
                markerfacecolor=paper() if open_mark else colour, markeredgewidth=stroke(0.8),
                gid=f"{'reference' if open_mark else 'run'} {run}",
            )  # fmt: skip
    trend = at.points.sel(trend_of=trend_of)
    reading = _draw_trend(ax, series, at, trend, np.where(own_reference, np.nan, y))
    _limit_to(ax, np.concatenate([low, y, high]))
    reading += " Open: compared with itself, no part of the trend." if own_reference.any() else ""
    write_above(ax, [wrap(_trend_in_words(series, trend), room_of(ax)[0], note_size())])
    set_title(ax, title)
    if len(runs) > 1:
        _legend(ax, loc="upper right" if float(trend["trend_slope"]) < 0 else "lower right")
    if own:
        finish_layout(ax.figure.figure, [f"{at.footnote} Bars: 95 % intervals over {samples_of(series)}.{reading}"])
    return ax


def _draw_trend(ax: Axes, series: xr.Dataset, at: Selection, trend: xr.Dataset, y: NDArray[np.float64]) -> str:
    """Draw the line of the trend and its band; return what the interval is over, empty if there is no line."""
    log, slope = is_logarithmic(series), float(trend["trend_slope"])
    use = np.isfinite(y) & ((at.values > 0) | (not log))
    if not np.isfinite(slope) or use.sum() < 2:
        return ""
    x = np.log10(at.values[use]) if log else at.values[use]
    along, middle = np.linspace(x.min(), x.max(), 50), float(x.mean())
    ends, level = 10**along if log else along, float(y[use].mean())

    def line(steepness: float) -> NDArray[np.float64]:
        return level + steepness * (along - middle)

    ax.plot(ends, line(slope), color="0.25", linewidth=stroke(1.1), zorder=1, gid="trend")
    for over in ("runs", PICTURES):
        low, high = (float(trend[f"trend_slope_{end}"].sel(over=over)) for end in ("low", "high"))
        if np.isfinite(low) and np.isfinite(high):
            edges = np.sort([line(low), line(high)], axis=0)
            ax.fill_between(ends, *edges, color="0.25", alpha=0.15, linewidth=0, zorder=0)
            return f" Line: the trend; band: the 95 % interval of its slope over {over_in_words(series, over)}."
    return " Line: the trend."


def _bands(series: xr.Dataset) -> str:
    return f"Bands: 95 % intervals over {samples_of(series)}."


def _trend_in_words(series: xr.Dataset, trend: xr.Dataset) -> list[str]:
    """Return lines: tau, its p-value and the slope; the intervals of the slope."""
    tau, p, slope = (float(trend[f"trend_{name}"]) for name in ("tau", "p", "slope"))
    if not np.isfinite(tau):
        return ["no trend: too few points"]
    line = f"Kendall \N{GREEK SMALL LETTER TAU} {tau:z.2f}" + (f" ({p_value(p)})" if np.isfinite(p) else "")
    if not np.isfinite(slope):
        return [line]
    ends = []
    for over in trend["over"].values.tolist():
        low, high = (float(trend[f"trend_slope_{end}"].sel(over=over)) for end in ("low", "high"))
        if np.isfinite(low):
            ends.append(f"{number(low)} to {number(high)} ({over_in_words(series, over)})")
    unit = "a factor of 10" if is_logarithmic(series) else f"one {series.attrs['axis']}"
    return [escape_text(f"{line}; {number(slope)} for {unit}"), *([f"95 %: {', '.join(ends)}"] if ends else [])]


@in_style
def plot_runs(
    series: xr.Dataset,
    ax: Axes | None = None,
    *,
    measure: str | None = None,
    cmap: str | Colormap | None = None,
    title: str | None = None,
    labels: Mapping[str, str] | None = None,
    width: float | None = None,
    style: StyleName | None = None,
) -> Axes:
    """Draw the similarity of different runs at equal values of the axis, by layer.

    With two runs, bands are 95 % intervals over samples. With more, lines are means over the runs, each compared with
    the others, and bands span the runs.

    docs/figures.md has an example and its picture. Parameters, return value and errors are those of
    `plot_trajectories`.
    """
    check_series(series)
    if "other runs" not in series["comparison"].values:
        raise InvalidInputError("this series compares no runs with each other: it has one run, or runs at other values")
    at = select(series, measure, "other runs", runs=True)
    table = at.points["similarity"]
    _check_any(table, f"{at.measure}, other runs")
    own = ax is None
    ax = make_axes(column_width(width), 0.62 * column_width(width)) if ax is None else ax
    style_axes(ax, escape_text(series.attrs["axis"]), at.similarity_label)
    has_value = np.isfinite(table.values).any(axis=-1)
    x = np.unique(at.values[has_value])
    set_axis_scale(ax, "x", x, series)
    two, layers, lines = series.sizes["one_run"] == 2, series["layer"].values.tolist(), []

    def of_runs(name: str, layer: int) -> list[NDArray[np.float64]]:
        """Return the values of all runs at every value of the axis."""
        values = at.points[name].values[:, layer]
        return [values[has_value & (at.values == value)] for value in x]

    for k, colour in enumerate(colours_of_lines(len(layers), cmap)):
        mean = np.array([values.mean() for values in of_runs("similarity", k)])
        ends = ("similarity_low", "similarity_high") if two else ("similarity", "similarity")  # the pair of two runs
        low = np.array([values.min() for values in of_runs(ends[0], k)])
        high = np.array([values.max() for values in of_runs(ends[1], k)])
        lines += ax.plot(x, mean, color=colour, linewidth=stroke(1.1), gid=f"layer {layers[k]}", **_marks(len(x)))
        if np.isfinite(low).any():
            ax.fill_between(x, low, high, color=colour, alpha=_shade(len(layers)), linewidth=0)
    _limit(ax, table.values)
    name_lines(ax, lines, layers, _layers_title(series), labels)
    set_title(ax, title)
    if own:
        finish_layout(
            ax.figure.figure,
            [f"{at.footnote} {_bands(series) if two else 'Lines: means over runs; bands: their range.'}"],
        )
    return ax


@in_style
def plot_every_point(
    series: xr.Dataset,
    ax: Axes | None = None,
    *,
    measure: str | None = None,
    layer: str | None = None,
    run: str | None = None,
    title: str | None = None,
    labels: Mapping[str, str] | None = None,
    width: float | None = None,
    style: StyleName | None = None,
    **image: Unpack[ImageKeywords],
) -> Axes:
    """Draw the similarity of every two points of a series in one layer, by default in the mean over layers.

    White lines separate runs. A series has these values if it was made with all pairs of points.

    docs/figures.md has an example and its picture. Parameters, return value and errors are those of
    `plot_trajectories`, keywords of the image those of `repsim.heatmap`; ``labels`` names runs.
    """
    check_series(series)
    if "every_point" not in series:
        raise InvalidInputError("this series does not have all pairs of points: it was made without them")
    at = select(series, measure, None, run, runs=True)
    table = series["every_point"].sel(measure=at.measure)
    if layer is not None and layer not in series["layer"].values:
        raise UnknownNameError("layer of this series", layer, series["layer"].values.tolist())
    one = table.mean("layer") if layer is None else table.sel(layer=layer)
    names = at.points["point"].values
    one = one.sel(point=names, other_point=names)
    _check_any(one, at.measure)
    own = ax is None
    ax = make_axes(column_width(width), 0.78 * column_width(width)) if ax is None else ax
    axis = escape_text(series.attrs["axis"])
    style_axes(ax, axis, axis)
    texts = [*map(escape_text, value_texts(at.values.tolist()))]
    draw_table(ax, one.values, at.measure, across=texts, up=texts, size=room_of(ax), image=image)
    shown = _run_namer(series, labels)
    runs = at.points["run"].values
    starts = [0, *(np.flatnonzero(runs[1:] != runs[:-1]) + 1).tolist(), len(runs)]
    for first, end in pairwise(starts if len(starts) > 2 else []):
        middle, name = (first + end - 1) / 2, shown(runs[first])
        ax.text(middle, len(runs) - 0.3, name, fontsize=note_size(), ha="center")
        if first:
            ax.axhline(first - 0.5, color="white", linewidth=0.9)
            ax.axvline(first - 0.5, color="white", linewidth=0.9)
    if len(starts) > 2:
        reserve_above(ax, 1.5 * note_size() / 72)
    set_title(ax, title)
    if own:
        count = one.sizes["point"]
        several = len(set(runs.tolist()))
        order = f" of {several} runs, one after the other" if several > 1 else ""
        which = "Mean over layers." if layer is None else escape_text(f"Layer {layer}.")
        on = escape_text(f"{count} points{order}; {samples(series)}.")
        finish_layout(ax.figure.figure, [f"{on} {which} {ImageOptions(**image).reading}".strip()])
    return ax


@in_style
def plot_drift(
    series: xr.Dataset,
    ax: Axes | None = None,
    *,
    measure: str | None = None,
    comparison: str | None = None,
    run: str | None = None,
    cmap: str | Colormap | None = None,
    title: str | None = None,
    labels: Mapping[str, str] | None = None,
    width: float | None = None,
    style: StyleName | None = None,
) -> Axes:
    """Draw the drift, 1 - similarity to the reference or the distance from it, by depth, with a line for every point.

    For a fine-tuned network and its base, or clients of federated learning and their common model, it shows at which
    depth networks have moved. Bands are 95 % intervals over samples.

    docs/figures.md has an example and its picture. Parameters, return value and errors are those of
    `plot_trajectories`; ``cmap`` and ``labels`` are for points.
    """
    at = select(series, measure, comparison, run)
    _check_any(at.points["similarity"], f"{at.measure}, {at.comparison}")
    own = ax is None
    ax = make_axes(column_width(width), 0.62 * column_width(width)) if ax is None else ax
    to = compared_with(series, at.comparison)
    most, label = drift_of(at.measure)
    style_axes(ax, "relative depth of the layer", escape_text(f"drift: {label}"))
    depth, count = at.points["depth"].values, at.points.sizes["point"]
    lines, bands = [], False
    for k, colour in enumerate(colours_of_lines(count, cmap)):
        point = at.points.isel(point=k)
        drift, low, high = (most - point[f"similarity{end}"].values for end in ("", "_high", "_low"))
        lines += ax.plot(depth, drift, color=colour, linewidth=stroke(1.1), gid=f"point {k}", **_marks(len(depth)))
        if np.isfinite(low).any():
            ax.fill_between(depth, low, high, color=colour, alpha=_shade(count), linewidth=0)
            bands = True
    ax.set_xlim(-0.03, 1.03)
    ax.axhline(0, color="0.6", linewidth=0.6, zorder=0)
    what = "value of this series"
    name_lines(ax, lines, value_texts(at.values.tolist()), escape_text(series.attrs["axis"]), labels, what=what)
    set_title(ax, title)
    if own:
        finish_layout(
            ax.figure.figure, [f"{at.footnote} 0: equal to {escape_text(to)}.{' ' + _bands(series) if bands else ''}"]
        )
    return ax


def _check_any(values: xr.DataArray, what: str) -> None:
    if not np.isfinite(values.values).any():
        raise InvalidInputError(f"there is nothing to draw: no value of {what}")


def _look(k: int) -> tuple[str, str]:
    return COLOURS[k % len(COLOURS)], MARKERS[k % len(MARKERS)]


def _shade(count: int) -> float:
    """Return the opacity of the bands of so many lines: many bands would cover each other."""
    return 0.15 if count <= FEW_LINES else 0.06


def _marks(count: int) -> dict[str, Any]:
    return {"marker": "o", "markersize": mark(2.4)} if count <= _FEW_POINTS else {}


def _limit(ax: Axes, values: NDArray[np.float64]) -> None:
    """Let the axis of similarity span 0 to 1 if all values do, but for rounding and debiasing."""
    low, high = float(np.nanmin(values)), float(np.nanmax(values))
    if low >= -_SLACK and high <= 1 + _SLACK:
        ax.set_ylim(min(0.0, low) - 0.02, 1.02)


def _limit_to(ax: Axes, values: NDArray[np.float64]) -> None:
    """Let the vertical axis show these values and all lines; a wide band may be cut."""
    lines = [np.asarray(line.get_ydata(), np.float64) for line in ax.lines if line.get_gid() == "trend"]
    finite = np.concatenate([values[np.isfinite(values)], *lines])
    low, high = float(finite.min()), float(finite.max())
    margin = 0.06 * (high - low or 1)
    ax.set_ylim(low - margin, high + margin)


def _layers_title(series: xr.Dataset) -> str:
    return "layer" if series.attrs["matched_by"] == "names" else "relative depth"


def _run_namer(series: xr.Dataset, labels: Mapping[str, str] | None) -> Callable[[object], str]:
    """Return a function from a run to its name: the caller's, or that of the series."""
    own, shown = labels or {}, namer(labels, series["one_run"].values, "run of this series")
    return lambda run: shown(run) if run in own else escape_text(run_name(series, str(run)))


def _legend(ax: Axes, loc: Literal["best", "lower right", "upper right"] = "best") -> None:
    ax.legend(fontsize=legend_size(), frameon=False, loc=loc, handlelength=1.6, borderpad=0.2, labelspacing=0.35)
