"""Arrange models along an axis: their values, their runs, which layers match, and which models are compared."""

import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import chain, pairwise
from typing import Any

import numpy as np
from jaxtyping import Int64

from repsim.errors import Argument, InvalidInputError, Remedy
from repsim.results.series_variables import NETWORK, OTHER_RUNS, PREVIOUS, REFERENCE
from repsim.stores.axes import AxisValue, in_words
from repsim.stores.store import ActivationStore

RUN_AXES = ("run", "seed")
"""Axes that tell runs apart if the user names none, the first that all models have."""
TIME_AXES = ("step", "epoch", "iteration", "tokens", "samples", "round", "time")
"""Axes along which the points of a run are states of one network."""
_STATED = Remedy("state it with ", Argument("axes", of="extract"), ", or in a table with ", Argument("axes_file"))


@dataclass(frozen=True, eq=False)
class Point:
    """A model on the axis."""

    store: ActivationStore
    value: float
    """Place on the axis; NaN for a reference that is not on the axis."""
    run: str
    """Name of its run; empty if there is one run."""
    axes: Mapping[str, AxisValue]
    """All coordinates of the model."""
    readout: str
    matched: Int64[np.ndarray, " G"]
    """The layer, as a position in `arrays`, that stands for each of the common layers of the series."""

    @property
    def name(self) -> str:
        """Name of the model."""
        return self.store.model

    @cached_property
    def arrays(self) -> tuple[str, ...]:
        """Names of its layers in the store."""
        return tuple(name for name in self.store.layers if self.store[name].key.readout == self.readout)

    @property
    def layers(self) -> tuple[str, ...]:
        """Names of its layers."""
        return tuple(self.store[name].key.layer for name in self.arrays)

    @cached_property
    def checksum(self) -> str:
        """Checksum of the store."""
        return self.store.checksum

    def __str__(self) -> str:
        return f"{self.store.path} ({in_words(self.axes)})"


@dataclass(frozen=True)
class Pair:
    """Two points that are compared, in the order of the series."""

    a: Point
    b: Point


@dataclass(frozen=True, eq=False)
class Arrangement:
    """The points of a series, and what they are compared with."""

    points: tuple[Point, ...]
    """Ordered by run, and then by value."""
    axis: str
    run_axis: str | None
    """Axis that tells runs apart; None if there is one run."""
    reference: str
    outside: Point | None
    """A reference that is not on the axis."""
    layers: tuple[str, ...]
    """Names of the common layers: those of the models, or relative depths."""
    matched_by: str
    """``names`` or ``relative depth``."""

    @property
    def everything(self) -> tuple[Point, ...]:
        """All models: the points, and the reference if it is not one of them."""
        return (*self.points, *([self.outside] if self.outside else []))

    @cached_property
    def runs(self) -> dict[str, tuple[Point, ...]]:
        """The points of every run."""
        names = dict.fromkeys(point.run for point in self.points)
        return {name: tuple(point for point in self.points if point.run == name) for name in names}

    @property
    def values(self) -> tuple[float, ...]:
        """All values of the axis, in increasing order."""
        return tuple(sorted({point.value for point in self.points}))

    @property
    def depths(self) -> tuple[float, ...]:
        """Relative depth of every common layer, from 0 to 1."""
        count = len(self.layers)
        return tuple(k / (count - 1) if count > 1 else 0.0 for k in range(count))

    def reference_of(self, point: Point) -> Point | None:
        """Return what a point is compared with; None if it has no reference."""
        if self.outside is not None:
            return self.outside
        run = self.runs[point.run]
        if self.reference == "last":
            return run[-1]
        if self.reference == "first":
            return run[0]
        if self.reference.startswith("run="):
            other = self.runs[self.reference.removeprefix("run=")]
            return next((p for p in other if p.value == point.value), None)
        return next(p for p in self.points if p.name == self.reference)

    def previous(self, point: Point) -> Point | None:
        """Return the point before it in its run; None for the first."""
        run = self.runs[point.run]
        k = run.index(point)
        return run[k - 1] if k else None

    def others(self, point: Point) -> list[Point]:
        """Return the points of other runs with the same value."""
        return [p for p in self.points if p.value == point.value and p.run != point.run]

    def partners(self, point: Point) -> dict[str, list[Point]]:
        """Return what a point is compared with, by the kind of comparison."""
        reference, previous = self.reference_of(point), self.previous(point)
        return {
            REFERENCE: [reference] if reference else [],
            PREVIOUS: [previous] if previous else [],
            OTHER_RUNS: self.others(point),
        }

    @property
    def comparisons(self) -> tuple[str, ...]:
        """Kinds of comparisons that exist."""
        return tuple(
            kind for kind in (REFERENCE, PREVIOUS, OTHER_RUNS) if any(self.partners(p)[kind] for p in self.points)
        )

    def pair(self, a: Point, b: Point) -> Pair:
        """Return the pair of two points in the order of the series, so that each pair is computed once."""
        order = self.everything
        return Pair(a, b) if order.index(a) <= order.index(b) else Pair(b, a)

    def pairs(self) -> list[Pair]:
        """Return all pairs that are computed, ordered so that neighbours have a model in common."""
        by_value = sorted(self.points, key=lambda point: (point.value, point.run))
        pairs: dict[tuple[str, str], Pair] = {}
        for point in (*([self.outside] if self.outside else []), *by_value):
            partners = [point] if point is self.outside else [point, *chain(*self.partners(point).values())]
            for partner in partners:
                pair = self.pair(point, partner)
                pairs.setdefault((pair.a.name, pair.b.name), pair)
        return list(pairs.values())


def arrange(
    stores: Sequence[ActivationStore],
    axis: str,
    *,
    run: str | None = None,
    reference: str = "last",
    readout: str | None = None,
    axes: Mapping[str, Mapping[str, AxisValue]] | None = None,
) -> Arrangement:
    """Arrange the models of stores along an axis.

    Parameters
    ----------
    stores : sequence of ActivationStore
        The models.
    axis : str
        Axis along which they stand; their values have to be numbers.
    run : str, optional
        Axis that tells runs apart; by default ``run`` or ``seed``, the first that all models have.
    reference : str
        ``last`` or ``first`` (of the run of each point), the name of a model, which need not be on the axis, or
        ``run=NAME``, the same value of the axis in another run.
    readout : str, optional
        Readout to compare, if stores hold several.
    axes : mapping of str to mapping, optional
        Further coordinates, by the name of the model, which take precedence over those of the stores.

    Raises
    ------
    InvalidInputError
        If no store has the axis, or one lacks it; a value is a text; fewer than two values exist; two models of a run
        stand at one value; a run or a reference is not there; two models have one name.
    """
    names = [store.model for store in stores]
    if twice := [name for name in dict.fromkeys(names) if names.count(name) > 1]:
        files = ", ".join(str(store.path) for store in stores if store.model == twice[0])
        raise InvalidInputError(f"{files} are all of a model named {twice[0]!r}; every point needs a name of its own")
    coordinates = {store.model: {**store.axes, **(axes or {}).get(store.model, {})} for store in stores}
    readouts = _readout(stores, readout)
    outside = None
    on_axis = list(stores)
    if reference in coordinates and axis not in coordinates[reference]:
        outside = next(store for store in stores if store.model == reference)
        on_axis.remove(outside)
    run_axis = _run_axis(on_axis, coordinates, axis, run)
    points = [
        Point(
            store, _value(store, coordinates[store.model], coordinates, axis),
            "" if run_axis is None else str(coordinates[store.model][run_axis]), coordinates[store.model],
            readouts, np.zeros(0, int),
        )
        for store in on_axis
    ]  # fmt: skip
    points.sort(key=lambda point: (_natural(point.run), point.value))
    _check_points(points, axis, run_axis)
    base = Point(outside, float("nan"), "", coordinates[outside.model], readouts, np.zeros(0, int)) if outside else None
    layers, matched_by, places = _match([*points, *([base] if base else [])])
    points = [replace(point, matched=place) for point, place in zip(points, places, strict=False)]
    base = replace(base, matched=places[-1]) if base else None
    arranged = Arrangement(tuple(points), axis, run_axis, reference, base, layers, matched_by)
    _check_reference(arranged)
    return arranged


def _readout(stores: Sequence[ActivationStore], readout: str | None) -> str:
    """Return the readout to compare, which all stores have to hold."""
    of_stores = {store.path: list(dict.fromkeys(store[name].key.readout for name in store.layers)) for store in stores}
    common = [r for r in next(iter(of_stores.values())) if all(r in others for others in of_stores.values())]
    if readout is not None:
        for path, others in of_stores.items():
            if readout not in others:
                raise InvalidInputError(
                    f"{path} holds no layer that is read out by {readout}, only by {', '.join(others)}"
                )
        return readout
    if not common:
        raise InvalidInputError("the stores hold no readout in common: " + _first_two(of_stores))
    store = stores[0]
    chosen = common[0]
    forms = {store[name].key.form for name in store.layers if store[name].key.readout == chosen}
    if forms != {"features"}:
        raise InvalidInputError(
            f"{store.path} holds compressed readouts ({chosen}), of which no series is computed",
            remedy=Remedy("extract with ", Argument("readout", "mean", of="extract")),
        )
    return chosen


def _first_two(of_stores: Mapping[Any, Sequence[str]]) -> str:
    return "; ".join(f"{path}: {', '.join(readouts)}" for path, readouts in list(of_stores.items())[:2])


def _run_axis(
    stores: Sequence[ActivationStore], coordinates: Mapping[str, Mapping[str, AxisValue]], axis: str, run: str | None
) -> str | None:
    """Return the axis that tells runs apart, if there is one."""
    if run == axis:
        raise InvalidInputError(f"{axis} is the axis of the series; runs need another axis to tell them apart")
    for name in [run] if run else [name for name in RUN_AXES if name != axis]:
        having = [store for store in stores if name in coordinates[store.model]]
        if len(having) == len(stores):
            return name
        if having or run:
            lacking = next(store for store in stores if store not in having)
            raise InvalidInputError(
                f"{len(stores) - len(having)} of {len(stores)} models have no {name}, which tells runs apart, the "
                f"first {lacking.path} ({in_words(coordinates[lacking.model]) or 'no axes'})",
                remedy=_STATED,
            )
    return None


def _value(
    store: ActivationStore,
    own: Mapping[str, AxisValue],
    coordinates: Mapping[str, Mapping[str, AxisValue]],
    axis: str,
) -> float:
    """Return where a model stands on the axis."""
    if axis not in own:
        names = dict.fromkeys(name for others in coordinates.values() for name in others)
        if axis not in names:
            held = f"; they have {', '.join(names)}" if names else ""
            raise InvalidInputError(f"no store has the axis {axis}{held}", remedy=_STATED)
        raise InvalidInputError(
            f"{store.path} does not say where it stands on the axis {axis} ({in_words(own) or 'it has no axes'})",
            remedy=_STATED,
        )
    value = own[axis]
    if isinstance(value, str):
        raise InvalidInputError(f"{store.path} has {axis}={value!r}, a text; a series needs numbers")
    return float(value)


def _natural(name: str) -> tuple[int, float, str]:
    """Return a key that orders numbers by size, and before texts."""
    with suppress(ValueError):
        if math.isfinite(number := float(name)):
            return (0, number, name)
    return (1, 0.0, name)


def _check_points(points: Sequence[Point], axis: str, run_axis: str | None) -> None:
    """Refuse fewer than two values, and two models at one value of a run."""
    for a, b in pairwise(points):
        if (a.run, a.value) == (b.run, b.value):
            differing = [name for name in a.axes if name != axis and a.axes[name] != b.axes.get(name)]
            told = f"; they differ in {', '.join(differing)}" if differing else ""
            place = f"{axis}={a.value:g}{f' of {run_axis}={a.run}' if run_axis else ''}"
            raise InvalidInputError(
                f"two models stand at {place}: {a} and {b}{told}",
                remedy=Remedy(
                    "name the axis that tells runs apart with ", Argument("run"), ", or leave one of them out"
                ),
            )
    if len({point.value for point in points}) < 2:
        raise InvalidInputError(
            f"a series needs two values of {axis} or more, and all {len(points)} models stand at {points[0].value:g}"
            if points
            else f"a series needs models at two values of {axis} or more"
        )


def _check_reference(arranged: Arrangement) -> None:
    """Refuse a reference that is not there."""
    reference = arranged.reference
    if arranged.outside is not None or reference in {"first", "last"}:
        return
    if reference.startswith("run="):
        run = reference.removeprefix("run=")
        if run not in arranged.runs:
            raise InvalidInputError(f"no run is named {run!r}; there are {', '.join(map(repr, arranged.runs))}")
        if not any(arranged.reference_of(p) is not None and p.run != run for p in arranged.points):
            raise InvalidInputError(f"no model of another run stands at a value of {arranged.axis} that run {run} has")
        return
    if reference not in {point.name for point in arranged.points}:
        raise InvalidInputError(
            f"the reference {reference!r} is none of these models; write first, last, run=NAME, or the name of a model"
        )


def _match(points: Sequence[Point]) -> tuple[tuple[str, ...], str, list[Int64[np.ndarray, " G"]]]:
    """Return the names of the common layers, how layers match, and the matching layers of every point.

    Layers match by name if all models have the same names. Otherwise they match by relative depth: the number of
    common layers is that of the shallowest model, and each model stands with its layer nearest in relative depth.
    """
    first = points[0].layers
    if all(point.layers == first for point in points):
        names = tuple(f"{name} (layer)" if name == NETWORK else name for name in first)
        return names, "names", [np.arange(len(first)) for _ in points]
    count = min(len(point.layers) for point in points)
    depths = np.linspace(0, 1, count) if count > 1 else np.zeros(1)
    places = [np.floor(depths * (len(point.layers) - 1) + 0.5).astype(int) for point in points]
    digits = max(2, len(str(count)))  # enough for names that differ
    return tuple(f"{depth:.{digits}f}" for depth in depths), "relative depth", places
