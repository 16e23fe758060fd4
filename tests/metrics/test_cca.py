"""CCA, SVCCA and PWCCA against published digits and closed forms."""

import itertools
import warnings
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import ortho_group

from repsim.errors import InvalidInputError, UnreliableValueWarning
from repsim.metrics import get
from repsim.metrics.base import Array, as_samples
from repsim.metrics.cca import CCA, PWCCA, SVCCA
from repsim.metrics.recipes.subspace import PrincipalSubspace


@pytest.fixture
def uniform() -> tuple[Array, Array]:
    np.random.seed(0)  # noqa: NPY002 - the published digits are of this generator
    return np.random.uniform(size=(30, 25)), np.random.uniform(size=(30, 25))  # noqa: NPY002


@pytest.mark.parametrize(
    ("spec", "value"),
    [
        ("cca", 0.8901049738157812),
        ("cca:summary=r2", 0.8583001426315537),
        ("svcca", 0.7831814122650432),
        ("svcca:variance=0.95", 0.728160558683519),
    ],
)
def test_digits_on_uniform_data(uniform: tuple[Array, Array], spec: str, value: float) -> None:
    with pytest.warns(UnreliableValueWarning, match="correlations are exactly 1 for any data"):
        assert get(spec)(*uniform) == pytest.approx(value, rel=1e-12)


@pytest.mark.parametrize(("variance", "kept"), [(0.99, (21, 21)), (0.95, (16, 17))])
def test_number_of_components_on_uniform_data(
    uniform: tuple[Array, Array], variance: float, kept: tuple[int, int]
) -> None:
    metric = SVCCA(variance=variance)
    components = [metric.diagnostics(metric.recipe(as_samples(layer))) for layer in uniform]
    assert components == [{"components": k} for k in kept]


@pytest.mark.parametrize(("variance", "k"), [(0.85, 1), (0.89, 1), (0.91, 2), (0.99, 2), (1.0, 3)])
def test_components_are_counted_by_squares(rng: np.random.Generator, variance: float, k: int) -> None:
    """s = 3, 1, 1e-9: the shares of s^2 are 0.9, 0.1 and 0; of s itself they would be 0.75 and 0.25."""
    q = np.linalg.qr(np.column_stack([np.ones(20), rng.normal(size=(20, 3))]))[0][:, 1:]
    factor = PrincipalSubspace()(as_samples(q * [3, 1, 1e-9]))
    assert factor.rank == 3
    assert factor.components(variance) == k
    assert PrincipalSubspace()(as_samples(q * [3e-200, 1e-200, 1e-209])).components(variance) == k


@pytest.mark.parametrize(("p", "q"), [(1, 1), (2, 3), (4, 2)])
def test_mean_r2_over_every_permutation(rng: np.random.Generator, p: int, q: int) -> None:
    """max(p, q) / (n - 1), exactly, for any data."""
    n = 6
    x, y = rng.normal(size=(n, p)), rng.exponential(size=(n, q)) ** 2
    metric = CCA(summary="r2")
    a, b = metric.recipe(as_samples(x)), metric.recipe(as_samples(y))
    orders = itertools.permutations(range(n))
    u, v = a.basis[:].numpy(), b.basis[:].numpy()
    values = [np.sum((u.T @ v[list(order)]) ** 2) / min(p, q) for order in orders]
    assert metric.pair(a, b) == pytest.approx(values[0], rel=1e-12)  # the first order is the identity
    assert np.mean(values) == pytest.approx(max(p, q) / (n - 1), rel=1e-12)


def test_mean_correlation_of_unrelated_gaussians(rng: np.random.Generator) -> None:
    """Wachter's law: 0.19078 for p = q = n / 20."""
    x, y = rng.normal(size=(1600, 80)), rng.normal(size=(1600, 80))
    assert CCA()(x, y) == pytest.approx(0.19078, abs=0.004)


@pytest.mark.parametrize("spec", ["cca", "svcca", "pwcca"])
def test_single_features_give_their_correlation(rng: np.random.Generator, spec: str) -> None:
    x = rng.normal(size=(30, 1))
    y = -0.5 * x + rng.normal(size=(30, 1))
    assert get(spec)(x, y) == pytest.approx(abs(np.corrcoef(x[:, 0], y[:, 0])[0, 1]), rel=1e-12)


def test_pwcca_weights_directions_by_their_share(rng: np.random.Generator) -> None:
    """X carries its two directions 9 : 1, Y shares the first with correlation 1, the second with 0."""
    q = np.linalg.qr(np.column_stack([np.ones(20), rng.normal(size=(20, 3))]))[0][:, 1:]
    x, y = q[:, :2] * [9, 1], q[:, [0, 2]]
    assert PWCCA()(x, y) == pytest.approx(0.9, rel=1e-12)
    assert PWCCA()(y, x) == pytest.approx(0.5, rel=1e-12)
    assert PWCCA()(x, q[:, :1]) == pytest.approx(1, rel=1e-12)  # the side of smaller rank has only the shared one


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("spec", ["cca", "cca:summary=r2", "svcca"])
def test_a_repeated_feature_adds_no_dimension(
    rng: np.random.Generator, spec: str, dtype: type[np.floating[Any]]
) -> None:
    """Rounding it adds none either: the noise of float32 would be a direction, too."""
    x, y = rng.normal(size=(60, 4)).astype(dtype), rng.normal(size=(60, 6)).astype(dtype)
    repeated = np.column_stack([x, x @ rng.normal(size=(4, 3)).astype(dtype)])
    assert PrincipalSubspace()(as_samples(repeated)).rank == 4
    if spec.startswith("cca"):  # the leading directions change, the span does not
        assert get(spec)(repeated, y) == pytest.approx(get(spec)(x, y), abs=1e-6)
    else:
        assert SVCCA(variance=1.0)(repeated, y) == pytest.approx(CCA()(x, y), abs=1e-6)


@pytest.mark.parametrize("spec", ["cca", "svcca:variance=1", "pwcca"])
def test_saturation_warns_from_its_beginning(rng: np.random.Generator, spec: str) -> None:
    """If r + t > n - 1, the excess is the number of correlations that are exactly 1, for any data."""
    x, y = rng.normal(size=(16, 9)), rng.normal(size=(16, 7))
    message = r"with n = 16 samples and 9 \+ 7 \w+, 1 of the correlations are exactly 1 .* at least n = 18 samples"
    with pytest.warns(UnreliableValueWarning, match=message):
        get(spec)(x, y)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", ".*samples are too few for")
        assert get(spec)(x, y[:, :6]) < 0.999


@pytest.mark.parametrize("variance", [0.0, -0.1, 1.01, float("nan")])
def test_a_variance_is_a_share(variance: float) -> None:
    with pytest.raises(InvalidInputError, match=r"variance is a share in \(0, 1\]"):
        SVCCA(variance=variance)


def shared_columns(seed: int, shared: int = 8) -> tuple[Array, Array]:
    """Return layers that have columns in common, so that as many canonical correlations are exactly 1."""
    rng = np.random.default_rng(seed)
    s = rng.normal(size=(1000, shared))
    return np.c_[s * np.arange(1, shared + 1), rng.normal(size=(1000, 7))], np.c_[s, rng.normal(size=(1000, 10))]


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_pwcca_is_invariant_where_correlations_tie(dtype: type) -> None:
    x, y = shared_columns(0)
    values = []
    for scale in (1, 1.1, 3, 7):
        with pytest.warns(UnreliableValueWarning, match="not determined.* up to 0.15"):
            values.append(PWCCA()((x * scale).astype(dtype), y.astype(dtype)))
    assert np.ptp(values) < (1e-12 if dtype is np.float64 else 1e-7)


def test_pwcca_of_tied_correlations_is_the_mean_over_their_bases() -> None:
    x, y = shared_columns(1, shared=3)
    x, y = x - x.mean(0), y - y.mean(0)
    q, r = np.linalg.qr(x)[0], np.linalg.qr(y)[0]
    u, rho, _ = np.linalg.svd(q.T @ r, full_matrices=False)
    rng, draws = np.random.default_rng(0), []
    for _ in range(4000):
        rotated = u.copy()
        rotated[:, :3] = u[:, :3] @ ortho_group.rvs(3, random_state=rng)
        weights = np.abs(rotated.T @ q.T @ x).sum(1)
        draws.append((weights[:3].sum(), weights @ rho / weights.sum()))
    tied, values = np.array(draws).T
    weights = np.abs(u.T @ q.T @ x).sum(1)[3:]
    expected = (tied.mean() + weights @ rho[3:]) / (tied.mean() + weights.sum())
    a, b = (PrincipalSubspace(loadings=True)(torch.from_numpy(layer)) for layer in (x, y))
    assert PWCCA().pair(a, b) == pytest.approx(expected, abs=4 * values.std() / np.sqrt(4000))
    assert np.ptp(values) < PWCCA().ambiguity.pair(a, b) < 2.5 * np.ptp(values)


def test_pwcca_is_determined_where_all_correlations_are_one() -> None:
    x = shared_columns(2)[0]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert PWCCA()(x, x @ np.random.default_rng(3).normal(size=(15, 15))) == pytest.approx(1, abs=1e-9)


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_svcca_keeps_all_directions_that_tie_at_the_cut(dtype: type) -> None:
    rng = np.random.default_rng(0)
    z = rng.normal(size=(400, 12))
    q = np.linalg.qr(z - z.mean(0))[0]
    x: Array = (q * ([3.0] + [1.0] * 10 + [0.01])).astype(dtype)  # .7 is reached within the ties
    y = np.c_[x[:, :5], rng.normal(size=(400, 4)) / 20].astype(dtype)
    values = []
    for seed in range(4):
        turned = x @ ortho_group.rvs(12, random_state=seed).astype(dtype)
        with pytest.warns(UnreliableValueWarning, match="component 6, with which a layer reaches 0.7 .* all 11 are"):
            values.append(SVCCA(variance=0.7)(turned, y))
    assert np.ptp(values) < (1e-12 if dtype is np.float64 else 1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_generic_layers_have_no_ties(dtype: torch.dtype) -> None:
    for seed in range(200):
        rng = np.random.default_rng(seed)
        x, y = (rng.normal(size=(400, width)) for width in (12, 20))
        y[:, :4] += x[:, :4]
        a, b = (PrincipalSubspace(loadings=True)(torch.from_numpy(layer).to(dtype)) for layer in (x, y))
        assert float(PWCCA().ambiguity.pair(a, b)) < 1e-3
        assert SVCCA().caution(a, b) is SVCCA(variance=0.8).caution(a, b) is None
