"""Estimate all indices of a study from its kernels: from halves of the samples, from all, and without each."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import chain

import numpy as np
from jaxtyping import Float64

from repsim.runtime import tuning
from repsim.runtime.progress import Steps, counter
from repsim.study.design import Design
from repsim.study.gram_passes import Kernels, Matrices
from repsim.study.indices import Indices, cross_fitted, matches_on, mean_over_splits

_LEAVE_ONE_OUT_MEMORY = 2**29
"""Bytes of leave-one-out values in memory at once."""
_SPLIT_SAMPLES = 20_000
"""Number of samples of all splits together: with many samples, fewer splits are as precise."""


@dataclass(frozen=True, eq=False)
class Estimates:
    """All indices of a study, and the values from which their intervals follow."""

    matrices: Matrices
    """Debiased CKA of all layers and controls and, with classes, similarities within classes."""
    indices: Indices
    """Indices along the mean maps of layers from halves of the samples, and along the best matches on all samples."""
    theta: Float64[np.ndarray, " T"]
    """All indices: matches come from one half of the samples and similarities from the other, mean over splits, minus
    the jackknife's estimate of the bias that a ratio has in half of the samples. Plain indices ("best") and energies
    that are left come from all samples."""
    theta_of_all: Float64[np.ndarray, " T"]
    """All indices along the same maps, from all samples."""
    splits: Float64[np.ndarray, "splits T"]
    """All indices from each split of the samples; the number of splits is finite, so their mean varies at random."""
    left_out: Float64[np.ndarray, "units T"]
    """All indices, computed without each sample or group of samples."""
    errors: dict[str, Float64[np.ndarray, "layers layers"]]
    """Standard errors of the similarities of layers, by the kind of control that is projected out."""
    null_variances: tuple[float, ...]
    """Variance of the similarity of unrelated layers in each of the matrices; NaN if it is not known."""
    cubes: Float64[np.ndarray, " L"] | None
    """Sums of cubes of the Gram matrices, from which third moments follow; None if samples are in groups."""


def estimate(design: Design, kernels: Kernels, *, seed: int, steps: Steps) -> Estimates:
    """Estimate all indices of a study.

    Parameters
    ----------
    design
        The models of the study.
    kernels
        Kernels of all layers and controls.
    seed
        Seed of the random halves of the samples.
    steps
        Called with the name of each step of the work.
    """
    sweep = kernels.leave_one_out(_LEAVE_ONE_OUT_MEMORY)
    runs = sweep.runs(counter(sweep.units, steps("leaving out each sample")))
    first = next(runs)
    matrices = sweep.full_values
    along_maps = partial(Indices, design, kernels.positions, len(kernels.names), classes=kernels.classes is not None)
    splits = max(2, min(tuning.current().halvings, _SPLIT_SAMPLES // kernels.n))
    step = counter(splits, steps("splitting samples"))
    cross, maps = cross_fitted(along_maps, halves(kernels, splits, seed, step))
    indices = along_maps(maps, matches_on(along_maps({}), matrices))
    of_all = indices.evaluate(matrices)
    by_split = np.tile(of_all, (len(cross), 1))
    for column, key in enumerate(along_maps(maps).names):
        if key[0] != "left":  # no match is involved
            by_split[:, indices.column_of[key]] = cross[:, column]
    left_out, errors = indices.without_each(matrices, chain([first], runs))
    with np.errstate(invalid="ignore"):
        bias = (len(left_out) - 1) * (left_out.mean(0) - of_all)  # of a ratio; twice as large from half of the samples
    of_halves = np.array([key[0] not in {"best", "left"} for key in indices.names])
    by_split -= 2 * np.where(of_halves & np.isfinite(bias), bias, 0)
    theta = mean_over_splits(by_split)
    null_variances = kernels.null_variances(indices.layers.tolist(), seed)
    return Estimates(matrices, indices, theta, of_all, by_split, left_out, errors, null_variances, sweep.cubes)


def halves(kernels: Kernels, splits: int, seed: int, step: Callable[[], None]) -> Iterator[tuple[Matrices, Matrices]]:
    """Yield the matrices of all layers and controls on both halves of the samples, for each of several splits."""
    everything = np.arange(len(kernels.names))
    for first, second in kernels.halves(splits, seed):
        yield kernels.values_on(first, everything), kernels.values_on(second, everything)
        step()
