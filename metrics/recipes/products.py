"""Products X'X and XX' of a centred layer in float64, computed in slabs."""

from collections.abc import Iterator

import torch
from jaxtyping import Float64
from torch import Tensor

from repsim.metrics.recipes.rows import Centred, cut
from repsim.runtime import tuning


def column_pieces(x: Centred, rows: slice) -> Iterator[tuple[slice, Float64[Tensor, "rows columns"]]]:
    """Yield ranges of columns of these samples in float64; only one range at a time is held in float64."""
    held = x.source[rows].to(x.mean.device)
    for j in cut(x.shape[1], max(1, tuning.current().widened // len(held))):
        yield j, Centred(held[:, j], x.mean[j], x.scale, x.dtype).exact(slice(None))


def covariance(x: Centred, block: int = 512) -> Float64[Tensor, "p p"]:
    """Return X'X (p, p); only its upper triangle is valid."""
    n, p = x.shape
    total = torch.zeros(p, p, dtype=torch.float64, device=x.mean.device)
    for i in cut(n, max(block, tuning.current().slab // p)):
        rows = x.exact(i)
        for start in range(0, p, block):
            total[start : start + block, start:].addmm_(rows[:, start : start + block].T, rows[:, start:])
    return total


def inner_products(x: Centred, block: int = 512) -> Float64[Tensor, "n n"]:
    """Return XX' (n, n); only its upper triangle is valid."""
    n, p = x.shape
    total = torch.zeros(n, n, dtype=torch.float64, device=x.mean.device)
    panels = list(cut(n, max(1, min(block, tuning.current().product_panel // p))))
    for k, i in enumerate(panels):
        left = x.exact(i)
        total[i, i] = left @ left.T
        for other in panels[k + 1 :]:
            for j, right in column_pieces(x, other):
                total[i, other].addmm_(left[:, j], right.T)
    return total


def project(basis: Float64[Tensor, "n r"], x: Centred) -> Float64[Tensor, "r p"]:
    """Return Q'X (r, p)."""
    n, p = x.shape
    total = torch.zeros(basis.shape[1], p, dtype=torch.float64, device=basis.device)
    for i in cut(n, max(64, tuning.current().slab // p)):
        for j, piece in column_pieces(x, i):
            total[:, j].addmm_(basis[i].T, piece)
    return total
