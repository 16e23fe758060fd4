"""Define `repsim import`, which makes stores of activations that other programs have saved."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from repsim.commands import terminal
from repsim.commands.remedies import render_for_cli
from repsim.commands.shared import OVERWRITE, PATH, Command, echo, print_note
from repsim.errors import InvalidInputError, Remedy
from repsim.runtime.files import format_size


@click.command("import", cls=Command)
@click.argument("sources", nargs=-1, required=True, type=PATH)
@click.option(
    "-o", "--out", type=PATH, default=Path("acts"), show_default=True, help="Folder for the stores, MODEL.h5."
)
@click.option("--name", "names", multiple=True, help="Name of the model; one for each source, in order.")
@click.option("--layers", multiple=True, help="Layer, or glob such as 'block*'; repeat it for several.  [default: all]")
@click.option(
    "--ids",
    metavar="FILE|COLUMN",
    help="Sample ids: a text file with one a line, or a column of the source.  [default: those of the source]",
)
@click.option(
    "--labels",
    metavar="FILE|COLUMN",
    help="Classes of the samples: a CSV file of two columns, id and class, or a column of the source.",
)
@click.option(
    "--groups",
    metavar="folders|re:PATTERN|FILE|COLUMN",
    help="Groups of samples that are not independent, as `repsim extract` takes them, or a column of the source.",
)
@click.option("--data", help="Description of the samples, for figures.  [default: the name of the source]")
@OVERWRITE
def import_activations(
    sources: Sequence[Path], out: Path, names: Sequence[str], layers: Sequence[str], **chosen: Any
) -> None:
    """Make stores of activations that other programs have saved, one of each of SOURCES.

    A source is a folder of .npy, .pt or .safetensors files with one layer each, as also thingsvision writes them, or a
    file of many layers: .npz, .safetensors, .pt (dictionaries of tensors), .mat, .h5 (HDF5), .h5ad (AnnData), .zarr or
    .parquet. What was taken as a layer, and what was left out, is printed and recorded. Pickles are refused.

    \b
    Examples:
      repsim import features/resnet50/ -o acts/
      repsim import resnet50.npz vit.npz --ids ids.txt -o acts/
      repsim import cells.h5ad --layers 'obsm.*' --labels cell_type
      repsim import hooks.pt --name 'my network' --labels labels.csv
    """
    from repsim.runtime.events import Note
    from repsim.stores.importing import import_steps

    if names and len(names) != len(sources):
        raise InvalidInputError(
            f"{len(names)} names for {len(sources)} sources", remedy=Remedy("give one for each, in order")
        )
    for k, source in enumerate(sources):
        name = names[k] if names else None
        with terminal.progress_bar(str(source), "layers") as advance:
            events = list(import_steps(source, out, model=name, layers=layers or None, progress=advance, **chosen))
        for event in events:
            if isinstance(event, Note):
                print_note(render_for_cli(event))
                continue
            with event as store:
                size = format_size(store.path.stat().st_size)
                echo(f"{store.path}  {len(store)} samples x {len(store.layers)} layers, {size}")
