"""Tests of the comparison of two networks that share nothing, and of single pairs of layers."""

from collections.abc import Iterator

import numpy as np
from scipy import special

from repsim.engine.null_moments import cubic_moments
from repsim.engine.resampling import random_permutations
from repsim.study import permutation_nulls
from repsim.study.blocks import Block
from repsim.study.chance import p_value, pearson3, skewness, z_value
from repsim.study.design import Design
from repsim.study.gram_passes import Kernels, permuted_values
from repsim.study.indices import RAW
from simulations.cells import ANY, Cell, Numbers, Simulation
from simulations.studies import Array, gram_kernels, member

_MEMORY = 2**30
_ALPHAS = (0.05, 0.01, 0.001)
_DEPTHS = {"a": 8, "b": 10}
_PAIR = Design(tuple(member(name, name.upper(), layers=depth) for name, depth in _DEPTHS.items()), ())
_WIDTH = 40


def spectrum(kind: str, count: int) -> Array:
    """Return ``count`` singular values, the first of which is 1."""
    if kind == "flat":
        return np.ones(count)
    return 1 / np.arange(1, count + 1) if kind == "1/i" else np.r_[1, np.full(count - 1, 0.2)]


def unrelated(rng: np.random.Generator, kind: str, n: int, *, control: str | None) -> Kernels:
    """Draw two unrelated networks of 8 and 10 layers; within a network, debiased CKA of two layers is about 0.6.

    The features of a layer are the sum of a part that all layers of the network share and a part of its own, which is
    half as large. With ``control`` "the input", every layer also has the features of the input, and the input is a
    control. With "filtered", each network mixes the features of the input with a random matrix.
    """
    scale, layers = spectrum(kind, _WIDTH), []
    u = rng.normal(size=(n, _WIDTH)) * scale
    for depth in _DEPTHS.values():
        common = rng.normal(size=(n, _WIDTH))
        seen = u @ rng.normal(size=(_WIDTH, _WIDTH)) / np.sqrt(_WIDTH) if control == "filtered" else u
        for _ in range(depth):
            own = (common + rng.normal(size=(n, _WIDTH)) / 2) * scale
            layers.append(np.hstack([own, seen]) if control else own)
    ends = np.cumsum([0, *_DEPTHS.values()])
    of = {name: np.arange(*ends[k : k + 2]) for k, name in enumerate(_DEPTHS)}
    return gram_kernels([*layers, u], of | {"input": np.array([ends[-1]])}) if control else gram_kernels(layers, of)


def null(simulation: Simulation, n: int = 100, count: int = 199) -> Iterator[Cell]:
    """Yield the rates at which the tests reject for networks that share nothing."""
    part, (runs, few) = "rejected at 5 %", (8, 2) if simulation.quick else (1000, 200)
    cases = [
        *((f"nothing shared, spectrum {kind}", kind, None, runs) for kind in ("flat", "1/i")),
        *((f"the input shared, and given; spectrum {kind}", kind, "the input", runs) for kind in ("flat", "1/i")),
        ("each network mixes the input in its own way, the input given; flat (no null)", "flat", "filtered", few),
    ]
    for seed, (row, kind, control, times) in enumerate(cases):

        def one(run: int, seed: int = seed, kind: str = kind, control: str | None = control) -> Numbers:
            drawn = unrelated(np.random.default_rng([1, seed, run]), kind, n, control=control)
            R, key = drawn.cka(), ("input" if control else RAW, "a x b")
            parts = permutation_nulls.reduced(drawn, _PAIR, [Block(_PAIR.members, _PAIR.members)], _MEMORY)
            kinds = [RAW, "input"] if control else [RAW]
            tested = permutation_nulls.cka_nulls(parts, kinds, lambda of, _: of.permutations(count, run))
            ps = p_value(tested[key].observed, tested[key].permuted)
            naive = {} if control else {"smallest p of a layer pair": smallest(drawn, R)}
            return {"MBM": float(ps[0]), "maximum": float(ps[1])} | naive

        p_values = simulation.runs(f"null {row}", times, one)
        if not p_values:
            continue
        low, high = (0.035, 0.065) if control != "filtered" else ANY
        yield Cell(part, row, "runs", len(p_values["MBM"]), form="{:,}")
        for column in ("MBM", "maximum", "smallest p of a layer pair"):
            if column in p_values:
                bounds = ANY if "smallest" in column else (low, high)
                yield Cell(part, row, column, float(np.mean(p_values[column] <= 0.05)), *bounds)


def smallest(drawn: Kernels, R: Array) -> float:
    """Return the p-value of the naive test: the smallest p-value of all pairs of layers, without a correction."""
    a, b = drawn.positions["a"], drawn.positions["b"]
    cubic = cubic_moments(drawn.grams)
    skewed = np.array([[skewness(cubic[i], cubic[j]) for j in b] for i in a])
    return float(pearson3(R[np.ix_(a, b)], drawn.n, skewed).min())


def pearson(simulation: Simulation, n: int = 100) -> Iterator[Cell]:
    """Yield the rates at which p-values of single layer pairs are at most alpha, over random permutations."""
    part, count = "share of permutations with p at most alpha, over alpha", 10_000 if simulation.quick else 100_000
    for seed, kinds in enumerate([("flat", "flat"), ("1/i", "1/i"), ("flat", "1/i"), ("one direction",) * 2]):
        rng = np.random.default_rng([2, seed])
        layers = [rng.normal(size=(n, _WIDTH)) * spectrum(kind, _WIDTH) for kind in kinds]
        pair = gram_kernels(layers, {})
        gamma = skewness(*cubic_moments(pair.grams))
        a, b = np.array([[0], [1]])
        values = [
            permuted_values(pair, a, b, random_permutations(n, 10_000, k), memory=_MEMORY).ravel()
            for k in range(count // 10_000)
        ]
        drawn = np.concatenate(values)
        ps, normal = pearson3(drawn, n, gamma), special.ndtr(-z_value(drawn, n))
        row = " x ".join(dict.fromkeys(kinds))
        yield Cell(part, row, "skewness", gamma, form="{:.2f}")
        for alpha in _ALPHAS:
            rate = float((ps <= alpha).mean() / alpha)
            yield Cell(part, row, f"Pearson III, {alpha}", rate, 1 / 1.5, 1.5, "{:.2f}")
        for alpha in _ALPHAS:
            yield Cell(part, row, f"normal, {alpha}", float((normal <= alpha).mean() / alpha), form="{:.2f}")
        simulation.say(f"pearson: {row}, skewness {gamma:.2f}")
