"""Build the labelled data set of a study from its evidence. docs/study-format.md describes every variable."""

import json
from datetime import UTC, datetime
from itertools import combinations

import numpy as np
import xarray as xr

from repsim._version import __version__
from repsim.engine.uncertainty import jackknife, quantile
from repsim.results.coordinates import axis_coordinates
from repsim.results.variables import describe
from repsim.results.versions import STUDY, STUDY_VERSION
from repsim.study import cautions, words
from repsim.study.chance import null_sd, pearson3, skewnesses
from repsim.study.dataset_families import ceilings, pairs_of_families
from repsim.study.dataset_map import map_of_models
from repsim.study.dataset_pairs import kinds_of_pairs, pairs_of_models
from repsim.study.design import Pair
from repsim.study.evidence import Evidence
from repsim.study.indices import SHARES
from repsim.study.inference import Inference


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
            "modality": ("model", [member.modality for member in design.trained]),
            **{
                name: ("model", values)
                for name, values in axis_coordinates([member.store.axes for member in design.trained]).items()
            },
            "sample": list(design.ids.ids),
            "n_samples": design.n,
            "data": design.data,
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
            "input_controls": json.dumps(list(evidence.controls)),
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
        _layer_values, pairs_of_models, kinds_of_pairs, pairs_of_families, _networks, _share_values, ceilings,
        map_of_models, _agreement,
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
        values = inference.indices.similarities(evidence.estimates.matrices, kind)[np.ix_(layers, layers)]
        table["value"][m] = values
        margin = quantile(inference.units) * evidence.estimates.errors[kind][np.ix_(rows, rows)]
        table["low"][m], table["high"][m] = values - margin, values + margin
        table["chance"][m], table["chance_sd"][m] = 0, null_sd(n)
    if evidence.moments:
        table["p"][0] = pearson3(table["value"][0], n, skewnesses(evidence.moments))
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
                value, without = (
                    inference.theta[columns].mean(),
                    inference.left_out(columns).mean(1),
                )
                interval = jackknife(value, without)
                for end, number in (("", value), ("_low", interval.low), ("_high", interval.high)):
                    table[f"share{end}"][s, h, d] = number
    dims = ("state", "share_of", "depth")
    result = xr.Dataset(coords={"state": states, "share_of": list(SHARES), "depth": np.linspace(0, 1, depths)})
    for name, values in table.items():
        result[name] = (dims, values[..., :-1])
        result[name.replace("share", "mean_share")] = (dims[:2], values[..., -1])
    return result


def _networks(inference: Inference) -> xr.Dataset:
    """Describe all networks, trained and untrained: similarities, energy that controls leave, effective dimension."""
    members, kernels = inference.indices.members, inference.kernels
    count = len(members)
    similarity = np.full((len(kernels), count, count), np.nan)
    left = np.ones((len(kernels), count))
    for m, kind in enumerate(kernels.values()):
        for (i, a), (j, b) in combinations(enumerate(members), 2):
            similarity[m, i, j] = similarity[m, j, i] = inference.theta[inference.column(kind, Pair(a, b))]
        if kind in inference.indices.energies:
            left[m] = [inference.theta[inference.indices.column_of["left", kind, member.name]] for member in members]
    dimensions = [
        np.mean([inference.evidence.dimensions.get(layer, np.nan) for layer in member.layers]) for member in members
    ]
    names = [member.name for member in members]
    return xr.Dataset(
        {
            "network_similarity": (("kernel", "network", "other_network"), similarity),
            "energy_left": (("kernel", "network"), left),
            "effective_dimension": ("network", np.array(dimensions, np.float64)),
        },
        coords={
            "kernel": list(kernels),
            "network": names,
            "other_network": names,
            "network_family": ("network", [member.family for member in members]),
            "network_architecture": ("network", [member.architecture for member in members]),
            "network_state": ("network", ["trained" if member.trained else "untrained" for member in members]),
        },
    )


def _agreement(inference: Inference) -> xr.Dataset:
    """Compute the influence of each sample on the mean index across families, or across models of a single family."""
    pairs = [pair for pair in inference.pairs if pair.across_families] or inference.pairs
    if not pairs:
        return xr.Dataset()
    rows, signals = [], []
    for kind in inference.kernels.values():
        mean = inference.mean_of(kind, pairs)
        of_units = inference.influence_on(mean)
        unit_of = inference.evidence.kernels.unit_of
        rows.append(of_units[unit_of] / np.bincount(unit_of)[unit_of])
        noise = 2 * inference.second_order_variance(mean, kind)
        signals.append(float(of_units.var()) / inference.units / noise if noise > 0 else np.nan)
    return xr.Dataset(
        {"agreement": (("kernel", "sample"), np.stack(rows)), "agreement_signal": ("kernel", np.array(signals))},
        coords={"kernel": list(inference.kernels)},
    )
