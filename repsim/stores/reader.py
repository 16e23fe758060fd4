"""Find out what a file holds and where, and believe none of it: a file may come from a stranger.

Nothing here follows a link into another file, and no size is believed before it has been held against the size of the
file.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from repsim.errors import Remedy, StoreError, reason
from repsim.labels import LayerKey, SampleIds
from repsim.runtime.formats import Readers
from repsim.stores.extents import Extent, Layout, read_rows
from repsim.stores.schema import FORMAT, VERSION, Array, ArraySpec, Contents

READERS: Readers[type["_Reader"]] = Readers("store", Remedy("extract it again"))


def read(path: Path) -> tuple[Contents, Layout]:
    """Find out what a file holds, and where; `StoreError` where that is no store, or not to be trusted."""
    if not path.is_file():
        raise StoreError(f"{path} is a folder; name a file" if path.is_dir() else f"no such file: {path}")
    try:
        # no locks: a store that has its name never changes, and some file systems have none
        with h5py.File(path, "r", locking=False) as file:
            return READERS.get(_stated_version(path, file), path)(path, file).all()
    except StoreError:
        raise
    except OSError as error:
        known = {"truncated": "it is cut off", "signature": "it is no HDF5 file"}
        why = next((text for word, text in known.items() if word in str(error)), reason(error))
        raise StoreError(f"cannot read {path}: {why}") from None
    except Exception as error:  # noqa: BLE001 - what HDF5 makes of damaged structures is anything
        raise StoreError(f"{path} is a damaged store: {reason(error)}") from None


def _stated_version(path: Path, file: h5py.File) -> Any:
    """Read the version of a store's format; `StoreError` where a file is something else."""
    header = _Reader(path, file)
    known = "format" in file.attrs and file.attrs.get_id("format").dtype.kind == "S"  # others' are in the heap
    if not known or header.attribute(file, "format") != FORMAT:
        raise StoreError(f"{path} is an HDF5 file but no activation store: its 'format' is not {FORMAT!r}", path=path)
    return header.attribute(file, "format_version") if "format_version" in file.attrs else None


@READERS.register(VERSION)
class _Reader:
    """Reads one file's structure; every step refuses what a store written by repsim cannot hold."""

    def __init__(self, path: Path, file: h5py.File) -> None:
        self.path, self.file = path, file
        self.bytes = path.stat().st_size

    def all(self) -> tuple[Contents, Layout]:
        """Everything."""
        file, path = self.file, self.path
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
