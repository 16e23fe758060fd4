"""Decide what may be claimed of pairs of families: whether they share something learned, and at which level.

There are two levels. *Networks*: the networks of the study share it, on samples like these. *Architectures*: other
networks of the same architectures would share it, too. docs/what-universality-means.md describes the rule.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from repsim.study.formatting import listed, number, probability
from repsim.study.multiple_tests import hommel
from repsim.study.reading import ALPHA, Level

LEAST_ENERGY = 0.1
"""Share of the energy of trained networks that the input has to leave; of less it is not said that it was learned."""
LEAST_EFFECT = 0.01
"""Smallest effect, as a share of all energy, that is claimed."""
LEAST_SUPPORT, _SUPPORT_OF_FEW = 5.0, 1 / 8
"""Smallest number of samples on which the interval of an effect may rest (`Estimate.support`), or share of few ones.

Influences of equal variance give a third of the number of samples, or of groups of samples."""


@dataclass(frozen=True)
class Decision:
    """Level of the claim about a pair of families, and the reason why it is no higher."""

    level: Level
    """Highest level at which something learned is shared; empty if it is not shown."""
    reason: str
    """Why it is no higher; empty at the highest level."""
    p_networks: float = np.nan
    """p-value over samples, adjusted for the number of pairs of families."""
    p_architectures: float = np.nan
    """The largest one of the p-values over samples, of the exact test over networks, and over both, adjusted likewise.
    """


Subject = Literal["architectures", "trained network", "untrained network"]
"""Subject of a part of a claim."""


@dataclass(frozen=True)
class Part:
    """One of the comparisons that a claim rests on: some of the trained networks of two families, and their controls.

    A claim is about every pair of architectures, every trained network, and every untrained network: means over a
    family would hide a network that shares nothing, or an untrained network that is the best control.
    """

    of: Subject
    name: str
    """Names of the architectures or of the network; empty if each family has a single architecture."""
    kind: str
    """Kind of debiased CKA, named after what is controlled for in all layers (`Indices.kernels`)."""
    in_energy: bool
    """Whether the effect is in units of energy."""
    value: float
    """Effect: how far trained networks exceed the strongest control."""
    low: float
    high: float
    """Smallest ends over the controls of the 95 % intervals over samples."""
    control: str
    """The strongest control, with its value."""
    p_samples: float
    """One-sided p-value over samples, the largest over the controls."""
    support: float
    """Number of samples on which the interval rests, the smallest over the controls."""
    units: int
    """Number of independent samples, or of groups of samples."""
    p_exchange: float = np.nan
    """p-value of the exact test over networks; only of architectures."""
    p_exchange_least: float = np.nan
    """Smallest p-value that the exact test can have."""
    network_low: float = np.nan
    network_high: float = np.nan
    """Ends of the 95 % interval over networks and samples; NaN with a single network of a kind."""
    p_crossed: float = np.nan
    """Two-sided p-value that belongs to this interval."""


@dataclass(frozen=True, eq=False)
class Case:
    """Facts on which the decision about a pair of families depends."""

    families: tuple[str, str]
    without_twins: Sequence[str]
    """Architectures without an untrained network, if no pair of models has all of its controls."""
    partly_without: Sequence[str]
    """Architectures whose models are left out, because they have no untrained network."""
    parts: Sequence[Part]
    """All parts of the claim, first those of architectures; none if the input is not known."""
    classes_unknown: str
    """Why similarity within classes is not known although there are classes; empty otherwise."""
    without_pixels: Sequence[str]
    """Trained models whose input is not stored."""
    common_twins: Sequence[str]
    """Untrained networks that are controls of both families, because an architecture is in both."""
    energy_left: Mapping[str, float]
    """Energy that the input leaves of the trained networks of each family."""
    contradicting: Sequence[str]
    """Measures under which trained networks are less alike than a control, with the whole interval."""

    @property
    def of_architectures(self) -> list[Part]:
        """Parts about pairs of architectures."""
        return [part for part in self.parts if part.of == "architectures"]


def decide(cases: Sequence[Case], *, dependent: bool) -> list[Decision]:
    """Decide about all pairs of families.

    Every part of a claim has to hold: of every pair of architectures, every trained and every untrained network, the
    effect exceeds each control, given the input and, with labels, given both, in partial values and in units of energy.
    The largest p-value of the pairs of architectures is that of the pair of families (intersection-union test): over
    samples for the networks of the study; over samples, of the exact test, and over networks and samples together for
    architectures. Over pairs of families, p-values are adjusted by Hommel's method: all pairs are claimed if each has
    p <= 0.05 on its own.

    Parameters
    ----------
    cases : sequence of Case
        All pairs of families.
    dependent : bool
        Whether some samples are alike, but not declared as groups: intervals over samples then mean nothing.
    """
    by_samples = [max((part.p_samples for part in case.of_architectures), default=np.nan) for case in cases]
    refusals = [
        _DEPENDENT if dependent else _missing(case) or _not_shown(case, p, _among(by_samples))
        for case, p in zip(cases, hommel(by_samples).tolist(), strict=True)
    ]
    by_both = [
        _largest_p(case, p) if not refusal or np.isnan(p) else 1.0  # what is refused cannot support another claim
        for case, p, refusal in zip(cases, by_samples, refusals, strict=True)
    ]
    adjusted = zip(hommel(by_samples).tolist(), hommel(by_both).tolist(), strict=True)
    decisions = []
    for case, refusal, p_values in zip(cases, refusals, adjusted, strict=True):
        objection = refusal or _objection_to_architectures(case, p_values[1], _among(by_both))
        level: Level = "" if refusal else "networks" if objection else "architectures"
        decisions.append(Decision(level, objection, *p_values))
    return decisions


_DEPENDENT = "some samples are alike and not declared as groups, so there is no interval that holds"


def _largest_p(case: Case, by_samples: float) -> float:
    """Return the largest p-value of a claim about architectures; NaN if one is not known."""
    over_networks = [p for part in case.of_architectures for p in (part.p_exchange, part.p_crossed)]
    return float(np.max([by_samples, *over_networks]))


def _among(p: Sequence[float]) -> str:
    """Return for how many pairs of families p-values are adjusted; empty if there is only one."""
    count = int(np.isfinite(p).sum())
    return f"adjusted for {count} pairs of families" if count > 1 else ""


def _missing(case: Case) -> str:
    """Return which control a pair of families lacks; empty if it has all."""
    if case.without_twins:
        return f"no untrained network of {listed(list(case.without_twins))}, so there is no control"
    if not case.parts:
        return "the input is not known"
    if case.without_pixels:
        return f"the input of {listed(list(case.without_pixels))} is not stored, so it is not controlled for"
    if case.classes_unknown:
        return f"{_UNTOLD}: {case.classes_unknown}"
    if little := [family for family, left in case.energy_left.items() if not left >= LEAST_ENERGY]:
        left = " and ".join(f"{number(case.energy_left[family])} of {family}" for family in little)
        return f"the input explains almost all of the energy, and leaves {left}: too little to judge"
    return ""


def _not_shown(case: Case, p: float, among: str) -> str:
    """Return in which part the claim is not shown; empty if it is in all."""
    objections = {kind: [_objection(part) for part in case.parts if part.kind == kind] for kind in CLAIMED}
    unknown = [part for part in case.parts if part.kind == BOTH and np.isnan(part.low)]
    for kind, prefix in CLAIMED.items():
        if kind == BOTH and unknown:
            return f"{_UNTOLD}: given the input and the class labels, the effect has no interval"
        if reason := next(filter(None, objections[kind]), ""):
            return f"{prefix}, {reason}"
    if not p <= ALPHA / 2:
        value = ", ".join(filter(None, [f"p = {probability(p)}", among]))
        return f"the effect is above 0, but not beyond doubt ({value})"
    if case.contradicting:
        return f"the measures disagree: under {listed(list(case.contradicting))} a control is more alike"
    return ""


BEYOND = "not beyond the classes"
"""Beginning of the reason why nothing is claimed of networks that share something given the input alone."""
BOTH = "input and labels"
_UNTOLD = "it cannot be told whether anything goes beyond the classes"
CLAIMED = {
    "input": "given the input",
    BOTH: f"{BEYOND}: given the input and the class labels",
}
"""Kinds of debiased CKA on which a claim rests, in the words of a refusal."""


def _objection(part: Part) -> str:
    """Return why the effect of a part is not shown for the networks of the study; empty if it is."""
    unit = " in units of energy" if part.in_energy else ""
    if np.isnan(part.low):
        return f"the effect{unit} has no interval"
    text = number(part.value, part.low, part.high)
    if not part.low > 0:
        relation = "are less alike than" if part.high < 0 else "are not shown to be more alike than"
        which = "trained networks"
        if part.of == "trained network":
            which, relation = part.name, relation.replace("are ", "is ", 1)
        elif part.of == "architectures" and part.name:
            which = f"trained networks of {part.name}"
        return f"{which} {relation} {part.control}: the effect{unit} is {text}"
    if part.of == "architectures" and part.in_energy and part.value < LEAST_EFFECT:
        return f"the effect is {text} of the energy, which is too little to be called anything"
    if part.of == "architectures" and part.support < min(LEAST_SUPPORT, _SUPPORT_OF_FEW * part.units):
        return f"the interval of the effect rests on few samples, as if there were {part.support:.1f}"
    return ""


def _objection_to_architectures(case: Case, p: float, among: str) -> str:
    """Return why a claim is limited to the networks of the study; empty if it is not."""
    if case.partly_without:
        return f"no untrained network of {listed(list(case.partly_without))}"
    if case.common_twins:
        return f"the untrained networks are those of both families ({listed(list(case.common_twins))})"
    return _too_few_networks(case.of_architectures) or _not_shown_over_networks(case.of_architectures, p, among)


def _too_few_networks(parts: Sequence[Part]) -> str:
    """Return why the networks are too few for a claim about architectures; empty if they are not."""
    worst = max(parts, key=lambda part: part.p_exchange_least)
    if not worst.p_exchange_least <= ALPHA:
        of, least = f" of {worst.name}" if worst.name else "", probability(worst.p_exchange_least)
        return f"with so few networks{of} the exact test cannot reach 0.05 (its smallest p is {least})"
    if np.isnan([part.network_low for part in parts]).any():
        return "an architecture has a single trained or a single untrained network"
    return ""


def _not_shown_over_networks(parts: Sequence[Part], p: float, among: str) -> str:
    """Return why the effect is not shown for other networks of the architectures; empty if it is."""
    exchange = float(np.max([part.p_exchange for part in parts]))
    if not exchange <= ALPHA:
        return f"exchanging trained and untrained networks gives p = {probability(exchange)}"
    if not (low := min(part.network_low for part in parts)) > 0:
        return f"the interval over networks and samples begins at {number(low)}"
    if not p <= ALPHA:
        return ", ".join(filter(None, [f"p = {probability(p)} over networks and samples", among]))
    return ""
