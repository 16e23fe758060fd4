"""What a study found, as tables: for the terminal and for notebooks."""

import numpy as np
import xarray as xr

from repsim.runtime.text_tables import Table
from repsim.study.formatting import number, probability
from repsim.study.reading import known_shares, strictest


def all_tables(found: xr.Dataset) -> list[Table]:
    """Those that this study has something for."""
    made = [pairs(found), by_measure(found)] if found.sizes.get("pair") else []
    return [*made, shares(found)] if found.sizes.get("state") else made


def pairs(found: xr.Dataset) -> Table:
    """All pairs of models under the strictest kernel."""
    kernel = strictest(found)
    at = found.sel(measure=kernel)
    heads = (
        "models", "relation", ">best match (95 %)", ">split half", ">calibrated", ">p (Holm)", ">control",
        ">learned (95 %)",
    )  # fmt: skip
    rows = []
    for k, pair in enumerate(found["pair"].values.tolist()):
        row = {name: float(at[name].values[k]) for name in (
            "index", "index_low", "index_high", "split_half", "calibrated_index", "p_index_holm", "control", "learned",
            "learned_low", "learned_high",
        )}  # fmt: skip
        cells = (
            number(row["index"], row["index_low"], row["index_high"]),
            number(row["split_half"]),
            number(row["calibrated_index"]),
            probability(row["p_index_holm"]),
            number(row["control"]),
            number(row["learned"], row["learned_low"], row["learned_high"]),
        )
        rows.append((pair, str(found["relation"].values[k]), *_shown(*cells)))
    title = f"{kernel}: mean along the best match of layers; calibrated against permuted samples"
    return Table(title, heads, tuple(rows))


def by_measure(found: xr.Dataset) -> Table:
    """Every measure, mean over pairs of one kind."""
    heads = ("measure", "pairs", ">best match", ">untrained or other control", ">learned", ">calibrated", ">largest p")
    relations = list(dict.fromkeys(found["relation"].values.tolist()))
    rows = []
    for measure in found["measure"].values.tolist():
        for relation in relations:
            some = found.sel(measure=measure).isel(pair=found["relation"].values == relation)
            cells = [number(float(some[name].mean())) for name in ("index", "control", "learned", "calibrated_index")]
            p = some["p_index"].values
            cells.append(probability(float(np.nanmax(p))) if not np.isnan(p).all() else "-")
            rows.append((measure, relation, *_shown(*cells)))
    return Table("every measure, mean over pairs of models", heads, tuple(rows))


def shares(found: xr.Dataset) -> Table:
    """The four shares by depth; of what cannot be told apart, the sum."""
    names = known_shares(found)
    rows, ends = [], set()
    for state in found["state"].values.tolist():
        for depth in found["depth"].values.tolist():
            cells = [number(float(found["share"].sel(state=state, share_of=name, depth=depth))) for name in names]
            rows.append((state, f"{depth:.2f}", *_shown(*cells)))
        cells = [number(float(found["mean_share"].sel(state=state, share_of=name))) for name in names]
        ends.add(len(rows))
        rows.append((state, "mean", *_shown(*cells)))
    title = "where the energy of kernels comes from"
    return Table(
        title, ("networks", "depth", *(f">{called}" for called in names.values())), tuple(rows), frozenset(ends)
    )


def _shown(*cells: str) -> tuple[str, ...]:
    return tuple("-" if "nan" in cell else cell for cell in cells)
