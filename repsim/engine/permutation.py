"""Compare all pairs of layers with the samples of one side permuted, from Gram matrices or from features.

Centring and permutation commute, and norms do not change under permutation. So each layer is prepared once, and a
permutation only needs <A, P B P'>. From Gram matrices this takes n^2 / 2 products a pair, independently of the widths;
from features it takes n p q, which is small for layers truncated to a few directions
(`repsim.engine.shared_directions`).
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from repsim.engine.shared_directions import LowRankFeatures
from repsim.engine.subsampling import (
    Norms,
    centred,
    common_properties,
    gather_chunks,
    groups,
    interleaved,
    padded_width,
    runs_of_layers,
)
from repsim.errors import InvalidInputError
from repsim.metrics.algorithms.feature_space import MomentSweep
from repsim.metrics.algorithms.gram_space import GramMeasure
from repsim.metrics.base import GramMetric, MomentMetric
from repsim.metrics.recipes.gram import Gram, KernelMatrix, common_groups
from repsim.metrics.recipes.groups import Groups
from repsim.metrics.recipes.rows import cut, float64_device
from repsim.runtime import tuning
from repsim.runtime.progress import Progress, counter, spread
from repsim.runtime.threads import map_in_threads

_AT_ONCE = 64
"""Permutations whose small matrices are fetched from a GPU at once, as each fetch waits until the GPU has finished."""
_ROWS_SUMMED = 8
"""Half rows of a Gram matrix that are summed in its dtype, before they are added to a sum in float64."""
_GATHERED = 2**21
"""Values that a thread gathers, or multiplies, at once for a permutation, unless one layer or group has more."""


def permuted(
    rows: Sequence[Any],
    columns: Sequence[Any],
    measure: GramMetric[Any],
    orders: Int64[Tensor, "count n"],
    *,
    memory: int,
    progress: Progress | None = None,
) -> Float64[np.ndarray, "count rows columns"]:
    """Compute <A, P B P'> / (||A|| ||B||) of all pairs for permutations of the columns' samples.

    The cheapest algorithm is chosen: from shared directions, from features, or from Gram matrices.

    Parameters
    ----------
    rows, columns : sequence of factors
        Factors of ``measure`` over the same n samples, not divided into minibatches.
    measure : GramMetric
        The measure.
    orders : tensor of shape (count, n)
        The permutations.
    memory : int
        Bytes that Gram matrices or features may take at once.
    progress : callable, optional
        Called with the number of steps done, of all; a step is a permutation of a group of layers.

    Returns
    -------
    array of shape (count, rows, columns)
    """
    shared = "moments" in measure.algorithms and _shared_directions([*rows, *columns]) is not None
    if shared and _within_bytes(rows, columns) <= memory:
        return _from_directions(rows, columns, measure, orders, progress=progress)
    if _features_are_cheaper(rows, columns, measure, len(orders), memory):
        return _from_features(rows, columns, measure, orders, progress=progress)
    return _from_grams(rows, columns, measure, orders, memory=memory, progress=progress)


def _features_are_cheaper(
    rows: Sequence[Any], columns: Sequence[Any], measure: GramMetric[Any], count: int, memory: int
) -> bool:
    """Return whether feature space takes fewer operations than Gram space, if both are possible and fit into memory."""
    layers = [*rows, *columns]
    if "moments" not in measure.algorithms or not all(isinstance(a, Gram) and a.kernel == "linear" for a in layers):
        return False
    n, dtype, _ = common_properties(layers)
    p, q = (sum(layer.p for layer in side) for side in (rows, columns))
    if 8 * n * (p + q) + _within_bytes(rows, columns) > memory:
        return False
    smaller, larger = sorted((len(rows), len(columns)))
    try:
        pairs = _groups(larger, smaller, n, memory, dtype.itemsize)
    except InvalidInputError:
        return True
    sizes = [(i.stop - i.start, j.stop - j.start) for i, j in pairs]
    rates = tuning.current()
    entry = sum(
        rates.permuted_entry + rates.permuted_layer * padded_width(c, dtype.itemsize) + rates.permuted_pair * r * c
        for r, c in sizes
    )
    return bool(2.0 * count * n * p * q < count * entry * n**2 / 2 + float(n) ** 2 * (p + q))


def least_bytes(n: int, itemsize: int) -> int:
    """Return the bytes of the Gram matrices of one layer of each side: with less, they cannot be permuted."""
    return _bytes(n, 1, 1, itemsize)


def _bytes(n: int, rows: int, columns: int, itemsize: int) -> int:
    return (n * n * (padded_width(columns, itemsize) + 1) + n * (n // 2 + 1) * rows) * itemsize


def _groups(rows: int, columns: int, n: int, memory: int, itemsize: int) -> list[tuple[slice, slice]]:
    """Return groups of layers whose Gram matrices fit into memory: columns `interleaved`, rows `halved`."""
    return groups(rows, columns, n, memory, lambda n, r, c: _bytes(n, r, c, itemsize))


def _from_grams(
    rows: Sequence[Any],
    columns: Sequence[Any],
    measure: GramMeasure,
    orders: Int64[Tensor, "count n"],
    *,
    memory: int,
    progress: Progress | None,
) -> Float64[np.ndarray, "count rows columns"]:
    """Compute the values from centred Gram matrices: <A, P B P'> is the sum of A_ij B_pi(i)pi(j).

    The entries of the side with fewer layers are gathered.
    """
    if len(columns) > len(rows):  # <A, P B P'> = <P'A P, B>
        transposed = _from_grams(columns, rows, measure, orders.argsort(1), memory=memory, progress=progress)
        return transposed.swapaxes(1, 2)
    n, dtype, times = common_properties([*rows, *columns])

    pairs = _groups(len(rows), len(columns), n, memory, dtype.itemsize)
    step = counter(times * len(pairs) * len(orders), progress)
    values = np.zeros((len(orders), len(rows), len(columns)))
    for draw in range(times):
        grams, previous = torch.empty(0), slice(0)
        for i, j in pairs:
            if j != previous:
                del grams  # before the next is allocated: both do not fit into memory
                grams = interleaved([layer.draws[draw - 1] for layer in columns[j]], dtype, unbiased=measure.unbiased)
                previous = j
            half = halved([layer.draws[draw] for layer in rows[i]], dtype, unbiased=measure.unbiased)
            products = permuted_products(half, grams, orders, step)
            values[:, i, j] += products[:, :, : j.stop - j.start].cpu().numpy() / times
            del half
    if measure.normalised:
        values /= Norms(rows, measure).norms()[:, None]
        values /= Norms(columns, measure).norms()
    return measure.finish(values)


def _from_features(
    rows: Sequence[Gram],
    columns: Sequence[Gram],
    measure: GramMetric[Any],
    orders: Int64[Tensor, "count n"],
    *,
    progress: Progress | None,
) -> Float64[np.ndarray, "count rows columns"]:
    """Compute the values from features. With g_i = ||x_i||^2 and h_i = ||y_i||^2, for the debiased estimator,

    <A, P B P'> = ||X'PY||^2 - n/(n-2) sum_i g_i h_pi(i) + (sum_i g_i)(sum_i h_i)/((n-1)(n-2));

    for the biased estimator it is the first term. The rows of the side with fewer features are gathered.
    """
    if sum(layer.p for layer in columns) > sum(layer.p for layer in rows):
        transposed = _from_features(columns, rows, measure, orders.argsort(1), progress=progress)
        return transposed.swapaxes(1, 2)
    parts = _precisions(rows, columns)
    step = counter(len(parts) * len(orders), progress)
    values = np.zeros((len(orders), len(rows), len(columns)))
    for i, j, precision in parts:
        moments = permuted_moments([rows[k] for k in i], [columns[k] for k in j], orders, precision, step)
        values[:, np.array(i)[:, None], j] = moments.cpu().numpy()
    return _debiased_and_normalised(values, rows, columns, measure, orders)


def _debiased_and_normalised(
    values: Float64[np.ndarray, "count rows columns"],
    rows: Sequence[Gram],
    columns: Sequence[Gram],
    measure: GramMetric[Any],
    orders: Int64[Tensor, "count n"],
) -> Float64[np.ndarray, "count rows columns"]:
    """Return the values of the measure from ||X'PY||^2: subtract the bias, and divide by the norms."""
    n, groups = rows[0].n, common_groups([*rows, *columns])
    if measure.unbiased and groups is not None:
        within = _Within(rows, columns, groups)
        values -= _by_order(within.products, orders, within.device)
    elif measure.unbiased:
        g, h = (
            torch.stack([layer.squared_norms for layer in side]).to(float64_device(rows[0].device))
            for side in (rows, columns)
        )
        samples = h.T.contiguous()
        values -= n / (n - 2) * _by_order(lambda order: g @ samples[order], orders, h.device)
        values += (torch.outer(g.sum(1), h.sum(1)) / ((n - 1) * (n - 2))).cpu().numpy()
    if measure.normalised:
        values /= np.array([_norm(layer, measure) for layer in rows])[:, None]
        values /= np.array([_norm(layer, measure) for layer in columns])
    return measure.finish(values)


def _by_order(
    function: Callable[[Int64[Tensor, " n"]], Float64[Tensor, "rows columns"]],
    orders: Int64[Tensor, "count n"],
    device: torch.device,
    step: Callable[[], None] = lambda: None,
) -> Float64[np.ndarray, "count rows columns"]:
    """Return the small matrices of all permutations: on a CPU each is computed by one thread."""
    parts = []
    for k in cut(len(orders), _AT_ONCE):
        of_run = list(orders[k].to(device))
        matrices = map_in_threads(function, of_run) if device.type == "cpu" else [function(order) for order in of_run]
        parts.append(torch.stack(matrices))
        for _ in of_run:
            step()
    return torch.cat([part.cpu() for part in parts]).numpy()


class _Within:
    """Pairs of samples within groups, which ||X'PY||^2 holds, and <A, P B P'> does not.

    A is 0 within groups and orthogonal to offsets of rows and columns, and so <A, P B P'> = <A, P L P'> with the kernel
    L of the columns. The rows of a centred linear kernel sum to 0, and only pairs within groups remain of the offsets:

        <A, P L P'> = ||X'PY||^2 - sum over pairs within groups of (K_ij - r_i - r_j) L_pi(i)pi(j).

    A permutation exchanges groups of one size. So the pairs of these are one array, in which groups are gathered.
    """

    def __init__(self, rows: Sequence[Gram], columns: Sequence[Gram], groups: Groups) -> None:
        self.device = float64_device(rows[0].device)
        self._numbers = groups.numbers.to(self.device)
        self._parts: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []
        """For every size of groups: their first samples, their places among those of this size, and the pairs of the
        rows, with offsets, and of the columns: (layers, groups, size^2)."""
        for size in groups.sizes.unique().tolist():
            alike = (groups.sizes == size).nonzero()[:, 0]
            place = torch.zeros(groups.count, dtype=torch.int64)
            place[alike] = torch.arange(len(alike))
            members = torch.stack([groups.members(int(group)) for group in alike])
            left, right = (torch.stack([_pairs_within(layer, members) for layer in side]) for side in (rows, columns))
            for k, layer in enumerate(rows):
                r = layer.offsets(unbiased=True)[0][members.to(left.device)]
                left[k] -= r[:, :, None] + r[:, None]
            first, place = members[:, 0].to(self.device), place.to(self.device)
            self._parts.append((first, place, left.flatten(2), right.flatten(2)))

    def products(self, order: Int64[Tensor, " n"]) -> Float64[Tensor, "rows columns"]:
        """Return the sum over pairs within groups, for one permutation, which is on `device`."""
        total = torch.zeros((), device=self.device)
        for first, place, left, right in self._parts:
            groups = place[self._numbers[order[first]]]
            size = left.shape[2]
            for run in cut(len(groups), max(1, _GATHERED // (len(right) * size))):
                of_rows = left.flatten(1)[:, run.start * size : run.stop * size]
                total = total + of_rows @ right[:, groups[run]].flatten(1).T
        return total


def _pairs_within(layer: Gram, members: Int64[Tensor, "groups size"]) -> Float64[Tensor, "groups size size"]:
    """Return the linear kernel within groups of one size."""
    place = float64_device(layer.device)
    pairs = torch.empty(*members.shape, members.shape[1], dtype=torch.float64, device=place)
    for run in cut(len(members), max(1, tuning.current().piece // (members.shape[1] * layer.p))):
        x = layer.features[members[run].flatten().to(layer.device)].to(place, torch.float64)
        x = x.view(-1, members.shape[1], layer.p)
        pairs[run] = x @ x.mT
    return pairs


def _within_bytes(rows: Sequence[Any], columns: Sequence[Any]) -> int:
    """Return the bytes of all pairs within groups (`_Within`); 0 without groups."""
    groups = rows[0].draws[0].groups
    return 0 if groups is None else 16 * (len(rows) + len(columns)) * int(groups.sizes.square().sum())


def _shared_directions(layers: Sequence[Any]) -> Float64[Tensor, "n k"] | None:
    """Return the directions that all layers share (`truncate_jointly`), or None."""
    features = [
        layer.features for layer in layers if isinstance(layer, Gram) and isinstance(layer.features, LowRankFeatures)
    ]
    shared = len(features) == len(layers) and all(x.directions is features[0].directions for x in features)
    return features[0].directions if shared else None


def _from_directions(
    rows: Sequence[Gram],
    columns: Sequence[Gram],
    measure: GramMetric[Any],
    orders: Int64[Tensor, "count n"],
    *,
    progress: Progress | None,
) -> Float64[np.ndarray, "count rows columns"]:
    """Compute the values from shared directions, X = Q C and Y = Q D: ||X'PY||^2 = ||C' (Q'PQ) D||^2.

    Only Q is permuted.
    """
    Q = _shared_directions(rows)
    assert Q is not None, "the caller has checked this"
    D = torch.cat([layer.features.loadings for layer in columns], 1)  # type: ignore[attr-defined]
    runs = []
    for layers in runs_of_layers([layer.p for layer in rows], max(1, _GATHERED // D.shape[1])):
        of_run = rows[layers]
        loadings = torch.cat([layer.features.loadings for layer in of_run], 1)  # type: ignore[attr-defined]
        runs.append((loadings.T, _membership(of_run).to(Q)))
    of_columns = _membership(columns).to(Q).T
    step = counter(len(orders), progress)

    def of_order(order: Int64[Tensor, " n"]) -> Float64[Tensor, "rows columns"]:
        moved = (Q.T @ Q[order]) @ D
        return torch.cat([of_rows @ (loadings @ moved).square_() for loadings, of_rows in runs]) @ of_columns

    values = _by_order(of_order, orders, Q.device, step)
    return _debiased_and_normalised(values, rows, columns, measure, orders)


def _norm(layer: Gram, measure: GramMetric[Any]) -> float:
    """Return ||A||; NaN if it is not larger than its rounding errors."""
    assert isinstance(measure, MomentMetric), "this measure cannot be computed in feature space"
    if layer.groups is not None and measure.unbiased:
        x = layer.features[:].to(float64_device(layer.device), torch.float64)
        total = float(torch.linalg.matrix_norm(x.T @ x if layer.p <= layer.n else x @ x.T)) ** 2
        within = _Within([layer], [layer], layer.groups)
        square = total - float(within.products(torch.arange(layer.n, device=within.device)))
        return float(np.sqrt(square)) if square > 100 * layer.eps * total else math.nan
    sweep = MomentSweep([layer], [layer], [measure], chunk=tuning.current().run, room=tuning.current().unit_memory_kept)
    return float(np.sqrt(np.sum(list(sweep.parts(sweep.order)), axis=0)[-1]))


def _precisions(rows: Sequence[Gram], columns: Sequence[Gram]) -> list[tuple[list[int], list[int], torch.dtype]]:
    """Return groups of rows and columns with the dtype in which they are multiplied: float32, or float64 if needed.

    float64 is needed if a layer is narrow or uneven, because debiasing then cancels almost all of ||X'PY||^2.
    """
    needs_float64 = [
        [layer.p < tuning.current().narrow or layer.uneven or layer.dtype == torch.float64 for layer in side]
        for side in (rows, columns)
    ]
    (rows32, rows64), (columns32, columns64) = (
        [[k for k, needed in enumerate(side) if needed is float64] for float64 in (False, True)]
        for side in needs_float64
    )
    groups = [
        (rows32, columns32, torch.float32),
        (rows32, columns64, torch.float64),
        (rows64, list(range(len(columns))), torch.float64),
    ]
    return [group for group in groups if group[0] and group[1]]


def permuted_moments(
    rows: Sequence[Gram],
    columns: Sequence[Gram],
    permutations: Int64[Tensor, "count n"],
    dtype: torch.dtype,
    step: Callable[[], None],
) -> Float64[Tensor, "count rows columns"]:
    """Compute ||X'Y[pi]||^2 of all pairs for every permutation: products in ``dtype``, summed in float64.

    The features of all layers of a side, and those of several permutations, are concatenated, so that one large product
    contains every pair as a block. ``step`` is called as often as there are permutations, spread over the work.
    """
    n, count = rows[0].n, len(permutations)
    place = float64_device(rows[0].device)
    device = place if dtype == torch.float64 else rows[0].device
    X, Y = (torch.cat([layer.rows(slice(0, n)).to(device, dtype) for layer in side], 1) for side in (rows, columns))
    of_rows, of_columns = (_membership(side).to(place) for side in (rows, columns))
    total = torch.zeros(count, len(rows), len(columns), dtype=torch.float64, device=place)
    blocks, progress = list(cut(Y.shape[1], tuning.current().permuted_side)), spread(step, count)
    for number, q in enumerate(blocks):
        y = Y[:, q].contiguous()
        for chunk in cut(count, max(1, tuning.current().permuted_side // y.shape[1])):
            orders = permutations[chunk].T.contiguous().to(device)
            width = orders.shape[1] * y.shape[1]
            buffer = y.new_empty(min(n, tuning.current().permuted_run) * orders.shape[1], y.shape[1])
            for p in cut(X.shape[1], tuning.current().permuted_side):
                sums = torch.zeros(p.stop - p.start, width, dtype=torch.float64, device=place)
                product = X.new_empty(sums.shape)
                for run in cut(n, tuning.current().permuted_run):
                    index = orders[run].flatten()
                    gathered = torch.index_select(y, 0, index, out=buffer[: len(index)]).view(-1, width)
                    if dtype == torch.float64:
                        sums.addmm_(X[run, p].T, gathered)
                    else:
                        sums += torch.mm(X[run, p].T, gathered, out=product).to(place)
                squares = (of_rows[:, p] @ sums.square_()).view(len(rows), -1, y.shape[1]) @ of_columns[:, q].T
                total[chunk] += squares.transpose(0, 1)
            progress(number * count + chunk.stop, len(blocks) * count)
    return total


def _membership(layers: Sequence[Gram]) -> Float64[Tensor, "layers features"]:
    """Return a matrix that is 1 where a feature (column) of the concatenated features belongs to a layer (row)."""
    of_layers: Tensor = torch.block_diag(*(torch.ones(1, layer.p, dtype=torch.float64) for layer in layers))
    return of_layers


def halved(draws: Sequence[KernelMatrix], dtype: torch.dtype, *, unbiased: bool) -> Float[Tensor, "n layers half"]:
    """Return centred Gram matrices with every unordered pair of samples once, off-diagonal entries weighted by 2.

    Row i holds the entries (i, i), (i, i + 1), ..., (i, i + n // 2), with columns modulo n. So all rows have the same
    length, unlike the rows of a triangle.
    """
    n, half = draws[0].n, draws[0].n // 2 + 1
    weights = torch.full((half,), 2, dtype=dtype, device=draws[0].device)
    weights[0] = 1
    if n % 2 == 0:
        weights[-1] = 1  # (i, i + n/2) occurs a second time, in row i + n/2
    out = torch.empty(n, len(draws), half, dtype=dtype, device=draws[0].device)
    for k, draw in enumerate(draws):
        gram = centred(draw, dtype, unbiased=unbiased)
        for i in cut(n, 256):
            twice = torch.cat([gram[i], gram[i]], 1)
            cyclic = twice.as_strided((i.stop - i.start, half), (2 * n + 1, 1), i.start)
            out[i, k] = cyclic * weights
    return out


def permuted_products(
    rows: Float[Tensor, "n layers half"],
    columns: Float[Tensor, "n n w"],
    permutations: Int64[Tensor, "count n"],
    step: Callable[[], None],
) -> Float64[Tensor, "count layers w"]:
    """Compute <A, B[pi][:, pi]> for every permutation pi: half rows are summed in the matrices' dtype, then float64.

    For one row of B at a time, which stays in the cache, the entries of many permutations are gathered, with the
    corresponding rows of A, and multiplied in one batched product. The buffers are reused. ``step`` is called as often
    as there are permutations, spread over the work. With many layers, adding to the sums in float64 takes longer than
    the products: so `_ROWS_SUMMED` rows are summed before.
    """
    n, layers, half = rows.shape
    width, place = columns.shape[2], float64_device(rows.device)
    total = torch.zeros(len(permutations), layers, width, dtype=torch.float64, device=place)
    ahead, progress = torch.arange(half, device=rows.device), spread(step, len(permutations))
    for chunk in gather_chunks(len(permutations), half * width, rows):
        orders = permutations[chunk].to(rows.device)
        inverse, cyclic = orders.argsort(1), torch.cat([orders, orders], 1)
        of_columns = rows.new_empty(len(orders), half, width)
        of_rows = rows.new_empty(len(orders), layers, half)
        products = rows.new_empty(len(orders), layers, width)
        for run in cut(n, _ROWS_SUMMED):
            products.zero_()
            for r in range(run.start, run.stop):
                i = inverse[:, r]  # row r of B is multiplied with row i of A
                index = cyclic.gather(1, i[:, None] + ahead)
                torch.index_select(columns[r], 0, index.flatten(), out=of_columns.view(-1, width))
                torch.index_select(rows, 0, i, out=of_rows)
                products.baddbmm_(of_rows, of_columns)
            total[chunk] += products.to(place)
            progress(n * chunk.start + len(orders) * run.stop, n * len(permutations))
    return total
