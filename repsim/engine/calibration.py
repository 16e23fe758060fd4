"""Measure how fast this machine multiplies, decomposes and reads, to predict the time of a plan."""

import statistics
import time
from collections.abc import Callable

import torch

from repsim.metrics.recipes.cost import Cost
from repsim.metrics.recipes.rows import Centred, Rows, cut


def rates(device: str, stored: Rows | None = None) -> Cost:
    """Return the rates of this machine: each entry of `Cost` in units a second. Takes about a second.

    Parameters
    ----------
    device : str
        The device to measure.
    stored : Rows, optional
        A layer in its store, of which a few megabytes are read. Without it the reading rate is 1 GB/s.
    """
    on = torch.device(device)
    wide = torch.device("cpu") if on.type == "mps" else on
    x = torch.randn(1024, 768, device=on)
    y = torch.randn(512, 2048, dtype=torch.float64, device=wide)
    square = torch.randn(512, 512, dtype=torch.float64, device=wide)
    total = torch.zeros(512, 1024, dtype=torch.float64, device=wide)
    product = torch.randn(512, 1024, device=wide)
    centred = Centred(x, torch.zeros(768, dtype=torch.float64, device=wide), 1.0, torch.float32)
    read = 1e9
    if stored is not None:
        n, p = stored.shape
        runs = list(cut(n, max(1, 2**21 // p)))  # each is read once: the second time it would be in the cache
        runs = runs[:: -(-len(runs) // 8)]
        unread = iter(runs)
        rows = runs[0].stop - runs[0].start
        read = rows * p * 4 / _seconds(lambda: stored[next(unread)], device, times=len(runs) - 1)
    return Cost(
        flop32=2 * 512 * 512 * 768 * 8 / _seconds(lambda: [x[:512] @ x[512:1024].T for _ in range(8)], device),
        flop64=2 * 512 * 512 * 2048 / _seconds(lambda: y @ y.T, device),
        decomposed=9 * 512**3 / _seconds(lambda: torch.linalg.eigh(square @ square.T), device),
        touched=x.numel() / _seconds(lambda: centred[:], device),
        added=total.numel() / _seconds(lambda: total.add_(product), device),
        read=read,
    )


def _seconds(work: Callable[[], object], device: str, times: int = 5) -> float:
    """Return the median time of several calls, after one warm-up call."""
    if times > 0:
        work()
    durations = []
    for _ in range(max(1, times)):
        _finish(device)
        start = time.perf_counter()
        work()
        _finish(device)
        durations.append(time.perf_counter() - start)
    return statistics.median(durations)


def _finish(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)
    elif device == "mps":
        torch.mps.synchronize()
