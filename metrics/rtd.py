"""Representation topology divergence (RTD): differences in the connectivity of two clouds of the same samples."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from jaxtyping import Float, Float64
from torch import Tensor
from typing_extensions import override

from repsim.errors import InvalidInputError, UndefinedValueError
from repsim.metrics.recipes.base import InMemoryRecipe
from repsim.metrics.recipes.cost import Cost, LayerSize, Memory
from repsim.metrics.recipes.rows import float64_device
from repsim.metrics.topology import ZERO, Bars, Square, TopologyMetric, centred_samples, distances_within, load_gudhi
from repsim.runtime import tuning


@dataclass(frozen=True, eq=False)
class Batches:
    """Distances within batches of samples, in units of their 0.9 quantile."""

    distances: Float64[np.ndarray, "trials batch batch"]
    n: int
    """Number of samples, from which the batches are drawn."""

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        return self.distances.nbytes


@dataclass(frozen=True)
class DistanceBatches(InMemoryRecipe[Batches]):
    """Recipe of `Batches`: distances within random batches, with the same samples for every layer."""

    batch: int
    trials: int
    seed: int

    def __call__(self, x: Float[Tensor, "n p"]) -> Batches:
        """Compute the distances within each batch; if n is at most the size of a batch, use all samples once."""
        load_gudhi("rtd", "gudhi")
        centred, n = centred_samples(x), len(x)
        rng = np.random.default_rng(self.seed)
        draws: Sequence[slice | Tensor] = [slice(None)]
        if n > self.batch:
            device = float64_device(x.device)
            draws = [torch.from_numpy(rng.permutation(n)[: self.batch]).to(device) for _ in range(self.trials)]
        return Batches(np.stack([self._scaled(distances_within(centred.exact(draw))) for draw in draws]), n)

    @staticmethod
    def _scaled(distances: Square) -> Square:
        unit = np.quantile(distances, 0.9)
        if unit <= ZERO * distances.max():
            raise UndefinedValueError(
                "nine tenths of the distances between samples are 0, so distances cannot be divided by their 0.9 "
                "quantile: the layer is nearly constant"
            )
        scaled: Square = distances / unit
        scaled[scaled < ZERO] = 0
        return scaled

    def drawn(self, n: int) -> tuple[int, int]:
        """Return the number of batches for n samples, and the size of a batch."""
        return (1, n) if n <= self.batch else (self.trials, self.batch)

    @override
    def cost(self, layer: LayerSize) -> Cost:
        """Return the cost of the distances of every batch."""
        trials, batch = self.drawn(layer.n)
        return Cost.of_products(2.0 * trials * batch**2 * layer.p, layer.itemsize)

    @override
    def memory(self, layer: LayerSize) -> Memory:
        """Return the memory of the distances of every batch."""
        trials, batch = self.drawn(layer.n)
        return Memory(8 * trials * batch**2)


def single_linkage(d: Square) -> tuple[float, Square]:
    """Return the length of a minimum spanning tree, and the scales at which samples i and j become connected.

    >>> single_linkage(np.abs(np.subtract.outer([0.0, 5, 2], [0.0, 5, 2])))
    (5.0, array([[0., 3., 2.], [3., 0., 3.], [2., 3., 0.]]))
    """
    joined, near = np.zeros_like(d), d[0].copy()
    tree, length = [0], 0.0
    # Prim's algorithm: two samples become connected at the longest edge that is added between them
    for _ in range(len(d) - 1):
        near[tree] = np.inf
        new = int(near.argmin())
        joined[new, tree] = joined[tree, new] = np.maximum(joined[tree[-1], tree], near[new])
        length += float(near[new])
        near = np.minimum(near, d[new])
        tree.append(new)
    return length, joined


def cross_barcode_matrix(a: Square, b: Square) -> tuple[Float64[np.ndarray, "2*n 2*n"], float]:
    """Return a distance matrix (2n, 2n), and a length to add to that of its H_1 bars, for R-Cross-Barcode_1.

    The graph of min(a, b) <= t contains the graph of a <= t. Barannikov et al. attach a second copy of all samples, at
    distance 0 from each other, so that common components and loops disappear. H_1 consists of the rest: components that
    only b joins, and loops of min(a, b) that a does not have. Here only the upper triangle of a joins the copies, which
    their theorem allows, and is faster.

    If b joins many samples that a joins late, persistence takes minutes, because every component is a cocycle of nearly
    all edges. Then the components are counted separately: their number, integrated over all scales, is the difference
    between the lengths of two minimum spanning trees. The second copies of i and j are then at the distance at which a
    joins i and j, which removes the loops within each component, but joins no components. By the exact sequence
    H_1(a) -> H_1(min) -> H_1 -> H_0(a) -> H_0(min) the sum of both lengths is the same.
    """
    both = np.minimum(a, b)
    cross = a.copy()
    cross[np.tril_indices(len(a), -1)] = np.inf
    length, joined = single_linkage(a)
    components = length - single_linkage(both)[0]
    if components <= tuning.current().trees_apart * len(a):
        return np.block([[both, cross], [cross.T, np.zeros_like(a)]]), 0.0
    return np.block([[joined, cross.T], [cross, both]]), components


@dataclass(frozen=True)
class RTD(TopologyMetric[Batches]):
    """Representation topology divergence: components and loops that two layers have at different scales.

    Distances within each layer are divided by their 0.9 quantile. The bars of R-Cross-Barcode_1(X, Y) are the intervals
    of t in which the graphs of min(d_X, d_Y) <= t and of d_X <= t differ in a component or a loop: H_1 (over Z_2) of
    the Vietoris-Rips filtration of the (2n, 2n) distance matrix of blocks 0, d_X, d_X', min(d_X, d_Y). The value is the
    total length of the bars, averaged over (X, Y) and (Y, X), and over batches of samples. Range [0, inf). It grows
    approximately in proportion to the size of a batch, so only values of equal batch sizes can be compared.

    Parameters
    ----------
    batch : int
        Samples per batch. If there are no more samples, all are compared once, and nothing is random.
    trials : int
        Number of batches; samples within a batch are drawn without replacement.
    seed : int
        Seed of the batches.

    Notes
    -----
    A batch of 500 takes 0.3 to 10 seconds in each direction, so ten batches of a pair take up to a few minutes;
    ``batch=200`` takes a fifth of that or less. A layer takes 0.1 seconds. The example in the README of the published
    code gives the same value, 35.552344, with the same draws.

    References
    ----------
    Barannikov, Trofimov, Balabin, Burnaev. Representation topology divergence: a method for comparing neural network
    representations. ICML 2022.

    Examples
    --------
    >>> import numpy as np
    >>> t = np.linspace(0, 2 * np.pi, 40, endpoint=False)
    >>> circle, line = np.stack([np.cos(t), np.sin(t)], axis=1), np.stack([t, 2 * t], axis=1)
    >>> rtd = RTD()
    >>> rtd(circle, line) > 0.5, rtd(circle, -2 * circle) < 1e-9
    (True, True)
    """

    name: ClassVar[str] = "rtd"
    title: ClassVar[str] = "RTD"
    formula: ClassVar[str] = "mean of the lengths of R-Cross-Barcode_1(X, Y) and (Y, X)"
    citation: ClassVar[str] = "Barannikov et al. 2022"
    question: ClassVar[str] = "Are the same samples connected, and in the same loops, at the same scales?"
    needs: ClassVar[str] = "one batch (500); values of batches of different sizes cannot be compared"
    others: ClassVar[Mapping[str, str]] = {
        "rtd (published)": "Ripser++ on a GPU, in float32; the same values up to rounding (here batches are seeded)",
        "ReSi": "NaN without a GPU",
    }
    extra: ClassVar[str | None] = "gudhi"

    batch: int = 500
    trials: int = 10
    seed: int = 0

    def __post_init__(self) -> None:
        if self.batch < 4 or self.trials < 1:
            raise InvalidInputError(f"batch={self.batch} should be at least 4, and trials={self.trials} at least 1")

    @property
    def bounds(self) -> tuple[float, float]:
        """Range of the value: [0, inf)."""
        return 0.0, math.inf

    @property
    def recipe(self) -> DistanceBatches:
        """Recipe that computes scaled distances within batches."""
        return DistanceBatches(self.batch, self.trials, self.seed)

    def value(self, a: Batches, b: Batches) -> Tensor:
        """Compute both directions of all batches, with as many threads as torch uses."""
        persistence = load_gudhi("rtd", "gudhi.sklearn.rips_persistence").RipsPersistence(
            1, input_type="full distance matrix", homology_coeff_field=2, n_jobs=torch.get_num_threads()
        )
        views = [
            cross_barcode_matrix(first, second)
            for x, y in zip(a.distances, b.distances, strict=True)
            for first, second in ((x, y), (y, x))
        ]
        bars: list[Bars] = persistence.fit_transform([matrix for matrix, _ in views])
        lengths = [float((intervals[:, 1] - intervals[:, 0]).sum()) for intervals in bars]
        return torch.tensor(np.mean(lengths) + np.mean([rest for _, rest in views]), dtype=torch.float64)

    @override
    def samples_needed(self, p: int, q: int) -> int:
        """Return the size of a batch, because values of smaller batches cannot be compared with it."""
        return self.batch

    @override
    def pair_cost(self, n: int, p: int, q: int) -> Cost:
        """Return the cost, in proportion to the triangles of both directions."""
        trials, batch = (1, n) if n <= self.batch else (self.trials, self.batch)
        return Cost(touched=0.85 * trials * (2 * batch) ** 3)
