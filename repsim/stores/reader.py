"""Read the structure of a store's file, and refuse files that are damaged or malicious.

No link into another file is followed, and every size is compared with the size of the file before it is used.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from repsim.errors import Remedy, StoreError, reason
from repsim.labels import NAME_SEPARATOR, STATISTICS, LayerKey, SampleIds
from repsim.runtime.formats import Readers
from repsim.stores.extents import Extent, Layout, read_rows
from repsim.stores.schema import FORMAT, VERSION, Array, ArraySpec, Contents

READERS: Readers[type["_Reader"]] = Readers("store", Remedy("extract it again"))


def read(path: Path) -> tuple[Contents, Layout]:
    """Read the contents of a store without its values, and the positions of everything in the file.

    Parameters
    ----------
    path : Path
        The file.

    Returns
    -------
    tuple of Contents and Layout

    Raises
    ------
    StoreError
        The file is missing, is not a store, is damaged, or could be malicious.
    """
    if not path.is_file():
        raise StoreError(f"{path} is a folder; name a file" if path.is_dir() else f"no such file: {path}")
    try:
        # no locks: a finished store never changes, and some file systems do not support locks
        with h5py.File(path, "r", locking=False) as file:
            return READERS.get(_stated_version(path, file), path)(path, file).read()
    except StoreError:
        raise
    except OSError as error:
        plain_reasons = {"truncated": "it is cut off", "signature": "it is no HDF5 file"}
        why = next((text for word, text in plain_reasons.items() if word in str(error)), reason(error))
        raise StoreError(f"cannot read {path}: {why}") from None
    except Exception as error:  # noqa: BLE001 - damaged structures can make HDF5 raise anything
        raise StoreError(f"{path} is a damaged store: {reason(error)}") from None


def _stated_version(path: Path, file: h5py.File) -> Any:
    """Read the version of a store's format; raise `StoreError` if the file is not a store."""
    header = _Reader(path, file)
    # repsim writes the format as a fixed-width string; a variable-length one would be read from a heap
    is_readable = "format" in file.attrs and file.attrs.get_id("format").dtype.kind == "S"
    if not is_readable or header.attribute(file, "format") != FORMAT:
        raise StoreError(f"{path} is an HDF5 file but no activation store: its 'format' is not {FORMAT!r}", path=path)
    return header.attribute(file, "format_version") if "format_version" in file.attrs else None


@READERS.register(2)  # has at most one control, the pixels
@READERS.register(VERSION)
class _Reader:
    """Reader of one file's structure, which refuses everything that a store written by repsim cannot hold."""

    def __init__(self, path: Path, file: h5py.File) -> None:
        self.path, self.file = path, file
        self.bytes = path.stat().st_size

    def read(self) -> tuple[Contents, Layout]:
        """Read the contents without the values, and the positions of everything."""
        file, path = self.file, self.path
        self.ordered(file["/"])
        model, created = self.text(file, "model"), self.text(file, "created")
        samples, checks = self.group(file, "samples"), self.group(file, "checks")
        sample_ids = self.sample_ids(samples)
        n = len(sample_ids)
        if sample_ids.fingerprint != self.text(samples, "id_fingerprint"):
            raise StoreError(f"{path} is a damaged store: the fingerprint of its sample ids does not match")
        written, structure = self.extent(checks, "written", (n,), "u1"), self.extent(checks, "structure", (1,), "<u8")
        arrays = [*self.arrays("layers", model, n), *(self.arrays("controls", model, n) if "controls" in file else ())]
        specs = tuple(spec for spec, _, _ in arrays)
        if all(spec.key.control for spec in specs):
            raise StoreError(f"{path} holds no layer")
        contents = Contents(
            specs,
            sample_ids,
            self.text(samples, "source"),
            self.provenance(),
            arrays[0][1].dtype.name,
            self.optional(samples, "label", n),
            self.texts(samples, "classes") if "classes" in samples else (),
            self.optional(samples, "order", n),
            created,
            *self.groups(samples, n),
        )
        extents = {spec.key: extent for spec, extent, _ in arrays}
        return contents, Layout(extents, {spec.key: sums for spec, _, sums in arrays}, written, structure)

    def provenance(self) -> dict[str, Any]:
        """Read how the activations were made."""
        value = json.loads(self.texts(self.file, "provenance")[0])
        if not isinstance(value, dict):
            raise StoreError(f"{self.path} is a damaged store: its provenance has no keys", path=self.path)
        return value

    def sample_ids(self, samples: h5py.Group) -> SampleIds:
        """Read the sample ids and the fingerprints of the pictures; early stores have no hashes of the contents."""
        ids, sizes = self.texts(samples, "id"), self.text(samples, "content_fingerprint")
        if ("content" in samples) != ("content_kind" in samples.attrs):
            raise StoreError(f"{self.path} is a damaged store: content and content_kind of its samples go together")
        if "content" not in samples:
            return SampleIds(ids, sizes)
        hashes = self.optional(samples, "content", len(ids), "<u8")
        assert hashes is not None, "content is in the group"
        return SampleIds(ids, sizes, hashes.tobytes(), self.text(samples, "content_kind"))

    def groups(self, samples: h5py.Group, n: int) -> tuple[Array | None, tuple[str, ...]]:
        """Read the groups of the samples and their names; stores without groups, and early ones, have neither."""
        if ("group" in samples) != ("groups" in samples):
            raise StoreError(f"{self.path} is a damaged store: group and groups of its samples go together")
        numbers = self.optional(samples, "group", n)
        if numbers is None:
            return None, ()
        names = self.texts(samples, "groups")
        if numbers.min() < 0 or numbers.max() >= len(names):
            raise StoreError(f"{self.path} is a damaged store: a sample is in a group without a name")
        return numbers, names

    def arrays(self, parent: str, model: str, n: int) -> Iterator[tuple[ArraySpec, Extent, Extent]]:
        """Yield the description, the rows and the checksums of every array below ``layers`` or ``controls``."""
        groups, tables = self.group(self.file, parent), self.group(self.group(self.file, "checks"), "rows")
        for layer in groups:
            group = self.group(groups, layer)
            facts = {key: self.attribute(group, key) for key in group.attrs}
            for readout in group:
                key = LayerKey(model, layer, readout)
                if key.control != (parent == "controls"):
                    raise StoreError(f"{self.path} is refused: {key} does not belong under {parent}")
                array = self.extent(group, readout)
                if array.dtype.kind != "f" or len(array.shape) < 2:
                    raise StoreError(f"{self.path}: {key} holds no floating-point rows")
                block = self.attribute(group[readout], "block")
                if not isinstance(block, int) or block < 1 or array.shape[0] != n // block:
                    raise StoreError(f"{self.path}: {key} has {array.shape[0]} rows for {n} samples")
                sums = self.extent(self.group(tables, layer), readout, array.shape[:1], "<u4")
                if (layer, readout) == STATISTICS and len(str(facts.get("names")).split(NAME_SEPARATOR)) != array.shape[
                    1
                ]:
                    raise StoreError(f"{self.path} is a damaged store: the names of {key} are not those of its columns")
                yield ArraySpec(key, array.shape[1:], facts, block), array, sums

    def child(self, group: h5py.Group, name: str) -> Any:
        """Return a member of a group; refuse links, which could lead to any file on the user's machine."""
        link = group.get(name, getlink=True)
        if link is None:
            raise StoreError(f"{self.path} is a damaged store: {group.name.rstrip('/')}/{name} is missing")
        if not isinstance(link, h5py.HardLink):
            raise StoreError(
                f"{self.path} is refused: {group.name.rstrip('/')}/{name} is a link, perhaps to another file"
            )
        return group[name]

    def group(self, group: h5py.Group, name: str) -> h5py.Group:
        child = self.child(group, name)
        if not isinstance(child, h5py.Group):
            raise StoreError(f"{self.path} is a damaged store: {child.name} is no group")
        return self.ordered(child)

    def ordered(self, group: h5py.Group) -> h5py.Group:
        """Return the group; refuse it if it does not track the order of creation.

        Such a group has its names in a heap, and a manipulated heap can keep HDF5 in an endless loop.
        """
        if not group.id.get_create_plist().get_link_creation_order():
            raise StoreError(f"{self.path} is refused: the group {group.name} does not keep its order")
        return group

    def extent(
        self, group: h5py.Group, name: str, shape: tuple[int, ...] | None = None, dtype: str | None = None
    ) -> Extent:
        """Return the position of a dataset; refuse datasets that are not contiguous or not inside this file.

        With ``shape`` or ``dtype``, refuse datasets with another shape or dtype.
        """
        dataset = self.child(group, name)
        where = f"{self.path} is refused: {dataset.name}"
        if not isinstance(dataset, h5py.Dataset):
            raise StoreError(f"{where} is no dataset")
        creation = dataset.id.get_create_plist()
        if creation.get_layout() != h5py.h5d.CONTIGUOUS or creation.get_external_count():
            raise StoreError(f"{where} is not contiguous in this file")
        offset, extent = dataset.id.get_offset(), Extent(0, dataset.shape, dataset.dtype)
        if not dataset.shape or offset is None or offset + extent.size > self.bytes or extent.size < 1:
            raise StoreError(f"{where} claims the shape {dataset.shape}, for which the file is too small")
        if (shape is not None and dataset.shape != shape) or (dtype is not None and dataset.dtype != np.dtype(dtype)):
            raise StoreError(f"{self.path} is a damaged store: {dataset.name} is {dataset.dtype} {dataset.shape}")
        return Extent(offset, dataset.shape, dataset.dtype)

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
        """Read an attribute as a string, a number, or a list of at most 64 of them."""
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
    """Read the attribute ``format`` of an HDF5 file; None if it is missing, is no fixed-width text, or unreadable."""
    try:
        with h5py.File(path, "r", locking=False) as file:
            if "format" not in file.attrs or file.attrs.get_id("format").dtype.kind != "S":
                return None
            return str(_Reader(path, file).attribute(file, "format"))
    except Exception:  # noqa: BLE001 - the function that reads the file next reports the reason
        return None


def check_self_contained(path: Path, *, compressed: bool = False) -> str | None:
    """Check that an HDF5 file has no links into other files and no dataset larger than itself.

    Parameters
    ----------
    path : Path
        Any HDF5 file.
    compressed : bool
        Allow datasets in compressed chunks, which may be larger than the file.

    Returns
    -------
    str or None
        The attribute ``format`` of the file.

    Raises
    ------
    StoreError
        A link may lead to another file, or the shape of a dataset is too large for the file.
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
                        raise StoreError(f"{where} is stored in another file")
                    filtered = compressed and child.id.get_create_plist().get_nfilters() > 0
                    if child.nbytes > path.stat().st_size and not filtered:
                        raise StoreError(f"{where} claims the shape {child.shape}, for which the file is too small")
        kind = file.attrs.get("format")
    return kind.decode() if isinstance(kind, bytes) else kind
