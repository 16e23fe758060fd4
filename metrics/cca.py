"""The family of canonical correlation analysis: correlations between the subspaces that two layers span."""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from jaxtyping import Float64
from torch import Tensor

from repsim.errors import InvalidInputError
from repsim.metrics.base import Invariance, Metric, Road
from repsim.metrics.subspace import PrincipalSubspace, Subspace


def mean_correlation(cross: Float64[Tensor, "r t"], *, exact: bool) -> float:
    """The mean canonical correlation: of the min(r, t) singular values of C = Q_a' Q_b, for orthonormal bases.

    Where C is not ``exact``, but a product in float32, they are the roots of the eigenvalues of CC', which take half
    the time: below 1e-8 they are lost, but C has errors of 1e-7.
    """
    if exact:
        rho = torch.linalg.svdvals(cross)
    else:
        short = cross if cross.shape[0] <= cross.shape[1] else cross.T
        rho = torch.linalg.eigvalsh(short @ short.T).clamp(min=0).sqrt()
    return float(rho.clamp(max=1).mean())  # rounding may leave 1 + 2e-16


def _exact(a: Subspace, b: Subspace) -> bool:
    return torch.promote_types(a.basis.dtype, b.basis.dtype) == torch.float64


def _saturation(n: int, r: int, t: int, count: str) -> str | None:
    """Two subspaces of dimensions r and t in n - 1 dimensions must meet in r + t - (n - 1) of them."""
    certain = r + t - (n - 1)
    if certain <= 0:
        return None
    return (
        f"with n = {n} samples and {r} + {t} {count}, {certain} of the correlations are exactly 1 for any data; "
        f"take at least n = {r + t + 2} samples, and many more for a value that means something"
    )


@dataclass(frozen=True)
class CCA(Metric[Subspace]):
    """Mean canonical correlation, or mean squared canonical correlation, between X (n x p) and Y (n x q).

    With orthonormal bases Q_X, Q_Y of the centred layers, rho = singular values of Q_X'Q_Y; the value is
    mean(rho) over the min(rank X, rank Y) correlations (``summary=rho``), or
    mean(rho^2) = ||Q_X'Q_Y||_F^2 / min(rank X, rank Y) (``summary=r2``). Range [0, 1]. For unrelated data R^2 is
    max(p, q) / (n - 1), not 0, and from p + q > n - 1 on correlations of exactly 1 appear for any data; a warning says
    so.

    Parameters
    ----------
    summary
        ``rho`` or ``r2``.

    References
    ----------
    Hotelling. Relations between two sets of variates. Biometrika 1936.
    Kornblith, Norouzi, Lee, Hinton. Similarity of neural network representations revisited. ICML 2019 (R^2_CCA).

    Examples
    --------
    >>> import numpy as np
    >>> x = np.random.default_rng(0).normal(size=(100, 3))
    >>> round(CCA()(x, x @ np.array([[1.0, 2, 0], [0, 1, 5], [3, 0, 1]])), 6)
    1.0
    """

    name: ClassVar[str] = "cca"
    title: ClassVar[str] = "CCA"
    formula: ClassVar[str] = "mean rho_i or mean rho_i^2, rho = svd(Q_X' Q_Y)"
    citation: ClassVar[str] = "Hotelling 1936; Kornblith et al. 2019 (R^2)"
    sense: ClassVar[Literal["similarity", "distance"]] = "similarity"
    symmetric: ClassVar[bool] = True

    summary: Literal["rho", "r2"] = "rho"

    @property
    def bounds(self) -> tuple[float, float]:
        """[0, 1]."""
        return 0.0, 1.0

    @property
    def invariances(self) -> frozenset[Invariance]:
        """Everything invertible and linear, so everything in the list."""
        return frozenset({"permutation", "orthogonal", "isotropic scaling", "translation", "invertible linear"})

    @property
    def roads(self) -> tuple[Road, ...]:
        """From the inner products of two bases."""
        return ("moments",)

    @property
    def recipe(self) -> PrincipalSubspace:
        """One decomposition serves the whole family: that of whoever wants most of it."""
        return PrincipalSubspace()

    def moment(self, a: Subspace, b: Subspace, cross: Float64[Tensor, "r t"]) -> float:
        """Compare two prepared layers, whose bases have these inner products."""
        if self.summary == "r2":  # needs no singular values
            return min(1.0, float(cross.square().sum()) / min(a.rank, b.rank))
        return mean_correlation(cross, exact=_exact(a, b))

    def caution(self, a: Subspace, b: Subspace) -> str | None:
        """Too few samples for the two ranks."""
        return _saturation(a.n, a.rank, b.rank, "directions")

    def diagnostics(self, factor: Subspace) -> dict[str, int]:
        """Rank of the layer."""
        return {"rank": factor.rank}


@dataclass(frozen=True)
class SVCCA(Metric[Subspace]):
    """Singular vector CCA: the mean canonical correlation between the leading principal subspaces.

    Each layer is first cut down to its k leading singular directions, k being the smallest number with
    sum_{i<=k} s_i^2 >= variance x sum s_i^2; then mean(rho) over min(k_X, k_Y). Note the squares: thresholding s itself
    keeps another number of directions, and implementations that do so disagree. Range [0, 1]. k_X and k_Y are reported.

    Parameters
    ----------
    variance
        Share of the variance that is kept, in (0, 1].

    References
    ----------
    Raghu, Gilmer, Yosinski, Sohl-Dickstein. SVCCA: singular vector canonical correlation analysis for deep learning
    dynamics and interpretability. NeurIPS 2017.

    Examples
    --------
    >>> import numpy as np, warnings
    >>> np.random.seed(0)
    >>> x, y = np.random.uniform(size=(30, 25)), np.random.uniform(size=(30, 25))
    >>> with warnings.catch_warnings():
    ...     warnings.simplefilter("ignore")  # 30 samples are far too few, as the warning says
    ...     round(SVCCA()(x, y), 12), round(SVCCA(variance=0.95)(x, y), 12)
    (0.783181412265, 0.728160558684)
    """

    name: ClassVar[str] = "svcca"
    title: ClassVar[str] = "SVCCA"
    formula: ClassVar[str] = "mean rho_i between the leading subspaces that keep `variance` of the variance"
    citation: ClassVar[str] = "Raghu et al. 2017"
    sense: ClassVar[Literal["similarity", "distance"]] = "similarity"
    symmetric: ClassVar[bool] = True

    variance: float = 0.99

    def __post_init__(self) -> None:
        if not 0 < self.variance <= 1:
            raise InvalidInputError(f"variance is a share in (0, 1], got {self.variance}")

    @property
    def bounds(self) -> tuple[float, float]:
        """[0, 1]."""
        return 0.0, 1.0

    @property
    def invariances(self) -> frozenset[Invariance]:
        """Not to invertible linear maps, which change what leads, unless nothing is left out (then it is CCA)."""
        rigid: frozenset[Invariance] = frozenset({"permutation", "orthogonal", "isotropic scaling", "translation"})
        return rigid | {"invertible linear"} if self.variance == 1 else rigid

    @property
    def roads(self) -> tuple[Road, ...]:
        """From the inner products of two bases."""
        return ("moments",)

    @property
    def recipe(self) -> PrincipalSubspace:
        """One decomposition serves the whole family: that of whoever wants most of it."""
        return PrincipalSubspace(self.variance)

    def moment(self, a: Subspace, b: Subspace, cross: Float64[Tensor, "r t"]) -> float:
        """Compare two prepared layers, whose bases have these inner products."""
        k, m = a.components(self.variance), b.components(self.variance)
        return mean_correlation(cross[:k, :m], exact=_exact(a, b))

    def caution(self, a: Subspace, b: Subspace) -> str | None:
        """Too few samples for the directions kept."""
        return _saturation(a.n, a.components(self.variance), b.components(self.variance), "components")

    def diagnostics(self, factor: Subspace) -> dict[str, int]:
        """k, the number of directions kept."""
        return {"components": factor.components(self.variance)}


@dataclass(frozen=True)
class PWCCA(Metric[Subspace]):
    """Projection weighted CCA: canonical correlations weighted by how much of the layer each one accounts for.

    For the side of smaller rank (X where they are equal), with canonical variates h_i = Q_X u_i:
    a_i = sum_j |<h_i, x_j>| over the features x_j, and the value is sum_i a_i rho_i / sum_i a_i. Range [0, 1].
    Asymmetric: with equal ranks, exchanging X and Y changes the weights. The widely copied reference code computes
    something else (directions without the inverse square root, means added back); this is the published definition.

    References
    ----------
    Morcos, Raghu, Bengio. Insights on representational similarity in neural networks with canonical correlation.
    NeurIPS 2018.

    Examples
    --------
    >>> import numpy as np
    >>> x = np.random.default_rng(0).normal(size=(100, 3))
    >>> round(PWCCA()(x, x * [1, 10, 100]), 6)
    1.0
    """

    name: ClassVar[str] = "pwcca"
    title: ClassVar[str] = "PWCCA"
    formula: ClassVar[str] = "sum_i a_i rho_i / sum_i a_i, a_i = sum_j |<h_i, x_j>|"
    citation: ClassVar[str] = "Morcos et al. 2018"
    sense: ClassVar[Literal["similarity", "distance"]] = "similarity"
    symmetric: ClassVar[bool] = False

    @property
    def bounds(self) -> tuple[float, float]:
        """[0, 1]."""
        return 0.0, 1.0

    @property
    def invariances(self) -> frozenset[Invariance]:
        """Not to rotations: the weights are sums of absolute values over single features."""
        return frozenset({"permutation", "isotropic scaling", "translation"})

    @property
    def roads(self) -> tuple[Road, ...]:
        """From the inner products of two bases."""
        return ("moments",)

    @property
    def recipe(self) -> PrincipalSubspace:
        """One decomposition serves the whole family: that of whoever wants most of it."""
        return PrincipalSubspace(loadings=True)

    def moment(self, a: Subspace, b: Subspace, cross: Float64[Tensor, "r t"]) -> float:
        """Compare two prepared layers, whose bases have these inner products."""
        small, cross = (a, cross) if a.rank <= b.rank else (b, cross.T)
        assert small.loadings is not None, "the recipe was asked for no loadings"
        directions, rho, _ = torch.linalg.svd(cross, full_matrices=False)
        weights = (directions.T @ small.loadings).abs().sum(1)
        return float((weights * rho.clamp(max=1)).sum() / weights.sum())

    def caution(self, a: Subspace, b: Subspace) -> str | None:
        """Too few samples for the two ranks."""
        return _saturation(a.n, a.rank, b.rank, "directions")

    def diagnostics(self, factor: Subspace) -> dict[str, int]:
        """Rank of the layer."""
        return {"rank": factor.rank}
