"""Claims about networks that learned nothing."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import cast

import numpy as np
import xarray as xr

from repsim.results.variables import CONTROL_PAIRS
from repsim.runtime import tuning
from repsim.study.block_sums import draw_halves
from repsim.study.blocks import Block, sides
from repsim.study.claim_parts import parts_of
from repsim.study.claims import decide
from repsim.study.dataset_families import cases_of, effects_of_families, family_pairs, pairs_of_families
from repsim.study.design import Design
from repsim.study.estimation import Estimates, splits_for
from repsim.study.gram_passes import Kernels
from repsim.study.indices import Indices, Maps, cross_fitted, mean_over_splits
from repsim.study.inference import Inference
from simulations.cells import Cell, Numbers, Simulation
from simulations.studies import AnyKernels, Array, FeatureKernels, evidence_of, families, inference, places, sums_of


def pixel_networks(rng: np.random.Generator, design: Design, n: int, width: int = 20) -> FeatureKernels:
    """Draw random networks of three layers that see 12 pixels; those called trained are drawn like the others.

    Each family has an activation function of its own: tanh, clipped linear, rectified linear. Weights have gain 2.5,
    biases a standard deviation of 0.5.
    """
    functions: dict[str, Callable[[Array], Array]] = {
        "A": np.tanh, "B": lambda h: np.clip(h, -1, 1), "C": lambda h: np.maximum(h, 0)
    }  # fmt: skip
    x = rng.normal(size=(n, 12))
    layers = []
    for network in design.members:
        h = x
        for _ in network.layers:
            W = rng.normal(size=(h.shape[1], width)) * 2.5 / np.sqrt(h.shape[1])
            h = functions[network.family](h @ W + 0.5 * rng.normal(size=width))
            layers.append(h)
    return FeatureKernels((*layers, x), places(design, 1))


def latent_networks(rng: np.random.Generator, design: Design, n: int) -> FeatureKernels:
    """Draw networks of one layer: 4 latents of the input, and 12 others with random loadings, alike within a family."""
    z = rng.normal(size=(n, 16))
    of_family = {network.family: rng.exponential(size=12) for network in design.members}
    layers = [
        z * np.r_[np.full(4, 0.9), np.sqrt(of_family[network.family] * rng.lognormal(0, 0.8, 12))]
        for network in design.members
    ]
    return FeatureKernels((*layers, z[:, :4]), places(design, 1))


def levels(study: Inference) -> tuple[dict[str, float], xr.Dataset]:
    """Return how many pairs of families are claimed, each pair on its own as in a study of two families, and all.

    The table of effects comes with it.
    """
    pairs = family_pairs(study)
    parts = [parts_of(study, families) for families in pairs]
    table = effects_of_families(study, pairs, parts)
    cases = cases_of(study, pairs, parts, table)
    alone = [decide([case], dependent=False)[0].level for case in cases]
    together = [decision.level for decision in decide(cases, dependent=False)]
    counts: dict[str, float] = {
        "pair, architectures": float(np.mean([level == "architectures" for level in alone])),
        "pair, networks": float(np.mean([level != "" for level in alone])),
        "any, architectures": "architectures" in together,
        "any, networks": any(together),
        "all, architectures": all(level == "architectures" for level in together),
        "all, networks": all(together),
    }
    return {name: float(count) for name, count in counts.items()} | exchanged(table), table


def exchanged(table: xr.Dataset) -> dict[str, float]:
    """Return the share of pairs of families for which the exact test rejects at 5 %."""
    return {"exchange": float((table["p_exchange"].sel(kernel="cka given input") <= 0.05).mean())}


def without_intervals(design: Design, kernels: AnyKernels, seed: int) -> Inference:
    """Estimate the indices of a study on halves of the samples only: all that the exact test needs."""
    of = cast("Kernels", kernels)
    size = len(kernels.names)

    def along(maps: Maps) -> Indices:
        return Indices(design, kernels.positions, size, maps)

    halves = draw_halves(of.unit_of, splits_for(of.n), seed)
    sums = sums_of(kernels)(of, sides(Block(design.members, design.members), design, of.positions), halves)
    parts, maps = cross_fitted(along, sums.halves())
    indices = along(maps)
    by_split = indices.assembled(parts)
    theta = mean_over_splits(by_split)
    none, unknown = np.full((2, len(theta)), np.nan), np.full((1, size, size), np.nan)
    return evidence_of(
        design, kernels,
        Estimates(unknown, indices, theta, theta, by_split, none, {}, (np.nan,), np.full(size, np.nan), None, None),
    )  # fmt: skip


def by_the_rule_of_0_2(study: Inference) -> float:
    """Return whether the rule of version 0.2 calls the networks universal: an interval over samples above 0.

    It is that of the mean plain index of all pairs of trained networks of different families, given the input, minus
    that of their best control, with the mean of both half-trained directions as one control.
    """
    pairs = [pair for pair in study.pairs if pair.relation == "other family"]
    trained = study.mean_of("input", pairs, "best")
    both, *half = (study.mean_of_controls("input", pairs, name, "best") for name in CONTROL_PAIRS)
    halved = {column: sum(one.get(column, 0.0) for one in half) / 2 for column in {**half[0], **half[1]}}
    level = [sum(study.theta[column] * weight for column, weight in control.items()) for control in (both, halved)]
    best = both if level[0] >= level[1] else halved
    columns = sorted({*trained, *best})
    return float(study.estimate({c: trained.get(c, 0.0) - best.get(c, 0.0) for c in columns}, "input").low > 0)


@dataclass(frozen=True)
class ClaimsCase:
    """Networks that learned nothing, and whether all of the rule is applied to them or the exact test only."""

    design: Design
    draw: Callable[[np.random.Generator, Design, int], FeatureKernels]
    n: int
    complete: bool
    seed: int

    def claimed(self, run: int) -> Numbers:
        """Draw networks and samples; return what is claimed."""
        kernels = self.draw(np.random.default_rng([6, self.seed, run]), self.design, self.n)
        with tuning.using(halvings=2):
            if not self.complete:
                return exchanged(pairs_of_families(without_intervals(self.design, kernels, run)))
            study = inference(self.design, kernels, run)
        return levels(study)[0] | {"old": by_the_rule_of_0_2(study)}


def claims(simulation: Simulation) -> Iterator[Cell]:
    """Yield how often something learned is claimed of networks that learned nothing."""
    part, flat = "claims about networks that learned nothing", families(3, 2, 3, layers=1)
    cases: list[tuple[str, Design, Callable[..., FeatureKernels], int, bool]] = [
        ("three families, networks of latents, n = 1,000", flat, latent_networks, 1000, True),
        ("two families, networks of latents, n = 3,000", families(2, 2, 3, layers=1), latent_networks, 3000, True),
        ("three families, networks of 12 pixels, n = 1,000", families(3, 2, 3), pixel_networks, 1000, False),
        ("three families, networks of 12 pixels, n = 3,000", families(3, 2, 3), pixel_networks, 3000, False),
        ("two families, networks of 12 pixels, n = 1,000", families(2, 2, 3), pixel_networks, 1000, True),
    ]
    if simulation.quick:
        cases = [("three families, networks of latents, n = 1,000", flat, latent_networks, 100, True)]
    for seed, (row, of, draw, n, complete) in enumerate(cases):

        def one(run: int, case: ClaimsCase = ClaimsCase(of, draw, n, complete, seed)) -> Numbers:
            return case.claimed(run)

        runs = 20 if simulation.quick else 400
        numbers = simulation.runs(f"claims {row}", runs, one)
        if not numbers:
            continue
        yield Cell(part, row, "studies", len(numbers["exchange"]), form="{:,}")
        yield Cell(part, row, "exchange test, p <= 0.05", float(numbers["exchange"].mean()), 0, 0.065)
        if complete:
            for column, name in (
                ("architectures, of two families", "pair, architectures"),
                ("architectures, any of three", "any, architectures"),
                ("architectures, all three", "all, architectures"),
            ):
                yield Cell(part, row, column, float(numbers[name].mean()), 0, 0.05)
            for column, name in (
                ("networks, of two families", "pair, networks"),
                ("networks, all three", "all, networks"),
                ("universal in version 0.2", "old"),
            ):
                yield Cell(part, row, column, float(numbers[name].mean()))
