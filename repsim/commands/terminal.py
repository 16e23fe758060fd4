"""How the command line shows things: tables, progress bars, sizes."""

import codecs
import json
import sys
import textwrap
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import click

from repsim.commands.shared import first_process
from repsim.errors import MissingFontWarning
from repsim.runtime import interrupts
from repsim.runtime.files import format_duration

if TYPE_CHECKING:
    import xarray as xr
    from rich.console import Console
    from rich.table import Table

    from repsim.metrics import Metric
    from repsim.runtime.text_tables import Table as Plain

LOG_SECONDS = 30.0
"""Where stderr is no terminal, progress is told this often."""
_ESCAPED = "ascii_escaped"
PROSE = 100
"""Columns of running text at most, however wide the terminal is."""


def show_any_text() -> None:
    r"""Let stdout and stderr take every character: one that their encoding lacks appears as ``\u65e5``.

    Names of layers, models and files may be in any language, and file names in no valid encoding at all. Without this,
    printing one on a terminal that is set to ASCII or Latin-1 ends in a traceback.
    """
    codecs.register(_escaped_ascii)
    for stream in (sys.stdout, sys.stderr):
        if (change := getattr(stream, "reconfigure", None)) is not None:
            plain = codecs.lookup(stream.encoding or "ascii").name == "ascii"
            change(encoding=_ESCAPED if plain else None, errors="backslashreplace")


def _escaped_ascii(name: str) -> codecs.CodecInfo | None:
    """ASCII by a name that click does not know: to what is called ASCII it writes UTF-8."""
    if name != _ESCAPED:
        return None
    same = codecs.lookup("ascii")
    return codecs.CodecInfo(
        same.encode, same.decode, incrementalencoder=same.incrementalencoder,
        incrementaldecoder=same.incrementaldecoder, name=_ESCAPED,
    )  # fmt: skip


@contextmanager
def warnings_as_notes() -> Iterator[None]:
    """Show warnings that are repsim's own as notes, a line each, and not with a line of its source."""
    ordinary = warnings.showwarning

    def show(message: Warning | str, category: type[Warning], *where: Any, **more: Any) -> None:
        if issubclass(category, MissingFontWarning):
            click.echo(f"note: {message}", err=True)
        else:
            ordinary(message, category, *where, **more)

    warnings.showwarning = show
    try:
        yield
    finally:
        warnings.showwarning = ordinary


def printable(text: str) -> bool:
    """Whether stdout shows a text as it is, and escapes nothing."""
    try:
        text.encode(sys.stdout.encoding or "ascii")
    except UnicodeEncodeError:
        return False
    return True


def console(*, stderr: bool = False) -> "Console":
    """Make the place to print tables on."""
    from rich.console import Console

    made = Console(stderr=stderr, highlight=False, markup=False, emoji=False)  # [a] and :b: are what they look like
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


def show(plain: "Plain") -> None:
    """Print a table."""
    made = table(*plain.heads, title=plain.title or None)
    for k, row in enumerate(plain.rows):
        made.add_row(*row, end_section=k in plain.ends)
    console().print(made)


@contextmanager
def progress(what: str, unit: str) -> Iterator[Callable[[int, int], None]]:
    """A progress bar on stderr with a rate and the time left; in a log file, a line now and then instead.

    What is done at the first call was done before, and is no part of the rate. Of several processes the first shows it.
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
    quiet = not first_process()
    live = sys.stderr.isatty() and not quiet
    with Progress(*columns, console=console(stderr=True), transient=True, disable=not live) as bar:
        task = bar.add_task(what, total=None, rate="")

        def advance(done: int, total: int) -> None:
            nonlocal last, before
            now = time.perf_counter()
            before = done if before is None else before
            speed = (done - before) / max(now - start, 1e-9)
            rate = f"{speed:.1f} {unit}" if speed >= 0.1 or not speed else f"{format_duration(1 / speed)} each"
            bar.update(task, completed=done, total=total, rate=rate)
            if not live and not quiet and now - last >= LOG_SECONDS:
                last = now
                click.echo(f"{what}: {done} of {total}, {rate}", err=True)
            interrupts.check()

        yield advance


def remarks(result: "xr.Dataset") -> None:
    """Say on stderr what was left out, which values are missing, and which mean little, a line each kind."""
    from repsim.results.summary import notes

    for text in notes(result):
        click.echo(text, err=True)


def matches(variable: "xr.DataArray") -> None:
    """The closest layer of each: of two models layer by layer, of many on the average of a model's layers."""
    from repsim.results.summary import closest

    show(closest(variable))


def measures() -> None:
    """All measures by group, a line each."""
    from repsim.metrics import describe

    listed = table("group", "metric", "question", "sense", "range", "unchanged by")
    for column in listed.columns:
        column.no_wrap = column.header not in {"question", "sense"}
    listed.columns[3].max_width = len("similarity,")  # what is asymmetric says so below; questions need the room
    for group, members in describe.families().items():
        for metric in members:
            sense = metric.sense + ("" if metric.symmetric else ", asymmetric")
            said = metric.name, metric.question, sense, describe.interval(metric), describe.letters(metric)
            first, last = metric is members[0], metric is members[-1]
            listed.add_row(group if first else "", *said, end_section=last)
    console().print(listed)
    click.echo(f"unchanged by {describe.LEGEND}; in brackets, of the second layer only")
    click.echo("`repsim metrics NAME` explains one; docs/metrics.md says which to take.")


def explanation(metric: "Metric[Any]") -> None:
    """All that a measure says of itself."""
    from repsim.metrics import describe

    for line in describe.lines(metric, min(console().width, PROSE)):
        click.echo(click.style(line, bold=True) if line[:1].strip() else line)


@contextmanager
def steps(unit: str = "a second") -> Iterator[Callable[[str], Callable[[int, int], None]]]:
    """Progress of work that has several parts: a bar for the part that is being done."""
    with ExitStack() as stack:

        def step(name: str) -> Callable[[int, int], None]:
            stack.close()
            return stack.enter_context(progress(name, unit))

        yield step


def study(found: "xr.Dataset") -> None:
    """What a study found: warnings on stderr, tables, and the summary at the end."""
    from repsim.study.tables import all_tables

    for text in json.loads(found.attrs["warnings"]):
        click.echo(f"note: {text}", err=True)
    for each in all_tables(found):
        show(each)
    for text in json.loads(found.attrs["summary"]):
        click.echo(textwrap.fill(text, min(console().width, PROSE), subsequent_indent="  "))
