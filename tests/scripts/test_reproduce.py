"""reproduce_kornblith.py of scripts/validation: layers are counted as found when they are, networks are trained."""

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


def of_two(there: Any, back: Any) -> Array:
    """Values of two networks: row l of ``there`` is layer l of the first by the layers of the second."""
    there, back = np.array(there, dtype=float), np.array(back, dtype=float)
    values = np.full((2, len(there), 2, len(there)), 7.0)  # within a network: of no interest
    values[0, :, 1], values[1, :, 0] = there, back
    return values


RIGHT = [[0.9, 0.1, 0.2], [0.3, 0.5, 0.4], [0.0, 0.2, 0.3]]


def test_each_layer_of_each_network_is_looked_for_in_every_other(script: ModuleType) -> None:
    wrong_once = [[0.9, 0.1, 0.2], [0.6, 0.5, 0.4], [0.0, 0.2, 0.3]]
    found = script.identify(of_two(RIGHT, wrong_once))
    np.testing.assert_array_equal(found.credit[0, 1], [1, 1, 1])
    np.testing.assert_array_equal(found.credit[1, 0], [1, 0, 1])
    assert np.isnan(found.credit[0, 0]).all()
    assert found.accuracy == pytest.approx(100 * 5 / 6)
    np.testing.assert_allclose(found.by_layer, [100, 50, 100])
    assert (found.ties, found.undefined) == (0, 0)


def test_it_agrees_with_counting_one_by_one(script: ModuleType) -> None:
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


def test_of_distances_the_smallest_counts(script: ModuleType) -> None:
    distances = 1 - np.array(RIGHT)
    assert script.identify(of_two(distances, distances), distance=True).accuracy == 100
    assert script.identify(of_two(distances, distances)).accuracy == 0


def test_a_tie_counts_by_its_share(script: ModuleType) -> None:
    tied = [[0.9, 0.9, 0.2], [0.5, 0.5, 0.5], [0.4, 0.4, 0.3]]  # among two, among all, and between two wrong ones
    found = script.identify(of_two(tied, RIGHT))
    np.testing.assert_allclose(found.credit[0, 1], [1 / 2, 1 / 3, 0])
    assert found.ties == 3


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e4])
def test_rounding_is_no_identification(script: ModuleType, scale: float) -> None:
    near = scale * np.array([[1.0, 1 - 1e-7], [1 - 1e-7, 1.0]])
    far = scale * np.array([[1.0, 1 - 1e-5], [1 - 1e-5, 1.0]])
    for distance in (False, True):
        assert script.identify(of_two(near, near), distance=distance).accuracy == 50
    assert script.identify(of_two(far, far)).accuracy == 100
    assert script.identify(of_two(near, near), tolerance=0).accuracy == 100


def test_what_has_no_value_is_not_found(script: ModuleType) -> None:
    missing = [[NAN, 0.1, 0.2], [NAN, 0.5, 0.4], [NAN, NAN, NAN]]  # the right one, a wrong one, all
    for distance in (False, True):
        found = script.identify(of_two(missing, RIGHT), distance=distance)
        np.testing.assert_array_equal(found.credit[0, 1], [0, 0 if distance else 1, 0])
        assert (found.undefined, found.ties) == (3, 0)


def test_the_error_is_the_jackknife_over_networks(script: ModuleType) -> None:
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
    """Layers that differ from each other; with another shift, the same ones a little different."""
    clean, noise = np.random.default_rng(0), np.random.default_rng(round(100 * shift))
    return {f"l{k}": clean.normal(size=(n, 3 + k)) + shift * noise.normal(size=(n, 3 + k)) for k in range(layers)}


@pytest.fixture
def stores(tmp_path: Path) -> list[repsim.ActivationStore]:
    return [repsim.write_store(tmp_path / f"{k}.h5", features(0.1 * k), model=f"net{k}") for k in range(3)]


class Examine:
    """`examine` of those stores, with what it has said."""

    def __init__(self, script: ModuleType, stores: list[repsim.ActivationStore], file: Path) -> None:
        self.script, self.stores, self.file = script, stores, file
        self.said: list[str] = []

    def __call__(self, *specs: str, minutes: float = 20.0, without: str | None = None) -> Any:
        how = {"minutes": minutes, "memory": "4GiB", "without": without, "say": self.said.append}
        return self.script.examine(self.stores, specs, file=self.file, **how)


@pytest.fixture
def examine(script: ModuleType, stores: list[repsim.ActivationStore], tmp_path: Path) -> Examine:
    return Examine(script, stores, tmp_path / "result.nc")


def test_layers_are_found_in_stores(examine: Examine) -> None:
    column = examine("cka", "pwcca")
    assert {spec: found.accuracy for spec, found in column.found.items()} == {"cka": 100, "pwcca": 100}
    assert (column.samples, column.layers, column.left) == (60, 3, {})
    assert examine("cka", without="l1").found["cka"].credit.shape == (3, 3, 2)


def test_what_is_there_is_not_computed_again(examine: Examine) -> None:
    examine("cka")
    assert [text.partition(":")[0] for text in examine.said] == ["cka"]
    assert examine("cka", "cca").found.keys() == {"cka", "cca"}
    assert [text.partition(":")[0] for text in examine.said] == ["cka", "cca"]


def test_what_takes_too_long_is_left_out_and_said(script: ModuleType, examine: Examine) -> None:
    column = examine("cka", minutes=0)
    assert column.left["cka"].startswith("would take about ")
    text = script.table({"mean": column}, ["cka"], {})
    assert "| `cka` | – |" in text
    assert "- mean, `cka`: would take about 0 minutes" in text


def test_asymmetric_values_are_added_to_those_of_the_other_way(
    script: ModuleType, stores: list[repsim.ActivationStore]
) -> None:
    result = repsim.compare(stores, metrics=["pwcca"])
    result["pwcca"].values[:] = np.arange(81.0).reshape(9, 9) ** 2 % 17  # no symmetry, no ties to speak of
    both = result["pwcca"].values + result["pwcca"].values.T
    expected = script.identify(both.reshape(3, 3, 3, 3)).credit
    np.testing.assert_array_equal(script.identify_in(result, "pwcca").credit, expected)
    result["pwcca"].attrs["symmetric"] = 1
    assert not np.array_equal(script.identify_in(result, "pwcca").credit, expected, equal_nan=True)
    result["pwcca"].attrs["sense"] = "distance"
    assert not np.array_equal(script.identify_in(result, "pwcca").credit, expected, equal_nan=True)


def test_the_table_has_the_papers_figures_beside_ours(script: ModuleType) -> None:
    found = script.identify(of_two(RIGHT, [[0.9, 0.9, 0.2], [0.6, 0.5, 0.4], [NAN, 0.2, 0.3]]))
    column = script.Column({"cka": found}, {}, 2000, 9)
    lines = script.table({"flatten": column}, ["cka"], {"cka": 99.3, "svcca:summary=r2": 15.1}).splitlines()
    assert lines == [
        "| measure | paper | flatten, n = 2,000 |",
        "| --- | --: | --: |",
        "| `cka` | 99.3 | 75.0 (1 tied, 1 undefined) |",
        "| `svcca:summary=r2` | 15.1 | – |",
    ]


def test_the_measures_are_the_papers_and_all_others_but_topology(script: ModuleType) -> None:
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
    """Two classes that can be told apart, dark and bright, each with noise."""
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
def test_a_seed_decides_a_network_and_it_learns(script: ModuleType, data: Path) -> None:
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


def test_pictures_are_shifted_and_mirrored_whole(script: ModuleType) -> None:
    pictures = torch.arange(1, 1 + 3 * 8 * 8, dtype=torch.uint8).view(1, 3, 8, 8).expand(200, 3, 8, 8)
    moved = script.Training("", 1, bf16=False, shift=2).moved(pictures, torch.Generator().manual_seed(0))
    large = torch.nn.functional.pad(pictures[0], [2] * 4)
    windows = [large[:, y : y + 8, x : x + 8] for y in range(5) for x in range(5)]
    every = [window for window in windows for window in (window, window.flip(2))]
    seen = {next(i for i, window in enumerate(every) if torch.equal(window, one)) for one in moved}
    assert len(seen) > 40  # of 50 ways, in 200 draws


def test_a_network_is_taken_from_its_checkpoint_unless_it_was_trained_otherwise(
    script: ModuleType, data: Path, tmp_path: Path
) -> None:
    said: list[str] = []
    training = script.Training(str(data), 1, bf16=False, batch=8)
    first, accuracy = training.network(0, tmp_path / "networks", said.append)
    assert said
    assert [path.name for path in (tmp_path / "networks").iterdir()] == ["tiny10.seed0.pt"]
    said.clear()
    again, same = training.network(0, tmp_path / "networks", said.append)
    assert not said
    assert same == accuracy == training.accuracy(again)
    x = torch.zeros(1, 3, 32, 32)
    assert torch.equal(first(x), again(x))
    with pytest.raises(click.ClickException, match="trained otherwise"):
        script.Training(str(data), 2, bf16=False, batch=8).network(0, tmp_path / "networks", quiet)


# --- command


@pytest.mark.slow
def test_the_command_trains_compares_and_writes_a_table(script: ModuleType, data: Path, tmp_path: Path) -> None:
    asked = ["--data", str(data), "--work", str(tmp_path / "work"), "--networks", "2", "--epochs", "1", "-m", "cka"]
    run = CliRunner().invoke(script.main, [*asked, "-o", str(tmp_path / "table.md")], catch_exceptions=False)
    assert run.exit_code == 0
    text = (tmp_path / "table.md").read_text()
    assert text in run.output
    assert text.startswith("tiny10: 2 networks, test pictures; flatten 9 layers, mean 8 layers\n\n| measure | paper |")
    assert "flatten, n = 8 | mean, n = 8 |" in text
    assert "| `cka` |  | " in text
    assert "| `cka:estimator=biased` | 99.3 | – | – |" in text


@pytest.mark.slow
def test_the_zoo_is_compared_within_each_architecture(script: ModuleType, tmp_path: Path) -> None:
    asked = ["--zoo", "--work", str(tmp_path), "-m", "cka", "-r", "mean", "--limit", "300"]
    run = CliRunner().invoke(script.main, asked, catch_exceptions=False)
    assert run.exit_code == 0
    titles = [line for line in run.output.splitlines() if "networks" in line]
    assert titles == [
        "digits_resnet: 3 networks, test pictures; mean 9 layers",  # pre_logits is the mean of the last block
        "digits_vit: 3 networks, test pictures; mean 8 layers",
    ]
    scores = [float(line.split("|")[2].split()[0]) for line in run.output.splitlines() if line.startswith("| `cka`")]
    assert min(scores) > 100 / 8  # chance


def test_the_command_says_what_it_needs(script: ModuleType, tmp_path: Path) -> None:
    run = CliRunner().invoke(script.main, ["--work", str(tmp_path)])
    assert run.exit_code == 2
    assert "--data" in run.output
    run = CliRunner().invoke(script.main, ["--zoo", "-m", "ckaa"])
    assert run.exit_code == 1
    assert "did you mean cka" in run.output
