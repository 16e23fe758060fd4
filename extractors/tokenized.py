"""Texts as batches of tokens for a language model: tokenization, truncation, and padding that is masked.

Texts are padded on the right, whatever the tokenizer would do: then the positions of the real tokens are 0, 1, 2, ...
in every batch, and a causal model never sees the padding.
"""

import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from repsim.errors import InvalidArgumentError, InvalidInputError, WeightsError, reason

FAST = "tokenizer.json"
"""File of a fast tokenizer."""
SMALL_FILES = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
VOCABULARIES = (
    "vocab.txt", "vocab.json", "merges.txt", "spiece.model", "sentencepiece.bpe.model", "tokenizer.model",
    "sentencepiece.model",
)  # fmt: skip
"""Files from which transformers makes a fast tokenizer if there is no ``tokenizer.json``."""
SENTENCE_LIMIT = "sentence_bert_config.json"
"""File of sentence-transformers with the number of tokens up to which its authors use a model."""
_UNLIMITED = 10**9
"""Limits above this stand for none in the configurations of tokenizers."""
_EXAMPLES = ("One two three four five six seven eight nine.", "A short one.", "Words, and 123 more of them.")
_SHORT_EXAMPLES = ("One two.", "A b", "c")


@dataclass(frozen=True)
class Tokenization:
    """A tokenizer, the largest number of tokens of a text, and how a batch is padded."""

    tokenizer: Any
    """Tokenizer of transformers."""
    limit: int | None
    """Largest number of tokens, special tokens included; longer texts are cut at their end. None: no limit."""
    limited_by: str
    """Origin of the limit, for a note."""
    pad: int
    """Token id of the padding. It is masked, so that no value depends on it."""
    start: int | None = None
    """First token id of the decoder of an encoder-decoder, which reads the same text shifted right by one."""
    full: bool = False
    """Whether all texts are padded to the limit and the model sees the padding, as SigLIP was trained."""
    fingerprint: str = field(default="", compare=False)
    """SHA-256 of the vocabulary and the rules of the tokenizer."""

    @cached_property
    def key(self) -> tuple[Any, ...]:
        """Models with equal keys read equal batches."""
        return "text", self.fingerprint, self.limit, self.pad, self.start, self.full

    def batch(self, texts: Sequence[str]) -> dict[str, Any]:
        """Return a batch: ``input_ids`` and ``attention_mask`` (b, L) int64, what else the model reads, and ``texts``.

        L is the number of tokens of the longest text, at most `limit`.

        Raises
        ------
        InvalidInputError
            A text has no tokens.
        """
        encoded = self._encode(texts, cut=True)
        lengths = [len(ids) for ids in encoded["input_ids"]]
        if not all(lengths):
            raise InvalidInputError(
                f"a text has no tokens for this tokenizer, so there is nothing to read: {texts[lengths.index(0)]!r}"
            )
        longest = self.limit if self.full and self.limit is not None else max(lengths)
        batch: dict[str, Any] = {}
        for name, rows in encoded.items():
            padding = self.pad if name == "input_ids" else 0
            batch[name] = torch.tensor([[*row, *[padding] * (longest - len(row))] for row in rows])
        batch["attention_mask"] = torch.arange(longest)[None] < torch.tensor(lengths)[:, None]
        batch["attention_mask"] = batch["attention_mask"].long()
        if self.start is not None:  # as many real tokens as the text: the mask of the decoder is that of the encoder
            ids = batch["input_ids"]
            first = torch.full_like(ids[:, :1], self.start)
            batch["decoder_input_ids"] = torch.cat([first, ids[:, :-1]], dim=1)
            batch["decoder_attention_mask"] = batch["attention_mask"]
        batch["texts"] = list(texts)
        return batch

    def lengths(self, texts: Sequence[str]) -> list[int]:
        """Return the number of tokens of each text, before truncation and with special tokens."""
        return [len(ids) for ids in self._encode(texts, cut=False)["input_ids"]]

    def examples(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return two batches of three texts, with different numbers of tokens, unless all batches have as many."""
        return self.batch(_EXAMPLES), self.batch(_SHORT_EXAMPLES)

    def inputs(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """Return the tensors of a batch that are arguments of the model."""
        hidden = {"attention_mask"} if self.full else set()
        return {key: value for key, value in batch.items() if isinstance(value, Tensor) and key not in hidden}

    def record(self) -> dict[str, Any]:
        """Return entries for the provenance."""
        entries: dict[str, Any] = {
            "tokenizer": {"class": type(self.tokenizer).__name__, "sha256": self.fingerprint},
            "max_length": self.limit,
            "padding": "to max_length, seen by the model as in its training" if self.full else "right, masked",
        }
        if self.start is not None:
            entries["decoder_input"] = f"the same tokens, shifted right by one after token {self.start}"
        return entries

    def _encode(self, texts: Sequence[str], *, cut: bool) -> dict[str, list[list[int]]]:
        cutting = {"truncation": True, "max_length": self.limit} if cut and self.limit is not None else {}
        with _without_threads():
            try:
                encoded = self.tokenizer(
                    list(texts), padding=False, return_attention_mask=False, verbose=False, **cutting
                )
            except Exception as error:  # the library of tokenizers raises plain exceptions
                raise WeightsError(f"the tokenizer cannot read a text: {reason(error)}") from error
        return dict(encoded)


@contextmanager
def _without_threads() -> Iterator[None]:
    """Tokenize in this thread: worker processes are forks, and cannot use the threads of tokenizers."""
    before = os.environ.get("TOKENIZERS_PARALLELISM")
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    try:
        yield
    finally:
        if before is None:
            del os.environ["TOKENIZERS_PARALLELISM"]
        else:
            os.environ["TOKENIZERS_PARALLELISM"] = before


def read_tokenizer(folder: Path, name: str) -> Any:
    """Return the tokenizer in a folder of a model.

    Raises
    ------
    WeightsError
        The folder has no files of a tokenizer, or they cannot be read.
    """
    from transformers import AutoTokenizer  # noqa: PLC0415 - takes seconds

    if not any((folder / file).is_file() for file in (FAST, *VOCABULARIES)):
        # transformers would make a tokenizer without a vocabulary
        raise WeightsError(f"{name} has no tokenizer ({FAST} or {', '.join(VOCABULARIES[:3])}, ...)")
    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:
        raise WeightsError(f"the tokenizer of {name} cannot be read: {reason(error)}") from error


def choose_limit(
    asked: int | None, positions: int | None, own: int | None, sentences: int | None
) -> tuple[int | None, str]:
    """Return the largest number of tokens of a text, and its origin.

    Parameters
    ----------
    asked : int, optional
        Number that the user chose.
    positions : int, optional
        Number of positions of the model; None if it has no limit.
    own, sentences : int, optional
        Limits of the tokenizer and of sentence-transformers.

    Raises
    ------
    InvalidArgumentError
        ``asked`` is more than the positions of the model.

    Examples
    --------
    >>> choose_limit(None, 512, 512, 256)
    (256, 'its sentence-transformers configuration')
    >>> choose_limit(None, 1024, 10**30, None)
    (1024, 'its positions')
    """
    if asked is not None:
        if positions is not None and asked > positions:
            most = f"at most {positions}, the number of positions of this model"
            raise InvalidArgumentError("max_length", most, asked)
        return asked, "set by the user"
    limits = [
        (positions, "its positions"),
        (own, "its tokenizer"),
        (sentences, "its sentence-transformers configuration"),
    ]
    usable = [(limit, origin) for limit, origin in limits if limit is not None and 0 < limit < _UNLIMITED]
    return min(usable, key=lambda pair: pair[0], default=(None, "there is none"))


def make_tokenization(
    tokenizer: Any,
    *,
    name: str,
    words: int,
    positions: int | None = None,
    sentences: int | None = None,
    asked: int | None = None,
    start: int | None = None,
    full: bool = False,
) -> Tokenization:
    """Return the tokenization of a model.

    Parameters
    ----------
    tokenizer : tokenizer of transformers
        Tokenizer of the model.
    name : str
        Name of the model, for messages.
    words : int
        Number of token ids that the model has an embedding of.
    positions, sentences, asked : int, optional
        As in `choose_limit`.
    start, full
        As in `Tokenization`.

    Raises
    ------
    InvalidArgumentError
        The limit is more than the model has positions, or leaves no room for a token of the text.
    InvalidInputError
        The tokenizer has more tokens than the model.
    """
    fingerprint = _fingerprint(tokenizer)
    largest = max(tokenizer.get_vocab().values(), default=0)
    if largest >= words:
        raise InvalidInputError(
            f"{name} has {words:,} token embeddings, but its tokenizer gives token ids up to {largest:,}: "
            "they do not belong together"
        )
    limit, origin = choose_limit(asked, positions, getattr(tokenizer, "model_max_length", None), sentences)
    special = tokenizer.num_special_tokens_to_add(pair=False)
    if limit is not None and limit <= special:
        raise InvalidArgumentError("max_length", f"above {special}, as {name} adds {special} special tokens", limit)
    pads = (tokenizer.pad_token_id, tokenizer.eos_token_id, 0)
    pad = next(token for token in pads if token is not None)
    return Tokenization(tokenizer, limit, origin, pad, start, full, fingerprint)


def _fingerprint(tokenizer: Any) -> str:
    """Return the SHA-256 of the vocabulary and the rules of a tokenizer."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    text = backend.to_str() if backend is not None else json.dumps(tokenizer.get_vocab(), sort_keys=True)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
