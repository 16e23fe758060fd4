"""Test permuted and subsampled values of measures that are computed pair by pair, which reuse the factors."""

import itertools
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch

from repsim.engine.resampling import permuted, random_permutations, random_subsamples, subsampled
from repsim.errors import InvalidInputError
from repsim.metrics import get
from repsim.metrics.base import Array, PermutedAtOnce, as_samples
from repsim.metrics.knn import JaccardKNN, MutualKNN
from repsim.metrics.recipes.neighbours import NearestNeighbours, shared_when_permuted
from repsim.metrics.recipes.subspace import PrincipalSubspace
from repsim.testing.examples import related_layers
from tests.metrics import references, references_knn, references_subspaces

Reference = Callable[[Array, Array], float]
KNN: dict[str, Reference] = {
    f"{name}:k=3": partial(getattr(references_knn, name), k=3)
    for name in ("mutual_knn", "jaccard_knn", "rank_similarity", "second_order_cosine", "cknna", "cycle_knn")
}
SUBSPACES: dict[str, Reference] = {
    "nuclear": references_subspaces.nuclear,
    "angular_shape": references_subspaces.angular_shape,
    "procrustes": references_subspaces.procrustes,
    "procrustes_size": references_subspaces.procrustes_size,
    "svcca:variance=0.9": partial(references.svcca, variance=0.9),
}
ALL = KNN | SUBSPACES


@pytest.fixture(autouse=True)
def small(tuned: Callable[..., None]) -> None:
    """Use small blocks: runs of at most 64 samples, few permutations at once, two layers in a word."""
    tuned(neighbour_ranks=1200, neighbour_bits=2)


layers = partial(related_layers, offset=1.0)


def by_hand(reference: Reference, rows: list[Array], columns: list[Array], orders: Array) -> list[Any]:
    return [[[reference(x, y[order]) for y in columns] for x in rows] for order in orders]


@pytest.mark.parametrize("spec", ALL)
@pytest.mark.parametrize("n", [20, 75])
@pytest.mark.slow
def test_permuted(rng: np.random.Generator, spec: str, n: int) -> None:
    """The values are those of permuted arrays, with more rows than columns and vice versa."""
    arrays, orders, metric = layers(rng, n, 4, 30, 5, 3, 26), random_permutations(n, 5), get(spec)
    for rows, columns in ((arrays[:3], arrays[3:]), (arrays[:2], arrays[2:])):
        expected = by_hand(ALL[spec], rows, columns, orders)
        np.testing.assert_allclose(permuted(rows, columns, metric, orders), expected, rtol=0, atol=1e-7)
        recomputed = [
            metric.block(*([metric.recipe(as_samples(x)) for x in side] for side in (rows, [y[o] for y in columns])))
            for o in orders
        ]
        np.testing.assert_allclose(permuted(rows, columns, metric, orders), recomputed, rtol=0, atol=1e-12)
        x, y = ([array.astype(np.float32) for array in side] for side in (rows, columns))
        np.testing.assert_allclose(permuted(x, y, metric, orders), expected, rtol=0, atol=1e-5 * np.max(expected))


@pytest.mark.parametrize("spec", ALL)
def test_factors_are_enough(rng: np.random.Generator, spec: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """No recipe is called again once there are factors."""
    (x, y), orders, metric = layers(rng, 30, 4, 6), random_permutations(30, 3), get(spec)
    expected = permuted([x], [y], metric, orders)
    a, b = (metric.recipe(as_samples(side)) for side in (x, y))

    def never(*_: Any) -> None:
        pytest.fail("prepared again")

    for recipe in (NearestNeighbours, PrincipalSubspace):
        for method in ("__call__", "fit", "apply"):
            monkeypatch.setattr(recipe, method, never)
    np.testing.assert_array_equal(permuted([a], [b], metric, orders), expected)


@pytest.mark.parametrize("swapped", [False, True])
@pytest.mark.parametrize("k", [1, 2, 3])
def test_chance_of_mutual_knn_over_every_permutation(rng: np.random.Generator, k: int, *, swapped: bool) -> None:
    """6 samples have 720 permutations. A hub and duplicates change the standard deviation, but not the mean."""
    x, y, z = rng.normal(size=(6, 3)) + 0.5, rng.exponential(size=(6, 4)) - 0.3, rng.normal(size=(6, 5))
    x[4], z[[2, 3]] = x[0] + 0.1, z[5]
    metric = get(f"mutual_knn:k={k}")
    rows, columns = ([metric.recipe(as_samples(side)) for side in sides] for sides in ([x, y, z], [y, z]))
    if swapped:
        rows, columns = columns, rows
    values = permuted(rows, columns, metric, list(itertools.permutations(range(6))))
    for (i, a), (j, b) in itertools.product(enumerate(rows), enumerate(columns)):
        chance = metric.chance(a, b)
        assert chance is not None
        assert chance.sd is not None
        assert values[:, i, j].mean() == pytest.approx(k / 5, rel=1e-12)
        assert values[:, i, j].std() == pytest.approx(chance.sd, rel=1e-9)


def test_one_word_has_room_for_many_layers(rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    """33 layers use the last bit of a word and the first bit of the next word."""
    monkeypatch.undo()
    arrays, (order,) = [rng.normal(size=(40, 3)) for _ in range(33)], random_permutations(40, 1)
    values = permuted(arrays, arrays[:2], "mutual_knn:k=4", [order])
    expected = by_hand(partial(references_knn.mutual_knn, k=4), arrays, arrays[:2], np.array([order]))
    np.testing.assert_allclose(values, expected, rtol=0, atol=1e-14)


def test_more_neighbours_serve_fewer(rng: np.random.Generator) -> None:
    """The first k neighbours are used of a factor with more neighbours, or with features."""
    (x, y), orders = layers(rng, 30, 4, 6), random_permutations(30, 3)
    large = [NearestNeighbours(9, features=True)(as_samples(side)) for side in (x, y)]
    for spec, reference in KNN.items():
        expected = by_hand(reference, [x], [y], orders)
        np.testing.assert_allclose(permuted(large[:1], large[1:], spec, orders), expected, rtol=0, atol=1e-12)


def test_layers_without_neighbours_are_nan(rng: np.random.Generator) -> None:
    """In one layer all cosines are 1; in the other, samples are zero vectors after centring."""
    (x, y), orders = layers(rng, 30, 4, 6), random_permutations(30, 2)
    ray, dead = np.outer(np.arange(1, 31), rng.normal(size=4)), np.ones((30, 3))
    for spec, reference in KNN.items():
        values = permuted([ray, x, dead], [y, ray], spec, orders)
        assert np.isnan(values).tolist() == [[[True, True], [False, True], [True, True]]] * 2
        np.testing.assert_allclose(values[:, 1:2, :1], by_hand(reference, [x], [y], orders), rtol=0, atol=1e-12)


def test_only_mutual_knn_is_permuted_at_once(rng: np.random.Generator) -> None:
    factors = [NearestNeighbours(3)(as_samples(x)) for x in layers(rng, 20, 4, 5)]
    orders = torch.from_numpy(random_permutations(20, 2))
    steps: list[int] = []
    assert isinstance(MutualKNN(), PermutedAtOnce)
    assert not isinstance(JaccardKNN(), PermutedAtOnce)
    values = shared_when_permuted(factors, factors, orders, 3, lambda: steps.append(1))
    assert values.shape == (2, 2, 2)
    assert len(steps) == 2


@pytest.mark.parametrize("spec", ["mutual_knn:k=3", "jaccard_knn:k=3", "nuclear"])
def test_progress(rng: np.random.Generator, spec: str) -> None:
    steps: list[tuple[int, int]] = []
    arrays, orders = layers(rng, 20, 3, 4, 5), random_permutations(20, 4)
    for rows, columns in ((arrays[:2], arrays[2:]), (arrays[:1], arrays[1:])):
        permuted(rows, columns, spec, orders, progress=lambda done, total: steps.append((done, total)))
    assert steps == [(1, 4), (2, 4), (3, 4), (4, 4)] * 2


@pytest.mark.parametrize("spec", ["mutual_knn:k=5", "cknna:k=5", "nuclear", "procrustes"])
def test_half_of_twenty_samples(rng: np.random.Generator, spec: str) -> None:
    """Neighbours are searched among the subsample, which needs at least k + 2 samples."""
    rows, columns = layers(rng, 20, 4, 7), layers(rng, 20, 5)
    drawn = random_subsamples(20, 10, 4)
    values = subsampled(rows, columns, spec, drawn)
    metric = get(spec)
    if spec.startswith("mutual"):
        expected = [[[references_knn.mutual_knn(x[s], y[s], 5) for y in columns] for x in rows] for s in drawn]
        np.testing.assert_allclose(values, expected, rtol=0, atol=1e-14)
    assert values[2, 1, 0] == pytest.approx(metric(rows[1][drawn[2]], columns[0][drawn[2]]), abs=1e-12)
    if "k=" in spec:
        with pytest.raises(InvalidInputError, match=rf"subsamples of 6 are too small: {spec} needs at least 7 samples"):
            subsampled(rows, columns, spec, random_subsamples(20, 6, 1))
