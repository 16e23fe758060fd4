"""Pack numbers into short texts, from which the page restores them exactly.

An array is ``{"shape": ..., TYPE: BASE64}`` with TYPE ``f8``, ``f4`` or ``i4``, little-endian. A matrix over all pairs
of layers is one of

- ``{"constant": value}``: this value wherever the measure has a value;
- ``{"triangle": {TYPE: BASE64}}``: the upper triangle of a symmetric matrix, row by row;
- ``{"rows": {TYPE: BASE64}}``: all values, row by row;
- ``{}``: a matrix that the page derives from others (`derived`);
- None: no value is known.
"""

import base64
from collections.abc import Mapping
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

LAYERS = ("layer_a", "layer_b")
_MATRICES = ("value", "low", "high", "chance", "chance_sd", "z", "p")
Matrix = NDArray[np.float64]


def array(values: NDArray[Any]) -> dict[str, Any]:
    """Pack an array: integers as ``i4``, other numbers as ``f8``.

    >>> array(np.array([1.0, 2.0]))
    {'shape': [2], 'f8': 'AAAAAAAA8D8AAAAAAAAAQA=='}
    """
    kind = "i4" if values.dtype.kind in "biu" else "f8"
    return {"shape": list(values.shape), kind: _text(values, kind)}


def single(values: NDArray[Any]) -> dict[str, Any]:
    """Pack an array in single precision.

    >>> single(np.array([1.0, 2.0]))
    {'shape': [2], 'f4': 'AACAPwAAAEA='}
    """
    return {"shape": list(values.shape), "f4": _text(values, "f4")}


def matrix(values: Matrix, has_value: NDArray[np.bool_], kind: str = "f4") -> dict[str, Any] | None:
    """Pack a matrix over pairs of layers.

    Parameters
    ----------
    values : array of shape (rows, columns)
        Values, NaN where undefined.
    has_value : bool array of shape (rows, columns)
        Whether the measure has a value.
    kind : {"f4", "f8"}
        Precision.

    Examples
    --------
    >>> has_value = np.ones((2, 2), bool)
    >>> matrix(np.full((2, 2), 0.5), has_value), matrix(np.full((2, 2), np.nan), has_value)
    ({'constant': 0.5}, None)
    >>> matrix(np.array([[1.0, 2.0], [2.0, 1.0]]), has_value)
    {'triangle': {'f4': 'AACAPwAAAEAAAIA/'}}
    """
    finite = np.isfinite(values)
    if not finite.any():
        return None
    if np.array_equal(finite, has_value) and np.ptp(values[finite]) == 0:
        return {"constant": float(values[finite][0])}
    if values.shape[0] == values.shape[1] and np.allclose(values, values.T, rtol=1e-7, atol=1e-9, equal_nan=True):
        return {"triangle": {kind: _text(values[np.triu_indices(len(values))], kind)}}
    return {"rows": {kind: _text(values, kind)}}


def derived(matrices: Mapping[str, Matrix]) -> set[str]:
    """Return which of ``high`` and ``z`` follow from the others.

    ``high`` follows if intervals are symmetric, ``z`` if it equals (value - chance) / chance_sd.

    >>> symmetric = {"value": np.array([[0.5]]), "low": np.array([[0.4]]), "high": np.array([[0.6]])}
    >>> derived(symmetric), derived(symmetric | {"high": np.array([[0.7]])})
    ({'high'}, set())
    """
    with np.errstate(invalid="ignore", divide="ignore"):
        follow = {}
        if "high" in matrices:
            follow["high"] = 2 * matrices["value"] - matrices["low"]
        if "z" in matrices:
            follow["z"] = (matrices["value"] - matrices["chance"]) / matrices["chance_sd"]
    return {
        name
        for name, value in follow.items()
        if np.allclose(matrices[name], value, rtol=1e-7, atol=1e-9, equal_nan=True)
    }


def variable(values: xr.DataArray) -> dict[str, Any]:
    """Pack a variable of a study with its dimensions; values of samples are packed in single precision."""
    dims = {"dims": list(map(str, values.dims))}
    if values.dtype.kind in "OUS":
        return dims | {"shape": list(values.shape), "text": list(map(str, values.values.ravel().tolist()))}
    return dims | (single(values.values) if "sample" in values.dims else array(values.values))


def matrices(study: xr.Dataset) -> dict[str, list[dict[str, Any] | None]]:
    """Pack all matrices over pairs of layers of a study, in lists with one entry per measure."""
    packed_matrices: dict[str, list[dict[str, Any] | None]] = {name: [] for name in _MATRICES}
    for measure in range(study.sizes["measure"]):
        values = {name: study[name].transpose("measure", *LAYERS).values[measure] for name in _MATRICES}
        follow, has_value = derived(values), ~np.isnan(values["value"])
        for name, one in values.items():
            packed = matrix(one, has_value, "f8" if name == "value" else "f4")
            packed_matrices[name].append({} if packed is not None and name in follow else packed)
    return packed_matrices


def _text(values: NDArray[Any], kind: str) -> str:
    return base64.b64encode(np.ascontiguousarray(values, f"<{kind}").tobytes()).decode()
