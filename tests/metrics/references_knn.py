"""Measures of neighbourhoods once more: dense n x n matrices and sets, from the papers and the published code."""

import numpy as np

from repsim.metrics.base import Array


def cosines(x: Array) -> Array:
    x = x / np.linalg.norm(x, axis=1, keepdims=True)
    return np.asarray(x @ x.T)


def neighbours(x: Array, k: int) -> Array:
    """The k nearest of every sample, the nearest first, itself left out."""
    S = cosines(x)
    np.fill_diagonal(S, -np.inf)
    return np.argsort(-S, axis=1, kind="stable")[:, :k]


def mask(x: Array, k: int) -> Array:
    """1 at (i, j) where j is among the k nearest of i."""
    found = np.zeros((len(x), len(x)))
    np.put_along_axis(found, neighbours(x, k), 1, axis=1)
    return found


def mutual_knn(x: Array, y: Array, k: int) -> float:
    """Huh et al. 2024, app. A: the mean of |intersection| / k."""
    return float(np.mean((mask(x, k) * mask(y, k)).sum(1) / k))


def cycle_knn(x: Array, y: Array, k: int) -> float:
    """Huh et al., metrics.py: knn_A[knn_B] has the sample itself somewhere."""
    there_and_back = neighbours(x, k)[neighbours(y, k)]
    return float(np.mean([i in found for i, found in enumerate(there_and_back)]))


def hsic1(K: Array, L: Array) -> float:
    """Song et al. 2012, eq. 5, as in Huh et al., metrics.py, where the matrices need not be symmetric."""
    m = len(K)
    K, L = K - np.diag(np.diag(K)), L - np.diag(np.diag(L))
    value = np.sum(K * L.T) + K.sum() * L.sum() / ((m - 1) * (m - 2)) - 2 * (K @ L).sum() / (m - 2)
    return float(value / (m * (m - 3)))


def cknna(x: Array, y: Array, k: int) -> float:
    """Huh et al., metrics.py, without the 1e-6 in the denominator."""

    def similarity(x: Array, y: Array) -> float:
        both = mask(x, k) * mask(y, k)
        return hsic1(both * cosines(x), both * cosines(y))

    return float(similarity(x, y) / np.sqrt(similarity(x, x) * similarity(y, y)))


def jaccard_knn(x: Array, y: Array, k: int) -> float:
    pairs = [(set(a), set(b)) for a, b in zip(neighbours(x, k), neighbours(y, k), strict=True)]
    return float(np.mean([len(a & b) / len(a | b) for a, b in pairs]))


def rank_similarity(x: Array, y: Array, k: int) -> float:
    """Wang et al. 2020, as in measures.md; 0 for a sample that shares none."""
    values = []
    for a, b in zip(neighbours(x, k).tolist(), neighbours(y, k).tolist(), strict=True):
        ranks = [(a.index(j) + 1, b.index(j) + 1) for j in set(a) & set(b)]
        whole = sum(1 / m for m in range(1, len(ranks) + 1))
        values.append(sum(2 / ((1 + abs(r - s)) * (r + s)) for r, s in ranks) / whole if ranks else 0)
    return float(np.mean(values))


def second_order_cosine(x: Array, y: Array, k: int) -> float:
    D, E = 1 - cosines(x), 1 - cosines(y)
    values = []
    for i, (a, b) in enumerate(zip(neighbours(x, k), neighbours(y, k), strict=True)):
        either = sorted({*a, *b})
        d, e = D[i, either], E[i, either]
        values.append(d @ e / (np.linalg.norm(d) * np.linalg.norm(e)))
    return float(np.mean(values))
