"""Define `repsim export`, which writes results, studies and series as tables, and activations to other formats."""

import sys
from collections.abc import Sequence
from pathlib import Path

import click

from repsim.commands import completing, terminal
from repsim.commands.shared import OVERWRITE, PATH, Command, echo, print_note
from repsim.errors import InvalidInputError
from repsim.runtime.files import check_output


@click.command(cls=Command)
@click.argument("result", type=PATH, shell_complete=completing.files(".nc", ".h5"))
@click.option("-o", "--out", type=PATH, help="OUT.csv or OUT.json; - is the terminal.  [default: CSV on the terminal]")
@click.option(
    "--activations",
    is_flag=True,
    help="RESULT is a store; write its layers to OUT.safetensors, OUT.parquet or OUT.zarr.",
)
@click.option(
    "--layers",
    multiple=True,
    help="With --activations: layer, or glob such as 'block*'; repeat it for several.  [default: all]",
)
@click.option(
    "--table",
    help="Table of a study: pairs, layers, matches, means, shares, mean_shares, families, controls, within, networks, "
    "network_pairs, models, model_pairs, maps, layer_map, samples, agreement. Table of a series: points, layers, "
    "trends, settled, blocks, within, every_point.  [default: the first of these in CSV; in JSON, what `--json` of the "
    "other commands prints]",
)
@click.option(
    "--format", "form", type=click.Choice(["csv", "json"]), help="Format of a table on the terminal.  [default: csv]"
)
@OVERWRITE
def export(
    result: Path,
    out: Path | None,
    layers: Sequence[str],
    table: str | None,
    form: str | None,
    *,
    activations: bool,
    overwrite: bool,
) -> None:
    """Write RESULT, the output of `repsim compare`, `universality` or `series`, as CSV or JSON.

    Each row is a pair of layers or of models, or a point of a series, each column a measure. Every number is read back
    exactly. In CSV, a name that a spreadsheet would interpret as a formula gets an apostrophe in front.

    With --activations, write the layers of a store as safetensors, parquet or zarr; `repsim import` reads them back,
    equal to the bit.

    \b
    Examples:
      repsim export result.nc -o result.csv
      repsim export study.nc -o layers.csv --table layers
      repsim export study.nc --table families
      repsim export series.nc --table settled
      repsim export study.nc -o study.json
      repsim export --activations acts/resnet50.h5 -o resnet50.safetensors --layers 'layer4.*'
    """
    if activations:
        if table is not None or form is not None:
            raise InvalidInputError("--activations writes layers, and takes neither --table nor --format")
        _export_activations(result, out, layers, overwrite=overwrite)
        return
    if layers:
        raise InvalidInputError("--layers is for --activations; choose a table with --table layers")
    file = None if out is None or str(out) == "-" else out
    if file is not None:
        if form is not None and file.suffix != f".{form}":
            raise InvalidInputError(f"--format {form} and the name {file.name} contradict each other; leave one out")
        if file.suffix not in {".csv", ".json"}:  # a mistyped OUT must not replace a result
            raise InvalidInputError(
                f"name a table .csv or .json, not {file.name}; {result.name} is a netCDF file already"
            )
        check_output(file, overwrite=overwrite)

    from repsim.results import export
    from repsim.results.files import open_result_or_study

    dataset = open_result_or_study(result)
    if file is None:
        encodable = True
        for text in export.text_pieces(dataset, form or "csv", table):
            if encodable and not (encodable := terminal.is_encodable(text)):
                print_note(
                    "note: the encoding of this terminal lacks characters of some names, which are shown as escapes; "
                    "-o FILE writes UTF-8"
                )
            (echo if sys.stdout.isatty() else click.echo)(text, nl=False)  # data for programs stay as they are
        return
    export.export(dataset, file, table, overwrite=overwrite)
    echo(f"saved {file}")


def _export_activations(store: Path, out: Path | None, layers: Sequence[str], *, overwrite: bool) -> None:
    """Write the layers of a store, and print what was written and what is left out."""
    from repsim.stores.exporting import SUFFIXES, export_activations
    from repsim.stores.store import open_store

    if out is None:
        raise InvalidInputError(f"name the file with -o: OUT{', OUT'.join(SUFFIXES[:-1])} or OUT{SUFFIXES[-1]}")
    with open_store(store) as opened:
        names = export_activations(opened, out, layers=layers or None, overwrite=overwrite)
        controls = [str(spec.key.label) for spec in opened.contents.arrays if spec.key.control]
    if controls:
        print_note(f"note: left out, as they are no layers: {', '.join(controls)}")
    echo(f"saved {out}: {len(names)} layer{'' if len(names) == 1 else 's'}")
