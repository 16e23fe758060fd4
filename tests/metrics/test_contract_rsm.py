"""Measures of similarity matrices are held to the contract."""

from repsim.metrics.rsm import RSA, DistanceCorrelation, RSMDifference
from repsim.testing import MetricContract
from tests.metrics import references_rsm as references


class TestDistanceCorrelation(MetricContract):
    metrics = (DistanceCorrelation(),)
    reference = staticmethod(references.distance_correlation)


class TestRSA(MetricContract):
    metrics = (RSA(),)
    reference = staticmethod(references.rsa)


class TestRSMDifference(MetricContract):
    metrics = (RSMDifference(),)
    reference = staticmethod(references.rsm_difference)
