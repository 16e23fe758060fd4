"""Define `repsim extract`, which writes activations of models into stores."""

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from repsim.commands import completing, terminal
from repsim.commands.options import options
from repsim.commands.remedies import render_for_cli
from repsim.commands.shared import PATH, Command, command_line, echo, is_first_process, print_note
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
    several={
        "weights": "One for all models, or one for each, in order.",
        "seed": "One for all models, or one for each, in order.",
        "store": "One for each model, in order.",
    },
    without=["name"],
)  # fmt: skip
@click.option("--dry-run", is_flag=True, help="Show layers, shapes, sizes and free disk space; compute nothing.")
def extract(models: Sequence[str], data: str, out: Path, *, dry_run: bool, **keywords: Any) -> None:
    """Extract activations of MODELS of timm, torchvision or transformers on the same samples, into one HDF5 store each.

    The same command resumes an interrupted run and keeps finished stores as they are. Several processes share the work,
    on one machine or on several with a shared file system, when torchrun starts them.

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
      repsim extract resnet18 --data frames/ --groups 're:scene(\\d+)'
      repsim extract hf/sentence-transformers/all-MiniLM-L6-v2 --data captions.jsonl --column text
      repsim extract resnet50 --data captions.jsonl --column image
      torchrun --nproc-per-node 4 -m repsim extract resnet50 --data photos/
    """
    from repsim.extraction.runs import Extracted, extract_steps, plan_extraction, read_keywords
    from repsim.runtime.events import UpToDate

    ignore_metadata_of_pictures()
    request = read_keywords(models, data, keywords)[:3]
    with terminal.progress_of_steps("samples") as steps:
        if dry_run:
            for planned in plan_extraction(*request[:2], out, request[2], listeners=steps):
                show_plan(planned)
            return
        for event in extract_steps(*request[:2], out, request[2], listeners=steps, command=command_line()):
            if isinstance(event, Extracted):
                show_store(event)
            else:
                overwrite = "--overwrite makes it again"
                print_note(f"{event}; {overwrite}" if isinstance(event, UpToDate) else render_for_cli(event))


def show_store(store: "Extracted") -> None:
    """Print the contents of a new store and the speed of its extraction, in the first process only."""
    rate = f", {store.new / store.seconds:.1f} {store.noun}/s on {store.device}" if store.new else ""
    if is_first_process():
        echo(f"{store.path}  {store.samples} {store.noun} x {store.layers} layers, {format_size(store.bytes)}{rate}")


def ignore_metadata_of_pictures() -> None:
    """Suppress Pillow's warnings about metadata: no pixel depends on it, and a picture that fails is an error."""
    warnings.filterwarnings("ignore", module=r"PIL\.")


def show_plan(job: "Extraction | Note") -> None:
    """Print what an extraction will write; notes go to stderr."""
    if isinstance(job, Note):
        print_note(job.text)
        return
    table = terminal.make_table(
        "layer", "type", "output shape", "readout", "readout shape", ">bytes a sample", title=str(job.path)
    )
    for spec in job.arrays:
        facts = spec.facts
        shape = times(facts["output_shape"])
        size = f"{spec.row_bytes(job.dtype) / spec.block:,.0f}"
        table.add_row(spec.key.layer, facts["type"], shape, spec.key.readout, times(spec.shape), size)
    terminal.make_console().print(table)
    verdict = "enough room" if job.bytes * 1.05 <= job.bytes_free else "NOT ENOUGH ROOM"
    echo(
        f"{format_size(job.bytes_per_sample)} a sample, {format_size(job.bytes)} for {len(job.samples.rows)} "
        f"{job.samples.source.noun}; {format_size(job.bytes_free)} free: {verdict}"
    )
