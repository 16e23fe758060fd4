"""Standard errors and intervals: exact for means, joint draws, and coverage at the nominal level."""

from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from repsim.engine.uncertainty import (
    half_samples,
    influence,
    interval_of,
    jackknife,
    multiplier_bootstrap,
)
from repsim.errors import InvalidInputError
from repsim.metrics import get
from repsim.study.partial_cka import partial

Array = NDArray[np.float64]


def means_left_out(x: Array) -> Array:
    return np.stack([np.delete(x, i, axis=0).mean(0) for i in range(len(x))])


def test_everything_is_exact_for_a_mean(rng: np.random.Generator) -> None:
    """For a mean, influence is the deviation, the standard error s / sqrt(n), and the interval Student's."""
    x = rng.normal(size=(12, 3, 2))
    theta, left_out = x.mean(0), means_left_out(x)
    np.testing.assert_allclose(influence(theta, left_out), x - theta, atol=1e-13)
    interval = jackknife(theta, left_out, level=0.9)
    low, high = stats.t.interval(0.9, 11, theta, stats.sem(x))
    np.testing.assert_allclose(interval.se, stats.sem(x), rtol=1e-12)
    np.testing.assert_allclose([interval.low, interval.high], [low, high], rtol=1e-12)


def test_the_influence_is_the_derivative_by_the_weight_of_a_stimulus(rng: np.random.Generator) -> None:
    x = rng.normal(size=400) + 2
    theta = x.mean() ** 2
    left_out = means_left_out(x) ** 2
    np.testing.assert_allclose(influence(theta, left_out), 2 * x.mean() * (x - x.mean()), atol=0.05)


def test_a_difference_is_computed_from_replicates_first(rng: np.random.Generator) -> None:
    """Variation of the stimuli that affects both networks alike does not enter the error of their difference."""
    easy = rng.normal(size=200)
    a, b = easy + 0.1 * rng.normal(size=(2, 200))
    apart = jackknife(a.mean() - b.mean(), means_left_out(a) - means_left_out(b)).se
    assert apart == pytest.approx(stats.sem(a - b), rel=1e-12)
    draws = multiplier_bootstrap([a.mean(), b.mean()], np.stack([a - a.mean(), b - b.mean()], -1), 4000)
    assert interval_of(draws[:, 0] - draws[:, 1]).se == pytest.approx(float(apart), rel=0.05)


def test_the_bootstrap_is_its_formula(rng: np.random.Generator) -> None:
    influences, theta = rng.normal(size=(15, 2, 3)) + 1, rng.normal(size=(2, 3))
    draws = multiplier_bootstrap(theta, influences, 6, seed=3)
    weights = np.random.default_rng(3).standard_exponential((6, 15))
    for draw, w in zip(draws, weights, strict=True):
        moved = sum((w[i] - 1) * (influences[i] - influences.mean(0)) for i in range(15)) / 15
        np.testing.assert_allclose(draw, theta + moved, rtol=1e-12)


def test_draws_do_not_depend_on_how_many_are_made_at_once(rng: np.random.Generator, tuned: Callable[..., None]) -> None:
    influences = rng.normal(size=(20, 4))
    whole = multiplier_bootstrap(np.zeros(4), influences, 50)
    tuned(weights_at_once=70)
    np.testing.assert_allclose(multiplier_bootstrap(np.zeros(4), influences, 50), whole, atol=1e-14)


def test_separate_calls_draw_jointly(rng: np.random.Generator) -> None:
    influences = rng.normal(size=(20, 4))
    whole = multiplier_bootstrap(np.zeros(4), influences, 50, seed=7)
    alone = multiplier_bootstrap(0.0, influences[:, 2], 50, seed=7)
    np.testing.assert_allclose(alone, whole[:, 2], atol=1e-14)
    assert not np.allclose(multiplier_bootstrap(0.0, influences[:, 2], 50, seed=8), alone)


def test_draws_vary_together_as_the_stimuli_make_them(rng: np.random.Generator) -> None:
    x = rng.normal(size=(100, 3)) @ rng.normal(size=(3, 3))
    draws = multiplier_bootstrap(x.mean(0), x - x.mean(0), 40_000)
    expected = np.cov(x.T, ddof=0) / 100
    np.testing.assert_allclose(np.cov(draws.T), expected, atol=0.03 * expected.max())
    np.testing.assert_allclose(draws.mean(0), x.mean(0), atol=5 * x.std() / 10 / 200)


def test_percentiles(rng: np.random.Generator) -> None:
    draws = rng.permuted(np.tile(np.arange(201.0), (2, 1)), axis=1).T
    interval = interval_of(draws, 0.95)
    np.testing.assert_allclose([interval.low, interval.high], [[5, 5], [195, 195]], rtol=1e-12)
    np.testing.assert_allclose(interval.se, np.arange(201.0).std(ddof=1), rtol=1e-12)


def test_bad_input_is_refused() -> None:
    with pytest.raises(InvalidInputError, match="at least 2 replicates"):
        jackknife(0.0, [1.0])
    with pytest.raises(InvalidInputError, match=r"replicates of values \(2,\)"):
        influence([0.0, 1.0], np.ones((5, 3)))
    for level in (0, 1, 95):
        with pytest.raises(InvalidInputError, match="level between 0 and 1"):
            jackknife(0.0, [1.0, 2.0], level)
    with pytest.raises(InvalidInputError, match="at least 2 draws"):
        multiplier_bootstrap(0.0, [1.0, 2.0], 1)
    for m in (0, 10):
        with pytest.raises(InvalidInputError, match="fewer than the n stimuli"):
            half_samples(0.0, [1.0, 2.0], 10, m)


def with_each_left_out(layers: list[Array]) -> Array:
    """Compute debiased CKA of all pairs, (runs, 1 + n, L, L): on all samples, and without each of them."""
    n = layers[0].shape[1]
    kernels = []
    for x in layers:
        centred = x - x.mean(1, keepdims=True)
        K = centred @ centred.swapaxes(1, 2) * (1 - np.eye(n))
        m = K.sum(2, keepdims=True) / (n - 2) - K.sum((1, 2), keepdims=True) / (2 * (n - 1) * (n - 2))
        kernels.append((K - m - m.swapaxes(1, 2)) * (1 - np.eye(n)))
    rows = np.stack([np.stack([(A * B).sum(2) for B in kernels], -1) for A in kernels], -2)
    whole = rows.sum(1, keepdims=True)
    products = np.concatenate([whole, whole - 2 * (n - 2) / (n - 3) * rows], 1)
    norms = np.sqrt(np.diagonal(products, axis1=2, axis2=3))
    return np.asarray(products / norms[..., :, None] / norms[..., None, :])


def test_intervals_cover_what_infinitely_many_stimuli_would_give() -> None:
    """For n = 60, about 95 % of the intervals of CKA and partial CKA contain the values that the covariances imply."""
    rng = np.random.default_rng(5)
    d, p, n, runs = 4, 8, 60, 400
    mixing = rng.normal(size=(3, d, p))
    covariance = [[a.T @ b + np.eye(p) * (i == j) for j, b in enumerate(mixing)] for i, a in enumerate(mixing)]
    hsic = np.array([[(c**2).sum() for c in row] for row in covariance])
    true = hsic / np.sqrt(np.outer(hsic.diagonal(), hsic.diagonal()))
    expected = [true[0, 1], partial(true, [2])[0, 1]]

    signal = rng.normal(size=(runs, n, d))
    layers = [signal @ a + rng.normal(size=(runs, n, p)) for a in mixing]
    R = with_each_left_out(layers)
    x, y = layers[0][0], layers[1][0]
    assert R[0, 0, 0, 1] == pytest.approx(get("cka")(x, y), abs=1e-12)
    assert R[0, 8, 0, 1] == pytest.approx(get("cka")(np.delete(x, 7, 0), np.delete(y, 7, 0)), abs=1e-12)

    values = np.stack([R[..., 0, 1], partial(R, [2])[..., 0, 1]], -1).swapaxes(0, 1)  # (1 + n, runs, 2)
    theta, left_out = values[0], values[1:]
    draws = multiplier_bootstrap(theta, influence(theta, left_out), 500)
    for interval in (jackknife(theta, left_out), interval_of(draws)):
        covered = ((interval.low <= expected) & (expected <= interval.high)).mean(0)
        assert (covered > 0.92).all(), covered
        assert (covered < 0.98).all(), covered
