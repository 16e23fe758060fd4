"""Measures that compare similarity or distance matrices: distance correlation, RSA and RSM difference."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import torch
from jaxtyping import Float, Float64
from torch import Tensor
from typing_extensions import override

from repsim.errors import UndefinedValueError
from repsim.metrics.base import Array, Chance, GramMetric, Group, Invariance, PairMetric
from repsim.metrics.recipes.base import InMemoryRecipe
from repsim.metrics.recipes.cost import Cost, LayerSize, Memory, outside_cache
from repsim.metrics.recipes.gram import NEAR, CentredGram, Gram, distances
from repsim.metrics.recipes.rows import column_means, cut, float64_device

_CHUNK = 2**15
"""Pairs of samples whose ranks are multiplied in float32 before the sum in float64; they fit into the cache."""
_ALIKE = 2.0**-6
"""Value of 1 - mean correlation below which correlations keep few digits."""
_EQUAL = 2.0**-90
"""Value of 1 - mean correlation below which it is only rounding errors."""
_PANEL = 512
"""Samples whose correlations with all others are computed at once."""
_EXACT_BELOW = 512
"""Number of samples up to which all eigenvalues take no longer than the largest one."""


@dataclass(frozen=True)
class DistanceCorrelation(GramMetric[Gram]):
    """Distance correlation between X (n x p) and Y (n x q), from their Euclidean distances d_ij and e_ij.

    With A = H d H and B = H e H, centred over rows and columns, it is the square root of <A, B> / (||A|| ||B||): the
    square root of the biased alignment of the kernels -d and -e. In the population it is 0 only for independent layers.
    Range [0, 1].

    This is the V-statistic of the first paper, which is biased: for unrelated Gaussian layers with p = n it is about
    0.9. The mean of its square over permutations of the samples is known (`chance`).

    Notes
    -----
    Distances of float32 layers are computed in float32, except between near duplicates, for which products in float64
    are used (for float64 layers: differences).

    References
    ----------
    Szekely, Rizzo, Bakirov. Measuring and testing dependence by correlation of distances. Annals of Statistics 2007.

    Examples
    --------
    >>> import numpy as np
    >>> np.random.seed(0)
    >>> x, y = np.random.uniform(size=(30, 25)), np.random.uniform(size=(30, 25))
    >>> round(DistanceCorrelation()(x, y), 9)
    0.885269652
    """

    name: ClassVar[str] = "distance_correlation"
    title: ClassVar[str] = "Distance correlation"
    formula: ClassVar[str] = "sqrt(<A, B> / (||A|| ||B||)), A and B the centred matrices of Euclidean distances"
    citation: ClassVar[str] = "Szekely, Rizzo, Bakirov 2007"
    group: ClassVar[Group] = "rsm"
    question: ClassVar[str] = "Do two layers depend on each other in any way, linear or not?"
    needs: ClassVar[str] = "100 times the wider layer; with fewer, chance alone exceeds 0.2, because it is biased"
    others: ClassVar[Mapping[str, str]] = {
        "dcor.u_distance_correlation_sqr": "the unbiased estimate of the square (Szekely & Rizzo 2014), which has "
        "mean 0 for unrelated layers, can be negative and has no root",
    }
    sense: ClassVar[Literal["similarity", "distance"]] = "similarity"
    symmetric: ClassVar[bool] = True
    normalised: ClassVar[bool] = True

    @property
    def bounds(self) -> tuple[float, float]:
        """Range of the value: [0, 1]."""
        return 0.0, 1.0

    @property
    def invariances(self) -> frozenset[Invariance]:
        """Transformations that leave all ratios of distances unchanged."""
        return frozenset({"permutation", "orthogonal", "isotropic scaling", "translation"})

    @property
    def recipe(self) -> CentredGram:
        """Recipe of CKA with the distance kernel."""
        return CentredGram("distance")

    @property
    def unbiased(self) -> bool:
        """False: this is the biased V-statistic of the first paper."""
        return False

    def finish(self, values: Array) -> Array:
        """Return the root of the cosine, which is negative only by rounding."""
        return np.sqrt(np.maximum(values, 0))

    def with_gradient(self, x: Float[Tensor, "n p"], y: Float[Tensor, "n q"]) -> Tensor:
        """Compute the formula with a gradient, from the distances.

        The gradient is NaN where the value is 0, because the root has no derivative there.
        """
        A, B = (self.recipe.with_gradient(side, unbiased=False) for side in (x, y))
        return ((A * B).sum() / (A.square().sum() * B.square().sum()).sqrt()).clamp(min=0).sqrt()

    def samples_needed(self, p: int, q: int) -> int:
        """Return 100 max(p, q); by chance its square is about 4p / (n + 4p) for Gaussian features."""
        return 100 * max(p, q)

    def chance(self, a: Gram, b: Gram) -> Chance | None:
        """Return the chance level: at most sqrt(tr(A) tr(B) / ((n - 1) ||A|| ||B||)), the root of the mean square,
        exact for any data.
        """
        if a.concentration is None or b.concentration is None:
            return None
        return Chance(math.sqrt(a.concentration * b.concentration / (a.n - 1)), exact=False)

    @override
    def reason(self, a: Gram, b: Gram) -> str:
        """Return the reason why ||A|| of a layer is zero up to rounding errors."""
        return "the distances are zero after centring, up to rounding errors"

    def caution(self, a: Gram, b: Gram) -> str | None:
        """Warn of more features than samples, where the value is mostly bias."""
        widest = max(a.p, b.p)
        if widest <= a.n:
            return None
        return (
            f"n = {a.n} samples but {widest} features: even unrelated layers score far above 0; compare with "
            f"permuted samples, or use cka, or {100 * widest:,} samples, with which unrelated layers score 0.2"
        )


@dataclass(frozen=True, eq=False)
class Ranks:
    """Ranks of the correlations between samples, as a vector of norm 1 and mean 0."""

    ranks: Float[Tensor, " pairs"]
    """One rank per pair of samples, row by row of the strict upper triangle."""
    n: int
    """Samples."""
    hubs: float
    """Share of the variance of the ranks that belongs to single samples: ||K||^2 of K_ij = u_i + u_j, the nearest such
    matrix
    off the diagonal, where the whole matrix has norm 1."""

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        return self.ranks.nbytes


@dataclass(frozen=True)
class RankedCorrelations(InMemoryRecipe[Ranks]):
    """Recipe of `RSA`: Pearson correlations between samples, over features, and their ranks.

    Correlations are computed in float64, and correlations that agree to 2^-30 (2^-46 for float64 layers) are tied.
    Otherwise rounding errors would determine the order of ties, which are frequent if features have few values. If all
    correlations are close to 1, the tolerance is 2^-30 of their differences.
    """

    @override
    def cost(self, layer: LayerSize) -> Cost:
        """Return the cost of half of all correlations, and of sorting them."""
        n = layer.n
        pairs = n * (n - 1) / 2
        return Cost(
            flop64=1.0 * n * n * layer.p,
            touched=(52 + 46 * outside_cache(n)) * pairs,
            sorted=pairs * math.log2(max(2.0, pairs)),
            calls=600,
        )

    @override
    def memory(self, layer: LayerSize) -> Memory:
        """Return the memory of the ranks; sorting needs the correlations, their order, and workspace of its own."""
        pairs = layer.n * (layer.n - 1) // 2
        return Memory(pairs * layer.itemsize, workspace=40 * pairs)

    def __call__(self, x: Float[Tensor, "n p"]) -> Ranks:
        """Prepare one layer."""
        column_means(x)  # raises for a constant layer
        n, p = x.shape
        if p == 1:
            raise UndefinedValueError("samples of a single feature have no correlation: rsa needs at least 2 features")
        z = _standardised(x)
        z, halves, unit = _spread(z)
        coarse = x.dtype != torch.float64
        keys = torch.empty(
            n * (n - 1) // 2, dtype=torch.int32 if coarse and halves is None else torch.int64, device=z.device
        )
        steps = 2.0**30 if coarse else 2.0**46
        start = 0
        for i in cut(n, _PANEL):
            products = z[i] @ z[i.start :].T
            if halves is not None:
                products = products.sub_(halves[i, None]).sub_(halves[i.start :])
            products = products.mul_(steps / unit).round_()
            above = products[torch.ones_like(products, dtype=torch.bool).triu_(1)]
            keys[start : start + len(above)] = above
            start += len(above)
        ranks = average_ranks(keys).sub_((len(keys) + 1) / 2)
        norm = torch.linalg.vector_norm(ranks)
        if norm == 0:
            raise UndefinedValueError("all pairs of samples are equally correlated, so there is no order to compare")
        ranks /= norm
        hubs = float(_row_sums(ranks, n).square().sum()) / (n - 2)
        return Ranks(ranks.to(x.device, x.dtype), n, hubs)


def _spread(z: Float64[Tensor, "n p"]) -> tuple[Float64[Tensor, "n p"], Float64[Tensor, " n"] | None, float]:
    """Return the vectors from which correlations are computed, so that correlations close to 1 keep their digits.

    1 - r_ij = ||z_i - z_j||^2 / 2 does not depend on the mean of all z. If the mean is nearly all of z (a channel that
    is large in every sample), it is subtracted. Returns the vectors, half of their squared norms if the mean was
    subtracted, and the unit of 1 - r_ij.
    """
    mean = z.mean(0)
    if 1 - float(mean.square().sum()) > _ALIKE:
        return z, None, 1.0
    rest = z - mean
    halves = rest.square().sum(1) / 2
    spread = float(2 * halves.mean())
    if spread < _EQUAL:
        return z, None, 1.0
    return rest, halves, 2.0 ** math.floor(math.log2(spread))


def _row_sums(above: Float64[Tensor, " pairs"], n: int) -> Float64[Tensor, " n"]:
    """Return the row sums of the symmetric matrix with this strict upper triangle and a zero diagonal."""
    sums = above.new_zeros(n)
    start = 0
    for k in range(n - 1):
        row = above[start : start + n - 1 - k]
        sums[k] += row.sum()
        sums[k + 1 :] += row
        start += len(row)
    return sums


def _standardised(x: Float[Tensor, "n p"]) -> Float64[Tensor, "n p"]:
    """Return every sample minus the mean of its features, with norm 1."""
    z = x.to(float64_device(x.device), torch.float64, copy=True)
    flat = z.amax(1) - z.amin(1) <= torch.finfo(x.dtype).eps * z.abs().amax(1)
    if flat.any():
        raise UndefinedValueError(
            f"{int(flat.sum())} of {len(x)} samples have features that are all equal, and so no correlation with others"
        )
    z -= z.mean(1, keepdim=True)
    z /= z.abs().amax(1, keepdim=True)  # so that no square overflows
    z /= torch.linalg.vector_norm(z, dim=1, keepdim=True)
    return z


def average_ranks(values: Tensor) -> Float64[Tensor, " n"]:
    """Return the ranks of the values, from 1; equal values have their mean rank.

    >>> average_ranks(torch.tensor([5, 2, 5, 9])).tolist()
    [2.5, 1.0, 2.5, 4.0]
    """
    ordered, order = torch.sort(values)
    first, last = values.new_zeros(1, dtype=torch.int64), values.new_full((1,), len(values), dtype=torch.int64)
    # boundaries of runs of equal values
    edges = torch.cat([first, (ordered[1:] != ordered[:-1]).nonzero().flatten().add_(1), last])
    del ordered
    ranks = torch.empty_like(order, dtype=torch.float64)
    for chunk in cut(len(edges) - 1, 2**20):
        begin, end = edges[chunk], edges[chunk.start + 1 : chunk.stop + 1]
        middle = (begin + end + 1).double() / 2
        ranks[order[begin[0] : end[-1]]] = middle.repeat_interleave(end - begin)
    return ranks


@dataclass(frozen=True)
class RSA(PairMetric[Ranks]):
    """Representational similarity analysis: rank correlation between the similarities of samples in two layers.

    For each layer, compute the n x n matrix of Pearson correlations between samples, over their features. The value is
    Spearman's correlation between the strict upper triangles of the two matrices, with average ranks for ties. Range
    [-1, 1].

    Adding a vector to all samples changes it, unless all entries of the vector are equal.

    Notes
    -----
    Permutations of the samples of one layer map every pair to every other pair equally often, and ranks are centred. So
    the mean over permutations is exactly 0 for any data. A matrix of ranks is the sum of a matrix u_i + u_j and of one
    whose rows sum to 0. With s and t the shares of the first part in the two layers, the variance is exactly
    s t / (n - 1) + 2 (1 - s)(1 - t) / (n (n - 3)). So samples that are similar, or dissimilar, to all others widen the
    chance distribution.

    References
    ----------
    Kriegeskorte, Mur, Bandettini. Representational similarity analysis: connecting the branches of systems
    neuroscience. Frontiers in Systems Neuroscience 2008.

    Examples
    --------
    >>> import numpy as np
    >>> np.random.seed(0)
    >>> x, y = np.random.uniform(size=(30, 25)), np.random.uniform(size=(30, 25))
    >>> round(RSA()(x, y), 9)
    -0.004092796
    """

    name: ClassVar[str] = "rsa"
    title: ClassVar[str] = "RSA"
    formula: ClassVar[str] = "Spearman correlation of the upper triangles of corr(x_i, x_j) and corr(y_i, y_j)"
    citation: ClassVar[str] = "Kriegeskorte, Mur, Bandettini 2008"
    group: ClassVar[Group] = "rsm"
    question: ClassVar[str] = "Do two layers order the pairs of stimuli in the same way, from similar to dissimilar?"
    needs: ClassVar[str] = "20 (chance is 0 at any n)"
    others: ClassVar[Mapping[str, str]] = {
        "rsatoolbox": "compares dissimilarities (1 - r), with a choice of distance and of correlation; its "
        "'correlation' with 'spearman' gives the same value, because reversing both orders keeps a rank correlation",
    }
    sense: ClassVar[Literal["similarity", "distance"]] = "similarity"
    symmetric: ClassVar[bool] = True
    differentiable: ClassVar[bool] = False

    @property
    def bounds(self) -> tuple[float, float]:
        """Range of the value: [-1, 1]."""
        return -1.0, 1.0

    @property
    def invariances(self) -> frozenset[Invariance]:
        """Permutation and scaling; translations and rotations change the mean of the features of a sample."""
        return frozenset({"permutation", "isotropic scaling"})

    @property
    def recipe(self) -> RankedCorrelations:
        """Recipe that sorts the correlations once per layer."""
        return RankedCorrelations()

    def value(self, a: Ranks, b: Ranks) -> Tensor:
        """Return the inner product of the ranks."""
        return _products([a.ranks], [b.ranks])[0, 0]

    def block(self, rows: Sequence[Ranks], columns: Sequence[Ranks]) -> Float64[np.ndarray, "rows columns"]:
        """Compute all pairs with one matrix product."""
        if not rows or not columns:
            return np.empty((len(rows), len(columns)))
        return _products([a.ranks for a in rows], [b.ranks for b in columns]).cpu().numpy()

    @override
    def pair_cost(self, n: int, p: int, q: int) -> Cost:
        """Return the cost of one product per pair of samples."""
        return Cost(added=0.3 * n * n)

    @override
    def samples_needed(self, p: int, q: int) -> int:
        """Return 20, so that the value is not chance alone."""
        return 20

    def chance(self, a: Ranks, b: Ranks) -> Chance:
        """Return the chance level: 0, with variance st / (n - 1) + 2 (1 - s)(1 - t) / (n (n - 3)), s and t as in the
        Notes; exact for any data.
        """
        n, s, t = a.n, a.hubs, b.hubs
        return Chance(0.0, math.sqrt(s * t / (n - 1) + 2 * (1 - s) * (1 - t) / (n * (n - 3))))


def _products(rows: Sequence[Tensor], columns: Sequence[Tensor]) -> Float64[Tensor, "rows columns"]:
    """Return the inner products of all vectors, in runs that are computed in their dtype and added in float64."""
    place = float64_device(rows[0].device)
    dtype = max((v.dtype for v in (*rows, *columns)), key=lambda dtype: dtype.itemsize)
    total = torch.zeros(len(rows), len(columns), dtype=torch.float64, device=place)
    for i in cut(len(rows[0]), _CHUNK):
        left, right = (torch.stack([v[i].to(dtype) for v in side]) for side in (rows, columns))
        total += (left @ right.T).to(place)
    return total


@dataclass(frozen=True, eq=False)
class DistanceMatrix:
    """Euclidean distances between all samples of a layer."""

    matrix: Float64[Tensor, "n n"]

    @property
    def n(self) -> int:
        """Samples."""
        return len(self.matrix)

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        return self.matrix.nbytes


@dataclass(frozen=True)
class EuclideanDistances(InMemoryRecipe[DistanceMatrix]):
    """Recipe of a `DistanceMatrix`, in float64, because distances of similar layers cancel."""

    @override
    def cost(self, layer: LayerSize) -> Cost:
        """Return the cost of half of all distances, and of their roots."""
        n = layer.n
        return Cost(flop64=1.0 * n * n * layer.p, touched=(4.0 + 7.0 * outside_cache(n)) * n * n, calls=300)

    @override
    def memory(self, layer: LayerSize) -> Memory:
        """Return the memory of the distances, and as much again for the difference of two."""
        return Memory(8 * layer.n * layer.n, workspace=8 * layer.n * layer.n)

    def __call__(self, x: Float[Tensor, "n p"]) -> DistanceMatrix:
        """Prepare one layer."""
        column_means(x)  # raises for a layer that is constant in its own dtype
        x = x.to(float64_device(x.device), torch.float64)
        state = CentredGram().fit(x)
        gram = CentredGram().apply(x, state)
        matrix = torch.empty(gram.n, gram.n, dtype=torch.float64, device=x.device)
        for i, j, squared in gram.squared_distances(near=NEAR):
            matrix[i, j] = squared.sqrt_().mul_(state.scale)
            if i != j:
                matrix[j, i] = squared.T
        return DistanceMatrix(matrix)


@dataclass(frozen=True)
class RSMDifference(PairMetric[DistanceMatrix]):
    """Spectral norm of the difference between the matrices of Euclidean distances of two layers, max |lambda(D_x -
    D_y)|.

    It is a metric between matrices of distances, so it is 0 for layers that differ by a rigid motion. Range [0,
    inf), in units of the features. It grows in proportion to n, so only values over the same samples can be
    compared.

    Notes
    -----
    The matrix is symmetric. Below 512 samples all its eigenvalues are computed; from 512 on only the largest, by
    Lanczos iteration from a fixed start, to a relative error of 1e-9.

    References
    ----------
    Yin, Shen. On the dimensionality of word embedding. NeurIPS 2018 (norms of differences of similarity matrices).
    Klabunde, Schumacher, Strohmaier, Lemmerich. Similarity of neural network models: a survey. ACM Computing Surveys
    2025.

    Examples
    --------
    >>> import numpy as np
    >>> np.random.seed(0)
    >>> x, y = np.random.uniform(size=(30, 25)), np.random.uniform(size=(30, 25))
    >>> round(RSMDifference()(x, y), 9)
    4.284020876
    """

    name: ClassVar[str] = "rsm_difference"
    title: ClassVar[str] = "RSM difference"
    formula: ClassVar[str] = "||D_x - D_y||_2, the spectral norm, D the matrices of Euclidean distances"
    citation: ClassVar[str] = "Yin & Shen 2018; Klabunde et al. 2025"
    group: ClassVar[Group] = "rsm"
    question: ClassVar[str] = "How much do the distances between stimuli differ between two layers?"
    needs: ClassVar[str] = "any number, but the same for all values, which grow in proportion to n"
    others: ClassVar[Mapping[str, str]] = {
        "implementations with the Frobenius norm": "sum over all pairs; the spectral norm measures the deviation that "
        "most samples share",
    }
    sense: ClassVar[Literal["similarity", "distance"]] = "distance"
    symmetric: ClassVar[bool] = True
    triangle: ClassVar[bool] = True

    @property
    def bounds(self) -> tuple[float, float]:
        """Range of the value: [0, inf)."""
        return 0.0, math.inf

    @property
    def invariances(self) -> frozenset[Invariance]:
        """Rigid motions."""
        return frozenset({"permutation", "orthogonal", "translation"})

    @property
    def recipe(self) -> EuclideanDistances:
        """Recipe that computes distances once per layer."""
        return EuclideanDistances()

    def value(self, a: DistanceMatrix, b: DistanceMatrix) -> Tensor:
        """Return the value of two prepared layers."""
        return spectral_norm(a.matrix - b.matrix)

    def with_gradient(self, x: Float[Tensor, "n p"], y: Float[Tensor, "n q"]) -> Tensor:
        """Compute the formula with a gradient, from the distances."""
        for side in (x, y):
            column_means(side.detach())  # raises for a constant layer
        x, y = (side.to(float64_device(side.device), torch.float64) for side in (x, y))
        return spectral_norm(distances(x) - distances(y))

    @override
    def pair_cost(self, n: int, p: int, q: int) -> Cost:
        """Return the cost of all eigenvalues, or of some twenty products with a vector."""
        if n < _EXACT_BELOW:
            eigenvalues = Cost.of_eigenvalues(n, 0.4)
        else:
            eigenvalues = Cost(added=(18.0 + 16.0 * outside_cache(n)) * n * n, calls=500)
        return eigenvalues + Cost(touched=0.5 * n * n, calls=20)


def spectral_norm(matrix: Float64[Tensor, "n n"]) -> Float64[Tensor, ""]:
    """Return the largest absolute eigenvalue of a symmetric matrix, with a gradient."""
    largest: Tensor
    if len(matrix) < _EXACT_BELOW:
        largest = torch.linalg.eigvalsh(matrix).abs().max()
    else:
        v = _leading_vector(matrix.detach())
        largest = (v @ matrix @ v).abs()  # the Rayleigh quotient is stationary in v, so v needs no gradient
    return largest


def _leading_vector(matrix: Float64[Tensor, "n n"]) -> Float64[Tensor, " n"]:
    """Return the eigenvector, of norm 1, of the largest absolute eigenvalue."""
    from scipy.sparse.linalg import ArpackNoConvergence, LinearOperator, eigsh  # noqa: PLC0415 - takes long to import

    def times(v: Array) -> Array:
        product: Array = (matrix @ torch.from_numpy(v.ravel()).to(matrix)).cpu().numpy()
        return product

    n = len(matrix)
    start = np.random.default_rng(0).normal(size=n)
    if not matrix.any():  # Lanczos iteration fails for a zero matrix
        return torch.from_numpy(start / np.linalg.norm(start)).to(matrix)
    try:
        _, vectors = eigsh(LinearOperator((n, n), times, dtype=np.float64), k=1, which="LM", v0=start, tol=1e-9)
    except ArpackNoConvergence:  # many eigenvalues are as large as the largest
        values, eigenvectors = torch.linalg.eigh(matrix)
        leading: Tensor = eigenvectors[:, values.abs().argmax()]
        return leading
    return torch.from_numpy(vectors[:, 0]).to(matrix)
