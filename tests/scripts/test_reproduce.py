"""Tests of scripts/validation/reproduce_kornblith.py: layer identification, training and tables."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import click
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from numpy.typing import NDArray
from PIL import Image

import repsim
from repsim.extractors.modules import ModuleExtractor

Array = NDArray[np.float64]
NAN = float("nan")


@pytest.fixture(scope="module")
def script() -> ModuleType:
    path = Path(__file__).parents[2] / "scripts" / "validation" / "reproduce_kornblith.py"
    spec = importlib.util.spec_from_file_location("reproduce_kornblith", path)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules["reproduce_kornblith"] = importlib.util.module_from_spec(spec)  # dataclasses look there
    spec.loader.exec_module(module)
    return module


# --- identification


def of_two(first_by_second: Any, second_by_first: Any) -> Array:
    """Return the values of two networks, of shape (2, layers, 2, layers), from two matrices (layers, layers)."""
    forward, backward = np.array(first_by_second, dtype=float), np.array(second_by_first, dtype=float)
    values = np.full((2, len(forward), 2, len(forward)), 7.0)  # values within a network are not used
    values[0, :, 1], values[1, :, 0] = forward, backward
    return values


RIGHT = [[0.9, 0.1, 0.2], [0.3, 0.5, 0.4], [0.0, 0.2, 0.3]]


def test_each_layer_is_identified_in_every_other_network(script: ModuleType) -> None:
    wrong_once = [[0.9, 0.1, 0.2], [0.6, 0.5, 0.4], [0.0, 0.2, 0.3]]
    result = script.identify(of_two(RIGHT, wrong_once))
    np.testing.assert_array_equal(result.credit[0, 1], [1, 1, 1])
    np.testing.assert_array_equal(result.credit[1, 0], [1, 0, 1])
    assert np.isnan(result.credit[0, 0]).all()
    assert result.accuracy == pytest.approx(100 * 5 / 6)
    np.testing.assert_allclose(result.by_layer, [100, 50, 100])
    assert (result.ties, result.undefined) == (0, 0)


def test_accuracy_agrees_with_a_loop(script: ModuleType) -> None:
    values = np.random.default_rng(0).normal(size=(4, 3, 4, 3))
    for sign, choose in ((1, np.argmax), (-1, np.argmin)):
        hits = [
            choose(sign * values[i, layer, j]) == layer
            for i in range(4)
            for j in range(4)
            for layer in range(3)
            if i != j
        ]
        assert script.identify(sign * values, distance=sign < 0).accuracy == pytest.approx(100 * np.mean(hits))
        assert 0 < np.mean(hits) < 1


def test_the_smallest_distance_counts(script: ModuleType) -> None:
    distances = 1 - np.array(RIGHT)
    assert script.identify(of_two(distances, distances), distance=True).accuracy == 100
    assert script.identify(of_two(distances, distances)).accuracy == 0


def test_a_tie_counts_by_its_share(script: ModuleType) -> None:
    tied = [[0.9, 0.9, 0.2], [0.5, 0.5, 0.5], [0.4, 0.4, 0.3]]  # among two, among all, and between two wrong ones
    result = script.identify(of_two(tied, RIGHT))
    np.testing.assert_allclose(result.credit[0, 1], [1 / 2, 1 / 3, 0])
    assert result.ties == 3


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e4])
def test_rounding_errors_do_not_decide(script: ModuleType, scale: float) -> None:
    near = scale * np.array([[1.0, 1 - 1e-7], [1 - 1e-7, 1.0]])
    far = scale * np.array([[1.0, 1 - 1e-5], [1 - 1e-5, 1.0]])
    for distance in (False, True):
        assert script.identify(of_two(near, near), distance=distance).accuracy == 50
    assert script.identify(of_two(far, far)).accuracy == 100
    assert script.identify(of_two(near, near), tolerance=0).accuracy == 100


def test_layers_without_a_value_are_not_identified(script: ModuleType) -> None:
    missing = [[NAN, 0.1, 0.2], [NAN, 0.5, 0.4], [NAN, NAN, NAN]]  # the right layer, a wrong layer, all layers
    for distance in (False, True):
        result = script.identify(of_two(missing, RIGHT), distance=distance)
        np.testing.assert_array_equal(result.credit[0, 1], [0, 0 if distance else 1, 0])
        assert (result.undefined, result.ties) == (3, 0)


def test_the_standard_error_is_the_jackknife_over_networks(script: ModuleType) -> None:
    values = np.random.default_rng(1).normal(size=(5, 4, 5, 4))

    def accuracy(networks: list[int]) -> float:
        return float(script.identify(values[np.ix_(networks, range(4), networks, range(4))]).accuracy)

    without = np.array([accuracy([i for i in range(5) if i != k]) for k in range(5)])
    expected = np.sqrt(4 / 5 * ((without - without.mean()) ** 2).sum())
    assert script.identify(values).error == pytest.approx(expected)
    assert expected > 0
    assert np.isnan(script.identify(values[:2, :, :2]).error)


# --- from stores


def features(shift: float, layers: int = 3, n: int = 60) -> dict[str, Array]:
    """Return layers that differ from each other; ``shift`` is the amount of noise that is added to them."""
    clean, noise = np.random.default_rng(0), np.random.default_rng(round(100 * shift))
    return {f"l{k}": clean.normal(size=(n, 3 + k)) + shift * noise.normal(size=(n, 3 + k)) for k in range(layers)}


@pytest.fixture
def stores(tmp_path: Path) -> list[repsim.ActivationStore]:
    return [repsim.write_store(tmp_path / f"{k}.h5", features(0.1 * k), model=f"net{k}") for k in range(3)]


class Examine:
    """Function `examine` on the stores; keeps its messages."""

    def __init__(self, script: ModuleType, stores: list[repsim.ActivationStore], file: Path) -> None:
        self.script, self.stores, self.file = script, stores, file
        self.messages: list[str] = []

    def __call__(self, *specs: str, minutes: float = 20.0, without: str | None = None) -> Any:
        options = {"minutes": minutes, "memory": "4GiB", "without": without, "say": self.messages.append}
        return self.script.examine(self.stores, specs, file=self.file, **options)


@pytest.fixture
def examine(script: ModuleType, stores: list[repsim.ActivationStore], tmp_path: Path) -> Examine:
    return Examine(script, stores, tmp_path / "result.nc")


@pytest.mark.slow
def test_layers_of_stores_are_identified(examine: Examine) -> None:
    column = examine("cka", "pwcca")
    assert {spec: result.accuracy for spec, result in column.results.items()} == {"cka": 100, "pwcca": 100}
    assert (column.samples, column.layers, column.left) == (60, 3, {})
    assert examine("cka", without="l1").results["cka"].credit.shape == (3, 3, 2)


@pytest.mark.slow
def test_existing_values_are_not_computed_again(examine: Examine) -> None:
    examine("cka")
    assert [text.partition(":")[0] for text in examine.messages] == ["cka"]
    assert examine("cka", "cca").results.keys() == {"cka", "cca"}
    assert [text.partition(":")[0] for text in examine.messages] == ["cka", "cca"]


@pytest.mark.slow
def test_measures_that_take_too_long_are_left_out_with_a_note(script: ModuleType, examine: Examine) -> None:
    column = examine("cka", minutes=0)
    assert column.left["cka"].startswith("would take about ")
    text = script.table({"mean": column}, ["cka"], {})
    assert "| `cka` | – |" in text
    assert "- mean, `cka`: would take about 0 minutes" in text


def test_asymmetric_values_are_replaced_by_the_sum_of_both_directions(
    script: ModuleType, stores: list[repsim.ActivationStore]
) -> None:
    result = repsim.compare(stores, metrics=["pwcca"])
    result["pwcca"].values[:] = np.arange(81.0).reshape(9, 9) ** 2 % 17  # asymmetric, with few ties
    both = result["pwcca"].values + result["pwcca"].values.T
    expected = script.identify(both.reshape(3, 3, 3, 3)).credit
    np.testing.assert_array_equal(script.identify_in(result, "pwcca").credit, expected)
    result["pwcca"].attrs["symmetric"] = 1
    assert not np.array_equal(script.identify_in(result, "pwcca").credit, expected, equal_nan=True)
    result["pwcca"].attrs["sense"] = "distance"
    assert not np.array_equal(script.identify_in(result, "pwcca").credit, expected, equal_nan=True)


def test_the_table_also_has_the_values_of_the_paper(script: ModuleType) -> None:
    result = script.identify(of_two(RIGHT, [[0.9, 0.9, 0.2], [0.6, 0.5, 0.4], [NAN, 0.2, 0.3]]))
    column = script.Column({"cka": result}, {}, 2000, 9)
    lines = script.table({"flatten": column}, ["cka"], {"cka": 99.3, "svcca:summary=r2": 15.1}).splitlines()
    assert lines == [
        "| measure | paper | flatten, n = 2,000 |",
        "| --- | --: | --: |",
        "| `cka` | 99.3 | 75.0 (1 tied, 1 undefined) |",
        "| `svcca:summary=r2` | 15.1 | – |",
    ]


def test_default_measures_are_those_of_the_paper_and_all_others_except_topology(script: ModuleType) -> None:
    specs = script.measures()
    assert specs[0] == "cca"
    assert {spec for spec in script.PAPER if script.exists(spec)} <= set(specs)
    groups = {repsim.metrics.Metric.registry[spec.partition(":")[0]].group for spec in specs}
    assert "topology" not in groups
    assert set(repsim.metrics.names()) - {spec.partition(":")[0] for spec in specs} == {
        name for name in repsim.metrics.names() if repsim.metrics.Metric.registry[name].group == "topology"
    }


# --- networks


def test_the_network_is_that_of_the_papers_appendix(script: ModuleType) -> None:
    extractor = ModuleExtractor(script.tiny10(), script.transform, layers=script.LAYERS)
    assert [layer.shape for layer in extractor.layers()] == [
        (16, 32, 32), (16, 32, 32), (32, 16, 16), (32, 16, 16), (32, 16, 16), (64, 8, 8), (64, 6, 6), (64, 6, 6), (64,)
    ]  # fmt: skip


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Folder of images of two separable classes, dark and bright, with noise."""
    rng = np.random.default_rng(0)
    for split, count in (("train", 24), ("test", 4)):
        for name, low in (("dark", 0), ("bright", 128)):
            (tmp_path / "data" / split / name).mkdir(parents=True)
            for i in range(count):
                picture = Image.fromarray(rng.integers(low, low + 128, (32, 32, 3), dtype=np.uint8))
                picture.save(tmp_path / "data" / split / name / f"{i}.png")
    return tmp_path / "data"


def quiet(_: str) -> None:
    pass


@pytest.mark.slow
def test_a_seed_determines_a_network_and_training_works(script: ModuleType, data: Path) -> None:
    training = script.Training(str(data), 4, bf16=False, batch=8)
    torch.manual_seed(1)
    first = training.run(0, quiet)
    torch.manual_seed(2)
    before = torch.get_rng_state()
    again, other = training.run(0, quiet), training.run(1, quiet)
    assert torch.equal(torch.get_rng_state(), before)
    weights = [network.state_dict()["conv1.0.weight"] for network in (first, again, other)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])
    assert training.accuracy(first) == 1
    assert training.accuracy(script.tiny10()) <= 0.5


def test_images_are_shifted_and_flipped(script: ModuleType) -> None:
    pictures = torch.arange(1, 1 + 3 * 8 * 8, dtype=torch.uint8).view(1, 3, 8, 8).expand(200, 3, 8, 8)
    augmented = script.Training("", 1, bf16=False, shift=2).augment(pictures, torch.Generator().manual_seed(0))
    large = torch.nn.functional.pad(pictures[0], [2] * 4)
    windows = [large[:, y : y + 8, x : x + 8] for y in range(5) for x in range(5)]
    possible = [version for window in windows for version in (window, window.flip(2))]
    seen = {next(i for i, version in enumerate(possible) if torch.equal(version, image)) for image in augmented}
    assert len(seen) > 40  # of 50 possible versions, in 200 draws


def test_a_network_is_loaded_from_its_checkpoint_if_the_settings_are_equal(
    script: ModuleType, data: Path, tmp_path: Path
) -> None:
    messages: list[str] = []
    training = script.Training(str(data), 1, bf16=False, batch=8)
    first, accuracy = training.network(0, tmp_path / "networks", messages.append)
    assert messages
    assert [path.name for path in (tmp_path / "networks").iterdir()] == ["tiny10.seed0.pt"]
    messages.clear()
    again, same = training.network(0, tmp_path / "networks", messages.append)
    assert not messages
    assert same == accuracy == training.accuracy(again)
    x = torch.zeros(1, 3, 32, 32)
    assert torch.equal(first(x), again(x))
    with pytest.raises(click.ClickException, match="trained with other settings"):
        script.Training(str(data), 2, bf16=False, batch=8).network(0, tmp_path / "networks", quiet)


# --- command


@pytest.mark.slow
def test_the_command_trains_compares_and_writes_a_table(script: ModuleType, data: Path, tmp_path: Path) -> None:
    options = ["--data", str(data), "--work", str(tmp_path / "work"), "--networks", "2", "--epochs", "1", "-m", "cka"]
    run = CliRunner().invoke(script.main, [*options, "-o", str(tmp_path / "table.md")], catch_exceptions=False)
    assert run.exit_code == 0
    text = (tmp_path / "table.md").read_text()
    assert text in run.output
    assert text.startswith("tiny10: 2 networks, test images; flatten 9 layers, mean 8 layers\n\n| measure | paper |")
    assert "flatten, n = 8 | mean, n = 8 |" in text
    assert "| `cka` |  | " in text
    assert "| `cka:estimator=biased` | 99.3 | – | – |" in text


@pytest.mark.slow
def test_the_zoo_is_compared_within_each_architecture(script: ModuleType, tmp_path: Path) -> None:
    options = ["--zoo", "--work", str(tmp_path), "-m", "cka", "-r", "mean", "--limit", "300"]
    run = CliRunner().invoke(script.main, options, catch_exceptions=False)
    assert run.exit_code == 0
    titles = [line for line in run.output.splitlines() if "networks" in line]
    assert titles == [
        "digits_resnet: 3 networks, test images; mean 9 layers",  # pre_logits is the mean of the last block
        "digits_vit: 3 networks, test images; mean 8 layers",
    ]
    scores = [float(line.split("|")[2].split()[0]) for line in run.output.splitlines() if line.startswith("| `cka`")]
    assert min(scores) > 100 / 8  # chance


def test_missing_options_and_unknown_measures_are_errors(script: ModuleType, tmp_path: Path) -> None:
    run = CliRunner().invoke(script.main, ["--work", str(tmp_path)])
    assert run.exit_code == 2
    assert "--data" in run.output
    run = CliRunner().invoke(script.main, ["--zoo", "-m", "ckaa"])
    assert run.exit_code == 1
    assert "did you mean cka" in run.output
