"""Measures of similarity matrices are held to the contract."""

import contextlib
from typing import Any

import numpy as np
import pytest

from repsim.errors import UndefinedValueError
from repsim.metrics.base import Metric
from repsim.metrics.cka_units import SampledUnitsCKA
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


class TestSampledUnitsCKA(MetricContract):
    metrics = (SampledUnitsCKA(),)
    reference = staticmethod(references.cka_units)

    @pytest.mark.parametrize("n", [6, 40])
    def test_a_layer_is_like_itself(self, metric: Metric[Any], n: int) -> None:
        """The value may exceed 1: both sides have the same units, and not two samples of units."""
        (x,) = self.layers(n=n, widths=(6,))
        assert metric(x, x) >= 1
        assert metric(x, x) == pytest.approx(self.reference(x, x))

    @pytest.mark.parametrize("n", [4, 6, 40])
    def test_values_are_within_bounds(self, metric: Metric[Any], n: int) -> None:
        """There are no bounds; with few samples the norm of a layer may not be positive."""
        for seed in range(5):
            x, y = self.layers(seed, n=n)
            with contextlib.suppress(UndefinedValueError):
                assert np.isfinite(metric(x, y))
