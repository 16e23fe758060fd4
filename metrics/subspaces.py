"""Base class and shared functions of the measures of principal subspaces (CCA, shapes, prediction)."""

from abc import ABC, abstractmethod
from typing import ClassVar, Literal

import torch
from jaxtyping import Float64
from torch import Tensor

from repsim.metrics.base import Group, MomentMetric
from repsim.metrics.recipes.cost import Cost
from repsim.metrics.recipes.subspace import PrincipalSubspace, Subspace


class SubspaceMetric(MomentMetric[Subspace], ABC):
    """Measure computed from the inner products of two bases. Subclasses define a `recipe` and a `moment`."""

    group: ClassVar[Group] = "cca"
    sense: ClassVar[Literal["similarity", "distance"]] = "similarity"
    symmetric: ClassVar[bool] = True
    counted: ClassVar[str] = "rank"

    @property
    def bounds(self) -> tuple[float, float]:
        """Range of the value: [0, 1]."""
        return 0.0, 1.0

    @property
    @abstractmethod
    def recipe(self) -> "PrincipalSubspace":
        """Decomposition that is shared by all such measures; the recipe that keeps most of it serves all."""

    def moment_cost(self, p: int, q: int) -> Cost:
        """Return the cost of the eigenvalues of CC', C with min(p, q) rows; other measures take about as long."""
        short, long = sorted((p, q))
        return Cost(flop64=2.0 * short * short * long, decomposed=5.0 * short**3)


def exact(a: Subspace, b: Subspace) -> bool:
    """Return whether the inner products of the bases are computed in float64."""
    return torch.promote_types(a.basis.dtype, b.basis.dtype) == torch.float64


def singular_values(product: Float64[Tensor, "r t"], *, exact: bool) -> Float64[Tensor, " m"]:
    """Return all min(r, t) singular values of a product of two bases, in any order.

    If the product C is in float32, and not ``exact``, they are the roots of the eigenvalues of CC', which take half
    the time. Values below 1e-8 of the largest are lost, but C itself has errors of 1e-7.
    """
    if exact:
        values: Tensor = torch.linalg.svdvals(product)
    else:
        short = product if product.shape[0] <= product.shape[1] else product.T
        values = torch.linalg.eigvalsh(short @ short.T).clamp(min=0).sqrt()
    return values


def saturation(n: int, r: int, t: int, count: str, *, centred: bool = True) -> str | None:
    """Return a warning if two subspaces of dimensions r and t must intersect in n - 1 (not centred: n) dimensions."""
    certain = r + t - (n - centred)
    if certain <= 0:
        return None
    return (
        f"with n = {n} samples and {r} + {t} {count}, {certain} of the correlations are exactly 1 for any data; "
        f"take at least n = {r + t + 1 + centred} samples, and many more for a meaningful value"
    )
