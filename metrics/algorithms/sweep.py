"""Base class of all algorithms: a sum over units, from which the matrix of every measure is computed."""

import functools
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Generic, Protocol, TypeVar, runtime_checkable

import numpy as np
from jaxtyping import Float64

Sums = Float64[np.ndarray, "..."]
M = TypeVar("M")


class Sweep(ABC, Generic[M]):
    """Comparison of all pairs of ``rows`` and ``columns`` under one or several measures."""

    def __init__(self, rows: Sequence[Any], columns: Sequence[Any], measures: Sequence[M]) -> None:
        self.measures = tuple(measures)
        row_ids = {id(layer) for layer in rows}
        self.height = len(rows)
        overlap = any(id(layer) in row_ids for layer in columns)
        self.layers = [*rows, *(layer for layer in columns if id(layer) not in row_ids)]
        """All layers without duplicates, those of the rows first."""
        self.first = 0 if overlap else self.height
        """Index in `layers` of the first column."""
        place = {id(layer): k for k, layer in enumerate(self.layers)}
        self._columns = [place[id(layer)] - self.first for layer in columns]

    @property
    def width(self) -> int:
        """Number of columns of a part."""
        return len(self.layers) - self.first

    @property
    def size(self) -> int:
        """Length of a part: for each measure the pairs of rows and columns, and each layer with itself."""
        return len(self.measures) * (self.height * self.width + len(self.layers))

    @property
    @abstractmethod
    def units(self) -> int:
        """Number of units."""

    @property
    def order(self) -> Sequence[int]:
        """Order in which units are best computed, because neighbouring units read the same data."""
        return range(self.units)

    @abstractmethod
    def parts(self, units: Iterable[int]) -> Iterator[Sums]:
        """Yield the sums of these units, one after the other: a vector of `size` numbers for each."""

    def run(self) -> list[Float64[np.ndarray, "rows columns"]]:
        """Compute all units in this process, and return the matrix of every measure."""
        parts = dict(zip(self.order, self.parts(self.order), strict=True))
        return self.values([parts[unit] for unit in range(self.units)])

    def values(self, parts: Sequence[Sums]) -> list[Float64[np.ndarray, "rows columns"]]:
        """Return the matrix of every measure, from the parts of all units in their order."""
        total = functools.reduce(np.add, parts, np.zeros(self.size))
        matrices = []
        for measure, sums in zip(self.measures, total.reshape(len(self.measures), -1), strict=True):
            products = sums[: self.height * self.width].reshape(self.height, self.width)[:, self._columns]
            matrices.append(self._finished(measure, products, sums[self.height * self.width :]))
        return matrices

    @abstractmethod
    def _finished(
        self, measure: M, products: Float64[np.ndarray, "rows columns"], squares: Float64[np.ndarray, " layers"]
    ) -> Float64[np.ndarray, "rows columns"]:
        """Return the values of a measure, from the sums of all pairs and those of each layer with itself."""


@runtime_checkable
class SummedMeasure(Protocol):
    """Measure that an algorithm with sums S_ab supports."""

    @property
    def normalised(self) -> bool:
        """Whether a value is S_ab / sqrt(S_aa S_bb), and not S_ab."""

    def finish(self, values: Sums, /) -> Sums:
        """Return values from S_ab / sqrt(S_aa S_bb), or from S_ab."""


S = TypeVar("S", bound=SummedMeasure)


class SummedSweep(Sweep[S]):
    """Algorithm whose units give sums S_ab, which are normalised at the end."""

    def _finished(
        self, measure: S, products: Float64[np.ndarray, "rows columns"], squares: Float64[np.ndarray, " layers"]
    ) -> Float64[np.ndarray, "rows columns"]:
        if measure.normalised:
            norms = np.sqrt(np.where(squares > self._noise(measure), squares, np.nan))
            column_norms = norms[[self.first + k for k in self._columns]]
            products = products / norms[: self.height, None] / column_norms
        return measure.finish(products)

    @abstractmethod
    def _noise(self, measure: S) -> Float64[np.ndarray, " layers"]:
        """Return the bound for S_aa, up to which it is only rounding errors and the layer has no value."""
