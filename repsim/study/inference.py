"""Compute estimates with intervals, and influences, from the evidence of a study."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Float64, Int64

from repsim.engine.uncertainty import influence, multiplier_bootstrap, quantile
from repsim.metrics.recipes.rows import cut
from repsim.results.variables import CONTROL_PAIRS, GIVEN_UNTRAINED
from repsim.study.design import Design, Member, Pair
from repsim.study.evidence import Evidence
from repsim.study.gram_passes import Matrices
from repsim.study.indices import RAW, TWINS, Indices

TITLES = {
    RAW: "cka", "input": "cka given input", "labels": "cka given labels",
    "input and labels": "cka given input and labels", TWINS: GIVEN_UNTRAINED,
}  # fmt: skip
"""Names in results of debiased CKA and of partial CKA, by the control that is projected out."""
_AT_ONCE = 2**24
"""Number of values without a sample that are held at once, where there is one for each sample and pair of models."""
Columns = Sequence[int] | Int64[np.ndarray, " k"]


@dataclass(frozen=True)
class Estimate:
    """Value with its standard error over samples and 95 % interval."""

    value: float
    se: float
    low: float
    high: float
    support: float = np.nan
    """Number of equally influential samples that would give as uneven influences, (sum d^2)^2 / sum d^4."""


@dataclass(frozen=True, eq=False)
class Inference:
    """Evidence of a study, and the statistics that are computed from it."""

    evidence: Evidence
    draws: int
    """Number of draws of the multiplier bootstrap."""
    seed: int
    """Seed of these draws."""

    @property
    def design(self) -> Design:
        """Design of the study."""
        return self.evidence.design

    @property
    def indices(self) -> Indices:
        """Indices of the study, which are functions of the matrix R."""
        return self.evidence.estimates.indices

    @property
    def theta(self) -> Float64[np.ndarray, " T"]:
        """All indices."""
        return self.evidence.estimates.theta

    @property
    def matrices(self) -> Matrices:
        """Debiased CKA of all layers and controls and, with classes, similarities within classes."""
        return self.evidence.estimates.matrices

    def left_out(self, columns: Columns, run: slice = slice(None)) -> Float64[np.ndarray, "units k"]:
        """Return indices in some columns, without each sample or group of samples, or each of a run of them."""
        return self.evidence.estimates.without(columns, run)

    def left_out_in_runs(self, columns: Columns, memory: int) -> Iterator[Float64[np.ndarray, "run k"]]:
        """Yield indices in some columns, without each sample or group of samples, a run of them at a time.

        ``memory`` is the number of values that may be held at once.
        """
        for run in cut(self.units, max(1, memory // max(1, len(columns)))):
            yield self.left_out(columns, run)

    def combined_without(self, coefficients: Mapping[int, float]) -> Float64[np.ndarray, " units"]:
        """Return a combination of columns, without each sample or group of samples."""
        columns, weights = np.array(list(coefficients), int), np.array(list(coefficients.values()))
        runs = cut(len(columns), max(1, _AT_ONCE // self.units))
        return np.asarray(sum((self.left_out(columns[run]) @ weights[run] for run in runs), start=np.zeros(self.units)))

    @property
    def units(self) -> int:
        """Number of independent samples, or of groups of samples."""
        return self.evidence.estimates.units

    def influence_on(self, coefficients: Mapping[int, float]) -> Float64[np.ndarray, " units"]:
        """Return the influence of every sample, or group of samples, on a combination of columns."""
        columns, weights = np.array(list(coefficients), int), np.array(list(coefficients.values()))
        return influence(self.evidence.estimates.theta_of_all[columns] @ weights, self.combined_without(coefficients))

    def influences(self, columns: Columns) -> Float64[np.ndarray, "units k"]:
        """Return the influence of every sample, or group of samples, on indices in some columns."""
        return influence(self.evidence.estimates.theta_of_all[columns], self.left_out(columns))

    def drawn(self, columns: Columns, draws: int) -> Float64[np.ndarray, "draws k"]:
        """Draw indices in some columns by the bootstrap, with the same random weights of samples for all columns."""
        count = min(draws, self.draws)
        return multiplier_bootstrap(self.theta[columns], self.influences(columns), count, self.seed)

    @cached_property
    def conditions(self) -> dict[str, str]:
        """Kinds of debiased CKA, by their names in results."""
        return {TITLES[kind]: kind for kind in self.indices.conditions}

    @cached_property
    def kernels(self) -> dict[str, str]:
        """Kinds of debiased CKA with one control for all layers: their matrices are positive semidefinite."""
        return {TITLES[kind]: kind for kind in self.indices.kernels}

    @cached_property
    def titles(self) -> list[str]:
        """Names in results of all measures."""
        return [*self.conditions, *(result.metric.spec for result in self.evidence.measures)]

    @cached_property
    def _pair_names(self) -> dict[frozenset[str], str]:
        return {frozenset({pair.a.name, pair.b.name}): pair.name for pair in self.indices.pairs}

    @cached_property
    def pairs(self) -> list[Pair]:
        """Pairs of trained models that have an index."""
        return [pair for pair in self.design.pairs if self.has_index(pair)]

    @cached_property
    def layers(self) -> list[int]:
        """Positions in R of the layers of trained models."""
        return [int(k) for member in self.design.trained for k in self.indices.positions[member.name]]

    def has_index(self, pair: Pair) -> bool:
        """Return whether both models of a pair have layers that can be compared."""
        return frozenset({pair.a.name, pair.b.name}) in self._pair_names

    def is_in_study(self, member: Member) -> bool:
        """Return whether a model has layers that can be compared."""
        return bool(len(self.indices.positions[member.name]))

    def column(self, kind: str, pair: Pair, what: str = "index") -> int:
        """Return the column of a pair of models, in either order: "index", "energy", or "best" for the plain index."""
        return self.indices.column_of[what, kind, self._pair_names[frozenset({pair.a.name, pair.b.name})]]

    def matches(self, kind: str, pair: Pair) -> tuple[Int64[np.ndarray, " A"], Int64[np.ndarray, " B"]]:
        """Return the best match of every layer on all samples, from a to b and from b to a; -1 for none."""
        name = self._pair_names[frozenset({pair.a.name, pair.b.name})]
        assert self.indices.best is not None, "estimates have the best matches on all samples"
        maps = self.indices.best[kind, name]
        a_to_b, b_to_a = (np.where(one.any(1), one.argmax(1), -1) for one in (maps.a_to_b, maps.b_to_a))
        return (a_to_b, b_to_a) if name == pair.name else (b_to_a, a_to_b)

    def controls(self, pair: Pair) -> dict[str, list[Pair]]:
        """Return the control pairs of a pair of trained models that have an index, by the name of the control."""
        names = pair.a.name, pair.b.name
        if names not in self._controls:
            self._controls[names] = {
                name: [control for control in pairs if self.has_index(control)]
                for name, pairs in self.design.controls_of(pair).items()
            }
        return self._controls[names]

    @cached_property
    def _controls(self) -> dict[tuple[str, str], dict[str, list[Pair]]]:
        """Control pairs that were looked up already, by the names of both models."""
        return {}

    def is_controlled(self, pair: Pair) -> bool:
        """Return whether a pair of trained models has all of its controls."""
        return all(self.controls(pair).values())

    def mean_of(self, kind: str, pairs: Sequence[Pair], what: str = "index") -> dict[int, float]:
        """Return the coefficients, by column, of the mean over pairs of models."""
        coefficients: dict[int, float] = {}
        for pair in pairs:
            column = self.column(kind, pair, what)
            coefficients[column] = coefficients.get(column, 0.0) + 1 / len(pairs)
        return coefficients

    def mean_of_controls(
        self, kind: str, pairs: Sequence[Pair], name: str, what: str = "index", *, only: Member | None = None
    ) -> dict[int, float]:
        """Return the coefficients, by column, of the mean over pairs of models of the mean over their controls.

        With ``only`` a control counts if it has this untrained network; the coefficients are empty if none does.
        """
        coefficients: dict[int, float] = {}
        for pair in pairs:
            controls = self.controls(pair)[name]
            if only is not None:
                controls = [control for control in controls if only.name in {control.a.name, control.b.name}]
            for column, weight in self.mean_of(kind, controls, what).items():
                coefficients[column] = coefficients.get(column, 0.0) + weight / len(pairs)
        return coefficients

    def estimate_of(self, column: int, kind: str, *, in_energy: bool = False) -> Estimate:
        """Estimate one column, as `estimate` does; the estimate is kept, because tables and maps of models share it."""
        if column not in self._estimates:
            self._estimates[column] = self.estimate({column: 1.0}, kind, in_energy=in_energy)
        return self._estimates[column]

    @cached_property
    def _estimates(self) -> dict[int, Estimate]:
        """Estimates of single columns that were computed already."""
        return {}

    def estimate(self, coefficients: Mapping[int, float], kind: str, *, in_energy: bool = False) -> Estimate:
        """Estimate a combination of columns of one kind of debiased CKA, with its jackknife interval over samples.

        The jackknife counts the second-order part of the variance twice, all of it where networks are unrelated; that
        part, q, is subtracted (`Indices.degenerate_variance`), times 2 q / v if the jackknife's variance v is larger:
        q is that of unrelated networks, and too large for others. At least v / 2 remains. Given untrained twins the
        formula does not hold, and nothing is subtracted. The variance of the mean over random splits of the samples is
        added: for unrelated networks with many layers it is as large as the rest.
        """
        columns, weights = np.array(list(coefficients), int), np.array(list(coefficients.values()))
        value = float(self.theta[columns] @ weights)
        left_out = self.combined_without(coefficients)
        units = self.units
        squares = np.square(left_out - left_out.mean())
        variance = (units - 1) / units * float(squares.sum())
        with np.errstate(invalid="ignore"):
            support = float(squares.sum() ** 2 / np.square(squares).sum())
        null = self.evidence.estimates.null_variances
        if kind != TWINS and np.isfinite(variance) and np.isfinite(null).all():
            second = self.second_order_variance(coefficients, kind, in_energy=in_energy)
            variance -= second * min(1, 2 * second / variance) if 2 * second < variance else variance / 2
        by_split = self.evidence.estimates.splits[:, columns] @ weights
        by_split = by_split[np.isfinite(by_split)]
        if len(by_split) > 1:
            variance += float(by_split.var(ddof=1)) / len(by_split)
        se = float(np.sqrt(variance))
        margin = quantile(units) * se
        return Estimate(value, se, value - margin, value + margin, support)

    def second_order_variance(self, coefficients: Mapping[int, float], kind: str, *, in_energy: bool = False) -> float:
        """Compute the second-order part of the variance of a combination of columns of one kind."""
        if (kind, in_energy) not in self._values:
            compute = self.indices.residuals if in_energy else self.indices.similarities
            self._values[kind, in_energy] = compute(self.matrices, kind)
        variances = self.evidence.estimates.null_variances
        values = self._values[kind, in_energy]
        return self.indices.degenerate_variance(values, kind, coefficients, variances, in_energy=in_energy)

    @cached_property
    def _values(self) -> dict[tuple[str, bool], Float64[np.ndarray, "L L"]]:
        """Similarities of all layers that were computed already, by kind and by whether they are in units of energy."""
        return {}

    def effects(
        self, kind: str, pairs: Sequence[Pair], *, in_energy: bool = False, only: Member | None = None
    ) -> tuple[dict[str, float], dict[str, Estimate]]:
        """Return the level of every control, and how far trained pairs of models exceed it, means over the pairs.

        Parameters
        ----------
        kind
            Kind of debiased CKA.
        pairs
            Pairs of trained models, each with all of its controls.
        in_energy
            Whether values are in units of energy.
        only
            An untrained network that is a control of all pairs: only controls with this network count.
        """
        what = "energy" if in_energy else "index"
        trained = self.mean_of(kind, pairs, what)
        levels, excess = {}, {}
        for name in CONTROL_PAIRS:
            control = self.mean_of_controls(kind, pairs, name, what, only=only)
            if not control:
                continue
            levels[name] = float(sum(weight * self.theta[column] for column, weight in control.items()))
            difference = {
                column: trained.get(column, 0.0) - control.get(column, 0.0) for column in {*trained, *control}
            }
            excess[name] = self.estimate(dict(sorted(difference.items())), kind, in_energy=in_energy)
        return levels, excess
