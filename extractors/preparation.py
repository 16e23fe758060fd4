"""Preparation of samples as the input of a model: one sample, a batch of them, the call of the model, and its mask."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import default_collate

from repsim.errors import InvalidInputError, SampleError, reason
from repsim.extractors.base import LayerSpec, Readout
from repsim.extractors.samples.source import Modality, SampleSource

MASK = "attention_mask"
"""Entry of a batch that is taken as the mask, by the convention of transformers."""
_ORDERED = 16
"""Number of samples with which the order in a batch is checked."""
_TRIES = 16
"""Number of batches that are made to look for two with different numbers of tokens."""


def keep(sample: Any) -> Any:
    """Return the sample as it is, the transform of samples that are prepared already."""
    return sample


def call(model: nn.Module, batch: Any) -> Any:
    """Call the model with the batch as its only argument."""
    return model(batch)


def mask_in(batch: Any) -> Tensor | None:
    """Return the entry ``attention_mask`` of a batch that is a mapping, as booleans (b, L); else None."""
    mask = batch.get(MASK) if isinstance(batch, Mapping) else None
    return as_mask(mask, MASK) if isinstance(mask, Tensor) and mask.ndim == 2 else None


def as_mask(mask: Tensor, name: str) -> Tensor:
    """Return a mask as booleans, true for real tokens.

    Raises
    ------
    InvalidInputError
        It holds other values than 0 and 1, such as a mask of 0 and -inf that is added to the attention: there 0 stands
        for real tokens.

    >>> as_mask(torch.tensor([[1.0, 1.0, 0.0]]), "attention_mask").tolist()
    [[True, True, False]]
    """
    if mask.dtype != torch.bool and not bool(((mask == 0) | (mask == 1)).all()):
        raise InvalidInputError(
            f"mask: {name} holds other values than 0 and 1; pass mask=, a function of the batch that returns true for "
            "real tokens"
        )
    return mask.bool()


@dataclass(frozen=True, kw_only=True)
class Preparation:
    """Preparation of samples as the input of a model, and the call of the model."""

    transform: Callable[[Any], Any] = keep
    """Function from one sample to what is put into batches. Worker processes call it."""
    collate: Callable[[list[Any]], Any] = default_collate
    """Function from a list of these to a batch: a tensor, or a nest of tensors. Worker processes call it."""
    forward: Callable[[nn.Module, Any], Any] = call
    """Function of the model and a batch on its device, which runs the model and returns its output."""
    mask: Callable[[Any], Tensor | None] = mask_in
    """Function from a batch to its mask (b, L), true for real tokens and false for padding; None without tokens."""
    key: Any
    """Models with equal keys compute equal batches, and can share them."""
    record: Mapping[str, Any] = field(default_factory=dict)
    """Entries for the provenance, as JSON values."""
    notes: tuple[str, ...] = ()
    """Messages for the user about choices that were made."""
    examples: tuple[Any, ...]
    """Batches of at least three samples, with which the model is traced: one, or two with different numbers of tokens.
    """
    modality: Modality = "other"
    class_token: bool = False
    """Whether the first token of every sample is a class token."""
    longest: int | None = None
    """Largest number of tokens of a sample, after truncation; by default the largest in the examples."""
    controls: Mapping[tuple[str, str], tuple[LayerSpec, Readout]] = field(default_factory=dict)
    """Arrays that are read from the batch itself, as controls beside the layers: a readout gets the batch."""
    lengths: Callable[[Sequence[Any]], list[int]] | None = None
    """Function from samples to their numbers of tokens before truncation. Batches are sorted by them, as a batch is
    padded to its longest sample."""


def prepare_samples(
    source: SampleSource,
    *,
    transform: Callable[[Any], Any] | None = None,
    collate: Callable[[list[Any]], Any] | None = None,
    forward: Callable[[nn.Module, Any], Any] | None = None,
    mask: str | Callable[[Any], Tensor | None] | None = None,
    samples: int = 3,
) -> Preparation:
    """Return the preparation of samples for a module of the user.

    Parameters
    ----------
    source : SampleSource
        The samples, of which the first make the examples.
    transform : callable, optional
        Function from one sample to what is put into a batch. By default samples are taken as they are.
    collate : callable, optional
        Function from a list of these to a batch; by default that of the source (of a `DataLoader`), or else
        `torch.utils.data.default_collate`.
    forward : callable, optional
        Function ``forward(module, batch)`` that calls the module; by default ``module(batch)``.
    mask : str or callable, optional
        Entry of the batch, or function of the batch, that is the mask (b, L) of real tokens. By default the entry
        ``attention_mask`` of a batch that is a mapping.
    samples : int
        Number of samples in an example.

    Raises
    ------
    InvalidInputError
        The transform or the function that makes batches fails, or the mask is none.
    SampleError
        A sample cannot be read.

    Examples
    --------
    >>> from repsim.extractors.samples.opening import open_images
    >>> digits = open_images("digits")
    >>> prepared = prepare_samples(digits, transform=lambda picture: torch.zeros(4))
    >>> prepared.examples[0].shape
    torch.Size([3, 4])
    """
    transform = transform or keep
    collate = collate or source.collate or default_collate
    choose = _mask(mask)
    examples = tuple(_examples(source, transform, collate, choose, samples))
    _check_order(source, transform, collate)
    return Preparation(
        transform=transform,
        collate=collate,
        forward=forward or call,
        mask=choose,
        key=(id(transform), id(collate), id(forward), id(source)),
        record={
            key: text
            for key, text in (
                ("transform", function_text(transform)),
                ("collate", function_text(collate)),
                ("forward", function_text(forward)),
                ("mask", mask if isinstance(mask, str) else function_text(mask)),
            )
            if text
        },
        examples=examples,
        modality=source.modality,
    )


def function_text(function: Any) -> str:
    """Return a name of a function for the provenance, without memory addresses; empty for the defaults."""
    if any(function is usual for usual in (None, keep, call, mask_in, default_collate)):  # may have no hash
        return ""
    name = getattr(function, "__qualname__", None) or type(function).__qualname__
    return f"{getattr(function, '__module__', None) or type(function).__module__}.{name}"


def _mask(mask: str | Callable[[Any], Tensor | None] | None) -> Callable[[Any], Tensor | None]:
    if mask is None:
        return mask_in
    return _Entry(mask) if isinstance(mask, str) else _Function(mask)


@dataclass(frozen=True)
class _Entry:
    """Function that returns one entry of a batch as a mask; a class, as worker processes need to pickle it."""

    name: str

    def __call__(self, batch: Any) -> Tensor | None:
        try:
            mask = batch[self.name]
        except (TypeError, KeyError, IndexError):
            entries = f"; it has {', '.join(map(str, batch))}" if isinstance(batch, Mapping) else ""
            raise InvalidInputError(f"mask: a batch has no entry {self.name!r}{entries}") from None
        if not isinstance(mask, Tensor) or mask.ndim != 2:
            raise InvalidInputError(f"mask: the entry {self.name!r} is no tensor (samples, tokens)")
        return as_mask(mask, f"the entry {self.name!r}") if mask.is_floating_point() else mask.bool()


@dataclass(frozen=True)
class _Function:
    """Mask that a function of the user returns."""

    function: Callable[[Any], Tensor | None]

    def __call__(self, batch: Any) -> Tensor | None:
        try:
            mask = self.function(batch)
        except Exception as error:  # the code of the user may raise any exception
            raise InvalidInputError(f"mask: the function fails on a batch: {reason(error)}") from error
        if mask is None:
            return None
        if not isinstance(mask, Tensor) or mask.ndim != 2:
            what = f"a tensor {tuple(mask.shape)}" if isinstance(mask, Tensor) else f"a {type(mask).__name__}"
            raise InvalidInputError(f"mask: the function returns {what}, not a tensor (samples, tokens)")
        return as_mask(mask, "what the function returns")


def _examples(
    source: SampleSource,
    transform: Callable[[Any], Any],
    collate: Callable[[list[Any]], Any],
    mask: Callable[[Any], Tensor | None],
    samples: int,
) -> Iterator[Any]:
    """Yield a batch of the first samples, and one with another number of tokens if there is one among the first."""
    width = None
    readable = _readable(source, samples * _TRIES)

    def prepared() -> Iterator[Any]:
        for row, sample in islice(readable, samples):
            try:
                yield transform(sample)
            except (SampleError, InvalidInputError):
                raise
            except Exception as error:  # the code of the user may raise any exception
                raise InvalidInputError(f"transform fails on the sample {source.ids[row]}: {reason(error)}") from error

    while items := list(prepared()):
        items = [items[k % len(items)] for k in range(samples)]
        try:
            batch = collate(items)
        except Exception as error:
            raise InvalidInputError(
                f"the first {samples} samples of {source.name} make no batch: {reason(error)}; pass collate=, a "
                "function from a list of samples to a batch"
            ) from error
        tokens = mask(batch)
        if tokens is None:
            yield batch
            return
        if width is None:
            yield batch
        elif tokens.shape[1] != width:
            yield batch
            return
        width = tokens.shape[1]


def _readable(source: SampleSource, most: int) -> Iterator[tuple[int, Any]]:
    """Yield the first samples that can be read, with their positions; the extraction reports or leaves out the others.

    Raises
    ------
    SampleError
        None of them can be read.
    """
    rows = range(min(len(source), most))
    if not source.indexable:
        yield from source.read(rows)
        return
    faults: list[SampleError] = []
    for row in rows:
        try:
            sample = source.load(row)
        except SampleError as error:
            faults.append(error)
            continue
        yield row, sample
    if faults and len(faults) == len(rows):
        raise faults[0]


def _check_order(source: SampleSource, transform: Callable[[Any], Any], collate: Callable[[list[Any]], Any]) -> None:
    """Refuse functions that make batches whose rows are not the samples in their order.

    A function that sorts a batch by length, as for `torch.nn.utils.rnn.pack_padded_sequence`, gives the same rows for
    the same samples in reverse: values would be stored at the wrong samples.
    """
    try:
        items = [transform(sample) for _, sample in _readable(source, _ORDERED)]
        forward, backward = collate(list(items)), collate(items[::-1])
    except Exception:  # noqa: BLE001 - reported where the samples are read
        return
    for a, b in zip(_tensors(forward), _tensors(backward), strict=False):
        if a.ndim < 2 or a.shape != b.shape or len(a) != len(items) or torch.equal(a.flip(0), b):
            continue
        rows = [sorted(row.tobytes() for row in x.detach().cpu().float().numpy()) for x in (a, b)]
        if rows[0] == rows[1]:
            raise InvalidInputError(
                "collate changes the order of the samples of a batch, so that values would be stored at the wrong "
                "samples; pass collate=, a function that keeps it (pack_padded_sequence takes enforce_sorted=False)"
            )


def move(batch: Any, device: torch.device, *, non_blocking: bool = False) -> Any:
    """Return a batch with all its tensors on a device; what is no tensor stays as it is.

    >>> move({"ids": torch.zeros(2), "texts": ["a", "b"]}, torch.device("cpu"))
    {'ids': tensor([0., 0.]), 'texts': ['a', 'b']}
    """
    return mapped(batch, lambda tensor: tensor.to(device, non_blocking=non_blocking))


def pin(batch: Any) -> Any:
    """Return a batch with all its tensors in pinned memory, from which a GPU copies while it computes."""
    return mapped(batch, lambda tensor: tensor if tensor.is_cuda else tensor.pin_memory())


def copy(batch: Any) -> Any:
    """Return a batch with copies of all its tensors."""
    return mapped(batch, Tensor.clone)


def mapped(value: Any, function: Callable[[Tensor], Tensor]) -> Any:
    """Return a batch with a function of each of its tensors; what is no tensor stays as it is."""
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, Mapping):
        entries = {key: mapped(entry, function) for key, entry in value.items()}
        return entries if type(value) is dict else _like(value, entries)
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(mapped(entry, function) for entry in value))
    if isinstance(value, tuple | list):
        return type(value)(mapped(entry, function) for entry in value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        names = [entry.name for entry in dataclasses.fields(value) if entry.init]
        return dataclasses.replace(value, **{name: mapped(getattr(value, name), function) for name in names})
    return value


def _like(value: Mapping[Any, Any], entries: dict[Any, Any]) -> Any:
    """Return the entries as a mapping of the type of ``value``, or as a dictionary if the type takes no dictionary."""
    try:
        return type(value)(entries)  # type: ignore[call-arg]
    except TypeError:
        return entries


def samples_in(batch: Any) -> int:
    """Return the number of samples of a batch: the length of its first tensor.

    Raises
    ------
    InvalidInputError
        The batch holds no tensor.
    """
    first = next(_tensors(batch), None)
    if first is None or first.ndim == 0:
        raise InvalidInputError(
            f"a batch must hold a tensor whose first axis is the samples, got {type(batch).__name__}"
        )
    return len(first)


def like_examples(batch: Any, examples: Sequence[Any], samples: int) -> bool:
    """Return whether a batch of this number of samples has the shapes of the examples, except for their first axis.

    >>> [like_examples(torch.zeros(8, width), [torch.zeros(2, 3)], 8) for width in (3, 4)]
    [True, False]
    """
    shapes = [tuple(tensor.shape) for tensor in _tensors(batch)]
    return samples_in(batch) == samples and any(
        [shape[1:] for shape in shapes] == [tuple(tensor.shape[1:]) for tensor in _tensors(example)]
        for example in examples
    )


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for entry in value.values():
            yield from _tensors(entry)
    elif isinstance(value, tuple | list):
        for entry in value:
            yield from _tensors(entry)
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        for entry in dataclasses.fields(value):
            yield from _tensors(getattr(value, entry.name))


def shapes_of(batch: Any) -> str:
    """Return the shapes and types of a batch in words, for messages.

    >>> shapes_of({"ids": torch.zeros(2, 3, dtype=torch.int64)})
    '{ids: (2, 3) of torch.int64}'
    """
    if isinstance(batch, Tensor):
        return f"{tuple(batch.shape)} of {batch.dtype}"
    if isinstance(batch, Mapping):
        return "{" + ", ".join(f"{key}: {shapes_of(value)}" for key, value in batch.items()) + "}"
    if isinstance(batch, tuple | list):
        return f"[{', '.join(map(shapes_of, batch[:4]))}{', ...' if len(batch) > 4 else ''}]"
    return f"a {type(batch).__name__}" if not isinstance(batch, np.ndarray) else f"{batch.shape} of {batch.dtype}"
