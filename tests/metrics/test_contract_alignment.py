"""Measures that match or rotate units are held to their contracts."""

from repsim.metrics.matching import HardCorrelation, SemiCorrelation, SoftMatching
from repsim.metrics.rotation import AlignedCosine, PermutationProcrustes
from repsim.testing import MetricContract
from tests.metrics import references_alignment


class TestHardCorrelation(MetricContract):
    metrics = (HardCorrelation(),)
    reference = staticmethod(references_alignment.hard_correlation)


class TestSemiCorrelation(MetricContract):
    metrics = (SemiCorrelation(),)
    reference = staticmethod(references_alignment.semi_correlation)


class TestSoftMatching(MetricContract):
    metrics = (SoftMatching(),)
    reference = staticmethod(references_alignment.soft_matching)


class TestAlignedCosine(MetricContract):
    metrics = (AlignedCosine(),)
    reference = staticmethod(references_alignment.aligned_cosine)


class TestPermutationProcrustes(MetricContract):
    metrics = (PermutationProcrustes(),)
    reference = staticmethod(references_alignment.permutation_procrustes)
