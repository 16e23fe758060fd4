"""Compute permutation null distributions for whole pairs of models.

The largest of many similarities of layers is high by chance alone, so its null distribution must be that of the
maximum. The statistics are the maximum and the mean along the best match (MBM). All layers of one network are permuted
by the same permutation, which keeps the similarities of layers within a network.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import chain, combinations_with_replacement, product

import numpy as np
import torch
from jaxtyping import Float64, Int64

from repsim.engine.permutation import least_bytes
from repsim.engine.shared_directions import LowRankFeatures, bytes_to_share
from repsim.engine.subsampling import padded_width
from repsim.errors import TooLittleMemoryError
from repsim.metrics.recipes.rows import cut
from repsim.runtime import tuning
from repsim.runtime.progress import Progress, Step, counted, counter, expect, report_share
from repsim.runtime.threads import map_in_threads
from repsim.study.blocks import Block, divide, even_size
from repsim.study.design import Design, Pair
from repsim.study.gram_passes import KEPT_SHARE, Kernels, permuted_values
from repsim.study.indices import RAW
from repsim.study.layer_matching import mbm
from repsim.study.partial_cka import MIN_ENERGY, TOLERANCE
from repsim.study.reading import ALPHA
from repsim.study.units import Sharing

_FEWEST, _MOST = 1000, 20_000
_FEWEST_SAMPLES, _FEWEST_UNITS = 100, 8
"""Smallest random part of the samples, in samples and in groups of samples."""
STATISTICS = ("index", "largest")
"""The mean along the best match, and the maximum over pairs of layers."""


_USUAL_COMPONENTS = 128
"""Leading components of a layer for which permutations are planned: of real networks they are 10 to 130."""
_SMALLER_SHARES = 0.99, 0.9, 0.5
"""Shares of the energy that layers keep if components with more of it do not fit into the memory."""
_GATHERED = 2**21
"""Values of residual kernels that a thread gathers at once."""
_KINDS = (RAW, "input")
"""Kinds of debiased CKA that are permuted; what is left within classes is not."""

Draw = Callable[[Kernels, Int64[np.ndarray, " part"]], Int64[np.ndarray, "count part"]]
"""Function that draws permutations of some of the samples, given their kernels and positions; none if there are too
few rearrangements."""


@dataclass(frozen=True, eq=False)
class Null:
    """Observed and permuted values of the two statistics of a pair of models."""

    observed: Float64[np.ndarray, " two"]
    permuted: Float64[np.ndarray, "count two"]


def permutations_for(tests: int) -> int:
    """Return how many permutations are computed by default: 1,000, or as many as Holm's correction needs, up to 20,000.

    The smallest p-value is 1 / (K + 1), and Holm's method multiplies it by the number of tests. Of more than 1,000
    tests none could be significant with 20,000 permutations, and then 1,000 are computed, for chance levels. The number
    is doubled until it is enough, so that most models that are added to a study leave it, and what is computed, as is.

    >>> permutations_for(6), permutations_for(55), permutations_for(105), permutations_for(4950)
    (1000, 2000, 4000, 1000)
    """
    needed = math.ceil(tests / ALPHA) - 1
    if needed > _MOST:
        return _FEWEST
    count = _FEWEST
    while count < needed:
        count *= 2
    return min(count, _MOST)


def statistics(S: Float64[np.ndarray, "*batch a b"]) -> Float64[np.ndarray, "*batch two"]:
    """Compute MBM and the maximum of a matrix of similarities of layers, or of each matrix of a batch.

    Returns
    -------
    array
        (..., 2): MBM and maximum; NaN where all similarities are.
    """
    largest = np.where(np.isnan(S), -np.inf, S).max((-1, -2))
    return np.stack([mbm(S), np.where(np.isinf(largest), np.nan, largest)], -1)


@dataclass(frozen=True, eq=False)
class Reduced:
    """Kernels of a block of models, on all samples and on a part of them, small enough to be permuted."""

    design: Design
    pairs: Sequence[Pair]
    """Pairs of trained models that are tested."""
    kernels: Kernels
    """Kernels of the trained models of these pairs, and of the controls of the input."""
    memory: int | None = None
    """Bytes that may be used; None for no limit."""
    about: str = ""
    """Text of all on which the kernels depend, beside their models."""

    @property
    def identity(self) -> str:
        """Text that identifies the models, their layers, and on what their kernels depend."""
        members = {member.name: member for pair in self.pairs for member in (pair.a, pair.b)}
        checksums = [(member.store.checksum, member.arrays) for member in members.values()]
        return repr((self.about, [pair.name for pair in self.pairs], checksums))

    @property
    def plain(self) -> Kernels:
        """Kernels that are permuted as they are, or cut to leading components if there are many samples."""
        return self._reduced[0]

    @cached_property
    def _reduced(self) -> tuple[Kernels, float]:
        """The same, and the share of their energy that they keep."""
        return reduced_kernels(self.kernels, self.models, self.memory)

    @property
    def cuts(self) -> int:
        """Number of layers that are cut to leading components before they are permuted, unless this does not pay."""
        return 0 if _stays(self.kernels) else sum(len(self.kernels.positions[name]) for name in self.models)

    def recorded(self, sharing: Sharing) -> float | None:
        """Return the share of their energy that the kernels keep which an earlier run permuted; None if none did."""
        numbers = sharing.load(self._record, 1)
        return None if numbers is None else float(numbers[0])

    def reduce(self, sharing: Sharing, share: float | None, step: Callable[[], None] = lambda: None) -> float:
        """Reduce the kernels as an earlier run did, if the memory allows it; return the share that they keep.

        It is recorded on disk, because another run may have other memory: what it permutes would be other kernels.
        ``step`` is called for each of `cuts` layers.
        """
        with counted(step, self.cuts):
            if "_reduced" not in vars(self) or share not in {None, self._reduced[1]}:
                vars(self)["_reduced"] = reduced_kernels(self.kernels, self.models, self.memory, share)
        kept = self._reduced[1]
        sharing.me.agree({"leading components of layers": kept})
        sharing.save(self._record, np.array([kept]))
        return kept

    @property
    def _record(self) -> str:
        return f"energy kept of {self.identity}"

    def residuals(self, count: int) -> "_Residuals":
        """Return the residual kernels of a random part of the samples, small enough for ``count`` permutations."""
        if count not in self._residuals:
            self._residuals[count] = _Residuals(self, count)
        return self._residuals[count]

    @cached_property
    def _residuals(self) -> "dict[int, _Residuals]":
        return {}

    def release(self) -> None:
        """Free the reduced and the residual kernels, which are computed again if they are needed again."""
        for name in ("_reduced", "_residuals"):
            self.__dict__.pop(name, None)

    @property
    def models(self) -> list[str]:
        """Names of the models of all pairs, each once."""
        return list(dict.fromkeys(member.name for pair in self.pairs for member in (pair.a, pair.b)))

    @cached_property
    def observed(self) -> Float64[np.ndarray, "rows columns"]:
        """Debiased CKA of the rows with the columns, of what is permuted."""
        return np.asarray(self.plain.cka()[np.ix_(*self.sides)])

    @cached_property
    def sides(self) -> tuple[Int64[np.ndarray, " rows"], Int64[np.ndarray, " columns"]]:
        """Layers of the first model of each pair, and of the second."""
        firsts, seconds = (list(dict.fromkeys(getattr(pair, side).name for pair in self.pairs)) for side in "ab")
        rows, columns = (np.concatenate([self.plain.positions[name] for name in names]) for names in (firsts, seconds))
        return rows, columns

    def places(self) -> dict[str, tuple[Int64[np.ndarray, "..."], ...]]:
        """Return the rows and columns of every pair."""
        row_of, column_of = ({k: i for i, k in enumerate(side.tolist())} for side in self.sides)
        return {
            pair.name: np.ix_(
                [row_of[k] for k in self.plain.positions[pair.a.name].tolist()],
                [column_of[k] for k in self.plain.positions[pair.b.name].tolist()],
            )
            for pair in self.pairs
        }


def reduced(
    kernels: Kernels, design: Design, blocks: Sequence[Block], memory: int | None = None, about: str = ""
) -> list[Reduced]:
    """Return the parts of a study whose pairs of trained models are permuted together.

    They are those of each block; of several smaller blocks if their leading components would take too much memory.
    """
    order = {member.name: k for k, member in enumerate(design.members)}
    inputs = kernels.positions.get("input", np.zeros(0, int)).tolist()
    parts = []
    for block in chain.from_iterable(_divided(block, kernels, memory) for block in blocks):
        pairs = [
            pair for pair in block.pairs(order)
            if pair.a.trained and pair.b.trained and len(kernels.positions[pair.a.name])
            and len(kernels.positions[pair.b.name])
        ]  # fmt: skip
        if pairs:
            names = list(dict.fromkeys(member.name for pair in pairs for member in (pair.a, pair.b)))
            layers = [k for name in names for k in kernels.positions[name].tolist()]
            parts.append(Reduced(design, pairs, kernels.select([*layers, *inputs]), memory, about))
    return parts


def _divided(block: Block, kernels: Kernels, memory: int | None) -> list[Block]:
    """Divide a block into blocks whose layers, cut to usual numbers of components, fit into the memory.

    Groups of models are halved until they do, so that the division changes seldom when models are added to a study.
    """
    if memory is None or _stays(kernels):
        return [block]

    def needed(part: Block) -> int:
        trained = [member.name for member in part.members if member.trained]
        layers = [kernels.grams[k] for name in trained for k in kernels.positions[name].tolist()]
        components = [min(gram.p, kernels.n, _USUAL_COMPONENTS) for gram in layers]
        return bytes_to_share(kernels.n, components, layers[0].dtype.itemsize) if layers else 0

    most, count = max(len(block.rows), len(block.columns)), 1
    while True:
        sides = [divide(side, even_size(side, count)) for side in (block.rows, block.columns)]
        pairs = combinations_with_replacement(sides[0], 2) if block.diagonal else product(*sides)
        parts = [Block(*pair) for pair in pairs]
        if count >= most or max(map(needed, parts)) <= memory:
            return parts
        count *= 2


def cka_nulls(
    parts: Sequence[Reduced],
    kinds: Sequence[str],
    draw: Draw,
    *,
    name: Callable[[Reduced], str] = lambda _: "",
    sharing: Sharing | None = None,
    progress: Progress | None = None,
) -> dict[tuple[str, str], Null]:
    """Compute the null distributions of debiased CKA and partial CKA for all pairs of trained models.

    Partial CKA compares residual kernels w = v - sum_z beta_z v_z, and the samples of those of b are permuted. The null
    hypothesis is that the residual of b is unrelated to the residual of a.

    With more than 500 samples, layers are cut to the components that carry 99.9 % of their kernels' energy, unless
    these are too many (`reduced_kernels`). Residual kernels, which no few components carry, are those of a random part
    of the samples: of at most 300, and of fewer if the models have many layers. A permutation test is exact for any
    statistic, and the observed value is the same one.

    Parameters
    ----------
    parts
        Kernels of all layers and controls, one part for each block of models.
    kinds
        Kinds of debiased CKA.
    draw
        Draws permutations; they exchange samples of one class only, if the null hypothesis is about classes.
    name
        Returns a text of all on which the permutations of a part depend.
    sharing
        Where finished units are kept, and the processes that share the others. A unit is a run of permutations.
    progress
        Called with the number of permutations done, and of all.

    Returns
    -------
    dict
        Null distributions by (kind of control, name of the pair).
    """
    sharing = sharing or Sharing()
    orders = draw(parts[0].kernels, np.arange(parts[0].kernels.n)) if parts else np.zeros((0, 0), np.int64)
    if not len(orders):
        return {}
    kinds = [kind for kind in kinds if kind in _KINDS]
    size = tuning.current().permutations_at_once
    runs = [slice(start, min(start + size, len(orders))) for start in range(0, len(orders), size)]
    cuts = sum(part.cuts for part in parts if RAW in kinds)
    step = counter(len(runs) * len(kinds) * len(parts) + cuts, progress)
    nulls: dict[tuple[str, str], Null] = {}
    for part in parts:
        sizes = {k: 2 * len(part.pairs) * (1 + run.stop - run.start) for k, run in enumerate(runs)}
        for kind in kinds:
            compute = _Plain(part, orders) if kind == RAW else _Partial(part, draw, len(orders))
            names = {k: f"permuted {kind} {run} {name(part)}" for k, run in enumerate(runs)}
            if kind == RAW and part.cuts:
                names = _of_one_reduction(part, names, sizes, sharing, step)
                expect(progress, None)  # permutations take another time than layers
            units = sharing.compute(
                names, sizes, lambda keys, compute=compute: (compute(runs[k]) for k in keys), step  # type: ignore[misc]
            )  # fmt: skip
            values = [units[k].reshape(-1, len(part.pairs), 2) for k in names]
            for p, pair in enumerate(part.pairs):
                permuted = np.concatenate([of_run[1:, p] for of_run in values])
                if kind == RAW or np.isfinite(permuted).any() or np.isfinite(values[0][0, p]).any():
                    nulls[kind, pair.name] = Null(values[0][0, p], permuted)
        if len(parts) > 1:  # all of them may not fit into the memory
            part.release()
    return nulls


def _of_one_reduction(
    part: Reduced, names: Mapping[int, str], sizes: Mapping[int, int], sharing: Sharing, step: Step
) -> dict[int, str]:
    """Return the names of units with how the layers were reduced that they permute, and reduce them unless all exist.

    Whether layers are cut, and to which share, depends on the memory, which another run may change. So one run would
    permute cut layers and the next one whole layers, and one distribution would consist of both.
    """
    share = part.recorded(sharing)
    if share is not None:
        of_earlier = {k: f"{name} keeping {share}" for k, name in names.items()}
        if sharing.has_all(of_earlier, sizes):
            step.skip(part.cuts)
            return of_earlier
    share = part.reduce(sharing, share, step)
    return {k: f"{name} keeping {share}" for k, name in names.items()}


class _Plain:
    """Permutations of debiased CKA: computes the observed statistics of all pairs, and then those of a run."""

    def __init__(self, part: Reduced, orders: Int64[np.ndarray, "count n"]) -> None:
        self._part, self._orders = part, orders

    def __call__(self, run: slice) -> Float64[np.ndarray, " values"]:
        part = self._part
        rows, columns = part.sides
        orders = self._orders[run]
        values = permuted_values(part.plain, rows, columns, orders, memory=part.memory, progress=report_share)
        both = np.concatenate([part.observed[None], values])
        return np.stack([statistics(both[:, i, j]) for i, j in part.places().values()], 1).ravel()


class _Partial:
    """Permutations of partial CKA, from residuals of the unit kernels; computes as `_Plain` does.

    NaN if too few rearrangements of the part of the samples exist.
    """

    def __init__(self, part: Reduced, draw: Draw, count: int) -> None:
        self._part, self._draw, self._count = part, draw, count

    @cached_property
    def _ready(self) -> "tuple[Int64[np.ndarray, 'count n'], _Residuals] | None":
        residuals = self._part.residuals(self._count)
        orders = self._draw(residuals.kernels, residuals.samples)
        return (orders, residuals) if len(orders) and residuals.layers else None

    def __call__(self, run: slice) -> Float64[np.ndarray, " values"]:
        if self._ready is None:
            return np.full(2 * len(self._part.pairs) * (1 + run.stop - run.start), np.nan)
        orders, residuals = self._ready
        orders = np.concatenate([np.arange(orders.shape[1])[None], orders[run]])
        values = np.stack(map_in_threads(residuals.products, list(torch.from_numpy(orders))))
        of_pairs = []
        for pair in self._part.pairs:
            block = values[:, residuals.rows[pair.a.name]][:, :, residuals.columns[pair.b.name]]
            of_pairs.append(statistics(block) if block.size else np.full((len(values), 2), np.nan))
        return np.stack(of_pairs, 1).ravel()


class _Residuals:
    """Residual kernels of a random part of the samples, of the first and of the second models of all pairs."""

    def __init__(self, part: Reduced, count: int) -> None:
        self.kernels, self.samples = kernels, _ = _random_part(part, count)
        Z, n = kernels.positions.get("input", np.zeros(0, int)), kernels.n
        names = [list(dict.fromkeys(getattr(pair, side).name for pair in part.pairs)) for side in "ab"]
        self.rows, self.columns = map(partial(_places, kernels), names)
        layers = [np.concatenate([kernels.positions[name] for name in of_side]) for of_side in names]
        self.layers = len(Z) and all(map(len, layers))
        """Whether there are controls, and layers of both sides."""
        if not self.layers:
            return
        units = kernels.unit_kernels().reshape(len(kernels.names), -1)
        beta, energy = _projection(units @ units.T, Z)
        left, right = (
            torch.from_numpy((units[k] - beta[:, k].T @ units[Z]) / np.sqrt(energy[k])[:, None]).float() for k in layers
        )
        i, j = torch.triu_indices(n, n, 1)  # the diagonal is 0, and the matrices are symmetric
        self._i, self._j, self._n = i, j, n
        self._left = left[:, i * n + j].contiguous()
        self._columns = len(right)
        # the layers of an entry lie side by side, in whole cache lines
        self._right = torch.zeros(n * n, padded_width(len(right), right.itemsize))
        self._right[:, : len(right)] = right.T

    def products(self, order: Int64[torch.Tensor, " n"]) -> Float64[np.ndarray, "rows columns"]:
        """Return the inner products of the rows with the columns, whose samples are permuted."""
        entries, width = order[self._i] * self._n + order[self._j], self._right.shape[1]
        total = torch.zeros(len(self._left), width, dtype=torch.float64)
        for run in cut(len(entries), max(1, _GATHERED // width)):  # in every thread, all at once would be much memory
            total += self._left[:, run] @ self._right.index_select(0, entries[run])
        return 2 * total[:, : self._columns].numpy()


def _places(kernels: Kernels, names: Sequence[str]) -> dict[str, Int64[np.ndarray, " layers"]]:
    """Return the places of the layers of each model among those of all."""
    ends = np.cumsum([len(kernels.positions[name]) for name in names])
    return {name: np.arange(end - len(kernels.positions[name]), end) for name, end in zip(names, ends, strict=True)}


def _random_part(part: Reduced, count: int) -> tuple[Kernels, Int64[np.ndarray, " part"]]:
    """Return trained models and controls on a random part of the samples, small enough for ``count`` permutations."""
    kernels = part.kernels
    layers = sum(len(kernels.positions[name]) for name in part.models)
    allowed = math.isqrt(round(tuning.current().permuted_products / (count * layers**2)))
    most = max(_FEWEST_SAMPLES, min(tuning.current().residual_samples, allowed))
    samples = np.arange(kernels.n)
    if kernels.n > most:
        unit_of = kernels.unit_of
        order = np.random.default_rng(0).permutation(kernels.units)
        sizes = np.bincount(unit_of)[order].cumsum()
        samples = np.flatnonzero(np.isin(unit_of, order[: max(_FEWEST_UNITS, int((sizes <= most).sum()))]))
    return kernels.part(samples, range(len(kernels.names))), samples


def reduced_kernels(
    kernels: Kernels, models: Sequence[str], memory: int | None = None, share: float | None = None
) -> tuple[Kernels, float]:
    """Return the kernels of some models, cut to leading components if there are many samples, and the share they keep.

    With few samples, or kernels that are reduced already, return the kernels themselves; also if so many components are
    needed that permuting them takes more memory than allowed, or more operations than permuting Gram matrices. If not
    even the Gram matrices of two layers fit into the memory, fewer components are kept.

    Parameters
    ----------
    kernels
        Kernels of all layers.
    models
        Names of the models.
    memory
        Bytes that may be used; None for no limit.
    share
        The share of the energy that is kept if the memory allows it, of kernels as they are 1; None to choose it.
    """
    if _stays(kernels):
        return kernels, 1.0
    layers = np.concatenate([kernels.positions[name] for name in models]).tolist()
    allowed = math.inf if memory is None else memory
    grams_fit = least_bytes(kernels.n, kernels.grams[0].dtype.itemsize) <= allowed
    if share == 1 and grams_fit:
        return kernels, 1.0
    if share is not None and share < 1:
        with suppress(TooLittleMemoryError):
            return kernels.reduce(layers, allowed, share), share
    for tried in (KEPT_SHARE, *_SMALLER_SHARES):
        try:
            reduced = kernels.reduce(layers, allowed, tried)
        except TooLittleMemoryError:
            if grams_fit:
                return kernels, 1.0
        else:
            return (reduced, tried) if _takes_less(reduced) or not grams_fit else (kernels, 1.0)
    return kernels, 1.0


def _stays(kernels: Kernels) -> bool:
    """Return whether kernels are permuted as they are: those of few samples, and those that are reduced already."""
    return kernels.n <= tuning.current().exact_samples or kernels.reduced


def _takes_less(reduced: Kernels) -> bool:
    """Return whether permuting components takes fewer operations than permuting Gram matrices (`repsim.permuted`)."""
    rates, n, layers = tuning.current(), reduced.n, len(reduced.grams)
    features = reduced.grams[0].features
    assert isinstance(features, LowRankFeatures), "layers cut to components share directions"
    directions, components = features.directions.shape[1], sum(gram.p for gram in reduced.grams)
    entry = rates.permuted_entry + rates.permuted_layer * layers / 2 + rates.permuted_pair * layers**2 / 4
    return bool(2.0 * n * directions**2 + directions * components**2 / 2 < entry * n**2 / 2)


def null_of_values(observed: Float64[np.ndarray, "a b"], permuted: Float64[np.ndarray, "count a b"]) -> Null:
    """Return the null distribution of a measure from its values and permuted values for one pair of models."""
    return Null(statistics(observed), statistics(permuted))


def _projection(
    R: Float64[np.ndarray, "L L"], Z: Int64[np.ndarray, " Z"]
) -> tuple[Float64[np.ndarray, "Z L"], Float64[np.ndarray, " L"]]:
    """Return the coefficients (Z, L) of the controls in each kernel, and the energy left; NaN where none is left."""
    if not len(Z):
        return np.zeros((0, len(R))), np.ones(len(R))
    beta = np.linalg.pinv(R[np.ix_(Z, Z)], rcond=TOLERANCE, hermitian=True) @ R[Z]
    energy = 1 - (R[:, Z] * beta.T).sum(1)
    return beta, np.where(energy > MIN_ENERGY, energy, np.nan)
