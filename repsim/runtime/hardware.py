"""Choose the device, count processor cores, and limit the memory that the C library keeps."""

import ctypes
import os
from contextlib import suppress

import torch

from repsim.errors import InvalidInputError
from repsim.runtime.processes import local_rank, local_world

_M_MMAP_THRESHOLD = -3
"""Parameter of ``mallopt``, from malloc.h."""


def choose_device(name: str = "auto") -> str:
    """Return the device to compute on: the best available one (cuda, mps, cpu) for ``auto``, else the one named.

    Raises
    ------
    InvalidInputError
        If the device cannot be used on this machine.

    Examples
    --------
    >>> choose_device("cpu")
    'cpu'
    """
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    usable = [kind for kind, works in available.items() if works]
    if name == "auto":
        name = usable[0]
    if name == "cuda" and local_world() > 1:  # each process of torchrun uses its own GPU
        name = f"cuda:{local_rank() % max(1, torch.cuda.device_count())}"
    try:
        torch.empty(1, device=name).cpu()
    except (RuntimeError, AssertionError, NotImplementedError):  # unknown name, no such device, or a torch without it
        raise InvalidInputError(f"device {name!r} cannot be used; this machine has: {', '.join(usable)}") from None
    return name


def release_free_heap() -> None:
    """Return the freed memory that the C library keeps on its heap to the operating system.

    Glibc allocates blocks of up to 32 MB, such as feature maps, on a heap that becomes fragmented: without this, a
    process that repeatedly allocates and frees the same tensors grows by a fifth (docs/benchmarks.md).
    """
    with suppress(OSError, AttributeError):  # not glibc
        ctypes.CDLL(None).malloc_trim(0)


def limit_heap_fragmentation() -> None:
    """Make the C library return freed blocks of 4 MB and more to the operating system at once.

    By default glibc raises this threshold with every large block that is freed, up to 32 MB, and the thread that reads
    ahead has its own heap: reading layers repeatedly took 170 MB more than the live tensors. Smaller blocks stay on
    the heap, because requesting them from the system each time took longer than the computation.
    """
    with suppress(OSError, AttributeError):  # not glibc
        ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, 2**22)


def cores() -> int:
    """Return the number of processor cores for this process, an equal share if torchrun started several here."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, usable // local_world())
