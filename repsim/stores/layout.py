"""What is where in a store's file: laid out once, found again with suspicion. docs/store-format.md is normative.

Every array has its final size and its final place from the start, in one piece, without filters. So rows are written,
read and checked as plain bytes at known places, by as many processes as there are, and HDF5's own structures never
change again: whatever kills a process, the file stays readable.

A file may come from a stranger. Nothing here follows a link into another file, and no size is believed before it has
been held against the size of the file.
"""

import io
import json
import os
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from repsim.errors import StoreError, reason
from repsim.labels import OTHER_PICTURES, LayerKey, SampleIds

FORMAT = "repsim-activations"
VERSION = 2
PARTIAL, COMPLETE = 1, 2**32
"""`checks/structure` while rows are being written; and, with the checksum added, once the store is complete."""
_BEGINNING = 2**9
"""Bytes that a kill cannot cut in two: HDF5's signature and where everything else is."""
_PIECE = 2**22

_NO_SETTINGS = frozenset({"command", "left_out", "labels", "max_pixels"})
"""What is recorded and decides no value: labels themselves are compared, not the file that they come from."""

Array = NDArray[Any]


@dataclass(frozen=True)
class ArraySpec:
    """One array of a store, before it is written."""

    key: LayerKey
    shape: tuple[int, ...]
    """Of one row."""
    facts: Mapping[str, Any] = field(default_factory=dict)
    """What is recorded of the layer: module type, output shape, axes, tokens."""
    block: int = 1
    """Samples that make one row: B where a row is the Gram matrix of B samples."""

    def row_bytes(self, dtype: str) -> int:
        """Bytes of one row."""
        return int(np.prod(self.shape, dtype=np.int64)) * np.dtype(dtype).itemsize


@dataclass(frozen=True)
class Contents:
    """Everything of a store but its values."""

    arrays: tuple[ArraySpec, ...]
    """In depth order, and then the control, if there is one (`LayerKey.control`)."""
    sample_ids: SampleIds
    source: str
    """What the samples are, for people."""
    provenance: Mapping[str, Any]
    dtype: str = "float32"
    labels: Array | None = None
    classes: tuple[str, ...] = ()
    order: Array | None = None
    """Positions of the samples in the order in which they were read, where rows are made of several: row k of an array
    of blocks is made of the samples order[k * block : (k + 1) * block]."""
    created: str = ""
    """ISO 8601, UTC; set when the file is laid out."""

    @property
    def model(self) -> str:
        """Names the model in every result."""
        return self.arrays[0].key.model

    def rows(self, spec: ArraySpec) -> int:
        """Rows of one array; samples that make no full row are left out."""
        return len(self.sample_ids) // spec.block

    def difference(self, other: "Contents") -> str | None:
        """How ``other`` would hold other values, in words; None where both promise the same to the bit."""
        samples = self.sample_ids.difference(other.sample_ids)
        found = [samples if samples.startswith(OTHER_PICTURES) else f"samples: {samples}"] if samples else []
        for key in dict.fromkeys((*self.provenance, *other.provenance)):
            if key not in _NO_SETTINGS and not (samples and key in {"samples", "data_fingerprint", "skipped"}):
                found += _differences(key, self.provenance.get(key), other.provenance.get(key))
        if not samples and (classes := self._other_classes(other)):
            found.append(f"labels: {classes}")
        mine, yours = ({spec.key.label: spec for spec in contents.arrays} for contents in (self, other))
        if lonely := [
            *(label for label in mine if label not in yours),
            *(label for label in yours if label not in mine),
        ]:
            found.append(f"layers: {len(mine)} there, {len(yours)} now (not in both: {_some(lonely)})")
        elif changed := [label for label, spec in mine.items() if yours[label].shape != spec.shape]:
            found.append(f"shapes of layers: {_some(changed)}")
        if self.dtype != other.dtype and "dtype" not in self.provenance:
            found.append(f"dtype: {self.dtype} there, {other.dtype} now")
        return "; ".join(found[:4]) + ("; ..." if len(found) > 4 else "") if found else None

    def _other_classes(self, other: "Contents") -> str | None:
        """How the samples' classes differ."""
        mine, yours = self.class_of, other.class_of
        if mine is None or yours is None:
            return (
                None
                if mine is yours
                else f"{'none' if mine is None else 'some'} there, " + ("none now" if yours is None else "some now")
            )
        changed = [k for k, (there, now) in enumerate(zip(mine, yours, strict=True)) if there != now]
        if not changed:
            return None
        k = changed[0]
        first = f"{self.sample_ids.ids[k]} ({mine[k]} there, {yours[k]} now)"
        return f"{len(changed)} of {len(mine)} differ, the first: {first}"

    @property
    def class_of(self) -> list[Any] | None:
        """Name of every sample's class, or its number where classes have no names; None without labels."""
        if self.labels is None:
            return None
        names = dict(enumerate(self.classes))
        return [names.get(number, number) for number in np.asarray(self.labels).tolist()]


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")


def _differences(key: str, there: Any, now: Any) -> list[str]:
    """What differs between two JSON values, down to the entries of dictionaries."""
    there, now = (json.loads(json.dumps(value)) for value in (there, now))  # tuples as lists, as they are stored
    if there == now:
        return []
    if isinstance(there, dict) and isinstance(now, dict):
        return [d for k in dict.fromkeys((*there, *now)) for d in _differences(f"{key}.{k}", there.get(k), now.get(k))]
    texts = ["nothing" if value is None else json.dumps(value) for value in (there, now)]
    return [f"{key}: {_short(texts[0])} there, {_short(texts[1])} now"]


def _short(text: str) -> str:
    """A hash is known by its beginning."""
    return text if len(text) <= 40 else text[:16] + '..."' if " " not in text else text[:40] + "..."


@dataclass(frozen=True)
class Extent:
    """Where a dataset's bytes are."""

    offset: int
    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    @property
    def row_bytes(self) -> int:
        """Of one entry of the first axis."""
        return int(np.prod(self.shape[1:], dtype=object)) * self.dtype.itemsize

    @property
    def size(self) -> int:
        """Of all."""
        return self.shape[0] * self.row_bytes


@dataclass(frozen=True)
class Layout:
    """Where everything in a file is."""

    arrays: Mapping[LayerKey, Extent]
    checksums: Mapping[LayerKey, Extent]
    """CRC-32 of every row."""
    written: Extent
    """A byte a sample, 1 once everything of it is on the disk."""
    structure: Extent
    """A checksum over everything but the arrays and itself, and how far the store is (`COMPLETE`)."""


class _Paper(io.RawIOBase):
    """A file in memory of which only what is written takes room.

    HDF5 lays out a store here, where arrays take none, and not on the disk: it does not survive a disk that is full.
    """

    PAGE = 2**16

    def __init__(self) -> None:
        self.pages: dict[int, bytearray] = {}
        self.size = self.position = 0

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self.position = offset + (self.size if whence == os.SEEK_END else self.position if whence == os.SEEK_CUR else 0)
        return self.position

    def tell(self) -> int:
        return self.position

    def truncate(self, size: int | None = None) -> int:
        self.size = self.position if size is None else size
        return self.size

    def write(self, data: Any) -> int:
        left = memoryview(data).cast("B")
        written = len(left)
        while left:
            page, at = divmod(self.position, self.PAGE)
            part = left[: self.PAGE - at]
            self.pages.setdefault(page, bytearray(self.PAGE))[at : at + len(part)] = part
            left, self.position = left[len(part) :], self.position + len(part)
        self.size = max(self.size, self.position)
        return written

    def readinto(self, buffer: Any) -> int:
        left = memoryview(buffer).cast("B")[: max(0, self.size - self.position)]
        read = len(left)
        while left:
            page, at = divmod(self.position, self.PAGE)
            part = memoryview(self.pages.get(page, bytes(self.PAGE)))[at : at + len(left)]
            left[: len(part)] = part
            left, self.position = left[len(part) :], self.position + len(part)
        return read

    def copy_to(self, file: int) -> None:
        """Write all of it, and the beginning last; where nothing was written the file has holes."""
        os.ftruncate(file, 0)
        os.ftruncate(file, self.size)
        for page, data in self.pages.items():
            start = page * self.PAGE
            skip = _BEGINNING if page == 0 else 0
            write_at(file, start + skip, np.frombuffer(data, "u1")[skip : self.size - start])
        os.fsync(file)
        write_at(file, 0, np.frombuffer(self.pages[0], "u1")[:_BEGINNING])
        os.fsync(file)


def lay_out(file: int, contents: Contents) -> None:
    """Write everything but the values; the rows of arrays are holes in the file, which take no room yet.

    The file begins with zeros until all of that is on the disk, so that whoever is interrupted here leaves a file that
    says so (`is_laid_out`): one that says otherwise and cannot be read is damaged.
    """
    paper = _Paper()
    _draw(paper, contents)
    paper.copy_to(file)


def is_laid_out(file: int) -> bool:
    """Whether a file that was to become a store got so far that there can be rows in it."""
    return any(os.pread(file, 8, 0))


def _draw(paper: _Paper, contents: Contents) -> None:
    """By HDF5. Groups keep the order in which they are made: else blocks.10 comes before blocks.2."""
    with h5py.File(paper, "w", track_order=True) as file:
        now = datetime.now(UTC).isoformat(timespec="seconds")
        _describe(file, {"format": FORMAT, "format_version": VERSION, "model": contents.model, "created": now})
        file.create_dataset("provenance", data=_texts([json.dumps(contents.provenance)]))  # too long for an attribute
        ids = contents.sample_ids
        samples = file.create_group("samples", track_order=True)
        fingerprints = {"content_fingerprint": ids.content, "id_fingerprint": ids.fingerprint}
        hashed = {"content_kind": ids.hashed} if ids.hashes else {}
        _describe(samples, {"source": contents.source, **fingerprints, **hashed})
        samples.create_dataset("id", data=_texts(ids))
        if ids.hashes:
            samples.create_dataset("content", data=np.frombuffer(ids.hashes, "<u8"))
        if contents.classes:
            samples.create_dataset("classes", data=_texts(contents.classes))
        if contents.labels is not None:
            samples.create_dataset("label", data=np.asarray(contents.labels, "<i8"))
        if contents.order is not None:
            samples.create_dataset("order", data=np.asarray(contents.order, "<i8"))
        checks = file.create_group("checks", track_order=True)
        checks.create_dataset("written", data=np.zeros(len(ids), "u1"))
        checks.create_dataset("structure", data=np.array([PARTIAL], "<u8"))
        for spec in contents.arrays:
            group = _group(file, "controls" if spec.key.control else "layers", spec.key.layer)
            table = _group(checks, "rows", spec.key.layer)
            _describe(group, spec.facts)
            rows = contents.rows(spec)
            dtype = np.dtype(contents.dtype).newbyteorder("<")
            array = group.create_dataset(spec.key.readout, (rows, *spec.shape), dtype, dcpl=in_one_piece())
            array.attrs["block"] = spec.block
            table.create_dataset(spec.key.readout, data=np.zeros(rows, "<u4"))


def _group(parent: h5py.Group, *names: str) -> h5py.Group:
    """A group in a group, made where it is not there yet."""
    for name in names:
        parent = parent[name] if name in parent else parent.create_group(name, track_order=True)
    return parent


def _texts(values: Iterable[str]) -> Array:
    """Strings of a fixed width, which lie where they belong.

    HDF5 keeps strings of variable length in a heap, and where that is damaged it may read on for ever.
    """
    encoded = [value.encode() for value in values]
    return np.array(encoded, h5py.string_dtype("utf-8", max(1, *map(len, encoded))))


def _describe(owner: Any, facts: Mapping[str, Any]) -> None:
    """Write attributes; what does not apply (None) is left out."""
    for key, value in facts.items():
        if isinstance(value, str):
            text = _texts([value])
            owner.attrs.create(key, text[0], dtype=text.dtype)
        elif value is not None:
            owner.attrs[key] = value


def in_one_piece() -> Any:
    """Contiguous, with its place in the file from the start, and not filled: no byte is written twice."""
    layout = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    layout.set_layout(h5py.h5d.CONTIGUOUS)
    layout.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
    layout.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
    return layout


def read(path: Path) -> tuple[Contents, Layout]:
    """Find out what a file holds, and where; `StoreError` where that is no store, or not to be trusted."""
    if not path.is_file():
        raise StoreError(f"{path} is a folder; name a file" if path.is_dir() else f"no such file: {path}")
    try:
        # no locks: a store that has its name never changes, and some file systems have none
        with h5py.File(path, "r", locking=False) as file:
            return _Reader(path, file).all()
    except StoreError:
        raise
    except OSError as error:
        known = {"truncated": "it is cut off", "signature": "it is no HDF5 file"}
        why = next((text for word, text in known.items() if word in str(error)), reason(error))
        raise StoreError(f"cannot read {path}: {why}") from None
    except Exception as error:  # noqa: BLE001 - what HDF5 makes of damaged structures is anything
        raise StoreError(f"{path} is a damaged store: {reason(error)}") from None


class _Reader:
    """Reads one file's structure; every step refuses what a store written by repsim cannot hold."""

    def __init__(self, path: Path, file: h5py.File) -> None:
        self.path, self.file = path, file
        self.bytes = path.stat().st_size

    def all(self) -> tuple[Contents, Layout]:
        """Everything."""
        file, path = self.file, self.path
        known = "format" in file.attrs and file.attrs.get_id("format").dtype.kind == "S"  # others' are in the heap
        if not known or self.attribute(file, "format") != FORMAT:
            raise StoreError(f"{path} is an HDF5 file but no activation store: its 'format' is not {FORMAT!r}")
        version = self.attribute(file, "format_version") if "format_version" in file.attrs else None
        if version != VERSION:
            newer = isinstance(version, int) and version > VERSION
            todo = "Install a newer repsim" if newer else "Extract it again"
            raise StoreError(f"{path} has store format {version}; this repsim reads {VERSION}. {todo}")
        self.ordered(file["/"])
        model, created = self.text(file, "model"), self.text(file, "created")
        samples, checks = self.group(file, "samples"), self.group(file, "checks")
        sample_ids = self.sample_ids(samples)
        n = len(sample_ids)
        if sample_ids.fingerprint != self.text(samples, "id_fingerprint"):
            raise StoreError(f"{path} is a damaged store: its sample ids are not what was written")
        written, structure = self.extent(checks, "written", (n,), "u1"), self.extent(checks, "structure", (1,), "<u8")
        found = [*self.arrays("layers", model, n), *(self.arrays("controls", model, n) if "controls" in file else ())]
        specs = tuple(spec for spec, _, _ in found)
        if all(spec.key.control for spec in specs):
            raise StoreError(f"{path} holds no layer")
        contents = Contents(
            specs,
            sample_ids,
            self.text(samples, "source"),
            json.loads(self.texts(file, "provenance")[0]),
            found[0][1].dtype.name,
            self.optional(samples, "label", n),
            self.texts(samples, "classes") if "classes" in samples else (),
            self.optional(samples, "order", n),
            created,
        )
        arrays = {spec.key: extent for spec, extent, _ in found}
        return contents, Layout(arrays, {spec.key: sums for spec, _, sums in found}, written, structure)

    def sample_ids(self, samples: h5py.Group) -> SampleIds:
        """Ids, with what is known of the pictures behind them; stores made before contents were hashed have no more."""
        ids, sizes = self.texts(samples, "id"), self.text(samples, "content_fingerprint")
        if ("content" in samples) != ("content_kind" in samples.attrs):
            raise StoreError(f"{self.path} is a damaged store: content and content_kind of its samples go together")
        if "content" not in samples:
            return SampleIds(ids, sizes)
        hashes = self.optional(samples, "content", len(ids), "<u8")
        assert hashes is not None, "it is there"
        return SampleIds(ids, sizes, hashes.tobytes(), self.text(samples, "content_kind"))

    def arrays(self, home: str, model: str, n: int) -> Iterator[tuple[ArraySpec, Extent, Extent]]:
        """Everything under ``layers`` or ``controls``: what it is, where its rows are, and where their checksums."""
        groups, tables = self.group(self.file, home), self.group(self.group(self.file, "checks"), "rows")
        for layer in groups:
            group = self.group(groups, layer)
            facts = {key: self.attribute(group, key) for key in group.attrs}
            for readout in group:
                key = LayerKey(model, layer, readout)
                if key.control != (home == "controls"):
                    raise StoreError(f"{self.path} is refused: {key} does not belong under {home}")
                array = self.extent(group, readout)
                if array.dtype.kind != "f" or len(array.shape) < 2:
                    raise StoreError(f"{self.path}: {key} holds no floating-point rows")
                block = self.attribute(group[readout], "block")
                if not isinstance(block, int) or block < 1 or array.shape[0] != n // block:
                    raise StoreError(f"{self.path}: {key} has {array.shape[0]} rows for {n} samples")
                sums = self.extent(self.group(tables, layer), readout, array.shape[:1], "<u4")
                yield ArraySpec(key, array.shape[1:], facts, block), array, sums

    def child(self, group: h5py.Group, name: str) -> Any:
        """What a name stands for; never through a link, which could lead into any file of the reader's machine."""
        link = group.get(name, getlink=True)
        if link is None:
            raise StoreError(f"{self.path} is a damaged store: {group.name.rstrip('/')}/{name} is missing")
        if not isinstance(link, h5py.HardLink):
            raise StoreError(
                f"{self.path} is refused: {group.name.rstrip('/')}/{name} is a link, perhaps to another file"
            )
        return group[name]

    def group(self, group: h5py.Group, name: str) -> h5py.Group:
        found = self.child(group, name)
        if not isinstance(found, h5py.Group):
            raise StoreError(f"{self.path} is a damaged store: {found.name} is no group")
        return self.ordered(found)

    def ordered(self, group: h5py.Group) -> h5py.Group:
        """A group without order has its names in a heap, and where that is made to deceive HDF5 reads on for ever."""
        if not group.id.get_create_plist().get_link_creation_order():
            raise StoreError(f"{self.path} is refused: the group {group.name} does not keep its order")
        return group

    def extent(
        self, group: h5py.Group, name: str, shape: tuple[int, ...] | None = None, dtype: str | None = None
    ) -> Extent:
        """Where a dataset is: inside this file, in one piece, and no larger than the file."""
        found = self.child(group, name)
        where = f"{self.path} is refused: {found.name}"
        if not isinstance(found, h5py.Dataset):
            raise StoreError(f"{where} is no dataset")
        made = found.id.get_create_plist()
        if made.get_layout() != h5py.h5d.CONTIGUOUS or made.get_external_count():
            raise StoreError(f"{where} does not lie in this file in one piece")
        offset, extent = found.id.get_offset(), Extent(0, found.shape, found.dtype)
        if not found.shape or offset is None or offset + extent.size > self.bytes or extent.size < 1:
            raise StoreError(f"{where} claims the shape {found.shape}, which the file has no room for")
        if (shape is not None and found.shape != shape) or (dtype is not None and found.dtype != np.dtype(dtype)):
            raise StoreError(f"{self.path} is a damaged store: {found.name} is {found.dtype} {found.shape}")
        return Extent(offset, found.shape, found.dtype)

    def values(self, extent: Extent) -> Array:
        with self.path.open("rb") as file:
            return read_rows(file.fileno(), extent, 0, extent.shape[0])

    def optional(self, group: h5py.Group, name: str, n: int, dtype: str = "<i8") -> Array | None:
        return self.values(self.extent(group, name, (n,), dtype)) if name in group else None

    def texts(self, group: h5py.Group, name: str) -> tuple[str, ...]:
        extent = self.extent(group, name)
        if extent.dtype.kind != "S" or len(extent.shape) != 1:
            raise StoreError(f"{self.path} is a damaged store: {group.name.rstrip('/')}/{name} holds no strings")
        return tuple(text.decode() for text in self.values(extent).tolist())

    def attribute(self, owner: Any, name: str) -> Any:
        """A string, a number, or a few of them, as plain Python values."""
        attribute = owner.attrs.get_id(name)
        if len(attribute.shape) > 1 or np.prod(attribute.shape, dtype=object) > 64:
            raise StoreError(
                f"{self.path} is refused: attribute {name} of {owner.name} has the shape {attribute.shape}"
            )
        if attribute.dtype.kind not in "biufS":
            raise StoreError(
                f"{self.path} is refused: attribute {name} of {owner.name} is no number and no fixed string"
            )
        value = owner.attrs[name].tolist()
        return value.decode() if isinstance(value, bytes) else value

    def text(self, owner: Any, name: str) -> str:
        value = self.attribute(owner, name)
        if not isinstance(value, str):
            raise StoreError(f"{self.path} is a damaged store: attribute {name} of {owner.name} is no string")
        return value


def stated_format(path: Path) -> str | None:
    """Read what an HDF5 file says that it is, its attribute ``format``; None where that is no text of a fixed width."""
    try:
        with h5py.File(path, "r", locking=False) as file:
            if "format" not in file.attrs or file.attrs.get_id("format").dtype.kind != "S":
                return None
            return str(_Reader(path, file).attribute(file, "format"))
    except Exception:  # noqa: BLE001 - who reads it next says why it cannot be read
        return None


def refuse_foreign(path: Path) -> str | None:
    """Raise `StoreError` where any HDF5 file leads into another one, or claims more than it has room for.

    Returns what it says that it is: its attribute ``format``.
    """
    with h5py.File(path, "r", locking=False) as file:
        groups: list[h5py.Group] = [file]
        seen: set[int] = set()
        while groups:
            group = groups.pop()
            if (address := h5py.h5o.get_info(group.id).addr) in seen:
                continue
            seen.add(address)
            for name in group:
                where = f"{path} is refused: {group.name.rstrip('/')}/{name}"
                if not isinstance(group.get(name, getlink=True), h5py.HardLink):
                    raise StoreError(f"{where} is a link, perhaps to another file")
                child = group[name]
                if isinstance(child, h5py.Group):
                    groups.append(child)
                elif isinstance(child, h5py.Dataset):
                    if child.is_virtual or child.external:
                        raise StoreError(f"{where} does not lie in this file")
                    if child.nbytes > path.stat().st_size:
                        raise StoreError(f"{where} claims the shape {child.shape}, which the file has no room for")
        kind = file.attrs.get("format")
    return kind.decode() if isinstance(kind, bytes) else kind


def read_rows(file: int, extent: Extent, start: int, stop: int) -> Array:
    """Read rows start:stop of a dataset as they lie in the file."""
    values = np.empty((stop - start, *extent.shape[1:]), extent.dtype)
    left = as_bytes(values)
    offset = extent.offset + start * extent.row_bytes
    while left:
        got = os.preadv(file, [left], offset)
        if not got:
            raise StoreError("the file is cut off")
        left, offset = left[got:], offset + got
    return values


def as_bytes(values: Array) -> memoryview:
    """The memory of a contiguous array."""
    return memoryview(values.reshape(-1).view(np.uint8))  # type: ignore[arg-type]


def write_at(file: int, offset: int, values: Array) -> None:
    """Write bytes to their place; a system call may take only some of them."""
    left = as_bytes(np.ascontiguousarray(values))
    while left:
        done = os.pwrite(file, left, offset)
        left, offset = left[done:], offset + done


def structure_checksum(file: int, layout: Layout) -> int:
    """CRC-32 over every byte of the file but the arrays', which have checksums of their own, and the result's."""
    taken = sorted((e.offset, e.offset + e.size) for e in (*layout.arrays.values(), layout.structure))
    crc, position, size = 0, 0, os.fstat(file).st_size
    for start, stop in (*taken, (size, size)):
        for at, length in _pieces(position, start):
            crc = zlib.crc32(os.pread(file, length, at), crc)
        position = max(position, stop)
    return crc


def _pieces(start: int, stop: int) -> Iterator[tuple[int, int]]:
    for at in range(start, stop, _PIECE):
        yield at, min(_PIECE, stop - at)
