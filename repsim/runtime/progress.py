"""How long work tells how far it is, without knowing who listens.

Work that is called from Python is silent in a script: what a program prints is its author's business. In a notebook,
where somebody sits and waits, it shows a bar (`repsim.runtime.notebook`), unless it is given ``progress=False``. The
command line has bars of its own. Whatever is given as ``progress`` is called, and nothing else is shown.
"""

import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from typing import Literal

from repsim.runtime import interrupts, notebook

Progress = Callable[[int, int], None]
"""Called with the number of steps done, and of all."""
Steps = Callable[[str], Progress | None]
"""Called with the name of each step of the work; returns what is told about its progress."""
Listener = Progress | Literal[False] | None
"""Who is told: a function, nobody, or (None) whoever waits in a notebook."""
_progress_owned = ContextVar("spoken for", default=False)
"""Whether this is part of work that tells, or does not tell, how far it is."""


def counter(total: int, progress: Progress | None) -> Callable[[], None]:
    """Make a function that reports one more step each time it is called.

    Between two steps the command line may stop (`repsim.runtime.interrupts`).

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
    """Find out what to call while ``what`` is done.

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
    """Find out what to call while ``what``, which has several steps, is done.

    Whoever is called by others leaves it to them: a study that compares shows one bar, or none.
    """
    shown = listener is None and not _progress_owned.get() and notebook.running()
    token = _progress_owned.set(True)
    try:
        with notebook.bar(what) if shown else nullcontext(listener or (lambda _: None)) as step:
            yield step
    finally:
        _progress_owned.reset(token)
