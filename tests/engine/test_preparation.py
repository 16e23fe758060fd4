"""Layers that are prepared several at a time."""

from collections.abc import Callable
from functools import partial
from threading import current_thread

import numpy as np
import pytest
import torch
from torch import Tensor

from repsim.engine.preparation import Source, prepare
from repsim.metrics.recipes.cost import LayerSize
from repsim.metrics.recipes.gram import CentredGram, Gram
from tests.threads import torch_threads

N, LARGER, BYTES = 20, 50, 20 * 50 * 4


@pytest.mark.parametrize(
    ("widths", "small", "at_once", "apart"),
    [
        ([LARGER] * 8, N * LARGER, 0, range(8)),  # small layers
        ([LARGER] * 8, N * LARGER - 1, 2 * BYTES, range(8)),  # larger ones, but many
        ([LARGER] * 8, N * LARGER - 1, 2 * BYTES - 1, []),  # which would take too much memory
        ([LARGER] * 7, N * LARGER - 1, 2 * BYTES, []),  # too few for two threads
        ([30, LARGER, 20] + [LARGER] * 7, N * 30, 2 * BYTES, range(10)),  # both
        ([10, 8 * LARGER, 10], N * 10, 2**30, [0, 2]),
    ],
)
def test_layers_are_prepared_several_at_a_time(  # noqa: PLR0917 - pytest passes by name
    rng: np.random.Generator,
    tuned: Callable[..., None],
    widths: list[int],
    small: int,
    at_once: int,
    apart: "range | list[int]",
) -> None:
    """Small ones, and larger ones if there are many, are read by the threads that prepare them."""
    tuned(small_layer=small, prepared_at_once=at_once)
    layers = [torch.from_numpy(rng.normal(size=(N, p)).astype(np.float32)) for p in widths]
    read: list[int] = []

    def rows(k: int) -> Tensor:
        if current_thread().name.startswith("repsim-worker"):
            read.append(k)
        return layers[k]

    sources = [Source(f"{k}", f"{k}", partial(rows, k), LayerSize(N, p)) for k, p in enumerate(widths)]
    steps: list[None] = []
    with torch_threads(2):
        factors = prepare(CentredGram(), sources, step=lambda: steps.append(None)).factors
    assert sorted(read) == list(apart)
    assert list(factors) == [source.name for source in sources]
    assert len(steps) == len(layers)
    for factor, x in zip(factors.values(), layers, strict=True):
        assert isinstance(factor, Gram)
        assert torch.equal(factor.rows(slice(N)), CentredGram()(x).rows(slice(N)))


@pytest.mark.parametrize(("recipe", "threads"), [(CentredGram("rbf", bandwidth=0.5), 2), (CentredGram(), 1)])
def test_larger_layers_are_prepared_one_by_one(
    rng: np.random.Generator, tuned: Callable[..., None], recipe: CentredGram, threads: int
) -> None:
    """By recipes that take long for a layer, or without another thread: the next one is read in the background."""
    tuned(small_layer=0)
    x = torch.from_numpy(rng.normal(size=(N, LARGER)).astype(np.float32))
    names: list[str] = []

    def rows() -> Tensor:
        names.append(current_thread().name)
        return x

    with torch_threads(threads):
        prepare(recipe, [Source(f"{k}", f"{k}", rows, LayerSize(N, LARGER)) for k in range(8)])
    assert len(names) == 8
    assert all(name.startswith("repsim-reader") for name in names)
