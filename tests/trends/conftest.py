"""Small series whose truth is known: layers that move from an initial to a final representation."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import repsim

STEPS = (0, 1, 3, 10, 30, 100)
LAYERS = ("a", "b", "c")
Write = Callable[..., list[Path]]


def step_layers(
    pixels: Any, step: float, run: int, *, slow: tuple[float, ...] = (3, 10, 30), width: int = 12
) -> dict[str, Any]:
    """Return the layers of one checkpoint: layer k has gone the share step / (step + slow_k) of its way."""
    n = len(pixels)
    flat = pixels.reshape(n, -1)
    of_run, of_task = np.random.default_rng(run + 1), np.random.default_rng(0)
    layers = {}
    for name, time in zip(LAYERS, slow, strict=True):
        start = flat @ of_run.normal(size=(flat.shape[1], width))
        end = np.tanh(flat @ of_task.normal(size=(flat.shape[1], width)) / 4) * 8 + of_task.normal(size=(n, width)) * 3
        share = step / (step + time)
        layers[name] = ((1 - share) * start + share * end).astype(np.float32)
    return layers


@pytest.fixture
def pixels() -> Any:
    return np.random.default_rng(7).normal(size=(61, 3, 2, 2)).astype(np.float32)


@pytest.fixture
def write(tmp_path: Path, pixels: Any) -> Write:
    """Return a function that writes one store for every run and step."""

    def written(runs: int = 2, steps: tuple[int, ...] = STEPS, folder: str = "acts", **more: Any) -> list[Path]:
        paths = []
        for run in range(runs):
            for step in steps:
                path = tmp_path / folder / f"run{run}.step{step}.h5"
                path.parent.mkdir(exist_ok=True)
                axes = {"step": step} | ({"run": f"r{run}"} if runs > 1 else {})
                repsim.write_store(
                    path, step_layers(pixels, step, run), model=path.stem, axes=axes, pixels=pixels, **more
                ).close()
                paths.append(path)
        return paths

    return written
