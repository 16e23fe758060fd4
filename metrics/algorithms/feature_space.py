"""Comparison in feature space: cross-moments X'Y of all pairs of layers, summed over runs of samples."""

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float64
from torch import Tensor
from typing_extensions import override

from repsim.metrics.algorithms.cross import Cross
from repsim.metrics.algorithms.sweep import SummedMeasure, SummedSweep, Sums
from repsim.metrics.recipes.rows import cut, float64_device, prefetch
from repsim.runtime import tuning
from repsim.runtime.threads import map_in_threads


@runtime_checkable
class MomentMeasure(SummedMeasure, Protocol):
    """Measure that the algorithm in feature space supports."""

    @property
    def symmetric(self) -> bool:
        """Whether S_ab equals S_ba."""

    def moment(self, cross: Cross[Any], /) -> Tensor | float:
        """Return S_ab of two layers."""


class MomentSweep(SummedSweep[MomentMeasure]):
    """Cross-moments X'Y of all pairs, in runs of samples: products in the dtype of the layers, sums in float64.

    Products with an ``uneven`` layer are computed in float64, too, and products with a narrow layer, because the
    rounding errors of long sums do not average out over few features.

    Parameters
    ----------
    chunk : int
        Number of samples per run.
    room : int
        Bytes for the sums of one unit. Every unit reads its layers once, from the first sample to the last.
    """

    _BLOCK = 512
    """Width of the column blocks of X'X; blocks below the diagonal are not computed."""

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
        """Number of groups of pairs."""
        return len(self._units)

    @property
    def flop(self) -> float:
        """Floating-point operations of all units."""
        widths = [layer.p for layer in self.layers]
        return flop_of_moments(self.layers[0].n, widths, (pair for unit in self._units for pair in unit))

    def parts(self, units: Iterable[int]) -> Iterator[Sums]:
        """Yield the sums of each group of pairs."""
        for unit in units:
            pairs = self._units[unit]
            part = np.zeros((len(self.measures), self.size // len(self.measures)))
            for (u, v), both in zip(pairs, self._all_values(pairs), strict=True):
                for sums, (forward, backward) in zip(part, both, strict=True):
                    products = sums[: self.height * self.width].reshape(self.height, self.width)
                    if u == v:
                        sums[self.height * self.width + u] = forward
                    if self._wanted(u, v):
                        products[u, v - self.first] = forward
                    if self._wanted(v, u):
                        products[v, u - self.first] = backward
            yield part.ravel()

    @override
    def _noise(self, measure: MomentMeasure) -> Float64[np.ndarray, " layers"]:
        return np.zeros(len(self.layers))

    def _wanted(self, u: int, v: int) -> bool:
        return u < self.height and v >= self.first

    def _compare(self, pair: tuple[int, int], moments: Tensor) -> list[tuple[float, float]]:
        """Return S_ab and S_ba of every measure; S_ba is computed only if it is needed and differs."""
        a, b = (self.layers[u] for u in pair)
        forward = Cross(a, b, moments)
        backward = forward.swapped
        both_ways = self._wanted(*pair[::-1]) and pair[0] != pair[1]
        values = []
        for measure in self.measures:
            value = float(measure.moment(forward))
            values.append((value, float(measure.moment(backward)) if both_ways and not measure.symmetric else value))
        return values

    def _all_values(self, pairs: Sequence[tuple[int, int]]) -> list[list[tuple[float, float]]]:
        """Compare all pairs in threads.

        With layers in memory a thread also multiplies the layers of its pair, so that only the moments of a few pairs
        are in memory, and all threads are busy all the time. Otherwise all moments are summed in one pass.
        """
        needed = {u for pair in pairs for u in pair}
        alone = len(pairs) < torch.get_num_threads()  # then the threads multiply together
        if alone or not all(self.layers[u].in_memory for u in needed):
            return map_in_threads(self._compare, pairs, self._moments(pairs), share_one=True)
        return map_in_threads(lambda pair: self._compare(pair, self._moments([pair])[0]), pairs, share_one=True)

    def _moments(self, pairs: Sequence[tuple[int, int]]) -> list[Tensor]:
        """Return X'Y of every pair: sums in float64, or the product itself if all samples make one run."""
        needed = sorted({u for pair in pairs for u in pair})
        layers = [self.layers[u] for u in needed]
        device = layers[0].device
        place = float64_device(device)
        narrow = tuning.current().narrow
        in_float64 = {u: self.layers[u].p < narrow or self.layers[u].uneven for u in needed}
        sums: list[Tensor | None] = [None] * len(pairs)
        runs = ([layer.rows(i) for layer in layers] for i in cut(layers[0].n, self.chunk))
        for run in runs if all(layer.in_memory for layer in layers) else prefetch(runs, device):
            x = {
                u: rows.to(place, torch.float64) if in_float64[u] else rows for u, rows in zip(needed, run, strict=True)
            }
            for k, (u, v) in enumerate(pairs):
                product = self._squared(x[u]) if u == v else self._product(x[u], x[v], place)
                total = sums[k]
                if layers[0].n <= self.chunk:
                    sums[k] = product
                elif total is None:
                    sums[k] = product.to(place, torch.float64)
                else:
                    total.add_(product.to(place))
        return [total for total in sums if total is not None]

    @staticmethod
    def _product(a: Tensor, b: Tensor, place: torch.device) -> Tensor:
        dtype = torch.promote_types(a.dtype, b.dtype)
        device = place if dtype == torch.float64 else a.device
        return a.to(device, dtype).T @ b.to(device, dtype)

    def _squared(self, a: Tensor) -> Tensor:
        """Return X'X; blocks below the diagonal are copies."""
        total = a.new_empty(a.shape[1], a.shape[1])
        for start in range(0, len(total), self._BLOCK):
            block = slice(start, start + self._BLOCK)
            torch.mm(a[:, block].T, a[:, start:], out=total[block, start:])
        return total.triu_().add_(total.triu(1).T)


def units_of_moments(
    rows: Sequence[int], columns: Sequence[int], room: int, *, symmetric: bool, norms: bool
) -> list[list[tuple[int, int]]]:
    """Group the pairs of layers, such that the sums of each group fit into ``room`` bytes.

    ``rows`` and ``columns`` are the widths of the layers, which are numbered as in `Sweep.layers`. If the rows are
    among the columns (``symmetric``), they are the first of them, and each pair appears once. ``norms`` adds every
    layer with itself.

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
        [(u, v) for u in row_group for v in column_group if not (symmetric and v < len(rows) and v < u)]
        for row_group in _groups(rows, limits[0], 0)
        for column_group in _groups(columns, limits[1], first)
    ]
    if norms:
        widths = [*rows, *(columns[len(rows) :] if symmetric else columns)]
        layers = range(len(rows), len(widths)) if symmetric else range(len(widths))
        units += [[(u, u) for u in group] for group in _groups([widths[u] ** 2 for u in layers], values, layers.start)]
    return list(filter(None, units))


def _groups(sizes: Sequence[int], limit: int, first: int) -> Iterator[list[int]]:
    """Yield groups of consecutive indices, from ``first``, whose sizes sum to at most the limit, or of one index."""
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
    """Return the operations of X'Y of every pair, and of one triangle of X'X."""
    return 2.0 * n * sum(widths[u] * widths[v] / (2 if u == v else 1) for u, v in pairs)
