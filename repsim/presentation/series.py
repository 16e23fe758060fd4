"""Choose the axis, the colours and the words with which figures and the page show a series."""

from collections.abc import Sequence

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from repsim.errors import RepsimError
from repsim.presentation.measures import traits
from repsim.presentation.scales import MAGMA, mixed
from repsim.trends.names import reference_in_words

_ZERO = 0.5
"""Distance of 0 from the smallest positive value on a logarithmic axis, in decades."""
_RAMP = {False: (0.08, 0.82), True: (0.36, 1.0)}
"""Part of magma for lines on white paper, and on a dark page, from which its ends would not stand out."""


def is_logarithmic(series: xr.Dataset) -> bool:
    """Return whether the axis of a series is logarithmic, as for its slopes."""
    return str(series.attrs["scale"]) == "log"


def ramp(count: int, *, dark: bool = False) -> list[str]:
    """Return colours for an ordered set of lines, dark to bright; colour-blind readers see their order, too.

    >>> ramp(3), ramp(3, dark=True)[0]
    (['#0f0b2c', '#a2307e', '#feab74'], '#7d2481')
    """
    first, last = _RAMP[dark]
    shares = np.linspace(first, last, count) if count > 1 else np.array([(first + last) / 2])
    at = shares * (len(MAGMA) - 1)
    return [mixed(MAGMA[int(k)], MAGMA[min(int(k) + 1, len(MAGMA) - 1)], float(k % 1)) for k in at]


def label_of(measure: str) -> str:
    """Return the label of a measure for figures: its name if its package is not installed.

    A series holds the negative of a distance, as a study does.

    >>> label_of("cka"), label_of("procrustes").endswith("(its negative)")
    ('CKA (linear, debiased)', True)
    """
    try:
        declares = traits(measure)
    except RepsimError:
        return measure
    return declares.label if declares.sense == "similarity" else f"{declares.label} (its negative)"


def drift_of(measure: str) -> tuple[float, str]:
    """Return the similarity of equal layers, and the label of its difference to a similarity, the drift.

    >>> drift_of("cka")
    (1.0, '1 \N{MINUS SIGN} CKA (linear, debiased)')
    >>> drift_of("procrustes")[0]
    0.0
    """
    most = range_of(measure)[1]
    if most == 0:  # the drift is the distance itself
        return 0.0, traits(measure).label
    most = most if np.isfinite(most) else 1.0
    return most, f"{most:g} \N{MINUS SIGN} {label_of(measure)}"


def range_of(measure: str) -> tuple[float, float]:
    """Return the range of a measure in a series; unbounded if its package is not installed."""
    try:
        return traits(measure).similarity_range
    except RepsimError:
        return -np.inf, np.inf


def compared_with(series: xr.Dataset, comparison: str) -> str:
    """Return what the points of a series are compared with, as words.

    >>> series = xr.Dataset(attrs={"axis": "step", "reference": "last", "run_axis": ""})
    >>> [compared_with(series, name) for name in ("reference", "previous", "other runs")]
    ['the last point', 'the previous point', 'the other runs at the same step']
    """
    if comparison == "previous":
        return "the previous point"
    if comparison == "other runs":
        return f"the other runs at the same {series.attrs['axis']}"
    return reference_in_words(series)


def run_name(series: xr.Dataset, run: str) -> str:
    """Return the name of a run for a legend; the only run of a series has none.

    >>> run_name(xr.Dataset(attrs={"run_axis": "seed"}), "0"), run_name(xr.Dataset(attrs={"run_axis": ""}), "")
    ('seed 0', '')
    """
    return f"{series.attrs['run_axis']} {run}".strip()


def itself(series: xr.Dataset) -> NDArray[np.bool_]:
    """Return which points of a series are their own reference, so that they have no part in trends."""
    return np.array([series["point"].values[k] == name for k, name in enumerate(references(series))])


def references(series: xr.Dataset) -> list[str]:
    """Return the name of the reference of every point; empty if it is none of the points."""
    run, value, points = (series[name].values for name in ("run", "value", "point"))
    reference = str(series.attrs["reference"])
    if reference.startswith("run="):
        other = reference.removeprefix("run=")
        at = {float(value[k]): str(points[k]) for k in range(len(points)) if run[k] == other}
        return [at.get(float(place), "") for place in value]
    if reference in {"first", "last"}:
        ends = {str(one): str(points[run == one][0 if reference == "first" else -1]) for one in dict.fromkeys(run)}
        return [ends[str(one)] for one in run]
    return [reference if reference in points else ""] * len(points)


def log_ticks(least: float, most: float, values: NDArray[np.float64], room: int) -> list[float]:
    """Return at most ``room`` ticks of a logarithmic axis from ``least`` to ``most``.

    They are the ``values`` of the series if these are evenly spaced, such as 16, 32, 64; else powers of ten, or 1, 2
    and 5 times these if there are fewer than three, or multiples of such a number on a short axis.

    >>> log_ticks(1, 1000, np.array([1.0, 5, 1000]), 9), log_ticks(16, 128, np.array([16.0, 32, 64, 128]), 9)
    ([1.0, 10.0, 100.0, 1000.0], [16.0, 32.0, 64.0, 128.0])
    >>> log_ticks(66, 91, np.array([1.0, 5, 100]), 9)
    [70.0, 75.0, 80.0, 85.0, 90.0]
    """
    own = np.unique(values[values > 0])
    powers = 10.0 ** np.arange(np.floor(np.log10(least)), np.ceil(np.log10(most)) + 1)
    choices = [own] if len(own) > 2 and np.allclose(np.diff(np.log(own), 2), 0, atol=0.02) else []
    steps = np.outer(powers, [0.01, 0.02, 0.05, 0.1, 0.2, 0.5]).ravel()
    step = steps[np.argmin(np.abs(steps - (most - least) / 5))] if most > least else least
    choices += [powers, np.outer(powers, [1, 2, 5]).ravel(), step * np.arange(1, np.ceil(most / step) + 1)]
    inside = [ticks[(ticks >= 0.999 * least) & (ticks <= 1.001 * most)] for ticks in choices]
    ticks = next((marks for marks in inside if len(marks) > 2), np.array([least, most]))
    return [float(tick) for tick in ticks[:: int(np.ceil(len(ticks) / room))]]


def places(series: xr.Dataset, values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the places of values of the axis on a line: their logarithms if the axis is logarithmic.

    Then 0 has its place left of the smallest positive value of the series, at a distance of half a decade.

    >>> series = xr.Dataset({"value": ("point", [0.0, 1.0, 100.0])}, attrs={"scale": "log"})
    >>> places(series, np.array([0.0, 1.0, 100.0])).tolist()
    [-0.5, 0.0, 2.0]
    """
    values = np.asarray(values, np.float64)
    if not is_logarithmic(series):
        return values
    own = series["value"].values
    zero = np.log10(own[own > 0].min()) - _ZERO
    return np.where(values > 0, np.log10(np.where(values > 0, values, 1)), np.where(values == 0, zero, np.nan))


def value_texts(values: Sequence[float]) -> list[str]:
    """Return values of an axis as short texts.

    >>> value_texts([0.0, 0.001, 512.0, 5000.0, 250000.0])
    ['0', '0.001', '512', '5000', '2.5e5']
    """
    return [f"{value:.6g}" if abs(value) < 100_000 else _scientific(value) for value in values]


def _scientific(value: float) -> str:
    mantissa, exponent = f"{value:.5e}".split("e")
    return f"{float(mantissa):g}e{int(exponent)}"
