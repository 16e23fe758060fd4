"""Compute what networks share about texts without learning: their tokens, letters, length, static embeddings.

Ids of tokens are stored as they are, so that the bag of tokens of a text, which counts how often each one occurs, is
exact. Sequences of characters are too many for that. Their counts are hashed: each sequence has one column of a few, at
random, and a sign (the count sketch of Charikar, Chen & Farach-Colton 2002; the hashing trick of Weinberger et al.
2009). Inner products of hashed counts are unbiased estimates of those of the counts. docs/input-controls.md says how
close they are, and why tokens are not hashed.

References
----------
Charikar, Chen & Farach-Colton. Finding frequent items in data streams. ICALP 2002.
Weinberger et al. Feature hashing for large scale multitask learning. ICML 2009.
"""

import unicodedata
import zlib
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property, lru_cache
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Float64, Int64, UInt8, UInt32, UInt64
from torch import Tensor, nn
from torch.nn.functional import embedding_bag

from repsim.errors import InvalidInputError
from repsim.extractors.base import LayerSpec, OneRow, Readout, Site
from repsim.labels import CHARACTERS, EMBEDDINGS, NAME_SEPARATOR, STATISTICS, TOKENS

CHARACTER_COLUMNS = (128, 384, 512)
"""Number of columns of the hashed counts of single characters, pairs and triples: docs/input-controls.md shows why."""
DIGIT = 2048
"""Base of the two digits in which the id of a token is stored."""
_BETWEEN = 0
"""Code point that ends a text in the concatenation of several; n-grams across it are left out."""
_SHORT_WORD = 3
_TABLED = 2**12
"""Number of code points whose kind is in a table: Latin, Greek, Cyrillic, Hebrew, Arabic, Devanagari and more."""
_STATISTICS = (
    "length: characters",
    "length: words",
    "length: sentences",
    "words: mean length",
    "words: standard deviation of the length",
    "words: length of the longest",
    "words: share of different ones",
    "words: share of at most 3 characters",
    "words: share that begins with a capital",
    "characters: share of digits",
    "characters: share of capitals",
    "characters: share of punctuation",
    "characters: share beyond ASCII",
)
_OF_TOKENS = ("length: tokens", "tokens: per word", "tokens: share of different ones")

Points = UInt32[np.ndarray, " k"]
Rows = Int64[np.ndarray, " k"]


def hashed_bag(rows: Rows, items: UInt64[np.ndarray, " k"], n: int, columns: int) -> Float[Tensor, "n m"]:
    """Count items in n texts, in columns that are chosen by a hash, with a sign each.

    Parameters
    ----------
    rows
        Text to which each item belongs, from 0 to n - 1.
    items
        The items, as numbers.
    n
        Number of texts.
    columns
        Number of columns.

    Returns
    -------
    tensor of shape (n, columns)
        Float32. The same on every machine: the hash is SplitMix64 (Steele, Lea & Flood 2014), not that of Python.

    Examples
    --------
    >>> bags = hashed_bag(np.array([0, 0, 1]), np.array([7, 7, 7], np.uint64), 2, 8)
    >>> bags.abs().sum(1), float(bags[0] @ bags[1])
    (tensor([2., 1.]), 2.0)
    """
    hashes = _hash(items)
    place = rows * columns + (hashes % np.uint64(columns)).astype(np.int64)
    signs = 1 - 2 * (hashes >> np.uint64(63)).astype(np.float64)
    counts = np.bincount(place, signs, n * columns)
    return torch.from_numpy(counts.reshape(n, columns).astype(np.float32))


def _hash(x: UInt64[np.ndarray, " k"]) -> UInt64[np.ndarray, " k"]:
    """Return SplitMix64 of each number: numbers of 64 bits that look random, a bijection."""
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.asarray(x ^ (x >> np.uint64(31)))


def token_digits(tokens: Sequence[Iterable[int]]) -> Float[Tensor, "n 2 L"]:
    """Write ids of tokens as two digits each, so that every floating-point type of a store holds them exactly.

    Parameters
    ----------
    tokens
        Ids of the tokens of n texts; negative ones are padding and are left out.

    Returns
    -------
    tensor of shape (n, 2, L)
        id // 2048 and id % 2048, and -1 after the last token. float16 holds every integer up to 2048. L is the largest
        number of tokens of a text, at least 1.

    Raises
    ------
    InvalidInputError
        If an id is 2048^2 or more.

    Examples
    --------
    >>> token_digits([[5, 2049], [7, -1]]).tolist()
    [[[0.0, 1.0], [5.0, 1.0]], [[0.0, -1.0], [7.0, -1.0]]]
    """
    ids = [np.asarray(list(one), np.int64) for one in tokens]
    ids = [one[one >= 0] for one in ids]
    sizes = np.array([len(one) for one in ids], np.int64)
    every = np.concatenate(ids) if ids else np.zeros(0, np.int64)
    return _digits(np.repeat(np.arange(len(ids)), sizes), every, len(ids), int(sizes.max(initial=1)))


def words_as_tokens(texts: Sequence[str]) -> list[Rows]:
    """Return a number for each word of each text, in lower case: words stand for tokens where those are not known.

    Numbers are checksums: of two different words, one pair in four million has the same.

    >>> [ids.tolist() for ids in words_as_tokens(["A dog", "a"])]
    [[3653187, 2898301], [3653187]]
    """
    words = [text.lower().split() for text in texts]
    return [
        np.array([zlib.crc32(word.encode("utf-8", "surrogatepass")) % DIGIT**2 for word in one], np.int64)
        for one in words
    ]


def _digits(rows: Rows, ids: Rows, n: int, longest: int) -> Float[Tensor, "n 2 L"]:
    """Return the digits of ids that are sorted by the text to which they belong."""
    if ids.max(initial=0) >= DIGIT**2:
        raise InvalidInputError(f"the id {ids.max()} of a token is too large; ids are below {DIGIT**2:,}")
    sizes = np.bincount(rows, minlength=n)
    assert sizes.max(initial=0) <= longest, "the largest number of tokens is known before"
    places = np.arange(len(ids)) - (sizes.cumsum() - sizes)[rows]
    digits = np.full((n, 2, longest), -1, np.float32)
    digits[rows, 0, places], digits[rows, 1, places] = ids // DIGIT, ids % DIGIT
    return torch.from_numpy(digits)


def bag_of_characters(texts: Sequence[str]) -> Float[Tensor, "n 1024"]:
    """Return the hashed counts of single characters, of pairs and of triples of neighbours in texts.

    Texts are in lower case, as what networks share about capitals is in `text_statistics`; and begin and end with a
    space, so that the first letters of a text and those of its other words are equal. Runs of white space are one
    space.

    Examples
    --------
    >>> bags = bag_of_characters(["The cat", "the  CAT", "a dog"])
    >>> float((bags[0] - bags[1]).abs().sum()), float(bags[0, 512:].abs().sum())  # 7 triples
    (0.0, 7.0)
    """
    points, owner = _code_points([f" {' '.join(text.lower().split())} " for text in texts])
    items, whole = np.zeros(len(points), np.uint64), np.ones(len(points), bool)
    parts = []
    for k, columns in enumerate(CHARACTER_COLUMNS):
        following = points[k:]
        items, whole = items[: len(following)] << np.uint64(21), whole[: len(following)]  # 21 bits hold a code point
        items |= following.astype(np.uint64)
        whole = whole & (following != _BETWEEN)
        parts.append(hashed_bag(owner[: len(items)][whole], items[whole], len(texts), columns))
    return torch.cat(parts, 1)


def _code_points(texts: Sequence[str]) -> tuple[Points, Rows]:
    """Return the characters of all texts as numbers, each text ended by 0, and the text of each character."""
    ended = [f"{text.replace(chr(_BETWEEN), ' ')}{chr(_BETWEEN)}" for text in texts]
    points = np.frombuffer("".join(ended).encode("utf-32-le", "surrogatepass"), "<u4")
    return points, np.repeat(np.arange(len(ended)), [len(text) for text in ended])


def text_statistic_names(*, tokens: bool) -> tuple[str, ...]:
    """Return the names of the statistics of texts, ``group: statistic``, with those of tokens or without.

    >>> text_statistic_names(tokens=True)[-3:]
    ('length: tokens', 'tokens: per word', 'tokens: share of different ones')
    """
    return (*_STATISTICS, *(_OF_TOKENS if tokens else ()))


def text_statistics(
    texts: Sequence[str], tokens: Sequence[Int64[np.ndarray, " k"]] | None = None
) -> Float[Tensor, "n s"]:
    """Compute the statistics of texts: lengths, and shares of kinds of words and characters.

    Words are what white space separates, sentences end with a run of ``.``, ``!`` or ``?`` (at least one a text).
    Shares are of the words or characters of the text, and 0 if it has none.

    Parameters
    ----------
    texts
        n texts.
    tokens
        Ids of the tokens of each text, without special ones.

    Returns
    -------
    tensor of shape (n, s)
        Float32, in the order of `text_statistic_names`: 13, or 16 with tokens.

    Examples
    --------
    >>> values = text_statistics(["A dog, and 2 cats!"])[0].tolist()
    >>> dict(list(zip(text_statistic_names(tokens=False), values, strict=True))[:3])
    {'length: characters': 18.0, 'length: words': 5.0, 'length: sentences': 1.0}
    """
    n = len(texts)
    points, owner = _code_points(texts)
    kinds = _kinds(points)

    def count(members: Bool[np.ndarray, " k"]) -> Float64[np.ndarray, " n"]:
        return np.bincount(owner[members], minlength=n).astype(np.float64)

    inside = points != _BETWEEN
    characters = count(inside)
    space, digit, capital, mark, end = kinds
    letters = ~space & inside
    before = np.concatenate([[False], letters[:-1]])
    starts = np.flatnonzero(letters & ~before)
    ends = np.flatnonzero(~letters & before)
    of_word, sizes = owner[starts], (ends - starts).astype(np.float64)
    words = np.bincount(of_word, minlength=n).astype(np.float64)
    mean = _share(np.bincount(of_word, sizes, n), words)
    square = _share(np.bincount(of_word, sizes**2, n), words)
    longest = np.zeros(n)
    if len(sizes):
        firsts = np.flatnonzero(np.diff(of_word, prepend=-1))
        longest[of_word[firsts]] = np.maximum.reduceat(sizes, firsts)
    stops = count(end & ~np.concatenate([[False], end[:-1]]))
    different = np.array([len(set(text.lower().split())) for text in texts], np.float64)
    columns = [
        characters,
        words,
        np.maximum(stops, 1),
        mean,
        np.sqrt(np.maximum(square - mean**2, 0)),
        longest,
        _share(different, words),
        _share(np.bincount(of_word, sizes <= _SHORT_WORD, n), words),
        _share(np.bincount(of_word, capital[starts], n), words),
        *(_share(count(kind), characters) for kind in (digit, capital, mark, points > 127)),
    ]
    if tokens is not None:
        numbers = np.array([len(ids) for ids in tokens], np.float64)
        distinct = np.array([len(set(ids.tolist())) for ids in tokens], np.float64)
        columns += [numbers, _share(numbers, words), _share(distinct, numbers)]
    return torch.from_numpy(np.stack(columns, 1).astype(np.float32))


def _share(part: Any, of: Any) -> Float64[np.ndarray, " n"]:
    return np.asarray(np.divide(part, of, out=np.zeros(len(of)), where=of > 0))


def _kinds(points: Points) -> Bool[np.ndarray, "5 k"]:
    """Return which characters are white space, digits, capitals, punctuation, and ends of sentences."""
    bits = _table()[np.minimum(points, _TABLED - 1)]
    if len(beyond := np.flatnonzero(points >= _TABLED)):
        bits[beyond] = [_kind(point) for point in points[beyond].tolist()]
    return np.stack([bits & (1 << k) for k in range(5)]).astype(bool)


@cache
def _table() -> UInt8[np.ndarray, " points"]:
    """Return the kinds of the first characters of Unicode."""
    return np.array([_kind(point) for point in range(_TABLED)], np.uint8)


@lru_cache(maxsize=2**16)
def _kind(point: int) -> int:
    """Return the kind of a character, a bit for each property."""
    letter = chr(point)
    mark = unicodedata.category(letter).startswith("P")
    kinds = (letter.isspace(), letter.isdigit(), letter.isupper(), mark, letter in ".!?")
    return sum(1 << k for k, kind in enumerate(kinds) if kind)


def _real_tokens(batch: Mapping[str, Any], special: Collection[int]) -> tuple[Rows, Int64[np.ndarray, " k"], int]:
    """Return the text and the id of every token that is neither padding nor special, and the number of texts."""
    ids, mask = (batch[name].cpu().numpy() for name in ("input_ids", "attention_mask"))
    real = mask.astype(bool) & ~np.isin(ids, list(special))
    return real.nonzero()[0], ids[real].astype(np.int64), len(ids)


@dataclass(frozen=True, kw_only=True)
class TokenIds(OneRow):
    """The ids of the model's tokens in their order, without special ones such as the class token."""

    longest: int
    """Largest number of tokens of a text."""
    special: frozenset[int] = frozenset()
    """Ids of the special tokens."""
    name: str = TOKENS[1]

    def shape(self, layer: LayerSpec) -> tuple[int, ...]:  # noqa: ARG002 - the same for every text
        """Return the shape of one row: (2, longest), the digits of `token_digits`."""
        return (2, self.longest)

    def facts(self, layer: LayerSpec) -> dict[str, str]:  # noqa: ARG002 - the same for every text
        """Return what the rows are, which the store records."""
        return {"tokens": f"ids of the tokens of a text in their order, in base {DIGIT}"}

    def __call__(self, batch: Mapping[str, Any], layer: LayerSpec, mask: Tensor | None = None) -> Tensor:  # noqa: ARG002
        """Return the digits as an array (b, 2 longest), float32."""
        return _digits(*_real_tokens(batch, self.special), self.longest).flatten(1)


@dataclass(frozen=True, kw_only=True)
class CharacterBag(OneRow):
    """The hashed counts of characters, of pairs and of triples of them, in lower case."""

    name: str = CHARACTERS[1]

    def shape(self, layer: LayerSpec) -> tuple[int, ...]:  # noqa: ARG002 - the same for every text
        """Return the shape of one row: (columns,)."""
        return (sum(CHARACTER_COLUMNS),)

    def facts(self, layer: LayerSpec) -> dict[str, str]:  # noqa: ARG002 - the same for every text
        """Return what the columns are, which the store records."""
        sizes = ", ".join(map(str, CHARACTER_COLUMNS))
        return {"characters": f"signed counts of characters, pairs and triples in {sizes} columns by SplitMix64"}

    def __call__(self, batch: Mapping[str, Any], layer: LayerSpec, mask: Tensor | None = None) -> Tensor:  # noqa: ARG002
        """Return the bags as an array (b, columns), float32."""
        return bag_of_characters(batch["texts"])


@dataclass(frozen=True, kw_only=True)
class TextStatistics(OneRow):
    """Statistics of the text: lengths, and shares of kinds of words, characters and tokens."""

    special: frozenset[int] = frozenset()
    """Ids of the special tokens, which are not counted."""
    name: str = STATISTICS[1]

    def shape(self, layer: LayerSpec) -> tuple[int, ...]:  # noqa: ARG002 - the same for every text
        """Return the shape of one row: (statistics,)."""
        return (len(text_statistic_names(tokens=True)),)

    def facts(self, layer: LayerSpec) -> dict[str, str]:  # noqa: ARG002 - the same for every text
        """Return the names of the statistics, which the store records."""
        return {"names": NAME_SEPARATOR.join(text_statistic_names(tokens=True))}

    def __call__(self, batch: Mapping[str, Any], layer: LayerSpec, mask: Tensor | None = None) -> Tensor:  # noqa: ARG002
        """Return the statistics as an array (b, statistics), float32."""
        rows, ids, n = _real_tokens(batch, self.special)
        return text_statistics(batch["texts"], np.split(ids, np.searchsorted(rows, np.arange(1, n))))


@dataclass(frozen=True, kw_only=True, eq=False)
class StaticEmbeddings(OneRow):
    """The mean of the model's static embeddings over the real tokens: what it knows of words without their context."""

    embeddings: nn.Module = field(repr=False)
    """The table of embeddings, whose ``weight`` is (tokens, width)."""
    name: str = EMBEDDINGS[1]

    @cached_property
    def _table(self) -> Tensor:
        # read at the first batch, when weights are loaded; on the CPU, where batches are
        return self.embeddings.get_parameter("weight").detach().cpu()

    def shape(self, layer: LayerSpec) -> tuple[int, ...]:  # noqa: ARG002 - the same for every text
        """Return the shape of one row: (width,)."""
        return (int(self.embeddings.get_parameter("weight").shape[1]),)

    def __call__(self, batch: Mapping[str, Any], layer: LayerSpec, mask: Tensor | None = None) -> Tensor:  # noqa: ARG002
        """Return the means as an array (b, width), float32; 0 for a text without tokens."""
        real = batch["attention_mask"].cpu().bool()
        ids, table = batch["input_ids"].cpu()[real], self._table
        if table.dtype != torch.float32:  # converts the rows that are used, not all
            unique, ids = ids.unique(return_inverse=True)
            table = table[unique].float()
        sizes = real.sum(1)
        return embedding_bag(ids, table, sizes.cumsum(0) - sizes, mode="mean")


def controls_of_text(
    embeddings: nn.Module, tokenizer: Any, longest: int
) -> Mapping[tuple[str, str], tuple[LayerSpec, Readout]]:
    """Return the controls that are read from each batch of texts: tokens, characters, statistics, static embeddings.

    Parameters
    ----------
    embeddings
        The table of the model's static embeddings, whose ``weight`` is (tokens, width).
    tokenizer
        Its tokenizer. Special tokens are left out, but for the one that stands for unknown words.
    longest
        Largest number of tokens of a text, after truncation.

    Returns
    -------
    mapping
        From (layer, readout) to the description of the input and a readout, which takes a batch, a dictionary with
        ``input_ids`` and ``attention_mask``, (b, L), and ``texts``, a list of b texts.
    """
    entry = LayerSpec("input", "input", (), "other", None, class_token=False, grid=None, site=Site(""))
    special = special_ids(tokenizer)
    readouts: dict[tuple[str, str], Any] = {  # a batch of texts is no tensor
        TOKENS: TokenIds(longest=longest, special=special),
        CHARACTERS: CharacterBag(),
        STATISTICS: TextStatistics(special=special),
        EMBEDDINGS: StaticEmbeddings(embeddings=embeddings),
    }
    return {key: (entry, readout) for key, readout in readouts.items()}


def special_ids(tokenizer: Any) -> frozenset[int]:
    """Return the ids of the tokens that are no part of a text; a token for unknown words is one.

    In some tokenizers, such as that of GPT-2, the token for unknown words is also the end of a text; it is special.
    """
    roles = ("bos", "eos", "sep", "cls", "pad", "mask")
    others = {getattr(tokenizer, f"{role}_token_id", None) for role in roles}
    unknown = {getattr(tokenizer, "unk_token_id", None)} - others
    return frozenset(int(token) for token in {*tokenizer.all_special_ids} - unknown)
