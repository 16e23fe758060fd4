"""How the command line shows things: tables, progress bars, sizes."""

import json
import sys
import textwrap
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

import click

from repsim.files import human

if TYPE_CHECKING:
    import xarray as xr
    from rich.console import Console
    from rich.table import Table

    from repsim.metrics import Metric
    from repsim.plan import Cost, Plan

LOG_SECONDS = 30.0
"""Where stderr is no terminal, progress is told this often."""
PROSE = 100
"""Columns of running text at most, however wide the terminal is."""


def times(shape: Sequence[int]) -> str:
    """``64 x 7 x 7``."""
    return " x ".join(map(str, shape))


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


def remarks(result: "xr.Dataset") -> None:
    """Say on stderr what was left out, which values are missing, and which mean little, a line each kind."""
    for text in json.loads(result.attrs["left_out"]):
        click.echo(f"left out: {text}", err=True)
    for variable in result.data_vars.values():
        _remarks(variable)


def _remarks(variable: "xr.DataArray") -> None:
    for text in json.loads(variable.attrs["undefined"]):
        click.echo(f"{variable.name}: no value: {text}", err=True)
    for text in json.loads(variable.attrs.get("remarks", "[]")):
        click.echo(f"{variable.name}: {text}", err=True)
    if cautions := json.loads(variable.attrs["cautions"]):
        click.echo(
            f"{variable.name}: {len(cautions)} of {variable.size} values say little, for instance {cautions[0]}",
            err=True,
        )


def plan(plan: "Plan", rates: "Cost") -> None:
    """Say on stderr what will be done, and what it is predicted to take on a machine of these rates."""
    for line in plan.lines():
        click.echo(line, err=True)
    if not plan.stages:
        click.echo("nothing is left to compute", err=True)
        return
    click.echo(
        f"predicted: {duration(plan.seconds(rates))}, {human(plan.memory)} of memory at most "
        f"(allowed: {human(plan.limits.memory)}), at {rates.flop32 / 1e9:,.0f} GFLOP/s in float32 and "
        f"{human(rates.read)}/s from the stores",
        err=True,
    )


def took(seconds: float) -> None:
    """Say on stderr what it really took."""
    from repsim.machine import memory_peak

    click.echo(f"took: {duration(seconds)}, {human(memory_peak())} of memory at most", err=True)


def duration(seconds: float) -> str:
    """Time in readable units.

    >>> duration(0.123), duration(75), duration(7500)
    ('0.12 s', '1 min 15 s', '2 h 5 min')
    """
    if seconds < 59.5:
        return f"{seconds:.2g} s" if seconds < 9.5 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def matches(variable: "xr.DataArray") -> None:
    """The closest layer of each: of two models layer by layer, of many on the average of a model's layers."""
    import numpy as np

    attrs = variable.attrs
    title = f"{attrs['label']}: {variable['n_samples'].item()} samples of {variable['data'].item()}"
    similarity = attrs["sense"] == "similarity"
    values = variable.values if similarity else -variable.values
    models = [list(dict.fromkeys(variable[f"model_{side}"].values.tolist())) for side in "ab"]
    if len(models[0]) > 1:
        mean = table("mean over layers of the closest", *(f">{model}" for model in models[1]), title=title)
        for a in models[0]:
            row = values[variable["model_a"].values == a]
            cells = []
            for b in models[1]:
                best = [np.nanmax(each) for each in row[:, variable["model_b"].values == b] if not np.isnan(each).all()]
                cells.append(f"{np.mean(best) * (1 if similarity else -1):.4f}" if best and a != b else "-")
            mean.add_row(str(a), *cells)
        console().print(mean)
        return
    closest = table(f"layer of {models[0][0]}", f"closest layer of {models[1][0]}", ">value", title=title)
    for layer, row, keys in zip(variable["layer_a"].values, variable.values, values, strict=True):
        if np.isnan(row).all():
            closest.add_row(str(layer), "-", "undefined")
        else:
            at = int(np.nanargmax(keys))
            closest.add_row(str(layer), str(variable["layer_b"].values[at]), f"{row[at]:.4f}")
    console().print(closest)


def measures() -> None:
    """All measures by group, a line each."""
    from repsim import explain

    listed = table("group", "metric", "question", "sense", "range", "unchanged by")
    for column in listed.columns:
        column.no_wrap = column.header not in {"question", "sense"}
    listed.columns[3].max_width = len("similarity,")  # what is asymmetric says so below; questions need the room
    for group, members in explain.families().items():
        for metric in members:
            sense = metric.sense + ("" if metric.symmetric else ", asymmetric")
            said = metric.name, metric.question, sense, explain.interval(metric), explain.letters(metric)
            first, last = metric is members[0], metric is members[-1]
            listed.add_row(group if first else "", *said, end_section=last)
    console().print(listed)
    click.echo(f"unchanged by {explain.LEGEND}; in brackets, of the second layer only")
    click.echo("`repsim metrics NAME` explains one; docs/metrics.md says which to take.")


def explanation(metric: "Metric[Any]") -> None:
    """All that a measure says of itself."""
    from repsim import explain

    for line in explain.lines(metric, min(console().width, PROSE)):
        click.echo(click.style(line, bold=True) if line[:1].strip() else line)


@contextmanager
def steps() -> Iterator[Callable[[str], Callable[[int, int], None]]]:
    """Progress of work that has several parts: a bar for the part that is being done."""
    with ExitStack() as stack:

        def step(name: str) -> Callable[[int, int], None]:
            stack.close()
            return stack.enter_context(progress(name, "a second"))

        yield step


def study(found: "xr.Dataset") -> None:
    """What a study found: warnings on stderr, tables, and the summary at the end."""
    for text in json.loads(found.attrs["warnings"]):
        click.echo(f"note: {text}", err=True)
    out = console()
    if found.sizes.get("pair"):
        out.print(_pairs(found))
        out.print(_by_measure(found))
    if found.sizes.get("state"):
        out.print(_shares(found))
    for text in json.loads(found.attrs["summary"]):
        click.echo(textwrap.fill(text, min(out.width, PROSE), subsequent_indent="  "))


def _pairs(found: "xr.Dataset") -> "Table":
    """All pairs under the strictest kernel."""
    from repsim.study.words import number, probability, strictest

    kernel = strictest(found)
    at = found.sel(measure=kernel)
    made = table(
        "models", "relation", ">best match (95 %)", ">split half", ">calibrated", ">p (Holm)", ">control",
        ">learned (95 %)",
        title=f"{kernel}: mean along the best match of layers; calibrated against permuted samples",
    )  # fmt: skip
    for k, pair in enumerate(found["pair"].values.tolist()):
        row = {name: float(at[name].values[k]) for name in (
            "index", "index_low", "index_high", "split_half", "calibrated_index", "p_index_holm", "control", "learned",
            "learned_low", "learned_high",
        )}  # fmt: skip
        cells = [
            number(row["index"], row["index_low"], row["index_high"]),
            number(row["split_half"]),
            number(row["calibrated_index"]),
            probability(row["p_index_holm"]),
            number(row["control"]),
            number(row["learned"], row["learned_low"], row["learned_high"]),
        ]
        made.add_row(pair, str(found["relation"].values[k]), *("-" if "nan" in cell else cell for cell in cells))
    return made


def _by_measure(found: "xr.Dataset") -> "Table":
    """Every measure, mean over pairs of one kind."""
    import numpy as np

    from repsim.study.words import number, probability

    made = table(
        "measure", "pairs", ">best match", ">untrained or other control", ">learned", ">calibrated", ">largest p",
        title="every measure, mean over pairs of models",
    )  # fmt: skip
    relations = list(dict.fromkeys(found["relation"].values.tolist()))
    for measure in found["measure"].values.tolist():
        for relation in relations:
            some = found.sel(measure=measure).isel(pair=found["relation"].values == relation)
            cells = [number(float(some[name].mean())) for name in ("index", "control", "learned", "calibrated_index")]
            p = some["p_index"].values
            cells.append(probability(float(np.nanmax(p))) if not np.isnan(p).all() else "-")
            made.add_row(measure, relation, *("-" if "nan" in cell else cell for cell in cells))
    return made


def _shares(found: "xr.Dataset") -> "Table":
    """The four shares by depth; of what cannot be told apart, the sum."""
    import numpy as np

    from repsim.study.words import name_of, number

    known = [
        name for name in found["share_of"].values.tolist() if not np.isnan(found["mean_share"].sel(share_of=name)).all()
    ]
    shares = [name for name in known if "_and_" not in name or not set(name.split("_and_")) & set(known)]
    names = (f">{' + '.join(name_of(found, part) for part in name.split('_and_'))}" for name in shares)
    made = table("networks", "depth", *names, title="where the energy of kernels comes from")
    for state in found["state"].values.tolist():
        for depth in found["depth"].values.tolist():
            cells = [number(float(found["share"].sel(state=state, share_of=name, depth=depth))) for name in shares]
            made.add_row(state, f"{depth:.2f}", *("-" if "nan" in cell else cell for cell in cells))
        cells = [number(float(found["mean_share"].sel(state=state, share_of=name))) for name in shares]
        made.add_row(state, "mean", *("-" if "nan" in cell else cell for cell in cells), end_section=True)
    return made
