"""Find and connect the processes of one run that torchrun has started."""

import hashlib
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar
from uuid import uuid4

import torch.distributed as dist
from torch import Tensor

from repsim.errors import OtherProcessError, UnequalProcessesError
from repsim.runtime import interrupts
from repsim.runtime.ended_processes import ended_processes

T = TypeVar("T")
_START_SECONDS = 10.0
"""Seconds that torchrun may take to start all processes of a machine, of which none counts as ended before."""
_PAUSE_SECONDS = 0.05
"""Seconds between two looks at what the other processes have written."""
_LATER_SECONDS = 3.0
"""Seconds by which the other processes raise the error later than the one that reports it."""
_PATIENCE = timedelta(days=30)
"""Timeout of the process group. It may be long, because torchrun ends all processes when one dies."""


@dataclass(frozen=True)
class Ranks:
    """Rank of this process among the processes of a run. For a single process, all collectives return at once."""

    rank: int = 0
    world: int = 1
    """Number of processes."""

    @property
    def first(self) -> bool:
        """Whether this is the process that prints, and opens and closes files for all."""
        return self.rank == 0

    def broadcast(self, value: T) -> T:
        """Return the value of the first process in every process; wait for all processes."""
        values = [value]
        if self.world > 1:
            with self._process_errors():
                dist.broadcast_object_list(values)
        return values[0]

    def gather(self, value: T) -> list[T]:
        """Return the values of all processes, in the order of their ranks, in every process."""
        if self.world == 1:
            return [value]
        values: list[Any] = [None] * self.world
        with self._process_errors():
            dist.all_gather_object(values, value)
        return values

    @contextmanager
    def _process_errors(self) -> Iterator[None]:
        try:
            yield
        except RuntimeError:
            raise OtherProcessError(first=self.first) from None

    def add(self, values: Tensor) -> Tensor:
        """Return the sum of the arrays of all processes, in every process. Sums of whole numbers are exact."""
        if self.world == 1:
            return values
        total = values.cpu()
        with self._process_errors():
            dist.all_reduce(total)
        return total.to(values.device)

    def wait(self) -> None:
        """Wait until every process has called this method."""
        self.gather(None)

    def agree(self, facts: Mapping[str, object]) -> None:
        """Raise `UnequalProcessesError` in every process unless ``facts`` are equal in all; wait for all processes.

        Processes that share work take for granted that each of them would compute the same. Without this check, nodes
        with other copies of the files would exchange values that belong to other data, or wait for ever.

        Parameters
        ----------
        facts : mapping of str to object
            What the work depends on, such as checksums and options, by its name; equal if their ``repr`` is.
        """
        if self.world == 1:
            return
        digests = {name: hashlib.sha256(repr(value).encode()).hexdigest() for name, value in facts.items()}
        first, *others = self.gather(digests)
        for rank, other in enumerate(others, start=1):
            if names := [name for name in {**first, **other} if first.get(name) != other.get(name)]:
                raise UnequalProcessesError(
                    f"process {rank} has other {' and '.join(names)} than process 0", first=self.first
                )

    def part(self, length: int) -> slice:
        """Return this process's share of ``length`` items, a contiguous slice.

        >>> [Ranks(rank, 3).part(10) for rank in range(3)]
        [slice(0, 3, None), slice(3, 6, None), slice(6, 10, None)]
        """
        return slice(self.rank * length // self.world, (self.rank + 1) * length // self.world)


ALONE = Ranks()


class _Meeting:
    """Store of torchrun, through which the processes meet; waiting ends when one of them is known to have ended."""

    def __init__(self, store: Any, rank: int, world: int) -> None:
        self.store, self.rank, self.world = store, rank, world
        self.begun = time.monotonic()
        self.ended = f"repsim/ended/{os.environ.get('TORCHELASTIC_RESTART_COUNT')}"

    def attempt(self) -> str:
        """Agree with the other processes on a name for this attempt of the run, which no earlier attempt has had.

        When a process dies, torchrun starts all of them again, and its store may still hold the addresses of the
        earlier processes; without a separate prefix the new ones would try to connect to those (pytorch#135712). The
        restart count cannot serve as a name, because every machine counts its own restarts. So the first process draws
        a name, and every other process waits until the first has confirmed that it read this name.
        """
        store, token = self.store, uuid4().hex
        if self.rank == 0:
            store.set("repsim", token)
            tokens = []
            for other in range(1, self.world):
                self.wait(key := f"repsim/{token}/{other}")
                tokens.append(store.get(key).decode())
            store.set(f"repsim/{token}", " ".join(tokens))
            return token
        while True:
            self.wait("repsim")
            name: str = store.get("repsim").decode()
            store.set(f"repsim/{name}/{self.rank}", token)
            if store.check([f"repsim/{name}"]) and token in store.get(f"repsim/{name}").decode():
                return name
            self.check()  # not confirmed yet, or the name is that of an earlier attempt

    def wait(self, key: str) -> None:
        """Wait until the store has a key; its own `wait` would print a warning every second."""
        while not self.store.check([key]):
            self.check()

    def check(self) -> None:
        """Pause; raise `OtherProcessError` if a process has ended, which those of its machine or of others noticed."""
        time.sleep(_PAUSE_SECONDS)
        if time.monotonic() > self.begun + _START_SECONDS and (ended := ended_processes()):
            self.store.set(self.ended, " ".join(map(str, sorted(ended))))
        if self.store.check([self.ended]):
            ranks = [int(rank) for rank in self.store.get(self.ended).decode().split()]
            first = self.rank == min(set(range(self.world)).difference(ranks))
            if not first:  # torchrun stops the others as soon as one ends, also the one that reports this
                time.sleep(_LATER_SECONDS)
            raise OtherProcessError(first=first, ended=ranks)
        interrupts.check()


@contextmanager
def ranks() -> Iterator[Ranks]:
    """Yield the `Ranks` of this process, and connect it with the others if torchrun started it.

    The processes exchange only small Python objects, so the backend is gloo, with a GPU or without. A process group
    that the program has initialised itself is used as it is.
    """
    if dist.is_available() and dist.is_initialized():
        yield Ranks(dist.get_rank(), dist.get_world_size())
        return
    if not (dist.is_available() and dist.is_torchelastic_launched() and int(os.environ["WORLD_SIZE"]) > 1):
        yield ALONE
        return
    from torch.distributed.distributed_c10d import PrefixStore  # noqa: PLC0415 - not in every build of torch
    from torch.distributed.rendezvous import rendezvous  # noqa: PLC0415

    first = os.environ["RANK"] == "0"
    try:
        store, rank, world = next(rendezvous("env://", timeout=_PATIENCE))
        store = PrefixStore(_Meeting(store, rank, world).attempt(), store)
        dist.init_process_group("gloo", store=store, rank=rank, world_size=world, timeout=_PATIENCE)
    except (dist.DistNetworkError, dist.DistStoreError) as error:  # the process that held the store is gone
        raise OtherProcessError(first=first) from error
    try:
        yield Ranks(dist.get_rank(), dist.get_world_size())
    finally:
        dist.destroy_process_group()


def restarted() -> bool:
    """Return whether torchrun has restarted this run after one of its processes died."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0


def local_rank() -> int:
    """Return the rank of this process on its machine, which selects its GPU."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def local_world() -> int:
    """Return the number of processes of this run on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
