"""Reference implementations for studies: U-centred kernels as explicit vectors."""

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def unit_kernel(x: Array) -> Array:
    """Compute the U-centred linear kernel as a vector of length 1: the inner product of two is debiased CKA."""
    n = len(x)
    x = x - x.mean(0)  # reduces rounding errors, and does not change the U-centred kernel
    K = x @ x.T
    np.fill_diagonal(K, 0)
    sums = K.sum(0)
    K = K - sums[:, None] / (n - 2) - sums / (n - 2) + sums.sum() / ((n - 1) * (n - 2))
    np.fill_diagonal(K, 0)
    flat: Array = K.ravel()
    return flat / np.linalg.norm(flat)


def without(V: Array, Z: Array) -> Array:
    """Project the rows of Z out of the rows of V."""
    if not len(Z):
        return V
    return V - (Z.T @ np.linalg.lstsq(Z.T, V.T, rcond=1e-8)[0]).T


def cosines(A: Array, B: Array) -> Array:
    """Compute the cosines of the rows of A with the rows of B."""
    return np.asarray((A / np.linalg.norm(A, axis=1, keepdims=True)) @ (B / np.linalg.norm(B, axis=1, keepdims=True)).T)
