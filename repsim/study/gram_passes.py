"""The passes over all layers that debiased CKA takes: all values, without each sample, on halves, permuted."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from jaxtyping import Float64, Int64

from repsim.engine.jackknife import LeaveOneOut
from repsim.engine.preparation import Source, prepare
from repsim.engine.resampling import permuted
from repsim.engine.shared_directions import truncate_jointly
from repsim.metrics.cka import CKA
from repsim.metrics.recipes.gram import CentredGram, Gram
from repsim.runtime.progress import Progress
from repsim.stores.alignment import AlignedView
from repsim.study.controls import Control
from repsim.study.design import Design, Member

_CKA = CKA()
SHARE = 0.999
"""Of sum s^4, what these carry."""


def sources(members: Sequence[Member], device: str, min_samples: int = 4) -> list[Source]:
    """Every layer of these models, to be read."""
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
    """Gram matrices of all layers and controls of a study, in one order: models as in the design, then controls."""

    names: tuple[str, ...]
    grams: tuple[Gram, ...]
    of: Mapping[str, Int64[np.ndarray, " layers"]]
    """Model, or kind of control -> where its layers are."""
    undefined: Mapping[str, str]
    """Layers without a value (constant ones), and why; they are in none of the above."""
    short: bool = False
    """Whether layers were `cut`."""

    @property
    def n(self) -> int:
        """Samples."""
        return self.grams[0].n

    def leave_one_out(self, room: int) -> LeaveOneOut:
        """Debiased CKA of everything with everything, without each sample, run after run."""
        return LeaveOneOut(self.grams, self.grams, _CKA, room=room, cubes=True)

    def values(self) -> Float64[np.ndarray, "L L"]:
        """Debiased CKA of everything with everything: positive semidefinite, and 1 on its diagonal."""
        return symmetric(_CKA.block(self.grams, self.grams))

    def on(
        self, samples: Int64[np.ndarray, " m"], where: Int64[np.ndarray, " some"]
    ) -> Float64[np.ndarray, "some some"]:
        """The same of some layers, on some of the samples; NaN for a layer that is constant there."""
        rows = torch.from_numpy(samples)
        some = [Source(self.names[k], self.names[k], partial(_taken, self.grams[k], rows)) for k in where]
        prepared = prepare(CentredGram(), some)
        there = [k for k, source in enumerate(some) if source.name in prepared.factors]
        grams: list[Any] = [prepared.factors[some[k].name] for k in there]
        found = np.full((len(where), len(where)), np.nan)
        found[np.ix_(there, there)] = symmetric(_CKA.block(grams, grams))
        return found

    def cut(self, where: Sequence[int]) -> "Kernels":
        """Some of the layers, by components that carry almost all of their kernels, in directions that they share."""
        grams = tuple(truncate_jointly([self.grams[k] for k in where], SHARE))
        place = {k: i for i, k in enumerate(where)}
        of = {name: np.array([place[k] for k in some if k in place], int) for name, some in self.of.items()}
        return Kernels(tuple(self.names[k] for k in where), grams, of, self.undefined, short=True)


def kernels(
    design: Design, controls: Sequence[Control], device: str, *, keep: bool, step: Callable[[], None]
) -> Kernels:
    """Prepare every layer of every model, and every control."""
    every = sources(design.members, device)
    every += [Source(control.name, control.name, partial(_at_hand, control, device)) for control in controls]
    prepared = prepare(CentredGram(), every, device=device, keep=keep, step=step)
    names = tuple(source.name for source in every if source.name in prepared.factors)
    place = {name: k for k, name in enumerate(names)}
    of = {member.name: [place[name] for name in member.layers if name in place] for member in design.members}
    for control in controls:
        of.setdefault(control.kind, []).extend([place[control.name]] if control.name in place else [])
    grams: list[Any] = [prepared.factors[name] for name in names]
    return Kernels(names, tuple(grams), {name: np.array(some, int) for name, some in of.items()}, prepared.undefined)


def permuted_values(
    kernels: Kernels,
    rows: Int64[np.ndarray, " rows"],
    columns: Int64[np.ndarray, " columns"],
    orders: Int64[np.ndarray, "count n"],
    *,
    memory: int | None,
    progress: Progress | None = None,
) -> Float64[np.ndarray, "count rows columns"]:
    """Debiased CKA with the samples of the columns permuted, all layers alike."""
    a, b = ([kernels.grams[k] for k in side] for side in (rows, columns))
    return permuted(a, b, _CKA, orders, memory=memory, progress=progress)


def symmetric(values: Float64[np.ndarray, "L L"]) -> Float64[np.ndarray, "L L"]:
    """The same without what rounding did to one triangle and not to the other; 1 on the diagonal."""
    values = (values + values.T) / 2
    np.fill_diagonal(values, np.where(np.isnan(np.diagonal(values)), np.nan, 1.0))
    return values


def _taken(gram: Gram, samples: torch.Tensor) -> torch.Tensor:
    return gram.features[samples.to(gram.device)]


def _at_hand(control: Control, device: str) -> torch.Tensor:
    return torch.from_numpy(control.features).to(device)
