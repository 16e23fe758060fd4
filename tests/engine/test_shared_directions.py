"""Test that truncated layers keep their Gram matrices up to the stated error bound."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch

from repsim.engine.shared_directions import LowRankFeatures, leading_components, truncate, truncate_jointly
from repsim.errors import InvalidInputError, TooLittleMemoryError
from repsim.metrics import get
from repsim.metrics.base import Array, as_samples
from repsim.metrics.recipes.gram import Gram

BIASED = get("cka:estimator=biased")


def prepared(x: Array) -> Gram:
    factor = BIASED.recipe(as_samples(x))
    assert isinstance(factor, Gram)
    return factor


def decaying(rng: np.random.Generator, n: int, p: int, power: float = 1.0) -> Array:
    """Draw a layer with a signal that all layers share, and decreasing singular values."""
    signal = np.random.default_rng(7).normal(size=(n, 5)) @ rng.normal(size=(5, p))
    u, _, vt = np.linalg.svd(signal + 2 * rng.normal(size=(n, p)), full_matrices=False)
    return np.asarray(u * np.arange(1, min(n, p) + 1.0) ** -power @ vt + rng.normal(size=p))


def spectrum(x: Array) -> Array:
    return np.asarray(np.linalg.svd(x - x.mean(0), compute_uv=False))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("shape", [(100, 30), (40, 40), (30, 100)])
@pytest.mark.parametrize("share", [0.5, 0.99, 0.9999])
def test_the_truncation_is_the_best_approximation_of_its_rank(
    rng: np.random.Generator, shape: tuple[int, int], share: float, dtype: type
) -> None:
    x: Array = decaying(rng, *shape).astype(dtype)
    full, reduced = prepared(x), truncate(prepared(x), share)
    s4 = spectrum(full.features[:].double().numpy()) ** 4
    assert reduced.p == np.flatnonzero(s4.cumsum() >= share * s4.sum())[0] + 1
    K, K_r = (g.features[:].double() @ g.features[:].double().T for g in (full, reduced))
    tolerance = 1e-6 if dtype is np.float32 else 1e-12
    assert float((K - K_r).square().sum()) == pytest.approx(s4[reduced.p :].sum(), rel=1e-3, abs=tolerance * s4.sum())
    assert reduced.dtype == full.dtype
    torch.testing.assert_close(reduced.squared_norms, K_r.diagonal(), rtol=1e-12, atol=0)
    assert float(reduced.features[:].sum(0).abs().max()) < 1e-5  # still centred


@pytest.mark.parametrize("shapes", [(60, 20, 90), (60, 100, 30), (60, 80, 80)])
@pytest.mark.parametrize("share", [0.6, 0.9, 0.99, 0.9999])
def test_error_bound(rng: np.random.Generator, shapes: tuple[int, int, int], share: float) -> None:
    n, *widths = shapes
    for power in (1.5, 2.5):
        full = [prepared(decaying(rng, n, p, power)) for p in widths]
        reduced = [truncate(layer, share) for layer in full]
        norms = [[float(np.sum(spectrum(z.features[:].numpy()) ** 4)) for z in side] for side in (reduced, full)]
        kept = [math.sqrt(part / all_) for part, all_ in zip(*norms, strict=True)]
        assert all(math.sqrt(share) <= c < 1 for c in kept)
        bound = sum(map(math.acos, kept))
        error = abs(math.acos(BIASED.pair(*full)) - math.acos(BIASED.pair(*reduced)))
        assert 1e-9 < error <= bound
        for a, b, c in zip(full, reduced, kept, strict=True):
            assert BIASED.pair(a, b) == pytest.approx(c, abs=1e-12)


def test_share_1_keeps_the_layer(rng: np.random.Generator) -> None:
    x, y = decaying(rng, 50, 10), decaying(rng, 50, 70)
    for metric in (get("cka"), BIASED):
        full, reduced = [prepared(x), prepared(y)], [truncate(prepared(z), share=1.0) for z in (x, y)]
        assert reduced[0].p == 10
        assert metric.pair(*reduced) == pytest.approx(metric.pair(*full), abs=1e-12)


def test_one_direction_is_one_feature(rng: np.random.Generator) -> None:
    assert truncate(prepared(np.outer(rng.normal(size=30), np.arange(1, 5)))).p == 1


@pytest.mark.parametrize("share", [0.9, 0.999, 0.9999])
@pytest.mark.parametrize("power", [0.0, 0.3, 1.0, 2.0])
def test_leading_components_are_those_of_a_full_decomposition(
    rng: np.random.Generator, power: float, share: float
) -> None:
    """Spectra that hardly decrease need more components than the subspace holds, and are decomposed completely."""
    Q = np.linalg.qr(rng.normal(size=(300, 300)))[0]
    C = torch.from_numpy((Q * np.arange(1, 301.0) ** -power) @ Q.T).float()
    exact = np.linalg.eigvalsh(C.double().numpy())[::-1]
    r = int((np.square(exact).cumsum() < share * np.square(exact).sum()).sum()) + 1
    values, vectors = leading_components(C, share)
    assert vectors.shape == (300, r)
    np.testing.assert_allclose(values.numpy(), exact[:r], rtol=1e-3)
    torch.testing.assert_close(vectors.T @ vectors, torch.eye(r, dtype=torch.float64), rtol=0, atol=1e-5)
    kept = float((vectors.T @ C.double() @ vectors).square().sum())
    assert kept == pytest.approx(np.square(exact[:r]).sum(), rel=1e-5)


@pytest.mark.parametrize("shape", [(90, 60), (60, 90)])
def test_large_layers_are_truncated_as_small_ones(
    rng: np.random.Generator, shape: tuple[int, int], tuned: Callable[..., None]
) -> None:
    layer = prepared(decaying(rng, *shape).astype(np.float32))
    expected, everything = truncate(layer, 0.999), truncate(layer, 1.0)
    tuned(squared_from=50)
    reduced = truncate(layer, 0.999)
    assert reduced.p == expected.p
    K, K_r = (g.features[:].double() @ g.features[:].double().T for g in (expected, reduced))
    torch.testing.assert_close(K_r, K, rtol=0, atol=2e-4 * float(K.abs().max()))
    assert torch.equal(truncate(layer, 1.0).features[:], everything.features[:])  # in float64, whatever its size


def test_other_kernels_and_shares_are_refused(rng: np.random.Generator) -> None:
    x = as_samples(rng.normal(size=(20, 3)))
    for spec in ("cka:kernel=rbf", "cka:estimator=minibatch,batch=5"):
        with pytest.raises(InvalidInputError, match="linear kernel of all samples"):
            truncate(get(spec).recipe(x))
    for share in (0.0, -1.0, 1.01, math.nan):
        with pytest.raises(InvalidInputError, match="share has to be"):
            truncate(get("cka").recipe(x), share)


def one_network(rng: np.random.Generator, n: int = 80) -> list[Gram]:
    """Draw layers of several widths that share most of their variance."""
    shared = rng.normal(size=(n, 12)) * np.arange(1, 13) ** -0.5
    widths = (6, 40, 100)
    return [prepared(shared @ rng.normal(size=(12, p)) + 0.1 * rng.normal(size=(n, p))) for p in widths]


@pytest.mark.parametrize("share", [0.9, 0.999, 0.9999])
def test_joint_truncation_keeps_the_share_of_every_layer_in_the_fewest_directions(
    rng: np.random.Generator, share: float
) -> None:
    layers = one_network(rng)
    reduced = truncate_jointly(layers, share)
    features = [layer.features for layer in reduced]
    assert all(isinstance(x, LowRankFeatures) for x in features)
    (Q,) = {id(x.directions): x.directions for x in features if isinstance(x, LowRankFeatures)}.values()
    torch.testing.assert_close(Q.T @ Q, torch.eye(Q.shape[1], dtype=torch.float64), rtol=0, atol=1e-10)
    alone = [truncate(layer, share) for layer in layers]
    assert Q.shape[1] < sum(layer.p for layer in alone) or len(layers) == 1
    kept = []
    for single, joint in zip(alone, reduced, strict=True):
        K, K_r = (g.features[:].double() @ g.features[:].double().T for g in (single, joint))
        scale = torch.linalg.matrix_norm(K)
        projected = Q @ Q.T @ K @ Q @ Q.T
        kept.append(float(torch.linalg.matrix_norm(projected) / scale) ** 2)
        torch.testing.assert_close(K_r / torch.linalg.matrix_norm(K_r), projected / torch.linalg.matrix_norm(projected))
        torch.testing.assert_close(joint.squared_norms, K_r.diagonal(), rtol=1e-12, atol=1e-15)
    assert min(kept) >= share
    smaller = [Q[:, :-1] @ Q[:, :-1].T for _ in alone]
    left = [
        float(torch.linalg.matrix_norm(P @ K @ P) / torch.linalg.matrix_norm(K)) ** 2
        for P, K in zip(smaller, (g.features[:].double() @ g.features[:].double().T for g in alone), strict=True)
    ]
    assert min(left) < share  # one direction less does not keep the share


def test_joint_truncation_stops_at_a_memory_limit(rng: np.random.Generator) -> None:
    """Before a layer is truncated, whose matrices would take more; or after, if there are too many components."""
    few, many = ([prepared(decaying(rng, 80, 30)) for _ in range(2)], [prepared(rng.normal(size=(80, 60)))] * 40)
    with pytest.raises(TooLittleMemoryError, match=r"leading components takes .* allowed are 1 kB"):
        truncate_jointly(few, memory=1000)
    enough = 2**20
    assert len(truncate_jointly(few, memory=enough)) == 2
    with pytest.raises(TooLittleMemoryError):
        truncate_jointly(many, memory=enough)
    assert len(truncate_jointly(many)) == 40


def test_joint_truncation_changes_values_little(rng: np.random.Generator) -> None:
    layers = [*one_network(rng), prepared(decaying(rng, 80, 30))]
    reduced = truncate_jointly(layers)
    for i, a in enumerate(layers):
        for j, b in enumerate(layers):
            assert get("cka").pair(reduced[i], reduced[j]) == pytest.approx(get("cka").pair(a, b), abs=2e-3)
