"""Select the part of a series that a figure draws, and draw what its figures have in common: axes and footnotes."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import xarray as xr
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Colormap, ListedColormap, Normalize, to_hex
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, NullFormatter
from numpy.typing import NDArray

from repsim.errors import InvalidInputError, UnknownNameError
from repsim.figures.canvas import inches_of, namer, style_ticks
from repsim.figures.lettering import escape_text, shorten, text_width
from repsim.figures.scales import ImageKeywords, ImageOptions, add_colour_bar, check_colour_map, draw_image
from repsim.figures.styles import em, frame, ink, label_size, legend_size, note_size
from repsim.presentation.scales import scale_of
from repsim.presentation.series import (
    compared_with,
    is_logarithmic,
    label_of,
    log_ticks,
    ramp,
    range_of,
    run_name,
    value_texts,
)
from repsim.results.series_variables import COMPARISONS
from repsim.results.versions import SERIES

FEW_LINES = 9
"""Largest number of lines that a legend names; more get a colour bar."""
_NAME = 0.95  # inches: longer names in a legend are shortened
_LOG_TICK = {"x": 0.42, "y": 0.2}  # inches: least distance of the labels of a logarithmic axis
_TICK = 0.06  # inches: least distance between the labels of columns
_ROW = 0.11  # inches: least distance of the labels of rows


class Selection(NamedTuple):
    """Part of a series under one measure and comparison, of one run, in the order of the axis."""

    points: xr.Dataset
    """Variables at this measure and comparison, along ``point`` and ``layer``."""
    measure: str
    comparison: str
    run: str
    footnote: str
    """Points, run, what they are compared with, and data, as sentences."""

    @property
    def values(self) -> NDArray[np.float64]:
        """Values of the axis, of every point."""
        return np.asarray(self.points["value"].values, np.float64)

    @property
    def similarity_label(self) -> str:
        """Label of an axis for the similarity."""
        return escape_text(label_of(self.measure))


def check_series(series: xr.Dataset) -> None:
    """Check that a data set is a series."""
    if series.attrs.get("format") != SERIES:
        raise InvalidInputError("expected a series of repsim.series or repsim.open_series")


def select(
    series: xr.Dataset,
    measure: str | None,
    comparison: str | None = None,
    run: str | None = None,
    *,
    runs: bool = False,
) -> Selection:
    """Select a measure, a comparison and a run of a series.

    Parameters
    ----------
    series : xarray.Dataset
        Series of `repsim.series`.
    measure, comparison, run : str, optional
        Names in the series; by default the first of each, which the footnote states.
    runs : bool
        Whether the figure shows all runs, unless ``run`` is a name.

    Raises
    ------
    UnknownNameError
        The series does not have the measure, the comparison or the run.
    InvalidInputError
        The data set is no series.
    """
    check_series(series)
    measure = _named(series, "measure", measure)
    comparison = _named(series, "comparison", comparison)
    runs_of = series["one_run"].values.tolist()
    several = len(runs_of) > 1
    every = runs and run is None and several
    run = "" if every else _named(series, "one_run", run)
    at = series.sel(measure=measure, comparison=comparison)
    if not every:
        at = at.isel(point=series["run"].values == run)
    count = at.sizes["point"]
    of = f" of {len(runs_of)} runs" if every else f" of {run_name(series, run)}" if several else ""
    first = f" (the first of {len(runs_of)})" if several and not every and run == runs_of[0] else ""
    points = f"{count} point{'s' * (count != 1)}{of}{first}"
    to = compared_with(series, comparison)
    return Selection(at, measure, comparison, run, escape_text(f"{points}, compared with {to}; {samples(series)}."))


def samples(series: xr.Dataset) -> str:
    """Return the number and the data set of the samples, and the readout."""
    return f"{series['n_samples'].item()} samples of {series['data'].item()}, readout {series.attrs['readout']}"


def _named(series: xr.Dataset, dim: str, name: str | None) -> str:
    names = series[dim].values.tolist()
    if not names:
        raise InvalidInputError(f"there is nothing to draw: this series has no {dim}")
    if name is None:
        return str(next((one for one in COMPARISONS if one in names), names[0]) if dim == "comparison" else names[0])
    if name not in names:
        raise UnknownNameError(f"{dim.removeprefix('one_')} of this series", name, names)
    return name


def set_axis_scale(ax: Axes, name: Literal["x", "y"], values: NDArray[np.float64], series: xr.Dataset) -> None:
    """Set the scale of one axis of a figure, ``x`` or ``y``, for values of the axis of a series.

    A logarithmic axis has no place for 0. If 0 is among the values, the axis is linear from 0 to the smallest positive
    value and logarithmic beyond, with a mark on the line of the axis where the scale changes.
    """
    finite = values[np.isfinite(values)]
    positive = finite[finite > 0]
    if not is_logarithmic(series) or not len(positive) or (finite < 0).any():
        return
    axis, inches = (ax.xaxis, inches_of(ax)[0]) if name == "x" else (ax.yaxis, inches_of(ax)[1])
    least, most = float(positive.min()), float(positive.max())
    if with_zero := bool((finite == 0).any()):
        set_scale = ax.set_xscale if name == "x" else ax.set_yscale
        set_scale("symlog", linthresh=least, linscale=0.6)
    else:
        ax.set(**{f"{name}scale": "log"})
    ticks = log_ticks(least, most, series["value"].values, max(2, int(inches / (_LOG_TICK[name] * em()))))
    axis.set_major_locator(FixedLocator([0.0, *ticks] if with_zero else ticks))
    axis.set_major_formatter(FuncFormatter(lambda value, _: value_texts([value])[0]))
    decades = 10.0 ** np.arange(np.floor(np.log10(least)), np.ceil(np.log10(most)))
    between = np.outer(decades, np.arange(1, 10)).ravel()
    of_ten = all(np.isclose(np.log10(tick) % 1, 0) for tick in ticks)
    axis.set_minor_locator(FixedLocator(between[(between >= least) & (between <= most)].tolist() if of_ten else []))
    axis.set_minor_formatter(NullFormatter())
    ax.tick_params(axis=name, which="minor", length=1.5, width=frame(0.4))
    if with_zero:
        _mark_break(ax, name, least)


def _mark_break(ax: Axes, name: str, least: float) -> None:
    """Mark the part of an axis that is linear, between 0 and the smallest positive value."""
    along = least / 2
    style: dict[str, Any] = {"marker": [(-0.6, -1), (0.6, 1)], "markersize": 5, "color": ink(), "linestyle": "none",
             "markeredgewidth": 0.7, "clip_on": False, "gid": "break"}  # fmt: skip
    if name == "x":
        ax.plot([along, along * 1.25], [0, 0], transform=ax.get_xaxis_transform(), **style)
    else:
        ax.plot([0, 0], [along, along * 1.25], transform=ax.get_yaxis_transform(), **style)


def colours_of_lines(count: int, cmap: str | Colormap | None) -> list[str]:
    """Return colours for an ordered set of lines: dark to bright, or of a colour map of the caller."""
    if cmap is None:
        return ramp(count)
    check_colour_map(cmap)
    chosen = colormaps[cmap] if isinstance(cmap, str) else cmap
    return [to_hex(chosen(share)) for share in np.linspace(0, 1, count)]


def name_lines(
    ax: Axes,
    lines: Sequence[Line2D],
    names: Sequence[str],
    title: str,
    labels: Mapping[str, str] | None = None,
    *,
    what: str = "layer of this series",
) -> None:
    """Name lines that are in a sequence: in a legend beside the axes, or by a colour bar if there are many."""
    texts = shorten([*map(namer(labels, names, what), names)], _NAME * em(), legend_size())
    if len(lines) <= FEW_LINES:
        ax.legend(
            list(reversed(lines)), list(reversed(texts)), title=title, fontsize=legend_size(),
            title_fontsize=legend_size(), frameon=False, alignment="left", loc="upper left",
            bbox_to_anchor=(1.0, 1.04), handlelength=1.4, borderpad=0.2, labelspacing=0.35,
        )  # fmt: skip
        return
    colours = ScalarMappable(Normalize(0, len(lines) - 1), ListedColormap([line.get_color() for line in lines]))
    bar = ax.figure.colorbar(colours, cax=ax.inset_axes((1.03, 0, 0.04, 1)))
    at = np.unique(np.linspace(0, len(lines) - 1, FEW_LINES // 2 + 1).round().astype(int))
    bar.set_ticks(at.tolist(), labels=[texts[k] for k in at])
    bar.set_label(title, fontsize=legend_size())
    style_ticks(bar.ax, legend_size())
    bar.outline.set_linewidth(frame())


def draw_table(
    ax: Axes,
    table: NDArray[np.float64],
    measure: str,
    *,
    across: Sequence[str],
    up: Sequence[str],
    size: tuple[float, float],
    image: ImageKeywords,
) -> None:
    """Draw a table as an image with a colour bar; rows upwards, with names of rows and columns.

    Parameters
    ----------
    ax : Axes
        Axes to draw on.
    table : array of shape (rows, columns)
        Similarities; NaN is hatched.
    measure : str
        Measure, whose range the colours span.
    across, up : sequence of str
        Names of columns and rows; if there is no room for all, some are omitted.
    size : (float, float)
        Width and height of the axes in inches.
    image : mapping
        Keywords of images.
    """
    scale, options = scale_of(table, range_of(measure)), ImageOptions(**image)
    drawn = draw_image(ax, table, scale, options, aspect="auto")
    lines = [escape_text(label_of(measure))]
    if undefined := int(np.isnan(table).sum()):
        ax.patch.set(facecolor="0.85", edgecolor="0.45", hatch="//////", linewidth=0)
        lines.append(f"hatched: no value ({undefined} of {table.size})")
    small = note_size()
    widest = max(text_width(name, small) for name in across) / 72 + _TICK
    for axis, names, inches, least in (
        (ax.xaxis, across, 0.8 * size[0], widest), (ax.yaxis, up, size[1], _ROW * em())
    ):  # fmt: skip
        every = max(1, int(np.ceil(len(names) * least / inches)))
        at = list(range(0, len(names), every))
        axis.set_ticks(at, shorten([names[k] for k in at], _NAME * em(), small))
        axis.set_ticks(range(len(names)), minor=True)
    style_ticks(ax)
    ax.spines[:].set(linewidth=frame(), visible=True)
    if options.cbar:
        ends, sizes = options.ends(scale, table), (small, label_size())
        add_colour_bar(drawn, lines, size[1], ends=ends, sizes=sizes)
