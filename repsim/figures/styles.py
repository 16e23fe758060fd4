"""Set fonts, sizes and widths for a journal or a slide, and read those that the user has set in rcParams.

A figure has the sizes of repsim unless matplotlib's settings, or a style sheet, say otherwise.
"""

import functools
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Literal, ParamSpec, TypeVar

import matplotlib as mpl
from matplotlib.font_manager import FontProperties, fontManager

from repsim.errors import InvalidInputError, MissingFontWarning, UnknownNameError
from repsim.figures.keywords import check_keywords, check_values

P = ParamSpec("P")
R = TypeVar("R")

COLUMN, PAGE = 3.3, 7.0
"""Widths of one column and of one page of a paper without a style, in inches."""
NOTE = 6.5
"""Font size of numbers, legends and captions of figures at column width, in points."""
LEADING = 1.25
"""Height of a line of text divided by its font size."""

StyleName = Literal["nature", "neurips", "talk"]


@dataclass(frozen=True)
class Style:
    """Widths in inches of one column and of the page, and matplotlib's settings, for one kind of publication."""

    column: float
    page: float
    settings: Mapping[str, Any]
    fonts: Sequence[str] = ()
    """Font families, the preferred one first; by default those of rcParams."""


def _sizes(numbers: float, labels: float) -> dict[str, Any]:
    return {
        "font.size": labels, "axes.labelsize": labels, "axes.titlesize": labels, "xtick.labelsize": numbers,
        "ytick.labelsize": numbers, "legend.fontsize": numbers,
    }  # fmt: skip


ARIAL = ("Arial", "Helvetica", "Arimo", "Liberation Sans", "Nimbus Sans", "TeX Gyre Heros")
"""Arial, Helvetica, and free fonts whose letters are equally wide."""
STYLES: dict[str, Style] = {
    "nature": Style(89 / 25.4, 183 / 25.4, _sizes(6, 7) | {"axes.linewidth": 0.5}, ARIAL),
    "neurips": Style(5.5, 5.5, _sizes(7.5, 8.5)),
    "talk": Style(
        6.0, 12.0, _sizes(13, 14) | {"lines.linewidth": 3.0, "lines.markersize": 11.0, "axes.linewidth": 1.2}
    ),
}
"""Column and page: Nature 89 and 183 mm; NeurIPS the width of its text; a talk half a 16:9 slide and a whole one."""
_current: ContextVar[Style | None] = ContextVar("style", default=None)


@contextmanager
def style_context(
    style: StyleName | None = None, *, font: str | None = None, size: float | None = None
) -> Iterator[None]:
    """Set fonts, sizes and widths of the figures that are made within a ``with`` block.

    matplotlib's settings are as before after the block. Within it, any other setting of `matplotlib.rcParams` counts,
    too, as it does without a style.

    Parameters
    ----------
    style : {"nature", "neurips", "talk"}, optional
        Kind of publication: widths of its column and page, and its font sizes.
    font : str, optional
        Font family, such as Arial or Helvetica. Without it, a font with letters of the same widths is used.
    size : float, optional
        Font size of labels in points; numbers and captions are a little smaller.

    Warns
    -----
    MissingFontWarning
        If neither the font nor an equally wide one is installed.

    Raises
    ------
    UnknownNameError
        If there is no such style.
    InvalidInputError
        If the name of the font is empty, or the size is not above 0.

    Examples
    --------
    >>> with style_context("neurips"):
    ...     column_width()
    5.5
    """
    check_values({"style": style, "font": font, "size": size})
    if style is not None and style not in STYLES:
        raise UnknownNameError("style of figures", style, list(STYLES))
    if font is not None and not font.strip():
        raise InvalidInputError("the font has no name; name a family such as Arial, or none")
    chosen = _current.get() if style is None else STYLES[style]
    settings: dict[Any, Any] = dict(STYLES[style].settings) if style is not None else {}
    if size is not None:
        settings |= _sizes(0.9 * size, size)
    wanted = (font, *(ARIAL if font in ARIAL else ())) if font is not None else STYLES[style].fonts if style else ()
    if wanted:
        settings["font.family"] = _installed(wanted)
    token = _current.set(chosen)
    try:
        with mpl.rc_context(settings):
            yield
    finally:
        _current.reset(token)


def _installed(families: Sequence[str]) -> list[str]:
    """Return the first of these font families that this machine has, before the families of rcParams."""
    names = {font.name for font in fontManager.ttflist}
    first = next((family for family in families if family in names), None)
    if first is None:
        warnings.warn(
            f"{families[0]} is not installed, nor a font with letters of the same widths; the figure has "
            f"{FontProperties().get_name()}. Install one, for instance Liberation Sans (fonts-liberation)",
            MissingFontWarning,
            stacklevel=2,
        )
        return list(mpl.rcParams["font.family"])
    return [first, *mpl.rcParams["font.family"]]


def in_style(function: Callable[P, R]) -> Callable[P, R]:
    """Decorate a function that draws: check its keywords, and let ``style`` set fonts, sizes and widths."""

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        check_keywords(function, kwargs, args)
        style: Any = kwargs.get("style")
        if style is None:
            return function(*args, **kwargs)
        with style_context(style):
            return function(*args, **kwargs)

    return call


def column_width(width: float | None = None) -> float:
    """Return a width in inches, by default that of a column of the style."""
    style = _current.get()
    return width or (style.column if style else COLUMN)


def page_width(width: float | None = None) -> float:
    """Return a width in inches, by default that of a page of the style."""
    style = _current.get()
    return width or (style.page if style else PAGE)


def is_styled() -> bool:
    """Return whether a style determines the width of figures."""
    return _current.get() is not None


def points(size: float, setting: str) -> float:
    """Return a font size in points: this one, unless rcParams or a style sheet have set another one.

    >>> points(6.5, "xtick.labelsize")
    6.5
    >>> with mpl.rc_context({"font.size": 12}):
    ...     points(6.5, "xtick.labelsize")
    12.0
    """
    own: Mapping[Any, Any] = mpl.rcParams  # since matplotlib 3.11, its types accept literal names only
    default: Mapping[Any, Any] = mpl.rcParamsDefault
    if all(own[name] == default[name] for name in ("font.size", setting)):
        return size
    return float(FontProperties(size=own[setting]).get_size_in_points())


def note_size() -> float:
    """Return the font size of numbers and captions of figures at column width, in points."""
    return points(NOTE, "xtick.labelsize")


def label_size() -> float:
    """Return the font size of axis labels of figures at column width, in points."""
    return points(NOTE + 0.5, "axes.labelsize")


def legend_size() -> float:
    """Return the font size of legends of figures at column width, in points."""
    return points(NOTE, "legend.fontsize")


def title_size() -> float:
    """Return the font size of titles of figures at column width, in points."""
    return points(NOTE + 1, "axes.titlesize")


def em() -> float:
    """Return the size of text relative to that without a style, by which distances between texts grow."""
    return note_size() / NOTE


def stroke(width: float) -> float:
    """Return the width of a line in points, wider if ``lines.linewidth`` of rcParams is."""
    return width * float(mpl.rcParams["lines.linewidth"]) / float(mpl.rcParamsDefault["lines.linewidth"])


def mark(size: float) -> float:
    """Return the size of a marker in points, larger if ``lines.markersize`` of rcParams is."""
    return size * float(mpl.rcParams["lines.markersize"]) / float(mpl.rcParamsDefault["lines.markersize"])


def frame(width: float = 0.6) -> float:
    """Return the width of axes and ticks in points: this one, unless rcParams have set another one."""
    own, default = mpl.rcParams["axes.linewidth"], mpl.rcParamsDefault["axes.linewidth"]
    return width if own == default else float(own) * width / 0.6


def ink() -> str:
    """Return the colour of text and outlines."""
    return str(mpl.rcParams["text.color"])


def paper() -> Any:
    """Return the colour of the background of axes."""
    return mpl.rcParams["axes.facecolor"]
