"""Adjust p-values for multiple tests."""

import numpy as np
from jaxtyping import Float64, Int64
from numpy.typing import ArrayLike

from repsim.errors import InvalidInputError


def holm(p: ArrayLike) -> Float64[np.ndarray, "..."]:
    """Adjust p-values by Holm's method, which controls the family-wise error rate.

    If all hypotheses with an adjusted p-value of at most alpha are rejected, the probability of any false rejection is
    at most alpha, whatever the dependence of the tests. With sorted p_(1) <= ... <= p_(m), the i-th adjusted p-value is
    max_{j <= i} min(1, (m - j + 1) p_(j)).

    Parameters
    ----------
    p : array of any shape
        p-values, all of them of one family of tests. NaN stays NaN, and is not counted.

    Returns
    -------
    array of the shape of p
        Adjusted p-values.

    References
    ----------
    Holm. A simple sequentially rejective multiple test procedure. Scandinavian Journal of Statistics 1979.

    Examples
    --------
    >>> holm([0.01, 0.04, np.nan, 0.03]).tolist()
    [0.03, 0.06, nan, 0.06]
    """
    ps, defined, order = _sorted(p)
    ps[defined[order]] = np.minimum(1, np.maximum.accumulate(ps[defined[order]] * np.arange(len(order), 0, -1)))
    return ps.reshape(np.shape(p))


def hommel(p: ArrayLike) -> Float64[np.ndarray, "..."]:
    """Adjust p-values by Hommel's method, which controls the family-wise error rate.

    It is the closed test whose intersections are tested by Simes' method, and rejects at least what Holm's method
    does. All hypotheses are rejected if every p-value is at most alpha. The tests must be independent or positively
    dependent.

    Parameters
    ----------
    p : array of any shape
        p-values, all of them of one family of tests. NaN stays NaN, and is not counted.

    Returns
    -------
    array of the shape of p
        Adjusted p-values.

    References
    ----------
    Hommel. A stagewise rejective multiple test procedure based on a modified Bonferroni test. Biometrika 1988.
    Wright. Adjusted p-values for simultaneous inference. Biometrics 1992 (the algorithm).

    Examples
    --------
    >>> hommel([0.01, 0.04, np.nan, 0.03]).tolist()
    [0.03, 0.04, nan, 0.04]
    """
    ps, defined, order = _sorted(p)
    m = len(order)
    if m:
        sorted_p = ps[defined[order]]
        lowest = np.full(m, np.min(m / np.arange(1, m + 1) * sorted_p))  # m / m * p is p, without rounding
        adjusted = lowest.copy()
        for size in range(m - 1, 1, -1):  # intersections of `size` hypotheses
            last = m - size + 1
            bound = np.min(size / np.arange(2, size + 1) * sorted_p[last:])
            lowest[:last] = np.minimum(size * sorted_p[:last], bound)
            lowest[last:] = lowest[last - 1]
            adjusted = np.maximum(adjusted, lowest)
        ps[defined[order]] = np.maximum(adjusted, sorted_p)
    return ps.reshape(np.shape(p))


def benjamini_hochberg(p: ArrayLike) -> Float64[np.ndarray, "..."]:
    """Adjust p-values by the method of Benjamini and Hochberg, which controls the false discovery rate.

    If all hypotheses with an adjusted p-value of at most alpha are rejected, the expected share of false rejections is
    at most alpha. The tests must be independent or positively dependent. With sorted p-values, the i-th adjusted
    p-value is min_{j >= i} min(1, m p_(j) / j).

    Parameters
    ----------
    p : array of any shape
        p-values, all of them of one family of tests. NaN stays NaN, and is not counted.

    Returns
    -------
    array of the shape of p
        Adjusted p-values.

    References
    ----------
    Benjamini, Hochberg. Controlling the false discovery rate. Journal of the Royal Statistical Society B 1995.

    Examples
    --------
    >>> benjamini_hochberg([0.01, 0.04, np.nan, 0.03]).tolist()
    [0.03, 0.04, nan, 0.04]
    """
    ps, defined, order = _sorted(p)
    m = len(order)
    descending = order[::-1]
    ps[defined[descending]] = np.minimum.accumulate(np.minimum(1, ps[defined[descending]] * m / np.arange(m, 0, -1)))
    return ps.reshape(np.shape(p))


def _sorted(
    p: ArrayLike,
) -> tuple[Float64[np.ndarray, " all"], Int64[np.ndarray, " defined"], Int64[np.ndarray, " defined"]]:
    """Return the flattened p-values, the positions of those that are not NaN, and the order that sorts these."""
    ps = np.array(p, dtype=np.float64).ravel()
    (defined,) = np.nonzero(~np.isnan(ps))
    if ((ps[defined] < 0) | (ps[defined] > 1)).any():
        raise InvalidInputError("p-values are between 0 and 1")
    return ps, defined, np.argsort(ps[defined])
