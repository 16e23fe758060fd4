"""How a comparison will be computed, decided from shapes alone: no data is read, and nothing is measured.

For every group of measures that share their preparation there is a `Stage`. It takes the cheapest of the algorithms
(`repsim.metrics.algorithms`) that its measures know, and keeps in memory what fits. What preparing a layer takes is
stated by its recipe, and what comparing two takes by the algorithm and the measure. The same shapes and the same limits
give the same plan, whatever else the machine is doing and however many processes share the work, so that results are
the same to the bit and an interrupted run can go on.

Cost model, with n samples, widths p and q, L layers, R x C pairs; for preparation see `Recipe.cost`:

======================  ==================================================================================
Gram space              n^2 (sum p + R C) FLOP: one triangle of every Gram matrix, one product a pair and entry
feature space           2 n sum_pairs p q FLOP, and n sum p^2 for the norms
reading                 bytes of the stores, once to prepare, then as often as the layers pass by
======================  ==================================================================================
"""

import dataclasses
import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
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
from repsim.runtime import tuning
from repsim.runtime.files import format_size
from repsim.runtime.processes import Ranks
from repsim.runtime.progress import Progress
from repsim.runtime.tuning import Tuning


@dataclass(frozen=True)
class LayerShape:
    """What there is to know of a layer before it is read."""

    name: str
    p: int
    """Values a sample."""
    itemsize: int = 4
    """Bytes of a value in the store."""
    form: Form = "features"
    kind: str = "features"
    """Layers of one kind can be compared with each other."""


@dataclass(frozen=True)
class Limits:
    """What the plan has to keep to."""

    memory: int
    """Bytes that the process may take in all."""
    base: int = 0
    """Bytes that it took before."""
    device: str = "cpu"


@dataclass(frozen=True)
class Stage:
    """Measures that are computed together, over layers that can be compared."""

    metrics: tuple[Metric[Any], ...]
    recipe: Recipe[Any]
    form: Form
    rows: tuple[LayerShape, ...]
    columns: tuple[LayerShape, ...]
    algorithm: Algorithm = "pairs"
    kept: bool = True
    """Whether prepared layers stay in memory; else they are read again as they are needed."""
    preparing: Cost = NOTHING
    """Work that depends on one layer."""
    comparing: Cost = NOTHING
    """Work that depends on two layers."""
    other: Cost | None = None
    """Work of the other algorithm, where there is one."""
    memory: int = 0
    """Bytes that it needs, beside what the process held before."""
    panel: int = Tuning.panel
    tile: int = 512
    held: int = 2
    chunk: int = Tuning.run
    room: int = Tuning.unit_memory
    group: int = 1

    @property
    def layers(self) -> tuple[LayerShape, ...]:
        """Every layer once."""
        return tuple(dict.fromkeys((*self.rows, *self.columns)))

    @property
    def cost(self) -> Cost:
        """All of the work."""
        return self.preparing + self.comparing

    def seconds(self, rates: Cost) -> float:
        """How long it takes at these rates: first one thing, then the other."""
        return self.preparing.seconds(rates) + self.comparing.seconds(rates)


@dataclass(frozen=True)
class Plan:
    """All of a comparison."""

    n: int
    limits: Limits
    stages: tuple[Stage, ...]

    def seconds(self, rates: Cost) -> float:
        """How long all stages take at these rates."""
        return sum(stage.seconds(rates) for stage in self.stages)

    @property
    def memory(self) -> int:
        """Bytes that the process takes at its peak."""
        return self.limits.base + max((stage.memory for stage in self.stages), default=0)

    def __repr__(self) -> str:
        said = f"<Plan over {self.n} samples, {format_size(self.memory)} at most>"
        return "\n".join([said, *self.lines()])

    def lines(self) -> list[str]:
        """The plan in words, for people."""
        return [line for stage in self.stages for line in _lines(stage, self.n)]


def plan(
    rows: Sequence[LayerShape], columns: Sequence[LayerShape], n: int, metrics: Iterable[Metric[Any]], limits: Limits
) -> Plan:
    """Decide how to compare every row layer with every column layer.

    Parameters
    ----------
    rows, columns
        The layers; one that is on both sides is the same object, or an equal one.
    n
        Samples.
    metrics
        Measures. Those whose recipes one recipe covers, and that know the same algorithms, make one stage.
    limits
        Memory, and the device.

    Raises
    ------
    TooLittleMemoryError
        Not even the smallest plan fits into the memory; the message says how much it takes.

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
    """Group measures by the recipe that serves them, and the algorithms that they know."""
    recipes: dict[Metric[Any], Recipe[Any]] = {}
    for metric in metrics:
        try:
            recipes[metric] = metric.recipe_for(form)
        except UndefinedValueError:  # the comparison reports it
            continue
    groups: dict[tuple[Any, ...], tuple[Recipe[Any], list[Metric[Any]]]] = {}
    for metric, recipe in recipes.items():
        best = recipe
        for other in recipes.values():
            best = other if other.covers(best) else best
        groups.setdefault((best, metric.algorithms), (best, []))[1].append(metric)
    return list(groups.values())


def _with_best_algorithm(stage: Stage, n: int, limits: Limits) -> Stage:
    metrics = stage.metrics
    possible = [known for known in metrics[0].algorithms if stage.form == "features" or known != "moments"]
    stages = [_with_algorithm(dataclasses.replace(stage, algorithm=known), n, limits) for known in possible]
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


def _rounded_up(size: int) -> int:
    """To three digits, as `format_size` shows it: whoever gives this much gives enough."""
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
    stage = dataclasses.replace(stage, preparing=prepared.cost)

    def within(free: int, *, kept: bool) -> Stage:
        if stage.algorithm == "pairs":
            return _pair_by_pair(stage, n, itemsize)
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
    again = within(available - fixed - settings.spare_memory, kept=False)
    return dataclasses.replace(again, memory=again.memory + fixed + settings.spare_memory)


@dataclass(frozen=True)
class _Prepared:
    """Layers of a stage, once they are prepared."""

    widths: list[int]
    """Columns that take part in products."""
    cost: Cost
    """Work of preparing them."""
    fixed: int
    """Bytes that are needed whether layers are kept in memory or not."""
    kept: int
    """Bytes of the prepared layers, where these are kept in memory."""


def _prepared(stage: Stage, n: int) -> _Prepared:
    layers, recipe = stage.layers, stage.recipe
    sizes = [LayerSize(n, layer.p, _itemsize(layer)) for layer in layers]
    memory = [recipe.memory(size) for size in sizes]
    passes = Cost(
        touched=2.0 * sum(n * layer.p for layer in layers),
        read=2.0 * sum(n * layer.p * layer.itemsize for layer in layers),
    )
    return _Prepared(
        widths=[recipe.width(size) for size in sizes],
        cost=sum((recipe.cost(size) for size in sizes), passes),
        fixed=sum(needed.state for needed in memory) + max(needed.workspace for needed in memory),
        kept=sum(needed.factor for needed in memory),
    )


def _itemsize(layer: LayerShape) -> int:
    """Bytes of a value in memory: features in half precision are widened, what readouts stored is not."""
    return max(4, layer.itemsize) if layer.form == "features" else layer.itemsize


def _gram_space(stage: Stage, n: int, widths: list[int], itemsize: int, free: int) -> Stage:
    count, pairs, measures = len(widths), len(stage.rows) * len(stage.columns), len(stage.metrics)
    settings = tuning.current()
    recipe = stage.recipe
    assert isinstance(recipe, KernelRecipe), "Gram space needs kernel matrices"
    block = recipe.block(n)
    copies = (2 if measures > 1 else 1) * recipe.draws
    tile = min(tile_side(count * copies, itemsize), n)
    stack = (copies * count * tile + pairs) * tile * itemsize  # tiles of all layers, and what they give to all pairs
    wide = sum(widths) * itemsize

    def sums(panel: int) -> int:
        return (_units(n, block, panel) + 2) * measures * (pairs + count) * 8

    most = max(2**26, free // 8)
    panel, held = settings.smallest_panel if block >= n else block, 2
    while sums(panel) > most and panel < n:
        panel *= 2  # fewer units, whose sums would take more memory than what is summed
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
        broad = sum(widths) * itemsize
        while chunk > 256 and 3 * min(chunk, n) * broad > min(free // 2, free - 2 * largest):
            chunk //= 2
        room = max(largest, min(room, free - 3 * min(chunk, n) * broad - largest))
    units = units_of_moments(widths[:height], columns, room, symmetric=symmetric, norms=norms)
    pairs = [pair for unit in units for pair in unit]
    flop = flop_of_moments(n, widths, pairs)
    products = sum(widths[u] * widths[v] for u, v in pairs)
    cost = Cost.of_products(flop, itemsize) + Cost(added=products * max(1.0, n / chunk))
    widest = max(widths)
    dearest = max(metrics, key=lambda metric: metric.moment_cost(widest, widest).seconds(NOMINAL))
    for (p, q), times in Counter((widths[u], widths[v]) for u, v in pairs).items():
        cost += times * dearest.moment_cost(p, q)  # measures share what they find
    memory = min(room, 8 * products) + largest
    if not stage.kept:
        taking = [sorted({u for pair in unit for u in pair}) for unit in units]
        layers = stage.layers
        memory += 3 * min(chunk, n) * max(sum(widths[u] for u in unit) for unit in taking) * itemsize
        cost += Cost(
            touched=float(n) * sum(widths[u] for unit in taking for u in unit),
            read=float(n) * sum(layers[u].p * layers[u].itemsize for unit in taking for u in unit),
        )
    return dataclasses.replace(stage, chunk=chunk, room=room, comparing=cost, memory=memory)


def _pair_by_pair(stage: Stage, n: int, itemsize: int) -> Stage:
    metrics = [metric for metric in stage.metrics if isinstance(metric, PairMetric)]
    flop = sum(metric.pair_flop(n, a.p, b.p) for a in stage.rows for b in stage.columns for metric in metrics)
    group = max(1, math.isqrt(len(stage.layers)))
    return dataclasses.replace(stage, kept=True, group=group, comparing=Cost.of_products(flop, itemsize), memory=0)


def _lines(stage: Stage, n: int) -> list[str]:
    names, side = ", ".join(metric.spec for metric in stage.metrics), min(stage.tile, n)
    how = {
        "gram": f"Gram space, tiles of {side} x {side}, panels of {min(stage.panel, n):,} samples",
        "moments": f"feature space, runs of {min(stage.chunk, n):,} samples",
        "pairs": "pair by pair",
    }[stage.algorithm]
    if stage.other is not None:
        other = {"gram": "feature", "moments": "Gram"}[stage.algorithm]
        how += f" ({_tera(stage.cost)}; {other} space: {_tera(stage.other)})"
    elif stage.algorithm != "pairs":
        how += f" ({_tera(stage.cost)})"
    where = "kept in memory" if stage.kept else f"read again as needed, {format_size(stage.cost.read)} in all"
    once = f"each layer prepared once ({_in_words(stage.recipe)})"
    if len(stage.metrics) > 1:
        once += f" for all {len(stage.metrics)} metrics"
    return [
        f"{names}: {len(stage.rows)} x {len(stage.columns)} layers, {n:,} samples",
        f"  {how}",
        f"  {once}, {where}",
    ]


def _in_words(recipe: Recipe[Any]) -> str:
    return re.sub(r"(?<=[a-z])(?=[A-Z])", " ", type(recipe).__name__).lower()


def _tera(cost: Cost) -> str:
    flop = cost.flop32 + cost.flop64 + cost.decomposed
    return f"{flop / 1e12:.3g} TFLOP" if flop >= 1e11 else f"{flop / 1e9:.3g} GFLOP"


class Meter:
    """How far a planned comparison is, in percent of what it is predicted to take."""

    def __init__(self, plan: Plan, me: Ranks, progress: Progress | None) -> None:
        self._progress, self._me = progress, me
        self._total = plan.seconds(NOMINAL) or 1.0
        self._done, self._due, self._told = 0.0, 0.0, -1

    def preparing(self, stage: Stage) -> Callable[[], None]:
        """To be called after each layer of a stage."""
        weight = stage.preparing.seconds(NOMINAL) / len(stage.layers)
        streams = isinstance(stage.recipe, StreamingRecipe)
        return lambda: self._advance(weight * (self._me.world if streams else 1))

    def comparing(self, stage: Stage, units: int) -> Callable[[], None]:
        """To be called after each unit of a stage."""
        weight = stage.comparing.seconds(NOMINAL) / units
        return lambda: self._advance(weight * self._me.world)

    def finished(self, stage: Stage) -> None:
        """To be called after a stage: other processes did their part of it, or it was done before."""
        self._due += stage.seconds(NOMINAL)
        self._advance(self._due - self._done)

    def _advance(self, seconds: float) -> None:
        self._done += seconds
        percent = min(100, round(100 * self._done / self._total))
        if self._progress is not None and percent > self._told:
            self._told = percent
            self._progress(percent, 100)
