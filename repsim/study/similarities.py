"""Hold the similarities of some layers with others, which is all that the indices of a block of models depend on."""

from dataclasses import dataclass
from functools import cached_property
from typing import Self

import numpy as np
from jaxtyping import Float64, Int64


@dataclass(frozen=True, eq=False)
class Similarities:
    """Debiased CKA of the layers of rows with those of columns and, with classes, similarity within classes, stacked.

    Both sides have the controls that they are compared given: those of the input, and untrained twins.
    """

    values: Float64[np.ndarray, "*batch kinds rows columns"]
    own_rows: Float64[np.ndarray, "*batch kinds rows"]
    """Similarity of each row with itself: 1 (NaN for a layer without a value), or the share of energy within classes.
    """
    own_columns: Float64[np.ndarray, "*batch kinds columns"]
    rows: Int64[np.ndarray, " rows"]
    """Positions of the rows among all layers and controls of the study."""
    columns: Int64[np.ndarray, " columns"]

    @classmethod
    def whole(cls, matrices: Float64[np.ndarray, "*batch kinds L L"]) -> Self:
        """Return the similarities of all layers and controls with one another."""
        everything = np.arange(matrices.shape[-1])
        own = np.diagonal(matrices, axis1=-2, axis2=-1)
        return cls(matrices, own, own, everything, everything)

    @cached_property
    def row_of(self) -> Int64[np.ndarray, " L"]:
        """Row of each position among all layers; -1 if it is not among the rows."""
        return _places(self.rows, self.size)

    @cached_property
    def column_of(self) -> Int64[np.ndarray, " L"]:
        """Column of each position among all layers; -1 if it is not among the columns."""
        return _places(self.columns, self.size)

    def places(
        self, a: Int64[np.ndarray, "*shape"], b: Int64[np.ndarray, "*other"]
    ) -> tuple[Int64[np.ndarray, "*places"], Int64[np.ndarray, "*places"]]:
        """Return the rows and columns of pairs of positions; as values are symmetric, either layer may be the row."""
        a, b = np.broadcast_arrays(a, b)
        swapped = (self.row_of[a] < 0) | (self.column_of[b] < 0)
        return self.row_of[np.where(swapped, b, a)], self.column_of[np.where(swapped, a, b)]

    @property
    def size(self) -> int:
        """Largest position, plus 1."""
        return int(max(self.rows.max(), self.columns.max())) + 1


def _places(positions: Int64[np.ndarray, " k"], size: int) -> Int64[np.ndarray, " L"]:
    places = np.full(size, -1)
    places[positions] = np.arange(len(positions))
    return places
