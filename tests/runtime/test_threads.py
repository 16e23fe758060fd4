"""Parts of a computation are computed once each, in threads with one torch thread, and come back in their order."""

import os
import threading
import time
from collections.abc import Callable, Iterator

import pytest
import torch
from typing_extensions import override

from repsim.runtime import tuning
from repsim.runtime.progress import Step, sharing
from repsim.runtime.threads import map_in_threads
from tests.threads import torch_threads


@pytest.fixture(params=[1, 2, 5])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    """Let torch use this number of threads."""
    with torch_threads(request.param) as count:
        yield count


class PartError(Exception):
    """Error of a part in these tests."""


def test_values_come_in_the_order_of_the_items(threads: int) -> None:
    def slow_first(k: int) -> tuple[int, int]:
        time.sleep(0.002 * (k < 3))
        return k, torch.get_num_threads()

    values = map_in_threads(slow_first, range(40))
    assert [k for k, _ in values] == list(range(40))
    assert {count for _, count in values} == {1}
    assert torch.get_num_threads() == threads  # and so it is in threads that start later
    later: list[int] = []
    thread = threading.Thread(target=lambda: later.append(torch.get_num_threads()))
    thread.start()
    thread.join()
    assert later == [threads]


def test_several_sequences_give_the_arguments() -> None:
    assert map_in_threads(lambda a, b: a - b, [5, 7], [1, 2]) == [4, 5]
    assert map_in_threads(abs, []) == []


def test_a_single_part_uses_one_thread_of_torch_unless_it_is_large(threads: int) -> None:
    """Otherwise its last bits would depend on the number of threads."""
    assert map_in_threads(lambda _: torch.get_num_threads(), [0]) == [1]
    assert map_in_threads(lambda _: torch.get_num_threads(), [0], share_one=True) == [threads]
    assert set(map_in_threads(lambda _: torch.get_num_threads(), range(9), share_one=True)) == {1}
    assert torch.get_num_threads() == threads
    with pytest.raises(PartError):
        map_in_threads(raise_error, [0])
    assert torch.get_num_threads() == threads


def raise_error(_: int) -> None:
    raise PartError


def test_as_many_parts_are_computed_at_once_as_torch_has_threads(threads: int) -> None:
    together = threading.Barrier(threads)
    map_in_threads(lambda _: together.wait(10), range(threads))  # waits for all of them


def test_settings_and_modes_are_those_of_the_caller(threads: int) -> None:
    def modes(_: int) -> tuple[int, bool, bool]:
        return tuning.current().piece, torch.is_grad_enabled(), torch.is_inference_mode_enabled()

    with tuning.using(piece=7):
        assert set(map_in_threads(modes, range(2 * threads))) == {(7, True, False)}
        with torch.no_grad():
            assert set(map_in_threads(modes, range(2 * threads))) == {(7, False, False)}
        with torch.inference_mode():
            assert set(map_in_threads(modes, range(2 * threads))) == {(7, False, True)}
    assert torch.is_grad_enabled()


def test_an_error_is_raised_after_all_threads_have_stopped(threads: int) -> None:
    started, ended = [], []

    def part(k: int) -> None:
        started.append(k)
        if k == 1:
            raise PartError
        time.sleep(0.01)
        ended.append(k)

    with pytest.raises(PartError):
        map_in_threads(part, range(100))
    assert sorted(ended) == [k for k in sorted(started) if k != 1]
    assert len(started) <= 2 * threads  # the others are left out
    assert map_in_threads(abs, [-1, 2]) == [1, 2]  # the threads are still usable


def test_of_several_errors_that_of_the_first_part_is_raised(threads: int) -> None:
    """Also if a later part fails sooner."""

    def part(k: int) -> None:
        time.sleep(0.05 if k == 1 else 0)
        if k:
            raise PartError(k)

    for _ in range(3):
        with pytest.raises(PartError, match="^1$"):
            map_in_threads(part, range(6))


class Listener(Step):
    """Calls a function with every share that is reported."""

    def __init__(self, share: Callable[[float], None]) -> None:
        self._share = share

    @override
    def share(self, share: float) -> None:
        self._share(share)


def test_the_caller_reports_what_is_done_while_threads_still_work(threads: int) -> None:
    count = 2 * threads + 1
    shares: list[float] = []
    reported = threading.Event()

    def listen(share: float) -> None:
        shares.append(share)
        if share > 0:
            reported.set()

    def part(k: int) -> bool:
        return k < count - 1 or reported.wait(60)  # the last part ends after a report

    with sharing(Listener(listen)):
        assert all(map_in_threads(part, range(count)))
    assert shares == sorted(shares)
    assert shares[-1] == 1


def test_a_listener_that_raises_ends_the_work(threads: int) -> None:
    """As `Stopped` does."""
    started, ended = [], []

    def stop(share: float) -> None:
        raise PartError(share)

    def part(k: int) -> None:
        started.append(k)
        time.sleep(0.005)
        ended.append(k)

    with pytest.raises(PartError), sharing(Listener(stop)):
        map_in_threads(part, range(20_000))
    assert sorted(started) == sorted(ended)  # no thread still works
    assert len(started) < 20_000  # the others are left out


def test_parts_may_have_parts(threads: int) -> None:
    def inner(k: int) -> int:
        return sum(map_in_threads(lambda i: i * k, range(4)))

    assert map_in_threads(inner, range(3 * threads)) == [6 * k for k in range(3 * threads)]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")
def test_a_forked_process_starts_its_own_threads(threads: int) -> None:
    map_in_threads(abs, range(threads + 1))
    child = os.fork()
    if child == 0:
        os._exit(map_in_threads(abs, [-3, -4, -5]) != [3, 4, 5])
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
