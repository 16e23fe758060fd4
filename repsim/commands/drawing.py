"""Results as figures."""

from collections.abc import Sequence
from pathlib import Path

import click

from repsim.commands import completing
from repsim.commands.shared import PATH
from repsim.errors import InvalidInputError


@click.command()
@click.argument("result", type=PATH, shell_complete=completing.files(".nc"))
@click.option(
    "-o", "--out", type=PATH, required=True, help="The figure: .png, .pdf or .svg; or an interactive page: .html."
)
@click.option("-m", "--metric", "specs", multiple=True, help="Only these of the result's metrics.  [default: all]")
def heatmap(result: Path, out: Path, specs: Sequence[str]) -> None:
    """Draw the layer x layer heatmap of a RESULT of `repsim compare`. An existing figure is replaced.

    As .html it is the page of `repsim report`.

    \b
    Examples:
      repsim heatmap result.nc -o result.png
      repsim heatmap result.nc -m svcca -o figure.pdf
    """
    from repsim import figures
    from repsim.results import open_result

    if out.suffix == ".html":
        from repsim.report.page import write_report

        if specs:
            raise InvalidInputError("a page has all measures of a result, and a switch; leave -m out")
        write_report(open_result(result), out, overwrite=True)
        click.echo(str(out))
        return
    figures.save(figures.figure(open_result(result), list(specs) or None), out)
    click.echo(str(out))
