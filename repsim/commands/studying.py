"""Define `repsim universality`, which estimates how universal representations are."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from repsim.commands import completing, terminal
from repsim.commands.options import options
from repsim.commands.shared import FULL, JSON, PATH, Command, command_line, echo, is_first_process
from repsim.errors import InvalidInputError
from repsim.study.options import UniversalityOptions


@click.command(cls=Command)
@click.argument("stores", nargs=-1, required=True, type=PATH, shell_complete=completing.files(".h5"))
@click.option("-o", "--out", type=PATH, help="Save the study here, as netCDF (.nc).")
@options(
    UniversalityOptions,
    flags={"metrics": ["-m", "--metric", "metrics"], "families": ["--family", "families"]},
    without=["draws"],
    complete={"metrics": completing.metrics},
)
@click.option(
    "--explain",
    is_flag=True,
    help="Tell what these stores can and cannot show, what to add, and what each step would take; compute nothing.",
)
@click.option("--dry-run", is_flag=True, help="Tell what each step would take, in time and memory; compute nothing.")
@FULL
@JSON
def universality(
    stores: Sequence[Path],
    out: Path | None,
    families: Sequence[str],
    *,
    explain: bool,
    dry_run: bool,
    full: bool,
    as_json: bool,
    **chosen: Any,
) -> None:
    """Do models of several architectures share something that they learned, and is it universal across them?

    Compares all models in STORES, layer by layer and as a whole. Each value is compared with chance (in closed form and
    by permuting samples), with what networks share without learning (their input, the classes, untrained networks),
    and with other seeds of the same architecture. A summary in plain sentences follows.

    Use several trained models of two families or more, with several seeds of each and untrained networks of every
    architecture. Something learned is called universal only of families of which every pair exceeds every one of its
    controls, and only if enough networks of each architecture show it. Of fewer networks, the summary claims less and
    says why. Of a long output the beginning is printed; --full prints all of it. --explain tells what the stores can
    show, and what to add.

    \b
    Examples:
      repsim universality acts/*.h5 --controls untrained:3 -o study.nc
      repsim universality acts/*.h5 --explain
      repsim universality acts/*.h5 --memory 4GiB --dry-run
      torchrun --nproc-per-node 2 -m repsim universality acts/*.h5 -o study.nc
      repsim universality acts/*.h5 --family cnn='*net*' --family vit='*vit*'
      repsim universality acts/*.h5 --family-by width
      repsim universality acts/*.h5 -m cka -m mutual_knn:k=5 --json
    """
    from repsim.results.export import study_as_json
    from repsim.study.feasibility import explain_study
    from repsim.study.universality import conduct, explain_plan

    chosen["metrics"] = list(chosen["metrics"])
    if explain or dry_run:
        lines = explain_study(
            stores, families=_families(families), family_by=chosen["family_by"], readout=chosen["readout"]
        ) if explain else []  # fmt: skip
        lines += explain_plan(stores, UniversalityOptions(families=_families(families), **chosen), out=out)
        if is_first_process():
            echo(json.dumps(lines) if as_json else "\n".join(lines))
        return
    with terminal.progress_of_steps() as steps:
        study = conduct(
            stores, UniversalityOptions(families=_families(families), **chosen), out=out, steps=steps,
            command=command_line(),
        )  # fmt: skip
    if not is_first_process():
        return
    if as_json:
        echo(json.dumps(study_as_json(study)))
        return
    terminal.print_study(study, full=full, path=out)
    if out is not None:
        echo(f"saved {out}")


def _families(words: Sequence[str]) -> dict[str, list[str]]:
    families: dict[str, list[str]] = {}
    for word in words:
        name, equals, globs = word.partition("=")
        if not (name and equals and globs):
            raise InvalidInputError(f"--family takes NAME=GLOB, as in --family cnn='resnet*,convnext*', not {word!r}")
        families.setdefault(name, []).extend(filter(None, globs.split(",")))
    return families
