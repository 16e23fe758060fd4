"""Count how often `repsim.block_structure` is wrong, on networks of which the truth is known (docs/blocks.md).

Usage: python scripts/validation/simulated_blocks.py [--networks 200] [--samples 200]
"""

from dataclasses import dataclass

import click
import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
LAYERS, WIDTH = 8, 30


@dataclass(frozen=True)
class Truth:
    """Verdict that is right for a network, and its block."""

    verdict: int | None
    """1 made by first components, 0 remains, None no block."""
    block: tuple[str, str] = ("layer2", "layer6")


SCENARIOS = {
    "shared component": Truth(1),
    "weaker shared component": Truth(1),
    "copies": Truth(0),
    "copies with a dominant component": Truth(0),
    "gradual change": Truth(0, ("layer0", "layer7")),
    "unrelated": Truth(None),
}
"""Networks by name. Of the first four, layers 2 to 6 are alike; the others are unrelated to them."""


def make(scenario: str, rng: np.random.Generator, n: int) -> dict[str, Array]:
    """Return the layers of a network: eight layers of 30 units."""
    common, copy = rng.normal(size=(n, 1)), rng.normal(size=(n, WIDTH))
    layers, previous = {}, copy
    for k in range(LAYERS):
        own = rng.normal(size=(n, WIDTH))
        rotation = np.linalg.qr(rng.normal(size=(WIDTH, WIDTH)))[0]
        direction = common @ rotation[:1]
        if scenario == "gradual change":
            previous = np.sqrt(1 - 0.01) * previous + 0.1 * own
            x = previous
        elif scenario == "unrelated" or not 2 <= k <= 6:
            x = own
        elif "component" in scenario and "copies" not in scenario:
            x = (24 if scenario == "shared component" else 14) * direction + own
        else:
            x = (copy + 0.1 * own) @ rotation + (24 * direction if "dominant" in scenario else 0)
        layers[f"layer{k}"] = x
    return layers


def half(rng: np.random.Generator, n: int) -> dict[str, Array]:
    """Return a network of which just half of the similarity is left without first components."""
    common, copy = rng.normal(size=(n, 1)), rng.normal(size=(n, WIDTH))
    layers = {}
    for k in range(LAYERS):
        rotation = np.linalg.qr(rng.normal(size=(WIDTH, WIDTH)))[0]
        x = (copy + HALF * rng.normal(size=(n, WIDTH))) @ rotation + 24 * common @ rotation[:1]
        layers[f"layer{k}"] = x if 2 <= k <= 6 else rng.normal(size=(n, WIDTH))
    return layers


HALF = (2**0.5 - 1) ** 0.5
"""Standard deviation of the noise with which the CKA of the rest, 1 / (1 + HALF^2)^2, is one half."""


@click.command()
@click.option("--networks", default=200, show_default=True)
@click.option("--samples", default=200, show_default=True)
def main(networks: int, samples: int) -> None:
    """Print a line for every kind of network: how many verdicts are right, undecided and wrong."""
    from repsim.trends.block_structure import block_structure  # noqa: PLC0415 - after --help

    rng = np.random.default_rng(0)
    print("| network | truth | right | undecided | wrong |\n|---|---|--:|--:|--:|")
    words = {1: "block structure", 0: "alike without first components", None: "no block"}
    for scenario, truth in SCENARIOS.items():
        right = undecided = 0
        for _ in range(networks):
            verdicts = block_structure(make(scenario, rng, samples))["verdict"].values.tolist()
            right += verdicts == ([] if truth.verdict is None else [truth.verdict])
            undecided += 2 in verdicts
        wrong = networks - right - undecided
        print(f"| {scenario} | {words[truth.verdict]} | {right} | {undecided} | {wrong} |", flush=True)
    counts = {0: 0, 1: 0, 2: 0}
    left = []
    for _ in range(networks):
        made = block_structure(half(rng, samples))
        left.append(made["left"].values.mean())
        for verdict in made["verdict"].values.tolist():
            counts[verdict] += 1
    print(f"half is left (mean {np.mean(left):.3f}): {counts[1]} made by it, {counts[0]} remain, {counts[2]} undecided")


if __name__ == "__main__":
    main()
