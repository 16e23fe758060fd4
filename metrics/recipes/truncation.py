"""Number of leading directions that explain a share of the variance of a layer."""

from jaxtyping import Float64
from torch import Tensor

_TIE = 1e-6
"""Share of s_1 up to which singular values are equal: rounding a layer to float32 changes them by about so much, and
turns the directions of equal ones freely into each other."""


def enough(s: Float64[Tensor, " r"], total: float, variance: float) -> int:
    """Return the smallest k with sum_{i<=k} (s_i / s_1)^2 >= variance x total."""
    explained = (s / s[0]).square().cumsum(0)
    return min(len(s), int((explained < variance * total).sum()) + 1)


def with_ties(s: Float64[Tensor, " r"], k: int) -> int:
    """Return the number of singular values, of decreasing ones, down to the last that is equal to the k-th."""
    gaps = s[k - 1 : -1] - s[k:]
    apart = (gaps > _TIE * s[0]).nonzero()
    return k + int(apart[0]) if len(apart) else len(s)


def leading(s: Float64[Tensor, " r"], total: float, variance: float) -> int:
    """Return the number of directions that explain a share of the variance, with those that tie with the last one.

    Which directions belong to some of several equal singular values is not determined, so all of them are kept.
    """
    return with_ties(s, enough(s, total, variance))
