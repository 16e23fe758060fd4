"""Estimate all indices of a study from its kernels: from halves of the samples, from all, and without each.

The work is done block by block (`repsim.study.blocks`). A finished block is kept on disk.
"""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from itertools import chain
from typing import Any

import numpy as np
from jaxtyping import Float, Float64, Int64

from repsim._version import __version__
from repsim.engine.uncertainty import errors_of
from repsim.runtime import interrupts, tuning
from repsim.runtime.processes import ALONE, Ranks
from repsim.runtime.progress import Steps, counter
from repsim.runtime.threads import map_in_threads
from repsim.study.block_sums import BlockSums, Halves, block_sums, draw_halves
from repsim.study.blocks import Block, Sides, sides
from repsim.study.controls import Control
from repsim.study.design import Design, Member, Pair
from repsim.study.gram_passes import Kernels, Matrices
from repsim.study.indices import Indices, Key, Maps, cross_fitted, matches_on, mean_over_splits
from repsim.study.layer_matching import LayerMaps
from repsim.study.planning import SINGLE, StudyPlan
from repsim.study.similarities import Similarities
from repsim.study.units import Sharing

_SPLIT_SAMPLES = 20_000
"""Number of samples of all splits together: with many samples, fewer splits are as precise."""
_RUNS = 16
"""Runs of units without which values are computed, and whose sums are added, before those of other runs."""


@dataclass(frozen=True, eq=False)
class Estimates:
    """All indices of a study, and the values from which their intervals follow."""

    matrices: Matrices
    """Debiased CKA of all layers and controls and, with classes, similarities within classes."""
    indices: Indices
    """Indices along the mean maps of layers from halves of the samples, and along the best matches on all samples."""
    theta: Float64[np.ndarray, " T"]
    """All indices: matches come from one half of the samples and similarities from the other, mean over splits, minus
    the jackknife's estimate of the bias that a ratio has in half of the samples. Plain indices ("best") and energies
    that are left come from all samples."""
    theta_of_all: Float64[np.ndarray, " T"]
    """All indices along the same maps, from all samples."""
    splits: Float64[np.ndarray, "splits T"]
    """All indices from each split of the samples; the number of splits is finite, so their mean varies at random."""
    changes: Float[np.ndarray, "units T"]
    """Indices of all samples, minus those without each sample or group of samples."""
    errors: dict[str, Float64[np.ndarray, "layers layers"]]
    """Standard errors of the similarities of layers, by the kind of control that is projected out."""
    null_variances: tuple[float, ...]
    """Variance of the similarity of unrelated layers in each of the matrices; NaN if it is not known."""
    squares: Float64[np.ndarray, " L"]
    """||A||^2 of the Gram matrices of all layers and controls."""
    cubes: Float64[np.ndarray, " L"] | None
    """Sums of cubes of the Gram matrices, from which third moments follow; None if samples are in groups."""
    row_squares: Float64[np.ndarray, "n L"] | None
    """Sums of squares of the rows of the Gram matrices; None if samples are in groups."""

    @property
    def units(self) -> int:
        """Number of samples, or of groups of samples, that are left out."""
        return len(self.changes)

    def without(
        self, columns: Sequence[int] | Int64[np.ndarray, " k"], run: slice = slice(None)
    ) -> Float64[np.ndarray, "units k"]:
        """Return the indices in some columns, without each sample or group of samples, or each of a run of them."""
        return np.asarray(self.theta_of_all[columns] - self.changes[run][:, columns])


@dataclass(frozen=True, eq=False)
class BlockEstimates:
    """Numbers of one block: similarities of its layers, and the parts of indices of its pairs of models."""

    values: Float64[np.ndarray, "kinds rows columns"]
    own: Float64[np.ndarray, "kinds layers"]
    squares: Float64[np.ndarray, " layers"]
    cubes: Float64[np.ndarray, " layers"]
    """NaN if they are not known."""
    row_squares: Float64[np.ndarray, "samples layers"]
    """sum_j A_ij^2 for each sample; of no samples if they are not known."""
    maps: Float64[np.ndarray, " weights"]
    """Maps of layers of all pairs and kinds, in both directions: from halves, and then on all samples."""
    of_all: Float64[np.ndarray, " parts"]
    splits: Float64[np.ndarray, "splits parts"]
    without: Float64[np.ndarray, "units parts"]
    errors: Float64[np.ndarray, "conditions rows columns"]

    def flat(self) -> Float64[np.ndarray, " all"]:
        """Return all numbers as one vector."""
        arrays: list[np.ndarray] = [getattr(self, field.name) for field in fields(self)]
        return np.concatenate([array.ravel() for array in arrays])

    @classmethod
    def from_flat(cls, numbers: Float64[np.ndarray, " all"], shapes: Sequence[tuple[int, ...]]) -> "BlockEstimates":
        """Return the estimates whose `flat` is given."""
        ends = np.cumsum([int(np.prod(shape)) for shape in shapes])
        parts = np.split(numbers, ends[:-1])
        return cls(*(part.reshape(shape) for part, shape in zip(parts, shapes, strict=True)))


@dataclass(frozen=True, eq=False)
class _Work:
    """Estimation of one block."""

    design: Design
    kernels: Kernels
    block: Block
    halves: Halves
    plan: StudyPlan
    make: Callable[..., BlockSums] = block_sums

    @cached_property
    def sides(self) -> Sides:
        return sides(self.block, self.design, self.kernels.positions)

    @cached_property
    def pairs(self) -> tuple[Pair, ...]:
        order = {member.name: k for k, member in enumerate(self.design.members)}
        positions = self.kernels.positions
        return tuple(
            pair for pair in self.block.pairs(order) if len(positions[pair.a.name]) and len(positions[pair.b.name])
        )

    def indices(self, maps: Maps, best: Maps | None = None) -> Indices:
        kernels, alone = self.kernels, self.block.rows if self.block.diagonal else ()
        return Indices(
            self.design, kernels.positions, len(kernels.names), maps, best, classes=kernels.classes is not None,
            among=self.pairs, alone=alone,
        )  # fmt: skip

    @cached_property
    def map_shapes(self) -> list[tuple[tuple[str, str], int, int]]:
        positions = self.kernels.positions
        return [
            ((kind, pair.name), len(positions[pair.a.name]), len(positions[pair.b.name]))
            for kind in self.indices({}).conditions
            for pair in self.pairs
        ]

    @cached_property
    def parts(self) -> int:
        """Number of parts of indices, which does not depend on the maps."""
        return len(self.indices({}, {}).parts)

    @property
    def shapes(self) -> list[tuple[int, ...]]:
        """Shapes of the arrays of `BlockEstimates`."""
        kinds, rows, columns = 1 + (self.kernels.classes is not None), len(self.sides.rows), len(self.sides.columns)
        layers = len(self.sides.layers)
        weights = 4 * sum(a * b for _, a, b in self.map_shapes)
        block = rows, columns
        samples = self.kernels.n if self.block.diagonal and self.kernels.groups is None else 0
        return [
            (kinds, *block), (kinds, layers), (layers,), (layers,), (samples, layers), (weights,), (self.parts,),
            (self.halves.splits, self.parts), (self.kernels.units, self.parts),
            (len(self.indices({}).conditions), *block),
        ]  # fmt: skip

    def flat_maps(self, *both: Maps) -> Float64[np.ndarray, " weights"]:
        arrays = [
            weights.ravel()
            for maps in both
            for key, _, _ in self.map_shapes
            for weights in (maps[key].a_to_b, maps[key].b_to_a)
        ]
        return np.concatenate([np.zeros(0), *arrays])

    def maps(self, weights: Float64[np.ndarray, " weights"]) -> Iterator[dict[tuple[str, str], LayerMaps]]:
        """Yield the maps from halves, and those on all samples."""
        start = 0
        for _ in range(2):
            maps = {}
            for key, a, b in self.map_shapes:
                first, second = (weights[start + k * a * b : start + (k + 1) * a * b] for k in (0, 1))
                maps[key] = LayerMaps(first.reshape(a, b), second.reshape(b, a))
                start += 2 * a * b
            yield maps

    def compute(self, me: Ranks, step: Callable[[], None]) -> BlockEstimates:
        """Make the Gram matrices of the block, and compute everything from them."""
        room, panel, tile, held = (
            self.plan.room,
            self.plan.panel,
            self.plan.tile(len(self.sides.layers)),
            self.plan.held,
        )
        sums = self.make(
            self.kernels, self.sides, self.halves, cubes=self.block.diagonal, room=room, panel=panel, tile=tile,
            held=held,
        )  # fmt: skip
        sums.compute(me, step)
        every = sums.every
        splits, maps = cross_fitted(self.indices, sums.halves())
        best = matches_on(self.indices({}), every)
        indices = self.indices(maps, best)
        of_all = indices.evaluate_parts(every)
        by_split = np.tile(of_all, (len(splits), 1))
        place = {key: k for k, key in enumerate(indices.parts)}
        for column, key in enumerate(self.indices(maps).parts):
            by_split[:, place[key]] = splits[:, column]
        without, errors = without_each(indices, every, sums.without, self.kernels.units, me)
        cubes = np.full(len(sums.squares), np.nan) if sums.cubes is None else sums.cubes
        own, rows = self._own(every), sums.row_squares
        rows = np.zeros((0, len(sums.squares))) if rows is None else rows
        return BlockEstimates(
            every.values, own, sums.squares, cubes, rows, self.flat_maps(maps, best), of_all, by_split, without, errors
        )

    def _own(self, every: Similarities) -> Float64[np.ndarray, "kinds layers"]:
        new = ~np.isin(self.sides.columns, self.sides.rows)
        return np.concatenate([every.own_rows, every.own_columns[..., new]], -1)


def without_each(
    indices: Indices, every: Similarities, without: Callable[[slice], Similarities], units: int, me: Ranks = ALONE
) -> tuple[Float64[np.ndarray, "units parts"], Float64[np.ndarray, "conditions rows columns"]]:
    """Compute all parts of indices without each unit, and standard errors of similarities of layers.

    Runs of units are shared among processes and threads. Their sums are added in the order of the runs, so that the
    result does not depend on how they were shared.
    """
    size = max(1, tuning.current().jackknife_memory // (8 * every.values.size))
    runs = [slice(start, min(start + size, units)) for start in range(0, units, size)]
    groups = [runs[start : start + _RUNS] for start in range(0, len(runs), _RUNS)]
    of_all = {kind: indices.similarities(every, kind) for kind in indices.conditions}

    def evaluate(run: slice) -> tuple[Any, Any]:
        where = without(run)
        changes = [indices.similarities(where, kind) - of_all[kind] for kind in indices.conditions]
        return indices.evaluate_parts(where), np.stack([[x.sum(0), np.square(x).sum(0)] for x in changes])

    rows, moments = [], []
    for group in groups[me.part(len(groups))]:
        interrupts.check()
        results = map_in_threads(evaluate, group)
        rows += [part for part, _ in results]
        moments.append(sum(sums for _, sums in results))
        if me.world == 1 and len(moments) > 1:  # in order, as below
            moments = [moments[0] + moments[1]]
    gathered = me.gather((rows, moments))
    every_row = [row for of_process, _ in gathered for row in of_process]
    total: Any = sum(chain.from_iterable(of_process for _, of_process in gathered))
    return np.concatenate(every_row), np.stack([errors_of(units, *of_kind) for of_kind in total])


def splits_for(n: int) -> int:
    """Return how often the samples are divided into halves.

    >>> [splits_for(n) for n in (100, 5_000, 100_000)]
    [8, 4, 2]
    """
    return max(2, min(tuning.current().halvings, _SPLIT_SAMPLES // n))


def estimate(
    design: Design,
    kernels: Kernels,
    plan: StudyPlan,
    *,
    seed: int,
    steps: Steps,
    sharing: Sharing | None = None,
    settings: str = "",
    sums: Callable[..., BlockSums] = block_sums,
) -> Estimates:
    """Estimate all indices of a study.

    Parameters
    ----------
    design
        The models of the study.
    kernels
        Kernels of all layers and controls.
    plan
        Division of the work into blocks, and sizes.
    seed
        Seed of the random halves of the samples.
    steps
        Called with the name of each step of the work.
    sharing
        Where finished blocks are kept, and the processes that share the work of each.
    settings
        Text of everything on which the blocks depend, beside their models (`settings_of`).
    sums
        Function that returns the sums of a block, called like `block_sums`.
    """
    sharing = sharing or Sharing()
    halves = draw_halves(kernels.unit_of, splits_for(kernels.n), seed)
    works = [_Work(design, kernels, block, halves, plan, sums) for block in plan.blocks]
    done: list[BlockEstimates] = []
    units = [block_units(kernels, work) for work in works]
    step = counter(sum(units), steps("comparing all layers"))
    for work, count in zip(works, units, strict=True):
        name = f"{settings} {block_identity(work.block, design)}"
        shapes = work.shapes
        size = sum(int(np.prod(shape)) for shape in shapes)
        numbers = sharing.load(name, size)
        if numbers is None:
            result = work.compute(sharing.me, _spread(step, count, sharing.me))
            sharing.save(name, result.flat())
        else:
            result = BlockEstimates.from_flat(numbers, shapes)
            step.skip(count)
        done.append(result)
    return _assembled(design, kernels, works, done, seed)


def block_units(kernels: Kernels, work: _Work) -> int:
    """Return into how many steps of progress the work of a block is divided."""
    panels = -(-kernels.n // (work.plan.panel or tuning.current().panel))
    return panels * (panels + 1) // 2 if kernels.groups is None else kernels.groups.count


def _spread(step: Callable[[], None], count: int, me: Ranks) -> Callable[[], None]:
    """Return a function that counts the units of this process as those of all."""
    left = [count]

    def stepped() -> None:
        for _ in range(min(me.world, left[0])):
            step()
            left[0] -= 1

    return stepped


def settings_of(kernels: Kernels, plan: StudyPlan, controls: Sequence[Control], seed: int) -> str:
    """Return a text of all on which a block depends, beside its models."""
    digest = hashlib.sha256()
    for control in controls:
        digest.update(np.ascontiguousarray(control.features).tobytes())
    for groups in (kernels.groups, kernels.classes):
        digest.update(b"none" if groups is None else groups.numbers.numpy().tobytes())
    current = tuning.current()
    sizes = plan.panel, current.jackknife_memory, current.halvings
    device = plan.limits.device.partition(":")[0]
    return repr((__version__, "block", kernels.n, digest.hexdigest(), sizes, seed, device))


def block_identity(block: Block, design: Design) -> str:
    """Return a text that identifies the models of a block, their layers and their untrained twins."""

    def identity(member: Member) -> tuple[Any, ...]:
        twins = [twin.store.checksum for twin in design.twins_of(member)] if member.trained else []
        return member.name, member.family, member.store.checksum, member.arrays, twins

    indices = Indices(design, {member.name: np.arange(len(member.arrays)) for member in design.members}, 0, {})
    shares = indices.depths, [state for state, _ in indices.states()]
    return repr((tuple(map(identity, block.rows)), tuple(map(identity, block.columns)), shares))


def _assembled(
    design: Design, kernels: Kernels, works: Sequence[_Work], blocks: list[BlockEstimates], seed: int
) -> Estimates:
    """Put the numbers of all blocks together, and take each out of the list to free its memory."""
    size, kinds = len(kernels.names), 1 + (kernels.classes is not None)
    matrices = np.full((kinds, size, size), np.nan)
    squares, cubes = np.full(size, np.nan), np.full(size, np.nan)
    rows_of_all = np.zeros((0 if kernels.groups is not None else kernels.n, size))
    maps: list[dict[tuple[str, str], LayerMaps]] = [{}, {}]
    for work, block in zip(works, blocks, strict=True):
        rows, columns, layers = work.sides.rows, work.sides.columns, work.sides.layers
        for a, b, values in ((rows, columns, block.values), (columns, rows, block.values.swapaxes(-1, -2))):
            place = np.ix_(a, b)
            for k in range(kinds):  # what several blocks have is that of the first
                matrices[k][place] = np.where(np.isnan(matrices[k][place]), values[k], matrices[k][place])
        for k in range(kinds):
            matrices[k][layers, layers] = block.own[k]
        new = np.isnan(squares[layers])
        squares[layers[new]] = block.squares[new]
        if work.block.diagonal:
            cubes[layers] = block.cubes
            if len(block.row_squares):
                rows_of_all[:, layers] = block.row_squares
        for whole, of_pairs in zip(maps, work.maps(block.maps), strict=True):
            whole.update(of_pairs)
    matrices = (matrices + matrices.swapaxes(-1, -2)) / 2  # rounding
    halved, best = maps
    indices = Indices(design, kernels.positions, size, halved, best, classes=kernels.classes is not None)
    of_all, splits = (np.zeros((count, len(indices.names))) for count in (1, works[0].halves.splits))
    many = kernels.units * len(indices.names) > SINGLE
    changes = np.zeros((kernels.units, len(indices.names)), np.float32 if many else np.float64)
    sums: dict[Key, tuple[Any, Any, Any]] = {}
    conditions = indices.conditions
    errors = {kind: np.full((size, size), np.nan) for kind in conditions}
    for number, work in enumerate(works):
        block, blocks[number] = blocks[number], None  # type: ignore[call-overload]
        of_block = work.indices(halved, best)
        for k, key in enumerate(of_block.parts):
            numbers = block.of_all[k], block.splits[:, k], block.without[:, k]
            if key in indices.column_of:
                column = indices.column_of[key]
                of_all[0, column], splits[:, column] = numbers[:2]
                changes[:, column] = numbers[0] - numbers[2]
            else:
                sums[key] = tuple(a + b for a, b in zip(sums[key], numbers, strict=True)) if key in sums else numbers
        for kind, values in zip(conditions, block.errors, strict=True):
            errors[kind][np.ix_(work.sides.rows, work.sides.columns)] = values
            errors[kind][np.ix_(work.sides.columns, work.sides.rows)] = values.T
    batches = (), (len(splits),), (kernels.units,)
    shares = [
        indices.shares({key: numbers[k] for key, numbers in sums.items()}, batch) for k, batch in enumerate(batches)
    ]
    first = len(indices.names) - shares[0].shape[-1]
    of_all[0, first:], splits[:, first:] = shares[:2]
    changes[:, first:] = shares[0] - shares[2]
    layers = indices.layers
    errors = {kind: values[np.ix_(layers, layers)] for kind, values in errors.items()}
    theta = _corrected(indices, of_all[0], splits, changes)
    null_variances = kernels.null_variances(layers.tolist(), seed)
    of_cubes, of_rows = (None, None) if kernels.groups is not None else (cubes, rows_of_all)
    return Estimates(
        matrices, indices, theta, of_all[0], splits, changes, errors, null_variances, squares, of_cubes, of_rows
    )


def _corrected(
    indices: Indices, of_all: Float64[np.ndarray, " T"], splits: Float64[np.ndarray, "splits T"],
    changes: Float[np.ndarray, "units T"],
) -> Float64[np.ndarray, " T"]:  # fmt: skip
    """Subtract from the values of splits what a ratio is biased by in half of the samples; return their mean."""
    with np.errstate(invalid="ignore"):
        bias = -(len(changes) - 1) * changes.mean(0, dtype=np.float64)  # twice as large from half of the samples
    of_halves = np.array([key[0] not in {"best", "left"} for key in indices.names], bool)
    for column, key in enumerate(indices.names):
        if key[0] == "left":  # no match is involved
            splits[:, column] = of_all[column]
    splits -= 2 * np.where(of_halves & np.isfinite(bias), bias, 0)
    return mean_over_splits(splits)
