"""Reference implementations for studies: U-centred kernels as explicit vectors, loops over networks."""

from itertools import combinations, product

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import hadamard

from repsim.engine.resampling import random_permutations
from repsim.results.variables import CONTROL_PAIRS

Array = NDArray[np.float64]
Flags = NDArray[np.bool_]


def balanced_halves(n: int, splits: int, seed: int) -> list[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Divide samples into halves by the signs of a Hadamard matrix; a row is a cell of equally many samples."""
    cells = 1 << splits.bit_length()
    cell = np.empty(n, int)
    for k, sample in enumerate(random_permutations(n, 1, seed)[0]):
        cell[sample] = k % cells
    signs = hadamard(cells)[cell, 1 : 1 + splits]
    return [(np.flatnonzero(column > 0), np.flatnonzero(column < 0)) for column in signs.T]


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


def kernel_within(x: Array, classes: NDArray[np.int64]) -> Array:
    """Compute the kernel of features minus their class means, of pairs of different classes, as a vector.

    In units of the energy of the U-centred kernel: the mean square of each, for a degree of freedom.
    """
    n, x = len(x), x - x.mean(0)
    deviations = x - np.stack([x[classes == own].mean(0) for own in classes])
    A = np.where(classes[:, None] == classes, 0, deviations @ deviations.T)
    sizes = np.unique(classes, return_counts=True)[1]
    degrees = (n - len(sizes)) ** 2 - ((sizes - 1) ** 2).sum()
    K = x @ x.T
    np.fill_diagonal(K, 0)
    sums = K.sum(0)
    K = K - sums[:, None] / (n - 2) - sums / (n - 2) + sums.sum() / ((n - 1) * (n - 2))
    np.fill_diagonal(K, 0)
    return np.asarray(A.ravel() / np.sqrt(degrees) / (np.linalg.norm(K) / np.sqrt(n * (n - 3))))


def without(V: Array, Z: Array) -> Array:
    """Project the rows of Z out of the rows of V."""
    if not len(Z):
        return V
    return V - (Z.T @ np.linalg.lstsq(Z.T, V.T, rcond=1e-8)[0]).T


def cosines(A: Array, B: Array) -> Array:
    """Compute the cosines of the rows of A with the rows of B."""
    return np.asarray((A / np.linalg.norm(A, axis=1, keepdims=True)) @ (B / np.linalg.norm(B, axis=1, keepdims=True)).T)


def slow_excess(values: Array, trained_a: Flags, trained_b: Flags) -> Array:
    """Loop over all networks of both architectures."""

    def mean(state_a: bool, state_b: bool) -> float:
        cells = [
            values[i, j]
            for i, one in enumerate(trained_a) if one == state_a
            for j, other in enumerate(trained_b) if other == state_b
        ]  # fmt: skip
        return float(np.mean(cells))

    controls = {
        "both untrained": mean(False, False), "first trained": mean(True, False), "second trained": mean(False, True),
    }  # fmt: skip
    return mean(True, True) - np.array([controls[name] for name in CONTROL_PAIRS])


def all_choices(trained: Flags) -> list[Flags]:
    chosen = combinations(range(len(trained)), int(sum(trained)))
    return [np.isin(np.arange(len(trained)), of_choice) for of_choice in chosen]


def slow_variance(values: Array, trained_a: Flags, trained_b: Flags) -> tuple[Array, Array]:
    """Leave every network out."""
    parts, freedoms = [], []
    for side, state in product((0, 1), (True, False)):
        left_out = []
        for row in np.flatnonzero((trained_a, trained_b)[side] == state):
            flags = [trained_a, trained_b]
            flags[side] = np.delete(flags[side], row)
            left_out.append(slow_excess(np.delete(values, row, side), *flags))
        m = len(left_out)
        parts.append((m - 1) / m * ((np.array(left_out) - np.mean(left_out, axis=0)) ** 2).sum(0))
        freedoms.append(m - 1)
    v = np.array(parts)
    total, freedom = v.sum(0), v.sum(0) ** 2 / sum(part**2 / df for part, df in zip(v, freedoms, strict=True))
    S = values[trained_a][:, trained_b]
    A, B = S.shape
    squares = sum((S[i, j] - S[i].mean() - S[:, j].mean() + S.mean()) ** 2 for i in range(A) for j in range(B))
    of_pairs = squares / ((A - 1) * (B - 1)) / (A * B)
    return np.maximum(total, of_pairs), np.where(total < of_pairs, (A - 1) * (B - 1), freedom)
