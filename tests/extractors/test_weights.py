"""Weights: random ones, files, and timm's own through a stand-in for the hub that runs on this machine."""

import argparse
import hashlib
import json
import os
import pickle
import subprocess
import sys
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import load_file, save, save_file

from repsim.errors import UnknownNameError, WeightsError
from repsim.extractors.weights import check_name, fingerprint, load_model


def made(name: str = "test_resnet", **options: Any) -> Any:
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
    model, record = load_model("test_resnet", "random", seed=5)
    assert torch.equal(torch.get_rng_state(), before)
    assert same(model, expected)
    assert not model.training
    assert (record["weights"], record["seed"], record["timm_name"]) == ("random", 5, "test_resnet")
    assert record["weights_sha256"] == load_model("test_resnet", "random", seed=5)[1]["weights_sha256"]


def test_the_fingerprint_sees_every_value_and_every_buffer() -> None:
    model = made()
    values = [fingerprint(model)]
    with torch.no_grad():
        model.fc.bias[3] += 1e-6
        values.append(fingerprint(model))
        model.bn1.running_mean[0] = 1e-30
        values.append(fingerprint(model))
    assert len(set(values)) == 3


@pytest.mark.parametrize("form", ["safetensors", "pth", "training", "parallel", "ema"])
def test_a_file_is_loaded_whatever_wraps_it(tmp_path: Path, form: str) -> None:
    state = made().state_dict()
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
    model, record = load_model("test_resnet", str(path))
    assert same(model, state)
    assert (record["weights"], record["weights_file"]) == ("file", path.name)
    assert record["timm_name"] == "test_resnet"  # the tag's own weights are not these
    assert record["weights_sha256"] == fingerprint(made())


@pytest.mark.parametrize(("name", "classes"), [("test_resnet", 10), ("test_convnext", 7), ("test_vit", 0)])
def test_a_file_brings_its_own_number_of_classes(tmp_path: Path, name: str, classes: int) -> None:
    state = made(name, num_classes=classes).state_dict()
    save_file(state, tmp_path / "w.safetensors")
    model: Any
    model, _ = load_model(name, str(tmp_path / "w.safetensors"))
    assert model.num_classes == classes
    assert same(model, state)


class Hostile:
    """What unpickling would run."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> Any:
        return Path.touch, (self.trace,)


@pytest.mark.parametrize("form", ["zip", "legacy", "bare", "whole model"])
def test_a_file_that_could_run_code_is_refused_and_runs_none(tmp_path: Path, form: str) -> None:
    trace, path = tmp_path / "was-run", tmp_path / "hostile.pth"
    held = {**made().state_dict(), "extra": Hostile(trace)}
    if form == "bare":
        path.write_bytes(pickle.dumps(held["extra"], protocol=2))
    elif form == "whole model":
        torch.save(made(), path)
    else:
        torch.save(held, path, _use_new_zipfile_serialization=form == "zip")
    with pytest.raises(WeightsError, match=r"^hostile\.pth holds something else than tensors, .* refused\. Save its"):
        load_model("test_resnet", str(path))
    assert not trace.exists()
    if form == "bare":
        pickle.loads(path.read_bytes())  # noqa: S301 - the file is hostile indeed
        assert trace.exists()


def damaged(tmp_path: Path) -> dict[str, str]:
    """File -> what is to be said of it."""
    state = made().state_dict()
    save_file(state, tmp_path / "cut.safetensors")
    torch.save(state, tmp_path / "cut.pth")
    for name in ("cut.safetensors", "cut.pth"):
        whole = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(whole[: len(whole) // 2])
    for name in ("empty.safetensors", "empty.pth"):
        (tmp_path / name).touch()
    (tmp_path / "text.pth").write_text("hello, these are no weights " * 20)
    torch.save([1, 2], tmp_path / "list.pth")
    torch.save({"epoch": 3}, tmp_path / "numbers.pth")
    save_file(made("test_vit").state_dict(), tmp_path / "vit.safetensors")
    part = {name: value for name, value in state.items() if not name.startswith("layer4")}
    save_file(part, tmp_path / "part.safetensors")
    return {
        "cut.safetensors": "cannot read weights from cut.safetensors, is it damaged?",
        "cut.pth": "cannot read weights from cut.pth, is it damaged?",
        "empty.safetensors": "cannot read weights from empty.safetensors, is it damaged?",
        "empty.pth": "cannot read weights from empty.pth, is it damaged?",
        "text.pth": "cannot read weights from text.pth, is it damaged?",
        "list.pth": "list.pth is no state_dict",
        "numbers.pth": "numbers.pth is no state_dict",
        "vit.safetensors": "vit.safetensors does not fit test_resnet: Error(s) in loading state_dict for ResNet",
        "part.safetensors": "part.safetensors does not fit test_resnet: Error(s) in loading state_dict for ResNet",
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


def test_unknown_models_get_near_names() -> None:
    with pytest.raises(UnknownNameError, match="unknown model 'resnet5O'; did you mean resnet50"):
        check_name("resnet5O")
    with pytest.raises(UnknownNameError, match="unknown pretrained tag 'a1_in2k'; did you mean a1_in1k"):
        check_name("resnet50.a1_in2k")
    check_name("resnet50.a1_in1k")
    with pytest.raises(WeightsError, match=r"^timm has no pretrained weights for resnet\w+\. .*--weights random$"):
        load_model(without_weights())


def without_weights() -> str:
    """Some model whose authors never published any."""
    configs = ((name, timm.get_pretrained_cfg(name)) for name in timm.list_models("resnet*"))
    return str(next(name for name, config in configs if config and not (config.hf_hub_id or config.url)))


class Hub(BaseHTTPRequestHandler):
    """As much of the model hub's protocol as its client asks for: the head and the body of a file of a repository."""

    files: dict[str, bytes]
    asked: list[str]

    def do_HEAD(self) -> None:
        self.answer(body=False)

    def do_GET(self) -> None:
        self.answer(body=True)

    def answer(self, *, body: bool) -> None:
        content = self.files.get(self.path)
        self.asked.append(self.path)
        self.send_response(404 if content is None else 200)
        if content is None:
            known = any(path.rsplit("/", 1)[0] == self.path.rsplit("/", 1)[0] for path in self.files)
            self.send_header("X-Error-Code", "EntryNotFound" if known else "RepoNotFound")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        self.send_header("X-Repo-Commit", "0" * 40)
        self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if body:
            self.wfile.write(content)

    def log_message(self, *_: Any) -> None:
        pass


REPOSITORY = "/timm/test_resnet.r160_in1k/resolve/main/"


@pytest.fixture
def hub() -> Iterator[tuple[str, type[Hub]]]:
    """Its address, and the handler, whose files can be changed."""
    handler = type(
        "ThisHub", (Hub,), {"files": {REPOSITORY + "model.safetensors": save(made().state_dict())}, "asked": []}
    )
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", handler
    server.shutdown()
    server.server_close()
    thread.join()


SCRIPT = """
import json, sys
from repsim.errors import WeightsError
from repsim.extractors.weights import load_model
try:
    print(json.dumps(load_model(sys.argv[1])[1]))
except WeightsError as error:
    print(error)
"""


def in_a_process(model: str, cache: Path, **environment: str) -> str:
    """The hub's client reads its settings when it is imported, so each answer comes from a process of its own."""
    inherited = {k: v for k, v in os.environ.items() if not k.startswith("HF_") and "proxy" not in k.lower()}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, model],
        env={**inherited, "HF_HOME": str(cache), "HF_HUB_DISABLE_XET": "1", **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    return done.stdout.strip()


def test_pretrained_weights_come_from_the_hub_and_then_from_its_cache(hub: Any, tmp_path: Path) -> None:
    address, handler = hub
    record = json.loads(in_a_process("test_resnet.r160_in1k", tmp_path, HF_ENDPOINT=address))
    assert record["weights"] == "pretrained"
    assert record["timm_name"] == "test_resnet.r160_in1k"
    assert record["weights_sha256"] == fingerprint(made())
    assert REPOSITORY + "model.safetensors" in handler.asked
    handler.files = {}
    offline = json.loads(in_a_process("test_resnet", tmp_path, HF_ENDPOINT=address, HF_HUB_OFFLINE="1"))
    assert offline == record  # the default tag is named


def test_offline_and_not_in_the_cache_names_the_two_other_ways(tmp_path: Path) -> None:
    assert in_a_process("test_resnet", tmp_path, HF_HUB_OFFLINE="1") == (
        "no pretrained weights for test_resnet (timm/test_resnet.r160_in1k): they are not in the cache and the hub "
        "cannot be reached. Use --weights FILE (.safetensors or .pth), or --weights random; "
        "HF_HUB_OFFLINE=1 skips the wait for the network"
    )


def test_a_model_that_the_hub_does_not_have(hub: Any, tmp_path: Path) -> None:
    address, handler = hub
    handler.files = {}
    said = in_a_process("test_resnet", tmp_path, HF_ENDPOINT=address)
    assert said.startswith("no pretrained weights for test_resnet (timm/test_resnet.r160_in1k): ")
    assert "404" in said
    assert "cannot be reached" not in said
    assert said.endswith("Use --weights FILE (.safetensors or .pth), or --weights random")
    assert "\n" not in said
    assert handler.asked


def test_damaged_weights_from_the_hub(hub: Any, tmp_path: Path) -> None:
    address, handler = hub
    whole = handler.files[REPOSITORY + "model.safetensors"]
    handler.files = {REPOSITORY + "model.safetensors": whole[: len(whole) // 2]}
    said = in_a_process("test_resnet", tmp_path, HF_ENDPOINT=address)
    assert said.startswith(
        "no pretrained weights for test_resnet (timm/test_resnet.r160_in1k): Error while deserializing"
    )
    assert "\n" not in said


def test_saved_weights_are_what_the_file_holds(tmp_path: Path) -> None:
    """The tests' own instrument: what `same` compares is what safetensors gives back."""
    save_file(made().state_dict(), tmp_path / "w.safetensors")
    assert same(made(), load_file(tmp_path / "w.safetensors"))
    assert not same(made(), {**made().state_dict(), "fc.bias": torch.ones(1000)})
