"""Read tables from text files whose fields are separated by commas, tabs, semicolons, bars or spaces."""

import csv
import hashlib
import io
from dataclasses import dataclass
from pathlib import Path

from repsim.errors import InvalidInputError, reason

_LARGEST = 2**30
_SEPARATORS = {",": "commas", "\t": "tabs", ";": "semicolons", "|": "bars", " ": "spaces"}


@dataclass(frozen=True)
class CsvFile:
    """Fields of a table, without spaces around them, and what identifies the file."""

    rows: list[list[str]]
    """Lines that are not empty; all have the same number of fields, two or more."""
    separated_by: str
    """Separator in words."""
    sha256: str
    """Checksum of the file, hexadecimal."""


def read_csv(path: Path, contents: str) -> CsvFile:
    """Read a table of ``contents``, a word for error messages.

    The separator is the first one that divides every line into the same number of two or more fields.

    Raises
    ------
    InvalidInputError
        The file cannot be read, is no text in UTF-8, is too large, or is no table.
    """
    try:
        with path.open("rb") as file:
            raw = file.read(_LARGEST + 1)
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise InvalidInputError(f"{path} is not text in UTF-8; save it in this encoding") from None
    except OSError as error:
        raise InvalidInputError(f"cannot read {path}: {reason(error)}") from None
    if len(raw) > _LARGEST:
        raise InvalidInputError(f"{path} is not a table of {contents}: it has more than a gigabyte")
    if "\0" in text:
        raise InvalidInputError(f"{path} is not a table of {contents}: it holds null characters")
    for separator, words in _SEPARATORS.items():
        try:
            lines = csv.reader(io.StringIO(text, newline=""), delimiter=separator, skipinitialspace=True, strict=True)
            rows = [[field.strip() for field in row] for row in lines if any(field.strip() for field in row)]
        except csv.Error:
            continue
        if rows and len({len(row) for row in rows}) == 1 and len(rows[0]) > 1:
            return CsvFile(rows, words, hashlib.sha256(raw).hexdigest())
    raise InvalidInputError(
        f"{path} is not a table of {contents}: its lines do not all have the same two or more fields, separated by "
        "commas, tabs, semicolons, bars or spaces; quote a field that holds the separator"
    )
