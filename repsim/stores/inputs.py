"""Make the controls of a store from the inputs that a user gives beside the layers: pixels, texts, tokens, arrays."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from repsim.errors import InvalidInputError
from repsim.labels import CHARACTERS, EMBEDDINGS, INPUT, NAME_SEPARATOR, STATISTICS, TOKENS, VALUES, LayerKey
from repsim.runtime.arrays import as_array
from repsim.stores.schema import Array, ArraySpec

_NAMES = ("texts", "tokens", "embeddings", "values")


def given_inputs(
    model: str, pixels: Any, controls: Mapping[str, Any] | None, n: int
) -> tuple[dict[LayerKey, Array], tuple[ArraySpec, ...]]:
    """Return the arrays of all inputs of a model that a user gives for n samples, and their descriptions."""
    if not isinstance(controls, Mapping | None):
        raise InvalidInputError(f"controls: expected a dictionary, got {type(controls).__name__}")
    named = dict(controls or {})
    if wrong := next((name for name in named if name not in _NAMES), None):
        raise InvalidInputError(f"controls: {wrong!r} is none of them; they are {', '.join(_NAMES)}")
    arrays: dict[tuple[str, str], Array] = {}
    statistics: list[tuple[tuple[str, ...], Array]] = []
    if pixels is not None:
        arrays[INPUT] = values = _as_numbers(pixels, "pixels", n)
        statistics += _of_pictures(values)
    if "tokens" in named or "texts" in named:
        arrays |= _of_texts(named.get("texts"), named.get("tokens"), n, statistics)
    for name, key in (("embeddings", EMBEDDINGS), ("values", VALUES)):
        if name in named:
            arrays[key] = _as_numbers(named[name], name, n)
    facts: dict[tuple[str, str], dict[str, Any]] = {}
    if statistics:
        arrays[STATISTICS] = np.concatenate([values for _, values in statistics], 1)
        facts[STATISTICS] = {"names": NAME_SEPARATOR.join(name for names, _ in statistics for name in names)}
    specs = tuple(
        ArraySpec(LayerKey(model, *key), values.shape[1:], facts.get(key, {})) for key, values in arrays.items()
    )
    return {LayerKey(model, *key): values for key, values in arrays.items()}, specs


def _as_numbers(values: Any, what: str, n: int) -> Array:
    try:
        numbers = as_array(values, what)
    except InvalidInputError as error:
        raise InvalidInputError(f"{what} must be numbers of shape (n samples, ...) for {n} samples: {error}") from None
    if numbers.dtype.kind not in "uif" or numbers.ndim < 2 or len(numbers) != n or not numbers.size:
        raise InvalidInputError(
            f"{what} must be numbers of shape (n samples, ...) for {n} samples, got {numbers.dtype} {numbers.shape}"
        )
    return numbers


def _of_pictures(pixels: Array) -> list[tuple[tuple[str, ...], Array]]:
    """Return the names and values of the statistics of pictures; none of vectors and of small pictures."""
    if pixels.ndim != 4:
        return []
    import torch  # noqa: PLC0415 - takes seconds to import, and only pictures need it

    from repsim.extractors.picture_statistics import (  # noqa: PLC0415
        has_statistics,
        picture_statistics,
        statistic_names,
    )  # fmt: skip

    if not has_statistics(pixels.shape[1:]):
        return []
    values = picture_statistics(torch.from_numpy(pixels.astype(np.float32))).numpy()
    return [(statistic_names(pixels.shape[1:]), values)]


def _of_texts(
    texts: Any, tokens: Any, n: int, statistics: list[tuple[tuple[str, ...], Array]]
) -> dict[tuple[str, str], Array]:
    """Return the arrays that describe texts and their tokens; append the statistics of the texts."""
    from repsim.extractors.text_controls import (  # noqa: PLC0415 - imports torch, which takes seconds
        bag_of_characters,
        text_statistic_names,
        text_statistics,
        token_digits,
        words_as_tokens,
    )  # fmt: skip

    arrays: dict[tuple[str, str], Array] = {}
    ids = None if tokens is None else _as_tokens(tokens, n)
    if texts is not None:
        listed = _as_list(texts, "texts", n)
        if wrong := next((text for text in listed if not isinstance(text, str)), None):
            raise InvalidInputError(f"texts: expected texts, got {type(wrong).__name__}")
        arrays[CHARACTERS] = bag_of_characters(listed).numpy()
        statistics.append((text_statistic_names(tokens=ids is not None), text_statistics(listed, ids).numpy()))
        ids = words_as_tokens(listed) if ids is None else ids
    arrays[TOKENS] = token_digits([] if ids is None else ids).numpy()
    return arrays


def _as_tokens(tokens: Any, n: int) -> list[np.ndarray[Any, np.dtype[np.int64]]]:
    ids = []
    for k, one in enumerate(_as_list(tokens, "tokens", n)):
        values = np.asarray(one)
        if values.ndim != 1 or (values.size and values.dtype.kind not in "iu"):
            raise InvalidInputError(
                f"tokens: expected a sequence of whole numbers for each sample; sample {k} has none"
            )
        ids.append(values[values >= 0].astype(np.int64))
    return ids


def _as_list(values: Any, what: str, n: int) -> list[Any]:
    """Return one entry for each of n samples; refuse a single text, and other numbers of entries."""
    if isinstance(values, str | bytes | Mapping):
        raise InvalidInputError(f"{what}: expected a sequence of {n}, got {type(values).__name__}")
    try:
        listed = list(values)
    except TypeError:
        raise InvalidInputError(f"{what}: expected a sequence of {n}, got {type(values).__name__}") from None
    if len(listed) != n:
        raise InvalidInputError(f"{len(listed)} {what} for {n} samples")
    return listed
