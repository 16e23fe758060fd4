"""Measures that match units of two layers by their correlations."""

import math
from abc import ABC
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor
from typing_extensions import override

from repsim.metrics.algorithms.cross import Cross, in_float64
from repsim.metrics.algorithms.partners import (
    Transport,
    best_partners,
    best_transport,
    cost_of_assignment,
    cost_of_transport,
)
from repsim.metrics.base import Group, Invariance, MomentMetric
from repsim.metrics.recipes.base import DifferentiableRecipe, MomentFactor, StreamingRecipe
from repsim.metrics.recipes.cost import Cost, LayerSize, Memory
from repsim.metrics.recipes.rows import (
    Rows,
    by_pieces,
    column_ranges,
    constant_layer,
    float64_device,
    in_memory,
    pieces,
    varies,
)


@dataclass(frozen=True, eq=False)
class Standardised:
    """Units that vary, centred and scaled to norm 1: computed in float64, then rounded to ``dtype``."""

    source: Rows
    units: Int64[Tensor, " r"]
    mean: Float64[Tensor, " r"]
    norm: Float64[Tensor, " r"]
    dtype: torch.dtype

    @property
    def shape(self) -> Sequence[int]:
        """Shape (n, units that vary)."""
        return self.source.shape[0], len(self.units)

    @property
    def device(self) -> torch.device:
        """Device of the source."""
        return self.source.device

    @property
    def nbytes(self) -> int:
        """Bytes held, without the activations."""
        return self.units.nbytes + self.mean.nbytes + self.norm.nbytes

    def exact(self, rows: "slice | Tensor") -> Float64[Tensor, "rows r"]:
        """Return rows in float64, before rounding."""
        piece = self.source[rows].to(self.mean.device)
        if len(self.units) < self.source.shape[1]:
            piece = piece[:, self.units]
        return (piece.to(torch.float64) - self.mean).div_(self.norm)

    def __getitem__(self, rows: "slice | Tensor") -> Float[Tensor, "rows r"]:
        return by_pieces(self, rows, lambda piece: self.exact(piece).to(self.device, self.dtype))


@dataclass(frozen=True, eq=False)
class Units(MomentFactor):
    """Units of one layer, centred and of norm 1, so that inner products with those of another are correlations."""

    columns: Rows
    """(n, r): a tensor, or rows that are read from the store on demand. Units without variance are left out."""

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        return self.columns.nbytes if isinstance(self.columns, Tensor | Standardised) else 0

    @property
    def n(self) -> int:
        """Samples."""
        return self.columns.shape[0]

    @property
    def p(self) -> int:
        """Number of units that vary."""
        return self.columns.shape[1]

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the columns."""
        return self.columns.dtype

    @property
    def device(self) -> torch.device:
        """Device of the columns."""
        return self.columns.device

    @property
    def in_memory(self) -> bool:
        """Whether the columns are in memory."""
        return isinstance(self.columns, Tensor)

    def rows(self, i: slice) -> Float[Tensor, "rows r"]:
        """Return rows of the columns."""
        return self.columns[i]

    def permuted(self, order: Int64[Tensor, " n"]) -> "Units":
        """Return the units of the same layer with its samples in another order."""
        return Units(self.columns[order.to(self.device)])


@dataclass(frozen=True, eq=False)
class UnitState:
    """State from which `Units` are made; small, so that processes can exchange it."""

    units: Int64[Tensor, " r"]
    mean: Float64[Tensor, " r"]
    norm: Float64[Tensor, " r"]


@dataclass(frozen=True)
class UnitNorm(StreamingRecipe[Units], DifferentiableRecipe[Units]):
    """Recipe of `Units`: leave out units without variance, centre and scale the others, all in float64."""

    def fit(self, x: Rows) -> UnitState:
        """Compute means and norms, in two passes over the layer."""
        mean, low, high = column_ranges(x)
        units = varies(low, high, x.dtype).nonzero()[:, 0]
        if not len(units):
            raise constant_layer()
        mean, peak = mean[units], torch.maximum(high - mean, mean - low)[units]
        relative = Standardised(x, units, mean, peak, torch.float64)  # its squares neither underflow nor overflow
        squares = torch.zeros_like(mean)
        for i in pieces(x):
            squares += relative.exact(i).square_().sum(0)
        return UnitState(units, mean, peak * squares.sqrt())

    def apply(self, x: Rows, state: UnitState) -> Units:
        """Make the factor: in memory if x is; otherwise read from the store on demand."""
        dtype = torch.promote_types(x.dtype, torch.float32)
        return Units(in_memory(Standardised(x, state.units, state.mean, state.norm, dtype), source=x))

    def with_gradient(self, x: Float[Tensor, "n p"]) -> Units:
        """Prepare one layer with operations that autograd supports."""
        units = self.fit(x.detach()).units.to(x.device)
        centred = (x - x.mean(0))[:, units].to(float64_device(x.device), torch.float64)
        return Units(centred / torch.linalg.vector_norm(centred, dim=0))

    @override
    def cost(self, layer: LayerSize) -> Cost:
        """Return the cost of means and norms, in two passes."""
        return Cost(touched=2.0 * layer.n * layer.p, calls=200)

    @override
    def memory(self, layer: LayerSize) -> Memory:
        """Return the memory of the units."""
        return Memory(layer.n * layer.p * layer.itemsize)


def assigned(cross: Cross[Any]) -> tuple[Int64[Tensor, " m"], Int64[Tensor, " m"]]:
    """Return one-to-one partners, i of the first layer and j of the second, with the largest sum of correlations."""
    return best_partners(cross.moments)


def transported(cross: Cross[Any]) -> Transport:
    """Return the optimal transport plan between the units, for their correlations."""
    return best_transport(cross.moments)


def _chosen(cross: Cross[Any], i: Int64[Tensor, " k"], j: Int64[Tensor, " k"]) -> Float64[Tensor, " k"]:
    """Return the correlations of these pairs of units."""
    return in_float64(cross.moments[i, j])


def chance_maximum(m: int) -> float:
    """Return the expected maximum of m standard normal numbers, to a few percent (Blom 1958).

    >>> round(chance_maximum(8), 2), round(chance_maximum(2048), 2)
    (1.43, 3.43)
    """
    return NormalDist().inv_cdf((m - 0.375) / (m + 0.25))


def _samples(best: float) -> int:
    """Return the samples for which ``best`` standard deviations of a chance correlation, 1 / sqrt(n - 1), are 0.2."""
    return max(4, math.ceil(25 * best**2) + 1)


class MatchingMetric(MomentMetric[Units], ABC):
    """Measure computed from the correlations between the units of two layers. Subclasses define a `moment`.

    The gradient treats the partners as fixed: the best matching changes only where two matchings are equally good.
    """

    group: ClassVar[Group] = "alignment"
    sense: ClassVar[Literal["similarity", "distance"]] = "similarity"
    symmetric: ClassVar[bool] = True
    counted: ClassVar[str] = "units"

    @property
    def bounds(self) -> tuple[float, float]:
        """Range of the value: [-1, 1]."""
        return -1.0, 1.0

    @property
    def invariances(self) -> frozenset[Invariance]:
        """Permutations of units; each unit may also be shifted, and scaled by a positive factor of its own."""
        return frozenset({"permutation", "isotropic scaling", "translation"})

    @property
    def recipe(self) -> UnitNorm:
        """Recipe that all measures based on correlations of units share."""
        return UnitNorm()

    def diagnostics(self, factor: Units) -> dict[str, int]:
        """Report the number of units that vary; the others are left out."""
        return {"units": factor.p}


@dataclass(frozen=True)
class HardCorrelation(MatchingMetric):
    """Mean correlation between units of X (n x p) and their one-to-one partners in Y (n x q).

    With the signed correlations C_ij = corr(x_i, y_j), the value is the maximum over matchings pi of
    1/m sum_i C_{i pi(i)}, m = min(p, q). Every unit of the narrower layer has a partner of its own. Range [-1, 1].
    Units without variance (frequent after a ReLU) have no correlation: they are left out, and the number of the others
    is reported.

    Notes
    -----
    The assignment is exact, and takes about a second per pair for 2,048 x 2,048 units. Unrelated layers do not score 0:
    the largest of many chance correlations is about sqrt(2 log(max(p, q)) / n).

    References
    ----------
    Li, Yosinski, Clune, Lipson, Hopcroft. Convergent learning: do different neural networks learn the same
    representations? ICLR 2016 (bipartite matching).

    Examples
    --------
    >>> import numpy as np
    >>> x = np.random.default_rng(0).normal(size=(100, 3))
    >>> round(HardCorrelation()(x, x[:, [2, 0, 1]] * [1, 10, 100] + 5), 6)
    1.0
    """

    name: ClassVar[str] = "hard_correlation"
    title: ClassVar[str] = "Hard correlation match"
    formula: ClassVar[str] = "max over matchings pi of mean_i corr(x_i, y_pi(i))"
    citation: ClassVar[str] = "Li et al. 2016"
    question: ClassVar[str] = "Does each unit of one layer have its own partner in the other that responds similarly?"
    needs: ClassVar[str] = "about 300 for 2,000 units; otherwise the largest of so many chance correlations exceeds 0.2"
    others: ClassVar[Mapping[str, str]] = {
        "scripts that match |corr|": "also match units that respond oppositely; here the sign counts",
    }

    def moment(self, cross: Cross[Units]) -> Tensor:
        """Return the value from the correlations of the units."""
        return _chosen(cross, *cross.once(assigned)).mean()

    def moment_cost(self, p: int, q: int) -> Cost:
        """Return the cost of the assignment."""
        return cost_of_assignment(p, q)

    def samples_needed(self, p: int, q: int) -> int:
        """Return the number from the largest of max(p, q) chance correlations, which bounds the mean."""
        return _samples(chance_maximum(max(p, q)))


@dataclass(frozen=True)
class SemiCorrelation(MatchingMetric):
    """Mean correlation between each unit of X (n x p) or Y (n x q) and the unit of the other layer most like it.

    With the signed correlations C_ij = corr(x_i, y_j), the value is 1/2 (mean_i max_j C_ij + mean_j max_i C_ij).
    Several units may have the same partner. Range [-1, 1]. Units without variance have no correlation: they are left
    out, and the number of the others is reported.

    References
    ----------
    Li, Yosinski, Clune, Lipson, Hopcroft. Convergent learning: do different neural networks learn the same
    representations? ICLR 2016 (semi-matching).

    Examples
    --------
    >>> import numpy as np
    >>> x = np.random.default_rng(0).normal(size=(100, 3))
    >>> round(SemiCorrelation()(x, np.hstack([x, x])), 6)
    1.0
    """

    name: ClassVar[str] = "semi_correlation"
    title: ClassVar[str] = "Semi-matching correlation"
    formula: ClassVar[str] = "1/2 (mean_i max_j corr(x_i, y_j) + mean_j max_i corr(x_i, y_j))"
    citation: ClassVar[str] = "Li et al. 2016"
    question: ClassVar[str] = "Does each unit of either layer have some unit in the other that responds similarly?"
    needs: ClassVar[str] = "about 300 for 2,000 units; otherwise the largest of so many chance correlations exceeds 0.2"
    others: ClassVar[Mapping[str, str]] = {
        "ReSi benchmark": "calls it soft correlation match",
        "Li et al. 2016": "match in one direction only; here the mean of both directions, which is symmetric",
    }

    def moment(self, cross: Cross[Units]) -> Tensor:
        """Return the value from the correlations of the units."""
        rows, columns = (in_float64(cross.moments.amax(axis)).mean() for axis in (1, 0))
        return (rows + columns) / 2

    def moment_cost(self, p: int, q: int) -> Cost:
        """Return the cost of reading the correlations twice, many at a time."""
        return Cost(touched=0.2 * p * q)

    def samples_needed(self, p: int, q: int) -> int:
        """Return the number from the largest of q, and of p, chance correlations."""
        return _samples((chance_maximum(p) + chance_maximum(q)) / 2)


@dataclass(frozen=True)
class SoftMatching(MatchingMetric):
    """Mean correlation between units of X (n x p) and Y (n x q) under the best soft matching.

    With the signed correlations C_ij = corr(x_i, y_j), the value is max_T sum_ij T_ij C_ij over all T >= 0 whose rows
    sum to 1/p and whose columns sum to 1/q: an optimal transport between units of equal weights. So every unit of both
    layers counts, also if p and q differ. Range [-1, 1]. Units without variance have no correlation: they are left out,
    and the number of the others is reported.

    Notes
    -----
    The distance of the paper, d^2 = min_T sum_ij T_ij ||x_i - y_j||^2, is d = sqrt(2 - 2 x this value) for tuning
    curves that are centred and of norm 1: a metric. If p = q, some best T is a permutation (Birkhoff), and the value is
    the hard correlation. The plan is exact: the network simplex method of POT solves for the best partners of each
    unit, and potentials certify the plan. It takes about a third of a second for 2,048 x 2,000 units.

    References
    ----------
    Khosla, Williams. Soft matching distance: a metric on neural representations that captures single-neuron tuning.
    UniReps 2023, arXiv 2311.09466.

    Examples
    --------
    >>> import numpy as np
    >>> x = np.random.default_rng(0).normal(size=(100, 3))
    >>> round(SoftMatching()(x, np.hstack([x, x])), 6)
    1.0
    """

    name: ClassVar[str] = "soft_matching"
    title: ClassVar[str] = "Soft matching"
    formula: ClassVar[str] = "max_T sum_ij T_ij corr(x_i, y_j), rows of T sum to 1/p and columns to 1/q"
    citation: ClassVar[str] = "Khosla & Williams 2024"
    question: ClassVar[str] = "Do the units of two layers, with equal weights, respond in the same ways?"
    needs: ClassVar[str] = "about 300 for 2,000 units; otherwise the largest of so many chance correlations exceeds 0.2"

    def moment(self, cross: Cross[Units]) -> Tensor:
        """Return the value from the correlations of the units."""
        if cross.a.p == cross.b.p:
            return _chosen(cross, *cross.once(assigned)).mean()
        plan = cross.once(transported)
        return (plan.mass * _chosen(cross, plan.i, plan.j)).sum()

    def moment_cost(self, p: int, q: int) -> Cost:
        """Return the cost of the assignment, or of the transport plan."""
        return cost_of_assignment(p, q) if p == q else cost_of_transport(p, q)

    def samples_needed(self, p: int, q: int) -> int:
        """Return the number from the largest of min(p, q) chance correlations, which bounds the mean."""
        return _samples(chance_maximum(min(p, q)))
