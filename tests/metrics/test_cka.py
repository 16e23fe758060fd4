"""CKA against published digits, closed forms, and float64 in plain numpy."""

import itertools
import math
from contextlib import nullcontext
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from repsim.errors import InvalidInputError, UndefinedValueError, UnreliableValueWarning
from repsim.labels import partition
from repsim.metrics import get
from repsim.metrics.algorithms.cross import Cross
from repsim.metrics.algorithms.feature_space import MomentSweep
from repsim.metrics.base import Array, Metric, as_samples
from repsim.metrics.cka import CKA
from repsim.metrics.recipes.gram import CentredGram, Reordered, order_statistics
from repsim.testing.examples import RowsOnDisk, related_layers
from tests.metrics.references import cosine, gram, hsic0, hsic1, u_centred


def factors(metric: Metric[Any], layers: list[Array]) -> list[Any]:
    return [metric.recipe(as_samples(layer)) for layer in layers]


# Digits


@pytest.mark.parametrize(
    ("spec", "value"),
    [
        ("cka:estimator=biased", 0.4893427391044151),
        ("cka", 0.023598698580556743),
        ("cka:kernel=rbf,sigma=1,estimator=biased", 0.8940267986288912),
        ("cka:kernel=rbf,sigma=1", 0.06763941584088347),
    ],
)
def test_digits_on_uniform_data(spec: str, value: float) -> None:
    np.random.seed(0)  # noqa: NPY002 - the published digits are of this generator
    x, y = np.random.uniform(size=(30, 25)), np.random.uniform(size=(30, 25))  # noqa: NPY002
    assert get(spec)(x, y) == pytest.approx(value, rel=1e-12)


@pytest.mark.parametrize(
    ("spec", "value"),
    [
        ("cka:estimator=biased", 0.557613256612),
        ("cka", 0.513456489506),
        ("cka:kernel=rbf,estimator=biased", 0.654831182261),
        ("cka:kernel=rbf,estimator=biased,bandwidth=0.5", 0.654831182261),
    ],
)
def test_digits_on_gaussian_data(spec: str, value: float) -> None:
    np.random.seed(1337)  # noqa: NPY002
    x = np.random.randn(100, 10)  # noqa: NPY002
    y = np.random.randn(100, 10) + x  # noqa: NPY002
    assert get(spec)(x, y) == pytest.approx(value, abs=1e-12)


# Closed forms


@pytest.mark.parametrize(("n", "p", "q"), [(256, 64, 512), (300, 200, 200)])
def test_unrelated_gaussians(rng: np.random.Generator, n: int, p: int, q: int) -> None:
    """Biased: sqrt(pq / ((n + p)(n + q))). Debiased: 0, with standard deviation sqrt(2 / (n (n - 3)))."""
    draws = 20
    pairs = [(rng.normal(size=(n, p)), rng.normal(size=(n, q))) for _ in range(draws)]
    chance = math.sqrt(p * q / ((n + p) * (n + q)))
    with pytest.warns(UnreliableValueWarning) if q > n else pytest.MonkeyPatch.context():
        biased = [CKA(estimator="biased")(x, y) for x, y in pairs]
    assert np.mean(biased) == pytest.approx(chance, abs=0.003)
    debiased = [CKA()(x, y) for x, y in pairs]
    sd = math.sqrt(2 / (n * (n - 3)))
    assert abs(np.mean(debiased)) < 4 * sd / math.sqrt(draws)
    assert min(debiased) < 0 < max(debiased)  # never clipped


@pytest.mark.slow
@pytest.mark.parametrize("spec", ["cka", "cka:kernel=rbf"])
def test_moments_over_every_permutation(rng: np.random.Generator, spec: str) -> None:
    """Mean exactly 0 and variance exactly 2 / (n (n - 3)), for any data."""
    n = 6
    x, y = rng.normal(size=(n, 3)), rng.exponential(size=(n, 5)) ** 2
    metric = get(spec)
    (a,) = factors(metric, [x])
    values = metric.block([a], factors(metric, [y[list(order)] for order in itertools.permutations(range(n))]))
    assert values.mean() == pytest.approx(0, abs=1e-13)
    assert values.var() == pytest.approx(2 / (n * (n - 3)), rel=1e-12)


def test_three_formulas_of_hsic1(rng: np.random.Generator) -> None:
    """Song's formula, U-centring, and the form in feature space, which needs no n x n matrix."""
    n = 25
    x, y = (layer - layer.mean(0) for layer in related_layers(rng, n, 7, 40))
    K, L = gram(x), gram(y)
    song = hsic1(K, L)
    assert np.sum(u_centred(K) * u_centred(L)) / (n * (n - 3)) == pytest.approx(song, rel=1e-12)

    def in_features(x: Array, y: Array) -> float:
        g, h = (x**2).sum(1), (y**2).sum(1)
        square = np.sum((x.T @ y) ** 2)
        return float((square - n / (n - 2) * (g @ h) + g.sum() * h.sum() / ((n - 1) * (n - 2))) / (n * (n - 3)))

    assert in_features(x, y) == pytest.approx(song, rel=1e-12)
    value = in_features(x, y) / math.sqrt(in_features(x, x) * in_features(y, y))
    assert CKA()(x, y) == pytest.approx(value, rel=1e-12)


@pytest.mark.parametrize(("n", "p", "q"), [(4, 1, 1), (25, 7, 40), (30, 30, 2)])
def test_a_moment_is_hsic(rng: np.random.Generator, n: int, p: int, q: int) -> None:
    """Debiased: n (n - 3) HSIC_1; biased: (n - 1)^2 HSIC_0. Of the features as they were centred and scaled."""
    a, b = factors(CKA(), related_layers(rng, n, p, q))
    x, y = a.features.numpy(), b.features.numpy()
    for first, second, product in ((a, b, x.T @ y), (b, a, y.T @ x), (a, a, x.T @ x)):
        cross = Cross(first, second, torch.from_numpy(product))
        K, L = (factor.features.numpy() @ factor.features.numpy().T for factor in (first, second))
        debiased = CKA().moment(cross)
        biased = CKA(estimator="biased").moment(cross)
        assert debiased == pytest.approx(n * (n - 3) * hsic1(K, L), rel=1e-9, abs=1e-9)
        assert biased == pytest.approx((n - 1) ** 2 * hsic0(K, L), rel=1e-9)


@pytest.mark.parametrize(
    ("spec", "algorithms"),
    [
        ("cka", ("gram", "moments")),
        ("cka:estimator=biased", ("gram", "moments")),
        ("cka:estimator=minibatch,batch=8", ("gram",)),
        ("cka:kernel=rbf", ("gram",)),
        ("cka:kernel=rbf,estimator=biased", ("gram",)),
    ],
)
def test_algorithms(spec: str, algorithms: tuple[str, ...]) -> None:
    assert get(spec).algorithms == algorithms


@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float64, 1e-9), (np.float32, 2e-6)])
@pytest.mark.parametrize("estimator", ["debiased", "biased"])
def test_a_wide_rbf_kernel_is_the_linear_kernel(
    rng: np.random.Generator, estimator: str, dtype: type[np.floating[Any]], tolerance: float
) -> None:
    """In float32 too, although all values of the kernel then round to 1."""
    x, y = (layer.astype(dtype) for layer in related_layers(rng, 200, 6, 9))
    wide, linear = get(f"cka:kernel=rbf,bandwidth=1e5,estimator={estimator}"), get(f"cka:estimator={estimator}")
    assert wide(x, y) == pytest.approx(linear(x, y), abs=tolerance)


# Accuracy of blocks


@pytest.mark.parametrize(("n", "widths"), [(50, (20, 50, 90)), (600, (8, 40))], ids=["one tile", "many tiles"])
@pytest.mark.parametrize("estimator", ["debiased", "biased"])
@pytest.mark.parametrize("kernel", ["linear", "rbf"])
def test_blocks_are_exact(rng: np.random.Generator, kernel: str, estimator: str, n: int, widths: tuple[int]) -> None:
    """1e-12 for pairs in float64, 1e-6 where float32 takes part; offsets, scales and mixed dtypes change nothing."""
    layers = []
    for layer in related_layers(rng, n, *widths):
        layers += [(layer + 100).astype(np.float32), layer, (layer * 1e-25).astype(np.float32), layer * 1e200]
    layers[-3] += 100
    metric = get(f"cka:kernel={kernel},estimator={estimator}")
    centred = [gram(x / np.abs(x).max(), kernel) for x in (layer.astype(np.float64) for layer in layers)]
    if estimator == "debiased":
        centred = [u_centred(K) for K in centred]
    else:
        H = np.eye(n) - 1 / n
        centred = [H @ K @ H for K in centred]
    expected = np.array([[cosine(A, B) for B in centred] for A in centred])
    prepared = factors(metric, layers)
    double = np.array([layer.dtype == np.float64 for layer in layers])
    exact = double[:, None] & double
    for block in (metric.block(prepared, prepared), metric.block(prepared, prepared[::-1])[:, ::-1]):
        np.testing.assert_allclose(block[exact], expected[exact], rtol=0, atol=1e-12)
        np.testing.assert_allclose(block, expected, rtol=0, atol=1e-6)
        np.testing.assert_allclose(np.diag(block), 1, rtol=0, atol=1e-6)


def test_long_sums_lose_nothing_in_float32(rng: np.random.Generator) -> None:
    """Summing a whole tile in float32 was off by 5e-5 here."""
    x, y = (layer.astype(np.float32) for layer in related_layers(rng, 1500, 3, 4))
    metric = CKA()
    a, b = factors(metric, [x, y])
    assert metric.block([a], [a])[0, 0] == pytest.approx(1, abs=1e-7)
    exact = CKA()(x.astype(np.float64), y.astype(np.float64))
    assert metric.pair(a, b) == pytest.approx(exact, abs=1e-7)


@pytest.mark.parametrize("factor", [30.0, 1e3, 1e4, 1e6])
def test_one_large_sample_does_not_hide_the_others(rng: np.random.Generator, factor: float) -> None:
    """In feature space almost all of ||X'Y||^2 then belongs to that sample, and debiasing subtracts it."""
    x, y = related_layers(rng, 1500, 60, 300)
    for layer in (x, y):
        layer[7] *= factor
    x, y = x.astype(np.float32), y.astype(np.float32)
    metric = CKA()
    a, b = factors(metric, [x, y])
    (values,) = MomentSweep([a], [b], [metric], chunk=4096, room=2**27).run()
    if factor == 1e6:  # the others are only rounding errors
        assert np.isnan(values)
        return
    expected = cosine(*(u_centred(gram(layer.astype(np.float64))) for layer in (x, y)))
    assert values[0, 0] == pytest.approx(expected, abs=1e-7)


def test_half_precision_is_widened_first(rng: np.random.Generator) -> None:
    x, y = (layer.astype(np.float16) for layer in related_layers(rng, 60, 5, 6))
    assert CKA()(x, y) == CKA()(x.astype(np.float32), y.astype(np.float32))
    assert CKA()(torch.from_numpy(x).bfloat16(), y) == pytest.approx(CKA()(x, y), abs=1e-2)


@pytest.mark.parametrize("kernel", ["linear", "rbf", "distance"])
@pytest.mark.parametrize("mean", [0, 1000])
def test_ordinary_layers_are_prepared_as_any_others_are(rng: np.random.Generator, kernel: Any, mean: int) -> None:
    """To the bit: without the extremes of the columns, from which tiny, huge and constant layers are told."""
    x = torch.from_numpy((related_layers(rng, 40, 30)[0] + mean).astype(np.float32))
    recipe = CentredGram(kernel, sigma=1.0 if kernel == "rbf" else None)
    state = recipe.fit(x)
    for factor in (2.0**-40, 2.0**40):
        other = recipe.fit(x * factor)
        assert torch.equal(other.mean, state.mean * factor)
        assert torch.equal(other.squared_norms, state.squared_norms)
        assert torch.equal(recipe.apply(x * factor, other).rows(slice(40)), recipe.apply(x, state).rows(slice(40)))


@pytest.mark.parametrize("step", [0, 1, 2])
@pytest.mark.parametrize("mean", [1.0, 3e4])
def test_a_layer_that_varies_by_rounding_errors_only_is_constant(mean: float, step: int) -> None:
    """As the extremes of its columns decide: two steps are more than rounding."""
    x = torch.full((8, 5), mean)
    for _ in range(step):
        x[3] = torch.nextafter(x[3], torch.tensor(torch.inf))
    for recipe in (CentredGram(), CentredGram(batch=4)):
        with nullcontext() if step > 1 else pytest.raises(UndefinedValueError, match="constant"):
            recipe.fit(x)


def test_a_prepared_layer_holds_no_n_by_n_matrix(rng: np.random.Generator) -> None:
    n = 3000
    (factor,) = factors(CKA(kernel="rbf", sigma=1.0), [rng.normal(size=(n, 2)).astype(np.float32)])
    assert factor.nbytes == n * 2 * 4 + 2 * n * 8


# Layers in files


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("kernel", ["linear", "rbf", "distance"])
@pytest.mark.parametrize("batch", [None, 7])
def test_a_layer_in_a_file_is_prepared_as_a_tensor_is(
    rng: np.random.Generator, kernel: Any, batch: int | None, dtype: type[np.floating[Any]]
) -> None:
    """No array as large as the layer is held, and the layer is not read more often than necessary.

    The same to the bit, except for the row sums: a product may round differently in another memory layout.
    """
    n, p = 40, 6
    x = (related_layers(rng, n, p)[0] + 10).astype(dtype)
    source = RowsOnDisk(x)
    recipe = CentredGram(kernel, bandwidth=0.5 if kernel == "rbf" else None, batch=batch)
    state, same = recipe.fit(source), recipe.fit(torch.from_numpy(x))
    for name in ("mean", "scale", "squared_norms", "width"):
        np.testing.assert_array_equal(getattr(state, name), getattr(same, name))
    rounding = 32 * float(np.finfo(dtype).eps)  # of sums of a few numbers near 1
    np.testing.assert_allclose(state.row_sums.numpy(), same.row_sums.numpy(), rtol=0, atol=rounding)
    if kernel == "linear" and batch is None:
        first = [1] if dtype == np.float64 else []  # from which sums in float64 start
        assert source.reads == [*first, n, n]  # the means, the norms
    source.reads.clear()
    a, b = recipe.apply(source, state), recipe.apply(torch.from_numpy(x), state)
    assert source.reads == []
    count = n if batch is None else 35
    assert (a.n, a.p, a.block) == (b.n, b.p, b.block) == (count, p, batch or n)
    assert (a.in_memory, b.in_memory) == (False, True)
    assert a.nbytes == 2 * count * 8
    assert b.nbytes == a.nbytes + count * p * dtype(0).nbytes
    for i in (slice(0, count), slice(3, 20)):
        np.testing.assert_array_equal(a.rows(i), b.rows(i))
    assert source.reads == [count, 17]  # only the requested samples
    at_once = recipe(torch.from_numpy(x))  # centred once
    np.testing.assert_array_equal(at_once.features[:], b.features[:])
    np.testing.assert_array_equal(at_once.squared_norms, b.squared_norms)
    np.testing.assert_array_equal(at_once.row_sums, same.row_sums)
    assert at_once.width == b.width


def test_rows_in_another_order(rng: np.random.Generator) -> None:
    x, order = rng.normal(size=(9, 3)), torch.tensor([8, 0, 3, 3])
    rows = Reordered(RowsOnDisk(x), order)
    assert (rows.shape, rows.dtype, rows.device) == ((4, 3), torch.float64, torch.device("cpu"))
    np.testing.assert_array_equal(rows[:], x[[8, 0, 3, 3]])
    np.testing.assert_array_equal(rows[1:3], x[[0, 3]])
    np.testing.assert_array_equal(rows[torch.tensor([3, 0])], x[[3, 8]])


# The width of the RBF kernel


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("n", [4, 5, 6, 7, 50, 51, 1100])
def test_width_is_numpys_median(rng: np.random.Generator, n: int, dtype: type[np.floating[Any]]) -> None:
    x = rng.normal(size=(n, 7)).astype(dtype)
    state = CentredGram("rbf", bandwidth=0.3).fit(torch.from_numpy(x))
    assert state.width is not None
    wide = x.astype(np.float64)
    g = (wide**2).sum(1)
    median = np.median((g[:, None] + g - 2 * wide @ wide.T).clip(0) * (1 - np.eye(n)))
    assert math.frexp(state.scale)[0] == 0.5, "to divide by it rounds nothing"
    assert 0.25 <= float(state.squared_norms.mean()) < 1
    width = 0.3 * math.sqrt(median) / state.scale
    assert state.width == pytest.approx(width, rel=1e-12 if dtype == np.float64 else 1e-6)


@given(
    st.sampled_from([np.float32, np.float64]),
    st.lists(st.one_of(st.floats(0, 1e30), st.just(1.5), st.just(0.0)), min_size=2, max_size=30),
    st.data(),
)
def test_order_statistics_by_bits(dtype: type[np.floating[Any]], values: list[float], data: st.DataObject) -> None:
    """The algorithm for more values than may be held gives the same values."""
    array = np.array(values, dtype)
    cut = data.draw(st.integers(0, len(values)))
    ranks = data.draw(st.lists(st.integers(0, len(values) - 1), min_size=1, max_size=2))

    def pieces() -> list[torch.Tensor]:
        return [torch.from_numpy(array[:cut]), torch.from_numpy(array[cut:])]

    expected = np.sort(array)[ranks].tolist()
    assert order_statistics(lambda: iter(pieces()), len(values), ranks, hold=0) == expected
    assert order_statistics(lambda: iter(pieces()), len(values), ranks) == expected


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_mostly_identical_samples_have_no_median_width(rng: np.random.Generator, dtype: type[np.floating[Any]]) -> None:
    x = np.tile(rng.normal(size=40), (30, 1)).astype(dtype)
    x[:3] += rng.normal(size=(3, 40))
    y = rng.normal(size=(30, 4))
    with pytest.raises(UndefinedValueError, match="median distance between samples is 0"):
        CKA(kernel="rbf")(x, y)
    assert math.isfinite(CKA(kernel="rbf", sigma=1.0)(x, y))


# Undefined and unreliable values


def test_an_undefined_layer_does_not_affect_others(rng: np.random.Generator) -> None:
    """A layer that differs from a constant in one sample is 0 off the diagonal."""
    x, y = related_layers(rng, 20, 4, 5)
    for dtype in (np.float32, np.float64):
        spike = np.full((20, 3), 0.1, dtype)
        spike[7] = 5
        metric = CKA()
        a, b, c = factors(metric, [x, spike, y])
        block = metric.block([a, b, c], [a, b, c])
        np.testing.assert_array_equal(np.isnan(block), [[False, True, False], [True] * 3, [False, True, False]])
        with pytest.raises(UndefinedValueError, match="differs from a constant in too few samples"):
            metric.pair(a, b)
        assert CKA(estimator="biased")(spike, spike) == pytest.approx(1, abs=1e-6)  # biased has a value for it


def test_a_huge_constant_column_does_not_hide_the_others(rng: np.random.Generator) -> None:
    x, y = (layer.astype(np.float32) for layer in related_layers(rng, 50, 4, 5))
    x *= 1e-2
    with_constant = np.column_stack([x, np.full(50, 1e6, np.float32)])
    assert CKA()(with_constant, y) == pytest.approx(CKA()(x, y), abs=1e-7)


def test_rounding_around_a_constant_is_a_constant() -> None:
    x = np.full((30, 4), 1000, np.float32)
    x[::2] = np.nextafter(np.float32(1000), np.float32(2000))
    with pytest.raises(UndefinedValueError, match="constant"):
        CKA()(x, np.arange(60.0).reshape(30, 2))


def test_biased_with_more_features_than_samples_warns(rng: np.random.Generator) -> None:
    x, y = related_layers(rng, 20, 4, 21)
    with pytest.warns(UnreliableValueWarning, match=r"n = 20 samples but 21 features: the biased estimator"):
        CKA(estimator="biased")(x, y)
    CKA()(x, y)  # warnings are errors here: this one must not warn


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("cka:bandwidth=0.5", "bandwidth belongs to the RBF kernel; write cka:kernel=rbf,bandwidth=0.5"),
        ("cka:kernel=rbf,sigma=-1", "sigma must be a positive number, got -1.0"),
        ("cka:kernel=rbf,bandwidth=nan", "bandwidth must be a positive number, got nan"),
        ("cka:kernel=rbf,bandwidth=1,sigma=1", "not both"),
    ],
)
def test_impossible_options(spec: str, message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        get(spec)


def test_hsic0_of_the_reference_is_the_published_one(rng: np.random.Generator) -> None:
    """Kornblith 2019, eq. 1-2: for centred linear kernels, HSIC_0 (n - 1)^2 = ||X'Y||_F^2."""
    x, y = (layer - layer.mean(0) for layer in related_layers(rng, 15, 3, 4))
    assert hsic0(gram(x), gram(y)) * 14**2 == pytest.approx(np.sum((x.T @ y) ** 2), rel=1e-12)


@pytest.mark.parametrize("factor", [1e-20, 1e-3, 1.0, 1e20])
@pytest.mark.parametrize("mean", [0, 300])
def test_minibatches_of_float32_of_any_scale_and_mean(factor: float, mean: int, rng: np.random.Generator) -> None:
    layers = [(factor * (layer + mean)).astype(np.float32) for layer in related_layers(rng, 150, 40, 70)]
    metric = get("cka:estimator=minibatch,batch=32")
    wide = [layer.astype(np.float64) / factor for layer in layers]
    batches = partition(150)[:128].reshape(4, 32)
    a, b = ([gram(layer[batch] - layer.mean(0)) for batch in batches] for layer in wide)
    xy, xx, yy = (sum(map(hsic1, left, right)) for left, right in ((a, b), (a, a), (b, b)))
    assert metric(*layers) == pytest.approx(xy / math.sqrt(xx * yy), abs=3e-7)
    recipe = metric.recipe
    for layer in layers:
        x = as_samples(layer)
        streamed = recipe(RowsOnDisk(x.numpy()))
        factor_in_memory = recipe(x)
        assert torch.equal(streamed.rows(slice(0, 128)), factor_in_memory.rows(slice(0, 128)))
        assert torch.equal(streamed.row_sums, factor_in_memory.row_sums)
