"""Embed models (or layers) by their similarities, cluster them, and measure the stability of the clusters."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float64, Int64
from numpy.typing import ArrayLike
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.spatial.distance import squareform
from sklearn.metrics import adjusted_rand_score, silhouette_score

from repsim.errors import InvalidInputError, UndefinedValueError

MIN_SILHOUETTE = 0.25
"""Smallest mean silhouette with which clusters are reported (Kaufman and Rousseeuw 1990)."""
ROUNDING = 1e-13
"""Eigenvalues and entries of eigenvectors below M times this value are treated as rounding errors."""


@dataclass(frozen=True, eq=False)
class Embedding:
    """Points whose distances are those of the models."""

    coordinates: Float64[np.ndarray, "M dims"]
    """Centred coordinates along the principal axes, the axis with the largest variance first."""
    eigenvalues: Float64[np.ndarray, " M"]
    """Sums of squares along all M axes, in descending order. Two axes show the share of their two values."""
    negative: float
    """Share of the negative eigenvalues in the sum of absolute eigenvalues: 0 if R is positive semidefinite."""


def embed(R: ArrayLike, dims: int | None = None) -> Embedding:
    """Embed models so that their squared distances are 2 (1 - R), as those of unit vectors with inner products R.

    Classical multidimensional scaling: with J = I - 11'/M and J R J = U lambda U', the points are U sqrt(lambda).

    Parameters
    ----------
    R : array of shape (M, M)
        Similarities, positive semidefinite with a unit diagonal: debiased CKA, partial CKA, mutual kNN.
    dims : int, optional
        Number of axes; by default all M, which reproduce every distance exactly. Axes beyond the rank of R are 0.

    Returns
    -------
    Embedding
        The sign of each axis makes its coordinate farthest from 0 positive (of several the first). If R is not
        positive semidefinite, ``negative`` measures how much of it the map cannot represent.

    Raises
    ------
    InvalidInputError
        If R is not square, its diagonal is not 1, or ``dims`` is below 1.
    UndefinedValueError
        If a model has no value.

    References
    ----------
    Torgerson. Multidimensional scaling: I. Theory and method. Psychometrika 1952.
    Gower. Some distance properties of latent root and vector methods used in multivariate analysis. Biometrika 1966.

    Examples
    --------
    >>> points = embed([[1, 0.875, 0.5], [0.875, 1, 0.5], [0.5, 0.5, 1]], dims=2).coordinates
    >>> points.round(3), round(float(np.linalg.norm(points[0] - points[1])), 9)
    (array([[-0.323,  0.25 ],
           [-0.323, -0.25 ],
           [ 0.645,  0.   ]]), 0.5)
    """
    R = _unit(R)
    M = len(R)
    dims = M if dims is None else dims
    if dims < 1:
        raise InvalidInputError(f"expected at least one axis, got {dims}")
    centred = R - R.mean(0) - R.mean(1, keepdims=True) + R.mean()
    values, vectors = np.linalg.eigh((centred + centred.T) / 2)
    values, vectors = values[::-1], vectors[:, ::-1]
    values = np.where(np.abs(values) > ROUNDING * M, values, 0)  # the square root would magnify rounding errors
    size = np.abs(vectors)
    farthest = np.argmax(size > size.max(0) - 1e-9, axis=0)  # rounding errors do not decide between ties
    vectors = vectors * np.where(vectors[farthest, range(M)] < 0, -1, 1)
    vectors[np.abs(vectors) < ROUNDING * M] = 0  # rounding errors, and -0, become 0
    coordinates = np.zeros((M, dims))
    coordinates[:, :M] = (vectors * np.sqrt(np.maximum(values, 0)))[:, :dims]
    total = np.abs(values).sum()
    return Embedding(coordinates, values, float(-values[values < 0].sum() / total) if total > 0 else 0.0)


def common_share(R: ArrayLike) -> Float64[np.ndarray, "*batch"]:
    """Compute the share of the first principal component: the largest eigenvalue of R divided by its trace.

    Parameters
    ----------
    R : array of shape (..., M, M)
        Similarities of models, positive semidefinite.

    Returns
    -------
    array of shape (...)
        1 if all models are equal, 1 / M if no two share anything; NaN where R has a NaN.

    Examples
    --------
    >>> round(float(common_share(np.full((4, 4), 0.6) + 0.4 * np.eye(4))), 9)  # (1 + 3 x 0.6) / 4
    0.7
    """
    R = _square(R)
    defined = np.isfinite(R).all((-2, -1))
    largest = np.linalg.eigvalsh(np.where(defined[..., None, None], R, np.eye(R.shape[-1])))[..., -1]
    return np.asarray(np.where(defined, largest, np.nan) / np.trace(R, axis1=-2, axis2=-1))


@dataclass(frozen=True, eq=False)
class Clusters:
    """Clusters of models."""

    labels: Int64[np.ndarray, " M"]
    """The cluster of each model, numbered by first appearance."""
    count: int
    """Number of clusters."""
    silhouette: float
    """Largest mean silhouette of two or more clusters, in [-1, 1]; NaN with fewer than three models."""


def clusters(R: ArrayLike, max_clusters: int | None = None) -> Clusters:
    """Cluster models by average linkage of their distances sqrt(2 (1 - R)): candidates for universality classes.

    The number of clusters, from 2 to M - 1, is the one with the largest mean silhouette; of several, the smallest.
    There is one cluster if no silhouette reaches 0.25, below which Kaufman and Rousseeuw see no structure, or if there
    are fewer than three models.

    Parameters
    ----------
    R : array of shape (M, M)
        Similarities, as in `embed`.
    max_clusters : int, optional
        Largest number of clusters.

    Raises
    ------
    InvalidInputError
        If R is not square, its diagonal is not 1, or ``max_clusters`` is below 1.
    UndefinedValueError
        If a model has no value.

    Notes
    -----
    A similarity may exceed 1 by a rounding error (or, estimated from sketches, by more). The squared distance, which
    would be negative, is then 0.

    References
    ----------
    Rousseeuw. Silhouettes. Journal of Computational and Applied Mathematics 1987.
    Kaufman, Rousseeuw. Finding groups in data. Wiley 1990 (table 4: below 0.25).

    Examples
    --------
    >>> result = clusters([[1, 0.9, 0.2, 0.2], [0.9, 1, 0.2, 0.2], [0.2, 0.2, 1, 0.8], [0.2, 0.2, 0.8, 1]])
    >>> result.labels, result.count, round(result.silhouette, 2)
    (array([0, 0, 1, 1]), 2, 0.57)
    """
    distances = _distances(R)
    M = len(distances)
    if max_clusters is not None and max_clusters < 1:
        raise InvalidInputError(f"expected at least one cluster, got max_clusters = {max_clusters}")
    single = Clusters(np.zeros(M, np.int64), 1, float("nan"))
    if M < 3:
        return single
    tree = _tree(distances)
    clusterings = []
    for count in range(2, min(max_clusters or M, M - 1) + 1):
        labels = _cut(tree, count)
        if labels.max() + 1 == count:  # models that merge at the same height cannot be separated
            clusterings.append(
                Clusters(labels, count, float(silhouette_score(distances, labels, metric="precomputed")))
            )
    if not clusterings:
        return single
    best = max(clusterings, key=lambda clustering: round(clustering.silhouette, 9))
    return best if best.silhouette >= MIN_SILHOUETTE else Clusters(np.zeros(M, np.int64), 1, best.silhouette)


@dataclass(frozen=True, eq=False)
class Stability:
    """Stability of clusters under other stimuli."""

    ari: float
    """Mean adjusted Rand index of the replicates' clusters and the labels: 1 if equal, 0 on average by chance."""
    together: Float64[np.ndarray, "M M"]
    """Share of the replicates in which two models are in one cluster."""


def stability(replicates: ArrayLike, labels: ArrayLike) -> Stability:
    """Cluster each replicate into as many clusters as there are labels, and compare with the labels.

    Parameters
    ----------
    replicates : array of shape (B, M, M)
        Similarities from other stimuli, such as half-samples.
    labels : array of shape (M,)
        The cluster of each model, as in `Clusters`.

    Returns
    -------
    Stability
        All values are NaN for a single cluster, which every replicate has.

    References
    ----------
    Hubert, Arabie. Comparing partitions. Journal of Classification 1985.
    Ben-Hur, Elisseeff, Guyon. A stability based method for discovering structure in clustered data. PSB 2002.

    Examples
    --------
    >>> one = np.array([[1, 0.9, 0.2, 0.2], [0.9, 1, 0.2, 0.2], [0.2, 0.2, 1, 0.8], [0.2, 0.2, 0.8, 1]])
    >>> result = stability([one, one - 0.1 + 0.1 * np.eye(4)], [0, 0, 1, 1])
    >>> result.ari, result.together[0]
    (1.0, array([1., 1., 0., 0.]))
    """
    replicates, labels = np.asarray(replicates, np.float64), np.asarray(labels)
    M = labels.size
    if labels.ndim != 1 or replicates.ndim != 3 or replicates.shape[1:] != (M, M) or 0 in replicates.shape:
        raise InvalidInputError(
            f"expected replicates (B, M, M) and M labels, got the shapes {replicates.shape} and {labels.shape}"
        )
    count = len(np.unique(labels))
    if count == 1:
        return Stability(float("nan"), np.full((M, M), np.nan))
    clusterings = [_cut(_tree(_distances(R)), count) for R in replicates]
    together = np.mean([replicate[:, None] == replicate for replicate in clusterings], axis=0)
    ari = float(np.mean([adjusted_rand_score(labels, replicate) for replicate in clusterings]))
    return Stability(ari, np.asarray(together))


def _square(R: ArrayLike) -> Float64[np.ndarray, "*batch M M"]:
    R = np.asarray(R, np.float64)
    if R.ndim < 2 or R.shape[-1] != R.shape[-2] or R.shape[-1] == 0:
        raise InvalidInputError(f"expected similarities of models with themselves, (M, M), got the shape {R.shape}")
    return R


def _unit(R: ArrayLike) -> Float64[np.ndarray, "M M"]:
    """Check that R is one matrix without NaN and with 1 on its diagonal."""
    R = _square(R)
    if R.ndim > 2:
        raise InvalidInputError(f"expected one matrix (M, M), got the shape {R.shape}")
    if missing := np.flatnonzero(~np.isfinite(R).any(0)).tolist() or np.flatnonzero(~np.isfinite(R).all(0)).tolist():
        raise UndefinedValueError(f"the models {missing} have no value; leave them out")
    if not np.allclose(np.diagonal(R), 1, rtol=0, atol=1e-6):
        raise InvalidInputError("expected similarities whose diagonal is 1: only those have distances sqrt(2 (1 - R))")
    return R


def _distances(R: ArrayLike) -> Float64[np.ndarray, "M M"]:
    R = _unit(R)
    squared = np.maximum(2 - R - R.T, 0)
    return np.asarray(np.sqrt(squared) * (1 - np.eye(len(R))))


def _tree(distances: Float64[np.ndarray, "M M"]) -> Any:
    """Compute the average-linkage tree; distances are rounded, so that rounding errors do not order the merges."""
    return linkage(squareform(distances.round(9), checks=False), "average")


def _cut(tree: Any, count: int) -> Int64[np.ndarray, " M"]:
    """Cut the tree into at most ``count`` clusters, numbered by first appearance."""
    raw = fcluster(tree, count, "maxclust")
    order = list(dict.fromkeys(raw.tolist()))
    return np.array([order.index(label) for label in raw.tolist()])
