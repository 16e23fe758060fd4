"""Choose the axis, the colours and the words with which figures and the page show a series."""

from collections.abc import Sequence

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from repsim.errors import RepsimError
from repsim.presentation.measures import traits
from repsim.presentation.scales import MAGMA, mixed
from repsim.results.series_variables import NETWORK

_DECADES = 100.0
"""Ratio of the largest to the smallest value from which on an axis is logarithmic."""
_EVEN = 8.0
"""The same ratio if the values are evenly spaced on a logarithmic axis, such as 16, 32, 64, 128."""
_RAMP = 0.08, 0.82
"""Part of magma for lines: its ends are too close to black text and to white paper."""


def is_logarithmic(values: NDArray[np.float64]) -> bool:
    """Return whether an axis with these values is better logarithmic.

    It is if the positive values span more than two decades, or are evenly spaced on a logarithmic axis and span a
    factor of 8. Values below 0 have a linear axis.

    >>> is_logarithmic(np.array([0, 1, 10, 1000])), is_logarithmic(np.array([16, 32, 64, 128]))
    (True, True)
    >>> is_logarithmic(np.array([0, 1, 2, 3, 4]))
    False
    """
    positive = np.unique(values[values > 0])
    if len(positive) < 2 or (values < 0).any():
        return False
    ratio = positive[-1] / positive[0]
    gaps = np.diff(np.log(positive))
    even = len(gaps) > 1 and np.allclose(gaps, gaps[0], rtol=0.05) and not (values == 0).any()
    return bool(ratio > _DECADES or (even and ratio >= _EVEN))


def ramp(count: int) -> list[str]:
    """Return colours for an ordered set of lines, dark to bright; colour-blind readers see their order, too.

    >>> ramp(3)
    ['#0f0928', '#86277f', '#feab75']
    """
    first, last = _RAMP
    shares = np.linspace(first, last, count) if count > 1 else np.array([(first + last) / 2])
    at = shares * (len(MAGMA) - 1)
    return [mixed(MAGMA[int(k)], MAGMA[min(int(k) + 1, len(MAGMA) - 1)], float(k % 1)) for k in at]


def label_of(measure: str) -> str:
    """Return the label of a measure for figures: its name if its package is not installed."""
    try:
        return traits(measure).label
    except RepsimError:
        return measure


def range_of(measure: str) -> tuple[float, float]:
    """Return the range of a measure in a series; unbounded if its package is not installed."""
    try:
        return traits(measure).similarity_range
    except RepsimError:
        return -np.inf, np.inf


def compared_with(series: xr.Dataset, comparison: str) -> str:
    """Return what the points of a series are compared with, as words.

    >>> series = xr.Dataset(attrs={"axis": "step", "reference": "last"})
    >>> [compared_with(series, name) for name in ("reference", "previous", "other runs")]
    ['the last point', 'the previous point', 'the other runs at the same step']
    """
    if comparison == "previous":
        return "the previous point"
    if comparison == "other runs":
        return f"the other runs at the same {series.attrs['axis']}"
    reference = str(series.attrs["reference"])
    return f"the {reference} point" if reference in {"first", "last"} else reference


def run_name(run: str) -> str:
    """Return the name of a run for a legend; a series of one run has no name for it."""
    return f"run {run}" if run else "the run"


def trend_name(trend_of: str) -> str:
    """Return the name of what a trend is about."""
    return "mean over layers" if trend_of == NETWORK else trend_of


def value_texts(values: Sequence[float]) -> list[str]:
    """Return values of an axis as short texts.

    >>> value_texts([0.0, 0.001, 512.0, 5000.0, 250000.0])
    ['0', '0.001', '512', '5000', '2.5e5']
    """
    return [f"{value:.6g}" if abs(value) < 100_000 else _scientific(value) for value in values]


def _scientific(value: float) -> str:
    mantissa, exponent = f"{value:.5e}".split("e")
    return f"{float(mantissa):g}e{int(exponent)}"
