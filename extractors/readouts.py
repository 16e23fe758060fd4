"""Readouts: convert a layer's output (feature map, tokens, vector) to one vector of p values per sample.

This module has all readouts except `gram:B` and `sketch:M`, which are in compressed.py. Every readout is computed on
the device inside the hook, in float32, and its result owns its memory.
"""

from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

from repsim.errors import InvalidInputError, UnknownNameError
from repsim.extractors.base import LayerSpec, OneRow, Readout
from repsim.extractors.compressed import BlockGram, Sketch
from repsim.extractors.tokens import left_aligned, token_at
from repsim.labels import INPUT, PREDICTION, VALUES

NAMES = ("mean", "max", "cls", "last", "flatten", "grid:K", "gram:B", "sketch:M")


def get(spec: str) -> Readout:
    """Return the readout of a spec, one of `NAMES`; ``tokens:flatten`` is another name of ``flatten``.

    >>> get("grid:2").name, get("gram:256").block
    ('grid:2', 256)
    """
    name, _, option = spec.partition(":")
    if name == "grid":
        return Grid(_number(spec, option, "K", 1, 4))
    if name == "gram":
        return BlockGram(_number(spec, option, "B", 4, 256))
    if name == "sketch":
        size, colon, seed = option.partition(":")
        number = _number(spec, size, "M", 1, 4096)
        return Sketch(number, _number(spec, seed, "M:SEED", 0, "4096:1") if colon else 0)
    spec = spec.removeprefix("tokens:")
    simple: tuple[Readout, ...] = (Pooled("mean"), Pooled("max"), ClassToken(), LastToken(), Flatten())
    for readout in simple:
        if spec == readout.name:
            return readout
    raise UnknownNameError("readout", spec, NAMES)


INPUT_PIXELS = 8
"""Height and width to which the input is averaged; docs/store-format.md has the measurement behind this number."""


MOST_VALUES = 4096
"""Largest number of values of an input that is stored as it is."""


def _number(spec: str, text: str, letter: str, least: int, example: int | str) -> int:
    name = spec.partition(":")[0]
    if not (text.isascii() and text.isdecimal()) or int(text) < least:
        raise InvalidInputError(
            f"readout {spec!r}: write {name}:{letter} with an integer {letter.rpartition(':')[2]} of at least "
            f"{least}, e.g. {name}:{example}"
        )
    return int(text)


def get_several(specs: str) -> tuple[Readout, ...]:
    """Return the readouts of a list such as ``mean,cls``, without repetitions."""
    readouts = tuple(get(s.strip()) for s in specs.split(",") if s.strip())
    if not readouts:
        raise InvalidInputError("no readout is named; the default is mean")
    return tuple({r.name: r for r in readouts}.values())


def plan(
    layers: tuple[LayerSpec, ...], readouts: tuple[Readout, ...]
) -> tuple[dict[tuple[str, str], tuple[LayerSpec, Readout]], list[str]]:
    """Return all pairs of a layer and a readout that exist, and notes about those that do not.

    A readout that none of the layers has is an error. If only some layers have it (``cls`` is not defined for the patch
    embedding among the blocks of a ViT), it is left out for the others, and a note lists them.
    """
    wanted: dict[tuple[str, str], tuple[LayerSpec, Readout]] = {}
    notes: list[str] = []
    for readout in readouts:
        missing: list[tuple[LayerSpec, InvalidInputError]] = []
        real = 0
        for layer in layers:
            try:
                readout.shape(layer)
            except InvalidInputError as error:
                missing.append((layer, error))
                continue
            real += layer.axes != "NC"
            wanted[layer.name, readout.name] = (layer, readout)
        if missing and not real:
            raise missing[0][1]
        if missing:
            names = ", ".join(layer.name for layer, _ in missing)
            notes.append(f"readout {readout.name} is left out for layers that do not have it: {names}")
    order = {layer.name: i for i, layer in enumerate(layers)}
    return dict(sorted(wanted.items(), key=lambda item: order[item[0][0]])), notes


def _vector(output: Tensor) -> Tensor:
    """Return the flattened output (b, p) as a float32 copy."""
    return output.flatten(1).to(torch.float32, copy=True)


def _spatial(layer: LayerSpec, readout: str) -> tuple[int, ...]:
    """Return the axes to reduce over; the batch is axis 0."""
    if layer.axes == "other":
        raise InvalidInputError(
            f"readout {readout} of layer {layer.name!r}: an output of shape {layer.shape} has no spatial axes "
            "to reduce; use flatten"
        )
    if layer.prefix_tokens is None:
        raise InvalidInputError(
            f"readout {readout} of layer {layer.name!r}: patch tokens cannot be distinguished from class and register "
            f"tokens among {layer.shape[0]} tokens; use flatten"
        )
    return {"NCHW": (2, 3), "NHWC": (1, 2), "NLC": (1,), "NCL": (2,), "NTC": (1,)}[layer.axes]


@dataclass(frozen=True)
class Pooled(OneRow):
    """Mean or maximum over all positions of a feature map, over the patch tokens, or over the real tokens of a text.

    Class and register tokens of pictures are left out. Of a text all tokens that are no padding count, special tokens
    such as its class token too.
    """

    name: str

    def shape(self, layer: LayerSpec) -> tuple[int, ...]:
        """Return the shape of one row: (channels,)."""
        if layer.axes == "NC":
            return (prod(layer.shape),)
        _spatial(layer, self.name)
        return (layer.width,)

    def __call__(self, output: Tensor, layer: LayerSpec, mask: Tensor | None = None) -> Tensor:
        """Return an array (b, channels). Sums are in float32, as half precision loses digits over many positions."""
        if layer.axes == "NC":
            return _vector(output)
        if mask is not None:
            padding = ~mask[:, :, None]
            if self.name == "max":
                return output.float().masked_fill(padding, -torch.inf).amax(1)
            return output.float().masked_fill(padding, 0).sum(1) / mask.sum(1, keepdim=True)
        axes = _spatial(layer, self.name)
        patches = output[:, layer.prefix_tokens :] if layer.axes == "NLC" else output
        if self.name == "mean":
            return patches.mean(axes, dtype=torch.float32)
        return patches.amax(axes).float()


@dataclass(frozen=True)
class ClassToken(OneRow):
    """The class token of a transformer: the first token, or the first real token of a text."""

    name: str = "cls"

    def shape(self, layer: LayerSpec) -> tuple[int, ...]:
        """Return the shape of one row: (channels,)."""
        if layer.axes == "NC":
            return (prod(layer.shape),)
        if not layer.class_token:
            raise InvalidInputError(
                f"readout cls of layer {layer.name!r}: there is no class token in an output of axes {layer.axes}, "
                f"shape {layer.shape}; use mean"
            )
        return (layer.width,)

    def __call__(self, output: Tensor, layer: LayerSpec, mask: Tensor | None = None) -> Tensor:
        """Return token 0 as an array (b, channels): class tokens come first in every timm model."""
        if mask is not None:
            return _vector(token_at(output, mask.int().argmax(1)))
        return _vector(output if layer.axes == "NC" else output[:, 0])


@dataclass(frozen=True)
class LastToken(OneRow):
    """The last real token of a sequence: in a causal model, the only one that has seen all others."""

    name: str = "last"

    def shape(self, layer: LayerSpec) -> tuple[int, ...]:
        """Return the shape of one row: (channels,)."""
        if layer.axes == "NC":
            return (prod(layer.shape),)
        if layer.axes != "NTC":
            raise InvalidInputError(
                f"readout last of layer {layer.name!r}: an output of axes {layer.axes}, shape {layer.shape} is no "
                "sequence of tokens with a mask; use mean"
            )
        return (layer.width,)

    def __call__(self, output: Tensor, layer: LayerSpec, mask: Tensor | None = None) -> Tensor:
        """Return the last token that is no padding as an array (b, channels)."""
        if layer.axes == "NC":
            return _vector(output)
        assert mask is not None, "layers of tokens have a mask"
        positions = torch.arange(mask.shape[1], device=mask.device)
        return _vector(token_at(output, (mask * positions).argmax(1)))


@dataclass(frozen=True)
class Flatten(OneRow):
    """All values of the output, in the order of the layer's axes.

    Of tokens: those that are no padding in their order, and zeros up to the largest number of tokens.
    """

    name: str = "flatten"

    def shape(self, layer: LayerSpec) -> tuple[int, ...]:
        """Return the shape of the layer's output for one sample."""
        return layer.shape

    def __call__(self, output: Tensor, layer: LayerSpec, mask: Tensor | None = None) -> Tensor:
        """Return a copy of the output, of shape (b, p)."""
        return _vector(output if mask is None else left_aligned(output, mask, layer))


@dataclass(frozen=True)
class Grid(OneRow):
    """Adaptive average to K x K positions, flattened as (channels, K, K), for feature maps and grids of tokens."""

    k: int

    @property
    def name(self) -> str:
        """Spec string: ``grid:K``."""
        return f"grid:{self.k}"

    def shape(self, layer: LayerSpec) -> tuple[int, ...]:
        """Return the shape of one row: (channels, K, K), or (channels,) for a layer without positions."""
        if layer.axes == "NC":
            return (prod(layer.shape),)
        _spatial(layer, self.name)
        if layer.grid is None:
            raise InvalidInputError(
                f"readout {self.name} of layer {layer.name!r}: its positions form no grid; use flatten"
            )
        return (layer.width, self.k, self.k)

    def __call__(self, output: Tensor, layer: LayerSpec, mask: Tensor | None = None) -> Tensor:  # noqa: ARG002
        """Return the averages as an array (b, channels K K)."""
        if layer.axes == "NC":
            return _vector(output)
        if layer.axes == "NHWC":
            output = output.permute(0, 3, 1, 2)
        elif layer.axes in {"NLC", "NCL"}:
            assert layer.grid is not None, "shape() refuses such a layer"
            patches = output[:, layer.prefix_tokens :].transpose(1, 2) if layer.axes == "NLC" else output
            output = patches.reshape(*patches.shape[:2], *layer.grid)
        return _vector(adaptive_avg_pool2d(output.float(), self.k))


@dataclass(frozen=True)
class Pixels(OneRow):
    """The model's input, averaged to at most 8 x 8 pixels per channel. It is the control for similarity of inputs."""

    name: str = INPUT[1]

    def shape(self, layer: LayerSpec) -> tuple[int, ...]:
        """Return the shape of one row: (channels h w,), with h and w at most 8."""
        channels, height, width = layer.shape
        return (channels * min(INPUT_PIXELS, height) * min(INPUT_PIXELS, width),)

    def __call__(self, output: Tensor, layer: LayerSpec, mask: Tensor | None = None) -> Tensor:  # noqa: ARG002
        """Return the averages as an array (b, channels h w), computed in float32."""
        _, height, width = layer.shape
        return _vector(adaptive_avg_pool2d(output.float(), (min(INPUT_PIXELS, height), min(INPUT_PIXELS, width))))


@dataclass(frozen=True)
class Values(OneRow):
    """The model's input as it is, if it has at most `MOST_VALUES` numbers: the control for similarity of inputs."""

    name: str = VALUES[1]

    def shape(self, layer: LayerSpec) -> tuple[int, ...]:
        """Return the shape of the input of one sample."""
        return layer.shape

    def __call__(self, output: Tensor, layer: LayerSpec, mask: Tensor | None = None) -> Tensor:  # noqa: ARG002
        """Return a copy of the input, of shape (b, p), in float32."""
        return _vector(output)


@dataclass(frozen=True)
class Prediction(OneRow):
    """The number of the largest output of a classifier, which is the class that it predicts."""

    name: str = PREDICTION[1]

    def shape(self, layer: LayerSpec) -> tuple[int, ...]:  # noqa: ARG002 - the same for every classifier
        """Return the shape of one row: (1,)."""
        return (1,)

    def __call__(
        self,
        output: Tensor,
        layer: LayerSpec,  # noqa: ARG002 - the same for every classifier
        mask: Tensor | None = None,  # noqa: ARG002 - the same
    ) -> Tensor:
        """Return the numbers as an array (b, 1), the first of equal outputs; float32 holds every integer to 2^24."""
        return output.argmax(1, keepdim=True).float()
