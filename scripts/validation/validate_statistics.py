#!/usr/bin/env python3
"""Validate the statistics of a study by simulation: see ``validate_statistics.py --help``."""

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import click
import numpy as np
import torch
from numpy.typing import NDArray
from scipy import special

from repsim.engine.null_moments import cubic_moments
from repsim.engine.resampling import random_permutations
from repsim.labels import LayerKey
from repsim.metrics.cka import CKA
from repsim.metrics.recipes.gram import CentredGram
from repsim.stores.store import ActivationStore
from repsim.study import permutation_nulls
from repsim.study.chance import p_value, pearson3, skewness, z_value
from repsim.study.design import Design, Member, Pair, half_trained
from repsim.study.gram_passes import Kernels, permuted_values
from repsim.study.indices import RAW, TWINS, Indices
from repsim.study.partial_cka import partial
from repsim.study.uncertainty import Interval, influence, interval_of, jackknife, multiplier_bootstrap

Array = NDArray[np.float64]
Say = Callable[[str], None]

_MEMORY = 2**30
_ALPHAS = (0.05, 0.01, 0.001)
_ANY = (-np.inf, np.inf)


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


# --- simulated networks


@dataclass(frozen=True)
class Network:
    """Substitute for a store: the attributes that a study needs, without activations."""

    model: str
    provenance: dict[str, str]
    layers: tuple[str, ...] = ("layer 0", "layer 1", "layer 2")
    """Names of the layers, which are the same for an untrained twin."""

    def __getitem__(self, name: str) -> SimpleNamespace:
        return SimpleNamespace(key=LayerKey(self.model, name, "mean"))


def member(name: str, family: str, *, trained: bool = True) -> Member:
    """Return a model of a study without a file."""
    provenance = {"architecture": family} | ({} if trained else {"weights": "random"})
    return Member(cast("ActivationStore", Network(name, provenance)), family, "mean")


def kernels(layers: Sequence[Array], of: dict[str, NDArray[np.int64]]) -> Kernels:
    """Prepare layers for a study, in float32 as in a store."""
    grams = tuple(cast("Any", CentredGram()(torch.from_numpy(x.astype(np.float32)))) for x in layers)
    return Kernels(tuple(f"layer {k}" for k in range(len(layers))), grams, of, {})


def spectrum(kind: str, count: int) -> Array:
    """Return ``count`` singular values, the first of which is 1."""
    if kind == "flat":
        return np.ones(count)
    return 1 / np.arange(1, count + 1) if kind == "1/i" else np.r_[1, np.full(count - 1, 0.2)]


# --- 1. tests of the comparison of two networks

_PAIR = Design((member("a", "A"), member("b", "B")), ())
_DEPTHS = {"a": 8, "b": 10}
_WIDTH = 40


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
    return kernels([*layers, u], of | {"input": np.array([ends[-1]])}) if control else kernels(layers, of)


def null(say: Say, runs: int, few: int, n: int = 100, count: int = 199) -> Iterator[Cell]:
    """Yield the rates at which the tests reject for networks that share nothing."""
    part = "rejected at 5 %"
    cases = [
        *((f"nothing shared, spectrum {kind}", kind, None, runs) for kind in ("flat", "1/i")),
        *((f"the input shared, and given; spectrum {kind}", kind, "the input", runs) for kind in ("flat", "1/i")),
        ("each network mixes the input in its own way, the input given; flat (no null)", "flat", "filtered", few),
    ]
    for seed, (row, kind, control, times) in enumerate(cases):
        p_values = []
        for run in range(times):
            rng = np.random.default_rng([1, seed, run])
            drawn = unrelated(rng, kind, n, control=control)
            R, key = drawn.values(), ("input" if control else RAW, "a x b")
            orders = random_permutations(n, count, run)
            indices = Indices(_PAIR, dict(drawn.positions), R)
            tested = permutation_nulls.cka_nulls(drawn, indices, orders, memory=_MEMORY)[key]
            ps = [*p_value(tested.observed, tested.permuted)]
            if not control:
                ps.append(smallest(drawn, R))
            p_values.append(ps)
        rates = np.mean(np.array(p_values) <= 0.05, axis=0)
        low, high = (0.035, 0.065) if control != "filtered" else _ANY
        yield Cell(part, row, "runs", times, form="{:,}")
        for column, rate in zip(("MBM", "maximum"), rates, strict=False):
            yield Cell(part, row, column, float(rate), low, high)
        if not control:
            yield Cell(part, row, "smallest p of a layer pair", float(rates[2]))
        say(f"null: {row}: {rates.round(3).tolist()}")


def smallest(drawn: Kernels, R: Array) -> float:
    """Return the p-value of the naive test: the smallest p-value of all pairs of layers, without a correction."""
    a, b = drawn.positions["a"], drawn.positions["b"]
    cubic = cubic_moments(drawn.grams)
    skewed = np.array([[skewness(cubic[i], cubic[j]) for j in b] for i in a])
    return float(pearson3(R[np.ix_(a, b)], drawn.n, skewed).min())


# --- 2. Pearson III


def pearson(say: Say, count: int, n: int = 100) -> Iterator[Cell]:
    """Yield the rates at which p-values of single layer pairs are at most alpha, over random permutations."""
    part = "share of permutations with p at most alpha, over alpha"
    for seed, kinds in enumerate([("flat", "flat"), ("1/i", "1/i"), ("flat", "1/i"), ("one direction",) * 2]):
        rng = np.random.default_rng([2, seed])
        layers = [rng.normal(size=(n, _WIDTH)) * spectrum(kind, _WIDTH) for kind in kinds]
        pair = kernels(layers, {})
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
        say(f"pearson: {row}, skewness {gamma:.2f}")


# --- 3. coverage

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

    def draw(self, rng: np.random.Generator, n: int) -> Kernels:
        """Draw n samples of all layers."""
        z = rng.normal(size=(n, self.loads.shape[1]))
        return kernels([z[:, a > 0] * a[a > 0] for a in self.loads], self.of)


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


@dataclass(frozen=True)
class Question:
    """A number for which a study gives an interval: a mean of columns, minus a mean of other columns."""

    row: str
    columns: tuple[int, ...]
    """Columns of `Indices.evaluate` whose mean is taken."""
    minus: tuple[int, ...] = ()
    """Columns whose mean is subtracted."""

    def of(self, numbers: Array) -> Array:
        """Return the number for one row of `Indices.evaluate`, or for every row of an array."""
        less = numbers[..., list(self.minus)].mean(-1) if self.minus else 0
        return np.asarray(numbers[..., list(self.columns)].mean(-1) - less)


def questions(exact: Indices) -> list[Question]:
    """Return MBM, shares and learned effects of a study."""
    pair = next(pair for pair in _STUDY.pairs if pair.relation == "other family")
    theta, asked = exact.evaluate(exact.R), []

    def columns(kind: str, pairs: Sequence[Pair]) -> tuple[int, ...]:
        return tuple(exact.column_of["mbm", kind, pair.name] for pair in pairs)

    for kind in exact.kernels:
        suffix = ", input given" if kind else ""
        controls = [columns(kind, control_pairs(_STUDY, pair)) for control_pairs in (half_trained, Design.controls_of)]
        best = max(controls, key=lambda where: round(float(theta[list(where)].mean()), 9))
        asked += [
            Question(f"MBM{suffix}", columns(kind, [pair])),
            Question(f"learned effect{suffix}", columns(kind, [pair]), best),
        ]
    asked.append(Question("MBM, untrained twins given", columns(TWINS, [pair])))
    for share in ("input", "universal", "family", "seed"):
        where = tuple(exact.column_of["share", "trained", str(d), share] for d in range(exact.depths))
        asked.append(Question(f"share: {share}, mean over depths", where))
    return asked


def coverage(say: Say, runs: int, cases: Sequence[tuple[str, int]]) -> Iterator[Cell]:
    """Yield the rates at which nominal 95 % intervals contain the true value, by spectrum and n."""
    part = "intervals of 95 % hold the truth"
    for kind, n in cases:
        true = population(kind)
        exact = Indices(_STUDY, true.of, true.R)
        truth, inside = dict[str, float](), dict[str, list[bool]]()
        for run in range(runs):
            sample = true.draw(np.random.default_rng([3, len(kind), n, run]), n)
            for row, value, interval in intervals(sample, exact, run):
                truth[row] = value
                inside.setdefault(row, []).append(bool(interval.low <= value <= interval.high))
            if run % 100 == 99:
                say(f"coverage: spectrum {kind}, n = {n:,}: {run + 1} of {runs}")
        for row, hits in inside.items():
            yield Cell(part, row, "truth", truth[row], form="{:.3f}")
            low, high = _ANY if "nothing shared" in row else (0.93, 0.97)
            yield Cell(part, row, f"{kind}, n = {n:,}", float(np.mean(hits)), low, high)


def intervals(sample: Kernels, exact: Indices, seed: int) -> Iterator[tuple[str, float, Interval]]:
    """Yield the name of every number, its true value, and its interval as `repsim.study.dataset` computes it."""
    R = sample.values()
    left = sample.leave_one_out(_MEMORY).left_out(lambda: None)
    controls = sample.positions["input"].tolist()
    matrices = (exact.R, R, left)
    partials = [partial(matrix, controls) for matrix in matrices]
    i, j, k, l = (sample.positions[name][1] for name in ("A0", "B0", "A.untrained", "B.untrained"))  # noqa: E741
    numbers = {
        "CKA of a layer pair": [matrix[..., i, j] for matrix in matrices],
        "partial CKA of a layer pair, the input given": [matrix[..., i, j] for matrix in partials],
        "the same of a pair with nothing shared but the input": [matrix[..., k, l] for matrix in partials],
    }
    own, truth, effects = Indices(_STUDY, dict(sample.positions), R), exact.evaluate(exact.R), list[int]()
    with_true_matches, with_own_matches = (evaluated(indices, R, left) for indices in (exact, own))
    for question in questions(exact):
        for title, estimates in (("population", with_true_matches), ("sample", with_own_matches)):
            row = question.row if question.row.startswith("share") else f"{question.row}; best match of the {title}"
            numbers[row] = [question.of(evaluation) for evaluation in (truth, *estimates)]
            effects += [len(numbers) - 1] if question.minus else []
    values, theta, without = (np.stack(column, -1) for column in zip(*numbers.values(), strict=True))
    joint = jackknife(theta, without)
    bootstrap = interval_of(multiplier_bootstrap(theta[effects], influence(theta, without)[:, effects], 1000, seed))
    joint.low[effects], joint.high[effects] = bootstrap.low, bootstrap.high
    for row, value, low, high, se in zip(numbers, values, joint.low, joint.high, joint.se, strict=True):
        yield row, round(float(value), 9) + 0.0, Interval(low, high, se)


def evaluated(indices: Indices, R: Array, left: Array) -> tuple[Array, Array]:
    """Return all numbers for all samples, and without each sample."""
    return indices.evaluate(R), indices.without_each(iter([left]))[0]


# --- 4. power


def power(say: Say, runs: int) -> Iterator[Cell]:
    """Yield estimates for layers that share a known part of their kernels, with n < p and n > p."""
    for seed, (n, p) in enumerate([(100, 240), (500, 60)]):
        part = f"shared, n = {n}, p = {p}"
        for r2 in (0.05, 0.25, 0.5):
            true = shared(r2, p)
            R = true.R
            exact = np.array([R[0, 1], R[2, 3], partial(R, [4])[2, 3]])
            estimates, small = np.empty((runs, 4)), 0.0
            for run in range(runs):
                sample = true.draw(np.random.default_rng([4, seed, round(100 * r2), run]), n)
                R = sample.values()
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
            say(f"power: n = {n}, p = {p}, r^2 = {r2}: {(mean[:3] - exact).round(4).tolist()}")


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

Part = Callable[[Say, bool], Iterator[Cell]]
PARTS: dict[str, Part] = {
    "null": lambda say, quick: null(say, *((8, 2) if quick else (1000, 200))),
    "pearson": lambda say, quick: pearson(say, 10_000 if quick else 100_000),
    "coverage": lambda say, quick: coverage(say, *((25, _CASES[:1]) if quick else (1000, _CASES))),
    "power": lambda say, quick: power(say, 12 if quick else 600),
}


def validate(names: Sequence[str], say: Say, *, quick: bool) -> tuple[list[Cell], dict[str, float]]:
    """Run the named parts; return all cells of their tables, and the CPU seconds of each part."""
    cells, seconds = [], {}
    for name in names:
        began = time.process_time()
        cells += list(PARTS[name](say, quick))
        seconds[name] = time.process_time() - began
    return cells, seconds


@click.command()
@click.argument("parts", nargs=-1, type=click.Choice(list(PARTS)))
@click.option("--quick", is_flag=True, help="Few runs, to test the script; the bounds do not apply.")
@click.option("-o", "--out", type=click.Path(dir_okay=False, path_type=Path), help="File for the tables (Markdown).")
def main(parts: Sequence[str], *, quick: bool, out: Path | None) -> None:
    """Simulate networks with known true values, and count how often the statistics of a study are correct.

    This takes about a quarter of an hour on one core. The seeds are fixed: the same versions of torch and numpy give
    the same tables. docs/statistics.md shows them.
    """
    torch.set_num_threads(1)
    cells, seconds = validate(parts or list(PARTS), lambda line: print(line, file=sys.stderr, flush=True), quick=quick)
    text = tables(cells, seconds)
    print(text)
    if out is not None:
        out.write_text(text + "\n")


if __name__ == "__main__":
    main()
