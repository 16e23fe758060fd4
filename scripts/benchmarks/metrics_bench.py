"""`scripts/bench metrics`: every measure on all pairs of layers, beside the naive loop over pairs, and its peer."""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np
from compare_worker import RESNET50, VIT_B
from naive_measures import NAIVE, PEERS
from turns import Result, fresh, show, table

import repsim.metrics

WORKER = Path(__file__).with_name("metrics_worker.py")


def run(contender: str, names: Sequence[str], *, python: str, threads: int, **settings: Any) -> Result:
    click.echo(f"  {contender} ...", err=True)
    given = {"contender": contender, "measures": list(names), **settings}
    return fresh(WORKER, given, python=python, threads=threads, label=contender)


def apart(ours: Sequence[Sequence[float]], theirs: Mapping[str, float]) -> float:
    """The largest difference, relative to the largest value, over the pairs that both have."""
    places = [tuple(map(int, pair.split())) for pair in theirs]
    mine = np.array([ours[i][j] for i, j in places])
    known = np.isfinite(mine)
    largest = float(np.abs(mine[known]).max())
    return float(np.abs(mine - np.array(list(theirs.values())))[known].max()) / (largest or 1.0)


def rows(found: Result, naive: Result, peers: Result | None) -> list[list[str]]:
    """One a measure."""
    made = []
    for name, ours in found["measures"].items():
        all_of_them = bool(np.isfinite(ours["values"]).all())
        cells = [name, f"{'' if all_of_them else '~'}{ours['seconds']:.2f}", f"{ours['preparing']:.2f}"]
        for other in (naive["measures"].get(name), peers and peers["measures"].get(name)):
            if not other:
                cells += ["", "", ""]
                continue
            some = "" if len(other["values"]) == np.size(ours["values"]) else "~"
            peer = f" ({other['peer']})" if "peer" in other else ""
            cells += [
                f"{some}{other['seconds']:,.1f}{peer}",
                f"{other['seconds'] / ours['seconds']:,.1f} x",
                f"{apart(ours['values'], other['values']):.0e}",
            ]
        made.append(cells)
    return made


@click.command()
@click.argument("names", nargs=-1)
@click.option("--samples", multiple=True, type=int, default=(1000, 4000), show_default=True)
@click.option("--limit", default=10.0, show_default=True, help="Seconds a measure for what goes pair by pair.")
@click.option("--threads", default=2, show_default=True)
@click.option("--peer-python", default=sys.executable, help="A python that has the peers of the extra `bench`.")
@click.option("--no-peers", is_flag=True, help="Without them.")
@click.option("--few", is_flag=True, help="A few small layers: to see that it works.")
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
    """Every measure (or those named) on 17 x 13 layers with the widths of a ResNet-50 and a ViT-B, float32.

    repsim prepares every layer once and compares all pairs. The naive loop computes everything anew for each pair, by
    the same formula in numpy (scripts/benchmarks/naive_measures.py); so do the peers. Both are given so many seconds a
    measure, on pairs of all widths; ~ says that they were stopped, and scaled up. So is repsim, from a layer of every
    width, where all pairs would take it six times as long.

    \b
    scripts/bench metrics
    scripts/bench metrics rsa mutual_knn --samples 1000
    """
    if unknown := [name for name in names if name not in NAIVE]:
        raise click.ClickException(f"no naive formula for {', '.join(unknown)}; there are: {', '.join(NAIVE)}")
    chosen = list(names) or [name for name in repsim.metrics.names() if name in NAIVE]
    for n in samples:
        how: dict[str, Any] = {"threads": threads, "samples": n, "few": few, "limit": limit}
        ours = run("repsim", chosen, python=sys.executable, **how)
        naive = run("naive", chosen, python=sys.executable, **how)
        with_peer = [name for name in chosen if name in PEERS and not no_peers]
        peers = run("peers", with_peer, python=peer_python, **how) if with_peer else None
        pairs = "4 x 3" if few else f"{len(RESNET50)} x {len(VIT_B)}"
        made = table(
            f"n = {n:,}, {pairs} layers; seconds, {threads} threads",
            *("repsim", "preparing", "naive loop", "naive / repsim", "apart", "peer", "peer / repsim", "apart"),
        )
        for cells in rows(ours, naive, peers):
            made.add_row(*cells)
        made.caption = f"sgemm {ours['sgemm']['seconds'] / 1e9:,.0f} GFLOP/s; apart: relative to the largest value"
        show(made)
