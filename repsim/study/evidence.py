"""What the passes over the data of a study gave: everything that its data set and its sentences are made of."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64

from repsim.engine.null_moments import CubicMoments
from repsim.study.design import Design
from repsim.study.gram_passes import Kernels
from repsim.study.indices import Indices
from repsim.study.other_measures import Measured
from repsim.study.permutation_nulls import Null


@dataclass(frozen=True, eq=False)
class Evidence:
    """What the passes over the data gave."""

    design: Design
    kernels: Kernels
    indices: Indices
    left_out: Float64[np.ndarray, "n T"]
    """All indices without each sample."""
    errors: dict[str, Float64[np.ndarray, "layers layers"]]
    """Given -> standard errors of similarities of layers."""
    moments: tuple[CubicMoments, ...]
    """Of the trained models' layers."""
    nulls: dict[tuple[str, str], Null]
    within_classes: dict[tuple[str, str], Null]
    halves: dict[tuple[str, str], float]
    measured: tuple[Measured, ...]
    permutations: int
    duplicates: tuple[tuple[str, str], ...]
