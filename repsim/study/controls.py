"""Make the controls of a study from its stores: the input of the networks, and the classes of their samples.

They can make representations alike without any learning. The input is a set of kernels like those of layers: of the
pixels that went into the networks and of the statistics of the pictures, both stored at extraction. Classes are
controlled for by comparing within them. `repsim.study.untrained_networks` extracts the third kind of controls.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float64
from numpy.typing import NDArray

from repsim.metrics.recipes.groups import Groups
from repsim.stores.alignment import AlignedView
from repsim.stores.store import ActivationStore
from repsim.study.design import Design
from repsim.study.input_kernels import of_pixels, of_statistics, scaled, select

Values = Float64[np.ndarray, "n *features"]
_LEAST_WITHIN = 4
"""Smallest number of samples, beyond one for each class, in half of the samples: what similarity within classes needs.
"""
_EQUAL = 1e-4
"""Inputs that differ by less than this share, after centring and scaling, are one: devices differ in rounding."""


@dataclass(frozen=True, eq=False)
class Control:
    """A kernel that is projected out of layers: the remaining similarity is not due to it."""

    name: str
    features: Float[np.ndarray, "n p"]
    members: tuple[str, ...] = ()
    """Names of the networks whose layers it is a control for: those whose input is stored."""


def inputs(stores: Sequence[ActivationStore], view: AlignedView | None = None) -> list[Control]:
    """Return the input of the networks as a few controls that are not all linear in the pixels.

    The dictionary of `repsim.study.input_kernels` is made of the pixels of every network and of the statistics of its
    pictures; equal ones, and those that differ by an offset and a scale, are used once. The kernels that span it are
    selected. The kernels of all pixels and of their mean over the picture come first, as a readout that averages over
    positions depends on them most. Stores without pixels have no input; they are not among the ``members``.
    If samples are paired, ``view`` says which rows of the stores belong together.
    """
    seen = tuple(store.model for store in stores if store.pixels is not None)

    def of_samples(store: ActivationStore, values: Values | None) -> Values | None:
        rows = None if view is None else view.rows(store)
        return values if values is None or rows is None else values[rows]

    pixels = _distinct((store.model, of_samples(store, _pixels(store))) for store in stores)
    statistics = _distinct((store.model, of_samples(store, _statistics(store))) for store in stores)
    named = {store.model: store.statistic_names for store in stores}
    candidates = [
        *chain.from_iterable(of_pixels(values, _of("pixels", name, pixels)) for name, values in pixels.items()),
        *chain.from_iterable(
            of_statistics(values, named[name], _of("statistics of the picture", name, statistics))
            for name, values in statistics.items()
        ),
    ]
    # computed in float64; in the precision of the pixels, products with layers need no conversion
    wide = any(store.pixels is not None and store.pixels.dtype == np.float64 for store in stores)
    dtype = np.float64 if wide else np.float32
    return [Control(kernel.name, kernel.features().astype(dtype), seen) for kernel in select(candidates)]


def _of(what: str, name: str, all_inputs: Mapping[str, Any]) -> str:
    """Return the name of an input: with that of its network only if there are several."""
    return what if len(all_inputs) == 1 else f"{what} of {name}"


def _distinct(arrays: Iterable[tuple[str, Values | None]]) -> dict[str, Values]:
    """Return the arrays that differ from earlier ones by more than an offset of each feature and one scale."""
    distinct: dict[str, Values] = {}
    unit: list[Values] = []
    for name, values in arrays:
        if values is None:
            continue
        x = scaled(values.reshape(len(values), -1))
        if not any(x.shape == other.shape and np.abs(x - other).max() < _EQUAL for other in unit):
            distinct[name] = values
            unit.append(x)
    return distinct


def _pixels(store: ActivationStore) -> Values | None:
    """Return the stored pixels, (n, channels, height, width), or (n, channels, positions); None if there are none.

    Pixels from `repsim.extract` are stored as vectors of three channels, of 8 x 8 pixels unless the picture is smaller.
    Arrays given to `repsim.write_store` have their shape.
    """
    if store.pixels is None:
        return None
    values = store.pixels[:].astype(np.float64)
    if store.provenance.get("extractor") == "given":
        return values if values.ndim > 2 else values[:, None]
    values = values.reshape(len(values), 3, -1)
    side = round(values.shape[-1] ** 0.5)
    return values.reshape(*values.shape[:2], side, side) if side**2 == values.shape[-1] > 1 else values


def _statistics(store: ActivationStore) -> Values | None:
    """Return the stored statistics of the pictures, (n, statistics); None if the store has none."""
    return None if store.statistics is None else store.statistics[:].astype(np.float64)


def classes(design: Design) -> Groups | None:
    """Return the classes of the samples, if similarity within classes can be computed (`objection_to_classes`).

    Stores that put the same samples into different classes are refused before (`AlignedView`).
    """
    labelled = [member.store for member in design.members if member.store.labels is not None]
    if not labelled:
        return None
    numbers = Groups(torch.from_numpy(_class_numbers(labelled[0])))
    return None if _objection(numbers, design.groups) else numbers


def objection_to_classes(design: Design) -> str:
    """Return why similarity within classes is not computed though labels are stored; empty if it is.

    It needs classes with several samples, also in half of the samples.
    """
    labelled = [member.store for member in design.members if member.store.labels is not None]
    return _objection(Groups(torch.from_numpy(_class_numbers(labelled[0]))), design.groups) if labelled else ""


def unjudged_classes(design: Design) -> str:
    """Return why it cannot be told what goes beyond the classes; empty if it can, or if there are no classes.

    One class of all samples, and classes of single samples, are not classes that networks could share.
    """
    held = next((member.store for member in design.members if member.store.labels is not None), None)
    if held is None or len(np.unique(np.asarray(held.labels))) in {1, design.n}:
        return ""
    return objection_to_classes(design)


def _objection(labels: Groups, groups: Groups | None) -> str:
    if labels.count == 1:
        return "all samples are of one class"
    if labels.trivial:
        return "every sample is of a class of its own"
    sizes = labels.sizes.double()
    in_half = sizes / 2 - 1 + 0.5**sizes  # samples of a class beyond the first, in half of all, on average
    if float(in_half.sum()) < _LEAST_WITHIN or int((sizes > 1).sum()) < 2:
        return f"the {labels.n} samples are of {labels.count} classes, with too few samples in each"
    if groups is not None and len(np.unique(np.stack([groups.numbers, labels.numbers]), axis=1).T) > groups.count:
        return "some groups have samples of several classes"
    return ""


def _class_numbers(store: ActivationStore) -> NDArray[np.intp]:
    """Return the class of every sample, numbered by first occurrence, so that the names of classes do not matter."""
    first, numbers = np.unique(np.asarray(store.labels), return_index=True, return_inverse=True)[1:]
    return np.argsort(np.argsort(first))[numbers]
