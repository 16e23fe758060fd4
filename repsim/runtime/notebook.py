"""Progress in a notebook: a bar that Jupyter draws, for work that takes longer than a moment.

IPython is no dependency of repsim: only where its kernel runs is it asked to show something. The bar is plain HTML,
which every front end shows and a saved notebook keeps; rich's needs ipywidgets there.
"""

import importlib
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from html import escape
from typing import Any

from repsim.runtime import tuning
from repsim.runtime.files import format_duration


def running() -> bool:
    """Whether this process is the kernel of a notebook, and not a script or IPython on a terminal."""
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return hasattr(shell, "kernel")


@dataclass(frozen=True)
class _Shown:
    """What a cell shows."""

    text: str
    done: int = 0
    total: int = 0

    def __repr__(self) -> str:
        return self.text

    def _repr_html_(self) -> str:
        bar = (
            f'<progress value="{self.done}" max="{self.total}" aria-label="progress"></progress> ' if self.total else ""
        )
        return f'<div style="color:inherit;opacity:.75;font-size:90%">{bar}{escape(self.text)}</div>'


@contextmanager
def bar(what: str) -> Iterator[Callable[[str], Callable[[int, int], None]]]:
    """Make what begins a step, by its name, of work that is called ``what``; at the end stands how long it took.

    What is done at the first call was done before, and says nothing of the time that is left.
    """
    started = drawn = time.perf_counter()
    handle: Any = None
    now = what

    def draw(shown: _Shown) -> None:
        nonlocal handle
        if handle is None:
            handle = importlib.import_module("IPython.display").display(shown, display_id=True)
        else:
            handle.update(shown)

    def step(name: str) -> Callable[[int, int], None]:
        nonlocal now
        begun, before = time.perf_counter(), -1
        now = name

        def advance(done: int, total: int) -> None:
            nonlocal drawn, before, now
            at = time.perf_counter()
            before = done if before < 0 else before
            now = f"{name}: {done:,} of {total:,}"
            if at - started < tuning.current().bar_after or (
                handle is not None and at - drawn < tuning.current().bar_every
            ):
                return
            drawn = at
            left = (at - begun) * (total - done) / (done - before) if done > before else 0
            draw(_Shown(now + (f", {format_duration(left)} left" if left >= 1 else ""), done, total))

        return advance

    try:
        yield step
    except BaseException:
        if handle is not None:
            draw(_Shown(f"{now}, stopped"))
        raise
    if handle is not None:
        draw(_Shown(f"{what}: {format_duration(time.perf_counter() - started)}"))
