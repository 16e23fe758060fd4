"""Labels of arrays: keys of layers, ids of samples, and checks of names."""

import hashlib
import unicodedata
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from repsim.errors import InvalidInputError

Form = Literal["features", "grams", "sketches"]
"""Kind of an array: features (n, ...), Gram matrices of blocks (n // B, B, B), or pairs of sketches (n, 2, m)."""

INPUT = ("input", "pixels")
"""Layer and readout of the input of a model, which a store holds as a control beside the layers."""
STATISTICS = ("input", "statistics")
"""Layer and readout of the statistics of the input in full size, another control."""
PREDICTION = ("output", "prediction")
"""Layer and readout of the class that a classifier predicts, a third control, from which its accuracy follows."""
TOKENS = ("input", "tokens")
"""Layer and readout of the ids of the tokens of a text, in two digits."""
CHARACTERS = ("input", "characters")
"""Layer and readout of the hashed counts of the character n-grams of a text."""
EMBEDDINGS = ("input", "embeddings")
"""Layer and readout of the mean of the model's static embeddings of the tokens of a text."""
VALUES = ("input", "values")
"""Layer and readout of an input that is a small array, as it is."""
INPUTS = (INPUT, STATISTICS, TOKENS, CHARACTERS, EMBEDDINGS, VALUES)
"""Arrays that describe the input of a model, from which a study makes its controls."""
CONTROLS = frozenset({*INPUTS, PREDICTION})
"""Arrays beside the layers, which no comparison reads as a layer."""
NAME_SEPARATOR = "; "
"""Text between the names of statistics in a store."""

Modality = Literal["image", "text", "tensor", "other"]
"""Kind of what a model reads: pictures, texts, arrays, or what a module of the user takes."""
NOUNS: Mapping[str, tuple[str, str]] = {
    "image": ("picture", "pictures"),
    "text": ("text", "texts"),
    "tensor": ("array", "arrays"),
    "other": ("sample", "samples"),
}
"""Singular and plural of the samples of a modality, for messages."""

OTHER_PICTURES, OTHER_CONTENTS = (f"other {what} behind the same names" for what in ("pictures", "contents"))
_HASH_BYTES = 8
_MAX_FILE_NAME = 200
"""Largest length of a model's name in bytes, so that `.h5.partial` can be appended."""
_PARTITION_SEED = 0
_FORMS: dict[str, Form] = {"gram": "grams", "sketch": "sketches"}


def noun_of(modalities: Iterable[str], *, count: int = 2) -> str:
    """Return the word for samples of these modalities: the noun if all are of one, else sample or samples.

    An empty modality is one that is not known.

    >>> noun_of(["text", "text"]), noun_of(["image"], count=1), noun_of(["image", "text"]), noun_of([""])
    ('texts', 'picture', 'samples', 'samples')
    """
    distinct = set(modalities)
    return NOUNS[next(iter(distinct)) if len(distinct) == 1 and distinct <= NOUNS.keys() else "other"][count != 1]


@dataclass(frozen=True)
class LayerKey:
    """Key of one array of activations: model, layer and readout.

    >>> str(LayerKey("resnet50", "layer3.5", "mean"))
    'resnet50 layer3.5@mean'
    """

    model: str
    layer: str
    readout: str

    @property
    def label(self) -> str:
        """Layer and readout as ``layer@readout``, which is unique within a model."""
        return f"{self.layer}@{self.readout}"

    @property
    def form(self) -> Form:
        """Kind of the array: features, Gram matrices or sketches.

        >>> [LayerKey("resnet50", "layer3.5", readout).form for readout in ("mean", "gram:256", "sketch:4096")]
        ['features', 'grams', 'sketches']
        """
        kind, _, option = self.readout.partition(":")
        return _FORMS.get(kind, "features") if option.partition(":")[0].isdecimal() else "features"

    @property
    def control(self) -> bool:
        """Whether the array is no layer: the input of the model, its statistics, or the predicted class.

        >>> LayerKey("resnet50", "input", "pixels").control, LayerKey("resnet50", "input", "mean").control
        (True, False)
        """
        return (self.layer, self.readout) in CONTROLS

    @property
    def size(self) -> int:
        """Block size B of ``gram:B``, or sketch size M of ``sketch:M``."""
        return int(self.readout.split(":")[1])

    def __str__(self) -> str:
        return f"{self.model} {self.label}"


@dataclass(frozen=True)
class SampleIds:
    """Ids of the samples, in the order of the rows.

    >>> SampleIds(("a.png", "b.png")).difference(SampleIds(("a.png", "c.png")))
    '1 of 2 only in the first (b.png), 1 of 2 only in the second (c.png)'
    """

    ids: tuple[str, ...]
    content: str = ""
    """Fingerprint of the ids and the sizes of the files, if known: equal ids can belong to different samples."""
    hashes: bytes = b""
    """Hashes of the contents of the samples, eight bytes per sample, if known."""
    hashed: str = ""
    """Hashed contents: `files`, `pixels` or `values`. Only hashes of the same kind can be compared."""

    def __post_init__(self) -> None:
        if self.hashes and len(self.hashes) != _HASH_BYTES * len(self.ids):
            raise InvalidInputError(
                f"expected {_HASH_BYTES} bytes per sample, got {len(self.hashes)} bytes of hashes for {len(self.ids)} "
                "samples"
            )

    def __len__(self) -> int:
        return len(self.ids)

    def __iter__(self) -> Iterator[str]:
        return iter(self.ids)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the ids in their order, hexadecimal."""
        return hashlib.sha256("\n".join(self.ids).encode("utf-8", "surrogatepass")).hexdigest()

    def difference(
        self,
        other: "SampleIds",
        sides: tuple[str, str] = ("in the first", "in the second"),
        *,
        contents: bool = True,
    ) -> str | None:
        """Describe how ``other`` differs, with counts and the first differences; return None for equal samples.

        ``sides`` are the words for these and for the other samples. Without ``contents`` only ids are compared.
        """
        missing = [
            f"{len(only)} of {len(side)} only {which} ({', '.join(only[:3])}{', ...' if len(only) > 3 else ''})"
            for which, side, only in ((sides[0], self, self._not_in(other)), (sides[1], other, other._not_in(self)))
            if only
        ]
        if missing:
            return ", ".join(missing)
        if self.ids != other.ids:
            row = next(i for i, (a, b) in enumerate(zip(self.ids, other.ids, strict=False)) if a != b)
            return f"the same {len(self)} in another order, from row {row} on ({self.ids[row]} / {other.ids[row]})"
        if not contents:
            return None
        what = OTHER_CONTENTS if "values" in (self.hashed, other.hashed) else OTHER_PICTURES
        if self.contents_known(other):
            changed = np.flatnonzero(np.frombuffer(self.hashes, "<u8") != np.frombuffer(other.hashes, "<u8"))
            if len(changed):
                return f"{what}, the first: {self.ids[changed[0]]} ({len(changed)} of {len(self)})"
        elif self.content and other.content and self.content != other.content:
            return f"{what}: the sizes of the files of the {len(self)} samples differ"
        return None

    def contents_known(self, other: "SampleIds") -> bool:
        """Return whether `difference` can detect different samples with equal names and sizes."""
        return bool(self.hashes and other.hashes) and self.hashed == other.hashed

    def _not_in(self, other: "SampleIds") -> list[str]:
        other_ids = set(other.ids)
        return [i for i in self.ids if i not in other_ids]


def check_name(what: str, name: Any, limit: int = 1000) -> None:
    r"""Check that a store can hold a name and that a terminal can print it on one line.

    Parameters
    ----------
    what : str
        Description of the named thing, for messages.
    name : str
        Text of at most ``limit`` bytes in UTF-8, without control characters.
    limit : int
        Largest length in bytes.

    Raises
    ------
    InvalidInputError
        If the name is empty, too long, no text, no valid Unicode, or holds a control character.

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
    """Return a name after checking that it can name a model in results and the file of its store.

    >>> check_model_name("mine (epoch 3)")
    'mine (epoch 3)'
    >>> check_model_name("a/b")
    Traceback (most recent call last):
    ...
    repsim.errors.InvalidInputError: the name 'a/b' cannot be a model's: it holds a slash, and names the store's file
    """
    check_name("the model's name", name, _MAX_FILE_NAME)
    why = ""
    if name != name.strip() or not name.isprintable():
        why = "it begins or ends with a space, or holds a character that cannot be printed"
    elif name.startswith("."):
        why = "it begins with a dot"
    elif "/" in name or "\\" in name:
        why = "it holds a slash"
    if why:
        raise InvalidInputError(f"the name {name!r} cannot be a model's: {why}, and names the store's file")
    return name


def partition(n: int) -> NDArray[np.int64]:
    """Return the order, (n,), in which n samples are divided into blocks: random, and equal for all layers and models.

    In the order of the store, which many data sets sort by class, a block would hold samples of one class.
    """
    return np.random.default_rng(_PARTITION_SEED).permutation(n)
