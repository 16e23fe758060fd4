"""The contracts of the measures of neighbourhoods."""

from typing import Any, ClassVar

import numpy as np
import pytest

from repsim.errors import UnreliableValueWarning
from repsim.metrics.base import Metric
from repsim.metrics.knn import CKNNA, CycleKNN, JaccardKNN, MutualKNN, RankSimilarity, SecondOrderCosine
from repsim.testing import MetricContract
from tests.metrics import references_knn


class NeighbourContract(MetricContract):
    """Contract with enough samples for the number of neighbours."""

    metrics: ClassVar[Any] = ()

    @pytest.mark.parametrize("n", [4, 6, 40])
    def test_values_are_within_bounds(self, metric: Metric[Any], n: int) -> None:
        super().test_values_are_within_bounds(metric, max(n, metric.min_samples))


class TestMutualKNN(NeighbourContract):
    metrics = (MutualKNN(k=3), MutualKNN(k=4))
    reference = staticmethod(references_knn.mutual_knn)


class TestJaccardKNN(NeighbourContract):
    metrics = (JaccardKNN(k=2), JaccardKNN(k=3))
    reference = staticmethod(references_knn.jaccard_knn)


class TestRankSimilarity(NeighbourContract):
    metrics = (RankSimilarity(k=3), RankSimilarity(k=4))
    reference = staticmethod(references_knn.rank_similarity)


class TestSecondOrderCosine(NeighbourContract):
    metrics = (SecondOrderCosine(k=2), SecondOrderCosine(k=3))
    reference = staticmethod(references_knn.second_order_cosine)

    def test_as_many_samples_as_it_needs(self, metric: Metric[Any]) -> None:
        """No number is enough: unrelated layers of many features have values near 1."""
        assert metric.samples_needed(5, 8) is None
        rng = np.random.default_rng(7)
        for n in (50, 400):
            with pytest.warns(UnreliableValueWarning, match="no number of samples is enough"):
                assert metric(rng.normal(size=(n, 100)), rng.normal(size=(n, 80))) > 0.9


class TestCKNNA(NeighbourContract):
    metrics = (CKNNA(k=2), CKNNA(k=3))
    reference = staticmethod(references_knn.cknna)
    breaks = 1e-5  # it is asymmetric, but only by a second-order term


class TestCycleKNN(NeighbourContract):
    metrics = (CycleKNN(k=3),)
    reference = staticmethod(references_knn.cycle_knn)

    @pytest.mark.parametrize("n", [6, 40])
    def test_a_layer_is_like_itself(self, metric: Metric[Any], n: int) -> None:
        """The value counts samples that are a neighbour of one of their neighbours."""
        (x,) = self.layers(n=max(n, metric.min_samples), widths=(6,))
        near = references_knn.mask(x, metric.k)  # type: ignore[attr-defined]
        assert metric(x, x) == pytest.approx(np.mean((near * near.T).any(1)))
