"""Tests of scripts/validation/validate_statistics.py: true values are correct, and a few runs give expected rates."""

import importlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from scipy.stats import kstest

from repsim.runtime.processes import ALONE
from repsim.study.block_sums import draw_halves
from repsim.study.blocks import Block, sides
from repsim.study.partial_cka import partial

ROOT = Path(__file__).parents[2]
Values = Callable[[str, str], list[float]]


@pytest.fixture(scope="module")
def script() -> Iterator[ModuleType]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / "scripts" / "validation")
        yield importlib.import_module("validate_statistics")


@pytest.fixture(scope="module")
def parts(script: ModuleType) -> SimpleNamespace:
    """Return the modules of the parts by their names."""
    names = ["populations", "intervals_of_samples", "random_draws", "shared_kernels", "unrelated_networks", "studies"]
    return SimpleNamespace(**{name: importlib.import_module(f"simulations.{name}") for name in names})


@pytest.fixture(scope="module")
def cells(script: ModuleType) -> list[Any]:
    cells, seconds = script.validate(list(script.PARTS), script.Simulation(lambda _: None, quick=True))
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
def test_many_samples_approach_the_population(parts: Any, kind: str) -> None:
    true = parts.populations.population(kind)
    np.testing.assert_allclose(true.draw(np.random.default_rng(0), 4000).values()[0], true.R, atol=0.04)


def test_the_population_has_the_specified_shares(parts: Any) -> None:
    true = parts.populations.population("1/i")
    truth = parts.intervals_of_samples.true_values(*true.theta(parts.populations.STUDY), true.R)
    shares = [truth[f"share: {share}, mean over depths"] for share in ("input", "universal", "family", "seed")]
    np.testing.assert_allclose(shares, [0.45, 0.19, 0.15, 0.21], atol=1e-12)
    assert truth["effect of training"] < 0 < truth["effect of training, input given"]


def test_random_networks_have_the_effect_on_average(parts: Any) -> None:
    """Without a spread, partial CKA of trained networks exceeds the strongest control by the effect."""
    design = parts.studies.families(2, 2, 2, layers=1)
    drawn = parts.random_draws.random_networks(np.random.default_rng(0), design, 4000, 0.1, 0.0)
    residuals = partial(drawn.values()[0], drawn.positions["input"].tolist())
    A, B, untrained_A = (int(drawn.positions[name][0]) for name in ("A0", "B0", "A.untrained0"))
    assert residuals[A, B] - residuals[untrained_A, B] == pytest.approx(0.1, abs=0.02)


def test_layered_networks_match_at_equal_depth(parts: Any) -> None:
    R = parts.intervals_of_samples.layered(3, matched=True).R
    np.testing.assert_allclose(R[:3, 3:6], np.eye(3) / (1 + 0.7**4), atol=1e-12)
    np.testing.assert_allclose(R[:, 6:], np.eye(12)[:, 6:], atol=1e-12)


def test_heavy_tails_are_those_of_t3(parts: Any) -> None:
    true = parts.intervals_of_samples.layered(3, matched=False)
    x = true.layers(np.random.default_rng(0), 4000, heavy=True)[0] / 0.7
    assert kstest(x[:, 0], "t", args=(3,)).pvalue > 0.001


# --- kernels from features


@pytest.fixture(scope="module")
def both(parts: Any) -> tuple[Any, Any]:
    """Return the kernels of five layers, from features and from Gram matrices."""
    rng = np.random.default_rng(3)
    layers = [rng.normal(size=(60, width)) + rng.normal(size=(60, 1)) for width in (4, 5, 9, 3, 2)]
    of = parts.studies.places(parts.studies.families(1, 2, 0, layers=2), 1)
    return parts.studies.FeatureKernels(tuple(layers), of), parts.studies.gram_kernels(layers, of)


def test_kernels_from_features_are_those_of_a_study(parts: Any, both: tuple[Any, Any]) -> None:
    of_features, of_grams = both
    np.testing.assert_allclose(of_features.values(), of_grams.values(), atol=1e-6)
    np.testing.assert_array_equal(of_features.unit_of, of_grams.unit_of)
    design, halves = parts.studies.families(1, 2, 0, layers=2), draw_halves(of_grams.unit_of, 2, 5)
    block = sides(Block(design.members, design.members), design, of_grams.positions)
    sums = [parts.studies.sums_of(of)(of, block, halves, cubes=False, room=0, panel=17, tile=9, held=2) for of in both]
    for of in sums:
        of.compute(ALONE, lambda: None)
    for one, other in zip(*(of.halves() for of in sums), strict=True):
        for a, b in zip(one, other, strict=True):
            np.testing.assert_allclose(a.values, b.values, atol=1e-6)
    first, second = sums
    np.testing.assert_allclose(first.every.values, second.every.values, atol=1e-6)
    without = [of.without(slice(3, 60)).values for of in sums]
    np.testing.assert_allclose(without[0], without[1], atol=1e-6)
    half, selected = halves.samples(2), np.array([0, 3, 4])
    np.testing.assert_allclose(of_features.values_on(half, selected), of_grams.values_on(half, selected), atol=1e-6)


def test_some_of_the_networks_have_the_values_of_all(parts: Any, both: tuple[Any, Any]) -> None:
    design = parts.studies.families(1, 1, 0, layers=2)
    part, rows = parts.studies.some_of(both[0], design), [0, 1, 4]
    np.testing.assert_array_equal(part.positions["input"], [2])
    full, fewer = both[0].sweep, part.sweep
    np.testing.assert_array_equal(fewer.left_out, full.left_out[:, :, rows][..., rows])
    np.testing.assert_array_equal(fewer.full_values, full.full_values[:, rows][..., rows])
    samples = np.arange(30)
    np.testing.assert_array_equal(
        part.values_on(samples, np.array([0, 2])), both[0].values_on(samples, np.array([0, 4]))
    )


def test_a_known_part_is_shared(parts: Any) -> None:
    R = parts.shared_kernels.shared(0.25, 60).R
    assert R[0, 1] == pytest.approx(0.25)
    assert R[2, 3] == pytest.approx(0.625)
    assert partial(R, [4])[2, 3] == pytest.approx(0.25)


def test_unrelated_networks_are_dissimilar_and_layers_of_one_network_similar(parts: Any) -> None:
    drawn = parts.unrelated_networks.unrelated(np.random.default_rng(0), "1/i", 2000, control="the input")
    residuals = partial(drawn.values()[0], drawn.positions["input"].tolist())
    a, b = drawn.positions["a"], drawn.positions["b"]
    assert abs(residuals[np.ix_(a, b)]).max() < 0.01
    assert residuals[np.ix_(a, a)].min() > 0.5
    assert drawn.values()[0][np.ix_(a, b)].min() > 0.2


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
    rates = [
        cell.value
        for cell in cells
        if cell.part.startswith("intervals of") and cell.column == "flat, n = 200" and cell.row != "studies"
    ]
    assert len(rates) == 13
    assert min(rates) >= 0.6
    assert np.mean(rates) >= 0.88


@pytest.mark.slow
def test_the_exact_test_keeps_its_level_and_the_earlier_rule_does_not(values: Values) -> None:
    row = "three families, networks of latents"
    assert values(row, "exchange")[0] <= 0.2
    assert values(row, "architectures, any")[0] <= 0.15
    assert values(row, "universal in version 0.2")[0] >= 0.1


@pytest.mark.slow
def test_large_effects_are_claimed(values: Values) -> None:
    assert values("2 + 3 networks", "effect 0.1, two families")[0] >= 0.3


@pytest.mark.slow
def test_groups_are_estimated_without_bias(values: Values) -> None:
    assert values("related layers, groups of 2", "mean, groups declared")[0] == pytest.approx(0.806, abs=0.01)
    assert values("related layers, groups of 2", "mean, groups not")[0] > 0.812


@pytest.mark.slow
def test_similarity_within_classes_is_estimated_without_bias(values: Values) -> None:
    row = "related layers, 10 classes"
    assert values(row, "mean given the labels")[0] == pytest.approx(0.806, abs=0.02)
    assert values(row, "mean without control")[0] > 0.9


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


def test_runs_are_kept_and_continued(script: ModuleType, tmp_path: Path) -> None:
    made: list[int] = []

    def one(run: int) -> dict[str, float]:
        made.append(run)
        return {"value": run / 2, "none": np.nan}

    first = script.Simulation(lambda _: None, share=0.5, folder=tmp_path)
    np.testing.assert_array_equal(first.runs("Case A, n = 1", 6, one)["value"], [0, 0.5, 1])
    (file,) = tmp_path.iterdir()
    assert json.loads(file.read_text().splitlines()[2])["value"] == 1
    later = script.Simulation(lambda _: None, folder=tmp_path)
    numbers = later.runs("Case A, n = 1", 6, one)
    np.testing.assert_array_equal(numbers["value"], np.arange(6) / 2)
    assert np.isnan(numbers["none"]).all()
    assert made == [0, 1, 2, 3, 4, 5]
    assert later.seconds == pytest.approx(first.runs("Case A, n = 1", 6, one)["seconds"].sum(), abs=0.1)


def test_the_command_writes_the_table(script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def part(simulation: Any) -> list[Any]:
        calls.append(simulation.quick)
        simulation.say("half")
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
