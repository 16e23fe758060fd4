"""Summarise a result: the closest layers, and the notes and cautions on its values."""

import json
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from repsim.results.chance import chance_in_words, chance_of
from repsim.results.intervals import ends_of, interval_in_words
from repsim.runtime.text_tables import Table

MOST_MODELS = 12
"""Largest number of models of which a table shows all pairs."""
SHOWN = 10
"""Number of pairs of more models that are shown at either end of their order."""
LEVEL = 1e-8
"""Relative tolerance for ties: of values closer to the largest than this, the first is reported."""


def closest(variable: xr.DataArray) -> Table:
    """Tabulate the closest layers.

    For two models the table has a row for each layer of the first model: its closest layer in the second model, and
    the value. For more models it has a row and a column for each model: the value of the closest layer, averaged over
    the layers of the model in the row. For more than `MOST_MODELS` models it lists the closest and the farthest pairs.

    If chance levels are known, the closest layer is that whose value is farthest above its chance level, and none if
    no value is above it; the levels stand beside the values unless all are 0. Intervals stand beside the values of
    two models.

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
    if len(models[0]) > 1:
        return _closest_of_models(title, models, mean_of_closest(variable), sign, chance=beside)
    ends, interval = ends_of(variable), interval_in_words(variable)
    rows: list[tuple[str, ...]] = []
    for i, (layer, row) in enumerate(zip(variable["layer_a"].values, above, strict=True)):
        if np.isnan(row).all():
            cells = ["-", "undefined", *["-"] * (beside + bool(interval))]
        else:
            at = _first_largest(row)
            related = levels is None or row[at] > 0
            name = str(variable["layer_b"].values[at]) if related else "none is above chance"
            tables = [variable.values, *([levels] if beside and levels is not None else [])]
            cells = [name, *(f"{table[i, at]:z.4f}" for table in tables)]
            cells += [_range(ends[:, i, at])] * bool(interval)
        rows.append((str(layer), *cells))
    columns = (
        f"layer of {models[0][0]}",
        f"closest layer of {models[1][0]}",
        ">value",
        *[">by chance"] * beside,
        *[f">{interval}"] * bool(interval),
    )
    return Table(title, columns, tuple(rows))


def _range(ends: NDArray[np.float64]) -> str:
    """Return an interval as text; ``-`` if it is undefined."""
    return "-" if np.isnan(ends).any() else " to ".join(f"{end:z.4f}" for end in ends)


def mean_of_closest(variable: xr.DataArray) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the mean value of the closest layers of every two models, and the mean of their chance levels.

    The mean is over the layers of a model of side a; for each of them, the layer of a model of side b that is closest
    counts, as in `closest`.

    Parameters
    ----------
    variable : xarray.DataArray
        One metric of a result, or values of a study that grow with similarity, with the dimensions ``layer_a`` and
        ``layer_b``.

    Returns
    -------
    tuple of two arrays of shape (models of side a, models of side b)
        Values, and chance levels (0 if they are not known). Both are NaN for a model with itself, and without a value.
    """
    sign = -1 if variable.attrs.get("sense") == "distance" else 1
    values, levels = np.asarray(variable.values, np.float64), chance_of(variable)
    tables = values, np.zeros_like(values) if levels is None else levels
    above = sign * (values - tables[1])
    names = [variable[f"model_{side}"].values for side in "ab"]
    models = [list(dict.fromkeys(of_side.tolist())) for of_side in names]
    members = [names[0] == model for model in models[0]]
    means = np.full((2, len(models[0]), len(models[1])), np.nan)
    for j, b in enumerate(models[1]):
        (columns,) = np.nonzero(names[1] == b)
        defined = ~np.isnan(above[:, columns]).all(axis=1)
        rows = above[np.ix_(defined, columns)]
        if not len(rows):
            continue
        largest = np.nanmax(rows, axis=1) - LEVEL * np.nanmax(np.abs(rows), axis=1)
        closest_to = np.zeros(len(values), int)
        closest_to[defined] = columns[np.argmax(rows >= largest[:, None], axis=1)]
        for i, a in enumerate(models[0]):
            (layers,) = np.nonzero(members[i] & defined)
            if len(layers) and a != b:
                means[:, i, j] = [table[layers, closest_to[layers]].mean() for table in tables]
    return means[0], means[1]


def _closest_of_models(
    title: str, models: Sequence[Sequence[str]], means: Sequence[NDArray[np.float64]], sign: int, *, chance: bool
) -> Table:
    """Tabulate the means of the closest layers: of a few models all pairs, of many the closest and the farthest."""

    def cell(i: int, j: int) -> str:
        shown = means if chance else means[:1]
        return "-" if np.isnan(means[0][i, j]) else " by chance ".join(f"{mean[i, j]:z.4f}" for mean in shown)

    if max(map(len, models)) <= MOST_MODELS:
        columns = range(len(models[1]))
        rows = tuple((str(a), *(cell(i, j) for j in columns)) for i, a in enumerate(models[0]))
        return Table(title, ("mean over layers of the closest", *(f">{model}" for model in models[1])), rows)
    above = sign * (means[0] - means[1])
    order = [divmod(k, above.shape[1]) for k in np.argsort(-above, axis=None, kind="stable").tolist()]
    pairs = [(i, j) for i, j in order if not np.isnan(above[i, j])]
    title += f"; the {SHOWN} closest and the {SHOWN} farthest of {len(pairs):,} ordered pairs of models"
    rows = tuple((models[0][i], models[1][j], cell(i, j)) for i, j in (*pairs[:SHOWN], *pairs[-SHOWN:]))
    return Table(title, ("layers of", "closest layers of", ">mean over layers"), rows, frozenset({SHOWN - 1}))


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
