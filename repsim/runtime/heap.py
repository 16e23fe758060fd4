"""Set how a process uses its machine: freed memory, the size of its pages, and how its threads wait.

All settings concern the whole process. They change no value, and do nothing where the C library is not glibc.
"""

import ctypes
import os
from contextlib import suppress

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
"""Parameters of ``mallopt``, from malloc.h."""
_HUGE_PAGES = "THP_MEM_ALLOC_ENABLE"
"""Variable of the environment that torch reads when it first allocates memory."""
_WAITING = "OMP_WAIT_POLICY"
"""Variable of the environment that the library of threads (OpenMP) reads when it is loaded."""


def use_huge_pages() -> None:
    """Let torch request pages of 2 MB for tensors of 2 MB and more, unless the environment already decides it.

    The system clears every page of a new tensor when it is first written, and interrupts the program for it. This has
    an effect on Linux only, and only before the first tensor is made, so the command line calls it first. A user turns
    it off with ``THP_MEM_ALLOC_ENABLE=0``, and a program that calls repsim turns it on with 1.
    """
    os.environ.setdefault(_HUGE_PAGES, "1")


def let_threads_sleep() -> None:
    """Let the threads of torch sleep while they wait for one another, unless the environment already decides it.

    By default they wait by running, for up to 200 ms. Beside other programs, a thread that others wait for is itself
    waiting for a processor: preparing the layers of a study took eight times the processor time (docs/benchmarks.md).
    This has an effect only before torch is imported, so the command line calls it first.
    """
    os.environ.setdefault(_WAITING, "PASSIVE")


def keep_freed_blocks() -> None:
    """Make the C library keep freed blocks of less than 64 MB on its heap, for the feature maps of the next layer.

    By default glibc requests blocks of more than 32 MB from the system and returns them at once, and the system clears
    their pages each time. Nothing is set without `use_huge_pages`, as fragments then took up to 100 MB
    (docs/benchmarks.md).
    """
    if os.environ.get(_HUGE_PAGES) == "1":
        _set(_M_MMAP_THRESHOLD, 2**26)
        _set(_M_TRIM_THRESHOLD, 2**26)


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
    _set(_M_MMAP_THRESHOLD, 2**22)


def _set(parameter: int, value: int) -> None:
    with suppress(OSError, AttributeError):  # not glibc
        ctypes.CDLL(None).mallopt(parameter, value)
