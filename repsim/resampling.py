"""All pairs of layers with samples left out, permuted or drawn, at the cost of matrix products.

What statistics are made of, and no statistics yet: a value for every way to resample, each the exact one. No Gram
matrix and no decomposition is made a second time where the first one will do.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float64, Int64
from numpy.typing import NDArray
from torch import Tensor

from repsim.errors import InvalidInputError
from repsim.metrics import Metric
from repsim.metrics.resampled import (
    LeaveOneOut,
    Norms,
    gathers,
    groups,
    halved,
    interleaved,
    padded,
    permuted_products,
)
from repsim.progress import Progress, counter

Layers = Mapping[str, Any] | Sequence[Any]
"""The layers of one side: arrays (n, p), `Rows`, or what the metric's recipe made of them; None where it made nothing."""
MEMORY = 2**32
"""Bytes that Gram matrices may take at once, unless the caller says otherwise."""


def random_permutations(n: int, count: int, seed: int = 0) -> Int64[np.ndarray, "count n"]:
    """Draw permutations of n samples, the same for the same seed.

    The order as it is has no place of its own among them, and is drawn as rarely as any other: the value that a test
    looks at is for the test to add.

    Examples
    --------
    >>> random_permutations(5, 2)
    array([[4, 2, 3, 1, 0],
           [2, 4, 3, 0, 1]])
    """
    if n < 1 or count < 1:
        raise InvalidInputError(f"expected at least 1 sample and 1 permutation, got n = {n} and count = {count}")
    rng = np.random.default_rng(seed)
    return np.stack([rng.permutation(n) for _ in range(count)])


def random_subsamples(n: int, m: int, count: int, seed: int = 0) -> Int64[np.ndarray, "count m"]:
    """Draw subsamples of m of n samples without replacement, each in rising order, the same for the same seed.

    Examples
    --------
    >>> random_subsamples(9, 4, 2)
    array([[1, 4, 5, 8],
           [0, 1, 3, 6]])
    """
    if not (4 <= m <= n and count >= 1):
        raise InvalidInputError(f"expected 4 <= m <= n and at least 1 subsample, got m = {m}, n = {n}, count = {count}")
    rng = np.random.default_rng(seed)
    return np.stack([np.sort(rng.choice(n, m, replace=False)) for _ in range(count)])


def leave_one_out(
    rows: Layers, columns: Layers, metric: str | Metric[Any] = "cka", *, progress: Progress | None = None
) -> Float64[np.ndarray, "n rows columns"]:
    """Debiased CKA of all pairs with each sample left out, exactly, for about the price of the comparison.

    With A and B the U-centred Gram matrices of all n samples and D_i = sum_j A_ij B_ij, the HSIC_1 of the others is
    proportional to <A, B> - c D_i, c = 2 (n-2)/(n-3): leaving out a sample changes offsets of rows and columns, which
    HSIC_1 does not see, and the row sums, which become -A_ij (`LeaveOneOut` has the steps). Value i is therefore

        (<A, B> - c D_i^AB) / sqrt((<A, A> - c D_i^AA) (<B, B> - c D_i^BB)).

    For an RBF kernel whose width is a fraction of the median distance, the width stays that of all n samples.

    Parameters
    ----------
    rows, columns
        Layers over the same n samples: arrays (n, p), `Rows` that are read as they are needed, or factors.
    metric
        Debiased `CKA`, of either kernel.
    progress
        Called with the number of steps done, and of all.

    Returns
    -------
    array
        Value (i, a, b): row layer a and column layer b without sample i. In [-1, 1], and never clipped. NaN where there
        is no value: a constant layer, or one of which nothing but rounding errors is left without the sample.

    Raises
    ------
    InvalidInputError
        Another metric, fewer than 5 samples, sides with different samples.

    References
    ----------
    Song, Smola, Gretton, Bedo, Borgwardt. Feature selection via dependence maximization. JMLR 2012, eq. 5 (HSIC_1).
    Szekely, Rizzo. Partial distance correlation with methods for dissimilarities. Annals of Statistics 2014 (U-centring).

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> x, y = rng.normal(size=(20, 5)), rng.normal(size=(20, 3))
    >>> values = leave_one_out([x], [y])
    >>> values.shape, bool(np.isclose(values[7, 0, 0], registry.get("cka")(np.delete(x, 7, 0), np.delete(y, 7, 0))))
    ((20, 1, 1), True)
    """
    metric = _metric(metric)
    if not (_in_gram_space(metric) and metric.unbiased and metric.normalised):
        raise InvalidInputError(f"{metric.spec} has no exact leave-one-out; take debiased CKA: cka or cka:kernel=rbf")
    n, left, right = _prepared(rows, columns, metric)
    if n < 5:
        raise InvalidInputError(f"{n} samples are too few: with one left out, debiased CKA needs at least 4")
    values = np.full((n, len(left), len(right)), np.nan)
    a, b = _present(left), _present(right)
    if len(a) and len(b):
        _check_whole(metric, [*left, *right])
        sweep = LeaveOneOut([left[i] for i in a], [right[j] for j in b], metric)
        values[:, a[:, None], b] = sweep.left_out(counter(sweep.units, progress))
    return values


def permuted(
    rows: Layers,
    columns: Layers,
    metric: str | Metric[Any],
    permutations: NDArray[Any],
    *,
    memory: int = MEMORY,
    progress: Progress | None = None,
) -> Float64[np.ndarray, "count rows columns"]:
    """All pairs with the samples of one side permuted, exactly: value k compares rows with columns[permutations[k]].

    Permutation and centring commute, and norms do not change. So CKA needs <A, P B P'> alone, from centred Gram
    matrices that are made once:

        <A, P B P'> = sum_ij A_ij B_pi(i)pi(j),

    of which every unordered pair of samples is computed once. Metrics on bases (the CCA family) have theirs permuted:
    the rows of an orthonormal basis, permuted, are the basis of the permuted layer.

    Parameters
    ----------
    rows, columns
        Layers over the same n samples: arrays (n, p), `Rows`, or factors.
    metric
        A spec string or a metric.
    permutations
        (K, n), each row a permutation of 0 ... n - 1. The same one holds for all layers.
    memory
        Bytes that the Gram matrices may take at once. Where they take more, groups of layers are compared one after
        the other.
    progress
        Called with the number of steps done, and of all.

    Returns
    -------
    array
        Value (k, a, b): row layer a and column layer b, permuted by permutation k; in the metric's bounds. NaN where
        the comparison has no value.

    Raises
    ------
    InvalidInputError
        Rows that are no permutations; sides with different samples; a metric of whose factors it is not known what
        permutes them (the minibatch estimator, compressed readouts of blocks); Gram matrices of which not even one of
        each side fits.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> x, y, order = rng.normal(size=(20, 5)), rng.normal(size=(20, 3)), random_permutations(20, 100)
    >>> values = permuted([x], [y], "cka", order)
    >>> values.shape, bool(np.isclose(values[7, 0, 0], registry.get("cka")(x, y[order[7]])))
    ((100, 1, 1), True)
    """
    metric = _metric(metric)
    n, left, right = _prepared(rows, columns, metric)
    orders = _permutations(permutations, n)
    values = np.full((len(orders), len(left), len(right)), np.nan)
    a, b = _present(left), _present(right)
    if not (len(a) and len(b)):
        return values
    some, others = [left[i] for i in a], [right[j] for j in b]
    if _in_gram_space(metric):
        _check_whole(metric, some + others)
        found = _permuted_grams(some, others, metric, orders, memory, progress)
    else:
        step = counter(len(orders), progress)
        found = np.empty((len(orders), len(some), len(others)))
        others = [_held(factor, metric) for factor in others]
        for k, order in enumerate(orders):
            found[k] = metric.block(some, [_taken(factor, order) for factor in others])
            step()
    values[:, a[:, None], b] = found
    return values


def subsampled(
    rows: Layers,
    columns: Layers,
    metric: str | Metric[Any],
    samples: NDArray[Any],
    *,
    memory: int = MEMORY,
    progress: Progress | None = None,
) -> Float64[np.ndarray, "count rows columns"]:
    """All pairs on subsamples without replacement, exactly: value k compares rows[samples[k]] with columns[samples[k]].

    CKA takes the entries A_S, B_S of Gram matrices that were centred once, over all samples. HSIC does not see that
    they are centred over more: with a = A_S 1 and b = B_S 1, its m (m - 3)-fold is, debiased (Song et al. 2012, eq. 5),

        tr(A_S B_S) + (1'a)(1'b) / ((m-1)(m-2)) - 2/(m-2) a'b,

    and, biased, tr(A_S B_S) + (1'a)(1'b) / m^2 - 2/m a'b. For an RBF kernel whose width is a fraction of the median
    distance, the width stays that of all n samples. Every other metric is recomputed from the samples drawn.

    Parameters
    ----------
    rows, columns
        Layers over the same n samples: arrays (n, p) or `Rows`; for CKA factors will do.
    metric
        A spec string or a metric.
    samples
        (K, m), each row m different samples out of 0 ... n - 1, m >= 4.
    memory
        Bytes that the Gram matrices may take at once, as in `permuted`.
    progress
        Called with the number of steps done, and of all.

    Returns
    -------
    array
        Value (k, a, b): row layer a and column layer b on subsample k; in the metric's bounds. NaN where there is no
        value, as where a layer is constant on the subsample.

    Raises
    ------
    InvalidInputError
        Samples drawn twice (the bootstrap puts back the bias that the debiased estimator takes away), or out of range;
        fewer than the metric needs; sides with different samples; factors where the layers themselves are needed.

    References
    ----------
    Politis, Romano. Large sample confidence regions based on subsamples under minimal assumptions. Annals of
    Statistics 1994.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> x, y, drawn = rng.normal(size=(20, 5)), rng.normal(size=(20, 3)), random_subsamples(20, 10, 100)
    >>> values = subsampled([x], [y], "cka", drawn)
    >>> values.shape, bool(np.isclose(values[7, 0, 0], registry.get("cka")(x[drawn[7]], y[drawn[7]])))
    ((100, 1, 1), True)
    """
    metric = _metric(metric)
    if not _in_gram_space(metric):
        return _recomputed(rows, columns, metric, samples, progress)
    n, left, right = _prepared(rows, columns, metric)
    drawn = _subsamples(samples, n, metric)
    values = np.full((len(drawn), len(left), len(right)), np.nan)
    a, b = _present(left), _present(right)
    if len(a) and len(b):
        some, others = [left[i] for i in a], [right[j] for j in b]
        _check_whole(metric, some + others)
        values[:, a[:, None], b] = _drawn_grams(some, others, metric, drawn, memory, progress)
    return values


def _permuted_grams(
    rows: list[Any],
    columns: list[Any],
    metric: Metric[Any],
    orders: Int64[Tensor, "count n"],
    memory: int,
    progress: Progress | None,
) -> Float64[np.ndarray, "count rows columns"]:
    """<A, P B P'> / (||A|| ||B||). The side with fewer layers is the one that is gathered."""
    if len(columns) > len(rows):  # <A, P B P'> = <P'A P, B>
        return _permuted_grams(columns, rows, metric, orders.argsort(1), memory, progress).swapaxes(1, 2)
    n, dtype, times = _common(rows + columns)

    def size(n: int, r: int, c: int) -> int:
        return (n * n * (padded(c, dtype.itemsize) + 1) + n * (n // 2 + 1) * r) * dtype.itemsize

    pairs = groups(len(rows), len(columns), n, memory, size)
    width = padded(pairs[0][1].stop - pairs[0][1].start, dtype.itemsize)
    values = np.empty((len(orders), len(rows), len(columns)))
    like = torch.empty(0, dtype=dtype, device=rows[0].draws[0].device)
    steps = times * sum(
        len(gathers(len(orders), (n // 2 + 1) * padded(j.stop - j.start, dtype.itemsize), like)) for _, j in pairs
    )
    del width
    step = counter(steps, progress)
    values[:] = 0
    for draw in range(times):
        before: slice | None = None
        for i, j in pairs:
            if j != before:
                whole = None  # before the next is made: there is no room for both
                whole = interleaved([layer.draws[draw - 1] for layer in columns[j]], dtype, unbiased=metric.unbiased)
                before = j
            assert whole is not None
            half = halved([layer.draws[draw] for layer in rows[i]], dtype, unbiased=metric.unbiased)
            products = permuted_products(half, whole, orders, step)
            values[:, i, j] += products[:, :, : j.stop - j.start].cpu().numpy() / times
    if metric.normalised:
        values /= Norms(rows, metric).norms()[:, None]
        values /= Norms(columns, metric).norms()
    return values
