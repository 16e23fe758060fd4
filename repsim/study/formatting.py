"""Format numbers, p-values and lists of names for sentences and tables."""

import numpy as np

MOST_NAMES = 3
"""Number of samples, layers and the like that a sentence names."""

_MOST_DIGITS = 9
"""Number of digits after the point of the smallest interval that is not shown as 0."""


def number(value: float, low: float | None = None, high: float | None = None) -> str:
    """Format a value, with its interval if there is one; an interval of tiny numbers has more than three digits.

    >>> number(0.4182), number(0.4182, 0.401, 0.436), number(-0.0012)
    ('0.418', '0.418 (0.401 to 0.436)', '-0.001')
    >>> number(0.0003, 0.0001, 0.0004)
    '0.0003 (0.0001 to 0.0004)'
    """

    def plain(x: float, digits: int = 3) -> str:
        text = f"{x:.{digits}f}"
        return "0" if float(text) == 0 else text

    if low is None or high is None or np.isnan(low):
        return plain(value)
    digits = 3
    while digits < _MOST_DIGITS and {plain(x, digits) for x in (value, low, high)} == {"0"} and (low or high):
        digits += 1
    return f"{plain(value, digits)} ({plain(low, digits)} to {plain(high, digits)})"


def probability(p: float) -> str:
    """Format a p-value, which is never shown as 0.

    >>> probability(0.04), probability(0.0002)
    ('0.040', '< 0.001')
    """
    return "< 0.001" if p < 0.0005 else number(p)  # three digits would show 0


def p_value(p: float) -> str:
    """Format a p-value with its name.

    >>> p_value(0.04), p_value(0.0002)
    ('p = 0.040', 'p < 0.001')
    """
    text = probability(p)
    return f"p {text}" if text.startswith("<") else f"p = {text}"


def listed(names: list[str], most: int = MOST_NAMES) -> str:
    """Join the first names, and count the others.

    >>> listed(["a", "b", "c", "d", "e"]), listed(["a"])
    ('a, b, c and 2 more', 'a')
    """
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
