"""Topological measures once more: persistence by the textbook's column reduction, graphs by loops."""

from itertools import combinations, pairwise

import numpy as np

from repsim.metrics.base import Array


def distances(x: Array) -> Array:
    """Return Euclidean distances."""
    return np.asarray(np.sqrt(((x[:, None] - x[None]) ** 2).sum(2)))


def h1_bars(values: dict[tuple[int, ...], float]) -> list[tuple[float, float]]:
    """Return the bars of H_1 over Z_2 of a filtered complex of dimension 2 (Edelsbrunner et al. 2002)."""
    order = sorted(values, key=lambda simplex: (values[simplex], len(simplex), simplex))
    place = {simplex: k for k, simplex in enumerate(order)}
    columns: dict[int, int] = {}  # by their lowest entry; a column is the bits of an integer
    births, deaths = set(), {}
    for simplex in order:
        column = sum(1 << place[face] for face in combinations(simplex, len(simplex) - 1) if face)
        while column and column.bit_length() - 1 in columns:
            column ^= columns[column.bit_length() - 1]
        if column:
            columns[column.bit_length() - 1] = column
            deaths[column.bit_length() - 1] = values[simplex]
        elif len(simplex) == 2:
            births.add(place[simplex])
    bars = [(values[order[k]], deaths.get(k, np.inf)) for k in births]
    return [(birth, death) for birth, death in bars if birth < death]


def rips(d: Array) -> dict[tuple[int, ...], float]:
    """Return vertices, edges and triangles of a distance matrix, each with its largest distance."""
    return {
        corners: max((d[i, j] for i, j in combinations(corners, 2)), default=0.0)
        for k in (1, 2, 3)
        for corners in combinations(range(len(d)), k)
    }


def cross_barcode(a: Array, b: Array) -> float:
    """Return the length of the bars of H_1 of the published matrix of blocks 0, a, a', min(a, b)."""
    bars = h1_bars(rips(np.block([[np.zeros_like(a), a.T], [a, np.minimum(a, b)]])))
    return sum(death - birth for birth, death in bars)


def rtd(x: Array, y: Array, batch: int = 500, trials: int = 10, seed: int = 0) -> float:
    """Compute RTD (Barannikov et al. 2022, algorithm 1), averaged over batches."""
    rng = np.random.default_rng(seed)
    values = []
    for _ in range(trials):
        rows = rng.permutation(len(x))[:batch]
        a, b = (d / np.quantile(d, 0.9) for d in (distances(x[rows]), distances(y[rows])))
        values.append((cross_barcode(a, b) + cross_barcode(b, a)) / 2)
    return float(np.mean(values))


def witness_complex(d: Array, highest: float) -> dict[tuple[int, ...], float]:
    """Return the witness complex (De Silva & Carlsson 2004) of distances (samples, landmarks)."""
    values: dict[tuple[int, ...], float] = {}
    landmarks = range(d.shape[1])
    for k in (1, 2, 3):
        for corners in combinations(landmarks, k):
            others = [landmark for landmark in landmarks if landmark not in corners]
            value = min(max(0.0, max(row[list(corners)]) - min(row[others])) for row in d)
            faces = [values.get(face, np.inf) for face in combinations(corners, k - 1) if face]
            value = max([value, *faces])
            if value <= highest:
                values[corners] = value
    return values


def mrlt(x: Array, *, landmarks: int, gamma: float | None, i_max: int, draws: int, seed: int) -> Array:
    """Compute MRLT (Khrulkov & Oseledets 2018, algorithm 1): the share of each number of loops."""
    d = distances(x)
    d = d[np.argsort(d.mean(1))][:, np.argsort(d.mean(1))]
    rng = np.random.default_rng(seed)
    gamma = len(x) / 5000 / 128 if gamma is None else gamma
    times = np.zeros(i_max)
    for _ in range(draws):
        table = d[:, rng.choice(len(x), landmarks)]
        highest = gamma * table.max()
        bars = [(birth, min(death, highest)) for birth, death in h1_bars(witness_complex(table, highest))]
        ends = sorted({0.0, highest, *(end for bar in bars for end in bar)})
        for low, high in pairwise(ends):
            loops = sum(birth <= low and high <= death for birth, death in bars)
            if loops < i_max:
                times[loops] += (high - low) / highest
    return times / draws


def geometry_score(
    x: Array,
    y: Array,
    *,
    landmarks: int = 64,
    gamma: float | None = None,
    i_max: int = 100,
    draws: int = 1000,
    seed: int = 0,
) -> float:
    """Compute the geometry score (algorithm 2)."""
    a, b = (mrlt(layer, landmarks=landmarks, gamma=gamma, i_max=i_max, draws=draws, seed=seed) for layer in (x, y))
    return float(np.sum((a - b) ** 2))


def heat(x: Array, neighbours: int) -> Array:
    """Return tr exp(-t L) / n, where L has the eigenvalues of I - D^-1 A, which is not symmetric."""
    d = distances(x)
    n = len(d)
    A = np.zeros((n, n))
    for i in range(n):
        for j in sorted(range(n), key=lambda j: d[i, j])[1 : neighbours + 1]:
            A[i, j] = A[j, i] = 1
    eigenvalues = np.linalg.eigvals(np.eye(n) - A / A.sum(1, keepdims=True)).real
    return np.asarray([np.exp(-t * eigenvalues).mean() for t in 10 ** np.linspace(-1, 1, 256)])


def imd(x: Array, y: Array, neighbours: int = 5, probes: int = 256, seed: int = 0) -> float:
    """Compute IMD (Tsitsulin et al. 2020, eq. 5) in the unit and normalisation of the published code."""
    t = 10 ** np.linspace(-1, 1, 256)
    return float(1e6 * np.max(np.exp(-2 * (t + 1 / t)) * np.abs(heat(x, neighbours) - heat(y, neighbours))))
