"""What is to be known before any number of a study is believed, in plain sentences."""

from collections.abc import Iterator

import numpy as np

from repsim.study.design import is_twin
from repsim.study.evidence import Evidence
from repsim.study.formatting import listed
from repsim.study.reading import ALPHA

_FEW = 100
"""Samples: with fewer, intervals are wide, and those of skewed numbers too short."""
_LEVERAGE = 0.1


def warnings(evidence: Evidence) -> Iterator[str]:
    """What is to be known before any of the numbers is believed."""
    design, kernels = evidence.design, evidence.kernels
    yield from design.notes
    n = design.n
    if n < _FEW:
        yield f"{n} samples: intervals are wide, and their coverage is known from 200 on; take more pictures"
    if evidence.duplicates:
        twins = [f"{a} = {b}" for a, b in evidence.duplicates]
        yield (
            f"{len(twins)} samples are the same as another one ({listed(twins)}): a sample and its double count as "
            "similarity, and the samples are not independent; leave one of each out"
        )
    if "input" not in kernels.of:
        yield (
            "no store holds the pixels that went into its network, so it is not known what the input alone explains; "
            "extract the models again, or give write_store(..., pixels=)"
        )
    else:
        lacking = [member.name for member in design.members if member.store.pixels is None]
        if lacking:
            yield f"the pixels that went into {listed(lacking)} are not stored; the input of the others stands for them"
    if "labels" not in kernels.of:
        yield "the samples have no class labels: no within-class permutations, and nothing given the classes"
    for what, text in kernels.undefined.items():
        yield f"{what} is left out: {text}"
    loud = [
        f"{kernels.names[k]} ({share:.0%})"
        for k, gram in enumerate(kernels.grams)
        if (share := float(gram.squared_norms.max() / gram.squared_norms.sum())) > _LEVERAGE
    ]
    if loud:
        yield f"one sample carries more than a tenth of the variance of {listed(loud)}: similarities there are its own"
    thin = [name for name, gram in zip(kernels.names, kernels.grams, strict=True) if gram.p == 1]
    if thin:
        yield f"{listed(thin)} has one feature: a kernel of rank 1, which is like any other with that one direction"
    needed = int(np.ceil(len(design.pairs) / ALPHA)) - 1
    if evidence.permutations < needed:
        yield (
            f"{evidence.permutations} permutations are too few for {len(design.pairs)} pairs of models: no p-value can "
            f"be below {ALPHA} after Holm's correction; {needed} or more are needed"
        )
    yield from _of_untrained(evidence)
    for each in evidence.measured:
        yield from (f"{each.metric.spec}: {note}" for note in each.notes)
        cautions = {caution for pair in design.pairs for caution in each.cautions.get(pair.name, ())}
        if cautions:
            yield f"{each.metric.spec}: {listed(sorted(cautions), 1)}"


def _of_untrained(evidence: Evidence) -> Iterator[str]:
    design = evidence.design
    if not design.untrained:
        yield (
            "no untrained networks: it cannot be said how much of the similarity is learned; add "
            "untrained controls, three of each architecture for instance"
        )
        return
    stale = [
        member.name
        for member in design.untrained
        if "not recalibrated" in str(member.store.provenance.get("batch_norm", ""))
    ]
    if stale:
        yield (
            f"batch norm of {listed(stale)} was not recalibrated on the samples: in eval mode it does nothing in an "
            "untrained network; extract them again, recalibrated"
        )
    lacking = {m.architecture for m in design.trained} - {m.architecture for m in design.untrained}
    if lacking:
        yield f"no untrained network of {listed(sorted(lacking))}: pairs with it have no control"
    others = [
        trained.name
        for trained in design.trained
        if trained.architecture not in lacking and not any(is_twin(m, trained) for m in design.untrained)
    ]
    if others:
        yield f"the untrained networks of {listed(others)} have other layers: nothing is given them there"
    same = [m.name for m in design.untrained if _repeats(evidence, m.name)]
    if same:
        yield (
            f"neighbouring layers of {listed(same)} are the same: timm starts the last batch norm of residual blocks "
            "at 0, so an untrained block adds nothing"
        )


def _repeats(evidence: Evidence, model: str) -> bool:
    where = evidence.kernels.of[model]
    beside = evidence.indices.R[where[:-1], where[1:]]
    return bool((beside > 1 - 1e-6).any())
