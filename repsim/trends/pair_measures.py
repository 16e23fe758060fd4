"""Compute other measures of a pair of models from prepared layers."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from repsim.metrics import Metric
from repsim.metrics.base import GramMetric, MomentMetric
from repsim.study.other_measures import as_similarity
from repsim.trends.arrangement import Pair
from repsim.trends.work import Record, layer_name


def measure_pair(metric: Metric[Any], pair: Pair, factors: Mapping[str, Any]) -> Record:
    """Compute another measure of a pair: of the matching layers, and of all layers if that costs little."""
    rows, columns = ([factors.get(layer_name(p, array)) for array in p.arrays] for p in (pair.a, pair.b))
    layers = len(pair.a.matched)
    block = np.full((len(rows), len(columns)), np.nan)
    if isinstance(metric, GramMetric | MomentMetric):
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
    return Record(values, block[None], np.zeros((1, 0, layers)), chance)
