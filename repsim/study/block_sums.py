"""Compute the similarities of a block of layers: on all samples, on halves of them, and without each of them."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Bool, Float64, Int64
from typing_extensions import override

from repsim.engine.resampling import random_permutations
from repsim.engine.sample_sums import Products, SampleSums
from repsim.runtime.processes import Ranks
from repsim.runtime.progress import spread
from repsim.study.blocks import Sides
from repsim.study.gram_passes import Kernels, Matrices
from repsim.study.similarities import Similarities


@dataclass(frozen=True, eq=False)
class Halves:
    """Random divisions of the units (samples, or groups of samples) into two halves.

    Units are divided at random into cells of equal size, and a half has half of the cells: those with +1 in a column of
    a Hadamard matrix (balanced half-samples, McCarthy 1969). So the divisions are as different as they can be, and what
    is summed over pairs of cells serves all of them.
    """

    cells: Int64[np.ndarray, " n"]
    """Cell of each sample."""
    first: Bool[np.ndarray, "splits cells"]
    """Whether each cell is in the first half, for each division."""

    @property
    def splits(self) -> int:
        """Number of divisions."""
        return len(self.first)

    @property
    def subsets(self) -> Bool[np.ndarray, "halves cells"]:
        """Cells of the first and the second half of each division, in turn."""
        return np.stack([self.first, ~self.first], 1).reshape(-1, self.first.shape[1])

    def samples(self, half: int) -> Int64[np.ndarray, " m"]:
        """Return the samples of one of `subsets`, in increasing order."""
        return np.flatnonzero(self.subsets[half][self.cells])


def draw_halves(unit_of: Int64[np.ndarray, " n"], splits: int, seed: int) -> Halves:
    """Divide units into halves, as often as wanted or as their number allows.

    >>> halves = draw_halves(np.arange(12), 3, seed=0)
    >>> halves.first.astype(int)
    array([[1, 0, 1, 0],
           [1, 1, 0, 0],
           [1, 0, 0, 1]])
    >>> np.bincount(halves.cells), len(halves.samples(0)), len(halves.samples(1))
    (array([3, 3, 3, 3]), 6, 6)
    """
    units = int(unit_of.max()) + 1
    most = 1 << max(1, (units // 2).bit_length() - 1)  # cells of at least two units
    cells = min(most, 1 << splits.bit_length())
    splits = min(splits, cells - 1)
    order = random_permutations(units, 1, seed)[0]
    cell_of_unit = np.empty(units, np.int64)
    cell_of_unit[order] = np.arange(units) % cells
    columns = np.arange(1, splits + 1)[:, None] & np.arange(cells)
    parity = np.array([[value.bit_count() % 2 for value in row] for row in columns.tolist()])
    return Halves(cell_of_unit[unit_of], parity == 0)


class BlockSums(ABC):
    """Similarities of the layers of a block."""

    def __init__(self, kernels: Kernels, sides: Sides, halves: Halves) -> None:
        self.kernels, self.sides, self.drawn = kernels, sides, halves

    @abstractmethod
    def compute(self, me: Ranks, step: Callable[[], None]) -> None:
        """Make the Gram matrices and sum them, shared among processes; ``step`` is called after each unit."""

    @property
    @abstractmethod
    def every(self) -> Similarities:
        """Similarities on all samples."""

    @property
    @abstractmethod
    def squares(self) -> Float64[np.ndarray, " layers"]:
        """||A||^2 of the layers of the block, in the order of `Sides.layers`."""

    @property
    def cubes(self) -> Float64[np.ndarray, " layers"] | None:
        """sum_ij A_ij^3 of these layers; None if it is not known."""
        return None

    @property
    def row_squares(self) -> Float64[np.ndarray, "n layers"] | None:
        """sum_j A_ij^2 of these layers, for each sample; None if it is not known."""
        return None

    @abstractmethod
    def halves(self) -> Iterator[tuple[Similarities, Similarities]]:
        """Yield the similarities on both halves, for each division of the samples."""

    @abstractmethod
    def without(self, run: slice) -> Similarities:
        """Return the similarities without each unit of a run."""


class IndependentSums(BlockSums):
    """Similarities if every sample is independent: sums over single samples, from one pass over all Gram matrices."""

    def __init__(
        self,
        kernels: Kernels,
        sides: Sides,
        halves: Halves,
        *,
        cubes: bool,
        panel: int = 0,
        tile: int = 0,
        held: int = 2,
    ) -> None:
        super().__init__(kernels, sides, halves)
        self._cubes = cubes
        self._sums = SampleSums(
            [kernels.grams[k] for k in sides.rows], [kernels.grams[k] for k in sides.columns], cells=halves.cells,
            subsets=halves.subsets, classes=kernels.classes, cubes=cubes, panel=panel, tile=tile, held=held,
        )  # fmt: skip

    def compute(self, me: Ranks, step: Callable[[], None]) -> None:
        """Sum the pairs of panels, each in one process."""
        self._sums.prepare(me.gather, me.part)
        order = list(self._sums.order)
        self._sums.accumulate(order[me.part(len(order))], step)
        if me.world > 1:
            self._sums.exchange(me.add)

    @cached_property
    def every(self) -> Similarities:
        """Similarities on all samples."""
        within = self._sums.within_whole if self.kernels.classes is not None else None
        return self._similarities(self._sums.all, within, np.asarray(self.kernels.degrees_of_freedom))

    @property
    def squares(self) -> Float64[np.ndarray, " layers"]:
        """||A||^2 of the layers of the block."""
        return self._sums.all.own

    @property
    @override
    def cubes(self) -> Float64[np.ndarray, " layers"] | None:
        return self._sums.cubes if self._cubes else None

    @property
    @override
    def row_squares(self) -> Float64[np.ndarray, "n layers"] | None:
        return self._sums.row_squares if self._cubes else None

    def halves(self) -> Iterator[tuple[Similarities, Similarities]]:
        """Yield the similarities on both halves, for each division of the samples."""
        for split in range(self.drawn.splits):
            yield self._of_subset(2 * split), self._of_subset(2 * split + 1)

    def _of_subset(self, subset: int) -> Similarities:
        m = len(self.drawn.samples(subset))
        within = None if self.kernels.classes is None else self._sums.within(1 + subset)
        return self._similarities(self._sums.subset(subset), within, np.asarray(m * (m - 3.0)))

    def without(self, run: slice) -> Similarities:
        """Return the similarities without each sample of a run."""
        n = self.kernels.n
        within = None if self.kernels.classes is None else self._sums.within_without(run)
        return self._similarities(self._sums.without(run), within, np.asarray((n - 1) * (n - 4.0)))

    def _similarities(
        self, products: Products, within: Products | None, degrees: Float64[np.ndarray, ""]
    ) -> Similarities:
        """Return debiased CKA, and inner products within classes in units of all energy."""
        norms = np.sqrt(products.own)
        parts = [self._divided(products, norms)]
        ones = np.where(np.isnan(norms), np.nan, 1.0)
        own = [ones]
        if within is not None:
            energies = np.sqrt(np.where(products.own > 0, products.own, np.nan) / degrees)
            parts.append(self._divided(within, energies))
            own.append(within.own / np.square(energies))
        values, of_layers = np.stack(parts, -3), np.stack(own, -2)
        height, first = self._sums.height, self._sums.first
        same = self.sides.rows[:, None] == self.sides.columns
        rows, columns = np.nonzero(same)
        values[..., rows, columns] = of_layers[..., rows]  # exactly
        if self._sums.square:
            values = (values + values.swapaxes(-1, -2)) / 2  # rounding
        return Similarities(
            values, of_layers[..., :height], of_layers[..., first:], self.sides.rows, self.sides.columns
        )

    def _divided(
        self, products: Products, norms: Float64[np.ndarray, "*batch layers"]
    ) -> Float64[np.ndarray, "*batch rows columns"]:
        left, right = norms[..., : self._sums.height, None], norms[..., None, self._sums.first :]
        return np.asarray(products.pairs / left / right)


class GroupedSums(BlockSums):
    """Similarities if samples are in groups: rows of Gram matrices of one run of groups after the other.

    All layers of the block are compared with all others, and the rows and columns are selected.
    """

    def __init__(self, kernels: Kernels, sides: Sides, halves: Halves, *, room: int) -> None:
        super().__init__(kernels, sides, halves)
        self._layers = sides.layers
        self._part = kernels.select(self._layers.tolist())
        self._sweep = self._part.leave_one_out(room)
        self._left: Float64[np.ndarray, "units kinds K K"] = np.zeros((0, 0, 0, 0))
        self._on_halves: list[Matrices] = []

    def compute(self, me: Ranks, step: Callable[[], None]) -> None:
        """Sum the runs of groups, and make the matrices of the halves, each in one process.

        Third moments are those of permutations of single samples, so they are not computed.
        """
        counted = spread(step, -(-self.kernels.units // me.world))  # ``step`` counts groups, of all processes
        done, parts = 0, self._sweep.units_of(me)

        def stepped() -> None:
            nonlocal done
            done += 1
            counted(done, parts)

        runs = me.gather(list(self._sweep.runs(stepped, me)))
        self._left = np.concatenate([run for of_process in runs for run in of_process])
        everything, halves = np.arange(len(self._layers)), range(2 * self.drawn.splits)
        own = [self._part.values_on(self.drawn.samples(half), everything) for half in halves[me.part(len(halves))]]
        self._on_halves = [matrices for of_process in me.gather(own) for matrices in of_process]

    @property
    def every(self) -> Similarities:
        """Similarities on all samples."""
        return self._selected(self._sweep.full_values)

    @property
    def squares(self) -> Float64[np.ndarray, " layers"]:
        """||A||^2 of the layers of the block."""
        return self._sweep.squares

    def halves(self) -> Iterator[tuple[Similarities, Similarities]]:
        """Yield the similarities on both halves, for each division of the groups."""
        for split in range(self.drawn.splits):
            yield self._selected(self._on_halves[2 * split]), self._selected(self._on_halves[2 * split + 1])

    def without(self, run: slice) -> Similarities:
        """Return the similarities without each group of a run."""
        return self._selected(self._left[run])

    def _selected(self, matrices: Float64[np.ndarray, "*batch kinds K K"]) -> Similarities:
        place = {k: i for i, k in enumerate(self._layers.tolist())}
        rows, columns = (
            np.array([place[k] for k in side.tolist()], int) for side in (self.sides.rows, self.sides.columns)
        )
        own = np.diagonal(matrices, axis1=-2, axis2=-1)
        return Similarities(
            matrices[..., rows[:, None], columns],
            own[..., rows],
            own[..., columns],
            self.sides.rows,
            self.sides.columns,
        )


def block_sums(
    kernels: Kernels,
    sides: Sides,
    halves: Halves,
    *,
    cubes: bool,
    room: int,
    panel: int = 0,
    tile: int = 0,
    held: int = 2,
) -> BlockSums:
    """Return the sums of a block, for samples that are independent or in groups."""
    if kernels.groups is None:
        return IndependentSums(kernels, sides, halves, cubes=cubes, panel=panel, tile=tile, held=held)
    return GroupedSums(kernels, sides, halves, room=room)
