"""Where the bytes of a store lie, and how they are read, written and summed there."""

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
