"""Build the tables of a series for the terminal and for notebooks."""

import numpy as np
import xarray as xr

from repsim.results.modalities import samples_of
from repsim.results.series_variables import OTHER_RUNS, REFERENCE
from repsim.runtime.text_tables import Table
from repsim.study.formatting import number, probability
from repsim.trends.names import measure_name, reference_in_words

_MOST_ROWS = 40


def all_tables(series: xr.Dataset) -> list[Table]:
    """Return the tables of a series, without those that would be empty."""
    return [table for table in (points(series), layers(series), trends(series)) if table.rows]


def points(series: xr.Dataset) -> Table:
    """Return the table of all points: similarity with the reference and with other runs, mean over layers."""
    measures = series["measure"].values.tolist()
    columns = [(m, c) for c in (REFERENCE, OTHER_RUNS) if c in series["comparison"].values for m in measures]
    heads = (
        *(["run"] if series.attrs["run_axis"] else []),
        f">{series.attrs['axis']}",
        "model",
        *(f">{measure_name(m)}" + (" of runs" if c == OTHER_RUNS else "") for m, c in columns),
    )
    rows = []
    for k, point in enumerate(series["point"].values.tolist()):
        cells = [_with_interval(series.sel(measure=m, comparison=c).isel(point=k), "network") for m, c in columns]
        run = [str(series["run"].values[k])] if series.attrs["run_axis"] else []
        rows.append((*run, f"{series['value'].values[k]:g}", str(point), *cells))
    title = f"similarity with {reference_in_words(series)}, mean over layers (95 % over {samples_of(series)})"
    return Table(title, heads, tuple(rows) if len(rows) <= _MOST_ROWS else tuple(_thinned(rows)))


def _thinned(rows: list[tuple[str, ...]]) -> list[tuple[str, ...]]:
    """Return the first and last rows of a long table, with a row of dots between them."""
    half = _MOST_ROWS // 2
    return [*rows[:half], tuple("..." for _ in rows[0]), *rows[-half:]]


def layers(series: xr.Dataset) -> Table:
    """Return the table of layers: where they have settled, mean over runs; empty for networks of their own."""
    axis = series.attrs["axis"]
    measures = [m for m in series["measure"].values.tolist() if np.isfinite(series["settled"].sel(measure=m)).any()]
    heads = ("layer", ">depth", *(f">settled, {measure_name(m)}" for m in measures))
    if not measures or series.attrs["points"] != "states":
        return Table("layers", heads, ())
    rows = []
    for k, layer in enumerate(series["layer"].values.tolist()):
        cells = []
        for measure in measures:
            of_layer = series.sel(measure=measure).isel(layer=k)
            if series.sizes["one_run"] == 1:
                cells.append(_with_interval(of_layer.isel(one_run=0), "settled", digits="g"))
            else:
                cells.append(f"{float(of_layer['settled'].mean()):.4g}")
        rows.append((str(layer), number(float(series["depth"].values[k])), *cells))
    share = f"{100 * series.attrs['settled_at']:g} %"
    return Table(
        f"{axis} at which layers have gone {share} of the way to their last form, mean over runs", heads, tuple(rows)
    )


def trends(series: xr.Dataset) -> Table:
    """Return the table of trends of the mean over layers."""
    scale = "a factor of 10" if series.attrs["scale"] == "log" else "one unit"
    heads = (
        "measure",
        "with",
        ">Kendall's tau",
        ">p",
        f">slope for {scale}",
        f">over {samples_of(series)}",
        ">over runs",
        ">exponent",
    )
    rows = []
    for comparison in (c for c in (REFERENCE, OTHER_RUNS) if c in series["comparison"].values):
        for measure in series["measure"].values.tolist():
            one = series.sel(measure=measure, comparison=comparison).isel(trend_of=0)
            if not np.isfinite(float(one["trend_slope"])):
                continue
            ends = []
            for over in series["over"].values.tolist():
                low, high = (float(one[f"trend_slope_{end}"].sel(over=over)) for end in ("low", "high"))
                ends.append("-" if np.isnan(low) else f"{number(low)} to {number(high)}")
            p = float(one["trend_p"])
            exponent = float(one["trend_exponent"])
            rows.append(
                (
                    measure_name(measure), comparison, number(float(one["trend_tau"])),
                    "-" if np.isnan(p) else probability(p), number(float(one["trend_slope"])), *ends,
                    "-" if np.isnan(exponent) else number(exponent),
                )
            )  # fmt: skip
    return Table(f"trends along {series.attrs['axis']}", heads, tuple(rows))


def _with_interval(one: xr.Dataset, name: str, digits: str = "") -> str:
    value, low, high = (float(one[f"{name}{end}"]) for end in ("", "_low", "_high"))
    if np.isnan(value):
        return "-"
    if digits:
        return f"{value:.4g}" + ("" if np.isnan(low) else f" ({low:.4g} to {high:.4g})")
    return number(value, low, high)
