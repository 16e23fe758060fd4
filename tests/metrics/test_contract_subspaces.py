"""Shape measures, regression, GULP and eigenspace overlap are held to their contracts."""

from repsim.metrics.prediction import GULP, EigenspaceOverlap, LinearRegression
from repsim.metrics.shapes import AngularShape, Nuclear, Procrustes, ProcrustesSize
from repsim.testing import MetricContract
from tests.metrics import references_subspaces as references


class TestNuclear(MetricContract):
    metrics = (Nuclear(),)
    reference = staticmethod(references.nuclear)


class TestAngularShape(MetricContract):
    metrics = (AngularShape(),)
    reference = staticmethod(references.angular_shape)


class TestProcrustes(MetricContract):
    metrics = (Procrustes(),)
    reference = staticmethod(references.procrustes)


class TestProcrustesSize(MetricContract):
    metrics = (ProcrustesSize(),)
    reference = staticmethod(references.procrustes_size)


class TestLinearRegression(MetricContract):
    metrics = (LinearRegression(),)
    reference = staticmethod(references.linear_regression)


class TestGULP(MetricContract):
    metrics = (GULP(), GULP(ridge=0.01), GULP(ridge=2.0))
    reference = staticmethod(references.gulp)


class TestEigenspaceOverlap(MetricContract):
    metrics = (EigenspaceOverlap(),)
    reference = staticmethod(references.eigenspace_overlap)
