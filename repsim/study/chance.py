"""Compute null distributions, p-values and calibrated similarities, in closed form and from permutations.

The null distribution is that of the similarity when the samples of one layer are permuted: this destroys the relation
of the two layers, and changes nothing else. For debiased CKA three of its moments are known exactly, so that no
permutations are needed. For a maximum over layers they are not known, and permutations are drawn (`repsim.permuted`).
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float64, Int64
from numpy.typing import ArrayLike
from scipy import special

from repsim.engine.null_moments import CubicMoments
from repsim.errors import InvalidInputError

_NORMAL_BELOW = 1e-8
"""Skewness below which the normal distribution is used, because the Pearson III formula loses digits."""
_SADDLEPOINT_BELOW = 0.02
"""Skewness below which the far tail is computed by a saddlepoint, because the incomplete Gamma function fails."""


def null_sd(n: int) -> float:
    """Return the standard deviation of debiased CKA over all permutations of n samples: sqrt(2 / (n (n - 3))).

    It does not depend on the data.

    Examples
    --------
    >>> round(null_sd(1000), 6)
    0.001416
    """
    if n < 4:
        raise InvalidInputError(f"debiased CKA needs at least 4 samples, got n = {n}")
    return math.sqrt(2 / (n * (n - 3)))


def z_value(value: ArrayLike, n: int) -> Float64[np.ndarray, "..."]:
    """Divide debiased CKA by its standard deviation over all permutations of the samples; its mean over them is 0.

    Examples
    --------
    >>> round(float(z_value(0.01, n=1000)), 2)
    7.06
    """
    return np.asarray(value, dtype=np.float64) / null_sd(n)


def skewnesses(moments: Sequence[CubicMoments]) -> Float64[np.ndarray, "layers layers"]:
    """Compute the `skewness` of every layer with every layer.

    >>> layers = [CubicMoments(100, 1.0, 0.01, 0.0), CubicMoments(100, 1.0, 0.9, 0.02)]
    >>> skewnesses(layers).round(4).tolist()
    [[0.0003, 0.0258], [0.0258, 2.382]]
    """
    for other in moments[1:]:
        _same_samples(moments[0], other)
    sums = [np.array([getattr(one, name) for one in moments]) for name in ("norm2", "triangles", "cubes")]
    return np.asarray(_skewness(moments[0].n, [one[:, None] for one in sums], [one[None, :] for one in sums]))


def skewness(a: CubicMoments, b: CubicMoments) -> float:
    """Compute the exact skewness of debiased CKA of two layers over all permutations of the samples of one of them.

    T = <A, P B P'> is a sum of A_ij B_pi(i)pi(j), so that T^3 is a sum over triples of pairs of samples. The mean
    contribution of a triple depends only on which of its six samples coincide. As rows of A sum to 0, the sum over all
    triples with the same coincidences follows from t = tr(A^3) and U = sum_ij A_ij^3, and for B from s and V. With
    falling factorials (n)_k = n (n-1) ... (n-k+1) the result is

        E[T^3] = 4 UV / (n)_2 + (24 UV + 8 ts) / (n)_3 + (56 UV + 24 (U-t)(V-s)) / (n)_4
                 + 48 (t-2U)(s-2V) / (n)_5 + 64 (2U-t)(2V-s) / (n)_6,

    where terms with k > n are omitted. The skewness is E[T^3] / E[T^2]^1.5 with
    E[T^2] = 2 ||A||^2 ||B||^2 / (n (n-3)).

    Parameters
    ----------
    a, b : CubicMoments
        Moments of the two layers, from `repsim.engine.null_moments.cubic_moments`.

    Returns
    -------
    float
        NaN for a layer whose moments are NaN.

    Notes
    -----
    Layers with a few strong directions, or a few unusual samples, have a skewness far above 0. A normal tail is then
    wrong by orders of magnitude; use `pearson3`.

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
    sums = ([one.norm2, one.triangles, one.cubes] for one in (a, b))
    return float(_skewness(_same_samples(a, b), *sums))


def _skewness(n: int, a: Sequence[Any], b: Sequence[Any]) -> Any:
    """Compute the skewness from ||A||^2, tr(A^3) and the sum of cubes of both layers, numbers or arrays."""
    (a2, t, U), (b2, s, V) = a, b
    terms = {
        2: 4 * U * V,
        3: 24 * U * V + 8 * t * s,
        4: 56 * U * V + 24 * (U - t) * (V - s),
        5: 48 * (t - 2 * U) * (s - 2 * V),
        6: 64 * (2 * U - t) * (2 * V - s),
    }
    third = sum(term / math.perm(n, k) for k, term in terms.items() if k <= n)
    return third / (2 * a2 * b2 / (n * (n - 3))) ** 1.5


def pearson3(value: ArrayLike, n: int, skewness: ArrayLike) -> Float64[np.ndarray, "..."]:
    """Compute p-values of debiased CKA from the Pearson III distribution with the three exact permutation moments.

    The null hypothesis is that the two layers are independent, not that they are dissimilar: layers that share only the
    contrast of the stimuli have a population CKA of 0 and are found too often (`p_value`).

    With skewness gamma > 0, k = 4 / gamma^2 and z the `z_value`, p = P(Gamma(k) > k + z sqrt(k)). With gamma < 0 it is
    the mirror image, P(Gamma(k) < k - z sqrt(k)), and with gamma = 0 the normal distribution, their limit.

    Parameters
    ----------
    value : array of any shape
        Debiased CKA.
    n : int
        Number of samples.
    skewness : array
        Skewness, as from `skewness`; broadcast against the values.

    Returns
    -------
    array
        p-values in (0, 1]: the probability of a value this large or larger. At least 1 / n!, the probability of one
        order of the samples, and at least the smallest positive float. 1 for values below the support of the
        distribution (z <= -2 / gamma). NaN where the value or the skewness is NaN.

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
    normal = abs(gamma) < _NORMAL_BELOW
    gamma = np.where(normal, 1, gamma)
    k = 4 / gamma**2
    beyond = np.maximum(0, k + np.sign(gamma) * z * np.sqrt(k))  # 0: the end of the support
    tail = np.where(gamma > 0, special.gammaincc(k, beyond), special.gammainc(k, beyond))
    far = (abs(gamma) < _SADDLEPOINT_BELOW) & (abs(z) > 1) & (beyond > 0)
    tail[far] = _saddlepoint(z[far], gamma[far])
    least = max(math.exp(-math.lgamma(n + 1)), np.finfo(np.float64).tiny)
    return np.asarray(np.maximum(least, np.where(normal, special.ndtr(-z), tail)))


def _saddlepoint(z: Float64[np.ndarray, " far"], gamma: Float64[np.ndarray, " far"]) -> Float64[np.ndarray, " far"]:
    """Approximate the upper tail of the Pearson III distribution, with a relative error of gamma^2 / 48.

    The saddlepoint approximation of Lugannani & Rice (1980):

    P(Z > z) = Phi(-w) + phi(w) (1/z - 1/w), w^2 = 8 / gamma^2 (gamma z / 2 - log(1 + gamma z / 2)), w of z's sign.
    """
    half = gamma * z / 2
    w = np.sign(z) * np.sqrt(8 * (half - np.log1p(half))) / abs(gamma)
    return np.asarray(special.ndtr(-w) + np.exp(-(w**2) / 2) / math.sqrt(2 * math.pi) * (1 / z - 1 / w))


def p_value(observed: ArrayLike, permuted: ArrayLike) -> Float64[np.ndarray, "..."]:
    """Compute permutation p-values (1 + #{T_k >= T}) / (K + 1) of an observed T and permuted statistics T_1 ... T_K.

    The test rejects "independent", not "dissimilar". Layers whose rows have random directions, but common lengths, as
    if networks shared nothing but the contrast of the stimuli, have a population CKA of 0, and yet p <= 0.05 in 14 % of
    cases if the lengths are log-normal with sigma 0.4, and in 38 % with sigma 0.8 (docs/statistics.md).

    The 1 that is added counts the observed order of the samples, which under the null hypothesis is as likely as any
    other. p is therefore valid for any K, and never 0.

    Parameters
    ----------
    observed : float or array
        T, the observed statistic.
    permuted : array of shape (K, ...)
        The same statistic with permuted samples, permutations on the first axis. Compute both by the same algorithm:
        otherwise rounding errors may hide a tie of T with a permutation that changes nothing.

    Returns
    -------
    array
        p-values in [1 / (K + 1), 1]. NaN where T or any T_k is NaN.

    References
    ----------
    Phipson, Smyth. Permutation p-values should never be zero. Statistical Applications in Genetics and Molecular
    Biology 2010.

    Examples
    --------
    >>> float(p_value(0.9, [0.1, 0.3, 0.95, 0.2])), float(p_value(2.0, [0.1, 0.3, 0.95, 0.2]))
    (0.4, 0.2)
    """
    statistics = _stacked(observed, permuted)
    larger = np.asarray((statistics[1:] >= statistics[0]).sum(0), dtype=np.float64)
    return np.where(np.isnan(statistics).any(0), np.nan, (1 + larger) / len(statistics))


def threshold(observed: ArrayLike, permuted: ArrayLike, alpha: float = 0.05) -> Float64[np.ndarray, "..."]:
    """Compute the critical value tau of a permutation test: the ceil((1 - alpha)(K + 1))-th smallest of T, T_1 ... T_K.

    T > tau exactly where `p_value` is at most alpha, except for ties with T.

    Parameters
    ----------
    observed, permuted
        As in `p_value`.
    alpha : float
        Level of the test: the probability that T exceeds tau under the null hypothesis. If alpha < 1 / (K + 1), no T
        exceeds tau.

    Returns
    -------
    array
        tau; NaN where T or any T_k is NaN.

    Examples
    --------
    >>> float(threshold(0.9, np.linspace(0, 0.19, 19)))
    0.19
    """
    if not 0 < alpha < 1:
        raise InvalidInputError(f"alpha is a probability between 0 and 1, got {alpha}")
    statistics = _stacked(observed, permuted)
    rank = math.ceil((1 - alpha) * len(statistics) - 1e-9)  # (1 - 0.7) x 10 is above 3 in floating point
    return np.where(np.isnan(statistics).any(0), np.nan, np.sort(statistics, axis=0)[max(1, rank) - 1])


def calibrated(observed: ArrayLike, tau: ArrayLike) -> Float64[np.ndarray, "..."]:
    """Calibrate a similarity against chance: max(0, (T - tau) / (1 - tau)).

    0 means that T does not exceed the critical value of the permutation test; 1 means identity.

    Parameters
    ----------
    observed : array
        T, a similarity of at most 1.
    tau : array
        Its `threshold`.

    Returns
    -------
    array
        Values in [0, 1]. NaN where T or tau is NaN, and where tau is 1 or more, so that no value exceeds chance.

    References
    ----------
    Groeger, Wen, Brbic. Revisiting the Platonic representation hypothesis. 2026.

    Examples
    --------
    >>> calibrated([0.1, 0.625, 1], tau=0.25).tolist()
    [0.0, 0.5, 1.0]
    """
    T, tau = np.broadcast_arrays(*(np.asarray(x, dtype=np.float64) for x in (observed, tau)))
    scale = np.where(tau < 1, 1 - tau, np.nan)
    return np.asarray(np.maximum(0, (T - tau) / scale))


def within_classes(labels: ArrayLike, count: int, seed: int = 0) -> Int64[np.ndarray, "count n"]:
    """Draw permutations that move samples only within their class.

    The null distribution then keeps the similarity that is due to the classes, and a test looks for similarity beyond
    it.

    Parameters
    ----------
    labels : array of shape (n,)
        The class of every sample.
    count : int
        Number of permutations.
    seed : int
        Seed of the random numbers. The same seed gives the same permutations.

    Returns
    -------
    array of shape (count, n)
        Permutations of the samples.

    Raises
    ------
    InvalidInputError
        If every class has a single sample, so that no sample can move.

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
    by_class = np.argsort(classes, kind="stable")
    orders = np.empty((count, len(names)), dtype=np.int64)
    for order in orders:
        order[by_class] = np.lexsort((rng.random(len(names)), classes))  # the samples of each class in random order
    return orders


def _same_samples(a: CubicMoments, b: CubicMoments) -> int:
    if a.n != b.n:
        raise InvalidInputError(f"layers have {a.n} and {b.n} samples; rows must be the same samples in the same order")
    return a.n


def _stacked(observed: ArrayLike, permuted: ArrayLike) -> Float64[np.ndarray, "count_and_1 ..."]:
    """Stack T, T_1 ... T_K on the first axis."""
    T, draws = np.asarray(observed, dtype=np.float64), np.asarray(permuted, dtype=np.float64)
    if draws.ndim < 1 or draws.shape[1:] != T.shape or not len(draws):
        raise InvalidInputError(
            f"expected permuted values of shape (K, *shape of the observed {T.shape}), K >= 1, got {draws.shape}"
        )
    return np.concatenate([T[None], draws])
