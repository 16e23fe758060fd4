"""All layer pairs of two stores, or of many: planned, each layer prepared once, shared among processes, resumed."""

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, Self, TypedDict, Unpack

import torch
import xarray as xr
from torch import Tensor

from repsim import metrics as registry
from repsim._version import __version__
from repsim.engine.calibration import rates
from repsim.engine.checkpoints import Ledger, run
from repsim.engine.options import CompareOptions
from repsim.engine.pair_matrix import Layer, Matrix
from repsim.engine.planning import Limits, Meter, Plan, Stage, plan
from repsim.engine.preparation import Source, prepare
from repsim.errors import InvalidInputError, TooLittleMemoryError
from repsim.metrics import Metric
from repsim.metrics.algorithms.feature_space import MomentSweep
from repsim.metrics.algorithms.gram_space import GramSweep
from repsim.metrics.algorithms.pair_by_pair import PairSweep
from repsim.metrics.algorithms.sweep import Sweep
from repsim.metrics.recipes.cost import Cost
from repsim.metrics.recipes.rows import Rows
from repsim.results.files import open_result, save_result
from repsim.runtime.events import Kept, Note, logged
from repsim.runtime.files import check_output, duration, human
from repsim.runtime.hardware import choose_device, no_fraying, return_memory
from repsim.runtime.memory import memory_now, memory_peak, memory_to_use
from repsim.runtime.options import deprecated, sort_keywords, takes
from repsim.runtime.processes import ALONE, Ranks, ranks
from repsim.runtime.progress import Listener, Progress, told
from repsim.stores.alignment import AlignedView
from repsim.stores.store import ActivationStore, open_store, several, store_path

StoreLike = ActivationStore | str | os.PathLike[str]
_STEP = 2**26
"""Bytes in which it is counted what the process takes before the comparison."""


def similarity(x: Any, y: Any, metric: str | Metric[Any] = "cka") -> float:
    """Compare two representations of the same samples.

    Parameters
    ----------
    x, y
        (n, p) and (n, q), of numpy, torch, jax, pandas or xarray; rows are the same samples in the same order. Where
        both name their rows (the index of a data frame), the names have to be the same.
    metric
        A spec string such as ``cka``, ``cka:kernel=rbf`` or ``svcca:variance=0.95``, or a `Metric`.

    Returns
    -------
    float
        The value; ``repsim.metrics.get(metric)`` tells its range, and whether it grows or shrinks with likeness. A
        tensor with a gradient where x or y is one that requires it.

    Raises
    ------
    InvalidInputError
        Shapes that do not fit, too few samples, NaN or infinite values; arrays that are masked, sparse, of objects,
        text or dates; rows whose names differ.
    UndefinedValueError
        There is no value: a constant layer.

    Examples
    --------
    >>> import numpy as np
    >>> x = np.random.default_rng(0).normal(size=(50, 8))
    >>> round(similarity(x, 3 * x[:, ::-1] + 1), 6)
    1.0
    """
    value: float = _metric(metric)(x, y)
    return value


class CompareKeywords(TypedDict, total=False):
    """Keywords of `compare`, for type checkers; `CompareOptions` says all else of them."""

    readouts: Sequence[str]
    memory: int | str | None
    device: str
    tf32: bool
    explain: bool
    overwrite: bool


@takes(CompareOptions, without=("metrics",))
def compare(
    a: StoreLike | Sequence[StoreLike],
    b: StoreLike | None = None,
    metrics: Sequence[str | Metric[Any]] | None = None,
    *,
    out: str | os.PathLike[str] | None = None,
    progress: Listener = None,
    **keywords: Unpack[CompareKeywords],
) -> xr.Dataset:
    """Compare every layer of one store with every layer of another, or all layers of many stores with one another.

    With ``out`` the same call again goes on where an interrupted one stopped, and a result that is there grows: only
    what is new (further stores, further metrics) is computed and added. Under torchrun, where every process makes the
    same call, the processes share the work, and each gets the result. Notes go to ``logging.getLogger("repsim")``.

    Parameters
    ----------
    a, b
        Two stores, or their files, over the same samples in the same order: layers of a by layers of b. One store
        alone is compared with itself. A list of stores gives the matrix of all layers of all models, by themselves.
    metrics
        Spec strings or metrics; one variable of the result each. By default ``cka``, or what the result in ``out`` has.
        ``all``, or the name of a group (``alignment``, ``rsm``, ``neighbours``, ``group:cca``, ``statistics``,
        ``topology``), stands for its measures; ``all`` is without topology, of which a pair may take minutes. Those of
        a group that cannot be had here are left out, and the result says why.
    out
        Save the result here, as netCDF (.nc). Until it is complete, what is done lies beside it, in NAME.nc.parts.
    progress
        Called with the percentage of the predicted work that is done, and with 100. By default a notebook shows a bar;
        False is silent.
    {options}

    Returns
    -------
    xarray.Dataset
        One variable a metric, named by its spec, dimensions (layer_a, layer_b). A value is NaN only where there is
        none; the variable's attribute ``undefined`` gives the reasons, and ``cautions`` says which values mean little.
        Of a list of stores, layers are named ``model/layer``.

    Raises
    ------
    SampleMismatchError
        The stores hold other samples, or another order.
    InvalidInputError
        Too few samples, NaN or infinite activations, two models of one name, a readout that a store has not.
    TooLittleMemoryError
        Not even the smallest plan fits.
    StoreError
        A file that cannot be read.
    UndefinedValueError
        Not one pair of layers has a value.

    OutputError
        ``out`` cannot be written, or another process is writing it.

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
    ...     sorted(compare([a, b], metrics=["cka", "svcca"], out=f"{folder}/result.nc"))  # cka is there already
    1.0
    ['cka', 'svcca']
    """
    values: dict[str, Any] = dict(keywords)
    earlier = {name: values.pop(name) for name in _EARLIER_KEYWORDS if name in values}
    for name in earlier:
        deprecated("compare", name, _EARLIER_KEYWORDS[name])
    (options,) = sort_keywords("compare", values, CompareOptions)
    steps = compare_steps(
        a, b, metrics, CompareOptions(**options), out=None if out is None else Path(out), progress=progress,
        command=earlier.get("command"), known=earlier.get("known"), parts=earlier.get("parts"),
    )  # fmt: skip
    compared: Compared
    *_, compared = logged(steps)
    return compared.result


@dataclass(frozen=True)
class Compared:
    """The result of a comparison."""

    result: xr.Dataset
    saved: bool
    """Whether it was saved; a result that held all of this already is not."""


def compare_steps(
    a: StoreLike | Sequence[StoreLike],
    b: StoreLike | None,
    metrics: Sequence[str | Metric[Any]] | None,
    options: CompareOptions,
    *,
    out: Path | None = None,
    dry_run: bool = False,
    progress: Listener = None,
    command: str | None = None,
    known: xr.Dataset | None = None,
    parts: str | os.PathLike[str] | None = None,
) -> Iterator[Note | Kept | Compared]:
    """Compare as `compare` does, and yield notes while it runs, and at the end the result.

    Among the processes of torchrun each does its share, and only the first yields notes.

    Parameters
    ----------
    dry_run
        Only explain what would be done.
    command
        Recorded as what made the result.
    known, parts
        An earlier result that grows, and a folder for what is done; by default those of ``out``.
    """
    if out is not None and out.suffix != ".nc":  # also keeps a slip of the hand from replacing a store
        raise InvalidInputError(f"a result is netCDF: name it .nc, not {out.name}")
    with ranks() as me:
        grows = me.share(out is not None and out.exists() and not options.overwrite)
        if out is not None:
            known = open_result(out) if grows else known
            parts = out.with_name(f"{out.name}.parts")
            if me.first and not dry_run:
                check_output(out, overwrite=options.overwrite or grows)
        with Comparison(
            a, b, metrics, device=options.device, memory=options.memory, tf32=options.tf32, readouts=options.readouts,
            known=known, me=me,
        ) as planned:  # fmt: skip
            notes = [f"note: {note}" for note in planned.view.notes]
            if options.explain or dry_run:
                notes += planned.explanation() if me.first else []
            if not dry_run and parts is not None and (done := len(list(Path(parts).glob("*.part")))):
                notes.append(f"going on with {done} parts that an interrupted run has left in {parts}")
            if me.first:
                yield from map(Note, notes)
            if dry_run:
                return
            saved = out is not None and (not grows or bool(planned.plan.stages))
            start = time.perf_counter()
            with told("comparing", progress) as advance:
                save = partial(save_result, path=out, overwrite=options.overwrite or grows) if out and saved else None
                result = planned.run(parts=parts, progress=advance, command=command, save=save)
            me.wait()  # until the first has saved it
            if options.explain and me.first:
                yield Note(f"took: {duration(time.perf_counter() - start)}, {human(memory_peak())} of memory at most")
        if out is not None and not saved and me.first:
            yield Kept(out, "holds all of this already")
        yield Compared(result, saved)


_EARLIER_KEYWORDS = {
    "known": "write out=, a file with the result that grows",
    "parts": "write out=, beside which the parts lie",
    "command": "set result.attrs['command']",
    "me": "the processes of torchrun find each other",
}


class Comparison:
    """A comparison, planned: what ``repsim compare --dry-run`` shows, and `run` does. A context manager.

    The parameters are those of `compare`, and ``known``, an earlier result over some of the same stores: what it holds
    is taken from there, and only the rest computed. ``me`` is this process among those that share the work.
    """

    def __init__(
        self,
        a: StoreLike | Sequence[StoreLike],
        b: StoreLike | None = None,
        metrics: Sequence[str | Metric[Any]] | None = None,
        *,
        device: str = "auto",
        memory: int | str | None = None,
        tf32: bool = False,
        readouts: Sequence[str] = (),
        known: xr.Dataset | None = None,
        me: Ranks = ALONE,
    ) -> None:
        self.device, self.tf32, self.me = choose_device(device), tf32, me
        self._was_tf32 = False
        if metrics is None:
            metrics = ["cka"] if known is None else []
        elif not metrics:
            raise InvalidInputError("name at least one metric")
        self.metrics, self.optional = _chosen(metrics)
        with ExitStack() as stack:
            stores_a, stores_b = _open(a, b, stack)
            self.view = AlignedView(*dict.fromkeys((*stores_a, *stores_b)))
            self.matrix = Matrix(stores_a, stores_b, len(self.view.sample_ids), readouts)
            self._leave_out_what_needs_more_samples()
            if known is not None:
                self.metrics = self.matrix.take_over(known, self.metrics)
                self._was_tf32 = bool(known.attrs.get("tf32"))
            limits = me.share(Limits(memory_to_use(self.device, memory), self._base(), self.device))  # one plan for all
            self.plan = self._planned(limits)
            self._stack = stack.pop_all()

    def _leave_out_what_needs_more_samples(self) -> None:
        """Of a group; who asked for such a measure by name is told that it is impossible."""
        for metric in self.metrics:
            if metric.spec in self.optional and metric.min_samples > self.matrix.n:
                self.matrix.left_out.append(f"{metric.spec}: needs at least {metric.min_samples} samples")
        self.metrics = [m for m in self.metrics if m.spec not in self.optional or m.min_samples <= self.matrix.n]
        if self.matrix.left_out and not self.metrics:
            raise InvalidInputError(f"{self.matrix.n} samples are too few; {self.matrix.left_out[0]}")

    def _planned(self, limits: Limits) -> Plan:
        """A plan for what is missing, of which measures that nobody named are left out where they take too much."""
        n = self.matrix.n
        while True:
            jobs = self.matrix.missing(self.metrics)
            try:
                return Plan(
                    n, limits, tuple(stage for job in jobs for stage in plan(*job[:2], n, job[2], limits).stages)
                )
            except TooLittleMemoryError as error:
                if not set(error.metrics) <= self.optional or len(error.metrics) == len(self.metrics):
                    raise
                self.matrix.left_out.append(error.problem)
                self.metrics = [metric for metric in self.metrics if metric.spec not in error.metrics]

    def _base(self) -> int:
        """What the process takes already, where that counts: the memory of a GPU is another.

        In large steps: no two runs take the same to the byte, and the same command should make the same plan.
        """
        return 0 if self.device.startswith("cuda") else -(-memory_now() // _STEP) * _STEP

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def rates(self) -> Cost:
        """Measure how fast this machine is, reading one of the layers: what turns the plan's cost into seconds."""
        streams = (layer for layer in self.matrix.layers if layer.key.form == "features")
        first = max(streams, key=lambda layer: layer.shape.p, default=None)
        return rates(self.device, None if first is None else self.view.stream(first.store, first.array, self.device))

    def explanation(self) -> list[str]:
        """Say what will be done, and what it is predicted to take on this machine."""
        if not self.plan.stages:
            return [*self.plan.lines(), "nothing is left to compute"]
        speed = self.rates()
        predicted = (
            f"predicted: {duration(self.plan.seconds(speed))}, {human(self.plan.memory)} of memory at most "
            f"(allowed: {human(self.plan.limits.memory)}), at {speed.flop32 / 1e9:,.0f} GFLOP/s in float32 and "
            f"{human(speed.read)}/s from the stores"
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
        """Do it. ``save`` is called with the result, in the first process, before its parts go."""
        enough = max(metric.min_samples for metric in self.metrics)
        sources = {
            layer.shape.name: Source(layer.shape.name, layer.name, partial(self._read, layer, enough))
            for layer in self.matrix.layers
        }
        ledger, meter = Ledger(None if parts is None else Path(parts)), Meter(self.plan, self.me, progress)
        with ledger.claimed(first=self.me.first), _precision(tf32=self.tf32):
            for stage in self.plan.stages:
                self._do(stage, sources, ledger, meter)
                meter.finished(stage)
                return_memory()
            self.me.wait()  # nobody writes any more
            result = self.matrix.dataset(self.metrics, self._attrs(command or ""), self.optional)
            if save is not None and self.me.first:
                save(result)
        return result

    def _attrs(self, command: str) -> dict[str, Any]:
        return {
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "repsim_version": __version__,
            "command": command,
            "device": self._kind,
            "tf32": int(self.tf32 or self._was_tf32),
            "samples_fingerprint": self.view.sample_ids.fingerprint,
        }

    @property
    def _kind(self) -> str:
        """The device, whichever of its kind."""
        return self.device.partition(":")[0]

    def _do(self, stage: Stage, sources: Mapping[str, Source], ledger: Ledger, meter: Meter) -> None:
        """Prepare the layers of a stage, compare them, and enter the values."""
        if not stage.kept:
            no_fraying()
        needed = [sources[layer.name] for layer in stage.layers]
        share = meter.preparing(stage)
        prepared = prepare(stage.recipe, needed, device=self.device, keep=stage.kept, me=self.me, step=share)
        factors = prepared.factors
        for name, why in prepared.undefined.items():
            for metric in stage.metrics:
                self.matrix.no_value(metric, name, why)
        rows, columns = (
            [layer.name for layer in side if layer.name in factors] for side in (stage.rows, stage.columns)
        )
        if not rows or not columns:
            return
        sweep = _sweep(stage, [factors[name] for name in rows], [factors[name] for name in columns])
        title = repr(
            (__version__, stage.recipe, [m.spec for m in stage.metrics], stage.algorithm, stage.form, self.matrix.n)
        )
        title += repr(
            (stage.panel, stage.tile, stage.chunk, stage.room, stage.group, stage.kept, self._kind, self.tf32)
        )
        title += repr([self.matrix.identity(name) for side in (rows, columns) for name in side])
        found = run(sweep, title, ledger=ledger, me=self.me, step=meter.comparing(stage, sweep.units))
        for metric, values in zip(stage.metrics, found, strict=True):
            self.matrix.enter(metric, rows, columns, values, factors)

    def _read(self, layer: Layer, enough: int) -> Rows | Tensor:
        if layer.key.form == "features":
            return self.view.stream(layer.store, layer.array, self.device, min_samples=enough)
        return self.view.load(layer.store, layer.array, min_samples=enough).to(self.device)


def _metric(spec: str | Metric[Any]) -> Metric[Any]:
    return spec if isinstance(spec, Metric) else registry.get(spec)


def _chosen(words: Sequence[str | Metric[Any]]) -> tuple[list[Metric[Any]], set[str]]:
    """Every metric once, and the specs of those that nobody asked for by name."""
    found: dict[str, Metric[Any]] = {}
    named = set()
    for word in words:
        if isinstance(word, Metric) or registry.members(word) is None:
            metric = _metric(word)
            found[metric.spec] = metric
            named.add(metric.spec)
        else:
            found |= {metric.spec: metric for metric in registry.select(word)}
    return list(found.values()), set(found) - named


def _open(
    a: StoreLike | Sequence[StoreLike], b: StoreLike | None, stack: ExitStack
) -> tuple[list[ActivationStore], list[ActivationStore]]:
    """Open what is not open yet; the same file twice is one store, so that its layers are prepared once."""
    opened: list[ActivationStore] = []

    def one(given: StoreLike) -> ActivationStore:
        path = given.path if isinstance(given, ActivationStore) else store_path(given)
        for store in opened:
            if store is given or (path.exists() and store.path.samefile(path)):
                return store
        opened.append(given if isinstance(given, ActivationStore) else stack.enter_context(open_store(path)))
        return opened[-1]

    if isinstance(a, ActivationStore | str | os.PathLike):
        first = one(a)
        return [first], [first if b is None else one(b)]
    if b is not None:
        raise InvalidInputError("give two stores, or one list of them")
    stores = list(dict.fromkeys(map(one, several(a))))
    if not stores:
        raise InvalidInputError("name at least one store")
    return stores, stores


@contextmanager
def _precision(*, tf32: bool) -> Iterator[None]:
    """Full float32 products, unless somebody asks for less."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if tf32 else "highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def _sweep(stage: Stage, rows: list[Any], columns: list[Any]) -> Sweep[Any]:
    measures: Sequence[Any] = stage.metrics  # of the kind that knows the algorithm
    if stage.algorithm == "gram":
        return GramSweep(rows, columns, measures, panel=stage.panel, tile=stage.tile, held=stage.held)
    if stage.algorithm == "moments":
        return MomentSweep(rows, columns, measures, chunk=stage.chunk, room=stage.room)
    return PairSweep(rows, columns, measures, group=stage.group)
