"""Sentences of studies of which the truth is known: what is claimed is true, and what is true is claimed.

The letters are those of the cases in docs/what-universality-means.md.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
from numpy.typing import NDArray

from repsim.stores.writer import write_store
from repsim.study.universality import universality

Array = NDArray[np.float64]
Layers = Callable[[], Sequence[Array]]


@dataclass(frozen=True)
class Family:
    """Layers of the trained and of the untrained networks of a family; each call draws another network."""

    trained: Layers
    untrained: Layers | None


@dataclass
class World:
    """Samples with pixels, and random parts of layers."""

    n: int
    seed: int = 0

    def __post_init__(self) -> None:
        self.rng = np.random.default_rng(self.seed)
        self.pixels = self.normal(12)

    def normal(self, columns: int = 20) -> Array:
        return self.rng.normal(size=(self.n, columns))

    def layers(self, *parts: Array, depth: int = 3) -> Layers:
        """Return layers of the pixels, these parts, and noise of each layer of each network."""
        return lambda: [np.hstack([self.pixels, *parts, 0.7 * self.normal()]) for _ in range(depth)]

    def family(self, *parts: Array, untrained: Sequence[Array] = (), depth: int = 3) -> Family:
        return Family(self.layers(*parts, depth=depth), self.layers(*untrained, depth=depth))


def conduct(
    folder: Path,
    world: World,
    families: Mapping[str, Family],
    *,
    trained: int = 2,
    untrained: int = 2,
    metrics: Sequence[str] = ("cka",),
    stored: Mapping[str, Any] | None = None,
    by_hand: Mapping[str, Sequence[str]] | None = None,
    **options: Any,
) -> xr.Dataset:
    with ExitStack() as stack:
        stores = []

        def write(name: str, layers: Sequence[Array], **provenance: str) -> None:
            path, arrays = folder / f"{name}.h5", {f"layer{k}": x for k, x in enumerate(layers)}
            store = write_store(path, arrays, model=name, pixels=world.pixels, provenance=provenance, **(stored or {}))
            stores.append(stack.enter_context(store))

        for name, family in families.items():
            for k in range(trained):
                write(f"{name}.seed{k}", family.trained(), architecture=name)
            for k in range(untrained if family.untrained else 0):
                assert family.untrained is not None
                write(f"{name}.untrained{k}", family.untrained(), architecture=name, weights="random")
        settings = {"permutations": 19, "draws": 20, "progress": False, "families": by_hand, **options}
        return universality(stores, metrics, **settings)


def summary(study: xr.Dataset) -> list[str]:
    return list(json.loads(study.attrs["summary"]))


def claims(study: xr.Dataset) -> list[str]:
    """Return the sentences that claim something."""
    return [text for text in summary(study) if text.startswith(("To this extent", "These trained networks"))]


def levels(study: xr.Dataset) -> dict[str, str]:
    return dict(zip(study["families"].values.tolist(), study["claim_level"].values.tolist(), strict=True))


def reasons(study: xr.Dataset) -> dict[str, str]:
    return dict(zip(study["families"].values.tolist(), study["claim_reason"].values.tolist(), strict=True))


def refused(study: xr.Dataset) -> bool:
    return not claims(study) and "universal" not in " ".join(summary(study)) and not any(levels(study).values())


# What is true is claimed


@pytest.mark.slow
def test_what_three_families_share_is_universal(tmp_path: Path) -> None:
    world = World(200)
    common = world.normal()
    study = conduct(tmp_path, world, {name: world.family(common) for name in "abc"}, trained=3, untrained=3)
    assert levels(study) == dict.fromkeys(["a x b", "a x c", "b x c"], "architectures")
    (claim,) = claims(study)
    assert "universal across these families" in claim
    assert "networks of every pair of a, b and c" in claim


@pytest.mark.slow
def test_two_of_three_families_are_named(tmp_path: Path) -> None:
    """Case A: the mean over pairs of families hid which of them share something."""
    world = World(200)
    common = world.normal()
    families = {"a": world.family(common), "b": world.family(common), "c": world.family(world.normal())}
    study = conduct(tmp_path, world, families, trained=3, untrained=3)
    assert levels(study) == {"a x b": "architectures", "a x c": "", "b x c": ""}
    (claim,) = claims(study)
    assert "universal across a and b: networks of a and b are" in claim
    refused = [text for text in summary(study) if text.startswith("Nothing learned is shown to be shared by")]
    assert all(sum(pair in text for text in refused) == 1 for pair in ("a x c", "b x c"))
    assert "common to families" in " ".join(summary(study))  # the share is not called universal


@pytest.mark.slow
def test_with_two_networks_of_three_families_the_networks_are_named(tmp_path: Path) -> None:
    """Case A: exchanging two trained and two untrained networks gives 1/36 at least, and that three times."""
    world = World(200)
    common = world.normal()
    families = {"a": world.family(common), "b": world.family(common), "c": world.family(world.normal())}
    study = conduct(tmp_path, world, families)
    assert levels(study) == {"a x b": "networks", "a x c": "", "b x c": ""}
    (claim,) = claims(study)
    assert "controls, on samples like these: a.seed0, a.seed1, b.seed0, b.seed1." in claim
    assert "universal" not in " ".join(summary(study))


@pytest.mark.slow
def test_what_goes_beyond_the_classes_is_said_to(tmp_path: Path) -> None:
    world = World(200)
    labels, common = np.arange(200) % 5, world.normal()
    by_class = 2 * np.eye(5)[labels]
    families = {name: world.family(common, by_class) for name in "ab"}
    study = conduct(tmp_path, world, families, trained=2, untrained=3, stored={"labels": labels})
    (claim,) = claims(study)
    assert "universal across these families, beyond the classes" in claim


# What is false is not claimed


@pytest.mark.slow
def test_pairs_without_controls_are_not_counted(tmp_path: Path) -> None:
    """Case B: c and d are related and have no untrained networks; a and b have some and are unrelated."""
    world = World(200)
    common = world.normal()
    families = {name: world.family(world.normal()) for name in "ab"}
    families |= {name: Family(world.layers(common), None) for name in "cd"}
    study = conduct(tmp_path, world, families)
    assert refused(study)
    assert reasons(study)["c x d"] == "no untrained network of c, d, so there is no control"
    assert np.isnan(study["effect"].sel(measure="cka", families="c x d"))
    assert int(study["pairs_counted"].sel(kind_of_pair="other family")) == 4


@pytest.mark.parametrize("swapped", [False, True])
@pytest.mark.slow
def test_each_half_trained_direction_is_a_control(tmp_path: Path, swapped: bool) -> None:
    """Case C: b's untrained networks hold already what a learns."""
    world = World(200)
    common = world.normal()
    families = {"a": world.family(common), "b": world.family(common, untrained=[common])}
    study = conduct(tmp_path, world, dict(sorted(families.items(), reverse=swapped)))
    assert refused(study)
    (reason,) = reasons(study).values()
    assert swapped or "not shown to be more alike than trained a with untrained b" in reason


@pytest.mark.slow
def test_classes_alone_are_not_universal(tmp_path: Path) -> None:
    """Case D: the networks share the class labels and nothing else."""
    world = World(300)
    labels = world.rng.integers(0, 10, 300)
    by_class = 2 * np.eye(10)[labels]
    study = conduct(
        tmp_path, world, {name: world.family(by_class) for name in "ab"}, untrained=3, stored={"labels": labels}
    )
    assert refused(study)
    assert "not beyond the classes" in reasons(study)["a x b"]


@pytest.mark.slow
def test_which_classes_are_alike_is_not_beyond_the_classes(tmp_path: Path) -> None:
    """Case D: the networks share random centres of the classes, and so which classes are near each other."""
    world = World(300)
    labels = world.rng.integers(0, 10, 300)
    by_class = 2 * world.rng.normal(size=(10, 5))[labels]
    study = conduct(
        tmp_path, world, {name: world.family(by_class) for name in "ab"}, untrained=3, stored={"labels": labels}
    )
    assert refused(study)
    assert "not beyond the classes" in reasons(study)["a x b"]


@pytest.mark.parametrize(("n", "classes", "depth"), [(150, 60, 2), (200, 10, 12)])
@pytest.mark.slow
def test_no_number_of_class_embeddings_is_beyond_the_classes(tmp_path: Path, n: int, classes: int, depth: int) -> None:
    """Case D: few samples a class, or another embedding of the classes in every layer, shared by both families."""
    world = World(n)
    labels = world.rng.integers(0, classes, n)
    embeddings = [2 * world.rng.normal(size=(classes, 5))[labels] for _ in range(depth)]

    def layers() -> Sequence[Array]:
        return [np.hstack([world.pixels, by_class, 0.7 * world.normal()]) for by_class in embeddings]

    families = {name: Family(layers, world.layers(depth=depth)) for name in "ab"}
    study = conduct(tmp_path, world, families, untrained=3, stored={"labels": labels})
    assert refused(study)
    assert "not beyond the classes" in reasons(study)["a x b"]
    (sentence,) = (text for text in summary(study) if "not beyond the classes" in text)
    assert sentence.startswith("Given the input, networks of a x b are more alike than the strongest control by ")


@pytest.mark.slow
def test_classes_of_single_samples_are_no_classes(tmp_path: Path) -> None:
    """The claim says nothing about classes, and a warning says that labels are not used."""
    world = World(150)
    common = world.normal()
    families = {name: world.family(common) for name in "ab"}
    study = conduct(tmp_path, world, families, untrained=3, stored={"labels": np.arange(150)})
    (claim,) = claims(study)
    assert "classes" not in claim
    assert "every sample is of a class of its own" in study.attrs["warnings"]


@pytest.mark.slow
def test_classes_that_cannot_be_judged_forbid_a_claim(tmp_path: Path) -> None:
    world = World(150)
    common = world.normal()
    families = {name: world.family(common) for name in "ab"}
    labels = np.maximum(np.arange(150), 5)
    study = conduct(tmp_path, world, families, untrained=3, stored={"labels": labels})
    assert refused(study)
    assert "it cannot be told whether anything goes beyond the classes" in reasons(study)["a x b"]


@pytest.mark.slow
def test_an_architecture_that_shares_nothing_is_not_hidden_in_its_family(tmp_path: Path) -> None:
    world = World(200)
    common = world.normal()
    families = {"a1": world.family(common), "a2": world.family(world.normal()), "b": world.family(common)}
    study = conduct(tmp_path, world, families, untrained=3, by_hand={"a": ["a1*", "a2*"]})
    assert refused(study)
    assert "trained networks of a2 with b are not shown to be more alike" in reasons(study)["a x b"]


@pytest.mark.slow
def test_a_network_that_shares_nothing_is_not_hidden_among_its_seeds(tmp_path: Path) -> None:
    world = World(200)
    common = world.normal()
    draws = iter([[common], [common], []])
    one = Family(lambda: world.layers(*next(draws))(), world.layers())  # noqa: PLW0108 - each network draws its own
    study = conduct(tmp_path, world, {"a": one, "b": world.family(common)}, trained=3, untrained=3)
    assert refused(study)
    assert "a.seed2 is not shown to be more alike" in reasons(study)["a x b"]


@pytest.mark.slow
def test_networks_of_one_seed_are_no_evidence_about_architectures(tmp_path: Path) -> None:
    """Networks share something with that of the same number only, so that each has a mean above 0."""
    world = World(200)
    shared = [world.normal() for _ in range(3)]
    families = {}
    for name in "ab":
        draws = iter(shared)
        families[name] = Family(lambda draws=draws: world.layers(next(draws))(), world.layers())  # type: ignore[misc]
    study = conduct(tmp_path, world, families, trained=3, untrained=3)
    assert levels(study) == {"a x b": "networks"}
    (claim,) = claims(study)
    assert "on average over their pairs" in claim
    assert "the interval over networks and samples begins at -" in claim


@pytest.mark.slow
def test_the_strongest_untrained_network_counts(tmp_path: Path) -> None:
    """One of three untrained networks, at another gain say, holds already what is learned."""
    world = World(200)
    common = world.normal()
    families = {}
    for name in "ab":
        draws = iter([[common], [], []])
        families[name] = Family(world.layers(common), lambda draws=draws: world.layers(*next(draws))())  # type: ignore[misc]
    study = conduct(tmp_path, world, families, untrained=3)
    assert refused(study)
    assert "untrained0) (" in reasons(study)["a x b"]


@pytest.mark.slow
def test_one_sample_is_no_evidence(tmp_path: Path) -> None:
    """The layers of both families share one sample that is far from all others."""
    world = World(200)
    far = np.zeros((200, 20))
    far[0] = 60
    families = {name: world.family(far) for name in "ab"}
    assert refused(conduct(tmp_path, world, families, untrained=3))


def random_networks(
    world: World, activation: Callable[[Array], Array], *, gain: float, bias: float, width: int = 256
) -> Layers:
    """Return layers of networks with random weights, which never saw data."""

    def draw() -> list[Array]:
        layers = [world.pixels]
        for _ in range(3):
            weights = world.rng.normal(size=(layers[-1].shape[1], width)) * gain / np.sqrt(layers[-1].shape[1])
            layers.append(activation(layers[-1] @ weights + bias * world.rng.normal(size=width)))
        return layers[1:]

    return draw


def clip(x: Array) -> Array:
    return np.clip(x, -1, 1)


@pytest.mark.parametrize("gain", [1.5, 2.5])
@pytest.mark.slow
def test_random_networks_of_another_gain_learned_nothing(tmp_path: Path, gain: float) -> None:
    """Case E: a linear kernel of the input does not explain them."""
    world = World(300)
    families = {
        name: Family(random_networks(world, act, gain=gain, bias=0.5), random_networks(world, act, gain=0.5, bias=0.1))
        for name, act in (("a", np.tanh), ("b", clip))
    }
    assert refused(conduct(tmp_path, world, families, untrained=3))


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.slow
def test_fresh_draws_of_untrained_networks_are_not_trained(tmp_path: Path, seed: int) -> None:
    """Case F: docs/statistics.md shows how often this goes wrong."""
    world = World(300, seed)
    families = {
        name: Family(*[random_networks(world, act, gain=1.5, bias=0.3)] * 2)
        for name, act in (("a", np.tanh), ("b", clip))
    }
    study = conduct(tmp_path, world, families, untrained=3)
    assert "universal" not in " ".join(summary(study))


@pytest.mark.slow
def test_twelve_unrelated_layers_are_not_related(tmp_path: Path) -> None:
    """Case H: the best match of many layers is above 0 by chance."""
    world = World(100)
    draw: Layers = lambda: [world.normal() for _ in range(12)]  # noqa: E731
    study = conduct(tmp_path, world, {name: Family(draw, draw) for name in "ab"}, trained=1, untrained=1)
    pair = study.sel(measure="cka").isel(pair=0)
    assert pair["split_half_low"] < 0 < pair["split_half_high"]
    assert np.isnan(pair["index_low"])
    assert "No stimuli stand out" in " ".join(summary(study))  # case J
    assert "no common component" in " ".join(summary(study))


@pytest.mark.slow
def test_fast_and_slow_networks_are_one_class(tmp_path: Path) -> None:
    """Case I: both families pass through the same four representations, at other depths."""
    world = World(200)
    stages = [world.normal(12) for _ in range(4)]

    def at(*depths: int) -> Layers:
        return lambda: [np.hstack([world.pixels, stages[k], 0.1 * world.normal(6)]) for k in depths]

    fast, slow = at(0, 1, 2, 3, 3, 3, 3), at(0, 0, 0, 0, 1, 2, 3)
    families = {"fast": Family(fast, world.layers(depth=7)), "slow": Family(slow, world.layers(depth=7))}
    study = conduct(tmp_path, world, families, untrained=3)
    shares = study["mean_share"].sel(state="trained")
    assert abs(float(shares.sel(share_of="family"))) < 0.02
    assert float(study["ratio"].sel(kernel="cka given input").item()) > 0.95
    assert study["cluster"].sel(map="cka given input").values.max() == 0
    assert claims(study)


def scenes(world: World, of_each: int) -> Array:
    """Return features that samples of one scene have almost in common."""
    count = world.n // of_each
    return 3 * np.repeat(world.rng.normal(size=(count, 20)), of_each, axis=0) + 0.3 * world.normal()


@pytest.mark.parametrize("declared", [False, True])
@pytest.mark.slow
def test_frames_of_a_scene_relate_no_networks(tmp_path: Path, declared: bool) -> None:
    """Case G: 30 scenes of 10 frames; the networks have nothing in common but that frames of a scene are alike."""
    world = World(300)
    world.pixels = np.repeat(world.rng.normal(size=(30, 12)), 10, axis=0) + 0.1 * world.normal(12)
    families = {name: Family(world.layers(scenes(world, 10)), world.layers()) for name in "ab"}
    groups = np.repeat(np.arange(30), 10)
    study = conduct(tmp_path, world, families, untrained=3, stored={"groups": groups} if declared else {})
    assert refused(study)
    if declared:
        row = study.sel(measure="cka given input", families="a x b")
        assert row["effect_low"] < 0
        assert abs(float(row["trained_value"])) < 0.2
    else:
        assert "not declared as groups" in reasons(study)["a x b"]
        assert "declare them as groups" in " ".join(json.loads(study.attrs["warnings"]))


@pytest.mark.slow
def test_the_number_of_permutations_is_enough_for_all_pairs(tmp_path: Path) -> None:
    """Case J: with 1,000 permutations Holm's smallest p-value of 55 pairs is above 0.05."""
    world = World(60)
    common = world.normal()
    draw = world.layers(common, depth=1)
    study = conduct(tmp_path, world, {"a": Family(draw, None)}, trained=11, untrained=0, permutations=None)
    assert "Independence is rejected for 55 of 55 pairs of models" in " ".join(summary(study))
    few = conduct(tmp_path / "few", world, {"a": Family(draw, None)}, trained=11, untrained=0, permutations=1000)
    assert "cannot be tested with 1000 permutations" in " ".join(summary(few))


@pytest.mark.slow
def test_networks_without_their_input_are_not_controlled(tmp_path: Path) -> None:
    """Case N: a text encoder beside networks of pictures."""
    world = World(200)
    common = world.normal()
    families = {"a": world.family(common), "text": world.family(common)}
    with ExitStack() as stack:
        stores = []
        for name, family in families.items():
            pixels = None if name == "text" else world.pixels
            for k, (layers, weights) in enumerate([(family.trained, "trained"), (family.untrained, "random")] * 2):
                assert layers is not None
                arrays = {f"layer{i}": x for i, x in enumerate(layers())}
                model = f"{name}.{weights}{k}"
                store = write_store(
                    tmp_path / f"{model}.h5", arrays, model=model, pixels=pixels,
                    provenance={"architecture": name, "weights": weights},
                )  # fmt: skip
                stores.append(stack.enter_context(store))
        study = universality(stores, ["cka"], permutations=19, draws=20, progress=False)
    assert refused(study)
    assert reasons(study)["a x text"].startswith("the input of text.trained0, text.trained2 is not stored")


@pytest.mark.slow
def test_measures_that_disagree_are_said_to_disagree(tmp_path: Path) -> None:
    """Case N: untrained networks are nearly one-dimensional and alike; trained ones share neighbours of samples."""
    world = World(300)
    common, contrast = 1.5 * world.normal(10), 3.2 * world.normal(1)
    trained = lambda: [np.hstack([common, world.normal()]) for _ in range(3)]  # noqa: E731
    untrained = lambda: [np.hstack([contrast, world.normal()]) for _ in range(3)]  # noqa: E731
    study = conduct(
        tmp_path, world, {name: Family(trained, untrained) for name in "ab"}, untrained=3, metrics=["cka", "mutual_knn"]
    )
    (sentence,) = [text for text in summary(study) if text.startswith("a x b: the measures")]
    assert "the measures disagree" in sentence
    assert "cka given input less alike" in sentence
    assert "mutual_knn more alike" in sentence
    assert refused(study)


@pytest.mark.slow
def test_one_architecture_in_two_families_shares_its_untrained_networks(tmp_path: Path) -> None:
    """Supervised and self-supervised networks of one architecture, as two families by hand."""
    world = World(150)
    common = world.normal()
    families = {"vit": world.family(common)}
    by_hand = {"supervised": ["vit.seed0", "vit.seed1"], "other": ["vit.seed2", "vit.seed3"]}
    study = conduct(tmp_path, world, families, trained=4, untrained=3, by_hand=by_hand)
    assert levels(study) == {"supervised x other": "networks"}
    assert "the untrained networks are those of both families" in reasons(study)["supervised x other"]
