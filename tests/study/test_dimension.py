"""The effective dimension of layers, compared with a known covariance and with kernels of all samples."""

import numpy as np
import pytest
import torch

from repsim.engine.null_moments import cubic_moments
from repsim.metrics.recipes.gram import CentredGram
from repsim.study.dimension import effective_dimension
from tests.study.references import Array


def estimate(x: Array) -> float:
    gram = CentredGram()(torch.from_numpy(x))
    (moments,) = cubic_moments([gram])
    return effective_dimension(gram, moments.norm2)


@pytest.mark.parametrize(("n", "p"), [(20, 6), (20, 20), (12, 40)])
def test_it_is_the_ratio_of_unbiased_estimates(n: int, p: int, rng: np.random.Generator) -> None:
    """tr(C) is the mean squared distance of two samples / 2, and HSIC_1 the mean over quadruples of samples."""
    x = rng.normal(size=(n, p)) * np.linspace(0.2, 2, p) + 3
    K = x @ x.T
    trace = np.mean([(x[i] - x[j]) @ (x[i] - x[j]) / 2 for i in range(n) for j in range(n) if i != j])
    off = K - np.diag(np.diagonal(K))
    centred = off - off.sum(0) / (n - 2) - off.sum(1)[:, None] / (n - 2) + off.sum() / ((n - 1) * (n - 2))
    np.fill_diagonal(centred, 0)
    assert estimate(x) == pytest.approx(trace**2 / ((centred**2).sum() / (n * (n - 3))), rel=1e-9)


def test_the_mean_of_both_traces_is_that_of_the_covariance() -> None:
    """With few samples of many features the estimate has no large bias, unlike that of the sample covariance."""
    rng, scales = np.random.default_rng(0), np.array([3.0, 2, 1, 1, 0.5, *[0.3] * 20])
    turn = np.linalg.qr(rng.normal(size=(25, 25)))[0]
    C = turn @ np.diag(scales**2) @ turn.T
    expected = np.trace(C) ** 2 / np.trace(C @ C)
    estimates = [estimate(rng.normal(size=(150, 25)) * scales @ turn.T) for _ in range(60)]
    assert np.mean(estimates) == pytest.approx(expected, rel=0.04)


def test_one_direction_and_none() -> None:
    rng = np.random.default_rng(0)
    line = rng.normal(size=(200, 1)) @ rng.normal(size=(1, 5))
    assert estimate(line) == pytest.approx(1, abs=0.1)
    assert np.isnan(estimate(np.eye(10)))  # no two samples are nearer than others: tr(C^2) is estimated as 0
