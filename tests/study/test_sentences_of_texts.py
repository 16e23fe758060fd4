"""Sentences of studies of texts, and of pictures and texts, of which the truth is known."""

import json
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

from tests.study.worlds_of_texts import Family, World, clip, conduct, networks_of


def summary(study: xr.Dataset) -> str:
    return " ".join(json.loads(study.attrs["summary"]))


def refused(study: xr.Dataset) -> bool:
    return "universal" not in summary(study) and not any(study["claim_level"].values.tolist())


def reason(study: xr.Dataset) -> str:
    (reason,) = study["claim_reason"].values.tolist()
    return str(reason)


# What is true is claimed


@pytest.mark.slow
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
    assert {"pixels", "shares of the tokens", "counts of the tokens", "triples of characters"} <= set(controls)


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
    assert refused(conduct(tmp_path, world, networks_of(world, x, learned=(2.5, 0.5), untrained=(0.5, 0.1))))


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
    length, bright = world.counts.sum(1, keepdims=True), world.pixels.mean(1, keepdims=True)
    length, bright = (5 * (x - x.mean()) / x.std() for x in (length, bright))
    families = {
        "eye": Family(world.layers(world.pixels, bright, np.abs(bright)), world.layers(world.pixels), "pictures"),
        "reader": Family(world.layers(world.counts, length, np.abs(length)), world.layers(world.counts)),
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
