"""What several commands share: options, and how they talk."""

import os
import shlex
import sys
from collections import Counter
from pathlib import Path

import click

PATH = click.Path(path_type=Path)
DEVICE = click.option(
    "--device", default="auto", show_default=True, help="auto (cuda, then mps, then cpu), or a torch device."
)
JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON, for programs.")
OVERWRITE = click.option("--overwrite", is_flag=True, help="Replace what is there.")


class Command(click.Command):
    """A command whose options are never dropped: one that takes one value is refused where it is there twice.

    click takes the last and says nothing.
    """

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse as click does, after a look at what occurs how often."""
        with ctx.scope(cleanup=False):
            _, _, given = self.make_parser(ctx).parse_args(args=list(args))
        for option, count in Counter(given).items():
            if isinstance(option, click.Option) and count > 1 and not _takes_many(option):
                raise click.UsageError(
                    f"{max(option.opts, key=len)} is there {count} times, and takes one value; give it once", ctx
                )
        return super().parse_args(ctx, args)


def _takes_many(option: click.Option) -> bool:
    """Whether nothing is lost where an option occurs again."""
    return option.multiple or option.count or (option.is_bool_flag and not option.secondary_opts)


def say(text: str) -> None:
    """Tell the user something that is no result."""
    click.echo(text, err=True)


def first_process() -> bool:
    """Whether this process speaks for those that torchrun has started."""
    return "TORCHELASTIC_RUN_ID" not in os.environ or os.environ.get("RANK", "0") == "0"


def command_line() -> str:
    """What was typed: results keep it."""
    return shlex.join(["repsim", *sys.argv[1:]])
