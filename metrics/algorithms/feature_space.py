"""Feature space: the cross-moments X'Y of every pair of layers, a run of samples at a time."""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, Protocol, TypeVar, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float64
from torch import Tensor
from typing_extensions import override

from repsim.metrics.algorithms.cross import Cross
from repsim.metrics.algorithms.sweep import SummedMeasure, SummedSweep, Sums
from repsim.metrics.recipes.rows import cut, float64_device, prefetch
from repsim.runtime import tuning

T = TypeVar("T")


@runtime_checkable
class MomentMeasure(SummedMeasure, Protocol):
    """What feature space asks of a measure."""

    @property
    def symmetric(self) -> bool:
        """Whether S_ab is S_ba."""

    def moment(self, cross: Cross[Any], /) -> Tensor | float:
        """S_ab of two layers."""


class MomentSweep(SummedSweep[MomentMeasure]):
    """Cross-moments X'Y of all pairs, a run of samples at a time: products in the layers' dtype, sums in float64.

    Products with an ``uneven`` layer are made in float64, too, and those with a narrow one, over whose
    few features the rounding errors of long sums would not average out.

    Parameters
    ----------
    chunk
        Samples of one run.
    room
        Bytes that the sums of one unit may take. Every unit reads its layers once, from the first sample to the last.
    """

    _BLOCK = 512
    """Columns that X'X is cut into, so that its lower triangle need not be computed."""

    def __init__(
        self, rows: Sequence[Any], columns: Sequence[Any], measures: Sequence[MomentMeasure], *, chunk: int, room: int
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

    @override
    def _noise(self, measure: MomentMeasure) -> Float64[np.ndarray, " layers"]:
        return np.zeros(len(self.layers))

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
        place = float64_device(device)
        sums = [torch.zeros(self.layers[u].p, self.layers[v].p, dtype=torch.float64, device=place) for u, v in pairs]
        narrow = tuning.current().narrow
        careful = {u: self.layers[u].p < narrow or self.layers[u].uneven for u in needed}
        runs = ([layer.rows(i) for layer in layers] for i in cut(layers[0].n, self.chunk))
        for run in runs if all(layer.in_memory for layer in layers) else prefetch(runs, device):
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
        coming = [pool.submit(tuning.in_context(work), *each) for each in zip(*items, strict=True)]
        done = [future.result() for future in coming]
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


def flop_of_moments(n: int, widths: Sequence[int], pairs: Iterable[tuple[int, int]]) -> float:
    """Operations: X'Y of every pair; of X'X one triangle is computed."""
    return 2.0 * n * sum(widths[u] * widths[v] / (2 if u == v else 1) for u, v in pairs)
