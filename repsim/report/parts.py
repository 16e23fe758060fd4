"""Make one part of a page: a study, or the measures of a comparison, under one readout."""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from repsim.presentation import thinning
from repsim.presentation.stages import boundaries, runs
from repsim.report import captions, overview, packing
from repsim.report.packing import LAYERS
from repsim.report.stimuli import SHOWN
from repsim.report.views import Palettes, about_result, about_study
from repsim.results.chance import chance_in_words, chance_of
from repsim.results.intervals import ends_of, interval_in_words
from repsim.results.modalities import samples_of
from repsim.results.variables import RELATIONS
from repsim.results.versions import STUDY
from repsim.study import reading
from repsim.study.layer_matching import relative

_REQUIRED = ("measure", "model", "layer_a", "layer_b", "pair", "pair_a", "pair_b", "relation")
_OF_SAMPLES = ("modality", "data")
"""Entries of the provenance that the table of networks shows only if they differ."""
_COMPARISON_SUMMARY = (
    "This comparison gives only the similarity of pairs of layers, beside its chance level where that is known in "
    "closed form. A study also gives intervals, controls and the match of whole networks."
)


def is_study(result: xr.Dataset) -> bool:
    """Return whether a data set is a study, and not a comparison."""
    return result.attrs.get("format") == STUDY


def of_comparison(result: xr.Dataset, names: Sequence[str], readout: str) -> dict[str, Any]:
    """Make the part of the page for the variables ``names`` of a comparison, which have one readout."""
    values = [result[name].transpose(*LAYERS) for name in names]
    stores = [store for side in "ab" for store in _json_list(result, f"stores_{side}", dict)]
    notes = [
        f"{variable.attrs.get('spec', name)}: {note}"
        for name, variable in zip(names, values, strict=True)
        for kind in ("undefined", "cautions", "remarks")
        for note in _json_list(variable, kind)
    ]
    notes += [
        f"{variable.attrs.get('spec', name)}: {text}"
        for name, variable in zip(names, values, strict=True)
        if chance_of(variable) is None and (text := chance_in_words(variable))
    ]
    own = {str(name) for side in "ab" for name in np.atleast_1d(result.coords.get(f"readout_{side}", ""))} - {""}
    palettes = Palettes()
    measures = [about_result(variable, palettes) for variable in values]
    sides = {side: _side(result, side) for side in "ab"}
    along = overview.networks_of(result)
    kind = "f8" if along is None else "u2"
    matrices = {
        "value": [packing.matrix(one.values, ~np.isnan(one.values), kind, along) for one in values],
        "chance": [packing.matrix(chances(one), ~np.isnan(one.values), "f4", along) for one in values],
    }
    if any(interval_in_words(one) for one in values):
        ends = [ends_of(one) for one in values]
        for k, end in enumerate(("low", "high")):
            matrices[end] = [
                packing.matrix(both[k], ~np.isnan(one.values), "f4" if along is None else "u2", along)
                for both, one in zip(ends, values, strict=True)
            ]
    shown = overview.of_result(values, matrices["value"]) if overview.shows_networks(result) else {}
    return _common(result, readout or ", ".join(sorted(own)), stores, measures) | {
        "summary": [_COMPARISON_SUMMARY],
        "warnings": [*dict.fromkeys(notes), *_json_list(result, "left_out")],
        "sides": sides,
        "palettes": palettes.stops,
        "interval": next(filter(None, map(interval_in_words, values)), ""),
        "coords": _pairs_of(sides),
        "variables": {},
        "matrices": matrices,
        "in_blocks": along is not None,
        **shown,
    }


def chances(variable: xr.DataArray) -> NDArray[np.float64]:
    """Return the chance levels of a variable of a comparison, NaN if they are not known."""
    levels = chance_of(variable)
    return np.full(variable.shape, np.nan) if levels is None else levels


def of_study(study: xr.Dataset) -> dict[str, Any]:
    """Make the part of the page for a study."""
    small = {str(name): one for name, one in study.data_vars.items() if not set(LAYERS) <= set(one.dims)}
    if missing := [name for name in _REQUIRED if name not in study.coords]:  # even a study of one model has these
        raise KeyError(missing[0])
    untrained = _json_list(study, "untrained")
    relations = [relation for relation in RELATIONS if relation in study["relation"].values]
    palettes = Palettes()
    measures = [about_study(study, spec, palettes) for spec in study["measure"].values.tolist()]
    along = overview.networks_of(study)
    matrices = packing.matrices(study, along)
    return _common(study, str(study["readout"].item()), _json_list(study, "stores", dict), measures) | {
        "summary": _json_list(study, "summary"),
        "warnings": _json_list(study, "warnings"),
        "tiles": list(captions.tiles(study)),
        "claims": captions.claims(study),
        "effects": captions.effects(study),
        "energies": captions.energies(study),
        "controls": packing.variable(reading.controls_of_pairs(study), short=along is not None),
        "sides": {side: _side(study, side) for side in "ab"},
        "palettes": palettes.stops,
        "uncontrolled": "none of this pair under this measure" if untrained else "no untrained networks",
        "relations": relations,
        "opens_on": reading.strictest(study),
        "drawn": [_drawn(study, spec, relations) for spec in study["measure"].values.tolist()],
        "extremes": thinning.ENDS if study.sizes["pair"] > thinning.MOST_PAIRS else 0,
        "drawn_note": captions.drawn_note(study.sizes["pair"]),
        "panels_note": captions.PANELS_NOTE,
        "shares": _shares(study),
        "shares_note": captions.shares_note(study["state"].values.tolist()),
        "ceilings": {kernel: captions.ceilings(study, kernel) for kernel in study["kernel"].values.tolist()},
        "maps": {
            name: captions.map_of(study, name)
            for name in (study["map"].values.tolist() if "map_coordinates" in study else ())
        },
        "stimuli": _stimuli(study),
        "columns": _recorded(study, "column"),
        "id_columns": [
            name.removeprefix("column ") for name in _recorded(study, "ids_from") if name.startswith("column ")
        ],
        "coords": {
            str(name): _plain(labels.values)
            for name, labels in sorted(study.coords.items())  # equal for a study in memory and one that was saved
            if labels.ndim == 1 and not set(LAYERS) & set(labels.dims)
        },
        "variables": {name: packing.variable(one, short=along is not None) for name, one in small.items()},
        "matrices": matrices,
        "in_blocks": along is not None,
        **(overview.of_study(study, matrices["value"]) if overview.shows_networks(study) else {}),
    }


def _drawn(study: xr.Dataset, measure: str, relations: Sequence[str]) -> list[int]:
    """Return the positions of the pairs that the figure of pairs shows under a measure, in its order.

    They are all pairs, kind by kind, or of many pairs those with the largest and with the smallest values.
    """
    values = study[reading.headline(study, measure)].sel(measure=measure).values
    if len(values) > thinning.MOST_PAIRS:
        return thinning.ends(values.tolist())
    return thinning.thinned(values.tolist(), study["relation"].values.tolist(), relations)


def _recorded(study: xr.Dataset, key: str) -> list[str]:
    """Return the different values of an entry of the provenance of the stores."""
    records = [store.get("provenance") or {} for store in _json_list(study, "stores", dict)]
    return list(dict.fromkeys(str(record[key]) for record in records if record.get(key)))


def _common(
    result: xr.Dataset, readout: str, stores: Sequence[Mapping[str, Any]], measures: list[dict[str, Any]]
) -> dict[str, Any]:
    """Make the entries that parts of studies and of comparisons share."""
    facts = facts_of(result)
    return {
        "kind": "study" if is_study(result) else "comparison",
        "sample": samples_of(result, count=1),
        "samples": samples_of(result),
        "readout": readout,
        "subtitle": captions.subtitle(readout, facts),
        "measures": measures,
        "sources": captions.sources(measures),
        "networks": captions.networks(list(models_of(result, stores)), study=is_study(result)),
        "facts": facts,
    }


def _shares(study: xr.Dataset) -> list[dict[str, Any]]:
    """List the shares that these models can separate, each with its label and the index of its colour."""
    places = reading.share_places(study)
    return [
        {"name": name, "label": label, "place": places[name]} for name, label in reading.known_shares(study).items()
    ]


def _stimuli(study: xr.Dataset) -> dict[str, dict[str, Any]]:
    """Select, for every kernel, the samples that networks agree on most and least."""
    if "agreement" not in study:
        return {}
    chosen = {}
    for kernel in study["kernel"].values.tolist():
        most, least = reading.extremes(study["agreement"].sel(kernel=kernel).values, SHOWN)
        chosen[kernel] = {"most": most, "least": least, "note": captions.stimuli_note(study, kernel)}
    return chosen


def _pairs_of(sides: Mapping[str, Mapping[str, Any]]) -> dict[str, list[str]]:
    """List the pairs of models of a comparison, like a study; every pair occurs once if both sides are equal."""
    a, b = ([run["model"] for run in sides[side]["runs"]] for side in "ab")
    same_sides = sides["a"]["models"] == sides["b"]["models"] and len(a) > 1
    pairs = [(first, second) for i, first in enumerate(a) for j, second in enumerate(b) if not same_sides or j > i]
    return {
        "pair": [f"{first} x {second}" for first, second in pairs],
        "pair_a": [first for first, _ in pairs],
        "pair_b": [second for _, second in pairs],
        "relation": [""] * len(pairs),
    }


def _side(result: xr.Dataset, side: str) -> dict[str, Any]:
    """List the layers of one side without the names of their models, and the runs of models with their stages."""
    models = _plain(result[f"model_{side}"].values)
    layers = [
        layer.removeprefix(f"{model}/")
        for model, layer in zip(models, _plain(result[f"layer_{side}"].values), strict=True)
    ]
    along = [
        {
            "model": run.model,
            "first": run.first,
            "count": run.count,
            "stages": boundaries(layers[run.first : run.first + run.count]),
            "depths": np.nan_to_num(relative(range(run.count), run.count)).round(4).tolist(),
        }
        for run in runs(models)
    ]
    return {"models": models, "layers": layers, "runs": along}


def models_of(result: xr.Dataset, stores: Sequence[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    """Yield a description of every network once; only a study knows families and training."""
    columns = [_plain(result[name].values) for name in ("model", "family")] if is_study(result) else ([], [])
    families = dict(zip(*columns, strict=True))
    untrained = _json_list(result, "untrained")
    computed = _computed(result) if is_study(result) else {}
    records = [store.get("provenance") or {} for store in stores]
    same = {key for key in _OF_SAMPLES if len({str(record.get(key) or "") for record in records}) < 2}
    seen: set[str] = set()
    for store in stores:
        name, provenance = str(store.get("model", "")), store.get("provenance") or {}
        if name in seen:
            continue
        seen.add(name)
        origin = {str(key): str(value) for key, value in provenance.items() if value is not None and key not in same}
        yield (
            origin
            | computed.get(name, {})
            | {
                "name": name,
                "family": families.get(name, ""),
                "trained": name not in untrained,
                "checksum": str(store.get("checksum", "")),
            }
        )


def _computed(study: xr.Dataset) -> dict[str, dict[str, str]]:
    """Return the effective dimension of every network, and the energy that the input leaves if it is known."""
    kernel = reading.strictest(study)
    left = study["energy_left"].sel(kernel=kernel).values.tolist()
    columns: dict[str, dict[str, str]] = {}
    for name, dimension, energy in zip(
        _plain(study["network"].values), study["effective_dimension"].values.tolist(), left, strict=True
    ):
        columns[name] = {"effective_dimension": captions.fixed(dimension, 1)}
        if kernel != "cka":
            columns[name]["energy_left"] = captions.fixed(energy, 3)
    return columns


def facts_of(result: xr.Dataset) -> dict[str, str]:
    """List the facts about how a file was made, in the order of the page."""
    facts: dict[str, Any] = {
        "data": result.coords.get("data"),
        "samples": result.coords.get("n_samples"),
        "samples fingerprint (SHA-256 of their ids)": result.attrs.get("samples_fingerprint"),
        "pairs of samples": _pairs(result),
        "command": result.attrs.get("command"),
        "created": result.attrs.get("created"),
        "repsim version": result.attrs.get("repsim_version"),
        "permutations": result.attrs.get("permutations"),
        "bootstrap draws": result.attrs.get("draws"),
        "seed": result.attrs.get("seed"),
        "device": result.attrs.get("device"),
    }
    values = {key: value.item() if hasattr(value, "item") else value for key, value in facts.items()}
    return {key: str(value) for key, value in values.items() if value is not None and value != ""}


def _pairs(result: xr.Dataset) -> str | None:
    """Return how samples were paired, and how many were left out; None if all stores hold the same samples."""
    if "pairing" not in result.attrs:
        return None
    pairing = json.loads(result.attrs["pairing"])
    left_out = ", ".join(f"{side['count']:,} of {side['model']}" for side in pairing["left_out"] if side["count"])
    by = {"id": "by equal ids", "list": "by a list"}.get(pairing["by"], f"by {pairing.get('file')}")
    return f"{pairing['pairs']:,}, {by}{f'; left out: {left_out}' if left_out else ''}"


def _json_list(data: xr.Dataset | xr.DataArray, name: str, kind: type = str) -> list[Any]:
    """Read an attribute that holds a list as JSON; return an empty list if there is no such attribute."""
    try:
        values = json.loads(data.attrs.get(name, "[]"))
    except (TypeError, ValueError):
        values = None
    if not isinstance(values, list) or not all(isinstance(value, kind) for value in values):
        raise ValueError(f"the attribute {name!r} is not a JSON list of {'texts' if kind is str else 'objects'}")
    return values


def _plain(values: Any) -> list[str]:
    return [str(value) for value in values.tolist()]
