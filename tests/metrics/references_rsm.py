"""Measures of similarity matrices once more: plain numpy in float64, from the published formulas, not from our code."""

import numpy as np

from repsim.metrics.base import Array
from tests.metrics.references import cosine, hsic1


def euclidean(x: Array) -> Array:
    """Return all distances, from differences."""
    return np.asarray(np.sqrt(np.sum((x[:, None] - x[None]) ** 2, axis=2)))


def distance_correlation(x: Array, y: Array) -> float:
    """Compute the root of the ratio of V-statistics (Szekely et al. 2007, def. 4)."""
    H = np.eye(len(x)) - 1 / len(x)
    return float(np.sqrt(cosine(H @ euclidean(x) @ H, H @ euclidean(y) @ H)))


def average_ranks(values: Array) -> Array:
    """Return average ranks, by counting smaller and equal values."""
    smaller = (values[None] < values[:, None]).sum(1)
    return np.asarray(smaller + ((values[None] == values[:, None]).sum(1) + 1) / 2)


def rsa(x: Array, y: Array) -> float:
    """Compute RSA from correlations that are rounded to 12 digits, so that equal ones tie."""
    above = np.triu_indices(len(x), 1)
    r, s = (average_ranks(np.corrcoef(side)[above].round(12)) for side in (x, y))
    return cosine(r - r.mean(), s - s.mean())


def rsm_difference(x: Array, y: Array) -> float:
    """Compute the largest singular value of the difference."""
    return float(np.linalg.norm(euclidean(x) - euclidean(y), 2))


def cka_units(x: Array, y: Array) -> float:
    """Compute CKA of sampled units (Chun et al. 2025), with HSIC_1 of pairs of different units for the norms."""

    def hsic(a: Array, b: Array) -> float:
        return hsic1(np.outer(a, a), np.outer(b, b))

    def norm(z: Array) -> float:
        pairs = [(j, k) for j in range(z.shape[1]) for k in range(z.shape[1]) if j != k]
        return float(np.mean([hsic(z[:, j], z[:, k]) for j, k in pairs]))

    numerator = np.mean([[hsic(a, b) for b in y.T] for a in x.T])
    return float(numerator / np.sqrt(norm(x) * norm(y)))
