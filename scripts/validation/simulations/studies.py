"""Designs and kernels of simulated studies, of `validate_statistics.py`: without stores, and fast."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from typing_extensions import override

from repsim.engine.planning import Limits
from repsim.labels import INPUT, LayerKey, SampleIds
from repsim.metrics.recipes.gram import CentredGram
from repsim.metrics.recipes.groups import Groups
from repsim.runtime.processes import Ranks
from repsim.runtime.progress import Steps
from repsim.stores.store import ActivationStore
from repsim.study.block_sums import BlockSums, block_sums
from repsim.study.design import Design, Member
from repsim.study.duplicates import NearDuplicates
from repsim.study.estimation import Estimates, estimate
from repsim.study.evidence import Evidence
from repsim.study.gram_passes import Kernels
from repsim.study.inference import Inference
from repsim.study.planning import StudyPlan, plan_study, shape_of
from repsim.study.similarities import Similarities

Array = NDArray[np.float64]
Places = Mapping[str, NDArray[np.int64]]

_ROWS = 2**22
"""Number of values that are multiplied at once."""


# --- designs


@dataclass(frozen=True)
class Network:
    """Substitute for a store: the attributes that a study needs, without activations."""

    model: str
    provenance: dict[str, str]
    layers: tuple[str, ...]
    """Names of the layers, which are the same for an untrained twin."""
    labels: None = None
    pixels: None = None
    modality: str = ""
    checksum: str = ""
    sample_ids: tuple[str, ...] = ()

    def control(self, layer: str, readout: str) -> str | None:
        """Return a substitute for the pixels, which are a control of their own, and no other control."""
        return "simulated" if (layer, readout) == INPUT else None

    def __getitem__(self, name: str) -> SimpleNamespace:
        return SimpleNamespace(key=LayerKey(self.model, name, "mean"), shape=(0, 1), dtype=np.dtype(np.float32))


def member(name: str, family: str, *, trained: bool = True, layers: int = 3) -> Member:
    """Return a model of a study without a file."""
    provenance = {"architecture": family} | ({} if trained else {"weights": "random"})
    network = Network(name, provenance, tuple(f"layer {k}" for k in range(layers)))
    return Member(cast("ActivationStore", network), family, "mean")


def families(count: int, trained: int, untrained: int, *, layers: int = 3) -> Design:
    """Return a design of families A, B, ... of one architecture each."""
    names = "ABCDEFGH"[:count]
    return Design(
        tuple(member(f"{family}{k}", family, layers=layers) for family in names for k in range(trained)),
        tuple(
            member(f"{family}.untrained{k}", family, trained=False, layers=layers)
            for family in names for k in range(untrained)
        ),
    )  # fmt: skip


def places(design: Design, controls: int) -> dict[str, NDArray[np.int64]]:
    """Return the positions of the layers of all models, one after the other, and of the kernels of the input."""
    ends = np.cumsum([0, *(len(member.layers) for member in design.members)])
    of = {member.name: np.arange(*ends[k : k + 2]) for k, member in enumerate(design.members)}
    return of | ({"input": np.arange(ends[-1], ends[-1] + controls)} if controls else {})


# --- kernels


def gram_kernels(layers: Sequence[Array], of: Places, groups: Groups | None = None) -> Kernels:
    """Prepare layers for a study as repsim does for those in a store, in float32."""
    grams: Any = (CentredGram()(torch.from_numpy(x.astype(np.float32))) for x in layers)
    grams = tuple(gram if groups is None else gram.grouped(groups) for gram in grams)
    return Kernels(tuple(f"layer {k}" for k in range(len(layers))), grams, dict(of), {})


@dataclass(frozen=True, eq=False)
class Sweep:
    """Values of all samples, and without each."""

    full_values: Array
    left_out: Array


class IndependentSamples(ABC):
    """Attributes of kernels whose samples are not in groups, and have no classes."""

    groups: None = None
    classes: None = None

    @property
    @abstractmethod
    def n(self) -> int:
        """Number of samples."""

    def null_variances(self, layers: Sequence[int], seed: int) -> tuple[float]:
        """Return the variance of debiased CKA of unrelated layers."""
        del layers, seed
        return (2 / (self.n * (self.n - 3)),)

    @property
    def units(self) -> int:
        """Number of samples, each of which is independent."""
        return self.n

    @property
    def unit_of(self) -> NDArray[np.int64]:
        """Unit of each sample."""
        return np.arange(self.n)


@dataclass(frozen=True, eq=False)
class FeatureKernels(IndependentSamples):
    """Substitute for `Kernels` that never forms a Gram matrix: debiased CKA from covariances of features, in float64.

    With centred features, K = XX' and its diagonal d, n (n - 3) HSIC_1 = ||X'Y||^2 - n / (n - 2) d_X'd_Y +
    tr K_X tr K_Y / ((n - 1) (n - 2)), and D_i of `LeaveOneOut` follows from x_i'X'Y y_i in the same way. With few
    features this is many times faster than a pass over Gram matrices; a test shows that the values are the same.
    """

    layers: tuple[Array, ...]
    """Features of all layers and controls, each of shape (n, p)."""
    positions: Places
    kept: dict[bytes, Array] = field(default_factory=dict)
    """Values on subsets of the samples, by the subset: studies of some of the networks use them again."""

    @property
    @override
    def n(self) -> int:
        return len(self.layers[0])

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the layers."""
        return tuple(f"layer {k}" for k in range(len(self.layers)))

    @cached_property
    def _starts(self) -> NDArray[np.int64]:
        return np.cumsum([0, *(x.shape[1] for x in self.layers)])[:-1]

    @cached_property
    def _all(self) -> Array:
        return np.hstack(self.layers)

    def _centred(self, samples: NDArray[np.int64] | slice) -> Array:
        x = self._all[samples]
        return np.asarray(x - x.mean(0))

    def _by_layer(self, values: Array, axis: int) -> Array:
        return np.add.reduceat(values, self._starts, axis=axis)

    def _products(self, x: Array, covariance: Array) -> Array:
        n, squares = len(x), self._by_layer(self._by_layer(covariance**2, 0), 1)
        d = self._by_layer(x**2, 1)
        traces = d.sum(0)
        return np.asarray(squares - n / (n - 2) * d.T @ d + np.outer(traces, traces) / ((n - 1) * (n - 2)))

    def values_on(self, samples: NDArray[np.int64], selected: NDArray[np.int64]) -> Array:
        """Compute debiased CKA of the selected layers on a subset of the samples."""
        key = samples.tobytes()
        if key not in self.kept:
            x = self._centred(samples)
            self.kept[key] = _cosines(self._products(x, x.T @ x))
        return self.kept[key][np.ix_(selected, selected)][None]

    def values(self) -> Array:
        """Compute debiased CKA of all pairs."""
        return self.values_on(np.arange(self.n), np.arange(len(self.layers)))

    @cached_property
    def sweep(self) -> Sweep:
        """Debiased CKA of all pairs, of all samples and without each."""
        x, n = self._centred(slice(None)), self.n
        covariance = x.T @ x
        products, d = self._products(x, covariance), self._by_layer(x**2, 1)
        # A_ij = K_ij - m_i - m_j for i != j, and the rows of K without its diagonal sum to -d
        m = -d / (n - 2) + d.sum(0) / (2 * (n - 1) * (n - 2))
        rest = m.sum(0) - m
        # sum over j != i of K_ij m'_j, for every layer and every m'
        crossed = np.stack([self._by_layer(x * (x.T @ m[:, k]), 1) for k in range(len(self.layers))], -1)
        crossed -= d[:, :, None] * m[:, None]
        lost = np.empty((n, *products.shape))
        step = max(1, _ROWS // (len(covariance) * len(self.layers)))
        for start in range(0, n, step):
            i = slice(start, start + step)
            left = np.empty((len(x[i]), len(self.layers), x.shape[1]))
            for k, (first, last) in enumerate(zip(self._starts, [*self._starts[1:], x.shape[1]], strict=True)):
                left[:, k] = x[i, first:last] @ covariance[first:last]
            lost[i] = self._by_layer(left * x[i, None], 2)
        lost -= d[:, :, None] * d[:, None]
        lost -= crossed + crossed.transpose(0, 2, 1)
        lost += d[:, :, None] * m[:, None] + m[:, :, None] * d[:, None]  # - m'_i sum_j K_ij = + m'_i d_i
        lost += (n - 1) * m[:, :, None] * m[:, None] + m[:, :, None] * rest[:, None] + rest[:, :, None] * m[:, None]
        lost += m.T @ m - m[:, :, None] * m[:, None]
        return Sweep(_cosines(products)[None], _cosines(products - 2 * (n - 2) / (n - 3) * lost)[:, None])


@dataclass(frozen=True, eq=False)
class SomeOfThem(IndependentSamples):
    """Kernels of some of the networks of a study, with the values that were computed for all of them."""

    of: FeatureKernels
    rows: NDArray[np.int64]
    """Positions in ``of`` of the layers and controls."""
    positions: Places

    @property
    @override
    def n(self) -> int:
        return self.of.n

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the layers."""
        return tuple(f"layer {k}" for k in range(len(self.rows)))

    def values_on(self, samples: NDArray[np.int64], selected: NDArray[np.int64]) -> Array:
        """Select debiased CKA on a subset of the samples."""
        return self.of.values_on(samples, self.rows[selected])

    @cached_property
    def sweep(self) -> Sweep:
        """Debiased CKA of all pairs, of all samples and without each."""
        sweep = self.of.sweep
        rows, columns = np.ix_(self.rows, self.rows)
        return Sweep(sweep.full_values[:, rows, columns], sweep.left_out[..., rows, columns])


def some_of(kernels: FeatureKernels, design: Design) -> SomeOfThem:
    """Return the kernels of the models of a design, and of the input."""
    names = [*(member.name for member in design.members), "input"]
    rows = [kernels.positions[name] for name in names]
    ends = np.cumsum([0, *map(len, rows)])
    return SomeOfThem(
        kernels, np.concatenate(rows), {name: np.arange(*ends[k : k + 2]) for k, name in enumerate(names)}
    )


class SimulatedSums(BlockSums):
    """Similarities of the layers of a simulated study."""

    kernels: Any

    def compute(self, me: Ranks, step: Callable[[], None]) -> None:
        """Compute nothing yet."""
        del me
        step()

    @property
    def every(self) -> Similarities:
        """Similarities on all samples."""
        return Similarities.whole(self.kernels.sweep.full_values)

    @property
    def squares(self) -> Array:
        """NaN: no Gram matrix is formed."""
        return np.full(len(self.sides.layers), np.nan)

    def halves(self) -> Iterator[tuple[Similarities, Similarities]]:
        """Yield the similarities on both halves, for each division of the samples."""
        everything = np.arange(len(self.kernels.names))
        for split in range(self.drawn.splits):
            one, other = (self.kernels.values_on(self.drawn.samples(2 * split + k), everything) for k in (0, 1))
            yield Similarities.whole(one), Similarities.whole(other)

    def without(self, run: slice) -> Similarities:
        """Return the similarities without each sample of a run."""
        return Similarities.whole(self.kernels.sweep.left_out[run])


def _cosines(products: Array) -> Array:
    norms = np.sqrt(np.diagonal(products, axis1=-2, axis2=-1))
    return np.asarray(products / norms[..., :, None] / norms[..., None, :])


# --- inference

AnyKernels = Kernels | FeatureKernels | SomeOfThem


def silent(_: str) -> Callable[..., None]:
    """Return a counter of steps that says nothing."""
    return lambda *_: None


def inference(design: Design, kernels: AnyKernels, seed: int = 0) -> Inference:
    """Estimate all indices of a simulated study."""
    of, steps = cast("Kernels", kernels), cast("Steps", silent)
    estimates = estimate(design, of, plan_of(design, of), seed=seed, steps=steps, sums=sums_of(kernels))
    return evidence_of(design, kernels, estimates)


def plan_of(design: Design, kernels: Kernels) -> StudyPlan:
    """Plan a simulated study, in one block."""
    shape = shape_of(design, controls=(), classes=kernels.classes, metrics=(), permutations=0, splits=0)
    shape = replace(shape, n=kernels.n, units=kernels.units)
    return plan_study(shape, design, Limits(2**40, 0, "cpu"))


def sums_of(kernels: AnyKernels) -> Callable[..., BlockSums]:
    """Return the function that makes the sums of a block."""
    return (
        block_sums if isinstance(kernels, Kernels) else lambda of, sides, halves, **_: SimulatedSums(of, sides, halves)
    )


def evidence_of(design: Design, kernels: AnyKernels, estimates: Estimates) -> Inference:
    """Return the inference from estimates, without permutations and other measures."""
    evidence = Evidence(
        design=design, kernels=cast("Kernels", kernels), estimates=estimates, moments=(), dimensions={}, nulls={},
        within_classes={}, measures=(), permutations=0, controls=("input",),
        duplicates=NearDuplicates(cast("SampleIds", None), (), 0, True),
    )  # fmt: skip
    return Inference(evidence, draws=0, seed=0)
