"""Enlarge a study to many networks, to test and measure what is done with studies of hundreds of networks.

The values are those of the given study, used several times, so that a study of a hundred networks takes seconds.
"""

import json
from itertools import combinations
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray


def enlarged_study(study: xr.Dataset, models: int) -> xr.Dataset:
    """Return a study with copies of its trained networks, each set of copies in families of its own.

    A pair of networks has the values of the pair of which it is a copy; two copies of one network have those of the
    first pair. Names of copies end in ``+1``, ``+2``, ... The result has the form of a study; its intervals, tests and
    sentences mean nothing.

    Parameters
    ----------
    study : xarray.Dataset
        Study of two trained networks or more.
    models : int
        Number of trained networks of the result.

    Examples
    --------
    >>> from repsim.testing.examples import small_study
    >>> large = enlarged_study(small_study(20, metrics=["cka"], draws=5), 6)
    >>> large["model"].values.tolist()[-3:], large.sizes["pair"], large.sizes["families"]
    (['vit.seed1', 'cnn.seed0+1', 'cnn.seed1+1'], 15, 3)
    """
    names = study["model"].values.tolist()
    source, copy = np.arange(models) % len(names), np.arange(models) // len(names)
    model = _copied(names, source, copy)
    layers = [np.flatnonzero(study["model_a"].values == name) for name in names]
    layer = np.concatenate([layers[k] for k in source])
    layer_model = np.repeat(np.arange(models), [len(layers[k]) for k in source]).tolist()
    layer_names = [
        f"{model[m]}/{study['layer_a'].values[k].removeprefix(names[source[m]] + '/')}"
        for k, m in zip(layer.tolist(), layer_model, strict=True)
    ]
    pairs = list(combinations(range(models), 2))
    place = _places(study["pair_a"].values, study["pair_b"].values, names)
    pair = [place.get((source[i], source[j]), 0) for i, j in pairs]
    family = _copied(study["family"].values.tolist(), source, copy)
    families = list(dict.fromkeys(family))
    family_pairs = list(combinations(families, 2))
    own = list(dict.fromkeys(study["family"].values.tolist()))
    family_source = {name: own.index(name.partition("+")[0]) for name in families}
    family_place = _places(study["family_a"].values, study["family_b"].values, own)
    of_families = [family_place.get((family_source[a], family_source[b]), 0) for a, b in family_pairs]
    networks = study["network"].values.tolist()
    untrained = [k for k, name in enumerate(networks) if name not in names]
    network = [*(networks.index(names[k]) for k in source), *untrained]
    network_names = [*model, *(networks[k] for k in untrained)]
    result = study.isel(
        model=source, other_model=source, layer_a=layer, layer_b=layer, pair=pair, families=of_families,
        one_family=[study["one_family"].values.tolist().index(own[family_source[name]]) for name in families],
        network=network, other_network=network,
    )  # fmt: skip
    a, b = ([model[k] for k in side] for side in zip(*pairs, strict=True))
    relation = [
        study["relation"].values[k] if family[i] == family[j] else "other family"
        for k, (i, j) in zip(pair, pairs, strict=True)
    ]
    labels: dict[str, Any] = {
        "model": model, "other_model": model, "layer_a": layer_names, "layer_b": layer_names,
        "pair": [f"{x} x {y}" for x, y in zip(a, b, strict=True)],
        "families": [f"{x} x {y}" for x, y in family_pairs], "one_family": families,
        "network": network_names, "other_network": network_names,
    }  # fmt: skip
    along: dict[str, tuple[str, Any]] = {
        "family": ("model", family), "relation": ("pair", relation),
        "model_a": ("layer_a", [model[m] for m in layer_model]),
        "model_b": ("layer_b", [model[m] for m in layer_model]),
        "pair_a": ("pair", a), "pair_b": ("pair", b),
        "family_a": ("families", [x for x, _ in family_pairs]), "family_b": ("families", [y for _, y in family_pairs]),
        "network_family": ("network", [*family, *(study["network_family"].values[k] for k in untrained)]),
    }  # fmt: skip
    result = _one_half(result.assign_coords({**labels, **along}), np.array(layer_model), study)
    stores = {store["model"]: store for store in json.loads(study.attrs["stores"])}
    copies = [{**stores[names[k]], "model": name} for k, name in zip(source, model, strict=True)]
    return result.assign_attrs(stores=json.dumps([*copies, *(stores[networks[k]] for k in untrained)]))


def _one_half(result: xr.Dataset, model: NDArray[np.int64], study: xr.Dataset) -> xr.Dataset:
    """Return a study without values below the diagonal under measures that are not symmetric, which have none there."""
    values = study["value"].transpose("measure", "layer_a", "layer_b").values
    directed = (np.isnan(values).swapaxes(1, 2) & ~np.isnan(values)).any((1, 2))
    below = xr.DataArray(model[:, None] > model, dims=("layer_a", "layer_b"))
    left_out = below & xr.DataArray(directed, dims="measure", coords={"measure": study["measure"]})
    names = [name for name, of in result.data_vars.items() if {"measure", "layer_a", "layer_b"} <= {*of.dims}]
    cut = {name: result[name].where(~left_out).transpose(*result[name].dims) for name in names}
    return result.assign(
        {name: of.astype(result[name].dtype).assign_attrs(result[name].attrs) for name, of in cut.items()}
    )


def _copied(names: list[str], source: NDArray[np.int64], copy: NDArray[np.int64]) -> list[str]:
    return [f"{names[k]}+{number}" if number else names[k] for k, number in zip(source, copy.tolist(), strict=True)]


def _places(a: NDArray[Any], b: NDArray[Any], names: list[str]) -> dict[tuple[int, int], int]:
    """Return the positions of pairs, by the positions of both names in either order."""
    ends = [(names.index(x), names.index(y)) for x, y in zip(a.tolist(), b.tolist(), strict=True)]
    return {end: k for k, (x, y) in enumerate(ends) for end in ((x, y), (y, x))}
