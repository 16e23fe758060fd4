"""Tables in files: CSV, tab-separated, JSON lines and parquet.

A column of paths or bytes of pictures gives pictures, a column of texts gives texts, and a column of numbers, or of
lists of numbers of equal length, gives arrays. A malformed table is an error as a whole; the message names the line.
"""

import csv
import io
import json
import posixpath
import re
import threading
from collections.abc import Callable, Hashable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from repsim.errors import ImageError, MissingExtraError, SampleError, reason
from repsim.extractors.samples.arrays import ArrayRows, Arrays
from repsim.extractors.samples.columns import Table
from repsim.extractors.samples.decoding import MAX_PIXELS, suffixes
from repsim.extractors.samples.encoded_pictures import PicturesOfTable, picture_keys, picture_parts
from repsim.extractors.samples.source import Modality, SampleSource
from repsim.extractors.samples.texts import Texts, read_text

SUFFIXES = frozenset({".csv", ".tsv", ".jsonl", ".ndjson", ".parquet"})
"""Suffixes of the files of this module, in lower case."""
_JSON = frozenset({".jsonl", ".ndjson"})
_FIELD = 2**30
"""Largest number of characters of a field of a CSV file."""


def open_table(path: Path, max_pixels: int = MAX_PIXELS) -> Table:
    """Open a table by the suffix of its file.

    Raises
    ------
    SampleError
        The file cannot be read, or is malformed.
    """
    suffix = path.suffix.lower()
    if suffix == ".parquet":
        return ParquetTable(path, max_pixels)
    text = read_text(path)
    columns, lines = read_json_lines(text, path.name) if suffix in _JSON else read_csv(text, path)
    return TextTable(path, columns, lines, max_pixels)


def read_csv(text: str, path: Path) -> tuple[dict[str, list[Any]], list[int]]:
    r"""Read a table whose first line names the columns. Fields with separators or line ends are quoted.

    Returns
    -------
    dict of str to list, list of int
        Columns of texts, an empty field being None, and the number of the line in which each row begins.

    Raises
    ------
    SampleError
        The table has no rows or no names of columns, or a row has another number of fields than there are columns.

    Examples
    --------
    >>> read_csv("image,text\na.png,a cat\n", Path("pairs.csv"))
    ({'image': ['a.png'], 'text': ['a cat']}, [2])
    """
    name = path.name
    first = text.split("\n", 1)[0]
    separator = "\t" if path.suffix.lower() == ".tsv" else ";" if ";" in first and "," not in first else ","
    csv.field_size_limit(_FIELD)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
    rows: list[list[str]] = []
    lines: list[int] = []
    start = 1
    try:
        for row in reader:
            if row:
                rows.append(row)
                lines.append(start)
            start = reader.line_num + 1
    except csv.Error as error:
        raise SampleError(f"{name}, line {start}: {reason(error)}; quote fields that hold quotes") from None
    if not rows:
        raise SampleError(f"{name} is empty")
    heads = [head.strip() for head in rows[0]]
    if wrong := next((head for head in heads if _is_data(head)), None):
        raise SampleError(f"{name}: the first line names the columns, but {wrong!r} is no name; add a line of names")
    if "" in heads or len(set(heads)) < len(heads):
        raise SampleError(f"{name}: a column has no name, or two have the same: {', '.join(heads)}")
    for line, row in zip(lines, rows, strict=True):
        if len(row) != len(heads):
            raise SampleError(
                f"{name}, line {line}: {len(row)} fields, and the first line names {len(heads)} columns "
                f"({', '.join(heads)}); quote fields that hold {_WORDS[separator]}"
            )
    return {head: [row[k] or None for row in rows[1:]] for k, head in enumerate(heads)}, lines[1:]


_WORDS = {",": "commas", ";": "semicolons", "\t": "tabs"}


def _is_data(head: str) -> bool:
    """Return whether the name of a column is rather a value: a number, or the path of a picture."""
    return _is_number(head) or posixpath.splitext(head)[1].lower() in suffixes()


def read_json_lines(text: str, name: str) -> tuple[dict[str, list[Any]], list[int]]:
    r"""Read one JSON object a line. A key that a line lacks is None in its row; empty lines are ignored.

    Returns
    -------
    dict of str to list, list of int
        Columns, and the number of the line of each row.

    Raises
    ------
    SampleError
        A line is no JSON object.

    Examples
    --------
    >>> read_json_lines('{"text": "a cat"}\n{"text": "a dog", "id": 7}\n', "captions.jsonl")
    ({'text': ['a cat', 'a dog'], 'id': [None, 7]}, [1, 2])
    """
    rows: list[dict[str, Any]] = []
    lines: list[int] = []
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise SampleError(f"{name}, line {number}: not valid JSON: {reason(error)}") from None
        if not isinstance(row, dict):
            raise SampleError(f"{name}, line {number}: a JSON object is expected, not a {type(row).__name__}")
        rows.append(row)
        lines.append(number)
    if not rows:
        raise SampleError(f"{name} is empty")
    names = dict.fromkeys(key for row in rows for key in row)
    return {key: [row.get(key) for row in rows] for key in names}, lines


class TextTable(Table):
    """A table that was read from a text file.

    Parameters
    ----------
    path : Path
        The file. Paths of pictures are relative to its folder.
    columns : mapping of str to list
        Cells by column.
    lines : sequence of int
        Number of the line of each row.
    """

    def __init__(
        self, path: Path, columns: dict[str, list[Any]], lines: Sequence[int], max_pixels: int = MAX_PIXELS
    ) -> None:
        self.name, self.n, self.lines = path.name, len(lines), lines
        self._folder, self._cells, self._max_pixels = path.parent, columns, max_pixels
        self.columns = list(columns)
        self._typed = path.suffix.lower() in _JSON

    def modality(self, column: str) -> Modality | None:
        """Return what the cells of a column are."""
        return kind_of_cells(self._cells[column], typed=self._typed)

    def values(self, column: str) -> Sequence[Any]:
        """Return the cells of a column."""
        return self._cells[column]

    def pictures(self, column: str) -> Sequence[Hashable] | None:
        """Return the paths of the pictures."""
        return picture_keys(self._cells[column].__getitem__, self.n) if self.modality(column) == "image" else None

    def source(self, column: str, modality: Modality) -> SampleSource:
        """Open a column."""
        return source_of_cells(self.name, self._cells[column], self.place, modality, self._folder, self._max_pixels)


def kind_of_cells(cells: Sequence[Any], *, typed: bool = True) -> Modality | None:
    """Return what the cells of a column are: pictures by path, texts, numbers or lists of numbers; else None.

    Texts that write numbers are numbers if the file has no types (``typed=False``), as CSV.

    >>> kind_of_cells(["a.png", "b/c.JPG"]), kind_of_cells(["a cat", None]), kind_of_cells([[1, 2], [3, 4]])
    ('image', 'text', 'tensor')
    >>> kind_of_cells(["1", "2.5"]), kind_of_cells(["1", "2.5"], typed=False), kind_of_cells([1, "a"])
    ('text', 'tensor', None)
    """
    present = [cell for cell in cells if cell is not None]
    if not present:
        return None
    if all(isinstance(cell, str) for cell in present):
        endings = suffixes()
        if all(posixpath.splitext(cell)[1].lower() in endings and "://" not in cell for cell in present):
            return "image"
        return "tensor" if not typed and len(present) == len(cells) and all(map(_is_number, present)) else "text"
    if len(present) < len(cells) or any(isinstance(cell, str | dict | bytes) for cell in present):
        return None
    return None if _as_numbers(cells) is None else "tensor"


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return "_" not in text


def _as_numbers(cells: Sequence[Any], dtype: Any = None) -> np.ndarray[Any, Any] | None:
    """Return numbers, or lists of equal length, as one array, or None.

    Text files do not say the type of real numbers; they become float32, the type of the weights of most models.
    """
    try:
        array = np.asarray([_number(cell) if isinstance(cell, str) else cell for cell in cells], dtype)
    except (ValueError, TypeError, OverflowError):  # lists of different lengths
        return None
    if array.dtype.kind not in "biuf":
        return None
    return array.astype(np.float32) if array.dtype.kind == "f" and dtype is None else array


def _number(text: str) -> int | float:
    return int(text) if re.fullmatch(r"[+-]?\d{1,18}", text) else float(text)


def source_of_cells(  # noqa: PLR0917 - the parts of a column
    name: str,
    cells: Sequence[Any],
    places: Callable[[int], str],
    modality: Modality,
    folder: Path | None = None,
    max_pixels: int = MAX_PIXELS,
    dtype: Any = None,
) -> SampleSource:
    """Open a column whose cells are in memory; ``dtype`` is the type of numbers, of which Python's lists know nothing.

    Raises
    ------
    ImageError
        None of the pictures exists.
    """
    if modality == "text":
        return Texts(name, cells, (), places)
    if modality == "tensor":
        return Arrays(name, ArrayRows(_as_numbers(cells, dtype)))
    pictures = PicturesOfTable(cells.__getitem__, places, folder, max_pixels)
    paths = [path for cell in cells if (path := picture_parts(cell)[1]) and picture_parts(cell)[0] is None]
    if len(paths) == len(cells) and not any(((folder or Path()) / path).exists() for path in paths):
        raise ImageError(
            f"none of the {len(paths):,} pictures that {name} names exists (the first: {paths[0]}); paths are relative "
            "to the folder of the table"
        )
    return pictures


class ParquetTable(Table):
    """A parquet file. Pictures are read one row group at a time, all other columns as a whole."""

    def __init__(self, path: Path, max_pixels: int = MAX_PIXELS) -> None:
        self.name, self._path, self._max_pixels = path.name, path, max_pixels
        self._file = _open_parquet(path)
        self._schema = self._file.schema_arrow
        self.columns = list(self._schema.names)
        if len(set(self.columns)) < len(self.columns):
            twice = next(name for name in self.columns if self.columns.count(name) > 1)
            raise SampleError(f"{self.name}: two columns have the same name: {twice}")
        self.n = self._file.metadata.num_rows
        self._cells: dict[str, list[Any]] = {}

    def _read(self, column: str) -> Any:
        try:
            return self._file.read(columns=[column]).column(column)
        except Exception as error:  # noqa: BLE001 - arrow raises errors of its own
            raise SampleError(f"cannot read the column {column} of {self.name}: {reason(error)}") from None

    def modality(self, column: str) -> Modality | None:
        """Return what the cells of a column are."""
        kind = self._schema.field(column).type
        if _is_binary(kind) or _is_picture_struct(kind):
            return "image"
        if re.fullmatch(r"u?int\d+|float|double|halffloat|bool", str(kind)) and not self._read(column).null_count:
            return "tensor"
        return kind_of_cells(self.values(column))

    def values(self, column: str) -> Sequence[Any]:
        """Return the cells of a column."""
        if column not in self._cells:
            self._cells[column] = self._read(column).to_pylist()
        return self._cells[column]

    def pictures(self, column: str) -> Sequence[Hashable] | None:
        """Return paths, or hashes of the bytes of the pictures."""
        kind = self._schema.field(column).type
        if _is_binary(kind) or _is_picture_struct(kind):
            return picture_keys(ParquetCells(self._path, column), self.n)
        if "string" not in str(kind) or self.modality(column) != "image":
            return None
        return picture_keys(self.values(column).__getitem__, self.n)

    def source(self, column: str, modality: Modality) -> SampleSource:
        """Open a column."""
        kind = self._schema.field(column).type
        if modality == "image" and (_is_binary(kind) or _is_picture_struct(kind)):
            cells = ParquetCells(self._path, column)
            return PicturesOfTable(cells, self.place, self._path.parent, self._max_pixels)
        folder = self._path.parent
        dtype = _number_type(kind) if modality == "tensor" else None
        return source_of_cells(self.name, self.values(column), self.place, modality, folder, self._max_pixels, dtype)


class ParquetCells:
    """Cells of one column of a parquet file, read by row group; the last row group is kept.

    Parameters
    ----------
    path : Path
        The file.
    column : str
        Name of the column.
    """

    def __init__(self, path: Path, column: str) -> None:
        self._path, self._column = path, column
        metadata = _open_parquet(path).metadata
        sizes = [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]
        self._ends = np.cumsum(sizes)
        self._open()

    def _open(self) -> None:
        self._lock, self._group = threading.Lock(), -1
        self._values: Any = None
        self._file: Any = None

    def __call__(self, row: int) -> Any:
        """Return one cell."""
        group = int(np.searchsorted(self._ends, row, side="right"))
        with self._lock:
            if group != self._group:
                self._file = self._file or _open_parquet(self._path)
                try:
                    values = self._file.read_row_group(group, columns=[self._column]).column(self._column)
                except Exception as error:  # noqa: BLE001 - arrow raises errors of its own
                    raise ImageError(f"cannot read rows of {self._path.name}: {reason(error)}") from None
                self._group, self._values = group, values
            values = self._values
        start = int(self._ends[group - 1]) if group else 0
        return values[row - start].as_py()

    def __getstate__(self) -> dict[str, Any]:
        return {"_path": self._path, "_column": self._column, "_ends": self._ends}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._open()


def _open_parquet(path: Path) -> Any:
    try:
        from pyarrow import parquet  # noqa: PLC0415 - an extra
    except ImportError:
        raise MissingExtraError(f"reading {path.name}", "pyarrow", extra="data") from None
    try:
        return parquet.ParquetFile(path)
    except Exception as error:  # noqa: BLE001 - arrow raises errors of its own
        raise SampleError(f"cannot read {path.name}: {reason(error)}") from None


def _number_type(kind: Any) -> Any:
    """Return numpy's type of the innermost values of lists."""
    while hasattr(kind, "value_type"):
        kind = kind.value_type
    return kind.to_pandas_dtype()


def _is_binary(kind: Any) -> bool:
    return str(kind) in {"binary", "large_binary", "binary_view"}


def _is_picture_struct(kind: Any) -> bool:
    return str(kind).startswith("struct<") and {kind.field(k).name for k in range(kind.num_fields)} == {"bytes", "path"}
