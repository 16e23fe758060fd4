"""Shape measures: nuclear, angular shape, Procrustes and size-and-shape distances of rotated layers."""

import math
from abc import abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple
from weakref import WeakKeyDictionary

import numpy as np
import torch
from jaxtyping import Float, Float64
from torch import Tensor

from repsim.errors import UndefinedValueError
from repsim.metrics.algorithms.cross import Cross
from repsim.metrics.base import Array, Chance, Group, Invariance
from repsim.metrics.recipes.rows import cut, float64_device
from repsim.metrics.recipes.subspace import PrincipalSubspace, Subspace, layer_with_gradient
from repsim.metrics.subspaces import SubspaceMetric, exact, singular_values

_RUN = 2**20
"""Values per run of samples in `_half_residual`."""
_CLOSE, _CLOSE_FLOAT32 = 1e-4, 1e-2
"""Gaps 1 - ||X^'Y^||_* below this are computed from the residual: their square root, the distance, would show the
errors of the product.
"""
_ROUNDING = 1e-26
"""Gaps 1 - ||X^'Y^||_* up to this are rounding errors."""


def misfit(cross: Cross[Subspace]) -> Float64[Tensor, ""]:
    """Return 1 - ||X^'Y^||_*, for X^ and Y^ of unit norm, without cancellation; all shape measures are computed from
    it.

    With X^ = Q S V' and Y^ = P T W', the nuclear norm is the sum of the singular values of S Q'P T. If it is nearly 1,
    the difference is computed as half the squared residual of the samples, after Y^ is rotated onto X^.
    """
    a, b = cross.a, cross.b
    if a is b:
        return torch.zeros((), dtype=torch.float64)
    s, t = a.shares.sqrt(), b.shares.sqrt()
    product = s[:, None] * cross.product * t
    gap: Tensor = 1 - singular_values(product, exact=exact(a, b), subtracted_from=1.0).sum()
    if gap >= (_CLOSE if exact(a, b) else _CLOSE_FLOAT32):
        return gap
    place = float64_device(a.device)
    runs = cut(a.n, max(64, _RUN // max(a.rank, b.rank)))
    pairs = ((a.rows(i).to(place, torch.float64) * s, b.rows(i).to(place, torch.float64) * t) for i in runs)
    return _half_residual(pairs, product)


def _half_residual(
    runs: Iterable[tuple[Float64[Tensor, "rows r"], Float64[Tensor, "rows t"]]], product: Float64[Tensor, "r t"]
) -> Float64[Tensor, ""]:
    """Return (||X A - Y B||^2 + squares of the remaining columns) / 2, for X'Y = A D B', over runs of samples.

    It is stationary in A and B, so their derivatives do not contribute to the gradient, nor their rounding errors to
    the value.
    """
    left, _, right = torch.linalg.svd(product.detach())
    k = min(product.shape)
    total = torch.zeros((), dtype=torch.float64, device=product.device)
    for x, y in runs:
        u, v = x @ left, y @ right.T
        total = total + (u[:, :k] - v[:, :k]).square().sum() + u[:, k:].square().sum() + v[:, k:].square().sum()
    return total / 2


def chance_alignment(x: "Means", y: "Means") -> float:
    """Return the approximate mean of ||X^'Y^||_* over permutations of samples, from the `spectral_means` of both.

    The permutation is approximated by a random rotation. In the n - 1 dimensions after centring, XX' and a rotated YY'
    are then free, and the spectrum of (XX')^1/2 YY' (XX')^1/2 is the free multiplicative convolution of theirs. With
    h_A(a) the mean of a l / (1 + a l) over the n - 1 eigenvalues l of A, and h_A(a) = h_B(b) = h, the convolution M
    has h_M(z) = h at z = a b (1 - h) / h [1]; and the mean root of its eigenvalues is the integral of
    h z^-3/2 dz / pi.
    For two white layers of d << n directions it is 8 / (3 pi) sqrt(d / n).

    References
    ----------
    [1] Voiculescu. Multiplication of certain non-commuting random variables. J. Operator Theory 1987.

    Examples
    --------
    >>> white = torch.full((50,), 1 / 50, dtype=torch.float64)
    >>> layer = spectral_means(white, 20_000)
    >>> round(chance_alignment(layer, layer), 3), round(8 / (3 * math.pi) * (50 / 20_000) ** 0.5, 3)
    (0.042, 0.042)
    >>> layer = spectral_means(white, 50)  # it spans the whole sample space
    >>> round(chance_alignment(layer, layer), 4)
    1.0
    """
    few, many = sorted((x, y), key=lambda means: means.rank)
    log_z = np.log(few.a) + np.interp(np.log(few.h), np.log(many.h), np.log(many.a)) + np.log((1 - few.h) / few.h)
    heights = few.h * np.exp(-log_z / 2)
    ends = 2 * (heights[0] + heights[-1])  # below the grid h is proportional to z, above it h is constant
    area = torch.trapezoid(torch.from_numpy(heights), torch.from_numpy(log_z))  # numpy 1 has another name for it
    return few.dimensions / math.pi * (float(area) + float(ends))


class Means(NamedTuple):
    """Function h of `chance_alignment` for one spectrum, on a grid."""

    a: Array
    h: Array
    rank: int
    """Number of eigenvalues above 0."""
    dimensions: int
    """Number of eigenvalues, n - 1 of centred layers."""


def spectral_means(spectrum: Float64[Tensor, " r"], dimensions: int) -> Means:
    """Return h(a), the mean of a l / (1 + a l) over all eigenvalues l, from those above 0: shares of variance."""
    eigenvalues = spectrum.cpu().numpy()
    a = np.geomspace(1e-8, 1e8, 2000) / eigenvalues.max()
    h = sum(a * value / (1 + a * value) for value in eigenvalues) / dimensions
    return Means(a, h, len(eigenvalues), dimensions)


_MEANS: WeakKeyDictionary[Subspace, Means] = WeakKeyDictionary()


def _means_of(layer: Subspace) -> Means:
    """Return the means of a layer, computed once for all pairs."""
    if layer not in _MEANS:
        _MEANS[layer] = spectral_means(layer.shares, layer.n - 1)
    return _MEANS[layer]


class Fit(NamedTuple):
    """Misfit of two layers, and their norms."""

    misfit: Float64[Tensor, ""]
    """1 - ||X^'Y^||_*."""
    x_norm: Float64[Tensor, ""]
    y_norm: Float64[Tensor, ""]


class ShapeMetric(SubspaceMetric):
    """Measure computed from the misfit of two rotated layers. Subclasses define `value_of`."""

    group: ClassVar[Group] = "alignment"
    sense: ClassVar[Literal["similarity", "distance"]] = "distance"
    triangle: ClassVar[bool] = True
    needs: ClassVar[str] = "18 times the features of the wider layer; otherwise the nuclear norm exceeds 0.2 by chance"

    @abstractmethod
    def value_of(self, fit: Fit) -> Float64[Tensor, ""]:
        """Return the value for two layers with this fit."""

    @property
    def invariances(self) -> frozenset[Invariance]:
        """Transformations that leave the shape unchanged."""
        return frozenset({"permutation", "orthogonal", "isotropic scaling", "translation"})

    @property
    def recipe(self) -> PrincipalSubspace:
        """Decomposition that is shared by the whole family, and with CCA."""
        return PrincipalSubspace()

    def moment(self, cross: Cross[Subspace]) -> Tensor:
        """Return the value from the inner products of the two bases."""
        return self.value_of(Fit(cross.once(misfit), cross.a.norm, cross.b.norm))

    def with_gradient(self, x: Float[Tensor, "n p"], y: Float[Tensor, "n q"]) -> Tensor:
        """Compute the value with a gradient, from the nuclear norm of X'Y; raise `UndefinedValueError` for a distance
        of 0.

        Where X'Y loses rank the nuclear norm is not differentiable, and the result is its smallest subgradient. Second
        derivatives of layers that nearly coincide omit the part from the derivative of the rotation.
        """
        (left, x_unit), (right, y_unit) = layer_with_gradient(x), layer_with_gradient(y)
        x_norm, y_norm = torch.linalg.matrix_norm(left), torch.linalg.matrix_norm(right)
        left, right, x_norm, y_norm = left / x_norm, right / y_norm, x_norm * x_unit, y_norm * y_unit
        product = left.T @ right
        values = torch.linalg.svdvals(product)
        noise = values[0].detach() * max(product.shape) * torch.finfo(torch.float64).eps
        gap: Tensor = 1 - values[values > noise].sum()
        if gap < _CLOSE:
            gap = _half_residual([(left, right)], product)
        value = self.value_of(Fit(gap, x_norm, y_norm))
        if self.sense == "distance" and value <= self.value_of(Fit(torch.full_like(gap, _ROUNDING), x_norm, x_norm)):
            raise UndefinedValueError(f"the layers have the same shape: {self.name} has no gradient where it is 0")
        return value

    def samples_needed(self, p: int, q: int) -> int:
        """Return the number from the chance level 8 / (3 pi) sqrt(d / n); layers of unequal widths need fewer."""
        return 18 * max(p, q) + 1

    def chance(self, a: Subspace, b: Subspace) -> Chance:
        """Return the chance level: approximately the value at the mean of ||X^'Y^||_* over permutations, from the free
        convolution of the two spectra.
        """
        gap = torch.tensor(1 - chance_alignment(_means_of(a), _means_of(b)), dtype=torch.float64)
        return Chance(float(self.value_of(Fit(gap, a.norm, b.norm))), exact=False)

    def caution(self, a: Subspace, b: Subspace) -> str | None:
        """Warn of a layer that spans the whole sample space."""
        widest = max(a.rank, b.rank)
        if widest < a.n - 1:
            return None
        return f"{widest} directions span all n = {a.n} samples, so unrelated layers fit, too; take more samples"

    def diagnostics(self, factor: Subspace) -> dict[str, int]:
        """Report the rank of the layer."""
        return {"rank": factor.rank}


@dataclass(frozen=True)
class Nuclear(ShapeMetric):
    """Normalised Bures similarity, ||X~'Y~||_* / (||X~||_F ||Y~||_F): the cosine after the best rotation.

    X~ (n x p) and Y~ (n x q) are the centred layers, ||.||_* is the sum of singular values. It is the fidelity of the
    two Gram matrices, tr (K^1/2 L K^1/2)^1/2 / sqrt(tr K tr L), and the largest inner product <X^, Y^R> over rotations
    R. Range [0, 1]. For unrelated layers it is not 0 but about 8 / (3 pi) sqrt(d / n) for d equally strong directions.

    References
    ----------
    Tang, Maddox, Dickens, Diethe, Damianou. Similarity of neural networks with gradients. 2020.
    Harvey, Larsen, Williams. Duality of Bures and shape distances with implications for comparing neural
    representations. UniReps 2023.

    Examples
    --------
    >>> import numpy as np
    >>> x, y = (np.random.default_rng(seed).normal(size=(500, 4)) for seed in (0, 1))
    >>> round(Nuclear()(x, 3 * x[:, ::-1]), 6), round(Nuclear()(x, y), 2)
    (1.0, 0.09)
    """

    name: ClassVar[str] = "nuclear"
    title: ClassVar[str] = "Normalised Bures similarity"
    formula: ClassVar[str] = "||X'Y||_* / (||X||_F ||Y||_F), centred"
    citation: ClassVar[str] = "Tang et al. 2020; Harvey et al. 2023"
    question: ClassVar[str] = "How large is the cosine between two layers after one is rotated onto the other?"
    sense: ClassVar[Literal["similarity", "distance"]] = "similarity"
    triangle: ClassVar[bool] = False

    def value_of(self, fit: Fit) -> Float64[Tensor, ""]:
        """Return ||X^'Y^||_*."""
        return 1 - fit.misfit


@dataclass(frozen=True)
class AngularShape(ShapeMetric):
    """Angular shape distance: the angle between two layers after one is rotated onto the other.

    arccos ||X^'Y^||_*, where X^ = X~ / ||X~||_F is centred and of unit norm: the Riemannian distance of Kendall's shape
    space. A metric, in radians. Range [0, pi/2].

    References
    ----------
    Williams, Kunz, Kornblith, Linderman. Generalized shape metrics on neural representations. NeurIPS 2021.

    Examples
    --------
    >>> import numpy as np
    >>> x, y = (np.random.default_rng(seed).normal(size=(500, 4)) for seed in (0, 1))
    >>> round(AngularShape()(x, 3 * x[:, ::-1]), 6), round(AngularShape()(x, y), 2)
    (0.0, 1.48)
    """

    name: ClassVar[str] = "angular_shape"
    title: ClassVar[str] = "Angular shape distance"
    formula: ClassVar[str] = "arccos(||X'Y||_* / (||X||_F ||Y||_F)), centred"
    citation: ClassVar[str] = "Williams et al. 2021"
    question: ClassVar[str] = "By what angle do two layers differ after one is rotated onto the other?"

    @property
    def bounds(self) -> tuple[float, float]:
        """Range of the value: [0, pi/2]."""
        return 0.0, math.pi / 2

    def value_of(self, fit: Fit) -> Float64[Tensor, ""]:
        """Return the angle from half the chord, because arccos loses half the digits of small angles."""
        return 2 * (fit.misfit / 2).sqrt().asin()


@dataclass(frozen=True)
class Procrustes(ShapeMetric):
    """Orthogonal Procrustes distance: the residual between centred layers of unit norm after the best rotation.

    min_R ||X^ - Y^R||_F = sqrt(2 - 2 ||X^'Y^||_*) over orthogonal R, the narrower layer padded with zeros, where
    X^ = X~ / ||X~||_F. A metric. Range [0, sqrt 2].

    References
    ----------
    Ding, Denain, Steinhardt. Grounding representation similarity through statistical testing. NeurIPS 2021.
    Williams, Kunz, Kornblith, Linderman. Generalized shape metrics on neural representations. NeurIPS 2021.

    Examples
    --------
    >>> import numpy as np
    >>> x, y = (np.random.default_rng(seed).normal(size=(500, 4)) for seed in (0, 1))
    >>> round(Procrustes()(x, 3 * x[:, ::-1]), 6), round(Procrustes()(x, y), 2)
    (0.0, 1.35)
    """

    name: ClassVar[str] = "procrustes"
    title: ClassVar[str] = "Procrustes distance"
    formula: ClassVar[str] = "sqrt(2 - 2 ||X'Y||_* / (||X||_F ||Y||_F)), centred"
    citation: ClassVar[str] = "Ding et al. 2021; Williams et al. 2021"
    question: ClassVar[str] = "How far apart are two layers of unit norm after one is rotated onto the other?"
    others: ClassVar[Mapping[str, str]] = {
        "Ding et al. 2021, sim_metric": "returns the square, which is not a metric",
        "scipy.spatial.procrustes": "1 - ||X'Y||_*^2: one layer is also scaled to fit, and the residual squared",
    }

    @property
    def bounds(self) -> tuple[float, float]:
        """Range of the value: [0, sqrt 2]."""
        return 0.0, math.sqrt(2)

    def value_of(self, fit: Fit) -> Float64[Tensor, ""]:
        """Return the chord."""
        return (2 * fit.misfit).sqrt()


@dataclass(frozen=True)
class ProcrustesSize(ShapeMetric):
    """Procrustes size-and-shape distance: the residual after the best rotation, without scaling.

    min_R ||X~ - Y~R||_F = sqrt(||X~||_F^2 + ||Y~||_F^2 - 2 ||X~'Y~||_*) over orthogonal R, the narrower layer padded
    with zeros; X~ and Y~ are centred. It is the Bures distance between their Gram matrices. A metric. Range
    [0, infinity), in the units of the activations; it grows with sqrt n.

    References
    ----------
    Williams, Kunz, Kornblith, Linderman. Generalized shape metrics on neural representations. NeurIPS 2021.
    Harvey, Larsen, Williams. Duality of Bures and shape distances with implications for comparing neural
    representations. UniReps 2023.

    Examples
    --------
    >>> import numpy as np
    >>> x = np.array([[1.0, 0], [-1, 0], [0, 1], [0, -1]])
    >>> round(ProcrustesSize()(x, x[:, ::-1]), 6), round(ProcrustesSize()(x, 3 * x), 6)
    (0.0, 4.0)
    """

    name: ClassVar[str] = "procrustes_size"
    title: ClassVar[str] = "Procrustes size-and-shape distance"
    formula: ClassVar[str] = "sqrt(||X||_F^2 + ||Y||_F^2 - 2 ||X'Y||_*), centred"
    citation: ClassVar[str] = "Williams et al. 2021; Harvey et al. 2023"
    question: ClassVar[str] = "How far apart are two layers after one is rotated onto the other, without scaling?"

    @property
    def bounds(self) -> tuple[float, float]:
        """Range of the value: [0, infinity)."""
        return 0.0, math.inf

    @property
    def invariances(self) -> frozenset[Invariance]:
        """Transformations that leave the shape and its size unchanged."""
        return frozenset({"permutation", "orthogonal", "translation"})

    def value_of(self, fit: Fit) -> Float64[Tensor, ""]:
        """Return the distance from terms that do not cancel: (||X|| - ||Y||)^2 + 2 ||X|| ||Y|| (1 - ||X^'Y^||_*)."""
        unit = torch.maximum(fit.x_norm, fit.y_norm).detach()
        a, b = fit.x_norm / unit, fit.y_norm / unit
        return unit * ((a - b).square() + 2 * a * b * fit.misfit).sqrt()
