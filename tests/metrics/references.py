"""The measures once more: plain numpy in float64, slow, written from the published formulas and not from our code."""

import numpy as np

from repsim.metrics.base import Array


def hsic1(K: Array, L: Array) -> float:
    """Song et al. 2012, eq. 5, for Gram matrices (n, n)."""
    n, one = len(K), np.ones(len(K))
    K, L = K - np.diag(np.diag(K)), L - np.diag(np.diag(L))
    trace = np.trace(K @ L)
    sums = (one @ K @ one) * (one @ L @ one) / ((n - 1) * (n - 2))
    return float((trace + sums - 2 / (n - 2) * (one @ K @ L @ one)) / (n * (n - 3)))


def hsic0(K: Array, L: Array) -> float:
    """Gretton et al. 2005: tr(K H L H) / (n - 1)^2."""
    n = len(K)
    H = np.eye(n) - 1 / n
    return float(np.trace(K @ H @ L @ H) / (n - 1) ** 2)


def gram(x: Array, kernel: str = "linear", bandwidth: float | None = None, sigma: float | None = None) -> Array:
    """Gram matrix of centred features; the width of the RBF kernel as Kornblith's published code has it."""
    x = x - x.mean(0)
    if kernel == "linear":
        return x @ x.T
    squared = np.sum((x[:, None] - x[None]) ** 2, axis=2)
    s2 = sigma**2 if sigma is not None else (0.5 if bandwidth is None else bandwidth) ** 2 * np.median(squared)
    return np.asarray(np.exp(-squared / (2 * s2)))


def cka(
    x: Array,
    y: Array,
    *,
    kernel: str = "linear",
    estimator: str = "debiased",
    bandwidth: float | None = None,
    sigma: float | None = None,
    batch: int | None = None,
) -> float:
    """HSIC(K, L) / sqrt(HSIC(K, K) HSIC(L, L)), every HSIC averaged over the minibatches where there are any."""
    K, L = gram(x, kernel, bandwidth, sigma), gram(y, kernel, bandwidth, sigma)
    hsic = hsic0 if estimator == "biased" else hsic1
    batches = [np.arange(len(x))]
    if batch is not None:  # the partition is that of docs/store-format.md: a permutation from seed 0
        order = np.random.default_rng(0).permutation(len(x))
        batches = [order[start : start + batch] for start in range(0, len(x) - batch + 1, batch)]

    def mean(K: Array, L: Array) -> float:
        return float(np.mean([hsic(K[np.ix_(b, b)], L[np.ix_(b, b)]) for b in batches]))

    return float(mean(K, L) / np.sqrt(mean(K, K) * mean(L, L)))


def cka_units(x: Array, y: Array) -> float:
    """Chun et al. 2025: HSIC of Song et al. 2012 between the layers, over that of all pairs of different units."""

    def norm(z: Array) -> float:
        units = [np.outer(unit, unit) for unit in z.T]
        p = len(units)
        return p / (p - 1) * sum(hsic1(units[j], units[k]) for j in range(p) for k in range(p) if j != k)

    return hsic1(x @ x.T, y @ y.T) / float(np.sqrt(norm(x) * norm(y)))


def projector(x: Array) -> Array:
    """The orthogonal projection (n, n) on the span of the centred columns."""
    x = x - x.mean(0)
    return x @ np.linalg.pinv(x, rcond=1e-12)


def cca(x: Array, y: Array, summary: str = "rho") -> float:
    """The squared correlations are the eigenvalues of P_x P_y."""
    P, R = projector(x), projector(y)
    m = min(round(np.trace(P)), round(np.trace(R)))
    if summary == "r2":
        return float(np.trace(P @ R) / m)
    squares = np.sort(np.linalg.eigvals(P @ R).real)[::-1][:m]
    return float(np.sqrt(squares.clip(0, 1)).mean())


def leading(x: Array, variance: float) -> Array:
    """Scores on the fewest principal components, from the covariance matrix, that explain ``variance``."""
    x = x - x.mean(0)
    values, vectors = np.linalg.eigh(x.T @ x)
    values, vectors = values[::-1], vectors[:, ::-1]
    kept = 1
    while kept < np.linalg.matrix_rank(x) and values[:kept].sum() < variance * values.sum():
        kept += 1
    return np.asarray(x @ vectors[:, :kept])


def svcca(x: Array, y: Array, variance: float = 0.99, summary: str = "rho") -> float:
    """CCA after PCA."""
    return cca(leading(x, variance), leading(y, variance), summary)


def pwcca(x: Array, y: Array) -> float:
    """Morcos et al. 2018: the variates h_i of the side of smaller rank are eigenvectors of P_x P_y P_x."""
    P, R = projector(x), projector(y)
    if round(np.trace(P)) > round(np.trace(R)):
        x, P, R = y, R, P
    squares, h = np.linalg.eigh(P @ R @ P)
    m = round(np.trace(P))
    rho, h = np.sqrt(squares[-m:].clip(0, 1)), h[:, -m:]
    weights = np.abs(h.T @ (x - x.mean(0))).sum(1)
    return float(weights @ rho / weights.sum())


def u_centred(K: Array) -> Array:
    """Szekely & Rizzo 2014, def. 2: every row of the result sums to 0 without its diagonal."""
    n = len(K)
    K = K - np.diag(np.diag(K))
    m = K.sum(1) / (n - 2) - K.sum() / (2 * (n - 1) * (n - 2))
    A = K - m[:, None] - m
    return np.asarray(A - np.diag(np.diag(A)))


def cosine(A: Array, B: Array) -> float:
    """<A, B> / (||A|| ||B||)."""
    return float(np.sum(A * B) / np.sqrt(np.sum(A * A) * np.sum(B * B)))


def minibatch_cka(x: Array, y: Array, size: int, *, estimator: str = "debiased") -> float:
    """Nguyen et al. 2021, eq. 3: every HSIC is averaged over disjoint minibatches; a short last one is dropped."""
    hsic = hsic1 if estimator == "debiased" else hsic0
    batches = [slice(start, start + size) for start in range(0, len(x) - size + 1, size)]

    def mean(x: Array, y: Array) -> float:
        return float(np.mean([hsic(gram(x[batch]), gram(y[batch])) for batch in batches]))

    return float(mean(x, y) / np.sqrt(mean(x, x) * mean(y, y)))


def sketched_cka(x: Array, y: Array) -> float:
    """From two sketches of each side, (n, 2, m): inner products of one with the other only."""
    A, B = ([u_centred(gram(side[:, k])) for k in (0, 1)] for side in (x, y))
    product = (np.sum(A[0] * B[1]) + np.sum(A[1] * B[0])) / 2
    return float(product / np.sqrt(np.sum(A[0] * A[1]) * np.sum(B[0] * B[1])))


def sketch_error(x: Array, y: Array, m: int) -> float:
    """Standard deviation of CKA from two sketches of m columns, those of x independent of those of y.

    K^1 = K + E1 and so on, E1 = X D1 X', where D1 = SS' - I is 0 on its diagonal, and off it of variance r, the chance
    that two features share a bucket (nearly 1/m). With A, B the U-centred Gram matrices and E = (E1 + E2) / 2,
    d log CKA = <E, G> + <F, G'> + (<E1, F2> + <E2, F1>) / (2 <A, B>) - <E1, E2> / (2 ||A||^2) - <F1, F2> / (2 ||B||^2),
    G = B / <A, B> - A / ||A||^2, and G' the same with A and B exchanged. <E, G> = tr(W (D1 + D2)) / 2 with W = X'GX has
    the variance r (||W||^2 - ||diag W||^2), ||W||^2 = tr(KGKG). The variances add up; of the products only the leading
    term is taken, r s tr(KL)^2 and so on, which is all but right where no direction holds most of the variance.
    """
    x, y = x - x.mean(0), y - y.mean(0)
    K, L = x @ x.T, y @ y.T
    A, B = u_centred(K), u_centred(L)

    def rate(p: int) -> float:
        counts = np.bincount(np.arange(p) % min(m, p))
        return float(np.sum(counts * (counts - 1)) / (p * (p - 1)))

    def first(x: Array, K: Array, A: Array, B: Array) -> float:
        G = B / np.sum(A * B) - A / np.sum(A**2)
        return rate(x.shape[1]) * float(np.trace(K @ G @ K @ G) - np.sum(np.sum(x * (G @ x), axis=0) ** 2))

    def second(K: Array, L: Array, A: Array, B: Array) -> float:
        return float((np.sum(K * L) / np.sum(A * B)) ** 2)

    r, s = rate(x.shape[1]), rate(y.shape[1])
    products = r * s * second(K, L, A, B) + (r**2 * second(K, K, A, A) + s**2 * second(L, L, B, B)) / 2
    return abs(cosine(A, B)) * float(np.sqrt(first(x, K, A, B) + first(y, L, B, A) + products))
