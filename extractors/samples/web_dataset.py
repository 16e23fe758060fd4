"""Shards of webdataset: tar files in which the files of one sample share their name up to the first dot.

The name is the key of the sample, the rest is the name of the column: ``0007.jpg`` and ``0007.txt`` are the columns jpg
and txt of the sample 0007. The shards are not unpacked: an index of their members is made once, and each is read at its
offset. Fields of JSON files are columns of their own, ``json.caption``.
"""

import io
import json
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from repsim.errors import ImageError, MissingExtraError, SampleError, reason
from repsim.extractors.samples.arrays import Arrays, Rows, as_tensor
from repsim.extractors.samples.columns import Roles, Table, open_column
from repsim.extractors.samples.decoding import MAX_PIXELS, suffixes
from repsim.extractors.samples.encoded_pictures import PicturesOfTable
from repsim.extractors.samples.folders import list_members, printable
from repsim.extractors.samples.label_files import LABEL_HEADS
from repsim.extractors.samples.source import LeftOut, Modality, SampleSource
from repsim.extractors.samples.tables import kind_of_cells, source_of_cells
from repsim.extractors.samples.texts import Texts, decode_text

_TEXT = frozenset({"txt", "text", "transcript", "caption"})
_NUMBER = frozenset({"cls", "cls2", "index", "inx", "id"})
_JSON = frozenset({"json", "jsn"})
Extent = tuple[int, int, int]
"""Number of the shard, offset and size of one member."""


def shard_paths(pattern: str) -> list[Path]:
    """Return the shards that a pattern in braces stands for, in order: ``shards-{000..003}.tar``.

    Raises
    ------
    SampleError
        A shard does not exist.
    """
    try:
        from webdataset.shardlists import expand_urls  # noqa: PLC0415 - an extra
    except ImportError:
        raise MissingExtraError(f"reading {pattern}", "webdataset", extra="data") from None
    paths = [Path(name) for name in expand_urls(pattern)]
    missing = [path.name for path in paths if not path.is_file()]
    if missing:
        raise SampleError(
            f"{len(missing)} of the {len(paths)} shards of {Path(pattern).name} do not exist: "
            f"{', '.join(missing[:3])}{', ...' if len(missing) > 3 else ''}"
        )
    return paths


def open_shards(pattern: str, roles: Roles, max_pixels: int = MAX_PIXELS) -> SampleSource:
    """Open one column of a webdataset.

    Raises
    ------
    SampleError
        A shard cannot be read, a sample lacks the column, or it is not clear which column is to be read.
    """
    table = ShardTable(Path(pattern).name, shard_paths(pattern), max_pixels)
    source = open_column(table, roles)
    source.record = {**source.record, "shards": len(table.paths)}
    if table.prefixed and source.record["ids_from"] == "keys":
        source.notes = (*source.notes, f"{table.name}: keys repeat in several shards; ids are shard/key")
    return source


class Members:
    """Bytes of the members of one column.

    Parameters
    ----------
    paths : sequence of Path
        The shards.
    extents : sequence of tuple or None
        Place of the member of each sample; None if the sample has none.
    """

    def __init__(self, paths: Sequence[Path], extents: Sequence[Extent | None]) -> None:
        self._paths, self._extents = paths, extents

    def __call__(self, row: int) -> bytes | None:
        """Return the bytes of one member; None if the sample has none."""
        extent = self._extents[row]
        if extent is None:
            return None
        shard, offset, size = extent
        try:
            with self._paths[shard].open("rb") as file:
                file.seek(offset)
                return file.read(size)
        except OSError as error:
            raise ImageError(f"cannot read {self._paths[shard].name}: {reason(error)}") from None


class ShardTable(Table):
    """The samples of shards, one row for each key, in the order of the shards and their members."""

    id_names = ()
    label_names = LABEL_HEADS | {"cls"}

    def __init__(self, name: str, paths: Sequence[Path], max_pixels: int = MAX_PIXELS) -> None:
        try:
            from webdataset.tariterators import base_plus_ext  # noqa: PLC0415 - an extra
        except ImportError:
            raise MissingExtraError(f"reading {name}", "webdataset", extra="data") from None
        self.name, self.paths, self._max_pixels = name, paths, max_pixels
        self._keys: list[tuple[int, str]] = []
        self._extents: dict[str, list[Extent | None]] = {}
        for shard, path in enumerate(paths):
            previous = None
            for member, (offset, size) in list_members(path, LeftOut()):
                key, extension = base_plus_ext(member)
                if key is None or _is_meta(member):
                    continue
                if key != previous:
                    self._keys.append((shard, key))
                    previous = key
                column = self._extents.setdefault(extension.lower(), [])
                column.extend([None] * (len(self._keys) - 1 - len(column)))
                if len(column) == len(self._keys):
                    raise SampleError(f"{path.name}: the sample {printable(key)} has two files .{extension}")
                column.append((shard, offset, size))
        self.n = len(self._keys)
        for column in self._extents.values():
            column.extend([None] * (self.n - len(column)))
        self._cells: dict[str, list[Any]] = {}
        self.columns = list(self._extents)
        for name_of_file in [column for column in self.columns if column in _JSON]:
            fields = dict.fromkeys(key for row in self._json(name_of_file) if isinstance(row, dict) for key in row)
            self.columns += [f"{name_of_file}.{field}" for field in fields]
        counts = Counter(self._keys)
        if twice := next((key for key, count in counts.items() if count > 1), None):
            raise SampleError(
                f"{paths[twice[0]].name}: the files of the sample {printable(twice[1])} do not lie together; write "
                "them one after another, as TarWriter does"
            )
        self.prefixed = len({key for _, key in self._keys}) < self.n

    def _json(self, column: str) -> list[Any]:
        if column not in self._cells:
            read, cells = self.members(column), []
            for row in range(self.n):
                raw = read(row)
                try:
                    cells.append(None if raw is None else json.loads(decode_text(raw, f"{self.place(row)}.{column}")))
                except (ValueError, RecursionError) as error:
                    raise SampleError(f"{self.place(row)}.{column}: not valid JSON: {reason(error)}") from None
            self._cells[column] = cells
        return self._cells[column]

    def members(self, column: str) -> Members:
        """Return the bytes of a column."""
        return Members(self.paths, self._extents[column])

    @property
    def place(self) -> Callable[[int], str]:
        """Function from a row to its shard and key."""
        return MemberNames(self.paths, self._keys)

    def default_ids(self) -> tuple[list[str], str]:
        """Return the keys, with the name of the shard if keys repeat in several shards."""
        if self.prefixed:
            return [f"{self.paths[shard].stem}/{printable(key)}" for shard, key in self._keys], "keys"
        return [printable(key) for _, key in self._keys], "keys"

    def modality(self, column: str) -> Modality | None:
        """Return what the members of a column are, by its extension; the fields of JSON files by their values."""
        if column in _JSON:
            return None
        if column not in self._extents:
            return kind_of_cells(self.values(column))
        last = column.rpartition(".")[2]
        if f".{last}" in suffixes():
            return "image"
        return "text" if last in _TEXT else "tensor" if last == "npy" else None

    def values(self, column: str) -> Sequence[Any]:
        """Return the cells of a column of texts, numbers, or a field of JSON files."""
        if column not in self._extents:
            file, _, field = column.partition(".")
            return [row.get(field) if isinstance(row, dict) else None for row in self._json(file)]
        if column in _JSON:
            return self._json(column)
        if column not in self._cells:
            read = self.members(column)
            raw = [read(row) for row in range(self.n)]
            if column.rpartition(".")[2] not in _TEXT | _NUMBER:
                return raw
            self._cells[column] = [
                None if data is None else decode_text(data, f"{self.place(row)}.{column}").rstrip("\r\n")
                for row, data in enumerate(raw)
            ]
        return self._cells[column]

    def source(self, column: str, modality: Modality) -> SampleSource:
        """Open a column."""
        places = MemberNames(self.paths, self._keys, f".{column}")
        if column not in self._extents:
            return source_of_cells(
                self.name, self.values(column), places, modality, self.paths[0].parent, self._max_pixels
            )
        if modality == "image":
            return PicturesOfTable(self.members(column), places, None, self._max_pixels)
        if modality == "text":
            return Texts(self.name, self.values(column), (), places)
        return Arrays(self.name, MemberRows(self.members(column), places, self.n))


class MemberNames:
    """Names of the members of one column, for messages.

    Parameters
    ----------
    paths : sequence of Path
        The shards.
    keys : sequence of tuple
        Number of the shard and key of each sample.
    ending : str
        Dot and name of the column.
    """

    def __init__(self, paths: Sequence[Path], keys: Sequence[tuple[int, str]], ending: str = "") -> None:
        self._paths, self._keys, self._ending = paths, keys, ending

    def __call__(self, row: int) -> str:
        """Return the name of one member."""
        shard, key = self._keys[row]
        return f"{self._paths[shard].name}: {printable(key)}{self._ending}"


class MemberRows(Rows):
    """Arrays of ``.npy`` members, all of the shape of the first."""

    in_memory = False

    def __init__(self, members: Members, places: Callable[[int], str], n: int) -> None:
        self._members, self._places = members, places
        self.shape = (n,)
        self.shape = (n, *self.row(0).shape)

    def row(self, index: int) -> Any:
        """Return one array.

        Raises
        ------
        SampleError
            It is missing, damaged, or of another shape than the first.
        """
        raw = self._members(index)
        if raw is None:
            raise SampleError(f"{self._places(index)} is missing")
        try:
            row = as_tensor(np.lib.format.read_array(io.BytesIO(raw), allow_pickle=False))
        except (ValueError, TypeError, EOFError) as error:
            raise SampleError(f"cannot read {self._places(index)}: {reason(error)}") from None
        if len(self.shape) > 1 and tuple(row.shape) != self.shape[1:]:
            raise SampleError(
                f"{self._places(index)} has the shape {tuple(row.shape)}, and the first has {self.shape[1:]}"
            )
        return row


def _is_meta(member: str) -> bool:
    """Return whether webdataset skips a member of this name."""
    return member.startswith("__") and "__" in member[2:].split("/", 1)[0]
