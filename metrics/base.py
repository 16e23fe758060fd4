"""Base classes of measures: a recipe prepares one layer, and a measure compares two prepared layers.

Computations on one layer (centring, a decomposition, norms) run once per layer, in a `Recipe`. Computations on two
layers run for many pairs at once, by one of three algorithms. Each algorithm has a base class: `GramMetric`,
`MomentMetric` and `PairMetric`. A measure that supports two algorithms extends both.
"""

import dataclasses
import itertools
import math
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, Literal, TypeVar, overload

import numpy as np
import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor
from typing_extensions import override

from repsim.errors import InvalidInputError, UndefinedValueError, UnreliableValueWarning
from repsim.labels import Form
from repsim.metrics.algorithms.cross import Cross
from repsim.metrics.algorithms.in_memory import Algorithm, compare_in_memory
from repsim.metrics.recipes.base import DifferentiableRecipe, Factor, FunctionRecipe, Recipe
from repsim.metrics.recipes.cost import Cost
from repsim.metrics.samples import Array, as_samples
from repsim.runtime.arrays import same_rows
from repsim.runtime.threads import map_in_threads

__all__ = [
    "Algorithm",
    "Array",
    "Chance",
    "Factor",
    "GramMetric",
    "Group",
    "Invariance",
    "Metric",
    "MomentMetric",
    "PairMetric",
    "PermutedAtOnce",
    "Recipe",
    "as_samples",
]

Invariance = Literal["permutation", "orthogonal", "isotropic scaling", "translation", "invertible linear"]
_NEGLIGIBLE = 1e-3
"""Difference between the values that a pair could have up to which no warning is issued."""
Group = Literal["rsm", "cca", "alignment", "neighbours", "statistics", "topology"]
"""Families of the ReSi benchmark (Klabunde et al. 2025), by the aspect of a representation that is compared."""


@dataclass(frozen=True)
class Chance:
    """Chance level of a measure: mean and standard deviation under permutations of the samples of one layer."""

    mean: float
    sd: float | None = None
    """Standard deviation over permutations; None if it is not known."""
    exact: bool = True
    """Whether the mean is exact for any data; otherwise it holds for Gaussian features."""


F = TypeVar("F", bound=Factor)


class Metric(ABC, Generic[F]):
    """Measure of the similarity or distance of two representations.

    Concrete measures are frozen dataclasses, whose fields are the parameters.

    Extend `PairMetric`, `GramMetric` or `MomentMetric`. A subclass with a ``name`` is registered under that name. It
    declares the class attributes below, a `recipe`, and the methods of its base class. `repsim.testing.MetricContract`
    tests every declaration.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    """Full name, as figures show it."""
    formula: ClassVar[str]
    citation: ClassVar[str]
    group: ClassVar[Group]
    question: ClassVar[str]
    """Question that the value answers."""
    needs: ClassVar[str]
    """Number of samples that the value needs, in words; `samples_needed` is the number, and `scarcity` warns of
    fewer."""
    counted: ClassVar[str] = "features"
    """Property of a layer that `samples_needed` depends on: its features, or a key of its `diagnostics`."""
    others: ClassVar[Mapping[str, str]] = {}
    """Known implementations that compute something else: how they differ, and why this one does not."""
    sense: ClassVar[Literal["similarity", "distance"]]
    """A similarity grows as layers become more alike, a distance shrinks."""
    symmetric: ClassVar[bool]
    triangle: ClassVar[bool] = False
    """Whether a distance satisfies d(x, z) <= d(x, y) + d(y, z)."""
    paired: ClassVar[bool] = True
    """Whether the samples of both layers must correspond; otherwise two clouds of samples are compared."""
    differentiable: ClassVar[bool] = True
    """Whether the value has a gradient for tensors that require one. If it is not smooth (a maximum, a
    neighbourhood), it has one almost everywhere."""
    stochastic: ClassVar[bool] = False
    """Whether the value is a seeded random estimate."""
    extra: ClassVar[str | None] = None
    """Module that the measure needs; the extra of its group installs it: ``pip install 'repsim-toolkit[topology]'``."""

    registry: ClassVar[dict[str, type["Metric[Any]"]]] = {}
    __dataclass_fields__: ClassVar[dict[str, dataclasses.Field[Any]]]  # for type checkers: subclasses are dataclasses

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "name" in cls.__dict__:
            registered = cls.registry.setdefault(cls.name, cls)
            if registered.__qualname__ != cls.__qualname__ or registered.__module__ != cls.__module__:
                raise TypeError(f"two measures are named {cls.name!r}: {registered.__module__} and {cls.__module__}")
        # by its bases: issubclass would be remembered, and they change
        of_no_kind = cls.__module__ != __name__ and not {PairMetric, _SummedMetric} & set(cls.__mro__)
        if of_no_kind and "value" in cls.__dict__:  # written before the three kinds of metric
            warnings.warn(
                f"{cls.__qualname__} extends Metric: extend repsim.metrics.base.PairMetric instead",
                DeprecationWarning,
                stacklevel=3,
            )
            bases = tuple(base for base in cls.__bases__ if base is not Metric)
            cls.__bases__ = (*bases, PairMetric)

    @property
    @abstractmethod
    def bounds(self) -> tuple[float, float]:
        """Smallest and largest value that the measure can take."""

    @property
    @abstractmethod
    def invariances(self) -> frozenset[Invariance]:
        """Transformations of the features of either layer that leave the value unchanged."""

    @property
    def invariances_of_y(self) -> frozenset[Invariance]:
        """Transformations of the features of the second layer that leave the value unchanged.

        The same as `invariances`, and more if the measure is asymmetric.
        """
        return self.invariances

    def samples_needed(self, p: int, q: int) -> int | None:
        """Return the number of samples from which on unrelated Gaussian layers score at most 0.2 on average.

        For a distance: from which on they are, by chance, at least four fifths as far apart as with any number of
        samples. For a measure that compares clouds: from which on the value hardly depends on which samples were drawn.
        ``p`` and ``q`` are the widths of the two layers, in the unit that ``counted`` names. None if no number is
        known.
        """

    def width(self, factor: F, features: int) -> int:
        """Return the width of a layer for `samples_needed`: the diagnostic named ``counted``, or its features."""
        return self.diagnostics(factor).get(self.counted, features)

    def scarcity(self, n: int, p: int, q: int) -> str | None:
        """Return a warning if n samples are fewer than layers of widths p and q need, or None."""
        needed = self.samples_needed(p, q)
        if needed is None or n >= needed:
            return None
        if not self.paired:
            why = "its value depends on which samples they are"
        elif self.sense == "similarity":
            why = "unrelated layers may score above 0.2 by chance"
        else:
            why = "unrelated layers may be close by chance"
        what = "directions" if self.counted == "rank" else self.counted
        return f"n = {n} samples are too few for {p} and {q} {what}: {why} with fewer than {needed:,}"

    def scarcity_of_all(self, n: int, widths: Sequence[tuple[int, int]]) -> str | None:
        """Return one warning for many pairs of widths: how many have too few samples, and the warning for the worst.

        >>> import repsim.metrics
        >>> repsim.metrics.get("rsa").scarcity_of_all(10, [(5, 5), (5, 8)])
        'all values: n = 10 samples are too few for 5 and 8 features: unrelated layers may score above 0.2 by chance
        with fewer than 20'
        """
        scarce = [pair for pair in set(widths) if self.scarcity(n, *pair)]
        if not scarce:
            return None
        number = sum(pair in set(scarce) for pair in widths)
        share = "all values" if number == len(widths) else f"{number} of {len(widths)} values"
        worst = max(scarce, key=lambda pair: (self.samples_needed(*pair) or 0, sum(pair), pair))
        return f"{share}: {self.scarcity(n, *worst)}"

    def chance(self, a: F, b: F) -> Chance | None:
        """Return the chance level of these two layers, or None if it is not known in closed form (docs/metrics.md)."""

    def chance_mean(self, a: F, b: F) -> float | None:
        """Return the mean of `chance`; override it if the mean alone takes much less time."""
        level = self.chance(a, b)
        return None if level is None else level.mean

    @property
    def min_samples(self) -> int:
        """Number of samples below which the value is undefined, or the same for all layers."""
        return 4

    def caution(self, a: F, b: F) -> str | None:
        """Return a warning, with the n that would be enough, if the value of this pair is unreliable, or None."""

    @property
    def ambiguity(self) -> "Metric[F] | None":
        """Measure of the largest difference between values that a pair could have, if its value is not determined.

        It is 0 for pairs whose value is determined, and computed together with this measure. None if all values are.
        """
        return None

    def ambiguous(self, difference: float) -> str | None:
        """Return a warning if the value of a pair is determined only up to this `ambiguity`, or None.

        >>> import repsim.metrics
        >>> repsim.metrics.get("pwcca").ambiguous(0.0123)
        'the value is not determined, because several directions fit equally well: others may change it by up to 0.012'
        """
        if not difference > _NEGLIGIBLE:
            return None
        return (
            "the value is not determined, because several directions fit equally well: others may change it by up to "
            f"{difference:.2g}"
        )

    def remark(self, n: int) -> str | None:
        """Return a note that holds for all values over n samples, or None."""

    def diagnostics(self, _factor: F, /) -> dict[str, int]:
        """Return numbers about one layer that are stored beside the value, such as how many components were kept."""
        return {}

    @property
    @abstractmethod
    def recipe(self) -> Recipe[F]:
        """Recipe that prepares one layer: a `Recipe`, or a plain function."""

    def recipe_for(self, form: Form) -> Recipe[F]:
        """Return the recipe for a layer that is stored in this form.

        Raises `UndefinedValueError` if the measure cannot be computed from this form.
        """
        if form == "features":
            recipe = self.recipe
            return recipe if isinstance(recipe, Recipe) else FunctionRecipe(recipe)
        stored = {"grams": "Gram matrices", "sketches": "random projections"}[form]
        raise UndefinedValueError(
            f"{self.spec} needs the features themselves; this readout keeps only {stored}, which linear cka compares"
        )

    @property
    @abstractmethod
    def algorithms(self) -> tuple[Algorithm, ...]:
        """Algorithms that can compute all pairs at once (`repsim.metrics.algorithms`)."""

    @abstractmethod
    def pair(self, a: F, b: F) -> float:
        """Return the value of two prepared layers; raise `UndefinedValueError` with the reason if it is undefined."""

    @abstractmethod
    def block(self, rows: Sequence[F], columns: Sequence[F]) -> Float64[np.ndarray, "rows columns"]:
        """Compare every row layer with every column layer.

        Values are NaN exactly where `pair` raises `UndefinedValueError`.
        """

    @abstractmethod
    def reason(self, a: F, b: F) -> str:
        """Return the reason why these two layers have no value."""

    @abstractmethod
    def with_gradient(self, x: Float[Tensor, "n p"], y: Float[Tensor, "n q"]) -> Tensor:
        """Compare two layers (n, p) and (n, q) with a gradient; only for measures that are ``differentiable``."""

    @property
    def spec(self) -> str:
        """Spec string that makes this measure: the name, and the options that differ from their defaults."""
        options = [
            f"{field.name}={getattr(self, field.name)}"
            for field in dataclasses.fields(self)
            if getattr(self, field.name) != field.default
        ]
        return ":".join([self.name, ",".join(options)]) if options else self.name

    @property
    def label(self) -> str:
        """Name on a colour bar: the title, and the parameters in words.

        >>> import repsim.metrics
        >>> repsim.metrics.get("cka").label, repsim.metrics.get("svcca").label
        ('CKA (linear, debiased)', 'SVCCA (variance=0.99, rho)')
        """
        return self.label_with()

    def label_with(self, *notes: str) -> str:
        """Return the label with notes added after the parameters.

        >>> import repsim.metrics
        >>> repsim.metrics.get("cka").label_with("minibatches of 256")
        'CKA (linear, debiased, minibatches of 256)'
        """
        values = [(field.name, getattr(self, field.name)) for field in dataclasses.fields(self)]
        words = [value if isinstance(value, str) else f"{name}={value}" for name, value in values if value is not None]
        words += notes
        return f"{self.title} ({', '.join(words)})" if words else self.title

    @overload
    def __call__(self, x: Array, y: Array) -> float: ...
    @overload
    def __call__(self, x: Any, y: Any) -> Any: ...
    def __call__(self, x: Any, y: Any) -> float | Tensor:
        """Compare two representations of the same samples, x (n, p) and y (n, q), rows in the same order.

        Parameters
        ----------
        x : array of shape (n, p)
            Numpy array, tensor or any array that numpy can read.
        y : array of shape (n, q)
            The same samples in the same order.

        Returns
        -------
        float or Tensor
            The value; a tensor with a gradient if x or y is a tensor that requires one, so that a measure can be a
            loss.

        Raises
        ------
        InvalidInputError
            For arrays that cannot be compared, and for a gradient of a measure that has none.
        UndefinedValueError
            If these two layers have no value, with the reason.
        """
        same_rows({"x": x, "y": y})
        x, y = as_samples(x, self.min_samples), as_samples(y, self.min_samples, "y")
        if len(x) != len(y):
            raise InvalidInputError(
                f"x has {len(x)} samples and y has {len(y)}; rows must be the same samples in the same order"
            )
        if torch.is_grad_enabled() and (x.requires_grad or y.requires_grad):
            if not self.differentiable:
                raise InvalidInputError(
                    f"{self.spec} has no gradient (it counts, ranks or draws); detach() the tensors for its value"
                )
            return self.with_gradient(x, y.to(x.device))
        x, y = x.detach(), y.detach()
        a, b = self.recipe(x), self.recipe(y.to(x.device))
        scarcity = self.scarcity(len(x), self.width(a, x.shape[1]), self.width(b, y.shape[1]))
        ambiguous = self.ambiguity and self.ambiguous(self.ambiguity.pair(a, b))
        for caution in (self.caution(a, b), ambiguous, scarcity):
            if caution:
                warnings.warn(f"{self.spec}: {caution}", UnreliableValueWarning, stacklevel=2)
        return self.pair(a, b)


class PairMetric(Metric[F]):
    """Metric that compares two prepared layers, one pair after the other. Subclasses define `value`."""

    @property
    def algorithms(self) -> tuple[Algorithm, ...]:
        """Pair by pair."""
        return ("pairs",)

    @abstractmethod
    def value(self, a: F, b: F) -> Tensor:
        """Compare two prepared layers; return a tensor without dimensions, which may have a gradient.

        Raises `UndefinedValueError`, with the reason, if the value is not defined.
        """

    def pair_cost(self, n: int, p: int, q: int) -> Cost:
        """Return the approximate cost of one pair; the planner uses it."""
        return Cost(flop32=self.pair_flop(n, p, q), calls=20)

    def pair_flop(self, n: int, p: int, q: int) -> float:
        """Return the approximate floating-point operations of one pair, if they are most of its cost."""
        return 2.0 * n * (p + q)

    def pair(self, a: F, b: F) -> float:
        """Return the value of two prepared layers; raise `UndefinedValueError` with the reason if it is undefined."""
        return float(self.value(a, b))

    def reason(self, a: F, b: F) -> str:
        """Return the message of the error that `pair` raises."""
        try:
            self.pair(a, b)
        except UndefinedValueError as error:
            return error.problem
        return "no reason given"

    def block(self, rows: Sequence[F], columns: Sequence[F]) -> Float64[np.ndarray, "rows columns"]:
        """Compare all pairs, several at a time in threads; override it if many pairs are cheaper together."""

        def value(a: F, b: F) -> float:
            try:
                return self.pair(a, b)
            except UndefinedValueError:
                return math.nan  # `reason` gives the reason

        pairs = list(itertools.product(rows, columns))
        if len(pairs) < 2:  # all threads work on it together
            values = [value(*pair) for pair in pairs]
        else:
            values = map_in_threads(value, *zip(*pairs, strict=True))
        return np.array(values, dtype=np.float64).reshape(len(rows), len(columns))

    def with_gradient(self, x: Float[Tensor, "n p"], y: Float[Tensor, "n q"]) -> Tensor:
        """Compute `value` on layers that the recipe prepares with operations that autograd supports."""
        return self.value(self.recipe(x), self.recipe(y))


class PermutedAtOnce(ABC, Generic[F]):
    """Metric with a method that permutes samples faster than one `Metric.block` per order."""

    @abstractmethod
    def permuted(
        self, rows: Sequence[F], columns: Sequence[F], orders: Int64[Tensor, "count n"], step: Callable[[], None]
    ) -> Float64[np.ndarray, "count rows columns"]:
        """Compare all pairs, with the samples of the columns permuted.

        Value (k, a, b) is the `Metric.block` of rows[a] and of columns[b] with its samples in the order orders[k].
        Calls ``step`` once per order.
        """


class _SummedMetric(Metric[F]):
    """Metric whose value is computed from sums S_ab over units of work."""

    normalised: ClassVar[bool] = False
    """Whether the value is S_ab / sqrt(S_aa S_bb), and not S_ab."""

    def finish(self, values: Array) -> Array:
        """Return values from S_ab / sqrt(S_aa S_bb), or from S_ab."""
        return values

    def block(self, rows: Sequence[F], columns: Sequence[F]) -> Float64[np.ndarray, "rows columns"]:
        """Compare all pairs at once, by the algorithm with fewer operations."""
        if not rows or not columns:
            return np.empty((len(rows), len(columns)))
        return compare_in_memory(rows, columns, self)

    def pair(self, a: F, b: F) -> float:
        """Return the value of two prepared layers; raise `UndefinedValueError` with the reason if it is undefined."""
        value = float(self.block([a], [b])[0, 0])
        if math.isnan(value):
            raise UndefinedValueError(self.reason(a, b))
        return value

    @override
    def reason(self, a: F, b: F) -> str:
        """Return the reason: the norm of a layer is zero up to rounding errors."""
        return "the norm of a layer is zero, up to rounding errors"


class GramMetric(_SummedMetric[F]):
    """Metric based on inner products of centred Gram matrices, S_ab = <A, B>. Its recipe is a `KernelRecipe`."""

    @property
    def algorithms(self) -> tuple[Algorithm, ...]:
        """Gram space."""
        return ("gram",)

    @property
    @abstractmethod
    def unbiased(self) -> bool:
        """Whether Gram matrices are U-centred, and not double-centred."""


class MomentMetric(_SummedMetric[F]):
    """Metric based on the cross-moments X'Y of two prepared layers. Its recipe makes a `MomentFactor`."""

    constant_if_spanned: ClassVar[bool] = False
    """Whether `moment` computes nothing for a layer that spans the whole sample space; the planner uses it."""

    @property
    def algorithms(self) -> tuple[Algorithm, ...]:
        """Feature space."""
        return ("moments",)

    @abstractmethod
    def moment(self, cross: Cross[F]) -> Tensor | float:
        """Return S_ab of two prepared layers, from their cross-moments."""

    def moment_cost(self, _p: int, _q: int, /) -> Cost:
        """Return the cost of `moment` for layers whose factors have p and q columns; the planner uses it."""
        return Cost()

    def with_gradient(self, x: Float[Tensor, "n p"], y: Float[Tensor, "n q"]) -> Tensor:
        """Compute `moment` with a gradient, for a measure that is not ``normalised``."""
        return torch.as_tensor(self.moment(self.cross_with_gradient(x, y)))

    def cross_with_gradient(self, x: Float[Tensor, "n p"], y: Float[Tensor, "n q"]) -> Cross[F]:
        """Prepare two layers, and compute their cross-moments, with operations that autograd supports."""
        recipe = self.recipe
        prepare: Callable[[Tensor], Any] = recipe.with_gradient if isinstance(recipe, DifferentiableRecipe) else recipe
        a, b = prepare(x), prepare(y)
        return Cross(a, b, a.rows(slice(None)).T @ b.rows(slice(None)))
