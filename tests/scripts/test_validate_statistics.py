"""validate_statistics.py of scripts/validation: what it takes for true is true, and few runs come out as many do."""

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
    found, seconds = script.validate(list(script.PARTS), lambda _: None, quick=True)
    assert set(seconds) == set(script.PARTS)
    return list(found)


@pytest.fixture(scope="module")
def values(cells: list[Any]) -> Values:
    """Those of rows and columns whose names begin like this."""

    def found(row: str, column: str) -> list[float]:
        some = [cell.value for cell in cells if cell.row.startswith(row) and cell.column.startswith(column)]
        assert some, (row, column)
        return some

    return found


# --- what is true


@pytest.mark.parametrize("kind", ["flat", "1/i"])
def test_the_population_is_what_many_samples_approach(script: ModuleType, kind: str) -> None:
    true = script.population(kind)
    np.testing.assert_allclose(true.drawn(np.random.default_rng(0), 4000).values(), true.R, atol=0.04)


def test_the_population_has_the_shares_it_was_given(script: ModuleType) -> None:
    true = script.population("1/i")
    exact = script.Indices(script._STUDY, true.of, true.R)
    truth = {each.row: float(each.of(exact.evaluate(true.R))) for each in script.questions(exact)}
    found = [truth[f"share: {share}, mean over depths"] for share in ("input", "universal", "family", "seed")]
    np.testing.assert_allclose(found, [0.45, 0.19, 0.15, 0.21], atol=1e-12)
    assert truth["learned effect"] < 0 < truth["learned effect, input given"]


def test_a_known_part_is_shared(script: ModuleType) -> None:
    R = script.shared(0.25, 60).R
    assert R[0, 1] == pytest.approx(0.25)
    assert R[2, 3] == pytest.approx(0.625)
    assert script.partial(R, [4])[2, 3] == pytest.approx(0.25)


def test_unrelated_networks_are_so_and_their_own_layers_are_not(script: ModuleType) -> None:
    some = script.unrelated(np.random.default_rng(0), "1/i", 2000, given="the input")
    given = script.partial(some.values(), some.positions["input"].tolist())
    a, b = some.positions["a"], some.positions["b"]
    assert abs(given[np.ix_(a, b)]).max() < 0.01
    assert given[np.ix_(a, a)].min() > 0.5
    assert some.values()[np.ix_(a, b)].min() > 0.2


# --- what a few runs find


@pytest.mark.slow
def test_tests_of_whole_networks_keep_their_level_and_the_naive_one_does_not(values: Values) -> None:
    for row in ("nothing shared", "the input shared"):
        for column in ("MBM", "maximum"):
            assert max(values(row, column)) <= 0.2
    assert min(values("nothing shared", "smallest p")) >= 0.25


@pytest.mark.slow
def test_pearson3_is_right_where_the_normal_law_is_not(values: Values) -> None:
    for alpha, factor in (("0.05", 1.15), ("0.01", 1.4), ("0.001", 3.0)):
        found = np.array(values("", f"Pearson III, {alpha}"))
        assert (found < factor).all()
        assert (found > 1 / factor).all()
    assert values("1/i", "normal, 0.001")[0] > 5


@pytest.mark.slow
def test_intervals_hold_the_truth(cells: list[Any]) -> None:
    found = [cell.value for cell in cells if cell.part.startswith("intervals") and cell.column == "flat, n = 200"]
    assert len(found) == 17
    assert min(found) >= 0.75
    assert np.mean(found) >= 0.88


@pytest.mark.slow
def test_what_is_shared_is_found_without_bias(cells: list[Any], values: Values) -> None:
    off = np.array(values("", "less the truth"))
    assert off.size == 18
    assert abs(off).max() < 0.015
    assert min(values("CKA 0.05", "biased CKA")) > 0.1
    assert min(values("CKA 0.05", "p <= .05")) > 0.9


# --- the table


def test_what_is_out_of_bounds_is_marked(script: ModuleType) -> None:
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


def test_a_number_that_is_none_is_out_of_bounds(script: ModuleType) -> None:
    assert not script.Cell("what", "a", "one", np.nan).kept


def test_the_command_writes_the_table(script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def part(say: Callable[[str], None], quick: bool) -> list[Any]:
        asked.append(quick)
        say("half")
        return [script.Cell("what", "a", "one", 0.5)]

    monkeypatch.setattr(script, "PARTS", {"null": part})
    monkeypatch.setattr(torch, "set_num_threads", asked.append)
    run = CliRunner().invoke(script.main, ["--quick", "-o", str(tmp_path / "table.md")], catch_exceptions=False)
    assert asked == [1, True]
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
