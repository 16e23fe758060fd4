"""Writes names of any length and language into figures: shortened in the middle, in fonts that have their letters.

matplotlib would draw a character that its font lacks as an empty box, and let a long name push the axes off the figure.
"""

import re
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import cache

from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, fontManager, get_font
from matplotlib.text import Text
from matplotlib.textpath import TextToPath

from repsim.errors import MissingFontWarning

ELLIPSIS = "\N{HORIZONTAL ELLIPSIS}"
_JOINTS = r"[^ .+_/-]*[ .+_/-]|[^ .+_/-]+"
_NO_TEXT = ("Last", "cm", "STIXNon", "STIXSize")
"""Fonts that come with matplotlib for formulas, or to draw boxes, and have letters in places of others."""
_ESCAPE = re.compile(r"\\u[0-9a-f]{4}|\\U[0-9a-f]{8}")
_HEADS = (0.4, 0.2, 0.6, 0.8, 0.0)
"""Parts of what is left of a long name that its beginning gets; the first that keeps all names apart is taken."""


def plain(value: object) -> str:
    r"""Text that matplotlib shows as it is: between two dollars it would see a formula.

    Control characters, and characters that no font of this machine has, appear as escapes.

    >>> plain("loss in $"), plain("a\nb")
    ('loss in \\$', 'a\\nb')
    """
    text = str(value)
    if not text.isascii() or not text.isprintable():
        text = "".join(c if c.isprintable() and _family(c) is not None else _escaped(c) for c in text)
    return text.replace("$", r"\$")


def _escaped(character: str) -> str:
    return (
        character.encode("unicode_escape").decode() if not "\x80" <= character <= "\xff" else f"\\u{ord(character):04x}"
    )


def width_of(text: str, size: float) -> float:
    """Points that a line of text takes."""
    families = dict.fromkeys(filter(None, map(_family, text)))
    font = FontProperties(family=["sans-serif", *families], size=size)
    width, _, _ = TextToPath().get_text_width_height_descent(text, font, ismath=False)
    return float(width)


def fold(lines: Sequence[str], inches: float, size: float) -> str:
    """Break lines that would be longer, after a space or, in a long name, after one of its joints, or anywhere."""
    folded: list[str] = []
    for line in lines:
        folded.append("")
        for piece in re.findall(_JOINTS, line):
            fits = width_of(piece.rstrip(), size) <= 72 * inches
            if fits and folded[-1] and width_of(folded[-1] + piece.rstrip(), size) > 72 * inches:
                folded.append("")
            if fits:
                folded[-1] += piece
                continue
            for character in piece:
                if folded[-1] and width_of(folded[-1] + character, size) > 72 * inches:
                    folded.append("")
                folded[-1] += character
    return "\n".join(line.rstrip() for line in folded)


def shorten(names: Sequence[str], inches: float, size: float) -> list[str]:
    """Cut names that are too long in their middle, so that different names stay different.

    Parameters
    ----------
    names
        What stands along one axis.
    inches
        Room for each.
    size
        Of the font, in points.

    Returns
    -------
    list of str
        A name each, in the order given; those that fit as they are.

    Examples
    --------
    >>> shorten(["encoder.layers.0.attention.output.proj.weight", "head"], 1.2, 7)
    ['encoder.l…t.proj.weight', 'head']
    """
    different = list(dict.fromkeys(names))
    short = {name: _cut(name, 72 * inches, size, _HEADS[0]) for name in different}
    for together in _collisions(short):
        for head in _HEADS:
            tried = {name: _cut(name, 72 * inches, size, head) for name in together}
            others = {short[name] for name in different if name not in tried}
            if len(set(tried.values()) - others) == len(together):
                break
        else:
            tried = _at_their_difference(together, 72 * inches, size)
        short |= tried
    for together in _collisions(short):  # which nothing told apart: by their place on the axis
        for name in together:
            mark = f" #{different.index(name) + 1}"
            short[name] = _cut(name, 72 * inches - width_of(mark, size), size, _HEADS[0]) + mark
    return [short[name] for name in names]


def _collisions(short: dict[str, str]) -> list[list[str]]:
    """Names that were cut to the same."""
    counts = Counter(short.values())
    return [[name for name in short if short[name] == cut] for cut, count in counts.items() if count > 1]


def _cut(name: str, points: float, size: float, head: float) -> str:
    """Leave the beginning and the end of a name, ``head`` being the part of the beginning."""
    if len(name) < 4 or _about(name, size) <= points:
        return name
    low, high = 2, len(name) - 1  # characters that are left: the most that fit
    while low < high:
        middle = (low + high + 1) // 2
        if _about(_left(name, middle, head), size) <= points:
            low = middle
        else:
            high = middle - 1
    return _left(name, low, head)


def _about(text: str, size: float) -> float:
    """Points that a text takes, without what letters are moved together."""
    return sum(_advance(character, size) for character in text)


@cache
def _advance(character: str, size: float) -> float:
    return width_of(character, size)


def _left(name: str, count: int, head: float) -> str:
    first = round(count * head)
    return f"{name[:first].rstrip(chr(92))}{ELLIPSIS}{name[len(name) - (count - first) :]}"


def _at_their_difference(names: Sequence[str], points: float, size: float) -> dict[str, str]:
    """Cut what all have in common before the place where they differ, and what follows."""
    start, end = (max(0, _shared(side) - 2) for side in (names, [name[::-1] for name in names]))
    cut = {}
    for name in names:
        piece = name[start : max(start + 1, len(name) - end)]
        text = f"{name[:3]}{ELLIPSIS}{piece}{ELLIPSIS}{name[-3:]}"
        cut[name] = text if _about(text, size) <= points else _cut(f"{ELLIPSIS}{piece}{ELLIPSIS}", points, size, 0.5)
    return cut


def _shared(names: Sequence[str]) -> int:
    """Characters that all names begin with."""
    first, last = min(names), max(names)
    return next((k for k, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), min(len(first), len(last)))


def dress(drawn: Figure | Axes) -> None:
    """Give all text of a figure, or of axes, fonts for characters that the ordinary one lacks, where there are some.

    Warns with `MissingFontWarning` of characters that no font has, which `plain` has escaped.
    """
    axes = drawn.axes if isinstance(drawn, Figure) else [drawn]
    for ax in axes:
        for axis in (ax.xaxis, ax.yaxis):
            axis.get_ticklabels()  # made here, where they are not yet
    texts: list[Text] = [text for text in _texts(drawn) if text.get_text()]
    written = set("".join(text.get_text() for text in texts))
    families = list(dict.fromkeys(filter(None, map(_family, sorted(written)))))
    if families:
        for text in texts:
            text.set_fontfamily([*text.get_fontfamily(), *families])
        for ax in axes:
            ax.tick_params(axis="both", which="both", labelfontfamily=["sans-serif", *families])
    escapes = sorted({code for text in texts for code in _ESCAPE.findall(text.get_text())})
    lacking = [character for code in escapes if (character := chr(int(f"0x{code[2:]}", 0))).isprintable()]
    if lacking:
        some = f"{' '.join(lacking[:8])}{' ...' * (len(lacking) > 8)}"
        warnings.warn(
            f"no font on this machine has {some}; in the figure they are written as {escapes[0]}. Install one that "
            "has them, for instance Noto Sans CJK",
            MissingFontWarning,
            stacklevel=2,
        )


def _texts(drawn: Artist) -> Iterator[Text]:
    for artist in drawn.findobj(Text):
        if isinstance(artist, Text):
            yield artist


@cache
def _family(character: str) -> str | None:
    """A font family beside the ordinary one that has this character; "" for none needed, None where there is none."""
    if character.isascii() or ord(character) in _characters(findfont(FontProperties())):
        return ""
    for font in sorted(fontManager.ttflist, key=lambda font: (font.name, font.fname)):
        usable = font.style == "normal" and not font.name.startswith(_NO_TEXT)
        if usable and ord(character) in _characters(font.fname):
            return font.name
    return None


@cache
def _characters(path: str) -> frozenset[int]:
    try:
        return frozenset(get_font(path).get_charmap())
    except (OSError, RuntimeError):  # a font that matplotlib cannot read
        return frozenset()
