"""Centred Gram matrices, given tile by tile: what every CKA is computed from.

No n x n matrix is ever held. A `Gram` keeps the centred features (n, p) and the row sums of its kernel, from which any
tile of the centred Gram matrix follows, so that exact values at large n take the memory of one tile a layer.
"""

import dataclasses
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Float64
from torch import Tensor

from repsim.errors import UndefinedValueError
from repsim.metrics.base import centre

Kernel = Literal["linear", "rbf"]


class KernelMatrix(ABC):
    """A kernel matrix between samples, whole or in blocks along its diagonal, and what centres it."""

    @property
    @abstractmethod
    def values(self) -> Tensor:
        """What tiles are computed from: its dtype and device are theirs."""

    @property
    @abstractmethod
    def eps(self) -> float:
        """The relative rounding error of an entry."""

    @abstractmethod
    def tiles(self, size: int) -> Iterator[tuple[slice, slice]]:
        """Rows and columns of the tiles that make the upper triangle, of sides of at most ``size``."""

    @abstractmethod
    def kernel_tile(self, i: slice, j: slice) -> Float[Tensor, "rows columns"]:
        """Rows i and columns j, not centred."""

    @abstractmethod
    def offsets(self, *, unbiased: bool) -> Float64[Tensor, "blocks b"]:
        """The vector o of every block with centred K_ij = K_ij - o_i - o_j.

        Biased: double centring H K H. Unbiased: U-centring (Szekely & Rizzo 2014), which leaves the diagonal out.
        """

    @property
    def draws(self) -> tuple["KernelMatrix", ...]:
        """The independent estimates of one matrix that there are: of an exact one, itself."""
        return (self,)


def offsets(
    row_sums: Float64[Tensor, "*blocks b"], diagonal: Float64[Tensor, "*blocks b"], *, unbiased: bool
) -> Float64[Tensor, "*blocks b"]:
    """What `KernelMatrix.offsets` gives, from the row sums and the diagonal of each block."""
    n = row_sums.shape[-1]
    if not unbiased:
        return (row_sums - row_sums.mean(-1, keepdim=True) / 2) / n
    sums = row_sums - diagonal
    return (sums - sums.sum(-1, keepdim=True) / (2 * (n - 1))) / (n - 2)


@dataclass(frozen=True, eq=False)
class Gram(KernelMatrix):
    """One layer's Gram matrix, as centred features and the row sums of the kernel.

    The linear kernel is x_i'x_j. The RBF kernel is held as exp(-d_ij^2 / (2 s^2)) - 1: no centring can tell the 1, and
    without it a wide kernel, all of whose values are close to 1, keeps its digits.

    Features are scaled to a mean squared norm of 1 before they are rounded to float32, so that a layer of tiny or huge
    activations loses nothing; CKA does not see the scale.
    """

    features: Float[Tensor, "n p"]
    squared_norms: Float64[Tensor, " n"]
    row_sums: Float64[Tensor, " n"]
    width: float | None
    """s of the RBF kernel, in units of the scaled features; None for the linear kernel."""

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        return sum(t.nbytes for t in (self.features, self.squared_norms, self.row_sums))

    @property
    def values(self) -> Tensor:
        """The features."""
        return self.features

    @property
    def eps(self) -> float:
        """Of the features' dtype."""
        return torch.finfo(self.features.dtype).eps

    def tiles(self, size: int) -> Iterator[tuple[slice, slice]]:
        """One block of all samples."""
        return triangle(len(self.features), size)

    def kernel_tile(self, i: slice, j: slice) -> Float[Tensor, "rows columns"]:
        """From the features."""
        if self.width is None:
            return self.features[i] @ self.features[j].T
        return self.squared_distances(i, j).mul_(-0.5 / self.width**2).expm1_()

    def squared_distances(self, i: slice, j: slice) -> Float[Tensor, "rows columns"]:
        """d_ij^2 = g_i + g_j - 2 x_i'x_j, never negative and 0 on the diagonal whatever rounding says."""
        tile = self.features[i] @ self.features[j].T
        norms = self.squared_norms.to(tile)
        tile.mul_(-2).add_(norms[i, None]).add_(norms[None, j]).clamp_(min=0)
        return tile.fill_diagonal_(0) if i == j else tile

    def offsets(self, *, unbiased: bool) -> Float64[Tensor, "1 n"]:
        """From the row sums; the diagonal of the RBF kernel, as it is held here, is 0."""
        diagonal = self.squared_norms if self.width is None else torch.zeros_like(self.squared_norms)
        return offsets(self.row_sums, diagonal, unbiased=unbiased)[None]


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
        peak = torch.maximum(wide.amax(), -wide.amin())  # first, so that no square overflows
        norms = torch.linalg.vector_norm(wide.div_(peak), dim=1)
        scale = norms.square().mean().sqrt()
        features = wide.div_(scale).to(torch.promote_types(x.dtype, torch.float32)).to(x.device)
        squared_norms = (norms / scale).square()
        nothing = torch.zeros_like(squared_norms)
        if self.kernel == "linear":  # the rows of a centred linear kernel sum to 0
            return Gram(features, squared_norms, nothing, width=None)
        gram = Gram(features, squared_norms, nothing, width=1.0)
        width = self.sigma / float(peak * scale) if self.sigma is not None else self._fraction_of_median(gram)
        gram = dataclasses.replace(gram, width=width)
        sums = nothing.clone()
        for i, j in triangle(len(sums)):
            tile = gram.kernel_tile(i, j).to(sums.device)
            sums[i] += tile.sum(1, dtype=sums.dtype)
            if i != j:
                sums[j] += tile.sum(0, dtype=sums.dtype)
        return dataclasses.replace(gram, row_sums=sums)

    def _fraction_of_median(self, gram: Gram) -> float:
        """``bandwidth`` times the root of the median squared distance.

        Sorted, the n x n matrix is n zeros and then every distance of the strict upper triangle twice. As numpy has it,
        the median of an even number of values is the mean of the two in the middle.
        """
        n = len(gram.row_sums)
        middle = {(n * n - 1) // 2, n * n // 2}
        ranks = [(place - n) // 2 for place in middle]

        def distances() -> Iterator[Float[Tensor, " values"]]:
            for i, j in triangle(n):
                tile = gram.squared_distances(i, j)
                yield tile[torch.ones_like(tile, dtype=torch.bool).triu_(1)] if i == j else tile.flatten()

        values = order_statistics(distances, n * (n - 1) // 2, ranks)
        median = sum(values) / len(values)
        if median <= 32 * torch.finfo(gram.features.dtype).eps:  # of a mean squared norm of 1: rounding errors
            raise UndefinedValueError(
                "the median distance between samples is 0 (most are identical), so the RBF kernel has no width; "
                "give the width itself: cka:kernel=rbf,sigma=..."
            )
        assert self.bandwidth is not None
        return self.bandwidth * math.sqrt(median)


def triangle(n: int, size: int = 512) -> Iterator[tuple[slice, slice]]:
    """Cut the upper triangle of an n x n matrix into tiles of equal sides, at most ``size``; diagonal tiles are whole.

    >>> [(i.start, i.stop, j.start, j.stop) for i, j in triangle(5, 3)]
    [(0, 2, 0, 2), (0, 2, 2, 5), (2, 5, 2, 5)]
    """
    steps = -(-n // size)
    cuts = [slice(n * k // steps, n * (k + 1) // steps) for k in range(steps)]
    for k, i in enumerate(cuts):
        for j in cuts[k:]:
            yield i, j


def order_statistics(
    pieces: Callable[[], Iterator[Float[Tensor, " values"]]], count: int, ranks: Sequence[int], hold: int = 2**22
) -> list[float]:
    """The values at ``ranks`` (from 0) of all ``count`` sorted, none negative, holding at most ``hold`` at once.

    Where there are more, they are found by their bits, which, read as integers, sort as floats >= 0 do: the values are
    counted by their leading 16 bits, then those that share the right ones by the next 16, and so on, one sweep over the
    pieces each time.

    >>> order_statistics(lambda: iter([torch.tensor([3.0, 0.5]), torch.tensor([2.0])]), 3, [0, 1])
    [0.5, 2.0]
    """
    if count <= hold:
        values = torch.cat(list(pieces())).cpu().numpy()
        return [float(value) for value in np.partition(values, ranks)[ranks]]
    first = next(pieces())
    integer = torch.int64 if first.dtype == torch.float64 else torch.int32
    found = [(0, rank) for rank in ranks]  # the leading bits, and the rank among the values that have them
    for shift in range(8 * first.element_size() - 16, -1, -16):
        counts = {prefix: first.new_zeros(2**16, dtype=torch.int64) for prefix, _ in found}
        for piece in pieces():
            bits = piece.view(integer) >> shift
            for prefix in counts:
                inside = bits - (prefix << 16)  # negative, or 2^16 and more, where the leading bits are others
                counts[prefix] += torch.bincount(inside[(inside >= 0) & (inside < 2**16)], minlength=2**16)
        found = [_descend(counts[prefix], prefix, rank) for prefix, rank in found]
    return [float(torch.tensor(prefix, dtype=integer).view(first.dtype)) for prefix, _ in found]


def _descend(counts: Tensor, prefix: int, rank: int) -> tuple[int, int]:
    """The leading bits, 16 longer, of the value with this rank among those that start with ``prefix``."""
    up_to = counts.cumsum(0)
    digit = int(torch.searchsorted(up_to, rank, right=True))
    return (prefix << 16) + digit, rank - int(up_to[digit] - counts[digit])
