"""Build the tables of a study for the terminal and for notebooks."""

import numpy as np
import xarray as xr

from repsim.runtime.text_tables import Table
from repsim.study.formatting import number, probability
from repsim.study.reading import known_shares, strictest


def all_tables(study: xr.Dataset) -> list[Table]:
    """Return the tables of a study, without those that would be empty."""
    tables = [pairs(study), by_measure(study)] if study.sizes.get("pair") else []
    return [*tables, shares(study)] if study.sizes.get("state") else tables


def pairs(study: xr.Dataset) -> Table:
    """Return the table of all pairs of models under the strictest kernel."""
    kernel = strictest(study)
    of_kernel = study.sel(measure=kernel)
    heads = (
        "models", "relation", ">best match (95 %)", ">split half", ">calibrated", ">p (Holm)", ">control",
        ">learned (95 %)",
    )  # fmt: skip
    rows = []
    for k, pair in enumerate(study["pair"].values.tolist()):
        row = {name: float(of_kernel[name].values[k]) for name in (
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
        rows.append((pair, str(study["relation"].values[k]), *_shown(*cells)))
    title = f"{kernel}: mean along the best match of layers; calibrated against permuted samples"
    return Table(title, heads, tuple(rows))


def by_measure(study: xr.Dataset) -> Table:
    """Return the table of all measures, averaged over pairs with the same relation."""
    heads = ("measure", "pairs", ">best match", ">untrained or other control", ">learned", ">calibrated", ">largest p")
    relations = list(dict.fromkeys(study["relation"].values.tolist()))
    rows = []
    for measure in study["measure"].values.tolist():
        for relation in relations:
            of_kind = study.sel(measure=measure).isel(pair=study["relation"].values == relation)
            means = [float(of_kind[name].mean()) for name in ("index", "control", "learned", "calibrated_index")]
            cells = [number(mean) for mean in means]
            p = of_kind["p_index"].values
            cells.append(probability(float(np.nanmax(p))) if not np.isnan(p).all() else "-")
            rows.append((measure, relation, *_shown(*cells)))
    return Table("every measure, mean over pairs of models", heads, tuple(rows))


def shares(study: xr.Dataset) -> Table:
    """Return the table of the energy shares by depth, with sums of shares that are identified only together."""
    names = known_shares(study)
    rows, ends = [], set()
    for state in study["state"].values.tolist():
        for depth in study["depth"].values.tolist():
            cells = [number(float(study["share"].sel(state=state, share_of=name, depth=depth))) for name in names]
            rows.append((state, f"{depth:.2f}", *_shown(*cells)))
        cells = [number(float(study["mean_share"].sel(state=state, share_of=name))) for name in names]
        ends.add(len(rows))
        rows.append((state, "mean", *_shown(*cells)))
    title = "where the energy of kernels comes from"
    return Table(title, ("networks", "depth", *(f">{label}" for label in names.values())), tuple(rows), frozenset(ends))


def _shown(*cells: str) -> tuple[str, ...]:
    return tuple("-" if "nan" in cell else cell for cell in cells)
