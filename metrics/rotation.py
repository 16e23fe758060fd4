"""Measures that align two layers without centring, by a rotation or by a permutation of features."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Float, Float64
from torch import Tensor
from torch.autograd.function import once_differentiable
from typing_extensions import override

from repsim.errors import UndefinedValueError
from repsim.metrics.algorithms.cross import in_float64
from repsim.metrics.algorithms.partners import best_partners, cost_of_assignment
from repsim.metrics.base import Group, Invariance, PairMetric
from repsim.metrics.recipes.base import InMemoryRecipe
from repsim.metrics.recipes.cost import Cost, LayerSize, Memory
from repsim.metrics.recipes.rows import column_means, float64_device

_CLOSE = 1e-4
"""Share of ||X||^2 + ||Y||^2 below which a squared distance would show the errors of its terms."""


@dataclass(frozen=True, eq=False)
class Coordinates:
    """Samples of one layer, in an orthonormal basis of their span if n < p, and otherwise in their features."""

    samples: Float64[Tensor, "n m"]
    """In units of the largest value of the layer."""
    norms: Float64[Tensor, " n"]

    @property
    def n(self) -> int:
        """Samples."""
        return len(self.samples)

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        return self.samples.nbytes + self.norms.nbytes


@dataclass(frozen=True)
class SampleSpace(InMemoryRecipe[Coordinates]):
    """Recipe of `Coordinates`: for p > n a QR decomposition X' = Q R in float64, and the coordinates are R'.

    Norms and angles stay the same, so a measure that depends only on them works with n x n instead of p x q matrices.
    """

    def __call__(self, x: Float[Tensor, "n p"]) -> Coordinates:
        """Prepare one layer."""
        column_means(x.detach())  # raises for a constant layer
        zero = int((x == 0).all(1).sum())
        if zero:
            raise UndefinedValueError(f"{zero} of {len(x)} samples are 0 in every feature: they have no direction")
        x = x.to(float64_device(x.device), torch.float64)
        x = x / x.detach().abs().max()
        if x.shape[1] > x.shape[0]:
            x = _folded(x) if x.requires_grad else torch.linalg.qr(x.T, mode="r")[1].T
        return Coordinates(x, torch.linalg.vector_norm(x, dim=1))

    @override
    def cost(self, layer: LayerSize) -> Cost:
        """Return the cost of the decomposition of X', if it is needed."""
        n, p = layer.n, layer.p
        return Cost(flop64=2.0 * n * n * p if p > n else 0.0, touched=4.0 * n * p, calls=100)

    @override
    def memory(self, layer: LayerSize) -> Memory:
        """Return the memory of coordinates and norms, always in float64."""
        return Memory(8 * layer.n * (min(layer.n, layer.p) + 1))


def _folded(x: Float64[Tensor, "n p"]) -> Float64[Tensor, "n n"]:
    """Return the coordinates with a gradient.

    The basis stays fixed: a step out of its span changes XX' only in second order.
    """
    basis: Tensor = torch.linalg.qr(x.detach().T)[0]
    return x @ basis


class Polar(torch.autograd.Function):
    """Rotation R = U V' that maximises tr(R'A), for A = U S V' without its zero singular values.

    The gradient divides by s_i + s_j and by s_i, and not by differences as the gradient of a singular value
    decomposition does, so it is finite where singular values repeat.
    """

    @staticmethod
    def forward(ctx: Any, a: Float64[Tensor, "p q"]) -> Float64[Tensor, "p q"]:
        """Return R."""
        u, s, vh = torch.linalg.svd(a, full_matrices=False)
        rank = int((s > s[0] * max(a.shape) * torch.finfo(a.dtype).eps).sum())
        u, s, vh = u[:, :rank], s[:rank], vh[:rank]
        ctx.save_for_backward(u, s, vh)
        rotation: Tensor = u @ vh
        return rotation

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Float64[Tensor, "p q"]) -> Float64[Tensor, "p q"]:
        """Return U [(K - K') / (s_i + s_j)] V', K = U'GV, plus the parts outside the spans of U and V, divided by s."""
        u, s, vh = ctx.saved_tensors
        left, right = u.T @ g, g @ vh.T
        k = left @ vh.T
        within = u @ ((k - k.T) / (s[:, None] + s)) @ vh
        out_of_u = ((right - u @ k) / s) @ vh
        out_of_v = u @ ((left - k @ vh) / s[:, None])
        gradient: Tensor = within + out_of_u + out_of_v
        return gradient


@dataclass(frozen=True)
class AlignedCosine(PairMetric[Coordinates]):
    """Mean cosine between the samples of X (n x p), rotated, and those of Y (n x q).

    The narrower layer is padded with zeros, and nothing is centred. With X'Y = U S V', the rotation R = U V' brings X
    as close to Y as possible (Schoenemann 1966); the value is 1/n sum_i cos(x_i R, y_i). Range [-1, 1]. Because nothing
    is centred, a mean that all samples share increases the value: layers after a ReLU look alike for this reason alone.

    Notes
    -----
    If X'Y has a lower rank than X and Y, several rotations are equally good; they differ only on directions without a
    counterpart. Only singular values above 0 are used, so such a direction contributes 0 to the inner product
    x_i R y_i' (the mean over a choice and its opposite), and its full length to ||x_i||. So the value is unique, and
    symmetric: Y is rotated by R'.

    Raises
    ------
    UndefinedValueError
        For a constant layer, for a layer with a sample that is 0 in every feature, which has no cosine, and if X'Y = 0.

    References
    ----------
    Hamilton, Leskovec, Jurafsky. Cultural shift or linguistic drift? Comparing two computational measures of semantic
    change. EMNLP 2016.
    Schoenemann. A generalized solution of the orthogonal Procrustes problem. Psychometrika 1966.

    Examples
    --------
    >>> import numpy as np
    >>> np.random.seed(0)
    >>> x, y = np.random.uniform(size=(30, 25)), np.random.uniform(size=(30, 25))
    >>> round(AlignedCosine()(x, y), 12)
    0.928461484863
    """

    name: ClassVar[str] = "aligned_cosine"
    title: ClassVar[str] = "Aligned cosine"
    formula: ClassVar[str] = "mean_i cos(x_i R, y_i), R = U V' with X'Y = U S V'"
    citation: ClassVar[str] = "Hamilton et al. 2016"
    group: ClassVar[Group] = "alignment"
    question: ClassVar[str] = "Do the samples of two layers, one of them rotated, point the same way from the origin?"
    needs: ClassVar[str] = "25 times the narrower layer for features with mean 0; other means raise the chance level"
    sense: ClassVar[Literal["similarity", "distance"]] = "similarity"
    symmetric: ClassVar[bool] = True

    @property
    def bounds(self) -> tuple[float, float]:
        """Range of the value: [-1, 1]."""
        return -1.0, 1.0

    @property
    def invariances(self) -> frozenset[Invariance]:
        """Permutation, rotation and scaling; not translation, because nothing is centred."""
        return frozenset({"permutation", "orthogonal", "isotropic scaling"})

    @property
    def recipe(self) -> SampleSpace:
        """Recipe that keeps norms of samples and angles between them."""
        return SampleSpace()

    def value(self, a: Coordinates, b: Coordinates) -> Tensor:
        """Return the value of two prepared layers."""
        product = a.samples.T @ b.samples
        largest = torch.linalg.vector_norm(a.norms.detach()) * torch.linalg.vector_norm(b.norms.detach())
        if product.detach().abs().max() <= torch.finfo(product.dtype).eps * largest:
            raise UndefinedValueError("the two layers have nothing in common (X'Y = 0): all rotations are equally good")
        rotated: Tensor = a.samples @ Polar.apply(product)
        return ((rotated * b.samples).sum(1) / (a.norms * b.norms)).mean()

    def samples_needed(self, p: int, q: int) -> int:
        """Return 25 min(p, q).

        The chance level is at most sqrt(min(p, q) / n), from ||X'Y||_* <= sqrt(min(p, q)) ||X'Y||_F.
        """
        return 25 * min(p, q)

    def caution(self, a: Coordinates, b: Coordinates) -> str | None:
        """Warn of layers with as many dimensions as samples on both sides."""
        n, dimensions = len(a.norms), min(a.samples.shape[1], b.samples.shape[1])
        if dimensions < n:
            return None
        return (
            f"n = {n} samples and at least as many features in both layers: a rotation brings even unrelated layers "
            "close together; take 25 times as many samples as the narrower layer has features"
        )

    def pair_cost(self, n: int, p: int, q: int) -> Cost:
        """Return the cost of X'Y, its decomposition, and the rotation of one layer."""
        m, k = min(n, p), min(n, q)
        decomposed = Cost(decomposed=20.0 * max(m, k) * min(m, k) ** 2, reduced=2.0 * m * k)
        return Cost(flop64=4.0 * n * m * k, touched=1.0 * n * (m + k), calls=60) + decomposed


@dataclass(frozen=True, eq=False)
class Features:
    """Features of one layer without centring, in units of ``scale``."""

    values: Float[Tensor, "n p"]
    scale: float
    square: float
    """Sum of the squares of all values."""

    @property
    def n(self) -> int:
        """Samples."""
        return len(self.values)

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        return self.values.nbytes


@dataclass(frozen=True)
class UncentredFeatures(InMemoryRecipe[Features]):
    """Recipe of `Features`: divide by a power of two above the largest value, so that no product overflows."""

    def __call__(self, x: Float[Tensor, "n p"]) -> Features:
        """Prepare one layer."""
        column_means(x.detach())  # raises for a constant layer
        scale = math.ldexp(1.0, math.frexp(float(x.detach().abs().max()))[1])
        values = x.to(torch.promote_types(x.dtype, torch.float32)) / scale
        norms = torch.linalg.vector_norm(values.detach(), dim=1, dtype=in_float64(values[:1]).dtype)
        return Features(values, scale, float(norms.square().sum()))

    @override
    def cost(self, layer: LayerSize) -> Cost:
        """Return the cost of a division."""
        return Cost.of_products(1.0 * layer.n * layer.p, layer.itemsize)

    @override
    def memory(self, layer: LayerSize) -> Memory:
        """Return the memory of the features."""
        return Memory(layer.n * layer.p * layer.itemsize)


@dataclass(frozen=True)
class PermutationProcrustes(PairMetric[Features]):
    """Distance between X (n x p) and Y (n x q) after the best one-to-one matching of their features.

    The narrower layer is padded with zeros, and nothing is centred. The matching pi maximises sum_i x_i'y_pi(i), and
    the distance is ||X_pi - Y||_F, features without a partner counting with their whole norm. Range [0, inf), in the
    units of the activations, and it grows with sqrt(n).

    Notes
    -----
    It is a metric between layers of equal width, and between layers without negative values (after a ReLU). Otherwise
    the triangle inequality may fail: the one-feature layers x and -x must be matched with each other, while the wider
    layer (x/2, -x/2) has a good partner for each of them. The assignment is exact, and takes one to three seconds per
    pair for 2,048 x 2,048 features.

    References
    ----------
    Williams, Kunz, Kornblith, Linderman. Generalized shape metrics on neural representations. NeurIPS 2021.

    Examples
    --------
    >>> import numpy as np
    >>> np.random.seed(0)
    >>> x, y = np.random.uniform(size=(30, 25)), np.random.uniform(size=(30, 25))
    >>> round(PermutationProcrustes()(x, y), 12), PermutationProcrustes()(x, x[:, ::-1])
    (9.346931991014, 0.0)
    """

    name: ClassVar[str] = "permutation_procrustes"
    title: ClassVar[str] = "Permutation Procrustes"
    formula: ClassVar[str] = "min over matchings pi of ||X_pi - Y||_F"
    citation: ClassVar[str] = "Williams et al. 2021"
    group: ClassVar[Group] = "alignment"
    question: ClassVar[str] = "How far apart are two layers after each feature is matched with a partner?"
    needs: ClassVar[str] = "any number: a distance has no chance level, and compares layers over the same samples only"
    others: ClassVar[Mapping[str, str]] = {
        "netrep (PermutationMetric)": "by default centres, and returns the angle between the two layers; here, as in "
        "the ReSi benchmark, activations are neither centred nor scaled",
    }
    sense: ClassVar[Literal["similarity", "distance"]] = "distance"
    symmetric: ClassVar[bool] = True

    @property
    def bounds(self) -> tuple[float, float]:
        """Range of the value: [0, inf)."""
        return 0.0, math.inf

    @property
    def invariances(self) -> frozenset[Invariance]:
        """Permutations of features; nothing is centred or scaled."""
        return frozenset({"permutation"})

    @property
    def recipe(self) -> UncentredFeatures:
        """Recipe that keeps the features."""
        return UncentredFeatures()

    def value(self, a: Features, b: Features) -> Tensor:
        """Return the value of two prepared layers.

        The squared distance is ||X||^2 + ||Y||^2 - 2 sum_i x_i'y_pi(i), unless so much cancels that the differences of
        the features are more accurate. The gradient treats the partners as fixed, because they change on a null set
        only.
        """
        with torch.no_grad():
            product = in_float64(a.values).T @ in_float64(b.values)
        i, j = best_partners(product)
        unit = max(a.scale, b.scale)
        u, v = a.scale / unit, b.scale / unit
        squares = u * u * a.square + v * v * b.square
        square = squares - 2 * u * v * product[i, j].sum()
        if square > _CLOSE * squares and not (a.values.requires_grad or b.values.requires_grad):
            return square.sqrt() * unit
        x, y = u * in_float64(a.values), v * in_float64(b.values)
        unmatched = [
            side.index_fill(1, partners, 0) for side, partners in ((x, i), (y, j)) if side.shape[1] > len(partners)
        ]
        parts = [x[:, i] - y[:, j], *unmatched]
        distance: Tensor = torch.linalg.vector_norm(torch.cat(parts, 1)) * unit
        return distance

    def pair_cost(self, n: int, p: int, q: int) -> Cost:
        """Return the cost of X'Y and of the assignment."""
        product = Cost(flop64=2.0 * n * p * q, summed=1.0 * p * q, touched=4.0 * n * (p + q), calls=60)
        return product + cost_of_assignment(p, q)
