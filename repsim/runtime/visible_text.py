"""Tell characters that are shown from those that command a terminal or turn a text, and write these as escapes."""

import unicodedata
from typing import Any

_BREAKS = "\r\v\f\x1c\x1d\x1e\x1f\x85\u2028\u2029"
"""Breaks of lines other than the usual one."""


def is_visible(letter: str) -> bool:
    r"""Return whether a character is shown: no control character, and none that turns the direction of a text.

    Joiners within a word, as of Persian and of emoji, are kept.

    >>> [is_visible(letter) for letter in "a\n\x1b\u202e\u200d"]
    [True, True, False, False, True]
    """
    return letter.isspace() or letter in "\u200c\u200d" or unicodedata.category(letter) not in {"Cc", "Cf", "Cs", "Co"}


def visible(text: str) -> str:
    r"""Return a text with characters that are not shown, or that command a terminal, as escapes.

    >>> print(visible("net\x1b[31m \u202e"))
    net\x1b[31m \u202e
    """
    shown = (c if is_visible(c) and c not in _BREAKS else _escape(c) for c in text)
    return text if text.isascii() and text.isprintable() else "".join(shown)


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
