"""The extractor for any torch module: what timm's and torchvision's models share, and a model of your own has too."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from repsim.errors import InvalidInputError, reason
from repsim.extractors import hooks
from repsim.extractors.base import Batch, LayerSpec, Readout, Site, Stream
from repsim.extractors.layers import Geometry, presets, select
from repsim.extractors.loading import stream_together
from repsim.extractors.preprocessing import Preprocessing, Transform, choose_preprocessing, example_batch
from repsim.extractors.readouts import Pixels, get_several, plan
from repsim.extractors.sources import ImageSource
from repsim.extractors.weights import fingerprint
from repsim.labels import INPUT


class ModuleExtractor:
    """Reads layers of a torch module.

    Making one traces the module with three pictures of noise, so everything that can be refused (a layer that does not
    exist, a readout that it does not have) is refused before the first real picture. The module is in eval mode while
    it is read, and each of its parts has its own mode again afterwards; it stays on the device on which it was read.

    Parameters
    ----------
    model
        Called with a batch (b, 3, H, W), or (b, 1, H, W) where timm says that it takes grey pictures. What it returns
        does not matter.
    transform
        Makes a tensor (3, H, W), of one H and W, of a PIL picture in RGB. Not needed for a model of timm's, which says
        itself how its pictures are prepared.
    name
        Names the store's file and the model in every result; by default the class's name in lower case.
    layers
        ``blocks``, ``stages``, ``all``, or globs (`repsim.extractors.layers.select`).
    readout
        One or several readouts, with commas between (`repsim.extractors.readouts.get`).
    provenance
        What else is to be recorded of it, as JSON values.
    notes
        What was chosen when it was made, for people.

    Raises
    ------
    UnknownNameError
        For a layer or readout of no known name; with the nearest ones.
    InvalidInputError
        For a transform that is missing or makes no (3, H, W), a module that cannot run on that, a layer that is never
        called, and a readout that no chosen layer has (``cls`` of a ResNet).

    Examples
    --------
    >>> from torchvision.transforms.functional import pil_to_tensor, resize
    >>> from repsim.extractors import open_images
    >>> model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10))
    >>> extractor = ModuleExtractor(
    ...     model, lambda picture: pil_to_tensor(resize(picture, (16, 16))) / 255, name="small", layers="0,pre_logits"
    ... )
    >>> [(layer.name, layer.shape) for layer in extractor.layers()]
    [('0', (8, 14, 14)), ('pre_logits', (8,))]
    >>> batch = next(extractor.stream(open_images("digits"), range(6), Stream(batch_size=4)))
    >>> batch.rows, tuple(batch.values["0", "mean"].shape)
    ((0, 1, 2, 3), (4, 8))
    """

    def __init__(
        self,
        model: nn.Module,
        transform: Transform | Preprocessing | None = None,
        *,
        name: str | None = None,
        layers: str = "blocks",
        readout: str = "mean",
        provenance: Mapping[str, Any] | None = None,
        notes: Sequence[str] = (),
    ) -> None:
        readouts = get_several(readout)
        prepared = choose_preprocessing(model, transform)
        self.model, self.transform, self._channels = model, prepared.transform, prepared.channels
        self.name = (name or type(model).__name__.lower()).replace("/", "_").replace(":", "_")
        self.preprocessing = prepared.key
        """Extractors of equal keys make equal pixels of a picture, and can share them (`stream_together`)."""
        self._record = {**prepared.record, **(provenance or {})}
        seen, size = self._trace()
        geometry = Geometry(model, size)
        described = [geometry.describe(tensor) for tensor in seen.tensors]
        self._layers = select(described, layers, presets=presets(model, seen), left_out=seen.left_out)
        self.readouts: Mapping[tuple[str, str], tuple[LayerSpec, Readout]]
        self.readouts, self.notes = plan(self._layers, readouts)
        entry = LayerSpec(
            INPUT[0], "input", (self._channels, *size), "NCHW", None, class_token=False, grid=size, site=Site("")
        )
        self.controls: Mapping[tuple[str, str], tuple[LayerSpec, Readout]] = {INPUT: (entry, Pixels())}
        """What is read beside the layers, to hold them against: the model's input, at low resolution."""
        self.notes = [*notes, *prepared.notes, *self.notes]
        """What is worth knowing before it is read."""
        self.notes += [
            f"layer {layer.site.module} runs several times in one pass; each call is a layer of its own"
            for layer in self._layers
            if layer.name.partition("[")[0].endswith("#1")
        ]

    def _trace(self) -> tuple[hooks.Trace, tuple[int, int]]:
        example = example_batch(self.transform, self._channels)
        height, width = example.shape[2:]
        weight = next(self.model.parameters(), example)
        with hooks.evaluating(self.model):
            try:
                return hooks.trace(self.model, example.to(weight.device), self._classifiers()), (height, width)
            except Exception as error:  # the code is the user's
                raise InvalidInputError(
                    f"{self.name} cannot run on a batch {tuple(example.shape)} of {example.dtype}, "
                    f"which is what its transform makes: {reason(error)}"
                ) from error

    def _classifiers(self) -> list[str] | None:
        """Paths of the modules that turn the pre-logits feature into logits; None where the model does not say."""
        find: Any = getattr(self.model, "get_classifier", None)
        if find is None:
            return None
        got = find()
        heads: list[nn.Module] = []
        for head in got if isinstance(got, tuple | list | nn.ModuleList) else [got]:
            heads += list(head) if isinstance(head, nn.ModuleList) else [head]
        return [path for path, module in self.model.named_modules() if any(module is head for head in heads)]

    def layers(self) -> tuple[LayerSpec, ...]:
        """The chosen layers, in the order in which the forward pass finishes them."""
        return self._layers

    def provenance(self) -> dict[str, Any]:
        """Weights, preprocessing and versions, as plain JSON values."""
        kind = type(self.model)
        record = {
            "extractor": "module",
            "class": f"{kind.__module__}.{kind.__qualname__}",
            "batch_norm": "eval mode",
            **self._record,
            "torch_version": torch.__version__,
            "tf32": {"conv": torch.backends.cudnn.allow_tf32, "matmul": torch.backends.cuda.matmul.allow_tf32},
        }
        if "weights_sha256" not in record:  # now, and not when this was made: the user may train on
            record["weights_sha256"] = fingerprint(self.model)
        return record

    def stream(self, images: ImageSource, rows: Sequence[int], how: Stream) -> Iterator[Batch]:
        """Read the samples at ``rows`` of ``images``, in that order; the first unreadable one ends it with its name."""
        for _, batch in stream_together([self], images, [rows], how):
            yield batch
