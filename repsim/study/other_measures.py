"""Measures that know no partial similarity and no leave-one-out formula: values, chance, permutations, half-samples."""

import dataclasses
import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
from jaxtyping import Float64, Int64

from repsim.engine.planning import LayerShape, Limits, plan
from repsim.engine.preparation import Prepared, Source, prepare
from repsim.engine.resampling import permuted, random_subsamples
from repsim.metrics import Metric, Recipe
from repsim.metrics.recipes.cost import NOMINAL
from repsim.runtime import tuning
from repsim.runtime.progress import Progress, counter
from repsim.study.design import Member, Pair
from repsim.study.gram_passes import sources

Values = Float64[np.ndarray, "a b"]
FEWEST = 19
"""Permutations with which p = .05 can be reached."""


@dataclass(eq=False)
class Measured:
    """One measure on all pairs of models that are compared, layers of a by layers of b."""

    metric: Metric[Any]
    values: dict[str, Values] = field(default_factory=dict)
    """By pair; a similarity, whatever the measure is (see `as_similarity`)."""
    chance: dict[str, Values] = field(default_factory=dict)
    """What permuted samples would give on average, where that is known in closed form."""
    chance_sd: dict[str, Values] = field(default_factory=dict)
    permuted: dict[str, Float64[np.ndarray, "count a b"]] = field(default_factory=dict)
    halves: dict[str, Float64[np.ndarray, "count a b"]] = field(default_factory=dict)
    """On random half-samples, the same for all pairs."""
    cautions: dict[str, set[str]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True, eq=False)
class Layers:
    """Every layer of some pairs of models, in memory, and prepared for measures that share a recipe."""

    values: Mapping[str, torch.Tensor]
    prepared: Prepared

    def features(self, name: str) -> int:
        """Of a layer."""
        return self.values[name].shape[1]


def read(pairs: Sequence[Pair], recipe: Recipe[Any], device: str, min_samples: int = 4) -> Layers:
    """Read and prepare each layer once."""
    members = {member.name: member for pair in pairs for member in (pair.a, pair.b)}
    values = {source.name: source.rows()[:] for source in sources(tuple(members.values()), device, min_samples)}
    every = [Source(name, name, partial(values.__getitem__, name)) for name in values]
    return Layers(values, prepare(recipe, every, device=device))


def measure(
    metric: Metric[Any],
    pairs: Sequence[Pair],
    tested: Sequence[Pair],
    orders: Int64[np.ndarray, "count n"],
    *,
    device: str,
    memory: int | None,
    seed: int,
    layers: Layers | None = None,
    progress: Progress | None = None,
) -> Measured:
    """Compare the layers of all pairs; permute those of the pairs that are ``tested``.

    ``layers`` have been read already, and prepared by a recipe that covers the measure's.
    """
    found = Measured(metric)
    n = orders.shape[1]
    if not pairs or n < metric.min_samples:
        found.values = {pair.name: np.full((len(pair.a.layers), len(pair.b.layers)), np.nan) for pair in pairs}
        found.chance = found.chance_sd = found.values
        if pairs:
            found.notes.append(f"{n} samples are too few: it needs at least {metric.min_samples}")
        return found
    if layers is None:
        layers = read(pairs, metric.recipe_for("features"), device, metric.min_samples)
    prepared = layers.prepared
    found.notes += [f"layer {name}: {why}" for name, why in prepared.undefined.items()]
    draws, halves = _planned(found, pairs, tested, n, len(orders))
    step = counter(len(pairs) + halves, progress)
    widths: list[tuple[int, int]] = []
    for pair in pairs:
        a, b = ([prepared.factors.get(name) for name in side.layers] for side in (pair.a, pair.b))
        found.values[pair.name] = as_similarity(metric, _blocks(metric, a, b))
        if pair.name not in {each.name for each in tested}:
            step()
            continue
        both = [(x, y) for x in a for y in b if x is not None and y is not None]
        found.cautions[pair.name] = {caution for x, y in both if (caution := metric.caution(x, y))}
        rows, columns = (
            [
                metric.width(x, layers.features(name))
                for name, x in zip(side.layers, factors, strict=True)
                if x is not None
            ]
            for side, factors in ((pair.a, a), (pair.b, b))
        )
        widths += itertools.product(rows, columns)
        level = [[metric.chance(x, y) if x is not None and y is not None else None for y in b] for x in a]
        found.chance[pair.name] = as_similarity(metric, _numbers(level, "mean"))
        found.chance_sd[pair.name] = _numbers(level, "sd")
        if draws:
            found.permuted[pair.name] = as_similarity(metric, _permuted(metric, a, b, orders[:draws], memory))
        step()
    if scarce := metric.scarcity_of_all(n, widths):
        found.notes.append(scarce)
    if halves:
        samples = random_subsamples(n, n // 2, halves, seed)
        for name, values in _on_halves(metric, pairs, layers.values, samples, n=n, step=step).items():
            found.halves[name] = as_similarity(metric, values)
    return found


def _planned(found: Measured, pairs: Sequence[Pair], tested: Sequence[Pair], n: int, count: int) -> tuple[int, int]:
    """How many permutations of ``count`` there will be, and how many half-samples; notes why there are fewer."""
    metric = found.metric
    if not metric.symmetric:
        found.notes.append("asymmetric: the first model of each pair given the second, and not the other way round")
    draws = _affordable(metric, tested, n, count, prepared=True) if metric.paired else 0
    if not metric.paired:
        found.notes.append("not permuted: it compares clouds, and which sample is which is nothing to it")
    elif draws < count:
        found.notes.append(
            f"{draws} of {count} permutations, which is what is affordable at this size"
            if draws
            else "not permuted: fewer than 19 permutations are affordable at this size"
        )
    halves = _affordable(metric, pairs, n // 2, tuning.current().half_samples, prepared=False, fewest=8)
    if not halves:
        found.notes.append("no interval: half-samples take too long at this size")
    elif _on_half(metric, n).min_samples > n // 2:
        found.notes.append("no interval: half of the samples are too few for it")
        halves = 0
    return draws, halves


def as_similarity(metric: Metric[Any], values: Float64[np.ndarray, "..."]) -> Float64[np.ndarray, "..."]:
    """The values themselves; of a distance their negative, so that more is always more alike."""
    return values if metric.sense == "similarity" else -values


def most(metric: Metric[Any]) -> float:
    """How similar two layers can be, as `as_similarity` has it: what equal layers are."""
    return metric.bounds[1] if metric.sense == "similarity" else -metric.bounds[0]


def _affordable(
    metric: Metric[Any], pairs: Sequence[Pair], n: int, count: int, *, prepared: bool, fewest: int = FEWEST
) -> int:
    """How many times all pairs can be compared, with layers that are prepared or not; 0 for fewer than ``fewest``."""
    seconds = 0.0
    for pair in pairs:
        for stage in plan(_shapes(pair.a), _shapes(pair.b), n, [metric], Limits(2**62)).stages:
            seconds += (stage.comparing if prepared else stage.cost).seconds(NOMINAL)
    possible = min(count, int(tuning.current().study_seconds / max(seconds, 1e-9)))
    return possible if possible >= min(fewest, count) else 0


def _shapes(member: Member) -> list[LayerShape]:
    return [
        LayerShape(name, int(np.prod(member.store[array].shape[1:])), member.store[array].dtype.itemsize)
        for name, array in zip(member.layers, member.arrays, strict=True)
    ]


def _blocks(metric: Metric[Any], a: Sequence[Any], b: Sequence[Any]) -> Values:
    values = np.full((len(a), len(b)), np.nan)
    i, j = ([k for k, factor in enumerate(side) if factor is not None] for side in (a, b))
    values[np.ix_(i, j)] = metric.block([a[k] for k in i], [b[k] for k in j])
    return values


def _permuted(
    metric: Metric[Any], a: Sequence[Any], b: Sequence[Any], orders: Int64[np.ndarray, "count n"], memory: int | None
) -> Float64[np.ndarray, "count a b"]:
    values = np.full((len(orders), len(a), len(b)), np.nan)
    i, j = ([k for k, factor in enumerate(side) if factor is not None] for side in (a, b))
    if i and j:
        values[np.ix_(range(len(orders)), i, j)] = permuted(
            [a[k] for k in i], [b[k] for k in j], metric, orders, memory=memory
        )
    return values


def _on_halves(
    metric: Metric[Any],
    pairs: Sequence[Pair],
    read: Mapping[str, torch.Tensor],
    samples: Int64[np.ndarray, "count m"],
    *,
    n: int,
    step: Callable[[], None],
) -> dict[str, Float64[np.ndarray, "count a b"]]:
    """All pairs on each half."""
    metric = _on_half(metric, n)
    found: dict[str, list[Values]] = {pair.name: [] for pair in pairs}
    for half in torch.from_numpy(samples):
        some = [Source(name, name, partial(_taken, x, half)) for name, x in read.items()]
        factors = prepare(metric.recipe_for("features"), some).factors
        for pair in pairs:
            sides = ([factors.get(name) for name in side.layers] for side in (pair.a, pair.b))
            found[pair.name].append(_blocks(metric, *sides))
        step()
    return {name: np.stack(values) for name, values in found.items()}


def _on_half(metric: Metric[Any], n: int) -> Metric[Any]:
    """Of neighbours, k stays the same part of n: with it changes what is local, and chance."""
    if "k" not in {option.name for option in dataclasses.fields(metric)}:
        return metric
    k: int = metric.k  # type: ignore[attr-defined]
    return dataclasses.replace(metric, k=max(1, round(k * (n // 2) / n)))


def _taken(x: torch.Tensor, samples: torch.Tensor) -> torch.Tensor:
    return x[samples.to(x.device)]


def _numbers(level: Sequence[Sequence[Any]], what: str) -> Values:
    return np.array(
        [[np.nan if x is None or getattr(x, what) is None else getattr(x, what) for x in row] for row in level]
    )
