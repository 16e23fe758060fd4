"""Choose the views of every measure (value, calibrated, z) and their colour scales."""

import math
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from repsim.errors import RepsimError
from repsim.presentation.measures import traits
from repsim.presentation.scales import declared, scale_of
from repsim.presentation.series import range_of
from repsim.report import captions
from repsim.study import reading


class Palettes:
    """Colour scales of all views of a part, without duplicates."""

    def __init__(self) -> None:
        self.stops: list[list[tuple[float, str]]] = []

    def view(
        self, values: NDArray[np.float64], valid_range: tuple[float, float], sense: str = "similarity"
    ) -> dict[str, Any]:
        """Choose the scale of a matrix; return its ends and the index of its colours."""
        scale = scale_of(values, valid_range, sense)
        if scale.stops not in self.stops:
            self.stops.append(scale.stops)
        low, high = scale.shown
        return {"low": float(low), "high": float(high), "palette": self.stops.index(scale.stops)}


def about_study(study: xr.Dataset, measure: str, palettes: Palettes) -> dict[str, Any]:
    """Describe a measure of a study: its names, its views, and the kernel and map that the page shows with it.

    The entry ``most`` is the value of equal layers, which the calibrated view maps to 1.
    """
    about: dict[str, Any] = {"name": measure, "most": 1, **texts_of(measure)}
    bounds = range_of(measure)
    if _is_installed(measure):
        about["most"] = bounds[1] if math.isfinite(bounds[1]) else None
    at = study.sel(measure=measure)
    value, z = at["value"].values, at["z"].values
    views = {"value": palettes.view(value, bounds)}
    if about["most"] is not None and np.isfinite(at["threshold_largest"].values).any():
        views["calibrated"] = palettes.view(value, (0.0, 1.0))
    if (finite := z[np.isfinite(z)]).size:
        views["z"] = palettes.view(z, (min(0.0, finite.min()), max(0.0, finite.max())))
    kernel = measure if measure in study["kernel"].values else reading.strictest(study)
    maps = study["map"].values.tolist() if "map" in study.coords else []
    return about | {
        "views": views,
        "kernel": kernel,
        "map": next((name for name in (measure, kernel, *maps[:1]) if name in maps), None),
        "headline": reading.headline(study, measure),
        "pairs_note": captions.pairs_note(study, measure),
    }


def _is_installed(measure: str) -> bool:
    """Return whether the package of a measure is installed."""
    try:
        traits(measure)
    except RepsimError:
        return False
    return True


def texts_of(measure: str) -> dict[str, str]:
    """Return label, formula and citation of a measure; its name if its package is not installed."""
    if not _is_installed(measure):
        return {"label": measure, "formula": "", "citation": ""}
    declares = traits(measure)
    sign = "" if declares.sense == "similarity" else " (a distance, shown as its negative: more is more alike)"
    return {"label": declares.label + sign, "formula": declares.formula, "citation": declares.citation}


def about_result(variable: xr.DataArray, palettes: Palettes) -> dict[str, Any]:
    """Describe a measure of a comparison."""
    name = str(variable.attrs.get("spec", variable.name))
    texts = {key: str(variable.attrs.get(key) or "") for key in ("label", "formula", "citation")}
    view = palettes.view(np.asarray(variable.values, np.float64), *declared(variable.attrs))
    return {"name": name, **texts, "label": texts["label"] or name, "views": {"value": view}}
