"""Comparison results as figures: one heatmap per measure, in the form in which a paper would print it.

Only matplotlib's object interface is used: no pyplot, no display, no global setting is read into or changed. A figure
made here belongs to whoever asked for it and goes away with its last reference.
"""

import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, cast

import matplotlib as mpl
import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.axis import XAxis, YAxis
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import Colormap, LinearSegmentedColormap, ListedColormap, Normalize, TwoSlopeNorm
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.gridspec import SubplotSpec
from matplotlib.image import AxesImage
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.textpath import TextToPath
from matplotlib.ticker import FuncFormatter, Locator, MaxNLocator
from matplotlib.transforms import Affine2DBase, ScaledTranslation, blended_transform_factory
from numpy.typing import NDArray

from repsim.errors import InvalidInputError, UnknownNameError
from repsim.files import replacing

Extend = Literal["neither", "min", "max", "both"]

FORMATS: dict[str, dict[str, None]] = {".png": {}, ".pdf": {"CreationDate": None}, ".svg": {"Date": None}}
"""What can be saved, each with the metadata that would make two equal figures differ."""

_SMALLEST, _LARGEST = 6.0, 9.0  # points: layer names; smaller cannot be read in print
_TITLE, _TEXT, _SMALL = 10.0, 9.0, 8.0  # points: titles; axis labels; the colour bar's numbers and the caption
_LEADING = 1.25  # the height of a line of text over its font size, with some air
_KEPT = 0.92  # what is left of a panel's length when everything around it has been laid out, at least
_CELL = 0.115  # inches: a layer name of nearly 7 points fits beside it
_LONGEST = 8.0  # inches: the longer side of a panel; what does not fit is thinned
_PAGE = 20.0  # inches: panels wider than this together go below each other
_SLENDER = 4  # cells are square unless one side has this many times the layers of the other
_NARROW = 2.0  # inches: text is not folded to less than this
_DIMS = ("layer_a", "layer_b")
_NEGATIVE = ("#c9f7e4", "#0a4a3a")  # from the lowest value up to 0: a hue that magma does not have
_EXTEND: dict[tuple[bool, bool], Extend] = {
    (False, False): "neither",
    (True, False): "min",
    (False, True): "max",
    (True, True): "both",
}


class _Scale(NamedTuple):
    """How values become colours, and the part of it that the colour bar shows."""

    colours: Colormap
    norm: Normalize
    shown: tuple[float, float]
    extend: Extend


class _LayerLocator(Locator):
    """A tick at every layer where the names have room, else at every second, third, ... from the first layer on.

    Asked anew at every drawing, so it holds for whatever size the axes then have.
    """

    def __init__(self, axis: XAxis | YAxis, count: int, size: float) -> None:
        self.layers, self.count, self.pitch = axis, count, size * _LEADING

    def __call__(self) -> Sequence[float]:
        return self.tick_values(*self.layers.get_view_interval())

    def tick_values(self, vmin: float, vmax: float) -> Sequence[float]:
        """Positions of the layers that are named while the axis shows ``vmin`` to ``vmax``."""
        box = self.layers.axes.get_window_extent()
        pixels = box.width if self.layers.axis_name == "x" else box.height
        room = pixels * 72 / self.layers.axes.figure.dpi / max(abs(vmax - vmin), 1e-9)
        return [float(at) for at in range(0, self.count, max(1, math.ceil(self.pitch / max(room, 1e-9))))]


def heatmap(da: xr.DataArray, ax: Axes | None = None) -> Axes:
    """Draw one measure over all pairs of layers.

    Layers run in depth order from the lower left corner, side a upwards and side b to the right: the way Kornblith et
    al. (2019), Raghu et al. (2021) and Nguyen et al. (2021) draw them, so that corresponding depths lie on the rising
    diagonal. Where there is no room to name every layer, every second, third, ... is named; all have a tick.
    Where a side has several models, lines part them, and their names stand for those of their layers.

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

    Returns
    -------
    Axes
        The image is ``ax.images[0]``, its colour bar ``ax.images[0].colorbar``, the figure ``ax.figure``.

    Raises
    ------
    InvalidInputError
        If ``da`` is not one variable with the layers of both sides.

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
    da = _checked(da)
    if ax is None:
        return _lay_out([da], caption=[]).axes[0]
    box = ax.get_window_extent().transformed(ax.figure.dpi_scale_trans.inverted())
    _draw(da, ax, box.width, box.height)
    return ax


def figure(result: xr.Dataset | xr.DataArray, metrics: Sequence[str] | None = None) -> Figure:
    """Draw every measure of a result, or those named, side by side, with a caption that says what was compared.

    The figure is as large as its layers ask for: about 3 inches a panel for a dozen layers, 7 for sixty. It is laid out
    once; to arrange panels otherwise, draw them with `heatmap` on axes of your own.

    Parameters
    ----------
    result
        What `repsim.compare` returns, or one of its variables.
    metrics
        Names of variables, in the order of the panels.

    Raises
    ------
    UnknownNameError
        For a name that the result does not hold.
    InvalidInputError
        If there is nothing to draw.
    """
    if isinstance(result, xr.DataArray):
        result = result.to_dataset(name=result.name if result.name is not None else "value")
    known = [str(name) for name, variable in result.data_vars.items() if set(variable.dims) == set(_DIMS)]
    names = known if metrics is None else [name for metric in metrics for name in _variables(result, metric, known)]
    if not names:
        raise InvalidInputError("there is nothing to draw: expected at least one measure with dims (layer_a, layer_b)")
    panels = [_checked(result[name]) for name in names]
    return _lay_out(panels, caption=_caption(panels[0]))


def _variables(result: xr.Dataset, metric: str, known: Sequence[str]) -> list[str]:
    """One by its name, or those of a metric under every readout."""
    names = [metric] if metric in known else [name for name in known if result[name].attrs.get("spec") == metric]
    if not names:
        raise UnknownNameError("measure in this result", metric, known)
    return names


def save(figure: Figure, path: str | Path) -> None:
    """Write a figure as .png (200 dots per inch), .pdf (fonts embedded) or .svg (text stays text).

    An older file is replaced, and only by a complete one. Equal figures give equal bytes: no dates, no random ids.

    Raises
    ------
    InvalidInputError
        For another suffix.
    OutputError
        Where the file cannot be written.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix not in FORMATS:
        raise InvalidInputError(f"{path.name!r} says no format; end it in {', '.join(FORMATS)}")
    fixed: dict[Any, Any] = {"svg.hashsalt": "repsim", "svg.fonttype": "none", "pdf.fonttype": 42}
    with replacing(path, overwrite=True) as partial, mpl.rc_context(fixed):
        figure.savefig(partial, format=suffix[1:], dpi=200, metadata=FORMATS[suffix])


def _checked(da: xr.DataArray) -> xr.DataArray:
    """The array with side a along its rows, or what is wrong with it."""
    if isinstance(da, xr.Dataset):
        raise InvalidInputError(f"expected one measure, got a whole result; take one of {', '.join(map(str, da))}")
    missing = [dim for dim in _DIMS if dim not in da.dims or dim not in da.coords]
    if missing or da.ndim != 2:
        raise InvalidInputError(f"expected dims and coordinates (layer_a, layer_b), got dims {tuple(da.dims)}")
    if da.size == 0:
        raise InvalidInputError(f"there is nothing to draw: {da.sizes['layer_a']} x {da.sizes['layer_b']} layers")
    return da.transpose(*_DIMS)


def _draw(da: xr.DataArray, ax: Axes, width: float, height: float) -> None:
    """Draw on axes that are, or will be, so many inches wide and high."""
    values = np.asarray(da.values, dtype=np.float64)
    scale = _scale(da, values)
    square = max(da.shape) <= _SLENDER * min(da.shape)
    image = ax.imshow(
        values,
        cmap=scale.colours,
        norm=scale.norm,
        origin="lower",
        interpolation="nearest",
        aspect="equal" if square else "auto",
    )
    if square:
        cell = min(height / da.shape[0], width / da.shape[1])
        height, width = cell * da.shape[0], cell * da.shape[1]
    for axis, dim, inches in ((ax.yaxis, "layer_a", height), (ax.xaxis, "layer_b", width)):
        models = _models(da, dim[-1])
        names = [_plain(name) for name in (da[dim].values if len(models) < 2 else models)]
        room = _KEPT * 72 * inches / len(names)
        size = float(np.clip(room / _LEADING, _SMALLEST, _LARGEST))
        axis.set_tick_params(which="major", labelsize=size, length=2.5, width=0.6, pad=2)
        if len(models) < 2:
            axis.set_major_locator(_LayerLocator(axis, len(names), size))
            axis.set_major_formatter(_names_of(names))
            axis.set_minor_locator(_LayerLocator(axis, len(names), 0))
            axis.set_tick_params(which="minor", length=1.5, width=0.4)
        else:  # layers are told by where they lie in their model
            axis.set_ticks([(first + last) / 2 for first, last in models.values()], names)
            line = ax.axhline if axis is ax.yaxis else ax.axvline
            for first, _ in list(models.values())[1:]:
                line(first - 0.5, color="white", linewidth=0.8)
        axis.set_label_text(_fold([_side(da, dim[-1])], max(inches, _NARROW), _TEXT), fontsize=_TEXT)
    ax.tick_params(axis="x", labelrotation=90)
    ax.spines[:].set_linewidth(0.6)
    lines = [_label(da)]
    if undefined := int(np.isnan(values).sum()):
        # the image is transparent there, so what shows is the ground of the axes
        ax.patch.set(facecolor="0.85", edgecolor="0.45", hatch="//////", linewidth=0)
        lines.append(f"hatched: no value ({undefined} of {values.size} pairs)")
    _add_colour_bar(image, scale, lines, height)


def _models(da: xr.DataArray, side: str) -> dict[str, tuple[int, int]]:
    """The first and the last layer of every model of one side, where the layers of each are neighbours."""
    name = f"model_{side}"
    if name not in da.coords or da[name].dims != (f"layer_{side}",):
        return {}
    found: dict[str, tuple[int, int]] = {}
    for at, model in enumerate(map(str, da[name].values)):
        if at and model in found and found[model][1] != at - 1:
            return {}
        found[model] = found.get(model, (at, at))[0], at
    return found


def _names_of(names: Sequence[str]) -> FuncFormatter:
    return FuncFormatter(lambda at, _: names[round(at)] if 0 <= round(at) < len(names) else "")


def _scale(da: xr.DataArray, values: NDArray[np.float64]) -> _Scale:
    low, high = (float(bound) for bound in da.attrs.get("valid_range", (-math.inf, math.inf)))
    finite = values[np.isfinite(values)]
    least, most = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 1.0)
    low = low if math.isfinite(low) else least
    high = high if math.isfinite(high) else most
    high = high if high > low else low + 1
    slack = 1e-6 * (high - low)  # rounding is not worth an arrow
    below, above = bool((values < low - slack).any()), bool((values > high + slack).any())
    extend = _EXTEND[below, above]
    magma = mpl.colormaps["magma"]
    if da.attrs.get("sense", "similarity") != "similarity":
        return _Scale(magma.reversed(), Normalize(low, high), (low, high), extend)
    if not low < 0 < high:
        return _Scale(magma, Normalize(low, high), (low, high), extend)
    green = LinearSegmentedColormap.from_list("", _NEGATIVE)
    both = ListedColormap(np.concatenate([colours(np.linspace(0, 1, 256)) for colours in (green, magma)]))
    tenth = -low / 10
    shown = max(low, math.floor(least / tenth) * tenth) if least < 0 else 0.0
    return _Scale(both, TwoSlopeNorm(0, low, high), (shown, high), extend)


def _add_colour_bar(image: AxesImage, scale: _Scale, lines: Sequence[str], height: float) -> None:
    """Add a bar of a fixed width, as high as the axes turn out to be: with square cells, only the drawing knows."""
    ax = image.axes
    right = ax.figure.dpi_scale_trans + ScaledTranslation(1, 0, cast("Affine2DBase", ax.transAxes))
    place = ax.inset_axes((0.1, 0, 0.13, 1), transform=blended_transform_factory(right, ax.transAxes))
    bar = ax.figure.colorbar(image, cax=place, extend=scale.extend, extendfrac=0.1 / height)
    low, high = scale.shown
    ticks, slack = np.array(MaxNLocator(6, steps=[1, 2, 2.5, 5, 10]).tick_values(low, high)), 1e-6 * (high - low)
    place.set_ylim(low, high)
    bar.set_ticks(ticks[(ticks > low - slack) & (ticks < high + slack)].clip(low, high).tolist())
    place.tick_params(labelsize=_SMALL, length=2.5, width=0.6)
    bar.outline.set_linewidth(0.6)
    bar.set_label(_fold(lines, max(height, _NARROW), _TEXT), fontsize=_TEXT)


def _lay_out(panels: Sequence[xr.DataArray], caption: Sequence[str]) -> Figure:
    """Make a figure in which every panel has the size that its layers need, whatever room the names around it take."""
    rows, columns = panels[0].shape
    most, fewest = max(rows, columns), min(rows, columns)
    long = min(max(min(max(0.6 * most, 1.5), 2.8), _CELL * most), _LONGEST)
    short = long * max(fewest / most, 1 / _SLENDER)
    width, height = (long, short) if columns >= rows else (short, long)
    across = min(len(panels), max(1, int(_PAGE // (width + 1.5))))
    down = math.ceil(len(panels) / across)
    across = math.ceil(len(panels) / down)  # four panels are two and two, not three and one

    figure = Figure(figsize=(across * (width + 1.5), down * (height + 1.5)))
    FigureCanvasAgg(figure)
    grid = figure.subplots(down, across, squeeze=False).flatten()
    for ax in grid[len(panels) :]:
        ax.remove()
    for ax, panel in zip(grid, panels, strict=False):
        _draw(panel, ax, width, height)
        if len(panels) > 1:
            ax.set_title(_fold([_label(panel)], max(width, _NARROW), _TITLE), fontsize=_TITLE)
    aspects = [ax.get_aspect() for ax in figure.axes]
    for ax in figure.axes:
        ax.set_aspect("auto")  # constrained layout is exact for axes that fill their place
    layout = ConstrainedLayoutEngine()
    _fit(figure, layout, width * across, height * down)
    if caption:
        inches = figure.get_size_inches()[0]
        figure.supxlabel(_fold(caption, inches - 0.2, _SMALL), x=0.1 / inches, ha="left", fontsize=_SMALL)
        _fit(figure, layout, width * across, height * down)
    layout.execute(figure)  # once and for all: laid out anew at every drawing, saving a figure would change it
    for ax, aspect in zip(figure.axes, aspects, strict=True):
        ax.set_aspect(aspect)
    return figure


def _fit(figure: Figure, layout: ConstrainedLayoutEngine, width: float, height: float) -> None:
    """Size the figure so that its panels are so large together, and the text around them has its room."""
    layout.execute(figure)
    size, ax = figure.get_size_inches(), figure.axes[0]
    rows, columns = cast("SubplotSpec", ax.get_subplotspec()).get_geometry()[:2]
    panel = ax.get_position(original=True).size * size
    figure.set_size_inches(size[0] + width - columns * panel[0], size[1] + height - rows * panel[1])


def _caption(da: xr.DataArray) -> list[str]:
    """Say what was compared, on what, and how to read the colours."""
    counts = [f"{count} layer{'s' if count > 1 else ''}" for count in da.shape]
    a, b = (_side(da, side, count) for side, count in zip("ab", counts, strict=True))
    on = ", ".join(_once(da, "data")) or "not recorded"
    n = "".join(f", {count} samples" for count in _once(da, "n_samples"))
    return [
        *(
            [f"{a}, {'all with all' if len(_once(da, 'model_a')) > 1 else 'with itself'}."]
            if a == b
            else [f"Rows: {a}.", f"Columns: {b}."]
        ),
        f"Data: {on}{n}. Bright is alike.",
    ]


def _side(da: xr.DataArray, side: str, *notes: str) -> str:
    """Name the model of one side, or say how many there are, and the readout where all their layers have one."""
    models = _once(da, f"model_{side}") or [f"side {side}"]
    who = models if len(models) == 1 else [f"{len(models)} models, layers by depth"]
    readouts = _once(da, f"readout_{side}")
    if len(readouts) == 1:
        notes += (f"readout {readouts[0]}",)
    return ", ".join([*who, *notes])


def _once(da: xr.DataArray, coord: str) -> list[str]:
    """The distinct values of a coordinate, in order."""
    if coord not in da.coords:
        return []
    return list(dict.fromkeys(_plain(value) for value in np.atleast_1d(da[coord].values)))


def _label(da: xr.DataArray) -> str:
    return _plain(da.attrs.get("label", da.name if da.name is not None else "value"))


def _plain(value: object) -> str:
    """Text that matplotlib shows as it is: between two dollars it would see a formula."""
    return str(value).replace("$", r"\$")


def _fold(lines: Sequence[str], inches: float, size: float) -> str:
    """Break lines that would be longer, after a space or, in a long name, after one of its joints."""
    font, folded = FontProperties(size=size), []
    for line in lines:
        folded.append("")
        for piece in re.findall(r"[^ .+_/-]*[ .+_/-]|[^ .+_/-]+", line):
            width, _, _ = TextToPath().get_text_width_height_descent(folded[-1] + piece.rstrip(), font, ismath=False)
            if width > 72 * inches and folded[-1]:
                folded.append("")
            folded[-1] += piece
    return "\n".join(line.rstrip() for line in folded)
