"""Plan a comparison from the shapes of the layers: choose algorithms, block sizes, and what stays in memory.

Planning reads no data and measures nothing. Each group of measures that share their preparation becomes a `Stage`. A
stage uses the cheapest algorithm (`repsim.metrics.algorithms`) that its measures support and that fits into memory, and
keeps prepared layers in memory if they fit. The recipe states the cost of preparing a layer; the algorithm and the
measure state the cost of comparing two. The same shapes and limits always give the same plan, independently of the load
of the machine and the number of processes, so that results are the same to the bit and interrupted runs can be resumed.

Cost model, with n samples, widths p and q, L layers, R x C pairs; for preparation see `Recipe.cost`:

======================  ==================================================================================
Gram space              n^2 (sum p + R C) FLOP: one triangle of every Gram matrix, one product a pair and entry
feature space           2 n sum_pairs p q FLOP, and n sum p^2 for the norms
reading                 bytes of the stores: for preparation, then whenever layers are not in memory
======================  ==================================================================================
"""

import dataclasses
import math
import re
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from repsim.errors import Argument, Remedy, TooLittleMemoryError, UndefinedValueError
from repsim.labels import Form
from repsim.metrics import Metric, Recipe
from repsim.metrics.algorithms.feature_space import flop_of_moments, units_of_moments
from repsim.metrics.algorithms.gram_space import flop_of_grams, tile_side
from repsim.metrics.base import Algorithm, MomentMetric, PairMetric
from repsim.metrics.recipes.base import StreamingRecipe
from repsim.metrics.recipes.cost import NOMINAL, NOTHING, Cost, LayerSize
from repsim.metrics.recipes.gram import KernelRecipe
from repsim.metrics.recipes.subspace import PrincipalSubspace
from repsim.runtime import tuning
from repsim.runtime.files import format_size
from repsim.runtime.processes import Ranks
from repsim.runtime.progress import Progress, Step, expect
from repsim.runtime.tuning import Tuning

# Calls of functions on small arrays, which take most of the time of small comparisons
_CALLS_OF_LAYER = 150
_CALLS_OF_PRODUCT = 40
_CALLS_OF_VALUE = 10
_CALLS_OF_RESULT = 4000


@dataclass(frozen=True)
class LayerShape:
    """Shape of a layer and the form in which it is stored."""

    name: str
    p: int
    """Number of values a sample."""
    itemsize: int = 4
    """Bytes of a value in the store."""
    form: Form = "features"
    kind: str = "features"
    """Kind of the layer; only layers of one kind can be compared."""

    def size(self, n: int) -> LayerSize:
        """Return the size in memory, where half-precision features become float32, and compressed readouts do not."""
        return LayerSize(n, self.p, max(4, self.itemsize) if self.form == "features" else self.itemsize)


@dataclass(frozen=True)
class Limits:
    """Memory limit and device of a plan."""

    memory: int
    """Bytes that the process may take in total."""
    base: int = 0
    """Bytes that the process takes before the comparison."""
    device: str = "cpu"


@dataclass(frozen=True)
class Stage:
    """Measures that are computed together, over layers of one kind, with algorithm, block sizes and cost."""

    metrics: tuple[Metric[Any], ...]
    recipe: Recipe[Any]
    form: Form
    rows: tuple[LayerShape, ...]
    columns: tuple[LayerShape, ...]
    algorithm: Algorithm = "pairs"
    kept: bool = True
    """Whether prepared layers stay in memory; otherwise they are read again when needed."""
    preparing: Cost = NOTHING
    """Cost of preparing the layers."""
    comparing: Cost = NOTHING
    """Cost of comparing all pairs."""
    reporting: Cost = NOTHING
    """Cost of entering values with their chance levels and cautions into a result."""
    leaving_out: Cost = NOTHING
    """Cost of leaving out each sample, for intervals; none if there are none."""
    other: Cost | None = None
    """Cost of the algorithm that was not chosen; None if there is only one."""
    memory: int = 0
    """Bytes that the stage needs, beside what the process takes before the comparison."""
    panel: int = Tuning.panel
    """Gram space: samples whose features are read at once."""
    tile: int = 512
    """Gram space: side of a tile in samples."""
    held: int = 2
    """Gram space: number of panels in memory at once, if layers are not kept."""
    chunk: int = Tuning.run
    """Feature space: samples of a run."""
    room: int = Tuning.unit_memory
    """Feature space: bytes for the sums of one unit."""
    group: int = 1
    """Pair by pair: layers of a side that make one unit."""
    units_panel: int = Tuning.panel
    """Leaving out each sample: samples whose features are read at once."""
    units_room: int = Tuning.unit_memory
    """Leaving out each sample: bytes for the sums of single samples."""

    @property
    def layers(self) -> tuple[LayerShape, ...]:
        """Distinct layers of both sides."""
        return tuple(dict.fromkeys((*self.rows, *self.columns)))

    @property
    def cost(self) -> Cost:
        """Cost of preparing and comparing."""
        return self.preparing + self.comparing

    def seconds(self, rates: Cost) -> float:
        """Return the predicted time in seconds at these rates; preparing, comparing and the rest do not overlap."""
        costs = self.preparing, self.comparing, self.reporting, self.leaving_out
        return sum(cost.seconds(rates) for cost in costs)


@dataclass(frozen=True)
class Plan:
    """Plan of a comparison: its stages, in order."""

    n: int
    """Number of samples."""
    limits: Limits
    stages: tuple[Stage, ...]

    def seconds(self, rates: Cost) -> float:
        """Return the predicted time of all stages in seconds at these rates."""
        return sum(stage.seconds(rates) for stage in self.stages)

    @property
    def memory(self) -> int:
        """Predicted peak memory of the process in bytes."""
        return self.limits.base + max((stage.memory for stage in self.stages), default=0)

    def __repr__(self) -> str:
        head = f"<Plan over {self.n} samples, {format_size(self.memory)} at most>"
        return "\n".join([head, *self.lines()])

    def lines(self) -> list[str]:
        """Return lines of text that describe the plan."""
        return [line for stage in self.stages for line in _lines(stage, self.n)]


def plan(
    rows: Sequence[LayerShape], columns: Sequence[LayerShape], n: int, metrics: Iterable[Metric[Any]], limits: Limits
) -> Plan:
    """Decide how to compare every row layer with every column layer.

    Parameters
    ----------
    rows, columns : sequence of LayerShape
        The layers. A layer that is on both sides is the same object, or an equal one.
    n : int
        Number of samples.
    metrics : iterable of Metric
        The measures. Measures that support the same algorithms, and whose recipes are covered by one recipe, make one
        stage.
    limits : Limits
        The memory limit and the device.

    Returns
    -------
    Plan

    Raises
    ------
    TooLittleMemoryError
        If not even the smallest plan fits into the memory; the message states how much it takes.

    Examples
    --------
    >>> from repsim.metrics import get
    >>> resnet = [LayerShape(f"resnet/layer3.{i}", 1024) for i in range(6)]
    >>> vit = [LayerShape(f"vit/blocks.{i}", 768) for i in range(12)]
    >>> [plan(resnet, vit, n, [get("cka")], Limits(2 * 2**30)).stages[0].algorithm for n in (1000, 50_000)]
    ['gram', 'moments']
    """
    metrics = list(metrics)
    stages = []
    kinds = dict.fromkeys(layer.kind for layer in rows)
    for kind in kinds:
        sides = [tuple(layer for layer in side if layer.kind == kind) for side in (rows, columns)]
        if not all(sides):
            continue
        form = sides[0][0].form
        for recipe, group in by_recipe(metrics, form):
            stages.append(_with_best_algorithm(Stage(tuple(group), recipe, form, sides[0], sides[1]), n, limits))
    return Plan(n, limits, tuple(stages))


def by_recipe(metrics: Sequence[Metric[Any]], form: Form) -> list[tuple[Recipe[Any], list[Metric[Any]]]]:
    """Group measures by the recipe that prepares layers for them, and by the algorithms that they support."""
    recipes: dict[Metric[Any], Recipe[Any]] = {}
    for metric in metrics:
        try:
            recipes[metric] = metric.recipe_for(form)
        except UndefinedValueError:  # the comparison reports it
            continue
    groups: dict[tuple[Any, ...], tuple[Recipe[Any], list[Metric[Any]]]] = {}
    for metric, recipe in recipes.items():
        best = recipe
        for candidate in recipes.values():
            best = candidate if candidate.covers(best) else best
        groups.setdefault((best, metric.algorithms), (best, []))[1].append(metric)
    return list(groups.values())


def _with_best_algorithm(stage: Stage, n: int, limits: Limits) -> Stage:
    metrics = stage.metrics
    possible = [name for name in metrics[0].algorithms if stage.form == "features" or name != "moments"]
    stages = [_with_algorithm(dataclasses.replace(stage, algorithm=name), n, limits) for name in possible]
    stages.sort(key=lambda stage: stage.seconds(NOMINAL))
    fitting = [stage for stage in stages if limits.base + stage.memory <= limits.memory]
    if not fitting:
        least = min(stages, key=lambda stage: stage.memory)
        needed = _rounded_up(limits.base + least.memory)
        raise TooLittleMemoryError(
            f"{', '.join(metric.spec for metric in metrics)} on {len(least.layers)} layers of {n} samples takes "
            f"{format_size(needed)} of memory at least, of which the program itself takes {format_size(limits.base)}; "
            f"allowed are {format_size(limits.memory)}",
            metrics=(metric.spec for metric in metrics),
            needed=needed,
            allowed=limits.memory,
            remedy=Remedy("give ", Argument("memory"), " more, or compare fewer layers"),
        )
    best = fitting[0]
    other = next((stage.cost for stage in stages if stage.algorithm != best.algorithm), None)
    return dataclasses.replace(best, other=other)


def with_intervals(stage: Stage, n: int, limits: Limits, measures: int, groups: int | None = None) -> Stage:
    """Return a stage that also leaves out each sample, or group, under ``measures`` of its measures.

    Raises
    ------
    TooLittleMemoryError
        If the sums of single samples do not fit into the memory.
    """
    settings, prepared = tuning.current(), _prepared(stage, n)
    pairs, layers = len(stage.rows) * len(stage.columns), len(stage.layers)
    itemsize = max(4, *(layer.itemsize for layer in stage.layers))
    tile, wide = min(tile_side(layers, 4), n), sum(prepared.widths) * itemsize
    fixed = prepared.fixed + settings.spare_memory + (prepared.kept if stage.kept else 0)
    fixed += 2 * layers * tile**2 * itemsize + tile * pairs * (itemsize + 8)  # tiles, and the products of their rows
    sample = 8 * (pairs + layers)
    free = limits.memory - limits.base - fixed
    panel = settings.panel
    while not stage.kept and panel > settings.smallest_panel and 4 * min(panel, n) * wide > free // 2:
        panel //= 2
    fixed += 0 if stage.kept else 4 * min(panel, n) * wide
    wanted = n * sample if groups is None else 24 * layers * n * groups  # as `LeaveOneGroupOut` counts its sums
    room = min(wanted, settings.unit_memory, max(64 * sample, (limits.memory - limits.base - fixed) // 4))
    memory = max(stage.memory, fixed + 4 * room)  # sums, values, and their changes
    if limits.base + memory > limits.memory:
        needed = _rounded_up(limits.base + memory)
        raise TooLittleMemoryError(
            f"intervals of {layers} layers of {n} samples take {format_size(needed)} of memory at least; allowed are "
            f"{format_size(limits.memory)}",
            metrics=(metric.spec for metric in stage.metrics),
            needed=needed,
            allowed=limits.memory,
            remedy=Remedy("give ", Argument("memory"), " more, or compare fewer layers"),
        )
    passes = 1 if room >= wanted else 3  # otherwise every tile is computed twice, and once for all samples
    flop = passes * flop_of_grams(n, n, prepared.widths, 2 * pairs)
    cost = measures * (Cost.of_products(flop, itemsize) + Cost(added=2.0 * n * n * layers))
    return dataclasses.replace(stage, leaving_out=cost, memory=memory, units_panel=panel, units_room=room)


def _rounded_up(size: int) -> int:
    """Round up to three digits, so that the amount that `format_size` shows is enough."""
    step: int = 10 ** max(0, len(str(size)) - 3)
    return -(-size // step) * step


def _with_algorithm(stage: Stage, n: int, limits: Limits) -> Stage:
    settings = tuning.current()
    layers = stage.layers
    available = limits.memory - limits.base
    prepared = _prepared(stage, n)
    fixed, kept = prepared.fixed, prepared.kept
    itemsize = max(4, *(layer.itemsize for layer in layers))
    largest = max(n * layer.p * (layer.itemsize + 8) for layer in layers)  # one layer as it is read and centred
    stage = dataclasses.replace(stage, preparing=prepared.cost, reporting=_reporting(stage))

    def within(free: int, *, kept: bool) -> Stage:
        if stage.algorithm == "pairs":
            return _pair_by_pair(stage, n)
        plan_for = _gram_space if stage.algorithm == "gram" else _feature_space
        return plan_for(dataclasses.replace(stage, kept=kept), n, prepared.widths, itemsize, free)

    in_memory = within(available - kept - fixed, kept=True)
    needed = in_memory.memory + kept + fixed + max(0, largest - in_memory.memory)
    streams = stage.form == "features" and isinstance(stage.recipe, StreamingRecipe) and stage.algorithm != "pairs"
    if limits.base + needed + settings.spare_memory <= limits.memory or not streams:
        once = dataclasses.replace(
            prepared.cost, touched=prepared.cost.touched + n * sum(prepared.widths), read=prepared.cost.read / 2
        )
        return dataclasses.replace(in_memory, preparing=once, memory=needed + settings.spare_memory)
    streamed = within(available - fixed - settings.spare_memory, kept=False)
    return dataclasses.replace(streamed, memory=streamed.memory + fixed + settings.spare_memory)


@dataclass(frozen=True)
class _Prepared:
    """Sizes and cost of the prepared layers of a stage."""

    widths: list[int]
    """Numbers of columns that take part in products."""
    cost: Cost
    """Cost of preparing the layers."""
    fixed: int
    """Bytes that are needed whether or not layers are kept in memory."""
    kept: int
    """Bytes of the prepared layers, if they are kept in memory."""


def _prepared(stage: Stage, n: int) -> _Prepared:
    layers, recipe = stage.layers, stage.recipe
    sizes = [layer.size(n) for layer in layers]
    memory = [recipe.memory(size) for size in sizes]
    passes = Cost(
        touched=2.0 * sum(n * layer.p for layer in layers),
        read=2.0 * sum(n * layer.p * layer.itemsize for layer in layers),
        calls=_CALLS_OF_LAYER * len(layers),
    )
    return _Prepared(
        widths=[recipe.width(size) for size in sizes],
        cost=sum((recipe.cost(size) for size in sizes), passes),
        fixed=sum(needed.state for needed in memory) + max(needed.workspace for needed in memory),
        kept=sum(needed.factor for needed in memory),
    )


def _gram_space(stage: Stage, n: int, widths: list[int], itemsize: int, free: int) -> Stage:
    count, pairs, measures = len(widths), len(stage.rows) * len(stage.columns), len(stage.metrics)
    settings = tuning.current()
    recipe = stage.recipe
    assert isinstance(recipe, KernelRecipe), "Gram space needs kernel matrices"
    block = recipe.block(n)
    copies = (2 if measures > 1 else 1) * recipe.draws
    tile = min(tile_side(count * copies, itemsize), n)
    stack = (copies * count * tile + pairs) * tile * itemsize  # tiles of all layers, products of all pairs
    wide = sum(widths) * itemsize

    def sums(panel: int) -> int:
        return (_units(n, block, panel) + 2) * measures * (pairs + count) * 8

    most = max(2**26, free // 8)
    panel, held = settings.smallest_panel if block >= n else block, 2
    while sums(panel) > most and panel < n:
        panel *= 2  # fewer units, so that their sums take less memory
    if stage.kept:
        panel = max(panel, settings.panel)
    else:
        room = free - stack - min(most, sums(settings.smallest_panel))
        fitting = room // (4 * wide) // settings.smallest_panel * settings.smallest_panel
        panel = max(panel, min(settings.panel, fitting))
        held = max(2, min(-(-n // panel), room // (min(panel, n) * wide) - 1))
    tile = min(tile, panel)
    block = min(block, n)
    flop = flop_of_grams(n, block, [] if recipe.stored else widths, pairs * measures)
    flop *= 1 + min(tile, block) / 2 / block  # on the diagonal both triangles of half a tile are computed
    cost = Cost.of_products(flop, itemsize) + Cost(added=1.0 * n * block * count * measures)
    cost += n * block * count * recipe.draws / 2 * recipe.entry_cost()
    memory = stack + sums(panel)
    if not stage.kept:
        panels = -(-n // panel)
        stay = max(1, held - 1)
        passes = 1 if block < n else sum(panels - start for start in range(0, panels, stay)) / panels
        memory += (held + 1) * min(panel, n) * wide
        cost += Cost(
            touched=passes * n * sum(widths), read=passes * sum(n * layer.p * layer.itemsize for layer in stage.layers)
        )
    return dataclasses.replace(stage, panel=panel, tile=tile, held=held, comparing=cost, memory=memory)


def _units(n: int, block: int, panel: int) -> int:
    panels = -(-n // panel)
    return panels * (panels + 1) // 2 if block >= n else panels


def _feature_space(stage: Stage, n: int, widths: list[int], itemsize: int, free: int) -> Stage:
    symmetric = set(stage.rows) & set(stage.columns) != set()
    height = len(stage.rows)
    columns = widths if symmetric else widths[height:]
    settings = tuning.current()
    metrics = [metric for metric in stage.metrics if isinstance(metric, MomentMetric)]
    norms = any(metric.normalised for metric in metrics)
    chunk, room = settings.run, settings.unit_memory_kept if stage.kept else settings.unit_memory
    largest = 12 * max(widths) ** 2
    if not stage.kept:
        row = sum(widths) * itemsize  # bytes of one sample of all layers
        while chunk > 256 and 3 * min(chunk, n) * row > min(free // 2, free - 2 * largest):
            chunk //= 2
        room = max(largest, min(room, free - 3 * min(chunk, n) * row - largest))
    units = units_of_moments(widths[:height], columns, room, symmetric=symmetric, norms=norms)
    products = sum(widths[u] * widths[v] for unit in units for u, v in unit)
    memory = min(room, 8 * products) + largest
    if not stage.kept:
        memory += 3 * min(chunk, n) * max(sum(widths[u] for u in _layers_of(unit)) for unit in units) * itemsize
    stage = dataclasses.replace(stage, chunk=chunk, room=room, memory=memory)
    return dataclasses.replace(stage, comparing=_cost_of_moments(stage, n, widths, units))


def _layers_of(unit: Sequence[tuple[int, int]]) -> list[int]:
    return sorted({u for pair in unit for u in pair})


def _cost_of_moments(stage: Stage, n: int, widths: Sequence[int], units: Sequence[Sequence[tuple[int, int]]]) -> Cost:
    """Return the cost of cross-moments of layers of these widths, in units, and of what follows from them."""
    layers, pairs = stage.layers, [pair for unit in units for pair in unit]
    products = sum(widths[u] * widths[v] for u, v in pairs)
    cost = Cost.of_products(flop_of_moments(n, widths, pairs), max(4, *(layer.itemsize for layer in layers)))
    added = products * max(0.0, n / stage.chunk - 1)
    cost += Cost(summed=1.0 * products, added=added, calls=_CALLS_OF_PRODUCT * len(pairs))
    metrics = [metric for metric in stage.metrics if isinstance(metric, MomentMetric)]
    for (p, q), times in Counter((widths[u], widths[v]) for u, v in pairs).items():
        # measures of equal cost compute the same from the products, and share it
        spanned = max(p, q) >= n - 1
        costs = {metric.moment_cost(p, q) for metric in metrics if not (spanned and metric.constant_if_spanned)}
        cost += times * sum(costs, NOTHING)
    if not stage.kept:
        again = [u for unit in units for u in _layers_of(unit)]
        cost += Cost(
            touched=float(n) * sum(widths[u] for u in again),
            read=float(n) * sum(layers[u].p * layers[u].itemsize for u in again),
        )
    return cost


def with_widths(stage: Stage, n: int, widths: Mapping[str, int]) -> Stage:
    """Return a stage whose cost is that of prepared layers with these numbers of columns, by their names.

    From shapes alone, nobody knows how many directions a layer keeps; a plan counts all. Undefined layers have no
    entry, and cost nothing.
    """
    rows, columns = (tuple(layer for layer in side if layer.name in widths) for side in (stage.rows, stage.columns))
    if stage.algorithm != "moments" or not rows or not columns:
        return stage
    left = dataclasses.replace(stage, rows=rows, columns=columns)
    of_layers, of_columns = ([widths[layer.name] for layer in side] for side in (left.layers, columns))
    norms = any(metric.normalised for metric in stage.metrics if isinstance(metric, MomentMetric))
    symmetric = not set(rows).isdisjoint(columns)
    units = units_of_moments(
        of_layers[: len(rows)], of_layers if symmetric else of_columns, stage.room, symmetric=symmetric, norms=norms
    )
    return dataclasses.replace(stage, comparing=_cost_of_moments(left, n, of_layers, units))


def _pair_by_pair(stage: Stage, n: int) -> Stage:
    metrics = [metric for metric in stage.metrics if isinstance(metric, PairMetric)]
    cost = NOTHING
    for (p, q), times in Counter((a.p, b.p) for a in stage.rows for b in stage.columns).items():
        for metric in metrics:
            cost += times * metric.pair_cost(n, p, q)
    group = max(1, math.isqrt(len(stage.layers)))
    return dataclasses.replace(stage, kept=True, group=group, comparing=cost, memory=0)


def _reporting(stage: Stage) -> Cost:
    pairs = len(stage.rows) * len(stage.columns)
    return Cost(calls=len(stage.metrics) * (_CALLS_OF_RESULT + _CALLS_OF_VALUE * pairs))


def _lines(stage: Stage, n: int) -> list[str]:
    names, side = ", ".join(metric.spec for metric in stage.metrics), min(stage.tile, n)
    algorithm = {
        "gram": f"Gram space, tiles of {side} x {side}, panels of {min(stage.panel, n):,} samples",
        "moments": f"feature space, runs of {min(stage.chunk, n):,} samples",
        "pairs": "pair by pair",
    }[stage.algorithm]
    if stage.other is not None:
        other = {"gram": "feature", "moments": "Gram"}[stage.algorithm]
        algorithm += f" ({_format_flop(stage.cost)}; {other} space: {_format_flop(stage.other)})"
    elif stage.algorithm != "pairs":
        algorithm += f" ({_format_flop(stage.cost)})"
    storage = "kept in memory" if stage.kept else f"read again as needed, {format_size(stage.cost.read)} in all"
    preparation = f"each layer prepared once ({_recipe_name(stage.recipe)})"
    if len(stage.metrics) > 1:
        preparation += f" for all {len(stage.metrics)} metrics"
    return [
        f"{names}: {len(stage.rows)} x {len(stage.columns)} layers, {n:,} samples",
        f"  {algorithm}",
        f"  {preparation}, {storage}",
        *_on_directions(stage.recipe),
        *([f"  intervals: each sample left out ({_format_flop(stage.leaving_out)})"] * (stage.leaving_out != NOTHING)),
    ]


def _on_directions(recipe: Recipe[Any]) -> list[str]:
    if not isinstance(recipe, PrincipalSubspace) or recipe.variance == 1:
        return []
    share = 100 * recipe.variance
    return [
        f"  as if {share:.4g} % of the variance took all directions; known when layers are prepared, and often less"
    ]


def _recipe_name(recipe: Recipe[Any]) -> str:
    return re.sub(r"(?<=[a-z])(?=[A-Z])", " ", type(recipe).__name__).lower()


def _format_flop(cost: Cost) -> str:
    flop = cost.flop32 + cost.flop64 + cost.decomposed
    return f"{flop / 1e12:.3g} TFLOP" if flop >= 1e11 else f"{flop / 1e9:.3g} GFLOP"


class Meter:
    """Progress of a planned comparison, in percent of its predicted time.

    Parameters
    ----------
    plan : Plan
        The plan of the comparison.
    me : Ranks
        This process among those that share the work.
    progress : callable, optional
        Called with the percentage that is done, and with 100: when the percentage grows, and otherwise at most once a
        second, as a sign of life.
    rates : Cost
        Rates of this machine, from which the time that is left is predicted; by default nominal rates, which give the
        percentages, but no prediction.
    """

    def __init__(self, plan: Plan, me: Ranks, progress: Progress | None, rates: Cost = NOMINAL) -> None:
        self._progress, self._me, self._rates = progress, me, rates
        self._total = plan.seconds(rates) or 1.0
        self._done, self._finished, self._reported, self._when = 0.0, 0.0, -1, 0.0
        self._expect()

    def preparing(self, stage: Stage) -> Step:
        """Return the function to call after preparing each layer of a stage."""
        weight = stage.preparing.seconds(self._rates) / len(stage.layers)
        streams = isinstance(stage.recipe, StreamingRecipe)
        return _Units(self, weight * (self._me.world if streams else 1))

    def comparing(self, stage: Stage, units: int) -> Step:
        """Return the function to call after computing each unit of a stage."""
        return _Units(self, stage.comparing.seconds(self._rates) / units, self._me.world)

    def leaving_out(self, stage: Stage, units: int) -> Step:
        """Return the function to call after each unit of an interval's pass, which only one process computes."""
        return _Units(self, stage.leaving_out.seconds(self._rates) / units)

    def correct(self, planned: Stage, prepared: Stage) -> None:
        """Predict the rest again, because the prepared layers of a stage show that it costs something else."""
        difference = prepared.seconds(self._rates) - planned.seconds(self._rates)
        if difference:
            self._total += difference
            self._finished += difference  # `finished` adds what was planned
            self._expect()

    def finished(self, stage: Stage) -> None:
        """Count a stage as finished, including the parts of other processes and of earlier runs."""
        self._finished += stage.seconds(self._rates)
        self.advance(self._finished - self._done)

    def advance(self, seconds: float, running: float = 0.0, *, skipped: bool = False) -> None:
        """Count predicted seconds as done, or as ``skipped``; those of the ``running`` unit only in this report."""
        self._done += seconds
        if skipped:
            self._expect()
        percent = max(self._reported, min(100, round(100 * (self._done + running) / self._total)))
        now = time.monotonic()
        if self._progress is not None and (percent > self._reported or now - self._when >= 1):
            self._reported, self._when = percent, now
            self._progress(percent, 100)

    def _expect(self) -> None:
        """Predict the time that is left; the processes of a run share it."""
        if self._rates != NOMINAL:
            expect(self._progress, max(0.0, self._total - self._done) / self._me.world)


class _Units(Step):
    """Units of equal weight, in predicted seconds; each that this process computes stands for one of every process."""

    def __init__(self, meter: Meter, weight: float, world: int = 1) -> None:
        self._meter, self._weight, self._world = meter, weight, world

    def __call__(self) -> None:
        self._meter.advance(self._weight * self._world)

    def skip(self, count: int) -> None:
        self._meter.advance(self._weight * count, skipped=True)

    def share(self, share: float) -> None:
        self._meter.advance(0.0, self._weight * self._world * share)
