"""Test whether training makes networks of two architectures alike, with networks as the units.

If training changes nothing that they share, trained and untrained networks of an architecture can be exchanged:
every choice of the same number of networks to be called trained is as likely as the true one. The test enumerates these
choices, and is exact for any number of networks.
"""

import math
from collections.abc import Iterable
from itertools import combinations, islice

import numpy as np
from jaxtyping import Bool, Float64, Int64

from repsim.results.variables import CONTROL_PAIRS

MOST_CHOICES = 10_000
"""Number of choices up to which all are enumerated; of more, a random sample is taken."""
_TIE = 1e-12
"""Values of the statistic that differ by less are ties."""


def choices_of(counts: Iterable[tuple[int, int]]) -> int:
    """Return the number of choices of trained networks, from the numbers (trained, untrained) of each architecture.

    >>> choices_of([(2, 3), (2, 3)])
    100
    """
    return math.prod(math.comb(trained + untrained, trained) for trained, untrained in counts)


def excess(
    values: Float64[np.ndarray, "A B"],
    trained_a: Bool[np.ndarray, "*batch A"],
    trained_b: Bool[np.ndarray, "*batch B"],
) -> Float64[np.ndarray, "*batch 3"]:
    """Compute how much more alike trained networks of two architectures are than each control (`CONTROL_PAIRS`).

    It is the mean over trained networks of both, minus the mean over the networks of the control.

    Parameters
    ----------
    values
        (A, B): similarities of the networks of one architecture with those of the other.
    trained_a, trained_b
        Which of them are called trained.
    """
    of_a, of_b = ([side / side.sum(-1, keepdims=True) for side in (one, ~one)] for one in (trained_a, trained_b))
    means = {
        (i, j): np.einsum("...a,ab,...b->...", of_a[i], values, of_b[j]) for i in range(2) for j in range(2)
    }  # 0: trained, 1: untrained
    controls = {"both untrained": (1, 1), "first trained": (0, 1), "second trained": (1, 0)}
    return np.stack([means[0, 0] - means[controls[name]] for name in CONTROL_PAIRS], -1)


def exchange_test(
    values: Float64[np.ndarray, "A B"],
    trained_a: Bool[np.ndarray, " A"],
    trained_b: Bool[np.ndarray, " B"],
    seed: int = 0,
) -> tuple[float, float]:
    """Test the null hypothesis that trained and untrained networks of two families can be exchanged.

    The statistic is the smallest `excess` over the three controls. p is the share of choices of trained networks whose
    statistic is at least that of the true choice.

    Parameters
    ----------
    values : array of shape (A, B)
        Similarities of the networks of one architecture with those of the other.
    trained_a, trained_b : arrays of shape (A,) and (B,)
        Which networks are trained.
    seed : int
        Seed of the random choices, if there are more than 10,000.

    Returns
    -------
    tuple of float
        p, and the smallest p that is possible with these networks: 1 / number of choices.

    Notes
    -----
    With two trained and three untrained networks of each architecture there are 10 x 10 choices. The test is exact,
    however the similarities of networks depend on each other and on the samples, if training changes nothing in either
    architecture. If it does change one of them, only not in the direction of the other, p can be too small: a claim
    also needs the interval over networks and samples (`network_variance`).

    References
    ----------
    Fisher. The design of experiments. 1935.
    Phipson, Smyth. Permutation p-values should never be zero. Statistical Applications in Genetics and Molecular
    Biology 2010.

    Examples
    --------
    >>> trained = np.array([True, True, False, False, False])
    >>> alike = np.zeros((5, 5))
    >>> alike[:2, :2] = 0.8
    >>> exchange_test(alike, trained, trained)
    (0.01, 0.01)
    """
    counts = [(int(side.sum()), int((~side).sum())) for side in (trained_a, trained_b)]
    total, of_b = choices_of(counts), choices_of(counts[1:])
    numbers = np.arange(total)
    if total > MOST_CHOICES:
        numbers = np.random.default_rng(seed).integers(0, total, MOST_CHOICES - 1)  # below 2**63 for any real study
    chosen_a, chosen_b = (
        _choices(side, which) for side, which in zip((trained_a, trained_b), np.divmod(numbers, of_b), strict=True)
    )
    observed = excess(values, trained_a, trained_b).min()
    if not np.isfinite(observed):
        return np.nan, 1 / min(total, MOST_CHOICES)
    as_large = int((excess(values, chosen_a, chosen_b).min(-1) >= observed - _TIE).sum())
    p = as_large / total if total <= MOST_CHOICES else (1 + as_large) / MOST_CHOICES
    return p, 1 / min(total, MOST_CHOICES)


def _choices(
    trained: Bool[np.ndarray, " networks"], numbers: Int64[np.ndarray, " drawn"]
) -> Bool[np.ndarray, "drawn networks"]:
    """Return which networks are called trained in the choices with these numbers."""
    used, places = np.unique(numbers, return_inverse=True)
    last, wanted = int(used[-1]), set(used.tolist())
    chosen = np.zeros((len(used), len(trained)), bool)
    every = combinations(range(len(trained)), int(trained.sum()))
    for row, of_choice in enumerate(names for k, names in enumerate(islice(every, last + 1)) if k in wanted):
        chosen[row, list(of_choice)] = True
    return chosen[places]


def network_variance(
    values: Float64[np.ndarray, "A B"], trained_a: Bool[np.ndarray, " A"], trained_b: Bool[np.ndarray, " B"]
) -> tuple[Float64[np.ndarray, " 3"], Float64[np.ndarray, " 3"]]:
    """Compute the variance of `excess` due to the choice of networks, and its degrees of freedom, for each control.

    The jackknife for several samples: trained and untrained networks of an architecture are one sample each, of m
    networks. Every network is left out in turn; each sample adds v = (m - 1) / m sum (excess_(-i) - mean)^2. The
    degrees of freedom are those of Satterthwaite, (sum v)^2 / sum (v^2 / (m - 1)).

    Networks can also be alike in pairs, say those of the same seed, while all have the same mean. The variance is at
    least that of the mean of trained pairs if these were independent given the means of rows and columns, s^2 / (A B),
    where s^2 is the mean square of their interaction, with (A - 1)(B - 1) degrees of freedom.

    Parameters
    ----------
    values : array of shape (A, B)
        Similarities of the networks of one architecture with those of the other.
    trained_a, trained_b : arrays of shape (A,) and (B,)
        Which networks are trained.

    Returns
    -------
    arrays of shape (3,)
        NaN if a sample has a single network.

    References
    ----------
    Arvesen. Jackknifing U-statistics. Annals of Mathematical Statistics 1969.
    Satterthwaite. An approximate distribution of estimates of variance components. Biometrics Bulletin 1946.
    """
    variances, freedoms = [], []
    for side, trained in enumerate((trained_a, trained_b)):
        for state in (True, False):
            rows = np.flatnonzero(trained == state)
            m = len(rows)
            if m < 2:
                return np.full(3, np.nan), np.full(3, np.nan)
            without = []
            for row in rows:
                fewer = np.delete(trained, row)
                both = (fewer, trained_b) if side == 0 else (trained_a, fewer)
                without.append(excess(np.delete(values, row, side), *both))
            deviations = np.stack(without) - np.mean(without, axis=0)
            variances.append((m - 1) / m * np.square(deviations).sum(0))
            freedoms.append(m - 1)
    v, df = np.stack(variances), np.array(freedoms)[:, None]
    total = v.sum(0)
    with np.errstate(invalid="ignore", divide="ignore"):
        freedom = np.where(total > 0, total**2 / (v**2 / df).sum(0), df.sum())
    pairs = values[np.ix_(trained_a, trained_b)]
    interaction = pairs - pairs.mean(0) - pairs.mean(1, keepdims=True) + pairs.mean()
    of_pairs = (pairs.shape[0] - 1) * (pairs.shape[1] - 1)
    least = float(np.square(interaction).sum()) / of_pairs / pairs.size
    return np.maximum(total, least), np.where(total < least, of_pairs, freedom)
