"""Draw values as an image in the colours of a scale, with its colour bar, as the caller's keywords say."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypedDict, cast

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colorbar import Colorbar
from matplotlib.colors import Colormap, LinearSegmentedColormap, ListedColormap, Normalize
from matplotlib.image import AxesImage
from matplotlib.ticker import MaxNLocator
from matplotlib.transforms import Affine2DBase, ScaledTranslation, blended_transform_factory
from numpy.typing import NDArray

from repsim.errors import InvalidInputError, UnknownNameError, reason
from repsim.figures.canvas import NUMBER, fit_numbers, style_ticks
from repsim.figures.keywords import without_negative_zero
from repsim.figures.lettering import wrap
from repsim.figures.styles import em, frame, ink
from repsim.presentation.scales import GREEN, MAGMA, Scale, mixed

Extend = Literal["neither", "min", "max", "both"]
_EXTEND: dict[tuple[bool, bool], Extend] = {
    (False, False): "neither",
    (True, False): "min",
    (False, True): "max",
    (True, True): "both",
}
_STEPS = 512
IntervalStyle = Literal["numbers", "chance"]
_LUMINANCE = np.array([0.2126, 0.7152, 0.0722])


class ImageKeywords(TypedDict, total=False):
    """Keywords of all functions that draw an image, described at `repsim.heatmap`."""

    cmap: str | Colormap | None
    vmin: float | None
    vmax: float | None
    norm: Normalize | None
    annotate: bool | str
    cbar: bool
    im_kw: Mapping[str, Any] | None


@dataclass(frozen=True)
class ImageOptions:
    """Values of `ImageKeywords`."""

    cmap: str | Colormap | None = None
    vmin: float | None = None
    vmax: float | None = None
    norm: Normalize | None = None
    annotate: bool | str = False
    cbar: bool = True
    im_kw: Mapping[str, Any] | None = field(default=None)
    interval: IntervalStyle | None = None

    def __post_init__(self) -> None:
        if self.norm is not None and not (self.vmin is None and self.vmax is None):
            raise InvalidInputError("a norm has limits of its own; give either norm, or vmin and vmax")
        if self.interval not in {None, "numbers", "chance"}:
            raise InvalidInputError(f"expected interval='numbers' or interval='chance', got {self.interval!r}")
        check_colour_map(self.cmap)

    def colours(self, scale: Scale) -> tuple[Any, Any]:
        """Return the norm and the colour map: the caller's, or those of the scale within the caller's limits."""
        norm = self.norm or Normalize(
            scale.shown[0] if self.vmin is None else self.vmin, scale.shown[1] if self.vmax is None else self.vmax
        )
        if self.norm is None and not norm.vmin < norm.vmax:  # type: ignore[operator]
            raise InvalidInputError(f"expected vmin < vmax, got {norm.vmin:g} and {norm.vmax:g}")
        own = colour_map(scale, norm.vmin, norm.vmax) if type(norm) is Normalize else colour_map(scale, 0.0, 1.0)
        return norm, own if self.cmap is None else self.cmap

    @property
    def reading(self) -> str:
        """Sentence of a caption about the colours, which are bright for similar layers unless the caller chose them."""
        return "Brighter: more similar." if self.cmap is None and "cmap" not in (self.im_kw or {}) else ""

    def ends(self, scale: Scale, values: NDArray[np.float64]) -> Extend:
        """Return the ends of the colour bar that get an arrow, which are those with values beyond the limits."""
        if self.norm is not None:
            return "neither"
        below, above = scale.below, scale.above
        if self.vmin is not None:
            below = bool((values < self.vmin).any())
        if self.vmax is not None:
            above = bool((values > self.vmax).any())
        return _EXTEND[below, above]


def check_colour_map(cmap: str | Colormap | None) -> None:
    """Raise `UnknownNameError` if matplotlib has no colour map of this name."""
    if isinstance(cmap, str) and cmap not in colormaps:
        raise UnknownNameError("colour map of matplotlib", cmap, list(colormaps))


class ScaleColours(ListedColormap):
    """Colour map of a scale between two limits, which `draw_image` makes anew when the limits change."""


def colour_map(scale: Scale, low: float | None, high: float | None) -> ScaleColours:
    """Return the colour map of a scale between two limits, where values below 0 keep their own colours."""
    magma = LinearSegmentedColormap.from_list("", MAGMA[::-1] if scale.reverse else MAGMA, _STEPS)
    if not scale.signed or low is None or high is None or not low < 0 <= high:
        return ScaleColours(magma(np.linspace(0, 1, _STEPS)), "repsim")
    zero = float(Normalize(low, high)(0.0))
    counts = np.arange(_STEPS - 64, _STEPS + 64)
    steps = int(counts[np.argmin((counts * zero) % 1)])  # 0 is where a step begins, as nearly as can be
    below = int(steps * zero)
    bright = mixed(*GREEN, 1 - low / min(scale.low, low))
    green = LinearSegmentedColormap.from_list("", [bright, GREEN[1]], _STEPS)
    both = [green(np.linspace(0, 1, below)), magma(np.linspace(0, 1, steps - below))]
    return ScaleColours(np.concatenate(both), "repsim")


def draw_image(
    ax: Axes,
    values: NDArray[np.float64],
    scale: Scale,
    options: ImageOptions,
    *,
    halves: NDArray[np.float64] | None = None,
    **place: Any,
) -> AxesImage:
    """Draw values as an image, row 0 below, in the colours of a scale or of the caller.

    Below the number of a cell is half of its interval, if there are ``halves``. While the image has the colour map of
    the scale, new limits (``image.set_clim``) keep the colours of values below 0.
    """
    norm, colours = options.colours(scale)
    look: dict[str, Any] = {"origin": "lower", "interpolation": "nearest", "norm": norm, "cmap": colours}
    own = dict(options.im_kw or {})
    try:
        image = ax.imshow(values, **(look | place | own))
    except (AttributeError, TypeError, ValueError) as error:
        if not own:
            raise
        raise InvalidInputError(f"imshow does not take im_kw={own!r}: {reason(error)}") from None
    ax.grid(visible=False)  # a grid of a style sheet would cover the cells
    limits = [image.get_clim()]

    def follow(changed: AxesImage) -> None:
        now = changed.get_clim()
        if scale.signed and now != limits[0] and isinstance(changed.get_cmap(), ScaleColours):
            limits[0] = now
            changed.set_cmap(colour_map(scale, *now))

    image.callbacks.connect("changed", follow)
    if options.annotate or halves is not None:
        form = str(options.annotate) if isinstance(options.annotate, str) else ".2f"
        _annotate(ax, image, values, _numbers(values, halves, form))
    return image


def _numbers(values: NDArray[np.float64], halves: NDArray[np.float64] | None, form: str) -> NDArray[np.object_]:
    """Return the text of every cell: the value, and below it half of its interval; empty where there is no value."""
    texts = np.full(values.shape, "", object)
    for at, value in np.ndenumerate(values):
        if np.isfinite(value):
            texts[at] = f"{value:{without_negative_zero(form)}}"
            if halves is not None and np.isfinite(halves[at]):
                texts[at] += f"\n\N{PLUS-MINUS SIGN}{halves[at]:{form}}"
    return texts


def _annotate(ax: Axes, image: AxesImage, values: NDArray[np.float64], texts: NDArray[np.object_]) -> None:
    """Write a text into every cell, in white on dark cells and in black on bright ones."""
    dark = is_dark(image, values)
    for (row, column), text in np.ndenumerate(texts):
        if text:
            ax.text(
                column, row, text, ha="center", va="center", gid=NUMBER, linespacing=1.1,
                color="white" if dark[row, column] else "black",
            )  # fmt: skip
    fit_numbers(ax)


def is_dark(image: AxesImage, values: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Return which values of an image have a dark colour."""
    colours = image.to_rgba(np.ma.masked_invalid(values))
    return np.asarray(colours[..., :3] @ _LUMINANCE < 0.5)


def add_colour_bar(
    image: AxesImage,
    lines: Sequence[str],
    height: float,
    *,
    ends: Extend,
    chance: NDArray[np.float64] | None = None,
    sizes: tuple[float, float],
    least: float = 0.8,
) -> None:
    """Add a colour bar of fixed width and the height of the axes, which with square cells is set when drawn.

    A bracket beside it spans the ``chance`` levels, if there are any. ``sizes`` are the font sizes of numbers and of
    the label in points, ``least`` is the smallest length in inches to which the label is wrapped.
    """
    ax = image.axes
    right = ax.figure.dpi_scale_trans + ScaledTranslation(1, 0, cast("Affine2DBase", ax.transAxes))
    place = ax.inset_axes((0.1, 0, 0.13 * em(), 1), transform=blended_transform_factory(right, ax.transAxes))
    bar = ax.figure.colorbar(image, cax=place, extend=ends, extendfrac=0.1 / height)
    style_colour_bar(bar, sizes[0])
    low, high = image.get_clim()
    if chance is not None and low is not None and high is not None:
        between = [min(max(float(end), low), high) for end in (np.nanmin(chance), np.nanmax(chance))]
        (bracket,) = bar.ax.plot([0, 0], between, color=ink(), linewidth=2.5, gid="chance", clip_on=False)
        bracket.set(marker="_", markersize=7, markeredgewidth=1)
    bar.set_label(wrap(lines, max(height, least), sizes[1]), fontsize=sizes[1])


def style_colour_bar(bar: Colorbar, size: float) -> None:
    """Set the font size of a colour bar, and ticks at round numbers if its scale is linear."""
    if type(bar.norm) is Normalize:
        bar.locator = MaxNLocator(6, steps=[1, 2, 2.5, 5, 10])
    style_ticks(bar.ax, size)
    bar.outline.set_linewidth(frame())
