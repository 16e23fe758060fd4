"""Compute debiased CKA with each sample left out, exactly, for the jackknife."""

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float64
from torch import Tensor
from typing_extensions import override

from repsim.errors import InvalidInputError
from repsim.metrics.algorithms.gram_space import GramMeasure, GramSweep, tile_side
from repsim.metrics.recipes.rows import float64_device
from repsim.runtime import tuning


class LeaveOneOut(GramSweep):
    """Debiased CKA of all pairs of layers with each sample left out, from one sum over the tiles.

    Beside <A, B> it computes D_i = sum_j A_ij B_ij for each sample i. Without sample i, m = n - 1 samples are left, and
    m (m - 3) HSIC_1 = tr(A'B') + (1'A'1)(1'B'1) / ((m-1)(m-2)) - 2/(m-2) 1'A'B'1, where A' is A without row and
    column i. (A' is centred over all n samples and not over the m left, but HSIC_1 is invariant to offsets of rows and
    columns.) The rows of A sum to 0, so those of A' sum to -A_ij, and all entries of A' sum to A_ii = 0. The result is
    <A, B> - 2 D_i - 2/(n-3) D_i, that is

        <A, B> - c D_i with c = 2 (n-2) / (n-3).

    The sums of single samples are too large for a checkpoint. They are kept in memory: for all samples at once if they
    take at most ``room`` bytes; otherwise for one run of samples after the other, and then every tile is computed
    twice, once for the samples of each side.

    Parameters
    ----------
    rows, columns : sequence of Gram
        Factors of ``measure`` over the same n samples.
    measure : GramMeasure
        Debiased CKA.
    panel : int
        Samples whose features are read at once; 0 for the setting of `tuning`.
    tile : int
        Side of a tile in samples; 0 for the largest that fits the setting of `tuning`.
    room : int
        Bytes for the sums of single samples; 0 for the setting of `tuning`.
    """

    def __init__(
        self,
        rows: Sequence[Any],
        columns: Sequence[Any],
        measure: GramMeasure,
        *,
        panel: int = 0,
        tile: int = 0,
        room: int = 0,
    ) -> None:
        panel, room = panel or tuning.current().panel, room or tuning.current().unit_memory
        tile = tile or tile_side(len({id(layer) for layer in [*rows, *columns]}), 4)
        super().__init__(rows, columns, [measure], panel=panel, tile=tile)
        self._check_groups()
        n, sample = self.draws[0].n, 8 * (self.height * self.width + len(self.layers))
        self._twice = n * sample > room
        if self._twice:
            super().__init__(rows, columns, [measure], panel=max(1, min(panel, room // sample)), tile=tile)
            count = len(self._panels_of)
            self._pairs = [(i, j) for i in range(count) for j in range(count)]
        self.full_values = np.full((self.height, len(self._columns)), np.nan)
        """Values with all samples, of shape (rows, columns); set with the first run."""
        self.squares = np.zeros(len(self.layers))
        """||A||^2 of every layer, of all samples; set with the first run."""
        self.squares_left = np.zeros((0, len(self.layers)))
        """||A||^2 of every layer without each sample of the latest run."""
        self._run = slice(0, 0)
        self._products = self._squares = torch.empty(0)

    def _check_groups(self) -> None:
        if self.groups is not None:
            raise InvalidInputError("samples in groups are left out group by group (LeaveOneGroupOut)")

    def left_out(self, step: Callable[[], None]) -> Float64[np.ndarray, "n rows columns"]:
        """Return the values of all samples: value (i, a, b) is that of row a and column b without sample i."""
        return np.concatenate([values for _, values in self.runs(step)])

    def runs(self, step: Callable[[], None]) -> Iterator[tuple[slice, Float64[np.ndarray, "run rows columns"]]]:
        """Yield runs of samples with the values that leave out each sample of the run.

        A value is NaN if a norm is not larger than its rounding errors. ``step`` is called after every unit.
        """
        squares: Float64[np.ndarray, " layers"]
        if self._twice:
            products, squares = self._totals()
            for run in self._panels_of:
                self._sum(run, [u for u, (i, _) in enumerate(self._pairs) if self._panels_of[i] == run], step)
                yield run, self._without(products, squares)
        else:
            samples = slice(0, self.draws[0].n)
            self._sum(samples, self.order, step)
            yield samples, self._without(self._products.sum(0).cpu().numpy(), self._squares.sum(0).cpu().numpy())

    def _totals(self) -> tuple[Float64[np.ndarray, "height width"], Float64[np.ndarray, " layers"]]:
        """Return <A, B> of all pairs and ||A||^2 of all layers over all samples."""
        columns = [self.layers[self.first + k] for k in self._columns]
        sweep = GramSweep(
            self.layers[: self.height], columns, self.measures, panel=tuning.current().panel, tile=self.tile
        )
        sums = functools.reduce(np.add, sweep.parts(sweep.order))
        return sums[: self.height * self.width].reshape(self.height, self.width), sums[self.height * self.width :]

    def _sum(self, run: slice, units: Sequence[int], step: Callable[[], None]) -> None:
        """Compute the sums D_i of the samples of a run."""
        count, place = run.stop - run.start, float64_device(self.device)
        self._run = run
        self._products = torch.zeros(count, self.height, self.width, dtype=torch.float64, device=place)
        self._squares = torch.zeros(count, len(self.layers), dtype=torch.float64, device=place)
        for _ in self.parts(units):
            step()

    def _values(
        self, products: Float64[np.ndarray, "*run height width"], norms: Float64[np.ndarray, "*run layers"]
    ) -> Float64[np.ndarray, "*run rows columns"]:
        """Return <A, B> / (||A|| ||B||)."""
        values: Float64[np.ndarray, "*run rows columns"] = products[..., self._columns]
        values /= norms[..., : self.height, None]
        values /= norms[..., None, [self.first + k for k in self._columns]]
        return values

    def _without(
        self, products: Float64[np.ndarray, "height width"], squares: Float64[np.ndarray, " layers"]
    ) -> Float64[np.ndarray, "run rows columns"]:
        n = self.draws[0].n
        c = 2 * (n - 2) / (n - 3)
        squares_without = squares - c * self._squares.cpu().numpy()
        self.squares, self.squares_left = squares, squares_without
        eps = np.array([draw.eps for draw in self.draws]).reshape(self.times, -1).max(0)
        noise = np.maximum(self._noise(self.measures[0]), 100 * eps * abs(squares))  # cancellation in the difference
        self.full_values = self._values(products, np.sqrt(np.where(squares > noise, squares, np.nan)))
        norms = np.sqrt(np.where(squares_without > noise, squares_without, np.nan))
        return self._values(products - c * self._products.cpu().numpy(), norms)

    @override
    def _collect(self, stack: Tensor, i: slice, j: slice, products: Tensor, squares: Tensor) -> None:
        """Add a tile to the sums of its rows' samples and, if it stands for its transpose, its columns' samples."""
        self._add(stack, i)
        once = i == j or not self._run.start <= j.start < self._run.stop  # else the tile also stands for its transpose
        if once:
            return
        transposed = stack.new_empty(*stack.shape[:2], stack.shape[3], stack.shape[2])
        for source, target in zip(stack.flatten(0, 1), transposed.flatten(0, 1), strict=True):
            target.copy_(source.T)  # one matrix at a time, because torch then transposes in blocks
        self._add(transposed, j)

    def _add(self, stack: Tensor, i: slice) -> None:
        place = self._products.device
        samples = slice(i.start - self._run.start, i.stop - self._run.start)
        by_row = stack.transpose(1, 2)
        for left, right in zip(by_row, reversed(list(by_row)), strict=True):
            pairs = left[:, : self.height] @ right[:, self.first :].mT
            self._products[samples] += pairs.to(place).double() / self.times
        self._squares[samples] += torch.linalg.vecdot(stack[0], stack[-1]).T.to(place).double()
