"""Measures that match units with units, from the correlations between the two layers' units."""

import math
from abc import ABC
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from jaxtyping import Float, Float64, Int64
from numpy.typing import NDArray
from torch import Tensor
from typing_extensions import override

from repsim.metrics.algorithms.cross import Cross
from repsim.metrics.base import Group, Invariance, MomentMetric
from repsim.metrics.recipes.base import DifferentiableRecipe, MomentFactor, StreamingRecipe
from repsim.metrics.recipes.cost import Cost, LayerSize, Memory
from repsim.metrics.recipes.rows import Rows, by_pieces, column_ranges, constant_layer, in_memory, pieces, varies, wide


@dataclass(frozen=True, eq=False)
class Standardised:
    """The units that vary, centred and scaled to norm 1: computed in float64, then rounded to ``dtype``."""

    source: Rows
    units: Int64[Tensor, " r"]
    mean: Float64[Tensor, " r"]
    norm: Float64[Tensor, " r"]
    dtype: torch.dtype

    @property
    def shape(self) -> Sequence[int]:
        """(n, units that vary)."""
        return self.source.shape[0], len(self.units)

    @property
    def device(self) -> torch.device:
        """Of the source."""
        return self.source.device

    @property
    def nbytes(self) -> int:
        """Bytes held, but for the activations."""
        return self.units.nbytes + self.mean.nbytes + self.norm.nbytes

    def exact(self, rows: "slice | Tensor") -> Float64[Tensor, "rows r"]:
        """Before they are rounded."""
        piece = self.source[rows].to(self.mean.device)
        if len(self.units) < self.source.shape[1]:
            piece = piece[:, self.units]
        return (piece.to(torch.float64) - self.mean).div_(self.norm)

    def __getitem__(self, rows: "slice | Tensor") -> Float[Tensor, "rows r"]:
        return by_pieces(self, rows, lambda piece: self.exact(piece).to(self.device, self.dtype))


@dataclass(frozen=True, eq=False)
class Units(MomentFactor):
    """One layer's units, centred and of norm 1, so that their inner products with another's are correlations."""

    columns: Rows
    """(n, r): a tensor, or read from the store whenever they are asked for. Units without variance are left out."""

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
        """Units that vary."""
        return self.columns.shape[1]

    @property
    def dtype(self) -> torch.dtype:
        """That of the columns."""
        return self.columns.dtype

    @property
    def device(self) -> torch.device:
        """That of the columns."""
        return self.columns.device

    @property
    def in_memory(self) -> bool:
        """Whether the columns are."""
        return isinstance(self.columns, Tensor)

    def rows(self, i: slice) -> Float[Tensor, "rows r"]:
        """Of the columns."""
        return self.columns[i]

    def permuted(self, order: Int64[Tensor, " n"]) -> "Units":
        """Those of the same layer with its samples in another order."""
        return Units(self.columns[order.to(self.device)])


@dataclass(frozen=True, eq=False)
class UnitState:
    """What makes `Units` of activations, so that one process can tell it to another."""

    units: Int64[Tensor, " r"]
    mean: Float64[Tensor, " r"]
    norm: Float64[Tensor, " r"]


@dataclass(frozen=True)
class UnitNorm(StreamingRecipe[Units], DifferentiableRecipe[Units]):
    """The recipe of `Units`: leave out units without variance, centre and scale the others, all in float64."""

    def fit(self, x: Rows) -> UnitState:
        """Find means and norms, in two passes over the layer."""
        mean, low, high = column_ranges(x)
        units = varies(low, high, x.dtype).nonzero()[:, 0]
        if not len(units):
            raise constant_layer()
        mean, peak = mean[units], torch.maximum(high - mean, mean - low)[units]
        relative = Standardised(x, units, mean, peak, torch.float64)  # whose squares neither vanish nor overflow
        squares = torch.zeros_like(mean)
        for i in pieces(x):
            squares += relative.exact(i).square_().sum(0)
        return UnitState(units, mean, peak * squares.sqrt())

    def apply(self, x: Rows, state: UnitState) -> Units:
        """Make the factor: in memory if x is, read from the store as it is needed if x is there."""
        dtype = torch.promote_types(x.dtype, torch.float32)
        return Units(in_memory(Standardised(x, state.units, state.mean, state.norm, dtype), made_of=x))

    def with_gradient(self, x: Float[Tensor, "n p"]) -> Units:
        """Prepare one layer by operations that autograd knows."""
        units = self.fit(x.detach()).units.to(x.device)
        centred = (x - x.mean(0))[:, units].to(wide(x.device), torch.float64)
        return Units(centred / torch.linalg.vector_norm(centred, dim=0))

    @override
    def cost(self, layer: LayerSize) -> Cost:
        """Means and norms, in two passes."""
        return Cost.of_products(6.0 * layer.n * layer.p, layer.itemsize)

    @override
    def memory(self, layer: LayerSize) -> Memory:
        """The units."""
        return Memory(layer.n * layer.p * layer.itemsize)


def assigned(cross: Cross[Any]) -> tuple[Int64[Tensor, " m"], Int64[Tensor, " m"]]:
    """One-to-one partners, i of the first layer and j of the second: those with the largest sum of correlations."""
    from scipy.optimize import linear_sum_assignment  # noqa: PLC0415 - only whoever matches units waits for it

    i, j = linear_sum_assignment(_float64(cross.product), maximize=True)
    return torch.from_numpy(i).to(cross.product.device), torch.from_numpy(j).to(cross.product.device)


def transported(cross: Cross[Any]) -> Float64[np.ndarray, "p q"]:
    """The optimal transport plan T between p and q units of equal weights, for the profit C: its rows sum to 1/p.

    Masses are whole numbers while the plan is looked for, so that no flow is lost to rounding.
    """
    import ot  # noqa: PLC0415 - takes seconds, which only whoever asks for it waits for

    p, q = cross.product.shape
    total = math.lcm(p, q)
    plan: NDArray[np.float64] = ot.emd(
        np.full(p, total / p), np.full(q, total / q), -_float64(cross.product), numItermax=10**9
    )
    return plan / total


def _float64(product: Tensor) -> Float64[np.ndarray, "p q"]:
    found: NDArray[np.float64] = product.detach().to("cpu", torch.float64).numpy()
    return found


def chance_maximum(m: int) -> float:
    """The expected largest of m standard normal numbers, to a few percent (Blom 1958).

    >>> round(chance_maximum(8), 2), round(chance_maximum(2048), 2)
    (1.43, 3.43)
    """
    return NormalDist().inv_cdf((m - 0.375) / (m + 0.25))


def _samples(best: float) -> int:
    """Samples from which on ``best`` standard deviations of a chance correlation, 1 / sqrt(n - 1), are at most 0.2."""
    return max(4, math.ceil(25 * best**2) + 1)


class MatchingMetric(MomentMetric[Units], ABC):
    """What is computed from the correlations between two layers' units: states a `moment`.

    A gradient takes the partners as fixed: which ones are best changes only where two choices are equally good.
    """

    group: ClassVar[Group] = "alignment"
    sense: ClassVar[Literal["similarity", "distance"]] = "similarity"
    symmetric: ClassVar[bool] = True
    counted: ClassVar[str] = "units"

    @property
    def bounds(self) -> tuple[float, float]:
        """[-1, 1]."""
        return -1.0, 1.0

    @property
    def invariances(self) -> frozenset[Invariance]:
        """Units may be exchanged; each may also be shifted, and scaled by a positive number of its own."""
        return frozenset({"permutation", "isotropic scaling", "translation"})

    @property
    def recipe(self) -> UnitNorm:
        """Shared by all that match units by correlation."""
        return UnitNorm()

    def diagnostics(self, factor: Units) -> dict[str, int]:
        """Units that vary, of which alone the value speaks."""
        return {"units": factor.p}


@dataclass(frozen=True)
class HardCorrelation(MatchingMetric):
    """Mean correlation between units of X (n x p) and their one-to-one partners in Y (n x q).

    With the correlations C_ij = corr(x_i, y_j), signed: max over matchings pi of 1/m sum_i C_{i pi(i)}, m = min(p, q).
    Every unit of the narrower layer has a partner of its own. Range [-1, 1]. Units without variance (after a ReLU there
    are many) have no correlation: they are left out, and the number of the others is reported.

    Notes
    -----
    The assignment is found exactly, in about a second a pair for 2,048 x 2,048 units. Unrelated layers do not score 0:
    the best of many chance correlations is about sqrt(2 log(max(p, q)) / n).

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
    question: ClassVar[str] = "Does each unit of one layer have a unit of its own in the other that responds alike?"
    needs: ClassVar[str] = "some 300 for 2,000 units, else the best of so many chance correlations is above 0.2"
    others: ClassVar[Mapping[str, str]] = {
        "scripts that match |corr|": "let a unit stand for one that responds oppositely; here the sign counts",
    }

    def moment(self, cross: Cross[Units]) -> Tensor:
        """Compare two prepared layers, whose units correlate like this."""
        return cross.product[cross.once(assigned)].mean()

    def samples_needed(self, p: int, q: int) -> int:
        """No unit's partner is better than the best of max(p, q)."""
        return _samples(chance_maximum(max(p, q)))


@dataclass(frozen=True)
class SemiCorrelation(MatchingMetric):
    """Mean correlation between each unit of X (n x p) or Y (n x q) and the unit of the other layer most like it.

    With the correlations C_ij = corr(x_i, y_j), signed: 1/2 (mean_i max_j C_ij + mean_j max_i C_ij). Several units may
    have the same partner. Range [-1, 1]. Units without variance have no correlation: they are left out, and the number
    of the others is reported.

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
    question: ClassVar[str] = "Is there, for each unit of either layer, some unit in the other that responds alike?"
    needs: ClassVar[str] = "some 300 for 2,000 units, else the best of so many chance correlations is above 0.2"
    others: ClassVar[Mapping[str, str]] = {
        "ReSi benchmark": "calls it soft correlation match",
        "Li et al. 2016": "look from one layer to the other; here the mean of both directions, which is symmetric",
    }

    def moment(self, cross: Cross[Units]) -> Tensor:
        """Compare two prepared layers, whose units correlate like this."""
        return (cross.product.amax(1).mean() + cross.product.amax(0).mean()) / 2

    def samples_needed(self, p: int, q: int) -> int:
        """From the largest of q, and of p, chance correlations."""
        return _samples((chance_maximum(p) + chance_maximum(q)) / 2)


@dataclass(frozen=True)
class SoftMatching(MatchingMetric):
    """Mean correlation between units of X (n x p) and Y (n x q) under the best soft matching.

    With the correlations C_ij = corr(x_i, y_j), signed: max_T sum_ij T_ij C_ij over all T >= 0 whose rows sum to 1/p
    and whose columns sum to 1/q, an optimal transport between units of equal weights. So every unit of both layers
    counts, however many there are of each. Range [-1, 1]. Units without variance have no correlation: they are left
    out, and the number of the others is reported.

    Notes
    -----
    The distance of the paper, d^2 = min_T sum_ij T_ij ||x_i - y_j||^2, is d = sqrt(2 - 2 x this value) for tuning
    curves that are centred and of norm 1: a metric. Where p = q some best T is a permutation (Birkhoff), and this is
    the hard correlation. The plan is found exactly, by the network simplex method of POT, in a second or two for
    2,048 x 2,000 units.

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
    question: ClassVar[str] = "Do the units of two layers, each counting alike, respond in the same ways?"
    needs: ClassVar[str] = "some 300 for 2,000 units, else the best of so many chance correlations is above 0.2"

    def moment(self, cross: Cross[Units]) -> Tensor:
        """Compare two prepared layers, whose units correlate like this."""
        if cross.a.p == cross.b.p:
            return cross.product[cross.once(assigned)].mean()
        plan = torch.from_numpy(cross.once(transported)).to(cross.product)
        return (plan * cross.product).sum()

    def samples_needed(self, p: int, q: int) -> int:
        """No unit's partners are better than the best one, on either side."""
        return _samples(chance_maximum(min(p, q)))
