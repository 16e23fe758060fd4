"""Who is whose neighbour: by tiles, from a store, among duplicates; and what chance gives."""

import itertools
from typing import Any

import numpy as np
import pytest
import torch

from repsim.errors import InvalidInputError, UndefinedValueError, UnreliableValueWarning
from repsim.metrics import get, neighbours
from repsim.metrics.base import Array, as_samples
from repsim.metrics.neighbourhoods import CKNNA
from repsim.metrics.neighbours import NearestNeighbours, Neighbours, ranks_among
from tests.metrics import references_knn
from tests.metrics.streamed import Streamed

ALL = ("mutual_knn", "jaccard_knn", "rank_similarity", "second_order_cosine", "cknna", "cycle_knn")


@pytest.fixture(params=[2048, 48])
def side(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """One tile, or many, the last ones smaller than the number of neighbours."""
    monkeypatch.setattr(neighbours, "_SIDE", request.param)
    monkeypatch.setattr(neighbours, "_TABLE", 50 * request.param)
    monkeypatch.setattr(neighbours, "_RANKS", 1)
    monkeypatch.setattr(neighbours, "_GATHERED", 300)
    return int(request.param)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_neighbours_are_those_of_the_dense_matrix(rng: np.random.Generator, side: int, dtype: Any) -> None:
    x = rng.normal(size=(101, 7)).astype(dtype) + 1
    found = NearestNeighbours(12)(as_samples(x))
    wide = x.astype(np.float64)
    np.testing.assert_array_equal(found.indices, references_knn.neighbours(wide, 12))
    cosines = references_knn.cosines(wide)
    expected = np.take_along_axis(cosines, references_knn.neighbours(wide, 13), 1)
    np.testing.assert_allclose(found.similarities, expected, atol=10 * np.finfo(dtype).eps)
    mask = references_knn.mask(wide, 12)
    back = np.take_along_axis(mask.T, found.indices.numpy(), 1)
    np.testing.assert_array_equal(found.returned > 0, back)
    ranked = np.argsort(-cosines + 3 * np.eye(101), axis=1, kind="stable").argsort(axis=1) + 1
    np.testing.assert_array_equal(found.returned, back * ranked.T[np.arange(101)[:, None], found.indices])


def test_a_layer_in_a_store_gives_what_it_gives_in_memory(rng: np.random.Generator, side: int) -> None:
    x = rng.normal(size=(101, 7))
    recipe = NearestNeighbours(5, features=True)
    whole, streamed = recipe(as_samples(x)), recipe(Streamed(x))
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
def test_duplicates_come_by_their_index(rng: np.random.Generator, side: int, dtype: Any) -> None:
    """Four copies of 25 samples: three are the nearest, by index, and of the next four the first two."""
    x = np.tile(rng.normal(size=(25, 300)), (4, 1)).astype(dtype)
    found = NearestNeighbours(5)(as_samples(x))
    nearest = references_knn.neighbours(x[:25].astype(np.float64), 1)[:, 0]
    for i, row in enumerate(found.indices.tolist()):
        copies = [j for j in range(i % 25, 100, 25) if j != i]
        assert row == [*copies, nearest[i % 25], nearest[i % 25] + 25]
    assert found.undecided(5) == 100
    assert found.undecided(3) == 0
    assert found.undecided(2) == 100


@pytest.mark.parametrize("stored", [False, True])
def test_a_permuted_layer_has_the_neighbours_of_the_permuted_samples(
    rng: np.random.Generator, side: int, *, stored: bool
) -> None:
    x, order = rng.normal(size=(101, 7)), torch.from_numpy(rng.permutation(101))
    recipe = NearestNeighbours(5, features=True)
    source = Streamed(x) if stored else as_samples(x)
    whole = recipe(source)
    before = len(source.reads) if isinstance(source, Streamed) else 0
    moved, anew = whole.permuted(order), recipe(as_samples(x[order]))
    if isinstance(source, Streamed):
        assert len(source.reads) == before  # nothing is read until somebody asks
    for name in ("indices", "returned"):
        torch.testing.assert_close(getattr(moved, name), getattr(anew, name), rtol=0, atol=0)
    for name in ("similarities", "distances"):
        torch.testing.assert_close(getattr(moved, name), getattr(anew, name), rtol=0, atol=1e-14)
    assert moved.features is not None
    assert anew.features is not None
    torch.testing.assert_close(moved.features[:], anew.features[:], rtol=0, atol=1e-15)
    assert isinstance(moved.features, torch.Tensor) != stored
    assert (moved.tie, moved.undecided(5)) == (anew.tie, 0)
    torch.testing.assert_close(moved.permuted(order.argsort()).indices, whole.indices, rtol=0, atol=0)


def test_what_is_found_once_serves_every_order(rng: np.random.Generator) -> None:
    asked: list[int] = []

    def find(layer: Neighbours, k: int) -> int:
        asked.append(k)
        return layer.undecided(k)

    x = NearestNeighbours(3)(as_samples(rng.normal(size=(20, 4))))
    x.permuted(torch.randperm(20)).once(find, 3)
    x.once(find, 3)
    assert asked == [3]


def test_among_equals_a_permuted_layer_keeps_its_choice(rng: np.random.Generator) -> None:
    """Four copies of ten samples: neighbours are those that the old order put first, whatever numbers they have now."""
    x = np.tile(rng.normal(size=(10, 6)), (4, 1))
    order = torch.from_numpy(rng.permutation(40))
    whole = NearestNeighbours(2)(as_samples(x))
    moved = whole.permuted(order)
    for i in range(40):
        assert order[moved.indices[i]].tolist() == whole.indices[order[i]].tolist()
    assert (moved.indices != NearestNeighbours(2)(as_samples(x[order])).indices).any()


@pytest.mark.parametrize("off", [-1.5, 0.0, 0.5, 1.5])
def test_similarities_that_round_otherwise_give_as_many_neighbours(rng: np.random.Generator, off: float) -> None:
    """The window of what ties with the last one holds fewer, or more, than when it was found: by half a tie here."""
    unit = torch.nn.functional.normalize(torch.from_numpy(rng.normal(size=(60, 8)).astype(np.float32)))
    unit[30:34] = unit[0]
    tie = neighbours._TIE * torch.finfo(torch.float32).eps
    rows = torch.tensor([0, 7, 31])
    cosines = unit @ unit.T
    cosines.fill_diagonal_(-torch.inf)
    last = cosines[rows].topk(3, dim=1).values[:, -1]
    found, whose = neighbours._first_by_index(unit, rows, last + off * tie, 4, tie)
    expected = cosines[rows].topk(4, dim=1).values
    torch.testing.assert_close(found.sort(dim=1, descending=True).values, expected)
    torch.testing.assert_close(found, cosines[rows].gather(1, whose))
    assert all(len(set(row)) == 4 for row in whose.tolist())
    if abs(off) < 1:
        assert set(whose[2].tolist()) == {0, 30, 32, 33}
        _, first = neighbours._first_by_index(unit, rows, last + off * tie, 2, tie)
        assert set(first[2].tolist()) == {0, 30}


def test_neighbours_that_hang_on_ties_are_told(rng: np.random.Generator) -> None:
    x, y = rng.normal(size=(60, 8)), rng.normal(size=(60, 8))
    x[30:36] = x[0]  # seven alike: each has six at similarity 1, of whom it takes four, and so has who is near them
    ordered = np.sort(references_knn.cosines(x) - 3 * np.eye(60), axis=1)[:, ::-1]
    ties = int((np.abs(ordered[:, 3] - ordered[:, 4]) < 1e-12).sum())
    assert 7 < ties < 30
    metric = get("mutual_knn:k=4")
    assert metric.diagnostics(metric.recipe(as_samples(x))) == {"undecided": ties}
    with pytest.warns(UnreliableValueWarning, match=f"{ties} of 60 samples have a neighbour 4 that is no nearer"):
        metric(x, y)


@pytest.mark.parametrize("name", ALL)
def test_where_there_are_no_neighbours(rng: np.random.Generator, name: str) -> None:
    x, y = rng.normal(size=(30, 5)), rng.normal(size=(30, 5))
    metric = get(f"{name}:k=3")
    dead = x.copy()
    dead[[3, 7]] = 0
    with pytest.raises(UndefinedValueError, match="2 of 30 samples are 0"):
        metric(dead, y)
    ray = np.outer(np.arange(1, 31), x[0])  # one direction, so that all cosines are 1
    with pytest.raises(UndefinedValueError, match="neighbours of no sample are determined"):
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
    found = NearestNeighbours(4, features=True)(as_samples(x))
    assert found.distances is not None
    expected = np.take_along_axis(1 - references_knn.cosines(x.astype(np.float64)), found.indices.numpy(), 1)
    np.testing.assert_allclose(found.distances, expected, rtol=1e-3)


def test_duplicates_of_all_neighbours_have_no_second_order(rng: np.random.Generator) -> None:
    x = rng.normal(size=(20, 4))
    x[1:4] = x[0]
    metric = get("second_order_cosine:k=3")
    a, b = metric.recipe(as_samples(x)), metric.recipe(as_samples(x * 2))
    with pytest.raises(UndefinedValueError, match="4 of 20 samples are at distance 0"):
        metric.pair(a, b)


def test_cknna_leaves_every_interval() -> None:
    """It follows its published definition out of [0, 1], and even out of [-1, 1]."""

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
    """A layer of six samples, and another one in all 720 orders of its samples."""
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
