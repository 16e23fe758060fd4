"""Show many networks: first one value for each pair of networks, and its layers when the pair is chosen.

A heatmap of a thousand layers by a thousand has more cells than a screen has room for, and takes seconds to draw. The
page of so many layers, or networks, shows a heatmap of networks, in the order of a dendrogram. Of so many layers it
also unpacks those of a pair only when they are shown.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from repsim.presentation.model_order import matrix_of_models, order_by_similarity
from repsim.presentation.stages import Run, runs
from repsim.presentation.thinning import MOST_PAIRS
from repsim.report import packing
from repsim.results.summary import mean_of_closest
from repsim.study.reading import headline

MOST_CELLS = 90_000
"""Largest number of pairs of layers that a page unpacks, and shows, at once."""
_CHOOSE = "Click a cell to see the layers of its two networks."
_ORDERED = "Networks that are alike are next to each other; the tree joins them by average linkage."


def networks_of(result: xr.Dataset) -> tuple[list[Run], list[Run]] | None:
    """Return the networks along both sides if their layers are packed pair by pair; None if all are unpacked."""
    few = result.sizes["layer_a"] * result.sizes["layer_b"] <= MOST_CELLS
    return None if few else _in_runs(result)


def shows_networks(result: xr.Dataset) -> bool:
    """Return whether the page shows one cell for each pair of networks: of many layers, or many networks."""
    sides = _in_runs(result)
    many = sides is not None and len(sides[0]) * (len(sides[1]) - 1) / 2 > MOST_PAIRS
    return many or networks_of(result) is not None


def _in_runs(result: xr.Dataset) -> tuple[list[Run], list[Run]] | None:
    """Return the networks along both sides; None if there is one pair, or layers of a network are apart."""
    up, across = (runs(map(str, result[f"model_{side}"].values)) for side in "ab")
    scattered = any(len({run.model for run in side}) < len(side) for side in (up, across))
    return None if scattered or len(up) * len(across) < 2 else (up, across)


def of_result(variables: Sequence[xr.DataArray], packed: Sequence[Mapping[str, Any] | None]) -> dict[str, Any]:
    """Return the entries of the page with one value for each pair of networks of a comparison."""
    note = (
        "A cell is a pair of networks: the mean over the layers of the network upwards of their value with the closest "
        "layer of the network to the right."
    )
    values, notes = [], []
    for one in variables:
        table = mean_of_closest(one)[0]
        models = [list(dict.fromkeys(one[f"model_{side}"].values.tolist())) for side in "ab"]
        sign = -1 if one.attrs.get("sense") == "distance" else 1
        order = _order(sign * (table + table.T) / 2) if models[0] == models[1] else {}
        values.append({"value": packing.single(table), **order})
        notes.append({"value": " ".join([note, *[_ORDERED] * bool(order), _CHOOSE])})
    return {"overview": values, "overview_notes": notes, "rounding": _rounding(packed)}


def _order(table: NDArray[np.float64]) -> dict[str, Any]:
    """Return the order of networks in the heatmap and its dendrogram; empty without values."""
    ordered = order_by_similarity(table)
    return {} if ordered is None else {"order": ordered[0], "tree": ordered[1].round(4).tolist()}


def of_study(study: xr.Dataset, packed: Sequence[Mapping[str, Any] | None]) -> dict[str, Any]:
    """Return the entries of the page with one value for each pair of networks of a study, for every view."""
    values, notes = [], []
    models = [run.model for run in runs(map(str, study["model_a"].values))]
    for measure in study["measure"].values.tolist():
        main = headline(study, measure)
        how = "matched on one half of the samples and measured on the other" if main == "split_half" else "all samples"
        table = matrix_of_models(study, main, measure, models)
        order = _order(table)
        values.append({
            "value": packing.single(table),
            "calibrated": packing.single(matrix_of_models(study, "calibrated_index", measure, models)),
            "z": packing.single(mean_of_closest(study["z"].sel(measure=measure))[0]),
            **order,
        })  # fmt: skip
        shown = {
            "value": f"A cell is a pair of networks: the mean along matching layers, {how}.",
            "calibrated": "A cell is a pair of networks: the calibrated index, of all samples.",
            "z": "A cell is a pair of networks: the mean over the layers of the network upwards of their largest z "
            "with a layer of the network to the right.",
        }
        notes.append({view: " ".join([text, *[_ORDERED] * bool(order), _CHOOSE]) for view, text in shown.items()})
    return {"overview": values, "overview_notes": notes, "rounding": _rounding(packed)}


def _rounding(packed: Sequence[Mapping[str, Any] | None]) -> str:
    """Return the sentence about how values of layers are rounded; empty if they are not."""
    steps = [one["blocks"].get("step", 0.0) for one in packed if one and "blocks" in one]
    if not any(steps):
        return ""
    return (
        f"Values of layers in this page have 16 bits: they differ by at most {max(steps) / 2:.1g} from those of the "
        "file, which has all digits."
    )
