"""Digits of other implementations, and of the papers' formulas, on the uniform data of docs and papers."""

import numpy as np
import pytest

from repsim.metrics import get
from repsim.metrics.base import Array


@pytest.fixture
def uniform() -> tuple[Array, Array]:
    np.random.seed(0)  # noqa: NPY002 - the published digits are of this generator
    return np.random.uniform(size=(30, 25)), np.random.uniform(size=(30, 25))  # noqa: NPY002


@pytest.mark.parametrize(
    ("spec", "value"),
    [
        ("hard_correlation", 0.3363914592542919),
        ("semi_correlation", 0.3761355416924346),
        ("aligned_cosine", 0.9284614848625562),
        ("permutation_procrustes", 9.346931991014133),
        ("soft_matching", 0.3363914592542919),  # of layers of one width: the hard correlation (Birkhoff)
    ],
)
def test_digits_on_uniform_data(uniform: tuple[Array, Array], spec: str, value: float) -> None:
    assert get(spec)(*uniform) == pytest.approx(value, abs=1e-12)
