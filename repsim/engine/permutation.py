"""Every pair of layers with the samples of one side permuted, many times: from Gram matrices, or from features.

Centring and permutation commute, and norms do not change. So a layer is prepared once, and <A, P B P'> is all that a
permutation asks for. In Gram space that is n^2 / 2 products a pair, however wide the layers are; in feature space it is
n p q, and a layer that is cut to a few directions (`repsim.engine.shared_directions`) makes it next to nothing.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from repsim.engine.shared_directions import Spanned
from repsim.engine.subsampling import Norms, centred, common, gathers, groups, interleaved, padded
from repsim.errors import InvalidInputError
from repsim.metrics.algorithms.feature_space import MomentSweep
from repsim.metrics.algorithms.gram_space import GramMeasure
from repsim.metrics.base import GramMetric, MomentMetric
from repsim.metrics.recipes.gram import Gram, KernelMatrix
from repsim.metrics.recipes.rows import cut, float64_device
from repsim.runtime import tuning
from repsim.runtime.progress import Progress, counter


def permuted(
    rows: Sequence[Any],
    columns: Sequence[Any],
    measure: GramMetric[Any],
    orders: Int64[Tensor, "count n"],
    *,
    memory: int,
    progress: Progress | None = None,
) -> Float64[np.ndarray, "count rows columns"]:
    """Every pair with the columns' samples in other orders: <A, P B P'> / (||A|| ||B||), by the cheaper algorithm.

    ``measure`` is a metric whose factors are of all samples. ``progress`` counts
    permutations of groups of layers.
    """
    if "moments" in measure.algorithms and _directions([*rows, *columns]) is not None:
        return _by_directions(rows, columns, measure, orders, progress=progress)
    if _features_are_cheaper(rows, columns, measure, len(orders), memory):
        return _by_features(rows, columns, measure, orders, progress=progress)
    return _by_grams(rows, columns, measure, orders, memory=memory, progress=progress)


def _features_are_cheaper(
    rows: Sequence[Any], columns: Sequence[Any], measure: GramMetric[Any], count: int, memory: int
) -> bool:
    """Count operations, where both algorithms give the values and fit into memory."""
    layers = [*rows, *columns]
    if "moments" not in measure.algorithms or not all(isinstance(a, Gram) and a.kernel == "linear" for a in layers):
        return False
    n, dtype, _ = common(layers)
    p, q = (sum(layer.p for layer in side) for side in (rows, columns))
    if 8 * n * (p + q) > memory:
        return False
    fewer, more = sorted((len(rows), len(columns)))
    try:
        pairs = _groups(more, fewer, n, memory, dtype.itemsize)
    except InvalidInputError:
        return True
    sizes = [(i.stop - i.start, j.stop - j.start) for i, j in pairs]
    rates = tuning.current()
    entry = sum(
        rates.permuted_entry + rates.permuted_layer * padded(c, dtype.itemsize) + rates.permuted_pair * r * c
        for r, c in sizes
    )
    return bool(2.0 * count * n * p * q < count * entry * n**2 / 2 + float(n) ** 2 * (p + q))


def _groups(rows: int, columns: int, n: int, memory: int, itemsize: int) -> list[tuple[slice, slice]]:
    """Groups of layers whose Gram matrices fit, those of the columns `interleaved` and those of the rows `halved`."""

    def size(n: int, r: int, c: int) -> int:
        return (n * n * (padded(c, itemsize) + 1) + n * (n // 2 + 1) * r) * itemsize

    return groups(rows, columns, n, memory, size)


def _by_grams(
    rows: Sequence[Any],
    columns: Sequence[Any],
    measure: GramMeasure,
    orders: Int64[Tensor, "count n"],
    *,
    memory: int,
    progress: Progress | None,
) -> Float64[np.ndarray, "count rows columns"]:
    """From centred Gram matrices: <A, P B P'> sums the entries of one times those of the other, permuted.

    The side with fewer layers is the one that is gathered.
    """
    if len(columns) > len(rows):  # <A, P B P'> = <P'A P, B>
        turned = _by_grams(columns, rows, measure, orders.argsort(1), memory=memory, progress=progress)
        return turned.swapaxes(1, 2)
    n, dtype, times = common([*rows, *columns])

    pairs = _groups(len(rows), len(columns), n, memory, dtype.itemsize)
    step = counter(times * len(pairs) * len(orders), progress)
    values = np.zeros((len(orders), len(rows), len(columns)))
    for draw in range(times):
        whole, before = torch.empty(0), slice(0)
        for i, j in pairs:
            if j != before:
                del whole  # before the next is made: there is no room for both
                whole = interleaved([layer.draws[draw - 1] for layer in columns[j]], dtype, unbiased=measure.unbiased)
                before = j
            half = halved([layer.draws[draw] for layer in rows[i]], dtype, unbiased=measure.unbiased)
            products = permuted_products(half, whole, orders, step)
            values[:, i, j] += products[:, :, : j.stop - j.start].cpu().numpy() / times
            del half
    if measure.normalised:
        values /= Norms(rows, measure).norms()[:, None]
        values /= Norms(columns, measure).norms()
    return measure.finish(values)


def _by_features(
    rows: Sequence[Gram],
    columns: Sequence[Gram],
    measure: GramMetric[Any],
    orders: Int64[Tensor, "count n"],
    *,
    progress: Progress | None,
) -> Float64[np.ndarray, "count rows columns"]:
    """From features: with g_i = ||x_i||^2 and h_i = ||y_i||^2, debiased (biased CKA has the first term only),

    <A, P B P'> = ||X'PY||^2 - n/(n-2) sum_i g_i h_pi(i) + (sum_i g_i)(sum_i h_i)/((n-1)(n-2)).

    The side with fewer features is the one that is gathered.
    """
    if sum(layer.p for layer in columns) > sum(layer.p for layer in rows):
        turned = _by_features(columns, rows, measure, orders.argsort(1), progress=progress)
        return turned.swapaxes(1, 2)
    parts = _precisions(rows, columns)
    step = counter(len(parts) * len(orders), progress)
    values = np.zeros((len(orders), len(rows), len(columns)))
    for i, j, precision in parts:
        found = permuted_moments([rows[k] for k in i], [columns[k] for k in j], orders, precision, step)
        values[:, np.array(i)[:, None], j] = found.cpu().numpy()
    return _finished(values, rows, columns, measure, orders)


def _finished(
    values: Float64[np.ndarray, "count rows columns"],
    rows: Sequence[Gram],
    columns: Sequence[Gram],
    measure: GramMetric[Any],
    orders: Int64[Tensor, "count n"],
) -> Float64[np.ndarray, "count rows columns"]:
    """What debiasing takes from ||X'PY||^2, and norms."""
    n = rows[0].n
    if measure.unbiased:
        g, h = (
            torch.stack([layer.squared_norms for layer in side]).to(float64_device(rows[0].device))
            for side in (rows, columns)
        )
        for k, order in enumerate(orders):
            values[k] -= n / (n - 2) * (g @ h[:, order.to(h.device)].T).cpu().numpy()
        values += (torch.outer(g.sum(1), h.sum(1)) / ((n - 1) * (n - 2))).cpu().numpy()
    if measure.normalised:
        values /= np.array([_norm(layer, measure) for layer in rows])[:, None]
        values /= np.array([_norm(layer, measure) for layer in columns])
    return measure.finish(values)


def _directions(layers: Sequence[Any]) -> Float64[Tensor, "n k"] | None:
    """The directions that all of these layers are combinations of, where they share some (`shared_directions`)."""
    features = [layer.features for layer in layers if isinstance(layer, Gram) and isinstance(layer.features, Spanned)]
    shared = len(features) == len(layers) and all(x.directions is features[0].directions for x in features)
    return features[0].directions if shared else None


def _by_directions(
    rows: Sequence[Gram],
    columns: Sequence[Gram],
    measure: GramMetric[Any],
    orders: Int64[Tensor, "count n"],
    *,
    progress: Progress | None,
) -> Float64[np.ndarray, "count rows columns"]:
    """From shared directions, X = Q C and Y = Q D: ||X'PY||^2 = ||C' (Q'PQ) D||^2, and only Q is permuted."""
    Q = _directions(rows)
    assert Q is not None, "the caller has looked"
    C, D = (torch.cat([layer.features.loadings for layer in side], 1) for side in (rows, columns))  # type: ignore[attr-defined]
    of_rows, of_columns = (_membership(side).to(Q) for side in (rows, columns))
    step = counter(len(orders), progress)
    values = np.empty((len(orders), len(rows), len(columns)))
    for k, order in enumerate(orders):
        squares = (C.T @ (Q.T @ Q[order.to(Q.device)]) @ D).square_()
        values[k] = (of_rows @ squares @ of_columns.T).cpu().numpy()
        step()
    return _finished(values, rows, columns, measure, orders)


def _norm(layer: Gram, measure: GramMetric[Any]) -> float:
    """||A||; NaN where it is nothing but rounding errors."""
    assert isinstance(measure, MomentMetric), "feature space is not for this measure"
    sweep = MomentSweep([layer], [layer], [measure], chunk=tuning.current().run, room=tuning.current().unit_memory_kept)
    return float(np.sqrt(np.sum(list(sweep.parts(sweep.order)), axis=0)[-1]))


def _precisions(rows: Sequence[Gram], columns: Sequence[Gram]) -> list[tuple[list[int], list[int], torch.dtype]]:
    """Groups of rows and of columns that are multiplied in the layers' dtype, and in float64 where that is not enough.

    That is where a layer is narrow, or uneven: then debiasing takes away almost all of ||X'PY||^2.
    """
    careful = [
        [layer.p < tuning.current().narrow or layer.uneven or layer.dtype == torch.float64 for layer in side]
        for side in (rows, columns)
    ]
    (loose_rows, exact_rows), (loose_columns, exact_columns) = (
        [[k for k, each in enumerate(side) if each is exact] for exact in (False, True)] for side in careful
    )
    groups = [
        (loose_rows, loose_columns, torch.float32),
        (loose_rows, exact_columns, torch.float64),
        (exact_rows, list(range(len(columns))), torch.float64),
    ]
    return [group for group in groups if group[0] and group[1]]


def permuted_moments(
    rows: Sequence[Gram],
    columns: Sequence[Gram],
    permutations: Int64[Tensor, "count n"],
    dtype: torch.dtype,
    step: Callable[[], None],
) -> Float64[Tensor, "count rows columns"]:
    """||X'Y[pi]||^2 of all pairs for every permutation: products in this dtype over runs of samples, sums in float64.

    All features of a side stand side by side, and so do those of several permutations: one large product does it, of
    which every pair is a block. ``step`` is called once a permutation.
    """
    n, count = rows[0].n, len(permutations)
    place = float64_device(rows[0].device)
    device = place if dtype == torch.float64 else rows[0].device
    X, Y = (torch.cat([layer.rows(slice(0, n)).to(device, dtype) for layer in side], 1) for side in (rows, columns))
    of_rows, of_columns = (_membership(side).to(place) for side in (rows, columns))
    total = torch.zeros(count, len(rows), len(columns), dtype=torch.float64, device=place)
    blocks = list(cut(Y.shape[1], tuning.current().permuted_side))
    for q in blocks:
        y = Y[:, q].contiguous()
        for chunk in cut(count, max(1, tuning.current().permuted_side // y.shape[1])):
            some = permutations[chunk].T.contiguous().to(device)
            width = some.shape[1] * y.shape[1]
            met = y.new_empty(min(n, tuning.current().permuted_run) * some.shape[1], y.shape[1])
            for p in cut(X.shape[1], tuning.current().permuted_side):
                sums = torch.zeros(p.stop - p.start, width, dtype=torch.float64, device=place)
                product = X.new_empty(sums.shape)
                for run in cut(n, tuning.current().permuted_run):
                    where = some[run].flatten()
                    gathered = torch.index_select(y, 0, where, out=met[: len(where)]).view(-1, width)
                    if dtype == torch.float64:
                        sums.addmm_(X[run, p].T, gathered)
                    else:
                        sums += torch.mm(X[run, p].T, gathered, out=product).to(place)
                squares = (of_rows[:, p] @ sums.square_()).view(len(rows), -1, y.shape[1]) @ of_columns[:, q].T
                total[chunk] += squares.transpose(0, 1)
            if q == blocks[-1]:
                for _ in range(some.shape[1]):
                    step()
    return total


def _membership(layers: Sequence[Gram]) -> Float64[Tensor, "layers features"]:
    """1 where a feature, of all that stand side by side, is one of the layer's."""
    of_layers: Tensor = torch.block_diag(*(torch.ones(1, layer.p, dtype=torch.float64) for layer in layers))
    return of_layers


def halved(draws: Sequence[KernelMatrix], dtype: torch.dtype, *, unbiased: bool) -> Float[Tensor, "n layers half"]:
    """Every unordered pair of samples once: row i holds the weighted entries (i, i), (i, i + 1), ..., (i, i + n // 2).

    Columns go round from the last sample to the first. So all rows are equally long, which those of a triangle are not.
    """
    n, half = draws[0].n, draws[0].n // 2 + 1
    weights = torch.full((half,), 2, dtype=dtype, device=draws[0].device)
    weights[0] = 1
    if n % 2 == 0:
        weights[-1] = 1  # (i, i + n/2) is there a second time, in row i + n/2
    out = torch.empty(n, len(draws), half, dtype=dtype, device=draws[0].device)
    for k, draw in enumerate(draws):
        whole = centred(draw, dtype, unbiased=unbiased)
        for i in cut(n, 256):
            twice = torch.cat([whole[i], whole[i]], 1)
            round_ = twice.as_strided((i.stop - i.start, half), (2 * n + 1, 1), i.start)
            out[i, k] = round_ * weights
    return out


def permuted_products(
    rows: Float[Tensor, "n layers half"],
    columns: Float[Tensor, "n n w"],
    permutations: Int64[Tensor, "count n"],
    step: Callable[[], None],
) -> Float64[Tensor, "count layers w"]:
    """<A, B[pi][:, pi]> for every permutation pi: sums over half a row in the matrices' dtype, then in float64.

    One row of B after the other is in the cache, and what many permutations make of it is gathered from there; the
    rows of A that it meets are copied beside it, for one batched product. All of this goes into the same memory again
    and again. ``step`` is called once a permutation.
    """
    n, layers, half = rows.shape
    width, place = columns.shape[2], float64_device(rows.device)
    total = torch.zeros(len(permutations), layers, width, dtype=torch.float64, device=place)
    ahead = torch.arange(half, device=rows.device)
    for chunk in gathers(len(permutations), half * width, rows):
        some = permutations[chunk].to(rows.device)
        inverse, round_ = some.argsort(1), torch.cat([some, some], 1)
        met = rows.new_empty(len(some), half, width)
        there = rows.new_empty(len(some), layers, half)
        products = rows.new_empty(len(some), layers, width)
        for r in range(n):
            i = inverse[:, r]  # B's row r stands at A's row i
            where = round_.gather(1, i[:, None] + ahead)
            torch.index_select(columns[r], 0, where.flatten(), out=met.view(-1, width))
            torch.index_select(rows, 0, i, out=there)
            total[chunk] += torch.bmm(there, met, out=products).to(place)
        for _ in range(len(some)):
            step()
    return total
