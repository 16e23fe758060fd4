"""Statistics of single layers: closed forms, scales, tiles, and what has no value."""

import math
from typing import Any

import numpy as np
import pytest

from repsim.errors import UndefinedValueError, UnreliableValueWarning
from repsim.metrics import get
from repsim.metrics.base import Array, as_samples
from repsim.metrics.descriptors import ConcentricityDifference, MagnitudeDifference, UniformityDifference

ALL = (MagnitudeDifference(), ConcentricityDifference(), UniformityDifference())


def uniformity(x: Array) -> float:
    """Compute uniformity from inner products in float64, for many samples."""
    x = x.astype(np.float64) - x.mean(0, dtype=np.float64)
    g = (x**2).sum(1)
    return float(np.log(np.mean(np.exp(-2 * (g[:, None] + g - 2 * x @ x.T).clip(0) * (1 - np.eye(len(x)))))))


def described(name: str, x: Array) -> float:
    return float(get(name).recipe(as_samples(x)).value)


def test_the_mean_is_as_long_as_it_was_made(rng: np.random.Generator) -> None:
    x = rng.normal(size=(50, 4))
    x -= x.mean(0)
    five, twelve = np.array([3, 4, 0, 0]), np.array([0, 0, 0, 12])
    assert MagnitudeDifference()(x + five, x + twelve) == pytest.approx(7, rel=1e-12)
    assert MagnitudeDifference()(x, x + five) == pytest.approx(5, rel=1e-12)


def test_a_cone_is_as_narrow_as_it_was_made() -> None:
    """Samples around a circle, at an angle of 0.3 to their mean; their lengths do not matter."""
    angles = np.linspace(0, 2 * np.pi, 12, endpoint=False)
    circle = np.column_stack([np.cos(angles), np.sin(angles)]) * math.sin(0.3)
    cone = np.column_stack([circle, np.full(12, math.cos(0.3))])
    assert described("concentricity_difference", cone) == pytest.approx(math.cos(0.3), rel=1e-12)
    assert described("concentricity_difference", cone * 1e-200) == pytest.approx(math.cos(0.3), rel=1e-12)


def test_uniformity_of_two_points() -> None:
    """Half the pairs at distance 0, half at distance 1."""
    x = np.array([[0.0], [1.0]] * 3) + 5
    assert described("uniformity_difference", x) == pytest.approx(math.log((1 + math.exp(-2)) / 2), rel=1e-12)


@pytest.mark.parametrize("metric", ALL, ids=lambda metric: metric.name)
@pytest.mark.filterwarnings("ignore::repsim.errors.UnreliableValueWarning")
def test_huge_features_do_not_overflow(rng: np.random.Generator, metric: MagnitudeDifference) -> None:
    x, y = rng.normal(size=(2, 20, 5)) + 1
    value, huge = metric(x * 1e10, y * 1e10), metric(x * 1e200, y * 1e200)
    if isinstance(metric, MagnitudeDifference):
        huge /= 1e190
    assert huge == pytest.approx(value, rel=1e-12)


@pytest.mark.parametrize("metric", ALL, ids=lambda metric: metric.name)
def test_a_block_is_all_differences(rng: np.random.Generator, metric: MagnitudeDifference) -> None:
    layers = [metric.recipe(as_samples(rng.normal(size=(20, 3)) * scale + 1)) for scale in (0.1, 0.2, 0.4, 0.8)]
    values = [float(layer.value) for layer in layers]
    block = metric.block(layers[:3], layers[1:])
    np.testing.assert_array_equal(block, [[abs(u - v) for v in values[1:]] for u in values[:3]])
    assert block.min() == 0 < block.max()


# Concentricity: undefined angles


def test_without_an_angle_there_is_no_value(rng: np.random.Generator) -> None:
    x = rng.normal(size=(30, 5)) + 1
    dead = x.copy()
    dead[[4, 7]] = 0
    with pytest.raises(UndefinedValueError, match="2 of 30 samples are 0"):
        ConcentricityDifference()(x, dead)
    for dtype in (np.float32, np.float64):
        y = (100 * x).astype(dtype)
        with pytest.raises(UndefinedValueError, match="mean of all samples is 0"):
            ConcentricityDifference()(y - y.mean(0), x)


# Uniformity


@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float64, 1e-12), (np.float32, 1e-7)])
@pytest.mark.parametrize("scale", [0.1, 1.0])
def test_many_tiles(rng: np.random.Generator, scale: float, dtype: type[np.floating[Any]], tolerance: float) -> None:
    x = (scale * rng.normal(size=(2100, 3)) + 2).astype(dtype)
    assert described("uniformity_difference", x) == pytest.approx(uniformity(x), abs=tolerance)


def test_close_pairs_of_long_samples_keep_their_digits_in_float32(rng: np.random.Generator) -> None:
    """Lengths of 300, distances of 0.3 within a cluster: float32 products alone leave 2 digits of exp(-2 d^2)."""
    centres = 15 * rng.normal(size=(4, 400))
    x = (centres[rng.integers(0, 4, size=500)] + 0.02 * rng.normal(size=(500, 400))).astype(np.float32)
    assert described("uniformity_difference", x) == pytest.approx(uniformity(x), abs=1e-7)


def test_a_warning_if_only_the_diagonal_contributes(rng: np.random.Generator) -> None:
    x = rng.normal(size=(50, 200))
    assert described("uniformity_difference", x) == pytest.approx(-math.log(50), abs=1e-12)
    near = x / np.linalg.norm(x, axis=1, keepdims=True)
    with pytest.warns(UnreliableValueWarning, match="100% of mean exp.* comes from each sample with itself"):
        UniformityDifference()(x, near)
    UniformityDifference()(near, near[:, ::-1] / 2)  # warnings are errors here: this one must not warn
