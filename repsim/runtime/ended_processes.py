"""Find the processes of a run that have ended, so that the others do not wait for them.

torchrun ends all processes of a run when one fails. It leaves the others alone when one ends with exit code 0, for
example because a script calls repsim in the first process only. A process that computes for hours before it meets the
others looks the same from a distance, so no time limit can tell the two apart. Therefore Linux is asked which processes
of torchrun on this machine are alive.
"""

import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

_PROC = Path("/proc")


def ended_processes() -> frozenset[int]:
    """Return the ranks of this run that have ended, among those of this machine.

    Empty if it is not known which process has which rank: elsewhere than on Linux, if the processes were not started
    by torchrun as programs, or if one of them hides its environment.
    """
    parents = {pid: parent for pid in _pids() if (parent := _parent(pid)) is not None}
    launcher = os.getpid()
    while _is_of_run(_environment(launcher)):
        launcher = parents.get(launcher, 0)
    environments = [_environment(pid) for pid, parent in parents.items() if parent == launcher]
    if any(not environment for environment in environments):  # hidden: this may be any of the processes
        return frozenset()
    alive = {int(environment["RANK"]) for environment in environments if _is_of_run(environment)}
    rank, local = int(os.environ["RANK"]), int(os.environ["LOCAL_RANK"])
    of_machine = range(rank - local, rank - local + int(os.environ["LOCAL_WORLD_SIZE"]))
    return frozenset(of_machine) - alive if rank in alive else frozenset()


def _is_of_run(environment: Mapping[str, str]) -> bool:
    names = ("TORCHELASTIC_RUN_ID", "TORCHELASTIC_RESTART_COUNT", "MASTER_PORT", "GROUP_RANK")
    return "RANK" in environment and all(environment.get(name) == os.environ.get(name) for name in names)


def _pids() -> list[int]:
    with suppress(OSError):
        return [int(path.name) for path in _PROC.iterdir() if path.name.isdecimal()]
    return []


def _parent(pid: int) -> int | None:
    """Return the parent of a process; None if the process has ended, though its parent may not know it yet."""
    try:
        state, parent = (_PROC / str(pid) / "stat").read_text(errors="replace").rpartition(")")[2].split()[:2]
    except (OSError, ValueError):
        return None
    return None if state in {"Z", "X"} else int(parent)


def _environment(pid: int) -> dict[str, str]:
    """Return the environment with which a process was started; empty if it cannot be read or is overwritten.

    A program that changes its title writes over its environment, and PATH is gone.
    """
    try:
        text = (_PROC / str(pid) / "environ").read_bytes().decode(errors="replace")
    except OSError:
        return {}
    values = {name: value for name, equals, value in (entry.partition("=") for entry in text.split("\0")) if equals}
    return values if "PATH" in values else {}
