"""Run benchmarks in fresh processes, in turns, and print tables of their medians."""

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


def run_in_fresh_process(
    worker: Path,
    settings: Mapping[str, Any],
    *,
    python: str,
    threads: int,
    label: str,
    env: Mapping[str, str] | None = None,
) -> Result:
    """Run a worker once in a new process that imports repsim from this checkout, and return its result."""
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    variables = {"OMP_NUM_THREADS": str(threads), "PYTHONWARNINGS": "ignore", "PYTHONPATH": path}
    variables = os.environ | variables | dict(env or {})
    try:
        command = [python, str(worker), json.dumps(settings)]
        done = subprocess.run(command, env=variables, capture_output=True, text=True, check=False)
    except OSError as error:
        raise click.ClickException(f"{python} cannot be run: {error.strerror}") from None
    if done.returncode:
        reason = (done.stderr.strip() or "no message").splitlines()[-1]
        raise click.ClickException(f"{label} failed: {reason}")
    result: Result = json.loads(done.stdout.splitlines()[-1])
    return result


def ratios(ours: Sequence[Result], theirs: Sequence[Result], key: str, other: str | None = None) -> float:
    """Return the median over the rounds of the ratio ours / theirs.

    Each ratio compares two runs of one round, so that a change in the load of the machine between rounds has little
    effect. ``other`` is the key in ``theirs``, if it differs from ``key``.
    """
    return float(statistics.median(a[key] / b[other or key] for a, b in zip(ours, theirs, strict=True)))


def median(results: Sequence[Result], key: str) -> float:
    return float(statistics.median(result[key] for result in results))


def table(title: str, *columns: str) -> Table:
    """Return an empty table whose first column names the rows."""
    empty = Table(title=title)
    empty.add_column("", no_wrap=True)
    for column in columns:
        empty.add_column(column, justify="right")
    return empty


def show(filled: Table) -> None:
    Console(width=140).print(filled)
