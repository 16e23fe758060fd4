"""Similarity matrices: chance by enumeration, ties, duplicates, tiles, and the largest eigenvalue."""

import itertools
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import rankdata, spearmanr

from repsim import compare
from repsim.errors import UndefinedValueError, UnknownNameError, UnreliableValueWarning
from repsim.metrics import get
from repsim.metrics.algorithms.gram_space import GramSweep
from repsim.metrics.base import Array, as_samples
from repsim.metrics.rsm import RSA, DistanceCorrelation, RSMDifference, average_ranks, spectral_norm
from repsim.stores.writer import write_store
from repsim.testing.examples import RowsOnDisk, related_layers
from tests.metrics.references import cosine
from tests.metrics.references_rsm import distance_correlation, euclidean, rsa, rsm_difference


def centred_distances(x: Array) -> Array:
    """Return distances from inner products in float64, for many samples."""
    g = (x**2).sum(1)
    d = np.sqrt((g[:, None] + g - 2 * x @ x.T).clip(0) * (1 - np.eye(len(x))))
    return np.asarray(d - d.mean(0) - d.mean(1, keepdims=True) + d.mean())


# Distance correlation


def test_distances_are_no_kernel_of_cka() -> None:
    with pytest.raises(UnknownNameError, match="unknown value of kernel 'distance'"):
        get("cka:kernel=distance")


def test_it_sees_what_is_not_linear(rng: np.random.Generator) -> None:
    x = rng.normal(size=(1000, 1))
    assert get("cka")(x, x**2 - 1) < 0.05
    assert DistanceCorrelation()(x, x**2) > 0.45


def test_independent_designs_give_zero_and_no_root_of_a_rounding_error() -> None:
    """Every pair of levels equally often: the square is 0, give or take a rounding error of either sign."""
    for levels in range(2, 7):
        x, y = np.indices((levels, levels)).reshape(2, -1, 1)
        assert DistanceCorrelation()(x / 3, y / 7) == pytest.approx(0, abs=1e-7)


def test_no_value_is_the_root_of_a_negative_number() -> None:
    values = DistanceCorrelation().finish(np.array([-1e-17, 0.25, np.nan]))
    np.testing.assert_array_equal(values, [0, 0.5, np.nan])


@pytest.mark.parametrize("both", [False, True])
@pytest.mark.slow
def test_duplicates_keep_their_digits_in_float32(rng: np.random.Generator, both: bool) -> None:
    """Distances of 0, from float32 products alone, are off by their root: 1e-5 of the value here."""
    label = rng.integers(0, 3, size=800)
    x = rng.normal(size=(3, 300))[label].astype(np.float32)
    y = (
        x[:, :50] + 0.3 * rng.normal(size=(3, 50))[rng.integers(0, 3, size=800)]
        if both
        else related_layers(rng, 800, 64)[0]
    )
    y = y.astype(np.float32)
    exact = distance_correlation(x.astype(np.float64), y.astype(np.float64))
    assert DistanceCorrelation()(x, y) == pytest.approx(exact, abs=1e-7)


@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float64, 1e-11), (np.float32, 1e-7)])
def test_many_tiles(rng: np.random.Generator, dtype: type[np.floating[Any]], tolerance: float) -> None:
    x, y = (layer.astype(dtype) for layer in related_layers(rng, 2100, 3, 8))
    exact = math.sqrt(cosine(*(centred_distances(side.astype(np.float64)) for side in (x, y))))
    assert DistanceCorrelation()(x, y) == pytest.approx(exact, abs=tolerance)


def clustered(rng: np.random.Generator, n: int, p: int) -> Array:
    """Near and exact duplicates: three clusters, and every sample of a cluster there twice."""
    centres, jitter = rng.normal(size=(3, p)), 1e-4 * rng.normal(size=(n // 2, p))
    return np.repeat(centres[rng.integers(0, 3, size=n // 2)] + jitter, 2, axis=0)


@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float64, 1e-12), (np.float32, 1e-7)])
@pytest.mark.parametrize(("panel", "tile"), [(40, 40), (40, 7), (17, 17), (13, 5), (3, 1)])
def test_any_cut_of_a_sweep(rng: np.random.Generator, panel: int, tile: int, dtype: Any, tolerance: float) -> None:
    """The dense formula holds for layers in memory and in files, with duplicates and without."""
    layers = [layer.astype(dtype) for layer in (*related_layers(rng, 40, 3, 50), clustered(rng, 40, 30))]
    metric = DistanceCorrelation()
    factors = [metric.recipe(as_samples(layers[0])), *(metric.recipe(RowsOnDisk(layer)) for layer in layers[1:])]
    (values,) = GramSweep(factors, factors[::-1], [metric], panel=panel, tile=tile).run()
    exact = [layer.astype(np.float64) for layer in layers]
    expected = [[distance_correlation(x, y) for y in exact[::-1]] for x in exact]
    np.testing.assert_allclose(values, expected, rtol=0, atol=tolerance)


def test_stores_are_compared_as_arrays_are(tmp_path: Path, rng: np.random.Generator) -> None:
    rows, columns = related_layers(rng, 40, 3, 20), [*related_layers(rng, 40, 4), clustered(rng, 40, 6)]
    a, b = (
        write_store(tmp_path / f"{name}.h5", {f"l{k}": x for k, x in enumerate(side)}, model=name)
        for name, side in (("a", rows), ("b", columns))
    )
    expected = [[distance_correlation(x, y) for y in columns] for x in rows]
    values = compare(a, b, ["distance_correlation"])["distance_correlation"].values
    np.testing.assert_allclose(values, expected, rtol=0, atol=1e-11)


def test_duplicates_keep_their_digits_in_float64(rng: np.random.Generator) -> None:
    """A distance of 0 is not the root of a rounding error, 1e-8, which a sum over all duplicates would show."""
    x, y = np.eye(4)[rng.integers(0, 4, size=60)] + 0.1, rng.normal(size=(60, 3))
    for side in (x, clustered(rng, 60, 20)):
        assert DistanceCorrelation()(side, y) == pytest.approx(distance_correlation(side, y), abs=1e-12)
        turned = side @ np.linalg.qr(rng.normal(size=(side.shape[1],) * 2))[0]
        assert RSMDifference()(side, turned) == pytest.approx(0, abs=1e-11)
        assert RSMDifference()(side, y) == pytest.approx(rsm_difference(side, y), rel=1e-12)


def test_of_equal_distances_every_order_is_the_same(rng: np.random.Generator) -> None:
    """Centred they are a projection, not nothing: the value is its chance level."""
    x, y = np.eye(12), rng.normal(size=(12, 3))
    metric = DistanceCorrelation()
    chance = metric.chance(*(metric.recipe(as_samples(side)) for side in (x, y)))
    assert chance is not None
    assert metric(x, y) == pytest.approx(distance_correlation(x, y), abs=1e-12)
    assert metric(x, y) == pytest.approx(chance.mean, abs=1e-12)
    assert metric(x, 3 * x) == pytest.approx(1, abs=1e-12)


def test_with_a_gradient_too_no_value_is_the_root_of_a_negative_number() -> None:
    for levels in range(2, 7):
        x, y = (torch.from_numpy(side) for side in np.indices((levels, levels)).reshape(2, -1, 1) / 3)
        value = DistanceCorrelation()(x.requires_grad_(), y)
        assert float(value.detach()) == pytest.approx(0, abs=1e-7)


def test_the_mean_square_over_every_permutation(rng: np.random.Generator) -> None:
    """Is that of the chance level exactly, for any data; so the mean is below."""
    n, metric = 6, DistanceCorrelation()
    x, y = rng.normal(size=(n, 3)), rng.exponential(size=(n, 5)) ** 2
    a, b = (metric.recipe(as_samples(side)) for side in (x, y))
    orders = itertools.permutations(range(n))
    values = metric.block([a], [metric.recipe(as_samples(y[list(order)])) for order in orders])
    chance = metric.chance(a, b)
    assert chance is not None
    assert not chance.exact
    assert (values**2).mean() == pytest.approx(chance.mean**2, rel=1e-12)
    assert values.mean() < chance.mean


def test_the_centred_kernel_is_positive_semidefinite(rng: np.random.Generator) -> None:
    """As -d is on vectors that sum to 0 (Schoenberg): what is made of Gram matrices can be made of it."""
    (x,) = related_layers(rng, 30, 4)
    values = torch.linalg.eigvalsh(DistanceCorrelation().recipe(as_samples(x)).centred())
    assert values.min() > -1e-12
    assert values.max() > 1


def test_more_features_than_samples_warn(rng: np.random.Generator) -> None:
    x, y = related_layers(rng, 20, 4, 21)
    with pytest.warns(UnreliableValueWarning, match=r"n = 20 samples but 21 features: .* 2,100 samples, with which"):
        DistanceCorrelation()(x, y)
    DistanceCorrelation()(x, y[:, :20])  # warnings are errors here: this one must not warn


# RSA


@given(st.lists(st.integers(-5, 5), min_size=1, max_size=50))
def test_average_ranks(values: list[int]) -> None:
    np.testing.assert_array_equal(average_ranks(torch.tensor(values)), rankdata(values))


@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float64, 1e-11), (np.float32, 1e-6)])
def test_rsa_of_many_samples(rng: np.random.Generator, dtype: type[np.floating[Any]], tolerance: float) -> None:
    """More than one panel, and more pairs than are multiplied at once."""
    n = 700
    x, y, z = (layer.astype(dtype) for layer in related_layers(rng, n, 20, 30, 4))
    above = np.triu_indices(n, 1)
    x64, y64, z64 = (np.asarray(np.corrcoef(layer.astype(np.float64)))[above] for layer in (x, y, z))
    metric = RSA()
    a, b, c = (metric.recipe(as_samples(layer)) for layer in (x, y, z))
    assert a.nbytes == n * (n - 1) // 2 * np.dtype(dtype).itemsize
    expected = [[spearmanr(u, v).statistic for v in (y64, z64)] for u in (x64, z64)]
    np.testing.assert_allclose(metric.block([a, c], [b, c]), expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_ties_are_ties(rng: np.random.Generator, dtype: type[np.floating[Any]]) -> None:
    """Labels have two correlations, and samples of two features have 1 and -1: rounding errors would order them."""
    n = 60
    labels = np.eye(7)[rng.integers(0, 7, size=n)].astype(dtype)
    pairs = rng.normal(size=(n, 2)).astype(dtype)
    layer = related_layers(rng, n, 9)[0].astype(dtype)
    for tied in (labels, pairs):
        exact = rsa(tied.astype(np.float64), layer.astype(np.float64))
        assert RSA()(tied, layer) == pytest.approx(exact, abs=1e-9 if dtype == np.float64 else 1e-6)


@pytest.mark.slow
def test_rsa_over_every_permutation(rng: np.random.Generator) -> None:
    """Mean exactly 0, and the variance of the docstring exactly, for any data; hubs or none."""
    n, metric = 6, RSA()
    skewed = rng.exponential(size=(n, 4)) ** 2
    for x, y in ((rng.normal(size=(n, 5)), skewed), (skewed, skewed[::-1] + 0.1 * rng.normal(size=(n, 4)))):
        a, b = (metric.recipe(as_samples(side)) for side in (x, y))
        orders = itertools.permutations(range(n))
        values = metric.block([a], [metric.recipe(as_samples(y[list(order)])) for order in orders])
        chance = metric.chance(a, b)
        assert values.mean() == pytest.approx(0, abs=1e-12)
        assert chance.sd is not None
        assert values.var() == pytest.approx(chance.sd**2, rel=1e-9)


def test_samples_without_a_correlation_are_counted(rng: np.random.Generator) -> None:
    x, y = (layer.astype(np.float32) for layer in related_layers(rng, 30, 6, 1))
    with pytest.raises(UndefinedValueError, match="single feature"):
        RSA()(x, y)
    dead = x.copy()
    dead[3], dead[8] = 0, 0.1
    with pytest.raises(UndefinedValueError, match="2 of 30 samples have features that are all equal"):
        RSA()(dead, x)
    with pytest.raises(UndefinedValueError, match="equally correlated"):
        RSA()(np.outer(np.arange(1.0, 31), [1, 2, 4]), x)


def test_rsa_of_huge_and_of_tiny_features(rng: np.random.Generator) -> None:
    x, y = related_layers(rng, 30, 6, 7)
    value = RSA()(x, y)
    assert RSA()(x * 1e200, y * 1e-200) == pytest.approx(value, abs=1e-12)


# RSM difference


@pytest.mark.parametrize("sign", [1, -1])
def test_from_512_samples_on_the_largest_eigenvalue_alone_is_found(rng: np.random.Generator, sign: int) -> None:
    x, y = related_layers(rng, 600, 9, 20)
    difference = euclidean(x) - euclidean(y)
    values = np.linalg.eigvalsh(difference)
    assert RSMDifference()(x, y) == pytest.approx(np.abs(values).max(), rel=1e-12)
    assert float(spectral_norm(torch.from_numpy(sign * difference))) == pytest.approx(np.abs(values).max(), rel=1e-12)
    assert RSMDifference()(x, x) == 0


@pytest.mark.parametrize("n", [511, 512])
def test_spectra_in_which_nothing_leads(rng: np.random.Generator, n: int) -> None:
    signs = rng.choice([-3.0, 3.0], size=n)
    noise = rng.normal(size=(n, n))
    q = np.linalg.qr(noise)[0]
    for matrix in (np.zeros((n, n)), 3 * np.eye(n), np.diag(signs), q * signs @ q.T, noise + noise.T):
        symmetric = torch.from_numpy((matrix + matrix.T) / 2)
        expected = float(torch.linalg.eigvalsh(symmetric).abs().max())
        assert float(spectral_norm(symmetric)) == pytest.approx(expected, rel=1e-9, abs=1e-12)


def test_layers_that_are_alike_keep_the_digits_of_their_difference(rng: np.random.Generator) -> None:
    """The features are float32; distances in float32 would leave 4 of 7 digits here."""
    (x,) = related_layers(rng, 256, 64)
    near = x + 1e-3 * rng.normal(size=x.shape)
    x, near = x.astype(np.float32), near.astype(np.float32)
    exact = np.linalg.norm(euclidean(x.astype(np.float64)) - euclidean(near.astype(np.float64)), 2)
    assert RSMDifference()(x, near) == pytest.approx(exact, rel=1e-9)


def test_the_gradient_of_many_samples(rng: np.random.Generator) -> None:
    """By Lanczos iteration, too: along a direction, by finite differences."""
    x, y = (torch.from_numpy(layer) for layer in related_layers(rng, 520, 4, 5))
    direction = torch.from_numpy(rng.normal(size=x.shape))
    tracked = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(RSMDifference()(tracked, y), tracked)
    step = 1e-6
    slope = (RSMDifference()(x + step * direction, y) - RSMDifference()(x - step * direction, y)) / (2 * step)
    assert float((gradient * direction).sum()) == pytest.approx(slope, rel=1e-6)
