"""How large similarity gets by chance: in closed form, and from permutations.

Chance is what permuting the samples of one layer gives: it takes away everything that makes two layers alike, and
nothing else. Of debiased CKA three moments are known exactly, so that no permutation need be drawn; of a maximum over
layers none are, and it needs the permutations (`repsim.permuted`).
"""

import math

import numpy as np
from jaxtyping import Float64, Int64
from numpy.typing import ArrayLike
from scipy import special

from repsim.engine.null_moments import CubicMoments
from repsim.errors import InvalidInputError

_SYMMETRIC = 1e-8
"""With less skewness than this, digits are lost, and the law is the normal one."""
_SADDLE = 0.02
"""With less skewness than this the incomplete Gamma function fails in the far tail, and the saddlepoint does not."""


def null_sd(n: int) -> float:
    """Standard deviation of debiased CKA over all permutations of n samples: sqrt(2 / (n (n - 3))), for any data.

    Examples
    --------
    >>> round(null_sd(1000), 6)
    0.001416
    """
    if n < 4:
        raise InvalidInputError(f"debiased CKA needs at least 4 samples, got n = {n}")
    return math.sqrt(2 / (n * (n - 3)))


def z_value(value: ArrayLike, n: int) -> Float64[np.ndarray, "..."]:
    """Debiased CKA in units of its standard deviation by chance; its mean by chance is 0.

    Examples
    --------
    >>> round(float(z_value(0.01, n=1000)), 2)
    7.06
    """
    return np.asarray(value, dtype=np.float64) / null_sd(n)


def skewness(a: CubicMoments, b: CubicMoments) -> float:
    """Skewness of the debiased CKA of two layers over all permutations of the samples of one, exactly.

    T = <A, P B P'> sums A_ij B_pi(i)pi(j), so that T^3 sums over three pairs of samples. What these contribute on
    average depends only on which of their six samples coincide. As rows of A sum to 0, the sum over all triples of
    pairs that coincide alike follows from t = tr(A^3) and U = sum_ij A_ij^3; of B, from s and V. With falling
    factorials (n)_k = n (n-1) ... (n-k+1) it comes to

        E[T^3] = 4 UV / (n)_2 + (24 UV + 8 ts) / (n)_3 + (56 UV + 24 (U-t)(V-s)) / (n)_4
                 + 48 (t-2U)(s-2V) / (n)_5 + 64 (2U-t)(2V-s) / (n)_6,

    where a term without so many samples is not there. The skewness is E[T^3] / E[T^2]^1.5 with
    E[T^2] = 2 ||A||^2 ||B||^2 / (n (n-3)).

    Parameters
    ----------
    a, b
        Of each layer, from `repsim.engine.null_moments.cubic_moments`.

    Returns
    -------
    float
        NaN where nothing is left of a layer, and so of its moments.

    Notes
    -----
    Layers with a few strong directions, or a few unusual samples, have a skewness far above 0, and then a normal tail
    is off by orders of magnitude: `pearson3`.

    References
    ----------
    Kazi-Aoual, Hitier, Sabatier, Lebreton. Refined approximations to permutation tests for multivariate inference.
    Computational Statistics & Data Analysis 1995.

    Examples
    --------
    >>> flat, steep = CubicMoments(100, 1.0, 0.01, 0.0), CubicMoments(100, 1.0, 0.9, 0.02)
    >>> round(skewness(flat, flat), 4), round(skewness(flat, steep), 4), round(skewness(steep, steep), 4)
    (0.0003, 0.0258, 2.382)
    """
    n = _same_samples(a, b)
    t, U, s, V = a.triangles, a.cubes, b.triangles, b.cubes
    terms = {
        2: 4 * U * V,
        3: 24 * U * V + 8 * t * s,
        4: 56 * U * V + 24 * (U - t) * (V - s),
        5: 48 * (t - 2 * U) * (s - 2 * V),
        6: 64 * (2 * U - t) * (2 * V - s),
    }
    third = sum(term / math.perm(n, k) for k, term in terms.items() if k <= n)
    return float(third / (2 * a.norm2 * b.norm2 / (n * (n - 3))) ** 1.5)


def pearson3(value: ArrayLike, n: int, skewness: ArrayLike) -> Float64[np.ndarray, "..."]:
    """How likely chance alone makes debiased CKA this large or larger, by the Pearson III law with its three moments.

    With skewness gamma > 0, k = 4 / gamma^2 and z the `z_value`, p = P(Gamma(k) > k + z sqrt(k)); with gamma < 0 the
    mirror image, P(Gamma(k) < k - z sqrt(k)); with gamma = 0 the normal law, their limit.

    Parameters
    ----------
    value
        Debiased CKA.
    n
        Samples.
    skewness
        As `skewness` gives it; broadcast against the values.

    Returns
    -------
    array
        In (0, 1]. Never below 1 / n!, which one ordering among all has, nor below the least float. 1 below all that
        the law allows (z <= -2 / gamma). NaN where the value or the skewness is.

    References
    ----------
    Kazi-Aoual, Hitier, Sabatier, Lebreton. Refined approximations to permutation tests for multivariate inference.
    Computational Statistics & Data Analysis 1995.

    Examples
    --------
    >>> [round(float(pearson3(0.1, n=50, skewness=gamma)), 6) for gamma in (0, 1, 2)]
    [0.000304, 0.00548, 0.01194]
    """
    z, gamma = np.broadcast_arrays(z_value(value, n), np.asarray(skewness, dtype=np.float64))
    normal = abs(gamma) < _SYMMETRIC
    gamma = np.where(normal, 1, gamma)
    k = 4 / gamma**2
    beyond = np.maximum(0, k + np.sign(gamma) * z * np.sqrt(k))  # 0: the end of the law
    tail = np.where(gamma > 0, special.gammaincc(k, beyond), special.gammainc(k, beyond))
    far = (abs(gamma) < _SADDLE) & (abs(z) > 1) & (beyond > 0)
    tail[far] = _saddlepoint(z[far], gamma[far])
    least = max(math.exp(-math.lgamma(n + 1)), np.finfo(np.float64).tiny)
    return np.asarray(np.maximum(least, np.where(normal, special.ndtr(-z), tail)))


def _saddlepoint(z: Float64[np.ndarray, " far"], gamma: Float64[np.ndarray, " far"]) -> Float64[np.ndarray, " far"]:
    """Upper tail of the Pearson III law (Lugannani & Rice 1980), right to a share gamma^2 / 48 of itself.

    P(Z > z) = Phi(-w) + phi(w) (1/z - 1/w), w^2 = 8 / gamma^2 (gamma z / 2 - log(1 + gamma z / 2)), w of z's sign.
    """
    half = gamma * z / 2
    w = np.sign(z) * np.sqrt(8 * (half - np.log1p(half))) / abs(gamma)
    return np.asarray(special.ndtr(-w) + np.exp(-(w**2) / 2) / math.sqrt(2 * math.pi) * (1 / z - 1 / w))


def p_value(observed: ArrayLike, permuted: ArrayLike) -> Float64[np.ndarray, "..."]:
    """How many of the permuted statistics T_1 ... T_K are as large as the observed T: (1 + #{T_k >= T}) / (K + 1).

    The one that is added is the order as it is, which is as likely as any other under the null. So p is valid for any
    K, and never 0.

    Parameters
    ----------
    observed
        T, a number or an array.
    permuted
        (K, ...): the same statistic, permuted, on the first axis. Compute both by one algorithm: two round
        differently, and a permutation that changes nothing would miss its tie.

    Returns
    -------
    array
        In [1 / (K + 1), 1]. NaN where T or one of T_k is.

    References
    ----------
    Phipson, Smyth. Permutation p-values should never be zero. Statistical Applications in Genetics and Molecular
    Biology 2010.

    Examples
    --------
    >>> float(p_value(0.9, [0.1, 0.3, 0.95, 0.2])), float(p_value(2.0, [0.1, 0.3, 0.95, 0.2]))
    (0.4, 0.2)
    """
    both = _together(observed, permuted)
    larger = np.asarray((both[1:] >= both[0]).sum(0), dtype=np.float64)
    return np.where(np.isnan(both).any(0), np.nan, (1 + larger) / len(both))


def threshold(observed: ArrayLike, permuted: ArrayLike, alpha: float = 0.05) -> Float64[np.ndarray, "..."]:
    """What a statistic has to exceed: tau, the ceil((1 - alpha)(K + 1))-th smallest of T, T_1 ... T_K.

    T > tau exactly where `p_value` would be at most alpha, but for ties with T.

    Parameters
    ----------
    observed, permuted
        As in `p_value`.
    alpha
        How often chance alone may exceed tau. Below 1 / (K + 1) nothing can.

    Returns
    -------
    array
        NaN where T or one of T_k is.

    Examples
    --------
    >>> float(threshold(0.9, np.linspace(0, 0.19, 19)))
    0.19
    """
    if not 0 < alpha < 1:
        raise InvalidInputError(f"alpha is a probability between 0 and 1, got {alpha}")
    both = _together(observed, permuted)
    rank = math.ceil((1 - alpha) * len(both) - 1e-9)  # (1 - .7) x 10 is 3, whatever rounding says
    return np.where(np.isnan(both).any(0), np.nan, np.sort(both, axis=0)[max(1, rank) - 1])


def calibrated(observed: ArrayLike, tau: ArrayLike) -> Float64[np.ndarray, "..."]:
    """Put a similarity on a scale that begins at chance: max(0, (T - tau) / (1 - tau)).

    0 is what chance can do, by definition, and 1 is identity.

    Parameters
    ----------
    observed
        T, a similarity that is 1 at most.
    tau
        Its `threshold`.

    Returns
    -------
    array
        In [0, 1]. NaN where T or tau is, and where tau is 1 or more: then chance does all that identity could.

    References
    ----------
    Groeger, Wen, Brbic. Revisiting the Platonic representation hypothesis. 2026.

    Examples
    --------
    >>> calibrated([0.1, 0.625, 1], tau=0.25).tolist()
    [0.0, 0.5, 1.0]
    """
    T, tau = np.broadcast_arrays(*(np.asarray(x, dtype=np.float64) for x in (observed, tau)))
    room = np.where(tau < 1, 1 - tau, np.nan)
    return np.asarray(np.maximum(0, (T - tau) / room))


def within_classes(labels: ArrayLike, count: int, seed: int = 0) -> Int64[np.ndarray, "count n"]:
    """Draw permutations that move samples only within their class, the same for the same seed.

    Chance then keeps what class membership makes alike, and a test asks for similarity beyond it.

    Parameters
    ----------
    labels
        (n,): the class of every sample.
    count
        How many.
    seed
        Of the random numbers.

    Raises
    ------
    InvalidInputError
        Every class has a single sample, so that no other order is left.

    Examples
    --------
    >>> within_classes(["cat", "dog", "cat", "dog", "owl"], count=3).tolist()
    [[2, 3, 0, 1, 4], [2, 3, 0, 1, 4], [0, 1, 2, 3, 4]]
    """
    names = np.asarray(labels)
    if names.ndim != 1 or count < 1:
        raise InvalidInputError(f"expected labels (n,) and at least 1 permutation, got {names.shape} and {count}")
    _, classes, sizes = np.unique(names, return_inverse=True, return_counts=True)
    if sizes.max(initial=0) < 2:
        raise InvalidInputError(
            f"all {len(names)} samples are of different classes, so that none can be permuted within its class; "
            "take coarser labels, or permute all samples (repsim.random_permutations)"
        )
    rng = np.random.default_rng(seed)
    there = np.argsort(classes, kind="stable")
    orders = np.empty((count, len(names)), dtype=np.int64)
    for order in orders:
        order[there] = np.lexsort((rng.random(len(names)), classes))  # of each class its own, in random order
    return orders


def _same_samples(a: CubicMoments, b: CubicMoments) -> int:
    if a.n != b.n:
        raise InvalidInputError(f"layers have {a.n} and {b.n} samples; rows must be the same samples in the same order")
    return a.n


def _together(observed: ArrayLike, permuted: ArrayLike) -> Float64[np.ndarray, "count_and_1 ..."]:
    """T, T_1 ... T_K on the first axis."""
    T, others = np.asarray(observed, dtype=np.float64), np.asarray(permuted, dtype=np.float64)
    if others.ndim < 1 or others.shape[1:] != T.shape or not len(others):
        raise InvalidInputError(
            f"expected permuted values of shape (K, *shape of the observed {T.shape}), K >= 1, got {others.shape}"
        )
    return np.concatenate([T[None], others])
