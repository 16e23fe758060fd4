"""Generate small synthetic layers, stores, studies and pictures for tests.

Everything is deterministic: the same arguments, or a generator in the same state, give the same values on every
machine up to rounding. Nothing is downloaded, and no function takes longer than a second. Does not need pytest.

>>> import tempfile
>>> rng = np.random.default_rng(0)
>>> x, y = related_layers(rng, 30, 6, 4)
>>> with tempfile.TemporaryDirectory() as folder, write_network(folder, "mine", [x, y]) as store:
...     print(store.layers, store["block1"].shape)
('block0', 'block1') (30, 4)
"""

import os
import tempfile
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xarray as xr
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from repsim.stores.store import ActivationStore
from repsim.stores.writer import write_store
from repsim.study.universality import universality

__all__ = [
    "TRAINED",
    "UNTRAINED",
    "RowsOnDisk",
    "append_features",
    "opened_networks",
    "related_layers",
    "sample_names",
    "small_study",
    "unrelated_layers",
    "write_network",
    "write_networks",
    "write_pictures",
]

Array = NDArray[Any]

TRAINED = ("cnn.seed0", "cnn.seed1", "vit.seed0", "vit.seed1")
"""Names of four trained networks: two families, two seeds each."""
UNTRAINED = ("cnn+random-seed0", "cnn+random-seed1", "vit+random-seed0", "vit+random-seed1")
"""Names of the untrained networks: the same architectures with random weights."""


# Layers


def related_layers(
    rng: np.random.Generator, n: int, *widths: int, shared: int | Array = 5, offset: float = 0.0
) -> list[Array]:
    """Generate layers that share a signal, each with its own random weights and independent noise.

    Parameters
    ----------
    rng : numpy.random.Generator
        Source of all random values.
    n : int
        Number of samples.
    *widths : int
        Number of features of each layer.
    shared : int or array of shape (n, k)
        Number of dimensions of the signal; or the signal itself, which layers of several calls can share.
    offset : float
        Standard deviation of the means of the features, which are 0 up to the noise by default.

    Returns
    -------
    list of array of shape (n, width)
        The layers, float64.
    """
    signal = rng.normal(size=(n, shared)) if isinstance(shared, int) else shared
    layers = []
    for width in widths:
        layer = signal @ rng.normal(size=(signal.shape[1], width)) + rng.normal(size=(n, width))
        layers.append(layer + offset * rng.normal(size=width) if offset else layer)
    return layers


def unrelated_layers(rng: np.random.Generator, n: int, *widths: int) -> list[Array]:
    """Generate layers of independent normal values, (n, width), float64."""
    return [rng.normal(size=(n, width)) for width in widths]


def append_features(layers: Iterable[Array], *features: Array) -> list[Array]:
    """Append the same features to every layer, and return the new layers."""
    return [np.hstack([layer, *features]) for layer in layers]


class RowsOnDisk:
    """Activations on disk whose rows are read when indexed (`repsim.metrics.base.Rows`), with a record of all reads.

    It shows whether a recipe reads a layer in parts, because the whole layer is never in memory.

    Parameters
    ----------
    array : array of shape (n, p)
        The activations.
    """

    def __init__(self, array: Array) -> None:
        with tempfile.TemporaryFile() as file:  # the memory map keeps it open
            self._file = np.memmap(file, array.dtype, "w+", shape=array.shape)
        self._file[:] = array
        self.shape = array.shape
        self.dtype = torch.from_numpy(array[:0]).dtype
        self.device = torch.device("cpu")
        self.reads: list[int] = []
        """Number of samples of each read."""
        self.readers: set[str] = set()
        """Names of the threads that read."""

    def __getitem__(self, rows: slice | Tensor) -> Tensor:
        values = np.array(self._file[rows.numpy() if isinstance(rows, Tensor) else rows])
        self.reads.append(len(values))
        self.readers.add(threading.current_thread().name)
        return torch.from_numpy(values)


# Networks and studies


def write_network(
    folder: str | os.PathLike[str], model: str, layers: Sequence[Array] | Mapping[str, Array], **options: Any
) -> ActivationStore:
    """Write the store of a network, ``folder/model.h5``, and open it.

    Parameters
    ----------
    folder : str or path
        Folder of the store.
    model : str
        Name of the model. ``NAME+random-...`` is recorded as an untrained network of the architecture ``NAME``, unless
        the provenance in the options names another one.
    layers : dict of str to array, or sequence of array
        Arrays of shape (n, ...) in depth order; without names they are called ``block0``, ``block1``, ...
    **options
        Further arguments of `repsim.write_store`.
    """
    if not isinstance(layers, Mapping):
        layers = {f"block{k}": layer for k, layer in enumerate(layers)}
    if "+random" in model:
        untrained = {"weights": "random", "architecture": model.partition("+")[0]}
        options["provenance"] = untrained | options.get("provenance", {})
    return write_store(Path(folder) / f"{model}.h5", layers, model=model, **options)


def write_networks(
    folder: str | os.PathLike[str],
    rng: np.random.Generator,
    n: int,
    *,
    learned: float,
    seen: float,
    models: Sequence[str] = TRAINED + UNTRAINED,
    depth: int = 3,
    **options: Any,
) -> list[ActivationStore]:
    """Write the stores of networks whose similarity has known causes, and open them.

    Every layer consists of 6 independent features, the pixels of the samples times ``seen``, and 5 features that are
    the same in all trained networks, times ``learned``. Labels are the indices of the samples modulo 4.

    Parameters
    ----------
    folder : str or path
        Folder of the stores.
    rng : numpy.random.Generator
        Source of all random values.
    n : int
        Number of samples.
    learned : float
        Weight of the features that trained networks share.
    seen : float
        Weight of the pixels, in untrained networks too.
    models : sequence of str
        Names, in the order of the stores (`write_network`).
    depth : int
        Number of layers of each network.
    **options
        Further arguments of `repsim.write_store`.
    """
    pixels, common = rng.normal(size=(n, 3, 2, 2)), rng.normal(size=(n, 5))
    stores = []
    for model in models:
        own = unrelated_layers(rng, n, *[6] * depth)
        layers = append_features(own, seen * pixels.reshape(n, -1), common * (0 if "+random" in model else learned))
        arguments = {"pixels": pixels, "labels": np.arange(n) % 4, **options}
        stores.append(write_network(folder, model, layers, **arguments))
    return stores


@contextmanager
def opened_networks(
    rng: np.random.Generator, n: int, *, learned: float, seen: float, **options: Any
) -> Iterator[list[ActivationStore]]:
    """Open the stores of `write_networks` in a temporary folder, which is removed afterwards; a context manager."""
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        stores = write_networks(folder, rng, n, learned=learned, seen=seen, **options)
        yield [stack.enter_context(store) for store in stores]


def small_study(n: int = 40, metrics: Sequence[str] = ("mutual_knn:k=4", "procrustes"), **options: Any) -> xr.Dataset:
    """Compute the study of four trained networks, in two families, and four untrained networks.

    All networks share their input, and the trained ones also learned features.

    Parameters
    ----------
    n : int
        Number of samples. They are named like pictures in one folder for each of four classes: see `sample_names`.
    metrics : sequence of str
        Measures besides CKA.
    **options
        Further arguments of `repsim.universality`.

    Examples
    --------
    >>> study = small_study(20, metrics=["cka"], draws=5)
    >>> study["model"].values.tolist()
    ['cnn.seed0', 'cnn.seed1', 'vit.seed0', 'vit.seed1']
    """
    names = sample_names(n)
    with opened_networks(np.random.default_rng(8), n, learned=0.7, seen=0.5, sample_ids=names) as stores:
        return universality(stores, metrics, **{"permutations": 19, "draws": 20, **options})


# Pictures


def sample_names(n: int) -> list[str]:
    """Return names of n pictures in one folder for each of four classes: ``class0/photo00.png``, ...

    >>> sample_names(2)
    ['class0/photo00.png', 'class1/photo01.png']
    """
    return [f"class{i % 4}/photo{i:02d}.png" for i in range(n)]


def write_pictures(
    folder: str | os.PathLike[str], names: Iterable[str], *, size: tuple[int, int] = (80, 60), seed: int = 1
) -> Path:
    """Write small pictures, all different and as smooth as photographs, and return the folder.

    Parameters
    ----------
    folder : str or path
        The folder; it is created if it does not exist.
    names : iterable of str
        Names of the files in the folder; their suffixes decide the format.
    size : tuple of int
        Width and height in pixels.
    seed : int
        Seed of the random colours.
    """
    rng, root = np.random.default_rng(seed), Path(folder)
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        coarse = Image.fromarray(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8))
        coarse.resize(size, Image.Resampling.BICUBIC).save(path)
    return root
