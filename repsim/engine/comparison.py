"""Compare all pairs of layers of two or more stores."""

import dataclasses
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, Self, TypedDict, Unpack, overload

import torch
import xarray as xr
from torch import Tensor

from repsim import metrics as registry
from repsim._version import __version__
from repsim.engine.calibration import rates
from repsim.engine.checkpoints import Checkpoints, compute_sweep
from repsim.engine.intervals import Estimate, estimate, level_of
from repsim.engine.layer_intervals import Intervals
from repsim.engine.options import CompareOptions
from repsim.engine.pair_matrix import Layer, Matrix
from repsim.engine.planning import Limits, Meter, Plan, Stage, plan, with_intervals, with_widths
from repsim.engine.preparation import Source, prepare
from repsim.engine.resampling import leaves_one_out
from repsim.errors import Argument, InvalidInputError, Remedy, TooLittleMemoryError
from repsim.metrics import Metric
from repsim.metrics.algorithms.feature_space import MomentSweep
from repsim.metrics.algorithms.gram_space import GramSweep
from repsim.metrics.algorithms.pair_by_pair import PairSweep
from repsim.metrics.algorithms.sweep import Sweep
from repsim.metrics.base import GramMetric
from repsim.metrics.recipes.base import MomentFactor
from repsim.metrics.recipes.cost import NOMINAL, Cost
from repsim.metrics.recipes.groups import GroupsLike
from repsim.metrics.recipes.rows import Rows
from repsim.results.files import open_result, save_result
from repsim.runtime.deprecation import warn_deprecated
from repsim.runtime.events import Note, UpToDate, log_notes
from repsim.runtime.files import format_duration, format_size, reserved
from repsim.runtime.hardware import choose_device
from repsim.runtime.heap import limit_heap_fragmentation, release_free_heap
from repsim.runtime.memory import memory_now, memory_peak, memory_to_use
from repsim.runtime.options import accept_options, sort_keywords
from repsim.runtime.processes import ALONE, Ranks, ranks
from repsim.runtime.progress import Listener, Progress, report_progress
from repsim.stores.alignment import align
from repsim.stores.in_memory import StoreInMemory
from repsim.stores.opening import ArraysLike, Ids, StoreLike, as_one_store, as_stores, is_one_store
from repsim.stores.pairing import PairBy
from repsim.stores.store import ActivationStore, open_store, store_path

_LONG_SECONDS = 5.0
"""Nominal time of a comparison from which the rates of the machine, measured in less than a second, are worth it."""
_GROUPS_OF_INTERVALS = "groups are those of an interval"
_ADD_INTERVAL = Remedy("add ", Argument("interval", value=True))
_STEP = 2**26
"""Bytes to which the memory of the process before the comparison is rounded up."""


@overload
def similarity(x: Any, y: Any, metric: str | Metric[Any] = "cka") -> float: ...
@overload
def similarity(
    x: Any, y: Any, metric: str | Metric[Any] = "cka", *, interval: float, groups: GroupsLike | None = None
) -> Estimate: ...
def similarity(
    x: Any,
    y: Any,
    metric: str | Metric[Any] = "cka",
    *,
    interval: float | None = None,
    groups: GroupsLike | None = None,
) -> float | Estimate:
    """Compare two representations of the same samples.

    With ``interval``, debiased CKA has a confidence interval over samples, a jackknife: with theta the value, and
    theta_(-i) the value without sample i, exactly (`repsim.leave_one_out`),

        theta +- t se,    se^2 = (n - 1) / n sum_i (theta_(-i) - mean theta_(-i))^2,

    with t the quantile of Student's t with n - 1 degrees of freedom. There is no bootstrap: samples that are drawn
    twice are similar to themselves in every network, which increases the similarity (docs/intervals.md).

    Parameters
    ----------
    x, y : array-like of shape (n, p) and (n, q)
        Arrays of numpy, torch, jax, pandas or xarray. The rows are the same samples in the same order. If both arrays
        have row names (the index of a data frame), these have to be equal.
    metric : str or Metric
        A spec string such as ``cka``, ``cka:kernel=rbf`` or ``svcca:variance=0.95``, or a `Metric`.
    interval : float or True, optional
        Level of the interval, such as 0.95, which is also that of True; by default there is no interval. For debiased
        CKA: ``cka``, or ``cka:kernel=rbf`` with any width.
    groups : sequence of n int or str, optional
        Group of each sample, for an interval of samples that are not independent, such as the frames of a scene. CKA is
        then computed from pairs of samples of different groups, and whole groups are left out.

    Returns
    -------
    float, or Estimate
        The value. ``repsim.metrics.get(metric)`` describes its range, and whether it increases or decreases with
        similarity. If x or y is a tensor that requires a gradient, the value is a tensor with a gradient. With
        ``interval``, an object with ``value``, the ends ``low`` and ``high``, which may lie outside the range of the
        value, ``level``, the standard error ``se``, the number ``n`` of samples, and the number of ``groups`` or None;
        its value has no gradient.

    Raises
    ------
    InvalidInputError
        If shapes do not match, there are too few samples, values are NaN or infinite, arrays are masked, sparse, or
        hold objects, text or dates, or row names differ. With ``interval``: if the measure is another one, or there are
        fewer than 5 samples or groups.
    UndefinedValueError
        If the value is undefined: one layer is constant, for example.

    References
    ----------
    Efron, Stein. The jackknife estimate of variance. Annals of Statistics 1981.

    Examples
    --------
    >>> import numpy as np
    >>> x = np.random.default_rng(0).normal(size=(50, 8))
    >>> round(similarity(x, 3 * x[:, ::-1] + 1), 6)
    1.0
    >>> print(similarity(x, x[:, :4], interval=0.95))
    0.654 (95 % interval 0.520 to 0.788, 50 samples)
    """
    level = level_of(interval)
    if level is not None:
        return estimate(x, y, metric, level=level, groups=groups)
    if groups is not None:
        raise InvalidInputError(_GROUPS_OF_INTERVALS, remedy=_ADD_INTERVAL)
    value: float = _metric(metric)(x, y)
    return value


class CompareKeywords(TypedDict, total=False):
    """Keywords of `compare`, for type checkers; `CompareOptions` describes them."""

    readouts: Sequence[str]
    pair_by: PairBy | None
    memory: int | str | None
    device: str
    interval: bool | float
    groups: Any
    tf32: bool
    explain: bool
    overwrite: bool


@accept_options(CompareOptions, without=("metrics",))
def compare(
    a: StoreLike | ArraysLike | Sequence[StoreLike | ArraysLike],
    b: StoreLike | ArraysLike | None = None,
    metrics: str | Sequence[str | Metric[Any]] | None = None,
    *,
    ids: Ids | None = None,
    out: str | os.PathLike[str] | None = None,
    progress: Listener = None,
    **keywords: Unpack[CompareKeywords],
) -> xr.Dataset:
    """Compare every layer of one store with every layer of another, or all layers of many stores with one another.

    Arrays in memory need no store: dictionaries of layers stand for stores, and are read in place.

    With ``out``, an interrupted call is resumed by the same call, and an existing result is extended: only what is new
    (further stores, further metrics) is computed and added. Under torchrun every process makes the same call; the
    processes share the work, and each returns the result. Notes are logged to ``logging.getLogger("repsim")``.

    Parameters
    ----------
    a, b : ActivationStore, path or dict of arrays, or (a alone) a list of them
        Two stores, or their files, over the same samples in the same order, unless ``pair_by`` pairs them: the result
        has the layers of a by the layers of b. A single store is compared with itself. A list of stores gives the
        matrix of all layers of all models. A dictionary of layers, ``{"layer1": x, ...}``, is a store of arrays in
        memory (n, ...): of numpy, torch (on any device), jax, pandas or xarray, as `repsim.as_store` takes them; its
        model is called ``a`` or ``b``. A dictionary of models, ``{"net": {"layer1": x, ...}, ...}``, is a list of
        stores, and may also be an entry of a list beside stores. Maps (n, channels, height, width) are flattened.
    metrics : str, or sequence of str or Metric, optional
        Spec strings or metrics; each becomes one variable of the result. The default is ``cka``, or the metrics of the
        result in ``out``. ``all`` or the name of a group (``alignment``, ``rsm``, ``neighbours``, ``group:cca``,
        ``statistics``, ``topology``) stands for all measures of the group; ``all`` excludes topology, where one pair
        may take minutes. Measures of a group that cannot be computed are left out, and the result says why.
    ids : iterable of str or int, optional
        Ids of the samples of all arrays in memory, which have to be those of the stores beside them. By default the row
        names of data frames, or else numbers: row k of every array is then taken as the same sample. The provenance in
        the result says which (``sample_ids``).
    out : path, optional
        Save the result to this netCDF file (.nc). Until it is complete, finished parts are kept beside it, in
        NAME.nc.parts.
    progress : callable or False, optional
        Called with the percentage of the predicted work that is done, and with 100. By default a notebook shows a bar;
        False shows nothing.
    {options}

    Returns
    -------
    xarray.Dataset
        One variable for each metric, named by its spec, with dimensions (layer_a, layer_b). A value is NaN only if it
        is undefined; the attribute ``undefined`` of the variable gives the reasons, and ``cautions`` names values that
        are unreliable. For a list of stores, layers are named ``model/layer``.

    Raises
    ------
    SampleMismatchError
        If the stores hold different samples, or the same samples in a different order, unless ``pair_by`` pairs them.
    InvalidInputError
        If a list of pairs names an unknown sample or a sample twice, there are too few samples, activations are NaN or
        infinite, two models have one name, or a store lacks a readout.
    TooLittleMemoryError
        If not even the smallest plan fits into the memory.
    StoreError
        If a file cannot be read.
    UndefinedValueError
        If no pair of layers has a value.
    OutputError
        If ``out`` cannot be written, or another process is writing it.

    Examples
    --------
    >>> import tempfile
    >>> import numpy as np
    >>> import repsim
    >>> x = np.random.default_rng(0).normal(size=(50, 8))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     a = repsim.write_store(f"{folder}/a.h5", {"in": x, "out": x[:, :4]}, model="a")
    ...     b = repsim.write_store(f"{folder}/b.h5", {"all": 2 * x}, model="b")
    ...     compare(a, b)["cka"].sel(layer_a="in").round(6).item()
    ...     result = compare([a, b], out=f"{folder}/result.nc")
    ...     sorted(compare([a, b], metrics=["cka", "svcca"], out=f"{folder}/result.nc"))  # only svcca is computed
    1.0
    ['cka', 'svcca']

    Arrays in memory:

    >>> compare({"net": {"in": x, "out": x[:, :4]}, "other": {"all": 2 * x}})["cka"].round(2).values.tolist()
    [[1.0, 0.65, 1.0], [0.65, 1.0, 0.65], [1.0, 0.65, 1.0]]
    >>> compare({"in": x}, {"all": 2 * x})["cka"].round(6).item()
    1.0
    """
    values: dict[str, Any] = dict(keywords)
    deprecated = {name: values.pop(name) for name in _DEPRECATED_KEYWORDS if name in values}
    for name in deprecated:
        warn_deprecated(f"compare({name}=...)", instead=_DEPRECATED_KEYWORDS[name], gone_in="2.0.0")
    if isinstance(values.get("readouts"), str):
        values["readouts"] = [values["readouts"]]
    (options,) = sort_keywords("compare", values, CompareOptions)
    selected = [metrics] if isinstance(metrics, str) else metrics
    steps = compare_steps(
        a, b, selected, CompareOptions(**options), ids=ids, out=None if out is None else Path(out), progress=progress,
        command=deprecated.get("command"), earlier_result=deprecated.get("known"), parts=deprecated.get("parts"),
    )  # fmt: skip
    compared: Compared
    *_, compared = log_notes(steps)
    return compared.result


@dataclass(frozen=True)
class Compared:
    """Result of a comparison, and whether it was saved."""

    result: xr.Dataset
    saved: bool
    """Whether the result was saved; a result that was already complete is not saved again."""


def compare_steps(
    a: StoreLike | ArraysLike | Sequence[StoreLike | ArraysLike],
    b: StoreLike | ArraysLike | None,
    metrics: Sequence[str | Metric[Any]] | None,
    options: CompareOptions,
    *,
    ids: Ids | None = None,
    out: Path | None = None,
    dry_run: bool = False,
    progress: Listener = None,
    command: str | None = None,
    earlier_result: xr.Dataset | None = None,
    parts: str | os.PathLike[str] | None = None,
) -> Iterator[Note | UpToDate | Compared]:
    """Compare as `compare` does; yield notes during the work, and the result at the end.

    Under torchrun each process computes its share, and only the first yields notes.

    Parameters
    ----------
    a, b, metrics, ids, out, progress
        As in `compare`.
    options : CompareOptions
        The remaining options of `compare`.
    dry_run : bool
        Whether to explain the plan without computing anything.
    command : str, optional
        The command that made the result, which the result records.
    earlier_result : xarray.Dataset, optional
        An earlier result to extend; by default that of ``out``.
    parts : path, optional
        The folder for finished parts; by default the one beside ``out``.
    """
    if out is not None and out.suffix != ".nc":  # also prevents replacing a store by mistake
        raise InvalidInputError(f"a result is netCDF: name it .nc, not {out.name}")
    with ranks() as me, ExitStack() as stack:
        if out is not None and me.first and not dry_run:
            # from here on, so that of two runs that extend a result neither loses what the other adds
            stack.enter_context(reserved(out, overwrite=True))
        grows = me.broadcast(out is not None and out.exists() and not options.overwrite)
        if out is not None:
            earlier_result = open_result(out) if grows else earlier_result
            parts = out.with_name(f"{out.name}.parts")
        with Comparison(
            a, b, metrics, device=options.device, memory=options.memory, tf32=options.tf32, readouts=options.readouts,
            pair_by=options.pair_by, ids=ids, interval=options.interval, groups=options.groups,
            earlier_result=earlier_result, me=me,
        ) as planned:  # fmt: skip
            notes = [f"note: {note}" for note in planned.notes]
            if options.explain or dry_run:
                notes += planned.explanation() if me.first else []
            if not dry_run and parts is not None and (done := len(list(Path(parts).glob("*.part")))):
                notes.append(f"resuming with {done} parts of an interrupted run in {parts}")
            if me.first:
                yield from map(Note, notes)
            if dry_run:
                return
            saved = out is not None and (not grows or bool(planned.plan.stages))
            start = time.perf_counter()
            with report_progress("comparing", progress) as advance:
                save = partial(save_result, path=out, overwrite=options.overwrite or grows) if out and saved else None
                result = planned.run(parts=parts, progress=advance, command=command, save=save)
            me.wait()  # until the first process has saved the result
            if options.explain and me.first:
                elapsed = format_duration(time.perf_counter() - start)
                yield Note(f"took: {elapsed}, {format_size(memory_peak())} of memory at most")
        if out is not None and not saved and me.first:
            yield UpToDate(out, "holds all of this already")
        yield Compared(result, saved)


_DEPRECATED_KEYWORDS = {
    "known": "write out=, the file of the result to extend",
    "parts": "write out=, beside which parts are kept",
    "command": "set result.attrs['command']",
    "me": "leave it out: the processes of torchrun are found automatically",
}


class Comparison:
    """Comparison that is planned but not yet computed, as a context manager.

    ``repsim compare --dry-run`` shows the plan (`explanation`); `run` computes it.

    Parameters
    ----------
    a, b, metrics, device, memory, tf32, readouts, pair_by, ids, interval, groups
        As in `compare`.
    earlier_result : xarray.Dataset, optional
        An earlier result over some of the same stores, whose values are copied; only the rest is computed.
    me : Ranks
        This process among those that share the work.
    """

    def __init__(
        self,
        a: StoreLike | ArraysLike | Sequence[StoreLike | ArraysLike],
        b: StoreLike | ArraysLike | None = None,
        metrics: Sequence[str | Metric[Any]] | None = None,
        *,
        device: str = "auto",
        memory: int | str | None = None,
        tf32: bool = False,
        readouts: Sequence[str] = (),
        pair_by: PairBy | None = None,
        ids: Ids | None = None,
        interval: bool | float | None = None,
        groups: Any = None,
        earlier_result: xr.Dataset | None = None,
        me: Ranks = ALONE,
    ) -> None:
        level = level_of(interval)
        if level is None and groups is not None and _level_of(earlier_result) is None:
            raise InvalidInputError(_GROUPS_OF_INTERVALS, remedy=_ADD_INTERVAL)
        self.device, self.tf32, self.me = choose_device(device), tf32, me
        self._was_tf32 = False
        if metrics is None:
            metrics = ["cka"] if earlier_result is None else []
        elif not metrics:
            raise InvalidInputError("name at least one metric")
        self.metrics, self.optional = _select_metrics(metrics)
        with ExitStack() as stack:
            stores_a, stores_b = _open(a, b, ids, stack)
            if ids is not None and not any(isinstance(s, StoreInMemory) for s in (*stores_a, *stores_b)):
                raise InvalidInputError("ids are those of arrays in memory; stores in files have their own")
            self.view = align([*dict.fromkeys((*stores_a, *stores_b))], pair_by)
            self.matrix = Matrix(stores_a, stores_b, self.view, readouts)
            self._drop_metrics_without_enough_samples()
            if (wanted := level or _level_of(earlier_result)) is not None:
                distinct = [*dict.fromkeys((*stores_a, *stores_b))]
                self.matrix.intervals = Intervals.of(wanted, distinct, self.view, groups)
            if earlier_result is not None:
                self.metrics = self.matrix.add_earlier_result(earlier_result, self.metrics)
                self._was_tf32 = bool(earlier_result.attrs.get("tf32"))
            if level is not None and self.matrix.intervals is not None:
                self.matrix.intervals.check(self.metrics)
            limits = Limits(memory_to_use(self.device, memory), self._base_memory(), self.device)
            self.plan = self._make_plan(me.broadcast(limits))  # the same plan in every process
            me.agree(self._facts(earlier_result))
            self._stack = stack.pop_all()

    def _drop_metrics_without_enough_samples(self) -> None:
        """Drop metrics of a group that need more samples; those named one by one raise an error later."""
        for metric in self.metrics:
            if metric.spec in self.optional and metric.min_samples > self.matrix.n:
                self.matrix.left_out.append(f"{metric.spec}: needs at least {metric.min_samples} samples")
        self.metrics = [m for m in self.metrics if m.spec not in self.optional or m.min_samples <= self.matrix.n]
        if self.matrix.left_out and not self.metrics:
            raise InvalidInputError(f"{self.matrix.n} samples are too few; {self.matrix.left_out[0]}")

    def _make_plan(self, limits: Limits) -> Plan:
        """Plan the missing values; drop metrics of a group that do not fit into the memory."""
        n = self.matrix.n
        while True:
            jobs = self.matrix.missing(self.metrics)
            try:
                stages = [stage for job in jobs for stage in plan(*job[:2], n, job[2], limits).stages]
                return Plan(n, limits, tuple(self._with_intervals(stage, limits) for stage in stages))
            except TooLittleMemoryError as error:
                if not set(error.metrics) <= self.optional or len(error.metrics) == len(self.metrics):
                    raise
                self.matrix.left_out.append(error.problem)
                self.metrics = [metric for metric in self.metrics if metric.spec not in error.metrics]

    def _with_intervals(self, stage: Stage, limits: Limits) -> Stage:
        measures = sum(self._has_interval(stage, metric) for metric in stage.metrics)
        if not measures or (intervals := self.matrix.intervals) is None:
            return stage
        groups = None if intervals.groups is None else intervals.groups.count
        return with_intervals(stage, self.matrix.n, limits, measures, groups)

    def _has_interval(self, stage: Stage, metric: Metric[Any]) -> bool:
        return self.matrix.intervals is not None and stage.form != "grams" and leaves_one_out(metric)

    @property
    def notes(self) -> list[str]:
        """Notes on the samples: how they were paired or checked, and their groups."""
        return [*self.view.notes, *(self.matrix.intervals.notes if self.matrix.intervals is not None else ())]

    def _facts(self, earlier_result: xr.Dataset | None) -> dict[str, object]:
        """Return what has to be equal in all processes that share the comparison, by its name."""
        return {
            "stores": [self.matrix.identity(layer.shape.name) for layer in self.matrix.layers],
            "samples": self.view.fingerprint,
            "metrics": [metric.spec for metric in self.metrics],
            "options": (self._device_type, self.tf32),
            "intervals": None if (of := self.matrix.intervals) is None else (of.level, of.record),
            "an earlier result": None if earlier_result is None else earlier_result.attrs.get("created"),
            "a plan": [
                (
                    stage.algorithm,
                    stage.form,
                    stage.panel,
                    stage.tile,
                    stage.chunk,
                    stage.room,
                    stage.group,
                    stage.kept,
                    *([layer.name for layer in side] for side in (stage.rows, stage.columns)),
                )
                for stage in self.plan.stages
            ],
            "a version of repsim": __version__,
        }

    def _base_memory(self) -> int:
        """Return the memory of the process before the comparison in bytes; 0 on a GPU, whose memory is separate.

        It is rounded up to large steps, because it differs slightly between runs, and the same command should always
        make the same plan.
        """
        return 0 if self.device.startswith("cuda") else -(-memory_now() // _STEP) * _STEP

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def rates(self) -> Cost:
        """Measure the rates of this machine, reading one of the layers, to predict the time of the plan."""
        streams = (layer for layer in self.matrix.layers if layer.key.form == "features")
        first = max(streams, key=lambda layer: layer.shape.p, default=None)
        return rates(self.device, None if first is None else self.view.stream(first.store, first.array, self.device))

    def explanation(self) -> list[str]:
        """Return lines that describe the plan, and its predicted time and memory on this machine."""
        if not self.plan.stages:
            return [*self.plan.lines(), "nothing is left to compute"]
        speed = self.rates()
        predicted = (
            f"predicted: {format_duration(self.plan.seconds(speed))}, {format_size(self.plan.memory)} of memory "
            f"at most (allowed: {format_size(self.plan.limits.memory)}), at {speed.flop32 / 1e9:,.0f} GFLOP/s in "
            f"float32 and {format_size(speed.read)}/s from the stores"
        )
        return [*self.plan.lines(), predicted]

    def run(
        self,
        *,
        parts: str | os.PathLike[str] | None = None,
        progress: Progress | None = None,
        command: str | None = None,
        save: Callable[[xr.Dataset], None] | None = None,
    ) -> xr.Dataset:
        """Compute the comparison.

        Parameters
        ----------
        parts : path, optional
            The folder in which finished parts are kept until the result is complete.
        progress : callable, optional
            Called with the percentage that is done, and with 100.
        command : str, optional
            The command that made the result, which the result records.
        save : callable, optional
            Called with the result in the first process, before the parts are removed.

        Returns
        -------
        xarray.Dataset
            As `compare` returns it.
        """
        min_samples = max(metric.min_samples for metric in self.metrics)
        sources = {
            layer.shape.name: Source(
                layer.shape.name, layer.name, partial(self._read, layer, min_samples), layer.shape.size(self.matrix.n)
            )
            for layer in self.matrix.layers
        }
        checkpoints = Checkpoints(None if parts is None else Path(parts))
        meter = Meter(self.plan, self.me, progress, self._rates_for(progress))
        with checkpoints.locked(first=self.me.first), _precision(tf32=self.tf32):
            for stage in self.plan.stages:
                self._compute_stage(stage, sources, checkpoints, meter)
                meter.finished(stage)
                release_free_heap()
            self.me.wait()  # until no process writes parts any more
            result = self.matrix.dataset(self.metrics, self._attrs(command or ""), self.optional)
            if save is not None and self.me.first:
                save(result)
        return result

    def _rates_for(self, progress: Progress | None) -> Cost:
        """Return the rates of this machine if someone waits long enough to see the time left, or else nominal rates."""
        return self.rates() if progress is not None and self.plan.seconds(NOMINAL) > _LONG_SECONDS else NOMINAL

    def _attrs(self, command: str) -> dict[str, Any]:
        return {
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "repsim_version": __version__,
            "command": command,
            "device": self._device_type,
            "tf32": int(self.tf32 or self._was_tf32),
            "samples_fingerprint": self.view.fingerprint,
        }

    @property
    def _device_type(self) -> str:
        """Type of the device without its number."""
        return self.device.partition(":")[0]

    def _compute_stage(
        self, stage: Stage, sources: Mapping[str, Source], checkpoints: Checkpoints, meter: Meter
    ) -> None:
        """Prepare the layers of a stage, compare them, and enter the values into the matrix."""
        if not stage.kept:
            limit_heap_fragmentation()
        needed = [sources[layer.name] for layer in stage.layers]
        share = meter.preparing(stage)
        prepared = prepare(stage.recipe, needed, device=self.device, keep=stage.kept, me=self.me, step=share)
        factors = prepared.factors
        for name, why in prepared.undefined.items():
            for metric in stage.metrics:
                self.matrix.record_undefined_layer(metric, name, why)
        rows, columns = (
            [layer.name for layer in side if layer.name in factors] for side in (stage.rows, stage.columns)
        )
        if not rows or not columns:
            return
        ambiguities = {metric.spec: metric.ambiguity for metric in stage.metrics if metric.ambiguity is not None}
        measures = [*stage.metrics, *ambiguities.values()]
        # only now is known how many directions a layer keeps
        widths = {name: factor.p for name, factor in factors.items() if isinstance(factor, MomentFactor)}
        expected = with_widths(stage, self.matrix.n, widths)
        meter.correct(stage, expected)
        stages = tuple(expected if planned is stage else planned for planned in self.plan.stages)
        self.plan = dataclasses.replace(self.plan, stages=stages)
        sweep = _sweep(stage, measures, [factors[name] for name in rows], [factors[name] for name in columns])
        title = repr(
            (__version__, stage.recipe, [repr(m) for m in measures], stage.algorithm, stage.form, self.matrix.n)
        )
        title += repr(
            (stage.panel, stage.tile, stage.chunk, stage.room, stage.group, stage.kept, self._device_type, self.tf32)
        )
        identities = [self.matrix.identity(name) for side in (rows, columns) for name in side]
        title += repr([self.view.fingerprint, *identities])
        computed = compute_sweep(
            sweep, title, checkpoints=checkpoints, me=self.me, step=meter.comparing(expected, sweep.units)
        )
        differences = dict(zip(ambiguities, computed[len(stage.metrics) :], strict=True))
        for metric, of_all in zip(stage.metrics, computed, strict=False):
            values, errors = of_all, None
            intervals = self.matrix.intervals if self._has_interval(stage, metric) else None
            if intervals is not None and isinstance(metric, GramMetric):
                left, right = ([factors[name] for name in side] for side in (rows, columns))
                values, errors = intervals.errors(
                    stage, metric, left, right, of_all, me=self.me, step=partial(meter.leaving_out, stage)
                )
            self.matrix.enter(
                metric, rows, columns, values, factors, differences=differences.get(metric.spec), errors=errors
            )

    def _read(self, layer: Layer, min_samples: int) -> Rows | Tensor:
        if layer.key.form == "features":
            return self.view.stream(layer.store, layer.array, self.device, min_samples=min_samples)
        return self.view.load(layer.store, layer.array, min_samples=min_samples).to(self.device)


def _level_of(result: xr.Dataset | None) -> float | None:
    """Return the level of the intervals of a result; None if it has none."""
    levels = [] if result is None else [variable.attrs.get("interval") for variable in result.data_vars.values()]
    return next((float(level) for level in levels if level is not None), None)


def _metric(spec: str | Metric[Any]) -> Metric[Any]:
    return spec if isinstance(spec, Metric) else registry.get(spec)


def _select_metrics(specs: Sequence[str | Metric[Any]]) -> tuple[list[Metric[Any]], set[str]]:
    """Return the metrics without duplicates, and the specs of those that were only selected by a group."""
    metrics: dict[str, Metric[Any]] = {}
    named = set()
    for spec in specs:
        if isinstance(spec, Metric) or registry.members(spec) is None:
            metric = _metric(spec)
            metrics[metric.spec] = metric
            named.add(metric.spec)
        else:
            metrics |= {metric.spec: metric for metric in registry.select(spec)}
    return list(metrics.values()), set(metrics) - named


def _open(
    a: Any, b: StoreLike | ArraysLike | None, ids: Ids | None, stack: ExitStack
) -> tuple[list[ActivationStore], list[ActivationStore]]:
    """Return the open stores of both sides. One file is opened once, so that its layers are prepared once."""
    opened: list[ActivationStore] = []
    ids = list(ids) if isinstance(ids, Iterator) else ids

    def open_once(entry: StoreLike) -> ActivationStore:
        store = entry if isinstance(entry, ActivationStore) else None
        path = store_path(entry) if store is None else store.path
        in_a_file = store is None or store.is_file(path)
        for earlier in opened:
            if earlier is store or (in_a_file and earlier.is_file(path)):
                return earlier
        opened.append(stack.enter_context(open_store(path)) if store is None else store)
        return opened[-1]

    if b is not None or is_one_store(a):
        if b is not None and isinstance(a, list | tuple):
            raise InvalidInputError("give two stores, or one list of them")
        first = open_once(as_one_store(a, "a", ids))
        return [first], [first if b is None else open_once(as_one_store(b, "b", ids))]
    stores = list(dict.fromkeys(map(open_once, as_stores(a, ids))))
    if not stores:
        raise InvalidInputError("name at least one store")
    return stores, stores


@contextmanager
def _precision(*, tf32: bool) -> Iterator[None]:
    """Compute products in full float32 during the block, or in TensorFloat-32 if ``tf32``."""
    previous = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if tf32 else "highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(previous)


def _sweep(stage: Stage, measures: Sequence[Any], rows: list[Any], columns: list[Any]) -> Sweep[Any]:
    """Return the algorithm of a stage; the planner has checked that the measures support it."""
    if stage.algorithm == "gram":
        return GramSweep(rows, columns, measures, panel=stage.panel, tile=stage.tile, held=stage.held)
    if stage.algorithm == "moments":
        return MomentSweep(rows, columns, measures, chunk=stage.chunk, room=stage.room)
    return PairSweep(rows, columns, measures, group=stage.group)
