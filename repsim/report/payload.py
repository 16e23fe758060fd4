"""What a page knows: studies, or comparisons, as one value that JSON can say. The scripts beside this file draw it."""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from repsim import metrics
from repsim.errors import InvalidInputError, RepsimError, SampleMismatchError, StoreError, reason
from repsim.report import packing
from repsim.results import schema
from repsim.results.versions import STUDY
from repsim.study import formatting, reading

LAYERS = ("layer_a", "layer_b")
_MATRICES = ("value", "low", "high", "chance", "chance_sd", "z", "p")
_NAMED = ("measure", "model", "layer_a", "layer_b", "pair", "pair_a", "pair_b", "relation")
_BARE = (
    "A comparison: how alike two layers are, and no more. Chance levels, intervals, controls and the match of whole "
    "networks are in a study."
)
_GIVEN = " given "
_STORES = ("extractor", "architecture", "weights", "weights_sha256", "seed", "batch_norm", "device", "repsim_version")
"""What is told of every store; the rest of its provenance is in the file."""


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
        families = list(dict.fromkeys(model["family"] for model in part["models"] if model["trained"]))
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
        missing = schema.problem(result) if isinstance(error, KeyError) else None  # xarray would list all that is there
        why = missing or reason(error)
        raise StoreError(f"{name} is damaged, or no whole {what}: {why}; make it again") from error


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
    return {
        "kind": "comparison",
        "readout": readout or ", ".join(sorted(own)),
        "summary": [_BARE],
        "warnings": [*dict.fromkeys(notes), *_told(result, "left_out")],
        "models": list(_models(stores, [])),
        "sides": {side: _side(result, side) for side in "ab"},
        "measures": [_measure(str(each.attrs.get("spec", each.name)), each.attrs) for each in values],
        "coords": {},
        "variables": {},
        "matrices": {"value": [packing.matrix(each.values, ~np.isnan(each.values), "f8") for each in values]},
        "facts": _facts(result),
    }


def _of_study(study: xr.Dataset) -> dict[str, Any]:
    families = dict(zip(study["model"].values.tolist(), study["family"].values.tolist(), strict=True))
    small = {str(name): each for name, each in study.data_vars.items() if not set(LAYERS) <= set(each.dims)}
    kernel = reading.strictest(study)
    if missing := [name for name in _NAMED if name not in study.coords]:  # a study of one model has them, too
        raise KeyError(missing[0])
    return {
        "kind": "study",
        "readout": str(study["readout"].item()),
        "summary": _told(study, "summary"),
        "warnings": _told(study, "warnings"),
        "verdict": reading.verdict(study),
        "strictest": kernel,
        "known_shares": list(reading.known_shares(study)),
        "share_names": {name: reading.name_of(study, name) for name in study["share_of"].values.tolist()},
        "models": list(_models(_told(study, "stores", dict), _told(study, "untrained"), families)),
        "sides": {side: _side(study, side) for side in "ab"},
        "measures": [_measure(spec) for spec in study["measure"].values.tolist()],
        "coords": {
            str(name): _plain(each.values)
            for name, each in study.coords.items()
            if each.ndim == 1 and not set(LAYERS) & set(each.dims)
        },
        "variables": {name: {"dims": list(map(str, each.dims)), **_packed(each)} for name, each in small.items()},
        "matrices": _matrices(study),
        "facts": _facts(study),
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


def _side(result: xr.Dataset, side: str) -> dict[str, list[str]]:
    """Names of layers without their models', and the models."""
    models = _plain(result[f"model_{side}"].values)
    layers = _plain(result[f"layer_{side}"].values)
    return {
        "models": models,
        "layers": [layer.removeprefix(f"{model}/") for model, layer in zip(models, layers, strict=True)],
    }


def _measure(spec: str, attrs: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """What is to be known of a measure in order to draw it. ``most``: what equal layers have, in a study."""
    base, _, given = spec.partition(_GIVEN)
    made = {
        "name": spec,
        "label": spec,
        "sense": "similarity",
        "range": [None, None],
        "most": 1,
        "formula": "",
        "citation": "",
    }
    try:
        metric = metrics.get(base)
    except RepsimError:  # a third party's, which is not installed here
        metric = None
    if attrs is not None:
        low, high = map(float, attrs.get("valid_range", (math.nan, math.nan)))
        told = {key: str(attrs[key]) for key in ("label", "sense", "formula", "citation") if attrs.get(key)}
        return made | told | {"range": _finite(low, high)}
    if metric is None:
        return made
    low, high = metric.bounds
    if metric.sense == "distance":  # a study has distances as their negatives: more is more alike
        low, high = -high, -low
    sign = "" if metric.sense == "similarity" else " (a distance, shown as its negative: more is more alike)"
    label = metric.label if not given else f"Partial {metric.label}, given {given}"
    return made | {
        "label": label + sign,
        "range": _finite(low, high),
        "most": high if math.isfinite(high) else None,
        "formula": metric.formula,
        "citation": metric.citation,
    }


def _finite(*bounds: float) -> list[float | None]:
    return [bound if math.isfinite(bound) else None for bound in bounds]


def _models(
    stores: Sequence[Mapping[str, Any]], untrained: Sequence[str], families: Mapping[str, str] | None = None
) -> Iterator[dict[str, Any]]:
    """What is known of every network, once."""
    seen: set[str] = set()
    for store in stores:
        name, provenance = str(store.get("model", "")), store.get("provenance") or {}
        if name in seen:
            continue
        seen.add(name)
        told = {key: str(provenance[key]) for key in _STORES if provenance.get(key) is not None}
        yield {
            "name": name,
            "family": (families or {}).get(name, ""),
            "trained": name not in untrained,
            "checksum": str(store.get("checksum", "")),
            **told,
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
