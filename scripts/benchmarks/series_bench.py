"""`scripts/bench series`: time a series, the loops that people write instead, and the machine's limit."""

import sys
import tempfile
from pathlib import Path

import click
import torch
from turns import Result, median, run_in_fresh_process, show, table

WORKER = Path(__file__).with_name("series_worker.py")
LOOPS = {
    "features, matching": "loop over checkpoints and layers, published function in feature space: matching layers",
    "features, all": "the same: all layers with all layers",
    "grams, matching": "loop over checkpoints and layers, textbook function of Gram matrices: matching layers",
}
"""Loops with one similarity for each pair of layers, with the last checkpoint, and no interval."""
SERIES = {
    "series, raw": "repsim series of stores without input: the last, the previous, within; all layers, intervals",
    "series": "repsim series: the same, and given the input",
    "series, grown": "repsim series: one more checkpoint, in the middle of a finished series",
}


@click.command()
@click.option("--checkpoints", type=click.IntRange(3), default=50, show_default=True)
@click.option("--layers", type=click.IntRange(1), default=12, show_default=True)
@click.option("--width", type=click.IntRange(4), default=256, show_default=True)
@click.option("--samples", type=click.IntRange(50), default=1000, show_default=True)
@click.option("--contender", "contenders", multiple=True, type=click.Choice([*LOOPS, *SERIES]), help="Only these.")
@click.option("--rounds", type=click.IntRange(1), default=3, show_default=True)
@click.option("--threads", default=torch.get_num_threads(), show_default=True)
@click.option("--folder", type=click.Path(path_type=Path, exists=True, file_okay=False), help="Folder for the stores.")
def series(
    *, checkpoints: int, layers: int, width: int, samples: int, contenders: tuple[str, ...], rounds: int, threads: int,
    folder: Path | None,
) -> None:  # fmt: skip
    """Time a series of checkpoints, and loops over them.

    The activations are synthetic: each layer moves from an initial to a final representation. Loops read the same
    stores. The floor is one Gram matrix of every layer of every checkpoint, as one large product.

    \b
    scripts/bench series                                                          as in docs/benchmarks.md
    scripts/bench series --checkpoints 100 --layers 20 --samples 5000 --rounds 1 --contender series
    scripts/bench series --checkpoints 4 --layers 2 --samples 100 --width 8       a quick test
    """
    chosen = contenders or (*LOOPS, *SERIES)
    sizes = {"checkpoints": checkpoints, "layers": layers, "width": width, "samples": samples}
    results: dict[str, list[Result]] = {name: [] for name in chosen}
    with tempfile.TemporaryDirectory(prefix="repsim-bench-", dir=folder) as place:
        common = {**sizes, "folder": place}
        prepared = run_in_fresh_process(
            WORKER, {**common, "contender": "write"}, python=sys.executable, threads=threads, label="writing stores"
        )
        for _ in range(rounds):
            for name in chosen:
                result = run_in_fresh_process(
                    WORKER, {**common, "contender": name}, python=sys.executable, threads=threads, label=name
                )
                results[name].append(result)
    title = (
        f"{checkpoints} checkpoints x {layers} layers of {width} features, n = {samples:,}; {threads} threads, "
        f"medians of {rounds}"
    )
    result_table = table(title, "seconds", "pairs of layers", "ms a pair", "MiB at most")
    floor = checkpoints * layers * float(samples) ** 2 * width / prepared["rate"]
    result_table.add_row("floor: one half of every Gram matrix, once", f"{floor:.1f}", "", "", "")
    for name, text in {**LOOPS, **SERIES}.items():
        if name in results:
            seconds, pairs = median(results[name], "seconds"), results[name][0]["pairs"]
            result_table.add_row(
                text, f"{seconds:.1f}", f"{pairs:,}", f"{1000 * seconds / pairs:.2f}",
                f"{median(results[name], 'peak'):,.0f}",
            )  # fmt: skip
    show(result_table)
    click.echo(f"floor at {prepared['rate'] / 1e9:,.0f} GFLOP/s (one large product in float32)")
    if {"series", "features, all"} <= results.keys():
        click.echo(f"largest difference of the series from the loop: {results['series'][0]['difference']:.1e}")
