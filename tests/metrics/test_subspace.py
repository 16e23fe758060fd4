"""Decomposition of a layer: every algorithm against numpy, and the certificate of Krylov iteration."""

import itertools
import math
import pickle
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from repsim.errors import UndefinedValueError
from repsim.metrics.algorithms.feature_space import MomentSweep
from repsim.metrics.base import Array
from repsim.metrics.cca import CCA, PWCCA, SVCCA
from repsim.metrics.recipes import krylov, products
from repsim.metrics.recipes.gram import CentredGram
from repsim.metrics.recipes.krylov import Leading, leading_by_krylov
from repsim.metrics.recipes.rows import Centred, Rows, column_means
from repsim.metrics.recipes.subspace import PrincipalSubspace, Subspace
from repsim.metrics.subspaces import singular_values
from tests.metrics import references

DTYPES = [np.float32, np.float64]
SQUARED = [(150, 20), (20, 150), (80, 80)]  # decomposed via X'X, via XX', and where both meet
STRAIGHT = [(30, 9), (9, 30), (12, 12)]


@pytest.fixture(autouse=True)
def _at_small_sizes(tuned: Callable[..., None]) -> None:
    tuned(squared_from=64)


class Stored:
    """Activations that are read on demand, as from a file."""

    def __init__(self, array: Array) -> None:
        self.array = array
        self.shape: Sequence[int] = array.shape
        self.dtype = torch.from_numpy(array[:1]).dtype
        self.device = torch.device("cpu")

    def __getitem__(self, rows: "slice | Tensor") -> Tensor:
        return torch.from_numpy(self.array[rows.numpy() if isinstance(rows, Tensor) else rows].copy())


class Counted(Stored):
    """Counts the samples that are read."""

    read = 0

    def __getitem__(self, rows: "slice | Tensor") -> Tensor:
        result = super().__getitem__(rows)
        self.read += len(result)
        return result


def as_rows(x: Array, *, stored: bool) -> Rows:
    return Stored(x) if stored else torch.from_numpy(x)


def layer(n: int, p: int, s: Array | Sequence[float], seed: int = 0) -> Array:
    """Return a centred layer with these singular values."""
    rng = np.random.default_rng(seed)
    left = np.linalg.qr(np.column_stack([np.ones(n), rng.normal(size=(n, len(s)))]))[0][:, 1:]
    right = np.linalg.qr(rng.normal(size=(p, len(s))))[0]
    return np.asarray((left * s) @ right.T)


def power(exponent: float, count: int) -> Array:
    return np.arange(1.0, count + 1) ** -exponent


def decomposed(x: Array) -> tuple[Array, Array, Array]:
    """Return U, s, V' from numpy, in float64."""
    x = x.astype(np.float64)
    u, s, vh = np.linalg.svd(x - x.mean(0), full_matrices=False)
    return u, s, vh


def count(s: Array, variance: float) -> int:
    """Return the smallest k with sum_{i<=k} s_i^2 >= variance sum s_i^2."""
    return next(k for k in range(1, len(s) + 1) if np.sum(s[:k] ** 2) >= variance * np.sum(s**2))


def difference_up_to_sign(result: Array, true: Array) -> float:
    """Return the largest difference between columns, up to their signs."""
    return float(np.abs(result * np.sign(np.sum(result * true, axis=0)) - true).max())


def basis(factor: Subspace) -> Array:
    return factor.rows(slice(None)).double().numpy()


# Exact decompositions


@pytest.mark.parametrize("stored", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("n", "p"), SQUARED + STRAIGHT)
def test_it_is_the_singular_value_decomposition(
    rng: np.random.Generator, n: int, p: int, dtype: Any, stored: bool
) -> None:
    x = (layer(n, p, np.geomspace(5, 0.5, min(n - 1, p))) + rng.normal(size=p)).astype(dtype)
    u, s, vh = decomposed(x)
    r = min(n - 1, p)
    factor = PrincipalSubspace(loadings=True)(as_rows(x, stored=stored))
    assert (factor.n, factor.rank, factor.p, factor.complete) == (n, r, r, True)
    assert factor.backward_error == 0
    assert factor.in_memory == (not stored or n < p or dtype == np.float64 or max(n, p) < 64)
    eps = np.finfo(dtype).eps
    np.testing.assert_allclose(factor.singular_values.numpy(), s[:r], rtol=1e-12)
    assert factor.total == pytest.approx(np.sum((s / s[0]) ** 2), rel=1e-12)
    assert factor.loadings is not None
    np.testing.assert_allclose(basis(factor) @ factor.loadings.numpy(), x - x.mean(0, np.float64), atol=10 * eps)
    assert difference_up_to_sign(factor.loadings.numpy().T, (s[:r, None] * vh[:r]).T) < 1e-10
    assert difference_up_to_sign(basis(factor), u[:, :r]) < (1e-10 if dtype == np.float64 or max(n, p) < 64 else eps)


@pytest.mark.parametrize("stored", [False, True])
@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("n", "p"), SQUARED)
def test_rank_is_found_whatever_the_scale_and_the_offset(
    n: int, p: int, dtype: Any, scale: float, stored: bool
) -> None:
    """Rounding errors of float32, here of values a hundred times as large as the variation, are no direction."""
    s = np.geomspace(1, 0.1, 7)
    x = (scale * (layer(n, p, s) + 100 * s[0] / math.sqrt(n * p))).astype(dtype)
    u, true, _ = decomposed(x)
    factor = PrincipalSubspace()(as_rows(x, stored=stored))
    assert (factor.rank, factor.complete) == (7, True)
    np.testing.assert_allclose(factor.singular_values.numpy(), true[:7], rtol=1e-9)
    np.testing.assert_allclose(factor.singular_values.numpy(), scale * s, rtol=1e-5)
    assert difference_up_to_sign(basis(factor), u[:, :7]) < 1e-6
    assert factor.loadings is None


def test_what_rounding_leaves_of_a_large_mean_is_no_direction(rng: np.random.Generator) -> None:
    x = torch.from_numpy(rng.normal(size=(12, 30)) + 1e6 * rng.normal(size=30))
    assert PrincipalSubspace()(x).rank == 11
    assert PrincipalSubspace().with_gradient(x.requires_grad_()).rank == 11


@pytest.mark.parametrize(("n", "p"), [(600, 540), (540, 600)])
def test_matrices_of_more_than_one_block(n: int, p: int) -> None:
    """Their lower triangles are left out, and must not be looked at."""
    s = np.geomspace(1, 0.1, 5)
    factor = PrincipalSubspace()(torch.from_numpy(layer(n, p, s).astype(np.float32)))
    np.testing.assert_allclose(factor.singular_values, s, rtol=1e-6)


@pytest.mark.parametrize(("n", "p"), [(150, 20), (20, 150)])
@pytest.mark.parametrize(("share", "rank"), [(100, 1), (200, 2)])
def test_what_is_below_max_n_p_eps_is_noise(n: int, p: int, share: int, rank: int) -> None:
    x = layer(n, p, [1, share * float(np.finfo(np.float32).eps)]).astype(np.float32)
    factor = PrincipalSubspace()(torch.from_numpy(x))
    assert (factor.rank, factor.complete) == (rank, True)


def test_a_wide_layer_has_no_more_noise_than_a_narrow_one() -> None:
    """max(n, p) eps would be 0.007 s_1 here, and leave out three of four directions."""
    x = layer(70, 60_000, 0.9 ** np.arange(65)).astype(np.float32)
    factor = PrincipalSubspace()(torch.from_numpy(x))
    assert factor.rank == 65


@pytest.mark.parametrize("seed", range(10))
def test_a_variance_that_is_met_exactly(seed: int) -> None:
    """s = 3, 1 and a share of 0.9: either count is right, and the factor keeps enough for its recipe."""
    factor = PrincipalSubspace(0.9)(torch.from_numpy(layer(20, 5, [3, 1], seed)))
    assert factor.components(0.9) == factor.rank <= 2


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("n", "p"), SQUARED + STRAIGHT)
@pytest.mark.parametrize("variance", [0.3, 0.9, 0.99, 1.0])
def test_as_many_directions_are_kept_as_the_reference_keeps(n: int, p: int, dtype: Any, variance: float) -> None:
    x = layer(n, p, power(0.7, min(n - 1, p))).astype(dtype)
    kept = references.leading(x.astype(np.float64), variance).shape[1]
    factor = PrincipalSubspace(variance)(torch.from_numpy(x))
    assert factor.rank == factor.components(variance) == kept
    assert factor.complete == (kept == min(n - 1, p))
    assert PrincipalSubspace()(torch.from_numpy(x)).components(variance) == kept


@pytest.mark.parametrize("exponent", [0.2, 0.5, 1.0, 2.0])
def test_what_a_recipe_kept_is_enough_for_its_own_variance(exponent: float) -> None:
    """Sums of squares round one way over all directions and another over those kept: it must not matter."""
    x = torch.from_numpy(layer(60, 50, power(exponent, 50)))
    for variance in np.linspace(0.01, 0.99, 99).tolist():
        factor = PrincipalSubspace(variance)(x)
        assert factor.components(variance) == factor.rank


@pytest.mark.parametrize("stored", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("n", "p"), SQUARED)
def test_truncations_nest(n: int, p: int, dtype: Any, stored: bool) -> None:
    """SVCCA at 0.9 from a decomposition for 0.99, or for all directions, is SVCCA at 0.9."""
    wide = [
        as_rows((layer(n, p, power(0.8, 19), seed) + layer(n, p, power(0.8, 19), 9)).astype(dtype), stored=stored)
        for seed in (1, 2)
    ]
    values = []
    for recipe in (PrincipalSubspace(0.9), PrincipalSubspace(0.99), PrincipalSubspace(1.0)):
        a, b = (recipe(x) for x in wide)
        values.append(MomentSweep([a], [b], [SVCCA(variance=0.9)], chunk=33, room=10**6).run()[0].item())
    assert 0.2 < values[0] < 0.9
    assert values == pytest.approx([values[0]] * 3, rel=1e-12 if dtype == np.float64 else 1e-6)


def test_a_factor_contains_only_what_its_recipe_keeps(rng: np.random.Generator) -> None:
    x = torch.from_numpy(rng.normal(size=(40, 12)))
    factor = PrincipalSubspace(0.5)(x)
    for variance in (0.99, 1.0):
        with pytest.raises(AssertionError, match="kept fewer directions"):
            factor.components(variance)
    with pytest.raises(AssertionError, match="computed no loadings"):
        PWCCA().pair(PrincipalSubspace()(x), PrincipalSubspace()(x))


def test_a_recipe_covers_those_that_need_no_more() -> None:
    recipes = [PrincipalSubspace(v, loadings=w) for v in (0.9, 0.99) for w in (False, True)]
    covered = {(i, j) for (i, a), (j, b) in itertools.product(enumerate(recipes), repeat=2) if a.covers(b)}
    assert covered == {(0, 0), (1, 0), (1, 1), (2, 0), (2, 2), (3, 0), (3, 1), (3, 2), (3, 3)}
    assert not recipes[3].covers(CentredGram())


@pytest.mark.parametrize("stored", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("n", "p"), [*SQUARED, (30, 9)])
def test_another_process_can_finish(rng: np.random.Generator, n: int, p: int, dtype: Any, stored: bool) -> None:
    """A factor made from a transferred state is the same to the bit."""
    x = as_rows(rng.normal(size=(n, p)).astype(dtype), stored=stored)
    recipe = PrincipalSubspace(0.9, loadings=True)
    finished = recipe.apply(x, pickle.loads(pickle.dumps(recipe.fit(x))))  # noqa: S301
    direct = recipe(x)
    assert (finished.total, finished.complete, finished.backward_error) == (
        direct.total,
        direct.complete,
        direct.backward_error,
    )
    assert finished.loadings is not None
    assert direct.loadings is not None
    for a, b in [
        (finished.rows(slice(None)), direct.rows(slice(None))),
        (finished.singular_values, direct.singular_values),
        (finished.loadings, direct.loadings),
    ]:
        assert torch.equal(a, b)


@pytest.mark.parametrize("slab", [2**23, 100])
def test_a_streamed_basis_gives_the_requested_rows(
    rng: np.random.Generator, tuned: Callable[..., None], slab: int
) -> None:
    """For any number of samples per product."""
    tuned(slab=slab)
    x = rng.normal(size=(130, 9)).astype(np.float32)
    factor, whole = PrincipalSubspace()(Stored(x)), PrincipalSubspace()(torch.from_numpy(x))
    assert not factor.in_memory
    assert whole.in_memory
    assert factor.nbytes == 8 * (9 * 9 + 9 + 9)  # the weights, the means, the singular values; no sample
    assert whole.nbytes == 4 * 130 * 9 + 8 * 9
    for rows in (slice(5, 40), slice(-3, None), slice(7, 7), torch.tensor([129, 0, 0, 3]), torch.arange(100)):
        result, expected = factor.basis[rows], whole.basis[rows]
        assert (result.dtype, result.shape) == (torch.float32, expected.shape)
        np.testing.assert_allclose(result, expected, atol=1e-7)


@pytest.mark.parametrize("stored", [False, True])
@pytest.mark.parametrize("n", [20, 130])
def test_a_constant_layer_has_no_directions(n: int, stored: bool) -> None:
    with pytest.raises(UndefinedValueError, match="the layer is constant"):
        PrincipalSubspace()(as_rows(np.full((n, 5), 0.3, np.float32), stored=stored))


@pytest.mark.parametrize(("n", "p"), [(350, 70), (70, 350)])
def test_matrix_products_in_pieces(rng: np.random.Generator, tuned: Callable[..., None], n: int, p: int) -> None:
    """However little is widened to float64, multiplied or kept at once."""
    tuned(slab=3 * 350, product_panel=7 * 350, widened=400)
    x = rng.normal(size=(n, p)) + 3
    mean, peak = column_means(torch.from_numpy(x))
    rows = Centred(Stored(x), mean, peak, torch.float64)
    true = (x - x.mean(0)) / peak
    block = rng.normal(size=(min(n, p), 4))
    basis = rng.normal(size=(n, 3))
    for result, expected in [
        (products.covariance(rows, 32).triu(), np.triu(true.T @ true)),
        (products.inner_products(rows, 32).triu(), np.triu(true @ true.T)),
        (products.project(torch.from_numpy(basis), rows), basis.T @ true),
        (
            krylov._product(rows, torch.from_numpy(block)),
            true @ (true.T @ block) if n < p else true.T @ (true @ block),
        ),
    ]:
        np.testing.assert_allclose(result, expected, atol=1e-11)


# Krylov iteration, at a size where it can be verified

SIDES = [(160, 300), (300, 160)]


@pytest.fixture
def small(tuned: Callable[..., None]) -> None:
    tuned(krylov_from=160, krylov_block=8)


def search(x: Array, variance: float = 0.99, floor: float = 0.0) -> tuple[Array, Leading | None]:
    """Return the centred layer in units of its largest value, with the smaller side as rows, and the result."""
    mean, peak = column_means(torch.from_numpy(x))
    result = leading_by_krylov(Centred(Stored(x), mean, peak, torch.float64), variance, floor)
    true = (x - x.mean(0)) / peak
    return true if x.shape[0] < x.shape[1] else true.T, result


SPECTRA = {
    "steep": power(2, 150),
    "geometric": 0.8 ** np.arange(150),
    "of low rank": np.array([3.0, 2, 1, 0.5, 0.4]),
    "of rank one": np.ones(1),
    "of a rank between two blocks": np.linspace(3, 1, 11),
    "with a giant direction": np.r_[1e3, power(2, 149)],
    "with values that repeat as often as a block has columns": np.r_[np.ones(8), 0.01 * power(1, 140)],
}


@pytest.mark.parametrize(("n", "p"), SIDES)
@pytest.mark.parametrize("spectrum", SPECTRA)
def test_the_certificate_holds(small: None, n: int, p: int, spectrum: str) -> None:
    """E, computed from the result, has the stated norm, and the result is exact for X + E."""
    X, result = search(layer(n, p, SPECTRA[spectrum]), 0.9995)
    assert result is not None
    U, s = result.vectors.numpy(), result.values.sqrt().numpy()
    V = X.T @ U / s
    R = X @ V - U * s
    E = -R @ V.T
    norm = np.linalg.norm(X)
    assert np.linalg.norm(E) / norm == pytest.approx(result.error, rel=1e-6, abs=1e-13)
    assert result.error <= 2**-24
    for vectors in (U, V):
        np.testing.assert_allclose(vectors.T @ vectors, np.eye(len(s)), atol=1e-10)
    assert np.linalg.norm((X + E) @ V - U * s) < 1e-12 * norm
    assert np.linalg.norm((X + E).T @ U - V * s) < 1e-12 * norm
    true = np.linalg.svd(X, compute_uv=False)
    assert len(s) == count(true, 0.9995)
    np.testing.assert_allclose(s, true[: len(s)], rtol=1e-10)
    assert result.total == pytest.approx(np.sum((true / true[0]) ** 2), rel=1e-10)


@pytest.mark.parametrize("variance", [0.5, 0.9, 0.99, 0.999])
@pytest.mark.parametrize("stored", [False, True])
@pytest.mark.parametrize(("n", "p"), SIDES)
def test_what_the_krylov_road_finds_is_what_leads(
    small: None, rng: np.random.Generator, n: int, p: int, *, stored: bool, variance: float
) -> None:
    x = (10 * layer(n, p, power(2, 150)) + rng.normal(size=p)).astype(np.float32)
    u, s, _ = decomposed(x)
    k = count(s, variance)
    factor = PrincipalSubspace(variance)(as_rows(x, stored=stored))
    assert 0 < factor.backward_error <= 2**-24  # so this is the road that was taken
    assert (factor.rank, factor.components(variance), factor.complete) == (k, k, False)
    np.testing.assert_allclose(factor.singular_values.numpy(), s[:k], rtol=1e-12)
    assert factor.total == pytest.approx(np.sum((s / s[0]) ** 2), rel=1e-12)
    gap = (s[k - 1] - s[k]) / np.linalg.norm(s)
    assert difference_up_to_sign(basis(factor), u[:, :k]) < 2 * factor.backward_error / gap + 1e-7


@pytest.mark.parametrize("variance", [0.5, 0.9, 0.95, 0.99])
@pytest.mark.parametrize("exponent", [1.5, 2.0, 3.0])
@pytest.mark.parametrize(("n", "p"), SIDES)
def test_directions_are_counted_right_before_they_are_exact(
    small: None, tuned: Callable[..., None], n: int, p: int, *, exponent: float, variance: float
) -> None:
    """Ritz values are too small, so it takes more of them to explain as much: that is waited for."""
    tuned(krylov_error=math.inf)
    X, result = search(layer(n, p, power(exponent, 150)), variance)
    assert result is not None
    assert len(result.values) == count(np.linalg.svd(X, compute_uv=False), variance)


@pytest.mark.parametrize(
    ("s", "variance", "floor"),
    [
        (np.ones(150), 0.9, 0.0),  # too many directions
        (power(0.5, 150), 0.99, 0.0),
        (np.ones(60), 0.9, 0.0),  # few enough, but a block sees only so many equal ones
        (0.96 ** np.arange(150), 0.98, 0.0),  # 48 directions, of 40 columns
        (np.array([1, 0.5, 0.01]), 0.99999, 0.02),  # the third is noise
    ],
)
@pytest.mark.parametrize(("n", "p"), SIDES)
def test_it_gives_up_where_it_has_no_certain_answer(
    small: None, n: int, p: int, s: Array, *, variance: float, floor: float
) -> None:
    assert search(layer(n, p, s), variance, floor)[1] is None


def test_a_direction_above_the_noise_is_found(small: None) -> None:
    _, result = search(layer(160, 300, [1, 0.5, 0.05]), 0.9999, floor=0.02)
    assert result is not None
    assert len(result.values) == 3


@pytest.mark.parametrize(("n", "p", "passes"), [(*SIDES[0], 5), (*SIDES[1], 3)])
def test_it_gives_up_as_soon_as_there_is_no_hope(small: None, n: int, p: int, passes: int) -> None:
    """After the norm and two products, each of which reads the layer twice, or once where n >= p."""
    x = Counted(layer(n, p, np.ones(150)))
    mean, peak = column_means(torch.from_numpy(x.array))
    assert leading_by_krylov(Centred(x, mean, peak, torch.float64), 0.99, 0.0) is None
    assert x.read == passes * n


@pytest.mark.parametrize(
    ("recipe", "s"),
    [
        (PrincipalSubspace(0.99), power(0.5, 150)),  # too slow a spectrum
        (PrincipalSubspace(1.0), power(1, 20)),  # all directions are wanted
        (PrincipalSubspace(0.99, loadings=True), power(2, 150)),
        (PrincipalSubspace(1 - 1e-11), np.array([1, 1e-5])),  # the second is below the noise of float32
    ],
)
@pytest.mark.parametrize(("n", "p"), SIDES)
def test_elsewhere_the_exact_road_is_taken(small: None, n: int, p: int, recipe: PrincipalSubspace, s: Array) -> None:
    x = layer(n, p, s).astype(np.float32)
    _, true, _ = decomposed(x)
    rank = int(np.sum(true > true[0] * 300 * np.finfo(np.float32).eps))
    factor = recipe(torch.from_numpy(x))
    assert factor.backward_error == 0
    assert factor.rank == (rank if recipe.variance == 1 else min(rank, count(true, recipe.variance)))
    assert factor.complete == (factor.rank == rank)
    np.testing.assert_allclose(factor.singular_values.numpy(), true[: factor.rank], rtol=1e-8)


def test_smaller_layers_are_not_searched_at_random(small: None, tuned: Callable[..., None]) -> None:
    tuned(krylov_from=161)
    x = torch.from_numpy(layer(160, 300, power(2, 150)).astype(np.float32))
    assert PrincipalSubspace(0.99)(x).backward_error == 0


def test_it_is_the_same_search_every_time(small: None) -> None:
    x = layer(160, 300, power(2, 150))
    first, second = (search(x)[1] for _ in range(2))
    assert first is not None
    assert second is not None
    assert torch.equal(first.vectors, second.vectors)


# Measures of the CCA family


def related(n: int, widths: Sequence[int], dtype: Any) -> list[Array]:
    rng = np.random.default_rng(3)
    signal = rng.normal(size=(n, 6)) * power(0.5, 6)
    return [
        (signal @ rng.normal(size=(6, p)) + 0.5 * rng.normal(size=(n, p)) + rng.normal(size=p)).astype(dtype)
        for p in widths
    ]


@pytest.mark.parametrize("stored", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_sweeps_over_bases_give_the_values_of_the_reference(dtype: Any, stored: bool) -> None:
    """One recipe for all, which wants most: whatever is streamed, in runs of any length."""
    layers = related(80, (6, 10, 10), dtype)
    factors = [PrincipalSubspace(loadings=True)(as_rows(x, stored=stored)) for x in layers]
    assert all(factor.in_memory == (not stored or dtype == np.float64) for factor in factors)
    measures = [CCA(), CCA(summary="r2"), SVCCA(), SVCCA(variance=0.8), PWCCA()]
    result = MomentSweep(factors, factors, measures, chunk=37, room=2000).run()
    exact = [x.astype(np.float64) for x in layers]
    slow: list[Any] = [
        references.cca,
        lambda x, y: references.cca(x, y, "r2"),
        references.svcca,
        lambda x, y: references.svcca(x, y, 0.8),
        references.pwcca,
    ]
    for values, reference in zip(result, slow, strict=True):
        expected = [[reference(x, y) for y in exact] for x in exact]
        np.testing.assert_allclose(values, expected, atol=1e-11 if dtype == np.float64 else 1e-6)


@pytest.mark.parametrize("stored", [False, True])
@pytest.mark.parametrize("widths", [(20, 200), (75, 200)])
def test_svcca_of_float32_is_that_of_float64(widths: tuple[int, int], stored: bool) -> None:
    x, y = related(80, widths, np.float32)
    recipe = PrincipalSubspace(0.8)
    a, b = recipe(as_rows(x, stored=stored)), recipe(as_rows(y, stored=stored))
    value = MomentSweep([a], [b], [SVCCA(variance=0.8)], chunk=100, room=10**6).run()[0].item()
    assert value == pytest.approx(references.svcca(x.astype(np.float64), y.astype(np.float64), 0.8), abs=1e-6)


@pytest.mark.parametrize(("n", "p"), SIDES)
def test_svcca_from_the_krylov_road_is_that_of_float64(small: None, n: int, p: int) -> None:
    shared, own, other = (layer(n, p, power(1.5, 150), seed) for seed in (0, 1, 2))
    x, y = ((shared + noise).astype(np.float32) for noise in (own, other))
    recipe = PrincipalSubspace(0.9)
    a, b = (recipe(torch.from_numpy(array)) for array in (x, y))
    assert min(a.backward_error, b.backward_error) > 0
    value = SVCCA(variance=0.9).pair(a, b)
    assert 0.2 < value < 0.9
    (u, s, _), (v, t, _) = decomposed(x), decomposed(y)
    rho = np.linalg.svd(u[:, : count(s, 0.9)].T @ v[:, : count(t, 0.9)], compute_uv=False)
    assert value == pytest.approx(rho.mean(), abs=1e-6)


@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("shape", [(5, 9), (9, 5)])
def test_singular_values_of_a_product(rng: np.random.Generator, shape: tuple[int, int], *, exact: bool) -> None:
    """Those that are 1e-6 of the largest, too: by eigenvalues their squares are 1e-12 of it."""
    left, right = (np.linalg.qr(rng.normal(size=(side, 5)))[0] for side in shape)
    values = np.geomspace(1e-6, 1, 5)
    result = singular_values(torch.from_numpy(left * values @ right.T), exact=exact).sort().values
    np.testing.assert_allclose(result, values, rtol=1e-9 if exact else 1e-3)
