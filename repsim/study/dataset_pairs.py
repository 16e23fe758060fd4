"""The part of a study's data set that is about pairs of models, and of kinds of pairs."""

import numpy as np
import xarray as xr
from jaxtyping import Float64

from repsim.results.variables import RELATIONS
from repsim.study.chance import calibrated, p_value, threshold
from repsim.study.design import Pair
from repsim.study.inference import Inference
from repsim.study.layer_matching import Match, best_match, mbm, warp
from repsim.study.multiple_tests import benjamini_hochberg, holm
from repsim.study.other_measures import Measured, most
from repsim.study.permutation_nulls import Null, of_values
from repsim.study.uncertainty import half_samples, interval_of, jackknife

_COLUMNS = (
    "index", "index_low", "index_high", "split_half", "largest", "p_index", "p_largest", "p_index_holm", "p_index_bh",
    "threshold_index", "threshold_largest", "calibrated_index", "calibrated_largest", "permuted",
    "p_index_within_classes", "p_largest_within_classes", "calibrated_index_within_classes",
    "control", "learned", "learned_low", "learned_high", "warp",
)  # fmt: skip


def pairs_of_models(known: Inference) -> xr.Dataset:
    """Every pair of trained models under every measure: indices, intervals, tests, best matches."""
    pairs, titles = known.pairs, known.titles
    table = {name: np.full((len(titles), len(pairs)), np.nan) for name in _COLUMNS}
    best = np.full((len(titles), len(pairs)), "", dtype=object)
    deepest = max((len(known.indices.of[m.name]) for m in known.design.trained), default=1)
    matches = np.full((len(titles), len(pairs), 2, deepest), -1)
    for p, pair in enumerate(pairs):
        for m, title in enumerate(titles):
            row, control, both = (
                _row_of_cka(known, known.given[title], pair)
                if title in known.given
                else _row_of_other(known, known.evidence.measured[m - len(known.given)], pair)
            )
            best[m, p] = control
            for name, value in row.items():
                table[name][m, p] = value
            for side, match in enumerate(both):
                matches[m, p, side, : len(match.columns)] = match.columns
            table["warp"][m, p] = warp(both[0].columns, both[1].columns.shape[-1])
    if pairs:
        table["p_index_holm"] = np.stack([holm(row) for row in table["p_index"]])
        table["p_index_bh"] = np.stack([benjamini_hochberg(row) for row in table["p_index"]])
    dims = ("measure", "pair")
    return xr.Dataset(
        {name: (dims, values) for name, values in table.items()}
        | {"control_name": (dims, best.astype(str)), "match": ((*dims, "direction", "position"), matches)},
        coords={
            "pair": [pair.name for pair in pairs],
            "pair_a": ("pair", [pair.a.name for pair in pairs]),
            "pair_b": ("pair", [pair.b.name for pair in pairs]),
            "relation": ("pair", [pair.relation for pair in pairs]),
            "direction": ["a to b", "b to a"],
        },
    )


def _row_of_cka(known: Inference, kind: str, pair: Pair) -> tuple[dict[str, float], str, tuple[Match, Match]]:
    k = known.column(kind, pair)
    interval = jackknife(known.theta[k], known.evidence.left_out[:, k])
    row = {"index": known.theta[k], "index_low": interval.low, "index_high": interval.high}
    row["split_half"] = known.evidence.halves.get((kind, pair.name), np.nan)
    values = known.indices.block(known.indices.similarities(known.indices.R, kind), pair)
    row["largest"] = _largest(values)
    if null := known.evidence.nulls.get((kind, pair.name)):
        row |= _tested(null)
    if null := known.evidence.within_classes.get((kind, pair.name)):
        row |= {f"{name}_within_classes": value for name, value in _tested(null).items()}
    name, column = "", np.nan
    for title, some in known.controls(pair, half=True):
        columns = [known.column(kind, each) for each in some]
        level = float(known.theta[columns].mean())
        if np.isnan(level) or level <= column:
            continue
        name, column = title, level
        interval = interval_of(known.drawn[:, k] - known.drawn[:, columns].mean(1))
        row |= {"learned_low": float(interval.low), "learned_high": float(interval.high)}
    row |= {"control": column, "learned": float(known.theta[k]) - column}
    return (
        {name: value for name, value in row.items() if name in _COLUMNS},
        name,
        known.indices.matches[kind, pair.name],
    )


def _row_of_other(known: Inference, each: Measured, pair: Pair) -> tuple[dict[str, float], str, tuple[Match, Match]]:
    values = each.values[pair.name]
    theta = float(mbm(values))
    row = {"index": theta, "largest": _largest(values)}
    halves = mbm(each.halves[pair.name]) if pair.name in each.halves else None
    if halves is not None:
        interval = half_samples(theta, halves, known.design.n)
        row |= {"index_low": float(interval.low), "index_high": float(interval.high)}
    if pair.name in each.permuted:
        row |= _tested(of_values(values, each.permuted[pair.name]), most(each.metric))
    name = ""
    for title, some in known.controls(pair, half=False):
        name, level = title, float(np.mean([mbm(each.values[other.name]) for other in some]))
        row |= {"control": level, "learned": theta - level}
        if halves is not None:
            others = np.mean([mbm(each.halves[other.name]) for other in some], axis=0)
            interval = half_samples(theta - level, halves - others, known.design.n)
            row |= {"learned_low": float(interval.low), "learned_high": float(interval.high)}
    return row, name, (best_match(values), best_match(values.T))


def _largest(values: Float64[np.ndarray, "a b"]) -> float:
    return float(np.nanmax(values)) if not np.isnan(values).all() else np.nan


def _tested(null: Null, most: float = 1) -> dict[str, float]:
    """``most`` is what equal layers have: the end of the calibrated scale."""
    p, tau = p_value(null.observed, null.permuted), threshold(null.observed, null.permuted)
    level = calibrated(null.observed + 1 - most, tau + 1 - most) if np.isfinite(most) else np.full(2, np.nan)
    return {
        "p_index": p[0], "p_largest": p[1], "threshold_index": tau[0], "threshold_largest": tau[1],
        "calibrated_index": level[0], "calibrated_largest": level[1], "permuted": len(null.permuted),
    }  # fmt: skip


def kinds_of_pairs(known: Inference) -> xr.Dataset:
    """Means over all pairs that have the same in common, of debiased CKA: with joint intervals."""
    names = ("index", "control", "learned")
    shape = len(known.kernels), len(RELATIONS)
    table = {f"{name}_mean{end}": np.full(shape, np.nan) for name in names for end in ("", "_low", "_high")}
    for m, kind in enumerate(known.kernels.values()):
        for r, relation in enumerate(RELATIONS):
            some = [pair for pair in known.pairs if pair.relation == relation]
            if not some:
                continue
            own = [known.column(kind, pair) for pair in some]
            columns = {"index": (known.theta[own].mean(), known.drawn[:, own].mean(1))}
            candidates: dict[str, list[int]] = {}
            for pair in some:
                for title, others in known.controls(pair, half=True):
                    candidates.setdefault(title, []).extend(known.column(kind, each) for each in others)
            if candidates:
                best = max(candidates.values(), key=lambda where: round(float(known.theta[where].mean()), 9))
                columns["control"] = known.theta[best].mean(), known.drawn[:, best].mean(1)
                columns["learned"] = (
                    columns["index"][0] - columns["control"][0], columns["index"][1] - columns["control"][1]
                )  # fmt: skip
            for name, (value, drawn) in columns.items():
                table[f"{name}_mean"][m, r] = value
                interval = interval_of(drawn)
                table[f"{name}_mean_low"][m, r], table[f"{name}_mean_high"][m, r] = interval.low, interval.high
    return xr.Dataset(
        {name: (("kernel", "kind_of_pair"), values) for name, values in table.items()},
        coords={"kernel": list(known.kernels), "kind_of_pair": list(RELATIONS)},
    )
