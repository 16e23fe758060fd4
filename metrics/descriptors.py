"""Statistics of a single representation: magnitude, concentricity and uniformity.

Each measure is the difference between one statistic of two layers.
"""

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
from repsim.metrics.recipes.rows import column_means, direction, float64_device, pieces

_UNDERFLOW = 40.0
"""Exponents below -40 are ignored: exp(-40) is smaller than the rounding errors of values from float32 layers."""


@dataclass(frozen=True, eq=False)
class Statistic:
    """Statistic of one layer."""

    value: Float64[Tensor, ""]
    n: int
    """Samples."""

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        return self.value.nbytes


class StatisticDifference(PairMetric[Statistic], ABC):
    """Absolute difference between a statistic of two layers. Subclasses define a `recipe`."""

    group: ClassVar[Group] = "statistics"
    sense: ClassVar[Literal["similarity", "distance"]] = "distance"
    symmetric: ClassVar[bool] = True
    triangle: ClassVar[bool] = True
    paired: ClassVar[bool] = False

    @override
    def samples_needed(self, p: int, q: int) -> int:
        """Return a few hundred, as for any mean."""
        return 200

    def value(self, a: Statistic, b: Statistic) -> Tensor:
        """Return the absolute difference."""
        return (a.value - b.value).abs()

    def block(self, rows: Sequence[Statistic], columns: Sequence[Statistic]) -> Float64[np.ndarray, "rows columns"]:
        """Return the absolute differences of all pairs."""
        left, right = (np.array([float(layer.value) for layer in side]) for side in (rows, columns))
        differences: Float64[np.ndarray, "rows columns"] = np.abs(left[:, None] - right)
        return differences

    @override
    def pair_cost(self, n: int, p: int, q: int) -> Cost:
        """Return no cost: all differences are computed at once."""
        return Cost()


class _OneNumber(InMemoryRecipe[Statistic]):
    """Base of the recipes of this module: the factor is one number."""

    @override
    def memory(self, layer: LayerSize) -> Memory:
        """Return the memory of one number."""
        return Memory(8)


def _mean(x: Float[Tensor, "n p"]) -> Float64[Tensor, " p"]:
    """Return the mean sample; raise `UndefinedValueError` for a constant layer."""
    mean, _ = column_means(x.detach())
    return x.to(mean).mean(0) if x.requires_grad else mean


@dataclass(frozen=True)
class Magnitude(_OneNumber):
    """Recipe of `MagnitudeDifference`: the length of the mean sample."""

    @override
    def cost(self, layer: LayerSize) -> Cost:
        """Return the cost of the mean."""
        return Cost(touched=0.5 * layer.n * layer.p)

    def __call__(self, x: Float[Tensor, "n p"]) -> Statistic:
        """Compute the statistic of one layer."""
        mean = _mean(x)
        peak = float(mean.detach().abs().max()) or 1.0  # so that no square overflows
        return Statistic(peak * torch.linalg.vector_norm(mean / peak), len(x))


@dataclass(frozen=True)
class MagnitudeDifference(StatisticDifference):
    """Absolute difference between the lengths of the mean samples, | ||mean sample of X|| - ||mean sample of Y|| |.

    It compares how far two layers lie from the origin, and is a difference of two numbers, one per layer, so samples
    need not correspond. Range [0, inf), in units of the features.

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
    needs: ClassVar[str] = "a few hundred, as for any mean"

    @property
    def bounds(self) -> tuple[float, float]:
        """Range of the value: [0, inf)."""
        return 0.0, math.inf

    @property
    def invariances(self) -> frozenset[Invariance]:
        """Transformations that leave the lengths of samples unchanged."""
        return frozenset({"permutation", "orthogonal"})

    @property
    def recipe(self) -> Magnitude:
        """Recipe that computes one number per layer."""
        return Magnitude()


@dataclass(frozen=True)
class Concentricity(_OneNumber):
    """Recipe of `ConcentricityDifference`: the mean cosine between a sample and the mean sample."""

    @override
    def cost(self, layer: LayerSize) -> Cost:
        """Return the cost of the lengths, and of products with the mean."""
        return Cost(touched=2.0 * layer.n * layer.p, calls=60)

    def __call__(self, x: Float[Tensor, "n p"]) -> Statistic:
        """Compute the statistic of one layer."""
        mean, spread = column_means(x.detach())
        if mean.abs().max() <= 4 * torch.finfo(x.dtype).eps * spread:  # rounding errors of a centred layer
            raise UndefinedValueError("the mean of all samples is 0, and so no sample has an angle with it")
        if empty := len(x) - int(x.detach().any(1).sum()):
            raise UndefinedValueError(f"{empty} of {len(x)} samples are 0, and so have no angle with their mean")
        mean = direction(_mean(x))
        cosines = [direction(x[i]) @ mean for i in pieces(x)]
        return Statistic(torch.cat(cosines).mean(), len(x))


@dataclass(frozen=True)
class ConcentricityDifference(StatisticDifference):
    """Absolute difference between mean cosines, | mean_i cos(x_i, mean of X) - mean_i cos(y_i, mean of Y) |.

    It compares how narrow two clouds are, as seen from the origin, and is a difference of two numbers, one per layer,
    so samples need not correspond. Range [0, 2].

    Raises
    ------
    UndefinedValueError
        If a sample, or the mean of all samples, is 0: the angle is not defined.

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
    question: ClassVar[str] = "Are two clouds of samples equally narrow, as seen from the origin?"
    needs: ClassVar[str] = "a few hundred, as for any mean"

    @property
    def bounds(self) -> tuple[float, float]:
        """Range of the value: [0, 2]."""
        return 0.0, 2.0

    @property
    def invariances(self) -> frozenset[Invariance]:
        """Transformations that leave angles at the origin unchanged."""
        return frozenset({"permutation", "orthogonal", "isotropic scaling"})

    @property
    def recipe(self) -> Concentricity:
        """Recipe that computes one number per layer."""
        return Concentricity()


@dataclass(frozen=True)
class Uniformity(_OneNumber):
    """Recipe of `UniformityDifference`: log mean_ij exp(-2 ||x_i - x_j||^2), tile by tile.

    Distances that are much smaller than the lengths of samples lose digits in float32. If the features are so large
    that this matters, tiles with pairs close enough to contribute are computed in float64.
    """

    @override
    def cost(self, layer: LayerSize) -> Cost:
        """Return the cost of half of all squared distances, and of their exponentials."""
        n, p = layer.n, layer.p
        return Cost.of_products(1.0 * n * n * p, layer.itemsize) + Cost(touched=11.0 * n * n + 7.0 * n * p, calls=120)

    def __call__(self, x: Float[Tensor, "n p"]) -> Statistic:
        """Compute the statistic of one layer."""
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
    """Absolute difference between uniformities, |u(X) - u(Y)|, where u(X) = log mean_ij exp(-2 ||x_i - x_j||^2).

    The mean includes the diagonal. The value compares how spread out two clouds are, and is a difference of two
    numbers, one per layer, so samples need not correspond. Range [0, inf).

    The value depends on the scale of the features: if samples are several units apart, only the diagonal contributes,
    and u = -log n. The statistic was designed for features of unit length.

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
    ...     warnings.simplefilter("ignore")  # the warning: only the diagonal contributes much
    ...     round(UniformityDifference()(x, y), 9)
    0.00784056
    """

    name: ClassVar[str] = "uniformity_difference"
    title: ClassVar[str] = "Uniformity difference"
    formula: ClassVar[str] = "|u(X) - u(Y)|, u(X) = log mean_ij exp(-2 ||x_i - x_j||^2)"
    citation: ClassVar[str] = "Wang & Isola 2020; Klabunde et al. 2025"
    question: ClassVar[str] = "Are the samples of two layers spread out equally evenly?"
    needs: ClassVar[str] = "a few hundred, and equally many for both layers: the diagonal is 1/n of all pairs"
    others: ClassVar[Mapping[str, str]] = {
        "Wang & Isola's align_uniform": "leaves out the diagonal, and requires features of unit length",
    }

    @property
    def bounds(self) -> tuple[float, float]:
        """Range of the value: [0, inf)."""
        return 0.0, math.inf

    @property
    def invariances(self) -> frozenset[Invariance]:
        """Rigid motions."""
        return frozenset({"permutation", "orthogonal", "translation"})

    @property
    def recipe(self) -> Uniformity:
        """Recipe that computes one number per layer."""
        return Uniformity()

    def with_gradient(self, x: Float[Tensor, "n p"], y: Float[Tensor, "n q"]) -> Tensor:
        """Compute the formula with a gradient, from the distances."""
        u, v = (_uniformity(side) for side in (x, y))
        return (u - v).abs()

    def caution(self, a: Statistic, b: Statistic) -> str | None:
        """Warn of features so large that only the diagonal contributes."""
        share = max(math.exp(-float(layer.value)) / layer.n for layer in (a, b))
        if share < 0.9:
            return None
        return (
            f"samples are so far apart that {share:.0%} of mean exp(-2 d^2) comes from each sample with itself, and "
            "not from pairs; scale the features, for example to unit length"
        )


def _uniformity(x: Float[Tensor, "n p"]) -> Float64[Tensor, ""]:
    """Compute u(X) with operations that autograd supports."""
    column_means(x.detach())  # raises for a constant layer
    x = x.to(float64_device(x.device), torch.float64)
    x = x - x.mean(0)
    norms = x.square().sum(1)
    squared = (norms[:, None] + norms - 2 * x @ x.T).clamp(min=0)
    return torch.logsumexp(-2 * squared.flatten(), 0) - 2 * math.log(len(x))
