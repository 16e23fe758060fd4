"""From what was measured to what was found: one labelled data set. docs/study-format.md says what every variable is."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from typing import Any

import numpy as np
import xarray as xr
from jaxtyping import Float64

from repsim._version import __version__
from repsim.results.files import STUDY, STUDY_VERSION
from repsim.results.variables import RELATIONS, describe
from repsim.study import words
from repsim.study.chance import benjamini_hochberg, calibrated, holm, null_sd, p_value, pearson3, skewness, threshold
from repsim.study.design import Design, Pair, half_trained
from repsim.study.evidence import Evidence
from repsim.study.indices import RAW, SHARES, TWINS, Indices
from repsim.study.layer_matching import Match, best_match, mbm, nearest, warp
from repsim.study.model_map import clusters, common_share, embed, stability
from repsim.study.other_measures import Measured, most
from repsim.study.partial_cka import ceiling
from repsim.study.permutation_nulls import Null, of_values
from repsim.study.uncertainty import half_samples, influence, interval_of, jackknife, multiplier_bootstrap

TITLES = {RAW: "cka", "input": "cka given input", "labels": "cka given labels", TWINS: "cka given untrained"}
"""Of debiased CKA, and partial CKA."""
_STABILITY = 200
"""Bootstrap draws of which clusters are found anew."""


@dataclass(frozen=True, eq=False)
class _Inference:
    """Evidence, and what follows from it."""

    evidence: Evidence
    draws: int
    seed: int

    @property
    def design(self) -> Design:
        return self.evidence.design

    @property
    def indices(self) -> Indices:
        return self.evidence.indices

    @cached_property
    def theta(self) -> Float64[np.ndarray, " T"]:
        return self.indices.evaluate(self.indices.R)

    @cached_property
    def influences(self) -> Float64[np.ndarray, "n T"]:
        return influence(self.theta, self.evidence.left_out)

    @cached_property
    def drawn(self) -> Float64[np.ndarray, "draws T"]:
        """All indices under the same random weights of samples: what they have in common, differences do not have."""
        return multiplier_bootstrap(self.theta, self.influences, self.draws, self.seed)

    @cached_property
    def given(self) -> dict[str, str]:
        """Title -> what is given, of debiased CKA."""
        return {TITLES[kind]: kind for kind in self.indices.given}

    @cached_property
    def kernels(self) -> dict[str, str]:
        """Those of which the same is given for all layers: matrices of them are positive semidefinite."""
        return {TITLES[kind]: kind for kind in self.indices.kernels}

    @cached_property
    def titles(self) -> list[str]:
        """Of all measures."""
        return [*self.given, *(each.metric.spec for each in self.evidence.measured)]

    @cached_property
    def pairs(self) -> list[Pair]:
        """Of trained models that have an index."""
        there = {pair.name for pair in self.indices.pairs}
        return [pair for pair in self.design.pairs if pair.name in there]

    @cached_property
    def layers(self) -> list[int]:
        """Where in R the layers of trained models are."""
        return [int(k) for member in self.design.trained for k in self.indices.of[member.name]]

    def column(self, kind: str, pair: Pair) -> int:
        """Of a pair's index."""
        return self.indices.at["mbm", kind, pair.name]

    def controls(self, pair: Pair, *, half: bool) -> Iterator[tuple[str, list[Pair]]]:
        """What a pair's similarity is held against: pairs of which one network, or both, have learnt nothing."""
        there = {each.name for each in self.indices.pairs}
        some = {"both untrained": self.design.controls_of(pair)}
        if half:
            some["one untrained"] = half_trained(self.design, pair)
        for name, pairs in some.items():
            if known := [each for each in pairs if each.name in there]:
                yield name, known


def findings(evidence: Evidence, *, draws: int, seed: int, command: str) -> xr.Dataset:
    """Everything that a study says, with intervals, in one data set."""
    known = _Inference(evidence, draws, seed)
    design = evidence.design
    result = xr.Dataset(
        coords={
            "measure": known.titles,
            "model": [member.name for member in design.trained],
            "family": ("model", [member.family for member in design.trained]),
            "architecture": ("model", [member.architecture for member in design.trained]),
            "sample": list(design.ids.ids),
            "n_samples": design.n,
            "data": design.trained[0].store.data,
            "readout": design.trained[0].readout,
        },
        attrs={
            "format": STUDY,
            "format_version": STUDY_VERSION,
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "repsim_version": __version__,
            "command": command,
            "permutations": evidence.permutations,
            "draws": draws,
            "seed": seed,
            "untrained": json.dumps([member.name for member in design.untrained]),
            "samples_fingerprint": design.ids.fingerprint,
            "stores": json.dumps(
                [
                    {"model": m.name, "checksum": m.store.checksum, "provenance": m.store.provenance}
                    for m in design.members
                ]
            ),
        },
    )
    for part in (_of_layers, _of_pairs, _of_relations, _of_shares, _of_ceilings, _of_the_map, _of_samples):
        result = result.merge(part(known))
    warnings = list(words.warnings(evidence))
    result.attrs["warnings"] = json.dumps(warnings)
    result.attrs["summary"] = json.dumps(words.summary(result))
    describe(result)
    return result


# Layer by layer


def _of_layers(known: _Inference) -> xr.Dataset:
    evidence, where = known.evidence, known.layers
    names = [evidence.kernels.names[k] for k in where]
    n, count = evidence.design.n, len(where)
    shape = len(known.titles), count, count
    table = {name: np.full(shape, np.nan) for name in ("value", "low", "high", "chance", "chance_sd", "p")}
    at = {k: i for i, k in enumerate(known.indices.layers.tolist())}
    own = np.array([at[k] for k in where], int)
    for m, kind in enumerate(known.given.values()):
        values = known.indices.similarities(known.indices.R, kind)[np.ix_(where, where)]
        table["value"][m] = values
        margin = words.quantile(n) * evidence.errors[kind][np.ix_(own, own)]
        table["low"][m], table["high"][m] = values - margin, values + margin
        table["chance"][m], table["chance_sd"][m] = 0, null_sd(n)
    skewed = np.array([[skewness(a, b) for b in evidence.moments] for a in evidence.moments])
    table["p"][0] = pearson3(table["value"][0], n, skewed)
    place = {name: k for k, name in enumerate(names)}
    for m, each in enumerate(evidence.measured, len(known.given)):
        for pair in known.design.pairs:
            (a, i), (b, j) = (
                np.array([(k, place[name]) for k, name in enumerate(side.layers) if name in place], int).T
                for side in (pair.a, pair.b)
            )
            blocks = {"value": each.values, "chance": each.chance, "chance_sd": each.chance_sd}
            for what, found in blocks.items():
                table[what][m][np.ix_(i, j)] = found[pair.name][np.ix_(a, b)]
                if each.metric.symmetric:
                    table[what][m][np.ix_(j, i)] = found[pair.name][np.ix_(a, b)].T
    with np.errstate(invalid="ignore", divide="ignore"):
        table["z"] = (table["value"] - table["chance"]) / table["chance_sd"]
    dims = ("measure", "layer_a", "layer_b")
    models = [member.name for member in known.design.trained for _ in known.indices.of[member.name]]
    sides = {f"layer_{side}": names for side in "ab"} | {f"model_{side}": (f"layer_{side}", models) for side in "ab"}
    return xr.Dataset({name: (dims, values) for name, values in table.items()}, coords=sides)


# Pair by pair

_COLUMNS = (
    "index", "index_low", "index_high", "split_half", "largest", "p_index", "p_largest", "p_index_holm", "p_index_bh",
    "threshold_index", "threshold_largest", "calibrated_index", "calibrated_largest", "permuted",
    "p_index_within_classes", "p_largest_within_classes", "calibrated_index_within_classes",
    "control", "learned", "learned_low", "learned_high", "warp",
)  # fmt: skip


def _of_pairs(known: _Inference) -> xr.Dataset:
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


def _row_of_cka(known: _Inference, kind: str, pair: Pair) -> tuple[dict[str, float], str, tuple[Match, Match]]:
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


def _row_of_other(known: _Inference, each: Measured, pair: Pair) -> tuple[dict[str, float], str, tuple[Match, Match]]:
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


# Kind of pair by kind of pair


def _of_relations(known: _Inference) -> xr.Dataset:
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


# The four shares


def _of_shares(known: _Inference) -> xr.Dataset:
    states = [state for state, _ in known.indices.states()]
    depths = known.indices.depths
    table = {f"share{end}": np.full((len(states), len(SHARES), depths + 1), np.nan) for end in ("", "_low", "_high")}
    for s, state in enumerate(states):
        for h, share in enumerate(SHARES):
            where = [known.indices.at["share", state, str(d), share] for d in range(depths)]
            for d, columns in enumerate([*([k] for k in where), where]):
                value, without = known.theta[columns].mean(), known.evidence.left_out[:, columns].mean(1)
                interval = jackknife(value, without)
                for end, number in (("", value), ("_low", interval.low), ("_high", interval.high)):
                    table[f"share{end}"][s, h, d] = number
    dims = ("state", "share_of", "depth")
    found = xr.Dataset(coords={"state": states, "share_of": list(SHARES), "depth": np.linspace(0, 1, depths)})
    for name, values in table.items():
        found[name] = (dims, values[..., :-1])
        found[name.replace("share", "mean_share")] = (dims[:2], values[..., -1])
    return found


# Ceilings


def _of_ceilings(known: _Inference) -> xr.Dataset:
    families = [member.family for member in known.design.trained]
    names = list(dict.fromkeys(families))
    both = [(i, j) for i in range(len(names)) for j in range(i + 1, len(names))]
    shape = len(known.kernels), len(both)
    table = {name: np.full(shape, np.nan) for name in ("across", "ceiling", "ratio", "ratio_low", "ratio_high")}
    within = {
        name: np.full((len(known.kernels), len(names)), np.nan) for name in ("within", "within_low", "within_high")
    }
    for m, kind in enumerate(known.kernels.values()):
        C, without = _models(known, kind, known.theta), _models(known, kind, known.evidence.left_out)
        found, replicates = ceiling(C, families), ceiling(without, families)
        for f in range(len(names)):
            interval = jackknife(found.within[f], replicates.within[:, f])
            within["within"][m, f] = found.within[f]
            within["within_low"][m, f], within["within_high"][m, f] = interval.low, interval.high
        for k, (i, j) in enumerate(both):
            mask = np.array([[{a, b} == {names[i], names[j]} for b in families] for a in families])
            table["across"][m, k] = C[mask].mean()
            if within["within_low"][m, i] > 0 and within["within_low"][m, j] > 0:
                table["ceiling"][m, k] = np.sqrt(found.within[i] * found.within[j])
                interval = jackknife(found.pairs[i, j], replicates.pairs[:, i, j])
                table["ratio"][m, k] = found.pairs[i, j]
                table["ratio_low"][m, k], table["ratio_high"][m, k] = interval.low, interval.high
    return xr.Dataset(
        {name: (("kernel", "families"), values) for name, values in table.items()}
        | {name: (("kernel", "one_family"), values) for name, values in within.items()},
        coords={
            "families": [f"{names[i]} x {names[j]}" for i, j in both],
            "one_family": names,
            "ceiling_of": ("one_family", [_made_of(known.design, name) for name in names]),
        },
    )


def _made_of(design: Design, family: str) -> str:
    """What the members of a family differ in: what its ceiling is a ceiling of."""
    some = [member for member in design.trained if member.family == family]
    if len(some) < 2:
        return "one model, no ceiling"
    if len({member.architecture for member in some}) > 1:
        return "other architectures of the family"
    return "other seeds" if all(member.seed is not None for member in some) else "other recipes of one architecture"


def _models(known: _Inference, kind: str, rows: Float64[np.ndarray, "*batch T"]) -> Float64[np.ndarray, "*batch M M"]:
    count = len(known.design.trained)
    found = np.broadcast_to(np.eye(count), (*rows.shape[:-1], count, count)).copy()
    for i in range(count):
        for j in range(i + 1, count):
            found[..., i, j] = found[..., j, i] = rows[..., known.indices.at["models", kind, str(i), str(j)]]
    return found


# The map


def _of_the_map(known: _Inference) -> xr.Dataset:
    count = len(known.design.trained)
    if count < 2:
        return xr.Dataset()
    maps: list[tuple[str, Any, Any]] = [
        (title, _models(known, kind, known.theta), kind) for title, kind in known.kernels.items()
    ]
    maps += [
        (each.metric.spec, _from_pairs(known, each), None)
        for each in known.evidence.measured
        if each.metric.name == "mutual_knn"
    ]
    maps = [each for each in maps if np.isfinite(each[1]).all()]
    shape = len(maps), count
    coordinates, eigenvalues = np.full((*shape, count), np.nan), np.full(shape, np.nan)
    labels, together = np.full(shape, -1), np.full((*shape, count), np.nan)
    single = {name: np.full(len(maps), np.nan) for name in ("common", "common_low", "common_high", "silhouette", "ari")}
    similarity = np.stack([R for _, R, _ in maps])
    for k, (_, R, kind) in enumerate(maps):
        placed, grouped = embed(R), clusters(R)
        coordinates[k, :, : placed.coordinates.shape[1]] = placed.coordinates
        eigenvalues[k, : len(placed.eigenvalues)] = placed.eigenvalues
        labels[k], single["silhouette"][k] = grouped.labels, grouped.silhouette
        single["common"][k] = common_share(R)
        if kind is not None:
            interval = jackknife(common_share(R), common_share(_models(known, kind, known.evidence.left_out)))
            single["common_low"][k], single["common_high"][k] = interval.low, interval.high
            firm = stability(_models(known, kind, known.drawn[:_STABILITY]), grouped.labels)
            single["ari"][k], together[k] = firm.ari, firm.together
    layers = _place_of_layers(known)
    square = ("map", "model", "other_model")
    return xr.Dataset(
        {
            "model_similarity": (square, similarity),
            "map_coordinates": (("map", "model", "axis"), coordinates),
            "map_eigenvalues": (("map", "axis"), eigenvalues),
            "cluster": (("map", "model"), labels),
            "together": (square, together),
            "layer_coordinates": (("layer_a", "layer_axis"), layers),
            "common_share": ("map", single["common"]),
            "common_share_low": ("map", single["common_low"]),
            "common_share_high": ("map", single["common_high"]),
            "silhouette": ("map", single["silhouette"]),
            "cluster_stability": ("map", single["ari"]),
        },
        coords={"map": [title for title, _, _ in maps], "other_model": [m.name for m in known.design.trained]},
    )


def _from_pairs(known: _Inference, each: Measured) -> Float64[np.ndarray, "M M"]:
    """Similarity of models at matched depths, of a measure that was computed pair by pair."""
    models = [member.name for member in known.design.trained]
    found = np.eye(len(models))
    for pair in known.design.pairs:
        values = each.values[pair.name]
        rows, columns = (nearest(size, known.indices.depths) for size in values.shape)
        i, j = models.index(pair.a.name), models.index(pair.b.name)
        found[i, j] = found[j, i] = values[rows, columns].mean()
    return found


def _place_of_layers(known: _Inference) -> Float64[np.ndarray, "layers 3"]:
    R = known.indices.R[np.ix_(known.layers, known.layers)]
    placed = embed(R, 3).coordinates
    return np.pad(placed, ((0, 0), (0, 3 - placed.shape[1])))


# Stimuli


def _of_samples(known: _Inference) -> xr.Dataset:
    """How much each sample adds to the agreement of families, or of models where there is one family."""
    wanted = [pair for pair in known.pairs if pair.relation == "other family"] or known.pairs
    if not wanted:
        return xr.Dataset()
    rows = [
        known.influences[:, [known.column(kind, pair) for pair in wanted]].mean(1) for kind in known.kernels.values()
    ]
    return xr.Dataset({"agreement": (("kernel", "sample"), np.stack(rows))}, coords={"kernel": list(known.kernels)})
