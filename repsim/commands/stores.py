"""What is in stores, and whether it is whole."""

import json
from collections.abc import Sequence
from pathlib import Path

import click

from repsim import terminal
from repsim.commands import completing
from repsim.commands.shared import JSON, PATH, Command
from repsim.tables import times


@click.command(cls=Command)
@click.argument("store", type=PATH, shell_complete=completing.files(".h5"))
@JSON
def inspect(store: Path, *, as_json: bool) -> None:
    """Show what a STORE holds: model, weights, data, preprocessing, and every layer's array.

    \b
    Example:
      repsim inspect acts/resnet50.h5
    """
    from repsim.store import open_store

    with open_store(store) as opened:
        if as_json:
            rows = [
                {
                    "layer": name,
                    "readout": opened[name].key.readout,
                    "shape": opened[name].shape,
                    "dtype": str(opened[name].dtype),
                }
                | opened.facts(name)
                for name in opened.layers
            ]
            facts = {"model": opened.model, "data": opened.data, "samples": len(opened), "layers": rows}
            facts["pixels"] = None if opened.pixels is None else opened.pixels.shape
            click.echo(json.dumps(facts | {"provenance": opened.provenance}))
            return
        ids = opened.sample_ids.ids
        click.echo(f"{store}: {opened.model} on {opened.data}, {len(ids)} samples ({ids[0]} ... {ids[-1]})")
        if opened.labels is not None:
            click.echo(f"labels: {len(opened.classes) or len(set(opened.labels.tolist()))} classes")
        terminal.show(opened.table())
        if opened.pixels is not None:
            click.echo(f"pixels of the input: {times(opened.pixels.shape)}, a control beside the layers")
        for key, value in opened.provenance.items():
            if value not in (None, "", {}, []):
                click.echo(f"{key}: {value if isinstance(value, str) else json.dumps(value)}")


@click.command(cls=Command)
@click.argument("stores", nargs=-1, required=True, type=PATH, shell_complete=completing.files(".h5"))
def verify(stores: Sequence[Path]) -> None:
    """Read STORES whole and hold every byte against its checksum. Exit code 1 where something is damaged.

    Comparing checks what it reads in the same way; this is for a copy, or an old disk.

    \b
    Example:
      repsim verify acts/*.h5
    """
    from repsim.errors import StoreError
    from repsim.store import verify as find_damage

    damaged = 0
    for path in stores:
        try:
            with terminal.progress(str(path), "layers/s") as advance:
                found = list(map(str, find_damage(path, advance)))
        except StoreError as error:
            found = [str(error)]
        damaged += bool(found)
        click.echo(f"{path}: {'; '.join(found) if found else 'as it was written'}")
    if damaged:
        raise SystemExit(1)
