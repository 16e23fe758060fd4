#!/usr/bin/env python3
"""Train the networks that come with repsim (repsim/zoo): see ``scripts/maintenance/train_zoo.py --help``."""

import copy
import json
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import click
import torch
from safetensors.torch import save
from timm.data import create_transform, resolve_model_data_config
from timm.optim import create_optimizer_v2
from torch import Tensor, nn
from torch.nn.functional import affine_grid, cross_entropy, grid_sample

from repsim.errors import OutputError
from repsim.extractors.samples.picture_sets import Digits
from repsim.extractors.weights import load_model
from repsim.extractors.zoo import ZOO, weights_file


@dataclass(frozen=True)
class Schedule:
    """Training settings of one architecture.

    The optimiser is AdamW; the learning rate has a linear warm-up over a tenth of the steps and cosine decay to zero.
    """

    epochs: int
    rate: float
    decay: float = 0.05
    batch: int = 64
    smoothing: float = 0.1
    shift: float = 0.125
    """Largest shift, as a share of the side of the image: one pixel of the original eight."""
    turn: float = 10.0
    """Largest rotation in degrees."""


SCHEDULES = {
    "digits_resnet": Schedule(epochs=40, rate=3e-3),
    # smaller shifts: a ViT is not translation equivariant
    "digits_vit": Schedule(epochs=40, rate=2e-3, batch=32, shift=0.0625, turn=7.0),
}

Say = Callable[[str], None]


@contextmanager
def deterministic() -> Iterator[None]:
    """Use one thread and deterministic kernels only, so that sums are always taken in the same order."""
    threads, strict = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(strict)


def digits(split: str, model: nn.Module) -> tuple[Tensor, Tensor]:
    """Return all images of a split, preprocessed for this model, of shape (n, 3, h, w), and their labels (n,)."""
    source = Digits(split)
    transform = create_transform(**resolve_model_data_config(model), is_training=False)
    return torch.stack([transform(source.load(i)) for i in range(len(source))]), torch.from_numpy(source.labels)


def jitter(pictures: Tensor, schedule: Schedule, draw: torch.Generator) -> Tensor:
    """Shift and rotate every image a little; new pixels have the darkest value, the background."""
    ground = pictures.amin()
    angle = (2 * torch.rand(len(pictures), generator=draw) - 1) * math.radians(schedule.turn)
    shift = (2 * torch.rand(len(pictures), 2, generator=draw) - 1) * 2 * schedule.shift  # the grid spans -1 to 1
    cos, sin = angle.cos(), angle.sin()
    maps = torch.stack([cos, -sin, shift[:, 0], sin, cos, shift[:, 1]], dim=1).view(-1, 2, 3)
    grid = affine_grid(maps, list(pictures.shape), align_corners=False)
    return grid_sample(pictures - ground, grid, align_corners=False) + ground


def train(name: str, pictures: Tensor, labels: Tensor, schedule: Schedule, say: Say = print) -> nn.Module:
    """Train one network of the zoo, starting from the weights of ``--weights random --seed N``.

    The seed determines these weights, the order of the batches and every jitter. On one machine it therefore determines
    the result bit for bit.
    """
    architecture, _, seed = name.partition(".seed")
    model, _, _ = load_model(architecture, "random", int(seed))
    draw = torch.Generator().manual_seed(int(seed))
    optimizer = create_optimizer_v2(model, "adamw", lr=schedule.rate, weight_decay=schedule.decay)
    per_epoch = len(pictures) // schedule.batch  # only full batches, for batch norm
    steps = max(1, schedule.epochs * per_epoch)
    scheduler = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(1.0, (step + 1) / (0.1 * steps)) * (1 + math.cos(math.pi * step / steps)) / 2
    )
    with deterministic():
        for epoch in range(schedule.epochs):
            began, loss_sum, hits = time.perf_counter(), 0.0, 0
            model.train()
            order = torch.randperm(len(pictures), generator=draw)
            for rows in order[: per_epoch * schedule.batch].split(schedule.batch):
                logits = model(jitter(pictures[rows], schedule, draw))
                loss = cross_entropy(logits, labels[rows], label_smoothing=schedule.smoothing)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                scheduler.step()
                loss_sum += loss.item()
                hits += int((logits.argmax(1) == labels[rows]).sum())
            say(
                f"{name}  epoch {epoch + 1:2d}/{schedule.epochs}  loss {loss_sum / per_epoch:.3f}  "
                f"accuracy on jittered training digits {hits / (per_epoch * schedule.batch):.3f}  "
                f"{time.perf_counter() - began:.1f} s"
            )
    return model.eval()


def halve(model: nn.Module) -> dict[str, Tensor]:
    """Return the state as it is stored: in float16, except the integer counters of batch norm."""
    state = model.state_dict()
    return {key: (value.half() if value.is_floating_point() else value).contiguous() for key, value in state.items()}


def accuracy(model: nn.Module, pictures: Tensor, labels: Tensor) -> float:
    """Return the share of the digits that the model classifies correctly."""
    with deterministic(), torch.inference_mode():
        return float((model.eval()(pictures).argmax(1) == labels).double().mean())


def write(name: str, model: nn.Module, folder: Path) -> tuple[Path, float]:
    """Round to float16, test the rounded network on the odd digits, write it, and return the path and the accuracy."""
    state = halve(model)
    rounded = copy.deepcopy(model)
    rounded.load_state_dict(state)
    score = accuracy(rounded, *digits("test", rounded))
    path = folder / f"{name}.safetensors"
    facts = {
        "name": name,
        "seed": int(name.rpartition("seed")[2]),
        "test_accuracy": round(score, 4),
        "torch_version": torch.__version__,
        "script": "scripts/train_zoo.py",  # its path when repsim/zoo was made, so that equal weights give equal files
        "license": "weights Apache-2.0; trained on UCI's Optical Recognition of Handwritten Digits, CC BY 4.0",
    }
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # one metadata entry: safetensors writes several entries in any order, and equal weights should give equal files
        # write_bytes, not save_file: save_file makes files that only their owner can read, and a wheel keeps this
        path.write_bytes(save(state, metadata={"repsim": json.dumps(facts)}))
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror or error}; choose another folder with -o") from None
    return path, score


@click.command(epilog="Networks: " + ", ".join(ZOO) + ".")
@click.argument("names", nargs=-1, metavar="[NAME]...")
@click.option(
    "-o",
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path(weights_file(ZOO[0])).parent,
    show_default="repsim/zoo; existing files are replaced",
    help="Folder to write NAME.safetensors to.",
)
@click.option("--epochs", type=click.IntRange(min=1), help="Number of epochs.  [default: 40]")
def main(names: tuple[str, ...], out: Path, epochs: int | None) -> None:
    """Train the networks that come with repsim.

    NAMEs are the networks to train; without NAME, all six are trained, in about six minutes on one core. Each network
    is trained on the even samples of scikit-learn's digits with its timm preprocessing, rounded to float16, and then
    tested on the odd samples. Weights, batches and jitter depend on the seed in the name only, so that the same machine
    with the same versions gives the same file.

    \b
    Examples:
      scripts/maintenance/train_zoo.py                             all six, into repsim/zoo
      scripts/maintenance/train_zoo.py digits_vit.seed1 -o DIR     one network, into another folder
      cmp DIR/digits_vit.seed1.safetensors repsim/zoo/digits_vit.seed1.safetensors
    """
    for name in names:
        if name not in ZOO:
            raise click.BadParameter(f"{name!r} is not in the zoo; choose from {', '.join(ZOO)}", param_hint="NAME")
    for name in names or ZOO:
        schedule = SCHEDULES[name.partition(".")[0]]
        if epochs is not None:
            schedule = replace(schedule, epochs=epochs)
        pictures, labels = digits("train", load_model(name.partition(".")[0], "random")[0])
        model = train(name, pictures, labels, schedule, say=click.echo)
        try:
            path, score = write(name, model, out)
        except OutputError as error:
            raise click.ClickException(str(error)) from None
        click.echo(f"{name}  test accuracy {score:.4f} in float16  {path.stat().st_size / 1000:.0f} kB  {path}")


if __name__ == "__main__":
    main()
