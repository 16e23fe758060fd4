"""Run the parts of a computation in threads, each of which uses a single thread of torch.

torch divides every operation among its threads and waits for the slowest. Beside other programs that wait is long, and
an operation on a few thousand numbers gains nothing. So work that consists of independent parts is divided here: a
thread that has finished one part starts the next. As every part is computed by one thread of torch, also if it is the
only one, its value does not depend on the number of threads. The exception are single parts that would take too long.
"""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager, nullcontext
from functools import cache
from threading import Barrier
from typing import Any, TypeVar

import torch

from repsim.runtime import tuning
from repsim.runtime.progress import report_share

R = TypeVar("R")
_REPORT_EVERY = 0.5
"""Seconds after which the calling thread reports what is done."""


def map_in_threads(function: Callable[..., R], *items: Iterable[Any], share_one: bool = False) -> list[R]:
    """Call the function with every item, as many at a time as torch uses threads, and return the values in order.

    Several sequences of items give the arguments of one call each, like `map`. Start with the longest work if its
    parts are not alike. The calling thread reports how much is done (`repsim.runtime.progress.report_share`). An error
    of the function, or of a report, is raised after all threads have stopped; parts that were not started are left out.

    With ``share_one``, all threads of torch work on the part if it is the only one. This is for products and
    decompositions of large matrices, which would take too long in one thread. Their last bits depend on the number of
    threads. After every operation, threads of torch wait for the next one by running for some milliseconds, and take
    the processor from the threads that are used here: so small parts do without them.

    Examples
    --------
    >>> map_in_threads(lambda x: x.square().sum().item(), [torch.ones(3), torch.ones(5)])
    [3.0, 5.0]
    """
    calls = list(zip(*items, strict=True))
    threads = min(torch.get_num_threads(), len(calls))
    if threads <= 1:
        results = []
        with nullcontext() if share_one else _one_thread():
            for call in calls:
                results.append(function(*call))
                report_share(len(results), len(calls))
        return results
    waiting = deque(enumerate(calls))
    values: dict[int, R] = {}
    errors: dict[int, BaseException] = {}
    inference, grad = torch.is_inference_mode_enabled(), torch.is_grad_enabled()

    def work() -> None:
        with torch.inference_mode(inference), torch.set_grad_enabled(grad and not inference):
            while waiting:
                try:
                    k, call = waiting.popleft()
                except IndexError:  # another thread took the last one
                    return
                try:
                    values[k] = function(*call)
                except BaseException as error:  # noqa: BLE001 - raised in the calling thread
                    errors[k] = error
                    waiting.clear()

    pool = _pool(torch.get_num_threads())
    futures = [pool.submit(tuning.in_context(work)) for _ in range(threads)]
    left = set(futures)
    try:
        while left:
            left = wait(left, timeout=_REPORT_EVERY).not_done
            report_share(len(values), len(calls))
    finally:  # also if a report raises an error, because a signal has asked the command line to stop
        waiting.clear()
        wait(futures)
    if errors:  # parts before the first one with an error were started before it, so it is always the same
        raise errors[min(errors)]
    return [values[k] for k in range(len(calls))]


@contextmanager
def _one_thread() -> Iterator[None]:
    """Let torch use one thread in this thread of Python.

    A thread of Python that calls torch for the first time in the meantime adopts this setting. Handing the part to a
    worker would avoid that, but makes small comparisons up to 2.5 times slower beside other programs.
    """
    before = torch.get_num_threads()
    if before == 1:
        yield
        return
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@cache
def _pool(threads: int) -> ThreadPoolExecutor:
    """Return threads that are kept for the whole process, because starting them takes as long as small parts."""
    started = Barrier(threads + 1)

    def start() -> None:
        torch.get_num_threads()  # the first call in a thread adopts the setting of the process
        torch.set_num_threads(1)
        started.wait()

    pool = ThreadPoolExecutor(threads, "repsim-worker", initializer=start)
    for _ in range(threads):
        pool.submit(int)
    started.wait()
    torch.set_num_threads(threads)  # the call in a worker is also valid for threads that start later
    return pool


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_pool.cache_clear)  # a forked process has none of these threads
