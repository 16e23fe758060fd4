"""Sums over U-centred Gram matrices, against the matrices themselves."""

from collections.abc import Callable

import numpy as np
import pytest
import torch

from repsim.engine import null_moments
from repsim.engine.null_moments import CubicMoments, cubic_moments
from repsim.errors import InvalidInputError
from repsim.metrics import get
from repsim.metrics.base import Array, as_samples
from repsim.metrics.recipes.gram import Gram
from tests.metrics.references import gram, u_centred


def prepared(x: Array, spec: str = "cka") -> Gram:
    factor = get(spec).recipe(as_samples(x))
    assert isinstance(factor, Gram)
    return factor


def by_hand(factor: Gram, spec: str = "cka") -> CubicMoments:
    """From the matrix of the features as they are scaled."""
    x = factor.features[:].double().numpy()
    A = u_centred(gram(x, "rbf", sigma=factor.width) if "rbf" in spec else gram(x))
    return CubicMoments(len(A), float(np.sum(A**2)), float(np.trace(A @ A @ A)), float(np.sum(A**3)))


def skewed(rng: np.random.Generator, n: int, p: int) -> Array:
    """Few directions carry most, some samples are large, and means are off zero."""
    return rng.exponential(size=(n, 1)) ** 2 * rng.normal(size=(n, p)) / np.arange(1, p + 1) + rng.normal(size=p)


def close(found: CubicMoments, expected: CubicMoments, rel: float) -> None:
    scale = expected.norm2**1.5
    assert found.n == expected.n
    assert found.norm2 == pytest.approx(expected.norm2, rel=rel)
    assert found.triangles == pytest.approx(expected.triangles, rel=rel, abs=rel * scale)
    assert found.cubes == pytest.approx(expected.cubes, rel=rel, abs=rel * scale)


@pytest.mark.parametrize("panel", [2048, 17])
@pytest.mark.parametrize("shape", [(5, 1), (6, 3), (6, 4), (6, 9), (40, 7), (40, 37), (40, 38), (40, 100), (300, 20)])
def test_moments_are_those_of_the_matrix(
    rng: np.random.Generator, tuned: Callable[..., None], shape: tuple[int, int], panel: int
) -> None:
    tuned(panel=panel)
    layers = [prepared(skewed(rng, *shape)), prepared(rng.normal(size=shape)), prepared(skewed(rng, shape[0], 2))]
    for layer, found in zip(layers, cubic_moments(layers), strict=True):
        close(found, by_hand(layer), 1e-10)


def test_both_roads_agree_where_either_can_be_gone(rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    layers = [prepared(skewed(rng, 50, p)) for p in (3, 47)]
    features = cubic_moments(layers)
    monkeypatch.setattr(null_moments, "_narrow", lambda _: False)
    for found, expected in zip(cubic_moments(layers), features, strict=True):
        close(found, expected, 1e-12)
        assert found != expected  # it was another road


def test_float32(rng: np.random.Generator) -> None:
    layers = [prepared(skewed(rng, 200, p).astype(np.float32)) for p in (5, 64, 300)]
    for layer, found in zip(layers, cubic_moments(layers), strict=True):
        close(found, by_hand(layer), 2e-6)


def test_another_kernel(rng: np.random.Generator) -> None:
    layer = prepared(rng.normal(size=(30, 4)), "cka:kernel=rbf")
    close(cubic_moments([layer])[0], by_hand(layer, "rbf"), 1e-10)


def test_no_layers_no_moments() -> None:
    assert cubic_moments([]) == []


@pytest.mark.parametrize("size", [1e2, 1e3, 1e4, 1e6])
def test_a_sample_that_is_almost_all_of_a_layer(rng: np.random.Generator, size: float) -> None:
    x = rng.normal(size=(30, 3))
    x[4] *= size
    layer = prepared(x)
    close(cubic_moments([layer])[0], by_hand(layer), 1e-7)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("p", [1, 2, 40])
def test_nothing_is_left_of_a_single_sample(dtype: torch.dtype, p: int) -> None:
    lonely = torch.zeros(20, p, dtype=dtype)
    lonely[3] = torch.arange(1, p + 1)
    (found,) = cubic_moments([prepared(lonely.numpy())])
    assert np.isnan([found.norm2, found.triangles, found.cubes]).all()


def test_minibatches_are_refused(rng: np.random.Generator) -> None:
    layer = prepared(rng.normal(size=(20, 3)), "cka:estimator=minibatch,batch=5")
    with pytest.raises(InvalidInputError, match="divided into minibatches"):
        cubic_moments([layer])


def test_progress(rng: np.random.Generator) -> None:
    said: list[tuple[int, int]] = []
    cubic_moments(
        [prepared(rng.normal(size=(20, 3))) for _ in range(2)], progress=lambda done, of: said.append((done, of))
    )
    assert said == [(1, 3), (2, 3), (3, 3)]
