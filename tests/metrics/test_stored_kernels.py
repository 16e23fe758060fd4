"""CKA from Gram matrices of blocks and from sketches, against the full features in float64 and against chance."""

import functools
import math
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch

from repsim.errors import InvalidInputError, UndefinedValueError
from repsim.labels import Form
from repsim.metrics import get
from repsim.metrics.base import Array, as_samples
from repsim.metrics.cka import CKA
from repsim.metrics.recipes.stored_kernels import StoredGrams, TwoSketches
from repsim.testing.examples import related_layers
from tests.metrics.references import minibatch_cka, sketch_error, sketched_cka, u_centred

related = partial(related_layers, offset=1.0)


def as_stored(x: Array, size: int, dtype: type = np.float32) -> torch.Tensor:
    """Return the Gram matrices (n // B, B, B) that the readout gram:B stores for features (n, p)."""
    blocks = [x[start : start + size] for start in range(0, len(x) - size + 1, size)]
    grams = [(block - block.mean(0)) @ (block - block.mean(0)).T / x.shape[1] for block in blocks]
    array = torch.from_numpy(np.stack(grams).astype(dtype))
    return as_samples(array.flatten(1)).view(array.shape)  # as it is read again


def sketches(x: Array, m: int, rng: np.random.Generator) -> Array:
    """Return two sketches (n, 2, m) from explicit matrices: a random sign and a balanced bucket for each feature."""
    p = x.shape[1]
    both = []
    for _ in range(2):
        S = np.zeros((p, m))
        S[rng.permutation(p), np.arange(p) % m] = rng.choice([-1.0, 1.0], size=p)
        both.append(x @ S)
    return np.stack(both, 1)


def prepared(x: Array) -> Any:
    return TwoSketches()(torch.from_numpy(x))


# Gram matrices of blocks


@pytest.mark.slow
@pytest.mark.parametrize(("n", "size"), [(103, 16), (40, 4), (1300, 600)], ids=["a rest", "smallest", "many tiles"])
@pytest.mark.parametrize("estimator", ["debiased", "biased"])
def test_grams_give_minibatch_cka(rng: np.random.Generator, estimator: str, n: int, size: int) -> None:
    """1e-12 in float64 and 1e-6 in float32, for all pairs."""
    layers = related(rng, n, 6, 40, 90)
    layers[2] *= 1e-12
    metric = get(f"cka:estimator={estimator}")
    expected = [[minibatch_cka(x, y, size, estimator=estimator) for y in layers] for x in layers]
    for dtype, tolerance in ((np.float64, 1e-12), (np.float32, 1e-6)):
        stored = [StoredGrams()(as_stored(x, size, dtype)) for x in layers]
        np.testing.assert_allclose(metric.block(stored, stored), expected, rtol=0, atol=tolerance)
        assert metric.pair(stored[0], stored[1]) == pytest.approx(expected[0][1], abs=tolerance)


@pytest.mark.parametrize("estimator", ["debiased", "biased"])
def test_grams_that_nobody_centred_are_centred_here(rng: np.random.Generator, estimator: str) -> None:
    x, y = related(rng, 64, 7, 9)
    blocks = [torch.from_numpy(layer.reshape(4, 16, -1)) for layer in (x, y)]
    a, b = (StoredGrams()(block @ block.mT) for block in blocks)
    expected = minibatch_cka(x, y, 16, estimator=estimator)
    assert get(f"cka:estimator={estimator}").pair(a, b) == pytest.approx(expected, abs=1e-12)


def test_the_partition_is_the_callers(rng: np.random.Generator) -> None:
    x, y = related(rng, 64, 7, 9)
    order = rng.permutation(64)
    values = [
        CKA().pair(*(StoredGrams()(as_stored(layer, 8, np.float64)) for layer in pair))
        for pair in ((x, y), (x[order], y[order]))
    ]
    assert values[1] == pytest.approx(minibatch_cka(x[order], y[order], 8), abs=1e-12)
    assert abs(values[0] - values[1]) > 1e-3


def test_one_block_of_all_samples_is_cka_itself(rng: np.random.Generator) -> None:
    x, y = related(rng, 50, 7, 60)
    for estimator in ("debiased", "biased"):
        metric = get(f"cka:estimator={estimator}")
        a, b = (StoredGrams()(as_stored(layer, 50, np.float64)) for layer in (x, y[:, :45]))
        assert metric.pair(a, b) == pytest.approx(metric(x, y[:, :45]), abs=1e-12)


def test_debiased_does_not_depend_on_the_size_of_the_batches_and_biased_does(rng: np.random.Generator) -> None:
    x, y = related(rng, 2048, 60, 80)
    full = CKA()(x, y)

    def values(estimator: str) -> list[float]:
        metric = get(f"cka:estimator={estimator}")
        return [metric.pair(*(StoredGrams()(as_stored(z, b, np.float64)) for z in (x, y))) for b in (512, 64, 8)]

    np.testing.assert_allclose(values("debiased"), full, atol=0.01)
    biased = values("biased")
    assert biased[2] > biased[1] > biased[0] > full
    assert biased[2] > full + 0.04


def test_float16_costs_four_digits(rng: np.random.Generator) -> None:
    x, y = related(rng, 256, 300, 500)
    a, b = (StoredGrams()(as_stored(layer, 64, np.float16)) for layer in (x, y))
    assert CKA().pair(a, b) == pytest.approx(minibatch_cka(x, y, 64), abs=1e-4)
    assert CKA().pair(a, a) == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16])
def test_blocks_in_which_nothing_is_left(rng: np.random.Generator, dtype: type) -> None:
    """One sample of a block differs from the others, or all have features of their own.

    Then the Gram matrix is u_i + u_j off its diagonal, and only rounding errors remain after centring.
    """
    x, y = related(rng, 32, 4, 5)
    spike = np.full((32, 3), 0.1)
    spike[7] = rng.normal(size=3)
    own = np.diag(rng.uniform(1, 3, size=32))
    a, b, c, d = (StoredGrams()(as_stored(layer, 8, dtype)) for layer in (x, spike, y, own))
    lost = np.array([False, True, False, True])
    np.testing.assert_array_equal(np.isnan(CKA().block([a, b, c, d], [a, b, c, d])), lost[:, None] | lost)
    with pytest.raises(UndefinedValueError, match="differs from a constant in too few samples"):
        CKA().pair(a, b)
    with pytest.raises(UndefinedValueError, match="constant: within every block"):
        StoredGrams()(as_stored(np.ones((32, 3)), 8, dtype))


def test_blocks_that_are_constant_count_for_nothing(rng: np.random.Generator) -> None:
    x, y = related(rng, 32, 4, 5)
    x[8:16] = 3
    a, b = (StoredGrams()(as_stored(layer, 8, np.float64)) for layer in (x, y))
    assert CKA().pair(a, b) == pytest.approx(minibatch_cka(x, y, 8), abs=1e-12)


def test_blocks_too_small_for_hsic1() -> None:
    with pytest.raises(InvalidInputError, match="blocks of 3 samples are too small: HSIC_1 needs at least 4"):
        StoredGrams()(torch.eye(3).expand(5, 3, 3))


# Two sketches


def test_sketches_give_the_estimate_written_out(rng: np.random.Generator) -> None:
    """For all pairs, halves of other sizes, tiny scales; 1 with itself; several tiles a matrix."""
    layers = [sketches(x, 20, rng) for x in related(rng, 600, 90, 200, 300)]
    layers[1] *= 1e-12
    layers[2][:, 1] *= 3  # not what a sketch gives, but it shows that both halves keep their common scale
    layers[2][:, 0, 5] += 1000
    expected = [[sketched_cka(x, y) for y in layers] for x in layers]
    for dtype, tolerance in ((np.float64, 1e-12), (np.float32, 1e-6)):
        factors = [prepared(x.astype(dtype)) for x in layers]
        np.testing.assert_allclose(CKA().block(factors, factors), expected, rtol=0, atol=tolerance)
        np.testing.assert_allclose(CKA().block(factors[:1], factors[1:]), [expected[0][1:]], rtol=0, atol=tolerance)
        np.testing.assert_allclose(np.diag(CKA().block(factors, factors)), 1, rtol=0, atol=1e-6)


def test_sketches_that_lose_nothing_give_cka_itself(rng: np.random.Generator) -> None:
    x, y = related(rng, 40, 30, 50)
    a, b = (prepared(sketches(layer, layer.shape[1], rng)) for layer in (x, y))
    for estimator in ("debiased", "biased"):
        metric = get(f"cka:estimator={estimator}")
        exact = (metric.recipe(torch.from_numpy(layer)) for layer in (x, y))
        assert metric.pair(a, b) == pytest.approx(metric.pair(*exact), abs=1e-12)


class Simulation:
    """300 draws of sketches of two layers: CKA from both sketches, and the products that it is made of."""

    def __init__(self, m: int, kind: str) -> None:
        rng = np.random.default_rng(3)
        signal = rng.normal(size=(60, 8)) * np.geomspace(1, 0.3, 8)
        self.m, self.x = m, signal @ rng.normal(size=(8, 900)) + rng.normal(size=(60, 900))
        self.y = rng.normal(size=(60, 700))
        if kind == "alike":
            self.y += signal[:, ::-1] @ rng.normal(size=(8, 700))
        if kind == "distant":
            self.y = 3 * self.y + signal[:, :2] @ rng.normal(size=(2, 700))
        draws = [(sketches(self.x, m, rng), sketches(self.y, m, rng)) for _ in range(300)]
        self.values = np.array([CKA().pair(prepared(s), prepared(t)) for s, t in draws])
        self.truth, self.sd = CKA()(self.x, self.y), sketch_error(self.x, self.y, m)
        A, B = u_centred(self.x @ self.x.T), u_centred(self.y @ self.y.T)
        pairs = [[[u_centred(z[:, k] @ z[:, k].T) for k in (0, 1)] for z in both] for both in draws]
        self.norms = np.array([np.sum(K[0] * K[1]) for K, _ in pairs]) / np.sum(A * A)
        self.products = np.array([np.sum(K[0] * L[1]) for K, L in pairs]) / np.sum(A * B)
        # without centring, as the formula for the shrinkage has it
        self.single = np.array([linear(s[:, 0], t[:, 0]) for s, t in draws]) / linear(self.x, self.y)


def linear(x: Array, y: Array) -> float:
    K, L = x @ x.T, y @ y.T
    return float(np.sum(K * L) / np.sqrt(np.sum(K * K) * np.sum(L * L)))


simulated = functools.cache(Simulation)
CASES = [(128, "alike"), (512, "alike"), (128, "distant"), (256, "unrelated")]


@pytest.mark.parametrize(("m", "kind"), CASES)
@pytest.mark.slow
def test_the_error_is_the_predicted_one(m: int, kind: str) -> None:
    run = simulated(m, kind)
    assert run.values.std() == pytest.approx(run.sd, rel=0.2)
    assert np.abs(run.values - run.truth).max() < 4.5 * run.sd  # of 300
    # a ratio of unbiased estimates is biased by no more than their variance
    assert abs(run.values.mean() - run.truth) < 4 * run.values.std() / math.sqrt(300) + 2 * run.sd**2


@pytest.mark.parametrize(
    ("m", "kind"),
    [pytest.param(m, kind, marks=pytest.mark.slow if m > 128 else ()) for m, kind in CASES],
)
def test_products_of_one_sketch_with_the_other_are_unbiased(m: int, kind: str) -> None:
    run = simulated(m, kind)
    for ratio in (run.norms, run.products):
        assert abs(ratio.mean() - 1) < 4 * ratio.std() / math.sqrt(300)


@pytest.mark.slow
@pytest.mark.parametrize(("m", "kind"), CASES)
def test_two_sketches_undo_the_shrinkage_of_one(m: int, kind: str) -> None:
    """A single one shrinks CKA by 1 / sqrt((1 + r (1 + PR_x)) (1 + r (1 + PR_y))), PR = tr(K)^2 / ||K||^2.

    r is the chance that two features share a bucket, nearly 1 / m; the diagonal of SS' - I is 0 for this sketch.
    """
    run = simulated(m, kind)
    factor = 1.0
    for layer in (run.x, run.y):
        p = layer.shape[1]
        K = layer @ layer.T
        factor /= math.sqrt(1 + (1 - m / p) / m * (1 + np.trace(K) ** 2 / np.sum(K * K)))
    assert run.single.mean() == pytest.approx(factor, abs=0.2 * (1 - factor))
    assert abs(run.values.mean() - run.truth) < 0.25 * (1 - factor)


@pytest.mark.slow
def test_layers_that_share_their_sketches_are_not_biased_for_it(rng: np.random.Generator) -> None:
    """Layers of one name and width in two models: products of equal sketches would be biased, those taken are not."""
    signal = rng.normal(size=(60, 8))
    x = signal @ rng.normal(size=(8, 500)) + rng.normal(size=(60, 500))
    y = x + 2 * rng.normal(size=x.shape)
    values = []
    for seed in range(200):
        s, t = (sketches(layer, 32, np.random.default_rng(seed)) for layer in (x, y))
        values.append(CKA().pair(prepared(s), prepared(t)))
        assert CKA().pair(prepared(s), prepared(s)) == pytest.approx(1, abs=1e-12)
    assert abs(np.mean(values) - CKA()(x, y)) < 4 * np.std(values) / math.sqrt(200)
    assert np.std(values) < sketch_error(x, y, 32)  # for they err alike


def test_sketches_too_small_to_agree(rng: np.random.Generator) -> None:
    x = rng.normal(size=(30, 400))
    lost = next(s for s in (sketches(x, 2, np.random.default_rng(seed)) for seed in range(50)) if not _agree(s))
    a, b = prepared(lost), prepared(sketches(x, 300, rng))
    np.testing.assert_array_equal(np.isnan(CKA().block([a, b], [b, a])), [[True, True], [False, True]])
    with pytest.raises(UndefinedValueError, match=r"<K\^1, K\^2> is not above 0.*with more columns, sketch:M"):
        CKA().pair(a, b)
    with pytest.raises(UndefinedValueError, match="constant"):
        prepared(np.ones((30, 2, 5)))


def _agree(sketch: Array) -> bool:
    A, B = (u_centred(sketch[:, k] @ sketch[:, k].T) for k in (0, 1))
    return bool(np.sum(A * B) > 0)


# Which measures compare what


@pytest.mark.parametrize("spec", ["svcca", "cca", "pwcca", "cka:kernel=rbf"])
@pytest.mark.parametrize(("form", "kept"), [("grams", "Gram matrices"), ("sketches", "random projections")])
def test_others_need_the_features(spec: str, form: Form, kept: str) -> None:
    metric = get(spec)
    assert metric.recipe_for("features") == metric.recipe
    message = f"{spec} needs the features themselves; this readout keeps only {kept}, which linear cka compares"
    with pytest.raises(UndefinedValueError, match=f"^{message}$"):
        metric.recipe_for(form)


def test_recipes_of_linear_cka() -> None:
    for metric in (CKA(), CKA(estimator="biased")):
        assert metric.recipe_for("features") == metric.recipe
        assert metric.recipe_for("grams") == StoredGrams()
        assert metric.recipe_for("sketches") == TwoSketches()


def test_biased_values_come_with_a_caution(rng: np.random.Generator) -> None:
    (x,) = related(rng, 32, 20)
    grams, sketch = StoredGrams()(as_stored(x, 8)), prepared(sketches(x, 4, rng))
    biased = CKA(estimator="biased")
    assert biased.caution(grams, grams) == (
        "the biased estimator is inflated by minibatches, 8 samples small; use estimator=debiased"
    )
    assert biased.caution(sketch, sketch) == (
        "the biased estimator is inflated where a sketched layer has more features than samples; use estimator=debiased"
    )
    assert CKA().caution(grams, grams) is None
    assert CKA().caution(sketch, sketch) is None


def test_what_compressed_layers_hold(rng: np.random.Generator) -> None:
    (x,) = related(rng, 32, 20)
    assert StoredGrams()(as_stored(x, 8)).nbytes == 4 * 8 * 8 * 4
    assert prepared(sketches(x, 4, rng)).nbytes == 2 * (32 * 4 * 8 + 2 * 32 * 8)
