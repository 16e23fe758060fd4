"""Tests that stores, results and studies of earlier revisions open with their original values."""

import json
import shutil
import warnings
from itertools import combinations
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import xarray as xr

import repsim
from repsim.cli import main
from repsim.errors import FormatVersionError, MissingDigestWarning, Remedy, StoreError
from repsim.results import netcdf
from repsim.results.digest import digest_line
from repsim.results.schema import problem
from repsim.results.variables import CONTROL_PAIRS
from repsim.results.versions import RESULTS, STUDIES, in_newest_version
from repsim.runtime.deprecation import warn_deprecated
from repsim.runtime.formats import Readers
from repsim.stores.reader import READERS as STORES
from repsim.study import reading

FILES = Path(__file__).parent / "files"
REVISIONS = sorted(folder.name for folder in FILES.iterdir() if folder.is_dir() and folder.name != "__pycache__")
WITHOUT_DIGEST = "a307160"


def values(revision: str, file: str) -> dict[str, Any]:
    """Return the values that the revision which wrote a file read from it."""
    with np.load(FILES / revision / "values.npz", allow_pickle=False) as saved:
        return {name.removeprefix(f"{file} "): saved[name] for name in saved.files if name.startswith(f"{file} ")}


@pytest.mark.parametrize("file", ["store.h5", "compressed.h5"])
@pytest.mark.parametrize("revision", REVISIONS)
def test_earlier_stores_open_with_equal_values(revision: str, file: str) -> None:
    expected = values(revision, file)
    path = FILES / revision / file
    assert not list(repsim.verify(path))
    with repsim.open_store(path) as store:
        assert list(store.sample_ids) == expected.pop("ids").tolist()
        assert store.labels is not None
        np.testing.assert_array_equal(store.labels, expected.pop("labels"))
        assert set(store.layers) == expected.keys()
        for layer, array in expected.items():
            assert store[layer].dtype == array.dtype
            np.testing.assert_array_equal(store[layer][:], array)


@pytest.mark.slow
@pytest.mark.parametrize("file", ["result.nc", "study.nc"])
@pytest.mark.parametrize("revision", REVISIONS)
def test_earlier_results_and_studies_open_with_equal_values(revision: str, file: str, tmp_path: Path) -> None:
    """They are saved in the newest version, which opens without a warning."""
    expected = values(revision, file)
    opened = repsim.open_result if file == "result.nc" else repsim.open_study
    with warnings.catch_warnings(record=True) as raised:
        warnings.simplefilter("always")
        data = opened(FILES / revision / file)
    assert [warning.category for warning in raised] == [MissingDigestWarning] * (revision == WITHOUT_DIGEST)
    assert all(warning.filename == __file__ for warning in raised)
    names = {str(name) for name in data.variables}
    if file == "study.nc":
        assert expected.keys() <= names
        assert is_empty(data[[str(name) for name in data.data_vars if name not in expected]])
        before = expected.pop("control_name")  # it named controls that are no longer distinguished like this
        assert (data["control_name"].values == np.where(np.isin(before, CONTROL_PAIRS), before, "")).all()
    else:
        assert expected.keys() == names
    for name, array in expected.items():
        np.testing.assert_array_equal(data[name].values, array, err_msg=name)
    repsim.save_result(data, tmp_path / file)
    again = opened(tmp_path / file)
    assert again.attrs["format_version"] == (RESULTS if file == "result.nc" else STUDIES).newest
    xr.testing.assert_identical(again, data)


def is_empty(data: xr.Dataset) -> bool:
    """Return whether no variable has a value: numbers are NaN or 0, and texts empty."""
    variables = [variable.values for variable in data.data_vars.values()]
    return bool(variables) and all(
        np.isnan(values).all() if values.dtype.kind == "f" else not values.any() for values in variables
    )


@pytest.mark.slow
@pytest.mark.parametrize("revision", REVISIONS)
@pytest.mark.filterwarnings("ignore::repsim.errors.MissingDigestWarning")
def test_earlier_studies_claim_nothing(revision: str) -> None:
    """Their sentences followed other rules, and are replaced by one that says so."""
    study = repsim.open_study(FILES / revision / "study.nc")
    (sentence,) = json.loads(study.attrs["summary"])
    assert sentence.startswith("The sentences of this study are not shown: it was made by an earlier version of repsim")
    assert sentence.endswith("Conduct it again.")
    assert problem(study) is None
    families = list(dict.fromkeys(study["family"].values.tolist()))
    pairs = list(combinations(families, 2))
    assert study["families"].values.tolist() == [f"{a} x {b}" for a, b in pairs]
    assert list(zip(study["family_a"].values.tolist(), study["family_b"].values.tolist(), strict=True)) == pairs
    untrained = json.loads(study.attrs["untrained"])
    assert study["network"].values.tolist() == [*study["model"].values.tolist(), *untrained]
    assert study["network_state"].values.tolist() == ["trained"] * study.sizes["model"] + ["untrained"] * len(untrained)
    assert reading.claims(study) == []
    assert not reading.verdict(study)
    assert all(study[name].attrs["description"] for name in ("effect", "claim_level", "split_half_low"))


@pytest.mark.slow
@pytest.mark.parametrize("revision", REVISIONS)
@pytest.mark.filterwarnings("ignore::repsim.errors.MissingDigestWarning")
def test_earlier_files_are_used_as_new_ones(revision: str, tmp_path: Path) -> None:
    """They can be extended and reported like new ones, and new values equal the old ones."""
    earlier = repsim.open_result(FILES / revision / "result.nc")
    store = FILES / revision / "store.h5"
    fresh = repsim.compare(store, metrics=["cka"], out=tmp_path / "r.nc")
    grown = repsim.compare(store, metrics=["svcca"], out=tmp_path / "r.nc")
    assert set(grown.data_vars) == {"cka", "svcca"}
    assert set(earlier["layer_a"].values.tolist()) == set(fresh["layer_a"].values.tolist())
    repsim.write_report(earlier, tmp_path / "r.html")
    assert repsim.to_frame(repsim.open_study(FILES / revision / "study.nc")).size


def set_version(path: Path, version: int) -> Path:
    """Change the version of a file, and update the digest of a result or a study."""
    if path.suffix == ".h5":
        with h5py.File(path, "r+") as file:
            file.attrs.modify("format_version", version)
    else:
        data = netcdf.to_bytes(
            (repsim.open_result if path.stem == "result" else repsim.open_study)(path).assign_attrs(
                format_version=version
            )
        )
        path.write_bytes(data + digest_line(data))
    return path


@pytest.mark.slow
@pytest.mark.parametrize(
    ("file", "readers", "remake"),
    [
        ("store.h5", STORES, "extract it again"),
        ("result.nc", RESULTS, "make it again with repsim.compare"),
        ("study.nc", STUDIES, "make it again with repsim.universality"),
    ],
)
def test_versions_without_a_reader_say_what_to_do(
    file: str, readers: Readers[Any], remake: str, tmp_path: Path
) -> None:
    read = {"store.h5": repsim.open_store, "result.nc": repsim.open_result, "study.nc": repsim.open_study}[file]
    for version, remedy in ((readers.newest + 1, "install a newer repsim"), (0, remake)):
        shutil.copy(FILES / "9a580e1" / file, tmp_path)
        with pytest.raises(
            FormatVersionError, match=f"has {readers.what} format {version}; this repsim reads .*; {remedy}$"
        ) as error:
            read(set_version(tmp_path / file, version))
        assert (error.value.version, error.value.path) == (version, tmp_path / file)


def test_a_version_that_has_no_digest_with_one_is_refused(tmp_path: Path) -> None:
    """No revision wrote such a file."""
    shutil.copy(FILES / "9a580e1" / "result.nc", tmp_path)
    with pytest.raises(OSError, match="has a digest, and result format 2 has none"):
        repsim.open_result(set_version(tmp_path / "result.nc", 2))


def test_registered_readers_are_chosen_by_version() -> None:
    readers = Readers[Any]("thing", Remedy("make it again"))
    readers.register(1)(str.lower)
    readers.register(2)(str.upper)
    assert (readers.newest, 1 in readers, 3 in readers, "1" in readers) == (2, True, False, False)
    assert readers.get(1, Path("x"))("aB") == "ab"
    for version in (None, "2", 0, -1, 1.5, "x" * 500, "a\nb"):
        with pytest.raises(FormatVersionError, match="this repsim reads 1 and 2; make it again") as error:
            readers.get(version, Path("x"))
        assert len(str(error.value)) < 200
        assert "\n" not in str(error.value)


def test_what_is_no_result_keeps_its_version() -> None:
    for attrs in ({}, {"format": "other", "format_version": 1}, {"format": "repsim-study", "format_version": 0}):
        assert in_newest_version(xr.Dataset(attrs=attrs)).attrs == attrs
    assert (
        in_newest_version(xr.Dataset(attrs={"format": "repsim-study", "format_version": 1})).attrs["format_version"]
        == STUDIES.newest
    )


@pytest.mark.filterwarnings("ignore::repsim.errors.MissingDigestWarning")
@pytest.mark.parametrize("lost", ["family", "architecture", "families", "control_name", "untrained"])
def test_an_earlier_study_that_lacks_something_is_refused(lost: str, tmp_path: Path) -> None:
    """Nothing is filled in that depends on it."""
    shutil.copy(FILES / "9a580e1" / "study.nc", tmp_path)
    study = netcdf.from_bytes(bytearray((tmp_path / "study.nc").read_bytes()[: -len(digest_line(b""))]), tmp_path)
    study = study.drop_vars(lost) if lost in study else study.assign_attrs(untrained="[3")
    data = netcdf.to_bytes(study)
    (tmp_path / "study.nc").write_bytes(data + digest_line(data))
    with pytest.raises(StoreError, match="is no valid study: .* is missing|attribute untrained"):
        repsim.open_study(tmp_path / "study.nc")


@pytest.mark.slow
def test_an_earlier_study_has_effects_of_the_plain_index(tmp_path: Path) -> None:
    """In studies of version 2 the learned effect was index - control, and there were split-half values beside it."""
    original = (FILES / "9a580e1" / "study.nc").read_bytes()
    study = netcdf.from_bytes(bytearray(original[: -len(digest_line(b""))]), tmp_path)
    study["split_half"] = study["index"] - 0.05
    study["control"] = study["index"] / 2
    study["learned"] = study["index"] - study["control"]
    data = netcdf.to_bytes(study)
    (tmp_path / "study.nc").write_bytes(data + digest_line(data))
    xr.testing.assert_equal(repsim.open_study(tmp_path / "study.nc")["learned"], study["learned"])
    study["learned"] = study["learned"] + 0.01
    data = netcdf.to_bytes(study)
    (tmp_path / "study.nc").write_bytes(data + digest_line(data))
    with pytest.raises(StoreError, match="learned is not split_half"):
        repsim.open_study(tmp_path / "study.nc")


def test_a_deprecation_names_the_release_and_shows_the_line_of_the_user() -> None:
    """The number of repsim functions in between does not matter."""
    ours: dict[str, Any] = {"__name__": "repsim.somewhere", "warn_deprecated": warn_deprecated}
    code = """
def inner():
    warn_deprecated("inner()", instead="call outer()", gone_in="0.3.0")
def outer():
    inner()
"""
    exec(compile(code, "somewhere.py", "exec"), ours)  # noqa: S102 - a module of repsim
    for function in (ours["inner"], ours["outer"]):
        with pytest.warns(
            DeprecationWarning, match=r"^inner\(\) is deprecated and will be removed in repsim 0\.3\.0; call outer\(\)$"
        ) as raised:
            function()
        assert [warning.filename for warning in raised] == [__file__]


@pytest.mark.slow
def test_the_command_line_reads_them_too() -> None:
    for file in ("store.h5", "result.nc", "study.nc"):
        for revision in REVISIONS:
            main(["inspect", str(FILES / revision / file)], standalone_mode=False)
