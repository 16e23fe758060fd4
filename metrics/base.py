"""What a measure of similarity is: a recipe for one layer, and a comparison of two layers prepared by it.

The split is the whole design. What depends on one layer (centring, a decomposition, norms) happens once per layer, in a
`Recipe`; what depends on two layers happens for many pairs at once, by one of three algorithms. There is a kind of
metric for each of them: `GramMetric`, `MomentMetric` and `PairMetric`. A measure that knows two extends both.
"""

import dataclasses
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
Group = Literal["rsm", "cca", "alignment", "neighbours", "statistics", "topology"]
"""Families of the ReSi benchmark (Klabunde et al. 2025): what of a representation is compared."""


@dataclass(frozen=True)
class Chance:
    """What a measure gives where the samples of one layer are permuted, so that nothing but chance makes them alike."""

    mean: float
    sd: float | None = None
    """Standard deviation over permutations, where it is known."""
    exact: bool = True
    """Whether the mean is exact for any data; otherwise it is that of Gaussian features."""


F = TypeVar("F", bound=Factor)


class Metric(ABC, Generic[F]):
    """A measure of how alike two representations are. Concrete measures are frozen dataclasses: parameters are fields.

    Extend one of its kinds: `PairMetric`, `GramMetric` or `MomentMetric`. A subclass with a ``name`` is registered
    under it. It declares the class attributes below, and has a `recipe` and what its kind asks for.
    `repsim.testing.MetricContract` holds it to every word that it declares.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    """The name in full, as it stands on a figure."""
    formula: ClassVar[str]
    citation: ClassVar[str]
    group: ClassVar[Group]
    question: ClassVar[str]
    """What its value answers, as a question."""
    needs: ClassVar[str]
    """How many samples its value takes to mean anything, in words; `samples_needed` is the number, and `scarcity` warns
    of fewer."""
    counted: ClassVar[str] = "features"
    """What of a layer decides how many samples that is: its features, or one of its `diagnostics`."""
    others: ClassVar[Mapping[str, str]] = {}
    """Known implementations that compute something else: what, and why we do not."""
    sense: ClassVar[Literal["similarity", "distance"]]
    """A similarity grows with likeness, a distance shrinks."""
    symmetric: ClassVar[bool]
    triangle: ClassVar[bool] = False
    """Whether d(x, z) <= d(x, y) + d(y, z), for a distance."""
    paired: ClassVar[bool] = True
    """Whether it matters which sample of one layer is which of the other; otherwise two clouds are compared."""
    differentiable: ClassVar[bool] = True
    """Whether values of tensors that require gradients have gradients; where it is not smooth (a maximum, a
    neighbourhood), almost everywhere."""
    stochastic: ClassVar[bool] = False
    """Whether its value is a seeded random estimate."""
    extra: ClassVar[str | None] = None
    """The module that it needs, which comes with the extra of its group: ``pip install 'repsim-toolkit[topology]'``."""

    registry: ClassVar[dict[str, type["Metric[Any]"]]] = {}
    __dataclass_fields__: ClassVar[dict[str, dataclasses.Field[Any]]]  # promised, so that type checkers know

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "name" in cls.__dict__:
            taken = cls.registry.setdefault(cls.name, cls)
            if taken.__qualname__ != cls.__qualname__ or taken.__module__ != cls.__module__:
                raise TypeError(f"two measures are named {cls.name!r}: {taken.__module__} and {cls.__module__}")
        if cls.__module__ != __name__ and Metric in cls.__bases__ and "value" in cls.__dict__:  # as of repsim 0.1
            warnings.warn(
                f"{cls.__qualname__} extends Metric: extend repsim.metrics.base.PairMetric, which has all that it uses",
                DeprecationWarning,
                stacklevel=3,
            )
            cls.__bases__ = tuple(PairMetric if base is Metric else base for base in cls.__bases__)

    @property
    @abstractmethod
    def bounds(self) -> tuple[float, float]:
        """The smallest and the largest value that this measure can take."""

    @property
    @abstractmethod
    def invariances(self) -> frozenset[Invariance]:
        """What may be done to the features of either side without changing the value."""

    @property
    def invariances_of_y(self) -> frozenset[Invariance]:
        """What may be done to the second layer: the same, and more where the measure is asymmetric."""
        return self.invariances

    def samples_needed(self, p: int, q: int) -> int | None:
        """Samples from which on unrelated Gaussian layers, p and q features wide, score 0.2 at most on average.

        For a distance: are, by chance, no closer than four fifths of what they would be with any number of samples. For
        a measure that compares clouds: from which on its value is more than that of a few samples. What p and q count
        is ``counted``. None where no number can be named.
        """

    def width(self, factor: F, features: int) -> int:
        """What `samples_needed` counts of a layer."""
        return self.diagnostics(factor).get(self.counted, features)

    def scarcity(self, n: int, p: int, q: int) -> str | None:
        """Warning that n samples are fewer than are needed for layers that are p and q wide, or None."""
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
        """One warning for many pairs of widths: for how many of them n samples are too few, and why for the worst.

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
        """The chance level of these two layers, where it is known in closed form (docs/metrics.md)."""

    @property
    def min_samples(self) -> int:
        """With fewer samples than this the value is undefined or always the same."""
        return 4

    def caution(self, a: F, b: F) -> str | None:
        """Why the value of this pair is defined but should not be trusted, and what n would be enough."""

    def remark(self, n: int) -> str | None:
        """What there is to know of all values over n samples."""

    def diagnostics(self, _factor: F, /) -> dict[str, int]:
        """Numbers about one layer that belong beside the value (how many components were kept, say)."""
        return {}

    @property
    @abstractmethod
    def recipe(self) -> Recipe[F]:
        """How one layer is prepared: a `Recipe`, or a plain function."""

    def recipe_for(self, form: Form) -> Recipe[F]:
        """How one layer is prepared of which only this is stored; `UndefinedValueError` where that is not enough."""
        if form == "features":
            recipe = self.recipe
            return recipe if isinstance(recipe, Recipe) else FunctionRecipe(recipe)
        kept = {"grams": "Gram matrices", "sketches": "random projections"}[form]
        raise UndefinedValueError(
            f"{self.spec} needs the features themselves; this readout keeps only {kept}, which linear cka compares"
        )

    @property
    @abstractmethod
    def algorithms(self) -> tuple[Algorithm, ...]:
        """The algorithms that compute all pairs at once (`repsim.metrics.algorithms`)."""

    @abstractmethod
    def pair(self, a: F, b: F) -> float:
        """Compare two prepared layers; `UndefinedValueError`, with the reason, where there is no value."""

    @abstractmethod
    def block(self, rows: Sequence[F], columns: Sequence[F]) -> Float64[np.ndarray, "rows columns"]:
        """Compare every row layer with every column layer. NaN exactly where `pair` raises `UndefinedValueError`."""

    @abstractmethod
    def reason(self, a: F, b: F) -> str:
        """Why these two have no value."""

    @abstractmethod
    def with_gradient(self, x: Float[Tensor, "n p"], y: Float[Tensor, "n q"]) -> Tensor:
        """Compare two layers by operations that autograd knows, for a measure that is ``differentiable``."""

    @property
    def spec(self) -> str:
        """The spec string that makes this very metric: the name, and the options that differ from their defaults."""
        options = [
            f"{field.name}={getattr(self, field.name)}"
            for field in dataclasses.fields(self)
            if getattr(self, field.name) != field.default
        ]
        return ":".join([self.name, ",".join(options)]) if options else self.name

    @property
    def label(self) -> str:
        """The name as it stands on a colour bar: the title, and the parameters in words.

        >>> import repsim.metrics
        >>> repsim.metrics.get("cka").label, repsim.metrics.get("svcca").label
        ('CKA (linear, debiased)', 'SVCCA (variance=0.99, rho)')
        """
        return self.label_with()

    def label_with(self, *notes: str) -> str:
        """The label, with more to say than the parameters do.

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

        The value is a float; but a tensor with a gradient where x or y is one that requires it, so that a measure can
        be a loss.
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
        few = self.scarcity(len(x), self.width(a, x.shape[1]), self.width(b, y.shape[1]))
        for caution in (self.caution(a, b), few):
            if caution:
                warnings.warn(f"{self.spec}: {caution}", UnreliableValueWarning, stacklevel=2)
        return self.pair(a, b)


class PairMetric(Metric[F]):
    """A metric that compares two prepared layers: states a `value`, for one pair after the other."""

    @property
    def algorithms(self) -> tuple[Algorithm, ...]:
        """One pair after the other."""
        return ("pairs",)

    @abstractmethod
    def value(self, a: F, b: F) -> Tensor:
        """Compare two prepared layers: a tensor without dimensions, which may have a gradient.

        `UndefinedValueError`, with the reason, where there is no value.
        """

    def pair_flop(self, n: int, p: int, q: int) -> float:
        """Floating-point operations of a pair, about; a plan counts with it."""
        return 2.0 * n * (p + q)

    def pair(self, a: F, b: F) -> float:
        """Compare two prepared layers; `UndefinedValueError`, with the reason, where there is no value."""
        return float(self.value(a, b))

    def reason(self, a: F, b: F) -> str:
        """What `pair` raises."""
        try:
            self.pair(a, b)
        except UndefinedValueError as error:
            return error.problem
        return "no reason given"

    def block(self, rows: Sequence[F], columns: Sequence[F]) -> Float64[np.ndarray, "rows columns"]:
        """Every pair, one after the other; override it where many pairs are cheaper together."""
        values = np.full((len(rows), len(columns)), np.nan)
        for i, a in enumerate(rows):
            for j, b in enumerate(columns):
                try:
                    values[i, j] = self.pair(a, b)
                except UndefinedValueError:
                    continue  # stays NaN; whoever shows the block asks for the reason
        return values

    def with_gradient(self, x: Float[Tensor, "n p"], y: Float[Tensor, "n q"]) -> Tensor:
        """By `value`, where the recipe uses operations that autograd knows, too."""
        return self.value(self.recipe(x), self.recipe(y))


class PermutedAtOnce(ABC, Generic[F]):
    """A metric with a faster way to permute samples than one `Metric.block` an order."""

    @abstractmethod
    def permuted(
        self, rows: Sequence[F], columns: Sequence[F], orders: Int64[Tensor, "count n"], step: Callable[[], None]
    ) -> Float64[np.ndarray, "count rows columns"]:
        """All pairs, the columns' samples permuted.

        Value (k, a, b) is what `Metric.block` gives for rows[a] and columns[b] with its samples in the order orders[k].
        Calls ``step`` once an order.
        """


class _SummedMetric(Metric[F]):
    """A metric whose value follows from sums S_ab over units of work."""

    normalised: ClassVar[bool] = False
    """Whether a value is S_ab / sqrt(S_aa S_bb), and not S_ab."""

    def finish(self, values: Array) -> Array:
        """Values, from S_ab / sqrt(S_aa S_bb) or S_ab."""
        return values

    def block(self, rows: Sequence[F], columns: Sequence[F]) -> Float64[np.ndarray, "rows columns"]:
        """All pairs at once, by the algorithm that takes fewer operations."""
        if not rows or not columns:
            return np.empty((len(rows), len(columns)))
        return compare_in_memory(rows, columns, self)

    def pair(self, a: F, b: F) -> float:
        """Compare two prepared layers; `UndefinedValueError`, with the reason, where there is no value."""
        value = float(self.block([a], [b])[0, 0])
        if math.isnan(value):
            raise UndefinedValueError(self.reason(a, b))
        return value

    @override
    def reason(self, a: F, b: F) -> str:
        """That nothing is left to divide by."""
        return "nothing but rounding errors is left of a layer"


class GramMetric(_SummedMetric[F]):
    """A metric of inner products of centred Gram matrices, S_ab = <A, B>; its recipe is a `KernelRecipe`."""

    @property
    def algorithms(self) -> tuple[Algorithm, ...]:
        """Gram space."""
        return ("gram",)

    @property
    @abstractmethod
    def unbiased(self) -> bool:
        """Whether Gram matrices are U-centred, and not centred twice."""


class MomentMetric(_SummedMetric[F]):
    """A metric of cross-moments X'Y of two prepared layers; its recipe makes a `MomentFactor`."""

    @property
    def algorithms(self) -> tuple[Algorithm, ...]:
        """Feature space."""
        return ("moments",)

    @abstractmethod
    def moment(self, cross: Cross[F]) -> Tensor | float:
        """S_ab of two prepared layers, from their cross-moments."""

    def moment_cost(self, _p: int, _q: int, /) -> Cost:
        """Work of `moment` for layers whose factors have p and q columns; a plan counts with it."""
        return Cost()

    def with_gradient(self, x: Float[Tensor, "n p"], y: Float[Tensor, "n q"]) -> Tensor:
        """By `moment`, for a measure that is not ``normalised``."""
        return torch.as_tensor(self.moment(self.cross_with_gradient(x, y)))

    def cross_with_gradient(self, x: Float[Tensor, "n p"], y: Float[Tensor, "n q"]) -> Cross[F]:
        """Two layers and their cross-moments, by operations that autograd knows."""
        recipe = self.recipe
        prepare: Callable[[Tensor], Any] = recipe.with_gradient if isinstance(recipe, DifferentiableRecipe) else recipe
        a, b = prepare(x), prepare(y)
        return Cross(a, b, a.rows(slice(None)).T @ b.rows(slice(None)))
