import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import timm
import torch
from click.testing import CliRunner
from numpy.typing import NDArray
from safetensors import safe_open
from timm.data import create_transform, resolve_model_data_config
from torch import Tensor, nn

from repsim import metrics
from repsim.extractors.base import Stream
from repsim.extractors.samples.picture_sets import Digits
from repsim.extractors.timm_models import TimmExtractor
from repsim.extractors.weights import fingerprint, load_model
from repsim.extractors.zoo import ZOO, weights_file
from tests.threads import torch_threads

NETS = ("digits_resnet", "digits_vit")
BOUND = {"digits_resnet": 0.97, "digits_vit": 0.94}
Split = tuple[Tensor, Tensor]


def net(name: str) -> str:
    return name.partition(".")[0]


@pytest.fixture(scope="module")
def script() -> ModuleType:
    path = Path(__file__).parents[2] / "scripts" / "maintenance" / "train_zoo.py"
    spec = importlib.util.spec_from_file_location("train_zoo", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def test_digits() -> Split:
    """Odd digits with timm's preprocessing, which is the same for all networks of the zoo."""
    configs = [resolve_model_data_config(timm.create_model(name, pretrained=True)) for name in ZOO]
    assert all(config == configs[0] for config in configs)
    transform, source = create_transform(**configs[0], is_training=False), Digits("test")
    return torch.stack([transform(source.load(i)) for i in range(len(source))]), torch.from_numpy(source.labels)


@torch.inference_mode()
def accuracy(model: nn.Module, split: Split) -> float:
    return float((model.eval()(split[0]).argmax(1) == split[1]).double().mean())


def metadata(path: str | Path) -> dict[str, Any]:
    with safe_open(path, "pt") as file:
        facts: dict[str, Any] = json.loads(file.metadata()["repsim"])
    return facts


@pytest.mark.slow
@pytest.mark.parametrize("name", ZOO)
def test_a_network_classifies_digits_that_were_not_used_for_training(name: str, test_digits: Split) -> None:
    assert len(test_digits[0]) == 898
    score = accuracy(timm.create_model(name, pretrained=True), test_digits)
    assert score >= BOUND[net(name)]
    facts = metadata(weights_file(name))
    assert facts["name"] == name
    assert facts["test_accuracy"] == pytest.approx(
        score, abs=0.004
    )  # rounding on another machine may change 3 of 898 digits
    readme = (Path(weights_file(name)).parent / "README.md").read_text()
    assert f"| `{name}` | {facts['test_accuracy']:.4f} |" in readme


@pytest.mark.slow
@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("seed", [0, 1])
def test_random_weights_guess(name: str, seed: int, test_digits: Split) -> None:
    assert accuracy(load_model(name, "random", seed)[0], test_digits) < 0.3


def test_all_files_exist_and_are_small() -> None:
    folder = Path(weights_file(ZOO[0])).parent
    assert {path.name for path in folder.glob("*.safetensors")} == {f"{name}.safetensors" for name in ZOO}
    sizes = [Path(weights_file(name)).stat().st_size for name in ZOO]
    assert max(sizes) < 1_000_000
    assert sum(sizes) <= 4_000_000


def assert_float16_and_integer_counters(path: str | Path) -> None:
    with safe_open(path, "pt") as file:
        kinds = {key: file.get_tensor(key).dtype for key in file.keys()}  # noqa: SIM118 - not a dictionary
    counters = {key for key in kinds if key.endswith("num_batches_tracked")}
    assert bool(counters) == Path(path).name.startswith("digits_resnet")
    assert all(kind == (torch.int64 if key in counters else torch.float16) for key, kind in kinds.items())


@pytest.mark.parametrize("name", ZOO)
def test_a_file_has_float16_weights_and_integer_counters(name: str) -> None:
    assert_float16_and_integer_counters(weights_file(name))


@pytest.mark.slow
def test_timm_loads_the_zoo_without_a_network_connection(tmp_path: Path) -> None:
    code = (
        "import timm; from repsim.extractors.zoo import ZOO\n"
        "for name in ZOO: print(name, timm.create_model(name, pretrained=True).pretrained_cfg['tag'])"
    )
    # an empty cache, and a proxy that does not exist
    env = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path), "HTTPS_PROXY": "http://127.0.0.1:9"}
    run = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], env=env, capture_output=True, text=True, check=True
    )
    assert run.stdout.splitlines() == [f"{name} {name.partition('.')[2]}" for name in ZOO]
    assert not list(tmp_path.rglob("*.safetensors"))


@pytest.mark.parametrize("name", NETS)
def test_seeds_differ_and_the_default_tag_is_the_first_seed(name: str) -> None:
    prints = [fingerprint(timm.create_model(f"{name}.seed{seed}", pretrained=True)) for seed in (0, 1, 2)]
    assert len(set(prints)) == 3
    assert fingerprint(timm.create_model(name, pretrained=True)) == prints[0]


@pytest.mark.parametrize(
    ("name", "layers"),
    [
        ("digits_resnet.seed0", ["maxpool", *(f"layer{i}.{j}" for i in (1, 2, 3, 4) for j in (0, 1)), "pre_logits"]),
        ("digits_vit.seed2", ["patch_embed", *(f"blocks.{i}" for i in range(6)), "pre_logits"]),
    ],
)
def test_the_default_layers_are_the_stem_the_blocks_and_pre_logits(name: str, layers: list[str]) -> None:
    extractor = TimmExtractor(name)
    assert [layer.name for layer in extractor.layers()] == layers
    assert extractor.name == name
    grids = {layer.name: layer.grid for layer in extractor.layers() if layer.axes != "NC"}
    assert all(grid is not None and min(grid) >= 4 for grid in grids.values())  # never a single pixel


def _grams(model: str, seed: int, weights: str) -> list[Any]:
    extractor, source = TimmExtractor(model, weights=weights, seed=seed), Digits("test")
    batches = [batch.values for batch in extractor.stream(source, range(0, len(source), 3), Stream(100))]
    return [metrics.get("cka").recipe(torch.cat([batch[key] for batch in batches])) for key in extractor.readouts]


def _diagonal_lead(matrix: NDArray[np.float64]) -> float:
    """Return the mean of the diagonal minus the mean of the other entries."""
    on = np.eye(len(matrix), dtype=bool)
    return float(matrix[on].mean() - matrix[~on].mean())


@pytest.mark.slow
def test_trained_resnets_agree_layer_by_layer_and_untrained_ones_do_not() -> None:
    block = metrics.get("cka").block
    trained = block(*(_grams(f"digits_resnet.seed{seed}", 0, "pretrained") for seed in (0, 1)))
    untrained = block(*(_grams("digits_resnet", seed, "random") for seed in (0, 1)))
    assert trained.diagonal().min() > 0.75
    assert _diagonal_lead(trained) > 0.2
    assert _diagonal_lead(untrained) < 0.1


def _short(script: ModuleType, name: str, epochs: int = 1, batch: int = 32) -> nn.Module:
    """Train a network for two steps per epoch."""
    pictures, labels = script.digits("train", load_model(net(name), "random")[0])
    schedule = script.Schedule(epochs=epochs, rate=1e-3, batch=batch)
    model: nn.Module = script.train(name, pictures[:64], labels[:64], schedule, say=lambda _: None)
    return model


@pytest.mark.parametrize("name", NETS)
@pytest.mark.slow
def test_a_seed_reproduces_training_bit_for_bit(name: str, script: ModuleType) -> None:
    prints: list[str] = []
    for seed in (1, 1, 2):
        torch.manual_seed(len(prints))  # training must not depend on the global generator
        prints.append(fingerprint(_short(script, f"{name}.seed{seed}")))
    assert prints[0] == prints[1] != prints[2]


@pytest.mark.parametrize("name", NETS)
def test_training_starts_from_the_random_weights_of_its_seed(name: str, script: ModuleType) -> None:
    start = load_model(name, "random", 1)[1]["weights_sha256"]
    assert fingerprint(_short(script, f"{name}.seed1", epochs=0)) == start
    assert fingerprint(_short(script, f"{name}.seed1")) != start


def test_training_restores_threads_and_random_state(script: ModuleType) -> None:
    with torch_threads(2):
        before, _ = torch.get_rng_state(), _short(script, "digits_resnet.seed0")
        assert torch.equal(torch.get_rng_state(), before)
        assert torch.get_num_threads() == 2
        assert not torch.are_deterministic_algorithms_enabled()


def test_jitter_moves_the_digit_and_fills_with_background(script: ModuleType) -> None:
    pictures = torch.full((64, 1, 32, 32), -1.0)
    pictures[:, :, 12:20, 12:20] = 2.0

    def jitter(**settings: float) -> Tensor:
        schedule = script.Schedule(epochs=1, rate=1e-3, **settings)
        moved: Tensor = script.jitter(pictures, schedule, torch.Generator().manual_seed(0))
        return moved

    torch.testing.assert_close(jitter(shift=0.0, turn=0.0), pictures)
    moved = jitter(shift=0.125, turn=0.0)
    ink = (moved + 1).sum((1, 2, 3))
    torch.testing.assert_close(ink, (pictures + 1).sum((1, 2, 3)))  # the square stays inside the image
    places = torch.arange(32.0)
    for axis in (2, 3):
        centre = ((moved + 1).sum((1, 5 - axis)) * places).sum(1) / ink
        assert (centre - 15.5).abs().max() <= 4  # an eighth of 32
        assert (centre - 15.5).abs().max() > 3  # the largest of 64 draws
    assert moved.amin() >= -1.0001


@pytest.mark.slow
def test_equal_weights_give_equal_files(script: ModuleType, tmp_path: Path) -> None:
    model = load_model("digits_resnet", "random")[0]
    files = [script.write("digits_resnet.seed0", model, tmp_path / str(i))[0].read_bytes() for i in range(2)]
    assert files[0] == files[1]


Invoke = Callable[[list[str]], Any]


@pytest.fixture
def invoke(script: ModuleType) -> Invoke:
    return lambda args: CliRunner().invoke(script.main, args)


@pytest.mark.slow
def test_the_script_trains_rounds_tests_and_writes(invoke: Invoke, test_digits: Split, tmp_path: Path) -> None:
    run = invoke(["digits_resnet.seed1", "--epochs", "1", "-o", str(tmp_path / "new")])
    assert run.exit_code == 0
    path = tmp_path / "new" / "digits_resnet.seed1.safetensors"
    assert [p.name for p in path.parent.iterdir()] == [path.name]
    assert_float16_and_integer_counters(path)
    reported = float(run.output.splitlines()[-1].partition("test accuracy ")[2].split()[0])
    assert metadata(path)["test_accuracy"] == reported
    assert accuracy(load_model("digits_resnet", str(path))[0], test_digits) == pytest.approx(reported, abs=0.004)
    assert run.output.startswith("digits_resnet.seed1  epoch  1/1  loss ")


@pytest.mark.slow
def test_wrong_names_and_folders_are_one_line_errors(invoke: Invoke, tmp_path: Path) -> None:
    run = invoke(["digits_resnet.seed7", "-o", str(tmp_path)])
    assert run.exit_code == 2
    assert run.output.splitlines()[-1].startswith(
        "Error: Invalid value for NAME: 'digits_resnet.seed7' is not in the zoo"
    )
    (tmp_path / "file").touch()
    run = invoke(["digits_resnet.seed1", "--epochs", "1", "-o", str(tmp_path / "file" / "in")])
    assert run.exit_code == 1
    assert run.output.splitlines()[-1].startswith("Error: cannot write ")
