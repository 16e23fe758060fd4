"""Controls of texts: ids of tokens, hashed characters, statistics and static embeddings, against slow loops."""

import unicodedata
from collections import Counter
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from repsim.errors import InvalidInputError
from repsim.extractors import text_controls as controls
from repsim.extractors.base import LayerSpec, Site
from repsim.labels import CHARACTERS, EMBEDDINGS, STATISTICS, TOKENS

ENTRY = LayerSpec("input", "input", (), "other", None, class_token=False, grid=None, site=Site(""))
TEXTS = ["A dog!", "", "Über 12 Ärzte... in X; go", "the  dog\nthe dog", "naïve 日本 ٣ \U0001f600", "a.b.c? Yes"]


def batch(tokens: list[list[int]], texts: list[str], *, left: bool = False) -> dict[str, Any]:
    longest = max(map(len, tokens))
    ids, mask = torch.full((len(tokens), longest), 99), torch.zeros(len(tokens), longest, dtype=torch.int64)
    for row, one in enumerate(tokens):
        place = slice(longest - len(one), None) if left else slice(len(one))
        ids[row, place], mask[row, place] = torch.tensor(one), 1
    return {"input_ids": ids, "attention_mask": mask, "texts": texts}


@pytest.mark.parametrize("left", [False, True])
def test_tokens_are_stored_without_special_ones(left: bool) -> None:
    readout = controls.TokenIds(longest=5, special=frozenset({0, 1}))
    values = readout(batch([[0, 5, 4100, 1], [0, 7, 7, 2, 3, 4, 1], [0, 1]], [""] * 3, left=left), ENTRY)
    assert values.shape == (3, 10)
    digits = values.reshape(3, *readout.shape(ENTRY))
    ids = torch.where(digits[:, 0] < 0, -1, digits[:, 0] * controls.DIGIT + digits[:, 1])
    assert ids.tolist() == [[5, 4100, -1, -1, -1], [7, 7, 2, 3, 4], [-1] * 5]


def test_digits_are_exact_in_half_precision() -> None:
    ids = [[0, 2047, 2048, 50257, 262143, controls.DIGIT**2 - 1]]
    digits = controls.token_digits(ids).half().double()
    assert (digits[0, 0] * controls.DIGIT + digits[0, 1]).tolist() == ids[0]


def test_ids_that_cannot_be_stored_are_refused() -> None:
    with pytest.raises(InvalidInputError, match="the id 4194304 of a token is too large"):
        controls.token_digits([[1], [2**22]])


def slow_hash(x: int) -> int:
    """Compute SplitMix64 with Python's integers."""
    bits = 2**64 - 1
    x = (x + 0x9E3779B97F4A7C15) & bits
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & bits
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & bits
    return x ^ (x >> 31)


def test_the_hash_is_splitmix64() -> None:
    """The first outputs of the generator with seed 0, from its reference implementation, are hashes of its states."""
    assert hex(slow_hash(0)) == "0xe220a8397b1dcdaf"
    numbers = [0, 1, 2048, 2**63 - 1]
    assert controls._hash(np.array(numbers, np.uint64)).tolist() == [slow_hash(x) for x in numbers]


def test_characters_are_counted_in_columns() -> None:
    values = controls.CharacterBag()(batch([[1]] * len(TEXTS), TEXTS), ENTRY)
    sizes = controls.CHARACTER_COLUMNS
    assert values.shape == (len(TEXTS), sum(sizes)) == (len(TEXTS), *controls.CharacterBag().shape(ENTRY))
    for length, part in enumerate(values.split(sizes, 1), 1):
        expected = np.zeros(part.shape)
        for row, text in enumerate(TEXTS):
            padded = f" {' '.join(text.lower().split())} "
            for letters in Counter(padded[k : k + length] for k in range(len(padded) - length + 1)).elements():
                number = sum(ord(letter) << (21 * (length - 1 - k)) for k, letter in enumerate(letters))
                hashed = slow_hash(number)
                expected[row, hashed % sizes[length - 1]] += -1 if hashed >> 63 else 1
        np.testing.assert_array_equal(part, expected)


def test_inner_products_of_hashed_counts_are_those_of_the_counts_on_average() -> None:
    """Over many hash functions, which other numbers for the same items stand for."""
    rng = np.random.default_rng(0)
    rows, items = np.array([0, 0, 0, 1, 1, 1]), np.array([3, 4, 4, 4, 5, 6])
    products = []
    for _ in range(500):
        bags = controls.hashed_bag(rows, items.astype(np.uint64) + rng.integers(2**40).astype(np.uint64), 2, 8).numpy()
        products.append(bags[0] @ bags[1])
    assert np.mean(products) == pytest.approx(2, abs=4 * np.std(products) / np.sqrt(500))
    assert np.std(products) > 0.1  # 8 columns have collisions


def slow_statistics(text: str, tokens: list[int]) -> list[float]:
    """Compute the statistics of one text with Python's texts."""
    words = text.split()
    sizes = [len(word) for word in words]

    def share(part: float, of: int) -> float:
        return part / of if of else 0.0

    ends = [letter in ".!?" for letter in text]
    runs = sum(end and not (k and ends[k - 1]) for k, end in enumerate(ends))
    return [
        len(text), len(words), max(1, runs),
        float(np.mean(sizes)) if sizes else 0, float(np.std(sizes)) if sizes else 0, max(sizes, default=0),
        share(len(set(text.lower().split())), len(words)),
        share(sum(size <= 3 for size in sizes), len(words)),
        share(sum(word[0].isupper() for word in words), len(words)),
        share(sum(letter.isdigit() for letter in text), len(text)),
        share(sum(letter.isupper() for letter in text), len(text)),
        share(sum(unicodedata.category(letter)[0] == "P" for letter in text), len(text)),
        share(sum(ord(letter) > 127 for letter in text), len(text)),
        len(tokens), share(len(tokens), len(words)), share(len(set(tokens)), len(tokens)),
    ]  # fmt: skip


def test_statistics_are_those_of_a_loop() -> None:
    tokens = [[5, 5, 6], [], [7], [8, 9, 8, 9], [5], [6, 7]]
    readout = controls.TextStatistics(special=frozenset({0, 1}))
    values = readout(batch([[0, *one, 1] for one in tokens], TEXTS), ENTRY)
    expected = [slow_statistics(text, one) for text, one in zip(TEXTS, tokens, strict=True)]
    np.testing.assert_allclose(values, expected, rtol=1e-6, atol=1e-6)
    assert values.shape[1:] == readout.shape(ENTRY)
    assert len(readout.facts(ENTRY)["names"].split("; ")) == values.shape[1]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_static_embeddings_are_averaged_over_real_tokens(dtype: torch.dtype) -> None:
    table = nn.Embedding(100, 6, dtype=dtype)
    tokens = [[4, 5], [6], [7, 7, 9]]
    readout = controls.StaticEmbeddings(embeddings=table)
    values = readout(batch(tokens, [""] * 3, left=True), ENTRY)
    expected = [table.weight.detach().float()[one].mean(0) for one in tokens]
    torch.testing.assert_close(values, torch.stack(expected))
    assert readout.shape(ENTRY) == (6,)


def test_a_text_does_not_depend_on_its_batch() -> None:
    tokens = [[2, 3], [4, 5, 6, 7], [8], [9, 2, 2], [3], [4]]
    table = nn.Embedding(100, 6)
    tokenizer = SimpleNamespace(all_special_ids=[0, 1], cls_token_id=0, unk_token_id=1)
    readouts = controls.controls_of_text(table, tokenizer, 4)
    assert set(readouts) == {TOKENS, CHARACTERS, STATISTICS, EMBEDDINGS}
    for layer, readout in readouts.values():
        together: Any = readout(batch(tokens, TEXTS), layer)  # type: ignore[arg-type]
        alone = [readout(batch([one], [text]), layer) for one, text in zip(tokens, TEXTS, strict=True)]  # type: ignore[arg-type]
        torch.testing.assert_close(together, torch.cat(alone), rtol=1e-6, atol=1e-6)
        assert together.dtype == torch.float32
        assert together[0].numel() == int(np.prod(readout.shape(layer)))


def test_the_token_of_unknown_words_is_no_special_one() -> None:
    bert = SimpleNamespace(all_special_ids=[100, 102, 0, 101], unk_token_id=100, sep_token_id=102, pad_token_id=0)
    gpt = SimpleNamespace(all_special_ids=[50256], unk_token_id=50256, eos_token_id=50256)
    assert controls.special_ids(bert) == {102, 0, 101}
    assert controls.special_ids(gpt) == {50256}
