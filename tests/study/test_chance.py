"""Closed-form chance levels compared with all, or very many, permutations; corrections for multiple tests."""

import itertools
import math
from collections.abc import Callable

import numpy as np
import pytest
from scipy import integrate, stats

from repsim.engine.null_moments import CubicMoments, cubic_moments
from repsim.errors import InvalidInputError
from repsim.metrics import get
from repsim.metrics.base import Array, as_samples
from repsim.study.chance import (
    calibrated,
    null_sd,
    p_value,
    pearson3,
    skewness,
    threshold,
    within_classes,
    z_value,
)
from repsim.study.multiple_tests import benjamini_hochberg, holm
from tests.metrics.references import gram, u_centred


def cubic(*layers: Array) -> list[CubicMoments]:
    return cubic_moments([get("cka").recipe(as_samples(x)) for x in layers])


def over_every_permutation(x: Array, y: Array) -> Array:
    """Compute debiased CKA for all n! orders of the samples of y."""
    A, B = (K / np.linalg.norm(K) for K in (u_centred(gram(x)), u_centred(gram(y))))
    orders = np.array(list(itertools.permutations(range(len(x)))))
    return np.asarray(np.einsum("ij,kij->k", A, B[orders[:, :, None], orders[:, None]]))


LAYERS: dict[str, Callable[[np.random.Generator, int], Array]] = {
    "flat": lambda rng, n: rng.normal(size=(n, 20)),
    "narrow": lambda rng, n: rng.normal(size=(n, 2)),
    "one direction": lambda rng, n: rng.normal(size=(n, 1)),
    "one sample": lambda rng, n: rng.normal(size=(n, 3)) + 5 * np.eye(n)[0, :, None],
    "two classes": lambda rng, n: np.sign(np.arange(n) - n / 2 + 0.3)[:, None] + 0.1 * rng.normal(size=(n, 4)),
    "heavy": lambda rng, n: rng.exponential(size=(n, 9)) ** 3 / np.arange(1, 10),
}


@pytest.mark.parametrize("n", [4, 5, 6, 7])
@pytest.mark.parametrize("pair", list(itertools.combinations_with_replacement(LAYERS, 2)), ids="-".join)
def test_three_moments_are_those_of_every_permutation(rng: np.random.Generator, pair: tuple[str, str], n: int) -> None:
    x, y = (LAYERS[name](rng, n) for name in pair)
    values = over_every_permutation(x, y)
    assert values.mean() == pytest.approx(0, abs=1e-12)
    assert values.std() == pytest.approx(null_sd(n), rel=1e-12)
    third = skewness(*cubic(x, y)) * null_sd(n) ** 3
    assert third == pytest.approx(np.mean(values**3), abs=1e-12)


def test_skewness_needs_the_same_samples(rng: np.random.Generator) -> None:
    a, b = cubic(rng.normal(size=(6, 2)))[0], cubic(rng.normal(size=(7, 2)))[0]
    with pytest.raises(InvalidInputError, match="6 and 7 samples"):
        skewness(a, b)


def test_undefined_moments_have_no_skewness(rng: np.random.Generator) -> None:
    low_rank, full_rank = cubic(np.eye(20)[:, :2] * [1, 0], rng.normal(size=(20, 2)))
    assert math.isnan(skewness(low_rank, full_rank))
    assert math.isnan(pearson3(0.1, 20, skewness(low_rank, full_rank)))


@pytest.mark.parametrize("n", [-1, 0, 3])
def test_three_samples_have_no_null(n: int) -> None:
    with pytest.raises(InvalidInputError, match="at least 4 samples"):
        null_sd(n)


# Tails


def many_permutations(rng: np.random.Generator, x: Array, y: Array, count: int) -> Array:
    """Compute debiased CKA under random permutations, in feature space."""
    n = len(x)
    x, y = x - x.mean(0), y - y.mean(0)
    norms = [np.linalg.norm(u_centred(gram(z))) for z in (x, y)]
    g, h = (np.sum(z**2, 1) for z in (x, y))
    batches = []
    for size in [10_000] * (count // 10_000):
        orders = rng.permuted(np.tile(np.arange(n), (size, 1)), axis=1)
        products = x.T @ y[orders].swapaxes(0, 1).reshape(n, -1)
        squares = np.square(products).reshape(x.shape[1], size, -1).sum((0, 2))
        batches.append(squares - n / (n - 2) * (h[orders] @ g) + g.sum() * h.sum() / ((n - 1) * (n - 2)))
    return np.asarray(np.concatenate(batches) / np.prod(norms))


@pytest.mark.slow
@pytest.mark.parametrize("shape", ["heavy", "steep"])
def test_pearson3_has_the_tail_of_permutations_where_the_normal_distribution_fails(
    rng: np.random.Generator, shape: str
) -> None:
    """Two strong directions of 100 samples: true p-values of 0.05, 0.01 and 0.001, from 200,000 permutations."""
    x, y = (
        np.concatenate([5 * rng.normal(size=(100, 1)), rng.normal(size=(100, 2))], 1)
        if shape == "steep"
        else rng.standard_t(6, size=(100, 3)) * [3, 1, 0.3]
        for _ in range(2)
    )
    values = many_permutations(rng, x, y, 200_000)
    gamma = skewness(*cubic(x, y))
    assert gamma > 2
    for true in (0.05, 0.01, 0.001):
        p = float(pearson3(np.quantile(values, 1 - true), 100, gamma))
        assert true / 1.5 < p < true * 1.5
    far = np.quantile(values, 0.999)
    assert pearson3(far, 100, 0) < 1e-5  # the normal distribution: at least a hundred times too small


def test_pearson3_is_scipys(rng: np.random.Generator) -> None:
    """Compare both signs of the skewness, the limit 0, and both tails; arguments are broadcast."""
    gammas = np.array([-2.5, -1, -0.1, -1e-3, 0, 1e-3, 0.1, 1, 2.5])
    values = null_sd(500) * np.linspace(-4, 4, 33)[:, None]
    expected = np.array([[stats.pearson3.sf(z, gamma) for gamma in gammas] for z in z_value(values, 500)[:, 0]])
    inside = expected > 0
    p = pearson3(values, 500, gammas)
    np.testing.assert_allclose(p[inside], expected[inside], rtol=1e-6)
    assert (~inside).any()
    assert (p[~inside] > 0).all()


def pearson3_tail(z: float, gamma: float) -> float:
    """Integrate the density of the Pearson III distribution numerically."""
    k = 4 / gamma**2
    peak = math.exp((k - 0.5) * math.log(k) - k - math.lgamma(k))

    def density(u: float) -> float:
        half = gamma * u / 2
        return peak * math.exp((k - 1) * math.log1p(half) - k * half) if half > -1 else 0.0

    cuts = np.linspace(z, max(0, z) + 12, 61)
    parts = [integrate.quad(density, *cut, epsabs=0, epsrel=1e-10)[0] for cut in itertools.pairwise(cuts)]
    return float(np.sum(parts))


@pytest.mark.parametrize("gamma", [0.3, 0.1, 0.021, 0.019, 0.01, 0.003, 0.001])
def test_pearson3_far_out(gamma: float) -> None:
    """With little skewness the incomplete Gamma functions of SciPy fail beyond z = 4.5."""
    n = 10_000
    for sign in (-1, 1):
        for z in (-6, -3, -1.01, -0.99, 0.5, 3, 5, 8, 20):
            p = float(pearson3(z * null_sd(n), n, sign * gamma))
            if sign * gamma * z / 2 > -1:
                expected = pearson3_tail(z, sign * gamma)
                assert p == pytest.approx(expected, rel=2e-5, abs=0), (sign, z)


@pytest.mark.parametrize("gamma", [1e-5, 1e-7, 2e-8, 9e-9, 1e-12])
def test_hardly_any_skewness_is_next_to_none(gamma: float) -> None:
    """The normal tail plus the first Edgeworth term: far out, the skewness adds a share gamma z^3 / 6."""
    for sign in (-1, 1):
        for z in (-3, -1.01, -0.99, 0, 0.99, 1.01, 3, 6):
            value = z * null_sd(100)
            normal = float(pearson3(value, 100, 0))
            added = sign * gamma / 6 * (z**2 - 1) * math.exp(-(z**2) / 2) / math.sqrt(2 * math.pi)
            assert float(pearson3(value, 100, sign * gamma)) == pytest.approx(normal + added, rel=1e-5, abs=0), z


def test_no_value_is_less_likely_than_one_ordering_of_all() -> None:
    assert float(pearson3(0.99, 5, 0)) > 1 / 120
    assert float(pearson3(1.0, 6, -2)) == pytest.approx(1 / 720)  # beyond the support of the distribution
    for gamma in (-0.3, 0, 0.01):
        assert 0 < float(pearson3(1.0, 10_000, gamma)) < 1e-300
    assert float(pearson3(-0.5, 100, 1.5)) == 1
    assert np.isnan(pearson3([np.nan, 0.1], 10, [0.1, np.nan])).all()


# Permutations


def test_p_value_is_never_0_and_counts_ties(rng: np.random.Generator) -> None:
    permuted = np.array([[1.0, 5], [2, 5], [3, 1], [4, 2]])
    np.testing.assert_array_equal(p_value([2.0, 9.0], permuted), [4 / 5, 1 / 5])
    values = p_value(np.full(3, 1e9), rng.normal(size=(99, 3)))
    np.testing.assert_array_equal(values, 0.01)
    permuted[1, 1] = np.nan
    assert np.isnan(p_value([2.0, 9.0], permuted)).tolist() == [False, True]
    assert np.isnan(p_value(np.nan, [1.0, 2]))


def test_p_values_are_uniform_under_the_null() -> None:
    """T and T_1 ... T_K in any order: each p-value k / (K + 1) is equally likely."""
    ps = [float(p_value(order[0], order[1:])) for order in itertools.permutations(range(5))]
    values, counts = np.unique(ps, return_counts=True)
    np.testing.assert_allclose(values, [0.2, 0.4, 0.6, 0.8, 1])
    assert set(counts.tolist()) == {24}


@pytest.mark.parametrize("alpha", [0.05, 0.1, 0.3, 0.013])
@pytest.mark.parametrize("count", [9, 19, 99, 998])
def test_the_threshold_is_exceeded_where_p_is_at_most_alpha(rng: np.random.Generator, count: int, alpha: float) -> None:
    permuted = rng.normal(size=(count, 200))
    observed = np.concatenate([rng.normal(size=100), rng.normal(size=100) + 3])
    tau = threshold(observed, permuted, alpha)
    np.testing.assert_array_equal(observed > tau, p_value(observed, permuted) <= alpha + 1e-12)
    everything = np.sort(np.concatenate([observed[None], permuted]), 0)
    assert (everything == tau).any(0).all()


def test_threshold_by_hand() -> None:
    assert threshold(10.0, np.arange(1.0, 10), 0.1) == 9
    assert threshold(10.0, np.arange(1.0, 10), 0.7) == 3  # the 3rd of 10, though (1 - 0.7) x 10 > 3 in floating point
    assert threshold(0.5, np.arange(1.0, 20), 0.05) == 18
    assert np.isnan(threshold([1.0, np.nan], np.ones((3, 2)))).tolist() == [False, True]
    for alpha in (0, 1, -1):
        with pytest.raises(InvalidInputError, match="alpha is a probability"):
            threshold(1.0, [1.0], alpha)


@pytest.mark.parametrize("function", [p_value, threshold])
def test_permuted_values_are_of_the_observed_shape(function: Callable[..., Array]) -> None:
    for observed, permuted in ((1.0, 2.0), ([1.0, 2], [1.0, 2]), (1.0, []), ([1.0], [[1.0, 2]])):
        with pytest.raises(InvalidInputError, match="expected permuted values of shape"):
            function(observed, permuted)


def test_calibrated_by_hand() -> None:
    values = calibrated([0.2, 0.6, 1.0, -0.3, np.nan, 0.5, 1.0], [0.2, 0.2, 0.2, -0.5, 0, np.nan, 1])
    np.testing.assert_allclose(values, [0, 0.5, 1, 0.2 / 1.5, np.nan, np.nan, np.nan], atol=1e-15)
    assert calibrated(-0.9, 0.1) == 0


# Many tests


def test_holm_by_hand() -> None:
    """Four sorted p-values times 4, 3, 2, 1, made non-decreasing: the third equals the second."""
    np.testing.assert_allclose(holm([0.01, 0.04, 0.03, 0.005]), [0.03, 0.06, 0.06, 0.02])
    np.testing.assert_allclose(holm([[0.5, 0.6], [np.nan, 0.02]]), [[1.0, 1.0], [np.nan, 0.06]])


def test_benjamini_hochberg_by_hand() -> None:
    """Sorted p-values times 4/1, 4/2, 4/3, 4/4, made non-increasing from the largest down."""
    np.testing.assert_allclose(benjamini_hochberg([0.01, 0.04, 0.03, 0.005]), [0.02, 0.04, 0.04, 0.02])
    np.testing.assert_allclose(
        benjamini_hochberg([[0.5, 0.6], [np.nan, 0.02]]), [[0.6, 0.6], [np.nan, 0.06]], rtol=1e-12
    )


def test_benjamini_hochberg_is_scipys_and_holm_is_slower_to_reject(rng: np.random.Generator) -> None:
    p = rng.uniform(size=50) ** 3
    np.testing.assert_allclose(benjamini_hochberg(p), stats.false_discovery_control(p), rtol=1e-12)
    assert (holm(p) >= benjamini_hochberg(p)).all()
    assert (holm(p) <= np.minimum(1, 50 * p)).all()  # Bonferroni


@pytest.mark.parametrize("adjust", [holm, benjamini_hochberg])
def test_adjusted_p_values(adjust: Callable[[object], Array]) -> None:
    p = np.array([0.2, 0.1])
    adjust(p)
    assert p.tolist() == [0.2, 0.1]  # the argument is not changed
    assert adjust(0.3) == 0.3
    assert adjust([]).shape == (0,)
    assert np.isnan(adjust([np.nan, np.nan])).all()
    for bad in (-0.1, 1.1):
        with pytest.raises(InvalidInputError, match="between 0 and 1"):
            adjust([0.5, bad])


# Within classes


def test_samples_stay_in_their_class_and_all_orders_are_equally_likely() -> None:
    labels = np.array(["b", "a", "b", "c", "a", "b"])
    orders = within_classes(labels, 6000, seed=3)
    assert (labels[orders] == labels).all()
    distinct, counts = np.unique(orders, axis=0, return_counts=True)
    assert len(distinct) == math.factorial(3) * math.factorial(2)
    assert (np.sort(distinct, 1) == np.arange(6)).all()
    assert np.abs(counts - 500).max() < 4 * np.sqrt(6000 * 11 / 144)
    np.testing.assert_array_equal(orders, within_classes(labels, 6000, seed=3))
    assert (orders != within_classes(labels, 6000, seed=4)).any()


def test_classes_of_one_leave_nothing_to_permute() -> None:
    with pytest.raises(InvalidInputError, match="all 3 samples are of different classes"):
        within_classes(["a", "b", "c"], 5)
    with pytest.raises(InvalidInputError, match="all 0 samples"):
        within_classes([], 5)
    for labels, count in (([[0, 0]], 1), ([0, 0], 0)):
        with pytest.raises(InvalidInputError, match="at least 1 permutation"):
            within_classes(labels, count)
