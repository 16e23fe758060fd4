"""From what was measured to what was found: one labelled data set. docs/study-format.md says what every variable is."""

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


def findings(evidence: Evidence, *, draws: int, seed: int, command: str) -> xr.Dataset:
    """Everything that a study says, with intervals, in one data set."""
    known = Inference(evidence, draws, seed)
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
    for part in (_of_layers, pairs_of_models, kinds_of_pairs, _of_shares, _of_ceilings, map_of_models, _of_samples):
        result = result.merge(part(known))
    warnings = list(cautions.warnings(evidence))
    result.attrs["warnings"] = json.dumps(warnings)
    result.attrs["summary"] = json.dumps(words.summary(result))
    describe(result)
    return result


def _of_layers(known: Inference) -> xr.Dataset:
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
        margin = reading.quantile(n) * evidence.errors[kind][np.ix_(own, own)]
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


def _of_shares(known: Inference) -> xr.Dataset:
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


def _of_ceilings(known: Inference) -> xr.Dataset:
    families = [member.family for member in known.design.trained]
    names = list(dict.fromkeys(families))
    both = [(i, j) for i in range(len(names)) for j in range(i + 1, len(names))]
    shape = len(known.kernels), len(both)
    table = {name: np.full(shape, np.nan) for name in ("across", "ceiling", "ratio", "ratio_low", "ratio_high")}
    within = {
        name: np.full((len(known.kernels), len(names)), np.nan) for name in ("within", "within_low", "within_high")
    }
    for m, kind in enumerate(known.kernels.values()):
        C, without = (
            values_between_models(known, kind, known.theta),
            values_between_models(known, kind, known.evidence.left_out),
        )
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


def _of_samples(known: Inference) -> xr.Dataset:
    """How much each sample adds to the agreement of families, or of models where there is one family."""
    wanted = [pair for pair in known.pairs if pair.relation == "other family"] or known.pairs
    if not wanted:
        return xr.Dataset()
    rows = [
        known.influences[:, [known.column(kind, pair) for pair in wanted]].mean(1) for kind in known.kernels.values()
    ]
    return xr.Dataset({"agreement": (("kernel", "sample"), np.stack(rows))}, coords={"kernel": list(known.kernels)})
