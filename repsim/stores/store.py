"""Activation stores, read: one HDF5 file a model (docs/store-format.md), written in `repsim.stores.writer`.

Whatever is read is checked: opening a store checks everything but the arrays, reading rows checks these rows.
"""

import os
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np

from repsim.errors import Function, InvalidInputError, Remedy, StoreError, UnknownNameError, reason
from repsim.labels import LayerKey, SampleIds
from repsim.runtime.files import format_size
from repsim.runtime.progress import Listener, report_progress
from repsim.runtime.text_tables import Table, card, paragraphs, times
from repsim.stores import extents, layout, reader
from repsim.stores.extents import Extent
from repsim.stores.schema import Array, Contents

_PIECE = 2**24
"""Bytes of an array that `verify` holds at once."""


class Activations:
    """One layer's array in a store: ``activations[rows]`` reads those rows as a numpy array, and checks them."""

    def __init__(self, store: "ActivationStore", key: LayerKey) -> None:
        self._store, self.key = store, key
        self._extent, self._checksums = store._layout.arrays[key], store._layout.checksums[key]

    @property
    def shape(self) -> tuple[int, ...]:
        """(n samples, ...); for Gram matrices of B samples each (n // B, B, B)."""
        return self._extent.shape

    @property
    def dtype(self) -> np.dtype[Any]:
        """float16, float32 or float64."""
        return self._extent.dtype

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: Any) -> Array:
        first, *rest = rows if isinstance(rows, tuple) and rows else (rows,)
        if first is Ellipsis or first is None:  # about other axes than the first
            return np.asarray(self[:][rows])
        wanted = np.arange(len(self))[first]
        values = self._read(np.atleast_1d(wanted).ravel()).reshape(*wanted.shape, *self.shape[1:])
        return values[(*[slice(None)] * wanted.ndim, *rest)] if rest else values

    def _read(self, wanted: Array) -> Array:
        """Rows in any order, a run of neighbours at a time."""
        values = np.empty((len(wanted), *self.shape[1:]), self.dtype)
        for run in np.split(np.arange(len(wanted)), np.flatnonzero(np.diff(wanted) != 1) + 1):
            if len(run):
                values[run[0] : run[-1] + 1] = self.run(int(wanted[run[0]]), int(wanted[run[-1]]) + 1)
        return values

    def run(self, start: int, stop: int, *, check: bool = True) -> Array:
        """Rows start:stop; ``check=False`` is for who has read them before, and need not check them again."""
        if not check:
            return self._store._read(self._extent, start, stop)
        values, damaged = self.checked(start, stop)
        if damaged:
            raise StoreError(
                f"{self._store.path}: {self.key} is damaged in {rows_in_words(damaged)}: the checksum does not match",
                path=self._store.path,
                remedy=Remedy(
                    "extract the store again, or restore it from a copy (",
                    Function("repsim.verify"),
                    " lists all damage)",
                ),
            )
        return values

    def checked(self, start: int, stop: int) -> tuple[Array, list[int]]:
        """Rows start:stop, and which of them are not what was written."""
        values = self._store._read(self._extent, start, stop)
        told = self._store._read(self._checksums, start, stop)
        lines = values.reshape(len(values), -1)
        return values, [start + i for i, line in enumerate(lines) if zlib.crc32(extents.as_bytes(line)) != told[i]]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Array:
        return np.asarray(self[:], dtype=dtype)

    def __repr__(self) -> str:
        return f"<Activations {self.key} {self.shape} {self.dtype}>"


class ActivationStore:
    """An open store, to be read: ``store["layer3.5"][:100]`` is the first 100 rows of that layer. A context manager.

    Where a store holds several readouts, an array's name is ``layer@readout``, as in ``store["blocks.3@cls"]``.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = store_path(path)
        self._contents, self._layout = reader.read(self.path)
        self._file: int | None = os.open(self.path, os.O_RDONLY)
        try:
            self._check_structure()
        except BaseException:
            self.close()
            raise
        specs = [spec for spec in self._contents.arrays if not spec.key.control]
        several = len({spec.key.readout for spec in specs}) > 1
        names = [spec.key.label if several else spec.key.layer for spec in specs]
        self._arrays = {name: Activations(self, spec.key) for name, spec in zip(names, specs, strict=True)}
        self._facts = {name: spec.facts for name, spec in zip(names, specs, strict=True)}

    def _check_structure(self) -> None:
        told = int(self._read(self._layout.structure, 0, 1)[0])
        if told < layout.COMPLETE:
            raise StoreError(
                f"{self.path} is incomplete: its extraction was interrupted, or is still running",
                path=self.path,
                remedy=Remedy("the same extraction again goes on where it stopped"),
            )
        if told != layout.COMPLETE + self._structure_checksum():
            raise StoreError(
                f"{self.path} is damaged outside of its arrays: its header, names, attributes, labels or checksums are "
                "not what was written",
                path=self.path,
                remedy=Remedy("extract it again, or restore it from a copy"),
            )

    def _structure_checksum(self) -> int:
        assert self._file is not None, "called while open"
        return extents.structure_checksum(self._file, self._layout)

    def _read(self, extent: Extent, start: int, stop: int) -> Array:
        if self._file is None:
            raise StoreError(f"the store {self.path} is closed; open it again")
        try:
            return extents.read_rows(self._file, extent, start, stop)
        except OSError as error:
            raise StoreError(f"cannot read {self.path}: {reason(error)}") from None

    @property
    def contents(self) -> Contents:
        """Everything but the values."""
        return self._contents

    @property
    def model(self) -> str:
        """Names the model in every result."""
        return self._contents.model

    @property
    def provenance(self) -> dict[str, Any]:
        """What decided the numbers."""
        return dict(self._contents.provenance)

    @property
    def data(self) -> str:
        """What the samples are, for people."""
        return self._contents.source

    @property
    def sample_ids(self) -> SampleIds:
        """In the order of the rows."""
        return self._contents.sample_ids

    @property
    def labels(self) -> Array | None:
        """Class numbers, or None."""
        return self._contents.labels

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names in the order of the numbers, or nothing."""
        return self._contents.classes

    @property
    def checksum(self) -> str:
        """Of everything in the file, by way of the rows' own checksums: two stores that share it hold the same."""
        return f"{int(self._read(self._layout.structure, 0, 1)[0]) - layout.COMPLETE:08x}"

    @property
    def order(self) -> Array | None:
        """Samples in the order in which they were read, where rows are made of several (``gram:B``): else None.

        Row k of such an array is made of the samples ``order[k * B : (k + 1) * B]``.
        """
        return self._contents.order

    @property
    def pixels(self) -> Activations | None:
        """What went into the model, at low resolution; None where it is not stored.

        A control to hold layers against, and none of them: what two networks share because they see the same pictures.
        """
        keys = (spec.key for spec in self._contents.arrays if spec.key.control)
        return next((Activations(self, key) for key in keys), None)

    @property
    def layers(self) -> tuple[str, ...]:
        """Names of the layers' arrays, in depth order."""
        return tuple(self._arrays)

    def __getitem__(self, name: str) -> Activations:
        if name not in self._arrays:
            raise UnknownNameError("layer", name, self.layers, where=f"in {self.path.name}")
        return self._arrays[name]

    def facts(self, name: str) -> dict[str, Any]:
        """What is recorded of one layer: module type, output shape, axes, tokens."""
        self[name]
        return dict(self._facts[name])

    def __len__(self) -> int:
        return len(self.sample_ids)

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def __del__(self) -> None:
        if getattr(self, "_file", None) is not None:
            self.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def table(self) -> Table:
        """All layers: what they are, and how they are stored."""
        rows = []
        for name, array in self._arrays.items():
            facts = self._facts[name]
            stored = f"{times(array.shape)} {array.dtype}"
            output = times(facts.get("output_shape", ()))
            rows.append(
                (name, array.key.readout, str(facts.get("type", "")), output, str(facts.get("axes", "")), stored)
            )
        return Table(
            f"{len(rows)} layers", ("layer", "readout", "type", "output shape", "axes", "stored as"), tuple(rows)
        )

    @property
    def _state(self) -> str:
        """The file's size, if it is still there, and whether it is open."""
        size = format_size(self.path.stat().st_size) if self.path.exists() else "no longer there"
        return size if self._file is not None else f"{size}, closed"

    def __repr__(self) -> str:
        return (
            f"<ActivationStore {self.path.name}: {self.model}, {len(self.layers)} layers, {len(self)} samples of "
            f"{self.data} ({self._state})>"
        )

    def _repr_html_(self) -> str:
        told = self.provenance.get("weights")
        weights = f"weights {told}" if told else ""
        labels = "" if self.labels is None else f"{len(self.classes) or len(set(self.labels.tolist()))} classes"
        pixels = "" if self.pixels is None else f"pixels of the input {times(self.pixels.shape[1:])}"
        facts = [weights, f"{len(self):,} samples of {self.data}", labels, pixels, f"{self.path.name}, {self._state}"]
        return card(self.model, paragraphs(["; ".join(filter(None, facts))]), self.table().html())


def store_path(path: Any) -> Path:
    """Take the name of a store's file; `InvalidInputError` where it is something else, an array, say."""
    if not isinstance(path, str | os.PathLike) or isinstance(path, bytes) or not str(path):
        kind = "empty text" if isinstance(path, str) else f"a {type(path).__name__}"
        raise InvalidInputError(
            f"expected a store or the name of its file, got {kind}; arrays are compared by repsim.similarity, and "
            "become a store by repsim.write_store"
        )
    if "\0" in str(path):
        raise InvalidInputError(f"a file name holds no null character: {str(path)!r}")
    return Path(path)


def several(stores: Any) -> list[Any]:
    """Take one store or many, open or by name, as a list; `InvalidInputError` for arrays and other things."""
    if isinstance(stores, ActivationStore | str | os.PathLike):
        return [stores]
    if isinstance(stores, bytes | Mapping) or hasattr(stores, "__array__") or not isinstance(stores, Iterable):
        store_path(stores)
    return list(stores)


def open_store(path: str | os.PathLike[str]) -> ActivationStore:
    """Open a store for reading; `StoreError` where it is missing, damaged, incomplete, or something else."""
    return ActivationStore(path)


@dataclass(frozen=True)
class Damage:
    """Rows of one array that are not what was written."""

    key: LayerKey
    rows: tuple[int, ...]

    def __str__(self) -> str:
        return f"{self.key} is damaged in {rows_in_words(self.rows)}"


def verify(path: str | os.PathLike[str], progress: Listener = None) -> list[Damage]:
    """Read a whole store and hold every byte against its checksum.

    Parameters
    ----------
    path
        The store.
    progress
        Called with the number of arrays done, and of all. By default a notebook shows a bar; False is silent.

    Returns
    -------
    list of Damage
        The rows that are not what was written, by layer; empty where all is well.

    Raises
    ------
    StoreError
        The file is missing, cut off, incomplete, or damaged outside of its arrays.

    Examples
    --------
    >>> import repsim, tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     repsim.write_store(f"{folder}/a.h5", {"out": np.ones((4, 2))}, model="a").close()
    ...     verify(f"{folder}/a.h5")
    []
    """
    found: list[Damage] = []
    with open_store(path) as store, report_progress(f"verifying {store.path.name}", progress) as advance:
        arrays = [Activations(store, spec.key) for spec in store.contents.arrays]
        for done, array in enumerate(arrays, start=1):
            step = max(1, _PIECE // array._extent.row_bytes)
            rows = [
                row
                for start in range(0, len(array), step)
                for row in array.checked(start, min(start + step, len(array)))[1]
            ]
            if rows:
                found.append(Damage(array.key, tuple(rows)))
            if advance is not None:
                advance(done, len(arrays))
    return found


def rows_in_words(rows: "list[int] | tuple[int, ...]") -> str:
    """Name rows by their runs.

    >>> rows_in_words([3]), rows_in_words([1, 2, 3, 7])
    ('row 3', '4 rows (1-3, 7)')
    """
    runs = list(_runs(rows))
    words = [str(a) if a == b else f"{a}-{b}" for a, b in runs[:5]] + (["..."] if len(runs) > 5 else [])
    return f"row {words[0]}" if len(rows) == 1 else f"{len(rows)} rows ({', '.join(words)})"


def _runs(rows: "list[int] | tuple[int, ...]") -> Iterator[tuple[int, int]]:
    start = previous = rows[0]
    for row in rows[1:]:
        if row != previous + 1:
            yield start, previous
            start = row
        previous = row
    yield start, previous
