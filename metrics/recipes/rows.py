"""Activations that are read a run of samples at a time, and what is computed from them in passing.

A layer of 50,000 samples need not fit into memory: whoever prepares or compares one asks for rows. A tensor is such a
layer, and so is an array in a file; what is made of one (`Centred`) is one again.
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol, TypeVar, runtime_checkable

import torch
from jaxtyping import Bool, Float, Float64
from torch import Tensor

from repsim.errors import UndefinedValueError
from repsim.runtime import tuning

T = TypeVar("T")
_LARGEST = 2.0**1000
"""Values larger than this, which only float64 has, would overflow where they are subtracted, added or squared."""


@runtime_checkable
class Rows(Protocol):
    """Activations (n, p): ``rows[i]`` gives the samples of a slice, or of an index tensor, as a tensor."""

    @property
    def shape(self) -> Sequence[int]:
        """(n, p)."""

    @property
    def dtype(self) -> torch.dtype:
        """Of what ``rows[i]`` gives."""

    @property
    def device(self) -> torch.device:
        """Of what ``rows[i]`` gives."""

    def __getitem__(self, rows: "slice | Tensor", /) -> Tensor:
        """The activations of these samples."""


def float64_device(device: torch.device) -> torch.device:
    """Where float64 is computed for this device: mps has none."""
    return torch.device("cpu") if device.type == "mps" else device


def pieces(x: Rows) -> Iterator[slice]:
    """Runs of samples that are best handled at once."""
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


def column_ranges(x: Rows) -> tuple[Float64[Tensor, " p"], Float64[Tensor, " p"], Float64[Tensor, " p"]]:
    """The mean of every column, its smallest value and its largest one, in one pass in float64.

    Raises where values are too large to be added.
    """
    place = float64_device(x.device)
    first = x[:1].to(place, torch.float64)[0]
    total = torch.zeros_like(first)
    low, high = first.clone(), first.clone()
    for i in pieces(x):
        piece = x[i].to(place)
        low, high = torch.minimum(low, piece.amin(0)), torch.maximum(high, piece.amax(0))
        total += (piece.to(torch.float64) - first).sum(0)  # makes the mean of a constant column exact
    largest = float(torch.maximum(high, -low).max())
    if largest > _LARGEST:
        raise UndefinedValueError(
            f"the layer has values as large as {largest:.1e}, with which float64 cannot compute: scale them down"
        )
    return first + total / x.shape[0], low, high


def varies(low: Float64[Tensor, " p"], high: Float64[Tensor, " p"], dtype: torch.dtype) -> Bool[Tensor, " p"]:
    """Whether a column's values span more than one rounding step of the dtype that they came in."""
    return high - low > torch.finfo(dtype).eps * torch.maximum(high, -low)


def column_means(x: Rows) -> tuple[Float64[Tensor, " p"], float]:
    """The mean of every column, and the largest absolute value once they are subtracted.

    Raises where nothing would be left: a layer counts as constant where no column `varies`.
    """
    mean, low, high = column_ranges(x)
    if not varies(low, high, x.dtype).any():
        raise constant_layer()
    return mean, float(torch.maximum(high - mean, mean - low).max())


def constant_layer() -> UndefinedValueError:
    """What is raised where no column varies."""
    return UndefinedValueError(
        "the layer is constant: every sample has the same features, so there is nothing to compare"
    )


@dataclass(frozen=True, eq=False)
class Centred:
    """Activations minus their column means, in units of ``scale``: computed in float64, then rounded to ``dtype``."""

    source: Rows
    mean: Float64[Tensor, " p"]
    scale: float
    dtype: torch.dtype

    @property
    def shape(self) -> Sequence[int]:
        """(n, p)."""
        return self.source.shape

    @property
    def device(self) -> torch.device:
        """Of the source."""
        return self.source.device

    def exact(self, rows: "slice | Tensor") -> Float64[Tensor, "rows p"]:
        """Before they are rounded."""
        piece = self.source[rows].to(self.mean.device)
        return (piece.to(torch.float64) - self.mean).div_(self.scale)

    def __getitem__(self, rows: "slice | Tensor") -> Float[Tensor, "rows p"]:
        return by_pieces(self, rows, lambda piece: self.exact(piece).to(self.device, self.dtype))


def direction(x: Float[Tensor, "*rows p"]) -> Float64[Tensor, "*rows p"]:
    """Every row divided by its norm; by its largest value first, so that no square overflows."""
    x = x.to(float64_device(x.device)).to(torch.float64)
    x = x / x.detach().abs().amax(-1, keepdim=True)
    unit: Tensor = x / torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    return unit


def by_pieces(x: Rows, rows: "slice | Tensor", make: Callable[["slice | Tensor"], Tensor]) -> Tensor:
    """Make some rows a few at a time, so that what goes by the way in float64 stays small, and in the cache."""
    n, p = x.shape
    wanted = range(n)[rows] if isinstance(rows, slice) else rows
    size = max(1, tuning.current().piece // max(1, p))
    if len(wanted) <= size:
        return make(rows)
    whole = torch.empty(len(wanted), p, dtype=x.dtype, device=x.device)
    for i in cut(len(wanted), size):
        part = wanted[i]
        whole[i] = make(slice(part.start, part.stop, part.step) if isinstance(part, range) else part)
    return whole


def in_memory(x: Rows, *, made_of: Rows) -> Rows:
    """All of x as a tensor where what it is made of is one; as it is where that is read from somewhere."""
    return x[:] if isinstance(made_of, Tensor) else x


def prefetch(items: Iterator[T], device: torch.device) -> Iterator[T]:
    """Make the next item in a thread of its own while the caller is busy with this one.

    On CUDA what the thread copies and computes goes to a stream of its own, so that it runs beside the caller's work.
    """
    cuda = device.type == "cuda"
    side = torch.cuda.Stream(device) if cuda else None

    def make() -> tuple[bool, T | None]:
        with torch.inference_mode():
            if side is None:
                return _next(items)
            with torch.cuda.stream(side):
                made = _next(items)
            side.synchronize()  # this thread waits, not the caller
            return made

    with ThreadPoolExecutor(1, "repsim-reader") as thread:
        coming = thread.submit(tuning.in_context(make))
        while True:
            there, item = coming.result()
            if not there:
                return
            assert item is not None
            if cuda:
                _used_by(item, torch.cuda.current_stream(device))
            coming = thread.submit(tuning.in_context(make))
            yield item
            del item  # whoever took it may be done with it before the next is there


def _next(items: Iterator[T]) -> tuple[bool, T | None]:
    for item in items:
        return True, item
    return False, None


def _used_by(item: object, stream: "torch.cuda.Stream") -> None:
    """Keep the memory of what another stream made until this one is done with it."""
    if isinstance(item, Tensor):
        if item.is_cuda:
            item.record_stream(stream)
    elif isinstance(item, list | tuple):
        for each in item:
            _used_by(each, stream)
