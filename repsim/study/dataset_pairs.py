"""Build the tables of pairs of models, and of kinds of pairs, for the data set of a study."""

import numpy as np
import xarray as xr
from jaxtyping import Float64, Int64

from repsim.engine.uncertainty import half_samples
from repsim.results.variables import KINDS_OF_PAIRS, OTHER_MODALITY
from repsim.study.chance import calibrated, p_value, threshold
from repsim.study.design import Pair
from repsim.study.inference import Estimate, Inference
from repsim.study.layer_matching import best_match, mbm, warp
from repsim.study.multiple_tests import benjamini_hochberg, holm
from repsim.study.other_measures import MeasureResult, identity_value
from repsim.study.permutation_nulls import Null, null_of_values

_Matches = tuple[Int64[np.ndarray, " A"], Int64[np.ndarray, " B"]]
"""The layer of b for every layer of a, and the layer of a for every layer of b; -1 for none."""
_MOST_OPTIMISM = 1 / 3
"""Largest excess of the plain index over the split-half index, in standard errors, with which it has an interval.

The plain index is a maximum, which grows by chance; an interval around it would not cover."""
_COLUMNS = (
    "index", "index_low", "index_high", "split_half", "split_half_low", "split_half_high", "energy", "energy_low",
    "energy_high", "largest", "p_index", "p_largest", "p_index_holm", "p_index_bh",
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
    layers = {kind: inference.indices.similarities(inference.matrices, kind) for kind in inference.conditions.values()}
    for m, title in enumerate(titles):
        kind = inference.conditions.get(title)
        for p, pair in enumerate(pairs):
            row, control, matched = (
                _row_of_cka(inference, kind, pair, layers[kind])
                if kind is not None
                else _row_of_other(inference, inference.evidence.measures[m - len(inference.conditions)], pair)
            )
            control_names[m, p] = control
            for name, value in row.items():
                table[name][m, p] = value
            for side, columns in enumerate(matched):
                matches[m, p, side, : len(columns)] = columns
            table["warp"][m, p] = warp(matched[0], len(matched[1]))
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


def _row_of_cka(
    inference: Inference, kind: str, pair: Pair, layers: Float64[np.ndarray, "L L"]
) -> tuple[dict[str, float], str, _Matches]:
    """Return the columns of the table, the best control, and the matches in both directions, for debiased CKA.

    ``layers`` are the values of all layers.
    """
    half, plain = (inference.estimate_of(inference.column(kind, pair, what), kind) for what in ("index", "best"))
    row = {"index": plain.value, "split_half": half.value, "split_half_low": half.low, "split_half_high": half.high}
    if abs(plain.value - half.value) <= _MOST_OPTIMISM * plain.se:
        row |= {"index_low": plain.low, "index_high": plain.high}
    if kind in inference.indices.energies:
        energy = inference.estimate_of(inference.column(kind, pair, "energy"), kind, in_energy=True)
        row |= {"energy": energy.value, "energy_low": energy.low, "energy_high": energy.high}
    values = inference.indices.block(layers, pair)
    row["largest"] = _largest(values)
    if null := inference.evidence.nulls.get((kind, pair.name)):
        row |= _test_columns(null)
    if null := inference.evidence.within_classes.get((kind, pair.name)):
        row |= {f"{name}_within_classes": value for name, value in _test_columns(null).items()}
    best = ""
    if inference.is_controlled(pair):
        levels, excess = inference.effects(kind, [pair])
        if np.isfinite(list(levels.values())).all():
            best = max(levels, key=lambda name: round(levels[name], 9))
            row |= {
                "control": levels[best],
                "learned": half.value - levels[best],
                "learned_low": min(estimate.low for estimate in excess.values()),
                "learned_high": min(estimate.high for estimate in excess.values()),
            }
    return {name: value for name, value in row.items() if name in _COLUMNS}, best, inference.matches(kind, pair)


def _row_of_other(inference: Inference, result: MeasureResult, pair: Pair) -> tuple[dict[str, float], str, _Matches]:
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
    if inference.is_controlled(pair):
        controls = inference.controls(pair)
        levels = {name: result.mean_index(result.values, pairs) for name, pairs in controls.items()}
        if np.isfinite(list(levels.values())).all():
            control = max(levels, key=lambda name: round(float(levels[name]), 9))
            row |= {"control": float(levels[control]), "learned": theta - float(levels[control])}
        if control and halves is not None:
            intervals = [
                half_samples(theta - levels[name], halves - result.mean_index(result.halves, pairs), inference.design.n)
                for name, pairs in controls.items()
            ]
            row["learned_low"] = min(float(interval.low) for interval in intervals)
            row["learned_high"] = min(float(interval.high) for interval in intervals)
    in_study = set(inference.evidence.kernels.names)  # matches count the layers of the study, without constant ones
    i, j = ([k for k, name in enumerate(side.layers) if name in in_study] for side in (pair.a, pair.b))
    matched = values[np.ix_(i, j)]
    return row, control, (best_match(matched).columns, best_match(matched.T).columns)


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


def _by_name(pair: Pair) -> Pair:
    """Return a pair with its families in alphabetical order: a control does not depend on the order of the stores."""
    return Pair(*sorted((pair.a, pair.b), key=lambda member: (member.family, member.name)))


def kinds_of_pairs(inference: Inference) -> xr.Dataset:
    """Compute means of debiased CKA over all pairs with the same relation, with joint intervals.

    Control and learned effect are means over the pairs that have all of their controls, ``pairs_counted``.
    """
    names = ("index", "trained", "control", "learned")
    several = len(inference.design.modalities) > 1
    kinds = [relation for relation in KINDS_OF_PAIRS if several or relation != OTHER_MODALITY]
    shape = len(inference.kernels), len(kinds)
    table = {f"{name}_mean{end}": np.full(shape, np.nan) for name in names for end in ("", "_low", "_high")}
    counted = np.zeros(len(kinds), np.int64)
    for r, relation in enumerate(kinds):
        pairs = [pair for pair in inference.pairs if pair.relation == relation]
        controlled = [_by_name(pair) for pair in pairs if inference.is_controlled(pair)]
        counted[r] = len(controlled)
        for m, kind in enumerate(inference.kernels.values()):
            estimates = {"index": inference.estimate(inference.mean_of(kind, pairs), kind)} if pairs else {}
            if controlled:
                levels, excess = inference.effects(kind, controlled)
                best = max(levels, key=lambda name: round(levels[name], 9))
                estimates["trained"] = inference.estimate(inference.mean_of(kind, controlled), kind)
                estimates["control"] = inference.estimate(inference.mean_of_controls(kind, controlled, best), kind)
                ends = (
                    float(np.min([getattr(one, end) for one in excess.values()]))
                    for end in ("value", "se", "low", "high")
                )
                estimates["learned"] = Estimate(*ends)
            for name, estimate in estimates.items():
                for end, value in (("", estimate.value), ("_low", estimate.low), ("_high", estimate.high)):
                    table[f"{name}_mean{end}"][m, r] = value
    return xr.Dataset(
        {name: (("kernel", "kind_of_pair"), values) for name, values in table.items()}
        | {"pairs_counted": ("kind_of_pair", counted)},
        coords={"kernel": list(inference.kernels), "kind_of_pair": kinds},
    )
