"""Count how often studies of texts, and of pictures and texts, claim what is false or miss what is true.

    PYTHONPATH=. python scripts/validation/simulated_texts.py --studies 40

prints the table in docs/input-controls.md. Stores are written and read, and every study is a whole one. The worlds are
those of tests/study/worlds_of_texts.py.
"""

import argparse
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tests.study.worlds_of_texts import Family, World, clip, conduct, networks_of

Case = Callable[[int, int], tuple[World, Mapping[str, Family]]]
LEARNED, UNTRAINED = (2.5, 0.5), (0.5, 0.1)


def standardised(x: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return centred features with a mean standard deviation of 1."""
    return np.asarray((x - x.mean(0)) / x.std(0).mean())


def of_tokens(n: int, seed: int) -> tuple[World, Mapping[str, Family]]:
    """Return networks of random functions of counts of tokens."""
    world = World(n, seed)
    return world, networks_of(world, standardised(world.counts), learned=LEARNED, untrained=UNTRAINED)


def of_shares(n: int, seed: int) -> tuple[World, Mapping[str, Family]]:
    """Return networks of random functions of shares of tokens, as of means of random embeddings."""
    world = World(n, seed)
    shares = world.counts / world.counts.sum(1, keepdims=True)
    return world, networks_of(world, standardised(shares), learned=LEARNED, untrained=UNTRAINED)


def of_presence(n: int, seed: int) -> tuple[World, Mapping[str, Family]]:
    """Return networks of random functions of which tokens occur."""
    world = World(n, seed)
    return world, networks_of(world, standardised(np.minimum(world.counts, 1)), learned=LEARNED, untrained=UNTRAINED)


def of_characters(n: int, seed: int) -> tuple[World, Mapping[str, Family]]:
    """Return networks of random functions of counts of letters."""
    world = World(n, seed)
    letters = np.array([[text.count(letter) for letter in "abcdefgh "] for text in world.texts], np.float64)
    return world, networks_of(world, standardised(letters), learned=LEARNED, untrained=UNTRAINED)


def of_topics(n: int, seed: int) -> tuple[World, Mapping[str, Family]]:
    """Return networks of random functions of pictures and of texts, both of which depend on topics."""
    world = World(n, seed, topics=1.0)
    seen = {"eye": standardised(world.pixels), "reader": standardised(world.counts)}
    functions: dict[str, Callable[[NDArray[np.float64]], NDArray[np.float64]]] = {"eye": np.tanh, "reader": clip}
    return world, {
        name: Family(
            world.network(x, functions[name], gain=LEARNED[0], bias=LEARNED[1]),
            world.network(x, functions[name], gain=UNTRAINED[0], bias=UNTRAINED[1]),
            "pictures" if name == "eye" else "texts",
        )
        for name, x in seen.items()
    }


def of_classes(n: int, seed: int) -> tuple[World, Mapping[str, Family]]:
    """Return networks of pictures and of texts that share the class alone."""
    labels = np.random.default_rng(seed + 1000).integers(0, 5, n)
    return _beyond(World(n, seed, labels=labels), 2 * np.eye(5)[labels])


def of_latent(n: int, seed: int) -> tuple[World, Mapping[str, Family]]:
    """Return networks of pictures and of texts that share a latent beyond both."""
    world = World(n, seed)
    return _beyond(world, world.normal())


def _beyond(world: World, common: NDArray[np.float64]) -> tuple[World, Mapping[str, Family]]:
    return world, {
        "eye": Family(world.layers(world.pixels, common), world.layers(world.pixels), "pictures"),
        "reader": Family(world.layers(world.counts, common), world.layers(world.counts)),
    }


CASES: dict[str, Case] = {
    "texts, functions of counts of tokens": of_tokens,
    "texts, functions of shares of tokens": of_shares,
    "texts, functions of which tokens occur": of_presence,
    "texts, functions of counts of letters": of_characters,
    "pictures x texts, functions of inputs with common topics": of_topics,
    "pictures x texts, the class alone": of_classes,
    "pictures x texts, a latent beyond both": of_latent,
}


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--studies", type=int, default=20)
    parser.add_argument("--samples", type=int, nargs="+", default=[200])
    parser.add_argument("--trained", type=int, default=3, help="trained networks of each family, beside 3 untrained")
    parser.add_argument("--cases", type=int, nargs="+", default=list(range(len(CASES))), help="numbers from 0")
    arguments = parser.parse_args()
    print("| networks share | n | studies | universal | these networks | mean effect, energy | largest |")
    print("| --- | --: | --: | --: | --: | --: | --: |")
    for name, make in [list(CASES.items())[k] for k in arguments.cases]:
        for n in arguments.samples:
            levels, effects = [], []
            for seed in range(arguments.studies):
                world, families = make(n, seed)
                with tempfile.TemporaryDirectory() as folder:
                    study = conduct(Path(folder), world, families, trained=arguments.trained)
                levels += study["claim_level"].values.tolist()
                kind = "cka given input"
                effects.append(float(study["effect_energy"].sel(kernel=kind).item()))
                print(name, n, seed, levels[-1], effects[-1], file=sys.stderr, flush=True)
            shares = [np.mean([level == one for level in levels]) for one in ("architectures", "networks")]
            row = [name, f"{n:,}", len(levels), *(f"{share:.0%}" for share in shares)]
            print("|", *(f"{cell} |" for cell in [*row, f"{np.mean(effects):.4f}", f"{max(effects):.4f}"]), flush=True)


if __name__ == "__main__":
    main()
