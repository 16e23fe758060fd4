"""Measures between principal subspaces against the digits of other implementations, on uniform(30, 25)."""

import warnings
from typing import Any

import numpy as np
import pytest

from repsim.errors import UnreliableValueWarning
from repsim.metrics import get
from repsim.metrics.base import Array


@pytest.fixture
def uniform() -> tuple[Array, Array]:
    np.random.seed(0)  # noqa: NPY002 - the published digits are of this generator
    return np.random.uniform(size=(30, 25)), np.random.uniform(size=(30, 25))  # noqa: NPY002


@pytest.mark.parametrize(
    ("spec", "value", "swapped"),
    [
        ("nuclear", 0.7227787175993363, 0.7227787175993363),
        ("angular_shape", 0.7629815799340971, 0.7629815799340971),
        ("procrustes", 0.7446090012894865, 0.7446090012894865),
        ("procrustes_size", 5.851126077853428, 5.851126077853428),
        ("linear_regression", 0.863424815867745, 0.8639582977842274),
        ("gulp", 7.084992868422333, 7.084992868422333),
        ("eigenspace_overlap", 0.8310349228244533, 0.8310349228244533),
    ],
)
@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float64, 1e-12), (np.float32, 1e-6)])
def test_digits_on_uniform_data(
    uniform: tuple[Array, Array],
    spec: str,
    value: float,
    swapped: float,
    dtype: type[np.floating[Any]],
    *,
    tolerance: float,
) -> None:
    x, y = (layer.astype(dtype) for layer in uniform)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UnreliableValueWarning)
        assert get(spec)(x, y) == pytest.approx(value, rel=tolerance)
        assert get(spec)(y, x) == pytest.approx(swapped, rel=tolerance)
