"""Describe arrays of a user as the contents of a store, whether they are written to a file or stay in memory."""

import os
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from repsim.errors import InvalidInputError
from repsim.labels import LayerKey, SampleIds, check_name
from repsim.runtime.arrays import as_array, as_classes, as_groups, is_tensor, same_rows
from repsim.stores.axes import ENTRY, StatedAxes, check_axes, refuse_axes_in
from repsim.stores.inputs import given_inputs
from repsim.stores.records import as_json
from repsim.stores.schema import ArraySpec, Contents

_LONGEST_ID = 4096
"""Largest number of bytes of a sample id, the longest path of Linux. Each id of a store takes as many bytes as the
longest one."""


@dataclass(frozen=True)
class Described:
    """Arrays of a user, with the contents of the store that they make."""

    contents: Contents
    arrays: Mapping[LayerKey, Any]
    """Arrays by key, in depth order; the controls are last."""


def convert_layers(layers: Any, convert: Callable[[Any, str], Any]) -> dict[str, Any]:
    """Convert the arrays of a dictionary of layers with ``convert(array, name for messages)``."""
    if not isinstance(layers, Mapping):
        raise InvalidInputError(
            f"layers: expected a dictionary {{name: array (n samples, ...)}}, got {type(layers).__name__}"
        )
    for name in layers:
        check_name("layer", name)
    return {str(name): convert(values, f"layer {name!r}") for name, values in layers.items()}


def describe(
    arrays: Mapping[str, Any],
    layers: Mapping[str, Any],
    dtype: str,
    *,
    model: str,
    pixels: Any,
    controls: Mapping[str, Any] | None,
    sample_ids: Iterable[str | int] | None,
    labels: Any,
    groups: Any,
    readout: str,
    source: str,
    axes: StatedAxes | None,
    provenance: Mapping[str, Any] | None,
) -> Described:
    """Check converted arrays, and describe the store that they make.

    Parameters
    ----------
    arrays : dict of str to array or tensor of shape (n, ...)
        The layers, converted by `convert_layers`.
    layers : dict of str to array-like
        The layers as the user passed them; data frames have names of rows.
    dtype : str
        Name of the type of the stored values.
    model, pixels, controls, sample_ids, labels, groups, readout, source, axes, provenance
        As in `repsim.write_store`.

    Raises
    ------
    InvalidInputError
        As in `repsim.write_store`.
    """
    for kind, name in (("the model", model), ("readout", readout)):
        check_name(kind, name)
    shapes = {name: tuple(values.shape) for name, values in arrays.items()}
    if len({shape[:1] for shape in shapes.values()}) > 1 or any(
        len(shape) < 2 or 0 in shape for shape in shapes.values()
    ):
        raise InvalidInputError(
            f"every layer must be (n samples, features ...) with the same n, got {_shapes_in_words(shapes)}"
        )
    n = next(iter(shapes.values()))[0] if shapes else 0
    rows = {f"layer {name!r}": values for name, values in layers.items()}
    names = same_rows(rows | {"pixels": pixels, "labels": labels, "groups": groups})
    ids = _ids(sample_ids, names, n)
    keys = {LayerKey(model, name, readout): values for name, values in arrays.items()}
    if reserved := next((key for key in keys if key.control), None):
        raise InvalidInputError(
            f"{reserved.label} is no layer; pass it as pixels or in controls, or use another name for the layer or the "
            "readout"
        )
    specs = tuple(ArraySpec(key, tuple(values.shape[1:])) for key, values in keys.items())
    if keys:  # without layers the writer refuses the store
        inputs, of_inputs = given_inputs(model, pixels, controls, n)
        keys |= inputs
        specs += of_inputs
    numbers, classes = (None, ()) if labels is None else as_classes(labels, n)
    if not isinstance(provenance, Mapping | None):
        raise InvalidInputError(f"provenance: expected a dictionary, got {type(provenance).__name__}")
    refuse_axes_in(provenance or {})
    record = {"extractor": "given", **_converted_dtypes(layers, arrays), **as_json(provenance or {}, "provenance")}
    record |= {ENTRY: stated} if (stated := check_axes(axes or {})) else {}
    group_numbers, group_names = (None, ()) if groups is None else as_groups(groups, n)
    contents = Contents(
        specs, SampleIds(ids), source, record, dtype, numbers, classes, groups=group_numbers, group_names=group_names
    )
    return Described(contents, keys)


def check_contents(contents: Contents) -> None:
    """Check that a store can hold these contents: unique ids, names without slashes, labels and groups for each id."""
    ids = contents.sample_ids.ids
    if len(set(ids)) < len(ids):
        repeated = next(name for name, count in Counter(ids).items() if count > 1)
        raise InvalidInputError(f"sample id {repeated!r} occurs twice; ids must be unique")
    for name in ids:
        check_name("sample id", name, _LONGEST_ID)
    for name in contents.classes:
        check_name("class", name)
    for name in contents.group_names:
        check_name("group", name)
    if contents.labels is not None and len(contents.labels) != len(ids):
        raise InvalidInputError(f"{len(contents.labels)} labels for {len(ids)} samples")
    if contents.groups is not None and len(contents.groups) != len(ids):
        raise InvalidInputError(f"{len(contents.groups)} groups for {len(ids)} samples")
    if all(spec.key.control for spec in contents.arrays):
        raise InvalidInputError("a store needs at least one layer")
    if contents.source != "":
        check_name("the source", contents.source, _LONGEST_ID)
    for spec in contents.arrays:
        check_name("the model", spec.key.model)
        for what, part in (("layer", spec.key.layer), ("readout", spec.key.readout)):
            check_name(what, part)
            if "/" in part or part == ".":
                raise InvalidInputError(f"{part!r} cannot name a {what}: it may not hold a slash (use dots)")
        if not contents.rows(spec):
            raise InvalidInputError(f"{spec.key} needs at least {spec.block} samples, got {len(ids)}")


def common_dtype(kinds: Mapping[str, str]) -> str:
    """Return the common dtype of all layers; refuse layers with different dtypes."""
    wrong = next((name for name, kind in kinds.items() if kind not in {"float16", "float32", "float64"}), None)
    if wrong is not None:
        raise InvalidInputError(
            f"layers must all be float16, float32 or float64, got {kinds[wrong]} in layer {wrong!r}; convert it with "
            "astype, as in x.astype('float32')"
        )
    first = next(iter(kinds), "")
    different = next((name for name, kind in kinds.items() if kind != kinds[first]), None)
    if different is not None:
        raise InvalidInputError(
            f"layers must all be float16, float32 or float64, the same for all, got {kinds[first]} in layer {first!r} "
            f"and {kinds[different]} in layer {different!r}; convert them to the widest with astype"
        )
    return kinds.get(first, "float32")


def _ids(sample_ids: Any, names: tuple[str, ...] | None, n: int) -> tuple[str, ...]:
    """Return the sample ids of the user, or else the names of rows, or else numbers."""
    if sample_ids is None:
        return names or tuple(map(str, range(n)))
    if isinstance(sample_ids, str | bytes | set | frozenset | Mapping):
        raise InvalidInputError(f"sample_ids: expected a sequence of {n} ids, got a {type(sample_ids).__name__}")
    if is_tensor(sample_ids) or isinstance(sample_ids, np.ma.MaskedArray):
        sample_ids = as_array(sample_ids, "sample_ids").tolist()
    try:
        ids = list(sample_ids)
    except TypeError as error:
        raise InvalidInputError(f"sample_ids: expected a sequence of {n} ids: {error}") from None
    for k, name in enumerate(ids):
        if isinstance(name, bool) or not isinstance(name, str | int | np.integer | os.PathLike):
            raise InvalidInputError(
                f"sample_ids are text or whole numbers; sample {k} has {name!r} of type {type(name).__name__}"
            )
    if len(ids) != n:
        raise InvalidInputError(f"{len(ids)} sample ids for {n} samples")
    if names is not None and tuple(map(str, ids)) != names:
        k = next(k for k, (a, b) in enumerate(zip(ids, names, strict=True)) if str(a) != b)
        raise InvalidInputError(
            f"sample_ids and the row names of the arrays differ: sample {k} is {str(ids[k])!r} in sample_ids and "
            f"{names[k]!r} in the arrays; leave sample_ids out, or pass arrays without row names (to_numpy())"
        )
    return tuple(map(str, ids))


def _converted_dtypes(layers: Mapping[str, Any], arrays: Mapping[str, Any]) -> dict[str, Any]:
    """Return an entry for the provenance: the original dtypes of layers that were converted to another one."""
    before = {name: _dtype_name(layers[name]) for name in arrays}
    kept = {"", "float16", "float32", "float64"}
    changed = {name: kind for name, kind in before.items() if kind not in kept}
    return {"converted_from": changed} if changed else {}


def _dtype_name(values: Any) -> str:
    """Return the name of the dtype of an array; empty if it has none, such as nested lists and data frames."""
    dtype = getattr(values, "dtype", "")
    return str(getattr(dtype, "name", dtype)).removeprefix("torch.")


def _shapes_in_words(shapes: Mapping[str, tuple[int, ...]]) -> str:
    """Return the first shape for each number of samples as text, at most four."""
    firsts = {shape[:1] if len(shape) > 1 and 0 not in shape else shape: name for name, shape in shapes.items()}
    return ", ".join(f"{shapes[name]} for {name!r}" for name in list(firsts.values())[:4])
