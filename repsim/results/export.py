"""Results and studies as tables of pandas, CSV and JSON; docs/reading-stores.md says what is in each."""

import json
import math
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from repsim.errors import InvalidInputError, UnknownNameError
from repsim.results.versions import FORMAT, STUDY
from repsim.runtime.files import replacing

RESULT_TABLE = "layers"
"""The one table of a comparison."""
STUDY_TABLES: dict[str, tuple[str, ...]] = {
    "pairs": ("measure", "pair"),
    "layers": ("measure", "layer_a", "layer_b"),
    "matches": ("measure", "pair", "direction", "position"),
    "means": ("kernel", "kind_of_pair"),
    "shares": ("state", "share_of", "depth"),
    "mean_shares": ("state", "share_of"),
    "families": ("kernel", "one_family"),
    "ceilings": ("kernel", "families"),
    "models": ("map", "model"),
    "model_pairs": ("map", "model", "other_model"),
    "maps": ("map",),
    "layer_map": ("layer_a",),
    "samples": ("kernel", "sample"),
}
"""Table of a study -> the dimensions that a row is of. Every variable over just these is a column."""
_AXES = {"axis", "layer_axis"}
"""Dimensions that become columns: a point on a map is a row."""
_FORMULA = ("=", "+", "-", "@", "\t")
"""What a spreadsheet takes for the beginning of a formula."""

_OF_LAYERS = {
    "features": "values a sample of layer {}",
    "depth": "relative depth of layer {} among those compared of its model, 0 the first and 1 the last",
}
"""What is told of the layers of a side; whatever was found is explained in the file."""


def to_frame(found: xr.Dataset, table: str | None = None) -> pd.DataFrame:
    """Make a tidy table of a comparison or a study: a row a pair of layers, of models, ..., a column a variable.

    Rows are in the order of the file, the first of a table's dimensions slowest. Columns say first what a row is of,
    then what was found. Values are those of the file, to the last bit.

    Parameters
    ----------
    found
        What `repsim.compare`, `repsim.universality`, `repsim.open_result` or `repsim.open_study` return.
    table
        Of a comparison only ``layers``: a row a pair of layers, a column a metric. Of a study one of `STUDY_TABLES`;
        by default ``pairs``: a row a measure and a pair of models.

    Returns
    -------
    pandas.DataFrame
        ``attrs`` hold the table's name, what was compared, and the ``columns`` that are explained: name -> meaning.

    Raises
    ------
    UnknownNameError
        There is no such table; the message lists the nearest names.
    InvalidInputError
        This is neither a comparison nor a study, or the study has nothing of this kind (no second model, say).

    Examples
    --------
    >>> import repsim, tempfile
    >>> rng = np.random.default_rng(0)
    >>> x = rng.normal(size=(30, 6))
    >>> with tempfile.TemporaryDirectory() as where:
    ...     a = repsim.write_store(f"{where}/a.h5", {"in": x, "out": x[:, :2]}, model="a")
    ...     b = repsim.write_store(f"{where}/b.h5", {"hidden": 2 * x}, model="b")
    ...     frame = to_frame(repsim.compare(a, b))
    >>> frame[["model_a", "layer_a", "model_b", "layer_b", "cka"]].round(2)
      model_a layer_a model_b layer_b   cka
    0       a      in       b  hidden  1.00
    1       a     out       b  hidden  0.67
    """
    tables = tables_of(found)
    name = table or next(iter(tables))
    if name not in tables:
        raise UnknownNameError("table", name, tables, where=f"there are {', '.join(tables)}")
    dims = tables[name]
    if missing := [dim for dim in dims if dim not in found.sizes]:
        raise InvalidInputError(f"this study has no table {name!r}: there is no {missing[0]} in it")
    frame = pd.DataFrame(dict(_columns(found, dims)))
    frame.attrs = {
        "table": name,
        "data": found["data"].item(),
        "samples": found["n_samples"].item(),
        "columns": {column: text for column in frame.columns if (text := _meaning(found, column))},
    }
    return frame


def tables_of(found: xr.Dataset) -> dict[str, tuple[str, ...]]:
    """Names of the tables that a comparison or a study has, and the dimensions of their rows; the default first."""
    form = found.attrs.get("format")
    if form == STUDY:
        return STUDY_TABLES
    if form == FORMAT:
        return {RESULT_TABLE: ("layer_a", "layer_b")}
    raise InvalidInputError(f"expected what repsim.compare or repsim.universality returns; its 'format' is {form!r}")


def _columns(found: xr.Dataset, dims: tuple[str, ...]) -> Iterator[tuple[str, Any]]:
    """Names and values, a value a row: what the row is of, then what was found."""
    shape = tuple(found.sizes[dim] for dim in dims)

    def spread(values: Any, *over: str) -> Any:
        """Repeat along the other dimensions."""
        own = [found.sizes[dim] if dim in over else 1 for dim in dims]
        return np.broadcast_to(np.asarray(values).reshape(own), shape).ravel()

    for dim in dims:
        for name, values in _labels(found, dim):
            yield name, spread(values, dim)
    for key, variable in found.data_vars.items():
        name = str(key)
        if set(variable.dims) == set(dims):
            yield name, variable.transpose(*dims).values.ravel()
        elif variable.dims[:-1] == dims and variable.dims[-1] in _AXES:
            for k in range(variable.shape[-1]):
                yield f"{name}_{k + 1}", variable.values[..., k].ravel()


def _labels(found: xr.Dataset, dim: str) -> Iterator[tuple[str, Any]]:
    """What is told of the places along one dimension: the model before the layer, as people say it."""
    if dim not in found.coords:
        yield dim, np.arange(found.sizes[dim])
        return
    beside = sorted(str(name) for name, each in found.coords.items() if each.dims == (dim,) and name != dim)
    side = dim.removeprefix("layer")
    if side not in {"_a", "_b"}:
        yield from ((name, found[name].values) for name in (dim, *beside))
        return
    models = found[f"model{side}"].values
    yield f"model{side}", models
    yield dim, _without_model(found[dim].values, models)
    yield f"depth{side}", _depths(models)
    yield from ((name, found[name].values) for name in beside if name != f"model{side}")


def _without_model(layers: Any, models: Any) -> Any:
    """Layers as their network names them: several models on one side make it ``model/layer``."""
    if all(layer.startswith(f"{model}/") for layer, model in zip(layers, models, strict=True)):
        return [layer[len(model) + 1 :] for layer, model in zip(layers, models, strict=True)]
    return layers


def _depths(models: Any) -> Any:
    depths = np.empty(len(models))
    for model in np.unique(models):
        own = models == model
        depths[own] = np.linspace(0, 1, own.sum())
    return depths


def _meaning(found: xr.Dataset, column: str) -> str:
    name = column if column in found.variables else re.sub(r"_\d+$", "", column)
    attrs = found[name].attrs if name in found.variables else {}
    if "label" in attrs:
        low, high = np.ravel(attrs["valid_range"])
        return f"{attrs['label']}: a {attrs['sense']}, from {low:g} to {high:g}"
    what, _, side = column.rpartition("_")
    if what in _OF_LAYERS:
        return _OF_LAYERS[what].format(side)
    return ": ".join(attrs[key] for key in ("long_name", "description") if key in attrs)


def to_csv(frame: pd.DataFrame) -> str:
    """Write a table as CSV, in which every number reads back to the last bit, and nothing is a formula.

    A spreadsheet runs a cell that begins with ``=``, and layers, samples and classes in a stranger's file can have any
    name: text that begins with ``= + - @`` or a tab gets an apostrophe in front, which is how spreadsheets mark text. A
    carriage return, which would end a row for some readers, becomes a space. Frames and JSON keep names as they are.

    >>> print(to_csv(pd.DataFrame({"layer": ["=cmd|' /C calc'!A0", "fc"], "cka": [-0.1, 1 / 3]})), end="")
    layer,cka
    '=cmd|' /C calc'!A0,-0.1
    fc,0.3333333333333333
    """
    safe = frame.apply(lambda column: column.map(_harmless) if column.dtype.kind not in "fiub" else column)
    return str(safe.rename(columns=_harmless).to_csv(index=False, lineterminator="\n"))


def _harmless(cell: Any) -> Any:
    if not isinstance(cell, str):
        return cell
    text = cell.replace("\r", " ")
    return f"'{text}" if text.startswith(_FORMULA) else text


def to_json(found: xr.Dataset, table: str | None = None) -> dict[str, Any]:
    """Give a result, a study, or one table of either, as JSON values; NaN is null.

    Without ``table`` it is what ``--json`` of ``repsim compare`` and ``repsim universality`` prints.
    """
    if table is not None:
        frame = to_frame(found, table)
        columns = {str(name): nan_to_none(column.tolist()) for name, column in frame.items()}
        rows = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
        return {**{str(key): each for key, each in frame.attrs.items()}, "rows": rows}
    tables_of(found)  # refuses what is neither
    return study_as_json(found) if found.attrs["format"] == STUDY else result_as_json(found)


def export(
    found: xr.Dataset, path: str | os.PathLike[str], table: str | None = None, *, overwrite: bool = False
) -> None:
    """Save a result or a study, or one table of it, as ``.csv`` or ``.json``.

    Raises
    ------
    InvalidInputError
        The name ends otherwise.
    OutputError
        The file exists or cannot be written.
    """
    path = Path(path)
    text = as_text(found, path.suffix.removeprefix("."), table)
    with replacing(path, overwrite=overwrite) as partial:
        partial.write_text(text, encoding="utf-8", newline="")


def as_text(found: xr.Dataset, form: str, table: str | None = None) -> str:
    """What `export` writes, in the form ``csv`` or ``json``."""
    if form == "csv":
        return to_csv(to_frame(found, table))
    if form == "json":
        return json.dumps(to_json(found, table)) + "\n"
    raise InvalidInputError(f"tables are written as .csv or .json, not {form!r}; netCDF is what the file is already")


def study_as_json(found: xr.Dataset) -> dict[str, Any]:
    """A study for programs: the numbers of pairs and shares, and what was said. Matrices of layers are in the file."""

    def plain(name: str) -> dict[str, Any]:
        variable = found[name]
        return {"dims": list(variable.dims), "values": nan_to_none(variable.values.tolist())}

    small = [str(name) for name, each in found.data_vars.items() if not {"layer_a", "sample"} & set(each.dims)]
    return {
        "summary": json.loads(found.attrs["summary"]),
        "warnings": json.loads(found.attrs["warnings"]),
        "samples": found["n_samples"].item(),
        "data": found["data"].item(),
        "coordinates": {
            str(dim): found[dim].values.tolist()
            for dim in found.dims
            if dim in found.coords and dim not in {"sample", "layer_a", "layer_b"}
        },
        "variables": {name: plain(name) for name in small},
    }


def result_as_json(result: xr.Dataset) -> dict[str, Any]:
    """A result for programs."""

    def plain(variable: xr.DataArray) -> dict[str, Any]:
        attrs = {
            key: nan_to_none(value.tolist() if hasattr(value, "tolist") else value)
            for key, value in variable.attrs.items()
        }
        attrs |= {key: json.loads(attrs[key]) for key in ("undefined", "cautions", "remarks") if key in attrs}
        return {**attrs, "values": nan_to_none(variable.values.tolist())}

    sides = {
        side: {
            "models": list(dict.fromkeys(result[f"model_{side}"].values.tolist())),
            "layers": result[f"layer_{side}"].values.tolist(),
        }
        | ({"readouts": result[f"readout_{side}"].values.tolist()} if f"readout_{side}" in result.coords else {})
        for side in "ab"
    }
    return {
        **sides,
        "samples": result["n_samples"].item(),
        "data": result["data"].item(),
        "left_out": json.loads(result.attrs["left_out"]),
        "metrics": {str(name): plain(variable) for name, variable in result.data_vars.items()},
    }


def nan_to_none(values: Any) -> Any:
    """Lists in lists with None for NaN and infinities, which JSON has not."""
    if isinstance(values, Mapping):
        return {key: nan_to_none(value) for key, value in values.items()}
    if isinstance(values, list | tuple):
        return [nan_to_none(value) for value in values]
    return None if isinstance(values, float) and not math.isfinite(values) else values
