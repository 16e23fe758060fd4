"""Define `repsim models`, `repsim layers` and `repsim metrics`, which list what is available."""

import json

import click

from repsim.commands import completing, terminal
from repsim.commands.remedies import render_for_cli
from repsim.commands.shared import JSON, Command, echo
from repsim.runtime.text_tables import times
from repsim.runtime.visible_text import visible


@click.command(cls=Command)
@click.argument("pattern", default="*")
@JSON
def models(pattern: str, *, as_json: bool) -> None:
    """List the models that can be extracted: those of timm, and the small trained networks that come with repsim.

    PATTERN is a glob over names. The tags after a name are its pretrained weights.

    \b
    Examples:
      repsim models 'resnet*'
      repsim models 'digits_*'
    """
    import timm

    from repsim.errors import Remedy, UnknownNameError
    from repsim.extractors import zoo  # noqa: F401 - registers the embedded networks with timm

    names = timm.list_models(pattern)
    if not names:
        raise UnknownNameError("model", pattern, timm.list_models(), remedy=Remedy("quote a pattern: '*vit*'"))
    tags = {name: [full.partition(".")[2] for full in timm.list_pretrained(f"{name}.*")] for name in names}
    if as_json:
        echo(json.dumps(tags))
        return
    for name, weights in tags.items():
        click.echo(f"{visible(name)}  {click.style(', '.join(filter(None, weights)), dim=True)}".rstrip())


@click.command(cls=Command)
@click.argument("model", shell_complete=completing.models)
@click.option(
    "--layers", "spec", default="blocks", show_default=True, help="blocks, stages, all, or globs: 'layer3.*,norm'."
)
@JSON
def layers(model: str, spec: str, *, as_json: bool) -> None:
    """List the layers of MODEL that would be read, with type, output shape and width. No weights are needed.

    In a glob, * matches within one dotted part: 'layer?.*' matches the 16 blocks of a ResNet-50, not the modules inside
    them.

    \b
    Examples:
      repsim layers resnet50
      repsim layers vit_base_patch16_224 --layers 'blocks.*.attn'
    """
    from dataclasses import asdict

    from repsim.extractors.factory import make_extractor

    extractor = make_extractor(model, weights="random", layers=spec)
    if as_json:
        echo(json.dumps([asdict(layer) for layer in extractor.layers()]))
        return
    table = terminal.make_table("layer", "type", "output shape", "axes", ">width")
    for layer in extractor.layers():
        table.add_row(layer.name, layer.type, times(layer.shape), layer.axes, str(layer.width))
    terminal.make_console().print(table)
    for note in getattr(extractor, "notes", ()):
        echo(f"note: {render_for_cli(note)}", err=True)


@click.command(cls=Command)
@click.argument("name", required=False, shell_complete=completing.metrics)
@JSON
def metrics(name: str | None, *, as_json: bool) -> None:
    """List the similarity measures; with a NAME, explain one: its question, its formula, its requirements.

    \b
    Examples:
      repsim metrics
      repsim metrics cka
      repsim metrics cka:kernel=rbf --json
    """
    from repsim import metrics as registry
    from repsim.metrics import describe

    if name is not None:
        metric = registry.get(name)
        if as_json:
            echo(json.dumps(describe.facts(metric)))
        else:
            terminal.print_measure(metric)
    elif as_json:
        members = [metric for group in describe.families().values() for metric in group]
        echo(json.dumps([describe.facts(metric) for metric in members]))
    else:
        terminal.print_measures()
