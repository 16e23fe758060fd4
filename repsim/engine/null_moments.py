"""What of a layer's Gram matrix decides how its debiased CKA varies by chance: three sums over entries, once a layer.

The first two moments of debiased CKA under permutation of the samples are the same for all data (`CKA.chance`). The
third one needs these sums of both layers; `repsim.study.chance` puts them together.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float64
from torch import Tensor
from typing_extensions import override

from repsim.engine.subsampling import centred
from repsim.errors import InvalidInputError
from repsim.metrics.algorithms.gram_space import GramSweep, tile_side
from repsim.metrics.cka import CKA
from repsim.metrics.recipes.gram import Gram
from repsim.metrics.recipes.rows import cut, float64_device
from repsim.runtime import tuning
from repsim.runtime.progress import Progress, counter

_CANCELLED = 1e-6
"""||A||^2 that is less than this share of ||B||^2 has lost digits; tr(A^3) is right to 1e-7 ||A||^3 until there."""


@dataclass(frozen=True)
class CubicMoments:
    """Sums over the U-centred Gram matrix A (n x n) of one layer, in units of its scaled features (`Gram`).

    All three are NaN where nothing but rounding errors is left of A.
    """

    n: int
    norm2: float
    """||A||^2 = sum_ij A_ij^2."""
    triangles: float
    """tr(A^3) = sum_ijk A_ij A_jk A_ki."""
    cubes: float
    """sum_ij A_ij^3."""


def moments(
    layers: Sequence[Gram], cubes: Float64[np.ndarray, " layers"] | None = None, *, progress: Progress | None = None
) -> list[CubicMoments]:
    """||A||^2, tr(A^3) and sum_ij A_ij^3 of every layer, A being its U-centred Gram matrix.

    Of a linear kernel A = B + D, where B = XX' - m1' - 1m' has the offsets m of U-centring, and D = diag(d) takes away
    its diagonal, d_i = -B_ii. B = Z S Z' for Z = [X, m, 1], S being the identity but for a corner [[0, -1], [-1, 0]].
    So with G = Z'Z and q_i = ||B_i||^2 = z_i' S G S z_i

        ||A||^2 = sum_i (q_i - d_i^2),
        tr(A^3) = tr((S G)^3) + 3 sum_i d_i q_i - 2 sum_i d_i^3,

    in O(n p^2) and float64. (The last sum is 3 tr(B D^2) + tr(D^3), whose first half is -3 sum_i d_i^3.) The cubes have
    no formula: they are summed over the tiles of all layers' Gram matrices, as those pass by. Nothing n x n is held,
    unless there are as many features as samples, or the kernel is not linear, or one sample is all but nearly all of
    the layer, so that its product with itself drowns the rest: then A is made, and multiplied by itself.

    Parameters
    ----------
    layers
        Factors of `CKA`, over the same n samples.
    cubes
        sum_ij A_ij^3 of each, where a sweep has found them already.
    progress
        Called with the number of steps done, and of all.

    Returns
    -------
    list of CubicMoments
        One a layer, in their order.

    Raises
    ------
    InvalidInputError
        Gram matrices that are cut into minibatches.

    Examples
    --------
    >>> x = torch.tensor([[0.0], [1], [3], [-2], [-2]], dtype=torch.float64)
    >>> (found,) = moments([CKA().recipe(x)])
    >>> round(found.triangles / found.norm2**1.5, 6), round(found.cubes / found.norm2**1.5, 6)
    (0.346138, 0.173069)
    """
    if any(layer.block != layer.n for layer in layers):
        raise InvalidInputError("chance is that of all samples, but these Gram matrices are cut into minibatches")
    if not layers:
        return []
    sweep = _Cubes(layers)
    step = counter((sweep.units if cubes is None else 0) + len(layers), progress)
    if cubes is None:
        cubes = np.zeros(len(layers))
        for part in sweep.parts(sweep.order):
            cubes += part
            step()
    found = []
    for layer, cube, noise in zip(layers, cubes, sweep.noise, strict=True):
        norm2, triangles = (_narrow(layer) and _by_features(layer)) or _whole(layer)
        kept = (norm2, triangles, float(cube)) if norm2 > noise else (math.nan,) * 3
        found.append(CubicMoments(layer.n, *kept))
        step()
    return found


class _Cubes(GramSweep):
    """The sum of the cubes of every layer's entries, in the place where other sweeps have those of the squares."""

    def __init__(self, layers: Sequence[Gram]) -> None:
        super().__init__(layers, [], [CKA()], panel=tuning.current().panel, tile=tile_side(len(layers), 4))

    @property
    def noise(self) -> Float64[np.ndarray, " layers"]:
        """An ||A||^2 that is no larger is rounding errors."""
        return self._noise(self.measures[0])

    @override
    def _collect(self, stack: Tensor, i: slice, j: slice, products: Tensor, squares: Tensor) -> None:
        rows = torch.linalg.vecdot(stack[0].square(), stack[0])
        squares += (1 if i == j else 2) * rows.to(squares.device).double().sum(1)


def _narrow(layer: Gram) -> bool:
    return layer.kernel == "linear" and layer.p + 2 < layer.n


def _by_features(layer: Gram) -> tuple[float, float] | None:
    """||A||^2 and tr(A^3) of fewer features than samples, without A; None where the difference cancels."""
    place = float64_device(layer.device)
    m = layer.offsets(unbiased=True).flatten().to(place)
    d = 2 * m - layer.squared_norms.to(place)

    def factor(i: slice) -> Float64[Tensor, "rows p_and_2"]:
        x = layer.rows(i).to(place, torch.float64)
        return torch.cat([x, m[i, None], torch.ones_like(m[i, None])], 1)

    def turned(z: Float64[Tensor, "rows p_and_2"]) -> Float64[Tensor, "rows p_and_2"]:
        """Z S."""
        return torch.cat([z[:, :-2], -z[:, -1:], -z[:, -2:-1]], 1)

    runs = list(cut(layer.n, tuning.current().panel))
    G = torch.zeros(layer.p + 2, layer.p + 2, dtype=torch.float64, device=place)
    for i in runs:
        z = factor(i)
        G.addmm_(z.T, z)
    q = torch.empty_like(m)
    for i in runs:
        z = turned(factor(i))
        q[i] = torch.linalg.vecdot(z @ G, z)
    GS = turned(G)
    norm2 = float((q - d.square()).sum())
    triangles = ((GS @ GS) * GS.T).sum() + 3 * (d @ q) - 2 * d.pow(3).sum()
    return (norm2, float(triangles)) if norm2 > _CANCELLED * float(q.sum()) else None


def _whole(layer: Gram) -> tuple[float, float]:
    """||A||^2 and tr(A^3) from A."""
    A = centred(layer, torch.float64, unbiased=True)
    triangles = sum(float(((A[i] @ A) * A[i]).sum()) for i in cut(layer.n, tuning.current().panel))
    return float(A.square().sum()), triangles
