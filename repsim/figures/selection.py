"""Selects one pair of models of a study under one measure, as a comparison would hold it."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import xarray as xr

from repsim.errors import UnknownNameError
from repsim.figures.canvas import has_pairs, known_measure
from repsim.presentation.measures import traits


def pick(study: xr.Dataset, pair: str, measure: str | None = None) -> xr.DataArray:
    """Take one pair of models out of a study, as `heatmap` draws it.

    Parameters
    ----------
    study
        What `repsim.universality` returns.
    pair
        As the study calls it, ``a x b``, or the other way round, which gives the transposed.
    measure
        One of the study's; by default debiased CKA given the input, where that is known.

    Returns
    -------
    DataArray
        (layer_a, layer_b), with the attributes of a result's variable. A distance, which a study has as its negative,
        is a distance again. The coordinate ``match`` has for every layer of a the layer of b, -1 for none; ``p``, where
        there are p-values, is not corrected.

    Raises
    ------
    UnknownNameError
        For a pair or a measure that the study does not have.

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
    measure = known_measure(study, measure)
    has_pairs(study)
    names = study["pair"].values.tolist()
    turned = " x ".join(reversed(pair.split(" x ")))
    if pair not in names and turned not in names:
        raise UnknownNameError("pair of this study", pair, names)
    at = study.sel(measure=measure, pair=pair if pair in names else turned)
    a, b = (str(at[f"pair_{side}"].item()) for side in "ab")
    rows, columns = study["model_a"].values == a, study["model_b"].values == b
    declares = traits(measure)
    table = at[["value", "p"]].isel(layer_a=rows, layer_b=columns)
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
    if not np.isnan(table["p"].values).all():
        one = one.assign_coords(p=(one.dims, table["p"].values))
    direction = 0
    if pair not in names:
        swap = {f"{name}_{x}": f"{name}_{y}" for name in ("layer", "model", "readout") for x, y in ("ab", "ba")}
        one, direction = one.rename(swap).transpose("layer_a", "layer_b"), 1
    match = at["match"].isel(direction=direction).values[: one.shape[0]]
    return one.assign_coords(match=("layer_a", match))


def _sides_of(table: xr.Dataset, a: str, b: str) -> dict[str, Any]:
    """Name the layers of two models as a comparison does: the layer, its model, its readout."""
    coords: dict[str, Any] = {}
    for side, model in (("a", a), ("b", b)):
        dim = f"layer_{side}"
        layers = [str(layer).removeprefix(f"{model}/") for layer in table[dim].values]
        coords[dim] = layers
        coords[f"model_{side}"] = (dim, [model] * len(layers))
        coords[f"readout_{side}"] = (dim, [table["readout"].item()] * len(layers))
    return coords


def every_pair(study: xr.Dataset, measure: str | None = None) -> Iterator[xr.DataArray]:
    """Take all pairs, one after the other, the model that the study names later along the rows."""
    has_pairs(study)
    order = study["model"].values.tolist()
    for pair, a, b in zip(*(study[name].values.tolist() for name in ("pair", "pair_a", "pair_b")), strict=True):
        yield pick(study, pair if order.index(a) > order.index(b) else f"{b} x {a}", measure)
