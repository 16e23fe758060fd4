"""Kernels of the input: closed forms against wide random networks, and the selection against projections."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import special
from sklearn.metrics.pairwise import rbf_kernel

from repsim.study import input_kernels
from repsim.study.input_kernels import (
    Candidate,
    ErfNetwork,
    Linear,
    Power,
    Rbf,
    ReluNetwork,
    of_pixels,
    of_statistics,
    products,
    random_convolutions,
    root,
    scaled,
    select,
    u_centred,
)
from tests.study.references import unit_kernel, without

Array = NDArray[np.float64]


def relu(x: Array) -> Array:
    """Return the positive part, scaled such that it keeps the mean square of a normal variable."""
    return np.asarray(np.sqrt(2) * np.maximum(x, 0))


def network(  # noqa: PLR0917
    x: Array, rng: np.random.Generator, f: Callable[[Array], Array], depth: int, gain: float, bias: float, width: int
) -> list[Array]:
    """Return the layers of an untrained network."""
    layers = []
    for k in range(depth):
        fan_in = 1 if k == 0 else width
        weights = rng.normal(size=(x.shape[1], width)) * gain / np.sqrt(fan_in)
        x = f(x @ weights + bias * rng.normal(size=width))
        layers.append(x)
    return layers


@pytest.mark.slow
@pytest.mark.parametrize("depth", [1, 2, 3])
@pytest.mark.parametrize(("gain", "bias"), [(0.5, 0.1), (4.0, 0.5)])
def test_closed_forms_are_those_of_wide_networks(
    depth: int, gain: float, bias: float, rng: np.random.Generator
) -> None:
    x, width, draws = scaled(rng.normal(size=(12, 5))), 800, 30
    pairs = products(x, x)
    cases: list[tuple[Any, Any, float]] = [
        (special.erf, ErfNetwork(depth, gain, bias), gain),
        (relu, ReluNetwork(depth, bias), 1.0),
    ]
    for f, kernel, own_gain in cases:
        measured = np.mean(
            [(h := network(x, rng, f, depth, own_gain, bias, width)[-1]) @ h.T / width for _ in range(draws)], 0
        )
        K = kernel(pairs)
        np.testing.assert_allclose(measured, K, atol=0.1 * np.diagonal(K).mean())
        assert np.corrcoef(measured.ravel(), K.ravel())[0, 1] > 0.995
        assert np.linalg.eigvalsh(K)[0] > -1e-10


def test_kernels_between_different_samples_are_blocks_of_the_whole(rng: np.random.Generator) -> None:
    x = scaled(rng.normal(size=(20, 5)))
    for candidate in of_pixels(x[:, None, :]):
        every = np.arange(len(x))
        K = candidate.matrix(every, every)
        np.testing.assert_allclose(candidate.matrix(every[:7], every[3:]), K[:7, 3:], atol=1e-12)
        np.testing.assert_allclose(K, K.T, atol=1e-12)


def test_rbf_and_powers_are_those_of_their_formulas(rng: np.random.Generator) -> None:
    x = scaled(rng.normal(size=(30, 6)))
    pairs = products(x, x)
    distances = ((x[:, None] - x) ** 2).sum(-1)
    median = np.median(distances[np.triu_indices(30, 1)])
    used = [c.kernel for c in of_pixels(x[:, None, :]) if isinstance(c.kernel, Rbf)]
    assert [kernel.width for kernel in used] == [0.25, 0.5, 1, 2]
    for kernel in used:
        assert kernel.median == pytest.approx(median)
        np.testing.assert_allclose(kernel(pairs), rbf_kernel(x, gamma=1 / (2 * kernel.width**2 * median)), atol=1e-12)
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    np.testing.assert_allclose(Power(3)(pairs), (unit @ unit.T) ** 3, atol=1e-12)


def test_the_names_say_what_a_kernel_is() -> None:
    kernels = (Rbf(0.5, 2.0), Power(2), ErfNetwork(3, 4.0, 0.1), ReluNetwork(1, 0.5))
    assert [kernel.describe("pixels") for kernel in kernels] == [
        "RBF of the pixels, width 0.5",
        "cosine of the pixels to the power 2",
        "erf network of 3 layers on the pixels, gain 4, bias 0.1",
        "ReLU network of 1 layer on the pixels, bias 0.5",
    ]


# Features


def test_a_root_has_the_kernel_exactly(rng: np.random.Generator) -> None:
    x = scaled(rng.normal(size=(60, 4)))
    for candidate in of_pixels(x[:, None, :]):
        F = candidate.features()
        every = np.arange(60)
        np.testing.assert_allclose(F @ F.T, candidate.matrix(every, every), atol=1e-7)
    assert root(x @ x.T).shape == (60, 4)


def test_beyond_the_limit_features_are_approximate(rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    """Samples that are sorted by class have landmarks in every class; what is left is small for smooth kernels."""
    means = 2 * rng.normal(size=(10, 6))
    x = (np.repeat(means, 30, 0) + rng.normal(size=(300, 6)))[:, None, :]
    exact = {c.name: unit_kernel(c.features()) for c in of_pixels(x)}
    monkeypatch.setattr(input_kernels, "EXACT", 200)
    monkeypatch.setattr(input_kernels, "RANK", 100)
    for candidate in of_pixels(x):
        F = candidate.features()
        assert F.shape[1] <= 100
        similarity = unit_kernel(F) @ exact[candidate.name]
        assert similarity > (0.7 if "0.25" in candidate.name else 0.97), (candidate.name, similarity)
    again = [c.features() for c in of_pixels(x)]
    for first, second in zip(again, (c.features() for c in of_pixels(x)), strict=True):
        np.testing.assert_array_equal(first, second)


def test_products_in_float32_change_approximate_features_little(
    rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(input_kernels, "EXACT", 200)
    monkeypatch.setattr(input_kernels, "RANK", 100)
    monkeypatch.setattr(input_kernels, "_AT_ONCE", 70)
    every, landmarks = np.arange(300), input_kernels._random_subset(300, 100)
    for candidate in of_pixels(rng.normal(size=(300, 2, 3))):
        across = candidate.matrix(every, landmarks)
        K = across @ np.linalg.pinv(candidate.matrix(landmarks, landmarks), rcond=1e-9, hermitian=True) @ across.T
        F = candidate.features().astype(np.float64)
        if not isinstance(candidate.kernel, Linear):
            assert unit_kernel(F) @ unit_kernel(root(K)) > 1 - 1e-5


# Selection


def vectors(candidates: list[Candidate]) -> Array:
    """Return the U-centred kernels of candidates as unit vectors."""
    return np.array([unit_kernel(candidate.features()) for candidate in candidates])


@pytest.mark.parametrize("n", [100, 200])
def test_the_selected_kernels_span_the_dictionary(n: int, rng: np.random.Generator) -> None:
    x = rng.normal(size=(n, 12))
    candidates = list(of_pixels(x[:, None, :]))
    selected = select(candidates)
    assert [c.name for c in selected[:2]] == ["pixels", "mean pixels"]
    assert 6 <= len(selected) <= 20
    assert [c.name for c in select(list(of_pixels(x[:, None, :])))] == [c.name for c in selected]
    Z = vectors(selected)
    left = (without(vectors(candidates), Z) ** 2).sum(1)
    assert left.max() < input_kernels.TOLERANCE * 1.01
    for k in range(2, len(Z)):  # none is superfluous, and R of the controls is well conditioned
        assert (without(Z[k : k + 1], Z[:k]) ** 2).sum() > input_kernels.TOLERANCE * 0.99
    assert np.linalg.eigvalsh(Z @ Z.T)[0] > 1e-6


def test_equal_and_constant_kernels_are_left_out(rng: np.random.Generator) -> None:
    x = scaled(rng.normal(size=(100, 5)))
    again = [Candidate("again", 3 * x, Linear(), required=True), Candidate("constant", np.ones((100, 2)), Linear())]
    names = [c.name for c in select([Candidate("first", x, Linear(), required=True), *again])]
    assert names == ["first"]
    assert select([]) == []
    assert list(of_pixels(np.ones((10, 3, 4)))) == []
    assert list(of_statistics(np.ones((10, 3)), ["a: x", "a: y", "b: z"])) == []


def test_few_samples_have_few_controls(rng: np.random.Generator) -> None:
    """As many as explain 1 % by chance, but always the linear ones."""
    for n, most in ((8, 2), (20, 2), (40, 7), (60, 17), (100, 32)):
        selected = select(list(of_pixels(rng.normal(size=(n, 1, 12)))))
        assert len(selected) <= most
        assert len(selected) >= 2
        assert max(2, len(selected)) * 2 / (n * (n - 3)) <= 0.01 or len(selected) == 2


def test_controls_explain_little_by_chance(rng: np.random.Generator) -> None:
    """Z controls explain 2 Z / (n (n - 3)) of the energy of an unrelated kernel on average."""
    n = 60
    x = rng.normal(size=(n, 12))
    Z = vectors(select(list(of_pixels(x[:, None, :]))))
    Q = np.linalg.qr(Z.T)[0].T
    unrelated = rng.normal(size=(n, 6))
    explained = []
    for _ in range(600):
        v = unit_kernel(unrelated[rng.permutation(n)])
        explained.append(((Q @ v) ** 2).sum())
    assert np.mean(explained) == pytest.approx(2 * len(Z) / (n * (n - 3)), rel=0.15)


def test_u_centring_is_that_of_the_reference(rng: np.random.Generator) -> None:
    x = rng.normal(size=(15, 4))
    A = u_centred(x @ x.T)
    np.testing.assert_allclose((A / np.linalg.norm(A)).ravel(), unit_kernel(x), atol=1e-12)


# What it is for


def clip(x: Array) -> Array:
    """Return a nonlinearity of untrained networks: linear, and cut off at 1."""
    return np.clip(x, -1, 1)


@pytest.mark.parametrize(
    ("first", "second", "n", "width", "gain"),
    [(np.tanh, clip, 200, 512, 2.5), (np.tanh, clip, 300, 128, 4.0), (np.sin, np.tanh, 300, 256, 1.5)],
)
def test_networks_without_data_have_nothing_learned(  # noqa: PLR0917
    first: Any, second: Any, n: int, width: int, gain: float, rng: np.random.Generator
) -> None:
    """Random networks at a higher gain share no energy beyond those at a lower one (case E of issue 17)."""
    x = rng.normal(size=(n, 12))

    def similar(Z: Array) -> float:
        means = {}
        for state, (g, bias) in {"trained": (gain, 0.5), "untrained": (0.5, 0.1)}.items():
            for k, f in enumerate((first, second)):
                seeds = np.random.default_rng(10 * k + (state == "trained"))
                nets = [network(x / np.sqrt(12), seeds, f, 3, g, bias, width) for _ in range(2)]
                means[state, k] = without(np.array([unit_kernel(h) for layers in nets for h in layers]), Z)

        def index(a: str, b: str) -> float:
            C = means[a, 0] @ means[b, 1].T
            return float(np.mean([C[i * 3 + d, j * 3 + d] for i in range(2) for j in range(2) for d in range(3)]))

        halves = index("trained", "untrained"), index("untrained", "trained"), index("untrained", "untrained")
        return index("trained", "trained") - max(halves)

    assert similar(vectors(select(list(of_pixels(x[:, None, :]))))) < 0.01
    assert similar(np.array([unit_kernel(x)])) > 0.015


def test_features_that_are_linear_in_the_components_are_spanned(rng: np.random.Generator) -> None:
    """Untrained activations have few dimensions: any rank-1 kernel of the leading components has no energy left."""
    values = np.exp(rng.normal(size=(150, 3)) @ rng.normal(size=(3, 20)))
    names = [f"{'ab'[k % 2]}: {k}" for k in range(20)]
    candidates = list(of_statistics(values, names))
    assert [c.name for c in candidates[:3]] == [
        "statistics of the picture",
        "statistics of the picture: a",
        "statistics of the picture: b",
    ]
    Z = vectors(select(candidates, tolerance=1e-3))
    standardised = np.log(values)
    unseen = standardised @ rng.normal(size=(20, 1))
    components = vectors([c for c in candidates if "component" in c.name])
    assert (without(unit_kernel(unseen)[None], np.concatenate([Z, components])) ** 2).sum() < 0.05


def test_random_convolutions_see_what_averages_over_positions_share(rng: np.random.Generator) -> None:
    """An untrained network with leaky ReLU that averages over positions has much less energy left."""
    noise = rng.normal(size=(2, 150, 3, 8, 8))
    share = rng.uniform(size=(150, 1, 1, 1))
    pixels = share * np.cumsum(noise[0], -1) / 2 + (1 - share) * np.cumsum(noise[1], -2) / 2  # stripes, of both kinds
    patches = np.lib.stride_tricks.sliding_window_view(pixels, (3, 3), (2, 3)).transpose(0, 2, 3, 1, 4, 5)
    inputs = patches.reshape(150, 36, 27) @ rng.normal(size=(27, 512))
    hidden = np.where(inputs > 0, inputs, 0.2 * inputs).mean(1)
    left = {}
    for name, shape in (("picture", (150, 3, 8, 8)), ("vector", (150, 3, 64))):
        Z = vectors(select(list(of_pixels(pixels.reshape(shape)))))
        left[name] = (without(unit_kernel(hidden)[None], Z) ** 2).sum()
    assert left["picture"] < left["vector"] / 3
    for one, two in zip(*(random_convolutions(x, np.tanh) for x in (pixels, pixels[:40])), strict=True):
        assert one.shape == (150, 128)
        assert two.shape == (40, 128)


def candidates_of_pictures() -> Iterator[Candidate]:
    """Yield the dictionary of pictures of noise."""
    return of_pixels(np.random.default_rng(0).normal(size=(50, 3, 8, 8)))


def test_names_are_unique() -> None:
    names = [c.name for c in candidates_of_pictures()]
    assert len(set(names)) == len(names)
