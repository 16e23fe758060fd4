"""IMD: the heat that spreads over the neighbourhoods of samples."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from jaxtyping import Float, Float64
from torch import Tensor
from typing_extensions import override

from repsim.errors import InvalidInputError
from repsim.metrics.recipes.base import InMemoryRecipe
from repsim.metrics.recipes.cost import Cost, LayerSize, Memory
from repsim.metrics.recipes.rows import cut
from repsim.metrics.topology import TopologyMetric, centred_samples, squared_distances
from repsim.runtime import tuning

_TIMES = torch.logspace(-1, 1, 256, dtype=torch.float64)
_WEIGHTS = torch.exp(-2 * (_TIMES + 1 / _TIMES))
_UNIT = 1e6
"""The published code's unit, without which values are around 1e-5."""
_DEGREE = 40
"""Of the Chebyshev polynomial that stands for exp(-t x) on [0, 2], t <= 10: the error is below 1e-12."""


@dataclass(frozen=True, eq=False)
class Heat:
    """How much heat is left where it was, at each of the times, and how sure the neighbourhoods are."""

    traces: Float64[Tensor, " times"]
    ties: int
    """Samples whose neighbours are not determined: the next one is at the same distance as the last."""

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        return self.traces.nbytes


@dataclass(frozen=True)
class HeatTraces(InMemoryRecipe[Heat]):
    """Heat-kernel traces of the graph of nearest neighbours."""

    neighbours: int
    probes: int
    seed: int

    def __call__(self, x: Float[Tensor, "n p"]) -> Heat:
        """By all eigenvalues of the graph where it is not too large, and by random probes where it is."""
        z = centred_samples(x).exact(slice(None))
        n, k = len(z), self.neighbours
        nearest, ties, largest = [], 0, float(z.square().sum(1).max())
        for i in cut(n, max(1, 2**24 // n)):
            squares = squared_distances(z[i], z)
            squares[torch.arange(len(squares)), torch.arange(i.start, i.stop)] = math.inf
            values, found = squares.topk(k + 1, largest=False)
            ties += int((values[:, k] - values[:, k - 1] <= 1e-12 * largest).sum())
            nearest.append(found[:, :k])
        graph = normalised_adjacency(torch.cat(nearest))
        traces = (
            exact_traces(graph) if n <= tuning.current().heat_exact else estimated_traces(graph, self.probes, self.seed)
        )
        return Heat(traces.cpu(), ties)

    @override
    def cost(self, layer: LayerSize) -> Cost:
        """All distances, and the eigenvalues or the products with probes."""
        n = layer.n
        products = 2.0 * _DEGREE * self.neighbours * n * self.probes
        flop = 2.0 * n * n * layer.p + (4 / 3 * n**3 if n <= tuning.current().heat_exact else products)
        return Cost.of_products(flop, layer.itemsize)

    @override
    def memory(self, layer: LayerSize) -> Memory:
        """The traces."""
        return Memory(_TIMES.nbytes)


def normalised_adjacency(nearest: Tensor) -> Tensor:
    """D^{-1/2} A D^{-1/2} (n, n), sparse: A is 1 where one of two samples is a neighbour of the other."""
    n, k = nearest.shape
    i, j = torch.arange(n, device=nearest.device).repeat_interleave(k), nearest.flatten()
    i, j = torch.stack([torch.cat([i, j]), torch.cat([j, i])]).unique(dim=1)
    degree = torch.bincount(i, minlength=n).double()
    weights = (degree[i] * degree[j]).rsqrt()
    return torch.sparse_coo_tensor(torch.stack([i, j]), weights, (n, n), is_coalesced=True, check_invariants=False)


def exact_traces(graph: Tensor) -> Float64[Tensor, " times"]:
    """The traces of exp(-t (I - graph)) / n."""
    gaps = 1 - torch.linalg.eigvalsh(graph.to_dense())
    return torch.exp(-_TIMES.to(gaps.device)[:, None] * gaps).mean(1)


def estimated_traces(graph: Tensor, probes: int, seed: int) -> Float64[Tensor, " times"]:
    """The same, from the Chebyshev moments tr T_k(graph), which random signs estimate (Hutchinson).

    The moments of degree 0, 1 and 2 are known, which takes away most of the variance, as in the published code.
    """
    n, half = len(graph), _DEGREE // 2
    rng = np.random.default_rng(seed)
    moments = torch.zeros(_DEGREE + 1, dtype=torch.float64, device=graph.device)
    for part in cut(probes, 64):
        signs = 2.0 * rng.integers(0, 2, size=(n, part.stop - part.start)) - 1
        before = start = torch.from_numpy(signs).to(graph.device)
        now = first = torch.sparse.mm(graph, start)
        for k in range(1, half + 1):  # T_2k = 2 T_k T_k - T_0 and T_2k-1 = 2 T_k T_k-1 - T_1
            moments[2 * k] += (2 * now * now - start * start).sum() / probes
            moments[2 * k - 1] += (2 * now * before - first * start).sum() / probes
            before, now = now, 2 * torch.sparse.mm(graph, now) - before
    moments[0], moments[1], moments[2] = n, 0, 2 * graph.values().square().sum() - n
    angle = (torch.arange(256, dtype=torch.float64) + 0.5) * math.pi / 256
    degrees = torch.arange(_DEGREE + 1, dtype=torch.float64)
    heat = torch.exp(-_TIMES[:, None] * (1 - angle.cos()))
    coefficients = heat @ torch.cos(angle[:, None] * degrees) / 128
    coefficients[:, 0] /= 2
    return coefficients @ moments.cpu() / n


@dataclass(frozen=True)
class IMD(TopologyMetric[Heat]):
    """Intrinsic multi-scale distance: how heat spreads over the graph of nearest neighbours of each layer.

    L is the normalised Laplacian of the graph that joins every sample to its nearest neighbours (an edge of weight 1
    where one of the two is a neighbour of the other), and h(t) = tr exp(-t L) / n: the trace relative to that of a
    graph without edges, as in the published code. The value is 10^6 max_t exp(-2 (t + 1/t)) |h_X(t) - h_Y(t)| over 256
    times t from 0.1 to 10, a pseudometric; 10^6 is the published code's unit. The largest value possible is
    10^6 max_t exp(-2 (t + 1/t)) (1 - exp(-t))^2 / 2, which is about 4,000. The two clouds need not be of the same
    samples: which is which does not matter.

    Parameters
    ----------
    neighbours
        How many nearest neighbours each sample is joined to.
    probes
        Random vectors that the traces are estimated with, above 4,096 samples; below, they are exact.
    seed
        Of the random vectors.

    Notes
    -----
    Up to 4,096 samples h is computed from all eigenvalues, and nothing is random. Above, by random vectors, with an
    error of h of about sqrt(1 / (n x probes)) at most. A layer of 1,000 samples takes 0.1 seconds, one of 4,000 takes
    4 seconds, and a pair takes microseconds.

    References
    ----------
    Tsitsulin, Munkhoeva, Mottin, Karras, Bronstein, Oseledets, Mueller. The shape of data: intrinsic distance for data
    distributions. ICLR 2020.

    Examples
    --------
    >>> import numpy as np
    >>> rng = np.random.default_rng(0)
    >>> cloud, sheet = rng.normal(size=(200, 10)), rng.normal(size=(200, 2))
    >>> imd = IMD()
    >>> imd(cloud, sheet) > 10 * imd(cloud, rng.normal(size=(200, 10))), imd(cloud, -2 * cloud) < 1e-6
    (True, True)
    """

    name: ClassVar[str] = "imd"
    title: ClassVar[str] = "IMD"
    formula: ClassVar[str] = "1e6 max_t exp(-2(t + 1/t)) |h_X(t) - h_Y(t)|, h(t) = tr exp(-t L) / n"
    citation: ClassVar[str] = "Tsitsulin et al. 2020"
    question: ClassVar[str] = "Does heat spread alike over the neighbourhoods of two clouds of samples, at all scales?"
    needs: ClassVar[str] = "some 500; up to 4,096 its value is exact, above it is an estimate"
    others: ClassVar[Mapping[str, str]] = {
        "msid (published), ReSi": "estimates the traces with random vectors (100, ReSi 8,000) and 10 Lanczos steps, "
        "so that a layer has a distance to itself; up to 4,096 samples we take all eigenvalues",
    }
    paired: ClassVar[bool] = False
    triangle: ClassVar[bool] = True

    neighbours: int = 5
    probes: int = 256
    seed: int = 0

    def __post_init__(self) -> None:
        if self.neighbours < 1 or self.probes < 1:
            raise InvalidInputError(f"neighbours={self.neighbours} and probes={self.probes} should be at least 1")

    @property
    def bounds(self) -> tuple[float, float]:
        """Eigenvalues are in [0, 2], and 1 on average: exp(-t) <= h(t) <= (1 + exp(-2t)) / 2."""
        return 0.0, float((_UNIT * _WEIGHTS * (1 - torch.exp(-_TIMES)).square() / 2).max())

    @property
    def min_samples(self) -> int:
        """With one less, all are neighbours of all."""
        return self.neighbours + 2

    @property
    def recipe(self) -> HeatTraces:
        """All the work; a pair compares two short vectors."""
        return HeatTraces(self.neighbours, self.probes, self.seed)

    def value(self, a: Heat, b: Heat) -> Tensor:
        """The largest weighted difference."""
        return _UNIT * (_WEIGHTS * (a.traces - b.traces).abs()).max()

    @override
    def samples_needed(self, p: int, q: int) -> int:
        """Of fewer the graph's heat is mostly that of its few vertices."""
        return 500

    @override
    def pair_flop(self, n: int, p: int, q: int) -> float:
        """A difference of two vectors."""
        return 4.0 * len(_TIMES)

    def caution(self, a: Heat, b: Heat) -> str | None:
        """Where neighbours are drawn by lot, as between equal samples."""
        if ties := max(a.ties, b.ties):
            return (
                f"the {self.neighbours} nearest neighbours of {ties} samples are not determined, because others are as "
                "near (equal samples, perhaps); the order of samples decides"
            )
        return None
