"""Write the summary and the warnings of a series: sentences that follow from its numbers by rule.

A trend, an order or a change is stated only if its interval is on one side of 0. A statement about training in general
needs several runs; of one run, the sentence names that run.
"""

import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from repsim.results.modalities import samples_of
from repsim.results.series_variables import NETWORK, OTHER_RUNS, PICTURES, REFERENCE
from repsim.study.formatting import listed, number, p_value
from repsim.trends.names import (
    GIVEN_INPUT,
    KINDS,
    at,
    measure_name,
    over_in_words,
    reference_in_words,
    sentence_start,
)
from repsim.trends.trend import Mean, kendall, over_runs

ALPHA = 0.05


def summary(series: xr.Dataset) -> list[str]:
    """Return the sentences of the summary, each from numbers of the series."""
    return [sentence for part in (_what, _reference, _order, _other_runs, _trends) for sentence in part(series)]


def warnings(series: xr.Dataset) -> list[str]:
    """Return the limits of the series, as sentences."""
    return [sentence for part in (_matching, _few_runs, _ends, _no_input, _undefined) for sentence in part(series)]


def _runs(series: xr.Dataset) -> list[str]:
    return [str(run) for run in series["one_run"].values]


def _what(series: xr.Dataset) -> Iterator[str]:
    axis, runs = series.attrs["axis"], _runs(series)
    values = series["value"].values
    counts = {run: int((series["run"].values == run).sum()) for run in runs}
    numbers = set(counts.values())
    if len(runs) == 1:
        models = f"{len(values)} models"
    elif len(numbers) == 1:
        models = f"{numbers.pop()} models of each of {len(runs)} runs"
    else:
        models = f"{len(values)} models of {len(runs)} runs ({min(counts.values())} to {max(counts.values())} each)"
    layers = series.sizes["layer"]
    yield (
        f"{models} along {axis}, from {values.min():g} to {values.max():g}: {layers} layer{'s' * (layers > 1)}, "
        f"compared on {int(series['n_samples']):,} samples of {series['data'].item()} with "
        f"{reference_in_words(series)}."
    )


def _own(series: xr.Dataset) -> list[str]:
    return [m for m in series["measure"].values.tolist() if m in KINDS]


def _mean(series: xr.Dataset, name: str, measure: str, comparison: str, value: float) -> str:
    """Return the mean over the runs at one value, with the interval over pictures if there is one run."""
    at_value = _others(series, comparison) & (series["value"].values == value)
    select = {"measure": measure, "comparison": comparison}
    mean, low, high = (series[f"{name}{end}"].sel(select).values[at_value] for end in ("", "_low", "_high"))
    if at_value.sum() == 1:
        return number(float(mean[0]), float(low[0]), float(high[0]))
    return number(float(np.nanmean(mean)))


def _others(series: xr.Dataset, comparison: str) -> NDArray[np.bool_]:
    """Return which points are compared with another network, (point,), and not with themselves, and have a value."""
    network = series["network"].sel(measure="cka", comparison=comparison).values
    if comparison != REFERENCE:
        return np.asarray(np.isfinite(network))
    reference, run = series.attrs["reference"], series["run"].values
    itself = (series["point"].values == reference) | ("run=" + run.astype(object) == reference)
    if reference in {"first", "last"}:  # points are ordered by run, and then by value
        change = np.append(run[1:] != run[:-1], True)
        itself |= change if reference == "last" else np.roll(change, 1)
    return np.asarray(~itself & np.isfinite(network))


def _reference(series: xr.Dataset) -> Iterator[str]:
    """Yield how similar the first point, and the one next to the reference, are to it."""
    if REFERENCE not in series["comparison"].values:
        return
    of_points = series["value"].values[_others(series, REFERENCE)]
    if not len(of_points):
        return
    shown = of_points.min(), of_points.max()
    runs = {int((of_points == value).sum()) for value in shown}
    where = "" if runs == {1} else f", mean of {runs.pop()} runs" if len(runs) == 1 else ", mean over runs"
    for measure in _own(series):
        texts = [_mean(series, "network", measure, REFERENCE, float(value)) for value in dict.fromkeys(shown)]
        places = [f"at {at(series, float(value))}" for value in dict.fromkeys(shown)]
        parts = " and ".join(f"{text} {place}" for text, place in zip(texts, places, strict=True))
        yield f"{sentence_start(measure)} with {reference_in_words(series)}, mean over layers{where}: {parts}."


def _order(series: xr.Dataset) -> Iterator[str]:
    """Yield when layers settle, and whether lower ones do first; networks of their own have no final form."""
    if series.attrs["points"] != "states" or not np.isfinite(series["settled"].values).any():
        return
    share = f"{100 * series.attrs['settled_at']:g} %"
    for measure in _own(series):
        settled = series["settled"].sel(measure=measure).mean("one_run", skipna=True)
        if not np.isfinite(settled.values).any():
            continue
        first, last = settled.idxmin("layer").item(), settled.idxmax("layer").item()
        low, high = (float(settled.sel(layer=layer)) for layer in (first, last))
        gone = f"By {measure_name(measure)}, layers have gone {share} of the way to their final form by "
        if first == last:
            yield f"{gone}{at(series, low)} ({first})."
            continue
        yield f"{gone}{at(series, low)} ({first}, the earliest) to {at(series, high)} ({last}, the latest)."
        yield _order_sentence(series, measure)


def _order_sentence(series: xr.Dataset, measure: str) -> str:
    """Return whether lower layers settle first: by an interval, and by the exact test of the ranks of layers.

    Ranks are coarse: of two or three runs with the same order an interval has no width.
    """
    chosen = series.sel(measure=measure)
    having = np.flatnonzero(np.isfinite(chosen["depth_order"].values))
    taus, runs = chosen["depth_order"].values[having], _runs(series)
    if len(having) == 1:
        low, high = (float(chosen[f"depth_order_{end}"].values[having[0]]) for end in ("low", "high"))
        subject = "In this run" if len(runs) == 1 else f"In the only run with points enough, {runs[having[0]]}"
        mean, over = Mean(float(taus[0]), low, high, np.nan), f"over {samples_of(series)}"
    else:
        mean, subject, over = over_runs(taus), f"Over {len(having)} runs", "over runs"
    low, high = (float(np.clip(end, -1, 1)) for end in (mean.low, mean.high))
    mean = Mean(mean.mean, low, high, mean.p)
    p = kendall([(chosen["depth"].values, settled) for settled in chosen["settled"].values]).p
    tested = f", {p_value(p)}" if np.isfinite(p) else ""
    value = f"Kendall's tau of depth and settling is {number(mean.mean, mean.low, mean.high)}, interval {over}{tested}"
    clear = p < ALPHA and (mean.low > 0 or mean.high < 0)
    if not clear:
        return f"{subject}, no order of depth in which layers settle is shown: {value}."
    return f"{subject}, {'lower' if mean.mean > 0 else 'higher'} layers settle first: {value}."


def _other_runs(series: xr.Dataset) -> Iterator[str]:
    """Yield how similar runs are at equal values, and whether that changes."""
    if OTHER_RUNS not in series["comparison"].values:
        return
    shared = series["network"].sel(measure="cka", comparison=OTHER_RUNS)
    values = np.unique(series["value"].values[np.isfinite(shared.values)])
    if not len(values):
        return
    first, last = float(values[0]), float(values[-1])
    for measure in _own(series):
        if len(values) == 1:
            start = _mean(series, "network", measure, OTHER_RUNS, first)
            what = f"a {measure_name(measure)} of {start}, mean over layers and pairs of runs"
            yield f"Two runs at {at(series, first)} have {what}."
            continue
        if sentence := _change(series, measure, first, last):
            yield sentence


def _change(series: xr.Dataset, measure: str, first: float, last: float) -> str:
    """Return how similar the runs that stand at both values are there, and how that changes.

    Pairs of runs share runs, so that the change has the ends of all intervals over pictures.
    """
    chosen = series.sel(measure=measure, comparison=OTHER_RUNS)
    network, value, run = chosen["network"].values, chosen["value"].values, chosen["run"].values
    places = [{r: k for k, r in enumerate(run) if value[k] == v and np.isfinite(network[k])} for v in (first, last)]
    both = [r for r in places[0] if r in places[1]]
    if not both:
        return ""
    start, end = (np.array([of_runs[r] for r in both]) for of_runs in places)
    change = float((network[end] - network[start]).mean())
    of_all = "" if len(both) == len(_runs(series)) else f" (of {len(both)} runs that stand at both)"
    what = f"Two runs at equal {series.attrs['axis']} have a {measure_name(measure)}"
    ends = [f"{number(network[k].mean())} at {at(series, v)}" for k, v in ((start, first), (end, last))]
    text = (
        f"{what} of {' and '.join(ends)}, mean over layers and pairs of runs{of_all}: for these runs a change of "
        f"{number(change)}"
    )
    lows, highs = (chosen[f"gain_{which}"].values[end] for which in ("low", "high"))
    if not np.allclose(chosen["gain"].values[end], network[end] - network[start], equal_nan=False):
        return f"{text}."  # a run has an earlier point, from which gains are counted
    low, high = float(lows.min()), float(highs.max())
    text += f", between {number(low)} and {number(high)} by their intervals over {samples_of(series)}"
    return f"{text}." if low > 0 or high < 0 else f"{text}, which is no clear change."


def _trends(series: xr.Dataset) -> Iterator[str]:
    if series.attrs["points"] == "states" and len(_runs(series)) == 1:
        return  # the points of one run are one network: nothing is tested
    for comparison in (c for c in series["comparison"].values.tolist() if c in {REFERENCE, OTHER_RUNS}):
        for measure in series["measure"].values.tolist():
            if sentence := _trend(series, measure, comparison):
                yield sentence


def _trend(series: xr.Dataset, measure: str, comparison: str) -> str:
    chosen = series.sel(measure=measure, comparison=comparison, trend_of=NETWORK)
    tau, p, slope = (float(chosen[f"trend_{name}"]) for name in ("tau", "p", "slope"))
    if not np.isfinite(slope):
        return ""
    over = "runs" if series.attrs["points"] == "states" else PICTURES
    low, high = (float(chosen[f"trend_slope_{end}"].sel(over=over)) for end in ("low", "high"))
    axis = series.attrs["axis"]
    unit = f"a factor of 10 in {axis}" if series.attrs["scale"] == "log" else f"one unit of {axis}"
    with_what = f"with {reference_in_words(series)}" if comparison == REFERENCE else "of different runs"
    tested = f", {p_value(p)}" if np.isfinite(p) else ""
    clear = np.isfinite(p) and p < ALPHA and (np.isnan(low) or low > 0 or high < 0) and np.sign(tau) == np.sign(slope)
    facts = (
        f"{number(slope, low, high)} for {unit}, interval over {over_in_words(series, over)}; Kendall's tau "
        f"{number(tau)}{tested}"
        if np.isfinite(low)
        else f"{number(slope)} for {unit}; Kendall's tau {number(tau)}{tested}"
    )
    minus = "minus " if measure in json.loads(series.attrs["distances"]) else ""  # larger is always more alike
    if not clear:
        return f"No trend of {minus}{measure_name(measure)} {with_what} along {axis} is shown: {facts}."
    verb = "rises" if slope > 0 else "falls"
    return f"{minus}{sentence_start(measure)} {with_what} {verb} along {axis}: {facts}."


def _matching(series: xr.Dataset) -> Iterator[str]:
    if series.attrs["matched_by"] == "relative depth":
        yield (
            "Models have different layers, which are matched by relative depth: a similarity may also change because "
            "other layers stand for a depth."
        )


def _few_runs(series: xr.Dataset) -> Iterator[str]:
    if len(_runs(series)) > 1:
        return
    if series.attrs["points"] == "states":
        yield (
            f"There is one run: intervals are over {samples_of(series)}, and nothing is said about other runs of the "
            "same training."
        )
    else:
        yield "There is one network for every value: its seed and its place on the axis cannot be told apart."


def _ends(series: xr.Dataset) -> Iterator[str]:
    if series.attrs["reference"] not in {"first", "last"} or len(_runs(series)) == 1:
        return
    of_runs = series["value"].groupby(series["run"])
    ends = of_runs.max() if series.attrs["reference"] == "last" else of_runs.min()
    if len(np.unique(ends.values)) > 1:
        yield (
            f"Runs do not {'end' if series.attrs['reference'] == 'last' else 'begin'} at the same value "
            f"({ends.values.min():g} to {ends.values.max():g}): each is compared with its own."
        )


def _no_input(series: xr.Dataset) -> Iterator[str]:
    if GIVEN_INPUT not in series["measure"].values:
        yield (
            "The stores hold no input, so that similarity given the input is not known: part of every value may be "
            "due to the input alone."
        )


def _undefined(series: xr.Dataset) -> Iterator[str]:
    if REFERENCE not in series["comparison"].values:
        return
    similarity: Any = series["similarity"].sel(measure="cka", comparison=REFERENCE).values
    has_reference = np.isfinite(similarity).any(1) | (not series.attrs["reference"].startswith("run="))
    missing = [
        f"{layer} of {point}"
        for k, point in enumerate(series["point"].values.tolist())
        for j, layer in enumerate(series["layer"].values.tolist())
        if has_reference[k] and np.isnan(similarity[k, j])
    ]
    if missing:
        yield (
            f"{len(missing)} values are undefined, because a layer is constant: {listed(missing)}. Means over layers "
            "are of the layers that have a value at all points."
        )
