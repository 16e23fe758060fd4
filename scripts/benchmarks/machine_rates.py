"""Measure the speed of the machine, and the time and memory of a benchmark process.

This module imports neither repsim nor the packages that it is compared with.
"""

import os
import re
import resource
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import torch

T = TypeVar("T")


def timed(work: Callable[[], T]) -> tuple[T, dict[str, float]]:
    """Call ``work``; return its value, the wall time and the CPU time of this process with all its threads."""
    start, cpu = time.perf_counter(), time.process_time()
    value = work()
    return value, {"seconds": time.perf_counter() - start, "cpu": time.process_time() - cpu}


def best(work: Callable[[], object], times: int) -> dict[str, float]:
    """Return the smallest wall time and the smallest CPU time of several calls."""
    runs = [timed(work)[1] for _ in range(times)]
    return {key: min(run[key] for run in runs) for key in ("seconds", "cpu")}


def gemm(device: str, dtype: torch.dtype) -> dict[str, float]:
    """Return the FLOP per second and per CPU second of a large matrix product, the best of six."""
    size = 8192 if device.startswith("cuda") else 2048
    x = torch.randn(size, size, device=device).to(dtype)

    def product() -> None:
        torch.mm(x, x)
        if x.is_cuda:
            torch.cuda.synchronize()

    return {key: 2 * size**3 / spent for key, spent in best(product, 6).items()}


def peak_mib() -> float:
    """Return the peak memory of this process in MiB.

    /proc gives the peak since this program began. Without /proc it is ``ru_maxrss``, which may include the peak of the
    parent process.
    """
    return _status("VmHWM") or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def now_mib() -> float:
    """Return the current memory of this process in MiB, or its peak memory if there is no /proc."""
    return _status("VmRSS") or peak_mib()


def _status(key: str) -> float | None:
    status = Path("/proc/self/status")
    match = re.search(rf"{key}:\s*(\d+) kB", status.read_text()) if status.exists() else None
    return int(match[1]) / 1024 if match else None


def read(path: str, most: int = 2**30) -> float:
    """Return the bytes per second of plain reads of 8 MiB, reading at most ``most`` bytes."""
    buffer = bytearray(2**23)
    with open(path, "rb", buffering=0) as file:  # noqa: PTH123 - unbuffered
        start, done = time.perf_counter(), 0
        while done < most and (count := file.readinto(buffer)):
            done += count
        return done / (time.perf_counter() - start)


def cached(path: str, probes: int = 256) -> float | None:
    """Return the share of a file that is in the page cache, estimated from some pages, or None if it is unknown."""
    page = bytearray(1)
    in_cache = 0
    file = os.open(path, os.O_RDONLY)
    try:
        for k in range(probes):
            try:
                in_cache += os.preadv(file, [page], k * os.fstat(file).st_size // probes, os.RWF_NOWAIT)
            except BlockingIOError:
                continue
        return in_cache / probes
    except (OSError, AttributeError):  # the file system or the operating system does not support the flag
        return None
    finally:
        os.close(file)
