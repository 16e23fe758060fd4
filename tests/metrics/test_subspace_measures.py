"""Shape measures, regression, GULP and eigenspace overlap: properties beyond their contracts."""

import itertools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from repsim.engine.planning import LayerShape, Limits, plan
from repsim.errors import InvalidInputError, UndefinedValueError, UnreliableValueWarning
from repsim.metrics import get
from repsim.metrics.algorithms.cross import Cross
from repsim.metrics.algorithms.feature_space import MomentSweep
from repsim.metrics.base import Array, Metric, as_samples
from repsim.metrics.cca import CCA, PWCCA, SVCCA
from repsim.metrics.prediction import GULP, EigenspaceOverlap, LinearRegression
from repsim.metrics.recipes.subspace import PrincipalSubspace
from repsim.metrics.shapes import AngularShape, Nuclear, Procrustes, ProcrustesSize, chance_alignment, spectral_means
from repsim.metrics.subspaces import SubspaceMetric, error_of_roots, lower_gram, singular_values
from repsim.testing.examples import RowsOnDisk, related_layers
from tests.metrics import references_subspaces as references

SHAPES = [Nuclear(), AngularShape(), Procrustes(), ProcrustesSize()]
CENTRED: list[SubspaceMetric] = [*SHAPES, LinearRegression(), GULP(), GULP(ridge=0.1), CCA(), PWCCA()]


def layers(n: int, widths: tuple[int, ...], dtype: Any = np.float64) -> list[Array]:
    return [(x + 2).astype(dtype) for x in related_layers(np.random.default_rng(3), n, *widths, shared=6)]


def spanned(n: int, s: Array, rotation: int = 0) -> Array:
    """Return a centred layer with these singular values, always along the same directions of the samples."""
    rng = np.random.default_rng(0)
    left = np.linalg.qr(np.column_stack([np.ones(n), rng.normal(size=(n, len(s)))]))[0][:, 1:]
    right = np.linalg.qr(np.random.default_rng(rotation).normal(size=(len(s), len(s))))[0]
    return np.asarray(left * s @ right)


# Sweeps


@pytest.fixture
def decompositions(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """Record the shapes of all matrices that are decomposed."""
    seen: list[tuple[int, ...]] = []

    def counted(find: Callable[..., Any]) -> Callable[..., Any]:
        def results(matrix: Tensor, *args: Any, **kwargs: Any) -> Any:
            seen.append(tuple(matrix.shape))
            return find(matrix, *args, **kwargs)

        return results

    for name in ("svd", "svdvals", "eigh", "eigvalsh", "matrix_norm"):
        monkeypatch.setattr(torch.linalg, name, counted(getattr(torch.linalg, name)))
    return seen


def test_four_shape_measures_take_one_decomposition_a_pair(decompositions: list[tuple[int, ...]]) -> None:
    """And none for a layer with itself."""
    factors = [PrincipalSubspace()(torch.from_numpy(x)) for x in layers(60, (4, 5, 6))]
    decompositions.clear()
    results = MomentSweep(factors, factors, SHAPES, chunk=60, room=10**6).run()
    assert sorted(decompositions) == [(4, 4), (4, 4), (5, 5)]  # CC' of the smaller side
    assert [values.diagonal().tolist() for values in results] == [[1] * 3, [0] * 3, [0] * 3, [0] * 3]


@pytest.mark.parametrize("stored", [False, True])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_measures_that_share_a_sweep_are_those_alone(tuned: Callable[..., None], dtype: Any, stored: bool) -> None:
    """In memory or streamed; and they are those of the references, eigenspace overlap by a recipe of its own."""
    tuned(squared_from=64)
    arrays = layers(80, (6, 10, 10), dtype)
    slow = {
        "nuclear": references.nuclear,
        "angular_shape": references.angular_shape,
        "procrustes": references.procrustes,
        "procrustes_size": references.procrustes_size,
        "linear_regression": references.linear_regression,
        "gulp": references.gulp,
        "gulp:ridge=0.1": lambda x, y: references.gulp(x, y, 0.1),
        "eigenspace_overlap": references.eigenspace_overlap,
    }
    others: list[SubspaceMetric] = [EigenspaceOverlap()]
    for measures in (CENTRED, others):
        factors = [measures[0].recipe(RowsOnDisk(x) if stored else torch.from_numpy(x)) for x in arrays]
        if measures is CENTRED:
            factors = [
                PrincipalSubspace(loadings=True)(RowsOnDisk(x) if stored else torch.from_numpy(x)) for x in arrays
            ]
        together = MomentSweep(factors[:2], factors, measures, chunk=37, room=2000).run()
        for measure, values in zip(measures, together, strict=True):
            alone = MomentSweep(factors[:2], factors, [measure], chunk=37, room=2000).run()[0]
            np.testing.assert_array_equal(alone, values)
            if measure.spec in slow:
                exact = [x.astype(np.float64) for x in arrays]
                expected = [[slow[measure.spec](x, y) for y in exact] for x in exact[:2]]
                tolerance = 1e-11 if dtype == np.float64 else 1e-6
                np.testing.assert_allclose(values, expected, atol=tolerance, rtol=tolerance)


def test_they_are_one_stage_with_cca() -> None:
    """Except for measures that are not centred."""
    shapes = [LayerShape("a", 30), LayerShape("b", 40)]
    stages = plan(shapes, shapes, 100, [*CENTRED, EigenspaceOverlap()], Limits(2**32)).stages
    assert [len(stage.metrics) for stage in stages] == [len(CENTRED), 1]
    assert [stage.recipe for stage in stages] == [PrincipalSubspace(loadings=True), PrincipalSubspace(centred=False)]


def test_a_centred_recipe_does_not_cover_another() -> None:
    recipes = PrincipalSubspace(), PrincipalSubspace(centred=False)
    assert [[a.covers(b) for b in recipes] for a in recipes] == [[True, False], [False, True]]


# Singular values from the Gram matrix of the smaller side

SPECTRA: dict[str, Callable[[int], Array]] = {
    "equal": np.ones,
    "random": lambda m: np.random.default_rng(m).uniform(size=m),
    "pairs of equal": lambda m: np.repeat(np.linspace(1, 0.5, m), 2)[:m],
    "decaying": lambda m: np.geomspace(1, 1e-3, m),
    "ill-conditioned": lambda m: np.geomspace(1, 1e-12, m),
    "nearly singular": lambda m: np.r_[np.ones(m - 1), 1e-9],
    "rank-deficient": lambda m: np.r_[np.ones(m - m // 2), np.zeros(m // 2)],
    "one": lambda m: np.eye(m)[0],
    "zero": np.zeros,
}


def with_spectrum(s: Array, rows: int, columns: int, seed: int = 0) -> Array:
    rng = np.random.default_rng(seed)
    left, right = (np.linalg.qr(rng.normal(size=(side, len(s))))[0] for side in (rows, columns))
    return np.asarray(left * s @ right.T)


@pytest.mark.parametrize("spectrum", SPECTRA)
@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (2, 5), (8, 8), (30, 70), (70, 30), (250, 260)])
def test_the_sum_of_roots_is_certified(spectrum: str, rows: int, columns: int) -> None:
    """The bound holds, and the values that are returned have the promised digits, whatever the spectrum."""
    m = min(rows, columns)
    s = SPECTRA[spectrum](m)
    c = torch.from_numpy(with_spectrum(s, rows, columns))
    exact_sum = float(np.linalg.svd(c.numpy(), compute_uv=False).sum())
    short = c if rows <= columns else c.T
    squares = torch.linalg.eigvalsh(lower_gram(short))
    rounding = 1e-14 * m * max(float(s.max()), 1e-300)
    roots = float(squares.clamp(min=0).sqrt().sum())
    assert abs(roots - exact_sum) <= error_of_roots(squares, max(rows, columns)) + rounding
    total = float(singular_values(c, exact=True).sum())
    assert abs(total - exact_sum) <= 1e-9 * exact_sum + rounding
    assert len(singular_values(c, exact=True)) == m


def test_roots_that_would_lose_digits_are_not_used(decompositions: list[tuple[int, ...]]) -> None:
    """Singular values of 1e-9 have squares of 1e-18, which are rounding errors; equal ones need no decomposition of C;
    and if the sum is nearly 1, its distance from 1 needs more digits than the sum.
    """
    equal = torch.from_numpy(with_spectrum(np.full(20, 0.9 / 20), 20, 30))
    singular = torch.from_numpy(with_spectrum(np.r_[np.ones(19), 1e-9], 20, 30))
    for product, subtracted_from, needed in ((equal, 1.0, 1), (singular, 0.0, 2), (equal, 0.9 + 1e-9, 2)):
        decompositions.clear()
        singular_values(product, exact=True, subtracted_from=subtracted_from)
        assert decompositions == [(20, 20), (20, 30)][:needed]


@pytest.mark.parametrize(("m", "k"), [(3, 4), (191, 200), (193, 193), (500, 510)])
def test_the_lower_half_of_a_gram_matrix(m: int, k: int) -> None:
    c = torch.from_numpy(np.random.default_rng(0).normal(size=(m, k)))
    torch.testing.assert_close(lower_gram(c).tril(), (c @ c.T).tril(), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("metric", [CCA(), CCA(summary="r2"), SVCCA(variance=1.0), PWCCA()], ids=lambda m: m.spec)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.filterwarnings("ignore::repsim.errors.UnreliableValueWarning")
def test_a_layer_that_spans_all_samples_contains_the_others(metric: SubspaceMetric, dtype: Any) -> None:
    """All correlations are 1, which the decomposition of their products gives, too, up to rounding."""
    x, y = layers(40, (60, 7), dtype)
    assert metric(x, y) == metric(y, x) == 1
    (left, right) = (np.linalg.svd(side - side.mean(0), full_matrices=False)[0] for side in (x[:, :39], y))
    correlations = np.linalg.svd(left[:, :39].T @ right, compute_uv=False)
    np.testing.assert_allclose(correlations, 1, atol=1e-4 if dtype == np.float32 else 1e-9)
    assert metric(x[:, :38], y) < 1 - 1e-4, "with one direction less they are not"


@pytest.mark.parametrize(("p", "q"), [(10, 25), (25, 10), (20, 20)])
@pytest.mark.parametrize("shared", [0, 5])
@pytest.mark.filterwarnings("ignore::repsim.errors.UnreliableValueWarning")
def test_pwcca_from_eigenvectors_is_that_from_singular_vectors(
    tuned: Callable[..., None], p: int, q: int, shared: int
) -> None:
    """In float32, whose products have errors of 1e-7; correlations that are 1 because columns are shared tie."""
    tuned(squared_from=64)
    x, y = layers(90, (p, q), np.float32)
    y[:, :shared] = x[:, :shared]
    a, b = (PWCCA().recipe(torch.from_numpy(side)) for side in (x, y))
    cross = Cross(a, b, a.rows(slice(None)).T @ b.rows(slice(None)))
    fast = PWCCA().moment(cross)
    slow = PWCCA().moment(Cross(a, b, cross.product.requires_grad_()))
    assert fast.item() == pytest.approx(slow.item(), abs=1e-9)
    assert PWCCA().ambiguity.moment(cross) >= 0


# Digits


@pytest.mark.parametrize("delta", [1e-10, 1e-7, 1e-4, 1e-2])
@pytest.mark.parametrize("metric", SHAPES[1:], ids=lambda metric: metric.name)
def test_small_distances_keep_their_digits(metric: Metric[Any], delta: float) -> None:
    """One singular value is 1 + delta: the best rotation is known, and so is what is left."""
    s, t = np.array([3.0, 2, 1, 1]), np.array([3.0, 2, 1 + delta, 1])
    x, y = spanned(50, s, 1), spanned(50, t, 2)
    area = delta * math.sqrt(14)  # |s x t|: the other three of s have the norm sqrt 14
    angle = math.atan2(area, s @ t)
    expected = {
        "procrustes": 2 * math.sin(angle / 2),
        "angular_shape": angle,
        "procrustes_size": delta,
    }[metric.name]
    assert metric(x, y) == pytest.approx(expected, abs=1e-12 if delta == 1e-2 else 1e-14)


@pytest.mark.parametrize("stored", [False, True])
@pytest.mark.parametrize(("n", "p"), [(700, 40), (100, 600)])
def test_float32_layers_alike_but_for_a_rotation(n: int, p: int, stored: bool) -> None:
    """Their bases are rounded to float32, but 1 - ||X^'Y^||_* of 1e-7 would be a distance of 4e-4."""
    (x,) = layers(n, (p,))
    x = x - x.mean(0)
    pair = [side.astype(np.float32) for side in (x, x @ np.linalg.qr(np.random.default_rng(4).normal(size=(p, p)))[0])]
    a, b = (PrincipalSubspace()(RowsOnDisk(side) if stored else torch.from_numpy(side)) for side in pair)
    assert a.basis.dtype == torch.float32
    results = MomentSweep([a], [b], SHAPES[1:3], chunk=100, room=10**6).run()
    exact = [side.astype(np.float64) for side in pair]
    for values, reference in zip(results, (references.angular_shape, references.procrustes), strict=True):
        assert values.item() == pytest.approx(reference(*exact), abs=1e-6)


def test_size_is_in_units_of_the_activations() -> None:
    x, y = layers(40, (6, 5))
    assert ProcrustesSize()(1e8 * x, 1e8 * y) == pytest.approx(1e8 * ProcrustesSize()(x, y), rel=1e-12)


def test_gulp_is_how_differently_ridge_regressions_predict() -> None:
    """Summed over an orthonormal basis of targets."""
    x, y = layers(30, (4, 6))

    def predictions(layer: Array, ridge: float) -> Array:
        layer = layer - layer.mean(0)
        layer = layer / np.linalg.norm(layer) * math.sqrt(30)
        weights = np.linalg.solve(layer.T @ layer + 30 * ridge * np.eye(layer.shape[1]), layer.T)
        return np.asarray(layer @ weights)

    for ridge in (1e-12, 0.05, 3.0):
        expected = np.sum((predictions(x, ridge) - predictions(y, ridge)) ** 2)
        assert GULP(ridge=ridge)(x, y) == pytest.approx(expected, rel=1e-8)


@pytest.mark.parametrize("ridge", [-1.0, math.inf, math.nan])
def test_a_ridge_is_a_penalty(ridge: float) -> None:
    with pytest.raises(InvalidInputError, match="ridge is a penalty"):
        GULP(ridge=ridge)


@pytest.mark.parametrize(("n", "p"), [(5, 8), (8, 8), (20, 8)])
@pytest.mark.filterwarnings("ignore::repsim.errors.UnreliableValueWarning")
def test_a_layer_overlaps_itself_as_far_as_its_rank(n: int, p: int) -> None:
    """rank / p, which is 1 only from n = p samples on."""
    (x,) = layers(n, (p,))
    assert EigenspaceOverlap()(x, x) == pytest.approx(min(n, p) / p, rel=1e-12)
    twice = np.column_stack([x, x])
    assert EigenspaceOverlap()(x, twice) == pytest.approx(min(n, p) / (2 * p), rel=1e-12)


@pytest.mark.parametrize("stored", [False, True])
@pytest.mark.parametrize("offset", [1e3, -1e-3, 0.0])
@pytest.mark.parametrize(("n", "p"), [(150, 20), (20, 150)])
def test_an_uncentred_layer_is_decomposed_as_it_is(
    tuned: Callable[..., None], n: int, p: int, *, offset: float, stored: bool
) -> None:
    """Whatever is streamed, and however large the mean is."""
    tuned(squared_from=64)
    (x,) = layers(n, (p,))
    x = x - x.mean(0) + offset
    factor = PrincipalSubspace(centred=False, loadings=True)(RowsOnDisk(x) if stored else torch.from_numpy(x))
    s = np.linalg.svd(x, compute_uv=False)
    kept = int(np.sum(s > s[0] * max(n, p) * np.finfo(np.float64).eps))
    assert (factor.n, factor.rank, factor.features) == (n, kept, p)
    np.testing.assert_allclose(factor.singular_values, s[:kept], rtol=1e-12, atol=1e-12 * s[0])
    assert factor.loadings is not None
    np.testing.assert_allclose(factor.rows(slice(None)) @ factor.loadings, x, atol=1e-11 * s[0])


# Chance


@pytest.mark.parametrize(
    "metric", [LinearRegression(), GULP(), GULP(ridge=0.3), EigenspaceOverlap()], ids=lambda metric: metric.spec
)
@pytest.mark.parametrize(("p", "q"), [(2, 3), (4, 1), (9, 2)])
@pytest.mark.slow
def test_chance_over_every_permutation(metric: Metric[Any], p: int, q: int) -> None:
    """Exactly, for any data."""
    rng = np.random.default_rng(1)
    x, y = rng.normal(size=(6, p)) + 1, rng.exponential(size=(6, q)) ** 2
    a, b = metric.recipe(as_samples(x)), metric.recipe(as_samples(y))
    values = [metric.pair(a, b.permuted(torch.tensor(order))) for order in itertools.permutations(range(6))]
    chance = metric.chance(a, b)
    assert chance is not None
    assert chance.exact
    assert np.mean(values) == pytest.approx(chance.mean, rel=1e-10)


@pytest.mark.parametrize(("n", "p", "q"), [(200, 30, 60), (100, 80, 90), (60, 200, 20)])
def test_chance_of_shapes_over_permutations(n: int, p: int, q: int) -> None:
    """To a fiftieth, whatever the spectra, and whether or not the spans fill the samples."""
    rng = np.random.default_rng(2)
    x, y = (rng.normal(size=(n, width)) * np.geomspace(1, 0.1, width) for width in (p, q))
    a, b = PrincipalSubspace()(as_samples(x)), PrincipalSubspace()(as_samples(y))
    orders = [torch.from_numpy(rng.permutation(n)) for _ in range(20)]
    values = np.mean([Nuclear().pair(a, b.permuted(order)) for order in orders])
    assert Nuclear().chance(a, b).mean == pytest.approx(values, rel=0.02)
    assert Nuclear().chance(a, b) == Nuclear().chance(b, a)
    fresh = chance_alignment(*(spectral_means(layer.shares, n - 1) for layer in (a, b)))
    assert Nuclear().chance(a, b).mean == pytest.approx(fresh, rel=1e-12)


def test_chance_of_white_layers() -> None:
    """8 / (3 pi) sqrt(d / n) of few directions; Wachter's law of many, as all correlations count alike."""
    white = torch.full((400,), 1 / 400, dtype=torch.float64)
    few, many = (spectral_means(white, dimensions) for dimensions in (10**6 - 1, 8000))
    assert chance_alignment(few, few) == pytest.approx(8 / (3 * math.pi) * math.sqrt(400 / 10**6), rel=1e-3)
    assert chance_alignment(many, many) == pytest.approx(0.19078, abs=1e-4)


@pytest.mark.parametrize("metric", SHAPES, ids=lambda metric: metric.name)
def test_a_layer_that_spans_all_samples_warns(metric: Metric[Any]) -> None:
    x, y = layers(10, (9, 3))
    with pytest.warns(UnreliableValueWarning, match="9 directions span all n = 10 samples"):
        metric(x, y)


# Gradients


def gradients(metric: Metric[Any], *arrays: Array) -> list[Tensor]:
    tensors = [torch.from_numpy(array).requires_grad_() for array in arrays]
    return list(torch.autograd.grad(metric(*tensors), tensors))


@pytest.mark.parametrize("metric", SHAPES, ids=lambda metric: metric.name)
def test_a_distance_of_zero_has_no_gradient(metric: Metric[Any]) -> None:
    (x,) = layers(20, (4,))
    turned = x @ np.linalg.qr(np.random.default_rng(0).normal(size=(4, 4)))[0]
    if metric.sense == "similarity":
        assert max(float(gradient.abs().max()) for gradient in gradients(metric, x, turned)) < 1e-12
        return
    with pytest.raises(UndefinedValueError, match="no gradient where it is 0"):
        gradients(metric, x, turned)


@pytest.mark.parametrize("metric", SHAPES, ids=lambda metric: metric.name)
def test_gradients_of_layers_that_all_but_coincide(metric: Metric[Any]) -> None:
    (x,) = layers(20, (4,))
    near = x + 1e-4 * np.random.default_rng(0).normal(size=x.shape)
    tensors = [torch.from_numpy(array).requires_grad_() for array in (x, near)]
    assert torch.autograd.gradcheck(metric, tensors, eps=1e-8, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("metric", [*CENTRED, EigenspaceOverlap()], ids=lambda metric: metric.spec)
def test_equal_singular_values_and_dead_units_have_gradients(metric: Metric[Any]) -> None:
    """Directions of equal strength are a basis like any other; a unit that is always 0 has the gradient 0, or another
    that is finite."""
    (y,) = layers(30, (5,))
    for x in (spanned(30, np.ones(4)), np.column_stack([y[:, :3] ** 2, np.zeros(30)])):
        for gradient in gradients(metric, x, y):
            assert bool(torch.isfinite(gradient).all())
            assert float(gradient.abs().max()) > 1e-6


@pytest.mark.parametrize("metric", SHAPES, ids=lambda metric: metric.name)
def test_a_dead_unit_gets_the_smallest_subgradient(metric: Metric[Any]) -> None:
    """0: whichever way it moves, the nuclear norm grows."""
    (y,) = layers(30, (5,))
    gradient = gradients(metric, np.column_stack([y[:, :3] ** 2, np.zeros(30)]), y)[0]
    assert float(gradient[:, 3].abs().max()) < 1e-12 < float(gradient[:, :3].abs().max())


@pytest.mark.parametrize("scale", [1e-200, 1e200])
def test_no_square_overflows(scale: float) -> None:
    x, y = layers(30, (4, 5))
    """Nor becomes 0: a value, and gradients of values."""
    for metric in (*CENTRED, EigenspaceOverlap()):
        unit = scale if metric.name == "procrustes_size" else 1
        assert metric(scale * x, scale * y) == pytest.approx(unit * metric(x, y), rel=1e-12)
        for results, expected in zip(gradients(metric, scale * x, scale * y), gradients(metric, x, y), strict=True):
            torch.testing.assert_close(results * scale / unit, expected, rtol=1e-8, atol=1e-10)


@pytest.mark.slow
def test_equal_singular_values_have_gradients_that_are_right() -> None:
    (y,) = layers(30, (5,))
    tensors = [torch.from_numpy(array).requires_grad_() for array in (spanned(30, np.ones(4)), y)]
    for metric in (*CENTRED, EigenspaceOverlap()):
        assert torch.autograd.gradcheck(metric, tensors, atol=1e-5, rtol=1e-4), metric


def test_leading_directions_of_equal_strength_have_none() -> None:
    (y,) = layers(30, (5,))
    x = spanned(30, np.array([2, 1, 1, 1]))
    with pytest.raises(UndefinedValueError, match="two singular values of the layer are equal"):
        gradients(SVCCA(variance=0.8), x, y)
    assert all(bool(gradient.isfinite().all()) for gradient in gradients(SVCCA(variance=1.0), x, y))


@pytest.mark.filterwarnings("ignore::repsim.errors.UnreliableValueWarning")
def test_pwcca_has_none_where_correlations_tie() -> None:
    """8 + 7 directions in 12 dimensions: three correlations are 1. Where all are, the value is 1 for any data."""
    x, y = layers(13, (8, 7))
    with pytest.raises(UndefinedValueError, match="two canonical correlations are equal"):
        gradients(PWCCA(), x, y)
    assert max(float(gradient.abs().max()) for gradient in gradients(PWCCA(), *layers(13, (12, 7)))) < 1e-12


def test_gradients_come_in_the_dtype_of_the_layer() -> None:
    x, y = layers(30, (4, 5), np.float32)
    exact = [array.astype(np.float64) for array in (x, y)]
    for metric in (*CENTRED, EigenspaceOverlap(), get("svcca:variance=0.8")):
        for results, expected in zip(gradients(metric, x, y), gradients(metric, *exact), strict=True):
            assert results.dtype == torch.float32
            torch.testing.assert_close(results.double(), expected, rtol=1e-4, atol=1e-6)
