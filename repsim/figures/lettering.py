"""Fit names of any length and language into figures: shorten, wrap and escape them, and choose fonts.

matplotlib draws characters that its font lacks as empty boxes, and long names push the axes off the figure.
"""

import re
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import cache

from matplotlib import rcParams
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, fontManager, get_font
from matplotlib.text import Text
from matplotlib.textpath import TextToPath

from repsim.errors import MissingFontWarning

ELLIPSIS = "\N{HORIZONTAL ELLIPSIS}"
_WHOLE = r"(?:[^ .+_/-]| (?=%)|(?<=\d)\.(?=\d))"  # 0.05 and 95 % are not divided
_PIECES = rf"{_WHOLE}*+[ .+_/-]|{_WHOLE}++"
_FORMULA_FONTS = ("Last", "cm", "STIXNon", "STIXSize")
"""Fonts of matplotlib for formulas and missing characters, which have other symbols in place of letters."""
_ESCAPE = re.compile(r"\\u[0-9a-f]{4}|\\U[0-9a-f]{8}")
_HEAD_SHARES = (0.4, 0.2, 0.6, 0.8, 0.0)
"""Shares of a shortened name that its beginning takes; the first that keeps all names different is used."""


def escape_text(value: object) -> str:
    r"""Return a text that matplotlib shows literally, without reading text between two dollars as a formula.

    Control characters, and characters that no font of this machine has, are written as escapes.

    >>> escape_text("loss in $"), escape_text("a\nb")
    ('loss in \\$', 'a\\nb')
    """
    text = str(value)
    if not text.isascii() or not text.isprintable():
        text = "".join(c if c.isprintable() and _fallback_family(c) is not None else _escape(c) for c in text)
    return text.replace("$", r"\$")


def _escape(character: str) -> str:
    return (
        character.encode("unicode_escape").decode() if not "\x80" <= character <= "\xff" else f"\\u{ord(character):04x}"
    )


def text_width(text: str, size: float) -> float:
    """Return the width of a line of text, in points."""
    families = dict.fromkeys(filter(None, map(_fallback_family, text)))
    font = FontProperties(family=[*rcParams["font.family"], *families], size=size)
    width, _, _ = TextToPath().get_text_width_height_descent(text, font, ismath=False)
    return float(width)


def wrap(lines: Sequence[str], inches: float, size: float) -> str:
    """Wrap lines to a width in inches: after a space, in a long name after punctuation, or at any character."""
    folded: list[str] = []
    for line in lines:
        folded.append("")
        for piece in re.findall(_PIECES, line):
            fits = text_width(piece.rstrip(), size) <= 72 * inches
            if fits and folded[-1] and text_width(folded[-1] + piece.rstrip(), size) > 72 * inches:
                folded.append("")
            if fits:
                folded[-1] += piece
                continue
            for character in piece:
                if folded[-1] and text_width(folded[-1] + character, size) > 72 * inches:
                    folded.append("")
                folded[-1] += character
    return "\n".join(line.rstrip() for line in folded)


def shorten(names: Sequence[str], inches: float, size: float) -> list[str]:
    """Shorten names that are too long in the middle, so that different names stay different.

    Parameters
    ----------
    names : sequence of str
        Names along one axis.
    inches : float
        Room for each name.
    size : float
        Font size in points.

    Returns
    -------
    list of str
        Names in the same order; those that fit are unchanged.

    Examples
    --------
    >>> shorten(["encoder.layers.0.attention.output.proj.weight", "head"], 1.2, 7)
    ['encoder.l…t.proj.weight', 'head']
    """
    different = list(dict.fromkeys(names))
    short = {name: _cut(name, 72 * inches, size, _HEAD_SHARES[0]) for name in different}
    for group in _collisions(short):
        for head in _HEAD_SHARES:
            candidates = {name: _cut(name, 72 * inches, size, head) for name in group}
            others = {short[name] for name in different if name not in candidates}
            if len(set(candidates.values()) - others) == len(group):
                break
        else:
            candidates = _cut_to_difference(group, 72 * inches, size)
        short |= candidates
    for group in _collisions(short):  # still equal: append their position on the axis
        for name in group:
            mark = f" #{different.index(name) + 1}"
            short[name] = _cut(name, 72 * inches - text_width(mark, size), size, _HEAD_SHARES[0]) + mark
    return [short[name] for name in names]


def _collisions(short: dict[str, str]) -> list[list[str]]:
    """Return groups of names that were shortened to the same text."""
    counts = Counter(short.values())
    return [[name for name in short if short[name] == cut] for cut, count in counts.items() if count > 1]


def _cut(name: str, points: float, size: float, head: float) -> str:
    """Shorten a name to its beginning and end; the beginning has the share ``head`` of the characters."""
    if len(name) < 4 or _approximate_width(name, size) <= points:
        return name
    low, high = 2, len(name) - 1  # binary search of the number of characters that fit
    while low < high:
        middle = (low + high + 1) // 2
        if _approximate_width(_elide(name, middle, head), size) <= points:
            low = middle
        else:
            high = middle - 1
    return _elide(name, low, head)


def _approximate_width(text: str, size: float) -> float:
    """Return the width of a text in points, without kerning."""
    font = findfont(FontProperties())
    return sum(_advance(character, size, font) for character in text)


@cache
def _advance(character: str, size: float, _font: str) -> float:
    return text_width(character, size)


def _elide(name: str, count: int, head: float) -> str:
    first = round(count * head)
    return f"{name[:first].rstrip(chr(92))}{ELLIPSIS}{name[len(name) - (count - first) :]}"


def _cut_to_difference(names: Sequence[str], points: float, size: float) -> dict[str, str]:
    """Shorten names to the part in which they differ, between their first and last three characters."""
    start, end = (max(0, _common_prefix(side) - 2) for side in (names, [name[::-1] for name in names]))
    cut = {}
    for name in names:
        piece = name[start : max(start + 1, len(name) - end)]
        text = f"{name[:3]}{ELLIPSIS}{piece}{ELLIPSIS}{name[-3:]}"
        cut[name] = (
            text
            if _approximate_width(text, size) <= points
            else _cut(f"{ELLIPSIS}{piece}{ELLIPSIS}", points, size, 0.5)
        )
    return cut


def _common_prefix(names: Sequence[str]) -> int:
    """Return the number of characters that all names have in common at the beginning."""
    first, last = min(names), max(names)
    return next((k for k, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), min(len(first), len(last)))


def set_fallback_fonts(artist: Figure | Axes) -> None:
    """Set fonts of all text of a figure or of axes for the characters that the default font lacks.

    Warns
    -----
    MissingFontWarning
        If no font has a character, which `escape_text` has escaped.
    """
    axes = artist.axes if isinstance(artist, Figure) else [artist]
    for ax in axes:
        for axis in (ax.xaxis, ax.yaxis):
            axis.get_ticklabels()  # creates the labels
    texts: list[Text] = [text for text in _iterate_texts(artist) if text.get_text()]
    characters = set("".join(text.get_text() for text in texts))
    families = list(dict.fromkeys(filter(None, map(_fallback_family, sorted(characters)))))
    if families:
        for text in texts:
            text.set_fontfamily([*text.get_fontfamily(), *families])
        for ax in axes:
            ax.tick_params(axis="both", which="both", labelfontfamily=[*rcParams["font.family"], *families])
    escapes = sorted({code for text in texts for code in _ESCAPE.findall(text.get_text())})
    lacking = [character for code in escapes if (character := chr(int(f"0x{code[2:]}", 0))).isprintable()]
    if lacking:
        listed = f"{' '.join(lacking[:8])}{' ...' * (len(lacking) > 8)}"
        warnings.warn(
            f"no font on this machine has {listed}; in the figure they are written as {escapes[0]}. Install one that "
            "has them, for instance Noto Sans CJK",
            MissingFontWarning,
            stacklevel=2,
        )


def _iterate_texts(artist: Artist) -> Iterator[Text]:
    for text in artist.findobj(Text):
        if isinstance(text, Text):
            yield text


def _fallback_family(character: str) -> str | None:
    """Return a font family that has this character: "" for the font of rcParams, None if no font has it."""
    if character.isascii() or ord(character) in _font_characters(findfont(FontProperties())):
        return ""
    return _family_with(character)


@cache
def _family_with(character: str) -> str | None:
    for font in sorted(fontManager.ttflist, key=lambda font: (font.name, font.fname)):
        usable = font.style == "normal" and not font.name.startswith(_FORMULA_FONTS)
        if usable and ord(character) in _font_characters(font.fname):
            return font.name
    return None


@cache
def _font_characters(path: str) -> frozenset[int]:
    try:
        return frozenset(get_font(path).get_charmap())
    except (OSError, RuntimeError):  # a font that matplotlib cannot read
        return frozenset()
