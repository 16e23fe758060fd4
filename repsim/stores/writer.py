"""Writing activation stores so that a kill at any moment costs seconds.

A store grows under the name ``<name>.partial``. Its file is laid out in full at first (`repsim.stores.layout`); from
then on rows go to their places as plain bytes, and HDF5's own structures never change. Now and then the writer commits:
it waits until the rows are on the disk, and only then marks their samples as written. Who comes later trusts those
marks and nothing else. When every sample is marked, a checksum closes the file, and it gets its name.

One process lays out and closes, and holds a lock meanwhile. Others of the same run may write rows of their own.
"""

import os
import time
import zlib
from collections import Counter
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
from repsim.labels import INPUT, LayerKey, SampleIds, check_name
from repsim.runtime import interrupts
from repsim.runtime.arrays import as_array, as_classes, is_tensor, same_rows
from repsim.runtime.files import check_output, lock, partial_path
from repsim.stores import extents, layout, reader
from repsim.stores.records import as_json
from repsim.stores.schema import Array, ArraySpec, Contents
from repsim.stores.store import ActivationStore, open_store, store_path

_LONGEST_ID = 4096
"""Bytes: a path may be so long on Linux. All ids of a store take as much room as the longest."""
COMMIT_SECONDS = 2.0
"""What a kill costs at most, apart from what is on its way."""


class StoreWriter:
    """Writes one store. A context manager: the file gets its name when the block ends well.

    What an earlier run has committed under the same `Contents` is kept: `written` tells which samples. A block that
    ends with an error keeps what was committed, for the next run; with nothing committed, nothing is left behind.

    Parameters
    ----------
    path
        The store's name.
    contents
        All but the values.
    overwrite
        Replace what has the name.
    resume
        Go on with what an earlier run has left; otherwise start anew.
    first
        Whether this process lays out and closes the file. Another one opens what the first has laid out, and writes
        rows of its own.

    Raises
    ------
    OutputError
        The name is taken; another process is writing; what an earlier run left was made with other settings; the disk
        is full.
    InvalidInputError
        Ids that are not unique, layers that cannot be named, values that are not finite.
    """

    def __init__(
        self, path: Path, contents: Contents, *, overwrite: bool = False, resume: bool = False, first: bool = True
    ) -> None:
        self.path, self.partial, self.contents = path, partial_path(path), contents
        self.overwrite, self.resume, self.first = overwrite, resume, first
        _check(contents)
        self._specs = {spec.key: spec for spec in contents.arrays}
        self._file: int | None = None
        self._cleanup: int | None = None
        self._uncommitted: list[Array] = []
        self._committed = time.monotonic()

    def __enter__(self) -> Self:
        if self.first:
            check_output(self.path, overwrite=self.overwrite)
        with self._guard():
            self._file = os.open(self.partial, os.O_RDWR | (os.O_CREAT if self.first else 0), 0o666)
        _WRITERS.add(self)
        try:
            if self.first:
                self._lock()
                if not (self.resume and self._take_up()):
                    self._begin()
            else:
                self._layout = reader.read(self.partial)[1]
                self.written = self._marks()
        except BaseException:
            self._close()
            raise
        self._cleanup = interrupts.register(self._give_up)
        return self

    def _lock(self) -> None:
        lock(self._fd, self.partial)
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(self._fd), self.partial.stat()):
                return
        raise OutputError(f"another process has just finished {self.path}")

    def _take_up(self) -> bool:
        """Take up what an earlier run has left; False where that is nothing."""
        if not layout.is_laid_out(self._fd):
            return False
        there, self._layout = _read_partial(self.partial)
        if difference := there.difference(self.contents):
            if self.overwrite:
                return False
            raise OtherSettingsError(self.partial, difference)
        self.written = self._marks()
        return True

    def _begin(self) -> None:
        try:
            with self._guard(), interrupts.cleaned_up(lambda: self.partial.unlink(missing_ok=True)):
                layout.lay_out(self._fd, self.contents)
                self._layout = reader.read(self.partial)[1]
        except BaseException:
            self.partial.unlink(missing_ok=True)
            raise
        self.written = np.zeros(len(self.contents.sample_ids), bool)

    def write(self, key: LayerKey, rows: slice | Sequence[int] | Array, values: Array) -> None:
        """Write rows of one array, (rows, ...) or flattened to (rows, p), and their checksums."""
        spec, extent = self._specs[key], self._layout.arrays[key]
        where = np.arange(extent.shape[0])[rows]
        if not len(where):  # a last batch of too few samples for a block
            return
        values = self._checked(spec, where, values).reshape(len(where), -1)
        sums = np.array([zlib.crc32(extents.as_bytes(line)) for line in values], "<u4")
        with self._guard():
            for run in np.split(np.arange(len(where)), np.flatnonzero(np.diff(where) != 1) + 1):
                start, part = int(where[run[0]]), slice(run[0], run[-1] + 1)
                extents.write_at(self._fd, extent.offset + start * extent.row_bytes, values[part])
                extents.write_at(self._fd, self._layout.checksums[key].offset + 4 * start, sums[part])

    def _checked(self, spec: ArraySpec, where: Array, values: Array) -> Array:
        """In the store's dtype, or a refusal that counts what is not finite and names the layer and the sample."""
        dtype = self._layout.arrays[spec.key].dtype
        with np.errstate(over="ignore"):  # an overflow of float16 is found, and named, right below
            stored = np.ascontiguousarray(values, dtype).reshape(len(where), *spec.shape)
        finite = np.isfinite(stored)
        if finite.all():
            return stored
        row = int(np.argwhere(~finite)[0, 0])
        order = self.contents.order if spec.block > 1 else None
        sample = int(where[row]) * spec.block
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
        """Everything of these samples has been written; they count once it is committed, which happens now and then."""
        self._uncommitted.append(np.arange(len(self.contents.sample_ids))[samples])
        if time.monotonic() - self._committed > COMMIT_SECONDS:
            self.commit()

    def commit(self) -> None:
        """Wait until what was written is on the disk, then write the marks of finished samples, and wait again."""
        if not self._uncommitted:
            return
        samples = np.concatenate(self._uncommitted)
        self._uncommitted.clear()  # even if the sync fails: the next may succeed, and these rows be lost all the same
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
                with suppress(OutputError):  # the first error is the one to tell
                    self.commit()
                # of several processes one speaks, and tidies up, for all
                if self.first and (note := self._keep()) and error is not None:
                    error.add_note(note)
        finally:
            self._close()

    def _keep(self) -> Hint | None:
        """Leave what was committed, and say so; leave nothing where there is nothing."""
        count = int(self._marks().sum())
        if not count or not self.partial.exists():
            self.partial.unlink(missing_ok=True)
            return None
        kept = f"{count} of {len(self.contents.sample_ids)} samples are kept in {self.partial}"
        if not self.overwrite:
            return Hint(kept, remedy=Remedy(SAME_CALL, " on the same pictures goes on from there"))
        if self.path.exists():  # then only overwrite=True starts it, and starts it anew
            return Hint(f"{self.path} is still the one from before")
        return Hint(
            kept,
            remedy=Remedy(SAME_CALL, " without ", Argument("overwrite", value=True), " goes on from there"),
        )

    def _give_up(self) -> Hint | None:
        """What `__exit__` does after an error, from another thread, where the process ends without it."""
        with suppress(OutputError):
            self.commit()
        return self._keep() if self.first else None

    def _complete(self) -> None:
        """Every sample is there: close the file with a checksum, and give it its name."""
        missing = np.flatnonzero(~self._marks())
        if len(missing):
            first = self.contents.sample_ids.ids[missing[0]]
            raise OutputError(f"{self.partial}: {len(missing)} samples were never written, the first {first}")
        with self._guard():
            closed = layout.COMPLETE + extents.structure_checksum(self._fd, self._layout)
            extents.write_at(self._fd, self._layout.structure.offset, np.array([closed], "<u8"))
            os.fsync(self._fd)
            self.partial.replace(self.path)
            with suppress(OSError):  # not every file system can: the name itself is on the disk then a little later
                folder = os.open(self.path.parent, os.O_RDONLY)
                try:
                    os.fsync(folder)
                finally:
                    os.close(folder)

    @property
    def _fd(self) -> int:
        assert self._file is not None, "the writer is open"
        return self._file

    def _marks(self) -> Array:
        """Which samples are committed, by whichever process."""
        return extents.read_rows(self._fd, self._layout.written, 0, len(self.contents.sample_ids)).astype(bool)

    def _close(self) -> None:
        if self._cleanup is not None:
            interrupts.unregister(self._cleanup)
            self._cleanup = None
        if self._file is not None:
            os.close(self._file)  # and with it the lock
            self._file = None

    @contextmanager
    def _guard(self) -> Iterator[None]:
        """Turn what the system or HDF5 raises where it cannot write into one line."""
        try:
            yield
        except RepsimError:
            raise
        except (OSError, RuntimeError) as error:
            raise OutputError(f"cannot write {self.path}: {reason(error)}") from None


def count_stored(path: Path, contents: Contents, *, overwrite: bool = False) -> int:
    """How many samples of ``contents`` a finished store, or an interrupted run, has on the disk already.

    With ``overwrite``, what was made with other settings counts as nothing.

    Raises
    ------
    OutputError
        What is there was made with other settings; the message says which.
    StoreError
        A store of that name is damaged.
    """
    for there in (partial_path(path), path) if overwrite else (path, partial_path(path)):
        if not there.exists():
            continue
        if there == path:
            with open_store(path) as store:
                found, count = store.contents, len(store)
        else:
            with there.open("rb") as file:
                if not layout.is_laid_out(file.fileno()):
                    return 0
                found, places = _read_partial(there)
                count = int(extents.read_rows(file.fileno(), places.written, 0, len(found.sample_ids)).sum())
        if difference := found.difference(contents):
            if overwrite:
                continue
            raise OtherSettingsError(there, difference)
        return count
    return 0


_WRITERS: WeakSet[StoreWriter] = WeakSet()


def _forget_writers() -> None:
    """In a forked process (one that decodes pictures, say): it would hold the lock on after its parent was killed."""
    for writer in _WRITERS:
        writer._close()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_writers)


def _read_partial(path: Path) -> tuple[Contents, extents.Layout]:
    try:
        return reader.read(path)
    except StoreError as error:
        raise StoreError(
            f"what an interrupted run has left is damaged: {error}",
            path=path,
            remedy=Remedy(Argument("overwrite", value=True), " starts anew"),
        ) from None


def _check(contents: Contents) -> None:
    ids = contents.sample_ids.ids
    if len(set(ids)) < len(ids):
        twice = next(name for name, count in Counter(ids).items() if count > 1)
        raise InvalidInputError(f"sample id {twice!r} occurs twice; ids must be unique")
    for name in ids:
        check_name("sample id", name, _LONGEST_ID)
    for name in contents.classes:
        check_name("class", name)
    if contents.labels is not None and len(contents.labels) != len(ids):
        raise InvalidInputError(f"{len(contents.labels)} labels for {len(ids)} samples")
    if all(spec.key.control for spec in contents.arrays):
        raise InvalidInputError("a store needs at least one layer")
    if contents.source != "":
        check_name("the source", contents.source, _LONGEST_ID)
    for spec in contents.arrays:
        check_name("the model", spec.key.model)
        for what, part in (("layer", spec.key.layer), ("readout", spec.key.readout)):
            check_name(what, part)
            if "/" in part or part == ".":
                raise InvalidInputError(f"{part!r} cannot name a {what}: it may not hold a slash (use dots)")
        if not contents.rows(spec):
            raise InvalidInputError(f"{spec.key} needs at least {spec.block} samples, got {len(ids)}")


def write_store(
    path: str | os.PathLike[str],
    layers: Mapping[str, Any],
    *,
    model: str,
    pixels: Any = None,
    sample_ids: Iterable[str | int] | None = None,
    labels: Any = None,
    readout: str = "given",
    source: str = "given",
    provenance: Mapping[str, Any] | None = None,
    overwrite: bool = False,
) -> ActivationStore:
    """Make a store of activations that come from elsewhere.

    Values are stored as they are, or refused. Arrays of numpy, torch (of any device, with or without gradient), jax,
    pandas and xarray are taken.

    Parameters
    ----------
    path
        The new file.
    layers
        Layer name -> array (n samples, ...), in depth order; float16, float32 or float64, the same for all. bfloat16
        and 8-bit floats become float32, which holds each of their values exactly; the provenance records from what.
    model
        Names the model in every result.
    pixels
        What went into the model, an array (n samples, ...) of numbers, best at low resolution: it becomes the store's
        `ActivationStore.pixels`, in the dtype of the layers.
    sample_ids
        One id a sample, unique: text, or whole numbers. By default the names of the rows, where the arrays are data
        frames or carry coordinates; otherwise samples are numbered, and any two stores of as many samples agree.
    labels
        One class a sample: whole numbers from 0 on, or names. Names become `ActivationStore.classes`, in alphabetical
        order, and their numbers `ActivationStore.labels`. A pandas Categorical keeps the order of its categories;
        booleans become the classes False and True.
    readout
        How the arrays were read out, as it will stand under figures.
    source
        What the samples are, as it will stand under figures.
    provenance
        Anything else worth recording, as JSON values; numbers and arrays of numpy, paths and dates are turned into
        such.
    overwrite
        Replace an existing file.

    Raises
    ------
    InvalidInputError
        Arrays of unequal length, of no floating dtype, of several dtypes, masked, sparse, or with NaN or infinite
        values; labels that are no classes, one-hot ones, too, or missing; names with control characters; a provenance
        that JSON cannot hold; data frames whose rows have different names.
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
    """
    if not isinstance(layers, Mapping):
        raise InvalidInputError(
            f"layers: expected a dictionary {{name: array (n samples, ...)}}, got {type(layers).__name__}"
        )
    for what, name in (("the model", model), ("readout", readout), *(("layer", name) for name in layers)):
        check_name(what, name)
    arrays = {str(name): as_array(values, f"layer {name!r}") for name, values in layers.items()}
    shapes = {name: values.shape for name, values in arrays.items()}
    if len({shape[:1] for shape in shapes.values()}) > 1 or any(
        len(shape) < 2 or 0 in shape for shape in shapes.values()
    ):
        raise InvalidInputError(f"every layer must be (n samples, features ...) with the same n, got {_shown(shapes)}")
    dtype = _dtype(arrays)
    n = next(iter(shapes.values()))[0] if shapes else 0
    rows = {f"layer {name!r}": values for name, values in layers.items()}
    names = same_rows(rows | {"pixels": pixels, "labels": labels})
    ids = _ids(sample_ids, names, n)
    keys = {LayerKey(model, name, readout): values for name, values in arrays.items()}
    if any(key.control for key in keys):
        raise InvalidInputError(
            f"{'@'.join(INPUT)} is no layer: give it as pixels=, or name layer or readout otherwise"
        )
    if pixels is not None and keys:  # without a layer it is no store
        keys[LayerKey(model, *INPUT)] = _as_pixels(pixels, n)
    specs = tuple(ArraySpec(key, values.shape[1:]) for key, values in keys.items())
    numbers, classes = (None, ()) if labels is None else as_classes(labels, n)
    if not isinstance(provenance, Mapping | None):
        raise InvalidInputError(f"provenance: expected a dictionary, got {type(provenance).__name__}")
    record = {"extractor": "given", **_converted(layers, arrays), **as_json(provenance or {}, "provenance")}
    contents = Contents(specs, SampleIds(ids), source, record, dtype, numbers, classes)
    with StoreWriter(store_path(path), contents, overwrite=overwrite) as writer:
        for key, values in keys.items():
            writer.write(key, slice(None), values)
        writer.mark_done(slice(None))
    return open_store(path)


def _dtype(arrays: Mapping[str, Array]) -> str:
    """The one dtype of all layers; a store has one, and none is picked where they differ."""
    kinds = {name: values.dtype.name for name, values in arrays.items()}
    wrong = next((name for name, kind in kinds.items() if kind not in {"float16", "float32", "float64"}), None)
    if wrong is not None:
        raise InvalidInputError(
            f"layers must all be float16, float32 or float64, got {kinds[wrong]} in layer {wrong!r}; convert it with "
            "astype, as in x.astype('float32')"
        )
    first = next(iter(kinds), "")
    other = next((name for name, kind in kinds.items() if kind != kinds[first]), None)
    if other is not None:
        raise InvalidInputError(
            f"layers must all be float16, float32 or float64, the same for all, got {kinds[first]} in layer {first!r} "
            f"and {kinds[other]} in layer {other!r}; convert them to the widest with astype"
        )
    return kinds.get(first, "float32")


def _ids(sample_ids: Any, names: tuple[str, ...] | None, n: int) -> tuple[str, ...]:
    """The ids that are given, else the names of rows, else numbers."""
    if sample_ids is None:
        return names or tuple(map(str, range(n)))
    if isinstance(sample_ids, str | bytes | set | frozenset | Mapping):
        raise InvalidInputError(f"sample_ids: expected a sequence of {n} ids, got a {type(sample_ids).__name__}")
    if is_tensor(sample_ids) or isinstance(sample_ids, np.ma.MaskedArray):
        sample_ids = as_array(sample_ids, "sample_ids").tolist()
    try:
        ids = list(sample_ids)
    except TypeError as error:
        raise InvalidInputError(f"sample_ids: expected a sequence of {n} ids: {error}") from None
    for k, name in enumerate(ids):
        if isinstance(name, bool) or not isinstance(name, str | int | np.integer | os.PathLike):
            raise InvalidInputError(
                f"sample_ids are text or whole numbers; sample {k} has {name!r} of type {type(name).__name__}"
            )
    if len(ids) != n:
        raise InvalidInputError(f"{len(ids)} sample ids for {n} samples")
    if names is not None and tuple(map(str, ids)) != names:
        k = next(k for k, (a, b) in enumerate(zip(ids, names, strict=True)) if str(a) != b)
        raise InvalidInputError(
            f"sample_ids and the rows of the arrays are named differently: sample {k} is {str(ids[k])!r} and "
            f"{names[k]!r}. Leave sample_ids out, or give plain arrays (to_numpy())"
        )
    return tuple(map(str, ids))


def _converted(layers: Mapping[str, Any], arrays: Mapping[str, Array]) -> dict[str, Any]:
    """For the provenance: dtypes that no store has, of the layers that were converted from them."""
    before = {name: str(getattr(layers[name], "dtype", "")).removeprefix("torch.") for name in arrays}
    changed = {name: kind for name, kind in before.items() if kind == "bfloat16" or kind.startswith("float8")}
    return {"converted_from": changed} if changed else {}


def _shown(shapes: Mapping[str, tuple[int, ...]]) -> str:
    """The shapes that say what is wrong: of many layers, the first of each number of samples."""
    firsts = {shape[:1] if len(shape) > 1 and 0 not in shape else shape: name for name, shape in shapes.items()}
    return ", ".join(f"{shapes[name]} for {name!r}" for name in list(firsts.values())[:4])


def _as_pixels(pixels: Any, n: int) -> Array:
    try:
        values = as_array(pixels, "pixels")
    except InvalidInputError as error:
        raise InvalidInputError(
            f"pixels must be numbers (n samples, ...) for {n} samples, got something else: {error}"
        ) from None
    if values.dtype.kind not in "uif" or values.ndim < 2 or len(values) != n or not values.size:
        raise InvalidInputError(
            f"pixels must be numbers (n samples, ...) for {n} samples, got {values.dtype} {values.shape}"
        )
    return values
