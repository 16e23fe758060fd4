"""Convert arrays and labels of any library to numpy arrays, and refuse those that numpy would change.

numpy accepts more than repsim can use: it drops the mask of a masked array, turns a list of numbers and words into
text, and a sparse matrix into an object. So every array that a user passes to repsim is checked here first. Only numpy
is imported: an object of torch, pandas or scipy can only exist where that library is loaded already.
"""

import math
import sys
from collections.abc import Iterator, Mapping, Sequence, Set
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from repsim.errors import InvalidInputError, reason

Array = NDArray[Any]


@runtime_checkable
class SupportsArray(Protocol):
    """An object that numpy can convert to an array."""

    def __array__(self) -> Any:
        """Return the same values as a numpy array."""


_EXACT = 2**53
"""Above this, float64 cannot represent every integer."""
_UNREADABLE = {
    "O": "it holds Python objects; convert it with astype(float)",
    "U": "it holds text",
    "S": "it holds bytes",
    "M": "it holds dates",
    "m": "it holds durations",
    "V": "it has fields; select one of them, or make them the columns of one array",
    "T": "it holds text",
}


def as_array(values: Any, what: str) -> Array:
    """Convert an object to a numpy array of numbers.

    Torch tensors may be on any device; they are detached from their gradient. bfloat16 and the 8-bit floats, which
    numpy lacks, become float32, which represents each of their values exactly. No other dtype changes.

    Parameters
    ----------
    values : array-like
        An array of numpy, torch, jax, pandas or xarray, or nested sequences.
    what : str
        The name of the array in error messages.

    Returns
    -------
    ndarray
        An array of booleans, integers, floats or complex numbers; never a subclass of ndarray.

    Raises
    ------
    InvalidInputError
        If the array is masked or sparse; holds objects, text, dates or fields; has no values (torch's device "meta");
        or if ``values`` is a set, a mapping or no array at all.

    Examples
    --------
    >>> as_array([[1, 2], [3, 4]], "x").shape
    (2, 2)
    >>> as_array(np.ma.masked_invalid([1.0, np.nan]), "x")
    Traceback (most recent call last):
    ...
    repsim.errors.InvalidInputError: x is a masked array, and 1 of its values are masked; leave these samples or ...
    """
    if is_tensor(values):
        return _from_torch(values, what)
    array = _read(values, what)
    if _is_short_float(array.dtype.name):  # from ml_dtypes, which jax uses
        return array.astype(np.float32)
    if array.dtype.kind not in "biufc":
        why = _UNREADABLE.get(array.dtype.kind, "it holds no numbers")
        raise InvalidInputError(f"{what}: expected an array of numbers, got dtype {array.dtype}: {why}")
    return array


def check_exact(values: Any, what: str) -> None:
    """Raise `InvalidInputError` if an array or tensor holds integers that float64 cannot represent."""
    if values.dtype.itemsize >= 8 and math.prod(values.shape) and max(-int(values.min()), int(values.max())) > _EXACT:
        raise InvalidInputError(
            f"{what} holds whole numbers beyond 2**53, which float64 cannot distinguish; take them as categories"
        )


def is_tensor(values: Any) -> bool:
    """Return whether an object is a torch tensor, without importing torch."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(values, torch.Tensor)


def check_tensor(tensor: Any, what: str) -> None:
    """Raise `InvalidInputError` for a torch tensor that has no values, or is sparse, nested or quantized."""
    if tensor.is_meta:
        raise InvalidInputError(f"{what} is a tensor on the device meta, which holds no values; load it first")
    if tensor.is_nested or str(tensor.layout) != "torch.strided":
        raise InvalidInputError(f"{what} is a sparse or nested tensor ({tensor.layout}); give to_dense() of it")
    if tensor.is_quantized:
        raise InvalidInputError(f"{what} is a quantized tensor ({tensor.dtype}); give dequantize() of it")


def is_finite(tensor: Any) -> bool:
    """Return whether no value of a tensor is NaN or infinite.

    NaN and infinity become the smallest or largest value, whose search takes a tenth of the time of torch.isfinite.
    """
    return tensor.numel() == 0 or all(math.isfinite(value) for value in tensor.aminmax())


def _is_short_float(dtype: str) -> bool:
    """Return whether numpy lacks this float type; float32 represents all its values."""
    return dtype == "bfloat16" or dtype.startswith("float8")


def _from_torch(tensor: Any, what: str) -> Array:
    check_tensor(tensor, what)
    name = str(tensor.dtype).removeprefix("torch.")
    values = tensor.detach().cpu().resolve_conj().resolve_neg()
    if _is_short_float(name):
        values = values.float()
    return np.asarray(values.numpy())


def _read(values: Any, what: str) -> Array:
    """Convert an object with `numpy.asarray`, and raise `InvalidInputError` where that would silently change it."""
    if isinstance(values, np.ma.MaskedArray):
        masked = int(np.ma.getmaskarray(values).sum())
        todo = "leave these samples or features out, or fill them in (filled())" if masked else "give its data"
        raise InvalidInputError(f"{what} is a masked array, and {masked} of its values are masked; {todo}")
    if hasattr(values, "layers") and hasattr(values, "sample_ids"):
        raise InvalidInputError(f"{what} is a store of several layers; name one of them, as in store['layer4']")
    if isinstance(values, Mapping | Set):
        raise InvalidInputError(f"{what}: expected an array, got a {type(values).__name__}, which has no order of rows")
    if hasattr(values, "tocoo") or type(values).__module__.partition(".")[0] == "sparse":
        raise InvalidInputError(f"{what} is a sparse {type(values).__name__}; give toarray() of it")
    if isinstance(values, list | tuple) and any(isinstance(row, np.ma.MaskedArray) for row in values):
        raise InvalidInputError(f"{what} holds masked arrays; leave out what is masked, or fill it in (filled())")
    if isinstance(values, list | tuple) and any(map(is_tensor, values)):
        values = [as_array(row, what) for row in values]
    try:
        return np.asarray(values)
    except Exception as error:  # noqa: BLE001 - other libraries' __array__ raise anything
        raise InvalidInputError(f"{what} cannot be read as an array: {reason(error)}") from None


def row_names(values: Any) -> tuple[str, ...] | None:
    """Return the row names: the index of a data frame or series, the first coordinate in xarray; None without any."""
    if hasattr(values, "iloc") and hasattr(values, "index"):
        return tuple(map(str, values.index.tolist()))
    if hasattr(values, "dims") and hasattr(values, "coords") and len(values.dims) and values.dims[0] in values.coords:
        return tuple(map(str, values.coords[values.dims[0]].values.tolist()))
    return None


def same_rows(arrays: Mapping[str, Any]) -> tuple[str, ...] | None:
    """Check that arrays with row names have the same names in the same order, and return these names.

    pandas and xarray align rows by name; repsim compares rows by position.

    Parameters
    ----------
    arrays : mapping of str to array-like
        The arrays by their names in error messages.

    Returns
    -------
    tuple of str, or None
        The row names; None if no array has any, or if they only count from 0.

    Raises
    ------
    InvalidInputError
        If the row names of two arrays differ.
    """
    names = {what: rows for what, values in arrays.items() if (rows := row_names(values)) is not None}
    if not names:
        return None
    first, *others = names
    for second in others:
        if names[second] != names[first]:
            row = next((k for k, (a, b) in enumerate(zip(names[first], names[second], strict=False)) if a != b), None)
            difference = f"{len(names[first])} and {len(names[second])} rows"
            if row is not None:
                difference = f"row {row} is {names[first][row]!r} in {first} and {names[second][row]!r} in {second}"
            raise InvalidInputError(
                f"{first} and {second} name their rows differently: {difference}. Bring them into one order "
                "(reindex), or give plain arrays (to_numpy()), whose rows are compared by position"
            )
    return None if names[first] == tuple(map(str, range(len(names[first])))) else names[first]


def as_classes(labels: Any, n: int) -> tuple[NDArray[np.int64], tuple[str, ...]]:
    """Convert the labels of samples to class numbers and class names.

    Parameters
    ----------
    labels : array-like of shape (n,)
        Integers from 0 on, or names: text, booleans, or a pandas Categorical. Names are numbered in alphabetical
        order; a Categorical keeps the order of its categories.
    n : int
        Number of samples.

    Returns
    -------
    numbers : ndarray of shape (n,)
        The class numbers.
    names : tuple of str
        The class names in the order of the numbers; () if the labels are numbers.

    Raises
    ------
    InvalidInputError
        If the labels have another shape (one-hot labels, too), or one is missing, not an integer, negative or too
        large.

    Examples
    --------
    >>> as_classes(["dog", "cat", "dog"], 3)
    (array([1, 0, 1]), ('cat', 'dog'))
    >>> as_classes([0.0, 1.0, 2.5], 3)
    Traceback (most recent call last):
    ...
    repsim.errors.InvalidInputError: labels are classes: whole numbers or names; sample 2 has 2.5. Name a class for ...
    """
    if getattr(getattr(labels, "dtype", None), "name", "") == "category":
        return _encode_categories(getattr(labels, "cat", labels), n)
    if isinstance(labels, str | bytes):
        raise InvalidInputError(f"labels: expected one a sample, got the single {labels!r}")
    if isinstance(labels, Sequence | Iterator):
        labels = list(labels)
        _check_kinds(labels)
    array = as_array(labels, "labels") if is_tensor(labels) else _read(labels, "labels")
    if array.ndim != 1:
        several = array.ndim == 2 and array.shape[1] > 1
        todo = "of one-hot labels, or of scores, give argmax(1)" if several else "give them in one dimension (ravel())"
        raise InvalidInputError(f"labels: expected one a sample, of shape ({n},), got {array.shape}; {todo}")
    if len(array) != n:
        raise InvalidInputError(f"{len(array)} labels for {n} samples")
    if array.dtype.kind in "OT":
        _check_kinds(array.tolist())
        array = _read(array.tolist(), "labels")
    if array.dtype.kind == "U":
        return _encode_names(array.tolist())
    if array.dtype.kind == "b":
        return array.astype(np.int64), ("False", "True")
    return _check_numbers(array), ()


def as_groups(groups: Any, n: int | None = None) -> tuple[NDArray[np.int64], tuple[str, ...]]:
    """Convert the groups of samples to numbers, by first occurrence, and names.

    Parameters
    ----------
    groups : array-like of shape (n,)
        One integer or text for each sample.
    n : int, optional
        Number of samples.

    Returns
    -------
    numbers : ndarray of shape (n,)
        Group of each sample, from 0.
    names : tuple of str
        Names of the groups, in the order of the numbers.

    Raises
    ------
    InvalidInputError
        If the groups have another shape, or one is missing or neither an integer nor a text.

    Examples
    --------
    >>> as_groups(["sea", "hill", "sea"])
    (array([0, 1, 0]), ('sea', 'hill'))
    """
    if isinstance(groups, str | bytes):
        raise InvalidInputError(f"groups: expected one a sample, got the single {groups!r}")
    if isinstance(groups, Sequence | Iterator):
        groups = list(groups)
        kinds = {isinstance(group, str) for group in groups}
        if len(kinds) > 1:
            raise InvalidInputError("groups are integers or texts, not both")
    array = as_array(groups, "groups") if is_tensor(groups) else _read(groups, "groups")
    if array.ndim != 1 or (n is not None and len(array) != n):
        expected = "" if n is None else f" for {n} samples"
        got = f"{len(array)} groups" if array.ndim == 1 else f"groups of the shape {array.shape}"
        raise InvalidInputError(f"{got}{expected}: give the group of every sample")
    values = array.tolist()
    for k, group in enumerate(values):
        if isinstance(group, bool) or not isinstance(group, str | int) or group == "":
            raise InvalidInputError(f"groups: sample {k} has {group!r}; a group is an integer or a text")
    number_of: dict[str | int, int] = {}
    numbers = [number_of.setdefault(group, len(number_of)) for group in values]
    return np.array(numbers, np.int64), tuple(map(str, number_of))


def _check_kinds(labels: Sequence[Any]) -> None:
    """Raise `InvalidInputError` for labels that numpy would convert to one type: 1 to "1", None to nan."""
    for k, label in enumerate(labels):
        if label is None or (isinstance(label, float) and math.isnan(label)) or type(label).__name__ == "NAType":
            raise InvalidInputError(f"labels: sample {k} has none ({label}); leave it out, or name a class for it")
        if isinstance(label, str) and "\0" in label:  # numpy drops null characters at the end of a text
            raise InvalidInputError(f"labels: sample {k} has {label!r}, which holds a null character; rename it")
    text = [isinstance(label, str) for label in labels]
    if any(text) and not all(text):
        k = text.index(not text[0])
        raise InvalidInputError(
            f"labels are numbers or names, not both: sample 0 has {labels[0]!r}, sample {k} has {labels[k]!r}"
        )


def _encode_categories(labels: Any, n: int) -> tuple[NDArray[np.int64], tuple[str, ...]]:
    """Return the codes and the names of a pandas Categorical, in the order of its categories."""
    codes, names = np.asarray(labels.codes, np.int64), tuple(map(str, labels.categories))
    if len(codes) != n:
        raise InvalidInputError(f"{len(codes)} labels for {n} samples")
    if (codes < 0).any():
        k = int(np.flatnonzero(codes < 0)[0])
        raise InvalidInputError(f"labels: sample {k} has none; leave it out, or name a class for it")
    if len(set(names)) < len(names):
        raise InvalidInputError(f"labels: two of the categories have the same name: {', '.join(names[:6])}")
    return codes, names


def _encode_names(labels: Sequence[str]) -> tuple[NDArray[np.int64], tuple[str, ...]]:
    if "" in labels:
        raise InvalidInputError(
            f"labels: sample {labels.index('')} has none (''); leave it out, or name a class for it"
        )
    names = sorted(set(labels))
    place = {name: k for k, name in enumerate(names)}
    return np.array([place[name] for name in labels], np.int64), tuple(names)


def _check_numbers(labels: Array) -> NDArray[np.int64]:
    """Return class numbers as int64; floats have to be whole numbers."""
    if labels.dtype.kind == "O":
        k, label = next(((k, x) for k, x in enumerate(labels) if not isinstance(x, int)), (0, labels[0]))
        raise InvalidInputError(
            f"labels are classes: whole numbers from 0 to 2**63 - 1, or names; sample {k} has {label!r}"
        )
    if labels.dtype.kind not in "iuf":
        raise InvalidInputError(f"labels are classes: whole numbers or names, not dtype {labels.dtype}")
    if labels.dtype.kind == "f":
        labels = labels.astype(np.promote_types(labels.dtype, np.float64))  # exact; float16 cannot represent 2**53
        wrong = ~np.isfinite(labels) | (labels != np.round(labels))
        if wrong.any():
            k = int(np.flatnonzero(wrong)[0])
            raise InvalidInputError(
                f"labels are classes: whole numbers or names; sample {k} has {labels[k]}. Name a class for every "
                "sample, or leave the labels out (divide a continuous quantity into classes first)"
            )
    limit = _EXACT if labels.dtype.kind == "f" else 2**63 - 1
    for wrong, why in ((labels < 0, "negative"), (labels > limit, "too large for a class number")):
        if wrong.any():
            k = int(np.flatnonzero(wrong)[0])
            raise InvalidInputError(
                f"labels are class numbers from 0 on; sample {k} has {labels[k]}, which is {why}. Number the classes "
                "with np.unique(labels, return_inverse=True)[1]; leave samples without a class out"
            )
    return labels.astype(np.int64)
