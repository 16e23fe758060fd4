"""How long a study takes, step by step, beside one comparison of the same stores and the machine's limit."""

import sys
import tempfile
from pathlib import Path

import click
import torch
from compare_worker import RESNET50, VIT_B
from turns import Result, fresh, show, table

WORKER = Path(__file__).with_name("universality_worker.py")


@click.command()
@click.option("--samples", type=click.IntRange(100), default=10_000, show_default=True)
@click.option("--permutations", type=click.IntRange(19), default=1000, show_default=True)
@click.option("-m", "--metric", "metrics", multiple=True, help="Of the study.  [default: those of repsim universality]")
@click.option("--threads", default=torch.get_num_threads(), show_default=True)
@click.option("--folder", type=click.Path(path_type=Path, exists=True, file_okay=False), help="For the stores.")
def universality(samples: int, permutations: int, metrics: tuple[str, ...], threads: int, folder: Path | None) -> None:
    """A study of a ResNet-50 (17 layers) and a ViT-B (13), and of an untrained twin of each; once.

    Synthetic activations of the true widths, 64 shared directions whose strengths fall as 1/i, and noise; 100 classes;
    pixels.

    \b
    scripts/bench universality                                       as in docs/benchmarks.md
    scripts/bench universality --samples 500 --permutations 99       a look
    """
    with tempfile.TemporaryDirectory(prefix="repsim-bench-", dir=folder) as place:
        settings = {"folder": place, "samples": samples, "permutations": permutations, "metrics": list(metrics)}
        found: Result = fresh(WORKER, settings, python=sys.executable, threads=threads, label="universality")
    made = table(
        f"17 x 13 layers and untrained twins, n = {samples:,}, {permutations:,} permutations; {threads} threads",
        "seconds",
    )  # fmt: skip
    widths = 2 * (sum(RESNET50.values()) + sum(VIT_B.values()))
    layers = 2 * (len(RESNET50) + len(VIT_B)) + 3
    floor = float(samples) ** 2 * (widths + layers**2)
    made.add_row("floor: Gram matrices and pairs of all layers, once", f"{floor / found['rate']:.1f}")
    made.add_row("repsim compare, cka, the two trained models", f"{found['comparison']:.1f}")
    for name, seconds in found["steps"].items():
        made.add_row(f"  {name}", f"{seconds:.1f}")
    made.add_row("the whole study", f"{found['seconds']:.1f}")
    made.add_row("peak memory of the process, MiB", f"{found['peak']:,.0f}")
    show(made)
    click.echo(f"floor at {found['rate'] / 1e9:,.0f} GFLOP/s (one large product in float32)")
    for name, count in found["permuted"].items():
        click.echo(f"permuted {count:,.0f} times: {name}" if count == count else f"not permuted: {name}")  # noqa: PLR0124
    for text in found["warnings"]:
        click.echo(f"note: {text}")
