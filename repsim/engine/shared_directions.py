"""A layer cut to its leading principal components: few features with nearly the same Gram matrix."""

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
"""Samples that are widened to float64 at once."""


def leading(gram: Gram, share: float = 0.9999) -> Gram:
    """Cut a layer to the fewest principal components that carry this share of ||K||^2 = sum_i s_i^4.

    Its features become X V_r (U_r diag(s_1 ... s_r), which is the same, where there are more features than samples), so
    that it is a Gram matrix like any other, and everything works with it: permutations above all, whose price is that
    of the features.

    **Certificate.** With c = (sum_{i<=r} s_i^4 / sum_i s_i^4)^(1/2), which is the biased CKA of a layer with what is
    left of it, |arccos CKA - arccos CKA_r| <= arccos c_X + arccos c_Y for the biased CKA of any two layers: angles
    between Gram matrices obey the triangle inequality.

    Parameters
    ----------
    gram
        A linear kernel of all samples.
    share
        Of sum_i s_i^4. Note the fourth powers: they fall fast, and most layers keep few components.

    Returns
    -------
    Gram
        In the dtype of the layer, whose components are found in float64: the eigenvectors of X'X or XX', whichever is
        smaller.

    Raises
    ------
    InvalidInputError
        Another kernel, minibatches, or a share that is none.

    Examples
    --------
    >>> from repsim.metrics.recipes.gram import CentredGram
    >>> x = torch.randn(100, 50, generator=torch.Generator().manual_seed(0)) / torch.arange(1, 51)
    >>> whole = CentredGram()(x)
    >>> leading(whole).p, leading(whole, share=0.9).p, leading(whole, share=1.0).p
    (12, 1, 50)
    """
    if gram.kernel != "linear" or gram.block != gram.n:
        raise InvalidInputError("principal components are those of a linear kernel of all samples")
    if not 0 < share <= 1:
        raise InvalidInputError(f"share is a part of the whole, above 0 and at most 1, got {share}")
    place = gram.squared_norms.device
    x = Centred(gram.features, torch.zeros(gram.p, dtype=torch.float64, device=place), 1.0, torch.float64)
    narrow = gram.p <= gram.n
    values, vectors = torch.linalg.eigh(covariance(x) if narrow else inner_products(x), UPLO="U")
    values, vectors = values.flip(0).clamp(min=0), vectors.flip(1)
    r = _kept(values, share)
    if narrow:
        features = torch.cat([x.exact(i) @ vectors[:, :r] for i in cut(gram.n, _RUN)])
    else:
        features = vectors[:, :r] * values[:r].sqrt()
    rounded = features.to(gram.device, gram.dtype)
    squared_norms = rounded.to(features).square().sum(1)
    return dataclasses.replace(gram, features=rounded, squared_norms=squared_norms)


@dataclass(frozen=True, eq=False)
class Spanned:
    """Features that are combinations of a few directions, which several layers share: Q C (`Rows`)."""

    directions: Float64[Tensor, "n k"]
    """Q, orthonormal; the same object for all layers that share it."""
    loadings: Float64[Tensor, "k r"]
    """C."""

    @property
    def shape(self) -> tuple[int, int]:
        """(n, r)."""
        return len(self.directions), self.loadings.shape[1]

    @property
    def dtype(self) -> torch.dtype:
        """Of the directions."""
        return self.directions.dtype

    @property
    def device(self) -> torch.device:
        """Of the directions."""
        return self.directions.device

    def __getitem__(self, rows: slice | Tensor) -> Float64[Tensor, "rows r"]:
        return self.directions[rows] @ self.loadings


def together(grams: Sequence[Gram], share: float = 0.9999) -> list[Gram]:
    """Cut several layers to leading components, all of them combinations of as few directions as will do.

    Layers of one network, and of two that are alike, have much in common: their leading components span far fewer
    directions than there are components. Each layer keeps the share that `leading` keeps, or as little as its square
    of it: its components are those of `leading`, projected on the k directions that carry most of all layers together,
    each with ||K|| = 1, and k is the least with which every layer keeps ``share`` of what `leading` left of it.

    Parameters
    ----------
    grams, share
        As in `leading`; layers over the same samples.

    Returns
    -------
    list of Gram
        One a layer, in float64, with features Q C (`Spanned`) of one Q: `repsim.permuted` permutes Q alone.

    Examples
    --------
    >>> from repsim.metrics.recipes.gram import CentredGram
    >>> x = torch.randn(100, 50, generator=torch.Generator().manual_seed(0)) / torch.arange(1, 51)
    >>> one, other = together([CentredGram()(x), CentredGram()(x[:, :8])])
    >>> one.features.directions is other.features.directions, one.features.directions.shape[1] < one.p + other.p
    (True, True)
    """
    cut_down = [leading(gram, share) for gram in grams]
    place = float64_device(cut_down[0].device)
    features = [gram.features[:].to(place, torch.float64) for gram in cut_down]
    features = [x / torch.linalg.matrix_norm(x.T @ x).sqrt() for x in features]
    X = torch.cat(features, 1)
    values, vectors = torch.linalg.eigh(X.T @ X if X.shape[1] <= len(X) else X @ X.T)
    values, vectors = values.flip(0), vectors.flip(1)
    most = int((values > 1e-12 * values[0]).sum())
    Q = (X @ vectors[:, :most]) / values[:most].sqrt() if X.shape[1] <= len(X) else vectors[:, :most]
    loadings = [Q.T @ x for x in features]

    def enough(k: int) -> bool:
        return all(float(torch.linalg.matrix_norm(C[:k].T @ C[:k])) ** 2 >= share for C in loadings)

    low, high = 1, most
    while low < high:  # what is kept grows with k
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle + 1, high)
    directions = Q[:, :high].contiguous()
    found = []
    for gram, C in zip(cut_down, loadings, strict=True):
        spanned = Spanned(directions, C[:high].contiguous())
        norms = torch.cat([spanned[i].square().sum(1) for i in cut(gram.n, _RUN)]).to(gram.squared_norms)
        found.append(dataclasses.replace(gram, features=spanned, squared_norms=norms))
    return found


def _kept(values: Float64[Tensor, " m"], share: float) -> int:
    """The smallest r with sum_{i<=r} s_i^4 >= share x sum_i s_i^4, of falling s_i^2."""
    carried = values.square().cumsum(0)
    if share == 1:  # all of it, however little the last one adds
        return max(1, int((values > 0).sum()))
    return int((carried < share * carried[-1]).sum()) + 1
