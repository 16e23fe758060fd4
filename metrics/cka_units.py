"""CKA of layers of which some units were recorded: corrected for sampled units as well as for sampled stimuli."""

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
from repsim.metrics.recipes.rows import Centred, Rows, pieces, wide

_NOTHING_SHARED = (
    "no two units have anything in common but noise, so that nothing is known of units that were not sampled: take "
    "more units, or cka"
)


@dataclass(frozen=True, eq=False)
class SampledGram(Gram):
    """One layer's Gram matrix, and two estimates of its squared norm after U-centring."""

    norm2: float = 0.0
    """||A||^2, of the units that there are."""
    shared2: float = 0.0
    """p / (p - 1) sum_{j != k} <A_j, A_k>, from different units only."""


@dataclass(frozen=True)
class SampledUnits(StreamingRecipe[SampledGram]):
    """The recipe of a `SampledGram`: that of linear CKA, and both norms from X'X or XX', in float64."""

    @override
    def cost(self, layer: LayerSize) -> Cost:
        """X'X or XX', whichever is smaller."""
        return Cost(flop64=1.0 * layer.n * layer.p * min(layer.n, layer.p))

    @override
    def memory(self, layer: LayerSize) -> Memory:
        """That of linear CKA, and the smaller product."""
        return dataclasses.replace(CentredGram().memory(layer), workspace=8 * min(layer.n, layer.p) ** 2)

    def fit(self, x: Rows) -> tuple[GramState, float, float]:
        """Centre and scale, and find both norms."""
        n, p = x.shape
        state = CentredGram().fit(x)
        z = Centred(x, state.mean, state.scale, torch.float64)
        product = (covariance(z) if p <= n else inner_products(z)).triu()
        whole = float(2 * product.square().sum() - product.diagonal().square().sum())
        squares, fourths, g = torch.zeros_like(state.mean), torch.zeros_like(state.mean), []
        for i in pieces(x):
            rows = z.exact(i).square()
            squares, fourths = squares + rows.sum(0), fourths + rows.square().sum(0)
            g.append(rows.sum(1))
        norms = torch.cat(g)
        norm2 = _u_centred(whole, float(norms.square().sum()), float(norms.sum()) ** 2, n)
        alone = _u_centred(float(squares.square().sum()), float(fourths.sum()), float(squares.square().sum()), n)
        noise = 1e-12 * whole
        if p < 2 or norm2 <= noise or (shared2 := p / (p - 1) * (norm2 - alone)) <= noise:
            raise UndefinedValueError(_NOTHING_SHARED)
        return state, norm2, shared2

    def apply(self, x: Rows, state: tuple[GramState, float, float]) -> SampledGram:
        """Make the factor."""
        gram, norm2, shared2 = state
        made = CentredGram().apply(x, gram)
        fields = {field.name: getattr(made, field.name) for field in dataclasses.fields(made)}
        return SampledGram(**fields, norm2=norm2, shared2=shared2)


def _u_centred(whole: Any, of_squares: Any, squared_sum: Any, n: int) -> Any:
    """||A||^2 of a U-centred XX', from ||X'X||^2, sum_i g_i^2 and (sum_i g_i)^2, g_i = ||x_i||^2, X being centred."""
    return whole - n / (n - 2) * of_squares + squared_sum / ((n - 1) * (n - 2))


@dataclass(frozen=True)
class SampledUnitsCKA(MomentMetric[SampledGram]):
    """CKA between X (n x p) and Y (n x q), corrected for sampled stimuli and for sampled units.

    X and Y are taken as p and q units drawn at random, independently of each other, out of the many that two networks
    or brain areas have; what is estimated is the CKA of all units. With A = sum_j A_j, A_j the U-centred Gram matrix
    of unit j alone, the numerator of debiased CKA, <A, B>, is right for sampled units, too. But ||A||^2 holds the p
    products of a unit with itself, which makes it too large, and debiased CKA too small. Products of different units
    are unbiased: ||A||^2 is replaced by p / (p - 1) sum_{j != k} <A_j, A_k>, and the value is

    <A, B> / sqrt(p / (p - 1) sum_{j != k} <A_j, A_k>  x  q / (q - 1) sum_{j != k} <B_j, B_k>).

    It is an estimate that may exceed 1. A layer has a value of 1 or more with itself: the same units on both sides are
    not drawn independently of each other. It depends on which units there are, so a rotation changes it.

    Raises
    ------
    UndefinedValueError
        For a constant layer, and for one whose units have no more in common than chance gives them: its norm is not
        positive.

    References
    ----------
    Chun, Canatar, Chung, Lee. Estimating neural representation alignment from sparsely sampled inputs and features.
    2025, arXiv 2502.15104; the published code (badooki/CKA, moment_utils.py).

    Examples
    --------
    >>> import numpy as np
    >>> from repsim.metrics.cka import CKA
    >>> rng = np.random.default_rng(0)
    >>> z = rng.normal(size=(500, 20))  # latent variables, of which both layers are 30 random maps
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
    needs: ClassVar[str] = "20 debiased, and units enough that different ones have something in common"
    others: ClassVar[Mapping[str, str]] = {
        "badooki/CKA (published)": "the same; with indep_cols=False it takes both layers for the same units, and "
        "leaves products of a unit with itself out of the numerator, too",
        "cka": "corrects for sampled stimuli only, and takes the units that there are for all",
    }
    sense: ClassVar[Literal["similarity", "distance"]] = "similarity"
    symmetric: ClassVar[bool] = True

    @property
    def bounds(self) -> tuple[float, float]:
        """None: the estimated norms may be small."""
        return -math.inf, math.inf

    @property
    def invariances(self) -> frozenset[Invariance]:
        """Not to rotations, which mix units."""
        return frozenset({"permutation", "isotropic scaling", "translation"})

    @property
    def recipe(self) -> SampledUnits:
        """That of linear CKA, and the norms."""
        return SampledUnits()

    def moment(self, cross: Cross[SampledGram]) -> float:
        """<A, B> as in debiased CKA, over the two norms."""
        a, b = cross.a, cross.b
        product = a.norm2 if a is b else CKA().moment(cross)
        return product / math.sqrt(a.shared2 * b.shared2)

    def with_gradient(self, x: Float[Tensor, "n p"], y: Float[Tensor, "n q"]) -> Tensor:
        """The formula, on whole matrices."""
        A, B = (CentredGram().with_gradient(side, unbiased=True) for side in (x, y))
        D, E = _shared_norm(A, x), _shared_norm(B, y)
        if min(float(D.detach()), float(E.detach())) <= 0:
            raise UndefinedValueError(_NOTHING_SHARED)
        return (A * B).sum() / (D * E).sqrt()

    @override
    def samples_needed(self, p: int, q: int) -> int:
        """As of debiased CKA."""
        return 20

    def chance(self, a: SampledGram, b: SampledGram) -> Chance:
        """Mean 0, variance 2 / (n (n - 3)) x ||A||^2 ||B||^2 / (D_X D_Y), exactly: norms do not change."""
        inflated = math.sqrt(a.norm2 * b.norm2 / (a.shared2 * b.shared2))
        return Chance(0.0, math.sqrt(2 / (a.n * (a.n - 3))) * inflated)


def _shared_norm(A: Float64[Tensor, "n n"], x: Float[Tensor, "n p"]) -> Float64[Tensor, ""]:
    """P / (p - 1) sum_{j != k} <A_j, A_k>, with a gradient."""
    n, p = x.shape
    squares = (x - x.mean(0)).to(wide(x.device), torch.float64).square()
    sums = squares.sum(0)
    alone = _u_centred(sums.square().sum(), squares.square().sum(), sums.square().sum(), n)
    shared: Tensor = p / max(1, p - 1) * (A.square().sum() - alone)
    return shared
