"""What subsampling asks of Gram matrices: samples drawn, without making any of them again.

Centring a Gram matrix adds offsets to its rows and columns. HSIC does not see offsets, whichever samples it is taken
over, so a matrix that was centred once, over all samples, serves every permutation and every subsample as it is.
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
from repsim.runtime.progress import Progress, counter

_LINE = 64
"""Bytes of a cache line."""
_GATHERED = {"cpu": 2**22, "cuda": 2**27, "mps": 2**26}
"""Bytes that are gathered at once: what a processor's cache holds, or what keeps a graphics card busy."""


class Norms(GramSweep):
    """||A|| of every layer: what no permutation changes."""

    def __init__(self, layers: Sequence[Any], measure: GramMeasure) -> None:
        super().__init__(layers, [], [measure], panel=tuning.current().panel, tile=tile_side(len(layers), 4))

    def norms(self) -> Float64[np.ndarray, " layers"]:
        """One for every layer that was given; NaN where it is nothing but rounding errors."""
        squares = np.sum(list(self.parts(self.order)), axis=0)
        return np.sqrt(np.where(squares > self._noise(self.measures[0]), squares, np.nan))


def drawn(
    rows: Sequence[Any],
    columns: Sequence[Any],
    measure: GramMeasure,
    samples: Int64[Tensor, "count m"],
    *,
    memory: int,
    progress: Progress | None = None,
) -> Float64[np.ndarray, "count rows columns"]:
    """Every pair on subsamples. ``progress`` counts subsamples of groups of layers."""
    n, dtype, times = common([*rows, *columns])

    def size(n: int, r: int, c: int) -> int:
        return n * n * (padded((r + c) * times + 1, dtype.itemsize) + 1) * dtype.itemsize

    pairs = groups(len(rows), len(columns), n, memory, size)
    step = counter(len(pairs) * len(samples), progress)
    values = np.empty((len(samples), len(rows), len(columns)))
    for i, j in pairs:
        place = {id(layer): layer for layer in [*rows[i], *columns[j]]}  # a layer of both sides is there once
        layers, keys = list(place.values()), list(place)
        draws = [layer.draws[draw] for draw in range(times) for layer in layers]
        grams = interleaved(draws, dtype, unbiased=measure.unbiased, ones=True)
        inner, noise = _centred_again(drawn_products(grams, len(draws), samples, step), samples.shape[1], measure)
        # of two estimates of one matrix, one is compared with the other
        inner = inner.unflatten(1, (times, -1)).unflatten(3, (times, -1))
        inner = torch.stack([inner[:, k, :, times - 1 - k] for k in range(times)]).mean(0)
        a, b = ([keys.index(id(layer)) for layer in side] for side in (rows[i], columns[j]))
        found = inner[:, a][:, :, b].cpu().numpy()
        if measure.normalised:
            eps = max(draw.eps for draw in draws)
            lost = (100 * eps * noise.unflatten(1, (times, -1))).amax(1).cpu().numpy()
            lost = np.maximum(lost, _lost(layers, samples, unbiased=measure.unbiased))
            squares = inner.diagonal(dim1=1, dim2=2).cpu().numpy()
            norms = np.sqrt(np.where(squares > lost, squares, np.nan))
            found = found / norms[:, a, None] / norms[:, None, b]
        values[:, i, j] = found
        del grams
    return measure.finish(values)


def common(layers: Sequence[Any]) -> tuple[int, torch.dtype, int]:
    """Samples, the dtype of all Gram matrices, and how many estimates of each there are."""
    draws = [draw for layer in layers for draw in layer.draws]
    dtype = functools.reduce(torch.promote_types, (draw.dtype for draw in draws))
    return draws[0].n, dtype, len(layers[0].draws)


def _centred_again(
    sums: tuple[Tensor, Tensor, Tensor], m: int, measure: GramMeasure
) -> tuple[Float64[Tensor, "count layers layers"], Float64[Tensor, "count layers"]]:
    """<A, B> of what `drawn_products` found, centred over the subsample; and tr(A_S A_S), of which this cancels some.

    Debiased it is m (m - 3) HSIC_1.
    """
    traces, crossed, totals = sums
    of_sums, of_rows = (1 / ((m - 1) * (m - 2)), 2 / (m - 2)) if measure.unbiased else (1 / m**2, 2 / m)
    inner = traces + of_sums * totals[:, :, None] * totals[:, None] - of_rows * crossed
    return inner, traces.diagonal(dim1=1, dim2=2).abs()


def _lost(
    layers: Sequence[Any], samples: Int64[Tensor, "count m"], *, unbiased: bool
) -> Float64[np.ndarray, "count layers"]:
    """What centring over all samples took away from a subsample, in units of its rounding: as `GramSweep._noise`."""
    lost = np.zeros((len(samples), len(layers)))
    for k, layer in enumerate(layers):
        for draw in layer.draws:
            o = draw.offsets(unbiased=unbiased).flatten().cpu()[samples.cpu()]
            removed = 2 * (o.shape[1] * o.square().sum(1) + o.sum(1).square())
            lost[:, k] = np.maximum(lost[:, k], removed.numpy() * (100 * draw.eps) ** 2)
    return lost


def centred(
    draw: KernelMatrix, dtype: torch.dtype, *, unbiased: bool, panel: int = 0, tile: int = 512
) -> Float[Tensor, "n n"]:
    """The whole centred Gram matrix, of which one triangle is computed."""
    out = torch.empty(draw.n, draw.n, dtype=dtype, device=draw.device)
    offsets = draw.offsets(unbiased=unbiased).flatten().to(draw.device, dtype)
    runs = list(cut(draw.n, panel or tuning.current().panel))
    for k, left in enumerate(runs):
        x = draw.rows(left)
        for right in runs[k:]:
            y = x if right == left else draw.rows(right)
            for i, j in tiles(left, right, draw.n, tile):
                piece = torch.empty(i.stop - i.start, j.stop - j.start, dtype=dtype, device=draw.device)
                rows, columns = x[i.start - left.start : i.stop - left.start], y[j.start - right.start :]
                draw.tile(rows, columns[: j.stop - j.start], i, j, piece)
                out[i, j] = piece.sub_(offsets[i, None]).sub_(offsets[j])
                if i != j:
                    out[j, i] = piece.T
    return out.fill_diagonal_(0) if unbiased else out


def padded(layers: int, itemsize: int) -> int:
    """Numbers that one entry of so many Gram matrices takes: a power of two, or whole cache lines.

    >>> [padded(layers, 4) for layers in (1, 3, 13, 17)]
    [1, 4, 16, 32]
    """
    line = _LINE // itemsize
    return -(-layers // line) * line if layers > line else 1 << (layers - 1).bit_length()


def interleaved(
    draws: Sequence[KernelMatrix], dtype: torch.dtype, *, unbiased: bool, ones: bool = False
) -> Float[Tensor, "n n w"]:
    """Centred Gram matrices with the layers last, so that gathering an entry of all of them reads one cache line.

    ``ones`` adds a matrix of ones after them. What is left of the width is 0.
    """
    n = draws[0].n
    out = torch.zeros(n, n, padded(len(draws) + ones, dtype.itemsize), dtype=dtype, device=draws[0].device)
    for k, draw in enumerate(draws):
        out[:, :, k] = centred(draw, dtype, unbiased=unbiased)
    if ones:
        out[:, :, len(draws)] = 1
    return out


def drawn_products(
    grams: Float[Tensor, "n n w"], layers: int, samples: Int64[Tensor, "count m"], step: Callable[[], None]
) -> tuple[
    Float64[Tensor, "count layers layers"], Float64[Tensor, "count layers layers"], Float64[Tensor, "count layers"]
]:
    """Of subsamples: tr(A_S B_S) and 1'A_S B_S 1 of all pairs, and 1'A_S 1 of all layers.

    ``grams`` are `interleaved` with a matrix of ones behind the ``layers``: the product that gives all pairs then gives
    the row sums, too. ``step`` is called once a subsample.
    """
    n, _, width = grams.shape
    count, m = samples.shape
    place = float64_device(grams.device)
    traces = torch.zeros(count, width, width, dtype=torch.float64, device=place)
    crossed = torch.zeros(count, layers, layers, dtype=torch.float64, device=place)
    for chunk in gathers(count, m * width, grams):
        some = samples[chunk].to(grams.device)
        inside = torch.zeros(len(some), n, dtype=torch.bool, device=grams.device).scatter_(1, some, value=True)
        memory = grams.new_empty(len(some), m, width)
        for r in range(n):
            k = inside[:, r].nonzero().flatten()
            met = memory[: len(k)]
            torch.index_select(grams[r], 0, some[k].flatten(), out=met.view(-1, width))
            products = (met.mT @ met).to(place).double()
            sums = products[:, :layers, layers]
            k = k.to(place) + chunk.start
            traces.index_add_(0, k, products)
            crossed.index_add_(0, k, sums[:, :, None] * sums[:, None])
        for _ in range(len(some)):
            step()
    return traces[:, :layers, :layers], crossed, traces[:, :layers, layers]


def gathers(count: int, numbers: int, like: Tensor) -> list[slice]:
    """Cut so many permutations, of which each gathers ``numbers`` at a time, into those that are gathered at once."""
    room = _GATHERED.get(like.device.type, 2**22)
    return list(cut(count, max(1, room // (numbers * like.element_size()))))


def groups(
    rows: int, columns: int, n: int, memory: int, size: Callable[[int, int, int], int]
) -> list[tuple[slice, slice]]:
    """Cut the layers into as few pairs of groups as there can be, of which each takes at most ``memory``.

    ``size(n, r, c)``: bytes that groups of r rows and c columns take. Of one group of columns all pairs are neighbours.

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
        needed, enough = size(n, 1, 1), n
        while size(enough, 1, 1) > memory:
            enough = min(enough - 1, int(n * math.sqrt(memory / needed)))
        raise InvalidInputError(
            f"one layer of each side takes {needed / 2**20:,.1f} MiB at n = {n:,}, more than the {memory / 2**20:,.1f} "
            f"MiB that memory allows; allow more, or take a subsample of at most {enough:,} samples"
        )
    _, _, r, c = min(fitting)
    return [(i, j) for j in cut(columns, c) for i in cut(rows, r)]
