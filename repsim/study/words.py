"""What a study found, in plain sentences that follow from its numbers.

The word "universal" is used only where the learned effect across families is above 0 with its whole interval.
"""

from collections.abc import Iterator
from itertools import combinations
from typing import Any

import numpy as np
import xarray as xr
from scipy import stats

from repsim.study.design import is_twin
from repsim.study.evidence import Evidence

_FEW = 100
"""Samples: with fewer, intervals are wide, and those of skewed numbers too short."""
_LEVERAGE = 0.1
_ALPHA = 0.05
_NAMED = 3
"""Samples, layers and the like that are named."""


def quantile(n: int, level: float = 0.95) -> float:
    """How many standard errors an interval reaches to either side.

    >>> round(quantile(1000), 2)
    1.96
    """
    return float(stats.t.ppf((1 + level) / 2, n - 1))


def number(value: float, low: float | None = None, high: float | None = None) -> str:
    """A value, and its interval where there is one.

    >>> number(0.4182), number(0.4182, 0.401, 0.436), number(-0.0012)
    ('.418', '.418 (.401 to .436)', '-.001')
    """

    def plain(each: float) -> str:
        text = f"{each:.3f}"
        return (
            text.replace("0.", ".", 1)
            if abs(each) < 1 and text not in {"0.000", "-0.000", "1.000", "-1.000"}
            else ("0" if text in {"0.000", "-0.000"} else text)
        )

    if low is None or high is None or np.isnan(low):
        return plain(value)
    return f"{plain(value)} ({plain(low)} to {plain(high)})"


def probability(p: float) -> str:
    """A p-value, which is never 0.

    >>> probability(0.04), probability(0.0002)
    ('.040', '< .001')
    """
    return "< .001" if p < 0.0005 else number(p)  # what three digits show as 0


def listed(names: list[str], most: int = _NAMED) -> str:
    """The first few names.

    >>> listed(["a", "b", "c", "d", "e"]), listed(["a"])
    ('a, b, c and 2 more', 'a')
    """
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


# Warnings


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
    needed = int(np.ceil(len(design.pairs) / _ALPHA)) - 1
    if evidence.permutations < needed:
        yield (
            f"{evidence.permutations} permutations are too few for {len(design.pairs)} pairs of models: no p-value can "
            f"be below {_ALPHA} after Holm's correction; use --permutations {needed} or more"
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
            "--controls untrained:3 (in a study file, untrained: 3)"
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
            "untrained network; extract with --weights random --recalibrate"
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


# The summary


def summary(study: xr.Dataset) -> list[str]:
    """A handful of sentences, each from numbers of the study."""
    said = [_who(study), *_raw(study), *_learned(study), *_shares(study), *_ceilings(study), *_tested(study)]
    said += [*_depth(study), *_map(study), *_stimuli(study)]
    return said


def verdict(study: xr.Dataset) -> bool | None:
    """Whether something learned is shared across families; None where that cannot be said.

    It takes the input: on ImageNet pictures random checkpoints that posed as trained ones were more alike than
    untrained networks in plain CKA, and were not once the input was projected out.
    """
    if strictest(study) == "cka":
        return None
    low = float(study["learned_mean_low"].sel(kernel=strictest(study), kind_of_pair="other family"))
    return None if np.isnan(low) else low > 0


def name_of(study: xr.Dataset, share: str) -> str:
    """What a share is called, where it is printed: calling it universal would claim what only `verdict` may."""
    return "common to all families" if share == "universal" and not verdict(study) else share


def known_shares(study: xr.Dataset) -> dict[str, str]:
    """The shares that these models can tell apart, and of the others their sum: each with what it is called."""
    names = study["share_of"].values.tolist()
    known = [name for name in names if not np.isnan(study["share"].sel(share_of=name).values).all()]
    apart = [name for name in known if "_and_" not in name or not set(name.split("_and_")) & set(known)]
    return {name: " + ".join(name_of(study, part) for part in name.split("_and_")) for name in apart}


def strictest(study: xr.Dataset) -> str:
    """Given the input, where it is known."""
    return "cka given input" if "cka given input" in study["kernel"].values else "cka"


def _who(study: xr.Dataset) -> str:
    families: dict[str, int] = {}
    for family in study["family"].values.tolist():
        families[family] = families.get(family, 0) + 1
    counted = ", ".join(f"{family} ({count})" for family, count in families.items())
    return (
        f"{_many(study.sizes['model'], 'trained model')} of {_many(len(families), 'family', 'families')}: "
        f"{counted}; {study['n_samples'].item()} samples of {study['data'].item()}, readout {study['readout'].item()}."
    )


def _many(count: int, one: str, several: str = "") -> str:
    return f"{count} {one if count == 1 else several or one + 's'}"


def _means(study: xr.Dataset, what: str, kernel: str, relation: str = "other family") -> tuple[float, float, float]:
    at = {"kernel": kernel, "kind_of_pair": relation}
    found = [float(study[f"{what}_mean{end}"].sel(at)) for end in ("", "_low", "_high")]
    return found[0], found[1], found[2]


def _raw(study: xr.Dataset) -> Iterator[str]:
    value = _means(study, "index", "cka")
    if np.isnan(value[0]):
        within = [
            each
            for each in ("same architecture", "same family")
            if not np.isnan(_means(study, "index", "cka", each)[0])
        ]
        for relation in within:
            yield (
                f"Models of the {relation}: best-matching layers have a debiased CKA of "
                f"{number(*_means(study, 'index', 'cka', relation))}."
            )
        return
    text = f"Across families, best-matching layers have a debiased CKA of {number(*value)}"
    control, learned = _means(study, "control", "cka"), _means(study, "learned", "cka")
    if np.isnan(control[0]):
        yield f"{text}."
    elif learned[1] > 0:
        yield f"{text}; with untrained networks it is {number(*control)}."
    elif learned[2] < 0:
        yield f"{text}; with untrained networks it is {number(*control)}, which is more."
    else:
        yield (
            f"{text}; with untrained networks it is {number(*control)}: raw similarity does not tell trained networks "
            "from untrained ones here."
        )


def _learned(study: xr.Dataset) -> Iterator[str]:
    kernel, found = strictest(study), verdict(study)
    learned, value, control = (_means(study, what, kernel) for what in ("learned", "index", "control"))
    if np.isnan(value[0]):
        return
    if kernel == "cka":
        yield "What the input alone explains is not known, so nothing is said of how much of this is learned."
        return
    text = f"With the input projected out, {number(*value)} is left"
    if found is None:
        yield f"{text}; without untrained networks it cannot be said how much is learned."
        return
    text += f", and {number(*control)} with untrained networks: "
    if found:
        yield (
            f"{text}the learned effect is {number(*learned)}, above 0. To this extent what was learned is universal "
            "across these families."
        )
    elif learned[2] < 0:
        yield (
            f"{text}the difference is {number(*learned)}, below 0. Trained networks of different families are less "
            "alike than the control; nothing learned is shown to be shared."
        )
    else:
        yield (
            f"{text}the learned effect is {number(*learned)}, which may be 0. Nothing learned is shown to be shared "
            "across these families."
        )


def _shares(study: xr.Dataset) -> Iterator[str]:
    for state in study["state"].values.tolist():
        shares: dict[str, Any] = {
            name: study["mean_share"].sel(state=state, share_of=name).item()
            for name in study["share_of"].values.tolist()
        }
        with_input = "" if "cka given input" in study["kernel"].values else "input and "
        parts = [] if with_input else [f"input {number(shares['input'])}"]
        parts += [
            f"{with_input if name == 'universal' else ''}{name_of(study, name)} {number(shares[name])}"
            for name in ("universal", "family", "seed")
            if not np.isnan(shares[name])
        ]
        if np.isnan(shares["universal"]) and not np.isnan(shares["universal_and_family"]):
            parts.append(
                f"{with_input}family and what families share together {number(shares['universal_and_family'])}"
            )
        if np.isnan(shares["family"]) and not np.isnan(shares["family_and_seed"]):
            parts.append(f"family and seed together {number(shares['family_and_seed'])}")
        yield f"Shares of the energy of {state} representations, mean over depth: {', '.join(parts)}."


def _ceilings(study: xr.Dataset) -> Iterator[str]:
    kernel = strictest(study)
    both = combinations(study["ceiling_of"].values.tolist(), 2)
    for k, (families, kinds) in enumerate(zip(study["families"].values.tolist(), both, strict=True)):
        at = {"kernel": kernel}
        ratio, low, high = (float(study[name].sel(at)[k]) for name in ("ratio", "ratio_low", "ratio_high"))
        if not np.isnan(ratio):
            made = " and ".join(sorted(set(kinds)))
            yield f"{families}: {number(ratio, low, high)} of the ceiling that {made} set ({kernel})."


def _tested(study: xr.Dataset) -> Iterator[str]:
    if not study.sizes.get("pair"):
        return
    p = study["p_index_holm"].sel(measure=strictest(study)).values
    p = p[~np.isnan(p)]
    if len(p):
        yield (
            f"{int((p <= _ALPHA).sum())} of {len(p)} pairs of models are more alike than chance at 5 % (best match "
            f"of all layers, {study.attrs['permutations']} permutations, Holm; {strictest(study)})."
        )


def _depth(study: xr.Dataset) -> Iterator[str]:
    kernel = strictest(study)
    across = study["relation"].values == "other family" if study.sizes.get("pair") else np.zeros(0, bool)
    if across.any():
        split = float(study["split_half"].sel(measure=kernel).values[across].mean())
        whole = float(study["index"].sel(measure=kernel).values[across].mean())
        if np.isnan(split):  # halves too small for a control
            return
        yield (
            f"Matches of layers found on one half of the samples hold on the other: {number(split)} there, "
            f"{number(whole)} on all ({kernel})."
        )


def _map(study: xr.Dataset) -> Iterator[str]:
    if "cluster" not in study:
        return
    kernel = strictest(study)
    at = {"map": kernel if kernel in study["map"].values else study["map"].values[0]}
    labels = study["cluster"].sel(at).values
    common = [float(study[f"common_share{end}"].sel(at)) for end in ("", "_low", "_high")]
    yield f"The first common component carries {number(*common)} of what the models have ({at['map']})."
    if labels.max() < 1:
        yield "The models form no clear clusters."
        return
    groups = [study["model"].values[labels == label].tolist() for label in range(labels.max() + 1)]
    firm = float(study["cluster_stability"].sel(at))
    stable = (
        "" if np.isnan(firm) else f"; found again in resampled stimuli with an adjusted Rand index of {number(firm)}"
    )
    what = "Candidate universality classes" if verdict(study) else "Clusters of models"
    yield f"{what}: {' | '.join(listed(group, 4) for group in groups)}{stable}."


def _stimuli(study: xr.Dataset) -> Iterator[str]:
    if "agreement" not in study:
        return
    kernel = strictest(study)
    values = study["agreement"].sel(kernel=kernel)
    agreement = values.values.round(9)  # rounding errors do not choose between stimuli that are level
    least, most = (np.argsort(sign * agreement, kind="stable")[:_NAMED] for sign in (1, -1))
    names = values["sample"].values
    yield (
        f"Networks agree most on {listed([str(names[k]) for k in most])}, and least on "
        f"{listed([str(names[k]) for k in least])} ({kernel})."
    )
