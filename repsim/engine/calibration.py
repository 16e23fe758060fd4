"""Measure how fast this machine multiplies, decomposes, sorts and reads, to predict the time of a plan."""

import dataclasses
import functools
import time
from collections.abc import Callable

import torch

from repsim.metrics.recipes.cost import Cost
from repsim.metrics.recipes.rows import Centred, Rows, cut
from repsim.runtime.threads import map_in_threads

Clock = Callable[[], float]
_PARTS = 8
"""Parts of a measurement that threads share."""


def rates(device: str, stored: Rows | None = None, *, clock: Clock = time.perf_counter) -> Cost:
    """Return the rates of this machine: each entry of `Cost` in units a second.

    Takes less than a second, and is measured once in a process; only reading is measured each time.

    Parameters
    ----------
    device : str
        The device to measure.
    stored : Rows, optional
        A layer in its store, of which a few megabytes are read. Without it the reading rate is 1 GB/s.
    clock : callable
        Returns the time in seconds; `time.process_time` measures the time of the processor, whatever else runs on it.
    """
    speed = _computing(device, torch.get_num_threads(), clock)
    if stored is None:
        return speed
    n, p = stored.shape
    runs = list(cut(n, max(1, 2**21 // p)))  # each is read once: the second time it would be in the cache
    runs = runs[:: -(-len(runs) // 8)]
    unread = iter(runs)
    rows = runs[0].stop - runs[0].start
    read = rows * p * 4 / _seconds(lambda: stored[next(unread)], device, clock, times=len(runs) - 1)
    return dataclasses.replace(speed, read=read)


@functools.cache
def _computing(device: str, _threads: int, clock: Clock) -> Cost:
    on = torch.device(device)
    wide = torch.device("cpu") if on.type == "mps" else on
    x = torch.randn(1024, 768, device=on)
    y = torch.randn(512, 2048, dtype=torch.float64, device=wide)
    square, small = (torch.randn(m, m, dtype=torch.float64, device=wide) for m in (384, 64))
    square, small = square @ square.T, small @ small.T
    totals = torch.zeros(_PARTS, 256, 1024, dtype=torch.float64, device=wide)
    product = torch.randn(256, 1024, device=wide)
    centred = Centred(x, torch.zeros(768, dtype=torch.float64, device=wide), 1.0, torch.float32)
    outer = torch.randn(1, 1024, device=on)
    keys = torch.randint(2**30, (2**18,), dtype=torch.int32, device=on)
    one = torch.ones(1, device=on)

    def seconds(work: Callable[[], object], times: int = 5) -> float:
        return _seconds(work, device, clock, times=times)

    def in_parts(work: Callable[[int], object]) -> float:
        """Return the time of all parts, computed as the engine does: each by one thread that waits for no other."""
        parts = range(_PARTS)
        return seconds(lambda: map_in_threads(work, parts) if on.type == "cpu" else [work(k) for k in parts])

    def sums() -> torch.Tensor:
        return torch.zeros(1024, 768, dtype=torch.float64, device=wide).add_((outer.T @ x[:1]).to(wide))

    per_operation, per_value = _decomposition(
        (64, seconds(lambda: [torch.linalg.eigh(small) for _ in range(8)]) / 8),
        (384, seconds(lambda: torch.linalg.eigh(square), 3)),
    )
    return Cost(
        flop32=2 * 512 * 512 * 768 * _PARTS / in_parts(lambda _: x[:512] @ x[512:].T),
        flop64=2 * 512 * 512 * 2048 / in_parts(lambda k: y @ y[k * 64 : (k + 1) * 64].T),
        decomposed=1 / per_operation,
        reduced=1 / per_value,
        touched=x.numel() / seconds(lambda: centred[:]),
        added=4 * totals.numel() / in_parts(lambda k: [totals[k].add_(product) for _ in range(4)]),
        summed=x.numel() / seconds(sums),
        sorted=18 * len(keys) / seconds(lambda: torch.sort(keys)),
        calls=200 / seconds(lambda: [one.add(1) for _ in range(200)]),
        read=1e9,
    )


def _decomposition(small: tuple[int, float], large: tuple[int, float]) -> tuple[float, float]:
    """Return seconds per operation and per value, a and b with a 9 m^3 + b m^2 seconds for both m x m matrices.

    Each part has at least a tenth of the time of one matrix, whatever else disturbed the measurements.

    >>> a, b = _decomposition((64, 1e-10 * 9 * 64**3 + 1e-7 * 64**2), (384, 1e-10 * 9 * 384**3 + 1e-7 * 384**2))
    >>> round(a * 1e10, 9), round(b * 1e7, 9)
    (1.0, 1.0)
    """
    (m, short), (k, long) = small, large
    b = max((short / m**3 - long / k**3) / (1 / m - 1 / k), short / m**2 / 10)
    a = max(long - b * k**2, long / 10) / (9 * k**3)
    return a, b


def _seconds(work: Callable[[], object], device: str, clock: Clock, *, times: int) -> float:
    """Return the second shortest time of several calls, after one warm-up call: few are without a disturbance."""
    if times > 0:
        work()
    durations = []
    for _ in range(max(1, times)):
        _finish(device)
        start = clock()
        work()
        _finish(device)
        durations.append(clock() - start)
    return max(sorted(durations)[:2][-1], 1e-9)


def _finish(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)
    elif device == "mps":
        torch.mps.synchronize()
