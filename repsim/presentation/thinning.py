"""Choose some of many pairs for a figure that has no room for all."""

from collections.abc import Sequence

import numpy as np

MOST_PAIRS = 48
"""Largest number of pairs that a figure with a row for each pair shows."""
ENDS = 10
"""Number of pairs at either end of the order of more pairs that such a figure of the page shows."""


def thinned(values: Sequence[float], kinds: Sequence[str], order: Sequence[str], most: int = MOST_PAIRS) -> list[int]:
    """Choose pairs of every kind, evenly spaced in the order of their values, with the largest and the smallest.

    Parameters
    ----------
    values : sequence of float
        Value of every pair; NaN counts as the smallest.
    kinds : sequence of str
        Kind of every pair.
    order : sequence of str
        Kinds in the order in which they are shown.
    most : int
        Number of pairs that are shown; each kind has an equal part of it, and at least two.

    Returns
    -------
    list of int
        Positions of the chosen pairs, kind by kind, the largest values first. All pairs if they are not more than
        ``most``.

    Examples
    --------
    >>> thinned([0.1, 0.5, 0.3, 0.2, 0.4], "aaaaa", "a", most=3)
    [1, 2, 0]
    >>> thinned([0.1, 0.5, 0.3], "bab", "ab")
    [1, 2, 0]
    """
    ranked = np.argsort(-np.nan_to_num(np.array(values, np.float64), nan=-np.inf), kind="stable").tolist()
    chosen: list[int] = []
    for kind in order:
        of_kind = [k for k in ranked if kinds[k] == kind]
        room = len(of_kind) if len(values) <= most else min(len(of_kind), max(2, most // len(order)))
        chosen += [of_kind[k] for k in np.linspace(0, len(of_kind) - 1, room).round().astype(int).tolist()]
    return chosen


def ends(values: Sequence[float], count: int = ENDS) -> list[int]:
    """Return the positions of the ``count`` largest and then of the ``count`` smallest values, the largest first.

    NaN is neither.

    >>> ends([0.1, 0.5, float("nan"), 0.3, 0.2], 1)
    [1, 0]
    """
    numbers = np.array(values, np.float64)
    ranked = np.argsort(-numbers, kind="stable")[: np.isfinite(numbers).sum()].tolist()
    return ranked if len(ranked) <= 2 * count else [*ranked[:count], *ranked[-count:]]


def left_out(shown: int, count: int, noun: str = "pairs") -> str:
    """Return the sentence of a caption about what `thinned` left out; empty if it is nothing.

    >>> left_out(48, 4950)
    '48 of 4,950 pairs are drawn: of each kind the largest, the smallest, and others evenly spaced in order of value.'
    """
    if shown == count:
        return ""
    return (
        f"{shown} of {count:,} {noun} are drawn: of each kind the largest, the smallest, and others evenly spaced in "
        "order of value."
    )
