"""Make the controls of a study from its stores: the input of the networks, and the classes of their samples.

They can make representations alike without any learning. The input is a set of kernels like those of layers: of the
pixels or tokens that went into the networks and of statistics of pictures or texts, stored at extraction. Classes are
controlled for by comparing within them. `repsim.study.untrained_networks` extracts the third kind of controls.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float64
from numpy.typing import NDArray

from repsim.labels import CHARACTERS, EMBEDDINGS, INPUT, INPUTS, STATISTICS, TOKENS, VALUES
from repsim.metrics.recipes.groups import Groups
from repsim.runtime.progress import Progress, counter, sharing
from repsim.runtime.threads import map_in_threads
from repsim.stores.alignment import AlignedView
from repsim.stores.store import ActivationStore
from repsim.study.design import Design
from repsim.study.input_kernels import MOST, Candidate, of_pixels, of_statistics, scaled, select
from repsim.study.text_kernels import of_characters, of_embeddings, of_tokens, read_tokens

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


def has_input(store: ActivationStore) -> bool:
    """Return whether a store holds the input of its network: pixels, tokens, or an input that is an array.

    Statistics, characters and embeddings alone say too little of it.
    """
    return any(store.control(*key) is not None for key in _MOST)


def inputs(
    stores: Sequence[ActivationStore], view: AlignedView | None = None, progress: Progress | None = None
) -> list[Control]:
    """Return the input of the networks as a few controls that are not all linear in it.

    The dictionaries of `repsim.study.input_kernels` and `repsim.study.text_kernels` are made of the input of every
    network: pixels and statistics of pictures; tokens, characters, statistics and static embeddings of texts; arrays.
    Equal ones, and those that differ by an offset and a scale, are used once. The kernels that span all are selected.
    So if some networks see pictures and others texts, both are controls of all layers. Stores without an input are not
    among the ``members``.
    If samples are paired, ``view`` says which rows of the stores belong together. ``progress`` is called with the
    number of kernels that are made, after the selection.
    """
    seen = tuple(store.model for store in stores if has_input(store))
    candidates = [*chain.from_iterable(_candidates(key, stores, view) for key in INPUTS)]
    most = sum(most for key, most in _MOST.items() if any(store.control(*key) is not None for store in stores))
    # computed in float64; in the precision of the inputs, products with layers need no conversion
    kinds = [values.dtype for store in stores for key in INPUTS if (values := store.control(*key)) is not None]
    dtype = np.float64 if np.float64 in kinds else np.float32
    selected = select(candidates, most=most or MOST)
    step = counter(len(selected), progress)
    with sharing(step):
        features = map_in_threads(lambda kernel: kernel.features().astype(dtype), selected)
    made = []
    for kernel, values in zip(selected, features, strict=True):
        made.append(Control(kernel.name, values, seen))
        step()
    return made


_MOST = {INPUT: MOST, TOKENS: 3 * MOST, VALUES: MOST}
"""Largest number of kernels that are selected for each kind of input; what networks can make of texts is more varied.

Each of these inputs alone determines what a network sees, or nearly so."""


def _candidates(
    key: tuple[str, str], stores: Sequence[ActivationStore], view: AlignedView | None
) -> Iterator[Candidate]:
    """Yield the kernels of one kind of input of all stores."""
    if key == EMBEDDINGS:  # those of untrained networks are random features of the tokens
        stores = [store for store in stores if store.provenance.get("weights") != "random"]
    by_model = {store.model: store for store in stores}

    def of_samples(store: ActivationStore) -> Values | None:
        values = _READERS[key](store)
        rows = None if view is None else view.rows(store)
        return values if values is None or rows is None else values[rows]

    arrays = _distinct((store.model, of_samples(store)) for store in stores)
    named = {name: _name(key, by_model[name]) for name in arrays}
    for name, values in arrays.items():
        what = _of(named[name], name, list(named.values()))
        if key == STATISTICS:
            yield from of_statistics(values, by_model[name].statistic_names, what)
        else:
            yield from _KERNELS[key](values, what)


def _name(key: tuple[str, str], store: ActivationStore) -> str:
    """Return a readable name of one kind of input."""
    if key == STATISTICS:
        return f"statistics of the {'picture' if store.control(*TOKENS) is None else 'text'}"
    return "static embeddings" if key == EMBEDDINGS else key[1]


def _of(what: str, name: str, all_inputs: Sequence[str]) -> str:
    """Return the name of an input: with that of its network only if there are several."""
    return what if all_inputs.count(what) == 1 else f"{what} of {name}"


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

    Pixels from `repsim.extract` are stored as vectors of three channels or one, of 8 x 8 pixels unless the picture is
    smaller. Arrays given to `repsim.write_store` have their shape.
    """
    if store.pixels is None:
        return None
    values = store.pixels[:].astype(np.float64)
    if store.provenance.get("extractor") == "given":
        return values if values.ndim > 2 else values[:, None]
    shapes = [spec.facts.get("output_shape") for spec in store.contents.arrays if spec.key.readout == INPUT[1]]
    channels = int(shapes[0][0]) if shapes and shapes[0] is not None else 3  # 1 of a network that takes grey pictures
    values = values.reshape(len(values), channels, -1)
    side = round(values.shape[-1] ** 0.5)
    return values.reshape(*values.shape[:2], side, side) if side**2 == values.shape[-1] > 1 else values


def _tokens(store: ActivationStore) -> Values | None:
    """Return the stored ids of tokens, (n, tokens), with -1 after the last one; None if there are none."""
    digits = _values(TOKENS)(store)
    return None if digits is None else read_tokens(digits.reshape(len(digits), 2, -1))


def _values(key: tuple[str, str]) -> Callable[[ActivationStore], Values | None]:
    """Return a function that reads one kind of input from a store, in float64."""

    def read(store: ActivationStore) -> Values | None:
        values = store.control(*key)
        return None if values is None else values[:].astype(np.float64)

    return read


def _of_values(values: Values, what: str) -> Iterator[Candidate]:
    return of_pixels(values if values.ndim > 2 else values[:, None], what)


_READERS: dict[tuple[str, str], Callable[[ActivationStore], Values | None]] = {
    **{key: _values(key) for key in INPUTS},
    INPUT: _pixels,
    TOKENS: _tokens,
}
_KERNELS: dict[tuple[str, str], Callable[[Any, str], Iterator[Candidate]]] = {
    INPUT: of_pixels,
    TOKENS: of_tokens,
    CHARACTERS: of_characters,
    EMBEDDINGS: of_embeddings,
    VALUES: _of_values,
}


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
