"""Compute and keep what is measured of pairs of models: the only part of a series that takes long.

A pair is the unit that is computed, kept on disk and shared among processes. Its numbers depend on its two stores, the
controls and the options, and not on the other pairs. So a series that was interrupted, or to which a model is added,
computes only what is missing, and its result is the same to the bit.
"""

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import numpy as np
import torch
from jaxtyping import Float64, Int64

from repsim._version import __version__
from repsim.engine.checkpoints import Checkpoints
from repsim.engine.model_pairs import Block, ModelPairs
from repsim.engine.planning import by_recipe
from repsim.engine.preparation import Source, prepare
from repsim.metrics import Metric
from repsim.metrics.base import GramMetric, MomentMetric
from repsim.metrics.recipes.gram import CentredGram, Gram
from repsim.metrics.recipes.groups import Groups
from repsim.runtime import tuning
from repsim.runtime.processes import Ranks
from repsim.runtime.progress import Steps, counter
from repsim.stores.alignment import AlignedView
from repsim.study.controls import Control
from repsim.study.gram_passes import varies_in_one_sample
from repsim.study.other_measures import as_similarity
from repsim.study.partial_cka import MIN_ENERGY
from repsim.trends.arrangement import Pair, Point

Kinds = Float64[np.ndarray, "kinds ..."]
_UNRELATED_SD = 2.02
"""95 % point of debiased CKA of unrelated layers in standard deviations, at most: it depends on their skewness, and is
1.64 for a normal distribution, 2.01 for layers with one direction each."""


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
        block = (len(pair.a.arrays), len(pair.b.arrays)) if pair.whole else (0, 0)
        return [(kinds, layers), (kinds, *block), (kinds, units if pair.whole else 0, layers), (2, layers)]

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
    cka: bool = True

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
    def _settings(self) -> str:
        """Text that identifies the settings on which values depend in their last digits."""
        controls = hashlib.sha256(b"".join(np.ascontiguousarray(c.features).tobytes() for c in self.controls))
        groups = "" if self.groups is None else hashlib.sha256(self.groups.numbers.numpy().tobytes()).hexdigest()
        sizes = tuning.current().series_panel, tuning.current().series_tile
        device = self.device.partition(":")[0]
        return repr((__version__, self.n, self.dtype, controls.hexdigest(), groups, sizes, device))

    def name(self, spec: str, pair: Pair) -> str:
        """Return a text that identifies a record."""
        sides = [
            (point.checksum, point.arrays, point.matched.tolist(), *self._selected(point)) for point in (pair.a, pair.b)
        ]
        return repr((self._settings, spec, sides, pair.whole))

    def _selected(self, point: Point) -> list[str]:
        """Return a text that identifies the rows of a store that are paired, unless they are all, in their order."""
        rows = self.view.rows(point.store)
        if rows is None or np.array_equal(rows, np.arange(len(point.store))):
            return []
        return [hashlib.sha256(rows.tobytes()).hexdigest()]

    def shapes(self, spec: str, pair: Pair) -> list[tuple[int, ...]]:
        """Return the shapes of the parts of a record."""
        is_cka = spec == "cka"
        return Record.shapes(pair, self.kinds if is_cka else 1, self.units if is_cka else 0, self.layers)


def records(
    work: Work, pairs: Sequence[Pair], *, checkpoints: Checkpoints, me: Ranks, steps: Steps
) -> dict[tuple[str, Pair], Record]:
    """Return the records of all pairs: those on disk, and the others, which are computed and kept.

    Parameters
    ----------
    work : Work
        The points, measures, controls and limits.
    pairs : sequence of Pair
        Pairs of points, each once.
    checkpoints : Checkpoints
        Where records are kept.
    me : Ranks
        This process among those that share the work.
    steps : callable
        Called with the name of each step of the work.
    """
    specs = [*(["cka"] if work.cka else []), *(metric.spec for metric in work.metrics)]
    done: dict[tuple[str, Pair], Record] = {}
    for spec in specs:
        for pair in pairs:
            shapes = work.shapes(spec, pair)
            size = sum(int(np.prod(shape)) for shape in shapes)
            if (numbers := checkpoints.load_unit(work.name(spec, pair), 0, (size,))) is not None:
                done[spec, pair] = Record.from_flat(numbers, shapes)
    done = me.broadcast(done)
    missing = [pair for pair in pairs if any((spec, pair) not in done for spec in specs)]
    batches = list(_batches(missing, _most_models(work)))
    own = batches[me.rank :: me.world]
    computed: dict[tuple[str, Pair], Record] = {}
    step = counter(_count_steps(work, own), steps("comparing models of the series")) if own else lambda: None
    for batch in own:
        wanted = {spec: [pair for pair in batch if (spec, pair) not in done] for spec in specs}
        for (spec, pair), record in _compute(work, wanted, step):
            computed[spec, pair] = record
            checkpoints.save(work.name(spec, pair), 0, record.flat())
    for of_process in me.gather(computed):
        done |= of_process
    return done


def _most_models(work: Work) -> int:
    """Return how many models are compared at once: as set, or fewer if memory is short."""
    widths = sum(int(np.prod(work.points[-1].store[name].shape[1:])) for name in work.points[-1].arrays)
    panels = 2 * min(work.n, tuning.current().series_panel) * widths * 4
    sums = 8 * work.n * work.layers * (len(work.controls) * 2 + 4)
    return int(np.clip(work.memory // 2 // max(1, panels + sums), 1, tuning.current().series_models))


def _batches(pairs: Sequence[Pair], most: int) -> Iterator[list[Pair]]:
    """Yield runs of pairs with at most ``most`` models, and those that they are compared with in common.

    Pairs are ordered by their later model, so that a batch has few models of which Gram matrices are made twice.
    """
    batch: list[Pair] = []
    models: set[str] = set()
    for pair in pairs:
        new = {pair.a.name, pair.b.name} - models
        if batch and len(models) + len(new) > most + 2:
            yield batch
            batch, models = [], set()
            new = {pair.a.name, pair.b.name}
        batch.append(pair)
        models |= new
    if batch:
        yield batch


def _count_steps(work: Work, batches: Sequence[Sequence[Pair]]) -> int:
    panels = -(-work.n // tuning.current().series_panel)
    return len(batches) * (work.cka * panels * (panels + 1) // 2 + len(work.metrics))


def _compute(
    work: Work, wanted: Mapping[str, Sequence[Pair]], step: Callable[[], None]
) -> Iterator[tuple[tuple[str, Pair], Record]]:
    if work.cka and wanted["cka"]:
        for pair, record in _cka(work, wanted["cka"], step).items():
            yield ("cka", pair), record
    for recipe, metrics in by_recipe(list(work.metrics), "features"):
        pairs = list(dict.fromkeys(pair for metric in metrics for pair in wanted[metric.spec]))
        least = max(metric.min_samples for metric in metrics)
        sources = [source for point in _models(pairs) for source in _sources(point, work, least)]
        factors: Mapping[str, Any] = prepare(recipe, sources, device=work.device).factors
        for metric in metrics:
            for pair in wanted[metric.spec]:
                yield (metric.spec, pair), _other(metric, pair, factors)
            step()


def _models(pairs: Sequence[Pair]) -> list[Point]:
    """Return all points of the pairs, each once."""
    return list({point.name: point for pair in pairs for point in (pair.a, pair.b)}.values())


def _sources(point: Point, work: Work, min_samples: int = 4) -> list[Source]:
    """Return a source for every layer of a point."""
    return [
        Source(
            _layer(point, array),
            _layer(point, array),
            partial(work.view.stream, point.store, array, work.device, min_samples=min_samples),
        )
        for array in point.arrays
    ]


def _layer(point: Point, array: str) -> str:
    return f"{point.name}/{array}"


def _cka(work: Work, pairs: Sequence[Pair], step: Callable[[], None]) -> dict[Pair, Record]:
    """Compute debiased CKA of the pairs, raw and given the input, with each sample or group left out."""
    models = _models(pairs)
    control_sources = [
        Source(f"input/{k}", c.name, partial(_control_features, c, work.device)) for k, c in enumerate(work.controls)
    ]
    sources = [source for point in models for source in _sources(point, work)]
    size = sum(4 * work.n * int(np.prod(p.store[name].shape[1:])) for p in models for name in p.arrays)
    keep = size <= work.memory // 2
    grams: Mapping[str, Any] = prepare(
        CentredGram(), [*sources, *control_sources], device=work.device, keep=keep
    ).factors
    factors: dict[str, Any] = {
        name: gram if work.groups is None else gram.grouped(work.groups)
        for name, gram in grams.items()
        if name.startswith("input/") or not varies_in_one_sample(gram)
    }
    layers: list[Gram] = []
    slices: dict[str, slice] = {}
    defined: dict[str, Int64[np.ndarray, " d"]] = {}
    for point in models:
        names = [_layer(point, array) for array in point.arrays]
        defined[point.name] = np.array([k for k, name in enumerate(names) if name in factors], int)
        slices[point.name] = slice(len(layers), len(layers) + len(defined[point.name]))
        layers += [factors[names[k]] for k in defined[point.name]]
    controls = slice(len(layers), len(layers) + len([s for s in control_sources if s.name in factors]))
    layers += [factors[source.name] for source in control_sources if source.name in factors]

    wholes = {pair.a.name for pair in pairs if pair.a is pair.b}
    own = {name: Block(s, s, (_range(s), _range(s)), whole=name in wholes) for name, s in slices.items()}
    with_controls = {name: Block(s, controls) for name, s in slices.items()} if work.controls else {}
    of_controls = Block(controls, controls)
    between = {
        pair: Block(slices[pair.a.name], slices[pair.b.name], _matched(pair, slices, defined), whole=pair.whole)
        for pair in pairs
        if pair.a is not pair.b
    }
    blocks = [*own.values(), *with_controls.values(), *([of_controls] if work.controls else []), *between.values()]
    sweep = ModelPairs(layers, blocks, work.dtype)
    sweep.run_blocks(step)

    inputs = _Inputs(of_controls, work) if work.controls else None
    models_of = {
        name: _Model(own[name], with_controls.get(name), sweep.noise[slices[name]], inputs, work) for name in slices
    }
    return {pair: _record(pair, between.get(pair, own[pair.a.name]), models_of, defined, work) for pair in pairs}


def _range(s: slice) -> Int64[np.ndarray, " d"]:
    return np.arange(s.start, s.stop)


def _matched(
    pair: Pair, slices: Mapping[str, slice], defined: Mapping[str, Int64[np.ndarray, " d"]]
) -> tuple[Int64[np.ndarray, " m"], Int64[np.ndarray, " m"]]:
    """Return the positions, among all layers of a batch, of the matching layers that both have a Gram matrix."""
    places = []
    for point in (pair.a, pair.b):
        place = {k: slices[point.name].start + i for i, k in enumerate(defined[point.name].tolist())}
        places.append([place.get(k, -1) for k in point.matched.tolist()])
    both = np.array(places).T
    both = both[(both >= 0).all(1)]
    return both[:, 0], both[:, 1]


def _unit_sums(of_samples: Float64[np.ndarray, "n ..."], groups: Groups | None) -> Float64[np.ndarray, "units ..."]:
    """Return the sums D of every unit that is left out: a sample, or a group of samples."""
    if groups is None:
        return of_samples
    sums = np.zeros((groups.count, *of_samples.shape[1:]))
    np.add.at(sums, groups.numbers.numpy(), of_samples)
    return sums


def _factor(work: Work) -> float:
    """Return c: a sum without a unit is <A, B> - c D, up to a factor that all sums have in common.

    Without a single sample c = 2 (n - 2) / (n - 3), exactly (`repsim.engine.jackknife`). Without a group of samples it
    is 2, up to a share of D of the size of the group divided by n.
    """
    return 2 * (work.n - 2) / (work.n - 3) if work.groups is None else 2.0


class _Inputs:
    """Inner products of the controls, of all samples and without each unit, ready to be solved."""

    def __init__(self, block: Block, work: Work) -> None:
        left_out = block.products - _factor(work) * _unit_sums(block.of_samples, work.groups)
        self.all = np.concatenate([block.products[None], left_out])

    def weights(self, products: Float64[np.ndarray, "runs d Z"]) -> Float64[np.ndarray, "runs Z d"]:
        """Return the weights of the controls in the projection of each layer on them."""
        try:
            return np.linalg.solve(self.all, products.swapaxes(1, 2))
        except np.linalg.LinAlgError:  # with very few samples the controls may span one another
            return np.full(products.swapaxes(1, 2).shape, np.nan)


class _Model:
    """Energies of the layers of a model, raw and given the input, with all samples first and then without each unit."""

    def __init__(
        self,
        own: Block,
        with_controls: Block | None,
        noise: Float64[np.ndarray, " d"],
        inputs: _Inputs | None,
        work: Work,
    ) -> None:
        self.start = own.rows.start
        total = own.matched_products()
        squares = np.concatenate([total[None], total - _factor(work) * _unit_sums(own.of_samples, work.groups)])
        raw = np.where(squares > noise, squares, np.nan)
        self.energies = [raw]
        if with_controls is None or inputs is None:
            return
        left_out = with_controls.products - _factor(work) * _unit_sums(with_controls.of_samples, work.groups)
        self.products = np.concatenate([with_controls.products[None], left_out])
        self.weights = inputs.weights(self.products)
        rest = squares - np.einsum("udz,uzd->ud", self.products, self.weights)
        self.energies.append(np.where(rest > MIN_ENERGY * squares, rest, np.nan))


def _record(
    pair: Pair,
    block: Block,
    models: Mapping[str, _Model],
    defined: Mapping[str, Int64[np.ndarray, " d"]],
    work: Work,
) -> Record:
    a, b = models[pair.a.name], models[pair.b.name]
    shapes = work.shapes("cka", pair)
    values, blocks, left_out = (np.full(shape, np.nan) for shape in shapes[:3])
    own = defined[pair.a.name], defined[pair.b.name]
    of_layers = _matched(pair, {pair.a.name: _at(own[0]), pair.b.name: _at(own[1])}, defined)
    places = np.array([np.isin(m, d) for m, d in zip((pair.a.matched, pair.b.matched), own, strict=True)]).all(0)
    of_samples = block.of_samples[:, of_layers[0]] if pair.a is pair.b else block.of_samples
    total = of_samples.sum(0)
    sums = total[None]
    if pair.whole:
        sums = np.concatenate([sums, total - _factor(work) * _unit_sums(of_samples, work.groups)])
    for kind in range(work.kinds):
        matched, whole = sums, block.products
        if kind:
            runs = len(sums)
            left, right = a.products[:runs, of_layers[0]], b.weights[:runs][:, :, of_layers[1]]
            matched = sums - np.einsum("umz,uzm->um", left, right)
            whole = block.products - a.products[0] @ b.weights[0]
        norms = a.energies[kind][: len(sums), of_layers[0]] * b.energies[kind][: len(sums), of_layers[1]]
        similarities = matched / np.sqrt(norms)
        values[kind, places] = similarities[0]
        if pair.whole:
            left_out[kind][:, places] = similarities[1:]
            norms = np.sqrt(a.energies[kind][0][:, None] * b.energies[kind][0])
            blocks[kind][np.ix_(*own)] = whole / norms
    units = work.units
    chance = np.stack([np.zeros(work.layers), np.full(work.layers, _UNRELATED_SD * np.sqrt(2 / (units * (units - 3))))])
    return Record(values, blocks, left_out, chance)


def _at(layers: Int64[np.ndarray, " d"]) -> slice:
    return slice(0, len(layers))


def _other(metric: Metric[Any], pair: Pair, factors: Mapping[str, Any]) -> Record:
    """Compute another measure of a pair: of the matching layers, and of all layers if that costs little."""
    rows, columns = ([factors.get(_layer(p, array)) for array in p.arrays] for p in (pair.a, pair.b))
    layers = len(pair.a.matched)
    block = np.full((len(rows), len(columns)), np.nan)
    if pair.whole and isinstance(metric, GramMetric | MomentMetric):
        i, j = ([k for k, factor in enumerate(side) if factor is not None] for side in (rows, columns))
        block[np.ix_(i, j)] = as_similarity(metric, metric.block([rows[k] for k in i], [columns[k] for k in j]))
    values, chance = np.full((1, layers), np.nan), np.full((2, layers), np.nan)
    for k, (i, j) in enumerate(zip(pair.a.matched.tolist(), pair.b.matched.tolist(), strict=True)):
        x, y = rows[i], columns[j]
        if x is None or y is None:
            continue
        values[0, k] = block[i, j]
        if np.isnan(block[i, j]):
            values[0, k] = block[i, j] = as_similarity(metric, metric.block([x], [y]))[0, 0]
        level = metric.chance(x, y) if metric.paired else None
        if level is not None:
            mean = float(as_similarity(metric, np.array(level.mean)))
            chance[:, k] = mean, np.nan if level.sd is None else mean + 1.645 * level.sd
    blocks = block[None] if pair.whole else np.zeros((1, 0, 0))
    return Record(values, blocks, np.zeros((1, 0, layers)), chance)


def _control_features(control: Control, device: str) -> torch.Tensor:
    return torch.from_numpy(control.features).to(device)
