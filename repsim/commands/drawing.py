"""Define `repsim heatmap` and `repsim figures`, which draw results, studies and series."""

from collections.abc import Sequence
from pathlib import Path

import click

from repsim.commands import completing
from repsim.commands.remedies import render_for_cli
from repsim.commands.shared import PATH, Command

WIDTH = click.FloatRange(min=2, max=30)


@click.command(cls=Command)
@click.argument("files", nargs=-1, required=True, type=PATH, shell_complete=completing.files(".nc"))
@click.option(
    "-o", "--out", type=PATH, required=True, help="The figure: .png, .pdf or .svg; or an interactive page: .html."
)
@click.option("-m", "--metric", "specs", multiple=True, help="Draw only these metrics.  [default: all of a result]")
@click.option("--pair", "pairs", multiple=True, metavar="'A x B'", help="Pairs of models of a study.  [default: all]")
@click.option("--path/--no-path", default=None, help="Draw the best order-preserving match.  [default: for a study]")
@click.option(
    "--marks/--no-marks", default=None, help="Cross out cells that are not above chance.  [default: if p is known]"
)
def heatmap(
    files: Sequence[Path],
    out: Path,
    specs: Sequence[str],
    pairs: Sequence[str],
    *,
    path: bool | None,
    marks: bool | None,
) -> None:
    """Draw the layer x layer heatmaps of FILES: results of `repsim compare`, or one study of `repsim universality`.

    Several results share one scale and one colour bar, and so do the pairs of models of a study. An existing figure is
    replaced. With the suffix .html, the page of `repsim report` is written instead.

    \b
    Examples:
      repsim heatmap result.nc -o result.png
      repsim heatmap result.nc -m svcca --path -o figure.pdf
      repsim heatmap seeds.nc families.nc -m cka -o grid.pdf
      repsim heatmap study.nc -m cka --pair 'resnet50 x vit_base' -o pair.png
    """
    from repsim import figures
    from repsim.errors import InvalidInputError
    from repsim.results.files import open_result_or_study
    from repsim.results.versions import SERIES, STUDY

    if out.suffix == ".html":
        from repsim.report.page import write_report

        if specs or pairs:
            raise InvalidInputError(
                "a page shows all measures and pairs, with menus to choose them; omit -m and --pair"
            )
        write_report(files, out, overwrite=True)
        click.echo(str(out))
        return
    measures = list(specs) or None
    opened = [open_result_or_study(file) for file in files]
    if any(data.attrs["format"] == SERIES for data in opened):
        raise InvalidInputError("a series is no heatmap of two networks; `repsim figures` draws its figures")
    if any(data.attrs["format"] == STUDY for data in opened):
        if len(files) > 1:
            raise InvalidInputError(
                f"expected one study, or results of `repsim compare`, got {len(files)} files with a study"
            )
        (study,) = opened
        if not pairs and study.sizes.get("pair", 0) > figures.FEW:
            raise InvalidInputError(
                f"{study.sizes['pair']} pairs of models are too many for one page; select some with --pair, for "
                f"instance --pair '{study['pair'].values[0]}'"
            )
        drawn = figures.plot_grid(study, measures, pairs=list(pairs) or None, path=path, marks=marks)
    elif pairs:
        raise InvalidInputError("--pair selects pairs of models of a study; a result is drawn whole, so omit --pair")
    elif len(files) == 1:
        drawn = figures.figure(opened[0], measures, path=path, marks=marks)
    else:
        drawn = figures.plot_grid(opened, measures, path=path, marks=marks)
    figures.save(drawn, out)
    click.echo(str(out))


@click.command(cls=Command)
@click.argument("file", metavar="FILE", type=PATH, shell_complete=completing.files(".nc"))
@click.option("-o", "--out", type=PATH, required=True, help="Folder for the figures; existing ones are replaced.")
@click.option(
    "--format", "form", type=click.Choice(["png", "pdf", "svg"]), default="png", show_default=True, help="File format."
)
@click.option(
    "--width", type=WIDTH, metavar="INCHES", help="Width of every figure.  [default: one column, 3.3; heatmaps 7]"
)
def figures(file: Path, out: Path, form: str, width: float | None) -> None:
    """Draw every figure of FILE, a study of `repsim universality` or a series of `repsim series`.

    Each figure has its own file. Of a study: heatmaps of all pairs, matching depths, similarity along depth, all pairs
    with their controls, pairs of families with what is claimed of them, shares, the map of models, and measure against
    measure. Of a series: similarity of layers along the axis, as lines and as a heatmap, where layers settle, the trend
    of whole networks, runs at equal values, all pairs of points, and the distance from the reference by depth. A figure
    that the file has no data for is reported.

    \b
    Examples:
      repsim figures study.nc -o figures/
      repsim figures series.nc -o figures/
      repsim figures study.nc -o figures/ --format pdf --width 7
    """
    from repsim.errors import InvalidInputError
    from repsim.figures import save_all
    from repsim.results.files import open_result_or_study
    from repsim.results.versions import FORMAT

    data = open_result_or_study(file)
    if data.attrs["format"] == FORMAT:
        raise InvalidInputError(f"{file} is a comparison, not a study or a series; `repsim heatmap` draws comparisons")
    for name, description, path in save_all(data, out, form=form, width=width):
        click.echo(f"{path}  {description}" if path else f"no {name}: {render_for_cli(description)}")
