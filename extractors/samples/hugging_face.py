"""Data sets of the library datasets of Hugging Face: in memory, or in a folder that ``save_to_disk`` wrote."""

import sys
from collections.abc import Hashable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from repsim.errors import (
    Argument,
    Hint,
    InvalidInputError,
    MissingExtraError,
    Remedy,
    SampleError,
    UnknownNameError,
    reason,
)
from repsim.extractors.samples.arrays import Arrays, Rows, as_tensor
from repsim.extractors.samples.columns import Roles, Table, open_column
from repsim.extractors.samples.decoding import MAX_PIXELS
from repsim.extractors.samples.encoded_pictures import PicturesOfTable, picture_keys
from repsim.extractors.samples.loaders import open_dataset, open_stream
from repsim.extractors.samples.source import Modality, SampleSource
from repsim.extractors.samples.tables import kind_of_cells, source_of_cells

_FILES_ON_DISK = ("state.json", "dataset_dict.json")
"""Files of which ``save_to_disk`` writes one into each folder: of a data set, and of one with splits."""
_NUMBERS = ("int", "uint", "float", "bool")


def is_saved(folder: Path) -> bool:
    """Return whether ``save_to_disk`` of datasets wrote a folder."""
    return any((folder / name).is_file() for name in _FILES_ON_DISK)


def is_dataset(data: Any) -> bool:
    """Return whether an object is a data set of Hugging Face, without importing the library."""
    library = sys.modules.get("datasets")
    if library is None:
        return False
    kinds = (library.Dataset, library.IterableDataset, library.DatasetDict, library.IterableDatasetDict)
    return isinstance(data, kinds)


def open_saved(folder: Path, split: str | None, roles: Roles, max_pixels: int = MAX_PIXELS) -> SampleSource:
    """Open a folder that ``save_to_disk`` wrote.

    Raises
    ------
    SampleError
        The folder cannot be read, or it is not clear what to read of it.
    """
    try:
        import datasets  # noqa: PLC0415 - an extra
    except ImportError:
        raise MissingExtraError(f"reading {folder.name}", "datasets", extra="data") from None
    try:
        dataset = datasets.load_from_disk(str(folder))
    except Exception as error:  # noqa: BLE001 - the library raises anything on damaged folders
        raise SampleError(f"cannot read the data set in {folder.name}: {reason(error)}") from None
    return open_hugging_face(dataset, split, roles, max_pixels, name=folder.name)


def open_hugging_face(
    dataset: Any, split: str | None, roles: Roles, max_pixels: int = MAX_PIXELS, *, name: str | None = None
) -> SampleSource:
    """Open a data set of Hugging Face, or one split of several.

    Raises
    ------
    UnknownNameError
        There is no such split or column.
    SampleError
        It is not clear which split or column is to be read.
    """
    notes: list[str] = []
    name = name or _name(dataset)
    if isinstance(dataset, dict):
        splits = list(dataset)
        if split is None and len(splits) > 1:
            raise SampleError(
                f"{name} has the splits {', '.join(splits)}",
                remedy=Remedy("choose one with ", Argument("split", metavar="NAME")),
            )
        if split is None:
            split = splits[0]
            notes.append(Hint(f"{name}: the split {split} is read, the only one"))
        if split not in dataset:
            raise UnknownNameError("split", split, splits, where=f"of {name}")
        dataset, name = dataset[split], f"{name} [{split}]"
    elif split is not None:
        raise InvalidInputError(Argument("split"), f" does not apply to {name}, which is one split")
    if isinstance(dataset, sys.modules["datasets"].IterableDataset):
        source = _open_streamed(dataset, roles, name)
    elif dataset.format["type"] == "custom":  # rows are made by a function of the user
        for parameter in roles.named:
            raise InvalidInputError(Argument(parameter), f" does not apply to {name}, whose rows a function transforms")
        source = open_dataset(dataset, ids=roles.ids, name=name)
    else:
        source = open_column(FeatureTable(dataset, name, max_pixels), roles)
    source.notes = (*notes, *source.notes)
    return source


def _name(dataset: Any) -> str:
    first = next(iter(dataset.values())) if isinstance(dataset, dict) and dataset else dataset
    return str(first.info.dataset_name or type(dataset).__name__)


def _open_streamed(dataset: Any, roles: Roles, name: str) -> SampleSource:
    """Open a streamed data set: one column of it, or whole rows as they are."""
    others = [key for key in roles.named if key != "column"]
    if others:
        raise InvalidInputError(
            Argument(others[0]), f" does not apply to {name}, which is streamed; give ids, labels or groups themselves"
        )
    column = roles.column
    if column is None:
        return open_stream(dataset, ids=roles.ids, name=name)
    names = list(dataset.column_names or next(iter(dataset), {}))
    if column not in names:
        raise UnknownNameError("column", column, names, where=f"of {name}")
    source = open_stream(dataset, ids=roles.ids, name=f"{name} [{column}]", take=partial(_take, column))
    source.record = {**source.record, "column": column}
    return source


def _take(column: str, row: Any) -> Any:
    return row[column]


class FeatureTable(Table):
    """A data set of Hugging Face with random access.

    Parameters
    ----------
    dataset : datasets.Dataset
        The data set.
    name : str
        Its name, for messages.
    """

    def __init__(self, dataset: Any, name: str, max_pixels: int = MAX_PIXELS) -> None:
        self.name, self._dataset, self._max_pixels = name, dataset.with_format(None), max_pixels
        self.columns, self.n = list(dataset.column_names), len(dataset)
        self._features = dataset.features
        self._cells: dict[str, list[Any]] = {}
        class_columns = [column for column in self.columns if type(self._features[column]).__name__ == "ClassLabel"]
        if len(class_columns) == 1:
            self.label_names = frozenset({class_columns[0].lower()})

    def _kind(self, column: str) -> str:
        """Return the kind of a feature: Image, ClassLabel, ..., or the type of a value, such as string or int64."""
        feature = self._features[column]
        return str(feature.dtype) if type(feature).__name__ == "Value" else type(feature).__name__

    def modality(self, column: str) -> Modality | None:
        """Return what the cells of a column are."""
        kind = self._kind(column)
        if kind == "Image":
            return "image"
        if kind.startswith("Array") or self._is_list(column):
            return "tensor" if _innermost(self._features[column]).startswith(_NUMBERS) else None
        if kind == "ClassLabel":
            return None
        if kind in {"string", "large_string"} or kind.startswith(_NUMBERS):
            return kind_of_cells(self.values(column))
        return None

    def _is_list(self, column: str) -> bool:
        return type(self._features[column]).__name__ in {"Sequence", "LargeList", "List", "list"}

    def values(self, column: str) -> Sequence[Any]:
        """Return the cells of a column."""
        if column not in self._cells:
            self._cells[column] = list(self._raw(column)[column])
        return self._cells[column]

    def _raw(self, column: str) -> Any:
        """Return the data set of one column, whose pictures are bytes and paths."""
        alone = self._dataset.select_columns([column])
        if self._kind(column) != "Image":
            return alone
        import datasets  # noqa: PLC0415 - an extra

        return alone.cast_column(column, datasets.Image(decode=False))

    def classes(self, column: str) -> Sequence[str] | None:
        """Return the names of the classes of a column of class numbers."""
        return list(self._features[column].names) if self._kind(column) == "ClassLabel" else None

    def pictures(self, column: str) -> Sequence[Hashable] | None:
        """Return paths, or hashes of the bytes of the pictures."""
        if self._kind(column) == "Image":
            return picture_keys(Cells(self._raw(column), column), self.n)
        if self._kind(column) not in {"string", "large_string"} or self.modality(column) != "image":
            return None
        return picture_keys(self.values(column).__getitem__, self.n)

    def source(self, column: str, modality: Modality) -> SampleSource:
        """Open a column."""
        if self._kind(column) == "Image":
            cells = Cells(self._raw(column), column)
            return PicturesOfTable(cells, self.place, None, self._max_pixels)
        if modality == "tensor" and (self._is_list(column) or self._kind(column).startswith("Array")):
            dtype = _innermost(self._features[column])
            return Arrays(self.name, CellRows(self._raw(column), column, np.dtype(dtype), self.name))
        return source_of_cells(self.name, self.values(column), self.place, modality, None, self._max_pixels)


def _innermost(feature: Any) -> str:
    """Return the type of the innermost values of lists and arrays; empty for features that are no values."""
    if isinstance(feature, list):
        return _innermost(feature[0]) if len(feature) == 1 else ""
    inner = getattr(feature, "feature", None)
    return _innermost(inner) if inner is not None else str(getattr(feature, "dtype", ""))


class Cells:
    """Cells of one column of a data set, read when asked."""

    def __init__(self, dataset: Any, column: str) -> None:
        self._dataset, self._column = dataset, column

    def __call__(self, row: int) -> Any:
        """Return one cell."""
        return self._dataset[row][self._column]


class CellRows(Rows):
    """Lists of numbers of one column of a data set, all of the shape of the first.

    Parameters
    ----------
    dataset : datasets.Dataset
        The data set.
    column : str
        Name of the column.
    dtype : numpy.dtype
        Type of the numbers, which Python's lists do not keep.
    name : str
        Name of the data, for messages.
    """

    in_memory = False

    def __init__(self, dataset: Any, column: str, dtype: Any, name: str) -> None:
        self._cells, self._name, self._column, self._dtype = Cells(dataset, column), name, column, dtype
        self.shape = (len(dataset),)
        self.shape = (len(dataset), *self.row(0).shape)

    def row(self, index: int) -> Any:
        """Return one row.

        Raises
        ------
        SampleError
            It is missing, its lists have different lengths, or its shape is not that of the first row.
        """
        try:
            row = as_tensor(np.asarray(self._cells(index), self._dtype))
        except (ValueError, TypeError):
            raise SampleError(
                f"row {index} of the column {self._column} of {self._name} is missing, or its lists differ in length"
            ) from None
        if len(self.shape) > 1 and tuple(row.shape) != self.shape[1:]:
            raise SampleError(
                f"row {index} of the column {self._column} of {self._name} has the shape {tuple(row.shape)}, and the "
                f"first has {self.shape[1:]}"
            )
        return row
