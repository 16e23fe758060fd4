"""Define `repsim compare`, which compares all pairs of layers of stores."""

import json
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from repsim.commands import completing, terminal
from repsim.commands.options import options
from repsim.commands.shared import FULL, JSON, PATH, Command, command_line, echo, is_first_process, print_note
from repsim.engine.options import CompareOptions
from repsim.runtime.options import options_of

(_INTERVAL,) = (entry.text for entry in options_of(CompareOptions) if entry.name == "interval")


@click.command(cls=Command)
@click.argument("stores", nargs=-1, required=True, type=PATH, shell_complete=completing.files(".h5"))
@click.option("-o", "--out", type=PATH, help="Save the result here, as netCDF (.nc); an existing result is extended.")
@click.option(
    "--all", "square", is_flag=True, help="All layers with all layers, also within each model, even of two STORES."
)
@options(
    CompareOptions,
    flags={"metrics": ["-m", "--metric", "metrics"], "readouts": ["--readout", "readouts"]},
    complete={"metrics": completing.metrics},
    without={"interval"},
)
@click.option("--interval", is_flag=True, help=_INTERVAL.replace("`", ""))
@click.option(
    "--level", type=click.FloatRange(0, 1, min_open=True, max_open=True), help="Level of --interval, instead of 0.95."
)
@click.option("--dry-run", is_flag=True, help="Show what would be done, with time and memory; compute nothing.")
@FULL
@JSON
def compare(
    stores: Sequence[Path],
    metrics: Sequence[str],
    out: Path | None,
    *,
    square: bool,
    interval: bool,
    level: float | None,
    dry_run: bool,
    full: bool,
    as_json: bool,
    **chosen: Any,
) -> None:
    """Compare the layers of STORES.

    With two stores, every layer of one is compared with every layer of the other. With more, all layers are compared
    with all layers. A single store is compared with itself. All stores must hold the same samples in the same order,
    unless --pair-by pairs them. Values are exact at any size: data that do not fit into memory are read again when they
    are needed.

    With -o, the same command resumes an interrupted run. If the result exists already, only new stores and metrics are
    computed and added. Several processes share the work when torchrun starts them.

    \b
    Examples:
      repsim compare acts/resnet50.h5 acts/vit_b_16.h5 -m cka -m svcca -o two.nc
      repsim compare acts/resnet50.h5 -m cka:kernel=rbf,bandwidth=0.5 --json
      repsim compare acts/a.h5 acts/b.h5 -m all -o all.nc
      repsim compare acts/a.h5 acts/b.h5 --readout mean --readout cls -o both.nc
      repsim compare acts/*.h5 -o all.nc --memory 2GiB --explain
      repsim compare acts/a.h5 acts/b.h5 --interval --groups folders
      repsim compare clean/net.h5 blurred/net.h5 --pair-by id
      torchrun --nproc-per-node 4 -m repsim compare acts/*.h5 -o all.nc
    """
    from repsim.engine.comparison import Compared, compare_steps
    from repsim.results.export import result_as_json
    from repsim.runtime.events import UpToDate

    a, b = (list(stores), None) if square or len(stores) > 2 else (stores[0], stores[-1])
    compared = None
    with terminal.progress_bar("comparing", "%") as advance:
        for event in compare_steps(
            a, b, metrics or None, CompareOptions(interval=level or interval, **chosen), out=out, dry_run=dry_run,
            progress=advance, command=command_line(),
        ):  # fmt: skip
            if isinstance(event, Compared):
                compared = event
            else:
                print_note(f"{event}; --overwrite computes it again" if isinstance(event, UpToDate) else str(event))
    if compared is None or not is_first_process():
        return
    terminal.print_notes(compared.result)
    if as_json:
        echo(json.dumps(result_as_json(compared.result)))
        return
    terminal.print_result(compared.result, full=full, path=out if compared.saved else None)
    if out is not None and compared.saved:
        draw = shlex.join(["repsim", "heatmap", str(out), "-o", str(out.with_suffix(".png"))])
        echo(f"saved {out}; draw it with: {draw}")
