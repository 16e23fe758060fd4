"""Sentences of studies of texts, and of pictures and texts, of which the truth is known."""

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import xarray as xr
from numpy.typing import NDArray

from repsim.stores.writer import write_store
from repsim.study.universality import universality

Array = NDArray[np.float64]
Draw = Callable[[], Sequence[Array]]


@dataclass(frozen=True)
class Family:
    """Layers of the trained and of the untrained networks of a family, which see texts or pictures."""

    trained: Draw
    untrained: Draw
    sees: Literal["texts", "pictures", "nothing"] = "texts"


@dataclass
class World:
    """Samples that are a text and a picture each; both may depend on a topic that the two have in common."""

    n: int = 200
    seed: int = 0
    topics: float = 0.0
    """How much both inputs depend on the topics."""
    labels: NDArray[np.int64] | None = None
    pixels: Array = field(init=False)

    def __post_init__(self) -> None:
        self.rng = rng = np.random.default_rng(self.seed)
        topics = rng.normal(size=(self.n, 4)) if self.labels is None else rng.normal(size=(5, 4))[self.labels]
        self.pixels = self.topics * topics @ rng.normal(size=(4, 12)) + rng.normal(size=(self.n, 12))
        words = ["".join(rng.choice(list("abcdefgh"), rng.integers(2, 8))) for _ in range(60)]
        scores = self.topics * topics @ rng.normal(size=(4, len(words))) - np.log(np.arange(1, len(words) + 1))
        shares = np.exp(scores) / np.exp(scores).sum(1, keepdims=True)
        self.tokens = [rng.choice(len(words), rng.integers(4, 16), p=p).tolist() for p in shares]
        self.texts = [" ".join(words[k] for k in ids) for ids in self.tokens]
        self.counts = np.array([np.bincount(ids, minlength=len(words)) for ids in self.tokens], np.float64)

    def normal(self, columns: int = 20) -> Array:
        return self.rng.normal(size=(self.n, columns))

    def layers(self, *parts: Array, depth: int = 3) -> Draw:
        """Return layers of these parts and of noise of each layer of each network."""
        return lambda: [np.hstack([*parts, 0.7 * self.normal()]) for _ in range(depth)]

    def network(self, x: Array, activation: Callable[[Array], Array], *, gain: float, bias: float) -> Draw:
        """Return layers of networks with random weights that see x; they add no noise."""

        def draw() -> list[Array]:
            layers = [x / np.sqrt((x**2).sum(1).mean() / x.shape[1])]
            for _ in range(3):
                weights = self.rng.normal(size=(layers[-1].shape[1], 256)) * gain / np.sqrt(layers[-1].shape[1])
                layers.append(activation(layers[-1] @ weights + bias * self.rng.normal(size=256)))
            return layers[1:]

        return draw


def conduct(
    folder: Path, world: World, families: Mapping[str, Family], *, trained: int = 2, untrained: int = 3, **stored: Any
) -> xr.Dataset:
    inputs: dict[str, dict[str, Any]] = {
        "texts": {"controls": {"texts": world.texts, "tokens": world.tokens}},
        "pictures": {"pixels": world.pixels},
        "nothing": {},
    }
    if world.labels is not None:
        stored["labels"] = world.labels
    with ExitStack() as stack:
        stores = []
        for name, family in families.items():
            for state, count in (("seed", trained), ("untrained", untrained)):
                for k in range(count):
                    layers = (family.trained if state == "seed" else family.untrained)()
                    arrays = {f"layer{i}": x.astype(np.float32) for i, x in enumerate(layers)}
                    record = {"architecture": name} | ({"weights": "random"} if state == "untrained" else {})
                    store = write_store(
                        folder / f"{name}.{state}{k}.h5", arrays, model=f"{name}.{state}{k}", provenance=record,
                        **inputs[family.sees], **stored,
                    )  # fmt: skip
                    stores.append(stack.enter_context(store))
        return universality(stores, ["cka"], permutations=19, draws=20, progress=False)


def summary(study: xr.Dataset) -> str:
    return " ".join(json.loads(study.attrs["summary"]))


def refused(study: xr.Dataset) -> bool:
    return "universal" not in summary(study) and not any(study["claim_level"].values.tolist())


def reason(study: xr.Dataset) -> str:
    (reason,) = study["claim_reason"].values.tolist()
    return str(reason)


def clip(x: Array) -> Array:
    return np.clip(x, -1, 1)


# What is true is claimed


def test_what_networks_of_texts_share_beyond_their_tokens_is_universal(tmp_path: Path) -> None:
    world = World()
    seen, common = world.counts, world.normal()
    families = {name: Family(world.layers(seen, common), world.layers(seen)) for name in "ab"}
    study = conduct(tmp_path, world, families, trained=3)
    assert study["claim_level"].values.tolist() == ["architectures"]
    assert "universal across these families" in summary(study)


@pytest.mark.slow
def test_what_pictures_and_texts_share_beyond_both_is_universal(tmp_path: Path) -> None:
    """The networks learn a latent that neither input holds, such as what the picture and the text are about."""
    world = World()
    common = world.normal()
    families = {
        "eye": Family(world.layers(world.pixels, common), world.layers(world.pixels), "pictures"),
        "reader": Family(world.layers(world.counts, common), world.layers(world.counts)),
    }
    study = conduct(tmp_path, world, families, trained=3)
    assert study["claim_level"].values.tolist() == ["architectures"]
    controls = json.loads(study.attrs["input_controls"])
    assert {"pixels", "shares of the tokens", "counts of the tokens", "characters"} <= set(controls)


# What is false is not claimed


@pytest.mark.parametrize("of", ["tokens", "shares", "characters", "lengths", "presence"])
@pytest.mark.slow
def test_functions_of_the_bag_of_tokens_are_not_universal(tmp_path: Path, of: str) -> None:
    """Networks of another gain apply random functions to the same bags; none has learned anything."""
    world = World(300)
    lengths = world.counts.sum(1, keepdims=True)
    letters = np.array([[text.count(letter) for letter in "abcdefgh "] for text in world.texts], np.float64)
    x = {
        "tokens": world.counts, "shares": world.counts / lengths, "presence": np.minimum(world.counts, 1),
        "characters": letters, "lengths": np.hstack([lengths, lengths**2, np.log(lengths)]),
    }[of]  # fmt: skip
    x = (x - x.mean(0)) / x.std(0).mean()
    families = {
        name: Family(world.network(x, act, gain=2.5, bias=0.5), world.network(x, act, gain=0.5, bias=0.1))
        for name, act in (("a", np.tanh), ("b", clip))
    }
    assert refused(conduct(tmp_path, world, families))


@pytest.mark.slow
def test_pictures_and_texts_of_the_same_topics_are_not_universal(tmp_path: Path) -> None:
    """Both inputs depend on the topic, and so do random functions of them."""
    world = World(300, topics=1.0)
    families = {
        "eye": Family(
            world.network(world.pixels, np.tanh, gain=2.5, bias=0.5),
            world.network(world.pixels, np.tanh, gain=0.5, bias=0.1),
            "pictures",
        ),
        "reader": Family(
            world.network(world.counts, clip, gain=2.5, bias=0.5), world.network(world.counts, clip, gain=0.5, bias=0.1)
        ),
    }
    study = conduct(tmp_path, world, families)
    assert refused(study)
    assert study["trained_value"].sel(measure="cka").item() > 0.1  # there is something to explain


@pytest.mark.slow
def test_pictures_and_texts_that_share_the_class_alone_are_not_universal(tmp_path: Path) -> None:
    labels = np.random.default_rng(1).integers(0, 5, 300)
    world = World(300, labels=labels)
    by_class = 2 * np.eye(5)[labels]
    families = {
        "eye": Family(world.layers(world.pixels, by_class), world.layers(world.pixels), "pictures"),
        "reader": Family(world.layers(world.counts, by_class), world.layers(world.counts)),
    }
    study = conduct(tmp_path, world, families)
    assert refused(study)
    assert "not beyond the classes" in reason(study)


@pytest.mark.slow
def test_brightness_and_length_are_inputs(tmp_path: Path) -> None:
    """Captions of bright pictures are long; trained networks amplify what the inputs have in common."""
    world = World(300)
    brightness = np.argsort(np.argsort(world.pixels.mean(1)))
    by_length = sorted(range(world.n), key=lambda k: len(world.tokens[k]))
    for name in ("tokens", "texts"):
        values = getattr(world, name)
        setattr(world, name, [values[by_length[place]] for place in brightness])
    world.counts = world.counts[[by_length[place] for place in brightness]]
    length = world.counts.sum(1, keepdims=True) / 2
    bright = 15 * world.pixels.mean(1, keepdims=True)
    families = {
        "eye": Family(world.layers(world.pixels, bright, bright**2), world.layers(world.pixels), "pictures"),
        "reader": Family(world.layers(world.counts, length, length**2), world.layers(world.counts)),
    }
    study = conduct(tmp_path, world, families)
    assert refused(study)
    assert study["trained_value"].sel(measure="cka").item() > 0.1


@pytest.mark.slow
def test_a_reader_without_its_input_is_not_controlled(tmp_path: Path) -> None:
    """A module on a DataLoader of its own, say, of which no input is stored."""
    world = World()
    common = world.normal()
    families = {
        "eye": Family(world.layers(world.pixels, common), world.layers(world.pixels), "pictures"),
        "reader": Family(world.layers(world.counts, common), world.layers(world.counts), "nothing"),
    }
    study = conduct(tmp_path, world, families)
    assert refused(study)
    assert reason(study) == "the input of reader.seed0, reader.seed1 is not stored, so it is not controlled for"
    assert "the input of reader.seed0, reader.seed1, reader.untrained0 and 2 more is not" in study.attrs["warnings"]
