"""Comparison pair by pair, in blocks of layers, for measures that are not sums over samples."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float64
from typing_extensions import override

from repsim.metrics.algorithms.sweep import Sums, Sweep
from repsim.metrics.recipes.rows import cut


@runtime_checkable
class BlockMeasure(Protocol):
    """Measure that the algorithm supports."""

    def block(self, rows: Sequence[Any], columns: Sequence[Any], /) -> Float64[np.ndarray, "rows columns"]:
        """Compare every row layer with every column layer."""


class PairSweep(Sweep[BlockMeasure]):
    """Blocks of pairs, for measures that compare two prepared layers.

    Parameters
    ----------
    group : int
        Layers per side of a block.
    """

    def __init__(
        self, rows: Sequence[Any], columns: Sequence[Any], measures: Sequence[BlockMeasure], *, group: int
    ) -> None:
        super().__init__(rows, columns, measures)
        self._blocks = [
            (i, slice(j.start - self.first, j.stop - self.first))
            for i in cut(self.height, group)
            for j in cut(self.width, group, self.first)
        ]

    @property
    def units(self) -> int:
        """Number of blocks."""
        return len(self._blocks)

    def parts(self, units: Iterable[int]) -> Iterator[Sums]:
        """Yield the `Metric.block` of each block of pairs."""
        for unit in units:
            i, j = self._blocks[unit]
            rows, columns = self.layers[i], self.layers[self.first :][j]
            part = np.zeros((len(self.measures), self.size // len(self.measures)))
            for sums, measure in zip(part, self.measures, strict=True):
                sums[: self.height * self.width].reshape(self.height, self.width)[i, j] = measure.block(rows, columns)
            yield part.ravel()

    @override
    def _finished(
        self, measure: BlockMeasure, products: Float64[np.ndarray, "rows columns"], squares: Sums
    ) -> Float64[np.ndarray, "rows columns"]:
        return products
