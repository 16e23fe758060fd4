"""Order-preserving matches compared with all possible maps, with layers left out, and measured on other samples."""

import itertools

import numpy as np
import pytest
from numpy.typing import NDArray

from repsim.errors import InvalidInputError
from repsim.study.layer_matching import best_match, mbm, nearest, relative, split_half, warp

Array = NDArray[np.float64]


def every_map(S: Array) -> tuple[float, list[int]]:
    """Return the value and the map of `best_match` by trying all non-decreasing maps; -1 for rows without a value."""
    rows = [i for i in range(len(S)) if not np.isnan(S[i]).all()]
    maps = list(itertools.combinations_with_replacement(range(S.shape[1]), len(rows)))
    sums = [sum(S[i, j] for i, j in zip(rows, m, strict=True)) for m in maps]
    columns = [-1] * len(S)
    if not rows or np.isnan(sums).all():
        return np.nan, columns
    best = [m for m, total in zip(maps, sums, strict=True) if total == np.nanmax(sums)]
    for i, j in zip(rows, np.min(best, axis=0), strict=True):
        columns[i] = int(j)
    return float(np.nanmax(sums)) / len(rows), columns


@pytest.mark.parametrize(("rows", "width"), list(itertools.product(range(1, 6), repeat=2)))
@pytest.mark.parametrize("missing", [0.0, 0.3])
def test_it_is_the_best_of_all_maps(rng: np.random.Generator, rows: int, width: int, missing: float) -> None:
    """Integers give ties: the column-wise minimum of the best maps is one of the best maps."""
    S = rng.integers(-2, 4, (40, rows, width)).astype(float)
    S[rng.random(S.shape) < missing] = np.nan
    match = best_match(S)
    expected = [every_map(s) for s in S]
    np.testing.assert_allclose(match.value, [value for value, _ in expected], rtol=1e-13)
    assert match.columns.tolist() == [columns for _, columns in expected]


@pytest.mark.parametrize("size", [1.0, 1e-6, 1e6])
def test_equal_layers_are_ties_despite_rounding_errors(rng: np.random.Generator, size: float) -> None:
    """Rounding errors, which differ between processors, do not decide between ties."""
    S = np.array([[0.9, 0.9, 0.1], [0.3, 0.3, 0.3], [0.2, 0.8, 0.8]]) * size
    for _ in range(20):
        match = best_match(S * (1 + 1e-12 * rng.normal(size=S.shape)))
        assert match.columns.tolist() == [0, 0, 1]
        assert float(match.value) == pytest.approx(size * 2 / 3, rel=1e-11)
    assert best_match(S + 1e-7 * size * np.eye(3)[[1, 1, 2]]).columns.tolist() == [1, 1, 2], (
        "a difference above the tolerance counts"
    )


def test_a_batch_is_one_matrix_after_the_other(rng: np.random.Generator) -> None:
    S = rng.normal(size=(3, 5, 7, 6))
    S[1, 2, 3] = np.nan
    match = best_match(S)
    for i, j in np.ndindex(3, 5):
        alone = best_match(S[i, j])
        assert match.value[i, j] == alone.value
        assert (match.columns[i, j] == alone.columns).all()


def test_a_network_matches_itself_layer_by_layer(rng: np.random.Generator) -> None:
    x = rng.normal(size=(6, 3))
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    assert best_match(x @ x.T).columns.tolist() == list(range(6))
    assert mbm(x @ x.T) == pytest.approx(1, abs=1e-14)


def test_mbm_is_symmetric_and_the_mean_of_both_directions(rng: np.random.Generator) -> None:
    S = rng.normal(size=(20, 4, 5))
    np.testing.assert_allclose(mbm(S), [(every_map(s)[0] + every_map(s.T)[0]) / 2 for s in S], rtol=1e-13)
    np.testing.assert_array_equal(mbm(S), mbm(S.swapaxes(1, 2)))


def test_a_layer_without_a_value_is_left_out(rng: np.random.Generator) -> None:
    S = rng.normal(size=(5, 6))
    whole = best_match(np.delete(np.delete(S, 2, 0), 4, 1))
    S[2], S[:, 4] = np.nan, np.nan
    match = best_match(S)
    assert match.value == whole.value
    assert match.columns[2] == -1
    assert np.delete(match.columns, 2).tolist() == [j + (j >= 4) for j in whole.columns]


def test_no_map_is_no_value() -> None:
    """Each row has a value, but only in a column before that of the previous row."""
    nan = np.nan
    crossed = best_match([[[nan, 1.0], [1.0, nan]], [[1.0, nan], [nan, 1.0]], [[nan, nan], [nan, nan]]])
    assert np.isnan(crossed.value).tolist() == [True, False, True]
    assert crossed.columns.tolist() == [[-1, -1], [0, 1], [-1, -1]]
    assert np.isnan(split_half([[nan, 1.0], [1.0, nan]], np.ones((2, 2))))


def test_maps_are_fitted_on_one_half_and_measured_on_the_other(rng: np.random.Generator) -> None:
    first, second = rng.normal(size=(2, 30, 4, 5))
    expected = []
    for a, b in zip(first, second, strict=True):
        values = []
        for fitted, measured in [(a, b), (b, a), (a.T, b.T), (b.T, a.T)]:
            _, columns = every_map(fitted)
            values.append(np.mean([measured[i, j] for i, j in enumerate(columns)]))
        expected.append(np.mean(values))
    np.testing.assert_allclose(split_half(first, second), expected, rtol=1e-12)
    np.testing.assert_allclose(split_half(first, first), mbm(first), rtol=1e-12)


def test_halves_leave_out_what_either_has_no_value_for(rng: np.random.Generator) -> None:
    first, second = rng.normal(size=(2, 4, 5))
    expected = split_half(np.delete(np.delete(first, 1, 0), 2, 1), np.delete(np.delete(second, 1, 0), 2, 1))
    first[1], second[:, 2] = np.nan, np.nan
    assert split_half(first, second) == pytest.approx(float(expected), rel=1e-13)


def test_only_the_split_is_fair_to_unrelated_layers(rng: np.random.Generator) -> None:
    noise = rng.normal(size=(2, 2000, 6, 6))
    fair = split_half(*noise)
    assert abs(fair.mean()) < 4 * fair.std() / len(fair) ** 0.5
    assert mbm(noise[0]).mean() > 0.8


def test_relative_depth() -> None:
    np.testing.assert_array_equal(relative([[0, 2], [4, -1]], 5), [[0, 0.5], [1, np.nan]])
    assert np.isnan(relative([0, 0], 1)).all()
    for columns in ([5], [-2]):
        with pytest.raises(InvalidInputError, match="layers from 0 to 4"):
            relative(columns, 5)


def test_warp_is_the_distance_from_the_diagonal() -> None:
    assert warp(range(9), 9) == 0
    assert warp([0, 2, 4], 5) == 0
    assert warp([[4, 4, 4], [0, 0, 0]], 5).tolist() == [0.5, -0.5]
    assert warp([1, -1, 2], 3) == pytest.approx((0.5 + 0) / 2)
    assert np.isnan(warp([[-1, -1], [0, 0]], 3)).tolist() == [True, False]
    assert np.isnan(warp([0], 3))


def test_a_slow_network_has_a_negative_warp() -> None:
    """The lower half of a ResNet matches the first quarter of a ViT; the reverse match has the opposite sign."""
    a, b = np.linspace(0, 1, 17), np.linspace(0, 1, 13)
    depth = np.where(a < 0.5, a / 2, 0.25 + (a - 0.5) * 1.5)
    S = -np.abs(depth[:, None] - b)
    assert warp(best_match(S).columns, 13) < -0.1
    assert warp(best_match(S.T).columns, 17) > 0.1


def test_nearest_layers() -> None:
    for layers, count in itertools.product(range(1, 30), range(2, 30)):
        indices = nearest(layers, count)
        for k, index in enumerate(indices):
            distances = [abs(j * (count - 1) - k * (layers - 1)) for j in range(layers)]  # in integers
            assert index == int(np.argmin(distances))
    assert nearest(8, 8).tolist() == list(range(8))
    for layers, count in ((0, 3), (5, 1)):
        with pytest.raises(InvalidInputError, match="at least 1 layer and 2 depths"):
            nearest(layers, count)


def test_what_is_no_matrix_is_refused() -> None:
    for bad in (np.ones(3), np.ones((0, 3)), np.ones((2, 3, 0))):
        with pytest.raises(InvalidInputError, match="similarities of layers with layers"):
            best_match(bad)
