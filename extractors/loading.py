"""Stream samples through several models at once: each is prepared once, and passes overlap with the preparation."""

from collections import defaultdict
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, nullcontext
from functools import partial
from graphlib import CycleError, TopologicalSorter
from typing import Any, Protocol, TypeVar, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from repsim.errors import InvalidInputError, RepsimError, SampleError, reason
from repsim.extractors import hooks
from repsim.extractors.base import Batch, LayerSpec, Readout, Stream
from repsim.extractors.compilation import CompiledPass, compiling, in_channels_last, with_channels_last
from repsim.extractors.picture_statistics import PictureStatistics
from repsim.extractors.preparation import Preparation, copy, move, pin
from repsim.extractors.samples.source import SampleSource
from repsim.labels import PREDICTION
from repsim.runtime import interrupts
from repsim.runtime.deprecation import rename_keyword

T = TypeVar("T")
Rows = np.ndarray[Any, np.dtype[np.int64]]


class StreamedModel(Protocol):
    """Attributes of a model that streaming uses; `repsim.extractors.modules.ModuleExtractor` has them."""

    name: str
    model: nn.Module
    preparation: Preparation
    """Preparation of the samples: models with equal keys compute the same input from a sample."""
    readouts: Mapping[tuple[str, str], tuple[LayerSpec, Readout]]
    controls: Mapping[tuple[str, str], tuple[LayerSpec, Readout]]


@rename_keyword("images", "samples", gone_in="2.0.0")
def stream_together(
    extractors: Sequence[StreamedModel], samples: SampleSource, rows: Sequence[Sequence[int]], how: Stream
) -> Iterator[tuple[int, Batch]]:
    """Read several models in one pass over the samples, each of which is prepared once.

    Parameters
    ----------
    extractors : sequence of StreamedModel
        Models whose ``preparation`` has equal keys. All of them are on ``how.device`` at the same time.
    samples : SampleSource
        The samples.
    rows : sequence of sequences of int
        For each extractor, the positions in ``samples`` that it still needs, without repetition. All sequences are
        parts of one common order and consist of whole batches of it: an extractor that needs one row of a batch needs
        all.
    how : Stream
        Batch size, workers, device, precision.

    Yields
    ------
    int, Batch
        The position of an extractor, and its readouts of one batch, in the order of its rows.

    Raises
    ------
    InvalidInputError
        The extractors differ in their preparation, or the rows are not whole batches of one order.
    SampleError
        A sample cannot be read. The message names the first such sample; all batches before it are yielded first.

    Examples
    --------
    >>> from repsim.extractors import open_images
    >>> from repsim.extractors.timm_models import TimmExtractor
    >>> two = [TimmExtractor("digits_vit", weights="random", seed=seed) for seed in (0, 1)]
    >>> passes = stream_together(two, open_images("digits"), [range(6), [4, 5]], Stream(batch_size=4))
    >>> [(k, batch.rows) for k, batch in passes]
    [(0, (0, 1, 2, 3)), (0, (4, 5)), (1, (4, 5))]
    """
    if len({extractor.preparation.key for extractor in extractors}) > 1:
        raise InvalidInputError(
            f"{', '.join(extractor.name for extractor in extractors)} prepare {samples.noun} in different ways, "
            "so they cannot be read in one pass"
        )
    batches, needed = _batches(rows, how.batch_size)
    return _stream(extractors, samples, batches, needed, how) if batches else iter(())


def sample_loader(
    source: SampleSource, preparation: Preparation, batches: Sequence[Rows], how: Stream
) -> Iterable[tuple[tuple[int, ...], Any]]:
    """Return an iterable of prepared batches: positions, and a batch or the first error."""
    pinned = torch.device(how.device).type == "cuda"  # only pinned memory is copied while the GPU computes
    if not source.indexable:
        return _in_order(source, preparation, batches, pinned=pinned)
    return DataLoader(
        cast("Any", _Prepared(source, preparation)),
        batch_sampler=cast("Any", batches),
        num_workers=how.workers,
        collate_fn=_Collate(preparation.collate),
        worker_init_fn=interrupts.leave_to_parent,
        pin_memory=pinned,
    )


def _in_order(
    source: SampleSource, preparation: Preparation, batches: Sequence[Rows], *, pinned: bool
) -> Iterator[tuple[tuple[int, ...], Any]]:
    """Yield the prepared batches of samples that can only be read in their order."""
    collate, prepared = _Collate(preparation.collate), _Prepared(source, preparation)
    samples = source.read(int(row) for batch in batches for row in batch)
    for batch in batches:
        positions, made = collate([prepared.prepare(*next(samples)) for _ in batch])
        yield positions, pin(made) if pinned else made


def _stream(
    extractors: Sequence[StreamedModel],
    source: SampleSource,
    batches: list[Rows],
    needed: list[list[int]],
    how: Stream,
) -> Iterator[tuple[int, Batch]]:
    device = torch.device(how.device)
    cuda = device.type == "cuda"
    preparation = extractors[0].preparation
    loaded: Generator[tuple[tuple[int, ...], Any, list[dict[tuple[str, str], Tensor]]], None, None] = (
        (positions, batch, [] if isinstance(batch, SampleError) else _controls([extractors[k] for k in users], batch))
        for users, (positions, batch) in zip(needed, sample_loader(source, preparation, batches, how), strict=False)
    )
    if preparation.lengths is not None:  # texts are tokenized, and their controls computed, while the model runs
        loaded = _ahead(loaded)
    half = torch.bfloat16 if device.type == "cpu" else torch.float16  # CPUs have no kernels for float16
    fault = None
    with ExitStack() as stack:
        stack.enter_context(closing(loaded))  # ends the worker processes, also if an error keeps this frame
        values, passes = _open_passes(extractors, how, stack)
        # On a GPU one batch is held back, so that the next is computed while the caller processes this one.
        launched: list[tuple[int, _Copied]] = []
        for users, (positions, batch, of_input) in zip(needed, loaded, strict=False):
            if isinstance(batch, SampleError):
                fault = batch
                break
            mask = preparation.mask(batch)  # on the host: its checks need not wait for the last pass of a GPU
            if mask is not None and not bool(mask.any(1).all()):
                empty = source.ids[positions[int((~mask.any(1)).nonzero()[0])]]
                raise InvalidInputError(f"the sample {empty} has no token: its mask is empty")
            if mask is not None:
                mask = move(pin(mask.bool()) if cuda else mask.bool().clone(), device, non_blocking=cuda)
            on_device = move(batch, device, non_blocking=cuda)
            # before the model runs, which may overwrite its input
            statistics = _statistics([extractors[k] for k in users], on_device)
            on_device = with_channels_last(on_device) if how.channels_last else on_device
            before, launched = launched, []
            for k in users:
                batch_input = on_device if k == users[-1] else copy(on_device)  # a model may overwrite its input
                autocast = torch.autocast(device.type, half) if how.amp else nullcontext()
                values[k].mask = mask
                with torch.no_grad(), autocast:  # not around the yield: the caller may need gradients
                    output = _call(extractors[k].name, passes[k], batch_input, [source.ids[row] for row in positions])
                hooks.check(values[k], extractors[k].readouts, len(positions))
                readings = {**values[k], **of_input.pop(0), **statistics.pop(0)}
                if (prediction := extractors[k].controls.get(PREDICTION)) is not None:
                    readings[PREDICTION] = hooks.read_out(output, *prediction)
                values[k].clear()
                launched.append((k, _Copied(tuple(positions), readings, device)))  # pinning may make a list of them
            del batch, on_device, batch_input, output
            if not cuda:
                before, launched = launched, []
            for k, copied in before:
                yield k, copied.batch()
        for k, copied in launched:
            yield k, copied.batch()
    if fault is not None:
        raise fault


def _open_passes(
    extractors: Sequence[StreamedModel], how: Stream, stack: ExitStack
) -> tuple[list[hooks.Readings], list[Callable[[Any], Any]]]:
    """Attach hooks to all models; return the readouts that they fill, and the functions that run the models."""
    models = [extractor.model.to(how.device) for extractor in extractors]
    values: list[hooks.Readings] = []
    passes: list[Callable[[Any], Any]] = []
    if how.compile:
        stack.enter_context(compiling(len(models)))
    for extractor, model in zip(extractors, models, strict=True):
        stack.enter_context(hooks.evaluating(model))
        if how.channels_last:
            stack.enter_context(in_channels_last(model))
        values.append(stack.enter_context(hooks.reading(model, extractor.readouts)))
        passes.append(
            CompiledPass(extractor, values[-1], batch_size=how.batch_size, half=how.amp)
            if how.compile
            else partial(extractor.preparation.forward, model)
        )
    return values, passes


def _call(name: str, run: Callable[[Any], Any], batch: Any, ids: Sequence[str]) -> Any:
    """Run a model; raise `InvalidInputError` with the samples if its code fails, but not if memory is short."""
    try:
        return run(batch)
    except (RepsimError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # the code of the user may raise any exception
        span = ids[0] if len(ids) == 1 else f"{ids[0]} ... {ids[-1]}"
        raise InvalidInputError(f"{name} cannot run on the samples {span}: {reason(error)}") from error


def _ahead(batches: Iterator[T]) -> Generator[T, None, None]:
    """Yield what ``batches`` yields, and compute the next one in a thread meanwhile."""
    with ThreadPoolExecutor(1, "repsim-ahead") as thread:
        coming = thread.submit(next, batches, None)
        while (batch := coming.result()) is not None:
            coming = thread.submit(next, batches, None)
            yield batch


def _controls(extractors: Sequence[StreamedModel], batch: Any) -> list[dict[tuple[str, str], Tensor]]:
    """Return the controls of each model that are read from the batch on the CPU, so that all devices give the same."""
    return _read_input(extractors, batch, lambda readout: not isinstance(readout, PictureStatistics))


def _statistics(extractors: Sequence[StreamedModel], on_device: Any) -> list[dict[tuple[str, str], Tensor]]:
    """Return the statistics of pictures, which would slow a GPU down on the CPU; devices differ by rounding errors."""
    return _read_input(extractors, on_device, lambda readout: isinstance(readout, PictureStatistics))


def _read_input(
    extractors: Sequence[StreamedModel], batch: Any, chosen: Callable[[Readout], bool]
) -> list[dict[tuple[str, str], Tensor]]:
    """Return the chosen controls of each model; those that models share are computed once."""
    computed: dict[tuple[tuple[str, str], Readout], Tensor] = {}
    of_models = []
    for extractor in extractors:
        own = {key: control for key, control in extractor.controls.items() if key != PREDICTION and chosen(control[1])}
        for key, (layer, readout) in own.items():
            if (key, readout) not in computed:
                computed[key, readout] = readout(batch, layer)
        of_models.append({key: computed[key, readout] for key, (_, readout) in own.items()})
    return of_models


class _Copied:
    """Readouts that are being copied to the host; the copy is complete when the event has occurred."""

    def __init__(self, rows: tuple[int, ...], values: dict[tuple[str, str], Tensor], device: torch.device) -> None:
        cuda = device.type == "cuda"
        self._rows = rows
        self._values = {key: value.to("cpu", non_blocking=cuda) for key, value in values.items()}  # to pinned memory
        values.clear()
        self._event = torch.cuda.Event() if cuda else None
        if self._event is not None:
            self._event.record(torch.cuda.current_stream(device))

    def batch(self) -> Batch:
        """Wait for the copy, and return the batch."""
        if self._event is not None:
            self._event.synchronize()
        return Batch(self._rows, self._values)


def _batches(rows: Sequence[Sequence[int]], size: int) -> tuple[list[Rows], list[list[int]]]:
    """Return every batch once, in an order that agrees with all extractors, and the extractors that need it.

    >>> batches, needed = _batches([[4, 5, 6], [0, 1, 2, 3], [2, 3, 4, 5]], 2)
    >>> [batch.tolist() for batch in batches], needed
    ([[0, 1], [2, 3], [4, 5], [6]], [[1], [1, 2], [0, 2], [0]])
    """
    wanted = [np.asarray(own, np.int64) for own in rows]  # arrays, as batches are then views without further memory
    cut = [[own[i : i + size] for i in range(0, len(own), size)] for own in wanted]
    if len(cut) == 1:
        return cut[0], [[0]] * len(cut[0])
    batches: dict[int, Rows] = {}
    needed: dict[int, list[int]] = defaultdict(list)
    order: TopologicalSorter[int] = TopologicalSorter()
    for k, own_batches in enumerate(cut):
        firsts = [int(batch[0]) for batch in own_batches]  # each row is in one batch, so the first row identifies it
        for i, (first, batch) in enumerate(zip(firsts, own_batches, strict=True)):
            order.add(first, *firsts[max(0, i - 1) : i])
            needed[first].append(k)
            if not np.array_equal(batches.setdefault(first, batch), batch):
                raise InvalidInputError(f"rows are not whole batches of one order: two begin with {first} and differ")
    try:
        sequence = list(order.static_order())
    except CycleError:
        raise InvalidInputError(
            "rows are not parts of one order: two batches are in different orders in two sequences"
        ) from None
    if sequence and len(np.unique(everything := np.concatenate([batches[first] for first in sequence]))) < len(
        everything
    ):
        raise InvalidInputError("rows are not whole batches of one order: a row is in two batches")
    return [batches[first] for first in sequence], [needed[first] for first in sequence]


class _Prepared(Dataset[tuple[int, Any]]):
    """Data set of samples: the position in the source, and the prepared sample or the error of the sample.

    A worker process returns an error as a value, as a raised error would arrive with the traceback of that process.
    """

    def __init__(self, source: SampleSource, preparation: Preparation) -> None:
        self.source, self.transform = source, preparation.transform

    def __getitem__(self, row: int) -> tuple[int, Any]:
        try:
            return self.prepare(int(row), self.source.load(int(row)))
        except SampleError as error:
            return int(row), error

    def prepare(self, row: int, sample: Any) -> tuple[int, Any]:
        """Return the position of a sample, and the prepared sample."""
        return row, self.transform(sample)


class _Collate:
    """Function that makes a batch of prepared samples, or returns the error of one that cannot be read."""

    def __init__(self, collate: Callable[[list[Any]], Any]) -> None:
        self.collate = collate

    def __call__(self, samples: list[tuple[int, Any]]) -> tuple[tuple[int, ...], Any]:
        rows = tuple(row for row, _ in samples)
        wrong = next((item for _, item in samples if isinstance(item, SampleError)), None)
        return rows, self.collate([item for _, item in samples]) if wrong is None else wrong
