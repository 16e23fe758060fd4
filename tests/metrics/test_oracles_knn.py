"""Published digits of the measures of neighbourhoods, on the ReSi benchmark's data."""

import numpy as np
import pytest

import repsim.metrics


@pytest.mark.parametrize(
    ("spec", "value"),
    [
        ("jaccard_knn", 0.21488074762068568),
        ("rank_similarity", 0.137112252104584),
        ("second_order_cosine", 0.9230452955394255),
    ],
)
def test_digits_on_uniform_data(spec: str, value: float) -> None:
    np.random.seed(0)  # noqa: NPY002 - the published digits are of this generator
    x, y = np.random.uniform(size=(30, 25)), np.random.uniform(size=(30, 25))  # noqa: NPY002
    assert repsim.metrics.get(spec)(x, y) == pytest.approx(value, rel=1e-9)
