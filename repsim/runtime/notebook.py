"""Show a progress bar in Jupyter notebooks.

IPython is not a dependency of repsim: it is only imported if its kernel is running. The bar is plain HTML, which every
front end shows and a saved notebook keeps; the bars of rich need ipywidgets there.
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
from repsim.runtime.pace import Pace


def running() -> bool:
    """Return whether this process is the kernel of a notebook, rather than a script or IPython in a terminal."""
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return hasattr(shell, "kernel")


@dataclass(frozen=True)
class _BarOutput:
    """Content of the notebook output: a text, and a bar if ``total`` is known."""

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
    """Yield a function that starts a step by its name and returns its `Progress` function; show the bar of ``what``.

    At the end the bar is replaced by the total time. Steps that are already done at the first call, as in a resumed
    run, do not count in the estimate of the time that is left.
    """
    started = drawn = time.perf_counter()
    handle: Any = None
    text = what

    def draw(output: _BarOutput) -> None:
        nonlocal handle
        if handle is None:
            handle = importlib.import_module("IPython.display").display(output, display_id=True)
        else:
            handle.update(output)

    class Step:
        def __init__(self, name: str) -> None:
            nonlocal text
            text = self.name = name
            self.pace = Pace()
            self.expect = self.pace.expect

        def __call__(self, done: int, total: int) -> None:
            nonlocal drawn, text
            now = time.perf_counter()
            self.pace.report(now, done, total)
            text = f"{self.name}: {done:,} of {total:,}"
            if now - started < tuning.current().bar_after or (
                handle is not None and now - drawn < tuning.current().bar_every
            ):
                return
            drawn = now
            draw(_BarOutput(f"{self.name}: {self.pace.text(now)}", done, total))

    try:
        yield Step
    except BaseException:
        if handle is not None:
            draw(_BarOutput(f"{text}, stopped"))
        raise
    if handle is not None:
        draw(_BarOutput(f"{what}: {format_duration(time.perf_counter() - started)}"))
