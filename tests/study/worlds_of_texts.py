"""Worlds of texts and pictures of which the truth is known, for tests of sentences and scripts/validation."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
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
    """Weight of the topics in both inputs."""
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


def networks_of(world: World, x: Array, *, learned: Sequence[float], untrained: Sequence[float]) -> dict[str, Family]:
    """Return two families of random networks that see x; ``learned`` and ``untrained`` are their gain and bias."""
    return {
        name: Family(
            world.network(x, activation, gain=learned[0], bias=learned[1]),
            world.network(x, activation, gain=untrained[0], bias=untrained[1]),
        )
        for name, activation in (("a", np.tanh), ("b", clip))
    }


def clip(x: Array) -> Array:
    """Return x, at most 1 and at least -1: a network that is no tanh."""
    return np.clip(x, -1, 1)
