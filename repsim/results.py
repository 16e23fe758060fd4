"""Results of comparisons: a labelled `xarray.Dataset`, saved as netCDF. docs/result-format.md says what is in it."""

import os
from pathlib import Path

import numpy as np
import xarray as xr

from repsim.errors import StoreError, reason
from repsim.files import replacing
from repsim.layout import FORMAT as STORE_FORMAT
from repsim.layout import refuse_foreign

FORMAT = "repsim-comparison"
VERSION = 2


def save_result(result: xr.Dataset, path: str | os.PathLike[str], *, overwrite: bool = False) -> None:
    """Save a result as netCDF 4; `OutputError` where the file exists or cannot be written."""
    with replacing(Path(path), overwrite=overwrite) as partial:
        result.to_netcdf(partial, engine="h5netcdf")


def open_result(path: str | os.PathLike[str]) -> xr.Dataset:
    """Read a result into memory; `StoreError` where it is missing, damaged, or something else."""
    path = Path(path)
    if not path.is_file():
        raise StoreError(f"{path} is a folder; name a file" if path.is_dir() else f"no such file: {path}")
    broken = f"{path} is no result of repsim compare, or damaged"
    try:
        kind = refuse_foreign(path)
    except StoreError:
        raise
    except (OSError, RuntimeError) as error:
        raise StoreError(f"{broken}: {reason(error)}") from None
    if kind != FORMAT:
        hint = "; it is an activation store: give it to `repsim compare`" if kind == STORE_FORMAT else ""
        raise StoreError(f"{path} is no result of repsim compare (its 'format' is {kind!r}){hint}")
    try:
        with xr.open_dataset(path, engine="h5netcdf") as file:
            result = file.load()
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise StoreError(f"{broken}: {reason(error)}") from None
    version = result.attrs.get("format_version")
    if version != VERSION:
        newer = isinstance(version, int | np.integer) and version > VERSION
        todo = "Install a newer repsim" if newer else "Compare the stores again"
        raise StoreError(f"{path} has result format {version}; this repsim reads {VERSION}. {todo}")
    return result
