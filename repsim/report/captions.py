"""Write the texts around the figures of the page: tiles, notes and tables."""

import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from repsim.presentation.measures import GIVEN
from repsim.presentation.thinning import ENDS, MOST_PAIRS
from repsim.results.variables import ACROSS_FAMILIES, OTHER_MODALITY
from repsim.study.reading import (
    LEVEL_NAMES,
    axis_shares,
    headline,
    is_decided,
    means_over_pairs,
    stands_out,
    strictest,
    strictest_controlled,
)
from repsim.study.side_by_side import control_in_words, side_by_side

MISSING = "–"
_WHERE = {
    "other family": "across families",
    OTHER_MODALITY: "across modalities",
    "same architecture": "of one architecture",
    "same family": "within families",
}
"""Relations of pairs in the words of the tiles, which show those across families, or else the first of a study."""
_COLUMNS = {
    "modality": "Modality",
    "data": "Data",
    "architecture": "Architecture",
    "weights": "Weights",
    "seed": "Seed",
    "weights_sha256": "Weights, SHA-256",
    "checksum": "Checksum of the store",
    "batch_norm": "Batch norm",
    "effective_dimension": "Effective dimension",
    "energy_left": "Energy left given the input",
    "device": "Device",
}
"""Keys of the provenance in the table of networks, with their headings."""
_HASH_DIGITS = 12
"""Number of digits of a hash that are shown."""

PANELS_NOTE = (
    "Every panel is a family: its networks among themselves, and with those of the other families, nearest first. "
    "Small dots are pairs of networks, the large one is their mean; hollow: mean of their strongest controls. All "
    "panels have one scale."
)
"""Note that explains the panels of families."""


def fixed(value: float, digits: int) -> str:
    """Format a number with a fixed number of decimals; return a dash if it is not finite.

    >>> fixed(-0.00001, 3), fixed(float("nan"), 3)
    ('0.000', '–')
    """
    return f"{value:z.{digits}f}" if math.isfinite(value) else MISSING


def interval(low: float, high: float, digits: int) -> str:
    """Format an interval; return an empty string if an end is not finite.

    >>> interval(0.1, 0.25, 2)
    '0.10 to 0.25'
    """
    return f"{fixed(low, digits)} to {fixed(high, digits)}" if math.isfinite(low) and math.isfinite(high) else ""


def subtitle(readout: str, facts: Mapping[str, str]) -> str:
    """Return the subtitle of the page: samples, readout, permutations and date."""
    parts = [f"{facts.get('samples', MISSING)} samples of {facts.get('data', MISSING)}"]
    parts += [f"readout {readout}"] if readout else []
    parts += [f"{facts['permutations']} permutations"] if facts.get("permutations") else []
    parts += [f"made {facts['created'][:10]}"] if facts.get("created") else []
    return " · ".join(parts)


def tiles(study: xr.Dataset) -> Iterator[dict[str, Any]]:
    """Yield the tiles with the main numbers of a study: what is claimed, given the input, and raw, with controls."""
    kernel = strictest(study)
    has = [name for name in _WHERE if np.isfinite(means_over_pairs(study, "index", "cka", name)[0])]
    if not has:
        return
    across = [name for name in has if name in ACROSS_FAMILIES]
    shown = across or has[:1]
    if across:
        yield from _claim_tile(study)
    for measure, relation in product(dict.fromkeys((kernel, "cka")), shown):
        condition = "" if measure == "cka" else f", {measure.removeprefix('cka ')}"
        several = len(shown) > 1
        where = _WHERE[relation] + (" of one modality" if several and relation != OTHER_MODALITY else "")
        labels = {
            "index": f"Debiased CKA of matching layers, {where}{condition}",
            "control": f"The same in the strongest control{f', {where}' if several else ''}{condition}",
        }
        for variable, label in labels.items():
            value, low, high = means_over_pairs(study, variable, measure, relation)
            if np.isfinite(value):
                more = [interval(low, high, 3)]
                if variable == "control" and (counted := _counted(study, measure, relation)):
                    more.append(counted)
                yield _tile(label, fixed(value, 3), "; ".join(filter(None, more)))
    if not across:
        value, low, high = means_over_pairs(study, "learned", kernel, has[0])
        if np.isfinite(value):
            yield _tile(
                f"Learned effect, these networks ({kernel})", fixed(value, 3), interval(low, high, 3), strong=True
            )
    for name, label in (
        ("energy_left", "Energy that the input leaves"),
        ("effective_dimension", "Effective dimension"),
    ):
        if name == "energy_left" and kernel == "cka":
            continue
        values = study[name].sel(kernel=kernel) if name == "energy_left" else study[name]
        means = {
            state: _mean(values.values[study["network_state"].values == state]) for state in ("trained", "untrained")
        }
        if np.isfinite(means["trained"]):
            digits = 3 if name == "energy_left" else 1
            other = f"untrained networks {fixed(means['untrained'], digits)}" if np.isfinite(means["untrained"]) else ""
            yield _tile(f"{label}, trained networks", fixed(means["trained"], digits), other)


def _tile(label: str, value: str, more: str, *, strong: bool = False) -> dict[str, Any]:
    return {"label": label, "value": value, "interval": more, "strong": strong}


def _mean(values: NDArray[np.float64]) -> float:
    return float(np.nanmean(values)) if np.isfinite(values).any() else math.nan


def _counted(study: xr.Dataset, measure: str, relation: str) -> str:
    """Return how many pairs of networks have controls, and their own similarity, if it is not all of them."""
    total, counted = (
        int((study["relation"].values == relation).sum()),
        int(study["pairs_counted"].sel(kind_of_pair=relation)),
    )
    own = means_over_pairs(study, "trained", measure, relation)[0]
    if counted == total or not math.isfinite(own):
        return ""
    return f"only {counted} of {total} pairs have controls: trained, they have {fixed(own, 3)}"


def _claim_tile(study: xr.Dataset) -> Iterator[dict[str, Any]]:
    """Yield the tile that counts the pairs of families of which something is claimed, by level."""
    if strictest(study) == "cka" or not is_decided(study):  # without the input nothing is claimed
        return
    levels = study["claim_level"].values.tolist()
    general, any_level = levels.count("architectures"), sum(map(bool, levels))
    more = f"for networks of these architectures: {general}" if any_level else "shown for none"
    yield _tile("Pairs of families that exceed each control", f"{any_level} of {len(levels)}", more, strong=True)


def claims(study: xr.Dataset) -> dict[str, Any]:
    """Return the note, columns and rows of the table of what is claimed of pairs of families, and why no more."""
    names = ("families", "claim_level", "claim_reason")
    rows = [
        [str(families), LEVEL_NAMES[level], reason]
        for families, level, reason in zip(*(study[name].values.tolist() for name in names), strict=True)
        if is_decided(study)
    ]
    note = (
        "The effect is the similarity of trained networks minus that of the strongest control. It is shown for these "
        "networks by intervals over samples, in partial values and in units of energy; for networks of these "
        "architectures also by the interval over networks and samples and by the exact test that exchanges trained "
        "and untrained networks. P-values are those of each pair of families; claims correct them for their number."
    )
    return {"note": note, "columns": ["Families", "Shared by", "Why no more"], "rows": rows}


def effects(study: xr.Dataset) -> dict[str, Any]:
    """Return the columns and rows of the table of effects of training on pairs of families that have controls."""
    columns = [
        "Families", "Measure", "Strongest control", "Effect (95 %, samples)", "95 %, networks and samples",
        "In units of energy (95 %)", "p, exchange", "smallest possible",
    ]  # fmt: skip
    names = study["families"].values.tolist()
    of_kernels = {kernel: _effects_under(study, kernel) for kernel in strictest_controlled(study)}
    rows = [
        [name, kernel, *cells[k]] for k, name in enumerate(names) for kernel, cells in of_kernels.items() if cells[k]
    ]
    return {"columns": columns, "rows": rows}


def _effects_under(study: xr.Dataset, kernel: str) -> list[list[str]]:
    """Return the cells of the table of effects for every pair of families under one kernel; empty without an effect."""
    ends = ("", "_low", "_high")
    names = (
        *(f"{name}{end}" for name in ("effect", "effect_energy") for end in ends),
        "effect_network_low", "effect_network_high", "p_exchange", "p_exchange_least", "effect_against",
        "family_a", "family_b",
    )  # fmt: skip
    at = {name: _of_kernel(study[name], kernel).values.tolist() for name in names}
    cells: list[list[str]] = []
    for k, effect in enumerate(at["effect"]):
        if not math.isfinite(effect):
            cells.append([])
            continue
        cells.append([
            control_in_words(at["effect_against"][k], at["family_a"][k], at["family_b"][k]),
            _within(*(at[f"effect{end}"][k] for end in ends)),
            interval(at["effect_network_low"][k], at["effect_network_high"][k], 3) or MISSING,
            _within(*(at[f"effect_energy{end}"][k] for end in ends)),
            fixed(at["p_exchange"][k], 3),
            fixed(at["p_exchange_least"][k], 3),
        ])  # fmt: skip
    return cells


def _of_kernel(variable: xr.DataArray, kernel: str) -> xr.DataArray:
    """Select a kernel along the dimension of measures or of kernels, if a variable has one."""
    return variable.sel({dim: kernel for dim in ("measure", "kernel") if dim in variable.dims})


def _within(value: float, low: float, high: float) -> str:
    """Format a value with its interval."""
    ends = interval(low, high, 3)
    return f"{fixed(value, 3)} ({ends})" if ends else fixed(value, 3)


def energies(study: xr.Dataset) -> dict[str, Any]:
    """Return the columns and rows of the table of raw, partial and energy values, and of what energy was left."""
    conditions = [kernel for kernel in strictest_controlled(study) if kernel != "cka"]
    columns = ["Families", "Networks", "Raw (cka)"]
    for kernel in conditions:
        columns += [kernel.removeprefix("cka "), "in units of energy", "energy left of the first", "of the second"]
    rows = []
    for row in side_by_side(study):
        cells = [fixed(row.by_kernel["cka"].value, 3)]
        for kernel in conditions:
            one = row.by_kernel[kernel]
            cells += [fixed(value, 3) for value in (one.value, one.energy, *one.left)]
        rows.append([row.families, row.networks, *cells])
    return {"columns": columns, "rows": rows}


def pairs_note(study: xr.Dataset, measure: str) -> str:
    """Return the note that explains the figure of all pairs under one measure."""
    value = (
        "The mean similarity along matching layers, matched on one half of the samples and measured on the other."
        if headline(study, measure) == "split_half"
        else "The mean similarity along the best match of layers, on all samples."
    )
    if np.isfinite(study["control"].sel(measure=measure).values).any():
        reading = (
            "Filled: the pair, with its 95 % interval over samples. Hollow: its controls, as far as they are known "
            "under this measure. The difference to the strongest one is the learned effect of these networks."
        )
    else:
        reading = "With 95 % intervals. There is no control under this measure, hence no learned effect."
    return f"{value} {reading}"


def drawn_note(count: int) -> str:
    """Return which of all pairs the figure of pairs shows; empty if it shows all.

    >>> drawn_note(45), drawn_note(435)[:52]
    ('', 'The 10 most and the 10 least alike of 435 pairs are ')
    """
    if count <= MOST_PAIRS:
        return ""
    return f"The {ENDS} most and the {ENDS} least alike of {count:,} pairs are drawn; the table lists all."


def shares_note(states: Sequence[str]) -> str:
    """Return the note that explains the figure of shares."""
    both = ", for trained networks and untrained ones of the same architectures" if len(states) > 1 else ""
    return (
        f"Shares of representational energy along matching layers, by relative depth, with 95 % intervals{both}. They "
        "sum to 1; an estimate can be a little below 0."
    )


def map_of(study: xr.Dataset, name: str) -> dict[str, Any]:
    """Return the labels of the axes of a map of networks, and a note on its clusters."""
    at = study.sel({"map": name})
    shares = axis_shares(at["map_eigenvalues"].values)
    labels = [f"axis {k} ({fixed(100 * share, 0)} %)" for k, share in enumerate(shares[:2], 1)]
    count = int(at["cluster"].values.max(initial=0)) + 1
    clusters = "No clear clusters."
    if count > 1:
        clusters = f"{count} clusters, silhouette {fixed(float(at['silhouette']), 3)}"
        if math.isfinite(stability := float(at["cluster_stability"])):
            clusters += f"; found again in resampled stimuli with an adjusted Rand index of {fixed(stability, 3)}"
        clusters += "."
    common, low, high = (float(at[f"common_share{end}"]) for end in ("", "_low", "_high"))
    if math.isfinite(common):
        within = f" ({spread})" if (spread := interval(low, high, 3)) else ""
        clusters += f" The share of the first common component is {fixed(common, 3)}{within}"
        noise = float(at["common_share_noise"])
        clusters += f"; of unrelated networks it would be up to {fixed(noise, 3)}." if math.isfinite(noise) else "."
    note = f"Points that are close are similar ({name}, mean over matching layers; of layers cka). {clusters}"
    return {"axes": labels, "note": note}


def ceilings(study: xr.Dataset, kernel: str) -> dict[str, Any]:
    """Return the rows and the note of the table of ceilings: similarity across families relative to its ceiling."""
    names = ("families", "across", "ceiling", "ratio", "ratio_low", "ratio_high")
    at = {name: _of_kernel(study[name], kernel).values for name in names}
    rows = [
        [families, *(fixed(value, 4) for value in values), interval(low, high, 4) or MISSING]
        for families, *values, low, high in zip(*(of_pairs.tolist() for of_pairs in at.values()), strict=True)
    ]
    note = (
        "Similarity of two families along matching layers, divided by the ceiling that the similarity within each "
        "family sets. Where the ratio is not clearly below 1, they are as alike as the members of one family."
    )
    if not np.isfinite(at["ratio"]).all():
        note += " The ratio is missing if a family has only one network, or if the ceiling is not clearly above 0."
    return {"note": note, "rows": rows}


def stimuli_note(study: xr.Dataset, kernel: str) -> str:
    """Return the note on the samples that networks agree on most and least."""
    scope = "across families" if len(set(study["family"].values)) > 1 else "of all pairs"
    note = f"The number under a stimulus is its contribution to the mean index {scope} ({kernel})."
    if stands_out(study, kernel) is not False:  # None: not known of an earlier study
        return note
    return f"{note} No stimuli stand out: what each of them adds is within noise."


def networks(models: Sequence[Mapping[str, Any]], *, study: bool) -> dict[str, list[Any]]:
    """Return the table of networks, without the columns that are empty."""
    columns = {key: label for key, label in _COLUMNS.items() if any(model.get(key) for model in models)}
    rows = []
    for model in models:
        state = [model["family"] or MISSING, "trained" if model["trained"] else "untrained"] if study else []
        cells = [str(model.get(key, MISSING))[: _HASH_DIGITS if key == "weights_sha256" else None] for key in columns]
        rows.append([model["name"], *state, *cells])
    return {"columns": ["Network", *(["Family", "State"] if study else []), *columns.values()], "rows": rows}


def sources(measures: Sequence[Mapping[str, Any]]) -> str:
    """Return a sentence that asks to cite the authors of these measures."""
    cited = dict.fromkeys(
        f"{about['name'].split(GIVEN)[0]}: {about['citation']}" for about in measures if about["citation"]
    )
    return f"Please also cite the authors of the measures that you report: {'. '.join(cited)}." if cited else ""
