"""What a result says at a glance: the closest layers, and the notes and cautions on its values."""

import json
import re
from collections.abc import Iterator

import numpy as np
import xarray as xr

from repsim.runtime.text_tables import Table

LEVEL = 1e-8
"""Values that differ by less than this share of the largest are level, and the first of them is named."""


def closest(variable: xr.DataArray) -> Table:
    """The closest layer of each: of two models layer by layer, of many on the average of a model's layers."""
    attrs = variable.attrs
    title = f"{attrs['label']}: {variable['n_samples'].item()} samples of {variable['data'].item()}"
    sign = 1 if attrs["sense"] == "similarity" else -1
    likeness = sign * variable.values
    models = [list(dict.fromkeys(variable[f"model_{side}"].values.tolist())) for side in "ab"]
    rows = []
    if len(models[0]) > 1:
        for a in models[0]:
            some = likeness[variable["model_a"].values == a]
            cells = []
            for b in models[1]:
                best = [
                    np.nanmax(each) for each in some[:, variable["model_b"].values == b] if not np.isnan(each).all()
                ]
                cells.append(f"{np.mean(best) * sign:z.4f}" if best and a != b else "-")
            rows.append((str(a), *cells))
        return Table(title, ("mean over layers of the closest", *(f">{model}" for model in models[1])), tuple(rows))
    for layer, row in zip(variable["layer_a"].values, likeness, strict=True):
        if np.isnan(row).all():
            rows.append((str(layer), "-", "undefined"))
        else:
            # of layers that hold the same the first, and not the one that rounding errors favour
            at = int(np.argmax(row >= np.nanmax(row) - LEVEL * np.nanmax(np.abs(row))))
            rows.append((str(layer), str(variable["layer_b"].values[at]), f"{row[at] * sign:z.4f}"))
    return Table(title, (f"layer of {models[0][0]}", f"closest layer of {models[1][0]}", ">value"), tuple(rows))


def notes(result: xr.Dataset) -> Iterator[str]:
    """What was left out, which values are missing, and which mean little, a line each kind."""
    for text in json.loads(result.attrs["left_out"]):
        yield f"left out: {text}"
    for variable in result.data_vars.values():
        attrs = variable.attrs
        for text in json.loads(attrs["undefined"]):
            yield f"{variable.name}: no value: {text}"
        for text in json.loads(attrs.get("remarks", "[]")):
            yield f"{variable.name}: {text}"
        cautions = json.loads(attrs["cautions"])
        for text in filter(of_all, cautions):
            yield f"{variable.name}: {text}"
        if single := [text for text in cautions if not of_all(text)]:
            yield f"{variable.name}: {len(single)} of {variable.size} values say little, for instance {single[0]}"


def of_all(caution: str) -> bool:
    """Whether a caution is about all values, or a number of them, and not about one pair of layers.

    >>> of_all("all values: n = 10"), of_all("3 of 9 values: n = 10"), of_all("a and b: n = 10")
    (True, True, False)
    """
    return re.match(r"(all|\d+ of \d+) values: ", caution) is not None
