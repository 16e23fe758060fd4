"""Explain beforehand what a study of given stores can and cannot show, and what to add."""

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from itertools import combinations

from repsim.stores.store import ActivationStore, as_stores, open_store
from repsim.study import controls
from repsim.study.design import Design, design
from repsim.study.exchange import choices_of
from repsim.study.formatting import listed, probability
from repsim.study.reading import ALPHA

_ENOUGH_SAMPLES = 200
"""Number of samples from which the coverage of intervals was tested."""


def explain_study(
    stores: Sequence[ActivationStore | str | os.PathLike[str]],
    *,
    families: Mapping[str, Sequence[str]] | None = None,
    readout: str | None = None,
) -> list[str]:
    """Explain what a study of these stores can and cannot show, and what to add; nothing is computed.

    Parameters
    ----------
    stores : sequence of ActivationStore or path
        The stores, as for `repsim.universality`.
    families : mapping, optional
        Families by hand, as for `repsim.universality`.
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
        opened = [
            store if isinstance(store, ActivationStore) else stack.enter_context(open_store(store))
            for store in as_stores(stores)
        ]
        return list(_sentences(design(opened, families=families, readout=readout)))


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
    for a, b in combinations(families, 2):
        yield _about_pair(study, a, b)
    yield from _about_samples(study)


def _about_pair(study: Design, a: str, b: str) -> str:
    """Explain what can be claimed of two families."""
    trained = [member for member in study.trained if member.family in {a, b}]
    architectures = list(dict.fromkeys(member.architecture for member in trained))
    counts = {
        name: (sum(m.architecture == name for m in trained), sum(m.architecture == name for m in study.untrained))
        for name in architectures
    }
    lacking = [name for name, (_, untrained) in counts.items() if not untrained]
    if lacking:
        return (
            f"{a} x {b}: without untrained networks of {listed(lacking)} the pairs of models with it are not held "
            "against anything; add three of each (controls untrained:3)."
        )
    least = 1 / choices_of(counts.values())
    few = [name for name, both in counts.items() if min(both) < 2]
    if few or least > ALPHA:
        text = f"{a} x {b}: a claim can be about these networks only, on samples like these. "
        text += f"The exact test over networks cannot give less than p = {probability(least)}"
        add = listed(few or architectures)
        return f"{text}. For a claim about architectures, take at least two trained and three untrained ones of {add}."
    return (
        f"{a} x {b}: a claim can be about these architectures; the smallest p of the exact test over networks is "
        f"{probability(least)}."
    )


def _about_samples(study: Design) -> Iterator[str]:
    without = [member.name for member in study.members if member.store.pixels is None]
    if without:
        yield f"The input of {listed(without)} is not stored: nothing can be claimed of them. Extract them again."
    if controls.classes(study) is None:
        yield "There are no class labels, so it cannot be said whether anything goes beyond the classes."
    if study.n < _ENOUGH_SAMPLES:
        yield f"{study.n} samples: intervals are tested from {_ENOUGH_SAMPLES} samples on; take more."
