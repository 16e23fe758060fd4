"""Readers of results and studies by the version of their format (docs/result-format.md, docs/study-format.md).

Versions differ in the file, not in what is in memory: every reader returns a data set of the newest version.
"""

import warnings
from collections.abc import Callable
from pathlib import Path

import xarray as xr

from repsim.errors import Function, MissingDigestWarning, Remedy, StoreError
from repsim.runtime.deprecation import user_level
from repsim.runtime.formats import Readers

FORMAT = "repsim-comparison"
VERSION = 3
STUDY = "repsim-study"
STUDY_VERSION = 2

Reader = Callable[[Path, xr.Dataset, bool], xr.Dataset]
"""Takes the path, what the file holds, and whether the file ends in a digest."""
RESULTS = Readers[Reader]("result", Remedy("make it again with ", Function("repsim.compare")))
STUDIES = Readers[Reader]("study", Remedy("make it again with ", Function("repsim.universality")))
READERS = {FORMAT: RESULTS, STUDY: STUDIES}


@RESULTS.register(VERSION)
@STUDIES.register(STUDY_VERSION)
def _with_digest(path: Path, data: xr.Dataset, has_digest: bool) -> xr.Dataset:
    if not has_digest:
        raise StoreError(
            f"{path} was written by another program and carries no digest",
            path=path,
            remedy=Remedy("save it with ", Function("repsim.save_result")),
        )
    return data


@RESULTS.register(2)
@STUDIES.register(1)
def _before_digests(path: Path, data: xr.Dataset, has_digest: bool) -> xr.Dataset:
    """The same variables and attributes, in files of xarray, as which any program may have changed them."""
    readers = READERS[data.attrs["format"]]
    version = data.attrs["format_version"]
    if has_digest:
        raise StoreError(
            f"{path} is refused: it carries a digest, and {readers.what} format {version} has none",
            path=path,
            remedy=readers.remake,
        )
    warnings.warn(
        f"{path} has {readers.what} format {version}, which carries no digest: damage in it may go unnoticed. Save it "
        "again with repsim.save_result, or make it anew",
        MissingDigestWarning,
        stacklevel=user_level(),
    )
    return in_newest_version(data)


def in_newest_version(data: xr.Dataset) -> xr.Dataset:
    """Raise the version of what an earlier repsim computed; of anything else nothing is changed."""
    readers = READERS.get(str(data.attrs.get("format")))
    known = readers is not None and data.attrs.get("format_version") in readers
    return data.assign_attrs(format_version=readers.newest) if known and readers is not None else data
