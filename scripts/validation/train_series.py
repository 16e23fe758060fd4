#!/usr/bin/env python3
"""Train small timm networks on CIFAR-10 pictures and keep checkpoints, for the series of docs/series.md."""

import tarfile
import tempfile
from pathlib import Path
from typing import Any

import click
import numpy as np
import timm
import torch
from timm.data import create_transform, resolve_model_data_config
from torch.nn.functional import cross_entropy
from torchvision.datasets import ImageFolder

MODELS: dict[str, dict[str, Any]] = {
    "test_resnet": {"size": 48, "create": {}},
    "test_vit": {"size": 32, "create": {"img_size": 32, "patch_size": 4}},
}
"""Side of the pictures, and options of `timm.create_model`."""


def checkpoint_steps(last: int, count: int = 20) -> list[int]:
    """Return ``count`` steps from 0 to ``last`` that are evenly spaced on a logarithmic axis where they can be."""
    steps = {0, last}
    fine = count
    while len(steps) < count:
        steps = {0, last, *np.geomspace(1, last, fine).round().astype(int).tolist()}
        fine += 1
    return sorted(steps)


@click.command()
@click.argument("pictures", type=click.Path(path_type=Path))
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--seeds", default=3, show_default=True)
@click.option("--epochs", default=16, show_default=True)
@click.option("--batch", default=128, show_default=True)
@click.option("--model", "models", multiple=True, default=list(MODELS), show_default=True)
def main(pictures: Path, out: Path, *, seeds: int, epochs: int, batch: int, models: list[str]) -> None:
    """Train every model with every seed on PICTURES/train, a tar file or folder; write OUT/MODEL/seed_S/step_N.pt."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as unpacked:
        if pictures.suffix == ".tar":
            with tarfile.open(pictures) as tar:
                tar.extractall(unpacked, filter="data")
            pictures = Path(unpacked)
        for seed in range(seeds):
            for name in models:
                train(name, seed, pictures, out / name / f"seed_{seed}", epochs=epochs, batch=batch)


def train(name: str, seed: int, pictures: Path, out: Path, *, epochs: int, batch: int) -> None:
    """Train one network with AdamW, a one-cycle learning rate and flipped pictures, and write its checkpoints."""
    settings = MODELS[name]
    torch.manual_seed(seed)
    model = timm.create_model(name, num_classes=10, **settings["create"])
    config = resolve_model_data_config(model) | {"input_size": (3, settings["size"], settings["size"])}
    transform = create_transform(**config, is_training=False)
    x, y = {}, {}
    for split in ("train", "test"):
        images = ImageFolder(str(pictures / split), transform)
        x[split] = torch.stack([picture for picture, _ in images])
        y[split] = torch.tensor(images.targets)
    steps_per_epoch = len(x["train"]) // batch
    last = epochs * steps_per_epoch
    keep = checkpoint_steps(last)
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.05)
    rate = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3 if "resnet" in name else 1e-3, last)
    out.mkdir(parents=True, exist_ok=True)
    draw, step = torch.Generator().manual_seed(seed), 0

    def save() -> None:
        if step in keep:
            torch.save(model.state_dict(), out / f"step_{step:06d}.pt")

    save()
    for epoch in range(epochs):
        model.train()
        order = torch.randperm(len(x["train"]), generator=draw)
        for rows in order[: steps_per_epoch * batch].split(batch):
            flip = torch.rand(len(rows), 1, 1, 1, generator=draw) < 0.5
            inputs = torch.where(flip, x["train"][rows].flip(3), x["train"][rows])
            loss = cross_entropy(model(inputs), y["train"][rows], label_smoothing=0.1)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            rate.step()
            step += 1
            save()
        model.eval()
        with torch.inference_mode():
            right = [
                int((model(p).argmax(1) == t).sum())
                for p, t in zip(x["test"].split(500), y["test"].split(500), strict=True)
            ]
        print(f"{name} seed {seed} epoch {epoch + 1}: accuracy {sum(right) / len(y['test']):.3f}", flush=True)


if __name__ == "__main__":
    main()
