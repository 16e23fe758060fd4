"""How much work preparing and comparing layers is, by what limits it: stated from shapes, before anything is read."""

import dataclasses
from dataclasses import dataclass

Amount = int | float


@dataclass(frozen=True)
class LayerSize:
    """What a recipe knows of a layer before it is read."""

    n: int
    """Samples."""
    p: int
    """Values of a sample."""
    itemsize: int = 4
    """Bytes of a value as it is computed with: half precision is widened when it is read."""


@dataclass(frozen=True)
class Cost:
    """Amount of work, by what limits it."""

    flop32: Amount = 0
    """In float32 products."""
    flop64: Amount = 0
    """In float64 products."""
    decomposed: Amount = 0
    """In eigenvalue and singular value decompositions, as if each were the products it is often counted as."""
    touched: Amount = 0
    """Values that pass through float64, one after the other."""
    added: Amount = 0
    """Values of float32 products that are added to float64 sums."""
    read: Amount = 0
    """Bytes from the stores."""

    @staticmethod
    def of_products(flop: Amount, itemsize: int) -> "Cost":
        """Cost of matrix products of so many operations, in float32 or in float64."""
        return Cost(flop32=flop) if itemsize <= 4 else Cost(flop64=flop)

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(*(a + b for a, b in zip(dataclasses.astuple(self), dataclasses.astuple(other), strict=True)))

    def __rmul__(self, times: int) -> "Cost":
        return Cost(*(times * amount for amount in dataclasses.astuple(self)))

    def seconds(self, rates: "Cost") -> float:
        """How long it takes at these rates, a second of each: one thing after the other, and reading beside them."""
        reading = self.read / rates.read
        pairs = zip(dataclasses.astuple(self), dataclasses.astuple(rates), strict=True)
        return float(max(reading, sum(amount / rate for amount, rate in pairs if amount) - reading))


NOTHING = Cost()
NOMINAL = Cost(flop32=2e11, flop64=1e11, decomposed=5e10, touched=1e9, added=2.5e9, read=1e9)
"""Rates a second by which algorithms are weighed: only their proportions matter, much the same on every machine."""


@dataclass(frozen=True)
class Memory:
    """Bytes that one layer takes, by how long they are needed."""

    factor: int
    """Of the prepared layer, where it is kept in memory and not read again as it is needed."""
    state: int = 0
    """That stay until the end, wherever the layer itself is."""
    workspace: int = 0
    """While this layer is prepared, beside everything else."""
