"""Read memory sizes from text, choose the memory limit, and measure the memory of this process."""

import os
import resource
import sys
from contextlib import suppress
from pathlib import Path

import torch

from repsim.errors import InvalidArgumentError, InvalidInputError
from repsim.runtime.processes import local_world

_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12, "ki": 2**10, "mi": 2**20, "gi": 2**30, "ti": 2**40}


def parse_size(text: str) -> int:
    """Return the number of bytes that a text such as ``2GiB``, ``500 MB`` or ``1.5g`` stands for.

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


def memory_to_use(device: str, limit: int | str | None = None) -> int:
    """Return the memory limit in bytes: ``limit``, or by default half of this process's share of RAM, or 80 % of a GPU.

    The memory that is free at the moment is not considered, so that the same command always makes the same plan.
    """
    if limit is not None:
        size = parse_size(limit) if isinstance(limit, str) else limit
        if size <= 0:
            raise InvalidArgumentError("memory", "a size above 0", limit)
        return size
    if device.startswith("cuda"):
        return int(0.8 * torch.cuda.get_device_properties(device).total_memory)
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return min([total, *limits_of_groups()]) // 2 // local_world()


def limits_of_groups(root: Path = Path("/")) -> list[int]:
    """Return the memory limits in bytes of the control groups of this process: its own, and those around it.

    Containers and batch systems such as SLURM set them, in version 1 or 2 of control groups. A process cannot see the
    groups around its container, whose root is then that of the container; ``root`` is that of the file system.
    """
    limits = []
    with suppress(OSError):
        for line in (root / "proc/self/cgroup").read_text().splitlines():
            _, kinds, path = line.split(":", 2)
            if kinds == "":
                mount, name = root / "sys/fs/cgroup", "memory.max"
            elif "memory" in kinds.split(","):
                mount, name = root / "sys/fs/cgroup/memory", "memory.limit_in_bytes"
            else:
                continue
            group = Path(path.lstrip("/"))
            for folder in (group, *group.parents):
                with suppress(OSError, ValueError):  # no limit is the word max
                    limits.append(int((mount / folder / name).read_text()))
    return limits


def memory_now() -> int:
    """Return the memory of this process in bytes."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:  # only Linux has this file
        return memory_peak()


def memory_peak() -> int:
    """Return the peak memory of this process in bytes.

    On Linux ``ru_maxrss`` includes the memory of the parent at the time of the fork; ``VmHWM`` does not.
    """
    with suppress(OSError, StopIteration):
        status = (line.split() for line in Path("/proc/self/status").read_text().splitlines())
        return next(int(words[1]) for words in status if words[0] == "VmHWM:") * 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 2**10)
