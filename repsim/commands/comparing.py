"""All pairs of layers."""

import json
import shlex
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import click

from repsim.commands import completing, terminal
from repsim.commands.remedies import said
from repsim.commands.shared import DEVICE, JSON, PATH, Command, command_line, say
from repsim.errors import InvalidInputError
from repsim.runtime.files import check_output


@click.command(cls=Command)
@click.argument("stores", nargs=-1, required=True, type=PATH, shell_complete=completing.files(".h5"))
@click.option(
    "-m",
    "--metric",
    "specs",
    multiple=True,
    shell_complete=completing.metrics,
    help="As in `repsim metrics`; repeat for several. all, or a group: alignment, rsm, neighbours, "
    "group:cca, statistics, and topology, which all is without.  [default: cka, or what the result has that grows]",
)
@click.option(
    "--readout",
    "readouts",
    multiple=True,
    help="Compare only layers read out so, like with like; repeat for several.  [default: all arrays with all]",
)
@click.option("-o", "--out", type=PATH, help="Save the result here, as netCDF (.nc); what is there is added to.")
@click.option(
    "--all", "square", is_flag=True, help="All layers with all layers, within models too, also of two STORES."
)
@click.option(
    "--memory", help="A process may take at most: 2GiB, 500MB.  [default: half of the machine's, or 80 % of a GPU's]"
)
@DEVICE
@click.option("--tf32", is_flag=True, help="Let a GPU round products to TensorFloat-32: faster, errors of 1e-3.")
@click.option("--explain", is_flag=True, help="Say on stderr what will be done, and what it took.")
@click.option("--dry-run", is_flag=True, help="Say what would be done, with time and memory; compute nothing.")
@JSON
@click.option("--overwrite", is_flag=True, help="Start anew, and replace what is there.")
def compare(
    stores: Sequence[Path],
    specs: Sequence[str],
    readouts: Sequence[str],
    out: Path | None,
    memory: str | None,
    device: str,
    *,
    square: bool,
    tf32: bool,
    explain: bool,
    dry_run: bool,
    as_json: bool,
    overwrite: bool,
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
    from repsim.engine.comparison import Comparison
    from repsim.results.export import result_as_json
    from repsim.results.files import open_result, save_result
    from repsim.runtime.processes import ranks

    if out is not None and out.suffix != ".nc":  # also keeps a slip of the hand from replacing a store
        raise InvalidInputError(f"a result is netCDF: name it .nc, not {out.name}")
    with ranks() as me:
        grows = out is not None and out.exists() and not overwrite
        known = open_result(out) if out is not None and grows else None
        if out is not None and me.first and not dry_run:
            check_output(out, overwrite=overwrite or grows)
        a, b = (list(stores), None) if square or len(stores) > 2 else (stores[0], stores[-1])
        with Comparison(
            a, b, specs or None, device=device, memory=memory, tf32=tf32, readouts=readouts, known=known, me=me
        ) as planned:
            for note in planned.view.notes if me.first else ():
                say(f"note: {said(note)}")
            if (explain or dry_run) and me.first:
                terminal.plan(planned.plan, planned.rates())
            if dry_run:
                return
            fresh = known is None or bool(planned.plan.stages)
            parts = None if out is None else out.with_name(f"{out.name}.parts")
            if me.first and parts is not None and (done := len(list(parts.glob("*.part")))):
                say(f"going on with {done} parts that an interrupted run has left in {parts}")
            start = time.perf_counter()
            with terminal.progress("comparing", "%/s", quiet=not me.first) as advance:
                save = (
                    partial(save_result, path=out, overwrite=overwrite or grows) if out is not None and fresh else None
                )
                result = planned.run(parts=parts, progress=advance, command=command_line(), save=save)
            seconds = time.perf_counter() - start
        if not me.first:
            return
        if out is not None and not fresh:
            say(f"{out} holds all of this already; --overwrite computes it anew")
    if explain:
        terminal.took(seconds)
    terminal.remarks(result)
    if as_json:
        click.echo(json.dumps(result_as_json(result)))
        return
    for variable in result.data_vars.values():
        terminal.matches(variable)
    if out is not None and fresh:
        draw = shlex.join(["repsim", "heatmap", str(out), "-o", str(out.with_suffix(".png"))])
        click.echo(f"saved {out}; draw it with: {draw}")
