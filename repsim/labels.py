"""What rows and columns are called: which layer of which model, and which samples."""

import hashlib
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from repsim.errors import InvalidInputError

Form = Literal["features", "grams", "sketches"]
"""What an array holds: features (n, ...), Gram matrices of blocks (n // B, B, B), or pairs of sketches (n, 2, m)."""

INPUT = ("input", "pixels")
"""Layer and readout of what went into a model, which is stored beside its layers: a control, and none of them."""

OTHER_PICTURES = "other pictures behind the same names"
_HASH = 8
"""Bytes of a hash."""
_LONGEST_FILE = 200
"""Bytes of a name, so that `.h5.partial` may follow."""
_PARTITION_SEED = 0
_FORMS: dict[str, Form] = {"gram": "grams", "sketch": "sketches"}


@dataclass(frozen=True)
class LayerKey:
    """One array of activations: a layer of a model, read out in one way.

    >>> str(LayerKey("resnet50", "layer3.5", "mean"))
    'resnet50 layer3.5@mean'
    """

    model: str
    layer: str
    readout: str

    @property
    def label(self) -> str:
        """The layer and the readout: what tells the arrays of one model apart."""
        return f"{self.layer}@{self.readout}"

    @property
    def form(self) -> Form:
        """What the array holds.

        >>> [LayerKey("resnet50", "layer3.5", readout).form for readout in ("mean", "gram:256", "sketch:4096")]
        ['features', 'grams', 'sketches']
        """
        kind, _, option = self.readout.partition(":")
        return _FORMS.get(kind, "features") if option.partition(":")[0].isdecimal() else "features"

    @property
    def control(self) -> bool:
        """Whether this is what went into the model, to hold layers against, and no layer.

        >>> LayerKey("resnet50", "input", "pixels").control, LayerKey("resnet50", "input", "mean").control
        (True, False)
        """
        return (self.layer, self.readout) == INPUT

    @property
    def size(self) -> int:
        """B of ``gram:B``, M of ``sketch:M``."""
        return int(self.readout.split(":")[1])

    def __str__(self) -> str:
        return f"{self.model} {self.label}"


@dataclass(frozen=True)
class SampleIds:
    """The ids of the samples, in the order of the rows.

    >>> SampleIds(("a.png", "b.png")).difference(SampleIds(("a.png", "c.png")))
    '1 of 2 only in the first (b.png), 1 of 2 only in the second (c.png)'
    """

    ids: tuple[str, ...]
    content: str = ""
    """A fingerprint of ids and sizes of the files, where they are known: equal ids can name other pictures."""
    hashes: bytes = b""
    """Eight bytes a sample, hashes of what is in the pictures, where they are known."""
    hashed: str = ""
    """What of the pictures is hashed: `files`, or `pixels`. Only hashes of the same kind can be compared."""

    def __post_init__(self) -> None:
        if self.hashes and len(self.hashes) != _HASH * len(self.ids):
            raise InvalidInputError(f"{len(self.hashes)} bytes of hashes for {len(self.ids)} samples of {_HASH} each")

    def __len__(self) -> int:
        return len(self.ids)

    def __iter__(self) -> Iterator[str]:
        return iter(self.ids)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over the ids in their order."""
        return hashlib.sha256("\n".join(self.ids).encode("utf-8", "surrogatepass")).hexdigest()

    def difference(self, other: "SampleIds") -> str | None:
        """Say how ``other`` differs, with counts and the first differences; None where both are the same samples."""
        lonely = [
            f"{len(only)} of {len(side)} only in the {which} ({', '.join(only[:3])}{', ...' if len(only) > 3 else ''})"
            for which, side, only in (("first", self, self._not_in(other)), ("second", other, other._not_in(self)))
            if only
        ]
        if lonely:
            return ", ".join(lonely)
        if self.ids != other.ids:
            row = next(i for i, (a, b) in enumerate(zip(self.ids, other.ids, strict=False)) if a != b)
            return f"the same {len(self)} in another order, from row {row} on ({self.ids[row]} / {other.ids[row]})"
        if self.contents_known(other):
            changed = np.flatnonzero(np.frombuffer(self.hashes, "<u8") != np.frombuffer(other.hashes, "<u8"))
            if len(changed):
                return f"{OTHER_PICTURES}, the first: {self.ids[changed[0]]} ({len(changed)} of {len(self)})"
        elif self.content and other.content and self.content != other.content:
            return f"{OTHER_PICTURES}: the sizes of the files of the {len(self)} samples differ"
        return None

    def contents_known(self, other: "SampleIds") -> bool:
        """Whether `difference` sees other pictures of the same names and sizes."""
        return bool(self.hashes and other.hashes) and self.hashed == other.hashed

    def _not_in(self, other: "SampleIds") -> list[str]:
        there = set(other.ids)
        return [i for i in self.ids if i not in there]


def check_name(what: str, name: Any, limit: int = 1000) -> None:
    r"""Refuse a name that a store cannot hold, or that would break every line it is printed on.

    Parameters
    ----------
    what
        What it is the name of, for messages.
    name
        Text, of ``limit`` bytes of UTF-8 at most, without control characters.

    Raises
    ------
    InvalidInputError
        Anything else.

    Examples
    --------
    >>> check_name("the model", "resnet50 (größer)")
    >>> check_name("layer", "blocks.0\n")
    Traceback (most recent call last):
    ...
    repsim.errors.InvalidInputError: layer 'blocks.0\n' holds the control character '\n'; rename it
    """
    if not isinstance(name, str):
        raise InvalidInputError(f"{what}: expected text, got {_short(name)} of type {type(name).__name__}")
    if not name:
        raise InvalidInputError(f"{what} is empty; give it a name")
    for letter in name:
        if unicodedata.category(letter) in {"Cc", "Zl", "Zp"}:
            raise InvalidInputError(f"{what} {_short(name)} holds the control character {letter!r}; rename it")
    try:
        size = len(name.encode())
    except UnicodeEncodeError:  # a file name in another encoding
        raise InvalidInputError(f"{what} {_short(name)} is not valid Unicode; rename it") from None
    if size > limit:
        raise InvalidInputError(f"{what} {_short(name)} takes {size:,} bytes, more than {limit:,}; shorten it")


def _short(name: Any) -> str:
    text = repr(name)
    return text if len(text) <= 80 else f"{text[:50]} ... {text[-20:]}"


def check_model_name(name: str) -> str:
    """Return a name that can stand for a model: in results, and as that of a store's file.

    >>> check_model_name("mine (epoch 3)")
    'mine (epoch 3)'
    >>> check_model_name("a/b")
    Traceback (most recent call last):
    ...
    repsim.errors.InvalidInputError: the name 'a/b' cannot be a model's: it holds a slash, and names the store's file
    """
    check_name("the model's name", name, _LONGEST_FILE)
    why = ""
    if name != name.strip() or not name.isprintable():
        why = "it begins or ends with a space, or holds what cannot be printed"
    elif name.startswith("."):
        why = "it begins with a dot"
    elif "/" in name or "\\" in name:
        why = "it holds a slash"
    if why:
        raise InvalidInputError(f"the name {name!r} cannot be a model's: {why}, and names the store's file")
    return name


def partition(n: int) -> NDArray[np.int64]:
    """The order in which n samples are cut into blocks, random and the same for every layer and model.

    Sorted by class, as many folders are, neighbours would be of one class.
    """
    return np.random.default_rng(_PARTITION_SEED).permutation(n)
