#!/usr/bin/env python3
"""Validate the statistics of a study by simulation: see ``validate_statistics.py --help``."""

import json
import re
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import cast

import click
import numpy as np
import torch
import xarray as xr
from numpy.typing import NDArray
from scipy import special
from simulated_studies import (
    AnyKernels,
    Array,
    FeatureKernels,
    evidence_of,
    families,
    gram_kernels,
    inference,
    member,
    places,
    some_of,
    sums_of,
)

from repsim.engine.null_moments import cubic_moments
from repsim.engine.resampling import random_permutations
from repsim.engine.uncertainty import jackknife, quantile
from repsim.metrics.cka import CKA
from repsim.metrics.recipes.groups import Groups
from repsim.results.variables import CONTROL_PAIRS
from repsim.runtime import tuning
from repsim.study import permutation_nulls
from repsim.study.block_sums import draw_halves
from repsim.study.blocks import Block, sides
from repsim.study.chance import p_value, pearson3, skewness, z_value
from repsim.study.claim_parts import parts_of
from repsim.study.claims import decide
from repsim.study.dataset_families import cases_of, effects_of_families, family_pairs, pairs_of_families
from repsim.study.dataset_pairs import pairs_of_models
from repsim.study.design import Design, Pair
from repsim.study.estimation import Estimates, splits_for
from repsim.study.gram_passes import Kernels, permuted_values
from repsim.study.indices import RAW, TWINS, Indices, Maps, cross_fitted, matches_on, mean_over_splits
from repsim.study.inference import Inference
from repsim.study.partial_cka import partial

Numbers = Mapping[str, float]

_MEMORY = 2**30
_ALPHAS = (0.05, 0.01, 0.001)
_ANY = (-np.inf, np.inf)
_COVERAGE = (0.93, 0.97)


# --- results


@dataclass(frozen=True)
class Cell:
    """One number of a table, with its bounds if it has any."""

    part: str
    row: str
    column: str
    value: float
    low: float = -np.inf
    high: float = np.inf
    form: str = "{:.1%}"

    @property
    def kept(self) -> bool:
        """Whether the value is within its bounds."""
        return self.low <= self.value <= self.high

    @property
    def bounded(self) -> bool:
        """Whether the value has bounds."""
        return bool(np.isfinite(self.low))

    @property
    def text(self) -> str:
        """Text for the table: bold and with a cross if the value is out of bounds."""
        text = self.form.format(self.value)
        return text if self.kept else f"**{text}** ✗"


def tables(cells: Sequence[Cell], seconds: dict[str, float]) -> str:
    """Return one table in Markdown for every part."""
    blocks = []
    for part in dict.fromkeys(cell.part for cell in cells):
        texts = {(cell.row, cell.column): cell.text for cell in cells if cell.part == part}
        columns = list(dict.fromkeys(column for _, column in texts))
        lines = [[part, *columns], ["---", *["--:"] * len(columns)]]
        lines += [[row, *(texts.get((row, c), "") for c in columns)] for row in dict.fromkeys(row for row, _ in texts)]
        blocks.append("\n".join(f"| {' | '.join(line)} |" for line in lines))
    outside, bounded = sum(not cell.kept for cell in cells), sum(cell.bounded for cell in cells)
    spent = ", ".join(f"{name} {count:,.0f}" for name, count in seconds.items())
    return "\n\n".join([*blocks, f"Out of bounds (✗): {outside} of {bounded}. CPU seconds: {spent}."])


# --- runs


@dataclass(eq=False)
class Simulation:
    """Settings of all parts: what they say while they work, how many runs they make, where the numbers are kept."""

    say: Callable[[str], None]
    quick: bool = False
    share: float = 1.0
    """Share of the runs that is made."""
    only_kept: bool = False
    """Whether tables are made of the runs that are in the folder, without new ones."""
    folder: Path | None = None
    """Folder with a file for every case, to which each run adds a line; a later call continues."""
    seconds: float = 0.0
    """CPU seconds of earlier calls, whose runs are not repeated."""

    def runs(self, case: str, count: int, one: Callable[[int], Numbers]) -> dict[str, Array]:
        """Return the numbers of all runs of a case, by name (none without runs); each run is a function of its seed."""
        count = max(1, round(count * self.share))
        path = None if self.folder is None else self.folder / f"{re.sub(r'[^a-z0-9.]+', '-', case.lower())}.jsonl"
        lines = path.read_text().splitlines() if path is not None and path.exists() else []
        rows = {int(row.pop("run")): row for row in map(json.loads, lines)}
        rows = {run: row for run, row in rows.items() if run < count}
        self.seconds += sum(row["seconds"] for row in rows.values())
        for run in range(0 if self.only_kept else count):
            if run in rows:
                continue
            began = time.process_time()
            rows[run] = dict(one(run))
            rows[run]["seconds"] = round(time.process_time() - began, 3)
            if path is not None:
                path.parent.mkdir(parents=True, exist_ok=True)
                with path.open("a") as file:
                    file.write(json.dumps({"run": run} | rows[run]) + "\n")
            if (run + 1) % 50 == 0:
                self.say(f"{case}: {run + 1} of {count}")
        names = list(next(iter(rows.values()))) if rows else []
        return {name: np.array([rows[run][name] for run in sorted(rows)]) for name in names}


# --- 1. tests of the comparison of two networks

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
        low, high = (0.035, 0.065) if control != "filtered" else _ANY
        yield Cell(part, row, "runs", len(p_values["MBM"]), form="{:,}")
        for column in ("MBM", "maximum", "smallest p of a layer pair"):
            if column in p_values:
                bounds = _ANY if "smallest" in column else (low, high)
                yield Cell(part, row, column, float(np.mean(p_values[column] <= 0.05)), *bounds)


def smallest(drawn: Kernels, R: Array) -> float:
    """Return the p-value of the naive test: the smallest p-value of all pairs of layers, without a correction."""
    a, b = drawn.positions["a"], drawn.positions["b"]
    cubic = cubic_moments(drawn.grams)
    skewed = np.array([[skewness(cubic[i], cubic[j]) for j in b] for i in a])
    return float(pearson3(R[np.ix_(a, b)], drawn.n, skewed).min())


# --- 2. Pearson III


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


# --- 3. coverage of intervals over samples

_SEEN = {True: (0.6, 0.45, 0.3), False: (0.75, 0.7, 0.65)}
"""Share of the input in the kernel of a layer, by depth; the key says whether the network is trained."""
_LEARNT = {"universal": (0.12, 0.2, 0.25), "family": (0.1, 0.15, 0.2)}
_NEAR = np.array([[0.7, 0.3, 0.0], [0.15, 0.7, 0.15], [0.0, 0.3, 0.7]])
"""Division of a share among three latents, by depth: neighbouring layers share more than distant layers."""
_STUDY = Design(
    (member("A0", "A"), member("A1", "A"), member("B0", "B")),
    tuple(member(f"{family}.untrained", family, trained=False) for family in "AB"),
)
_CASES = [("flat", 200), ("1/i", 200), ("flat", 1000), ("1/i", 1000)]
_SIZES = {"input": 16, "universal": 8, "family": 8, "own": 12}


@dataclass(frozen=True, eq=False)
class Population:
    """Gaussian layers x_j = a_j z_j with latents z of unit variance, for which all true values are known.

    Debiased CKA of two layers is ||Sigma_xy||^2 / (||Sigma_xx|| ||Sigma_yy||). Sigma is diagonal, so this is the cosine
    of the vectors a_j^2. The other numbers of a study are functions of these values.
    """

    loads: Array
    """Loadings a_j of the layers, of shape (layers, latents)."""
    of: dict[str, NDArray[np.int64]]

    @property
    def R(self) -> Array:  # noqa: N802
        """Debiased CKA of all pairs of layers for infinitely many samples."""
        unit = self.loads**2 / np.linalg.norm(self.loads**2, axis=1, keepdims=True)
        return np.asarray(unit @ unit.T)

    def layers(self, rng: np.random.Generator, n: int, *, heavy: bool = False) -> list[Array]:
        """Draw n samples of all layers; with heavy tails, all latents of a sample have a common factor, and are t3."""
        z = rng.normal(size=(n, self.loads.shape[1]))
        if heavy:
            z *= np.sqrt(3 / rng.chisquare(3, (n, 1)))
        return [z[:, a > 0] * a[a > 0] for a in self.loads]

    def draw(self, rng: np.random.Generator, n: int, *, heavy: bool = False) -> FeatureKernels:
        """Draw the kernels of n samples of all layers."""
        return FeatureKernels(tuple(self.layers(rng, n, heavy=heavy)), self.of)

    def theta(self, design: Design) -> tuple[Indices, Array]:
        """Return all indices of a study and their true values, along the best matches of the population."""
        none, matrices = Indices(design, self.of, len(self.R), {}), self.R[None]
        exact = Indices(design, self.of, len(self.R), matches_on(none, matrices))
        return exact, exact.evaluate(matrices)


def population(kind: str) -> Population:
    """Return three trained networks of two families, an untrained one of each, with three layers, and their input."""
    latents: dict[tuple[str, str], Array] = {}
    names = [("input", ""), *(("universal", str(d)) for d in range(3))]
    names += [("family", f"{family}{d}") for family in "AB" for d in range(3)]
    names += [("own", f"{network.name}{d}") for network in _STUDY.members for d in range(3)]
    for part, name in names:
        s = spectrum(kind, _SIZES[part])
        latents[part, name] = s / (s**4).sum() ** 0.25  # the kernel has norm 1
    ends = np.cumsum([0, *(len(s) for s in latents.values())])
    place = {key: slice(*ends[k : k + 2]) for k, key in enumerate(latents)}

    def layer(shares: dict[tuple[str, str], float]) -> Array:
        loads = np.zeros(ends[-1])
        for key, share in shares.items():
            loads[place[key]] = share**0.25 * latents[key]
        return loads

    loads: list[Array] = []
    of = {}
    for network in _STUDY.members:
        of[network.name] = np.arange(len(loads), len(loads) + 3)
        for depth in range(3):
            shares = {("input", ""): _SEEN[network.trained][depth]}
            for part, name in (("universal", ""), ("family", network.family)) if network.trained else ():
                shares |= {(part, f"{name}{d}"): _LEARNT[part][depth] * _NEAR[depth, d] for d in range(3)}
            rest = 1 - sum(shares.values())
            shares |= {("own", f"{network.name}{d}"): rest * _NEAR[depth, d] for d in range(3)}
            loads.append(layer(shares))
    of["input"] = np.array([len(loads)])
    return Population(np.stack([*loads, layer({("input", ""): 1.0})]), of)


def truths(exact: Indices, theta: Array, kind: str, pair: Pair) -> dict[str, float]:
    """Return true values of the columns of `repsim.study.dataset_pairs` for a pair and a kind of debiased CKA."""

    def mean(what: str, pairs: Sequence[Pair]) -> float:
        names = {frozenset({one.a.name, one.b.name}): one.name for one in exact.pairs}
        columns = [exact.column_of[what, kind, names[frozenset({one.a.name, one.b.name})]] for one in pairs]
        return float(theta[columns].mean())

    values = {"index": mean("index", [pair]), "split_half": mean("index", [pair])}
    if kind in exact.energies:
        values["energy"] = mean("energy", [pair])
    controls = exact.design.controls_of(pair)
    if kind != TWINS and all(controls.values()):
        values["learned"] = values["index"] - max(mean("index", pairs) for pairs in controls.values())
    return values


_KINDS = {"cka": "", "cka given input": ", input given", "cka given untrained": ", untrained twins given"}
_WORDS = {"split_half": "split-half index", "energy": "the same in units of energy", "learned": "effect of training"}


def covered(low: float, value: float, high: float) -> float:
    """Return whether an interval holds the true value, as a number."""
    return float(low <= round(value, 9) + 0.0 <= high)


def coverage(simulation: Simulation) -> Iterator[Cell]:
    """Yield the rates at which nominal 95 % intervals contain the true value, by spectrum and n."""
    part = "intervals of 95 % hold the truth"
    for kind, n in _CASES[:1] if simulation.quick else _CASES:
        true = population(kind)
        exact, theta = true.theta(_STUDY)
        truth = dict[str, float]()

        def one(run: int, n: int = n, true: Population = true, kind: str = kind) -> Numbers:
            study = inference(_STUDY, true.draw(np.random.default_rng([3, len(kind), n, run]), n), run)
            ends = {row: (low, high) for row, low, high in intervals(study)}
            middles = {f"mean of {row}": (low + high) / 2 for row, (low, high) in ends.items()}
            return {row: covered(low, truth[row], high) for row, (low, high) in ends.items()} | middles  # noqa: B023

        truth |= true_values(exact, theta, true.R)
        inside = simulation.runs(f"coverage {kind} {n}", 25 if simulation.quick else 1000, one)
        if inside:
            yield Cell(part, "studies", "truth", 0, form="")
            yield Cell(part, "studies", f"{kind}, n = {n:,}", len(inside["seconds"]), form="{:,}")
        for row, hits in inside.items():
            if row not in truth:
                continue
            yield Cell(part, row, "truth", truth[row] + 0.0, form="{:.3f}")
            yield Cell(part, row, f"{kind}, n = {n:,}", float(np.mean(hits)), *_COVERAGE)


def true_values(exact: Indices, theta: Array, R: Array) -> dict[str, float]:
    """Return the true value of every row of the table of coverage."""
    pair = next(pair for pair in _STUDY.pairs if pair.relation == "other family")
    i, j, k, l = (exact.positions[name][1] for name in ("A0", "B0", "A.untrained", "B.untrained"))  # noqa: E741
    residuals = exact.similarities(R[None], "input")
    values = {
        "CKA of a layer pair": R[i, j],
        "partial CKA of a layer pair, the input given": residuals[i, j],
        "the same of a pair with nothing shared but the input": residuals[k, l],
    }
    for title, suffix in _KINDS.items():
        kind = {"cka": RAW, "cka given input": "input", "cka given untrained": TWINS}[title]
        of_kind = truths(exact, theta, kind, pair)
        values |= {f"{word}{suffix}": of_kind[column] for column, word in _WORDS.items() if column in of_kind}
    for share in ("input", "universal", "family", "seed"):
        columns = [exact.column_of["share", "trained", str(d), share] for d in range(exact.depths)]
        values[f"share: {share}, mean over depths"] = theta[columns].mean()
    return {row: float(value) for row, value in values.items()}


def intervals(study: Inference) -> Iterator[tuple[str, float, float]]:
    """Yield the name and the ends of the interval of every number, as a study computes them."""
    indices, errors = study.indices, study.evidence.estimates.errors
    place = {int(k): at for at, k in enumerate(indices.layers)}
    layers = [place[int(indices.positions[name][1])] for name in ("A0", "B0", "A.untrained", "B.untrained")]
    for row, kind, (i, j) in (
        ("CKA of a layer pair", RAW, layers[:2]),
        ("partial CKA of a layer pair, the input given", "input", layers[:2]),
        ("the same of a pair with nothing shared but the input", "input", layers[2:]),
    ):
        value = indices.similarities(study.matrices, kind)[indices.layers[i], indices.layers[j]]
        margin = quantile(study.units) * errors[kind][i, j]
        yield row, value - margin, value + margin
    table = pairs_of_models(study).assign_coords(measure=study.titles).sel(pair="A0 x B0")
    for title, suffix in _KINDS.items():
        for column, word in _WORDS.items():
            low, high = (float(table[f"{column}_{end}"].sel(measure=title)) for end in ("low", "high"))
            if np.isfinite(low):
                yield f"{word}{suffix}", low, high
    for share in ("input", "universal", "family", "seed"):
        columns = [indices.column_of["share", "trained", str(d), share] for d in range(indices.depths)]
        interval = jackknife(study.theta[columns].mean(), study.left_out(columns).mean(1))
        yield f"share: {share}, mean over depths", float(interval.low), float(interval.high)


# --- 4. numbers of layers, and heavy tails

_LAYERS = [
    ("unrelated", 3, 100, False), ("unrelated", 6, 100, False), ("unrelated", 12, 100, False),
    ("matched", 3, 100, False), ("matched", 6, 100, False), ("matched", 12, 100, False),
    ("unrelated", 3, 200, True), ("matched", 3, 200, True), ("matched", 3, 1000, True),
]  # fmt: skip


def layered(depth: int, *, matched: bool) -> Population:
    """Return networks A and B whose layers have 20 latents of their own, and an untrained network of each.

    Layers within a network are unrelated. Matched ones share another 20 latents with the layer at the same place, so
    that their CKA is 1 / (1 + 0.7^4) = .806.
    """
    names = [f"{network} {d}" for network in ("A", "B", "A.untrained", "B.untrained") for d in range(depth)]
    own = {name: slice(20 * k, 20 * k + 20) for k, name in enumerate(names)}
    loads = np.zeros((len(names), 20 * (len(names) + depth)))
    for k, name in enumerate(names):
        loads[k, own[name]] = 0.7
        if matched and "untrained" not in name:
            first = 20 * (len(names) + int(name.split()[1]))
            loads[k, first : first + 20] = 1
    return Population(loads, places(families(2, 1, 1, layers=depth), 0))


@dataclass(frozen=True)
class LayeredCase:
    """Networks of some number of layers (`layered`), and samples of them."""

    depth: int
    n: int
    matched: bool
    heavy: bool

    @cached_property
    def design(self) -> Design:
        """Two families of one trained and one untrained network each."""
        return families(2, 1, 1, layers=self.depth)

    @cached_property
    def population(self) -> Population:
        """The networks, with infinitely many samples."""
        return layered(self.depth, matched=self.matched)

    @cached_property
    def truth(self) -> dict[str, float]:
        """True values of the pair of trained networks."""
        return truths(*self.population.theta(self.design), RAW, self.design.pairs[0])

    def intervals(self, run: int) -> Numbers:
        """Draw samples; return the indices, and which intervals hold the truth."""
        rng = np.random.default_rng([5, self.depth, self.n, self.heavy, self.matched, run])
        study = inference(self.design, self.population.draw(rng, self.n, heavy=self.heavy), run)
        row = pairs_of_models(study).isel(pair=0, measure=0)
        numbers = {name: float(row[name]) for name in ("index", "split_half", "index_low", "index_high")}
        always = study.estimate({study.column(RAW, self.design.pairs[0], "best"): 1.0}, RAW)
        return {
            "mean": numbers["split_half"],
            "plain index": numbers["index"],
            "printed": float(np.isfinite(numbers["index_low"])),
            "plain, always": covered(always.low, self.truth["index"], always.high),
            "plain, printed": covered(numbers["index_low"], self.truth["index"], numbers["index_high"]),
        } | {
            name: covered(float(row[f"{name}_low"]), self.truth[name], float(row[f"{name}_high"]))
            for name in ("split_half", "learned")
        }


def layers(simulation: Simulation) -> Iterator[Cell]:
    """Yield how often intervals hold the truth, by the number of layers, for unrelated and for matched layers."""
    part = "numbers of layers"
    for relation, depth, n, heavy in _LAYERS[:1] if simulation.quick else _LAYERS:
        case = LayeredCase(depth, n, matched=relation == "matched", heavy=heavy)
        row = f"{depth} {relation} layers, n = {n:,}" + (", t3 stimuli" if heavy else "")

        def one(run: int, case: LayeredCase = case) -> Numbers:
            return case.intervals(run)

        numbers = simulation.runs(f"layers {row}", 25 if simulation.quick else 500, one)
        if not numbers:
            continue
        yield Cell(part, row, "studies", len(numbers["mean"]), form="{:,}")
        yield Cell(part, row, "truth", case.truth["index"] + 0.0, form="{:.3f}")
        yield Cell(part, row, "mean split-half index", float(numbers["mean"].mean()), form="{:.3f}")
        yield Cell(part, row, "its interval holds the truth", float(numbers["split_half"].mean()), *_COVERAGE)
        yield Cell(part, row, "effect of training", float(numbers["learned"].mean()), *_COVERAGE)
        yield Cell(part, row, "mean plain index", float(numbers["plain index"].mean()), form="{:.3f}")
        yield Cell(part, row, "its interval would hold the truth", float(numbers["plain, always"].mean()))
        yield Cell(part, row, "is printed", float(numbers["printed"].mean()))
        if numbers["printed"].any():
            rate = numbers["plain, printed"].sum() / numbers["printed"].sum()
            yield Cell(part, row, "and then holds the truth", float(rate))


# --- 5. samples in groups


def grouped_layers(rng: np.random.Generator, n: int, size: int, *, related: bool) -> list[Array]:
    """Draw two layers of 20 latents of their own and, if related, 20 that they share; within groups, latents are alike.

    The latents of two samples of a group have a correlation of .9. The CKA of related layers is 1 / (1 + 0.7^4).
    """

    def latents() -> Array:
        common = np.repeat(rng.normal(size=(n // size, 20)), size, 0)
        return np.asarray(np.sqrt(0.9) * common + np.sqrt(0.1) * rng.normal(size=(n, 20)))

    shared = [latents()] if related else []
    return [np.hstack([*shared, 0.7 * latents()]) for _ in range(2)]


def grouped(simulation: Simulation, n: int = 400) -> Iterator[Cell]:
    """Yield how often intervals hold the truth for samples in groups, declared or not."""
    part, design = f"samples in groups, n = {n}", families(2, 1, 0, layers=1)
    cases = (
        [(True, 2)] if simulation.quick else [(related, size) for related in (True, False) for size in (1, 2, 4, 10)]
    )
    for related, size in cases:
        truth = 1 / (1 + 0.7**4) if related else 0.0
        row = f"{'related' if related else 'unrelated'} layers, groups of {size}"

        def one(run: int, related: bool = related, size: int = size, truth: float = truth) -> Numbers:
            layers = grouped_layers(np.random.default_rng([8, related, size, run]), n, size, related=related)
            declared = Groups.of(np.repeat(np.arange(n // size), size).tolist())
            numbers = dict[str, float]()
            for name, groups in {"declared": declared if size > 1 else None, "not declared": None}.items():
                if name == "declared" or size > 1:
                    study = inference(design, gram_kernels(layers, places(design, 0), groups), run)
                    estimate = study.estimate({study.column(RAW, design.pairs[0]): 1.0}, RAW)
                    numbers |= {name: covered(estimate.low, truth, estimate.high), f"mean, {name}": estimate.value}
            return numbers

        numbers = simulation.runs(f"groups {row}", 10 if simulation.quick else 500, one)
        if not numbers:
            continue
        yield Cell(part, row, "studies", len(numbers["declared"]), form="{:,}")
        yield Cell(part, row, "truth", truth, form="{:.3f}")
        for name in ("declared", "not declared"):
            if name in numbers:
                bounds = _COVERAGE if name == "declared" else _ANY
                yield Cell(part, row, f"mean, groups {name}", float(numbers[f"mean, {name}"].mean()), form="{:.3f}")
                yield Cell(part, row, f"interval holds the truth, {name}", float(numbers[name].mean()), *bounds)


# --- 6. samples in classes


def layers_of_classes(rng: np.random.Generator, classes: NDArray[np.int64], *, related: bool) -> list[Array]:
    """Draw two layers of class means, which are three times as large, 10 latents of their own and 10 that both share.

    Within classes, the CKA of related layers is 1 / (1 + 0.7^4); class means are the same in both layers.
    """
    n, means = len(classes), 3 * rng.normal(size=(int(classes.max()) + 1, 5))
    shared = [rng.normal(size=(n, 10))] if related else []
    return [np.hstack([means[classes], *shared, 0.7 * rng.normal(size=(n, 10))]) for _ in range(2)]


def within(simulation: Simulation, n: int = 400) -> Iterator[Cell]:
    """Yield how often intervals hold the similarity within classes."""
    part, design = f"similarity within classes, n = {n}", families(2, 1, 0, layers=1)
    cases = (
        [(True, 10)] if simulation.quick else [(related, count) for related in (True, False) for count in (5, 10, 100)]
    )
    for related, count in cases:
        truth = 1 / (1 + 0.7**4) if related else 0.0
        row = f"{'related' if related else 'unrelated'} layers, {count} classes"

        def one(run: int, related: bool = related, count: int = count, truth: float = truth) -> Numbers:
            rng = np.random.default_rng([9, related, count, run])
            classes = rng.integers(0, count, n)
            kernels = gram_kernels(layers_of_classes(rng, classes, related=related), places(design, 0))
            study = inference(design, replace(kernels, classes=Groups.of(classes)), run)
            estimate = study.estimate({study.column("labels", design.pairs[0]): 1.0}, "labels")
            raw = study.estimate({study.column(RAW, design.pairs[0]): 1.0}, RAW)
            inside = covered(estimate.low, truth, estimate.high)
            return {"inside": inside, "mean": estimate.value, "raw": raw.value}

        numbers = simulation.runs(f"classes {row}", 10 if simulation.quick else 500, one)
        if not numbers:
            continue
        yield Cell(part, row, "studies", len(numbers["inside"]), form="{:,}")
        yield Cell(part, row, "truth", truth, form="{:.3f}")
        yield Cell(part, row, "mean given the labels", float(numbers["mean"].mean()), form="{:.3f}")
        yield Cell(part, row, "interval holds the truth", float(numbers["inside"].mean()), *_COVERAGE)
        yield Cell(part, row, "mean without control", float(numbers["raw"].mean()), form="{:.3f}")


# --- 7. claims about networks that learned nothing


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


# --- 8. networks as random draws: intervals over networks, and power

_GIVEN = 0.4
"""Share of the input in the energy of every layer."""
_UNTRAINED = 0.5
"""Mean of c of untrained networks, where two networks have a partial CKA of c c'."""
_EFFECTS, _SPREADS = (0.0, 0.02, 0.05, 0.1, 0.2), (0.02, 0.05)
_NUMBERS = ((2, 2), (2, 3), (3, 3), (4, 4), (5, 5))


def level_of_trained(effect: float) -> float:
    """Return the mean c of trained networks, so that their partial CKA exceeds every control by the effect at least.

    The strongest control has one trained network: c_T^2 - c_T c_U = effect.
    """
    return float((_UNTRAINED + np.sqrt(_UNTRAINED**2 + 4 * effect)) / 2)


def random_networks(rng: np.random.Generator, design: Design, n: int, effect: float, spread: float) -> FeatureKernels:
    """Draw networks of one layer whose similarity with networks of other families varies from network to network.

    The kernel of a layer is sqrt(.4) I + sqrt(.6) (c S + sqrt(1 - c^2) O): I is the input, S what all networks share
    and O their own. The spread is the standard deviation, over networks, of the mean partial CKA of a trained network.
    """
    mean, sizes = level_of_trained(effect), {"input": 8, "shared": 8, "own": 10}
    latents = {part: rng.normal(size=(n, size)) / size**0.25 for part, size in sizes.items() if part != "own"}
    layers = []
    for network in design.members:
        c = float(np.clip(rng.normal(mean if network.trained else _UNTRAINED, spread / mean), 0.01, 0.99))
        own = rng.normal(size=(n, sizes["own"])) / sizes["own"] ** 0.25
        weights = _GIVEN, (1 - _GIVEN) * c**2, (1 - _GIVEN) * (1 - c**2)
        parts = zip(weights, (latents["input"], latents["shared"], own), strict=True)
        layers.append(np.hstack([weight**0.25 * part for weight, part in parts]))
    return FeatureKernels((*layers, latents["input"]), places(design, 1))


def networks(simulation: Simulation, n: int = 500) -> Iterator[Cell]:
    """Yield how often a claim about architectures is made, and intervals over networks hold the truth."""
    power, rates = "claims about architectures", "intervals over networks and samples hold the truth"
    most = families(3, *_NUMBERS[-1], layers=1)
    cases = [(0.1, 0.02)] if simulation.quick else [(effect, spread) for spread in _SPREADS for effect in _EFFECTS]
    counts = _NUMBERS[1:2] if simulation.quick else _NUMBERS
    designs = {
        f"{trained} + {untrained}": Design(
            tuple(member for member in most.trained if int(member.name[1:]) < trained),
            tuple(member for member in most.untrained if int(member.name.split("untrained")[1]) < untrained),
        )
        for trained, untrained in counts
    }
    cells = []
    for effect, spread in cases:

        def one(run: int, effect: float = effect, spread: float = spread) -> Numbers:
            rng = np.random.default_rng([7, round(100 * effect), round(100 * spread), run])
            kernels, numbers = random_networks(rng, most, n, effect, spread), dict[str, float]()
            for name, design in designs.items():
                with tuning.using(halvings=2):
                    study = inference(design, some_of(kernels, design), run)
                reached, table = levels(study)
                of_kernel = table.sel(kernel="cka given input", measure="cka given input")
                low, high = (of_kernel[f"effect_network_{end}"].values for end in ("low", "high"))
                numbers |= {f"{name}, {key}": value for key, value in reached.items()}
                numbers[f"{name}, covered"] = float(np.mean((low <= effect) & (effect <= high)))
                numbers[f"{name}, below"] = float(np.mean(high < effect))
                numbers[f"{name}, width"] = float(np.mean(high - low))
            return numbers

        runs = 4 if simulation.quick else 200
        numbers = simulation.runs(f"networks effect {effect} spread {spread}", runs, one)
        if not numbers:
            continue
        for name in designs:
            row, bounds = f"{name} networks a family, spread {spread}", (0, 0.05) if effect == 0 else _ANY
            for families_, key in (("two families", "pair"), ("three families", "all")):
                column, rate = f"effect {effect:g}, {families_}", numbers[f"{name}, {key}, architectures"].mean()
                yield Cell(power, row, column, float(rate), bounds[0], bounds[1], "{:.0%}")
            if effect:
                cells.append(Cell(rates, row, f"effect {effect:g}", float(numbers[f"{name}, covered"].mean()), 0.93, 1))
    yield from cells


# --- 9. recovery of shared representations


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


# --- command

Part = Callable[[Simulation], Iterator[Cell]]
PARTS: dict[str, Part] = {
    "null": null,
    "pearson": pearson,
    "coverage": coverage,
    "layers": layers,
    "groups": grouped,
    "classes": within,
    "claims": claims,
    "networks": networks,
    "recovery": recovery,
}


def validate(names: Sequence[str], simulation: Simulation) -> tuple[list[Cell], dict[str, float]]:
    """Run the named parts; return all cells of their tables, and the CPU seconds of each part."""
    cells, seconds = [], {}
    for name in names:
        began, before = time.process_time(), simulation.seconds
        cells += list(PARTS[name](simulation))
        seconds[name] = time.process_time() - began + simulation.seconds - before
    return cells, seconds


@click.command()
@click.argument("parts", nargs=-1, type=click.Choice(list(PARTS)))
@click.option("--quick", is_flag=True, help="Few runs, to test the script; the bounds do not apply.")
@click.option("--only-kept", is_flag=True, help="Tables of the runs that are in the folder, without new ones.")
@click.option("--share", type=click.FloatRange(0, 1, min_open=True), default=1.0, help="Share of the runs to make.")
@click.option(
    "--runs",
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder for the numbers of every run; a later call with the same folder continues.",
)
@click.option("-o", "--out", type=click.Path(dir_okay=False, path_type=Path), help="File for the tables (Markdown).")
def main(
    parts: Sequence[str], *, quick: bool, only_kept: bool, share: float, runs: Path | None, out: Path | None
) -> None:
    """Simulate networks with known true values, and count how often the statistics of a study are correct.

    This takes about two hours on one core. The seeds are fixed: the same versions of torch and numpy give the same
    tables. docs/statistics.md shows them.
    """
    torch.set_num_threads(1)
    simulation = Simulation(lambda line: print(line, file=sys.stderr, flush=True), quick, share, only_kept, runs)
    cells, seconds = validate(parts or list(PARTS), simulation)
    text = tables(cells, seconds)
    print(text)
    if out is not None:
        out.write_text(text + "\n")


if __name__ == "__main__":
    main()
