"""Layers in files of other programs, whatever their format: names, shapes, and values a few rows at a time."""

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from repsim.errors import InvalidInputError
from repsim.runtime.arrays import as_array, check_exact
from repsim.stores.schema import Array

IDS = ("ids", "sample_ids", "id", "sample_id", "file_names", "filenames", "names")
"""Names under which a file may hold the sample ids."""
RECORD = "repsim"
"""Name of the entry with which repsim describes the files that it exports."""


@dataclass(frozen=True)
class ForeignLayer:
    """Layer in a file of another program, which is read without loading all of it where the format allows."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    """Name of the dtype in the file, such as ``bfloat16``."""
    blocks: Callable[[int], Iterator[Any]]
    """Function from a number of rows to consecutive runs of at most that many rows."""
    whole: Callable[[], Any] | None = None
    """Function that returns all rows, memory-mapped; None if the format cannot be mapped."""

    def values(self) -> Any:
        """Return all rows: memory-mapped if possible, or else read into memory."""
        if self.whole is not None:
            return self.whole()
        return np.concatenate([as_floats(block, self.name) for block in self.blocks(max(1, self.shape[0]))])

    @property
    def stored_as(self) -> str:
        """Name of the dtype that represents each value exactly: float16, float32 or float64."""
        if self.dtype in {"float16", "float32", "float64"}:
            return self.dtype
        return "float64" if np.dtype(_numpy_name(self.dtype)).itemsize >= 4 else "float32"


@dataclass(kw_only=True)
class Foreign:
    """Contents of a file or folder of another program, as layers of one model."""

    form: str
    """Format, for the provenance."""
    layers: list[ForeignLayer] = field(default_factory=list)
    left_out: dict[str, str] = field(default_factory=dict)
    """Arrays that are no layers, with the reason."""
    columns: dict[str, Callable[[], Any]] = field(default_factory=dict)
    """Values of the samples by name, such as classes: functions that read them."""
    ids: Callable[[], Any] | None = None
    ids_from: str = ""
    """Place where the ids are, for a note."""
    record: Mapping[str, Any] = field(default_factory=dict)
    """Description that repsim has written beside the layers; empty for files of other programs."""

    def add(self, layer: ForeignLayer) -> None:
        """Add an array: a layer if it holds numbers in two dimensions or more; otherwise a column, or left out."""
        why = no_layer(layer.shape, layer.dtype)
        if why is None:
            self.layers.append(replace(layer, name=layer.name.replace("/", ".")))  # a store has no slash in names
            return
        self.left_out[layer.name] = why
        if len(layer.shape) == 1:
            self.add_column(layer.name, lambda: np.concatenate([*layer.blocks(max(1, layer.shape[0]))]))

    def add_column(self, name: str, read: Callable[[], Any]) -> None:
        """Add values of the samples; a column with the name of ids becomes the ids."""
        self.columns[name] = read
        if name.rpartition(".")[2].lower() in IDS and self.ids is None:
            self.ids, self.ids_from = read, name

    def take_ids_of_record(self) -> None:
        """Take the ids that repsim has written beside the layers, if there are any."""
        ids = self.record.get("ids")
        if isinstance(ids, list):
            self.ids, self.ids_from = (lambda: ids), "those that repsim exported"


def no_layer(shape: tuple[int, ...], dtype: str) -> str | None:
    """Return the reason why an array cannot be a layer; None if it can."""
    kind = "f" if dtype.startswith(("bfloat", "float8")) else np.dtype(dtype).kind
    if kind not in "fiub":
        return "no numbers" if kind != "c" else "complex numbers"
    if len(shape) < 2:
        return "one value a sample" if shape else "one number"
    return "empty" if 0 in shape else None


def sliced(name: str, array: Any, *, mapped: bool = True, dtype: str | None = None) -> ForeignLayer:
    """Describe an array that can be cut by rows; ``mapped`` if all of it may be used as it is."""

    def blocks(rows: int) -> Iterator[Any]:
        for start in range(0, array.shape[0], rows):
            yield array[start : start + rows]

    kind = dtype or str(getattr(array.dtype, "name", array.dtype)).removeprefix("torch.")
    if isinstance(array.dtype, np.dtype) and array.dtype.kind in "SUV":  # numpy does not read their names back
        kind = array.dtype.str
    return ForeignLayer(name, tuple(array.shape), kind, blocks, (lambda: array) if mapped else None)


def as_floats(block: Any, name: str) -> Array:
    """Return rows as floats that represent each value exactly; refuse whole numbers that float64 cannot represent."""
    values = as_array(block, f"layer {name!r}")
    if values.dtype.kind == "f":
        return values
    check_exact(values, f"layer {name!r}")
    return values.astype("float64" if values.dtype.itemsize >= 4 else "float32")


def as_record(text: str | bytes | None) -> dict[str, Any]:
    """Return the description that repsim writes beside exported layers; empty if there is none."""
    try:
        record = json.loads(text or "{}")
    except ValueError:
        return {}
    return record if isinstance(record, dict) else {}


def texts(values: Any, what: str) -> tuple[str, ...]:
    """Return ids as texts; bytes of HDF5 are UTF-8."""
    listed = values.tolist() if hasattr(values, "tolist") else list(values)
    try:
        return tuple(entry.decode() if isinstance(entry, bytes) else str(entry) for entry in listed)
    except UnicodeDecodeError:
        raise InvalidInputError(f"{what}: the ids are not UTF-8") from None


def _numpy_name(dtype: str) -> str:
    return "float16" if dtype.startswith(("bfloat", "float8")) else dtype
