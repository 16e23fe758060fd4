"""Convert a colour scale to matplotlib's norm and colour map, and draw its colour bar."""

from collections.abc import Sequence
from typing import Literal, cast

import numpy as np
from matplotlib.colorbar import Colorbar
from matplotlib.colors import Colormap, LinearSegmentedColormap, ListedColormap, Normalize, TwoSlopeNorm
from matplotlib.image import AxesImage
from matplotlib.ticker import MaxNLocator
from matplotlib.transforms import Affine2DBase, ScaledTranslation, blended_transform_factory
from numpy.typing import NDArray

from repsim.figures.canvas import NARROW, SMALL, TEXT
from repsim.figures.lettering import wrap
from repsim.presentation.scales import GREEN, MAGMA, Scale

Extend = Literal["neither", "min", "max", "both"]
_EXTEND: dict[tuple[bool, bool], Extend] = {
    (False, False): "neither",
    (True, False): "min",
    (False, True): "max",
    (True, True): "both",
}
_STEPS = 256


def norm_and_colormap(scale: Scale) -> tuple[Normalize, Colormap]:
    """Return matplotlib's norm and colour map for a scale.

    Both cover the whole declared range, not only the shown part, so that equal colours are equal values in any two
    figures.
    """
    magma = LinearSegmentedColormap.from_list("", MAGMA, _STEPS)
    if scale.reverse:
        magma = magma.reversed()
    if not scale.signed:
        return Normalize(scale.low, scale.high), magma
    green = LinearSegmentedColormap.from_list("", GREEN, _STEPS)
    both = ListedColormap(np.concatenate([colours(np.linspace(0, 1, _STEPS)) for colours in (green, magma)]))
    return TwoSlopeNorm(0, scale.low, scale.high), both


def colour_bar_ends(scale: Scale) -> Extend:
    """Return the ends of the colour bar that get an arrow, which are those with values beyond the range."""
    return _EXTEND[scale.below, scale.above]


def add_colour_bar(
    image: AxesImage,
    scale: Scale,
    lines: Sequence[str],
    height: float,
    *,
    chance: NDArray[np.float64] | None = None,
    sizes: tuple[float, float] = (SMALL, TEXT),
) -> None:
    """Add a colour bar of fixed width and the height of the axes, which with square cells is set when drawn.

    A bracket beside it spans the ``chance`` levels, if there are any. ``sizes`` are the font sizes of numbers and of
    the label in points.
    """
    ax = image.axes
    right = ax.figure.dpi_scale_trans + ScaledTranslation(1, 0, cast("Affine2DBase", ax.transAxes))
    place = ax.inset_axes((0.1, 0, 0.13, 1), transform=blended_transform_factory(right, ax.transAxes))
    bar = ax.figure.colorbar(image, cax=place, extend=colour_bar_ends(scale), extendfrac=0.1 / height)
    label_colour_bar(bar, scale, sizes[0])
    if chance is not None:
        ends = [min(max(float(end), scale.shown[0]), scale.shown[1]) for end in (np.nanmin(chance), np.nanmax(chance))]
        (bracket,) = bar.ax.plot([0, 0], ends, color="black", linewidth=2.5, gid="chance", clip_on=False)
        bracket.set(marker="_", markersize=7, markeredgewidth=1)
    least = NARROW if sizes[1] >= TEXT else 0.8
    bar.set_label(wrap(lines, max(height, least), sizes[1]), fontsize=sizes[1])


def label_colour_bar(bar: Colorbar, scale: Scale, size: float) -> None:
    """Set the limits of a colour bar to the shown part of the scale, with ticks at round numbers."""
    low, high = scale.shown
    ticks, slack = np.array(MaxNLocator(6, steps=[1, 2, 2.5, 5, 10]).tick_values(low, high)), 1e-6 * (high - low)
    bar.ax.set_ylim(low, high)
    bar.set_ticks(ticks[(ticks > low - slack) & (ticks < high + slack)].clip(low, high).tolist())
    bar.ax.tick_params(labelsize=size, length=2.5, width=0.6)
    bar.outline.set_linewidth(0.6)
