"""Report the progress of long computations.

A function that is called from a script prints nothing. In a notebook it shows a bar (`repsim.runtime.notebook`), unless
``progress=False``. The command line has its own bars. If ``progress`` is a function, it is called instead.
"""

import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from typing import Literal

from repsim.runtime import interrupts, notebook

Progress = Callable[[int, int], None]
"""Function called with the number of steps done and the total number of steps."""
Steps = Callable[[str], Progress | None]
"""Function called with the name of each step of the work; returns the `Progress` function of the step, or None."""
Listener = Progress | Literal[False] | None
"""Progress argument: a function, False (silent), or None (a bar in a notebook)."""
_progress_owned = ContextVar("progress owned", default=False)
"""Whether a calling function already decides how progress is reported."""


def counter(total: int, progress: Progress | None) -> Callable[[], None]:
    """Return a function that reports one more step each time it is called.

    It also raises `Stopped` if the command line has to stop (`repsim.runtime.interrupts`).

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
        interrupts.check()

    return step


@contextmanager
def report_progress(what: str, listener: Listener) -> Iterator[Progress | None]:
    """Yield the function to call with the progress of ``what``, or None.

    >>> with report_progress("counting", print) as progress:
    ...     progress(1, 2)
    1 2
    >>> with report_progress("counting", None) as progress:  # no notebook
    ...     progress is None
    True
    """
    with report_steps(what, (lambda _: listener) if callable(listener) else listener) as step:
        yield step(what)


@contextmanager
def report_steps(what: str, listener: Steps | Literal[False] | None) -> Iterator[Steps]:
    """Yield the function to call at the start of each step of ``what``.

    Nested calls do not show a bar of their own: a study that runs comparisons shows one bar, or none.
    """
    shown = listener is None and not _progress_owned.get() and notebook.running()
    token = _progress_owned.set(True)
    try:
        with notebook.bar(what) if shown else nullcontext(listener or (lambda _: None)) as step:
            yield step
    finally:
        _progress_owned.reset(token)
