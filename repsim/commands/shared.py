"""Options, the command class and small helpers that several commands share."""

import os
import shlex
import sys
from collections import Counter
from pathlib import Path

import click

from repsim.runtime.visible_text import visible

PATH = click.Path(path_type=Path, readable=False)  # a path that cannot be read is refused in one line when it is used
DEVICE = click.option(
    "--device", default="auto", show_default=True, help="auto (cuda, then mps, then cpu), or a torch device."
)
JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON, for programs.")
FULL = click.option("--full", is_flag=True, help="Print all tables and sentences, also those beyond a screen.")
OVERWRITE = click.option("--overwrite", is_flag=True, help="Replace existing files.")


class Command(click.Command):
    """Command that refuses an option with one value if it occurs twice.

    click itself would silently use the last occurrence.
    """

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse as click does, after counting how often every option occurs."""
        with ctx.scope(cleanup=False):
            _, _, occurrences = self.make_parser(ctx).parse_args(args=list(args))
        for option, count in Counter(occurrences).items():
            if isinstance(option, click.Option) and count > 1 and not _is_repeatable(option):
                raise click.UsageError(
                    f"{max(option.opts, key=len)} occurs {count} times, but takes one value; give it once", ctx
                )
        return super().parse_args(ctx, args)


def _is_repeatable(option: click.Option) -> bool:
    """Return whether an option may occur several times without losing a value."""
    return option.multiple or option.count or (option.is_bool_flag and not option.secondary_opts)


def echo(text: str, *, err: bool = False, nl: bool = True) -> None:
    """Print a text to stdout or stderr; characters of names that command a terminal become escapes."""
    click.echo(visible(text), err=err, nl=nl)


def print_note(text: str) -> None:
    """Print to stderr a text that is no result."""
    echo(text, err=True)


def is_first_process() -> bool:
    """Return whether this is the first of the processes that torchrun started, the one that prints."""
    return "TORCHELASTIC_RUN_ID" not in os.environ or os.environ.get("RANK", "0") == "0"


def command_line() -> str:
    """Return the command line as the user typed it, which results record; bytes that are no UTF-8 as escapes."""
    return shlex.join(["repsim", *sys.argv[1:]]).encode(errors="backslashreplace").decode()
