"""Compare chosen pairs of models by debiased CKA, with each sample left out, in one pass over all Gram matrices.

A series of models compares each of them with a few others only, so that the matrix of all layers with all layers would
be mostly unused. Every sum of a pair depends on the features of its two models alone, and is computed in the same order
and in products of the same shape whichever other pairs are computed with it. So the values are equal to the bit whether
pairs are computed at once, one after the other, or by several processes.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Float64, Int64
from torch import Tensor
from typing_extensions import override

from repsim.metrics.algorithms.gram_space import GramSweep
from repsim.metrics.cka import CKA
from repsim.metrics.recipes.gram import Gram
from repsim.metrics.recipes.rows import float64_device
from repsim.runtime import tuning

_ALIGNED = 16
"""Number of float32 values of a cache line: tiles of other sizes are copied, so that products see equal alignments."""


@dataclass(eq=False)
class Block:
    """Sums of the layers of one model with those of another, or with the controls."""

    rows: slice
    """Layers of the first model, as positions in the list of all layers."""
    columns: slice
    matched: tuple[Int64[np.ndarray, " m"], Int64[np.ndarray, " m"]] | None = None
    """Pairs of layers of which the sums of single samples are kept, as positions in all layers. None: of all pairs."""
    whole: bool = True
    """Whether sums of all pairs of layers are needed, and not only those of the matched ones."""
    products: Float64[np.ndarray, "rows columns"] = field(default_factory=lambda: np.zeros((0, 0)))
    """<A, B> of all pairs of layers; NaN if only the matched ones were needed."""
    of_samples: Float64[np.ndarray, "samples ..."] = field(default_factory=lambda: np.zeros((0, 0)))
    """D_i = sum_j A_ij B_ij of the matched pairs, (n, m), or of all pairs, (n, rows, columns)."""

    def matched_products(self) -> Float64[np.ndarray, " m"]:
        """Return <A, B> of the matched pairs, as the sum over samples."""
        return np.asarray(self.of_samples.sum(0))


class ModelPairs(GramSweep):
    """Sums over the tiles of the U-centred Gram matrices of chosen pairs of models.

    Parameters
    ----------
    layers : sequence of Gram
        Layers of all models and controls, over the same samples.
    blocks : sequence of Block
        Pairs of models; their sums are set by `run`.
    dtype : torch.dtype
        Dtype of tiles; that of all layers of the series, and not only of these, so that values do not depend on which
        models are computed together.
    """

    def __init__(self, layers: Sequence[Gram], blocks: Sequence[Block], dtype: torch.dtype) -> None:
        settings = tuning.current()
        super().__init__(layers, layers, [CKA()], panel=settings.series_panel, tile=settings.series_tile)
        self.dtype, self.blocks = dtype, blocks
        place = float64_device(self.device)
        n = self.draws[0].n
        self._sums: list[tuple[Tensor, Tensor]] = []
        for block in blocks:
            shape = block.rows.stop - block.rows.start, block.columns.stop - block.columns.start
            kept = shape if block.matched is None else (len(block.matched[0]),)
            zeros = (torch.zeros(size, dtype=torch.float64, device=place) for size in (shape, (n, *kept)))
            self._sums.append((next(zeros), next(zeros)))

    def run_blocks(self, step: Callable[[], None]) -> None:
        """Compute all blocks; ``step`` is called after every unit."""
        for _ in self.parts(self.order):
            step()
        for block, (products, of_samples) in zip(self.blocks, self._sums, strict=True):
            block.products = products.cpu().numpy() if block.whole else np.full(tuple(products.shape), np.nan)
            block.of_samples = of_samples.cpu().numpy()

    @property
    def noise(self) -> Float64[np.ndarray, " layers"]:
        """Largest ||A||^2 of every layer that is only rounding errors."""
        return self._noise(self.measures[0])

    @override
    def _collect(self, stack: Tensor, i: slice, j: slice, products: Tensor, squares: Tensor) -> None:
        tiles = stack[0]
        once = i == j
        for block, (totals, of_samples) in zip(self.blocks, self._sums, strict=True):
            if not totals.numel():  # none of the layers of a model has a Gram matrix
                continue
            if block.whole or block.matched is None:
                a, b = (self._side(tiles, side) for side in (block.rows, block.columns))
                by_row = a.transpose(0, 1) @ b.permute(1, 2, 0)  # (i, rows, columns): short sums, in float32
                of_rows = by_row.to(of_samples.device).double()
                totals.add_((1 if once else 2) * of_rows.sum(0))
                if block.matched is None:
                    of_samples[i] += of_rows
                    if not once:
                        of_samples[j] += (a.permute(2, 0, 1) @ b.permute(2, 1, 0)).to(of_samples.device).double()
            if block.matched is not None:
                for k, (row, column) in enumerate(zip(*map(np.ndarray.tolist, block.matched), strict=True)):
                    both = tiles[row] * tiles[column]
                    of_samples[i, k] += both.sum(1).to(of_samples.device).double()
                    if not once:
                        of_samples[j, k] += both.sum(0).to(of_samples.device).double()

    @staticmethod
    def _side(tiles: Tensor, layers: slice) -> Tensor:
        """Return the tiles of these layers, at an address that has the alignment of a new array."""
        side = tiles[layers]
        return side if side[0].numel() % _ALIGNED == 0 else side.clone()
