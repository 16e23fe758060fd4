"""Centred Gram matrices, given tile by tile: what every CKA is computed from.

No n x n matrix is ever held. A `Gram` keeps the centred features (n, p) and the row sums of its kernel, from which any
tile of the centred Gram matrix follows, so that exact values at large n take the memory of one tile a layer.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from repsim.errors import UndefinedValueError
from repsim.metrics.base import centre

Kernel = Literal["linear", "rbf"]


@dataclass(frozen=True, eq=False)
class Gram:
    """One layer's Gram matrix K, K_ij = k(x_i, x_j), as centred features and the row sums of K.

    Features are scaled to a mean squared norm of 1 before they are rounded to float32, so that a layer of tiny or huge
    activations loses nothing; CKA does not see the scale.
    """

    features: Float[Tensor, "n p"]
    squared_norms: Float64[Tensor, "n"]
    row_sums: Float64[Tensor, "n"]
    width: float | None
    """s of the RBF kernel exp(-d^2 / (2 s^2)), in units of the scaled features; None for the linear kernel."""

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        return sum(t.nbytes for t in (self.features, self.squared_norms, self.row_sums))

    def kernel_tile(self, i: slice, j: slice) -> Float[Tensor, "rows columns"]:
        """K[i, j], not centred."""
        tile = self.features[i] @ self.features[j].T
        if self.width is None:
            return tile
        norms = self.squared_norms.to(tile.dtype)
        tile.mul_(-2).add_(norms[i, None]).add_(norms[None, j]).clamp_(min=0)  # squared distances
        if i == j:
            tile.fill_diagonal_(0)  # not the rounding error of g_i + g_i - 2 g_i
        return tile.mul_(-0.5 / self.width**2).exp_()

    def offsets(self, *, unbiased: bool) -> Float64[Tensor, "n"]:
        """o with centred K_ij = K_ij - o_i - o_j.

        Biased: double centring H K H. Unbiased: U-centring (Szekely & Rizzo 2014), which leaves the diagonal out.
        """
        n = len(self.row_sums)
        if not unbiased:
            return (self.row_sums - self.row_sums.mean() / 2) / n
        diagonal = self.squared_norms if self.width is None else torch.ones_like(self.row_sums)
        sums = self.row_sums - diagonal
        return (sums - sums.sum() / (2 * (n - 1))) / (n - 2)


@dataclass(frozen=True)
class CentredGram:
    """The recipe of a `Gram`: centre in float64, scale, and find the row sums (free for a linear kernel).

    ``bandwidth``: s^2 = bandwidth^2 x the median of the whole n x n matrix of squared distances, diagonal included, of
    this representation on its own (Kornblith et al. 2019, published code). ``sigma`` gives s itself instead.
    """

    kernel: Kernel = "linear"
    bandwidth: float | None = None
    sigma: float | None = None

    def __call__(self, x: Float[Tensor, "n p"]) -> Gram:
        """Prepare one layer."""
        wide = centre(x)
        squared_norms = wide.square().sum(1)
        scale = squared_norms.mean().sqrt()
        features = (wide / scale).to(x.dtype).to(x.device)
        squared_norms = squared_norms / scale**2
        if self.kernel == "linear":  # the rows of a centred linear kernel sum to 0
            return Gram(features, squared_norms, torch.zeros_like(squared_norms), None)
        plain = Gram(features, squared_norms, squared_norms, width=1.0)
        width = self.sigma / float(scale) if self.sigma is not None else self._fraction_of_median(features)
        kernel = Gram(features, squared_norms, squared_norms, width)
        n = len(squared_norms)
        sums = torch.zeros_like(plain.squared_norms)
        for i in blocks(n, 2048):
            for j in blocks(n, 2048):
                sums[i] += kernel.kernel_tile(i, j).sum(1, dtype=sums.dtype)
        return Gram(features, squared_norms, sums, width)

    def _fraction_of_median(self, features: Float[Tensor, "n p"]) -> float:
        """``bandwidth`` times the root of the median squared distance. Holds one n x n matrix while it looks."""
        squared = torch.cdist(features, features, compute_mode="donot_use_mm_for_euclid_dist").square_().flatten()
        middle = len(squared) // 2  # numpy's median: the mean of the two middle ones where their number is even
        low = squared.kthvalue(middle if len(squared) % 2 == 0 else middle + 1).values
        median = (low + squared.kthvalue(middle + 1).values) / 2
        if median <= 0:
            raise UndefinedValueError(
                "the median distance between samples is 0 (most are identical), so the RBF kernel has no width"
            )
        assert self.bandwidth is not None
        return self.bandwidth * float(median.sqrt())


def blocks(n: int, size: int) -> Iterator[slice]:
    """Cut range(n) into slices of at most ``size``.

    >>> list(blocks(5, 2))
    [slice(0, 2, None), slice(2, 4, None), slice(4, 5, None)]
    """
    for start in range(0, n, size):
        yield slice(start, min(start + size, n))
