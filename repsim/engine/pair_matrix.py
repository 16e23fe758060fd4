"""The matrix of all pairs of layers, as it fills: values, what is to be known of them, and what is missing yet."""

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

from repsim.engine.planning import LayerShape
from repsim.errors import Argument, Function, InvalidInputError, Remedy, UndefinedValueError
from repsim.labels import LayerKey
from repsim.metrics import Factor, Metric
from repsim.metrics import get as metric_of
from repsim.results import schema
from repsim.results.summary import split_cautions
from repsim.results.versions import FORMAT, VERSION
from repsim.stores.store import ActivationStore

Job = tuple[list[LayerShape], list[LayerShape], list[Metric[Any]]]
_ANOTHER = Remedy("name another file, or use ", Argument("overwrite", value=True))
_LONG_NAMES = {"features": "values a sample", "n_samples": "number of samples", "data": "what the samples are"}


@dataclass(frozen=True)
class Layer:
    """One array of one of the stores."""

    store: ActivationStore
    array: str
    """Its name in the store."""
    name: str
    """Its name in the result."""
    shape: LayerShape
    """Whose name is unique, whatever the models are called."""

    @property
    def key(self) -> LayerKey:
        """Model, layer and readout."""
        return self.store[self.array].key

    @property
    def features(self) -> int:
        """Values that a sample has in the comparison, before a readout compressed them; -1 where that is not known."""
        if self.key.form == "features":
            return self.shape.p
        return math.prod(self.store.facts(self.array).get("output_shape", [-1]))


class Matrix:
    """Layers of ``stores_a`` by layers of ``stores_b``; where both are the same list, all layers by themselves.

    Every array is a layer of its own. But where ``readouts`` are named, only those arrays count, like is compared with
    like, and a matrix of the same layers is made for every readout, under titles such as ``cka@mean``.
    """

    def __init__(
        self,
        stores_a: Sequence[ActivationStore],
        stores_b: Sequence[ActivationStore],
        n: int,
        readouts: Sequence[str] = (),
    ) -> None:
        self.n, self.stores = n, (list(stores_a), list(stores_b))
        self.readouts = tuple(dict.fromkeys(readouts))
        every = list(dict.fromkeys((*stores_a, *stores_b)))
        self.several = len(stores_a) > 1
        models = [store.model for store in every]
        if self.several and len(set(models)) < len(models):
            twice = next(model for model in models if models.count(model) > 1)
            files = ", ".join(str(store.path) for store in every if store.model == twice)
            raise InvalidInputError(f"{files} are all of a model named {twice!r}, so their layers would share names")
        of = {store: self._layers(store, k) for k, store in enumerate(every)}
        self.rows, self.columns = ([layer for store in side for layer in of[store]] for side in self.stores)
        self.layers = [layer for some in of.values() for layer in some]
        self._names = tuple(list(dict.fromkeys(layer.name for layer in side)) for side in (self.rows, self.columns))
        """Of the rows and columns of the result, each of which may be several arrays."""
        self._place = tuple(
            {layer.shape.name: names.index(layer.name) for layer in side}
            for side, names in zip((self.rows, self.columns), self._names, strict=True)
        )
        self._by_name = {layer.shape.name: layer for layer in self.layers}
        shape = len(self._names[0]), len(self._names[1])
        self.values: dict[str, NDArray[np.float64]] = defaultdict(lambda: np.full(shape, np.nan))
        self.undefined: dict[str, set[str]] = defaultdict(set)
        self.cautions: dict[str, list[str]] = defaultdict(list)
        """Of single pairs; that there are too few samples is found once all values are there (`_cautions`)."""
        self.diagnostics: dict[str, dict[str, int]] = defaultdict(dict)
        """What a metric tells of single layers: ``title.name`` -> the layer's unique name -> number."""
        self.left_out: list[str] = []
        """Which variables are not in the result, and why: nobody asked for them by name."""
        self._old: set[str] = set()
        self._known: set[str] = set()

    def _layers(self, store: ActivationStore, k: int) -> list[Layer]:
        """The arrays of a store that count."""
        there = list(dict.fromkeys(store[name].key.readout for name in store.layers))
        if lacking := [readout for readout in self.readouts if readout not in there]:
            raise InvalidInputError(
                f"{store.path} holds no layer that is read out by {' or '.join(lacking)}, only by {', '.join(there)}",
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
        """The name of a variable of the result."""
        return f"{metric.spec}@{readout}" if len(self.readouts) > 1 else metric.spec

    def no_value(self, metric: Metric[Any], name: str, why: str) -> None:
        """A layer cannot even be prepared."""
        layer = self._by_name[name]
        self.undefined[self.title(metric, layer.key.readout)].add(f"layer {layer.name}: {why}")

    @cached_property
    def _checksums(self) -> dict[ActivationStore, str]:
        return {layer.store: layer.store.checksum for layer in self.layers}

    def identity(self, name: str) -> str:
        """What tells a layer from every other one there has ever been: its store's checksum, and its name there."""
        layer = self._by_name[name]
        return f"{self._checksums[layer.store]} {layer.array}"

    # What an earlier result holds already

    def take_over(self, known: xr.Dataset, metrics: Sequence[Metric[Any]]) -> list[Metric[Any]]:
        """Enter the values of an earlier result; returns all metrics that the new one will have.

        Raises
        ------
        InvalidInputError
            It is no result, is about other samples, about stores that have changed since, or holds what would be lost.
        """
        form = known.attrs.get("format")
        wrong = schema.problem(known) if form == FORMAT else f"its 'format' is {form!r}"
        if wrong:
            raise InvalidInputError("the earlier result is no result of ", Function("repsim.compare"), f": {wrong}")
        if known.attrs["samples_fingerprint"] != self.stores[0][0].sample_ids.fingerprint:
            raise InvalidInputError("the earlier result is about other samples", remedy=_ANOTHER)
        told = [
            {each["model"]: each["checksum"] for each in json.loads(known.attrs[f"stores_{side}"])} for side in "ab"
        ]
        now = [{store.model: self._checksums[store] for store in stores} for stores in self.stores]
        if lost := [model for model in told[0] | told[1] if model not in now[0] | now[1]]:
            raise InvalidInputError(
                f"the earlier result holds {', '.join(lost)}, which would be lost",
                remedy=Remedy("name its store, too, or another file, or use ", Argument("overwrite", value=True)),
            )
        square = self.stores[0] == self.stores[1]
        alike = told[0].keys() == told[1].keys() if square else [*map(list, told)] == [*map(list, now)]
        if not alike or (len(told[0]) > 1) is not self.several:
            sides = " by layers of ".join(map(", ".join, told))
            raise InvalidInputError(f"the earlier result is of another form: layers of {sides}", remedy=_ANOTHER)
        if changed := [
            model for there, here in zip(told, now, strict=True) for model in there if there[model] != here[model]
        ]:
            raise InvalidInputError(
                f"the store of {', '.join(dict.fromkeys(changed))} has changed since the earlier result",
                remedy=_ANOTHER,
            )
        before = json.loads(known.attrs.get("readouts", "[]"))
        if before != list(self.readouts):
            raise InvalidInputError(
                f"the earlier result is about {'these readouts: ' + ', '.join(before) if before else 'all readouts'}",
                remedy=Remedy("name the same, or another file, or use ", Argument("overwrite", value=True)),
            )
        names = [[str(name) for name in known[f"layer_{side}"].values] for side in "ab"]
        for there, layers, models in zip(names, (self.rows, self.columns), told, strict=True):
            whole = {layer.name for layer in layers if layer.store.model in models}
            if other := sorted(whole.symmetric_difference(there)):
                raise InvalidInputError(
                    f"the earlier result holds a part of the layers, or others: {schema.short(other[0])} is not both "
                    "in it and in the stores",
                    remedy=_ANOTHER,
                )
        self._old = {layer.shape.name for layer in self.layers if layer.name in names[0]}
        specs = [str(variable.attrs["spec"]) for variable in known.data_vars.values()]
        metrics = list({m.spec: m for m in (*map(metric_of, specs), *metrics)}.values())
        at = [[ours.index(name) for name in side] for ours, side in zip(self._names, names, strict=True)]
        for spec, variable in known.data_vars.items():
            self.values[str(spec)][np.ix_(*at)] = variable.values
            self.undefined[str(spec)] |= set(json.loads(variable.attrs["undefined"]))
            self.cautions[str(spec)] += split_cautions(json.loads(variable.attrs["cautions"]), known)[1]
            self._known.add(str(spec))
        for name, coordinate in known.coords.items():
            for side, layers, side_names in zip("ab", (self.rows, self.columns), names, strict=True):
                title = str(name)
                if "." in title and title.endswith(f"_{side}"):
                    by_name = dict(zip(side_names, coordinate.values.tolist(), strict=True))
                    numbers = {layer.shape.name: by_name[layer.name] for layer in layers if layer.name in by_name}
                    self.diagnostics[title[:-2]] |= numbers
        return metrics

    def missing(self, metrics: Iterable[Metric[Any]]) -> list[Job]:
        """Which rows have to be compared with which columns, under which measures."""
        metrics, jobs = list(metrics), []
        for readout in self.readouts or [""]:
            rows, columns = (
                [layer.shape for layer in side if readout in {"", layer.key.readout}]
                for side in (self.rows, self.columns)
            )
            old, new = ([shape for shape in rows if (shape.name in self._old) is was] for was in (True, False))
            known = {metric.spec: self.title(metric, readout) in self._known for metric in metrics}
            fresh, grown = ([metric for metric in metrics if known[metric.spec] is was] for was in (False, True))
            if fresh:
                jobs.append((rows, columns, fresh))
            if grown and new:
                jobs.append((new, columns, grown))
                if one_way := [metric for metric in grown if not metric.symmetric]:
                    jobs.append((old, new, one_way))
        return jobs

    # What comes in

    def enter(
        self,
        metric: Metric[Any],
        rows: Sequence[str],
        columns: Sequence[str],
        values: NDArray[np.float64],
        factors: Mapping[str, Factor],
    ) -> None:
        """Values of some rows and columns, and what their factors tell."""
        title = self.title(metric, self._by_name[rows[0]].key.readout)
        mine = self.values[title]
        at = [self._place[0][name] for name in rows], [self._place[1][name] for name in columns]
        mine[np.ix_(*at)] = values
        pairs = [(a, b) for a in rows for b in columns]
        if metric.symmetric and self.stores[0] == self.stores[1]:
            mine[np.ix_(at[1], at[0])] = values.T
            mine[:] = np.where(np.tri(len(mine), dtype=bool), mine.T, mine)  # a product may round otherwise transposed
            pairs += [(b, a) for a, b in pairs if b not in set(rows)]
        lonely = self._lonely(mine)
        for a, b in pairs:
            pair = f"{self._by_name[a].name} and {self._by_name[b].name}"
            if math.isnan(mine[self._place[0][a], self._place[1][b]]):
                blamed = next((self._by_name[x].name for x in (a, b) if self._by_name[x].name in lonely), None)
                what = f"layers {pair}" if blamed is None else f"layer {blamed}"
                self.undefined[title].add(f"{what}: {metric.reason(factors[a], factors[b])}")
            elif caution := metric.caution(factors[a], factors[b]):
                self.cautions[title].append(f"{pair}: {caution}")
        for name in {*rows, *columns}:
            for what, number in metric.diagnostics(factors[name]).items():
                self.diagnostics[f"{title}.{what}"][name] = number

    def _lonely(self, values: NDArray[np.float64]) -> set[str]:
        """Layers without one value, where others have some: one reason a layer is enough."""
        empty = np.isnan(values)
        sides = zip(self._names, (empty, empty.T), strict=True)
        found = {name for names, rows in sides for name, row in zip(names, rows, strict=True) if row.all()}
        return set() if empty.all() else found

    def _say_what_cannot_be(self, metric: Metric[Any], readout: str, undefined: set[str]) -> list[str]:
        """Layers that this metric cannot read, and pairs of unlike readouts; returns the kinds that it can."""
        rows, columns, layers = (
            [layer for layer in some if readout in {"", layer.key.readout}]
            for some in (self.rows, self.columns, self.layers)
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
                for each in layers:
                    if each.shape.kind == kind:
                        undefined.add(f"layer {each.name}: {error}")
        for a in rows:
            for b in columns:
                if a.shape.kind != b.shape.kind and {a.shape.kind, b.shape.kind} <= set(readable):
                    first = (
                        next(x for x in side if x.shape.kind == y.shape.kind) for side, y in ((rows, a), (columns, b))
                    )
                    pair = " and ".join(sorted(layer.key.readout for layer in first))
                    undefined.add(f"layers read out as {pair}: only like can be compared with like")
        return readable

    # What comes out

    def dataset(
        self, metrics: Sequence[Metric[Any]], attrs: Mapping[str, Any], optional: Collection[str] = ()
    ) -> xr.Dataset:
        """The result; `UndefinedValueError` where not one pair has a value, unless the metric is ``optional``."""
        sides: dict[str, Any] = {}
        for side, names, layers in zip("ab", self._names, (self.rows, self.columns), strict=True):
            dim, first = f"layer_{side}", {layer.name: layer for layer in reversed(layers)}
            sides |= {dim: names, f"model_{side}": (dim, [first[name].store.model for name in names])}
            for readout in self.readouts or [""]:
                of = {layer.name: layer for layer in layers if readout in {"", layer.key.readout}}
                features = [of[name].features if name in of else -1 for name in names]
                if len(self.readouts) > 1:  # each variable says which one it is of
                    sides[f"features@{readout}_{side}"] = (dim, features)
                else:
                    sides[f"features_{side}"] = (dim, features)
                    sides[f"readout_{side}"] = (dim, [of[name].key.readout for name in names])
        result = xr.Dataset(
            coords={**sides, "n_samples": self.n, "data": self.stores[0][0].data},
            attrs={"format": FORMAT, "format_version": VERSION, **attrs}
            | {f"stores_{side}": self._told(stores) for side, stores in zip("ab", self.stores, strict=True)},
        )
        if self.readouts:
            result.attrs["readouts"] = json.dumps(self.readouts)
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
                result = self._with_diagnostics(result, title)
            if len(failed) == max(1, len(self.readouts)) and metric.spec not in optional:
                raise failed[0]
            self.left_out += map(str, failed)
        if not result.data_vars:
            raise UndefinedValueError(f"not one of these metrics has a value; {self.left_out[0]}")
        result.attrs["left_out"] = json.dumps(self.left_out)
        for name in map(str, result.coords):
            stem, _, side = name.rpartition("_")
            what = stem if side in {"a", "b"} else name
            result[name].attrs["long_name"] = _LONG_NAMES.get(what, what) + (f" ({side})" if what == stem else "")
        return result

    def _with_diagnostics(self, result: xr.Dataset, title: str) -> xr.Dataset:
        for name, numbers in self.diagnostics.items():
            if name.rpartition(".")[0] == title:
                for side, names, layers in zip("ab", self._names, (self.rows, self.columns), strict=True):
                    of = {layer.name: numbers[layer.shape.name] for layer in layers if layer.shape.name in numbers}
                    told = [of.get(each, -1) for each in names]
                    result = result.assign_coords({f"{name}_{side}": (f"layer_{side}", told)})
        return result

    def _told(self, stores: Sequence[ActivationStore]) -> str:
        return json.dumps(
            [
                {"model": store.model, "checksum": self._checksums[store], "provenance": store.provenance}
                for store in stores
            ]
        )

    def _variable(self, metric: Metric[Any], readout: str) -> xr.Variable:
        title = self.title(metric, readout)
        values, undefined = self.values[title], self.undefined[title]
        readable = self._say_what_cannot_be(metric, readout, undefined)
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
            },
        )

    def _cautions(self, metric: Metric[Any], readout: str) -> list[str]:
        """Those of single pairs, after what concerns many: too few samples."""
        title = self.title(metric, readout)
        measured = self.diagnostics.get(f"{title}.{metric.counted}", {})
        widths = [
            {
                place[layer.shape.name]: measured.get(layer.shape.name, layer.features)
                for layer in layers
                if readout in {"", layer.key.readout}
            }
            for place, layers in zip(self._place, (self.rows, self.columns), strict=True)
        ]
        pairs = [(widths[0][i], widths[1][j]) for i, j in np.argwhere(~np.isnan(self.values[title])).tolist()]
        scarce = metric.scarcity_of_all(self.n, [pair for pair in pairs if min(pair) > 0])
        return [*([scarce] if scarce else []), *self.cautions[title]]

    def _remarks(self, metric: Metric[Any], readable: Sequence[str], readout: str) -> list[str]:
        """What is to be known of all values."""
        found = {metric.remark(self.n)} - {None}
        for layer in self.layers:
            key = layer.key
            if readout not in {"", key.readout}:
                continue
            if key.form == "grams" and layer.shape.kind in readable and self.n % key.size:
                left = self.n % key.size
                found.add(f"{left} of {self.n} samples are in no block of {key.size}, and left out of {key.readout}")
        return sorted(map(str, found))

    def _notes(self, readable: Sequence[str], readout: str) -> list[str]:
        """What the label has to say beside the parameters: how all layers are compressed, or of several the readout."""
        keys = {layer.shape.kind: layer.key for layer in self.layers if readout in {"", layer.key.readout}}
        if len(keys) > 1 or not readable:
            return []
        (key,) = keys.values()
        words = {"grams": "minibatches of", "sketches": "two sketches of"}
        if key.form in words:
            return [f"{words[key.form]} {key.size}"]
        return [f"readout {readout}"] if len(self.readouts) > 1 else []
