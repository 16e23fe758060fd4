"""Activations that are read in runs of samples, and statistics that are computed in one pass.

A layer of 50,000 samples need not fit into memory, because recipes and algorithms request rows. Tensors and arrays in
files have this interface, and so has `Centred`, which is computed from them.
"""

import functools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar, runtime_checkable

import torch
from jaxtyping import Bool, Float, Float64, Int64
from torch import Tensor

from repsim.errors import UndefinedValueError
from repsim.runtime import tuning
from repsim.runtime.arrays import is_finite
from repsim.runtime.threads import map_in_threads

T = TypeVar("T")
_LARGEST = 2.0**1000
"""Limit for values in float64, above which differences, sums or squares would overflow."""


@runtime_checkable
class Rows(Protocol):
    """Activations (n, p): ``rows[i]`` returns the samples of a slice, or of an index tensor, as a tensor."""

    @property
    def shape(self) -> Sequence[int]:
        """Shape (n, p)."""

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of ``rows[i]``."""

    @property
    def device(self) -> torch.device:
        """Device of ``rows[i]``."""

    def __getitem__(self, rows: "slice | Tensor", /) -> Tensor:
        """Return the activations of these samples."""


def float64_device(device: torch.device) -> torch.device:
    """Return the device for float64 computations: the CPU for mps, which has no float64; otherwise the same device."""
    return torch.device("cpu") if device.type == "mps" else device


def pieces(x: Rows) -> Iterator[slice]:
    """Yield runs of samples of a size that fits into the cache."""
    n, p = x.shape
    return cut(n, max(1, tuning.current().piece // max(1, p)))


def cut(n: int, size: int, start: int = 0) -> Iterator[slice]:
    """Cut n samples into as few runs of at most ``size`` as there can be, of equal lengths.

    Lengths are multiples of 16 where that needs no further run: products of such matrices are a little faster.

    >>> [(i.start, i.stop) for i in cut(5, 3)]
    [(0, 3), (3, 5)]
    >>> [(i.start, i.stop) for i in cut(100, 50)], [(i.start, i.stop) for i in cut(100, 64)]
    ([(0, 50), (50, 100)], [(0, 64), (64, 100)])
    """
    if n <= 0:
        return
    steps = -(-n // size)
    length = -(-n // steps)
    if -(-length // 16) * 16 <= size:
        length = -(-length // 16) * 16
    for k in range(0, n, length):
        yield slice(start + k, start + min(n, k + length))


def all_finite(x: Float[Tensor, "n p"]) -> bool:
    """Return whether no value is NaN or infinite."""
    return is_finite(x) if x.device.type != "cpu" else all(map_pieces(lambda i: is_finite(x[i]), x, zip(pieces(x))))


def column_ranges(x: Rows) -> tuple[Float64[Tensor, " p"], Float64[Tensor, " p"], Float64[Tensor, " p"]]:
    """Return the mean, the smallest and the largest value of every column, in one pass in float64.

    The mean of a constant column is exact. Values of float32 have 24 digits and float64 has 53, so that sums of up to
    2^29 equal values are not rounded, nor those of values that hardly differ. Values of float64 are summed relative to
    the first sample.

    Raises `UndefinedValueError` if values are too large to be added.
    """
    place = float64_device(x.device)
    first = x[:1].to(place, torch.float64)[0] if x.dtype == torch.float64 else None

    def of_piece(i: slice) -> tuple[Tensor, Tensor, Tensor]:
        piece = x[i].to(place)
        return column_sums(piece, minus=first), piece.amin(0), piece.amax(0)

    totals, lows, highs = zip(*map_pieces(of_piece, x, zip(pieces(x))), strict=True)
    n, total = x.shape[0], functools.reduce(torch.add, totals)
    low, high = functools.reduce(torch.minimum, lows).double(), functools.reduce(torch.maximum, highs).double()
    # the same sum for float64 and float32, where both are exact, as of whole numbers
    mean = total / n if first is None else torch.where(total == 0, first, (total + first * n) / n)
    largest = float(torch.maximum(high, -low).max())
    if largest > _LARGEST:
        raise UndefinedValueError(
            f"the layer has values as large as {largest:.1e}, which overflow in float64: scale them down"
        )
    return mean, low, high


def varies(low: Float64[Tensor, " p"], high: Float64[Tensor, " p"], dtype: torch.dtype) -> Bool[Tensor, " p"]:
    """Return whether the values of a column span more than one rounding step of the dtype of the layer."""
    return high - low > torch.finfo(dtype).eps * torch.maximum(high, -low)


def column_means(x: Rows) -> tuple[Float64[Tensor, " p"], float]:
    """Return the mean of every column, and the largest absolute value after centring.

    Raises `UndefinedValueError` for a constant layer, in which no column `varies`.
    """
    mean, low, high = column_ranges(x)
    if not varies(low, high, x.dtype).any():
        raise constant_layer()
    return mean, float(torch.maximum(high - mean, mean - low).max())


def constant_layer() -> UndefinedValueError:
    """Return the error for a layer in which no column varies."""
    return UndefinedValueError(
        "the layer is constant: every sample has the same features, so there is nothing to compare"
    )


@dataclass(frozen=True, eq=False)
class Centred:
    """Activations minus their column means, in units of ``scale``: computed in float64, then rounded to ``dtype``.

    With ``rounded_mean``, the means are rounded before they are subtracted, which takes a fifth of the time. All rows
    are then shifted by the same rounding error, so only use it where such a shift changes nothing.
    """

    source: Rows
    mean: Float64[Tensor, " p"]
    scale: float
    dtype: torch.dtype
    rounded_mean: bool = False

    @property
    def shape(self) -> Sequence[int]:
        """Shape (n, p)."""
        return self.source.shape

    @property
    def device(self) -> torch.device:
        """Device of the source."""
        return self.source.device

    def exact(self, rows: "slice | Tensor") -> Float64[Tensor, "rows p"]:
        """Return rows in float64, before rounding."""
        piece = self.source[rows].to(self.mean.device)
        return piece.to(torch.float64, copy=True).sub_(self.mean).div_(self.scale)

    def __getitem__(self, rows: "slice | Tensor") -> Float[Tensor, "rows p"]:
        n, p = self.shape
        count = len(range(n)[rows]) if isinstance(rows, slice) else len(rows)
        result = torch.empty(count, p, dtype=self.dtype, device=self.device)
        self.write(rows, result)
        return result

    def write(
        self,
        rows: "slice | Tensor",
        out: Float[Tensor, "rows p"] | None,
        norms: Float64[Tensor, " rows"] | None = None,
    ) -> None:
        """Compute rows in float64 and write them into ``out`` after rounding, and their norms after it into ``norms``.

        A few rows at a time are in float64, so that they stay in the cache. With ``rounded_mean``, norms have the
        precision of ``dtype``.
        """
        if self.rounded_mean:
            self._write_rounded(rows, out, norms)
            return
        exponent = math.frexp(self.scale)[0] == 0.5  # then a product with 1 / scale is exact
        shift = self.mean / -self.scale

        def of_piece(place: slice, part: "slice | Tensor") -> None:
            for i, exact in self._widened(part):
                if exponent:
                    torch.add(shift, exact, alpha=1 / self.scale, out=exact)
                else:
                    exact.sub_(self.mean).div_(self.scale)
                target = slice(place.start + i.start, place.start + i.stop)
                if out is not None and out.device == exact.device:
                    rounded = out[target].copy_(exact)
                else:
                    rounded = exact.to(self.dtype)
                    if out is not None:
                        out[target] = rounded
                if norms is not None:
                    torch.linalg.vector_norm(exact.copy_(rounded), dim=1, out=norms[target])

        map_pieces(of_piece, self.source, pieces_of(self, rows))

    def _write_rounded(
        self, rows: "slice | Tensor", out: Float[Tensor, "rows p"] | None, norms: Float64[Tensor, " rows"] | None
    ) -> None:
        """Do the same as `write` without float64; the scale is 1 and the source has the right dtype."""
        mean = self.mean.to(self.device, self.dtype)

        def of_piece(place: slice, part: "slice | Tensor") -> None:
            if out is not None and isinstance(self.source, Tensor) and isinstance(part, Tensor):
                centred = torch.index_select(self.source, 0, part, out=out[place]).sub_(mean)
            else:
                centred = torch.sub(self.source[part], mean, out=None if out is None else out[place])
            if norms is not None:
                norms[place] = torch.linalg.vector_norm(centred, dim=1).to(norms.device)

        map_pieces(of_piece, self.source, pieces_of(self, rows))

    def _widened(self, rows: "slice | Tensor") -> Iterator[tuple[slice, Tensor]]:
        """Yield runs of these rows of the source in float64."""
        if isinstance(self.source, Tensor) and isinstance(rows, Tensor) and self.device == self.mean.device:
            return widened(self.source, rows=rows)
        return widened(self.source[rows].to(self.mean.device))


def direction(x: Float[Tensor, "*rows p"]) -> Float64[Tensor, "*rows p"]:
    """Return every row divided by its norm; first by its largest value, so that no square overflows."""
    x = x.to(float64_device(x.device)).to(torch.float64)
    x = x / x.detach().abs().amax(-1, keepdim=True)
    unit: Tensor = x / torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    return unit


def widened(
    x: Tensor, *, rows: Int64[Tensor, " rows"] | None = None, minus: Float64[Tensor, " p"] | None = None
) -> Iterator[tuple[slice, Tensor]]:
    """Yield runs of some or all rows in float64, minus a row if there is one; use each before requesting the next one.

    All runs share one array, which on a CPU is small enough for the cache of a core: new arrays would cost more than
    the computation.
    """
    n, p = x.shape[0] if rows is None else len(rows), x.shape[1]
    size = n if x.device.type != "cpu" else max(1, min(n, tuning.current().scratch // max(1, p)))
    memory = torch.empty(size, p, dtype=torch.float64, device=x.device)
    for i in cut(n, size):
        values = memory[: i.stop - i.start].copy_(x[i] if rows is None else x.index_select(0, rows[i]))
        yield i, values if minus is None else values.sub_(minus)


def by_pieces(x: Rows, rows: "slice | Tensor", make: Callable[["slice | Tensor"], Tensor]) -> Tensor:
    """Compute rows a few at a time, so that intermediate float64 arrays stay small and in the cache."""
    parts = list(pieces_of(x, rows))
    if len(parts) == 1:
        return make(rows)
    result = torch.empty(sum(i.stop - i.start for i, _ in parts), x.shape[1], dtype=x.dtype, device=x.device)
    for i, part in parts:
        result[i] = make(part)
    return result


def pieces_of(x: Rows, rows: "slice | Tensor") -> Iterator[tuple[slice, "slice | Tensor"]]:
    """Cut rows into pieces: yield the place of each among these rows, and its rows of x."""
    n, p = x.shape
    wanted = range(n)[rows] if isinstance(rows, slice) else rows
    for i in cut(len(wanted), max(1, tuning.current().piece // max(1, p))):
        part = wanted[i]
        yield i, slice(part.start, part.stop, part.step) if isinstance(part, range) else part


def column_totals(x: Rows) -> Float64[Tensor, " p"]:
    """Return the sum of every column in float64, in one pass; for layers of float32 or less, where none overflows."""
    place = float64_device(x.device)
    return functools.reduce(torch.add, map_pieces(lambda i: column_sums(x[i].to(place)), x, zip(pieces(x))))


def column_sums(x: Tensor, *, minus: Float64[Tensor, " p"] | None = None) -> Float64[Tensor, " p"]:
    """Return the sum of every column in float64, minus a row if there is one."""
    total = torch.zeros(x.shape[1], dtype=torch.float64, device=x.device)
    for _, rows in widened(x, minus=minus):
        total.addmv_(rows.T, rows.new_ones(len(rows)))  # faster than a sum
    return total


def map_pieces(work: Callable[..., T], x: Rows, parts: Iterable[tuple[Any, ...]]) -> list[T]:
    """Call ``work`` with every part of x: in threads on a CPU, also if x is read from a file, or else in order."""
    if x.device.type == "cpu":
        return map_in_threads(work, *zip(*parts, strict=True))
    return [work(*part) for part in parts]


def in_memory(x: Rows, *, source: Rows) -> Rows:
    """Return x as a tensor if its source is a tensor; otherwise return x, which reads from a file."""
    return x[:] if isinstance(source, Tensor) else x


def prefetch(items: Iterator[T], device: torch.device) -> Iterator[T]:
    """Compute the next item in a thread while the caller works with the current one.

    On CUDA the thread copies and computes in a stream of its own, in parallel with the work of the caller.
    """
    cuda = device.type == "cuda"
    side = torch.cuda.Stream(device) if cuda else None

    def make(callers: "torch.cuda.Stream | None") -> tuple[bool, T | None]:
        with torch.inference_mode():
            if side is None or callers is None:
                return _next(items)
            with torch.cuda.stream(side):
                side.wait_stream(callers)  # for what the caller has made and the items are made from
                result = _next(items)
            side.synchronize()  # this thread waits, not the caller
            return result

    with ThreadPoolExecutor(1, "repsim-reader") as thread:

        def start() -> Future[tuple[bool, T | None]]:
            return thread.submit(tuning.in_context(make), torch.cuda.current_stream(device) if cuda else None)

        future = start()
        while True:
            exists, item = future.result()
            if not exists:
                return
            assert item is not None
            if cuda:
                _record_stream(item, torch.cuda.current_stream(device))
            future = start()
            yield item
            del item  # so that its memory can be freed before the next item is ready


def _next(items: Iterator[T]) -> tuple[bool, T | None]:
    for item in items:
        return True, item
    return False, None


def _record_stream(item: object, stream: "torch.cuda.Stream") -> None:
    """Keep the memory of items from another stream until this stream has finished with it."""
    if isinstance(item, Tensor):
        if item.is_cuda:
            item.record_stream(stream)
    elif isinstance(item, list | tuple):
        for part in item:
            _record_stream(part, stream)
