"""Measures of neighbourhoods once more: dense n x n matrices and sets, from the papers and the published code."""

import numpy as np

from repsim.metrics.base import Array


def cosines(x: Array) -> Array:
    x = x / np.linalg.norm(x, axis=1, keepdims=True)
    return np.asarray(x @ x.T)


def neighbours(x: Array, k: int) -> Array:
    """Return the k nearest samples to every sample, without itself, the nearest first."""
    S = cosines(x)
    np.fill_diagonal(S, -np.inf)
    return np.argsort(-S, axis=1, kind="stable")[:, :k]


def mask(x: Array, k: int) -> Array:
    """Return a matrix with 1 at (i, j) if j is among the k nearest samples to i."""
    matrix = np.zeros((len(x), len(x)))
    np.put_along_axis(matrix, neighbours(x, k), 1, axis=1)
    return matrix


def mutual_knn(x: Array, y: Array, k: int) -> float:
    """Compute the mean of |intersection| / k (Huh et al. 2024, app. A)."""
    return float(np.mean((mask(x, k) * mask(y, k)).sum(1) / k))


def cycle_knn(x: Array, y: Array, k: int) -> float:
    """Compute the share of samples that are in knn_A[knn_B] (Huh et al., metrics.py)."""
    targets = neighbours(x, k)[neighbours(y, k)]
    return float(np.mean([i in row for i, row in enumerate(targets)]))


def hsic1(K: Array, L: Array) -> float:
    """Compute HSIC_1 (Song et al. 2012, eq. 5) as in Huh et al., metrics.py; matrices need not be symmetric."""
    m = len(K)
    K, L = K - np.diag(np.diag(K)), L - np.diag(np.diag(L))
    value = np.sum(K * L.T) + K.sum() * L.sum() / ((m - 1) * (m - 2)) - 2 * (K @ L).sum() / (m - 2)
    return float(value / (m * (m - 3)))


def cknna(x: Array, y: Array, k: int) -> float:
    """Compute CKNNA as in Huh et al., metrics.py, without the 1e-6 in the denominator."""

    def similarity(x: Array, y: Array) -> float:
        both = mask(x, k) * mask(y, k)
        return hsic1(both * cosines(x), both * cosines(y))

    return float(similarity(x, y) / np.sqrt(similarity(x, x) * similarity(y, y)))


def jaccard_knn(x: Array, y: Array, k: int) -> float:
    pairs = [(set(a), set(b)) for a, b in zip(neighbours(x, k), neighbours(y, k), strict=True)]
    return float(np.mean([len(a & b) / len(a | b) for a, b in pairs]))


def rank_similarity(x: Array, y: Array, k: int) -> float:
    """Compute rank similarity (Wang et al. 2020); 0 for a sample without shared neighbours."""
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
