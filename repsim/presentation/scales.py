"""Choose colour scales: they span the declared range of a measure, and similar layers are bright."""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

MAGMA = (
    "#000004", "#030312", "#0a0822", "#130d34", "#1d1147", "#29115a", "#36106b", "#440f76", "#51127c", "#5d177f",
    "#6a1c81", "#762181", "#832681", "#902a81", "#9c2e7f", "#aa337d", "#b73779", "#c43c75", "#d0416f", "#dc4869",
    "#e75263", "#ef5d5e", "#f56b5c", "#f9795d", "#fc8961", "#fd9869", "#fea772", "#feb67c", "#fec488", "#fed395",
    "#fde2a3", "#fcf0b2", "#fcfdbf",
)  # fmt: skip
"""matplotlib's perceptually uniform colour map at equal steps; linear interpolation is within 1 % of the map."""
GREEN = ("#c9f7e4", "#0a4a3a")
"""Colours of the lowest value and of 0 for negative similarities: a hue that does not occur in magma."""


class Scale(NamedTuple):
    """Colour scale of one measure: magma from ``low`` to ``high``, or magma from 0 on and green below 0."""

    low: float
    high: float
    """Ends of the declared range; an infinite end is replaced by the extreme of the values."""
    shown: tuple[float, float]
    """Part of the range that a colour bar shows; below 0 only as many tenths of the range as have values."""
    below: bool
    above: bool
    """Whether some values lie below, or above, the range."""
    reverse: bool
    """Whether low values are bright, as for a distance."""

    @property
    def signed(self) -> bool:
        """Whether values below 0 have their own colours."""
        return self.low < 0 < self.high and not self.reverse

    @property
    def stops(self) -> list[tuple[float, str]]:
        """Positions in the shown part of the range, from 0 to 1, with their colours; linear in between.

        >>> scale_of(np.array([-0.2, 0.5]), (-1, 1)).stops[:3]
        [(0.0, '#306d5c'), (0.1667, '#0a4a3a'), (0.1667, '#000004')]
        """
        least, most = self.shown
        ramp = MAGMA[::-1] if self.reverse else MAGMA
        zero = -least / (most - least) if self.signed else 0.0
        positions = [round(zero + (1 - zero) * k / (len(ramp) - 1), 4) for k in range(len(ramp))]
        magma = list(zip(positions, ramp, strict=True))
        if not (self.signed and least < 0):
            return magma
        return [(0.0, mixed(*GREEN, 1 - least / self.low)), (round(zero, 4), GREEN[1]), *magma]


def scale_of(values: NDArray[np.float64], valid_range: tuple[float, float], sense: str = "similarity") -> Scale:
    """Choose the colour scale of a measure: it spans the declared range, never the range of the data.

    Only an infinite bound is replaced by the extreme of the values.

    Parameters
    ----------
    values : array of any shape
        Values of the measure; NaN for undefined values.
    valid_range : tuple of float
        Range that the measure declares.
    sense : {"similarity", "distance"}
        Sense that the measure declares.

    Examples
    --------
    >>> scale_of(np.array([0.25, 0.5]), (0, math.inf), "distance")
    Scale(low=0, high=0.5, shown=(0, 0.5), below=False, above=False, reverse=True)
    """
    low, high = valid_range
    finite = values[np.isfinite(values)]
    least, most = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 1.0)
    low = low if math.isfinite(low) else least
    high = high if math.isfinite(high) else most
    high = high if high > low else low + 1
    slack = 1e-6 * (high - low)  # rounding errors do not count as values beyond the range
    scale = Scale(
        low,
        high,
        shown=(low, high),
        below=bool((values < low - slack).any()),
        above=bool((values > high + slack).any()),
        reverse=sense != "similarity",
    )
    if not scale.signed:
        return scale
    tenth = -low / 10
    start = max(low, math.floor(least / tenth) * tenth) if least < 0 else 0.0
    return scale._replace(shown=(start, high))


def declared(attrs: Mapping[str, Any]) -> tuple[tuple[float, float], str]:
    """Return the range and the sense that a variable declares; by default an unbounded similarity."""
    low, high = map(float, attrs.get("valid_range", (-math.inf, math.inf)))
    return (low, high), str(attrs.get("sense", "similarity"))


def mixed(first: str, second: str, share: float) -> str:
    """Mix two colours; ``share`` is the weight of the second, in [0, 1]."""
    pairs = zip(*(bytes.fromhex(colour[1:]) for colour in (first, second)), strict=True)
    return "#" + "".join(f"{round(a + (b - a) * share):02x}" for a, b in pairs)
