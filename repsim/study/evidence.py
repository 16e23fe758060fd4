"""Results of all passes over the data of a study, from which its data set and its sentences are made."""

from dataclasses import dataclass

from repsim.engine.null_moments import CubicMoments
from repsim.study.design import Design
from repsim.study.estimation import Estimates
from repsim.study.gram_passes import Kernels
from repsim.study.other_measures import MeasureResult
from repsim.study.permutation_nulls import Null


@dataclass(frozen=True, eq=False)
class Evidence:
    """Results of all passes over the data of a study."""

    design: Design
    kernels: Kernels
    estimates: Estimates
    """All indices, and the values from which their intervals follow."""
    moments: tuple[CubicMoments, ...]
    """Moments of the layers of trained models; empty if samples are in groups."""
    dimensions: dict[str, float]
    """Effective dimension of every layer, by its name."""
    nulls: dict[tuple[str, str], Null]
    """Null distributions from permutations of all samples, by (kind of control, name of the pair)."""
    within_classes: dict[tuple[str, str], Null]
    """The same from permutations within classes."""
    measures: tuple[MeasureResult, ...]
    """Results of the measures other than debiased CKA."""
    permutations: int
    """Number of permutations."""
    controls: tuple[str, ...]
    """Names of the kernels that describe the input."""
    duplicates: tuple[tuple[str, str], ...]
    """Pairs of ids of samples that are equal."""

    @property
    def has_undeclared_groups(self) -> bool:
        """Whether some samples are alike, but were not declared to be a group."""
        return bool(self.duplicates)
