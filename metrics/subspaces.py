"""Base class and shared functions of the measures of principal subspaces (CCA, shapes, prediction)."""

import math
from abc import ABC, abstractmethod
from typing import ClassVar, Literal

import torch
from jaxtyping import Float64
from torch import Tensor

from repsim.metrics.base import Group, MomentMetric
from repsim.metrics.recipes.cost import Cost
from repsim.metrics.recipes.subspace import PrincipalSubspace, Subspace

_CERTIFIED = 1e-9
"""Largest error of a sum of singular values, relative to it, with which they are computed from eigenvalues."""
_GRAM_BLOCK = 192
"""Columns of CC' that are computed at once; larger blocks compute more above the diagonal, smaller ones are slower."""


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
        """Return the cost of half of CC', C with min(p, q) rows, and of its eigenvalues."""
        short, long = sorted((p, q))
        product = Cost(flop64=short * (short + min(short, _GRAM_BLOCK)) * long)
        return product + Cost.of_eigenvalues(short, 0.5)


def exact(a: Subspace, b: Subspace) -> bool:
    """Return whether the inner products of the bases are computed in float64."""
    return torch.promote_types(a.basis.dtype, b.basis.dtype) == torch.float64


def singular_values(
    product: Float64[Tensor, "r t"], *, exact: bool, subtracted_from: float = 0.0
) -> Float64[Tensor, " m"]:
    """Return all min(r, t) singular values of a product of two bases, in any order.

    They are the roots of the eigenvalues of CC', which take half of the time, if their sum certainly has a relative
    error of at most 1e-9, also after it is ``subtracted_from`` a number. If the product C is in float32, and not
    ``exact``, they always are the roots: values below 1e-8 of the largest are lost, but C itself has errors of 1e-7.
    With a gradient, or if the error may be larger, the singular value decomposition of C is used.
    """
    if product.requires_grad:
        decomposed: Tensor = torch.linalg.svdvals(product)
        return decomposed
    short = product if product.shape[0] <= product.shape[1] else product.T
    squares = torch.linalg.eigvalsh(lower_gram(short))
    values: Tensor = squares.clamp(min=0).sqrt()
    if exact:
        total = float(values.sum())
        allowed = _CERTIFIED * min(total, abs(subtracted_from - total))
        if not error_of_roots(squares, short.shape[1]) <= allowed:
            values = torch.linalg.svdvals(product)
    return values


def lower_gram(c: Float64[Tensor, "m k"]) -> Float64[Tensor, "m m"]:
    """Return CC'; only its lower triangle is valid, as the decompositions of torch read it."""
    m = len(c)
    gram = c.new_empty(m, m)
    for start in range(0, m, _GRAM_BLOCK):
        torch.mm(c[start:], c[start : start + _GRAM_BLOCK].T, out=gram[start:, start : start + _GRAM_BLOCK])
    return gram


def error_of_roots(squares: Float64[Tensor, " m"], k: int) -> float:
    """Return an upper bound of sum_i |sqrt(l_i) - s_i|, for the eigenvalues l_i that were computed from CC'.

    l_i are the eigenvalues of CC' + E, with ||E||_F <= 8 sqrt(k + m) u ||C||_F^2, u = eps / 2, from the rounding errors
    of sums over k columns and of the decomposition: they are random, so they grow with the root of their number (Higham
    and Mary 2019; the bound without this assumption has k + m). With |sqrt(l_i) - s_i| <= |l_i - s_i^2| / sqrt(l_i),
    the theorem of Hoffman and Wielandt, sum_i (l_i - s_i^2)^2 <= ||E||_F^2, and Cauchy-Schwarz, the sum is at most
    ||E||_F (sum_i 1 / l_i)^1/2: infinite if an eigenvalue is not positive.

    References
    ----------
    Higham, Mary. A new approach to probabilistic rounding error analysis. SIAM J. Sci. Comput. 2019.
    """
    if not bool((squares > 0).all()):
        return math.inf
    backward = 4 * math.sqrt(k + len(squares)) * torch.finfo(squares.dtype).eps * float(squares.sum())
    return backward * math.sqrt(float((1 / squares).sum()))


def saturation(n: int, r: int, t: int, count: str, *, centred: bool = True) -> str | None:
    """Return a warning if two subspaces of dimensions r and t must intersect in n - 1 (not centred: n) dimensions."""
    certain = r + t - (n - centred)
    if certain <= 0:
        return None
    return (
        f"with n = {n} samples and {r} + {t} {count}, {certain} of the correlations are exactly 1 for any data; "
        f"take at least n = {r + t + 1 + centred} samples, and many more for a meaningful value"
    )
