"""Readouts: how a layer's output (feature map, tokens, vector) becomes one vector of p values a sample.

`gram:B` and `sketch:M` are in compressed.py; the others are here.

Every readout is computed on the device inside the hook, in float32, and owns its memory.
"""

from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

from repsim.errors import InvalidInputError, UnknownNameError
from repsim.extractors.base import LayerSpec, Readout
from repsim.extractors.compressed import BlockGram, Sketch
from repsim.labels import INPUT

NAMES = ("mean", "max", "cls", "flatten", "grid:K", "gram:B", "sketch:M")


def get(spec: str) -> Readout:
    """Make a readout from its spec: ``mean``, ``max``, ``cls``, ``flatten``, ``grid:K``, ``gram:B`` or ``sketch:M``.

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
    simple: tuple[Readout, ...] = (Pooled("mean"), Pooled("max"), ClassToken(), Flatten())
    for readout in simple:
        if spec == readout.name:
            return readout
    raise UnknownNameError("readout", spec, NAMES)


INPUT_PIXELS = 8
"""Of the input so many pixels a side are kept: docs/store-format.md has the measurement."""


def _number(spec: str, text: str, letter: str, least: int, example: int | str) -> int:
    name = spec.partition(":")[0]
    if not (text.isascii() and text.isdecimal()) or int(text) < least:
        raise InvalidInputError(
            f"readout {spec!r}: write {name}:{letter} with a whole number {letter.rpartition(':')[2]} of at least "
            f"{least}, e.g. {name}:{example}"
        )
    return int(text)


def get_several(specs: str) -> tuple[Readout, ...]:
    """Read a list such as ``mean,cls``."""
    readouts = tuple(get(s.strip()) for s in specs.split(",") if s.strip())
    if not readouts:
        raise InvalidInputError("no readout is named; the default is mean")
    return tuple({r.name: r for r in readouts}.values())


def plan(
    layers: tuple[LayerSpec, ...], readouts: tuple[Readout, ...]
) -> tuple[dict[tuple[str, str], tuple[LayerSpec, Readout]], list[str]]:
    """Pair every layer with every readout that it has; say which pairs do not exist.

    A readout that none of the layers has is an error. One that only some have (``cls`` of a patch embedding among the
    blocks of a ViT) is left out there, and said.
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
            notes.append(f"readout {readout.name} is left out where there is none: {names}")
    order = {layer.name: i for i, layer in enumerate(layers)}
    return dict(sorted(wanted.items(), key=lambda item: order[item[0][0]])), notes


def _vector(output: Tensor) -> Tensor:
    """A layer that is one vector a sample already reads the same in every way."""
    return output.flatten(1).to(torch.float32, copy=True)


def _spatial(layer: LayerSpec, readout: str) -> tuple[int, ...]:
    """The axes to reduce over, counting the batch as axis 0."""
    if layer.axes == "other":
        raise InvalidInputError(
            f"readout {readout} of layer {layer.name!r}: an output of shape {layer.shape} has no spatial axes "
            "to reduce; use flatten"
        )
    if layer.prefix_tokens is None:
        raise InvalidInputError(
            f"readout {readout} of layer {layer.name!r}: cannot tell patch tokens from class and register tokens in "
            f"{layer.shape[0]} tokens; use flatten"
        )
    return {"NCHW": (2, 3), "NHWC": (1, 2), "NLC": (1,), "NCL": (2,)}[layer.axes]


@dataclass(frozen=True)
class Pooled:
    """Mean or maximum over all positions of a feature map, or over the patch tokens (no class, no register tokens)."""

    name: str

    @property
    def block(self) -> int:
        """Each sample is a row of its own."""
        return 1

    def shape(self, layer: LayerSpec) -> tuple[int, ...]:
        """(channels,)."""
        if layer.axes == "NC":
            return (prod(layer.shape),)
        _spatial(layer, self.name)
        return (layer.width,)

    def __call__(self, output: Tensor, layer: LayerSpec) -> Tensor:
        """Reduce in float32: a half-precision sum over thousands of positions loses digits."""
        if layer.axes == "NC":
            return _vector(output)
        axes = _spatial(layer, self.name)
        patches = output[:, layer.prefix_tokens :] if layer.axes == "NLC" else output
        if self.name == "mean":
            return patches.mean(axes, dtype=torch.float32)
        return patches.amax(axes).float()


@dataclass(frozen=True)
class ClassToken:
    """The class token of a transformer."""

    name: str = "cls"

    @property
    def block(self) -> int:
        """Each sample is a row of its own."""
        return 1

    def shape(self, layer: LayerSpec) -> tuple[int, ...]:
        """(channels,)."""
        if layer.axes == "NC":
            return (prod(layer.shape),)
        if not layer.class_token:
            raise InvalidInputError(
                f"readout cls of layer {layer.name!r}: there is no class token in an output of axes {layer.axes}, "
                f"shape {layer.shape}; use mean"
            )
        return (layer.width,)

    def __call__(self, output: Tensor, layer: LayerSpec) -> Tensor:
        """Token 0: class tokens come first in every timm model."""
        return _vector(output if layer.axes == "NC" else output[:, 0])


@dataclass(frozen=True)
class Flatten:
    """Every value, in the order of the layer's own axes."""

    name: str = "flatten"

    @property
    def block(self) -> int:
        """Each sample is a row of its own."""
        return 1

    def shape(self, layer: LayerSpec) -> tuple[int, ...]:
        """The layer's own shape."""
        return layer.shape

    def __call__(self, output: Tensor, layer: LayerSpec) -> Tensor:  # noqa: ARG002 - the same for every layer
        """Copy."""
        return _vector(output)


@dataclass(frozen=True)
class Grid:
    """Adaptive average to K x K positions, flattened as (channels, K, K); token grids and NHWC maps alike."""

    k: int

    @property
    def name(self) -> str:
        """grid:K."""
        return f"grid:{self.k}"

    @property
    def block(self) -> int:
        """Each sample is a row of its own."""
        return 1

    def shape(self, layer: LayerSpec) -> tuple[int, ...]:
        """(channels, K, K)."""
        if layer.axes == "NC":
            return (prod(layer.shape),)
        _spatial(layer, self.name)
        if layer.grid is None:
            raise InvalidInputError(
                f"readout {self.name} of layer {layer.name!r}: its positions form no grid; use flatten"
            )
        return (layer.width, self.k, self.k)

    def __call__(self, output: Tensor, layer: LayerSpec) -> Tensor:
        """Bring to NCHW, pool."""
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
class Pixels:
    """The model's input, averaged to at most 8 x 8 pixels a channel: what any network could know without computing."""

    name: str = INPUT[1]

    @property
    def block(self) -> int:
        """Each sample is a row of its own."""
        return 1

    def shape(self, layer: LayerSpec) -> tuple[int, ...]:
        """(3 h w,), with h and w at most 8."""
        channels, height, width = layer.shape
        return (channels * min(INPUT_PIXELS, height) * min(INPUT_PIXELS, width),)

    def __call__(self, output: Tensor, layer: LayerSpec) -> Tensor:
        """Average in float32."""
        _, height, width = layer.shape
        return _vector(adaptive_avg_pool2d(output.float(), (min(INPUT_PIXELS, height), min(INPUT_PIXELS, width))))
