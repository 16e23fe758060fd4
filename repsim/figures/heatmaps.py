"""Comparison results as heatmaps: one a measure, in the form in which a paper would print it."""

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
from repsim.figures.canvas import LARGEST, LEADING, NARROW, SMALL, SMALLEST, TEXT, TITLE, fit, sized
from repsim.figures.lettering import dress, fold, plain, shorten, width_of
from repsim.figures.scales import add_colour_bar, colours_of
from repsim.presentation.scales import Scale, declared, scale_of
from repsim.presentation.stages import boundaries, runs
from repsim.study.layer_matching import best_match
from repsim.study.multiple_tests import holm

_KEPT = 0.92  # what is left of a panel's length when everything around it has been laid out, at least
_CELL = 0.115  # inches: a layer name of nearly 7 points fits beside it
_LONGEST = 8.0  # inches: the longer side of a panel; what does not fit is thinned
_NAMES = 2.4  # inches: a longer name of a layer is shortened
_USUAL = 0.7  # inches: room for names that a grid of small panels counts with
_PAGE = 20.0  # inches: panels wider than this together go below each other
_SLENDER = 4  # cells are square unless one side has this many times the layers of the other
_DIMS = ("layer_a", "layer_b")
_OUTLINE = (withStroke(linewidth=0.9, foreground="black", alpha=0.4),)  # a white line is seen on bright cells, too
_LUMINANCE = np.array([0.2126, 0.7152, 0.0722])
ALPHA = 0.05


class _LayerLocator(Locator):
    """A tick at every layer where the names have room, else at every second, third, ... from the first layer on.

    Asked anew at every drawing, so it holds for whatever size the axes then have.
    """

    def __init__(self, axis: XAxis | YAxis, count: int, size: float) -> None:
        self.layers, self.count, self.pitch = axis, count, size * LEADING

    def __call__(self) -> Sequence[float]:
        return self.tick_values(*self.layers.get_view_interval())

    def tick_values(self, vmin: float, vmax: float) -> Sequence[float]:
        """Positions of the layers that are named while the axis shows ``vmin`` to ``vmax``."""
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

    Layers run in depth order from the lower left corner, side a upwards and side b to the right: the way Kornblith et
    al. (2019), Raghu et al. (2021) and Nguyen et al. (2021) draw them, so that corresponding depths lie on the rising
    diagonal. Where there is no room to name every layer, every second, third, ... is named; all have a tick.
    Where a side has several models, lines part them, and their names stand for those of their layers.
    Thin dashed lines part the stages of a network (`layer1`, `layer2`, ...), where the layers' names tell them.

    Bright is alike, for a similarity and for a distance (whose colours are reversed). The colours span the range that
    the measure declares (``attrs["valid_range"]``), never that of the data, so that two figures can be compared; only
    an infinite bound is replaced by the data's extreme. Values in [0, high] have the perceptually uniform map *magma*.
    A similarity that may be negative (debiased CKA, [-1, 1]) has the same colours from 0 on, and a green ramp of its
    own below: 0 means unrelated, and half the contrast would be lost on values that hardly occur, yet -0.001 is told
    from 0 at sight. Its colour bar stops short of the lowest values where none is there. NaN, no value, is hatched
    grey; the colour bar says how many.

    Parameters
    ----------
    da
        One variable of a result of `repsim.compare`: dimensions ``layer_a`` and ``layer_b``. Without attributes (after
        arithmetic, say) it is drawn as a similarity over the data's range.
    ax
        Where to draw; nothing is drawn outside but tick labels, axis labels and the colour bar to the right, for which
        constrained layout (``plt.subplots(layout="constrained")``) makes room. By default a new figure's.
    stages
        Whether to part the stages.
    path
        Whether to draw the best order-preserving match of every layer of side a
        (`repsim.study.layer_matching.best_match`). By default where ``da`` brings one, as what `pick` takes out of a
        study does; else it is computed.
    marks
        Whether to cross out cells that are not above chance: those whose coordinate ``p`` is above 5 % after Holm's
        correction over all cells. By default where ``da`` has p-values, as plain debiased CKA of a study does.

    Returns
    -------
    Axes
        The image is ``ax.images[0]``, its colour bar ``ax.images[0].colorbar``, the figure ``ax.figure``.

    Raises
    ------
    InvalidInputError
        If ``da`` is not one variable with the layers of both sides; if it has no p-values and ``marks`` are asked for,
        or a side has several models and a ``path`` is.

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
    da = checked(da)
    if ax is None:
        return _lay_out([da], [], stages=stages, path=path, marks=marks).axes[0]
    box = ax.get_window_extent().transformed(ax.figure.dpi_scale_trans.inverted())
    names = float(np.clip(0.6 * min(box.width, box.height), 0.8, _NAMES))
    draw(da, ax, box.width, box.height, names=names, stages=stages, path=path, marks=marks)
    dress(ax)
    return ax


def figure(
    result: xr.Dataset | xr.DataArray,
    metrics: Sequence[str] | None = None,
    *,
    path: bool | None = None,
    marks: bool | None = None,
) -> Figure:
    """Draw every measure of a result, or those named, side by side, with a caption that says what was compared.

    The figure is as large as its layers ask for: about 3 inches a panel for a dozen layers, 7 for sixty. It is laid out
    once; to arrange panels otherwise, draw them with `heatmap` on axes of your own.

    Parameters
    ----------
    result
        What `repsim.compare` returns, or one of its variables.
    metrics
        Names of variables, in the order of the panels.
    path, marks
        As in `heatmap`.

    Raises
    ------
    UnknownNameError
        For a name that the result does not hold.
    InvalidInputError
        If there is nothing to draw.
    """
    if isinstance(result, xr.DataArray):
        result = result.to_dataset(name=result.name if result.name is not None else "value")
    names = known_variables(result, metrics)
    if not names:
        raise InvalidInputError("there is nothing to draw: expected at least one measure with dims (layer_a, layer_b)")
    panels = [checked(result[name]) for name in names]
    reading = " ".join(["Bright is alike.", *explained(panels, path=path, marks=marks)])
    return _lay_out(panels, caption_of(panels[0], reading), stages=True, path=path, marks=marks)


def known_variables(result: xr.Dataset, metrics: Sequence[str] | None) -> list[str]:
    """The measures of a result, or those that are named."""
    known = [str(name) for name, variable in result.data_vars.items() if set(variable.dims) == set(_DIMS)]
    return known if metrics is None else [name for metric in metrics for name in _variables(result, metric, known)]


def _variables(result: xr.Dataset, metric: str, known: Sequence[str]) -> list[str]:
    """One by its name, or those of a metric under every readout."""
    names = [metric] if metric in known else [name for name in known if result[name].attrs.get("spec") == metric]
    if not names:
        raise UnknownNameError("measure in this result", metric, known)
    return names


def checked(da: xr.DataArray) -> xr.DataArray:
    """The array with side a along its rows, or what is wrong with it."""
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
    names: float = _NAMES,
    stages: bool = True,
    path: bool | None = None,
    marks: bool | None = None,
) -> None:
    """Draw on axes that are, or will be, so many inches wide and high; with a bar unless the scale is given.

    Names of layers take so many inches, ``names``, at most.
    """
    values = np.asarray(da.values, dtype=np.float64)
    colours = scale or scale_of(values, *declared(da.attrs))
    norm, colour_map = colours_of(colours)
    square = scale is None and max(da.shape) <= _SLENDER * min(da.shape)
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
    lines = [label_of(da)]
    if undefined := int(np.isnan(values).sum()):
        # the image is transparent there, so what shows is the ground of the axes
        ax.patch.set(facecolor="0.85", edgecolor="0.45", hatch="//////", linewidth=0)
        lines.append(f"hatched: no value ({undefined} of {values.size} pairs)")
    cell = 72 * min(height / da.shape[0], width / da.shape[1])
    if path or (path is None and "match" in da.coords):
        _draw_path(da, ax, cell)
    if marks or (marks is None and "p" in da.coords):
        _draw_marks(da, ax, colours, cell)
    if scale is None:
        add_colour_bar(image, colours, lines, height)


def _name_layers(
    da: xr.DataArray, axis: XAxis | YAxis, dim: str, inches: float, size: float, *, longest: float, stages: bool
) -> None:
    """Name the layers along one axis, or the models where there are several, and part these or the stages."""
    models = _models(da, dim[-1])
    names = [plain(name) for name in (da[dim].values if len(models) < 2 else models)]
    room = _KEPT * 72 * inches / len(names)
    small = float(np.clip(room / LEADING, SMALLEST, min(LARGEST, size)))
    names = shorten(names, longest, small)
    axis.set_tick_params(which="major", labelsize=small, length=2.5, width=0.6, pad=2)
    line = axis.axes.axhline if axis is axis.axes.yaxis else axis.axes.axvline
    if len(models) < 2:
        axis.set_major_locator(_LayerLocator(axis, len(names), small))
        axis.set_major_formatter(_names_of(names))
        axis.set_minor_locator(_LayerLocator(axis, len(names), 0))
        axis.set_tick_params(which="minor", length=1.5, width=0.4)
        for first in boundaries(map(str, da[dim].values)) if stages else ():
            line(first - 0.5, color="white", linewidth=0.5, linestyle=(0, (3, 2)), alpha=0.8, path_effects=_OUTLINE)
    else:  # layers are told by where they lie in their model
        axis.set_ticks([(first + last) / 2 for first, last in models.values()], names)
        for first, _ in list(models.values())[1:]:
            line(first - 0.5, color="white", linewidth=0.8)
    name = side_of(da, dim[-1]) if size >= TEXT else _whose(da, dim[-1])  # small panels say the readout in the caption
    wide = max(inches, NARROW) if size >= TEXT else inches
    if size < TEXT and (taken := max(width_of(name, small) for name in names) / 72) > _USUAL:
        wide = max(inches - taken, 0.6)  # of small panels in a figure of fixed width, long names leave less
    axis.set_label_text(fold(shorten([name], 1.8 * wide, size), wide, size), fontsize=size)  # two lines, or some more


def _draw_path(da: xr.DataArray, ax: Axes, cell: float) -> None:
    """Join the best match of every row, with a ring in its cell."""
    if any(len(_models(da, side)) > 1 for side in "ab"):
        raise InvalidInputError("a path of best matches takes one model a side; compare two, or draw without it")
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
    """Cross out what is not above chance, white on dark cells and black on bright ones."""
    if "p" not in da.coords:
        raise InvalidInputError(
            f"{label_of(da)} has no p-values to mark cells by; plain debiased CKA of a study has (figures.pick)"
        )
    rows, columns = np.nonzero(holm(da["p"].values) > ALPHA)
    norm, colour_map = colours_of(scale)
    dark = colour_map(norm(np.asarray(da.values, np.float64)[rows, columns]))[:, :3] @ _LUMINANCE < 0.5
    shades = np.where(dark[:, None], to_rgb("white"), to_rgb("black"))
    size = float(np.clip(cell / 3, 1.5, 5))
    ax.scatter(columns, rows, s=size**2, c=shades, marker="x", linewidths=size / 6, gid="marks")


def _models(da: xr.DataArray, side: str) -> dict[str, tuple[int, int]]:
    """The first and the last layer of every model of one side, where the layers of each are neighbours."""
    name = f"model_{side}"
    if name not in da.coords or da[name].dims != (f"layer_{side}",):
        return {}
    along = runs(map(str, da[name].values))
    ends = {run.model: (run.first, run.first + run.count - 1) for run in along}
    return ends if len(ends) == len(along) else {}


def _name_width(da: xr.DataArray, dim: str) -> float:
    """Inches that the longest name along one axis takes."""
    models = _models(da, dim[-1])
    widest = max((plain(name) for name in (da[dim].values if len(models) < 2 else models)), key=len)
    return min(width_of(widest, LARGEST) / 72, _NAMES)


def _names_of(names: Sequence[str]) -> FuncFormatter:
    return FuncFormatter(lambda at, _: names[round(at)] if 0 <= round(at) < len(names) else "")


def _lay_out(
    panels: Sequence[xr.DataArray], caption: Sequence[str], *, stages: bool, path: bool | None, marks: bool | None
) -> Figure:
    """Make a figure in which every panel has the size that its layers need, whatever room the names around it take."""
    rows, columns = panels[0].shape
    most, fewest = max(rows, columns), min(rows, columns)
    long = min(max(min(max(0.6 * most, 1.5), 2.8), _CELL * most), _LONGEST)
    short = long * max(fewest / most, 1 / _SLENDER)
    width, height = (long, short) if columns >= rows else (short, long)
    across = min(len(panels), max(1, int(_PAGE // (width + 1.5))))
    down = math.ceil(len(panels) / across)
    across = math.ceil(len(panels) / down)  # four panels are two and two, not three and one
    longest = max(_name_width(panel, dim) for panel in panels for dim in _DIMS)
    around = 1.5 + (longest if longest > 1 else 0)
    figure = sized(across * (width + around), down * (height + around))
    grid = figure.subplots(down, across, squeeze=False).flatten()
    for ax in grid[len(panels) :]:
        ax.remove()
    for ax, panel in zip(grid, panels, strict=False):
        draw(panel, ax, width, height, stages=stages, path=path, marks=marks)
        if len(panels) > 1:
            ax.set_title(fold([label_of(panel)], max(width, NARROW), TITLE), fontsize=TITLE)
    dress(figure)
    aspects = [ax.get_aspect() for ax in figure.axes]
    for ax in figure.axes:
        ax.set_aspect("auto")  # constrained layout is exact for axes that fill their place
    slack = 0.04 * (1 + (longest if longest > 1 else 0))  # in print, letters of a long name add up to another width
    layout = ConstrainedLayoutEngine(w_pad=slack, h_pad=slack)
    fit(figure, layout, width * across, height * down)
    if caption:
        inches = figure.get_size_inches()[0]
        figure.supxlabel(fold(caption, inches - 0.2, SMALL), x=0.1 / inches, ha="left", fontsize=SMALL)
        fit(figure, layout, width * across, height * down)
    layout.execute(figure)  # once and for all: laid out anew at every drawing, saving a figure would change it
    for ax, aspect in zip(figure.axes, aspects, strict=True):
        ax.set_aspect(aspect)
    return figure


def caption_of(da: xr.DataArray, reading: str = "Bright is alike.") -> list[str]:
    """Say what was compared, on what, and how to read the figure."""
    counts = [f"{count} layer{'s' if count > 1 else ''}" for count in da.shape]
    a, b = (side_of(da, side, count) for side, count in zip("ab", counts, strict=True))
    on = ", ".join(once(da, "data")) or "not recorded"
    n = "".join(f", {count} samples" for count in once(da, "n_samples"))
    return [
        *(
            [f"{a}, {'all with all' if len(once(da, 'model_a')) > 1 else 'with itself'}."]
            if a == b
            else [f"Rows: {a}.", f"Columns: {b}."]
        ),
        f"Data: {on}{n}. {reading}",
    ]


def explained(panels: Sequence[xr.DataArray], *, path: bool | None, marks: bool | None) -> Iterator[str]:
    """Say what the path and the marks are, where there are any."""
    if path or (path is None and any("match" in panel.coords for panel in panels)):
        yield "White line: the best order-preserving match of every row."
    if marks or (marks is None and any("p" in panel.coords for panel in panels)):
        yield f"Crosses: not above chance (p > {ALPHA}, Pearson III, after Holm over the cells of a panel)."


def side_of(da: xr.DataArray, side: str, *notes: str) -> str:
    """Name the model of one side, or say how many there are, and the readout where all their layers have one."""
    readouts = once(da, f"readout_{side}")
    if len(readouts) == 1:
        notes += (f"readout {readouts[0]}",)
    return ", ".join([_whose(da, side), *notes])


def _whose(da: xr.DataArray, side: str) -> str:
    models = once(da, f"model_{side}") or [f"side {side}"]
    return models[0] if len(models) == 1 else f"{len(models)} models, layers by depth"


def once(da: xr.DataArray, coord: str) -> list[str]:
    """The distinct values of a coordinate, in order."""
    if coord not in da.coords:
        return []
    return list(dict.fromkeys(plain(value) for value in np.atleast_1d(da[coord].values)))


def label_of(da: xr.DataArray) -> str:
    """What the measure is called."""
    return plain(da.attrs.get("label", da.name if da.name is not None else "value"))
