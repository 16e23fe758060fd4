"""How universal representations are."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from repsim.commands import completing, terminal
from repsim.commands.options import options
from repsim.commands.shared import JSON, PATH, Command, command_line
from repsim.errors import InvalidInputError
from repsim.study.options import UniversalityOptions


@click.command(cls=Command)
@click.argument("stores", nargs=-1, required=True, type=PATH, shell_complete=completing.files(".h5"))
@click.option("-o", "--out", type=PATH, help="Save the study here, as netCDF (.nc).")
@options(
    UniversalityOptions,
    flags={"metrics": ["-m", "--metric", "metrics"], "families": ["--family", "families"]},
    without=["controls_folder", "draws"],
    complete={"metrics": completing.metrics},
)
@JSON
def universality(
    stores: Sequence[Path], out: Path | None, families: Sequence[str], *, as_json: bool, **chosen: Any
) -> None:
    """Are the representations of models universal across architectures, and how much of that is learned?

    Compares all models in STORES, layer by layer and as wholes, and holds each value against chance (in closed form and
    by permuted samples), against what the networks share anyway (their input, the classes, untrained
    networks), and against other seeds of the same architecture. Says in plain sentences what follows.

    Take several trained models of two families or more, several seeds or recipes of each where there are any. The word
    universal is kept for what is above every control with its whole 95 % interval.

    \b
    Examples:
      repsim universality acts/*.h5 --controls untrained:3 -o study.nc
      repsim universality acts/*.h5 --family cnn='*net*' --family vit='*vit*'
      repsim universality acts/*.h5 -m cka -m mutual_knn:k=5 --json
    """
    from repsim.results.export import study_as_json
    from repsim.study.universality import conduct

    chosen["metrics"] = list(chosen["metrics"])
    with terminal.steps() as steps:
        study = conduct(
            stores, UniversalityOptions(families=_families(families), **chosen), out=out, steps=steps,
            command=command_line(),
        )  # fmt: skip
    if as_json:
        click.echo(json.dumps(study_as_json(study)))
        return
    terminal.study(study)
    if out is not None:
        click.echo(f"saved {out}")


def _families(words: Sequence[str]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for word in words:
        name, equals, globs = word.partition("=")
        if not (name and equals and globs):
            raise InvalidInputError(f"--family takes NAME=GLOB, as in --family cnn='resnet*,convnext*', not {word!r}")
        found.setdefault(name, []).extend(filter(None, globs.split(",")))
    return found
