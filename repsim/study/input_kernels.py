"""Describe the input of networks by kernels: of its pixels, of untrained networks that see them, of its statistics.

A linear kernel of the pixels is a weak control: networks that never saw data agree far beyond it, because they apply
similar functions to the same pictures. This module has a dictionary of kernels that such functions have, and a
selection of the few of them that span the others. docs/input-controls.md describes it.

References
----------
Neal. Bayesian learning for neural networks. Springer 1996.
Williams. Computing with infinite networks. NIPS 1996 (1997).
Cho & Saul. Kernel methods for deep learning. NIPS 2009.
Lee et al. Deep neural networks as Gaussian processes. ICLR 2018.
"""

import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from jaxtyping import Float, Float64, Int64
from scipy.linalg.lapack import dpstrf

from repsim.metrics.recipes.rows import cut
from repsim.runtime.threads import map_in_threads

Matrix = Float64[np.ndarray, "a b"]

EXACT = 2000
"""Largest number of samples for which a kernel matrix is factored exactly."""
RANK = 1024
"""Landmarks of the Nystrom approximation, for more samples."""
SELECTION = 500
"""Samples, at most, from which the kernels are selected."""
TOLERANCE = 3e-3
"""The selected kernels leave less than this share of the energy of every kernel, unless there are too many."""
MOST = 32
"""Largest number of selected kernels."""
CHANCE = 0.01
"""Share of the energy of an unrelated kernel that the selected kernels may explain by chance."""
_NEGLIGIBLE = 1e-6
"""Share of the energy of a kernel that is left out with the components of an approximation that hold least."""
_SEED = 0
_ROUNDING = 1e-9
_FAINT = 1e-6
"""A kernel whose entries off the diagonal are below this share of its diagonal holds only rounding errors."""
_WIDTHS = (0.25, 0.5, 1.0, 2.0)
_GAINS = (0.5, 1.0, 2.0, 4.0)
_BIASES = (0.1, 0.5)
_DEPTHS = (1, 2, 3)
_POWERS = (2, 3, 4)
_AT_ONCE = 64
"""Samples whose kernel with all landmarks is computed at once, few enough for the cache."""
_FILTERS = 128
_SMALLEST_PICTURE = 5
"""Height and width at which two layers of 3 x 3 filters fit."""
_CONSTANT = 1e-6
"""Statistics whose standard deviation is below this share of the largest value are constant up to rounding errors."""
_COMPONENTS = 4


@dataclass(frozen=True, eq=False)
class Products:
    """Inner products of the samples in rows with those in columns, and their squared norms."""

    cross: Matrix
    rows: Float64[np.ndarray, " a"]
    columns: Float64[np.ndarray, " b"]

    @property
    def distances(self) -> Matrix:
        """Squared distances."""
        distances: Matrix = np.maximum(self.rows[:, None] + self.columns - 2 * self.cross, 0)
        return distances

    @property
    def cosines(self) -> Matrix:
        """Cosines; 0 with a sample that is 0."""
        norms = np.sqrt(np.outer(self.rows, self.columns))
        cosines: Matrix = np.clip(np.divide(self.cross, norms, out=np.zeros_like(norms), where=norms > 0), -1, 1)
        return cosines


class Kernel(Protocol):
    """Function of inner products and norms, positive semidefinite as a kernel."""

    def __call__(self, products: Products) -> Matrix:
        """Return the kernel of the samples in rows with those in columns."""

    def describe(self, what: str) -> str:
        """Return a readable name of the kernel of ``what``."""


@dataclass(frozen=True)
class Linear:
    """Inner product x'y."""

    def __call__(self, products: Products) -> Matrix:
        """Return the kernel of the samples in rows with those in columns."""
        return products.cross

    def describe(self, what: str) -> str:
        """Return a readable name of the kernel of ``what``."""
        return what


@dataclass(frozen=True)
class Rbf:
    """Gaussian kernel exp(-d^2 / (2 s^2))."""

    width: float
    """s as a share of the root of the median squared distance."""
    median: float
    """Median squared distance."""

    def __call__(self, products: Products) -> Matrix:
        """Return the kernel of the samples in rows with those in columns."""
        return np.exp(products.distances / (-2 * self.width**2 * self.median))

    def describe(self, what: str) -> str:
        """Return a readable name of the kernel of ``what``."""
        return f"RBF of the {what}, width {self.width:g}"


@dataclass(frozen=True)
class Power:
    """Power of the cosine: the interactions of ``degree`` pixels, without contrast."""

    degree: int

    def __call__(self, products: Products) -> Matrix:
        """Return the kernel of the samples in rows with those in columns."""
        cosines = products.cosines
        return functools.reduce(np.multiply, [cosines] * self.degree)  # a power takes ten times as long

    def describe(self, what: str) -> str:
        """Return a readable name of the kernel of ``what``."""
        return f"cosine of the {what} to the power {self.degree}"


@dataclass(frozen=True)
class ErfNetwork:
    r"""Kernel of an infinitely wide untrained network with the nonlinearity erf (Williams 1997, eq. 11).

    With the covariance of the inputs of a layer S(x, y) = bias^2 + gain^2 K(x, y), the kernel of its outputs is
    2/pi arcsin(2 S(x, y) / sqrt((1 + 2 S(x, x)) (1 + 2 S(y, y)))); K of the first layer is x'y. erf is close to tanh,
    and at a high gain to a step.
    """

    depth: int
    gain: float
    bias: float

    def __call__(self, products: Products) -> Matrix:
        """Return the kernel of the samples in rows with those in columns."""
        K, rows, columns = products.cross, products.rows, products.columns
        for _ in range(self.depth):
            K, rows, columns = (self.bias**2 + self.gain**2 * k for k in (K, rows, columns))
            ratio = 2 * K / np.sqrt(np.outer(1 + 2 * rows, 1 + 2 * columns))
            K = 2 / np.pi * np.arcsin(np.clip(ratio, -1, 1))
            rows, columns = (2 / np.pi * np.arcsin(2 * k / (1 + 2 * k)) for k in (rows, columns))
        return K

    def describe(self, what: str) -> str:
        """Return a readable name of the kernel of ``what``."""
        return f"erf network of {_layers(self.depth)} on the {what}, gain {self.gain:g}, bias {self.bias:g}"


@dataclass(frozen=True)
class ReluNetwork:
    r"""Kernel of an infinitely wide untrained network with ReLU: the arc-cosine kernel of order 1 (Cho & Saul 2009).

    With S(x, y) = bias^2 + gain^2 K(x, y) and the angle t between x and y under S, the kernel of the outputs is
    sqrt(S(x, x) S(y, y)) (sin t + (pi - t) cos t) / pi: twice the expectation of ReLU(u) ReLU(v), so that
    K(x, x) = S(x, x). Only the ratio of the bias and the gain matters, as ReLU is positively homogeneous.
    """

    depth: int
    bias: float
    gain: float = 1.0

    def __call__(self, products: Products) -> Matrix:
        """Return the kernel of the samples in rows with those in columns."""
        K, rows, columns = products.cross, products.rows, products.columns
        for _ in range(self.depth):
            K, rows, columns = (self.bias**2 + self.gain**2 * k for k in (K, rows, columns))
            cosine = Products(K, rows, columns).cosines
            angle = np.arccos(cosine)
            K = np.sqrt(np.outer(rows, columns)) * (np.sin(angle) + (np.pi - angle) * cosine) / np.pi
        return K

    def describe(self, what: str) -> str:
        """Return a readable name of the kernel of ``what``."""
        return f"ReLU network of {_layers(self.depth)} on the {what}, bias {self.bias:g}"


def _layers(depth: int) -> str:
    return "1 layer" if depth == 1 else f"{depth} layers"


@dataclass(frozen=True, eq=False)
class Candidate:
    """A kernel of the dictionary: a function of the inner products of some features of the samples."""

    name: str
    x: Float64[np.ndarray, "n p"]
    """Features, centred, with a mean squared norm of 1."""
    kernel: Kernel
    required: bool = False
    """Whether it is selected before all that are not required."""

    def matrix(self, rows: Int64[np.ndarray, " a"], columns: Int64[np.ndarray, " b"]) -> Matrix:
        """Return the kernel of the samples at ``rows`` with those at ``columns``."""
        return self.kernel(products(self.x[rows], self.x[columns]))

    def features(self) -> Float[np.ndarray, "n r"]:
        """Return features whose inner products are the kernel: exactly, or beyond `EXACT` samples approximately.

        A linear kernel has the features themselves. Up to 2,000 samples, the pivoted Cholesky factor of the matrix is
        a square root of it up to rounding errors. Beyond, it is the Nystrom approximation K_nL K_LL^-1 K_Ln with 1,024
        landmarks L, a random choice with a fixed seed, as the samples may be sorted by class (Williams & Seeger 2001),
        without the components that together have less than 1e-6 of the energy of the kernel. Its last product is in
        float32: the errors are far below what the approximation leaves out.
        It is a kernel of the input like any other; docs/input-controls.md has the similarity to the exact kernels.
        """
        if isinstance(self.kernel, Linear):
            return self.x
        every = np.arange(len(self.x))
        if len(every) <= EXACT:
            return root(self.matrix(every, every))
        landmarks = _random_subset(len(every), RANK)
        inverse = torch.from_numpy(_inverse_root(self.matrix(landmarks, landmarks))).float()
        F = torch.empty(len(every), inverse.shape[1])
        for run in cut(len(every), _AT_ONCE):
            torch.mm(torch.from_numpy(self.matrix(every[run], landmarks)).float(), inverse, out=F[run])
        # the columns are nearly orthogonal, in the order of the eigenvalues: their energies are squares of their norms
        squares = sum(F[run].double().square().sum(0) for run in cut(len(every), _AT_ONCE))
        energy = (squares - F.sum(0, dtype=torch.float64).square() / len(F)).square().numpy()
        return np.ascontiguousarray(F.numpy()[:, np.cumsum(energy) > _NEGLIGIBLE * energy.sum()])


def products(x: Float64[np.ndarray, "a p"], y: Float64[np.ndarray, "b p"]) -> Products:
    """Return the inner products and squared norms of the rows of x and of y."""
    cross = torch.from_numpy(x) @ torch.from_numpy(y).T  # numpy would use all threads in each thread
    return Products(cross.numpy(), (x**2).sum(1), (y**2).sum(1))


def scaled(x: Float64[np.ndarray, "n p"]) -> Float64[np.ndarray, "n p"]:
    """Centre features, and divide them by one number such that the mean squared norm of the samples is 1.

    Constant features become 0, and so do those that differ by rounding errors alone.

    Examples
    --------
    >>> scaled(np.array([[1.0], [3.0]])).ravel()
    array([-1.,  1.])
    """
    x = np.asarray(x, np.float64)
    centred = x - x.mean(0)
    norm = np.sqrt((centred**2).sum(1).mean())
    largest = np.abs(x).max(initial=0)
    return np.asarray(centred / norm if norm > _ROUNDING * largest else np.zeros_like(centred))


def of_pixels(pixels: Float64[np.ndarray, "n channels *positions"], what: str = "pixels") -> Iterator[Candidate]:
    """Yield the kernels of pixels: linear, of their mean over positions, and not linear.

    Those that are not linear are RBF kernels at four widths, powers of the cosine, and the kernels of infinitely wide
    untrained networks of one to three layers with erf and with ReLU, at several gains and biases. Pixels are centred
    and scaled to a mean squared norm of 1 before. Pictures also have the kernels of `random_convolutions`, which see
    their local structure.

    Parameters
    ----------
    pixels
        (n, channels, positions), or (n, channels, height, width) of pictures.
    what
        Name of the pixels in the names of the kernels.
    """
    flat = scaled(pixels.reshape(len(pixels), -1))
    if not flat.any():
        return
    yield Candidate(what, flat, Linear(), required=True)
    average = pixels.reshape(*pixels.shape[:2], -1).mean(-1)
    if np.ptp(average, axis=0).max() > _CONSTANT * np.abs(pixels).max():  # not if each picture was centred
        yield Candidate(f"mean {what}", scaled(average), Linear(), required=True)
    for kernel in (*rbf(flat), *powers(), *networks()):
        yield Candidate(kernel.describe(what), flat, kernel)
    if pixels.ndim == 4 and min(pixels.shape[2:]) >= _SMALLEST_PICTURE:
        for name, function in (("ReLU", _relu), ("tanh", _steep_tanh)):
            for depth, x in enumerate(random_convolutions(pixels, function), 1):
                layers = f"{name} network of {_layers(depth)} of random convolutions"
                yield Candidate(f"{layers} on the {what}", scaled(x), Linear())


def _relu(x: Float64[np.ndarray, "*shape"]) -> Float64[np.ndarray, "*shape"]:
    return np.asarray(np.maximum(x, 0))


def _steep_tanh(x: Float64[np.ndarray, "*shape"]) -> Float64[np.ndarray, "*shape"]:
    """Return tanh(4 x), for which contrast hardly matters, as in networks that normalise their activations."""
    return np.asarray(np.tanh(4 * x))


def random_convolutions(
    pixels: Float64[np.ndarray, "n channels h w"], function: Callable[[Any], Any]
) -> list[Float64[np.ndarray, "n filters"]]:
    """Compute two layers of an untrained convolutional network, each averaged over positions.

    The filters have 3 x 3 pixels, and weights and biases from a fixed seed. The kernel of the averages is that of all
    pairs of positions, which has no closed form that is as cheap.
    """
    rng = np.random.default_rng(_SEED)
    x = (pixels - pixels.mean()) / pixels.std()
    layers = []
    for _ in range(2):
        fan_in = 9 * x.shape[1]
        weights = rng.normal(size=(fan_in, _FILTERS)) * np.sqrt(2 / fan_in)
        bias = 0.1 * rng.normal(size=_FILTERS)
        parts = []
        for part in np.array_split(x, max(1, len(x) // 256)):  # patches are nine times as large as the pictures
            patches = np.lib.stride_tricks.sliding_window_view(part, (3, 3), (2, 3)).transpose(0, 2, 3, 1, 4, 5)
            outputs = patches.reshape(*patches.shape[:3], fan_in) @ weights + bias
            parts.append(function(outputs).transpose(0, 3, 1, 2))
        x = np.concatenate(parts)
        layers.append(x.mean((2, 3)))
    return layers


def powers() -> Iterator[Kernel]:
    """Yield the powers of the cosine in the dictionary."""
    yield from map(Power, _POWERS)


def networks() -> Iterator[Kernel]:
    """Yield the kernels of untrained networks in the dictionary."""
    for depth in _DEPTHS:
        for bias in (0.0, *_BIASES):
            yield ReluNetwork(depth, bias)
    for depth in _DEPTHS:
        for gain in _GAINS:
            for bias in _BIASES:
                yield ErfNetwork(depth, gain, bias)


def rbf(x: Float64[np.ndarray, "n p"], widths: Sequence[float] = _WIDTHS) -> Iterator[Kernel]:
    """Yield RBF kernels of features, whose widths are shares of the root of their median squared distance."""
    sample = x[_random_subset(len(x), SELECTION)]
    distances = products(sample, sample).distances[np.triu_indices(len(sample), 1)]
    median = float(np.median(distances)) or float(distances.mean())
    if median > 0:
        yield from (Rbf(width, median) for width in widths)


def of_statistics(
    values: Float64[np.ndarray, "n s"], names: Sequence[str], what: str = "statistics of the picture"
) -> Iterator[Candidate]:
    """Yield the kernels of the statistics of pictures.

    Each statistic is standardised; of those that are positive, the logarithm is another one. There is a linear kernel
    of all, RBF kernels of all at two widths, and kernels of rank 1 of the leading principal components and of their
    sums in pairs. Together these span every kernel of features that are linear in the components: the activations of
    untrained networks have few dimensions, and each network has its own. Each group of statistics has a linear kernel,
    not standardised, as within a group all statistics have one unit.

    Parameters
    ----------
    values
        (n, statistics).
    names
        Name of each statistic, ``group: what``.
    what
        Name of the statistics in the names of the kernels.
    """
    values = np.asarray(values, np.float64)
    positive = np.asarray((values > 0).all(0))
    columns = np.concatenate([values, np.log(values[:, positive])], 1)
    spread = columns.std(0)
    kept = spread > _CONSTANT * np.abs(columns).max(0, initial=0)
    if not kept.any():
        return
    every = scaled((columns[:, kept] - columns[:, kept].mean(0)) / spread[kept])
    yield Candidate(what, every, Linear(), required=True)
    groups = np.array([name.partition(":")[0] for name in names])
    for group in dict.fromkeys(groups.tolist()):
        yield Candidate(f"{what}: {group}", scaled(values[:, groups == group]), Linear())
    left, sizes, _ = np.linalg.svd(every, full_matrices=False)
    count = min(_COMPONENTS, int((sizes > _CONSTANT * sizes[0]).sum()))
    for k in range(count):
        yield Candidate(f"{what}: principal component {k + 1}", scaled(left[:, k : k + 1]), Linear())
        for j in range(k):
            both = scaled(left[:, [j]] + left[:, [k]])
            yield Candidate(f"{what}: sum of the principal components {j + 1} and {k + 1}", both, Linear())
    for kernel in rbf(every, (0.5, 1.0)):
        yield Candidate(kernel.describe(what), every, kernel)


def select(candidates: Sequence[Candidate], *, tolerance: float = TOLERANCE, most: int = MOST) -> list[Candidate]:
    """Select kernels that span all others, up to a share of the energy of each.

    A pivoted Cholesky decomposition of the matrix of debiased CKA of all kernels: the kernel with the most energy left
    is selected and projected out of the others, until every one has less than ``tolerance`` of its energy left.
    Required kernels come first, in their order. What is selected depends on the input alone, not on any network.

    With n samples, a control explains on average 2 / (n (n - 3)) of the energy of an unrelated kernel, as that is a
    unit vector in the n (n - 3) / 2 dimensions of U-centred matrices. At most 32 kernels are selected, with fewer than
    82 samples at most as many as explain 1 % by chance, and in any case those that are required.

    Parameters
    ----------
    candidates
        The dictionary. Candidates with the same features follow each other.
    tolerance
        Share of the energy of a unit kernel.
    most
        Largest number of kernels.

    Returns
    -------
    list of Candidate
        In the order of selection. Kernels that are constant, or tell no two samples apart, are left out.
    """
    if not candidates:
        return []
    n = len(candidates[0].x)
    sample = _random_subset(n, SELECTION)
    usable, vectors = _unit_kernels(candidates, sample)
    most = min(most, int(CHANCE * n * (n - 3) / 2))
    R = torch.from_numpy(vectors) @ torch.from_numpy(vectors).T
    return [usable[k] for k in pivots(R.numpy(), [c.required for c in usable], tolerance, most)]


def pivots(R: Float64[np.ndarray, "c c"], required: Sequence[bool], tolerance: float, most: int) -> list[int]:
    """Return the pivots of a Cholesky decomposition of R, a Gram matrix of unit vectors, in their order.

    The required vectors come first. It ends after ``most``, or when less than ``tolerance`` is left of every vector.

    Examples
    --------
    >>> R = np.array([[1, 0.9999, 0.5], [0.9999, 1, 0.5], [0.5, 0.5, 1]])
    >>> pivots(R, [True, False, False], 0.001, 10)
    [0, 2]
    """
    left = R.copy()
    chosen: list[int] = []
    forced = [k for k, needed in enumerate(required) if needed]
    while True:
        energy = np.diagonal(left)
        forced = [k for k in forced if energy[k] >= tolerance]
        if forced:
            k = forced.pop(0)
        elif len(chosen) < most and len(energy) and energy.max() >= tolerance:
            k = int(energy.argmax())
        else:
            return chosen
        chosen.append(k)
        left = left - np.outer(left[:, k], left[k]) / left[k, k]
        left[k], left[:, k] = 0, 0


def _unit_kernels(
    candidates: Sequence[Candidate], sample: Int64[np.ndarray, " m"]
) -> tuple[list[Candidate], Float64[np.ndarray, "c pairs"]]:
    """Return the U-centred kernels on some samples as unit vectors, without those that are constant."""
    upper = np.triu_indices(len(sample), 1)
    pairs = {id(x): products(x[sample], x[sample]) for x in {id(c.x): c.x for c in candidates}.values()}

    def unit(candidate: Candidate) -> Float64[np.ndarray, " pairs"] | None:
        K = candidate.kernel(pairs[id(candidate.x)])
        vector = u_centred(K)[upper]
        norm = np.sqrt(np.square(vector).sum())
        varies = norm > _FAINT * np.sqrt(len(vector)) * np.abs(np.diagonal(K)).mean()
        return np.asarray(vector / norm) if varies else None

    units = map_in_threads(unit, candidates)
    usable = [candidate for candidate, vector in zip(candidates, units, strict=True) if vector is not None]
    return usable, np.array([vector for vector in units if vector is not None]).reshape(len(usable), -1)


def u_centred(K: Float64[np.ndarray, "n n"]) -> Float64[np.ndarray, "n n"]:
    """Return the U-centred kernel: rows sum to 0, and the diagonal, which is not used, is 0 (Szekely & Rizzo 2014)."""
    n = len(K)
    K = K.copy()
    np.fill_diagonal(K, 0)
    sums = K.sum(0) / (n - 2) - K.sum() / (2 * (n - 1) * (n - 2))
    K -= sums
    K -= sums[:, None]
    np.fill_diagonal(K, 0)
    return K


def root(K: Float64[np.ndarray, "n n"]) -> Float64[np.ndarray, "n r"]:
    """Return F with F F' = K, for a positive semidefinite K, from a pivoted Cholesky decomposition.

    r is the numerical rank. A decomposition into eigenvectors gives the same kernel, and takes 20 times as long.

    Examples
    --------
    >>> F = root(np.array([[2.0, 1, 1], [1, 2, -1], [1, -1, 2]]))
    >>> F.shape, (F @ F.T).round(12)
    ((3, 2), array([[ 2.,  1.,  1.],
           [ 1.,  2., -1.],
           [ 1., -1.,  2.]]))
    """
    factor, pivot, rank, _ = dpstrf(K, lower=1, tol=_ROUNDING * np.diagonal(K).max())
    F = np.empty((len(K), rank))
    F[pivot - 1] = np.tril(factor)[:, :rank]
    return F


def _inverse_root(K: Float64[np.ndarray, "r r"]) -> Float64[np.ndarray, "r s"]:
    """Return B with B B' = K^+, without the eigenvectors that are rounding errors."""
    values, vectors = (part.numpy() for part in torch.linalg.eigh(torch.from_numpy(K)))
    kept = values > _ROUNDING * values[-1]
    return np.asarray(vectors[:, kept] / np.sqrt(values[kept]))


def _random_subset(n: int, size: int) -> Int64[np.ndarray, " m"]:
    """Return the indices of at most ``size`` of n samples in ascending order: a random choice, the same each time."""
    return np.sort(np.random.default_rng(_SEED).permutation(n)[:size])
