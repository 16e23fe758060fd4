"""Select pairs of models from a study, in the form of a comparison."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from repsim.errors import UnknownNameError
from repsim.figures.canvas import check_pairs, resolve_measure
from repsim.presentation.measures import traits
from repsim.results.variables import CHANCE, ENDS

_LEVEL = 0.95
"""Level of the intervals of a study."""
_MOST_GROUPS = 6
"""Largest number of groups of pairs in a figure."""


def pick(study: xr.Dataset, pair: str, measure: str | None = None) -> xr.DataArray:
    """Select one pair of models and one measure from a study, in the form that `heatmap` draws.

    Parameters
    ----------
    study : xarray.Dataset
        Study of `repsim.universality`.
    pair : str
        Name of the pair in the study, ``a x b``; with ``b x a``, the result is transposed.
    measure : str, optional
        Measure of the study; by default debiased CKA given the input, if the study has it.

    Returns
    -------
    DataArray
        Values (layer_a, layer_b), with the attributes of a variable of a result. A study holds the negative of a
        distance; here it is the distance itself. The coordinate ``match`` holds, for every layer of a, the index of
        its matched layer of b, or -1 for none. The coordinate ``p``, if the study has p-values, is not corrected for
        multiple tests.

    Raises
    ------
    UnknownNameError
        If the study does not have the pair or the measure.

    Examples
    --------
    >>> import numpy as np, repsim, tempfile
    >>> rng = np.random.default_rng(0)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     stores = [repsim.write_store(f"{folder}/{model}.h5", {"one": rng.normal(size=(20, 3))}, model=model)
    ...               for model in ("net.a", "other.b")]
    ...     study = repsim.universality(stores, ["cka"], permutations=19)
    >>> pick(study, "net.a x other.b", "cka").shape
    (1, 1)
    """
    measure = resolve_measure(study, measure)
    check_pairs(study)
    names = study["pair"].values.tolist()
    swapped = " x ".join(reversed(pair.split(" x ")))
    if pair not in names and swapped not in names:
        raise UnknownNameError("pair of this study", pair, names)
    needed = [
        name for name in ("value", "low", "high", "chance", "p", "match") if name in study
    ]  # others would cost most of the time
    at = study[needed].sel(measure=measure, pair=pair if pair in names else swapped)
    a, b = (str(at[f"pair_{side}"].item()) for side in "ab")
    rows, columns = study["model_a"].values == a, study["model_b"].values == b
    declares = traits(measure)
    table = at.drop_vars("match").isel(layer_a=rows, layer_b=columns)
    value = table["value"] if declares.sense == "similarity" else -table["value"]
    one = xr.DataArray(
        value.values,
        dims=("layer_a", "layer_b"),
        coords=_sides_of(table, a, b) | {name: study[name].item() for name in ("n_samples", "data")},
        name=measure,
        attrs={
            "label": declares.label,
            "spec": measure,
            "sense": declares.sense,
            "valid_range": list(declares.valid_range),
        },
    )
    if "chance" in table:
        levels = table["chance"].values if declares.sense == "similarity" else -table["chance"].values
        defined = levels[~np.isnan(value.values)]
        kind = "unknown" if np.isnan(defined).any() else "known" if defined.any() else "zero"
        one = one.assign_attrs(chance=kind)
        if kind == "known":
            one = one.assign_coords({measure + CHANCE: (one.dims, levels)})
    if {"low", "high"} <= set(table) and declares.sense == "similarity" and table["low"].notnull().any():
        ends = dict(zip(ENDS, ("low", "high"), strict=True))
        one = one.assign_coords({measure + end: (one.dims, table[name].values) for end, name in ends.items()})
        one = one.assign_attrs(interval=_LEVEL)
    if not np.isnan(table["p"].values).all():
        one = one.assign_coords(p=(one.dims, table["p"].values))
    direction = 0
    if pair not in names:
        swap = {f"{name}_{x}": f"{name}_{y}" for name in ("layer", "model", "readout") for x, y in ("ab", "ba")}
        one, direction = one.rename(swap).transpose("layer_a", "layer_b"), 1
    match = at["match"].isel(direction=direction).values[: one.shape[0]]
    return one.assign_coords(match=("layer_a", match))


def _sides_of(table: xr.Dataset, a: str, b: str) -> dict[str, Any]:
    """Return the coordinates of both sides as in a comparison: layers, models and readouts."""
    coords: dict[str, Any] = {}
    for side, model in (("a", a), ("b", b)):
        dim = f"layer_{side}"
        layers = [str(layer).removeprefix(f"{model}/") for layer in table[dim].values]
        coords[dim] = layers
        coords[f"model_{side}"] = (dim, [model] * len(layers))
        coords[f"readout_{side}"] = (dim, [table["readout"].item()] * len(layers))
    return coords


def values_of_pairs(study: xr.Dataset, measure: str) -> Iterator[NDArray[np.float64]]:
    """Yield the values of all pairs of a study under one measure, as in `pick` but without labels."""
    values = study["value"].sel(measure=measure).values
    values = values if traits(measure).sense == "similarity" else -values
    models = study["model"].values.tolist()
    rows, columns = (
        {model: np.flatnonzero(study[f"model_{side}"].values == model) for model in models} for side in "ab"
    )
    for a, b in zip(study["pair_a"].values.tolist(), study["pair_b"].values.tolist(), strict=True):
        yield values[np.ix_(rows[a], columns[b])]


def iterate_pairs(study: xr.Dataset, measure: str | None = None) -> Iterator[xr.DataArray]:
    """Yield all pairs of a study; the model that the study lists later is along the rows."""
    check_pairs(study)
    order = study["model"].values.tolist()
    for pair, a, b in zip(*(study[name].values.tolist() for name in ("pair", "pair_a", "pair_b")), strict=True):
        yield pick(study, pair if order.index(a) > order.index(b) else f"{b} x {a}", measure)


def groups_of_pairs(study: xr.Dataset) -> list[str]:
    """Return the group of every pair: its relation, and of models that are alike the family or architecture.

    Pairs of ResNets and pairs of ViTs are groups of their own, unless there are more than `_MOST_GROUPS` such groups.
    """
    relations = study["relation"].values.tolist()
    families, kinds = (
        dict(zip(study["model"].values.tolist(), study[name].values.tolist(), strict=True))
        for name in ("family", "architecture" if "architecture" in study.coords else "family")
    )
    groups = []
    for relation, model in zip(relations, study["pair_a"].values.tolist(), strict=True):
        kind = {"same family": families, "same architecture": kinds}.get(relation)
        groups.append(f"{relation}: {kind[model]}" if kind else relation)
    return groups if len(set(groups)) <= _MOST_GROUPS else relations
