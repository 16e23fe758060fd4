"""Compute debiased CKA between all layers of a study: on all samples, without each sample, on subsets, permuted.

With class labels it is computed twice: for all that layers hold, and for what they hold within classes, in units of the
energy of the whole (`repsim.metrics.recipes.within_classes`). Both matrices are stacked, (2, L, L).

If samples are in groups, the groups are the units: CKA is computed from pairs of samples of different groups, and whole
groups are left out, divided into halves, and permuted.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import numpy as np
import torch
from jaxtyping import Float64, Int64

from repsim.engine.grouped import LeaveOneGroupOut, group_permutations
from repsim.engine.preparation import Source, prepare
from repsim.engine.resampling import permuted, random_permutations
from repsim.engine.shared_directions import truncate_jointly
from repsim.engine.within_classes import LeaveOneGroupOutWithinClasses, mean_products
from repsim.errors import InvalidInputError
from repsim.metrics.cka import CKA
from repsim.metrics.recipes.gram import CentredGram, Gram
from repsim.metrics.recipes.groups import Groups
from repsim.metrics.recipes.rows import cut
from repsim.metrics.recipes.within_classes import WithinClasses, degrees_of_freedom, within_classes
from repsim.runtime import tuning
from repsim.runtime.processes import ALONE, Ranks
from repsim.runtime.progress import Progress
from repsim.stores.alignment import AlignedView
from repsim.study import chance
from repsim.study.controls import Control
from repsim.study.design import Design, Member

_CKA = CKA()
Matrices = Float64[np.ndarray, "*batch kinds L L"]
"""Debiased CKA of all layers and controls and, with classes, inner products within classes in units of all energy."""
ONE_SAMPLE = "the layer is constant but for one sample: the others have the same features"
KEPT_SHARE = 0.999
"""Share of sum_i s_i^4 that the kept principal components carry, where s_i are the singular values of a layer."""


def sources(members: Sequence[Member], device: str, min_samples: int = 4) -> list[Source]:
    """Return one source for every layer of the models, from which the layer is read on demand."""
    return [
        Source(
            name,
            name,
            partial(AlignedView(member.store).stream, member.store, array, device, min_samples=min_samples),
        )
        for member in members
        for name, array in zip(member.layers, member.arrays, strict=True)
    ]


@dataclass(frozen=True, eq=False)
class Kernels:
    """Gram matrices of all layers and controls of a study.

    The layers come first, model by model in the order of the design; the controls follow.
    """

    names: tuple[str, ...]
    grams: tuple[Gram, ...]
    positions: Mapping[str, Int64[np.ndarray, " layers"]]
    """Positions in ``grams`` of the layers of each model, by its name, and of the controls of the input ("input")."""
    undefined: Mapping[str, str]
    """Layers without a value (constant ones), with the reason; they are in none of the attributes above."""
    classes: Groups | None = None
    """Classes of the samples; None if similarity within classes is not computed."""
    reduced: bool = False
    """Whether the layers were cut to their leading principal components by `reduce`."""

    @property
    def n(self) -> int:
        """Number of samples."""
        return self.grams[0].n

    @property
    def groups(self) -> Groups | None:
        """Groups of samples that are not independent; None if every sample is independent."""
        return self.grams[0].groups

    @property
    def units(self) -> int:
        """Number of independent units: groups of samples, or samples."""
        return self.n if self.groups is None else self.groups.count

    @property
    def unit_of(self) -> Int64[np.ndarray, " n"]:
        """Unit of each sample, (n,), from 0."""
        return np.arange(self.n) if self.groups is None else self.groups.numbers.numpy()

    def permutations(
        self, count: int, seed: int, classes: Int64[np.ndarray, " n"] | None = None
    ) -> Int64[np.ndarray, "count n"]:
        """Draw permutations of the samples, (count, n), that exchange whole units, perhaps only within classes.

        Raises `InvalidInputError` if too few rearrangements exist (`group_permutations`, `within_classes`).
        """
        if self.groups is not None:
            return group_permutations(self.groups, count, seed, classes=classes)
        if classes is None:
            return random_permutations(self.n, count, seed)
        return chance.within_classes(classes, count, seed)

    @cached_property
    def class_centred(self) -> tuple[WithinClasses, ...]:
        """Kernels within classes of all layers and controls; none without classes."""
        return () if self.classes is None else tuple(within_classes(gram, self.classes) for gram in self.grams)

    @property
    def degrees_of_freedom(self) -> float:
        """Degrees of freedom of a centred kernel: n (n - 3), or fewer without pairs within groups."""
        pairs = self.n**2 - (self.n if self.groups is None else int(self.groups.sizes.square().sum()))
        return float(pairs - 2 * self.n)

    def leave_one_out(self, room: int) -> "LeftOut":
        """Return a sweep that computes the matrices of all pairs without each group, in ``room`` bytes at a time."""
        return LeftOut(self, room)

    def cka(self) -> Float64[np.ndarray, "L L"]:
        """Compute debiased CKA of all pairs, (L, L): positive semidefinite, with 1 on the diagonal."""
        return symmetric(_CKA.block(self.grams, self.grams))

    def values(self) -> Matrices:
        """Compute debiased CKA of all pairs, with 1 on the diagonal, and with classes the similarity within classes.

        Both are positive semidefinite. The diagonal of the second is the share of the energy within classes.
        """
        R = self.cka()
        if self.classes is None:
            return R[None]
        energies = np.array([_energy(gram) for gram in self.grams]) / self.degrees_of_freedom
        return np.stack([R, in_units(mean_products(self.class_centred), energies)])

    def values_on(self, samples: Int64[np.ndarray, " m"], selected: Int64[np.ndarray, " s"]) -> Matrices:
        """Compute the matrices of the selected layers on a subset of the samples; NaN for layers constant on it.

        If samples are in groups, the subset consists of whole groups.
        """
        part = self.part(samples, selected)
        position = {name: k for k, name in enumerate(part.names)}
        defined = [i for i, k in enumerate(selected) if self.names[k] in position]
        of_part = part.values()
        values = np.full((len(of_part), len(selected), len(selected)), np.nan)
        values[:, np.array(defined)[:, None], defined] = of_part
        return values

    def select(self, selected: Sequence[int]) -> "Kernels":
        """Return some layers, in this order."""
        new = {k: i for i, k in enumerate(selected)}
        positions = {name: np.array([new[k] for k in old if k in new], int) for name, old in self.positions.items()}
        names, grams = tuple(self.names[k] for k in selected), tuple(self.grams[k] for k in selected)
        return Kernels(names, grams, positions, self.undefined, self.classes)

    def part(self, samples: Int64[np.ndarray, " m"], selected: Iterable[int]) -> "Kernels":
        """Return the selected layers on a subset of the samples, without layers that are constant on it."""
        rows, layers = torch.from_numpy(samples), list(selected)
        sources = [Source(self.names[k], self.names[k], partial(_select_samples, self.grams[k], rows)) for k in layers]
        factors: Mapping[str, Any] = prepare(CentredGram(), sources).factors
        groups = None if self.groups is None else self.groups.select(rows)
        defined = [k for k in layers if self.names[k] in factors]
        grams = tuple(factors[self.names[k]].grouped(groups) for k in defined)
        new = {k: i for i, k in enumerate(defined)}
        positions = {name: np.array([new[k] for k in old if k in new], int) for name, old in self.positions.items()}
        names = tuple(self.names[k] for k in defined)
        classes = None if self.classes is None else self.classes.select(rows)
        return Kernels(names, grams, positions, self.undefined, classes)

    def null_variances(self, layers: Sequence[int], seed: int) -> tuple[float, ...]:
        """Return the variance of the similarity of unrelated layers: of debiased CKA and, with classes, within them."""
        variance = self._null_variance(layers, seed)
        if self.classes is None:
            return (variance,)
        within = float(degrees_of_freedom(self.classes.sizes))
        return variance, variance * self.degrees_of_freedom / within

    def _null_variance(self, layers: Sequence[int], seed: int) -> float:
        """Return the variance of debiased CKA of unrelated layers: 2 / (n (n - 3)), or with groups its estimate.

        With groups it depends on how alike the samples of a group are. It is the mean square over 200 permutations of
        whole groups, and over pairs of at most 12 of the layers; NaN if too few rearrangements exist.
        """
        if self.groups is None:
            return 2 / (self.n * (self.n - 3))
        try:
            orders = self.permutations(200, seed)
        except InvalidInputError:
            return float("nan")
        places = np.unique(np.linspace(0, len(layers) - 1, 12).round().astype(int))
        some_layers = np.asarray(layers)[places]
        values = permuted_values(self, some_layers, some_layers, orders, memory=None)
        return float(np.square(values).mean())

    def unit_kernels(self) -> Float64[np.ndarray, "L n n"]:
        """Return the centred kernels of all layers, each divided by its norm; for few samples."""
        everything = slice(0, self.n)
        excluded = (
            torch.eye(self.n, dtype=torch.bool)
            if self.groups is None
            else self.groups.same(everything, everything, torch.device("cpu"))
        )
        kernels = np.empty((len(self.grams), self.n, self.n))
        for k, gram in enumerate(self.grams):
            x = gram.features[:].cpu().double()
            o = gram.offsets(unbiased=True).flatten().cpu()
            A = (x @ x.T - o - o[:, None]).masked_fill_(excluded, 0)
            kernels[k] = (A / A.norm()).numpy()
        return kernels

    def reduce(self, selected: Sequence[int], memory: float = math.inf, share: float = KEPT_SHARE) -> "Kernels":
        """Return the selected layers, each cut to the leading components with this share of its kernel's energy.

        The components of all layers are expressed in a common set of directions, so that permutations are cheap.

        Raises
        ------
        TooLittleMemoryError
            If this takes more memory than allowed.
        """
        grams = truncate_jointly([self.grams[k] for k in selected], share, memory=memory)
        new = {k: i for i, k in enumerate(selected)}
        positions = {name: np.array([new[k] for k in old if k in new], int) for name, old in self.positions.items()}
        return Kernels(tuple(self.names[k] for k in selected), tuple(grams), positions, self.undefined, reduced=True)


@dataclass(eq=False)
class LeftOut:
    """Matrices of all pairs of layers with each group of samples left out."""

    kernels: Kernels
    room: int
    """Bytes for sums of single samples."""

    def __post_init__(self) -> None:
        grams, layers = self.kernels.grams, self.kernels.class_centred
        self._sweep = LeaveOneGroupOut(grams, grams, _CKA, room=self.room)
        self._within = LeaveOneGroupOutWithinClasses(layers, self.kernels.unit_of) if layers else None
        self.full_values: Matrices = np.zeros((0, 0, 0))
        """Matrices of all samples; set by `runs`."""

    def units_of(self, me: Ranks) -> int:
        """Return the number of parts of the work of a process."""
        return self._sweep.units_of(me) + (0 if self._within is None else self._within.units)

    @property
    def squares(self) -> Float64[np.ndarray, " L"]:
        """||A||^2 of every layer, of all samples; set by `runs`."""
        return self._sweep.squares

    def runs(self, step: Callable[[], None], me: Ranks = ALONE) -> Iterator[Float64[np.ndarray, "run kinds L L"]]:
        """Yield the matrices without each group of a run, one run after the other: those that are this process's.

        Processes share the runs. Sums within classes, which are not those of a run, are computed by each of them.
        """
        self._sweep.sum_all(step, me)
        self.full_values = symmetric(self._sweep.full_values)[None]
        if self._within is not None:
            within = in_units(self._within.products(), self._sweep.squares / self.kernels.degrees_of_freedom)
            self.full_values = np.concatenate([self.full_values, within[None]])
        for run, R in self._sweep.runs(step, me):
            if self._within is None:
                yield R[:, None]
                continue
            energies = self._sweep.squares_left / self._degrees_of_freedom(run)[:, None]
            yield np.stack([R, in_units(self._within.without(run, step), energies)], 1)

    def _degrees_of_freedom(self, run: slice) -> Float64[np.ndarray, " run"]:
        """Return the degrees of freedom of centred kernels without each group of the run."""
        groups, n = self.kernels.groups, self.kernels.n
        assert groups is not None, "samples are in groups"
        sizes = groups.sizes.numpy().astype(np.float64)
        left = n - sizes[run]
        return np.asarray(left**2 - (np.square(sizes).sum() - np.square(sizes[run])) - 2 * left)


def in_units(
    products: Float64[np.ndarray, "*batch L L"], energies: Float64[np.ndarray, "*batch L"]
) -> Float64[np.ndarray, "*batch L L"]:
    """Divide inner products within classes by the roots of the energies of both layers, classes included."""
    norms = np.sqrt(np.where(energies > 0, energies, np.nan))
    return np.asarray(products / norms[..., :, None] / norms[..., None, :])


def varies_in_one_sample(gram: Any) -> bool:
    """Return whether all samples but one are equal: the kernel without its diagonal is then 0 after centring."""
    farthest = int(gram.squared_norms.argmax())
    if gram.squared_norms[farthest] < 0.5 * gram.squared_norms.sum():
        return False
    others = gram.features[torch.arange(gram.n)[torch.arange(gram.n) != farthest]]
    return bool((others.amax(0) - others.amin(0)).max() <= 10 * gram.eps * others.abs().max())


def _energy(gram: Gram) -> float:
    """Return ||A||^2 of the centred kernel, from one run of rows after the other."""
    o, total = gram.offsets(unbiased=True).flatten(), 0.0
    everything = slice(0, gram.n)
    columns = gram.features[:]
    for i in cut(gram.n, tuning.current().tile):
        A = (columns[i] @ columns.T).to(o) - o[i, None] - o
        if gram.groups is None:
            A.diagonal(i.start).zero_()
        else:
            A.masked_fill_(gram.groups.same(i, everything, A.device), 0)
        total += float(A.square().sum())
    return total


def kernels(
    design: Design,
    controls: Sequence[Control],
    device: str,
    *,
    classes: Groups | None = None,
    keep: bool,
    step: Callable[[], None],
    me: Ranks = ALONE,
) -> Kernels:
    """Compute the centred Gram matrices of all layers of all models, and of the controls.

    Parameters
    ----------
    design
        The models of the study.
    controls
        Kernels that can be projected out of all layers.
    device
        Device on which the Gram matrices are computed.
    classes
        Classes of the samples, if similarity within classes is wanted.
    keep
        Whether layers stay in memory; otherwise they are read again for each pass.
    step
        Called after each layer.
    me
        This process among those that share the layers.
    """
    inputs = sources(design.members, device)
    inputs += [Source(control.name, control.name, partial(_control_features, control, device)) for control in controls]
    prepared = prepare(CentredGram(), inputs, device=device, keep=keep, me=me, step=step)
    single = {name: ONE_SAMPLE for name, factor in prepared.factors.items() if varies_in_one_sample(factor)}
    undefined = {**prepared.undefined, **single}
    names = tuple(source.name for source in inputs if source.name not in undefined)
    position = {name: k for k, name in enumerate(names)}
    lists = {member.name: [position[name] for name in member.layers if name in position] for member in design.members}
    if controls:
        lists["input"] = [position[control.name] for control in controls if control.name in position]
    positions = {name: np.array(layers, int) for name, layers in lists.items()}
    factors: list[Any] = [prepared.factors[name] for name in names]
    grams = [factor if design.groups is None else factor.grouped(design.groups) for factor in factors]
    return Kernels(names, tuple(grams), positions, undefined, classes)


def permuted_values(
    kernels: Kernels,
    rows: Int64[np.ndarray, " rows"],
    columns: Int64[np.ndarray, " columns"],
    orders: Int64[np.ndarray, "count n"],
    *,
    memory: int | None,
    progress: Progress | None = None,
) -> Float64[np.ndarray, "count rows columns"]:
    """Compute debiased CKA with the samples of the column layers permuted, all of them by the same permutation.

    Parameters
    ----------
    kernels
        Kernels of the study.
    rows, columns
        Positions of layers in ``kernels``.
    orders
        (count, n): permutations of the samples, which exchange whole groups if samples are in groups
        (`Kernels.permutations`).
    memory
        Bytes that may be used; None for no limit.
    progress
        Called with the number of permutations done, and of all.
    """
    a, b = ([kernels.grams[k] for k in side] for side in (rows, columns))
    return permuted(a, b, _CKA, orders, groups=kernels.groups, memory=memory, progress=progress)


def symmetric(values: Float64[np.ndarray, "L L"]) -> Float64[np.ndarray, "L L"]:
    """Return the mean of the matrix and its transpose, with 1 on the diagonal, to remove rounding differences."""
    values = (values + values.T) / 2
    np.fill_diagonal(values, np.where(np.isnan(np.diagonal(values)), np.nan, 1.0))
    return values


def _select_samples(gram: Gram, samples: torch.Tensor) -> torch.Tensor:
    return gram.features[samples.to(gram.device)]


def _control_features(control: Control, device: str) -> torch.Tensor:
    return torch.from_numpy(control.features).to(device)
