"""Save and open results of comparisons, studies and series, which are `xarray.Dataset` objects, as netCDF files.

docs/result-format.md, docs/study-format.md and docs/series-format.md describe the files.
"""

import os
import stat
import warnings
from pathlib import Path

import xarray as xr

from repsim.errors import Function, InvalidInputError, MissingDigestWarning, Part, Remedy, StoreError, reason
from repsim.results import digest, netcdf, schema
from repsim.results.earlier import read_earlier
from repsim.results.hdf5 import SIGNATURE
from repsim.results.versions import FORMAT, READERS, SERIES, STUDY, in_newest_version
from repsim.runtime.files import check_output, replacing
from repsim.stores.reader import stated_format
from repsim.stores.schema import FORMAT as STORE_FORMAT

_COMPARE, _UNIVERSALITY, _SERIES = map(Function, ("repsim.compare", "repsim.universality", "repsim.series"))
_KINDS: dict[str, tuple[Part, ...]] = {
    FORMAT: ("result of ", _COMPARE),
    STUDY: ("study of ", _UNIVERSALITY),
    SERIES: ("series of ", _SERIES),
}
_ANY: tuple[Part, ...] = ("result, study or series of ", _COMPARE, ", ", _UNIVERSALITY, " or ", _SERIES)
_REMEDIES = {
    STORE_FORMAT: Remedy("it is an activation store: give it to ", _COMPARE),
    FORMAT: Remedy("it is a comparison: give it to ", Function("repsim.heatmap")),
    STUDY: Remedy("it is a study of ", _UNIVERSALITY),
    SERIES: Remedy("it is a series of ", _SERIES),
}
"""Format of a file that is not the expected one -> what to do with it."""


def save_result(result: xr.Dataset, path: str | os.PathLike[str], *, overwrite: bool = False) -> None:
    """Save a result, a study or a series as a netCDF-4 file with a digest at its end.

    Parameters
    ----------
    result : xarray.Dataset
        A data set that `repsim.compare`, `repsim.universality`, `repsim.series`, `open_result`, `open_study` or
        `open_series` has returned. Changes are allowed if it still has the form that the page of its format describes
        (docs/result-format.md, docs/study-format.md, docs/series-format.md); further attributes are kept.
    path : str or path
        The file. It is written under a temporary name and renamed when it is complete.
    overwrite : bool
        Replace an existing file.

    Raises
    ------
    InvalidInputError
        The data set is no result, study or series, or does not have the form that its format requires; nothing is
        written.
    OutputError
        The file exists or cannot be written.
    """
    path = Path(path)
    check_output(path, overwrite=overwrite)
    result = in_newest_version(result)
    if wrong := schema.problem(result):
        raise InvalidInputError(f"{path} is not saved, because the data set is no valid {_kind_name(result)}: {wrong}")
    data = netcdf.to_bytes(result)
    with replacing(path, overwrite=overwrite) as partial, partial.open("wb") as file:
        file.write(data)
        file.write(digest.digest_line(data))


def open_result(path: str | os.PathLike[str]) -> xr.Dataset:
    """Read a result into memory.

    The digest of the whole file is checked before its contents are read. A result of the previous format has no digest;
    then a `MissingDigestWarning` is issued.

    Parameters
    ----------
    path : str or path
        The file.

    Returns
    -------
    xarray.Dataset

    Raises
    ------
    StoreError
        The file is missing, damaged, or no result.
    """
    return _open(Path(path), FORMAT)


def open_study(path: str | os.PathLike[str]) -> xr.Dataset:
    """Read a study into memory, with the same checks as `open_result`.

    Parameters
    ----------
    path : str or path
        The file.

    Returns
    -------
    xarray.Dataset

    Raises
    ------
    StoreError
        The file is missing, damaged, or no study.
    """
    return _open(Path(path), STUDY)


def open_series(path: str | os.PathLike[str]) -> xr.Dataset:
    """Read a series into memory, with the same checks as `open_result`.

    Parameters
    ----------
    path : str or path
        The file.

    Returns
    -------
    xarray.Dataset

    Raises
    ------
    StoreError
        The file is missing, damaged, or no series.
    """
    return _open(Path(path), SERIES)


def open_result_or_study(path: str | os.PathLike[str]) -> xr.Dataset:
    """Read a result, a study or a series, with the same checks as `open_result`; raise `StoreError` for other files."""
    return _open(Path(path))


def is_study(path: str | os.PathLike[str]) -> bool:
    """Return whether a file is a study; False if it cannot be read."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", MissingDigestWarning)
            return bool(open_result_or_study(path).attrs["format"] == STUDY)
    except StoreError:
        return False


def is_result_or_study(path: str | os.PathLike[str]) -> bool:
    """Return whether a file claims to hold a data set: it has a digest line, or ends in .nc and is no store."""
    path = Path(path)
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - digest.SIZE))
            if digest.has_digest(file.read()):
                return True
    except OSError:
        pass
    return path.suffix == ".nc" and stated_format(path) != STORE_FORMAT


def verify_result_or_study(path: str | os.PathLike[str]) -> bool:
    """Check a result, a study or a series, and return whether it has a digest.

    Raises
    ------
    StoreError
        The file is damaged, or no result, study or series.
    """
    with warnings.catch_warnings(record=True) as raised:
        warnings.simplefilter("always", MissingDigestWarning)
        open_result_or_study(path)
    return not any(issubclass(warning.category, MissingDigestWarning) for warning in raised)


def _open(path: Path, form: str | None = None) -> xr.Dataset:
    expected = _KINDS.get(str(form), _ANY)
    try:
        mode = path.stat().st_mode  # once: another process may create or remove the file meanwhile
    except (FileNotFoundError, NotADirectoryError, ValueError):
        raise StoreError(f"no such file: {path}", path=path) from None
    if not stat.S_ISREG(mode):
        what = "a folder" if stat.S_ISDIR(mode) else "a pipe or a device"
        raise StoreError(f"{path} is {what}; name a file", path=path)
    try:
        with path.open("rb") as file:
            data = bytearray(os.fstat(file.fileno()).st_size)
            del data[file.readinto(data) :]
    except OSError as error:
        raise StoreError(f"cannot read {path}: {reason(error)}", path=path) from None
    if digest.digest_matches(data):
        result = netcdf.from_bytes(memoryview(data)[: -digest.SIZE], path)
    elif digest.has_digest(data):
        raise StoreError(
            f"{path} is damaged, or was changed by another program: its digest does not match its contents",
            path=path,
            remedy=Remedy(
                "use another copy, or compute it again; to change a file, open it in Python and save it with ",
                Function("repsim.save_result"),
            ),
        )
    elif data[:8] != SIGNATURE:
        raise StoreError(f"{path} is no ", *expected, ", or damaged: it is no HDF5 file", path=path)
    elif netcdf.is_strict(data):
        raise StoreError(
            f"{path} is damaged, cut off, or was changed by another program: the digest at its end is missing",
            path=path,
            remedy=Remedy("use another copy, or compute it again"),
        )
    else:
        result = _without_digest(path, data)
    kind = result.attrs.get("format")
    if not isinstance(kind, str) or kind not in _KINDS or form not in {None, kind}:
        raise StoreError(
            f"{path} is no ",
            *expected,
            f" (its 'format' is {schema.short(kind)})",
            path=path,
            remedy=_REMEDIES.get(str(kind)),
        )
    read = READERS[kind].get(result.attrs.get("format_version"), path)
    result = read(path, result, digest.has_digest(data))
    if wrong := schema.problem(result):
        raise StoreError(f"{path} is refused, because it is no valid {_kind_name(result)}: {wrong}", path=path)
    result.encoding["source"] = str(path.absolute())
    return result


def _kind_name(result: xr.Dataset) -> str:
    """Return ``result``, ``study`` or ``series``, according to the format that a data set claims to have."""
    readers = READERS.get(str(result.attrs.get("format")))
    return "result, study or series" if readers is None else readers.what


def _without_digest(path: Path, data: bytearray) -> xr.Dataset:
    """Read a file without a digest, which another program or an earlier repsim has written."""
    if stated_format(path) == STORE_FORMAT:
        return xr.Dataset(attrs={"format": STORE_FORMAT})
    return read_earlier(path, data)
