"""Small synthetic data for tests: related and unrelated layers, stores, trained networks with untrained twins, a study,
pictures.

Everything is deterministic: the same arguments, or a generator in the same state, give the same values on every
machine up to rounding. Nothing is downloaded, and nothing here takes longer than a second. Needs no pytest.

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
"""Names of their twins: the same architectures with random weights."""


# Layers


def related_layers(
    rng: np.random.Generator, n: int, *widths: int, shared: int | Array = 5, offset: float = 0.0
) -> list[Array]:
    """Make layers that see the same signal, each through its own weights and with noise of its own.

    Parameters
    ----------
    rng
        Source of all values.
    n
        Number of samples.
    widths
        Number of features of each layer.
    shared
        Dimensions of the signal; or the signal itself, (n, k), which layers of several calls then share.
    offset
        Standard deviation of the features' means, which are 0 up to the noise by default.

    Returns
    -------
    list of array (n, width)
        The layers, float64.
    """
    signal = rng.normal(size=(n, shared)) if isinstance(shared, int) else shared
    layers = []
    for width in widths:
        layer = signal @ rng.normal(size=(signal.shape[1], width)) + rng.normal(size=(n, width))
        layers.append(layer + offset * rng.normal(size=width) if offset else layer)
    return layers


def unrelated_layers(rng: np.random.Generator, n: int, *widths: int) -> list[Array]:
    """Make layers that have nothing in common: independent normal values, (n, width), in float64."""
    return [rng.normal(size=(n, width)) for width in widths]


def append_features(layers: Iterable[Array], *features: Array) -> list[Array]:
    """Give every layer the same additional features, which all of them then have in common."""
    return [np.hstack([layer, *features]) for layer in layers]


class RowsOnDisk:
    """Activations of which rows are read when they are asked for, as `repsim.metrics.base.Rows`; records what was read.

    A recipe cannot keep the whole layer by accident: it has to read it again.
    """

    def __init__(self, array: Array) -> None:
        with tempfile.TemporaryFile() as file:  # the map keeps it open
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
    folder
        Where the store is written.
    model
        Name of the model. ``NAME+random-...`` is recorded as an untrained network of the architecture ``NAME``.
    layers
        Arrays by name, in depth order; without names they are called ``block0``, ``block1``, ...
    **options
        Further arguments of `repsim.write_store`.
    """
    if not isinstance(layers, Mapping):
        layers = {f"block{k}": layer for k, layer in enumerate(layers)}
    if "+random" in model:
        options["provenance"] = {"weights": "random", "architecture": model.partition("+")[0]}
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

    Every layer is made of 6 features of its own, of the pixels of the samples times ``seen``, and of 5 features that
    all trained networks share times ``learned``. Labels are the samples' numbers modulo 4.

    Parameters
    ----------
    folder
        Where the stores are written.
    rng
        Source of all values.
    n
        Number of samples.
    learned
        How much trained networks have in common beyond their input.
    seen
        How much of the input all networks show, untrained ones too.
    models
        Names, in the order of the stores (`write_network`).
    depth
        Layers of each network.
    **options
        Further arguments of `repsim.write_store`.
    """
    pixels, common = rng.normal(size=(n, 3, 2, 2)), rng.normal(size=(n, 5))
    stores = []
    for model in models:
        own = unrelated_layers(rng, n, *[6] * depth)
        layers = append_features(own, seen * pixels.reshape(n, -1), common * (0 if "+random" in model else learned))
        how = {"pixels": pixels, "labels": np.arange(n) % 4, **options}
        stores.append(write_network(folder, model, layers, **how))
    return stores


@contextmanager
def opened_networks(
    rng: np.random.Generator, n: int, *, learned: float, seen: float, **options: Any
) -> Iterator[list[ActivationStore]]:
    """Keep the stores of `write_networks` open in a temporary folder, and remove it afterwards."""
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        stores = write_networks(folder, rng, n, learned=learned, seen=seen, **options)
        yield [stack.enter_context(store) for store in stores]


def small_study(n: int = 40, metrics: Sequence[str] = ("mutual_knn:k=4", "procrustes"), **options: Any) -> xr.Dataset:
    """Compute the study of four trained networks, in two families, and their four untrained twins.

    They share what they see and what they have learned, the trained ones more.

    Parameters
    ----------
    n
        Number of samples. Samples are named like pictures in four folders, one a class: see `sample_names`.
    metrics
        Measures beside CKA.
    **options
        Further arguments of `repsim.universality`.

    Examples
    --------
    >>> study = small_study(20, metrics=(), draws=5, permutations=5)
    >>> study["model"].values.tolist()
    ['cnn.seed0', 'cnn.seed1', 'vit.seed0', 'vit.seed1']
    """
    names = sample_names(n)
    with opened_networks(np.random.default_rng(8), n, learned=0.7, seen=0.5, sample_ids=names) as stores:
        return universality(stores, metrics, **{"permutations": 19, "draws": 20, **options})


# Pictures


def sample_names(n: int) -> list[str]:
    """Name n pictures in four folders, one a class: ``class0/photo00.png``, ``class1/photo01.png``, ...

    >>> sample_names(2)
    ['class0/photo00.png', 'class1/photo01.png']
    """
    return [f"class{i % 4}/photo{i:02d}.png" for i in range(n)]


def write_pictures(
    folder: str | os.PathLike[str], names: Iterable[str], *, size: tuple[int, int] = (80, 60), seed: int = 1
) -> Path:
    """Write small pictures, all different and smooth as photographs are; returns the folder.

    Parameters
    ----------
    folder
        Made where it is missing.
    names
        Names of the files below the folder; their endings decide the format.
    size
        Width and height in pixels.
    seed
        Of the random colours.
    """
    rng, root = np.random.default_rng(seed), Path(folder)
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        coarse = Image.fromarray(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8))
        coarse.resize(size, Image.Resampling.BICUBIC).save(path)
    return root
