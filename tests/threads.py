"""Number of torch threads of a part of a test."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def torch_threads(count: int) -> Iterator[int]:
    """Let torch use this number of threads during the block, and yield the number.

    With one thread all work is done by the caller, where modes of torch see its operations and every part is reported.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield count
    finally:
        torch.set_num_threads(before)
