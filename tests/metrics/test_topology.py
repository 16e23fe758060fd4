"""Topological measures: what is known of circles and clusters, and the roads that have to agree."""

import math
import sys
from collections.abc import Callable
from unittest.mock import Mock, patch

import numpy as np
import pytest
import torch
from scipy.cluster.hierarchy import cophenet, linkage
from scipy.linalg import expm
from scipy.spatial.distance import squareform

from repsim.errors import MissingExtraError, UndefinedValueError, UnreliableValueWarning
from repsim.metrics import geometry_score, imd, rtd
from repsim.metrics.base import Array
from repsim.metrics.geometry_score import GeometryScore
from repsim.metrics.imd import IMD
from repsim.metrics.rtd import RTD
from tests.metrics import references_topology


def circle(n: int, radius: float = 1.0) -> Array:
    t = 2 * np.pi * np.arange(n) / n
    return radius * np.stack([np.cos(t), np.sin(t)], axis=1)


def cloud(seed: int, n: int, p: int = 3) -> Array:
    return np.random.default_rng(seed).normal(size=(n, p))


# RTD


def scaled(x: Array) -> Array:
    d = references_topology.distances(x)
    return np.asarray(d / np.quantile(d, 0.9))


def length(a: Array, b: Array) -> float:
    """Return the total length of the bars of one direction."""
    from gudhi.sklearn.rips_persistence import RipsPersistence  # noqa: PLC0415 - as the package: where it is needed

    matrix, rest = rtd.cross_barcode_matrix(a, b)
    (bars,) = RipsPersistence(1, input_type="full distance matrix", homology_coeff_field=2).fit_transform([matrix])
    return float((bars[:, 1] - bars[:, 0]).sum()) + rest


def test_a_circle_has_one_bar() -> None:
    """Against a view in which all samples are one: from the side of a 12-gon to the side of its inscribed triangle."""
    d = references_topology.distances(circle(12))
    bars = references_topology.h1_bars(references_topology.rips(d))
    np.testing.assert_allclose(bars, [(2 * math.sin(math.pi / 12), math.sqrt(3))])
    inside = np.full_like(d, 5.0) * (1 - np.eye(12))  # joins nothing before the circle is full
    expected = math.sqrt(3) - 2 * math.sin(math.pi / 12) + 11 * (5 - 2 * math.sin(math.pi / 12))
    assert length(inside, d) == pytest.approx(expected, abs=1e-12)
    assert length(d, inside) == pytest.approx(0, abs=1e-12)


def test_two_clusters_that_one_view_joins_have_one_bar() -> None:
    """It lives from where b joins the clusters to where a does."""
    a, b = np.full((6, 6), 3.0), np.full((6, 6), 2.0)
    for d in (a, b):
        d[:3, :3] = d[3:, 3:] = 1 - np.eye(3)
    assert length(a, b) == pytest.approx(1)
    assert length(b, a) == 0


@pytest.mark.parametrize("apart", [0.0, math.inf])
@pytest.mark.parametrize("seed", range(4))
def test_both_roads_give_the_published_matrix_its_length(apart: float, seed: int, tuned: Callable[..., None]) -> None:
    """With the components counted on their own, and without."""
    tuned(trees_apart=apart)
    x, y = cloud(seed, 14, 2 + 4 * seed), cloud(seed + 10, 14, 2)
    if seed == 3:
        y[:5] = y[0]  # equal samples
    a, b = scaled(x), scaled(y)
    for one, other in ((a, b), (b, a)):
        assert length(one, other) == pytest.approx(references_topology.cross_barcode(one, other), abs=1e-12)
    assert rtd.cross_barcode_matrix(a, b)[1] == 0 or apart == 0


def test_components_are_counted_on_their_own_where_they_would_take_long() -> None:
    """High-dimensional noise joins its samples late; the plane joins them early."""
    noise, plane = scaled(cloud(0, 60, 100)), scaled(cloud(1, 60, 2))
    assert rtd.cross_barcode_matrix(noise, plane)[1] > 0.25 * 60
    assert rtd.cross_barcode_matrix(plane, noise)[1] == 0


def test_a_batch_of_all_samples_is_drawn_once() -> None:
    x, y = cloud(0, 30), cloud(1, 30)
    assert RTD(batch=30).recipe(torch.from_numpy(x)).distances.shape == (1, 30, 30)
    assert RTD(batch=29).recipe(torch.from_numpy(x)).distances.shape == (10, 29, 29)
    assert RTD()(x, y) == RTD(batch=30, trials=3, seed=5)(x, y)
    assert RTD(batch=20)(x, y) != RTD(batch=20, seed=1)(x, y)


def test_equal_samples_are_at_no_distance() -> None:
    x = np.concatenate([cloud(0, 50, 50)] * 2)
    (d,) = RTD().recipe(torch.from_numpy(x)).distances
    np.testing.assert_array_equal(d == 0, np.tile(np.eye(50, dtype=bool), (2, 2)))


def test_single_linkage_is_that_of_scipy() -> None:
    d = references_topology.distances(cloud(0, 50))
    tree = linkage(squareform(d), "single")
    length, joined = rtd.single_linkage(d)
    assert length == pytest.approx(tree[:, 2].sum())
    np.testing.assert_allclose(joined, squareform(cophenet(tree)))


def test_a_layer_of_one_sample_that_differs_has_no_unit() -> None:
    x = np.zeros((40, 3))
    x[0] = 1
    with pytest.raises(UndefinedValueError, match="nine tenths"):
        RTD()(x, cloud(0, 40))


# Geometry Score


@pytest.mark.parametrize(("n", "landmarks", "gamma"), [(40, 8, 0.3), (30, 9, 1.0), (60, 7, 0.05)])
def test_landmarks_that_cannot_matter_change_nothing(n: int, landmarks: int, gamma: float) -> None:
    import gudhi  # noqa: PLC0415 - as above

    d = np.linalg.norm(cloud(0, n)[:, None] - cloud(1, landmarks), axis=2)
    slack = gamma * d.max()
    result = []
    for table in (geometry_score.nearest_landmarks(d, slack), geometry_score.nearest_landmarks(d, math.inf)):
        tree = gudhi.WitnessComplex(table).create_simplex_tree(max_alpha_square=slack, limit_dimension=2)
        result.append({tuple(simplex): value for simplex, value in tree.get_simplices()})
    assert result[0] == result[1]
    assert result[0] == pytest.approx(references_topology.witness_complex(d, slack))


def test_a_loop_needs_no_triangle() -> None:
    """The corners of a square, and the middles of its sides, which witness them."""
    corners = np.array([[0, 0], [1, 0], [1, 1], [0, 1.0]])
    samples = np.concatenate([corners, (corners + np.roll(corners, 1, axis=0)) / 2])
    d = np.linalg.norm(samples[:, None] - corners, axis=2)
    np.testing.assert_array_equal(geometry_score.witness_bars(d, 0.01), [[0, np.inf]])


def test_most_draws_see_the_loop_of_a_circle() -> None:
    x = circle(200) + 0.01 * cloud(0, 200, 2)
    times = GeometryScore(landmarks=24, gamma=0.1, draws=50).recipe(torch.from_numpy(x)).times
    assert times.argmax() == 1
    assert times[1] > 0.5
    assert times.sum() == pytest.approx(1)


def test_layers_without_a_loop_warn() -> None:
    with pytest.warns(UnreliableValueWarning, match="increase gamma"):
        assert GeometryScore(landmarks=4, gamma=1e-6, draws=2)(np.arange(20.0)[:, None], np.arange(20.0)[:, None]) == 0


def test_too_many_loops_warn() -> None:
    with pytest.warns(UnreliableValueWarning, match="increase i_max"):
        GeometryScore(landmarks=12, gamma=0.3, i_max=1, draws=5)(cloud(0, 60), circle(60))


# IMD


def test_heat_is_the_trace_of_the_exponential() -> None:
    x = torch.from_numpy(cloud(0, 30))
    traces = IMD().recipe(x).traces
    nearest = torch.cdist(x, x).argsort(1)[:, 1:6]
    graph = imd.normalised_adjacency(nearest).to_dense().numpy()
    for k in (0, 100, 255):
        t = np.logspace(-1, 1, 256)[k]
        assert traces[k] == pytest.approx(np.trace(expm(-t * (np.eye(30) - graph))) / 30, abs=1e-12)


def test_estimated_traces_are_those_of_all_eigenvalues() -> None:
    """To the standard error of the probes; without noise where every sign is tried."""
    n = 10
    x = torch.from_numpy(cloud(0, n))
    graph = imd.normalised_adjacency(torch.cdist(x, x).argsort(1)[:, 1:3])
    exact = imd.exact_traces(graph)
    generator = Mock()
    generator.integers.side_effect = np.split(np.array(np.meshgrid(*[[0, 1]] * n)).reshape(n, -1), 16, axis=1)
    with patch("numpy.random.default_rng", return_value=generator):
        torch.testing.assert_close(imd.estimated_traces(graph, 2**n, 0), exact, rtol=0, atol=1e-12)
    error = (imd.estimated_traces(graph, 1000, 0) - exact).abs().max()
    assert 1e-6 < error < 0.01


def test_large_layers_are_estimated(tuned: Callable[..., None]) -> None:
    x, y = cloud(0, 300, 10), cloud(1, 300, 2)
    exact = IMD()(x, y)
    tuned(heat_exact=299)
    assert IMD()(x, y) == pytest.approx(exact, rel=0.05)
    assert IMD()(x, y) != exact
    assert IMD(seed=1)(x, y) != IMD()(x, y)
    assert IMD()(x, x) == 0


def test_tied_neighbours_warn() -> None:
    x = cloud(0, 40)
    x[:10] = x[0]
    with pytest.warns(UnreliableValueWarning, match="samples are tied with others"):
        IMD()(x, cloud(1, 40))


@pytest.mark.slow
def test_the_largest_distance_is_that_between_pairs_and_a_complete_graph() -> None:
    """Eigenvalues 0 and 2, and about 1."""
    pairs = torch.tensor([[1], [0]] * 500) + 2 * torch.arange(500).repeat_interleave(2)[:, None]
    complete = torch.arange(1000).expand(1000, 1000)[~torch.eye(1000, dtype=torch.bool)].view(1000, 999)
    a, b = (imd.Heat(imd.exact_traces(imd.normalised_adjacency(g)), 0) for g in (pairs, complete))
    value, (_, high) = IMD().pair(a, b), IMD().bounds
    assert 0.99 * high < value <= high


# Missing libraries


@pytest.mark.parametrize("metric", [GeometryScore(landmarks=4), RTD()])
def test_a_missing_library_is_named_with_its_extra(
    metric: GeometryScore | RTD, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "gudhi", None)
    with pytest.raises(
        MissingExtraError, match=rf"{metric.name} needs gudhi: pip install 'repsim-toolkit\[topology\]'"
    ):
        metric(cloud(0, 20), cloud(1, 20))
