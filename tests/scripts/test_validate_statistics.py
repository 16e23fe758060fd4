"""Tests of scripts/validation/validate_statistics.py: true values are correct, and a few runs give expected rates."""

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner

ROOT = Path(__file__).parents[2]
Values = Callable[[str, str], list[float]]


@pytest.fixture(scope="module")
def script() -> ModuleType:
    path = ROOT / "scripts" / "validation" / "validate_statistics.py"
    spec = importlib.util.spec_from_file_location("validate_statistics", path)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules["validate_statistics"] = importlib.util.module_from_spec(spec)  # dataclasses look there
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def cells(script: ModuleType) -> list[Any]:
    cells, seconds = script.validate(list(script.PARTS), lambda _: None, quick=True)
    assert set(seconds) == set(script.PARTS)
    return list(cells)


@pytest.fixture(scope="module")
def values(cells: list[Any]) -> Values:
    """Return a function that gives the values of the rows and columns whose names start with two strings."""

    def matching(row: str, column: str) -> list[float]:
        numbers = [cell.value for cell in cells if cell.row.startswith(row) and cell.column.startswith(column)]
        assert numbers, (row, column)
        return numbers

    return matching


# --- true values


@pytest.mark.parametrize("kind", ["flat", "1/i"])
def test_many_samples_approach_the_population(script: ModuleType, kind: str) -> None:
    true = script.population(kind)
    np.testing.assert_allclose(true.draw(np.random.default_rng(0), 4000).values(), true.R, atol=0.04)


def test_the_population_has_the_specified_shares(script: ModuleType) -> None:
    true = script.population("1/i")
    exact = script.Indices(script._STUDY, true.of, true.R)
    truth = {question.row: float(question.of(exact.evaluate(true.R))) for question in script.questions(exact)}
    shares = [truth[f"share: {share}, mean over depths"] for share in ("input", "universal", "family", "seed")]
    np.testing.assert_allclose(shares, [0.45, 0.19, 0.15, 0.21], atol=1e-12)
    assert truth["learned effect"] < 0 < truth["learned effect, input given"]


def test_a_known_part_is_shared(script: ModuleType) -> None:
    R = script.shared(0.25, 60).R
    assert R[0, 1] == pytest.approx(0.25)
    assert R[2, 3] == pytest.approx(0.625)
    assert script.partial(R, [4])[2, 3] == pytest.approx(0.25)


def test_unrelated_networks_are_dissimilar_and_layers_of_one_network_similar(script: ModuleType) -> None:
    drawn = script.unrelated(np.random.default_rng(0), "1/i", 2000, control="the input")
    partial = script.partial(drawn.values(), drawn.positions["input"].tolist())
    a, b = drawn.positions["a"], drawn.positions["b"]
    assert abs(partial[np.ix_(a, b)]).max() < 0.01
    assert partial[np.ix_(a, a)].min() > 0.5
    assert drawn.values()[np.ix_(a, b)].min() > 0.2


# --- results of a few runs


@pytest.mark.slow
def test_tests_of_networks_keep_their_level_and_the_naive_test_does_not(values: Values) -> None:
    for row in ("nothing shared", "the input shared"):
        for column in ("MBM", "maximum"):
            assert max(values(row, column)) <= 0.2
    assert min(values("nothing shared", "smallest p")) >= 0.25


@pytest.mark.slow
def test_pearson3_is_accurate_where_the_normal_distribution_is_not(values: Values) -> None:
    for alpha, factor in (("0.05", 1.15), ("0.01", 1.4), ("0.001", 3.0)):
        rates = np.array(values("", f"Pearson III, {alpha}"))
        assert (rates < factor).all()
        assert (rates > 1 / factor).all()
    assert values("1/i", "normal, 0.001")[0] > 5


@pytest.mark.slow
def test_intervals_contain_the_true_value(cells: list[Any]) -> None:
    rates = [cell.value for cell in cells if cell.part.startswith("intervals") and cell.column == "flat, n = 200"]
    assert len(rates) == 17
    assert min(rates) >= 0.75
    assert np.mean(rates) >= 0.88


@pytest.mark.slow
def test_the_shared_part_is_estimated_without_bias(cells: list[Any], values: Values) -> None:
    off = np.array(values("", "less the truth"))
    assert off.size == 18
    assert abs(off).max() < 0.015
    assert min(values("CKA 0.05", "biased CKA")) > 0.1
    assert min(values("CKA 0.05", "p <= 0.05")) > 0.9


# --- the table


def test_values_out_of_bounds_are_marked(script: ModuleType) -> None:
    cells = [script.Cell("what", "a", "one", 0.05, 0.035, 0.065), script.Cell("what", "a", "two", 0.07, 0.035, 0.065)]
    cells += [script.Cell("what", "b", "two", 1.234, form="{:.2f}")]
    assert script.tables(cells, {"null": 61.4}).splitlines() == [
        "| what | one | two |",
        "| --- | --: | --: |",
        "| a | 5.0% | **7.0%** ✗ |",
        "| b |  | 1.23 |",
        "",
        "Out of bounds (✗): 1 of 2. CPU seconds: null 61.",
    ]


def test_nan_is_out_of_bounds(script: ModuleType) -> None:
    assert not script.Cell("what", "a", "one", np.nan).kept


def test_the_command_writes_the_table(script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def part(say: Callable[[str], None], quick: bool) -> list[Any]:
        calls.append(quick)
        say("half")
        return [script.Cell("what", "a", "one", 0.5)]

    monkeypatch.setattr(script, "PARTS", {"null": part})
    monkeypatch.setattr(torch, "set_num_threads", calls.append)
    run = CliRunner().invoke(script.main, ["--quick", "-o", str(tmp_path / "table.md")], catch_exceptions=False)
    assert calls == [1, True]
    assert "half" in run.stderr
    assert (tmp_path / "table.md").read_text() == run.stdout
    assert "| a | 50.0% |" in run.stdout
    assert CliRunner().invoke(script.main, ["nulls"]).exit_code == 2


@pytest.mark.slow
def test_the_document_shows_every_row(cells: list[Any]) -> None:
    text = (ROOT / "docs" / "statistics.md").read_text()
    for cell in cells:
        assert f"| {cell.part} |" in text
        assert f"| {cell.row} |" in text
