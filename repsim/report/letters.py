"""Show names as they are written: characters that are not visible, or turn the direction of a text, become escapes."""

import unicodedata
from typing import Any

_KEPT = "\n\t\u200c\u200d"
"""Line breaks of the citation, and joiners within a word, as of Persian and of emoji."""
_INVISIBLE = {"Cc", "Cf", "Cs", "Co", "Zl", "Zp"}


def is_visible(letter: str) -> bool:
    """Return whether a character is shown: no control character, and none that turns the direction of a text."""
    return letter in _KEPT or unicodedata.category(letter) not in _INVISIBLE


def escaped(value: Any) -> Any:
    r"""Replace such characters in all texts of a JSON value, as figures do, so that a name cannot turn its neighbours.

    >>> escaped({"resnet\u202e50": ["vit\u200f", 1]})
    {'resnet\\u202e50': ['vit\\u200f', 1]}
    """
    if isinstance(value, str):
        if value.isprintable():
            return value
        return "".join(letter if is_visible(letter) else f"\\u{ord(letter):04x}" for letter in value)
    if isinstance(value, dict):
        return {escaped(key): escaped(one) for key, one in value.items()}
    return [escaped(one) for one in value] if isinstance(value, list | tuple) else value
