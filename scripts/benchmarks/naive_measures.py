"""Naive implementations of all measures for `scripts/bench metrics`: vectorised numpy, one pair of layers per call.

Nothing is shared between pairs. Layers are float32 arrays of shapes (n, p) and (n, q), and are not converted.
"""

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment
from scipy.spatial.distance import cdist
from scipy.stats import spearmanr

Array = NDArray[Any]
K = 10


def centred(x: Array) -> Array:
    return np.asarray(x - x.mean(0))


def unit(x: Array) -> Array:
    """Return the rows divided by their norms."""
    return np.asarray(x / np.linalg.norm(x, axis=1, keepdims=True))


# --- similarity matrices


def u_centred(x: Array) -> Array:
    gram = x @ x.T
    np.fill_diagonal(gram, 0)
    n, sums = len(gram), gram.sum(0, dtype=np.float64)
    offsets = ((sums - sums.sum() / (2 * (n - 1))) / (n - 2)).astype(gram.dtype)
    gram -= offsets
    gram -= offsets[:, None]
    np.fill_diagonal(gram, 0)
    return gram


def cosine(a: Array, b: Array) -> float:
    return float((a * b).sum(dtype=np.float64) / np.linalg.norm(a) / np.linalg.norm(b))


def cka(x: Array, y: Array) -> float:
    return cosine(u_centred(centred(x)), u_centred(centred(y)))


def cka_units(x: Array, y: Array) -> float:
    def norm(z: Array, gram: Array) -> float:
        """Return ||A||^2 without the products of a unit with itself, which have a closed form for centred units."""
        n, p = z.shape
        squares = (z.astype(np.float64) ** 2).sum(0) ** 2
        fourths = (z.astype(np.float64) ** 4).sum()
        alone = squares.sum() * (1 + 1 / ((n - 1) * (n - 2))) - n / (n - 2) * fourths
        return float(p / (p - 1) * ((gram * gram).sum(dtype=np.float64) - alone))

    x, y = centred(x), centred(y)
    a, b = u_centred(x), u_centred(y)
    return float((a * b).sum(dtype=np.float64) / np.sqrt(norm(x, a) * norm(y, b)))


def double_centred(d: Array) -> Array:
    return np.asarray(d - d.mean(0) - d.mean(1, keepdims=True) + d.mean())


def distance_correlation(x: Array, y: Array) -> float:
    return float(np.sqrt(cosine(double_centred(cdist(x, x)), double_centred(cdist(y, y)))))


def rsa(x: Array, y: Array) -> float:
    above = np.triu_indices(len(x), 1)
    return float(spearmanr(np.corrcoef(x)[above], np.corrcoef(y)[above]).statistic)


def rsm_difference(x: Array, y: Array) -> float:
    return float(np.abs(np.linalg.eigvalsh(cdist(x, x) - cdist(y, y))).max())


# --- subspaces


def basis(x: Array, variance: float = 1.0) -> tuple[Array, Array, Array]:
    u, s, vh = np.linalg.svd(x, full_matrices=False)
    kept = int((s > s[0] * 1024 * np.finfo(x.dtype).eps).sum())
    if variance < 1:
        kept = int((np.cumsum(s**2) < variance * (s**2).sum()).sum()) + 1
    return u[:, :kept], s[:kept], vh[:kept]


def correlations(x: Array, y: Array, variance: float = 1.0) -> Array:
    q, r = basis(centred(x), variance)[0], basis(centred(y), variance)[0]
    return np.asarray(np.linalg.svd(q.T @ r, compute_uv=False).clip(0, 1))


def cca(x: Array, y: Array) -> float:
    return float(correlations(x, y).mean())


def svcca(x: Array, y: Array) -> float:
    return float(correlations(x, y, 0.99).mean())


def pwcca(x: Array, y: Array) -> float:
    x, y = centred(x), centred(y)
    q, r = basis(x)[0], basis(y)[0]
    if q.shape[1] > r.shape[1]:
        x, q, r = y, r, q
    u, rho, _ = np.linalg.svd(q.T @ r, full_matrices=False)
    weights = np.abs((q @ u).T @ x).sum(1)
    return float((weights * rho).sum() / weights.sum())


def gulp(x: Array, y: Array) -> float:
    q, r = basis(centred(x))[0], basis(centred(y))[0]
    return float(q.shape[1] + r.shape[1] - 2 * np.linalg.norm(q.T @ r) ** 2)


def eigenspace_overlap(x: Array, y: Array) -> float:
    return float(np.linalg.norm(basis(x)[0].T @ basis(y)[0]) ** 2 / max(x.shape[1], y.shape[1]))


def linear_regression(x: Array, y: Array) -> float:
    x = centred(x)
    return float((np.linalg.norm(basis(centred(y))[0].T @ x) / np.linalg.norm(x)) ** 2)


def nuclear(x: Array, y: Array) -> float:
    x, y = centred(x), centred(y)
    return float(np.linalg.norm(x.T @ y, "nuc") / np.linalg.norm(x) / np.linalg.norm(y))


def angular_shape(x: Array, y: Array) -> float:
    return float(np.arccos(min(1.0, nuclear(x, y))))


def procrustes(x: Array, y: Array) -> float:
    return float(np.sqrt(max(0.0, 2 - 2 * nuclear(x, y))))


def procrustes_size(x: Array, y: Array) -> float:
    x, y = centred(x), centred(y)
    return float(np.sqrt(np.linalg.norm(x) ** 2 + np.linalg.norm(y) ** 2 - 2 * np.linalg.norm(x.T @ y, "nuc")))


# --- units


def padded(x: Array, y: Array) -> tuple[Array, Array]:
    width = max(x.shape[1], y.shape[1])
    return np.pad(x, ((0, 0), (0, width - x.shape[1]))), np.pad(y, ((0, 0), (0, width - y.shape[1])))


def between_units(x: Array, y: Array) -> Array:
    return np.asarray(unit(centred(x).T) @ unit(centred(y).T).T)


def hard_correlation(x: Array, y: Array) -> float:
    c = between_units(x, y)
    return float(c[linear_sum_assignment(c, maximize=True)].mean())


def semi_correlation(x: Array, y: Array) -> float:
    c = between_units(x, y)
    return float((c.max(0).mean() + c.max(1).mean()) / 2)


def soft_matching(x: Array, y: Array) -> float:
    import ot  # noqa: PLC0415

    c = between_units(x, y).astype(np.float64)
    p, q = c.shape
    return float((ot.emd(np.full(p, 1 / p), np.full(q, 1 / q), -c, numItermax=10**7) * c).sum())


def permutation_procrustes(x: Array, y: Array) -> float:
    x, y = padded(x, y)
    i, j = linear_sum_assignment(x.T @ y, maximize=True)
    return float(np.linalg.norm(x[:, i] - y[:, j]))


def aligned_cosine(x: Array, y: Array) -> float:
    x, y = padded(x, y)
    u, _, vh = np.linalg.svd(x.T @ y)
    return float((unit(x @ u @ vh) * unit(y)).sum(1).mean())


# --- neighbours


def cosine_similarities(x: Array) -> Array:
    gram = unit(x) @ unit(x).T
    np.fill_diagonal(gram, -np.inf)
    return np.asarray(gram)


def nearest(gram: Array) -> Array:
    unsorted = np.argpartition(-gram, K, axis=1)[:, :K]
    return np.take_along_axis(unsorted, np.argsort(-np.take_along_axis(gram, unsorted, 1), axis=1), 1)


def as_mask(neighbours: Array) -> Array:
    """Return the boolean matrix (n, n) that is True at the neighbours of each sample."""
    mask = np.zeros((len(neighbours), len(neighbours)), bool)
    np.put_along_axis(mask, neighbours, values=True, axis=1)
    return mask


def mutual_knn(x: Array, y: Array) -> float:
    return float(
        (as_mask(nearest(cosine_similarities(x))) & as_mask(nearest(cosine_similarities(y)))).sum() / (len(x) * K)
    )


def jaccard_knn(x: Array, y: Array) -> float:
    shared = (as_mask(nearest(cosine_similarities(x))) & as_mask(nearest(cosine_similarities(y)))).sum(1)
    return float((shared / (2 * K - shared)).mean())


def cycle_knn(x: Array, y: Array) -> float:
    a, b = nearest(cosine_similarities(x)), nearest(cosine_similarities(y))
    return float((a[b] == np.arange(len(a))[:, None, None]).any((1, 2)).mean())


def hsic1(k: Array, m: Array) -> float:
    n = len(k)
    trace, sums = (k * m.T).sum(), k.sum() * m.sum() / ((n - 1) * (n - 2))
    return float((trace + sums - 2 / (n - 2) * (k.sum(0) @ m.sum(1))) / (n * (n - 3)))


def cknna(x: Array, y: Array) -> float:
    k, m = unit(x) @ unit(x).T, unit(y) @ unit(y).T
    np.fill_diagonal(k, 0)
    np.fill_diagonal(m, 0)
    a, b = as_mask(nearest(cosine_similarities(x))), as_mask(nearest(cosine_similarities(y)))
    both = a & b
    return float(hsic1(both * k, both * m) / np.sqrt(hsic1(a * k, a * k) * hsic1(b * m, b * m)))


def rank_similarity(x: Array, y: Array) -> float:
    similarities = []
    for a, b in zip(nearest(cosine_similarities(x)), nearest(cosine_similarities(y)), strict=True):
        _, r, s = np.intersect1d(a, b, return_indices=True)
        r, s = r + 1, s + 1
        total = (2 / ((1 + np.abs(r - s)) * (r + s))).sum()
        similarities.append(total / (1 / np.arange(1, len(r) + 1)).sum() if len(r) else 0.0)
    return float(np.mean(similarities))


def second_order_cosine(x: Array, y: Array) -> float:
    k, m = cosine_similarities(x), cosine_similarities(y)
    either = as_mask(nearest(k)) | as_mask(nearest(m))
    cosines = []
    for row, left, right in zip(either, k, m, strict=True):
        u, v = 1 - left[row], 1 - right[row]
        cosines.append((u @ v) / np.linalg.norm(u) / np.linalg.norm(v))
    return float(np.mean(cosines))


# --- summary numbers of one layer


def magnitude_difference(x: Array, y: Array) -> float:
    return float(abs(np.linalg.norm(x.mean(0)) - np.linalg.norm(y.mean(0))))


def concentricity_difference(x: Array, y: Array) -> float:
    return float(abs(np.subtract(*((unit(z) @ (z.mean(0) / np.linalg.norm(z.mean(0)))).mean() for z in (x, y)))))


def uniformity_difference(x: Array, y: Array) -> float:
    def uniformity(z: Array) -> float:
        return float(np.log(np.exp(-2 * cdist(z, z, "sqeuclidean")).mean()))

    return abs(uniformity(x) - uniformity(y))


NAIVE: dict[str, Callable[[Array, Array], float]] = {
    measure.__name__: measure
    for measure in (
        aligned_cosine, angular_shape, cca, cka, cka_units, cknna, concentricity_difference, cycle_knn,
        distance_correlation, eigenspace_overlap, gulp, hard_correlation, jaccard_knn, linear_regression,
        magnitude_difference, mutual_knn, nuclear, permutation_procrustes, procrustes, procrustes_size, pwcca,
        rank_similarity, rsa, rsm_difference, second_order_cosine, semi_correlation, soft_matching, svcca,
        uniformity_difference,
    )
}  # fmt: skip


# --- other packages: one pair of layers, as in their documentation


def by_rsatoolbox(x: Array, y: Array) -> float:
    from rsatoolbox.data import Dataset  # noqa: PLC0415
    from rsatoolbox.rdm import calc_rdm, compare  # noqa: PLC0415

    return float(compare(*(calc_rdm(Dataset(z), method="correlation") for z in (x, y)), method="spearman")[0, 0])


def by_dcor(x: Array, y: Array) -> float:
    import dcor  # noqa: PLC0415

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return float(dcor.distance_correlation(x.astype(np.float64), y.astype(np.float64)))


def by_scikit_learn(x: Array, y: Array) -> float:
    """Return mutual kNN of the neighbours that scikit-learn finds."""
    from sklearn.neighbors import NearestNeighbors  # noqa: PLC0415

    a, b = (
        as_mask(NearestNeighbors(n_neighbors=K, metric="cosine").fit(z).kneighbors(return_distance=False))
        for z in (x, y)
    )
    return float((a & b).sum() / (len(x) * K))


PEERS = {
    "rsa": ("rsatoolbox", by_rsatoolbox),
    "distance_correlation": ("dcor", by_dcor),
    "mutual_knn": ("scikit-learn", by_scikit_learn),
}
"""Packages with the measure. CKA has its own benchmark, `scripts/bench compare`: torch-cka takes models, not arrays."""
