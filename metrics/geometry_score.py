"""Geometry score: the number of loops in a cloud of samples, over a range of scales."""

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
from repsim.metrics.topology import Bars, TopologyMetric, centred_samples, distances_within, load_gudhi
from repsim.runtime.progress import report_share


@dataclass(frozen=True, eq=False)
class Loops:
    """Mean relative living times (MRLT): the share of the range of scales in which there are i loops."""

    times: Float64[Tensor, " i_max"]

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        return self.times.nbytes


@dataclass(frozen=True)
class LoopCounts(InMemoryRecipe[Loops]):
    """Recipe of `Loops`: mean relative living times in witness complexes on random landmarks."""

    landmarks: int
    gamma: float | None
    i_max: int
    draws: int
    seed: int

    def __call__(self, x: Float[Tensor, "n p"]) -> Loops:
        """Average the living times over draws of landmarks.

        Landmarks are drawn from the samples sorted by their mean distance to all others. So the order of the samples
        changes the draw only among samples with equal mean distances.
        """
        load_gudhi("geometry_score", "gudhi")
        z = centred_samples(x).exact(slice(None))
        distances = distances_within(z)
        far = distances.sum(1)
        order = np.argsort((far / far.max()).round(9), kind="stable")  # rounding errors must not change the order
        n = len(order)
        gamma = n / 5000 / 128 if self.gamma is None else self.gamma
        rng = np.random.default_rng(self.seed)
        times = np.zeros(self.i_max)
        for draw in range(self.draws):
            report_share(draw, self.draws)
            to_landmarks = distances[order[rng.choice(n, self.landmarks)]].T
            highest = gamma * to_landmarks.max()
            times += living_times(witness_bars(to_landmarks, highest), highest, self.i_max)
        return Loops(torch.from_numpy(times / self.draws))

    @override
    def cost(self, layer: LayerSize) -> Cost:
        """Return the cost of all distances, and of sorting them for every draw."""
        distances, sorting = 2.0 * layer.n * layer.n * layer.p, 200.0 * self.draws * layer.n * self.landmarks
        return Cost.of_products(distances + sorting, layer.itemsize)

    @override
    def memory(self, layer: LayerSize) -> Memory:
        """Return the memory of the living times."""
        return Memory(8 * self.i_max)


def witness_bars(distances: Float64[np.ndarray, "n landmarks"], highest: float) -> Bars:
    """Return the births and deaths of the loops of a witness complex whose relaxation grows to ``highest``."""
    witnesses = load_gudhi("geometry_score", "gudhi").WitnessComplex(nearest_landmarks(distances, highest))
    tree = witnesses.create_simplex_tree(max_alpha_square=highest, limit_dimension=2)
    tree.compute_persistence(homology_coeff_field=2, persistence_dim_max=True)  # loops, even without triangles
    bars: Bars = tree.persistence_intervals_in_dimension(1).reshape(-1, 2)
    return bars


def nearest_landmarks(distances: Float64[np.ndarray, "n landmarks"], slack: float) -> list[list[tuple[int, float]]]:
    """Return the landmarks of every sample by distance, without those that cannot be a corner of a triangle.

    A sample w witnesses a simplex s at max_{l in s} d(w, l) - min_{l not in s} d(w, l), or at 0 if that is negative.
    Unless a triangle consists of the three nearest landmarks, the nearest landmark outside it is at most at the
    distance of the third one, so its corners are at most ``slack`` farther than the third one. Leaving out the other
    landmarks changes no result, and saves most of the time.

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
    """Return the share of [0, highest] in which there are exactly i loops, for i below ``i_max``.

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
    """Geometry Score: difference in the number of loops of two clouds of samples, over a range of scales.

    The relaxation of a witness complex on random landmarks grows from 0 to a = gamma max d(sample, landmark). The
    relative living time RLT(i) is the share of [0, a] in which there are exactly i loops (the rank of H_1 over Z_2).
    MRLT is its mean over draws of landmarks, and the value is sum_{i < i_max} (MRLT_X(i) - MRLT_Y(i))^2. Range [0, 2].
    The two clouds need not contain the same samples.

    Parameters
    ----------
    landmarks : int
        Number of landmarks per draw; drawn with replacement, as in the published code.
    gamma : float, optional
        Largest relaxation, relative to the largest distance. By default n / 5000 / 128, as in the published code.
    i_max : int
        Numbers of loops from ``i_max`` on are ignored.
    draws : int
        Number of draws of landmarks to average over.
    seed : int
        Seed of the draws.

    Notes
    -----
    Two estimates of the same layer with different seeds differ by about the sum of the variances of MRLT, about
    2 / ``draws``; smaller values are not meaningful. As in the published code, distances are not squared. A layer of
    1,000 samples takes about 6 seconds with 1,000 draws, in proportion to samples and draws; a pair takes microseconds.

    References
    ----------
    Khrulkov, Oseledets. Geometry Score: a method for comparing generative adversarial networks. ICML 2018.
    De Silva, Carlsson. Topological estimation using witness complexes. 2004.

    Examples
    --------
    A circle has one loop, which most draws detect with enough slack; a line has none.

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
    needs: ClassVar[str] = "1,000 or more (the default range of scales shrinks with n), and memory for n x n distances"
    others: ClassVar[Mapping[str, str]] = {
        "gs (published), ReSi": "the same except for two differences: their draws are not seeded and depend on the "
        "order of samples, and they miss the loops of a complex without any triangle",
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
        """Range of the value: [0, 2], because living times sum to 1 at most."""
        return 0.0, 2.0

    @property
    def min_samples(self) -> int:
        """Number of landmarks."""
        return self.landmarks

    @property
    def recipe(self) -> LoopCounts:
        """Recipe that does all the work; a pair compares two short vectors."""
        return LoopCounts(self.landmarks, self.gamma, self.i_max, self.draws, self.seed)

    def value(self, a: Loops, b: Loops) -> Tensor:
        """Return the squared distance between the living times."""
        return (a.times - b.times).square().sum()

    @override
    def samples_needed(self, p: int, q: int) -> int:
        """Return 1,000, for which the default range of scales is meant."""
        return 1000

    @override
    def pair_cost(self, n: int, p: int, q: int) -> Cost:
        """Return the cost of a difference of two vectors."""
        return Cost(calls=10)

    def caution(self, a: Loops, b: Loops) -> str | None:
        """Warn of layers without any loop, which are all alike, and of too many loops to count."""
        if min(a.times[0], b.times[0]) > 1 - 1e-9:
            return "no draw of landmarks has a loop in either layer, so there is nothing to compare; increase gamma"
        if min(a.times.sum(), b.times.sum()) < 0.99:
            return f"a layer has {self.i_max} loops or more at some scales, which are ignored; increase i_max"
        return None
