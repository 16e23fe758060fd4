"""Summarise a result: the closest layers, and the notes and cautions on its values."""

import json
from collections.abc import Iterable, Iterator

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from repsim.results.chance import chance_in_words, chance_of
from repsim.runtime.text_tables import Table

LEVEL = 1e-8
"""Relative tolerance for ties: of values closer to the largest than this, the first is reported."""


def closest(variable: xr.DataArray) -> Table:
    """Tabulate the closest layers.

    For two models the table has a row for each layer of the first model: its closest layer in the second model, and
    the value. For more models it has a row and a column for each model: the value of the closest layer, averaged over
    the layers of the model in the row.

    If chance levels are known, the closest layer is that whose value is farthest above its chance level, and none if
    no value is above it; the levels stand beside the values unless all are 0.

    Parameters
    ----------
    variable : xarray.DataArray
        One metric of a result, with the dimensions ``layer_a`` and ``layer_b``.
    """
    attrs = variable.attrs
    title = f"{attrs['label']}: {variable['n_samples'].item()} samples of {variable['data'].item()}"
    sign = 1 if attrs["sense"] == "similarity" else -1
    levels = chance_of(variable)
    beside = bool(chance_in_words(variable)) and levels is not None
    if beside:
        title += "; closest: by the difference of the value and its chance level"
    elif note := chance_in_words(variable):
        title += f"; {note}"
    above = sign * (variable.values - (0 if levels is None else levels))
    models = [list(dict.fromkeys(variable[f"model_{side}"].values.tolist())) for side in "ab"]
    rows: list[tuple[str, ...]] = []
    if len(models[0]) > 1:
        for a in models[0]:
            cells = []
            for b in models[1]:
                block = np.ix_(variable["model_a"].values == a, variable["model_b"].values == b)
                cell = [(i, _first_largest(row)) for i, row in enumerate(above[block]) if not np.isnan(row).all()]
                means = [
                    f"{np.mean([table[block][i, j] for i, j in cell]):z.4f}"
                    for table in (variable.values, *([levels] if beside and levels is not None else []))
                    if cell and a != b
                ]
                cells.append(" by chance ".join(means) or "-")
            rows.append((str(a), *cells))
        return Table(title, ("mean over layers of the closest", *(f">{model}" for model in models[1])), tuple(rows))
    for i, (layer, row) in enumerate(zip(variable["layer_a"].values, above, strict=True)):
        if np.isnan(row).all():
            cells = ["-", "undefined", *["-"] * beside]
        else:
            at = _first_largest(row)
            related = levels is None or row[at] > 0
            name = str(variable["layer_b"].values[at]) if related else "none is above chance"
            tables = [variable.values, *([levels] if beside and levels is not None else [])]
            cells = [name, *(f"{table[i, at]:z.4f}" for table in tables)]
        rows.append((str(layer), *cells))
    columns = (f"layer of {models[0][0]}", f"closest layer of {models[1][0]}", ">value", *[">by chance"] * beside)
    return Table(title, columns, tuple(rows))


def _first_largest(row: NDArray[np.float64]) -> int:
    """Return the position of the largest value; of equal ones the first, not the one that rounding errors favour."""
    return int(np.argmax(row >= np.nanmax(row) - LEVEL * np.nanmax(np.abs(row))))


def notes(result: xr.Dataset) -> Iterator[str]:
    """Yield one line for each kind of note: measures left out, missing values, values that mean little."""
    for text in json.loads(result.attrs["left_out"]):
        yield f"left out: {text}"
    for variable in result.data_vars.values():
        attrs = variable.attrs
        for text in json.loads(attrs["undefined"]):
            yield f"{variable.name}: no value: {text}"
        for text in json.loads(attrs.get("remarks", "[]")):
            yield f"{variable.name}: {text}"
        general, of_pairs = split_cautions(json.loads(attrs["cautions"]), result)
        for text in general:
            yield f"{variable.name}: {text}"
        if of_pairs:
            yield f"{variable.name}: {len(of_pairs)} of {variable.size} values say little, for instance {of_pairs[0]}"


def split_cautions(cautions: Iterable[str], result: xr.Dataset) -> tuple[list[str], list[str]]:
    """Return the cautions about many values of a metric, and those about single pairs of layers of ``result``.

    A caution about a pair begins with its two layers, as in ``fc1 and fc2: with n = 10 samples ...``.
    """
    starts = tuple(f"{layer} and " for side in "ab" for layer in result[f"layer_{side}"].values)
    general: list[str] = []
    of_pairs: list[str] = []
    for caution in cautions:
        (of_pairs if caution.startswith(starts) else general).append(caution)
    return general, of_pairs
