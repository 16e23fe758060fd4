"""Statistics of single layers are held to the contract."""

from collections.abc import Callable, Sequence

from repsim.metrics.base import Array
from repsim.metrics.descriptors import ConcentricityDifference, MagnitudeDifference, UniformityDifference
from repsim.testing import MetricContract
from tests.metrics import references_descriptors as references


def difference(statistic: Callable[[Array], float]) -> Callable[[Array, Array], float]:
    return lambda x, y: abs(statistic(x) - statistic(y))


class TestMagnitudeDifference(MetricContract):
    metrics = (MagnitudeDifference(),)
    reference = staticmethod(difference(references.magnitude))


class TestConcentricityDifference(MetricContract):
    metrics = (ConcentricityDifference(),)
    reference = staticmethod(difference(references.concentricity))


class TestUniformityDifference(MetricContract):
    metrics = (UniformityDifference(),)
    reference = staticmethod(difference(references.uniformity))

    def layers(self, seed: int = 0, n: int = 40, widths: Sequence[int] = (6, 6)) -> list[Array]:
        """Return small features, so that pairs contribute to exp(-2 d^2)."""
        return [layer / 5 for layer in super().layers(seed, n, widths)]
