"""Extractor of any torch module. The extractors of timm and torchvision models derive from it."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from repsim.errors import InvalidInputError, reason
from repsim.extractors import hooks
from repsim.extractors.base import Axes, Batch, LayerSpec, Readout, Site, Stream
from repsim.extractors.classification import sizes
from repsim.extractors.layers import Geometry, SampleGeometry, presets, select
from repsim.extractors.loading import stream_together
from repsim.extractors.picture_statistics import PictureStatistics, has_statistics
from repsim.extractors.preparation import Preparation, copy, move, samples_in, shapes_of
from repsim.extractors.preprocessing import Preprocessing, Transform, prepare_pictures
from repsim.extractors.readouts import MOST_VALUES, Pixels, Prediction, Values, get_several, plan
from repsim.extractors.samples.source import SampleSource
from repsim.extractors.weights import fingerprint
from repsim.labels import INPUT, PREDICTION, STATISTICS, VALUES
from repsim.runtime.deprecation import rename_keyword


class ModuleExtractor:
    """Extractor of the layers of a torch module.

    The constructor traces the module with three pictures of noise, or with the examples of its preparation. Errors (a
    layer that does not exist, a readout that the layer does not have) are therefore raised before the first real sample
    is read. The module is in eval mode while it is read; afterwards every submodule is in its previous mode. The module
    stays on the device on which it was read.

    Parameters
    ----------
    model : torch.nn.Module
        The module. For pictures it is called with a batch (b, 3, H, W), or (b, 1, H, W) for a timm model that takes
        grey pictures.
    transform : callable or Preparation, optional
        Converts a PIL picture in RGB to a tensor (3, H, W), with the same H and W for all pictures. Not needed for a
        timm model, whose configuration describes how its pictures are prepared. For other samples, their `Preparation`.
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
        transform: Transform | Preprocessing | Preparation | None = None,
        *,
        name: str | None = None,
        layers: str = "blocks",
        readout: str = "mean",
        provenance: Mapping[str, Any] | None = None,
        notes: Sequence[str] = (),
    ) -> None:
        readouts = get_several(readout)
        self.preparation = transform if isinstance(transform, Preparation) else prepare_pictures(model, transform)
        """Preparation of the samples. Extractors with preparations of equal keys can share it (`stream_together`)."""
        self.model, self.lengths = model, self.preparation.lengths
        self.name = (name or type(model).__name__.lower()).replace("/", "_").replace(":", "_")
        self._record = {**self.preparation.record, **(provenance or {})}
        traces = [self._trace(example) for example in self.preparation.examples]
        trace, size = traces[0], self._picture_size()
        described: list[LayerSpec] = []
        left_out = dict(trace.left_out)
        geometry = (
            Geometry(model, size)
            if size
            else SampleGeometry(traces, longest=self.preparation.longest, class_token=self.preparation.class_token)
        )
        for tensor in trace.tensors:
            if (layer := geometry.describe(tensor)) is not None:
                described.append(layer)
            else:
                left_out[tensor.site.module] = "has an output whose shape depends on the number of tokens"
        self._layers = select(described, layers, presets=self._presets(trace), left_out=left_out)
        self.readouts: Mapping[tuple[str, str], tuple[LayerSpec, Readout]]
        self.readouts, self.notes = plan(self._layers, readouts)
        self.controls: Mapping[tuple[str, str], tuple[LayerSpec, Readout]] = {
            **self._input_controls(size),
            **self.preparation.controls,
        }
        """Arrays that are read in addition to the layers, as controls: of pictures the model's input at low resolution
        and, unless they are small, statistics of it in full size; of other small arrays their values; what the
        preparation names; and the number of the largest output of a classifier."""
        if trace.outputs and getattr(model, "num_classes", None) != 0:  # 0: timm's networks without a classifier
            logits = _control(PREDICTION[0], "output", (trace.outputs,), "NC")
            self.controls = {**self.controls, PREDICTION: (logits, Prediction())}
        features = [layer.shape[-1] for layer in trace.tensors if layer.name == "pre_logits"]
        self._sizes = sizes(model, features[0] if features else None)
        self.notes = [*notes, *self.preparation.notes, *self.notes]
        """Messages for the user, before the model is read."""
        self.notes += [
            f"layer {layer.site.module} is called several times in a forward pass; each call is a layer of its own"
            for layer in self._layers
            if layer.name.partition("[")[0].endswith("#1")
        ]

    _inputs: Mapping[str, str] = {}
    """Path of a module -> name of the layer that is its input, for layers that are the output of no module."""

    def _presets(self, trace: hooks.Trace) -> dict[str, list[str]]:
        """Return the module paths and names of layers that the presets stand for."""
        return presets(self.model, trace)

    @property
    def transform(self) -> Any:
        """Function that prepares one sample."""
        return self.preparation.transform

    @property
    def preprocessing(self) -> Any:
        """Key of the preparation: extractors with equal keys can share prepared samples."""
        return self.preparation.key

    def _picture_size(self) -> tuple[int, int] | None:
        """Return height and width of the input if it is a batch of pictures; else None."""
        example = self.preparation.examples[0]
        pictures = self.preparation.modality == "image" and isinstance(example, Tensor) and example.ndim == 4
        return (example.shape[2], example.shape[3]) if pictures else None

    def _input_controls(self, size: tuple[int, int] | None) -> dict[tuple[str, str], tuple[LayerSpec, Readout]]:
        """Return the controls that are read from the input: pixels and statistics of pictures, or small arrays."""
        example = self.preparation.examples[0]
        if size is not None:
            entry = _control(INPUT[0], "input", tuple(example.shape[1:]), "NCHW", grid=size)
            statistics = {STATISTICS: (entry, PictureStatistics())} if has_statistics(entry.shape) else {}
            return {INPUT: (entry, Pixels()), **statistics}
        if isinstance(example, Tensor) and example.is_floating_point() and example[0].numel() <= MOST_VALUES:
            return {VALUES: (_control(VALUES[0], "input", tuple(example.shape[1:]), "other"), Values())}
        return {}

    def _trace(self, example: Any) -> hooks.Trace:
        weight = next(self.model.parameters(), torch.zeros(()))
        mask = self.preparation.mask(example)
        with hooks.evaluating(self.model):
            try:
                return hooks.trace(
                    self.model, copy(move(example, weight.device)), self._classifiers(),
                    forward=self.preparation.forward, samples=samples_in(example),
                    tokens=None if mask is None else mask.shape[1], inputs_of=self._inputs,
                )  # fmt: skip
            except Exception as error:  # the code of the user may raise any exception
                source = "the output of its transform" if isinstance(example, Tensor) else "made of the first samples"
                raise InvalidInputError(
                    f"{self.name} cannot run on a batch {shapes_of(example)}, {source}: {reason(error)}"
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

    @rename_keyword("images", "samples", gone_in="2.0.0")
    def stream(self, samples: SampleSource, rows: Sequence[int], how: Stream) -> Iterator[Batch]:
        """Yield the readouts of the samples at ``rows`` of their source, in this order, batch by batch.

        Raises
        ------
        SampleError
            A sample cannot be read; the message names the first such sample.
        """
        for _, batch in stream_together([self], samples, [rows], how):
            yield batch


def _control(
    name: str, kind: str, shape: tuple[int, ...], axes: Axes, grid: tuple[int, int] | None = None
) -> LayerSpec:
    """Return the description of the input or the output, from which a control is read."""
    return LayerSpec(name, kind, shape, axes, None, class_token=False, grid=grid, site=Site(""))
