"""What a recipe is: how one layer is prepared, and what that costs, stated from the layer's shape alone."""

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
    """What a recipe makes of one layer: a frozen value that no pair ever changes."""

    @property
    def nbytes(self) -> int:
        """Bytes held, for whoever decides how many factors to keep."""


@runtime_checkable
class PermutableFactor(Factor, Protocol):
    """A factor that knows what it is for the same layer with its samples in another order."""

    def permuted(self, order: Int64[Tensor, " n"]) -> Factor:
        """Sample i of the result is sample order[i] of this one."""


class MomentFactor(ABC):
    """A factor for feature space: a matrix (n, p), of whose product with another layer's a measure is computed."""

    @property
    @abstractmethod
    def n(self) -> int:
        """Samples."""

    @property
    @abstractmethod
    def p(self) -> int:
        """Columns of the matrix."""

    @property
    @abstractmethod
    def device(self) -> torch.device:
        """Where the matrix is."""

    @property
    @abstractmethod
    def in_memory(self) -> bool:
        """Whether the matrix is at hand, and need not be read from a file."""

    @abstractmethod
    def rows(self, i: slice, /) -> Float[Tensor, "rows p"]:
        """Rows of the matrix."""

    @property
    def uneven(self) -> bool:
        """Whether one sample outweighs the others so much that products with it have to be made in float64."""
        return False


F_co = TypeVar("F_co", bound=Factor, covariant=True)


class Recipe(ABC, Generic[F_co]):
    """One layer -> one factor. Equal recipes give equal factors, so measures that name the same one share the work.

    Extend `InMemoryRecipe`, or `StreamingRecipe` for layers that need not fit into memory.
    """

    @abstractmethod
    def __call__(self, x: Any, /) -> F_co:
        """Prepare one layer, (n, p) features; `UndefinedValueError` where it has nothing to compare (a constant one).

        The layer is a tensor, unless the recipe is a `StreamingRecipe`. The recipes of other forms
        (`Metric.recipe_for`) take what that form stores.
        """

    @abstractmethod
    def covers(self, other: "Recipe[Any]") -> bool:
        """Whether this factor has everything that the other recipe's has, so that it serves both."""

    @abstractmethod
    def cost(self, layer: LayerSize) -> Cost:
        """Work of preparing one layer, beside reading it."""

    @abstractmethod
    def memory(self, layer: LayerSize) -> Memory:
        """Bytes of the factor, and those that preparing it takes."""

    @abstractmethod
    def width(self, layer: LayerSize) -> int:
        """Columns of a layer's factor that take part in products with other layers."""


class _GenericRecipe(Recipe[F_co]):
    """What most recipes have in common."""

    @override
    def covers(self, other: Recipe[Any]) -> bool:
        """Equal recipes only."""
        return self == other

    @override
    def width(self, layer: LayerSize) -> int:
        """All features."""
        return layer.p


class InMemoryRecipe(_GenericRecipe[F_co]):
    """A recipe for layers that are in memory as a whole."""


class StreamingRecipe(_GenericRecipe[F_co]):
    """A recipe for layers that need not fit into memory: it takes any `Rows`, of which a tensor is one.

    What it finds is a small state, which one process can send to another; calling it is both steps in one.
    """

    def __call__(self, x: Rows, /) -> F_co:
        """Prepare one layer."""
        return self.apply(x, self.fit(x))

    @abstractmethod
    def fit(self, x: Rows, /) -> Any:
        """Find the state of a layer: the work."""

    @abstractmethod
    def apply(self, x: Rows, state: Any, /) -> F_co:
        """Make the factor. Where x is no tensor it holds on to x, and reads it again."""


class DifferentiableRecipe(Recipe[F_co]):
    """A recipe with a way of its own to prepare a layer by operations that autograd knows."""

    @abstractmethod
    def with_gradient(self, x: Float[Tensor, "n p"], /) -> F_co:
        """Prepare one layer, so that the factor has a gradient."""


@dataclass(frozen=True)
class FunctionRecipe(InMemoryRecipe[F_co]):
    """A plain function as a recipe. A plan takes it to be no more work than reading the layer."""

    function: Callable[[Any], F_co]

    def __call__(self, x: Any, /) -> F_co:
        """Prepare one layer."""
        return self.function(x)

    @override
    def cost(self, layer: LayerSize) -> Cost:
        """Nothing beside reading."""
        return Cost()

    @override
    def memory(self, layer: LayerSize) -> Memory:
        """As much as the layer itself, and some numbers a sample."""
        return Memory(layer.n * layer.p * layer.itemsize, state=32 * layer.n)
