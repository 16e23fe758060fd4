"""Base classes of recipes, which prepare one layer, and state their cost from its shape."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar, runtime_checkable

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from typing_extensions import override

from repsim.metrics.recipes.cost import Cost, LayerSize, Memory
from repsim.metrics.recipes.rows import Rows


@runtime_checkable
class Factor(Protocol):
    """Prepared layer: a frozen value that no comparison changes."""

    @property
    def nbytes(self) -> int:
        """Bytes held, from which the planner decides how many factors to keep."""


@runtime_checkable
class PermutableFactor(Factor, Protocol):
    """Factor that can be computed for its layer with the samples in another order."""

    def permuted(self, order: Int64[Tensor, " n"]) -> Factor:
        """Return the factor whose sample i is sample order[i] of this one."""


class MomentFactor(ABC):
    """Factor for feature space: a matrix (n, p); measures are computed from the product of two such matrices."""

    @property
    @abstractmethod
    def n(self) -> int:
        """Number of samples."""

    @property
    @abstractmethod
    def p(self) -> int:
        """Columns of the matrix."""

    @property
    @abstractmethod
    def device(self) -> torch.device:
        """Device of the matrix."""

    @property
    @abstractmethod
    def in_memory(self) -> bool:
        """Whether the matrix is in memory, and not read from a file."""

    @abstractmethod
    def rows(self, i: slice, /) -> Float[Tensor, "rows p"]:
        """Return rows of the matrix."""

    @property
    def uneven(self) -> bool:
        """Whether one sample dominates the others, so that products must be computed in float64."""
        return False


F_co = TypeVar("F_co", bound=Factor, covariant=True)


class Recipe(ABC, Generic[F_co]):
    """Preparation of one layer.

    Equal recipes give equal factors, so measures with the same recipe share the work.

    Extend `InMemoryRecipe`, or `StreamingRecipe` for layers that need not fit into memory.
    """

    @abstractmethod
    def __call__(self, x: Any, /) -> F_co:
        """Prepare one layer, (n, p) features; raise `UndefinedValueError` if it has nothing to compare (a constant
        layer).

        The layer is a tensor, unless the recipe is a `StreamingRecipe`. The recipes of other forms
        (`Metric.recipe_for`) take the arrays that the form stores.
        """

    @abstractmethod
    def covers(self, other: "Recipe[Any]") -> bool:
        """Return whether the factor of this recipe contains everything that the other recipe computes."""

    @abstractmethod
    def cost(self, layer: LayerSize) -> Cost:
        """Return the cost of preparing one layer, without reading it."""

    @abstractmethod
    def memory(self, layer: LayerSize) -> Memory:
        """Return the bytes of the factor, and of the workspace to prepare it."""

    @abstractmethod
    def width(self, layer: LayerSize) -> int:
        """Return the columns of the factor of a layer that take part in products with other layers."""


class _GenericRecipe(Recipe[F_co]):
    """Base of most recipes."""

    @override
    def covers(self, other: Recipe[Any]) -> bool:
        """Return whether the recipes are equal."""
        return self == other

    @override
    def width(self, layer: LayerSize) -> int:
        """Return the number of features."""
        return layer.p


class InMemoryRecipe(_GenericRecipe[F_co]):
    """Recipe for layers that are completely in memory."""


class StreamingRecipe(_GenericRecipe[F_co]):
    """Recipe for layers that need not fit into memory: it accepts any `Rows`, and a tensor is one.

    `fit` returns a small state, which processes can exchange; a call runs `fit` and `apply`.
    """

    def __call__(self, x: Rows, /) -> F_co:
        """Prepare one layer."""
        return self.apply(x, self.fit(x))

    @abstractmethod
    def fit(self, x: Rows, /) -> Any:
        """Compute the state of a layer; this is the main work."""

    @abstractmethod
    def apply(self, x: Rows, state: Any, /) -> F_co:
        """Make the factor. If x is not a tensor, the factor keeps a reference to x, and reads it again."""


class DifferentiableRecipe(Recipe[F_co]):
    """Recipe that can prepare a layer with operations that autograd supports."""

    @abstractmethod
    def with_gradient(self, x: Float[Tensor, "n p"], /) -> F_co:
        """Prepare one layer, so that the factor has a gradient."""


@dataclass(frozen=True)
class FunctionRecipe(InMemoryRecipe[F_co]):
    """Plain function as a recipe; the planner assumes that it is no more work than reading the layer."""

    function: Callable[[Any], F_co]

    def __call__(self, x: Any, /) -> F_co:
        """Prepare one layer."""
        return self.function(x)

    @override
    def cost(self, layer: LayerSize) -> Cost:
        """Return no cost besides reading."""
        return Cost()

    @override
    def memory(self, layer: LayerSize) -> Memory:
        """Return the memory of the layer itself, and of some numbers per sample."""
        return Memory(layer.n * layer.p * layer.itemsize, state=32 * layer.n)
