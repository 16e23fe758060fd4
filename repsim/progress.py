"""How long work tells how far it is, without knowing who listens."""

import itertools
from collections.abc import Callable

Progress = Callable[[int, int], None]
"""Called with the number of steps done, and of all."""


def counter(total: int, progress: Progress | None) -> Callable[[], None]:
    """Make a function that reports one more step each time it is called.

    >>> step = counter(2, lambda done, total: print(f"{done} of {total}"))
    >>> step()
    1 of 2
    >>> step()
    2 of 2
    """
    done = itertools.count(1)

    def step() -> None:
        if progress is not None:
            progress(next(done), total)

    return step
