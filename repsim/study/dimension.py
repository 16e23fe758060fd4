"""Estimate the effective dimension of a layer."""

from repsim.metrics.recipes.gram import Gram

_ROUNDING = 1e-12
"""Share of tr(C)^2 that rounding errors can add to tr(C^2)."""


def effective_dimension(gram: Gram, squares: float) -> float:
    """Estimate the participation ratio tr(C)^2 / tr(C^2) of the covariance C of a layer from few samples.

    tr(C) is estimated by sum_i g_i / (n - 1) and tr(C^2) by ||A||^2 / (n (n - 3)), where g_i are the squared norms of
    the n centred samples and A is their U-centred linear kernel. It is 1 if all samples lie on a line, and p if the
    layer varies equally along all of its p features.

    Parameters
    ----------
    gram : Gram
        Factor of linear CKA.
    squares : float
        ||A||^2, which the comparison of the layers computes (`repsim.engine.sample_sums`). If samples are in groups, A
        is without the pairs within groups.

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
    >>> import torch
    >>> from repsim.metrics.cka import CKA
    >>> x = torch.randn(2000, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    >>> gram = CKA().recipe(x)
    >>> from repsim.engine.null_moments import cubic_moments
    >>> round(effective_dimension(gram, cubic_moments([gram])[0].norm2))
    8
    """
    n, total = gram.n, float(gram.squared_norms.sum())
    pairs = n * (n - 3) if gram.groups is None else n**2 - 2 * n - float(gram.groups.sizes.square().sum())
    trace_of_square, squared_trace = squares / pairs, (total / (n - 1)) ** 2
    return squared_trace / trace_of_square if trace_of_square > _ROUNDING * squared_trace else float("nan")
