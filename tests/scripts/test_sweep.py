"""Tests of scripts/validation/sweep_timm: a sample of the families passes, and wrong values fail."""

import importlib.machinery
import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import timm
from click.testing import CliRunner

SCRIPT = Path(__file__).parents[2] / "scripts" / "validation" / "sweep_timm"


@pytest.fixture(scope="module")
def sweep() -> ModuleType:
    loader = importlib.machinery.SourceFileLoader("sweep_timm", str(SCRIPT))
    spec = importlib.util.spec_from_loader("sweep_timm", loader)
    assert spec is not None
    module = sys.modules["sweep_timm"] = importlib.util.module_from_spec(spec)  # dataclasses look themselves up there
    loader.exec_module(module)
    return module


# family -> its smallest model, number of layers, number of layers with positions, readouts; comments name special cases
SAMPLE = {
    "starnet": ("starnet_s050", 8, 7, "mean max flatten grid:4"),
    "pit": (
        "pit_ti_224",
        14,
        11,
        "mean max cls flatten grid:4",
    ),  # class tokens; the last stage does not grow in proportion
    "levit": ("levit_128s", 12, 10, "mean max flatten grid:4"),  # tokens without a class token, two classifiers
    "crossvit": ("crossvit_tiny_240", 10, 8, "mean max cls flatten grid:4"),  # two tensors per layer, repeated calls
    "tnt": (
        "tnt_s_legacy_patch16_224",
        14,
        13,
        "mean max cls flatten grid:4",
    ),  # tuples whose tensors have different numbers of rows
    "mambaout": ("test_mambaout", 8, 7, "mean max flatten grid:4"),  # channels last
}


@pytest.mark.parametrize("family", SAMPLE)
@pytest.mark.slow
def test_repsim_and_hooks_read_a_family_equally(sweep: ModuleType, family: str) -> None:
    *_, row = sweep.work(family)
    assert row.error == ""
    assert (row.model, len(row.layers), row.by_growth, " ".join(row.readouts)) == SAMPLE[family]
    assert row.by_timm >= row.maps_found >= 3
    assert 0 < row.difference < 1e-5  # exactly 0 would mean that a pass is compared with itself


def test_the_families_are_those_of_timm_only(sweep: ModuleType) -> None:
    assert {"resnet", "vision_transformer", "convnext"} <= set(sweep.families())
    assert "zoo" not in sweep.families()
    assert sweep.families(["convn*", "vgg"]) == ["convnext", "vgg"]


@pytest.mark.slow
def test_the_smallest_is_the_one_with_the_fewest_parameters(sweep: ModuleType) -> None:
    real = {n: sum(p.numel() for p in timm.create_model(n).parameters()) for n in timm.list_models(module="repghost")}
    name, parameters, classes = sweep.smallest("repghost")
    assert (name, parameters, classes) == (min(real, key=real.__getitem__), min(real.values()), 1000)
    assert sweep.smallest("deepseek_vit")[2] == 0  # an encoder of a language model, without a classifier


def test_tokens_that_do_not_grow_with_the_picture_are_prefix_tokens(sweep: ModuleType) -> None:
    shapes = {"patch_embed": (10, 10, 64), "blocks.0": (101, 64), "pre_logits": (64,)}
    growing = sweep.positions("test_vit", shapes, (160, 160))
    assert growing == {"patch_embed": ([0, 1], 0), "blocks.0": ([0], 1), "pre_logits": ([], 0)}
    assert sweep.positions("test_resnet", {"layer1": (32, 40, 40)}, (160, 160)) == {"layer1": ([1, 2], 0)}


TOKENS = np.random.default_rng(0).standard_normal((10, 5)).astype(np.float32)  # a class token and 3 x 3 patches
MAP = TOKENS[1:].T.reshape(5, 3, 3)


def right() -> dict[tuple[str, str], Any]:
    grid = MAP[:, [0, 0, 1, 2]][:, :, [0, 0, 1, 2]] + MAP[:, [0, 1, 2, 2]][:, :, [0, 0, 1, 2]]
    grid = grid + MAP[:, [0, 0, 1, 2]][:, :, [0, 1, 2, 2]] + MAP[:, [0, 1, 2, 2]][:, :, [0, 1, 2, 2]]
    return {
        ("layer", "flatten"): TOKENS.ravel(),
        ("layer", "mean"): TOKENS[1:].mean(0),
        ("layer", "max"): TOKENS[1:].max(0),
        ("layer", "cls"): TOKENS[0],
        ("layer", "grid:4"): grid.ravel() / 4,  # four overlapping windows of two positions on each axis
    }


WRONG = {
    "different order": ("flatten", TOKENS.T.ravel(), "the tensor of the hook"),
    "one wrong value": ("flatten", TOKENS.ravel() + 1e-3 * (np.arange(50) == 7), "the tensor of the hook"),
    "NaN": ("flatten", np.full(50, np.nan), "the tensor of the hook"),
    "different size": ("flatten", TOKENS[1:].ravel(), "the tensor of the hook"),
    "mean with the class token": ("mean", TOKENS.mean(0), "numpy over the axes that grow with the image"),
    "mean over channels": ("mean", TOKENS[1:].mean(1), "numpy over the axes that grow with the image"),
    "max with the class token": ("max", TOKENS.max(0) + 9, "numpy over the axes that grow with the image"),
    "the last token": ("cls", TOKENS[-1], "the first token"),
    "transposed grid": (
        "grid:4",
        right()["layer", "grid:4"].reshape(5, 4, 4).swapaxes(1, 2).ravel(),
        "timm's forward_intermediates",
    ),
}


def compare_readouts(sweep: ModuleType, read: dict[tuple[str, str], Any], growing: Any) -> Any:
    row = sweep.Row("family", layers=["layer"])
    row.layers = ["layer"] * 3  # the smallest number that passes
    sweep.compare(row, read, {"layer": TOKENS}, growing, [np.zeros((5, 3, 3)), MAP])
    return row


def test_the_right_numbers_pass(sweep: ModuleType) -> None:
    row = compare_readouts(sweep, right(), {"layer": ([0], 1)})
    assert (row.error, row.by_growth, row.by_timm, row.maps_found, row.maps) == ("", 3, 3, 1, 2)
    assert row.difference < 1e-6


@pytest.mark.parametrize("error", WRONG)
def test_a_wrong_value_fails(sweep: ModuleType, error: str) -> None:
    readout, values, reference = WRONG[error]
    row = compare_readouts(sweep, right() | {("layer", readout): values}, {"layer": ([0], 1)})
    assert row.error.startswith(f"{readout} of layer differs by ")
    assert row.error.endswith(f" from {reference}")
    assert row.difference > sweep.TOLERANCE


def test_too_few_layers_fail(sweep: ModuleType) -> None:
    kept, read = (
        {"a": TOKENS, "pre_logits": TOKENS[0]},
        {("a", "flatten"): TOKENS.ravel(), ("pre_logits", "flatten"): TOKENS[0]},
    )
    row = sweep.Row("family", layers=["a", "pre_logits"])
    sweep.compare(row, read, kept, {}, [])
    assert row.error == "0 of timm's 0 maps are among the 2 layers: a, pre_logits"
    row = sweep.Row("family", layers=["a"] * 3)
    sweep.compare(row, read, kept, {}, [MAP + 1, MAP + 2])
    assert row.error == "0 of timm's 2 maps are among the 3 layers: a, a, a"


def test_maps_of_timm_detect_errors_if_the_growing_axes_are_unknown(sweep: ModuleType) -> None:
    row = compare_readouts(sweep, right() | {("layer", "mean"): TOKENS.mean(0)}, {})
    assert row.error.endswith(" from timm's forward_intermediates")


def test_positions_without_a_mean_fail(sweep: ModuleType) -> None:
    read = {("layer", "flatten"): TOKENS.ravel()}
    assert compare_readouts(sweep, read, {"layer": ([0], 1)}).error == "layer, shape (10, 5), has positions but no mean"


@pytest.mark.slow
def test_encoders_are_not_read(sweep: ModuleType) -> None:
    (row,) = sweep.work("gemma4_vit")
    assert (row.model, row.classes, row.layers, row.error) == ("gemma4_vit_167m", 0, [], "")
    assert sweep.summary([row]) == (0, 0)


@pytest.mark.slow
def test_a_killed_or_late_process_gives_a_row_and_the_sweep_continues(sweep: ModuleType, tmp_path: Path) -> None:
    """A limit of 0.1 GiB kills the process, and a limit of 0.1 s is too short."""
    rows = list(sweep.read_all(["starnet", "vgg"], jobs=1, timeout=600, memory=0.1))
    assert [row.family for row in rows] == ["starnet", "vgg"]
    # memory can be missing anywhere: in torch, in an import, or so that the process is killed
    assert all(row.error and "not done" not in row.error for row in rows)
    table = tmp_path / "table.md"
    done = CliRunner().invoke(sweep.main, ["--only", "starnet", "--timeout", "0.1", "-o", str(table)])
    assert done.exit_code == 1
    assert "starnet (): not done after 0.1 s\n0 of 1 families pass" in done.stderr
    assert "\n| starnet |  | 0.0 |  | **not done after 0.1 s** |" in table.read_text()


@pytest.mark.slow
def test_the_command_writes_the_table(tmp_path: Path) -> None:
    table = tmp_path / "table.md"
    command = [sys.executable, str(SCRIPT), "--only", "starnet", "-o", str(table)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")
    assert done.stderr.endswith("1 of 1 families pass\n")
    assert "\n**1 of 1 families pass (100.0%).**" in table.read_text()
    assert (
        "\n| starnet | starnet_s050 | 0.5 | 224 | 8: stem, stages.0.1, …, stages.3.1, pre_logits |" in table.read_text()
    )


def test_a_pattern_that_matches_no_family(sweep: ModuleType) -> None:
    done = CliRunner().invoke(sweep.main, ["--only", "resnot"])
    assert done.exit_code == 1
    assert done.stderr.startswith("Error: no family of timm matches resnot; choose from beit, ")


def test_at_most_one_failure_in_fifty_is_allowed(sweep: ModuleType) -> None:
    rows = [sweep.Row(f"f{i}", classes=1000) for i in range(49)]
    encoder = sweep.Row("encoder")
    assert sweep.summary([*rows, encoder, sweep.Row("bad", error="no")]) == (49, 50)
