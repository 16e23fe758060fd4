"""Where to compute: the device that is asked for, and the processes that decode pictures for it."""

import os

import torch

from repsim.errors import InvalidInputError


def choose_device(name: str = "auto") -> str:
    """The best device there is (cuda, mps, cpu) for ``auto``; otherwise the one that is named, if it is there.

    >>> choose_device("cpu")
    'cpu'
    """
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        return next(kind for kind, works in there.items() if works)
    try:
        device = torch.device(name)
    except RuntimeError:
        raise InvalidInputError(f"unknown device {name!r}; write auto, cpu, cuda, cuda:1 or mps") from None
    if not there.get(device.type, False) or (
        device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count()
    ):
        usable = ", ".join(kind for kind, works in there.items() if works)
        raise InvalidInputError(f"device {name!r} is not usable here; usable: {usable}")
    return name


def cores() -> int:
    """Processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
