"""Samples in groups: against least squares on all pairs of different groups, solved as one system."""

import numpy as np
import pytest
import torch

import repsim
from repsim.engine import permutation
from repsim.engine.grouped import LeaveOneGroupOut, group_permutations
from repsim.engine.jackknife import LeaveOneOut
from repsim.engine.null_moments import cubic_moments
from repsim.engine.shared_directions import truncate, truncate_jointly
from repsim.errors import InvalidInputError
from repsim.metrics.cka import CKA
from repsim.metrics.recipes.gram import CentredGram, Gram
from repsim.metrics.recipes.groups import Groups
from repsim.testing.examples import Array

SIZES = (1, 1, 1, 1, 2, 2, 2, 3, 3, 3, 3, 5)
N = sum(SIZES)
METRICS = (CKA(), CKA(kernel="rbf"))


@pytest.fixture
def numbers(rng: np.random.Generator) -> Array:
    """Make groups of several sizes, with their samples in no order."""
    return rng.permutation(np.repeat(np.arange(len(SIZES)), SIZES))


@pytest.fixture
def layers(rng: np.random.Generator) -> list[Array]:
    x = rng.normal(size=(N, 6))
    return [x, np.hstack([x[:, :3], rng.normal(size=(N, 2))]), rng.normal(size=(N, N + 4))]


def centre(K: Array, groups: Array) -> Array:
    """Least squares on all pairs of different groups, with a solver for any system."""
    mask = groups[:, None] != groups
    r = np.linalg.solve(np.diag(mask.sum(1)) + mask, (K * mask).sum(1))
    return np.where(mask, K - r - r[:, None], 0)


def cosine(K: Array, L: Array, groups: Array) -> float:
    A, B = centre(K, groups), centre(L, groups)
    return float((A * B).sum() / np.sqrt((A * A).sum() * (B * B).sum()))


def factor(x: Array, metric: CKA = METRICS[0], groups: Array | None = None) -> Gram:
    gram: Gram = metric.recipe(torch.from_numpy(x))
    return gram if groups is None else gram.grouped(Groups.of(groups))


def kernel(x: Array, metric: CKA = METRICS[0]) -> Array:
    gram, everything = factor(x, metric), slice(0, len(x))
    out = torch.empty(len(x), len(x), dtype=torch.float64)
    gram.tile(gram.rows(everything), gram.rows(everything), everything, everything, out)
    return out.numpy()


# The estimator


def test_offsets_solve_least_squares(numbers: Array, rng: np.random.Generator) -> None:
    s, mask = rng.normal(size=N), numbers[:, None] != numbers
    expected = np.linalg.lstsq(np.diag(mask.sum(1)) + mask, s, rcond=None)[0]
    groups = Groups.of(numbers)
    np.testing.assert_allclose(groups.solve(torch.from_numpy(s)), expected, atol=1e-12)
    singles = Groups.of(np.arange(N)).solve(torch.from_numpy(s))
    np.testing.assert_allclose(singles, (s - s.sum() / (2 * (N - 1))) / (N - 2), atol=1e-12)


@pytest.mark.parametrize("metric", METRICS)
def test_values_equal_least_squares(numbers: Array, layers: list[Array], metric: CKA) -> None:
    grams = [factor(x, metric, numbers) for x in layers]
    expected = [[cosine(kernel(x, metric), kernel(y, metric), numbers) for y in layers] for x in layers]
    np.testing.assert_allclose(metric.block(grams, grams), expected, atol=1e-12)


def test_single_samples_are_no_groups(layers: list[Array]) -> None:
    assert factor(layers[0], groups=np.arange(N)).groups is None


def test_the_matrix_of_values_is_positive_semidefinite(rng: np.random.Generator) -> None:
    groups = np.repeat(np.arange(10), 4)
    grams = [factor(rng.normal(size=(40, 3)), groups=groups) for _ in range(30)]
    assert np.linalg.eigvalsh(CKA().block(grams, grams)).min() > -1e-12


@pytest.mark.parametrize("size", [2, 10])
def test_unrelated_layers_have_0_on_average(size: int) -> None:
    """40 scenes of alike pictures, and networks that share nothing: .289 without groups (case G of issue 17)."""
    values = []
    for seed in range(40):
        rng = np.random.default_rng(seed)
        groups = np.repeat(np.arange(40), size)
        x, y = (
            np.sqrt(0.9) * rng.normal(size=(40, 20))[groups] + np.sqrt(0.1) * rng.normal(size=(40 * size, 20))
            for _ in range(2)
        )
        values.append([CKA().pair(*(factor(z, groups=g) for z in (x, y))) for g in (groups, None)])
    grouped, plain = np.mean(values, 0)
    error = np.std([value for value, _ in values]) / np.sqrt(len(values))
    assert abs(grouped) < 4 * error < 0.05
    assert plain > 0.15


def test_too_few_or_too_large_groups_are_refused(layers: list[Array]) -> None:
    with pytest.raises(InvalidInputError, match="3 groups are too few"):
        factor(layers[0], groups=np.arange(N) % 3)
    with pytest.raises(InvalidInputError, match="^1 group is too few"):
        factor(layers[0], groups=np.zeros(N, int))
    with pytest.raises(InvalidInputError, match="4 groups are too few: each of them is left out once, so at least 5"):
        repsim.similarity(layers[0], layers[1], interval=True, groups=np.arange(N) % 4)
    half = np.maximum(np.arange(N), N // 2 + 1)
    with pytest.raises(InvalidInputError, match="half or more"):
        factor(layers[0], groups=half)
    with pytest.raises(InvalidInputError, match="26 groups for 27 samples"):
        repsim.leave_one_out([layers[0]], [layers[1]], groups=np.arange(N - 1))
    with pytest.raises(InvalidInputError, match="not both"):
        Groups.of(["a", 1])  # type: ignore[arg-type]
    with pytest.raises(InvalidInputError, match="minibatches"):
        CentredGram(batch=9)(torch.from_numpy(layers[0])).grouped(Groups.of(np.arange(N) // 3))


# Groups left out


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize(("tile", "room"), [(0, 0), (4, 0), (4, 1)])
def test_left_out_values_equal_those_without_the_group(
    numbers: Array, layers: list[Array], metric: CKA, tile: int, room: int
) -> None:
    """Also where the groups are cut into runs, and rows of a large group into several tiles."""
    grams = [factor(x, metric, numbers) for x in layers]
    sweep = LeaveOneGroupOut(grams, grams[1:], metric, tile=tile, panel=3 * tile, room=room)
    steps: list[None] = []
    values = sweep.left_out(lambda: steps.append(None))
    assert len(steps) == sweep.units
    assert sweep.units > 2 or not tile
    for group, without in enumerate(values):
        keep = numbers != list(dict.fromkeys(numbers))[group]
        kernels = [kernel(x, metric)[np.ix_(keep, keep)] for x in layers]
        expected = [[cosine(K, L, numbers[keep]) for L in kernels[1:]] for K in kernels]
        np.testing.assert_allclose(without, expected, atol=1e-11)
    np.testing.assert_allclose(sweep.full_values, metric.block(grams, grams[1:]), atol=1e-12)


def test_without_groups_it_equals_leave_one_out(layers: list[Array]) -> None:
    """Groups of one sample, and one pair: the sums D_i and the closed form meet the formula of single samples."""
    single = [factor(x) for x in layers]
    groups = Groups(torch.arange(N))
    grouped = [
        Gram(g.features, g.squared_norms, g.row_sums, groups=groups, sums_within=g.squared_norms) for g in single
    ]
    one, group = LeaveOneOut(single, single, CKA()), LeaveOneGroupOut(grouped, grouped, CKA())
    np.testing.assert_allclose(group.left_out(lambda: None), one.left_out(lambda: None), atol=1e-12)


def test_leave_one_out_takes_names_of_groups(layers: list[Array], numbers: Array) -> None:
    names = [f"scene{k}" for k in numbers]
    values = repsim.leave_one_out(layers[:2], [layers[2]], groups=names)
    assert values.shape == (len(SIZES), 2, 1)
    np.testing.assert_array_equal(values, repsim.leave_one_out(layers[:2], [layers[2]], groups=numbers))


def test_a_rest_that_one_group_dominates_is_refused(layers: list[Array]) -> None:
    groups = np.repeat(np.arange(7), [11, 11, 1, 1, 1, 1, 1])
    with pytest.raises(InvalidInputError, match="the group 1 has 11 of 16 samples without the group 0"):
        repsim.leave_one_out([layers[0]], [layers[1]], groups=groups)


# Groups permuted


@pytest.mark.parametrize("algorithm", ["grams", "features", "directions"])
@pytest.mark.parametrize("gathered", [1, 2**21])
def test_permuted_values_equal_least_squares(
    numbers: Array, layers: list[Array], algorithm: str, gathered: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(permutation, "_GATHERED", gathered)
    grams = [factor(x, groups=numbers) for x in layers]
    orders = torch.from_numpy(repsim.random_permutations(N, 7, groups=numbers))
    if algorithm == "grams":
        values = permutation._from_grams(grams[:2], grams[2:], CKA(), orders, memory=2**30, progress=None)
    elif algorithm == "features":
        values = permutation._from_features(grams[:2], grams[2:], CKA(), orders, progress=None)
    else:
        exact = truncate_jointly(grams, 1.0)
        values = permutation._from_directions(exact[:2], exact[2:], CKA(), orders, progress=None)
    expected = [[[cosine(kernel(x), kernel(layers[2][order]), numbers)] for x in layers[:2]] for order in orders]
    np.testing.assert_allclose(values, expected, atol=1e-11)


def test_permuted_values_of_an_rbf_kernel(numbers: Array, layers: list[Array]) -> None:
    x, y, _ = layers
    orders = repsim.random_permutations(N, 5, groups=numbers)
    values = repsim.permuted([x], [y], METRICS[1], orders, groups=numbers)
    K, L = kernel(x, METRICS[1]), kernel(y, METRICS[1])
    expected = [cosine(K, L[np.ix_(order, order)], numbers) for order in orders]
    np.testing.assert_allclose(values.ravel(), expected, atol=1e-12)


def test_pairs_within_groups_that_do_not_fit_are_not_kept(numbers: Array, layers: list[Array]) -> None:
    grams = truncate_jointly([factor(x, groups=numbers) for x in layers[:2]], 1.0)
    orders = torch.from_numpy(repsim.random_permutations(N, 4, groups=numbers))
    room = 20_000  # more than Gram matrices take, less than all pairs within groups and the features
    little = permutation.permuted(grams[:1], grams[1:], CKA(), orders, memory=room)
    plenty = permutation.permuted(grams[:1], grams[1:], CKA(), orders, memory=2**30)
    np.testing.assert_allclose(little, plenty, atol=1e-11)


def test_measures_without_an_estimator_for_groups_keep_their_values(numbers: Array, layers: list[Array]) -> None:
    orders = repsim.random_permutations(N, 3, groups=numbers)
    for metric in ("cka:estimator=biased", "procrustes", "mutual_knn:k=3"):
        grouped, plain = (repsim.permuted(layers[:1], layers[1:], metric, orders, groups=g) for g in (numbers, None))
        np.testing.assert_array_equal(grouped, plain)


def test_permutations_exchange_whole_groups(numbers: Array) -> None:
    orders = repsim.random_permutations(N, 50, groups=numbers)
    for order in orders:
        moved = numbers[order]
        for group in np.unique(numbers):
            target = np.unique(moved[numbers == group])
            assert len(target) == 1
            np.testing.assert_array_equal(order[numbers == group], np.flatnonzero(numbers == target[0]))
    assert len(np.unique(orders, axis=0)) > 40
    with pytest.raises(InvalidInputError, match="moves samples out of their groups"):
        repsim.permuted([np.eye(N)], [np.eye(N)], "cka", repsim.random_permutations(N, 2), groups=numbers)
    within = np.arange(N)
    within[np.flatnonzero(numbers == numbers[0])] = np.flatnonzero(numbers == numbers[0])[::-1]
    if (numbers == numbers[0]).sum() > 1:
        with pytest.raises(InvalidInputError, match="moves samples out of their groups"):
            repsim.permuted([np.eye(N)], [np.eye(N)], "cka", [within], groups=numbers)


def test_permutations_within_classes_exchange_groups_of_the_same_classes() -> None:
    groups, classes = np.repeat(np.arange(12), 2), np.repeat([0, 1, 0, 1, 2, 2], 4)
    for order in group_permutations(groups, 20, classes=classes):
        np.testing.assert_array_equal(classes[order], classes)


def test_too_few_rearrangements_are_refused() -> None:
    with pytest.raises(InvalidInputError, match=r"only 6 rearrangements of the 6 groups exist.*below 0.14"):
        repsim.random_permutations(21, 3, groups=np.repeat(np.arange(6), [2, 2, 2, 4, 5, 6]))
    assert repsim.random_permutations(8, 3, groups=np.repeat(np.arange(4), 2)).shape == (3, 8)


def test_the_moments_of_single_samples_are_refused(numbers: Array, layers: list[Array]) -> None:
    grams = [factor(x, groups=numbers) for x in layers]
    with pytest.raises(InvalidInputError, match="in groups"):
        cubic_moments(grams)
    with pytest.raises(InvalidInputError, match="group by group"):
        LeaveOneOut(grams, grams, CKA())
    with pytest.raises(InvalidInputError, match="different groups"):
        CKA().block(grams[:1], [factor(layers[1])])


def test_truncated_layers_keep_their_groups(numbers: Array, layers: list[Array]) -> None:
    gram = factor(layers[1], groups=numbers)
    short = truncate(gram, 1.0)
    assert CKA().pair(gram, short) == pytest.approx(1, abs=1e-12)


# Groups subsampled


@pytest.mark.parametrize("metric", METRICS)
def test_subsamples_are_of_whole_groups(numbers: Array, layers: list[Array], metric: CKA) -> None:
    x, y, _ = layers
    subsamples = repsim.random_subsamples(N, 8, 6, groups=numbers)
    assert len({len(part) for part in subsamples}) > 1
    values = repsim.subsampled([x], [y], metric, subsamples, groups=numbers)
    K, L = kernel(x, metric), kernel(y, metric)
    expected = [cosine(K[np.ix_(part, part)], L[np.ix_(part, part)], numbers[part]) for part in subsamples]
    np.testing.assert_allclose(values.ravel(), expected, atol=1e-12)
    with pytest.raises(InvalidInputError, match="take whole groups"):
        repsim.subsampled([x], [y], metric, repsim.random_subsamples(N, 12, 2), groups=numbers)
