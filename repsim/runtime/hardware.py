"""Where to compute: the device that is asked for, and the cores there are."""

import ctypes
import os
from contextlib import suppress

import torch

from repsim.errors import InvalidInputError
from repsim.runtime.processes import local_rank, local_world

_M_MMAP_THRESHOLD = -3
"""In malloc.h."""


def choose_device(name: str = "auto") -> str:
    """The best device there is (cuda, mps, cpu) for ``auto``; otherwise the one that is named, if it can be used.

    >>> choose_device("cpu")
    'cpu'
    """
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    usable = [kind for kind, works in there.items() if works]
    if name == "auto":
        name = usable[0]
    if name == "cuda" and local_world() > 1:  # each process of a torchrun its own
        name = f"cuda:{local_rank() % max(1, torch.cuda.device_count())}"
    try:
        torch.empty(1, device=name).cpu()
    except (RuntimeError, AssertionError, NotImplementedError):  # no such word, no such device, no such build of torch
        raise InvalidInputError(f"device {name!r} cannot be used; this machine has: {', '.join(usable)}") from None
    return name


def release_free_heap() -> None:
    """Give the system back what the C library keeps of freed memory.

    Glibc puts blocks of up to 32 MB, as the maps between layers are, on a heap that frays: without this, a process that
    makes and frees the same tensors over and over grows by a fifth (docs/benchmarks.md).
    """
    with suppress(OSError, AttributeError):  # another C library
        ctypes.CDLL(None).malloc_trim(0)


def limit_heap_fragmentation() -> None:
    """Make the C library give freed blocks of 4 MB and more back at once, from here on.

    Glibc raises the size from which it does with every such block, up to 32 MB, and a thread that reads ahead gets a
    heap of its own: layers read over and over took 170 MB more than the tensors that were alive. Smaller blocks stay:
    to get them from the system anew each time cost more than the computing.
    """
    with suppress(OSError, AttributeError):  # another C library
        ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, 2**22)


def cores() -> int:
    """Processor cores that this process may use: its share, where torchrun started several on this machine."""
    here = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, here // local_world())
