"""Describe the work of a series: on what the measurements of a pair of models depend, and what is kept of them."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import numpy as np
import torch
from jaxtyping import Float64

from repsim._version import __version__
from repsim.engine.preparation import Source
from repsim.metrics import Metric
from repsim.metrics.recipes.groups import Groups
from repsim.runtime import tuning
from repsim.stores.alignment import AlignedView
from repsim.study.controls import Control
from repsim.trends.arrangement import Pair, Point


@dataclass(frozen=True, eq=False)
class Record:
    """Measurements of a pair of models: debiased CKA (kinds: raw, and given the input) or another measure."""

    values: Float64[np.ndarray, "kinds G"]
    """Similarities of the matching layers."""
    blocks: Float64[np.ndarray, "kinds La Lb"]
    """Similarities of all layers of the first model with all of the second; NaN where not computed."""
    left_out: Float64[np.ndarray, "kinds units G"]
    """Similarities of the matching layers without each sample, or group of samples; (kinds, 0, G) if there are none."""
    chance: Float64[np.ndarray, "2 G"]
    """Mean and 95 % point of unrelated layers; NaN where not known."""

    def flat(self) -> Float64[np.ndarray, " all"]:
        """Return all numbers as one vector."""
        return np.concatenate([part.ravel() for part in (self.values, self.blocks, self.left_out, self.chance)])

    @staticmethod
    def shapes(pair: Pair, kinds: int, units: int, layers: int) -> list[tuple[int, ...]]:
        """Return the shapes of the parts of the record of a pair."""
        block = len(pair.a.arrays), len(pair.b.arrays)
        return [(kinds, layers), (kinds, *block), (kinds, units, layers), (2, layers)]

    @classmethod
    def from_flat(cls, numbers: Float64[np.ndarray, " all"], shapes: Sequence[tuple[int, ...]]) -> "Record":
        """Return the record whose `flat` is given."""
        ends = np.cumsum([int(np.prod(shape)) for shape in shapes])
        parts = np.split(numbers, ends[:-1])
        return cls(*(part.reshape(shape) for part, shape in zip(parts, shapes, strict=True)))


Records = Mapping[tuple[str, Pair], Record]
"""Records by the spec of the measure and the pair."""


@dataclass(frozen=True, eq=False)
class Work:
    """Settings and data on which the records of a series depend, beside their two models."""

    points: tuple[Point, ...]
    view: AlignedView
    """Their stores, whose rows belong together."""
    metrics: tuple[Metric[Any], ...]
    """Measures beside debiased CKA."""
    controls: tuple[Control, ...]
    groups: Groups | None
    device: str
    memory: int

    @property
    def n(self) -> int:
        """Number of samples."""
        return len(self.view.sample_ids)

    @property
    def units(self) -> int:
        """Number of samples, or of groups of samples, that are left out."""
        return self.n if self.groups is None else self.groups.count

    @property
    def layers(self) -> int:
        """Number of matching layers."""
        return len(self.points[0].matched)

    @property
    def kinds(self) -> int:
        """Number of kinds of debiased CKA: raw, and given the input."""
        return 1 + bool(self.controls)

    @cached_property
    def dtype(self) -> torch.dtype:
        """Dtype of tiles of Gram matrices: float64 if a layer has few features, or float64."""
        wide = any(
            point.store[name].dtype == np.float64 or np.prod(point.store[name].shape[1:]) < tuning.current().narrow
            for point in self.points
            for name in point.arrays
        ) or any(c.features.dtype == np.float64 or c.features.shape[1] < tuning.current().narrow for c in self.controls)
        return torch.float64 if wide else torch.float32

    @cached_property
    def settings(self) -> str:
        """Text that identifies the settings on which values depend in their last digits."""
        controls = hashlib.sha256(b"".join(np.ascontiguousarray(c.features).tobytes() for c in self.controls))
        groups = "" if self.groups is None else hashlib.sha256(self.groups.numbers.numpy().tobytes()).hexdigest()
        sizes = tuning.current().series_panel, tuning.current().series_tile
        device = self.device.partition(":")[0]
        return repr((__version__, self.n, self.dtype, controls.hexdigest(), groups, sizes, device))

    def name(self, spec: str, pair: Pair) -> str:
        """Return a text that identifies a record."""
        sides = [(*self._rows(point), point.arrays, point.matched.tolist()) for point in (pair.a, pair.b)]
        return repr((self.settings, spec, sides))

    def identity(self, point: Point, layer: int) -> tuple[str, ...]:
        """Return what identifies a common layer of a point."""
        return *self._rows(point), point.arrays[point.matched[layer]]

    def _rows(self, point: Point) -> tuple[str, ...]:
        """Return what identifies the store of a point, and its rows if these are not all of them, in their order."""
        rows = self.view.rows(point.store)
        if rows is None or np.array_equal(rows, np.arange(len(point.store))):
            return (point.checksum,)
        return point.checksum, hashlib.sha256(rows.tobytes()).hexdigest()

    def source(self, point: Point, array: str, min_samples: int = 4) -> Source:
        """Return a layer of a point, which is read on demand."""
        name = layer_name(point, array)
        read = partial(self.view.stream, point.store, array, self.device, min_samples=min_samples)
        return Source(name, name, read)

    def shapes(self, spec: str, pair: Pair) -> list[tuple[int, ...]]:
        """Return the shapes of the parts of a record."""
        if spec == "cka":
            return Record.shapes(pair, self.kinds, self.units, self.layers)
        metric = next(metric for metric in self.metrics if metric.spec == spec)
        return Record.shapes(pair, 1 if metric.symmetric else 2, 0, self.layers)


def models_of(pairs: Sequence[Pair]) -> list[Point]:
    """Return all points of the pairs, each once."""
    return list({point.name: point for pair in pairs for point in (pair.a, pair.b)}.values())


def layer_name(point: Point, array: str) -> str:
    """Return the name of a layer of a point among the layers of all points."""
    return f"{point.name}/{array}"


def control_sources(work: Work) -> list[Source]:
    """Return the controls of the input as layers, under names that no model can have."""
    return [
        Source(f"\0input/{k}", control.name, partial(_features, control, work.device))
        for k, control in enumerate(work.controls)
    ]


def _features(control: Control, device: str) -> torch.Tensor:
    return torch.from_numpy(control.features).to(device)
