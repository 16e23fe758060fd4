"""Define `repsim heatmap` and `repsim figures`, which draw results, studies and series."""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import click

from repsim.commands import completing
from repsim.commands.remedies import render_for_cli
from repsim.commands.shared import PATH, Command, echo
from repsim.errors import InvalidInputError

F = TypeVar("F", bound=Callable[..., Any])
_LOOK = (
    click.option(
        "--style",
        type=click.Choice(["nature", "neurips", "talk"]),
        help="Fonts, sizes and widths of a journal, a conference, or a slide.",
    ),
    click.option(
        "--width",
        type=click.FloatRange(min=2, max=30),
        metavar="INCHES",
        help="Width of the figure.  [default: that of the style, or 3.3 for a column and 7 for a page]",
    ),
    click.option("--font", help="Font family, such as Arial or Helvetica.  [default: that of the style or matplotlib]"),
    click.option(
        "--font-size", "size", type=click.FloatRange(min=4, max=40), metavar="POINTS", help="Size of axis labels."
    ),
    click.option(
        "--dpi", type=click.IntRange(min=50, max=2400), help="Dots per inch of .png and .tiff.  [default: 300]"
    ),
    click.option("--title", help="Title of the figure."),
    click.option(
        "--range",
        "limits",
        type=float,
        nargs=2,
        metavar="LOW HIGH",
        help="Limits of the colours of a heatmap.  [default: the range of the measure]",
    ),
    click.option("--cmap", help="Colour map of matplotlib, such as viridis or Greys.  [default: repsim's]"),
    click.option(
        "--label",
        "labels",
        multiple=True,
        metavar="NAME=TEXT",
        help="Text to show for a layer, a model or a family. Repeat it for several.",
    ),
)


def _look_options(command: F) -> F:
    """Add the options that all figures have."""
    for option in reversed(_LOOK):
        command = option(command)
    return command


def _labels(pairs: Sequence[str]) -> dict[str, str] | None:
    """Return the values of --label as a mapping."""
    for pair in pairs:
        if "=" not in pair:
            raise click.UsageError(f"--label expects NAME=TEXT, got {pair!r}")
    return {pair.split("=", 1)[0]: pair.split("=", 1)[1] for pair in pairs} or None


def _image(cmap: str | None, limits: tuple[float, float] | None) -> dict[str, Any]:
    """Return the values of --cmap and --range as keywords of figures."""
    if limits and not -math.inf < limits[0] < limits[1] < math.inf:
        raise InvalidInputError(f"--range: expected two numbers, the lower one first, not {limits[0]:g} {limits[1]:g}")
    return ({"cmap": cmap} if cmap is not None else {}) | (
        dict(zip(("vmin", "vmax"), limits, strict=True)) if limits else {}
    )


@click.command(cls=Command)
@click.argument("files", nargs=-1, required=True, type=PATH, shell_complete=completing.files(".nc"))
@click.option(
    "-o",
    "--out",
    type=PATH,
    required=True,
    help="The figure: .png, .pdf, .svg, .eps or .tiff; or an interactive page: .html.",
)
@click.option("-m", "--metric", "specs", multiple=True, help="Draw only these metrics.  [default: all of a result]")
@click.option("--pair", "pairs", multiple=True, metavar="'A x B'", help="Pairs of models of a study.  [default: all]")
@click.option("--path/--no-path", default=None, help="Draw the best order-preserving match.  [default: for a study]")
@click.option(
    "--marks/--no-marks", default=None, help="Cross out cells that are not above chance.  [default: if p is known]"
)
@click.option("--annotate", is_flag=True, help="Write the value into every cell.")
@click.option(
    "--interval",
    type=click.Choice(["numbers", "chance"]),
    help="Show intervals of `repsim compare --interval` or of a study: half of each as a number, or a square where it "
    "includes the chance level.",
)
@click.option("--cbar/--no-cbar", default=True, show_default=True, help="Draw the colour bar.")
@click.option("--order", metavar="LAYER,...", help="Layers to show, in this order.  [default: all, by depth]")
@_look_options
def heatmap(
    files: Sequence[Path],
    out: Path,
    specs: Sequence[str],
    pairs: Sequence[str],
    *,
    path: bool | None,
    marks: bool | None,
    title: str | None,
    limits: tuple[float, float] | None,
    cmap: str | None,
    annotate: bool,
    interval: Any,
    cbar: bool,
    order: str | None,
    style: Any,
    width: float | None,
    font: str | None,
    size: float | None,
    dpi: int | None,
    labels: Sequence[str],
) -> None:
    """Draw the layer x layer heatmaps of FILES: results of `repsim compare`, or one study of `repsim universality`.

    Several results share one scale and one colour bar, and so do the pairs of models of a study. An existing figure is
    replaced. With the suffix .html, the page of `repsim report` is written instead.

    For a paper, --style sets the widths and fonts of its columns; the file is exactly as wide as a column (one heatmap)
    or a page (several). Colours span the range that the measure declares, so that figures can be compared; --range
    changes it for all panels. For more than these options, draw in Python: docs/figures.md.

    \b
    Examples:
      repsim heatmap result.nc -o result.png
      repsim heatmap result.nc -m svcca --path -o figure.pdf
      repsim heatmap seeds.nc families.nc -m cka -o grid.pdf
      repsim heatmap study.nc -m cka --pair 'resnet50 x vit_base' -o pair.png
      repsim heatmap result.nc -m cka --style nature --title 'ResNet and ViT' -o column.pdf
      repsim heatmap result.nc -m cka --range 0 0.8 --cmap viridis --annotate -o numbers.png
      repsim heatmap result.nc -m cka --interval numbers -o intervals.png
      repsim heatmap result.nc -m cka --label resnet50=ResNet-50 --order layer1,layer2,layer4 -o stages.eps
    """
    from repsim import figures
    from repsim.figures.canvas import check_format
    from repsim.results.files import open_result_or_study
    from repsim.results.versions import SERIES, STUDY

    if out.suffix == ".html":
        from repsim.report.page import write_report

        if specs or pairs:
            raise InvalidInputError(
                "a page shows all measures and pairs, with menus to choose them; omit -m and --pair"
            )
        write_report(files, out, overwrite=True)
        echo(str(out))
        return
    check_format(out)
    measures = list(specs) or None
    opened = [open_result_or_study(file) for file in files]
    options: dict[str, Any] = {
        "path": path, "marks": marks, "title": title, "annotate": annotate, "interval": interval, "cbar": cbar,
        "width": width, "labels": _labels(labels), "order": order.split(",") if order else None,
    } | _image(cmap, limits)  # fmt: skip
    if any(data.attrs["format"] == SERIES for data in opened):
        raise InvalidInputError("a series is no heatmap of two networks; `repsim figures` draws its figures")
    with figures.style_context(style, font=font, size=size):
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
            drawn = figures.plot_grid(study, measures, pairs=list(pairs) or None, **options)
        elif pairs:
            raise InvalidInputError(
                "--pair selects pairs of models of a study; a result is drawn whole, so omit --pair"
            )
        elif len(files) == 1:
            drawn = figures.figure(opened[0], measures, **options)
        else:
            drawn = figures.plot_grid(opened, measures, **options)
        figures.save(drawn, out, dpi=dpi)
    echo(str(out))


@click.command(cls=Command)
@click.argument("file", metavar="FILE", type=PATH, shell_complete=completing.files(".nc"))
@click.option("-o", "--out", type=PATH, required=True, help="Folder for the figures; existing ones are replaced.")
@click.option(
    "--format",
    "form",
    type=click.Choice(["png", "pdf", "svg", "eps", "tiff"]),
    default="png",
    show_default=True,
    help="File format.",
)
@click.option("--only", multiple=True, metavar="NAME", help="Draw only this figure, such as pairs. Repeat for several.")
@_look_options
def figures(
    file: Path,
    out: Path,
    form: str,
    only: Sequence[str],
    *,
    style: Any,
    width: float | None,
    font: str | None,
    size: float | None,
    dpi: int | None,
    title: str | None,
    limits: tuple[float, float] | None,
    cmap: str | None,
    labels: Sequence[str],
) -> None:
    """Draw every figure of FILE, a study of `repsim universality` or a series of `repsim series`.

    Each figure has its own file, as wide as a column or a page. Of a study: heatmaps of all pairs (heatmaps), matching
    depths (depths), similarity along depth (similarity), a matrix of models ordered by a dendrogram (models), all pairs
    with their controls (pairs), pairs of families with what is claimed of them (families), shares (shares), the map of
    models (map), and measure against measure (measures). Of a series: similarity of layers along the axis, as lines
    (trajectories) and as a heatmap (layers), where layers settle (convergence), the trend of whole networks (trend),
    runs at equal values (runs), all pairs of points (every_point), and the distance from the reference by depth
    (drift). A figure that the file has no data for is reported.

    \b
    Examples:
      repsim figures study.nc -o figures/
      repsim figures series.nc -o figures/
      repsim figures study.nc -o figures/ --format pdf --width 7
      repsim figures study.nc -o figures/ --style nature --format eps --only pairs --only map
      repsim figures study.nc -o figures/ --only heatmaps --only models --cmap viridis --range 0 0.5
      repsim figures study.nc -o slides/ --style talk --label digits_vit.seed0='ViT, seed 0'
    """
    from repsim.figures import save_all, style_context
    from repsim.results.files import open_result_or_study
    from repsim.results.versions import FORMAT

    data = open_result_or_study(file)
    if data.attrs["format"] == FORMAT:
        raise InvalidInputError(f"{file} is a comparison, not a study or a series; `repsim heatmap` draws comparisons")
    with style_context(style, font=font, size=size):
        for name, description, path in save_all(
            data, out, form=form, width=width, dpi=dpi, among=list(only) or None, labels=_labels(labels), title=title,
            **_image(cmap, limits),
        ):  # fmt: skip
            echo(f"{path}  {description}" if path else f"no {name}: {render_for_cli(description)}")
