"""Assign classes to samples from a CSV file, a mapping from names to classes, or a sequence of classes.

Names and samples must match one to one; nothing is truncated, filled in or guessed. A class is an integer or a text.
"""

import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from repsim.errors import Argument, InvalidInputError, Remedy
from repsim.extractors.samples.source import NOUNS, SampleSource
from repsim.runtime.arrays import as_classes
from repsim.runtime.csv_files import read_csv

Labels = str | os.PathLike[str] | Mapping[str, Any] | Sequence[Any] | np.ndarray[Any, Any]
"""Classes: a file, a mapping from id or file name to class, or a sequence in the order of the ids."""


class Named(Protocol):
    """Samples with ids, in a fixed order, and a name for messages."""

    @property
    def name(self) -> str:
        """Name of the data."""

    @property
    def ids(self) -> Sequence[str]:
        """Ids of the samples."""


@dataclass(frozen=True)
class Noun:
    """Words of messages for the contents of a table: classes of samples, or groups of them."""

    one: str
    several: str
    value: str
    values: str
    argument: str
    """Option that names the table."""
    heads: frozenset[str]
    """Words in the header of the column."""


LABEL_HEADS = frozenset({"label", "labels", "class", "classes", "target", "category", "species", "y"})
"""Names of columns of classes, in lower case."""
_CLASS = Noun("label", "labels", "class", "classes", "labels", LABEL_HEADS)
_NAME_HEADS = frozenset(
    {
        "id",
        "ids",
        "image",
        "img",
        "file",
        "filename",
        "filepath",
        "path",
        "name",
        "picture",
        "photo",
        "key",
        "sample",
        "text",
    }
)
_MISSING = frozenset({"", "nan"})
_WHOLE = re.compile(r"[+-]?(0|[1-9][0-9]*)")  # 007 is a text: as a number it would be the class 7
_FLOAT = re.compile(r"[+-]?([0-9]+\.[0-9]*|\.[0-9]+|[0-9]+(?=e))(e[+-]?[0-9]+)?", re.IGNORECASE)


def assign_labels(samples: SampleSource, labels: Labels) -> None:
    """Set the labels and classes of a source, and record their origin.

    Parameters
    ----------
    samples : SampleSource
        The source, whose labels are replaced.
    labels : path, mapping or sequence
        The table. Its names are ids, ids without the split, file names, or file names without suffix: the first kind
        of name that matches all samples.

    Raises
    ------
    InvalidInputError
        The table cannot be read; a sample has no class, a class has no sample, or a name occurs twice; a class is
        neither an integer nor a text. The message contains counts and the first names.

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
        table, record = read_table(path, samples, _CLASS)
        texts, record["matched_by"] = match_names(samples, table, path.name, _CLASS)
        values = read_classes(texts, samples.ids, path.name)
    elif isinstance(labels, Mapping):
        table = [(str(name), value) for name, value in labels.items()]
        values, record["matched_by"] = match_names(samples, table, "labels", _CLASS)
    samples.labels, samples.classes = as_classes(values, len(samples))
    samples.label_record = record


def read_classes(texts: Sequence[str], names: Sequence[str], what: str) -> list[int] | list[str]:
    """Return the classes of a file as integers if all of them are, else as texts; real numbers are refused."""
    for name, text in zip(names, texts, strict=True):
        if text.lower() in _MISSING:
            raise InvalidInputError(f"{what}: {name} has no class ({text!r}); add one, or leave it out")
    if all(_WHOLE.fullmatch(text) for text in texts):
        return [int(text) for text in texts]
    if all(_WHOLE.fullmatch(text) or _FLOAT.fullmatch(text) for text in texts):
        name, text = next((n, t) for n, t in zip(names, texts, strict=True) if not _WHOLE.fullmatch(t))
        raise InvalidInputError(f"{what}: a class must be an integer from 0 or a text, but {name} has {text}")
    return list(texts)


def read_table(path: Path, samples: Named, noun: Noun) -> tuple[list[tuple[str, str]], dict[str, Any]]:
    """Return the names and classes (or groups) in a file, and the record of the file for the provenance."""
    if not path.is_file():
        raise InvalidInputError(
            f"{path} is not a file",
            remedy=Remedy(Argument(noun.argument), f" takes a CSV of two columns: id or file name, and {noun.value}"),
        )
    file = read_csv(path, noun.several)
    rows = file.rows
    name_column, label_column, has_head = _columns(rows, samples, path, noun)
    record: dict[str, Any] = {
        "file": path.name,
        "sha256": file.sha256,
        "separated_by": file.separated_by,
    }
    if has_head:
        record["columns"] = [rows[0][name_column], rows[0][label_column]]
    return [(row[name_column], row[label_column]) for row in rows[has_head:]], record


def _columns(rows: list[list[str]], samples: Named, path: Path, noun: Noun) -> tuple[int, int, bool]:
    """Return the column of names, the column of classes or groups, and whether the first line is a header."""
    keys = {key for names in _keys(samples).values() for key in names}
    matches = [sum(row[k] in keys for row in rows) for k in range(len(rows[0]))]
    name_column = max(range(len(matches)), key=lambda k: (matches[k], -k))
    heads = [_words(field) for field in rows[0]]
    others = [k for k in range(len(heads)) if k != name_column]
    called = [k for k in others if heads[k] & noun.heads]
    has_head = (
        len(rows) > 1 and rows[0][name_column] not in keys and (bool(heads[name_column] & _NAME_HEADS) or bool(called))
    )
    if len(others) > 1:
        others = called if has_head else []
    if len(others) != 1:
        raise InvalidInputError(
            f"{path} has {len(rows[0])} columns ({', '.join(rows[0][:6])}), and the column of "
            f"{noun.values} is not clear; name it {noun.one}, or keep only two columns"
        )
    return name_column, others[0], has_head


def _words(head: str) -> set[str]:
    """Return the words of a column's header in lower case; `image_id` and `Image Id` have the same words."""
    return set(re.split(r"[\W_]+", head.lower()))


def _keys(samples: Named) -> dict[str, list[str]]:
    """Return the names that a table may use for the samples, for each kind of name that is unique."""
    ids = list(samples.ids)
    tops = {name.split("/", 1)[0] for name in ids}
    files = [name.rpartition("/")[2] for name in ids]
    kinds = {"id": ids}
    if len(tops) == 1 and all("/" in name for name in ids):
        kinds["id without the first folder"] = [name.split("/", 1)[1] for name in ids]
    kinds["file name"] = files
    kinds["file name without suffix"] = [name.rpartition(".")[0] or name for name in files]
    return {kind: names for kind, names in kinds.items() if len(set(names)) == len(names)}


def match_names(samples: Named, table: Sequence[tuple[str, Any]], what: str, noun: Noun) -> tuple[list[Any], str]:
    """Return the classes or groups in the order of the samples, and the kind of name that matched."""
    counts = Counter(name for name, _ in table)
    kinds = _keys(samples)
    kind = max(kinds, key=lambda kind: len(counts.keys() & set(kinds[kind])))  # the first of equals
    names = kinds[kind]
    own = set(names)
    one, several = NOUNS[getattr(samples, "modality", "other")]
    mismatches = [
        (f"{several} without a {noun.one}", [name for name in names if name not in counts]),
        (f"{noun.several} without a {one}", [name for name in counts if name not in own]),
        ("names that occur twice", [name for name, count in counts.items() if count > 1]),
    ]
    problems = [
        f"{len(examples)} {problem} ({', '.join(examples[:3])}{', ...' if len(examples) > 3 else ''})"
        for problem, examples in mismatches
        if examples
    ]
    if problems:
        raise InvalidInputError(
            f"{what} and the {len(names)} {several} of {samples.name} do not match one to one: {'; '.join(problems)}"
        )
    labels = dict(table)
    return [labels[name] for name in names], kind
