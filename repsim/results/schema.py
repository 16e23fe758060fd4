"""Check that data sets have the form that their format requires: names, dimensions, dtypes, ranges, consistency.

A checksum only shows that a file was not changed, not that its contents are valid. `repsim.results.variables` and
`repsim.results.series_variables` list the allowed variables and attributes; `problem` describes the first violation.
Further attributes, and coordinates along one dimension, are allowed, so that users can add notes to results.
"""

import json
import math
from collections import Counter
from collections.abc import Generator, Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from repsim.results.intervals import ends_of
from repsim.results.series_variables import NETWORK, SERIES_ATTRIBUTES, SERIES_COORDINATES, SERIES_VARIABLES
from repsim.results.variables import (
    CHANCE,
    COORDINATES,
    ENDS,
    METRIC_ATTRIBUTES,
    RESULT_ATTRIBUTES,
    RESULT_COORDINATES,
    STUDY_ATTRIBUTES,
    VARIABLES,
    Entry,
    Field,
)

_SLACK = 0.01
"""Relative tolerance of the range of a metric, because products may have been rounded to TensorFloat-32."""
_ESTIMATES = ("gram:", "sketch:")
"""Readouts from which values are estimated; estimates can be further outside of the range."""
_BOTH_SIDES = {
    name[:-1] + side: field if side == "a" else Field(**{**vars(field), "dim": field.dim.replace("_a", "_b")})
    for name, field in RESULT_COORDINATES.items()
    for side in ("ab" if field.dim else name[-1])
}


def problem(data: xr.Dataset) -> str | None:
    """Describe the first violation of the format of a result, a study or a series; None if it is valid.

    >>> problem(xr.Dataset(attrs={"format": "repsim-comparison", "format_version": "three"}))
    "attribute format_version is 'three'; expected an integer"
    """
    form = data.attrs.get("format")
    if form == STUDY_ATTRIBUTES["format"].only[0]:
        return next(_study_problems(data), None)
    is_series = form == SERIES_ATTRIBUTES["format"].only[0]
    return next(_series_problems(data) if is_series else _result_problems(data), None)


def _result_problems(result: xr.Dataset) -> Iterator[str]:
    yield from _attribute_problems(result.attrs, RESULT_ATTRIBUTES, "")
    yield from _coordinate_problems(result, _BOTH_SIDES)
    if not result.data_vars:
        yield "it holds no variable; expected one a metric"
    estimates = [
        str(text).startswith(_ESTIMATES)
        for name in ("readout_a", "readout_b")
        if name in result.coords
        for text in result[name].values.tolist()
    ]
    for name, variable in result.data_vars.items():
        if variable.dims != ("layer_a", "layer_b") or variable.dtype != np.float64:
            yield f"{name} is {_dtype_and_dims(variable)}; expected float64 (layer_a, layer_b), as for every metric"
            continue
        yield from _attribute_problems(variable.attrs, METRIC_ATTRIBUTES, f" of {name}")
        values, readout, spec = variable.values, str(variable.attrs.get("readout", "")), variable.attrs["spec"]
        if name not in {spec, f"{spec}@{readout}"}:
            yield f"attribute spec of {name} is {short(spec)}; expected the name of the variable, without its readout"
        low, high = map(float, variable.attrs["valid_range"])
        yield from _interval_problems(variable, name)
        if np.isnan(values).any() and not json.loads(variable.attrs["undefined"]):
            yield f"{name} has no value (NaN) for {np.isnan(values).sum()} pairs, and 'undefined' gives no reason"
        slack = math.inf if any(estimates) or readout.startswith(_ESTIMATES) else _SLACK
        if (outside := _outside(values, low - slack * max(1, abs(low)), high + slack * max(1, abs(high)))) is not None:
            yield f"{name} holds {outside}; expected {low:g} to {high:g}, its valid_range"


def _interval_problems(variable: xr.DataArray, name: Any) -> Iterator[str]:
    """Yield violations by the intervals of a variable of a result."""
    ends = [end for end in ENDS if f"{name}{end}" in variable.coords]
    if len(ends) != len(ENDS) * ("interval" in variable.attrs):
        yield f"{name} has a part of an interval; expected {name}.low, {name}.high and the attribute interval, or none"
        return
    low, high = ends_of(variable)
    if (np.isnan(low) != np.isnan(high)).any() or (np.isnan(variable.values) & ~np.isnan(low)).any():
        yield f"{name}.low and {name}.high have values where the other one or {name} has none (NaN)"
    if (low > high).any() or (variable.values < low).any() or (variable.values > high).any():
        yield f"{name} has values outside of their own intervals, {name}.low to {name}.high"


def _study_problems(study: xr.Dataset) -> Iterator[str]:
    yield from _attribute_problems(study.attrs, STUDY_ATTRIBUTES, "")
    yield from _coordinate_problems(study, COORDINATES)
    for name, entry in (yield from _all_variables_problems(study, VARIABLES, "study")):
        if not entry.pairs_only or study.sizes["pair" if name == "agreement" else "model"] > (name != "agreement"):
            yield f"the variable {name} is missing"
    yield from _inconsistencies(study)


def _series_problems(series: xr.Dataset) -> Iterator[str]:
    yield from _attribute_problems(series.attrs, SERIES_ATTRIBUTES, "")
    yield from _coordinate_problems(series, SERIES_COORDINATES)
    for name, entry in (yield from _all_variables_problems(series, SERIES_VARIABLES, "series")):
        if entry.required:
            yield f"the variable {name} is missing"
    yield from _contradictions_of_series(series)


def _all_variables_problems(
    data: xr.Dataset, entries: Iterable[Entry], kind: str
) -> Generator[str, None, list[tuple[str, Entry]]]:
    """Yield violations by the variables of a study or a series; return the variables that it lacks."""
    by_name = {name: entry for entry in entries for name in entry.names}
    if further := [str(name) for name in data.data_vars if name not in by_name]:
        yield f"{further[0]} is no variable of a {kind}; save it in another file"
    for name, entry in by_name.items():
        if name in data.data_vars:
            yield from _variable_problems(data, name, entry)
    for low in (name for name in by_name if name == "low" or name.endswith("_low")):
        high = f"{low.removesuffix('low')}high"
        if {low, high} <= data.data_vars.keys() and (data[low].values > data[high].values).any():
            yield f"{low} is above {high}"
        if kind == "study" and {low, high} <= data.data_vars.keys():
            alone = int((data[low].isnull() != data[high].isnull()).sum())
            if alone:
                yield f"{low} or {high} has no value (NaN) for {alone} entries where the other one has"
    return [(name, entry) for name, entry in by_name.items() if name not in data.data_vars]


def _contradictions_of_series(series: xr.Dataset) -> Iterator[str]:
    """Yield contradictions between variables of a series, and names that it does not have."""
    similarity, threshold, calibrated = (series[name].values for name in ("similarity", "threshold", "calibrated"))
    with np.errstate(all="ignore"):
        if _differ(calibrated, np.maximum(0, (similarity - threshold) / (1 - threshold))):
            yield "calibrated is not max(0, (similarity - threshold) / (1 - threshold))"
    if set(series["one_run"].values.tolist()) != set(series["run"].values.tolist()):
        yield "one_run does not list the runs of the points"
    if series["trend_of"].values.tolist() != [NETWORK, *series["layer"].values.tolist()]:
        yield f"trend_of is not {NETWORK!r} and then the layers"
    if "other_point" in series.coords and (series["other_point"].values != series["point"].values).any():
        yield "point and other_point are not the same points"


def _inconsistencies(study: xr.Dataset) -> Iterator[str]:
    """Yield contradictions between variables, and names that the study does not have."""
    value, chance, sd, z, index, half, control, learned, share, mean = (
        study[name].values
        for name in (
            "value", "chance", "chance_sd", "z", "index", "split_half", "control", "learned", "share", "mean_share",
        )
    )  # fmt: skip
    with np.errstate(all="ignore"):
        if _differ(z * sd, value - chance):
            yield "z is not (value - chance) / chance_sd"
        by_halves, of_all = np.where(np.isnan(half), index, half), index  # studies of version 2 have the second
        if _differ(learned, by_halves - control) and _differ(learned, of_all - control):
            yield "learned is not split_half (or index) - control"
        if _differ(share.mean(-1), mean):
            yield "mean_share is not the mean of share over depth"
    models, measures = set(study["model"].values.tolist()), set(study["measure"].values.tolist())
    for name, allowed in {
        "model_a": models, "model_b": models, "pair_a": models, "pair_b": models, "other_model": models,
        "kernel": measures, "map": measures, "one_family": set(study["family"].values.tolist()),
    }.items():  # fmt: skip
        if name in study.coords and (unknown := set(study[name].values.tolist()) - allowed):
            yield f"{name} names {short(min(unknown))}, which is not in this study"
    for side in "ab":
        if (study[f"layer_{side}"].values != study["layer_a"].values).any():
            yield "layer_a and layer_b are not the same layers"
    match, last = study["match"].values, study.sizes["position"]
    if match.size and match.max() >= last:
        yield f"match holds {match.max()}; expected the index of a layer, below {last}"


def _differ(a: Any, b: Any) -> bool:
    """Return whether two arrays differ where both are finite."""
    finite = np.isfinite(a) & np.isfinite(b)
    return not np.allclose(a[finite], b[finite], rtol=1e-6, atol=1e-9)


def _variable_problems(study: xr.Dataset, name: str, entry: Entry) -> Iterator[str]:
    variable, dims = study[name], tuple(entry.dims.split(", "))
    kinds = {"number": variable.dtype == np.float64, "whole": variable.dtype.kind in "iu", "text": _is_text(variable)}
    if variable.dims != dims or not (kinds[entry.kind] or variable.size == 0):
        dtype = {"number": "float64", "whole": "integers", "text": "text"}[entry.kind]
        yield f"{name} is {_dtype_and_dims(variable)}; expected {dtype} ({entry.dims})"
        return
    yield from _value_problems(variable.values, entry, name)
    if entry.kind != "number":
        return
    defined = variable.notnull()
    for needed_name in entry.needs:
        needed = study.get(needed_name)
        if needed_name == name or needed is None or needed.dtype != np.float64:
            continue
        if missing := _outside_of(defined, needed.notnull()):
            yield f"{needed_name} has no value (NaN) for {missing} entries where {name} has one"
    for place in entry.only_at:
        if outside := _outside_of(defined, place.holds(study)):
            yield f"{name} has values for {outside} entries that are not {place.words}"
    if entry.symmetric and (asymmetric := _asymmetric(variable.values)):
        yield f"{name} differs for {asymmetric} entries from those with its last two dimensions exchanged"


def _outside_of(defined: xr.DataArray, allowed: xr.DataArray) -> int:
    """Return the number of entries with a value that are not allowed; further dimensions have to allow all of them."""
    allowed = allowed.all([dim for dim in allowed.dims if dim not in defined.dims])
    return int((defined & ~allowed).sum())


def _asymmetric(values: NDArray[np.float64]) -> int:
    """Return the number of entries that differ from their mirror images in the last two dimensions.

    Of a measure that is not symmetric, everything below the diagonal is missing.
    """
    if values.shape[-2] != values.shape[-1]:
        return values.size
    rows, columns = np.tril_indices(values.shape[-1], -1)
    below, above = values[..., rows, columns], values[..., columns, rows]
    differ = ~np.isclose(below, above, rtol=1e-5, atol=1e-6, equal_nan=True)
    return int((differ & ~np.isnan(below).all(-1, keepdims=True)).sum())


def _coordinate_problems(data: xr.Dataset, fields: Mapping[str, Field]) -> Iterator[str]:
    for name, field in fields.items():
        if name not in data.coords:
            if field.required:
                yield f"the coordinate {name} is missing"
            continue
        coordinate = data[name]
        dims = tuple(field.dim.split(", ")) if field.dim else ()
        kinds = {
            "number": coordinate.dtype.kind == "f", "whole": coordinate.dtype.kind in "iu", "text": _is_text(coordinate)
        }  # fmt: skip
        if coordinate.dims != dims or not (kinds[field.kind] or coordinate.size == 0):
            size = f"({field.dim})" if field.dim else "one value"
            dtype = {"number": "numbers", "whole": "integers", "text": "text"}[field.kind]
            yield f"{name} is {_dtype_and_dims(coordinate)}; expected {dtype}, {size}"
            continue
        values = np.atleast_1d(coordinate.values)
        yield from _value_problems(values, field, name)
        if field.unique and len(set(values.tolist())) < len(values):
            yield f"{name} names {short(Counter(values.tolist()).most_common(1)[0][0])} twice"
        if field.kind == "number" and np.isnan(values).any():
            yield f"{name} has entries that are NaN; expected numbers"
    for name, coordinate in ((str(key), values) for key, values in data.coords.items()):
        if name.endswith((CHANCE, *ENDS)):
            if set(coordinate.dims) != {"layer_a", "layer_b"} or coordinate.dtype.kind != "f":
                yield f"{name} is {_dtype_and_dims(coordinate)}; expected numbers along (layer_a, layer_b)"
            continue
        plain = coordinate.dtype.kind in "iuf" or _is_text(coordinate)
        if name not in fields and (coordinate.ndim > 1 or not plain):
            yield (
                f"the further coordinate {name} is {_dtype_and_dims(coordinate)}; expected numbers or text along one "
                "dimension"
            )


def _value_problems(values: Any, allowed: Entry | Field, name: str) -> Iterator[str]:
    if allowed.kind == "text":
        if allowed.only and (unknown := set(values.ravel().tolist()) - set(allowed.only)):
            yield f"{name} holds {short(min(unknown))}; expected {' or '.join(map(repr, allowed.only))}"
    elif (outside := _outside(values, allowed.least, allowed.most)) is not None:
        yield f"{name} holds {outside}; expected {allowed.values}"


def _outside(values: Any, least: float, most: float) -> str | None:
    """Return the first value outside of a range, as text; None if there is none. NaN is inside every range."""
    wrong = values[(values < least) | (values > most)]
    return f"{wrong.flat[0]:g}" if wrong.size else None


def _attribute_problems(attrs: Mapping[Any, Any], fields: Mapping[str, Field], where: str) -> Iterator[str]:
    for name, field in fields.items():
        if name not in attrs:
            if field.required:
                yield f"attribute {name}{where} is missing"
            continue
        value = attrs[name]
        expected = {
            "text": "a text", "whole": "an integer", "number": "a number", "range": "two numbers, the smaller first",
            "texts": "a list of texts, as JSON", "stores": "a list of objects, as JSON",
            "object": "an object, as JSON",
        }[field.kind]  # fmt: skip
        if not _is_of_kind(value, field):
            yield f"attribute {name}{where} is {short(value)}; expected {expected}"
        elif field.only and value not in field.only:
            yield f"attribute {name}{where} is {short(value)}; expected {' or '.join(map(repr, field.only))}"


def _is_of_kind(value: Any, field: Field) -> bool:
    if field.kind == "text":
        return isinstance(value, str)
    if field.kind in {"whole", "number"}:
        kinds = int | np.integer if field.kind == "whole" else int | float | np.number
        is_number = isinstance(value, kinds) and not isinstance(value, bool)
        return is_number and bool(field.least <= value <= field.most)
    if field.kind == "range":
        numbers = np.asarray(value)
        return numbers.shape == (2,) and numbers.dtype.kind in "iuf" and bool(numbers[0] <= numbers[1])
    items = _json(value)
    if field.kind == "object" or not isinstance(items, list):
        return field.kind == "object" and isinstance(items, dict)
    return (
        all(isinstance(x, str) for x in items) if field.kind == "texts" else bool(items) and all(map(_is_store, items))
    )


def _is_store(item: Any) -> bool:
    return (
        isinstance(item, dict)
        and isinstance(item.get("model"), str)
        and isinstance(item.get("checksum"), str)
        and isinstance(item.get("provenance"), dict)
    )


def _json(text: Any) -> Any:
    """Parse JSON; return None for texts that are no JSON and for other values."""
    try:
        return json.loads(text) if isinstance(text, str) else None
    except (ValueError, RecursionError):
        return None


def _is_text(variable: xr.DataArray) -> bool:
    values: Iterable[Any] = variable.values.ravel().tolist() if variable.dtype.kind in "OT" else ()
    return variable.dtype.kind in "UOT" and all(isinstance(value, str) for value in values)


def _dtype_and_dims(variable: xr.DataArray) -> str:
    dtype = "text" if _is_text(variable) else str(variable.dtype)
    return f"{dtype} ({', '.join(map(str, variable.dims))})"


def short(value: Any) -> str:
    """Return any value as one short line, for messages."""
    text = " ".join(repr(value).split())
    return text if len(text) <= 60 else f"{text[:60]}..."
