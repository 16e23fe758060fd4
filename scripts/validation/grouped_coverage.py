"""Simulate samples in groups: coverage of the jackknife over groups, and its value for unrelated layers."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from repsim.engine.resampling import leave_one_out
from repsim.engine.uncertainty import jackknife
from repsim.metrics.cka import CKA
from repsim.metrics.recipes.gram import CentredGram
from repsim.metrics.recipes.groups import Groups

Array = NDArray[np.float64]

FEATURES, OWN_WEIGHT = 20, 0.7
"""Features that two layers share, and as many of its own for each, with this weight."""
TRUTH = 1 / (1 + OWN_WEIGHT**4)
"""CKA of infinitely many groups: the kernels share ||S S'||^2 of ||S S'||^2 + w^4 ||own||^2, with equal spectra."""


@dataclass(frozen=True)
class GroupedCoverage:
    """Results over simulated data sets."""

    mean: float
    """Mean of grouped CKA."""
    ungrouped: float
    """Mean of CKA without groups, which counts pairs within groups."""
    covered: float
    """Share of the data sets whose 95 % interval, a jackknife over groups, holds `TRUTH`."""
    covered_ungrouped: float
    """The same of the jackknife over samples, without groups."""
    unrelated: float
    """Mean of grouped CKA of the two layers' own features, which are unrelated."""
    unrelated_error: float
    """Standard error of ``unrelated``."""


def draw(rng: np.random.Generator, groups: NDArray[np.int64], correlation: float = 0.9) -> tuple[Array, Array]:
    """Draw two layers: shared features, then their own; samples of one group have this correlation."""

    def features() -> Array:
        scene = rng.normal(size=(groups.max() + 1, FEATURES))[groups]
        return np.asarray(np.sqrt(correlation) * scene + np.sqrt(1 - correlation) * rng.normal(size=scene.shape))

    shared = features()
    return np.hstack([shared, OWN_WEIGHT * features()]), np.hstack([shared, OWN_WEIGHT * features()])


def grouped_coverage(runs: int, size: int, n: int = 400, *, seed: int = 0) -> GroupedCoverage:
    """Simulate ``runs`` data sets of n samples in groups of ``size``, and compute CKA and its intervals."""
    groups = np.repeat(np.arange(n // size), size)
    values = []
    for run in range(runs):
        x, y = draw(np.random.default_rng([seed, run]), groups)
        grouped, plain = (_value_and_cover(x, y, of) for of in (groups, None))
        own = cka(x[:, FEATURES:], y[:, FEATURES:], groups)
        values.append([grouped[0], plain[0], grouped[1], plain[1], own])
    error = float(np.std([row[-1] for row in values], ddof=1) / np.sqrt(runs))
    mean, ungrouped, covered, covered_ungrouped, unrelated = np.mean(values, 0).tolist()
    return GroupedCoverage(mean, ungrouped, covered, covered_ungrouped, unrelated, error)


def cka(x: Array, y: Array, groups: NDArray[np.int64] | None) -> float:
    """Compute debiased CKA, from pairs of samples of different groups if there are groups."""
    of = None if groups is None else Groups.of(groups)
    a, b = (CentredGram()(torch.from_numpy(layer)).grouped(of) for layer in (x, y))
    return CKA().pair(a, b)


def _value_and_cover(x: Array, y: Array, groups: NDArray[np.int64] | None) -> tuple[float, bool]:
    """Return CKA, and whether its 95 % interval holds `TRUTH`."""
    value = cka(x, y, groups)
    interval = jackknife(value, leave_one_out([x], [y], groups=groups, progress=False)[:, 0, 0])
    return value, bool(interval.low <= TRUTH <= interval.high)
