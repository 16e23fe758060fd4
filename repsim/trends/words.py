"""Write the summary and the warnings of a series: sentences that follow from its numbers by rule.

A trend, an order or a change is stated only if its interval is on one side of 0. A statement about training in general
needs several runs; of one run, the sentence names that run.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from repsim.results.series_variables import NETWORK, OTHER_RUNS, REFERENCE
from repsim.study.formatting import listed, number, p_value
from repsim.trends.names import GIVEN_INPUT, KINDS, at, measure_name, reference_in_words, sentence_start
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
    """Return which points are compared with another network, (point,): not the named reference, nor its run."""
    reference = series.attrs["reference"]
    itself = (series["point"].values == reference) | ("run=" + series["run"].values.astype(object) == reference)
    return np.asarray(~itself if comparison == REFERENCE else np.ones_like(itself))


def _reference(series: xr.Dataset) -> Iterator[str]:
    """Yield how similar the first point, and the one next to the reference, are to it."""
    if REFERENCE not in series["comparison"].values:
        return
    of_points = series["value"].values[_others(series, REFERENCE)]
    values = np.unique(of_points)
    reference = series.attrs["reference"]
    shown = {"last": (values[0], values[-2]), "first": (values[1], values[-1])}.get(reference, (values[0], values[-1]))
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
        yield (
            f"By {measure_name(measure)}, layers have gone {share} of the way to their final form by "
            f"{at(series, low)} ({first}, the earliest) to {at(series, high)} ({last}, the latest)."
        )
        yield _order_sentence(series, measure)


def _order_sentence(series: xr.Dataset, measure: str) -> str:
    """Return whether lower layers settle first: by an interval, and by the exact test of the ranks of layers.

    Ranks are coarse: of two or three runs with the same order an interval has no width.
    """
    chosen = series.sel(measure=measure)
    taus, runs = chosen["depth_order"].values, _runs(series)
    if len(runs) == 1:
        low, high = float(chosen["depth_order_low"].values[0]), float(chosen["depth_order_high"].values[0])
        mean, subject, over = Mean(float(taus[0]), low, high, np.nan), "In this run", "over pictures"
    else:
        mean, subject, over = over_runs(taus), f"Over {len(runs)} runs", "over runs"
    mean = Mean(mean.mean, max(-1, mean.low), min(1, mean.high), mean.p)
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
        start, end = (_mean(series, "network", measure, OTHER_RUNS, value) for value in (first, last))
        if len(values) == 1:
            what = f"a {measure_name(measure)} of {start}, mean over layers and pairs of runs"
            yield f"Two runs at {at(series, first)} have {what}."
            continue
        change = _change(series, measure, last)
        yield (
            f"Two runs at equal {series.attrs['axis']} have a {measure_name(measure)} of {start} at "
            f"{at(series, first)} and {end} at {at(series, last)}, mean over layers and pairs of runs: {change}."
        )


def _change(series: xr.Dataset, measure: str, last: float) -> str:
    """Return how the similarity of runs changes, with the ends of all intervals over pictures."""
    chosen = series.sel(measure=measure, comparison=OTHER_RUNS)
    at_last = chosen["value"].values == last
    gains, lows, highs = (chosen[f"gain{end}"].values[at_last] for end in ("", "_low", "_high"))
    if not np.isfinite(gains).any():
        return "a change that has no interval"
    low, high = float(np.nanmin(lows)), float(np.nanmax(highs))
    text = f"for these runs a change of {number(float(np.nanmean(gains)))}, between {number(low)} and {number(high)}"
    text += " by their intervals over pictures"
    return text if low > 0 or high < 0 else f"{text}, which is no clear change"


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
    over = "runs" if series.attrs["points"] == "states" else "pictures"
    low, high = (float(chosen[f"trend_slope_{end}"].sel(over=over)) for end in ("low", "high"))
    axis = series.attrs["axis"]
    unit = f"a factor of 10 in {axis}" if series.attrs["scale"] == "log" else f"one unit of {axis}"
    with_what = f"with {reference_in_words(series)}" if comparison == REFERENCE else "of different runs"
    tested = f", {p_value(p)}" if np.isfinite(p) else ""
    clear = np.isfinite(p) and p < ALPHA and (np.isnan(low) or low > 0 or high < 0) and np.sign(tau) == np.sign(slope)
    facts = (
        f"{number(slope, low, high)} for {unit}, interval over {over}; Kendall's tau {number(tau)}{tested}"
        if np.isfinite(low)
        else f"{number(slope)} for {unit}; Kendall's tau {number(tau)}{tested}"
    )
    if not clear:
        return f"No trend of {measure_name(measure)} {with_what} along {axis} is shown: {facts}."
    verb = "rises" if slope > 0 else "falls"
    return f"{sentence_start(measure)} {with_what} {verb} along {axis}: {facts}."


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
            "There is one run: intervals are over pictures, and nothing is said about other runs of the same training."
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
    has_reference = np.isfinite(similarity).any(1)
    missing = [
        f"{layer} of {point}"
        for k, point in enumerate(series["point"].values.tolist())
        for j, layer in enumerate(series["layer"].values.tolist())
        if has_reference[k] and np.isnan(similarity[k, j])
    ]
    if missing:
        yield f"{len(missing)} values are undefined, because a layer is constant: {listed(missing)}."
