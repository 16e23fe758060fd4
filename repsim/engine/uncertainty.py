"""Estimate the uncertainty of values due to the choice of stimuli: jackknife, multiplier bootstrap and half-samples.

Stimuli are never drawn with replacement: a stimulus that occurs twice is similar to itself in every network, which
reintroduces the bias that debiasing removed. For a function of several values, such as a difference, apply the function
to their replicates first: ``jackknife(a - b, left_out_a - left_out_b)``, or ``interval_of(draws[:, 0] - draws[:, 1])``.
"""

from dataclasses import dataclass
from functools import cache

import numpy as np
from jaxtyping import Float64
from numpy.typing import ArrayLike

from repsim.errors import InvalidInputError
from repsim.runtime import tuning

Values = Float64[np.ndarray, "*shape"]
Replicates = Float64[np.ndarray, "count *shape"]


@dataclass(frozen=True, eq=False)
class Interval:
    """Confidence interval of each value; NaN where a replicate has no value."""

    low: Values
    high: Values
    se: Values
    """The standard error."""


@cache
def quantile(n: int, level: float = 0.95) -> float:
    """Return the half-width of a jackknife interval from n samples, in standard errors.

    >>> round(quantile(1000), 2)
    1.96
    """
    from scipy import stats  # noqa: PLC0415 - takes long to import

    return float(stats.t.ppf(_upper(level), n - 1))


def p_value_of(theta: float, se: float, n: int) -> float:
    """Return the two-sided p-value of Student's t test, with n - 1 degrees of freedom, that a value is 0.

    >>> round(p_value_of(2.0, 1.0, 61), 3)
    0.05
    """
    from scipy import stats  # noqa: PLC0415 - takes long to import

    return float(2 * stats.t.sf(abs(theta) / se, n - 1))


def influence(theta: ArrayLike, left_out: ArrayLike) -> Replicates:
    """Compute the influence of each stimulus on a value: I_i = (n - 1) (theta - theta_(-i)).

    The influence is positive for a stimulus that raises the value. If the value is a similarity of networks, these are
    stimuli on which the networks agree more than on others.

    Parameters
    ----------
    theta : array of shape (...)
        Values from all n stimuli.
    left_out : array of shape (n, ...)
        Values without each stimulus.

    Returns
    -------
    array of shape (n, ...)
        Influence of each stimulus.

    References
    ----------
    Efron, Stein. The jackknife estimate of variance. Annals of Statistics 1981.

    Examples
    --------
    >>> x = np.array([1.0, 2.0, 6.0])
    >>> influence(x.mean(), [np.delete(x, i).mean() for i in range(3)])
    array([-2., -1.,  3.])
    """
    theta, left_out = _replicates(theta, left_out)
    return np.asarray((len(left_out) - 1) * (theta - left_out))


def jackknife(theta: ArrayLike, left_out: ArrayLike, level: float = 0.95) -> Interval:
    """Compute jackknife confidence intervals theta +- t se.

    se^2 = (n - 1) / n sum_i (theta_(-i) - mean theta_(-i))^2, and t is the quantile of Student's t with n - 1 degrees
    of freedom.

    Parameters
    ----------
    theta : array of shape (...)
        Values from all n stimuli.
    left_out : array of shape (n, ...)
        Values without each stimulus, as from `repsim.engine.resampling.leave_one_out`.
    level : float
        Nominal coverage: the probability that the interval contains the value of infinitely many stimuli.

    Returns
    -------
    Interval
        Ends and standard error of each interval.

    Notes
    -----
    In simulations, for debiased CKA and partial CKA between 0.07 and 0.94, intervals of 95 % cover 93 to 97 % at n =
    200 and n = 1,000, and those from Fisher's z (arctanh) are no better. For unrelated networks se is too large by
    sqrt(2), as for every degenerate U-statistic, and intervals cover 99 %. Use a permutation test to decide whether
    networks are related at all.

    References
    ----------
    Efron, Stein. The jackknife estimate of variance. Annals of Statistics 1981.

    Examples
    --------
    >>> x = np.array([1.0, 2.0, 6.0])
    >>> interval = jackknife(x.mean(), [np.delete(x, i).mean() for i in range(3)])
    >>> bool(np.isclose(interval.se, x.std(ddof=1) / 3**0.5)), round(float(interval.high), 2)
    (True, 9.57)
    """
    theta, left_out = _replicates(theta, left_out)
    n = len(left_out)
    se = np.sqrt((n - 1) / n * ((left_out - left_out.mean(0)) ** 2).sum(0))
    return _interval(theta, se, quantile(n, level))


def errors_of(
    count: Float64[np.ndarray, "rows columns"] | int,
    total: Float64[np.ndarray, "rows columns"],
    squares: Float64[np.ndarray, "rows columns"],
) -> Float64[np.ndarray, "rows columns"]:
    """Return jackknife standard errors, from the sums of changes without each unit, and of their squares.

    They are those of `jackknife`, for values that are not in memory at once.
    """
    return np.asarray(np.sqrt((count - 1) / count * np.maximum(squares - total**2 / count, 0)))


def multiplier_bootstrap(theta: ArrayLike, influences: ArrayLike, draws: int = 2000, seed: int = 0) -> Replicates:
    """Draw joint multiplier bootstrap replicates: theta + mean_i (w_i - 1) (I_i - mean I), with weights w ~ Exp(1).

    Each draw reweights the stimuli, with the same weights for all values. The draws therefore show how values vary
    together, as needed for a difference or for all pairs of layers. The same seed gives the same weights for any n
    stimuli, so that draws from several calls are joint, too.

    Parameters
    ----------
    theta : array of shape (...)
        Values from all n stimuli.
    influences : array of shape (n, ...)
        Influence of each stimulus, as from `influence`.
    draws : int
        Number of draws, at least 2.
    seed : int
        Seed of the weights.

    Returns
    -------
    array of shape (draws, ...)
        Replicates. Their mean is theta, their covariance that of the jackknife (times (n - 1) / n).

    References
    ----------
    Rubin. The Bayesian bootstrap. Annals of Statistics 1981.
    van der Vaart, Wellner. Weak convergence and empirical processes. Springer 1996, section 3.6 (multipliers).

    Examples
    --------
    >>> x = np.random.default_rng(0).normal(size=(100, 2))
    >>> replicates = multiplier_bootstrap(x.mean(0), x - x.mean(0))
    >>> replicates.shape, (replicates.std(0) / x.std(0) * 10).round(1)
    ((2000, 2), array([1., 1.]))
    """
    theta, influences = _replicates(theta, influences)
    if draws < 2:
        raise InvalidInputError(f"expected at least 2 draws, got {draws}")
    n = len(influences)
    centred = (influences - influences.mean(0)).reshape(n, -1) / n
    rng = np.random.default_rng(seed)
    deviations = np.empty((draws, centred.shape[1]))
    step = max(1, tuning.current().weights_at_once // n)
    for start in range(0, draws, step):
        rows = deviations[start : start + step]
        weights = rng.standard_exponential((len(rows), n))
        np.matmul(weights, centred, out=rows)  # w instead of w - 1: the centred influences sum to 0
    return theta + deviations.reshape(draws, *theta.shape)


def interval_of(draws: ArrayLike, level: float = 0.95) -> Interval:
    """Compute the intervals between the (1 - level) / 2 and (1 + level) / 2 quantiles of draws.

    Parameters
    ----------
    draws : array of shape (count, ...)
        Replicates, as from `multiplier_bootstrap`.
    level : float
        Nominal coverage of the intervals.

    Returns
    -------
    Interval
        Quantiles, and the standard deviation of the draws as the standard error.

    Examples
    --------
    >>> interval = interval_of(np.arange(101.0), level=0.9)
    >>> round(float(interval.low), 9), round(float(interval.high), 9)
    (5.0, 95.0)
    """
    draws = _several(draws)
    upper = _upper(level)
    low, high = np.quantile(draws, [1 - upper, upper], axis=0)
    return Interval(np.asarray(low), np.asarray(high), np.asarray(draws.std(0, ddof=1)))


def half_samples(theta: ArrayLike, values: ArrayLike, n: int, m: int | None = None, level: float = 0.95) -> Interval:
    """Compute confidence intervals theta +- t se from random subsamples without replacement.

    Use it for measures without a leave-one-out formula. As Var(theta_m - theta) = sigma^2 (1/m - 1/n),
    se = sd(theta_m) sqrt(m / (n - m)) estimates sigma / sqrt(n). For m = n / 2 it is the standard deviation of the
    values.

    Parameters
    ----------
    theta : array of shape (...)
        Values from all n stimuli.
    values : array of shape (count, ...)
        Values from subsamples, as from `repsim.engine.resampling.subsampled`.
    n : int
        Number of stimuli.
    m : int, optional
        Number of stimuli in a subsample; by default n // 2.
    level : float
        Nominal coverage: the probability that the interval contains the value of infinitely many stimuli.

    Returns
    -------
    Interval
        Ends and standard error of each interval.

    Notes
    -----
    t has min(number of subsamples, n) - 1 degrees of freedom. The mean of the values does not enter: a bias that
    depends on n, as of mutual k nearest neighbours with k fixed, is not corrected.

    References
    ----------
    Politis, Romano, Wolf. Subsampling. Springer 1999.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> x = rng.normal(size=400)
    >>> interval = half_samples(x.mean(), [rng.choice(x, 200, replace=False).mean() for _ in range(2000)], 400)
    >>> round(float(interval.se / (x.std(ddof=1) / 20)), 1)
    1.0
    """
    theta, values = _replicates(theta, values)
    m = n // 2 if m is None else m
    if not 0 < m < n:
        raise InvalidInputError(f"expected subsamples of fewer than the n stimuli, got m = {m} and n = {n}")
    se = values.std(0, ddof=1) * np.sqrt(m / (n - m))
    return _interval(theta, se, quantile(min(len(values), n), level))


def _interval(theta: Values, se: Values | np.float64, width: float) -> Interval:
    return Interval(*(np.asarray(x) for x in (theta - width * se, theta + width * se, se)))


def _upper(level: float) -> float:
    """Return the probability below the upper end of an interval of this level."""
    if not 0 < level < 1:
        raise InvalidInputError(f"expected a level between 0 and 1, got {level}")
    return (1 + level) / 2


def _several(values: ArrayLike) -> Replicates:
    values = np.asarray(values, np.float64)
    if values.ndim == 0 or len(values) < 2:
        raise InvalidInputError(f"expected at least 2 replicates on the first axis, got the shape {values.shape}")
    return values


def _replicates(theta: ArrayLike, values: ArrayLike) -> tuple[Values, Replicates]:
    theta, values = np.asarray(theta, np.float64), _several(values)
    if values.shape[1:] != theta.shape:
        raise InvalidInputError(f"expected replicates of values {theta.shape}, got the shape {values.shape}")
    return theta, values
