"""Draw comparison results as heatmaps of all pairs of layers, one per measure."""

import math
from collections.abc import Iterator, Sequence

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.axis import XAxis, YAxis
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.patheffects import withStroke
from matplotlib.ticker import FuncFormatter, Locator

from repsim.errors import InvalidInputError, UnknownNameError
from repsim.figures.canvas import LARGEST, LEADING, NARROW, SMALL, SMALLEST, TEXT, TITLE, make_figure, resize_to_panels
from repsim.figures.lettering import escape_text, set_fallback_fonts, shorten, text_width, wrap
from repsim.figures.scales import add_colour_bar, norm_and_colormap
from repsim.presentation.scales import Scale, declared, scale_of
from repsim.presentation.stages import boundaries, runs
from repsim.results.chance import chance_in_words, chance_of
from repsim.study.layer_matching import best_match
from repsim.study.multiple_tests import holm

_PANEL_SHARE = 0.92  # least share of a panel's length that remains after the text around it is laid out
_CELL = 0.115  # inches: a layer name of nearly 7 points fits beside it
_MAX_PANEL = 8.0  # inches: the longer side of a panel; only some layers are named if not all names fit
_MAX_NAME = 2.4  # inches: a longer name of a layer is shortened
_TYPICAL_NAME = 0.7  # inches: assumed width of names in a grid of small panels
_MAX_WIDTH = 20.0  # inches: panels that are wider together are arranged in several rows
_MAX_ASPECT = 4  # cells are square unless one side has more than this many times the layers of the other
_DIMS = ("layer_a", "layer_b")
_OUTLINE = (withStroke(linewidth=0.9, foreground="black", alpha=0.4),)  # makes white lines visible on bright cells
_LINE_SHARE = 0.04  # largest width of a line between models, as a share of the layers of one
_LUMINANCE = np.array([0.2126, 0.7152, 0.0722])
ALPHA = 0.05


class _LayerLocator(Locator):
    """Locator of ticks at every layer if the names fit, else at every second, third, ... from the first layer on.

    matplotlib calls it at every drawing, so the ticks fit the current size of the axes.
    """

    def __init__(self, axis: XAxis | YAxis, count: int, size: float) -> None:
        self.layers, self.count, self.pitch = axis, count, size * LEADING

    def __call__(self) -> Sequence[float]:
        return self.tick_values(*self.layers.get_view_interval())

    def tick_values(self, vmin: float, vmax: float) -> Sequence[float]:
        """Return the positions of the layers that are named while the axis shows ``vmin`` to ``vmax``."""
        box = self.layers.axes.get_window_extent()
        pixels = box.width if self.layers.axis_name == "x" else box.height
        room = pixels * 72 / self.layers.axes.figure.dpi / max(abs(vmax - vmin), 1e-9)
        return [float(at) for at in range(0, self.count, max(1, math.ceil(self.pitch / max(room, 1e-9))))]


def heatmap(
    da: xr.DataArray,
    ax: Axes | None = None,
    *,
    stages: bool = True,
    path: bool | None = None,
    marks: bool | None = None,
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
        Axes to draw on; by default those of a new figure. Tick labels, axis labels and the colour bar lie outside the
        axes; constrained layout (``plt.subplots(layout="constrained")``) makes room for them.
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

    Returns
    -------
    Axes
        The image is ``ax.images[0]``, its colour bar ``ax.images[0].colorbar``, the figure ``ax.figure``.

    Raises
    ------
    InvalidInputError
        If ``da`` is not one variable with the layers of both sides, if ``marks`` is True and ``da`` has no p-values, or
        if ``path`` is True and a side has several models.

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
    da = check_dims(da)
    if ax is None:
        return _make_panels([da], [], stages=stages, path=path, marks=marks).axes[0]
    box = ax.get_window_extent().transformed(ax.figure.dpi_scale_trans.inverted())
    names = float(np.clip(0.6 * min(box.width, box.height), 0.8, _MAX_NAME))
    draw(da, ax, box.width, box.height, names=names, stages=stages, path=path, marks=marks)
    set_fallback_fonts(ax)
    return ax


def figure(
    result: xr.Dataset | xr.DataArray,
    metrics: Sequence[str] | None = None,
    *,
    path: bool | None = None,
    marks: bool | None = None,
) -> Figure:
    """Draw the measures of a result side by side, with a caption that describes the comparison.

    The size of the figure follows from the number of layers: a panel takes about 3 inches for a dozen layers and 7 for
    sixty. The layout is fixed; to arrange panels in another way, draw them with `heatmap` on your own axes.

    Parameters
    ----------
    result : xarray.Dataset or xarray.DataArray
        Result of `repsim.compare`, or one of its variables.
    metrics : sequence of str, optional
        Names of variables or specs of metrics, in the order of the panels; by default all.
    path, marks : bool, optional
        As in `heatmap`.

    Returns
    -------
    Figure

    Raises
    ------
    UnknownNameError
        If the result does not have a metric.
    InvalidInputError
        If there is nothing to draw.
    """
    if isinstance(result, xr.DataArray):
        result = result.to_dataset(name=result.name if result.name is not None else "value")
    names = select_variables(result, metrics)
    if not names:
        raise InvalidInputError("there is nothing to draw: expected at least one measure with dims (layer_a, layer_b)")
    panels = [check_dims(result[name]) for name in names]
    overlays = explain_overlays(panels, path=path, marks=marks)
    reading = " ".join(["Brighter: more similar.", *overlays, *_unnamed(panels[0])])
    return _make_panels(panels, make_caption(panels[0], reading), stages=True, path=path, marks=marks)


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
    *,
    scale: Scale | None = None,
    size: float = TEXT,
    names: float = _MAX_NAME,
    stages: bool = True,
    path: bool | None = None,
    marks: bool | None = None,
) -> None:
    """Draw a heatmap on axes, with a colour bar unless the scale is given.

    Parameters
    ----------
    da : DataArray
        Values (layer_a, layer_b), as `check_dims` returns them.
    ax : Axes
        Axes to draw on.
    width, height : float
        Size in inches that the axes have or will get.
    scale : Scale, optional
        Colour scale that several panels share; by default that of the measure.
    size : float
        Font size of labels in points.
    names : float
        Largest width of the names of layers, in inches.
    stages, path, marks : bool, optional
        As in `heatmap`.
    """
    values = np.asarray(da.values, dtype=np.float64)
    colours = scale or scale_of(values, *declared(da.attrs))
    norm, colour_map = norm_and_colormap(colours)
    square = scale is None and max(da.shape) <= _MAX_ASPECT * min(da.shape)
    image = ax.imshow(
        values,
        cmap=colour_map,
        norm=norm,
        origin="lower",
        interpolation="nearest",
        aspect="equal" if square else "auto",
    )
    if square:
        cell = min(height / da.shape[0], width / da.shape[1])
        height, width = cell * da.shape[0], cell * da.shape[1]
    for axis, dim, inches in ((ax.yaxis, "layer_a", height), (ax.xaxis, "layer_b", width)):
        _name_layers(da, axis, dim, inches, size, longest=names, stages=stages)
    ax.tick_params(axis="x", labelrotation=90)
    ax.spines[:].set_linewidth(0.6)
    lines = [text for text in (label_of(da), chance_in_words(da)) if text]
    if undefined := int(np.isnan(values).sum()):
        # the image is transparent at NaN and shows the background of the axes
        ax.patch.set(facecolor="0.85", edgecolor="0.45", hatch="//////", linewidth=0)
        lines.append(f"hatched: no value ({undefined} of {values.size} pairs)")
    cell = 72 * min(height / da.shape[0], width / da.shape[1])
    if path or (path is None and "match" in da.coords):
        _draw_path(da, ax, cell)
    if marks or (marks is None and "p" in da.coords):
        _draw_marks(da, ax, colours, cell)
    if scale is None:
        add_colour_bar(image, colours, lines, height, chance=chance_of(da) if chance_in_words(da) else None)


def _name_layers(
    da: xr.DataArray, axis: XAxis | YAxis, dim: str, inches: float, size: float, *, longest: float, stages: bool
) -> None:
    """Label the layers along one axis, or the models if there are several, and draw lines between stages or models."""
    models = _model_spans(da, dim[-1])
    names = [escape_text(name) for name in (da[dim].values if len(models) < 2 else models)]
    room = _PANEL_SHARE * 72 * inches / len(names)
    small = float(np.clip(room / LEADING, SMALLEST, min(LARGEST, size)))
    names = shorten(names, longest, small)
    axis.set_tick_params(which="major", labelsize=small, length=2.5, width=0.6, pad=2)
    line = axis.axes.axhline if axis is axis.axes.yaxis else axis.axes.axvline
    if len(models) < 2:
        axis.set_major_locator(_LayerLocator(axis, len(names), small))
        axis.set_major_formatter(_name_formatter(names))
        axis.set_minor_locator(_LayerLocator(axis, len(names), 0))
        axis.set_tick_params(which="minor", length=1.5, width=0.4)
        for first in boundaries(map(str, da[dim].values)) if stages else ():
            line(first - 0.5, color="white", linewidth=0.5, linestyle=(0, (3, 2)), alpha=0.8, path_effects=_OUTLINE)
    else:  # names of layers would not fit, so the models are named
        middles = [(first + last) / 2 for first, last in models.values()]
        every = _named_every(len(names), inches)
        axis.set_ticks(middles[::every], names[::every])
        axis.set_ticks(middles, minor=True)
        axis.set_tick_params(which="minor", length=1.5 if every > 1 else 0, width=0.4)
        thin = min(0.8, _LINE_SHARE * 72 * inches / len(names))
        for first, _ in list(models.values())[1:]:
            line(first - 0.5, color="white", linewidth=thin)
    # the readout of small panels is in the caption
    label = side_label(da, dim[-1]) if size >= TEXT else _model_label(da, dim[-1])
    length = max(inches, NARROW) if size >= TEXT else inches
    if size < TEXT and (name_width := max(text_width(name, small) for name in names) / 72) > _TYPICAL_NAME:
        length = max(inches - name_width, 0.6)  # long names shrink small panels in a figure of fixed width
    axis.set_label_text(wrap(shorten([label], 1.8 * length, size), length, size), fontsize=size)  # about two lines


def _unnamed(panel: xr.DataArray) -> Iterator[str]:
    """Yield a sentence if there is room for the names of some models only."""
    width, height = _panel_size(panel)
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
    size = float(np.clip(cell / 3, 1.2, 4))
    (drawn,) = ax.plot(
        columns[rows], rows, color="white", linewidth=size / 4, marker="o", markersize=size, markeredgewidth=0,
        gid="path", scalex=False, scaley=False,
    )  # fmt: skip
    drawn.set_path_effects([withStroke(linewidth=size / 4 + 1, foreground="black")])


def _draw_marks(da: xr.DataArray, ax: Axes, scale: Scale, cell: float) -> None:
    """Cross out the cells that are not above chance, in white on dark cells and in black on bright ones."""
    if "p" not in da.coords:
        raise InvalidInputError(
            f"{label_of(da)} has no p-values to mark cells by; plain debiased CKA of a study has them (figures.pick)"
        )
    rows, columns = np.nonzero(holm(da["p"].values) > ALPHA)
    norm, colour_map = norm_and_colormap(scale)
    dark = colour_map(norm(np.asarray(da.values, np.float64)[rows, columns]))[:, :3] @ _LUMINANCE < 0.5
    shades = np.where(dark[:, None], to_rgb("white"), to_rgb("black"))
    size = float(np.clip(cell / 3, 1.5, 5))
    ax.scatter(columns, rows, s=size**2, c=shades, marker="x", linewidths=size / 6, gid="marks")


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


def _name_formatter(names: Sequence[str]) -> FuncFormatter:
    return FuncFormatter(lambda at, _: names[round(at)] if 0 <= round(at) < len(names) else "")


def _panel_size(panel: xr.DataArray) -> tuple[float, float]:
    """Return the width and height in inches that the layers of a panel need."""
    rows, columns = panel.shape
    most, fewest = max(rows, columns), min(rows, columns)
    long = min(max(min(max(0.6 * most, 1.5), 2.8), _CELL * most), _MAX_PANEL)
    short = long * max(fewest / most, 1 / _MAX_ASPECT)
    return (long, short) if columns >= rows else (short, long)


def _make_panels(
    panels: Sequence[xr.DataArray], caption: Sequence[str], *, stages: bool, path: bool | None, marks: bool | None
) -> Figure:
    """Make a figure whose panels have the size that their layers need, whatever room the text around them takes."""
    width, height = _panel_size(panels[0])
    across = min(len(panels), max(1, int(_MAX_WIDTH // (width + 1.5))))
    down = math.ceil(len(panels) / across)
    across = math.ceil(len(panels) / down)  # four panels are two and two, not three and one
    longest = max(_name_width(panel, dim) for panel in panels for dim in _DIMS)
    around = 1.5 + (longest if longest > 1 else 0)
    figure = make_figure(across * (width + around), down * (height + around))
    grid = figure.subplots(down, across, squeeze=False).flatten()
    for ax in grid[len(panels) :]:
        ax.remove()
    for ax, panel in zip(grid, panels, strict=False):
        draw(panel, ax, width, height, stages=stages, path=path, marks=marks)
        if len(panels) > 1:
            ax.set_title(wrap([label_of(panel)], max(width, NARROW), TITLE), fontsize=TITLE)
    set_fallback_fonts(figure)
    aspects = [ax.get_aspect() for ax in figure.axes]
    for ax in figure.axes:
        ax.set_aspect("auto")  # constrained layout is exact for axes that fill their place
    slack = 0.04 * (1 + (longest if longest > 1 else 0))  # the width of a long name differs between resolutions
    layout = ConstrainedLayoutEngine(w_pad=slack, h_pad=slack)
    resize_to_panels(figure, layout, width * across, height * down)
    if caption:
        inches = figure.get_size_inches()[0]
        figure.supxlabel(wrap(caption, inches - 0.2, SMALL), x=0.1 / inches, ha="left", fontsize=SMALL)
        resize_to_panels(figure, layout, width * across, height * down)
    layout.execute(figure)  # only here: a layout engine that runs at every drawing would change the saved figure
    for ax, aspect in zip(figure.axes, aspects, strict=True):
        ax.set_aspect(aspect)
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
        f"Data: {on}{n}. {reading}",
    ]


def explain_overlays(panels: Sequence[xr.DataArray], *, path: bool | None, marks: bool | None) -> Iterator[str]:
    """Yield sentences that explain the path and the marks, if they are drawn."""
    if path or (path is None and any("match" in panel.coords for panel in panels)):
        yield "White line: the best order-preserving match of every row."
    if any(chance_in_words(panel) and chance_of(panel) is not None for panel in panels):
        yield "Bracket at the colour bar: the mean values of unrelated layers."
    if marks or (marks is None and any("p" in panel.coords for panel in panels)):
        yield f"Crosses: not above chance (p > {ALPHA}, Pearson III, after Holm over the cells of a panel)."


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
