"""A layer cut to its leading principal components: few features with nearly the same Gram matrix."""

import dataclasses

import torch
from jaxtyping import Float64
from torch import Tensor

from repsim.errors import InvalidInputError
from repsim.metrics.gram import Gram
from repsim.metrics.rows import Centred, cut
from repsim.metrics.subspace import covariance, inner_products

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
    >>> from repsim.metrics.gram import CentredGram
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


def _kept(values: Float64[Tensor, " m"], share: float) -> int:
    """The smallest r with sum_{i<=r} s_i^4 >= share x sum_i s_i^4, of falling s_i^2."""
    carried = values.square().cumsum(0)
    if share == 1:  # all of it, however little the last one adds
        return max(1, int((values > 0).sum()))
    return int((carried < share * carried[-1]).sum()) + 1
