"""Decide what may be claimed of pairs of families: whether they share something learned, and at which level.

There are two levels. *Networks*: the networks of the study share it, on pictures like these. *Architectures*: other
networks of the same architectures would share it, too. docs/what-universality-means.md describes the rule.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import xarray as xr

from repsim.study.formatting import listed, number, probability
from repsim.study.multiple_tests import hommel
from repsim.study.reading import ALPHA, Level

LEAST_ENERGY = 0.1
"""Share of the energy of trained networks that the input has to leave; of less it is not said that it was learned."""
LEAST_EFFECT = 0.01
"""Smallest effect, as a share of all energy, that is claimed."""


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
    """The larger one of the p-values over samples and over networks, adjusted likewise."""


@dataclass(frozen=True, eq=False)
class Case:
    """Facts on which the decision about a pair of families depends."""

    families: tuple[str, str]
    without_twins: Sequence[str]
    """Architectures without an untrained network, if no pair of models has all of its controls."""
    partly_without: Sequence[str]
    """Architectures whose models are left out, because they have no untrained network."""
    given_input: xr.Dataset | None
    """Values with the input projected out; None if it is not known."""
    given_both: xr.Dataset | None
    """Values with the input and the class labels projected out; None without labels."""
    without_pixels: Sequence[str]
    """Trained models whose input is not stored."""
    common_twins: Sequence[str]
    """Untrained networks that are controls of both families, because an architecture is in both."""
    energy_left: Mapping[str, float]
    """Energy that the input leaves of the trained networks of each family."""
    contradicting: Sequence[str]
    """Measures under which trained networks are less alike than a control, with the whole interval."""


def decide(cases: Sequence[Case], *, dependent: bool) -> list[Decision]:
    """Decide about all pairs of families.

    Every part of a claim has to hold: the effect exceeds each control, given the input and, with labels, given both, in
    partial values and in units of energy. The largest p-value of the parts is that of the pair (intersection-union
    test): over samples for the networks of the study, over samples and of the exact test for architectures. Over pairs
    of families, p-values are adjusted by Hommel's method: all pairs are claimed if each has p <= 0.05 on its own.

    Parameters
    ----------
    cases : sequence of Case
        All pairs of families.
    dependent : bool
        Whether some samples are alike, but not declared as groups: intervals over samples then mean nothing.
    """
    parts = [[part for part in (case.given_input, case.given_both) if part is not None] for case in cases]
    by_samples = [max((float(part["p_samples"]) for part in of_case), default=np.nan) for of_case in parts]
    by_both = [
        max([p, *(float(part["p_exchange"]) for part in of_case)]) for p, of_case in zip(by_samples, parts, strict=True)
    ]
    adjusted = zip(hommel(by_samples).tolist(), hommel(by_both).tolist(), strict=True)
    decisions = []
    for case, of_case, p_values in zip(cases, parts, adjusted, strict=True):
        if dependent:
            reason = "some samples are alike and not declared as groups, so there is no interval that holds"
        else:
            reason = _objection(case, p_values[0])
        level: Level = ""
        if not reason:
            reason = _objection_to_architectures(case, of_case, p_values[1])
            level = "networks" if reason else "architectures"
        decisions.append(Decision(level, reason, *p_values))
    return decisions


def _objection(case: Case, p: float) -> str:
    """Return why it is not shown that the networks of two families share something learned; empty if it is shown."""
    return _missing(case) or _not_shown(case, p)


def _missing(case: Case) -> str:
    """Return which control a pair of families lacks; empty if it has all."""
    if case.without_twins:
        return f"no untrained network of {listed(list(case.without_twins))}, so there is no control"
    if case.given_input is None:
        return "the input is not known"
    if case.without_pixels:
        return f"the input of {listed(list(case.without_pixels))} is not stored, so it is not controlled for"
    if little := [family for family, left in case.energy_left.items() if not left >= LEAST_ENERGY]:
        left = " and ".join(f"{number(case.energy_left[family])} of {family}" for family in little)
        return f"the input explains almost all of the energy, and leaves {left}: too little to judge"
    return ""


def _not_shown(case: Case, p: float) -> str:
    """Return in which part the claim is not shown; empty if it is in all."""
    assert case.given_input is not None, "checked by _missing"
    if reason := _no_effect(case.given_input, p if case.given_both is None else 0.0):
        return f"given the input, {reason}"
    if case.given_both is not None and (reason := _no_effect(case.given_both, p)):
        return f"not beyond the classes: given the input and the class labels, {reason}"
    if case.contradicting:
        return f"the measures disagree: under {listed(list(case.contradicting))} a control is more alike"
    return ""


def _no_effect(values: xr.Dataset, p: float) -> str:
    """Return why the effect is not shown for the networks of the study; empty if it is."""
    for suffix, unit in (("", ""), ("_energy", " in units of energy")):
        effect, low, high = (float(values[f"effect{suffix}{end}"]) for end in ("", "_low", "_high"))
        if np.isnan(low):
            return f"the effect{unit} has no interval"
        if not low > 0:
            control = _strongest(values, suffix)
            relation = "are less alike than" if high < 0 else "are not shown to be more alike than"
            text = number(effect, low, high)
            return f"trained networks {relation} {control}: the effect{unit} is {text}"
        if suffix and effect < LEAST_EFFECT:
            return f"the effect is {number(effect, low, high)} of the energy, which is too little to be called anything"
    if not p <= ALPHA / 2:
        return f"the effect is above 0, but not beyond doubt among so many pairs of families (p = {probability(p)})"
    return ""


def _strongest(values: xr.Dataset, suffix: str) -> str:
    """Describe the control with the largest value."""
    levels = values["control_energy" if suffix else "control_value"].values
    a, b = str(values["family_a"].item()), str(values["family_b"].item())
    by_control = {
        "both untrained": f"untrained {a} with untrained {b}",
        "first trained": f"trained {a} with untrained {b}",
        "second trained": f"untrained {a} with trained {b}",
    }
    name = str(values["control_pair"].values[int(np.nanargmax(levels))])
    return f"{by_control[name]} ({number(float(np.nanmax(levels)))})"


def _objection_to_architectures(case: Case, parts: Sequence[xr.Dataset], p: float) -> str:
    """Return why a claim is limited to the networks of the study; empty if it is not."""
    if case.partly_without:
        return f"no untrained network of {listed(list(case.partly_without))}"
    if case.common_twins:
        return f"the untrained networks are those of both families ({listed(list(case.common_twins))})"
    least = float(parts[0]["p_exchange_least"])
    if not least <= ALPHA:
        return f"with so few networks the exact test cannot reach 0.05 (its smallest p is {probability(least)})"
    lows = [float(part[f"effect{suffix}_network_low"]) for part in parts for suffix in ("", "_energy")]
    if np.isnan(lows).any():
        return "an architecture has a single trained or a single untrained network"
    if not p <= ALPHA:
        return f"exchanging trained and untrained networks gives p = {probability(p)}"
    if not min(lows) > 0:
        return f"the interval over networks and samples begins at {number(min(lows))}"
    return ""
