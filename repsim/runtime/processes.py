"""The processes of one run, as torchrun starts them: who is who, and the few things that they tell each other."""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar
from uuid import uuid4

import torch.distributed as dist

from repsim.errors import OtherProcessError

T = TypeVar("T")
_PATIENCE = timedelta(days=30)
"""torchrun ends all when one dies: nobody waits in vain."""


@dataclass(frozen=True)
class Ranks:
    """Which process of a run this one is. One on its own gets at once whatever it asks for."""

    rank: int = 0
    world: int = 1

    @property
    def first(self) -> bool:
        """Whether this is the one that prints, and opens and closes files for all."""
        return self.rank == 0

    def broadcast(self, value: T) -> T:
        """What the first process gives, in every process. Whoever comes here early waits."""
        held = [value]
        if self.world > 1:
            with self._others():
                dist.broadcast_object_list(held)
        return held[0]

    def gather(self, value: T) -> list[T]:
        """What each process gives, by rank, in every process."""
        if self.world == 1:
            return [value]
        held: list[Any] = [None] * self.world
        with self._others():
            dist.all_gather_object(held, value)
        return held

    @contextmanager
    def _others(self) -> Iterator[None]:
        try:
            yield
        except RuntimeError:
            raise OtherProcessError(first=self.first) from None

    def wait(self) -> None:
        """Until every process is here."""
        self.gather(None)

    def part(self, length: int) -> slice:
        """The share of this process in so many things: neighbours, so that what it reads and writes lies together.

        >>> [Ranks(rank, 3).part(10) for rank in range(3)]
        [slice(0, 3, None), slice(3, 6, None), slice(6, 10, None)]
        """
        return slice(self.rank * length // self.world, (self.rank + 1) * length // self.world)


ALONE = Ranks()


def _attempt(store: Any, rank: int, world: int) -> str:
    """Agree on a name that no earlier attempt of this run has had.

    torchrun starts all processes again when one has died, and its store still knows the addresses of the dead: without
    names of their own the living try to reach them (pytorch#135712). Nor can they count attempts: each machine counts
    its own. So the first makes up a name, and whoever reads it waits until the first has seen that it did.
    """
    me = uuid4().hex
    if rank == 0:
        store.set("repsim", me)
        store.set(f"repsim/{me}", " ".join(store.get(f"repsim/{me}/{other}").decode() for other in range(1, world)))
        return me
    while True:
        name: str = store.get("repsim").decode()
        store.set(f"repsim/{name}/{rank}", me)
        with suppress(dist.DistStoreError):  # not yet
            store.wait([f"repsim/{name}"], timedelta(seconds=1))
            if me in store.get(f"repsim/{name}").decode():
                return name
        time.sleep(0.05)  # the name is of an earlier attempt


@contextmanager
def ranks() -> Iterator[Ranks]:
    """Find the other processes, where torchrun started this one; a process on its own is all there is.

    They only tell each other who does what, so gloo will do, with a GPU or without. A process group that the program
    has made itself is used as it is.
    """
    if dist.is_available() and dist.is_initialized():
        yield Ranks(dist.get_rank(), dist.get_world_size())
        return
    if not (dist.is_available() and dist.is_torchelastic_launched() and int(os.environ["WORLD_SIZE"]) > 1):
        yield ALONE
        return
    from torch.distributed.distributed_c10d import PrefixStore  # noqa: PLC0415 - a torch may be built without
    from torch.distributed.rendezvous import rendezvous  # noqa: PLC0415

    store, rank, world = next(rendezvous("env://", timeout=_PATIENCE))
    store = PrefixStore(_attempt(store, rank, world), store)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=world, timeout=_PATIENCE)
    try:
        yield Ranks(dist.get_rank(), dist.get_world_size())
    finally:
        dist.destroy_process_group()


def restarted() -> bool:
    """Whether torchrun has started this run again, after one of its processes died."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0


def local_rank() -> int:
    """The number of this process on its machine: which of the GPUs is its own."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def local_world() -> int:
    """Processes of this run on this machine, which share its cores."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
