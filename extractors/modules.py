"""Extractor of any torch module. The extractors of timm and torchvision models derive from it."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from repsim.errors import InvalidInputError, reason
from repsim.extractors import hooks
from repsim.extractors.base import Batch, LayerSpec, Readout, Site, Stream
from repsim.extractors.classification import sizes
from repsim.extractors.layers import Geometry, presets, select
from repsim.extractors.loading import stream_together
from repsim.extractors.picture_statistics import PictureStatistics, has_statistics
from repsim.extractors.preprocessing import Preprocessing, Transform, choose_preprocessing, example_batch
from repsim.extractors.readouts import Pixels, Prediction, get_several, plan
from repsim.extractors.samples.source import ImageSource
from repsim.extractors.weights import fingerprint
from repsim.labels import INPUT, PREDICTION, STATISTICS


class ModuleExtractor:
    """Extractor of the layers of a torch module.

    The constructor traces the module with three pictures of noise. Errors (a layer that does not exist, a readout that
    the layer does not have) are therefore raised before the first real picture is read. The module is in eval mode
    while it is read; afterwards every submodule is in its previous mode. The module stays on the device on which it
    was read.

    Parameters
    ----------
    model : torch.nn.Module
        Called with a batch (b, 3, H, W), or (b, 1, H, W) for a timm model that takes grey pictures. Its return value is
        not used.
    transform : callable, optional
        Converts a PIL picture in RGB to a tensor (3, H, W), with the same H and W for all pictures. Not needed for a
        timm model, whose configuration describes how its pictures are prepared.
    name : str, optional
        Names the file of the store and the model in every result. The default is the name of the class in lower case.
    layers : str
        ``blocks``, ``stages``, ``all``, or globs (`repsim.extractors.layers.select`).
    readout : str
        One or several readouts, separated by commas (`repsim.extractors.readouts.get`).
    provenance : mapping, optional
        Further entries of the provenance, as JSON values.
    notes : sequence of str
        Messages for the user about choices that were made when the model was loaded.

    Raises
    ------
    UnknownNameError
        A layer or readout does not exist; the message suggests similar names.
    InvalidInputError
        The transform is missing or does not make a tensor (3, H, W), the module cannot run on such tensors, a layer is
        never called, or no chosen layer has the readout (``cls`` of a ResNet).

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
        """Key of the preprocessing: extractors with equal keys can share decoded pictures (`stream_together`)."""
        self._record = {**prepared.record, **(provenance or {})}
        trace, size = self._trace()
        geometry = Geometry(model, size)
        described = [geometry.describe(tensor) for tensor in trace.tensors]
        self._layers = select(described, layers, presets=presets(model, trace), left_out=trace.left_out)
        self.readouts: Mapping[tuple[str, str], tuple[LayerSpec, Readout]]
        self.readouts, self.notes = plan(self._layers, readouts)
        entry = LayerSpec(
            INPUT[0], "input", (self._channels, *size), "NCHW", None, class_token=False, grid=size, site=Site("")
        )
        self.controls: Mapping[tuple[str, str], tuple[LayerSpec, Readout]] = {INPUT: (entry, Pixels())}
        """Arrays that are read in addition to the layers, as controls: the model's input at low resolution,
        statistics of it in full size, unless it is small, and the number of the largest output of a classifier."""
        if has_statistics(entry.shape):
            self.controls = {**self.controls, STATISTICS: (entry, PictureStatistics())}
        if trace.outputs and getattr(model, "num_classes", None) != 0:  # 0: timm's networks without a classifier
            logits = LayerSpec(
                PREDICTION[0], "output", (trace.outputs,), "NC", None, class_token=False, grid=None, site=Site("")
            )
            self.controls = {**self.controls, PREDICTION: (logits, Prediction())}
        features = [layer.shape[-1] for layer in trace.tensors if layer.name == "pre_logits"]
        self._sizes = sizes(model, features[0] if features else None)
        self.notes = [*notes, *prepared.notes, *self.notes]
        """Messages for the user, before the model is read."""
        self.notes += [
            f"layer {layer.site.module} is called several times in a forward pass; each call is a layer of its own"
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
            except Exception as error:  # the code of the user may raise any exception
                raise InvalidInputError(
                    f"{self.name} cannot run on a batch {tuple(example.shape)} of {example.dtype}, "
                    f"the output of its transform: {reason(error)}"
                ) from error

    def _classifiers(self) -> list[str] | None:
        """Return the paths of the modules that compute the logits from the pre-logits feature.

        None if the model has no method ``get_classifier``.
        """
        get_classifier: Any = getattr(self.model, "get_classifier", None)
        if get_classifier is None:
            return None
        classifier = get_classifier()
        heads: list[nn.Module] = []
        for head in classifier if isinstance(classifier, tuple | list | nn.ModuleList) else [classifier]:
            heads += list(head) if isinstance(head, nn.ModuleList) else [head]
        return [path for path, module in self.model.named_modules() if any(module is head for head in heads)]

    def layers(self) -> tuple[LayerSpec, ...]:
        """Return the chosen layers in the order in which the forward pass finishes them."""
        return self._layers

    def provenance(self) -> dict[str, Any]:
        """Return the hash of the weights, the preprocessing and the versions, as JSON values."""
        kind = type(self.model)
        record = {
            "extractor": "module",
            "class": f"{kind.__module__}.{kind.__qualname__}",
            "batch_norm": "eval mode",
            **self._record,
            "torch_version": torch.__version__,
            "computed": self._sizes,
            "tf32": {"conv": torch.backends.cudnn.allow_tf32, "matmul": torch.backends.cuda.matmul.allow_tf32},
        }
        if "weights_sha256" not in record:  # not computed in the constructor, as the user may continue the training
            record["weights_sha256"] = fingerprint(self.model)
        return record

    def stream(self, images: ImageSource, rows: Sequence[int], how: Stream) -> Iterator[Batch]:
        """Yield the readouts of the samples at ``rows`` of ``images``, in this order, batch by batch.

        Raises
        ------
        ImageError
            A picture cannot be read; the message names the first such picture.
        """
        for _, batch in stream_together([self], images, [rows], how):
            yield batch
