"""Prepare each layer once by a recipe, sharing the layers among the processes of a run."""

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

from repsim.errors import UndefinedValueError
from repsim.metrics import Factor, Recipe
from repsim.metrics.recipes.base import StreamingRecipe
from repsim.metrics.recipes.cost import LayerSize
from repsim.metrics.recipes.gram import CentredGram, Gram
from repsim.metrics.recipes.rows import Rows, cut, prefetch
from repsim.runtime import tuning
from repsim.runtime.processes import ALONE, Ranks
from repsim.runtime.progress import part_of_unit, report_share, sharing
from repsim.runtime.threads import map_in_threads

_SMALL_AT_ONCE = 64
"""Small layers that are prepared before progress is reported."""
R = TypeVar("R")


@dataclass(frozen=True)
class Source:
    """Layer that can be read from its store."""

    name: str
    """Unique name of the layer."""
    label: str
    """Name of the layer in messages."""
    rows: Callable[[], Rows | Tensor]
    """Function that opens the layer for reading."""
    size: LayerSize | None = None
    """Shape, if it is known: several small layers are prepared at a time."""


@dataclass(frozen=True)
class Prepared:
    """Layers prepared by one recipe."""

    factors: Mapping[str, Factor]
    """Factors of the layers by name."""
    undefined: Mapping[str, str]
    """Layers without a factor (constant layers, for example), with the reason."""


def prepare(
    recipe: Recipe[Any],
    sources: Sequence[Source],
    *,
    device: str = "cpu",
    keep: bool = True,
    me: Ranks = ALONE,
    step: Callable[[], None] = lambda: None,
) -> Prepared:
    """Apply a recipe to every layer, reading the next layer in the background.

    Parameters
    ----------
    recipe : Recipe
        The recipe. Each layer is fitted to a streaming recipe by one process, which sends the result to the others.
    sources : sequence of Source
        The layers.
    device : str
        The device to compute on.
    keep : bool
        Whether to read each layer into memory and keep it there; otherwise factors read their layers again whenever
        they are used.
    me : Ranks
        This process among those that share the work.
    step : callable
        Called after each layer that this process has prepared. A `Step` also receives the share of the running layer
        that is done.
    """
    shared = me.world > 1 and isinstance(recipe, StreamingRecipe)
    work: Callable[[Any], Any] = recipe.fit if shared and isinstance(recipe, StreamingRecipe) else recipe
    own_sources = sources[me.rank :: me.world] if shared else sources
    results: dict[str, Any] = {}  # factors, fitted states, or errors

    def prepare_layer(source: Source, x: Rows | Tensor | None = None) -> None:
        with _layer_in_errors(recipe, source):
            try:
                results[source.name] = work(_read(source, keep=keep) if x is None else x)
            except UndefinedValueError as error:
                results[source.name] = error

    apart = _at_a_time(recipe, own_sources) if keep and device == "cpu" else []
    names = {source.name for source in apart}
    large = [source for source in own_sources if source.name not in names]
    for run in cut(len(apart), _SMALL_AT_ONCE):
        with sharing(lambda: None):
            map_in_threads(prepare_layer, apart[run])
        for _ in apart[run]:
            step()
    for source, x in _read_all(recipe, large, device, keep=keep):
        with sharing(step):
            prepare_layer(source, x)
        step()
    if shared:
        assert isinstance(recipe, StreamingRecipe)
        states = {name: state for part in me.gather(_to_device(results, "cpu")) for name, state in part.items()}
        results = {name: state for name, state in states.items() if isinstance(state, UndefinedValueError)}
        fitted = [source for source in sources if source.name not in results]
        for source, x in _read_all(recipe, fitted, device, keep=keep):
            results[source.name] = recipe.apply(x, _to_device(states[source.name], _float64_device(x)))
    errors = {source.name: results[source.name] for source in sources}
    undefined = {name: str(result) for name, result in errors.items() if isinstance(result, UndefinedValueError)}
    factors = {source.name: results[source.name] for source in sources if source.name not in undefined}
    return Prepared(factors, undefined)


def _at_a_time(recipe: Recipe[Any], sources: Sequence[Source]) -> list[Source]:
    """Return the layers of which each is prepared by one thread, so that no thread waits for another.

    These are small layers, and larger ones if they take little memory and are so many that all threads end at about the
    same time. Larger ones only for linear kernels, which are prepared in a few passes over the layer: other recipes
    take long for them, need more memory, or decompose matrices, which all threads of torch do together.
    """
    settings, threads = tuning.current(), torch.get_num_threads()
    values = {source.name: source.size.n * source.size.p for source in sources if source.size is not None}
    small = [source for source in sources if values.get(source.name, math.inf) <= settings.small_layer]
    if threads == 1 or not (isinstance(recipe, CentredGram) and recipe.kernel == "linear"):
        return small
    even = sum(values.values()) // (4 * threads)

    def fits(size: LayerSize) -> bool:
        taken = size.n * size.p * size.itemsize + recipe.memory(size).workspace
        return threads * taken <= settings.prepared_at_once and size.n * size.p <= even

    larger = [source for source in sources if values.get(source.name, 0) > settings.small_layer]
    return small + [source for source in larger if source.size is not None and fits(source.size)]


def _read_all(
    recipe: Recipe[Any], sources: Sequence[Source], device: str, *, keep: bool
) -> Iterator[tuple[Source, Rows | Tensor]]:
    """Yield every layer with its source; if ``keep``, the next layer is read in the background."""

    def read() -> Iterator[Rows | Tensor]:
        for source in sources:
            with _layer_in_errors(recipe, source):
                yield _read(source, keep=keep)

    return zip(sources, prefetch(read(), torch.device(device)) if keep else read(), strict=True)


@contextmanager
def _layer_in_errors(recipe: Recipe[Any], source: Source) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        error.add_note(f"while preparing layer {source.label} with {recipe}")
        raise


def _read(source: Source, *, keep: bool) -> Rows | Tensor:
    rows = source.rows()
    return rows[:] if keep else rows


def _float64_device(x: Rows | Tensor) -> str:
    return "cpu" if x.device.type == "mps" else str(x.device)  # mps has no float64


def _to_device(value: Any, device: str) -> Any:
    """Return a value with all tensors in it, in dictionaries and dataclasses, moved to a device."""
    if isinstance(value, Tensor):
        return value.to(device)
    if isinstance(value, dict):
        return {key: _to_device(entry, device) for key, entry in value.items()}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        parts = {field.name: _to_device(getattr(value, field.name), device) for field in dataclasses.fields(value)}
        return dataclasses.replace(value, **parts)
    return value


def map_layers(function: Callable[[Gram], R], grams: Sequence[Gram], largest: int) -> list[R]:
    """Call the function with every layer: on a CPU in threads, the largest first; one with larger matrices alone.

    ``largest`` is that of the smaller one of the numbers of samples and features. Then all threads of torch work on a
    layer, and so they do if there is only one.
    """

    def size(k: int) -> int:
        return min(grams[k].n, grams[k].p)

    apart = [k for k in range(len(grams)) if grams[k].device.type == "cpu" and size(k) <= largest]
    apart.sort(key=lambda k: -size(k))
    with part_of_unit(0, len(apart), len(grams)):
        results = dict(zip(apart, map_in_threads(function, [grams[k] for k in apart], share_one=True), strict=True))
    for k, gram in enumerate(grams):
        if k not in results:
            results[k] = function(gram)
            report_share(len(results), len(grams))
    return [results[k] for k in range(len(grams))]
