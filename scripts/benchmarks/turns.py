"""Runs in fresh processes, one after the other in turns, and tables of their medians."""

import json
import os
import statistics
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parents[2]
Result = dict[str, Any]


def fresh(worker: Path, settings: Mapping[str, Any], *, python: str, threads: int, label: str) -> Result:
    """One run in a process of its own, which finds this checkout's repsim whatever its environment."""
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    env = os.environ | {"OMP_NUM_THREADS": str(threads), "PYTHONWARNINGS": "ignore", "PYTHONPATH": path}
    try:
        command = [python, str(worker), json.dumps(settings)]
        done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    except OSError as error:
        raise click.ClickException(f"{python} cannot be run: {error.strerror}") from None
    if done.returncode:
        why = (done.stderr.strip() or "no message").splitlines()[-1]
        raise click.ClickException(f"{label} failed: {why}")
    result: Result = json.loads(done.stdout.splitlines()[-1])
    return result


def ratios(ours: Sequence[Result], theirs: Sequence[Result], key: str, other: str | None = None) -> float:
    """The median over the turns of ours / theirs: what ran side by side is compared, whatever the machine did later.

    ``other`` is the key of theirs, where it is not that of ours.
    """
    return float(statistics.median(a[key] / b[other or key] for a, b in zip(ours, theirs, strict=True)))


def median(results: Sequence[Result], key: str) -> float:
    return float(statistics.median(result[key] for result in results))


def table(title: str, *columns: str) -> Table:
    """A table whose first column names the rows."""
    made = Table(title=title)
    made.add_column("", no_wrap=True)
    for column in columns:
        made.add_column(column, justify="right")
    return made


def show(made: Table) -> None:
    Console(width=140).print(made)
