"""Report the progress of long computations.

A function that is called from a script prints nothing. In a notebook it shows a bar (`repsim.runtime.notebook`), unless
``progress=False``. The command line has its own bars. If ``progress`` is a function, it is called instead.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from typing import Literal

from repsim.runtime import interrupts, notebook

Progress = Callable[[int, int], None]
"""Function called with the number of steps done and the total number of steps. It may be called again with the same
numbers, as a sign of life."""
Steps = Callable[[str], Progress | None]
"""Function called with the name of each step of the work; returns the `Progress` function of the step, or None."""
Listener = Progress | Literal[False] | None
"""Progress argument: a function, False (silent), or None (a bar in a notebook)."""
_progress_owned = ContextVar("progress owned", default=False)
"""Whether a calling function already decides how progress is reported."""


class Step:
    """Function that reports one more finished unit of work each time it is called; this one ignores all reports."""

    def __call__(self) -> None:
        """Report one more unit as finished."""

    def skip(self, count: int) -> None:
        """Report that ``count`` units need not be computed, because an earlier run has computed them."""

    def share(self, share: float) -> None:
        """Report the share of the running unit that is done, from 0 to 1."""


class _Counter(Step):
    def __init__(self, total: int, progress: Progress | None) -> None:
        self._done, self._total, self._progress = 0, total, progress

    def __call__(self) -> None:
        self._done += 1
        self.share(0.0)

    def skip(self, count: int) -> None:
        self._done += count

    def share(self, share: float) -> None:  # noqa: ARG002 - steps are counted whole
        if self._progress is not None:
            self._progress(self._done, self._total)
        interrupts.check()


def counter(total: int, progress: Progress | None) -> Step:
    """Return a function that reports one more step each time it is called.

    It also raises `Stopped` if the command line has to stop (`repsim.runtime.interrupts`).

    >>> step = counter(2, lambda done, total: print(f"{done} of {total}"))
    >>> step()
    1 of 2
    >>> step()
    2 of 2
    """
    return _Counter(total, progress)


def spread(step: Callable[[], None], count: int) -> Progress:
    """Return the `Progress` function of some work that calls ``step``, ``count`` times in all, as the work proceeds.

    >>> progress = spread(lambda: print("step"), 2)
    >>> progress(2, 5), progress(3, 5)
    step
    (None, None)
    >>> progress(5, 5)
    step
    """
    steps = 0

    def progress(done: int, total: int) -> None:
        nonlocal steps
        while steps < count * done // total:
            step()
            steps += 1

    return progress


_share: ContextVar[Callable[[float], None] | None] = ContextVar("share of the running unit", default=None)


@contextmanager
def sharing(step: Callable[[], None]) -> Iterator[None]:
    """Pass what `report_share` reports during the block to ``step``, if it is a `Step`.

    >>> class Shown(Step):
    ...     def share(self, share: float) -> None:
    ...         print(f"{share:.0%}")
    >>> with sharing(Shown()):
    ...     report_share(1, 4)
    25%
    """
    token = _share.set(step.share if isinstance(step, Step) else None)
    try:
        yield
    finally:
        _share.reset(token)


def report_share(done: float, total: float) -> None:
    """Report how much of the running unit of work is done, from a long loop inside of it; nothing if nobody listens."""
    if (listener := _share.get()) is not None:
        listener(done / total)


@contextmanager
def part_of_unit(begin: float, end: float, total: float) -> Iterator[None]:
    """Pass what `report_share` reports during the block on as a part of the running unit of work.

    >>> class Shown(Step):
    ...     def share(self, share: float) -> None:
    ...         print(f"{share:.0%}")
    >>> with sharing(Shown()), part_of_unit(1, 2, 4):
    ...     report_share(0, 5)
    ...     report_share(5, 5)
    25%
    50%
    """
    whole = _share.get()
    token = _share.set(None if whole is None else lambda share: whole((begin + share * (end - begin)) / total))
    try:
        yield
    finally:
        _share.reset(token)


@contextmanager
def counted(step: Callable[[], None], count: int) -> Iterator[None]:
    """Call ``step`` for what `report_share` reports during the block, ``count`` times in all.

    >>> with counted(lambda: print("step"), 2):
    ...     report_share(2, 4)
    ...     print("half of it")
    step
    half of it
    step
    """
    progress = spread(step, count)
    token = _share.set(lambda share: progress(round(share * count), count))
    try:
        yield
    finally:
        _share.reset(token)
    progress(count, count)


def expect(progress: Progress | None, seconds: float | None) -> None:
    """Predict how long the rest of the work takes, for a listener that shows the time left; others ignore it.

    None means that work of another kind begins, so that the speed so far predicts nothing.
    """
    if (listener := getattr(progress, "expect", None)) is not None:
        listener(seconds)


def part_of(progress: Progress | None, before: int, total: int) -> Progress | None:
    """Return the function that receives the progress of a part of some work, which begins after ``before`` steps.

    >>> part_of(lambda done, total: print(f"{done} of {total}"), 100, 300)(20, 50)
    120 of 300
    """
    return None if progress is None else _Part(progress, before, total)


class _Part:
    def __init__(self, progress: Progress, before: int, total: int) -> None:
        self._progress, self._before, self._total = progress, before, total

    def __call__(self, done: int, _: int) -> None:
        self._progress(self._before + done, self._total)

    def expect(self, seconds: float | None) -> None:
        if seconds is None:
            expect(self._progress, None)


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
