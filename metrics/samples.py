"""Takes arrays of any library as samples by features, or says what is wrong with them."""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from repsim.errors import InvalidInputError
from repsim.runtime.arrays import as_array, check_tensor

Array = NDArray[Any]
_COMPLEX = "complex features cannot be compared; take their real and imaginary parts as features"


def _from_numpy(array: Array, what: str) -> Tensor:
    """As a tensor: what torch has no word for (float128, big-endian, read-only, reversed) is copied to what it has."""
    if array.dtype.kind == "c":
        raise InvalidInputError(_COMPLEX)
    if array.dtype.kind in "iu" and array.size and max(abs(int(array.min())), abs(int(array.max()))) > 2**53:
        raise InvalidInputError(
            f"{what} holds whole numbers beyond 2**53, which float64 does not tell apart; take them as categories"
        )
    if array.dtype.itemsize > 8:
        array = array.astype(np.float64)
    if min(array.strides, default=1) < 0:  # of a single column this is contiguous to numpy, but not to torch
        array = array.copy()
    return torch.from_numpy(np.require(array, array.dtype.newbyteorder("="), ["C_CONTIGUOUS", "WRITEABLE"]))


def as_samples(x: Any, min_samples: int = 1, what: str = "x") -> Tensor:
    """Take an array of any library as (n samples, p features) in a floating dtype, or say what is wrong with it.

    float64 stays float64 and is compared in float64; everything smaller is compared in float32, with sums in float64.
    Masked and sparse arrays, objects, text and dates are refused (`repsim.runtime.arrays.as_array`).
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
    finite = torch.isfinite(tensor)
    if not finite.all():
        bad = torch.nonzero(~finite)
        raise InvalidInputError(f"{len(bad)} values are NaN or infinite, the first in sample {int(bad[0, 0])}")
    return tensor
