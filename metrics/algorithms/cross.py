"""Two prepared layers and their cross-moments, the input of measures in feature space."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

from repsim.metrics.recipes.rows import float64_device

T = TypeVar("T")
F = TypeVar("F")


@dataclass(frozen=True, eq=False)
class Cross(Generic[F]):
    """Two prepared layers, and the cross-moments of their ``rows``."""

    a: F
    b: F
    moments: Tensor
    """Cross-moments X'Y, shape (p, q), in the dtype in which they were computed."""
    _cache: dict[Callable[["Cross[F]"], Any], Any] = field(default_factory=dict, repr=False)

    def once(self, compute: Callable[["Cross[F]"], T]) -> T:
        """Return ``compute(self)``, such as singular values, computed once for all measures."""
        if compute not in self._cache:
            self._cache[compute] = compute(self)
        return self._cache[compute]  # type: ignore[no-any-return]

    @property
    def product(self) -> Tensor:
        """Cross-moments in float64."""
        return self.once(_product)

    @property
    def swapped(self) -> "Cross[F]":
        """The same pair with the layers exchanged."""
        return Cross(self.b, self.a, self.moments.T)


def in_float64(values: Tensor) -> Tensor:
    """Return the values in float64, on a device that supports it."""
    return values.to(float64_device(values.device), torch.float64)


def _product(cross: Cross[Any]) -> Tensor:
    return in_float64(cross.moments)
