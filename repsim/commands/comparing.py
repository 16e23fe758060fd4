"""All pairs of layers."""

import json
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from repsim.commands import completing, terminal
from repsim.commands.options import options
from repsim.commands.shared import JSON, PATH, Command, command_line, first_process, say
from repsim.engine.options import CompareOptions


@click.command(cls=Command)
@click.argument("stores", nargs=-1, required=True, type=PATH, shell_complete=completing.files(".h5"))
@click.option("-o", "--out", type=PATH, help="Save the result here, as netCDF (.nc); what is there is added to.")
@click.option(
    "--all", "square", is_flag=True, help="All layers with all layers, within models too, also of two STORES."
)
@options(
    CompareOptions,
    flags={"metrics": ["-m", "--metric", "metrics"], "readouts": ["--readout", "readouts"]},
    complete={"metrics": completing.metrics},
)
@click.option("--dry-run", is_flag=True, help="Say what would be done, with time and memory; compute nothing.")
@JSON
def compare(
    stores: Sequence[Path],
    metrics: Sequence[str],
    out: Path | None,
    *,
    square: bool,
    dry_run: bool,
    as_json: bool,
    **chosen: Any,
) -> None:
    """Compare the layers of STORES: of two, every layer of one with every layer of the other; of more, all with all.

    One store alone is compared with itself. All stores must hold the same samples in the same order. Values are exact
    at any size: what does not fit into the memory is read again as it is needed.

    With -o, the same command again goes on where an interrupted one stopped. Where the result is there already, what is
    new (further stores, further metrics) is computed and added. Several processes share the work when torchrun starts
    them.

    \b
    Examples:
      repsim compare acts/resnet50.h5 acts/vit_b_16.h5 -m cka -m svcca -o two.nc
      repsim compare acts/resnet50.h5 -m cka:kernel=rbf,bandwidth=0.5 --json
      repsim compare acts/a.h5 acts/b.h5 -m all -o all.nc
      repsim compare acts/a.h5 acts/b.h5 --readout mean --readout cls -o both.nc
      repsim compare acts/*.h5 -o all.nc --memory 2GiB --explain
      torchrun --nproc-per-node 4 -m repsim compare acts/*.h5 -o all.nc
    """
    from repsim.engine.comparison import Compared, compare_steps
    from repsim.results.export import result_as_json
    from repsim.runtime.events import UpToDate

    a, b = (list(stores), None) if square or len(stores) > 2 else (stores[0], stores[-1])
    compared = None
    with terminal.progress("comparing", "%/s") as advance:
        for event in compare_steps(
            a, b, metrics or None, CompareOptions(**chosen), out=out, dry_run=dry_run, progress=advance,
            command=command_line(),
        ):  # fmt: skip
            if isinstance(event, Compared):
                compared = event
            else:
                say(f"{event}; --overwrite computes it anew" if isinstance(event, UpToDate) else str(event))
    if compared is None or not first_process():
        return
    terminal.remarks(compared.result)
    if as_json:
        click.echo(json.dumps(result_as_json(compared.result)))
        return
    for variable in compared.result.data_vars.values():
        terminal.matches(variable)
    if out is not None and compared.saved:
        draw = shlex.join(["repsim", "heatmap", str(out), "-o", str(out.with_suffix(".png"))])
        click.echo(f"saved {out}; draw it with: {draw}")
