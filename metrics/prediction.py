"""Measures based on linear prediction: linear regression, GULP and eigenspace overlap."""

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
from repsim.metrics.recipes.cost import Cost
from repsim.metrics.recipes.rows import float64_device, pieces
from repsim.metrics.recipes.subspace import PrincipalSubspace, Subspace, layer_with_gradient
from repsim.metrics.subspaces import SubspaceMetric, saturation


@dataclass(frozen=True)
class LinearRegression(SubspaceMetric):
    """Linear regression: the share of X's variance that the best linear map of Y, with an intercept, explains.

    R^2 = ||Q_Y'X~||_F^2 / ||X~||_F^2, where X~ (n x p) is centred and Q_Y is an orthonormal basis of the centred Y.
    Range [0, 1]. Asymmetric: X is predicted from Y. For unrelated data it is rank(Y) / (n - 1), not 0, because the map
    is fitted to the same samples that it predicts.

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
    question: ClassVar[str] = "What share of the variance of X can a linear map predict from Y?"
    needs: ClassVar[str] = "5 times the rank of Y; otherwise chance alone exceeds 0.2"
    others: ClassVar[Mapping[str, str]] = {
        "encoding models": "predict held-out samples, mostly with a penalty: a statement about new stimuli; this value "
        "describes the given stimuli",
    }
    symmetric: ClassVar[bool] = False

    @property
    def invariances(self) -> frozenset[Invariance]:
        """Transformations of X; its directions are weighted by their variance, so a linear map changes the value."""
        return frozenset({"permutation", "orthogonal", "isotropic scaling", "translation"})

    @property
    def invariances_of_y(self) -> frozenset[Invariance]:
        """Transformations of Y; the value depends only on its span."""
        return self.invariances | {"invertible linear"}

    @property
    def recipe(self) -> PrincipalSubspace:
        """Decomposition that is shared with the CCA family."""
        return PrincipalSubspace()

    def moment(self, cross: Cross[Subspace]) -> Tensor:
        """Return R^2 of each direction of X, weighted by its share of the variance."""
        value: Tensor = cross.a.shares @ cross.product.square().sum(1)
        return value.clamp(max=1)  # rounding may leave 1 + 2e-16

    def with_gradient(self, x: Float[Tensor, "n p"], y: Float[Tensor, "n q"]) -> Tensor:
        """Compute the formula with a gradient."""
        values, basis = layer_with_gradient(x)[0], self.recipe.with_gradient(y).basis
        assert isinstance(basis, Tensor)
        return (basis.T @ values).square().sum() / values.square().sum()

    def moment_cost(self, p: int, q: int) -> Cost:
        """Return the cost of the squares of all inner products."""
        return Cost(touched=1.0 * p * q)

    @override
    def samples_needed(self, p: int, q: int) -> int:
        """Return the number of samples, from the chance level rank(Y) / (n - 1)."""
        return 5 * q + 1

    def chance(self, a: Subspace, b: Subspace) -> Chance:
        """Return the chance level: rank(Y) / (n - 1), exactly."""
        return Chance(b.rank / (a.n - 1))

    def caution(self, a: Subspace, b: Subspace) -> str | None:
        """Warn of too few samples for the two ranks."""
        return saturation(a.n, a.rank, b.rank, "directions")

    def diagnostics(self, factor: Subspace) -> dict[str, int]:
        """Report the rank of the layer."""
        return {"rank": factor.rank}


@dataclass(frozen=True)
class GULP(SubspaceMetric):
    """GULP, squared: how much ridge regressions on two layers differ in their predictions, summed over all targets.

    Both layers are centred and scaled to ||X~||_F = sqrt n; S_X = X~'X~ / n, and S_X^-l = (S_X + ridge I)^-1. Then
    d^2 = tr(S_X^-l S_X S_X^-l S_X) + tr(S_Y^-l S_Y S_Y^-l S_Y) - 2 tr(S_X^-l S_XY S_Y^-l S_XY'),
    which is ||H_X - H_Y||_F^2, where H_X = X~ S_X^-l X~' / n maps a target to the prediction of ridge regression on X.
    So it is the squared difference between the predictions, summed over an orthonormal basis of targets.

    With the shares s_i, t_j of the variance in each principal direction, f_i = s_i / (s_i + ridge),
    g_j = t_j / (t_j + ridge), and C = Q_X'Q_Y, it is sum f_i^2 + sum g_j^2 - 2 sum_ij f_i g_j C_ij^2. With ``ridge=0``
    this is rank X + rank Y - 2 sum rho_i^2, where rho_i are the canonical correlations. Range [0, infinity); its root
    is a metric.

    Parameters
    ----------
    ridge : float
        Penalty, lambda in the paper; the variances of all directions of a layer sum to 1.

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
    question: ClassVar[str] = "How much do the predictions of ridge regressions on two layers differ, over all targets?"
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
        """Range of the value: [0, infinity)."""
        return 0.0, math.inf

    @property
    def invariances(self) -> frozenset[Invariance]:
        """Transformations that leave the value unchanged; with a penalty the size of directions matters."""
        rigid: frozenset[Invariance] = frozenset({"permutation", "orthogonal", "isotropic scaling", "translation"})
        return rigid if self.ridge else rigid | {"invertible linear"}

    @property
    def recipe(self) -> PrincipalSubspace:
        """Decomposition that is shared with the CCA family."""
        return PrincipalSubspace()

    def _kept(self, side: Subspace) -> Float64[Tensor, " r"]:
        """Return f_i = s_i / (s_i + ridge), the shrinkage of each direction."""
        return side.shares / (side.shares + self.ridge)

    def moment(self, cross: Cross[Subspace]) -> Tensor:
        """Return the value from the inner products of the two bases."""
        f, g = self._kept(cross.a), self._kept(cross.b)
        value: Tensor = f @ f + g @ g - 2 * (f @ cross.product.square() @ g)
        return value.clamp(min=0)  # rounding may leave -1e-15, which has no root

    def moment_cost(self, p: int, q: int) -> Cost:
        """Return the cost of the squares of all inner products."""
        return Cost(touched=1.0 * p * q)

    def with_gradient(self, x: Float[Tensor, "n p"], y: Float[Tensor, "n q"]) -> Tensor:
        """Compute the value with a gradient, from H = QQ', Q the first n rows of an orthonormal basis of [X~;
        sqrt(ridge) I].

        This is ridge regression as least squares on an augmented matrix; it does not square small singular values.
        """
        P, Q = self._smoother(x), self._smoother(y)
        return (P.T @ P).square().sum() + (Q.T @ Q).square().sum() - 2 * (P.T @ Q).square().sum()

    def _smoother(self, x: Float[Tensor, "n p"]) -> Float64[Tensor, "n r"]:
        if not self.ridge:
            basis = self.recipe.with_gradient(x).basis
            assert isinstance(basis, Tensor)
            return basis
        values, _ = layer_with_gradient(x)
        penalty = math.sqrt(self.ridge) * torch.eye(x.shape[1], dtype=torch.float64, device=values.device)
        stacked = torch.cat([values / torch.linalg.matrix_norm(values), penalty])
        smoother: Tensor = torch.linalg.qr(stacked)[0][: len(values)]
        return smoother

    def samples_needed(self, p: int, q: int) -> int:
        """Return the number for which the chance term 2 r t / (n - 1) is a fifth of r + t."""
        return math.ceil(10 * p * q / (p + q)) + 1

    def chance(self, a: Subspace, b: Subspace) -> Chance:
        """Return the chance level: exactly sum f_i^2 + sum g_j^2 - 2 (sum f_i) (sum g_j) / (n - 1); without a ridge r +
        t - 2rt / (n - 1).
        """
        f, g = self._kept(a), self._kept(b)
        return Chance(float(f @ f + g @ g - 2 * f.sum() * g.sum() / (a.n - 1)))

    def caution(self, a: Subspace, b: Subspace) -> str | None:
        """Warn of too few samples for the two ranks, without a penalty."""
        return None if self.ridge else saturation(a.n, a.rank, b.rank, "directions")

    def diagnostics(self, factor: Subspace) -> dict[str, int]:
        """Report the rank of the layer."""
        return {"rank": factor.rank}


@dataclass(frozen=True)
class EigenspaceOverlap(SubspaceMetric):
    """Eigenspace overlap score, ||U'V||_F^2 / max(p, q): the share of the column spaces that two layers have in common.

    U and V are orthonormal bases of the columns of X (n x p) and Y (n x q), which are not centred. Range [0, 1]. The
    value of a layer of rank r with itself is r / p. So it is min(n, p) / p for a layer of full rank, and 1 only if n
    >= p.

    References
    ----------
    May, Zhang, Dao, Re. On the downstream performance of compressed word embeddings. NeurIPS 2019.

    Examples
    --------
    >>> import numpy as np
    >>> x, y = (np.random.default_rng(seed).normal(size=(100, 4)) for seed in (0, 1))
    >>> round(EigenspaceOverlap()(x, x * [1, 2, 3, 4]), 6), round(EigenspaceOverlap()(x, y), 2)
    (1.0, 0.04)
    >>> round(EigenspaceOverlap()(x, x[:, [0, 1, 2, 3, 3]]), 6)  # rank 4 of 5 features
    0.8
    """

    name: ClassVar[str] = "eigenspace_overlap"
    title: ClassVar[str] = "Eigenspace overlap"
    formula: ClassVar[str] = "||U'V||_F^2 / max(p, q), U and V orthonormal bases, not centred"
    citation: ClassVar[str] = "May et al. 2019"
    group: ClassVar[Group] = "rsm"
    question: ClassVar[str] = "What share of the space that their features span do two layers have in common?"
    needs: ClassVar[str] = "5 times the features of the narrower layer; otherwise chance alone exceeds 0.2"

    @property
    def invariances(self) -> frozenset[Invariance]:
        """All linear transformations; a translation adds the direction of the mean."""
        return frozenset({"permutation", "orthogonal", "isotropic scaling", "invertible linear"})

    @property
    def recipe(self) -> PrincipalSubspace:
        """Decomposition of the layer without centring."""
        return PrincipalSubspace(centred=False)

    def moment(self, cross: Cross[Subspace]) -> Tensor:
        """Return the value from the inner products of the two bases."""
        value: Tensor = cross.product.square().sum() / max(cross.a.features, cross.b.features)
        return value.clamp(max=1)  # rounding may leave 1 + 2e-16

    def moment_cost(self, p: int, q: int) -> Cost:
        """Return the cost of the squares of all inner products."""
        return Cost(touched=1.0 * p * q)

    def samples_needed(self, p: int, q: int) -> int:
        """Return the number of samples, from the chance level min(p, q) / n for features with mean 0."""
        return 5 * min(p, q)

    def chance(self, a: Subspace, b: Subspace) -> Chance:
        """Return the chance level: exactly (uv + (r - u)(t - v) / (n - 1)) / max(p, q); the spans contain u and v of
        the constant direction.

        Permutations keep the constant direction, and mix the n - 1 others.
        """
        u, v = _constant(a), _constant(b)
        return Chance((u * v + (a.rank - u) * (b.rank - v) / (a.n - 1)) / max(a.features, b.features))

    def caution(self, a: Subspace, b: Subspace) -> str | None:
        """Warn of too few samples for the two ranks."""
        return saturation(a.n, a.rank, b.rank, "directions", centred=False)

    def diagnostics(self, factor: Subspace) -> dict[str, int]:
        """Report the rank of the layer."""
        return {"rank": factor.rank}


def _constant(side: Subspace) -> float:
    """Return 1'UU'1 / n, the share of the constant direction that lies in the span."""
    place = float64_device(side.device)
    sums = sum(side.rows(i).to(place, torch.float64).sum(0) for i in pieces(side.basis))
    return float(torch.as_tensor(sums).square().sum()) / side.n
