"""`scripts/bench extract` and `scripts/bench memory`: the runs of extraction_worker.py, in turns, and their tables."""

import os
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from PIL import Image
from rich.table import Table
from turns import Result, fresh, median, ratios, show, table

WORKER = Path(__file__).with_name("extraction_worker.py")
MODELS = {"resnet18": 1024, "resnet50": 512, "vit_small_patch16_224": 512}
"""And how many pictures take half a minute or so on a few cores."""
MADE = 128
"""Pictures that are made where none are given; they are listed under as many names as are needed."""
SUFFIXES = {".jpg", ".jpeg", ".png", ".webp"}


def make_pictures(folder: Path, count: int = MADE) -> list[Path]:
    """JPEGs of the size of ImageNet's, in pixels and in bytes: soft shapes and film grain, from a seed."""
    rng = np.random.default_rng(0)
    paths = [folder / f"made{i:03d}.jpg" for i in range(count)]
    for path in paths:
        shapes = Image.fromarray(rng.integers(0, 256, (12, 16, 3), dtype=np.uint8)).resize((500, 375))
        grain = rng.normal(0, 14, (375, 500, 1))
        Image.fromarray((np.asarray(shapes) + grain).clip(0, 255).astype(np.uint8)).save(path, quality=90)
    return paths


def stage(folder: Path, pictures: Sequence[Path], images: int) -> Path:
    """Make a folder with so many names for the pictures in turn: the same for every contender.

    They are hard links, or copies: a picture is read once, whatever symbolic links lead to it.
    """
    staged = folder / f"{images}-images"
    staged.mkdir(exist_ok=True)
    for i in range(images):
        picture = pictures[i % len(pictures)]
        name = staged / f"{i:06d}{picture.suffix.lower()}"
        if name.exists():
            continue
        try:
            name.hardlink_to(picture)
        except OSError:  # on another file system
            shutil.copyfile(picture, name)
    return staged


@contextmanager
def workplace(data: Path | None) -> Iterator[tuple[Path, list[Path]]]:
    """A folder that goes away, and the pictures: those of ``data``, or made ones."""
    with tempfile.TemporaryDirectory(prefix="repsim-bench-") as name:
        folder = Path(name)
        if data is None:
            yield folder, make_pictures(folder)
            return
        pictures = sorted(path for path in data.rglob("*") if path.suffix.lower() in SUFFIXES)
        if not pictures:
            raise click.ClickException(f"no picture in {data}")
        yield folder, pictures


def run(python: str, threads: int, **settings: Any) -> Result:
    """One run in a fresh process, which writes into a folder of its own."""
    label = f"{settings['contender']} on {settings['model']}"
    with tempfile.TemporaryDirectory(dir=Path(settings["pictures"]).parent) as out:
        return fresh(WORKER, {**settings, "out": out}, python=python, threads=threads, label=label)


def add_rows(made: Table, results: dict[str, list[Result]]) -> None:
    """One model's rows: the machine's limits, and each contender beside the bare loop of its own environment."""
    limits = results["limits"]
    flop, flops, decode, rate = (median(limits, key) for key in ("flop", "flops", "decode", "disk"))
    size = median(results["repsim"], "bytes_per_image")
    made.add_row(f"  limit: {flop / 1e9:.1f} GFLOP an image at {flops / 1e9:,.0f} GFLOP/s", f"{flops / flop:,.1f}")
    made.add_row("  limit: decoding and nothing else", f"{decode:,.1f}")
    made.add_row(f"  limit: {size / 1e3:.1f} kB an image, disk at {rate / 1e6:,.0f} MB/s", f"{rate / size:,.0f}")
    for name, runs in results.items():
        if name == "limits":
            continue
        bare = results["bare (peer)" if name == "thingsvision" else "bare"]
        layers = f", {median(runs, 'layers'):.0f} layers" if "layers" in runs[0] else ""
        apart = [f"{ratios(runs, bare, key):.3f}" for key in ("steady", "whole")] if runs is not bare else ["", ""]
        written = f"{median(runs, 'bytes') / 1e6:,.1f}" if "bytes" in runs[0] else ""
        made.add_row(
            f"  {name}{layers}",
            f"{median(runs, 'steady'):,.1f}",
            f"{median(runs, 'whole'):,.1f}",
            f"{median(runs, 'cpu') * 1e3:.2f}",
            written,
            *apart,
        )


@click.command()
@click.option("--models", default=",".join(MODELS), show_default=True, help="timm names, commas between.")
@click.option("--data", type=click.Path(path_type=Path, exists=True, file_okay=False), help="Pictures; else made.")
@click.option("--images", type=click.IntRange(1), help="Of each run; by default what takes some half a minute.")
@click.option("--batch-size", type=click.IntRange(1), help="32; on cuda 256.")
@click.option("--rounds", default=3, show_default=True, help="Turns; medians are shown.")
@click.option("--workers", default=min(8, os.cpu_count() or 1), show_default=True, help="Processes that decode.")
@click.option("--threads", default=torch.get_num_threads(), show_default=True, help="Threads of every contender.")
@click.option("--device", default="cuda" if torch.cuda.is_available() else "cpu", show_default=True)
@click.option("--amp/--no-amp", default=None, help="Half precision; by default on cuda.")
@click.option("--peer-python", help="The python of an environment with thingsvision, which ours cannot share.")
def extract(  # noqa: PLR0917 - click passes by name
    models: str,
    data: Path | None,
    images: int | None,
    batch_size: int | None,
    rounds: int,
    workers: int,
    threads: int,
    device: str,
    amp: bool | None,
    peer_python: str | None,
) -> None:
    """Images a second of `repsim extract` (all blocks, mean), beside a bare forward loop and what the machine could do.

    The bare loop decodes, prepares and batches the same pictures in the same way, and throws the outputs away. The
    steady state begins with the second batch's forward pass and ends with the finished store. The whole begins with
    the model's name: making and tracing the model, hashing its weights, laying out the store. Ratios are medians over
    turns.

    \b
    scripts/bench extract                                            as in docs/benchmarks.md
    scripts/bench extract --models resnet18 --images 128 --rounds 1  a look
    scripts/bench extract --peer-python ~/tv/bin/python              with thingsvision, beside a bare loop there
    """
    cuda = device.startswith("cuda")
    batch_size = batch_size or (256 if cuda else 32)
    amp = cuda if amp is None else amp
    contenders = {"bare": ("bare", sys.executable), "repsim": ("repsim", sys.executable)}
    if peer_python:
        contenders |= {"bare (peer)": ("bare", peer_python), "thingsvision": ("thingsvision", peer_python)}
    made = table(
        f"batch {batch_size}, {device}{', half precision' if amp else ''}, {threads} threads, {workers} workers, "
        f"medians of {rounds}; pictures: {data or 'made, 500 x 375 JPEG'}",
        *("images/s", "whole", "CPU ms/image", "MB written", "of bare", "whole"),
    )
    with workplace(data) as (folder, pictures):
        for model in models.split(","):
            n = images or MODELS.get(model, 512) * (16 if cuda else 1)
            settings = {
                "model": model,
                "pictures": str(stage(folder, pictures, n)),
                "batch_size": batch_size,
                "workers": workers,
                "device": device,
                "amp": amp,
            }
            results: dict[str, list[Result]] = {name: [] for name in ("limits", *contenders)}
            for turn in range(rounds):
                results["limits"].append(run(sys.executable, threads, contender="limits", **settings))
                for name in list(contenders)[:: -1 if turn % 2 else 1]:  # nobody is always first
                    contender, python = contenders[name]
                    results[name].append(run(python, threads, contender=contender, **settings))
            made.add_row(f"{model}, {n:,} images")
            add_rows(made, results)
    show(made)


@click.command()
@click.option("--model", default="resnet18", show_default=True)
@click.option("--images", default="500,4000", show_default=True, help="How many, twice.")
@click.option("--workers", default=min(8, os.cpu_count() or 1), show_default=True, help="Processes that decode.")
@click.option("--threads", default=torch.get_num_threads(), show_default=True)
def memory(model: str, images: str, workers: int, threads: int) -> None:
    """Peak memory of `repsim extract` (all blocks, mean) with few pictures and with many.

    That of the process itself, and of the largest of the processes that decode, which share most of theirs with it. The
    pictures are made ones, listed under as many names as are needed.

    \b
    scripts/bench memory
    """
    counts = [int(count) for count in images.split(",")]
    title = f"Peak memory, {model}, {workers} workers, {threads} threads, batch 32"
    made = table(title, "MiB", "worker's MiB", "MB written")
    results = []
    with workplace(None) as (folder, pictures):
        for count in counts:
            staged = str(stage(folder, pictures, count))
            settings = {"model": model, "pictures": staged, "workers": workers}
            results.append(run(sys.executable, threads, contender="repsim", **settings))
            result = results[-1]
            made.add_row(
                f"{count:,} images",
                f"{result['mib']:.0f}",
                f"{result['worker_mib']:.0f}",
                f"{result['bytes'] / 1e6:.1f}",
            )
    first, last = results[0], results[-1]
    made.add_row("ratio", *(f"{last[key] / first[key]:.3f}" for key in ("mib", "worker_mib")))
    show(made)
