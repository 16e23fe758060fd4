"""One decomposition a layer: the singular value decomposition that the whole CCA family is computed from."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from repsim.metrics.base import centre


@dataclass(frozen=True, eq=False)
class Subspace:
    """The thin, rank-revealing decomposition X = Q diag(s) V' of a centred layer, directions by falling variance.

    A truncation to the first k directions is a slice, so every SVCCA threshold shares one decomposition.
    """

    basis: Float64[Tensor, "n r"]
    """Q: orthonormal columns."""
    singular_values: Float64[Tensor, " r"]
    loadings: Float64[Tensor, "r p"]
    """diag(s) V' = Q'X: how much of each feature each direction carries."""

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        return sum(t.nbytes for t in (self.basis, self.singular_values, self.loadings))

    @property
    def rank(self) -> int:
        """Number of directions."""
        return len(self.singular_values)

    def components(self, variance: float) -> int:
        """The smallest k with sum_{i<=k} s_i^2 >= variance sum s_i^2. Note the squares."""
        if variance == 1:  # all of it, however little the last direction adds
            return self.rank
        explained = (self.singular_values / self.singular_values[0]).square().cumsum(0)
        return int((explained < variance * explained[-1]).sum()) + 1


@dataclass(frozen=True)
class PrincipalSubspace:
    """The recipe of a `Subspace`: a singular value decomposition in float64.

    Directions with s_i <= s_1 max(n, p) eps are dropped, eps being that of the dtype that came in: for float32
    activations such directions are rounding noise, and CCA would weigh them like any other. (Half precision is widened
    to float32 before it comes here, and its own, coarser noise is not cut off: for it, 1e-3 max(n, p) would be all.)
    """

    def __call__(self, x: Float[Tensor, "n p"]) -> Subspace:
        """Prepare one layer."""
        u, s, vh = torch.linalg.svd(centre(x), full_matrices=False)
        rank = int((s > s[0] * max(x.shape) * torch.finfo(x.dtype).eps).sum())
        return Subspace(u[:, :rank].contiguous(), s[:rank].clone(), s[:rank, None] * vh[:rank])
