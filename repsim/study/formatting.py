"""Numbers, probabilities and lists of names as they stand in sentences."""

import numpy as np

_NAMED = 3
"""Samples, layers and the like that are named."""


def number(value: float, low: float | None = None, high: float | None = None) -> str:
    """A value, and its interval where there is one.

    >>> number(0.4182), number(0.4182, 0.401, 0.436), number(-0.0012)
    ('.418', '.418 (.401 to .436)', '-.001')
    """

    def plain(each: float) -> str:
        text = f"{each:.3f}"
        return (
            text.replace("0.", ".", 1)
            if abs(each) < 1 and text not in {"0.000", "-0.000", "1.000", "-1.000"}
            else ("0" if text in {"0.000", "-0.000"} else text)
        )

    if low is None or high is None or np.isnan(low):
        return plain(value)
    return f"{plain(value)} ({plain(low)} to {plain(high)})"


def probability(p: float) -> str:
    """A p-value, which is never 0.

    >>> probability(0.04), probability(0.0002)
    ('.040', '< .001')
    """
    return "< .001" if p < 0.0005 else number(p)  # what three digits show as 0


def listed(names: list[str], most: int = _NAMED) -> str:
    """The first few names.

    >>> listed(["a", "b", "c", "d", "e"]), listed(["a"])
    ('a, b, c and 2 more', 'a')
    """
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
