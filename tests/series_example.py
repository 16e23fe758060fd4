"""Series with invented values in the format of docs/series-format.md, for tests of files, figures and the page.

Lower layers settle first; two runs begin at different initialisations and become alike.
"""

import json
from collections.abc import Sequence

import numpy as np
import xarray as xr
from scipy import stats

from repsim.results.series_variables import COMPARISONS, OVER, SERIES_VARIABLES, describe_series

STEPS = (0.0, 1.0, 2.0, 5.0, 10.0, 100.0, 1000.0, 5000.0)
WIDTHS = (16.0, 32.0, 64.0, 128.0, 256.0)
LAYERS = ("conv1", "layer1.0", "layer2.0", "layer3.0", "layer4.0", "fc")
MEASURES = ("cka", "cka given input", "mutual_knn")
STRENGTH = {"cka": 1.0, "cka given input": 0.8, "mutual_knn": 0.6}


def training(runs: Sequence[str] = ("a", "b"), *, every_point: bool = False) -> xr.Dataset:
    """Return a series over training steps, with the last point of each run as its reference."""
    points = [(f"resnet/{run or 'run'}/step_{step:g}", run, step) for run in runs for step in STEPS]
    depth = np.linspace(0, 1, len(LAYERS))
    comparisons = COMPARISONS if len(runs) > 1 else COMPARISONS[:2]
    step = np.array([step for _, _, step in points])
    rates = 1 / (3 * 40**depth)  # of learning by depth: the deeper a layer, the later it settles
    learned = 1 - np.exp(-np.sqrt(step)[:, None] * rates)
    learned = learned / learned[len(STEPS) - 1]  # (point, layer), from 0 to 1
    start = 0.75 - 0.5 * depth
    to = {
        "reference": start + (1 - start) * learned,
        "previous": 1 - 0.5 * np.vstack([np.diff(learned, axis=0, prepend=learned[:1])]),
        "other runs": 0.9 * start + (0.85 - 0.9 * start) * learned,
    }
    to["previous"][step == 0] = np.nan
    order = np.repeat(np.arange(len(runs)), len(STEPS))[:, None]
    for name in ("reference", "previous"):  # runs differ a little
        to[name] = 1 - (1 - to[name]) * (1 + 0.15 * order)
    similarity = np.stack([np.stack([STRENGTH[m] * to[c] for c in comparisons]) for m in MEASURES])
    series = _series(
        points=points, axis="step", layers=LAYERS, depth=depth, comparisons=comparisons, similarity=similarity,
        counts=[len(LAYERS)] * len(points),
    )  # fmt: skip
    if every_point:
        distance = (
            np.abs(learned[:, None] - learned[None])
            + 0.3 * (series["run"].values[:, None] != series["run"].values)[..., None]
        )
        table = np.array([STRENGTH[m] for m in MEASURES])[:, None, None, None] * np.exp(-distance)
        series = series.assign_coords(other_point=series["point"].values)
        series["every_point"] = ("measure", "point", "other_point", "layer"), table
    describe_series(series)
    return series


def widths() -> xr.Dataset:
    """Return a series over widths against the widest network; the networks have 3, 4 and 6 layers."""
    counts = [3, 4, 4, 6, 6]
    points = [(f"mlp_{width:g}", "", width) for width in WIDTHS]
    names = [f"{depth:.2f}" for depth in (0, 0.25, 0.5, 0.75, 1)]
    depth = np.array([float(name) for name in names])
    rise = 1 - 0.4 * np.exp(-np.arange(len(WIDTHS)) / 1.5)
    to = np.minimum(1, rise[:, None] - 0.1 * depth * (np.arange(len(WIDTHS)) < len(WIDTHS) - 1)[:, None])
    to[-1] = 1
    similarity = np.stack([STRENGTH[m] * to[None] for m in MEASURES])
    series = _series(
        points=points, axis="width", layers=names, depth=depth, comparisons=COMPARISONS[:1], similarity=similarity,
        counts=counts,
    )  # fmt: skip
    series = series.assign_coords(axis_parameters=("point", np.array(WIDTHS) ** 2 * 10))
    describe_series(series)
    return series


def _series(
    *,
    points: Sequence[tuple[str, str, float]],
    axis: str,
    layers: Sequence[str],
    depth: np.ndarray,
    comparisons: Sequence[str],
    similarity: np.ndarray,
    counts: Sequence[int],
) -> xr.Dataset:
    """Return a series with this similarity (measure, comparison, point, layer); all else follows, or is invented."""
    names, run, value = (np.array(column) for column in zip(*points, strict=True))
    runs, largest = list(dict.fromkeys(run.tolist())), max(counts)
    generator = np.random.default_rng(0)
    spread = 0.02 + 0.03 * (1 - np.nan_to_num(similarity))
    without = np.array([m != "mutual_knn" for m in MEASURES])
    low, high = similarity - spread, np.minimum(1, similarity + spread)
    low[~without], high[~without] = np.nan, np.nan
    threshold = np.full_like(similarity, 0.05) + 0.02 * generator.random(similarity.shape)
    threshold[np.isnan(similarity)] = np.nan
    own = np.full((len(points), largest), np.nan)
    for row, count in zip(own, counts, strict=True):
        row[:count] = np.linspace(0, 1, count)
    near = np.exp(-2 * np.abs(own[:, :, None] - own[:, None, :]))
    final = np.exp(-2 * np.abs(own[:, :, None] - own[-1][None, None, :])) * (1 - 0.2 * own[:, :, None])
    level = similarity.mean(-1)[..., None, None]
    first = np.array([run.tolist().index(one) for one in run])
    names_of_layers = np.full((len(points), largest), "", "<U20")
    for row, count in zip(names_of_layers, counts, strict=True):
        row[:count] = layers if count == len(layers) and axis == "step" else [f"block{i}" for i in range(count)]
    speed = np.arccos(np.clip(similarity[:, min(1, len(comparisons) - 1)], -1, 1)) / 10
    settled = np.stack([np.outer(1 + 0.5 * np.arange(len(runs)), 10 ** (1 + 2.5 * depth)) for _ in MEASURES])
    least, most = (float(end) for end in (value.min(), value.max()))
    settled = np.clip(settled, least, most)
    trend_of = ["network", *layers]
    size = len(MEASURES), len(comparisons), len(trend_of)
    series_of = np.concatenate([similarity.mean(-1, keepdims=True), similarity], -1)
    tau, p, slope = (np.full(size, np.nan) for _ in range(3))
    for at in np.ndindex(*size):
        y = series_of[at[0], at[1], :, at[2]]
        use = np.isfinite(y)
        tau[at], p[at] = stats.kendalltau(value[use].astype(float), y[use])
        use &= value.astype(float) > 0
        slope[at] = stats.theilslopes(y[use], np.log10(value[use].astype(float))).slope
    width = np.array([0.01, 0.03 if len(runs) > 1 else np.nan])
    along = {
        "similarity": similarity, "similarity_low": low, "similarity_high": high,
        "network": similarity.mean(-1), "network_low": low.mean(-1), "network_high": high.mean(-1),
        **{
            f"gain{end}": values.mean(-1) - similarity.mean(-1)[..., first]
            for end, values in (("", similarity), ("_low", low), ("_high", high))
        },
        "threshold": threshold, "calibrated": np.maximum(0, (similarity - threshold) / (1 - threshold)),
        "blocks": final * level, "within": np.stack([STRENGTH[m] * near for m in MEASURES]),
        "speed": speed, "settled": settled, "settled_low": settled * 0.8,
        "settled_high": np.clip(settled * 1.3, least, most),
        **{f"depth_order{end}": np.full((len(MEASURES), len(runs)), by) for end, by in (("", 0.9), ("_low", 0.7),
                                                                                        ("_high", 1.0))},
        "trend_tau": tau, "trend_p": p,
        "trend_slope": slope, "trend_exponent": -slope,
        "trend_slope_low": slope[..., None] - width, "trend_slope_high": slope[..., None] + width,
        "trend_exponent_low": -slope[..., None] - width, "trend_exponent_high": -slope[..., None] + width,
    }  # fmt: skip
    dims = {name: entry.dims.split(", ") for entry in SERIES_VARIABLES for name in entry.names}
    stores = [{"model": name, "checksum": "0", "provenance": {"axes": {axis: value}}} for name, _, value in points]
    return xr.Dataset(
        {name: (dims[name], array) for name, array in along.items()},
        {
            "point": names, "value": ("point", value.astype(float)), "run": ("point", run),
            "layer": np.array(layers), "depth": ("layer", depth), "measure": list(MEASURES),
            "comparison": list(comparisons), "own_layer": np.arange(largest), "other_layer": np.arange(largest),
            "layer_name": (("point", "own_layer"), names_of_layers), "one_run": runs, "trend_of": trend_of,
            "over": list(OVER), "n_samples": 500, "data": "cifar10-test",
        },
        {
            "format": "repsim-series", "format_version": 1, "created": "2026-11-29T12:00:00+00:00",
            "repsim_version": "0.2.0", "command": "repsim series 'acts/*.h5' -o series.nc",
            "samples_fingerprint": "0" * 64, "stores": json.dumps(stores), "axis": axis, "reference": "last",
            "settled_at": 0.9, "scale": "log", "points": "networks" if axis == "width" else "states",
            "run_axis": "run" if len(runs) > 1 else "", "readout": "mean", "seed": 0, "input_controls": '["pixels"]',
            "distances": "[]",
            "matched_by": "names" if axis == "step" else "relative depth",
            "summary": json.dumps([f"Similarity to the last point rises with the {axis}."]),
            "warnings": json.dumps(["Two runs are few: intervals over runs are wide."]),
        },
    )  # fmt: skip
