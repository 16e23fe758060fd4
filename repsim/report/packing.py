"""Pack numbers into short texts, from which the page restores them exactly.

An array is ``{"shape": ..., TYPE: BASE64}`` with TYPE ``f8``, ``f4``, ``i4``, ``i2`` or ``u2``, little-endian. A matrix
over all pairs of layers is one of

- ``{"constant": value}``: this value wherever the measure has a value;
- ``{"triangle": {TYPE: BASE64}}``: the upper triangle of a symmetric matrix, row by row;
- ``{"rows": {TYPE: BASE64}}``: all values, row by row;
- ``{"blocks": {TYPE: BASE64, ...}, "symmetric": ...}``: all values, one pair of networks after the other (`blocks`);
- ``{}``: a matrix that the page derives from others (`derived`);
- None: no value is known.
"""

import base64
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from repsim.presentation.stages import Run

LAYERS = ("layer_a", "layer_b")
_MATRICES = ("value", "low", "high", "chance", "chance_sd", "z", "p")
Matrix = NDArray[np.float64]
_UNDEFINED = 65535
"""Code of an undefined value."""


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


def matrix(
    values: Matrix, has_value: NDArray[np.bool_], kind: str = "f4", sides: Sequence[Sequence[Run]] | None = None
) -> dict[str, Any] | None:
    """Pack a matrix over pairs of layers.

    Parameters
    ----------
    values : array of shape (rows, columns)
        Values, NaN where undefined.
    has_value : bool array of shape (rows, columns)
        Whether the measure has a value.
    kind : {"f4", "f8", "u2"}
        Precision.
    sides : pair of sequences of Run, optional
        Networks along the rows and along the columns, by which values are packed in `blocks`.

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
    symmetric = values.shape[0] == values.shape[1] and np.allclose(
        values, values.T, rtol=1e-7, atol=1e-9, equal_nan=True
    )
    if sides is not None:
        return blocks(values, *sides, symmetric=symmetric and sides[0] == sides[1], kind=kind)
    if symmetric:
        return {"triangle": {kind: _text(values[np.triu_indices(len(values))], kind)}}
    return {"rows": {kind: _text(values, kind)}}


def blocks(values: Matrix, up: Sequence[Run], across: Sequence[Run], *, symmetric: bool, kind: str) -> dict[str, Any]:
    """Pack a matrix so that the page can unpack the layers of one pair of networks without the others.

    Blocks of pairs follow one another in the order of the rows, each row by row. Of a symmetric matrix, those below the
    diagonal are left out.

    Parameters
    ----------
    values : array of shape (rows, columns)
        Values, NaN where undefined.
    up, across : sequence of Run
        Networks along the rows and along the columns.
    symmetric : bool
        Whether the matrix is symmetric, with the same networks along both sides.
    kind : {"f4", "f8", "u2"}
        Precision; ``u2`` is that of `quantised`, unless a value is infinite.

    Examples
    --------
    >>> both = [Run("a", 0, 1), Run("b", 1, 1)]
    >>> blocks(np.array([[1.0, 0.5], [0.5, 1.0]]), both, both, symmetric=True, kind="f4")
    {'blocks': {'shape': [3], 'f4': 'AACAPwAAAD8AAIA/'}, 'symmetric': True}
    """
    ordered = np.concatenate([
        values[a.first : a.first + a.count, b.first : b.first + b.count].ravel()
        for i, a in enumerate(up) for b in (across[i:] if symmetric else across)
    ])  # fmt: skip
    if kind == "u2":
        packed = single(ordered) if np.isinf(ordered).any() else quantised(ordered)
    else:
        packed = {"shape": [ordered.size], kind: _text(ordered, kind)}
    return {"blocks": packed, "symmetric": symmetric}


def quantised(values: NDArray[np.float64]) -> dict[str, Any]:
    """Pack an array with 16 bits a value: ``low + step * code``, with the code 65535 of undefined values.

    The error is at most half a step, which is 1/131,068 of the range of the values.

    >>> packed = quantised(np.array([0.0, np.nan, 0.65534]))
    >>> packed["u2"], packed["low"], round(packed["step"], 9)
    ('AAD///7/', 0.0, 1e-05)
    """
    low, high = (float(end(values)) for end in (np.nanmin, np.nanmax))
    step = (high - low) / (_UNDEFINED - 1) or 1.0
    codes = np.where(np.isnan(values), _UNDEFINED, np.rint((np.nan_to_num(values, nan=low) - low) / step))
    return {"shape": list(values.shape), "u2": _text(codes, "u2"), "low": low, "step": step}


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


def variable(values: xr.DataArray, *, short: bool = False) -> dict[str, Any]:
    """Pack a variable of a study with its dimensions; values of samples are packed in single precision.

    If ``short``, all values are, and matches of layers have 16 bits.
    """
    dims = {"dims": list(map(str, values.dims))}
    if values.dtype.kind in "OUS":
        return dims | {"shape": list(values.shape), "text": list(map(str, values.values.ravel().tolist()))}
    if short and values.name == "match":
        return dims | {"shape": list(values.shape), "i2": _text(values.values, "i2")}
    exact = values.dtype.kind in "biu" or not (short or "sample" in values.dims)
    return dims | (array if exact else single)(values.values)


def matrices(study: xr.Dataset, sides: Sequence[Sequence[Run]] | None = None) -> dict[str, list[dict[str, Any] | None]]:
    """Pack all matrices over pairs of layers of a study, in lists with one entry per measure.

    Given the networks of both ``sides``, they are packed in blocks, and similarities and intervals with 16 bits.
    """
    kinds = {"value": "f8"} if sides is None else dict.fromkeys(("value", "low", "high"), "u2")
    packed_matrices: dict[str, list[dict[str, Any] | None]] = {name: [] for name in _MATRICES}
    for measure in range(study.sizes["measure"]):
        values = {name: study[name].transpose("measure", *LAYERS).values[measure] for name in _MATRICES}
        follow, has_value = derived(values), ~np.isnan(values["value"])
        for name, one in values.items():
            packed = matrix(one, has_value, kinds.get(name, "f4"), sides)
            packed_matrices[name].append({} if packed is not None and name in follow else packed)
    return packed_matrices


def _text(values: NDArray[Any], kind: str) -> str:
    return base64.b64encode(np.ascontiguousarray(values, f"<{kind}").tobytes()).decode()
