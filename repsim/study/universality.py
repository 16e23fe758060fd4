"""Conduct a study: compute from stores of many models how universal their representations are."""

import json
import math
import os
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, nullcontext, suppress
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypedDict, Unpack

import numpy as np
import xarray as xr
from jaxtyping import Int64

from repsim import metrics as registry
from repsim._version import __version__
from repsim.engine.calibration import rates
from repsim.engine.checkpoints import Checkpoints
from repsim.engine.null_moments import CubicMoments, cubic_moments
from repsim.engine.planning import Limits
from repsim.errors import InvalidInputError, Remedy
from repsim.metrics import Metric
from repsim.metrics.cka import CKA
from repsim.metrics.recipes.groups import Groups
from repsim.results.files import save_result
from repsim.runtime.deprecation import warn_deprecated
from repsim.runtime.files import replacing, reserved
from repsim.runtime.hardware import choose_device
from repsim.runtime.heap import limit_heap_fragmentation
from repsim.runtime.memory import memory_to_use
from repsim.runtime.options import accept_options, sort_keywords
from repsim.runtime.processes import ranks
from repsim.runtime.progress import Progress, Steps, counter, report_steps
from repsim.stores.alignment import AlignedView
from repsim.stores.opening import ArraysLike, StoreLike, open_all
from repsim.study import controls as control
from repsim.study import permutation_nulls
from repsim.study.dataset import study_dataset
from repsim.study.design import Design, design
from repsim.study.dimension import effective_dimension
from repsim.study.duplicates import near_duplicates
from repsim.study.estimation import Estimates, estimate, settings_of, splits_for
from repsim.study.evidence import Evidence
from repsim.study.gram_passes import Kernels, kernels
from repsim.study.indices import RAW
from repsim.study.options import METRICS, UniversalityOptions
from repsim.study.other_measures import Setting, measure_all
from repsim.study.planning import StudyPlan, base_memory, measured_pairs, plan_study, shape_of
from repsim.study.units import Sharing

_EQUAL = 1e-9
"""Layers whose debiased CKA is closer to 1 are equal."""
_GROUPS = "groups.json"
_MIN_SAMPLES = 8
"""Smallest number of samples: with fewer, intervals are meaningless."""


class UniversalityKeywords(TypedDict, total=False):
    """Keywords of `universality`, for type checkers. `UniversalityOptions` describes them."""

    families: Mapping[str, Sequence[str]] | None
    family_by: str | None
    readout: str | None
    groups: str | None
    controls: str | None
    controls_folder: str | os.PathLike[str] | None
    data: str | None
    split: str | None
    data_root: str | None
    permutations: int | None
    draws: int
    seed: int
    device: str
    memory: int | str | None
    overwrite: bool


@accept_options(UniversalityOptions, without=("metrics",))
def universality(
    stores: Sequence[StoreLike | ArraysLike] | ArraysLike,
    metrics: str | Sequence[str | Metric[Any]] | None = None,
    *,
    out: str | os.PathLike[str] | None = None,
    progress: Steps | Literal[False] | None = None,
    **keywords: Unpack[UniversalityKeywords],
) -> xr.Dataset:
    """Compute how universal the representations of several networks are, and how much of that is learned.

    Debiased CKA is computed between all layers of all networks, and compared with what makes networks alike without
    learning: their input, the class labels, and the similarity of untrained networks. docs/universality.md describes
    all methods and formulas.

    Parameters
    ----------
    stores : sequence of ActivationStore or path, or dict of models
        Stores over the same samples in the same order, in files or in memory (`repsim.as_store`): of trained models, if
        possible several of each family, and of untrained ones (``repsim extract --weights random --recalibrate``).
    metrics : sequence of str or Metric, optional
        Spec strings, groups (as in `repsim.compare`) or metrics; by default debiased CKA, mutual kNN, the nuclear norm
        (Procrustes), and SVCCA. Debiased CKA is always included.
    out : path, optional
        Save the study to this file, as netCDF (.nc).
    progress : callable, None or False
        Called with the name of each step of the work; returns a function that is called with the number of parts done,
        and of all, or None. By default a notebook shows a bar; False shows nothing.
    {options}

    Returns
    -------
    xarray.Dataset
        The study, as described in docs/study-format.md. ``attrs["summary"]`` and ``attrs["warnings"]`` are JSON lists
        of sentences.

    Raises
    ------
    InvalidInputError
        If there is no trained model, two models have the same name, a family matches no model, a readout is compressed,
        or there are fewer than 8 samples.
    SampleMismatchError
        If the stores have different samples, or another order.

    References
    ----------
    See docs/universality.md.

    Examples
    --------
    >>> import repsim, tempfile
    >>> rng = np.random.default_rng(0)
    >>> shared = rng.normal(size=(100, 5))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     stores = []
    ...     for model in ("net.seed0", "net.seed1", "other.seed0", "other.seed1"):
    ...         own = {f"layer{k}": np.hstack([shared, rng.normal(size=(100, 5))]) for k in range(3)}
    ...         stores.append(repsim.write_store(f"{folder}/{model}.h5", own, model=model))
    ...     study = universality(stores, ["cka"], permutations=99)
    >>> study["index"].sel(measure="cka", pair="net.seed0 x other.seed0").round(1).item()
    0.5
    """
    values = _without_earlier_keywords(dict(keywords))
    progress, command = values.pop("progress", progress), values.pop("command", None)
    set_values = {name: value for name, value in values.items() if value is not None}
    (options,) = sort_keywords("universality", set_values, UniversalityOptions)
    metrics = [metrics] if isinstance(metrics, str) else metrics
    return conduct(stores, UniversalityOptions(**options), metrics=metrics, out=out, steps=progress, command=command)


def conduct(
    stores: Sequence[StoreLike | ArraysLike] | ArraysLike,
    options: UniversalityOptions,
    *,
    metrics: Sequence[str | Metric[Any]] | None = None,
    out: str | os.PathLike[str] | None = None,
    parts: Path | None = None,
    steps: Steps | Literal[False] | None = None,
    command: str | None = None,
) -> xr.Dataset:
    """Conduct a study like `universality`, with checked options.

    Parameters
    ----------
    stores, options, metrics, out, steps
        As in `universality`.
    parts : path, optional
        Folder of finished parts; by default the one beside ``out``.
    command : str, optional
        The command that made the study, which it records.
    """
    with ranks() as me:
        if out is None:
            folder = Path(options.controls_folder or "controls")
            checkpoints = Checkpoints(parts, keep=True)
            with checkpoints.locked(first=me.first):
                return _compute(
                    stores, options, metrics=metrics, folder=folder, sharing=Sharing(checkpoints, me), steps=steps,
                    command=command,
                )  # fmt: skip
        path = Path(out)
        _check_name(path)
        folder = _controls_folder(options, path)
        checkpoints = Checkpoints(parts or path.with_name(f"{path.name}.parts"), keep=True)
        # a study may take hours: no other process computes it at the same time
        saving = reserved(path, overwrite=options.overwrite) if me.first else nullcontext()
        with saving, checkpoints.locked(first=me.first):
            study = _compute(
                stores, options, metrics=metrics, folder=folder, sharing=Sharing(checkpoints, me), steps=steps,
                command=command,
            )  # fmt: skip
            if me.first:
                save_result(study, path, overwrite=options.overwrite)
            me.wait()
        return study


def explain_plan(
    stores: Sequence[StoreLike | ArraysLike] | ArraysLike,
    options: UniversalityOptions,
    *,
    metrics: Sequence[str | Metric[Any]] | None = None,
    out: str | os.PathLike[str] | None = None,
) -> list[str]:
    """Return lines that describe the steps of a study, with their time on this machine and memory; compute nothing.

    Untrained networks that would be extracted are not counted.
    """
    if out is not None:
        _check_name(Path(out))
    checkpoints = Checkpoints(None if out is None else Path(out).with_name(f"{Path(out).name}.parts"))
    device = choose_device(options.device)
    with ExitStack() as stack:
        study = _designed(open_all(stores, stack), options)
        permutations = options.permutations or permutation_nulls.permutations_for(len(study.pairs))
        plan, _, _ = _planned(
            study, _selected(metrics or options.metrics or METRICS), permutations=permutations, device=device,
            memory=memory_to_use(device, options.memory), sharing=Sharing(checkpoints),
        )  # fmt: skip
        first = study.members[0]
        widest = max(first.arrays, key=lambda array: math.prod(first.store[array].shape))
        lines = plan.lines(rates(device, AlignedView(first.store).stream(first.store, widest, device)))
        if options.untrained:
            lines.append(f"not counted: {options.untrained} untrained networks of every architecture, to be extracted")
        return lines


def _check_name(path: Path) -> None:
    if path.suffix != ".nc":  # a typing mistake must not replace a store
        raise InvalidInputError(f"a study is netCDF: name it .nc, not {path.name}")


def _controls_folder(options: UniversalityOptions, path: Path) -> Path:
    return Path(options.controls_folder or path.with_name(f"{path.stem}.controls"))


def _selected(metrics: Sequence[str | Metric[Any]]) -> list[Metric[Any]]:
    selected: list[Metric[Any]] = []
    for metric in metrics:
        selected += [metric] if isinstance(metric, Metric) else registry.select(metric)
    return selected


def _designed(opened: Sequence[Any], options: UniversalityOptions) -> Design:
    study = design(
        opened, families=options.families, family_by=options.family_by, readout=options.readout, groups=options.groups
    )
    if study.n < _MIN_SAMPLES:
        raise InvalidInputError(f"{study.n} samples are too few for a study: it needs at least {_MIN_SAMPLES}")
    return study


def _without_earlier_keywords(keywords: dict[str, Any]) -> dict[str, Any]:
    """Replace keywords of the previous release, with a warning."""
    for old, new, value in (
        ("steps", "progress", lambda steps: steps),
        ("untrained", "controls", lambda count: f"untrained:{count}" if count else None),
        ("folder", "controls_folder", lambda folder: folder),
    ):
        if old in keywords:
            if new in keywords:
                raise TypeError(f"universality() got both {new} and {old}, its earlier name")
            warn_deprecated(f"universality({old}=...)", instead=f"write {new}=...", gone_in="2.0.0")
            keywords[new] = value(keywords.pop(old))
    if "command" in keywords:
        warn_deprecated("universality(command=...)", instead="set study.attrs['command']", gone_in="2.0.0")
    return keywords


def _compute(
    stores: Sequence[StoreLike | ArraysLike] | ArraysLike,
    options: UniversalityOptions,
    *,
    metrics: Sequence[str | Metric[Any]] | None,
    folder: Path,
    sharing: Sharing,
    steps: Steps | Literal[False] | None,
    command: str | None,
) -> xr.Dataset:
    selected = _selected(metrics or options.metrics or METRICS)
    untrained = options.untrained
    device = choose_device(options.device)
    memory = sharing.me.broadcast(memory_to_use(device, options.memory))
    with ExitStack() as stack:
        step = stack.enter_context(report_steps("the study", steps))
        opened = open_all(stores, stack)
        study = _designed(opened, options)
        sharing.me.agree(_facts(study, selected, options, device))
        if untrained:
            # timm and torchvision take 200 MB, which a study of stores does not need
            from repsim.study.untrained_networks import extract_untrained  # noqa: PLC0415

            extracted = extract_untrained(
                study, untrained, folder, data=options.data, split=options.split, data_root=options.data_root,
                device=options.device, progress=step("extracting untrained networks"),
            )  # fmt: skip
            for store in extracted:
                stack.enter_context(store)
            opened_models = {store.model for store in opened}
            opened += [store for store in extracted if store.model not in opened_models]
            study = _designed(opened, options)
            sharing.me.agree(_facts(study, selected, options, device))
        evidence = _collect_evidence(
            study,
            selected,
            permutations=options.permutations or permutation_nulls.permutations_for(len(study.pairs)),
            seed=options.seed,
            device=device,
            memory=memory,
            sharing=sharing,
            steps=step,
        )
        return study_dataset(evidence, draws=options.draws, seed=options.seed, command=command or "")


def _facts(
    study: Design, selected: Sequence[Metric[Any]], options: UniversalityOptions, device: str
) -> dict[str, object]:
    """Return what has to be equal in all processes that share a study, by its name."""
    return {
        "stores": [(store.model, store.checksum) for store in study.stores],
        "metrics": [metric.spec for metric in selected],
        "families or groups of samples": (
            [(member.name, member.family, member.arrays) for member in study.members],
            None if study.groups is None else study.groups.numbers.tolist(),
        ),
        "options": (options.untrained, options.permutations, options.draws, options.seed, device.partition(":")[0]),
        "a version of repsim": __version__,
    }


def _planned(
    study: Design,
    selected: Sequence[Metric[Any]],
    *,
    permutations: int,
    device: str,
    memory: int,
    sharing: Sharing,
    progress: Progress | None = None,
) -> tuple[StudyPlan, list[control.Control], Groups | None]:
    """Return the plan of a study, its controls of the input, and the classes of its samples."""
    limits = Limits(memory, sharing.me.broadcast(base_memory(device)), device)  # before anything is in memory
    controls = control.inputs(study.stores, progress=progress)
    classes = control.classes(study)
    shape = shape_of(
        study, controls=[one.features.shape[1] for one in controls], classes=classes,
        metrics=[metric for metric in selected if metric != CKA()], permutations=permutations,
        splits=splits_for(study.n),
    )  # fmt: skip
    return plan_study(shape, study, limits, _earlier_groups(sharing)), controls, classes


def _collect_evidence(
    study: Design,
    selected: Sequence[Metric[Any]],
    *,
    permutations: int,
    seed: int,
    device: str,
    memory: int,
    sharing: Sharing,
    steps: Steps,
) -> Evidence:
    """Run all passes over the data."""
    limit_heap_fragmentation()
    plan, controls, classes = _planned(
        study, selected, permutations=permutations, device=device, memory=memory, sharing=sharing,
        progress=steps("choosing kernels of the input"),
    )  # fmt: skip
    others = [metric for metric in selected if metric != CKA()]
    _keep_groups(sharing, plan)
    count = sum(len(m.arrays) for m in study.members) + len(controls)
    all_kernels = kernels(
        study, controls, device, classes=classes, keep=plan.kept, me=sharing.me,
        step=counter(count, steps("preparing layers")),
    )  # fmt: skip
    about = settings_of(all_kernels, plan, controls, seed)
    control_names = tuple(one.name for one in controls)
    del controls  # the kernels hold their features
    for member in study.members:
        if not len(all_kernels.positions[member.name]):
            reason = all_kernels.undefined[member.layers[0]]
            raise InvalidInputError(f"{member.store.path}: none of its layers can be compared ({reason}); leave it out")
    estimates = estimate(study, all_kernels, plan, seed=seed, steps=steps, sharing=sharing, settings=about)
    _check_no_copies(estimates)
    indices = estimates.indices
    trained = np.concatenate([all_kernels.positions[member.name] for member in study.trained])
    cubic: tuple[CubicMoments, ...] = ()
    if estimates.cubes is not None and estimates.row_squares is not None:
        sums = estimates.cubes[trained], estimates.row_squares[:, trained]
        cubic = tuple(cubic_moments([all_kernels.grams[k] for k in trained], *sums))
    dimensions = {
        all_kernels.names[k]: effective_dimension(all_kernels.grams[k], float(estimates.squares[k]))
        for k in indices.layers.tolist()
    }

    notes: list[str] = []
    draw = partial(_permutations, count=permutations, seed=seed, notes=notes)
    parts = permutation_nulls.reduced(all_kernels, study, plan.blocks, plan.available, about)
    null = permutation_nulls.cka_nulls(
        parts, indices.kernels, draw, name=lambda part: f"{permutations} {part.identity}",
        sharing=sharing, progress=steps("permuting samples"),
    )  # fmt: skip
    within: dict[tuple[str, str], permutation_nulls.Null] = {}
    if classes is not None and study.pairs:
        within = permutation_nulls.cka_nulls(
            parts, indices.kernels, partial(draw, classes=classes.numbers.numpy()),
            name=lambda part: f"within classes {permutations} {part.identity}",
            sharing=sharing, progress=steps("permuting samples within classes"),
        )  # fmt: skip
    del parts
    setting = Setting(
        measured_pairs(study), study.pairs, draw(all_kernels, np.arange(study.n)), device=device, seed=seed,
        groups=study.groups, sharing=sharing, available=plan.available,
    )  # fmt: skip
    results = measure_all(others, setting, steps)
    measures = [results[metric.spec] for metric in others]
    return Evidence(
        design=study, kernels=all_kernels, estimates=estimates, moments=cubic, dimensions=dimensions, nulls=null,
        within_classes=within, measures=tuple(measures), permutations=permutations,
        controls=control_names,
        duplicates=near_duplicates(study, device, steps("looking for near duplicates")), notes=tuple(notes),
    )  # fmt: skip


def _earlier_groups(sharing: Sharing) -> list[list[str]]:
    """Return the names of the models of the groups of an earlier run that is beside the study."""
    groups: list[list[str]] = []
    if sharing.me.first and sharing.checkpoints.folder is not None:
        with suppress(OSError, ValueError, TypeError, KeyError):
            groups = json.loads((sharing.checkpoints.folder / _GROUPS).read_text())["groups"]
    return sharing.me.broadcast(groups)


def _keep_groups(sharing: Sharing, plan: StudyPlan) -> None:
    """Write the groups beside the finished parts, so that a study that grows is divided in the same way."""
    if sharing.me.first and sharing.checkpoints.folder is not None:
        names = [[member.name for member in group] for group in plan.groups]
        with replacing(sharing.checkpoints.folder / _GROUPS, overwrite=True) as partial_file:
            partial_file.write_text(json.dumps({"groups": names}), encoding="utf-8")


def _check_no_copies(estimates: Estimates) -> None:
    """Refuse a network that is in the study twice, under two names: it would count as two networks."""
    similarities = estimates.indices.similarities(estimates.matrices, RAW)
    for pair in estimates.indices.pairs:
        block = estimates.indices.block(similarities, pair)
        if block.shape[0] == block.shape[1] and (np.diagonal(block) > 1 - _EQUAL).all():
            a, b = pair.a.store.path, pair.b.store.path
            raise InvalidInputError(
                f"{a} and {b} hold the same network: all of their layers are equal; a study takes every network once",
                remedy=Remedy("leave out one of them"),
            )


def _permutations(
    kernels: Kernels,
    samples: Int64[np.ndarray, " n"],
    *,
    count: int,
    seed: int,
    notes: list[str],
    classes: Int64[np.ndarray, " all"] | None = None,
) -> Int64[np.ndarray, "count n"]:
    """Draw permutations of samples, or of whole groups; none, with a note, if too few rearrangements exist."""
    try:
        return kernels.permutations(count, seed, None if classes is None else classes[samples])
    except InvalidInputError as error:
        note = f"samples are not permuted{'' if classes is None else ' within classes'}: {error.problem}"
        if note not in notes:
            notes.append(note)
        return np.zeros((0, kernels.n), np.int64)
