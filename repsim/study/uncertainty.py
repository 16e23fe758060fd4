"""How far other stimuli would move a value: jackknife, multiplier bootstrap and half-samples.

Never stimuli drawn with replacement: a stimulus that is there twice is similar to itself in every network, and puts the
bias back that debiasing removed. What follows from several values, such as a difference, is computed from their
replicates first: ``jackknife(a - b, left_out_a - left_out_b)``, or ``interval_of(draws[:, 0] - draws[:, 1])``.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64
from numpy.typing import ArrayLike
from scipy import stats

from repsim.errors import InvalidInputError
from repsim.runtime import tuning

Values = Float64[np.ndarray, "*shape"]
Replicates = Float64[np.ndarray, "count *shape"]


@dataclass(frozen=True, eq=False)
class Interval:
    """A confidence interval of each value. NaN where a replicate has no value."""

    low: Values
    high: Values
    se: Values
    """The standard error."""


def influence(theta: ArrayLike, left_out: ArrayLike) -> Replicates:
    """Find how much each stimulus moves a value: I_i = (n - 1) (theta - theta_(-i)).

    Positive for a stimulus that raises the value: one on which the networks agree more than on others, if the value is
    their similarity.

    Parameters
    ----------
    theta
        (...), values from all n stimuli.
    left_out
        (n, ...), values without each of them.

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
    """Interval theta +- t se, se^2 = (n - 1) / n sum_i (theta_(-i) - mean theta_(-i))^2, t of n - 1 degrees of freedom.

    Parameters
    ----------
    theta
        (...), values from all n stimuli.
    left_out
        (n, ...), values without each of them, as of `repsim.engine.resampling.leave_one_out`.
    level
        How often the interval is to hold the value that infinitely many stimuli would give.

    Notes
    -----
    Simulated, for debiased CKA and partial CKA between .07 and .94, intervals of 95 % cover 93 to 97 % at n = 200 and
    1,000, and those of Fisher's z (arctanh) no better. For unrelated networks se is sqrt(2) too large, as for every
    degenerate U-statistic, and intervals cover 99 %: whether there is anything at all is for a permutation test to say.

    References
    ----------
    Efron, Stein. The jackknife estimate of variance. Annals of Statistics 1981.

    Examples
    --------
    >>> x = np.array([1.0, 2.0, 6.0])
    >>> found = jackknife(x.mean(), [np.delete(x, i).mean() for i in range(3)])
    >>> bool(np.isclose(found.se, x.std(ddof=1) / 3**0.5)), round(float(found.high), 2)
    (True, 9.57)
    """
    theta, left_out = _replicates(theta, left_out)
    n = len(left_out)
    se = np.sqrt((n - 1) / n * ((left_out - left_out.mean(0)) ** 2).sum(0))
    return _interval(theta, se, stats.t.ppf(_upper(level), n - 1))


def multiplier_bootstrap(theta: ArrayLike, influences: ArrayLike, draws: int = 2000, seed: int = 0) -> Replicates:
    """Draw values that other stimuli might have given, jointly: theta + mean_i (w_i - 1) (I_i - mean I), w ~ Exp(1).

    A draw weighs the stimuli anew, and has the same weights for every value: what holds of several values together, as
    of a difference or of all pairs of layers, can be read from the draws. The same seed gives the same weights to any n
    stimuli, so that several calls have their draws together, too.

    Parameters
    ----------
    theta
        (...), values from all n stimuli.
    influences
        (n, ...), as of `influence`.
    draws
        How many.
    seed
        Of the weights.

    Returns
    -------
    array
        (draws, ...); their mean is theta, their covariance that of the jackknife (times (n - 1) / n).

    References
    ----------
    Rubin. The Bayesian bootstrap. Annals of Statistics 1981.
    van der Vaart, Wellner. Weak convergence and empirical processes. Springer 1996, section 3.6 (multipliers).

    Examples
    --------
    >>> x = np.random.default_rng(0).normal(size=(100, 2))
    >>> found = multiplier_bootstrap(x.mean(0), x - x.mean(0))
    >>> found.shape, (found.std(0) / x.std(0) * 10).round(1)
    ((2000, 2), array([1., 1.]))
    """
    theta, influences = _replicates(theta, influences)
    if draws < 2:
        raise InvalidInputError(f"expected at least 2 draws, got {draws}")
    n = len(influences)
    centred = (influences - influences.mean(0)).reshape(n, -1) / n
    rng = np.random.default_rng(seed)
    moves = np.empty((draws, centred.shape[1]))
    step = max(1, tuning.current().weights_at_once // n)
    for start in range(0, draws, step):
        rows = moves[start : start + step]
        np.matmul(rng.standard_exponential((len(rows), n)), centred, out=rows)  # as for w - 1: their sum is 0
    return theta + moves.reshape(draws, *theta.shape)


def interval_of(draws: ArrayLike, level: float = 0.95) -> Interval:
    """Interval between the (1 - level) / 2 and (1 + level) / 2 quantiles of draws (count, ...); se is their deviation.

    Examples
    --------
    >>> found = interval_of(np.arange(101.0), level=0.9)
    >>> round(float(found.low), 9), round(float(found.high), 9)
    (5.0, 95.0)
    """
    draws = _several(draws)
    upper = _upper(level)
    low, high = np.quantile(draws, [1 - upper, upper], axis=0)
    return Interval(np.asarray(low), np.asarray(high), np.asarray(draws.std(0, ddof=1)))


def half_samples(theta: ArrayLike, values: ArrayLike, n: int, m: int | None = None, level: float = 0.95) -> Interval:
    """Interval theta +- t se from values on random subsamples without replacement, for what has no formula.

    Var(theta_m - theta) = sigma^2 (1/m - 1/n): se = sd(theta_m) sqrt(m / (n - m)) is sigma / sqrt(n), which for m = n/2
    is the standard deviation of the values about their own mean.

    Parameters
    ----------
    theta
        (...), values from all n stimuli.
    values
        (count, ...), values from subsamples, as of `repsim.engine.resampling.subsampled`.
    n, m
        The number of stimuli, and of those in a subsample: n // 2 if not given.
    level
        How often the interval is to hold the value that infinitely many stimuli would give.

    Notes
    -----
    t has as many degrees of freedom as there are subsamples or stimuli, whichever is less, minus 1. The mean of the
    values has no part in it: a bias that depends on n, as of mutual k nearest neighbours with k fixed, is not seen.

    References
    ----------
    Politis, Romano, Wolf. Subsampling. Springer 1999.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> x = rng.normal(size=400)
    >>> found = half_samples(x.mean(), [rng.choice(x, 200, replace=False).mean() for _ in range(2000)], 400)
    >>> round(float(found.se / (x.std(ddof=1) / 20)), 1)
    1.0
    """
    theta, values = _replicates(theta, values)
    m = n // 2 if m is None else m
    if not 0 < m < n:
        raise InvalidInputError(f"expected subsamples of fewer than the n stimuli, got m = {m} and n = {n}")
    se = values.std(0, ddof=1) * np.sqrt(m / (n - m))
    return _interval(theta, se, stats.t.ppf(_upper(level), min(len(values), n) - 1))


def _interval(theta: Values, se: Values | np.float64, quantile: float) -> Interval:
    return Interval(*(np.asarray(x) for x in (theta - quantile * se, theta + quantile * se, se)))


def _upper(level: float) -> float:
    """The level of the upper end."""
    if not 0 < level < 1:
        raise InvalidInputError(f"expected a level between 0 and 1, got {level}")
    return (1 + level) / 2


def _several(values: ArrayLike) -> Replicates:
    values = np.asarray(values, np.float64)
    if values.ndim == 0 or len(values) < 2:
        raise InvalidInputError(f"expected at least 2 replicates, one after the other, got the shape {values.shape}")
    return values


def _replicates(theta: ArrayLike, values: ArrayLike) -> tuple[Values, Replicates]:
    theta, values = np.asarray(theta, np.float64), _several(values)
    if values.shape[1:] != theta.shape:
        raise InvalidInputError(f"expected replicates of values {theta.shape}, got the shape {values.shape}")
    return theta, values
