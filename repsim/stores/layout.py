"""Create the HDF5 file of a store with its final structure, before any values are written.

docs/store-format.md describes the format. Every array has its final size and position from the start, contiguous and
without filters. Rows can then be written, read and checked as plain bytes at known offsets, by several processes, and
the structures of HDF5 never change again: the file stays readable whenever a process is killed.
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
"""Values of `checks/structure`: while rows are being written, and (plus the checksum) once the store is complete."""
_SUPERBLOCK = 2**9
"""Bytes at the start of the file, with HDF5's signature; one disk sector, so a crash never writes a part of them."""


class _SparseBuffer(io.RawIOBase):
    """In-memory file that allocates memory only for pages that are written.

    HDF5 creates the structure of a store in this buffer, in which arrays without values take no memory, and not on the
    disk: HDF5 crashes if the disk is full.
    """

    PAGE = 2**16
    """Bytes of a page."""

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
        remaining = memoryview(data).cast("B")
        written = len(remaining)
        while remaining:
            page, at = divmod(self.position, self.PAGE)
            part = remaining[: self.PAGE - at]
            self.pages.setdefault(page, bytearray(self.PAGE))[at : at + len(part)] = part
            remaining, self.position = remaining[len(part) :], self.position + len(part)
        self.size = max(self.size, self.position)
        return written

    def readinto(self, buffer: Any) -> int:
        remaining = memoryview(buffer).cast("B")[: max(0, self.size - self.position)]
        read = len(remaining)
        while remaining:
            page, at = divmod(self.position, self.PAGE)
            part = memoryview(self.pages.get(page, bytes(self.PAGE)))[at : at + len(remaining)]
            remaining[: len(part)] = part
            remaining, self.position = remaining[len(part) :], self.position + len(part)
        return read

    def copy_to(self, file: int) -> None:
        """Write the pages to a file, the superblock last; pages that were never written become holes."""
        os.ftruncate(file, 0)
        os.ftruncate(file, self.size)
        for page, data in self.pages.items():
            start = page * self.PAGE
            skip = _SUPERBLOCK if page == 0 else 0
            write_at(file, start + skip, np.frombuffer(data, "u1")[skip : self.size - start])
        os.fsync(file)
        write_at(file, 0, np.frombuffer(self.pages[0], "u1")[:_SUPERBLOCK])
        os.fsync(file)


def lay_out(file: int, contents: Contents) -> None:
    """Write the structure of a store and all its contents but the values.

    The rows of arrays are holes in the file, which take no disk space yet. The file begins with zeros until the rest is
    on the disk: after an interruption `is_laid_out` is false. If it is true and the file cannot be read, the file is
    damaged.

    Parameters
    ----------
    file : int
        Descriptor of a file that is open for writing; what it holds is replaced.
    contents : Contents
        The contents of the store.
    """
    buffer = _SparseBuffer()
    _write_structure(buffer, contents)
    buffer.copy_to(file)


def is_laid_out(file: int) -> bool:
    """Return whether `lay_out` has finished on this file, so that it may hold rows."""
    return any(os.pread(file, 8, 0))


def _write_structure(buffer: _SparseBuffer, contents: Contents) -> None:
    """Write the HDF5 file without the values of its arrays.

    Groups track the order of creation; otherwise blocks.10 would come before blocks.2.
    """
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
        if contents.groups is not None:
            samples.create_dataset("groups", data=_texts(contents.group_names))
            samples.create_dataset("group", data=np.asarray(contents.groups, "<i8"))
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
    """Return the group ``names[0]/names[1]/...`` below ``parent``, and create missing groups."""
    for name in names:
        parent = parent[name] if name in parent else parent.create_group(name, track_order=True)
    return parent


def _texts(values: Iterable[str]) -> Array:
    """Return texts as an array of fixed-width strings.

    HDF5 keeps variable-length strings in a heap, and may never return from reading a damaged heap.
    """
    encoded = [value.encode() for value in values]
    return np.array(encoded, h5py.string_dtype("utf-8", max(1, *map(len, encoded))))


def _describe(owner: Any, facts: Mapping[str, Any]) -> None:
    """Write attributes, except those that are None."""
    for key, value in facts.items():
        if isinstance(value, str):
            text = _texts([value])
            owner.attrs.create(key, text[0], dtype=text.dtype)
        elif value is not None:
            owner.attrs[key] = value


def contiguous_layout() -> Any:
    """Return creation properties of a dataset: contiguous, allocated at once, not filled with zeros."""
    layout = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    layout.set_layout(h5py.h5d.CONTIGUOUS)
    layout.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
    layout.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
    return layout
