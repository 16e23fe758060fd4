"""Every measure of float32 layers against float64 of the same values, where float32 loses digits."""

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from repsim import metrics
from repsim.errors import UndefinedValueError
from repsim.metrics.base import Array
from repsim.testing.examples import related_layers

HOSTILE: dict[str, Callable[[Array], Array]] = {
    "offset 1e2": lambda x: x + 1e2,
    "offset 1e5": lambda x: x + 1e5,
    "one channel at 1e3": lambda x: x + 1e3 * (np.arange(x.shape[1]) == 3),
    "one channel at 1e6": lambda x: x + 1e6 * (np.arange(x.shape[1]) == 3),
    "one large channel": lambda x: x * np.where(np.arange(x.shape[1]) == 3, 1e4, 1),
    "columns of 1 to 1e-6": lambda x: x * np.geomspace(1, 1e-6, x.shape[1]),
    "one far sample": lambda x: np.concatenate([1e4 * x[:1], x[1:]]) + 50,
    "duplicates": lambda x: np.concatenate([x[:15], x[:-15]]),
    "one-hot": lambda x: np.eye(x.shape[1])[np.abs(x).argmax(1)],
    "half precision": lambda x: (x + 30).astype(np.float16),
    "whole numbers": lambda x: np.round(2 * x) + 0.5,
    "two clouds": lambda x: x + 1e3 * np.where(np.arange(len(x)) % 2, 1, -1)[:, None],
    "tiny": lambda x: x * 1e-25,
    "huge": lambda x: x * 1e15,
}
SPECS = [
    {"geometry_score": "geometry_score:landmarks=12,draws=5", "rtd": "rtd:batch=60"}.get(metric.name, metric.spec)
    for group in ("all", "topology")
    for metric in metrics.select(group)
]
SPECS += ["cka:estimator=biased", "cka:kernel=rbf", "cca:summary=r2", "gulp:ridge=0.1"]
UNDETERMINED = {("svcca", "one-hot"), ("rsa", "one large channel")}
"""Directions of equal variance, of which some are kept and others not; correlations that agree to 2^-30, which tie."""


def layers(n: int, *widths: int) -> list[Array]:
    return related_layers(np.random.default_rng(4), n, *widths, shared=4)


def value(metric: metrics.Metric[Any], x: Array, y: Array) -> float | str:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return metric(x, y)
        except UndefinedValueError as error:
            return str(error)


@pytest.mark.parametrize("spec", [pytest.param(s, marks=pytest.mark.slow) if "rtd" in s else s for s in SPECS])
@pytest.mark.slow
def test_float32_is_float64_of_the_same_values(spec: str) -> None:
    """A difference would be an effect of the dtype, and not a property of the layer."""
    metric = metrics.get(spec)
    x, y = layers(90, 12, 10)
    wrong = {}
    for how, change in HOSTILE.items():
        for other in (y, change(y)):
            narrow = [side.astype(np.float32) for side in (change(x), other)]
            actual = value(metric, *narrow)
            expected = value(metric, *(side.astype(np.float64) for side in narrow))
            if isinstance(actual, str) or isinstance(expected, str):
                same = actual == expected
            else:
                same = abs(actual - expected) <= 1e-4 * abs(expected) + (1e-5 if metric.sense == "similarity" else 1e-6)
            if not same and (metric.name, how) not in UNDETERMINED:
                wrong[how] = (actual, expected)
    assert not wrong, f"{spec} of float32, and of float64 of the same values: {wrong}"


@pytest.mark.parametrize(("n", "p", "q"), [(90, 40, 30), (600, 12, 10), (70, 600, 12)])
@pytest.mark.parametrize("spec", ["cca:summary=r2", "pwcca", "eigenspace_overlap", "linear_regression", "svcca"])
def test_spans_by_every_decomposition(spec: str, n: int, p: int, q: int) -> None:
    """Singular values, eigenvalues of X'X and of XX'."""
    metric = metrics.get(spec)
    x, y = layers(n, p, q)
    for how in ("offset 1e5", "one channel at 1e6", "one large channel", "columns of 1 to 1e-6"):
        narrow = HOSTILE[how](x).astype(np.float32)
        expected = value(metric, narrow.astype(np.float64), y)
        assert value(metric, narrow, y.astype(np.float32)) == pytest.approx(expected, rel=1e-4, abs=1e-5), how


def test_the_cases_of_issue_15() -> None:
    x, y = layers(200, 20, 16)
    scaled = (x * np.geomspace(1, 1e-6, 20)).astype(np.float32)
    assert metrics.get("cca")(scaled, y) == pytest.approx(metrics.get("cca")(x, y), rel=1e-5), "declared invariant"
    far = (x + 1e5).astype(np.float32)
    overlap = metrics.get("eigenspace_overlap")
    assert overlap(far, far) == pytest.approx(1, rel=1e-6)
    one_far = np.concatenate([1e4 * x[:1], x[1:]]).astype(np.float32)
    assert metrics.get("cka:kernel=rbf")(one_far, one_far) == pytest.approx(1, rel=1e-5)
