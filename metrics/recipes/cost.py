"""Cost and memory of preparing and comparing layers, computed from their shapes."""

from dataclasses import dataclass

Amount = int | float


@dataclass(frozen=True)
class LayerSize:
    """Shape and item size of a layer."""

    n: int
    """Number of samples."""
    p: int
    """Number of features per sample."""
    itemsize: int = 4
    """Bytes per value in computations: half precision is converted to float32 when it is read."""


@dataclass(frozen=True)
class Cost:
    """Amount of work, by the resource that limits it."""

    flop32: Amount = 0
    """Floating-point operations of products in float32."""
    flop64: Amount = 0
    """Floating-point operations of products in float64."""
    decomposed: Amount = 0
    """Operations of eigenvalue and singular value decompositions, by the usual counts: 9 m^3 for all eigenvectors."""
    touched: Amount = 0
    """Values that are processed one by one in float64."""
    added: Amount = 0
    """Values of float32 products that are added to float64 sums."""
    read: Amount = 0
    """Bytes read from the stores."""
    reduced: Amount = 0
    """Values of the matrices that are decomposed, m^2: most of the time of small decompositions."""
    summed: Amount = 0
    """Values of cross-moments in float64, in memory that is allocated for them."""
    sorted: Amount = 0
    """Comparisons of sorting m values, m log2 m."""
    calls: Amount = 0
    """Calls of functions on small arrays, whose time does not depend on the size."""

    @staticmethod
    def of_eigenvalues(m: Amount, share: float = 1.0) -> "Cost":
        """Return the cost of the eigenvectors of a symmetric m x m matrix in float64, or of a ``share`` of that."""
        return Cost(decomposed=9.0 * share * m**3, reduced=share * m**2, calls=1)

    @staticmethod
    def of_products(flop: Amount, itemsize: int) -> "Cost":
        """Return the cost of matrix products with this number of operations, in float32 or float64."""
        return Cost(flop32=flop) if itemsize <= 4 else Cost(flop64=flop)

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(*(a + b for a, b in zip(vars(self).values(), vars(other).values(), strict=True)))

    def __rmul__(self, times: Amount) -> "Cost":
        return Cost(*(times * amount for amount in vars(self).values()))

    def seconds(self, rates: "Cost") -> float:
        """Return the seconds at these rates per second; reading runs in parallel with everything else."""
        reading = self.read / rates.read
        pairs = zip(vars(self).values(), vars(rates).values(), strict=True)
        return float(max(reading, sum(amount / rate for amount, rate in pairs if amount) - reading))


def outside_cache(n: int) -> float:
    """Return how much of an n x n matrix in float64 is outside of the cache when it is needed, from 0 to 1.

    Rates are measured on small arrays. Operations on larger ones take longer, as measured up to n = 10,000.
    """
    return min(1.0, n / 10_000)


NOTHING = Cost()
NOMINAL = Cost(
    flop32=2e11, flop64=1e11, decomposed=5e10, touched=1e9, added=2.5e9, read=1e9, reduced=3e7, summed=2.5e9,
    sorted=2e9, calls=3e5,
)  # fmt: skip
"""Rates per second for choosing an algorithm; only their ratios matter, which are similar on all machines."""


@dataclass(frozen=True)
class Memory:
    """Bytes for one layer, by how long they are needed."""

    factor: int
    """Bytes of the prepared layer, if it is kept in memory and not read again on demand."""
    state: int = 0
    """Bytes that stay until the end, also if the layer itself is not in memory."""
    workspace: int = 0
    """Bytes needed only while this layer is prepared."""
