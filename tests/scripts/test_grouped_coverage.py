"""Tests of scripts/validation/grouped_coverage.py: a few data sets give the expected values."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

PATH = Path(__file__).parents[2] / "scripts" / "validation" / "grouped_coverage.py"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("grouped_coverage", PATH)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules["grouped_coverage"] = importlib.util.module_from_spec(spec)  # dataclasses look there
    spec.loader.exec_module(module)
    return module


def test_the_truth_is_the_value_of_many_independent_samples(script: ModuleType) -> None:
    x, y = script.draw(np.random.default_rng(0), np.arange(4000), correlation=0)
    assert script.cka(x, y, None) == pytest.approx(script.TRUTH, abs=0.01)


def test_groups_are_needed(script: ModuleType) -> None:
    """Without groups of 10 the interval never covers, and CKA is .08 too large."""
    result = script.grouped_coverage(12, 10)
    assert result.covered > 0.7
    assert result.covered_ungrouped == 0
    assert result.ungrouped - script.TRUTH > 0.05
    assert abs(result.mean - script.TRUTH) < 0.03
    assert abs(result.unrelated) < 4 * result.unrelated_error
