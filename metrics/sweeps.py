"""All pairs of many layers at once, as a sum over units of work that anybody can do, in any order.

What depends on two layers is a matrix product, and there are two roads to it. In Gram space (`GramSweep`) the centred n
x n Gram matrices of all layers pass by tile after tile, and every pair's inner product grows by one product of stacked
tiles. In feature space (`MomentSweep`) the p x q cross-moments X'Y of every pair grow by a run of samples at a time.
Either gives the exact value, in memory that does not grow with n; which one is cheaper is for `repsim.engine.planning`
to say.

A unit is a pure function of the layers. So processes can share the units, and an interrupted run needs only those that
are missing: the sum, always taken in the same order, is the same to the bit.
"""

import functools
import math
from abc import ABC, abstractmethod
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Generic, Protocol, TypeVar, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float64
from torch import Tensor

from repsim.metrics.recipes.gram import KernelMatrix
from repsim.metrics.recipes.rows import ahead, cut, wide

T = TypeVar("T")
F = TypeVar("F")
Sums = Float64[np.ndarray, "..."]
_TILE = 512
_STACK = 2**27
"""Bytes of a stack of tiles, one of every layer."""


@dataclass(frozen=True, eq=False)
class Cross(Generic[F]):
    """Two prepared layers, and the cross-moments of what their ``rows`` give."""

    a: F
    b: F
    product: Tensor
    """(p, q)."""
    _found: dict[Callable[["Cross[F]"], Any], Any] = field(default_factory=dict, repr=False)

    def once(self, find: Callable[["Cross[F]"], T]) -> T:
        """What ``find`` finds in it, found once for all measures that ask: singular values, say."""
        if find not in self._found:
            self._found[find] = find(self)
        return self._found[find]  # type: ignore[no-any-return]

    @property
    def swapped(self) -> "Cross[F]":
        """The same with the layers exchanged."""
        return Cross(self.b, self.a, self.product.T)


class Sweep(ABC):
    """All pairs of ``rows`` and ``columns`` under one or several measures."""

    normalises = True
    """Whether units give sums, that norms are still to be taken from, and not values."""

    def __init__(self, rows: Sequence[Any], columns: Sequence[Any], measures: Sequence["Measure"]) -> None:
        self.measures = tuple(measures)
        seen = {id(layer) for layer in rows}
        self.height = len(rows)
        overlap = any(id(layer) in seen for layer in columns)
        self.layers = [*rows, *(layer for layer in columns if id(layer) not in seen)]
        """Every layer once, those of the rows first."""
        self.first = 0 if overlap else self.height
        """Where in `layers` the columns begin."""
        place = {id(layer): k for k, layer in enumerate(self.layers)}
        self._columns = [place[id(layer)] - self.first for layer in columns]

    @property
    def width(self) -> int:
        """Columns of a part."""
        return len(self.layers) - self.first

    @property
    def size(self) -> int:
        """Numbers in a part: for each measure the pairs of rows and columns, and each layer with itself."""
        return len(self.measures) * (self.height * self.width + len(self.layers))

    @property
    @abstractmethod
    def units(self) -> int:
        """How many there are."""

    @property
    def order(self) -> Sequence[int]:
        """The order in which units are best computed: neighbours share what they read."""
        return range(self.units)

    @abstractmethod
    def parts(self, units: Iterable[int]) -> Iterator[Sums]:
        """Compute these units, one after the other: a vector of `size` numbers each."""

    def run(self) -> list[Float64[np.ndarray, "rows columns"]]:
        """Do everything here and now."""
        parts = dict(zip(self.order, self.parts(self.order), strict=True))
        return self.values([parts[unit] for unit in range(self.units)])

    def values(self, parts: Sequence[Sums]) -> list[Float64[np.ndarray, "rows columns"]]:
        """The matrix of every measure, from the parts of all units in their order."""
        total = functools.reduce(np.add, parts, np.zeros(self.size))
        found = []
        for measure, sums in zip(self.measures, total.reshape(len(self.measures), -1), strict=True):
            products = sums[: self.height * self.width].reshape(self.height, self.width)[:, self._columns]
            if measure.normalised and self.normalises:
                squares = sums[self.height * self.width :]
                norms = np.sqrt(np.where(squares > self._noise(measure), squares, np.nan))
                column_norms = norms[[self.first + k for k in self._columns]]
                products = products / norms[: self.height, None] / column_norms
            found.append(measure.finish(products) if self.normalises else products)
        return found

    def _noise(self, measure: "Measure") -> Float64[np.ndarray, " layers"]:  # noqa: ARG002 - a hook
        """S_aa that are no larger than this are rounding errors, and the layer has no value."""
        return np.zeros(len(self.layers))


@runtime_checkable
class Measure(Protocol):
    """What a sweep asks of a metric."""

    @property
    def normalised(self) -> bool:
        """Whether a value is S_ab / sqrt(S_aa S_bb), and not S_ab."""

    @property
    def symmetric(self) -> bool:
        """Whether S_ab is S_ba."""

    @property
    def unbiased(self) -> bool:
        """Gram space: whether Gram matrices are U-centred, or centred twice."""

    def moment(self, cross: Cross[Any]) -> Tensor | float:
        """Feature space: S_ab of two layers."""

    def finish(self, values: Sums) -> Sums:
        """The values, of S_ab / sqrt(S_aa S_bb) or S_ab."""


class PairSweep(Sweep):
    """Blocks of layers, for measures that know no better than to compare two layers."""

    normalises = False

    def __init__(self, rows: Sequence[Any], columns: Sequence[Any], measures: Sequence[Any], *, group: int) -> None:
        super().__init__(rows, columns, measures)
        self._blocks = [
            (i, slice(j.start - self.first, j.stop - self.first))
            for i in cut(self.height, group)
            for j in cut(self.width, group, self.first)
        ]

    @property
    def units(self) -> int:
        """Blocks."""
        return len(self._blocks)

    def parts(self, units: Iterable[int]) -> Iterator[Sums]:
        """`Metric.block` of each."""
        for unit in units:
            i, j = self._blocks[unit]
            rows, columns = self.layers[i], self.layers[self.first :][j]
            part = np.zeros((len(self.measures), self.size // len(self.measures)))
            for sums, measure in zip(part, self.measures, strict=True):
                sums[: self.height * self.width].reshape(self.height, self.width)[i, j] = measure.block(rows, columns)  # type: ignore[attr-defined]
            yield part.ravel()


class GramSweep(Sweep):
    """Sums over tiles of the centred Gram matrices of all layers.

    Gram matrices are symmetric, so a tile off the diagonal stands for two. Of each tile, one row of every layer's
    piece is a matrix (layers, columns of the tile): all pairs are then one batched matrix product. Sums run over one
    such row in the features' dtype and from there on in float64, so that no digits are lost to long sums.

    Where a layer comes as two independent estimates K^1 and K^2, only products of one with the other are taken:
    (<A^1, B^2> + <A^2, B^1>) / 2, and <A^1, A^2> for the norm. None of them is biased by the estimates' own noise.

    Parameters
    ----------
    panel
        Samples whose features are read at once: a unit is one panel against another, or itself.
    tile
        Samples of a tile's side.
    held
        Panels that are kept in memory, so that neighbouring units need not read them again.
    """

    def __init__(
        self,
        rows: Sequence[Any],
        columns: Sequence[Any],
        measures: Sequence[Measure],
        *,
        panel: int,
        tile: int,
        held: int = 2,
    ) -> None:
        super().__init__(rows, columns, measures)
        draws = [layer.draws for layer in self.layers]
        self.draws: list[KernelMatrix] = [draw for each in zip(*draws, strict=True) for draw in each]
        self.times = len(draws[0])
        self.tile, self.held = tile, held
        self.dtype = functools.reduce(torch.promote_types, (draw.dtype for draw in self.draws))
        self.device = self.draws[0].device
        self._panels_of = list(panels(self.draws[0].n, self.draws[0].block, panel))
        whole = self.draws[0].block == self.draws[0].n
        count = len(self._panels_of)
        self._pairs = [(i, j) for i in range(count) for j in (range(i, count) if whole else [i])]

    @property
    def units(self) -> int:
        """Pairs of panels."""
        return len(self._pairs)

    @property
    def order(self) -> Sequence[int]:
        """All but one of the panels that are held stay, while the others pass by."""
        stay = max(1, self.held - 1)
        return sorted(range(self.units), key=lambda unit: (self._pairs[unit][0] // stay, self._pairs[unit][::-1]))

    @property
    def flop(self) -> float:
        """Floating-point operations of all units."""
        widths = [getattr(layer, "p", 0) for layer in self.layers]
        return flop_of_grams(self.draws[0].n, self.draws[0].block, widths, self.height * self.width)

    def parts(self, units: Iterable[int]) -> Iterator[Sums]:
        """Panel by panel."""
        shifts = [torch.stack(each).to(self.device, self.dtype) for each in map(self._offsets, self.measures)]
        wanted = [self._pairs[unit] for unit in units]
        features = self._read(wanted)
        if not all(draw.in_memory for draw in self.draws):
            features = ahead(features, self.device)
        for i, j in wanted:
            x, y = next(features)
            part = self._part(self._panels_of[i], self._panels_of[j], x, y, shifts)
            del x, y  # before the next pair is taken: another thread then reads the one after, beside no more than that
            yield part

    def _offsets(self, measure: Measure) -> list[Float64[Tensor, " n"]]:
        return [draw.offsets(unbiased=measure.unbiased).flatten() for draw in self.draws]

    def _noise(self, measure: Measure) -> Float64[np.ndarray, " layers"]:
        """What centring took away, sum_ij (o_i + o_j)^2: an ||A||^2 that is nothing beside it is rounding errors."""
        o = torch.stack(self._offsets(measure)).cpu().unflatten(1, (-1, self.draws[0].block))
        removed = 2 * (o.shape[2] * o.square().sum(2) + o.sum(2).square()).sum(1)
        eps = torch.tensor([draw.eps for draw in self.draws], dtype=torch.float64)
        noise: Float64[np.ndarray, " layers"]
        noise = (removed * (100 * eps) ** 2).unflatten(0, (self.times, len(self.layers))).amax(0).numpy()
        return noise

    def _read(self, pairs: Sequence[tuple[int, int]]) -> Iterator[tuple[list[Tensor], list[Tensor]]]:
        """What the tiles of each pair of panels are computed from; what is at hand is not read again.

        Where there is no more room, the panel goes that is not needed for the longest time.
        """
        uses: defaultdict[int, deque[int]] = defaultdict(deque)
        for when, pair in enumerate(pairs):
            for i in pair:
                uses[i].append(when)
        kept: dict[int, list[Tensor]] = {}
        for pair in pairs:
            for i in pair:
                if i not in kept:
                    if len(kept) >= max(2, self.held):
                        others = (old for old in kept if old not in pair)
                        del kept[max(others, key=lambda old: uses[old][0] if uses[old] else len(pairs))]
                    kept[i] = [draw.rows(self._panels_of[i]) for draw in self.draws]
                uses[i].popleft()
            yield kept[pair[0]], kept[pair[1]]

    def _part(self, left: slice, right: slice, x: list[Tensor], y: list[Tensor], shifts: list[Tensor]) -> Sums:
        layers, several = len(self.layers), len(self.measures) > 1
        place = wide(self.device)
        products = torch.zeros(len(self.measures), self.height, self.width, dtype=torch.float64, device=place)
        squares = torch.zeros(len(self.measures), layers, dtype=torch.float64, device=place)
        widest = max(left.stop - left.start, right.stop - right.start)  # the last panel may be shorter
        side = min(self.tile, self.draws[0].block, widest)
        memory = torch.empty(1 + several, len(self.draws) * side**2, dtype=self.dtype, device=self.device)
        for i, j in tiles(left, right, self.draws[0].block, self.tile):
            shape = (len(self.draws), i.stop - i.start, j.stop - j.start)
            kernels, spare = (m[: math.prod(shape)].view(shape) for m in (memory[0], memory[-1]))
            for k, draw in enumerate(self.draws):
                draw.tile(x[k][_within(i, left)], y[k][_within(j, right)], i, j, kernels[k])
                if not several:  # at once, while the tile is in the cache
                    _centre(kernels[k], shifts[0][k], i, j, hollow=self.measures[0].unbiased)
            for m, measure in enumerate(self.measures):
                if several:
                    spare.copy_(kernels)
                    for k in range(len(self.draws)):
                        _centre(spare[k], shifts[m][k], i, j, hollow=measure.unbiased)
                self._collect(spare.unflatten(0, (self.times, layers)), i, j, products[m], squares[m])
        return torch.cat([products.flatten(1), squares], 1).flatten().cpu().numpy()

    def _collect(self, stack: Tensor, i: slice, j: slice, products: Tensor, squares: Tensor) -> None:
        """Add what one tile of every layer, (draws, layers, i, j), gives to every pair."""
        weight = 1 if i == j else 2
        by_row = stack.transpose(1, 2)
        for one, other in zip(by_row, reversed(list(by_row)), strict=True):
            pairs = one[:, : self.height] @ other[:, self.first :].mT
            products += weight / self.times * pairs.to(products.device).sum(0, dtype=torch.float64)
        if self.times == 1:  # a norm makes no array of products on its way
            dots = torch.linalg.vector_norm(stack[0], dim=2).to(squares.device).double().square()
        else:
            dots = torch.linalg.vecdot(stack[0], stack[-1]).to(squares.device).double()
        squares += weight * dots.sum(1)


def panels(n: int, block: int, size: int) -> Iterator[slice]:
    """Runs of samples whose features are read at once: parts of the only block, or several whole ones.

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
    """Rows and columns of the tiles between two panels: of one panel with itself, those of its upper triangle.

    Of a tile on the diagonal both triangles would be computed: it is cut in four, of which one is left out.

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


def _centre(tile: Tensor, offsets: Tensor, i: slice, j: slice, *, hollow: bool) -> None:
    tile -= offsets[i, None]
    tile -= offsets[j]
    if hollow and i == j:
        tile.fill_diagonal_(0)


class MomentSweep(Sweep):
    """Cross-moments X'Y of all pairs, a run of samples at a time: products in the layers' dtype, sums in float64.

    Products with a layer that says it is ``uneven`` are made in float64, too, and those with a narrow one, over whose
    few features the rounding errors of long sums would not average out.

    Parameters
    ----------
    chunk
        Samples of one run.
    room
        Bytes that the sums of one unit may take. Every unit reads its layers once, from the first sample to the last.
    """

    _NARROW = 32
    _BLOCK = 512
    """Columns that X'X is cut into, so that its lower triangle need not be computed."""

    def __init__(
        self, rows: Sequence[Any], columns: Sequence[Any], measures: Sequence[Measure], *, chunk: int, room: int
    ) -> None:
        super().__init__(rows, columns, measures)
        self.chunk = chunk
        widths = [layer.p for layer in self.layers]
        self._units = units_of_moments(
            widths[: self.height], widths[self.first :], room, symmetric=self.first == 0,
            norms=any(measure.normalised for measure in self.measures),
        )  # fmt: skip

    @property
    def units(self) -> int:
        """Groups of pairs."""
        return len(self._units)

    @property
    def flop(self) -> float:
        """Floating-point operations of all units."""
        widths = [layer.p for layer in self.layers]
        return flop_of_moments(self.layers[0].n, widths, (pair for unit in self._units for pair in unit))

    def parts(self, units: Iterable[int]) -> Iterator[Sums]:
        """Group by group."""
        for unit in units:
            pairs = self._units[unit]
            part = np.zeros((len(self.measures), self.size // len(self.measures)))
            found = _side_by_side(self._compare, pairs, self._moments(pairs))
            for (u, v), both in zip(pairs, found, strict=True):
                for sums, (there, back) in zip(part, both, strict=True):
                    products = sums[: self.height * self.width].reshape(self.height, self.width)
                    if u == v:
                        sums[self.height * self.width + u] = there
                    if self._wanted(u, v):
                        products[u, v - self.first] = there
                    if self._wanted(v, u):
                        products[v, u - self.first] = back
            yield part.ravel()

    def _wanted(self, u: int, v: int) -> bool:
        return u < self.height and v >= self.first

    def _compare(self, pair: tuple[int, int], cross: Tensor) -> list[tuple[float, float]]:
        """S_ab and S_ba of every measure; the second only where somebody wants it and it is another."""
        a, b = (self.layers[u] for u in pair)
        there = Cross(a, b, cross)
        back = there.swapped
        both_ways = self._wanted(*pair[::-1]) and pair[0] != pair[1]
        found = []
        for measure in self.measures:
            value = float(measure.moment(there))
            found.append((value, float(measure.moment(back)) if both_ways and not measure.symmetric else value))
        return found

    def _moments(self, pairs: Sequence[tuple[int, int]]) -> list[Float64[Tensor, "p q"]]:
        needed = sorted({u for pair in pairs for u in pair})
        layers = [self.layers[u] for u in needed]
        device = layers[0].device
        place = wide(device)
        sums = [torch.zeros(self.layers[u].p, self.layers[v].p, dtype=torch.float64, device=place) for u, v in pairs]
        careful = {u: self.layers[u].p < self._NARROW or getattr(self.layers[u], "uneven", False) for u in needed}
        runs = ([layer.rows(i) for layer in layers] for i in cut(layers[0].n, self.chunk))
        for run in runs if all(layer.in_memory for layer in layers) else ahead(runs, device):
            x = {u: rows.to(place, torch.float64) if careful[u] else rows for u, rows in zip(needed, run, strict=True)}
            for (u, v), total in zip(pairs, sums, strict=True):
                a, b = x[u], x[v]
                if u != v:
                    dtype = torch.promote_types(a.dtype, b.dtype)
                    where = place if dtype == torch.float64 else device
                    total.add_((a.to(where, dtype).T @ b.to(where, dtype)).to(place))
                    continue
                for start in range(0, total.shape[0], self._BLOCK):
                    some = slice(start, start + self._BLOCK)
                    total[some, start:].add_((a[:, some].T @ b[:, start:]).to(place))
        for (u, v), total in zip(pairs, sums, strict=True):
            if u == v:
                total.triu_().add_(total.triu(1).T)
        return sums


def _side_by_side(work: Callable[..., T], *items: Sequence[Any]) -> list[T]:
    """Do it to all of them, each in one thread, as many at a time as this process has.

    What is done to a pair, such as the decomposition of a small matrix, gains little by more threads for itself.
    """
    threads = torch.get_num_threads()
    with ThreadPoolExecutor(threads, "repsim-pairs", initializer=partial(torch.set_num_threads, 1)) as pool:
        done = list(pool.map(work, *items))
    torch.set_num_threads(threads)
    return done


def units_of_moments(
    rows: Sequence[int], columns: Sequence[int], room: int, *, symmetric: bool, norms: bool
) -> list[list[tuple[int, int]]]:
    """Group the pairs of layers, given by the widths of rows and columns, so that the sums of a group take little room.

    Layers are numbered as in `Sweep.layers`. Where the rows are among the columns (``symmetric``) they are the first of
    them, and a pair is there once. ``norms`` asks for every layer with itself, too.

    >>> units_of_moments([3, 3], [2], 8 * 6, symmetric=False, norms=False)
    [[(0, 2)], [(1, 2)]]
    >>> units_of_moments([3, 2], [3, 2], 1000, symmetric=True, norms=True)
    [[(0, 0), (0, 1), (1, 1)]]
    """
    first = 0 if symmetric else len(rows)
    values = max(1, room // 8)
    side = math.isqrt(values)
    tall, broad = sum(rows), sum(columns)
    if broad <= side:
        limits = values // broad, broad
    elif tall <= side:
        limits = tall, values // tall
    else:
        limits = side, side
    units = [
        [(u, v) for u in group for v in other if not (symmetric and v < len(rows) and v < u)]
        for group in _groups(rows, limits[0], 0)
        for other in _groups(columns, limits[1], first)
    ]
    if norms:
        widths = [*rows, *(columns[len(rows) :] if symmetric else columns)]
        alone = range(len(rows), len(widths)) if symmetric else range(len(widths))
        units += [[(u, u) for u in group] for group in _groups([widths[u] ** 2 for u in alone], values, alone.start)]
    return list(filter(None, units))


def _groups(sizes: Sequence[int], limit: int, first: int) -> Iterator[list[int]]:
    """Neighbours, numbered from ``first``, whose sizes sum to at most the limit; at least one in a group."""
    group: list[int] = []
    total = 0
    for k, size in enumerate(sizes, start=first):
        if group and total + size > limit:
            yield group
            group, total = [], 0
        group.append(k)
        total += size
    if group:
        yield group


def flop_of_grams(n: int, block: int, widths: Sequence[int], pairs: int) -> float:
    """Every layer's Gram matrix, of which one triangle is computed, and one product over it for every pair."""
    return float(n) * block * (sum(widths) + pairs)


def flop_of_moments(n: int, widths: Sequence[int], pairs: Iterable[tuple[int, int]]) -> float:
    """X'Y of every pair; of X'X one triangle is computed."""
    return 2.0 * n * sum(widths[u] * widths[v] / (2 if u == v else 1) for u, v in pairs)


def tile_side(layers: int, itemsize: int) -> int:
    """A side for tiles: large enough for fast products, small enough that a stack of them takes little memory."""
    return max(64, min(_TILE, math.isqrt(_STACK // (itemsize * layers))))


def here_and_now(rows: Sequence[Any], columns: Sequence[Any], measure: Any) -> Float64[np.ndarray, "rows columns"]:
    """All pairs of a few layers, by the road that takes fewer operations."""
    sweeps: list[GramSweep | MomentSweep] = []
    if "gram" in measure.roads:
        tile = tile_side(len(rows) + len(columns), 4)
        sweeps.append(GramSweep(rows, columns, [measure], panel=2048, tile=tile))
    if "moments" in measure.roads and all(hasattr(layer, "p") for layer in (*rows, *columns)):
        sweeps.append(MomentSweep(rows, columns, [measure], chunk=4096, room=2**27))
    return min(sweeps, key=lambda sweep: sweep.flop).run()[0]
