"""Define `repsim run`, which conducts a whole study from one study file."""

import json
from pathlib import Path

import click

from repsim.commands import terminal
from repsim.commands.extracting import ignore_metadata_of_pictures, show_plan, show_store
from repsim.commands.remedies import render_for_cli
from repsim.commands.shared import OVERWRITE, PATH, Command, command_line, echo, is_first_process, print_note
from repsim.errors import InvalidInputError


@click.command(cls=Command)
@click.argument("file", type=PATH, required=False)
@click.option("--dry-run", is_flag=True, help="Show what would be done; compute nothing.")
@click.option("--example", is_flag=True, help="Print a study file that runs as it is.")
@click.option("--schema", is_flag=True, help="Print the JSON schema of study files, for editors.")
@click.option(
    "--from", "origin", type=PATH, metavar="STUDY.nc", help="Print the study file that STUDY.nc was made from."
)
@OVERWRITE
def run(file: Path | None, origin: Path | None, *, dry_run: bool, example: bool, schema: bool, overwrite: bool) -> None:
    """Conduct the study that FILE describes: extract activations, estimate universality, draw the figures.

    Writes the stores (acts/), the study (study.nc), its figures, its page and a copy of FILE into one folder. The same
    command resumes an interrupted run and computes nothing twice. docs/study-file.md explains every key.

    \b
    Examples:
      repsim run --example > study.yaml
      repsim run --schema > study.schema.json
      repsim run study.yaml --dry-run
      repsim run study.yaml
      repsim run --from study/study.nc > again.yaml
    """
    if sum([file is not None, example, schema, origin is not None]) != 1:
        raise InvalidInputError("name one study file, or one of --example, --schema and --from STUDY.nc")
    from repsim.study import study_file

    if example:
        echo(study_file.EXAMPLE, nl=False)
    elif schema:
        echo(json.dumps(study_file.schema(), indent=2))
    elif origin is not None:
        click.echo(_study_file_of(origin), nl=False)
    elif file is not None:
        ignore_metadata_of_pictures()
        _plan(file) if dry_run else _run(file, overwrite=overwrite)


def _study_file_of(study: Path) -> str:
    from repsim.results.files import open_study

    text = open_study(study).attrs.get("study_file")
    if text is None:
        raise InvalidInputError(f"{study} was not made by `repsim run`; its attribute 'command' names the command")
    return str(text)


def _plan(file: Path) -> None:
    from repsim.pipeline import plan_study, planned_extractions

    plan = plan_study(file)
    with terminal.progress_of_steps() as steps:
        for planned in planned_extractions(plan, listeners=steps):
            show_plan(planned)
    protocol, target = plan.protocol, plan.target
    if is_first_process():
        permutations = protocol.permutations or "the default number of"
        echo(
            f"then a study of {len(plan.models)} models, with {protocol.untrained} untrained of every "
            f"architecture, {permutations} permutations: {target}{', which exists' * target.exists()}"
        )


def _run(file: Path, *, overwrite: bool) -> None:
    from repsim.extraction.runs import Extracted
    from repsim.pipeline import Drawn, Studied, plan_study, study_steps
    from repsim.runtime.events import Note, UpToDate

    plan = plan_study(file)
    with terminal.progress_of_steps() as steps:
        for event in study_steps(plan, overwrite=overwrite, progress=steps, command=command_line()):
            match event:
                case Extracted():
                    show_store(event)
                case Studied():
                    terminal.print_study(event.study, path=event.path)
                    echo(f"saved {event.path}")
                case Drawn(name, text, path):
                    echo(f"saved {path}{': ' * bool(text)}{text}" if path else f"no {name}: {render_for_cli(text)}")
                case UpToDate(path) if path == plan.target:
                    print_note(f"{event}; --overwrite makes it again")
                case Note() | UpToDate():
                    print_note(render_for_cli(event) if isinstance(event, Note) else str(event))
