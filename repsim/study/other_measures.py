"""Compute measures without a partial or leave-one-out formula: values, chance levels, permutations, half-samples."""

import dataclasses
import hashlib
import itertools
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
from jaxtyping import Float64, Int64

from repsim._version import __version__
from repsim.engine.permutation import least_bytes
from repsim.engine.planning import LayerShape, Limits, by_recipe, plan
from repsim.engine.preparation import Prepared, Source, prepare
from repsim.engine.resampling import permuted, random_subsamples
from repsim.metrics import Metric, Recipe
from repsim.metrics.base import GramMetric
from repsim.metrics.recipes.base import PermutableFactor
from repsim.metrics.recipes.cost import NOMINAL, LayerSize
from repsim.metrics.recipes.groups import LEAST, Groups
from repsim.runtime import interrupts, tuning
from repsim.runtime.progress import Progress, Steps, counter, report_share
from repsim.study.blocks import divide
from repsim.study.design import Member, Pair
from repsim.study.gram_passes import sources
from repsim.study.layer_matching import mbm
from repsim.study.units import Sharing, flat, shaped

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
class Setting:
    """Data and limits that all measures of a study share."""

    pairs: Sequence[Pair]
    """Pairs of models to compare."""
    tested: Sequence[Pair]
    """Those for which chance levels and permuted values are computed as well."""
    orders: Int64[np.ndarray, "count n"]
    """Permutations of the samples. If samples are in groups, they exchange whole groups."""
    device: str = "cpu"
    seed: int = 0
    """Seed of the half-samples."""
    groups: Groups | None = None
    """Groups of samples that are not independent: half-samples then consist of whole groups. The values are those
    without groups."""
    sharing: Sharing = field(default_factory=Sharing)
    """Where finished pairs are kept, and the processes that share the others."""
    available: float = math.inf
    """Bytes for the layers that are prepared, or permuted, at the same time."""

    @property
    def n(self) -> int:
        """Number of samples."""
        return int(self.orders.shape[1])


def measure_all(
    metrics: Sequence[Metric[Any]], setting: Setting, steps: Steps | None = None
) -> dict[str, MeasureResult]:
    """Compare the layers of all pairs of models under several measures; return the results by their specs.

    Measures with the same recipe prepare their layers once. ``steps`` is called with the name of each step of the work.
    """
    results: dict[str, MeasureResult] = {}
    for recipe, sharing in by_recipe(metrics, "features"):
        names = ", ".join(metric.spec for metric in sharing)
        results |= _measure(recipe, sharing, setting, None if steps is None else steps(f"measuring {names}"))
    return results


def measure(metric: Metric[Any], setting: Setting, progress: Progress | None = None) -> MeasureResult:
    """Compare the layers of all pairs of models under one measure."""
    return _measure(metric.recipe_for("features"), [metric], setting, progress)[metric.spec]


def _measure(
    recipe: Recipe[Any], metrics: Sequence[Metric[Any]], setting: Setting, progress: Progress | None
) -> dict[str, MeasureResult]:
    results = {metric.spec: MeasureResult(metric) for metric in metrics}
    possible = []
    for metric in metrics:
        result = results[metric.spec]
        if setting.pairs and setting.n >= metric.min_samples:
            possible.append(_planned(result, setting))
        else:
            _leave_out(result, setting)
    if not possible:
        return results
    comparison = _Comparison(recipe, possible, setting)
    keys = comparison.keys()
    halved = sum(planned.halves > 0 for planned in possible)
    step = counter(len(keys) + halved * len(setting.pairs), progress)
    units = setting.sharing.compute(
        {key: comparison.name(*key) for key in keys}, {key: comparison.size(*key) for key in keys},
        comparison.compute, step,
    )  # fmt: skip
    for (planned, pair), numbers in units.items():
        comparison.read(planned, pair, numbers)
    for planned in possible:
        planned.finish(setting)
        for name, values in comparison.on_halves(planned, step).items():
            planned.result.halves[name] = as_similarity(planned.result.metric, values)
    return results


def _leave_out(result: MeasureResult, setting: Setting) -> None:
    """Fill in NaN for a measure that has too few samples, or no pairs."""
    result.values = {pair.name: np.full((len(pair.a.layers), len(pair.b.layers)), np.nan) for pair in setting.pairs}
    result.chance = result.chance_sd = result.values
    if setting.pairs:
        result.notes.append(f"{setting.n} samples are too few: it needs at least {result.metric.min_samples}")


@dataclass(eq=False)
class _Planned:
    """A measure, and how many permutations and half-samples are computed of it."""

    result: MeasureResult
    draws: int
    halves: int
    permutable: bool
    """Whether prepared layers can be permuted; otherwise they are prepared again for each permutation."""
    undefined: dict[str, str] = field(default_factory=dict)
    widths: list[tuple[int, int]] = field(default_factory=list)

    @property
    def metric(self) -> Metric[Any]:
        return self.result.metric

    def finish(self, setting: Setting) -> None:
        """Add notes about layers without values, and about too few samples."""
        self.result.notes[:0] = [f"layer {name}: {why}" for name, why in self.undefined.items()]
        if scarcity := self.metric.scarcity_of_all(setting.n, self.widths):
            self.result.notes.append(scarcity)


def _planned(result: MeasureResult, setting: Setting) -> _Planned:
    metric = result.metric
    permutable = isinstance(metric, GramMetric) or _is_permutable(metric)
    draws, halves = _affordable_counts(
        result, setting.pairs, setting.tested, setting.n, len(setting.orders), permutable=permutable
    )
    if halves and setting.groups is not None and setting.groups.count < 2 * LEAST:
        result.notes.append(f"no interval: {setting.groups.count} groups of samples are too few to be halved")
        halves = 0
    return _Planned(result, draws, halves, permutable)


def _is_permutable(metric: Metric[Any]) -> bool:
    """Return whether prepared layers can be permuted, which a recipe shows on a small layer."""
    rng = np.random.default_rng(0)
    small = torch.from_numpy(rng.normal(size=(max(32, metric.min_samples), 4)))
    return isinstance(metric.recipe_for("features")(small), PermutableFactor)


_TEXT, _TEXT_OF_LAYER = 2**14, 2**10
"""Numbers of a unit that hold a text: its length, and its bytes; and more for every layer, which may have no value."""


@dataclass(eq=False)
class _Comparison:
    """Pairs of models under measures that share a recipe. A unit is one pair of models under one measure."""

    recipe: Recipe[Any]
    planned: Sequence[_Planned]
    setting: Setting

    def __post_init__(self) -> None:
        setting = self.setting
        self._tested = {pair.name for pair in setting.tested}
        members = list({member.name: member for pair in setting.pairs for member in (pair.a, pair.b)}.values())
        groups = divide(members, setting.available / 2, self._bytes)
        group_of = {member.name: k for k, group in enumerate(groups) for member in group}
        self._block_of = {
            pair.name: tuple(sorted((group_of[pair.a.name], group_of[pair.b.name]))) for pair in setting.pairs
        }

    def _bytes(self, member: Member) -> float:
        sizes = [LayerSize(self.setting.n, shape.p, max(4, shape.itemsize)) for shape in _shapes(member)]
        return float(sum(self.recipe.memory(size).factor + self.recipe.memory(size).state for size in sizes))

    def keys(self) -> list[tuple[_Planned, Pair]]:
        """Return all units, block after block, as the layers of a block are in memory at the same time."""
        pairs = sorted(self.setting.pairs, key=lambda pair: self._block_of[pair.name])
        blocks = itertools.groupby(pairs, key=lambda pair: self._block_of[pair.name])
        return [(planned, pair) for _, of_block in blocks for pair in of_block for planned in self.planned]

    def name(self, planned: _Planned, pair: Pair) -> str:
        """Return a text of all on which a unit depends."""
        setting = self.setting
        orders = hashlib.sha256(setting.orders[: planned.draws].tobytes()).hexdigest()
        members = [(member.store.checksum, member.arrays) for member in (pair.a, pair.b)]
        tested = pair.name in self._tested
        device = setting.device.partition(":")[0]
        return repr((__version__, "measure", planned.metric.spec, members, planned.draws, orders, tested, device))

    def _shapes(self, planned: _Planned, pair: Pair) -> list[tuple[int, ...]]:
        a, b = len(pair.a.layers), len(pair.b.layers)
        text = _TEXT + _TEXT_OF_LAYER * (a + b)
        return [(a, b), (a, b), (a, b), (planned.draws, a, b), (a,), (b,), (text,)]

    def size(self, planned: _Planned, pair: Pair) -> int:
        """Return the number of values of a unit."""
        return sum(int(np.prod(shape)) for shape in self._shapes(planned, pair))

    def compute(self, keys: Sequence[tuple[_Planned, Pair]]) -> Iterator[Float64[np.ndarray, " all"]]:
        """Compare pairs of models, one after the other."""
        for _, of_block in itertools.groupby(keys, key=lambda key: self._block_of[key[1].name]):
            chosen = list(of_block)
            members = {member.name: member for _, pair in chosen for member in (pair.a, pair.b)}
            layers = sources(tuple(members.values()), self.setting.device, self._least)
            prepared = prepare(self.recipe, layers, device=self.setting.device)
            for planned, pair in chosen:
                yield self._pair(planned, pair, prepared)

    @property
    def _least(self) -> int:
        return max(planned.metric.min_samples for planned in self.planned)

    def _pair(self, planned: _Planned, pair: Pair, prepared: Prepared) -> Float64[np.ndarray, " all"]:
        metric, setting = planned.metric, self.setting
        names = pair.a.layers, pair.b.layers
        a, b = ([prepared.factors.get(name) for name in side] for side in names)
        values = as_similarity(metric, _blocks(metric, a, b))
        chance = chance_sd = np.full(values.shape, np.nan)
        permuted_values = np.full((planned.draws, *values.shape), np.nan)
        text: dict[str, Any] = {
            "undefined": {
                name: prepared.undefined[name] for side in names for name in side if name in prepared.undefined
            }
        }
        shapes = (_shapes(pair.a), _shapes(pair.b))
        widths = [
            np.array([-1 if x is None else metric.width(x, one.p) for x, one in zip(factors, of_side, strict=True)])
            for factors, of_side in zip((a, b), shapes, strict=True)
        ]
        if pair.name in self._tested:
            text["cautions"] = sorted(_cautions(metric, a, b))
            levels = [[metric.chance(x, y) if x is not None and y is not None else None for y in b] for x in a]
            chance = as_similarity(metric, _chance_values(levels, "mean"))
            chance_sd = _chance_values(levels, "sd")
            if planned.draws:
                columns = b
                if not planned.permutable:
                    of_b = {
                        source.name: source.rows for source in sources((pair.b,), setting.device, metric.min_samples)
                    }
                    columns = [of_b[name]()[:] if y is not None else None for name, y in zip(names[1], b, strict=True)]
                memory = (
                    None if math.isinf(setting.available) else max(int(setting.available), least_bytes(setting.n, 8))
                )
                drawn = _permuted(metric, a, columns, setting.orders[: planned.draws], memory)
                permuted_values = as_similarity(metric, drawn)
        size = _TEXT + _TEXT_OF_LAYER * sum(map(len, names))
        written = _numbers_of(json.dumps(text, ensure_ascii=False), size)
        return flat([values, chance, chance_sd, permuted_values, *widths, written])

    def read(self, planned: _Planned, pair: Pair, numbers: Float64[np.ndarray, " all"]) -> None:
        """Put the numbers of a unit into the result of its measure."""
        result, name = planned.result, pair.name
        values, chance, chance_sd, permuted_values, rows, columns, text = shaped(numbers, self._shapes(planned, pair))
        said = json.loads(_text_of(text))
        result.values[name] = values
        planned.undefined |= said["undefined"]
        if name not in self._tested:
            return
        result.chance[name], result.chance_sd[name] = chance, chance_sd
        result.cautions[name] = set(said["cautions"])
        planned.widths += [(int(p), int(q)) for p in rows for q in columns if p >= 0 and q >= 0]
        if planned.draws:
            result.permuted[name] = permuted_values

    def on_halves(self, planned: _Planned, step: Callable[[], None]) -> dict[str, Float64[np.ndarray, "count a b"]]:
        """Compute the values of all pairs on the half-samples, by the name of the pair.

        A unit is one pair on all half-samples, so that a study to which models are added computes only new pairs.
        """
        setting = self.setting
        if not planned.halves:
            return {}
        samples = _half_samples(setting.n, planned.halves, setting.seed, setting.groups)
        drawn = [hashlib.sha256(half.tobytes()).hexdigest() for half in samples]
        device = setting.device.partition(":")[0]
        names, shapes = {}, {}
        for pair in sorted(setting.pairs, key=lambda pair: self._block_of[pair.name]):
            members = [(member.store.checksum, member.arrays) for member in (pair.a, pair.b)]
            names[pair] = repr((__version__, "halves", planned.metric.spec, members, drawn, device))
            shapes[pair] = planned.halves, len(pair.a.layers), len(pair.b.layers)
        sizes = {pair: int(np.prod(shape)) for pair, shape in shapes.items()}
        units = setting.sharing.compute(names, sizes, partial(self._pairs_on_halves, planned.metric, samples), step)
        return {pair.name: units[pair].reshape(shape) for pair, shape in shapes.items()}

    def _pairs_on_halves(
        self, metric: Metric[Any], samples: Sequence[Int64[np.ndarray, " m"]], pairs: Sequence[Pair]
    ) -> Iterator[Float64[np.ndarray, " all"]]:
        """Compare pairs of models on all half-samples; each half of a layer is prepared once for a block of pairs."""
        metric = _on_half(metric, self.setting.n)
        recipe = metric.recipe_for("features")
        for _, of_block in itertools.groupby(pairs, key=lambda pair: self._block_of[pair.name]):
            chosen = list(of_block)
            members = {member.name: member for pair in chosen for member in (pair.a, pair.b)}
            layers = sources(tuple(members.values()), self.setting.device)
            values: list[list[Values]] = [[] for _ in chosen]
            for k, half in enumerate(map(torch.from_numpy, samples)):
                subsets = [Source(one.name, one.name, partial(_select_samples, one.rows, half)) for one in layers]
                factors = prepare(recipe, subsets, device=self.setting.device).factors
                for of_pair, pair in zip(values, chosen, strict=True):
                    sides = ([factors.get(name) for name in side.layers] for side in (pair.a, pair.b))
                    of_pair.append(_blocks(metric, *sides))
                interrupts.check()
                report_share(k + 1, len(samples) * len(chosen))  # of the first of these pairs, which are done together
            yield from map(flat, values)


def _numbers_of(text: str, size: int) -> Float64[np.ndarray, " numbers"]:
    """Return a text as numbers: its length in bytes, and these."""
    data = text.encode()
    numbers = np.zeros(size)
    numbers[0], numbers[1 : 1 + len(data)] = len(data), np.frombuffer(data, np.uint8)
    return numbers


def _text_of(numbers: Float64[np.ndarray, " numbers"]) -> str:
    return bytes(numbers[1 : 1 + int(numbers[0])].astype(np.uint8)).decode()


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
    """Return how many times all pairs can be compared within the time limit of a study, at most ``count`` times.

    Parameters
    ----------
    prepared
        Whether layers are prepared already, so that only comparing them takes time.
    fewest
        Return 0 if fewer comparisons than this are possible.
    """
    possible = int(tuning.current().study_seconds / max(_seconds(metric, pairs, n, prepared=prepared), 1e-9))
    return count if possible >= count else _steady(possible, fewest)


def _steady(possible: int, fewest: int) -> int:
    """Return the largest of ``fewest``, twice as many, four times as many, ... that is possible; 0 if none is.

    It is often the same after a model is added to a study, and then the earlier pairs are not compared again.

    >>> [_steady(possible, 19) for possible in (18, 19, 37, 38, 151, 152)]
    [0, 19, 19, 38, 76, 152]
    """
    return fewest << (possible // fewest).bit_length() - 1 if possible >= fewest else 0


def _seconds(metric: Metric[Any], pairs: Sequence[Pair], n: int, *, prepared: bool) -> float:
    """Estimate how many seconds comparing all pairs once takes at nominal rates, with preparing their layers or not."""
    seconds = 0.0
    for pair in pairs:
        stages = plan(_shapes(pair.a), _shapes(pair.b), n, [metric], Limits(2**62)).stages
        seconds += sum(stage.comparing.seconds(NOMINAL) for stage in stages)
    members = {member.name: member for pair in pairs for member in (pair.a, pair.b)}
    for member in () if prepared else members.values():  # each is prepared once, for all of its pairs
        stages = plan(_shapes(member), _shapes(member), n, [metric], Limits(2**62)).stages
        seconds += sum(stage.preparing.seconds(NOMINAL) for stage in stages)
    return seconds


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


def _on_half(metric: Metric[Any], n: int) -> Metric[Any]:
    """Return the measure for half of the samples: a number of neighbours k is halved, so that k / n stays the same.

    Otherwise the chance level, and the scale on which neighbours are local, would change.
    """
    if "k" not in {option.name for option in dataclasses.fields(metric)}:
        return metric
    k: int = metric.k  # type: ignore[attr-defined]
    return dataclasses.replace(metric, k=max(1, round(k * (n // 2) / n)))


def _select_samples(rows: Callable[[], Any], samples: torch.Tensor) -> torch.Tensor:
    values: torch.Tensor = rows()[samples]
    return values


def _chance_values(levels: Sequence[Sequence[Any]], name: str) -> Values:
    return np.array(
        [[np.nan if x is None or getattr(x, name) is None else getattr(x, name) for x in row] for row in levels]
    )
