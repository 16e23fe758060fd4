"""Topology: loops that a cloud of samples has at some scales, and the heat that spreads over its neighbourhoods."""

import importlib
import math
from abc import ABC
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, Literal

import numpy as np
import torch
from jaxtyping import Float, Float64
from torch import Tensor

from repsim.errors import InvalidInputError, MissingExtraError, UndefinedValueError
from repsim.metrics.base import F, Group, Invariance, Metric
from repsim.metrics.recipes.rows import Centred, column_means, cut, wide

Square = Float64[np.ndarray, "n n"]
Bars = Float64[np.ndarray, "bars 2"]

_ZERO = 1e-6
"""Distances below this, relative to the large ones, are rounding errors of equal samples (the published bound)."""


class TopologyMetric(Metric[F], ABC, Generic[F]):
    """What is compared by distances between samples alone: rotating, moving or scaling a layer changes nothing."""

    group: ClassVar[Group] = "topology"
    sense: ClassVar[Literal["similarity", "distance"]] = "distance"
    symmetric: ClassVar[bool] = True
    differentiable: ClassVar[bool] = False
    stochastic: ClassVar[bool] = True

    @property
    def invariances(self) -> frozenset[Invariance]:
        """Whatever keeps the ratios of distances."""
        return frozenset({"permutation", "orthogonal", "isotropic scaling", "translation"})


def _centred(x: Float[Tensor, "n p"]) -> Centred:
    mean, scale = column_means(x)
    return Centred(x, mean, scale, torch.float64)


def _squared(z: Float64[Tensor, "m p"], w: Float64[Tensor, "n p"]) -> Float64[Tensor, "m n"]:
    """Squared Euclidean distances; those of equal samples are 0 but for rounding."""
    return (z.square().sum(1)[:, None] + w.square().sum(1) - 2 * (z @ w.T)).clamp_(min=0)


def _distances(z: Float64[Tensor, "n p"]) -> Square:
    squares = _squared(z, z)
    distances: Square = ((squares + squares.T) / 2).fill_diagonal_(0).sqrt_().cpu().numpy()
    return distances


def _gudhi(who: str, module: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError:
        raise MissingExtraError(who, "gudhi", extra="topology") from None


# Geometry Score


@dataclass(frozen=True, eq=False)
class Loops:
    """How many loops there are, over how much of the range of scales: MRLT."""

    times: Float64[Tensor, " i_max"]

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        return self.times.nbytes


@dataclass(frozen=True)
class LoopCounts:
    """Mean relative living times of the numbers of loops in witness complexes on random landmarks."""

    landmarks: int
    gamma: float | None
    i_max: int
    draws: int
    seed: int

    def __call__(self, x: Float[Tensor, "n p"]) -> Loops:
        """Average over draws.

        Landmarks are drawn from the samples in the order of their mean distance to all others, so that the order in
        which a layer comes decides nothing, but among samples at equal distances.
        """
        _gudhi("geometry_score", "gudhi")
        z = _centred(x).exact(slice(None))
        distances = _distances(z)
        far = distances.sum(1)
        order = np.argsort((far / far.max()).round(9), kind="stable")  # rounding errors decide nothing either
        n = len(order)
        gamma = n / 5000 / 128 if self.gamma is None else self.gamma
        rng = np.random.default_rng(self.seed)
        times = np.zeros(self.i_max)
        for _ in range(self.draws):
            to_landmarks = distances[order[rng.choice(n, self.landmarks)]].T
            highest = gamma * to_landmarks.max()
            times += living_times(witness_bars(to_landmarks, highest), highest, self.i_max)
        return Loops(torch.from_numpy(times / self.draws))

    def takes(self, n: int, p: int, itemsize: int) -> tuple[float, float]:  # noqa: ARG002 - all is float64
        """All distances once; sorting them for every draw."""
        return 2.0 * n * n * p + 200.0 * self.draws * n * self.landmarks, 8.0 * self.i_max


def witness_bars(distances: Float64[np.ndarray, "n landmarks"], highest: float) -> Bars:
    """Births and deaths of the loops of a witness complex whose relaxation grows to ``highest``."""
    witnesses = _gudhi("geometry_score", "gudhi").WitnessComplex(nearest_landmarks(distances, highest))
    tree = witnesses.create_simplex_tree(max_alpha_square=highest, limit_dimension=2)
    tree.compute_persistence(homology_coeff_field=2, persistence_dim_max=True)  # loops, even if there are no triangles
    bars: Bars = tree.persistence_intervals_in_dimension(1).reshape(-1, 2)
    return bars


def nearest_landmarks(distances: Float64[np.ndarray, "n landmarks"], slack: float) -> list[list[tuple[int, float]]]:
    """Every sample's landmarks by distance, but only those that may be the corner of a triangle that it witnesses.

    A sample w witnesses a simplex s at max_{l in s} d(w, l) - min_{l not in s} d(w, l), or at 0 where that is negative.
    What is not in a triangle is at most at the distance of the third landmark, unless the triangle is the first three;
    so corners are no farther than that plus ``slack``. Leaving the others out changes nothing, and saves most of the
    time.

    >>> nearest_landmarks(np.array([[0.0, 3, 1, 2, 9]]), 0.5)
    [[(0, 0.0), (2, 1.0), (3, 2.0)]]
    """
    order = np.argsort(distances, axis=1, kind="stable")
    ordered = np.take_along_axis(distances, order, axis=1)
    kept = (ordered <= ordered[:, 2:3] + slack).sum(1)
    width = kept.max()
    rows = zip(order[:, :width].tolist(), ordered[:, :width].tolist(), kept.tolist(), strict=True)
    return [list(zip(numbers[:k], values[:k], strict=True)) for numbers, values, k in rows]


def living_times(bars: Bars, highest: float, i_max: int) -> Float64[np.ndarray, " i_max"]:
    """The share of [0, highest] in which there are exactly i loops, for i below ``i_max``.

    >>> living_times(np.array([[0.0, 2.0], [1.0, np.inf]]), 4.0, 3)
    array([0.  , 0.75, 0.25])
    """
    bars = bars.clip(max=highest)
    steps = np.unique([0, highest, *bars.ravel()])
    middle = (steps[1:] + steps[:-1]) / 2
    loops = ((bars[:, 0] <= middle[:, None]) & (middle[:, None] < bars[:, 1])).sum(1)
    times: Float64[np.ndarray, " i_max"] = np.bincount(loops, np.diff(steps) / highest, minlength=i_max)[:i_max]
    return times


@dataclass(frozen=True)
class GeometryScore(TopologyMetric[Loops]):
    """Geometry Score: how many loops a cloud of samples has, and over how much of a range of scales.

    In a witness complex on random landmarks, whose relaxation grows from 0 to a = gamma max d(sample, landmark), the
    relative living time RLT(i) is the share of [0, a] in which there are exactly i loops (the rank of H_1 over Z_2).
    Averaged over draws of landmarks it is MRLT, and the value is sum_{i < i_max} (MRLT_X(i) - MRLT_Y(i))^2. Range
    [0, 2]. The two clouds need not be of the same samples: which is which does not matter.

    Parameters
    ----------
    landmarks
        How many samples are landmarks of a draw; drawn with replacement, as the published code does.
    gamma
        The largest relaxation, relative to the largest distance. By default n / 5000 / 128, the published code's.
    i_max
        Numbers of loops from this on do not count.
    draws
        How many draws of landmarks are averaged.
    seed
        Of the draws.

    Notes
    -----
    Two estimates of the same layer with other seeds differ by about the sum of the variances of MRLT, some
    2 / ``draws``: smaller values mean nothing. As in the published code, distances are not squared. A layer of 1,000
    samples takes about 6 seconds with 1,000 draws, in proportion to samples and draws; a pair takes microseconds.

    References
    ----------
    Khrulkov, Oseledets. Geometry Score: a method for comparing generative adversarial networks. ICML 2018.
    De Silva, Carlsson. Topological estimation using witness complexes. 2004.

    Examples
    --------
    A circle is not like a line; with enough slack most draws see its one loop.

    >>> import numpy as np
    >>> t = np.linspace(0, 2 * np.pi, 100, endpoint=False)
    >>> circle, line = np.stack([np.cos(t), np.sin(t)], axis=1), np.stack([t, 2 * t], axis=1)
    >>> score = GeometryScore(landmarks=16, gamma=0.2, draws=20)
    >>> score(circle, line) > 0.5, score(circle, 3 * circle) < 1e-9
    (True, True)
    """

    name: ClassVar[str] = "geometry_score"
    title: ClassVar[str] = "Geometry Score"
    formula: ClassVar[str] = "sum_i (MRLT_X(i) - MRLT_Y(i))^2, MRLT(i) = mean share of scales with i loops"
    citation: ClassVar[str] = "Khrulkov & Oseledets 2018"
    question: ClassVar[str] = "Have two clouds of samples as many loops, over as wide a range of scales?"
    needs: ClassVar[str] = "1,000 or more (the default range of scales shrinks with n); memory for n x n distances"
    others: ClassVar[Mapping[str, str]] = {
        "gs (published), ReSi": "the same but for the draws, which are not seeded there and depend on the order of "
        "samples, and for a complex without any triangle, whose loops the published code does not see",
    }
    paired: ClassVar[bool] = False
    extra: ClassVar[str | None] = "gudhi"

    landmarks: int = 64
    gamma: float | None = None
    i_max: int = 100
    draws: int = 1000
    seed: int = 0

    def __post_init__(self) -> None:
        if self.landmarks < 4:
            raise InvalidInputError(f"landmarks={self.landmarks}: a loop needs at least 4")
        if self.gamma is not None and not self.gamma > 0:
            raise InvalidInputError(f"gamma={self.gamma} should be positive")
        if self.i_max < 1 or self.draws < 1:
            raise InvalidInputError(f"i_max={self.i_max} and draws={self.draws} should be at least 1")

    @property
    def bounds(self) -> tuple[float, float]:
        """Living times sum to 1 at most: [0, 2]."""
        return 0.0, 2.0

    @property
    def min_samples(self) -> int:
        """As many as there are landmarks."""
        return self.landmarks

    @property
    def recipe(self) -> LoopCounts:
        """All the work; a pair compares two short vectors."""
        return LoopCounts(self.landmarks, self.gamma, self.i_max, self.draws, self.seed)

    def value(self, a: Loops, b: Loops) -> Tensor:
        """The squared distance of the living times."""
        return (a.times - b.times).square().sum()

    def samples_needed(self, p: int, q: int) -> int:  # noqa: ARG002 - of any layer
        """The default range of scales is that of 1,000 samples."""
        return 1000

    def pair_flop(self, n: int, p: int, q: int) -> float:  # noqa: ARG002 - of vectors of one length
        """A difference of two vectors."""
        return 3.0 * self.i_max

    def caution(self, a: Loops, b: Loops) -> str | None:
        """Without any loop, all layers are alike; and so they are where there are too many."""
        if min(a.times[0], b.times[0]) > 1 - 1e-9:
            return "no draw of landmarks saw a loop in either layer, which is all that is compared; take a larger gamma"
        if min(a.times.sum(), b.times.sum()) < 0.99:
            return f"a layer has {self.i_max} loops or more at some scales, which do not count; take a larger i_max"
        return None


# IMD

_EXACT = 4096
"""Up to so many samples all eigenvalues are computed, in some seconds."""
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
class HeatTraces:
    """Heat-kernel traces of the graph of nearest neighbours."""

    neighbours: int
    probes: int
    seed: int

    def __call__(self, x: Float[Tensor, "n p"]) -> Heat:
        """By all eigenvalues of the graph where it is not too large, and by random probes where it is."""
        z = _centred(x).exact(slice(None))
        n, k = len(z), self.neighbours
        nearest, ties, largest = [], 0, float(z.square().sum(1).max())
        for i in cut(n, max(1, 2**24 // n)):
            squares = _squared(z[i], z)
            squares[torch.arange(len(squares)), torch.arange(i.start, i.stop)] = math.inf
            values, found = squares.topk(k + 1, largest=False)
            ties += int((values[:, k] - values[:, k - 1] <= 1e-12 * largest).sum())
            nearest.append(found[:, :k])
        graph = normalised_adjacency(torch.cat(nearest))
        traces = exact_traces(graph) if n <= _EXACT else estimated_traces(graph, self.probes, self.seed)
        return Heat(traces.cpu(), ties)

    def takes(self, n: int, p: int, itemsize: int) -> tuple[float, float]:  # noqa: ARG002 - all is float64
        """All distances, and the eigenvalues or the products with probes."""
        products = 2.0 * _DEGREE * self.neighbours * n * self.probes
        return 2.0 * n * n * p + (4 / 3 * n**3 if n <= _EXACT else products), _TIMES.nbytes


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

    def samples_needed(self, p: int, q: int) -> int:  # noqa: ARG002 - of any layer
        """Of fewer the graph's heat is mostly that of its few vertices."""
        return 500

    def pair_flop(self, n: int, p: int, q: int) -> float:  # noqa: ARG002 - of vectors of one length
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


# RTD

_APART = 0.25
"""From so much length a sample, by which a spanning tree of X is longer than that of both, `two_view` counts
components on their own. At 500 samples the other road takes 1 to 10 seconds below, and minutes above."""


@dataclass(frozen=True, eq=False)
class Batches:
    """Distances within batches of samples, in units of their 0.9 quantile."""

    distances: Float64[np.ndarray, "trials batch batch"]

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        return self.distances.nbytes


@dataclass(frozen=True)
class DistanceBatches:
    """Distances within random batches of samples: the same samples of every layer."""

    batch: int
    trials: int
    seed: int

    def __call__(self, x: Float[Tensor, "n p"]) -> Batches:
        """Once, of all samples, where there are no more than a batch."""
        _gudhi("rtd", "gudhi")
        centred, n = _centred(x), len(x)
        rng = np.random.default_rng(self.seed)
        draws: Sequence[slice | Tensor] = [slice(None)]
        if n > self.batch:
            where = wide(x.device)
            draws = [torch.from_numpy(rng.permutation(n)[: self.batch]).to(where) for _ in range(self.trials)]
        return Batches(np.stack([self._scaled(_distances(centred.exact(draw))) for draw in draws]))

    @staticmethod
    def _scaled(distances: Square) -> Square:
        unit = np.quantile(distances, 0.9)
        if unit <= _ZERO * distances.max():
            raise UndefinedValueError(
                "nine tenths of the distances between samples are 0, so that there is no unit to measure the others "
                "in: the layer is nearly constant"
            )
        scaled: Square = distances / unit
        scaled[scaled < _ZERO] = 0
        return scaled

    def takes(self, n: int, p: int, itemsize: int) -> tuple[float, float]:  # noqa: ARG002 - all is float64
        """The distances of every batch."""
        trials, batch = (1, n) if n <= self.batch else (self.trials, self.batch)
        return 2.0 * trials * batch**2 * p, 8.0 * trials * batch**2


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
    if components <= _APART * len(a):
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
        persistence = _gudhi("rtd", "gudhi.sklearn.rips_persistence").RipsPersistence(
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

    def samples_needed(self, p: int, q: int) -> int:  # noqa: ARG002 - of any layer
        """A batch: values of smaller ones cannot be compared with it."""
        return self.batch

    def pair_flop(self, n: int, p: int, q: int) -> float:  # noqa: ARG002 - of distances
        """Some ten operations for every triangle of the two views."""
        trials, batch = (1, n) if n <= self.batch else (self.trials, self.batch)
        return 20.0 * trials * (2 * batch) ** 3
