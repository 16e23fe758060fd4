"""Define `repsim inspect` and `repsim verify`, which show and check stores, results and studies."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from repsim.commands import completing, terminal
from repsim.commands.remedies import render_for_cli
from repsim.commands.shared import JSON, PATH, Command, echo
from repsim.runtime.text_tables import times


@click.command(cls=Command)
@click.argument("store", type=PATH, shell_complete=completing.files(".h5", ".nc"))
@click.option("--full", is_flag=True, help="Print the tables and sentences of a result, a study or a series.")
@JSON
def inspect(store: Path, *, full: bool, as_json: bool) -> None:
    """Show the contents of a STORE: model, weights, data, preprocessing, and the array of every layer.

    For a result, a study or a series, show what was compared, its variables, and how it was made. With --full, print
    all tables and sentences that the command that made it can print.

    \b
    Examples:
      repsim inspect acts/resnet50.h5
      repsim inspect result.nc
      repsim inspect study.nc --full
    """
    if full and as_json:
        raise click.UsageError("--full prints tables for people; omit it or --json")
    from repsim.results.files import is_result_or_study

    if is_result_or_study(store):
        _print_saved(store) if full else _inspect_saved(store, as_json=as_json)
        return
    if full:
        raise click.UsageError(f"{store} is a store, which `repsim inspect` shows completely; omit --full")
    _inspect_store(store, as_json=as_json)


def _inspect_store(store: Path, *, as_json: bool) -> None:
    """Print the contents of a store."""
    from repsim.labels import INPUTS, noun_of
    from repsim.stores import axes
    from repsim.stores.store import open_store

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
            facts = {
                "model": opened.model,
                "axes": opened.axes,
                "data": opened.data,
                "modality": opened.modality,
                "column": opened.column,
                "samples": len(opened),
                "layers": rows,
            }
            facts["pixels"] = None if opened.pixels is None else opened.pixels.shape
            facts["statistics"] = opened.statistic_names
            echo(json.dumps(facts | {"provenance": opened.provenance}))
            return
        ids = opened.sample_ids.ids
        noun = noun_of([opened.modality], count=len(ids))
        echo(f"{store}: {opened.model} on {opened.data}, {len(ids)} {noun} ({ids[0]} ... {ids[-1]})")
        if stated := axes.axes_of(opened.provenance):
            echo(f"axes: {axes.in_words(stated)}")
        if opened.computed_axes:
            rule = f" ({opened.prediction_rule})" if opened.accuracy is not None else ""
            echo(f"computed axes: {axes.in_words(opened.computed_axes)}{rule}")
        if opened.labels is not None:
            echo(f"labels: {len(opened.classes) or len(set(opened.labels.tolist()))} classes")
        if opened.groups is not None:
            echo(f"groups: {len(opened.group_names)}, whose samples are not independent")
        terminal.print_table(opened.table())
        if opened.pixels is not None:
            echo(f"pixels of the input: {times(opened.pixels.shape)}, a control beside the layers")
        for layer, readout in INPUTS[1:]:
            if (values := opened.control(layer, readout)) is not None:
                echo(f"{readout} of the {layer}: {times(values.shape)}, a control beside the layers")
        shown = {key for key in (axes.ENTRY, axes.COMPUTED) if axes.axes_of(opened.provenance, key)}
        for key, value in opened.provenance.items():
            if value not in (None, "", {}, []) and key not in shown:
                echo(f"{key}: {value if isinstance(value, str) else json.dumps(value)}")


def _print_saved(path: Path) -> None:
    """Print all tables and sentences of a result, a study or a series."""
    from repsim.results.files import open_result_or_study
    from repsim.results.versions import SERIES, STUDY

    data = open_result_or_study(path)
    kind = data.attrs["format"]
    if kind == STUDY:
        terminal.print_study(data, full=True)
    elif kind == SERIES:
        terminal.print_series(data)
    else:
        terminal.print_notes(data)
        terminal.print_result(data, full=True)


def _inspect_saved(path: Path, *, as_json: bool) -> None:
    """Print the variables and attributes of a result or a study, without the values."""
    from repsim.results.files import open_result_or_study

    data = open_result_or_study(path)
    attrs = {str(key): _value(text) for key, text in data.attrs.items()}
    variables = {str(name): dict(variable.sizes) for name, variable in data.data_vars.items()}
    if as_json:
        facts = {"samples": data["n_samples"].item(), "data": data["data"].item(), "variables": variables}
        echo(json.dumps(facts | {"attributes": attrs}))
        return
    echo(f"{path}: {attrs['format']} on {data['data'].item()}, {data['n_samples'].item()} samples")
    for name, sizes in variables.items():
        echo(f"{name}: {' x '.join(f'{size} {dim}' for dim, size in sizes.items())}")
    for key, value in attrs.items():
        if key.startswith("stores"):
            models = [f"{store['model']} ({store['checksum']})" for store in value]
            echo(f"{key}: {', '.join(models)}")
        elif value not in ("", [], {}):
            echo(f"{key}: {value if isinstance(value, str) else json.dumps(value)}")


def _value(attribute: Any) -> Any:
    """Return the value of an attribute that holds JSON; return other attributes unchanged."""
    from repsim.results.export import nan_to_none

    try:
        return nan_to_none(
            json.loads(attribute) if isinstance(attribute, str) and attribute[:1] in {"[", "{"} else attribute
        )
    except (ValueError, RecursionError):
        return attribute


@click.command(cls=Command)
@click.argument("files", nargs=-1, required=True, type=PATH, shell_complete=completing.files(".h5", ".nc"))
def verify(files: Sequence[Path]) -> None:
    """Check every byte of FILES (stores, results, studies) against its checksum. The exit code is 1 for damage.

    Every command checks the data that it reads in the same way. Use this one after copying files, or for an old disk.

    \b
    Examples:
      repsim verify acts/*.h5
      repsim verify result.nc study.nc
    """
    from repsim.errors import StoreError
    from repsim.results.files import is_result_or_study, verify_result_or_study
    from repsim.stores.store import verify as find_damage

    damaged = 0
    for path in files:
        damage, verdict = [], "OK: all checksums match"
        try:
            if is_result_or_study(path):
                verdict = "OK: the digest matches"
                if not verify_result_or_study(path):
                    verdict = "no damage seen, but a file of this earlier format has no digest; save it again"
            else:
                with terminal.progress_bar(str(path), "layers") as advance:
                    damage = list(map(str, find_damage(path, advance)))
        except StoreError as error:
            damage = [render_for_cli(error)]
        damaged += bool(damage)
        echo(f"{path}: {'; '.join(damage) or verdict}")
    if damaged:
        raise SystemExit(1)
