"""Two prepared layers and their cross-moments: what a measure in feature space is computed from."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from torch import Tensor

T = TypeVar("T")
F = TypeVar("F")


@dataclass(frozen=True, eq=False)
class Cross(Generic[F]):
    """Two prepared layers, and the cross-moments of what their ``rows`` give."""

    a: F
    b: F
    product: Tensor
    """(p, q)."""
    _found: dict[Callable[["Cross[F]"], Any], Any] = field(default_factory=dict, repr=False)

    def once(self, find: Callable[["Cross[F]"], T]) -> T:
        """Result of ``find``, computed once for all measures that ask: singular values, say."""
        if find not in self._found:
            self._found[find] = find(self)
        return self._found[find]  # type: ignore[no-any-return]

    @property
    def swapped(self) -> "Cross[F]":
        """The same with the layers exchanged."""
        return Cross(self.b, self.a, self.product.T)
