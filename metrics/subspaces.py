"""What the measures of principal subspaces (CCA, shape distances, regression) have in common."""

from abc import ABC, abstractmethod
from typing import ClassVar, Literal

import torch
from jaxtyping import Float64
from torch import Tensor

from repsim.metrics.base import Group, MomentMetric
from repsim.metrics.recipes.cost import Cost
from repsim.metrics.recipes.subspace import PrincipalSubspace, Subspace


class SubspaceMetric(MomentMetric[Subspace], ABC):
    """What is compared by the inner products of two layers' bases: states a `recipe` and a `moment`."""

    group: ClassVar[Group] = "cca"
    sense: ClassVar[Literal["similarity", "distance"]] = "similarity"
    symmetric: ClassVar[bool] = True
    counted: ClassVar[str] = "rank"

    @property
    def bounds(self) -> tuple[float, float]:
        """[0, 1]."""
        return 0.0, 1.0

    @property
    @abstractmethod
    def recipe(self) -> "PrincipalSubspace":
        """One decomposition serves all such measures: that of whoever wants most of it."""

    def moment_cost(self, p: int, q: int) -> Cost:
        """Eigenvalues of CC', where C has min(p, q) rows; measures that need none take about as long in all."""
        short, long = sorted((p, q))
        return Cost(flop64=2.0 * short * short * long, decomposed=5.0 * short**3)


def exact(a: Subspace, b: Subspace) -> bool:
    """Whether the inner products of their bases are those of float64."""
    return torch.promote_types(a.basis.dtype, b.basis.dtype) == torch.float64


def singular_values(product: Float64[Tensor, "r t"], *, exact: bool) -> Float64[Tensor, " m"]:
    """All min(r, t) singular values of a product of two bases, in any order.

    Where the product C is not ``exact``, but of float32, they are the roots of the eigenvalues of CC', which take half
    the time: below 1e-8 of the largest they are lost, but C has errors of 1e-7.
    """
    if exact:
        values: Tensor = torch.linalg.svdvals(product)
    else:
        short = product if product.shape[0] <= product.shape[1] else product.T
        values = torch.linalg.eigvalsh(short @ short.T).clamp(min=0).sqrt()
    return values


def saturation(n: int, r: int, t: int, count: str, *, centred: bool = True) -> str | None:
    """Warn that two subspaces of dimensions r and t, which are in n - 1 dimensions, must meet (in n, uncentred)."""
    certain = r + t - (n - centred)
    if certain <= 0:
        return None
    return (
        f"with n = {n} samples and {r} + {t} {count}, {certain} of the correlations are exactly 1 for any data; "
        f"take at least n = {r + t + 1 + centred} samples, and many more for a value that means something"
    )
