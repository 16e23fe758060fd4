"""Base class and shared functions of the topological measures."""

import importlib
from abc import ABC
from typing import Any, ClassVar, Generic, Literal, TypeVar

import numpy as np
import torch
from jaxtyping import Float, Float64
from torch import Tensor

from repsim.errors import MissingExtraError
from repsim.metrics.base import Factor, Group, Invariance, PairMetric
from repsim.metrics.recipes.rows import Centred, column_means

F = TypeVar("F", bound=Factor)
Square = Float64[np.ndarray, "n n"]
Bars = Float64[np.ndarray, "bars 2"]
ZERO = 1e-6
"""Relative distances below this are rounding errors of equal samples (the bound of the published code)."""


class TopologyMetric(PairMetric[F], ABC, Generic[F]):
    """Measure computed from the distances between samples of each layer."""

    group: ClassVar[Group] = "topology"
    sense: ClassVar[Literal["similarity", "distance"]] = "distance"
    symmetric: ClassVar[bool] = True
    differentiable: ClassVar[bool] = False
    stochastic: ClassVar[bool] = True

    @property
    def invariances(self) -> frozenset[Invariance]:
        """Transformations that leave the ratios of distances unchanged."""
        return frozenset({"permutation", "orthogonal", "isotropic scaling", "translation"})


def centred_samples(x: Float[Tensor, "n p"]) -> Centred:
    """Return the samples, centred in float64."""
    mean, scale = column_means(x)
    return Centred(x, mean, scale, torch.float64)


def squared_distances(z: Float64[Tensor, "m p"], w: Float64[Tensor, "n p"]) -> Float64[Tensor, "m n"]:
    """Return squared Euclidean distances; between equal samples they are 0 up to rounding."""
    return (z.square().sum(1)[:, None] + w.square().sum(1) - 2 * (z @ w.T)).clamp_(min=0)


def distances_within(z: Float64[Tensor, "n p"]) -> Square:
    """Return the distances between all samples, exactly symmetric."""
    squares = squared_distances(z, z)
    distances: Square = ((squares + squares.T) / 2).fill_diagonal_(0).sqrt_().cpu().numpy()
    return distances


def load_gudhi(who: str, module: str) -> Any:
    """Import a module of gudhi, which the extra ``topology`` installs."""
    try:
        return importlib.import_module(module)
    except ImportError:
        raise MissingExtraError(who, "gudhi", extra="topology") from None
