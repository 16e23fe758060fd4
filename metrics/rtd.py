"""RTD: the scales at which two clouds of the same samples are connected differently."""

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
from repsim.metrics.recipes.rows import wide
from repsim.metrics.topology import ZERO, Bars, Square, TopologyMetric, centred_samples, distances_within, load_gudhi
from repsim.runtime import tuning


@dataclass(frozen=True, eq=False)
class Batches:
    """Distances within batches of samples, in units of their 0.9 quantile."""

    distances: Float64[np.ndarray, "trials batch batch"]

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        return self.distances.nbytes


@dataclass(frozen=True)
class DistanceBatches(InMemoryRecipe[Batches]):
    """Distances within random batches of samples: the same samples of every layer."""

    batch: int
    trials: int
    seed: int

    def __call__(self, x: Float[Tensor, "n p"]) -> Batches:
        """Once, of all samples, where there are no more than a batch."""
        load_gudhi("rtd", "gudhi")
        centred, n = centred_samples(x), len(x)
        rng = np.random.default_rng(self.seed)
        draws: Sequence[slice | Tensor] = [slice(None)]
        if n > self.batch:
            where = wide(x.device)
            draws = [torch.from_numpy(rng.permutation(n)[: self.batch]).to(where) for _ in range(self.trials)]
        return Batches(np.stack([self._scaled(distances_within(centred.exact(draw))) for draw in draws]))

    @staticmethod
    def _scaled(distances: Square) -> Square:
        unit = np.quantile(distances, 0.9)
        if unit <= ZERO * distances.max():
            raise UndefinedValueError(
                "nine tenths of the distances between samples are 0, so that there is no unit to measure the others "
                "in: the layer is nearly constant"
            )
        scaled: Square = distances / unit
        scaled[scaled < ZERO] = 0
        return scaled

    def drawn(self, n: int) -> tuple[int, int]:
        """How many batches of n samples there are, and how large each is."""
        return (1, n) if n <= self.batch else (self.trials, self.batch)

    @override
    def cost(self, layer: LayerSize) -> Cost:
        """The distances of every batch."""
        trials, batch = self.drawn(layer.n)
        return Cost.of_products(2.0 * trials * batch**2 * layer.p, layer.itemsize)

    @override
    def memory(self, layer: LayerSize) -> Memory:
        """The distances of every batch."""
        trials, batch = self.drawn(layer.n)
        return Memory(8 * trials * batch**2)


def single_linkage(d: Square) -> tuple[float, Square]:
    """The length of a minimum spanning tree, and for all i, j the least scale at which i and j are in one component.

    >>> single_linkage(np.abs(np.subtract.outer([0.0, 5, 2], [0.0, 5, 2])))
    (5.0, array([[0., 3., 2.], [3., 0., 3.], [2., 3., 0.]]))
    """
    joined, near = np.zeros_like(d), d[0].copy()
    tree, length = [0], 0.0
    for _ in range(len(d) - 1):  # Prim's: what is between two samples of its order is the longest edge since the first
        near[tree] = np.inf
        new = int(near.argmin())
        joined[new, tree] = joined[tree, new] = np.maximum(joined[tree[-1], tree], near[new])
        length += float(near[new])
        near = np.minimum(near, d[new])
        tree.append(new)
    return length, joined


def two_view(a: Square, b: Square) -> tuple[Float64[np.ndarray, "2*n 2*n"], float]:
    """A distance matrix (2n, 2n), and a length to add to that of its H_1 bars: together R-Cross-Barcode_1's length.

    The graph of min(a, b) <= t contains that of a <= t. Barannikov et al. glue a second copy of all samples to it, all
    of them at distance 0 of each other, so that whatever is a component or a loop of both disappears: H_1 is what is
    left, components that only b joins and loops of both that a does not have. Here the upper triangle of a alone joins
    the copies, which their theorem allows, and is faster.

    Where b joins much that a joins late, persistence takes minutes, because every component is a cocycle of nearly all
    edges. Then the components are counted by themselves: over all scales, their number is the difference between the
    lengths of two minimum spanning trees. The second copies of i and j are now at the distance at which a joins i and
    j, which kills the loops of each component, but joins none. By the exact sequence H_1(a) -> H_1(min) -> H_1 ->
    H_0(a) -> H_0(min) the sum of both is the same.
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
    """Representation topology divergence: components and loops that two layers do not have at the same places.

    Distances within each layer are divided by their 0.9 quantile. R-Cross-Barcode_1(X, Y) says which components and
    loops of the graph of min(d_X, d_Y) <= t are none of that of d_X <= t, and from which t to which: H_1 (over Z_2) of
    the Vietoris-Rips filtration of the (2n, 2n) distance matrix of blocks 0, d_X, d_X', min(d_X, d_Y). The value is the
    total length of its bars, averaged over (X, Y) and (Y, X), and over batches of samples. Range [0, inf): it grows
    about in proportion to the size of a batch, so that only values of equal batches can be compared.

    Parameters
    ----------
    batch
        Samples of a batch. Where there are no more than that, all are compared, once, and nothing is random.
    trials
        Batches, drawn without replacement within each.
    seed
        Of the batches.

    Notes
    -----
    A batch of 500 takes 0.3 to 10 seconds in each direction, so that ten batches of a pair take up to some minutes;
    ``batch=200`` a fifth of that or less. A layer takes 0.1 seconds. The example of the published code's README gives
    35.552344 here, too, with its draws.

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
    question: ClassVar[str] = "Are the same samples joined, and in the same loops, at the same scales?"
    needs: ClassVar[str] = "a batch (500); values of batches of different sizes cannot be compared"
    others: ClassVar[Mapping[str, str]] = {
        "rtd (published)": "Ripser++ on a GPU, in float32; the same values to its rounding (our batches are seeded)",
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
        """[0, inf)."""
        return 0.0, math.inf

    @property
    def recipe(self) -> DistanceBatches:
        """The distances, scaled."""
        return DistanceBatches(self.batch, self.trials, self.seed)

    def value(self, a: Batches, b: Batches) -> Tensor:
        """Both directions of all batches, as many at a time as there are threads."""
        persistence = load_gudhi("rtd", "gudhi.sklearn.rips_persistence").RipsPersistence(
            1, input_type="full distance matrix", homology_coeff_field=2, n_jobs=torch.get_num_threads()
        )
        views = [
            two_view(one, other)
            for x, y in zip(a.distances, b.distances, strict=True)
            for one, other in ((x, y), (y, x))
        ]
        bars: list[Bars] = persistence.fit_transform([matrix for matrix, _ in views])
        lengths = [float((each[:, 1] - each[:, 0]).sum()) for each in bars]
        return torch.tensor(np.mean(lengths) + np.mean([rest for _, rest in views]), dtype=torch.float64)

    @override
    def samples_needed(self, p: int, q: int) -> int:
        """A batch: values of smaller ones cannot be compared with it."""
        return self.batch

    @override
    def pair_flop(self, n: int, p: int, q: int) -> float:
        """Some ten operations for every triangle of the two views."""
        trials, batch = (1, n) if n <= self.batch else (self.trials, self.batch)
        return 20.0 * trials * (2 * batch) ** 3
