"""Intrinsic multi-scale distance (IMD): heat diffusion on the graph of nearest neighbours."""

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
"""Unit of the published code; without it values are around 1e-5."""
_DEGREE = 40
"""Degree of the Chebyshev polynomial for exp(-t x) on [0, 2], t <= 10: its error is below 1e-12."""


@dataclass(frozen=True, eq=False)
class Heat:
    """Heat-kernel traces of one layer."""

    traces: Float64[Tensor, " times"]
    ties: int
    """Samples with tied neighbours: the next sample is at the same distance as the last neighbour."""

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        return self.traces.nbytes


@dataclass(frozen=True)
class HeatTraces(InMemoryRecipe[Heat]):
    """Recipe of `Heat`: heat-kernel traces of the graph of nearest neighbours."""

    neighbours: int
    probes: int
    seed: int

    def __call__(self, x: Float[Tensor, "n p"]) -> Heat:
        """Compute the traces, from all eigenvalues of a small graph, or from random probes of a large one."""
        z = centred_samples(x).exact(slice(None))
        n, k = len(z), self.neighbours
        nearest, ties, largest = [], 0, float(z.square().sum(1).max())
        for i in cut(n, max(1, 2**24 // n)):
            squares = squared_distances(z[i], z)
            squares[torch.arange(len(squares)), torch.arange(i.start, i.stop)] = math.inf
            values, indices = squares.topk(k + 1, largest=False)
            ties += int((values[:, k] - values[:, k - 1] <= 1e-12 * largest).sum())
            nearest.append(indices[:, :k])
        graph = normalised_adjacency(torch.cat(nearest))
        traces = (
            exact_traces(graph) if n <= tuning.current().heat_exact else estimated_traces(graph, self.probes, self.seed)
        )
        return Heat(traces.cpu(), ties)

    @override
    def cost(self, layer: LayerSize) -> Cost:
        """Return the cost of all distances, and of the eigenvalues or the products with probes."""
        n = layer.n
        distances = Cost(flop64=2.0 * n * n * layer.p, touched=2.0 * n * n, calls=600)
        products = Cost(flop64=2.0 * _DEGREE * self.neighbours * n * self.probes)
        return distances + (Cost.of_eigenvalues(n, 0.55) if n <= tuning.current().heat_exact else products)

    @override
    def memory(self, layer: LayerSize) -> Memory:
        """Return the memory of the traces."""
        return Memory(_TIMES.nbytes)


def normalised_adjacency(nearest: Tensor) -> Tensor:
    """Return D^{-1/2} A D^{-1/2} (n, n), sparse: A_ij is 1 if i is a neighbour of j, or j of i."""
    n, k = nearest.shape
    i, j = torch.arange(n, device=nearest.device).repeat_interleave(k), nearest.flatten()
    i, j = torch.stack([torch.cat([i, j]), torch.cat([j, i])]).unique(dim=1)
    degree = torch.bincount(i, minlength=n).double()
    weights = (degree[i] * degree[j]).rsqrt()
    return torch.sparse_coo_tensor(torch.stack([i, j]), weights, (n, n), is_coalesced=True, check_invariants=False)


def exact_traces(graph: Tensor) -> Float64[Tensor, " times"]:
    """Return the traces of exp(-t (I - graph)) / n."""
    gaps = 1 - torch.linalg.eigvalsh(graph.to_dense())
    return torch.exp(-_TIMES.to(gaps.device)[:, None] * gaps).mean(1)


def estimated_traces(graph: Tensor, probes: int, seed: int) -> Float64[Tensor, " times"]:
    """Estimate the traces from the Chebyshev moments tr T_k(graph), with random sign vectors (Hutchinson).

    The moments of degree 0, 1 and 2 are exact, which removes most of the variance, as in the published code.
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
    if one of the two is a neighbour of the other), and h(t) = tr exp(-t L) / n: the trace relative to that of a graph
    without edges, as in the published code. The value is 10^6 max_t exp(-2 (t + 1/t)) |h_X(t) - h_Y(t)| over 256
    times t from 0.1 to 10, a pseudometric; 10^6 is the unit of the published code. The largest possible value is
    10^6 max_t exp(-2 (t + 1/t)) (1 - exp(-t))^2 / 2, which is about 4,000. The two clouds need not contain the same
    samples.

    Parameters
    ----------
    neighbours : int
        Number of nearest neighbours that each sample is joined to.
    probes : int
        Number of random vectors for the estimate of the traces, above 4,096 samples; up to 4,096 they are exact.
    seed : int
        Seed of the random vectors.

    Notes
    -----
    Up to 4,096 samples h is computed from all eigenvalues, and nothing is random. Above, it is estimated with random
    vectors, with an error of at most about sqrt(1 / (n x probes)). A layer of 1,000 samples takes 0.1 seconds, one of
    4,000 takes 4 seconds, and a pair takes microseconds.

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
    question: ClassVar[str] = "Does heat spread equally over the neighbour graphs of two clouds, at all scales?"
    needs: ClassVar[str] = "about 500; the value is exact up to 4,096 samples, and an estimate above"
    others: ClassVar[Mapping[str, str]] = {
        "msid (published), ReSi": "estimates the traces with random vectors (100, ReSi 8,000) and 10 Lanczos steps, "
        "so a layer has a distance above 0 to itself; here all eigenvalues are computed up to 4,096 samples",
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
        """Range of the value: eigenvalues are in [0, 2] with mean 1, so exp(-t) <= h(t) <= (1 + exp(-2t)) / 2."""
        return 0.0, float((_UNIT * _WEIGHTS * (1 - torch.exp(-_TIMES)).square() / 2).max())

    @property
    def min_samples(self) -> int:
        """Number of neighbours plus 2: with one sample fewer, all others are neighbours."""
        return self.neighbours + 2

    @property
    def recipe(self) -> HeatTraces:
        """Recipe that does all the work; a pair compares two short vectors."""
        return HeatTraces(self.neighbours, self.probes, self.seed)

    def value(self, a: Heat, b: Heat) -> Tensor:
        """Return the largest weighted difference."""
        return _UNIT * (_WEIGHTS * (a.traces - b.traces).abs()).max()

    @override
    def samples_needed(self, p: int, q: int) -> int:
        """Return 500; with fewer samples the traces depend mostly on the number of vertices."""
        return 500

    @override
    def pair_cost(self, n: int, p: int, q: int) -> Cost:
        """Return the cost of a difference of two vectors."""
        return Cost(calls=10)

    def caution(self, a: Heat, b: Heat) -> str | None:
        """Warn of neighbours that depend on ties, as between equal samples."""
        if ties := max(a.ties, b.ties):
            return (
                f"the {self.neighbours} nearest neighbours of {ties} samples are tied with others (equal samples, "
                "perhaps); the order of samples decides which count"
            )
        return None
