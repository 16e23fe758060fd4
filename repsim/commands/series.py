"""Define `repsim series`, which compares models along an axis."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from repsim.commands import completing, terminal
from repsim.commands.options import options
from repsim.commands.shared import JSON, PATH, Command, command_line, echo, is_first_process
from repsim.trends.options import SeriesOptions


@click.command(cls=Command)
@click.argument("stores", nargs=-1, required=True, type=PATH, shell_complete=completing.files(".h5"))
@click.option("-o", "--out", type=PATH, help="Save the series here, as netCDF (.nc).")
@options(SeriesOptions, flags={"metrics": ["-m", "--metric", "metrics"]}, complete={"metrics": completing.metrics})
@JSON
def series(stores: Sequence[Path], out: Path | None, *, as_json: bool, **chosen: Any) -> None:
    """Compare models along an axis: training time, width, depth, size, corruption level.

    Every model in STORES says where it stands (`repsim extract --axes`, or --axes-file here). It is compared with a
    reference, with the model before it, and with other runs at the same place. Layers have intervals over samples;
    trends have intervals over samples and over runs. A summary in plain sentences follows.

    With -o, finished pairs of models are kept beside the file. The same command resumes an interrupted run, and with
    one more checkpoint (and --overwrite) computes only what is new.

    \b
    Examples:
      repsim extract resnet18 --weights 'runs/{run}/step_{step}.pt' --data photos/ -o acts/
      repsim series acts/*.h5 -o training.nc
      repsim figures training.nc -o figures/
      repsim series acts/*.h5 --axis width --run seed -m svcca
      repsim series finetuned/*.h5 base.h5 --axis epoch --reference base
    """
    from repsim.results.export import series_as_json
    from repsim.trends.series import conduct

    chosen["metrics"] = list(chosen["metrics"])
    with terminal.progress_of_steps() as steps:
        result = conduct(stores, SeriesOptions(**chosen), out=out, steps=steps, command=command_line())
    if not is_first_process():
        return
    if as_json:
        echo(json.dumps(series_as_json(result)))
        return
    terminal.print_series(result)
    if out is not None:
        echo(f"saved {out}")
