"""Gram matrices of blocks against float64 in numpy; sketches against signed permutations and their expectation."""

from math import prod

import numpy as np
import pytest
import torch
from torch import Tensor

from repsim.extractors.base import Axes, LayerSpec, Site
from repsim.extractors.compressed import BlockGram, Sketch, _exact_products
from repsim.extractors.readouts import get, plan
from repsim.metrics.base import Array


def spec(shape: tuple[int, ...], axes: Axes = "NCHW", name: str = "x") -> LayerSpec:
    return LayerSpec(name, "Block", shape, axes, 0, False, None, Site(name))


def maps(n: int, *shape: int, offset: float = 0.0) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(n, *shape, generator=generator).relu() + offset * torch.rand(*shape, generator=generator)


def slow_grams(x: Tensor, size: int) -> Array:
    flat = x.double().numpy().reshape(len(x), -1)
    blocks = [flat[start : start + size] for start in range(0, len(flat) - size + 1, size)]
    return np.stack([(b - b.mean(0)) @ (b - b.mean(0)).T / b.shape[1] for b in blocks])


# gram:B


@pytest.mark.parametrize("offset", [0.0, 1000.0])
@pytest.mark.parametrize("n", [12, 15, 3])
def test_grams_are_those_of_the_blocks(n: int, offset: float) -> None:
    """Features are processed in several pieces; a remainder is dropped; large offsets cost the expected digits.

    float32 keeps 1000 + x to 6e-5 and so, once, x; from there on nothing more is lost.
    """
    shape = (5, 60, 60)  # 18,000 features: several pieces
    x = maps(n, *shape, offset=offset)
    got = BlockGram(4)(x, spec(shape))
    assert got.shape == (n // 4, 16)
    assert got.dtype == torch.float32
    expected = slow_grams(x, 4) if n >= 4 else np.empty((0, 4, 4))
    np.testing.assert_allclose(got.unflatten(1, (4, 4)), expected, rtol=0, atol=3e-7)  # 1e-6 of the diagonal


@pytest.mark.parametrize("axes", ["NC", "NHWC", "NLC", "other"])
def test_every_layer_has_grams_and_sketches(axes: Axes) -> None:
    layer = spec((6, 5, 7), axes)
    x = maps(8, 6, 5, 7)
    for memory in (x, x.contiguous(memory_format=torch.channels_last)):
        np.testing.assert_allclose(get("gram:4")(memory, layer).unflatten(1, (4, 4)), slow_grams(x, 4), atol=1e-7)
        assert torch.equal(get("sketch:9")(memory, layer), get("sketch:9")(x, layer))
    assert set(plan((layer,), (get("gram:4"), get("sketch:9")))[0]) == {("x", "gram:4"), ("x", "sketch:9")}
    assert (get("gram:4").shape(layer), get("sketch:9").shape(layer)) == ((4, 4), (2, 9))


def test_what_does_not_vary_within_a_block_is_exactly_0() -> None:
    x = torch.full((8, 3, 7), 0.1)
    x[4:] = 7e20
    assert not BlockGram(4)(x, spec((3, 7))).any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_neither_autocast_nor_flags_degrade_the_products(dtype: torch.dtype) -> None:
    x, layer = maps(8, 40, 30, 30).to(dtype), spec((40, 30, 30))
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        with torch.autocast("cpu", torch.bfloat16):
            got = BlockGram(8)(x, layer).unflatten(1, (8, 8))
            sketched = Sketch(500)(x, layer)
            assert (
                torch.get_float32_matmul_precision() == "medium"
            )  # the setting for the model's own products is restored
    finally:
        torch.set_float32_matmul_precision(before)
    np.testing.assert_allclose(got, slow_grams(x, 8), rtol=0, atol=3e-7)  # 1e-6 of the diagonal
    assert torch.equal(sketched, Sketch(500)(x.float(), layer))


def test_flags_are_set_for_the_products_and_put_back_even_after_an_error() -> None:
    """The effect of the flags needs a GPU; the test that they are set does not."""
    flags = torch.backends.cuda.matmul
    old = not hasattr(flags, "fp32_precision")

    def setting() -> str:
        return torch.get_float32_matmul_precision() if old else str(flags.fp32_precision)

    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        outside = setting()
        inside: list[str] = []

        def fail() -> None:
            with _exact_products():
                inside.append(setting())
                raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            fail()
        assert (outside, *inside) == (("high", "highest") if old else ("tf32", "ieee"))
        assert setting() == outside
    finally:
        torch.set_float32_matmul_precision(before)


@pytest.mark.parametrize("name", ["gram:4", "sketch:50", "sketch:5000"])
def test_a_compressed_readout_owns_its_memory(name: str) -> None:
    layer = spec((3, 8, 8))
    x = maps(8, 3, 8, 8)
    got = get(name)(x, layer)
    kept = got.clone()
    x.zero_()
    assert torch.equal(got, kept)
    assert kept.any()
    assert got.dtype == torch.float32
    assert got.shape[1] == prod(get(name).shape(layer))


# sketch:M


def matrices(p: int, m: int, name: str = "x", seed: int = 0) -> Tensor:
    """Return both sketches as matrices (2, p, m): the images of the unit vectors."""
    sketches: Tensor = Sketch(m, seed)(torch.eye(p), spec((p,), "NC", name)).unflatten(1, (2, -1))
    return sketches.transpose(0, 1)


@pytest.mark.parametrize(("p", "m"), [(1000, 64), (1000, 1000), (2000, 3), (50, 64), (7, 1)])
def test_every_feature_has_a_sign_and_buckets_are_balanced(p: int, m: int) -> None:
    size = min(p, m)
    for draw in matrices(p, m):
        assert draw.shape == (p, size)
        assert torch.equal(draw.abs().sum(1), torch.ones(p))
        assert set(draw.unique().tolist()) <= {-1.0, 0.0, 1.0}
        assert set(draw.abs().sum(0).tolist()) <= {float(p // size), float(-(-p // size))}
        if p > 30:
            assert abs(draw.sum()) < 4 * p**0.5  # about equal numbers of both signs


def test_nothing_is_lost_where_the_sketch_is_wide_enough() -> None:
    x, layer = maps(10, 6, 5, 5), spec((6, 5, 5))
    one, other = Sketch(150)(x, layer).unflatten(1, (2, -1)).double().unbind(1)
    assert not torch.equal(one, other)
    for sketch in (one, other):
        torch.testing.assert_close(
            sketch @ sketch.T, x.flatten(1).double() @ x.flatten(1).double().T, rtol=0, atol=1e-12
        )


def test_inner_products_are_unbiased_and_vary_as_predicted() -> None:
    """Var <Sx, Sy> = sum_ij (x_i^2 y_j^2 + x_i x_j y_i y_j) / m, over features i and j of different rows of m."""
    rng = np.random.default_rng(1)
    p, m, seeds = 90, 20, 1000
    x, y = rng.normal(size=p), rng.normal(size=p) + 0.5
    pair = torch.from_numpy(np.stack([x, y])).float()
    draws = np.array(
        [Sketch(m, seed)(pair, spec((p,), "NC")).unflatten(1, (2, -1)).double().numpy() for seed in range(seeds)]
    )
    products = np.einsum("stm,stm->st", draws[:, 0], draws[:, 1])
    row = np.arange(p) // m
    terms = np.outer(x**2, y**2) + np.outer(x * y, x * y)
    variance = terms[row[:, None] != row].sum() / m
    assert abs(products.mean() - x @ y) < 4 * np.sqrt(variance / (2 * seeds))
    assert products.var() == pytest.approx(variance, rel=0.15)
    assert abs(np.corrcoef(products.T)[0, 1]) < 4 / np.sqrt(seeds)  # the two sketches are independent


def test_what_a_sketch_depends_on() -> None:
    """A sketch depends on the seed, the layer's name, p and m only, and not on the batch or the model."""
    first = matrices(200, 16)
    assert torch.equal(first, matrices(200, 16))
    for other in (matrices(200, 16, name="y"), matrices(200, 16, seed=1), first.flip(0)):
        same = ((first * other).sum(2) != 0).float().mean()  # features in one bucket in both
        assert same < 0.2
    orders = first[0].abs().unflatten(0, (-1, 8))[:24].unflatten(0, (12, 2)).flatten(1, 2)
    assert len({tuple(order.flatten().tolist()) for order in orders}) == 12  # every row of m has an order of its own
    x, layer = maps(7, 3, 8, 8), spec((3, 8, 8))
    readout = Sketch(16)
    expected = readout(x, layer)
    assert torch.equal(torch.cat([readout(x[:3], layer), readout(x[3:], layer)]), expected)
    assert not torch.equal(readout(x, spec((3, 8, 8), name="y")), expected)  # one readout reads many layers
    torch.manual_seed(5)
    assert torch.equal(Sketch(16)(x, layer), expected)


def test_half_precision_is_summed_in_float32() -> None:
    """Ones with the feature's own sign add up to the bucket's 4096: in bfloat16 the sum would stop growing at 256."""
    p, m = 2 * 4096, 2
    layer = spec((p,), "NC")
    _, signs = Sketch(m)._draws(layer, p, torch.device("cpu"))[0]
    features, _ = Sketch(m)._draws(layer, p, torch.device("cpu"))[0]
    x = torch.empty(1, p, dtype=torch.bfloat16)
    x[0, features.long()] = signs.bfloat16()
    assert Sketch(m)(x, layer)[0, :m].tolist() == [4096.0, 4096.0]
