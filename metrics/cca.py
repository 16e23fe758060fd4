"""Canonical correlation analysis: CCA, SVCCA and PWCCA."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar, Literal, NamedTuple

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from repsim.errors import InvalidInputError
from repsim.metrics.algorithms.cross import Cross
from repsim.metrics.base import Chance, Invariance
from repsim.metrics.recipes.cost import Cost
from repsim.metrics.recipes.subspace import PrincipalSubspace, Subspace, refuse_ties
from repsim.metrics.subspaces import SubspaceMetric, exact, lower_gram, saturation, singular_values

_TIE, _TIE_FLOAT32 = 1e-9, 2e-6
"""Differences up to which canonical correlations are equal: rounding errors of products of bases turn the directions of
closer ones freely into each other.
"""


def mean_correlation(cross: Float64[Tensor, "r t"], *, exact: bool) -> Float64[Tensor, ""]:
    """Return the mean canonical correlation: the mean singular value of C = Q_a' Q_b, for orthonormal bases."""
    mean: Tensor = singular_values(cross, exact=exact).clamp(max=1).mean()  # rounding may leave 1 + 2e-16
    return mean


@lru_cache(4096)  # the same for all layers of equal ranks
def wachter(n: int, r: int, t: int) -> float:
    """Return the mean canonical correlation of unrelated Gaussian layers, of ranks r and t, in the limit of large n.

    With c = r / (n - 1) <= d = t / (n - 1), the squared correlations x lie between the bounds
    (sqrt(c (1 - d)) -+ sqrt(d (1 - c)))^2, with density sqrt((x - low) (high - x)) / (2 pi c x (1 - x)) (Wachter 1980),
    and max(0, r + t - n + 1) of them are 1.

    >>> round(wachter(10_000, 500, 500), 5)
    0.19078
    """
    c, d = (min(1.0, rank / (n - 1)) for rank in sorted((r, t)))
    certain = max(0.0, c + d - 1) / c
    spread = 2 * math.sqrt(c * (1 - d) * d * (1 - c))
    if spread < 1e-12:  # one layer spans the whole sample space: all correlations are 1
        return 1.0
    # Gauss-Chebyshev quadrature of the second kind: its weight is the square root in the density
    angle = torch.arange(1, 2001, dtype=torch.float64) * math.pi / 2001
    x = c * (1 - d) + d * (1 - c) + spread * angle.cos()
    mass = spread**2 * angle.sin().square() / (2 * math.pi * c * x * (1 - x)) * math.pi / 2001
    return float((mass * x.sqrt()).sum()) + certain


@dataclass(frozen=True)
class CCA(SubspaceMetric):
    """Mean canonical correlation, or mean squared canonical correlation, between X (n x p) and Y (n x q).

    With orthonormal bases Q_X, Q_Y of the centred layers, rho = singular values of Q_X'Q_Y; the value is
    mean(rho) over the min(rank X, rank Y) correlations (``summary=rho``), or
    mean(rho^2) = ||Q_X'Q_Y||_F^2 / min(rank X, rank Y) (``summary=r2``). Range [0, 1]. For unrelated data R^2 is
    max(p, q) / (n - 1), not 0. If p + q > n - 1, some correlations are exactly 1 for any data, and a warning is
    issued.

    Parameters
    ----------
    summary : {"rho", "r2"}
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
    constant_if_spanned: ClassVar[bool] = True
    question: ClassVar[str] = "Do two layers span the same directions, however much variance each direction has?"
    needs: ClassVar[str] = "5 times the larger rank for R^2 (20 times for rho); otherwise chance alone exceeds 0.2"
    others: ClassVar[Mapping[str, str]] = {
        "svcca (Google, cca_core.py)": "adds epsilon to the covariances and drops small ones, so that values depend on "
        "both; here the rank is that of the layer, up to rounding errors of its dtype",
    }

    summary: Literal["rho", "r2"] = "rho"

    @property
    def invariances(self) -> frozenset[Invariance]:
        """Unchanged by all transformations in the list: CCA is invariant under any invertible linear map."""
        return frozenset({"permutation", "orthogonal", "isotropic scaling", "translation", "invertible linear"})

    @property
    def recipe(self) -> PrincipalSubspace:
        """Decomposition that is shared by the whole family; the recipe that keeps most of it serves all."""
        return PrincipalSubspace()

    def moment(self, cross: Cross[Subspace]) -> Tensor:
        """Return the value from the inner products of the two bases."""
        if _all_are_one(cross, cross.a.rank, cross.b.rank):
            return cross.product.new_ones(())
        if self.summary == "r2":  # needs no singular values
            return (cross.product.square().sum() / min(cross.a.rank, cross.b.rank)).clamp(max=1)
        return mean_correlation(cross.product, exact=exact(cross.a, cross.b))

    def samples_needed(self, p: int, q: int) -> int:
        """Return the number of samples, from the chance level max(p, q) / (n - 1), or from Wachter's law."""
        return (5 if self.summary == "r2" else 20) * max(p, q) + 1

    def chance(self, a: Subspace, b: Subspace) -> Chance | None:
        """Return the chance level: max(r, t) / (n - 1), exactly, for R^2; Wachter's law for rho."""
        if self.summary == "r2":
            return Chance(min(1.0, max(a.rank, b.rank) / (a.n - 1)))
        return Chance(wachter(a.n, a.rank, b.rank), exact=False)

    def caution(self, a: Subspace, b: Subspace) -> str | None:
        """Warn of too few samples for the two ranks."""
        return saturation(a.n, a.rank, b.rank, "directions")

    def diagnostics(self, factor: Subspace) -> dict[str, int]:
        """Report the rank of the layer."""
        return {"rank": factor.rank}


@dataclass(frozen=True)
class SVCCA(SubspaceMetric):
    """Singular vector CCA: the mean canonical correlation between the leading principal subspaces.

    Each layer is first reduced to its k leading singular directions, where k is the smallest number with
    sum_{i<=k} s_i^2 >= variance x sum s_i^2. The value is mean(rho) over min(k_X, k_Y) correlations. Note the squares:
    implementations that apply the threshold to s itself keep another number of directions. If s_k = s_{k+1}, up to
    1e-6 s_1, which direction is the k-th is not determined: all directions that tie are kept, and a warning is issued.
    Range [0, 1]. k_X and k_Y are reported.

    Parameters
    ----------
    variance : float
        Share of the variance to keep, in (0, 1].
    summary : {"rho", "r2"}
        ``rho``, or ``r2`` for mean(rho^2) over the same directions (Kornblith et al. 2019, Table 2).

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
    question: ClassVar[str] = "Do the directions that carry most of the variance of two layers coincide?"
    needs: ClassVar[str] = "20 times the directions that are kept; otherwise chance alone exceeds 0.2"
    others: ClassVar[Mapping[str, str]] = {
        "ReSi benchmark": "keeps one component for any threshold",
        "several SVCCA scripts": "threshold sum s_i and not sum s_i^2, which keeps many more directions",
    }

    counted: ClassVar[str] = "components"

    variance: float = 0.99
    summary: Literal["rho", "r2"] = "rho"

    def __post_init__(self) -> None:
        if not 0 < self.variance <= 1:
            raise InvalidInputError(f"variance is a share in (0, 1], got {self.variance}")

    @property
    def invariances(self) -> frozenset[Invariance]:
        """Rigid motions and scaling; also invertible linear maps if all directions are kept (then it is CCA)."""
        rigid: frozenset[Invariance] = frozenset({"permutation", "orthogonal", "isotropic scaling", "translation"})
        return rigid | {"invertible linear"} if self.variance == 1 else rigid

    @property
    def recipe(self) -> PrincipalSubspace:
        """Decomposition that is shared by the whole family; the recipe that keeps most of it serves all."""
        return PrincipalSubspace(self.variance)

    def moment(self, cross: Cross[Subspace]) -> Tensor:
        """Return the value from the inner products of the two bases."""
        k, m = self._kept(cross.a), self._kept(cross.b)
        if _all_are_one(cross, k, m):
            return cross.product.new_ones(())
        product = cross.product[:k, :m]
        if self.summary == "r2":
            return (product.square().sum() / min(k, m)).clamp(max=1)
        return mean_correlation(product, exact=exact(cross.a, cross.b))

    def _kept(self, layer: Subspace) -> int:
        return layer.components(self.variance)

    def samples_needed(self, p: int, q: int) -> int:
        """Return the number for CCA: of Gaussian features nearly all directions are kept."""
        return (5 if self.summary == "r2" else 20) * max(p, q) + 1

    def chance(self, a: Subspace, b: Subspace) -> Chance:
        """Return the chance level: max(k, m) / (n - 1), exactly, for R^2; Wachter's law for rho; k and m directions
        are kept.
        """
        k, m = self._kept(a), self._kept(b)
        if self.summary == "r2":
            return Chance(min(1.0, max(k, m) / (a.n - 1)))
        return Chance(wachter(a.n, k, m), exact=False)

    def caution(self, a: Subspace, b: Subspace) -> str | None:
        """Warn of too few samples for the directions that are kept, and of directions that tie with the last one."""
        reasons = [saturation(a.n, self._kept(a), self._kept(b), "components")]
        for layer in dict.fromkeys((a, b)):
            if tied := layer.tied_at_cut(self.variance):
                k = self._kept(layer)
                reasons.append(
                    f"component {k - tied}, with which a layer reaches {self.variance:.4g} of its variance, ties with "
                    f"the next: which of them to keep is not determined, so all {k} are kept"
                )
        return "; ".join(filter(None, reasons)) or None

    def diagnostics(self, factor: Subspace) -> dict[str, int]:
        """Report k, the number of directions that are kept."""
        return {"components": self._kept(factor)}


def _all_are_one(cross: Cross[Subspace], r: int, t: int) -> bool:
    """Return whether one of r and t directions are all n - 1 that samples have after centring: it contains the others.

    Not with a gradient, which depends on the directions.
    """
    return max(r, t) >= cross.a.n - 1 and not cross.product.requires_grad


class _Weights(NamedTuple):
    """Sums of the weights of PWCCA over canonical correlations that are equal, one entry for each set of them."""

    mean: Float64[Tensor, " b"]
    """Mean over all orthonormal bases of their directions: the weights themselves, where nothing ties."""
    low: Float64[Tensor, " b"]
    """Lower bound over all bases."""
    high: Float64[Tensor, " b"]
    """Upper bound over all bases."""


def _weights(cross: Cross[Subspace]) -> tuple[_Weights, Float64[Tensor, " b"]]:
    """Return the sums of weights of the layer of smaller rank, and the correlations to which they belong."""
    if cross.a.rank > cross.b.rank:
        cross = cross.swapped
    assert cross.a.loadings is not None, "the recipe computed no loadings"
    if _all_are_one(cross, cross.a.rank, cross.b.rank):
        one = torch.ones(1, dtype=torch.float64, device=cross.a.loadings.device)
        return _Weights(one, one, one), one
    directions, rho = _directions(cross)
    rho = rho.clamp(max=1)
    coefficients = directions.T @ cross.a.loadings
    tied = rho[:-1] - rho[1:] <= (_TIE if exact(cross.a, cross.b) else _TIE_FLOAT32)
    if not bool(tied.any()):
        weights = coefficients.abs().sum(1)
        return _Weights(weights, weights, weights), rho
    sizes = torch.diff((~tied).nonzero()[:, 0] + 1, prepend=tied.new_zeros(1, dtype=torch.int64)).tolist()
    sizes.append(len(rho) - sum(sizes))
    low = torch.stack([torch.linalg.vector_norm(rows, dim=0).sum() for rows in coefficients.split(sizes)])
    m = torch.tensor(sizes, dtype=torch.float64, device=low.device)
    mean = m * (torch.lgamma(m / 2) - torch.lgamma((m + 1) / 2)).exp() / math.sqrt(math.pi)
    return _Weights(mean * low, low, m.sqrt() * low), torch.stack([values.mean() for values in rho.split(sizes)])


def _directions(cross: Cross[Subspace]) -> tuple[Float64[Tensor, "r m"], Float64[Tensor, " m"]]:
    """Return the left singular vectors u of C, with at most as many rows as columns, and decreasing singular values.

    If C is in float32, they are the eigenvectors of CC', which take less than half of the time: their rounding errors
    are far below those of C. The singular values are the norms ||u'C||, which have the digits that roots would lose.
    """
    if exact(cross.a, cross.b) or cross.product.requires_grad:
        directions, rho, _ = torch.linalg.svd(cross.product, full_matrices=False)
        return directions, rho
    directions = torch.linalg.eigh(lower_gram(cross.product))[1].flip(1)
    return directions, torch.linalg.vector_norm(directions.T @ cross.product, dim=1)


@dataclass(frozen=True)
class PWCCA(SubspaceMetric):
    """Projection weighted CCA: canonical correlations weighted by the share of the layer that each accounts for.

    The weights belong to the layer of smaller rank (X if they are equal). With canonical variates h_i = Q_X u_i:
    a_i = sum_j |<h_i, x_j>| over the features x_j, and the value is sum_i a_i rho_i / sum_i a_i. Range [0, 1].
    Asymmetric: with equal ranks, exchanging X and Y changes the weights. The widely copied reference code computes
    something else (directions without the inverse square root, means added back); this is the published definition.

    Notes
    -----
    If m correlations are equal, as if both layers contain the same m columns, only the span of their variates is
    determined, and with it l_j, the m coefficients of x_j in an orthonormal basis of this span. The published
    definition then depends on rounding errors. Here the sum of their weights is its mean over all orthonormal bases,
    c_m sum_j ||l_j||_2 with c_m = m Gamma(m / 2) / (sqrt(pi) Gamma((m + 1) / 2)), and c_1 = 1. A warning says by how
    much the value for other bases may differ, at most: their sum is between 1 and sqrt(m) times sum_j ||l_j||_2.
    Correlations are equal if they differ by at most 1e-9, or 2e-6 if the layers are float32.

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
    constant_if_spanned: ClassVar[bool] = True
    question: ClassVar[str] = (
        "Do two layers span the same directions, each weighted by the share of one layer that it accounts for?"
    )
    needs: ClassVar[str] = "about 20 times the larger rank; otherwise chance alone exceeds 0.2"
    others: ClassVar[Mapping[str, str]] = {
        "svcca (Google, pwcca.py) and its copies": "take directions without the inverse square root of the "
        "covariance, and add the means back before weighting; Morcos et al. define it differently",
    }
    symmetric: ClassVar[bool] = False

    @property
    def invariances(self) -> frozenset[Invariance]:
        """Permutation, scaling and translation; rotations change the weights, sums of absolute values over features."""
        return frozenset({"permutation", "isotropic scaling", "translation"})

    @property
    def recipe(self) -> PrincipalSubspace:
        """Decomposition that is shared by the whole family; the recipe that keeps most of it serves all."""
        return PrincipalSubspace(loadings=True)

    def moment(self, cross: Cross[Subspace]) -> Tensor:
        """Return the value from the inner products of the two bases."""
        weights, rho = cross.once(_weights)
        value: Tensor = (weights.mean * rho).sum() / weights.mean.sum()
        return value

    def moment_cost(self, p: int, q: int) -> Cost:
        """Return the cost of half of CC', C with min(p, q) rows, of its eigenvectors, and of products with them."""
        short, long = sorted((p, q))
        return super().moment_cost(p, q) + Cost(flop64=4.0 * short * short * long, decomposed=4.0 * short**3)

    @property
    def ambiguity(self) -> "PWCCAAmbiguity":
        """Difference between the values that other bases of tied directions may give."""
        return PWCCAAmbiguity()

    def with_gradient(self, x: Float[Tensor, "n p"], y: Float[Tensor, "n q"]) -> Tensor:
        """Compute the value with a gradient; raise `UndefinedValueError` if correlations tie.

        The value depends on the single directions, which are not determined if correlations tie. The exception is a
        layer that spans the whole sample space: all correlations are 1 then, and their weights, or whether they are
        squared, make no difference.
        """
        cross = self.cross_with_gradient(x, y)
        if max(cross.a.rank, cross.b.rank) == cross.a.n - 1:
            return cross.product.square().sum() / min(cross.a.rank, cross.b.rank)
        refuse_ties(torch.linalg.svdvals(cross.product.detach()), "canonical correlations")
        return self.moment(cross)

    def samples_needed(self, p: int, q: int) -> int:
        """Return the number for CCA: of Gaussian features all weights are nearly equal."""
        return 20 * max(p, q) + 1

    def caution(self, a: Subspace, b: Subspace) -> str | None:
        """Warn of too few samples for the two ranks."""
        return saturation(a.n, a.rank, b.rank, "directions")

    def diagnostics(self, factor: Subspace) -> dict[str, int]:
        """Report the rank of the layer."""
        return {"rank": factor.rank}


class PWCCAAmbiguity(PWCCA):
    """Upper bound for the difference between two values of PWCCA that bases of tied directions give; 0 without ties.

    The value is the largest, or smallest, if the sums of weights are largest for all correlations above some threshold
    and smallest for the others, or the other way round.
    """

    def moment(self, cross: Cross[Subspace]) -> Tensor:
        """Return the bound from the inner products of the two bases."""
        weights, rho = cross.once(_weights)
        if weights.low is weights.high:  # nothing ties
            return rho.new_zeros(())

        def values(first: Tensor, last: Tensor) -> Tensor:
            """Return the values with the first weights for correlations above each threshold, and the last below."""
            above = torch.ones(len(rho), len(rho), device=rho.device).tril().bool()
            chosen = torch.where(above, first, last)
            return (chosen @ rho) / chosen.sum(1)

        spread: Tensor = values(weights.high, weights.low).max() - values(weights.low, weights.high).min()
        return spread
