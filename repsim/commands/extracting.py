"""Activations of models into stores."""

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from repsim.commands import completing, terminal
from repsim.commands.options import options
from repsim.commands.remedies import said
from repsim.commands.shared import PATH, Command, command_line, first_process, say
from repsim.extraction.options import Data, ExtractOptions, Model
from repsim.runtime.events import Note
from repsim.runtime.files import format_size
from repsim.runtime.text_tables import times

if TYPE_CHECKING:
    from repsim.extraction.jobs import Extraction
    from repsim.extraction.runs import Extracted


@click.command(cls=Command)
@click.argument("models", nargs=-1, required=True, shell_complete=completing.models)
@click.option(
    "-o", "--out", type=PATH, default=Path("acts"), show_default=True, help="Folder for the stores, MODEL.h5."
)
@options(
    Data, Model, ExtractOptions,
    flags={
        "source": ["--data"], "root": ["--data-root"], "store": ["--name"],
        "model_kwargs": ["--model-kwarg", "model_kwargs"],
    },
    several=["weights", "seed", "store"],
    without=["name"],
)  # fmt: skip
@click.option("--dry-run", is_flag=True, help="Show layers, shapes, bytes and disk room; compute nothing.")
def extract(models: Sequence[str], data: str, out: Path, *, dry_run: bool, **keywords: Any) -> None:
    """Extract activations of timm or torchvision MODELS on the same pictures: one HDF5 store a model.

    The same command again goes on where an interrupted one stopped, and leaves finished stores as they are. Several
    processes share the work, on one machine or on several with a common file system, when torchrun starts them.

    \b
    Examples:
      repsim extract resnet50 vit_base_patch16_224 --data photos/ -o acts/
      repsim extract deit_tiny_patch16_224 --data photos/ --layers 'blocks.*'
      repsim extract vit_base_patch16_224 --data photos/ --readout mean,cls
      repsim extract torchvision/resnet50 --weights random --seed 1 --data photos/
      repsim extract resnet18 --weights my.safetensors --data photos/ --dry-run
      repsim extract resnet18 resnet18 --weights epoch1.pth --weights epoch9.pth --data photos/
      repsim extract vit_small_patch16_224 --weights my.pth --img-size 384 --mean 0.5 --data photos/
      repsim extract digits_resnet.seed0 --data digits --split test --limit 500
      repsim extract resnet18 --data photos/ --labels labels.csv --name 'my network'
      torchrun --nproc-per-node 4 -m repsim extract resnet50 --data photos/
    """
    from repsim.extraction.runs import Extracted, extract_steps, plan_extraction, read_keywords
    from repsim.runtime.events import UpToDate

    ignore_metadata_of_pictures()
    request = read_keywords(models, data, keywords)[:3]
    with terminal.steps("images/s") as steps:
        if dry_run:
            for planned in plan_extraction(*request[:2], out, request[2], listeners=steps):
                show_plan(planned)
            return
        for event in extract_steps(*request[:2], out, request[2], listeners=steps, command=command_line()):
            if isinstance(event, Extracted):
                show_store(event)
            else:
                say(f"{event}; --overwrite makes it anew" if isinstance(event, UpToDate) else said(event))


def show_store(made: "Extracted") -> None:
    """Say what is in a store, and how fast that came; of several processes the first does."""
    rate = f", {made.new / made.seconds:.1f} images/s on {made.device}" if made.new else ""
    if first_process():
        click.echo(f"{made.path}  {made.samples} pictures x {made.layers} layers, {format_size(made.bytes)}{rate}")


def ignore_metadata_of_pictures() -> None:
    """Metadata that Pillow cannot make sense of: no pixel depends on it, and what cannot be decoded is an error."""
    warnings.filterwarnings("ignore", module=r"PIL\.")


def show_plan(job: "Extraction | Note") -> None:
    """Show what an extraction will write; notes go to stderr."""
    if isinstance(job, Note):
        say(job.text)
        return
    table = terminal.table(
        "layer", "type", "output shape", "readout", "readout shape", ">bytes a picture", title=str(job.path)
    )
    for spec in job.arrays:
        facts = spec.facts
        shape = times(facts["output_shape"])
        size = f"{spec.row_bytes(job.dtype) / spec.block:,.0f}"
        table.add_row(spec.key.layer, facts["type"], shape, spec.key.readout, times(spec.shape), size)
    terminal.console().print(table)
    room = "enough room" if job.bytes * 1.05 <= job.bytes_free else "NOT ENOUGH ROOM"
    click.echo(
        f"{format_size(job.bytes_per_sample)} a picture, {format_size(job.bytes)} for {len(job.samples.rows)} "
        f"pictures; {format_size(job.bytes_free)} free: {room}"
    )
