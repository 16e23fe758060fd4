"""The map of models: exact distances, recovered clusters, no clusters in unstructured data, and stability."""

import itertools
from math import comb

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.metrics import silhouette_samples

from repsim.errors import InvalidInputError, UndefinedValueError
from repsim.study.model_map import clusters, common_share, embed, stability

Array = NDArray[np.float64]


def unit_vectors(rng: np.random.Generator, count: int, width: int) -> Array:
    v = rng.normal(size=(count, width))
    return np.asarray(v / np.linalg.norm(v, axis=1, keepdims=True))


def planted(rng: np.random.Generator, sizes: list[int], noise: float = 0.3) -> Array:
    """Simulate similarities of models around orthogonal centres, one for each cluster."""
    centres = np.repeat(np.eye(len(sizes), 40), sizes, axis=0)
    v = centres + noise * unit_vectors(rng, sum(sizes), 40)
    v /= np.linalg.norm(v, axis=1, keepdims=True)
    return np.asarray(v @ v.T)


def all_distances(x: Array) -> Array:
    return np.asarray(np.linalg.norm(x[:, None] - x, axis=2))


@pytest.mark.parametrize(("count", "width"), [(7, 20), (7, 3), (2, 5), (1, 4)])
def test_the_map_keeps_every_distance(rng: np.random.Generator, count: int, width: int) -> None:
    v = unit_vectors(rng, count, width)
    result = embed(v @ v.T)
    assert result.coordinates.shape == (count, count)
    np.testing.assert_allclose(all_distances(result.coordinates) ** 2, 2 * (1 - v @ v.T), atol=1e-10)
    np.testing.assert_allclose(result.coordinates.mean(0), 0, atol=1e-10)
    assert result.negative == 0
    assert (result.eigenvalues > 0).sum() == min(width, count - 1)


def test_the_axes_are_the_principal_ones(rng: np.random.Generator) -> None:
    v = unit_vectors(rng, 7, 5)
    result = embed(v @ v.T, dims=2)
    s = np.linalg.svd(v - v.mean(0), compute_uv=False)
    np.testing.assert_allclose(result.eigenvalues[:5], s**2, atol=1e-12)
    np.testing.assert_allclose((result.coordinates**2).sum(0), s[:2] ** 2, atol=1e-12)
    assert (np.diff(result.eigenvalues) <= 0).all()


def test_models_that_are_all_the_same_are_one_place() -> None:
    result = embed(np.ones((4, 4)) - 1e-16)
    assert (result.coordinates == 0).all()
    assert result.negative == 0


@pytest.mark.parametrize("order", list(itertools.permutations(range(4))))
def test_what_is_0_by_symmetry_is_0_without_a_sign(order: tuple[int, ...]) -> None:
    """Rounding errors, which differ between processors in size and sign, are set to 0."""
    R = np.array([[1, 0.7, 0.1, 0.1], [0.7, 1, 0.1, 0.1], [0.1, 0.1, 1, 0.3], [0.1, 0.1, 0.3, 1]])
    coordinates = embed(R[np.ix_(order, order)]).coordinates
    zero = np.array([[0, 1, 0, 1], [0, 1, 0, 1], [0, 0, 1, 1], [0, 0, 1, 1]], bool)[list(order)]
    assert (coordinates[zero] == 0).all()
    assert not np.signbit(coordinates[zero]).any()
    assert (np.abs(coordinates[~zero]) > 0.1).all()
    farthest = [np.abs(column.round(9)).argmax() for column in coordinates.T[:3]]
    assert (coordinates[farthest, range(3)] > 0).all()


def test_a_map_of_more_axes_than_models_has_zeros() -> None:
    result = embed([[1, 0.5], [0.5, 1]], dims=3)
    np.testing.assert_allclose(result.coordinates, [[0.5, 0, 0], [-0.5, 0, 0]], atol=1e-15)


def test_the_direction_of_axes_is_decided(rng: np.random.Generator) -> None:
    """The coordinate farthest from 0 is positive; of two ties, the first."""
    v = unit_vectors(rng, 9, 12)
    result = embed(v @ v.T).coordinates[:, :8]
    assert (result[np.abs(result).argmax(0), range(8)] > 0).all()
    order = rng.permutation(9)
    np.testing.assert_allclose(embed((v @ v.T)[np.ix_(order, order)]).coordinates[:, :8], result[order], atol=1e-10)
    for shift in (-1e-15, 0, 1e-15):
        assert embed([[1, 0.5 + shift], [0.5, 1]]).coordinates[0, 0] > 0


def test_negative_eigenvalues_are_reported(rng: np.random.Generator) -> None:
    """The first of three models is similar to the two others, which are opposites: no vectors have such products."""
    R = np.array([[1, 0.9, 0.9], [0.9, 1, -0.9], [0.9, -0.9, 1]])
    J = np.eye(3) - 1 / 3
    values = np.linalg.eigvalsh(J @ R @ J)
    assert embed(R).negative == pytest.approx(-values[0] / np.abs(values).sum(), rel=1e-9)
    assert embed(R).negative > 0.2


def test_the_common_share(rng: np.random.Generator) -> None:
    v = unit_vectors(rng, 12, 6).reshape(3, 4, 6)
    R = v @ v.swapaxes(1, 2)
    expected = [np.linalg.svd(x, compute_uv=False)[0] ** 2 / 4 for x in v]
    np.testing.assert_allclose(common_share(R), expected, rtol=1e-12)
    assert common_share(np.ones((5, 5))) == pytest.approx(1)
    assert common_share(np.eye(5)) == pytest.approx(1 / 5)
    R[1, 0, 2] = np.nan
    assert np.isnan(common_share(R)).tolist() == [False, True, False]


# Clusters


@pytest.mark.parametrize("sizes", [[3, 3], [2, 4, 3], [2, 2, 2, 2], [1, 4]])
def test_planted_clusters_are_found(rng: np.random.Generator, sizes: list[int]) -> None:
    R = planted(rng, sizes)
    expected = np.repeat(range(len(sizes)), sizes)
    order = rng.permutation(len(R))
    result = clusters(R[np.ix_(order, order)])
    assert result.count == len(sizes)
    names = list(dict.fromkeys(expected[order].tolist()))
    assert result.labels.tolist() == [names.index(label) for label in expected[order].tolist()]
    distances = np.sqrt(np.maximum(2 - 2 * R, 0)) * (1 - np.eye(len(R)))
    quality = silhouette_samples(distances, expected, metric="precomputed").mean()
    assert result.silhouette == pytest.approx(quality, abs=1e-9)


def test_it_is_average_linkage(rng: np.random.Generator) -> None:
    """The two clusters are those of the slow algorithm, which merges the two groups with the least mean distance."""
    for _ in range(20):
        v = unit_vectors(rng, 7, 3)
        distances = np.sqrt(2 * np.maximum(1 - v @ v.T, 0))
        groups = [[i] for i in range(7)]
        while len(groups) > 2:
            a, b = min(
                itertools.combinations(groups, 2),
                key=lambda pair: float(np.mean([distances[i, j] for i in pair[0] for j in pair[1]])),
            )
            groups = [g for g in groups if g not in (a, b)] + [a + b]
        result = clusters(v @ v.T, max_clusters=2)
        if result.count == 2:
            assert {tuple(np.flatnonzero(result.labels == k)) for k in (0, 1)} == {tuple(sorted(g)) for g in groups}


def test_no_clusters_where_nothing_is_apart() -> None:
    """There are no clusters if all distances are equal, or all models are."""
    for R in (np.eye(6) * 0.7 + 0.3, np.ones((6, 6))):
        result = clusters(R)
        assert (result.count, result.labels.tolist()) == (1, [0] * 6)
        assert not result.silhouette >= 0.25


def test_few_models_or_few_clusters(rng: np.random.Generator) -> None:
    for M in (1, 2):
        result = clusters(np.eye(M))
        assert (result.count, result.labels.tolist()) == (1, [0] * M)
        assert np.isnan(result.silhouette)
    R = planted(rng, [2, 4, 3])
    assert clusters(R, max_clusters=2).count == 2
    assert clusters(R, max_clusters=1).count == 1
    assert clusters(R, max_clusters=100).count == 3


def test_the_same_model_twice_is_one_place() -> None:
    R = np.kron(np.array([[1, 0.2], [0.2, 1]]), np.ones((2, 2))) + 1e-16
    result = clusters(R)
    assert result.labels.tolist() == [0, 0, 1, 1]
    assert result.silhouette == pytest.approx(1)


def test_a_weak_structure_is_reported_but_not_named(rng: np.random.Generator) -> None:
    v = unit_vectors(rng, 12, 30)
    result = clusters(v @ v.T)
    assert result.count == 1
    assert 0 < result.silhouette < 0.25


# Stability


def rand(a: list[int], b: list[int]) -> float:
    """Compute the adjusted Rand index by counting pairs."""
    pairs = list(itertools.combinations(range(len(a)), 2))
    both = sum(a[i] == a[j] and b[i] == b[j] for i, j in pairs)
    one, other = (sum(x[i] == x[j] for i, j in pairs) for x in (a, b))
    expected = one * other / comb(len(a), 2)
    return (both - expected) / ((one + other) / 2 - expected)


def test_stability_counts_replicates(rng: np.random.Generator) -> None:
    same, other = planted(rng, [3, 3]), planted(rng, [2, 4])
    result = stability([same, same, other, same], [0, 0, 0, 1, 1, 1])
    moved = rand([0, 0, 0, 1, 1, 1], [0, 0, 1, 1, 1, 1])
    assert result.ari == pytest.approx((3 + moved) / 4)
    assert result.together[0].tolist() == [1, 1, 0.75, 0, 0, 0]
    assert result.together[2].tolist() == [0.75, 0.75, 1, 0.25, 0.25, 0.25]


def test_the_names_of_clusters_do_not_matter(rng: np.random.Generator) -> None:
    assert stability([planted(rng, [3, 3])], [9, 9, 9, 4, 4, 4]).ari == 1


def test_replicates_have_as_many_clusters_as_there_are_labels(rng: np.random.Generator) -> None:
    """Three clusters, although two are simulated: the co-membership matrix then has three blocks."""
    assert np.linalg.matrix_rank(stability([planted(rng, [3, 3])], [0, 0, 0, 1, 1, 2]).together) == 3


def test_one_cluster_has_no_stability(rng: np.random.Generator) -> None:
    result = stability([planted(rng, [3, 3])], [0] * 6)
    assert np.isnan(result.ari)
    assert np.isnan(result.together).all()


def test_clusters_of_noise_are_not_stable(rng: np.random.Generator) -> None:
    replicates = [v @ v.T for v in (unit_vectors(rng, 10, 20) for _ in range(40))]
    assert stability(replicates, [0, 1] * 5).ari < 0.1


def test_bad_input_is_refused(rng: np.random.Generator) -> None:
    R = planted(rng, [2, 2])
    for do in (embed, clusters):
        with pytest.raises(InvalidInputError, match="models with themselves"):
            do(R[:3])
        with pytest.raises(InvalidInputError, match="one matrix"):
            do(R[None])
        with pytest.raises(InvalidInputError, match="whose diagonal is 1"):
            do(0.9 * R)
        missing = R.copy()
        missing[2], missing[:, 2] = np.nan, np.nan
        with pytest.raises(UndefinedValueError, match=r"models \[2\] have no value"):
            do(missing)
    with pytest.raises(InvalidInputError, match="at least one axis"):
        embed(R, dims=0)
    with pytest.raises(InvalidInputError, match="at least one cluster"):
        clusters(R, max_clusters=0)
    for replicates, labels in (([R], [0, 1]), (R, [0, 0, 1, 1]), (np.ones((0, 4, 4)), [0, 0, 1, 1])):
        with pytest.raises(InvalidInputError, match="replicates"):
            stability(replicates, labels)
