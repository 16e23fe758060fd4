"""What an extractor is: a model that names its layers and streams their readouts, batch by batch."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any, Literal, Protocol

from torch import Tensor

from repsim.errors import InvalidInputError
from repsim.extractors.sources import ImageSource
from repsim.runtime.hardware import choose_device

Axes = Literal["NC", "NCHW", "NHWC", "NLC", "NCL", "other"]


@dataclass(frozen=True)
class Site:
    """Where in a forward pass a tensor is taken: which module, which of its calls, which of the tensors it returns."""

    module: str
    call: int = 0
    item: int = 0
    side: Literal["output", "input"] = "output"


@dataclass(frozen=True)
class LayerSpec:
    """One layer of one model, as a trace of the forward pass found it."""

    name: str
    """The module's path; ``path#2`` for the second call of a module that runs several times, ``path[1]`` for the second
    tensor of one that returns several, ``pre_logits`` for what the classifier gets."""
    type: str
    shape: tuple[int, ...]
    """Of the output for one sample."""
    axes: Axes
    prefix_tokens: int | None
    """Class and register tokens before the patch tokens; None where that could not be worked out."""
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
    """What one batch of samples gave."""

    rows: tuple[int, ...]
    """Positions of the samples in the image source."""
    values: Mapping[tuple[str, str], Tensor]
    """(layer, readout) -> (b // block, p) in float32, on the CPU. Of the controls, too, where an extractor has any."""


class Readout(Protocol):
    """How a layer's output becomes the rows of an array: one a sample, or one a block of samples."""

    @property
    def name(self) -> str:
        """The spec string, as it is recorded."""

    @property
    def block(self) -> int:
        """Samples that make one row: 1, but for readouts such as ``gram:B``."""

    def shape(self, layer: LayerSpec) -> tuple[int, ...]:
        """Shape of one row, before it is flattened to p values; raises where this layer has none."""

    def __call__(self, output: Tensor, layer: LayerSpec) -> Tensor:
        """(b // block, p) float32 in new memory: the model may overwrite ``output`` as soon as this returns."""


@dataclass(frozen=True)
class Stream:
    """How a pass over the images is run: refused at once where this machine cannot."""

    batch_size: int = 32
    workers: int = 0
    device: str = "cpu"
    amp: bool = False
    """Autocast: bfloat16 on a CPU, float16 elsewhere. Readouts are float32 all the same."""

    def __post_init__(self) -> None:
        if self.batch_size < 1 or self.workers < 0:
            raise InvalidInputError(
                f"batch size must be at least 1 and workers at least 0, got {self.batch_size} and {self.workers}"
            )
        choose_device(self.device)


class Extractor(Protocol):
    """A model whose layers can be read. `repsim.testing.ExtractorContract` says what is expected of one.

    It may have ``notes``, a list of what is worth knowing before it begins, and ``controls``, a mapping like `readouts`
    of what is stored beside the layers.
    """

    @property
    def name(self) -> str:
        """Names the store's file and its columns in every result."""

    @property
    def readouts(self) -> Mapping[tuple[str, str], tuple[LayerSpec, Readout]]:
        """(layer, readout name) -> what is read, in depth order."""

    def layers(self) -> tuple[LayerSpec, ...]:
        """The chosen layers in the order in which the forward pass computes them."""

    def stream(self, images: ImageSource, rows: range | list[int], how: Stream) -> Iterator[Batch]:
        """Read the given samples in order; `ImageError` with the name of the first that cannot be read."""

    def provenance(self) -> dict[str, Any]:
        """Everything that decided the numbers: weights and their hash, preprocessing, versions."""
