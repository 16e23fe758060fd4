"""Tests of examples/laws/: every prediction, with few seeds, and with the tolerance that the script states.

The laws have closed forms, or margins that were measured with more seeds (docs/laws.md), so they test the measures of
repsim from outside.
"""

import doctest
import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

import repsim

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "examples" / "laws"
PICTURES = ROOT / "docs" / "pictures" / "laws"
SCRIPTS = ("random_features", "deep_linear", "lazy_rich", "neural_collapse", "noise_and_samples")
"""Laws that are tested here."""


@pytest.fixture(scope="module")
def laws() -> Iterator[dict[str, ModuleType]]:
    """Import the scripts as Python does when they are started: their folder is searched first."""
    modules = set(sys.modules)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(FOLDER)
        yield {name: importlib.import_module(name) for name in ("shared", *SCRIPTS)}
    for name in set(sys.modules) - modules:
        if FOLDER in Path(getattr(sys.modules[name], "__file__", None) or "/").parents:
            del sys.modules[name]


def test_the_examples_of_the_shared_parts_run(laws: dict[str, ModuleType]) -> None:
    failed, tried = doctest.testmod(laws["shared"], optionflags=doctest.ELLIPSIS)
    assert tried > 2
    assert not failed


def test_an_interval_covers_the_mean_at_its_level(laws: dict[str, ModuleType]) -> None:
    """Five values per interval: an interval with the normal instead of Student's factor would cover 88 %."""
    samples = np.random.default_rng(0).normal(1, 2, size=(4000, 5))
    ends = np.array([laws["shared"].interval(sample)[1:] for sample in samples])
    assert np.mean((ends[:, 0] < 1) & (ends[:, 1] > 1)) == pytest.approx(0.95, abs=0.015)  # 4 standard errors


def test_the_participation_ratio_is_exactly_that_of_the_derivation(laws: dict[str, ModuleType]) -> None:
    """U-centred kernels of random features have the mean square that the formula gives, even for 6 samples."""
    rng, width, draws = np.random.default_rng(0), 4, 40_000
    x = rng.normal(size=(6, 5))
    weights = rng.normal(size=(draws, 5, width)) / width**0.5
    squares = (u_centred((x @ weights) @ (x @ weights).transpose(0, 2, 1)) ** 2).sum((1, 2))
    ratio = squares / (u_centred((x @ x.T)[None]) ** 2).sum()
    measured, error = width * (ratio.mean() - 1) - 1, width * ratio.std() / draws**0.5
    centred = x - x.mean(0)
    plain = np.trace(centred.T @ centred) ** 2 / ((centred.T @ centred) ** 2).sum()
    debiased = laws["random_features"].participation_ratio(x)
    assert debiased == pytest.approx(measured, abs=4 * error)
    assert abs(debiased - plain) > 8 * error


def u_centred(kernels: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return kernels (k, n, n) U-centred, from the definition."""
    n = kernels.shape[1]
    off_diagonal = kernels * (1 - np.eye(n))
    means = off_diagonal.sum(2) / (n - 2) - off_diagonal.sum((1, 2))[:, None] / (2 * (n - 1) * (n - 2))
    centred: NDArray[np.float64] = (off_diagonal - means[:, :, None] - means[:, None, :]) * (1 - np.eye(n))
    return centred


@pytest.mark.parametrize("spec", ["cka", "cka:kernel=rbf", "svcca", "rsa"])
def test_the_formula_of_random_features_is_that_of_linear_cka(spec: str, laws: dict[str, ModuleType]) -> None:
    """Few samples and 40 pairs: the mean has a standard error of 0.005, and other measures are 0.06 or more away."""
    law = laws["random_features"]
    x = laws["shared"].digits()[0][:100]
    pairs = [[law.features(x, 64, 2 * k + side) for side in (0, 1)] for k in range(40)]
    error = np.mean([repsim.similarity(a, b, spec) for a, b in pairs]) - law.predict(law.participation_ratio(x), 64)
    assert (abs(error) < 0.02) == (spec == "cka")


@pytest.mark.slow
def test_random_features(laws: dict[str, ModuleType]) -> None:
    for row in laws["random_features"].measure(quick=True)["rows"]:
        mean, low, high = row["cka"]
        assert abs(mean - row["predicted"]) < 0.01 + 0.3 * (high - low)  # some 1.2 standard errors of fewer pairs


@pytest.mark.slow
def test_deep_linear_networks(laws: dict[str, ModuleType]) -> None:
    for row in laws["deep_linear"].measure(quick=True)["rows"]:
        if row["start"] == "small":
            assert row["closed_form"][0] > 0.99
            assert row.get("narrowest", [1.0])[0] > 0.99
            assert row["worst_time"] < 0.02
            assert row["moved"][0] < 0.6
        else:
            assert row["closed_form"][0] < 0.6
            assert row["moved"][0] > 0.7


def test_modes_that_are_learned_earlier_delay_later_ones(laws: dict[str, ModuleType]) -> None:
    """Two modes with the same direction p in the hidden layer: the second must start from the rest, which is 0."""
    W1 = np.array([[1.0, 1.0], [0.0, 1.0]])
    plain, corrected = laws["deep_linear"].starts(W1, W1.T, np.eye(2), np.eye(2))
    np.testing.assert_allclose(plain, [1, 2])
    np.testing.assert_allclose(corrected, [1, 1])


@pytest.mark.slow
def test_lazy_and_rich(laws: dict[str, ModuleType]) -> None:
    numbers = laws["lazy_rich"].measure(quick=True)
    moved, seeds, accuracies = ([row[key][0] for row in numbers["rows"]] for key in ("moved", "seeds", "accuracy"))
    assert np.diff(moved).min() > 0.015
    assert np.diff(seeds).max() < -0.003
    assert moved[-1] > 0.99
    assert seeds[-1] == pytest.approx(numbers["untrained"][0], abs=0.01)
    assert np.ptp(accuracies) < 0.02


@pytest.mark.slow
def test_neural_collapse(laws: dict[str, ModuleType]) -> None:
    numbers = laws["neural_collapse"].measure(quick=True)
    values = numbers["normalised"]
    from_here = numbers["epochs"].index(8)
    assert max(values["without_errors"]) <= 8
    for key in ("classes", "seeds"):
        means = [mean for mean, _, _ in values[key]]
        assert 1 - means[-1] < (1 - means[from_here]) / 3
        assert means[-1] > 0.97
    assert numbers["not_normalised"]["classes"][-1][0] < 0.85  # 0.72 with 8 seeds


@pytest.mark.parametrize(("n", "noise", "penalty"), [(50, 4.0, 1.0), (20, 0.25, 0.0), (75, 1.0, 12.5)])
def test_the_alignment_of_noisy_students_is_a_ratio_of_means(
    n: int, noise: float, penalty: float, laws: dict[str, ModuleType]
) -> None:
    """Means over noise of both products of kernels, simulated; a standard error is some 0.2 % of them."""
    law, rng = laws["noise_and_samples"], np.random.default_rng(n)
    x, teacher = rng.normal(size=(n, law.P)), rng.normal(size=(law.P, law.K)) / law.P**0.5
    targets = x @ teacher + noise**0.5 * rng.normal(size=(2, 4000, n, law.K))
    first, second = law.solver(x, penalty) @ targets
    both = ((first.transpose(0, 2, 1) @ second) ** 2).sum((1, 2)).mean()
    own = ((first.transpose(0, 2, 1) @ first) ** 2).sum((1, 2)).mean()
    assert law.predict(x, teacher, noise, penalty) == pytest.approx(both / own, rel=0.01)


@pytest.mark.slow
def test_noise_and_samples(laws: dict[str, ModuleType]) -> None:
    numbers = laws["noise_and_samples"].measure(quick=True)
    weak, strong = ([row for row in numbers["samples"] if row["penalty"] == penalty] for penalty in (1.0, 12.5))
    for row in [*weak, *strong, *numbers["noise"]]:
        assert row["cka"][0] == pytest.approx(row["predicted"], abs=0.05)  # 0.03 with 30 seeds instead of 8
    for rows, depth in ((weak, 0.3), (strong, 0.08)):
        along = {row["n"]: row["cka"][0] for row in rows}
        lowest = min(along, key=along.__getitem__)
        assert 30 <= lowest <= 70
        assert along[lowest] < along[10] - depth
        assert along[lowest] < along[400] - depth
    spike = {row["n"]: row["cka"][0] for row in numbers["samples"] if row["penalty"] == 0}
    assert spike[50] > max(spike[40], spike[60]) + 0.15
    for n in (25, 50, 200):
        values = [row["cka"][0] for row in numbers["noise"] if row["n"] == n and row["signal_to_noise"] >= 1]
        assert np.diff(values).min() > 0.01


def test_a_script_prints_its_table_and_writes_its_figure(
    laws: dict[str, ModuleType], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    law = laws["random_features"]
    monkeypatch.setattr(law, "PAIRS", {16: 12, 64: 8})
    monkeypatch.setattr(sys, "argv", ["random_features.py", "--quick", "--out", str(tmp_path / "new")])
    laws["shared"].main(law.__file__, law.measure, law.report, law.draw)
    assert "| 64 | 0.818 |" in capsys.readouterr().out
    numbers = laws["shared"].json.loads((tmp_path / "new" / "random_features.json").read_text())
    assert [row["pairs"] for row in numbers["rows"]] == [3, 2]
    with Image.open(tmp_path / "new" / "random_features.png") as image:
        assert image.width == 990  # 3.3 inches, a column of a paper, at 300 dots per inch


@pytest.mark.parametrize("name", SCRIPTS)
def test_the_page_shows_what_was_measured(name: str, laws: dict[str, ModuleType]) -> None:
    """The numbers beside the figures are those of the tables of docs/laws.md."""
    numbers = laws["shared"].json.loads((PICTURES / f"{name}.json").read_text())
    page = (ROOT / "docs" / "laws.md").read_text()
    for part in laws[name].report(numbers).split("\n\n"):
        assert " ".join(part.split()) in " ".join(page.split())
    assert f"(pictures/laws/{name}.png)" in page
    assert f"python examples/laws/{name}.py" in page
    assert (PICTURES / f"{name}.png").stat().st_size < 150_000


@pytest.mark.parametrize("name", SCRIPTS)
def test_every_law_can_be_refuted(name: str, laws: dict[str, ModuleType]) -> None:
    heads = ("Prediction", "Source", "Measured", "Refutation")
    lines = (laws[name].__doc__ or "").splitlines()
    assert [line for line in lines if line in heads] == list(heads)
