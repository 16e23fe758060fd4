"""Build the tables of a study for the terminal and for notebooks."""

import numpy as np
import xarray as xr

from repsim.runtime.text_tables import Table
from repsim.study.formatting import number, probability
from repsim.study.reading import LEVEL_NAMES, headline, is_decided, known_shares, strictest, strictest_controlled
from repsim.study.side_by_side import control_in_words, side_by_side


def all_tables(study: xr.Dataset) -> list[Table]:
    """Return the tables of a study, without those that would be empty."""
    tables = [pairs(study), by_measure(study)] if study.sizes.get("pair") else []
    tables += [families(study), reasons(study), controls(study)] if is_decided(study) else []
    tables += [shares(study)] if study.sizes.get("state") else []
    return [table for table in tables if table.rows]


def pairs(study: xr.Dataset) -> Table:
    """Return the table of all pairs of models under the strictest kernel."""
    kernel = strictest(study)
    of_kernel = study.sel(measure=kernel)
    heads = (
        "models", "relation", ">split half (95 %)", ">all samples", ">units of energy", ">control", "which control",
        ">learned (95 %)", ">p (Holm)",
    )  # fmt: skip
    rows = []
    for k, pair in enumerate(study["pair"].values.tolist()):
        one = of_kernel.isel(pair=k)
        cells = (
            _within(one, "split_half"),
            number(float(one["index"])),
            number(float(one["energy"])),
            number(float(one["control"])),
            str(one["control_name"].item()) or "-",
            _within(one, "learned"),
            probability(float(one["p_index_holm"])),
        )
        rows.append((pair, str(study["relation"].values[k]), *_shown(*cells)))
    title = f"{kernel}: mean along matching layers, matched on one half of the samples and measured on the other"
    return Table(title, heads, tuple(rows))


def by_measure(study: xr.Dataset) -> Table:
    """Return the table of all measures, averaged over pairs with the same relation.

    Where a measure has no split-half value, it is that of all samples. Chance is the mean over all pairs of layers.
    """
    heads = ("measure", "pairs", ">value", ">by chance", ">control", ">learned", ">calibrated", ">largest p")
    relations = list(dict.fromkeys(study["relation"].values.tolist()))
    rows = []
    for measure in study["measure"].values.tolist():
        for relation in relations:
            of_kind = study.sel(measure=measure).isel(pair=study["relation"].values == relation)
            names = (headline(study, measure), "control", "learned", "calibrated_index")
            cells = [number(float(of_kind[name].mean())) for name in names]
            cells.insert(1, number(_chance(study, measure, relation)))
            p = of_kind["p_index"].values
            cells.append(probability(float(np.nanmax(p))) if not np.isnan(p).all() else "-")
            rows.append((measure, f"{relation}{_counted(of_kind['control'].values)}", *_shown(*cells)))
    return Table("every measure, mean over pairs of models", heads, tuple(rows))


def _counted(control: np.ndarray) -> str:
    """Return how many pairs have controls, if it is not all of them."""
    counted = int(np.isfinite(control).sum())
    return f" ({counted} of {len(control)} with controls)" if 0 < counted < len(control) else ""


def _chance(study: xr.Dataset, measure: str, relation: str) -> float:
    """Return the mean chance level of the layers of all pairs of models with a relation."""
    of_kind = study.isel(pair=study["relation"].values == relation)
    pairs = zip(of_kind["pair_a"].values.tolist(), of_kind["pair_b"].values.tolist(), strict=True)
    chance = study["chance"].sel(measure=measure).values
    blocks = [chance[np.ix_(study["model_a"].values == a, study["model_b"].values == b)].ravel() for a, b in pairs]
    values = np.concatenate(blocks) if blocks else np.zeros(0)
    return float(np.nanmean(values)) if np.isfinite(values).any() else np.nan


def families(study: xr.Dataset) -> Table:
    """Return the table of what pairs of families share that was learned, under each kernel that the claim rests on.

    P-values are those of each pair of families on its own; the claim corrects them for the number of pairs.
    """
    heads = (
        "families", "shared by", "measure", ">effect (95 %, samples)", ">95 %, networks and samples",
        ">in units of energy (95 %)", "strongest control", ">p, exchange", ">smallest possible",
    )  # fmt: skip
    kernels = strictest_controlled(study)
    rows, ends = [], set()
    for name in study["families"].values.tolist():
        of_pair = study.sel(families=name)
        for kernel in kernels:
            one = of_pair.sel(measure=kernel, kernel=kernel)
            against, of_families = str(one["effect_against"].item()), (one["family_a"].item(), one["family_b"].item())
            cells = _shown(
                _within(one, "effect"),
                _ends(one, "effect_network"),
                _within(one, "effect_energy"),
                control_in_words(against, *of_families) if against else "-",
                probability(float(one["p_exchange"])),
                probability(float(one["p_exchange_least"])),
            )
            level = LEVEL_NAMES[str(one["claim_level"].item())]
            rows.append((*((name, level) if kernel == kernels[0] else ("", "")), kernel, *cells))
        if len(kernels) > 1:
            ends.add(len(rows) - 1)
    title = "what pairs of families share that was learned: trained networks minus the strongest control"
    return Table(title, heads, tuple(rows), frozenset(ends))


def reasons(study: xr.Dataset) -> Table:
    """Return the table of reasons why no more is claimed of pairs of families."""
    by_pair = zip(study["families"].values.tolist(), study["claim_reason"].values.tolist(), strict=True)
    rows = tuple((name, reason) for name, reason in by_pair if reason)
    return Table("why no more is claimed", ("families", "reason"), rows)


def controls(study: xr.Dataset) -> Table:
    """Return the table of raw values, values given controls, units of energy, and energy left, side by side."""
    conditions = [kernel for kernel in strictest_controlled(study) if kernel != "cka"]
    heads = ["families", "networks", ">raw (cka)"]
    heads += [
        head for kernel in conditions
        for head in (f">{kernel.removeprefix('cka ')}", ">in units of energy", ">energy left of each")
    ]  # fmt: skip
    rows: list[tuple[str, ...]] = []
    ends, last = set(), ""
    for row in side_by_side(study):
        cells = [number(row.by_kernel["cka"].value)]
        for kernel in conditions:
            one = row.by_kernel[kernel]
            cells += [number(one.value), number(one.energy), ", ".join(map(number, one.left))]
        if last and row.families != last:
            ends.add(len(rows) - 1)
        rows.append(("" if row.families == last else row.families, row.networks, *_shown(*cells)))
        last = row.families
    return Table("trained networks and each control, side by side", tuple(heads), tuple(rows), frozenset(ends))


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
    title = "where the energy of kernels comes from, along matching layers"
    return Table(title, ("networks", "depth", *(f">{label}" for label in names.values())), tuple(rows), frozenset(ends))


def _within(one: xr.Dataset, name: str) -> str:
    """Format a value with its interval."""
    return number(*(float(one[f"{name}{end}"]) for end in ("", "_low", "_high")))


def _ends(one: xr.Dataset, name: str) -> str:
    """Format an interval without its value."""
    low, high = (number(float(one[f"{name}_{end}"])) for end in ("low", "high"))
    return f"{low} to {high}"


def _shown(*cells: str) -> tuple[str, ...]:
    return tuple("-" if "nan" in cell else cell for cell in cells)
