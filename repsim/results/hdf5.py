"""Read the HDF5 structures that `repsim.results.netcdf` writes, without the HDF5 library.

The library may crash, not return, or allocate any amount of memory if structures have valid checksums but invalid
contents. This module reads the part of the file format that version 1.8 uses for groups and contiguous variables, and
refuses everything else. No structure is read twice, and none outside of the file, so the work is bounded by the size
of the file. Checksums are not computed, because the digest of the whole file has been checked before.
"""

import math
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

SIGNATURE = b"\x89HDF\r\n\x1a\n"
"""First bytes of every HDF5 file."""
_UNDEFINED_ADDRESS = 2**64 - 1
_DATASPACE, _LINK_INFO, _DATATYPE, _LINK, _DATA_LAYOUT, _ATTRIBUTE, _CONTINUATION, _ATTRIBUTE_INFO = (
    1, 2, 3, 6, 8, 12, 16, 21
)  # fmt: skip
"""Types of header messages, with the names of the HDF5 specification."""
_EXTERNAL_OR_FILTERED = {7, 11}
"""Messages of variables in other files, or with compression."""
_IGNORED = {0, 4, 5, 10, 18, 22}
"""Messages without effect on values: gaps, fill values, size hints, times, reference counts."""
_NOT_CONTIGUOUS = "a variable is not contiguous in this file"
_IEEE = {
    2: (0, 16, 10, 5, 0, 10, 15),
    4: (0, 32, 23, 8, 0, 23, 127),
    8: (0, 64, 52, 11, 0, 52, 1023),
}
"""Number of bytes of a float -> description of its bits in HDF5."""


@dataclass(frozen=True)
class Values:
    """Shape, dtype and position of numbers or characters in the file."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any] | None
    """None for types other than numbers and fixed-width text."""
    offset: int | None
    """Position of the first byte; None if there are no values."""

    @property
    def nbytes(self) -> int:
        """Number of bytes that the shape and the dtype require."""
        return math.prod(self.shape) * (self.dtype.itemsize if self.dtype else 1)


@dataclass(frozen=True)
class Object:
    """Group or variable."""

    values: Values | None
    """None for a group."""
    attributes: dict[str, Values]
    links: dict[str, int]
    """Name of a member -> address of its object header."""


@dataclass(frozen=True)
class _Heap:
    """Fractal heap, which holds links or attributes that are too many or too large for an object header."""

    id_length: int
    """Bytes of the id of an object."""
    huge: int
    """Address of the tree of objects that are too large for blocks."""
    width: int
    """Number of blocks in a row; from the second row on, blocks of each row are twice as large as in the row before."""
    start: int
    """Bytes of a block in the first row."""
    largest: int
    """Bytes of the largest direct block."""
    bits: int
    """Bits of an offset in the heap."""
    root: int
    """Address of the root block."""
    rows: int
    """Number of rows of the root block; 0 if it is a direct block."""

    @property
    def offset_bytes(self) -> int:
        """Number of bytes of an offset in the heap."""
        return (self.bits + 7) // 8


class Structures:
    """Reader of the objects of one file; raises `ValueError` for structures that repsim does not write.

    Parameters
    ----------
    data : memoryview
        The bytes of the file.
    """

    def __init__(self, data: memoryview) -> None:
        self.data = data
        self.visited: set[int] = set()
        signature, version, offsets, lengths, _, base, _, _, root = struct.unpack_from("<8s4B4Q", data)
        if (signature, offsets, lengths, base) != (SIGNATURE, 8, 8, 0) or version not in {2, 3}:
            raise ValueError("the superblock is not that of HDF5 1.8")
        self.root = self.object(root)

    def object(self, address: int) -> Object:
        """Read the header of one group or variable."""
        parts: dict[int, tuple[int, int]] = {}
        links: list[tuple[int, str, int]] = []
        attributes: list[tuple[int, str, Values]] = []
        for message, order, at, size in self.messages(address):
            if message == _LINK:
                links.append(self.link(at))
            elif message == _ATTRIBUTE:
                attributes.append((order, *self.attribute(at, size)))
            elif message == _LINK_INFO:
                links += [self.link(start) for _, start, _ in self.dense(at, of_links=True)]
            elif message == _ATTRIBUTE_INFO:
                dense = self.dense(at, of_links=False)
                attributes += [(number, *self.attribute(start, length)) for number, start, length in dense]
            elif message in {_DATASPACE, _DATATYPE, _DATA_LAYOUT}:
                parts[message] = at, size
            elif message in _EXTERNAL_OR_FILTERED:
                raise ValueError(_NOT_CONTIGUOUS)
            elif message not in _IGNORED:
                raise ValueError(f"it has an HDF5 header message that repsim never writes (type {message})")
        return Object(self.values(parts), _in_order(attributes), _in_order(links))

    def values(self, parts: dict[int, tuple[int, int]]) -> Values | None:
        """Read the shape, the dtype and the offset of a variable; return None for a group, which has none."""
        if parts.keys() != {_DATASPACE, _DATATYPE, _DATA_LAYOUT}:
            return None
        at, _ = parts[_DATA_LAYOUT]
        if self.unpack("<BB", at) != (3, 1):
            raise ValueError(_NOT_CONTIGUOUS)
        offset, size = self.unpack("<QQ", at + 2)
        shape, dtype = self.shape(*parts[_DATASPACE]), self.dtype(*parts[_DATATYPE])
        values = Values(shape, dtype, None if offset == _UNDEFINED_ADDRESS else offset)
        if values.offset is not None and values.dtype and values.nbytes != size:
            raise ValueError("the size of a variable does not match its shape")
        return values

    # Bytes

    def unpack(self, form: str, at: int) -> tuple[Any, ...]:
        """Read numbers in a format of the module `struct`."""
        return struct.unpack(form, self.take(at, struct.calcsize(form)))

    def take(self, at: int, size: int) -> bytes:
        """Read bytes; refuse a range that is not inside the file."""
        if not 0 <= at <= at + size <= len(self.data):
            raise ValueError("an address is beyond its end")
        return bytes(self.data[at : at + size])

    def number(self, at: int, size: int = 8) -> int:
        """Read one unsigned integer."""
        return int.from_bytes(self.take(at, size), "little")

    def enter(self, at: int, mark: bytes) -> None:
        """Check that a structure has its mark and was not read before, and record that it is read."""
        if self.take(at, len(mark)) != mark:
            raise ValueError(f"a reference to the structure {mark[:4].decode()} leads to other data")
        if at in self.visited:
            raise ValueError("two references, or a cycle, lead to one structure")
        self.visited.add(at)

    # Object headers

    def messages(self, address: int) -> Iterator[tuple[int, int, int, int]]:
        """Yield the messages of an object header: type, creation order, address, size."""
        self.enter(address, b"OHDR\x02")
        flags = self.number(address + 5, 1)
        at = address + 6 + (16 if flags & 32 else 0) + (4 if flags & 16 else 0)
        width = 1 << (flags & 3)
        head = 6 if flags & 4 else 4
        chunks = [(at + width, self.number(at, width))]
        for at, size in chunks:
            end = at + size
            while end - at >= head:
                kind, length, message_flags = self.unpack("<BHB", at)
                order = self.number(at + 4, head - 4)
                at += head  # noqa: PLW2901 - the position advances
                if length > end - at or message_flags & 2:
                    raise ValueError("a message is longer than its header, or shared")
                if kind == _CONTINUATION:
                    start, room = self.unpack("<QQ", at)
                    self.enter(start, b"OCHK")
                    chunks.append((start + 4, room - 8))
                else:
                    yield kind, order, at, length
                at += length  # noqa: PLW2901

    def shape(self, at: int, size: int) -> tuple[int, ...]:
        """Read a shape."""
        version, rank, _, kind = self.unpack("<4B", at)
        if version != 2 or kind > 1 or 4 + 8 * rank > size:
            raise ValueError("a dataspace is of a kind that repsim never writes")
        return tuple(self.unpack(f"<{rank}Q", at + 4))

    def dtype(self, at: int, size: int) -> np.dtype[Any] | None:
        """Read a dtype; return None for types other than numbers and fixed-width text."""
        kind, flags, _, width = self.unpack("<BBHI", at)
        order = ">" if flags & 1 else "<"
        if kind & 15 == 0 and width in {1, 2, 4, 8} and size >= 12 and self.unpack("<HH", at + 8) == (0, 8 * width):
            return np.dtype(f"{order}{'i' if flags & 8 else 'u'}{width}")
        if kind & 15 == 1 and not flags & 64 and size >= 20 and self.unpack("<HH4BI", at + 8) == _IEEE.get(width):
            return np.dtype(f"{order}f{width}")
        return np.dtype(f"S{width}") if kind & 15 == 3 and 0 < width <= len(self.data) else None

    def link(self, at: int) -> tuple[int, str, int]:
        """Read a link to a member: its creation order, its name, the address of the member."""
        version, flags = self.unpack("<BB", at)
        if version != 1 or flags & 8 or not flags & 4:
            raise ValueError("a member is a link, perhaps to another file")
        order = self.number(at + 2)
        at += 10 + (1 if flags & 16 else 0)
        width = 1 << (flags & 3)
        length = self.number(at, width)
        name = self.take(at + width, length).decode()
        return order, name, self.number(at + width + length)

    def attribute(self, at: int, size: int) -> tuple[str, Values]:
        """Read the name of an attribute, and the shape, dtype and position of its values."""
        version, flags, name_length, type_length, space_length, _ = self.unpack("<BBHHHB", at)
        start = at + 9 + name_length
        if version != 3 or flags or start + type_length + space_length > at + size:
            raise ValueError("an attribute is of a kind that repsim never writes")
        name = self.take(at + 9, name_length).rstrip(b"\0").decode()
        dtype = self.dtype(start, type_length)
        shape = self.shape(start + type_length, space_length)
        offset = start + type_length + space_length
        values = Values(shape, dtype, offset)
        if dtype and offset + values.nbytes > at + size:
            raise ValueError(f"the attribute {name} claims the shape {shape}, for which it is too small")
        return name, values

    # Dense storage: heaps and trees of links and attributes that are too many or too large for object headers

    def dense(self, at: int, *, of_links: bool) -> Iterator[tuple[int, int, int]]:
        """Yield the objects of a heap in the order of creation: creation order, address, size."""
        version, flags = self.unpack("<BB", at)
        at += 2 + (0 if not flags & 1 else 8 if of_links else 2)
        start = self.number(at)
        if start == _UNDEFINED_ADDRESS:
            return
        if version or flags != 3:
            raise ValueError("the order of creation is not stored")
        tree = self.number(at + 16)
        heap = self.heap(start)
        huge: dict[int, tuple[int, int]] = {}
        if heap.huge != _UNDEFINED_ADDRESS:
            for record in self.records(heap.huge, kind=1, size=24):
                address, length, number = self.unpack("<QQQ", record)
                huge[number] = address, length
        for record in self.records(tree, kind=6 if of_links else 9, size=15 if of_links else 13):
            order = self.number(record) if of_links else self.number(record + 9, 4)
            identity = record + 8 if of_links else record
            kind = self.number(identity, 1) >> 4
            if kind == 0:
                yield order, *self.managed(heap, identity)
            elif kind == 1:
                yield order, *huge.pop(self.number(identity + 1, heap.id_length - 1))
            else:
                raise ValueError("a heap has objects of a kind that repsim never writes")

    def heap(self, at: int) -> _Heap:
        """Read the header of a heap."""
        self.enter(at, b"FRHP\0")
        id_length, filters = self.unpack("<HH", at + 5)
        width, start, largest, bits, _, root, rows = self.unpack("<HQQHHQH", at + 110)
        if filters or rows > 64 or bits > 64 or not all(n and n & (n - 1) == 0 for n in (width, start, largest)):
            raise ValueError("a heap is of a kind that repsim never writes")
        return _Heap(id_length, self.number(at + 22), width, start, largest, bits, root, rows)

    def managed(self, heap: _Heap, identity: int) -> tuple[int, int]:
        """Return the address and the size of an object in the blocks of a heap."""
        offset = self.number(identity + 1, heap.offset_bytes)
        length = self.number(identity + 1 + heap.offset_bytes, heap.id_length - 1 - heap.offset_bytes)
        address, rows, base, size = heap.root, heap.rows, 0, heap.start
        while rows:  # an indirect block, which holds addresses of blocks
            if self.take(address, 4) != b"FHIB":
                raise ValueError("a reference to the structure FHIB leads to other data")
            row = 0
            while True:
                size = heap.start << max(0, row - 1)
                if row >= rows:
                    raise ValueError("an object is outside of its heap")
                if offset < base + heap.width * size:
                    break
                base += heap.width * size
                row += 1
            column = (offset - base) // size
            base += column * size
            address = self.number(address + 13 + heap.offset_bytes + 8 * (row * heap.width + column))
            rows = 0 if size <= heap.largest else (size // (heap.start * heap.width)).bit_length()
        if self.take(address, 4) != b"FHDB" or offset - base + length > size:
            raise ValueError("an object is outside of its heap")
        return address + offset - base, length

    def records(self, at: int, kind: int, size: int) -> Iterator[int]:
        """Yield the addresses of the records of a version 2 B-tree, in its order."""
        self.enter(at, b"BTHD\0")
        tree_kind, node, width, depth, _, root, count = self.unpack("<BIHHHQH", at + 5)
        if (tree_kind, width) != (kind, size) or depth > 8 or node < 10 + size:
            raise ValueError("a tree is of a kind that repsim never writes")
        most = (node - 10) // size
        count_bytes = _bytes_of(most)
        pointers, total_bytes = [0], 0  # bytes of a pointer to a child, for every depth
        total = most
        for _ in range(depth):
            pointers.append(8 + count_bytes + total_bytes)
            most = (node - 10 - pointers[-1]) // (size + pointers[-1])
            total = (most + 1) * total + most
            total_bytes = _bytes_of(total)

        def walk(at: int, count: int, depth: int) -> Iterator[int]:
            if not count and at == _UNDEFINED_ADDRESS:
                return
            self.enter(at, b"BTIN\0" if depth else b"BTLF\0")
            records = range(at + 6, at + 6 + count * size, size)
            if not depth:
                yield from records
                return
            child = records.stop
            for k in range(count + 1):
                yield from walk(self.number(child), self.number(child + 8, count_bytes), depth - 1)
                if k < count:
                    yield records[k]
                child += pointers[depth]

        yield from walk(root, count, depth)


def _in_order(items: Sequence[tuple[int, str, Any]]) -> dict[str, Any]:
    """Return members by name, in the order of creation."""
    members = {name: value for _, name, value in sorted(items, key=lambda item: item[0])}
    if len(members) < len(items):
        raise ValueError("a name occurs twice")
    return members


def _bytes_of(largest: int) -> int:
    """Return the number of bytes in which HDF5 stores integers up to ``largest``."""
    return (max(1, largest).bit_length() - 1) // 8 + 1
