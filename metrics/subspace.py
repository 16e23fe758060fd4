"""One decomposition a layer: the principal directions that the whole CCA family is computed from."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from repsim.metrics.rows import Centred, Rows, column_means, cut, in_memory, pieces

_SQUARED_FROM = 512
"""From so many samples or features on, X'X (or XX') in float64 tells float32 activations from their own rounding."""
_PANEL = 2**24
"""Values of a panel of samples, where the n x n matrix XX' is made of pairs of them."""


@dataclass(frozen=True, eq=False)
class Subspace:
    """The thin, rank-revealing decomposition X = Q diag(s) V' of a centred layer, directions by falling variance.

    A truncation to the first k directions is a slice, so every SVCCA threshold shares one decomposition.
    """

    basis: Rows
    """Q (n, r): orthonormal columns; a tensor, or computed from the store whenever they are asked for."""
    singular_values: Float64[Tensor, " r"]
    total: float
    """Sum of (s_i / s_1)^2, of all directions that there are: more than those that are kept here, perhaps."""
    complete: bool
    """Whether all directions are kept."""
    loadings: Float64[Tensor, "r p"] | None = None
    """diag(s) V' = Q'X: how much of each feature each direction carries; where somebody asked for it."""

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        return sum(t.nbytes for t in (self.basis, self.singular_values, self.loadings) if isinstance(t, Tensor))

    @property
    def rank(self) -> int:
        """Number of directions that are kept."""
        return len(self.singular_values)

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

    def components(self, variance: float) -> int:
        """The smallest k with sum_{i<=k} s_i^2 >= variance sum s_i^2. Note the squares."""
        if variance == 1:  # all of it, however little the last direction adds
            assert self.complete, "the recipe was asked for fewer directions"
            return self.rank
        return leading(self.singular_values, self.total, variance)


def leading(s: Float64[Tensor, " r"], total: float, variance: float) -> int:
    """The smallest k with sum_{i<=k} (s_i / s_1)^2 >= variance x total."""
    explained = (s / s[0]).square().cumsum(0)
    return min(len(s), int((explained < variance * total).sum()) + 1)


@dataclass(frozen=True, eq=False)
class Projected:
    """A basis, as the centred activations times a matrix: computed in float64, then rounded to ``dtype``."""

    source: Centred
    weights: Float64[Tensor, "p r"]
    dtype: torch.dtype

    @property
    def shape(self) -> Sequence[int]:
        """(n, r)."""
        return self.source.shape[0], self.weights.shape[1]

    @property
    def device(self) -> torch.device:
        """Of the activations."""
        return self.source.device

    def __getitem__(self, rows: "slice | Tensor") -> Float[Tensor, "rows r"]:
        return (self.source.exact(rows) @ self.weights).to(self.device, self.dtype)


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


@dataclass(frozen=True)
class PrincipalSubspace:
    """The recipe of a `Subspace`: a decomposition in float64.

    Directions with s_i <= s_1 max(n, p) eps are dropped, eps being that of the dtype that came in: for float32
    activations such directions are rounding noise, and CCA would weigh them like any other. (Half precision is widened
    to float32 before it comes here, and its own, coarser noise is not cut off: for it, 1e-3 max(n, p) would be all.)

    Of float32 activations with 512 samples or features and more it is the eigenvalue decomposition of X'X or XX',
    whichever is smaller: squares lose what is below 1e-8 s_1, and the directions to keep are all above. Otherwise it is
    the singular value decomposition of X.

    ``variance`` says which directions are wanted: the fewest that explain so much; 1 for all. ``loadings`` asks
    for those, too.
    """

    variance: float = 1.0
    loadings: bool = False

    def covers(self, other: object) -> bool:
        """Whether the factor has everything that the other recipe's has."""
        return (
            isinstance(other, PrincipalSubspace) and self.variance >= other.variance and self.loadings >= other.loadings
        )

    def __call__(self, x: Rows) -> Subspace:
        """Prepare one layer."""
        return self.apply(x, self.fit(x))

    def fit(self, x: Rows) -> SubspaceState:
        """Decompose."""
        mean, peak = column_means(x)
        centred = Centred(x, mean, peak, torch.float64)  # in units of the largest value, so that no square overflows
        n, p = x.shape
        if x.dtype == torch.float64 or max(n, p) < _SQUARED_FROM:
            u, s, vh = torch.linalg.svd(centred.exact(slice(None)), full_matrices=False)
            kept, total, complete = self._kept(s, x)
            loadings = s[:kept, None] * vh[:kept] * peak if self.loadings else None
            return SubspaceState(mean, s[:kept] * peak, total, complete, u[:, :kept].contiguous(), None, loadings)
        if p <= n:
            values, vectors = torch.linalg.eigh(_covariance(centred))
            s, v = values.flip(0).clamp(min=0).sqrt(), vectors.flip(1)
            kept, total, complete = self._kept(s, x)
            weights = v[:, :kept] / (s[:kept] * peak)
            loadings = (v[:, :kept] * (s[:kept] * peak)).T.contiguous() if self.loadings else None
            return SubspaceState(mean, s[:kept] * peak, total, complete, None, weights, loadings)
        values, vectors = torch.linalg.eigh(_gram(centred))
        s, u = values.flip(0).clamp(min=0).sqrt(), vectors.flip(1)
        kept, total, complete = self._kept(s, x)
        basis = u[:, :kept].contiguous()
        loadings = _times(basis, centred) * peak if self.loadings else None
        return SubspaceState(mean, s[:kept] * peak, total, complete, basis.to(x.device, x.dtype), None, loadings)

    def apply(self, x: Rows, state: SubspaceState) -> Subspace:
        """Make the factor: a basis in memory if x is, computed from the store as it is needed if x is there."""
        basis: Rows
        if state.basis is not None:
            basis = state.basis
        else:
            assert state.weights is not None
            basis = in_memory(Projected(Centred(x, state.mean, 1.0, x.dtype), state.weights, x.dtype), made_of=x)
        return Subspace(basis, state.singular_values, state.total, state.complete, state.loadings)

    def _kept(self, s: Float64[Tensor, " m"], x: Rows) -> tuple[int, float, bool]:
        """How many directions to keep, the sum of (s_i / s_1)^2 of all, and whether all are kept."""
        rank = int((s > s[0] * max(x.shape) * torch.finfo(x.dtype).eps).sum())
        total = float((s[:rank] / s[0]).square().sum())
        kept = rank if self.variance == 1 else leading(s[:rank], total, self.variance)
        return kept, total, kept == rank


def _covariance(x: Centred, block: int = 512) -> Float64[Tensor, "p p"]:
    """X'X, of whose blocks only the upper triangle is computed."""
    n, p = x.shape
    total = torch.zeros(p, p, dtype=torch.float64, device=x.mean.device)
    for i in cut(n, max(block, _PANEL // p // 4)):
        rows = x.exact(i)
        for start in range(0, p, block):
            total[start : start + block, start:].addmm_(rows[:, start : start + block].T, rows[:, start:])
    return total.triu_().add_(total.triu(1).T)


def _gram(x: Centred) -> Float64[Tensor, "n n"]:
    """XX', of whose blocks only the upper triangle is computed."""
    n, p = x.shape
    total = torch.zeros(n, n, dtype=torch.float64, device=x.mean.device)
    panels = list(cut(n, max(1, _PANEL // p)))
    for k, i in enumerate(panels):
        rows = x.exact(i)
        for j in panels[k:]:
            total[i, j] = rows @ (rows if i == j else x.exact(j)).T
    return total.triu_().add_(total.triu(1).T)


def _times(basis: Float64[Tensor, "n r"], x: Centred) -> Float64[Tensor, "r p"]:
    """Q'X."""
    total = torch.zeros(basis.shape[1], x.shape[1], dtype=torch.float64, device=basis.device)
    for i in pieces(x):
        total.addmm_(basis[i].T, x.exact(i))
    return total
