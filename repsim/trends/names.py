"""Name measures, places on the axis and references, for sentences, tables and figures."""

import xarray as xr

from repsim.results.modalities import samples_of
from repsim.results.series_variables import PICTURES

GIVEN_INPUT = "cka given input"
"""Name of debiased CKA with the input projected out."""
KINDS = {"cka": "debiased CKA", GIVEN_INPUT: "debiased CKA given the input"}
"""Names of the kinds of debiased CKA in sentences."""


def measure_name(measure: str) -> str:
    """Return the name of a measure in sentences."""
    return KINDS.get(measure, measure)


def sentence_start(measure: str) -> str:
    """Return the name of a measure as the beginning of a sentence."""
    return f"The {KINDS[measure]}" if measure in KINDS else measure


def at(series: xr.Dataset, value: float) -> str:
    """Return a place on the axis in words, such as ``step 100``."""
    exact = bool((series["value"].values == value).any())  # interpolated places have fewer digits
    return f"{series.attrs['axis']} {value:{'.10g' if exact else '.4g'}}"


def over_in_words(series: xr.Dataset, over: str) -> str:
    """Return over what an interval is taken, in words: runs, or the samples by what they are."""
    return samples_of(series) if over == PICTURES else over


def reference_in_words(series: xr.Dataset) -> str:
    """Return what points are compared with, in words."""
    reference, run_axis = series.attrs["reference"], series.attrs["run_axis"]
    of_run = " of its run" if run_axis else ""
    if reference in {"first", "last"}:
        return f"the {reference} point{of_run}"
    if reference.startswith("run="):
        return f"the same point of {run_axis} {reference.removeprefix('run=')}"
    return str(reference)
