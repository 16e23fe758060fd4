"""Contract tests must fail for wrong measures: each measure has one fault, and a test that must detect it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch.autograd.gradcheck import GradcheckError

from repsim.errors import UndefinedValueError
from repsim.metrics.base import Array, Metric
from repsim.metrics.cca import PWCCA, SVCCA
from repsim.metrics.cka import CKA
from repsim.metrics.prediction import LinearRegression
from repsim.metrics.recipes.gram import CentredGram, Gram, Kernels
from repsim.metrics.recipes.rows import Rows
from repsim.metrics.recipes.subspace import Subspace
from repsim.testing import MetricContract
from tests.metrics import references

BITES = (AssertionError, pytest.fail.Exception, GradcheckError)


@dataclass(frozen=True)
class NotSymmetric(CKA):
    """Declares that it is asymmetric, although it is symmetric."""

    symmetric: ClassVar[bool] = False


@dataclass(frozen=True)
class Symmetric(PWCCA):
    """Declares that it is symmetric, although it is not."""

    symmetric: ClassVar[bool] = True


@dataclass(frozen=True)
class TooInvariant(CKA):
    """Declares an invariance that does not hold."""

    @property
    def invariances(self) -> frozenset[Any]:
        return super().invariances | {"invertible linear"}


@dataclass(frozen=True)
class TooModest(CKA):
    """Does not declare an invariance that holds."""

    @property
    def invariances(self) -> frozenset[Any]:
        return super().invariances - {"translation"}


@dataclass(frozen=True)
class TooModestOfY(LinearRegression):
    """Does not declare an invariance that holds for one side."""

    @property
    def invariances_of_y(self) -> frozenset[Any]:
        return self.invariances


@dataclass(frozen=True)
class OtherBlock(CKA):
    """Blocks with values that differ from those of pairs."""

    def block(self, rows: Sequence[Kernels], columns: Sequence[Kernels]) -> Array:
        return super().block(rows, columns) * (1 if len(rows) == len(columns) == 1 else 1.001)


@dataclass(frozen=True)
class FilledBlock(CKA):
    """Zeros where pairs have no value."""

    def block(self, rows: Sequence[Kernels], columns: Sequence[Kernels]) -> Array:
        block = super().block(rows, columns)
        return block if len(rows) == len(columns) == 1 else np.nan_to_num(block)


@dataclass(frozen=True)
class Clipped(CKA):
    """Clips negative values, which biases the mean."""

    def pair(self, a: Kernels, b: Kernels) -> float:
        return max(0.0, super().pair(a, b))


@dataclass(frozen=True)
class TooLarge(SVCCA):
    """Leaves its bounds."""

    def pair(self, a: Subspace, b: Subspace) -> float:
        return 1.5 * super().pair(a, b)


@dataclass(frozen=True)
class TooSteep(CKA):
    """Has the right value, and a gradient that is one per cent too large."""

    def with_gradient(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        value = super().with_gradient(x, y)
        return value + 0.01 * (value - value.detach())


class _NeverUndefined(CentredGram):
    def __call__(self, x: Rows) -> Gram:
        try:
            return super().__call__(x)
        except UndefinedValueError:
            return super().__call__(torch.arange(x[:].numel(), dtype=x.dtype).reshape(*x.shape))


@dataclass(frozen=True)
class Swallowed(CKA):
    """Returns a value for a layer that has none."""

    @property
    def recipe(self) -> CentredGram:
        return _NeverUndefined()


class _InPlace(CentredGram):
    def __call__(self, x: Rows) -> Gram:
        return super().__call__(x[:].sub_(x[:].mean(0)))


@dataclass(frozen=True)
class Careless(CKA):
    """Centres the array of the caller in place."""

    @property
    def recipe(self) -> CentredGram:
        return _InPlace()


class _Ordered(CentredGram):
    def __call__(self, x: Rows) -> Gram:
        return super().__call__(x[:] * torch.linspace(1, 2, x.shape[0])[:, None])


@dataclass(frozen=True)
class Ordered(CKA):
    """Gives less weight to the first samples."""

    @property
    def recipe(self) -> CentredGram:
        return _Ordered()


class Unequal(CentredGram):
    """Recipe that equals no other, so it is never shared."""

    __eq__ = object.__eq__
    __hash__ = object.__hash__


@dataclass(frozen=True)
class NotShared(CKA):
    """A recipe that no other measure can share."""

    @property
    def recipe(self) -> CentredGram:
        return Unequal()


class NotFrozen(PWCCA):
    """Measure that is not frozen."""

    __setattr__ = object.__setattr__


class Contract(MetricContract):
    """Contract that pytest does not collect; its tests are called below."""

    reference = staticmethod(references.cka)


@pytest.mark.parametrize(
    ("wrong", "test", "arguments"),
    [
        (NotSymmetric(), "test_symmetry", ()),
        (Symmetric(), "test_symmetry", ()),
        (TooInvariant(), "test_invariance", ("invertible linear",)),
        (TooModest(), "test_invariance", ("translation",)),
        (TooModestOfY(), "test_invariance", ("invertible linear",)),
        (OtherBlock(), "test_block_is_pair_for_all_pairs", ()),
        (FilledBlock(), "test_block_is_pair_for_all_pairs", ()),
        (Clipped(), "test_agrees_with_the_reference", (40, 6, 6)),
        (TooLarge(), "test_values_are_within_bounds", (40,)),
        (TooLarge(), "test_a_layer_is_like_itself", (40,)),
        (TooSteep(), "test_gradient", (10, 3, 4)),
        (Swallowed(), "test_a_constant_layer_is_undefined", ()),
        (Careless(), "test_nothing_is_changed_in_passing", ()),
        (Ordered(), "test_order_of_samples_does_not_matter", ()),
        (NotShared(), "test_equal_recipes_share", ()),
        (NotFrozen(), "test_is_a_frozen_value", ()),
        (Clipped(), "test_spec_makes_the_same_metric", ()),
        (Clipped(), "test_docstring_cites_and_shows", ()),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Metric) else None,
)
def test_a_wrong_measure_fails(wrong: Metric[Any], test: str, arguments: tuple[Any, ...]) -> None:
    correct = next(cls for cls in type(wrong).__mro__ if cls in (CKA, SVCCA, PWCCA, LinearRegression))
    getattr(Contract(), test)(correct(), *arguments)  # the same test passes for the correct measure
    with pytest.raises(BITES):
        getattr(Contract(), test)(wrong, *arguments)
