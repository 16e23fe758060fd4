"""Convert the provenance of a store to JSON values.

Numbers, arrays and dates of numpy, tensors and paths are converted. JSON has no NaN, no bytes and only text for keys:
values that JSON would change silently or cannot represent are refused, and the error names the entry.
"""

import math
from collections.abc import Mapping
from datetime import date, datetime, time
from os import PathLike
from typing import Any

import numpy as np

from repsim.errors import InvalidInputError
from repsim.runtime.arrays import as_array, is_tensor

_MAX_DEPTH = 50
"""Largest depth of nested dictionaries and lists; a deeper one probably contains itself."""


def as_json(value: Any, where: str, depth: int = 0) -> Any:
    """Convert a value to types that JSON writes and reads back unchanged.

    Numbers of numpy become numbers of Python, arrays and tuples become lists, paths become text, and dates become text
    in ISO 8601.

    Parameters
    ----------
    value : object
        The value to record.
    where : str
        Name of the entry, for error messages.
    depth : int
        Number of dictionaries and lists around the value.

    Raises
    ------
    InvalidInputError
        The value is or contains NaN, an infinity, bytes, a set, a key that is no text, or an object of another type.

    Examples
    --------
    >>> as_json({"lr": np.float32(0.5), "shape": (3, np.int64(2)), "seen": datetime(2026, 1, 2)}, "provenance")
    {'lr': 0.5, 'shape': [3, 2], 'seen': '2026-01-02T00:00:00'}
    >>> as_json({"loss": [0.1, float("nan")]}, "provenance")
    Traceback (most recent call last):
    ...
    repsim.errors.InvalidInputError: provenance.loss[1] is nan, which JSON does not have; leave it out, or ...
    """
    if depth > _MAX_DEPTH:
        raise InvalidInputError(f"{where[:80]} ... is nested more than {_MAX_DEPTH} deep; does it contain itself?")
    if isinstance(value, Mapping):
        return {_key(key, where): as_json(entry, f"{where}.{key}", depth + 1) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [as_json(entry, f"{where}[{k}]", depth + 1) for k, entry in enumerate(value)]
    if (isinstance(value, np.generic | np.ndarray) and value.dtype.kind not in "UMm") or is_tensor(value):
        return as_json(_numbers(value, where), where, depth + 1)
    if isinstance(value, np.ndarray):
        return as_json(value.astype(str).tolist(), where, depth + 1)
    return _scalar(value, where)


def _scalar(value: Any, where: str) -> Any:
    """Convert a value that is no container."""
    if isinstance(value, float) and not math.isfinite(value):
        raise InvalidInputError(f"{where} is {value}, which JSON does not have; leave it out, or record it as text")
    if value is None or isinstance(value, bool):
        return value
    for kind in (str, int, float):
        if isinstance(value, kind):
            return kind(value)
    if isinstance(value, datetime | date | time):
        return value.isoformat()
    if isinstance(value, PathLike | np.datetime64 | np.timedelta64):
        return str(value)
    raise InvalidInputError(
        f"{where} is of type {type(value).__name__}, which JSON does not have; record numbers, text, lists and "
        "dictionaries"
    )


def _numbers(value: Any, where: str) -> Any:
    """Convert numbers and arrays of numpy or torch to Python numbers and lists; float32 keeps its exact value."""
    array = as_array(value, where)
    if array.dtype.kind == "c" or array.dtype.itemsize > 8:
        raise InvalidInputError(f"{where} is of dtype {array.dtype}, which JSON does not have; record plain numbers")
    return array.tolist()


def _key(key: Any, where: str) -> str:
    if not isinstance(key, str):
        raise InvalidInputError(f"{where} has the key {key!r}; keys are text in JSON, so write {str(key)!r}")
    return str(key)
