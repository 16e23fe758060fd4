"""What depends on one layer, computed once a layer, and shared among the processes of a run."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from repsim.errors import UndefinedValueError
from repsim.metrics import Factor, Recipe
from repsim.metrics.base import StreamingRecipe
from repsim.metrics.rows import Rows
from repsim.ranks import ALONE, Ranks


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
    keep: bool = True,
    me: Ranks = ALONE,
    step: Callable[[], None] = lambda: None,
) -> Prepared:
    """Apply a recipe to every layer.

    A streaming recipe is fitted by one process a layer, which tells the others what it found. ``keep`` reads each layer
    into memory, and its factor stays there; otherwise factors read their layers again whenever they are used.
    """
    shared = me.world > 1 and isinstance(recipe, StreamingRecipe)
    found: dict[str, Any] = {}
    for k, source in enumerate(sources):
        if not shared or k % me.world == me.rank:
            found[source.name] = _try(recipe, source, keep=keep, only_fit=shared)
            step()
    if shared:
        assert isinstance(recipe, StreamingRecipe)
        told = {name: state for part in me.gather(_moved(found, "cpu")) for name, state in part.items()}
        for source in sources:
            state = told[source.name]
            if not isinstance(state, UndefinedValueError):
                x = _read(source, keep=keep)
                found[source.name] = recipe.apply(x, _moved(state, _place(x)))
            else:
                found[source.name] = state
    undefined = {name: str(each) for name, each in found.items() if isinstance(each, UndefinedValueError)}
    return Prepared({name: each for name, each in found.items() if name not in undefined}, undefined)


def _try(recipe: Recipe[Any], source: Source, *, keep: bool, only_fit: bool) -> Any:
    """The factor, or the state that makes it, or why there is none."""
    try:
        x = _read(source, keep=keep)
        return recipe.fit(x) if only_fit and isinstance(recipe, StreamingRecipe) else recipe(x)
    except UndefinedValueError as error:
        return error
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
