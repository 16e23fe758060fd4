"""How values become colours: the range that a measure declares, bright for alike, and the bar that says so."""

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple, cast

import matplotlib as mpl
import numpy as np
import xarray as xr
from matplotlib.colorbar import Colorbar
from matplotlib.colors import Colormap, LinearSegmentedColormap, ListedColormap, Normalize, TwoSlopeNorm
from matplotlib.image import AxesImage
from matplotlib.ticker import MaxNLocator
from matplotlib.transforms import Affine2DBase, ScaledTranslation, blended_transform_factory
from numpy.typing import NDArray

from repsim.figures.canvas import NARROW, SMALL, TEXT
from repsim.figures.lettering import fold

Extend = Literal["neither", "min", "max", "both"]
_NEGATIVE = ("#c9f7e4", "#0a4a3a")  # from the lowest value up to 0: a hue that magma does not have
_EXTEND: dict[tuple[bool, bool], Extend] = {
    (False, False): "neither",
    (True, False): "min",
    (False, True): "max",
    (True, True): "both",
}


class Scale(NamedTuple):
    """How values become colours, and the part of it that the colour bar shows."""

    colours: Colormap
    norm: Normalize
    shown: tuple[float, float]
    extend: Extend


def scale_of(da: xr.DataArray, values: NDArray[np.float64]) -> Scale:
    """Take the declared range of a measure; of an infinite one, up to the values' extreme."""
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
        return Scale(magma.reversed(), Normalize(low, high), (low, high), extend)
    if not low < 0 < high:
        return Scale(magma, Normalize(low, high), (low, high), extend)
    green = LinearSegmentedColormap.from_list("", _NEGATIVE)
    both = ListedColormap(np.concatenate([colours(np.linspace(0, 1, 256)) for colours in (green, magma)]))
    tenth = -low / 10
    shown = max(low, math.floor(least / tenth) * tenth) if least < 0 else 0.0
    return Scale(both, TwoSlopeNorm(0, low, high), (shown, high), extend)


def add_colour_bar(image: AxesImage, scale: Scale, lines: Sequence[str], height: float) -> None:
    """Add a bar of a fixed width, as high as the axes turn out to be: with square cells, only the drawing knows."""
    ax = image.axes
    right = ax.figure.dpi_scale_trans + ScaledTranslation(1, 0, cast("Affine2DBase", ax.transAxes))
    place = ax.inset_axes((0.1, 0, 0.13, 1), transform=blended_transform_factory(right, ax.transAxes))
    bar = ax.figure.colorbar(image, cax=place, extend=scale.extend, extendfrac=0.1 / height)
    label_colour_bar(bar, scale, SMALL)
    bar.set_label(fold(lines, max(height, NARROW), TEXT), fontsize=TEXT)


def label_colour_bar(bar: Colorbar, scale: Scale, size: float) -> None:
    """Show the part of the scale that has values, with round numbers and both of its ends."""
    low, high = scale.shown
    ticks, slack = np.array(MaxNLocator(6, steps=[1, 2, 2.5, 5, 10]).tick_values(low, high)), 1e-6 * (high - low)
    bar.ax.set_ylim(low, high)
    bar.set_ticks(ticks[(ticks > low - slack) & (ticks < high + slack)].clip(low, high).tolist())
    bar.ax.tick_params(labelsize=size, length=2.5, width=0.6)
    bar.outline.set_linewidth(0.6)
