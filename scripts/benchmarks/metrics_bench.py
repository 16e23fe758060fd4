"""`scripts/bench metrics`: time every measure on all pairs of layers, a naive loop over pairs, and other packages."""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np
from compare_worker import RESNET50, VIT_B
from naive_measures import NAIVE, PEERS
from turns import Result, run_in_fresh_process, show, table

import repsim.metrics

WORKER = Path(__file__).with_name("metrics_worker.py")


def run(contender: str, names: Sequence[str], *, python: str, threads: int, **settings: Any) -> Result:
    click.echo(f"  {contender} ...", err=True)
    settings = {"contender": contender, "measures": list(names), "threads": threads, **settings}
    return run_in_fresh_process(WORKER, settings, python=python, threads=threads, label=contender)


def largest_difference(ours: Sequence[Sequence[float]], theirs: Mapping[str, float]) -> float:
    """Return the largest difference over the pairs that both have, relative to the largest value."""
    indices = [tuple(map(int, pair.split())) for pair in theirs]
    values = np.array([ours[i][j] for i, j in indices])
    finite = np.isfinite(values)
    largest = float(np.abs(values[finite]).max())
    return float(np.abs(values - np.array(list(theirs.values())))[finite].max()) / (largest or 1.0)


def rows(results: Result, floor: Result, naive: Result, peers: Result | None) -> list[list[str]]:
    """Return the cells of the table, one row per measure."""
    table_rows = []
    for name, ours in results["measures"].items():
        complete = bool(np.isfinite(ours["values"]).all())
        least = floor["measures"][name]["seconds"]
        cells = [name, f"{'' if complete else '~'}{ours['seconds']:.2f}", f"{ours['preparing']:.2f}"]
        cells += [f"{least:.2f}", f"{ours['seconds'] / least:.1f}"]
        for other in (naive["measures"].get(name), peers and peers["measures"].get(name)):
            if not other:
                cells += ["", "", ""]
                continue
            mark = "" if len(other["values"]) == np.size(ours["values"]) else "~"
            peer = f" ({other['peer']})" if "peer" in other else ""
            cells += [
                f"{mark}{other['seconds']:,.1f}{peer}",
                f"{other['seconds'] / ours['seconds']:,.1f} x",
                f"{largest_difference(ours['values'], other['values']):.0e}",
            ]
        table_rows.append(cells)
    return table_rows


@click.command()
@click.argument("names", nargs=-1)
@click.option("--samples", multiple=True, type=int, default=(1000, 4000), show_default=True)
@click.option("--limit", default=10.0, show_default=True, help="Seconds per measure for loops over pairs.")
@click.option("--threads", default=2, show_default=True)
@click.option("--peer-python", default=sys.executable, help="Python with the packages of the extra `bench`.")
@click.option("--no-peers", is_flag=True, help="Do not run other packages.")
@click.option("--few", is_flag=True, help="Use a few small layers, to test the benchmark.")
def metrics(
    names: Sequence[str],
    samples: Sequence[int],
    limit: float,
    threads: int,
    peer_python: str,
    *,
    no_peers: bool,
    few: bool,
) -> None:
    """Time all measures (or NAMES) on 17 x 13 float32 layers with the widths of a ResNet-50 and a ViT-B.

    repsim prepares every layer once and compares all pairs. The naive loop recomputes everything for every pair, with
    the same formula in numpy (scripts/benchmarks/naive_measures.py); so do the other packages. Both are stopped after
    --limit seconds per measure. ~ marks a time that was scaled up from pairs of all widths. If all layers, or all
    pairs, would take repsim more than six times the limit, it only prepares, or compares, one layer of every width, and
    its time is scaled up. A pair that alone would take six times the limit is left out. So a measure takes at most
    about 20 times the limit for each number of samples, and most take much less.

    The floor is the time of the products, decompositions, assignments, sorting and reading that a formula needs, at the
    rates of this machine (scripts/benchmarks/metrics_floors.py).

    \b
    scripts/bench metrics
    scripts/bench metrics rsa mutual_knn --samples 1000
    """
    if unknown := [name for name in names if name not in NAIVE]:
        raise click.ClickException(f"no naive formula for {', '.join(unknown)}; choose from {', '.join(NAIVE)}")
    chosen = list(names) or [name for name in repsim.metrics.names() if name in NAIVE]
    for n in samples:
        options: dict[str, Any] = {"threads": threads, "samples": n, "few": few, "limit": limit}
        ours = run("repsim", chosen, python=sys.executable, **options)
        floor = run("floor", chosen, python=sys.executable, **options)
        naive = run("naive", chosen, python=sys.executable, **options)
        with_peer = [name for name in chosen if name in PEERS and not no_peers]
        peers = run("peers", with_peer, python=peer_python, **options) if with_peer else None
        pairs = "4 x 3" if few else f"{len(RESNET50)} x {len(VIT_B)}"
        result_table = table(
            f"n = {n:,}, {pairs} layers; seconds, {threads} threads",
            *("repsim", "preparing", "floor", "repsim / floor"),
            *("naive loop", "naive / repsim", "difference"),
            *("other package", "other / repsim", "difference"),
        )
        for cells in rows(ours, floor, naive, peers):
            result_table.add_row(*cells)
        rate = ours["sgemm"]["seconds"] / 1e9
        result_table.caption = f"sgemm {rate:,.0f} GFLOP/s; differences are relative to the largest value"
        show(result_table)
