"""Tell characters that are shown from those that command a terminal or turn a text, and write these as escapes."""

import re
import unicodedata
from typing import Any

_BREAKS = "\r\v\f\x1c\x1d\x1e\x1f\x85\u2028\u2029"
"""Breaks of lines other than the usual one."""
_JOINERS = "\u200c\u200d"
"""Characters between letters, as of Persian, and between emoji, which change how these are shown."""
_SIGNS = "\u0600\u0601\u0602\u0603\u0604\u0605\u06dd\u070f\u0890\u0891\u08e2\U000110bd\U000110cd"
"""Signs around numbers, as the Arabic number sign: Unicode counts them as format characters, and they are shown."""
_FLAGS = re.compile(
    "\U0001f3f4(?:{})\U000e007f".format(
        "|".join("".join(chr(0xE0000 + ord(letter)) for letter in name) for name in ("gbeng", "gbsct", "gbwls"))
    )
)
"""Flags of England, Scotland and Wales: a flag, and its name in tag characters, which are hidden anywhere else."""


def is_visible(letter: str) -> bool:
    r"""Return whether a character is shown as it is.

    None is that commands a terminal (control characters), changes the order in which a text is read (marks of its
    direction), or hides, so that texts that differ look alike: the soft hyphen, spaces without width, tags, characters
    of private use. Joiners are kept, as words and emoji need them.

    >>> [is_visible(letter) for letter in "a\n\x1b\u202e\u200d\xad\u0600"]
    [True, True, False, False, True, False, True]
    """
    kept = letter.isspace() or letter in _JOINERS or letter in _SIGNS
    return kept or unicodedata.category(letter) not in {"Cc", "Cf", "Cs", "Co"}


def visible(text: str) -> str:
    r"""Return a text with characters that are not shown, or that command a terminal, as escapes.

    >>> print(visible("net\x1b[31m \u202e"))
    net\x1b[31m \u202e
    """
    if text.isascii() and text.isprintable():
        return text
    parts = re.split(f"({_FLAGS.pattern})", text)  # every second one is a flag
    return "".join(part if k % 2 else _visible_letters(part) for k, part in enumerate(parts))


def _visible_letters(text: str) -> str:
    return "".join(c if is_visible(c) and c not in _BREAKS else _escape(c) for c in text)


def all_visible(value: Any) -> Any:
    r"""Apply `visible` to all texts of a JSON value, names of its entries too.

    >>> all_visible({"resnet\u202e50": ["vit\u200f", 1]})
    {'resnet\\u202e50': ['vit\\u200f', 1]}
    """
    if isinstance(value, str):
        return visible(value)
    if isinstance(value, dict):
        return {all_visible(key): all_visible(one) for key, one in value.items()}
    return [all_visible(one) for one in value] if isinstance(value, list | tuple) else value


def _escape(letter: str) -> str:
    return letter if "\ud800" <= letter <= "\udfff" else letter.encode("unicode_escape").decode()
