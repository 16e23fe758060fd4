"""Texts as batches of tokens: against the tokenizer itself, whatever the batch."""

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from repsim.errors import InvalidArgumentError, InvalidInputError, WeightsError
from repsim.extractors.tokenized import choose_limit, make_tokenization, read_tokenizer
from tests.small_transformers import TEXTS, byte_tokenizer, word_tokenizer


def words(**options: Any) -> Any:
    return make_tokenization(word_tokenizer(), name="net", words=40, **{"positions": 40, **options})


def test_a_batch_holds_the_tokens_of_each_text_and_masked_padding_on_the_right() -> None:
    tokenizer = byte_tokenizer()  # its own padding would be on the left, and it has no token for it
    made = make_tokenization(byte_tokenizer(), name="net", words=320)
    batch = made.batch(TEXTS)
    assert batch["texts"] == list(TEXTS)
    assert batch["input_ids"].dtype == batch["attention_mask"].dtype == torch.int64
    longest = max(len(tokenizer(text)["input_ids"]) for text in TEXTS)
    for text, ids, mask in zip(TEXTS, batch["input_ids"].tolist(), batch["attention_mask"].tolist(), strict=True):
        own = tokenizer(text)["input_ids"]
        assert ids == own + [tokenizer.eos_token_id] * (longest - len(own))
        assert mask == [1] * len(own) + [0] * (longest - len(own))
    assert made.lengths(TEXTS) == batch["attention_mask"].sum(1).tolist()


def test_special_tokens_are_those_of_the_tokenizer() -> None:
    batch = words().batch(["the cat", ""])
    assert batch["input_ids"].tolist() == [[2, 24, 22, 3], [2, 3, 0, 0]]
    assert set(batch) == {"input_ids", "attention_mask", "texts"}


def test_a_longer_text_is_cut_at_its_end_and_its_length_is_that_before() -> None:
    made = words(asked=5)
    full, cut = words().batch(TEXTS)["input_ids"], made.batch(TEXTS)
    assert cut["input_ids"].shape == (len(TEXTS), 5)
    assert torch.equal(cut["input_ids"][1, :4], full[1, :4])
    assert cut["input_ids"][1, 4] == 3  # the special token at the end remains
    assert made.lengths(TEXTS) == words().lengths(TEXTS)


def test_the_decoder_reads_the_same_tokens_shifted_right() -> None:
    batch = words(start=4).batch(TEXTS[:3])
    assert torch.equal(batch["decoder_input_ids"][:, 1:], batch["input_ids"][:, :-1])
    assert batch["decoder_input_ids"][:, 0].tolist() == [4, 4, 4]
    assert torch.equal(batch["decoder_attention_mask"], batch["attention_mask"])


def test_a_model_that_was_trained_on_seen_padding_gets_texts_of_one_length_without_a_mask() -> None:
    made = words(full=True, asked=30)
    batch = made.batch(["a dog", "the cat runs"])
    assert batch["input_ids"].shape == (2, 30)
    assert batch["attention_mask"].sum(1).tolist() == [4, 5]
    assert set(made.inputs(batch)) == {"input_ids"}


def test_the_limit_is_the_smallest_of_those_that_exist_unless_the_user_chooses() -> None:
    assert choose_limit(None, 512, 512, 256)[0] == 256
    assert choose_limit(None, 512, 128, None) == (128, "its tokenizer")
    assert choose_limit(None, None, 10**30, None)[0] is None
    assert choose_limit(400, 512, 128, 256) == (400, "set by the user")
    with pytest.raises(InvalidArgumentError, match=r"^max_length is at most 512, .*, not 513$"):
        choose_limit(513, 512, 128, 256)
    with pytest.raises(InvalidArgumentError, match="^max_length is above 2, as net adds 2 special tokens, not 2$"):
        words(asked=2)


def test_a_text_without_tokens_is_an_error_that_shows_it() -> None:
    made = make_tokenization(byte_tokenizer(), name="net", words=320)
    with pytest.raises(InvalidInputError, match="^a text has no tokens for this tokenizer, .*: ''$"):
        made.batch(["a dog", ""])


def test_a_tokenizer_with_more_tokens_than_the_model_is_refused() -> None:
    with pytest.raises(
        InvalidInputError, match="^net has 30 token embeddings, but its tokenizer gives token ids up to"
    ):
        make_tokenization(word_tokenizer(), name="net", words=30)


def test_models_share_batches_if_tokenizer_and_limit_are_equal() -> None:
    assert words().key == words().key
    assert len({words().key, words(asked=9).key, words(start=1).key, words(full=True).key}) == 4
    other = make_tokenization(byte_tokenizer(), name="net", words=320, positions=40)
    assert other.fingerprint != words().fingerprint
    before = words()
    before.batch(TEXTS)  # does not change the rules of the tokenizer
    assert before.fingerprint == words().fingerprint


@pytest.mark.slow
def test_a_folder_without_a_vocabulary_has_no_tokenizer(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(WeightsError, match=r"^hf/net has no tokenizer \(tokenizer.json or vocab.txt, "):
        read_tokenizer(tmp_path, "hf/net")


def test_the_environment_is_as_before(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TOKENIZERS_PARALLELISM", raising=False)
    words().batch(TEXTS)
    assert "TOKENIZERS_PARALLELISM" not in os.environ
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "true")
    words().batch(TEXTS)
    assert os.environ["TOKENIZERS_PARALLELISM"] == "true"


def test_a_tokenizer_without_a_token_for_unknown_words_is_one_line() -> None:
    """The library of tokenizers raises a plain exception."""
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel({"cat": 0}, unk_token="<unk>"))  # noqa: S106 - a token of text
    )
    with pytest.raises(WeightsError, match="the tokenizer cannot read a text"):
        make_tokenization(tokenizer, name="net", words=40).batch(["dog"])
