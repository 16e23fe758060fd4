"""Build the tables of pairs of models, and of kinds of pairs, for the data set of a study."""

import numpy as np
import xarray as xr
from jaxtyping import Float64

from repsim.results.variables import RELATIONS
from repsim.study.chance import calibrated, p_value, threshold
from repsim.study.design import Pair
from repsim.study.inference import Inference
from repsim.study.layer_matching import Match, best_match, mbm, warp
from repsim.study.multiple_tests import benjamini_hochberg, holm
from repsim.study.other_measures import MeasureResult, identity_value
from repsim.study.permutation_nulls import Null, null_of_values
from repsim.study.uncertainty import half_samples, interval_of, jackknife

_COLUMNS = (
    "index", "index_low", "index_high", "split_half", "largest", "p_index", "p_largest", "p_index_holm", "p_index_bh",
    "threshold_index", "threshold_largest", "calibrated_index", "calibrated_largest", "permuted",
    "p_index_within_classes", "p_largest_within_classes", "calibrated_index_within_classes",
    "control", "learned", "learned_low", "learned_high", "warp",
)  # fmt: skip


def pairs_of_models(inference: Inference) -> xr.Dataset:
    """Compute indices, intervals, tests, controls and best matches of all pairs of trained models and all measures."""
    pairs, titles = inference.pairs, inference.titles
    table = {name: np.full((len(titles), len(pairs)), np.nan) for name in _COLUMNS}
    control_names = np.full((len(titles), len(pairs)), "", dtype=object)
    deepest = max((len(inference.indices.positions[m.name]) for m in inference.design.trained), default=1)
    matches = np.full((len(titles), len(pairs), 2, deepest), -1)
    for p, pair in enumerate(pairs):
        for m, title in enumerate(titles):
            row, control, matched = (
                _row_of_cka(inference, inference.conditions[title], pair)
                if title in inference.conditions
                else _row_of_other(inference, inference.evidence.measures[m - len(inference.conditions)], pair)
            )
            control_names[m, p] = control
            for name, value in row.items():
                table[name][m, p] = value
            for side, match in enumerate(matched):
                matches[m, p, side, : len(match.columns)] = match.columns
            table["warp"][m, p] = warp(matched[0].columns, matched[1].columns.shape[-1])
    if pairs:
        table["p_index_holm"] = np.stack([holm(row) for row in table["p_index"]])
        table["p_index_bh"] = np.stack([benjamini_hochberg(row) for row in table["p_index"]])
    dims = ("measure", "pair")
    return xr.Dataset(
        {name: (dims, values) for name, values in table.items()}
        | {"control_name": (dims, control_names.astype(str)), "match": ((*dims, "direction", "position"), matches)},
        coords={
            "pair": [pair.name for pair in pairs],
            "pair_a": ("pair", [pair.a.name for pair in pairs]),
            "pair_b": ("pair", [pair.b.name for pair in pairs]),
            "relation": ("pair", [pair.relation for pair in pairs]),
            "direction": ["a to b", "b to a"],
        },
    )


def _row_of_cka(inference: Inference, kind: str, pair: Pair) -> tuple[dict[str, float], str, tuple[Match, Match]]:
    """Return the columns of the table, the best control, and the matches in both directions, for debiased CKA."""
    k = inference.column(kind, pair)
    interval = jackknife(inference.theta[k], inference.evidence.left_out[:, k])
    row = {"index": inference.theta[k], "index_low": interval.low, "index_high": interval.high}
    row["split_half"] = inference.evidence.halves.get((kind, pair.name), np.nan)
    values = inference.indices.block(inference.indices.similarities(inference.indices.R, kind), pair)
    row["largest"] = _largest(values)
    if null := inference.evidence.nulls.get((kind, pair.name)):
        row |= _test_columns(null)
    if null := inference.evidence.within_classes.get((kind, pair.name)):
        row |= {f"{name}_within_classes": value for name, value in _test_columns(null).items()}
    best, best_level = "", np.nan
    for name, controls in inference.controls(pair, half=True):
        columns = [inference.column(kind, control) for control in controls]
        level = float(inference.theta[columns].mean())
        if np.isnan(level) or level <= best_level:
            continue
        best, best_level = name, level
        interval = interval_of(inference.drawn[:, k] - inference.drawn[:, columns].mean(1))
        row |= {"learned_low": float(interval.low), "learned_high": float(interval.high)}
    row |= {"control": best_level, "learned": float(inference.theta[k]) - best_level}
    return (
        {name: value for name, value in row.items() if name in _COLUMNS},
        best,
        inference.indices.matches[kind, pair.name],
    )


def _row_of_other(
    inference: Inference, result: MeasureResult, pair: Pair
) -> tuple[dict[str, float], str, tuple[Match, Match]]:
    """Return the columns of the table, the control, and the matches in both directions, for another measure."""
    values = result.values[pair.name]
    theta = float(mbm(values))
    row = {"index": theta, "largest": _largest(values)}
    halves = mbm(result.halves[pair.name]) if pair.name in result.halves else None
    if halves is not None:
        interval = half_samples(theta, halves, inference.design.n)
        row |= {"index_low": float(interval.low), "index_high": float(interval.high)}
    if pair.name in result.permuted:
        row |= _test_columns(null_of_values(values, result.permuted[pair.name]), identity_value(result.metric))
    control = ""
    for name, controls in inference.controls(pair, half=False):
        control, level = name, float(np.mean([mbm(result.values[twins.name]) for twins in controls]))
        row |= {"control": level, "learned": theta - level}
        if halves is not None:
            control_halves = np.mean([mbm(result.halves[twins.name]) for twins in controls], axis=0)
            interval = half_samples(theta - level, halves - control_halves, inference.design.n)
            row |= {"learned_low": float(interval.low), "learned_high": float(interval.high)}
    return row, control, (best_match(values), best_match(values.T))


def _largest(values: Float64[np.ndarray, "a b"]) -> float:
    return float(np.nanmax(values)) if not np.isnan(values).all() else np.nan


def _test_columns(null: Null, maximum: float = 1) -> dict[str, float]:
    """Return p-values, critical values and calibrated values of a permutation test.

    ``maximum`` is the value of equal layers, at which the calibrated scale ends.
    """
    p, tau = p_value(null.observed, null.permuted), threshold(null.observed, null.permuted)
    level = calibrated(null.observed + 1 - maximum, tau + 1 - maximum) if np.isfinite(maximum) else np.full(2, np.nan)
    return {
        "p_index": p[0], "p_largest": p[1], "threshold_index": tau[0], "threshold_largest": tau[1],
        "calibrated_index": level[0], "calibrated_largest": level[1], "permuted": len(null.permuted),
    }  # fmt: skip


def kinds_of_pairs(inference: Inference) -> xr.Dataset:
    """Compute means of debiased CKA over all pairs with the same relation, with joint intervals."""
    names = ("index", "control", "learned")
    shape = len(inference.kernels), len(RELATIONS)
    table = {f"{name}_mean{end}": np.full(shape, np.nan) for name in names for end in ("", "_low", "_high")}
    for m, kind in enumerate(inference.kernels.values()):
        for r, relation in enumerate(RELATIONS):
            pairs = [pair for pair in inference.pairs if pair.relation == relation]
            if not pairs:
                continue
            own_columns = [inference.column(kind, pair) for pair in pairs]
            columns = {"index": (inference.theta[own_columns].mean(), inference.drawn[:, own_columns].mean(1))}
            candidates: dict[str, list[int]] = {}
            for pair in pairs:
                for title, controls in inference.controls(pair, half=True):
                    candidates.setdefault(title, []).extend(inference.column(kind, control) for control in controls)
            if candidates:
                best = max(candidates.values(), key=lambda control: round(float(inference.theta[control].mean()), 9))
                columns["control"] = inference.theta[best].mean(), inference.drawn[:, best].mean(1)
                columns["learned"] = (
                    columns["index"][0] - columns["control"][0], columns["index"][1] - columns["control"][1]
                )  # fmt: skip
            for name, (value, drawn) in columns.items():
                table[f"{name}_mean"][m, r] = value
                interval = interval_of(drawn)
                table[f"{name}_mean_low"][m, r], table[f"{name}_mean_high"][m, r] = interval.low, interval.high
    return xr.Dataset(
        {name: (("kernel", "kind_of_pair"), values) for name, values in table.items()},
        coords={"kernel": list(inference.kernels), "kind_of_pair": list(RELATIONS)},
    )
