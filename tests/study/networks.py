"""Small made-up networks for studies, and slow references: U-centred kernels, written out as vectors."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from repsim.stores.store import ActivationStore
from repsim.stores.writer import write_store

Array = NDArray[np.float64]
FOUR = ("cnn.seed0", "cnn.seed1", "vit.seed0", "vit.seed1")
TWINS = ("cnn+random-seed0", "cnn+random-seed1", "vit+random-seed0", "vit+random-seed1")


def network(
    folder: Path,
    model: str,
    layers: Sequence[Array] | Mapping[str, Array],
    **options: Any,
) -> ActivationStore:
    """A store; of an untrained network where its name says so."""
    if not isinstance(layers, Mapping):
        layers = {f"block{k}": x for k, x in enumerate(layers)}
    if "+random" in model:
        options["provenance"] = {"weights": "random", "architecture": model.partition("+")[0]}
    return write_store(folder / f"{model}.h5", layers, model=model, **options)


def noise(rng: np.random.Generator, n: int, count: int = 3, p: int = 6) -> list[Array]:
    """Layers that have nothing in common."""
    return [rng.normal(size=(n, p)) for _ in range(count)]


def beside(layers: Sequence[Array], *others: Array) -> list[Array]:
    """The same with more features, equal ones in every layer."""
    return [np.hstack([x, *others]) for x in layers]


def family(
    folder: Path,
    rng: np.random.Generator,
    n: int,
    *,
    learned: float,
    seen: float,
    models: Sequence[str] = FOUR + TWINS,
    depth: int = 3,
    **options: Any,
) -> list[ActivationStore]:
    """Networks that have something learned in common (the trained ones), and something of their input (all)."""
    pixels, common = rng.normal(size=(n, 3, 2, 2)), rng.normal(size=(n, 5))
    return [
        network(
            folder,
            model,
            beside(noise(rng, n, depth), seen * pixels.reshape(n, -1), common * (0 if "+random" in model else learned)),
            **{"pixels": pixels, "labels": np.arange(n) % 4, **options},
        )
        for model in models
    ]


def unit_kernel(x: Array) -> Array:
    """U-centred linear kernel as a vector of length 1: the inner product of two is debiased CKA."""
    n = len(x)
    x = x - x.mean(0)  # which changes nothing of the kernel below, but for rounding errors
    K = x @ x.T
    np.fill_diagonal(K, 0)
    sums = K.sum(0)
    K = K - sums[:, None] / (n - 2) - sums / (n - 2) + sums.sum() / ((n - 1) * (n - 2))
    np.fill_diagonal(K, 0)
    flat: Array = K.ravel()
    return flat / np.linalg.norm(flat)


def without(V: Array, Z: Array) -> Array:
    """What is left of vectors (rows) once those of Z are projected out."""
    if not len(Z):
        return V
    return V - (Z.T @ np.linalg.lstsq(Z.T, V.T, rcond=1e-8)[0]).T


def cosines(A: Array, B: Array) -> Array:
    """Of rows with rows."""
    return np.asarray((A / np.linalg.norm(A, axis=1, keepdims=True)) @ (B / np.linalg.norm(B, axis=1, keepdims=True)).T)
