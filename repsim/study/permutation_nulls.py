"""Chance for a whole comparison: all layers of a network permuted alike, and what the largest values are then.

The best of many pairs of layers is high by chance alone. So its own chance is asked for: how large is the maximum, or
the mean along the best match (MBM), when the samples of one network are permuted, with one permutation for all of its
layers? That keeps what layers of one network have in common.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64, Int64

from repsim.runtime import tuning
from repsim.runtime.progress import Progress
from repsim.study.design import Design
from repsim.study.gram_passes import Kernels, permuted_values
from repsim.study.indices import CONTROLS, RAW, Indices
from repsim.study.layer_matching import mbm
from repsim.study.partial_cka import NOTHING, TOLERANCE

STATISTICS = ("index", "largest")
"""The mean along the best match, and the maximum over pairs of layers."""


@dataclass(frozen=True, eq=False)
class Null:
    """Two statistics of one pair of models, and what they are when samples are permuted."""

    observed: Float64[np.ndarray, " two"]
    permuted: Float64[np.ndarray, "count two"]


def statistics(S: Float64[np.ndarray, "*batch a b"]) -> Float64[np.ndarray, "*batch two"]:
    """MBM and the maximum of a matrix of layers by layers, or of each of many."""
    largest = np.where(np.isnan(S), -np.inf, S).max((-1, -2))
    return np.stack([mbm(S), np.where(np.isinf(largest), np.nan, largest)], -1)


def of_cka(
    kernels: Kernels,
    indices: Indices,
    orders: Int64[np.ndarray, "count n"],
    *,
    memory: int | None,
    progress: Progress | None = None,
) -> dict[tuple[str, str], Null]:
    """(given, pair) -> what permutations make of it, for all pairs of trained models.

    Partial similarity is that of residuals w = v - sum_z beta_z v_z, and permuting those of b is linear in permuted
    kernels: <w_a, P w_b P'> = S_ab - beta_a' S_Zb - S_aZ beta_b + beta_a' S_ZZ beta_b, with S = <., P . P'> of layers
    and controls. The null hypothesis is that what is left of b is in no relation to what is left of a.

    With more than 500 samples the layers are cut to the components that carry 99.9 % of their kernels' energy, for
    the statistic as for its permutations: a test is exact for any statistic.
    """
    design, given = indices.design, indices.kernels
    if not design.pairs:
        return {}
    kernels = shortened(kernels, design)
    models = [kernels.of[member.name] for member in design.trained]
    controls = np.concatenate([kernels.of[kind] for kind in given if kind != RAW] or [np.zeros(0, int)])
    R = kernels.values()
    rows, columns = (np.concatenate([*some, controls]) for some in (models[:-1], models[1:]))
    row_at, column_at = ({k: i for i, k in enumerate(side)} for side in (rows, columns))
    observed: dict[tuple[str, str], Float64[np.ndarray, " two"]] = {}
    found: dict[tuple[str, str], list[Float64[np.ndarray, "some two"]]] = {}
    tested = [pair for pair in design.pairs if len(kernels.of[pair.a.name]) and len(kernels.of[pair.b.name])]
    for start in range(0, len(orders), tuning.current().permutations_at_once):
        some = orders[start : start + tuning.current().permutations_at_once]
        values = permuted_values(kernels, rows, columns, some, memory=memory, progress=None)
        if progress is not None:
            progress(start + len(some), len(orders))
        for kind in given:
            Z = kernels.of[kind] if kind != RAW else np.zeros(0, int)
            beta, energy = _projection(R, Z)
            for pair in tested:
                a, b = kernels.of[pair.a.name], kernels.of[pair.b.name]
                i, j = np.array([row_at[k] for k in a]), np.array([column_at[k] for k in b])
                u, v = np.array([row_at[k] for k in Z], int), np.array([column_at[k] for k in Z], int)
                norms = np.sqrt(energy[a][:, None] * energy[b])
                if start == 0:
                    plain = R[np.ix_(a, b)] - R[np.ix_(a, Z)] @ beta[:, b]
                    observed[kind, pair.name] = statistics(plain / norms)
                S = values[:, i[:, None], j]
                if len(Z):
                    S = S - beta[:, a].T @ values[:, u[:, None], j] - values[:, i[:, None], v] @ beta[:, b]
                    S = S + beta[:, a].T @ values[:, u[:, None], v] @ beta[:, b]
                found.setdefault((kind, pair.name), []).append(statistics(S / norms))
    return {key: Null(observed[key], np.concatenate(parts)) for key, parts in found.items()}


def shortened(kernels: Kernels, design: Design) -> Kernels:
    """The layers of trained models and the controls; of many samples in a few directions that all of them share."""
    names = [*(member.name for member in design.trained), *CONTROLS]
    wanted = np.concatenate([kernels.of[name] for name in names if name in kernels.of])
    return kernels.cut(wanted.tolist()) if kernels.n > tuning.current().exact_samples and not kernels.short else kernels


def of_values(observed: Float64[np.ndarray, "a b"], permuted: Float64[np.ndarray, "count a b"]) -> Null:
    """Of a measure that was permuted pair by pair."""
    return Null(statistics(observed), statistics(permuted))


def _projection(
    R: Float64[np.ndarray, "L L"], Z: Int64[np.ndarray, " Z"]
) -> tuple[Float64[np.ndarray, "Z L"], Float64[np.ndarray, " L"]]:
    """How much of each control is in each kernel, and the energy that is left; NaN where nothing is."""
    if not len(Z):
        return np.zeros((0, len(R))), np.ones(len(R))
    beta = np.linalg.pinv(R[np.ix_(Z, Z)], rcond=TOLERANCE, hermitian=True) @ R[Z]
    energy = 1 - (R[:, Z] * beta.T).sum(1)
    return beta, np.where(energy > NOTHING, energy, np.nan)
