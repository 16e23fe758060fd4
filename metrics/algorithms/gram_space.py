"""Comparison in Gram space: inner products of the centred Gram matrices of all layers, tile by tile."""

import functools
import math
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar, runtime_checkable

import numpy as np
import torch
from jaxtyping import Bool, Float, Float64
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
        pairs = list(tiles(left, right, self.draws[0].block, self.tile))
        groups = list(_together(pairs, side**2))
        room = max(sum(self._values_of(i, j) for i, j in group) for group in groups)
        memory = torch.empty(1 + several, room, dtype=self.dtype, device=self.device)
        done = 0
        for group in groups:
            report_share(done, len(pairs))
            done += len(group)
            made = self._tiles_in(memory, group, left, right)
            self._make_tiles(made, x, y, shifts)
            for m, measure in enumerate(self.measures):
                for tile in made:
                    if several:
                        tile.centred.copy_(tile.kernels)
                        for k in range(len(self.draws)):
                            tile.centre(k, shifts[m][k], hollow=measure.unbiased)
                    stack = tile.centred.unflatten(0, (self.times, layers))
                    self._collect(stack, tile.i, tile.j, products[m], squares[m])
        return torch.cat([products.flatten(1), squares], 1).flatten().cpu().numpy()

    def _tiles_in(
        self, memory: Tensor, group: Sequence[tuple[slice, slice]], left: slice, right: slice
    ) -> "list[_Tile]":
        """Return tiles between two panels that share the memory, before they are computed."""
        result, used = [], 0
        for i, j in group:
            shape = (len(self.draws), i.stop - i.start, j.stop - j.start)
            part = slice(used, used + math.prod(shape))
            used += self._values_of(i, j)
            kernels, centred = (m[part].view(shape) for m in (memory[0], memory[-1]))
            alike = None if self.groups is None else self.groups.same(i, j, self.device)
            result.append(_Tile(i, j, (_within(i, left), _within(j, right)), kernels, centred, alike))
        return result

    def _values_of(self, i: slice, j: slice) -> int:
        """Return the values of a tile of all draws, up to a multiple of 16: the next tile is aligned as arrays are."""
        values: int = len(self.draws) * (i.stop - i.start) * (j.stop - j.start)
        return -(-values // 16) * 16

    def _make_tiles(
        self, group: "Sequence[_Tile]", x: list[Tensor], y: list[Tensor], shifts: list[list[Tensor]]
    ) -> None:
        """Write some tiles of every draw, from the data of two panels.

        They are centred, while they are in the cache, if there is only one measure.
        """

        def make(k: int) -> None:
            for tile in group:
                rows, columns = tile.inside
                self.draws[k].tile(x[k][rows], y[k][columns], tile.i, tile.j, tile.kernels[k])
                if len(self.measures) == 1:
                    tile.centre(k, shifts[0][k], hollow=self.measures[0].unbiased)

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


@dataclass(frozen=True, eq=False)
class _Tile:
    """Tile of the kernel matrices of all draws."""

    i: slice
    j: slice
    inside: tuple[slice, slice]
    """Its rows and columns in the data of their panels."""
    kernels: Float[Tensor, "draws i j"]
    centred: Float[Tensor, "draws i j"]
    """The same array, if there is only one measure."""
    alike: Bool[Tensor, "i j"] | None
    """Pairs of samples within one group, if there are groups."""

    def centre(self, k: int, offsets: Tensor, *, hollow: bool) -> None:
        """Subtract the offsets from the tile of one draw.

        With ``hollow``, the diagonal is set to 0, or the pairs that are `alike`.
        """
        tile = self.centred[k]
        tile -= offsets[self.i, None]
        tile -= offsets[self.j]
        if hollow and self.alike is not None:
            tile.masked_fill_(self.alike, 0)
        elif hollow and self.i == self.j:
            tile.fill_diagonal_(0)


def _together(pairs: Sequence[tuple[slice, slice]], area: int) -> Iterator[list[tuple[slice, slice]]]:
    """Yield runs of tiles with at most ``area`` entries: threads are started once for a run, because that takes time.

    >>> [len(group) for group in _together(list(tiles(slice(0, 8), slice(0, 8), 8, 4)), 16)]
    [3, 1, 3]
    """
    group: list[tuple[slice, slice]] = []
    left = area
    for i, j in pairs:
        size = (i.stop - i.start) * (j.stop - j.start)
        if group and size > left:
            yield group
            group, left = [], area
        group.append((i, j))
        left -= size
    if group:
        yield group


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


def flop_of_grams(n: int, block: int, widths: Sequence[int], pairs: int) -> float:
    """Return the operations of one triangle of every Gram matrix, and of one product over it for every pair."""
    return float(n) * block * (sum(widths) + pairs)


def tile_side(layers: int, itemsize: int) -> int:
    """Return a side for tiles: large enough for fast products, small enough that a stack of tiles fits into memory."""
    return max(64, min(tuning.current().tile, math.isqrt(tuning.current().tile_stack // (itemsize * layers))))
