"""Convert results, studies and series to tables of pandas, CSV and JSON (docs/reading-stores.md)."""

import json
import math
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from itertools import chain, product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr
from numpy.typing import NDArray

from repsim.errors import InvalidInputError, UnknownNameError
from repsim.results.chance import chance_of
from repsim.results.intervals import ends_of, interval_in_words
from repsim.results.variables import AXIS, CHANCE, ENDS
from repsim.results.versions import FORMAT, SERIES, STUDY
from repsim.runtime.deprecation import rename_keyword
from repsim.runtime.files import replacing

RESULT_TABLE = "layers"
"""Name of the only table of a comparison."""
STUDY_TABLES: dict[str, tuple[str, ...]] = {
    "pairs": ("measure", "pair"),
    "layers": ("measure", "layer_a", "layer_b"),
    "matches": ("measure", "pair", "direction", "position"),
    "means": ("kernel", "kind_of_pair"),
    "shares": ("state", "share_of", "depth"),
    "mean_shares": ("state", "share_of"),
    "families": ("measure", "families"),
    "controls": ("measure", "families", "control_pair"),
    "within": ("kernel", "one_family"),
    "networks": ("kernel", "network"),
    "network_pairs": ("kernel", "network", "other_network"),
    "models": ("map", "model"),
    "model_pairs": ("map", "model", "other_model"),
    "maps": ("map",),
    "layer_map": ("layer_a",),
    "samples": ("kernel", "sample"),
    "agreement": ("kernel",),
}
"""Tables of a study -> dimensions of their rows. Every variable with exactly these dimensions is a column.

Columns are also the variables of kernels in a table of measures that has families (empty for other measures), and those
of `_REPEATED`."""
SERIES_TABLES: dict[str, tuple[str, ...]] = {
    "points": ("measure", "comparison", "point"),
    "layers": ("measure", "comparison", "point", "layer"),
    "trends": ("measure", "comparison", "trend_of"),
    "settled": ("measure", "one_run", "layer"),
    "blocks": ("measure", "comparison", "point", "own_layer", "other_layer"),
    "within": ("measure", "point", "own_layer", "other_layer"),
    "every_point": ("measure", "point", "other_point", "layer"),
}
"""Tables of a series -> dimensions of their rows. ``layers`` has the speed, too."""
_REPEATED = {
    "families": ("families",),
    "means": ("kind_of_pair",),
    "networks": ("network",),
    "layers": ("measure", "point", "layer"),
}
"""Tables -> dimensions of variables that are repeated in them."""
_AXES = {"axis", "layer_axis"}
"""Dimensions whose entries become columns, so that a point of a map is one row."""
_OVER = "over"
"""Dimension whose entries become columns with their names, such as ``trend_slope_low_runs``."""
_FORMULA = ("=", "+", "-", "@", "\t")
"""First characters of formulas in spreadsheets."""
_ROWS = 65_536
"""Largest number of rows of a table that are converted to text at once."""

_LAYER_COLUMNS = {
    "features": "values a sample of layer {}",
    "depth": "relative depth of layer {} among those compared of its model, 0 the first and 1 the last",
}
"""Meanings of columns that describe the layers of one side; the file explains the other columns."""


@rename_keyword("found", "dataset", gone_in="2.0.0")
def to_frame(dataset: xr.Dataset, table: str | None = None) -> pd.DataFrame:
    """Convert a comparison, a study or a series to a tidy table, with a row for each pair of layers, point, and so on.

    Each variable is a column. Rows are in the order of the file; the first dimension of the table varies slowest. The
    first columns identify the row, the others hold its values, which are exactly those of the file.

    Parameters
    ----------
    dataset : xarray.Dataset
        A result of `repsim.compare` or `repsim.open_result`, a study of `repsim.universality` or `repsim.open_study`,
        or a series of `repsim.series` or `repsim.open_series`.
    table : str, optional
        For a comparison ``layers``, with a row for each pair of layers and a column for each metric. For a study one of
        `STUDY_TABLES`; by default ``pairs``, with a row for each measure and pair of models. For a series one of
        `SERIES_TABLES`; by default ``points``, with a row for each measure, comparison and point.

    Returns
    -------
    pandas.DataFrame
        The table. Its ``attrs`` hold the name of the ``table``, the ``data``, the number of ``samples``, and the
        meanings of ``columns``, by name.

    Raises
    ------
    UnknownNameError
        There is no such table; the message lists the nearest names.
    InvalidInputError
        The data set is no comparison, study or series, or lacks the table (for example a study of one model).

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
    name, shape, columns = _table(dataset, table)
    frame = pd.DataFrame({column: np.broadcast_to(values, shape).ravel() for column, values in columns.items()})
    frame.attrs.update(_about(dataset, name, columns))
    return frame


def _table(dataset: xr.Dataset, table: str | None) -> tuple[str, tuple[int, ...], dict[str, NDArray[Any]]]:
    """Return the name of a table, the sizes of its dimensions, and its columns, to be broadcast to these sizes."""
    tables = tables_of(dataset)
    name = table or next(iter(tables))
    if name not in tables:
        raise UnknownNameError("table", name, tables, where=f"there are {', '.join(tables)}")
    dims = tables[name]
    if missing := [dim for dim in dims if dim not in dataset.sizes]:
        kind = "series" if tables is SERIES_TABLES else "study"
        raise InvalidInputError(f"this {kind} has no table {name!r}: there is no {missing[0]} in it")
    complete = dataset if "families" not in dims else _with_kernels_as_measures(dataset)
    shape = tuple(dataset.sizes[dim] for dim in dims)
    return name, shape, dict(_columns(complete, dims, _REPEATED.get(name, ())))


def _about(dataset: xr.Dataset, table: str, columns: Iterable[str]) -> dict[str, Any]:
    """Return the attributes of a table: its name, data and samples, and the meanings of its columns."""
    return {
        "table": table,
        "data": dataset["data"].item(),
        "samples": dataset["n_samples"].item(),
        "columns": {column: text for column in columns if (text := _meaning(dataset, column))},
    }


def tables_of(data: xr.Dataset) -> dict[str, tuple[str, ...]]:
    """Return the names of the tables of a data set, with the dimensions of their rows; the default first.

    Raises
    ------
    InvalidInputError
        The data set is no comparison, study or series.
    """
    form = data.attrs.get("format")
    if form == STUDY:
        return STUDY_TABLES
    if form == SERIES:
        return SERIES_TABLES
    if form == FORMAT:
        return {RESULT_TABLE: ("layer_a", "layer_b")}
    raise InvalidInputError(
        "expected a result of repsim.compare, a study of repsim.universality or a series of repsim.series; the "
        f"attribute 'format' is {form!r}"
    )


def _with_kernels_as_measures(study: xr.Dataset) -> xr.Dataset:
    """Return the study with variables of kernels and pairs of families as variables of measures."""
    of_both = [name for name, values in study.data_vars.items() if {"kernel", "families"} <= set(values.dims)]
    spread = {name: study[name].reindex(kernel=study["measure"].values).rename(kernel="measure") for name in of_both}
    return study.drop_vars(of_both).assign(spread)


def _columns(data: xr.Dataset, dims: tuple[str, ...], over: tuple[str, ...] = ()) -> Iterator[tuple[str, Any]]:
    """Yield names and values of the columns: first those that identify the row, then the variables.

    Variables with the dimensions ``over`` are repeated along the others. Values have all dimensions of the table; those
    along which they are repeated have the size 1.
    """

    def repeated(values: Any, *over: str) -> Any:
        return np.asarray(values).reshape([data.sizes[dim] if dim in over else 1 for dim in dims])

    for dim in dims:
        for name, values in _labels(data, dim):
            yield name, repeated(values, dim)
    for key, variable in data.data_vars.items():
        name = str(key)
        if set(variable.dims) == set(dims):
            yield name, variable.transpose(*dims).values
            for along in (name + end for end in (CHANCE, *ENDS) if name + end in data.coords):
                yield along, data[along].transpose(*dims).values
        elif over and variable.dims == over:
            yield name, repeated(variable.values, *over)
        elif variable.dims[:-1] == dims and variable.dims[-1] in _AXES:
            for k in range(variable.shape[-1]):
                yield f"{name}_{k + 1}", variable.values[..., k]
        elif variable.dims == (*dims, _OVER):
            for k, over_what in enumerate(data[_OVER].values):
                yield f"{name}_{over_what}", variable.values[..., k]


def _labels(data: xr.Dataset, dim: str) -> Iterator[tuple[str, Any]]:
    """Yield names and values of the coordinates along one dimension; of layers the model comes first."""
    if dim not in data.coords:
        yield dim, np.arange(data.sizes[dim])
        return
    others = sorted(str(name) for name, values in data.coords.items() if values.dims == (dim,) and name != dim)
    side = dim.removeprefix("layer")
    if dim == "pair":
        yield from ((name, data[name].values) for name in (dim, *others))
        yield from _axes_of_pairs(data)
        return
    if side not in {"_a", "_b"}:
        yield from ((name, data[name].values) for name in (dim, *others))
        return
    models = data[f"model{side}"].values
    yield f"model{side}", models
    yield dim, _without_model(data[dim].values, models)
    yield f"depth{side}", _depths(models)
    yield from ((name, data[name].values) for name in others if name != f"model{side}")


def _axes_of_pairs(study: xr.Dataset) -> Iterator[tuple[str, Any]]:
    """Yield the axes of both models of each pair of a study: ``axis_step_a``, ``axis_step_b``."""
    position = {model: k for k, model in enumerate(study["model"].values.tolist())}
    for name in sorted(str(key) for key, values in study.coords.items() if values.dims == ("model",)):
        for side in "ab" if name.startswith(AXIS) else "":
            models = study[f"pair_{side}"].values.tolist()
            yield f"{name}_{side}", study[name].values[[position[model] for model in models]]


def _without_model(layers: Any, models: Any) -> Any:
    """Remove the model from names ``model/layer``, which results with several models on one side have."""
    if all(layer.startswith(f"{model}/") for layer, model in zip(layers, models, strict=True)):
        return [layer[len(model) + 1 :] for layer, model in zip(layers, models, strict=True)]
    return layers


def _depths(models: Any) -> Any:
    """Return the relative depth of every layer in its model, from 0 for the first to 1 for the last."""
    depths = np.empty(len(models))
    for model in np.unique(models):
        own = models == model
        depths[own] = np.linspace(0, 1, own.sum())
    return depths


def _meaning(data: xr.Dataset, column: str) -> str:
    name = column
    if column not in data.variables:  # spread along a dimension whose entries are columns
        ends = [*map(re.escape, data[_OVER].values), r"\d+"] if _OVER in data.coords else [r"\d+"]
        name = re.sub(rf"_({'|'.join(ends)})$", "", column)
    attrs = data[name].attrs if name in data.variables else {}
    if name.endswith(CHANCE):
        return f"mean value of {name.removesuffix(CHANCE)} for unrelated layers"
    stem, _, end = name.rpartition(".")
    if f".{end}" in ENDS and stem in data.data_vars:
        side = {"low": "lower", "high": "upper"}[end]
        return f"{side} end of the {interval_in_words(data[stem])} of {stem}"
    if "label" in attrs:
        low, high = np.ravel(attrs["valid_range"])
        return f"{attrs['label']}: a {attrs['sense']}, from {low:g} to {high:g}"
    prefix, _, side = column.rpartition("_")
    if prefix in _LAYER_COLUMNS:
        return _LAYER_COLUMNS[prefix].format(side)
    if not attrs and prefix.startswith(AXIS):
        return f"{prefix.removeprefix(AXIS)} of model {side}"
    return ": ".join(attrs[key] for key in ("long_name", "description") if key in attrs)


def to_csv(frame: pd.DataFrame) -> str:
    """Convert a table to CSV with exact numbers and without formulas.

    A spreadsheet runs a cell that begins with ``=``, and a file of unknown origin can contain any name. Therefore text
    that begins with ``= + - @`` or a tab gets an apostrophe in front, with which spreadsheets mark text. A carriage
    return, which some programs read as the end of a row, becomes a space. Data frames and JSON keep names unchanged.

    >>> print(to_csv(pd.DataFrame({"layer": ["=cmd|' /C calc'!A0", "fc"], "cka": [-0.1, 1 / 3]})), end="")
    layer,cka
    '=cmd|' /C calc'!A0,-0.1
    fc,0.3333333333333333
    """
    safe = frame.apply(lambda column: column.map(_without_formula) if column.dtype.kind not in "fiub" else column)
    return str(safe.rename(columns=_without_formula).to_csv(index=False, lineterminator="\n"))


def _without_formula(cell: Any) -> Any:
    """Mark text that a spreadsheet would run as a formula, and replace carriage returns."""
    if not isinstance(cell, str):
        return cell
    text = cell.replace("\r", " ")
    return f"'{text}" if text.startswith(_FORMULA) else text


_SAFE = np.frompyfunc(_without_formula, 1, 1)


def to_json(data: xr.Dataset, table: str | None = None) -> dict[str, Any]:
    """Convert a result, a study, a series, or one table of it, to JSON values; NaN becomes null.

    Without ``table`` the value is the one that the command prints with ``--json``.
    """
    if table is not None:
        frame = to_frame(data, table)
        return {**{str(key): value for key, value in frame.attrs.items()}, "rows": _rows(frame)}
    tables_of(data)  # raises an error for other data sets
    convert = {STUDY: study_as_json, SERIES: series_as_json, FORMAT: result_as_json}[data.attrs["format"]]
    return convert(data)


def _rows(frame: pd.DataFrame) -> list[dict[str, Any]]:
    columns = {str(name): nan_to_none(column.tolist()) for name, column in frame.items()}
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def export(
    data: xr.Dataset, path: str | os.PathLike[str], table: str | None = None, *, overwrite: bool = False
) -> None:
    """Save a result, a study or a series, or one table of it, as CSV or JSON.

    Tables are converted and written in pieces, so that millions of rows take little memory.

    Parameters
    ----------
    data : xarray.Dataset
        The result, the study or the series.
    path : str or path
        The file; its suffix, ``.csv`` or ``.json``, decides the format.
    table : str, optional
        The table, as in `repsim.to_frame`. By default the first table as CSV, or everything as JSON.
    overwrite : bool
        Replace an existing file.

    Raises
    ------
    InvalidInputError
        The suffix is another one.
    OutputError
        The file exists or cannot be written.
    """
    path = Path(path)
    pieces = text_pieces(data, path.suffix.removeprefix("."), table)
    first = next(pieces)  # raises the errors about the data before a file is made
    with replacing(path, overwrite=overwrite) as partial, partial.open("w", encoding="utf-8", newline="") as file:
        file.writelines(chain([first], pieces))


def text_pieces(data: xr.Dataset, form: str, table: str | None = None) -> Iterator[str]:
    """Yield the text that `export` writes, in the form ``csv`` or ``json``, as pieces of a limited number of rows.

    So a table of millions of rows, as of a thousand layers with a thousand, takes little memory.
    """
    if form == "csv":
        yield from _csv_pieces(data, table)
        return
    if form == "json":
        yield from [json.dumps(to_json(data)), "\n"] if table is None else _json_pieces(data, table)
        return
    raise InvalidInputError(f"tables are written as .csv or .json, not {form!r}; repsim.save_result writes netCDF")


def _csv_pieces(data: xr.Dataset, table: str | None) -> Iterator[str]:
    """Yield a table as CSV, as `to_csv` writes it. Names are checked for formulas once, and not in every row."""
    _, shape, columns = _table(data, table)
    safe = {name: values if values.dtype.kind in "fiub" else _SAFE(values) for name, values in columns.items()}
    for k, frame in enumerate(_frames(safe, shape)):
        renamed = frame.rename(columns=_without_formula)
        yield str(renamed.to_csv(index=False, header=not k, lineterminator="\n"))


def _json_pieces(data: xr.Dataset, table: str) -> Iterator[str]:
    """Yield a table as JSON, as `to_json` converts it."""
    name, shape, columns = _table(data, table)
    yield json.dumps({**_about(data, name, columns), "rows": []}).removesuffix("]}")
    for k, frame in enumerate(_frames(columns, shape)):
        rows = json.dumps(_rows(frame))[1:-1]
        yield f", {rows}" if k and rows else rows
    yield "]}\n"


def _frames(columns: Mapping[str, NDArray[Any]], shape: tuple[int, ...]) -> Iterator[pd.DataFrame]:
    """Yield the rows of a table as data frames of at most `_ROWS` rows, in order; one without rows if it has none."""
    whole = {name: np.broadcast_to(values, shape) for name, values in columns.items()}
    for at in _runs(shape, _ROWS):
        yield pd.DataFrame({name: values[at].ravel() for name, values in whole.items()})


def _runs(shape: tuple[int, ...], most: int) -> Iterator[tuple[Any, ...]]:
    """Yield indices that divide an array into runs of at most ``most`` values, in the order of the values.

    >>> list(_runs((2, 5), 4))
    [(0, slice(0, 4, None)), (0, slice(4, 8, None)), (1, slice(0, 4, None)), (1, slice(4, 8, None))]
    >>> list(_runs((2, 2), 4))
    [(slice(0, 2, None),)]
    """
    axis = next((k for k in range(len(shape)) if math.prod(shape[k + 1 :]) <= most), len(shape) - 1)
    step = max(1, most // max(1, math.prod(shape[axis + 1 :])))
    for before in product(*map(range, shape[:axis])):
        for first in range(0, max(1, shape[axis]), step):
            yield (*before, slice(first, first + step))


def study_as_json(data: xr.Dataset) -> dict[str, Any]:
    """Convert a study to JSON values: its sentences and all variables except those of layers and samples."""
    small = [str(name) for name, values in data.data_vars.items() if not {"layer_a", "sample"} & set(values.dims)]
    return {
        "summary": json.loads(data.attrs["summary"]),
        "warnings": json.loads(data.attrs["warnings"]),
        "samples": data["n_samples"].item(),
        "data": data["data"].item(),
        **_axes_by_model(data, "model", ""),
        "coordinates": {
            str(dim): data[dim].values.tolist()
            for dim in data.dims
            if dim in data.coords and dim not in {"sample", "layer_a", "layer_b"}
        },
        "variables": {name: _as_json(data[name]) for name in small},
    }


def series_as_json(data: xr.Dataset) -> dict[str, Any]:
    """Convert a series to JSON values: its sentences, and all variables except those of pairs."""
    large = {"own_layer", "other_layer", "other_point"}
    small = [name for name, values in data.variables.items() if not large & set(values.dims)]
    return {
        "summary": json.loads(data.attrs["summary"]),
        "warnings": json.loads(data.attrs["warnings"]),
        "samples": data["n_samples"].item(),
        "data": data["data"].item(),
        "axis": data.attrs["axis"],
        "reference": data.attrs["reference"],
        "settled_at": data.attrs["settled_at"],
        "coordinates": {str(name): _as_json(data[name]) for name in small if name in data.coords and data[name].ndim},
        "variables": {str(name): _as_json(data[name]) for name in small if name in data.data_vars},
    }


def _as_json(variable: xr.DataArray) -> dict[str, Any]:
    return {"dims": list(variable.dims), "values": nan_to_none(variable.values.tolist())}


def _axes_by_model(data: xr.Dataset, models: str, end: str) -> dict[str, Any]:
    """Return the entry ``axes``: for every model the axes on which it has a value; no entry if no model has axes."""
    axes: dict[str, dict[str, Any]] = {model: {} for model in data[models].values.tolist()}
    dims = data[models].dims
    for name in (str(key) for key, values in data.coords.items() if values.dims == dims):
        if name.startswith(AXIS) and name.endswith(end):
            for model, value in zip(data[models].values.tolist(), data[name].values.tolist(), strict=True):
                if value == value and value != "":  # noqa: PLR0124 - NaN is not equal to itself
                    axes[model][name[len(AXIS) : len(name) - len(end)]] = value
    return {"axes": axes} if any(axes.values()) else {}


def result_as_json(result: xr.Dataset) -> dict[str, Any]:
    """Convert a result to JSON values."""

    def plain(variable: xr.DataArray) -> dict[str, Any]:
        attrs = {
            key: nan_to_none(value.tolist() if hasattr(value, "tolist") else value)
            for key, value in variable.attrs.items()
        }
        attrs |= {key: json.loads(attrs[key]) for key in ("undefined", "cautions", "remarks") if key in attrs}
        tables = {"values": variable.values}
        if (levels := chance_of(variable)) is not None and attrs["chance"] == "known":
            tables["chance_values"] = levels
        if "interval" in attrs:
            tables |= dict(zip(("low", "high"), ends_of(variable), strict=True))
        return attrs | {key: nan_to_none(table.tolist()) for key, table in tables.items()}

    sides = {
        side: {
            "models": list(dict.fromkeys(result[f"model_{side}"].values.tolist())),
            "layers": result[f"layer_{side}"].values.tolist(),
            **_axes_by_model(result, f"model_{side}", f"_{side}"),
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
    """Replace NaN and infinities in nested lists and dictionaries by None, because JSON does not have them."""
    if isinstance(values, Mapping):
        return {key: nan_to_none(value) for key, value in values.items()}
    if isinstance(values, list | tuple):
        return [nan_to_none(value) for value in values]
    return None if isinstance(values, float) and not math.isfinite(values) else values
