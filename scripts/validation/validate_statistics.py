#!/usr/bin/env python3
"""Validate the statistics of a study by simulation: see ``validate_statistics.py --help``."""

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import click
import torch
from simulations.cells import Cell, Simulation, tables
from simulations.dependent_samples import grouped, within
from simulations.intervals_of_samples import coverage, layers
from simulations.nothing_learned import claims
from simulations.random_draws import networks
from simulations.shared_kernels import recovery
from simulations.unrelated_networks import null, pearson

Part = Callable[[Simulation], Iterator[Cell]]
PARTS: dict[str, Part] = {
    "null": null,
    "pearson": pearson,
    "coverage": coverage,
    "layers": layers,
    "groups": grouped,
    "classes": within,
    "claims": claims,
    "networks": networks,
    "recovery": recovery,
}


def validate(names: Sequence[str], simulation: Simulation) -> tuple[list[Cell], dict[str, float]]:
    """Run the named parts; return all cells of their tables, and the CPU seconds of each part."""
    cells, seconds = [], {}
    for name in names:
        began, before = time.process_time(), simulation.seconds
        cells += list(PARTS[name](simulation))
        seconds[name] = time.process_time() - began + simulation.seconds - before
    return cells, seconds


@click.command()
@click.argument("parts", nargs=-1, type=click.Choice(list(PARTS)))
@click.option("--quick", is_flag=True, help="Few runs, to test the script; the bounds do not apply.")
@click.option("--only-kept", is_flag=True, help="Tables of the runs that are in the folder, without new ones.")
@click.option("--share", type=click.FloatRange(0, 1, min_open=True), default=1.0, help="Share of the runs to make.")
@click.option(
    "--runs",
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder for the numbers of every run; a later call with the same folder continues.",
)
@click.option("-o", "--out", type=click.Path(dir_okay=False, path_type=Path), help="File for the tables (Markdown).")
def main(
    parts: Sequence[str], *, quick: bool, only_kept: bool, share: float, runs: Path | None, out: Path | None
) -> None:
    """Simulate networks with known true values, and count how often the statistics of a study are correct.

    This takes about two hours on one core. The seeds are fixed: the same versions of torch and numpy give the same
    tables. docs/statistics.md shows them.
    """
    torch.set_num_threads(1)
    simulation = Simulation(lambda line: print(line, file=sys.stderr, flush=True), quick, share, only_kept, runs)
    cells, seconds = validate(parts or list(PARTS), simulation)
    text = tables(cells, seconds)
    print(text)
    if out is not None:
        out.write_text(text + "\n")


if __name__ == "__main__":
    main()
