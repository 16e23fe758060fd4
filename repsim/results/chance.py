"""Read the chance levels of a variable of a result: the mean values of unrelated layers."""

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from repsim.results.variables import CHANCE


def chance_of(variable: xr.DataArray) -> NDArray[np.float64] | None:
    """Return the chance level of every pair of layers, NaN where there is no value; None if it is not known."""
    name = f"{variable.name}{CHANCE}"
    if name in variable.coords:
        return np.asarray(variable[name].transpose(*variable.dims).values, np.float64)
    if variable.attrs.get("chance") == "zero":
        return np.where(np.isnan(variable.values), np.nan, 0.0)
    return None


def chance_in_words(variable: xr.DataArray, digits: int = 3) -> str:
    """Return the chance level of a variable in words, to follow its label.

    The text is empty if the level is 0 or undefined, or the file is of an earlier version and does not say.
    """
    if (levels := chance_of(variable)) is not None:
        if not np.nanmax(np.abs(levels), initial=0):
            return ""
        low, high = (f"{end:z.{digits}f}" for end in (np.nanmin(levels), np.nanmax(levels)))
        return f"by chance {low}" if low == high else f"by chance {low} to {high}"
    return "chance level not computed" if variable.attrs.get("chance") == "unknown" else ""
