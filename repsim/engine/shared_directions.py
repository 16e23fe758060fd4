"""Truncate layers to their leading principal components: few features with nearly the same Gram matrix."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float64
from torch import Tensor

from repsim.errors import InvalidInputError
from repsim.metrics.recipes.gram import Gram
from repsim.metrics.recipes.products import covariance, inner_products
from repsim.metrics.recipes.rows import Centred, cut, float64_device

_RUN = 2048
"""Samples that are converted to float64 at once."""


def truncate(gram: Gram, share: float = 0.9999) -> Gram:
    """Truncate a layer to the fewest principal components that keep this share of ||K||^2 = sum_i s_i^4.

    s_i are the singular values of the centred layer X. The features become X V_r, or the equal U_r diag(s_1 ... s_r) if
    there are more features than samples. The result is a `Gram` as any other, which is much cheaper to permute: the
    cost of a permutation is proportional to the number of features.

    **Error bound.** Let c = (sum_{i<=r} s_i^4 / sum_i s_i^4)^(1/2), which is the biased CKA of a layer and its
    truncation. For the biased CKA of any two layers, |arccos CKA - arccos CKA_r| <= arccos c_X + arccos c_Y, because
    angles between Gram matrices satisfy the triangle inequality.

    Parameters
    ----------
    gram : Gram
        A linear kernel of all samples.
    share : float
        The share of sum_i s_i^4 to keep, in (0, 1]. Fourth powers decrease fast, so most layers keep few components.

    Returns
    -------
    Gram
        The truncated layer in the dtype of the layer. The components are computed in float64, from the eigenvectors of
        X'X or XX', whichever is smaller.

    Raises
    ------
    InvalidInputError
        If the kernel is not linear, is divided into minibatches, or ``share`` is outside (0, 1].

    Examples
    --------
    >>> from repsim.metrics.recipes.gram import CentredGram
    >>> x = torch.randn(100, 50, generator=torch.Generator().manual_seed(0)) / torch.arange(1, 51)
    >>> gram = CentredGram()(x)
    >>> truncate(gram).p, truncate(gram, share=0.9).p, truncate(gram, share=1.0).p
    (12, 1, 50)
    """
    if gram.kernel != "linear" or gram.block != gram.n:
        raise InvalidInputError("principal components are those of a linear kernel of all samples")
    if not 0 < share <= 1:
        raise InvalidInputError(f"share has to be above 0 and at most 1, got {share}")
    place = gram.squared_norms.device
    x = Centred(gram.features, torch.zeros(gram.p, dtype=torch.float64, device=place), 1.0, torch.float64)
    narrow = gram.p <= gram.n
    values, vectors = torch.linalg.eigh(covariance(x) if narrow else inner_products(x), UPLO="U")
    values, vectors = values.flip(0).clamp(min=0), vectors.flip(1)
    r = _components_to_keep(values, share)
    if narrow:
        features = torch.cat([x.exact(i) @ vectors[:, :r] for i in cut(gram.n, _RUN)])
    else:
        features = vectors[:, :r] * values[:r].sqrt()
    rounded = features.to(gram.device, gram.dtype)
    squared_norms = rounded.to(features).square().sum(1)
    return dataclasses.replace(gram, features=rounded, squared_norms=squared_norms).grouped(gram.groups)


@dataclass(frozen=True, eq=False)
class LowRankFeatures:
    """Features Q C that are linear combinations of a few directions Q, which several layers share (`Rows`)."""

    directions: Float64[Tensor, "n k"]
    """Q, with orthonormal columns; the same object for all layers that share it."""
    loadings: Float64[Tensor, "k r"]
    """C."""

    @property
    def shape(self) -> tuple[int, int]:
        """Shape (n, r) of the features."""
        return len(self.directions), self.loadings.shape[1]

    @property
    def dtype(self) -> torch.dtype:
        """Data type of the directions."""
        return self.directions.dtype

    @property
    def device(self) -> torch.device:
        """Device of the directions."""
        return self.directions.device

    def __getitem__(self, rows: slice | Tensor) -> Float64[Tensor, "rows r"]:
        return self.directions[rows] @ self.loadings


def truncate_jointly(grams: Sequence[Gram], share: float = 0.9999) -> list[Gram]:
    """Truncate several layers to leading components that are linear combinations of a few shared directions.

    Layers of one network, or of similar networks, have similar leading components, which span far fewer directions than
    there are components. Each layer is first truncated by `truncate`. Its components are then projected onto the k
    leading directions of all layers together, each layer scaled to ||K|| = 1. k is the smallest number with which every
    layer keeps ``share`` of the ||K||^2 that `truncate` has kept, and so at least ``share`` squared in all.

    Parameters
    ----------
    grams : sequence of Gram
        Linear kernels of all samples, over the same samples.
    share : float
        As in `truncate`.

    Returns
    -------
    list of Gram
        The truncated layers in float64, with features Q C (`LowRankFeatures`) that share one Q. `repsim.permuted`
        permutes only Q.

    Examples
    --------
    >>> from repsim.metrics.recipes.gram import CentredGram
    >>> x = torch.randn(100, 50, generator=torch.Generator().manual_seed(0)) / torch.arange(1, 51)
    >>> a, b = truncate_jointly([CentredGram()(x), CentredGram()(x[:, :8])])
    >>> a.features.directions is b.features.directions, a.features.directions.shape[1] < a.p + b.p
    (True, True)
    """
    truncated = [truncate(gram, share) for gram in grams]
    place = float64_device(truncated[0].device)
    features = [gram.features[:].to(place, torch.float64) for gram in truncated]
    features = [x / torch.linalg.matrix_norm(x.T @ x).sqrt() for x in features]
    X = torch.cat(features, 1)
    values, vectors = torch.linalg.eigh(X.T @ X if X.shape[1] <= len(X) else X @ X.T)
    values, vectors = values.flip(0), vectors.flip(1)
    rank = int((values > 1e-12 * values[0]).sum())
    Q = (X @ vectors[:, :rank]) / values[:rank].sqrt() if X.shape[1] <= len(X) else vectors[:, :rank]
    loadings = [Q.T @ x for x in features]

    def keeps_share(k: int) -> bool:
        return all(float(torch.linalg.matrix_norm(C[:k].T @ C[:k])) ** 2 >= share for C in loadings)

    low, high = 1, rank
    while low < high:  # bisection, because the share increases with k
        middle = (low + high) // 2
        low, high = (low, middle) if keeps_share(middle) else (middle + 1, high)
    directions = Q[:, :high].contiguous()
    layers = []
    for gram, C in zip(truncated, loadings, strict=True):
        low_rank = LowRankFeatures(directions, C[:high].contiguous())
        norms = torch.cat([low_rank[i].square().sum(1) for i in cut(gram.n, _RUN)]).to(gram.squared_norms)
        layers.append(dataclasses.replace(gram, features=low_rank, squared_norms=norms).grouped(gram.groups))
    return layers


def _components_to_keep(values: Float64[Tensor, " m"], share: float) -> int:
    """Return the smallest r with sum_{i<=r} s_i^4 >= share * sum_i s_i^4, for s_i^2 in decreasing order."""
    cumulative = values.square().cumsum(0)
    if share == 1:  # all nonzero components, even if the last ones do not change the rounded sum
        return max(1, int((values > 0).sum()))
    return int((cumulative < share * cumulative[-1]).sum()) + 1
