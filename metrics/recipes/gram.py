"""Recipe of centred Gram matrices, which CKA and distance correlation compute tile by tile.

No n x n matrix is held. A `Gram` contains the centred features (n, p) and the row sums of its kernel, from which any
tile of the centred Gram matrix is computed. So exact values at large n take the memory of one tile per layer.
"""

import dataclasses
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar, Literal, Protocol, TypeVar, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor
from typing_extensions import override

from repsim.errors import InvalidInputError, UndefinedValueError
from repsim.labels import partition
from repsim.metrics.recipes.base import Factor, MomentFactor, Recipe, StreamingRecipe
from repsim.metrics.recipes.cost import Cost, LayerSize, Memory
from repsim.metrics.recipes.groups import Groups
from repsim.metrics.recipes.rows import (
    Centred,
    Rows,
    column_means,
    column_totals,
    cut,
    float64_device,
    in_memory,
    map_pieces,
    pieces,
)
from repsim.runtime import tuning

Kernel = Literal["linear", "rbf", "distance"]
_ONE_MATRIX = 8192
"""Largest number of samples for which a whole centred Gram matrix is made, for a chance level."""
_ORDINARY = 2.0**16
"""Largest centred value of a layer, and inverse of the smallest one, for which products of float32 need no scale."""
_SUMMED = 128
"""Samples that are summed in the dtype of the features, before the sums are added in float64."""
_FAR = 2.0**-10
"""Samples whose median squared norm is below this share of the mean lose half of the digits of float32."""
NEAR = 2.0**-12
"""Squared distances below this lose digits in float32, for samples with squared norms of 1 on average.

They are differences of two numbers of that size, and their roots are needed. Computed again in float64, the
distances of duplicates have errors of 1e-8 instead of 1e-5.
"""


class KernelMatrix(ABC):
    """Kernel matrix between n samples, complete or in blocks along its diagonal, with its centring."""

    @property
    @abstractmethod
    def n(self) -> int:
        """Number of samples: rows of the complete matrix."""

    @property
    @abstractmethod
    def p(self) -> int:
        """Features from which a tile is computed; 0 if tiles are stored."""

    @property
    @abstractmethod
    def block(self) -> int:
        """Samples of one block: n if the matrix is complete."""

    @property
    @abstractmethod
    def dtype(self) -> torch.dtype:
        """Dtype of a tile."""

    @property
    @abstractmethod
    def device(self) -> torch.device:
        """Device of a tile."""

    @property
    @abstractmethod
    def eps(self) -> float:
        """Relative rounding error of an entry."""

    @abstractmethod
    def rows(self, i: slice) -> Float[Tensor, "rows columns"]:
        """Return the data for tiles with these rows, or columns; read once, it serves many tiles."""

    @abstractmethod
    def tile(self, x: Tensor, y: Tensor, i: slice, j: slice, out: Float[Tensor, "i j"]) -> None:
        """Write rows i and columns j, not centred, into ``out``; x and y are `rows` of i and of j."""

    @abstractmethod
    def offsets(self, *, unbiased: bool) -> Float64[Tensor, "blocks b"]:
        """Return the vector o of every block, such that the centred matrix is K_ij - o_i - o_j.

        Biased: double centring H K H. Unbiased: U-centring (Szekely & Rizzo 2014), which leaves the diagonal out, or,
        for samples in groups, all pairs within a group (`Groups`).
        """

    @property
    def groups(self) -> Groups | None:
        """Groups of samples whose pairs do not count after U-centring; None if all samples are independent."""
        return None

    @property
    def in_memory(self) -> bool:
        """Whether `rows` are in memory, and not read from a file."""
        return True

    @property
    def draws(self) -> tuple["KernelMatrix", ...]:
        """Independent estimates of the matrix; an exact matrix is its only estimate."""
        return (self,)


@runtime_checkable
class Kernels(Factor, Protocol):
    """Kernel matrix of one layer: exact, or in several independent estimates."""

    @property
    def draws(self) -> Sequence[KernelMatrix]:
        """The estimates."""


K_co = TypeVar("K_co", bound=Kernels, covariant=True)


def common_groups(draws: Sequence[KernelMatrix]) -> Groups | None:
    """Return the groups of samples of all kernel matrices; raise `InvalidInputError` if they differ."""
    first = draws[0].groups
    for draw in draws:
        if draw.groups is not first and (
            draw.groups is None or first is None or not torch.equal(draw.groups.numbers, first.numbers)
        ):
            raise InvalidInputError("the samples of these layers are in different groups; use the same groups for all")
    return first


class KernelRecipe(Recipe[K_co]):
    """Recipe for Gram space."""

    draws: ClassVar[int] = 1
    """Number of independent estimates of the matrix in the factor."""
    stored: ClassVar[bool] = False
    """Whether the entries are stored, and tiles are not computed from features."""

    @abstractmethod
    def block(self, n: int) -> int:
        """Return the samples of one block, of n; n if the matrix is complete."""

    def entry_cost(self) -> Cost:
        """Return the cost of one entry of the matrix, beyond the product of two samples; none for a linear kernel."""
        return Cost()


def offsets(
    row_sums: Float64[Tensor, "*blocks b"], diagonal: Float64[Tensor, "*blocks b"], *, unbiased: bool
) -> Float64[Tensor, "*blocks b"]:
    """Return `KernelMatrix.offsets` from the row sums and the diagonal of each block."""
    n = row_sums.shape[-1]
    if not unbiased:
        return (row_sums - _sum(row_sums) / (2 * n)) / n
    sums = row_sums - diagonal
    return (sums - _sum(sums) / (2 * (n - 1))) / (n - 2)


def _sum(values: Float64[Tensor, "*blocks b"]) -> Float64[Tensor, "*blocks 1"]:
    """Return the sum of each row, from parts that torch does not divide among threads: that changes the last bits."""
    return torch.stack([part.sum(-1, keepdim=True) for part in values.split(2**14, -1)]).sum(0)


@dataclass(frozen=True, eq=False)
class Gram(KernelMatrix, MomentFactor):
    """Gram matrix of one layer, as centred features and the row sums of the kernel.

    The linear kernel is x_i'x_j. The RBF kernel is held as exp(-d_ij^2 / (2 s^2)) - 1: centring removes the 1, and
    without it a wide kernel, with all values close to 1, keeps its digits. The distance kernel is -d_ij.

    Features are divided by a power of two such that their mean squared norm is between 1/4 and 1, so that squares of
    tiny or huge activations neither underflow nor overflow; cosines do not depend on the scale. Minibatches of a linear
    kernel keep their scale if their values are neither tiny nor huge.
    """

    features: Rows
    """(n, p): a tensor, or rows that are read from the store on demand."""
    squared_norms: Float64[Tensor, " n"]
    """Squared norms of the rounded features."""
    row_sums: Float64[Tensor, " n"]
    """Row sums of the block that each sample is in."""
    kernel: Kernel = "linear"
    width: float | None = None
    """s of the RBF kernel, in units of the scaled features."""
    size: int | None = None
    """Samples of a minibatch, if the matrix is cut into minibatches."""
    source_dtype: torch.dtype | None = None
    """Dtype of the layer, if the features have a wider one."""
    groups: Groups | None = None
    """Groups of samples that are not independent; set by `grouped`."""
    sums_within: Float64[Tensor, " n"] | None = None
    """Sum of each row of the kernel over the sample's own group, itself included; None without groups."""

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        held = (self.features, self.squared_norms, self.row_sums, self.sums_within)
        return sum(t.nbytes for t in held if isinstance(t, Tensor))

    @property
    def n(self) -> int:
        """Samples."""
        return self.features.shape[0]

    @property
    def p(self) -> int:
        """Features."""
        return self.features.shape[1]

    @property
    def in_memory(self) -> bool:
        """Whether the features are in memory."""
        return isinstance(self.features, Tensor)

    @cached_property
    def uneven(self) -> bool:
        """Whether one sample has more than a tenth of the variance of the layer.

        Then almost all of ||X'Y||^2 may be the product of that sample with itself, which debiasing subtracts.
        """
        return bool(self.squared_norms.max() > 0.1 * self.squared_norms.sum())

    @property
    def block(self) -> int:
        """Samples of a minibatch, or all samples."""
        return self.n if self.size is None else self.size

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the features."""
        return self.features.dtype

    @property
    def device(self) -> torch.device:
        """Device of the features."""
        return self.features.device

    @property
    def eps(self) -> float:
        """Rounding error of the dtype of the layer; float64 does not restore the digits that float32 lost."""
        return torch.finfo(self.dtype if self.source_dtype is None else self.source_dtype).eps

    def rows(self, i: slice) -> Float[Tensor, "rows p"]:
        """Return the features of these samples."""
        return self.features[i]

    def tile(self, x: Tensor, y: Tensor, i: slice, j: slice, out: Float[Tensor, "i j"]) -> None:
        """Write the kernel of rows i and columns j into ``out``, from the features."""
        if out.dtype != self.dtype:  # another layer has another precision
            out.copy_(self._kernel(x @ y.T, x, y, i, j))
        else:
            self._kernel(torch.mm(x, y.T, out=out), x, y, i, j)

    def _kernel(self, products: Tensor, x: Tensor, y: Tensor, i: slice, j: slice) -> Tensor:
        """Replace the inner products of x and y, the features of rows i and columns j, by the kernel."""
        if self.kernel == "linear":
            return products
        return self._of_distances(self._squared_distances(products, x, y, i, j, near=self._near))

    def _of_distances(self, squared: Tensor) -> Tensor:
        """Replace squared distances by the kernel."""
        if self.kernel == "distance":
            return squared.sqrt_().neg_()
        assert self.width is not None
        return squared.mul_(-0.5 / self.width**2).expm1_()

    @property
    def _near(self) -> float:
        return NEAR if self.kernel == "distance" else 0.0

    def _squared_distances(
        self, products: Tensor, x: Tensor, y: Tensor, i: slice, j: slice, *, near: float
    ) -> Float[Tensor, "i j"]:
        """Replace inner products by d_ij^2 = g_i + g_j - 2 x_i'x_j, clamped at 0, and 0 on the diagonal.

        A float32 tile with squared distances below ``near`` is computed again in float64. A float64 tile has twice as
        many digits: only its pairs below ``near`` squared are computed again, from differences.
        """
        squared = self._from_products(products, i, j)
        if near and i == j:
            squared.fill_diagonal_(math.inf)
        if near and products.dtype == torch.float64:
            rows, columns = (squared < near**2).nonzero(as_tuple=True)
            for pairs in cut(len(rows), max(1, 2**20 // x.shape[1])):
                r, c = rows[pairs], columns[pairs]
                squared[r, c] = (x[r] - y[c]).square().sum(1)
        elif near and bool(squared.amin() < near):
            place = float64_device(self.device)
            squared.copy_(self._from_products(x.to(place, torch.float64) @ y.to(place, torch.float64).T, i, j))
        squared.clamp_(min=0)
        return squared.fill_diagonal_(0) if i == j else squared

    def _from_products(self, products: Tensor, i: slice, j: slice) -> Tensor:
        norms = self.squared_norms[i].to(products), self.squared_norms[j].to(products)
        return products.mul_(-2).add_(norms[0][:, None]).add_(norms[1])

    def squared_distances(self, panel: int = 2048, *, near: float = 0.0) -> Iterator[tuple[slice, slice, Tensor]]:
        """Yield the tiles of the upper triangle; each must be used before the next one is requested.

        Distances below ``near`` have the precision of float64 products of the features (`_squared_distances`).
        """
        for i in cut(self.n, panel):
            x = self.features[i]
            for j in cut(self.n, panel):
                if j.start < i.start:
                    continue
                y = x if i == j else self.features[j]
                yield i, j, self._squared_distances(x @ y.T, x, y, i, j, near=near)

    def sum_rows(self) -> Float64[Tensor, " n"]:
        """Return the row sums of a complete kernel that is not linear."""
        sums = torch.zeros_like(self.squared_norms)
        for i, j, squared in self.squared_distances(near=self._near):
            tile = self._of_distances(squared).to(sums.device)
            sums[i] += tile.sum(1, dtype=sums.dtype)
            if i != j:
                sums[j] += tile.sum(0, dtype=sums.dtype)
        return sums

    def centred(self) -> Float64[Tensor, "n n"]:
        """Return H K H as one matrix in float64, for a single layer with small n."""
        x = self.features[:].to(float64_device(self.device), torch.float64)
        everything = slice(0, self.n)
        K = self._kernel(x @ x.T, x, x, everything, everything)
        return K - K.mean(0) - K.mean(1, keepdim=True) + K.mean()

    @cached_property
    def concentration(self) -> float | None:
        """tr(HKH) / ||HKH||_F, the root of the participation ratio; None for a layer too large for one matrix."""
        if self.n > _ONE_MATRIX or self.n * self.features.shape[1] > _ONE_MATRIX**2:
            return None
        K = self.centred()
        return float(K.trace() / torch.linalg.matrix_norm(K))

    def offsets(self, *, unbiased: bool) -> Float64[Tensor, "blocks b"]:
        """Compute the offsets from the row sums; the diagonal is 0 for the RBF kernel, as it is held here, and for
        distances.
        """
        if unbiased and self.groups is not None:
            assert self.sums_within is not None, "set together with the groups"
            return self.groups.solve(self.row_sums - self.sums_within)[None]
        diagonal = self.squared_norms if self.kernel == "linear" else torch.zeros_like(self.squared_norms)
        blocks = (t.view(-1, self.block) for t in (self.row_sums, diagonal))
        return offsets(*blocks, unbiased=unbiased)

    def grouped(self, groups: Groups | None) -> "Gram":
        """Return the same kernel of samples in groups: pairs within a group do not count after U-centring.

        Reads the layer once. Groups of single samples are no groups.

        Raises
        ------
        InvalidInputError
            If there are fewer than 4 groups, one has half of the samples or more, or the kernel is cut into
            minibatches.
        """
        if groups is None or groups.trivial:
            return dataclasses.replace(self, groups=None, sums_within=None)
        if self.block != self.n:
            raise InvalidInputError("minibatches have no estimator for samples in groups; take estimator=debiased")
        if groups.n != self.n:
            raise InvalidInputError(f"{groups.n} groups for {self.n} samples: give the group of every sample")
        groups.check()
        within = torch.empty_like(self.squared_norms)
        for samples in whole_groups(groups, tuning.current().run):
            part = self.select(samples)
            within[samples.to(within.device)] = part.sums_of(groups.numbers[samples])
        return dataclasses.replace(self, groups=groups, sums_within=within)

    def select(self, samples: Tensor) -> "Gram":
        """Return the kernel of some samples in this order, in memory, with the centre, scale and width of all samples.

        Its row sums are 0, and it has no groups.
        """
        norms = self.squared_norms[samples.to(self.squared_norms.device)]
        features = self.features[samples.to(self.device)]
        return dataclasses.replace(
            self, features=features, squared_norms=norms, row_sums=torch.zeros_like(norms), groups=None,
            sums_within=None, size=None,
        )  # fmt: skip

    def sums_of(self, numbers: Int64[Tensor, " n"]) -> Float64[Tensor, " n"]:
        """Return the sum of each row of the kernel over the samples with the same number, itself included."""
        place = self.squared_norms.device
        sums = torch.zeros_like(self.squared_norms)
        numbers = numbers.to(place)
        if self.kernel == "linear":
            labels, numbers = numbers.unique(return_inverse=True)
            totals = torch.zeros(len(labels), self.p, dtype=torch.float64, device=place)
            for i in cut(self.n, tuning.current().run):
                totals.index_add_(0, numbers[i], self.features[i].to(totals))
            for i in cut(self.n, tuning.current().run):
                sums[i] = torch.linalg.vecdot(self.features[i].to(totals), totals[numbers[i]])
            return sums
        runs = list(cut(self.n, tuning.current().run))
        for i in runs:
            for j in runs:
                tile = torch.empty(i.stop - i.start, j.stop - j.start, dtype=self.dtype, device=self.device)
                self.tile(self.features[i], self.features[j], i, j, tile)
                alike = numbers[i, None] == numbers[j]
                sums[i] += tile.to(place).double().masked_fill_(~alike, 0).sum(1)
        return sums


def whole_groups(groups: Groups, size: int) -> Iterator[Int64[Tensor, " run"]]:
    """Yield all samples in runs of whole groups: of at most ``size`` samples, or of one larger group."""
    first = 0
    while first < groups.count:
        last = first + 1
        while last < groups.count and int(groups.starts[last + 1] - groups.starts[first]) <= size:
            last += 1
        yield groups.order[int(groups.starts[first]) : int(groups.starts[last])]
        first = last


@dataclass(frozen=True)
class GramState:
    """State from which a `Gram` is made of features; small, so that processes can exchange it."""

    mean: Float64[Tensor, " p"]
    scale: float
    squared_norms: Float64[Tensor, " n"]
    row_sums: Float64[Tensor, " in_blocks"]
    width: float | None
    dtype: torch.dtype
    """Dtype of the features: float64 if float32 would lose the differences between most samples."""
    rounded_mean: bool = False
    """Whether the mean is rounded before it is subtracted (`Centred`)."""


@dataclass(frozen=True)
class Reordered:
    """Samples of some rows in another order."""

    source: Rows
    order: Tensor

    @property
    def shape(self) -> tuple[int, int]:
        """Shape (samples in the order, p)."""
        return len(self.order), self.source.shape[1]

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the source."""
        return self.source.dtype

    @property
    def device(self) -> torch.device:
        """Device of the source."""
        return self.source.device

    def __getitem__(self, rows: "slice | Tensor") -> Tensor:
        return self.source[self.order[rows]]


@dataclass(frozen=True)
class CentredGram(KernelRecipe[Gram], StreamingRecipe[Gram]):
    """Recipe of a `Gram`: centre in float64, scale, and compute the row sums (zero for a linear kernel).

    ``bandwidth``: s^2 = bandwidth^2 x the median of the whole n x n matrix of squared distances, diagonal included, of
    this representation on its own (Kornblith et al. 2019, published code). ``sigma`` gives s itself instead. ``batch``
    cuts the samples into minibatches, a random partition that is the same for every layer and model.
    """

    kernel: Kernel = "linear"
    bandwidth: float | None = None
    sigma: float | None = None
    batch: int | None = None

    def block(self, n: int) -> int:
        """Return the samples of a minibatch, or n."""
        return self.batch or n

    @override
    def cost(self, layer: LayerSize) -> Cost:
        """Return the cost: none for a linear kernel; otherwise passes over the matrix for row sums and the median."""
        if self.kernel == "linear":
            return Cost()
        passes = 1 if self.bandwidth is None else 3  # two for the median, one for the row sums
        pairs = float(layer.n) * layer.n / 2
        cost = passes * pairs * (self.entry_cost() + Cost(flop32=2.0 * layer.p, touched=1)) + Cost(calls=300)
        if self.kernel == "distance" and layer.n <= _ONE_MATRIX and layer.n * layer.p <= _ONE_MATRIX**2:
            # for the chance level
            cost += pairs * Cost(flop64=4.0 * layer.p, touched=20)
        return cost

    @override
    def entry_cost(self) -> Cost:
        """Return the cost of a root or an exponential."""
        return Cost() if self.kernel == "linear" else Cost(touched=2)

    @override
    def memory(self, layer: LayerSize) -> Memory:
        """Return the memory of features, some numbers per sample, and tiles for row sums and the median."""
        workspace = 0
        if self.kernel != "linear" or self.batch:
            side = min(layer.n, self.batch or tuning.current().panel)
            workspace = 4 * (2 * side * layer.p + 6 * side**2)
        return Memory(layer.n * layer.p * layer.itemsize, state=32 * layer.n, workspace=workspace)

    def __call__(self, x: Rows) -> Gram:
        """Prepare one layer. One in memory is centred once, for the state and for the factor."""
        keep = isinstance(x, Tensor) and (self.batch is None or self.kernel == "linear")
        state, features = self._fit(x, keep=keep)
        return self._gram(x, state, features) if self.batch is None else self._cut(x, state, features)

    def fit(self, x: Rows) -> GramState:
        """Compute the state in passes over the layer and, unless the kernel is linear, over its Gram matrix."""
        state, _ = self._fit(x)
        return state if self.batch is None else dataclasses.replace(state, row_sums=self._cut(x, state).row_sums)

    def _fit(self, x: Rows, *, keep: bool = False) -> tuple[GramState, Tensor | None]:
        """Compute the state without the row sums of minibatches, and the features if they are to be kept."""
        centred, norms, features = self._ordinary(x, keep=keep) or self._any(x, keep=keep)
        scale = 1.0 if centred.rounded_mean else _power_of_two(float(norms.square().mean().sqrt()))
        squared_norms = (norms / scale).square()
        if features is not None and scale != 1:
            map_pieces(lambda i: features[i].mul_(1 / scale), features, zip(pieces(features)))
        zero = torch.zeros_like(squared_norms)
        centred = dataclasses.replace(centred, scale=centred.scale * scale)
        state = GramState(centred.mean, centred.scale, squared_norms, zero, None, centred.dtype, centred.rounded_mean)
        if self.kernel != "linear":
            gram = dataclasses.replace(self, batch=None)._gram(x, state, features)
            if self.kernel == "rbf":
                width = self.sigma / state.scale if self.sigma is not None else self._fraction_of_median(gram)
                gram, state = dataclasses.replace(gram, width=width), dataclasses.replace(state, width=width)
            if self.batch is None:
                state = dataclasses.replace(state, row_sums=gram.sum_rows())
        return state, features  # the rows of a centred linear kernel sum to 0

    def _ordinary(self, x: Rows, *, keep: bool) -> tuple[Centred, Float64[Tensor, " n"], Tensor | None] | None:
        """Centre a layer of ordinary numbers; return it with the norms, and with the samples if they are to be kept.

        Returns None if values may be tiny or huge, if the samples may be equal, or if a few of them are far from the
        others. All this shows in the norms, so that no extremes of the columns are needed.
        """
        if x.dtype == torch.float64:
            return None
        mean = column_totals(x) / x.shape[0]
        centred = Centred(x, mean, 1.0, torch.float32, rounded_mean=self._shift_is_centred(x))
        norms, features = self._centre(centred, keep=keep)
        # columns without variation give norms of one rounding error, eps |mean|, at most
        rounding = torch.finfo(x.dtype).eps * float(torch.linalg.vector_norm(mean))
        least = max(4 * rounding, math.sqrt(x.shape[1]) / _ORDINARY)  # then the largest value is above 1 / _ORDINARY
        usual = least <= float(norms.max()) <= _ORDINARY / 2  # never true of NaN
        return (centred, norms, features) if usual and not self._far_apart(norms) else None

    def _any(self, x: Rows, *, keep: bool) -> tuple[Centred, Float64[Tensor, " n"], Tensor | None]:
        """Do the same for any layer; raise `UndefinedValueError` if it is constant."""
        mean, peak = column_means(x)
        peak = _power_of_two(peak)  # the largest value is below it, so that no square overflows
        dtype = torch.promote_types(x.dtype, torch.float32)
        centred = Centred(x, mean, peak, dtype)
        if self._shift_is_centred(x) and 1 / _ORDINARY <= peak <= _ORDINARY:
            centred = Centred(x, mean, 1.0, dtype, rounded_mean=True)
        norms, features = self._centre(centred, keep=keep)
        if float64_device(x.device) == x.device and self._far_apart(norms):
            centred = Centred(x, mean, peak, torch.float64)
            norms, features = self._centre(centred, keep=keep)
        return centred, norms, features

    def _shift_is_centred(self, x: Rows) -> bool:
        """Return whether a shift of all samples changes nothing, so that the mean may be rounded.

        Row sums are computed of the minibatches of a linear kernel, so that centring removes a shift.
        """
        return self.kernel == "linear" and self.batch is not None and x.dtype in {torch.float32, torch.float64}

    def _centre(self, x: Centred, *, keep: bool) -> tuple[Float64[Tensor, " n"], Tensor | None]:
        """Return the norm of every sample after rounding, and, if they are to be kept, the samples in their order."""
        norms = torch.empty(x.shape[0], dtype=torch.float64, device=x.mean.device)
        features = torch.empty(tuple(x.shape), dtype=x.dtype, device=x.device) if keep else None
        if features is None or self.batch is None:
            x.write(slice(None), features, norms)
            return norms, features
        order = torch.from_numpy(partition(x.shape[0]))
        x.write(order.to(x.device), features, norms)
        return torch.empty_like(norms).index_copy_(0, order.to(norms.device), norms), features

    def _far_apart(self, norms: Float64[Tensor, " n"]) -> bool:
        """Return whether some samples are so far from the others that float32 loses the differences between the others.

        Either a single sample has more than a tenth of the variance (`Gram.uneven`), and centring and debiasing
        subtract numbers of that size; or the distances between most samples are far below the largest one.
        """
        squares = (norms / norms.max()).square()
        uneven = float(squares.max()) > 0.1 * float(squares.sum())
        return uneven or (self.kernel != "linear" and float(squares.median()) < _FAR * float(squares.mean()))

    def _cut(self, x: Rows, state: GramState, features: Tensor | None = None) -> Gram:
        """Cut the matrix into minibatches, with the row sums of each."""
        gram = self._gram(x, state, features)
        return dataclasses.replace(gram, row_sums=_block_row_sums(gram))

    def apply(self, x: Rows, state: GramState) -> Gram:
        """Make the factor: features in memory if x is; otherwise read from the store on demand."""
        return self._gram(x, state, None)

    def _gram(self, x: Rows, state: GramState, features: Tensor | None) -> Gram:
        """Make the factor; ``features`` are all samples in their order, if they are in memory already."""
        rows: Rows = features if features is not None else _centred(x, state)
        norms, row_sums = state.squared_norms, state.row_sums
        if self.batch is not None:
            order = self._order(x)
            norms, row_sums = norms[order.to(norms.device)], row_sums[: len(order)]
            rows = Reordered(rows, order.to(x.device)) if features is None else features[: len(order)]
        source_dtype = torch.promote_types(x.dtype, torch.float32)
        kept = in_memory(rows, source=x)
        return Gram(kept, norms, row_sums, self.kernel, state.width, self.batch, source_dtype)

    def with_gradient(self, x: Float[Tensor, "n p"], *, unbiased: bool) -> Float64[Tensor, "*blocks b b"]:
        """Return the centred Gram matrix, or those of the minibatches, with operations that autograd supports."""
        column_means(x.detach())  # raises for a constant layer
        x = (x - x.mean(0)).to(float64_device(x.device), torch.float64)
        K = x @ x.T
        if self.kernel == "distance":
            K = -distances(x)
        elif self.kernel == "rbf":
            squared = (K.diagonal()[:, None] + K.diagonal() - 2 * K).clamp(min=0)
            if self.sigma is not None:
                width: Tensor | float = self.sigma
            else:  # torch's median of an even number of values is the lower one of the two in the middle
                middle = squared.flatten().sort().values[[(x.shape[0] ** 2 - 1) // 2, x.shape[0] ** 2 // 2]]
                width = (self.bandwidth or 0.5) * middle.mean().sqrt()
            K = torch.exp(-squared / (2 * width**2))
        if self.batch is not None:
            order = self._order(x).to(K.device)
            K = torch.stack([K[part][:, part] for part in order.split(self.batch)])
        n = K.shape[-1]
        if unbiased:
            K = K - torch.diag_embed(K.diagonal(dim1=-2, dim2=-1))
        o = offsets(K.sum(-1), torch.zeros_like(K[..., 0]), unbiased=unbiased)
        centred = K - o[..., None] - o[..., None, :]
        return centred * (1 - torch.eye(n, dtype=K.dtype, device=K.device)) if unbiased else centred

    def _order(self, x: Rows) -> Tensor:
        """Return the indices of the samples, minibatch after minibatch; a shorter last one is left out."""
        assert self.batch is not None
        n = x.shape[0]
        return torch.from_numpy(partition(n)[: n // self.batch * self.batch])

    def _fraction_of_median(self, gram: Gram) -> float:
        """Return ``bandwidth`` times the root of the median squared distance.

        The sorted n x n matrix consists of n zeros and then of every distance of the strict upper triangle twice. As in
        numpy, the median of an even number of values is the mean of the two in the middle.
        """
        n = gram.n
        middle = {(n * n - 1) // 2, n * n // 2}
        ranks = [(place - n) // 2 for place in middle]

        def distances() -> Iterator[Float[Tensor, " values"]]:
            for i, j, tile in gram.squared_distances():
                yield tile[torch.ones_like(tile, dtype=torch.bool).triu_(1)] if i == j else tile.flatten()

        values = order_statistics(distances, n * (n - 1) // 2, ranks)
        median = sum(values) / len(values)
        if median <= 32 * torch.finfo(gram.dtype).eps:  # rounding errors, for a mean squared norm of 1
            raise UndefinedValueError(
                "the median distance between samples is 0 (most are identical), so the RBF kernel has no width; "
                "give the width itself: cka:kernel=rbf,sigma=..."
            )
        assert self.bandwidth is not None
        return self.bandwidth * math.sqrt(median)


def distances(x: Float64[Tensor, "n p"]) -> Float64[Tensor, "n n"]:
    """Return all Euclidean distances, with a gradient that is 0 where they are 0."""
    return torch.cdist(x, x, compute_mode="donot_use_mm_for_euclid_dist")


def _centred(x: Rows, state: GramState) -> Centred:
    """Return the features, which are computed when they are read."""
    return Centred(x, state.mean, state.scale, state.dtype, state.rounded_mean)


def _power_of_two(x: float) -> float:
    """Return the next power of two above x; dividing by it rounds nothing."""
    return math.ldexp(1.0, math.frexp(x)[1])


def _block_row_sums(gram: Gram) -> Float64[Tensor, " n"]:
    """Return the row sums of every block of a kernel; X (X'1) for a linear kernel, without the matrix.

    X'1 is only what the mean of the block differs from that of all samples, so that float32 has enough digits for it.
    """
    sums = torch.empty_like(gram.squared_norms)

    def of_block(i: slice) -> None:
        features = gram.rows(i)
        if gram.kernel == "linear":
            parts = (features[run].T @ features.new_ones(run.stop - run.start) for run in cut(len(features), _SUMMED))
            total = torch.stack([part.to(sums) for part in parts]).sum(0)
            sums[i] = (features @ total.to(features)).to(sums)
            return
        tile = torch.empty(gram.block, gram.block, dtype=gram.dtype, device=gram.device)
        gram.tile(features, features, i, i, tile)
        sums[i] = tile.to(sums.device).sum(1, dtype=sums.dtype)

    map_pieces(of_block, gram.features, zip(cut(gram.n, gram.block)))
    return sums


def order_statistics(
    pieces: Callable[[], Iterator[Float[Tensor, " values"]]], count: int, ranks: Sequence[int], hold: int = 2**22
) -> list[float]:
    """Return the values at ``ranks`` (from 0) of ``count`` sorted nonnegative values, holding at most ``hold`` at once.

    More values are searched by their bits, because nonnegative floats sort like their bits read as integers. Values are
    counted by their leading 16 bits, then those with the right leading bits by the next 16, and so on, with one pass
    over the pieces each time.

    >>> order_statistics(lambda: iter([torch.tensor([3.0, 0.5]), torch.tensor([2.0])]), 3, [0, 1])
    [0.5, 2.0]
    """
    if count <= hold:
        values = torch.cat(list(pieces())).cpu().numpy()
        return [float(value) for value in np.partition(values, ranks)[ranks]]
    first = next(pieces())
    integer = torch.int64 if first.dtype == torch.float64 else torch.int32
    positions = [(0, rank) for rank in ranks]  # leading bits, and the rank among the values that start with them
    for shift in range(8 * first.element_size() - 16, -1, -16):
        counts = {prefix: first.new_zeros(2**16, dtype=torch.int64) for prefix, _ in positions}
        for piece in pieces():
            bits = piece.view(integer) >> shift
            for prefix in counts:
                inside = bits - (prefix << 16)  # outside [0, 2^16) for other leading bits
                counts[prefix] += torch.bincount(inside[(inside >= 0) & (inside < 2**16)], minlength=2**16)
        positions = [_descend(counts[prefix], prefix, rank) for prefix, rank in positions]
    return [float(torch.tensor(prefix, dtype=integer).view(first.dtype)) for prefix, _ in positions]


def _descend(counts: Tensor, prefix: int, rank: int) -> tuple[int, int]:
    """Return the leading bits, 16 longer, of the value with this rank among those that start with ``prefix``."""
    up_to = counts.cumsum(0)
    digit = int(torch.searchsorted(up_to, rank, right=True))
    return (prefix << 16) + digit, rank - int(up_to[digit] - counts[digit])
