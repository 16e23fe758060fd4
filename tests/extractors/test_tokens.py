"""Layers of tokens: masks, padding on either side, and modules that take and return nests of tensors."""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from repsim.errors import InvalidInputError, SampleError
from repsim.extractors.base import Batch, Stream
from repsim.extractors.factory import make_extractor
from repsim.extractors.modules import ModuleExtractor
from repsim.extractors.preparation import copy, move, prepare_samples, samples_in
from repsim.extractors.samples.source import SampleSource, content_of

WORDS, WIDTH = 30, 16


class Sentences(SampleSource):
    """Sequences of 2 to 11 token numbers."""

    name = "sentences"

    def __init__(self, n: int = 24) -> None:
        random = np.random.default_rng(3)
        self.tokens = [torch.from_numpy(random.integers(1, WORDS, random.integers(2, 12))) for _ in range(n)]
        self.ids = [f"{k:02d}" for k in range(n)]

    def load(self, index: int) -> Tensor:
        return self.tokens[index]


class Streamed(Sentences):
    """The same sequences, which can only be read in their order."""

    indexable = False

    def load(self, index: int) -> Tensor:
        raise AssertionError(f"{index} is read out of order")

    def read(self, rows: Any) -> Any:
        wanted = list(rows)
        assert wanted == sorted(wanted)
        yield from ((row, self.tokens[row]) for row in wanted)


def padded(items: list[Tensor], side: str = "right", length: int | None = None) -> dict[str, Tensor]:
    """Return a batch whose padding has tokens that a model must not see."""
    length = length or max(map(len, items))
    tokens = torch.full((len(items), length), WORDS - 1)
    mask = torch.zeros(len(items), length, dtype=torch.int64)
    for k, item in enumerate(items):
        place = slice(0, len(item)) if side == "right" else slice(length - len(item), length)
        tokens[k, place], mask[k, place] = item, 1
    return {"tokens": tokens, "attention_mask": mask}


@dataclass
class Output:
    """Output of the network."""

    hidden: Tensor
    pooled: Tensor


class Network(nn.Module):
    """A transformer without positions, so that padding on either side gives the same values."""

    def __init__(self, *, causal: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Embedding(WORDS, WIDTH)
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(WIDTH, 2, 32, batch_first=True, dropout=0.0) for _ in range(2)
        )
        self.head = nn.Linear(WIDTH, 5)
        self.causal = causal

    def forward(self, tokens: Tensor, attention_mask: Tensor) -> Output:
        x = self.embed(tokens)
        length = tokens.shape[1]
        causal = torch.triu(torch.ones(length, length, dtype=torch.bool), 1) if self.causal else None
        for block in self.blocks:
            x = block(x, src_mask=causal, src_key_padding_mask=attention_mask == 0)
            x = torch.where(attention_mask[:, :, None] == 1, x, torch.full_like(x, 1e6))  # padding must not matter
        real = attention_mask[:, :, None].float()
        return Output(x, self.head((x.clamp(max=1e3) * real).sum(1) / real.sum(1)))


def call(module: nn.Module, batch: dict[str, Tensor]) -> Any:
    return module(**batch)


def extractor(
    collate: Callable[[list[Tensor]], Any] = padded, *, readout: str = "mean,max,last", causal: bool = False,
    layers: str = "embed,blocks.*", source: SampleSource | None = None, mask: Any = None,
) -> ModuleExtractor:  # fmt: skip
    made = make_extractor(
        Network(causal=causal), name="net", samples=source or Sentences(), forward=call, collate=collate, mask=mask,
        layers=layers, readout=readout,
    )  # fmt: skip
    assert isinstance(made, ModuleExtractor)
    return made


def rows(made: ModuleExtractor, batch_size: int, source: SampleSource | None = None) -> dict[tuple[str, str], Any]:
    source = source or Sentences()
    batches: list[Batch] = list(made.stream(source, range(len(source)), Stream(batch_size=batch_size)))
    return {key: np.concatenate([batch.values[key].numpy() for batch in batches]) for key in batches[0].values}


@pytest.mark.parametrize("causal", [False, True])
def test_values_are_those_of_each_sequence_alone_whatever_the_padding(causal: bool) -> None:
    source, network = Sentences(), Network(causal=causal).eval()
    alone: dict[tuple[str, str], list[Any]] = {}
    for item in source.tokens:  # the reference: one sequence at a time, without padding, pooled by numpy
        x = network.embed(item[None])
        states = {"embed": x}
        length = len(item)
        attention = torch.triu(torch.ones(length, length, dtype=torch.bool), 1) if causal else None
        for k, block in enumerate(network.blocks):
            x = block(x, src_mask=attention)
            states[f"blocks.{k}"] = x
        for name, state in states.items():
            values = state[0].detach().numpy()
            flat = np.zeros((11, WIDTH), np.float32)
            flat[:length] = values
            for readout, value in (
                ("mean", values.mean(0)), ("max", values.max(0)), ("last", values[-1]), ("flatten", flat.ravel()),
            ):  # fmt: skip
                alone.setdefault((name, readout), []).append(value)
    for side in ("right", "left"):
        collate = functools.partial(padded, side=side, length=11)
        made = extractor(collate, readout="mean,max,last,flatten", causal=causal)
        for size in (1, 5, 24):
            for key, values in rows(made, size).items():
                np.testing.assert_allclose(values, np.stack(alone[key]), atol=1e-5, err_msg=f"{key} {side} {size}")


def test_layers_of_tokens_are_told_apart_from_fixed_ones() -> None:
    made = extractor(layers="all", readout="mean")
    axes = {layer.name: layer.axes for layer in made.layers()}
    assert axes["embed"] == axes["blocks.1"] == axes["blocks.0.linear1"] == "NTC"
    assert axes["head"] == "NC"
    assert {layer.width for layer in made.layers() if layer.name.startswith("blocks.0.linear1")} == {32}


def test_tokens_whose_shape_depends_on_their_number_otherwise_are_left_out() -> None:
    class Scores(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.scores = nn.Embedding(WORDS, WIDTH), nn.Bilinear(1, 1, 1)
            self.square = nn.Identity()

        def forward(self, batch: dict[str, Tensor]) -> Tensor:
            x = self.embed(batch["tokens"])
            out: Tensor = self.square(x @ x.mT)
            return out

    prepared = prepare_samples(Sentences(), collate=padded)
    assert [layer.name for layer in ModuleExtractor(Scores(), prepared, layers="all").layers()] == ["embed"]
    with pytest.raises(InvalidInputError, match="depends on the number of tokens"):
        ModuleExtractor(Scores(), prepared, layers="square")


def test_blocks_are_recognised_and_the_class_token_is_none() -> None:
    assert [layer.name for layer in extractor(layers="blocks", readout="mean").layers()] == [
        "embed", "blocks.0", "blocks.1",
    ]  # fmt: skip
    with pytest.raises(InvalidInputError, match="no class token"):
        extractor(readout="cls")


def test_without_mask_positions_count_alike() -> None:
    def cut(items: list[Tensor]) -> dict[str, Tensor]:
        return {"tokens": torch.stack([item[:2] for item in items])}

    class Plain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Embedding(WORDS, WIDTH)

        def forward(self, tokens: Tensor) -> Tensor:
            out: Tensor = self.embed(tokens)
            return out

    made: Any = make_extractor(Plain(), name="net", samples=Sentences(), forward=call, collate=cut, layers="all")
    (layer,) = made.layers()
    assert (layer.axes, layer.shape) == ("NLC", (2, WIDTH))
    with pytest.raises(InvalidInputError, match="no sequence of tokens with a mask"):
        make_extractor(
            Plain(), name="net", samples=Sentences(), forward=call, collate=cut, layers="all", readout="last"
        )


@pytest.mark.parametrize("mask", ["attention_mask", lambda batch: batch["attention_mask"].bool()])
def test_the_mask_can_be_named(mask: Any) -> None:
    expected = rows(extractor(), 6)
    for key, values in rows(extractor(mask=mask), 6).items():
        np.testing.assert_array_equal(values, expected[key])


def test_a_mask_that_is_none_is_one_line() -> None:
    with pytest.raises(InvalidInputError, match="has no entry 'padding'; it has tokens, attention_mask"):
        extractor(mask="padding")
    with pytest.raises(InvalidInputError, match="no tensor"):
        prepare_samples(Sentences(), collate=lambda items: {"x": torch.zeros(len(items))}, mask="x")


def test_an_empty_sequence_is_named() -> None:
    class Gap(Sentences):
        def __init__(self) -> None:
            super().__init__()
            self.tokens[9] = self.tokens[9][:0]

    with pytest.raises(InvalidInputError, match="the sample 09 has no token"):
        rows(extractor(), 6, Gap())


def test_flatten_refuses_a_sequence_that_is_longer_than_any_in_the_trace() -> None:
    source = Sentences()
    source.tokens[-1] = torch.arange(1, 20)
    with pytest.raises(InvalidInputError, match=r"has (11|19) tokens for a sample, more than 10 in"):
        rows(extractor(readout="flatten"), 6, source)


def test_what_fails_in_a_batch_is_said_before_anything_is_read() -> None:
    with pytest.raises(InvalidInputError, match="make no batch"):
        make_extractor(Network(), samples=Sentences(), forward=call)  # sequences of different lengths
    with pytest.raises(InvalidInputError, match="transform fails on the sample 00"):
        prepare_samples(Sentences(), transform=lambda tokens: tokens[99])
    with pytest.raises(InvalidInputError, match=r"cannot run on a batch \{tokens: \(3, "):
        make_extractor(Network(), samples=Sentences(), collate=padded)  # forward= is missing


def test_samples_that_can_only_be_read_in_order() -> None:
    expected = rows(extractor(), 7)
    for key, values in rows(extractor(source=Streamed()), 7, Streamed()).items():
        np.testing.assert_array_equal(values, expected[key])


def test_a_sample_that_cannot_be_read_ends_the_stream_after_the_batches_before() -> None:
    class Damaged(Sentences):
        def load(self, index: int) -> Tensor:
            if index == 8:
                raise SampleError("cannot read the sample 08")
            return super().load(index)

    made, read = extractor(), []
    batches = made.stream(Damaged(), range(24), Stream(batch_size=3))
    read += [*next(batches).rows, *next(batches).rows]
    with pytest.raises(SampleError, match="sample 08"):
        next(batches)
    assert read == [0, 1, 2, 3, 4, 5]


def test_several_modalities_in_one_model() -> None:
    class Both(Sentences):
        def load(self, index: int) -> Any:
            return super().load(index), torch.full((3, 8, 8), float(index))

    class TwoTowers(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.text, self.image = nn.Embedding(WORDS, WIDTH), nn.Conv2d(3, 4, 3)
            self.both = nn.Linear(WIDTH + 4, 6)

        def forward(self, text: dict[str, Tensor], pictures: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
            x, y = self.text(text["tokens"]).mean(1), self.image(pictures).mean((2, 3))
            return self.both(torch.cat([x, y], 1)), {"text": x, "image": y}

    made: Any = make_extractor(
        TwoTowers(), name="two", samples=Both(), layers="all",
        collate=lambda items: (padded([text for text, _ in items]), torch.stack([picture for _, picture in items])),
        forward=lambda module, batch: module(*batch), mask=lambda batch: batch[0]["attention_mask"].bool(),
    )  # fmt: skip
    assert {layer.name: (layer.axes, layer.width) for layer in made.layers()} == {
        "text": ("NTC", WIDTH), "pre_logits": ("NC", WIDTH + 4), "image": ("NCHW", 4), "both": ("NC", 6),
    }  # fmt: skip
    values = rows(made, 5, Both())
    assert values["image", "mean"].shape == (24, 4)


def test_outputs_of_a_module_have_the_names_of_their_keys_and_fields() -> None:
    class Inner(nn.Module):
        def forward(self, x: Tensor) -> dict[str, Any]:
            return {"first": x, "rest": (x * 2, x * 3)}

    class Outer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.outer = Inner(), Field()

        def forward(self, x: Tensor) -> Any:
            return self.outer(self.inner(x)["first"])

    class Field(nn.Module):
        def forward(self, x: Tensor) -> Output:
            return Output(x, x + 1)

    class Numbers(Sentences):
        def load(self, index: int) -> Tensor:
            return torch.arange(4.0) + index

    made: Any = make_extractor(Outer(), name="net", samples=Numbers(), layers="all")
    assert [layer.name for layer in made.layers()] == [
        "inner[first]", "inner[rest.0]", "inner[rest.1]", "outer[hidden]", "outer[pooled]",
    ]  # fmt: skip
    values = rows(made, 5, Numbers())
    np.testing.assert_array_equal(values["inner[rest.1]", "mean"], 3 * values["inner[first]", "mean"])
    np.testing.assert_array_equal(values["input", "values"], values["inner[first]", "mean"])  # the control of arrays


def test_batches_of_any_nest_are_moved_and_copied() -> None:
    batch: dict[str, Any] = {
        "a": torch.ones(2),
        "b": [torch.zeros(2), "text"],
        "c": Output(torch.ones(1), torch.ones(1)),
    }
    copied = copy(batch)
    copied["a"][0] = 5
    copied["c"].hidden[0] = 5
    assert batch["a"].tolist() == [1, 1]
    assert batch["c"].hidden.tolist() == [1]
    assert move(batch, torch.device("cpu"))["b"][1] == "text"
    assert samples_in(batch) == 2
    with pytest.raises(InvalidInputError, match="must hold a tensor"):
        samples_in({"a": "text"})


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ("ab", "ba"), (["a", "b"], ["ab"]), ({"x": 1}, {"x": 2}), ({"x": 1}, {"y": 1}), (np.arange(4), np.arange(4.0)),
        (torch.zeros(2, 3), torch.zeros(3, 2)), ((1, 2), (2, 1)), (torch.zeros(2, dtype=torch.bfloat16), torch.ones(2)),
        (b"a", "a"), (None, 0), (np.float32(1), np.float32(2)),
    ],
)  # fmt: skip
def test_contents_that_differ_have_different_hashes(a: Any, b: Any) -> None:
    assert content_of(a) == content_of(a)
    assert content_of(a) != content_of(b)


ADDED: dict[str, Callable[[Tensor], Tensor]] = {
    "added": lambda real: (1 - real.float()) * -1e4,
    "segments": lambda real: real * 2,
    "infinite": lambda real: torch.where(real > 0, 0.0, -torch.inf),
}


@pytest.mark.parametrize("kind", ADDED)
@pytest.mark.parametrize("way", ["entry", "function"])
def test_masks_with_other_values_than_0_and_1_are_refused(kind: str, way: str) -> None:
    """A mask that is added to the attention has 0 for real tokens: as a boolean it would be inverted."""
    source = Sentences()

    def collate(items: list[Tensor]) -> dict[str, Tensor]:
        batch = padded(items, length=14)  # no sample is full, so no mask is empty
        return {**batch, "attention_mask": ADDED[kind](batch["attention_mask"])}

    choice = None if way == "entry" else lambda batch: batch["attention_mask"]
    with pytest.raises(InvalidInputError, match="other values than 0 and 1"):
        prepare_samples(source, collate=collate, mask=choice)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda batch: batch["nothing"], "the function fails on a batch"),
        (lambda batch: batch["attention_mask"].numpy(), "returns a ndarray"),
        (lambda batch: batch["attention_mask"][:, None], "not a tensor \\(samples, tokens\\)"),
    ],
)
def test_functions_that_return_no_mask_are_refused(function: Any, message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        prepare_samples(Sentences(), collate=padded, mask=function)


class Slotted:
    """An object whose text does not show its value."""

    __slots__ = ("value",)

    def __init__(self, value: int) -> None:
        self.value = value

    def __repr__(self) -> str:
        return "Slotted"


@dataclass(slots=True)
class Record:
    """A dataclass without a dictionary of its attributes."""

    values: Tensor


def test_the_hash_of_a_sample_holds_palettes_masks_and_slots() -> None:
    palettes = [Image.new("P", (4, 4)) for _ in range(2)]
    for k, picture in enumerate(palettes):
        picture.putpalette([255 * k, 0, 0] * 256)
    masked = [np.ma.array([1, 2], mask=[False, last]) for last in (False, True)]
    long = torch.arange(5000)
    records = [Record(long), Record(torch.where(long == 2000, 0, long))]
    for first, second in (palettes, masked, records):
        assert content_of([first]) == content_of([first])
        assert content_of([first]) != content_of([second])
    for sample in (Slotted(1), {"a", "b"}):
        with pytest.raises(SampleError, match="cannot be hashed"):
            content_of(sample)


def by_length(items: list[Tensor]) -> dict[str, Tensor]:
    """Sort a batch, as for packed sequences."""
    items.sort(key=len, reverse=True)
    return padded(items)


def test_batches_in_another_order_are_refused() -> None:
    """Rows of a sorted batch would be stored at the wrong samples."""
    with pytest.raises(InvalidInputError, match="changes the order of the samples of a batch"):
        prepare_samples(Sentences(), collate=by_length)
    for collate in (padded, functools.partial(padded, side="left")):
        prepare_samples(Sentences(), collate=collate)


def test_a_module_that_fails_on_some_samples_names_them() -> None:
    def forward(module: nn.Module, batch: dict[str, Tensor]) -> Any:
        if len(batch["tokens"]) == 2:
            raise KeyError("two")
        return module(**batch)

    made: Any = make_extractor(Network(), name="net", samples=Sentences(14), forward=forward, collate=padded)
    with pytest.raises(InvalidInputError, match=r"net cannot run on the samples 12 ... 13: "):
        list(made.stream(Sentences(14), range(14), Stream(batch_size=4)))


def test_a_transform_without_a_hash() -> None:
    @dataclass
    class Cut:
        most: int

        def __call__(self, tokens: Tensor) -> Tensor:
            return tokens[: self.most]

    prepared = prepare_samples(Sentences(), transform=Cut(2), collate=padded)
    assert prepared.examples[0]["tokens"].shape == (3, 2)
    assert prepared.record["transform"].endswith("Cut")
