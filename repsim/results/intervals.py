"""Read the intervals of a variable of a result."""

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from repsim.results.variables import ENDS


def ends_of(variable: xr.DataArray) -> NDArray[np.float64]:
    """Return the lower and the upper ends of the intervals of all pairs of layers, (2, layer_a, layer_b).

    NaN where there is no interval.
    """
    ends = [f"{variable.name}{end}" for end in ENDS]
    if "interval" not in variable.attrs or not set(ends) <= variable.coords.keys():
        return np.full((2, *variable.shape), np.nan)
    return np.stack([np.asarray(variable[end].transpose(*variable.dims).values, np.float64) for end in ends])


def interval_in_words(variable: xr.DataArray) -> str:
    """Return what the intervals of a variable are, such as ``95 % interval``; empty if it has none."""
    level = variable.attrs.get("interval")
    return "" if level is None else f"{100 * float(level):g} % interval"
