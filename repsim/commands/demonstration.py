"""The whole chain on what comes with repsim."""

from pathlib import Path

import click

from repsim.commands import terminal
from repsim.commands.shared import PATH, Command


@click.command(cls=Command)
@click.option("-o", "--out", type=PATH, default=Path("demo"), show_default=True, help="Folder for everything it makes.")
def demo(out: Path) -> None:
    """Run the whole chain in a minute or two, with nothing but what comes with repsim.

    Extracts six small networks trained on handwritten digits (a ResNet and a ViT, three seeds each) and untrained ones,
    on digits they never saw; compares them; draws the heatmaps; asks how universal their representations are, and
    puts all of it on a page, report.html. Says what to look at.

    \b
    Example:
      repsim demo -o demo/
    """
    from repsim.demo import STUDY, run
    from repsim.results.files import open_study

    with terminal.progress("demo", "steps/s") as advance:
        made = run(out, advance)
    for path, what in made.items():
        click.echo(f"{path}  {what}")
    terminal.study(open_study(out / STUDY))
