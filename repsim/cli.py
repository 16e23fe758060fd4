"""Define the command `repsim`: its subcommands (`repsim.commands`), and errors as one line with an exit code."""

import errno
import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from repsim._version import __version__
from repsim.commands import (
    catalogue,
    comparing,
    completing,
    demonstration,
    drawing,
    exporting,
    extracting,
    importing,
    remedies,
    reporting,
    running,
    series,
    spans,
    stopping,
    stores,
    studying,
    terminal,
)
from repsim.commands.shared import echo, is_first_process
from repsim.errors import MissingDigestWarning, RepsimError, reason
from repsim.runtime.heap import let_threads_sleep, use_huge_pages
from repsim.runtime.visible_text import visible


class _UserError(click.ClickException):
    exit_code = 2


def _show_in_one_line(original: Callable[..., None]) -> Callable[..., None]:
    """Return a replacement of `warnings.showwarning` that prints a `MissingDigestWarning` as one line."""

    def show_warning(message: Warning | str, category: type[Warning], *args: Any, **kwargs: Any) -> None:
        if issubclass(category, MissingDigestWarning):
            echo(f"warning: {message}", err=True)
        else:
            original(message, category, *args, **kwargs)

    return show_warning


_OF_SYSTEM = frozenset(
    {
        errno.EACCES, errno.EPERM, errno.EROFS, errno.EIO, errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.ENAMETOOLONG,
        errno.ELOOP, errno.ENOENT, errno.ENOTDIR, errno.ESTALE, errno.EMFILE,
    }
)  # fmt: skip
"""Errors of the system that no program can avoid: full or failing disks, and names and folders that cannot be used."""


def _problem_of_system(error: OSError) -> str | None:
    """Return one line about an error of the system; None if it may be a mistake of the program."""
    if error.errno not in _OF_SYSTEM:
        return None
    if error.filename is not None:
        return visible(f"{os.fsdecode(error.filename)}: {reason(error)}")
    try:
        Path.cwd()
    except OSError:
        return "the working folder has been deleted; change to another one"
    return f"cannot write: {reason(error)}" if error.errno in {errno.ENOSPC, errno.EDQUOT, errno.EFBIG} else None


class _Group(stopping.StoppableGroup):
    """Group that shows an error that the user can correct as one line, with exit code 2."""

    def main(self, *args: Any, **kwargs: Any) -> Any:
        use_huge_pages()  # these before torch is imported
        let_threads_sleep()
        terminal.escape_unencodable_text()
        with terminal.warnings_as_notes():
            return super().main(*args, **kwargs)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("always", MissingDigestWarning)
                warnings.showwarning = _show_in_one_line(warnings.showwarning)
                return super().invoke(ctx)
        except RepsimError as error:
            if not getattr(error, "first", True):  # an error of all processes, which only the first one prints
                raise SystemExit(_UserError.exit_code) from None
            text = remedies.render_for_cli(error, self.commands.get(ctx.invoked_subcommand or ""))
            raise _UserError(visible(text)) from None
        except MemoryError as error:
            raise _UserError(f"the memory is full: {reason(error)}; try fewer workers, or smaller batches") from None
        except OSError as error:
            if (problem := _problem_of_system(error)) is None:
                raise
            raise _UserError(problem) from None


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="repsim")
@click.pass_context
def main(ctx: click.Context) -> None:
    """Do two neural networks represent the world in the same way?

    Extract the activations of timm models into HDF5 stores, compare every layer of one with every layer of the other,
    and draw the heatmap:

    \b
      repsim extract resnet50 vit_base_patch16_224 --data photos/ -o acts/
      repsim compare acts/*.h5 -m cka -m svcca -o result.nc
      repsim heatmap result.nc -o result.png

    To try it without data, run `repsim demo`: it does all of this in a minute or two, with networks and images that
    come with repsim.
    """
    if not is_first_process() and ctx.invoked_subcommand not in _SHARED:
        ctx.exit()


_SHARED = frozenset({"extract", "compare", "universality", "series", "run", "demo"})
"""Commands whose work the processes of torchrun share; of the others, only the first process does anything."""
for _command in (
    catalogue.models,
    catalogue.layers,
    catalogue.metrics,
    extracting.extract,
    importing.import_activations,
    stores.inspect,
    stores.verify,
    comparing.compare,
    drawing.heatmap,
    exporting.export,
    drawing.figures,
    studying.universality,
    series.series,
    spans.spans,
    reporting.report,
    running.run,
    demonstration.demo,
    completing.completion,
):
    main.add_command(_command)
