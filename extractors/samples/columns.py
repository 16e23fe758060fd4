"""Open one column of a table: choose what is read, and where ids, labels and groups come from.

A table is anything with named columns and rows in a fixed order: a CSV, a parquet file, a data set of Hugging Face, the
arrays of a file, the members of webdataset shards. Nothing is chosen silently: what was chosen is in the notes and in
the record of the source.
"""

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Hashable, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any

import numpy as np

from repsim.errors import Argument, Hint, InvalidInputError, Remedy, SampleError, UnknownNameError
from repsim.extractors.samples.label_files import LABEL_HEADS, read_classes
from repsim.extractors.samples.source import NOUNS, Modality, SampleSource
from repsim.extractors.samples.texts import Places, numbered
from repsim.runtime.arrays import as_classes, as_groups

ID_NAMES = ("id", "key", "__key__", "sample_id")
"""Names of columns of ids, in lower case."""


@dataclass(frozen=True, kw_only=True)
class Roles:
    """Columns by what they are for, as the user names them; None stands for the rules of `open_column`."""

    column: str | None = None
    """Column that is read."""
    id_column: str | None = None
    label_column: str | None = None
    group_column: str | None = None
    ids: Sequence[str] | None = None
    """Ids in the order of the rows, in place of a column."""

    @property
    def named(self) -> dict[str, str]:
        """Columns that are named, by their parameters."""
        roles = {name: getattr(self, name) for name in ("column", "id_column", "label_column", "group_column")}
        return {name: value for name, value in roles.items() if value is not None}


class Table(ABC):
    """Named columns with one cell for each sample."""

    name: str
    """Name of the data, for messages."""
    columns: Sequence[str]
    n: int
    """Number of rows."""
    lines: Sequence[int] | None = None
    """Number of the line in the file for each row; None if there are no lines."""
    id_names: Sequence[str] = ID_NAMES
    """Names of columns that are taken as ids, in lower case, the first of them first."""
    label_names: frozenset[str] = LABEL_HEADS
    """Names of columns of classes, in lower case."""

    @abstractmethod
    def modality(self, column: str) -> Modality | None:
        """Return what a model would read in a column, or None for a column that cannot be read."""

    @abstractmethod
    def values(self, column: str) -> Sequence[Any]:
        """Return all cells of a column of ids, labels or groups."""

    @abstractmethod
    def source(self, column: str, modality: Modality) -> SampleSource:
        """Open a column without name and ids, which `open_column` sets."""

    def classes(self, column: str) -> Sequence[str] | None:  # noqa: ARG002 - few tables name their classes
        """Return the class names of a column of class numbers, if the table holds them."""
        return None

    def pictures(self, column: str) -> Sequence[Hashable] | None:  # noqa: ARG002 - not of all tables
        """Return what identifies the picture of each row; None for other columns, or if pictures are not compared."""
        return None

    @property
    def place(self) -> Callable[[int], str]:
        """Function from a row to its name in messages, without the table."""
        return Places(f"{self.name}, {'row' if self.lines is None else 'line'} ", self.lines)

    def why_not(self, column: str) -> str:
        """Return why a column cannot be read."""
        cell = next((value for value in self.values(column) if value is not None), None)
        if cell is None:
            return "its cells are empty"
        return f"its cells are neither pictures, nor texts, nor numbers in equal shapes (the first: {cell!r:.40})"

    def default_ids(self) -> tuple[list[str], str]:
        """Return ids for a table without a column of ids, and what they are."""
        if self.lines is None:
            return numbered(range(self.n)), "positions"
        return numbered(self.lines), "line numbers"


def open_column(table: Table, roles: Roles) -> SampleSource:
    """Open the column of a table that a model reads.

    The column is the one that is named, or the only column of pictures or texts, or else the only column of numbers.
    Ids come from the column that is named, or from one called id, key, ``__key__`` or sample_id, or are the numbers of
    the lines. Labels come from the column that is named, or from one called label, class, ... . Groups come from the
    column that is named, or, if pictures repeat in the table, are the pictures.

    Raises
    ------
    UnknownNameError
        There is no column of a name.
    SampleError
        It is not clear which column is to be read, or the column cannot be read.
    InvalidInputError
        Ids are missing or repeat, or labels or groups are missing or cannot be used.
    """
    for name in roles.named.values():
        if name not in table.columns:
            raise UnknownNameError("column", name, table.columns, where=f"{table.name} has {_listed(table.columns)}")
    if not table.n:
        raise SampleError(f"{table.name} has no rows")
    notes: list[str] = []
    id_column = roles.id_column
    if id_column is None and roles.ids is None:
        id_column = _called(table, table.id_names)
    label_column = roles.label_column or _called(table, table.label_names)
    others = {id_column, label_column, roles.group_column}
    column = roles.column
    if column is None:
        column = _only(table, others)
        rest = [name for name in table.columns if name != column]
        beside = f" (beside {_listed(rest)})" if rest else ""
        notes.append(Hint(f"{table.name}: the column {column} is read{beside}"))
    modality = table.modality(column)
    if modality is None:
        raise SampleError(
            f"the column {column} of {table.name} cannot be read: {table.why_not(column)}",
            remedy=_choose_column(table, column),
        )
    source = table.source(column, modality)
    source.name = f"{table.name} [{column}]"
    source.ids, origin = _ids(table, id_column, roles.ids)
    source.record = {**source.record, "column": column, "ids_from": origin}
    if label_column is not None and label_column != column:
        _set_labels(source, table, label_column, notes, asked=roles.label_column is not None)
    _set_groups(source, table, roles.group_column, notes)
    source.notes = (*source.notes, *notes)
    return source


def _called(table: Table, names: Sequence[str] | frozenset[str]) -> str | None:
    """Return the first column that has one of these names, in the order of the names or of the columns."""
    lower = {name.lower(): name for name in reversed(table.columns)}
    if isinstance(names, frozenset):
        return next((name for name in table.columns if name.lower() in names), None)
    return next((lower[name] for name in names if name in lower), None)


def _only(table: Table, others: set[str | None]) -> str:
    """Return the only column that a model can read.

    Raises
    ------
    SampleError
        There is none, or more than one.
    """
    kinds = {name: kind for name in table.columns if name not in others and (kind := table.modality(name))}
    candidates = [name for name, kind in kinds.items() if kind != "tensor"] or list(kinds)
    if len(candidates) == 1:
        return candidates[0]
    described = [f"{name} ({NOUNS[kinds[name]][1]})" for name in candidates]
    problem = (
        f"{table.name} has {len(candidates)} columns that can be read: {_listed(described)}"
        if candidates
        else f"no column of {table.name} holds pictures, texts or numbers alone: {_listed(list(table.columns))}"
    )
    raise SampleError(problem, remedy=Remedy("name the column with ", Argument("column", metavar="NAME")))


def _choose_column(table: Table, column: str) -> Remedy | None:
    readable = [name for name in table.columns if name != column and table.modality(name)]
    if not readable:
        return None
    return Remedy(Argument("column", metavar="NAME"), f" takes one of: {_listed(readable)}")


def _ids(table: Table, column: str | None, ids: Sequence[str] | None) -> tuple[list[str], str]:
    if ids is not None:
        return check_ids(ids, table.n, table.name), "given"
    if column is None:
        return table.default_ids()
    values = table.values(column)
    names: list[str] = []
    for row, value in enumerate(values):
        whole = isinstance(value, float) and value.is_integer()
        if isinstance(value, bool) or not (isinstance(value, str | int) or whole) or value == "":
            what = "none" if value is None or value == "" else f"{value!r:.40}"
            raise InvalidInputError(
                f"{table.place(row)}: the id in the column {column} is {what}; an id is a text or an integer",
                remedy=Remedy(Argument("id_column", metavar="NAME"), " takes another column"),
            )
        names.append(str(int(value)) if whole else str(value))
    if len(set(names)) < len(names):
        counts = Counter(names)
        twice = [name for name, count in counts.items() if count > 1]
        rows = [table.place(row).removeprefix(f"{table.name}, ") for row, name in enumerate(names) if name == twice[0]]
        raise InvalidInputError(
            f"{table.name}: {len(twice):,} ids of the column {column} repeat: {_listed(twice, 3)} "
            f"({twice[0]} in {_listed(rows, 3)})",
            remedy=Remedy(
                Argument("id_column", metavar="NAME"),
                " takes another column; a column of ids by which samples belong together is one of groups: ",
                Argument("group_column", metavar="NAME"),
            ),
        )
    return names, f"column {column}"


def check_ids(ids: Sequence[Any], n: int, name: str) -> list[str]:
    """Return ids that the user gave as texts.

    Raises
    ------
    InvalidInputError
        Their number is not ``n``, one is neither a text nor an integer, or they repeat.

    Examples
    --------
    >>> check_ids([7, 8], 2, "x.npy")
    ['7', '8']
    """
    if isinstance(ids, str | bytes):
        raise InvalidInputError(f"ids: expected one for each sample of {name}, got the single {ids!r:.40}")
    if isinstance(ids, Set | Mapping):
        raise InvalidInputError(f"ids: expected a sequence in the order of the samples, got a {type(ids).__name__}")
    values = list(ids.tolist() if hasattr(ids, "tolist") else ids)
    if len(values) != n:
        raise InvalidInputError(f"{len(values):,} ids for the {n:,} samples of {name}")
    for k, value in enumerate(values):
        if isinstance(value, bool) or not isinstance(value, str | int) or value == "":
            raise InvalidInputError(f"ids: sample {k} has {value!r:.40}; an id is a text or an integer")
    texts = [str(value) for value in values]
    if len(set(texts)) < n:
        twice = [text for text, count in Counter(texts).items() if count > 1]
        raise InvalidInputError(f"{len(twice):,} ids repeat: {_listed(twice, 3)}; every sample needs its own")
    return texts


def _set_labels(source: SampleSource, table: Table, column: str, notes: list[str], *, asked: bool) -> None:
    """Set the labels from a column; one that was not asked for and holds no classes is left out with a note."""
    names = table.classes(column)
    try:
        labels, classes = as_classes(_class_values(table, column, names), table.n)
    except InvalidInputError as error:
        if asked:
            raise
        notes.append(Hint(f"{table.name}: the column {column} is not taken as labels: {error.problem}"))
        return
    source.labels, source.classes = labels, tuple(names) if names else classes
    source.label_record = {"source": "column", "column": column}
    if not asked:
        notes.append(
            Hint(
                f"{table.name}: labels are those of the column {column}",
                remedy=Remedy(Argument("label_column", metavar="NAME"), " takes another"),
            )
        )


def _class_values(table: Table, column: str, names: Sequence[str] | None) -> Sequence[Any]:
    """Return the cells of a column of classes; numbers that are written as texts become numbers."""
    values = table.values(column)
    for row, value in enumerate(values):
        if value is None or isinstance(value, list | dict) or (names and value == -1):
            raise InvalidInputError(f"{table.place(row)} has no class in the column {column}: {value!r:.40}")
    if all(isinstance(value, str) for value in values):
        return read_classes(values, [*map(table.place, range(table.n))], f"column {column}")
    return values


def _set_groups(source: SampleSource, table: Table, column: str | None, notes: list[str]) -> None:
    """Set the groups from a column, or to the pictures of the table if these repeat."""
    if column is not None:
        values = list(table.values(column))
        for row, value in enumerate(values):
            if value is None or value == "":
                raise InvalidInputError(
                    f"{table.place(row)} has no group in the column {column}; add one, as its own group if it is alone"
                )
        source.groups, source.group_names = as_groups(values, table.n)
        source.group_record = {"source": "column", "column": column}
        return
    for name in table.columns:
        if (pictures := table.pictures(name)) is None:
            continue
        count = len(set(pictures))
        if count < table.n:
            number_of: dict[Hashable, int] = {}
            numbers = [number_of.setdefault(picture, len(number_of)) for picture in pictures]
            source.groups = np.array(numbers, np.int64)
            source.group_names = [str(picture) for picture in number_of]
            source.group_record = {"source": "pictures that repeat", "column": name}
            notes.append(
                Hint(
                    f"{table.name}: groups are the {count:,} pictures of the column {name}, which repeat in "
                    f"{table.n:,} rows",
                    remedy=Remedy(Argument("group_column", metavar="NAME"), " takes other groups"),
                )
            )
            return


def _listed(names: Sequence[str], limit: int = 12) -> str:
    return f"{', '.join(names[:limit])}{', ...' if len(names) > limit else ''}"
