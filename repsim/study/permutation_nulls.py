"""Compute permutation null distributions for whole pairs of models.

The largest of many similarities of layers is high by chance alone, so its null distribution must be that of the
maximum. The statistics are the maximum and the mean along the best match (MBM). All layers of one network are permuted
by the same permutation, which keeps the similarities of layers within a network.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64, Int64

from repsim.runtime import tuning
from repsim.runtime.progress import Progress, counter
from repsim.study.design import Design, Pair
from repsim.study.gram_passes import Kernels, permuted_values
from repsim.study.indices import RAW, Indices
from repsim.study.layer_matching import mbm
from repsim.study.partial_cka import MIN_ENERGY, TOLERANCE
from repsim.study.reading import ALPHA

_FEWEST, _MOST = 1000, 20_000
_FEWEST_SAMPLES, _FEWEST_UNITS = 100, 8
"""Smallest random part of the samples, in samples and in groups of samples."""
STATISTICS = ("index", "largest")
"""The mean along the best match, and the maximum over pairs of layers."""


_KINDS = (RAW, "input")
"""Kinds of debiased CKA that are permuted; what is left within classes is not."""

Draw = Callable[[Kernels, Int64[np.ndarray, " part"]], Int64[np.ndarray, "count part"]]
"""Function that draws permutations of some of the samples, given their kernels and positions; none if there are too
few rearrangements."""


@dataclass(frozen=True, eq=False)
class Null:
    """Observed and permuted values of the two statistics of a pair of models."""

    observed: Float64[np.ndarray, " two"]
    permuted: Float64[np.ndarray, "count two"]


def permutations_for(tests: int) -> int:
    """Return how many permutations are computed by default: 1,000, or as many as Holm's correction needs, up to 20,000.

    The smallest p-value is 1 / (K + 1), and Holm's method multiplies it by the number of tests.

    >>> permutations_for(6), permutations_for(55), permutations_for(4950)
    (1000, 1099, 20000)
    """
    return min(_MOST, max(_FEWEST, math.ceil(tests / ALPHA) - 1))


def statistics(S: Float64[np.ndarray, "*batch a b"]) -> Float64[np.ndarray, "*batch two"]:
    """Compute MBM and the maximum of a matrix of similarities of layers, or of each matrix of a batch.

    Returns
    -------
    array
        (..., 2): MBM and maximum; NaN where all similarities are.
    """
    largest = np.where(np.isnan(S), -np.inf, S).max((-1, -2))
    return np.stack([mbm(S), np.where(np.isinf(largest), np.nan, largest)], -1)


def cka_nulls(
    kernels: Kernels,
    indices: Indices,
    draw: Draw,
    *,
    memory: int | None,
    progress: Progress | None = None,
) -> dict[tuple[str, str], Null]:
    """Compute the null distributions of debiased CKA and partial CKA for all pairs of trained models.

    Partial CKA compares residual kernels w = v - sum_z beta_z v_z, and the samples of those of b are permuted. The null
    hypothesis is that the residual of b is unrelated to the residual of a.

    With more than 500 samples, layers are cut to the components that carry 99.9 % of their kernels' energy. Residual
    kernels, which no few components carry, are those of a random part of the samples: of at most 300, and of fewer if
    the models have many layers. A permutation test is exact for any statistic, and the observed value is the same one.

    Parameters
    ----------
    kernels
        Gram matrices of all layers and controls.
    indices
        Indices of the study.
    draw
        Draws permutations; they exchange samples of one class only, if the null hypothesis is about classes.
    memory
        Bytes that may be used.
    progress
        Called with the number of permutations done, and of all.

    Returns
    -------
    dict
        Null distributions by (kind of control, name of the pair).
    """
    pairs = [
        pair
        for pair in indices.design.pairs
        if len(kernels.positions[pair.a.name]) and len(kernels.positions[pair.b.name])
    ]
    orders = draw(kernels, np.arange(kernels.n))
    if not pairs or not len(orders):
        return {}
    kinds = [kind for kind in indices.kernels if kind in _KINDS]
    step = counter(len(orders) * len(kinds), progress)
    nulls = _plain_nulls(kernels, indices.design, pairs, orders, memory=memory, step=step)
    if kinds[1:]:
        part, samples = _random_part(kernels, indices, len(orders))
        orders = orders if len(samples) == kernels.n else draw(part, samples)
        if len(orders):
            units = part.unit_kernels().reshape(len(part.names), -1)
            nulls |= _partial_nulls(part, pairs, units, orders, step=step)
    return nulls


def _plain_nulls(
    kernels: Kernels,
    design: Design,
    pairs: Sequence[Pair],
    orders: Int64[np.ndarray, "count n"],
    *,
    memory: int | None,
    step: Callable[[], None],
) -> dict[tuple[str, str], Null]:
    """Compute the null distributions of debiased CKA."""
    kernels = reduced_kernels(kernels, design)
    models = [kernels.positions[member.name] for member in design.trained]
    rows, columns = np.concatenate(models[:-1]), np.concatenate(models[1:])
    row_of, column_of = ({k: i for i, k in enumerate(side)} for side in (rows, columns))
    places = {
        pair.name: np.ix_(
            [row_of[k] for k in kernels.positions[pair.a.name]],
            [column_of[k] for k in kernels.positions[pair.b.name]],
        )
        for pair in pairs
    }
    R = kernels.cka()[np.ix_(rows, columns)]
    permuted: dict[str, list[Float64[np.ndarray, "batch two"]]] = {pair.name: [] for pair in pairs}
    for start in range(0, len(orders), tuning.current().permutations_at_once):
        batch = orders[start : start + tuning.current().permutations_at_once]
        values = permuted_values(kernels, rows, columns, batch, memory=memory, progress=None)
        for name, (i, j) in places.items():
            permuted[name].append(statistics(values[:, i, j]))
        for _ in batch:
            step()
    return {(RAW, name): Null(statistics(R[place]), np.concatenate(permuted[name])) for name, place in places.items()}


def _random_part(kernels: Kernels, indices: Indices, count: int) -> tuple[Kernels, Int64[np.ndarray, " part"]]:
    """Return trained models and controls on a random part of the samples, small enough for ``count`` permutations."""
    names = [*(member.name for member in indices.design.trained), "input"]
    selected = list(
        dict.fromkeys(k for name in names if name in kernels.positions for k in kernels.positions[name].tolist())
    )
    layers = sum(len(kernels.positions[member.name]) for member in indices.design.trained)
    allowed = math.isqrt(round(tuning.current().permuted_products / (count * layers**2)))
    most = max(_FEWEST_SAMPLES, min(tuning.current().residual_samples, allowed))
    samples = np.arange(kernels.n)
    if kernels.n > most:
        unit_of = kernels.unit_of
        order = np.random.default_rng(0).permutation(kernels.units)
        sizes = np.bincount(unit_of)[order].cumsum()
        samples = np.flatnonzero(np.isin(unit_of, order[: max(_FEWEST_UNITS, int((sizes <= most).sum()))]))
    return kernels.part(samples, selected), samples


def _partial_nulls(
    kernels: Kernels,
    pairs: Sequence[Pair],
    units: Float64[np.ndarray, "L nn"],
    orders: Int64[np.ndarray, "count n"],
    *,
    step: Callable[[], None],
) -> dict[tuple[str, str], Null]:
    """Compute the null distributions of partial CKA from residuals of the unit kernels, which are permuted."""
    models = list(dict.fromkeys(member.name for pair in pairs for member in (pair.a, pair.b)))
    Z, n = kernels.positions["input"], kernels.n
    if not len(Z):
        return {}
    R = units @ units.T
    beta, energy = _projection(R, Z)
    layers = np.concatenate([kernels.positions[name] for name in models])
    residuals = (units[layers] - beta[:, layers].T @ units[Z]) / np.sqrt(energy[layers])[:, None]
    place = {k: i for i, k in enumerate(layers.tolist())}
    positions = {name: np.array([place[k] for k in kernels.positions[name].tolist()], int) for name in models}
    i, j = np.triu_indices(n, 1)  # the diagonal is 0, and the matrices are symmetric
    left = np.ascontiguousarray(np.float32(residuals[:, i * n + j]))
    right = np.ascontiguousarray(np.float32(residuals.T))  # the layers of an entry lie side by side
    tables = [2 * (left @ right[i * n + j]).astype(np.float64)]
    for order in orders:
        tables.append(2 * (left @ right[order[i] * n + order[j]]).astype(np.float64))
        step()
    values = np.stack(tables)
    nulls = {}
    for pair in pairs:
        a, b = positions[pair.a.name], positions[pair.b.name]
        if len(a) and len(b):
            both = statistics(values[:, a[:, None], b])
            nulls["input", pair.name] = Null(both[0], both[1:])
    return nulls


def reduced_kernels(kernels: Kernels, design: Design) -> Kernels:
    """Return the kernels of trained models, cut to leading components if there are many samples.

    With few samples, or kernels that are reduced already, return the kernels themselves.
    """
    if kernels.n <= tuning.current().exact_samples or kernels.reduced:
        return kernels
    return kernels.reduce(np.concatenate([kernels.positions[member.name] for member in design.trained]).tolist())


def null_of_values(observed: Float64[np.ndarray, "a b"], permuted: Float64[np.ndarray, "count a b"]) -> Null:
    """Return the null distribution of a measure from its values and permuted values for one pair of models."""
    return Null(statistics(observed), statistics(permuted))


def _projection(
    R: Float64[np.ndarray, "L L"], Z: Int64[np.ndarray, " Z"]
) -> tuple[Float64[np.ndarray, "Z L"], Float64[np.ndarray, " L"]]:
    """Return the coefficients (Z, L) of the controls in each kernel, and the energy left; NaN where none is left."""
    if not len(Z):
        return np.zeros((0, len(R))), np.ones(len(R))
    beta = np.linalg.pinv(R[np.ix_(Z, Z)], rcond=TOLERANCE, hermitian=True) @ R[Z]
    energy = 1 - (R[:, Z] * beta.T).sum(1)
    return beta, np.where(energy > MIN_ENERGY, energy, np.nan)
