"""Choose the axis, the colours and the words with which figures and the page show a series."""

from collections.abc import Sequence

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from repsim.errors import RepsimError
from repsim.presentation.measures import traits
from repsim.presentation.scales import MAGMA, mixed

_RAMP = 0.08, 0.82
"""Part of magma for lines: its ends are too close to black text and to white paper."""


def is_logarithmic(series: xr.Dataset) -> bool:
    """Return whether the axis of a series is logarithmic, as for its slopes."""
    return str(series.attrs["scale"]) == "log"


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


def run_name(series: xr.Dataset, run: str) -> str:
    """Return the name of a run for a legend; the only run of a series has none.

    >>> run_name(xr.Dataset(attrs={"run_axis": "seed"}), "0"), run_name(xr.Dataset(attrs={"run_axis": ""}), "")
    ('seed 0', '')
    """
    return f"{series.attrs['run_axis']} {run}".strip()


def itself(series: xr.Dataset) -> NDArray[np.bool_]:
    """Return which points of a series are their own reference, so that they have no part in trends."""
    run, points = series["run"].values, series["point"].values
    reference = str(series.attrs["reference"])
    if reference == "first":
        return np.array([k == 0 or run[k - 1] != run[k] for k in range(len(run))])
    if reference == "last":
        return np.array([k == len(run) - 1 or run[k + 1] != run[k] for k in range(len(run))])
    return np.asarray(points == reference)


def value_texts(values: Sequence[float]) -> list[str]:
    """Return values of an axis as short texts.

    >>> value_texts([0.0, 0.001, 512.0, 5000.0, 250000.0])
    ['0', '0.001', '512', '5000', '2.5e5']
    """
    return [f"{value:.6g}" if abs(value) < 100_000 else _scientific(value) for value in values]


def _scientific(value: float) -> str:
    mantissa, exponent = f"{value:.5e}".split("e")
    return f"{float(mantissa):g}e{int(exponent)}"
