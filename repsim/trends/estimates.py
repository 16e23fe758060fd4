"""Collect the similarities of all points of a series from the records of pairs, with values without each sample."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float64

from repsim.trends.arrangement import Arrangement, Point
from repsim.trends.work import Records

Values = Float64[np.ndarray, "points G"]


@dataclass(frozen=True, eq=False)
class Estimate:
    """Similarities of the points under one measure, in one kind of comparison."""

    values: Values
    """Similarities of matching layers; NaN where there is nothing to compare with."""
    left_out: Float64[np.ndarray, "units points G"]
    """The same without each sample or group; without units for measures that have no such values."""
    threshold: Values
    """95 % point of unrelated layers."""
    blocks: Float64[np.ndarray, "points own other"]
    """Similarities of all layers of the point with all layers of what it is compared with."""


@dataclass(frozen=True)
class Measured:
    """A measure of a series: its name there, the spec of its records, and its kind within them."""

    name: str
    spec: str
    kind: int
    identity: float
    """Similarity of equal layers."""
    directed: bool = False
    """Whether the measure is asymmetric: the values are those of the point, given what it is compared with."""


def estimate(arranged: Arrangement, records: Records, measured: Measured, comparison: str) -> Estimate:
    """Return the similarities of all points in one kind of comparison; of several partners, the mean."""
    layers = len(arranged.layers)
    deepest = max(len(point.arrays) for point in arranged.everything)
    parts = [
        [_oriented(records, measured, arranged, point, partner) for partner in arranged.partners(point)[comparison]]
        for point in arranged.points
    ]
    units = max((len(record.left_out) for of_point in parts for record in of_point), default=0)
    count = len(arranged.points)
    values, threshold = np.full((count, layers), np.nan), np.full((count, layers), np.nan)
    left_out = np.full((units, count, layers), np.nan)
    blocks = np.full((count, deepest, deepest), np.nan)
    for k, of_point in enumerate(parts):
        if not of_point:
            continue
        values[k] = np.mean([record.values for record in of_point], axis=0)
        threshold[k] = np.mean([record.threshold for record in of_point], axis=0)
        if units:
            left_out[:, k] = np.mean([record.left_out for record in of_point], axis=0)
        shape = of_point[0].block.shape
        if all(record.block.shape == shape for record in of_point):
            blocks[k, : shape[0], : shape[1]] = np.mean([record.block for record in of_point], axis=0)
    return Estimate(values, left_out, threshold, blocks)


@dataclass(frozen=True, eq=False)
class _Oriented:
    """Record of one kind, with the point first."""

    values: Float64[np.ndarray, " G"]
    left_out: Float64[np.ndarray, "units G"]
    threshold: Float64[np.ndarray, " G"]
    block: Float64[np.ndarray, "own other"]


def _oriented(records: Records, measured: Measured, arranged: Arrangement, point: Point, partner: Point) -> _Oriented:
    pair = arranged.pair(point, partner)
    record = records[measured.spec, pair]
    kind = measured.kind + (measured.directed and pair.a is not point)
    block = record.blocks[kind]
    return _Oriented(
        record.values[kind],
        record.left_out[kind],
        record.chance[1],
        block if pair.a is point else block.T,
    )


def within(arranged: Arrangement, records: Records, measured: Measured) -> Float64[np.ndarray, "points own own"]:
    """Return the similarities of the layers of every point with one another."""
    deepest = max(len(point.arrays) for point in arranged.everything)
    blocks = np.full((len(arranged.points), deepest, deepest), np.nan)
    for k, point in enumerate(arranged.points):
        record = records[measured.spec, arranged.pair(point, point)]
        block = record.blocks[measured.kind]
        blocks[k, : len(block), : len(block)] = block
    return blocks


def common_layers(values: Values) -> Bool[np.ndarray, " G"]:
    """Return which layers have a value at all points that have any: a mean over others would mix layers and points."""
    defined = np.isfinite(values)
    return np.asarray(defined[defined.any(1)].all(0))


def mean_over_layers(
    values: Float64[np.ndarray, "*batch G"], layers: Bool[np.ndarray, " G"]
) -> Float64[np.ndarray, "*batch"]:
    """Return the mean over these layers; NaN if there are none."""
    return np.asarray(values[..., layers].mean(-1) if layers.any() else np.full(values.shape[:-1], np.nan))
