"""Results of comparisons, and studies: a labelled `xarray.Dataset`, saved as netCDF.

docs/result-format.md and docs/study-format.md say what is in them.
"""

import os
from contextlib import suppress
from pathlib import Path

import numpy as np
import xarray as xr

from repsim.errors import StoreError, reason
from repsim.files import replacing
from repsim.layout import FORMAT as STORE_FORMAT
from repsim.layout import refuse_foreign

FORMAT = "repsim-comparison"
VERSION = 2
STUDY = "repsim-study"
STUDY_VERSION = 1
_HINTS = {
    STORE_FORMAT: "; it is an activation store: give it to `repsim compare`",
    FORMAT: "; it is a comparison: give it to `repsim heatmap`",
    STUDY: "; it is a study of `repsim universality`",
}


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
    path = Path(path)
    with suppress(OSError, RuntimeError):  # what is wrong is said by who opens it as a result
        if path.is_file() and refuse_foreign(path) == STUDY:
            return open_study(path)
    return open_result(path)


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
