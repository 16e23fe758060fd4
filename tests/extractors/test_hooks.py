"""Tracing and reading of small networks whose values can be computed by hand."""

from collections.abc import Mapping

import pytest
import torch
from torch import Tensor, nn

from repsim.errors import InvalidInputError
from repsim.extractors.base import LayerSpec, Readout
from repsim.extractors.hooks import check, reading, trace
from repsim.extractors.layers import Geometry
from repsim.extractors.readouts import Flatten, Pooled


class Shift(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x - 1


class Pair(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, dict[str, Tensor], Tensor]:
        return x * 2, {"index": torch.arange(len(x)), "more": x * 3}, x.sum(0)


class Windows(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, x])


class Odd(nn.Module):
    """Repeats a module, returns several tensors, overwrites in place, and leaves a module out."""

    def __init__(self) -> None:
        super().__init__()
        self.shift, self.relu, self.pair, self.windows = Shift(), nn.ReLU(inplace=True), Pair(), Windows()
        self.unused, self.head = nn.Identity(), nn.Flatten()

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.shift(x))
        x = self.relu(self.shift(x))
        first, _, _ = self.pair(x)
        self.windows(first)
        out: Tensor = self.head(first.mul_(10))
        return out


Wanted = dict[tuple[str, str], tuple[LayerSpec, Readout]]


def wanted(model: nn.Module, readout: Readout, shape: tuple[int, ...] = (1, 2, 2)) -> Wanted:
    seen = trace(model, torch.randn(3, *shape), ["head"])
    geometry = Geometry(model, (2, 2))
    return {(traced.name, readout.name): (geometry.describe(traced), readout) for traced in seen.tensors}


def test_a_trace_names_every_call_and_every_tensor_and_says_what_it_cannot_read() -> None:
    seen = trace(Odd(), torch.randn(3, 1, 2, 2), ["head"])
    names = ["shift#1", "relu#1", "shift#2", "relu#2", "pair[0]", "pair[1]", "pre_logits", "head"]
    assert [traced.name for traced in seen.tensors] == names
    assert seen.left_out == {
        "unused": "is never called in the forward pass",
        "windows": "returns shape (6, 1, 2, 2) for 3 samples (its first axis is not the samples)",
    }


@pytest.mark.parametrize("readout", [Flatten(), Pooled("max")], ids=["flatten", "max"])
def test_each_call_and_each_tensor_is_read_before_it_is_overwritten(readout: Readout) -> None:
    model = Odd()
    x = torch.tensor([[0.0, 1.5, 3.0, 5.0], [9.0, -2.0, 1.0, 2.0]]).reshape(2, 1, 2, 2)
    one = x - 1
    two = one.clamp(min=0) - 1
    last = two.clamp(min=0)
    expected = {
        "shift#1": one,
        "relu#1": one.clamp(min=0),
        "shift#2": two,
        "relu#2": last,
        "pair[0]": last * 2,
        "pair[1]": last * 3,
        "pre_logits": last * 20,
        "head": last * 20,
    }
    with torch.no_grad(), reading(model, wanted(model, readout)) as values:
        for _ in range(2):  # a second pass starts from nothing
            model(x.clone())
            assert {name for name, _ in values} == set(expected)
            for (name, _), got in values.items():
                target = expected[name].flatten(1)
                unpooled = readout.name == "flatten" or name == "head"
                torch.testing.assert_close(got, target if unpooled else target.amax(1, keepdim=True), rtol=0, atol=0)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


class Fickle(nn.Module):
    """A network whose modules and shapes depend on its input."""

    def __init__(self) -> None:
        super().__init__()
        self.always, self.sometimes = nn.Identity(), nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        if x.max() > 100:
            return x
        x = self.always(x[:, : 1 if x.max() > 50 else None])
        out: Tensor = self.sometimes(x.sum(0, keepdim=True) if x.min() < -50 else x)
        return out


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (200.0, "layer 'always' was not called in this forward pass, but in the trace it was"),
        (
            60.0,
            r"layer 'always' gave shape \(1,\), but \(4,\) in the trace: the shape of its output depends on the input",
        ),
        (-60.0, "layer 'sometimes' gave 1 rows for 5 samples"),
    ],
    ids=["not reached", "another shape", "no rows"],
)
def test_a_pass_that_differs_from_the_trace_is_noticed(value: float, message: str) -> None:
    model = Fickle()
    readers: Mapping[tuple[str, str], tuple[LayerSpec, Readout]] = wanted(model, Flatten(), (4,))

    def passes(*fills: float) -> None:
        with reading(model, readers) as values:
            for fill in fills:
                model(torch.full((5, 4), fill))
                check(values, readers, 5)

    passes(0.0, 1.0)
    with pytest.raises(InvalidInputError, match=message):
        passes(0.0, value)


def test_reading_does_not_change_what_the_model_computes() -> None:
    model = Odd()
    x = torch.randn(2, 1, 2, 2)
    plain = model(x.clone())
    with reading(model, wanted(model, Flatten())):
        assert torch.equal(model(x.clone()), plain)
