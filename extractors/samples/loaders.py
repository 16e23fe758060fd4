"""Samples of torch: map-style and iterable data sets, and data loaders.

Items go to the forward pass as they are: nothing in a tuple ``(input, label)`` is taken as an input or a label. Texts
and pictures are recognised where an item is nothing else.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from PIL import Image
from torch import Tensor
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
)

from repsim.errors import Hint, InvalidInputError, SampleError, reason
from repsim.extractors.samples.columns import check_ids
from repsim.extractors.samples.decoding import as_rgb
from repsim.extractors.samples.source import Content, ImageSource, SampleSource, content_of
from repsim.extractors.samples.texts import check_text, numbered
from repsim.runtime import interrupts

_RANDOM = (RandomSampler, WeightedRandomSampler, SubsetRandomSampler)


class Items(SampleSource):
    """Items of a map-style data set, as they are.

    Parameters
    ----------
    name : str
        Name of the data.
    items : Dataset
        Any object with ``[k]``.
    order : sequence of int
        Positions of the samples in ``items``, in their order.
    ids : sequence of str
        Ids of the samples.
    """

    def __init__(self, name: str, items: Any, order: Sequence[int], ids: Sequence[str]) -> None:
        self.name, self._items, self._order, self.ids = name, items, order, ids
        self.quick = isinstance(items, TensorDataset)

    def load(self, index: int) -> Any:
        """Return one item."""
        return _checked(self, lambda: self._items[self._order[index]], index)


class TextItems(Items):
    """Texts of a map-style data set."""

    modality = "text"


class TensorItems(Items):
    """Tensors or arrays of a map-style data set."""

    modality = "tensor"


class PictureItems(Items, ImageSource):
    """Pictures of a map-style data set, decoded by the data set."""

    def examine(self, index: int, *, decode: bool = False) -> Content:
        """Hash the pixels of one picture."""
        return ImageSource.examine(self, index, decode=decode)


class StreamItems(SampleSource):
    """Items of an iterable data set, in the order of the data.

    The data are read once when they are opened: this counts them, and hashes every item. Later passes compare the
    hashes, because nothing else shows whether an iterable gives the same items again.

    Parameters
    ----------
    name : str
        Name of the data.
    items : iterable
        The data set; every iteration starts anew.
    take : callable, optional
        Function from an item to the sample, such as one column of it.
    ids : sequence of str, optional
        Ids of the samples; by default the positions.

    Raises
    ------
    SampleError
        The data set is empty, or an item cannot be read.
    """

    indexable = False

    def __init__(
        self,
        name: str,
        items: Iterable[Any],
        take: Callable[[Any], Any] | None = None,
        ids: Sequence[str] | None = None,
    ) -> None:
        self.name, self._items, self._take = name, items, take
        self._digests: list[bytes] = []
        self.ids: Sequence[str] = ()
        for _, sample in self._iterate():
            self._digests.append(content_of(sample).digest)
            interrupts.check()
        if not self._digests:
            raise SampleError(f"{name} gives no items")
        n = len(self._digests)
        self.ids = numbered(range(n)) if ids is None else check_ids(ids, n, name)
        self.record = {"ids_from": "positions" if ids is None else "given", "streamed": True}

    def _iterate(self) -> Iterator[tuple[int, Any]]:
        iterator = iter(self._items)
        index = 0
        while True:
            try:
                item = next(iterator)
            except StopIteration:
                return
            except (MemoryError, KeyboardInterrupt):
                raise
            except Exception as error:  # noqa: BLE001 - a data set of the user may raise any exception
                raise SampleError(f"cannot read item {index} of {self.name}: {reason(error)}") from None
            yield index, self._sample(item if self._take is None else self._take(item), index)
            index += 1

    def _sample(self, item: Any, index: int) -> Any:  # noqa: ARG002 - texts need it
        return item

    def read(self, rows: Iterable[int]) -> Iterator[tuple[int, Any]]:
        """Yield positions and samples in the order of the data; ``rows`` increases.

        Raises
        ------
        SampleError
            An item differs from the one that the data set gave at this position when it was opened.
        """
        wanted = sorted(set(rows))
        last = wanted[-1] if wanted else -1
        chosen = set(wanted)
        index = -1
        for index, sample in self._iterate():
            if index > last:
                return
            if index >= len(self._digests) or content_of(sample).digest != self._digests[index]:
                raise SampleError(
                    f"{self.name} gives another item at position {index} than when it was opened: its order or its "
                    "items are random"
                )
            if index in chosen:
                yield index, sample
        if index < last:
            raise SampleError(f"{self.name} gave {index + 1:,} items, and {len(self.ids):,} when it was opened")

    def load(self, index: int) -> Any:
        """Return one sample, after reading all items before it."""
        return next(self.read([index]))[1]

    def examine(self, index: int, *, decode: bool = False) -> Content:  # noqa: ARG002 - hashed already
        """Return the hash of one item."""
        return Content(self._digests[index])


class TextStream(StreamItems):
    """Texts of an iterable data set."""

    modality = "text"

    def _sample(self, item: Any, index: int) -> Any:
        return check_text(item, f"item {index} of {self.name}")


class TensorStream(StreamItems):
    """Tensors or arrays of an iterable data set."""

    modality = "tensor"


class PictureStream(StreamItems, ImageSource):
    """Pictures of an iterable data set, decoded by the data set."""

    content_kind = "values"

    def _sample(self, item: Any, index: int) -> Any:
        return _rgb(item, f"item {index} of {self.name}")

    def examine(self, index: int, *, decode: bool = False) -> Content:
        """Return the hash of one item."""
        return StreamItems.examine(self, index, decode=decode)


def open_dataset(dataset: Any, *, ids: Sequence[str] | None = None, name: str | None = None) -> SampleSource:
    """Open a map-style or an iterable data set of torch.

    Raises
    ------
    SampleError
        The data set is empty, or an item cannot be read.
    InvalidInputError
        The ids do not fit.
    """
    name = name or type(dataset).__name__
    if isinstance(dataset, IterableDataset):
        return open_stream(dataset, ids=ids, name=name)
    return _open_items(dataset, None, ids, name)


def open_stream(
    items: Iterable[Any],
    *,
    ids: Sequence[str] | None = None,
    name: str,
    take: Callable[[Any], Any] | None = None,
) -> SampleSource:
    """Open an iterable whose iterations give the same items in the same order."""
    try:
        first = next(iter(items), None)
    except (MemoryError, KeyboardInterrupt):
        raise
    except Exception as error:  # noqa: BLE001 - a data set of the user may raise any exception
        raise SampleError(f"cannot read item 0 of {name}: {reason(error)}") from None
    first = first if take is None or first is None else take(first)
    kinds = {"text": TextStream, "image": PictureStream, "tensor": TensorStream, "other": StreamItems}
    source = kinds[_kind(first)](name, items, take, ids)
    source.notes = _notes(name, first)
    return source


def open_loader(loader: "DataLoader[Any]", *, ids: Sequence[str] | None = None) -> SampleSource:
    """Open a data loader: its data set, its order, its ``collate_fn`` and its number of samples in a batch.

    The loader's worker processes are not used; those of the extraction are.

    Raises
    ------
    InvalidInputError
        The order of the loader is random or differs between two iterations, samples repeat, some are dropped, or it
        has no batches.
    """
    name = f"DataLoader of {type(loader.dataset).__name__}"
    sampler = loader.batch_sampler if loader.batch_size is None else loader.sampler
    source: SampleSource
    if isinstance(loader.dataset, IterableDataset):
        if loader.batch_size is None:
            raise InvalidInputError(
                f"{name} has batch_size=None, so its items are batches already; give it a batch size, or give an "
                "iterable of single samples"
            )
        source = open_stream(loader.dataset, ids=ids, name=name)
        _check_drop(loader, len(source), name)
        size = loader.batch_size
    else:
        order, size = _order(loader, sampler, name)
        source = _open_items(loader.dataset, order, ids, name)
    source.collate, source.batch_size = loader.collate_fn, size
    if loader.num_workers:
        source.notes = (
            *source.notes,
            Hint(f"{name}: its {loader.num_workers} worker processes are not used; those of the extraction are"),
        )
    return source


def _order(loader: "DataLoader[Any]", sampler: Any, name: str) -> tuple[list[int], int]:
    """Return the positions of the samples in the order of a loader, and the size of its batches."""
    if sampler is None:
        raise InvalidInputError(
            f"{name} has batch_size=None, so it makes no batches; give it a batch size, or give its data set"
        )
    inner = getattr(sampler, "sampler", sampler) if isinstance(sampler, BatchSampler) else sampler
    if isinstance(inner, _RANDOM):
        raise InvalidInputError(
            f"{name} draws its samples at random ({type(inner).__name__}); stores need a fixed order: make the loader "
            "with shuffle=False and without this sampler"
        )
    if isinstance(inner, DistributedSampler):
        raise InvalidInputError(
            f"{name} gives each process its own part (DistributedSampler); make the loader without it: repsim divides "
            "the samples itself under torchrun"
        )
    if type(inner) is SequentialSampler and loader.batch_size is not None:
        n = len(inner)
        _check_drop(loader, n, name)
        return list(range(n)), loader.batch_size
    passes = [list(sampler) for _ in range(2)]
    if _plain(passes[0]) != _plain(passes[1]):
        raise InvalidInputError(
            f"the sampler of {name} ({type(sampler).__name__}) gives another order in a second iteration; give one "
            "with a fixed order, or the data set itself"
        )
    if loader.batch_size is not None:
        order = _plain(passes[0])
        _check_drop(loader, len(order), name)
        size = loader.batch_size
    else:
        batches = [_plain(batch) for batch in passes[0]]
        order, size = [k for batch in batches for k in batch], max((len(batch) for batch in batches), default=0)
        if getattr(sampler, "drop_last", False) and len(order) < len(inner):
            _refuse_drop(len(inner) - len(order), name)
    if not all(isinstance(k, int) for k in order):
        raise InvalidInputError(f"the sampler of {name} gives {order[0]!r:.40}, not positions in a data set")
    if len(set(order)) < len(order):
        raise InvalidInputError(
            f"the sampler of {name} gives {len(order) - len(set(order)):,} samples more than once; a store holds each "
            "sample once"
        )
    return order, size


def _plain(values: Any) -> Any:
    """Return nested lists of a sampler's positions, whatever they are held in."""
    if isinstance(values, list | tuple):
        return [_plain(value) for value in values]
    return values.tolist() if hasattr(values, "tolist") else values


def _check_drop(loader: "DataLoader[Any]", n: int, name: str) -> None:
    if loader.drop_last and loader.batch_size is not None and n % loader.batch_size:
        _refuse_drop(n % loader.batch_size, name)


def _refuse_drop(count: int, name: str) -> None:
    raise InvalidInputError(
        f"{name} drops the last {count:,} samples (drop_last=True); make the loader with drop_last=False"
    )


def _open_items(dataset: Any, order: list[int] | None, ids: Sequence[str] | None, name: str) -> SampleSource:
    try:
        n = len(dataset)
    except (TypeError, NotImplementedError):
        raise InvalidInputError(f"{name} has no length; a map-style data set defines __len__ and __getitem__") from None
    order = list(range(n)) if order is None else order
    if not order:
        raise SampleError(f"{name} is empty")
    origin = "positions" if ids is None else "given"
    texts = numbered(order) if ids is None else check_ids(ids, len(order), name)
    plain = Items(name, dataset, order, texts)
    first = plain.load(0)
    if content_of(first) != content_of(plain.load(0)):
        raise InvalidInputError(
            f"{name} gives another item {texts[0]} when it is read again; switch its random transforms off, because "
            "all models have to read the same samples"
        )
    kinds = {"text": TextItems, "image": PictureItems, "tensor": TensorItems, "other": Items}
    source = kinds[_kind(first)](name, dataset, order, texts)
    source.record = {"ids_from": origin}
    source.notes = _notes(name, first)
    return source


def _kind(item: Any) -> str:
    if isinstance(item, str):
        return "text"
    if isinstance(item, Image.Image):
        return "image"
    return "tensor" if hasattr(item, "__array__") else "other"


def _notes(name: str, item: Any) -> tuple[Hint, ...]:
    if _kind(item) != "other":
        return ()
    return (
        Hint(f"{name}: items ({_describe(item)}) go to the forward pass as they are; none of their parts is a label"),
    )


def _describe(item: Any) -> str:
    """Return the structure of an item in words.

    >>> import torch
    >>> _describe((torch.zeros(3, 8), 1)), _describe({"text": "a"})
    ('tuple of Tensor (3, 8), int', 'dict of text: str')
    """
    if isinstance(item, dict):
        return f"{type(item).__name__} of " + ", ".join(f"{key}: {_describe(value)}" for key, value in item.items())
    if isinstance(item, tuple | list):
        rest = ", ..." if len(item) > 4 else ""
        return f"{type(item).__name__} of " + ", ".join(map(_describe, item[:4])) + rest
    if isinstance(item, Tensor) or hasattr(item, "__array__"):
        return f"{type(item).__name__} {tuple(getattr(item, 'shape', ()))}"
    return type(item).__name__


def _checked(source: SampleSource, read: Callable[[], Any], index: int) -> Any:
    """Return a sample of a user's data set, checked for its modality."""
    place = f"item {source.ids[index]} of {source.name}"
    try:
        item = read()
    except (MemoryError, KeyboardInterrupt):
        raise
    except Exception as error:  # noqa: BLE001 - a data set of the user may raise any exception
        raise SampleError(f"cannot read {place}: {reason(error)}") from None
    if source.modality == "text":
        return check_text(item, place)
    return _rgb(item, place) if source.modality == "image" else item


def _rgb(item: Any, place: str) -> Image.Image:
    if not isinstance(item, Image.Image):
        raise SampleError(f"{place} is a {type(item).__name__}, and the first item is a picture")
    return as_rgb(item)
