"""Read, write and checksum the bytes of a store at known offsets in its file."""

import os
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from repsim.errors import StoreError
from repsim.labels import LayerKey
from repsim.stores.schema import Array

_PIECE = 2**22
"""Bytes that are read at once for a checksum."""


@dataclass(frozen=True)
class Extent:
    """Position, shape and dtype of a dataset in a file."""

    offset: int
    """Position of the first byte in the file."""
    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    @property
    def row_bytes(self) -> int:
        """Number of bytes of one row, that is one entry of the first axis."""
        return int(np.prod(self.shape[1:], dtype=object)) * self.dtype.itemsize

    @property
    def size(self) -> int:
        """Number of bytes of the dataset."""
        return self.shape[0] * self.row_bytes


@dataclass(frozen=True)
class Layout:
    """Extents of everything in a store's file."""

    arrays: Mapping[LayerKey, Extent]
    checksums: Mapping[LayerKey, Extent]
    """CRC-32 of every row."""
    written: Extent
    """One byte for each sample: 1 if all its values are on the disk."""
    structure: Extent
    """One integer: the state of the store (`repsim.stores.layout.PARTIAL` or `COMPLETE`), plus a checksum once it is
    complete."""


def read_rows(file: int, extent: Extent, start: int, stop: int) -> Array:
    """Read the rows start:stop of a dataset, without checks.

    Parameters
    ----------
    file : int
        Descriptor of the open file.
    extent : Extent
        The dataset.
    start, stop : int
        Range of rows.

    Raises
    ------
    StoreError
        The file ends before the last row.
    """
    values = np.empty((stop - start, *extent.shape[1:]), extent.dtype)
    remaining = as_bytes(values)
    offset = extent.offset + start * extent.row_bytes
    while remaining:
        count = os.preadv(file, [remaining], offset)
        if not count:
            raise StoreError("the file is cut off")
        remaining, offset = remaining[count:], offset + count
    return values


def as_bytes(values: Array) -> memoryview:
    """Return the memory of a contiguous array as bytes, without a copy."""
    return memoryview(values.reshape(-1).view(np.uint8))  # type: ignore[arg-type]


def write_at(file: int, offset: int, values: Array) -> None:
    """Write the bytes of an array at an offset of a file."""
    remaining = as_bytes(np.ascontiguousarray(values))
    while remaining:  # one system call may write only a part of the bytes
        count = os.pwrite(file, remaining, offset)
        remaining, offset = remaining[count:], offset + count


def structure_checksum(file: int, layout: Layout) -> int:
    """Compute the CRC-32 of the file without the arrays, which have their own checksums, and without the checksum."""
    excluded = sorted((e.offset, e.offset + e.size) for e in (*layout.arrays.values(), layout.structure))
    crc, position, size = 0, 0, os.fstat(file).st_size
    for start, stop in (*excluded, (size, size)):
        for at, length in _pieces(position, start):
            crc = zlib.crc32(os.pread(file, length, at), crc)
        position = max(position, stop)
    return crc


def _pieces(start: int, stop: int) -> Iterator[tuple[int, int]]:
    for at in range(start, stop, _PIECE):
        yield at, min(_PIECE, stop - at)
