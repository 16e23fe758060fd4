"""Tests of the options of weights, size and normalisation, of `repsim extract` and of study files."""

import argparse
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from click.testing import CliRunner, Result

import repsim
from repsim.cli import main
from repsim.errors import InvalidInputError
from repsim.study.study_file import parse_protocol

COMMON = ("--data", "digits", "--limit", 8, "--layers", "blocks.0", "--together", 1)


def extract(*args: object) -> Result:
    return CliRunner().invoke(main, ["extract", *map(str, (*COMMON, *args))], catch_exceptions=False)


@pytest.fixture
def checkpoints(tmp_path: Path) -> list[str]:
    """Make two checkpoints of a Vision Transformer for 96 pixels, with averaged weights and training options."""
    paths = []
    args = argparse.Namespace(img_size=96, mean=[0.2], std=[0.1])
    for seed in range(2):
        torch.manual_seed(seed)
        state, average = (timm.create_model("test_vit", img_size=96).state_dict() for _ in range(2))
        torch.save({"state_dict": state, "state_dict_ema": average, "args": args}, tmp_path / f"epoch{seed}.pth")
        paths.append(str(tmp_path / f"epoch{seed}.pth"))
    return paths


def provenance(folder: Path, name: str) -> dict[str, Any]:
    with repsim.open_store(folder / f"{name}.h5") as store:
        return dict(store.provenance)


@pytest.mark.slow
def test_each_model_gets_its_own_weights(tmp_path: Path, checkpoints: list[str]) -> None:
    out = tmp_path / "acts"
    pairs = [part for path in checkpoints for part in ("--weights", path)]
    result = extract("test_vit", "test_vit", *pairs, "-o", out)
    assert result.exit_code == 0
    first, second = (provenance(out, f"test_vit+epoch{k}") for k in range(2))
    assert first["weights_sha256"] != second["weights_sha256"]
    assert first["weights_key"] == "state_dict_ema"
    assert "note: test_vit: weights: state_dict_ema of epoch0.pth, which also holds state_dict" in result.stderr
    assert first["preprocessing"]["input_size"] == [3, 96, 96]
    again = extract("test_vit", "test_vit", *pairs, "-o", out)
    assert again.stderr.count("is complete already") == 2
    result = extract("test_vit", "--weights", checkpoints[0], "--weights-key", "state_dict", "-o", out)
    assert result.exit_code == 0
    assert provenance(out, "test_vit+epoch0.state_dict")["weights_sha256"] != first["weights_sha256"]


@pytest.mark.slow
def test_python_says_the_same_as_the_command_line(tmp_path: Path, checkpoints: list[str]) -> None:
    options = ("--img-size", "64", "--mean", "0.3,0.4,0.5", "--std", "0.2", "--interpolation", "bilinear")
    more = ("--crop-pct", "0.8", "--model-kwarg", "drop_rate=0.1", "--weights-key", "state_dict")
    result = extract("test_vit", "--weights", checkpoints[0], *options, *more, "-o", tmp_path)
    assert result.exit_code == 0
    store = repsim.extract(
        "test_vit", "digits", tmp_path / "python", limit=8, layers="blocks.0", weights=checkpoints[0], img_size=64,
        mean=[0.3, 0.4, 0.5], std=0.2, interpolation="bilinear", crop_pct=0.8, model_kwargs={"drop_rate": 0.1},
        weights_key="state_dict",
    )  # fmt: skip
    by_command, by_python = provenance(tmp_path, "test_vit+epoch0.state_dict+64px"), dict(store.provenance)
    assert {**by_command, "command": None} == {**by_python, "command": None}
    assert by_command["preprocessing"] == {
        "input_size": [3, 64, 64], "mean": [0.3, 0.4, 0.5], "std": [0.2, 0.2, 0.2], "interpolation": "bilinear",
        "crop_pct": 0.8, "crop_mode": "center",
    }  # fmt: skip
    assert by_command["resampled"] == ["pos_embed"]


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (
            ("test_vit", "--weights", "a.pth", "--weights", "b.pth"),
            "2 weights for 1 model (test_vit): give one for all",
        ),
        (("a", "b", "c", "--weights", "x", "--weights", "y"), "2 weights for 3 models (a, b, c): give one for all"),
        (("a", "b", "c", "--seed", 1, "--seed", 2), "2 seeds for 3 models (a, b, c): give one for all"),
        (("test_vit", "test_vit", "--weights", "random"), "test_vit with random, seed 0 is named twice"),
        (("test_vit", "test_vit", "--weights", "a/w.pth", "--weights", "b/w.pth"), "would have the same store"),
        (("test_vit", "--weights", "random", "--weights-key", "model"), "--weights-key: for a file of weights only"),
        (("test_vit", "--img-size", "big"), "--img-size is a number of pixels"),
        (("test_vit", "--weights", "random", "--model-kwarg", "depht=3"), "test_vit cannot be built with depht=3"),
        (("torchvision/resnet18", "--weights", "random", "--img-size", "64x96"), "square pictures"),
    ],
)
def test_what_cannot_be_meant_is_refused_in_one_line(tmp_path: Path, args: Any, message: str) -> None:
    result = extract(*args, "-o", tmp_path / "acts")
    assert result.exit_code == 2
    assert message in result.stderr
    assert "Traceback" not in result.stderr
    assert not list(tmp_path.glob("acts/*"))


def test_seeds_pair_with_models(tmp_path: Path) -> None:
    result = extract("test_vit", "test_vit", "--weights", "random", "--seed", 1, "--seed", 2, "-o", tmp_path)
    assert result.exit_code == 0
    assert {path.stem for path in tmp_path.glob("*.h5")} == {"test_vit+random-seed1", "test_vit+random-seed2"}


def test_a_study_file_says_the_same(tmp_path: Path) -> None:
    protocol = parse_protocol(
        "models:\n"
        "  - {name: test_vit, weights: e1.pth, weights_key: state_dict, img_size: 96, mean: 0.3, std: [0.2, 0.2, 1]}\n"
        "  - {name: test_vit, img_size: 96x64, model_kwargs: {reg_tokens: 2, global_pool: avg, mlp_ratio: 3.0}}\n"
        "data: digits\n",
        tmp_path / "study.yaml",
    )
    first, second = protocol.models
    assert (first.weights_key, first.img_size, first.mean, first.std) == ("state_dict", 96, 0.3, (0.2, 0.2, 1))
    assert second.img_size == "96x64"
    assert second.model_kwargs == {"reg_tokens": 2, "global_pool": "avg", "mlp_ratio": 3.0}
    assert first != second


@pytest.mark.slow
@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("img_size: true", "line 2: img_size is a whole number, text or a list of numbers, not `true`"),
        ("mean: [a]", "line 2: mean is a number, text or a list of numbers, not a list"),
        ("model_kwargs: [a]", "line 2: model_kwargs is keys with values, not a list"),
        (
            "model_kwargs: {a: {b: 1}}",
            "line 2: model_kwargs: a is text, a number, true or false or a list, not keys with values",
        ),
        ("weights_match: ordr", "unknown value of weights_match 'ordr'; did you mean order"),
    ],
)
def test_a_study_file_names_the_line_of_what_it_does_not_mean(tmp_path: Path, key: str, message: str) -> None:
    with pytest.raises((InvalidInputError, LookupError), match=message.replace("(", r"\(")):
        parse_protocol(f"models:\n  - {{name: test_vit, {key}}}\ndata: digits\n", tmp_path / "study.yaml")
