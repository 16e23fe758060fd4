"""From a model and some images to an activation store: choose samples, stream readouts, write them as they come."""

import os
import shutil
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import h5py

import repsim
from repsim.devices import choose_device, cores
from repsim.errors import ImageError, OutputError
from repsim.extractors import Extractor, ImageSource, Stream, open_images
from repsim.extractors.images import Digits, choose, readable
from repsim.extractors.timm_models import TimmExtractor
from repsim.files import human
from repsim.labels import LayerKey, SampleIds
from repsim.progress import Progress
from repsim.store import ActivationStore, ArraySpec, StoreWriter, open_store

DType = Literal["float32", "float16"]


@dataclass(frozen=True)
class Samples:
    """Which pictures are read: the rows of an image source, and those that were left out because they are damaged."""

    images: ImageSource
    rows: list[int]
    skipped: dict[str, str] = field(default_factory=dict)
    """Id -> why it could not be read."""

    @cached_property
    def ids(self) -> SampleIds:
        """Ids with the fingerprint of the pictures behind them."""
        return SampleIds(tuple(self.images.ids[row] for row in self.rows), self.images.fingerprint(self.rows))


def choose_samples(
    images: ImageSource,
    *,
    limit: int | None = None,
    skip_bad: bool = False,
    progress: Progress | None = None,
) -> Samples:
    """Choose ``limit`` samples, spread evenly over the source; with ``skip_bad``, leave out those that do not decode.

    Damaged pictures are looked for before the first forward pass, at the cost of decoding everything once more, so that
    the size of every array is known in advance and all models of one command see the same samples.
    """
    rows = choose(len(images), limit)
    if not skip_bad:
        return Samples(images, rows)
    rows, bad = readable(images, rows, cores(), progress)
    if not rows:
        raise ImageError(
            f"none of the {len(bad)} pictures of {images.name} can be read; the first: {next(iter(bad.values()))}"
        )
    return Samples(images, rows, {images.ids[row]: why for row, why in bad.items()})


def choose_stream(samples: Samples, *, batch_size: int, workers: int | None, device: str, amp: bool) -> Stream:
    """Settle how the passes are run. By default one process a core decodes, none where starting them takes longer."""
    if workers is None:
        short = len(samples.rows) <= 2 * batch_size or isinstance(samples.images, Digits)
        workers = 0 if short else min(8, cores())
    return Stream(batch_size=batch_size, workers=workers, device=choose_device(device), amp=amp)


@dataclass(frozen=True)
class Extraction:
    """One model's extraction, planned: everything that can be refused has been, and nothing is computed yet."""

    extractor: Extractor
    samples: Samples
    folder: Path
    how: Stream = field(default_factory=Stream)
    dtype: DType = "float32"
    overwrite: bool = False
    command: str | None = None
    """Recorded as what made the store."""

    @property
    def path(self) -> Path:
        """The store's file."""
        return self.folder / f"{self.extractor.name}.h5"

    @cached_property
    def arrays(self) -> tuple[ArraySpec, ...]:
        """What will be written, in depth order."""
        return tuple(
            ArraySpec(
                LayerKey(self.extractor.name, *key),
                readout.shape(layer),
                {
                    "type": layer.type,
                    "output_shape": layer.shape,
                    "axes": layer.axes,
                    "prefix_tokens": layer.prefix_tokens,
                    "class_token": layer.class_token,
                    "grid": layer.grid,
                },
            )
            for key, (layer, readout) in self.extractor.readouts.items()
        )

    @property
    def bytes_per_sample(self) -> int:
        """Bytes that one picture takes in the store."""
        return sum(spec.row_bytes(self.dtype) for spec in self.arrays)

    @property
    def bytes(self) -> int:
        """Bytes of all arrays."""
        return self.bytes_per_sample * len(self.samples.rows)

    @property
    def bytes_free(self) -> int:
        """Bytes free on the disk that the store goes to."""
        folder = next(p for p in (self.path.parent, *self.path.parent.absolute().parents) if p.is_dir())
        return shutil.disk_usage(folder).free

    def check_room(self) -> None:
        """Raise `OutputError` unless the disk has room for the store and 5 % more."""
        if self.bytes * 1.05 > self.bytes_free:
            raise OutputError(
                f"{self.path} needs {human(self.bytes)} and the disk has {human(self.bytes_free)} free; "
                "take fewer layers or samples, a smaller readout, or --dtype float16"
            )

    def provenance(self) -> dict[str, Any]:
        """Everything that decided the numbers, as JSON values."""
        return {
            **self.extractor.provenance(),
            "data": self.samples.images.name,
            "samples": len(self.samples.rows),
            "skipped": self.samples.skipped,
            "data_fingerprint": self.samples.ids.content,
            "readouts": sorted({spec.key.readout for spec in self.arrays}),
            "dtype": self.dtype,
            "batch_size": self.how.batch_size,
            "device": self.how.device,
            "amp": self.how.amp,
            "repsim_version": repsim.__version__,
            "h5py_version": h5py.__version__,
            "command": self.command,
        }

    def run(self, progress: Progress | None = None) -> ActivationStore:
        """Stream all samples through the model and write the store."""
        self.check_room()
        images, rows = self.samples.images, self.samples.rows
        labels = None if images.labels is None else images.labels[rows]
        writer = StoreWriter(
            self.path,
            self.arrays,
            self.samples.ids,
            labels=labels,
            classes=images.classes,
            source=images.name,
            provenance=self.provenance(),
            dtype=self.dtype,
            batch_size=self.how.batch_size,
            overwrite=self.overwrite,
        )
        keys = {(spec.key.layer, spec.key.readout): spec.key for spec in self.arrays}
        done = 0
        with writer:
            for batch in self.extractor.stream(images, rows, self.how):
                chunk = slice(done, done + len(batch.rows))
                for name, values in batch.values.items():
                    writer.write(keys[name], chunk, values.numpy())
                done = chunk.stop
                if progress is not None:
                    progress(done, len(rows))
        return open_store(self.path)


def extract(
    model: str,
    data: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    layers: str = "blocks",
    readout: str = "mean",
    weights: str = "pretrained",
    seed: int = 0,
    split: str | None = None,
    data_root: str | None = None,
    download: bool = False,
    limit: int | None = None,
    skip_bad: bool = False,
    batch_size: int = 32,
    workers: int | None = None,
    device: str = "auto",
    amp: bool = False,
    dtype: DType = "float32",
    overwrite: bool = False,
    progress: Progress | None = None,
) -> ActivationStore:
    """Extract the activations of one timm model into ``out/<model>.h5``.

    Parameters
    ----------
    model
        A timm name, with a tag or without.
    data
        A folder of pictures (flat, or one folder a class), a ``.tar``, ``digits``, or a data set that timm opens by
        name (``torch/cifar10``, found under ``data_root``).
    out
        The folder for the store.
    layers
        ``blocks`` (residual or transformer blocks, with the stem before and the pre-logits feature after), ``stages``,
        ``all``, or globs over module names (``layer3.*,norm``; ``*`` stays within one dotted part).
    readout
        One or several of ``mean``, ``max``, ``cls``, ``flatten``, ``grid:K``, with commas between.
    weights, seed
        ``pretrained``, ``random`` (from ``seed``), or a ``.safetensors`` or ``.pth`` file.
    split, data_root, download
        Which part of the data, and where timm's data sets lie.
    limit
        So many samples, spread evenly over the data.
    skip_bad
        Leave out pictures that cannot be decoded, instead of stopping; they are listed in the provenance.
    batch_size, workers, device, amp
        How the forward passes run: pictures a pass, processes that decode (None: chosen), ``auto`` or a torch device,
        half precision where the device is fast at it.
    dtype
        What is stored: ``float32`` or ``float16``.
    overwrite
        Replace an existing store.
    progress
        Called after each batch with the number of samples done and of all.

    Returns
    -------
    ActivationStore
        The finished store, open for reading.

    Raises
    ------
    RepsimError
        An unknown model or layer, an impossible readout, weights or pictures that cannot be read, a NaN activation, a
        place that cannot be written. Nothing is left behind then.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     store = extract("digits_vit.seed0", "digits", folder, layers="blocks.*", limit=16)
    ...     store.layers, store["blocks.5"].shape
    (('blocks.0', 'blocks.1', 'blocks.2', 'blocks.3', 'blocks.4', 'blocks.5'), (16, 64))
    """
    images = open_images(os.fspath(data), split=split, root=data_root, download=download)
    samples = choose_samples(images, limit=limit, skip_bad=skip_bad)
    job = Extraction(
        TimmExtractor(model, weights=weights, seed=seed, layers=layers, readout=readout),
        samples,
        Path(out),
        choose_stream(samples, batch_size=batch_size, workers=workers, device=device, amp=amp),
        dtype=dtype,
        overwrite=overwrite,
    )
    return job.run(progress)
