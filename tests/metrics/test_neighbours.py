"""Nearest neighbours: in tiles, from a store, among duplicates; and their chance levels."""

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from repsim.errors import InvalidInputError, UndefinedValueError, UnreliableValueWarning
from repsim.metrics import get
from repsim.metrics.base import Array, as_samples
from repsim.metrics.knn import CKNNA
from repsim.metrics.recipes.neighbours import NearestNeighbours, Neighbours, ranks_among
from repsim.testing.examples import RowsOnDisk
from tests.metrics import references_knn

ALL = ("mutual_knn", "jaccard_knn", "rank_similarity", "second_order_cosine", "cknna", "cycle_knn")


@pytest.fixture(params=[2048, 48])
def side(request: pytest.FixtureRequest, tuned: Callable[..., None]) -> int:
    """Return the side of a tile: one tile, or many, with last tiles smaller than the number of neighbours."""
    tuned(neighbour_side=request.param, neighbour_table=50 * request.param, neighbour_ranks=1, neighbour_gathered=300)
    return int(request.param)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_neighbours_are_those_of_the_dense_matrix(rng: np.random.Generator, side: int, dtype: Any) -> None:
    x = rng.normal(size=(101, 7)).astype(dtype) + 1
    result = NearestNeighbours(12)(as_samples(x))
    wide = x.astype(np.float64)
    np.testing.assert_array_equal(result.indices, references_knn.neighbours(wide, 12))
    cosines = references_knn.cosines(wide)
    expected = np.take_along_axis(cosines, references_knn.neighbours(wide, 13), 1)
    np.testing.assert_allclose(result.similarities, expected, atol=10 * np.finfo(dtype).eps)
    mask = references_knn.mask(wide, 12)
    back = np.take_along_axis(mask.T, result.indices.numpy(), 1)
    np.testing.assert_array_equal(result.reverse_ranks > 0, back)
    ranked = np.argsort(-cosines + 3 * np.eye(101), axis=1, kind="stable").argsort(axis=1) + 1
    np.testing.assert_array_equal(result.reverse_ranks, back * ranked.T[np.arange(101)[:, None], result.indices])


def test_a_layer_in_a_store_gives_what_it_gives_in_memory(rng: np.random.Generator, side: int) -> None:
    x = rng.normal(size=(101, 7))
    recipe = NearestNeighbours(5, features=True)
    whole, streamed = recipe(as_samples(x)), recipe(RowsOnDisk(x))
    assert not isinstance(streamed.features, torch.Tensor)
    torch.testing.assert_close(streamed.indices, whole.indices)
    torch.testing.assert_close(streamed.distances, whole.distances)
    metric = get("second_order_cosine:k=5")
    other = recipe(torch.from_numpy(rng.normal(size=(101, 4))))
    assert metric.pair(streamed, other) == pytest.approx(metric.pair(whole, other), rel=1e-12)


def test_more_neighbours_serve_fewer(rng: np.random.Generator) -> None:
    """A factor made for several measures gives each the value that its own gives."""
    layers = [as_samples(np.repeat(rng.normal(size=(30, p)), 2, axis=0)[:59]) for p in (5, 8)]
    large = NearestNeighbours(9, features=True)
    for spec in (f"{name}:k={k}" for name in ALL for k in (3, 6, 9)):
        metric = get(spec)
        assert large.covers(metric.recipe)
        a, b = (large(layer) for layer in layers)
        own = [metric.recipe(layer) for layer in layers]
        assert metric.pair(a, b) == pytest.approx(metric.pair(*own), rel=1e-12), spec
        assert metric.diagnostics(a) == metric.diagnostics(own[0])
    assert not NearestNeighbours(9).covers(large)
    assert not NearestNeighbours(8, features=True).covers(large)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_ties_between_duplicates_are_random(rng: np.random.Generator, side: int, dtype: Any) -> None:
    """Four copies of 25 samples: three are the nearest, and of the next four any two."""
    x = np.tile(rng.normal(size=(25, 300)), (4, 1)).astype(dtype)
    result = NearestNeighbours(5)(as_samples(x))
    nearest = references_knn.neighbours(x[:25].astype(np.float64), 1)[:, 0]
    for i, row in enumerate(result.indices.tolist()):
        assert set(row[:3]) == {j for j in range(i % 25, 100, 25) if j != i}
        assert set(row[3:]) < set(range(nearest[i % 25], 100, 25))
    assert result.undecided(5) == 100
    assert result.undecided(3) == 0
    assert result.undecided(2) == 100
    chosen = torch.bincount(result.indices.flatten() // 25, minlength=4)
    assert bool((chosen - 125).abs().max() < 40), "some samples are preferred"


def one_hot(rng: np.random.Generator, n: int, p: int, dtype: Any = np.float64) -> Array:
    """Return mostly one-hot samples: duplicates within a class, equally far otherwise; a tenth has other features."""
    x = np.eye(p + 5)[rng.integers(0, p, n)]
    x[: n // 10] = 0
    x[: n // 10, p:] = rng.normal(size=(n // 10, 5))
    return np.asarray(x[rng.permutation(n)], dtype)


@pytest.mark.parametrize("name", ["mutual_knn", "jaccard_knn", "rank_similarity", "cycle_knn"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.slow
def test_ties_do_not_make_layers_alike(rng: np.random.Generator, name: str, dtype: Any) -> None:
    """The stated chance is the mean over layers whose samples are permuted, each prepared anew."""
    metric = get(name)
    x, y = one_hot(rng, 300, 70, dtype), one_hot(rng, 300, 60, dtype)
    a, b = (metric.recipe(as_samples(layer)) for layer in (x, y))
    assert min(a.undecided(10), b.undecided(10)) > 150
    anew = [metric.recipe(as_samples(y[rng.permutation(300)])) for _ in range(40)]
    values = metric.block([a], anew)[0]
    stated = metric.chance(a, b)
    assert stated is not None
    chance = stated.mean
    assert abs(values.mean() - chance) < 4 * values.std() / np.sqrt(40)
    orders = [torch.from_numpy(rng.permutation(300)) for _ in range(40)]
    moved = metric.block([a], [b.permuted(order) for order in orders])[0]
    assert abs(values.mean() - moved.mean()) < 5 * np.hypot(values.std(), moved.std()) / np.sqrt(40)
    assert abs(metric.pair(a, b) - chance) < 5 * values.std()
    if name != "cycle_knn":
        assert metric.pair(a, metric.recipe(as_samples(-2 * x))) == pytest.approx(1, abs=1e-12)


def test_the_order_of_ties_does_not_depend_on_k(rng: np.random.Generator, side: int) -> None:
    """Equally near samples have the same order for any k, also if there are many of them."""
    x = as_samples(one_hot(rng, 400, 4))
    few, many = NearestNeighbours(3)(x), NearestNeighbours(150)(x)
    torch.testing.assert_close(few.indices, many.indices[:, :3], rtol=0, atol=0)
    assert [few.undecided(k) for k in (1, 3)] == [many.undecided(k) for k in (1, 3)]


HOSTILE: dict[str, Callable[[Array], Array]] = {
    "all": lambda x: x + 600,
    "one channel": lambda x: x + 1000 * (np.arange(x.shape[1]) == 3),
    "two clouds": lambda x: x + 3000 * np.where(np.arange(len(x)) % 2, 1, -1)[:, None],
    "unequal columns": lambda x: x * np.geomspace(1, 1e-6, x.shape[1]),
    "one far sample": lambda x: np.concatenate([1e4 * x[:1], x[1:] + 100]),
    "duplicates": lambda x: np.concatenate([x[:50], x[: len(x) - 50]]),
    "crowds": lambda x: np.tile(x[:3], (len(x) // 3 + 1, 1))[: len(x)] + 7,
    "half precision": lambda x: (x + 30).astype(np.float16),
    "one-hot": lambda x: np.eye(x.shape[1])[np.abs(x).argmax(1)],
}


@pytest.mark.parametrize("how", HOSTILE)
def test_neighbours_of_float32_are_those_of_float64(rng: np.random.Generator, side: int, how: str) -> None:
    """Neighbours, ties and the order of ties are the same for the same values."""
    x = HOSTILE[how](rng.normal(size=(300, 40))).astype(np.float32)
    recipe = NearestNeighbours(10)
    narrow, wide = recipe(as_samples(x)), recipe(as_samples(x.astype(np.float64)))
    torch.testing.assert_close(narrow.indices, wide.indices, rtol=0, atol=0)
    torch.testing.assert_close(narrow.ties, wide.ties, rtol=0, atol=0)
    assert (narrow.undecided(10) > 0) is (how in {"duplicates", "crowds", "one-hot"})


def test_offsets_that_float32_does_not_see(rng: np.random.Generator) -> None:
    """Issue 15: unrelated layers, 500 from the origin, scored 0.25."""
    r = np.random.default_rng(0)
    x = (r.normal(size=(500, 64)) + 500).astype("f4")
    y = (r.normal(size=(500, 48)) + 500).astype("f4")
    assert get("mutual_knn")(x, y) == pytest.approx(0.0204, abs=1e-12)


@pytest.mark.parametrize("stored", [False, True])
def test_a_permuted_layer_has_the_neighbours_of_the_permuted_samples(
    rng: np.random.Generator, side: int, *, stored: bool
) -> None:
    x, order = rng.normal(size=(101, 7)), torch.from_numpy(rng.permutation(101))
    recipe = NearestNeighbours(5, features=True)
    source = RowsOnDisk(x) if stored else as_samples(x)
    whole = recipe(source)
    before = len(source.reads) if isinstance(source, RowsOnDisk) else 0
    moved, anew = whole.permuted(order), recipe(as_samples(x[order]))
    if isinstance(source, RowsOnDisk):
        assert len(source.reads) == before  # nothing is read before it is needed
    for name in ("indices", "reverse_ranks"):
        torch.testing.assert_close(getattr(moved, name), getattr(anew, name), rtol=0, atol=0)
    for name in ("similarities", "distances"):
        torch.testing.assert_close(getattr(moved, name), getattr(anew, name), rtol=0, atol=1e-14)
    assert moved.features is not None
    assert anew.features is not None
    torch.testing.assert_close(moved.features[:], anew.features[:], rtol=0, atol=1e-15)
    assert isinstance(moved.features, torch.Tensor) != stored
    assert (moved.rounding, moved.undecided(5)) == (anew.rounding, 0)
    torch.testing.assert_close(moved.permuted(order.argsort()).indices, whole.indices, rtol=0, atol=0)


def test_cached_values_serve_every_order(rng: np.random.Generator) -> None:
    calls: list[int] = []

    def compute(layer: Neighbours, k: int) -> int:
        calls.append(k)
        return layer.undecided(k)

    x = NearestNeighbours(3)(as_samples(rng.normal(size=(20, 4))))
    x.permuted(torch.randperm(20)).once(compute, 3)
    x.once(compute, 3)
    assert calls == [3]


def test_a_permuted_layer_keeps_the_order_of_ties(rng: np.random.Generator) -> None:
    """Four copies of ten samples: the neighbours stay the same samples after renumbering."""
    x = np.tile(rng.normal(size=(10, 6)), (4, 1))
    order = torch.from_numpy(rng.permutation(40))
    whole = NearestNeighbours(2)(as_samples(x))
    moved = whole.permuted(order)
    for i in range(40):
        assert order[moved.indices[i]].tolist() == whole.indices[order[i]].tolist()
    assert (moved.indices != NearestNeighbours(2)(as_samples(x[order])).indices).any()


def test_tied_neighbours_warn(rng: np.random.Generator) -> None:
    x, y = rng.normal(size=(60, 8)), rng.normal(size=(60, 8))
    x[30:36] = x[0]  # seven duplicates: each has six samples at similarity 1, more than k = 4
    ordered = np.sort(references_knn.cosines(x) - 3 * np.eye(60), axis=1)[:, ::-1]
    ties = int((np.abs(ordered[:, 3] - ordered[:, 4]) < 1e-12).sum())
    assert 7 < ties < 30
    metric = get("mutual_knn:k=4")
    assert metric.diagnostics(metric.recipe(as_samples(x))) == {"undecided": ties}
    with pytest.warns(UnreliableValueWarning, match=f"{ties} of 60 samples have a neighbour 4 that is no nearer"):
        metric(x, y)


@pytest.mark.parametrize("name", ALL)
def test_undefined_neighbours(rng: np.random.Generator, name: str) -> None:
    x, y = rng.normal(size=(30, 5)), rng.normal(size=(30, 5))
    metric = get(f"{name}:k=3")
    dead = x.copy()
    dead[[3, 7]] = 0
    with pytest.raises(UndefinedValueError, match="2 of 30 samples are 0"):
        metric(dead, y)
    ray = np.outer(np.arange(1, 31), x[0])  # one direction, so that all cosines are 1
    with pytest.raises(UndefinedValueError, match="neighbours of every sample are tied"):
        metric(y, ray)
    with pytest.raises(InvalidInputError, match=r"4 samples are too few for 3 neighbours.* like cka"):
        metric(x[:4], y[:4])
    with pytest.raises(InvalidInputError, match="k is"):
        get(f"{name}:k=0")


def test_huge_and_tiny_samples_have_directions(rng: np.random.Generator) -> None:
    x = rng.normal(size=(30, 5))
    scale = np.geomspace(1e-200, 1e200, 30)[:, None]
    assert get("mutual_knn:k=3")(x, x * scale) == 1


def test_distances_of_near_samples_keep_their_digits(rng: np.random.Generator) -> None:
    """1 - cosine of 1e-6 in float32, whose cosines have errors of 1e-7."""
    x = 1 + 1e-3 * rng.normal(size=(50, 20)).astype(np.float32)
    result = NearestNeighbours(4, features=True)(as_samples(x))
    expected = np.take_along_axis(1 - references_knn.cosines(x.astype(np.float64)), result.indices.numpy(), 1)
    np.testing.assert_allclose(result.distances[:, :4], expected, rtol=1e-5)


def test_duplicates_of_all_neighbours_have_no_second_order(rng: np.random.Generator) -> None:
    x = rng.normal(size=(20, 4))
    x[1:4] = x[0]
    metric = get("second_order_cosine:k=3")
    a, b = metric.recipe(as_samples(x)), metric.recipe(as_samples(x * 2))
    with pytest.raises(UndefinedValueError, match="4 of 20 samples are at distance 0"):
        metric.pair(a, b)


@pytest.mark.slow
def test_cknna_leaves_every_interval() -> None:
    """By its published definition the value leaves [0, 1], and even [-1, 1]."""

    def layers(seed: int) -> tuple[Array, Array, int]:
        rng = np.random.default_rng(seed)
        n, p = int(rng.integers(5, 16)), 3
        return rng.normal(size=(n, p)), rng.normal(size=(n, p)), int(rng.integers(2, n - 2))

    values = []
    for seed in range(300):
        x, y, k = layers(seed)
        try:
            values.append(CKNNA(k=k)(x, y))
        except UndefinedValueError:
            continue
        assert values[-1] == pytest.approx(references_knn.cknna(x, y, k), rel=1e-9, abs=1e-9)
    assert min(values) < -0.05
    assert max(values) > 1.05
    low, high = CKNNA().bounds
    assert low < min(values)
    assert max(values) < high


@pytest.fixture(scope="module")
def orders() -> tuple[Neighbours, list[Neighbours]]:
    """Return a layer of six samples, and another one in all 720 orders of its samples."""
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(6, 3)) + 0.5, rng.exponential(size=(6, 4)) - 0.3
    x[4] = x[0] + 0.1  # makes hubs
    recipe = NearestNeighbours(3)
    return recipe(as_samples(x)), [recipe(as_samples(y[list(order)])) for order in itertools.permutations(range(6))]


@pytest.mark.parametrize("name", ["mutual_knn", "jaccard_knn", "rank_similarity", "cycle_knn", "cknna"])
def test_chance_over_every_permutation(orders: tuple[Neighbours, list[Neighbours]], name: str) -> None:
    """Its mean, and the standard deviation of mutual_knn, exactly."""
    a, others = orders
    for k in (2, 3) if name == "cknna" else (1, 2, 3):
        metric = get(f"{name}:k={k}")
        values = metric.block([a], others)
        chance = metric.chance(a, others[0])
        assert chance is not None
        assert values.mean() == pytest.approx(chance.mean, rel=1e-9)
        if name == "mutual_knn":
            assert values.std() == pytest.approx(chance.sd, rel=1e-9)


def test_one_table_serves_several_layers(rng: np.random.Generator, side: int) -> None:
    a, *others = (NearestNeighbours(4)(as_samples(rng.normal(size=(101, p)))) for p in (3, 4, 5))
    for b, ranks in zip(others, ranks_among(a, others, 3), strict=True):
        for i in range(101):
            first = a.indices[i, :3].tolist()
            assert ranks[i].tolist() == [first.index(j) + 1 if j in first else 0 for j in b.indices[i, :3].tolist()]
