"""Random weights, and intact, damaged and hostile files of weights. For weights from a hub see test_hub.py."""

import argparse
import json
import pickle
import zipfile
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file

from repsim.errors import UnknownNameError, WeightsError
from repsim.extractors.weights import check_name, fingerprint, load_model


def make_model(name: str = "test_resnet", **options: Any) -> Any:
    torch.manual_seed(7)
    return timm.create_model(name, **options)


def same(model: Any, state: dict[str, torch.Tensor]) -> bool:
    own = model.state_dict()
    return set(own) == set(state) and all(torch.equal(own[name], state[name]) for name in own)


def test_random_weights_come_from_their_seed_and_leave_the_callers_alone() -> None:
    torch.manual_seed(5)
    expected = timm.create_model("test_resnet").state_dict()
    torch.manual_seed(99)
    before = torch.get_rng_state()
    model, record, _ = load_model("test_resnet", "random", seed=5)
    assert torch.equal(torch.get_rng_state(), before)
    assert same(model, expected)
    assert not model.training
    assert (record["weights"], record["seed"], record["timm_name"]) == ("random", 5, "test_resnet")
    assert record["weights_sha256"] == load_model("test_resnet", "random", seed=5)[1]["weights_sha256"]


def test_the_fingerprint_sees_every_value_and_every_buffer() -> None:
    model = make_model()
    values = [fingerprint(model)]
    with torch.no_grad():
        model.fc.bias[3] += 1e-6
        values.append(fingerprint(model))
        model.bn1.running_mean[0] = 1e-30
        values.append(fingerprint(model))
    assert len(set(values)) == 3


@pytest.mark.parametrize("form", ["safetensors", "pth", "training", "parallel", "ema"])
def test_a_file_is_loaded_whatever_wraps_it(tmp_path: Path, form: str) -> None:
    state = make_model().state_dict()
    path = tmp_path / ("w.safetensors" if form == "safetensors" else "w.pth")
    if form == "safetensors":
        save_file(state, path)
    else:
        other = {name: value * 0 for name, value in state.items()}
        args = argparse.Namespace(lr=0.1)
        held: dict[str, Any] = {
            "pth": state,
            "training": {"state_dict": state, "args": args, "epoch": 3},
            "parallel": {"model": {f"module.{name}": value for name, value in state.items()}},
            "ema": {"state_dict": other, "state_dict_ema": state},
        }
        torch.save(held[form], path)
    model, record, _ = load_model("test_resnet", str(path))
    assert same(model, state)
    assert (record["weights"], record["weights_file"]) == ("file", path.name)
    assert record["timm_name"] == "test_resnet"  # these are not the weights of the tag
    assert record["weights_sha256"] == fingerprint(make_model())


@pytest.mark.parametrize(("name", "classes"), [("test_resnet", 10), ("test_convnext", 7), ("test_vit", 0)])
def test_a_file_brings_its_own_number_of_classes(tmp_path: Path, name: str, classes: int) -> None:
    state = make_model(name, num_classes=classes).state_dict()
    save_file(state, tmp_path / "w.safetensors")
    model: Any
    model, _, _ = load_model(name, str(tmp_path / "w.safetensors"))
    assert model.num_classes == classes
    assert same(model, state)


class Hostile:
    """An object that runs code when it is unpickled."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> Any:
        return Path.touch, (self.trace,)


@pytest.mark.parametrize("form", ["zip", "legacy", "bare", "whole model"])
def test_a_file_that_could_run_code_is_refused_and_runs_none(tmp_path: Path, form: str) -> None:
    trace, path = tmp_path / "was-run", tmp_path / "hostile.pth"
    held = {**make_model().state_dict(), "extra": Hostile(trace)}
    if form == "bare":
        path.write_bytes(pickle.dumps(held["extra"], protocol=2))
    elif form == "whole model":
        torch.save(make_model(), path)
    else:
        torch.save(held, path, _use_new_zipfile_serialization=form == "zip")
    with pytest.raises(WeightsError, match=r"^hostile\.pth holds objects other than tensors, .* refused\. Save its"):
        load_model("test_resnet", str(path))
    assert not trace.exists()
    if form == "bare":
        pickle.loads(path.read_bytes())  # noqa: S301 - shows that the file would run code
        assert trace.exists()


def damaged(tmp_path: Path) -> dict[str, str]:
    """Return damaged files by name, with the expected message."""
    state = make_model().state_dict()
    save_file(state, tmp_path / "cut.safetensors")
    torch.save(state, tmp_path / "cut.pth")
    for name in ("cut.safetensors", "cut.pth"):
        data = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(data[: len(data) // 2])
    for name in ("empty.safetensors", "empty.pth"):
        (tmp_path / name).touch()
    (tmp_path / "text.pth").write_text("hello, these are no weights " * 20)
    torch.save([1, 2], tmp_path / "list.pth")
    torch.save({"epoch": 3}, tmp_path / "numbers.pth")
    save_file(make_model("test_vit").state_dict(), tmp_path / "vit.safetensors")
    part = {name: value for name, value in state.items() if not name.startswith("layer4")}
    save_file(part, tmp_path / "part.safetensors")
    return {
        "cut.safetensors": "cannot read weights from cut.safetensors, is it damaged?",
        "cut.pth": "cannot read weights from cut.pth, is it damaged?",
        "empty.safetensors": "cannot read weights from empty.safetensors, is it damaged?",
        "empty.pth": "cannot read weights from empty.pth, is it damaged?",
        "text.pth": "cannot read weights from text.pth, is it damaged?",
        "list.pth": "list.pth is not a state_dict",
        "numbers.pth": "numbers.pth is not a state_dict",
        "vit.safetensors": "vit.safetensors does not fit test_resnet: its names are ",
        "part.safetensors": "part.safetensors does not fit test_resnet: 15 missing: layer4.0.conv1.weight, ",
        "absent.pth": "no such weights file: ",
        ".": "no such weights file: ",
    }


def test_a_file_that_cannot_be_used_is_one_clear_line(tmp_path: Path) -> None:
    for name, message in damaged(tmp_path).items():
        with pytest.raises(WeightsError) as caught:
            load_model("test_resnet", str(tmp_path / name))
        assert str(caught.value).startswith(message), name
        assert "\n" not in str(caught.value)
        assert len(str(caught.value)) < 500


def hostile_headers() -> dict[str, bytes]:
    """Return safetensors files whose headers do not agree with their contents."""

    def framed(header: bytes, length: int | None = None) -> bytes:
        return (len(header) if length is None else length).to_bytes(8, "little") + header

    def one(**changes: Any) -> bytes:
        entry = {"dtype": "F32", "shape": [4], "data_offsets": [0, 16], **changes}
        return framed(json.dumps({"fc.weight": entry}).encode()) + bytes(16)

    return {
        "header longer than any memory": framed(b"{}", 2**63 - 1),
        "header longer than the file": framed(b"{}", 10**6),
        "offsets beyond the file": one(data_offsets=[0, 2**40], shape=[2**38]),
        "offsets that wrap around": one(data_offsets=[2**63, 16]),
        "a shape that overflows": one(shape=[2**40, 2**40]),
        "a shape unlike the offsets": one(shape=[2**20]),
        "no JSON": framed(b"{'fc.weight': "),
    }


@pytest.mark.parametrize("form", hostile_headers())
def test_a_safetensors_file_that_lies_is_one_clear_line(tmp_path: Path, form: str) -> None:
    path = tmp_path / "lies.safetensors"
    path.write_bytes(hostile_headers()[form])
    with pytest.raises(WeightsError, match=r"^cannot read weights from lies\.safetensors, is it damaged\? [^\n]+$"):
        load_model("test_resnet", str(path))


def test_a_zip_bomb_is_refused_before_it_fills_the_memory(tmp_path: Path) -> None:
    """A compressed checkpoint of zeros: a file of a few kB can unpack to any size."""
    state = {name: torch.zeros_like(value) for name, value in make_model().state_dict().items()}
    torch.save(state, tmp_path / "plain.pth")
    with (
        zipfile.ZipFile(tmp_path / "plain.pth") as plain,
        zipfile.ZipFile(tmp_path / "bomb.pth", "w", zipfile.ZIP_DEFLATED) as bomb,
    ):
        for entry in plain.infolist():
            bomb.writestr(entry.filename, plain.read(entry))
    assert torch.load(tmp_path / "bomb.pth", weights_only=True).keys() == state.keys()  # torch itself would unpack it
    with pytest.raises(
        WeightsError, match=r"^bomb\.pth has [\d,]+ bytes and would unpack to [\d,]+: refused\. Save its"
    ):
        load_model("test_resnet", str(tmp_path / "bomb.pth"))
    assert same(load_model("test_resnet", str(tmp_path / "plain.pth"))[0], state)


def test_unknown_models_get_near_names() -> None:
    with pytest.raises(UnknownNameError, match="unknown model 'resnet5O'; did you mean resnet50"):
        check_name("resnet5O")
    with pytest.raises(UnknownNameError, match="unknown pretrained tag 'a1_in2k'; did you mean a1_in1k"):
        check_name("resnet50.a1_in2k")
    check_name("resnet50.a1_in1k")
    with pytest.raises(WeightsError, match=r"^timm has no pretrained weights for resnet\w+; .*weights='random'$"):
        load_model(without_weights())


def without_weights() -> str:
    """Return a model without published weights."""
    configs = ((name, timm.get_pretrained_cfg(name)) for name in timm.list_models("resnet*"))
    return str(next(name for name, config in configs if config and not (config.hf_hub_id or config.url)))


def test_saved_weights_are_what_the_file_holds(tmp_path: Path) -> None:
    """The helper `same` of these tests compares with the tensors that safetensors returns."""
    save_file(make_model().state_dict(), tmp_path / "w.safetensors")
    assert same(make_model(), load_file(tmp_path / "w.safetensors"))
    assert not same(make_model(), {**make_model().state_dict(), "fc.bias": torch.ones(1000)})
