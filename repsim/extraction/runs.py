"""Extract the activations of one model or several into stores: `repsim.extract` and the steps behind it."""

import os
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Unpack, overload

from torch import nn

from repsim.errors import InvalidInputError, Remedy
from repsim.extraction.jobs import Extraction, choose_samples, choose_stream, run_together
from repsim.extraction.options import Data, DType, ExtractOptions, Model
from repsim.extraction.patterns import add_axes, expand_patterns, is_pattern
from repsim.extractors import Extractor
from repsim.extractors.factory import (
    Collate,
    Forward,
    Mask,
    check_name,
    make_extractor,
    preprocessing_of,
    store_name,
)
from repsim.extractors.options import Choices, ModelOptions, read_kwargs
from repsim.extractors.recalibration import check_weights
from repsim.extractors.samples.group_files import GroupsOfPictures
from repsim.extractors.samples.label_files import Labels
from repsim.extractors.samples.opening import open_samples
from repsim.extractors.samples.source import SampleSource
from repsim.labels import check_model_name
from repsim.runtime.events import Note, UpToDate, log_notes
from repsim.runtime.options import accept_options, sort_keywords
from repsim.runtime.processes import ranks
from repsim.runtime.progress import Listener, report_progress
from repsim.stores.axes import Axes, StatedAxes, check_axes, read_texts, refuse_axes_in
from repsim.stores.store import ActivationStore, open_store

Models = list[str] | Sequence[nn.Module] | list[str | nn.Module] | tuple[str | nn.Module, ...]
"""Several models. `Sequence[str]` is not allowed, as a single name is a sequence of texts, too."""
Provenance = Mapping[str, Any]
"""Entries of the provenance of a store, as JSON values."""
_KINDS = (Model, Data, ExtractOptions)
_RENAMED = {"store": "name", "root": "data_root"}
"""Options with a longer keyword in Python and on the command line than in their section of a study file."""
Listeners = Callable[[str], Listener]
"""Function from the name of a step of the work to the function that receives the progress of this step."""


@dataclass(frozen=True, kw_only=True)
class PythonModel(Model):
    """A model of a Python call, which may be a torch module."""

    module: nn.Module | None = None
    transform: Callable[[Any], Any] | None = None
    forward: Forward | None = None
    collate: Collate | None = None
    mask: Mask | None = None
    provenance: Mapping[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        return super().__str__() if self.module is None else f"the module {self.store or self.name}"


@dataclass(frozen=True)
class InMemory:
    """Samples of a Python call, and what it says of them in values instead of names of files and columns."""

    samples: Any = None
    """A source, a data set, a loader, a list of texts, or an array (`open_samples`)."""
    ids: Sequence[str] | None = None
    labels: Labels | None = None
    groups: GroupsOfPictures | None = None


@dataclass(frozen=True)
class Extracted:
    """Event: the store of a model is finished."""

    model: int
    """Position of the model among all models."""
    path: Path
    samples: int
    noun: str
    """Plural of the samples: pictures, texts, arrays, samples."""
    layers: int
    bytes: int
    new: int
    """Number of samples that this run has computed, in contrast to an earlier run."""
    seconds: float
    """Time in seconds for all models that were read together."""
    device: str


def extract_steps(
    models: Sequence[Model],
    data: Data,
    out: Path,
    options: ExtractOptions,
    *,
    memory: InMemory | None = None,
    listeners: Listeners = lambda _: None,
    command: str | None = None,
) -> Iterator[Note | UpToDate | Extracted]:
    """Extract models into stores in the folder ``out``, and yield events.

    Samples that an earlier run with the same settings has stored are kept. The processes of torchrun share the work,
    and only the first yields notes.

    Parameters
    ----------
    models : sequence of Model
        The models, with their weights and options.
    data : Data
        The samples.
    out : Path
        Folder of the stores.
    options : ExtractOptions
        Layers, readouts, and options of the forward passes.
    memory : InMemory, optional
        Samples, ids, labels and groups of a Python call, which replace those that ``data`` names.
    listeners : callable
        Function from the name of a step to the function that receives the progress of this step.
    command : str, optional
        Command line that is recorded in the stores as their origin.

    Yields
    ------
    Note, UpToDate or Extracted
        A message, a store that was complete already, or a store that is finished.
    """
    with ranks() as me:
        for event in _plan_groups(
            models, data, out, options,
            memory=memory, listeners=listeners, command=command, check=True,
        ):  # fmt: skip
            if isinstance(event, Note):
                if me.first:
                    yield event
                continue
            jobs = list(event.values())
            me.agree({"weights or options": [(job.model, job.contents.settings, job.arrays) for job in jobs]})
            before = me.broadcast([job.samples_stored() for job in jobs] if me.first else [])
            if me.first:
                yield from _report_stored_samples(jobs, before)
            start = time.perf_counter()
            step = f"extracting {' + '.join(job.model for job in jobs)}"
            with report_progress(step, listeners(step)) as advance:
                stores = run_together(jobs, advance, me)
            seconds = time.perf_counter() - start
            for (k, job), done, store in zip(event.items(), before, stores, strict=True):
                with store:
                    n, layers = len(store), len(store.layers)
                yield Extracted(
                    k, job.path, n, job.samples.source.noun, layers, job.bytes, n - done, seconds, job.how.device
                )


def plan_extraction(
    models: Sequence[Model],
    data: Data,
    out: Path,
    options: ExtractOptions,
    *,
    listeners: Listeners = lambda _: None,
) -> Iterator[Note | Extraction]:
    """Yield the planned extraction of each model, and notes, without computing or writing anything."""
    with ranks() as me:
        for event in _plan_groups(models, data, out, options, listeners=listeners, check=False):
            if me.first:
                yield from [event] if isinstance(event, Note) else event.values()


def _plan_groups(
    models: Sequence[Model],
    data: Data,
    out: Path,
    options: ExtractOptions,
    *,
    memory: InMemory | None = None,
    listeners: Listeners,
    command: str | None = None,
    check: bool,
) -> Iterator[Note | dict[int, Extraction]]:
    """Load the models, and yield notes and groups of extractions that run together, by position of the model.

    With ``check``, all samples are read and hashed first.
    """
    check_models(models)
    if options.axes_file is not None:
        models, notes = add_axes(models, [store_of(model) for model in models], options.axes_file)
        yield from (Note(note, "note: ") for note in notes)
    source = open_data(data, memory)
    with ranks() as me, report_progress(step := f"checking {source.noun}", listeners(step)) as advance:
        me.agree({"samples": (*source.ids, data.limit, data.skip_bad), "models": [store_of(model) for model in models]})
        samples = choose_samples(source, limit=data.limit, skip_bad=data.skip_bad, progress=advance, me=me, check=check)
    how = choose_stream(
        samples, readout=options.readout, batch_size=options.batch_size, workers=options.workers,
        device=options.device, amp=options.amp, channels_last=options.channels_last, compile=options.compile,
    )  # fmt: skip
    for name, why in samples.skipped.items():
        yield Note(f"skipped {name}: {why}")
    for note in samples.notes:
        yield Note(note, "note: ")
    models_by_weights: dict[str, str] = {}
    said: set[tuple[str, str]] = set()
    for group in _groups(models, options.together):
        jobs = {}
        for k in group:
            model = models[k]
            with report_progress(step := f"loading {model}", listeners(step)):  # a download takes a while
                extractor = _extractor(model, options, source)
            jobs[k] = Extraction(
                extractor, samples, out, how, options.dtype, overwrite=options.overwrite,
                recalibrate=model.recalibrate, command=command, name=model.store, stated=_stated(model),
                axes=model.axes,
            )  # fmt: skip
            for note in jobs[k].notes:
                if (model.name, note) not in said:  # of a hundred checkpoints of one network, once
                    said.add((model.name, note))
                    yield Note(note, f"note: {model.name}: ")
            weights = str(extractor.provenance().get("weights_sha256", jobs[k].model))
            if (earlier := models_by_weights.setdefault(weights, jobs[k].model)) != jobs[k].model:
                yield Note(f"{jobs[k].model} has the same weights as {earlier}", "note: ")
        yield jobs


def open_data(data: Data, memory: InMemory | None = None) -> SampleSource:
    """Open the samples that the options name, or those of a Python call."""
    memory = memory or InMemory()
    return open_samples(
        data.source if memory.samples is None else memory.samples,
        split=data.split, root=data.root, download=data.download,
        labels=data.labels if memory.labels is None else memory.labels,
        groups=data.groups if memory.groups is None else memory.groups,
        max_pixels=data.max_pixels, column=data.column, id_column=data.id_column, label_column=data.label_column,
        group_column=data.group_column, ids=memory.ids,
    )  # fmt: skip


def _extractor(model: Model, options: ExtractOptions, samples: SampleSource) -> Extractor:
    module = _module(model)
    own = model if isinstance(model, PythonModel) else PythonModel(name=model.name)
    return make_extractor(
        model.name if module is None else module,
        weights=model.weights,
        seed=model.seed,
        layers=options.layers,
        readout=options.readout,
        transform=own.transform,
        name=None if module is None else model.store,
        samples=samples,
        forward=own.forward,
        collate=own.collate,
        mask=own.mask,
        **model.choices,
    )


def _module(model: Model) -> nn.Module | None:
    return model.module if isinstance(model, PythonModel) else None


def _stated(model: Model) -> Mapping[str, Any]:
    return model.provenance if isinstance(model, PythonModel) else {}


def _report_stored_samples(jobs: Sequence[Extraction], before: Sequence[int]) -> Iterator[Note | UpToDate]:
    """Yield messages about samples that earlier runs have stored, and about how they were checked."""
    for job, done in zip(jobs, before, strict=True):
        if done == len(job.samples.rows):
            yield UpToDate(job.path, "is complete already")
        elif done:
            yield Note(f"{job.path}: going on after {done} of {len(job.samples.rows)} {job.samples.source.noun}")
        if done and job.lacks_hashes():
            noun = job.samples.source.noun
            yield Note(f"note: {job.path} keeps no hashes of {noun}: only their names and sizes were checked")


def check_models(models: Sequence[Model]) -> None:
    """Check names, weights and options of models before any file is opened or downloaded.

    Raises
    ------
    UnknownNameError, InvalidInputError
        A model or an option is not valid, or two models would have the same store.
    """
    for model in models:
        if model.recalibrate:
            module = _module(model) is not None
            check_weights(_stated(model).get("weights") if module else model.weights, module=module)
        if _module(model) is None:
            check_name(model.name)
            ModelOptions.read(**model.choices).check_weights(model.weights)
        if model.store is not None:
            check_model_name(model.store)
        check_axes(model.axes, f"axes of {model.name}")
        refuse_axes_in(_stated(model))
    twice = [name for name, count in Counter(model.store for model in models if model.store).items() if count > 1]
    if twice:
        raise InvalidInputError(f"two models have the name {twice[0]}; give each a name of its own")
    stores: dict[str, Model] = {}
    for model in models:
        name = store_of(model)
        if (earlier := stores.setdefault(name, model)) is not model:
            raise InvalidInputError(
                f"{model} is named twice; name it once"
                if earlier == model
                else f"{earlier} and {model} would have the same store, {name}.h5; give each a name of its own"
            )


def store_of(model: Model) -> str:
    """Return the name of a model's store; extractors of other packages may choose another."""
    if model.store is not None or _module(model) is not None:
        return model.store or model.name
    return store_name(model.name, model.weights, model.seed, **model.choices)


def _groups(models: Sequence[Model], together: int) -> list[list[int]]:
    """Return groups of at most ``together`` models with the same preprocessing, as positions in ``models``."""
    kinds: dict[Any, list[int]] = {}
    for k, model in enumerate(models):
        kind: Any = _module(model) or preprocessing_of(model.name, model.weights, **model.choices)
        kinds.setdefault(kind or model.name, []).append(k)
    return [kind[i : i + together] for kind in kinds.values() for i in range(0, len(kind), together)]


def _as_list(values: Any) -> list[Any]:
    """Return one value, several values, or None as a list; paths as text."""
    if values is None:
        return []
    if isinstance(values, str | int | os.PathLike):
        values = [values]
    return [os.fspath(value) if isinstance(value, os.PathLike) else value for value in values]


def pair_models(
    names: Sequence[str | nn.Module],
    *,
    weights: Sequence[str] = (),
    seed: Sequence[int] = (),
    store: Sequence[str] = (),
    provenance: Provenance | Sequence[Provenance] = (),
    axes: Any = (),
    model_kwargs: Mapping[str, Any] | Iterable[str] | None = None,
    **common: Any,
) -> list[PythonModel]:
    """Return the models with their weights, seeds, axes, provenance and names in results.

    Weights, seeds, axes and provenance are one value for all models, or one value per model in order.

    Raises
    ------
    InvalidInputError
        The number of weights, seeds or provenances is neither 1 nor that of the models, the number of names is not
        that of the models, or a provenance is not a dictionary.
    """
    count = len(names)
    stated = [provenance] if isinstance(provenance, Mapping) else list(provenance)
    for entry in stated:
        if not isinstance(entry, Mapping):
            raise InvalidInputError(f"provenance: expected a dictionary, got {type(entry).__name__}")
    coordinates = _axes_by_model(axes)
    labels = [type(model).__name__ if isinstance(model, nn.Module) else model for model in names]
    lists = (("weights", weights), ("seeds", seed), ("provenances", stated), ("axes", coordinates))
    for what, values in lists:
        if len(values) > 1 and len(values) != count:
            raise InvalidInputError(
                f"{len(values)} {what} for {count} model{'s' * (count > 1)} ({', '.join(labels)}): "
                "give one for all, or one for each, in order"
            )
    if store and len(store) != count:
        numbers = f"{len(store)} name{'s' * (len(store) > 1)} for {count} model{'s' * (count > 1)}"
        raise InvalidInputError(f"{numbers}; give one for each, in their order, or none")
    return [
        PythonModel(
            name=label,
            module=model if isinstance(model, nn.Module) else None,
            weights=weights[k % len(weights)] if weights else "pretrained",
            seed=seed[k % len(seed)] if seed else 0,
            store=store[k] if store else None,
            provenance=stated[k % len(stated)] if stated else {},
            axes=coordinates[k % len(coordinates)] if coordinates else {},
            model_kwargs=read_kwargs(model_kwargs or {}),
            **common,
        )
        for k, (model, label) in enumerate(zip(names, labels, strict=True))
    ]


def _axes_by_model(axes: Any) -> list[Axes]:
    """Return the axes of all models, or of each: from a mapping, a list of mappings, or texts ``NAME=VALUE``."""
    if axes is None or isinstance(axes, Mapping):
        return [check_axes(axes)] if axes else []
    entries = [axes] if isinstance(axes, str) or not isinstance(axes, Iterable) else list(axes)
    if entries and all(isinstance(entry, str) for entry in entries):
        return [read_texts(entries)]
    return [check_axes({} if entry is None else entry) for entry in entries]


class ExtractKeywords(Choices, total=False):
    """Keywords of `extract` for type checkers; `Model`, `Data` and `ExtractOptions` describe them."""

    weights: str | os.PathLike[str] | Sequence[str | os.PathLike[str]]
    seed: int | Sequence[int]
    recalibrate: bool
    axes: StatedAxes | Sequence[StatedAxes] | None
    name: str | Sequence[str] | None
    split: str | None
    data_root: str | None
    limit: int | None
    download: bool
    skip_bad: bool
    labels: Labels | None
    groups: GroupsOfPictures | None
    max_pixels: int | None
    column: str | None
    id_column: str | None
    label_column: str | None
    group_column: str | None
    layers: str
    readout: str
    batch_size: int | None
    workers: int | None
    together: int
    device: str
    amp: bool
    channels_last: bool
    compile: bool
    dtype: DType
    axes_file: str | os.PathLike[str] | None
    overwrite: bool


@overload
def extract(
    model: str | nn.Module,
    data: Any,
    out: str | os.PathLike[str],
    *,
    transform: Callable[[Any], Any] | None = None,
    forward: Forward | None = None,
    collate: Collate | None = None,
    mask: Mask | None = None,
    ids: Sequence[str] | None = None,
    provenance: Provenance | None = None,
    progress: Listener = None,
    **keywords: Unpack[ExtractKeywords],
) -> ActivationStore: ...
@overload
def extract(
    model: Models,
    data: Any,
    out: str | os.PathLike[str],
    *,
    transform: Callable[[Any], Any] | None = None,
    forward: Forward | None = None,
    collate: Collate | None = None,
    mask: Mask | None = None,
    ids: Sequence[str] | None = None,
    provenance: Provenance | Sequence[Provenance] | None = None,
    progress: Listener = None,
    **keywords: Unpack[ExtractKeywords],
) -> list[ActivationStore]: ...
@accept_options(*_KINDS, renamed=_RENAMED, without=("name", "source"))
def extract(
    model: str | nn.Module | Models,
    data: Any,
    out: str | os.PathLike[str],
    *,
    transform: Callable[[Any], Any] | None = None,
    forward: Forward | None = None,
    collate: Collate | None = None,
    mask: Mask | None = None,
    ids: Sequence[str] | None = None,
    provenance: Provenance | Sequence[Provenance] | None = None,
    progress: Listener = None,
    **keywords: Unpack[ExtractKeywords],
) -> ActivationStore | list[ActivationStore]:
    """Extract the activations of one model or several into stores ``out/<model>.h5``.

    Samples that an earlier call with the same settings has stored are kept, and only the others are computed. Under
    torchrun, where every process makes the same call, the processes share the work. Notes, for example about samples
    that were left out, are logged by ``logging.getLogger("repsim")``.

    For several models, ``weights``, ``seed``, ``axes`` and ``provenance`` are one value for all or a list with one
    value per model, and ``name`` is a list. Weights that are a pattern of names of files (docs/axes.md) stand for one
    model per file; the model is named in a list then, as in ``extract(["resnet18"], weights="step_{step}.pt", ...)``.
    ``labels`` and ``groups`` may also be a mapping, or one class or group per sample in the order of the ids.
    `repsim.universality` uses the groups; `repsim.compare` does not.

    Parameters
    ----------
    model : str, torch.nn.Module, or list of these
        A timm name with or without a tag, ``torchvision/NAME``, ``hf/NAME`` of transformers, or a torch module. Models
        of a list that prepare samples in the same way are read together, and each sample is prepared once.
    data : path, or samples
        A folder of pictures (flat, or one folder per class), a ``.tar``, ``digits``, or a data set that timm opens by
        name (``torch/cifar10``, in the folder ``data_root``); texts, tables and arrays in files; or, in memory, a torch
        ``Dataset`` or ``DataLoader``, a data set of Hugging Face, a list of texts, an array or tensor (n, ...), or a
        `repsim.extractors.SampleSource` (docs/samples.md).
    out : path
        The folder for the stores.
    transform : callable, optional
        For a torch module, the function from a sample to what is put into batches. Of a PIL picture it makes a tensor
        (3, H, W). Models with a name do not need it.
    forward : callable, optional
        For a torch module, the function ``forward(module, batch)`` that calls it; by default ``module(batch)``.
    collate : callable, optional
        For a torch module, the function from a list of samples to a batch; by default that of the ``DataLoader``, or
        `torch.utils.data.default_collate`.
    mask : str or callable, optional
        For a torch module, the entry of a batch, or the function of it, that is the mask (b, L) of tokens that are no
        padding. By default the entry ``attention_mask`` of a batch that is a mapping. Readouts ignore padding.
    ids : sequence of str, optional
        Ids of the samples in memory; by default their numbers.
    provenance : dict, or list of these, optional
        Further entries of the provenance of the store, as JSON values. Of a torch module only you know them:
        ``{"weights": "random", "architecture": "mynet"}`` makes it an untrained network for studies, the control of
        trained ones of the same architecture, and allows ``recalibrate``. Entries that the extraction records itself
        cannot be contradicted.
    progress : callable or False, optional
        Called after each batch with the number of samples done and of all. By default a notebook shows a progress bar;
        False shows nothing.
    {options}

    Returns
    -------
    ActivationStore or list of ActivationStore
        The finished store, open for reading; for a list of models the list of their stores in the same order.

    Raises
    ------
    RepsimError
        A model or layer does not exist, a layer does not have the readout, weights or pictures cannot be read, an
        activation is NaN, the folder cannot be written, or the store was made with other settings. Samples that were
        computed before the error are kept for the next call.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     store = extract("digits_vit.seed0", "digits", folder, layers="blocks.*", limit=16)
    ...     store.layers, store["blocks.5"].shape
    ...     [store.model for store in extract(["digits_vit.seed1", "digits_vit.seed2"], "digits", folder, limit=16)]
    (('blocks.0', 'blocks.1', 'blocks.2', 'blocks.3', 'blocks.4', 'blocks.5'), (16, 64))
    ['digits_vit.seed1', 'digits_vit.seed2']
    """
    single = isinstance(model, str | nn.Module)
    names = [model] if isinstance(model, str | nn.Module) else list(model)
    if single and any(
        isinstance(weights, str) and is_pattern(weights) for weights in _as_list(keywords.get("weights"))
    ):
        raise InvalidInputError(
            f"weights={keywords.get('weights')!r} is a pattern, which stands for several models",
            remedy=Remedy("name the model in a list, [", repr(model), "], to get a list of stores"),
        )
    models, samples, options, memory = read_keywords(
        names, data, keywords, transform=transform, forward=forward, collate=collate, mask=mask, ids=ids,
        provenance=provenance,
    )  # fmt: skip

    def listeners(step: str) -> Listener:
        return progress if step.startswith("extracting") or progress is None else False

    steps = extract_steps(models, samples, Path(out), options, memory=memory, listeners=listeners)
    paths = {event.model: event.path for event in log_notes(steps)}
    stores = [open_store(paths[k]) for k in range(len(models))]
    return stores[0] if single else stores


def read_keywords(
    models: Sequence[str | nn.Module],
    data: Any,
    keywords: Mapping[str, Any],
    *,
    ids: Sequence[str] | None = None,
    provenance: Provenance | Sequence[Provenance] | None = None,
    **of_module: Any,
) -> tuple[list[PythonModel], Data, ExtractOptions, InMemory]:
    """Return the models, samples and options in the keywords of `extract`, and what has values in memory."""
    rest = dict(keywords)
    labels = rest.pop("labels", None)
    if isinstance(labels, str | os.PathLike):  # `Data` has a file of labels; labels as values are separate
        rest["labels"], labels = os.fspath(labels), None
    groups = rest.pop("groups", None)
    if isinstance(groups, str | os.PathLike):
        rest["groups"], groups = os.fspath(groups), None
    of_models, of_data, options = sort_keywords("extract", rest, *_KINDS, renamed=_RENAMED)
    if "axes_file" in options and options["axes_file"] is not None:
        options["axes_file"] = os.fspath(options["axes_file"])
    weights, seed, store = (_as_list(of_models.pop(name, None)) for name in ("weights", "seed", "store"))
    paired = pair_models(
        models,
        weights=weights,
        seed=seed,
        store=store,
        provenance=() if provenance is None else provenance,
        **of_module,
        **of_models,
    )
    named = isinstance(data, str | os.PathLike)
    source = os.fspath(data) if named else type(data).__name__
    memory = InMemory(None if named else data, ids, labels, groups)
    return expand_patterns(paired), Data(source=source, **of_data), ExtractOptions(**options), memory
