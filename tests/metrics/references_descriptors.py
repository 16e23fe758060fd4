"""Statistics of single layers once more: plain numpy in float64, from the published formulas, not from our code."""

import numpy as np

from repsim.metrics.base import Array


def magnitude(x: Array) -> float:
    """Length of the mean sample."""
    return float(np.sqrt(sum(column.mean() ** 2 for column in x.T)))


def concentricity(x: Array) -> float:
    """Mean cosine with the mean sample."""
    mean = x.mean(0)
    return float(np.mean([row @ mean / np.sqrt((row @ row) * (mean @ mean)) for row in x]))


def uniformity(x: Array) -> float:
    """Log of the mean Gaussian potential of all pairs, the diagonal included."""
    return float(np.log(np.mean([np.exp(-2 * np.sum((row - x) ** 2, axis=1)) for row in x])))
