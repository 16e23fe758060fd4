"""Convert arrays of any library to tensors of samples by features, and check them."""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from repsim.errors import InvalidInputError
from repsim.metrics.recipes.rows import all_finite
from repsim.runtime.arrays import as_array, check_exact, check_tensor

Array = NDArray[Any]
_COMPLEX = "complex features cannot be compared; take their real and imaginary parts as features"


def _from_numpy(array: Array, what: str) -> Tensor:
    """Return the array as a tensor; copy what torch does not support (float128, big-endian, read-only, reversed)."""
    if array.dtype.kind == "c":
        raise InvalidInputError(_COMPLEX)
    if array.dtype.kind in "iu":
        check_exact(array, what)
    if array.dtype.itemsize > 8:
        array = array.astype(np.float64)
    if min(array.strides, default=1) < 0:  # a single reversed column is contiguous for numpy, but not for torch
        array = array.copy()
    return torch.from_numpy(np.require(array, array.dtype.newbyteorder("="), ["C_CONTIGUOUS", "WRITEABLE"]))


def as_samples(x: Any, min_samples: int = 1, what: str = "x") -> Tensor:
    """Convert an array of any library to a floating-point tensor of shape (n samples, p features).

    float64 stays float64 and is compared in float64. Smaller floating-point dtypes are compared in float32, with sums
    in float64; integers are converted to float64.

    Parameters
    ----------
    x : array of shape (n, p)
        Numpy array, tensor or any array that numpy can read.
    min_samples : int
        Smallest number of samples that is accepted.
    what : str
        Name of the array in error messages.

    Returns
    -------
    Tensor of shape (n, p)
        float32 or float64.

    Raises
    ------
    InvalidInputError
        For masked, sparse and complex arrays, objects, text and dates (`repsim.runtime.arrays.as_array`), other than
        two dimensions, too few samples, no features, and values that are NaN or infinite.
    """
    if isinstance(x, Tensor):
        check_tensor(x, what)
        tensor = x
    else:
        tensor = _from_numpy(as_array(x, what), what)
    if tensor.ndim != 2:
        raise InvalidInputError(
            f"expected an array of shape (n samples, p features), got {tuple(tensor.shape)}; "
            "reduce or flatten everything after the first axis"
        )
    n, p = tensor.shape
    if n < min_samples:
        raise InvalidInputError(f"{n} samples are too few: this measure needs at least {min_samples}")
    if p == 0:
        raise InvalidInputError("the layer has no features (p = 0)")
    if tensor.is_complex():
        raise InvalidInputError(_COMPLEX)
    if tensor.is_floating_point() and tensor.dtype.itemsize < 4:
        tensor = tensor.float()
    elif not tensor.is_floating_point():
        tensor = tensor.double()
    if not all_finite(tensor.detach()):
        bad = torch.nonzero(~torch.isfinite(tensor))
        raise InvalidInputError(f"{len(bad)} values are NaN or infinite, the first in sample {int(bad[0, 0])}")
    return tensor
