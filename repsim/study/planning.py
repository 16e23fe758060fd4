"""Plan a study from the shapes of its layers: blocks of models, sizes of panels and tiles, and what each step costs.

Planning reads no activations and measures nothing. The same shapes and limits give the same plan on every machine, so
that results are the same to the bit and an interrupted study goes on with the units that are missing.

Cost model, with n samples, L layers and controls of p features each, in blocks of R rows and C columns:

==============================  =======================================================================================
Gram matrices of a block        n^2 sum p FLOP: one triangle of each
pairs of a block                n^2 R C FLOP for the sums of single samples of either side; twice that with classes
values without each sample      n R C values for every kind of control
permutations                    2 n k^2 FLOP for k shared directions, of which 110 are assumed; or n^2 for a pair
==============================  =======================================================================================
"""

import dataclasses
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np

from repsim.engine.planning import LayerShape, Limits, plan
from repsim.engine.sample_sums import CELL_SUMS
from repsim.errors import Argument, Remedy, TooLittleMemoryError
from repsim.metrics import Metric
from repsim.metrics.recipes.cost import NOMINAL, NOTHING, Cost
from repsim.metrics.recipes.groups import Groups
from repsim.runtime import tuning
from repsim.runtime.files import format_duration, format_size
from repsim.runtime.memory import memory_now
from repsim.study.blocks import Block, Group, blocks, divide, even_size
from repsim.study.design import Design, Member, Pair
from repsim.study.duplicates import examined_layers, examined_members, pixels_of
from repsim.study.input_kernels import RANK, SELECTION

_STEP = 2**28
"""Bytes to which the memory of the process before the study is rounded up, so that it is planned alike each time."""
_DIRECTIONS = 110
"""Shared directions of truncated layers that are assumed to predict the time of permutations."""
_THREADS = 2
"""Threads that evaluate values without each sample, each with some arrays of `Tuning.jackknife_memory` bytes."""
_MULTIPLYING = 4
"""Threads that multiply rows of a tile, each with some memory."""
SINGLE = 2**27
"""Number of values without each sample from which they are kept in float32."""


@dataclass(frozen=True, eq=False)
class StudyShape:
    """Numbers and sizes from which a study is planned."""

    n: int
    """Number of samples."""
    units: int
    """Number of samples, or of groups of samples, that are left out."""
    splits: int
    """Number of divisions of the samples into halves."""
    widths: dict[str, list[int]]
    """Numbers of features of the layers of each model."""
    itemsize: int
    """Bytes of a feature in memory."""
    controls: tuple[int, ...]
    """Numbers of features of the controls of the input."""
    classes: int
    """Number of classes; 0 if similarity within classes is not computed."""
    grouped: bool
    """Whether samples are in groups."""
    metrics: tuple[Metric[Any], ...]
    """Measures other than debiased CKA."""
    permutations: int
    pixels: int = 0
    """Number of pixels in which near duplicates are looked for."""

    @property
    def kinds(self) -> int:
        """Number of matrices: of debiased CKA and, with classes, within classes."""
        return 1 + bool(self.classes)

    @property
    def conditions(self) -> int:
        """Number of kinds of debiased CKA, with all controls."""
        return (1 + bool(self.controls)) * self.kinds + 1


def shape_of(
    design: Design,
    *,
    controls: Sequence[int],
    classes: Groups | None,
    metrics: Sequence[Metric[Any]],
    permutations: int,
    splits: int,
) -> StudyShape:
    """Return the shape of a study; ``controls`` are the numbers of features of the controls of the input."""
    layers = {
        member.name: [int(np.prod(member.store[array].shape[1:])) for array in member.arrays]
        for member in design.members
    }
    itemsize = max(max(4, member.store[array].dtype.itemsize) for member in design.members for array in member.arrays)
    units = design.n if design.groups is None else design.groups.count
    pixels = pixels_of(design)
    return StudyShape(
        design.n, units, splits, layers, itemsize, tuple(controls), 0 if classes is None else classes.count,
        design.groups is not None, tuple(metrics), permutations, 0 if pixels is None else math.prod(pixels.shape[1:]),
    )  # fmt: skip


@dataclass(frozen=True)
class Step:
    """One step of a study, and what it costs."""

    name: str
    cost: Cost
    memory: int = 0
    """Bytes that it takes, beside what the process takes before."""
    note: str = ""


@dataclass(frozen=True, eq=False)
class StudyPlan:
    """Division of a study into blocks, the sizes with which they are computed, and the costs of all steps."""

    shape: StudyShape
    limits: Limits
    groups: Sequence[Group]
    blocks: Sequence[Block]
    kept: bool
    """Whether layers stay in memory; otherwise they are read again when needed."""
    panel: int
    """Samples whose features are read at once."""
    held: int
    """Panels in memory at once."""
    room: int
    """Bytes for the sums of single groups of samples."""
    available: int
    """Bytes for what follows the comparison: what is permuted, and the layers that other measures prepare."""
    steps: tuple[Step, ...] = ()

    def tile(self, layers: int) -> int:
        """Return the side of a tile of a block with this number of layers."""
        return tile_of(self.shape, layers, self.panel)

    @property
    def memory(self) -> int:
        """Predicted peak memory of a process in bytes."""
        return self.limits.base + max((step.memory for step in self.steps), default=0)

    def seconds(self, rates: Cost) -> float:
        """Return the predicted time of all steps in seconds, at these rates."""
        return sum(step.cost.seconds(rates) for step in self.steps)

    def lines(self, rates: Cost | None = None) -> list[str]:
        """Return lines of text that describe the plan; with rates, also how long each step takes."""
        shape = self.shape
        layers = sum(map(len, shape.widths.values()))
        head = (
            f"{len(shape.widths)} models, {layers} layers, {len(shape.controls)} controls of the input, "
            f"{shape.classes or 'no'} classes, {shape.n:,} samples"
        )
        storage = "kept in memory" if self.kept else "read again as needed"
        division = (
            f"{len(self.groups)} group{'s' * (len(self.groups) > 1)} of models, {len(self.blocks)} "
            f"block{'s' * (len(self.blocks) > 1)}; panels of {min(self.panel, shape.n):,} samples; layers {storage}; "
            f"{format_size(self.memory)} of memory at most"
        )
        lines = [head, division]
        for step in self.steps:
            time = "" if rates is None else f"{format_duration(step.cost.seconds(rates)):>10}  "
            lines.append(f"  {time}{step.name}{f' ({step.note})' if step.note else ''}")
        return lines


def base_memory(device: str) -> int:
    """Return the bytes that a process takes before a study, in large steps; 0 on a GPU, whose memory is separate."""
    return 0 if device.startswith("cuda") else -(-memory_now() // _STEP) * _STEP


def plan_study(shape: StudyShape, design: Design, limits: Limits, earlier: Sequence[Sequence[str]] = ()) -> StudyPlan:
    """Divide a study into blocks that fit into the memory, and compute what its steps cost.

    Parameters
    ----------
    shape : StudyShape
        Sizes of the study.
    design : Design
        Its models.
    limits : Limits
        The memory limit and the device.
    earlier : sequence of sequence of str
        Groups of models of an earlier run of a study that has grown.

    Raises
    ------
    TooLittleMemoryError
        If not even pairs of single models fit into the memory.
    """
    spare = tuning.current().spare_memory
    available = limits.memory - limits.base - spare
    least = math.inf
    largest = min(_LEAST_SIDE, tile_of(shape, 1, _panels(shape.n)[0]))
    best: dict[int, StudyPlan] = {}  # of each side of tiles, that with the fewest groups
    for groups, kept, panel, side in _divisions(shape, design.members, earlier):
        if side in best:
            continue
        needed, of_panel = _peak(shape, design, groups, kept=kept, panel=panel)
        if needed <= available:
            useful = _HELD if kept else -(-shape.n // panel)  # panels of layers in memory are only copied
            more = max(0, min(useful - _HELD, (available - needed) // of_panel))
            needed += more * of_panel
            best[side] = _complete(
                shape, design, limits, groups, kept=kept, panel=panel, held=_HELD + more, memory=needed
            )
            if side >= largest:
                break  # nothing is faster with more groups
        least = min(least, needed)
    if best:
        return min(best.values(), key=lambda made: made.seconds(NOMINAL))
    needed = int(least) + limits.base + spare
    total = sum(map(len, shape.widths.values()))
    raise TooLittleMemoryError(
        f"a study of {total} layers of {shape.n:,} samples takes {format_size(needed)} of memory at least; allowed are "
        f"{format_size(limits.memory)}",
        metrics=("cka",),
        needed=needed,
        allowed=limits.memory,
        remedy=Remedy("give ", Argument("memory"), " more, or leave out models"),
    )


def _divisions(
    shape: StudyShape, members: Sequence[Member], earlier: Sequence[Sequence[str]]
) -> Iterator[tuple[list[Group], bool, int, int]]:
    """Yield ways to compute a study: groups of models, whether layers stay in memory, samples read at once, and tiles.

    The best come first: few groups, layers in memory, many samples. But more groups may take less time than smaller
    tiles, of which the last number is the side.
    """
    for count in range(1, len(members) + 1):
        groups = divide(members, even_size(members, count), earlier=earlier)
        layers = sum(sorted(sum(len(shape.widths[m.name]) for m in group) for group in groups)[-2:])
        for kept, panel in product((True, False), _panels(shape.n)):
            yield groups, kept, panel, tile_of(shape, layers, panel)


def _panels(n: int) -> list[int]:
    """Return the numbers of samples that may be read at once, the largest first."""
    sizes, size = [], min(_PANEL, tuning.current().panel)
    while size >= tuning.current().smallest_panel:
        sizes.append(size)
        size //= 2
    return [size for size in sizes if size // 2 < n] or [sizes[-1]]


_PANEL = 512
"""Samples whose features are read at once, at most: with the same memory, more panels at once are read less often than
larger ones."""
_STACK = 2**25
"""Bytes of a stack of tiles: with all copies it stays in the cache of most processors, or nearly so."""
_LEAST_SIDE = 256
"""Side of a tile of many layers, whose stack does not stay in the cache: with smaller tiles, adding to the sums of
samples takes longer than the products (480 layers, n = 1,536: 10.8 s with tiles of 128, 9.8 s with those of 171, 8.6 s
with those of 256)."""
_HELD = 2
"""Panels at once, at least."""


def tile_of(shape: StudyShape, layers: int, panel: int) -> int:
    """Return the side of a tile of a block with this number of layers."""
    copies = 2 if shape.classes else 1
    side = max(math.isqrt(_STACK // (shape.itemsize * layers * copies)), _LEAST_SIDE)
    side = (side + 32) // 64 * 64  # products of matrices are fastest at multiples of the width of a vector
    side = max(32, min(tuning.current().tile, side, panel))
    return -(-panel // -(-panel // side))  # a panel consists of equal tiles


def _peak(shape: StudyShape, design: Design, groups: Sequence[Group], *, kept: bool, panel: int) -> tuple[int, int]:
    """Return the bytes that comparing the largest block takes, and all that is held then; and those of a panel."""
    sizes = sorted(groups, key=lambda group: sum(len(shape.widths[member.name]) for member in group))
    rows, columns = sizes[-1], sizes[-2] if len(sizes) > 1 else sizes[-1]
    block = Block(rows, columns)
    of_block = _sides(shape, design, block)
    n, layers, features = shape.n, of_block.layers, of_block.features
    every = [p for widths in shape.widths.values() for p in widths]
    cells = 1 << shape.splits.bit_length()
    held = _held(shape, len(design.members), kept=kept)
    held += 8 * (shape.kinds + 2 * shape.conditions) * len(every) ** 2
    pairs_kept = of_block.rows * (of_block.rows + 1) // 2 if block.diagonal else of_block.rows * of_block.columns
    of_cells = cells * (cells + 1) // 2 + 2 * _MULTIPLYING  # those that threads add
    held += 8 * of_cells * pairs_kept * (shape.kinds + 1)  # one kind is copied when it is evaluated
    held += 16 * (2 * shape.splits + 1) * of_block.rows * of_block.columns * bool(shape.classes)  # of class means
    held += 8 * n * layers * (2 * shape.splits + 4)  # of products with all samples and halves, norms, offsets
    sums = 8 * n * pairs_kept * shape.kinds
    if shape.grouped:  # all layers with all, and values of every unit
        sums = 8 * shape.units * layers**2 * shape.kinds * 2 + 2**29
    of_panel = min(panel, n) * (features + layers * shape.classes) * shape.itemsize
    panels = (_HELD if kept else _HELD + 1) * of_panel
    # before the tiles are made: sums over cells and classes, exact ones of few layers, and means of one run of samples
    means = cells * max(1, shape.classes) * (shape.itemsize * features + 8 * _THREADS * max(every))
    means += 2 * 8 * min(CELL_SUMS, cells * max(1, shape.classes) * features) + 2**26 * bool(shape.classes)
    tile = min(tile_of(shape, layers, panel), n)
    stack = layers * tile**2 * shape.itemsize * (8 if shape.classes else 4)
    products = of_block.rows * of_block.columns  # of a row; `SampleSums` bounds those of a thread
    stack += _MULTIPLYING * min(128 * products, max(products, 2**22)) * 3 // 2 * shape.itemsize
    own_pairs = len(block.pairs({member.name: k for k, member in enumerate(design.members)}))
    parts = 8 * shape.units * 3 * shape.conditions * own_pairs
    matrices = 8 * of_block.rows * of_block.columns * shape.kinds
    at_once = max(matrices, min(tuning.current().jackknife_memory, shape.units * matrices))
    evaluating = _THREADS * 16 * at_once + 3 * parts
    return held + max(sums + panels + stack, means + panels, sums + evaluating), of_panel


def _held(shape: StudyShape, models: int, *, kept: bool) -> int:
    """Return the bytes of all that is in memory from the comparison to the end of the study."""
    n, every = shape.n, [p for widths in shape.widths.values() for p in widths]
    held = 24 * n * (len(every) + len(shape.controls))  # norms, row sums and offsets
    held += n * sum(shape.controls) * shape.itemsize
    held += n * sum(every) * shape.itemsize if kept else 0
    values = shape.units * models * (models - 1) // 2 * 3 * shape.conditions
    return held + values * (4 if values > SINGLE else 8)


@dataclass(frozen=True)
class _Sides:
    """Numbers of rows, of columns, and of all layers of a block, and of the features of all."""

    rows: int
    columns: int
    layers: int
    features: int


def _sides(shape: StudyShape, design: Design, block: Block) -> _Sides:
    twins = {twin.name: twin for m in block.members if m.trained for twin in design.twins_of(m)}
    names = [{member.name for member in group} for group in (block.rows, block.columns)]
    both = [*twins]

    def layers_of(members: set[str]) -> list[int]:
        return [p for name in dict.fromkeys([*members, *both]) for p in shape.widths[name]] + list(shape.controls)

    rows, columns, every = layers_of(names[0]), layers_of(names[1]), layers_of(names[0] | names[1])
    if block.diagonal:
        rows = columns = every
    return _Sides(len(rows), len(columns), len(every), sum(every))


def _complete(
    shape: StudyShape,
    design: Design,
    limits: Limits,
    groups: Sequence[Group],
    *,
    kept: bool,
    panel: int,
    held: int,
    memory: int,
) -> StudyPlan:
    every = blocks(groups)
    whole = limits.memory - limits.base - tuning.current().spare_memory
    available = whole - _held(shape, len(design.members), kept=kept)
    made = StudyPlan(
        shape, limits, groups, every, kept, panel, held, room=min(2**29, max(whole, 2**26) // 4),
        available=max(available, 2**26),
    )  # fmt: skip
    return dataclasses.replace(made, steps=tuple(_steps(made, design, memory)))


def _steps(made: StudyPlan, design: Design, memory: int) -> list[Step]:
    shape, n = made.shape, made.shape.n
    every = [p for widths in shape.widths.values() for p in widths] + list(shape.controls)
    passes = 2 if not made.kept else 3
    read = float(n) * sum(every) * shape.itemsize
    steps = [Step("choosing kernels of the input", _kernels_of_input(shape))] if shape.controls else []
    steps += [
        Step("preparing layers", Cost(touched=passes * float(n) * sum(every), read=(passes - made.kept) * read), memory)
    ]
    comparing = NOTHING
    for block in made.blocks:
        of_block = _sides(shape, design, block)
        pairs = float(of_block.rows) * of_block.columns  # of a diagonal block, too: products make both triangles
        products = float(n) ** 2 * pairs * (2 if not shape.grouped else 4) * shape.kinds
        grams = float(n) ** 2 * of_block.features * (3 * shape.kinds if shape.grouped else 1)
        entries = float(n) ** 2 / 2 * of_block.layers
        again = (-(-n // made.panel) / (made.held - 1) + 1) / 2
        cells, subsets = 1 << shape.splits.bit_length(), 2 * shape.splits + 1
        of_classes = (again + 1 + cells) * 2.0 * n * of_block.features * shape.classes
        if shape.classes:  # means of classes in subsets, and their products
            comparing += Cost(
                touched=4.0 * cells * shape.classes * of_block.features,
                flop64=2.0 * subsets * (shape.classes + cells) * shape.classes * of_block.features,
            )
        comparing += Cost.of_products(grams + of_classes + _SMALL_PRODUCTS * products, shape.itemsize)
        comparing += Cost(
            added=entries * (_ENTRY + _ENTRY_WITHIN * bool(shape.classes))
            + n * pairs * _VALUES_PASSES * shape.conditions
            + n * pairs / (1 + block.diagonal) * shape.kinds * (_FIRST + _ROUNDED * n / made.tile(of_block.layers)),
            touched=(again + 2) * n * of_block.features,
            read=0.0 if made.kept else (again + 2) * n * of_block.features * shape.itemsize,
        )
    steps.append(Step("comparing all layers", comparing, memory, "also without each sample, and on halves"))
    if len(design.trained) > 1:
        permuting = _permutations(shape, made)
        truncated = n > tuning.current().exact_samples
        note = "longer if more than ten components carry 99.9 % of a layer" if truncated else ""
        steps.append(Step("permuting samples", permuting + _truncation(shape, made), memory, note))
        if shape.classes:
            steps.append(Step("permuting samples within classes", permuting, memory, note))
        steps += [_measuring(metric, made, design) for metric in shape.metrics]
    steps.append(Step("looking for near duplicates", _near_duplicates(made, design)))
    return steps


_GATHERED = 1.6
"""Time of products of gathered entries, relative to that of as many large ones."""
_SMALL_PRODUCTS = 2.5
"""Time of a product of small matrices, relative to that of large ones."""
_DICTIONARY = 800.0
"""Values processed one by one, for each pair of samples from which the kernels of the input are selected."""
_NEIGHBOUR = 20.0
"""Additions to a sum that take as long as a distance among which the nearest neighbours are selected."""
_ENTRY, _ENTRY_WITHIN = 16.0, 26.0
"""Additions to a sum that take as long as centring and transposing an entry of a kernel, and one within classes."""
_FIRST, _ROUNDED = 60.0, 5.0
"""Additions to a sum that take as long as the first use of the memory of a sum, and as rounding and adding to it."""
_VALUES_PASSES = 30.0
"""Additions to a sum that take as long as evaluating a value without a sample, for one kind of control."""


def _kernels_of_input(shape: StudyShape) -> Cost:
    """Return the cost of selecting from a dictionary of kernels, and of factoring the selected ones."""
    few, landmarks, chosen = min(shape.n, SELECTION), min(shape.n, RANK), len(shape.controls)
    return Cost(
        touched=_DICTIONARY * float(few) ** 2 + 20.0 * chosen * shape.n * landmarks,
        flop64=2.0 * chosen * shape.n * landmarks**2,
    )


def _near_duplicates(made: StudyPlan, design: Design) -> Cost:
    """Return the cost of the nearest neighbours in pixels and in the narrowest examined layer of each network.

    Further layers of networks are examined only if samples are alike in these.
    """
    n, pairs = made.shape.n, float(made.shape.n) ** 2
    of_members = [made.shape.widths[member.name] for member in examined_members(design)]
    examined = [widths[places[0]] for widths in of_members if (places := examined_layers(widths, n))]
    examined += [made.shape.pixels] if made.shape.pixels else []
    return Cost(flop32=2.0 * pairs * sum(examined), added=_NEIGHBOUR * pairs * len(examined))


def _permutations(shape: StudyShape, made: StudyPlan) -> Cost:
    """Return the cost of permuting trained models: products for each permutation."""
    cost, n = NOTHING, shape.n
    for block in made.blocks:
        rows, columns = ([m for m in side if m.trained] for side in (block.rows, block.columns))
        layers = [len(shape.widths[m.name]) for m in (rows if block.diagonal else [*rows, *columns])]
        if not rows or not columns or (block.diagonal and len(rows) < 2):
            continue
        count = float(sum(layers))
        if n > tuning.current().exact_samples:
            cost += shape.permutations * Cost(flop64=2.0 * n * _DIRECTIONS**2 + 4.0 * _DIRECTIONS * (10 * count) ** 2)
        else:
            cost += shape.permutations * Cost.of_products(_GATHERED * float(n) ** 2 * count**2, shape.itemsize)
        if shape.controls:
            part = min(n, tuning.current().residual_samples)
            cost += shape.permutations * Cost(flop32=float(part) ** 2 * count**2, added=float(part) ** 2 * count)
    return cost


def _truncation(shape: StudyShape, made: StudyPlan) -> Cost:
    """Return the cost of cutting the layers of trained models to their leading components, once for each block."""
    if shape.n <= tuning.current().exact_samples:
        return NOTHING
    widths = [
        min(p, shape.n)
        for block in made.blocks
        for member in block.members if member.trained
        for p in shape.widths[member.name]
    ]  # fmt: skip
    return Cost(flop32=sum(2.0 * shape.n * p * p for p in widths), calls=1000.0 * len(widths))


def _measuring(metric: Metric[Any], made: StudyPlan, design: Design) -> Step:
    """Return the step of another measure, without permutations and half-samples that are not affordable."""
    cost, memory, n = NOTHING, 0, made.shape.n
    pairs = measured_pairs(design)
    for pair in pairs:
        for stage in plan(_shapes(pair.a, made.shape), _shapes(pair.b, made.shape), n, [metric], Limits(2**62)).stages:
            cost += stage.comparing
            memory = max(memory, stage.memory)
    for member in {member.name: member for pair in pairs for member in (pair.a, pair.b)}.values():
        shapes = _shapes(member, made.shape)
        for stage in plan(shapes, shapes, n, [metric], Limits(2**62)).stages:
            cost += stage.preparing
    # a stage counts what it reserves for buffers, which the study does as well, and not what the study holds
    memory = _held(made.shape, len(design.members), kept=made.kept) + max(0, memory - tuning.current().spare_memory)
    note = f"and up to {tuning.current().study_seconds:.0f} s each at nominal rates of permutations and halves"
    if (whole := made.limits.base + memory) > made.limits.memory:
        note = f"takes {format_size(whole)} of memory, more than is allowed; {note}"
    return Step(f"measuring {metric.spec}", cost, memory, note)


def measured_pairs(design: Design) -> list[Pair]:
    """Return the pairs of trained models and of their controls, each once, which other measures compare."""
    unique: dict[frozenset[str], Pair] = {}
    for trained in design.pairs:
        for pair in (trained, *(p for controls in design.controls_of(trained).values() for p in controls)):
            unique.setdefault(frozenset({pair.a.name, pair.b.name}), pair)
    return list(unique.values())


def _shapes(member: Member, shape: StudyShape) -> list[LayerShape]:
    return [LayerShape(f"{member.name}/{k}", p, shape.itemsize) for k, p in enumerate(shape.widths[member.name])]
