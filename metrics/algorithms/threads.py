"""Work on many pairs of layers in threads, one torch thread each."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, TypeVar

import torch

from repsim.runtime import tuning
from repsim.runtime.progress import report_share

T = TypeVar("T")


def map_in_threads(function: Callable[..., T], *items: Sequence[Any]) -> list[T]:
    """Call the function on all items in threads, as many at a time as torch uses, each with a single torch thread.

    The work on one pair, such as the decomposition of a small matrix, gains little from several threads. Results are in
    the order of the items.
    """
    threads, results = torch.get_num_threads(), []
    if threads == 1:
        for args in zip(*items, strict=True):
            results.append(function(*args))
            report_share(len(results), len(items[0]))
        return results
    with ThreadPoolExecutor(threads, "repsim-pairs", initializer=partial(torch.set_num_threads, 1)) as pool:
        futures = [pool.submit(tuning.in_context(function), *args) for args in zip(*items, strict=True)]
        for future in futures:
            results.append(future.result())
            report_share(len(results), len(futures))
    torch.set_num_threads(threads)
    return results
