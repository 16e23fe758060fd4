"""Write activation stores that lose only a few seconds of work if the process is killed.

An unfinished store has the name ``<name>.partial``. First its whole structure is written (`repsim.stores.layout`); from
then on rows are written as plain bytes at known offsets, and the structures of HDF5 never change. Every few seconds the
writer commits: it waits until the rows are on the disk, and then marks their samples as written. A later run relies on
these marks only. When all samples are marked, a checksum completes the file, and the file is renamed.

One process creates and completes the file and holds a lock on it. Other processes of the same run may write rows.
"""

import os
import time
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from weakref import WeakSet

import numpy as np

from repsim.errors import (
    SAME_CALL,
    Argument,
    Hint,
    InvalidInputError,
    OtherSettingsError,
    OutputError,
    Remedy,
    RepsimError,
    StoreError,
    reason,
)
from repsim.labels import LayerKey, noun_of
from repsim.runtime import interrupts
from repsim.runtime.arrays import as_array
from repsim.runtime.files import NO_LINK, check_output, lock, partial_path, sync_folder
from repsim.stores import extents, layout, reader
from repsim.stores.axes import StatedAxes
from repsim.stores.given import check_contents, common_dtype, convert_layers, describe
from repsim.stores.schema import Array, ArraySpec, Contents
from repsim.stores.store import ActivationStore, open_store, store_path

COMMIT_SECONDS = 2.0
"""Seconds between two commits: work that is lost at most, apart from batches that are not written yet."""


class StoreWriter:
    """Writer of one store; a context manager that renames the complete file at the end of the block.

    The attribute `written`, a boolean array of shape (n,), marks the samples that an earlier run with the same
    `Contents` has committed. If the block ends with an error, the committed samples are kept for the next run; if there
    are none, the file is removed.

    Parameters
    ----------
    path : Path
        The file.
    contents : Contents
        Contents of the store without the values.
    overwrite : bool
        Replace an existing file.
    resume : bool
        Resume an interrupted run; otherwise start again from the first sample.
    first : bool
        Whether this process creates and completes the file. Other processes open the file that the first has created,
        and write their own rows.

    Raises
    ------
    OutputError
        The file exists, another process is writing it, an interrupted run had other settings, or the disk is full.
    InvalidInputError
        Sample ids are not unique, a name is not allowed, or values are not finite.
    """

    def __init__(
        self, path: Path, contents: Contents, *, overwrite: bool = False, resume: bool = False, first: bool = True
    ) -> None:
        self.path, self.partial, self.contents = path, partial_path(path), contents
        self.overwrite, self.resume, self.first = overwrite, resume, first
        check_contents(contents)
        self._specs = {spec.key: spec for spec in contents.arrays}
        self._file: int | None = None
        self._cleanup: int | None = None
        self._uncommitted: list[Array] = []
        self._committed = time.monotonic()

    def __enter__(self) -> Self:
        if self.first:
            check_output(self.path, overwrite=self.overwrite)
        with self._guard():
            self._file = os.open(self.partial, os.O_RDWR | NO_LINK | (os.O_CREAT if self.first else 0), 0o666)
        _WRITERS.add(self)
        try:
            if self.first:
                self._lock()
                if not (self.resume and self._resume_run()):
                    self._start_run()
            else:
                self._layout = reader.read(self.partial)[1]
                self.written = self._marks()
        except BaseException:
            self._close()
            raise
        self._cleanup = interrupts.register(self._abort)
        return self

    def _lock(self) -> None:
        lock(self._fd, self.partial)
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(self._fd), self.partial.stat()):
                return
        raise OutputError(f"another process has just finished {self.path}")

    def _resume_run(self) -> bool:
        """Resume an interrupted run; return False if there is none that can be resumed."""
        if not layout.is_laid_out(self._fd):
            return False
        earlier, self._layout = _read_partial(self.partial)
        if difference := earlier.difference(self.contents):
            if self.overwrite:
                return False
            raise OtherSettingsError(self.partial, difference)
        self.written = self._marks()
        return True

    def _start_run(self) -> None:
        try:
            with self._guard(), interrupts.cleaned_up(lambda: self.partial.unlink(missing_ok=True)):
                layout.lay_out(self._fd, self.contents)
                self._layout = reader.read(self.partial)[1]
        except BaseException:
            self.partial.unlink(missing_ok=True)
            raise
        self.written = np.zeros(len(self.contents.sample_ids), bool)

    def write(self, key: LayerKey, rows: slice | Sequence[int] | Array, values: Array) -> None:
        """Write rows of one array, and their checksums.

        Parameters
        ----------
        key : LayerKey
            The array.
        rows : slice, sequence of int, or array of int
            Indices of the rows.
        values : array of shape (rows, ...) or (rows, p)
            The values, perhaps flattened; converted to the dtype of the store.

        Raises
        ------
        InvalidInputError
            Values are NaN or infinite, or overflow the dtype of the store.
        OutputError
            The file cannot be written.
        """
        if key not in self._layout.arrays and key.control:  # an interrupted run of an earlier version lacks statistics
            return
        spec, extent = self._specs[key], self._layout.arrays[key]
        indices = np.arange(extent.shape[0])[rows]
        if not len(indices):  # a last batch with too few samples for a block
            return
        values = self._converted(spec, indices, values).reshape(len(indices), -1)
        sums = np.array([zlib.crc32(extents.as_bytes(line)) for line in values], "<u4")
        with self._guard():
            for run in np.split(np.arange(len(indices)), np.flatnonzero(np.diff(indices) != 1) + 1):
                start, part = int(indices[run[0]]), slice(run[0], run[-1] + 1)
                extents.write_at(self._fd, extent.offset + start * extent.row_bytes, values[part])
                extents.write_at(self._fd, self._layout.checksums[key].offset + 4 * start, sums[part])

    def _converted(self, spec: ArraySpec, indices: Array, values: Array) -> Array:
        """Convert values to the dtype of the store; refuse values that are not finite."""
        dtype = self._layout.arrays[spec.key].dtype
        with np.errstate(over="ignore"):  # the check below reports overflow
            stored = np.ascontiguousarray(values, dtype).reshape(len(indices), *spec.shape)
        finite = np.isfinite(stored)
        if finite.all():
            return stored
        row = int(np.argwhere(~finite)[0, 0])
        order = self.contents.order if spec.block > 1 else None
        sample = int(indices[row]) * spec.block
        name = self.contents.sample_ids.ids[sample if order is None else int(order[sample])]
        at = f"the first in sample {name}" if spec.block == 1 else f"the first in the block that begins with {name}"
        overflow = int(np.isfinite(np.asarray(values)).sum() - finite.sum())
        if overflow:
            raise InvalidInputError(
                f"{spec.key}: {overflow} values overflow {dtype.name} (beyond {np.finfo(dtype).max:,.0f}), {at}",
                remedy=Remedy("use ", Argument("dtype", "float32")),
            )
        raise InvalidInputError(f"{spec.key}: {int((~finite).sum())} values are NaN or infinite, {at}")

    def mark_done(self, samples: slice | Sequence[int] | Array) -> None:
        """Record that all values of these samples are written; commit if the last commit was some seconds ago."""
        self._uncommitted.append(np.arange(len(self.contents.sample_ids))[samples])
        if time.monotonic() - self._committed > COMMIT_SECONDS:
            self.commit()

    def commit(self) -> None:
        """Wait until the values are on the disk, then mark the finished samples as written, and wait for the marks."""
        if not self._uncommitted:
            return
        samples = np.concatenate(self._uncommitted)
        self._uncommitted.clear()  # even if fsync fails: a later one may succeed although these rows were lost
        with self._guard():
            os.fsync(self._fd)
            for run in np.split(samples, np.flatnonzero(np.diff(samples) != 1) + 1):
                extents.write_at(self._fd, self._layout.written.offset + int(run[0]), np.ones(len(run), "u1"))
            os.fsync(self._fd)
        self._committed = time.monotonic()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self.commit()
                if self.first:
                    self._complete()
            else:
                with suppress(OutputError):  # the first error is reported
                    self.commit()
                # the first process reports and cleans up for all processes
                if self.first and (note := self._keep_committed()) and error is not None:
                    error.add_note(note)
        finally:
            self._close()

    def _keep_committed(self) -> Hint | None:
        """Return a hint how to resume if samples are committed; remove the file if there are none."""
        count = int(self._marks().sum())
        if not count or not self.partial.exists():
            self.partial.unlink(missing_ok=True)
            return None
        kept = f"{count} of {len(self.contents.sample_ids)} samples are kept in {self.partial}"
        if not self.overwrite:
            noun = noun_of([str(self.contents.provenance.get("modality") or "image")])
            return Hint(kept, remedy=Remedy(SAME_CALL, f" on the same {noun} goes on from there"))
        if self.path.exists():  # then a run needs overwrite=True, which does not resume
            return Hint(f"{self.path} is unchanged")
        return Hint(
            kept,
            remedy=Remedy(SAME_CALL, " without ", Argument("overwrite", value=True), " goes on from there"),
        )

    def _abort(self) -> Hint | None:
        """Commit and clean up as `__exit__` does after an error; called if a signal ends the process at once."""
        with suppress(OutputError):
            self.commit()
        return self._keep_committed() if self.first else None

    def _complete(self) -> None:
        """Write the checksum of a store with all its samples, and rename the file."""
        missing = np.flatnonzero(~self._marks())
        if len(missing):
            first = self.contents.sample_ids.ids[missing[0]]
            raise OutputError(f"{self.partial}: {len(missing)} samples were never written, the first {first}")
        with self._guard():
            state = layout.COMPLETE + extents.structure_checksum(self._fd, self._layout)
            extents.write_at(self._fd, self._layout.structure.offset, np.array([state], "<u8"))
            os.fsync(self._fd)
            self.partial.replace(self.path)
            sync_folder(self.path.parent)

    @property
    def _fd(self) -> int:
        assert self._file is not None, "the writer is open"
        return self._file

    def _marks(self) -> Array:
        """Read which samples are committed, by any process: a boolean array of shape (n,)."""
        return extents.read_rows(self._fd, self._layout.written, 0, len(self.contents.sample_ids)).astype(bool)

    def _close(self) -> None:
        if self._cleanup is not None:
            interrupts.unregister(self._cleanup)
            self._cleanup = None
        if self._file is not None:
            os.close(self._file)  # releases the lock
            self._file = None

    @contextmanager
    def _guard(self) -> Iterator[None]:
        """Turn errors of the system or of HDF5 into `OutputError`."""
        try:
            yield
        except RepsimError:
            raise
        except (OSError, RuntimeError) as error:
            raise OutputError(f"cannot write {self.path}: {reason(error)}") from None


def count_stored(path: Path, contents: Contents, *, overwrite: bool = False) -> int:
    """Count the samples of ``contents`` that a finished store, or an interrupted run, already has on the disk.

    Parameters
    ----------
    path : Path
        The store.
    contents : Contents
        Contents that the store should have.
    overwrite : bool
        Ignore stores and interrupted runs with other settings.

    Raises
    ------
    OtherSettingsError
        The store or the interrupted run has other settings; the message lists them.
    StoreError
        The store is damaged.
    """
    for existing in (partial_path(path), path) if overwrite else (path, partial_path(path)):
        if not existing.exists():
            continue
        if existing == path:
            with open_store(path) as store:
                earlier, count = store.contents, len(store)
        else:
            with existing.open("rb") as file:
                if not layout.is_laid_out(file.fileno()):
                    return 0
                earlier, extents_of = _read_partial(existing)
                count = int(extents.read_rows(file.fileno(), extents_of.written, 0, len(earlier.sample_ids)).sum())
        if difference := earlier.difference(contents):
            if overwrite:
                continue
            raise OtherSettingsError(existing, difference)
        return count
    return 0


_WRITERS: WeakSet[StoreWriter] = WeakSet()


def _close_writers_after_fork() -> None:
    """Close the files of all writers in a forked process; it would keep the lock after its parent is killed."""
    for writer in _WRITERS:
        writer._close()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_close_writers_after_fork)


def _read_partial(path: Path) -> tuple[Contents, extents.Layout]:
    try:
        return reader.read(path)
    except StoreError as error:
        raise StoreError(
            f"the file of an interrupted run is damaged: {error}",
            path=path,
            remedy=Remedy("start again with ", Argument("overwrite", value=True)),
        ) from None


def write_store(
    path: str | os.PathLike[str],
    layers: Mapping[str, Any],
    *,
    model: str,
    pixels: Any = None,
    controls: Mapping[str, Any] | None = None,
    sample_ids: Iterable[str | int] | None = None,
    labels: Any = None,
    groups: Any = None,
    readout: str = "given",
    source: str = "given",
    axes: StatedAxes | None = None,
    provenance: Mapping[str, Any] | None = None,
    overwrite: bool = False,
) -> ActivationStore:
    """Write activations that you have computed yourself to a store.

    Values are stored unchanged. Arrays can be of numpy, torch (on any device, with or without gradient), jax, pandas or
    xarray.

    Parameters
    ----------
    path : str or path
        The new file.
    layers : dict of str to array of shape (n, ...)
        The layers by name, in depth order. All have the same dtype: float16, float32 or float64. bfloat16 and 8-bit
        floats are converted to float32, which represents each of their values exactly; the provenance records it.
    model : str
        Name of the model, used in all results.
    pixels : array of shape (n, ...), optional
        Input of the model, best at low resolution. It is stored as `ActivationStore.pixels`, in the dtype of the
        layers. From pictures, (n, channels, height, width) with a height and width of at least 16, statistics of
        brightness, contrast, colours, edges and frequencies are computed and stored as `ActivationStore.statistics`,
        as `repsim.extract` does: a study projects both out of the layers. Vectors have no statistics.
    controls : dict of str to array or sequence, optional
        Other inputs of the model, which a study projects out of the layers, too (`ActivationStore.control`). ``texts``:
        n texts, of which sequences of characters and statistics such as lengths are stored, not the texts. ``tokens``:
        the ids of the model's tokens of each sample, n sequences of integers without special tokens; negative ids are
        padding. Without them, the words of the texts stand for tokens. ``embeddings``: the mean of the static
        embeddings of the tokens, (n, p). ``values``: an input that is a small array, (n, ...).
    sample_ids : sequence of str or int, optional
        One unique id for each sample. By default the names of the rows if the arrays are data frames or have
        coordinates. Otherwise samples are numbered, so that any two stores with the same number of samples match.
    labels : sequence of int or str, optional
        The class of each sample: an integer from 0, or a name. Names are stored as `ActivationStore.classes`, in
        alphabetical order, and their numbers as `ActivationStore.labels`. A pandas Categorical keeps the order of its
        categories; booleans become the classes False and True.
    groups : sequence of int or str, optional
        The group of each sample, if samples of one group are not independent: frames of a scene, near duplicates, crops
        of a picture. Stored as `ActivationStore.groups` and `ActivationStore.group_names`, numbered by first
        occurrence. `repsim.universality` then takes the groups as the units of its statistics.
    readout : str
        How a layer became an array, for figures.
    source : str
        Description of the samples, for figures.
    axes : dict of str to number or str, optional
        Coordinates of the model among others, such as ``{"step": 1000, "width": 64, "run": "a"}``. A name is an
        identifier in lower case, and a value a finite number or a text. Stored as `ActivationStore.axes`.
    provenance : dict, optional
        Further settings to record, as JSON values; numbers and arrays of numpy, paths and dates are converted.
    overwrite : bool
        Replace an existing file.

    Returns
    -------
    ActivationStore
        The new store, open for reading.

    Raises
    ------
    InvalidInputError
        Arrays have different lengths or dtypes, no floating dtype, or are masked or sparse; values are NaN or infinite;
        labels are missing, one-hot or otherwise no classes; names contain control characters; the provenance is no
        JSON; axes have other names or values; or data frames have different row names.
    OutputError
        The file exists, or cannot be written.

    Examples
    --------
    >>> import numpy as np, tempfile
    >>> x = np.random.default_rng(0).normal(size=(10, 4)).astype(np.float32)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     with write_store(f"{folder}/mine.h5", {"hidden": x, "out": x[:, :2]}, model="mine") as store:
    ...         store.layers, store["out"].shape
    (('hidden', 'out'), (10, 2))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     store = write_store(f"{folder}/a.h5", {"out": x[:3]}, model="mine", labels=["dog", "cat", "dog"])
    ...     store.classes, store.labels.tolist()
    (('cat', 'dog'), [1, 0, 1])
    >>> texts, tokens = ["a dog", "two dogs"], [[1, 2], [3, 2, 4]]
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     inputs = {"texts": texts, "tokens": tokens}
    ...     store = write_store(f"{folder}/a.h5", {"out": x[:2]}, model="m", controls=inputs)
    ...     store.control("input", "tokens").shape, store.control("input", "characters").shape
    ((2, 2, 3), (2, 1024))
    """
    arrays = convert_layers(layers, as_array)
    dtype = common_dtype({name: values.dtype.name for name, values in arrays.items()})
    described = describe(
        arrays, layers, dtype, model=model, pixels=pixels, controls=controls, sample_ids=sample_ids, labels=labels,
        groups=groups, readout=readout, source=source, axes=axes, provenance=provenance,
    )  # fmt: skip
    with StoreWriter(store_path(path), described.contents, overwrite=overwrite) as writer:
        for key, values in described.arrays.items():
            writer.write(key, slice(None), values)
        writer.mark_done(slice(None))
    return open_store(path)
