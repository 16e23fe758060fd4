"""Open what a user names as stores: files, open stores, and dictionaries of arrays."""

import os
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from typing import Any

from repsim.errors import InvalidInputError
from repsim.stores.in_memory import as_store
from repsim.stores.store import ActivationStore, open_store, store_path

StoreLike = ActivationStore | str | os.PathLike[str]
"""A store that is open, or its file."""
ArraysLike = Mapping[str, Any]
"""Arrays in memory: a dictionary of layers, or a dictionary of models, each a dictionary of layers."""
Ids = Iterable[str | int]
"""Ids of the samples of arrays in memory."""
_FORM = "write {'net': {'layer1': x, ...}, ...}"


def as_stores(stores: Any, ids: Ids | None = None) -> list[StoreLike]:
    """Return stores as a list; arrays in memory become stores in memory, and files are not opened yet.

    Parameters
    ----------
    stores : store, path, dictionary of models, or an iterable of them
        One store or several. A dictionary of models has the form ``{"net": {"layer1": x, ...}, ...}``.
    ids : sequence of str or int, optional
        Ids of the samples of all arrays in memory.

    Raises
    ------
    InvalidInputError
        It is an array, a dictionary of layers without the name of the model, or of another type.
    """
    if isinstance(stores, ActivationStore | str | os.PathLike):
        return [stores]
    if isinstance(stores, Mapping):
        return [*_models(stores, ids)]
    if isinstance(stores, bytes) or hasattr(stores, "__array__") or not isinstance(stores, Iterable):
        store_path(stores)
    return [store for entry in stores for store in (_models(entry, ids) if isinstance(entry, Mapping) else [entry])]


def as_one_store(store: StoreLike | ArraysLike, name: str, ids: Ids | None = None) -> StoreLike:
    """Return one store as it is; a dictionary of layers becomes a store in memory whose model is called ``name``."""
    if not isinstance(store, Mapping):
        return store
    if not _are_models(store):
        return as_store(_layers(store, "the dictionary of layers"), model=name, sample_ids=ids)
    if len(store) > 1:
        raise InvalidInputError(
            f"expected the layers of one model, got {len(store)} models: {', '.join(map(str, store))}; give one "
            "dictionary of all models, or two of one model each"
        )
    return _models(store, ids)[0]


def open_all(stores: Any, stack: ExitStack) -> list[ActivationStore]:
    """Return one store or several, open: those that are named are opened, and closed by ``stack``."""
    return [
        store if isinstance(store, ActivationStore) else stack.enter_context(open_store(store))
        for store in as_stores(stores)
    ]


def is_one_store(store: Any) -> bool:
    """Return whether an argument is one store: open, a file, or a dictionary of layers."""
    return isinstance(store, ActivationStore | str | os.PathLike) or (
        isinstance(store, Mapping) and bool(store) and not _are_models(store)
    )


def _are_models(arrays: ArraysLike) -> bool:
    """Return whether a dictionary holds models and not layers."""
    return any(isinstance(value, Mapping) for value in arrays.values())


def _models(models: ArraysLike, ids: Ids | None) -> list[ActivationStore]:
    """Return a store in memory for each model of a dictionary."""
    if not models:
        raise InvalidInputError(f"the dictionary of models is empty; {_FORM}")
    for name, layers in models.items():
        if isinstance(layers, ActivationStore | str | os.PathLike):
            raise InvalidInputError(
                f"{name!r} is a store and has a name already; put it into a list beside the arrays, as in "
                "[{'net': {'layer1': x}}, store]"
            )
        if not isinstance(layers, Mapping):
            raise InvalidInputError(
                f"expected models, each a dictionary of layers, but {name!r} is a {type(layers).__name__}; {_FORM}"
            )
    return [as_store(_layers(layers, f"model {name!r}"), model=name, sample_ids=ids) for name, layers in models.items()]


def _layers(layers: ArraysLike, what: str) -> ArraysLike:
    if not layers:
        raise InvalidInputError(f"{what} has no layers; {_FORM}")
    return layers
