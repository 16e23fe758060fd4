"""Results and studies as tables, for other programs."""

from pathlib import Path

import click

from repsim.commands import completing, terminal
from repsim.commands.shared import OVERWRITE, PATH, Command, say
from repsim.errors import InvalidInputError
from repsim.runtime.files import check_output


@click.command(cls=Command)
@click.argument("result", type=PATH, shell_complete=completing.files(".nc"))
@click.option("-o", "--out", type=PATH, help="OUT.csv or OUT.json; - is the terminal.  [default: CSV on the terminal]")
@click.option(
    "--table",
    help="Of a study: pairs, layers, matches, means, shares, mean_shares, families, ceilings, models, model_pairs, "
    "maps, layer_map, samples.  [default: pairs in CSV; in JSON what `--json` of the other commands prints]",
)
@click.option("--format", "form", type=click.Choice(["csv", "json"]), help="Where OUT does not say.  [default: csv]")
@OVERWRITE
def export(result: Path, out: Path | None, table: str | None, form: str | None, *, overwrite: bool) -> None:
    """Write RESULT, of `repsim compare` or `repsim universality`, as CSV or JSON.

    A row a pair of layers or of models, a column a measure; every number reads back to the last bit. In CSV, a name
    that a spreadsheet would take for a formula gets an apostrophe in front.

    \b
    Examples:
      repsim export result.nc -o result.csv
      repsim export study.nc -o layers.csv --table layers
      repsim export study.nc --table shares
      repsim export study.nc -o study.json
    """
    file = None if out is None or str(out) == "-" else out
    if file is not None:
        if form is not None and file.suffix != f".{form}":
            raise InvalidInputError(f"--format {form} and the name {file.name} contradict each other; leave one out")
        if file.suffix not in {".csv", ".json"}:  # also keeps a slip of the hand from replacing a result
            raise InvalidInputError(f"name a table .csv or .json, not {file.name}; netCDF is what {result.name} is")
        check_output(file, overwrite=overwrite)

    from repsim.results import export
    from repsim.results.files import open_result_or_study

    found = open_result_or_study(result)
    if file is None:
        text = export.as_text(found, form or "csv", table)
        if not terminal.printable(text):
            say("note: this terminal's encoding lacks characters of some names, which are escaped; -o FILE is UTF-8")
        click.echo(text, nl=False)
        return
    export.export(found, file, table, overwrite=overwrite)
    click.echo(f"saved {file}")
