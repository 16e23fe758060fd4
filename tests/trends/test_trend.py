"""Statistics along the axis, against closed forms, scipy, brute force and simulation."""

import itertools

import numpy as np
import pytest
from scipy import stats

from repsim.errors import InvalidInputError
from repsim.trends.dataset import depth_order
from repsim.trends.trend import Scale, exponent, kendall, over_pairs_of_runs, over_runs, settled, slope


def test_kendall_of_one_run_is_that_of_scipy(rng: np.random.Generator) -> None:
    for n in (3, 5, 8, 20):
        x, y = np.arange(float(n)), rng.normal(size=n)
        expected = stats.kendalltau(x, y, method="exact")
        ours = kendall([(x, y)])
        np.testing.assert_allclose([ours.tau, ours.p], [expected.statistic, expected.pvalue], rtol=1e-10)


def test_kendall_of_two_runs_counts_all_orders(rng: np.random.Generator) -> None:
    x, ys = np.arange(4.0), [rng.normal(size=4), np.array([1.0, 2, 4, 3])]

    def total(orders: tuple[tuple[int, ...], ...]) -> float:
        pairs = itertools.combinations(range(4), 2)
        return float(sum(np.sign(order[j] - order[i]) for i, j in pairs for order in orders))

    observed = total(tuple(tuple(stats.rankdata(y)) for y in ys))
    everything = [total(orders) for orders in itertools.product(itertools.permutations(range(4)), repeat=2)]
    p = np.mean([abs(s) >= abs(observed) for s in everything])
    assert kendall([(x, y) for y in ys]).p == pytest.approx(p)
    assert kendall([(x, y) for y in ys]).tau == pytest.approx(observed / 12)


def test_kendall_of_many_points_and_of_ties() -> None:
    rng = np.random.default_rng(1)
    runs = [(np.arange(40.0), rng.normal(size=40)) for _ in range(2)]
    single = [stats.kendalltau(x, y, method="exact").statistic * 780 for x, y in runs]
    sd = np.sqrt(2 * 40 * 39 * 85 / 18)
    assert kendall(runs).p == pytest.approx(2 * stats.norm.sf((abs(sum(single)) - 1) / sd))
    tied = np.array([1.0, 1, 2, 3, 4, 4, 5, 6])
    variance = (8 * 7 * 21 - 2 * 2 * 9) / 18
    assert kendall([(np.arange(8.0), tied)]).p == pytest.approx(2 * stats.norm.sf(25 / np.sqrt(variance)))
    assert np.isnan(kendall([(np.arange(3.0), np.ones(3))]).p)
    assert np.isnan(kendall([(np.array([1.0]), np.array([1.0]))]).tau)


def test_the_p_value_of_kendall_is_uniform_at_most() -> None:
    rng = np.random.default_rng(3)
    p = np.array([kendall([(np.arange(6.0), rng.normal(size=6)) for _ in range(2)]).p for _ in range(1000)])
    assert (p <= 0.05).mean() < 0.05 + 3 * np.sqrt(0.05 * 0.95 / 1000)


def test_slope_and_exponent_leave_out_what_is_missing() -> None:
    x = np.array([np.nan, 1.0, 2.0, 4.0])
    y = np.array([[9.0, 1.0, 3.0, 7.0], [9.0, 0.0, 0.0, 3.0]])
    np.testing.assert_allclose(slope(x, y), [2.0, stats.linregress(x[1:], y[1, 1:]).slope])
    assert np.isnan(slope(np.array([1.0, np.nan]), np.array([1.0, 2.0])))
    values = np.array([0.0, 1.0, 10.0, 100.0])
    assert exponent(values, 1 - 0.3 * np.array([9.0, 1, 10**-0.5, 0.1])) == pytest.approx(0.5)
    assert exponent(values, np.array([0.1, 0.5, 1.0, 0.95])) == pytest.approx(0.5), "a similarity of 1 has no logarithm"


def test_the_scale_follows_from_the_values() -> None:
    assert Scale.of(np.array([0.0, 1, 5, 10])).log
    assert not Scale.of(np.array([1.0, 5, 9])).log
    assert not Scale.of(np.array([-1.0, 1, 100])).log
    assert np.isnan(Scale(log=True)(np.array([0.0, 10.0]))).tolist() == [True, False]


def test_settling() -> None:
    x = np.array([0.0, 1, 10, 100])
    y = np.array([[0.2, 0.6, 1.0, 1.0], [0.2, 0.9, 0.3, 1.0], [1.0, 1.0, 1.0, 1.0], [0.2, np.nan, 0.8, 1.0]])
    expected_linear = [1 + 9 * 0.5, 10 + 90 * (0.75 - 0.125) / 0.875]
    np.testing.assert_allclose(settled(x, y, share=0.75, scale=Scale(log=False))[:2], expected_linear)
    np.testing.assert_allclose(
        settled(x, y, share=0.75, scale=Scale(log=True))[:2], [10**0.5, 10 ** (1 + (0.75 - 0.125) / 0.875)]
    )
    assert np.isnan(settled(x, y, share=0.75, scale=Scale(log=True))[2:]).all()
    first = settled(np.array([0.0, 8.0, 16.0]), np.array([0.0, 1.0, 1.0]), share=0.25, scale=Scale(log=True))
    assert float(first) == 2.0, "from 0, which has no logarithm, linearly"
    with pytest.raises(InvalidInputError, match="between 0 and 1"):
        settled(x, y, share=1.0, scale=Scale(log=False))


def test_the_order_of_depth() -> None:
    assert depth_order(np.array([1.0, 2, 3, np.nan])) == 1
    assert depth_order(np.array([3.0, 2, 1])) == -1
    assert depth_order(np.array([1.0, 1.0, 2.0])) == pytest.approx(2 / 3)
    assert np.isnan(depth_order(np.array([1.0])))


def test_intervals_over_runs_cover_the_mean() -> None:
    rng = np.random.default_rng(0)
    inside = [(m := over_runs(rng.normal(2, 1, 3))).low <= 2 <= m.high for _ in range(2000)]
    assert abs(np.mean(inside) - 0.95) < 4 * np.sqrt(0.95 * 0.05 / 2000)


def test_intervals_over_pairs_of_runs_cover_the_mean() -> None:
    """Similarities of pairs are sums of what each run contributes, and something of the pair."""
    rng = np.random.default_rng(0)
    inside = []
    for _ in range(2000):
        runs = rng.normal(size=5)
        pairs = runs[:, None] + runs + np.triu(rng.normal(size=(5, 5)), 1)
        pairs = np.triu(pairs, 1) + np.triu(pairs, 1).T
        mean = over_pairs_of_runs(pairs.sum(1) / 4)
        inside.append(mean.low <= 0 <= mean.high)
    assert 0.94 < np.mean(inside) < 0.99, "pairs of the same runs are dependent; the interval may be a little wide"
    assert np.isnan(over_pairs_of_runs(np.array([1.0, 1.0])).low)
