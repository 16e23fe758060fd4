"""What the machine has: memory to work in, and how fast it multiplies, decomposes and reads."""

import os
import resource
import statistics
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import torch

from repsim.engine.planning import Cost
from repsim.errors import InvalidInputError
from repsim.metrics.recipes.rows import Centred, Rows, cut
from repsim.runtime.processes import local_world

_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12, "ki": 2**10, "mi": 2**20, "gi": 2**30, "ti": 2**40}


def parse_size(text: str) -> int:
    """Bytes from words such as ``2GiB``, ``500 MB``, ``1.5g``.

    >>> parse_size("2GiB"), parse_size("1.5 kB"), parse_size("67.1MB")
    (2147483648, 1500, 67100000)
    """
    word = text.strip().lower().removesuffix("b")
    unit = word.lstrip("0123456789. ")
    try:
        size = round(float(word.removesuffix(unit)) * _UNITS[unit])
    except (ValueError, KeyError, OverflowError):
        raise InvalidInputError(f"cannot read {text!r} as a size; write 2GiB, or 500MB") from None
    if size < 1:
        raise InvalidInputError(f"a size has to be positive, got {text!r}")
    return size


def memory_to_use(device: str, asked: int | str | None = None) -> int:
    """Bytes to work in, or words for them; by default half of what this machine has for this process, or 80 % of a GPU.

    What is free at the moment plays no part, so that the same command makes the same plan tomorrow.
    """
    if asked is not None:
        return parse_size(asked) if isinstance(asked, str) else asked
    if device.startswith("cuda"):
        return int(0.8 * torch.cuda.get_device_properties(device).total_memory)
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    with suppress(OSError, ValueError):  # a container's share, where there is one
        total = min(total, int(Path("/sys/fs/cgroup/memory.max").read_text()))
    return total // 2 // local_world()


def memory_now() -> int:
    """Bytes that this process takes."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:  # no such file outside of Linux
        return memory_peak()


def memory_peak() -> int:
    """Bytes that this process has taken at most.

    Linux's ``ru_maxrss`` begins with what the parent took when it started this process; the kernel's own mark does not.
    """
    with suppress(OSError, StopIteration):
        marks = (line.split() for line in Path("/proc/self/status").read_text().splitlines())
        return next(int(words[1]) for words in marks if words[0] == "VmHWM:") * 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 2**10)


def rates(device: str, stored: Rows | None = None) -> Cost:
    """Measure, in a second or so, how much of everything the machine does in a second.

    ``stored`` is a layer in its store, of which some megabytes are read.
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
        some = list(cut(n, max(1, 2**21 // p)))  # each is read once: the second time it would be in the cache
        some = some[:: -(-len(some) // 8)]
        left = iter(some)
        rows = some[0].stop - some[0].start
        read = rows * p * 4 / _seconds(lambda: stored[next(left)], device, times=len(some) - 1)
    return Cost(
        flop32=2 * 512 * 512 * 768 * 8 / _seconds(lambda: [x[:512] @ x[512:1024].T for _ in range(8)], device),
        flop64=2 * 512 * 512 * 2048 / _seconds(lambda: y @ y.T, device),
        decomposed=9 * 512**3 / _seconds(lambda: torch.linalg.eigh(square @ square.T), device),
        touched=x.numel() / _seconds(lambda: centred[:], device),
        added=total.numel() / _seconds(lambda: total.add_(product), device),
        read=read,
    )


def _seconds(work: Callable[[], object], device: str, times: int = 5) -> float:
    """The median of several times, after one that does not count."""
    if times > 0:
        work()
    taken = []
    for _ in range(max(1, times)):
        _finish(device)
        start = time.perf_counter()
        work()
        _finish(device)
        taken.append(time.perf_counter() - start)
    return statistics.median(taken)


def _finish(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)
    elif device == "mps":
        torch.mps.synchronize()
