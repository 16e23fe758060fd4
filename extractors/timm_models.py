"""The extractor for timm's classification models."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import timm
import torch
from timm.data.config import resolve_model_data_config
from timm.data.transforms_factory import create_transform
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from repsim.errors import ImageError, InvalidInputError
from repsim.extractors import hooks
from repsim.extractors.base import Batch, LayerSpec, Readout, Stream
from repsim.extractors.images import ImageSource
from repsim.extractors.layers import Geometry, presets, select
from repsim.extractors.readouts import get_several, plan
from repsim.extractors.weights import load_model


class TimmExtractor:
    """Reads layers of one timm model.

    Making one traces the model with three random pictures, so everything that can be refused (a layer that does not
    exist, a readout that it does not have) is refused before the first real picture.

    Parameters
    ----------
    model
        A timm name (``resnet50``, ``vit_base_patch16_224.augreg_in21k_ft_in1k``, ``digits_vit.seed0``).
    weights
        ``pretrained``, ``random``, or a ``.safetensors`` or ``.pth`` file.
    seed
        Of random weights.
    layers
        ``blocks``, ``stages``, ``all``, or globs (`repsim.extractors.layers.select`).
    readout
        One or several of ``mean``, ``max``, ``cls``, ``flatten``, ``grid:K``, with commas between.

    Raises
    ------
    UnknownNameError
        For a model, tag, layer or readout of no known name; with the nearest ones.
    WeightsError
        For weights that cannot be had, are damaged, hold code, or are another architecture's.
    InvalidInputError
        For a layer that is never called, and for a readout that no chosen layer has (``cls`` of a ResNet).

    Examples
    --------
    >>> from repsim.extractors import Stream, open_images
    >>> extractor = TimmExtractor("digits_vit", weights="random", layers="blocks.*")
    >>> [(layer.name, layer.shape, layer.prefix_tokens) for layer in extractor.layers()][0]
    ('blocks.0', (65, 64), 1)
    >>> batch = next(extractor.stream(open_images("digits"), range(6), Stream(batch_size=4)))
    >>> batch.rows, tuple(batch.values["blocks.0", "mean"].shape)
    ((0, 1, 2, 3), (4, 64))
    """

    def __init__(
        self, model: str, *, weights: str = "pretrained", seed: int = 0, layers: str = "blocks", readout: str = "mean"
    ) -> None:
        readouts = get_several(readout)
        self.model, self._record = load_model(model, weights, seed)
        self.name = self._record["timm_name"] if weights != "pretrained" else model
        if weights == "random":
            self.name += f"+random-seed{seed}"
        elif weights != "pretrained":
            self.name += f"+{Path(weights).stem}"
        self.name = self.name.replace("/", "_").replace(":", "_")
        self.config = resolve_model_data_config(self.model)
        self._transform = create_transform(**self.config, is_training=False)
        seen = self._trace()
        geometry = Geometry(self.model, self.config["input_size"][1:])
        found = [geometry.describe(tensor) for tensor in seen.found]
        self._layers = select(found, layers, presets=presets(self.model, seen), left_out=seen.left_out)
        self.readouts: Mapping[tuple[str, str], tuple[LayerSpec, Readout]]
        self.readouts, self.notes = plan(self._layers, readouts)
        self.notes += [
            f"layer {layer.site.module} runs several times in one pass; each call is a layer of its own"
            for layer in self._layers
            if layer.name.partition("[")[0].endswith("#1")
        ]

    def _trace(self) -> hooks.Trace:
        channels, height, width = self.config["input_size"]
        if channels != 3:
            raise InvalidInputError(f"{self.name} takes pictures of {channels} channels; repsim reads RGB pictures")
        example = torch.randn(hooks.TRACE_BATCH, 3, height, width, generator=torch.Generator().manual_seed(0))
        return hooks.trace(self.model, example, self._classifiers())

    def _classifiers(self) -> list[str]:
        """Paths of the modules that turn the pre-logits feature into logits."""
        find: Any = getattr(self.model, "get_classifier", None)
        got = find() if find else []
        heads: list[nn.Module] = []
        for head in got if isinstance(got, tuple | list | nn.ModuleList) else [got]:
            heads += list(head) if isinstance(head, nn.ModuleList) else [head]
        return [path for path, module in self.model.named_modules() if any(module is head for head in heads)]

    def layers(self) -> tuple[LayerSpec, ...]:
        """The chosen layers, in the order in which the forward pass finishes them."""
        return self._layers

    def provenance(self) -> dict[str, Any]:
        """Weights, preprocessing and versions, as plain JSON values."""
        config = {key: list(value) if isinstance(value, tuple) else value for key, value in self.config.items()}
        return {
            "extractor": "timm",
            **self._record,
            "preprocessing": config,
            "transform": " ".join(str(self._transform).split()),
            "batch_norm": "eval mode, not recalibrated" if self._record["weights"] == "random" else "eval mode",
            "timm_version": timm.__version__,
            "torch_version": torch.__version__,
            "tf32": {"conv": torch.backends.cudnn.allow_tf32, "matmul": torch.backends.cuda.matmul.allow_tf32},
        }

    def stream(self, images: ImageSource, rows: Sequence[int], how: Stream) -> Iterator[Batch]:
        """Read the samples at ``rows`` of ``images``, in that order; the first unreadable one ends it with its name."""
        device = torch.device(how.device)
        loader = DataLoader(
            _Pictures(images, rows, self._transform),
            batch_size=how.batch_size,
            num_workers=how.workers,
            collate_fn=_collate,
            pin_memory=device.type == "cuda",
        )
        model = self.model.to(device)
        half = torch.bfloat16 if device.type == "cpu" else torch.float16  # CPUs have no kernels for float16
        autocast = torch.autocast(device.type, half) if how.amp else nullcontext()
        with hooks.reading(model, self.readouts) as values:
            for positions, pictures in loader:
                if isinstance(pictures, str):
                    raise ImageError(pictures)
                with torch.no_grad(), autocast:  # not around the yield: the caller's code is no inference
                    model(pictures.to(device, non_blocking=True))
                hooks.check(values, self.readouts, len(positions))
                yield Batch(positions, {key: value.cpu() for key, value in values.items()})


class _Pictures(Dataset[tuple[int, Tensor | str]]):
    """One sample: its position in the source, and its pixels or what is wrong with it.

    A worker hands an error back as text: raised there, it would come back wrapped in that process's traceback.
    """

    def __init__(self, images: ImageSource, rows: Sequence[int], transform: Any) -> None:
        self.images, self.rows, self.transform = images, rows, transform

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> tuple[int, Tensor | str]:
        row = self.rows[index]
        try:
            pixels: Tensor = self.transform(self.images.load(row))
        except ImageError as error:
            return row, str(error)
        return row, pixels


def _collate(samples: list[tuple[int, Tensor | str]]) -> tuple[tuple[int, ...], Tensor | str]:
    """Stack a batch; the first sample that could not be read speaks for all of it."""
    rows = tuple(row for row, _ in samples)
    wrong = next((pixels for _, pixels in samples if isinstance(pixels, str)), None)
    return rows, torch.stack([p for _, p in samples if isinstance(p, Tensor)]) if wrong is None else wrong
