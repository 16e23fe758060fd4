"""Extract activations of loaded models: choose samples, stream readouts, and write them batch by batch.

Reading and decoding (worker processes), forward passes and readouts (this process), and writing (a thread) overlap. The
memory holds a few batches at a time, for any number of samples.
"""

import math
import shutil
import time
from collections import deque
from collections.abc import Generator, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from numpy.typing import NDArray

from repsim._version import __version__
from repsim.errors import Argument, ImageError, InvalidInputError, OutputError, Remedy, SampleError
from repsim.extraction.options import DType
from repsim.extractors import Batch, Extractor, ImageSource, Stream
from repsim.extractors.classification import Classes, classes_of_outputs
from repsim.extractors.factory import library_of
from repsim.extractors.loading import stream_together
from repsim.extractors.modules import ModuleExtractor
from repsim.extractors.readouts import get_several
from repsim.extractors.recalibration import (
    SAMPLES,
    as_initialised,
    assign,
    batch_norms,
    check_weights,
    measure,
    statistics_of,
)
from repsim.extractors.samples.decoding import MAX_PIXELS
from repsim.extractors.samples.opening import choose, examine
from repsim.extractors.samples.source import Content, LeftOut, SampleSource
from repsim.extractors.tokens import padding_of
from repsim.labels import PREDICTION, LayerKey, SampleIds, check_model_name, partition
from repsim.runtime import interrupts
from repsim.runtime.arrays import as_groups
from repsim.runtime.deprecation import rename_keyword, warn_deprecated
from repsim.runtime.files import format_size, partial_path
from repsim.runtime.hardware import choose_device, cores
from repsim.runtime.heap import keep_freed_blocks, release_free_heap
from repsim.runtime.processes import ALONE, Ranks, restarted
from repsim.runtime.progress import Progress, counter, expect, sharing
from repsim.stores import reader
from repsim.stores.axes import ENTRY, Axes, check_axes
from repsim.stores.records import as_json
from repsim.stores.schema import ArraySpec, Contents
from repsim.stores.store import ActivationStore, open_store
from repsim.stores.writer import StoreWriter, count_stored

_PENDING_BATCHES = 4
"""Largest number of batches that wait to be written: a buffer for delays of the disk."""
_FLOAT16_INTEGERS = 2**11
"""Largest number of consecutive integers from 0 that float16 holds exactly."""
_COMMON_SAMPLES = 100
"""Number of samples that every process reads, to compare its copy of the data with those of the others."""
_RELEASE_SECONDS = 1.0
"""Time in seconds between two calls that return free memory to the operating system."""


@dataclass(frozen=True)
class Samples:
    """Samples to read: rows of a source, and the samples that were left out because they are damaged."""

    source: SampleSource
    rows: list[int]
    """Positions of the samples in ``source``."""
    skipped: dict[str, str] = field(default_factory=dict)
    """Mapping from id to the reason why the sample cannot be read."""
    contents: Mapping[int, Content] | None = None
    """Mapping from row to the hashed content of the sample. None: the samples are hashed when `ids` is first used."""

    @property
    def images(self) -> SampleSource:
        """Source of the samples, by its earlier name."""
        warn_deprecated("Samples.images", instead="write source", gone_in="2.0.0")
        return self.source

    @cached_property
    def ids(self) -> SampleIds:
        """Ids of the samples, with a fingerprint of their sizes and hashes of their contents."""
        source, rows = self.source, self.rows
        contents = self.contents if self.contents is not None else examine(source, rows, cores())[0]
        hashes = b"".join(contents[row].digest for row in rows)
        return SampleIds(tuple(source.ids[row] for row in rows), source.fingerprint(rows), hashes, source.content_kind)

    @property
    def left_out(self) -> LeftOut:
        """Files that the source left out, and pictures with further frames, which are not read."""
        left_out = LeftOut()
        left_out.reasons.update(self.source.left_out.reasons)
        contents = self.contents or {}
        for row in self.rows if contents else ():
            if contents[row].frames:
                left_out.add("with further frames, of which the first is taken", self.source.ids[row])
        return left_out

    @property
    def notes(self) -> list[str]:
        """Messages for the user about choices that were made, and about files that were left out."""
        left_out = [f"{self.source.name}: left out: {self.left_out}"] if self.left_out else []
        return [*self.source.notes, *left_out]


@rename_keyword("images", "source", gone_in="2.0.0")
def choose_samples(
    source: SampleSource,
    *,
    limit: int | None = None,
    skip_bad: bool = False,
    progress: Progress | None = None,
    me: Ranks = ALONE,
    check: bool = True,
) -> Samples:
    """Choose ``limit`` samples, spread evenly over the source.

    Every sample is read before the first forward pass and its contents are hashed, so that a store is not completed
    with other samples of the same names. With ``skip_bad`` samples are also decoded in this pass. The size of every
    array is then known in advance, and all models of one command read the same samples.

    Parameters
    ----------
    source : SampleSource
        The samples.
    limit : int, optional
        Number of samples; by default all.
    skip_bad : bool
        Leave out samples that cannot be decoded.
    progress : callable, optional
        Called with the numbers of samples that were read and of all.
    me : Ranks
        Position of this process among those that share the work.
    check : bool
        If False (and ``skip_bad`` is False), no sample is read.

    Returns
    -------
    Samples
        The chosen samples.

    Raises
    ------
    SampleError
        A sample cannot be read, or with ``skip_bad`` none of them can.
    """
    rows = choose(len(source), limit)
    if not check and not skip_bad:
        return Samples(source, rows)
    own = examine(source, rows[me.part(len(rows))], cores(), progress, skip_bad=skip_bad)
    parts = me.gather(own)
    if me.world > 1:
        me.agree({"contents of the samples": _copy_of(source, rows, own[0], skip_bad=skip_bad)})
    contents = {row: content for part_contents, _ in parts for row, content in part_contents.items()}
    bad = {row: why for _, part_bad in parts for row, why in part_bad.items()}
    rows = [row for row in rows if row in contents]
    if not rows:
        kind = ImageError if source.modality == "image" else SampleError
        raise kind(
            f"none of the {len(bad)} {source.noun} of {source.name} can be read; the first: {next(iter(bad.values()))}"
        )
    return Samples(source, rows, {source.ids[row]: why for row, why in bad.items()}, contents)


def _copy_of(
    source: SampleSource, rows: list[int], own: Mapping[int, Content], *, skip_bad: bool
) -> tuple[str, list[bytes | None]]:
    """Return the names and sizes of all samples, and the hashes of some that all processes read.

    Nodes may have copies of the data of their own. To read all of them on every node would take as long as the
    extraction; copies that differ on purpose differ in many samples.
    """
    count = min(_COMMON_SAMPLES, len(rows))
    common = [rows[k] for k in choose(len(rows), count)] if source.indexable else rows[:count]  # others are streams
    others, _ = examine(source, [row for row in common if row not in own], cores(), skip_bad=skip_bad)
    contents = {**others, **own}
    return source.fingerprint(rows), [contents[row].digest if row in contents else None for row in common]


def choose_stream(
    samples: Samples,
    *,
    readout: str,
    batch_size: int | None,
    workers: int | None,
    device: str,
    amp: bool,
    channels_last: bool = False,
    compile: bool = False,  # noqa: A002 - the name of the option
) -> Stream:
    """Return the options of the forward passes, with defaults for those that are None.

    By default there is one process per core (at most 8) that prepares samples, and none for few samples or for those
    that are in memory, for which starting the processes would take longer. The default batch size is that of a source
    with batches of its own, else 32, rounded up to full blocks of readouts like ``gram:B``.
    """
    if batch_size is None:
        block = math.lcm(*(item.block for item in get_several(readout)))
        batch_size = block * -(-(samples.source.batch_size or 32) // block)
    if workers is None:
        short = len(samples.rows) <= 2 * batch_size or samples.source.quick
        workers = 0 if short else min(8, cores())
    return Stream(
        batch_size=batch_size, workers=workers, device=choose_device(device), amp=amp, channels_last=channels_last,
        compile=compile,
    )  # fmt: skip


@dataclass(frozen=True)
class Extraction:
    """Planned extraction of one model. All options have been checked, and nothing has been computed yet."""

    extractor: Extractor
    samples: Samples
    folder: Path
    how: Stream = field(default_factory=Stream)
    dtype: DType = "float32"
    overwrite: bool = False
    recalibrate: bool = False
    """Give batch norm of random weights the statistics of the samples (`repsim.extractors.recalibration`)."""
    command: str | None = None
    """Command line that is recorded in the store as its origin."""
    name: str | None = None
    """Name of the store, and of the model in results; by default the name of the extractor."""
    stated: Mapping[str, Any] = field(default_factory=dict)
    """Entries of the provenance that the user states, such as the architecture of a torch module."""
    axes: Axes = field(default_factory=dict)
    """Coordinates of the model that the user states, such as its training step."""

    def __repr__(self) -> str:
        return (
            f"<Extraction of {self.model}: {len(self.arrays)} arrays, {len(self.samples.rows)} samples of "
            f"{self.samples.source.name}, {format_size(self.bytes)} for {self.path.name}>"
        )

    def __post_init__(self) -> None:
        if self.name is not None:
            check_model_name(self.name)
        recorded = self._recorded() if self.stated or self.recalibrate else {}
        for key, value in self.stated.items():
            if key in recorded and recorded[key] != value:
                raise InvalidInputError(
                    f"provenance: the extraction itself records {key} as {recorded[key]!r}, which contradicts "
                    f"{value!r}; leave it out"
                )
        if self.recalibrate:
            check_weights({**self.stated, **recorded}.get("weights"), module="weights" not in recorded)
            if not isinstance(self.extractor, ModuleExtractor):
                raise InvalidInputError(
                    f"{self.extractor.name} is not a torch module, so its batch norm cannot be recalibrated"
                )
        if getattr(self.extractor, "depends_on_padding", False) and self.how.batch_size > 1:
            raise InvalidInputError(
                f"{self.extractor.name} reads the padding of a batch, so its values would depend on the other texts",
                remedy=Remedy("read each text alone with ", Argument("batch_size", 1)),
            )
        if self.how.compile or self.how.channels_last:
            self._check_passes()
        for _, readout in self.extractor.readouts.values():
            if self.how.batch_size % readout.block:
                raise InvalidInputError(
                    f"readout {readout.name} needs batches of whole blocks: the batch size must be a multiple of "
                    f"{readout.block}, not {self.how.batch_size}"
                )
            if readout.block > 1 and not self.samples.source.indexable:
                raise InvalidInputError(
                    f"readout {readout.name} reads samples in a random order, and {self.samples.source.name} can only "
                    "be read from its beginning; use another readout, or data with an index"
                )

    def _check_passes(self) -> None:
        """Raise `InvalidInputError` if the model cannot be compiled, or has no channels that could be last."""
        own = self.extractor if isinstance(self.extractor, ModuleExtractor) else None
        example = None if own is None else own.preparation.examples[0]
        pictures = isinstance(example, torch.Tensor) and example.ndim == 4
        if self.how.channels_last and not pictures:
            raise InvalidInputError(
                f"{self.extractor.name} reads no pictures, so no channels can be put last",
                remedy=Remedy("leave out ", Argument("channels_last", value=True)),
            )
        if self.how.compile and (own is None or own.preparation.mask(example) is not None):
            why = "is not a torch module" if own is None else "reads batches of different numbers of tokens"
            raise InvalidInputError(
                f"{self.extractor.name} {why}, so it cannot be compiled",
                remedy=Remedy("leave out ", Argument("compile", value=True)),
            )

    @property
    def notes(self) -> list[str]:
        """Messages for the user before the extraction starts."""
        n = len(self.samples.rows)
        noun = self.samples.source.noun
        left = {spec.block: n % spec.block for spec in self.arrays if n % spec.block}
        return [*getattr(self.extractor, "notes", ()), *self._truncation_notes] + [
            f"gram:{block}: {rest} of {n} {noun} do not fill a block and are left out" for block, rest in left.items()
        ]

    @property
    def model(self) -> str:
        """Name of the model in results."""
        return self.name or self.extractor.name

    @property
    def path(self) -> Path:
        """File of the store."""
        return self.folder / f"{self.model}.h5"

    @cached_property
    def arrays(self) -> tuple[ArraySpec, ...]:
        """Arrays of the store: layers in depth order, then the controls; a predicted class only if it has a label."""
        controls = {
            key: control
            for key, control in getattr(self.extractor, "controls", {}).items()
            if key != PREDICTION or self.classes is not None
        }
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
                    **({"padding": padding_of(readout)} if layer.axes == "NTC" else {}),
                    **(readout.facts(layer) if hasattr(readout, "facts") else {}),  # names of columns, seeds
                    **({"classes": self.classes.rule} if key == PREDICTION and self.classes is not None else {}),
                },
                readout.block,
            )
            for key, (layer, readout) in {**self.extractor.readouts, **controls}.items()
        )

    @cached_property
    def classes(self) -> Classes | None:
        """Classes of the labels that the outputs of the model stand for; None if it does not classify the samples."""
        control, source = getattr(self.extractor, "controls", {}).get(PREDICTION), self.samples.source
        if control is None or source.labels is None:
            return None
        count = len(source.classes) or int(source.labels.max()) + 1
        if self.dtype == "float16" and count > _FLOAT16_INTEGERS:  # the number of a class would be rounded
            return None
        return classes_of_outputs(control[0].shape[0], source.classes, count)

    @cached_property
    def order(self) -> NDArray[np.int64]:
        """Positions of the samples in the order in which they are read, shape (n,).

        Blocks of samples (``gram:B``) must be a random partition that is the same for every model: in folders that are
        sorted by class, neighbours are of one class. Without blocks the order is that of the samples, or texts are
        sorted by their numbers of tokens, the longest first, as a batch is padded to its longest text.
        """
        n = len(self.samples.rows)
        if any(spec.block > 1 for spec in self.arrays):
            return partition(n)
        if self.lengths is None or not self.samples.source.indexable:
            return np.arange(n)
        return np.argsort(-self.lengths, kind="stable")

    @cached_property
    def lengths(self) -> NDArray[np.int64] | None:
        """Number of tokens of each sample before truncation, (n,); None if the model has no tokens."""
        count = getattr(self.extractor, "lengths", None)
        if count is None:
            return None
        samples = [sample for _, sample in self.samples.source.read(self.samples.rows)]
        return np.asarray(count(samples), np.int64)

    @property
    def _tokens(self) -> dict[str, int]:
        """Provenance of the numbers of tokens: those of the longest sample, and the samples that are cut."""
        if self.lengths is None or not isinstance(self.extractor, ModuleExtractor):
            return {}
        longest = self.extractor.preparation.longest
        cut = 0 if longest is None else int((self.lengths > longest).sum())
        return {"longest": int(self.lengths.max()), "truncated": cut}

    @property
    def _truncation_notes(self) -> list[str]:
        tokens = self._tokens
        if not tokens.get("truncated") or not isinstance(self.extractor, ModuleExtractor):
            return []
        most, noun = self.extractor.preparation.longest, self.samples.source.noun
        share = f"{tokens['truncated']} of {len(self.samples.rows)} {noun}"
        return [f"{share} have more than {most} tokens and are cut there; the longest has {tokens['longest']}"]

    @cached_property
    def contents(self) -> Contents:
        """Description of the store without the values of its arrays."""
        source = self.samples.source
        groups: NDArray[np.int64] | None = None
        group_names: tuple[str, ...] = ()
        if source.groups is not None:  # numbered anew, without the groups of samples that are left out
            groups, group_names = as_groups([source.group_names[k] for k in source.groups[self.samples.rows]])
        return Contents(
            self.arrays,
            self.samples.ids,
            source.name,
            self.provenance(),
            self.dtype,
            None if source.labels is None else source.labels[self.samples.rows],
            tuple(source.classes),
            self.order if any(spec.block > 1 for spec in self.arrays) else None,
            groups=groups,
            group_names=group_names,
        )

    @property
    def bytes_per_sample(self) -> float:
        """Bytes of one sample in the store."""
        return sum(spec.row_bytes(self.dtype) / spec.block for spec in self.arrays)

    @property
    def bytes(self) -> int:
        """Bytes of all arrays."""
        n = len(self.samples.rows)
        return sum(spec.row_bytes(self.dtype) * (n // spec.block) for spec in self.arrays)

    @property
    def bytes_free(self) -> int:
        """Free bytes on the disk for the store, including those that an interrupted run has already reserved for it."""
        folder = next(p for p in (self.path.parent, *self.path.parent.absolute().parents) if p.is_dir())
        partial = partial_path(self.path)
        reserved = partial.stat().st_blocks * 512 if partial.exists() else 0
        return shutil.disk_usage(folder).free + reserved

    def check_disk_space(self, other_bytes: int = 0) -> None:
        """Raise `OutputError` unless the disk has space for the store plus 5 %, and for ``other_bytes``."""
        if self.bytes * 1.05 + other_bytes > self.bytes_free:
            raise OutputError(
                f"{self.path} needs {format_size(self.bytes)} and the disk has {format_size(self.bytes_free)} free",
                path=self.path,
                remedy=Remedy("use fewer layers or samples, a smaller readout, or ", Argument("dtype", "float16")),
            )

    def provenance(self) -> dict[str, Any]:
        """Return everything that determines the values, and what the user states, as JSON values."""
        axes = {ENTRY: check_axes(self.axes)} if self.axes else {}
        entries = {**as_json(self.stated, "provenance"), **self._recorded(), **axes}
        if "architecture" in entries:  # studies, which need it for families, would have to import timm
            entries.setdefault("library", library_of(str(entries["architecture"])))
        return entries

    def _recorded(self) -> dict[str, Any]:
        return {
            **self.extractor.provenance(),
            **self._batch_norm,
            "data": self.samples.source.name,
            **self._modality,
            **self.samples.source.record,
            **self._tokens,
            "samples": len(self.samples.rows),
            "skipped": self.samples.skipped,
            "data_fingerprint": self.samples.ids.content,
            **self._remarks,
            "readouts": sorted({spec.key.readout for spec in self.arrays if not spec.key.control}),
            "dtype": self.dtype,
            "batch_size": self.how.batch_size,
            "device": torch.device(self.how.device).type,
            "amp": self.how.amp,
            **{key: True for key in ("channels_last", "compile") if getattr(self.how, key)},
            "repsim_version": __version__,
            "h5py_version": h5py.__version__,
            "command": self.command,
        }

    @property
    def _modality(self) -> dict[str, str]:
        """Modality of the samples; pictures are what a store without this entry is made of."""
        modality = self.samples.source.modality
        return {} if modality == "image" else {"modality": modality}

    @property
    def _remarks(self) -> dict[str, Any]:
        """Entries about the samples that are recorded only if they are not empty."""
        source, left_out = self.samples.source, self.samples.left_out
        max_pixels = source.max_pixels if isinstance(source, ImageSource) else MAX_PIXELS
        entries: dict[str, Any] = {
            "left_out": left_out.counts,
            "labels": dict(source.label_record),
            "groups": dict(source.group_record),
            "max_pixels": max_pixels if max_pixels != MAX_PIXELS else None,
        }
        return {key: value for key, value in entries.items() if value}

    @property
    def _batch_norm(self) -> dict[str, str]:
        """Provenance of the batch norm of an untrained network; it can be planned, as it does not depend on the result.

        A network that is made by name records itself that its batch norm is not recalibrated.
        """
        norms = batch_norms(self.extractor.model) if isinstance(self.extractor, ModuleExtractor) else {}
        if self.recalibrate:
            record = (
                f"recalibrated on {min(SAMPLES, len(self.samples.rows))} samples" if norms else "none in this network"
            )
        elif self.stated.get("weights") == "random" and any(map(as_initialised, norms.values())):
            record = "eval mode, not recalibrated"
        else:
            return {}
        return {"batch_norm": record}

    @contextmanager
    def prepared(self, me: Ranks = ALONE) -> Iterator[None]:
        """Recalibrate batch norm during the block if the option is set; a module of the user keeps its own statistics.

        The first process computes the statistics for all processes, so that they are equal to the last digit.
        """
        if not (self.recalibrate and isinstance(self.extractor, ModuleExtractor)):
            yield
            return
        model, preparation, samples = self.extractor.model, self.extractor.preparation, self.samples
        own = statistics_of(model)
        if own:
            statistics = measure(model, preparation, samples.source, samples.rows, self.how) if me.first else {}
            assign(model, me.broadcast(statistics))
        try:
            yield
        finally:
            assign(model, own)

    def samples_stored(self) -> int:
        """Return the number of samples that an earlier run with the same settings has stored.

        Raises
        ------
        OutputError
            The existing store was made with other settings; the message names them.
        """
        return count_stored(self.path, self.contents, overwrite=self.overwrite) if self._resume else 0

    def lacks_hashes(self) -> bool:
        """Return whether an existing store has no hashes with which the samples could be compared.

        Names and sizes of the files are equal in any case, as `samples_stored` checks them.
        """
        existing = next((path for path in (self.path, partial_path(self.path)) if path.exists()), None)
        return existing is not None and not reader.read(existing)[0].sample_ids.contents_known(self.samples.ids)

    @property
    def _resume(self) -> bool:
        """Whether to continue an existing store: without ``overwrite``, or when torchrun has restarted the run."""
        return not self.overwrite or restarted()

    def batches(self, written: NDArray[np.bool_]) -> list[NDArray[np.int64]]:
        """Return the positions in `order` of all samples that are not written yet, one array per batch.

        The batches, and so the values, do not depend on interruptions or on the number of processes.
        """
        size, n = self.how.batch_size, len(self.order)
        every = [np.arange(start, min(start + size, n)) for start in range(0, n, size)]
        return [batch for batch in every if not written[self.order[batch]].all()]

    def writer(self, *, first: bool) -> StoreWriter:
        """Return the writer of the store, which continues an unfinished store."""
        return StoreWriter(self.path, self.contents, overwrite=self.overwrite, resume=self._resume, first=first)

    def run(self, progress: Progress | None = None, me: Ranks = ALONE) -> ActivationStore:
        """Extract all samples, and return the finished store; see `run_together`."""
        return run_together([self], progress, me)[0]


def run_together(
    jobs: Sequence[Extraction], progress: Progress | None = None, me: Ranks = ALONE
) -> list[ActivationStore]:
    """Extract several models from the same samples, with each of which is prepared once, and write one store per model.

    Samples that earlier runs with the same settings have stored are kept. If several processes share the work (``me``),
    each reads its part of the samples and writes its rows into the file of each model.

    Parameters
    ----------
    jobs : sequence of Extraction
        Extractions of the same samples, in the same batches.
    progress : callable, optional
        Called after each batch with the number of samples done and of all samples to do, summed over all jobs, by this
        process.
    me : Ranks
        Position of this process among those that share the work.

    Returns
    -------
    list of ActivationStore
        The finished stores, open for reading.

    Raises
    ------
    RepsimError
        A sample cannot be read, a value is not finite, or the disk is full. All samples written before are kept, and
        the same call continues after them.
    """
    if len({job.path for job in jobs}) < len(jobs):
        twice = next(job.path for i, job in enumerate(jobs) if job.path in [earlier.path for earlier in jobs[:i]])
        raise InvalidInputError(f"two models would be written to {twice}; give each a name of its own")
    # only the first process looks: on a network file system other hosts may see stale metadata for a few seconds
    needed = [job.samples_stored() < len(job.order) or not job.path.exists() for job in jobs] if me.first else []
    todo = [job for job, need in zip(jobs, me.broadcast(needed), strict=True) if need]
    if me.first:
        for i, job in enumerate(todo):
            job.check_disk_space(sum(earlier.bytes for earlier in todo[:i]))
    with ExitStack() as stack:
        writers = [job.writer(first=me.first) for job in todo]
        if me.first:
            for writer in writers:
                stack.enter_context(writer)
        marks = me.broadcast([writer.written for writer in writers] if me.first else [])
        if not me.first:
            for writer in writers:
                stack.enter_context(writer)
        shares = [job.batches(written) for job, written in zip(todo, marks, strict=True)]
        shares = [batches[me.part(len(batches))] for batches in shares]
        before = sum(int(written.sum()) for written in marks) if me.world == 1 else 0
        keep_freed_blocks()
        step = counter(before + sum(len(batch) for share in shares for batch in share), progress)
        step.skip(before)
        with sharing(step):
            for job in todo:
                stack.enter_context(job.prepared(me))
        expect(progress, None)  # preparing took time, but gave no samples
        _fill(todo, writers, shares, before, progress)
        if not me.first:
            for writer in writers:
                writer.commit()
        me.wait()  # the first process closes the files at the end of the block, after all rows are written
    me.wait()
    return [open_store(job.path) for job in jobs]


def _fill(
    jobs: Sequence[Extraction],
    writers: Sequence[StoreWriter],
    shares: Sequence[Sequence[NDArray[np.int64]]],
    done: int,
    progress: Progress | None,
) -> None:
    """Stream the samples in ``shares`` (positions in each job's order), and write the readouts in a separate thread."""
    total = done + sum(len(batch) for share in shares for batch in share)
    if progress is not None and done:
        progress(done, total)
    waiting: deque[Future[int]] = deque()
    # closed at once after an error, so that no hook remains on a model of the user
    with closing(_stream(jobs, shares)) as batches, ThreadPoolExecutor(1, "repsim-writer") as thread:

        def settle(at_most: int) -> None:
            nonlocal done
            while len(waiting) > at_most or (waiting and waiting[0].done()):
                done += waiting.popleft().result()
                if progress is not None:
                    progress(done, total)

        released = time.monotonic()
        for k, positions, batch in batches:
            waiting.append(thread.submit(_record, jobs[k], writers[k], positions, batch))
            settle(_PENDING_BATCHES)
            interrupts.check()
            if time.monotonic() - released > _RELEASE_SECONDS:
                release_free_heap()
                released = time.monotonic()
        settle(0)


def _stream(
    jobs: Sequence[Extraction], shares: Sequence[Sequence[NDArray[np.int64]]]
) -> Generator[tuple[int, NDArray[np.int64], Batch], None, None]:
    """Yield the number of the job, the positions of the samples, and their readouts, batch by batch.

    Each sample is prepared once if all models have the same preparation.
    """
    if not jobs:
        return
    extractors, source, how = [job.extractor for job in jobs], jobs[0].samples.source, jobs[0].how
    rows = [
        [job.samples.rows[i] for batch in share for i in job.order[batch]]
        for job, share in zip(jobs, shares, strict=True)
    ]
    alike = [e for e in extractors if isinstance(e, ModuleExtractor)]
    if len(alike) == len(jobs) and len({e.preprocessing for e in alike}) == 1:
        batches = stream_together(alike, source, rows, how)
    else:
        batches = ((k, b) for k, e in enumerate(extractors) for b in e.stream(source, rows[k], how))
    left = [iter(share) for share in shares]
    for k, batch in batches:
        positions = next(left[k])
        assert batch.rows == tuple(jobs[k].samples.rows[i] for i in jobs[k].order[positions]), "unexpected samples"
        yield k, positions, batch


def _record(job: Extraction, writer: StoreWriter, positions: NDArray[np.int64], batch: Batch) -> int:
    """Write one batch, and return its number of samples."""
    samples = job.order[positions]
    for spec in job.arrays:
        values = batch.values[spec.key.layer, spec.key.readout].numpy()
        if job.classes is not None and (spec.key.layer, spec.key.readout) == PREDICTION:
            values = job.classes.numbers[values.astype(np.int64)]
        first = int(positions[0]) // spec.block
        writer.write(spec.key, samples if spec.block == 1 else slice(first, first + len(values)), values)
    writer.mark_done(samples)
    return len(samples)
