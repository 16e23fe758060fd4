"""Estimate a similarity with its interval over samples, and the difference of two similarities with its test."""

import itertools
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from repsim import metrics as registry
from repsim.engine.resampling import check_leaves_one_out, check_units, left_out_with_values
from repsim.engine.uncertainty import jackknife, p_value_of
from repsim.errors import InvalidArgumentError, InvalidInputError, UndefinedValueError
from repsim.metrics import Metric
from repsim.metrics.recipes.groups import Groups, GroupsLike
from repsim.runtime.arrays import same_rows

LEVEL = 0.95
"""Level of an interval, if none is named."""
_ROUNDING = 1e-7
"""Difference of similarities that rounding errors alone explain: large products are float32."""


@dataclass(frozen=True)
class Estimate:
    """Similarity of two representations with its interval over samples; ``float(estimate)`` is the value."""

    value: float
    """The similarity."""
    low: float
    """Lower end of the interval."""
    high: float
    """Upper end of the interval."""
    level: float
    """Nominal coverage: the probability that the interval contains the value of infinitely many samples."""
    se: float
    """Standard error over samples, that of the jackknife."""
    n: int
    """Number of samples."""
    groups: int | None
    """Number of groups that were left out as wholes; None if every sample is independent."""

    def __float__(self) -> float:
        return self.value

    def __str__(self) -> str:
        units = f"{self.n:,} samples" + ("" if self.groups is None else f" in {self.groups:,} groups")
        return f"{self.value:z.3f} ({100 * self.level:g} % interval {self.low:z.3f} to {self.high:z.3f}, {units})"


@dataclass(frozen=True)
class Difference(Estimate):
    """Difference of two similarities over the same samples, with its interval and its test."""

    p: float
    """Two-sided p-value of the hypothesis that both similarities are equal."""
    first: float
    """The first similarity."""
    second: float
    """The second similarity."""

    def __float__(self) -> float:
        return self.value

    def __str__(self) -> str:
        return f"{self.first:z.3f} - {self.second:z.3f} = {super().__str__()}, p = {self.p:.2g}"


def estimate(
    x: Any, y: Any, metric: str | Metric[Any] = "cka", *, level: float = LEVEL, groups: GroupsLike | None = None
) -> Estimate:
    """Estimate the similarity of two arrays with its jackknife interval; `repsim.similarity` documents it."""
    left_out = _LeftOut([(x, y)], metric, level, groups)
    value = left_out.values[0]
    interval = jackknife(value, left_out.without[:, 0], level)
    return Estimate(value, float(interval.low), float(interval.high), level, float(interval.se), *left_out.counts)


def similarity_difference(
    first: tuple[Any, Any],
    second: tuple[Any, Any],
    metric: str | Metric[Any] = "cka",
    *,
    level: float = LEVEL,
    groups: GroupsLike | None = None,
) -> Difference:
    """Compare two similarities over the same samples: is A more similar to B than to C?

    With theta = s(a, b) - s(c, d), and theta_(-i) the same without sample i, exactly,

        se^2 = (n - 1) / n sum_i (theta_(-i) - mean theta_(-i))^2,    t = theta / se,

    with n - 1 degrees of freedom. Both similarities are computed without the same sample, so that what samples add to
    both of them cancels. Two intervals that overlap do not show that the similarities are equal; this test decides.

    Parameters
    ----------
    first, second : pair of array-like
        Two pairs of representations, ``(a, b)`` and ``(c, d)``, each of shape (n, features); the rows of all of them
        are the same samples in the same order. For "is A nearer to B than to C" they are ``(a, b)`` and ``(a, c)``.
    metric : str or Metric
        Debiased CKA: ``cka``, or ``cka:kernel=rbf`` with any width.
    level : float
        Nominal coverage of the interval.
    groups : sequence of n int or str, optional
        Group of each sample, for samples that are not independent, such as the frames of a scene. CKA is then computed
        from pairs of samples of different groups, and whole groups are left out.

    Returns
    -------
    Difference
        ``value`` = ``first`` - ``second`` in [-2, 2], the ends ``low`` and ``high`` of its interval, which may lie
        outside, its ``level``, the standard error ``se``, the two-sided ``p``, the number ``n`` of samples, and the
        number of ``groups`` or None. If value and standard error are at most 1e-7, they are rounding errors, and p is
        1.

    Raises
    ------
    InvalidInputError
        If the metric is another one, arrays have different numbers of samples or row names, or fewer than 5, or as
        for `repsim.leave_one_out`.
    UndefinedValueError
        If a similarity is undefined, or is undefined without one of the samples.

    Notes
    -----
    The p-value is about samples: would more samples of this kind show a difference between these networks? It is not
    about networks trained with other seeds. It is that of one test; correct it if you make several. If A is unrelated
    to both B and C the test is cautious: the jackknife counts the variance of unrelated layers twice
    (docs/intervals.md).

    References
    ----------
    Efron, Stein. The jackknife estimate of variance. Annals of Statistics 1981.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> a = rng.normal(size=(200, 10))
    >>> b, c = a + rng.normal(size=(200, 10)), a + 2 * rng.normal(size=(200, 10))
    >>> difference = similarity_difference((a, b), (a, c))
    >>> print(difference)
    0.487 - 0.192 = 0.295 (95 % interval 0.249 to 0.341, 200 samples), p = 3e-27
    >>> difference.low > 0.2
    True
    """
    left_out = _LeftOut([first, second], metric, level, groups)
    one, other = left_out.values
    theta = one - other
    interval = jackknife(theta, left_out.without[:, 0] - left_out.without[:, 1], level)
    se = float(interval.se)
    equal = max(abs(theta), se) <= _ROUNDING
    p = 1.0 if equal else p_value_of(theta, se, len(left_out.without))
    return Difference(theta, float(interval.low), float(interval.high), level, se, *left_out.counts, p, one, other)


class _LeftOut:
    """Debiased CKA of some pairs of arrays, of all samples and without each sample or group."""

    def __init__(
        self, pairs: list[tuple[Any, Any]], metric: str | Metric[Any], level: float, groups: GroupsLike | None
    ) -> None:
        metric = metric if isinstance(metric, Metric) else registry.get(metric)
        check_leaves_one_out(metric)
        check_level(level)
        for pair in pairs:
            if not (isinstance(pair, tuple | list) and len(pair) == 2):
                raise InvalidInputError("expected two pairs of arrays: similarity_difference((a, b), (a, c))")
        names = ["x", "y"] if len(pairs) == 1 else [f"{name}[{k}]" for name in ("first", "second") for k in (0, 1)]
        same_rows(dict(zip(names, itertools.chain(*pairs), strict=True)))
        with torch.no_grad():
            values = [float(metric(*pair)) for pair in pairs]  # checks the arrays, and warns
            n = len(pairs[0][0])
            check_units(n)
            rows, columns = zip(*pairs, strict=True)
            of = None if groups is None else Groups.of(groups, n)
            whole, without = left_out_with_values(rows, columns, metric, groups=of, progress=False)
        grouped = of is not None and not of.trivial
        at = np.arange(len(pairs))
        self.values: list[float] = whole[at, at].tolist() if grouped else values
        self.without: NDArray[np.float64] = without[:, at, at]
        self.counts = n, of.count if of is not None and grouped else None
        if np.isnan([*self.values, *self.without.ravel()]).any():
            unit = "groups" if grouped else "samples"
            raise UndefinedValueError(f"no interval: {metric.spec} is undefined without one of the {unit}")


def level_of(interval: float | bool | np.bool_ | None) -> float | None:
    """Return the level of an interval: 0.95 for True; None for False and None, which ask for no interval.

    >>> level_of(True), level_of(0.9), level_of(np.bool_(False)), level_of(np.float64(0.9))
    (0.95, 0.9, None, 0.9)
    """
    if interval is None:
        return None
    if isinstance(interval, bool | np.bool_):
        return LEVEL if interval else None
    check_level(interval, "interval")
    return float(interval)


def check_level(level: float, name: str = "level") -> None:
    """Raise `InvalidArgumentError` if a level is not a number between 0 and 1."""
    if isinstance(level, bool | np.bool_) or not isinstance(level, int | float | np.number) or not 0 < level < 1:
        raise InvalidArgumentError(name, "a number between 0 and 1, such as 0.95", level)
