"""Extract models that are loaded: choose samples, stream readouts, write them as they come.

Reading and decoding (worker processes), the forward pass and the readout (here), and writing (a thread) overlap. What
is in memory at any time is a few batches, however many samples there are.
"""

import math
import shutil
import time
from collections import deque
from collections.abc import Generator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from numpy.typing import NDArray

from repsim._version import __version__
from repsim.errors import Argument, ImageError, InvalidInputError, OutputError, Remedy
from repsim.extraction.options import DType
from repsim.extractors import Batch, Extractor, ImageSource, Stream
from repsim.extractors.decoding import MAX_PIXELS
from repsim.extractors.images import Digits, choose, examine
from repsim.extractors.loading import stream_together
from repsim.extractors.modules import ModuleExtractor
from repsim.extractors.readouts import get_several
from repsim.extractors.recalibration import SAMPLES, assign, batch_norms, check_weights, measure
from repsim.extractors.sources import Content, LeftOut
from repsim.labels import LayerKey, SampleIds, check_model_name, partition
from repsim.runtime import interrupts
from repsim.runtime.files import human, partial_path
from repsim.runtime.hardware import choose_device, cores, return_memory
from repsim.runtime.processes import ALONE, Ranks, restarted
from repsim.runtime.progress import Progress
from repsim.stores import reader
from repsim.stores.schema import ArraySpec, Contents
from repsim.stores.store import ActivationStore, open_store
from repsim.stores.writer import StoreWriter, stored

_ON_THEIR_WAY = 4
"""Batches that may wait to be written: enough to bridge a slow moment of the disk, few enough to be no burden."""
_RETURN_SECONDS = 1.0


@dataclass(frozen=True)
class Samples:
    """Which pictures are read: the rows of an image source, and those that were left out because they are damaged."""

    images: ImageSource
    rows: list[int]
    skipped: dict[str, str] = field(default_factory=dict)
    """Id -> why it could not be read."""
    contents: Mapping[int, Content] | None = None
    """Row -> what looking at the picture gave; None: it is looked at when that is asked for."""

    @cached_property
    def ids(self) -> SampleIds:
        """Ids with the sizes of the pictures behind them, and hashes of what is in these."""
        images, rows = self.images, self.rows
        contents = self.contents if self.contents is not None else examine(images, rows, cores())[0]
        hashes = b"".join(contents[row].digest for row in rows)
        return SampleIds(tuple(images.ids[row] for row in rows), images.fingerprint(rows), hashes, images.content_kind)

    @property
    def left_out(self) -> LeftOut:
        """What the source left out, and the frames that are not read."""
        left_out = LeftOut()
        left_out.reasons.update(self.images.left_out.reasons)
        contents = self.contents or {}
        for row in self.rows if contents else ():
            if contents[row].frames:
                left_out.add("with further frames, of which the first is taken", self.images.ids[row])
        return left_out

    @property
    def notes(self) -> list[str]:
        """What was chosen without being asked for."""
        return [f"{self.images.name}: left out: {self.left_out}"] if self.left_out else []


def choose_samples(
    images: ImageSource,
    *,
    limit: int | None = None,
    skip_bad: bool = False,
    progress: Progress | None = None,
    me: Ranks = ALONE,
    check: bool = True,
) -> Samples:
    """Choose ``limit`` samples, spread evenly over the source; with ``skip_bad``, leave out those that do not decode.

    Every picture is read before the first forward pass: its contents are hashed, so that a store knows what it was made
    from, and is not filled up with other pictures of the same names. With ``skip_bad`` it is decoded in the same pass,
    and once more for the models: the size of every array is known in advance, and all models of one command see the
    same samples. Several processes (``me``) share that work. Without ``check`` only names are chosen.
    """
    rows = choose(len(images), limit)
    if not check and not skip_bad:
        return Samples(images, rows)
    passes = me.gather(examine(images, rows[me.part(len(rows))], cores(), progress, skip_bad=skip_bad))
    contents = {row: content for seen, _ in passes for row, content in seen.items()}
    bad = {row: why for _, broken in passes for row, why in broken.items()}
    rows = [row for row in rows if row in contents]
    if not rows:
        raise ImageError(
            f"none of the {len(bad)} pictures of {images.name} can be read; the first: {next(iter(bad.values()))}"
        )
    return Samples(images, rows, {images.ids[row]: why for row, why in bad.items()}, contents)


def choose_stream(
    samples: Samples, *, readout: str, batch_size: int | None, workers: int | None, device: str, amp: bool
) -> Stream:
    """Settle how the passes are run.

    By default one process a core decodes, none where starting them takes longer; batches are of 32 pictures, or of as
    many as make whole blocks for the readouts that need such.
    """
    if batch_size is None:
        block = math.lcm(*(each.block for each in get_several(readout)))
        batch_size = block * -(-32 // block)
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
    recalibrate: bool = False
    """Give batch norm of random weights the statistics of the samples (`repsim.extractors.recalibration`)."""
    command: str | None = None
    """Recorded as what made the store."""
    name: str | None = None
    """Names the store and the model in results; by default the extractor's name."""

    def __repr__(self) -> str:
        return (
            f"<Extraction of {self.model}: {len(self.arrays)} arrays, {len(self.samples.rows)} samples of "
            f"{self.samples.images.name}, {human(self.bytes)} for {self.path.name}>"
        )

    def __post_init__(self) -> None:
        if self.name is not None:
            check_model_name(self.name)
        if self.recalibrate:
            check_weights(self.extractor.provenance().get("weights"))
            if not isinstance(self.extractor, ModuleExtractor):
                raise InvalidInputError(
                    f"{self.extractor.name} is no torch module whose batch norm can be recalibrated"
                )
        for _, readout in self.extractor.readouts.values():
            if self.how.batch_size % readout.block:
                raise InvalidInputError(
                    f"readout {readout.name} needs batches of whole blocks: make the batch size a multiple of "
                    f"{readout.block}, not {self.how.batch_size}"
                )

    @property
    def notes(self) -> list[str]:
        """What is worth knowing before it begins."""
        n = len(self.samples.rows)
        left = {spec.block: n % spec.block for spec in self.arrays if n % spec.block}
        return [*getattr(self.extractor, "notes", ())] + [
            f"gram:{block}: {rest} of {n} pictures make no whole block and are in none" for block, rest in left.items()
        ]

    @property
    def model(self) -> str:
        """What the model is called."""
        return self.name or self.extractor.name

    @property
    def path(self) -> Path:
        """The store's file."""
        return self.folder / f"{self.model}.h5"

    @cached_property
    def arrays(self) -> tuple[ArraySpec, ...]:
        """What will be written: layers in depth order, and what is stored beside them."""
        return tuple(
            ArraySpec(
                LayerKey(self.model, *key),
                readout.shape(layer),
                {
                    "type": layer.type,
                    "output_shape": layer.shape,
                    "axes": layer.axes,
                    "prefix_tokens": layer.prefix_tokens,
                    "class_token": layer.class_token,
                    "grid": layer.grid,
                },
                readout.block,
            )
            for key, (layer, readout) in {**self.extractor.readouts, **getattr(self.extractor, "controls", {})}.items()
        )

    @cached_property
    def order(self) -> NDArray[np.int64]:
        """Positions of the samples in the order in which they are read.

        Blocks of samples (``gram:B``) have to be a random partition, the same for every model: sorted by class, as many
        folders are, neighbours would be of one class. Without blocks it is the samples' own order.
        """
        n = len(self.samples.rows)
        blocks = any(spec.block > 1 for spec in self.arrays)
        return partition(n) if blocks else np.arange(n)

    @cached_property
    def contents(self) -> Contents:
        """Everything of the store but its values."""
        images = self.samples.images
        return Contents(
            self.arrays,
            self.samples.ids,
            images.name,
            self.provenance(),
            self.dtype,
            None if images.labels is None else images.labels[self.samples.rows],
            tuple(images.classes),
            self.order if any(spec.block > 1 for spec in self.arrays) else None,
        )

    @property
    def bytes_per_sample(self) -> float:
        """Bytes that one picture takes in the store."""
        return sum(spec.row_bytes(self.dtype) / spec.block for spec in self.arrays)

    @property
    def bytes(self) -> int:
        """Bytes of all arrays."""
        n = len(self.samples.rows)
        return sum(spec.row_bytes(self.dtype) * (n // spec.block) for spec in self.arrays)

    @property
    def bytes_free(self) -> int:
        """Bytes on the disk that are free for the store, those counted that an interrupted run has taken for it."""
        folder = next(p for p in (self.path.parent, *self.path.parent.absolute().parents) if p.is_dir())
        partial = partial_path(self.path)
        taken = partial.stat().st_blocks * 512 if partial.exists() else 0
        return shutil.disk_usage(folder).free + taken

    def check_room(self, others: int = 0) -> None:
        """Raise `OutputError` unless the disk has room for the store and 5 % more, beside what ``others`` will take."""
        if self.bytes * 1.05 + others > self.bytes_free:
            raise OutputError(
                f"{self.path} needs {human(self.bytes)} and the disk has {human(self.bytes_free)} free",
                path=self.path,
                remedy=Remedy("take fewer layers or samples, a smaller readout, or ", Argument("dtype", "float16")),
            )

    def provenance(self) -> dict[str, Any]:
        """Everything that decided the numbers, as JSON values."""
        return {
            **self.extractor.provenance(),
            **({"batch_norm": self._batch_norm} if self.recalibrate else {}),
            "data": self.samples.images.name,
            "samples": len(self.samples.rows),
            "skipped": self.samples.skipped,
            "data_fingerprint": self.samples.ids.content,
            **self._remarks,
            "readouts": sorted({spec.key.readout for spec in self.arrays if not spec.key.control}),
            "dtype": self.dtype,
            "batch_size": self.how.batch_size,
            "device": torch.device(self.how.device).type,
            "amp": self.how.amp,
            "repsim_version": __version__,
            "h5py_version": h5py.__version__,
            "command": self.command,
        }

    @property
    def _remarks(self) -> dict[str, Any]:
        """What is recorded of the pictures only where there is something to record."""
        images, left_out = self.samples.images, self.samples.left_out
        entries: dict[str, Any] = {
            "left_out": left_out.counts,
            "labels": dict(images.label_record),
            "max_pixels": images.max_pixels if images.max_pixels != MAX_PIXELS else None,
        }
        return {key: value for key, value in entries.items() if value}

    @property
    def _batch_norm(self) -> str:
        """What is recorded of it where it is recalibrated, known before that is done."""
        if isinstance(self.extractor, ModuleExtractor) and batch_norms(self.extractor.model):
            return f"recalibrated on {min(SAMPLES, len(self.samples.rows))} samples"
        return "none in this network"

    def prepare(self, me: Ranks = ALONE) -> None:
        """Recalibrate batch norm, if that is asked for: one process for all, so that none has other last digits."""
        if self.recalibrate and isinstance(self.extractor, ModuleExtractor) and batch_norms(self.extractor.model):
            model, samples = self.extractor.model, self.samples
            found = measure(model, self.extractor.transform, samples.images, samples.rows, self.how) if me.first else {}
            assign(model, me.share(found))

    def samples_stored(self) -> int:
        """How many samples are stored already, by an earlier run of the same settings.

        Raises
        ------
        OutputError
            What is there was made with other settings; the message says which.
        """
        return stored(self.path, self.contents, overwrite=self.overwrite) if self._resume else 0

    def lacks_hashes(self) -> bool:
        """Whether what is stored already keeps no hashes that the pictures could be held against.

        Names and sizes of the files, which every store keeps, are the same: `samples_stored` refuses all else.
        """
        there = next((path for path in (self.path, partial_path(self.path)) if path.exists()), None)
        return there is not None and not reader.read(there)[0].sample_ids.contents_known(self.samples.ids)

    @property
    def _resume(self) -> bool:
        """``overwrite`` starts anew, but not a second time where torchrun has to start the run again."""
        return not self.overwrite or restarted()

    def batches(self, written: NDArray[np.bool_]) -> list[NDArray[np.int64]]:
        """Positions in `order`, a batch each, of what is not written yet.

        The batches are the same however often the work is interrupted and however many processes share it, and so are
        the numbers.
        """
        size, n = self.how.batch_size, len(self.order)
        every = [np.arange(start, min(start + size, n)) for start in range(0, n, size)]
        return [batch for batch in every if not written[self.order[batch]].all()]

    def writer(self, *, first: bool) -> StoreWriter:
        """Make the store's writer, which takes up what an earlier run has left."""
        return StoreWriter(self.path, self.contents, overwrite=self.overwrite, resume=self._resume, first=first)

    def run(self, progress: Progress | None = None, me: Ranks = ALONE) -> ActivationStore:
        """Stream all samples through the model and write the store; see `run_together`."""
        return run_together([self], progress, me)[0]


def run_together(
    jobs: Sequence[Extraction], progress: Progress | None = None, me: Ranks = ALONE
) -> list[ActivationStore]:
    """Extract several models over the same samples, each picture decoded once; write a store each.

    What earlier runs of the same settings have stored is kept. Among several processes (``me``) each reads its share of
    the pictures and writes its rows into the one file of each model.

    Parameters
    ----------
    jobs
        Over the same samples, in the same batches; where there are several, extractors with equal preprocessing.
    progress
        Called after each batch with the samples done and all that are to be done, over all jobs, by this process.
    me
        Which of the processes this one is.

    Returns
    -------
    list of ActivationStore
        Finished, open for reading.

    Raises
    ------
    RepsimError
        A picture that cannot be read, a value that is not finite, a disk that is full. What was written before is kept,
        and the same call goes on from there.
    """
    if len({job.path for job in jobs}) < len(jobs):
        twice = next(job.path for i, job in enumerate(jobs) if job.path in [other.path for other in jobs[:i]])
        raise InvalidInputError(f"two of the models would both be written to {twice}")
    # only the first looks: on a file system of several machines, others may see for a while what was
    needed = [job.samples_stored() < len(job.order) or not job.path.exists() for job in jobs] if me.first else []
    todo = [job for job, need in zip(jobs, me.share(needed), strict=True) if need]
    if me.first:
        for i, job in enumerate(todo):
            job.check_room(sum(other.bytes for other in todo[:i]))
    with ExitStack() as stack:
        writers = [job.writer(first=me.first) for job in todo]
        if me.first:
            for writer in writers:
                stack.enter_context(writer)
        marks = me.share([writer.written for writer in writers] if me.first else [])
        if not me.first:
            for writer in writers:
                stack.enter_context(writer)
        shares = [job.batches(written) for job, written in zip(todo, marks, strict=True)]
        shares = [batches[me.part(len(batches))] for batches in shares]
        before = sum(int(written.sum()) for written in marks) if me.world == 1 else 0
        for job in todo:
            job.prepare(me)
        _fill(todo, writers, shares, before, progress)
        if not me.first:
            for writer in writers:
                writer.commit()
        me.wait()  # the first closes the files as it leaves the block: all rows have to be there
    me.wait()
    return [open_store(job.path) for job in jobs]


def _fill(
    jobs: Sequence[Extraction],
    writers: Sequence[StoreWriter],
    shares: Sequence[Sequence[NDArray[np.int64]]],
    done: int,
    progress: Progress | None,
) -> None:
    """Stream the samples in ``shares``, positions in each job's order, and write what comes in a thread of its own."""
    total = done + sum(len(batch) for share in shares for batch in share)
    if progress is not None and done:
        progress(done, total)
    waiting: deque[Future[int]] = deque()
    # closed at once after an error: no hook may stay on a model of the user's
    with closing(_stream(jobs, shares)) as batches, ThreadPoolExecutor(1, "repsim-writer") as thread:

        def settle(at_most: int) -> None:
            nonlocal done
            while len(waiting) > at_most or (waiting and waiting[0].done()):
                done += waiting.popleft().result()
                if progress is not None:
                    progress(done, total)

        returned = time.monotonic()
        for k, positions, batch in batches:
            waiting.append(thread.submit(_record, jobs[k], writers[k], positions, batch))
            settle(_ON_THEIR_WAY)
            interrupts.check()
            if time.monotonic() - returned > _RETURN_SECONDS:
                return_memory()
                returned = time.monotonic()
        settle(0)


def _stream(
    jobs: Sequence[Extraction], shares: Sequence[Sequence[NDArray[np.int64]]]
) -> Generator[tuple[int, NDArray[np.int64], Batch], None, None]:
    """Which job, positions of samples, and what was read; pictures are decoded once where they can be shared."""
    if not jobs:
        return
    extractors, images, how = [job.extractor for job in jobs], jobs[0].samples.images, jobs[0].how
    rows = [
        [job.samples.rows[i] for batch in share for i in job.order[batch]]
        for job, share in zip(jobs, shares, strict=True)
    ]
    alike = [e for e in extractors if isinstance(e, ModuleExtractor)]
    if len(alike) == len(jobs) and len({e.preprocessing for e in alike}) == 1:
        batches = stream_together(alike, images, rows, how)
    else:
        batches = ((k, b) for k, e in enumerate(extractors) for b in e.stream(images, rows[k], how))
    left = [iter(share) for share in shares]
    for k, batch in batches:
        positions = next(left[k])
        assert batch.rows == tuple(jobs[k].samples.rows[i] for i in jobs[k].order[positions]), "not what was asked for"
        yield k, positions, batch


def _record(job: Extraction, writer: StoreWriter, positions: NDArray[np.int64], batch: Batch) -> int:
    """Write one batch; returns how many samples that makes."""
    samples = job.order[positions]
    for spec in job.arrays:
        values = batch.values[spec.key.layer, spec.key.readout].numpy()
        first = int(positions[0]) // spec.block
        writer.write(spec.key, samples if spec.block == 1 else slice(first, first + len(values)), values)
    writer.done(samples)
    return len(samples)
