"""Reads the structures of HDF5 that `repsim.results.netcdf` writes, and needs no HDF5 for it.

HDF5 itself may crash, not return, or take any amount of memory where structures have right checksums but wrong
contents. What is read here is the part of the file format's specification that version 1.8 uses for groups and
contiguous variables; everything else is refused. No place is read twice, and none outside of the file, so the work is
bounded by the size of the file. Checksums are not computed: the digest of the whole file has been checked before.
"""

import math
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

SIGNATURE = b"\x89HDF\r\n\x1a\n"
"""Beginning of every HDF5 file."""
_NOWHERE = 2**64 - 1
_SPACE, _LINKS, _TYPE, _LINK, _PLACE, _ATTRIBUTE, _MORE, _ATTRIBUTES = 1, 2, 3, 6, 8, 12, 16, 21
_ELSEWHERE = {7, 11}
"""Messages of variables that lie in other files, or are compressed."""
_WITHOUT_MEANING = {0, 4, 5, 10, 18, 22}
"""Messages that decide nothing here: gaps, fill values, hints of sizes, times, how many names there are."""
_IN_PIECES = "a variable does not lie in this file in one piece"
_IEEE = {
    2: (0, 16, 10, 5, 0, 10, 15),
    4: (0, 32, 23, 8, 0, 23, 127),
    8: (0, 64, 52, 11, 0, 52, 1023),
}
"""Bytes of a float -> how HDF5 describes its bits."""


@dataclass(frozen=True)
class Values:
    """Numbers or characters in the file."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any] | None
    """None for everything that is neither a number nor text of a fixed width."""
    offset: int | None
    """Where they begin; None where there are none."""

    @property
    def nbytes(self) -> int:
        """Bytes that the shape claims."""
        return math.prod(self.shape) * (self.dtype.itemsize if self.dtype else 1)


@dataclass(frozen=True)
class Object:
    """A group or a variable."""

    values: Values | None
    """None of a group."""
    attributes: dict[str, Values]
    links: dict[str, int]
    """Name of a member -> where it is described."""


@dataclass(frozen=True)
class _Heap:
    """A heap of links or attributes, where they are many or large: blocks, each row of them twice as large."""

    id_length: int
    huge: int
    width: int
    start: int
    largest: int
    bits: int
    root: int
    rows: int

    @property
    def offset_bytes(self) -> int:
        return (self.bits + 7) // 8


class Structures:
    """The objects of one file; `ValueError` where anything is not as expected."""

    def __init__(self, data: memoryview) -> None:
        self.data = data
        self.visited: set[int] = set()
        signature, version, offsets, lengths, _, base, _, _, root = struct.unpack_from("<8s4B4Q", data)
        if (signature, offsets, lengths, base) != (SIGNATURE, 8, 8, 0) or version not in {2, 3}:
            raise ValueError("its beginning is not that of a file of HDF5 1.8")
        self.root = self.object(root)

    def object(self, address: int) -> Object:
        """Read what is said of one group or variable."""
        parts: dict[int, tuple[int, int]] = {}
        links: list[tuple[int, str, int]] = []
        attributes: list[tuple[int, str, Values]] = []
        for message, order, at, size in self.messages(address):
            if message == _LINK:
                links.append(self.link(at))
            elif message == _ATTRIBUTE:
                attributes.append((order, *self.attribute(at, size)))
            elif message == _LINKS:
                links += [self.link(start) for _, start, _ in self.dense(at, of_links=True)]
            elif message == _ATTRIBUTES:
                rest = self.dense(at, of_links=False)
                attributes += [(number, *self.attribute(start, length)) for number, start, length in rest]
            elif message in {_SPACE, _TYPE, _PLACE}:
                parts[message] = at, size
            elif message in _ELSEWHERE:
                raise ValueError(_IN_PIECES)
            elif message not in _WITHOUT_MEANING:
                raise ValueError(f"it uses something of HDF5 that repsim never does (message {message})")
        return Object(self.values(parts), _in_order(attributes), _in_order(links))

    def values(self, parts: dict[int, tuple[int, int]]) -> Values | None:
        """Read the shape, the kind and the place of a variable; None where one is missing, as in a group."""
        if parts.keys() != {_SPACE, _TYPE, _PLACE}:
            return None
        at, _ = parts[_PLACE]
        if self.unpack("<BB", at) != (3, 1):
            raise ValueError(_IN_PIECES)
        offset, size = self.unpack("<QQ", at + 2)
        values = Values(self.shape(*parts[_SPACE]), self.dtype(*parts[_TYPE]), None if offset == _NOWHERE else offset)
        if values.offset is not None and values.dtype and values.nbytes != size:
            raise ValueError("a variable has not the size of its shape")
        return values

    # Bytes

    def unpack(self, form: str, at: int) -> tuple[Any, ...]:
        """Read numbers, in the form of `struct`."""
        return struct.unpack(form, self.take(at, struct.calcsize(form)))

    def take(self, at: int, size: int) -> bytes:
        """Read bytes, all of which are in the file."""
        if not 0 <= at <= at + size <= len(self.data):
            raise ValueError("something lies beyond its end")
        return bytes(self.data[at : at + size])

    def number(self, at: int, size: int = 8) -> int:
        """Read one number without a sign."""
        return int.from_bytes(self.take(at, size), "little")

    def enter(self, at: int, mark: bytes) -> None:
        """Begin to read a structure: it has its mark, and was not read before."""
        if self.take(at, len(mark)) != mark:
            raise ValueError(
                f"{mark[:4].decode()} is missing where something refers to it: another program wrote there"
            )
        if at in self.visited:
            raise ValueError("two names, or a circle, lead to one structure")
        self.visited.add(at)

    # Object headers

    def messages(self, address: int) -> Iterator[tuple[int, int, int, int]]:
        """Go through the messages of an object: kind, number in the order of creation, where, how long."""
        self.enter(address, b"OHDR\x02")
        flags = self.number(address + 5, 1)
        at = address + 6 + (16 if flags & 32 else 0) + (4 if flags & 16 else 0)
        width = 1 << (flags & 3)
        head = 6 if flags & 4 else 4
        chunks = [(at + width, self.number(at, width))]
        for at, size in chunks:
            end = at + size
            while end - at >= head:
                kind, length, how = self.unpack("<BHB", at)
                order = self.number(at + 4, head - 4)
                at += head  # noqa: PLW2901 - it walks
                if length > end - at or how & 2:
                    raise ValueError("a message is longer than its place, or elsewhere")
                if kind == _MORE:
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
            raise ValueError("a shape is of a kind that repsim never writes")
        return tuple(self.unpack(f"<{rank}Q", at + 4))

    def dtype(self, at: int, size: int) -> np.dtype[Any] | None:
        """Read a kind of values; None where it is neither numbers nor text of a fixed width."""
        kind, flags, _, width = self.unpack("<BBHI", at)
        order = ">" if flags & 1 else "<"
        if kind & 15 == 0 and width in {1, 2, 4, 8} and size >= 12 and self.unpack("<HH", at + 8) == (0, 8 * width):
            return np.dtype(f"{order}{'i' if flags & 8 else 'u'}{width}")
        if kind & 15 == 1 and not flags & 64 and size >= 20 and self.unpack("<HH4BI", at + 8) == _IEEE.get(width):
            return np.dtype(f"{order}f{width}")
        return np.dtype(f"S{width}") if kind & 15 == 3 and 0 < width <= len(self.data) else None

    def link(self, at: int) -> tuple[int, str, int]:
        """Read a member: its number in the order of creation, its name, where it is described."""
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
        """Read an attribute: its name, and what it is."""
        version, flags, name_length, type_length, space_length, _ = self.unpack("<BBHHHB", at)
        start = at + 9 + name_length
        if version != 3 or flags or start + type_length + space_length > at + size:
            raise ValueError("an attribute is of a kind that repsim never writes")
        name = self.take(at + 9, name_length).rstrip(b"\0").decode()
        dtype = self.dtype(start, type_length)
        shape = self.shape(start + type_length, space_length)
        place = start + type_length + space_length
        values = Values(shape, dtype, place)
        if dtype and place + values.nbytes > at + size:
            raise ValueError(f"the attribute {name} claims the shape {shape}, for which it has no room")
        return name, values

    # Heaps and trees of what is too many, or too long, for object headers

    def dense(self, at: int, *, of_links: bool) -> Iterator[tuple[int, int, int]]:
        """Go through what a heap holds, in the order of creation: number, where, how long."""
        version, flags = self.unpack("<BB", at)
        at += 2 + (0 if not flags & 1 else 8 if of_links else 2)
        start = self.number(at)
        if start == _NOWHERE:
            return
        if version or flags != 3:
            raise ValueError("names have no order")
        tree = self.number(at + 16)
        heap = self.heap(start)
        huge: dict[int, tuple[int, int]] = {}
        if heap.huge != _NOWHERE:
            for record in self.records(heap.huge, kind=1, size=24):
                place, length, number = self.unpack("<QQQ", record)
                huge[number] = place, length
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
        """Where an object of a heap's blocks is, and how long."""
        offset = self.number(identity + 1, heap.offset_bytes)
        length = self.number(identity + 1 + heap.offset_bytes, heap.id_length - 1 - heap.offset_bytes)
        address, rows, base, size = heap.root, heap.rows, 0, heap.start
        while rows:  # a block of blocks
            if self.take(address, 4) != b"FHIB":
                raise ValueError("FHIB is missing where something refers to it")
            row = 0
            while True:
                size = heap.start << max(0, row - 1)
                if row >= rows:
                    raise ValueError("an object lies beyond its heap")
                if offset < base + heap.width * size:
                    break
                base += heap.width * size
                row += 1
            column = (offset - base) // size
            base += column * size
            address = self.number(address + 13 + heap.offset_bytes + 8 * (row * heap.width + column))
            rows = 0 if size <= heap.largest else (size // (heap.start * heap.width)).bit_length()
        if self.take(address, 4) != b"FHDB" or offset - base + length > size:
            raise ValueError("an object lies beyond its heap")
        return address + offset - base, length

    def records(self, at: int, kind: int, size: int) -> Iterator[int]:
        """Go through the records of a B-tree of version 2, in its order: where each is."""
        self.enter(at, b"BTHD\0")
        its_kind, node, width, depth, _, root, count = self.unpack("<BIHHHQH", at + 5)
        if (its_kind, width) != (kind, size) or depth > 8 or node < 10 + size:
            raise ValueError("a tree is of a kind that repsim never writes")
        most = (node - 10) // size
        count_bytes = _bytes_of(most)
        pointers, total_bytes = [0], 0  # bytes of a pointer to a child, at every depth
        total = most
        for _ in range(depth):
            pointers.append(8 + count_bytes + total_bytes)
            most = (node - 10 - pointers[-1]) // (size + pointers[-1])
            total = (most + 1) * total + most
            total_bytes = _bytes_of(total)

        def walk(at: int, count: int, depth: int) -> Iterator[int]:
            if not count and at == _NOWHERE:
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
    """Members by their names, in the order of creation."""
    members = {name: value for _, name, value in sorted(items, key=lambda item: item[0])}
    if len(members) < len(items):
        raise ValueError("a name is there twice")
    return members


def _bytes_of(largest: int) -> int:
    """Bytes in which HDF5 writes numbers up to this one."""
    return (max(1, largest).bit_length() - 1) // 8 + 1
