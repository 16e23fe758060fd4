"""Measures that compare the nearest neighbours of each sample in two layers."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from jaxtyping import Bool, Float64, Int64
from torch import Tensor
from typing_extensions import override

from repsim.errors import InvalidInputError, UndefinedValueError
from repsim.metrics.base import Array, Chance, Group, Invariance, PairMetric, PermutedAtOnce
from repsim.metrics.recipes.cost import Cost
from repsim.metrics.recipes.neighbours import (
    EdgePairs,
    NearestNeighbours,
    Neighbours,
    distances_to,
    edge_pairs,
    mutual,
    ranks_among,
    shared_when_permuted,
    too_few_samples,
)

_ZERO_DISTANCE = (8 * torch.finfo(torch.float64).eps) ** 2
"""Distances up to this are those of equal directions, up to rounding."""
_UNDECIDED = 0.01
"""Share of samples with tied neighbours above which a value is unreliable."""


@dataclass(frozen=True)
class NeighbourMetric(PairMetric[Neighbours], ABC):
    """Measure that compares the k nearest neighbours of every sample in two layers."""

    group: ClassVar[Group] = "neighbours"
    sense: ClassVar[Literal["similarity", "distance"]] = "similarity"
    symmetric: ClassVar[bool] = True
    differentiable: ClassVar[bool] = False

    k: int = 10

    def __post_init__(self) -> None:
        if self.k < 1:
            raise InvalidInputError(f"k is a number of neighbours, 1 or more; got {self.k}")

    @property
    def bounds(self) -> tuple[float, float]:
        """Range of the value: [0, 1]."""
        return 0.0, 1.0

    @property
    def invariances(self) -> frozenset[Invariance]:
        """Transformations that leave cosines unchanged; not translation, because nothing is centred."""
        return frozenset({"permutation", "orthogonal", "isotropic scaling"})

    @property
    def min_samples(self) -> int:
        """Minimum k + 2 (at least 4), because with k + 1 samples all others are neighbours."""
        return max(self.k + 2, 4)

    @property
    def recipe(self) -> NearestNeighbours:
        """Search that is shared by the whole family; the recipe with most neighbours serves all."""
        return NearestNeighbours(self.k)

    @override
    def samples_needed(self, p: int, q: int) -> int | None:
        """Return the number of samples, from the probability k / (n - 1) that a sample is one of k neighbours."""
        return 6 * self.k + 1

    @override
    def pair_cost(self, n: int, p: int, q: int) -> Cost:
        """Return the cost of looking up n k neighbours."""
        return Cost(touched=2.0 * n * self.k, calls=20)

    def look_up(self, a: Neighbours, others: Sequence[Neighbours]) -> Sequence[Tensor]:
        """Return what `compare` needs for each of the other layers: the ranks of its neighbours among those of a."""
        return ranks_among(a, others, self.k)

    @abstractmethod
    def compare(self, a: Neighbours, b: Neighbours, ranks: Int64[Tensor, "n k"]) -> Tensor:
        """Return the value, from the ranks (from 1) of the neighbours in b among those in a; 0 if they are not
        neighbours.
        """

    def value(self, a: Neighbours, b: Neighbours) -> Tensor:
        """Look up the ranks of the neighbours, and compare them."""
        return self._compare_determined(a, b, self.look_up(a, [b])[0])

    def block(self, rows: Sequence[Neighbours], columns: Sequence[Neighbours]) -> Float64[np.ndarray, "rows columns"]:
        """Compare all pairs, with one look-up per row that serves all columns."""
        values = np.full((len(rows), len(columns)), np.nan)
        for i, a in enumerate(rows):
            of_row: dict[int, Tensor] = {}
            for j, (b, ranks) in enumerate(zip(columns, self.look_up(a, columns), strict=True)):
                try:
                    of_row[j] = self._compare_determined(a, b, ranks)
                except UndefinedValueError:
                    continue  # stays NaN, as in `Metric.block`
            if of_row:  # one copy for the row, as each waits until a GPU has finished
                values[i, list(of_row)] = torch.stack(list(of_row.values())).detach().cpu().numpy()
        return values

    def _compare_determined(self, a: Neighbours, b: Neighbours, ranks: Tensor) -> Tensor:
        for layer in (a, b):
            if layer.once(Neighbours.undecided, self.k) == layer.n:
                raise UndefinedValueError(
                    f"the {self.k} nearest neighbours of every sample are tied with the next one, so they are not "
                    "determined (too many duplicates, or samples in too few directions)"
                )
        return self.compare(a, b, ranks)

    def caution(self, a: Neighbours, b: Neighbours) -> str | None:
        """Warn of samples whose neighbours are tied."""
        n, ties = a.n, max(layer.once(Neighbours.undecided, self.k) for layer in (a, b))
        if not _UNDECIDED * n < ties < n:  # with n ties there is no value
            return None
        return (
            f"{ties} of {n} samples have a neighbour {self.k} that is no nearer than the next one (duplicates?): ties "
            "are broken at random; leave duplicates out"
        )

    def diagnostics(self, factor: Neighbours) -> dict[str, int]:
        """Report the number of samples whose neighbours are tied."""
        return {"undecided": factor.once(Neighbours.undecided, self.k)}

    def __call__(self, x: Array | Tensor, y: Array | Tensor) -> Any:
        """Compare two representations of the same samples; raise `InvalidInputError` if they are too few for k."""
        for side in (x, y):
            if np.ndim(side) == 2 and len(side) < self.min_samples:
                raise InvalidInputError(too_few_samples(len(side), self.k))
        return super().__call__(x, y)


@dataclass(frozen=True)
class MutualKNN(NeighbourMetric, PermutedAtOnce[Neighbours]):
    """Mutual k-nearest neighbours: the mean share of the neighbours of a sample that two layers have in common.

    With N_X(i) the k samples most similar to sample i by the cosine (nothing is centred), the value is
    mean_i |N_X(i) & N_Y(i)| / k. Range [0, 1]. For unrelated data the mean is exactly k / (n - 1), for any data.
    Equally near samples (duplicates, one-hot layers) are ordered at random, independently in every layer
    (`NearestNeighbours`); diagnostics count the samples whose neighbours depend on such ties.

    Parameters
    ----------
    k : int
        Number of neighbours of each sample.

    References
    ----------
    Huh, Cheung, Wang, Isola. The platonic representation hypothesis. ICML 2024.

    Examples
    --------
    >>> import numpy as np
    >>> x = np.random.default_rng(0).normal(size=(200, 8))
    >>> MutualKNN()(x, x), round(MutualKNN()(x, x[:, :4]), 4)
    (1.0, 0.309)
    """

    name: ClassVar[str] = "mutual_knn"
    title: ClassVar[str] = "Mutual k-NN"
    formula: ClassVar[str] = "mean_i |N_X(i) & N_Y(i)| / k"
    citation: ClassVar[str] = "Huh et al. 2024"
    question: ClassVar[str] = "Does each sample have the same nearest neighbours in two layers?"
    needs: ClassVar[str] = "6 k + 1: chance is k / (n - 1), so compare only values with the same k / n"
    others: ClassVar[Mapping[str, str]] = {
        "platonic-rep (Huh et al.)": "orders equally near samples as the sorting algorithm leaves them",
    }

    @override
    def compare(self, a: Neighbours, b: Neighbours, ranks: Int64[Tensor, "n k"]) -> Tensor:
        """Return the share of neighbours that are shared."""
        return (ranks > 0).double().mean()

    def permuted(
        self,
        rows: Sequence[Neighbours],
        columns: Sequence[Neighbours],
        orders: Int64[Tensor, "count n"],
        step: Callable[[], None],
    ) -> Float64[np.ndarray, "count rows columns"]:
        """Compute all values with one look-up for all row layers."""
        shared = shared_when_permuted(rows, columns, orders, self.k, step)
        values: Float64[np.ndarray, "count rows columns"] = shared.cpu().numpy() / (rows[0].n * self.k)
        no_row, no_column = (
            [layer.once(Neighbours.undecided, self.k) == layer.n for layer in side] for side in (rows, columns)
        )
        values[:, no_row] = values[:, :, no_column] = np.nan
        return values

    @override
    def chance_mean(self, a: Neighbours, b: Neighbours) -> float:
        """Return k / (n - 1)."""
        return self.k / (a.n - 1)

    def chance(self, a: Neighbours, b: Neighbours) -> Chance:
        """Return the chance level: k / (n - 1), exactly; its variance accounts for hubs and for mutual neighbours."""
        n, k = a.n, self.k
        square = float(a.once(_edges, k).expected(b.once(_edges, k), n).sum()) / (n * k) ** 2
        return Chance(k / (n - 1), math.sqrt(max(0.0, square - (k / (n - 1)) ** 2)))


@dataclass(frozen=True)
class JaccardKNN(NeighbourMetric):
    """Jaccard similarity of neighbourhoods: mean_i |N_X(i) & N_Y(i)| / |N_X(i) | N_Y(i)|.

    N_X(i) are the k samples most similar to sample i by the cosine (nothing is centred). Range [0, 1]. For unrelated
    data the number c of shared neighbours is hypergeometric (k of k among n - 1), so the mean of c / (2 k - c) is known
    for any data.

    Parameters
    ----------
    k : int
        Number of neighbours of each sample.

    References
    ----------
    Wang, Rau, Kohlschein, Hagendorff, Rodner. Towards understanding the instability of network embedding. TKDE 2020.
    Klabunde, Wald, Schumacher, Maier-Hein, Strohmaier, Lemmerich. ReSi: a comprehensive benchmark for representational
    similarity measures. ICLR 2025.

    Examples
    --------
    >>> import numpy as np
    >>> np.random.seed(0)
    >>> x, y = np.random.uniform(size=(30, 25)), np.random.uniform(size=(30, 25))
    >>> round(JaccardKNN()(x, y), 9)
    0.214880748
    """

    name: ClassVar[str] = "jaccard_knn"
    title: ClassVar[str] = "Jaccard k-NN"
    formula: ClassVar[str] = "mean_i |N_X(i) & N_Y(i)| / |N_X(i) | N_Y(i)|"
    citation: ClassVar[str] = "Wang et al. 2020; Klabunde et al. 2025"
    question: ClassVar[str] = "Which share of all nearest neighbours of a sample do two layers have in common?"
    needs: ClassVar[str] = "6 k + 1: chance is about k / (2 n)"

    @override
    def compare(self, a: Neighbours, b: Neighbours, ranks: Int64[Tensor, "n k"]) -> Tensor:
        """Return the mean ratio, from the number of shared neighbours."""
        shared = (ranks > 0).double().sum(1)
        return (shared / (2 * self.k - shared)).mean()

    @override
    def chance(self, a: Neighbours, b: Neighbours) -> Chance:
        """Return the chance level: exactly the mean of c / (2k - c), where c, the number shared of k among n - 1, is
        hypergeometric.
        """
        return Chance(sum(chance * c / (2 * self.k - c) for c, chance in _numbers_shared(a.n, self.k)))


@dataclass(frozen=True)
class RankSimilarity(NeighbourMetric):
    """Rank similarity: which neighbours two layers share, and how similar their ranks are; near neighbours count most.

    With c samples j that are neighbours of i in both layers, and their ranks r and s (1 is the nearest), the value is
    mean_i sum_j 2 / ((1 + |r - s|) (r + s)) / sum_{m <= c} 1 / m. Samples without a shared neighbour contribute 0.
    Range [0, 1]. For unrelated data the ranks of the c shared neighbours are uniform, so the mean is known for any
    data.

    Parameters
    ----------
    k : int
        Number of neighbours of each sample.

    References
    ----------
    Wang, Rau, Kohlschein, Hagendorff, Rodner. Towards understanding the instability of network embedding. TKDE 2020.

    Examples
    --------
    >>> import numpy as np
    >>> np.random.seed(0)
    >>> x, y = np.random.uniform(size=(30, 25)), np.random.uniform(size=(30, 25))
    >>> round(RankSimilarity()(x, y), 9)
    0.137112252
    """

    name: ClassVar[str] = "rank_similarity"
    title: ClassVar[str] = "Rank similarity"
    formula: ClassVar[str] = "mean_i sum_j 2 / ((1 + |r - s|) (r + s)) / sum_{m <= c} 1 / m"
    citation: ClassVar[str] = "Wang et al. 2020; Klabunde et al. 2025"
    question: ClassVar[str] = "Does each sample have the same nearest neighbours, in the same order, in two layers?"
    needs: ClassVar[str] = "6 k + 1: chance is below k / (n - 1)"

    @override
    def compare(self, a: Neighbours, b: Neighbours, ranks: Int64[Tensor, "n k"]) -> Tensor:
        """Return the value from tables of all pairs of ranks, and of all numbers of shared neighbours."""
        r = torch.arange(1, self.k + 1, dtype=torch.float64, device=ranks.device)
        weights = torch.nn.functional.pad(self._weights(ranks.device), (0, 0, 1, 0))  # rank 0: not shared
        harmonic = torch.cat([r.new_ones(1), (1 / r).cumsum(0)])  # 1 for no shared neighbour
        column = torch.arange(self.k, device=ranks.device)
        return (weights[ranks, column].sum(1) / harmonic[(ranks > 0).sum(1)]).mean()

    def _weights(self, device: torch.device | None = None) -> Float64[Tensor, "k k"]:
        r = torch.arange(1, self.k + 1, dtype=torch.float64, device=device)
        return 2 / ((1 + (r[:, None] - r).abs()) * (r[:, None] + r))

    @override
    def chance(self, a: Neighbours, b: Neighbours) -> Chance:
        """Return the chance level: exactly the mean over hypergeometric c of c times the mean weight of two ranks,
        divided by 1 + ... + 1/c.
        """
        mean = float(self._weights().mean())
        return Chance(
            sum(chance * c * mean / sum(1 / m for m in range(1, c + 1)) for c, chance in _numbers_shared(a.n, self.k))
        )


@dataclass(frozen=True)
class SecondOrderCosine(NeighbourMetric):
    """Second-order cosine: whether samples have similar distances to their neighbours in two layers.

    U_i is the union of the k nearest neighbours of sample i in the two layers, and d_X(i) its cosine distances
    1 - cos(x_i, x_j) to all j in U_i. The value is mean_i cos(d_X(i), d_Y(i)). Range [0, 1].

    Distances are not negative, and nearly equal between samples of many features, so unrelated layers have values near
    1, too: 0.95 for Gaussian layers of 100 features, and still 0.93 with 4 times as many samples. Compare the value
    with values under permutations of the samples.

    Parameters
    ----------
    k : int
        Number of neighbours of each sample, in each layer.

    Raises
    ------
    UndefinedValueError
        If a sample is a duplicate of all samples in U_i.

    References
    ----------
    Hamilton, Leskovec, Jurafsky. Cultural shift or linguistic drift? Comparing two computational measures of semantic
    change. EMNLP 2016.
    Klabunde, Wald, Schumacher, Maier-Hein, Strohmaier, Lemmerich. ReSi: a comprehensive benchmark for representational
    similarity measures. ICLR 2025.

    Examples
    --------
    >>> import numpy as np
    >>> np.random.seed(0)
    >>> x, y = np.random.uniform(size=(30, 25)), np.random.uniform(size=(30, 25))
    >>> round(SecondOrderCosine()(x, y), 9)
    0.923045296
    """

    name: ClassVar[str] = "second_order_cosine"
    title: ClassVar[str] = "Second-order cosine"
    formula: ClassVar[str] = "mean_i cos(d_X(i), d_Y(i)), cosine distances to the neighbours in either layer"
    citation: ClassVar[str] = "Hamilton et al. 2016; Klabunde et al. 2025"
    question: ClassVar[str] = "Is each sample equally far from its neighbours in both layers?"
    needs: ClassVar[str] = (
        "no number is enough: unrelated wide layers score above 0.9 at any n, so compare with permuted samples"
    )
    others: ClassVar[Mapping[str, str]] = {
        "Hamilton et al. 2016": "use vectors of cosines; repsim and the ReSi benchmark use 1 - cosine",
    }
    differentiable: ClassVar[bool] = True

    @property
    def recipe(self) -> NearestNeighbours:
        """Recipe with neighbours, and the samples themselves."""
        return NearestNeighbours(self.k, features=True)

    def samples_needed(self, p: int, q: int) -> None:
        """Return None, because chance depends on the features, and with many features it hardly falls with n."""

    @override
    def scarcity(self, n: int, p: int, q: int) -> str:
        """Return a warning for any number of samples."""
        return "no number of samples is enough for unrelated layers to score low; compare with permuted samples"

    def pair_cost(self, n: int, p: int, q: int) -> Cost:
        """Return the cost of the distances to the neighbours in the other layer."""
        return Cost(touched=1.2 * n * self.k * (p + q), calls=100)

    def compare(self, a: Neighbours, b: Neighbours, ranks: Int64[Tensor, "n k"]) -> Tensor:
        """Compare the distances to the union of the neighbours in both layers."""
        neighbours = [layer.indices[:, : self.k] for layer in (a, b)]
        new = (ranks == 0).double()
        d = torch.cat([a.distances[:, : self.k], distances_to(a, neighbours[1]) * new], 1)
        e = torch.cat([distances_to(b, neighbours[0]), b.distances[:, : self.k] * new], 1)
        norms = torch.linalg.vector_norm(d, dim=1), torch.linalg.vector_norm(e, dim=1)
        duplicates = (norms[0] <= _ZERO_DISTANCE) | (norms[1] <= _ZERO_DISTANCE)
        if duplicates.any():
            raise UndefinedValueError(
                f"{int(duplicates.sum())} of {a.n} samples are at distance 0 from all of their neighbours "
                "(duplicates), so their distances cannot be compared: leave duplicates out"
            )
        mean: Tensor = ((d * e).sum(1) / (norms[0] * norms[1])).mean()
        return mean


@dataclass(frozen=True)
class CKNNA(NeighbourMetric):
    """Centred kernel nearest-neighbour alignment: debiased CKA restricted to the neighbours that two layers share.

    K and L are the cosines between samples. M_XY(i, j) is 1 if j is among the k nearest neighbours of i in both layers,
    and M_X(i, j) is 1 if j is among them in X. With HSIC_1 (Song et al. 2012, eq. 5, as for CKA), the value is
    HSIC_1(M_XY K, M_XY L) / sqrt(HSIC_1(M_X K, M_X K) HSIC_1(M_Y L, M_Y L)), with elementwise products. With k = n - 1
    it would be debiased CKA.

    The three HSIC_1 are sums over three different sets of pairs, so their ratio is not bounded: it is mostly in [0, 1],
    but if n is not much larger than k it may be -0.9 or 2.6, and HSIC_1 of a layer with itself may not be positive. M
    is not symmetric, so neither is the value: exchanging X and Y changes it slightly.

    Parameters
    ----------
    k : int
        Number of neighbours of each sample, 2 or more.

    Raises
    ------
    UndefinedValueError
        If HSIC_1 of the neighbours of a layer with themselves is not positive.

    References
    ----------
    Huh, Cheung, Wang, Isola. The platonic representation hypothesis. ICML 2024; the published code.

    Examples
    --------
    >>> import numpy as np
    >>> x = np.random.default_rng(0).normal(size=(200, 8))
    >>> round(CKNNA()(x, x), 9), round(CKNNA()(x, x[:, :4]), 4)
    (1.0, 0.3178)
    """

    name: ClassVar[str] = "cknna"
    title: ClassVar[str] = "CKNNA"
    formula: ClassVar[str] = "HSIC_1(M_XY K, M_XY L) / sqrt(HSIC_1(M_X K, M_X K) HSIC_1(M_Y L, M_Y L))"
    citation: ClassVar[str] = "Huh et al. 2024 (published code)"
    question: ClassVar[str] = "Are the same samples near each other in two layers, and equally near?"
    needs: ClassVar[str] = "6 k + 1: chance is about that of mutual_knn"
    others: ClassVar[Mapping[str, str]] = {
        "platonic-rep (Huh et al.)": "adds 1e-6 to the denominator, and expects normalised features",
        "the formula of the paper": "centres cosines by their mean over all samples, and sums their products over "
        "M_XY; the published code, which produced the numbers of the paper, does not, and is followed here",
    }
    symmetric: ClassVar[bool] = False
    differentiable: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.k < 2:
            raise InvalidInputError(
                f"cknna compares the similarities of several neighbours: k is 2 or more, not {self.k}"
            )

    @property
    def bounds(self) -> tuple[float, float]:
        """Unbounded: numerator and denominator are sums over different pairs."""
        return -math.inf, math.inf

    @override
    def pair_cost(self, n: int, p: int, q: int) -> Cost:
        """Return the cost of several passes over n k neighbours."""
        return Cost(touched=55.0 * n * self.k, calls=120)

    def compare(self, a: Neighbours, b: Neighbours, ranks: Int64[Tensor, "n k"]) -> Tensor:
        """Return the value from the edges that both graphs have; the norm of each layer is computed once."""
        norms = [layer.once(_own_hsic, self.k) for layer in (a, b)]
        for layer in (a, b):
            if layer.once(_is_not_positive, self.k):
                raise UndefinedValueError(
                    f"HSIC of the {self.k} nearest neighbours with themselves is not positive in one of the layers, so "
                    f"the value is not defined: take fewer neighbours, or more samples than {layer.n}"
                )
        shared, at = ranks > 0, (ranks - 1).clamp(min=0)
        K = a.similarities.gather(1, at) * shared
        L = b.similarities[:, : self.k] * shared
        both = shared & mutual(b.reverse_ranks[:, : self.k], self.k) & mutual(a.reverse_ranks.gather(1, at), self.k)
        return _hsic(K, L, b.indices[:, : self.k], both) / (norms[0] * norms[1]).sqrt()

    def chance(self, a: Neighbours, b: Neighbours) -> Chance:
        """Return the chance level: exactly the mean of HSIC_1 over permutations, from the edges that both graphs share;
        norms do not change.
        """
        n, k = a.n, self.k
        pairs = a.once(_weighted_edges, k).expected(b.once(_edges_weighted, k), n)
        mean = pairs[1] + pairs.sum() / ((n - 1) * (n - 2)) - 2 * (pairs[1] + pairs[4]) / (n - 2)
        return Chance(float(mean) / math.sqrt(float(a.once(_own_hsic, k) * b.once(_own_hsic, k))))


@dataclass(frozen=True)
class CycleKNN(NeighbourMetric):
    """Cycle k-nearest neighbours: share of samples that return to themselves by a step in Y and a step in X.

    A sample i returns if it is among the k nearest neighbours, in X, of one of its k nearest neighbours in Y. The value
    is mean_i [there is a j in N_Y(i) with i in N_X(j)]. Range [0, 1]. Not symmetric: with X and Y exchanged, the same
    pairs (i, j) are counted by j. The value of a layer with itself may be below 1, because i must be a neighbour of one
    of its neighbours.

    For unrelated data the mean is known: if d samples have i among their neighbours in X, the probability that k of
    n - 1 samples contain none of them is hypergeometric.

    Parameters
    ----------
    k : int
        Number of neighbours of each sample.

    References
    ----------
    Huh, Cheung, Wang, Isola. The platonic representation hypothesis. ICML 2024; the published code.

    Examples
    --------
    >>> import numpy as np
    >>> x = np.random.default_rng(0).normal(size=(200, 8))
    >>> CycleKNN(k=2)(x, x), CycleKNN(k=2)(x, x[:, :4]), CycleKNN(k=2)(x[:, :4], x)
    (0.81, 0.305, 0.3)
    """

    name: ClassVar[str] = "cycle_knn"
    title: ClassVar[str] = "Cycle k-NN"
    formula: ClassVar[str] = "mean_i [there is a j in N_Y(i) with i in N_X(j)]"
    citation: ClassVar[str] = "Huh et al. 2024 (published code)"
    question: ClassVar[str] = "Does a step to a neighbour in one layer, and one in the other, lead back to the sample?"
    needs: ClassVar[str] = "5 k^2 + 1: chance is about k^2 / n"
    symmetric: ClassVar[bool] = False

    @override
    def pair_cost(self, n: int, p: int, q: int) -> Cost:
        """Return the cost of several passes over n k neighbours."""
        return Cost(touched=55.0 * n * self.k, calls=40)

    @override
    def samples_needed(self, p: int, q: int) -> int:
        """Return the number of samples, from the chance level: each of k neighbours has i as a neighbour with
        probability k / (n - 1).
        """
        return 5 * self.k**2 + 1

    def look_up(self, a: Neighbours, others: Sequence[Neighbours]) -> Sequence[Tensor]:
        """Return, for each neighbour in the other layers, whether the sample is among its neighbours in a."""
        n = a.n
        own = torch.arange(n, device=a.indices.device)[:, None]
        back = a.indices[:, : self.k] * n + own
        return [torch.isin(own * n + b.indices[:, : self.k], back) for b in others]

    @override
    def compare(self, a: Neighbours, b: Neighbours, ranks: Tensor) -> Tensor:
        """Return the share of samples that are a neighbour of one of their neighbours."""
        return ranks.any(1).double().mean()

    @override
    def chance(self, a: Neighbours, b: Neighbours) -> Chance:
        """Return the chance level: exactly 1 - the probability that k random samples miss all that have the sample as a
        neighbour in X.
        """
        return Chance(1 - a.once(_missed, self.k))


def _numbers_shared(n: int, k: int) -> list[tuple[int, float]]:
    """Return the numbers c >= 1 of neighbours that two unrelated layers share, of k, with their probabilities."""
    total = math.comb(n - 1, k)
    return [(c, math.comb(k, c) * math.comb(n - 1 - k, k - c) / total) for c in range(1, k + 1)]


def _missed(a: Neighbours, k: int) -> float:
    """Return the probability that k random samples miss all that have a sample as a neighbour, on average."""
    count = a.n - 1.0
    miss, degrees = torch.ones(a.n, dtype=torch.float64, device=a.indices.device), a.in_degrees(k).double()
    for drawn in range(k):
        miss *= ((count - degrees - drawn) / (count - drawn)).clamp(min=0)
    return float(miss.mean())


def _edges(a: Neighbours, k: int) -> EdgePairs:
    """Return the sums over pairs of edges that each count 1."""
    ones = torch.ones(a.n, k, dtype=torch.float64, device=a.indices.device)
    return edge_pairs(a, k, ones, ones)


def _weighted_edges(a: Neighbours, k: int) -> EdgePairs:
    """Return the sums over pairs of edges, the first of which counts its cosine."""
    K = a.similarities[:, :k]
    return edge_pairs(a, k, K, torch.ones_like(K))


def _edges_weighted(a: Neighbours, k: int) -> EdgePairs:
    """Return the sums over pairs of edges, the second of which counts its cosine."""
    K = a.similarities[:, :k]
    return edge_pairs(a, k, torch.ones_like(K), K)


def _is_not_positive(a: Neighbours, k: int) -> bool:
    """Return whether HSIC_1 of the neighbours of a layer with themselves is not above its rounding errors."""
    norm = float(a.once(_own_hsic, k).detach())
    return norm <= a.rounding * float(a.similarities.detach().square().sum())


def _own_hsic(a: Neighbours, k: int) -> Float64[Tensor, ""]:
    """Return HSIC_1 of the neighbours of a layer with themselves, without the factor that cancels."""
    K = a.similarities[:, :k]
    return _hsic(K, K, a.indices[:, :k], mutual(a.reverse_ranks[:, :k], k))


def _hsic(
    K: Float64[Tensor, "n k"], L: Float64[Tensor, "n k"], targets: Int64[Tensor, "n k"], both: Bool[Tensor, "n k"]
) -> Float64[Tensor, ""]:
    """Return HSIC_1 times n (n - 3) of sparse matrices, which are 0 except at (i, targets).

    It is tr(KL) + (1'K1) (1'L1) / ((n - 1) (n - 2)) - 2 / (n - 2) 1'KL1. Cosines are symmetric, but the positions of
    the entries are not: ``both`` marks the entries (i, j) for which (j, i) is an entry, too.
    """
    n = len(K)
    trace = (both * K * L).sum()
    return trace + K.sum() * L.sum() / ((n - 1) * (n - 2)) - 2 / (n - 2) * (K * L.sum(1)[targets]).sum()
