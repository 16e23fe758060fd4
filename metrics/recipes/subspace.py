"""One decomposition a layer: the principal directions that CCA, shape distances and regression are computed from."""

import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor
from typing_extensions import override

from repsim.errors import UndefinedValueError
from repsim.metrics.recipes.base import DifferentiableRecipe, MomentFactor, Recipe, StreamingRecipe
from repsim.metrics.recipes.cost import Cost, LayerSize, Memory
from repsim.metrics.recipes.krylov import leading_by_krylov
from repsim.metrics.recipes.products import covariance, inner_products, project
from repsim.metrics.recipes.rows import (
    Centred,
    Rows,
    column_means,
    column_ranges,
    cut,
    float64_device,
    in_memory,
    pieces,
)
from repsim.runtime import tuning

_ROUNDINGS = 1024
"""Directions below so many roundings of the largest are noise: see `_floor`."""
_SQUARES_TELL = 1e-5
"""Singular values above this share of s_1 are known from the eigenvalues of X'X to 1e-6 of themselves."""
_UNEQUAL = 8.0
"""Columns are of unequal size where one is more than so many times as large as others."""
_LOST = 1e-9
"""Below this share of s_1 not even float32's smallest columns are told from rounding errors of float64."""
_TIE = 1e-8
"""Values that differ by no more than this share of themselves tie: gradients divide by the difference."""


Directions = Callable[[Int64[Tensor, " some"]], Float64[Tensor, "some p"]]
"""Gives right singular vectors, of any length, by their numbers."""


@dataclass(frozen=True, eq=False)
class Subspace(MomentFactor):
    """The thin, rank-revealing decomposition X = Q diag(s) V' of a layer, directions by falling variance.

    The layer is centred, unless the recipe was told otherwise.

    A truncation to the first k directions is a slice, so every SVCCA threshold shares one decomposition.
    """

    basis: Rows
    """Q (n, r): orthonormal columns; a tensor, or computed from the store whenever they are asked for."""
    singular_values: Float64[Tensor, " r"]
    total: float
    """Sum of (s_i / s_1)^2, of all directions that there are: more than those that are kept here, perhaps."""
    complete: bool
    """Whether all directions are kept."""
    features: int
    """Of the layer, which may be more than there are directions."""
    loadings: Float64[Tensor, "r p"] | None = None
    """diag(s) V' = Q'X: how much of each feature each direction carries; where somebody asked for it."""
    backward_error: float = 0.0
    """This is the decomposition of some X + E with ||E||_F <= ``backward_error`` x ||X||_F, but for float64's rounding.
    0 where the decomposition is exact; `leading_by_krylov` says how it is known."""

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        held = (self.basis, self.singular_values, self.loadings)
        return sum(t.nbytes for t in held if isinstance(t, Tensor | Projected))

    @property
    def rank(self) -> int:
        """Number of directions that are kept."""
        return len(self.singular_values)

    @property
    def shares(self) -> Float64[Tensor, " r"]:
        """Of the variance that is kept, in each direction."""
        squares = (self.singular_values / self.singular_values[0]).square()  # s itself might overflow
        return squares / squares.sum()

    @property
    def norm(self) -> Float64[Tensor, ""]:
        """||X||_F, of what is kept."""
        return self.singular_values[0] / self.shares[0].sqrt()

    @property
    def n(self) -> int:
        """Samples."""
        return self.basis.shape[0]

    @property
    def p(self) -> int:
        """Columns of the basis."""
        return self.rank

    @property
    def device(self) -> torch.device:
        """That of the basis."""
        return self.basis.device

    @property
    def in_memory(self) -> bool:
        """Whether the basis is."""
        return isinstance(self.basis, Tensor)

    def rows(self, i: slice) -> Float[Tensor, "rows r"]:
        """Of the basis."""
        return self.basis[i]

    def permuted(self, order: Int64[Tensor, " n"]) -> "Subspace":
        """That of the same layer with its samples in another order: the basis, permuted."""
        return dataclasses.replace(self, basis=self.basis[order.to(self.device)])

    def components(self, variance: float) -> int:
        """The smallest k with sum_{i<=k} s_i^2 >= variance sum s_i^2. Note the squares."""
        if variance == 1:  # all of it, however little the last direction adds
            assert self.complete, "the recipe was asked for fewer directions"
            return self.rank
        k = leading(self.singular_values, self.total, variance)
        assert self.complete or k < self.rank or self._explains(variance), "the recipe was asked for fewer directions"
        return k

    def _explains(self, variance: float) -> bool:
        s = self.singular_values
        return float((s / s[0]).square().sum()) >= variance * self.total * (1 - 1e-12)  # the sum may round otherwise


def refuse_ties(values: Float64[Tensor, " r"], what: str) -> None:
    """Of falling values: raise where two are so close that their directions have no gradient."""
    values = values.detach()
    if bool((values[:-1] - values[1:] <= _TIE * values[:-1]).any()):
        raise UndefinedValueError(f"two {what} are equal, so their directions, and the gradient, are not determined")


def leading(s: Float64[Tensor, " r"], total: float, variance: float) -> int:
    """The smallest k with sum_{i<=k} (s_i / s_1)^2 >= variance x total."""
    explained = (s / s[0]).square().cumsum(0)
    return min(len(s), int((explained < variance * total).sum()) + 1)


@dataclass(frozen=True, eq=False)
class Projected:
    """A basis: the centred activations times a matrix, plus ``bias``; in float64, then rounded to ``dtype``."""

    source: Centred
    weights: Float64[Tensor, "p r"]
    dtype: torch.dtype
    bias: Float64[Tensor, " r"] | None = None

    @property
    def shape(self) -> Sequence[int]:
        """(n, r)."""
        return self.source.shape[0], self.weights.shape[1]

    @property
    def device(self) -> torch.device:
        """Of the activations."""
        return self.source.device

    @property
    def nbytes(self) -> int:
        """Bytes held, but for the activations."""
        return self.weights.nbytes + self.source.mean.nbytes

    def __getitem__(self, rows: "slice | Tensor") -> Float[Tensor, "rows r"]:
        size = max(
            1, tuning.current().slab // self.source.shape[1]
        )  # whoever asks knows how wide the basis is, not how wide the layer
        parts: Sequence[slice | Tensor]
        if isinstance(rows, Tensor):
            parts = rows.split(size)
        else:
            start, stop, _ = rows.indices(self.source.shape[0])
            parts = list(cut(stop - start, size, start)) or [rows]
        made = [self._exact(part).to(self.device, self.dtype) for part in parts]
        return made[0] if len(made) == 1 else torch.cat(made)

    def _exact(self, rows: "slice | Tensor") -> Float64[Tensor, "rows r"]:
        product = self.source.exact(rows) @ self.weights
        return product if self.bias is None else product + self.bias


@dataclass(frozen=True, eq=False)
class SubspaceState:
    """What makes a `Subspace`, so that one process can tell it to another.

    Either the basis itself, or what the centred activations have to be multiplied with.
    """

    mean: Float64[Tensor, " p"]
    singular_values: Float64[Tensor, " r"]
    total: float
    complete: bool
    basis: Tensor | None
    weights: Float64[Tensor, "p r"] | None
    loadings: Float64[Tensor, "r p"] | None
    backward_error: float = 0.0
    bias: Float64[Tensor, " r"] | None = None
    """What is added to the product with the weights."""


@dataclass(frozen=True)
class PrincipalSubspace(StreamingRecipe[Subspace], DifferentiableRecipe[Subspace]):
    """The recipe of a `Subspace`: a decomposition in float64, of the layer as it is where it is not to be ``centred``.

    Directions with s_i <= s_1 min(max(n, p), 1024) eps are dropped, eps being that of the dtype that came in: for
    float32 activations such directions are rounding noise, and CCA would weigh them like any other. (Half precision is
    widened to float32 before it comes here, and its own, coarser noise is not cut off: so much of it would be all.)
    But float32 rounds every column relative to itself. So where columns are of unequal size, the bound for a direction
    is that of the columns that it is made of (`_more_than_noise`), and small columns count.

    Of float32 activations with 512 samples or features and more it is the eigenvalue decomposition of X'X or XX',
    whichever is smaller: squares lose what is below 1e-8 s_1, and the directions to keep are all above. Otherwise it is
    the singular value decomposition of X.

    Where n and p are 8192 or more and only part of the variance is wanted, and no loadings, the leading eigenvectors
    are looked for in a Krylov space first (`leading_by_krylov`). What it finds is the decomposition of some X + E with
    ||E||_F <= 2^-24 ||X||_F, as much as rounding X to float32 may do to it; `Subspace.backward_error` says how much.
    A layer whose variance is spread over too many directions for that is decomposed exactly.

    ``variance`` says which directions are wanted: the fewest that explain so much; 1 for all. ``loadings`` asks
    for those, too.
    """

    variance: float = 1.0
    loadings: bool = False
    centred: bool = True

    @override
    def covers(self, other: Recipe[Any]) -> bool:
        """One that keeps as much of the variance, and loadings where they are wanted."""
        return (
            isinstance(other, PrincipalSubspace)
            and self.centred == other.centred
            and self.variance >= other.variance
            and self.loadings >= other.loadings
        )

    @override
    def width(self, layer: LayerSize) -> int:
        """Rank of a generic layer."""
        return min(layer.n - self.centred, layer.p)

    @override
    def cost(self, layer: LayerSize) -> Cost:
        """X'X or XX', 9 m^3 for its eigenvectors, m = min(n, p), and a basis from those of X'X."""
        n, p, m = layer.n, layer.p, min(layer.n, layer.p)
        basis = 2.0 * n * p * m if p <= n else 0.0
        return Cost(flop64=1.0 * n * p * m + basis, decomposed=9.0 * m**3, touched=float(n * p))

    @override
    def memory(self, layer: LayerSize) -> Memory:
        """The basis; what it is computed with, which stays; and the matrix that is decomposed."""
        n, p, m = layer.n, layer.p, min(layer.n, layer.p)
        directions = 8 * p * m if p <= n else 4 * n * m
        if layer.itemsize == 8:  # of float64 activations the basis itself
            directions = 8 * n * m
        return Memory(
            n * self.width(layer) * layer.itemsize,
            state=directions + (8 * m * p if self.loadings else 0),
            workspace=3 * 8 * m * m if layer.itemsize < 8 else 2 * 8 * (n + m) * p,
        )

    def fit(self, x: Rows) -> SubspaceState:
        """Decompose."""
        mean, peak = column_means(x)  # refuses what is constant, centred or not
        if not self.centred:
            mean = torch.zeros_like(mean)
        centred = Centred(
            x, mean, peak, torch.float64
        )  # in units of the largest deviation, so that no square overflows
        n, p = x.shape
        if not self.centred and not self.loadings and x.dtype != torch.float64:
            return self._uncentred(x)
        if x.dtype == torch.float64 or max(n, p) < tuning.current().squared_from:
            values = centred.exact(slice(None))
            if self.centred:
                values -= values.mean(0)  # a large mean is rounded coarsely, and what it leaves would be a direction
            u, s, vh = torch.linalg.svd(values, full_matrices=False)
            kept, total, complete = self._kept(s, x, peak, vh.__getitem__)
            s = s[kept]
            loadings = s[:, None] * vh[kept] * peak if self.loadings else None
            basis = _placed(u[:, kept].contiguous(), x)
            return SubspaceState(mean, s * peak, total, complete, basis, None, loadings)
        found = None
        if self.variance < 1 and not self.loadings and min(n, p) >= tuning.current().krylov_from:
            found = leading_by_krylov(centred, self.variance, _floor(x))
        if found is not None:
            s, vectors, total, complete, error = found.values.sqrt(), found.vectors, found.total, False, found.error
        else:
            products = covariance(centred) if p <= n else inner_products(centred)
            values, vectors = torch.linalg.eigh(products, UPLO="U")
            s, vectors, error = values.flip(0).clamp(min=0).sqrt(), vectors.flip(1), 0.0

            def directions(some: Int64[Tensor, " some"]) -> Float64[Tensor, "some p"]:
                return vectors[:, some].T if p <= n else project(vectors[:, some].contiguous(), centred)

            kept, total, complete = self._kept(s, x, peak, directions)
            if p <= n and float(s[kept].min()) < _SQUARES_TELL * float(s[0]):
                return self._equilibrated(x, mean, peak, products)
            s, vectors = s[kept], vectors[:, kept]
        if p <= n:
            loadings = (vectors * (s * peak)).T.contiguous() if self.loadings else None
            return SubspaceState(mean, s * peak, total, complete, None, vectors / (s * peak), loadings, error)
        loadings = project(vectors.contiguous(), centred) * peak if self.loadings else None
        basis = vectors.contiguous().to(x.device, x.dtype)
        return SubspaceState(mean, s * peak, total, complete, basis, None, loadings, error)

    def _equilibrated(
        self, x: Rows, mean: Float64[Tensor, " p"], peak: float, products: Float64[Tensor, "p p"]
    ) -> SubspaceState:
        """Decompose a layer whose columns are of very unequal size, from the upper triangle of X'X.

        With the columns' norms D, X D^-1 = Q S V', from (X D^-1)'(X D^-1), has no small directions but noise. X is then
        Q times the matrix S V' D, which is small enough for a singular value decomposition, A T W': so X = (QA) T W'.
        """
        products = products.triu() + products.triu(1).T
        sizes, largest = _column_sizes(x, peak)
        sizes = torch.where(sizes > 0, sizes, 1)
        values, vectors = torch.linalg.eigh(products / (sizes[:, None] * sizes))
        s = values.clamp(min=0).sqrt()
        kept = s > torch.maximum(s.max() * _floor(x), _rounding(x, vectors.T, largest / sizes))
        s, vectors = s[kept], vectors[:, kept]
        left, t, right = torch.linalg.svd(s[:, None] * vectors.T * sizes, full_matrices=False)
        total = float((t / t[0]).square().sum())
        count = len(t) if self.variance == 1 else leading(t, total, self.variance)
        weights = (vectors / sizes[:, None] / s) @ left[:, :count] / peak
        loadings = t[:count, None] * right[:count] * peak if self.loadings else None
        return SubspaceState(mean, t[:count] * peak, total, count == len(t), None, weights, loadings)

    def _uncentred(self, x: Rows) -> SubspaceState:
        """The span of a layer that is not centred, from that of the centred one, Q: a large mean costs no digits.

        With the mean m and the centred layer Q S V', the layer is [Q, 1 / sqrt(n)] [S V'; sqrt(n) m']. If m is no
        combination of the rows of V', its span is that of [Q, 1]. Otherwise, m = V a, it is what in that span is
        orthogonal to Q w - 1 / sqrt(n), w_i = sqrt(n) a_i / s_i: a reflection moves that onto the last direction, which
        is left out.
        """
        state = dataclasses.replace(self, centred=True, variance=1.0, loadings=True).fit(x)
        assert state.loadings is not None
        n, p = x.shape
        mean, s = state.mean, state.singular_values
        _, largest = _column_sizes(x, 1.0)
        rows = state.loadings / s[:, None]
        a = rows @ mean
        rest = mean - rows.T @ a
        rest -= rows.T @ (rows @ rest)  # once more, for the digits that cancelled
        size = torch.linalg.vector_norm(rest)
        inside = len(s) == p or float(size) <= _floor(x) * float((rest / size * largest).norm() if size > 0 else 1.0)
        reflection = torch.eye(len(s) + 1, dtype=torch.float64, device=s.device)
        if inside:
            w = torch.cat([math.sqrt(n) * a / s, -torch.ones_like(s[:1])])
            w = w / torch.linalg.vector_norm(w)
            w[-1] -= 1  # the last entry is negative, so that nothing cancels
            w = w / torch.linalg.vector_norm(w)
            reflection -= 2 * w[:, None] * w
            reflection = reflection[:, :-1]
        products = torch.cat([s[:, None] * rows, math.sqrt(n) * mean[None]])
        values = torch.linalg.eigvalsh(products @ products.T).flip(0)[: reflection.shape[1]].clamp(min=0).sqrt()
        total = float((values / values[0]).square().sum())
        ones = reflection[-1:] / math.sqrt(n)
        if state.basis is not None:
            basis = state.basis.to(reflection) @ reflection[:-1] + ones
            return SubspaceState(mean, values, total, True, basis.to(state.basis.device, state.basis.dtype), None, None)
        assert state.weights is not None
        return SubspaceState(mean, values, total, True, None, state.weights @ reflection[:-1], None, bias=ones[0])

    def with_gradient(self, x: Float[Tensor, "n p"]) -> Subspace:
        """Prepare one layer by operations that autograd knows. Singular values have no gradient, the basis has.

        Where all directions are kept, only what they span counts: the basis is that of a QR decomposition of XVS^-1, V
        and S held fixed, which spans the same and is orthonormal already, so that the gradient divides by nothing. The
        leading directions are less: they depend on the gaps between singular values, and where there are none
        `UndefinedValueError` is raised.
        """
        whole, peak = layer_with_gradient(x, centred=self.centred)
        _, s, vh = torch.linalg.svd(whole.detach(), full_matrices=False)
        kept, total, complete = self._kept(s, x.detach(), peak, vh.__getitem__)
        every = _more_than_noise(s, x.detach(), peak, vh.__getitem__)
        turned = whole @ (vh[every].T / s[every])
        if complete:
            basis = torch.linalg.qr(turned)[0]
        else:
            refuse_ties(s[every], "singular values of the layer")
            basis = torch.linalg.svd(turned * s[every], full_matrices=False)[0][:, : len(kept)]
        loadings = basis.T @ whole * peak if self.loadings else None
        return Subspace(basis, s[kept] * peak, total, complete, x.shape[1], loadings)

    def apply(self, x: Rows, state: SubspaceState) -> Subspace:
        """Make the factor: a basis in memory if x is, computed from the store as it is needed if x is there."""
        basis: Rows
        if state.basis is not None:
            basis = state.basis
        else:
            assert state.weights is not None
            source = Centred(x, state.mean, 1.0, x.dtype)
            basis = in_memory(Projected(source, state.weights, x.dtype, state.bias), source=x)
        return Subspace(
            basis, state.singular_values, state.total, state.complete, x.shape[1], state.loadings, state.backward_error
        )

    def _kept(
        self, s: Float64[Tensor, " m"], x: Rows, unit: float, directions: Directions
    ) -> tuple[Int64[Tensor, " r"], float, bool]:
        """Which directions to keep, the sum of (s_i / s_1)^2 of all, and whether all are kept."""
        kept = _more_than_noise(s, x, unit, directions)
        total = float((s / s[0]).square().sum())
        count = len(kept) if self.variance == 1 else leading(s[kept], total, self.variance)
        return kept[:count], total, count == len(kept)


def layer_with_gradient(x: Float[Tensor, "n p"], *, centred: bool = True) -> tuple[Float64[Tensor, "n p"], float]:
    """One layer in float64, minus its means unless that is not asked for, in a unit of its own; and that unit.

    Refuses what is constant.
    """
    _, peak = column_means(x.detach())
    whole = x.to(float64_device(x.device), torch.float64) / peak
    if centred:
        whole = whole - whole.mean(0)
        whole = whole - whole.mean(0)  # as in `PrincipalSubspace.fit`
    return whole, peak


def _floor(x: Rows) -> float:
    """What is no larger than this share of s_1 is rounding noise.

    Of a matrix whose values are rounded at random, the noise is at most about eps s_1, however large the matrix: its
    norm grows with sqrt(n) + sqrt(p), and s_1 with at least sqrt(max(n, p)). What networks compute has noise of its
    own, from their long sums in float32. So the usual max(n, p) eps, a bound for the worst case, holds up to 1024.
    """
    return float(min(max(x.shape), _ROUNDINGS) * torch.finfo(x.dtype).eps)


def _more_than_noise(s: Float64[Tensor, " m"], x: Rows, unit: float, directions: Directions) -> Int64[Tensor, " r"]:
    """Find the directions that are more than noise, of falling singular values s in ``unit`` of x.

    A direction that is small because its columns are is held against noise of those columns alone. With c_j the size
    of a column that is the bound for all directions times 8 sqrt(sum_j v_j^2 c_j^2) / max_j c_j, if this is less than
    1. It has to be larger than the rounding of numbers as large as those that came in, too: a mean, which is not in
    c_j, is rounded with them.
    """
    certain = s > s[0] * _floor(x)
    doubtful = (~certain & (s > _LOST * s[0])).nonzero()[:, 0]
    if x.dtype == torch.float64 or not len(doubtful):
        return certain.nonzero()[:, 0]
    rows = directions(doubtful)
    rows = rows / torch.linalg.vector_norm(rows, dim=1, keepdim=True)
    sizes, largest = _column_sizes(x, unit)
    shares = torch.linalg.vector_norm(rows * sizes, dim=1) / sizes.max()
    noise = s[0] * _floor(x) * (_UNEQUAL * shares).clamp(max=1)
    real = s[doubtful] > torch.maximum(noise, _rounding(x, rows, largest))
    return torch.cat([certain.nonzero()[:, 0], doubtful[real]])


def _rounding(x: Rows, rows: Float64[Tensor, "some p"], largest: Float64[Tensor, " p"]) -> Float64[Tensor, " some"]:
    """Singular values that the rounding of x can have in these directions, of unit length."""
    step = torch.finfo(x.dtype).eps * (math.sqrt(x.shape[0]) + math.sqrt(x.shape[1]))
    sizes: Tensor = torch.linalg.vector_norm(rows * largest, dim=1)
    return step * sizes


def _column_sizes(x: Rows, unit: float) -> tuple[Float64[Tensor, " p"], Float64[Tensor, " p"]]:
    """The standard deviation of every column, and its largest absolute value."""
    mean, low, high = column_ranges(x)
    squares = torch.zeros_like(mean)
    centred = Centred(x, mean, unit, torch.float64)
    for i in pieces(x):
        squares += centred.exact(i).square().sum(0)
    return (squares / x.shape[0]).sqrt(), torch.maximum(high, -low) / unit


def _placed(basis: Float64[Tensor, "n r"], x: Rows) -> Float[Tensor, "n r"]:
    """On the layer's device, in float64 where it has that."""
    return basis if float64_device(x.device) == x.device else basis.to(x.device, x.dtype)
