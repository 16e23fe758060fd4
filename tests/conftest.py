"""Fixtures of all tests: checks of the shapes in signatures, no downloads, generated pictures."""

import os
import signal

os.environ["HF_HUB_OFFLINE"] = "1"  # before huggingface_hub is imported

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import jaxtyping
import numpy as np
import pytest

from repsim.runtime import tuning
from tests import shapes
from tests.threads import torch_threads

if not jaxtyping.config.jaxtyping_disable:  # with JAXTYPING_DISABLE=1, early versions are slow with a hook
    shapes.install(["repsim.metrics", "repsim.engine.preparation", "repsim.stores.alignment"])

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # a shell ignores it in its background, and children inherit that
    signal.signal(signal.SIGINT, signal.default_int_handler)

Pictures = Callable[..., Path]


@pytest.fixture(autouse=True)
def _shapes_are_checked_anew() -> Iterator[None]:
    with shapes.checks():
        yield


@pytest.fixture
def tuned() -> Iterator[Callable[..., None]]:
    """Change sizes and thresholds (`repsim.runtime.tuning`) for the rest of the test: ``tuned(panel=64)``."""
    with ExitStack() as stack:

        def change(**changes: Any) -> None:
            stack.enter_context(tuning.using(**changes))

        yield change


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.fixture
def pictures(tmp_path: Path) -> Pictures:
    """Return a function that makes a folder of small, different pictures: ``pictures(6)``, or with given names."""

    def make(count: int = 6, names: list[str] | None = None, folder: str = "photos") -> Path:
        from repsim.testing.examples import write_pictures  # noqa: PLC0415 - the hook above comes first

        return write_pictures(tmp_path / folder, names or [f"photo{i:02d}.png" for i in range(count)])

    return make


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Compute with one thread, like the processes whose results are compared to the bit."""
    with torch_threads(1):
        yield
