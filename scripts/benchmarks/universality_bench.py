"""`scripts/bench universality`: time the steps of a study, one comparison of its stores, and the machine's limit."""

import sys
import tempfile
from pathlib import Path
from typing import Any

import click
import torch
from compare_worker import RESNET50, VIT_B
from turns import Result, run_in_fresh_process, show, table
from universality_worker import plan_lines

WORKER = Path(__file__).with_name("universality_worker.py")


@click.command()
@click.option("--samples", type=click.IntRange(100), default=10_000, show_default=True)
@click.option("--permutations", type=click.IntRange(19), default=1000, show_default=True)
@click.option("-m", "--metric", "metrics", multiple=True, help="Measures.  [default: as repsim universality]")
@click.option("--models", type=click.IntRange(0), default=0, help="So many trained networks instead of these four.")
@click.option("--layers", type=click.IntRange(1), default=12, show_default=True, help="Layers of each of them.")
@click.option("--features", type=click.IntRange(1), default=256, show_default=True, help="Features of each layer.")
@click.option("--memory", help="Memory that the study may take.")
@click.option("--plan", "only_plan", is_flag=True, help="Only print the plan of --models networks, at nominal rates.")
@click.option("--threads", default=torch.get_num_threads(), show_default=True)
@click.option("--folder", type=click.Path(path_type=Path, exists=True, file_okay=False), help="Folder for the stores.")
def universality(threads: int, folder: Path | None, *, only_plan: bool, **chosen: Any) -> None:
    """Time one study of a ResNet-50 (17 layers), a ViT-B (13), and an untrained twin of each, or of many networks.

    The activations are synthetic, with the widths of the models: 64 shared directions with strengths 1/i, and noise.
    There are 100 classes, and pixels as the input. Many networks have neither, and no untrained twins.

    \b
    scripts/bench universality -m cka --memory 2GiB                  as in docs/benchmarks.md
    scripts/bench universality -m cka --models 100 --memory 8GiB     a hundred networks: 12 GB of stores
    scripts/bench universality --samples 500 --permutations 99       a quick test
    scripts/bench universality --models 100 --memory 8GiB --plan     as in docs/scaling.md: no stores, and in a moment
    """
    if only_plan:
        shape = {name: chosen[name] for name in ("models", "layers", "features", "memory", "permutations")}
        if not shape["models"] or not shape["memory"]:
            raise click.UsageError("--plan needs --models and --memory")
        click.echo("\n".join(plan_lines(chosen["samples"], **shape)))
        return
    with tempfile.TemporaryDirectory(prefix="repsim-bench-", dir=folder) as place:
        settings = {"folder": place, **chosen, "metrics": list(chosen["metrics"])}
        result: Result = run_in_fresh_process(
            WORKER, settings, python=sys.executable, threads=threads, label="universality"
        )
    n, models = chosen["samples"], chosen["models"]
    what = f"{models} x {chosen['layers']} layers" if models else "17 x 13 layers and untrained twins"
    result_table = table(f"{what}, n = {n:,}, {chosen['permutations']:,} permutations; {threads} threads", "seconds")
    widths = 2 * (sum(RESNET50.values()) + sum(VIT_B.values()))
    layers = 2 * (len(RESNET50) + len(VIT_B)) + 3
    if models:
        layers = models * chosen["layers"]
        widths = layers * chosen["features"]
    floor = float(n) ** 2 * (widths + layers**2)
    result_table.add_row("floor: Gram matrices and pairs of all layers, once", f"{floor / result['rate']:.1f}")
    result_table.add_row("repsim compare, cka, all layers with all layers", f"{result['comparison']:.1f}")
    for name, seconds in result["steps"].items():
        result_table.add_row(f"  {name}", f"{seconds:.1f}")
    result_table.add_row("complete study", f"{result['seconds']:.1f}")
    result_table.add_row("complete study / comparison", f"{result['seconds'] / result['comparison']:.1f} x")
    result_table.add_row("peak memory of the process, MiB", f"{result['peak']:,.0f}")
    result_table.add_row("file of the study, MB", f"{result['size'] / 1e6:,.1f}")
    result_table.add_row("opening it", f"{result['opened']:.2f}")
    show(result_table)
    click.echo(f"floor at {result['rate'] / 1e9:,.0f} GFLOP/s (one large product in float32)")
    for name, count in result["permuted"].items():
        click.echo(f"permuted {count:,.0f} times: {name}" if count == count else f"not permuted: {name}")  # noqa: PLR0124
    for line in result["plan"]:
        click.echo(f"plan: {line}")
    for text in result["warnings"]:
        click.echo(f"note: {text}")
