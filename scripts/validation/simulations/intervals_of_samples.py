"""Coverage of intervals over samples, also for many layers and heavy tails."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from repsim.engine.uncertainty import jackknife, quantile
from repsim.study.dataset_pairs import pairs_of_models
from repsim.study.design import Design
from repsim.study.indices import RAW, TWINS, Indices
from repsim.study.inference import Inference
from simulations.cells import COVERAGE, Cell, Numbers, Simulation
from simulations.populations import STUDY, Population, covered, population, truths
from simulations.studies import (
    Array,
    families,
    inference,
    places,
)

_CASES = [("flat", 200), ("1/i", 200), ("flat", 1000), ("1/i", 1000)]
_KINDS = {"cka": "", "cka given input": ", input given", "cka given untrained": ", untrained twins given"}
_WORDS = {"split_half": "split-half index", "energy": "the same in units of energy", "learned": "effect of training"}


def coverage(simulation: Simulation) -> Iterator[Cell]:
    """Yield the rates at which nominal 95 % intervals contain the true value, by spectrum and n."""
    part = "intervals of 95 % hold the truth"
    for kind, n in _CASES[:1] if simulation.quick else _CASES:
        true = population(kind)
        exact, theta = true.theta(STUDY)
        truth = dict[str, float]()

        def one(run: int, n: int = n, true: Population = true, kind: str = kind) -> Numbers:
            study = inference(STUDY, true.draw(np.random.default_rng([3, len(kind), n, run]), n), run)
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
            yield Cell(part, row, f"{kind}, n = {n:,}", float(np.mean(hits)), *COVERAGE)


def true_values(exact: Indices, theta: Array, R: Array) -> dict[str, float]:
    """Return the true value of every row of the table of coverage."""
    pair = next(pair for pair in STUDY.pairs if pair.relation == "other family")
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
        yield Cell(part, row, "its interval holds the truth", float(numbers["split_half"].mean()), *COVERAGE)
        yield Cell(part, row, "effect of training", float(numbers["learned"].mean()), *COVERAGE)
        yield Cell(part, row, "mean plain index", float(numbers["plain index"].mean()), form="{:.3f}")
        yield Cell(part, row, "its interval would hold the truth", float(numbers["plain, always"].mean()))
        yield Cell(part, row, "is printed", float(numbers["printed"].mean()))
        if numbers["printed"].any():
            rate = numbers["plain, printed"].sum() / numbers["printed"].sum()
            yield Cell(part, row, "and then holds the truth", float(rate))
