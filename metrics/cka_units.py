"""CKA of layers of which only some units were recorded, corrected for sampled units and sampled stimuli."""

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Float, Float64
from torch import Tensor
from typing_extensions import override

from repsim.errors import UndefinedValueError
from repsim.metrics.algorithms.cross import Cross
from repsim.metrics.base import Chance, Group, Invariance, MomentMetric
from repsim.metrics.cka import CKA
from repsim.metrics.recipes.base import StreamingRecipe
from repsim.metrics.recipes.cost import Cost, LayerSize, Memory
from repsim.metrics.recipes.gram import CentredGram, Gram, GramState
from repsim.metrics.recipes.products import covariance, inner_products
from repsim.metrics.recipes.rows import Centred, Rows, float64_device, pieces

_NOTHING_SHARED = (
    "different units share no more than noise, so the norm over all units cannot be estimated: take more units, or use "
    "cka"
)


@dataclass(frozen=True, eq=False)
class SampledGram(Gram):
    """Gram matrix of one layer, with two estimates of its squared norm after U-centring."""

    norm2: float = 0.0
    """||A||^2 of the recorded units."""
    shared2: float = 0.0
    """p / (p - 1) sum_{j != k} <A_j, A_k>, from pairs of different units only."""


@dataclass(frozen=True)
class SampledUnits(StreamingRecipe[SampledGram]):
    """Recipe of a `SampledGram`: linear CKA, and both norms from X'X or XX', in float64."""

    @override
    def cost(self, layer: LayerSize) -> Cost:
        """Return the cost of X'X or XX', whichever is smaller."""
        return Cost(flop64=1.0 * layer.n * layer.p * min(layer.n, layer.p), touched=2.0 * layer.n * layer.p, calls=200)

    @override
    def memory(self, layer: LayerSize) -> Memory:
        """Return the memory of linear CKA, and of the smaller product."""
        return dataclasses.replace(CentredGram().memory(layer), workspace=8 * min(layer.n, layer.p) ** 2)

    def fit(self, x: Rows) -> tuple[GramState, float, float]:
        """Centre and scale the layer, and compute both norms."""
        n, p = x.shape
        state = CentredGram().fit(x)
        z = Centred(x, state.mean, state.scale, torch.float64)
        product = (covariance(z) if p <= n else inner_products(z)).triu()
        total = float(2 * product.square().sum() - product.diagonal().square().sum())
        squares, fourths, g = torch.zeros_like(state.mean), torch.zeros_like(state.mean), []
        for i in pieces(x):
            rows = z.exact(i).square()
            squares, fourths = squares + rows.sum(0), fourths + rows.square().sum(0)
            g.append(rows.sum(1))
        norms = torch.cat(g)
        norm2 = _u_centred(total, float(norms.square().sum()), float(norms.sum()) ** 2, n)
        same_unit = _u_centred(float(squares.square().sum()), float(fourths.sum()), float(squares.square().sum()), n)
        noise = 1e-12 * total
        if p < 2 or norm2 <= noise or (shared2 := p / (p - 1) * (norm2 - same_unit)) <= noise:
            raise UndefinedValueError(_NOTHING_SHARED)
        return state, norm2, shared2

    def apply(self, x: Rows, state: tuple[GramState, float, float]) -> SampledGram:
        """Make the factor from the layer and its state."""
        gram, norm2, shared2 = state
        factor = CentredGram().apply(x, gram)
        fields = {field.name: getattr(factor, field.name) for field in dataclasses.fields(factor)}
        return SampledGram(**fields, norm2=norm2, shared2=shared2)


def _u_centred(total: Any, sum_of_squares: Any, squared_sum: Any, n: int) -> Any:
    """Return ||A||^2 of a U-centred XX', from ||X'X||^2, sum_i g_i^2 and (sum_i g_i)^2, g_i = ||x_i||^2, X centred."""
    return total - n / (n - 2) * sum_of_squares + squared_sum / ((n - 1) * (n - 2))


@dataclass(frozen=True)
class SampledUnitsCKA(MomentMetric[SampledGram]):
    """CKA between X (n x p) and Y (n x q), corrected for sampled stimuli and for sampled units.

    X and Y are treated as p and q units drawn at random, independently of each other, from the many units of two
    networks or brain areas. The value estimates the CKA of all units. With A = sum_j A_j, where A_j is the U-centred
    Gram matrix of unit j alone, the numerator of debiased CKA, <A, B>, is unbiased for sampled units, too. But ||A||^2
    contains the p products of a unit with itself, which make it too large, and debiased CKA too small. Products of
    different units are unbiased: ||A||^2 is replaced by p / (p - 1) sum_{j != k} <A_j, A_k>, and the value is

    <A, B> / sqrt(p / (p - 1) sum_{j != k} <A_j, A_k>  x  q / (q - 1) sum_{j != k} <B_j, B_k>).

    The estimate may exceed 1. The value of a layer with itself is 1 or more, because the units of both sides are not
    drawn independently. The value depends on the units, so a rotation changes it.

    Raises
    ------
    UndefinedValueError
        For a constant layer, and for a layer whose units share no more than chance, so that its estimated squared norm
        is not positive.

    References
    ----------
    Chun, Canatar, Chung, Lee. Estimating neural representation alignment from sparsely sampled inputs and features.
    2025, arXiv 2502.15104; the published code (badooki/CKA, moment_utils.py).

    Examples
    --------
    >>> import numpy as np
    >>> from repsim.metrics.cka import CKA
    >>> rng = np.random.default_rng(0)
    >>> z = rng.normal(size=(500, 20))  # latent variables; each layer is 30 random linear maps of them
    >>> x, y = z @ rng.normal(size=(20, 30)), z @ rng.normal(size=(20, 30))
    >>> round(CKA()(x, y), 2), round(SampledUnitsCKA()(x, y), 2)
    (0.64, 1.1)
    """

    name: ClassVar[str] = "cka_units"
    title: ClassVar[str] = "CKA of sampled units"
    formula: ClassVar[str] = "<A, B> / sqrt(D_X D_Y), D_X = p / (p - 1) sum_{j != k} <A_j, A_k> over units j, k"
    citation: ClassVar[str] = "Chun et al. 2025"
    group: ClassVar[Group] = "rsm"
    question: ClassVar[str] = "How large would CKA be if all units had been recorded, and not only these?"
    needs: ClassVar[str] = "20, and enough units that different units share more than noise"
    others: ClassVar[Mapping[str, str]] = {
        "badooki/CKA (published)": "the same; with indep_cols=False it treats both layers as the same units, and "
        "leaves products of a unit with itself out of the numerator, too",
        "cka": "corrects for sampled stimuli only, and treats the recorded units as all units",
    }
    sense: ClassVar[Literal["similarity", "distance"]] = "similarity"
    symmetric: ClassVar[bool] = True

    @property
    def bounds(self) -> tuple[float, float]:
        """Unbounded: the estimated norms may be small."""
        return -math.inf, math.inf

    @property
    def invariances(self) -> frozenset[Invariance]:
        """Permutation, scaling and translation; rotations mix units."""
        return frozenset({"permutation", "isotropic scaling", "translation"})

    @property
    def recipe(self) -> SampledUnits:
        """Recipe of linear CKA, with both norms."""
        return SampledUnits()

    def moment(self, cross: Cross[SampledGram]) -> float:
        """Return <A, B> of debiased CKA, divided by the corrected norms."""
        a, b = cross.a, cross.b
        product = a.norm2 if a is b else CKA().moment(cross)
        return product / math.sqrt(a.shared2 * b.shared2)

    def moment_cost(self, p: int, q: int) -> Cost:
        """Return the cost of ||X'Y||^2."""
        return Cost(touched=1.5 * p * q)

    def with_gradient(self, x: Float[Tensor, "n p"], y: Float[Tensor, "n q"]) -> Tensor:
        """Compute the formula with a gradient, from the Gram matrices."""
        A, B = (CentredGram().with_gradient(side, unbiased=True) for side in (x, y))
        D, E = _shared_norm(A, x), _shared_norm(B, y)
        if min(float(D.detach()), float(E.detach())) <= 0:
            raise UndefinedValueError(_NOTHING_SHARED)
        return (A * B).sum() / (D * E).sqrt()

    @override
    def samples_needed(self, p: int, q: int) -> int:
        """Return the number for debiased CKA."""
        return 20

    def chance(self, a: SampledGram, b: SampledGram) -> Chance:
        """Return the chance level: 0, variance 2 / (n (n - 3)) x ||A||^2 ||B||^2 / (D_X D_Y), exactly: norms stay the
        same.
        """
        inflated = math.sqrt(a.norm2 * b.norm2 / (a.shared2 * b.shared2))
        return Chance(0.0, math.sqrt(2 / (a.n * (a.n - 3))) * inflated)


def _shared_norm(A: Float64[Tensor, "n n"], x: Float[Tensor, "n p"]) -> Float64[Tensor, ""]:
    """Return p / (p - 1) sum_{j != k} <A_j, A_k>, with a gradient."""
    n, p = x.shape
    squares = (x - x.mean(0)).to(float64_device(x.device), torch.float64).square()
    sums = squares.sum(0)
    same_unit = _u_centred(sums.square().sum(), squares.square().sum(), sums.square().sum(), n)
    shared: Tensor = p / max(1, p - 1) * (A.square().sum() - same_unit)
    return shared
