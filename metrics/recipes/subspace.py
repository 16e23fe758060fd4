"""Recipe of the principal directions of a layer, for CCA, shape distances and regression."""

import dataclasses
import functools
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
from repsim.metrics.recipes.truncation import enough, leading
from repsim.runtime import tuning

_ROUNDINGS = 1024
"""Directions below so many rounding steps of the largest one are noise: see `_floor`."""
_SQUARED_PRECISION = 1e-5
"""Share of s_1 above which the eigenvalues of X'X give singular values with a relative error of 1e-6."""
_UNEQUAL = 8.0
"""Ratio of column sizes above which columns are treated as unequal."""
_LOST = 1e-9
"""Share of s_1 below which rounding errors of float64 hide even the smallest columns of float32."""
_TIE = 1e-8
"""Relative difference up to which values are tied; gradients divide by the difference."""


Directions = Callable[[Int64[Tensor, " k"]], Float64[Tensor, "k p"]]
"""Function that returns right singular vectors, of any length, by their indices."""


@dataclass(frozen=True, eq=False)
class Subspace(MomentFactor):
    """Thin, rank-revealing decomposition X = Q diag(s) V' of a layer, with directions of decreasing variance.

    The layer is centred, unless the recipe has ``centred=False``.

    A truncation to the first k directions is a slice, so every SVCCA threshold shares one decomposition.
    """

    basis: Rows
    """Q (n, r), with orthonormal columns: a tensor, or rows that are computed from the store on demand."""
    singular_values: Float64[Tensor, " r"]
    total: float
    """Sum of (s_i / s_1)^2 over all directions, perhaps more than those in this factor."""
    complete: bool
    """Whether all directions are kept."""
    features: int
    """Features of the layer, perhaps more than directions."""
    loadings: Float64[Tensor, "r p"] | None = None
    """diag(s) V' = Q'X: how much each direction contributes to each feature; None if the recipe does not compute it."""
    backward_error: float = 0.0
    """Error bound: this is the decomposition of X + E with ||E||_F <= ``backward_error`` x ||X||_F, up to rounding.
    0 if the decomposition is exact; `leading_by_krylov` derives the bound."""

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
        """Share of the kept variance in each direction."""
        squares = (self.singular_values / self.singular_values[0]).square()  # s itself might overflow
        return squares / squares.sum()

    @property
    def norm(self) -> Float64[Tensor, ""]:
        """||X||_F of the kept directions."""
        return self.singular_values[0] / self.shares[0].sqrt()

    @property
    def n(self) -> int:
        """Number of samples."""
        return self.basis.shape[0]

    @property
    def p(self) -> int:
        """Columns of the basis."""
        return self.rank

    @property
    def device(self) -> torch.device:
        """Device of the basis."""
        return self.basis.device

    @property
    def in_memory(self) -> bool:
        """Whether the basis is in memory."""
        return isinstance(self.basis, Tensor)

    def rows(self, i: slice) -> Float[Tensor, "rows r"]:
        """Return rows of the basis."""
        return self.basis[i]

    def permuted(self, order: Int64[Tensor, " n"]) -> "Subspace":
        """Return the subspace of the same layer with its samples in another order."""
        return dataclasses.replace(self, basis=self.basis[order.to(self.device)])

    def components(self, variance: float) -> int:
        """Return the smallest k with sum_{i<=k} s_i^2 >= variance sum s_i^2, and s_k > s_{k+1}. Note the squares.

        If singular values are equal at the cut, all of them are kept: which directions belong to some of them is not
        determined.
        """
        if variance == 1:  # all directions, also those that add less than rounding errors
            assert self.complete, "the recipe kept fewer directions"
            return self.rank
        return self._cut(variance)[1]

    def tied_at_cut(self, variance: float) -> int:
        """Return how many directions are kept only because they tie with the last one that the share requires."""
        least, kept = (0, 0) if variance == 1 else self._cut(variance)
        return kept - least

    def _cut(self, variance: float) -> tuple[int, int]:
        """Return the fewest directions that explain the share, and with those that tie; counted once for all pairs."""
        if variance not in self._cuts:
            k = leading(self.singular_values, self.total, variance)
            assert self.complete or k < self.rank or self._explains(variance), "the recipe kept fewer directions"
            self._cuts[variance] = enough(self.singular_values, self.total, variance), k
        return self._cuts[variance]

    @functools.cached_property
    def _cuts(self) -> dict[float, tuple[int, int]]:
        return {}

    def _explains(self, variance: float) -> bool:
        s = self.singular_values
        return float((s / s[0]).square().sum()) >= variance * self.total * (1 - 1e-12)  # the sum may round otherwise


def refuse_ties(values: Float64[Tensor, " r"], what: str) -> None:
    """Raise `UndefinedValueError` if two of the sorted values are so close that their directions have no gradient."""
    values = values.detach()
    if bool((values[:-1] - values[1:] <= _TIE * values[:-1]).any()):
        raise UndefinedValueError(f"two {what} are equal, so their directions, and the gradient, are not determined")


@dataclass(frozen=True, eq=False)
class Projected:
    """Basis, computed as centred activations times a matrix, plus ``bias``, in float64, then rounded to ``dtype``."""

    source: Centred
    weights: Float64[Tensor, "p r"]
    dtype: torch.dtype
    bias: Float64[Tensor, " r"] | None = None

    @property
    def shape(self) -> Sequence[int]:
        """Shape (n, r)."""
        return self.source.shape[0], self.weights.shape[1]

    @property
    def device(self) -> torch.device:
        """Device of the activations."""
        return self.source.device

    @property
    def nbytes(self) -> int:
        """Bytes held, without the activations."""
        return self.weights.nbytes + self.source.mean.nbytes

    def __getitem__(self, rows: "slice | Tensor") -> Float[Tensor, "rows r"]:
        size = max(1, tuning.current().slab // self.source.shape[1])  # callers know only the width of the basis
        parts: Sequence[slice | Tensor]
        if isinstance(rows, Tensor):
            parts = rows.split(size)
        else:
            start, stop, _ = rows.indices(self.source.shape[0])
            parts = list(cut(stop - start, size, start)) or [rows]
        blocks = [self._exact(part).to(self.device, self.dtype) for part in parts]
        return blocks[0] if len(blocks) == 1 else torch.cat(blocks)

    def _exact(self, rows: "slice | Tensor") -> Float64[Tensor, "rows r"]:
        product = self.source.exact(rows) @ self.weights
        return product if self.bias is None else product + self.bias


@dataclass(frozen=True, eq=False)
class SubspaceState:
    """State from which a `Subspace` is made; small, so that processes can exchange it.

    It contains either the basis itself, or the weights by which the centred activations are multiplied.
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
    """Vector that is added to the product with the weights."""


@dataclass(frozen=True)
class PrincipalSubspace(StreamingRecipe[Subspace], DifferentiableRecipe[Subspace]):
    """Recipe of a `Subspace`: a decomposition in float64, of the centred layer unless ``centred`` is False.

    Directions with s_i <= s_1 min(max(n, p), 1024) eps are dropped, where eps belongs to the dtype of the layer. For
    float32 activations such directions are rounding noise, and CCA would give them the same weight as any other. (Half
    precision is converted to float32 earlier, and its coarser noise is not removed, because its bound would drop almost
    everything.) But float32 rounds every column relative to its own size. So if columns are of unequal size, the bound
    for a direction depends on the columns that it combines (`_more_than_noise`), and small columns count.

    For float32 activations with 512 or more samples or features, the eigenvalue decomposition of X'X or XX' is used,
    whichever is smaller. It loses singular values below 1e-8 s_1, and all kept directions are above. Otherwise the
    singular value decomposition of X is used.

    If n and p are 8192 or more, only part of the variance is wanted, and no loadings, the leading eigenvectors are
    first computed in a Krylov space (`leading_by_krylov`). The result is the decomposition of some X + E with
    ||E||_F <= 2^-24 ||X||_F, the possible effect of rounding X to float32; `Subspace.backward_error` is the bound. A
    layer whose variance is spread over too many directions is decomposed exactly.

    Parameters
    ----------
    variance : float
        Keep the fewest directions that explain this share of the variance, in (0, 1], and those whose singular values
        are equal to the last; 1 keeps all.
    loadings : bool
        Whether to compute loadings.
    centred : bool
        Whether to centre the layer.
    """

    variance: float = 1.0
    loadings: bool = False
    centred: bool = True

    @override
    def covers(self, other: Recipe[Any]) -> bool:
        """Return whether this recipe keeps as much of the variance as the other, and its loadings."""
        return (
            isinstance(other, PrincipalSubspace)
            and self.centred == other.centred
            and self.variance >= other.variance
            and self.loadings >= other.loadings
        )

    @override
    def width(self, layer: LayerSize) -> int:
        """Return the rank of a generic layer."""
        return min(layer.n - self.centred, layer.p)

    @override
    def cost(self, layer: LayerSize) -> Cost:
        """Return the cost of X'X or XX', of its m = min(n, p) eigenvectors, and of a basis from those of X'X."""
        n, p, m = layer.n, layer.p, min(layer.n, layer.p)
        basis = 2.0 * n * p * m if p <= n else 0.0
        cost = Cost(flop64=1.0 * n * p * m + basis, touched=float(n * p), calls=300) + Cost.of_eigenvalues(m)
        return cost if self.centred else 2 * cost  # the constant direction is separated by a second decomposition

    @override
    def memory(self, layer: LayerSize) -> Memory:
        """Return the memory of the basis, of the state that stays, and of the matrix that is decomposed."""
        n, p, m = layer.n, layer.p, min(layer.n, layer.p)
        directions = 8 * p * m if p <= n else 4 * n * m
        if layer.itemsize == 8:  # for float64 activations the basis is kept
            directions = 8 * n * m
        return Memory(
            n * self.width(layer) * layer.itemsize,
            state=directions + (8 * m * p if self.loadings else 0),
            workspace=3 * 8 * m * m if layer.itemsize < 8 else 2 * 8 * (n + m) * p,
        )

    def fit(self, x: Rows) -> SubspaceState:
        """Decompose the layer, and return the state."""
        mean, peak = column_means(x)  # raises for a constant layer, centred or not
        if not self.centred:
            mean = torch.zeros_like(mean)
        centred = Centred(x, mean, peak, torch.float64)  # in units of the largest deviation: no square overflows
        n, p = x.shape
        if not self.centred and not self.loadings and x.dtype != torch.float64:
            return self._uncentred(x)
        if x.dtype == torch.float64 or max(n, p) < tuning.current().squared_from:
            values = centred.exact(slice(None))
            if self.centred:
                values -= values.mean(0)  # the rounding error of a large mean would be a direction
            u, s, vh = torch.linalg.svd(values, full_matrices=False)
            kept, total, complete = self._kept(s, x, peak, vh.__getitem__)
            s = s[kept]
            loadings = s[:, None] * vh[kept] * peak if self.loadings else None
            basis = _placed(u[:, kept].contiguous(), x)
            return SubspaceState(mean, s * peak, total, complete, basis, None, loadings)
        krylov = None
        if self.variance < 1 and not self.loadings and min(n, p) >= tuning.current().krylov_from:
            krylov = leading_by_krylov(centred, self.variance, _floor(x))
        if krylov is not None:
            s, vectors, total, complete, error = krylov.values.sqrt(), krylov.vectors, krylov.total, False, krylov.error
        else:
            products = covariance(centred) if p <= n else inner_products(centred)
            values, vectors = torch.linalg.eigh(products, UPLO="U")
            s, vectors, error = values.flip(0).clamp(min=0).sqrt(), vectors.flip(1), 0.0

            def directions(indices: Int64[Tensor, " k"]) -> Float64[Tensor, "k p"]:
                return vectors[:, indices].T if p <= n else project(vectors[:, indices].contiguous(), centred)

            kept, total, complete = self._kept(s, x, peak, directions)
            if p <= n and float(s[kept].min()) < _SQUARED_PRECISION * float(s[0]):
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
        """Decompose a layer with columns of very unequal size, from the upper triangle of X'X.

        With the norms D of the columns, the small directions of X D^-1 = Q S V', from (X D^-1)'(X D^-1), are only
        noise. X is then Q times the matrix S V' D, which is small enough for a singular value decomposition, A T W', so
        X = (QA) T W'.
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
        """Compute the span of the uncentred layer from that of the centred one, Q, so that a large mean costs no
        digits.

        With the mean m and the centred layer Q S V', the layer is [Q, 1 / sqrt(n)] [S V'; sqrt(n) m']. If m is not a
        combination of the rows of V', its span is that of [Q, 1]. Otherwise m = V a, and the span is the subspace of
        [Q, 1] that is orthogonal to Q w - 1 / sqrt(n), w_i = sqrt(n) a_i / s_i. A reflection maps this vector to the
        last direction, which is then left out.
        """
        state = dataclasses.replace(self, centred=True, variance=1.0, loadings=True).fit(x)
        assert state.loadings is not None
        n, p = x.shape
        mean, s = state.mean, state.singular_values
        _, largest = _column_sizes(x, 1.0)
        rows = state.loadings / s[:, None]
        a = rows @ mean
        rest = mean - rows.T @ a
        rest -= rows.T @ (rows @ rest)  # again, to restore the digits that cancelled
        size = torch.linalg.vector_norm(rest)
        inside = len(s) == p or float(size) <= _floor(x) * float((rest / size * largest).norm() if size > 0 else 1.0)
        reflection = torch.eye(len(s) + 1, dtype=torch.float64, device=s.device)
        if inside:
            w = torch.cat([math.sqrt(n) * a / s, -torch.ones_like(s[:1])])
            w = w / torch.linalg.vector_norm(w)
            w[-1] -= 1  # the last entry is negative, so nothing cancels
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
        """Prepare one layer with operations that autograd supports. Singular values have no gradient; the basis has
        one.

        If all directions are kept, only their span matters. The basis comes from a QR decomposition of XVS^-1 with V
        and S fixed, which has the same span and is already orthonormal, so the gradient has no small denominators. If
        only leading directions are kept, the gradient depends on the gaps between singular values, and
        `UndefinedValueError` is raised if singular values are equal.
        """
        values, peak = layer_with_gradient(x, centred=self.centred)
        _, s, vh = torch.linalg.svd(values.detach(), full_matrices=False)
        kept, total, complete = self._kept(s, x.detach(), peak, vh.__getitem__)
        real = _more_than_noise(s, x.detach(), peak, vh.__getitem__)
        rotated = values @ (vh[real].T / s[real])
        cut = self.variance < 1 and enough(s[real], total, self.variance) < len(real)
        if complete and not cut:
            basis = torch.linalg.qr(rotated)[0]
        else:
            refuse_ties(s[real], "singular values of the layer")
            basis = torch.linalg.svd(rotated * s[real], full_matrices=False)[0][:, : len(kept)]
        loadings = basis.T @ values * peak if self.loadings else None
        return Subspace(basis, s[kept] * peak, total, complete, x.shape[1], loadings)

    def apply(self, x: Rows, state: SubspaceState) -> Subspace:
        """Make the factor: a basis in memory if x is; otherwise computed from the store on demand."""
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
        """Return the indices of the kept directions, the sum of (s_i / s_1)^2 over all, and whether all are kept."""
        kept = _more_than_noise(s, x, unit, directions)
        total = float((s / s[0]).square().sum())
        count = len(kept) if self.variance == 1 else leading(s[kept], total, self.variance)
        return kept[:count], total, count == len(kept)


def layer_with_gradient(x: Float[Tensor, "n p"], *, centred: bool = True) -> tuple[Float64[Tensor, "n p"], float]:
    """Return one layer in float64 in a unit of its own, centred unless ``centred`` is False, and that unit.

    Raises `UndefinedValueError` for a constant layer.
    """
    _, peak = column_means(x.detach())
    values = x.to(float64_device(x.device), torch.float64) / peak
    if centred:
        values = values - values.mean(0)
        values = values - values.mean(0)  # as in `PrincipalSubspace.fit`
    return values, peak


def _floor(x: Rows) -> float:
    """Return the share of s_1 up to which singular values are rounding noise.

    For a matrix whose values are rounded at random, the noise is at most about eps s_1 for any size of the matrix: its
    norm grows with sqrt(n) + sqrt(p), and s_1 with at least sqrt(max(n, p)). Activations of networks have additional
    noise, from long sums in float32. So the usual worst-case bound, max(n, p) eps, is applied up to 1024.
    """
    return float(min(max(x.shape), _ROUNDINGS) * torch.finfo(x.dtype).eps)


def _more_than_noise(s: Float64[Tensor, " m"], x: Rows, unit: float, directions: Directions) -> Int64[Tensor, " r"]:
    """Return the directions that are more than noise, for decreasing singular values s in ``unit`` of x.

    A direction that is small because its columns are small is compared with the noise of those columns only. With c_j
    the size of a column, its bound is the bound for all directions times 8 sqrt(sum_j v_j^2 c_j^2) / max_j c_j, if this
    factor is less than 1. The direction must also exceed the rounding errors of the values of the layer: a mean, which
    is not in c_j, is rounded with them.
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


def _rounding(x: Rows, rows: Float64[Tensor, "k p"], largest: Float64[Tensor, " p"]) -> Float64[Tensor, " k"]:
    """Return the largest singular values that rounding of x can cause in these directions of norm 1."""
    step = torch.finfo(x.dtype).eps * (math.sqrt(x.shape[0]) + math.sqrt(x.shape[1]))
    sizes: Tensor = torch.linalg.vector_norm(rows * largest, dim=1)
    return step * sizes


def _column_sizes(x: Rows, unit: float) -> tuple[Float64[Tensor, " p"], Float64[Tensor, " p"]]:
    """Return the standard deviation of every column, and its largest absolute value."""
    mean, low, high = column_ranges(x)
    squares = torch.zeros_like(mean)
    centred = Centred(x, mean, unit, torch.float64)
    for i in pieces(x):
        squares += centred.exact(i).square().sum(0)
    return (squares / x.shape[0]).sqrt(), torch.maximum(high, -low) / unit


def _placed(basis: Float64[Tensor, "n r"], x: Rows) -> Float[Tensor, "n r"]:
    """Return the basis on the device of the layer, in float64 if the device supports it."""
    return basis if float64_device(x.device) == x.device else basis.to(x.device, x.dtype)
