"""Activations of models into stores."""

import time
import warnings
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from repsim.commands import completing, terminal
from repsim.commands.choosing import model_options, pair_models
from repsim.commands.remedies import said
from repsim.commands.shared import DEVICE, PATH, Command, command_line, say, say_nothing
from repsim.errors import InvalidInputError
from repsim.runtime.files import human
from repsim.runtime.text_tables import times

if TYPE_CHECKING:
    from repsim.extraction import Extraction
    from repsim.study.study_file import Data, Model


@click.command(cls=Command)
@click.argument("models", nargs=-1, required=True, shell_complete=completing.models)
@click.option("--data", required=True, help="A folder of pictures, a .tar, digits, or a timm data set (torch/cifar10).")
@click.option(
    "-o", "--out", type=PATH, default=Path("acts"), show_default=True, help="Folder for the stores, MODEL.h5."
)
@click.option("--layers", default="blocks", show_default=True, help="blocks, stages, all, or globs: 'layer3.*,norm'.")
@click.option(
    "--readout",
    default="mean",
    show_default=True,
    help="mean, max, cls, flatten, grid:K, gram:B, sketch:M; several with commas.",
)
@click.option("--limit", type=click.IntRange(min=1), help="So many pictures, spread evenly over the data.")
@click.option("--split", help="Part of the data: a folder inside it (.: all of it), or train, test, ... of a data set.")
@click.option("--data-root", help="Where a timm data set lies.")
@click.option("--download", is_flag=True, help="Fetch a timm data set that is not there yet.")
@model_options
@click.option(
    "--recalibrate",
    is_flag=True,
    help="First give batch norm of random weights the statistics of up to 512 of the pictures; else it does nothing.",
)
@click.option(
    "--batch-size", type=click.IntRange(min=1), help="Pictures a forward pass.  [default: 32; whole blocks for gram:B]"
)
@click.option("--workers", type=click.IntRange(min=0), help="Processes that decode pictures.  [default: one a core]")
@click.option(
    "--together",
    type=click.IntRange(min=1),
    default=4,
    show_default=True,
    help="Models in memory at once; those that prepare pictures alike share the decoding.",
)
@DEVICE
@click.option("--amp", is_flag=True, help="Half precision in the forward pass (float16 on cuda, bfloat16 elsewhere).")
@click.option(
    "--dtype", type=click.Choice(["float32", "float16"]), default="float32", show_default=True, help="Stored as."
)
@click.option(
    "--skip-bad", is_flag=True, help="Leave out and list pictures that cannot be decoded, instead of stopping."
)
@click.option("--labels", type=PATH, help="Classes of the pictures, a CSV of two columns: id or file name, and class.")
@click.option(
    "--max-pixels", type=click.IntRange(min=1), help="Refuse larger pictures.  [default: 178956970, 179 megapixels]"
)
@click.option(
    "--name",
    "names",
    multiple=True,
    help="What the model is called in results, and its store NAME.h5; of several models once for each, in order.",
)
@click.option("--overwrite", is_flag=True, help="Start anew, and replace what is there.")
@click.option("--dry-run", is_flag=True, help="Show layers, shapes, bytes and disk room; compute nothing.")
def extract(
    models: Sequence[str],
    data: str,
    out: Path,
    layers: str,
    readout: str,
    limit: int | None,
    split: str | None,
    data_root: str | None,
    weights: Sequence[str],
    seed: Sequence[int],
    batch_size: int | None,
    workers: int | None,
    together: int,
    device: str,
    dtype: Any,
    labels: Path | None,
    max_pixels: int | None,
    names: Sequence[str],
    *,
    recalibrate: bool,
    download: bool,
    amp: bool,
    skip_bad: bool,
    overwrite: bool,
    dry_run: bool,
    **chosen: Any,
) -> None:
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
    from repsim.study.study_file import Data

    pairs = pair_models(models, weights, seed, names, recalibrate=recalibrate, **chosen)
    if repeated := [model for k, model in enumerate(pairs) if model in pairs[:k]]:
        raise InvalidInputError(f"{_said(repeated[0])} is there twice; name it once")
    extract_models(
        pairs,
        Data(
            source=data,
            split=split,
            root=data_root,
            limit=limit,
            download=download,
            skip_bad=skip_bad,
            labels=str(labels) if labels else None,
            max_pixels=max_pixels,
        ),
        out,
        layers=layers,
        readout=readout,
        batch_size=batch_size,
        workers=workers,
        together=together,
        device=device,
        amp=amp,
        dtype=dtype,
        overwrite=overwrite,
        dry_run=dry_run,
    )


def extract_models(
    models: Sequence["Model"],
    data: "Data",
    out: Path,
    *,
    layers: str,
    readout: str,
    batch_size: int | None,
    workers: int | None,
    together: int,
    device: str,
    amp: bool,
    dtype: Any,
    overwrite: bool,
    dry_run: bool,
    anew: str = "; --overwrite makes it anew",
) -> list[Path]:
    """Extract, and tell how far it is; the work of `repsim extract`, and the first half of `repsim run`.

    ``anew`` says how what is complete can be made again. Returns the stores, in the order of the models; of several
    processes, only to the first.
    """
    from repsim.extraction import Extraction, choose_samples, choose_stream, run_together
    from repsim.extractors import open_images
    from repsim.extractors.factory import make_extractor
    from repsim.runtime.processes import ranks

    _check(models)
    # metadata that Pillow cannot make sense of: no pixel depends on it, and what cannot be decoded is an error
    warnings.filterwarnings("ignore", module=r"PIL\.")
    paths: dict[Model, Path] = {}
    with ranks() as me:
        images = open_images(
            data.source,
            split=data.split,
            root=data.root,
            download=data.download,
            labels=data.labels,
            max_pixels=data.max_pixels,
        )
        with terminal.progress("checking pictures", "images/s", quiet=not me.first) as advance:
            samples = choose_samples(
                images, limit=data.limit, skip_bad=data.skip_bad, progress=advance, me=me, check=not dry_run
            )
        how = choose_stream(samples, readout=readout, batch_size=batch_size, workers=workers, device=device, amp=amp)
        tell = say if me.first else say_nothing
        for name, why in samples.skipped.items():
            tell(f"skipped {name}: {why}")
        for note in samples.notes:
            tell(f"note: {said(note)}")
        for group in _groups(models, together):
            jobs = []
            for model in group:
                with terminal.waiting(
                    f"loading {model.name}, {model.weights}", quiet=not me.first
                ):  # a download, or its time-out, takes a while
                    extractor = make_extractor(
                        model.name,
                        weights=model.weights,
                        seed=model.seed,
                        layers=layers,
                        readout=readout,
                        **model.choices,
                    )
                jobs.append(
                    Extraction(
                        extractor,
                        samples,
                        out,
                        how,
                        dtype,
                        overwrite=overwrite,
                        recalibrate=model.recalibrate,
                        command=command_line(),
                        name=model.store,
                    )
                )
                paths[model] = jobs[-1].path
                for note in jobs[-1].notes:
                    tell(f"note: {model.name}: {said(note)}")
            if dry_run:
                for job in jobs if me.first else []:
                    _show_plan(job)
                continue
            before = me.share([job.already() for job in jobs] if me.first else [])
            if me.first:
                _tell_before(jobs, before, anew)
            start = time.perf_counter()
            with terminal.progress(" + ".join(job.model for job in jobs), "images/s", quiet=not me.first) as advance:
                stores = run_together(jobs, advance, me)
            seconds = time.perf_counter() - start
            for job, done, store in zip(jobs, before, stores, strict=True):
                new = len(store) - done
                rate = f", {new / seconds:.1f} images/s on {how.device}" if new else ""
                if me.first:
                    click.echo(
                        f"{job.path}  {len(store)} pictures x {len(store.layers)} layers, {human(job.bytes)}{rate}"
                    )
                store.close()
        return [paths[model] for model in models] if me.first else []


def _tell_before(jobs: Sequence["Extraction"], before: Sequence[int], anew: str) -> None:
    """Say what earlier runs have left, and how far it was checked that it fits."""
    for job, done in zip(jobs, before, strict=True):
        if done == len(job.samples.rows):
            say(f"{job.path} is complete already{anew}")
        elif done:
            say(f"{job.path}: going on after {done} of {len(job.samples.rows)} pictures")
        if done and job.contents_unchecked():
            say(f"note: {job.path} keeps no hashes of pictures: only their names and sizes were checked")


def _check(models: Sequence["Model"]) -> None:
    """What can be refused before anything is opened or downloaded."""
    from repsim.extractors.factory import check_name, store_name
    from repsim.extractors.options import ModelOptions
    from repsim.extractors.recalibration import check_weights
    from repsim.labels import check_model_name

    for model in models:
        if model.recalibrate:
            check_weights(model.weights)
        check_name(model.name)
        ModelOptions.read(**model.choices).check_weights(model.weights)
        if model.store is not None:
            check_model_name(model.store)
    twice = [name for name, count in Counter(model.store for model in models if model.store).items() if count > 1]
    if twice:
        raise InvalidInputError(f"two models cannot both be called {twice[0]}: each has a store of its own")
    stores: dict[str, Model] = {}
    for model in models:
        name = model.store or store_name(model.name, model.weights, model.seed, **model.choices)
        if (other := stores.setdefault(name, model)) is not model:
            raise InvalidInputError(
                f"{_said(other)} and {_said(model)} would have the same store, {name}.h5; give each a name of its own "
                "(--name, once for each)"
            )


def _said(model: "Model") -> str:
    return f"{model.name} with {model.weights}" + f", seed {model.seed}" * (model.weights == "random")


def _groups(models: Sequence["Model"], together: int) -> list[list["Model"]]:
    """Models that prepare pictures alike, so many at most, in the order in which they are named."""
    from repsim.extractors.factory import preprocessing_of

    kinds: dict[str, list[Model]] = {}
    for model in dict.fromkeys(models):
        kind = preprocessing_of(model.name, model.weights, **model.choices) or model.name
        kinds.setdefault(kind, []).append(model)
    return [kind[i : i + together] for kind in kinds.values() for i in range(0, len(kind), together)]


def _show_plan(job: "Extraction") -> None:
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
        f"{human(job.bytes_per_sample)} a picture, {human(job.bytes)} for {len(job.samples.rows)} "
        f"pictures; {human(job.bytes_free)} free: {room}"
    )
