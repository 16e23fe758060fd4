"""Build the labelled data set of a study from its evidence. docs/study-format.md describes every variable."""

import json
from datetime import UTC, datetime

import numpy as np
import xarray as xr

from repsim._version import __version__
from repsim.results.variables import describe
from repsim.results.versions import STUDY, STUDY_VERSION
from repsim.study import cautions, reading, words
from repsim.study.chance import null_sd, pearson3, skewness
from repsim.study.dataset_map import map_of_models, values_between_models
from repsim.study.dataset_pairs import kinds_of_pairs, pairs_of_models
from repsim.study.design import Design
from repsim.study.evidence import Evidence
from repsim.study.indices import SHARES
from repsim.study.inference import Inference
from repsim.study.partial_cka import ceiling
from repsim.study.uncertainty import jackknife


def study_dataset(evidence: Evidence, *, draws: int, seed: int, command: str) -> xr.Dataset:
    """Build the data set of a study: values, intervals, tests, shares, maps, sentences and provenance.

    Parameters
    ----------
    evidence
        Results of all passes over the data.
    draws
        Number of draws of the multiplier bootstrap.
    seed
        Seed of these draws.
    command
        Command that made the study; empty if it was made in Python.
    """
    inference = Inference(evidence, draws, seed)
    design = evidence.design
    result = xr.Dataset(
        coords={
            "measure": inference.titles,
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
    parts = (
        _layer_values, pairs_of_models, kinds_of_pairs, _share_values, _ceiling_values, map_of_models, _agreement,
    )  # fmt: skip
    for part in parts:
        result = result.merge(part(inference))
    warnings = list(cautions.warnings(evidence))
    result.attrs["warnings"] = json.dumps(warnings)
    result.attrs["summary"] = json.dumps(words.summary(result))
    describe(result)
    return result


def _layer_values(inference: Inference) -> xr.Dataset:
    """Compute similarities of all pairs of layers, with intervals, chance levels and p-values."""
    evidence, layers = inference.evidence, inference.layers
    names = [evidence.kernels.names[k] for k in layers]
    n, count = evidence.design.n, len(layers)
    shape = len(inference.titles), count, count
    table = {name: np.full(shape, np.nan) for name in ("value", "low", "high", "chance", "chance_sd", "p")}
    row_of = {k: i for i, k in enumerate(inference.indices.layers.tolist())}
    rows = np.array([row_of[k] for k in layers], int)
    for m, kind in enumerate(inference.conditions.values()):
        values = inference.indices.similarities(inference.indices.R, kind)[np.ix_(layers, layers)]
        table["value"][m] = values
        margin = reading.quantile(n) * evidence.errors[kind][np.ix_(rows, rows)]
        table["low"][m], table["high"][m] = values - margin, values + margin
        table["chance"][m], table["chance_sd"][m] = 0, null_sd(n)
    skewed = np.array([[skewness(a, b) for b in evidence.moments] for a in evidence.moments])
    table["p"][0] = pearson3(table["value"][0], n, skewed)
    position = {name: k for k, name in enumerate(names)}
    for m, result in enumerate(evidence.measures, len(inference.conditions)):
        for pair in inference.design.pairs:
            (a, i), (b, j) = (
                np.array([(k, position[name]) for k, name in enumerate(side.layers) if name in position], int).T
                for side in (pair.a, pair.b)
            )
            by_variable = {"value": result.values, "chance": result.chance, "chance_sd": result.chance_sd}
            for variable, by_pair in by_variable.items():
                block = by_pair[pair.name][np.ix_(a, b)]
                table[variable][m][np.ix_(i, j)] = block
                if result.metric.symmetric:
                    table[variable][m][np.ix_(j, i)] = block.T
    with np.errstate(invalid="ignore", divide="ignore"):
        table["z"] = (table["value"] - table["chance"]) / table["chance_sd"]
    dims = ("measure", "layer_a", "layer_b")
    models = [member.name for member in inference.design.trained for _ in inference.indices.positions[member.name]]
    sides = {f"layer_{side}": names for side in "ab"} | {f"model_{side}": (f"layer_{side}", models) for side in "ab"}
    return xr.Dataset({name: (dims, values) for name, values in table.items()}, coords=sides)


def _share_values(inference: Inference) -> xr.Dataset:
    """Compute the energy shares at every depth, and their means over depth, with intervals."""
    states = [state for state, _ in inference.indices.states()]
    depths = inference.indices.depths
    table = {f"share{end}": np.full((len(states), len(SHARES), depths + 1), np.nan) for end in ("", "_low", "_high")}
    for s, state in enumerate(states):
        for h, share in enumerate(SHARES):
            by_depth = [inference.indices.column_of["share", state, str(d), share] for d in range(depths)]
            for d, columns in enumerate([*([k] for k in by_depth), by_depth]):
                value, without = inference.theta[columns].mean(), inference.evidence.left_out[:, columns].mean(1)
                interval = jackknife(value, without)
                for end, number in (("", value), ("_low", interval.low), ("_high", interval.high)):
                    table[f"share{end}"][s, h, d] = number
    dims = ("state", "share_of", "depth")
    result = xr.Dataset(coords={"state": states, "share_of": list(SHARES), "depth": np.linspace(0, 1, depths)})
    for name, values in table.items():
        result[name] = (dims, values[..., :-1])
        result[name.replace("share", "mean_share")] = (dims[:2], values[..., -1])
    return result


def _ceiling_values(inference: Inference) -> xr.Dataset:
    """Compute similarities within and across families, and their ratio to the ceiling."""
    families = [member.family for member in inference.design.trained]
    names = list(dict.fromkeys(families))
    pairs = [(i, j) for i in range(len(names)) for j in range(i + 1, len(names))]
    shape = len(inference.kernels), len(pairs)
    table = {name: np.full(shape, np.nan) for name in ("across", "ceiling", "ratio", "ratio_low", "ratio_high")}
    within = {
        name: np.full((len(inference.kernels), len(names)), np.nan) for name in ("within", "within_low", "within_high")
    }
    for m, kind in enumerate(inference.kernels.values()):
        C, without = (
            values_between_models(inference, kind, inference.theta),
            values_between_models(inference, kind, inference.evidence.left_out),
        )
        estimate, replicates = ceiling(C, families), ceiling(without, families)
        for f in range(len(names)):
            interval = jackknife(estimate.within[f], replicates.within[:, f])
            within["within"][m, f] = estimate.within[f]
            within["within_low"][m, f], within["within_high"][m, f] = interval.low, interval.high
        for k, (i, j) in enumerate(pairs):
            mask = np.array([[{a, b} == {names[i], names[j]} for b in families] for a in families])
            table["across"][m, k] = C[mask].mean()
            if within["within_low"][m, i] > 0 and within["within_low"][m, j] > 0:
                table["ceiling"][m, k] = np.sqrt(estimate.within[i] * estimate.within[j])
                interval = jackknife(estimate.pairs[i, j], replicates.pairs[:, i, j])
                table["ratio"][m, k] = estimate.pairs[i, j]
                table["ratio_low"][m, k], table["ratio_high"][m, k] = interval.low, interval.high
    return xr.Dataset(
        {name: (("kernel", "families"), values) for name, values in table.items()}
        | {name: (("kernel", "one_family"), values) for name, values in within.items()},
        coords={
            "families": [f"{names[i]} x {names[j]}" for i, j in pairs],
            "one_family": names,
            "ceiling_of": ("one_family", [_ceiling_origin(inference.design, name) for name in names]),
        },
    )


def _ceiling_origin(design: Design, family: str) -> str:
    """Return what the members of a family differ in, which is what sets its ceiling."""
    members = [member for member in design.trained if member.family == family]
    if len(members) < 2:
        return "one model, no ceiling"
    if len({member.architecture for member in members}) > 1:
        return "other architectures of the family"
    return "other seeds" if all(member.seed is not None for member in members) else "other recipes of one architecture"


def _agreement(inference: Inference) -> xr.Dataset:
    """Compute the influence of each sample on the mean index across families, or across models of a single family."""
    pairs = [pair for pair in inference.pairs if pair.relation == "other family"] or inference.pairs
    if not pairs:
        return xr.Dataset()
    rows = [
        inference.influences[:, [inference.column(kind, pair) for pair in pairs]].mean(1)
        for kind in inference.kernels.values()
    ]
    return xr.Dataset({"agreement": (("kernel", "sample"), np.stack(rows))}, coords={"kernel": list(inference.kernels)})
