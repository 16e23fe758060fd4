"""Print tables, progress bars, notes and summaries on the terminal."""

import codecs
import json
import shlex
import sys
import textwrap
import threading
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from repsim.commands.shared import echo, is_first_process
from repsim.errors import BrokenPluginWarning, MissingFontWarning
from repsim.runtime import interrupts
from repsim.runtime.pace import Pace
from repsim.runtime.visible_text import visible

if TYPE_CHECKING:
    import xarray as xr
    from rich.console import Console
    from rich.table import Table

    from repsim.metrics import Metric
    from repsim.runtime.text_tables import Table as Plain

LOG_SECONDS = 30.0
"""Seconds between two lines of progress if stderr is no terminal."""
_LOOK_SECONDS = 1.0
"""Seconds between two looks whether a line is due."""
_ESCAPED = "ascii_escaped"
PROSE = 100
"""Largest width of running text, in columns."""
SCREEN = 40
"""Number of lines that a result takes unless all of it is asked for."""
_NOTES = 3
"""Number of notes in so many lines."""
_HINT = 4
"""Lines of what follows: how to get the rest, and where the file is."""
_FEWEST_ROWS = 3
_AROUND = 7
"""Rows of a table in so many lines, and lines around them."""


def escape_unencodable_text() -> None:
    r"""Make stdout and stderr write characters that their encoding lacks as escapes, such as ``\u65e5``.

    Names of layers, models and files may be in any language, and file names may have no valid encoding. Otherwise,
    printing such a name on a terminal that is set to ASCII or Latin-1 would end in a traceback.
    """
    codecs.register(_escaping_codec)
    for stream in (sys.stdout, sys.stderr):
        if (change := getattr(stream, "reconfigure", None)) is not None:
            plain = codecs.lookup(stream.encoding or "ascii").name == "ascii"
            change(encoding=_ESCAPED if plain else None, errors="backslashreplace")


def _escaping_codec(name: str) -> codecs.CodecInfo | None:
    """Return the ASCII codec under a name unknown to click, which writes UTF-8 to streams named ASCII."""
    if name != _ESCAPED:
        return None
    codec = codecs.lookup("ascii")
    return codecs.CodecInfo(
        codec.encode, codec.decode, incrementalencoder=codec.incrementalencoder,
        incrementaldecoder=codec.incrementaldecoder, name=_ESCAPED,
    )  # fmt: skip


@contextmanager
def warnings_as_notes() -> Iterator[None]:
    """Print warnings about fonts and plug-ins as notes of one line, without their place in the source."""
    original = warnings.showwarning

    def show_warning(message: Warning | str, category: type[Warning], *args: Any, **kwargs: Any) -> None:
        if issubclass(category, (MissingFontWarning, BrokenPluginWarning)):
            echo(f"note: {message}", err=True)
        else:
            original(message, category, *args, **kwargs)

    warnings.showwarning = show_warning
    try:
        yield
    finally:
        warnings.showwarning = original


def is_encodable(text: str) -> bool:
    """Return whether the encoding of stdout has every character of a text."""
    try:
        text.encode(sys.stdout.encoding or "ascii")
    except UnicodeEncodeError:
        return False
    return True


def make_console(*, stderr: bool = False) -> "Console":
    """Return a console that prints tables to stdout or stderr."""
    from rich.console import Console

    console = Console(stderr=stderr, highlight=False, markup=False, emoji=False)  # names may contain [a] or :b:
    if not console.is_terminal:
        console.width = 200  # tables in a pipe or a file should not be cut off
    return console


def make_table(*columns: str, title: str | None = None) -> "Table":
    """Return an empty table; a column whose head begins with ``>`` is right-aligned."""
    from rich import box
    from rich.table import Table

    class VisibleTable(Table):
        def add_row(self, *cells: Any, **options: Any) -> None:
            super().add_row(*(visible(cell) if isinstance(cell, str) else cell for cell in cells), **options)

    title = None if title is None else visible(title)
    table = VisibleTable(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for column in columns:
        table.add_column(
            visible(column.removeprefix(">")), justify="right" if column.startswith(">") else "left", overflow="fold"
        )
    return table


def print_table(plain: "Plain") -> None:
    """Print a table to stdout."""
    click.echo(_drawn(plain), nl=False)


def _drawn(plain: "Plain") -> str:
    """Return a table as it is printed."""
    table = make_table(*plain.heads, title=plain.title or None)
    for k, row in enumerate(plain.rows):
        table.add_row(*row, end_section=k in plain.ends)
    console = make_console()
    with console.capture() as capture:
        console.print(table)
    return str(capture.get())


class Bar:
    """Progress of one step: what is done, the rate, and the time left, on a bar or in the lines of a log file."""

    def __init__(self, what: str, unit: str, clock: Callable[[], float] = time.perf_counter) -> None:
        self.what, self.unit, self.clock = what, unit, clock
        self.pace = Pace()
        self.expect = self.pace.expect
        self.show: Callable[[], None] = lambda: None
        """Called after each report."""
        self._printed = clock()
        self._lock = threading.Lock()

    def __call__(self, done: int, total: int) -> None:
        """Report what is done, and of how much."""
        self.pace.report(self.clock(), done, total)
        self.show()
        interrupts.check()

    def text(self) -> str:
        """Return what is done, the rate and the time left."""
        return self.pace.text(self.clock(), self.unit) if self.pace.total else ""

    def print_line(self) -> None:
        """Print a line if the last one is long enough ago."""
        with self._lock:
            now = self.clock()
            if self.pace.total and now - self._printed >= LOG_SECONDS:
                self._printed = now
                echo(f"{self.what}: {self.text()}", err=True)


@contextmanager
def progress_bar(what: str, unit: str) -> Iterator[Callable[[int, int], None]]:
    """Show a progress bar on stderr, with a rate and the remaining time; in a log file, print a line now and then.

    Work that is done at the first call was done by an earlier run and does not count for the rate. Only the first of
    several processes shows the bar.

    Parameters
    ----------
    what : str
        Description of the work.
    unit : str
        What is counted, such as ``images``; ``%`` for percent of predicted work.

    Yields
    ------
    callable
        Takes the amount of work that is done and the total. It raises KeyboardInterrupt after a signal.
    """
    bar = Bar(what, unit)
    if not is_first_process():
        yield bar
    elif sys.stderr.isatty():
        with _live(bar):
            yield bar
    else:
        with _lines(bar):
            yield bar


@contextmanager
def _live(bar: Bar) -> Iterator[None]:
    """Draw a bar several times a second, so that the time left counts down between two reports."""
    from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn
    from rich.text import Text

    class Amounts(ProgressColumn):
        def render(self, task: Task) -> Text:  # noqa: ARG002 - there is only one
            return Text(bar.text())

    columns = TextColumn("{task.description}"), BarColumn(), Amounts()
    with Progress(*columns, console=make_console(stderr=True), transient=True) as display:
        task = display.add_task(bar.what, total=None)
        bar.show = lambda: display.update(task, completed=bar.pace.done, total=bar.pace.total or None)
        yield


@contextmanager
def _lines(bar: Bar) -> Iterator[None]:
    """Print a line every `LOG_SECONDS`; a thread does this during units that take longer."""
    ended = threading.Event()
    bar.show = bar.print_line

    def print_lines() -> None:
        while not ended.wait(_LOOK_SECONDS):
            bar.print_line()

    thread = threading.Thread(target=print_lines, name="repsim-progress", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def print_notes(result: "xr.Dataset") -> None:
    """Print the notes of a result to stderr: layers left out, missing values, unreliable values."""
    from repsim.results.summary import notes

    for text in notes(result):
        echo(text, err=True)


def print_result(result: "xr.Dataset", *, full: bool = False, path: Path | None = None) -> None:
    """Print the closest layer of every layer under each measure; for many models, averages over their layers.

    What is longer than a screen is printed in full only if asked for: otherwise some rows of every table, evenly
    spaced, of as many measures as fit, and how to get the others.
    """
    from repsim.results.summary import closest, notes

    tables = [closest(variable) for variable in result.data_vars.values()]
    texts = [_drawn(table) for table in tables]
    if full or _count_lines(texts) <= SCREEN:
        click.echo("".join(texts), nl=False)
        return
    room = SCREEN - _count_lines(notes(result)) - _HINT
    for count in range(min(len(tables), max(1, room // (_FEWEST_ROWS + _AROUND))), 0, -1):
        rows = max(_FEWEST_ROWS, room // count - _AROUND)
        texts = [_drawn(table.thinned(rows)) for table in tables[:count]]
        if _count_lines(texts) <= room:  # long titles take several lines
            break
    click.echo("".join(texts), nl=False)
    others = len(tables) - count
    more = f" and {others} more measure{'s' * (others > 1)}" if others else ""
    echo(f"all rows{more}: {_how_to_print_all(path)}")


def print_measures() -> None:
    """Print all measures by group, each on one line."""
    from repsim.metrics import describe

    table = make_table("group", "metric", "question", "sense", "range", "unchanged by")
    for column in table.columns:
        column.no_wrap = column.header not in {"question", "sense"}
    table.columns[3].max_width = len("similarity,")  # "asymmetric" wraps, which leaves more width to the questions
    for group, members in describe.families().items():
        for metric in members:
            sense = metric.sense + ("" if metric.symmetric else ", asymmetric")
            cells = metric.name, metric.question, sense, describe.interval(metric), describe.letters(metric)
            first, last = metric is members[0], metric is members[-1]
            table.add_row(group if first else "", *cells, end_section=last)
    make_console().print(table)
    echo(f"unchanged by {describe.LEGEND}; in brackets, of the second layer only")
    echo("`repsim metrics NAME` explains one measure; docs/metrics.md explains which to choose.")


def print_measure(metric: "Metric[Any]") -> None:
    """Print the full description of a measure."""
    from repsim.metrics import describe

    for line in describe.lines(metric, min(make_console().width, PROSE)):
        click.echo(click.style(visible(line), bold=True) if line[:1].strip() else visible(line))


@contextmanager
def progress_of_steps(unit: str = "") -> Iterator[Callable[[str], Callable[[int, int], None]]]:
    """Show the progress of work that has several steps: one bar for the running step.

    Yields
    ------
    callable
        Takes the name of a step, ends the bar of the step before, and returns the function that advances the new bar.
    """
    with ExitStack() as stack:

        def step(name: str) -> Callable[[int, int], None]:
            stack.close()
            return stack.enter_context(progress_bar(name, unit))

        yield step


def print_study(study: "xr.Dataset", *, full: bool = False, path: Path | None = None) -> None:
    """Print the results of a study: warnings on stderr, tables, and the summary at the end.

    What is longer than a screen is printed in full only if asked for: otherwise the first warnings, the pairs of models
    at both ends, the first sentences of the summary, and how to get the rest.
    """
    from repsim.study.tables import all_tables, ends_of_pairs

    notes, tables, sentences = _parts_of(study, all_tables(study))
    if full or _count_lines([*notes, *tables, *sentences]) <= SCREEN:
        _print_parts(notes, tables, sentences)
        return
    shown = notes if len(notes) <= _NOTES else [*notes[:_NOTES], f"note: {len(notes) - _NOTES} more notes\n"]
    ends = [_drawn(ends_of_pairs(study))] if study.sizes.get("pair") else []
    room = SCREEN - _count_lines([*shown, *ends]) - _HINT
    count = 1
    while count < len(sentences) and _count_lines(sentences[: count + 1]) <= room:
        count += 1
    _print_parts(shown, ends, sentences[:count])
    more = f"{len(sentences) - count} more sentences and " if count < len(sentences) else ""
    echo(f"{more}{len(tables)} tables: {_how_to_print_all(path)}")


def print_series(dataset: "xr.Dataset") -> None:
    """Print a series: warnings on stderr, tables, and the summary at the end."""
    from repsim.trends.tables import all_tables

    _print_parts(*_parts_of(dataset, all_tables(dataset)))


def _how_to_print_all(path: Path | None) -> str:
    """Return the command that prints everything."""
    return "--full prints them" if path is None else shlex.join(["repsim", "inspect", str(path), "--full"])


def _parts_of(dataset: "xr.Dataset", tables: "Iterable[Plain]") -> tuple[list[str], list[str], list[str]]:
    """Return the notes, tables and sentences of a study or a series as they are printed."""
    notes = [f"note: {visible(text)}\n" for text in json.loads(dataset.attrs["warnings"])]
    return notes, list(map(_drawn, tables)), list(map(_filled, json.loads(dataset.attrs["summary"])))


def _print_parts(notes: Sequence[str], tables: Sequence[str], sentences: Sequence[str]) -> None:
    click.echo("".join(notes), nl=False, err=True)
    click.echo("".join([*tables, *sentences]), nl=False)


def _filled(text: str) -> str:
    return textwrap.fill(visible(text), min(make_console().width, PROSE), subsequent_indent="  ") + "\n"


def _count_lines(texts: Iterable[str]) -> int:
    """Return on how many lines of the terminal texts are shown."""
    width = make_console().width
    return sum(max(1, -(-len(line) // width)) for text in texts for line in text.splitlines())
