"""Adjusts p-values for how many tests there are."""

import numpy as np
from jaxtyping import Float64, Int64
from numpy.typing import ArrayLike

from repsim.errors import InvalidInputError


def holm(p: ArrayLike) -> Float64[np.ndarray, "..."]:
    """Adjust p-values for how many there are: reject those up to alpha, and a false rejection is at most that likely.

    Whatever the tests depend on. Sorted, p_(1) <= ... <= p_(m): max_{j <= i} min(1, (m - j + 1) p_(j)).

    Parameters
    ----------
    p
        Of any shape; all of them are one family. NaN stays NaN, and does not count.

    References
    ----------
    Holm. A simple sequentially rejective multiple test procedure. Scandinavian Journal of Statistics 1979.

    Examples
    --------
    >>> holm([0.01, 0.04, np.nan, 0.03]).tolist()
    [0.03, 0.06, nan, 0.06]
    """
    ps, there, order = _sorted(p)
    ps[there[order]] = np.minimum(1, np.maximum.accumulate(ps[there[order]] * np.arange(len(order), 0, -1)))
    return ps.reshape(np.shape(p))


def benjamini_hochberg(p: ArrayLike) -> Float64[np.ndarray, "..."]:
    """Adjust p-values: reject those up to alpha, and at most that share of the rejections is false, on average.

    For tests that are independent, or depend on each other positively. Sorted: min_{j >= i} min(1, m p_(j) / j).

    Parameters
    ----------
    p
        Of any shape; all of them are one family. NaN stays NaN, and does not count.

    References
    ----------
    Benjamini, Hochberg. Controlling the false discovery rate. Journal of the Royal Statistical Society B 1995.

    Examples
    --------
    >>> benjamini_hochberg([0.01, 0.04, np.nan, 0.03]).tolist()
    [0.03, 0.04, nan, 0.04]
    """
    ps, there, order = _sorted(p)
    m = len(order)
    falling = order[::-1]
    ps[there[falling]] = np.minimum.accumulate(np.minimum(1, ps[there[falling]] * m / np.arange(m, 0, -1)))
    return ps.reshape(np.shape(p))


def _sorted(
    p: ArrayLike,
) -> tuple[Float64[np.ndarray, " all"], Int64[np.ndarray, " known"], Int64[np.ndarray, " known"]]:
    """All p-values in a row, where those are that there are, and the order in which these rise."""
    ps = np.array(p, dtype=np.float64).ravel()
    (there,) = np.nonzero(~np.isnan(ps))
    if ((ps[there] < 0) | (ps[there] > 1)).any():
        raise InvalidInputError("p-values are between 0 and 1")
    return ps, there, np.argsort(ps[there])
