"""Compute measures without a partial or leave-one-out formula: values, chance levels, permutations, half-samples."""

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
from repsim.metrics.base import GramMetric
from repsim.metrics.recipes.base import PermutableFactor
from repsim.metrics.recipes.cost import NOMINAL
from repsim.metrics.recipes.groups import LEAST, Groups
from repsim.runtime import tuning
from repsim.runtime.progress import Progress, counter
from repsim.study.design import Member, Pair
from repsim.study.gram_passes import sources
from repsim.study.layer_matching import mbm

Values = Float64[np.ndarray, "a b"]
MIN_PERMUTATIONS = 19
"""Smallest number of permutations with which p = 0.05 can be reached."""


@dataclass(eq=False)
class MeasureResult:
    """Results of one measure for all pairs of models that are compared, by the name of the pair.

    Arrays are layers of a by layers of b. Distances are stored as similarities (see `as_similarity`).
    """

    metric: Metric[Any]
    values: dict[str, Values] = field(default_factory=dict)
    """Similarities of layers."""
    chance: dict[str, Values] = field(default_factory=dict)
    """Mean over all permutations of the samples, where it has a closed form."""
    chance_sd: dict[str, Values] = field(default_factory=dict)
    """Standard deviation over all permutations, where it has a closed form."""
    permuted: dict[str, Float64[np.ndarray, "count a b"]] = field(default_factory=dict)
    """Values with permuted samples."""
    halves: dict[str, Float64[np.ndarray, "count a b"]] = field(default_factory=dict)
    """Values on random half-samples, which are the same for all pairs."""
    cautions: dict[str, set[str]] = field(default_factory=dict)
    """Cautions of the measure about values of the pair."""
    notes: list[str] = field(default_factory=list)
    """Sentences about values that were not computed, or not in full."""

    def of(self, values: Mapping[str, Float64[np.ndarray, "..."]], pair: Pair) -> Float64[np.ndarray, "*batch a b"]:
        """Return the values of a pair of models, which may have been compared in the other order."""
        if pair.name in values:
            return values[pair.name]
        return values[Pair(pair.b, pair.a).name].swapaxes(-1, -2)

    def mean_index(
        self, values: Mapping[str, Float64[np.ndarray, "..."]], pairs: Sequence[Pair]
    ) -> Float64[np.ndarray, "..."]:
        """Compute the mean over pairs of models of the mean similarity of best-matching layers."""
        return np.asarray(np.mean([mbm(self.of(values, pair)) for pair in pairs], axis=0))


@dataclass(frozen=True, eq=False)
class Layers:
    """Layers of pairs of models, in memory, and prepared for all measures that share a recipe."""

    values: Mapping[str, torch.Tensor]
    prepared: Prepared

    def features(self, name: str) -> int:
        """Return the number of features of a layer."""
        return self.values[name].shape[1]


def read(pairs: Sequence[Pair], recipe: Recipe[Any], device: str, min_samples: int = 4) -> Layers:
    """Read every layer of the pairs of models once, and prepare it with the recipe."""
    members = {member.name: member for pair in pairs for member in (pair.a, pair.b)}
    values = {source.name: source.rows()[:] for source in sources(tuple(members.values()), device, min_samples)}
    in_memory = [Source(name, name, partial(values.__getitem__, name)) for name in values]
    return Layers(values, prepare(recipe, in_memory, device=device))


def measure(
    metric: Metric[Any],
    pairs: Sequence[Pair],
    tested: Sequence[Pair],
    orders: Int64[np.ndarray, "count n"],
    *,
    device: str,
    memory: int | None,
    seed: int,
    groups: Groups | None = None,
    layers: Layers | None = None,
    progress: Progress | None = None,
) -> MeasureResult:
    """Compare the layers of all pairs of models.

    Parameters
    ----------
    metric
        The measure.
    pairs
        Pairs to compare.
    tested
        Those of ``pairs`` for which chance levels and permuted values are computed as well.
    orders
        (count, n): permutations of the samples.
    device
        Device on which layers are prepared.
    memory
        Bytes that may be used.
    seed
        Seed of the half-samples.
    groups
        Groups of samples that are not independent: half-samples then consist of whole groups. The orders have to
        exchange whole groups, too. The values are those without groups.
    layers
        Layers that have been read, and prepared with a recipe that serves this measure; by default they are read.
    progress
        Called with the number of steps done, and of all.
    """
    result = MeasureResult(metric)
    n = orders.shape[1]
    if not pairs or n < metric.min_samples:
        result.values = {pair.name: np.full((len(pair.a.layers), len(pair.b.layers)), np.nan) for pair in pairs}
        result.chance = result.chance_sd = result.values
        if pairs:
            result.notes.append(f"{n} samples are too few: it needs at least {metric.min_samples}")
        return result
    if layers is None:
        layers = read(pairs, metric.recipe_for("features"), device, metric.min_samples)
    prepared = layers.prepared
    result.notes += [f"layer {name}: {why}" for name, why in prepared.undefined.items()]
    # factors that cannot be permuted are prepared again for each permutation
    permutable = isinstance(metric, GramMetric) or all(
        isinstance(factor, PermutableFactor) for factor in prepared.factors.values()
    )
    draws, halves = _affordable_counts(result, pairs, tested, n, len(orders), permutable=permutable)
    if halves and groups is not None and groups.count < 2 * LEAST:
        result.notes.append(f"no interval: {groups.count} groups of samples are too few to be halved")
        halves = 0
    tested_names = {pair.name for pair in tested}
    step = counter(len(pairs) + halves, progress)
    widths: list[tuple[int, int]] = []
    for pair in pairs:
        a, b = ([prepared.factors.get(name) for name in side.layers] for side in (pair.a, pair.b))
        result.values[pair.name] = as_similarity(metric, _blocks(metric, a, b))
        if pair.name not in tested_names:
            step()
            continue
        result.cautions[pair.name] = _cautions(metric, a, b)
        row_widths, column_widths = (
            [
                metric.width(x, layers.features(name))
                for name, x in zip(side.layers, factors, strict=True)
                if x is not None
            ]
            for side, factors in ((pair.a, a), (pair.b, b))
        )
        widths += itertools.product(row_widths, column_widths)
        levels = [[metric.chance(x, y) if x is not None and y is not None else None for y in b] for x in a]
        result.chance[pair.name] = as_similarity(metric, _chance_values(levels, "mean"))
        result.chance_sd[pair.name] = _chance_values(levels, "sd")
        if draws:
            columns = (
                b
                if permutable
                else [
                    layers.values[name] if factor is not None else None
                    for name, factor in zip(pair.b.layers, b, strict=True)
                ]
            )
            permuted_values = _permuted(metric, a, columns, orders[:draws], memory)
            result.permuted[pair.name] = as_similarity(metric, permuted_values)
        step()
    if scarcity := metric.scarcity_of_all(n, widths):
        result.notes.append(scarcity)
    if halves:
        samples = _half_samples(n, halves, seed, groups)
        for name, values in _on_halves(metric, pairs, layers.values, samples, n=n, step=step).items():
            result.halves[name] = as_similarity(metric, values)
    return result


def _cautions(metric: Metric[Any], a: Sequence[Any], b: Sequence[Any]) -> set[str]:
    """Return the cautions of the measure about the values of two networks."""
    pairs = [(x, y) for x in a for y in b if x is not None and y is not None]
    cautions = {metric.caution(x, y) for x, y in pairs}
    if metric.ambiguity is not None:
        largest = float(np.nan_to_num(_blocks(metric.ambiguity, a, b)).max(initial=0))
        cautions.add(metric.ambiguous(largest))
    return {caution for caution in cautions if caution}


def _half_samples(n: int, count: int, seed: int, groups: Groups | None) -> list[Int64[np.ndarray, " m"]]:
    """Draw random halves of the samples, or of the groups of samples."""
    if groups is None:
        return list(random_subsamples(n, n // 2, count, seed))
    return random_subsamples(n, groups.count // 2, count, seed, groups=groups)


def _affordable_counts(
    result: MeasureResult, pairs: Sequence[Pair], tested: Sequence[Pair], n: int, count: int, *, permutable: bool
) -> tuple[int, int]:
    """Return how many of ``count`` permutations, and how many half-samples, to compute; add notes if fewer or none."""
    metric = result.metric
    if not metric.symmetric:
        result.notes.append("asymmetric: the first model of each pair given the second, and not the other way round")
    draws = _affordable(metric, tested, n, count, prepared=permutable) if metric.paired else 0
    if not metric.paired:
        result.notes.append("not permuted: its value does not depend on the order of the samples")
    elif draws < count:
        result.notes.append(
            f"{draws} of {count} permutations are affordable at this size"
            if draws
            else "not permuted: fewer than 19 permutations are affordable at this size"
        )
    halves = _affordable(metric, pairs, n // 2, tuning.current().half_samples, prepared=False, fewest=8)
    if not halves:
        result.notes.append("no interval: half-samples take too long at this size")
    elif _on_half(metric, n).min_samples > n // 2:
        result.notes.append("no interval: half of the samples are too few for it")
        halves = 0
    return draws, halves


def as_similarity(metric: Metric[Any], values: Float64[np.ndarray, "..."]) -> Float64[np.ndarray, "..."]:
    """Return the values of a similarity, or the negative values of a distance, so that larger is always more alike."""
    return values if metric.sense == "similarity" else -values


def identity_value(metric: Metric[Any]) -> float:
    """Return the value of equal layers, as a similarity (see `as_similarity`): the largest that is possible."""
    return metric.bounds[1] if metric.sense == "similarity" else -metric.bounds[0]


def _affordable(
    metric: Metric[Any], pairs: Sequence[Pair], n: int, count: int, *, prepared: bool, fewest: int = MIN_PERMUTATIONS
) -> int:
    """Estimate how many times all pairs can be compared within the time limit of a study, at most ``count`` times.

    Parameters
    ----------
    prepared
        Whether layers are prepared already, so that only comparing them takes time.
    fewest
        Return 0 if fewer comparisons than this are possible.
    """
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
    layers: Mapping[str, torch.Tensor],
    samples: Sequence[Int64[np.ndarray, " m"]],
    *,
    n: int,
    step: Callable[[], None],
) -> dict[str, Float64[np.ndarray, "count a b"]]:
    """Compute the values of all pairs on each half-sample, by the name of the pair."""
    metric = _on_half(metric, n)
    blocks: dict[str, list[Values]] = {pair.name: [] for pair in pairs}
    for half in map(torch.from_numpy, samples):
        subsets = [Source(name, name, partial(_select_samples, x, half)) for name, x in layers.items()]
        factors = prepare(metric.recipe_for("features"), subsets).factors
        for pair in pairs:
            sides = ([factors.get(name) for name in side.layers] for side in (pair.a, pair.b))
            blocks[pair.name].append(_blocks(metric, *sides))
        step()
    return {name: np.stack(values) for name, values in blocks.items()}


def _on_half(metric: Metric[Any], n: int) -> Metric[Any]:
    """Return the measure for half of the samples: a number of neighbours k is halved, so that k / n stays the same.

    Otherwise the chance level, and the scale on which neighbours are local, would change.
    """
    if "k" not in {option.name for option in dataclasses.fields(metric)}:
        return metric
    k: int = metric.k  # type: ignore[attr-defined]
    return dataclasses.replace(metric, k=max(1, round(k * (n // 2) / n)))


def _select_samples(x: torch.Tensor, samples: torch.Tensor) -> torch.Tensor:
    return x[samples.to(x.device)]


def _chance_values(levels: Sequence[Sequence[Any]], name: str) -> Values:
    return np.array(
        [[np.nan if x is None or getattr(x, name) is None else getattr(x, name) for x in row] for row in levels]
    )
