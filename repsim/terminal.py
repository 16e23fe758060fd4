"""How the command line shows things: tables, progress bars, sizes."""

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

LOG_SECONDS = 30.0
"""Where stderr is no terminal, progress is told this often."""


def times(shape: Sequence[int]) -> str:
    """``64 x 7 x 7``."""
    return " x ".join(map(str, shape))


def console(*, stderr: bool = False) -> "Console":
    """Make the place to print tables on."""
    from rich.console import Console

    made = Console(stderr=stderr, highlight=False)
    if not made.is_terminal:
        made.width = 200  # in a pipe or a file nothing should be cut off
    return made


def table(*columns: str, title: str | None = None) -> "Table":
    """A table; a column whose head begins with > is set flush right."""
    from rich import box
    from rich.table import Table

    made = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for column in columns:
        made.add_column(
            column.removeprefix(">"), justify="right" if column.startswith(">") else "left", overflow="fold"
        )
    return made


@contextmanager
def waiting(what: str, *, quiet: bool = False) -> Iterator[None]:
    """A spinner on stderr for work whose length nobody knows; nothing where stderr is no terminal."""
    with console(stderr=True).status(what) if sys.stderr.isatty() and not quiet else nullcontext():
        yield


@contextmanager
def progress(what: str, unit: str, *, quiet: bool = False) -> Iterator[Callable[[int, int], None]]:
    """A progress bar on stderr with a rate and the time left; in a log file, a line now and then instead.

    What is done at the first call was done before, and is no part of the rate.
    """
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
    )
    start = last = time.perf_counter()
    before: int | None = None
    live = sys.stderr.isatty() and not quiet
    with Progress(*columns, console=console(stderr=True), transient=True, disable=not live) as bar:
        task = bar.add_task(what, total=None, rate="", visible=False)

        def advance(done: int, total: int) -> None:
            nonlocal last, before
            now = time.perf_counter()
            before = done if before is None else before
            rate = f"{(done - before) / max(now - start, 1e-9):.1f} {unit}"
            bar.update(task, completed=done, total=total, rate=rate, visible=True)
            if not live and not quiet and now - last >= LOG_SECONDS:
                last = now
                click.echo(f"{what}: {done} of {total}, {rate}", err=True)

        yield advance
