"""Takes arrays from any library as numpy arrays or tensors, and refuses what could only be taken by changing it.

numpy itself is generous: it drops the mask of a masked array, makes text of a list of numbers and words, and an object
of a sparse matrix. Whatever a user gives to repsim passes here first. No library beside numpy is imported: where an
object is of torch, pandas or scipy, that library is loaded already.
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
    """An array of some library: what numpy can make an array of."""

    def __array__(self) -> Any:
        """The same values as a numpy array."""


_EXACT = 2**53
"""From here on float64 no longer tells two neighbouring whole numbers apart."""
_UNREADABLE = {
    "O": "it holds Python objects; convert it with astype(float)",
    "U": "it holds text",
    "S": "it holds bytes",
    "M": "it holds dates",
    "m": "it holds durations",
    "V": "it has fields; take one of them, or all as the columns of one array",
    "T": "it holds text",
}


def as_array(values: Any, what: str) -> Array:
    """Read an object as a numpy array of numbers.

    Torch tensors come from any device, without their gradient. bfloat16 and the 8-bit floats, which numpy does not
    have, become float32, which holds each of their values exactly. No other dtype changes.

    Parameters
    ----------
    values
        An array of numpy, torch, jax, pandas, xarray, or nested sequences.
    what
        Its name in messages.

    Returns
    -------
    array
        Of a dtype of booleans, whole numbers, floats or complex numbers; an ndarray and no subclass.

    Raises
    ------
    InvalidInputError
        A masked or sparse array, one of objects, text, dates or fields, one without values (torch's "meta"), a set, or
        what is no array at all.

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
    if _is_short(array.dtype.name):  # of ml_dtypes, as in jax
        return array.astype(np.float32)
    if array.dtype.kind not in "biufc":
        why = _UNREADABLE.get(array.dtype.kind, "it holds no numbers")
        raise InvalidInputError(f"{what}: expected an array of numbers, got dtype {array.dtype}: {why}")
    return array


def is_tensor(values: Any) -> bool:
    """Whether an object is of torch, which is loaded where there is one."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(values, torch.Tensor)


def check_tensor(tensor: Any, what: str) -> None:
    """Refuse a torch tensor that has no values, or not one beside the other."""
    if tensor.is_meta:
        raise InvalidInputError(f"{what} is a tensor on the device meta, which holds no values; load it first")
    if tensor.is_nested or str(tensor.layout) != "torch.strided":
        raise InvalidInputError(f"{what} is a sparse or nested tensor ({tensor.layout}); give to_dense() of it")
    if tensor.is_quantized:
        raise InvalidInputError(f"{what} is a quantized tensor ({tensor.dtype}); give dequantize() of it")


def _is_short(dtype: str) -> bool:
    """Whether numpy lacks this float, and float32 has all its values."""
    return dtype == "bfloat16" or dtype.startswith("float8")


def _from_torch(tensor: Any, what: str) -> Array:
    check_tensor(tensor, what)
    name = str(tensor.dtype).removeprefix("torch.")
    values = tensor.detach().cpu().resolve_conj().resolve_neg()
    if _is_short(name):
        values = values.float()
    return np.asarray(values.numpy())


def _read(values: Any, what: str) -> Array:
    """Let numpy read an object, but for what it would change without a word."""
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
    """Names of the rows, of what carries any: the index of a data frame or series, the first coordinate in xarray."""
    if hasattr(values, "iloc") and hasattr(values, "index"):
        return tuple(map(str, values.index.tolist()))
    if hasattr(values, "dims") and hasattr(values, "coords") and len(values.dims) and values.dims[0] in values.coords:
        return tuple(map(str, values.coords[values.dims[0]].values.tolist()))
    return None


def same_rows(arrays: Mapping[str, Any]) -> tuple[str, ...] | None:
    """Refuse arrays whose rows have different names.

    pandas and xarray bring rows of one name together; repsim compares rows as they lie.

    Parameters
    ----------
    arrays
        Each under its name in messages.

    Returns
    -------
    tuple of str, or None
        The names that all have; None where rows have none, or are only numbered from 0.

    Raises
    ------
    InvalidInputError
        Two that carry names, and not the same in the same order.
    """
    names = {what: rows for what, values in arrays.items() if (rows := row_names(values)) is not None}
    if not names:
        return None
    first, *others = names
    for other in others:
        if names[other] != names[first]:
            at = next((k for k, (a, b) in enumerate(zip(names[first], names[other], strict=False)) if a != b), None)
            where = f"{len(names[first])} and {len(names[other])} rows"
            if at is not None:
                where = f"row {at} is {names[first][at]!r} in the one and {names[other][at]!r} in the other"
            raise InvalidInputError(
                f"{first} and {other} name their rows differently: {where}. Bring them into one order (reindex), or "
                "give plain arrays (to_numpy()), whose rows are compared as they lie"
            )
    return None if names[first] == tuple(map(str, range(len(names[first])))) else names[first]


def as_classes(labels: Any, n: int) -> tuple[NDArray[np.int64], tuple[str, ...]]:
    """Read a label a sample: class numbers, and the names of the classes where labels are names.

    Parameters
    ----------
    labels
        n whole numbers from 0 on, or n names: text, booleans, or a pandas Categorical. Names become classes in
        alphabetical order (categories keep theirs), and labels their numbers.
    n
        Number of samples.

    Returns
    -------
    tuple
        The numbers (n), and the names in the order of the numbers, or ().

    Raises
    ------
    InvalidInputError
        Labels of another shape (one-hot ones, too), that are missing, no whole number, negative, or too large.

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
        return _of_categories(getattr(labels, "cat", labels), n)
    if isinstance(labels, str | bytes):
        raise InvalidInputError(f"labels: expected one a sample, got the single {labels!r}")
    if isinstance(labels, Sequence | Iterator):
        labels = list(labels)
        _check_kinds(labels)
    found = as_array(labels, "labels") if is_tensor(labels) else _read(labels, "labels")
    if found.ndim != 1:
        several = found.ndim == 2 and found.shape[1] > 1
        todo = "of one-hot labels, or of scores, give argmax(1)" if several else "give them in one dimension (ravel())"
        raise InvalidInputError(f"labels: expected one a sample, of shape ({n},), got {found.shape}; {todo}")
    if len(found) != n:
        raise InvalidInputError(f"{len(found)} labels for {n} samples")
    if found.dtype.kind in "OT":
        _check_kinds(found.tolist())
        found = _read(found.tolist(), "labels")
    if found.dtype.kind == "U":
        return _of_names(found.tolist())
    if found.dtype.kind == "b":
        return found.astype(np.int64), ("False", "True")
    return _of_numbers(found), ()


def _check_kinds(labels: Sequence[Any]) -> None:
    """Refuse a list whose entries numpy would change so that they go into one array: 1 into "1", None into nan."""
    for k, label in enumerate(labels):
        if label is None or (isinstance(label, float) and math.isnan(label)) or type(label).__name__ == "NAType":
            raise InvalidInputError(f"labels: sample {k} has none ({label}); leave it out, or name a class for it")
        if isinstance(label, str) and "\0" in label:  # numpy would drop it at the end of a text
            raise InvalidInputError(f"labels: sample {k} has {label!r}, which holds a null character; rename it")
    text = [isinstance(label, str) for label in labels]
    if any(text) and not all(text):
        k = text.index(not text[0])
        raise InvalidInputError(
            f"labels are numbers or names, not both: sample 0 has {labels[0]!r}, sample {k} has {labels[k]!r}"
        )


def _of_categories(labels: Any, n: int) -> tuple[NDArray[np.int64], tuple[str, ...]]:
    """The numbers and names of a pandas Categorical, in the order of its categories."""
    codes, names = np.asarray(labels.codes, np.int64), tuple(map(str, labels.categories))
    if len(codes) != n:
        raise InvalidInputError(f"{len(codes)} labels for {n} samples")
    if (codes < 0).any():
        k = int(np.flatnonzero(codes < 0)[0])
        raise InvalidInputError(f"labels: sample {k} has none; leave it out, or name a class for it")
    if len(set(names)) < len(names):
        raise InvalidInputError(f"labels: two of the categories are called the same: {', '.join(names[:6])}")
    return codes, names


def _of_names(labels: Sequence[str]) -> tuple[NDArray[np.int64], tuple[str, ...]]:
    if "" in labels:
        raise InvalidInputError(
            f"labels: sample {labels.index('')} has none (''); leave it out, or name a class for it"
        )
    names = sorted(set(labels))
    place = {name: k for k, name in enumerate(names)}
    return np.array([place[name] for name in labels], np.int64), tuple(names)


def _of_numbers(labels: Array) -> NDArray[np.int64]:
    """Whole numbers as int64; floats only where they are whole numbers."""
    if labels.dtype.kind == "O":
        k, label = next(((k, x) for k, x in enumerate(labels) if not isinstance(x, int)), (0, labels[0]))
        raise InvalidInputError(
            f"labels are classes: whole numbers from 0 to 2**63 - 1, or names; sample {k} has {label!r}"
        )
    if labels.dtype.kind not in "iuf":
        raise InvalidInputError(f"labels are classes: whole numbers or names, not dtype {labels.dtype}")
    if labels.dtype.kind == "f":
        labels = labels.astype(np.promote_types(labels.dtype, np.float64))  # float16 has no 2**53; nothing is rounded
        wrong = ~np.isfinite(labels) | (labels != np.round(labels))
        if wrong.any():
            k = int(np.flatnonzero(wrong)[0])
            raise InvalidInputError(
                f"labels are classes: whole numbers or names; sample {k} has {labels[k]}. Name a class for every "
                "sample, or leave the labels out (a quantity is none; cut it into classes first)"
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
