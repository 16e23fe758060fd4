"""Exchange of trained and untrained networks, compared with loops over all choices and over all networks."""

import numpy as np
import pytest
from scipy import stats

from repsim.results.variables import CONTROL_PAIRS
from repsim.study import exchange
from repsim.study.exchange import excess, exchange_test, network_variance
from tests.study.references import Array, Flags, all_choices, slow_excess, slow_variance


def networks(trained: int, untrained: int) -> Flags:
    """Return which networks of an architecture are trained; those are not all in a row."""
    rows = [True] * trained + [False] * untrained
    return np.array(rows[::2] + rows[1::2])


ARCHITECTURES = [
    (networks(2, 3), networks(2, 3)),
    (networks(1, 1), networks(3, 2)),
    (networks(3, 3), networks(1, 3)),
]


@pytest.mark.parametrize(("a", "b"), ARCHITECTURES)
def test_excess_is_the_difference_of_means(a: Flags, b: Flags, rng: np.random.Generator) -> None:
    values = rng.normal(size=(len(a), len(b)))
    for trained_a, trained_b in ((a, b), (all_choices(a)[-1], all_choices(b)[-1])):
        expected = slow_excess(values, trained_a, trained_b)
        np.testing.assert_allclose(excess(values, trained_a, trained_b), expected, atol=1e-12)


@pytest.mark.parametrize(("a", "b"), ARCHITECTURES)
def test_p_is_the_share_of_choices(a: Flags, b: Flags, rng: np.random.Generator) -> None:
    for _ in range(2):
        values = rng.normal(size=(len(a), len(b))) + np.outer(a, b)
        observed = slow_excess(values, a, b).min()
        drawn = [slow_excess(values, x, y).min() for x in all_choices(a) for y in all_choices(b)]
        p, least = exchange_test(values, a, b)
        assert p == pytest.approx(np.mean(np.array(drawn) >= observed - 1e-12), abs=1e-12)
        assert least == 1 / (len(all_choices(a)) * len(all_choices(b)))


def test_equal_values_are_ties() -> None:
    a = networks(2, 2)
    assert exchange_test(np.full((4, 4), 0.3), a, a)[0] == 1
    assert np.isnan(exchange_test(np.full((4, 4), np.nan), a, a)[0])


def test_p_is_uniform_if_networks_can_be_exchanged() -> None:
    """The rows and the columns depend on each other, as all similarities of one network do."""
    rng, a, b = np.random.default_rng(1), networks(2, 2), networks(2, 1)
    p = []
    for _ in range(400):
        values = rng.normal(size=(4, 1)) + rng.normal(size=(1, 3)) + 0.5 * rng.normal(size=(4, 3))
        p.append(exchange_test(values, a, b)[0])
    for level in np.arange(1, 19) / 18:  # each of the 18 values of p is as likely
        count = sum(one <= level + 1e-12 for one in p)
        assert stats.binomtest(count, len(p), min(level, 1)).pvalue > 1e-3


def test_of_many_choices_a_sample_is_taken(monkeypatch: pytest.MonkeyPatch, rng: np.random.Generator) -> None:
    """The true choice always counts, so that p is never 0."""
    a = networks(3, 3)
    values = rng.normal(size=(6, 6)) + 0.7 * np.outer(a, a)
    exact, least = exchange_test(values, a, a)
    assert least == 1 / 400
    monkeypatch.setattr(exchange, "MOST_CHOICES", 200)
    sampled, least = exchange_test(values, a, a, seed=1)
    assert least == 1 / 200
    assert exact != sampled
    assert abs(sampled - exact) < 4 * np.sqrt(exact * (1 - exact) / 200) + 1 / 200
    assert sampled == exchange_test(values, a, a, seed=1)[0]
    assert sampled * 200 == pytest.approx(round(sampled * 200))
    assert exchange_test(100 * np.outer(a, a), a, a, seed=3)[0] >= 1 / 200


def test_more_than_ten_thousand_choices() -> None:
    a = networks(5, 5)  # 252 x 252 choices
    alike = np.outer(a, a).astype(float)
    p = [exchange_test(alike, a, a, seed)[0] for seed in range(3)]
    assert min(p) == exchange_test(alike, a, a)[1] == 1e-4
    assert max(p) < 1e-3  # the true choice can be drawn again


# Variance over networks


@pytest.mark.parametrize(
    ("a", "b"),
    [(networks(2, 3), networks(3, 2)), (networks(4, 2), networks(3, 2))],
)
def test_network_variance_leaves_every_network_out(a: Flags, b: Flags, rng: np.random.Generator) -> None:
    values = rng.normal(size=(len(a), len(b)))
    for fast, slow in zip(network_variance(values, a, b), slow_variance(values, a, b), strict=True):
        np.testing.assert_allclose(fast, slow, rtol=1e-10)


def test_network_variance_of_additive_effects_is_that_of_means(rng: np.random.Generator) -> None:
    """With S_ij = x_i + y_j each difference of means is one of x or y: its variance is s^2 / m of each sample."""
    a, b = networks(3, 4), networks(2, 5)
    x, y = rng.normal(size=7), rng.normal(size=7)
    variance, freedom = network_variance(x[:, None] + y, a, b)

    def terms(effects: Array, family: Flags) -> list[tuple[float, int]]:
        samples = [effects[family == state] for state in (True, False)]
        return [(float(sample.var(ddof=1)) / len(sample), len(sample) - 1) for sample in samples]

    by_control = {
        "both untrained": [*terms(x, a), *terms(y, b)],
        "first trained": terms(y, b),
        "second trained": terms(x, a),
    }
    for k, name in enumerate(CONTROL_PAIRS):
        of_means = by_control[name]
        total = sum(v for v, _ in of_means)
        assert variance[k] == pytest.approx(total, rel=1e-10)
        assert freedom[k] == pytest.approx(total**2 / sum(v**2 / df for v, df in of_means), rel=1e-8)


def test_a_single_network_has_no_variance(rng: np.random.Generator) -> None:
    for a, b in ((networks(1, 3), networks(2, 2)), (networks(2, 2), networks(2, 1))):
        variance, freedom = network_variance(rng.normal(size=(len(a), len(b))), a, b)
        assert np.isnan(variance).all()
        assert np.isnan(freedom).all()


def test_equal_networks_have_no_variance() -> None:
    a = networks(2, 3)
    variance, freedom = network_variance(np.full((5, 5), 0.25), a, a)
    np.testing.assert_array_equal(variance, 0)
    np.testing.assert_array_equal(freedom, 1 + 2 + 1 + 2)


def test_networks_that_are_alike_in_pairs_have_the_variance_of_pairs() -> None:
    """Networks of one seed are alike and all others not, so that the means of all rows and columns are equal."""
    a = networks(3, 3)
    values = np.zeros((6, 6))
    values[np.flatnonzero(a), np.flatnonzero(a)] = 0.9
    variance, freedom = network_variance(values, a, a)
    np.testing.assert_allclose(variance, np.square(0.9 * (np.eye(3) - 1 / 3)).sum() / 4 / 9)
    np.testing.assert_array_equal(freedom, 4)
