"""Hommel's method, compared with the closed test whose intersections are tested by Simes' method."""

from itertools import combinations

import numpy as np
import pytest

from repsim.errors import InvalidInputError
from repsim.study.multiple_tests import holm, hommel
from tests.study.references import Array


def simes(p: list[float]) -> float:
    return min(len(p) * value / (k + 1) for k, value in enumerate(sorted(p)))


def closed_test(p: Array) -> Array:
    """Return, for every hypothesis, the largest p of the intersections of which it is a part."""
    adjusted = np.zeros(len(p))
    for size in range(1, len(p) + 1):
        for chosen in combinations(range(len(p)), size):
            adjusted[list(chosen)] = np.maximum(adjusted[list(chosen)], simes([p[k] for k in chosen]))
    return np.minimum(adjusted, 1)


@pytest.mark.parametrize("count", [1, 2, 3, 4, 7])
def test_hommel_is_the_closed_test_of_simes(count: int, rng: np.random.Generator) -> None:
    for power in (1, 3):
        for _ in range(20):
            p = rng.uniform(size=count) ** power
            np.testing.assert_allclose(hommel(p), closed_test(p), rtol=1e-12)
            assert (hommel(p) <= holm(p) + 1e-12).all()
    p = np.repeat(rng.uniform(size=count), 2)[:count]  # ties
    np.testing.assert_allclose(hommel(p), closed_test(p), rtol=1e-12)


def test_equal_p_values_stay_what_they_are() -> None:
    """No rounding error lifts 0.05 above 0.05: all pairs are rejected if every p-value is at most alpha."""
    for count in range(1, 12):
        for p in 1 / np.arange(1, 200):
            np.testing.assert_array_equal(hommel(np.full(count, p)), p)


def test_hommel_keeps_what_is_not_tested() -> None:
    assert hommel([]).tolist() == []
    np.testing.assert_array_equal(hommel([np.nan, 0.2]), [np.nan, 0.2])
    assert hommel([[0.01, 0.04], [0.05, 0.03]]).shape == (2, 2)
    with pytest.raises(InvalidInputError, match="between 0 and 1"):
        hommel([0.1, 1.5])
