"""How a comparison will be computed, decided from shapes alone: no data is read, and nothing is measured.

For every group of measures that share their preparation there is a `Stage`. It takes the cheaper of the two roads of
`repsim.metrics.sweeps`, and keeps in memory what fits. The same shapes and the same limits give the same plan, whatever
else the machine is doing and however many processes share the work, so that results are the same to the bit and an
interrupted run can go on.

Cost model, with n samples, widths p and q, L layers, R x C pairs:

======================  ==================================================================================
Gram space              n^2 (sum p + R C) FLOP: one triangle of every Gram matrix, one product a pair and entry
feature space           2 n sum_pairs p q FLOP, and n sum p^2 for the norms
decomposition           n p min(n, p) FLOP for X'X or XX', 9 min(n, p)^3 for its eigenvectors, 2 n p r for a basis
reading                 bytes of the stores, once to prepare, then as often as the layers pass by
======================  ==================================================================================
"""

import dataclasses
import math
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from repsim.errors import Argument, Remedy, TooLittleMemoryError, UndefinedValueError
from repsim.labels import Form
from repsim.metrics import Metric, Recipe
from repsim.metrics.base import Road
from repsim.metrics.recipes.gram import CentredGram
from repsim.metrics.recipes.subspace import PrincipalSubspace
from repsim.metrics.sweeps import flop_of_grams, flop_of_moments, tile_side, units_of_moments
from repsim.runtime.files import human
from repsim.runtime.processes import Ranks
from repsim.runtime.progress import Progress

_PANEL = 2048
"""Samples whose features are read at once, where memory allows."""
_CHUNK = 4096
"""Samples over which cross-moments are summed in float32 before they are added in float64."""
_ROOM = 2**30
"""Bytes for the cross-moments of one unit, where memory allows; more would save no reading worth the while."""
_SMALLEST_PANEL = 64
_SPARE = 160 * 2**20
"""Bytes for what the plan does not count: the libraries' own buffers, arrays of a few numbers a sample. The peak of one
and the same run scatters by 45 MB; with 128 MiB a busy machine was once seen 5 MB above what was allowed."""


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
class Cost:
    """What a stage takes, by what limits it."""

    flop32: float = 0
    """In float32 products."""
    flop64: float = 0
    """In float64 products."""
    decomposed: float = 0
    """In eigenvalue and singular value decompositions, as if each were the products it is often counted as."""
    touched: float = 0
    """Values that pass through float64, one after the other."""
    added: float = 0
    """Values of float32 products that are added to float64 sums."""
    read: float = 0
    """Bytes from the stores."""

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(*(a + b for a, b in zip(dataclasses.astuple(self), dataclasses.astuple(other), strict=True)))

    def seconds(self, rates: "Cost") -> float:
        """How long it takes at these rates, a second of each: one thing after the other, and reading beside them."""
        reading = self.read / rates.read
        each = zip(dataclasses.astuple(self), dataclasses.astuple(rates), strict=True)
        return float(max(reading, sum(amount / rate for amount, rate in each if amount) - reading))


NOMINAL = Cost(flop32=2e11, flop64=1e11, decomposed=5e10, touched=1e9, added=2.5e9, read=1e9)
"""Rates a second by which roads are weighed: only their proportions matter, and they are much the same everywhere."""


@dataclass(frozen=True)
class Stage:
    """Measures that are computed together, over layers that can be compared."""

    metrics: tuple[Metric[Any], ...]
    recipe: Recipe[Any]
    form: Form
    rows: tuple[LayerShape, ...]
    columns: tuple[LayerShape, ...]
    road: Road = "pairs"
    kept: bool = True
    """Whether prepared layers stay in memory; else they are read again as they are needed."""
    preparing: Cost = Cost()
    """Of what depends on one layer."""
    comparing: Cost = Cost()
    """Of what depends on two."""
    other: Cost | None = None
    """Of the other road, where there is one."""
    memory: int = 0
    """Bytes that it takes, beside what the process took before."""
    panel: int = _PANEL
    tile: int = 512
    held: int = 2
    chunk: int = _CHUNK
    room: int = _ROOM
    group: int = 1

    @property
    def layers(self) -> tuple[LayerShape, ...]:
        """Every layer once."""
        return tuple(dict.fromkeys((*self.rows, *self.columns)))

    @property
    def cost(self) -> Cost:
        """Of everything."""
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
        said = f"<Plan over {self.n} samples, {human(self.memory)} at most>"
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
        Measures. Those whose recipes one recipe covers, and that take the same road, make one stage.
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
    >>> [plan(resnet, vit, n, [get("cka")], Limits(2 * 2**30)).stages[0].road for n in (1000, 50_000)]
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
            stages.append(_best_road(Stage(tuple(group), recipe, form, sides[0], sides[1]), n, limits))
    return Plan(n, limits, tuple(stages))


def by_recipe(metrics: Sequence[Metric[Any]], form: Form) -> list[tuple[Recipe[Any], list[Metric[Any]]]]:
    """Measures by the recipe that serves them, and the roads that they know."""
    asked: dict[Metric[Any], Recipe[Any]] = {}
    for metric in metrics:
        try:
            asked[metric] = metric.recipe_for(form)
        except UndefinedValueError:  # the comparison says so
            continue
    found: dict[tuple[Any, ...], tuple[Recipe[Any], list[Metric[Any]]]] = {}
    for metric, recipe in asked.items():
        best = recipe
        for other in asked.values():
            best = other if _covers(other, best) else best
        found.setdefault((best, metric.roads), (best, []))[1].append(metric)
    return list(found.values())


def _covers(recipe: Recipe[Any], other: Recipe[Any]) -> bool:
    """Whether the factor of one has everything that the other's has."""
    return bool(recipe.covers(other)) if hasattr(recipe, "covers") else recipe == other


def _best_road(stage: Stage, n: int, limits: Limits) -> Stage:
    metrics = stage.metrics
    roads = [road for road in metrics[0].roads if stage.form == "features" or road != "moments"]
    stages = [_by_road(dataclasses.replace(stage, road=road), n, limits) for road in roads]
    stages.sort(key=lambda stage: stage.seconds(NOMINAL))
    fitting = [stage for stage in stages if limits.base + stage.memory <= limits.memory]
    if not fitting:
        least = min(stages, key=lambda stage: stage.memory)
        needed = _rounded_up(limits.base + least.memory)
        raise TooLittleMemoryError(
            f"{', '.join(metric.spec for metric in metrics)} on {len(least.layers)} layers of {n} samples takes "
            f"{human(needed)} of memory at least, of which the program itself takes {human(limits.base)}; allowed are "
            f"{human(limits.memory)}",
            metrics=(metric.spec for metric in metrics),
            needed=needed,
            allowed=limits.memory,
            remedy=Remedy("give ", Argument("memory"), " more, or compare fewer layers"),
        )
    best = fitting[0]
    return dataclasses.replace(best, other=next((s.cost for s in stages if s.road != best.road), None))


def _rounded_up(size: int) -> int:
    """To three digits, as `human` shows it: whoever gives this much gives enough."""
    step: int = 10 ** max(0, len(str(size)) - 3)
    return -(-size // step) * step


def _by_road(stage: Stage, n: int, limits: Limits) -> Stage:
    layers = stage.layers
    free = limits.memory - limits.base
    found = _prepared(stage, n)
    widths, prepared, fixed, kept = found.widths, found.cost, found.fixed, found.kept
    itemsize = max(4, *(layer.itemsize for layer in layers))
    largest = max(n * layer.p * (layer.itemsize + 8) for layer in layers)  # one layer as it is read and centred
    stage = dataclasses.replace(stage, preparing=prepared)
    make = {"gram": _gram_space, "moments": _feature_space, "pairs": _pair_by_pair}[stage.road]
    in_memory = make(stage, n, widths, itemsize, free - kept - fixed)
    takes = in_memory.memory + kept + fixed + max(0, largest - in_memory.memory)
    streams = stage.form == "features" and hasattr(stage.recipe, "fit") and stage.road != "pairs"
    if limits.base + takes + _SPARE <= limits.memory or not streams:
        once = dataclasses.replace(prepared, touched=prepared.touched + n * sum(widths), read=prepared.read / 2)
        return dataclasses.replace(in_memory, kept=True, preparing=once, memory=takes + _SPARE)
    again = make(dataclasses.replace(stage, kept=False), n, widths, itemsize, free - fixed - _SPARE)
    return dataclasses.replace(again, memory=again.memory + fixed + _SPARE)


@dataclass(frozen=True)
class _Prepared:
    """Layers of a stage, once they are prepared."""

    widths: list[int]
    """Of what takes part in products."""
    cost: Cost
    """What it costs to get there."""
    fixed: int
    """Bytes that stay whatever happens."""
    kept: int
    """Bytes that stay where layers are kept in memory."""


def _prepared(stage: Stage, n: int) -> _Prepared:
    layers = stage.layers
    itemsize = max(4, *(layer.itemsize for layer in layers))
    values = float(sum(n * layer.p for layer in layers))
    stored = float(sum(n * layer.p * layer.itemsize for layer in layers))
    cost = Cost(touched=2 * values, read=2 * stored)
    recipe = stage.recipe
    if isinstance(recipe, PrincipalSubspace):
        widths = [min(n - recipe.centred, layer.p) for layer in layers]
        smaller = [min(n, layer.p) for layer in layers]
        cost += Cost(
            flop64=sum(1.0 * n * layer.p * m for layer, m in zip(layers, smaller, strict=True))
            + sum(2.0 * n * layer.p * m for layer, m in zip(layers, smaller, strict=True) if layer.p <= n),
            decomposed=sum(9.0 * m**3 for m in smaller),
            touched=values,
        )
        held = sum(_directions(layer, n, loadings=recipe.loadings) for layer in layers)
        most = max(
            3 * 8 * m * m if layer.itemsize < 8 else 2 * 8 * (n + m) * layer.p
            for layer, m in zip(layers, smaller, strict=True)
        )
        return _Prepared(widths, cost, held + most, sum(n * width * itemsize for width in widths))
    if hasattr(recipe, "takes"):
        told = [recipe.takes(n, layer.p, max(4, layer.itemsize)) for layer in layers]
        flop = sum(flop for flop, _ in told)
        cost += Cost(flop32=flop) if max(layer.itemsize for layer in layers) <= 4 else Cost(flop64=flop)
        aside = [recipe.aside(n, layer.p, layer.itemsize) for layer in layers] if hasattr(recipe, "aside") else [0]
        held = sum(math.ceil(each) for _, each in told)
        return _Prepared([layer.p for layer in layers], cost, math.ceil(max(aside)), held)
    if isinstance(recipe, CentredGram) and recipe.kernel != "linear":
        sweeps = 1 if recipe.bandwidth is None else 3  # for the median, twice, by its bits; and for the row sums
        cost += Cost(
            flop32=sweeps * float(n) * n * sum(layer.p for layer in layers), touched=sweeps * n * n * len(layers) / 2
        )
    fixed = 4 * 8 * n * len(layers)
    if isinstance(recipe, CentredGram) and (recipe.kernel != "linear" or recipe.batch):
        side = min(n, recipe.batch or _PANEL)  # for row sums and the median, tiles of one layer after the other
        fixed += max(2 * side * layer.p for layer in layers) * 4 + 6 * 4 * side**2
    if stage.form != "features":
        itemsize = max(layer.itemsize for layer in layers)
    return _Prepared([layer.p for layer in layers], cost, fixed, sum(n * layer.p * itemsize for layer in layers))


def _directions(layer: LayerShape, n: int, *, loadings: bool) -> int:
    """Bytes of a basis, or of what activations are multiplied with to get there: of float64 activations the basis."""
    m = min(n, layer.p)
    by_weights = 8 * layer.p * m if layer.p <= n else 4 * n * m
    basis = 8 * n * m if layer.itemsize == 8 else by_weights
    return basis + (8 * m * layer.p if loadings else 0)


def _gram_space(stage: Stage, n: int, widths: list[int], itemsize: int, free: int) -> Stage:
    count, pairs, measures = len(widths), len(stage.rows) * len(stage.columns), len(stage.metrics)
    recipe = stage.recipe
    block = recipe.batch or n if isinstance(recipe, CentredGram) else n
    copies = (2 if measures > 1 else 1) * (2 if stage.form == "sketches" else 1)
    tile = min(tile_side(count * copies, itemsize), n)
    stack = (copies * count * tile + pairs) * tile * itemsize  # tiles of all layers, and what they give to all pairs
    wide = sum(widths) * itemsize

    def sums(panel: int) -> int:
        return (_units(n, block, panel) + 2) * measures * (pairs + count) * 8

    most = max(2**26, free // 8)
    panel, held = _SMALLEST_PANEL if block >= n else block, 2
    while sums(panel) > most and panel < n:
        panel *= 2  # fewer units, whose sums would take more memory than what is summed
    if stage.kept:
        panel = max(panel, _PANEL)
    else:
        room = free - stack - min(most, sums(_SMALLEST_PANEL))
        panel = max(panel, min(_PANEL, room // (4 * wide) // _SMALLEST_PANEL * _SMALLEST_PANEL))
        held = max(2, min(-(-n // panel), room // (min(panel, n) * wide) - 1))
    tile = min(tile, panel)
    block = min(block, n)
    flop = flop_of_grams(n, block, widths if stage.form == "features" else [], pairs * measures)
    flop *= 1 + min(tile, block) / 2 / block  # on the diagonal both triangles of half a tile are computed
    cost = _products(flop, itemsize) + Cost(added=1.0 * n * block * count * measures)
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


def _products(flop: float, itemsize: int) -> Cost:
    return Cost(flop32=flop) if itemsize <= 4 else Cost(flop64=flop)


def _units(n: int, block: int, panel: int) -> int:
    panels = -(-n // panel)
    return panels * (panels + 1) // 2 if block >= n else panels


def _feature_space(stage: Stage, n: int, widths: list[int], itemsize: int, free: int) -> Stage:
    symmetric = set(stage.rows) & set(stage.columns) != set()
    height = len(stage.rows)
    columns = widths if symmetric else widths[height:]
    norms = any(metric.normalised for metric in stage.metrics)
    chunk, room = _CHUNK, 2**27 if stage.kept else _ROOM
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
    cost = _products(flop, itemsize) + Cost(added=products * max(1.0, n / chunk))
    if isinstance(stage.recipe, PrincipalSubspace):  # eigenvalues of CC', where C has min(p, q) rows
        small = [(min(widths[u], widths[v]), max(widths[u], widths[v])) for u, v in pairs]
        cost += Cost(flop64=sum(2.0 * s * s * w for s, w in small), decomposed=sum(5.0 * s**3 for s, _ in small))
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


def _pair_by_pair(stage: Stage, n: int, widths: list[int], itemsize: int, free: int) -> Stage:
    """What these measures take is theirs to say."""
    del free, widths
    count = sum(metric.pair_flop(n, a.p, b.p) for a in stage.rows for b in stage.columns for metric in stage.metrics)
    group = max(1, math.isqrt(len(stage.layers)))
    return dataclasses.replace(stage, group=group, comparing=_products(count, itemsize), memory=0)


def _lines(stage: Stage, n: int) -> list[str]:
    names, side = ", ".join(metric.spec for metric in stage.metrics), min(stage.tile, n)
    road = {
        "gram": f"Gram space, tiles of {side} x {side}, panels of {min(stage.panel, n):,} samples",
        "moments": f"feature space, runs of {min(stage.chunk, n):,} samples",
        "pairs": "pair by pair",
    }[stage.road]
    if stage.other is not None:
        other = {"gram": "feature", "moments": "Gram"}[stage.road]
        road += f" ({_tera(stage.cost)}; {other} space: {_tera(stage.other)})"
    elif stage.road != "pairs":
        road += f" ({_tera(stage.cost)})"
    where = "kept in memory" if stage.kept else f"read again as needed, {human(stage.cost.read)} in all"
    once = f"each layer prepared once ({_in_words(stage.recipe)})"
    if len(stage.metrics) > 1:
        once += f" for all {len(stage.metrics)} metrics"
    return [
        f"{names}: {len(stage.rows)} x {len(stage.columns)} layers, {n:,} samples",
        f"  {road}",
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
        streams = hasattr(stage.recipe, "fit")
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
