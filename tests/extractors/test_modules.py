"""Extractors of torch modules: their layers, their errors, and the state of the module afterwards."""

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from torch import Tensor, nn
from torchvision import transforms

from repsim.errors import InvalidInputError
from repsim.extractors import Stream, open_images
from repsim.extractors.modules import ModuleExtractor
from repsim.extractors.timm_models import TimmExtractor
from repsim.extractors.weights import fingerprint
from repsim.testing import ExtractorContract

TO_TENSOR = transforms.Compose([transforms.Resize((16, 16)), transforms.ToTensor()])


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width)
        self.dropout, self.relu = nn.Dropout(0.5), nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.dropout(self.relu(self.norm(self.conv(x))))
        return out


class Net(nn.Module):
    """A network without timm's attributes: no feature_info, no get_classifier, no pretrained_cfg."""

    def __init__(self, tail: Callable[[Tensor], Tensor] = lambda x: x) -> None:
        super().__init__()
        self.first, self.layers = nn.Conv2d(3, 6, 4, 4), nn.ModuleList([Block(6), Block(6)])
        self.gate, self.hidden, self.out = nn.Linear(6, 6), nn.Linear(6, 4), nn.Linear(4, 6)
        self.tail = tail

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        for block in self.layers:
            x = block(x)
        x = x.mean((2, 3))
        return self.tail(self.out(self.hidden(x * self.gate(x))))


def net(**options: Any) -> Net:
    torch.manual_seed(3)
    return Net(**options).eval()


def names(extractor: ModuleExtractor) -> list[str]:
    return [layer.name for layer in extractor.layers()]


class TestModule(ExtractorContract):
    def extractor(self) -> ModuleExtractor:
        return ModuleExtractor(net(), TO_TENSOR, readout="mean,grid:2")


def test_layers_and_numbers_of_a_module() -> None:
    model, images = net(), open_images("digits")
    extractor = ModuleExtractor(model, TO_TENSOR)
    assert names(extractor) == ["first", "layers.0", "layers.1", "pre_logits"]
    assert (extractor.name, extractor.notes) == ("net", [])
    (batch,) = extractor.stream(images, range(5), Stream())
    with torch.no_grad():
        x = model.first(torch.stack([TO_TENSOR(images.load(i)) for i in range(5)]))
        expected = {"first": x.mean((2, 3))}
        for i, block in enumerate(model.layers):
            x = x + torch.relu(block.norm(block.conv(x)))  # type: ignore[operator]
            expected[f"layers.{i}"] = x.mean((2, 3))
        expected["pre_logits"] = model.hidden(x.mean((2, 3)) * model.gate(x.mean((2, 3))))
    for name, value in expected.items():
        torch.testing.assert_close(batch.values[name, "mean"], value, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("tail", "has_logits"),
    [
        (lambda x: x, True),  # the model's output is the linear map's, the same object
        (lambda x: x.softmax(1), True),  # the last linear map's output has the shape of the model's
        (lambda x: x.sum(1, keepdim=True), False),  # no linear map made this
        (lambda x: {"logits": x, "aux": x * 2}, True),
        (lambda x: {"label": x.argmax(1)}, False),
    ],
    ids=["identity", "softmax", "sum", "dictionary", "no tensor"],
)
def test_pre_logits_is_what_the_last_linear_map_gets(tail: Any, has_logits: bool) -> None:
    extractor = ModuleExtractor(net(tail=tail), TO_TENSOR, layers="all")
    heads = [layer for layer in extractor.layers() if layer.site.side == "input"]
    assert [(layer.name, layer.site.module, layer.shape) for layer in heads] == (
        [("pre_logits", "out", (4,))] if has_logits else []
    )


class Aside(nn.Module):
    """A network that returns the output of a linear map that is not the last to run."""

    def __init__(self) -> None:
        super().__init__()
        self.head, self.other = nn.Linear(48, 5), nn.Linear(48, 5)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(x.flatten(1))
        self.other(x.flatten(1))
        return out


def test_pre_logits_goes_by_identity_before_order() -> None:
    transform = transforms.Compose([transforms.Resize((4, 4)), transforms.ToTensor()])
    extractor = ModuleExtractor(Aside(), transform, layers="all")
    assert [layer.site.module for layer in extractor.layers() if layer.name == "pre_logits"] == ["head"]


def test_a_timm_module_brings_its_own_transform() -> None:
    model = timm.create_model("digits_resnet.seed0", pretrained=True).eval()
    ours, theirs = ModuleExtractor(model), TimmExtractor("digits_resnet.seed0")
    assert names(ours) == names(theirs)
    assert ours.preprocessing == theirs.preprocessing
    assert ours.provenance()["weights_sha256"] == theirs.provenance()["weights_sha256"]
    images = open_images("digits")
    for ours_batch, theirs_batch in zip(*(e.stream(images, range(4), Stream()) for e in (ours, theirs)), strict=True):
        for key, value in theirs_batch.values.items():
            assert torch.equal(ours_batch.values[key], value), key


def test_every_part_of_the_module_keeps_its_mode() -> None:
    model = net().train()
    model.layers[0].eval()
    modes = [module.training for module in model.modules()]
    assert len(set(modes)) == 2
    before = fingerprint(model)
    extractor = ModuleExtractor(model, TO_TENSOR)
    assert [module.training for module in model.modules()] == modes
    running = extractor.stream(open_images("digits"), range(4), Stream(batch_size=2))
    first = next(running)
    assert not any(module.training for module in model.modules())
    running.close()  # type: ignore[attr-defined]
    assert [module.training for module in model.modules()] == modes
    assert fingerprint(model) == before  # no batch statistics were updated
    (again,) = ModuleExtractor(net(), TO_TENSOR).stream(open_images("digits"), range(2), Stream())
    for key, value in again.values.items():
        assert torch.equal(first.values[key], value), key


def hooked(model: nn.Module) -> list[nn.Module]:
    return [m for m in model.modules() if m._forward_hooks or m._forward_pre_hooks]


class Breaks(Net):
    """A network that fails from a certain call on."""

    calls, last = 0, 99

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        if self.calls > self.last:
            self.layers[1](x[:, :1])  # one channel where six are expected
        return super().forward(x)


@pytest.mark.parametrize("last", [0, 1, 2], ids=["tracing", "first batch", "second batch"])
def test_nothing_is_left_on_a_module_that_fails(last: int) -> None:
    model = Breaks().train()
    model.last = last
    own = model.layers[0].register_forward_hook(lambda *_: None)
    with pytest.raises((InvalidInputError, RuntimeError), match="to have 6 channels, but got 1 channels"):
        list(ModuleExtractor(model, TO_TENSOR).stream(open_images("digits"), range(4), Stream(batch_size=2)))
    assert model.calls == last + 1
    assert hooked(model) == [model.layers[0]]
    own.remove()
    assert not hooked(model)
    assert all(module.training for module in model.modules())


def test_a_module_can_be_trained_after_it_was_read() -> None:
    """Tensors that a module caches while it is read (a position embedding) can be used in a later backward pass."""

    class Caches(Net):
        cache: Tensor | None = None

        def forward(self, x: Tensor) -> Tensor:
            self.cache = x.mean() if self.cache is None else self.cache
            return super().forward(x) * self.cache

    model = Caches()
    list(ModuleExtractor(model, TO_TENSOR).stream(open_images("digits"), range(2), Stream()))
    assert model.cache is not None
    model(torch.randn(2, 3, 16, 16)).sum().backward()
    assert model.out.weight.grad is not None


def colourless(picture: Image.Image) -> Tensor:
    return torch.from_numpy(np.asarray(picture)[None, :, :, 0] / 255).float()


@pytest.mark.parametrize(
    ("transform", "message"),
    [
        (None, r"^a Net has no preprocessing of its own: pass transform=, a function from a PIL picture to a"),
        (colourless, r"^transform must return a tensor \(3, H, W\) for a picture, got shape \(1, 256, 320\)$"),
        (lambda picture: picture, r"^transform must return a tensor \(3, H, W\) for a picture, got a Image$"),
        (
            transforms.ToTensor(),
            r"^transform returns tensors of different sizes \(\(256, 320\), \(320, 256\), .* fixed \(H",
        ),
        (lambda picture: picture.crop("x"), r"^transform fails on an RGB picture of 320 x 256 pixels: "),
        (
            transforms.Compose([transforms.Resize((2, 2)), transforms.ToTensor()]),
            r"^net cannot run on a batch \(3, 3, 2, 2\) of torch\.float32, the output of its transform: Calc",
        ),
    ],
    ids=["none", "grey", "no tensor", "unequal", "raises", "too small"],
)
def test_a_transform_that_does_not_fit_is_refused_at_once(transform: Any, message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        ModuleExtractor(net(), transform)


def test_provenance_says_what_was_read_and_holds_no_address() -> None:
    model = net()
    record = ModuleExtractor(model, lambda p: TO_TENSOR(p) * 1, provenance={"run": 7}).provenance()
    assert json.loads(json.dumps(record)) == record
    assert record["class"] == f"{Net.__module__}.Net"
    assert (record["extractor"], record["run"]) == ("module", 7)
    assert record["weights_sha256"] == fingerprint(model)
    assert record["transform"].endswith("<lambda>>")
    assert "0x" not in json.dumps(record)
    assert "Resize(size=(16, 16)" in ModuleExtractor(model, TO_TENSOR).provenance()["transform"]
    extractor = ModuleExtractor(model, TO_TENSOR)
    with torch.no_grad():
        model.out.bias.add_(1)
    assert extractor.provenance()["weights_sha256"] != record["weights_sha256"]  # the current weights


def test_a_name_of_ones_own() -> None:
    assert ModuleExtractor(net(), TO_TENSOR, name="runs/a:3").name == "runs_a_3"


def test_two_transforms_with_one_text_are_not_taken_for_equal() -> None:
    first, second = (transforms.Lambda(lambda p, size=s: TO_TENSOR(p) * size) for s in (1, 2))
    assert str(first) == str(second)
    model = net()
    keys = {ModuleExtractor(model, t).preprocessing for t in (first, first, second)}
    assert len(keys) == 2
