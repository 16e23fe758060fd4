"""Build the tables of a study for the terminal and for notebooks."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr

from repsim.runtime.text_tables import Table
from repsim.study.formatting import number, probability
from repsim.study.reading import LEVEL_NAMES, headline, is_decided, known_shares, strictest, strictest_controlled
from repsim.study.side_by_side import control_in_words, side_by_side

MOST_ROWS = 48
"""Largest number of pairs of models or of families that a table shows completely; more would fill several screens."""
SHOWN = 5
"""Number of pairs that a table of more pairs shows at either end of their order."""
BRIEF = 3
"""Number of pairs at either end of the order in the table that the terminal shows at first."""
_ENDS = ("", "_low", "_high")
_PAIR_COLUMNS = (
    "pair", "relation", "index", "energy", "control", "control_name", "p_index_holm",
    *(f"{name}{end}" for name in ("split_half", "learned") for end in _ENDS),
)  # fmt: skip
_OF_FAMILIES = (
    "families", "family_a", "family_b", "claim_level", "effect_against", "p_exchange", "p_exchange_least",
    "effect_network_low", "effect_network_high",
    *(f"{name}{end}" for name in ("effect", "effect_energy") for end in _ENDS),
)  # fmt: skip
"""Columns of the tables of pairs of models and of pairs of families."""


def all_tables(study: xr.Dataset) -> list[Table]:
    """Return the tables of a study, without those that would be empty."""
    tables = [pairs(study), by_measure(study)] if study.sizes.get("pair") else []
    tables += [families(study), reasons(study), controls(study)] if is_decided(study) else []
    tables += [shares(study)] if study.sizes.get("state") else []
    return [table for table in tables if table.rows]


def pairs(study: xr.Dataset) -> Table:
    """Return the table of all pairs of models under the strictest kernel."""
    heads = (
        "models", "relation", ">split half (95 %)", ">all samples", ">units of energy", ">control", "which control",
        ">learned (95 %)", ">p (Holm)",
    )  # fmt: skip
    return _of_pairs(study, heads, MOST_ROWS, SHOWN)


def ends_of_pairs(study: xr.Dataset) -> Table:
    """Return a short table of pairs of models under the strictest kernel: of many, the most and the least alike."""
    main = ">split half (95 %)" if headline(study, strictest(study)) == "split_half" else ">all samples"
    return _of_pairs(study, ("models", main, ">control", ">learned (95 %)"), 2 * BRIEF, BRIEF)


def _of_pairs(study: xr.Dataset, heads: Sequence[str], most: int, ends: int) -> Table:
    """Return a table of pairs of models with these columns."""
    kernel = strictest(study)
    at = _columns(study, kernel, _PAIR_COLUMNS)
    main = "split_half" if headline(study, kernel) == "split_half" else "index"
    shown, left_out = first_and_last(at[main], most=most, ends=ends)
    rows = []
    for k in shown:
        cells = {
            ">split half (95 %)": _within(at, "split_half", k),
            ">all samples": number(at["index"][k]),
            ">units of energy": number(at["energy"][k]),
            ">control": number(at["control"][k]),
            "which control": at["control_name"][k] or "-",
            ">learned (95 %)": _within(at, "learned", k),
            ">p (Holm)": probability(at["p_index_holm"][k]),
        }
        names = {"models": at["pair"][k], "relation": at["relation"][k]}
        rows.append(tuple(names[head] if head in names else _shown(cells[head])[0] for head in heads))
    matched = ", matched on one half of the samples and measured on the other"
    title = f"{kernel}: mean along matching layers{matched if '>split half (95 %)' in heads else ''}"
    return Table(f"{title}{left_out}", tuple(heads), tuple(rows), frozenset({ends - 1} if left_out else ()))


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


def first_and_last(
    values: Sequence[float], noun: str = "pairs of models", *, most: int = MOST_ROWS, ends: int = SHOWN
) -> tuple[list[int], str]:
    """Return which rows of a table are shown, and how the title says that others are left out.

    Of more than ``most`` rows, those with the largest and with the smallest values are shown, ``ends`` of each.

    >>> first_and_last([0.1, 0.2])
    ([0, 1], '')
    >>> first_and_last(list(range(100)))[1]
    '; the 5 most and the 5 least alike of 100 pairs of models'
    """
    if len(values) <= most:
        return list(range(len(values))), ""
    numbers = np.nan_to_num(np.array(values, np.float64), nan=-np.inf)
    order = np.argsort(-numbers, kind="stable").tolist()
    which = f"; the {ends} most and the {ends} least alike of {len(values):,} {noun}"
    return [*order[:ends], *order[-ends:]], which


def _columns(study: xr.Dataset, kernel: str, names: Sequence[str]) -> dict[str, list[Any]]:
    """Return variables under one kernel as lists, one entry a row."""
    return {
        name: study[name].sel({dim: kernel for dim in ("measure", "kernel") if dim in study[name].dims}).values.tolist()
        for name in names
    }


def _counted(control: np.ndarray) -> str:
    """Return how many pairs have controls, if it is not all of them."""
    counted = int(np.isfinite(control).sum())
    return f" ({counted} of {len(control)} with controls)" if 0 < counted < len(control) else ""


def _chance(study: xr.Dataset, measure: str, relation: str) -> float:
    """Return the mean chance level of the layers of all pairs of models with a relation."""
    of_kind = study.isel(pair=study["relation"].values == relation)
    pairs = zip(of_kind["pair_a"].values.tolist(), of_kind["pair_b"].values.tolist(), strict=True)
    chance = study["chance"].sel(measure=measure).values
    layers = [
        {model: np.flatnonzero(study[f"model_{side}"].values == model) for model in study["model"].values.tolist()}
        for side in "ab"
    ]
    blocks = [chance[np.ix_(layers[0][a], layers[1][b])].ravel() for a, b in pairs]
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
    at = {kernel: _columns(study, kernel, _OF_FAMILIES) for kernel in kernels}
    shown, left_out = _shown_families(study)
    rows, ends = [], set()
    for k in shown:
        for kernel, column in at.items():
            against, of_families = column["effect_against"][k], (column["family_a"][k], column["family_b"][k])
            cells = _shown(
                _within(column, "effect", k),
                " to ".join(number(column[f"effect_network_{end}"][k]) for end in ("low", "high")),
                _within(column, "effect_energy", k),
                control_in_words(against, *of_families) if against else "-",
                probability(column["p_exchange"][k]),
                probability(column["p_exchange_least"][k]),
            )
            names = column["families"][k], LEVEL_NAMES[column["claim_level"][k]]
            rows.append((*(names if kernel == kernels[0] else ("", "")), kernel, *cells))
        if len(kernels) > 1:
            ends.add(len(rows) - 1)
    title = "what pairs of families share that was learned: trained networks minus the strongest control"
    return Table(f"{title}{left_out}", heads, tuple(rows), frozenset(ends))


def _shown_families(study: xr.Dataset) -> tuple[list[int], str]:
    """Return which pairs of families the tables show, by their effect under the strictest kernel, as `first_and_last`.

    Those that have no effect come last.
    """
    return first_and_last(_columns(study, strictest(study), ["effect"])["effect"], "pairs of families")


def reasons(study: xr.Dataset) -> Table:
    """Return the table of reasons why no more is claimed of pairs of families; of many pairs, the commonest reasons."""
    by_pair = zip(study["families"].values.tolist(), study["claim_reason"].values.tolist(), strict=True)
    pairs = [(name, reason) for name, reason in by_pair if reason]
    title = "why no more is claimed"
    if len(pairs) <= MOST_ROWS:
        return Table(title, ("families", "reason"), tuple(pairs))
    counts = Counter(reason for _, reason in pairs)
    first = {reason: name for name, reason in reversed(pairs)}
    rows = [
        (first[reason] if count == 1 else f"{count:,} pairs, such as {first[reason]}", reason)
        for reason, count in counts.most_common(2 * SHOWN)
    ]
    more = f"; the {len(rows)} commonest of {len(counts):,} reasons" if len(counts) > len(rows) else ""
    return Table(f"{title}{more}", ("families", "reason"), tuple(rows))


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
    shown, left_out = _shown_families(study)
    names = {study["families"].values[k] for k in shown}
    for row in (row for row in side_by_side(study) if row.families in names):
        cells = [number(row.by_kernel["cka"].value)]
        for kernel in conditions:
            one = row.by_kernel[kernel]
            cells += [number(one.value), number(one.energy), ", ".join(map(number, one.left))]
        if last and row.families != last:
            ends.add(len(rows) - 1)
        rows.append(("" if row.families == last else row.families, row.networks, *_shown(*cells)))
        last = row.families
    title = f"trained networks and each control, side by side{left_out}"
    return Table(title, tuple(heads), tuple(rows), frozenset(ends))


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


def _within(at: Mapping[str, Sequence[float]], name: str, k: int) -> str:
    """Format the value of row k with its interval."""
    return number(*(at[f"{name}{end}"][k] for end in _ENDS))


def _shown(*cells: str) -> tuple[str, ...]:
    return tuple("-" if "nan" in cell else cell for cell in cells)
