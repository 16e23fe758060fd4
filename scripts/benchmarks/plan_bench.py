"""`scripts/bench plan`: predict and time every measure with plan_worker.py, and print both with their ratio."""

import sys
from collections.abc import Sequence
from pathlib import Path

import click
from turns import median, run_in_fresh_process, show, table

import repsim.metrics

WORKER = Path(__file__).with_name("plan_worker.py")
WITHIN = 1.3
"""Largest factor between prediction and measurement that counts as right."""


@click.command()
@click.argument("names", nargs=-1)
@click.option("--samples", multiple=True, type=int, default=(100, 1000, 10_000), show_default=True)
@click.option("--rounds", default=3, show_default=True, help="Number of rounds; the table shows medians.")
@click.option("--limit", default=60.0, show_default=True, help="Predicted seconds of a measure; else fewer layers.")
@click.option("--few", is_flag=True, help="Use the fewest layers, to test the benchmark.")
def plan(names: Sequence[str], samples: Sequence[int], rounds: int, limit: float, *, few: bool) -> None:
    """Compare the predicted time of every measure (or of NAMES) with its time, on one thread.

    Layers have the widths of a ResNet-50 and a ViT-B, 17 x 13. Where all pairs are predicted to take longer than the
    limit, the layers are fewer and narrower; the table shows which. Times are those of the processor, and the rates
    are measured right before each comparison, so that other programs change the ratios little. How many directions
    layers keep is known only when they are prepared; then the rest is predicted again, which counts.

    \b
    scripts/bench plan
    scripts/bench plan rsa mutual_knn --samples 1000
    """
    chosen = list(names) or [metric.name for metric in repsim.metrics.select("all")]
    for n in samples:
        plan_table = table(
            f"n = {n:,}; CPU seconds, 1 thread, medians of {rounds}",
            *("layers", "algorithm", "predicted", "layers prepared", "measured", "predicted / measured", ""),
        )
        right = 0
        measured_of, calibrated = 0, 0.0
        for name in chosen:
            click.echo(f"  {name} ", nl=False, err=True)
            settings = {"samples": n, "measures": [name], "limit": limit, "few": few}
            results = [
                run_in_fresh_process(WORKER, settings, python=sys.executable, threads=1, label=name)[name]
                for _ in range(rounds)
            ]
            if refused := results[0].get("refused"):
                click.echo(refused, err=True)
                plan_table.add_row(name, "too little memory", "", "", "", "", "", "")
                continue
            measured_of += 1
            predicted, corrected, measured = (median(results, key) for key in ("predicted", "corrected", "cpu"))
            ratio = median([{"ratio": result["corrected"] / result["cpu"]} for result in results], "ratio")
            within = 1 / WITHIN <= ratio <= WITHIN
            right += within
            click.echo(f"{ratio:.2f}", err=True)
            plan_table.add_row(
                name, results[0]["layers"], results[0]["algorithm"], f"{predicted:.2f}",
                "" if corrected == predicted else f"{corrected:.2f}", f"{measured:.2f}", f"{ratio:.2f}",
                "" if within else "*",
            )  # fmt: skip
            calibrated = max(calibrated, median(results, "calibration"))
        rates = f"rates measured in {calibrated:.2f} s"
        plan_table.caption = f"{right} of {measured_of} within 30 %, others marked *; {rates}"
        show(plan_table)
