"""Draw several heatmaps with one colour scale, so that equal colours are equal values in all panels."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Unpack

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage

from repsim.errors import InvalidInputError
from repsim.figures.canvas import FigureLayout, add_caption, fit_to_width, make_figure, resolve_measure, set_title
from repsim.figures.heatmaps import (
    arranged,
    check_dims,
    check_intervals,
    draw,
    explain_overlays,
    label_of,
    select_variables,
    unique_values,
)
from repsim.figures.lettering import set_fallback_fonts, wrap
from repsim.figures.scales import Extend, ImageKeywords, ImageOptions, IntervalStyle, style_colour_bar
from repsim.figures.selection import iterate_pairs, pick
from repsim.figures.styles import (
    StyleName,
    column_width,
    em,
    in_style,
    is_styled,
    label_size,
    note_size,
    page_width,
    title_size,
)
from repsim.presentation.scales import declared, scale_of
from repsim.presentation.stages import boundaries
from repsim.runtime.deprecation import rename_keyword

_BAR = 0.75  # inches: the colour bar with its numbers and its label
_CELL = 0.115  # inches: the name of a layer fits beside a cell of this height
_MAX_NAME = 1.0  # inches: a longer name of a layer is shortened
_MIN_PANEL = 1.45  # inches: least width of a panel with its names


@rename_keyword("found", "data", gone_in="2.0.0")
@in_style
def plot_grid(
    data: xr.Dataset | Sequence[xr.Dataset] | Sequence[xr.DataArray],
    measures: Sequence[str] | None = None,
    *,
    pairs: Sequence[str] | None = None,
    path: bool | None = None,
    marks: bool | None = None,
    title: str | None = None,
    labels: Mapping[str, str] | None = None,
    order: Sequence[str] | None = None,
    interval: IntervalStyle | None = None,
    width: float | None = None,
    style: StyleName | None = None,
    **image: Unpack[ImageKeywords],
) -> Figure:
    """Draw several pairs of models or measures as heatmaps with one scale and one colour bar.

    docs/figures.md has an example and its picture.

    Parameters
    ----------
    data : xarray.Dataset or sequence
        Study of `repsim.universality`, result of `repsim.compare`, several results, or arrays as returned by `pick`.
    measures : sequence of str, optional
        Measures to draw; by default all of a result, and the strictest kernel of a study.
    pairs : sequence of str, optional
        Pairs of models of a study, ``a x b``; by default all.
    path, marks, labels, order, interval, **image
        As in `heatmap`. Panels without intervals are drawn without. All panels share the norm of the colours.
    title : str, optional
        Title of the figure.
    width : float, optional
        Width of the figure in inches; by default one page, or less if a few small panels do not fill it. With a style
        it is one page, of one panel a column.
    style : {"nature", "neurips", "talk"}, optional
        Fonts, sizes and widths (`repsim.figures.style_context`).

    Returns
    -------
    Figure

    Raises
    ------
    InvalidInputError
        If there is nothing to draw, or if measures cannot share a scale because their sense or range differs.
    UnknownNameError
        If the data do not have a measure or a pair.
    """
    panels = arranged(list(_panels(data, measures, pairs)), order, labels)
    if not panels:
        raise InvalidInputError("there is nothing to draw: expected at least one pair of models and one measure")
    _check_one_kind(panels)
    check_intervals(panels, interval)
    options = ImageOptions(**image, interval=interval)
    values = np.concatenate([np.asarray(panel.values, np.float64).ravel() for panel in panels])
    scale = scale_of(values, *declared(panels[0].attrs))
    shared = replace(options, vmin=None, vmax=None, norm=options.colours(scale)[0], cbar=True)
    names = list(dict.fromkeys(map(label_of, panels)))
    page = column_width(width) if len(panels) == 1 and is_styled() else page_width(width)
    places = _triangle_places(panels) or _row_places(panels, len(names), page)
    down, across = (max(place[k] for place in places) + 1 for k in (0, 1))
    if width is None and not is_styled():
        page = min(page, 2 * _BAR + across * max(2.3, _CELL * max(max(panel.shape) for panel in panels)))
    figure = make_figure(page, page * down / across)
    grid = figure.subplots(down, across, squeeze=False)
    at = dict(zip(places, panels, strict=True))
    side = (page - _BAR * em() - 0.7 * em()) / across - 0.08
    images = []
    for place, ax in np.ndenumerate(grid):
        if place not in at:
            ax.remove()
            continue
        image_of = draw(
            at[place], ax, side, side, shared, scale=scale, size=label_size(), names=_MAX_NAME, path=path, marks=marks
        )
        images.append(image_of)
        if len(names) > 1:
            ax.set_title(wrap([label_of(at[place])], side, label_size()), fontsize=label_size(), pad=3)
        _hide_repeated_names(at, place, ax)
    add_caption(figure, _caption(panels, options, path=path, marks=marks))
    if title is not None and len(panels) == 1:
        set_title(grid[places[0]], title)
    elif title is not None:
        figure.suptitle(title, fontsize=title_size())
    label = names[0] if len(names) == 1 else "one scale for all panels"
    ends = options.ends(scale, values)
    _finish(
        figure, [grid[place] for place in places], down, images[0] if options.cbar else None, label=label, ends=ends
    )
    return figure


def _check_one_kind(panels: Sequence[xr.DataArray]) -> None:
    """Check that all measures have one sense and one range, so that they can share a scale."""
    kinds = {_sense_and_range(panel): label_of(panel) for panel in panels}
    if len(kinds) > 1:
        raise InvalidInputError(
            f"{' and '.join(kinds.values())} differ in sense or range and cannot share one scale; draw them "
            "separately, or select one"
        )


def _finish(
    figure: Figure, drawn: Sequence[Axes], down: int, image: AxesImage | None, *, label: str, ends: Extend
) -> None:
    """Add the colour bar of an image, and a layout with square panels."""
    layout = FigureLayout()
    if image is None:
        set_fallback_fonts(figure)
        fit_to_width(figure, layout, 1.0, math.inf)
    else:
        bar = figure.colorbar(image, ax=drawn, extend=ends, aspect=30, pad=0.02, fraction=0.05)
        style_colour_bar(bar, note_size())
        bar.set_label(label, fontsize=label_size())
        set_fallback_fonts(figure)
        fit_to_width(figure, layout, 1.0, math.inf)
        side = drawn[0].get_position(original=True).width * figure.get_figwidth()
        bar.set_label(wrap([label], max(1.05 * down * side, 0.8), label_size()))
    layout.attach(figure)


def _triangle_places(panels: Sequence[xr.DataArray]) -> list[tuple[int, int]]:
    """Return the places (row, column) of panels in a triangle of all pairs of models.

    The list is empty unless every model has a row and a column and every pair of models has a panel.
    """
    pairs = [(unique_values(panel, "model_a"), unique_values(panel, "model_b")) for panel in panels]
    columns, rows = (list(dict.fromkeys(pair[k][0] for pair in pairs if pair[k])) for k in (1, 0))
    size = len(columns)
    wanted = {(i, j) for i in range(size) for j in range(i + 1)}
    if size < 2 or len(rows) != size or len(panels) != len(wanted):
        return []
    places = [(rows.index(a[0]), columns.index(b[0])) for a, b in pairs]
    return places if set(places) == wanted else []


def _row_places(panels: Sequence[xr.DataArray], kinds: int, width: float) -> list[tuple[int, int]]:
    """Return the places (row, column) of panels in rows; k measures give k rows if the panels fit."""
    fits = max(1, int((width - _BAR) // _MIN_PANEL))
    across = len(panels) // kinds if kinds > 1 and len(panels) % kinds == 0 else 0
    if not 0 < across <= fits or kinds == 1:
        across = min(len(panels), fits)
        across = math.ceil(len(panels) / math.ceil(len(panels) / across))
    return [(k // across, k % across) for k in range(len(panels))]


def _hide_repeated_names(at: Mapping[tuple[int, int], xr.DataArray], place: tuple[int, int], ax: Axes) -> None:
    """Hide the names of layers if the panel to the left, or below, shows the same names."""
    row, column = place
    for axis, side, beside in ((ax.yaxis, "a", (row, column - 1)), (ax.xaxis, "b", (row + 1, column))):
        if beside in at and _names(at[place], side) == _names(at[beside], side):
            axis.set_tick_params(labelleft=False, labelbottom=False)
            axis.set_label_text("")


def _names(panel: xr.DataArray, side: str) -> tuple[list[str], list[str]]:
    return panel[f"layer_{side}"].values.tolist(), unique_values(panel, f"model_{side}")


def _panels(
    data: xr.Dataset | Sequence[xr.Dataset] | Sequence[xr.DataArray],
    measures: Sequence[str] | None,
    pairs: Sequence[str] | None,
) -> Iterator[xr.DataArray]:
    if isinstance(data, xr.Dataset) and data.attrs.get("format") == "repsim-study":
        for measure in [resolve_measure(data, None)] if measures is None else measures:
            yield from (
                iterate_pairs(data, measure) if pairs is None else (pick(data, pair, measure) for pair in pairs)
            )
        return
    if pairs is not None:
        raise InvalidInputError("only a study has pairs to select; omit pairs for results")
    for result in [data] if isinstance(data, xr.Dataset) else data:
        if isinstance(result, xr.DataArray):
            yield check_dims(result)
        else:
            yield from (check_dims(result[name]) for name in select_variables(result, measures))


def _sense_and_range(panel: xr.DataArray) -> tuple[object, ...]:
    return declared(panel.attrs)


def _caption(
    panels: Sequence[xr.DataArray], options: ImageOptions, *, path: bool | None, marks: bool | None
) -> list[str]:
    def all_of(*coords: str) -> str:
        return ", ".join(
            dict.fromkeys(name for panel in panels for coord in coords for name in unique_values(panel, coord))
        )

    counts = f", {n} samples" if (n := all_of("n_samples")) else ""
    readout = f", readout {names}" if (names := all_of("readout_a", "readout_b")) else ""
    sentences = [f"{all_of('data') or 'Data not recorded'}{counts}{readout}. Layers by depth."]
    sentences += [f"{name}." for name in dict.fromkeys(map(label_of, panels)) if not options.cbar]
    sentences += [options.reading] if options.reading else []
    if any(boundaries(panel[dim].values.tolist()) for panel in panels for dim in ("layer_a", "layer_b")):
        sentences.append("Dashed: stages.")
    sentences += explain_overlays(panels, path=path, marks=marks, interval=options.interval)
    if any(np.isnan(panel.values).any() for panel in panels):
        sentences.append("Hatched: no value.")
    return [" ".join(sentences)]
