"""The matrix of all pairs of layers, as it fills: values, what is to be known of them, and what is missing yet."""

import json
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from repsim.errors import InvalidInputError, UndefinedValueError
from repsim.labels import LayerKey
from repsim.metrics import Factor, Metric
from repsim.metrics import get as metric_of
from repsim.plan import LayerShape
from repsim.results import FORMAT, VERSION
from repsim.store import ActivationStore

Job = tuple[list[LayerShape], list[LayerShape], list[Metric[Any]]]


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
    """Layers of ``stores_a`` by layers of ``stores_b``; where both are the same list, all layers by themselves."""

    def __init__(self, stores_a: Sequence[ActivationStore], stores_b: Sequence[ActivationStore], n: int) -> None:
        self.n, self.stores = n, (list(stores_a), list(stores_b))
        every = list(dict.fromkeys((*stores_a, *stores_b)))
        self.several = len(stores_a) > 1
        models = [store.model for store in every]
        if self.several and len(set(models)) < len(models):
            twice = next(model for model in models if models.count(model) > 1)
            files = ", ".join(str(store.path) for store in every if store.model == twice)
            raise InvalidInputError(f"{files} are all of a model named {twice!r}, so their layers would share names")
        layers = [[self._layer(store, k, name) for name in store.layers] for k, store in enumerate(every)]
        of = dict(zip(every, layers, strict=True))
        self.rows, self.columns = ([layer for store in side for layer in of[store]] for side in self.stores)
        self.layers = [layer for some in layers for layer in some]
        self._place = tuple({layer.shape.name: i for i, layer in enumerate(side)} for side in (self.rows, self.columns))
        self._by_name = {layer.shape.name: layer for layer in self.layers}
        shape = len(self.rows), len(self.columns)
        self.values: dict[str, NDArray[np.float64]] = defaultdict(lambda: np.full(shape, np.nan))
        self.undefined: dict[str, set[str]] = defaultdict(set)
        self.cautions: dict[str, list[str]] = defaultdict(list)
        self.diagnostics: dict[str, dict[str, int]] = defaultdict(dict)
        """What a metric tells of single layers: ``spec.name`` -> the layer's unique name -> number."""
        self._old: set[str] = set()
        self._known: set[str] = set()

    def _layer(self, store: ActivationStore, k: int, name: str) -> Layer:
        array = store[name]
        key = array.key
        shape = LayerShape(
            f"{k}/{name}",
            math.prod(array.shape[1:]),
            array.dtype.itemsize,
            key.form,
            "features" if key.form == "features" else key.readout,
        )
        return Layer(store, name, f"{store.model}/{name}" if self.several else name, shape)

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
            It is about other samples, about stores that have changed since, or holds what would be lost.
        """
        if known.attrs["samples_fingerprint"] != self.stores[0][0].sample_ids.fingerprint:
            raise InvalidInputError("the earlier result is about other samples; name another file, or use --overwrite")
        there: list[dict[str, str]] = []
        for side, stores in zip("ab", self.stores, strict=True):
            told = {each["model"]: each["checksum"] for each in json.loads(known.attrs[f"stores_{side}"])}
            now = {store.model: self._checksums[store] for store in stores}
            if lost := [model for model in told if model not in now]:
                raise InvalidInputError(
                    f"the earlier result holds {', '.join(lost)}, which would be lost; name its store, too, or another "
                    "file, or use --overwrite"
                )
            if changed := [model for model, checksum in told.items() if now[model] != checksum]:
                raise InvalidInputError(
                    f"the store of {', '.join(changed)} has changed since the earlier result; name another file, or "
                    "use --overwrite"
                )
            there.append(told)
        names = [[str(name) for name in known[f"layer_{side}"].values] for side in "ab"]
        square = self.stores[0] == self.stores[1]
        self._old = {layer.shape.name for layer in self.layers if layer.name in names[0]}
        if (square and names[0] != names[1]) or (not square and len(there[0]) + len(there[1]) != 2):
            raise InvalidInputError(
                "the earlier result is of another form (two stores, or all layers of several); name another file, or "
                "use --overwrite"
            )
        metrics = list({m.spec: m for m in (*map(metric_of, map(str, known.data_vars)), *metrics)}.values())
        at = [
            [i for i, layer in enumerate(side) if layer.name in set(there)]
            for side, there in zip((self.rows, self.columns), names, strict=True)
        ]
        for spec, variable in known.data_vars.items():
            self.values[str(spec)][np.ix_(*at)] = variable.values
            self.undefined[str(spec)] |= set(json.loads(variable.attrs["undefined"]))
            self.cautions[str(spec)] += json.loads(variable.attrs["cautions"])
            self._known.add(str(spec))
        for name, coordinate in known.coords.items():
            for side, layers, side_names in zip("ab", (self.rows, self.columns), names, strict=True):
                title = str(name)
                if "." in title and title.endswith(f"_{side}"):
                    told = dict(zip(side_names, coordinate.values.tolist(), strict=True))
                    numbers = {layer.shape.name: told[layer.name] for layer in layers if layer.name in told}
                    self.diagnostics[title[:-2]] |= numbers
        return metrics

    def missing(self, metrics: Iterable[Metric[Any]]) -> list[Job]:
        """Which rows have to be compared with which columns, under which measures."""
        rows, columns = ([layer.shape for layer in side] for side in (self.rows, self.columns))
        old, new = ([shape for shape in rows if (shape.name in self._old) is was] for was in (True, False))
        jobs: list[Job] = []
        fresh = [metric for metric in metrics if metric.spec not in self._known]
        grown = [metric for metric in metrics if metric.spec in self._known]
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
        mine = self.values[metric.spec]
        at = [self._place[0][name] for name in rows], [self._place[1][name] for name in columns]
        mine[np.ix_(*at)] = values
        if metric.symmetric and self.stores[0] == self.stores[1]:
            mine[np.ix_(at[1], at[0])] = values.T
        lonely: set[str] = set()
        for i, a in enumerate(rows):
            for j, b in enumerate(columns):
                pair = f"{self._by_name[a].name} and {self._by_name[b].name}"
                if math.isnan(values[i, j]):
                    if lonely.isdisjoint((a, b)):  # one reason a layer is enough
                        self.undefined[metric.spec].add(f"layers {pair}: {metric.reason(factors[a], factors[b])}")
                elif caution := metric.caution(factors[a], factors[b]):
                    self.cautions[metric.spec].append(f"{pair}: {caution}")
        for name in {*rows, *columns}:
            for what, number in metric.diagnostics(factors[name]).items():
                self.diagnostics[f"{metric.spec}.{what}"][name] = number

    def _say_what_cannot_be(self, metric: Metric[Any]) -> list[str]:
        """Layers that this metric cannot read, and pairs of unlike readouts; returns the kinds that it can."""
        kinds = {layer.shape.kind: layer for layer in self.layers}
        readable = []
        for kind, layer in kinds.items():
            try:
                metric.recipe_for(layer.key.form)
                readable.append(kind)
            except UndefinedValueError as error:
                for each in self.layers:
                    if each.shape.kind == kind:
                        self.undefined[metric.spec].add(f"layer {each.name}: {error}")
        for a in self.rows:
            for b in self.columns:
                if a.shape.kind != b.shape.kind and {a.shape.kind, b.shape.kind} <= set(readable):
                    first = (
                        next(x for x in side if x.shape.kind == y.shape.kind)
                        for side, y in ((self.rows, a), (self.columns, b))
                    )
                    pair = " and ".join(sorted(layer.key.readout for layer in first))
                    self.undefined[metric.spec].add(f"layers read out as {pair}: only like can be compared with like")
        return readable

    # What comes out

    def dataset(self, metrics: Sequence[Metric[Any]], attrs: Mapping[str, Any]) -> xr.Dataset:
        """The result; `UndefinedValueError` where not one pair has a value."""
        sides: dict[str, Any] = {}
        for side, layers in zip("ab", (self.rows, self.columns), strict=True):
            dim = f"layer_{side}"
            sides |= {
                dim: [layer.name for layer in layers],
                f"model_{side}": (dim, [layer.store.model for layer in layers]),
                f"readout_{side}": (dim, [layer.key.readout for layer in layers]),
                f"features_{side}": (dim, [layer.features for layer in layers]),
            }
        result = xr.Dataset(
            coords={**sides, "n_samples": self.n, "data": self.stores[0][0].data},
            attrs={"format": FORMAT, "format_version": VERSION, **attrs}
            | {f"stores_{side}": self._told(stores) for side, stores in zip("ab", self.stores, strict=True)},
        )
        for metric in metrics:
            result[metric.spec] = self._variable(metric)
            for title, numbers in self.diagnostics.items():
                if title.rpartition(".")[0] == metric.spec:
                    for side, layers in zip("ab", (self.rows, self.columns), strict=True):
                        told = [numbers.get(layer.shape.name, -1) for layer in layers]
                        result = result.assign_coords({f"{title}_{side}": (f"layer_{side}", told)})
        return result

    def _told(self, stores: Sequence[ActivationStore]) -> str:
        return json.dumps(
            [
                {"model": store.model, "checksum": self._checksums[store], "provenance": store.provenance}
                for store in stores
            ]
        )

    def _variable(self, metric: Metric[Any]) -> xr.Variable:
        readable = self._say_what_cannot_be(metric)
        values, undefined = self.values[metric.spec], self.undefined[metric.spec]
        if np.isnan(values).all():
            raise UndefinedValueError(f"{metric.spec}: no pair of layers has a value; {min(undefined)}")
        low, high = metric.bounds
        return xr.Variable(
            ("layer_a", "layer_b"),
            values,
            {
                "label": metric.label_with(*self._notes(readable)),
                "spec": metric.spec,
                "sense": metric.sense,
                "valid_range": [low, high],
                "symmetric": int(metric.symmetric),
                "formula": metric.formula,
                "citation": metric.citation,
                "undefined": json.dumps(sorted(undefined)),
                "cautions": json.dumps(self.cautions[metric.spec]),
                "remarks": json.dumps(self._remarks(metric, readable)),
            },
        )

    def _remarks(self, metric: Metric[Any], readable: Sequence[str]) -> list[str]:
        """What is to be known of all values."""
        found = {metric.remark(self.n)} - {None}
        for layer in self.layers:
            key = layer.key
            if key.form == "grams" and layer.shape.kind in readable and self.n % key.size:
                left = self.n % key.size
                found.add(f"{left} of {self.n} samples are in no block of {key.size}, and left out of {key.readout}")
        return sorted(map(str, found))

    def _notes(self, readable: Sequence[str]) -> list[str]:
        """What the label has to say beside the parameters, where all layers are compressed in one way."""
        keys = {layer.shape.kind: layer.key for layer in self.layers}
        if len(keys) > 1 or not readable:
            return []
        (key,) = keys.values()
        words = {"grams": "minibatches of", "sketches": "two sketches of"}
        return [f"{words[key.form]} {key.size}"] if key.form in words else []
