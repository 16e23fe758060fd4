"""Compare all pairs of layers on subsamples, from Gram matrices that are computed once.

Centring a Gram matrix adds offsets to its rows and columns. HSIC is invariant to such offsets on any subset of the
samples, so a matrix that was centred once, over all samples, can be used for every permutation and every subsample.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from repsim.errors import InvalidInputError
from repsim.metrics.algorithms.gram_space import GramMeasure, GramSweep, tile_side, tiles
from repsim.metrics.recipes.gram import KernelMatrix
from repsim.metrics.recipes.rows import cut, float64_device
from repsim.runtime import tuning
from repsim.runtime.progress import Progress, counter, spread

_LINE = 64
"""Bytes of a cache line."""
_GATHERED = {"cpu": 2**22, "cuda": 2**27, "mps": 2**26}
"""Bytes that are gathered at once: the size of a CPU cache, or enough to use a GPU fully."""


class Norms(GramSweep):
    """Norms ||A|| of the centred Gram matrices of all layers, which permutations do not change."""

    def __init__(self, layers: Sequence[Any], measure: GramMeasure) -> None:
        super().__init__(layers, [], [measure], panel=tuning.current().panel, tile=tile_side(len(layers), 4))

    def norms(self) -> Float64[np.ndarray, " layers"]:
        """Return the norm of every layer; NaN if it is not larger than its rounding errors."""
        squares = np.sum(list(self.parts(self.order)), axis=0)
        return np.sqrt(np.where(squares > self._noise(self.measures[0]), squares, np.nan))


def subsampled(
    rows: Sequence[Any],
    columns: Sequence[Any],
    measure: GramMeasure,
    samples: Int64[Tensor, "count m"],
    *,
    memory: int,
    progress: Progress | None = None,
) -> Float64[np.ndarray, "count rows columns"]:
    """Compute the values of all pairs on subsamples.

    Parameters
    ----------
    rows, columns : sequence of kernel factors
        Factors of ``measure`` over the same n samples.
    measure : GramMeasure
        The measure.
    samples : tensor of shape (count, m)
        The samples of each subsample.
    memory : int
        Bytes that Gram matrices may take at once.
    progress : callable, optional
        Called with the number of steps done, of all; a step is a subsample of a group of layers.

    Returns
    -------
    array of shape (count, rows, columns)
    """
    if measure.unbiased and any(draw.groups is not None for layer in [*rows, *columns] for draw in layer.draws):
        raise InvalidInputError("samples in groups are subsampled by repsim.engine.grouped")
    n, dtype, times = common_properties([*rows, *columns])

    def size(n: int, r: int, c: int) -> int:
        return n * n * (padded_width((r + c) * times + 1, dtype.itemsize) + 1) * dtype.itemsize

    pairs = groups(len(rows), len(columns), n, memory, size)
    step = counter(len(pairs) * len(samples), progress)
    values = np.empty((len(samples), len(rows), len(columns)))
    for i, j in pairs:
        distinct = {id(layer): layer for layer in [*rows[i], *columns[j]]}  # a layer may be on both sides
        layers, keys = list(distinct.values()), list(distinct)
        draws = [layer.draws[draw] for draw in range(times) for layer in layers]
        grams = interleaved(draws, dtype, unbiased=measure.unbiased, ones=True)
        sums = subsample_products(grams, len(draws), samples, step)
        inner, noise = _recentred(sums, samples.shape[1], measure)
        # if there are two estimates of each matrix, the first of A is compared with the second of B, and vice versa
        inner = inner.unflatten(1, (times, -1)).unflatten(3, (times, -1))
        host = torch.stack([inner[:, k, :, times - 1 - k] for k in range(times)]).mean(0).cpu().numpy()
        a, b = ([keys.index(id(layer)) for layer in side] for side in (rows[i], columns[j]))
        products = host[:, a][:, :, b]
        if measure.normalised:
            eps = max(draw.eps for draw in draws)
            error = (100 * eps * noise.unflatten(1, (times, -1))).amax(1).cpu().numpy()
            error = np.maximum(error, _centring_error(layers, samples, unbiased=measure.unbiased))
            squares = host.diagonal(axis1=1, axis2=2)
            norms = np.sqrt(np.where(squares > error, squares, np.nan))
            products = products / norms[:, a, None] / norms[:, None, b]
        values[:, i, j] = products
        del grams
    return measure.finish(values)


def common_properties(layers: Sequence[Any]) -> tuple[int, torch.dtype, int]:
    """Return the number of samples, the common dtype of the Gram matrices, and the number of estimates of each."""
    draws = [draw for layer in layers for draw in layer.draws]
    dtype = functools.reduce(torch.promote_types, (draw.dtype for draw in draws))
    return draws[0].n, dtype, len(layers[0].draws)


def _recentred(
    sums: tuple[Tensor, Tensor, Tensor], m: int, measure: GramMeasure
) -> tuple[Float64[Tensor, "count layers layers"], Float64[Tensor, "count layers"]]:
    """Return <A, B> centred over the subsample, from the sums of `subsample_products`; and tr(A_S A_S), uncentred.

    For the debiased estimator, the centred <A, B> is m (m - 3) HSIC_1. The second value bounds its cancellation.
    """
    traces, crossed, totals = sums
    total_factor, row_factor = (1 / ((m - 1) * (m - 2)), 2 / (m - 2)) if measure.unbiased else (1 / m**2, 2 / m)
    inner = traces + total_factor * totals[:, :, None] * totals[:, None] - row_factor * crossed
    return inner, traces.diagonal(dim1=1, dim2=2).abs()


def _centring_error(
    layers: Sequence[Any], samples: Int64[Tensor, "count m"], *, unbiased: bool
) -> Float64[np.ndarray, "count layers"]:
    """Return the rounding error of ||A||^2 on each subsample that comes from centring over all samples.

    It is estimated as in `GramSweep._noise`.
    """
    error = np.zeros((len(samples), len(layers)))
    for k, layer in enumerate(layers):
        for draw in layer.draws:
            o = draw.offsets(unbiased=unbiased).flatten().cpu()[samples.cpu()]
            removed = 2 * (o.shape[1] * o.square().sum(1) + o.sum(1).square())
            error[:, k] = np.maximum(error[:, k], removed.numpy() * (100 * draw.eps) ** 2)
    return error


def centred(
    draw: KernelMatrix, dtype: torch.dtype, *, unbiased: bool, panel: int = 0, tile: int = 512
) -> Float[Tensor, "n n"]:
    """Return the centred Gram matrix; only one triangle is computed, the other copied."""
    out = torch.empty(draw.n, draw.n, dtype=dtype, device=draw.device)
    offsets = draw.offsets(unbiased=unbiased).flatten().to(draw.device, dtype)
    groups = draw.groups if unbiased else None
    runs = list(cut(draw.n, panel or tuning.current().panel))
    for k, left in enumerate(runs):
        x = draw.rows(left)
        for right in runs[k:]:
            y = x if right == left else draw.rows(right)
            for i, j in tiles(left, right, draw.n, tile):
                piece = torch.empty(i.stop - i.start, j.stop - j.start, dtype=dtype, device=draw.device)
                rows, columns = x[i.start - left.start : i.stop - left.start], y[j.start - right.start :]
                draw.tile(rows, columns[: j.stop - j.start], i, j, piece)
                piece.sub_(offsets[i, None]).sub_(offsets[j])
                out[i, j] = piece if groups is None else piece.masked_fill_(groups.same(i, j, piece.device), 0)
                if i != j:
                    out[j, i] = piece.T
    return out.fill_diagonal_(0) if unbiased else out


def padded_width(layers: int, itemsize: int) -> int:
    """Return the number of elements reserved for one entry of all layers: a power of two, or whole cache lines.

    >>> [padded_width(layers, 4) for layers in (1, 3, 13, 17)]
    [1, 4, 16, 32]
    """
    line = _LINE // itemsize
    return -(-layers // line) * line if layers > line else 1 << (layers - 1).bit_length()


def interleaved(
    draws: Sequence[KernelMatrix], dtype: torch.dtype, *, unbiased: bool, ones: bool = False
) -> Float[Tensor, "n n w"]:
    """Return centred Gram matrices with the layers on the last axis, so that one entry of all layers is one cache line.

    ``ones`` adds a matrix of ones after the layers. The remaining elements of the last axis are 0.
    """
    n = draws[0].n
    out = torch.zeros(n, n, padded_width(len(draws) + ones, dtype.itemsize), dtype=dtype, device=draws[0].device)
    for k, draw in enumerate(draws):
        out[:, :, k] = centred(draw, dtype, unbiased=unbiased)
    if ones:
        out[:, :, len(draws)] = 1
    return out


def subsample_products(
    grams: Float[Tensor, "n n w"], layers: int, samples: Int64[Tensor, "count m"], step: Callable[[], None]
) -> tuple[
    Float64[Tensor, "count layers layers"], Float64[Tensor, "count layers layers"], Float64[Tensor, "count layers"]
]:
    """Compute tr(A_S B_S) and 1'A_S B_S 1 of all pairs, and 1'A_S 1 of all layers, on subsamples S.

    ``grams`` are `interleaved` with a matrix of ones after the ``layers``, so that the product of all pairs contains
    the row sums, too. ``step`` is called as often as there are subsamples, spread over the work.
    """
    n, _, width = grams.shape
    count, m = samples.shape
    place, progress = float64_device(grams.device), spread(step, count)
    traces = torch.zeros(count, width, width, dtype=torch.float64, device=place)
    crossed = torch.zeros(count, layers, layers, dtype=torch.float64, device=place)
    for chunk in gather_chunks(count, m * width, grams):
        subsamples = samples[chunk].to(grams.device)
        inside = torch.zeros(len(subsamples), n, dtype=torch.bool, device=grams.device)
        inside.scatter_(1, subsamples, value=True)
        buffer = grams.new_empty(len(subsamples), m, width)
        # which subsamples hold each sample: once for all rows, as a GPU has to be waited for
        containing = inside.T.nonzero()[:, 1].split(inside.sum(0).tolist())
        for r, holding in enumerate(containing):
            gathered = buffer[: len(holding)]
            torch.index_select(grams[r], 0, subsamples[holding].flatten(), out=gathered.view(-1, width))
            products = (gathered.mT @ gathered).to(place).double()
            sums = products[:, :layers, layers]
            k = holding.to(place) + chunk.start
            traces.index_add_(0, k, products)
            crossed.index_add_(0, k, sums[:, :, None] * sums[:, None])
            progress(n * chunk.start + len(subsamples) * (r + 1), n * count)
    return traces[:, :layers, :layers], crossed, traces[:, :layers, layers]


def gather_chunks(count: int, numbers: int, like: Tensor) -> list[slice]:
    """Return slices of ``count`` permutations to gather at once, each of which gathers ``numbers`` elements."""
    room = _GATHERED.get(like.device.type, 2**22)
    return list(cut(count, max(1, room // (numbers * like.element_size()))))


def runs_of_layers(widths: Sequence[int], most: int) -> list[slice]:
    """Cut layers into runs with at most so many features, or other values, together, unless one has more.

    >>> runs_of_layers([3, 2, 9, 1, 1], 5)
    [slice(0, 2, None), slice(2, 3, None), slice(3, 5, None)]
    """
    runs, start, total = [], 0, 0
    for k, width in enumerate(widths):
        if k > start and total + width > most:
            runs.append(slice(start, k))
            start, total = k, 0
        total += width
    return [*runs, slice(start, len(widths))]


def groups(
    rows: int, columns: int, n: int, memory: int, size: Callable[[int, int, int], int]
) -> list[tuple[slice, slice]]:
    """Divide the layers into as few pairs of groups as possible, each of which takes at most ``memory`` bytes.

    ``size(n, r, c)`` is the number of bytes for r rows and c columns. Pairs with the same columns are adjacent.

    >>> groups(2, 3, 10, 400, lambda n, r, c: n * n * (r + c))
    [(slice(0, 1, None), slice(0, 3, None)), (slice(1, 2, None), slice(0, 3, None))]
    """
    fitting = [
        (-(-rows // r) * -(-columns // c), size(n, r, c), r, c)
        for r in range(1, rows + 1)
        for c in range(1, columns + 1)
        if size(n, r, c) <= memory
    ]
    if not fitting:
        needed, fitting_n = size(n, 1, 1), n
        while size(fitting_n, 1, 1) > memory:
            fitting_n = min(fitting_n - 1, int(n * math.sqrt(memory / needed)))
        raise InvalidInputError(
            f"one layer of each side takes {needed / 2**20:,.1f} MiB at n = {n:,}, more than the {memory / 2**20:,.1f} "
            f"MiB that memory allows; allow more, or take a subsample of at most {fitting_n:,} samples"
        )
    _, _, r, c = min(fitting)
    return [(i, j) for j in cut(columns, c) for i in cut(rows, r)]
