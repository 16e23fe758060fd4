"""Compute the units of a step of a study: shared among processes, and kept on disk until the study is saved.

A unit is a vector of numbers that depends on its name alone, which includes everything it is computed from. So a unit
that is on disk is used, whichever run made it.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np
from jaxtyping import Float64

from repsim.engine.checkpoints import Checkpoints
from repsim.runtime.processes import ALONE, Ranks
from repsim.runtime.progress import Step, sharing

K = TypeVar("K")
Numbers = Float64[np.ndarray, " all"]


@dataclass(frozen=True)
class Sharing:
    """Checkpoints in which finished units are kept, and the processes that share the others."""

    checkpoints: Checkpoints = field(default_factory=Checkpoints)
    me: Ranks = ALONE

    def load(self, name: str, size: int) -> Numbers | None:
        """Return a unit that is on disk, in every process."""
        return self.me.broadcast(self.checkpoints.load_unit(name, 0, (size,)) if self.me.first else None)

    def save(self, name: str, numbers: Numbers) -> None:
        """Keep a unit that all processes have computed together."""
        if self.me.first:
            self.checkpoints.save(name, 0, numbers)

    def has_all(self, names: Mapping[K, str], sizes: Mapping[K, int]) -> bool:
        """Return whether all units are on disk, in every process."""
        load = self.checkpoints.load_unit
        return self.me.broadcast(
            self.me.first and all(load(name, 0, (sizes[key],)) is not None for key, name in names.items())
        )

    def compute(
        self,
        names: Mapping[K, str],
        sizes: Mapping[K, int],
        work: Callable[[Sequence[K]], Iterable[Numbers]],
        step: Callable[[], None] = lambda: None,
    ) -> dict[K, Numbers]:
        """Return all units: those on disk, and the others, of which each process computes a part.

        Parameters
        ----------
        names
            Names of the units, by their keys, in the same order in every process.
        sizes
            Numbers of values of the units.
        work
            Function that computes units one after the other, in the given order.
        step
            Called once for each unit.
        """
        done: dict[K, Numbers] = {}
        if self.me.first:
            for key, name in names.items():
                if (numbers := self.checkpoints.load_unit(name, 0, (sizes[key],))) is not None:
                    done[key] = numbers
        order = list(names)  # other processes have other objects for the same key
        places = self.me.broadcast([k for k, key in enumerate(order) if key in done])
        missing = [k for k in range(len(order)) if k not in set(places)]
        if isinstance(step, Step):
            step.skip(len(places))
        own = missing[self.me.part(len(missing))]
        computed: dict[int, Numbers] = {}
        with sharing(step):
            for k, numbers in zip(own, work([order[k] for k in own]) if own else (), strict=True):
                computed[k] = numbers
                self.checkpoints.save(names[order[k]], 0, numbers)
                for _ in range(min(self.me.world, len(missing) - len(computed) * (self.me.world - 1))):
                    step()
        everywhere = {k: numbers for part in self.me.gather(computed) for k, numbers in part.items()}
        loaded = self.me.broadcast({k: done[order[k]] for k in places} if self.me.first else {})
        return {key: (everywhere | loaded)[k] for k, key in enumerate(order)}


def flat(arrays: Iterable[np.ndarray]) -> Numbers:
    """Return the numbers of several arrays as one vector."""
    return np.concatenate([np.zeros(0), *(np.asarray(array, np.float64).ravel() for array in arrays)])


def shaped(numbers: Numbers, shapes: Sequence[tuple[int, ...]]) -> Iterator[np.ndarray]:
    """Yield arrays of these shapes from one vector."""
    start = 0
    for shape in shapes:
        stop = start + int(np.prod(shape))
        yield numbers[start:stop].reshape(shape)
        start = stop
