"""A whole study from one file."""

import json
from pathlib import Path

import click

from repsim.commands import terminal
from repsim.commands.extracting import ignore_metadata_of_pictures, show_plan, show_store
from repsim.commands.remedies import said
from repsim.commands.shared import OVERWRITE, PATH, Command, command_line, first_process, say
from repsim.errors import InvalidInputError


@click.command(cls=Command)
@click.argument("file", type=PATH, required=False)
@click.option("--dry-run", is_flag=True, help="Show what would be done; compute nothing.")
@click.option("--example", is_flag=True, help="Print a study file that runs as it is.")
@click.option("--schema", is_flag=True, help="Print the JSON schema of study files, for editors.")
@click.option("--from", "made", type=PATH, metavar="STUDY.nc", help="Print the study file that a study was made from.")
@OVERWRITE
def run(file: Path | None, made: Path | None, *, dry_run: bool, example: bool, schema: bool, overwrite: bool) -> None:
    """Do what a study FILE says: extract its models, ask how universal they are, draw what was found.

    Leaves the stores (acts/), the study (study.nc), what is drawn of it, and a copy of FILE in one folder. The same
    file again goes on where an interrupted run stopped, and computes nothing that is there. docs/study-file.md explains
    every key.

    \b
    Examples:
      repsim run --example > study.yaml
      repsim run --schema > study.schema.json
      repsim run study.yaml --dry-run
      repsim run study.yaml
      repsim run --from study/study.nc > again.yaml
    """
    if sum([file is not None, example, schema, made is not None]) != 1:
        raise InvalidInputError("name one study file, or one of --example, --schema and --from STUDY.nc")
    from repsim.study import study_file

    if example:
        click.echo(study_file.EXAMPLE, nl=False)
    elif schema:
        click.echo(json.dumps(study_file.schema(), indent=2))
    elif made is not None:
        click.echo(_text_of(made), nl=False)
    elif file is not None:
        ignore_metadata_of_pictures()
        _plan(file) if dry_run else _run(file, overwrite=overwrite)


def _text_of(study: Path) -> str:
    from repsim.results.files import open_study

    text = open_study(study).attrs.get("study_file")
    if text is None:
        raise InvalidInputError(f"{study} was not made by `repsim run`; its attribute 'command' says how it was")
    return str(text)


def _plan(file: Path) -> None:
    from repsim.pipeline import plan_study, planned_extractions

    plan = plan_study(file)
    with terminal.steps() as steps:
        for planned in planned_extractions(plan, listeners=steps):
            show_plan(planned)
    protocol, target = plan.protocol, plan.target
    if first_process():
        click.echo(
            f"then a study of {len(protocol.models)} models and {protocol.untrained} untrained networks of every "
            f"architecture, {protocol.permutations} permutations: {target}{', which is there' * target.exists()}"
        )


def _run(file: Path, *, overwrite: bool) -> None:
    from repsim.extraction.runs import Extracted
    from repsim.pipeline import Drawn, Studied, plan_study, study_steps
    from repsim.runtime.events import Note, UpToDate

    plan = plan_study(file)
    with terminal.steps() as steps:
        for event in study_steps(plan, overwrite=overwrite, progress=steps, command=command_line()):
            match event:
                case Extracted():
                    show_store(event)
                case Studied():
                    terminal.study(event.study)
                    click.echo(f"saved {event.path}")
                case Drawn(name, what, path):
                    click.echo(f"saved {path}{': ' * bool(what)}{what}" if path else f"no {name}: {said(what)}")
                case UpToDate(path) if path == plan.target:
                    say(f"{event}; --overwrite makes it anew")
                case Note() | UpToDate():
                    say(said(event) if isinstance(event, Note) else str(event))
