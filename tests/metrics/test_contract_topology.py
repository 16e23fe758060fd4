"""The topological measures are held to their contracts, with few draws of few landmarks, and small batches."""

from typing import Any

import pytest

from repsim.metrics.base import Metric
from repsim.metrics.geometry_score import GeometryScore
from repsim.metrics.imd import IMD
from repsim.metrics.rtd import RTD
from repsim.testing import MetricContract
from tests.metrics import references_topology


class WithEnoughSamples(MetricContract):
    """Base of contracts for measures with a larger minimum number of samples."""

    @pytest.mark.parametrize("n", [6, 40])
    def test_a_layer_is_like_itself(self, metric: Metric[Any], n: int) -> None:
        super().test_a_layer_is_like_itself(metric, max(n, metric.min_samples))

    @pytest.mark.parametrize("n", [4, 6, 40])
    def test_values_are_within_bounds(self, metric: Metric[Any], n: int) -> None:
        super().test_values_are_within_bounds(metric, max(n, metric.min_samples))


class TestGeometryScore(WithEnoughSamples, MetricContract):
    metrics = (
        GeometryScore(landmarks=8, gamma=0.3, draws=6),
        GeometryScore(landmarks=10, gamma=0.2, i_max=2, draws=4, seed=1),
    )
    reference = staticmethod(references_topology.geometry_score)

    @pytest.mark.parametrize(
        ("n", "p", "q"),
        [
            (10, 20, 15),
            *(pytest.param(*shape, marks=pytest.mark.slow) for shape in [(40, 6, 6), (41, 5, 9), (40, 9, 4)]),
        ],
    )
    def test_agrees_with_the_reference(self, metric: Metric[Any], n: int, p: int, q: int) -> None:
        super().test_agrees_with_the_reference(metric, n, p, q)


class TestIMD(WithEnoughSamples, MetricContract):
    metrics = (IMD(), IMD(neighbours=2))
    reference = staticmethod(references_topology.imd)
    tolerance = 1e-7  # its unit is 1e6


class TestRTD(WithEnoughSamples, MetricContract):
    metrics = (RTD(batch=12, trials=2), RTD(batch=10, trials=1, seed=3))
    reference = staticmethod(references_topology.rtd)

    def test_order_of_samples_does_not_matter(self, metric: Metric[Any]) -> None:
        """The order matters only if there are several batches."""
        with pytest.raises(AssertionError, match="Not equal to tolerance"):
            super().test_order_of_samples_does_not_matter(metric)
        super().test_order_of_samples_does_not_matter(RTD(batch=40))
