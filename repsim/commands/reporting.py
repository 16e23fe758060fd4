"""Define `repsim report`, which writes studies, results and series as one interactive page."""

from collections.abc import Sequence
from pathlib import Path

import click

from repsim.commands.shared import OVERWRITE, PATH, Command, echo
from repsim.errors import InvalidInputError
from repsim.runtime.files import format_size


@click.command(cls=Command)
@click.argument("files", nargs=-1, required=True, type=PATH)
@click.option("-o", "--out", type=PATH, required=True, help="The page (.html).")
@click.option(
    "--thumbnails",
    metavar="DATA",
    help="The samples (a folder, a .tar, a table, digits): the page shows those that networks agree on, pictures as "
    "small copies and texts shortened.",
)
@click.option(
    "--column",
    "columns",
    metavar="NAME",
    multiple=True,
    help="Column of the table of samples to show; can be repeated.  [default: one of pictures and one of texts]",
)
@click.option("--title", help="Title of the page.")
@OVERWRITE
def report(
    files: Sequence[Path], out: Path, thumbnails: str | None, columns: Sequence[str], title: str | None, *,
    overwrite: bool,
) -> None:  # fmt: skip
    """Make one interactive page of FILES: a study of `repsim universality`, or a result of `compare` or `series`.

    The page is a single file that opens from disk and makes no network requests. Several studies of the same models
    and samples, one per readout, share one page with a menu of readouts.

    \b
    Examples:
      repsim report study.nc -o report.html
      repsim report series.nc -o training.html
      repsim report study.nc -o report.html --thumbnails photos/
      repsim report study.nc -o report.html --thumbnails pairs.jsonl --column image --column caption
      repsim report mean.nc cls.nc -o readouts.html --title "ResNets and ViTs"
    """
    from repsim.report.page import write_report

    if out.suffix != ".html":
        raise InvalidInputError(f"a report is a page: name it .html, not {out.name}")
    write_report(files, out, thumbnails=thumbnails, column=columns, title=title, overwrite=overwrite)
    echo(f"{out} ({format_size(out.stat().st_size)})")
