"""Compute and keep what is measured of pairs of models: the only part of a series that takes long.

A pair is the unit that is computed, kept on disk and shared among processes. Its numbers depend on its two stores, the
controls and the options, and not on the other pairs. So a series that was interrupted, or to which a model is added,
computes only what is missing, and its result is the same to the bit.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from repsim.engine.checkpoints import Checkpoints
from repsim.engine.planning import by_recipe
from repsim.engine.preparation import prepare
from repsim.runtime import tuning
from repsim.runtime.processes import Ranks
from repsim.runtime.progress import Steps, counter
from repsim.trends.arrangement import Pair
from repsim.trends.pair_cka import cka_of_pairs
from repsim.trends.pair_measures import measure_pair
from repsim.trends.work import Record, Work, models_of


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
    specs = ["cka", *(metric.spec for metric in work.metrics)]
    place = {pair: k for k, pair in enumerate(pairs)}  # other processes have other objects for the same pair
    done: dict[tuple[str, int], Record] = {}
    for spec in specs:
        for pair, k in place.items():
            shapes = work.shapes(spec, pair)
            size = sum(int(np.prod(shape)) for shape in shapes)
            if (numbers := checkpoints.load_unit(work.name(spec, pair), 0, (size,))) is not None:
                done[spec, k] = Record.from_flat(numbers, shapes)
    done = me.broadcast(done)
    missing = [pair for pair, k in place.items() if any((spec, k) not in done for spec in specs)]
    batches = list(_batches(missing, _most_models(work)))
    own = batches[me.rank :: me.world]
    computed: dict[tuple[str, int], Record] = {}
    step = counter(_count_steps(work, own), steps("comparing models of the series")) if own else lambda: None
    for batch in own:
        wanted = {spec: [pair for pair in batch if (spec, place[pair]) not in done] for spec in specs}
        for (spec, pair), record in _compute(work, wanted, step):
            computed[spec, place[pair]] = record
            checkpoints.save(work.name(spec, pair), 0, record.flat())
    for of_process in me.gather(computed):
        done |= of_process
    return {(spec, pairs[k]): record for (spec, k), record in done.items()}


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
    return len(batches) * (panels * (panels + 1) // 2 + len(work.metrics))


def _compute(
    work: Work, wanted: Mapping[str, Sequence[Pair]], step: Callable[[], None]
) -> Iterator[tuple[tuple[str, Pair], Record]]:
    if wanted["cka"]:
        for pair, record in cka_of_pairs(work, wanted["cka"], step).items():
            yield ("cka", pair), record
    for recipe, metrics in by_recipe(list(work.metrics), "features"):
        pairs = list(dict.fromkeys(pair for metric in metrics for pair in wanted[metric.spec]))
        least = max(metric.min_samples for metric in metrics)
        sources = [work.source(point, array, least) for point in models_of(pairs) for array in point.arrays]
        factors: Mapping[str, Any] = prepare(recipe, sources, device=work.device).factors
        for metric in metrics:
            for pair in wanted[metric.spec]:
                yield (metric.spec, pair), measure_pair(metric, pair, factors)
            step()
