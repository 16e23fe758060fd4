"""Writes what stands beside the figures of the page: tiles, notes, tables of text."""

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
"""Kinds of pairs, the first that a study has being the one that tiles are about."""
_COLUMNS = {
    "architecture": "Architecture",
    "weights": "Weights",
    "seed": "Seed",
    "weights_sha256": "Weights, SHA-256",
    "checksum": "Checksum of the store",
    "batch_norm": "Batch norm",
    "device": "Device",
}
"""What the table of networks says of each, where it is known of any; the rest of the provenance is in the file."""
_HASH = 12
"""Digits of a hash that are shown."""


def fixed(value: float, digits: int) -> str:
    """Write a number with so many digits; a dash where there is none.

    >>> fixed(-0.00001, 3), fixed(float("nan"), 3)
    ('0.000', '–')
    """
    return f"{value:z.{digits}f}" if math.isfinite(value) else MISSING


def interval(low: float, high: float, digits: int) -> str:
    """Write an interval; nothing where there is none.

    >>> interval(0.1, 0.25, 2)
    '0.10 to 0.25'
    """
    return f"{fixed(low, digits)} to {fixed(high, digits)}" if math.isfinite(low) and math.isfinite(high) else ""


def subtitle(readout: str, facts: Mapping[str, str]) -> str:
    """Say on what networks were compared, and when."""
    parts = [f"{facts.get('samples', MISSING)} samples of {facts.get('data', MISSING)}"]
    parts += [f"readout {readout}"] if readout else []
    parts += [f"{facts['permutations']} permutations"] if facts.get("permutations") else []
    parts += [f"made {facts['created'][:10]}"] if facts.get("created") else []
    return " · ".join(parts)


def tiles(study: xr.Dataset) -> Iterator[dict[str, Any]]:
    """Make the few numbers that everything else explains."""
    kernel = strictest(study)
    relation = next((name for name in _WHERE if np.isfinite(means_over_pairs(study, "index", "cka", name)[0])), None)
    if relation is None:
        return
    shown = [
        ("index", "cka", f"Debiased CKA of best-matching layers, {_WHERE[relation]}"),
        ("control", "cka", "The same with untrained networks"),
    ]
    if kernel != "cka":
        shown.append(("index", kernel, f"What is left {kernel.removeprefix('cka ')}"))
        shown.append(("control", kernel, "And with untrained networks"))
    shown.append(("learned", kernel, f"Learned effect ({kernel})"))
    for what, of, label in shown:
        value, low, high = means_over_pairs(study, what, of, relation)
        if np.isfinite(value):
            tile = {"label": label, "value": fixed(value, 3), "interval": interval(low, high, 3)}
            yield tile | {"strong": what == "learned"}


def pairs_note(study: xr.Dataset, measure: str) -> str:
    """Say how to read the figure of all pairs under one measure."""
    if np.isfinite(study["control"].sel(measure=measure).values).any():
        reading = (
            "Filled: the pair, with its 95 % interval. Hollow: its best control. What lies between the two is the "
            "learned effect."
        )
    else:
        reading = "With 95 % intervals. There is no control under this measure, hence no learned effect."
    return "The index of every pair: the mean along its best order-preserving match of layers, both ways. " + reading


def shares_note(states: Sequence[str]) -> str:
    """Say how to read the figure of shares."""
    both = "; trained networks, and untrained ones of the same architectures" if len(states) > 1 else ""
    return (
        f"Shares of representational energy by relative depth, with 95 % intervals{both}. They sum to 1; an estimate "
        "can be a little below 0."
    )


def map_of(study: xr.Dataset, name: str) -> dict[str, Any]:
    """Label the axes of a map of networks, and say which clusters it has."""
    at = study.sel({"map": name})
    shares = axis_shares(at["map_eigenvalues"].values)
    labels = [f"axis {k} ({fixed(100 * share, 0)} %)" for k, share in enumerate(shares[:2], 1)]
    count = int(at["cluster"].values.max(initial=0)) + 1
    clusters = "No clear clusters."
    if count > 1:
        clusters = f"{count} clusters, silhouette {fixed(float(at['silhouette']), 3)}"
        if math.isfinite(firm := float(at["cluster_stability"])):
            clusters += f"; found again in resampled stimuli with an adjusted Rand index of {fixed(firm, 3)}"
        clusters += "."
    common, low, high = (float(at[f"common_share{end}"]) for end in ("", "_low", "_high"))
    if math.isfinite(common):
        within = f" ({spread})" if (spread := interval(low, high, 3)) else ""
        clusters += f" The first common component carries {fixed(common, 3)}{within} of what the networks have."
    return {"axes": labels, "note": f"What is near is alike ({name} for networks, cka for layers). {clusters}"}


def ceilings(study: xr.Dataset, kernel: str) -> dict[str, Any]:
    """Make the table of how near families are to their ceiling."""
    at = study.sel(kernel=kernel)
    rows = [
        [str(families), *(fixed(float(at[name][k]), 4) for name in ("across", "ceiling", "ratio")),
         interval(float(at["ratio_low"][k]), float(at["ratio_high"][k]), 4) or MISSING]
        for k, families in enumerate(at["families"].values)
    ]  # fmt: skip
    note = "How alike two families are, of what the likeness of their own members allows."
    if not np.isfinite(at["ratio"].values).all():
        note += (
            " Without a ratio: a family of one network sets no ceiling, and one that is not clearly above 0 is none."
        )
    return {"note": note, "rows": rows}


def networks(models: Sequence[Mapping[str, Any]], *, study: bool) -> dict[str, list[Any]]:
    """Make the table of networks: those columns of which something is known."""
    columns = {key: label for key, label in _COLUMNS.items() if any(model.get(key) for model in models)}
    rows = []
    for model in models:
        state = [model["family"] or MISSING, "trained" if model["trained"] else "untrained"] if study else []
        cells = [str(model.get(key, MISSING))[: _HASH if key == "weights_sha256" else None] for key in columns]
        rows.append([model["name"], *state, *cells])
    return {"columns": ["Network", *(["Family", "State"] if study else []), *columns.values()], "rows": rows}


def sources(measures: Sequence[Mapping[str, Any]]) -> str:
    """Ask to cite those whose measures these are."""
    cited = dict.fromkeys(
        f"{about['name'].split(GIVEN)[0]}: {about['citation']}" for about in measures if about["citation"]
    )
    return f"Please also cite whose measures you report: {'. '.join(cited)}." if cited else ""
