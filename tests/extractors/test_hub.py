"""Weights from a model hub or a web server, both simulated on this machine."""

import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from types import MappingProxyType
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save
from timm.models import PretrainedCfg, build_model_with_cfg, register_model
from timm.models.resnet import BasicBlock, ResNet
from torch import nn
from torchvision import models

from repsim.errors import WeightsError
from repsim.extractors import torchvision_models
from repsim.extractors.weights import fingerprint, load_model


def make_model(name: str = "test_resnet", seed: int = 7) -> Any:
    torch.manual_seed(seed)
    return timm.create_model(name)


class Hub(BaseHTTPRequestHandler):
    """The part of the model hub's protocol that its client uses: head and body of a file of a repository."""

    timeout = 10  # seconds to wait for a silent client
    files: dict[str, bytes]
    requests: list[str]
    refuses: Mapping[str, tuple[int, str]] = MappingProxyType({})
    """Name of a model -> status and error code, for models that need a login."""
    etags: Mapping[str, str] = MappingProxyType({})
    """Wrong SHA-256 that the hub sends for a file."""

    def do_HEAD(self) -> None:
        self.answer(body=False)

    def do_GET(self) -> None:
        self.answer(body=True)

    def answer(self, *, body: bool) -> None:
        content = self.files.get(self.path)
        self.requests.append(f"{self.command} {self.path}")
        refused = next((self.refuses[name] for name in self.refuses if name in self.path), None)
        if refused or content is None:
            repo_exists = any(path.rsplit("/", 1)[0] == self.path.rsplit("/", 1)[0] for path in self.files)
            status, code = refused or (404, "EntryNotFound" if repo_exists else "RepoNotFound")
            self.send_response(status)
            self.send_header("X-Error-Code", code)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        self.send_response(200)
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("ETag", f'"{self.etags.get(self.path) or hashlib.sha256(content).hexdigest()}"')
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if body:
            self.wfile.write(content)

    def log_message(self, *_: Any) -> None:
        pass


def weights_of(model: str) -> str:
    """Return the path of a model's weights on the hub."""
    return f"/timm/{model}.r160_in1k/resolve/main/model.safetensors"


NOBODY = "http://127.0.0.1:9"  # a port on which no service listens


def default_files() -> dict[str, bytes]:
    return {weights_of("test_resnet"): save(make_model().state_dict())}


@contextmanager
def serve(files: dict[str, bytes]) -> Iterator[tuple[str, type[Hub]]]:
    handler = type("ThisHub", (Hub,), {"files": files, "requests": []})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = False  # closing the server waits for its open responses
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", handler
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def hub() -> Iterator[tuple[str, type[Hub]]]:
    """Yield the address of a hub and its handler, whose files can be changed."""
    with serve(default_files()) as running:
        yield running


COMMIT = "0" * 40
"""Commit of every file of the hub."""

SCRIPT = """
import json, sys
from repsim.errors import WeightsError
from repsim.extractors.weights import load_model
for model in sys.argv[1:]:
    try:
        print(json.dumps(load_model(model)[1]))
    except WeightsError as error:
        print(error)
"""


def run(cache: Path, *names: str, script: str = SCRIPT, **environment: str) -> list[str]:
    """Load models in another process, and return one line per model: the record, or the error.

    In a process of its own: the hub's client reads its settings when it is imported.
    """
    inherited = {k: v for k, v in os.environ.items() if not k.startswith("HF_") and "proxy" not in k.lower()}
    done = subprocess.run(
        [sys.executable, "-c", script, *names],
        env={**inherited, "HF_HOME": str(cache), "HF_HUB_DISABLE_XET": "1", **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == len(names)
    return lines


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, str, list[str]]]:
    """Load weights twice, and yield the cache, the record, and the requests to the hub."""
    cache = tmp_path_factory.mktemp("cache")
    with serve(default_files()) as (address, handler):
        first, second = run(cache, "test_resnet.r160_in1k", "test_resnet", HF_ENDPOINT=address)
        assert second == first  # the default tag is named
        yield cache, first, handler.requests


@pytest.mark.slow
def test_pretrained_weights_come_from_the_hub_and_then_from_its_cache(
    loaded: tuple[Path, str, list[str]], tmp_path: Path
) -> None:
    cache, line, requests = loaded
    record = json.loads(line)
    assert record["weights"] == "pretrained"
    assert record["timm_name"] == "test_resnet.r160_in1k"
    assert record["weights_sha256"] == fingerprint(make_model())
    file = weights_of("test_resnet")
    # the second load checks whether the file has changed, and does not download it again
    assert [what for what in requests if what.endswith(file)] == [f"HEAD {file}", f"GET {file}", f"HEAD {file}"]
    # without the hub; with HF_HUB_OFFLINE there is no request at all
    assert run(cache, "test_resnet", HF_ENDPOINT=NOBODY) == [line]
    before = list(requests)
    assert run(cache, "test_resnet", HF_HUB_OFFLINE="1") == [line]
    assert requests == before


@pytest.mark.slow
def test_offline_and_not_in_the_cache_names_the_two_other_ways(tmp_path: Path) -> None:
    assert run(tmp_path, "test_resnet", HF_HUB_OFFLINE="1") == [
        (
            "no pretrained weights for test_resnet (timm/test_resnet.r160_in1k): they are not in the cache and the hub "
            "cannot be reached; use weights=FILE (.safetensors or .pth), or weights='random'; "
            "HF_HUB_OFFLINE=1 skips the wait for the network"
        )
    ]


REFUSED = {"test_resnet": (401, "RepoNotFound"), "test_vit": (403, "GatedRepo")}
MISSING, CUT_OFF, ANOTHER = "test_byobnet", "test_convnext", "test_efficientnet"


@pytest.fixture(scope="module")
def failed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[dict[str, str], list[str]]]:
    """Load models without weights in one process, and yield their errors and the requests to the hub."""
    data = save(make_model().state_dict())
    names = [*REFUSED, MISSING, CUT_OFF, ANOTHER]
    with serve({weights_of(CUT_OFF): data[: len(data) // 2], weights_of(ANOTHER): data}) as (address, handler):
        handler.refuses, handler.etags = REFUSED, {weights_of(ANOTHER): "a" * 64}
        lines = run(tmp_path_factory.mktemp("empty"), *names, HF_ENDPOINT=address)
        yield dict(zip(names, lines, strict=True)), handler.requests


@pytest.mark.slow
def test_a_model_that_the_hub_does_not_have(failed: tuple[dict[str, str], list[str]]) -> None:
    message, requests = failed[0][MISSING], failed[1]
    assert message.startswith(f"no pretrained weights for {MISSING} (timm/{MISSING}.r160_in1k): ")
    assert "404" in message
    assert "cannot be reached" not in message
    assert message.endswith("use weights=FILE (.safetensors or .pth), or weights='random'")
    assert any(MISSING in what for what in requests)


@pytest.mark.slow
def test_damaged_weights_from_the_hub(failed: tuple[dict[str, str], list[str]]) -> None:
    assert failed[0][CUT_OFF].startswith(
        f"no pretrained weights for {CUT_OFF} (timm/{CUT_OFF}.r160_in1k): Error while deserializing"
    )


@pytest.mark.slow
def test_a_file_that_differs_from_the_hash_of_the_hub_is_noticed(failed: tuple[dict[str, str], list[str]]) -> None:
    message = failed[0][ANOTHER]
    assert message.startswith("weights are damaged in the cache (SHA-256 ")
    assert message.endswith("a" * 64)


@pytest.mark.slow
def test_weights_that_need_a_login(failed: tuple[dict[str, str], list[str]]) -> None:
    for name, (status, _) in REFUSED.items():
        assert failed[0][name] == (
            f"no pretrained weights for {name} (timm/{name}.r160_in1k): the hub refuses access "
            f"({status}). If they exist, accept their terms on the hub's page and log in (`hf auth login`, or "
            "HF_TOKEN); use weights=FILE (.safetensors or .pth), or weights='random'"
        )


TRANSFORMER = """
import json, sys
from repsim.errors import RepsimError
from repsim.extractors.transformers_models import TransformersExtractor
for model in sys.argv[1:]:
    try:
        print(json.dumps(TransformersExtractor(model).provenance()))
    except RepsimError as error:
        print(error)
"""


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """Return the files of a small transformer on the hub; only the branch v1 is named, all others go by the commit."""
    from tests.small_transformers import make_folder  # noqa: PLC0415 - the other tests need no transformers

    folder = make_folder(tmp_path_factory.mktemp("repository") / "bert", "bert")
    files = {f"/me/tiny/resolve/{COMMIT}/{path.name}": path.read_bytes() for path in folder.iterdir()}
    return {**files, "/me/tiny/resolve/v1/config.json": (folder / "config.json").read_bytes()}


@pytest.mark.slow
def test_a_transformer_comes_from_one_commit_of_its_repository_and_then_from_the_cache(
    repository: dict[str, bytes], tmp_path: Path
) -> None:
    with serve(repository) as (address, handler):
        (line,) = run(tmp_path, "hf/me/tiny@v1", script=TRANSFORMER, HF_ENDPOINT=address)
        record = json.loads(line)
        assert (record["revision"], record["transformers_name"]) == (COMMIT, "me/tiny@v1")
        asked = [what for what in handler.requests if "/resolve/" in what]
        downloads = [what.rpartition("/")[2] for what in asked if what.startswith("GET")]
        assert sorted(downloads) == ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"]
        others = {"special_tokens_map.json", "added_tokens.json", "sentence_bert_config.json"}  # asked for, not there
        assert {what.rpartition("/")[2] for what in asked} == {*downloads, *others}
    assert run(tmp_path, "hf/me/tiny@v1", script=TRANSFORMER, HF_ENDPOINT=NOBODY) == [line]
    assert run(tmp_path, "hf/me/tiny@v1", script=TRANSFORMER, HF_HUB_OFFLINE="1") == [line]
    (blob,) = (file for file in tmp_path.glob("hub/*/blobs/*") if file.stat().st_size > 20_000)
    damage(blob)
    assert run(tmp_path, "hf/me/tiny@v1", script=TRANSFORMER, HF_HUB_OFFLINE="1") == [damage_message(blob, blob.name)]


@pytest.mark.slow
def test_a_transformer_that_the_hub_does_not_give(repository: dict[str, bytes], tmp_path: Path) -> None:
    without = {path: content for path, content in repository.items() if not path.endswith("model.safetensors")}
    with serve(without) as (address, handler):
        handler.refuses = {"gated": (403, "GatedRepo"), "tiny/resolve/v2": (404, "RevisionNotFound")}
        names = ("hf/me/tiny@v1", "hf/me/tiny@v2", "hf/me/gated", "hf/me/none")
        lines = run(tmp_path, *names, script=TRANSFORMER, HF_ENDPOINT=address)
    assert lines[0].startswith("hf/me/tiny@v1 has no weights as model.safetensors; use weights=FILE")
    assert lines[1] == "hf/me/tiny has no revision 'v2'"
    assert lines[2].startswith("hf/me/gated cannot be loaded (config.json): the hub refuses access (403). If they ")
    assert lines[3].startswith("hf/me/none cannot be loaded (config.json): ")
    assert "404" in lines[3]


def damage(file: Path) -> None:
    """Flip one bit in the middle, so that size and format stay valid."""
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.chmod(0o644)
    file.write_bytes(content)


def damage_message(file: Path, digest: str) -> str:
    actual = hashlib.sha256(file.read_bytes()).hexdigest()
    return (
        f"weights are damaged in the cache (SHA-256 {actual[:8]}..., expected {digest[:8]}...); "
        f"delete this file, and they will be downloaded again: {file}"
    )


@pytest.mark.slow
def test_a_file_damaged_in_the_hubs_cache_is_noticed(
    hub: Any, loaded: tuple[Path, str, list[str]], tmp_path: Path
) -> None:
    cache, line, _ = loaded
    shutil.copytree(cache, tmp_path / "copy", symlinks=True)
    (blob,) = (file for file in (tmp_path / "copy").glob("hub/*/blobs/*") if len(file.name) == 64)
    damage(blob)
    assert run(tmp_path / "copy", "test_resnet", HF_ENDPOINT=hub[0]) == [damage_message(blob, blob.name)]
    blob.write_bytes(blob.read_bytes()[:1000])  # a file that cannot be read at all has the same error
    assert run(tmp_path / "copy", "test_resnet", HF_HUB_OFFLINE="1") == [damage_message(blob, blob.name)]
    blob.unlink()
    assert run(tmp_path / "copy", "test_resnet", HF_ENDPOINT=hub[0]) == [line]


def by_url(pretrained: bool = False, **options: Any) -> nn.Module:
    """Register a model whose weights are at a URL and not on the hub, like timm's gcvit and senet."""
    options |= {"block": BasicBlock, "layers": (1, 1, 1, 1)}
    model: nn.Module = build_model_with_cfg(ResNet, "by_url", pretrained, **options)
    return model


register_model(by_url)


@pytest.fixture(params=["timm", "torchvision"])
def at(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[str, bytes, Callable[[str], Callable[[], dict[str, Any]]]]:
    """Return a kind of model, a file of its weights, and a function that loads it from an address.

    Only the address is ours: timm and torchvision fetch, compare and keep the file as they do any other.
    """
    for name in [name for name in os.environ if "proxy" in name.lower()]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    kind: str = request.param

    def load(where: str) -> Callable[[], dict[str, Any]]:
        if kind == "torchvision":
            monkeypatch.setattr(models.get_model_weights("shufflenet_v2_x0_5").DEFAULT.value, "url", where)
            return lambda: torchvision_models.load_model("shufflenet_v2_x0_5")[1]
        config = PretrainedCfg(url=where, num_classes=1000, first_conv="conv1", classifier="fc", architecture="by_url")
        monkeypatch.setitem(timm.models._registry._model_pretrained_cfgs, "by_url", config)
        return lambda: load_model("by_url")[1]

    buffer = io.BytesIO()
    model = make_model("by_url") if kind == "timm" else models.get_model("shufflenet_v2_x0_5")
    torch.save(model.state_dict(), buffer)
    return kind, buffer.getvalue(), load


def refusal(load: Callable[[], dict[str, Any]]) -> str:
    with pytest.raises(WeightsError) as caught:
        load()
    return str(caught.value)


def test_weights_at_a_url_are_downloaded_once_and_compared_with_the_hash_in_their_name(
    hub: Any, at: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (address, handler), (_, content, loading) = hub, at
    digest = hashlib.sha256(content).hexdigest()
    handler.files = {f"/w-{digest[:8]}.pth": content}
    load = loading(f"{address}/w-{digest[:8]}.pth")
    first, second = load(), load()
    assert first["weights"] == "pretrained"
    assert second == first
    assert handler.requests == [f"GET /w-{digest[:8]}.pth"]
    assert capsys.readouterr().out == ""  # torch prints a line about downloads, but stdout is for JSON only
    (file,) = tmp_path.glob("hub/checkpoints/*.pth")
    damage(file)
    assert refusal(load) == damage_message(file, digest)


def test_weights_at_a_url_that_have_another_hash_than_their_name(hub: Any, at: Any, tmp_path: Path) -> None:
    (address, handler), (kind, content, loading) = hub, at
    handler.files = {"/w-0badc0de.pth": content}
    message = refusal(loading(f"{address}/w-0badc0de.pth"))
    if kind == "timm":
        assert message == damage_message(tmp_path / "hub" / "checkpoints" / "w-0badc0de.pth", "0badc0de")
        return
    assert message == (  # torch compares the hash during the download, and keeps no file
        "no pretrained weights for torchvision/shufflenet_v2_x0_5 (w-0badc0de.pth): invalid hash value (expected "
        f'"0badc0de", got "{hashlib.sha256(content).hexdigest()}"); use weights=FILE (.safetensors or .pth), or '
        "weights='random'"
    )
    assert not list(tmp_path.glob("hub/checkpoints/*"))


@pytest.mark.parametrize("has_server", [False, True])
def test_a_server_that_is_not_there_or_has_no_such_file(hub: Any, at: Any, has_server: bool) -> None:
    kind, _, loading = at
    message = refusal(loading(f"{hub[0] if has_server else NOBODY}/w-0badc0de.pth"))
    assert ("HTTP Error 404: Not Found; use weights=FILE" in message) is has_server
    assert (
        "they are not in the cache and the" in message and "cannot be reached; use weights=FILE" in message
    ) is not has_server
    assert message.startswith("no pretrained weights for ")
    assert ("w-0badc0de.pth" in message, "\n" in message) == (True, False), kind
