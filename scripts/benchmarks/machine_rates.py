"""What a process of a benchmark measures of the machine and of itself. Imports nothing of repsim, nor of its peers."""

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
    """Do it; wall clock, and CPU time of this process with all its threads."""
    start, cpu = time.perf_counter(), time.process_time()
    value = work()
    return value, {"seconds": time.perf_counter() - start, "cpu": time.process_time() - cpu}


def best(work: Callable[[], object], times: int) -> dict[str, float]:
    """The least of several."""
    runs = [timed(work)[1] for _ in range(times)]
    return {key: min(run[key] for run in runs) for key in ("seconds", "cpu")}


def gemm(device: str, dtype: torch.dtype) -> dict[str, float]:
    """FLOP a second, and a CPU second, of a large matrix product: the best of several."""
    size = 8192 if device.startswith("cuda") else 2048
    x = torch.randn(size, size, device=device).to(dtype)

    def product() -> None:
        torch.mm(x, x)
        if x.is_cuda:
            torch.cuda.synchronize()

    return {key: 2 * size**3 / spent for key, spent in best(product, 6).items()}


def peak_mib() -> float:
    """Peak of this process.

    Where the system tells, the peak since this program began: ``ru_maxrss`` begins with what the parent had.
    """
    return _status("VmHWM") or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def now_mib() -> float:
    """What this process takes now; without a system that tells, what it has taken at most."""
    return _status("VmRSS") or peak_mib()


def _status(key: str) -> float | None:
    status = Path("/proc/self/status")
    found = re.search(rf"{key}:\s*(\d+) kB", status.read_text()) if status.exists() else None
    return int(found[1]) / 1024 if found else None


def read(path: str, most: int = 2**30) -> float:
    """Bytes a second of plain reads of 8 MiB, up to so many bytes."""
    buffer = bytearray(2**23)
    with open(path, "rb", buffering=0) as file:  # noqa: PTH123 - unbuffered
        start, done = time.perf_counter(), 0
        while done < most and (count := file.readinto(buffer)):
            done += count
        return done / (time.perf_counter() - start)


def cached(path: str, probes: int = 256) -> float | None:
    """The share of a file that the system holds in memory, by pages here and there; None where it does not tell."""
    page = bytearray(1)
    found = 0
    file = os.open(path, os.O_RDONLY)
    try:
        for k in range(probes):
            try:
                found += os.preadv(file, [page], k * os.fstat(file).st_size // probes, os.RWF_NOWAIT)
            except BlockingIOError:
                continue
        return found / probes
    except (OSError, AttributeError):  # the file system, or the operating system, knows no such flag
        return None
    finally:
        os.close(file)
