"""Describe how a similarity changes along the axis: monotone trend, slope, exponent; and when layers settle."""

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from jaxtyping import Bool, Float64
from scipy import stats

from repsim.errors import InvalidInputError

Batch = Float64[np.ndarray, "*batch points"]
_EXACT_POINTS = 60
"""Largest number of points, over all runs, for which the distribution of Kendall's statistic is computed exactly."""


@dataclass(frozen=True)
class Scale:
    """Scale of an axis: values, or their logarithms."""

    log: bool

    @classmethod
    def of(cls, values: Float64[np.ndarray, " points"]) -> "Scale":
        """Return the logarithmic scale if positive values span a factor of 10 or more, and the linear one otherwise.

        >>> Scale.of(np.array([0.0, 1.0, 10.0])).name, Scale.of(np.array([10.0, 20.0, 30.0])).name
        ('log', 'linear')
        """
        positive = values[values > 0]
        spans = len(positive) >= 2 and positive.max() >= 10 * positive.min()
        return cls(bool(spans and (values >= 0).all()))

    @property
    def name(self) -> str:
        """``log`` or ``linear``."""
        return "log" if self.log else "linear"

    def __call__(self, values: Float64[np.ndarray, "*shape"]) -> Float64[np.ndarray, "*shape"]:
        """Return the values, or their common logarithms; NaN for values that have none."""
        if not self.log:
            return np.asarray(values, np.float64)
        return np.log10(np.where(values > 0, values, np.nan))


def slope(x: Float64[np.ndarray, " points"], y: Batch) -> Float64[np.ndarray, "*batch"]:
    """Compute the least-squares slope of y over x, of the points at which x and all y are defined.

    sum_k (x_k - mean x) y_k / sum_k (x_k - mean x)^2; NaN with fewer than two different x.

    >>> round(float(slope(np.array([1.0, 2.0, 4.0]), np.array([3.0, 5.0, 9.0]))), 6)
    2.0
    """
    used = np.isfinite(x) & np.isfinite(y.reshape(-1, y.shape[-1])).all(0)
    if len(np.unique(x[used])) < 2:
        return np.full(y.shape[:-1], np.nan)
    centred = x[used] - x[used].mean()
    return np.asarray(y[..., used] @ centred / (centred**2).sum())


def exponent(values: Float64[np.ndarray, " points"], similarity: Batch, most: float = 1.0) -> Float64[np.ndarray, "*b"]:
    """Compute alpha of most - similarity ~ x^(-alpha): minus the least-squares slope of the logarithms.

    >>> x = np.array([1.0, 4.0, 16.0])
    >>> round(float(exponent(x, 1 - 0.5 * x**-0.25)), 6)
    0.25
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        rest = np.log(most - similarity)
    return -slope(np.log(np.where(values > 0, values, np.nan)), np.where(np.isfinite(rest), rest, np.nan))


@dataclass(frozen=True)
class Kendall:
    """Kendall's rank correlation over the points of one run or several, and its exact p-value."""

    tau: float
    """Concordant minus discordant pairs of points of one run, divided by their number; NaN without pairs."""
    p: float
    """Two-sided p-value if all orders of the points of a run are equally likely. With ties, or many points, that of a
    normal distribution with the variance of S and a correction for continuity."""


def kendall(runs: "list[tuple[Float64[np.ndarray, ' points'], Float64[np.ndarray, ' points']]]") -> Kendall:
    """Compute Kendall's tau of similarities along the axis, within runs, and the exact p-value of the sum over runs.

    S = sum over runs and pairs i < j of sign(x_j - x_i) sign(y_j - y_i). If the order of the points of a run is random,
    S is a sum of independent statistics, whose distribution is the convolution of those of single runs (Hirsch & Slack
    1984; Kendall 1970 for one run).

    Parameters
    ----------
    runs : list of pairs of array of shape (points,)
        Values of the axis, all different within a run, and similarities.

    Examples
    --------
    >>> kendall([(np.arange(5.0), np.array([1.0, 2, 3, 4, 5]))])  # 2 / 5!
    Kendall(tau=1.0, p=0.01666...)
    """
    total, pairs, variance, tied = 0, 0, 0.0, False
    counts: dict[int, float] = {0: 1.0}
    for all_x, all_y in runs:
        used = np.isfinite(all_x) & np.isfinite(all_y)
        x, y = all_x[used], all_y[used]
        signs = np.sign(x[:, None] - x) * np.sign(y[:, None] - y)
        total += int(np.tril(signs, -1).sum())
        pairs += len(x) * (len(x) - 1) // 2
        ties = np.unique(y, return_counts=True)[1]
        tied |= len(ties) < len(y)
        variance += (_weight(len(x)) - sum(map(_weight, ties.tolist()))) / 18
        if sum(len(run[0]) for run in runs) <= _EXACT_POINTS:
            counts = _convolved(counts, _inversions(len(x)))
    if not pairs:
        return Kendall(math.nan, math.nan)
    if tied or sum(len(run[0]) for run in runs) > _EXACT_POINTS:
        p = 2 * stats.norm.sf(max(0, abs(total) - 1) / math.sqrt(variance)) if variance > 0 else math.nan
    else:
        p = sum(weight for s, weight in counts.items() if abs(s) >= abs(total))
    return Kendall(total / pairs, float(np.minimum(1.0, p)))


def _weight(n: int) -> int:
    """Return n (n - 1) (2n + 5): 18 times the variance of S of n points, or what a tie of n points takes from it."""
    return n * (n - 1) * (2 * n + 5)


@lru_cache
def _inversions(n: int) -> "tuple[tuple[int, float], ...]":
    """Return the values of Kendall's S of n points in random order, with their probabilities."""
    probabilities = np.ones(1)
    for k in range(1, n + 1):
        probabilities = np.convolve(probabilities, np.full(k, 1 / k))
    pairs = n * (n - 1) // 2
    return tuple((pairs - 2 * inversions, float(p)) for inversions, p in enumerate(probabilities))


def _convolved(a: dict[int, float], b: "tuple[tuple[int, float], ...]") -> dict[int, float]:
    total: dict[int, float] = {}
    for s, p in a.items():
        for t, q in b:
            total[s + t] = total.get(s + t, 0.0) + p * q
    return total


@dataclass(frozen=True)
class Mean:
    """Mean over runs, with its 95 % interval by Student's t, and the p-value of a mean of 0."""

    mean: float
    low: float
    high: float
    p: float


def over_runs(values: Float64[np.ndarray, " runs"]) -> Mean:
    """Return the mean over runs; without an interval if there are fewer than two.

    >>> round(over_runs(np.array([1.0, 2.0, 3.0])).low, 3)
    -0.484
    """
    values = values[np.isfinite(values)]
    if not len(values):
        return Mean(math.nan, math.nan, math.nan, math.nan)
    mean = float(values.mean())
    if len(values) < 2:
        return Mean(mean, math.nan, math.nan, math.nan)
    return _with_error(mean, float(values.std(ddof=1) / math.sqrt(len(values))), len(values) - 1)


def over_pairs_of_runs(values: Float64[np.ndarray, " runs"]) -> Mean:
    """Return the mean over pairs of runs from u_r, the mean over the pairs of each run r, with a 95 % interval.

    Pairs that share a run are dependent, so that runs are left out and not pairs: without run r the mean over pairs is
    (R theta - 2 u_r) / (R - 2), which gives the jackknife's variance of a U-statistic, with Student's t of R - 1
    degrees of freedom. There is no interval of fewer than three runs.

    References
    ----------
    Arvesen. Jackknifing U-statistics. Annals of Mathematical Statistics 1969.

    Examples
    --------
    >>> over_pairs_of_runs(np.array([1.0, 2.0, 3.0])).mean
    2.0
    """
    values = values[np.isfinite(values)]
    runs = len(values)
    mean = float(values.mean()) if runs else math.nan
    if runs < 3:
        return Mean(mean, math.nan, math.nan, math.nan)
    error = 2 / (runs - 2) * math.sqrt((runs - 1) / runs * float(((values - mean) ** 2).sum()))
    return _with_error(mean, error, runs - 1)


def _with_error(mean: float, error: float, freedom: int) -> Mean:
    half = float(stats.t.ppf(0.975, freedom)) * error
    p = float(2 * stats.t.sf(abs(mean) / error, freedom)) if error > 0 else math.nan
    return Mean(mean, mean - half, mean + half, p)


def settled(
    values: Float64[np.ndarray, " points"], similarity: Batch, *, share: float, scale: Scale, most: float = 1.0
) -> Float64[np.ndarray, "*batch"]:
    """Compute from which value of the axis on a similarity to the last point stays high.

    The progress of a point is (s - s_first) / (most - s_first), where s_first is the similarity of the first point and
    ``most`` that of the last point with itself. The result is where progress rises above ``share`` for the last time,
    interpolated between two points on the scale of the axis (linearly from a value of 0, which has no logarithm).

    Parameters
    ----------
    values : array of shape (points,)
        Values of the axis, in increasing order.
    similarity : array of shape (..., points)
        Similarity to the last point, of the same layer.
    share : float
        Share of the way, between 0 and 1.
    scale : Scale
        Scale of the axis.
    most : float
        Similarity of equal layers.

    Returns
    -------
    array of shape (...)
        NaN if a similarity is missing, or the first point is not below ``most``.

    References
    ----------
    Raghu, Gilmer, Yosinski, Sohl-Dickstein. SVCCA. NeurIPS 2017, figure 4.

    Examples
    --------
    >>> float(settled(np.array([0.0, 10, 20, 40]), np.array([0.5, 0.6, 0.8, 1.0]), share=0.8, scale=Scale(log=False)))
    30.0
    """
    if not 0 < share < 1:
        raise InvalidInputError(f"settled_at: expected a share between 0 and 1, got {share:g}")
    first = similarity[..., :1]
    with np.errstate(divide="ignore", invalid="ignore"):
        progress = (similarity - first) / (most - first)
    progress = np.concatenate([progress[..., :-1], np.ones_like(progress[..., -1:])], -1)
    defined = np.isfinite(progress).all(-1) & (similarity[..., 0] < most)
    below: Bool[np.ndarray, "*batch points"] = progress < share
    last_below = len(values) - 1 - np.argmax(below[..., ::-1], axis=-1)  # the first point is below, with progress 0
    k = np.clip(last_below, 0, len(values) - 2)
    low, high = (np.take_along_axis(progress, (k + d)[..., None], -1)[..., 0] for d in (0, 1))
    with np.errstate(divide="ignore", invalid="ignore"):
        part = np.clip((share - low) / (high - low), 0, 1)
    left, right = values[k], values[k + 1]
    if scale.log:
        with np.errstate(divide="ignore", invalid="ignore"):
            between = np.where(left > 0, left * (right / np.where(left > 0, left, 1)) ** part, part * right)
    else:
        between = left + part * (right - left)
    return np.where(defined, between, np.nan)
