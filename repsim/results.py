"""Results of comparisons, and studies: a labelled `xarray.Dataset`, saved as netCDF.

docs/result-format.md and docs/study-format.md say what is in them.
"""

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import xarray as xr

import repsim
from repsim.errors import StoreError, reason
from repsim.files import replacing
from repsim.layout import FORMAT as STORE_FORMAT
from repsim.layout import refuse_foreign
from repsim.tables import Table

if TYPE_CHECKING:
    from repsim.views import View

FORMAT = "repsim-comparison"
VERSION = 2
STUDY = "repsim-study"
STUDY_VERSION = 1
_HINTS = {
    STORE_FORMAT: "; it is an activation store: give it to `repsim compare`",
    FORMAT: "; it is a comparison: give it to `repsim heatmap`",
    STUDY: "; it is a study of `repsim universality`",
}


def _view(found: xr.Dataset) -> "View":
    """``result.repsim``: what it shows is made by a module above this one, loaded when it is first asked for."""
    return repsim.view(found)


xr.register_dataset_accessor("repsim")(_view)


def save_result(result: xr.Dataset, path: str | os.PathLike[str], *, overwrite: bool = False) -> None:
    """Save a result, or a study, as netCDF 4; `OutputError` where the file exists or cannot be written."""
    with replacing(Path(path), overwrite=overwrite) as partial:
        result.to_netcdf(partial, engine="h5netcdf")


def open_result(path: str | os.PathLike[str]) -> xr.Dataset:
    """Read a result into memory; `StoreError` where it is missing, damaged, or something else."""
    return _open(Path(path), FORMAT, VERSION, again="Compare the stores again")


def open_study(path: str | os.PathLike[str]) -> xr.Dataset:
    """Read a study into memory; `StoreError` where it is missing, damaged, or something else."""
    return _open(Path(path), STUDY, STUDY_VERSION, again="Conduct the study again")


def open_either(path: str | os.PathLike[str]) -> xr.Dataset:
    """Read a result or a study, whichever it is; `StoreError` where it is neither, missing or damaged."""
    return open_study(path) if is_study(path) else open_result(path)


def is_study(path: str | os.PathLike[str]) -> bool:
    """Whether a file says that it is a study. Of what cannot be read, `open_result` says why."""
    try:
        return refuse_foreign(Path(path)) == STUDY
    except (OSError, RuntimeError):
        return False


def _open(path: Path, form: str, version: int, *, again: str) -> xr.Dataset:
    what, command = ("result", "repsim compare") if form == FORMAT else ("study", "repsim universality")
    if not path.is_file():
        raise StoreError(f"{path} is a folder; name a file" if path.is_dir() else f"no such file: {path}")
    broken = f"{path} is no {what} of {command}, or damaged"
    try:
        kind = refuse_foreign(path)
    except StoreError:
        raise
    except (OSError, RuntimeError) as error:
        raise StoreError(f"{broken}: {reason(error)}") from None
    if kind != form:
        hint = _HINTS.get(str(kind), "")
        raise StoreError(f"{path} is no {what} of {command} (its 'format' is {kind!r}){hint}")
    try:
        with xr.open_dataset(path, engine="h5netcdf") as file:
            result = file.load()
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise StoreError(f"{broken}: {reason(error)}") from None
    found = result.attrs.get("format_version")
    if found != version:
        newer = isinstance(found, int | np.integer) and found > version
        todo = "Install a newer repsim" if newer else again
        raise StoreError(f"{path} has {what} format {found}; this repsim reads {version}. {todo}")
    return result


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
                cells.append(f"{np.mean(best) * sign:.4f}" if best and a != b else "-")
            rows.append((str(a), *cells))
        return Table(title, ("mean over layers of the closest", *(f">{model}" for model in models[1])), tuple(rows))
    for layer, row in zip(variable["layer_a"].values, likeness, strict=True):
        if np.isnan(row).all():
            rows.append((str(layer), "-", "undefined"))
        else:
            at = int(np.nanargmax(row))
            rows.append((str(layer), str(variable["layer_b"].values[at]), f"{row[at] * sign:.4f}"))
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
