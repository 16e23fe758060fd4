"""Choose the device, and count processor cores."""

import os

import torch

from repsim.errors import InvalidInputError
from repsim.runtime.processes import local_rank, local_world


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
    except (
        RuntimeError,
        AssertionError,
        NotImplementedError,
        ImportError,
    ):  # unknown name, no such device, or a torch without it
        raise InvalidInputError(f"device {name!r} cannot be used; this machine has: {', '.join(usable)}") from None
    return name


def cores() -> int:
    """Return the number of processor cores for this process, an equal share if torchrun started several here."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, usable // local_world())
