"""Explain beforehand what a study of given stores can and cannot show, and what to add."""

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from itertools import combinations, product

from repsim.stores.opening import open_all
from repsim.stores.store import ActivationStore
from repsim.study import controls
from repsim.study.design import Design, design
from repsim.study.exchange import MOST_CHOICES, choices_of
from repsim.study.formatting import listed, probability
from repsim.study.multiple_tests import hommel
from repsim.study.reading import ALPHA

_ENOUGH_SAMPLES = 200
"""Number of samples from which the coverage of intervals was tested."""


def explain_study(
    stores: Sequence[ActivationStore | str | os.PathLike[str]],
    *,
    families: Mapping[str, Sequence[str]] | None = None,
    family_by: str | None = None,
    readout: str | None = None,
) -> list[str]:
    """Explain what a study of these stores can and cannot show, and what to add; nothing is computed.

    Parameters
    ----------
    stores : sequence of ActivationStore or path
        The stores, as for `repsim.universality`.
    families : mapping, optional
        Families by hand, as for `repsim.universality`.
    family_by : str, optional
        Axis whose values are the families, as for `repsim.universality`.
    readout : str, optional
        Readout to compare, if stores hold several.

    Returns
    -------
    list of str
        Sentences.

    Raises
    ------
    InvalidInputError, SampleMismatchError
        As `repsim.universality` does.

    Examples
    --------
    >>> import numpy as np
    >>> from repsim.testing.examples import opened_networks
    >>> with opened_networks(np.random.default_rng(0), 40, learned=1, seen=1) as stores:
    ...     sentences = explain_study(stores)
    >>> sentences[-1]
    '40 samples: intervals are tested from 200 samples on; take more.'
    """
    with ExitStack() as stack:
        opened = open_all(stores, stack)
        return list(_sentences(design(opened, families=families, family_by=family_by, readout=readout)))


def _sentences(study: Design) -> Iterator[str]:
    families = list(dict.fromkeys(member.family for member in study.trained))
    for family in families:
        trained = [member for member in study.trained if member.family == family]
        architectures = dict.fromkeys(member.architecture for member in trained)
        parts = [
            f"{architecture} ({sum(m.architecture == architecture for m in trained)} trained, "
            f"{sum(m.architecture == architecture for m in study.untrained)} untrained)"
            for architecture in architectures
        ]
        yield f"Family {family}: {', '.join(parts)}."
    yield from study.notes
    if len(families) < 2:
        yield "With one family nothing can be said across families: add networks of another one."
    pairs = list(combinations(families, 2))
    tested = sum(all(_is_tested(_counts(study, family)) for family in pair) for pair in pairs)
    by_text: dict[str, list[str]] = {}
    for a, b in pairs:
        by_text.setdefault(_about_pair(study, a, b, tested), []).append(f"{a} x {b}")
    for text, names in by_text.items():
        yield f"{listed(names, 6)}: {text}"
    yield from _about_samples(study)


def _counts(study: Design, family: str) -> dict[str, tuple[int, int]]:
    """Return the numbers of trained networks of a family and of untrained ones, by architecture."""
    trained = [member.architecture for member in study.trained if member.family == family]
    return {
        name: (trained.count(name), sum(m.architecture == name for m in study.untrained))
        for name in dict.fromkeys(trained)
    }


def _about_pair(study: Design, a: str, b: str, tested: int) -> str:
    """Explain what can be claimed of two families, where so many pairs of families are tested."""
    sides = [_counts(study, family) for family in (a, b)]
    counts = sides[0] | sides[1]
    lacking = [name for name, (_, untrained) in counts.items() if not untrained]
    add = f"add three untrained networks of {listed(lacking)} (controls untrained:3)"
    controlled = [{name: both for name, both in side.items() if both[1]} for side in sides]
    if not all(controlled):
        return f"nothing can be claimed: without untrained networks there is no control; {add}."
    if lacking:
        return (
            f"a claim can be about networks of {listed([*(controlled[0] | controlled[1])])} only, on samples like "
            f"these: those of {listed(lacking)} have no control; {add}."
        )
    if reasons := list(_only_networks(*sides)):
        few = [name for name, both in counts.items() if min(both) < 2]
        return (
            f"a claim can be about these networks only, on samples like these: {', and '.join(reasons)}. For a claim "
            f"about architectures, take at least two trained and three untrained ones of {listed(few or [*counts])}."
        )
    return _about_architectures(_least(*sides), tested)


_Counts = Mapping[str, tuple[int, int]]
"""Numbers of trained and untrained networks, by architecture."""


def _is_tested(counts: _Counts) -> bool:
    """Return whether those architectures of a family that have controls, if any, have intervals over networks."""
    controlled = [both for both in counts.values() if both[1]]
    return bool(controlled) and all(min(both) > 1 for both in controlled)


def _least(a: _Counts, b: _Counts) -> float:
    """Return the smallest p of the exact test over networks that every pair of architectures can reach."""
    return max(1 / min(choices_of(pair), MOST_CHOICES) for pair in product(a.values(), b.values()))


def _only_networks(a: _Counts, b: _Counts) -> Iterator[str]:
    """Yield why nothing can be claimed of the architectures of two families, of which each has its controls."""
    if common := [name for name in a if name in b]:
        yield f"the untrained networks of {listed(common)} are those of both families"
    if few := [name for name, both in {**a, **b}.items() if min(both) < 2]:
        yield (
            f"without a second trained and a second untrained network of {listed(few)} there is no interval over "
            "networks"
        )
    if (least := _least(a, b)) > ALPHA:
        yield f"the exact test over networks cannot give less than p = {probability(least)}"


def _about_architectures(least: float, tested: int) -> str:
    """Explain what the exact test can show, of this pair of families alone and if others hold, too."""
    text = f"the smallest p of the exact test over networks is {probability(least)}"
    if tested < 2:
        return f"a claim can be about these architectures; {text}."
    alone = float(hommel([least, *[1.0] * (tested - 1)])[0])
    text = f"{text}, and {probability(alone)} adjusted for {tested} pairs of families if only one of them holds"
    if alone <= ALPHA:
        return f"a claim can be about these architectures; {text}."
    return (
        f"a claim can be about these architectures if other pairs of families hold, too; {text}. For a claim about a "
        f"single pair, take {_enough(tested)} networks of every architecture."
    )


def _enough(tested: int) -> str:
    """Return numbers of networks with which a single one of so many pairs of families can be claimed."""
    trained, untrained = 2, 3
    while tested / choices_of([(trained, untrained)] * 2) > ALPHA:
        trained, untrained = untrained, max(untrained, trained + 1)
    return f"{trained} trained and {untrained} untrained"


def _about_samples(study: Design) -> Iterator[str]:
    without = [member for member in study.members if not controls.has_input(member.store)]
    trained = [member.name for member in without if member.trained]
    if len(without) == len(study.members):
        yield "No store holds the input of its network: nothing can be claimed. Extract them again."
    elif trained:
        yield (
            f"The input of {listed(trained)} is not stored: nothing can be claimed of them. Extract them again, or "
            "write them with their input."
        )
    elif without:
        names = listed([member.name for member in without])
        yield f"The input of {names} is not stored; it is taken to be that of the other networks."
    if reason := controls.unjudged_classes(study):
        yield f"It cannot be told whether anything goes beyond the classes, so nothing can be claimed: {reason}."
    elif controls.classes(study) is None:
        reason = controls.objection_to_classes(study) or "there are no class labels"
        yield f"It cannot be said whether anything goes beyond classes: {reason}."
    if study.groups is None:
        alike = "Pictures of a scene" if set(study.modalities) <= {"image"} else "Samples"
        yield (
            "Near duplicates (frames of a scene, copies, crops) are looked for by the study. If there are more than a "
            "few, nothing is claimed until they are declared as groups, or all but one of each are left out. "
            f"{alike} that are only somewhat alike are not recognised: declare their groups."
        )
    if study.n < _ENOUGH_SAMPLES:
        yield f"{study.n} samples: intervals are tested from {_ENOUGH_SAMPLES} samples on; take more."
