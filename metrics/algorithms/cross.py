"""Two prepared layers and their cross-moments, the input of measures in feature space."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from torch import Tensor

T = TypeVar("T")
F = TypeVar("F")


@dataclass(frozen=True, eq=False)
class Cross(Generic[F]):
    """Two prepared layers, and the cross-moments of their ``rows``."""

    a: F
    b: F
    product: Tensor
    """Cross-moments X'Y, shape (p, q)."""
    _cache: dict[Callable[["Cross[F]"], Any], Any] = field(default_factory=dict, repr=False)

    def once(self, compute: Callable[["Cross[F]"], T]) -> T:
        """Return ``compute(self)``, such as singular values, computed once for all measures."""
        if compute not in self._cache:
            self._cache[compute] = compute(self)
        return self._cache[compute]  # type: ignore[no-any-return]

    @property
    def swapped(self) -> "Cross[F]":
        """The same pair with the layers exchanged."""
        return Cross(self.b, self.a, self.product.T)
