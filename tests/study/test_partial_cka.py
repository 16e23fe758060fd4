"""Algebra on similarities compared with explicit kernels: projections by least squares, cosines, means."""

import itertools

import numpy as np
import pytest
from numpy.typing import NDArray

from repsim.errors import InvalidInputError, UndefinedValueError
from repsim.metrics import get
from repsim.study.partial_cka import Roles, ceiling, partial, residual, shares
from repsim.testing.examples import related_layers

Array = NDArray[np.float64]


def unit_kernels(layers: list[Array]) -> Array:
    """Compute U-centred Gram matrices as vectors of norm 1, by the formula with the means of rows."""
    vectors = []
    for x in layers:
        n = len(x)
        K = (x - x.mean(0)) @ (x - x.mean(0)).T
        np.fill_diagonal(K, 0)
        m = K.sum(1) / (n - 2) - K.sum() / (2 * (n - 1) * (n - 2))
        A = K - m[:, None] - m
        np.fill_diagonal(A, 0)
        vectors.append(A.ravel() / np.linalg.norm(A))
    return np.stack(vectors)


def related(rng: np.random.Generator, count: int, n: int = 30) -> list[Array]:
    return related_layers(rng, n, *[6] * count, shared=4)


def projected(v: Array, controls: list[int]) -> Array:
    """Compute the residual of each vector after a least-squares fit to the controls."""
    Z = v[controls].T
    return np.asarray(v - (Z @ np.linalg.lstsq(Z, v.T, rcond=1e-9)[0]).T)


@pytest.mark.parametrize("controls", [[5], [0, 3], [4, 1, 2], [3, 3], [0, 1, 2, 3, 4, 5]])
def test_it_is_the_projection_of_the_kernels(rng: np.random.Generator, controls: list[int]) -> None:
    v = unit_kernels(related(rng, 6))
    w = projected(v, controls)
    np.testing.assert_allclose(residual(v @ v.T, controls), w @ w.T, atol=1e-13)
    others = [a for a in range(6) if a not in controls]
    left = w[others] / np.linalg.norm(w[others], axis=1, keepdims=True)
    values = partial(v @ v.T, controls)
    np.testing.assert_allclose(values[np.ix_(others, others)], left @ left.T, atol=1e-12)
    assert np.isnan(values[controls]).all()
    assert np.isnan(values[:, controls]).all()


def test_the_similarities_are_those_of_the_metric(rng: np.random.Generator) -> None:
    """R computed by the metric equals that of the kernels, and gives their partial similarity."""
    layers = related(rng, 4)
    R = np.array([[get("cka")(x, y) for y in layers] for x in layers])
    v = unit_kernels(layers)
    np.testing.assert_allclose(R, v @ v.T, atol=1e-12)
    w = projected(v, [3])
    expected = w[0] @ w[1] / np.linalg.norm(w[0]) / np.linalg.norm(w[1])
    assert partial(R, [3])[0, 1] == pytest.approx(expected, abs=1e-12)


def test_one_control_is_the_formula_of_partial_correlation(rng: np.random.Generator) -> None:
    v = unit_kernels(related(rng, 3))
    (r, s), t = (v @ v.T)[0, 1:], v[1] @ v[2]
    assert partial(v @ v.T, [2])[0, 1] == pytest.approx((r - s * t) / np.sqrt((1 - s**2) * (1 - t**2)), rel=1e-12)


def test_controls_one_after_the_other_are_controls_together(rng: np.random.Generator) -> None:
    v = unit_kernels(related(rng, 5))
    first = partial(v @ v.T, [4])[:4, :4]
    np.testing.assert_allclose(partial(first, [3])[:3, :3], partial(v @ v.T, [3, 4])[:3, :3], atol=1e-12)


def test_a_repeated_control_changes_nothing(rng: np.random.Generator) -> None:
    """A control is repeated exactly, or up to rounding errors of float32."""
    v = unit_kernels(related(rng, 5))
    once = residual(v @ v.T, [3, 4])
    again = v[[0, 1, 2, 3, 4, 4]]
    for noise in (0, 1e-8):
        again[5] = v[4] + noise * rng.normal(size=v.shape[1])
        again[5] /= np.linalg.norm(again[5])
        twice = residual(again @ again.T, [3, 4, 5])
        np.testing.assert_allclose(twice[:5, :5], once, atol=1e-12 + 10 * noise)


def test_without_controls_nothing_changes(rng: np.random.Generator) -> None:
    v = unit_kernels(related(rng, 4))
    for same in (partial, residual):
        R = v @ v.T
        result = same(R, [])
        np.testing.assert_array_equal(result, R)
        result[0, 0] = 5
        assert R[0, 0] != 5


def test_batches_are_one_matrix_after_the_other(rng: np.random.Generator) -> None:
    layers = [related(rng, 5) for _ in range(6)]
    R = np.stack([v @ v.T for v in map(unit_kernels, layers)]).reshape(2, 3, 5, 5)
    for do in (residual, partial):
        for i, j in np.ndindex(2, 3):
            np.testing.assert_allclose(do(R, [1, 4])[i, j], do(R[i, j], [1, 4]), atol=1e-14)


def test_the_batch_decides_together_how_many_directions_there_are() -> None:
    """Nearly equal controls on either side of the threshold: alone, results differ; in one batch, they agree."""
    apart = np.array([1.5e-6, 3e-6])  # their eigenvalues are 2 - apart and apart: shares of 0.75e-6 and 1.5e-6
    controls = np.stack([np.sqrt(1 - apart / 2), np.sqrt(apart / 2), 0 * apart], -1)
    layer = np.tile([0.6, 0.64, 0.48], (2, 1))
    v = np.stack([layer, controls, controls * [1, -1, 1]], 1)
    R = v @ v.swapaxes(1, 2)
    alone = [residual(r, [1, 2])[0, 0] for r in R]
    assert alone == pytest.approx([1 - 0.6**2, 0.48**2], abs=1e-6)
    assert residual(R, [1, 2])[:, 0, 0] == pytest.approx(0.48**2, abs=1e-6)


def test_a_missing_value_stays_where_it_is(rng: np.random.Generator) -> None:
    v = unit_kernels(related(rng, 5))
    R = np.stack([v @ v.T] * 3)
    whole = partial(R[0], [3, 4])
    R[1, 0], R[1, :, 0] = np.nan, np.nan  # a layer without a value
    R[2, 3, 4] = R[2, 4, 3] = np.nan  # two controls
    values = partial(R, [3, 4])
    np.testing.assert_allclose(values[0], whole, atol=1e-14)
    np.testing.assert_allclose(values[1, 1:3, 1:3], whole[1:3, 1:3], atol=1e-14)
    assert np.isnan(values[1, 0]).all()
    assert np.isnan(values[2]).all()
    with pytest.raises(UndefinedValueError, match=r"controls \[3, 4\] have no similarity"):
        partial(R[2], [3, 4])


def test_bad_input_is_refused(rng: np.random.Generator) -> None:
    for bad in (np.ones(3), np.ones((2, 3)), np.ones((0, 0))):
        with pytest.raises(InvalidInputError, match="layers with themselves"):
            residual(bad, [0])
    for controls in ([3], [-1]):
        with pytest.raises(InvalidInputError, match="between 0 and 2"):
            residual(np.eye(3), controls)
    for of_models in (shares, ceiling):
        with pytest.raises(InvalidInputError, match="each of 3 models, got 2"):
            of_models(np.eye(3), ["a", "b"])


# Shares and ceilings


def by_pairs(C: Array, families: list[str]) -> tuple[float, float]:
    """Compute the means over pairs of models of one family, and of two, by enumeration."""
    pairs = list(itertools.combinations(range(len(C)), 2))
    within = [C[a, b] for a, b in pairs if families[a] == families[b]]
    across = [C[a, b] for a, b in pairs if families[a] != families[b]]
    return float(np.mean(within)) if within else np.nan, float(np.mean(across)) if across else np.nan


@pytest.mark.parametrize("families", ["aabb", "aaabcc", "abab", "aaaa", "abcd", "a"])
def test_shares_are_means_over_models_and_pairs(rng: np.random.Generator, families: str) -> None:
    w = rng.normal(size=(7, len(families), 9)) / 3
    C = w @ w.swapaxes(1, 2)
    result = shares(C, list(families))
    for k, matrix in enumerate(C):
        within, across = by_pairs(matrix, list(families))
        energy = np.trace(matrix) / len(families)
        expected = [1 - energy, across, within - across, energy - within, energy - across, within]
        actual = [getattr(result, name)[k] for name in vars(result)]
        np.testing.assert_allclose(actual, expected, atol=1e-13)
    total = result.input + result.universal + result.family + result.seed
    identified = len(set(families)) > 1 and len(set(families)) < len(families)
    assert np.isnan(total).all() != identified
    if identified:
        np.testing.assert_allclose(total, 1, atol=1e-12)


def test_unidentified_shares_are_given_as_a_sum(rng: np.random.Generator) -> None:
    w = rng.normal(size=(4, 9)) / 3
    C = w @ w.T
    one_family = shares(C, ["a"] * 4)
    assert one_family.input + one_family.universal_and_family + one_family.seed == pytest.approx(1, abs=1e-12)
    assert np.isnan([one_family.universal, one_family.family, one_family.family_and_seed]).all()
    one_seed = shares(C, list("abcd"))
    assert one_seed.input + one_seed.universal + one_seed.family_and_seed == pytest.approx(1, abs=1e-12)
    assert np.isnan([one_seed.family, one_seed.seed, one_seed.universal_and_family]).all()


def test_shares_recover_what_kernels_are_made_of() -> None:
    """v = input + universal + family + seed, in orthogonal directions: the shares are the squared lengths."""
    lengths = {"input": 0.5, "universal": 0.2, "family": 0.18, "seed": 0.12}
    v = np.zeros((6, 10))
    v[:, 0], v[:, 1] = lengths["input"] ** 0.5, lengths["universal"] ** 0.5
    for m in range(6):
        v[m, 2 + m // 3] = lengths["family"] ** 0.5
        v[m, 4 + m] = lengths["seed"] ** 0.5
    v = np.vstack([v, np.eye(1, 10)])  # the input itself
    C = residual(v @ v.T, [6])[:6, :6]
    result = shares(C, ["a"] * 3 + ["b"] * 3)
    assert {name: pytest.approx(float(getattr(result, name)), abs=1e-12) for name in lengths} == lengths
    above = ceiling(C, ["a"] * 3 + ["b"] * 3)
    assert above.overall == pytest.approx(0.2 / 0.38, abs=1e-12)
    np.testing.assert_allclose(above.within, 0.38, atol=1e-12)


def test_the_ceiling_is_the_cosine_between_what_families_have_in_common(rng: np.random.Generator) -> None:
    """Models are the kernel of their family plus orthogonal noise, which does not enter the mean within a family."""
    common = rng.normal(size=(3, 12)) * [[1], [2], [0.5]]
    w = np.zeros((9, 12 + 9))
    w[:, :12] = np.repeat(common, 3, axis=0)
    w[range(9), range(12, 21)] = rng.uniform(1, 3, 9)
    result = ceiling(w @ w.T, list("aaabbbccc"))
    expected = np.full((3, 3), np.nan)
    for i, j in itertools.permutations(range(3), 2):
        expected[i, j] = common[i] @ common[j] / np.linalg.norm(common[i]) / np.linalg.norm(common[j])
    np.testing.assert_allclose(result.pairs, expected, atol=1e-12)
    norms = np.linalg.norm(common, axis=1)
    pairs = list(itertools.combinations(range(3), 2))
    ratio = sum(common[i] @ common[j] for i, j in pairs) / sum(norms[i] * norms[j] for i, j in pairs)
    assert result.overall == pytest.approx(ratio, abs=1e-12)


def test_without_a_ceiling_there_is_no_ratio() -> None:
    C = np.stack([np.full((5, 5), 0.3)] * 2)
    C[1, 0, 1] = C[1, 1, 0] = -0.1  # in the second matrix, models of a have nothing in common
    result = ceiling(C, list("aabbc"))
    assert result.families == ("a", "b", "c")
    nan = np.nan
    np.testing.assert_allclose(result.within, [[0.3, 0.3, nan], [-0.1, 0.3, nan]])
    np.testing.assert_allclose(result.pairs[0], [[nan, 1, nan], [1, nan, nan], [nan, nan, nan]])
    assert np.isnan(result.pairs[1]).all()
    np.testing.assert_allclose(result.overall, [1, nan])
    assert np.isnan(ceiling(C, list("abcde")).overall).all()
    assert np.isnan(ceiling(C, list("aaaaa")).overall).all()


def test_roles_know_every_pair_once() -> None:
    roles = Roles(("b", "a", "b", "c", "a"))
    assert roles.names == ("b", "a", "c")
    assert np.argwhere(roles.within).tolist() == [[0, 2], [1, 4]]
    assert (roles.within | roles.across).tolist() == np.triu(np.ones((5, 5), bool), 1).tolist()
    assert np.argwhere(roles.among("a", "b")).tolist() == [[0, 1], [0, 4], [1, 2], [2, 4]]
    assert np.argwhere(roles.among("c", "c")).tolist() == []
