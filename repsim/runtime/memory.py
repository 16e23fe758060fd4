"""Memory: how much there is to work in, how much this process takes, sizes in words."""

import os
import resource
import sys
from contextlib import suppress
from pathlib import Path

import torch

from repsim.errors import InvalidInputError
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
