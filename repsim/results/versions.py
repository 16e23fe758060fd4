"""Read results, studies and series of all versions of their formats (docs/result-format.md and its neighbours).

Each version has a reader. Every reader returns a data set of the newest version; variables that an earlier one lacks
have no values.
"""

import json
import warnings
from collections.abc import Callable
from itertools import combinations
from pathlib import Path

import numpy as np
import xarray as xr

from repsim.errors import Function, MissingDigestWarning, Remedy, StoreError
from repsim.results.variables import CONTROL_PAIRS, VARIABLES, describe
from repsim.runtime.deprecation import user_level
from repsim.runtime.formats import Readers

FORMAT = "repsim-comparison"
VERSION = 4
STUDY = "repsim-study"
STUDY_VERSION = 3
SERIES = "repsim-series"
SERIES_VERSION = 1

Reader = Callable[[Path, xr.Dataset, bool], xr.Dataset]
"""Function of the path, the data set in the file, and whether the file ends in a digest."""
RESULTS = Readers[Reader]("result", Remedy("make it again with ", Function("repsim.compare")))
STUDIES = Readers[Reader]("study", Remedy("make it again with ", Function("repsim.universality")))
SERIES_FILES = Readers[Reader]("series", Remedy("make it again with ", Function("repsim.series")))
READERS = {FORMAT: RESULTS, STUDY: STUDIES, SERIES: SERIES_FILES}


@RESULTS.register(VERSION)
@RESULTS.register(3)  # without chance levels
@STUDIES.register(STUDY_VERSION)
@SERIES_FILES.register(SERIES_VERSION)
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


@STUDIES.register(2)
def _before_claims(path: Path, data: xr.Dataset, has_digest: bool) -> xr.Dataset:
    """Read a study without pairs of families; its sentences followed rules that have been replaced."""
    return in_newest_version(_with_digest(path, data, has_digest))


def in_newest_version(data: xr.Dataset) -> xr.Dataset:
    """Set the newest version on data sets of an earlier version of their format; return others unchanged."""
    readers = READERS.get(str(data.attrs.get("format")))
    version = data.attrs.get("format_version", 0)
    if readers is None or version not in readers:
        return data
    if readers is STUDIES and version < STUDY_VERSION:
        data = _with_missing_variables(data)
    return data.assign_attrs(format_version=readers.newest)


def _with_missing_variables(study: xr.Dataset) -> xr.Dataset:
    """Add what studies of version 3 hold beyond earlier ones, without values, and remove the sentences.

    A study without the names of its models and families stays as it is: `repsim.results.schema` says what is missing.
    """
    untrained = _texts(study.attrs.get("untrained"))
    of_models = all(name in study and study[name].dims == ("model",) for name in ("model", "family", "architecture"))
    if untrained is None or not of_models or "control_name" not in study:
        return study
    families = list(dict.fromkeys(study["family"].values.tolist()))
    models = study["model"].values.tolist()
    networks, unknown = [*models, *untrained], [""] * len(untrained)
    pairs = list(combinations(families, 2))
    if study.sizes.get("families") != len(pairs):
        return study
    study = study.assign_coords(
        {
            "family_a": ("families", np.array([a for a, _ in pairs], str)),
            "family_b": ("families", np.array([b for _, b in pairs], str)),
            "control_pair": list(CONTROL_PAIRS),
            "network": np.array(networks, str),
            "other_network": np.array(networks, str),
            "network_family": ("network", np.array([*study["family"].values.tolist(), *unknown], str)),
            "network_architecture": ("network", np.array([*study["architecture"].values.tolist(), *unknown], str)),
            "network_state": (
                "network", np.array(["trained"] * len(models) + ["untrained"] * len(untrained), str)
            ),
        }
    )  # fmt: skip
    for entry in VARIABLES:
        dims = tuple(entry.dims.split(", "))
        for name in entry.names:
            if name not in study and all(dim in study.sizes for dim in dims):
                shape = [study.sizes[dim] for dim in dims]
                empty = {"text": np.full(shape, "", "<U1"), "whole": np.zeros(shape, np.int64)}
                study[name] = dims, empty.get(entry.kind, np.full(shape, np.nan))
    study["control_name"] = study["control_name"].where(study["control_name"].isin(CONTROL_PAIRS), "").astype(str)
    describe(study)
    replaced = (
        "The sentences of this study are not shown: it was made by an earlier version of repsim, whose rules have been "
        "replaced. Conduct it again."
    )
    return study.assign_attrs(summary=json.dumps([replaced]), input_controls=json.dumps([]))


def _texts(value: object) -> list[str] | None:
    """Parse a list of texts from JSON; return None for everything else."""
    try:
        texts = json.loads(value) if isinstance(value, str) else None
    except ValueError:
        return None
    return texts if isinstance(texts, list) and all(isinstance(text, str) for text in texts) else None
