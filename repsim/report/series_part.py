"""Make the part of a page that shows a series: models along one axis."""

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from repsim.presentation.series import (
    compared_with,
    is_logarithmic,
    itself,
    log_ticks,
    places,
    ramp,
    range_of,
    references,
    run_name,
    value_texts,
)
from repsim.presentation.stages import boundaries
from repsim.report import captions, packing
from repsim.report.parts import facts_of, models_of
from repsim.report.views import Palettes, texts_of
from repsim.results.modalities import samples_of
from repsim.results.variables import AXIS
from repsim.results.versions import SERIES
from repsim.runtime.text_tables import Table
from repsim.trends import tables

_TABLES = ("blocks", "within")
"""Variables over pairs of layers, packed in single precision."""
_LINES = (
    "similarity", "similarity_low", "similarity_high", "calibrated", "network", "network_low", "network_high",
    "settled", "settled_low", "settled_high",
)  # fmt: skip
_TICKS = 9


def is_series(data: xr.Dataset) -> bool:
    """Return whether a data set is a series."""
    return data.attrs.get("format") == SERIES


def title_of(series: xr.Dataset) -> str:
    """Return the title of the page of a series."""
    runs = series.sizes["one_run"]
    of_runs = f" of {runs} runs" if runs > 1 else ""
    return f"{series.sizes['point']} networks{of_runs} along {series.attrs['axis']}"


def of_series(series: xr.Dataset) -> dict[str, Any]:
    """Make the part of the page for a series: all numbers, labels, colours and tables that the scripts draw."""
    palettes = Palettes()
    names = series["measure"].values.tolist()
    measures = [_about(series, name, palettes) for name in names]
    stores = [store for store in json.loads(series.attrs["stores"]) if isinstance(store, dict)]
    facts = facts_of(series)
    readout = str(series.attrs["readout"])
    layers = series["layer"].values.tolist()
    return {
        "kind": "series",
        "sample": samples_of(series, count=1),
        "samples": samples_of(series),
        "readout": readout,
        "subtitle": captions.subtitle(readout, facts),
        "summary": json.loads(series.attrs["summary"]),
        "warnings": json.loads(series.attrs["warnings"]),
        "axis": str(series.attrs["axis"]),
        "measures": measures,
        "palettes": palettes.stops,
        "comparisons": [
            {"name": name, "label": compared_with(series, name)} for name in series["comparison"].values.tolist()
        ],
        "runs": [{"name": run, "label": run_name(series, run)} for run in series["one_run"].values.tolist()],
        "layers": layers,
        "stages": boundaries(layers) if series.attrs["matched_by"] == "names" else [],
        "layers_title": "layer" if series.attrs["matched_by"] == "names" else "relative depth",
        "depths": series["depth"].values.tolist(),
        "colours": ramp(len(layers)),
        "dark_colours": ramp(len(layers), dark=True),
        "points": _points(series),
        "ticks": _ticks(series),
        "settled_ticks": _ticks(series, series["settled"].values),
        "settled_at": f"{100 * series.attrs['settled_at']:g} %",
        "coords": {
            name: [str(label) for label in series[name].values.tolist()]
            for name in ("measure", "comparison", "point", "layer", "one_run")
        },
        "variables": {name: packing.variable(series[name]) for name in _LINES}
        | {"settled_place": packing.variable(_placed(series))}
        | {
            name: {"dims": list(map(str, series[name].dims)), **packing.single(series[name].values)} for name in _TABLES
        },
        "trends": _as_columns(tables.trends(series)),
        "settling": _as_columns(tables.layers(series)),
        "networks": captions.networks(list(models_of(series, stores)), study=False),
        "facts": facts,
        "sources": captions.sources(measures),
    }


def _about(series: xr.Dataset, name: str, palettes: Palettes) -> dict[str, Any]:
    """Describe a measure, with the colour scale of all its tables."""
    values = np.concatenate([series[table].sel(measure=name).values.ravel() for table in (*_TABLES, "similarity")])
    calibrated = bool(np.isfinite(series["calibrated"].sel(measure=name).values).any())
    return {
        "name": name,
        **texts_of(name),
        "scale": palettes.view(values, range_of(name)),
        "calibrated_scale": palettes.view(values, (0.0, 1.0)) if calibrated else None,
    }


def _points(series: xr.Dataset) -> list[dict[str, Any]]:
    """Describe every point: its place on the axis, its further axes, its layers, and those that it is compared with."""
    values, runs = series["value"].values, series["run"].values.tolist()
    names = series["layer_name"].values
    texts, at = value_texts(values.tolist()), places(series, values)
    further = [str(name) for name in series.coords if str(name).startswith(AXIS)]
    own = itself(series)
    return [
        {
            "name": str(point),
            "run": runs[k],
            "text": texts[k],
            "place": float(at[k]),
            "axes": {name.removeprefix(AXIS): _text(series[name].values[k]) for name in further},
            "layers": [name for name in names[k].tolist() if name],
            "others": _others(series, k),
            "itself": bool(own[k]),
        }
        for k, point in enumerate(series["point"].values.tolist())
    ]


def _others(series: xr.Dataset, k: int) -> dict[str, list[str]]:
    """Return the names of the layers that a point is compared with, numbers where the series does not know them."""
    points, runs, values = (series[name].values for name in ("point", "run", "value"))
    place = {str(name): i for i, name in enumerate(points)}
    previous = k - 1 if k and runs[k - 1] == runs[k] else None
    others = np.flatnonzero((values == values[k]) & (runs != runs[k]))
    compared = {
        "reference": place.get(references(series)[k]),
        "previous": previous,
        "other runs": int(others[0]) if others.size else None,
    }
    names = {}
    for comparison in series["comparison"].values.tolist():
        table = series["blocks"].sel(comparison=comparison).isel(point=k).values
        count = int(np.isfinite(table).any(axis=(0, 1)).sum())  # layers beyond the last have no value
        other = compared[comparison]
        layers = [] if other is None else [name for name in series["layer_name"].values[other].tolist() if name]
        names[comparison] = layers if len(layers) >= count else [f"layer {i + 1}" for i in range(count)]
    return names


def _ticks(series: xr.Dataset, values: NDArray[np.float64] | None = None) -> dict[str, Any]:
    """Return ticks for values of the axis: places and texts, and where the axis changes its scale, if it does."""
    own = series["value"].values
    shown = own if values is None else values[np.isfinite(values)]
    if not is_logarithmic(series) or not shown.size:
        return {"at": None, "texts": None, "break": None}
    positive = shown[shown > 0]
    ticks = log_ticks(float(positive.min()), float(positive.max()), own, _TICKS) if positive.size else []
    zero = bool((shown == 0).any())
    ticks = [*([0.0] if zero else []), *ticks]
    at = places(series, np.array(ticks))
    return {
        "at": at.tolist(),
        "texts": value_texts(ticks),
        "break": float((at[0] + np.log10(own[own > 0].min())) / 2) if zero else None,
    }


def _placed(series: xr.Dataset) -> xr.DataArray:
    """Return the places on the axis at which layers have settled, with the ends of their intervals."""
    ends = [places(series, series[f"settled{end}"].values) for end in ("", "_low", "_high")]
    return xr.DataArray(np.stack(ends, axis=-1), dims=(*series["settled"].dims, "end"))


def _as_columns(table: Table) -> Mapping[str, Any]:
    return {
        "title": table.title,
        "columns": [head.removeprefix(">") for head in table.heads],
        "words": sum(not head.startswith(">") for head in table.heads),
        "rows": [["–" if cell == "-" else cell for cell in row] for row in table.rows],
    }


def _text(value: Any) -> str:
    """Return a further axis as text; empty if the point lacks it."""
    if isinstance(value, str):
        return value
    return "" if np.isnan(value) else value_texts([float(value)])[0]
