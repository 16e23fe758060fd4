"""Write the summary of a study: sentences that follow from its numbers by rule.

The word "universal" is used only where the learned effect across families is above 0 with its whole interval.
"""

from collections.abc import Iterator
from itertools import combinations
from typing import Any

import numpy as np
import xarray as xr

from repsim.study.formatting import MOST_NAMES, listed, number
from repsim.study.reading import ALPHA, extremes, means_over_pairs, name_of, strictest, verdict


def summary(study: xr.Dataset) -> list[str]:
    """Return the sentences of the summary, each from numbers of the study."""
    sentences = [_models(study), *_raw(study), *_learned(study), *_shares(study), *_ceilings(study), *_tested(study)]
    sentences += [*_depth(study), *_map(study), *_stimuli(study)]
    return sentences


def _models(study: xr.Dataset) -> str:
    families: dict[str, int] = {}
    for family in study["family"].values.tolist():
        families[family] = families.get(family, 0) + 1
    counted = ", ".join(f"{family} ({count})" for family, count in families.items())
    return (
        f"{_counted(study.sizes['model'], 'trained model')} of {_counted(len(families), 'family', 'families')}: "
        f"{counted}; {study['n_samples'].item()} samples of {study['data'].item()}, readout {study['readout'].item()}."
    )


def _counted(count: int, one: str, several: str = "") -> str:
    return f"{count} {one if count == 1 else several or one + 's'}"


def _raw(study: xr.Dataset) -> Iterator[str]:
    value = means_over_pairs(study, "index", "cka")
    if np.isnan(value[0]):
        within = [
            relation
            for relation in ("same architecture", "same family")
            if not np.isnan(means_over_pairs(study, "index", "cka", relation)[0])
        ]
        for relation in within:
            yield (
                f"Models of the {relation}: best-matching layers have a debiased CKA of "
                f"{number(*means_over_pairs(study, 'index', 'cka', relation))}."
            )
        return
    text = f"Across families, best-matching layers have a debiased CKA of {number(*value)}"
    control, learned = means_over_pairs(study, "control", "cka"), means_over_pairs(study, "learned", "cka")
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
    kernel, is_shared = strictest(study), verdict(study)
    learned, value, control = (means_over_pairs(study, name, kernel) for name in ("learned", "index", "control"))
    if np.isnan(value[0]):
        return
    if kernel == "cka":
        yield "What the input alone explains is not known, so it cannot be said how much of this is learned."
        return
    text = f"With the input projected out, {number(*value)} is left"
    if is_shared is None:
        yield f"{text}; without untrained networks it cannot be said how much is learned."
        return
    text += f", and {number(*control)} with untrained networks: "
    if is_shared:
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
        with_input = "" if "cka given input" in study["kernel"].values else "input + "
        parts = [] if with_input else [f"input {number(shares['input'])}"]
        parts += [
            f"{with_input if name == 'universal' else ''}{name_of(study, name)} {number(shares[name])}"
            for name in ("universal", "family", "seed")
            if not np.isnan(shares[name])
        ]
        if np.isnan(shares["universal"]) and not np.isnan(shares["universal_and_family"]):
            shared = name_of(study, "universal")
            parts.append(f"{with_input}{shared} + family {number(shares['universal_and_family'])}")
        if np.isnan(shares["family"]) and not np.isnan(shares["family_and_seed"]):
            parts.append(f"family + seed {number(shares['family_and_seed'])}")
        yield f"Shares of the energy of {state} representations, mean over depth: {', '.join(parts)}."


def _ceilings(study: xr.Dataset) -> Iterator[str]:
    kernel = strictest(study)
    origins = combinations(study["ceiling_of"].values.tolist(), 2)
    for k, (families, kinds) in enumerate(zip(study["families"].values.tolist(), origins, strict=True)):
        selection = {"kernel": kernel}
        ratio, low, high = (float(study[name].sel(selection)[k]) for name in ("ratio", "ratio_low", "ratio_high"))
        if not np.isnan(ratio):
            origin = " and ".join(sorted(set(kinds)))
            yield f"{families}: {number(ratio, low, high)} of the ceiling that {origin} set ({kernel})."


def _tested(study: xr.Dataset) -> Iterator[str]:
    if not study.sizes.get("pair"):
        return
    p = study["p_index_holm"].sel(measure=strictest(study)).values
    p = p[~np.isnan(p)]
    if len(p):
        yield (
            f"{int((p <= ALPHA).sum())} of {len(p)} pairs of models are more alike than chance at 5 % (best match "
            f"of all layers, {study.attrs['permutations']} permutations, Holm; {strictest(study)})."
        )


def _depth(study: xr.Dataset) -> Iterator[str]:
    kernel = strictest(study)
    across = study["relation"].values == "other family" if study.sizes.get("pair") else np.zeros(0, bool)
    if across.any():
        split = float(study["split_half"].sel(measure=kernel).values[across].mean())
        on_all = float(study["index"].sel(measure=kernel).values[across].mean())
        if np.isnan(split):  # a control is undefined on the halves
            return
        yield (
            f"Matches of layers found on one half of the samples hold on the other: {number(split)} there, "
            f"{number(on_all)} on all ({kernel})."
        )


def _map(study: xr.Dataset) -> Iterator[str]:
    if "cluster" not in study:
        return
    kernel = strictest(study)
    selection = {"map": kernel if kernel in study["map"].values else study["map"].values[0]}
    labels = study["cluster"].sel(selection).values
    common = [float(study[f"common_share{end}"].sel(selection)) for end in ("", "_low", "_high")]
    yield f"The first common component carries {number(*common)} of the energy of the models ({selection['map']})."
    if labels.max() < 1:
        yield "The models form no clear clusters."
        return
    groups = [study["model"].values[labels == label].tolist() for label in range(labels.max() + 1)]
    ari = float(study["cluster_stability"].sel(selection))
    stability = (
        "" if np.isnan(ari) else f"; found again in resampled stimuli with an adjusted Rand index of {number(ari)}"
    )
    title = "Candidate universality classes" if verdict(study) else "Clusters of models"
    yield f"{title}: {' | '.join(listed(group, 4) for group in groups)}{stability}."


def _stimuli(study: xr.Dataset) -> Iterator[str]:
    if "agreement" not in study:
        return
    kernel = strictest(study)
    most, least = extremes(study["agreement"].sel(kernel=kernel).values, MOST_NAMES)
    names = study["sample"].values
    yield (
        f"Networks agree most on {listed([str(names[k]) for k in most])}, and least on "
        f"{listed([str(names[k]) for k in least])} ({kernel})."
    )
