"""The map of models (or of layers): where each lies, which of them belong together, and how sure that is."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float64, Int64
from numpy.typing import ArrayLike
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.spatial.distance import squareform
from sklearn.metrics import adjusted_rand_score, silhouette_score

from repsim.errors import InvalidInputError, UndefinedValueError

APART = 0.25
"""The mean silhouette below which clusters are not apart enough to be called so (Kaufman and Rousseeuw 1990)."""
ROUNDING = 1e-13
"""Eigenvalues of less than this share of the trace are rounding errors, as are entries of vectors below M of it."""


@dataclass(frozen=True, eq=False)
class Embedding:
    """Points whose distances are those of the models."""

    coordinates: Float64[np.ndarray, "M dims"]
    """Along the principal axes, the widest first, about their mean."""
    eigenvalues: Float64[np.ndarray, " M"]
    """Sums of squares along all M axes, the largest first: two axes show the part that theirs are of the total."""
    negative: float
    """The share of the eigenvalues' absolute sum that is negative: 0, but for rounding errors, if R is semidefinite."""


def embed(R: ArrayLike, dims: int | None = None) -> Embedding:
    """Lay models out so that their squared distances are 2 (1 - R): those of unit kernels, or of any unit vectors.

    Classical multidimensional scaling: with J = I - 11'/M, the points are U sqrt(lambda), of J R J = U lambda U'.

    Parameters
    ----------
    R
        (M, M), similarities that are positive semidefinite with a unit diagonal: debiased CKA, partial CKA, mutual kNN.
    dims
        How many axes; by default all M, which reproduce every distance exactly. An axis that R has nothing for is 0.

    Returns
    -------
    Embedding
        Of the two directions of an axis it is the one in which the coordinate farthest from 0 is positive (of several
        the first). Where R is not semidefinite, ``negative`` says how far the map cannot be true.

    Raises
    ------
    InvalidInputError
        No square matrix, another diagonal, less than one axis.
    UndefinedValueError
        A model without a value.

    References
    ----------
    Torgerson. Multidimensional scaling: I. Theory and method. Psychometrika 1952.
    Gower. Some distance properties of latent root and vector methods used in multivariate analysis. Biometrika 1966.

    Examples
    --------
    >>> found = embed([[1, 0.875, 0.5], [0.875, 1, 0.5], [0.5, 0.5, 1]], dims=2)
    >>> found.coordinates.round(3), round(float(np.linalg.norm(found.coordinates[0] - found.coordinates[1])), 9)
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
    values = np.where(np.abs(values) > ROUNDING * M, values, 0)  # whose roots would be a million times larger
    size = np.abs(vectors)
    farthest = np.argmax(size > size.max(0) - 1e-9, axis=0)  # rounding errors do not choose between two that are level
    vectors = vectors * np.where(vectors[farthest, range(M)] < 0, -1, 1)
    vectors[np.abs(vectors) < ROUNDING * M] = 0  # nor have they a sign: also of -0. this makes 0.
    coordinates = np.zeros((M, dims))
    coordinates[:, :M] = (vectors * np.sqrt(np.maximum(values, 0)))[:, :dims]
    total = np.abs(values).sum()
    return Embedding(coordinates, values, float(-values[values < 0].sum() / total) if total > 0 else 0.0)


def common_share(R: ArrayLike) -> Float64[np.ndarray, "*batch"]:
    """Find how much of all models' energy lies along one direction: the largest eigenvalue of R over its trace.

    1 if all models are the same, 1 / M if no two share anything. R is (..., M, M), positive semidefinite; NaN where it
    has one.

    Examples
    --------
    >>> round(float(common_share(np.full((4, 4), 0.6) + 0.4 * np.eye(4))), 9)  # (1 + 3 x 0.6) / 4
    0.7
    """
    R = _square(R)
    there = np.isfinite(R).all((-2, -1))
    largest = np.linalg.eigvalsh(np.where(there[..., None, None], R, np.eye(R.shape[-1])))[..., -1]
    return np.asarray(np.where(there, largest, np.nan) / np.trace(R, axis1=-2, axis2=-1))


@dataclass(frozen=True, eq=False)
class Clusters:
    """Models that belong together."""

    labels: Int64[np.ndarray, " M"]
    """The cluster of each model, numbered by first appearance."""
    count: int
    silhouette: float
    """The best mean silhouette of two clusters or more, in [-1, 1]; NaN where there is none to judge."""


def clusters(R: ArrayLike, max_clusters: int | None = None) -> Clusters:
    """Group models by average linkage of their distances sqrt(2 (1 - R)): candidates for universality classes.

    How many there are is decided by the mean silhouette, of 2 to M - 1 clusters, and of equals by the fewest. One
    cluster if no number of them reaches .25, the level below which Kaufman and Rousseeuw see no structure, or if there
    are fewer than three models.

    Parameters
    ----------
    R
        (M, M), as for `embed`.
    max_clusters
        How many there may be.

    Raises
    ------
    InvalidInputError
        No square matrix, another diagonal, less than one cluster.
    UndefinedValueError
        A model without a value.

    Notes
    -----
    A squared distance below 0, of a similarity that exceeds 1 by a rounding error (or, estimated from sketches, by
    more), counts as 0.

    References
    ----------
    Rousseeuw. Silhouettes. Journal of Computational and Applied Mathematics 1987.
    Kaufman, Rousseeuw. Finding groups in data. Wiley 1990 (table 4: below .25).

    Examples
    --------
    >>> found = clusters([[1, 0.9, 0.2, 0.2], [0.9, 1, 0.2, 0.2], [0.2, 0.2, 1, 0.8], [0.2, 0.2, 0.8, 1]])
    >>> found.labels, found.count, round(found.silhouette, 2)
    (array([0, 0, 1, 1]), 2, 0.57)
    """
    distances = _distances(R)
    M = len(distances)
    if max_clusters is not None and max_clusters < 1:
        raise InvalidInputError(f"expected at least one cluster, got max_clusters = {max_clusters}")
    best = Clusters(np.zeros(M, np.int64), 1, float("nan"))
    if M < 3:
        return best
    tree = _tree(distances)
    found = []
    for count in range(2, min(max_clusters or M, M - 1) + 1):
        labels = _cut(tree, count)
        if labels.max() + 1 == count:  # models that merge at one height cannot be cut apart
            found.append(Clusters(labels, count, float(silhouette_score(distances, labels, metric="precomputed"))))
    if not found:
        return best
    best = max(found, key=lambda clustering: round(clustering.silhouette, 9))
    return best if best.silhouette >= APART else Clusters(np.zeros(M, np.int64), 1, best.silhouette)


@dataclass(frozen=True, eq=False)
class Stability:
    """Whether other stimuli give the same clusters."""

    ari: float
    """Mean adjusted Rand index of the replicates' clusters and the labels: 1 for the same, 0 on average by chance."""
    together: Float64[np.ndarray, "M M"]
    """How often two models are in one cluster."""


def stability(replicates: ArrayLike, labels: ArrayLike) -> Stability:
    """Cluster each replicate into as many clusters as there are labels, and compare.

    Parameters
    ----------
    replicates
        (B, M, M), similarities from other stimuli: of half-samples, say.
    labels
        The cluster of each model, as in `Clusters`.

    Returns
    -------
    Stability
        NaN throughout for a single cluster, which is the same in every replicate whatever they are.

    References
    ----------
    Hubert, Arabie. Comparing partitions. Journal of Classification 1985.
    Ben-Hur, Elisseeff, Guyon. A stability based method for discovering structure in clustered data. PSB 2002.

    Examples
    --------
    >>> one = np.array([[1, 0.9, 0.2, 0.2], [0.9, 1, 0.2, 0.2], [0.2, 0.2, 1, 0.8], [0.2, 0.2, 0.8, 1]])
    >>> found = stability([one, one - 0.1 + 0.1 * np.eye(4)], [0, 0, 1, 1])
    >>> found.ari, found.together[0]
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
    found = [_cut(_tree(_distances(R)), count) for R in replicates]
    together = np.mean([again[:, None] == again for again in found], axis=0)
    return Stability(float(np.mean([adjusted_rand_score(labels, again) for again in found])), np.asarray(together))


def _square(R: ArrayLike) -> Float64[np.ndarray, "*batch M M"]:
    R = np.asarray(R, np.float64)
    if R.ndim < 2 or R.shape[-1] != R.shape[-2] or R.shape[-1] == 0:
        raise InvalidInputError(f"expected similarities of models with themselves, (M, M), got the shape {R.shape}")
    return R


def _unit(R: ArrayLike) -> Float64[np.ndarray, "M M"]:
    """One matrix without gaps, whose diagonal is 1."""
    R = _square(R)
    if R.ndim > 2:
        raise InvalidInputError(f"expected one matrix (M, M), got the shape {R.shape}")
    if missing := np.flatnonzero(~np.isfinite(R).any(0)).tolist() or np.flatnonzero(~np.isfinite(R).all(0)).tolist():
        raise UndefinedValueError(f"the models {missing} have no value, and so no place; leave them out")
    if not np.allclose(np.diagonal(R), 1, rtol=0, atol=1e-6):
        raise InvalidInputError("expected similarities whose diagonal is 1: only those have distances sqrt(2 (1 - R))")
    return R


def _distances(R: ArrayLike) -> Float64[np.ndarray, "M M"]:
    R = _unit(R)
    squared = np.maximum(2 - R - R.T, 0)
    return np.asarray(np.sqrt(squared) * (1 - np.eye(len(R))))


def _tree(distances: Float64[np.ndarray, "M M"]) -> Any:
    """Link models whose distances differ by rounding errors only at one height, whichever of them comes first."""
    return linkage(squareform(distances.round(9), checks=False), "average")


def _cut(tree: Any, count: int) -> Int64[np.ndarray, " M"]:
    """At most as many clusters, numbered by first appearance."""
    raw = fcluster(tree, count, "maxclust")
    order = list(dict.fromkeys(raw.tolist()))
    return np.array([order.index(label) for label in raw.tolist()])
