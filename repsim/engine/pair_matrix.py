"""Collect the values of all pairs of layers, with their reasons and cautions, and make the result of them."""

import json
import math
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from repsim.engine.layer_intervals import Intervals
from repsim.engine.planning import LayerShape
from repsim.engine.resampling import leaves_one_out
from repsim.errors import Argument, Function, InvalidInputError, Remedy, UndefinedValueError
from repsim.labels import LayerKey
from repsim.metrics import Factor, Metric
from repsim.metrics import get as metric_of
from repsim.results import schema
from repsim.results.chance import chance_of
from repsim.results.coordinates import axis_coordinates
from repsim.results.intervals import ends_of
from repsim.results.summary import split_cautions
from repsim.results.variables import AXIS, CHANCE, ENDS
from repsim.results.versions import FORMAT, VERSION
from repsim.runtime import tuning
from repsim.runtime.threads import map_in_threads
from repsim.stores.alignment import AlignedView
from repsim.stores.axes import Axes
from repsim.stores.store import ActivationStore

Job = tuple[list[LayerShape], list[LayerShape], list[Metric[Any]]]
_NO_INTERVAL = "no interval: without one of the samples or groups the value is undefined"
_ANOTHER = Remedy("name another file, or use ", Argument("overwrite", value=True))
_LONG_NAMES = {"features": "values a sample", "n_samples": "number of samples", "data": "what the samples are"}


@dataclass(frozen=True)
class Layer:
    """Array of one of the stores."""

    store: ActivationStore
    array: str
    """Name of the array in the store."""
    name: str
    """Name of the layer in the result."""
    shape: LayerShape
    """Shape, with a name that is unique even if models have the same name."""

    @property
    def key(self) -> LayerKey:
        """Model, layer and readout."""
        return self.store[self.array].key

    @property
    def features(self) -> int:
        """Number of values a sample, before a readout compressed them; -1 if unknown."""
        if self.key.form == "features":
            return self.shape.p
        return math.prod(self.store.facts(self.array).get("output_shape", [-1]))


class Matrix:
    """Values of all pairs of the layers of ``stores_a`` and ``stores_b``, and the reasons for undefined values.

    By default every array is a layer. If ``readouts`` are named, only their arrays are compared, each with arrays of
    the same readout; the layers then get one variable for every metric and readout, such as ``cka@mean``.

    Parameters
    ----------
    stores_a, stores_b : sequence of ActivationStore
        Stores of the rows and of the columns; the same sequence for a square matrix.
    view : AlignedView
        The samples of the stores, or pairs of samples.
    readouts : sequence of str
        The readouts to compare; () for all arrays.

    Raises
    ------
    InvalidInputError
        If two models have one name, a store lacks a readout, or pairs of samples change the samples of the blocks of
        Gram matrices.
    """

    def __init__(
        self,
        stores_a: Sequence[ActivationStore],
        stores_b: Sequence[ActivationStore],
        view: AlignedView,
        readouts: Sequence[str] = (),
    ) -> None:
        self.n, self.stores = len(view.sample_ids), (list(stores_a), list(stores_b))
        self._fingerprint, self._pairing, self._data = view.fingerprint, view.pairing, view.data
        self.readouts = tuple(dict.fromkeys(readouts))
        distinct = list(dict.fromkeys((*stores_a, *stores_b)))
        self.several = len(stores_a) > 1
        models = [store.model for store in distinct]
        if self.several and len(set(models)) < len(models):
            twice = next(model for model in models if models.count(model) > 1)
            files = ", ".join(str(store.path) for store in distinct if store.model == twice)
            raise InvalidInputError(f"{files} are all of a model named {twice!r}, so their layers would share names")
        of_store = {store: self._layers(store, k) for k, store in enumerate(distinct)}
        self.rows, self.columns = ([layer for store in side for layer in of_store[store]] for side in self.stores)
        self.layers = [layer for layers in of_store.values() for layer in layers]
        self._check_blocks()
        self._names = tuple(list(dict.fromkeys(layer.name for layer in side)) for side in (self.rows, self.columns))
        """Names of the rows and columns of the result; with ``readouts``, one name may stand for several arrays."""
        self._position = tuple(
            {layer.shape.name: names.index(layer.name) for layer in side}
            for side, names in zip((self.rows, self.columns), self._names, strict=True)
        )
        self._by_name = {layer.shape.name: layer for layer in self.layers}
        shape = len(self._names[0]), len(self._names[1])
        self.values: dict[str, NDArray[np.float64]] = defaultdict(lambda: np.full(shape, np.nan))
        self.undefined: dict[str, set[str]] = defaultdict(set)
        self.cautions: dict[str, list[str]] = defaultdict(list)
        """Cautions about single pairs; `_cautions` adds the one about too few samples."""
        self.chance: dict[str, NDArray[np.float64]] = defaultdict(lambda: np.full(shape, np.nan))
        """Mean values of unrelated layers, NaN where they are not known."""
        self.diagnostics: dict[str, dict[str, int]] = defaultdict(dict)
        """Diagnostics of layers: ``title.name`` -> unique name of the layer -> number."""
        self.left_out: list[str] = []
        """Metrics of a group that are not in the result, with the reasons."""
        self.intervals: Intervals | None = None
        """Intervals over samples; None if there are none."""
        self.ends: dict[str, NDArray[np.float64]] = defaultdict(lambda: np.full((2, *shape), np.nan))
        """Lower and upper ends of intervals."""
        self._earlier_layers: set[str] = set()
        """Unique names of the layers of the earlier result."""
        self._earlier_titles: set[str] = set()
        """Variables of the earlier result."""

    def _check_blocks(self) -> None:
        """Refuse Gram matrices of blocks if pairs are not all samples in their order: blocks cannot be taken apart."""
        if self._pairing is None or self._pairing.whole:
            return
        for layer in self.layers:
            if layer.key.form == "grams":
                raise InvalidInputError(
                    f"{layer.store.path}: {layer.key.readout} keeps blocks of samples, which cannot be taken apart to "
                    "pair the samples in another order or without some of them",
                    remedy=Remedy("name readouts of single samples with ", Argument("readouts"), ", or extract them"),
                )

    def _layers(self, store: ActivationStore, k: int) -> list[Layer]:
        """Return the arrays of a store that are compared."""
        readouts = list(dict.fromkeys(store[name].key.readout for name in store.layers))
        if lacking := [readout for readout in self.readouts if readout not in readouts]:
            raise InvalidInputError(
                f"{store.path} holds no layer that is read out by {' or '.join(lacking)}, "
                f"only by {', '.join(readouts)}",
                remedy=Remedy(
                    "extract it with ", Argument("readout", ",".join(lacking), of="extract"), ", or name another"
                ),
            )
        return [
            self._layer(store, k, name)
            for name in store.layers
            if not self.readouts or store[name].key.readout in self.readouts
        ]

    def _layer(self, store: ActivationStore, k: int, array_name: str) -> Layer:
        array = store[array_name]
        key = array.key
        name = key.layer if self.readouts else array_name
        shape = LayerShape(
            f"{k}/{array_name}",
            math.prod(array.shape[1:]),
            array.dtype.itemsize,
            key.form,
            "features" if key.form == "features" else key.readout,
        )
        return Layer(store, array_name, f"{store.model}/{name}" if self.several else name, shape)

    def title(self, metric: Metric[Any], readout: str) -> str:
        """Return the name of the variable of the result for a metric and a readout."""
        return f"{metric.spec}@{readout}" if len(self.readouts) > 1 else metric.spec

    def record_undefined_layer(self, metric: Metric[Any], name: str, why: str) -> None:
        """Record that a layer has no values because it cannot be prepared."""
        layer = self._by_name[name]
        self.undefined[self.title(metric, layer.key.readout)].add(f"layer {layer.name}: {why}")

    @cached_property
    def _checksums(self) -> dict[ActivationStore, str]:
        stores = list(dict.fromkeys(layer.store for layer in self.layers))
        return dict(zip(stores, map_in_threads(lambda store: store.checksum, stores), strict=True))

    @cached_property
    def _axes(self) -> dict[ActivationStore, Axes]:
        return {store: store.axes for store in dict.fromkeys(layer.store for layer in self.layers)}

    def identity(self, name: str) -> str:
        """Return a text that identifies the activations of a layer: the checksum of its store, and its name there."""
        layer = self._by_name[name]
        return f"{self._checksums[layer.store]} {layer.array}"

    # Values of an earlier result

    def add_earlier_result(self, result: xr.Dataset, metrics: Sequence[Metric[Any]]) -> list[Metric[Any]]:
        """Copy the values of an earlier result, and return all metrics that the new result will have.

        Raises
        ------
        InvalidInputError
            If it is not the result of a comparison, has other samples, its stores have changed since, or the new
            result would lose some of its layers.
        """
        form = result.attrs.get("format")
        problem = schema.problem(result) if form == FORMAT else f"its 'format' is {form!r}"
        if problem:
            raise InvalidInputError("the earlier result is no result of ", Function("repsim.compare"), f": {problem}")
        if result.attrs["samples_fingerprint"] != self._fingerprint:
            paired = self._pairing is not None or "pairing" in result.attrs
            kind = "other pairs of samples" if paired else "other samples"
            raise InvalidInputError(f"the earlier result is about {kind}", remedy=_ANOTHER)
        before = [
            {store["model"]: store["checksum"] for store in json.loads(result.attrs[f"stores_{side}"])} for side in "ab"
        ]
        now = [{store.model: self._checksums[store] for store in stores} for stores in self.stores]
        if lost := [model for model in before[0] | before[1] if model not in now[0] | now[1]]:
            raise InvalidInputError(
                f"the earlier result holds {', '.join(lost)}, which would be lost",
                remedy=Remedy("name its store, too, or another file, or use ", Argument("overwrite", value=True)),
            )
        square = self.stores[0] == self.stores[1]
        same_form = before[0].keys() == before[1].keys() if square else [*map(list, before)] == [*map(list, now)]
        if not same_form or (len(before[0]) > 1) is not self.several:
            sides = " by layers of ".join(map(", ".join, before))
            raise InvalidInputError(f"the earlier result is of another form: layers of {sides}", remedy=_ANOTHER)
        if changed := [
            model for old, new in zip(before, now, strict=True) for model in old if old[model] != new[model]
        ]:
            raise InvalidInputError(
                f"the store of {', '.join(dict.fromkeys(changed))} has changed since the earlier result",
                remedy=_ANOTHER,
            )
        readouts = json.loads(result.attrs.get("readouts", "[]"))
        if readouts != list(self.readouts):
            description = f"these readouts: {', '.join(readouts)}" if readouts else "all readouts"
            raise InvalidInputError(
                f"the earlier result is about {description}",
                remedy=Remedy("name the same, or another file, or use ", Argument("overwrite", value=True)),
            )
        names = [[str(name) for name in result[f"layer_{side}"].values] for side in "ab"]
        for in_result, layers, models in zip(names, (self.rows, self.columns), before, strict=True):
            in_stores = {layer.name for layer in layers if layer.store.model in models}
            if differing := sorted(in_stores.symmetric_difference(in_result)):
                raise InvalidInputError(
                    f"the earlier result holds a part of the layers, or others: {schema.short(differing[0])} is not "
                    "both in it and in the stores",
                    remedy=_ANOTHER,
                )
        self._check_groups(result)
        self._earlier_layers = {layer.shape.name for layer in self.layers if layer.name in names[0]}
        specs = [str(variable.attrs["spec"]) for variable in result.data_vars.values()]
        metrics = list({m.spec: m for m in (*map(metric_of, specs), *metrics)}.values())
        positions = [[axis.index(name) for name in side] for axis, side in zip(self._names, names, strict=True)]
        kept = {spec: one for spec, one in result.data_vars.items() if not self._lacks_interval(one)}
        for spec, variable in kept.items():  # the others are computed again, with their intervals
            self.ends[str(spec)][np.ix_(range(2), *positions)] = ends_of(variable)
            self.values[str(spec)][np.ix_(*positions)] = variable.values
            self.undefined[str(spec)] |= set(json.loads(variable.attrs["undefined"]))
            self.cautions[str(spec)] += split_cautions(json.loads(variable.attrs["cautions"]), result)[1]
            levels = chance_of(variable)
            self.chance[str(spec)][np.ix_(*positions)] = np.nan if levels is None else levels
            self._earlier_titles.add(str(spec))
        for name, coordinate in result.coords.items():
            for side, layers, side_names in zip("ab", (self.rows, self.columns), names, strict=True):
                title = str(name)
                if "." in title and title.endswith(f"_{side}"):
                    by_name = dict(zip(side_names, coordinate.values.tolist(), strict=True))
                    numbers = {layer.shape.name: by_name[layer.name] for layer in layers if layer.name in by_name}
                    self.diagnostics[title[:-2]] |= numbers
        return metrics

    def _check_groups(self, result: xr.Dataset) -> None:
        """Refuse an earlier result whose samples are in other groups."""
        groups = json.loads(result.attrs.get("groups", "null"))
        if groups != (None if self.intervals is None else self.intervals.record):
            kind = "single samples" if groups is None else f"samples in {groups['count']} groups: name the same groups"
            raise InvalidInputError(f"the earlier result is about {kind}", remedy=_ANOTHER)

    def has_interval(self, metric: Metric[Any], readout: str) -> bool:
        """Return whether the values of a measure have intervals, as far as they are defined."""
        forms = {layer.key.form for layer in self.layers if readout in {"", layer.key.readout}}
        return self.intervals is not None and leaves_one_out(metric) and forms != {"grams"}

    def _lacks_interval(self, variable: xr.DataArray) -> bool:
        """Return whether a variable of an earlier result lacks the interval that the new result has."""
        metric, readout = metric_of(str(variable.attrs["spec"])), str(variable.attrs.get("readout", ""))
        if self.intervals is None or not self.has_interval(metric, readout):
            return False
        return variable.attrs.get("interval") != self.intervals.level

    def missing(self, metrics: Iterable[Metric[Any]]) -> list[Job]:
        """Return what is left to compute: lists of rows, columns, and metrics."""
        metrics, jobs = list(metrics), []
        for readout in self.readouts or [""]:
            rows, columns = (
                [layer.shape for layer in side if readout in {"", layer.key.readout}]
                for side in (self.rows, self.columns)
            )
            old_rows = [shape for shape in rows if shape.name in self._earlier_layers]
            new_rows = [shape for shape in rows if shape.name not in self._earlier_layers]
            extended = [metric for metric in metrics if self.title(metric, readout) in self._earlier_titles]
            new_metrics = [metric for metric in metrics if self.title(metric, readout) not in self._earlier_titles]
            if new_metrics:
                jobs.append((rows, columns, new_metrics))
            if extended and new_rows:
                jobs.append((new_rows, columns, extended))
                if asymmetric := [metric for metric in extended if not metric.symmetric]:
                    jobs.append((old_rows, new_rows, asymmetric))
        return jobs

    # New values

    def enter(
        self,
        metric: Metric[Any],
        rows: Sequence[str],
        columns: Sequence[str],
        values: NDArray[np.float64],
        factors: Mapping[str, Factor],
        *,
        differences: NDArray[np.float64] | None = None,
        errors: NDArray[np.float64] | None = None,
    ) -> None:
        """Enter the values of a metric for these rows and columns, with reasons, cautions and diagnostics.

        ``differences`` are the values of the `ambiguity` of the metric, and ``errors`` the standard errors of the
        values.
        """
        title = self.title(metric, self._by_name[rows[0]].key.readout)
        matrix = self.values[title]
        self._place(metric, matrix, rows, columns, values)
        pairs = [(a, b) for a in rows for b in columns]
        if metric.symmetric and self.stores[0] == self.stores[1]:
            pairs += [(b, a) for a, b in pairs if b not in set(rows)]
        if errors is not None and self.intervals is not None:
            margin = self.intervals.margin * errors
            for end, block in zip(self.ends[title], (values - margin, values + margin), strict=True):
                self._place(metric, end, rows, columns, block)
        without_values = self._layers_without_values(matrix)
        for a, b in pairs:
            pair = f"{self._by_name[a].name} and {self._by_name[b].name}"
            if math.isnan(matrix[self._position[0][a], self._position[1][b]]):
                layers = [self._by_name[name].name for name in (a, b) if self._by_name[name].name in without_values]
                what = f"layer {layers[0]}" if layers else f"layers {pair}"
                self.undefined[title].add(f"{what}: {metric.reason(factors[a], factors[b])}")
            else:
                ambiguous = differences is not None and metric.ambiguous(differences[rows.index(a), columns.index(b)])
                at = self._position[0][a], self._position[1][b]
                endless = errors is not None and math.isnan(self.ends[title][0][at]) and _NO_INTERVAL
                for caution in filter(None, (metric.caution(factors[a], factors[b]), ambiguous, endless)):
                    self.cautions[title].append(f"{pair}: {caution}")
        self._enter_chance(metric, title, pairs, factors)
        for name in {*rows, *columns}:
            for diagnostic, number in metric.diagnostics(factors[name]).items():
                self.diagnostics[f"{title}.{diagnostic}"][name] = number

    def _place(
        self,
        metric: Metric[Any],
        matrix: NDArray[np.float64],
        rows: Sequence[str],
        columns: Sequence[str],
        values: NDArray[np.float64],
    ) -> None:
        """Write values of these rows and columns into a matrix; under a symmetric measure also the transposed ones."""
        i, j = [self._position[0][name] for name in rows], [self._position[1][name] for name in columns]
        matrix[np.ix_(i, j)] = values
        if metric.symmetric and self.stores[0] == self.stores[1]:
            matrix[np.ix_(j, i)] = values.T
            # a transposed product may round differently, so the lower triangle is copied from the upper one
            matrix[:] = np.where(np.tri(len(matrix), dtype=bool), matrix.T, matrix)

    def _enter_chance(
        self, metric: Metric[Any], title: str, pairs: Sequence[tuple[str, str]], factors: Mapping[str, Factor]
    ) -> None:
        """Enter the chance levels of pairs that have a value, unless there are too many of them."""
        if not metric.paired or len(pairs) > tuning.current().chance_pairs:
            return
        levels, values = self.chance[title], self.values[title]
        means: dict[tuple[str, str], float | None] = {}
        for a, b in pairs:
            at = self._position[0][a], self._position[1][b]
            if math.isnan(values[at]):
                continue
            key = (min(a, b), max(a, b)) if metric.symmetric else (a, b)
            if key not in means:
                means[key] = metric.chance_mean(factors[a], factors[b])
            if (mean := means[key]) is not None:
                levels[at] = mean

    def _with_chance(self, result: xr.Dataset, metric: Metric[Any], title: str) -> xr.Dataset:
        """Add the chance levels of a variable, if all its values have one and it is not 0."""
        levels = np.where(np.isnan(self.values[title]), np.nan, self.chance[title])
        if not metric.paired:
            kind = "undefined"
        elif np.isnan(levels[~np.isnan(self.values[title])]).any():
            kind = "unknown"
        else:
            kind = "known" if np.nanmax(np.abs(levels)) else "zero"
        result[title].attrs["chance"] = kind
        return result.assign_coords({title + CHANCE: (("layer_a", "layer_b"), levels)}) if kind == "known" else result

    def _layers_without_values(self, values: NDArray[np.float64]) -> set[str]:
        """Return layers whose values are all NaN: one reason for each is enough. If everything is NaN, return none."""
        empty = np.isnan(values)
        sides = zip(self._names, (empty, empty.T), strict=True)
        layers = {name for names, rows in sides for name, row in zip(names, rows, strict=True) if row.all()}
        return set() if empty.all() else layers

    def _record_undefined(self, metric: Metric[Any], readout: str, undefined: set[str]) -> list[str]:
        """Add to ``undefined`` the layers that the metric cannot read, and pairs of different readouts.

        Return the kinds of layers that it can read.
        """
        rows, columns, layers = (
            [layer for layer in side if readout in {"", layer.key.readout}]
            for side in (self.rows, self.columns, self.layers)
        )
        for names, side in zip(self._names, (rows, columns), strict=True):
            for name in dict.fromkeys(names) if readout else ():
                if name not in {layer.name for layer in side}:
                    undefined.add(f"layer {name}: it is not read out by {readout}")
        kinds = {layer.shape.kind: layer for layer in layers}
        readable = []
        for kind, layer in kinds.items():
            try:
                metric.recipe_for(layer.key.form)
                readable.append(kind)
            except UndefinedValueError as error:
                undefined |= {f"layer {other.name}: {error}" for other in layers if other.shape.kind == kind}
        for a in rows:
            for b in columns:
                if a.shape.kind != b.shape.kind and {a.shape.kind, b.shape.kind} <= set(readable):
                    first = (
                        next(x for x in side if x.shape.kind == y.shape.kind) for side, y in ((rows, a), (columns, b))
                    )
                    pair = " and ".join(sorted(layer.key.readout for layer in first))
                    undefined.add(f"layers read out as {pair}: only like can be compared with like")
        return readable

    # The result

    def dataset(
        self, metrics: Sequence[Metric[Any]], attrs: Mapping[str, Any], optional: Collection[str] = ()
    ) -> xr.Dataset:
        """Return the result.

        Raises
        ------
        UndefinedValueError
            If no pair has a value under some metric that is not ``optional``, or under any metric.
        """
        sides: dict[str, Any] = {}
        for side, names, layers in zip("ab", self._names, (self.rows, self.columns), strict=True):
            dim, first = f"layer_{side}", {layer.name: layer for layer in reversed(layers)}
            stores = [first[name].store for name in names]
            sides |= {dim: names, f"model_{side}": (dim, [store.model for store in stores])}
            axes = axis_coordinates([self._axes[store] for store in stores])
            sides |= {f"{name}_{side}": (dim, values) for name, values in axes.items()}
            for readout in self.readouts or [""]:
                by_name = {layer.name: layer for layer in layers if readout in {"", layer.key.readout}}
                features = [by_name[name].features if name in by_name else -1 for name in names]
                if len(self.readouts) > 1:  # the readout is then an attribute of each variable
                    sides[f"features@{readout}_{side}"] = (dim, features)
                else:
                    sides[f"features_{side}"] = (dim, features)
                    sides[f"readout_{side}"] = (dim, [by_name[name].key.readout for name in names])
        result = xr.Dataset(
            coords={**sides, "n_samples": self.n, "data": self._data},
            attrs={"format": FORMAT, "format_version": VERSION, **attrs}
            | {f"stores_{side}": self._store_attribute(stores) for side, stores in zip("ab", self.stores, strict=True)},
        )
        chosen = {
            "pairing": None if self._pairing is None else self._pairing.record,
            "readouts": self.readouts or None,
            "groups": None if self.intervals is None else self.intervals.record,
        }
        result.attrs |= {name: json.dumps(value) for name, value in chosen.items() if value is not None}
        for metric in metrics:
            failed = []
            for readout in self.readouts or [""]:
                try:
                    variable = self._variable(metric, readout)
                except UndefinedValueError as error:
                    failed.append(error)
                    continue
                title = self.title(metric, readout)
                result[title] = variable
                result = self._with_diagnostics(self._with_chance(result, metric, title), title)
                result = self._with_ends(result, title)
            if len(failed) == max(1, len(self.readouts)) and metric.spec not in optional:
                raise failed[0]
            self.left_out += map(str, failed)
        if not result.data_vars:
            raise UndefinedValueError(f"not one of these metrics has a value; {self.left_out[0]}")
        result.attrs["left_out"] = json.dumps(self.left_out)
        for name in map(str, result.coords):
            stem, _, side = name.rpartition("_")
            quantity = stem if side in {"a", "b"} else name
            suffix = f" ({side})" if quantity == stem else ""
            result[name].attrs["long_name"] = _LONG_NAMES.get(quantity, quantity.removeprefix(AXIS)) + suffix
        return result

    def _with_ends(self, result: xr.Dataset, title: str) -> xr.Dataset:
        """Add the ends of the intervals of a variable, if it has some."""
        if "interval" not in result[title].attrs:
            return result
        dims = "layer_a", "layer_b"
        return result.assign_coords(
            {title + end: (dims, of_end) for end, of_end in zip(ENDS, self.ends[title], strict=True)}
        )

    def _with_diagnostics(self, result: xr.Dataset, title: str) -> xr.Dataset:
        for name, numbers in self.diagnostics.items():
            if name.rpartition(".")[0] == title:
                for side, names, layers in zip("ab", self._names, (self.rows, self.columns), strict=True):
                    by_name = {x.name: numbers[x.shape.name] for x in layers if x.shape.name in numbers}
                    coordinate = [by_name.get(layer_name, -1) for layer_name in names]
                    result = result.assign_coords({f"{name}_{side}": (f"layer_{side}", coordinate)})
        return result

    def _store_attribute(self, stores: Sequence[ActivationStore]) -> str:
        return json.dumps(
            [
                {"model": store.model, "checksum": self._checksums[store], "provenance": store.provenance}
                for store in stores
            ]
        )

    def _variable(self, metric: Metric[Any], readout: str) -> xr.Variable:
        title = self.title(metric, readout)
        values, undefined = self.values[title], self.undefined[title]
        readable = self._record_undefined(metric, readout, undefined)
        if np.isnan(values).all():
            raise UndefinedValueError(f"{title}: no pair of layers has a value; {min(undefined)}")
        low, high = metric.bounds
        return xr.Variable(
            ("layer_a", "layer_b"),
            values,
            {
                "label": metric.label_with(*self._notes(readable, readout)),
                "spec": metric.spec,
                **({"readout": readout} if readout else {}),
                "sense": metric.sense,
                "valid_range": [low, high],
                "symmetric": int(metric.symmetric),
                "formula": metric.formula,
                "citation": metric.citation,
                "undefined": json.dumps(sorted(undefined)),
                "cautions": json.dumps(self._cautions(metric, readout)),
                "remarks": json.dumps(self._remarks(metric, readable, readout)),
                **(
                    {"interval": self.intervals.level}
                    if self.intervals is not None and self.has_interval(metric, readout)
                    else {}
                ),
            },
        )

    def _cautions(self, metric: Metric[Any], readout: str) -> list[str]:
        """Return the cautions of a variable: about too few samples first, then about single pairs."""
        title = self.title(metric, readout)
        measured = self.diagnostics.get(f"{title}.{metric.counted}", {})
        widths = [
            {
                position[layer.shape.name]: measured.get(layer.shape.name, layer.features)
                for layer in layers
                if readout in {"", layer.key.readout}
            }
            for position, layers in zip(self._position, (self.rows, self.columns), strict=True)
        ]
        pairs = [(widths[0][i], widths[1][j]) for i, j in np.argwhere(~np.isnan(self.values[title])).tolist()]
        scarce = metric.scarcity_of_all(self.n, [pair for pair in pairs if min(pair) > 0])
        return [*([scarce] if scarce else []), *self.cautions[title]]

    def _remarks(self, metric: Metric[Any], readable: Sequence[str], readout: str) -> list[str]:
        """Return remarks that apply to all values of a variable."""
        remarks = {metric.remark(self.n)} - {None}
        if self.intervals is not None:
            if not self.has_interval(metric, readout):
                remarks.add("no interval: only debiased CKA of features or sketches has an exact leave-one-out")
            elif self.intervals.groups is not None:
                remarks.add(
                    f"from pairs of samples of different groups; {self.intervals.units} groups are left out as wholes"
                )
        for layer in self.layers:
            key = layer.key
            if readout not in {"", key.readout}:
                continue
            if key.form == "grams" and layer.shape.kind in readable and self.n % key.size:
                left = self.n % key.size
                remarks.add(f"{left} of {self.n} samples are in no block of {key.size}, and left out of {key.readout}")
        return sorted(map(str, remarks))

    def _notes(self, readable: Sequence[str], readout: str) -> list[str]:
        """Return what the label states beside the parameters: the compression of all layers, or the readout."""
        keys = {layer.shape.kind: layer.key for layer in self.layers if readout in {"", layer.key.readout}}
        if len(keys) > 1 or not readable:
            return []
        (key,) = keys.values()
        compressions = {"grams": "minibatches of", "sketches": "two sketches of"}
        if key.form in compressions:
            return [f"{compressions[key.form]} {key.size}"]
        return [f"readout {readout}"] if len(self.readouts) > 1 else []
