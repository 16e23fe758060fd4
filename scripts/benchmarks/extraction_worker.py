"""Time one extraction in a process of its own: read settings as JSON, print the measurements as one line of JSON.

Only the run of repsim imports repsim, so that thingsvision and a bare loop can run in a separate environment.
All programs get the same images, prepared by timm's transform, and a model with random weights.
"""

import contextlib
import json
import os
import re
import resource
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import torch
from machine_rates import gemm, peak_mib
from PIL import Image
from timm.data import create_transform, resolve_model_data_config
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

BLOCKS = re.compile(r"(layer\d|blocks)\.\d+")
"""Layers that thingsvision extracts; ``blocks`` of repsim also has the stem and the pre-logits feature."""


@dataclass(frozen=True)
class Settings:
    """Settings of one run. ``pictures`` is a folder made by `stage`, ``out`` is the output folder."""

    contender: str
    model: str
    pictures: str
    out: str
    batch_size: int = 32
    workers: int = 2
    device: str = "cpu"
    amp: bool = False
    channels_last: bool = False
    compile: bool = False
    huge_pages: bool = True
    """Whether torch requests huge pages, and the C library keeps freed blocks, as on the command line of repsim."""


class Pictures(Dataset[Tensor]):
    """Plain data set of the pictures in a folder, as a user would write it."""

    def __init__(self, folder: str, transform: Callable[[Image.Image], Tensor]) -> None:
        self.paths = sorted(Path(folder).iterdir())
        self.transform = transform

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, row: int) -> Tensor:
        with Image.open(self.paths[row]) as picture:
            return self.transform(picture.convert("RGB"))


class Clock:
    """Wall time, CPU time and system time of this process (all threads) at the start of every batch."""

    def __init__(self) -> None:
        self.marks: list[tuple[float, float, float]] = []
        self.start = self.now()

    @staticmethod
    def now() -> tuple[float, float, float]:
        return time.perf_counter(), time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_stime

    def mark(self, *_: Any) -> None:
        self.marks.append(self.now())

    def watch(self, model: nn.Module) -> None:
        model.register_forward_pre_hook(self.mark)

    def result(self, images: int, done: int, mark: int = 1) -> dict[str, Any]:
        """Return images per second in the steady state and in total, and CPU and system seconds per image in the steady
        state.

        The steady state begins at the given mark, when ``done`` images were finished, and ends now.
        """
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        wall, cpu, system = self.now()
        if images <= done:
            sys.exit(f"{images} images are too few: the measurement begins after the first {done}")
        since, cpu_since, system_since = self.marks[mark]
        return {
            "steady": (images - done) / (wall - since),
            "whole": images / (wall - self.start[0]),
            "cpu": (cpu - cpu_since) / (images - done),
            "system": (system - system_since) / (images - done),
        }


def pictures_of(settings: Settings, model: nn.Module) -> DataLoader[Tensor]:
    transform = create_transform(**resolve_model_data_config(model), is_training=False)
    return DataLoader(
        Pictures(settings.pictures, transform),
        settings.batch_size,
        num_workers=settings.workers,
        pin_memory=settings.device.startswith("cuda"),
    )


def _precision(settings: Settings) -> torch.dtype:
    """Return the data type of the forward pass."""
    half = torch.bfloat16 if settings.device == "cpu" else torch.float16
    return half if settings.amp else torch.float32


def bare(settings: Settings) -> dict[str, Any]:
    """Run the forward passes and discard the outputs."""
    clock = Clock()
    model = timm.create_model(settings.model).to(settings.device).eval()
    clock.watch(model)
    batches = pictures_of(settings, model)
    kind = torch.device(settings.device).type
    autocast = torch.autocast(kind, _precision(settings)) if settings.amp else contextlib.nullcontext()
    with torch.no_grad(), autocast:
        for pixels in batches:
            model(pixels.to(settings.device, non_blocking=True))
    return clock.result(len(batches.dataset), settings.batch_size)  # type: ignore[arg-type]


def repsim(settings: Settings) -> dict[str, Any]:
    """Run `repsim extract MODEL --layers blocks --readout mean`, from the name of the model to the opened store."""
    from repsim.extraction import Extraction, choose_samples, choose_stream  # noqa: PLC0415
    from repsim.extractors import open_images  # noqa: PLC0415
    from repsim.extractors.timm_models import TimmExtractor  # noqa: PLC0415

    clock = Clock()
    samples = choose_samples(open_images(settings.pictures))
    how = choose_stream(
        samples,
        readout="mean",
        batch_size=settings.batch_size,
        workers=settings.workers,
        device=settings.device,
        amp=settings.amp,
        channels_last=settings.channels_last,
        compile=settings.compile,
    )
    extractor = TimmExtractor(settings.model, weights="random")
    clock.watch(extractor.model)
    job = Extraction(extractor, samples, Path(settings.out), how)
    with job.run() as store:
        result = clock.result(len(store), settings.batch_size)
    return result | {
        "layers": len(job.extractor.readouts),
        "bytes": job.path.stat().st_size,
        "bytes_per_image": job.bytes_per_sample,
    }


def thingsvision(settings: Settings) -> dict[str, Any]:
    """Extract all blocks with thingsvision in one call that writes the outputs after every batch.

    thingsvision pools tokens. It has no mean over positions, so it writes complete feature maps.
    """
    from thingsvision import get_extractor  # type: ignore[import-not-found]  # noqa: PLC0415 - needs another torch

    clock = Clock()
    peer = get_extractor(
        model_name=settings.model,
        source="timm",
        device=settings.device,
        pretrained=False,
        model_parameters={"token_extraction": "avg_pool"} if "vit" in settings.model else None,
    )
    batches = pictures_of(settings, peer.model)
    blocks = [path for path, _ in peer.model.named_modules() if BLOCKS.fullmatch(path)]
    clock.watch(peer.model)
    with contextlib.redirect_stdout(sys.stderr):
        peer.extract_features(batches, module_names=blocks, flatten_acts=True, output_dir=settings.out, step_size=1)
    written = sum(path.stat().st_size for path in Path(settings.out).rglob("*.npy"))
    result = clock.result(len(batches.dataset), settings.batch_size)  # type: ignore[arg-type]
    return result | {"layers": len(blocks), "bytes": written}


def limits(settings: Settings) -> dict[str, Any]:
    """Measure the limits of the machine: decoding only, writing to disk, multiplying matrices."""
    from torch.utils.flop_counter import FlopCounterMode  # noqa: PLC0415 - older versions of torch lack it

    model = timm.create_model(settings.model).eval()
    clock = Clock()
    batches = pictures_of(settings, model)
    for _ in batches:
        clock.mark()
    first = max(1, settings.workers)  # leave out the first batch of every worker, which is delayed by its start
    decode = clock.result(len(batches.dataset), first * settings.batch_size, first - 1)["steady"]  # type: ignore[arg-type]
    pixels = Pictures(settings.pictures, batches.dataset.transform)[0][None]  # type: ignore[attr-defined]
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(pixels)
    return {
        "decode": decode,
        "flop": counter.get_total_flops(),
        "flops": gemm(settings.device, _precision(settings))["seconds"],
        "disk": disk(Path(settings.out)),
    }


def disk(folder: Path, blocks: int = 256) -> float:
    """Return the bytes per second of plain writes of 1 MiB with an fsync at the end."""
    block, path = os.urandom(2**20), folder / "disk"
    file = os.open(path, os.O_WRONLY | os.O_CREAT, 0o600)
    try:
        start = time.perf_counter()
        for i in range(blocks):
            os.pwrite(file, block, i * len(block))
        os.fsync(file)
        return blocks * len(block) / (time.perf_counter() - start)
    finally:
        os.close(file)
        path.unlink()


CONTENDERS = {"bare": bare, "repsim": repsim, "thingsvision": thingsvision, "limits": limits}

if __name__ == "__main__":
    run_settings = Settings(**json.loads(sys.argv[1]))
    # before the first tensor; the bare loop runs as a user would run it
    os.environ["THP_MEM_ALLOC_ENABLE"] = str(int(run_settings.huge_pages and run_settings.contender == "repsim"))
    measured = CONTENDERS[run_settings.contender](run_settings)
    measured["faults"] = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    measured["mib"] = peak_mib()
    measured["worker_mib"] = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
    print(json.dumps(measured))
