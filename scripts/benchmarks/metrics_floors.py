"""Floor of every measure: the work that its formula needs, at the rates of this machine.

Products, decompositions, assignments, sorting and reading that the value rests on are counted once per layer or once
per pair, whichever is fewer; everything else is free. The rates are measured here, on matrices of the same sizes, by as
many threads as the benchmark uses, each with its own matrix, which is the fastest way on several cores.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from itertools import product
from typing import Any

import torch
from machine_rates import timed

NEIGHBOURS = 10
"""Neighbours of a sample, the default of all measures that use them."""


@dataclass
class Work:
    """Work that a formula needs."""

    flop32: float = 0
    """Operations of products in float32."""
    flop64: float = 0
    """Operations of products in float64."""
    read: float = 0
    """Bytes that are read from memory."""
    sorted: float = 0
    """Values that are sorted, in vectors of many."""
    sized: Counter[tuple[str, int, int]] = field(default_factory=Counter)
    """Numbers of decompositions and assignments, by kind and shape."""

    def __add__(self, other: "Work") -> "Work":
        return Work(
            self.flop32 + other.flop32, self.flop64 + other.flop64, self.read + other.read, self.sorted + other.sorted,
            self.sized + other.sized,
        )  # fmt: skip


def needs(kind: str, m: int, k: int, **others: float) -> Work:
    return Work(sized=Counter({(kind, m, k): 1}), **others)


# --- one layer


def features(n: int, p: int) -> Work:
    return Work(read=4.0 * n * p)


def gram(n: int, p: int) -> Work:
    return Work(flop32=1.0 * n * n * p, read=4.0 * n * p)


def gram_in_float64(n: int, p: int) -> Work:
    return Work(flop64=1.0 * n * n * p, read=4.0 * n * p)


def ranks(n: int, p: int) -> Work:
    return gram_in_float64(n, p) + Work(sorted=n * (n - 1) / 2)


def subspace(n: int, p: int) -> Work:
    """Return the work of X'X or XX', its eigenvectors, and the basis."""
    m = min(n, p)
    return needs("eigh", m, m, flop64=1.0 * n * p * m + (2.0 * n * p * m if p <= n else 0.0))


def sample_space(n: int, p: int) -> Work:
    return Work(flop64=2.0 * n * n * p if p > n else 0.0, read=4.0 * n * p)


# --- one pair


def nothing(n: int, p: int, q: int) -> Work:  # noqa: ARG001
    return Work()


def entries(n: int, p: int, q: int) -> Work:  # noqa: ARG001
    return Work(flop32=1.0 * n * n)


def moments(n: int, p: int, q: int) -> Work:
    return Work(flop32=2.0 * n * p * q)


def of_ranks(n: int, p: int, q: int) -> tuple[int, int]:
    """Return the ranks of two centred layers, the smaller one first."""
    low, high = sorted((min(n - 1, p), min(n - 1, q)))
    return low, high


def bases(n: int, p: int, q: int) -> Work:
    return moments(n, *of_ranks(n, p, q))


def singular_values(n: int, p: int, q: int) -> Work:
    """Return the work of C = Q'P, half of CC', and its eigenvalues."""
    low, high = of_ranks(n, p, q)
    return bases(n, p, q) + needs("eigvalsh", low, low, flop64=1.0 * low * low * high)


def correlations(n: int, p: int, q: int) -> Work:
    """Return the same, but for layers of which one spans all samples: the correlations are 1."""
    return Work() if of_ranks(n, p, q)[1] == n - 1 else singular_values(n, p, q)


def weighted_correlations(n: int, p: int, q: int) -> Work:
    low, high = of_ranks(n, p, q)
    if high == n - 1:
        return Work()
    return bases(n, p, q) + needs("eigh", low, low, flop64=1.0 * low * low * high + 2.0 * low * low * min(p, q))


def assignment(n: int, p: int, q: int) -> Work:
    return needs("assignment", *sorted((p, q)), flop32=2.0 * n * p * q)


def assignment_in_float64(n: int, p: int, q: int) -> Work:
    return needs("assignment", *sorted((p, q)), flop64=2.0 * n * p * q)


def rotation(n: int, p: int, q: int) -> Work:
    """Return the work of X'Y, its singular vectors, and the rotation of X."""
    m, k = sorted((min(n, p), min(n, q)))
    return needs("svd", m, k, flop64=4.0 * n * m * k)


def neighbours(n: int, p: int, q: int) -> Work:  # noqa: ARG001
    return Work(read=8.0 * n * NEIGHBOURS)


def distances_to_neighbours(n: int, p: int, q: int) -> Work:
    return Work(read=4.0 * n * NEIGHBOURS * (p + q))


def spectral_norm(n: int, p: int, q: int) -> Work:  # noqa: ARG001
    return Work(read=40 * 8.0 * n * n)


Layer = Callable[[int, int], Work]
Pair = Callable[[int, int, int], Work]
FORMULAS: dict[str, tuple[Layer, Pair]] = {
    "aligned_cosine": (sample_space, rotation),
    "permutation_procrustes": (features, assignment_in_float64),
    "pwcca": (subspace, weighted_correlations),
    "hard_correlation": (features, assignment),
    "soft_matching": (features, assignment),
    "semi_correlation": (features, moments),
    "rsa": (ranks, entries),
    "rsm_difference": (gram_in_float64, spectral_norm),
    "second_order_cosine": (gram, distances_to_neighbours),
    **dict.fromkeys(("nuclear", "angular_shape", "procrustes", "procrustes_size"), (subspace, singular_values)),
    **dict.fromkeys(("cca", "svcca"), (subspace, correlations)),
    **dict.fromkeys(("gulp", "linear_regression", "eigenspace_overlap"), (subspace, bases)),
    **dict.fromkeys(("cka", "cka_units", "distance_correlation"), (gram, entries)),
    **dict.fromkeys(("mutual_knn", "jaccard_knn", "cycle_knn", "cknna", "rank_similarity"), (gram, neighbours)),
    **dict.fromkeys(("magnitude_difference", "concentricity_difference"), (features, nothing)),
    "uniformity_difference": (gram, nothing),
}
"""Work of one layer and of one pair. An assignment stands for a transport plan, whose floor is not known."""


class Rates:
    """Rates of this machine with a number of threads, measured when they are first needed."""

    def __init__(self, threads: int) -> None:
        self.threads = threads
        self._seconds: dict[tuple[str, int, int], float] = {}

    def seconds(self, work: Work) -> float:
        """Return the time of the work."""
        products = sum(
            flop * self.of("gemm", 2048, bits) / (2.0 * 2048**3)
            for flop, bits in ((work.flop32, 32), (work.flop64, 64)) if flop
        )  # fmt: skip
        size = 2**25
        reading = work.read * self.of("read", size, 1) / (4 * size) if work.read else 0.0
        sorting = work.sorted * self.of("sort", 2**19, 1) / 2**19 if work.sorted else 0.0
        return products + reading + sorting + sum(times * self.of(*which) for which, times in work.sized.items())

    def of(self, kind: str, m: int, k: int) -> float:
        """Return the seconds of one piece of work, if every thread does one: the smallest of a few turns."""
        which = kind, m, k
        if which not in self._seconds:
            job = JOBS[kind](m, k)
            with ThreadPoolExecutor(self.threads, initializer=partial(torch.set_num_threads, 1)) as pool:
                spent = 0.0
                turns: list[float] = []
                while len(turns) < 2 or (spent < 0.3 and len(turns) < 6):
                    _, time = timed(lambda: list(pool.map(lambda _: job(), range(self.threads))))
                    turns.append(time["seconds"] / self.threads)
                    spent += time["seconds"]
            torch.set_num_threads(self.threads)
            self._seconds[which] = min(turns)
        return self._seconds[which]


def gemm_job(m: int, bits: int) -> Callable[[], Any]:
    x = torch.randn(m, m, dtype=torch.float32 if bits == 32 else torch.float64)
    return lambda: x @ x


def symmetric(m: int) -> torch.Tensor:
    x = torch.randn(m, m, dtype=torch.float64)
    return x @ x.T


def eigenvalue_job(m: int, _: int) -> Callable[[], Any]:
    x = symmetric(m)
    return lambda: torch.linalg.eigvalsh(x)


def eigenvector_job(m: int, _: int) -> Callable[[], Any]:
    x = symmetric(m)
    return lambda: torch.linalg.eigh(x)


def svd_job(m: int, k: int) -> Callable[[], Any]:
    x = torch.randn(m, k, dtype=torch.float64)
    return lambda: torch.linalg.svd(x, full_matrices=False)


def assignment_job(p: int, q: int) -> Callable[[], Any]:
    """Return an assignment between units that share some signals, like those of two layers."""
    from scipy.optimize import linear_sum_assignment  # noqa: PLC0415

    signals = torch.randn(500, 50)
    sides = [signals @ torch.randn(50, width) + 5 * torch.randn(500, width) for width in (p, q)]
    x, y = ((side - side.mean(0)) / side.std(0) for side in sides)
    costs = (-(x.T @ y) / 500).double().numpy()
    return lambda: linear_sum_assignment(costs)


def reading_job(size: int, _: int) -> Callable[[], Any]:
    x = torch.randn(size)
    return x.sum


def sorting_job(size: int, _: int) -> Callable[[], Any]:
    x = torch.randint(2**30, (size,), dtype=torch.int32)
    return lambda: torch.sort(x)


JOBS: dict[str, Callable[[int, int], Callable[[], Any]]] = {
    "gemm": gemm_job, "eigvalsh": eigenvalue_job, "eigh": eigenvector_job, "svd": svd_job,
    "assignment": assignment_job, "read": reading_job, "sort": sorting_job,
}  # fmt: skip


def floors(names: Sequence[str], n: int, left: Sequence[int], right: Sequence[int], threads: int) -> dict[str, float]:
    """Return the seconds of every measure for layers of these widths, all layers and all pairs."""
    rates = Rates(threads)
    seconds = {}
    for name in names:
        layer, pair = FORMULAS[name]
        work = sum((layer(n, p) for p in (*left, *right)), Work())
        seconds[name] = rates.seconds(sum((pair(n, p, q) for p, q in product(left, right)), work))
    return seconds
