"""Statistics of a single representation, a number each, of which two layers have a difference."""

import math
from abc import ABC
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import torch
from jaxtyping import Float, Float64
from torch import Tensor
from typing_extensions import override

from repsim.errors import UndefinedValueError
from repsim.metrics.base import Group, Invariance, PairMetric
from repsim.metrics.recipes.base import InMemoryRecipe
from repsim.metrics.recipes.cost import Cost, LayerSize, Memory
from repsim.metrics.recipes.gram import CentredGram
from repsim.metrics.recipes.rows import column_means, direction, pieces, wide

_UNDERFLOW = 40.0
"""exp(-40) beside 1 is below the rounding errors of what float32 layers give."""


@dataclass(frozen=True, eq=False)
class Statistic:
    """What a recipe of this module finds in a layer."""

    value: Float64[Tensor, ""]
    n: int
    """Samples."""

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        return self.value.nbytes


class StatisticDifference(PairMetric[Statistic], ABC):
    """The absolute difference between a statistic of two layers: states a `recipe`."""

    group: ClassVar[Group] = "statistics"
    sense: ClassVar[Literal["similarity", "distance"]] = "distance"
    symmetric: ClassVar[bool] = True
    triangle: ClassVar[bool] = True
    paired: ClassVar[bool] = False

    @override
    def samples_needed(self, p: int, q: int) -> int:
        """A few hundred, as of any mean."""
        return 200

    def value(self, a: Statistic, b: Statistic) -> Tensor:
        """The absolute difference."""
        return (a.value - b.value).abs()

    def block(self, rows: Sequence[Statistic], columns: Sequence[Statistic]) -> Float64[np.ndarray, "rows columns"]:
        """Every number with every other."""
        left, right = (np.array([float(layer.value) for layer in side]) for side in (rows, columns))
        differences: Float64[np.ndarray, "rows columns"] = np.abs(left[:, None] - right)
        return differences

    @override
    def pair_flop(self, n: int, p: int, q: int) -> float:
        """One."""
        return 1.0


class _OneNumber(InMemoryRecipe[Statistic]):
    """What the recipes of this module have in common: a factor of one number."""

    @override
    def memory(self, layer: LayerSize) -> Memory:
        """One number."""
        return Memory(8)


def _mean(x: Float[Tensor, "n p"]) -> Float64[Tensor, " p"]:
    """The mean sample; refuses what is constant."""
    mean, _ = column_means(x.detach())
    return x.to(mean).mean(0) if x.requires_grad else mean


@dataclass(frozen=True)
class Magnitude(_OneNumber):
    """The recipe of `MagnitudeDifference`: the length of the mean sample."""

    @override
    def cost(self, layer: LayerSize) -> Cost:
        """The mean."""
        return Cost.of_products(1.0 * layer.n * layer.p, layer.itemsize)

    def __call__(self, x: Float[Tensor, "n p"]) -> Statistic:
        """Describe one layer."""
        mean = _mean(x)
        peak = float(mean.detach().abs().max()) or 1.0  # so that no square overflows
        return Statistic(peak * torch.linalg.vector_norm(mean / peak), len(x))


@dataclass(frozen=True)
class MagnitudeDifference(StatisticDifference):
    """| ||mean sample of X|| - ||mean sample of Y|| |: do two layers lie equally far from the origin?

    A difference of two numbers, one a layer: samples need not correspond. Range [0, inf), in units of the features.

    References
    ----------
    Wang, Rao, Guo, Wang, Liu, Guan. Towards understanding the instability of network embedding. TKDE 2022.

    Examples
    --------
    >>> import numpy as np
    >>> np.random.seed(0)
    >>> x, y = np.random.uniform(size=(30, 25)), np.random.uniform(size=(30, 25))
    >>> round(MagnitudeDifference()(x, y), 9)
    0.090006166
    """

    name: ClassVar[str] = "magnitude_difference"
    title: ClassVar[str] = "Magnitude difference"
    formula: ClassVar[str] = "| ||mean_i x_i|| - ||mean_i y_i|| |"
    citation: ClassVar[str] = "Wang et al. 2022; Klabunde et al. 2025"
    question: ClassVar[str] = "Do the mean samples of two layers lie equally far from the origin?"
    needs: ClassVar[str] = "a few hundred, as of any mean"

    @property
    def bounds(self) -> tuple[float, float]:
        """[0, inf)."""
        return 0.0, math.inf

    @property
    def invariances(self) -> frozenset[Invariance]:
        """What keeps lengths."""
        return frozenset({"permutation", "orthogonal"})

    @property
    def recipe(self) -> Magnitude:
        """One number a layer."""
        return Magnitude()


@dataclass(frozen=True)
class Concentricity(_OneNumber):
    """The recipe of `ConcentricityDifference`: the mean cosine between a sample and the mean sample."""

    @override
    def cost(self, layer: LayerSize) -> Cost:
        """Lengths, and products with the mean."""
        return Cost.of_products(6.0 * layer.n * layer.p, layer.itemsize)

    def __call__(self, x: Float[Tensor, "n p"]) -> Statistic:
        """Describe one layer."""
        mean, spread = column_means(x.detach())
        if mean.abs().max() <= 4 * torch.finfo(x.dtype).eps * spread:  # the rounding errors of who centred it
            raise UndefinedValueError("the mean of all samples is 0, and so no sample has an angle with it")
        if empty := len(x) - int(x.detach().any(1).sum()):
            raise UndefinedValueError(f"{empty} of {len(x)} samples are 0, and so have no angle with their mean")
        mean = direction(_mean(x))
        cosines = [direction(x[i]) @ mean for i in pieces(x)]
        return Statistic(torch.cat(cosines).mean(), len(x))


@dataclass(frozen=True)
class ConcentricityDifference(StatisticDifference):
    """| mean_i cos(x_i, mean of X) - mean_i cos(y_i, mean of Y) |: are two clouds seen from the origin equally narrow?

    A difference of two numbers, one a layer: samples need not correspond. Range [0, 2].

    Raises
    ------
    UndefinedValueError
        Where a sample, or the mean of all, is 0: then there is no angle.

    References
    ----------
    Wang, Rao, Guo, Wang, Liu, Guan. Towards understanding the instability of network embedding. TKDE 2022.

    Examples
    --------
    >>> import numpy as np
    >>> np.random.seed(0)
    >>> x, y = np.random.uniform(size=(30, 25)), np.random.uniform(size=(30, 25))
    >>> round(ConcentricityDifference()(x, y), 9)
    0.005424143
    """

    name: ClassVar[str] = "concentricity_difference"
    title: ClassVar[str] = "Concentricity difference"
    formula: ClassVar[str] = "|mean_i cos(x_i, x) - mean_i cos(y_i, y)|, x and y the mean samples"
    citation: ClassVar[str] = "Wang et al. 2022; Klabunde et al. 2025"
    question: ClassVar[str] = "Do the samples of two layers point away from the origin equally narrowly?"
    needs: ClassVar[str] = "a few hundred, as of any mean"

    @property
    def bounds(self) -> tuple[float, float]:
        """[0, 2]."""
        return 0.0, 2.0

    @property
    def invariances(self) -> frozenset[Invariance]:
        """What keeps angles at the origin."""
        return frozenset({"permutation", "orthogonal", "isotropic scaling"})

    @property
    def recipe(self) -> Concentricity:
        """One number a layer."""
        return Concentricity()


@dataclass(frozen=True)
class Uniformity(_OneNumber):
    """The recipe of `UniformityDifference`: log mean_ij exp(-2 ||x_i - x_j||^2), tile by tile.

    Distances far below the lengths of samples lose digits in float32. Where samples are so long that this would show,
    tiles with pairs that are close enough to count are made in float64.
    """

    @override
    def cost(self, layer: LayerSize) -> Cost:
        """Half of all squared distances."""
        return Cost.of_products(1.0 * layer.n * layer.n * layer.p, layer.itemsize)

    def __call__(self, x: Float[Tensor, "n p"]) -> Statistic:
        """Describe one layer."""
        state = CentredGram().fit(x)
        gram = CentredGram().apply(x, state)
        factor = -2 * state.scale**2 if state.scale < 1e100 else -math.inf
        near = _UNDERFLOW / -factor if factor < -8 and x.dtype != torch.float64 else 0.0
        total = torch.zeros((), dtype=torch.float64, device=state.mean.device)
        for i, j, squared in gram.squared_distances(near=near):
            terms = squared.to(total.device).mul_(factor).exp_()
            terms = terms.fill_diagonal_(1) if i == j else terms.mul_(2)
            total += terms.sum(dtype=torch.float64)
        return Statistic(total.log() - 2 * math.log(gram.n), gram.n)


@dataclass(frozen=True)
class UniformityDifference(StatisticDifference):
    """|u(X) - u(Y)|, u(X) = log mean_ij exp(-2 ||x_i - x_j||^2), the diagonal included: are two clouds as spread out?

    A difference of two numbers, one a layer: samples need not correspond. Range [0, inf).

    It is in units of the features: where samples are some units apart, nothing but the diagonal is left and
    u = -log n. It was made for features of unit length.

    References
    ----------
    Wang, Isola. Understanding contrastive representation learning through alignment and uniformity on the hypersphere.
    ICML 2020.

    Examples
    --------
    >>> import numpy as np, warnings
    >>> np.random.seed(0)
    >>> x, y = np.random.uniform(size=(30, 25)), np.random.uniform(size=(30, 25))
    >>> with warnings.catch_warnings():
    ...     warnings.simplefilter("ignore")  # the diagonal is nearly all that is left, as the warning says
    ...     round(UniformityDifference()(x, y), 9)
    0.00784056
    """

    name: ClassVar[str] = "uniformity_difference"
    title: ClassVar[str] = "Uniformity difference"
    formula: ClassVar[str] = "|u(X) - u(Y)|, u(X) = log mean_ij exp(-2 ||x_i - x_j||^2)"
    citation: ClassVar[str] = "Wang & Isola 2020; Klabunde et al. 2025"
    question: ClassVar[str] = "Are the samples of two layers spread out equally evenly?"
    needs: ClassVar[str] = "a few hundred, and the same for both: the diagonal is 1/n of all pairs"
    others: ClassVar[Mapping[str, str]] = {
        "Wang & Isola's align_uniform": "leaves out the diagonal, and asks for features of unit length",
    }

    @property
    def bounds(self) -> tuple[float, float]:
        """[0, inf)."""
        return 0.0, math.inf

    @property
    def invariances(self) -> frozenset[Invariance]:
        """Rigid motions."""
        return frozenset({"permutation", "orthogonal", "translation"})

    @property
    def recipe(self) -> Uniformity:
        """One number a layer."""
        return Uniformity()

    def with_gradient(self, x: Float[Tensor, "n p"], y: Float[Tensor, "n q"]) -> Tensor:
        """The formula, on whole matrices."""
        u, v = (_uniformity(side) for side in (x, y))
        return (u - v).abs()

    def caution(self, a: Statistic, b: Statistic) -> str | None:
        """Of features that are large, nothing but the diagonal is seen."""
        share = max(math.exp(-float(layer.value)) / layer.n for layer in (a, b))
        if share < 0.9:
            return None
        return (
            f"samples are so far apart that {share:.0%} of mean exp(-2 d^2) is each sample with itself, whatever the "
            "others do; scale the features, to unit length say"
        )


def _uniformity(x: Float[Tensor, "n p"]) -> Float64[Tensor, ""]:
    """By operations that autograd knows."""
    column_means(x.detach())  # refuses what is constant
    x = x.to(wide(x.device), torch.float64)
    x = x - x.mean(0)
    norms = x.square().sum(1)
    squared = (norms[:, None] + norms - 2 * x @ x.T).clamp(min=0)
    return torch.logsumexp(-2 * squared.flatten(), 0) - 2 * math.log(len(x))
