"""All layer pairs of two stores under some metrics: each layer prepared once, all pairs in blocks."""

import itertools
import json
import math
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from datetime import UTC, datetime
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray
from torch import Tensor

import repsim
from repsim import metrics as registry
from repsim.alignment import AlignedView
from repsim.devices import choose_device
from repsim.errors import InvalidInputError, UndefinedValueError
from repsim.factors import LayerFactors, prepare
from repsim.metrics import Metric
from repsim.progress import Progress, counter
from repsim.results import FORMAT, VERSION
from repsim.store import ActivationStore, open_store

Array = NDArray[Any]
StoreLike = ActivationStore | str | os.PathLike[str]


def similarity(x: Array | Tensor, y: Array | Tensor, metric: str | Metric[Any] = "cka") -> float:
    """Compare two representations of the same samples.

    Parameters
    ----------
    x, y
        (n, p) and (n, q), numpy or torch; rows are the same samples in the same order.
    metric
        A spec string such as ``cka``, ``cka:kernel=rbf`` or ``svcca:variance=0.95``, or a `Metric`.

    Returns
    -------
    float
        The value; ``repsim.metrics.get(metric)`` tells its range, and whether it grows or shrinks with likeness.

    Raises
    ------
    InvalidInputError
        Shapes that do not fit, too few samples, NaN or infinite values.
    UndefinedValueError
        There is no value: a constant layer.

    Examples
    --------
    >>> x = np.random.default_rng(0).normal(size=(50, 8))
    >>> round(similarity(x, 3 * x[:, ::-1] + 1), 6)
    1.0
    """
    return _metric(metric)(x, y)


def compare(
    a: StoreLike,
    b: StoreLike,
    metrics: Sequence[str | Metric[Any]] = ("cka",),
    *,
    device: str = "auto",
    progress: Progress | None = None,
    command: str | None = None,
) -> xr.Dataset:
    """Compare every layer of one store with every layer of another, or of itself.

    Parameters
    ----------
    a, b
        Stores, or their files, over the same samples in the same order.
    metrics
        Spec strings or metrics; one variable of the result each.
    device
        Where to compute: ``auto``, ``cpu``, ``cuda``, ``mps``.
    progress
        Called with the number of steps (layers prepared, metrics compared) done, and of all.
    command
        Recorded as what made the result.

    Returns
    -------
    xarray.Dataset
        One variable a metric, named by its spec, dimensions (layer_a, layer_b). A value is NaN only where there is
        none; the variable's attribute ``undefined`` gives the reasons, and ``cautions`` says which values mean little.

    Raises
    ------
    SampleMismatchError
        The stores hold other samples, or another order.
    InvalidInputError
        Too few samples, NaN or infinite activations.
    StoreError
        A file that cannot be read.
    UndefinedValueError
        Not one pair of layers has a value.

    Examples
    --------
    >>> import tempfile
    >>> x = np.random.default_rng(0).normal(size=(50, 8))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     a = repsim.write_store(f"{folder}/a.h5", {"in": x, "out": x[:, :4]}, model="a")
    ...     b = repsim.write_store(f"{folder}/b.h5", {"all": 2 * x}, model="b")
    ...     compare(a, b)["cka"].sel(layer_a="in").round(6).item()
    1.0
    """
    chosen = list({metric.spec: metric for metric in map(_metric, metrics)}.values())
    if not chosen:
        raise InvalidInputError("name at least one metric")
    device = choose_device(device)
    with ExitStack() as stack:
        store_a, store_b = _open_both(a, b, stack)
        view = AlignedView(store_a, store_b)
        total = len(chosen) + sum(len(store.layers) for store in {store_a, store_b})
        step = counter(total, progress)
        rows = list(_prepare(view, store_a, chosen, device, step))
        columns = rows if store_b is store_a else list(_prepare(view, store_b, chosen, device, step))
        result = xr.Dataset(
            coords={**_side("a", store_a, rows), **_side("b", store_b, columns)}
            | {"n_samples": len(view.sample_ids), "data": store_a.data},
            attrs={
                "format": FORMAT,
                "format_version": VERSION,
                "created": datetime.now(UTC).isoformat(timespec="seconds"),
                "repsim_version": repsim.__version__,
                "command": command or "",
                "samples_fingerprint": view.sample_ids.fingerprint,
                "provenance_a": json.dumps(store_a.provenance),
                "provenance_b": json.dumps(store_b.provenance),
            },
        )
        for metric in chosen:
            result[metric.spec] = _compare(metric, rows, columns, len(view.sample_ids))
            for side, prepared in (("a", rows), ("b", columns)):
                result = result.assign_coords(_diagnostics(metric, prepared, side))
            step()
    return result


def _metric(spec: str | Metric[Any]) -> Metric[Any]:
    return spec if isinstance(spec, Metric) else registry.get(spec)


def _open_both(a: StoreLike, b: StoreLike, stack: ExitStack) -> tuple[ActivationStore, ActivationStore]:
    """Open what is not open yet; the same file twice is one store, so that its layers are prepared once."""
    store_a = a if isinstance(a, ActivationStore) else stack.enter_context(open_store(a))
    if b is a:
        return store_a, store_a
    store_b = b if isinstance(b, ActivationStore) else stack.enter_context(open_store(b))
    return store_a, store_a if store_b.path.samefile(store_a.path) else store_b


def _prepare(
    view: AlignedView, store: ActivationStore, metrics: Sequence[Metric[Any]], device: str, step: Callable[[], None]
) -> Iterator[LayerFactors]:
    """Read one layer after the other, so that only one is in memory beside the factors."""
    enough = max(metric.min_samples for metric in metrics)
    for name in store.layers:
        key, x = store[name].key, view.load(store, name, min_samples=enough)
        features = x.shape[1] if key.form == "features" else math.prod(store.facts(name).get("output_shape", [-1]))
        yield prepare(name, key, features, x.to(device), metrics)
        step()


def _side(side: str, store: ActivationStore, layers: Sequence[LayerFactors]) -> dict[str, Any]:
    """The coordinates of one side: names of its layers, and what they are."""
    dim = f"layer_{side}"
    return {
        dim: list(store.layers),
        f"model_{side}": (dim, [store.model] * len(layers)),
        f"readout_{side}": (dim, [layer.key.readout for layer in layers]),
        f"features_{side}": (dim, [layer.features for layer in layers]),
    }


def _compare(metric: Metric[Any], rows: Sequence[LayerFactors], columns: Sequence[LayerFactors], n: int) -> xr.Variable:
    """All pairs under one metric. What has no value is NaN with its reason; the rest of the matrix is kept."""
    undefined = {
        f"layer {layer.name}: {layer.undefined[metric]}" for layer in (*rows, *columns) if metric in layer.undefined
    }
    values = np.full((len(rows), len(columns)), np.nan)
    cautions: list[str] = []
    remarks: set[str] = set()
    of_kind = _by_kind(metric, rows), _by_kind(metric, columns)
    for (kind, row_index), (other, column_index) in itertools.product(*(side.items() for side in of_kind)):
        if kind != other:
            pair = " and ".join(sorted({rows[row_index[0]].key.readout, columns[column_index[0]].key.readout}))
            undefined.add(f"layers read out as {pair}: only like can be compared with like")
            continue
        row_factors = [rows[i].factors[metric] for i in row_index]
        column_factors = row_factors if rows is columns else [columns[j].factors[metric] for j in column_index]
        values[np.ix_(row_index, column_index)] = metric.block(row_factors, column_factors)
        for (i, a), (j, b) in itertools.product(
            zip(row_index, row_factors, strict=True), zip(column_index, column_factors, strict=True)
        ):
            if math.isnan(values[i, j]):
                undefined.add(f"layers {rows[i].name} and {columns[j].name}: {_reason(metric, a, b)}")
            elif caution := metric.caution(a, b):
                cautions.append(f"{rows[i].name} and {columns[j].name}: {caution}")
        key = rows[row_index[0]].key
        if key.form == "grams" and n % key.size:
            remarks.add(f"{n % key.size} of {n} samples are in no block of {key.size}, and left out of {key.readout}")
    if np.isnan(values).all():
        raise UndefinedValueError(f"{metric.spec}: no pair of layers has a value; {min(undefined)}")
    low, high = metric.bounds
    return xr.Variable(
        ("layer_a", "layer_b"),
        values,
        {
            "label": metric.label_with(*_notes(rows, columns)),
            "spec": metric.spec,
            "sense": metric.sense,
            "valid_range": [low, high],
            "symmetric": int(metric.symmetric),
            "formula": metric.formula,
            "citation": metric.citation,
            "undefined": json.dumps(sorted(undefined)),
            "cautions": json.dumps(cautions),
            "remarks": json.dumps(sorted(remarks)),
        },
    )


def _by_kind(metric: Metric[Any], layers: Sequence[LayerFactors]) -> dict[str, list[int]]:
    """Positions of the layers that have a factor, by what they can be compared with."""
    found: dict[str, list[int]] = {}
    for i, layer in enumerate(layers):
        if metric in layer.factors:
            found.setdefault(layer.kind, []).append(i)
    return found


def _notes(rows: Sequence[LayerFactors], columns: Sequence[LayerFactors]) -> list[str]:
    """What the label has to say beside the parameters, where all layers are compressed in one way."""
    keys = {layer.kind: layer.key for layer in (*rows, *columns)}
    if len(keys) > 1:
        return []
    (key,) = keys.values()
    words = {"grams": "minibatches of", "sketches": "two sketches of"}
    return [f"{words[key.form]} {key.size}"] if key.form in words else []


def _reason(metric: Metric[Any], a: Any, b: Any) -> str:
    """Why this pair has no value: `Metric.block` says that there is none, `Metric.pair` says why."""
    try:
        metric.pair(a, b)
    except UndefinedValueError as error:
        return str(error)
    return "no reason given"


def _diagnostics(metric: Metric[Any], layers: Sequence[LayerFactors], side: str) -> dict[str, Any]:
    """What the metric tells of each layer (components kept, say), as coordinates; -1 where the layer has no factor."""
    factors = [layer.factors.get(metric) for layer in layers]
    numbers = [{} if factor is None else metric.diagnostics(factor) for factor in factors]
    names = dict.fromkeys(name for number in numbers for name in number)
    return {
        f"{metric.spec}.{name}_{side}": (f"layer_{side}", [number.get(name, -1) for number in numbers])
        for name in names
    }
