"""Compute other measures of a pair of models from prepared layers."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float64

from repsim.metrics import Metric
from repsim.metrics.base import GramMetric, MomentMetric
from repsim.study.other_measures import as_similarity
from repsim.trends.arrangement import Pair
from repsim.trends.work import Record, layer_name


def measure_pair(metric: Metric[Any], pair: Pair, factors: Mapping[str, Any]) -> Record:
    """Compute another measure of a pair: of the matching layers, and of all layers if that costs little.

    An asymmetric measure has two kinds: the first model given the second, and the second given the first.
    """
    rows, columns = ([factors.get(layer_name(p, array)) for array in p.arrays] for p in (pair.a, pair.b))
    matched = list(zip(pair.a.matched.tolist(), pair.b.matched.tolist(), strict=True))
    blocks = [_block(metric, rows, columns, matched)]
    if not metric.symmetric:
        blocks.append(_block(metric, columns, rows, [(j, i) for i, j in matched]).T)
    values = np.array([[block[i, j] for i, j in matched] for block in blocks])
    chance = np.full((2, len(matched)), np.nan)
    for k, (i, j) in enumerate(matched):
        x, y = rows[i], columns[j]
        level = metric.chance(x, y) if metric.paired and x is not None and y is not None else None
        if level is not None:
            mean = float(as_similarity(metric, np.array(level.mean)))
            chance[:, k] = mean, np.nan if level.sd is None else mean + 1.645 * level.sd
    return Record(values, np.stack(blocks), np.zeros((len(blocks), 0, len(matched))), chance)


def _block(
    metric: Metric[Any], rows: Sequence[Any], columns: Sequence[Any], matched: Sequence[tuple[int, int]]
) -> Float64[np.ndarray, "rows columns"]:
    """Return the similarities of the layers in rows given those in columns; NaN where they are not computed."""
    block = np.full((len(rows), len(columns)), np.nan)
    if isinstance(metric, GramMetric | MomentMetric):
        i, j = ([k for k, factor in enumerate(side) if factor is not None] for side in (rows, columns))
        if i and j:
            block[np.ix_(i, j)] = as_similarity(metric, metric.block([rows[k] for k in i], [columns[k] for k in j]))
        return block
    for a, b in matched:
        if rows[a] is not None and columns[b] is not None:
            block[a, b] = as_similarity(metric, metric.block([rows[a]], [columns[b]]))[0, 0]
    return block
