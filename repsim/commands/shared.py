"""What several commands share: options, and how they talk."""

import shlex
import sys
from pathlib import Path

import click

PATH = click.Path(path_type=Path)
DEVICE = click.option(
    "--device", default="auto", show_default=True, help="auto (cuda, then mps, then cpu), or a torch device."
)
JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON, for programs.")
OVERWRITE = click.option("--overwrite", is_flag=True, help="Replace what is there.")


def say(text: str) -> None:
    """Tell the user something that is no result."""
    click.echo(text, err=True)


def say_nothing(_: str) -> None:
    """Of several processes only the first talks."""


def command_line() -> str:
    """What was typed: results keep it."""
    return shlex.join(["repsim", *sys.argv[1:]])
