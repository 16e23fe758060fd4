"""Lay out the file of a store, once and in full, before any of its values. docs/store-format.md is normative.

Every array has its final size and its final place from the start, in one piece, without filters. So rows are written,
read and checked as plain bytes at known places, by as many processes as there are, and HDF5's own structures never
change again: whatever kills a process, the file stays readable.
"""

import io
import json
import os
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Any

import h5py
import numpy as np

from repsim.stores.extents import write_at
from repsim.stores.schema import FORMAT, VERSION, Array, Contents

PARTIAL, COMPLETE = 1, 2**32
"""`checks/structure` while rows are being written; and, with the checksum added, once the store is complete."""
_BEGINNING = 2**9
"""Bytes that a kill cannot cut in two: HDF5's signature and where everything else is."""


class _SparseBuffer(io.RawIOBase):
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
    buffer = _SparseBuffer()
    _draw(buffer, contents)
    buffer.copy_to(file)


def is_laid_out(file: int) -> bool:
    """Whether a file that was to become a store got so far that there can be rows in it."""
    return any(os.pread(file, 8, 0))


def _draw(buffer: _SparseBuffer, contents: Contents) -> None:
    """By HDF5. Groups keep the order in which they are made: else blocks.10 comes before blocks.2."""
    with h5py.File(buffer, "w", track_order=True) as file:
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
            array = group.create_dataset(spec.key.readout, (rows, *spec.shape), dtype, dcpl=contiguous_layout())
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


def contiguous_layout() -> Any:
    """Contiguous, with its place in the file from the start, and not filled: no byte is written twice."""
    layout = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    layout.set_layout(h5py.h5d.CONTIGUOUS)
    layout.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
    layout.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
    return layout
