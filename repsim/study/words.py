"""Write the summary of a study: sentences that follow from its numbers by rule.

The word "universal" is used only of families of which every pair shares something learned, shown for networks of their
architectures (`repsim.study.claims`).
"""

import re
from collections.abc import Collection, Iterator, Sequence
from itertools import combinations
from typing import Any

import numpy as np
import xarray as xr

from repsim.labels import NOUNS
from repsim.results.variables import ACROSS_FAMILIES, OTHER_MODALITY
from repsim.study.claims import BEYOND
from repsim.study.formatting import MOST_NAMES, listed, number, p_value
from repsim.study.reading import (
    ALPHA,
    claims,
    extremes,
    means_over_pairs,
    modalities,
    name_of,
    stands_out,
    strictest,
)  # fmt: skip

_MOST_FAMILIES = 20
"""Largest number of families that the summary names one by one."""
_MOST_NETWORKS = 12
"""Largest number of networks that a sentence names; the families of all of them follow."""
_MOST_SENTENCES = 10
"""Largest number of pairs of families that have a sentence each; more are counted together."""
_EFFECTS = ["effect", "effect_low", "effect_high"]


def summary(study: xr.Dataset) -> list[str]:
    """Return the sentences of the summary, each from numbers of the study."""
    parts = (
        _models, _raw, _given_controls, _claimed, _refused, _measures, _dimensions, _shares, _ceilings, _tested, _depth,
        _map, _stimuli,
    )  # fmt: skip
    return [_quoted(study, sentence) for part in parts for sentence in part(study)]


def _quoted(study: xr.Dataset, sentence: str) -> str:
    """Put names that contain the word universal into quotation marks: a name is no claim."""
    names = {
        str(name)
        for of in (
            "family",
            "architecture",
            "model",
            "network",
            "network_family",
            "network_architecture",
            "sample",
            "data",
        )
        if of in study.coords
        for name in np.atleast_1d(study[of].values).tolist()
        if "universal" in str(name).lower()
    }
    if not names:
        return sentence
    longest_first = "|".join(map(re.escape, sorted(names, key=len, reverse=True)))
    return re.sub(rf'(?<![\w"])(?:{longest_first})(?![\w"])', r'"\g<0>"', sentence)


def _models(study: xr.Dataset) -> Iterator[str]:
    families: dict[str, list[int]] = {}
    for family in study["family"].values.tolist():
        families.setdefault(family, [0, 0])[0] += 1
    untrained = study["network_state"].values == "untrained"
    for family in study["network_family"].values[untrained].tolist():
        families.setdefault(family, [0, 0])[1] += 1
    counted = listed([f"{family} ({one} + {other})" for family, (one, other) in families.items()], _MOST_FAMILIES)
    number_of_families = len(set(study["family"].values.tolist()))
    yield (
        f"{_counted(study.sizes['model'], 'trained network')} of {_counted(number_of_families, 'family', 'families')}, "
        f"and {int(untrained.sum())} untrained: {counted}; {study['n_samples'].item()} samples of "
        f"{study['data'].item()}, readout {study['readout'].item()}."
    )


def _counted(count: int, one: str, several: str = "") -> str:
    return f"{count} {one if count == 1 else several or one + 's'}"


def _raw(study: xr.Dataset) -> Iterator[str]:
    relations = _relations_across(study)
    for relation in relations:
        yield _raw_across(study, relation)
    if relations:
        return
    for relation in ("same architecture", "same family"):
        of_relation = means_over_pairs(study, "index", "cka", relation)
        if not np.isnan(of_relation[0]):
            yield f"Models of the {relation}: matching layers have a debiased CKA of {number(*of_relation)}."


def _relations_across(study: xr.Dataset) -> list[str]:
    """Return the relations of pairs of different families that the study has."""
    return [
        relation
        for relation in ("other family", OTHER_MODALITY)
        if not np.isnan(means_over_pairs(study, "index", "cka", relation)[0])
    ]


def _across(study: xr.Dataset, relation: str) -> str:
    """Return between which networks pairs with a relation lie; networks of several modalities are named."""
    several = len(_kinds(study)) > 1
    if relation == OTHER_MODALITY:
        return f"across modalities ({_networks_in_words(_kinds(study))})"
    return "across families of one modality" if several else "across families"


def _kinds(study: xr.Dataset) -> list[str]:
    """Return the known modalities of a study, each once."""
    return list(dict.fromkeys(filter(None, modalities(study).values())))


def _networks_in_words(kinds: list[str]) -> str:
    """Return the names of networks of these modalities.

    >>> _networks_in_words(["image", "text", "other"])
    'picture networks, text networks and other networks'
    """
    names = [f"{'other' if kind == 'other' else NOUNS[kind][0]} networks" if kind in NOUNS else kind for kind in kinds]
    return " and ".join(filter(None, [", ".join(names[:-1]), names[-1]]))


def _pairs_of_families(study: xr.Dataset, relation: str) -> list[tuple[str, str, str]]:
    """Return the pairs of families with a relation: name, first and second family."""
    of = modalities(study)
    columns = (study[name].values.tolist() for name in ("families", "family_a", "family_b"))
    return [
        (name, a, b)
        for name, a, b in zip(*columns, strict=True)
        if (relation == OTHER_MODALITY) == bool(of[a] and of[b] and of[a] != of[b])
    ]


def _raw_across(study: xr.Dataset, relation: str) -> str:
    value, control, learned = (
        means_over_pairs(study, what, "cka", relation) for what in ("index", "control", "learned")
    )
    between = _across(study, relation)
    text = (
        f"{between[0].upper()}{between[1:]}, matching layers have a debiased CKA of {number(*value)}"
        f"{_over_pairs(study, 'cka', relation)}"
    )
    if np.isnan(control[0]):
        return f"{text}."
    signs = [_sign(study[_EFFECTS].sel(families=name), "cka") for name, _, _ in _pairs_of_families(study, relation)]
    signs = [sign for sign in signs if sign]
    if len(signs) > 1:  # one mean would hide pairs of families
        counts = [f"{sign} alike in {signs.count(sign)}" for sign in dict.fromkeys(signs)]
        comparison = f"and trained networks are {listed(counts)} of {len(signs)} pairs of families"
    else:
        comparison = (
            "which is less" if learned[1] > 0 else "which is more" if learned[2] < 0 else "which is no clear difference"
        )
    return f"{text}; in the strongest control it is {number(*control)}, {comparison}{_of_counted(study, relation)}."


def _over_pairs(study: xr.Dataset, kernel: str, relation: str) -> str:
    """Return between which pairs of families a mean over pairs of models lies; empty if there is only one."""
    family_of = dict(zip(study["model"].values.tolist(), study["family"].values.tolist(), strict=True))
    values = study["split_half"].sel(measure=kernel).values
    pairs = zip(study["pair_a"].values.tolist(), study["pair_b"].values.tolist(), values.tolist(), strict=True)
    by_families: dict[frozenset[str], list[float]] = {}
    for a, b, value in pairs:
        by_families.setdefault(frozenset({family_of[a], family_of[b]}), []).append(value)
    families = _pairs_of_families(study, relation)
    means = {f"{a} x {b}": float(np.mean(by_families.get(frozenset({a, b}), [np.nan]))) for _, a, b in families}
    means = {name: mean for name, mean in means.items() if not np.isnan(mean)}
    if len(means) < 2:
        return ""
    low, high = min(means, key=means.__getitem__), max(means, key=means.__getitem__)
    return f" on average, from {number(means[low])} for {low} to {number(means[high])} for {high}"


def _of_counted(study: xr.Dataset, relation: str) -> str:
    """Return how many pairs of models the control is about, if it is not all of them."""
    of_relation = int((study["relation"].values == relation).sum())
    counted = int(study["pairs_counted"].sel(kind_of_pair=relation))
    if counted == of_relation:
        return ""
    own = number(*means_over_pairs(study, "trained", "cka", relation))
    return f" (only {counted} of {of_relation} pairs of models have controls; their own value is {own})"


_WITHIN = "Within the classes, and with the input projected out,"


def _given_controls(study: xr.Dataset) -> Iterator[str]:
    if not study.sizes["families"]:
        return
    if strictest(study) == "cka":
        yield "What the input alone explains is not known, so it cannot be said how much of this is learned."
        return
    for kernel in ("cka given input", "cka given input and labels"):
        if kernel in study["kernel"].values:
            for relation in _relations_across(study) or ["other family"]:
                yield _given_kernel(study, kernel, relation)


def _given_kernel(study: xr.Dataset, kernel: str, relation: str) -> str:
    value = means_over_pairs(study, "index", kernel, relation)
    setting = "With the input projected out" if kernel == "cka given input" else _WITHIN
    if len(_kinds(study)) > 1:
        setting = f"{setting.removesuffix(',')}, {_across(study, relation)},"
    if np.isnan(value[0]):
        return f"{setting.removesuffix(',')}, nothing is left on half of the samples: they are too few."
    energy = study["energy"].sel(measure=kernel).values[study["relation"].values == relation].mean()
    left = [
        number(float(study["energy_left"].sel(kernel=kernel).values[study["network_state"].values == state].mean()))
        for state in dict.fromkeys(study["network_state"].values.tolist())
    ]
    text = (
        f"{setting} it is {number(*value)}{_over_pairs(study, kernel, relation)}, and "
        f"{number(float(energy))} in units of energy; left of the energy: {' of trained networks, '.join(left)} of "
        f"{'untrained' if len(left) > 1 else 'trained'} ones."
    )
    control = means_over_pairs(study, "control", kernel, relation)
    if np.isnan(control[0]):
        return f"{text} Without untrained networks it cannot be said how much is learned."
    return f"{text} In the strongest control it is {number(*control)}."


def _effect(study: xr.Dataset, names: tuple[str, ...]) -> str:
    """Describe the smallest effect of training over the pairs of a set of families."""
    kernel = _claimed_kernel(study)
    pairs = [" x ".join(pair) for pair in combinations(names, 2)]
    of_pairs = study.sel(measure=kernel, kernel=kernel, families=pairs)
    weakest = of_pairs.isel(families=int(np.argmin(of_pairs["effect"].values)))
    value, energy = (
        number(*(float(weakest[f"effect{unit}{end}"]) for end in ("", "_low", "_high"))) for unit in ("", "_energy")
    )
    which = "" if len(pairs) == 1 else f" (for {weakest['families'].item()}, the smallest)"
    return f"more alike than the strongest control by {value}{which}, and by {energy} of the energy ({kernel})"


def _claimed_kernel(study: xr.Dataset) -> str:
    """Return the kind of debiased CKA with most controls that a claim rests on."""
    both = "cka given input and labels"
    return both if both in study["kernel"].values else strictest(study)


def _claimed(study: xr.Dataset) -> Iterator[str]:
    """Yield what is claimed, at the level of architectures and then of the networks."""
    beyond = ", beyond the classes" if _claimed_kernel(study) != strictest(study) else ""
    families = tuple(dict.fromkeys(study["family"].values.tolist()))
    general = claims(study, "architectures")
    for names in general:
        across = _extent(study, names) or ("these families" if names == families else _joined(names))
        pairs = [" x ".join(pair) for pair in combinations(names, 2)]
        p = float(study["p_architectures"].sel(families=pairs).max())
        all_ = "every pair of " if len(names) > 2 else ""
        yield (
            f"To this extent what was learned is universal across {across}{beyond}: networks of {all_}{_joined(names)} "
            f"are {_effect(study, names)}. This holds for networks of these architectures: the interval over networks "
            f"and samples is above 0, and the exact test over networks and this interval give {p_value(p)}"
            f"{_adjusted(study)}.{_limit(study, names)}"
        )
    for names in claims(study, "networks"):
        if any(set(names) <= set(larger) for larger in general):
            continue
        reasons = dict.fromkeys(
            str(study["claim_reason"].sel(families=" x ".join(pair)).item()) for pair in combinations(names, 2)
        )
        networks = _counted_networks(study, names)
        all_ = "of every pair of" if len(names) > 2 else "of"
        read = list(dict.fromkeys(kind for name in names if (kind := modalities(study)[name])))
        kinds = f" ({_networks_in_words(read)})" if len(_kinds(study)) > 1 and read else ""
        yield (
            f"These trained networks are, on average over their pairs, more alike than each of their controls{beyond}, "
            f"on samples like these: {listed(networks, _MOST_NETWORKS)}. Those {all_} {_joined(names)}{kinds} are "
            f"{_effect(study, names)}. "
            "Whether training makes networks of these architectures alike is not shown: "
            f"{'; '.join(reason for reason in reasons if reason)}.{_limit(study, names)}"
        )


def _extent(study: xr.Dataset, names: tuple[str, ...]) -> str:
    """Return across what a claim holds that is about families of several modalities; empty in a study of one.

    Nothing holds across modalities unless a claimed pair of families is of two.
    """
    if len(_kinds(study)) < 2:
        return ""
    of = modalities(study)
    by_kind = {kind: [name for name in names if of[name] == kind] for kind in (*_kinds(study), "")}
    groups = [
        f"{_networks_in_words([kind]) if kind else 'networks of unknown samples'} ({', '.join(members)})"
        for kind, members in by_kind.items()
        if members
    ]
    return f"{'modalities, ' if _is_across_modalities(study, names) else ''}{' and '.join(groups)}"


def _is_across_modalities(study: xr.Dataset, names: tuple[str, ...]) -> bool:
    """Return whether families read samples of several known kinds."""
    of = modalities(study)
    return len({of[name] for name in names} - {""}) > 1


def _limit(study: xr.Dataset, names: tuple[str, ...]) -> str:
    """Return a sentence if a study of several modalities claims something of one of them."""
    if len(_kinds(study)) < 2 or _is_across_modalities(study, names):
        return ""
    return " Nothing follows from this across modalities."


def _counted_networks(study: xr.Dataset, families: tuple[str, ...]) -> list[str]:
    """Return the trained networks of these families that have untrained ones of their architecture as controls."""
    untrained = study["network_state"].values == "untrained"
    controlled = set(study["network_architecture"].values[untrained].tolist())
    models = zip(study["model"].values, study["family"].values, study["architecture"].values, strict=True)
    return [str(name) for name, family, architecture in models if family in families and architecture in controlled]


def _adjusted(study: xr.Dataset) -> str:
    """Return for how many pairs of families p-values of architectures are adjusted; empty if there is only one."""
    count = int(np.isfinite(study["p_architectures"].values).sum())
    return f", adjusted for {count} pairs of families" if count > 1 else ""


_DETAILS = (
    (
        r"(given the .*?, ).*? (?:is|are) (not shown to be more|less) alike than .*",
        r"\1networks are \2 alike than a control",
    ),
    (r" \(p [=<] .*?\)", ""),
    (r"the effect is .* of the energy, which is too little", "the effect on the energy is too little"),
    (r", as if there were .*", ""),
    (r", and leaves .*: too little to judge", ", and leaves too little to judge"),
    (r"no untrained network of .*, so there", "an architecture has no untrained network, so there"),
    (r"the input of .* is not stored, so it", "the input of a network is not stored, so it"),
)
"""Details of reasons, and what stands in their place in a sentence about several pairs of families."""


def _refused(study: xr.Dataset) -> Iterator[str]:
    """Yield the pairs of families for which nothing is claimed, with the reasons: pairs with one kind together."""
    if strictest(study) == "cka" or not study.sizes["families"]:
        return
    by_kind: dict[str, dict[str, str]] = {}
    columns = (study[name].values.tolist() for name in ("families", "claim_level", "claim_reason"))
    for name, level, reason in zip(*columns, strict=True):
        if level:
            continue
        kind = reason
        for pattern, general in _DETAILS:
            kind = re.sub(pattern, general, kind)
        by_kind.setdefault(kind, {})[name] = reason
    for kind, reasons in by_kind.items():
        names = listed([_named(study, pair) for pair in reasons], 6)
        text = f"Nothing learned is shown to be shared by {names}"
        if kind.startswith(BEYOND):
            effects = study["effect"].sel(measure=strictest(study), families=list(reasons)).values
            by = " to ".join(dict.fromkeys(number(float(end)) for end in (effects.min(), effects.max())))
            text = (
                f"Given the input, networks of {names} are more alike than the strongest control by {by}, but {BEYOND}"
            )
        if len(set(reasons.values())) == 1:
            reason = next(iter(reasons.values()))
            more = "."
        else:
            reason, more = kind, f" (the tables have the numbers of these {len(reasons)} pairs of families)."
        yield f"{text}: {reason.removeprefix(f'{BEYOND}: ')}{more}"


def _named(study: xr.Dataset, pair: str) -> str:
    """Return the name of a pair of families; one of two modalities says so."""
    across = {name for name, _, _ in _pairs_of_families(study, OTHER_MODALITY)}
    return f"{pair} (across modalities)" if pair in across else pair


def _joined(names: tuple[str, ...]) -> str:
    return f"{', '.join(names[:-1])} and {names[-1]}"


def _measures(study: xr.Dataset) -> Iterator[str]:
    """Yield whether the other measures of the study agree, each with its own controls."""
    own = {*study["kernel"].values.tolist(), "cka given untrained"}
    kernel, others = strictest(study), [name for name in study["measure"].values.tolist() if name not in own]
    by_verdict: dict[str, dict[str, str]] = {}
    for families in study["families"].values.tolist():
        of_pair = study[_EFFECTS].sel(families=families)
        if np.isnan(float(of_pair["effect"].sel(measure=kernel))):
            continue
        signs = {name: _sign(of_pair, name) for name in (kernel, *others)}
        texts = {
            name: f"{name} {sign} alike ({number(float(of_pair['effect'].sel(measure=name)))})"
            for name, sign in signs.items()
            if sign
        }
        if len(texts) < 2:
            continue
        shown = {sign for sign in signs.values() if sign}
        verdict = (
            "the measures agree" if len(shown) == 1
            else "the measures disagree" if {"more", "less"} <= shown
            else "the measures are not equally clear"
        )  # fmt: skip
        by_verdict.setdefault(verdict, {})[families] = ", ".join(texts.values())
    count = sum(map(len, by_verdict.values()))
    if count > _MOST_SENTENCES:
        verdicts = "; ".join(f"{verdict} on {_counted_pairs(pairs)}" for verdict, pairs in by_verdict.items())
        yield (
            f"Trained networks compared with the strongest control of each measure, {count} pairs of families: "
            f"{verdicts}."
        )
        return
    for verdict, of_verdict in by_verdict.items():
        for families, texts_of_pair in of_verdict.items():
            yield (
                f"{families}: {verdict}. Trained networks are, compared with the strongest control of each measure, "
                f"under {texts_of_pair}."
            )


def _counted_pairs(pairs: Collection[str]) -> str:
    """Return the number of pairs of families, with the names of the first ones."""
    return f"{len(pairs)} ({listed(list(pairs))})"


def _sign(of_pair: xr.Dataset, measure: str) -> str:
    """Return whether trained networks are more alike than each control under a measure; empty without an interval."""
    low, high = (float(of_pair[f"effect{end}"].sel(measure=measure)) for end in ("_low", "_high"))
    if np.isnan(low):
        return ""
    return "more" if low > 0 else "less" if high < 0 else "not clearly more or less"


def _dimensions(study: xr.Dataset) -> Iterator[str]:
    states = study["network_state"].values
    means = {
        state: float(np.nanmean(study["effective_dimension"].values[states == state]))
        for state in dict.fromkeys(states.tolist())
        if np.isfinite(study["effective_dimension"].values[states == state]).any()
    }
    if "untrained" in means and "trained" in means:
        yield (
            f"The effective dimension of layers is {means['trained']:.1f} in trained networks and "
            f"{means['untrained']:.1f} in untrained ones, on average."
        )


def _shares(study: xr.Dataset) -> Iterator[str]:
    shared = name_of(study, "universal")
    with_input = "" if "cka given input" in study["kernel"].values else "input + "
    for state in study["state"].values.tolist():
        shares: dict[str, Any] = {
            name: study["mean_share"].sel(state=state, share_of=name).item()
            for name in study["share_of"].values.tolist()
        }
        no_part = _is_no_part(study, state, shares["family"])
        labels = {} if with_input else {"input": "input"}
        if no_part or np.isnan(shares["universal"]):
            labels["universal_and_family"] = f"{with_input}{shared} + family"
        else:
            labels |= {"universal": f"{with_input}{shared}", "family": "family"}
        labels |= {"family_and_seed": "family + seed"} if np.isnan(shares["seed"]) else {"seed": "seed"}
        parts = [f"{label} {number(shares[name])}" for name, label in labels.items() if not np.isnan(shares[name])]
        note = " (networks of one family are no more alike than those of different ones)" if no_part else ""
        yield f"Shares of the energy of {state} representations, mean over depth: {', '.join(parts)}{note}."


def _is_no_part(study: xr.Dataset, state: str, family: float) -> bool:
    """Return whether the share of families is negative, beyond noise or because families are mixed: it is no share."""
    if not family < 0:
        return False
    of_state = study["network_state"].values == state
    networks = zip(study["network_family"].values, study["network_architecture"].values, strict=True)
    pairs = {pair for pair, counts in zip(networks, of_state, strict=True) if counts}
    is_mixed = len(pairs) > len({name for name, _ in pairs})
    high = float(study["mean_share_high"].sel(state=state, share_of="family"))
    return high < 0 or (is_mixed and number(family) != "0")


def _ceilings(study: xr.Dataset) -> Iterator[str]:
    kernel = strictest(study)
    origins = combinations(study["ceiling_of"].values.tolist(), 2)
    names = ("ratio", "ratio_low", "ratio_high")
    ratios = zip(*(study[name].sel(kernel=kernel).values.tolist() for name in names), strict=True)
    pairs = [
        (families, " and ".join(sorted(set(kinds))), *ends)
        for families, kinds, ends in zip(study["families"].values.tolist(), origins, ratios, strict=True)
        if not np.isnan(ends[0])
    ]
    if len(pairs) > _MOST_SENTENCES:
        yield _ceilings_together(pairs, kernel)
        return
    for families, origin, ratio, low, high in pairs:
        if ratio < 1:  # it estimates a cosine, which is at most 1
            yield f"{families}: {number(ratio, low, min(high, 1.0))} of the ceiling that {origin} set ({kernel})."
        elif low < 1:
            yield (
                f"{families}: as alike as {origin} allow; the ratio to the ceiling is not shown to be below 1, and at "
                f"least {number(low)} ({kernel})."
            )
        else:
            yield f"{families}: more alike than {origin} are, which therefore set no ceiling ({kernel})."


def _ceilings_together(pairs: Sequence[tuple[str, str, float, float, float]], kernel: str) -> str:
    """Return one sentence about the ceilings of many pairs of families."""
    below = sorted((ratio, name) for name, _, ratio, _, _ in pairs if ratio < 1)
    within = [name for name, _, ratio, low, _ in pairs if ratio >= 1 > low]
    above = [name for name, _, ratio, low, _ in pairs if ratio >= 1 and low >= 1]
    texts = []
    if below:
        (least, of_least), (most, of_most) = below[0], below[-1]
        texts.append(
            f"{len(below)} are below it, from {number(least)} of it for {of_least} to {number(most)} for {of_most}"
        )
    if within:
        texts.append(f"{_counted_pairs(within)} are as alike as it allows")
    if above:
        texts.append(f"{_counted_pairs(above)} are above it, so that it is none for them")
    origins = " and ".join(dict.fromkeys(origin for _, origin, *_ in pairs))
    return (
        f"Of {len(pairs)} pairs of families, relative to the ceiling that {origins} set: {'; '.join(texts)} ({kernel})."
    )


def _tested(study: xr.Dataset) -> Iterator[str]:
    if not study.sizes.get("pair"):
        return
    of_kernel = study.sel(measure=strictest(study))
    adjusted, permuted = of_kernel["p_index_holm"].values, of_kernel["permuted"].values
    p = adjusted[~np.isnan(adjusted)]
    if not len(p):
        return
    if len(p) / (np.nanmin(permuted) + 1) > ALPHA:
        yield (
            f"Whether pairs of models are related cannot be tested with {int(np.nanmin(permuted))} permutations: among "
            f"{len(p)} pairs no p-value can be below {ALPHA}."
        )
        return
    yield (
        f"Independence is rejected for {int((p <= ALPHA).sum())} of {len(p)} pairs of models at 5 % (all layers, "
        f"{int(np.nanmin(permuted))} permutations, Holm; {strictest(study)}); it says nothing about how alike they are."
    )


def _depth(study: xr.Dataset) -> Iterator[str]:
    kernel = strictest(study)
    across = np.isin(study["relation"].values, ACROSS_FAMILIES) if study.sizes.get("pair") else np.zeros(0, bool)
    if across.any():
        split = float(study["split_half"].sel(measure=kernel).values[across].mean())
        on_all = float(study["index"].sel(measure=kernel).values[across].mean())
        if np.isnan(split):  # a control is undefined on the halves
            return
        yield (
            f"Values are those of matches of layers found on one half of the samples and measured on the other: "
            f"{number(split)}; found and measured on all samples it would be {number(on_all)} ({kernel})."
        )


def _map(study: xr.Dataset) -> Iterator[str]:
    if "cluster" not in study:
        return
    kernel = strictest(study)
    selection = {"map": kernel if kernel in study["map"].values else study["map"].values[0]}
    labels = study["cluster"].sel(selection).values
    common = [float(study[f"common_share{end}"].sel(selection)) for end in ("", "_low", "_high")]
    noise = float(study["common_share_noise"].sel(selection))
    if common[0] > noise:
        yield (
            f"The first common component carries {number(*common)} of the energy of the models; of unrelated models it "
            f"would carry up to {number(noise)} ({selection['map']})."
        )
    else:
        yield (
            f"The models have no common component: the first one carries {number(common[0])}, and of unrelated models "
            f"it would carry up to {number(noise)} ({selection['map']})."
        )
    if labels.max() < 1:
        yield "The models form no clear clusters."
        return
    groups = [study["model"].values[labels == label].tolist() for label in range(labels.max() + 1)]
    ari = float(study["cluster_stability"].sel(selection))
    stability = (
        "" if np.isnan(ari) else f"; found again in resampled stimuli with an adjusted Rand index of {number(ari)}"
    )
    yield f"Clusters of models: {' | '.join(listed(group, 4) for group in groups)}{stability}."


def _stimuli(study: xr.Dataset) -> Iterator[str]:
    if "agreement" not in study:
        return
    kernel = strictest(study)
    if not stands_out(study, kernel):
        yield f"No stimuli stand out: what single samples add to the agreement is within noise ({kernel})."
        return
    most, least = extremes(study["agreement"].sel(kernel=kernel).values, MOST_NAMES)
    names = study["sample"].values
    yield (
        f"Networks agree most on {listed([str(names[k]) for k in most])}, and least on "
        f"{listed([str(names[k]) for k in least])} ({kernel})."
    )
