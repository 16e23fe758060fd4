"""Give pictures the classes that a table says: a CSV file, a mapping from names to classes, or a class for each.

Names and pictures have to match one to one. Nothing is cut, filled in or guessed: a class is a whole number, or a text.
"""

import csv
import hashlib
import io
import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from repsim.errors import Argument, InvalidInputError, Remedy, reason
from repsim.extractors.sources import ImageSource
from repsim.runtime.arrays import as_classes

Labels = str | os.PathLike[str] | Mapping[str, Any] | Sequence[Any] | np.ndarray[Any, Any]
"""A file; id or file name -> class; or classes in the order of the ids."""

_LARGEST = 2**30
_SEPARATORS = {",": "commas", "\t": "tabs", ";": "semicolons", "|": "bars", " ": "spaces"}
_LABEL_HEADS = frozenset({"label", "labels", "class", "classes", "target", "category", "species", "y"})
_NAME_HEADS = frozenset(
    {"id", "ids", "image", "img", "file", "filename", "filepath", "path", "name", "picture", "photo"}
)
_MISSING = frozenset({"", "nan"})
_WHOLE = re.compile(r"[+-]?(0|[1-9][0-9]*)")  # 007 is a text: as a number it would be another class's
_FLOAT = re.compile(r"[+-]?([0-9]+\.[0-9]*|\.[0-9]+|[0-9]+(?=e))(e[+-]?[0-9]+)?", re.IGNORECASE)


def assign_labels(images: ImageSource, labels: Labels) -> None:
    """Set the labels, the classes and the record of where they come from.

    Parameters
    ----------
    images
        The source, whose own labels are replaced.
    labels
        The table. Names are ids, ids without the split, file names, or file names without their suffix: the first kind
        of name that fits all.

    Raises
    ------
    InvalidInputError
        A table that cannot be read; a picture without a class, a class without a picture, a name that is there twice;
        classes that are no whole numbers and no texts. With counts and the first names.

    Examples
    --------
    >>> from repsim.extractors import open_images
    >>> images = open_images("digits", labels=["odd" if k % 2 else "even" for k in range(1797)])
    >>> list(images.classes), images.labels[:4].tolist()
    (['even', 'odd'], [0, 1, 0, 1])
    """
    record: dict[str, Any] = {"source": "given"}
    values: Any = labels
    if isinstance(labels, str | os.PathLike):
        path = Path(labels)
        table, record = _read(path, images)
        texts, record["matched_by"] = _match(images, table, path.name)
        values = _of_texts(texts, images.ids, path.name)
    elif isinstance(labels, Mapping):
        table = [(str(name), value) for name, value in labels.items()]
        values, record["matched_by"] = _match(images, table, "labels")
    images.labels, images.classes = as_classes(values, len(images))
    images.label_record = record


def _of_texts(texts: Sequence[str], names: Sequence[str], what: str) -> list[int] | list[str]:
    """Classes as a file spells them: whole numbers where all are, else texts; a quantity is no class."""
    for name, text in zip(names, texts, strict=True):
        if text.lower() in _MISSING:
            raise InvalidInputError(f"{what}: {name} has no class ({text!r}); give it one, or leave the picture out")
    if all(_WHOLE.fullmatch(text) for text in texts):
        return [int(text) for text in texts]
    if all(_WHOLE.fullmatch(text) or _FLOAT.fullmatch(text) for text in texts):
        name, text = next((n, t) for n, t in zip(names, texts, strict=True) if not _WHOLE.fullmatch(t))
        raise InvalidInputError(f"{what}: a class is a whole number from 0 or a text: {name} has {text}")
    return list(texts)


def _read(path: Path, images: ImageSource) -> tuple[list[tuple[str, str]], dict[str, Any]]:
    """Read names and classes of a file, and what is recorded of it."""
    if not path.is_file():
        raise InvalidInputError(
            f"{path} is no file",
            remedy=Remedy(Argument("labels"), " takes a CSV of two columns: id or file name, and class"),
        )
    try:
        with path.open("rb") as file:
            raw = file.read(_LARGEST + 1)
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise InvalidInputError(f"{path} is not text in UTF-8; save it so") from None
    except OSError as error:
        raise InvalidInputError(f"cannot read {path}: {reason(error)}") from None
    if len(raw) > _LARGEST:
        raise InvalidInputError(f"{path} is no table of labels: it has more than a gigabyte")
    separator, rows = _rows(text, path)
    name_column, label_column, has_head = _columns(rows, images, path)
    record: dict[str, Any] = {
        "file": path.name,
        "sha256": hashlib.sha256(raw).hexdigest(),
        "separated_by": _SEPARATORS[separator],
    }
    if has_head:
        record["columns"] = [rows[0][name_column], rows[0][label_column]]
    return [(row[name_column], row[label_column]) for row in rows[has_head:]], record


def _rows(text: str, path: Path) -> tuple[str, list[list[str]]]:
    """Split into fields, by the first separator that gives every line the same number of two or more."""
    if "\0" in text:
        raise InvalidInputError(f"{path} is no table of labels: it holds null characters")
    for separator in _SEPARATORS:
        try:
            lines = csv.reader(io.StringIO(text, newline=""), delimiter=separator, skipinitialspace=True, strict=True)
            rows = [[field.strip() for field in row] for row in lines if any(field.strip() for field in row)]
        except csv.Error:
            continue
        if rows and len({len(row) for row in rows}) == 1 and len(rows[0]) > 1:
            return separator, rows
    raise InvalidInputError(
        f"{path} is no table of labels: its lines do not all have the same two or more fields, separated by commas, "
        "tabs, semicolons, bars or spaces; quote a field that holds the separator"
    )


def _columns(rows: list[list[str]], images: ImageSource, path: Path) -> tuple[int, int, bool]:
    """Find the column of names, that of classes, and whether the first line is a head."""
    keys = {key for names in _keys(images).values() for key in names}
    matches = [sum(row[k] in keys for row in rows) for k in range(len(rows[0]))]
    name_column = max(range(len(matches)), key=lambda k: (matches[k], -k))
    heads = [_words(field) for field in rows[0]]
    others = [k for k in range(len(heads)) if k != name_column]
    called = [k for k in others if heads[k] & _LABEL_HEADS]
    has_head = (
        len(rows) > 1 and rows[0][name_column] not in keys and (bool(heads[name_column] & _NAME_HEADS) or bool(called))
    )
    if len(others) > 1:
        others = called if has_head else []
    if len(others) != 1:
        raise InvalidInputError(
            f"{path} has {len(rows[0])} columns ({', '.join(rows[0][:6])}), and which holds the classes is not clear; "
            f"call one of them label, or keep two"
        )
    return name_column, others[0], has_head


def _words(head: str) -> set[str]:
    """Words of a column's head: `image_id` and `Image Id` are of the same two."""
    return set(re.split(r"[\W_]+", head.lower()))


def _keys(images: ImageSource) -> dict[str, list[str]]:
    """Names of the pictures by which a table may call them, for each kind of name that is unique."""
    ids = list(images.ids)
    tops = {name.split("/", 1)[0] for name in ids}
    files = [name.rpartition("/")[2] for name in ids]
    kinds = {"id": ids}
    if len(tops) == 1 and all("/" in name for name in ids):
        kinds["id without the first folder"] = [name.split("/", 1)[1] for name in ids]
    kinds["file name"] = files
    kinds["file name without suffix"] = [name.rpartition(".")[0] or name for name in files]
    return {kind: names for kind, names in kinds.items() if len(set(names)) == len(names)}


def _match(images: ImageSource, table: Sequence[tuple[str, Any]], what: str) -> tuple[list[Any], str]:
    """Bring the classes into the order of the pictures, and say by which kind of name."""
    counts = Counter(name for name, _ in table)
    kinds = _keys(images)
    kind = max(kinds, key=lambda kind: len(counts.keys() & set(kinds[kind])))  # of equals the first
    names = kinds[kind]
    known = set(names)
    faults = [
        ("pictures without a label", [name for name in names if name not in counts]),
        ("labels without a picture", [name for name in counts if name not in known]),
        ("names that are there twice", [name for name, count in counts.items() if count > 1]),
    ]
    told = [
        f"{len(those)} {fault} ({', '.join(those[:3])}{', ...' if len(those) > 3 else ''})"
        for fault, those in faults
        if those
    ]
    if told:
        raise InvalidInputError(
            f"{what} and the {len(names)} pictures of {images.name} do not match one to one: {'; '.join(told)}"
        )
    labels = dict(table)
    return [labels[name] for name in names], kind
