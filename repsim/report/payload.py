"""Makes of studies, or comparisons, everything that a page shows, as one value that JSON can hold.

What is shown, in which order, under which name and on which scale is decided here; the scripts beside this file
draw it.
"""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from repsim.errors import InvalidInputError, RepsimError, SampleMismatchError, StoreError, reason
from repsim.presentation.measures import traits
from repsim.presentation.scales import declared, scale_of
from repsim.presentation.stages import boundaries, runs
from repsim.report import captions, packing
from repsim.report.pictures import SHOWN
from repsim.results.files import STUDY
from repsim.results.variables import RELATIONS
from repsim.study import formatting, reading
from repsim.study.layer_matching import relative

LAYERS = ("layer_a", "layer_b")
_MATRICES = ("value", "low", "high", "chance", "chance_sd", "z", "p")
_NAMED = ("measure", "model", "layer_a", "layer_b", "pair", "pair_a", "pair_b", "relation")
_BARE = (
    "A comparison: how alike two layers are, and no more. Chance levels, intervals, controls and the match of whole "
    "networks are in a study (repsim universality)."
)


def payload(results: Sequence[xr.Dataset]) -> dict[str, Any]:
    """Make everything a page shows of studies of the same models under different readouts, or of comparisons.

    Parameters
    ----------
    results
        Studies of `repsim.universality`, or results of `repsim.compare`.

    Returns
    -------
    dict
        ``title`` and ``parts``: one for every readout, with the names of everything and all numbers, packed.

    Raises
    ------
    InvalidInputError
        If there is nothing in them, or if they are of different models, or of one readout twice.
    SampleMismatchError
        If they are of different samples.
    StoreError
        If something that belongs to a study or result is missing, or is not what it should be.

    Examples
    --------
    >>> result = xr.Dataset(
    ...     {"cka": (LAYERS, [[0.5]], {"label": "CKA"})},
    ...     coords={"layer_a": ["conv1"], "layer_b": ["blocks.0"], "model_a": ("layer_a", ["r"]),
    ...             "model_b": ("layer_b", ["v"]), "n_samples": 30, "data": "digits"},
    ... )
    >>> page = payload([result])
    >>> page["title"], page["parts"][0]["sides"]["a"]["layers"]
    ('r and v', ['conv1'])
    """
    if not results:
        raise InvalidInputError("there is nothing to report: give one study or result at least")
    parts = [part for result in results for part in _read(result)]
    _check(results, parts)
    return {"title": _title(parts[0]), "parts": parts}


def _check(results: Sequence[xr.Dataset], parts: Sequence[Mapping[str, Any]]) -> None:
    first = parts[0]
    for result, part in ((results[0], first), *zip(results[1:], parts[1:], strict=False)):
        if _is_study(result) != (first["kind"] == "study"):
            raise InvalidInputError("a study and a comparison do not go on one page; make a page of each")
        for side in "ab":
            mine, yours = (list(dict.fromkeys(each["sides"][side]["models"])) for each in (first, part))
            if mine != yours:
                raise InvalidInputError(
                    f"one page is about one set of models, under one readout or several: the first file has "
                    f"{formatting.listed(mine)}, another one {formatting.listed(yours)}; make a page of each"
                )
        if result.attrs.get("samples_fingerprint") != results[0].attrs.get("samples_fingerprint"):
            raise SampleMismatchError("these files are of different samples; one page needs the same for all readouts")
    readouts = [part["readout"] for part in parts]
    twice = sorted({each for each in readouts if readouts.count(each) > 1})
    if twice:
        raise InvalidInputError(
            f"{formatting.listed(twice)} is the readout of more than one of these files; give one file a readout"
        )


def _is_study(result: xr.Dataset) -> bool:
    return result.attrs.get("format") == STUDY


def _title(part: Mapping[str, Any]) -> str:
    a, b = (list(dict.fromkeys(part["sides"][side]["models"])) for side in "ab")
    if part["kind"] == "study":
        families = list(dict.fromkeys(part["coords"]["family"]))
        if len(a) == 1:
            return f"One network: {a[0]}"
        return f"How alike are {len(a)} networks of {formatting.listed(families)}?"
    return " and ".join(formatting.listed(names) for names in ([a] if a == b else [a, b]))


def _read(result: xr.Dataset) -> list[dict[str, Any]]:
    try:
        return list(_parts(result))
    except RepsimError:
        raise
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:  # written by something else
        what = "study" if _is_study(result) else "result"
        name = Path(result.encoding.get("source", f"this {what}")).name
        raise StoreError(
            f"{name} is damaged, or no whole {what}: {reason(error).partition('. ')[0]}; make it again"
        ) from error


def _parts(result: xr.Dataset) -> Iterator[dict[str, Any]]:
    """One for every readout."""
    if _is_study(result):
        yield _of_study(result)
        return
    variables = [str(name) for name, each in result.data_vars.items() if set(each.dims) == set(LAYERS)]
    if not variables:
        raise InvalidInputError("there is nothing to report: no measure with dims (layer_a, layer_b) in this result")
    readouts = dict.fromkeys(str(result[name].attrs.get("readout", "")) for name in variables)
    for readout in readouts:
        some = [name for name in variables if str(result[name].attrs.get("readout", "")) == readout]
        yield _of_comparison(result, some, readout)


def _of_comparison(result: xr.Dataset, names: Sequence[str], readout: str) -> dict[str, Any]:
    values = [result[name].transpose(*LAYERS) for name in names]
    stores = [each for side in "ab" for each in _told(result, f"stores_{side}", dict)]
    notes = [
        f"{each.attrs.get('spec', name)}: {note}"
        for name, each in zip(names, values, strict=True)
        for kind in ("undefined", "cautions", "remarks")
        for note in _told(each, kind)
    ]
    own = {str(each) for side in "ab" for each in np.atleast_1d(result.coords.get(f"readout_{side}", ""))} - {""}
    palettes = _Palettes()
    measures = []
    for each in values:
        value, bounds = np.asarray(each.values, np.float64), declared(each.attrs)
        measures.append(_about_result(each) | {"views": {"value": palettes.view(value, *bounds)}})
    sides = {side: _side(result, side) for side in "ab"}
    return _common(result, readout or ", ".join(sorted(own)), stores, measures) | {
        "summary": [_BARE],
        "warnings": [*dict.fromkeys(notes), *_told(result, "left_out")],
        "sides": sides,
        "palettes": palettes.stops,
        "coords": _pairs_of(sides),
        "variables": {},
        "matrices": {"value": [packing.matrix(each.values, ~np.isnan(each.values), "f8") for each in values]},
    }


def _of_study(study: xr.Dataset) -> dict[str, Any]:
    small = {str(name): each for name, each in study.data_vars.items() if not set(LAYERS) <= set(each.dims)}
    if missing := [name for name in _NAMED if name not in study.coords]:  # a study of one model has them, too
        raise KeyError(missing[0])
    untrained = _told(study, "untrained")
    palettes = _Palettes()
    measures = [_about_study(study, spec, palettes) for spec in study["measure"].values.tolist()]
    return _common(study, str(study["readout"].item()), _told(study, "stores", dict), measures) | {
        "summary": _told(study, "summary"),
        "warnings": _told(study, "warnings"),
        "tiles": list(captions.tiles(study)),
        "sides": {side: _side(study, side) for side in "ab"},
        "palettes": palettes.stops,
        "uncontrolled": "none of this pair under this measure" if untrained else "no untrained networks",
        "relations": [relation for relation in RELATIONS if relation in study["relation"].values],
        "shares": _shares(study),
        "shares_note": captions.shares_note(study["state"].values.tolist()),
        "ceilings": {kernel: captions.ceilings(study, kernel) for kernel in study["kernel"].values.tolist()},
        "maps": {
            name: captions.map_of(study, name)
            for name in (study["map"].values.tolist() if "map_coordinates" in study else ())
        },
        "stimuli": _stimuli(study),
        "coords": {
            str(name): _plain(each.values)
            for name, each in study.coords.items()
            if each.ndim == 1 and not set(LAYERS) & set(each.dims)
        },
        "variables": {name: {"dims": list(map(str, each.dims)), **_packed(each)} for name, each in small.items()},
        "matrices": _matrices(study),
    }


def _common(
    result: xr.Dataset, readout: str, stores: Sequence[Mapping[str, Any]], measures: list[dict[str, Any]]
) -> dict[str, Any]:
    """Make what studies and comparisons both have."""
    facts, is_study = _facts(result), _is_study(result)
    return {
        "kind": "study" if is_study else "comparison",
        "readout": readout,
        "subtitle": captions.subtitle(readout, facts),
        "measures": measures,
        "sources": captions.sources(measures),
        "networks": captions.networks(list(_models(result, stores)), study=is_study),
        "facts": facts,
    }


class _Palettes:
    """The colours of all views of a part, each kept once."""

    def __init__(self) -> None:
        self.stops: list[list[tuple[float, str]]] = []

    def view(
        self, values: NDArray[np.float64], valid_range: tuple[float, float], sense: str = "similarity"
    ) -> dict[str, Any]:
        """Choose the scale of a matrix: its ends, and the place of its colours."""
        scale = scale_of(values, valid_range, sense)
        if scale.stops not in self.stops:
            self.stops.append(scale.stops)
        low, high = scale.shown
        return {"low": float(low), "high": float(high), "palette": self.stops.index(scale.stops)}


def _about_study(study: xr.Dataset, measure: str, palettes: _Palettes) -> dict[str, Any]:
    """Describe a measure of a study: its names, its views, and what is shown beside it elsewhere on the page.

    ``most`` is what equal layers have, the 1 of the calibrated view.
    """
    about: dict[str, Any] = {"name": measure, "label": measure, "formula": "", "citation": "", "most": 1}
    bounds = -math.inf, math.inf
    try:
        declares = traits(measure)
    except RepsimError:  # a third party's, which is not installed here
        pass
    else:
        bounds = declares.similarity_range
        sign = "" if declares.sense == "similarity" else " (a distance, shown as its negative: more is more alike)"
        about["label"] = declares.label + sign
        about |= {"formula": declares.formula, "citation": declares.citation}
        about["most"] = bounds[1] if math.isfinite(bounds[1]) else None
    at = study.sel(measure=measure)
    value, z = at["value"].values, at["z"].values
    views = {"value": palettes.view(value, bounds)}
    if about["most"] is not None and np.isfinite(at["threshold_largest"].values).any():
        views["calibrated"] = palettes.view(value, (0.0, 1.0))
    if (finite := z[np.isfinite(z)]).size:
        views["z"] = palettes.view(z, (min(0.0, finite.min()), max(0.0, finite.max())))
    kernel = measure if measure in study["kernel"].values else reading.strictest(study)
    maps = study["map"].values.tolist() if "map" in study.coords else []
    return about | {
        "views": views,
        "kernel": kernel,
        "map": next((name for name in (measure, kernel, *maps[:1]) if name in maps), None),
        "pairs_note": captions.pairs_note(study, measure),
    }


def _about_result(variable: xr.DataArray) -> dict[str, Any]:
    name = str(variable.attrs.get("spec", variable.name))
    told = {key: str(variable.attrs.get(key) or "") for key in ("label", "formula", "citation")}
    return {"name": name, **told, "label": told["label"] or name}


def _shares(study: xr.Dataset) -> list[dict[str, Any]]:
    """Name the shares that these models can tell apart, each with the place of its colour."""
    places = reading.share_places(study)
    return [
        {"name": name, "label": label, "place": places[name]} for name, label in reading.known_shares(study).items()
    ]


def _stimuli(study: xr.Dataset) -> dict[str, dict[str, Any]]:
    """Choose, under every kernel, the samples that networks agree on most and least."""
    if "agreement" not in study:
        return {}
    whose = "across families" if len(set(study["family"].values)) > 1 else "of all pairs"
    chosen = {}
    for kernel in study["kernel"].values.tolist():
        most, least = reading.extremes(study["agreement"].sel(kernel=kernel).values, SHOWN)
        note = f"How much a stimulus adds to, or takes from, the mean index {whose} ({kernel})."
        chosen[kernel] = {"most": most, "least": least, "note": note}
    return chosen


def _pairs_of(sides: Mapping[str, Mapping[str, Any]]) -> dict[str, list[str]]:
    """Name the pairs of models of a comparison, as a study has them: each once where both sides are the same."""
    a, b = ([run["model"] for run in sides[side]["runs"]] for side in "ab")
    once = sides["a"]["models"] == sides["b"]["models"] and len(a) > 1
    pairs = [(first, second) for i, first in enumerate(a) for j, second in enumerate(b) if not once or j > i]
    return {
        "pair": [f"{first} x {second}" for first, second in pairs],
        "pair_a": [first for first, _ in pairs],
        "pair_b": [second for _, second in pairs],
        "relation": [""] * len(pairs),
    }


def _packed(variable: xr.DataArray) -> dict[str, Any]:
    if variable.dtype.kind in "OUS":
        return {"shape": list(variable.shape), "text": _plain(variable.values.ravel())}
    long = "sample" in variable.dims
    return packing.single(variable.values) if long else packing.array(variable.values)


def _matrices(study: xr.Dataset) -> dict[str, list[dict[str, Any] | None]]:
    made: dict[str, list[dict[str, Any] | None]] = {name: [] for name in _MATRICES}
    for measure in range(study.sizes["measure"]):
        values = {name: study[name].transpose("measure", *LAYERS).values[measure] for name in _MATRICES}
        follow, known = packing.derived(values), ~np.isnan(values["value"])
        for name, each in values.items():
            packed = packing.matrix(each, known, "f8" if name == "value" else "f4")
            made[name].append({} if packed is not None and name in follow else packed)
    return made


def _side(result: xr.Dataset, side: str) -> dict[str, Any]:
    """List the layers of one side without their models' names, and where models and their stages begin."""
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


def _models(result: xr.Dataset, stores: Sequence[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    """Describe every network, once; family and training are a study's."""
    known = [_plain(result[name].values) for name in ("model", "family")] if _is_study(result) else ([], [])
    families = dict(zip(*known, strict=True))
    untrained = _told(result, "untrained")
    seen: set[str] = set()
    for store in stores:
        name, provenance = str(store.get("model", "")), store.get("provenance") or {}
        if name in seen:
            continue
        seen.add(name)
        told = {str(key): str(value) for key, value in provenance.items() if value is not None}
        yield told | {
            "name": name,
            "family": families.get(name, ""),
            "trained": name not in untrained,
            "checksum": str(store.get("checksum", "")),
        }


def _facts(result: xr.Dataset) -> dict[str, str]:
    """How a file was made, in the order in which it is told."""
    known: dict[str, Any] = {
        "data": result.coords.get("data"),
        "samples": result.coords.get("n_samples"),
        "samples fingerprint (SHA-256 of their ids)": result.attrs.get("samples_fingerprint"),
        "command": result.attrs.get("command"),
        "created": result.attrs.get("created"),
        "repsim version": result.attrs.get("repsim_version"),
        "permutations": result.attrs.get("permutations"),
        "bootstrap draws": result.attrs.get("draws"),
        "seed": result.attrs.get("seed"),
        "device": result.attrs.get("device"),
    }
    values = {key: value.item() if hasattr(value, "item") else value for key, value in known.items()}
    return {key: str(value) for key, value in values.items() if value is not None and value != ""}


def _told(of: xr.Dataset | xr.DataArray, name: str, kind: type = str) -> list[Any]:
    """What an attribute lists, as JSON; nothing where it is missing."""
    try:
        told = json.loads(of.attrs.get(name, "[]"))
    except (TypeError, ValueError):
        told = None
    if not isinstance(told, list) or not all(isinstance(each, kind) for each in told):
        raise ValueError(f"the attribute {name!r} is no JSON list of {'texts' if kind is str else 'objects'}")
    return told


def _plain(values: Any) -> list[str]:
    return [str(each) for each in values.tolist()]
