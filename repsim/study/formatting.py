"""Format numbers, p-values and lists of names for sentences and tables."""

import numpy as np

MOST_NAMES = 3
"""Number of samples, layers and the like that a sentence names."""


def number(value: float, low: float | None = None, high: float | None = None) -> str:
    """Format a value, with its interval if there is one.

    >>> number(0.4182), number(0.4182, 0.401, 0.436), number(-0.0012)
    ('0.418', '0.418 (0.401 to 0.436)', '-0.001')
    """

    def plain(x: float) -> str:
        text = f"{x:.3f}"
        return "0" if text in {"0.000", "-0.000"} else text

    if low is None or high is None or np.isnan(low):
        return plain(value)
    return f"{plain(value)} ({plain(low)} to {plain(high)})"


def probability(p: float) -> str:
    """Format a p-value, which is never shown as 0.

    >>> probability(0.04), probability(0.0002)
    ('0.040', '< 0.001')
    """
    return "< 0.001" if p < 0.0005 else number(p)  # three digits would show 0


def listed(names: list[str], most: int = MOST_NAMES) -> str:
    """Join the first names, and count the others.

    >>> listed(["a", "b", "c", "d", "e"]), listed(["a"])
    ('a, b, c and 2 more', 'a')
    """
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
