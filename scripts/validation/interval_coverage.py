#!/usr/bin/env python3
"""Simulate intervals of similarities, tests of their differences, and the bootstrap, and print the tables of the docs.

Layers consist of blocks of independent latents, so that CKA of infinitely many samples is the cosine of their squared
loadings. Every number calls the public functions, `repsim.similarity` and `repsim.similarity_difference`. Usage:

    scripts/validation/interval_coverage.py [RUNS]
"""

import sys
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

import repsim

Array = NDArray[np.float64]
Loads = Mapping[str, float]
"""A layer: names of blocks of latents, and their weights."""

LATENTS = 20
"""Latents of a block."""
SAMPLES = (50, 200, 1000)
LEVEL = 0.95


@dataclass(frozen=True)
class World:
    """Three layers A, B and C; is A nearer to B than to C?"""

    name: str
    a: Loads
    b: Loads
    c: Loads
    group: int = 1
    """Samples of a group, which have a correlation of 0.9."""
    heavy: bool = False
    """Whether all latents of a sample are multiplied by one random factor, so that features are t with 5 degrees."""


WORLDS = (
    World("equally near, B and C share nothing", {"s": 1, "t": 1}, {"s": 1, "b": 0.8}, {"t": 1, "c": 0.8}),
    World("equally near, B and C share the same", {"s": 1, "a": 1}, {"s": 1, "b": 1}, {"s": 1, "c": 1}),
    World(
        "equally near, B and C almost equal",
        {"s": 1, "a": 1}, {"s": 1, "t": 1, "b": 0.3}, {"s": 1, "t": 1, "c": 0.3},
    ),
    World("equally near, samples with heavy tails", {"s": 1, "a": 1}, {"s": 1, "b": 1}, {"s": 1, "c": 1}, heavy=True),
    World("equally near, groups of 4", {"s": 1, "a": 1}, {"s": 1, "b": 1}, {"s": 1, "c": 1}, group=4),
    World("A unrelated to B and to C", {"a": 1}, {"s": 1, "b": 1}, {"s": 1, "c": 1}),
    World("nearer to B", {"s": 1, "a": 1}, {"s": 1, "b": 0.9}, {"s": 1, "c": 1.1}),
)  # fmt: skip


@dataclass(frozen=True)
class Coverage:
    """Shares of the simulated data sets."""

    truth: float
    """CKA of A and B over infinitely many samples."""
    mean: float
    """Mean of the values."""
    covered: float
    """Share of the data sets whose interval of CKA of A and B holds the truth."""
    difference: float
    """True difference."""
    difference_covered: float
    """Share of the data sets whose interval of the difference holds the true one."""
    rejected: float
    """Share of the data sets with p <= 0.05."""


def spectrum(kind: str) -> Array:
    """Return the standard deviations of the latents of a block: ``flat``, or falling like ``1/i``."""
    return np.ones(LATENTS) if kind == "flat" else 1 / np.arange(1, LATENTS + 1)


def true_cka(a: Loads, b: Loads) -> float:
    """Return CKA over infinitely many samples: the cosine of squared loadings."""
    dot, norm_a, norm_b = (sum(x[k] ** 2 * y.get(k, 0.0) ** 2 for k in x) for x, y in ((a, b), (a, a), (b, b)))
    return float(dot / np.sqrt(norm_a * norm_b))


def draw(world: World, n: int, kind: str, rng: np.random.Generator) -> tuple[Array, Array, Array]:
    """Draw n samples of the three layers."""
    numbers = np.arange(n) // world.group

    def block() -> Array:
        own = rng.normal(size=(n, LATENTS))
        if world.group > 1:
            own = np.sqrt(0.9) * rng.normal(size=(numbers.max() + 1, LATENTS))[numbers] + np.sqrt(0.1) * own
        return np.asarray(own * spectrum(kind))

    blocks = {name: block() for name in sorted({*world.a, *world.b, *world.c})}
    factor = np.sqrt(5 / rng.chisquare(5, size=(n, 1))) if world.heavy else 1.0
    layers = [np.hstack([weight * blocks[name] for name, weight in of.items()]) for of in (world.a, world.b, world.c)]
    a, b, c = (factor * layer for layer in layers)
    return a, b, c


def coverage(world: World, n: int, kind: str, runs: int, *, seed: int = 0) -> Coverage:
    """Simulate ``runs`` data sets of n samples, with their intervals and tests."""
    truth, other = true_cka(world.a, world.b), true_cka(world.a, world.c)
    groups = np.arange(n) // world.group if world.group > 1 else None
    rows = []
    for run in range(runs):
        a, b, c = draw(world, n, kind, np.random.default_rng([seed, run]))
        estimate = repsim.similarity(a, b, interval=LEVEL, groups=groups)
        difference = repsim.similarity_difference((a, b), (a, c), level=LEVEL, groups=groups)
        rows.append([
            estimate.value, estimate.low <= truth <= estimate.high,
            difference.low <= truth - other <= difference.high, difference.p <= 1 - LEVEL,
        ])  # fmt: skip
    mean, covered, difference_covered, rejected = np.mean(rows, 0).tolist()
    return Coverage(truth, mean, covered, truth - other, difference_covered, rejected)


def bootstrap_mean(x: Array, y: Array, draws: int = 50, seed: int = 0) -> float:
    """Return the mean of debiased CKA over samples that are drawn with replacement."""
    rng = np.random.default_rng(seed)
    picks = (rng.integers(len(x), size=len(x)) for _ in range(draws))
    return float(np.mean([repsim.similarity(x[pick], y[pick]) for pick in picks]))


def main(runs: int) -> None:
    """Print the tables of docs/statistics.md."""
    settings = [(kind, n) for n in SAMPLES for kind in ("flat", "1/i")]
    heads = " | ".join(f"{kind}, n = {n:,}" for kind, n in settings)
    rule = "| --- | --: |" + " --: |" * len(settings)
    results = [
        (world, [coverage(world, n, kind, runs if n < 1000 else runs // 2) for kind, n in settings]) for world in WORLDS
    ]
    print(f"| interval of CKA of A and B holds the truth | truth | {heads} |", rule, sep="\n")
    for world, cells in results:
        print(f"| {world.name} | {cells[0].truth:.3f} | " + " | ".join(f"{x.covered:.1%}" for x in cells) + " |")
    print(f"\n| interval of the difference holds the truth | truth | {heads} |", rule, sep="\n")
    for world, cells in results:
        shares = " | ".join(f"{x.difference_covered:.1%}" for x in cells)
        print(f"| {world.name} | {cells[0].difference:.3f} | {shares} |")
    print(f"\n| p <= 0.05 | difference | {heads} |", rule, sep="\n")
    for world, cells in results:
        print(f"| {world.name} | {cells[0].difference:.3f} | " + " | ".join(f"{x.rejected:.1%}" for x in cells) + " |")
    print(
        "\n| unrelated layers, n = 100 | debiased CKA | mean of 50 bootstrap draws |", "| --- | --: | --: |", sep="\n"
    )
    for p in (10, 100, 1000):
        rng = np.random.default_rng(p)
        x, y = rng.normal(size=(2, 100, p))
        print(f"| {p:,} features | {repsim.similarity(x, y):.3f} | {bootstrap_mean(x, y):.3f} |")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 1000)
