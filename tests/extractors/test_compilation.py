"""Compiled forward passes and channels in the last axis of memory: the same layers, equal except for last digits."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.utils import counters
from torchvision.transforms.functional import pil_to_tensor, resize

from repsim.errors import InvalidInputError, OtherSettingsError
from repsim.extraction import extract
from repsim.extractors import Stream, hooks, open_images
from repsim.extractors.compilation import CompiledPass, compiling, in_channels_last
from repsim.extractors.modules import ModuleExtractor
from repsim.stores.store import ActivationStore
from repsim.study.study_file import read_protocol

Pictures = Callable[..., Path]
CLOSE = 1e-4
"""Relative difference of a layer. Other orders of summation in float32 gave 1e-6 in these networks."""


class Overwriting(nn.Module):
    """Network whose ReLU overwrites the output of the layer before, and that calls one layer twice."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.act = nn.ReLU(inplace=True)
        self.twice = nn.Conv2d(8, 8, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        features: Tensor = self.twice(self.twice(self.act(self.conv(x))))
        return features.mean((2, 3))


class Cheating(nn.Module):
    """Network that computes something else when it is compiled."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(192, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.linear(x.flatten(1))
        return self.linear(x.repeat(1, 48)) if not torch.compiler.is_compiling() else x


def small(picture: Any) -> Tensor:
    pixels: Tensor = pil_to_tensor(resize(picture, (8, 8)))
    return pixels / 255


def difference(one: ActivationStore, other: ActivationStore) -> float:
    """Return the largest difference of the layers of two stores, relative to the largest value of the layer."""
    assert one.layers == other.layers
    return max(float(np.abs(one[x][:] - other[x][:]).max() / np.abs(one[x][:]).max()) for x in one.layers)


def read(extractor: ModuleExtractor, batches: list[Tensor], backend: Any = "eager") -> list[dict[Any, Tensor]]:
    """Return the readouts of a compiled pass over batches, the first of which has the full size."""
    model, readings = extractor.model, []
    with compiling(1), hooks.evaluating(model), hooks.reading(model, extractor.readouts) as values, torch.no_grad():
        run = CompiledPass(extractor, values, batch_size=len(batches[0]), backend=backend)
        for batch in batches:
            run(batch)
            hooks.check(values, extractor.readouts, len(batch))
            readings.append(dict(values))
            values.clear()
    return readings


def test_hooks_are_part_of_one_program_for_full_batches() -> None:
    """Every layer is read, also those that are overwritten or called twice; a short last batch compiles nothing."""
    extractor = ModuleExtractor(Overwriting(), small, layers="conv,twice#1,twice#2")
    batches = [torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(k))[: 4 - k // 2] for k in range(3)]
    counters.clear()
    compiled = read(extractor, batches)
    if torch.__version__ >= "2.14":  # compares versions, not texts; 2.6 makes five programs, others were not tried
        assert counters["stats"]["unique_graphs"] == 1
        assert not counters["graph_break"]
    with hooks.evaluating(extractor.model), hooks.reading(extractor.model, extractor.readouts) as values:
        for batch, readings in zip(batches, compiled, strict=True):
            with torch.no_grad():
                extractor.model(batch)
            assert readings.keys() == values.keys()
            for key, value in values.items():
                torch.testing.assert_close(readings[key], value, rtol=CLOSE, atol=1e-6)


def test_a_later_pass_with_other_layers_has_its_own_program() -> None:
    module, batch = Overwriting(), torch.randn(4, 3, 8, 8)
    for layers in ("conv", "twice#2", "conv,twice#1"):
        extractor = ModuleExtractor(module, small, layers=layers)
        (readings,) = read(extractor, [batch])
        assert readings.keys() == extractor.readouts.keys()


def test_a_program_that_computes_something_else_is_refused() -> None:
    extractor = ModuleExtractor(Cheating(), small, name="cheating", layers="linear#2")
    with pytest.raises(InvalidInputError, match="cheating does not compute the same when compiled.*leave out compile"):
        read(extractor, [torch.rand(4, 3, 8, 8)])


def test_an_error_of_the_compiler_is_one_line() -> None:
    def fails(*_: Any) -> Any:
        raise RuntimeError("no such instruction\nand more lines")

    extractor = ModuleExtractor(Overwriting(), small, name="small", layers="conv")
    with pytest.raises(InvalidInputError, match="small cannot be compiled: .*; leave out compile=True$") as error:
        read(extractor, [torch.rand(4, 3, 8, 8)], fails)
    assert "\n" not in str(error.value)


def test_channels_last_changes_the_weights_only_inside_the_block() -> None:
    module = Overwriting()
    weights = {name: weight.clone() for name, weight in module.state_dict().items()}
    with in_channels_last(module):
        assert module.conv.weight.is_contiguous(memory_format=torch.channels_last)
        assert torch.equal(module.conv.weight, weights["conv.weight"])
    assert module.conv.weight.is_contiguous()
    assert all(torch.equal(weight, weights[name]) for name, weight in module.state_dict().items())


def test_channels_last_is_recorded_and_never_continues_another_store(tmp_path: Path, pictures: Pictures) -> None:
    folder = pictures(6)
    plain = extract("test_resnet", folder, tmp_path, weights="random", batch_size=4)
    assert not {"channels_last", "compile"} & plain.provenance.keys()
    for option in ("channels_last", "compile"):
        with pytest.raises(OtherSettingsError, match=f"{option}: nothing before, true now"):
            extract(
                "test_resnet", folder, tmp_path, weights="random", batch_size=4, compile=option == "compile",
                channels_last=option == "channels_last",
            )  # fmt: skip
    last = extract(
        "test_resnet", folder, tmp_path / "last", weights="random", batch_size=4, channels_last=True,
        readout="mean,flatten",
    )  # fmt: skip
    assert last.provenance["channels_last"] is True
    whole = extract("test_resnet", folder, tmp_path / "plain", weights="random", batch_size=4, readout="mean,flatten")
    assert difference(whole, last) < CLOSE
    with pytest.raises(OtherSettingsError, match="channels_last: true before, nothing now"):
        extract("test_resnet", folder, tmp_path / "last", weights="random", batch_size=4, readout="mean,flatten")


def test_models_that_cannot_profit_are_refused(tmp_path: Path) -> None:
    rows = np.random.default_rng(0).normal(size=(8, 5)).astype(np.float32)
    with pytest.raises(InvalidInputError, match="reads no pictures.*leave out channels_last=True"):
        extract(nn.Sequential(nn.Linear(5, 3)), rows, tmp_path, layers="0", channels_last=True)
    texts = torch.utils.data.DataLoader(
        cast("Any", [{"x": torch.ones(3, 5), "attention_mask": torch.ones(3)} for _ in range(4)])
    )
    with pytest.raises(InvalidInputError, match="different numbers of tokens.*leave out compile=True"):
        extract(
            nn.Sequential(nn.Linear(5, 3)), texts, tmp_path, layers="0", compile=True,
            forward=lambda module, batch: module(batch["x"]),
        )  # fmt: skip


def test_a_study_file_has_both_options(tmp_path: Path) -> None:
    file = tmp_path / "study.yaml"
    file.write_text("models: [test_resnet, test_vit]\ndata: digits\nchannels_last: true\ncompile: true\n")
    protocol, _ = read_protocol(file)
    assert (protocol.channels_last, protocol.compile) == (True, True)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["test_resnet", "test_vit"])
def test_compiled_networks_agree_and_resume_to_the_same_bits(name: str, tmp_path: Path, pictures: Pictures) -> None:
    """The compiler of torch itself, on a ResNet and a ViT with a short last batch."""
    folder = pictures(10)
    options: Any = {"weights": "random", "batch_size": 4, "workers": 0}
    plain = extract(name, folder, tmp_path / "plain", **options)
    compiled = extract(name, folder, tmp_path / "compiled", compile=True, **options)
    assert compiled.provenance["compile"] is True
    assert 0 < difference(plain, compiled) < CLOSE

    class StoppedError(Exception):
        pass

    def stop(done: int, _: int) -> None:
        if done >= 4:
            raise StoppedError

    with pytest.raises(StoppedError):
        extract(name, folder, tmp_path / "resumed", compile=True, progress=stop, **options)
    with pytest.raises(OtherSettingsError, match="compile: true before, nothing now"):
        extract(name, folder, tmp_path / "resumed", **options)
    assert difference(extract(name, folder, tmp_path / "resumed", compile=True, **options), compiled) == 0


@pytest.mark.slow
def test_a_machine_without_a_compiler_is_named(tmp_path: Path) -> None:
    program = (
        "import sys, repsim; repsim.extract('test_vit', 'digits', sys.argv[1], weights='random', limit=4, "
        "batch_size=2, compile=True, progress=False)"
    )
    env = os.environ | {"CXX": str(tmp_path / "missing"), "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "cache")}
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)], env=env, capture_output=True, text=True, check=False
    )
    assert (
        "test_vit+random-seed0 cannot be compiled: torch.compile finds no C++ compiler" in done.stderr.splitlines()[-1]
    )
    assert "leave out compile=True" in done.stderr.splitlines()[-1]


def test_streams_run_eagerly_without_the_options() -> None:
    extractor = ModuleExtractor(Overwriting(), small, layers="conv")
    counters.clear()
    assert len(list(extractor.stream(open_images("digits"), range(4), Stream(batch_size=2)))) == 2
    assert not counters["stats"]
