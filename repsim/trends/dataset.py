"""Make the data set of a series from the similarities of its points."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np
import xarray as xr
from jaxtyping import Float64

from repsim._version import __version__
from repsim.engine.uncertainty import influence, jackknife, multiplier_bootstrap
from repsim.metrics import Metric
from repsim.results.coordinates import axis_coordinates
from repsim.results.series_variables import NETWORK, OTHER_RUNS, OVER, PREVIOUS, REFERENCE, describe_series
from repsim.results.versions import SERIES, SERIES_VERSION
from repsim.study.other_measures import identity_value
from repsim.trends.arrangement import Arrangement, Point
from repsim.trends.estimates import Estimate, Measured, common_layers, estimate, mean_over_layers, within
from repsim.trends.names import GIVEN_INPUT
from repsim.trends.options import SeriesOptions
from repsim.trends.trend import Scale, exponent, kendall, over_pairs_of_runs, over_runs, settled, slope
from repsim.trends.words import summary, warnings
from repsim.trends.work import Records, Work

_LEVEL = (2.5, 97.5)
_DRAWS = 1000
_ENDS = ("low", "high")
Values = dict[str, Float64[np.ndarray, "..."]]


@dataclass(frozen=True, eq=False)
class Finished:
    """A series whose records are complete."""

    arranged: Arrangement
    records: Records
    work: Work
    options: SeriesOptions
    scale: Scale
    states: bool
    """Whether the points of a run are states of one network."""
    notes: tuple[str, ...]
    """Warnings from before the computation."""
    every_point: Mapping[str, Float64[np.ndarray, "kinds points points G"]] | None = None
    """Similarities of all pairs of points, by the spec of the measure."""

    @property
    def measures(self) -> list[Measured]:
        """Measures of the data set: debiased CKA, raw and given the input, and the others."""
        own = [Measured("cka", "cka", 0, 1.0)]
        if self.work.kinds > 1:
            own.append(Measured(GIVEN_INPUT, "cka", 1, 1.0))
        return [
            *own,
            *(Measured(m.spec, m.spec, 0, identity_value(m), directed=not m.symmetric) for m in self.work.metrics),
        ]

    @property
    def x(self) -> Float64[np.ndarray, " points"]:
        """Values of the points on the axis."""
        return np.array([point.value for point in self.arranged.points])

    def positions(self, run: str) -> list[int]:
        """Return the positions of the points of a run."""
        return [k for k, point in enumerate(self.arranged.points) if point.run == run]


def series_dataset(finished: Finished, command: str) -> xr.Dataset:
    """Return the data set of a series, with summary and warnings."""
    arranged, measures = finished.arranged, finished.measures
    comparisons = arranged.comparisons
    variables: dict[str, tuple[tuple[str, ...], Any]] = {}
    of_comparisons: list[list[Values]] = []
    of_measures: list[Values] = []
    for measured in measures:
        estimates = {kind: estimate(arranged, finished.records, measured, kind) for kind in comparisons}
        of_comparisons.append([_of_comparison(finished, estimates[kind], kind, measured) for kind in comparisons])
        of_measures.append(_of_measure(finished, estimates, measured))
    for name in of_comparisons[0][0]:
        stacked = np.stack([[values[name] for values in row] for row in of_comparisons])
        variables[name] = ("measure", "comparison", *_DIMS[name]), stacked
    for name in of_measures[0]:
        variables[name] = ("measure", *_DIMS[name]), np.stack([values[name] for values in of_measures])
    data = xr.Dataset(variables, coords=_coordinates(finished), attrs=_attributes(finished, command))
    describe_series(data)
    data.attrs["summary"] = json.dumps(summary(data))
    data.attrs["warnings"] = json.dumps([*warnings(data), *finished.notes])
    return data


_DIMS: Mapping[str, tuple[str, ...]] = {
    **dict.fromkeys(["similarity", "similarity_low", "similarity_high", "threshold", "calibrated"], ("point", "layer")),
    **dict.fromkeys(["network", "network_low", "network_high", "gain", "gain_low", "gain_high"], ("point",)),
    "blocks": ("point", "own_layer", "other_layer"),
    **dict.fromkeys(["trend_tau", "trend_p", "trend_slope", "trend_exponent"], ("trend_of",)),
    **{f"trend_{name}_{end}": ("trend_of", "over") for name in ("slope", "exponent") for end in _ENDS},
    "within": ("point", "own_layer", "other_layer"),
    "speed": ("point", "layer"),
    **dict.fromkeys(["settled", "settled_low", "settled_high"], ("one_run", "layer")),
    **dict.fromkeys(["depth_order", "depth_order_low", "depth_order_high"], ("one_run",)),
    "every_point": ("point", "other_point", "layer"),
}


def _with_ends(name: str, values: Any, left_out: Any) -> Values:
    """Return values with their 95 % jackknife interval; without one if there are no values without single samples."""
    if not len(left_out):
        return {name: values, **{f"{name}_{end}": np.full_like(values, np.nan) for end in _ENDS}}
    interval = jackknife(values, left_out)
    return {name: values, f"{name}_low": interval.low, f"{name}_high": interval.high}


def _of_comparison(finished: Finished, estimates: Estimate, comparison: str, measured: Measured) -> Values:
    """Return all variables of one measure and one kind of comparison."""
    similarity, left_out = estimates.values, estimates.left_out
    threshold = estimates.threshold if measured.identity == 1 else np.full_like(similarity, np.nan)
    layers = common_layers(similarity)
    network, network_left = mean_over_layers(similarity, layers), mean_over_layers(left_out, layers)
    first = np.array([finished.positions(point.run)[0] for point in finished.arranged.points])
    trend = _trends(finished, comparison, np.column_stack([network, similarity]),
                    np.concatenate([network_left[..., None], left_out], -1), measured)  # fmt: skip
    with np.errstate(invalid="ignore"):
        calibrated = np.clip((similarity - threshold) / (1 - threshold), 0, 1)  # equal layers may round to above 1
    return {
        **_with_ends("similarity", similarity, left_out),
        **_with_ends("network", network, network_left),
        **_with_ends("gain", network - network[first], network_left - network_left[:, first]),
        "threshold": threshold,
        "calibrated": calibrated,
        "blocks": estimates.blocks,
        **trend,
    }


def _trends(
    finished: Finished,
    comparison: str,
    y: Float64[np.ndarray, "points of"],
    left_out: Float64[np.ndarray, "units points of"],
    measured: Measured,
) -> Values:
    """Return the trends of the mean over layers and of every layer; a point compared with itself does not count."""
    arranged = finished.arranged
    itself = np.array([comparison == REFERENCE and arranged.reference_of(p) is p for p in arranged.points])
    y, left_out = np.where(itself[:, None], np.nan, y), np.where(itself[:, None], np.nan, left_out)
    if comparison == OTHER_RUNS:  # a place that only some runs have is the mean of other pairs
        partial = np.array([len(arranged.others(p)) < len(arranged.runs) - 1 for p in arranged.points])
        y, left_out = np.where(partial[:, None], np.nan, y), np.where(partial[:, None], np.nan, left_out)
    x = finished.scale(finished.x)
    columns = y.shape[1]
    values = {name: np.full(columns, np.nan) for name in ("tau", "p", "slope", "exponent")}
    ends = {f"{name}_{end}": np.full((columns, len(OVER)), np.nan) for name in ("slope", "exponent") for end in _ENDS}
    runs = [np.array(finished.positions(run)) for run in arranged.runs]
    fits: dict[str, Callable[[Any, Any], Any]] = {
        "slope": lambda positions, of_points: slope(x[positions], of_points),
        "exponent": lambda positions, of_points: exponent(finished.x[positions], of_points, measured.identity),
    }
    for k in range(columns):
        if comparison == OTHER_RUNS:  # values of runs share pairs of runs, so that their mean is ranked, once
            rank = kendall([mean_over_runs(finished.x, y[:, k])])
        else:
            rank = kendall([(finished.x[run], y[run, k]) for run in runs])
        values["tau"][k], values["p"][k] = rank.tau, np.nan if finished.states else rank.p
        for name, fit in fits.items():
            of_runs = np.array([fit(run, y[run, k]) for run in runs])
            means = over_pairs_of_runs(of_runs) if comparison == OTHER_RUNS else over_runs(of_runs)
            values[name][k] = means.mean
            ends[f"{name}_low"][k, 1], ends[f"{name}_high"][k, 1] = means.low, means.high
            if name == "slope" and finished.states:
                values["p"][k] = means.p
            if len(left_out) and np.isfinite(means.mean):
                fitted = [run for run, value in zip(runs, of_runs, strict=True) if np.isfinite(value)]
                without = np.mean([fit(run, left_out[:, run, k]) for run in fitted], axis=0)
                interval = jackknife(means.mean, without)
                ends[f"{name}_low"][k, 0], ends[f"{name}_high"][k, 0] = float(interval.low), float(interval.high)
    return {f"trend_{name}": of_all for name, of_all in (values | ends).items()}


def mean_over_runs(
    x: Float64[np.ndarray, " points"], y: Float64[np.ndarray, " points"]
) -> tuple[Float64[np.ndarray, " places"], Float64[np.ndarray, " places"]]:
    """Return the places on the axis, and the mean of the points at each that have a value.

    >>> mean_over_runs(np.array([1.0, 2.0, 1.0, 2.0]), np.array([0.25, 0.5, 0.75, np.nan]))
    (array([1., 2.]), array([0.5, 0.5]))
    """
    defined = np.isfinite(y)
    places, inverse = np.unique(x[defined], return_inverse=True)
    return places, np.bincount(inverse, y[defined], len(places)) / np.bincount(inverse, minlength=len(places))


def _of_measure(finished: Finished, estimates: Mapping[str, Estimate], measured: Measured) -> Values:
    """Return all variables of one measure that belong to no single kind of comparison."""
    arranged = finished.arranged
    values: Values = {
        "within": within(arranged, finished.records, measured),
        "speed": _speed(finished, estimates.get(PREVIOUS), measured),
        **_settled(finished, estimates.get(REFERENCE), measured),
    }
    if finished.every_point is not None:
        values["every_point"] = finished.every_point[measured.spec][measured.kind]
    return values


def _speed(finished: Finished, previous: Estimate | None, measured: Measured) -> Float64[np.ndarray, "points G"]:
    """Return the angle to the previous point for each unit of the axis; only of cosines."""
    shape = len(finished.arranged.points), len(finished.arranged.layers)
    if previous is None or measured.spec != "cka":
        return np.full(shape, np.nan)
    distance = np.full(len(finished.x), np.nan)
    for run in finished.arranged.runs:
        positions = finished.positions(run)
        distance[positions[1:]] = np.diff(finished.x[positions])
    return np.asarray(np.arccos(np.clip(previous.values, -1, 1)) / distance[:, None])


def _settled(finished: Finished, reference: Estimate | None, measured: Measured) -> Values:
    """Return where layers have settled, of every run, and how this depends on depth; only against the last point."""
    arranged, options = finished.arranged, finished.options
    layers = len(arranged.layers)
    shape = len(arranged.runs), layers
    values = {f"settled{end}": np.full(shape, np.nan) for end in ("", "_low", "_high")}
    order = {f"depth_order{end}": np.full(shape[0], np.nan) for end in ("", "_low", "_high")}
    bounded = np.isfinite(measured.identity)
    if reference is None or options.reference != "last" or arranged.outside is not None or not bounded:
        return values | order
    for k, run in enumerate(arranged.runs):
        positions = finished.positions(run)
        if len(positions) < 3:  # first and last alone say nothing about when
            continue
        x, y = finished.x[positions], reference.values[positions]

        def of(similarities: Any, x: Any = x) -> Float64[np.ndarray, "*batch G"]:
            return settled(
                x, np.moveaxis(similarities, -2, -1), share=options.settled_at, scale=finished.scale,
                most=measured.identity,
            )  # fmt: skip

        values["settled"][k] = of(y)
        order["depth_order"][k] = depth_order(values["settled"][k])
        left_out = reference.left_out[:, positions]
        if not len(left_out):
            continue
        draws = multiplier_bootstrap(y, influence(y, left_out), draws=_DRAWS, seed=options.seed)
        drawn = of(draws)
        with np.errstate(invalid="ignore"):
            defined = np.isfinite(values["settled"][k])
            ends = np.nanpercentile(np.where(defined, drawn, 0), _LEVEL, axis=0)
        values["settled_low"][k], values["settled_high"][k] = np.where(defined, ends, np.nan)
        orders = np.array([depth_order(row) for row in drawn])
        if np.isfinite(orders).any():
            order["depth_order_low"][k], order["depth_order_high"][k] = np.nanpercentile(orders, _LEVEL)
    return values | order


def depth_order(settled_at: Float64[np.ndarray, " G"]) -> float:
    """Return Kendall's tau of depth and the value at which layers have settled: 1 if lower layers settle first."""
    used = settled_at[np.isfinite(settled_at)]
    signs = np.sign(np.subtract.outer(used, used))
    pairs = len(used) * (len(used) - 1) / 2
    return float(np.tril(signs, -1).sum() / pairs) if pairs else float("nan")


def _coordinates(finished: Finished) -> dict[str, Any]:
    arranged = finished.arranged
    deepest = max(len(point.arrays) for point in arranged.everything)
    names = np.full((len(arranged.points), deepest), "", object)
    for k, point in enumerate(arranged.points):
        names[k, : len(point.layers)] = point.layers
    points = [point.name for point in arranged.points]
    coordinates: dict[str, Any] = {
        "point": points,
        "value": ("point", finished.x),
        "run": ("point", [point.run for point in arranged.points]),
        **_further_axes(arranged.points, arranged.axis),
        "layer": list(arranged.layers),
        "depth": ("layer", list(arranged.depths)),
        "measure": [measured.name for measured in finished.measures],
        "comparison": list(arranged.comparisons),
        "own_layer": np.arange(deepest),
        "other_layer": np.arange(deepest),
        "layer_name": (("point", "own_layer"), names.astype(str)),
        "one_run": list(arranged.runs),
        "trend_of": [NETWORK, *arranged.layers],
        "over": list(OVER),
        "n_samples": finished.work.n,
        "data": _data(arranged),
    }
    if finished.every_point is not None:
        coordinates["other_point"] = points
    return coordinates


def _data(arranged: Arrangement) -> str:
    """Return what the samples are; of pairs of several sets, the first set and how many are paired with it."""
    first, *others = dict.fromkeys(point.store.data for point in arranged.everything)
    return f"{first} (paired with {len(others)} other set{'s' * (len(others) > 1)})" if others else first


def _further_axes(points: Sequence[Point], axis: str) -> dict[str, Any]:
    """Return a coordinate for every axis but that of the series."""
    further = [{name: value for name, value in point.axes.items() if name != axis} for point in points]
    return {name: ("point", values) for name, values in axis_coordinates(further).items()}


def _attributes(finished: Finished, command: str) -> dict[str, Any]:
    arranged = finished.arranged
    pairing = finished.work.view.pairing
    return {
        "format": SERIES,
        "format_version": SERIES_VERSION,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "repsim_version": __version__,
        "command": command,
        "samples_fingerprint": finished.work.view.fingerprint,
        **({} if pairing is None else {"pairing": json.dumps(pairing.record)}),
        "summary": "[]",
        "warnings": "[]",
        "stores": json.dumps(
            [{"model": p.name, "checksum": p.checksum, "provenance": p.store.provenance} for p in arranged.everything]
        ),
        "axis": arranged.axis,
        "scale": finished.scale.name,
        "points": "states" if finished.states else "networks",
        "run_axis": arranged.run_axis or "",
        "reference": arranged.reference,
        "matched_by": arranged.matched_by,
        "settled_at": finished.options.settled_at,
        "readout": arranged.points[0].readout,
        "distances": json.dumps([metric.spec for metric in finished.work.metrics if metric.sense == "distance"]),
        "input_controls": json.dumps([control.name for control in finished.work.controls]),
        "seed": finished.options.seed,
    }


def selected_metrics(metrics: Sequence[Metric[Any]], n: int) -> tuple[list[Metric[Any]], list[str]]:
    """Return the measures beside debiased CKA that have enough samples, and notes on those that have not."""
    kept = [metric for metric in metrics if metric.spec != "cka"]
    notes = [f"{m.spec} is left out: it needs at least {m.min_samples} samples" for m in kept if m.min_samples > n]
    used = [metric for metric in kept if metric.min_samples <= n]
    notes += [f"{m.spec} is asymmetric: of each point, given what it is compared with" for m in used if not m.symmetric]
    notes += [f"{m.spec} is a distance: values are negative, so that larger is more alike" for m in used
              if m.sense == "distance"]  # fmt: skip
    return used, notes
