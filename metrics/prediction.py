"""Prediction: how much of one layer a linear map reads from another, and what the spans that it reads from share."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from jaxtyping import Float, Float64
from torch import Tensor
from typing_extensions import override

from repsim.errors import InvalidInputError
from repsim.metrics.algorithms.cross import Cross
from repsim.metrics.base import Chance, Group, Invariance
from repsim.metrics.recipes.rows import pieces, wide
from repsim.metrics.recipes.subspace import PrincipalSubspace, Subspace, layer_with_gradient
from repsim.metrics.subspaces import SubspaceMetric, saturation


@dataclass(frozen=True)
class LinearRegression(SubspaceMetric):
    """Linear regression: the share of X's variance that the best linear map of Y, with an intercept, explains.

    R^2 = ||Q_Y'X~||_F^2 / ||X~||_F^2, where X~ (n x p) is centred and Q_Y is an orthonormal basis of the centred Y.
    Range [0, 1]. Asymmetric: X is predicted, Y predicts. For unrelated data it is rank(Y) / (n - 1), not 0: it is the
    fit on the very samples that are predicted.

    References
    ----------
    Kornblith, Norouzi, Lee, Hinton. Similarity of neural network representations revisited. ICML 2019.

    Examples
    --------
    >>> import numpy as np
    >>> y = np.random.default_rng(0).normal(size=(100, 3))
    >>> x = y[:, :2]
    >>> round(LinearRegression()(x, y), 6), round(LinearRegression()(y, x), 2)
    (1.0, 0.71)
    """

    name: ClassVar[str] = "linear_regression"
    title: ClassVar[str] = "Linear regression"
    formula: ClassVar[str] = "R^2 = ||Q_Y' X||_F^2 / ||X||_F^2, centred"
    citation: ClassVar[str] = "Kornblith et al. 2019"
    group: ClassVar[Group] = "alignment"
    question: ClassVar[str] = "What share of the variance of X can be read from Y by a linear map?"
    needs: ClassVar[str] = "5 times the rank of Y, else chance alone is above 0.2"
    others: ClassVar[Mapping[str, str]] = {
        "encoding models": "predict samples that were held out, mostly with a penalty: a statement about new stimuli, "
        "where this is one about these",
    }
    symmetric: ClassVar[bool] = False

    @property
    def invariances(self) -> frozenset[Invariance]:
        """X is weighed by its variance."""
        return frozenset({"permutation", "orthogonal", "isotropic scaling", "translation"})

    @property
    def invariances_of_y(self) -> frozenset[Invariance]:
        """Of Y only the span counts."""
        return self.invariances | {"invertible linear"}

    @property
    def recipe(self) -> PrincipalSubspace:
        """One decomposition serves it and the CCA family."""
        return PrincipalSubspace()

    def moment(self, cross: Cross[Subspace]) -> Tensor:
        """Compare two prepared layers, whose bases have these inner products: R^2 of each direction of X, weighed."""
        value: Tensor = cross.a.shares @ cross.product.square().sum(1)
        return value.clamp(max=1)  # rounding may leave 1 + 2e-16

    def with_gradient(self, x: Float[Tensor, "n p"], y: Float[Tensor, "n q"]) -> Tensor:
        """As the formula says."""
        whole, basis = layer_with_gradient(x)[0], self.recipe.with_gradient(y).basis
        assert isinstance(basis, Tensor)
        return (basis.T @ whole).square().sum() / whole.square().sum()

    @override
    def samples_needed(self, p: int, q: int) -> int:
        """From rank(Y) / (n - 1)."""
        return 5 * q + 1

    def chance(self, a: Subspace, b: Subspace) -> Chance:
        """rank(Y) / (n - 1), exactly."""
        return Chance(b.rank / (a.n - 1))

    def caution(self, a: Subspace, b: Subspace) -> str | None:
        """Too few samples for the two ranks."""
        return saturation(a.n, a.rank, b.rank, "directions")

    def diagnostics(self, factor: Subspace) -> dict[str, int]:
        """Rank of the layer."""
        return {"rank": factor.rank}


@dataclass(frozen=True)
class GULP(SubspaceMetric):
    """GULP, squared: how differently ridge regressions on two layers predict, summed over all targets.

    Both layers are centred and scaled to ||X~||_F = sqrt n; S_X = X~'X~ / n, and S_X^-l = (S_X + ridge I)^-1. Then
    d^2 = tr(S_X^-l S_X S_X^-l S_X) + tr(S_Y^-l S_Y S_Y^-l S_Y) - 2 tr(S_X^-l S_XY S_Y^-l S_XY'),
    which is ||H_X - H_Y||_F^2, where H_X = X~ S_X^-l X~' / n takes a target to what ridge regression on X predicts. So
    it is the squared difference between the predictions, summed over an orthonormal basis of targets.

    With the shares s_i, t_j of the variance in each principal direction, f_i = s_i / (s_i + ridge),
    g_j = t_j / (t_j + ridge), and C = Q_X'Q_Y, it is sum f_i^2 + sum g_j^2 - 2 sum_ij f_i g_j C_ij^2. With ``ridge=0``
    that is rank X + rank Y - 2 sum rho_i^2, of the canonical correlations. Range [0, infinity); its root is a metric.

    Parameters
    ----------
    ridge
        The penalty, lambda in the paper; the variances of all directions of a layer sum to 1.

    References
    ----------
    Boix-Adsera, Lawrence, Stepaniants, Rigollet. GULP: a prediction-based metric between representations. NeurIPS 2022.

    Examples
    --------
    >>> import numpy as np
    >>> x, y = (np.random.default_rng(seed).normal(size=(100, 3)) for seed in (0, 1))
    >>> abs(round(GULP()(x, x * [1, 10, 100]), 6)), round(GULP()(x, y), 2), round(GULP(ridge=1.0)(x, y), 2)
    (0.0, 5.78, 0.36)
    """

    name: ClassVar[str] = "gulp"
    title: ClassVar[str] = "GULP"
    formula: ClassVar[str] = "||H_X - H_Y||_F^2, H the smoother matrix of ridge regression, ||X||_F = sqrt n"
    citation: ClassVar[str] = "Boix-Adsera et al. 2022"
    group: ClassVar[Group] = "rsm"
    question: ClassVar[str] = "How differently do ridge regressions on two layers predict, over all targets?"
    needs: ClassVar[str] = (
        "5 times the rank (of ranks r and t, 10 r t / (r + t)): unrelated layers are r + t - 2 r t / (n - 1) apart"
    )
    sense: ClassVar[Literal["similarity", "distance"]] = "distance"

    ridge: float = 0.0

    def __post_init__(self) -> None:
        if not (self.ridge >= 0 and math.isfinite(self.ridge)):
            raise InvalidInputError(f"ridge is a penalty, 0 or more, got {self.ridge}")

    @property
    def bounds(self) -> tuple[float, float]:
        """[0, infinity)."""
        return 0.0, math.inf

    @property
    def invariances(self) -> frozenset[Invariance]:
        """A penalty sees which directions are large."""
        rigid: frozenset[Invariance] = frozenset({"permutation", "orthogonal", "isotropic scaling", "translation"})
        return rigid if self.ridge else rigid | {"invertible linear"}

    @property
    def recipe(self) -> PrincipalSubspace:
        """One decomposition serves it and the CCA family."""
        return PrincipalSubspace()

    def _kept(self, side: Subspace) -> Float64[Tensor, " r"]:
        """f: what the penalty leaves of each direction."""
        return side.shares / (side.shares + self.ridge)

    def moment(self, cross: Cross[Subspace]) -> Tensor:
        """Compare two prepared layers, whose bases have these inner products."""
        f, g = self._kept(cross.a), self._kept(cross.b)
        value: Tensor = f @ f + g @ g - 2 * (f @ cross.product.square() @ g)
        return value.clamp(min=0)  # rounding may leave -1e-15, whose root is wanted

    def with_gradient(self, x: Float[Tensor, "n p"], y: Float[Tensor, "n q"]) -> Tensor:
        """By H = QQ', Q being the first n rows of an orthonormal basis of X~ over sqrt(ridge) I.

        That is least squares' own way to add a penalty, and squares no small singular value away.
        """
        P, Q = self._smoother(x), self._smoother(y)
        return (P.T @ P).square().sum() + (Q.T @ Q).square().sum() - 2 * (P.T @ Q).square().sum()

    def _smoother(self, x: Float[Tensor, "n p"]) -> Float64[Tensor, "n r"]:
        if not self.ridge:
            basis = self.recipe.with_gradient(x).basis
            assert isinstance(basis, Tensor)
            return basis
        whole, _ = layer_with_gradient(x)
        penalty = math.sqrt(self.ridge) * torch.eye(x.shape[1], dtype=torch.float64, device=whole.device)
        stacked = torch.cat([whole / torch.linalg.matrix_norm(whole), penalty])
        smoother: Tensor = torch.linalg.qr(stacked)[0][: len(whole)]
        return smoother

    def samples_needed(self, p: int, q: int) -> int:
        """From 2 r t / (n - 1), which is a fifth of r + t then."""
        return math.ceil(10 * p * q / (p + q)) + 1

    def chance(self, a: Subspace, b: Subspace) -> Chance:
        """Exactly sum f_i^2 + sum g_j^2 - 2 (sum f_i) (sum g_j) / (n - 1); r + t - 2rt / (n - 1) without a ridge."""
        f, g = self._kept(a), self._kept(b)
        return Chance(float(f @ f + g @ g - 2 * f.sum() * g.sum() / (a.n - 1)))

    def caution(self, a: Subspace, b: Subspace) -> str | None:
        """Without a penalty: too few samples for the two ranks."""
        return None if self.ridge else saturation(a.n, a.rank, b.rank, "directions")

    def diagnostics(self, factor: Subspace) -> dict[str, int]:
        """Rank of the layer."""
        return {"rank": factor.rank}


@dataclass(frozen=True)
class EigenspaceOverlap(SubspaceMetric):
    """Eigenspace overlap score: how much of the spaces that the features span is shared, ||U'V||_F^2 / max(p, q).

    U and V are orthonormal bases of the columns of X (n x p) and Y (n x q), which are not centred. Range [0, 1]. It is
    min(n, p) / p for a layer of full rank and itself, so 1 only where n >= p: a layer of rank r is like itself to
    r / p.

    References
    ----------
    May, Zhang, Dao, Re. On the downstream performance of compressed word embeddings. NeurIPS 2019.

    Examples
    --------
    >>> import numpy as np
    >>> x, y = (np.random.default_rng(seed).normal(size=(100, 4)) for seed in (0, 1))
    >>> round(EigenspaceOverlap()(x, x * [1, 2, 3, 4]), 6), round(EigenspaceOverlap()(x, y), 2)
    (1.0, 0.04)
    >>> round(EigenspaceOverlap()(x, x[:, [0, 1, 2, 3, 3]]), 6)  # 4 of 5
    0.8
    """

    name: ClassVar[str] = "eigenspace_overlap"
    title: ClassVar[str] = "Eigenspace overlap"
    formula: ClassVar[str] = "||U'V||_F^2 / max(p, q), U and V orthonormal bases, not centred"
    citation: ClassVar[str] = "May et al. 2019"
    group: ClassVar[Group] = "rsm"
    question: ClassVar[str] = "What share of the space that the features span do two layers have in common?"
    needs: ClassVar[str] = "5 times the narrower layer's features, else chance alone is above 0.2"

    @property
    def invariances(self) -> frozenset[Invariance]:
        """Everything linear; a translation adds a direction, that of the mean."""
        return frozenset({"permutation", "orthogonal", "isotropic scaling", "invertible linear"})

    @property
    def recipe(self) -> PrincipalSubspace:
        """A decomposition of its own, as the layer is not centred."""
        return PrincipalSubspace(centred=False)

    def moment(self, cross: Cross[Subspace]) -> Tensor:
        """Compare two prepared layers, whose bases have these inner products."""
        value: Tensor = cross.product.square().sum() / max(cross.a.features, cross.b.features)
        return value.clamp(max=1)  # rounding may leave 1 + 2e-16

    def samples_needed(self, p: int, q: int) -> int:
        """From min(p, q) / n, for features with mean 0."""
        return 5 * min(p, q)

    def chance(self, a: Subspace, b: Subspace) -> Chance:
        """Exactly (uv + (r - u)(t - v) / (n - 1)) / max(p, q); the spans hold u and v of the constant direction.

        Permutations keep that direction, and mix the n - 1 others.
        """
        u, v = _constant(a), _constant(b)
        return Chance((u * v + (a.rank - u) * (b.rank - v) / (a.n - 1)) / max(a.features, b.features))

    def caution(self, a: Subspace, b: Subspace) -> str | None:
        """Too few samples for the two ranks."""
        return saturation(a.n, a.rank, b.rank, "directions", centred=False)

    def diagnostics(self, factor: Subspace) -> dict[str, int]:
        """Rank of the layer."""
        return {"rank": factor.rank}


def _constant(side: Subspace) -> float:
    """1'UU'1 / n: how much of the constant direction lies in the span."""
    place = wide(side.device)
    sums = sum(side.rows(i).to(place, torch.float64).sum(0) for i in pieces(side.basis))
    return float(torch.as_tensor(sums).square().sum()) / side.n
