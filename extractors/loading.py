"""Streaming: each picture is decoded once, every model that needs it reads it, and the device is never left waiting."""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, nullcontext
from graphlib import CycleError, TopologicalSorter
from typing import Any, Protocol, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from repsim.errors import ImageError, InvalidInputError
from repsim.extractors import hooks
from repsim.extractors.base import Batch, LayerSpec, Readout, Stream
from repsim.extractors.preprocessing import Transform
from repsim.extractors.sources import ImageSource
from repsim.runtime import interrupts

Rows = np.ndarray[Any, np.dtype[np.int64]]


class StreamedModel(Protocol):
    """What streaming needs of a model: `repsim.extractors.modules.ModuleExtractor` is one."""

    name: str
    model: nn.Module
    transform: Transform
    preprocessing: Any
    """Models of equal keys make equal pixels of a picture."""
    readouts: Mapping[tuple[str, str], tuple[LayerSpec, Readout]]
    controls: Mapping[tuple[str, str], tuple[LayerSpec, Readout]]


def stream_together(
    extractors: Sequence[StreamedModel], images: ImageSource, rows: Sequence[Sequence[int]], how: Stream
) -> Iterator[tuple[int, Batch]]:
    """Read several models in one pass over the pictures, each of which is decoded once.

    Parameters
    ----------
    extractors
        Models of equal ``preprocessing``. They all are on ``how.device`` at once.
    images
        The pictures.
    rows
        Positions in ``images``, a sequence for each extractor: what that one still needs, without repetition. All are
        parts of one common order, cut at its batches: whoever needs some row of a batch needs all of it.
    how
        Batch size, workers, device, precision.

    Yields
    ------
    int, Batch
        The position of an extractor, and its readouts of one batch, in the order of its rows.

    Raises
    ------
    InvalidInputError
        For extractors of unequal preprocessing, and rows that are not whole batches of one order.
    ImageError
        With the name of the first picture that cannot be read, once everything before it has been yielded.

    Examples
    --------
    >>> from repsim.extractors import open_images
    >>> from repsim.extractors.timm_models import TimmExtractor
    >>> two = [TimmExtractor("digits_vit", weights="random", seed=seed) for seed in (0, 1)]
    >>> passes = stream_together(two, open_images("digits"), [range(6), [4, 5]], Stream(batch_size=4))
    >>> [(k, batch.rows) for k, batch in passes]
    [(0, (0, 1, 2, 3)), (0, (4, 5)), (1, (4, 5))]
    """
    if len({extractor.preprocessing for extractor in extractors}) > 1:
        raise InvalidInputError(
            f"{', '.join(extractor.name for extractor in extractors)} prepare pictures in different ways, "
            "so they cannot share them"
        )
    batches, needed = _batches(rows, how.batch_size)
    return _stream(extractors, images, batches, needed, how) if batches else iter(())


def picture_loader(
    images: ImageSource, transform: Transform, batches: Sequence[Rows], how: Stream
) -> "DataLoader[tuple[tuple[int, ...], Tensor | ImageError]]":
    """Batches of pictures, prepared: their positions, and (b, 3, H, W) or what is wrong with the first bad one."""
    return DataLoader(
        cast("Any", _Pictures(images, transform)),
        batch_sampler=cast("Any", batches),
        num_workers=how.workers,
        collate_fn=_collate,
        worker_init_fn=interrupts.leave_to_parent,
        pin_memory=torch.device(how.device).type == "cuda",
    )


def _stream(
    extractors: Sequence[StreamedModel],
    images: ImageSource,
    batches: list[Rows],
    needed: list[list[int]],
    how: Stream,
) -> Iterator[tuple[int, Batch]]:
    device = torch.device(how.device)
    cuda = device.type == "cuda"
    loader = picture_loader(images, extractors[0].transform, batches, how)
    half = torch.bfloat16 if device.type == "cpu" else torch.float16  # CPUs have no kernels for float16
    fault = None
    with ExitStack() as stack:
        models = [extractor.model.to(device) for extractor in extractors]
        values: list[dict[tuple[str, str], Tensor]] = []
        for extractor, model in zip(extractors, models, strict=True):
            stack.enter_context(hooks.evaluating(model))
            values.append(stack.enter_context(hooks.reading(model, extractor.readouts)))
        # On a GPU one batch stays on its way, so that the next is computed while the caller is busy with this one.
        launched: list[tuple[int, _Copied]] = []
        for users, (positions, pictures) in zip(needed, loader, strict=False):
            if isinstance(pictures, ImageError):
                fault = pictures
                break
            # here, and not on the device: the same on all, and a model may overwrite what it is given
            controls = {key: readout(pictures, layer) for key, (layer, readout) in extractors[0].controls.items()}
            pixels = pictures.to(device, non_blocking=cuda)
            before, launched = launched, []
            for k in users:
                given = pixels if k == users[-1] else pixels.clone()  # a model may overwrite what it is given
                autocast = torch.autocast(device.type, half) if how.amp else nullcontext()
                with torch.no_grad(), autocast:  # not around the yield: the caller's code is no inference
                    models[k](given)
                hooks.check(values[k], extractors[k].readouts, len(positions))
                values[k].update(controls)
                launched.append((k, _Copied(positions, values[k], device)))
            del pictures, pixels, given
            if not cuda:
                before, launched = launched, []
            for k, copied in before:
                yield k, copied.batch()
        for k, copied in launched:
            yield k, copied.batch()
    if fault is not None:
        raise fault


class _Copied:
    """Readouts on their way to the host. They are there once the event is."""

    def __init__(self, rows: tuple[int, ...], values: dict[tuple[str, str], Tensor], device: torch.device) -> None:
        cuda = device.type == "cuda"
        self._rows = rows
        self._values = {key: value.to("cpu", non_blocking=cuda) for key, value in values.items()}  # to pinned memory
        values.clear()
        self._event = torch.cuda.Event() if cuda else None
        if self._event is not None:
            self._event.record(torch.cuda.current_stream(device))

    def batch(self) -> Batch:
        """Wait for them."""
        if self._event is not None:
            self._event.synchronize()
        return Batch(self._rows, self._values)


def _batches(rows: Sequence[Sequence[int]], size: int) -> tuple[list[Rows], list[list[int]]]:
    """Every batch once, in an order that agrees with everybody's, and who needs it.

    >>> batches, needed = _batches([[4, 5, 6], [0, 1, 2, 3], [2, 3, 4, 5]], 2)
    >>> [batch.tolist() for batch in batches], needed
    ([[0, 1], [2, 3], [4, 5], [6]], [[1], [1, 2], [0, 2], [0]])
    """
    wanted = [np.asarray(own, np.int64) for own in rows]  # 8 bytes a row, and views of them: workers get a batch each
    cut = [[own[i : i + size] for i in range(0, len(own), size)] for own in wanted]
    if len(cut) == 1:
        return cut[0], [[0]] * len(cut[0])
    batches: dict[int, Rows] = {}
    needed: dict[int, list[int]] = defaultdict(list)
    order: TopologicalSorter[int] = TopologicalSorter()
    for k, own_batches in enumerate(cut):
        firsts = [int(batch[0]) for batch in own_batches]  # a row is in one batch only, so its first row names it
        for i, (first, batch) in enumerate(zip(firsts, own_batches, strict=True)):
            order.add(first, *firsts[max(0, i - 1) : i])
            needed[first].append(k)
            if not np.array_equal(batches.setdefault(first, batch), batch):
                raise InvalidInputError(f"rows are not whole batches of one order: two begin with {first} and differ")
    try:
        sequence = list(order.static_order())
    except CycleError:
        raise InvalidInputError(
            "rows are not parts of one order: what comes first in one comes last in another"
        ) from None
    if sequence and len(np.unique(everything := np.concatenate([batches[first] for first in sequence]))) < len(
        everything
    ):
        raise InvalidInputError("rows are not whole batches of one order: some row is in two batches")
    return [batches[first] for first in sequence], [needed[first] for first in sequence]


class _Pictures(Dataset[tuple[int, Tensor | ImageError]]):
    """One sample: its position in the source, and its pixels or what is wrong with it.

    A worker hands an error back as a value: raised there, it would come back wrapped in that process's traceback.
    """

    def __init__(self, images: ImageSource, transform: Transform) -> None:
        self.images, self.transform = images, transform

    def __getitem__(self, row: int) -> tuple[int, Tensor | ImageError]:
        try:
            return int(row), self.transform(self.images.load(int(row)))
        except ImageError as error:
            return int(row), error


def _collate(samples: list[tuple[int, Tensor | ImageError]]) -> tuple[tuple[int, ...], Tensor | ImageError]:
    """Stack a batch; the first sample that could not be read speaks for all of it."""
    rows = tuple(row for row, _ in samples)
    wrong = next((pixels for _, pixels in samples if isinstance(pixels, ImageError)), None)
    return rows, torch.stack([p for _, p in samples if isinstance(p, Tensor)]) if wrong is None else wrong
