"""Comparison of a few layers in memory, by the algorithm with fewer operations."""

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from jaxtyping import Float64

from repsim.metrics.algorithms.feature_space import MomentSweep
from repsim.metrics.algorithms.gram_space import GramSweep, tile_side
from repsim.metrics.recipes.base import MomentFactor
from repsim.runtime import tuning

Algorithm = Literal["gram", "moments", "pairs"]
"""Name of an algorithm: in Gram space, in feature space, or pair by pair."""


def compare_in_memory(rows: Sequence[Any], columns: Sequence[Any], measure: Any) -> Float64[np.ndarray, "rows columns"]:
    """Compare every row layer with every column layer under a `GramMetric`, a `MomentMetric`, or a measure that is
    both.
    """
    layers, settings = [*rows, *columns], tuning.current()
    sweeps: list[GramSweep | MomentSweep] = []
    if "gram" in measure.algorithms:
        sweeps.append(GramSweep(rows, columns, [measure], panel=settings.panel, tile=tile_side(len(layers), 4)))
    grouped = any(getattr(layer, "groups", None) is not None for layer in layers)  # feature space has every pair
    if "moments" in measure.algorithms and not grouped and all(isinstance(layer, MomentFactor) for layer in layers):
        sweeps.append(MomentSweep(rows, columns, [measure], chunk=settings.run, room=settings.unit_memory_kept))
    return min(sweeps, key=lambda sweep: sweep.flop).run()[0]
