"""Test whether training makes networks of two architectures alike, with networks as the units.

If training changes nothing that two families share, trained and untrained networks of an architecture can be exchanged:
every choice of the same number of networks to be called trained is as likely as the true one. The test enumerates these
choices, and is exact for any number of networks.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from jaxtyping import Bool, Float64, Int64

from repsim.results.variables import CONTROL_PAIRS

MOST_CHOICES = 10_000
"""Number of choices up to which all are enumerated; of more, a random sample is taken."""
_TIE = 1e-12
"""Values of the statistic that differ by less are ties."""


@dataclass(frozen=True, eq=False)
class Networks:
    """The networks of one family, trained and untrained, by architecture."""

    trained: Bool[np.ndarray, " networks"]
    architecture: Int64[np.ndarray, " networks"]
    """Number of each network's architecture. Each has a trained and an untrained network at least."""

    @property
    def choices(self) -> int:
        """Number of ways to choose which networks of every architecture are called trained."""
        sides = ((int(self.trained[rows].sum()), int((~self.trained[rows]).sum())) for rows in self._rows())
        return choices_of(sides)

    def weights(self, trained: Bool[np.ndarray, "*batch networks"]) -> tuple[np.ndarray, np.ndarray]:
        """Return weights (..., architectures, networks) that average the networks called trained, and the others."""
        member = np.stack([self.architecture == k for k in range(self.architecture.max() + 1)])
        sides = [member * side[..., None, :] for side in (trained, ~trained)]
        one, other = (side / np.maximum(side.sum(-1, keepdims=True), 1) for side in sides)
        return one, other

    @property
    def shares(self) -> Float64[np.ndarray, " architectures"]:
        """Share of the trained networks that are of each architecture."""
        counts = np.bincount(self.architecture[self.trained], minlength=self.architecture.max() + 1)
        return np.asarray(counts / counts.sum())

    def choice(self, number: int) -> Bool[np.ndarray, " networks"]:
        """Return which networks are called trained in the choice with this number."""
        chosen = np.zeros(len(self.trained), bool)
        for rows in self._rows():
            lists = list(combinations(rows.tolist(), int(self.trained[rows].sum())))
            number, k = divmod(number, len(lists))
            chosen[list(lists[k])] = True
        return chosen

    def _rows(self) -> Iterator[Int64[np.ndarray, " rows"]]:
        for k in range(self.architecture.max() + 1):
            yield np.flatnonzero(self.architecture == k)


def choices_of(counts: Iterable[tuple[int, int]]) -> int:
    """Return the number of choices of trained networks, from the numbers (trained, untrained) of each architecture.

    >>> choices_of([(2, 3), (2, 3)])
    100
    """
    return math.prod(math.comb(trained + untrained, trained) for trained, untrained in counts)


def excess(
    values: Float64[np.ndarray, "A B"],
    a: Networks,
    b: Networks,
    trained_a: Bool[np.ndarray, "*batch A"],
    trained_b: Bool[np.ndarray, "*batch B"],
) -> Float64[np.ndarray, "*batch 3"]:
    """Compute how much more alike trained networks of two families are than each control (`CONTROL_PAIRS`).

    For every pair of architectures it is the mean over trained networks of both, minus the mean over the networks of
    the control; then the mean over pairs of architectures, weighted by their numbers of trained networks.

    Parameters
    ----------
    values
        (A, B): similarities of the networks of family a with those of family b.
    a, b
        The networks.
    trained_a, trained_b
        Which of them are called trained.
    """
    return _excess(values, a.weights(trained_a), b.weights(trained_b), a.shares, b.shares)


def exchange_test(
    values: Sequence[Float64[np.ndarray, "A B"]], a: Networks, b: Networks, seed: int = 0
) -> tuple[float, float]:
    """Test the null hypothesis that trained and untrained networks of two families can be exchanged.

    The statistic is the smallest `excess` over the three controls. p is the share of choices of trained networks whose
    statistic is at least that of the true choice; over several matrices of values the largest p counts.

    Parameters
    ----------
    values : sequence of arrays of shape (A, B)
        Similarities of the networks of family a with those of family b, of one or several kinds.
    a, b : Networks
        The networks of both families.
    seed : int
        Seed of the random choices, if there are more than 10,000.

    Returns
    -------
    tuple of float
        p, and the smallest p that is possible with these networks: 1 / number of choices.

    Notes
    -----
    With two trained and three untrained networks of one architecture in each family there are 10 x 10 choices. The test
    is valid however the similarities of networks depend on each other and on the samples.

    References
    ----------
    Fisher. The design of experiments. 1935.
    Phipson, Smyth. Permutation p-values should never be zero. Statistical Applications in Genetics and Molecular
    Biology 2010.

    Examples
    --------
    >>> trained = Networks(np.array([True, True, False, False, False]), np.zeros(5, int))
    >>> alike = np.zeros((5, 5))
    >>> alike[:2, :2] = 0.8
    >>> exchange_test([alike], trained, trained)
    (0.01, 0.01)
    """
    total = a.choices * b.choices
    numbers = np.arange(total)
    if total > MOST_CHOICES:
        drawn = np.random.default_rng(seed).integers(0, total, MOST_CHOICES - 1)  # below 2**63 for any real study
        numbers = drawn
    first, second = np.divmod(numbers, b.choices)
    of_a = {int(k): a.choice(int(k)) for k in np.unique(first)}
    of_b = {int(k): b.choice(int(k)) for k in np.unique(second)}
    chosen_a, chosen_b = np.stack([of_a[int(k)] for k in first]), np.stack([of_b[int(k)] for k in second])
    largest = 0.0
    for matrix in values:
        observed = excess(matrix, a, b, a.trained, b.trained).min()
        statistics = excess(matrix, a, b, chosen_a, chosen_b).min(-1)
        as_large = int((statistics >= observed - _TIE).sum())
        p = as_large / total if total <= MOST_CHOICES else (1 + as_large) / MOST_CHOICES
        largest = max(largest, p) if np.isfinite(observed) else np.nan
    return largest, 1 / min(total, MOST_CHOICES)


def network_variance(
    values: Float64[np.ndarray, "A B"], a: Networks, b: Networks
) -> tuple[Float64[np.ndarray, " 3"], Float64[np.ndarray, " 3"]]:
    """Compute the variance of `excess` due to the choice of networks, and its degrees of freedom, for each control.

    The jackknife for several samples: trained and untrained networks of an architecture are one sample each, of m
    networks. Every network is left out in turn; each sample adds v = (m - 1) / m sum (excess_(-i) - mean)^2. The
    degrees of freedom are those of Satterthwaite, (sum v)^2 / sum (v^2 / (m - 1)).

    Parameters
    ----------
    values : array of shape (A, B)
        Similarities of the networks of family a with those of family b.
    a, b : Networks
        The networks.

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
    for side, networks in enumerate((a, b)):
        for architecture in range(networks.architecture.max() + 1):
            for state in (True, False):
                rows = np.flatnonzero((networks.architecture == architecture) & (networks.trained == state))
                m = len(rows)
                if m < 2:
                    return np.full(3, np.nan), np.full(3, np.nan)
                without = []
                for row in rows:
                    keep = np.delete(np.arange(len(networks.trained)), row)
                    fewer = Networks(networks.trained[keep], networks.architecture[keep])
                    one, other = (fewer, b) if side == 0 else (a, fewer)
                    part = values[keep] if side == 0 else values[:, keep]
                    weights = one.weights(one.trained), other.weights(other.trained)
                    without.append(_excess(part, *weights, a.shares, b.shares))  # the shares of the full families
                deviations = np.stack(without) - np.mean(without, axis=0)
                variances.append((m - 1) / m * np.square(deviations).sum(0))
                freedoms.append(m - 1)
    v, df = np.stack(variances), np.array(freedoms)[:, None]
    total = v.sum(0)
    with np.errstate(invalid="ignore", divide="ignore"):
        return total, np.where(total > 0, total**2 / (v**2 / df).sum(0), df.sum())


def _excess(
    values: Float64[np.ndarray, "A B"],
    a: tuple[np.ndarray, np.ndarray],
    b: tuple[np.ndarray, np.ndarray],
    shares_a: Float64[np.ndarray, " architectures"],
    shares_b: Float64[np.ndarray, " architectures"],
) -> Float64[np.ndarray, "*batch 3"]:
    """Compute `excess` from the weights of trained and untrained networks, and the shares of architectures."""

    def mean(left: np.ndarray, right: np.ndarray) -> Float64[np.ndarray, "*batch"]:
        return np.asarray(np.einsum("...sa,ab,...tb,s,t->...", left, values, right, shares_a, shares_b, optimize=True))

    (trained_a, untrained_a), (trained_b, untrained_b) = a, b
    controls = {
        "both untrained": (untrained_a, untrained_b),
        "first trained": (trained_a, untrained_b),
        "second trained": (untrained_a, trained_b),
    }
    return np.stack([mean(trained_a, trained_b) - mean(*controls[name]) for name in CONTROL_PAIRS], -1)
