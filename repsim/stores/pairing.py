"""Pair samples of several stores deliberately: by equal ids, or by a list of pairs of ids.

Stores with different samples are refused by default (`repsim.stores.alignment`). A pairing says which rows belong
together all the same: the same pictures in another order, clean and corrupted pictures, or pictures of two sets.
"""

import hashlib
import json
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from repsim.errors import Argument, InvalidInputError, Remedy, SampleMismatchError
from repsim.labels import SampleIds, noun_of
from repsim.runtime.csv_files import read_csv
from repsim.stores.store import ActivationStore

PairBy = str | os.PathLike[str] | Sequence[tuple[str, str]]
"""Rule by which samples are paired: `id`, the name of a CSV file, or pairs of sample ids."""
ID = "id"
_SIDES = ("a", "b")
_FORM = Remedy(
    Argument("pair_by"), " takes `id`, or a CSV file of two columns, named a and b or by the two models, with the "
    "sample ids of a pair in each line",
)  # fmt: skip


@dataclass(frozen=True, eq=False)
class Pairing:
    """Rows of stores that belong together, one row of every store for each pair."""

    by: str
    """Rule by which pairs were made: `id`, `file` or `list`."""
    file: str
    """Name of the file; empty without one."""
    rows: Mapping[ActivationStore, NDArray[np.int64]]
    """Rows of every store, (n pairs,), in the order of the rows of the first store."""
    sample_ids: SampleIds
    """Sample ids of the pairs in the first store."""
    fingerprint: str
    """SHA-256 of the list of pairs: JSON, one list of ids for each pair."""
    left_out: Mapping[ActivationStore, tuple[str, ...]]
    """Samples of every store without partner."""
    other_contents: int | None
    """Number of pairs whose samples have different hashes; None if not all samples have hashes of one kind."""

    def __len__(self) -> int:
        return len(self.sample_ids)

    @property
    def same_ids(self) -> bool:
        """Whether samples were paired by equal ids."""
        return self.by == ID

    @property
    def whole(self) -> bool:
        """Whether the pairs are all rows of all stores, in their order."""
        return all(np.array_equal(rows, np.arange(len(store))) for store, rows in self.rows.items())

    @property
    def record(self) -> dict[str, Any]:
        """Description of the pairing that a result keeps."""
        return {
            "by": self.by,
            **({"file": self.file} if self.file else {}),
            "pairs": len(self),
            "sha256": self.fingerprint,
            "other_contents": self.other_contents,
            "left_out": [
                {"model": store.model, "checksum": store.checksum, "count": len(ids), "ids": list(ids)}
                for store, ids in self.left_out.items()
            ],
        }

    @property
    def notes(self) -> list[str]:
        """Sentences about the pairs: their number, how many have different contents, and what is left out."""
        way = "by their ids" if self.same_ids else f"by {self.file or 'a list'}"
        contents = ""
        if self.other_contents is not None:
            which = "the two" if len(self.rows) == 2 else "their"
            noun = noun_of({store.modality for store in self.rows} - {""})
            contents = f"; {which} {noun} differ in {self.other_contents:,} of them"
        notes = [f"samples are paired {way}: {len(self):,} pairs{contents}"]
        for store, ids in self.left_out.items():
            if ids:
                notes.append(
                    f"{len(ids):,} of {len(store):,} samples of {store.path.name} have no partner and are left out, "
                    f"the first: {ids[0]}"
                )
        return notes


def pair(stores: Sequence[ActivationStore], by: PairBy) -> Pairing:
    """Pair the samples of stores.

    Parameters
    ----------
    stores : sequence of ActivationStore
        Different open stores: exactly two for pairs of ids.
    by : str, path or sequence of pairs of str
        ``id`` pairs samples with equal ids, in the order of the first store; ids that are not in all stores are left
        out. Another text or a path names a CSV file; its first line names the two columns, in any order: the two
        models, or ``a`` (the first store) and ``b`` (the second). Every further line is a pair of ids. A sequence holds
        pairs (id of the first store, id of the second). Pairs are sorted by the rows of the first store.

    Returns
    -------
    Pairing

    Raises
    ------
    InvalidInputError
        If there is no such file, its header does not name the columns, an id is unknown or occurs twice, or the stores
        are not two.
    SampleMismatchError
        If no sample id is in all stores.
    """
    if isinstance(by, str) and by == ID:
        return _pair_by_id(stores)
    if len(stores) != 2:
        number = "one store" if len(stores) == 1 else f"{len(stores)} stores"
        raise InvalidInputError(
            f"a list of pairs is for two stores, not for {number}",
            remedy=Remedy("pair several stores with ", Argument("pair_by", ID)),
        )
    if isinstance(by, str | os.PathLike):
        path = Path(by)
        return _pair_by_list(stores, _read_pairs(path, stores), path.name)
    return _pair_by_list(stores, _as_pairs(by))


def is_pairable(stores: Sequence[ActivationStore]) -> bool:
    """Return whether all samples of the smallest store are in all others, so that equal ids may be meant as pairs.

    Stores of different samples that merely share a few ids (`0.png`) are not.
    """
    shared = set.intersection(*(set(store.sample_ids.ids) for store in stores))
    return len(shared) == min(map(len, stores))


def _pair_by_id(stores: Sequence[ActivationStore]) -> Pairing:
    shared = set.intersection(*(set(store.sample_ids.ids) for store in stores))
    if not shared:
        examples = ", ".join(f"{store.path.name} ({store.sample_ids.ids[0]}, ...)" for store in stores[:3])
        raise SampleMismatchError(
            f"no sample id is in all of the stores: {examples}",
            paths=[store.path for store in stores],
            remedy=Remedy("pair other ids with a list: ", Argument("pair_by", metavar="pairs.csv")),
        )
    ids = [name for name in stores[0].sample_ids.ids if name in shared]
    return _pairing(stores, [ids] * len(stores), ID)


def _pair_by_list(stores: Sequence[ActivationStore], pairs: Sequence[tuple[str, str]], file: str = "") -> Pairing:
    what = file or "the list of pairs"
    if not pairs:
        raise InvalidInputError(f"{what} holds no pairs", remedy=_FORM)
    sides = [[names[k] for names in pairs] for k in range(2)]
    for store, names in zip(stores, sides, strict=True):
        own = set(store.sample_ids.ids)
        if unknown := [name for name in names if name not in own]:
            raise InvalidInputError(
                f"{what}: {len(unknown):,} of {len(names):,} ids are not in {store.path.name}, the first: "
                f"{unknown[0]!r} (its ids look like {store.sample_ids.ids[0]!r})"
            )
        name, count = Counter(names).most_common(1)[0]
        if count > 1:
            raise InvalidInputError(
                f"{what}: {name!r} of {store.path.name} has {count} partners; every sample needs exactly one"
            )
    row_of = {name: row for row, name in enumerate(stores[0].sample_ids.ids)}
    order = sorted(range(len(pairs)), key=lambda k: row_of[sides[0][k]])
    return _pairing(stores, [[names[k] for k in order] for names in sides], "file" if file else "list", file)


def _pairing(stores: Sequence[ActivationStore], sides: Sequence[Sequence[str]], by: str, file: str = "") -> Pairing:
    """Return the pairing of these samples of each store."""
    rows, left_out = {}, {}
    for store, names in zip(stores, sides, strict=True):
        row_of = {name: row for row, name in enumerate(store.sample_ids.ids)}
        rows[store] = np.array([row_of[name] for name in names], np.int64)
        partners = set(names)
        left_out[store] = tuple(name for name in store.sample_ids.ids if name not in partners)
    text = json.dumps(list(zip(sides[0], sides[-1], strict=True)))
    digest = hashlib.sha256(text.encode()).hexdigest()
    return Pairing(by, file, rows, SampleIds(tuple(sides[0])), digest, left_out, _other_contents(rows))


def _other_contents(rows: Mapping[ActivationStore, NDArray[np.int64]]) -> int | None:
    """Return the number of pairs whose samples are not all the same; None if that is not known."""
    stores = list(rows)
    if not all(stores[0].sample_ids.contents_known(store.sample_ids) for store in stores):
        return None
    hashes = np.stack([np.frombuffer(store.sample_ids.hashes, "<u8")[rows[store]] for store in stores])
    return int((hashes != hashes[0]).any(0).sum())


def _read_pairs(path: Path, stores: Sequence[ActivationStore]) -> list[tuple[str, str]]:
    """Read pairs from a file whose header names the columns; return them as (first store, second store)."""
    if not path.is_file():
        raise InvalidInputError(f"{path} is not a file", remedy=_FORM)
    header, *lines = read_csv(path, "pairs").rows
    models = tuple(store.model for store in stores)
    names = list(dict.fromkeys([_SIDES if models[0] == models[1] else models, _SIDES]))
    for sides in names:
        if set(header) == set(sides) and len(header) == 2:
            first, second = (header.index(side) for side in sides)
            return [(line[first], line[second]) for line in lines]
    expected = " or ".join(f"{a},{b}" for a, b in reversed(names))
    raise InvalidInputError(
        f"the first line of {path} has to name the two columns: {expected}; it is {','.join(header)[:80]!r}"
    )


def _as_pairs(pairs: Any) -> list[tuple[str, str]]:
    """Return pairs of ids after checking their types."""
    try:
        listed = [(first, second) for first, second in pairs]
    except (TypeError, ValueError):
        raise InvalidInputError("pairs are a sequence of (id, id)", remedy=_FORM) from None
    if wrong := [name for names in listed for name in names if not isinstance(name, str)]:
        raise InvalidInputError(f"sample ids are texts, not {type(wrong[0]).__name__} such as {wrong[0]!r}")
    return listed
