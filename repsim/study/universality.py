"""Conducting a study: from stores of many models to all that can be said of how universal their representations are."""

import os
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from itertools import chain
from pathlib import Path
from typing import Any, Literal, TypedDict, Unpack

import numpy as np
import xarray as xr
from jaxtyping import Float64, Int64

from repsim import metrics as registry
from repsim.engine.null_moments import cubic_moments
from repsim.engine.planning import by_recipe
from repsim.engine.resampling import random_permutations
from repsim.errors import InvalidInputError, UndefinedValueError
from repsim.metrics import Metric
from repsim.metrics.cka import CKA
from repsim.results.files import save_result
from repsim.runtime import tuning
from repsim.runtime.deprecation import warn_deprecated
from repsim.runtime.files import check_output, locked
from repsim.runtime.hardware import choose_device
from repsim.runtime.memory import memory_to_use
from repsim.runtime.options import accept_options, sort_keywords
from repsim.runtime.progress import Progress, Steps, counter, report_steps
from repsim.stores.store import ActivationStore, open_store, several
from repsim.study import controls as control
from repsim.study import permutation_nulls
from repsim.study.chance import within_classes
from repsim.study.dataset import findings
from repsim.study.design import Design, Pair, design
from repsim.study.evidence import Evidence
from repsim.study.gram_passes import Kernels, kernels, symmetric
from repsim.study.indices import Indices
from repsim.study.layer_matching import split_half
from repsim.study.options import METRICS, UniversalityOptions
from repsim.study.other_measures import Measured, measure, read

StoreLike = ActivationStore | str | os.PathLike[str]
_FEWEST = 8
"""Samples: with fewer not even an interval means anything."""
_ROOM = 2**29
"""Bytes of leave-one-out values that are there at once."""
_SPLIT_SAMPLES = 20_000
"""Samples of all splits taken together: of many samples one split says as much as several of few."""


class UniversalityKeywords(TypedDict, total=False):
    """Keywords of `universality`, for type checkers; `UniversalityOptions` says all else of them."""

    families: Mapping[str, Sequence[str]] | None
    readout: str | None
    controls: str | None
    controls_folder: str | os.PathLike[str] | None
    data: str | None
    split: str | None
    data_root: str | None
    permutations: int
    draws: int
    seed: int
    device: str
    memory: int | str | None
    overwrite: bool


@accept_options(UniversalityOptions, without=("metrics",))
def universality(
    stores: Sequence[StoreLike],
    metrics: Sequence[str | Metric[Any]] | None = None,
    *,
    out: str | os.PathLike[str] | None = None,
    progress: Steps | Literal[False] | None = None,
    **keywords: Unpack[UniversalityKeywords],
) -> xr.Dataset:
    """Find out how universal the representations of several networks are, and how much of that is learned.

    Debiased CKA of all layers with all layers, with what the networks share anyway: their input, the class labels, and
    what untrained networks have in common. What is computed, and with which formulas, is in docs/universality.md.

    Parameters
    ----------
    stores
        Stores, or their files, over the same samples in the same order; trained models, several of a family where
        there are any, and untrained ones (``repsim extract --weights random --recalibrate``).
    metrics
        Spec strings, groups (as in `repsim.compare`) or metrics; by default debiased CKA, mutual kNN, the nuclear norm
        (Procrustes), and SVCCA. Debiased CKA is always among them.
    out
        Save the study here, as netCDF (.nc).
    progress
        Called with the name of each step of the work; returns what is told about its progress. By default a notebook
        shows a bar; False is silent.
    {options}

    Returns
    -------
    xarray.Dataset
        docs/study-format.md says what is in it; ``attrs["summary"]`` and ``attrs["warnings"]`` are sentences (JSON).

    Raises
    ------
    InvalidInputError
        No trained model, two of one name, families that match nothing, a compressed readout, fewer than 8 samples.
    SampleMismatchError
        Stores of other samples, or in another order.

    References
    ----------
    docs/universality.md names them, formula by formula.

    Examples
    --------
    >>> import repsim, tempfile
    >>> rng = np.random.default_rng(0)
    >>> shared = rng.normal(size=(100, 5))
    >>> with tempfile.TemporaryDirectory() as where:
    ...     stores = []
    ...     for model in ("net.seed0", "net.seed1", "other.seed0", "other.seed1"):
    ...         own = {f"layer{k}": np.hstack([shared, rng.normal(size=(100, 5))]) for k in range(3)}
    ...         stores.append(repsim.write_store(f"{where}/{model}.h5", own, model=model))
    ...     study = universality(stores, ["cka"], permutations=99)
    >>> study["index"].sel(measure="cka", pair="net.seed0 x other.seed0").round(1).item()
    0.5
    """
    values = _without_earlier_keywords(dict(keywords))
    progress, command = values.pop("progress", progress), values.pop("command", None)
    given = {name: value for name, value in values.items() if value is not None}
    (options,) = sort_keywords("universality", given, UniversalityOptions)
    return conduct(stores, UniversalityOptions(**options), metrics=metrics, out=out, steps=progress, command=command)


def conduct(
    stores: Sequence[StoreLike],
    options: UniversalityOptions,
    *,
    metrics: Sequence[str | Metric[Any]] | None = None,
    out: str | os.PathLike[str] | None = None,
    steps: Steps | Literal[False] | None = None,
    command: str | None = None,
) -> xr.Dataset:
    """Do what `universality` does; ``command`` is recorded as what made the study."""
    if out is None:
        folder = Path(options.controls_folder or "controls")
        return _computed(stores, options, metrics, folder=folder, steps=steps, command=command)
    path = Path(out)
    if path.suffix != ".nc":  # also keeps a slip of the hand from replacing a store
        raise InvalidInputError(f"a study is netCDF: name it .nc, not {path.name}")
    check_output(path, overwrite=options.overwrite)
    folder = Path(options.controls_folder or path.with_name(f"{path.stem}.controls"))
    with locked(path):  # hours, so nobody does it twice
        study = _computed(stores, options, metrics, folder=folder, steps=steps, command=command)
        save_result(study, path, overwrite=options.overwrite)
    return study


def _without_earlier_keywords(keywords: dict[str, Any]) -> dict[str, Any]:
    """Replace keywords of the release before, with a warning."""
    for old, new, value in (
        ("steps", "progress", lambda steps: steps),
        ("untrained", "controls", lambda count: f"untrained:{count}" if count else None),
        ("folder", "controls_folder", lambda folder: folder),
    ):
        if old in keywords:
            warn_deprecated(f"universality({old}=...)", instead=f"write {new}=...", gone_in="0.4.0")
            keywords[new] = value(keywords.pop(old))
    if "command" in keywords:
        warn_deprecated("universality(command=...)", instead="set study.attrs['command']", gone_in="0.4.0")
    return keywords


def _computed(
    stores: Sequence[StoreLike],
    options: UniversalityOptions,
    metrics: Sequence[str | Metric[Any]] | None,
    *,
    folder: Path,
    steps: Steps | Literal[False] | None,
    command: str | None,
) -> xr.Dataset:
    asked: list[Metric[Any]] = []
    for word in metrics or options.metrics or METRICS:
        asked += [word] if isinstance(word, Metric) else registry.select(word)
    untrained, readout, families = options.untrained, options.readout, options.families
    place = choose_device(options.device)
    room = memory_to_use(place, options.memory)
    with ExitStack() as stack:
        step = stack.enter_context(report_steps("the study", steps))
        opened = [
            each if isinstance(each, ActivationStore) else stack.enter_context(open_store(each))
            for each in several(stores)
        ]
        study = design(opened, families=families, readout=readout)
        if study.n < _FEWEST:
            raise InvalidInputError(f"{study.n} samples are too few for a study: it needs at least {_FEWEST}")
        if untrained:
            made = control.untrained(
                study, untrained, folder, data=options.data, split=options.split, data_root=options.data_root,
                device=options.device,
                step=counter(untrained * control.to_extract(study), step("extracting untrained networks")),
            )  # fmt: skip
            for store in made:
                stack.enter_context(store)
            there = {store.model for store in opened}
            opened += [store for store in made if store.model not in there]
            study = design(opened, families=families, readout=readout)
        evidence = _gather(
            study, asked, permutations=options.permutations, seed=options.seed, device=place, memory=room, steps=step
        )
        return findings(evidence, draws=options.draws, seed=options.seed, command=command or "")


def _gather(
    study: Design,
    asked: Sequence[Metric[Any]],
    *,
    permutations: int,
    seed: int,
    device: str,
    memory: int,
    steps: Steps,
) -> Evidence:
    """All passes over the data."""
    given = [*control.inputs(study)]
    labels = control.classes(study)
    if labels is not None:
        given.append(labels)
    size = sum(4 * study.n * int(np.prod(m.store[array].shape[1:])) for m in study.members for array in m.arrays)
    count = sum(len(m.arrays) for m in study.members) + len(given)
    all_kernels = kernels(
        study, given, device, keep=size <= memory // 2, step=counter(count, steps("preparing layers"))
    )
    for member in study.members:
        if not len(all_kernels.of[member.name]):
            why = all_kernels.undefined[member.layers[0]]
            raise InvalidInputError(f"{member.store.path}: none of its layers can be compared ({why}); leave it out")
    sweep = all_kernels.leave_one_out(_ROOM)
    runs = sweep.runs(counter(sweep.units, steps("leaving out each sample")))
    first = next(runs)
    indices = Indices(study, dict(all_kernels.of), symmetric(sweep.full_values))
    left_out, errors = indices.without_each(values for _, values in chain([first], runs))
    assert sweep.cubes is not None, "asked for"
    trained = np.concatenate([all_kernels.of[member.name] for member in study.trained])
    cubic = tuple(cubic_moments([all_kernels.grams[k] for k in trained], sweep.cubes[trained]))
    del sweep, runs, first

    orders = random_permutations(study.n, permutations, seed)
    short = permutation_nulls.shortened(all_kernels, study)
    null = permutation_nulls.of_cka(short, indices, orders, memory=memory, progress=steps("permuting samples"))
    within: dict[tuple[str, str], permutation_nulls.Null] = {}
    if labels is not None and study.pairs and labels.features.sum(0).max() > 1:
        classes = labels.features.argmax(1)
        inside = within_classes(classes, permutations, seed)
        within = permutation_nulls.of_cka(
            short, indices, inside, memory=memory, progress=steps("permuting samples within classes")
        )
    halves = _halves(study, all_kernels, indices, seed, steps("splitting samples"))
    found: dict[str, Measured] = {}
    pairs, others = _wanted(study), [metric for metric in asked if metric != CKA()]
    for recipe, some in by_recipe(others, "features"):  # measures that share a decomposition share it here, too
        possible = study.pairs and study.n >= max(metric.min_samples for metric in some)
        layers = read(pairs, recipe, device) if possible else None
        for metric in some:
            found[metric.spec] = measure(
                metric, pairs, study.pairs, orders, device=device, memory=memory, seed=seed, layers=layers,
                progress=steps(f"measuring {metric.spec}"),
            )  # fmt: skip
    measured = [found[metric.spec] for metric in others]
    return Evidence(
        study, all_kernels, indices, left_out, errors, cubic, null, within, halves, tuple(measured), permutations,
        tuple(control.duplicates(study)),
    )  # fmt: skip


def _wanted(study: Design) -> list[Pair]:
    """Pairs of trained models and of their untrained twins."""
    found: dict[frozenset[str], Pair] = {}
    for pair in study.pairs:
        for each in (pair, *study.controls_of(pair)):
            found.setdefault(frozenset({each.a.name, each.b.name}), each)
    return list(found.values())


def _halves(
    study: Design, kernels: Kernels, indices: Indices, seed: int, progress: Progress | None
) -> dict[tuple[str, str], float]:
    """(given, pair) -> the split-half index: matches found on one half of the samples, measured on the other."""
    controls = [kernels.of[kind] for kind in ("input", "labels") if kind in kernels.of]
    where = np.concatenate([*(kernels.of[member.name] for member in study.trained), *controls])
    place = {k: i for i, k in enumerate(where)}
    of: dict[str, Int64[np.ndarray, " layers"]] = {
        name: np.array([place[k] for k in some if k in place], int) for name, some in kernels.of.items()
    }
    splits = max(1, min(tuning.current().halvings, _SPLIT_SAMPLES // study.n))
    step = counter(splits, progress)
    found: dict[tuple[str, str], list[float]] = {}
    for order in random_permutations(study.n, splits, seed):
        first, second = (np.sort(half) for half in (order[: study.n // 2], order[study.n // 2 :]))
        both: list[Float64[np.ndarray, "L L"]] = [kernels.on(half, where) for half in (first, second)]
        here = Indices(study, of, both[0])
        for kind in indices.kernels:
            try:
                values = [here.similarities(R, kind) for R in both]
            except UndefinedValueError:  # a control without a value: no two samples of one class in this half
                continue
            for pair in study.pairs:
                if len(of[pair.a.name]) and len(of[pair.b.name]):
                    blocks = [here.block(each, pair) for each in values]
                    found.setdefault((kind, pair.name), []).append(float(split_half(*blocks)))
        step()
    return {key: float(np.mean(values)) for key, values in found.items()}
