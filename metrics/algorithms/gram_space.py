"""Comparison in Gram space: inner products of the centred Gram matrices of all layers, tile by tile."""

import functools
import math
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Protocol, TypeVar, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float64
from torch import Tensor

from repsim.metrics.algorithms.sweep import SummedMeasure, SummedSweep, Sums
from repsim.metrics.recipes.gram import KernelMatrix, common_groups
from repsim.metrics.recipes.rows import cut, float64_device, prefetch
from repsim.runtime import tuning
from repsim.runtime.progress import report_share, sharing
from repsim.runtime.threads import map_in_threads

T = TypeVar("T")
_ROWS = 64
"""Rows of a stack of tiles that one thread multiplies, at most."""
_PRODUCTS = 2**22
"""Products that one thread computes at once, at most, unless one row has more."""


@runtime_checkable
class GramMeasure(SummedMeasure, Protocol):
    """Measure that the algorithm in Gram space supports."""

    @property
    def unbiased(self) -> bool:
        """Whether Gram matrices are U-centred, and not double-centred."""


class GramSweep(SummedSweep[GramMeasure]):
    """Sums over tiles of the centred Gram matrices of all layers.

    Gram matrices are symmetric, so a tile off the diagonal counts twice. One row of a tile, for all layers, is a matrix
    (layers, columns of the tile), so a batched matrix product computes all pairs. The sum over one row is computed in
    the dtype of the features, and the sum over rows in float64, so that long sums lose no digits.

    If a layer has two independent estimates K^1 and K^2, only products between different estimates are used:
    (<A^1, B^2> + <A^2, B^1>) / 2, and <A^1, A^2> for the norm. The noise of the estimates biases none of them.

    Parameters
    ----------
    panel : int
        Samples whose features are read at once; a unit is a pair of panels, or a panel with itself.
    tile : int
        Samples per side of a tile.
    held : int
        Panels that are kept in memory, so that neighbouring units do not read them again.
    """

    def __init__(
        self,
        rows: Sequence[Any],
        columns: Sequence[Any],
        measures: Sequence[GramMeasure],
        *,
        panel: int,
        tile: int,
        held: int = 2,
    ) -> None:
        super().__init__(rows, columns, measures)
        draws = [layer.draws for layer in self.layers]
        self.draws: list[KernelMatrix] = [draw for of_layers in zip(*draws, strict=True) for draw in of_layers]
        self.times = len(draws[0])
        self.groups = common_groups(self.draws)
        self.tile, self.held = tile, held
        self.dtype = functools.reduce(torch.promote_types, (draw.dtype for draw in self.draws))
        self.device = self.draws[0].device
        self._panels_of = list(panels(self.draws[0].n, self.draws[0].block, panel))
        complete = self.draws[0].block == self.draws[0].n
        count = len(self._panels_of)
        self._pairs = [(i, j) for i in range(count) for j in (range(i, count) if complete else [i])]

    @property
    def units(self) -> int:
        """Number of pairs of panels."""
        return len(self._pairs)

    @property
    def order(self) -> Sequence[int]:
        """Order in which all but one of the held panels stay in memory, while the others are read once."""
        stay = max(1, self.held - 1)
        return sorted(range(self.units), key=lambda unit: (self._pairs[unit][0] // stay, self._pairs[unit][::-1]))

    @property
    def flop(self) -> float:
        """Floating-point operations of all units."""
        widths = [draw.p for draw in self.draws]
        return flop_of_grams(self.draws[0].n, self.draws[0].block, widths, self.height * self.width)

    def parts(self, units: Iterable[int]) -> Iterator[Sums]:
        """Yield the sums of each pair of panels."""
        shifts = [[o.to(self.device, self.dtype) for o in self._offsets(measure)] for measure in self.measures]
        pairs = [self._pairs[unit] for unit in units]
        features = self._read(pairs)
        if not all(draw.in_memory for draw in self.draws):
            features = prefetch(features, self.device)
        for i, j in pairs:
            x, y = next(features)
            part = self._part(self._panels_of[i], self._panels_of[j], x, y, shifts)
            del x, y  # before another thread reads the next panels, which need the memory
            yield part

    def _offsets(self, measure: GramMeasure) -> list[Float64[Tensor, " n"]]:
        return [draw.offsets(unbiased=measure.unbiased).flatten() for draw in self.draws]

    def _noise(self, measure: GramMeasure) -> Float64[np.ndarray, " layers"]:
        """Return the largest ||A||^2 that is only rounding errors, from what centring removed, sum_ij (o_i + o_j)^2."""
        blocks = [o.cpu().unflatten(0, (-1, self.draws[0].block)) for o in self._offsets(measure)]
        removed = torch.stack([2 * (o.shape[1] * o.square().sum(1) + o.sum(1).square()).sum() for o in blocks])
        eps = torch.tensor([draw.eps for draw in self.draws], dtype=torch.float64)
        noise: Float64[np.ndarray, " layers"]
        noise = (removed * (100 * eps) ** 2).unflatten(0, (self.times, len(self.layers))).amax(0).numpy()
        return noise

    def _read(self, pairs: Sequence[tuple[int, int]]) -> Iterator[tuple[Any, Any]]:
        """Yield the data for the tiles of each pair of panels; panels in memory are not read again.

        If there is no room, the panel whose next use is farthest away is removed.
        """
        uses: defaultdict[int, deque[int]] = defaultdict(deque)
        for when, pair in enumerate(pairs):
            for i in pair:
                uses[i].append(when)
        kept: dict[int, Any] = {}
        for pair in pairs:
            for i in pair:
                if i not in kept:
                    if len(kept) >= max(2, self.held):
                        others = (old for old in kept if old not in pair)
                        del kept[max(others, key=lambda old: uses[old][0] if uses[old] else len(pairs))]
                    kept[i] = self._rows(i)
                uses[i].popleft()
            yield kept[pair[0]], kept[pair[1]]

    def _rows(self, panel: int) -> Any:
        """Return the data of all layers for tiles with the samples of a panel."""
        return [draw.rows(self._panels_of[panel]) for draw in self.draws]

    def _part(self, left: slice, right: slice, x: Any, y: Any, shifts: list[list[Tensor]]) -> Sums:
        layers, several = len(self.layers), len(self.measures) > 1
        place = float64_device(self.device)
        products = torch.zeros(len(self.measures), self.height, self.width, dtype=torch.float64, device=place)
        squares = torch.zeros(len(self.measures), layers, dtype=torch.float64, device=place)
        largest = max(left.stop - left.start, right.stop - right.start)  # the last panel may be shorter
        side = min(self.tile, self.draws[0].block, largest)
        memory = torch.empty(1 + several, len(self.draws) * side**2, dtype=self.dtype, device=self.device)
        pairs = list(tiles(left, right, self.draws[0].block, self.tile))
        for number, (i, j) in enumerate(pairs):
            report_share(number, len(pairs))
            shape = (len(self.draws), i.stop - i.start, j.stop - j.start)
            kernels, spare = (m[: math.prod(shape)].view(shape) for m in (memory[0], memory[-1]))
            alike = None if self.groups is None else self.groups.same(i, j, self.device)
            self._make_tiles(kernels, (x, _within(i, left), i), (y, _within(j, right), j), shifts, alike)
            for m, measure in enumerate(self.measures):
                if several:
                    spare.copy_(kernels)
                    for k in range(len(self.draws)):
                        _centre(spare[k], shifts[m][k], i, j, hollow=measure.unbiased, alike=alike)
                self._collect(spare.unflatten(0, (self.times, layers)), i, j, products[m], squares[m])
        return torch.cat([products.flatten(1), squares], 1).flatten().cpu().numpy()

    def _make_tiles(
        self,
        kernels: Tensor,
        rows: tuple[list[Tensor], slice, slice],
        columns: tuple[list[Tensor], slice, slice],
        shifts: list[list[Tensor]],
        alike: Tensor | None,
    ) -> None:
        """Write the tile of every draw; centre it, while it is in the cache, if there is only one measure.

        ``rows`` and ``columns`` are the data of a panel, the samples of the tile in the panel, and in the layer.
        """
        (x, inside_x, i), (y, inside_y, j) = rows, columns

        def make(k: int) -> None:
            self.draws[k].tile(x[k][inside_x], y[k][inside_y], i, j, kernels[k])
            if len(self.measures) == 1:
                _centre(kernels[k], shifts[0][k], i, j, hollow=self.measures[0].unbiased, alike=alike)

        widest_first = sorted(
            range(len(self.draws)), key=lambda k: -self.draws[k].p
        )  # so that all threads end together
        self._in_threads(make, widest_first)

    def _in_threads(self, work: Callable[[Any], T], items: Iterable[Any]) -> list[T]:
        """Call ``work`` with every item: in threads on a CPU, and otherwise in order."""
        with sharing(lambda: None):  # the tiles report the share of the unit, and not the layers of each
            return map_in_threads(work, items) if self.device.type == "cpu" else list(map(work, items))

    @property
    def _rows_at_once(self) -> int:
        """Rows of a stack of tiles that one thread multiplies."""
        return max(1, min(_ROWS, _PRODUCTS // max(1, self.height * self.width)))

    def _collect(self, stack: Tensor, i: slice, j: slice, products: Tensor, squares: Tensor) -> None:
        """Add the contribution of one tile of every layer, (draws, layers, i, j), to every pair."""
        weight = 1 if i == j else 2

        def of_rows(rows: slice) -> tuple[Tensor, Tensor]:
            part = stack[:, :, rows]
            by_row = part.transpose(1, 2)
            pairs = sum(
                (first[:, : self.height] @ second[:, self.first :].mT).to(products.device).sum(0, dtype=torch.float64)
                for first, second in zip(by_row, reversed(list(by_row)), strict=True)
            )
            if self.times == 1:  # a norm needs no array of products
                dots = torch.linalg.vector_norm(part[0], dim=2).to(squares.device).double().square()
            else:
                dots = torch.linalg.vecdot(part[0], part[-1]).to(squares.device).double()
            return pairs, dots.sum(1)

        for pairs, own in self._in_threads(of_rows, cut(stack.shape[2], self._rows_at_once)):
            products += weight / self.times * pairs
            squares += weight * own


def panels(n: int, block: int, size: int) -> Iterator[slice]:
    """Yield runs of samples whose features are read at once: parts of the only block, or several whole blocks.

    >>> list(panels(12, 12, 5)), list(panels(12, 4, 9))
    ([slice(0, 4, None), slice(4, 8, None), slice(8, 12, None)], [slice(0, 8, None), slice(8, 12, None)])
    """
    if block == n:
        yield from cut(n, size)
        return
    step = block * max(1, size // block)
    for start in range(0, n, step):
        yield slice(start, min(start + step, n))


def tiles(left: slice, right: slice, block: int, size: int) -> Iterator[tuple[slice, slice]]:
    """Yield rows and columns of the tiles between two panels; for one panel with itself, of the upper triangle.

    A tile on the diagonal is cut into four, and the one below the diagonal is left out.

    >>> [(i.start, j.start) for i, j in tiles(slice(0, 4), slice(4, 8), 8, 2)]
    [(0, 4), (0, 6), (2, 4), (2, 6)]
    >>> [(i.start, j.start) for i, j in tiles(slice(0, 4), slice(0, 4), 8, 2)]
    [(0, 0), (0, 1), (1, 1), (0, 2), (2, 2), (2, 3), (3, 3)]
    """
    if left != right:
        columns = list(cut(right.stop - right.start, size, right.start))
        for i in cut(left.stop - left.start, size, left.start):
            for j in columns:
                yield i, j
        return
    step = min(block, left.stop - left.start)
    for start in range(left.start, left.stop, step):
        cuts = list(cut(step, size, start))
        for k, i in enumerate(cuts):
            quarters = list(cut(i.stop - i.start, -(-(i.stop - i.start) // 2), i.start))
            for a, u in enumerate(quarters):
                for v in quarters[a:]:
                    yield u, v
            for j in cuts[k + 1 :]:
                yield i, j


def _within(i: slice, panel: slice) -> slice:
    return slice(i.start - panel.start, i.stop - panel.start)


def _centre(tile: Tensor, offsets: Tensor, i: slice, j: slice, *, hollow: bool, alike: Tensor | None) -> None:
    """Subtract the offsets; with ``hollow``, set the diagonal to 0, or the pairs ``alike``, which are in one group."""
    tile -= offsets[i, None]
    tile -= offsets[j]
    if hollow and alike is not None:
        tile.masked_fill_(alike, 0)
    elif hollow and i == j:
        tile.fill_diagonal_(0)


def flop_of_grams(n: int, block: int, widths: Sequence[int], pairs: int) -> float:
    """Return the operations of one triangle of every Gram matrix, and of one product over it for every pair."""
    return float(n) * block * (sum(widths) + pairs)


def tile_side(layers: int, itemsize: int) -> int:
    """Return a side for tiles: large enough for fast products, small enough that a stack of tiles fits into memory."""
    return max(64, min(tuning.current().tile, math.isqrt(tuning.current().tile_stack // (itemsize * layers))))
