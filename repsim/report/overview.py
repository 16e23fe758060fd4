"""Show many networks: first one value for each pair of networks, and its layers when the pair is chosen.

A heatmap of a thousand layers by a thousand has more cells than a screen has room for, and takes seconds to draw. The
page of so many layers shows a heatmap of networks. It unpacks the layers of a pair when they are shown.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from repsim.presentation.stages import Run, runs
from repsim.report import packing
from repsim.results.summary import mean_of_closest
from repsim.study.reading import headline

MOST_CELLS = 90_000
"""Largest number of pairs of layers that the heatmap of all layers shows."""
_CHOOSE = "Click a cell to see the layers of its two networks."


def networks_of(result: xr.Dataset) -> tuple[list[Run], list[Run]] | None:
    """Return the networks along both sides if they are shown before their layers; None if all layers are shown."""
    up, across = (runs(map(str, result[f"model_{side}"].values)) for side in "ab")
    few = result.sizes["layer_a"] * result.sizes["layer_b"] <= MOST_CELLS or len(up) * len(across) < 2
    scattered = any(len({run.model for run in side}) < len(side) for side in (up, across))
    return None if few or scattered else (up, across)


def of_result(variables: Sequence[xr.DataArray], packed: Sequence[Mapping[str, Any] | None]) -> dict[str, Any]:
    """Return the entries of the page with one value for each pair of networks of a comparison."""
    note = (
        "A cell is a pair of networks: the mean over the layers of the network upwards of their value with the closest "
        f"layer of the network to the right. {_CHOOSE}"
    )
    return {
        "overview": [{"value": packing.single(mean_of_closest(one)[0])} for one in variables],
        "overview_notes": [{"value": note}] * len(variables),
        "rounding": _rounding(packed),
    }


def of_study(study: xr.Dataset, packed: Sequence[Mapping[str, Any] | None]) -> dict[str, Any]:
    """Return the entries of the page with one value for each pair of networks of a study, for every view."""
    values, notes = [], []
    for measure in study["measure"].values.tolist():
        main = headline(study, measure)
        how = "matched on one half of the samples and measured on the other" if main == "split_half" else "all samples"
        values.append({
            "value": packing.single(_of_pairs(study, main, measure)),
            "calibrated": packing.single(_of_pairs(study, "calibrated_index", measure)),
            "z": packing.single(mean_of_closest(study["z"].sel(measure=measure))[0]),
        })  # fmt: skip
        notes.append({
            "value": f"A cell is a pair of networks: the mean along matching layers, {how}. {_CHOOSE}",
            "calibrated": f"A cell is a pair of networks: the calibrated index, of all samples. {_CHOOSE}",
            "z": "A cell is a pair of networks: the mean over the layers of the network upwards of their largest z "
            f"with a layer of the network to the right. {_CHOOSE}",
        })  # fmt: skip
    return {"overview": values, "overview_notes": notes, "rounding": _rounding(packed)}


def _of_pairs(study: xr.Dataset, name: str, measure: str) -> NDArray[np.float64]:
    """Return a variable of pairs as a symmetric matrix of models, in the order of the layers; NaN where undefined."""
    place = {run.model: k for k, run in enumerate(runs(map(str, study["model_a"].values)))}
    values = np.full((len(place), len(place)), np.nan)
    i, j = ([place[model] for model in study[f"pair_{side}"].values.tolist()] for side in "ab")
    values[i, j] = values[j, i] = study[name].sel(measure=measure).values
    return values


def _rounding(packed: Sequence[Mapping[str, Any] | None]) -> str:
    """Return the sentence about how values of layers are rounded; empty if they are not."""
    steps = [one["blocks"].get("step", 0.0) for one in packed if one and "blocks" in one]
    if not any(steps):
        return ""
    return (
        f"Values of layers in this page have 16 bits: they differ by at most {max(steps) / 2:.1g} from those of the "
        "file, which has all digits."
    )
