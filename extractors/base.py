"""Protocols and data types of extractors: layers, readouts, batches, and the options of a forward pass."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any, Literal, Protocol

from torch import Tensor

from repsim.errors import InvalidInputError
from repsim.extractors.samples.source import SampleSource
from repsim.runtime.hardware import choose_device

Axes = Literal["NC", "NCHW", "NHWC", "NLC", "NCL", "NTC", "other"]
"""Axes of a layer's output: samples N, channels C, height H, width W, positions L, and T tokens of a sequence, whose
number differs between batches and which a mask tells apart from padding."""


@dataclass(frozen=True)
class Site:
    """Place in a forward pass where a tensor is read: the module, the call, and the tensor among those it returns."""

    module: str
    call: int = 0
    item: int = 0
    side: Literal["output", "input"] = "output"


@dataclass(frozen=True)
class LayerSpec:
    """Description of one layer of one model, obtained from a trace of the forward pass."""

    name: str
    """Path of the module; ``path#2`` for the second call of a module that runs several times, ``path[1]`` for the
    second tensor of a module that returns several, ``pre_logits`` for the input of the classifier."""
    type: str
    shape: tuple[int, ...]
    """Shape of the output for one sample; of tokens (``NTC``) with the largest number of them."""
    axes: Axes
    prefix_tokens: int | None
    """Number of class and register tokens before the patch tokens; None where it could not be determined."""
    class_token: bool
    """Whether the first token is a class token."""
    grid: tuple[int, int] | None
    """Height and width of the feature map or of the patch grid."""
    site: Site

    @property
    def width(self) -> int:
        """Number of channels."""
        if self.axes == "NC":
            return prod(self.shape)
        return self.shape[0] if self.axes in {"NCHW", "NCL"} else self.shape[-1]


@dataclass(frozen=True)
class Batch:
    """Readouts of one batch of samples."""

    rows: tuple[int, ...]
    """Positions of the samples in their source."""
    values: Mapping[tuple[str, str], Tensor]
    """(layer, readout) -> (b // block, p) in float32, on the CPU. Includes the controls of the extractor, if any."""


class Readout(Protocol):
    """Conversion of a layer's output to the rows of an array: one row per sample, or one per block of samples."""

    @property
    def name(self) -> str:
        """Spec string, as it is recorded in the store."""

    @property
    def block(self) -> int:
        """Number of samples that make one row: 1, except for readouts such as ``gram:B``."""

    def shape(self, layer: LayerSpec) -> tuple[int, ...]:
        """Return the shape of one row before it is flattened to p values.

        Raises
        ------
        InvalidInputError
            The readout is not defined for this layer.
        """

    def __call__(self, output: Tensor, layer: LayerSpec, mask: Tensor | None = None) -> Tensor:
        """Return an array of shape (b // block, p), float32.

        ``mask`` (b, T) is true for the real tokens of a layer of tokens, and None for other layers. The result must own
        its memory: the model may overwrite ``output`` as soon as this returns.
        """


class OneRow:
    """Part of a readout that makes one row of each sample."""

    @property
    def block(self) -> int:
        """Number of samples of a row: 1."""
        return 1


@dataclass(frozen=True)
class Stream:
    """Options of a pass over the samples; a device that this machine does not have raises an error at once."""

    batch_size: int = 32
    workers: int = 0
    device: str = "cpu"
    amp: bool = False
    """Whether to use autocast: bfloat16 on a CPU, float16 on other devices. Readouts are float32 in any case."""
    channels_last: bool = False
    """Whether pictures and weights of convolutions have their channels in the last axis of memory."""
    compile: bool = False
    """Whether to compile the models (`repsim.extractors.compilation`)."""

    def __post_init__(self) -> None:
        if self.batch_size < 1 or self.workers < 0:
            raise InvalidInputError(
                f"batch size must be at least 1 and workers at least 0, got {self.batch_size} and {self.workers}"
            )
        choose_device(self.device)


class Extractor(Protocol):
    """A model whose layers can be read. `repsim.testing.ExtractorContract` tests that a class follows this protocol.

    An extractor may have three more attributes: ``notes``, a list of remarks that are shown before the extraction
    starts; ``controls``, a mapping like `readouts` with the arrays that are stored in addition to the layers; and
    ``lengths``, a function from samples to their numbers of tokens, by which batches are sorted.
    """

    @property
    def name(self) -> str:
        """Name of the model: it names the file of the store and the model in every result."""

    @property
    def readouts(self) -> Mapping[tuple[str, str], tuple[LayerSpec, Readout]]:
        """Mapping from (layer name, readout name) to the layer and its readout, in depth order."""

    def layers(self) -> tuple[LayerSpec, ...]:
        """Return the chosen layers in the order in which the forward pass computes them."""

    def stream(self, samples: SampleSource, rows: range | list[int], how: Stream) -> Iterator[Batch]:
        """Yield the readouts of the samples at positions ``rows`` of their source, in this order, batch by batch.

        Raises
        ------
        SampleError
            A sample cannot be read; the message names the first such sample.
        """

    def provenance(self) -> dict[str, Any]:
        """Return everything that determines the values: weights and their hash, preprocessing, versions."""
