"""Measures that match or rotate units once more: plain numpy and brute force, from the published formulas."""

import itertools

import numpy as np
from scipy.optimize import linprog

from repsim.metrics.base import Array


def correlations(x: Array, y: Array) -> Array:
    """Return Pearson correlations between every unit of x and every unit of y."""
    return np.corrcoef(x.T, y.T)[: x.shape[1], x.shape[1] :]


def transport(profit: Array, rows: Array, columns: Array) -> float:
    """Return the largest sum_ij T_ij profit_ij over T >= 0 with these row and column sums, by linear programming."""
    p, q = profit.shape
    sums = np.vstack([np.kron(np.eye(p), np.ones(q)), np.kron(np.ones(p), np.eye(q))])
    solution = linprog(-profit.ravel(), A_eq=sums, b_eq=np.concatenate([rows, columns]), method="highs-ds")
    return float(-solution.fun)


def padded(x: Array, y: Array) -> tuple[Array, Array]:
    """Return both layers, padded with zeros to the width of the wider one."""
    width = max(x.shape[1], y.shape[1])
    x, y = (np.hstack([side, np.zeros((len(side), width - side.shape[1]))]) for side in (x, y))
    return x, y


def matched(profit: Array) -> float:
    """Return the largest sum over one-to-one matchings: by enumeration if m <= 6, else as a transport (Birkhoff)."""
    m = len(profit)
    if m <= 6:
        return float(max(profit[range(m), order].sum() for order in itertools.permutations(range(m))))
    return transport(profit, np.ones(m), np.ones(m))


def hard_correlation(x: Array, y: Array) -> float:
    """Compute the hard correlation; units without a partner are matched with dummies of correlation -2."""
    C = correlations(x, y)
    square = np.full((max(C.shape),) * 2, -2.0)
    square[: C.shape[0], : C.shape[1]] = C
    return float((matched(square) + 2.0 * abs(C.shape[0] - C.shape[1])) / min(C.shape))


def semi_correlation(x: Array, y: Array) -> float:
    """Compute the semi-matching correlation, unit by unit."""
    C = correlations(x, y)
    return float(np.mean([max(row) for row in C]) + np.mean([max(column) for column in C.T])) / 2


def soft_matching(x: Array, y: Array) -> float:
    """Compute soft matching from the distance of Khosla & Williams, a transport of tuning curves of norm 1."""
    p, q = x.shape[1], y.shape[1]
    curves = [side / np.linalg.norm(side, axis=0) for side in (x - x.mean(0), y - y.mean(0))]
    squared = ((curves[0][:, :, None] - curves[1][:, None]) ** 2).sum(0)
    return 1 + transport(-squared, np.full(p, 1 / p), np.full(q, 1 / q)) / 2


def aligned_cosine(x: Array, y: Array) -> float:
    """Compute the aligned cosine with the polar factor A (A'A)^(-1/2), a pseudoinverse if A has no full rank."""
    x, y = padded(x, y)
    A = x.T @ y
    values, vectors = np.linalg.eigh(A.T @ A)
    kept = values > 1e-13 * values.max()
    R = A @ (vectors[:, kept] / np.sqrt(values[kept])) @ vectors[:, kept].T
    return float(np.mean([(a @ R) @ b / np.linalg.norm(a) / np.linalg.norm(b) for a, b in zip(x, y, strict=True)]))


def permutation_procrustes(x: Array, y: Array) -> float:
    """Compute the distance of padded layers, which are not centred."""
    x, y = padded(x, y)
    return float(np.sqrt(max(0.0, np.sum(x**2) + np.sum(y**2) - 2 * matched(x.T @ y))))
