"""Tests of scripts/validation/interval_coverage.py: its truths, coverage, false positives, and the bootstrap."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

import repsim

PATH = Path(__file__).parents[2] / "scripts" / "validation" / "interval_coverage.py"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("interval_coverage", PATH)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules["interval_coverage"] = importlib.util.module_from_spec(spec)  # dataclasses look there
    spec.loader.exec_module(module)
    return module


def test_truths_are_values_of_many_samples(script: ModuleType) -> None:
    for world in script.WORLDS:
        if world.group > 1 or world.heavy:  # which have the same truth, but need many more samples
            continue
        a, b, c = script.draw(world, 3000, "flat", np.random.default_rng(0))
        for other, loads in ((b, world.b), (c, world.c)):
            assert repsim.similarity(a, other) == pytest.approx(script.true_cka(world.a, loads), abs=0.03), world.name


def test_worlds_are_equally_near_if_they_say_so(script: ModuleType) -> None:
    for world in script.WORLDS:
        difference = script.true_cka(world.a, world.b) - script.true_cka(world.a, world.c)
        assert (abs(difference) < 1e-12) is not (world.name == "nearer to B"), world.name


@pytest.mark.slow
@pytest.mark.parametrize("place", [0, 1, 2, 4])
def test_intervals_cover_and_tests_hold_their_level(script: ModuleType, place: int) -> None:
    """With 200 data sets, three standard errors of a share of 95 % are 5 %; tests may be cautious."""
    result = script.coverage(script.WORLDS[place], 100, "1/i", 200)
    assert result.covered >= 0.90
    assert result.difference_covered >= 0.90
    assert result.rejected <= 0.10
    assert abs(result.mean - result.truth) < 0.02


@pytest.mark.slow
def test_differences_are_noticed_and_unrelated_layers_are_tested_cautiously(script: ModuleType) -> None:
    nearer, unrelated = script.WORLDS[-1], script.WORLDS[-2]
    assert script.coverage(nearer, 200, "flat", 50).rejected > 0.8
    assert script.coverage(unrelated, 100, "flat", 200).rejected <= 0.03


def test_the_bootstrap_is_far_above_the_value(script: ModuleType) -> None:
    x, y = np.random.default_rng(0).normal(size=(2, 60, 500))
    assert abs(repsim.similarity(x, y)) < 0.1
    assert script.bootstrap_mean(x, y, 10) > 0.7
