"""Recovery of shared representations, with more features than samples and fewer."""

from collections.abc import Iterator

import numpy as np

from repsim.engine.null_moments import cubic_moments
from repsim.metrics.cka import CKA
from repsim.study.chance import pearson3, skewness
from repsim.study.partial_cka import partial
from simulations.cells import Cell, Simulation
from simulations.populations import Population
from simulations.studies import gram_kernels


def recovery(simulation: Simulation) -> Iterator[Cell]:
    """Yield estimates for layers that share a known part of their kernels, with n < p and n > p."""
    runs = 12 if simulation.quick else 600
    for seed, (n, p) in enumerate([(100, 240), (500, 60)]):
        part = f"shared, n = {n}, p = {p}"
        for r2 in (0.05, 0.25, 0.5):
            true = shared(r2, p)
            R = true.R
            exact = np.array([R[0, 1], R[2, 3], partial(R, [4])[2, 3]])
            estimates, small = np.empty((runs, 4)), 0.0
            for run in range(runs):
                rng = np.random.default_rng([4, seed, round(100 * r2), run])
                sample = gram_kernels(true.layers(rng, n), {})
                R = sample.cka()
                biased = CKA(estimator="biased").block(sample.grams[:1], sample.grams[1:2])[0, 0]
                estimates[run] = R[0, 1], R[2, 3], partial(R, [4])[2, 3], biased
                small += float(pearson3(R[0, 1], n, skewness(*cubic_moments(sample.grams[:2])))) <= 0.05
            mean, se = estimates.mean(0), estimates.std(0, ddof=1) / np.sqrt(runs)
            for k, name in enumerate(("CKA", "CKA, the input shared, too", "partial CKA")):
                row, off = f"{name} {exact[k]:.3g}", mean[k] - exact[k]
                yield Cell(part, row, "mean", mean[k], form="{:.4f}")
                yield Cell(part, row, "less the truth", off, -0.01, 0.01, "{:+.4f}")
                yield Cell(part, row, "in standard errors of the simulation", off / se[k], -3, 3, "{:+.1f}")
            row = f"CKA {exact[0]:.3g}"
            yield Cell(part, row, "biased CKA", mean[3], form="{:.4f}")
            yield Cell(part, row, "p <= 0.05 (Pearson III)", small / runs)
            simulation.say(f"recovery: n = {n}, p = {p}, r^2 = {r2}: {(mean[:3] - exact).round(4).tolist()}")


def shared(r2: float, p: int) -> Population:
    """Return five layers: two with CKA r2 that share a third of their latents, both with the input, and the input."""
    common, q = p // 3, 20
    own = p - common
    first, second = np.zeros((2, common + 2 * own + q))
    first[:common] = second[:common] = (r2 / common) ** 0.25
    first[common : common + own] = second[common + own : common + 2 * own] = ((1 - r2) / own) ** 0.25
    seen = np.r_[np.zeros(common + 2 * own), np.full(q, q**-0.25)]
    return Population(np.stack([first, second, first + seen, second + seen, seen]), {})
