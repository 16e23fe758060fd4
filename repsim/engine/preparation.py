"""What depends on one layer, computed once a layer, and shared among the processes of a run."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from repsim.errors import UndefinedValueError
from repsim.metrics import Factor, Recipe
from repsim.metrics.recipes.base import StreamingRecipe
from repsim.metrics.recipes.rows import Rows, prefetch
from repsim.runtime.processes import ALONE, Ranks


@dataclass(frozen=True)
class Source:
    """A layer that can be read."""

    name: str
    """Unique among the layers."""
    label: str
    """For people."""
    rows: Callable[[], Rows | Tensor]
    """Gives the layer as it is read from its store."""


@dataclass(frozen=True)
class Prepared:
    """Layers, prepared by one recipe."""

    factors: Mapping[str, Factor]
    undefined: Mapping[str, str]
    """Layers that have nothing to compare (constant ones, say), and why."""


def prepare(
    recipe: Recipe[Any],
    sources: Sequence[Source],
    *,
    device: str = "cpu",
    keep: bool = True,
    me: Ranks = ALONE,
    step: Callable[[], None] = lambda: None,
) -> Prepared:
    """Apply a recipe to every layer; the next one is read from its store meanwhile.

    A streaming recipe is fitted by one process a layer, which tells the others what it found. ``keep`` reads each layer
    into memory, and its factor stays there; otherwise factors read their layers again whenever they are used.
    """
    shared = me.world > 1 and isinstance(recipe, StreamingRecipe)
    work: Callable[[Any], Any] = recipe.fit if shared and isinstance(recipe, StreamingRecipe) else recipe
    mine = sources[me.rank :: me.world] if shared else sources
    found: dict[str, Any] = {}
    for source, x in _reading(recipe, mine, device, keep=keep):
        with _telling(recipe, source):
            try:
                found[source.name] = work(x)
            except UndefinedValueError as error:
                found[source.name] = error
        step()
    if shared:
        assert isinstance(recipe, StreamingRecipe)
        told = {name: state for part in me.gather(_moved(found, "cpu")) for name, state in part.items()}
        found = {name: state for name, state in told.items() if isinstance(state, UndefinedValueError)}
        some = [source for source in sources if source.name not in found]
        for source, x in _reading(recipe, some, device, keep=keep):
            found[source.name] = recipe.apply(x, _moved(told[source.name], _place(x)))
    undefined = {name: str(each) for name, each in found.items() if isinstance(each, UndefinedValueError)}
    factors = {source.name: found[source.name] for source in sources if source.name not in undefined}
    return Prepared(factors, undefined)


def _reading(
    recipe: Recipe[Any], sources: Sequence[Source], device: str, *, keep: bool
) -> Iterator[tuple[Source, Rows | Tensor]]:
    """Every layer, read while the one before is worked on."""

    def read() -> Iterator[Rows | Tensor]:
        for source in sources:
            with _telling(recipe, source):
                yield _read(source, keep=keep)

    return zip(sources, prefetch(read(), torch.device(device)) if keep else read(), strict=True)


@contextmanager
def _telling(recipe: Recipe[Any], source: Source) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        error.add_note(f"while preparing layer {source.label} with {recipe}")
        raise


def _read(source: Source, *, keep: bool) -> Rows | Tensor:
    rows = source.rows()
    return rows[:] if keep else rows


def _place(x: Rows | Tensor) -> str:
    return "cpu" if x.device.type == "mps" else str(x.device)  # mps has no float64


def _moved(value: Any, device: str) -> Any:
    """The same with every tensor in it on this device."""
    if isinstance(value, Tensor):
        return value.to(device)
    if isinstance(value, dict):
        return {key: _moved(each, device) for key, each in value.items()}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        parts = {field.name: _moved(getattr(value, field.name), device) for field in dataclasses.fields(value)}
        return dataclasses.replace(value, **parts)
    return value
