"""Results of all passes over the data of a study, from which its data set and its sentences are made."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64

from repsim.engine.null_moments import CubicMoments
from repsim.study.design import Design
from repsim.study.duplicates import NearDuplicates
from repsim.study.gram_passes import Kernels
from repsim.study.indices import Indices
from repsim.study.other_measures import MeasureResult
from repsim.study.permutation_nulls import Null


@dataclass(frozen=True, eq=False)
class Evidence:
    """Results of all passes over the data of a study."""

    design: Design
    kernels: Kernels
    indices: Indices
    left_out: Float64[np.ndarray, "n T"]
    """All indices, computed without each sample."""
    errors: dict[str, Float64[np.ndarray, "layers layers"]]
    """Standard errors of the similarities of layers, by the kind of control that is projected out."""
    moments: tuple[CubicMoments, ...]
    """Moments of the layers of trained models."""
    nulls: dict[tuple[str, str], Null]
    """Null distributions from permutations of all samples, by (kind of control, name of the pair)."""
    within_classes: dict[tuple[str, str], Null]
    """The same from permutations within classes."""
    halves: dict[tuple[str, str], float]
    """Split-half indices, by (kind of control, name of the pair)."""
    measures: tuple[MeasureResult, ...]
    """Results of the measures other than debiased CKA."""
    permutations: int
    """Number of permutations."""
    duplicates: NearDuplicates
    """Pairs of samples that are nearly the same."""
