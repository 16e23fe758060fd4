"""Compute the sums over a layer's Gram matrix that determine the third moment of debiased CKA under permutation.

The first two moments of debiased CKA under permutation of the samples are the same for all data (`CKA.chance`). The
third moment depends on these sums of both layers; `repsim.study.chance` combines them.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Float64
from torch import Tensor
from typing_extensions import override

from repsim.engine.preparation import map_layers
from repsim.engine.subsampling import centred
from repsim.errors import InvalidInputError
from repsim.metrics.algorithms.gram_space import GramSweep, tile_side
from repsim.metrics.cka import CKA
from repsim.metrics.recipes.gram import Gram
from repsim.metrics.recipes.rows import cut, float64_device
from repsim.runtime import tuning
from repsim.runtime.progress import Progress, counter, sharing

_CANCELLED = 1e-6
"""Below this share of ||B||^2, ||A||^2 has lost digits; above it, tr(A^3) is correct to 1e-7 ||A||^3."""
_AT_ONCE = 64
"""Layers after which progress is reported."""
_IN_THREADS = 2048
"""Largest Z'Z or A that is made beside others."""


@dataclass(frozen=True)
class CubicMoments:
    """Sums over the U-centred Gram matrix A (n x n) of one layer, in units of its scaled features (`Gram`).

    All three sums are NaN if A consists of rounding errors only.
    """

    n: int
    """Number of samples."""
    norm2: float
    """||A||^2 = sum_ij A_ij^2."""
    triangles: float
    """tr(A^3) = sum_ijk A_ij A_jk A_ki."""
    cubes: float
    """sum_ij A_ij^3."""


def cubic_moments(
    layers: Sequence[Gram],
    cubes: Float64[np.ndarray, " layers"] | None = None,
    row_squares: Float64[np.ndarray, "n layers"] | None = None,
    *,
    progress: Progress | None = None,
) -> list[CubicMoments]:
    """Compute ||A||^2, tr(A^3) and sum_ij A_ij^3 of every layer, where A is its U-centred Gram matrix.

    For a linear kernel, A = B + D, where B = XX' - m1' - 1m' with the offsets m of U-centring, and D = diag(d) removes
    the diagonal, d_i = -B_ii. B = Z S Z' with Z = [X, m, 1], where S is the identity except for the last two rows and
    columns, [[0, -1], [-1, 0]]. With G = Z'Z and q_i = ||B_i||^2 = z_i' S G S z_i,

        ||A||^2 = sum_i (q_i - d_i^2),
        tr(A^3) = tr((S G)^3) + 3 sum_i d_i q_i - 2 sum_i d_i^3,

    computed in float64 with O(n p^2) operations. (The last sum is 3 tr(B D^2) + tr(D^3), and 3 tr(B D^2) =
    -3 sum_i d_i^3.) The cubes have no such formula: they are summed over the tiles of the Gram matrices of all layers.
    No n x n matrix is stored, unless a layer has n - 2 or more features, its kernel is not linear, or a single sample
    has such a large norm that the differences above cancel; then A is computed and multiplied by itself.

    Parameters
    ----------
    layers : sequence of Gram
        Factors of `CKA` over the same n samples.
    cubes : array of shape (layers,), optional
        sum_ij A_ij^3 of each layer, if already computed (`repsim.engine.sample_sums`).
    row_squares : array of shape (n, layers), optional
        sum_j A_ij^2 of each layer, if already computed. Then the only product is Z'Z, in the dtype of the layer.
    progress : callable, optional
        Called with the number of steps done and the total number of steps.

    Returns
    -------
    list of CubicMoments
        One for each layer, in the order of ``layers``.

    Raises
    ------
    InvalidInputError
        If the Gram matrices are divided into minibatches.

    Examples
    --------
    >>> x = torch.tensor([[0.0], [1], [3], [-2], [-2]], dtype=torch.float64)
    >>> (sums,) = cubic_moments([CKA().recipe(x)])
    >>> round(sums.triangles / sums.norm2**1.5, 6), round(sums.cubes / sums.norm2**1.5, 6)
    (0.346138, 0.173069)
    """
    if any(layer.block != layer.n for layer in layers):
        raise InvalidInputError("these Gram matrices are divided into minibatches; give Gram matrices of all samples")
    if any(layer.groups is not None for layer in layers):
        raise InvalidInputError("the moments are those of permutations of single samples, and these are in groups")
    if not layers:
        return []
    sweep = _Cubes(layers)
    step = counter((sweep.units if cubes is None else 0) + len(layers), progress)
    if cubes is None:
        cubes = np.zeros(len(layers))
        for part in sweep.parts(sweep.order):
            cubes += part
            step()
    place = {id(layer): k for k, layer in enumerate(layers)}

    def norms_and_triangles(layer: Gram) -> tuple[float, float]:
        k = place[id(layer)]
        rows = None if row_squares is None else torch.from_numpy(np.ascontiguousarray(row_squares[:, k]))
        return (_is_narrow(layer) and _from_features(layer, rows)) or _from_gram_matrix(layer)

    moments = []
    for run in cut(len(layers), _AT_ONCE):
        with sharing(lambda: None):  # these are steps, and not parts of one
            values = map_layers(norms_and_triangles, layers[run], _IN_THREADS)
        for layer, (norm2, triangles), cube, noise in zip(
            layers[run], values, cubes[run], sweep.noise[run], strict=True
        ):
            sums = (norm2, triangles, float(cube)) if norm2 > noise else (math.nan,) * 3
            moments.append(CubicMoments(layer.n, *sums))
            step()
    return moments


class _Cubes(GramSweep):
    """Sum of the cubed entries of every layer's Gram matrix, where `GramSweep` sums the squares."""

    def __init__(self, layers: Sequence[Gram]) -> None:
        super().__init__(layers, [], [CKA()], panel=tuning.current().panel, tile=tile_side(len(layers), 4))

    @property
    def noise(self) -> Float64[np.ndarray, " layers"]:
        """Rounding error of ||A||^2 of every layer."""
        return self._noise(self.measures[0])

    @override
    def _collect(self, stack: Tensor, i: slice, j: slice, products: Tensor, squares: Tensor) -> None:
        rows = torch.linalg.vecdot(stack[0].square(), stack[0])
        squares += (1 if i == j else 2) * rows.to(squares.device).double().sum(1)


def _is_narrow(layer: Gram) -> bool:
    return layer.kernel == "linear" and layer.p + 2 < layer.n


def _from_features(layer: Gram, row_squares: Float64[Tensor, " n"] | None = None) -> tuple[float, float] | None:
    """Return ||A||^2 and tr(A^3) of a layer with fewer features than samples, without A; None if they cancel."""
    place = float64_device(layer.device)
    m = layer.offsets(unbiased=True).flatten().to(place)
    d = 2 * m - layer.squared_norms.to(place)
    exact = row_squares is None or layer.p < tuning.current().narrow  # few features: rounding errors do not average out

    def factor(i: slice) -> Float[Tensor, "rows p_and_2"]:
        x = layer.rows(i)
        x = x.to(place, torch.float64) if exact else x
        return torch.cat([x, m[i, None].to(x), torch.ones_like(x[:, :1])], 1)

    def times_S(z: Float[Tensor, "rows p_and_2"]) -> Float[Tensor, "rows p_and_2"]:  # noqa: N802
        """Return Z S."""
        return torch.cat([z[:, :-2], -z[:, -1:], -z[:, -2:-1]], 1)

    runs = list(cut(layer.n, tuning.current().panel))
    G = torch.zeros(layer.p + 2, layer.p + 2, dtype=torch.float64, device=place)
    for i in runs:
        z = factor(i)
        G.addmm_(z.T, z) if exact else G.add_((z.T @ z).to(place))
    if row_squares is None:
        q = torch.empty_like(m)
        for i in runs:
            z = times_S(factor(i))
            q[i] = torch.linalg.vecdot(z @ G, z)
    else:
        q = row_squares.to(place) + d.square()
    GS = times_S(G)
    norm2 = float((q - d.square()).sum())
    triangles = ((GS @ GS) * GS.T).sum() + 3 * (d @ q) - 2 * d.pow(3).sum()
    return (norm2, float(triangles)) if norm2 > _CANCELLED * float(q.sum()) else None


def _from_gram_matrix(layer: Gram) -> tuple[float, float]:
    """Return ||A||^2 and tr(A^3), computed from A."""
    A = centred(layer, torch.float64, unbiased=True)
    triangles = torch.stack([((A[i] @ A) * A[i]).sum() for i in cut(layer.n, tuning.current().panel)])
    return float(A.square().sum()), sum(triangles.tolist())
