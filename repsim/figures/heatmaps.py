"""Draw comparison results as heatmaps of all pairs of layers, one per measure."""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Unpack

import numpy as np
import xarray as xr
from matplotlib import rcParams
from matplotlib.axes import Axes
from matplotlib.axis import XAxis, YAxis
from matplotlib.colors import Colormap, Normalize, to_rgb
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.patheffects import withStroke
from matplotlib.ticker import FuncFormatter, Locator
from numpy.typing import NDArray

from repsim.errors import Argument, Function, InvalidInputError, Remedy, UnknownNameError
from repsim.figures.canvas import (
    LARGEST,
    NARROW,
    SMALL,
    SMALLEST,
    TEXT,
    TITLE,
    FigureLayout,
    fit_to_width,
    inches_of,
    make_figure,
    namer,
    resize_to_panels,
    room_of,
    set_title,
    settle,
)
from repsim.figures.lettering import escape_text, set_fallback_fonts, shorten, text_width, wrap
from repsim.figures.scales import ImageKeywords, ImageOptions, IntervalStyle, add_colour_bar, draw_image, is_dark
from repsim.figures.styles import (
    LEADING,
    NOTE,
    StyleName,
    column_width,
    frame,
    in_style,
    is_styled,
    label_size,
    mark,
    note_size,
    page_width,
    points,
)
from repsim.presentation.scales import Scale, declared, scale_of
from repsim.presentation.stages import boundaries, runs
from repsim.results.chance import chance_in_words, chance_of
from repsim.results.intervals import ends_of, interval_in_words
from repsim.study.layer_matching import best_match
from repsim.study.multiple_tests import holm

_PANEL_SHARE = 0.92  # least share of a panel's length that remains after the text around it is laid out
_CELL = 0.115  # inches: a layer name of nearly 7 points fits beside it
_NUMBER_CELL = 0.26, 0.36  # inches: a value of two digits fits into a cell, or on it half of an interval
_MAX_PANEL = 8.0  # inches: the longer side of a panel; only some layers are named if not all names fit
_MAX_NAME = 2.4  # inches: a longer name of a layer is shortened
_TYPICAL_NAME = 0.7  # inches: assumed width of names in a grid of small panels
_SMALL_PANEL = 1.6  # inches: panels of the user that are smaller have the text of small panels
_MAX_WIDTH = 20.0  # inches: panels that are wider together are arranged in several rows
_MAX_ASPECT = 4  # cells are square unless one side has more than this many times the layers of the other
_DIMS = ("layer_a", "layer_b")
_OUTLINE = (withStroke(linewidth=0.8, foreground="0.3"),)  # makes white lines visible on bright cells
_LINE_SHARE = 0.04  # largest width of a line between models, as a share of the layers of one
ALPHA = 0.05


class LayerLocator(Locator):
    """Locator of ticks at every layer if the names fit, else at every second, third, ... from the first layer on.

    matplotlib calls it at every drawing, so the ticks fit the current size of the axes.
    """

    def __init__(self, axis: XAxis | YAxis, count: int, size: float) -> None:
        self.layers, self.count, self.pitch = axis, count, size * LEADING

    def __call__(self) -> Sequence[float]:
        """Return the positions of the layers that are named now."""
        return self.tick_values(*self.layers.get_view_interval())

    def tick_values(self, vmin: float, vmax: float) -> Sequence[float]:
        """Return the positions of the layers that are named while the axis shows ``vmin`` to ``vmax``."""
        box = self.layers.axes.get_window_extent()
        pixels = box.width if self.layers.axis_name == "x" else box.height
        room = pixels * 72 / self.layers.axes.figure.dpi / max(abs(vmax - vmin), 1e-9)
        return [float(at) for at in range(0, self.count, max(1, math.ceil(self.pitch / max(room, 1e-9))))]


@in_style
def heatmap(
    da: xr.DataArray,
    ax: Axes | None = None,
    *,
    stages: bool = True,
    path: bool | None = None,
    marks: bool | None = None,
    cmap: str | Colormap | None = None,
    vmin: float | None = None,
    vmax: float | None = None,
    norm: Normalize | None = None,
    annotate: bool | str = False,
    cbar: bool = True,
    im_kw: Mapping[str, Any] | None = None,
    interval: IntervalStyle | None = None,
    title: str | None = None,
    labels: Mapping[str, str] | None = None,
    order: Sequence[str] | None = None,
    width: float | None = None,
    style: StyleName | None = None,
) -> Axes:
    """Draw one measure over all pairs of layers.

    Layers are in order of depth from the lower left corner, side a upwards and side b to the right, as in Kornblith et
    al. (2019), Raghu et al. (2021) and Nguyen et al. (2021); corresponding depths lie on the rising diagonal. If there
    is no room to name every layer, every second, third, ... is named; all layers have a tick. If a side has several
    models, lines separate them, and the axis shows the names of the models instead of the layers. Thin dashed lines
    separate the stages of a network (`layer1`, `layer2`, ...), if the names of the layers show them.

    Similar layers are bright, under a similarity and under a distance (whose colours are reversed). The colours span
    the range that the measure declares (``attrs["valid_range"]``), never the range of the data, so that figures can be
    compared; only an infinite bound is replaced by the extreme of the data. Values in [0, high] have the perceptually
    uniform colour map *magma*. A similarity that can be negative (debiased CKA, [-1, 1]) has the same colours from 0
    on, and green ones below 0. In this way, values that rarely occur do not take half of the contrast, and -0.001 still
    differs visibly from 0. The colour bar omits the lowest values if none occurs. NaN is hatched grey; the label of
    the colour bar gives the number of such pairs.

    Parameters
    ----------
    da : xarray.DataArray
        One variable of a result of `repsim.compare`, with the dimensions ``layer_a`` and ``layer_b``. Without
        attributes (for instance after arithmetic) it is drawn as a similarity over the range of the data.
    ax : Axes, optional
        Axes to draw on; by default those of a new figure, with a footnote. Tick labels, axis labels and the colour bar
        lie outside the axes; constrained layout (``plt.subplots(layout="constrained")``) makes room for them.
    stages : bool
        Whether to draw lines between stages.
    path : bool, optional
        Whether to draw the best order-preserving match of every layer of side a
        (`repsim.study.layer_matching.best_match`). By default it is drawn if ``da`` has the coordinate ``match``, as
        after `pick`. With True, a missing match is computed.
    marks : bool, optional
        Whether to cross out cells that are not above chance: those whose coordinate ``p`` is above 5 % after Holm's
        correction over all cells. By default they are crossed out if ``da`` has p-values, as plain debiased CKA of a
        study does.
    cmap : str or Colormap, optional
        Colour map, by default that of repsim.
    vmin, vmax : float, optional
        Limits of the colours, by default those that the measure declares (of negative values, those that occur).
    norm : Normalize, optional
        matplotlib's norm instead of ``vmin`` and ``vmax``.
    annotate : bool or str
        Whether to write the value into every cell, or its format, such as ".1f".
    cbar : bool
        Whether to draw the colour bar.
    im_kw : mapping, optional
        Keywords for `matplotlib.axes.Axes.imshow`.
    interval : {"numbers", "chance"}, optional
        How to show the intervals of a result of ``compare(..., interval=True)`` or of a pair of a study: as numbers,
        value and half of the interval, in every cell; or as a square in every cell whose interval includes the chance
        level, for more layers than have room for numbers. By default they are not shown.
    title : str, optional
        Title of the axes; by default none.
    labels : mapping of str to str, optional
        Names to show for layers or models, by their names in ``da``.
    order : sequence of str, optional
        Layers to show, in this order; a side none of whose layers is named stays as it is.
    width : float, optional
        Width of a new figure in inches; by default it follows from the number of layers, or from the style.
    style : {"nature", "neurips", "talk"}, optional
        Fonts, sizes and widths (`repsim.figures.style_context`).

    Returns
    -------
    Axes
        The image is ``ax.images[0]``, its colour bar ``ax.images[0].colorbar``, the figure ``ax.figure``. All of them
        can be changed afterwards: a figure of its own is laid out again whenever it is drawn or saved.

    Raises
    ------
    InvalidInputError
        If ``da`` is not one variable with the layers of both sides, if ``marks`` is True and ``da`` has no p-values, if
        ``path`` is True and a side has several models, if ``interval`` is given and ``da`` has no intervals, or if
        numbers would be too small to be read.
    UnknownNameError
        If ``labels`` or ``order`` has a name that ``da`` does not have.

    Examples
    --------
    >>> import numpy as np, xarray as xr
    >>> layers = ["conv1", "layer1", "layer2"]
    >>> da = xr.DataArray(
    ...     np.eye(3), coords={"layer_a": layers, "layer_b": layers}, dims=["layer_a", "layer_b"], name="cka",
    ...     attrs={"label": "CKA (linear, debiased)", "sense": "similarity", "valid_range": [-1.0, 1.0]},
    ... )
    >>> ax = heatmap(da)
    >>> [tick.get_text() for tick in ax.get_yticklabels()]  # from the bottom
    ['conv1', 'layer1', 'layer2']
    >>> ax.images[0].colorbar.ax.get_ylabel()
    'CKA (linear, debiased)'
    """
    (da,) = arranged([check_dims(da)], order, labels)
    options = ImageOptions(cmap, vmin, vmax, norm, annotate, cbar, im_kw, interval)
    check_intervals([da], interval)
    if ax is None:
        return _with_caption([da], options, stages=stages, path=path, marks=marks, title=title, width=width).axes[0]
    (across, up), names = room_of(ax), float(np.clip(0.45 * min(inches_of(ax)), 0.6, _MAX_NAME))
    size = label_size() if min(across, up) < _SMALL_PANEL else None
    draw(da, ax, across, up, options, size=size, names=names, stages=stages, path=path, marks=marks, own=False)
    set_title(ax, title, points(TITLE, "axes.titlesize") if size is None else None)
    set_fallback_fonts(ax)
    settle(ax.figure.figure)
    return ax


@in_style
def figure(
    result: xr.Dataset | xr.DataArray,
    metrics: Sequence[str] | None = None,
    *,
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
    """Draw the measures of a result side by side, with a caption that describes the comparison.

    The size of the figure follows from the number of layers: a panel takes about 3 inches for a dozen layers and 7 for
    sixty. To arrange panels in another way, draw them with `heatmap` on your own axes.

    Parameters
    ----------
    result : xarray.Dataset or xarray.DataArray
        Result of `repsim.compare`, or one of its variables.
    metrics : sequence of str, optional
        Names of variables or specs of metrics, in the order of the panels; by default all.
    path, marks, labels, order, interval, **image
        As in `heatmap`. Measures without intervals are drawn without.
    title : str, optional
        Title of the figure.
    width : float, optional
        Width of the figure in inches; by default it follows from the number of layers, or from the style: a column for
        one measure, otherwise a page.
    style : {"nature", "neurips", "talk"}, optional
        As in `heatmap`.

    Returns
    -------
    Figure

    Raises
    ------
    UnknownNameError
        If the result does not have a metric, or a name in ``labels`` or ``order``.
    InvalidInputError
        If there is nothing to draw, or no measure has intervals that are to be shown.
    """
    if isinstance(result, xr.DataArray):
        result = result.to_dataset(name=result.name if result.name is not None else "value")
    names = select_variables(result, metrics)
    if not names:
        raise InvalidInputError("there is nothing to draw: expected at least one measure with dims (layer_a, layer_b)")
    panels = arranged([check_dims(result[name]) for name in names], order, labels)
    check_intervals(panels, interval)
    options = ImageOptions(**image, interval=interval)
    return _with_caption(panels, options, stages=True, path=path, marks=marks, title=title, width=width)


def _with_caption(
    panels: Sequence[xr.DataArray],
    options: ImageOptions,
    *,
    stages: bool,
    path: bool | None,
    marks: bool | None,
    title: str | None,
    width: float | None,
) -> Figure:
    """Make a figure of panels with a caption that describes the comparison."""
    overlays = explain_overlays(panels, path=path, marks=marks, interval=options.interval)
    measure = f"{label_of(panels[0])}." if len(panels) == 1 and not options.cbar else ""
    reading = " ".join(filter(None, [measure, options.reading, *overlays, *_unnamed(panels[0], options)]))
    caption = make_caption(panels[0], reading)
    return _make_panels(panels, caption, options, stages=stages, path=path, marks=marks, title=title, width=width)


def arranged(
    panels: Sequence[xr.DataArray], order: Sequence[str] | None, labels: Mapping[str, str] | None
) -> list[xr.DataArray]:
    """Return panels with some layers in another order, and with the names that a figure shows.

    The coordinates ``stage_a`` and ``stage_b`` hold the names from which stages are read.
    """
    coords = [*_DIMS, "model_a", "model_b"]
    names = [str(name) for da in panels for coord in coords if coord in da.coords for name in np.atleast_1d(da[coord])]
    shown = namer(labels, names, "layer or model of this figure")
    for name in order or ():
        if name not in names:
            raise UnknownNameError("layer of this figure", name, names, listed=True)
    arranged = []
    for da in panels:
        if order is not None:
            places = {dim: [list(da[dim].values).index(name) for name in order if name in da[dim]] for dim in _DIMS}
            places = {dim: at or list(range(da.sizes[dim])) for dim, at in places.items()}
            if "match" in da.coords:  # positions of layers of side b
                now = np.full(da.shape[1] + 1, -1)
                now[places["layer_b"]] = np.arange(len(places["layer_b"]))
                da = da.assign_coords(match=("layer_a", now[da["match"].values]))  # noqa: PLW2901
            da = da.isel(places)  # noqa: PLW2901
        if labels:
            da = da.assign_coords({f"stage_{dim[-1]}": (dim, da[dim].values) for dim in _DIMS})  # noqa: PLW2901
            da = da.assign_coords(  # noqa: PLW2901
                {
                    coord: (da[coord].dims, np.array([shown(name) for name in np.atleast_1d(da[coord].values)]))
                    for coord in coords
                    if coord in da.coords and da[coord].ndim
                }
            )
        arranged.append(da)
    return arranged


def select_variables(result: xr.Dataset, metrics: Sequence[str] | None) -> list[str]:
    """Return the names of the variables of these metrics; by default those of all measures."""
    names = [str(name) for name, variable in result.data_vars.items() if set(variable.dims) == set(_DIMS)]
    return names if metrics is None else [name for metric in metrics for name in _variables_of(result, metric, names)]


def _variables_of(result: xr.Dataset, metric: str, names: Sequence[str]) -> list[str]:
    """Return the variable with this name, or the variables of a metric under all readouts."""
    selected = [metric] if metric in names else [name for name in names if result[name].attrs.get("spec") == metric]
    if not selected:
        raise UnknownNameError("measure in this result", metric, names)
    return selected


def check_dims(da: xr.DataArray) -> xr.DataArray:
    """Check that an array has the layers of both sides; return it with side a along the rows."""
    if isinstance(da, xr.Dataset):
        raise InvalidInputError(f"expected one measure, got a whole result; take one of {', '.join(map(str, da))}")
    missing = [dim for dim in _DIMS if dim not in da.dims or dim not in da.coords]
    if missing or da.ndim != 2:
        raise InvalidInputError(f"expected dims and coordinates (layer_a, layer_b), got dims {tuple(da.dims)}")
    if da.size == 0:
        raise InvalidInputError(f"there is nothing to draw: {da.sizes['layer_a']} x {da.sizes['layer_b']} layers")
    return da.transpose(*_DIMS)


def draw(
    da: xr.DataArray,
    ax: Axes,
    width: float,
    height: float,
    options: ImageOptions,
    *,
    scale: Scale | None = None,
    size: float | None = None,
    names: float = _MAX_NAME,
    stages: bool = True,
    path: bool | None = None,
    marks: bool | None = None,
    own: bool = True,
    named: bool = True,
) -> AxesImage:
    """Draw a heatmap on axes, with a colour bar unless the scale is given, and return its image.

    Parameters
    ----------
    da : DataArray
        Values (layer_a, layer_b), as `check_dims` returns them.
    ax : Axes
        Axes to draw on.
    width, height : float
        Size in inches that the axes have or will get.
    options : ImageOptions
        Colours, annotation and colour bar.
    scale : Scale, optional
        Colour scale that several panels share; by default that of the measure.
    size : float, optional
        Font size of the labels of small panels in points; by default panels are large.
    names : float
        Largest width of the names of layers, in inches.
    stages, path, marks : bool, optional
        As in `heatmap`.
    own : bool
        Whether the figure is one of repsim, which has room for long labels.
    named : bool
        Whether the colour bar names the measure, which a title may do instead.
    """
    values = np.asarray(da.values, dtype=np.float64)
    colours = scale or scale_of(values, *declared(da.attrs))
    square = scale is None and max(da.shape) <= _MAX_ASPECT * min(da.shape)
    low, high = ends_of(da)
    halves = (high - low) / 2 if options.interval == "numbers" else None
    image = draw_image(ax, values, colours, options, halves=halves, aspect="equal" if square else "auto")
    if square:
        cell = min(height / da.shape[0], width / da.shape[1])
        height, width = cell * da.shape[0], cell * da.shape[1]
    for axis, dim, inches in ((ax.yaxis, "layer_a", height), (ax.xaxis, "layer_b", width)):
        _name_layers(da, axis, dim, inches, size, longest=names, stages=stages, least=1.5 if own else 0.6)
    ax.tick_params(axis="x", labelrotation=90)
    ax.spines[:].set_linewidth(frame())
    lines = [text for text in (label_of(da) if named else "", chance_in_words(da)) if text]
    if undefined := int(np.isnan(values).sum()):
        # the image is transparent at NaN and shows the background of the axes
        ax.patch.set(facecolor="0.85", edgecolor="0.45", hatch="//////", linewidth=0)
        lines.append(f"hatched: no value ({undefined} of {values.size} pairs)")
    cell = 72 * min(height / da.shape[0], width / da.shape[1])
    if path or (path is None and "match" in da.coords):
        _draw_path(da, ax, cell)
    if marks or (marks is None and "p" in da.coords):
        _draw_marks(da, ax, image, cell)
    if options.interval == "chance":
        _draw_squares(da, ax, image, cell)
    if scale is None and options.cbar:
        sizes = points(SMALL, "xtick.labelsize"), points(TEXT, "axes.labelsize")
        sizes = sizes if size is None else (note_size(), label_size())
        chance = chance_of(da) if chance_in_words(da) else None
        ends = options.ends(colours, values)
        least = NARROW if own and not is_styled() else 0.8
        add_colour_bar(image, lines, height, ends=ends, chance=chance, sizes=sizes, least=least)
    return image


def _name_layers(
    da: xr.DataArray,
    axis: XAxis | YAxis,
    dim: str,
    inches: float,
    size: float | None,
    *,
    longest: float,
    stages: bool,
    least: float,
) -> None:
    """Label the layers along one axis, or the models if there are several, and draw lines between stages or models."""
    models = _model_spans(da, dim[-1])
    names = [escape_text(name) for name in (da[dim].values if len(models) < 2 else models)]
    room = _PANEL_SHARE * 72 * inches / len(names)
    largest = points(LARGEST, f"{axis.axis_name}tick.labelsize")
    largest = largest if size is None else min(largest, size)
    small = float(np.clip(room / LEADING, min(SMALLEST, largest), largest))
    names = shorten(names, longest, small)
    family = rcParams["font.family"]
    axis.set_tick_params(labelsize=small, length=2.5, width=frame(), pad=2, labelfontfamily=family)
    axis.set_tick_params(which="minor", length=1.5, width=frame(0.4))
    line = axis.axes.axhline if axis is axis.axes.yaxis else axis.axes.axvline
    if len(models) < 2:
        axis.set_major_locator(LayerLocator(axis, len(names), small))
        axis.set_major_formatter(name_formatter(names))
        axis.set_minor_locator(LayerLocator(axis, len(names), 0))
        stage_names = da.coords.get(f"stage_{dim[-1]}", da[dim]).values
        for first in boundaries(map(str, stage_names)) if stages else ():
            line(first - 0.5, color="white", linewidth=0.5, linestyle=(0, (3, 2)), alpha=0.8, path_effects=_OUTLINE)
    else:  # names of layers would not fit, so the models are named
        middles = [(first + last) / 2 for first, last in models.values()]
        every = _named_every(len(names), inches)
        axis.set_ticks(middles[::every], names[::every])
        axis.set_ticks(middles, minor=True)
        axis.set_tick_params(which="minor", length=1.5 if every > 1 else 0)
        thin = min(0.8, _LINE_SHARE * 72 * inches / len(names))
        for first, _ in list(models.values())[1:]:
            line(first - 0.5, color="white", linewidth=thin)
    # the readout of small panels is in the caption
    label = side_label(da, dim[-1]) if size is None else _model_label(da, dim[-1])
    size_of_label = points(TEXT, "axes.labelsize") if size is None else size
    length = max(inches, least) if size is None else _PANEL_SHARE * inches
    if size is not None and (name_width := max(text_width(name, small) for name in names) / 72) > _TYPICAL_NAME:
        length = max(length - name_width, 0.75 * inches)  # long names shrink small panels in a figure of fixed width
    text = wrap(shorten([label], 1.8 * length, size_of_label), length, size_of_label)  # about two lines
    axis.set_label_text(text, fontsize=size_of_label)


def _unnamed(panel: xr.DataArray, options: ImageOptions) -> Iterator[str]:
    """Yield a sentence if there is room for the names of some models only."""
    width, height = _panel_size(panel, options)
    counts = {side: len(_model_spans(panel, side)) for side in "ab"}
    every, count = max(
        (_named_every(counts[side], inches), counts[side]) for side, inches in (("a", height), ("b", width))
    )
    if count > 1 and every > 1:
        yield f"Lines separate {count} models, of which one in {every} is named."


def _named_every(models: int, inches: float) -> int:
    """Return of how many models along an axis of this length one is named."""
    return math.ceil(models * SMALLEST * LEADING / (_PANEL_SHARE * 72 * inches))


def _draw_path(da: xr.DataArray, ax: Axes, cell: float) -> None:
    """Draw a line through the cells of the best match, with a marker in each."""
    if any(len(_model_spans(da, side)) > 1 for side in "ab"):
        raise InvalidInputError("a path of best matches needs one model per side; compare two, or draw without it")
    values = np.asarray(da.values, np.float64)
    sign = 1 if da.attrs.get("sense", "similarity") == "similarity" else -1
    columns = da["match"].values if "match" in da.coords else best_match(sign * values).columns
    rows = np.flatnonzero(columns >= 0)
    size = float(np.clip(cell / 3, 1.2, mark(4)))
    (drawn,) = ax.plot(
        columns[rows], rows, color="white", linewidth=size / 4, marker="o", markersize=size, markeredgewidth=0,
        gid="path", scalex=False, scaley=False,
    )  # fmt: skip
    drawn.set_path_effects([withStroke(linewidth=size / 4 + 1, foreground="black")])


def _draw_marks(da: xr.DataArray, ax: Axes, image: AxesImage, cell: float) -> None:
    """Cross out the cells that are not above chance, in white on dark cells and in black on bright ones."""
    if "p" not in da.coords:
        raise InvalidInputError(
            f"{label_of(da)} has no p-values to mark cells by; plain debiased CKA of a study has them (figures.pick)"
        )
    rows, columns = np.nonzero(holm(da["p"].values) > ALPHA)
    size = float(np.clip(cell / 3, 1.5, mark(5)))
    shades = _shades(da, image, rows, columns)
    ax.scatter(columns, rows, s=size**2, c=shades, marker="x", linewidths=size / 6, gid="marks")


def _draw_squares(da: xr.DataArray, ax: Axes, image: AxesImage, cell: float) -> None:
    """Draw a square in the cells whose interval includes the chance level, larger than a cross or a mark of a path."""
    rows, columns = np.nonzero(_includes_chance(da))
    size, shades = float(np.clip(cell / 2, 2.0, mark(9))), _shades(da, image, rows, columns)
    ax.scatter(
        columns, rows, s=size**2, facecolors="none", edgecolors=shades, marker="s", linewidths=size / 10, gid="interval"
    )


def _shades(
    da: xr.DataArray, image: AxesImage, rows: NDArray[np.int_], columns: NDArray[np.int_]
) -> list[tuple[float, float, float]]:
    """Return the colours of marks in some cells: white on dark ones and black on bright ones."""
    dark = is_dark(image, np.asarray(da.values, np.float64)[rows, columns])
    return [to_rgb("white") if one else to_rgb("black") for one in dark]


def _includes_chance(da: xr.DataArray) -> NDArray[np.bool_]:
    """Return which cells have an interval that includes the mean value of unrelated layers."""
    low, high = ends_of(da)
    chance = chance_of(da)
    if chance is None and np.isfinite(low).any():
        raise InvalidInputError(f"the chance level of {label_of(da)} is not known; choose interval='numbers'")
    return (low <= chance) & (chance <= high) if chance is not None else np.zeros(da.shape, bool)


def check_intervals(panels: Sequence[xr.DataArray], interval: IntervalStyle | None) -> None:
    """Raise `InvalidInputError` if intervals are to be shown and no panel has any."""
    if interval is not None and not any(np.isfinite(ends_of(panel)).any() for panel in panels):
        raise InvalidInputError(
            f"{', '.join(dict.fromkeys(map(label_of, panels)))}: no intervals to show",
            remedy=Remedy(
                "compute those of debiased CKA with ", Function("repsim.compare"), " and ", Argument("interval", True)
            ),
        )


def _model_spans(da: xr.DataArray, side: str) -> dict[str, tuple[int, int]]:
    """Return the positions of the first and last layer of every model of one side.

    The result is empty if the layers of a model are not consecutive.
    """
    name = f"model_{side}"
    if name not in da.coords or da[name].dims != (f"layer_{side}",):
        return {}
    along = runs(map(str, da[name].values))
    ends = {run.model: (run.first, run.first + run.count - 1) for run in along}
    return ends if len(ends) == len(along) else {}


def _name_width(da: xr.DataArray, dim: str) -> float:
    """Return the width of the longest name along one axis, in inches."""
    models = _model_spans(da, dim[-1])
    widest = max((escape_text(name) for name in (da[dim].values if len(models) < 2 else models)), key=len)
    return min(text_width(widest, LARGEST) / 72, _MAX_NAME)


def name_formatter(names: Sequence[str]) -> FuncFormatter:
    """Return a formatter that shows the name of every position."""
    return FuncFormatter(lambda at, _: names[round(at)] if 0 <= round(at) < len(names) else "")


def _panel_size(panel: xr.DataArray, options: ImageOptions) -> tuple[float, float]:
    """Return the width and height in inches that the layers of a panel need, and numbers in its cells."""
    rows, columns = panel.shape
    most, fewest = max(rows, columns), min(rows, columns)
    cell = _NUMBER_CELL[options.interval == "numbers"] if options.annotate or options.interval == "numbers" else _CELL
    long = min(max(min(max(0.6 * most, 1.5), 2.8), cell * most), _MAX_PANEL)
    short = long * max(fewest / most, 1 / _MAX_ASPECT)
    return (long, short) if columns >= rows else (short, long)


def _make_panels(
    panels: Sequence[xr.DataArray],
    caption: Sequence[str],
    options: ImageOptions,
    *,
    stages: bool,
    path: bool | None,
    marks: bool | None,
    title: str | None,
    width: float | None,
) -> Figure:
    """Make a figure whose panels have the size that their layers need, or of a width that panels share."""
    if width is None and is_styled():
        width = column_width() if len(panels) == 1 else page_width()
    across, up = _panel_size(panels[0], options)
    ratio = up / across
    columns = min(len(panels), max(1, int(_MAX_WIDTH // (across + 1.5))))
    rows = math.ceil(len(panels) / columns)
    columns = math.ceil(len(panels) / rows)  # four panels are two and two, not three and one
    longest = max(_name_width(panel, dim) for panel in panels for dim in _DIMS)
    around = 1.5 + (longest if longest > 1 else 0)
    if width is not None:
        across = max(width / columns - around, 0.3 * width / columns)
        up = min(ratio * across, _MAX_PANEL)
    whole = width or columns * (across + around)
    figure = make_figure(whole, rows * (up + around))
    grid = figure.subplots(rows, columns, squeeze=False).flatten()
    for ax in grid[len(panels) :]:
        ax.remove()
    size, names = points(TITLE, "axes.titlesize"), _MAX_NAME if width is None else 0.3 * width / columns
    for ax, panel in zip(grid, panels, strict=False):
        named = len(panels) == 1
        draw(panel, ax, across, up, options, names=names, stages=stages, path=path, marks=marks, named=named)
        if len(panels) > 1:
            ax.set_title(wrap([label_of(panel)], max(across, NARROW if width is None else 0), size), fontsize=size)
    if title is not None and len(panels) > 1:
        figure.suptitle(title, fontsize=size)
    elif title is not None:
        set_title(figure.axes[0], title, size)
    set_fallback_fonts(figure)
    slack = 0.04 * (1 + (longest if longest > 1 and width is None else 0))  # the width of a name varies by resolution
    layout = FigureLayout(slack, slack)

    def resize() -> None:
        if width is None:
            resize_to_panels(figure, layout, across * columns, up * rows)
        else:
            fit_to_width(figure, layout, ratio, _MAX_PANEL)

    resize()
    if caption:
        inches, small = figure.get_size_inches()[0], points(SMALL, "xtick.labelsize")
        small = min(small, points(NOTE, "xtick.labelsize")) if width is not None else small
        text = wrap(caption, inches - 0.2, small)
        figure.supxlabel(text, x=0.1 / inches, ha="left", fontsize=small)
        figure.set_figheight(figure.get_figheight() + 2 * LEADING * small / 72 * (text.count("\n") + 1))
        resize()
    layout.attach(figure)
    return figure


def make_caption(da: xr.DataArray, reading: str = "Brighter: more similar.") -> list[str]:
    """Return the lines of a caption: models, data, and how to read the figure."""
    counts = [f"{count} layer{'s' if count > 1 else ''}" for count in da.shape]
    a, b = (side_label(da, side, count) for side, count in zip("ab", counts, strict=True))
    on = ", ".join(unique_values(da, "data")) or "not recorded"
    n = "".join(f", {count} samples" for count in unique_values(da, "n_samples"))
    return [
        *(
            [f"{a}, {'all with all' if len(unique_values(da, 'model_a')) > 1 else 'with itself'}."]
            if a == b
            else [f"Rows: {a}.", f"Columns: {b}."]
        ),
        f"Data: {on}{n}. {reading}".strip(),
    ]


def explain_overlays(
    panels: Sequence[xr.DataArray], *, path: bool | None, marks: bool | None, interval: IntervalStyle | None = None
) -> Iterator[str]:
    """Yield sentences that explain the path and the marks, if they are drawn."""
    if path or (path is None and any("match" in panel.coords for panel in panels)):
        yield "White line: the best order-preserving match of every row."
    if any(chance_in_words(panel) and chance_of(panel) is not None for panel in panels):
        yield "Bracket at the colour bar: the mean values of unrelated layers."
    with_p = [panel for panel in panels if "p" in panel.coords]
    if marks or (marks is None and with_p):
        test = "Pearson III, after Holm over the cells of a panel"
        if any((holm(panel["p"].values) > ALPHA).any() for panel in with_p):
            yield f"Crosses: not above chance (p > {ALPHA}, {test})."
        else:
            yield f"All cells are above chance (p \N{LESS-THAN OR EQUAL TO} {ALPHA}, {test})."
    with_interval = [panel for panel in panels if np.isfinite(ends_of(panel)).any()]
    level = interval_in_words(with_interval[0]) if with_interval else ""
    if interval == "numbers":
        yield f"\N{PLUS-MINUS SIGN}: half of the {level} over samples."
    elif interval == "chance":
        several = any(_includes_chance(panel).any() for panel in with_interval)
        of = f"the {level} over samples includes the mean of unrelated layers"
        yield f"Squares: {of}." if several else f"In no cell {of}."


def side_label(da: xr.DataArray, side: str, *notes: str) -> str:
    """Return the label of one side: its model or the number of its models, and the readout if all layers share it."""
    readouts = unique_values(da, f"readout_{side}")
    if len(readouts) == 1:
        notes += (f"readout {readouts[0]}",)
    return ", ".join([_model_label(da, side), *notes])


def _model_label(da: xr.DataArray, side: str) -> str:
    models = unique_values(da, f"model_{side}") or [f"side {side}"]
    return models[0] if len(models) == 1 else f"{len(models)} models, layers by depth"


def unique_values(da: xr.DataArray, coord: str) -> list[str]:
    """Return the distinct values of a coordinate, in order; an empty list if there is no such coordinate."""
    if coord not in da.coords:
        return []
    return list(dict.fromkeys(escape_text(value) for value in np.atleast_1d(da[coord].values)))


def label_of(da: xr.DataArray) -> str:
    """Return the label of the measure."""
    return escape_text(da.attrs.get("label", da.name if da.name is not None else "value"))
