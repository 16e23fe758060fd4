"""Statistics of single layers once more: plain numpy in float64, from the published formulas, not from our code."""

import numpy as np

from repsim.metrics.base import Array


def magnitude(x: Array) -> float:
    """Return the length of the mean sample."""
    return float(np.sqrt(sum(column.mean() ** 2 for column in x.T)))


def concentricity(x: Array) -> float:
    """Return the mean cosine with the mean sample."""
    mean = x.mean(0)
    return float(np.mean([row @ mean / np.sqrt((row @ row) * (mean @ mean)) for row in x]))


def uniformity(x: Array) -> float:
    """Return the log of the mean Gaussian potential of all pairs, with the diagonal."""
    return float(np.log(np.mean([np.exp(-2 * np.sum((row - x) ** 2, axis=1)) for row in x])))
