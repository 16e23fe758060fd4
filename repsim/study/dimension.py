"""Estimate the effective dimension of a layer."""

import torch

from repsim.metrics.recipes.gram import Gram
from repsim.metrics.recipes.rows import float64_device

_ROUNDING = 1e-12
"""Share of tr(C)^2 that rounding errors can add to tr(C^2)."""


def effective_dimension(gram: Gram) -> float:
    """Estimate the participation ratio tr(C)^2 / tr(C^2) of the covariance C of a layer from few samples.

    tr(C) is estimated by sum_i g_i / (n - 1) and tr(C^2) by HSIC_1(K, K), where g_i are the squared norms of the n
    centred samples and K is their linear kernel. It is 1 if all samples lie on a line, and p if the layer varies
    equally along all of its p features.

    Parameters
    ----------
    gram : Gram
        Factor of linear CKA.

    Returns
    -------
    float
        At least about 1; NaN if the estimate of tr(C^2) is not above 0, beyond rounding errors.

    References
    ----------
    Gao, Trautmann, Yu, Santhanam, Ryu, Shenoy, Ganguli. A theory of multineuronal dimensionality, dynamics and
    measurement. 2017.

    Examples
    --------
    >>> from repsim.metrics.recipes.gram import CentredGram
    >>> x = torch.randn(2000, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    >>> round(effective_dimension(CentredGram()(x)))
    8
    """
    x = gram.features[:].to(float64_device(gram.device), torch.float64)
    n, g = gram.n, gram.squared_norms.to(x)
    product = x.T @ x if x.shape[1] <= n else x @ x.T
    total = g.sum()
    norm2 = product.square().sum() - n / (n - 2) * g.square().sum() + total.square() / ((n - 1) * (n - 2))
    trace_of_square = float(norm2) / (n * (n - 3))
    squared_trace = float(total / (n - 1)) ** 2
    return squared_trace / trace_of_square if trace_of_square > _ROUNDING * squared_trace else float("nan")
