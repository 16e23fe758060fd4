"""Define `repsim demo`, which runs the whole analysis on the networks and images that come with repsim."""

from pathlib import Path

import click

from repsim.commands import terminal
from repsim.commands.shared import PATH, Command, echo


@click.command(cls=Command)
@click.option("-o", "--out", type=PATH, default=Path("demo"), show_default=True, help="Folder for all output files.")
def demo(out: Path) -> None:
    """Run the whole analysis in a minute or two, on networks and images that come with repsim.

    Extracts activations of six small networks trained on handwritten digits (a ResNet and a ViT, three seeds each) and
    of untrained ones, on digits that they were not trained on. Compares them, draws the heatmaps, estimates how
    universal their representations are, and writes everything to one page, report.html. Lists the files to look at.

    \b
    Example:
      repsim demo -o demo/
    """
    from repsim.demo import STUDY, run
    from repsim.results.files import open_study

    with terminal.progress_bar("demo", "steps") as advance:
        files = run(out, advance)
    for path, description in files.items():
        echo(f"{path}  {description}")
    terminal.print_study(open_study(out / STUDY), path=out / STUDY)
