"""Reference implementations for studies: U-centred kernels as explicit vectors, loops over networks."""

from itertools import combinations, product
from typing import Any

import numpy as np
from numpy.typing import NDArray

from repsim.results.variables import CONTROL_PAIRS
from repsim.study.exchange import Networks

Array = NDArray[np.float64]
Flags = NDArray[np.bool_]


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


def slow_excess(values: Array, a: Networks, b: Networks, trained_a: Flags, trained_b: Flags) -> Array:
    """Loop over pairs of architectures, weighted by their numbers of trained networks in the study."""
    total, weights = np.zeros(3), 0
    for s, t in product(sorted(set(a.architecture)), sorted(set(b.architecture))):

        def mean(state_a: bool, state_b: bool, s: int = s, t: int = t) -> float:
            cells = [
                values[i, j]
                for i in range(len(a.trained)) if a.architecture[i] == s and trained_a[i] == state_a
                for j in range(len(b.trained)) if b.architecture[j] == t and trained_b[j] == state_b
            ]  # fmt: skip
            return float(np.mean(cells))

        weight = sum(a.trained[a.architecture == s]) * sum(b.trained[b.architecture == t])
        controls = {
            "both untrained": mean(False, False),
            "first trained": mean(True, False),
            "second trained": mean(False, True),
        }
        total += weight * (mean(True, True) - np.array([controls[name] for name in CONTROL_PAIRS]))
        weights += weight
    return np.asarray(total / weights)


def all_choices(family: Networks) -> list[Flags]:
    by_architecture = []
    for k in sorted(set(family.architecture)):
        rows = [i for i in range(len(family.trained)) if family.architecture[i] == k]
        by_architecture.append(list(combinations(rows, int(sum(family.trained[rows])))))
    return [np.isin(np.arange(len(family.trained)), sum(chosen, ())) for chosen in product(*by_architecture)]


def slow_variance(values: Array, a: Networks, b: Networks) -> tuple[Array, Array]:
    """Leave every network out, and weight pairs of architectures as in the whole families."""

    def without(side: int, row: int) -> Array:
        kept = [np.arange(len(family.trained)) for family in (a, b)]
        kept[side] = np.delete(kept[side], row)
        total, weights = np.zeros(3), 0
        for s, t in product(sorted(set(a.architecture)), sorted(set(b.architecture))):
            i, j = ([k for k in rows if family.architecture[k] == kind]
                    for rows, family, kind in ((kept[0], a, s), (kept[1], b, t)))  # fmt: skip

            def mean(state_a: bool, state_b: bool, i: list[Any] = i, j: list[Any] = j) -> float:
                cells = [values[x, y] for x in i for y in j if (a.trained[x], b.trained[y]) == (state_a, state_b)]
                return float(np.mean(cells))

            weight = sum(a.trained[a.architecture == s]) * sum(b.trained[b.architecture == t])
            by_control = {"both untrained": mean(False, False), "first trained": mean(True, False),
                          "second trained": mean(False, True)}  # fmt: skip
            total += weight * (mean(True, True) - np.array([by_control[name] for name in CONTROL_PAIRS]))
            weights += weight
        return np.asarray(total / weights)

    parts, freedoms = [], []
    for side, family in enumerate((a, b)):
        for kind, state in product(sorted(set(family.architecture)), (True, False)):
            rows = [
                i for i in range(len(family.trained)) if (family.architecture[i], family.trained[i]) == (kind, state)
            ]
            left_out = np.array([without(side, row) for row in rows])
            m = len(rows)
            parts.append((m - 1) / m * ((left_out - left_out.mean(0)) ** 2).sum(0))
            freedoms.append(m - 1)
    v = np.array(parts)
    return v.sum(0), v.sum(0) ** 2 / sum(part**2 / df for part, df in zip(v, freedoms, strict=True))
