"""Tests of the benchmark of all measures: naive formulas are correct, and incomplete times are scaled up."""

import sys
from importlib import import_module
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from click.testing import CliRunner

import repsim.metrics

SCRIPTS = Path(__file__).parents[2] / "scripts" / "benchmarks"


@pytest.fixture(scope="module")
def worker() -> ModuleType:
    if str(SCRIPTS) not in sys.path:
        sys.path.insert(0, str(SCRIPTS))
    return import_module("metrics_worker")


@pytest.fixture(scope="module")
def bench(worker: ModuleType) -> ModuleType:
    return import_module("metrics_bench")


def test_every_measure_but_the_topological_ones_has_a_naive_formula(worker: ModuleType) -> None:
    assert set(worker.NAIVE) == set(repsim.metrics.names()) - set(repsim.metrics.groups()["topology"])


def test_naive_formulas_agree(worker: ModuleType, bench: ModuleType) -> None:
    """Both use float32, so two neighbours at nearly equal distances may change places by rounding."""
    names = tuple(worker.NAIVE)
    settings = {"samples": 120, "measures": names, "few": True}
    ours = worker.by_repsim(worker.Settings("repsim", **settings))
    naive = worker.CONTENDERS["naive"](worker.Settings("naive", **settings))
    for name in names:
        assert len(naive[name]["values"]) == np.size(ours[name]["values"]) == 12
        allowed = 5e-3 if name == "rank_similarity" else 2e-6
        assert bench.largest_difference(ours[name]["values"], naive[name]["values"]) < allowed, name


def test_incomplete_times_are_scaled_up(worker: ModuleType) -> None:
    """The factor follows from the widths of the pairs: one of 4 x 3 pairs, 8 to 40 by 12 to 20 units."""
    settings = worker.Settings("naive", 50, ("magnitude_difference",), limit=0.0, few=True)
    seen = []

    def measure(x: np.ndarray, y: np.ndarray) -> float:
        seen.append((x.shape[1], y.shape[1]))
        return 0.0

    result = worker.pair_by_pair(lambda _: measure)(settings)["magnitude_difference"]
    *_, (p, q) = seen  # the first two calls are the warm-up
    assert len(result["values"]) == 1
    total = sum(x + y for x in (8, 16, 24, 40) for y in (12, 20, 20))
    assert worker.share_of_work([(0, 0)], {(0, 0): p + q, (1, 0): total - p - q}) == pytest.approx((p + q) / total)


def test_largest_difference_is_relative_and_uses_the_same_pairs(bench: ModuleType) -> None:
    assert bench.largest_difference([[1.0, 2.0], [3.0, 4.0]], {"0 1": 2.0, "1 0": 3.3}) == pytest.approx(0.1)


@pytest.mark.slow
def test_the_table(bench: ModuleType) -> None:
    done = CliRunner().invoke(
        bench.metrics, ["magnitude_difference", "mutual_knn", "--samples", "60", "--few", "--threads", "1"]
    )
    assert done.exit_code == 0, done.output
    assert "n = 60, 4 x 3 layers; seconds, 1 threads" in done.output
    assert "magnitude_difference" in done.output
    assert "peers" in done.output
    refused = CliRunner().invoke(bench.metrics, ["rtd"])
    assert refused.exit_code == 1
    assert "no naive formula for rtd" in refused.output
