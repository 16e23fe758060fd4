"""Compare every point of a series with every other, one layer after the other."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Float64

from repsim.engine.checkpoints import Checkpoints
from repsim.engine.preparation import Source, prepare
from repsim.metrics.cka import CKA
from repsim.metrics.recipes.gram import CentredGram
from repsim.runtime.processes import Ranks
from repsim.runtime.progress import Step, Steps, counter
from repsim.study.gram_passes import symmetric, varies_in_one_sample
from repsim.study.other_measures import as_similarity
from repsim.study.partial_cka import partial as given_controls
from repsim.trends.work import Work, control_sources

Values = Float64[np.ndarray, "kinds points points"]


def every_point(
    work: Work, count: int, *, checkpoints: Checkpoints, me: Ranks, steps: Steps
) -> Mapping[str, Float64[np.ndarray, "kinds points points G"]]:
    """Return the similarities of matching layers of all pairs of points, by the spec of the measure.

    All points of a layer are compared at once, as one large matrix product (`repsim.metrics.algorithms.gram_space`).
    A layer is the unit that is kept on disk and shared among processes. With one more point, layers are computed
    again: the Gram matrices of all points, which the new one needs, take most of the time.

    Parameters
    ----------
    work : Work
        The points, measures, controls and limits.
    count : int
        Number of points on the axis, which come first among all points.
    checkpoints, me, steps
        As in `repsim.trends.records.records`.
    """
    specs = {"cka": work.kinds} | {metric.spec: 1 for metric in work.metrics}
    names = {
        (spec, layer): repr((work.settings, "all points", spec, [work.identity(p, layer) for p in work.points[:count]]))
        for spec in specs
        for layer in range(work.layers)
    }
    done: dict[tuple[str, int], Values] = {}
    for (spec, layer), name in names.items():
        if (values := checkpoints.load_unit(name, 0, (specs[spec], count, count))) is not None:
            done[spec, layer] = values
    done = me.broadcast(done)
    own = [unit for unit in names if unit not in done][me.rank :: me.world]
    step = counter(len(own), steps("comparing all points")) if own else Step()
    computed: dict[tuple[str, int], Values] = {}
    for spec, layer in own:
        computed[spec, layer] = _cka(work, count, layer) if spec == "cka" else _other(work, count, layer, spec)
        checkpoints.save(names[spec, layer], 0, computed[spec, layer])
        step()
    for of_process in me.gather(computed):
        done |= of_process
    return {spec: np.stack([done[spec, layer] for layer in range(work.layers)], -1) for spec in specs}


def _sources(work: Work, count: int, layer: int, min_samples: int = 4) -> list[Source]:
    """Return one common layer of every point."""
    return [work.source(p, p.arrays[p.matched[layer]], min_samples) for p in work.points[:count]]


def _cka(work: Work, count: int, layer: int) -> Values:
    """Return debiased CKA of all points, raw and given the input."""
    sources = _sources(work, count, layer)
    inputs = control_sources(work)
    size = sum(4 * work.n * int(np.prod(p.store[p.arrays[p.matched[layer]]].shape[1:])) for p in work.points[:count])
    grams: Mapping[str, Any] = prepare(
        CentredGram(), [*sources, *inputs], device=work.device, keep=size <= work.memory // 2
    ).factors
    used = [
        k for k, source in enumerate(sources) if source.name in grams and not varies_in_one_sample(grams[source.name])
    ]
    values = np.full((work.kinds, count, count), np.nan)
    if not used:
        return values
    names = [sources[k].name for k in used] + [source.name for source in inputs if source.name in grams]
    factors = [grams[name] if work.groups is None else grams[name].grouped(work.groups) for name in names]
    R = symmetric(CKA().block(factors, factors))
    for kind in range(work.kinds):
        of_kind = given_controls(R, range(len(used), len(names))) if kind else R
        values[kind][np.ix_(used, used)] = of_kind[: len(used), : len(used)]
    return values


def _other(work: Work, count: int, layer: int, spec: str) -> Values:
    """Return another measure of all points; of an asymmetric one, the row given the column."""
    metric = next(metric for metric in work.metrics if metric.spec == spec)
    sources = _sources(work, count, layer, metric.min_samples)
    factors: Mapping[str, Any] = prepare(metric.recipe_for("features"), sources, device=work.device).factors
    used = [k for k, source in enumerate(sources) if source.name in factors]
    of_used = [factors[sources[k].name] for k in used]
    values = np.full((1, count, count), np.nan)
    if used:
        values[0][np.ix_(used, used)] = as_similarity(metric, metric.block(of_used, of_used))
    return values
