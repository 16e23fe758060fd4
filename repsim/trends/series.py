"""Compare models along an axis: `repsim.series`."""

import os
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, nullcontext
from pathlib import Path
from typing import Any, Literal, TypedDict, Unpack

import numpy as np
import xarray as xr

from repsim import metrics as registry
from repsim.engine.checkpoints import Checkpoints
from repsim.errors import Argument, InvalidInputError, Remedy
from repsim.metrics import Metric
from repsim.results.files import save_result
from repsim.runtime.files import reserved
from repsim.runtime.hardware import choose_device
from repsim.runtime.memory import memory_to_use
from repsim.runtime.options import accept_options, sort_keywords
from repsim.runtime.processes import Ranks, ranks
from repsim.runtime.progress import Steps, report_steps
from repsim.stores.alignment import align
from repsim.stores.axes import Axes
from repsim.stores.axes_files import read_axes
from repsim.stores.opening import StoreLike, open_all
from repsim.stores.pairing import Pairing
from repsim.stores.store import same_weights
from repsim.study import controls
from repsim.study.sample_groups import groups_of
from repsim.trends.all_points import every_point
from repsim.trends.arrangement import TIME_AXES, Arrangement, arrange
from repsim.trends.dataset import Finished, selected_metrics, series_dataset
from repsim.trends.options import METRICS, SeriesOptions
from repsim.trends.records import records
from repsim.trends.trend import Scale
from repsim.trends.work import Work

_MIN_SAMPLES = 8
"""Smallest number of samples: with fewer, intervals are meaningless."""


class SeriesKeywords(TypedDict, total=False):
    """Keywords of `series`, for type checkers. `SeriesOptions` describes them."""

    axis: str
    reference: str
    run: str | None
    points: Literal["states", "networks"] | None
    scale: Literal["linear", "log"] | None
    settled_at: float
    axes_file: str | os.PathLike[str] | None
    readout: str | None
    groups: str | None
    pair_by: Literal["id"] | None
    all_pairs: bool
    seed: int
    device: str
    memory: int | str | None
    overwrite: bool


@accept_options(SeriesOptions, without=("metrics",))
def series(
    stores: Sequence[StoreLike],
    metrics: str | Sequence[str | Metric[Any]] | None = None,
    *,
    out: str | os.PathLike[str] | None = None,
    progress: Steps | Literal[False] | None = None,
    **keywords: Unpack[SeriesKeywords],
) -> xr.Dataset:
    """Compare models along an axis, such as the checkpoints of a run or networks of growing width.

    Each model is compared with a reference, with the model before it in its run, and with the models of other runs at
    the same place: matching layers with intervals, all layers with all layers, and each network with itself. Trends,
    speeds, and the places at which layers have settled follow. docs/series.md describes methods and formulas.

    With ``out``, finished pairs of models are kept in a folder NAME.nc.parts, also after the end: an interrupted call
    is resumed by the same call, and a call with one more model, measure or reference computes only what is new. The
    result is equal to the bit to that of one call. Without the folder everything is computed again. Under torchrun
    every process makes the same call, and the processes share the work.

    Parameters
    ----------
    stores : sequence of ActivationStore or path
        Stores over the same samples in the same order, unless ``pair_by`` pairs them. Their ``axes`` say where they
        stand.
    metrics : sequence of str or Metric, optional
        Spec strings, groups (as in `repsim.compare`) or metrics beside debiased CKA. They have no interval over
        samples.
    out : path, optional
        Save the series to this file, as netCDF (.nc).
    progress : callable, None or False
        Called with the name of each step of the work; returns a function that is called with the number of parts done,
        and of all, or None. By default a notebook shows a bar; False shows nothing.
    {options}

    Returns
    -------
    xarray.Dataset
        The series, as described in docs/series-format.md. ``attrs["summary"]`` and ``attrs["warnings"]`` are JSON lists
        of sentences.

    Raises
    ------
    InvalidInputError
        If no store has the axis, or one lacks it; a value is a text; there are fewer than two places; two models of a
        run stand at one place; models of some runs do not say which; or there are fewer than 8 samples.
    SampleMismatchError
        If the stores have different samples, or another order, unless ``pair_by`` pairs them.
    OutputError
        If ``out`` exists and may not be replaced, or another process is writing it.

    References
    ----------
    Raghu, Gilmer, Yosinski, Sohl-Dickstein. SVCCA. NeurIPS 2017 (convergence along training).
    Nguyen, Raghu, Kornblith. Do wide and deep networks learn the same things? ICLR 2021 (width and depth).

    Examples
    --------
    >>> import repsim, tempfile
    >>> rng = np.random.default_rng(0)
    >>> final, noise = rng.normal(size=(2, 100, 8))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     stores = [
    ...         repsim.write_store(f"{folder}/{step}.h5", {"out": final + noise / (1 + step)}, model=f"step {step}",
    ...                            axes={"step": step})
    ...         for step in (0, 1, 3, 9)
    ...     ]
    ...     result = series(stores)
    >>> result["network"].sel(measure="cka", comparison="reference").round(2).values.tolist()
    [0.64, 0.89, 0.98, 1.0]
    """
    values: dict[str, Any] = dict(keywords)
    if isinstance(values.get("axes_file"), os.PathLike):
        values["axes_file"] = os.fspath(values["axes_file"])
    (options,) = sort_keywords("series", {k: v for k, v in values.items() if v is not None}, SeriesOptions)
    metrics = [metrics] if isinstance(metrics, str) else metrics
    return conduct(stores, SeriesOptions(**options), metrics=metrics, out=out, steps=progress)


def conduct(
    stores: Sequence[StoreLike],
    options: SeriesOptions,
    *,
    metrics: Sequence[str | Metric[Any]] | None = None,
    out: str | os.PathLike[str] | None = None,
    steps: Steps | Literal[False] | None = None,
    command: str | None = None,
) -> xr.Dataset:
    """Compute a series like `series`, with checked options; ``command`` is recorded as its origin."""
    with ranks() as me:
        if out is None:
            return _compute(stores, options, metrics, checkpoints=Checkpoints(), me=me, steps=steps, command=command)
        path = Path(out)
        if path.suffix != ".nc":  # a typing mistake must not replace a store
            raise InvalidInputError(f"a series is netCDF: name it .nc, not {path.name}")
        checkpoints = Checkpoints(path.with_name(f"{path.name}.parts"), keep=True)
        saving = reserved(path, overwrite=options.overwrite) if me.first else nullcontext()
        with saving, checkpoints.locked(first=me.first):
            result = _compute(stores, options, metrics, checkpoints=checkpoints, me=me, steps=steps, command=command)
            if me.first:
                save_result(result, path, overwrite=options.overwrite)
            me.wait()
        return result


def _compute(
    stores: Sequence[StoreLike],
    options: SeriesOptions,
    metrics: Sequence[str | Metric[Any]] | None,
    *,
    checkpoints: Checkpoints,
    me: Ranks,
    steps: Steps | Literal[False] | None,
    command: str | None,
) -> xr.Dataset:
    selected: list[Metric[Any]] = []
    for metric in metrics or options.metrics or METRICS:
        selected += [metric] if isinstance(metric, Metric) else registry.select(metric)
    with ExitStack() as stack:
        step = stack.enter_context(report_steps("the series", steps))
        opened = open_all(stores, stack)
        if not opened:
            raise InvalidInputError("name at least two stores")
        stated = {} if options.axes_file is None else read_axes(options.axes_file)
        arranged = arrange(
            opened, options.axis, run=options.run, reference=options.reference, readout=options.readout, axes=stated
        )
        view = align(list(dict.fromkeys(opened)), options.pair_by)
        n = len(view.sample_ids)
        if n < _MIN_SAMPLES:
            raise InvalidInputError(f"{n} samples are too few for a series: it needs at least {_MIN_SAMPLES}")
        groups = groups_of(opened, options.groups, view)
        others, notes = selected_metrics(selected, n)
        device = choose_device(options.device)
        work = Work(
            arranged.everything, view, tuple(others), tuple(controls.inputs(opened, view)), groups, device,
            me.broadcast(memory_to_use(device, options.memory)),
        )  # fmt: skip
        me.agree(_facts(arranged, work, options))
        scale = _scale(arranged, options)
        of_pairs = records(work, arranged.pairs(), checkpoints=checkpoints, me=me, steps=step)
        scale = _scale(arranged, options)
        states = options.axis in TIME_AXES if options.points is None else options.points == "states"
        of_all = None
        if options.all_pairs:
            of_all = every_point(work, len(arranged.points), checkpoints=checkpoints, me=me, steps=step)
        warnings = (*view.notes, *notes, *_notes(arranged, options, stated), *_same_weights(arranged, view.pairing))
        finished = Finished(arranged, of_pairs, work, options, scale, states, warnings, of_all)
        return series_dataset(finished, command or "")


def _facts(arranged: Arrangement, work: Work, options: SeriesOptions) -> dict[str, object]:
    """Return what has to be equal in all processes that share a series, by its name."""
    return {
        "stores": [(point.name, point.checksum) for point in arranged.everything],
        "metrics": [metric.spec for metric in work.metrics],
        "options": ([work.name("cka", pair) for pair in arranged.pairs()], options.all_pairs),
    }


def _scale(arranged: Arrangement, options: SeriesOptions) -> Scale:
    """Return the scale of the axis; refuse logarithms of negative values."""
    if options.scale == "log" and min(arranged.values) < 0:
        raise InvalidInputError(
            f"the axis {arranged.axis} has values below 0, the least {min(arranged.values):g}, which have no logarithm",
            remedy=Remedy("use ", Argument("scale", "linear")),
        )
    return Scale.of(np.array(arranged.values)) if options.scale is None else Scale(options.scale == "log")


def _notes(arranged: Arrangement, options: SeriesOptions, stated: Mapping[str, Axes]) -> list[str]:
    """Return what was picked among several readouts, and lines of the table of axes that are about no model."""
    notes = []
    models = {point.name for point in arranged.everything}
    if unused := [name for name in stated if name not in models]:
        notes.append(f"{len(unused)} models of {options.axes_file} are not among the stores, the first {unused[0]}")
    store, readout = arranged.points[0].store, arranged.points[0].readout
    others = {store[name].key.readout for name in store.layers} - {readout}
    if options.readout is None and others:
        notes.append(
            f"stores hold several readouts; compared is {readout}, the first, and not {', '.join(sorted(others))}"
        )
    return notes


def _same_weights(arranged: Arrangement, pairing: Pairing | None) -> list[str]:
    """Return a warning if models at different places hold the same weights, and have seen the same samples."""
    if pairing is not None and pairing.other_contents != 0:
        return []
    return [
        f"{' and '.join(names)} hold the same weights, at different places on the axis"
        for names in same_weights(point.store for point in arranged.everything)
    ]
