"""Measures between principal subspaces once more: plain numpy in float64, slow, from the published formulas."""

import numpy as np

from repsim.metrics.base import Array


def root(K: Array) -> Array:
    """Return the square root of a positive semidefinite matrix."""
    values, vectors = np.linalg.eigh(K)
    values[values < 1e-12 * values.max()] = 0  # rounding errors, whose roots would count
    return np.asarray(vectors * np.sqrt(values) @ vectors.T)


def rotated(x: Array, y: Array, *, scaled: bool) -> tuple[Array, Array]:
    """Return both layers, centred and padded, with y rotated onto x by the polar decomposition of Y'X."""
    width = max(x.shape[1], y.shape[1])
    x, y = (np.pad(side - side.mean(0), [(0, 0), (0, width - side.shape[1])]) for side in (x, y))
    if scaled:
        x, y = x / np.linalg.norm(x), y / np.linalg.norm(y)
    u, _, vh = np.linalg.svd(y.T @ x)
    return x, y @ u @ vh


def nuclear(x: Array, y: Array) -> float:
    """Compute the fidelity of the Gram matrices, tr (K^1/2 L K^1/2)^1/2 / sqrt(tr K tr L)."""
    K, L = ((side - side.mean(0)) @ (side - side.mean(0)).T for side in (x, y))
    return float(np.linalg.norm(root(K) @ root(L), "nuc") / np.sqrt(np.trace(K) * np.trace(L)))


def angular_shape(x: Array, y: Array) -> float:
    """Compute the angle between two unit vectors with Kahan's formula."""
    x, y = rotated(x, y, scaled=True)
    return float(2 * np.arctan2(np.linalg.norm(x - y), np.linalg.norm(x + y)))


def procrustes(x: Array, y: Array) -> float:
    """Compute the residual after the best rotation."""
    x, y = rotated(x, y, scaled=True)
    return float(np.linalg.norm(x - y))


def procrustes_size(x: Array, y: Array) -> float:
    """Compute the residual after the best rotation, without scaling."""
    x, y = rotated(x, y, scaled=False)
    return float(np.linalg.norm(x - y))


def linear_regression(x: Array, y: Array) -> float:
    """Compute 1 - residual / total with least squares."""
    x, y = x - x.mean(0), y - y.mean(0)
    left = x - y @ np.linalg.lstsq(y, x, rcond=1e-12)[0]
    return float(1 - np.sum(left**2) / np.sum(x**2))


def gulp(x: Array, y: Array, ridge: float = 0.0) -> float:
    """Compute GULP from traces of covariances (Boix-Adsera et al. 2022), with pseudoinverses if ridge is 0."""
    n = len(x)
    x, y = (np.sqrt(n) * (side - side.mean(0)) / np.linalg.norm(side - side.mean(0)) for side in (x, y))

    def inverse(S: Array) -> Array:
        return np.asarray(np.linalg.inv(S + ridge * np.eye(len(S))) if ridge else np.linalg.pinv(S, rcond=1e-12))

    S, T, C = x.T @ x / n, y.T @ y / n, x.T @ y / n
    A, B = inverse(S), inverse(T)
    return float(np.trace(A @ S @ A @ S) + np.trace(B @ T @ B @ T) - 2 * np.trace(A @ C @ B @ C.T))


def eigenspace_overlap(x: Array, y: Array) -> float:
    """Compute tr(P_x P_y) / max(p, q), with the projectors onto the spans of the uncentred columns."""
    P, R = (side @ np.linalg.pinv(side, rcond=1e-12) for side in (x, y))
    return float(np.trace(P @ R) / max(x.shape[1], y.shape[1]))
