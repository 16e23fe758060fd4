"""Block Krylov iteration for the leading singular vectors of layers that are too large for a full decomposition."""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float64
from torch import Tensor

from repsim.metrics.recipes.products import column_pieces
from repsim.metrics.recipes.rows import Centred, cut, pieces
from repsim.metrics.recipes.truncation import with_ties
from repsim.runtime import tuning

_SHARE = 4
"""The Krylov space is limited to min(n, p) / 4 columns; beyond, the exact matrix product is as cheap."""


@dataclass(frozen=True, eq=False)
class Leading:
    """Leading eigenvalues s_i^2 and eigenvectors of X'X or XX', whichever is smaller, for centred X."""

    values: Float64[Tensor, " k"]
    vectors: Float64[Tensor, "m k"]
    total: float
    """||X||_F^2 / s_1^2, over all directions."""
    error: float
    """Backward error: see `leading_by_krylov`."""


def leading_by_krylov(x: Centred, variance: float, floor: float) -> Leading | None:
    """Find the fewest directions that explain ``variance`` of a layer, in a randomised block Krylov space.

    Let C = XX' (n x n) if n < p; otherwise exchange X and X'. From b random columns W the space span(CW, C^2 W, ...)
    grows by b columns per step, each made orthogonal to all earlier ones (twice), until the leading eigenpairs
    (s_i^2, u_i) of C restricted to it have converged. A step reads the layer twice, a run of samples at a time (once if
    n >= p), and X is never held in memory; the space is held twice, with p x b numbers. The random columns are always
    the same.

    **Certificate.** Let U (n x k) be the Ritz vectors: U'U = I and U'CU = S^2. Put V = X'US^-1. Then V'V = I, and
    X'U = VS exactly. The residual of the other equation is R = XV - US = (CU - US^2) S^-1, and it is computed in this
    form, from CU. Because U'R = (S^2 - S^2) S^-1 = 0, E = -RV' gives (X + E)V = US and (X + E)'U = VS - VR'U = VS:
    every (s_i, u_i, v_i) is an exact singular triplet of X + E, and ||E||_F = ||R||_F [1]. It is accepted if
    ||R||_F <= 2^-24 ||X||_F, the possible effect of rounding every value of X to float32.

    **Number of directions.** The explained variance is compared with ||X||_F^2, which is computed exactly. More
    directions are never needed, because Ritz values are at most the true ones (Cauchy interlacing). Fewer might be
    enough. By Mirsky's theorem [2], (sum_{i<j} sigma_i^2)^(1/2), over the true singular values, is at most
    (sum_{i<j} s_i^2)^(1/2) + ||R||_F. The iteration continues until this bound excludes fewer directions.

    The certificate does not show that the triplets are the leading ones, that is, that no larger one was missed. For
    random columns that are independent of the layer this holds with a probability very close to 1 [3, 4], except if
    singular values repeat exactly more than b times.

    Parameters
    ----------
    x : Centred
        Layer of shape (n, p).
    variance : float
        Share of the variance to explain, in (0, 1).
    floor : float
        Smallest accepted singular value, as a share of the largest.

    Returns
    -------
    Leading or None
        None if the space would have to grow beyond min(n, p) / 4 columns, where this method is not cheaper.

    References
    ----------
    [1] Kahan, Parlett, Jiang. Residual bounds on approximate eigensystems of nonnormal matrices. SIAM J. Numer. Anal.
    1982.
    [2] Mirsky. Symmetric gauge functions and unitarily invariant norms. Quart. J. Math. 1960.
    [3] Halko, Martinsson, Tropp. Finding structure with randomness. SIAM Review 2011.
    [4] Musco, Musco. Randomized block Krylov methods for stronger and faster approximate singular value decomposition.
    NeurIPS 2015.
    """
    m, place = min(x.shape), x.mean.device
    limit = m // _SHARE
    total = sum(torch.stack([x.exact(i).square().sum() for i in pieces(x)]).tolist())
    target, norm = variance * total, math.sqrt(total)
    start = torch.randn(
        m, min(tuning.current().krylov_block, limit), dtype=torch.float64, generator=torch.Generator().manual_seed(0)
    )
    new = torch.linalg.qr(_product(x, start.to(place)))[0]
    space = torch.empty(m, 0, dtype=torch.float64, device=place)
    images, small = space, torch.empty(0, 0, dtype=torch.float64, device=place)
    while (size := space.shape[1] + new.shape[1]) <= limit:
        image = _product(x, new)
        space, images = torch.cat([space, new], 1), torch.cat([images, image], 1)
        side = space.T @ image
        small = torch.cat([torch.cat([small, side[: len(small)].T]), side], 1)
        values, vectors = (array.flip(-1) for array in torch.linalg.eigh(small, UPLO="U"))
        explained = values.cumsum(0)
        if explained[-1] >= target:
            k = int((explained < target).sum()) + 1
            kept = with_ties(values.clamp(min=0).sqrt(), k)
            ends = kept < size  # otherwise later values may be equal, too
            vectors, values = vectors[:, :kept], values[:kept]
            residual = (images @ vectors).addcmul_(space @ vectors, values, value=-1).div_(values.sqrt())
            error = float(residual.square().sum().sqrt())
            fewer = math.sqrt(float(explained[k - 2])) if k > 1 else 0.0
            if (
                ends
                and error <= tuning.current().krylov_error * norm
                and (fewer + error) ** 2 < target
                and values[-1] > values[0] * floor**2
            ):
                return Leading(values, space @ vectors, total / float(values[0]), error / norm)
        elif explained[-1] + (limit - size) * values[-1] < target:  # out of reach: later values are smaller
            return None
        new = image
        for _ in range(2):  # the first orthogonalisation loses digits, the second restores them
            new = torch.linalg.qr(new - space @ (space.T @ new))[0]
    return None


def _product(x: Centred, block: Float64[Tensor, "m b"]) -> Float64[Tensor, "m b"]:
    """Return XX' times the block if n < p, and X'X times the block otherwise."""
    n, p = x.shape
    if p <= n:
        total = torch.zeros_like(block)
        for i in cut(n, max(1, tuning.current().slab // p)):
            rows = x.exact(i)
            total.addmm_(rows.T, rows @ block)
        return total
    back = torch.zeros(p, block.shape[1], dtype=torch.float64, device=block.device)
    total = torch.zeros_like(block)
    slabs = list(cut(n, max(64, tuning.current().slab // p)))
    for i in slabs:
        for j, piece in column_pieces(x, i):
            back[j].addmm_(piece.T, block[i])
    for i in slabs:
        for j, piece in column_pieces(x, i):
            total[i].addmm_(piece, back[j])
    return total
