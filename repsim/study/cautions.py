"""Write the warnings of a study: limits of its models, samples and statistics, in plain sentences."""

from collections.abc import Iterator

import numpy as np

from repsim.study.controls import has_input, objection_to_classes
from repsim.study.design import is_twin
from repsim.study.evidence import Evidence
from repsim.study.formatting import listed
from repsim.study.reading import ALPHA

_FEW_SAMPLES = 100
"""Number of samples below which intervals are wide, and those of skewed indices too short."""
_LEVERAGE = 0.1
"""Share of a layer's variance above which a single sample is reported."""


def warnings(evidence: Evidence) -> Iterator[str]:
    """Yield the warnings of a study, one sentence each."""
    design, kernels = evidence.design, evidence.kernels
    yield from design.notes
    n = design.n
    if n < _FEW_SAMPLES:
        yield f"{n} samples: intervals are wide; their coverage was tested only from 200 samples on; take more samples"
    yield from evidence.notes
    if evidence.duplicates.caution is not None:
        yield evidence.duplicates.caution
    if "input" not in kernels.positions:
        yield (
            "no store holds the input of its network, so it is not known what the input alone explains; extract the "
            "models again, or give write_store(..., pixels=) or controls="
        )
    else:
        lacking = [member.name for member in design.members if not has_input(member.store)]
        if lacking:
            yield f"the input of {listed(lacking)} is not stored; that of the other models is used"
    if kernels.classes is None:
        reason = objection_to_classes(design)
        yield (
            f"{reason or 'the samples have no class labels'}: no permutations within classes, and no similarity "
            "given the labels"
        )
    for name, reason in kernels.undefined.items():
        yield f"{name} is left out: {reason}"
    layers = [k for member in design.members for k in kernels.positions[member.name]]
    dominated = [
        f"{kernels.names[k]} ({share:.0%})"
        for k in layers
        if (share := float(kernels.grams[k].squared_norms.max() / kernels.grams[k].squared_norms.sum())) > _LEVERAGE
    ]
    if dominated:
        yield (
            f"one sample carries more than a tenth of the variance of {listed(dominated)}: similarities of such a "
            "layer depend mostly on that sample"
        )
    single = [kernels.names[k] for k in layers if kernels.grams[k].p == 1]
    if single:
        yield (
            f"{listed(single)} has one feature: a kernel of rank 1, which is similar to any kernel with that one "
            "direction"
        )
    needed = int(np.ceil(len(design.pairs) / ALPHA)) - 1
    if evidence.permutations < needed:
        yield (
            f"{evidence.permutations} permutations are too few for {len(design.pairs)} pairs of models: no p-value can "
            f"be below {ALPHA} after Holm's correction, so nothing is tested; take {needed} permutations or more"
        )
    yield from _untrained_warnings(evidence)
    for result in evidence.measures:
        yield from (f"{result.metric.spec}: {note}" for note in result.notes)
        cautions = {caution for pair in design.pairs for caution in result.cautions.get(pair.name, ())}
        if cautions:
            yield f"{result.metric.spec}: {listed(sorted(cautions), 1)}"


def _untrained_warnings(evidence: Evidence) -> Iterator[str]:
    design = evidence.design
    if not design.untrained:
        yield (
            "no untrained networks: it cannot be said how much of the similarity is learned; add "
            "some of each architecture (controls untrained:3)"
        )
        return
    stale = [
        member.name
        for member in design.untrained
        if "not recalibrated" in str(member.store.provenance.get("batch_norm", ""))
    ]
    if stale:
        yield (
            f"batch norm of {listed(stale)} was not recalibrated on the samples: in eval mode it has no effect in an "
            "untrained network; extract them again, recalibrated"
        )
    lacking = {m.architecture for m in design.trained} - {m.architecture for m in design.untrained}
    if lacking:
        yield f"no untrained network of {listed(sorted(lacking))}: pairs with it have no control"
    without_twins = [
        trained.name
        for trained in design.trained
        if trained.architecture not in lacking and not any(is_twin(m, trained) for m in design.untrained)
    ]
    if without_twins:
        yield (
            f"the untrained networks of {listed(without_twins)} have other layers: their similarity given untrained "
            "networks is not computed"
        )
    repeating = [m.name for m in design.untrained if _has_equal_neighbours(evidence, m.name)]
    if repeating:
        yield (
            f"neighbouring layers of {listed(repeating)} are the same: timm starts the last batch norm of residual "
            "blocks at 0, so an untrained block adds nothing"
        )


def _has_equal_neighbours(evidence: Evidence, model: str) -> bool:
    layers = evidence.kernels.positions[model]
    neighbours = evidence.estimates.matrices[0, layers[:-1], layers[1:]]
    return bool((neighbours > 1 - 1e-6).any())
