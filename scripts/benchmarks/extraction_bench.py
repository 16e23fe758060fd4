"""`scripts/bench extract` and `scripts/bench memory`: run extraction_worker.py and text_worker.py in turns."""

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
from turns import Result, median, ratios, run_in_fresh_process, show, table

WORKER = Path(__file__).with_name("extraction_worker.py")
TEXT_WORKER = Path(__file__).with_name("text_worker.py")
MODELS = {"resnet18": 1024, "resnet50": 512, "vit_small_patch16_224": 512}
"""Models, and the number of images that takes about half a minute on a few cores."""
MADE = 128
"""Number of images that are generated if the user gives none; each is listed under several names."""
SUFFIXES = {".jpg", ".jpeg", ".png", ".webp"}


def make_pictures(folder: Path, count: int = MADE) -> list[Path]:
    """Generate JPEG files, with smooth shapes and noise, of the size of ImageNet images in pixels and bytes."""
    rng = np.random.default_rng(0)
    paths = [folder / f"made{i:03d}.jpg" for i in range(count)]
    for path in paths:
        shapes = Image.fromarray(rng.integers(0, 256, (12, 16, 3), dtype=np.uint8)).resize((500, 375))
        grain = rng.normal(0, 14, (375, 500, 1))
        Image.fromarray((np.asarray(shapes) + grain).clip(0, 255).astype(np.uint8)).save(path, quality=90)
    return paths


def stage(folder: Path, pictures: Sequence[Path], images: int) -> Path:
    """Make a folder that lists the pictures under ``images`` names, and return it. All programs use the same folder.

    The names are hard links or copies. They are not symbolic links, because repsim reads a file only once, even if
    several symbolic links lead to it.
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
    """Yield a temporary folder and the pictures: those in ``data``, or generated ones."""
    with tempfile.TemporaryDirectory(prefix="repsim-bench-") as name:
        folder = Path(name)
        if data is None:
            yield folder, make_pictures(folder)
            return
        pictures = sorted(path for path in data.rglob("*") if path.suffix.lower() in SUFFIXES)
        if not pictures:
            raise click.ClickException(f"no picture in {data}")
        yield folder, pictures


def time_texts(texts: int, rounds: int, threads: int, device: str) -> Table:
    """Return the table of texts: a bare loop, repsim with one layer, and repsim with all blocks, in turns."""
    import text_worker  # noqa: PLC0415 - transformers takes seconds

    names = list(text_worker.CONTENDERS)
    results: dict[str, list[Result]] = {name: [] for name in names}
    with tempfile.TemporaryDirectory(prefix="repsim-bench-") as folder:
        text_worker.make_folder(Path(folder) / "model", texts)
        for turn in range(rounds):
            for name in names[:: -1 if turn % 2 else 1]:
                with tempfile.TemporaryDirectory(dir=folder) as out:
                    settings = {"contender": name, "folder": f"{folder}/model", "out": out, "device": device}
                    results[name].append(
                        run_in_fresh_process(
                            TEXT_WORKER, settings, python=sys.executable, threads=threads, label=f"{name} on texts"
                        )
                    )
    result_table = table(
        f"{texts:,} texts of 4 to 40 words, an encoder of the size of MiniLM, batch 32, {device}, {threads} threads, "
        f"medians of {rounds}",
        *("texts/s", "total texts/s", "CPU ms/text", "of bare loop", "CPU of bare loop"),
    )
    for name, runs in results.items():
        relative = [ratios(runs, results["bare"], "steady"), ratios(results["bare"], runs, "cpu")]
        result_table.add_row(
            name,
            f"{median(runs, 'steady'):,.1f}",
            f"{median(runs, 'whole'):,.1f}",
            f"{median(runs, 'cpu') * 1e3:.2f}",
            *(f"{ratio:.3f}" if name != "bare" else "" for ratio in relative),
        )
    return result_table


def run(python: str, threads: int, **settings: Any) -> Result:
    """Run one extraction in a new process that writes to a folder of its own, and return its result."""
    label = f"{settings['contender']} on {settings['model']}"
    with tempfile.TemporaryDirectory(dir=Path(settings["pictures"]).parent) as out:
        return run_in_fresh_process(WORKER, {**settings, "out": out}, python=python, threads=threads, label=label)


def add_rows(result_table: Table, results: dict[str, list[Result]]) -> None:
    """Add the rows of one model: the limits of the machine, and each program relative to the bare loop.

    The bare loop runs in the same environment as the program.
    """
    limits = results["limits"]
    flop, flops, decode, rate = (median(limits, key) for key in ("flop", "flops", "decode", "disk"))
    size = median(results["repsim"], "bytes_per_image")
    arithmetic = f"  limit: {flop / 1e9:.1f} GFLOP per image at {flops / 1e9:,.0f} GFLOP/s"
    writing = f"  limit: {size / 1e3:.1f} kB per image, disk at {rate / 1e6:,.0f} MB/s"
    result_table.add_row(arithmetic, f"{flops / flop:,.1f}")
    result_table.add_row("  limit: decoding only", f"{decode:,.1f}")
    result_table.add_row(writing, f"{rate / size:,.0f}")
    for name, runs in results.items():
        if name == "limits":
            continue
        bare = results["bare (peer)" if name == "thingsvision" else "bare"]
        layers = f", {median(runs, 'layers'):.0f} layers" if "layers" in runs[0] else ""
        relative = [f"{ratios(runs, bare, key):.3f}" for key in ("steady", "whole")] if runs is not bare else ["", ""]
        written = f"{median(runs, 'bytes') / 1e6:,.1f}" if "bytes" in runs[0] else ""
        result_table.add_row(
            f"  {name}{layers}",
            f"{median(runs, 'steady'):,.1f}",
            f"{median(runs, 'whole'):,.1f}",
            f"{median(runs, 'cpu') * 1e3:.2f}",
            f"{median(runs, 'system') * 1e3:.2f}",
            written,
            *relative,
        )


@click.command()
@click.option("--models", default=",".join(MODELS), show_default=True, help="timm names, separated by commas.")
@click.option(
    "--data", type=click.Path(path_type=Path, exists=True, file_okay=False), help="Images.  [default: generated]"
)
@click.option("--images", type=click.IntRange(1), help="Images per run.  [default: about half a minute of work]")
@click.option("--batch-size", type=click.IntRange(1), help="[default: 32; 256 on cuda]")
@click.option("--rounds", default=3, show_default=True, help="Number of rounds; the table shows medians.")
@click.option("--workers", default=min(8, os.cpu_count() or 1), show_default=True, help="Processes that decode.")
@click.option("--threads", default=torch.get_num_threads(), show_default=True, help="Threads of every program.")
@click.option("--device", default="cuda" if torch.cuda.is_available() else "cpu", show_default=True)
@click.option("--amp/--no-amp", default=None, help="Half precision.  [default: on cuda only]")
@click.option("--peer-python", help="Python of a separate environment with thingsvision.")
@click.option(
    "--variants", default="", help="Options of further runs of repsim: small-pages, channels-last, compile, A+B, ..."
)
@click.option("--texts", type=click.IntRange(0), default=3000, show_default=True, help="Texts per run; 0: none.")
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
    variants: str,
    texts: int,
) -> None:
    """Measure the images per second of `repsim extract` (all blocks, mean), a bare forward loop and the machine limits.

    The bare loop decodes, prepares and batches the same images in the same way, and discards the outputs. The
    steady state begins with the forward pass of the second batch and ends with the finished store. The total also
    includes creating and tracing the model, hashing its weights and creating the store. Ratios are medians over
    rounds. For texts, both read an encoder of the size of MiniLM with random weights; the bare loop tokenizes, sorts by
    length, and takes the mean of the last layer over the mask. The steady state begins when the model is loaded.

    \b
    scripts/bench extract                                            as in docs/benchmarks.md
    scripts/bench extract --models resnet18 --images 128 --rounds 1  a quick test
    scripts/bench extract --peer-python ~/tv/bin/python              with thingsvision and its own bare loop
    scripts/bench extract --models ''                                texts only
    scripts/bench extract --texts 0 --variants small-pages,channels-last,compile
                                                                     the cost of page faults, and two options
    """
    cuda = device.startswith("cuda")
    batch_size = batch_size or (256 if cuda else 32)
    amp = cuda if amp is None else amp
    contenders: dict[str, tuple[str, str, dict[str, bool]]] = {
        "bare": ("bare", sys.executable, {}),
        "repsim": ("repsim", sys.executable, {}),
    }
    for variant in filter(None, variants.split(",")):
        options = {"small-pages": {"huge_pages": False}}.get(variant) or {
            name.replace("-", "_"): True for name in variant.split("+")
        }
        contenders[f"repsim, {variant}"] = ("repsim", sys.executable, options)
    if peer_python:
        contenders |= {"bare (peer)": ("bare", peer_python, {}), "thingsvision": ("thingsvision", peer_python, {})}
    result_table = table(
        f"batch {batch_size}, {device}{', half precision' if amp else ''}, {threads} threads, {workers} workers, "
        f"medians of {rounds}; images: {data or 'generated, 500 x 375 JPEG'}",
        *("images/s", "total images/s", "CPU ms/image", "system ms/image", "MB written", "of bare loop", "total"),
    )
    with workplace(data) as (folder, pictures):
        for model in filter(None, models.split(",")):
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
                for name in list(contenders)[:: -1 if turn % 2 else 1]:  # no program always runs first
                    contender, python, options = contenders[name]
                    results[name].append(run(python, threads, contender=contender, **settings, **options))
            result_table.add_row(f"{model}, {n:,} images")
            add_rows(result_table, results)
    if models:
        show(result_table)
    if texts:
        show(time_texts(texts, rounds, threads, device))


@click.command()
@click.option("--model", default="resnet18", show_default=True)
@click.option("--images", default="500,4000", show_default=True, help="Two numbers of images.")
@click.option("--workers", default=min(8, os.cpu_count() or 1), show_default=True, help="Processes that decode.")
@click.option("--threads", default=torch.get_num_threads(), show_default=True)
def memory(model: str, images: str, workers: int, threads: int) -> None:
    """Measure the peak memory of `repsim extract` (all blocks, mean) with few and with many images.

    The table shows the main process and the largest worker process, which shares most of its memory with the main
    process. The images are generated, and each is listed under several names.

    \b
    scripts/bench memory
    """
    counts = [int(count) for count in images.split(",")]
    title = f"Peak memory, {model}, {workers} workers, {threads} threads, batch 32"
    result_table = table(title, "MiB", "MiB per worker", "page faults per image", "MB written")
    results = []
    with workplace(None) as (folder, pictures):
        for count in counts:
            staged = str(stage(folder, pictures, count))
            settings = {"model": model, "pictures": staged, "workers": workers}
            results.append(run(sys.executable, threads, contender="repsim", **settings))
            result = results[-1]
            result_table.add_row(
                f"{count:,} images",
                f"{result['mib']:.0f}",
                f"{result['worker_mib']:.0f}",
                f"{result['faults'] / count:,.0f}",
                f"{result['bytes'] / 1e6:.1f}",
            )
    first, last = results[0], results[-1]
    result_table.add_row("ratio", *(f"{last[key] / first[key]:.3f}" for key in ("mib", "worker_mib")))
    show(result_table)
