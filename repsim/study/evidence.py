"""Results of all passes over the data of a study, from which its data set and its sentences are made."""

from dataclasses import dataclass

from repsim.engine.null_moments import CubicMoments
from repsim.study.design import Design
from repsim.study.duplicates import NearDuplicates
from repsim.study.estimation import Estimates
from repsim.study.gram_passes import Kernels
from repsim.study.other_measures import MeasureResult
from repsim.study.permutation_nulls import Null

_MOST_ALIKE, _FEW_ALIKE = 0.02, 5
"""Share of the samples, and number of them, that may have a near duplicate without being declared as groups.

They change trained networks and controls alike."""


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
    duplicates: NearDuplicates
    """Pairs of samples that are nearly the same."""

    notes: tuple[str, ...] = ()
    """Sentences about what was not computed."""

    @property
    def has_undeclared_groups(self) -> bool:
        """Whether samples are alike that were not declared to be groups, and they are not only a few."""
        if not self.duplicates.pairs or self.duplicates.covered:
            return False
        sizes = self.duplicates.groups.sizes
        return bool(sizes[sizes > 1].sum() > max(_FEW_ALIKE, _MOST_ALIKE * self.design.n))
