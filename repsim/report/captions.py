"""Write the texts around the figures of the page: tiles, notes and tables."""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr

from repsim.presentation.measures import GIVEN
from repsim.study.reading import axis_shares, means_over_pairs, strictest

MISSING = "–"
_WHERE = {
    "other family": "across families",
    "same architecture": "of one architecture",
    "same family": "within families",
}
"""Relations of pairs in the words of the tiles, which use the first relation that a study has."""
_COLUMNS = {
    "architecture": "Architecture",
    "weights": "Weights",
    "seed": "Seed",
    "weights_sha256": "Weights, SHA-256",
    "checksum": "Checksum of the store",
    "batch_norm": "Batch norm",
    "device": "Device",
}
"""Keys of the provenance in the table of networks, with their headings."""
_HASH_DIGITS = 12
"""Number of digits of a hash that are shown."""


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
    """Yield the tiles with the main numbers of a study."""
    kernel = strictest(study)
    relation = next((name for name in _WHERE if np.isfinite(means_over_pairs(study, "index", "cka", name)[0])), None)
    if relation is None:
        return
    shown = [
        ("index", "cka", f"Debiased CKA of best-matching layers, {_WHERE[relation]}"),
        ("control", "cka", "The same with untrained networks"),
    ]
    if kernel != "cka":
        shown.append(("index", kernel, f"Debiased CKA {kernel.removeprefix('cka ')}"))
        shown.append(("control", kernel, f"Untrained networks, {kernel.removeprefix('cka ')}"))
    shown.append(("learned", kernel, f"Learned effect ({kernel})"))
    for variable, measure, label in shown:
        value, low, high = means_over_pairs(study, variable, measure, relation)
        if np.isfinite(value):
            tile = {"label": label, "value": fixed(value, 3), "interval": interval(low, high, 3)}
            yield tile | {"strong": variable == "learned"}


def pairs_note(study: xr.Dataset, measure: str) -> str:
    """Return the note that explains the figure of all pairs under one measure."""
    if np.isfinite(study["control"].sel(measure=measure).values).any():
        reading = (
            "Filled: the pair, with its 95 % interval. Hollow: its best control. The difference of the two is the "
            "learned effect."
        )
    else:
        reading = "With 95 % intervals. There is no control under this measure, hence no learned effect."
    return "The index of every pair: the mean along its best order-preserving match of layers, both ways. " + reading


def shares_note(states: Sequence[str]) -> str:
    """Return the note that explains the figure of shares."""
    both = ", for trained networks and untrained ones of the same architectures" if len(states) > 1 else ""
    return (
        f"Shares of representational energy by relative depth, with 95 % intervals{both}. They sum to 1; an estimate "
        "can be a little below 0."
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
        clusters += f" The share of the first common component is {fixed(common, 3)}{within}."
    note = f"Points that are close are similar ({name} for networks, cka for layers). {clusters}"
    return {"axes": labels, "note": note}


def ceilings(study: xr.Dataset, kernel: str) -> dict[str, Any]:
    """Return the rows and the note of the table of ceilings: similarity across families relative to its ceiling."""
    at = study.sel(kernel=kernel)
    rows = [
        [str(families), *(fixed(float(at[name][k]), 4) for name in ("across", "ceiling", "ratio")),
         interval(float(at["ratio_low"][k]), float(at["ratio_high"][k]), 4) or MISSING]
        for k, families in enumerate(at["families"].values)
    ]  # fmt: skip
    note = "Similarity of two families, divided by the ceiling that the similarity within each family sets."
    if not np.isfinite(at["ratio"].values).all():
        note += " The ratio is missing if a family has only one network, or if the ceiling is not clearly above 0."
    return {"note": note, "rows": rows}


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
