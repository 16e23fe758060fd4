"""Test the sums over U-centred Gram matrices against the matrices themselves."""

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
from tests.threads import torch_threads


def prepared(x: Array, spec: str = "cka") -> Gram:
    factor = get(spec).recipe(as_samples(x))
    assert isinstance(factor, Gram)
    return factor


def from_matrix(factor: Gram, spec: str = "cka") -> CubicMoments:
    """Compute the sums from the Gram matrix of the scaled features."""
    x = factor.features[:].double().numpy()
    A = u_centred(gram(x, "rbf", sigma=factor.width) if "rbf" in spec else gram(x))
    return CubicMoments(len(A), float(np.sum(A**2)), float(np.trace(A @ A @ A)), float(np.sum(A**3)))


def skewed(rng: np.random.Generator, n: int, p: int) -> Array:
    """Draw a layer with few dominant directions, samples of very different norms, and nonzero means."""
    return rng.exponential(size=(n, 1)) ** 2 * rng.normal(size=(n, p)) / np.arange(1, p + 1) + rng.normal(size=p)


def close(sums: CubicMoments, expected: CubicMoments, rel: float) -> None:
    scale = expected.norm2**1.5
    assert sums.n == expected.n
    assert sums.norm2 == pytest.approx(expected.norm2, rel=rel)
    assert sums.triangles == pytest.approx(expected.triangles, rel=rel, abs=rel * scale)
    assert sums.cubes == pytest.approx(expected.cubes, rel=rel, abs=rel * scale)


@pytest.mark.parametrize("panel", [2048, 17])
@pytest.mark.parametrize("shape", [(5, 1), (6, 3), (6, 4), (6, 9), (40, 7), (40, 37), (40, 38), (40, 100), (300, 20)])
def test_moments_are_those_of_the_matrix(
    rng: np.random.Generator, tuned: Callable[..., None], shape: tuple[int, int], panel: int
) -> None:
    tuned(panel=panel)
    layers = [prepared(skewed(rng, *shape)), prepared(rng.normal(size=shape)), prepared(skewed(rng, shape[0], 2))]
    for layer, sums in zip(layers, cubic_moments(layers), strict=True):
        close(sums, from_matrix(layer), 1e-10)


def test_both_algorithms_agree(rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    layers = [prepared(skewed(rng, 50, p)) for p in (3, 47)]
    features = cubic_moments(layers)
    monkeypatch.setattr(null_moments, "_is_narrow", lambda _: False)
    for sums, expected in zip(cubic_moments(layers), features, strict=True):
        close(sums, expected, 1e-12)
        assert sums != expected  # computed by the other algorithm


def test_float32(rng: np.random.Generator) -> None:
    layers = [prepared(skewed(rng, 200, p).astype(np.float32)) for p in (5, 64, 300)]
    for layer, sums in zip(layers, cubic_moments(layers), strict=True):
        close(sums, from_matrix(layer), 2e-6)


def test_another_kernel(rng: np.random.Generator) -> None:
    layer = prepared(rng.normal(size=(30, 4)), "cka:kernel=rbf")
    close(cubic_moments([layer])[0], from_matrix(layer, "rbf"), 1e-10)


def test_no_layers_no_moments() -> None:
    assert cubic_moments([]) == []


@pytest.mark.parametrize("size", [1e2, 1e3, 1e4, 1e6])
def test_a_layer_dominated_by_one_sample(rng: np.random.Generator, size: float) -> None:
    x = rng.normal(size=(30, 3))
    x[4] *= size
    layer = prepared(x)
    close(cubic_moments([layer])[0], from_matrix(layer), 1e-7)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("p", [1, 2, 40])
def test_a_single_nonzero_sample_gives_nan(dtype: torch.dtype, p: int) -> None:
    single = torch.zeros(20, p, dtype=dtype)
    single[3] = torch.arange(1, p + 1)
    (sums,) = cubic_moments([prepared(single.numpy())])
    assert np.isnan([sums.norm2, sums.triangles, sums.cubes]).all()


def test_minibatches_are_refused(rng: np.random.Generator) -> None:
    layer = prepared(rng.normal(size=(20, 3)), "cka:estimator=minibatch,batch=5")
    with pytest.raises(InvalidInputError, match="divided into minibatches"):
        cubic_moments([layer])


def test_bits_do_not_depend_on_the_number_of_threads(rng: np.random.Generator) -> None:
    layers = [prepared(rng.normal(size=(150, p))) for p in (900, 120, 7)]
    sums = []
    for threads in (1, 2, 4):
        with torch_threads(threads):
            sums.append(cubic_moments(layers))
    assert sums[0] == sums[1] == sums[2]


def test_progress(rng: np.random.Generator) -> None:
    steps: list[tuple[int, int]] = []
    cubic_moments(
        [prepared(rng.normal(size=(20, 3))) for _ in range(2)], progress=lambda done, of: steps.append((done, of))
    )
    assert steps == [(1, 3), (2, 3), (3, 3)]
