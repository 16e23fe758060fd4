"""Compute permutation null distributions for whole pairs of models.

The largest of many similarities of layers is high by chance alone, so its null distribution must be that of the
maximum. The statistics are the maximum and the mean along the best match (MBM). All layers of one network are permuted
by the same permutation, which keeps the similarities of layers within a network.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64, Int64

from repsim.runtime import tuning
from repsim.runtime.progress import Progress
from repsim.study.design import Design
from repsim.study.gram_passes import Kernels, permuted_values
from repsim.study.indices import CONTROLS, RAW, Indices
from repsim.study.layer_matching import mbm
from repsim.study.partial_cka import MIN_ENERGY, TOLERANCE
from repsim.study.reading import ALPHA

_FEWEST, _MOST = 1000, 20_000
STATISTICS = ("index", "largest")
"""The mean along the best match, and the maximum over pairs of layers."""


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
    orders: Int64[np.ndarray, "count n"],
    *,
    memory: int | None,
    progress: Progress | None = None,
) -> dict[tuple[str, str], Null]:
    """Compute the null distributions of debiased CKA and partial CKA for all pairs of trained models.

    Partial CKA compares residuals w = v - sum_z beta_z v_z, and permuting those of b is linear in permuted kernels:
    <w_a, P w_b P'> = S_ab - beta_a' S_Zb - S_aZ beta_b + beta_a' S_ZZ beta_b, with S = <., P . P'> of layers and
    controls. The null hypothesis is that the residual of b is unrelated to the residual of a.

    With more than 500 samples the layers are cut to the components that carry 99.9 % of their kernels' energy, for
    the statistic as for its permutations: a permutation test is exact for any statistic.

    Parameters
    ----------
    kernels
        Gram matrices of all layers and controls.
    indices
        Indices of the study.
    orders
        (count, n): permutations of the samples.
    memory
        Bytes that may be used.
    progress
        Called with the number of permutations done, and of all.

    Returns
    -------
    dict
        Null distributions by (kind of control, name of the pair).
    """
    design, kinds = indices.design, indices.kernels
    if not design.pairs or not len(orders):
        return {}
    kernels = reduced_kernels(kernels, design)
    models = [kernels.positions[member.name] for member in design.trained]
    controls = np.array(_without_repetition(kernels.positions[kind] for kind in kinds if kind != RAW), int)
    R = kernels.values()
    rows, columns = (np.concatenate([*side, controls]) for side in (models[:-1], models[1:]))
    row_of, column_of = ({k: i for i, k in enumerate(side)} for side in (rows, columns))
    observed: dict[tuple[str, str], Float64[np.ndarray, " two"]] = {}
    permuted: dict[tuple[str, str], list[Float64[np.ndarray, "batch two"]]] = {}
    tested = [
        pair for pair in design.pairs if len(kernels.positions[pair.a.name]) and len(kernels.positions[pair.b.name])
    ]
    for start in range(0, len(orders), tuning.current().permutations_at_once):
        batch = orders[start : start + tuning.current().permutations_at_once]
        values = permuted_values(kernels, rows, columns, batch, memory=memory, progress=None)
        if progress is not None:
            progress(start + len(batch), len(orders))
        for kind in kinds:
            Z = kernels.positions[kind] if kind != RAW else np.zeros(0, int)
            beta, energy = _projection(R, Z)
            for pair in tested:
                a, b = kernels.positions[pair.a.name], kernels.positions[pair.b.name]
                i, j = np.array([row_of[k] for k in a]), np.array([column_of[k] for k in b])
                u, v = np.array([row_of[k] for k in Z], int), np.array([column_of[k] for k in Z], int)
                norms = np.sqrt(energy[a][:, None] * energy[b])
                if start == 0:
                    plain = R[np.ix_(a, b)] - R[np.ix_(a, Z)] @ beta[:, b]
                    observed[kind, pair.name] = statistics(plain / norms)
                S = values[:, i[:, None], j]
                if len(Z):
                    S = S - beta[:, a].T @ values[:, u[:, None], j] - values[:, i[:, None], v] @ beta[:, b]
                    S = S + beta[:, a].T @ values[:, u[:, None], v] @ beta[:, b]
                permuted.setdefault((kind, pair.name), []).append(statistics(S / norms))
    return {key: Null(observed[key], np.concatenate(batches)) for key, batches in permuted.items()}


def reduced_kernels(kernels: Kernels, design: Design) -> Kernels:
    """Return the kernels of trained models and controls, cut to leading components if there are many samples.

    With few samples, or kernels that are reduced already, return the kernels themselves.
    """
    if kernels.n <= tuning.current().exact_samples or kernels.reduced:
        return kernels
    names = [*(member.name for member in design.trained), *CONTROLS]
    return kernels.reduce(_without_repetition(kernels.positions[name] for name in names if name in kernels.positions))


def _without_repetition(positions: Iterable[Int64[np.ndarray, " layers"]]) -> list[int]:
    """Return all positions, each once; the input and the labels are controls alone and together."""
    return list(dict.fromkeys(k for layers in positions for k in layers.tolist()))


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
