"""What a measure of similarity is: a recipe for one layer, and a comparison of two layers prepared by it.

The split is the whole design. What depends on one layer (centring, a decomposition, norms) happens once per layer, in a
`Recipe`; what depends on two layers happens in `Metric.block`, for many pairs at once, as matrix products.
"""

import dataclasses
import math
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, Literal, Protocol, TypeVar, overload, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, Float64, Int64
from numpy.typing import NDArray
from torch import Tensor

from repsim.errors import InvalidInputError, UndefinedValueError, UnreliableValueWarning
from repsim.labels import Form
from repsim.metrics.recipes.rows import Rows
from repsim.metrics.sweeps import Cross, here_and_now
from repsim.runtime.arrays import as_array, check_tensor, same_rows

Array = NDArray[Any]
Road = Literal["gram", "moments", "pairs"]
"""How all pairs are computed: docs/architecture.md, or `repsim.metrics.sweeps`."""
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


@runtime_checkable
class Factor(Protocol):
    """What a recipe makes of one layer: a frozen value that no pair ever changes."""

    @property
    def nbytes(self) -> int:
        """Bytes held, for whoever decides how many factors to keep."""


F = TypeVar("F", bound=Factor)
F_co = TypeVar("F_co", bound=Factor, covariant=True)


@runtime_checkable
class Recipe(Protocol[F_co]):
    """One layer -> one factor. Equal recipes give equal factors, so measures that name the same one share the work.

    A recipe may have a method ``covers(other)``: whether its factor serves those who asked for the other's. And one
    ``takes(n, p, itemsize)`` -> (floating-point operations, bytes that the factor holds), which a plan counts with, and
    with it ``aside(n, p, itemsize)`` -> bytes that preparing or comparing layers takes beside them, if these are many.
    """

    def __call__(self, x: Any, /) -> F_co:
        """Prepare one layer, (n, p) features; `UndefinedValueError` where it has nothing to compare (a constant one).

        The layer is a tensor, unless the recipe is a `StreamingRecipe`. The recipes of other forms
        (`Metric.recipe_for`) take what that form stores.
        """


@runtime_checkable
class StreamingRecipe(Recipe[F_co], Protocol[F_co]):
    """A recipe for layers that need not fit into memory: it takes any `Rows`, of which a tensor is one.

    What it finds out is a small state, which one process can tell another; calling it is both steps in one.
    """

    def fit(self, x: Rows, /) -> Any:
        """Find out what there is to know of a layer: the work."""

    def apply(self, x: Rows, state: Any, /) -> F_co:
        """Make the factor. Where x is no tensor it holds on to x, and reads it again."""


class Metric(ABC, Generic[F]):
    """A measure of how alike two representations are. Concrete measures are frozen dataclasses: parameters are fields.

    A subclass with a ``name`` is registered under it. It declares the class attributes below, implements `recipe` and
    `pair`, and may override `block` where many pairs are cheaper together. `repsim.testing.MetricContract` holds it to
    every word that it declares.
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
    """Of a distance: whether d(x, z) <= d(x, y) + d(y, z)."""
    paired: ClassVar[bool] = True
    """Whether it matters which sample of one layer is which of the other; otherwise two clouds are compared."""
    differentiable: ClassVar[bool] = True
    """Whether values of tensors that require gradients have gradients; where it is not smooth (a maximum, a
    neighbourhood), almost everywhere."""
    stochastic: ClassVar[bool] = False
    """Whether its value is a seeded random estimate."""
    extra: ClassVar[str | None] = None
    """The module that it needs, which comes with the extra of its group: ``pip install 'repsim-toolkit[topology]'``."""
    normalised: ClassVar[bool] = False
    """Of a measure that knows a road: whether a value is S_ab / sqrt(S_aa S_bb), and not S_ab."""

    registry: ClassVar[dict[str, type["Metric[Any]"]]] = {}
    __dataclass_fields__: ClassVar[dict[str, dataclasses.Field[Any]]]  # promised, so that type checkers know

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "name" in cls.__dict__:
            taken = cls.registry.setdefault(cls.name, cls)
            if taken.__qualname__ != cls.__qualname__ or taken.__module__ != cls.__module__:
                raise TypeError(f"two measures are named {cls.name!r}: {taken.__module__} and {cls.__module__}")

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

    def samples_needed(self, p: int, q: int) -> int | None:  # noqa: ARG002 - a hook: distances have no such scale
        """Samples from which on unrelated Gaussian layers, p and q features wide, score 0.2 at most on average.

        Of a distance: are, by chance, no closer than four fifths of what they would be with any number of samples. Of
        what compares clouds: from which on its value is more than that of a few samples. What p and q count is
        ``counted``. None where no number can be named.
        """
        return None

    def width(self, factor: F, features: int) -> int:
        """What `samples_needed` counts of a layer."""
        return self.diagnostics(factor).get(self.counted, features)

    def scarcity(self, n: int, p: int, q: int) -> str | None:
        """Say that n samples are fewer than are needed for layers that are p and q wide."""
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
        """Say once that n samples are too few for some of these pairs of widths: for how many, and why for the worst.

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

    def chance(self, a: F, b: F) -> Chance | None:  # noqa: ARG002 - a hook: of most measures it is not known
        """The chance level of these two layers, where it is known in closed form (docs/metrics.md)."""
        return None

    @property
    def min_samples(self) -> int:
        """With fewer samples than this the value is undefined or always the same."""
        return 4

    @property
    @abstractmethod
    def recipe(self) -> Recipe[F]:
        """How one layer is prepared."""

    def recipe_for(self, form: Form) -> Recipe[F]:
        """How one layer is prepared of which only this is stored; `UndefinedValueError` where that is not enough."""
        if form == "features":
            return self.recipe
        kept = {"grams": "Gram matrices", "sketches": "random projections"}[form]
        raise UndefinedValueError(
            f"{self.spec} needs the features themselves; this readout keeps only {kept}, which linear cka compares"
        )

    @property
    def roads(self) -> tuple[Road, ...]:
        """The ways to compute all pairs at once (`repsim.metrics.sweeps`); pairs: by `pair` alone."""
        return ("pairs",)

    @property
    def unbiased(self) -> bool:
        """Of the road "gram": whether Gram matrices are U-centred, and not centred twice."""
        return False

    def moment(self, cross: Cross[F]) -> Tensor | float:
        """Compare two prepared layers from the cross-moments of their ``rows``: of the road "moments"."""
        raise NotImplementedError

    def finish(self, values: Array) -> Array:
        """Of a road that sums: the values, of S_ab / sqrt(S_aa S_bb) or S_ab."""
        return values

    def value(self, a: F, b: F) -> Tensor:
        """Compare two prepared layers: of the road "pairs". A tensor without dimensions, which may have a gradient.

        `UndefinedValueError`, with the reason, where there is no value.
        """
        raise NotImplementedError

    def pair_flop(self, n: int, p: int, q: int) -> float:
        """Floating-point operations of a pair on the road "pairs", about; a plan counts with it."""
        return 2.0 * n * (p + q)

    def with_gradient(self, x: Float[Tensor, "n p"], y: Float[Tensor, "n q"]) -> Tensor:
        """Compare two layers by operations that autograd knows: of a measure that is ``differentiable``.

        Measures of the road "pairs" are made of such operations; the others, which sweep over tiles in place, state
        their formula once more.
        """
        return self.value(self.recipe(x), self.recipe(y))

    def pair(self, a: F, b: F) -> float:
        """Compare two prepared layers; `UndefinedValueError`, with the reason, where there is no value."""
        if self.roads == ("pairs",):
            return float(self.value(a, b))
        value = float(self.block([a], [b])[0, 0])
        if math.isnan(value):
            raise UndefinedValueError(self.reason(a, b))
        return value

    def reason(self, a: F, b: F) -> str:
        """Why these two have no value."""
        try:
            self.pair(a, b)
        except UndefinedValueError as error:
            return error.problem
        return "no reason given"

    def block(self, rows: Sequence[F], columns: Sequence[F]) -> Float64[np.ndarray, "rows columns"]:
        """Compare every row layer with every column layer. NaN exactly where `pair` raises `UndefinedValueError`."""
        if not rows or not columns:
            return np.empty((len(rows), len(columns)))
        if self.roads != ("pairs",):
            return here_and_now(rows, columns, self)
        values = np.full((len(rows), len(columns)), np.nan)
        for i, a in enumerate(rows):
            for j, b in enumerate(columns):
                try:
                    values[i, j] = self.pair(a, b)
                except UndefinedValueError:
                    continue  # stays NaN; whoever shows the block asks for the reason
        return values

    def permuted(
        self,
        rows: Sequence[F],  # noqa: ARG002 - a hook: most measures know nothing better
        columns: Sequence[F],  # noqa: ARG002
        orders: Int64[Tensor, "count n"],  # noqa: ARG002
        step: Callable[[], None],  # noqa: ARG002
    ) -> Float64[np.ndarray, "count rows columns"] | None:
        """Of a measure that knows a faster way than one `block` an order: all pairs, the columns' samples permuted.

        Value (k, a, b) is what `block` gives for rows[a] and columns[b] with its samples in the order orders[k]. Calls
        ``step`` once an order. None from a measure that knows no such way; `repsim.permuted` then makes the blocks.
        """
        return None

    def caution(self, a: F, b: F) -> str | None:  # noqa: ARG002 - a hook: most measures have nothing to say
        """Say why the value of this pair is defined but should not be trusted, and what n would be enough."""
        return None

    def remark(self, n: int) -> str | None:  # noqa: ARG002 - a hook, as above
        """Say what is to be known of all values over n samples."""
        return None

    def diagnostics(self, factor: F) -> dict[str, int]:  # noqa: ARG002 - a hook, as above
        """Numbers about one layer that belong beside the value (how many components were kept, say)."""
        return {}

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


def _from_numpy(array: Array, what: str) -> Tensor:
    """As a tensor: what torch has no word for (float128, big-endian, read-only, reversed) is copied to what it has."""
    if array.dtype.kind == "c":
        raise InvalidInputError(_COMPLEX)
    if array.dtype.kind in "iu" and array.size and max(abs(int(array.min())), abs(int(array.max()))) > 2**53:
        raise InvalidInputError(
            f"{what} holds whole numbers beyond 2**53, which float64 does not tell apart; take them as categories"
        )
    if array.dtype.itemsize > 8:
        array = array.astype(np.float64)
    if min(array.strides, default=1) < 0:  # of a single column this is contiguous to numpy, but not to torch
        array = array.copy()
    return torch.from_numpy(np.require(array, array.dtype.newbyteorder("="), ["C_CONTIGUOUS", "WRITEABLE"]))


_COMPLEX = "complex features cannot be compared; take their real and imaginary parts as features"


def as_samples(x: Any, min_samples: int = 1, what: str = "x") -> Tensor:
    """Take an array of any library as (n samples, p features) in a floating dtype, or say what is wrong with it.

    float64 stays float64 and is compared in float64; everything smaller is compared in float32, with sums in float64.
    Masked and sparse arrays, objects, text and dates are refused (`repsim.runtime.arrays.as_array`).
    """
    if isinstance(x, Tensor):
        check_tensor(x, what)
        tensor = x
    else:
        tensor = _from_numpy(as_array(x, what), what)
    if tensor.ndim != 2:
        raise InvalidInputError(
            f"expected an array of shape (n samples, p features), got {tuple(tensor.shape)}; "
            "reduce or flatten everything after the first axis"
        )
    n, p = tensor.shape
    if n < min_samples:
        raise InvalidInputError(f"{n} samples are too few: this measure needs at least {min_samples}")
    if p == 0:
        raise InvalidInputError("the layer has no features (p = 0)")
    if tensor.is_complex():
        raise InvalidInputError(_COMPLEX)
    if tensor.is_floating_point() and tensor.dtype.itemsize < 4:
        tensor = tensor.float()
    elif not tensor.is_floating_point():
        tensor = tensor.double()
    finite = torch.isfinite(tensor)
    if not finite.all():
        bad = torch.nonzero(~finite)
        raise InvalidInputError(f"{len(bad)} values are NaN or infinite, the first in sample {int(bad[0, 0])}")
    return tensor
