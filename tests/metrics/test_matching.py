"""Measures that match units by their correlations: units without variance, scales, streams, and closed forms."""

import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import scipy.optimize
import torch

from repsim.errors import UndefinedValueError
from repsim.metrics import get
from repsim.metrics.algorithms.feature_space import MomentSweep
from repsim.metrics.base import Array, Metric, as_samples
from repsim.metrics.matching import HardCorrelation, SemiCorrelation, SoftMatching, UnitNorm, chance_maximum
from repsim.testing.examples import RowsOnDisk

MATCHING: tuple[Metric[Any], ...] = (HardCorrelation(), SemiCorrelation(), SoftMatching())
every_measure = pytest.mark.parametrize("metric", MATCHING, ids=[metric.name for metric in MATCHING])


@pytest.fixture
def layers(rng: np.random.Generator) -> tuple[Array, Array]:
    signal = rng.normal(size=(50, 3))
    x, y = (signal @ rng.normal(size=(3, p)) + rng.normal(size=(50, p)) + 3 for p in (7, 10))
    return x, y


@every_measure
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_units_without_variance_are_left_out(
    metric: Metric[Any], layers: tuple[Array, Array], dtype: type[np.floating[Any]]
) -> None:
    x, y = (layer.astype(dtype) for layer in layers)
    dead = np.insert(np.insert(x, 3, 0, axis=1), 5, 0.1, axis=1)  # 0.1 has no exact mean
    assert metric(dead, y) == metric(x, y)
    assert metric(y, dead) == metric(y, x)
    factor = metric.recipe(as_samples(dead))
    assert metric.diagnostics(factor) == {"units": 7}
    assert factor.p == 7
    assert factor.nbytes == x.nbytes


@every_measure
def test_a_layer_of_dead_units_only_is_constant(metric: Metric[Any], layers: tuple[Array, Array]) -> None:
    dead = np.tile(np.array([0.1, 0.0, -3e5]), (50, 1))
    with pytest.raises(UndefinedValueError, match="constant"):
        metric(dead, layers[0])


@every_measure
def test_every_unit_has_a_scale_of_its_own(metric: Metric[Any], layers: tuple[Array, Array]) -> None:
    """Scales from underflow to overflow of squares, in one layer."""
    x, y = layers
    scales = np.geomspace(1e-250, 1e250, x.shape[1])
    assert metric((x - x.mean(0)) * scales, y) == pytest.approx(metric(x, y), abs=1e-12)
    single = (x - x.mean(0)) * np.geomspace(1e-30, 1e30, x.shape[1])
    assert metric(single.astype(np.float32), y.astype(np.float32)) == pytest.approx(metric(x, y), abs=1e-6)
    assert metric(-x, y) != pytest.approx(metric(x, y), abs=1e-3), "the sign of a correlation counts"


@every_measure
def test_a_layer_that_is_read_from_a_file(metric: Metric[Any], layers: tuple[Array, Array]) -> None:
    """The units are the same, and the layer is read again instead of held."""
    x = np.insert(layers[0], 2, 0, axis=1)
    streamed, other = UnitNorm()(RowsOnDisk(x)), UnitNorm()(torch.from_numpy(layers[1]))
    assert not streamed.in_memory
    assert streamed.nbytes < 1000
    assert metric.pair(streamed, other) == pytest.approx(metric(x, layers[1]), abs=1e-14)
    order = torch.randperm(50, generator=torch.Generator().manual_seed(0))
    whole = UnitNorm()(torch.from_numpy(x))
    for factor in (streamed, whole):
        torch.testing.assert_close(factor.permuted(order).rows(slice(None)), whole.rows(slice(None))[order])


def test_copies_of_units(layers: tuple[Array, Array]) -> None:
    """Two thirds of y's units are copies of x's 0th, the rest of its 1st; x has one of each."""
    x = layers[0][:, :2] - layers[0][:, :2].mean(0)
    x = np.linalg.qr(x)[0]  # uncorrelated units
    y = x[:, [0, 0, 1]]
    assert HardCorrelation()(x, y) == pytest.approx(1, abs=1e-12)
    assert SemiCorrelation()(x, y) == pytest.approx(1, abs=1e-12)
    # 1/2 of the mass sits on x_0, 2/3 on its copies: 1/2 + 1/3 of it stays where the correlation is 1
    assert SoftMatching()(x, y) == pytest.approx(5 / 6, abs=1e-12)
    assert SoftMatching()(x, np.hstack([x, x])) == pytest.approx(1, abs=1e-12)


def test_several_partners_and_one(layers: tuple[Array, Array]) -> None:
    """No transport plan and no matching gives a unit a better partner than the best one."""
    x, y = layers
    square = y[:, : x.shape[1]]
    assert SoftMatching()(x, square) == HardCorrelation()(x, square)
    assert SemiCorrelation()(x, square) > HardCorrelation()(x, square)
    assert SemiCorrelation()(x, y) > SoftMatching()(x, y)


def test_the_distance_of_the_paper_is_a_metric(rng: np.random.Generator) -> None:
    for _ in range(30):
        x, near, z = (rng.normal(size=(6, p)) for p in (3, 4, 5))
        near[:, :3] = x + 0.3 * z[:, :3]
        a, b, c = (
            np.sqrt(max(0.0, 2 - 2 * SoftMatching()(u, v))) for u, v in ((x, near), (near, z), (x, z))
        )  # fmt: skip
        assert c <= a + b + 1e-12


def test_the_assignment_is_found_once(layers: tuple[Array, Array], monkeypatch: pytest.MonkeyPatch) -> None:
    solve, calls = scipy.optimize.linear_sum_assignment, []

    def counted(*args: Any, **kwargs: Any) -> Any:
        calls.append(args)
        return solve(*args, **kwargs)

    monkeypatch.setattr(scipy.optimize, "linear_sum_assignment", counted)
    x, y = (UnitNorm()(torch.from_numpy(layer[:, :7])) for layer in layers)
    hard, soft = MomentSweep([x], [y], [HardCorrelation(), SoftMatching()], chunk=16, room=10**6).run()
    assert hard == soft
    assert len(calls) == 1


@pytest.mark.parametrize("m", [2, 5, 30, 1000])
def test_the_largest_of_chance_numbers(rng: np.random.Generator, m: int) -> None:
    drawn = rng.normal(size=(4000, m)).max(1).mean()
    assert chance_maximum(m) == pytest.approx(drawn, rel=0.05)


@every_measure
def test_samples_needed_are_not_far_too_many(metric: Metric[Any], rng: np.random.Generator) -> None:
    n = metric.samples_needed(60, 60)
    assert n is not None
    values = [metric(rng.normal(size=(n, 60)), rng.normal(size=(n, 60))) for _ in range(5)]
    assert 0.17 < np.mean(values) < 0.205


@pytest.mark.slow
def test_names_of_measures_import_no_solvers() -> None:
    program = "import sys, repsim.metrics; repsim.metrics.names(); print(*{'ot', 'scipy'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert not done.stdout.strip()


def test_gradient_of_one_side_only(layers: tuple[Array, Array]) -> None:
    x, y = (torch.from_numpy(layer) for layer in layers)
    x.requires_grad_()
    for metric in MATCHING:
        (gradient,) = torch.autograd.grad(metric(x, y), x)
        assert gradient.abs().sum() > 0
    assert get("hard_correlation") == HardCorrelation()
