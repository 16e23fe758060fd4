"""Measures of neighbourhoods: whether two layers find the same samples next to each sample."""

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
from repsim.metrics.recipes.neighbours import (
    NearestNeighbours,
    Neighbours,
    distances_to,
    edge_pairs,
    mutual,
    ranks_among,
    shared_when_permuted,
    too_few,
)

_NOTHING = (8 * torch.finfo(torch.float64).eps) ** 2
"""Distances that are no larger are those of equal directions, but for rounding."""
_UNDECIDED = 0.01
"""Share of the samples whose neighbours hang on ties: from here on a value should not be trusted."""


@dataclass(frozen=True)
class NeighbourMetric(PairMetric[Neighbours], ABC):
    """What compares the k nearest neighbours that every sample has in two layers."""

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
        """[0, 1]."""
        return 0.0, 1.0

    @property
    def invariances(self) -> frozenset[Invariance]:
        """What leaves cosines alone: not a translation, for nothing is centred."""
        return frozenset({"permutation", "orthogonal", "isotropic scaling"})

    @property
    def min_samples(self) -> int:
        """At least k + 2: of k + 1 samples all others are neighbours."""
        return max(self.k + 2, 4)

    @property
    def recipe(self) -> NearestNeighbours:
        """One search serves the family: that of whoever wants most neighbours."""
        return NearestNeighbours(self.k)

    @override
    def samples_needed(self, p: int, q: int) -> int | None:
        """From k / (n - 1), the chance that a sample is among k of n - 1."""
        return 6 * self.k + 1

    @override
    def pair_flop(self, n: int, p: int, q: int) -> float:
        """Looking up n k neighbours."""
        return 20.0 * n * self.k

    def look_up(self, a: Neighbours, others: Sequence[Neighbours]) -> Sequence[Tensor]:
        """For each of the others, what `compare` needs to know of the pair: who is whose neighbour."""
        return ranks_among(a, others, self.k)

    @abstractmethod
    def compare(self, a: Neighbours, b: Neighbours, ranks: Int64[Tensor, "n k"]) -> Tensor:
        """The value, from the ranks (from 1) that b's neighbours have among those of a, or 0 where they are none."""

    def value(self, a: Neighbours, b: Neighbours) -> Tensor:
        """Look up who is whose neighbour, and compare."""
        return self._decided(a, b, self.look_up(a, [b])[0])

    def block(self, rows: Sequence[Neighbours], columns: Sequence[Neighbours]) -> Float64[np.ndarray, "rows columns"]:
        """One look-up a row serves all columns."""
        values = np.full((len(rows), len(columns)), np.nan)
        for i, a in enumerate(rows):
            for j, (b, found) in enumerate(zip(columns, self.look_up(a, columns), strict=True)):
                try:
                    values[i, j] = float(self._decided(a, b, found))
                except UndefinedValueError:
                    continue  # stays NaN, as in `Metric.block`
        return values

    def _decided(self, a: Neighbours, b: Neighbours, found: Tensor) -> Tensor:
        for layer in (a, b):
            if layer.once(Neighbours.undecided, self.k) == layer.n:
                raise UndefinedValueError(
                    f"the {self.k} nearest neighbours of no sample are determined: the next one is as near as the last "
                    "of them (too many duplicates, or samples in too few directions)"
                )
        return self.compare(a, b, found)

    def caution(self, a: Neighbours, b: Neighbours) -> str | None:
        """Neighbours that hang on ties."""
        n, ties = a.n, max(layer.once(Neighbours.undecided, self.k) for layer in (a, b))
        if not _UNDECIDED * n < ties < n:  # of all samples: no value either
            return None
        return (
            f"{ties} of {n} samples have a neighbour {self.k} that is no nearer than the next one (duplicates?): "
            "which of them counts is drawn by lot; leave duplicates out"
        )

    def diagnostics(self, factor: Neighbours) -> dict[str, int]:
        """Samples whose neighbours hang on ties."""
        return {"undecided": factor.once(Neighbours.undecided, self.k)}

    def __call__(self, x: Array | Tensor, y: Array | Tensor) -> Any:
        """Compare two representations of the same samples, and say what to do where they are too few."""
        for side in (x, y):
            if np.ndim(side) == 2 and len(side) < self.min_samples:
                raise InvalidInputError(too_few(len(side), self.k))
        return super().__call__(x, y)


@dataclass(frozen=True)
class MutualKNN(NeighbourMetric, PermutedAtOnce[Neighbours]):
    """Mutual k-nearest neighbours: the share of a sample's neighbours that the two layers agree on.

    With N_X(i) the k samples most similar to sample i by the cosine (nothing is centred), the value is
    mean_i |N_X(i) & N_Y(i)| / k. Range [0, 1]. For unrelated data it is k / (n - 1) on average, exactly, whatever the
    data are. Equally near samples (duplicates, one-hot layers) are ordered by lot, in every layer by another one
    (`NearestNeighbours`); diagnostics count the samples whose neighbours that decides.

    Parameters
    ----------
    k
        Neighbours of each sample.

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
    question: ClassVar[str] = "Do two layers find the same samples next to each sample?"
    needs: ClassVar[str] = "6 k + 1: chance is k / (n - 1), so keep k / n the same where values are compared"
    others: ClassVar[Mapping[str, str]] = {
        "platonic-rep (Huh et al.)": "leaves the order of equally near samples to the sorting",
    }

    @override
    def compare(self, a: Neighbours, b: Neighbours, ranks: Int64[Tensor, "n k"]) -> Tensor:
        """How many are shared."""
        return (ranks > 0).double().mean()

    def permuted(
        self,
        rows: Sequence[Neighbours],
        columns: Sequence[Neighbours],
        orders: Int64[Tensor, "count n"],
        step: Callable[[], None],
    ) -> Float64[np.ndarray, "count rows columns"]:
        """By one look-up for all row layers."""
        shared = shared_when_permuted(rows, columns, orders, self.k, step)
        values: Float64[np.ndarray, "count rows columns"] = shared.cpu().numpy() / (rows[0].n * self.k)
        nobody = [[layer.once(Neighbours.undecided, self.k) == layer.n for layer in side] for side in (rows, columns)]
        values[:, nobody[0]] = values[:, :, nobody[1]] = np.nan
        return values

    def chance(self, a: Neighbours, b: Neighbours) -> Chance:
        """Exactly k / (n - 1); the variance knows who is a hub, and whose neighbours choose it in turn."""
        n, k = a.n, self.k
        ones = torch.ones(n, k, dtype=torch.float64, device=a.indices.device)
        graphs = [edge_pairs(layer, k, ones, ones) for layer in (a, b)]
        square = float(graphs[0].expected(graphs[1], n).sum()) / (n * k) ** 2
        return Chance(k / (n - 1), math.sqrt(max(0.0, square - (k / (n - 1)) ** 2)))


@dataclass(frozen=True)
class JaccardKNN(NeighbourMetric):
    """Jaccard similarity of neighbourhoods: mean_i |N_X(i) & N_Y(i)| / |N_X(i) | N_Y(i)|.

    N_X(i) are the k samples most similar to sample i by the cosine (nothing is centred). Range [0, 1]. For unrelated
    data a sample shares c of its neighbours with the hypergeometric probability (k of k among n - 1), so the mean of
    c / (2 k - c) is known, whatever the data are.

    Parameters
    ----------
    k
        Neighbours of each sample.

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
    question: ClassVar[str] = "Do two layers find the same samples next to each sample, as a share of all they find?"
    needs: ClassVar[str] = "6 k + 1: chance is about k / (2 n)"

    @override
    def compare(self, a: Neighbours, b: Neighbours, ranks: Int64[Tensor, "n k"]) -> Tensor:
        """Of how many are shared."""
        shared = (ranks > 0).double().sum(1)
        return (shared / (2 * self.k - shared)).mean()

    @override
    def chance(self, a: Neighbours, b: Neighbours) -> Chance:
        """Exactly the mean of c / (2k - c), c hypergeometric: how many of k among n - 1 are shared."""
        return Chance(sum(chance * c / (2 * self.k - c) for c, chance in _numbers_shared(a.n, self.k)))


@dataclass(frozen=True)
class RankSimilarity(NeighbourMetric):
    """Rank similarity: which neighbours two layers share, and how alike their ranks are, near ones counting most.

    For the samples j that are neighbours of i in both layers, with ranks r and s (1 is the nearest), and c of them:
    mean_i sum_j 2 / ((1 + |r - s|) (r + s)) / sum_{m <= c} 1 / m. A sample whose layers share no neighbour counts 0.
    Range [0, 1]. Given c, the ranks of what is shared by unrelated data are uniform, so the mean is known, whatever the
    data are.

    Parameters
    ----------
    k
        Neighbours of each sample.

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
    question: ClassVar[str] = "Do two layers find the same samples next to each sample, and in the same order?"
    needs: ClassVar[str] = "6 k + 1: chance is below k / (n - 1)"

    @override
    def compare(self, a: Neighbours, b: Neighbours, ranks: Int64[Tensor, "n k"]) -> Tensor:
        """By tables of all pairs of ranks, and of all numbers of shared neighbours."""
        r = torch.arange(1, self.k + 1, dtype=torch.float64)
        weights = torch.nn.functional.pad(self._weights(), (0, 0, 1, 0)).to(ranks.device)  # rank 0 is not shared: 0
        harmonic = torch.cat([r.new_ones(1), (1 / r).cumsum(0)])  # nothing shared: 0 / 1
        column = torch.arange(self.k, device=ranks.device)
        return (weights[ranks, column].sum(1) / harmonic.to(ranks.device)[(ranks > 0).sum(1)]).mean()

    def _weights(self) -> Float64[Tensor, "k k"]:
        r = torch.arange(1, self.k + 1, dtype=torch.float64)
        return 2 / ((1 + (r[:, None] - r).abs()) * (r[:, None] + r))

    @override
    def chance(self, a: Neighbours, b: Neighbours) -> Chance:
        """Exactly the mean over c, hypergeometric, of c times the mean weight of any two ranks, over 1 + ... + 1/c."""
        mean = float(self._weights().mean())
        return Chance(
            sum(chance * c * mean / sum(1 / m for m in range(1, c + 1)) for c, chance in _numbers_shared(a.n, self.k))
        )


@dataclass(frozen=True)
class SecondOrderCosine(NeighbourMetric):
    """Second-order cosine: whether the neighbours of a sample, in either layer, are as far from it in the other one.

    U_i is the union of the k nearest neighbours of sample i in the two layers, and d_X(i) its cosine distances
    1 - cos(x_i, x_j) to all j in U_i. The value is mean_i cos(d_X(i), d_Y(i)). Range [0, 1].

    Distances are never negative, and between samples of many features all much the same, so that unrelated layers are
    near 1 too: Gaussian layers of 100 features at .95, and with 4 times the samples still at .93. Read it beside its
    value under a permutation of the samples.

    Parameters
    ----------
    k
        Neighbours of each sample, in each layer.

    Raises
    ------
    UndefinedValueError
        Where a sample is a duplicate of all of U_i.

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
    question: ClassVar[str] = "Is each sample equally far from its neighbours, those of either layer, in both layers?"
    needs: ClassVar[str] = (
        "no number is enough: unrelated wide layers score above 0.9 at every n, so compare with permuted samples"
    )
    others: ClassVar[Mapping[str, str]] = {
        "Hamilton et al. 2016": "take vectors of cosines, and not of 1 - cosine as the ReSi benchmark does, and we do",
    }
    differentiable: ClassVar[bool] = True

    @property
    def recipe(self) -> NearestNeighbours:
        """Neighbours, and the samples themselves."""
        return NearestNeighbours(self.k, features=True)

    def samples_needed(self, p: int, q: int) -> None:
        """Chance hangs on the features, and of many it hardly falls with n."""

    @override
    def scarcity(self, n: int, p: int, q: int) -> str:
        """Say it of any number."""
        return "no number of samples is enough for unrelated layers to score low; compare with permuted samples"

    def pair_flop(self, n: int, p: int, q: int) -> float:
        """The distances to the other layer's neighbours."""
        return 3.0 * n * self.k * (p + q)

    def compare(self, a: Neighbours, b: Neighbours, ranks: Int64[Tensor, "n k"]) -> Tensor:
        """Over a's neighbours, and those of b's that are not among them."""
        whose = [layer.indices[:, : self.k] for layer in (a, b)]
        new = (ranks == 0).double()
        d = torch.cat([a.distances[:, : self.k], distances_to(a, whose[1]) * new], 1)
        e = torch.cat([distances_to(b, whose[0]), b.distances[:, : self.k] * new], 1)
        norms = torch.linalg.vector_norm(d, dim=1), torch.linalg.vector_norm(e, dim=1)
        none = (norms[0] <= _NOTHING) | (norms[1] <= _NOTHING)
        if none.any():
            raise UndefinedValueError(
                f"{int(none.sum())} of {a.n} samples are at distance 0 from all of their neighbours (duplicates), and "
                "so have no direction to compare: leave duplicates out"
            )
        mean: Tensor = ((d * e).sum(1) / (norms[0] * norms[1])).mean()
        return mean


@dataclass(frozen=True)
class CKNNA(NeighbourMetric):
    """Centred kernel nearest-neighbour alignment: debiased CKA of what two layers agree is near.

    K and L are the cosines between samples, M_XY(i, j) is 1 where j is among the k nearest neighbours of i in both
    layers, M_X where it is in X. With HSIC_1 (Song et al. 2012, eq. 5, as for CKA), the value is HSIC_1(M_XY K, M_XY L)
    / sqrt(HSIC_1(M_X K, M_X K) HSIC_1(M_Y L, M_Y L)), products taken entry by entry. With k = n - 1 it would be
    debiased CKA.

    The three HSIC_1 see three different sets of pairs, so no inequality bounds their ratio: it is mostly in
    [0, 1], but where n is not much more than k it may be as well -0.9 as 2.6, and an HSIC_1 of a layer with itself may
    not even be positive. M is not symmetric, so neither is the value: exchanging X and Y changes it a little.

    Parameters
    ----------
    k
        Neighbours of each sample, 2 or more.

    Raises
    ------
    UndefinedValueError
        Where HSIC_1 of a layer's neighbours with themselves is not positive.

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
    question: ClassVar[str] = "Do two layers find the same samples near each other, and equally near?"
    needs: ClassVar[str] = "6 k + 1: chance is about that of mutual_knn"
    others: ClassVar[Mapping[str, str]] = {
        "platonic-rep (Huh et al.)": "adds 1e-6 to the denominator, and expects features that are normalised before",
        "the paper's formula": "centres cosines by their mean over all samples, and sums their products over M_XY; the "
        "published code, which made the paper's numbers, and which is computed here, does not",
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
        """None: its numerator and its denominator are sums over different pairs."""
        return -math.inf, math.inf

    def compare(self, a: Neighbours, b: Neighbours, ranks: Int64[Tensor, "n k"]) -> Tensor:
        """From the edges that both graphs have; what a single layer gives is computed once."""
        norms = [layer.once(_own_hsic, self.k) for layer in (a, b)]
        for layer, norm in zip((a, b), norms, strict=True):
            if float(norm.detach()) <= layer.rounding * float(layer.similarities.detach().square().sum()):
                raise UndefinedValueError(
                    f"HSIC of the {self.k} nearest neighbours with themselves is not positive in one of the layers, so "
                    f"there is nothing to divide by: take fewer neighbours, or more samples than {layer.n}"
                )
        shared, at = ranks > 0, (ranks - 1).clamp(min=0)
        K = a.similarities.gather(1, at) * shared
        L = b.similarities[:, : self.k] * shared
        both = shared & mutual(b.returned[:, : self.k], self.k) & mutual(a.returned.gather(1, at), self.k)
        return _hsic(K, L, b.indices[:, : self.k], both) / (norms[0] * norms[1]).sqrt()

    def chance(self, a: Neighbours, b: Neighbours) -> Chance:
        """Exactly the mean of HSIC_1 over permutations, which sees edges that both graphs have; norms do not change."""
        n, k = a.n, self.k
        K, L = (layer.similarities[:, :k] for layer in (a, b))
        ones = torch.ones_like(K)
        pairs = edge_pairs(a, k, K, ones).expected(edge_pairs(b, k, ones, L), n)
        mean = pairs[1] + pairs.sum() / ((n - 1) * (n - 2)) - 2 * (pairs[1] + pairs[4]) / (n - 2)
        return Chance(float(mean) / math.sqrt(float(a.once(_own_hsic, k) * b.once(_own_hsic, k))))


@dataclass(frozen=True)
class CycleKNN(NeighbourMetric):
    """Cycle k-nearest neighbours: the share of samples that come back, one step in Y and one in X.

    A sample i comes back where it is among the k nearest neighbours, in X, of one of its k nearest neighbours in Y:
    mean_i [there is a j in N_Y(i) with i in N_X(j)]. Range [0, 1]. Not symmetric: the other way round the same pairs
    (i, j) are counted by their j. A layer is not perfectly like itself either: i needs a neighbour whose neighbour it
    is.

    For unrelated data the mean is known: where d samples have i among their neighbours in X, k of n - 1 miss all of
    them with the hypergeometric probability.

    Parameters
    ----------
    k
        Neighbours of each sample.

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
    question: ClassVar[str] = "Does a step to a neighbour in one layer, and one in the other, lead back?"
    needs: ClassVar[str] = "5 k^2 + 1: chance is about k^2 / n"
    symmetric: ClassVar[bool] = False

    @override
    def samples_needed(self, p: int, q: int) -> int:
        """A sample has k neighbours, of which each has it with probability k / (n - 1)."""
        return 5 * self.k**2 + 1

    def look_up(self, a: Neighbours, others: Sequence[Neighbours]) -> Sequence[Tensor]:
        """For each neighbour in the others whether it has the sample as a neighbour in a: by the pairs' numbers."""
        n = a.n
        own = torch.arange(n, device=a.indices.device)[:, None]
        back = a.indices[:, : self.k] * n + own
        return [torch.isin(own * n + b.indices[:, : self.k], back) for b in others]

    @override
    def compare(self, a: Neighbours, b: Neighbours, ranks: Tensor) -> Tensor:
        """Whether one of them has."""
        return ranks.any(1).double().mean()

    @override
    def chance(self, a: Neighbours, b: Neighbours) -> Chance:
        """Exactly 1 - the probability that k neighbours at random miss all who have the sample as theirs in X."""
        others = a.n - 1.0
        miss = torch.ones(a.n, dtype=torch.float64, device=a.indices.device)
        for taken in range(self.k):
            miss *= ((others - a.chosen_by(self.k).double() - taken) / (others - taken)).clamp(min=0)
        return Chance(1 - float(miss.mean()))


def _numbers_shared(n: int, k: int) -> list[tuple[int, float]]:
    """How many of k neighbours two unrelated layers share, at least 1, and how probable that is."""
    total = math.comb(n - 1, k)
    return [(c, math.comb(k, c) * math.comb(n - 1 - k, k - c) / total) for c in range(1, k + 1)]


def _own_hsic(a: Neighbours, k: int) -> Float64[Tensor, ""]:
    """HSIC_1 of a layer's neighbours with themselves, but for the factor that cancels."""
    K = a.similarities[:, :k]
    return _hsic(K, K, a.indices[:, :k], mutual(a.returned[:, :k], k))


def _hsic(
    K: Float64[Tensor, "n k"], L: Float64[Tensor, "n k"], targets: Int64[Tensor, "n k"], both: Bool[Tensor, "n k"]
) -> Float64[Tensor, ""]:
    """HSIC_1 times n (n - 3), of matrices that are 0 but at (i, targets); ``both``: where (j, i) is among these, too.

    tr(KL) + (1'K1) (1'L1) / ((n - 1) (n - 2)) - 2 / (n - 2) 1'KL1; cosines are symmetric, only where they are is not.
    """
    n = len(K)
    trace = (both * K * L).sum()
    return trace + K.sum() * L.sum() / ((n - 1) * (n - 2)) - 2 / (n - 2) * (K * L.sum(1)[targets]).sum()
