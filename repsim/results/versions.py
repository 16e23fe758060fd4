"""Read results and studies of all versions of their formats (docs/result-format.md, docs/study-format.md).

Each version has a reader. Versions differ in the file only: every reader returns a data set of the newest version.
"""

import warnings
from collections.abc import Callable
from pathlib import Path

import xarray as xr

from repsim.errors import Function, MissingDigestWarning, Remedy, StoreError
from repsim.runtime.deprecation import user_level
from repsim.runtime.formats import Readers

FORMAT = "repsim-comparison"
VERSION = 4
STUDY = "repsim-study"
STUDY_VERSION = 2

Reader = Callable[[Path, xr.Dataset, bool], xr.Dataset]
"""Function of the path, the data set in the file, and whether the file ends in a digest."""
RESULTS = Readers[Reader]("result", Remedy("make it again with ", Function("repsim.compare")))
STUDIES = Readers[Reader]("study", Remedy("make it again with ", Function("repsim.universality")))
READERS = {FORMAT: RESULTS, STUDY: STUDIES}


@RESULTS.register(VERSION)
@RESULTS.register(3)  # without chance levels
@STUDIES.register(STUDY_VERSION)
def _with_digest(path: Path, data: xr.Dataset, has_digest: bool) -> xr.Dataset:
    if not has_digest:
        raise StoreError(
            f"{path} was written by another program and has no digest",
            path=path,
            remedy=Remedy("save it with ", Function("repsim.save_result")),
        )
    return in_newest_version(data)


@RESULTS.register(2)
@STUDIES.register(1)
def _before_digests(path: Path, data: xr.Dataset, has_digest: bool) -> xr.Dataset:
    """Read a version that xarray wrote without a digest, with the same variables and attributes."""
    readers = READERS[data.attrs["format"]]
    version = data.attrs["format_version"]
    if has_digest:
        raise StoreError(
            f"{path} is refused: it has a digest, and {readers.what} format {version} has none",
            path=path,
            remedy=readers.remake,
        )
    warnings.warn(
        f"{path} has {readers.what} format {version}, which has no digest, so damage cannot be detected; save it again "
        "with repsim.save_result, or compute it again",
        MissingDigestWarning,
        stacklevel=user_level(),
    )
    return in_newest_version(data)


def in_newest_version(data: xr.Dataset) -> xr.Dataset:
    """Set the newest version on a result or a study of an earlier version; return other data sets unchanged."""
    readers = READERS.get(str(data.attrs.get("format")))
    if readers is None or data.attrs.get("format_version") not in readers:
        return data
    return data.assign_attrs(format_version=readers.newest)
