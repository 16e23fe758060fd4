"""Coordinates of results and studies for the axes of models: ``axis_step_a`` of layers, ``axis_step`` of models.

Where a model has no value on an axis, the coordinate is NaN, or empty if it is text.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from repsim.results.variables import AXIS
from repsim.stores.axes import Axes


def axis_coordinates(axes: Sequence[Axes]) -> dict[str, NDArray[Any]]:
    """Return one array per axis, with one value per model, named ``axis_NAME``.

    Integers are int64 if every model has one, other numbers float64. If a value is text, all values are text.

    Parameters
    ----------
    axes : sequence of mapping
        Axes of every model.

    Examples
    --------
    >>> axis_coordinates([{"step": 1, "run": "a"}, {"step": 2}])
    {'axis_step': array([1, 2]), 'axis_run': array(['a', ''], dtype=object)}
    >>> axis_coordinates([{"lr": 0.5, "width": 8}, {"width": "wide"}])
    {'axis_lr': array([0.5, nan]), 'axis_width': array(['8', 'wide'], dtype=object)}
    """
    names = dict.fromkeys(name for of_model in axes for name in of_model)
    return {f"{AXIS}{name}": _column([of_model.get(name) for of_model in axes]) for name in names}


def _column(values: Sequence[Any]) -> NDArray[Any]:
    if any(isinstance(value, str) for value in values):
        return np.array(["" if value is None else str(value) for value in values], object)
    if all(isinstance(value, int) for value in values):
        return np.array(values, np.int64)
    return np.array([np.nan if value is None else float(value) for value in values], np.float64)
