"""Test files of results and studies: the digest, safe reading of HDF5 structures, and the schema."""

import importlib
import json
import struct
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import h5py
import numpy as np
import pytest
import xarray as xr
from click.testing import CliRunner

import repsim
from repsim.cli import main
from repsim.errors import InvalidInputError, MissingDigestWarning, StoreError
from repsim.results import digest, netcdf, schema, variables
from repsim.results.files import open_result, open_result_or_study, open_study, save_result, verify_result_or_study
from tests.growing import grow

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def script() -> Iterator[ModuleType]:
    scripts = str(ROOT / "scripts" / "validation")
    sys.path.insert(0, scripts)
    yield importlib.import_module("durability.damage")
    sys.path.remove(scripts)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, script: ModuleType) -> Path:
    """Return a folder with a result, a study, and the stores from which they were computed."""
    folder = tmp_path_factory.mktemp("files")
    script.make_files(folder)
    return folder


@pytest.fixture(params=["result", "study"])
def path(request: pytest.FixtureRequest, folder: Path) -> Path:
    return folder / f"{request.param}.nc"


def run(*args: object) -> Any:
    return CliRunner().invoke(main, [str(arg) for arg in args])


def refused(*args: object) -> str:
    """Run a command that has to fail, and return its error message, which has to be one line."""
    outcome = run(*args)
    assert outcome.exit_code == 2, (outcome.output, outcome.exception)
    lines = outcome.stderr.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("Error: ")
    return str(lines[0])


def with_digest(path: Path, data: bytes | bytearray) -> Path:
    """Write a file of these bytes with a matching digest line, as an attacker could."""
    path.write_bytes(bytes(data) + digest.digest_line(data))
    return path


# The file


def test_saved_data_are_read_back(path: Path, tmp_path: Path) -> None:
    data = open_result_or_study(path)
    save_result(data, tmp_path / "again.nc")
    again = open_result_or_study(tmp_path / "again.nc")
    xr.testing.assert_identical(again, data)
    assert [p.name for p in tmp_path.iterdir()] == ["again.nc"]
    assert next(iter(again.data_vars.values())).values.flags.writeable


def test_xarray_and_h5py_read_the_file_without_repsim(path: Path) -> None:
    data = open_result_or_study(path)
    with xr.open_dataset(path, engine="h5netcdf") as plain:
        xr.testing.assert_identical(plain.load(), data)
    with h5py.File(path) as file:
        name = next(iter(data.data_vars))
        np.testing.assert_array_equal(file[name][:], data[name].values)
        assert [dim[0].name for dim in file[name].dims] == [f"/{dim}" for dim in data[name].dims]


def test_texts_of_any_length_and_alphabet(tmp_path: Path, folder: Path) -> None:
    result = open_result(folder / "result.nc").assign_attrs(command="é" * 100_000, note="日本", empty="", one="x")
    result = result.assign_coords(layer_a=["", "日本", "a" * 300])
    save_result(result, tmp_path / "r.nc")
    xr.testing.assert_identical(open_result(tmp_path / "r.nc"), result)
    with xr.open_dataset(tmp_path / "r.nc", engine="h5netcdf") as plain:
        xr.testing.assert_identical(plain.load(), result)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"note": "a\0b"}, "holds a NUL"),
        ({"note": "\udc80"}, "no valid Unicode"),
        ({"note": object()}, "neither text nor numbers"),
        ({"note": None}, "neither text nor numbers"),
        ({"note": 1j}, "a complex; expected a text, a number"),
        ({"coordinates": "x"}, "a reserved name of netCDF"),
    ],
)
def test_attributes_that_netcdf_cannot_store_are_refused_before_writing(
    change: dict[str, Any], message: str, folder: Path, tmp_path: Path
) -> None:
    with pytest.raises(InvalidInputError, match=message):
        save_result(open_result(folder / "result.nc").assign_attrs(change), tmp_path / "r.nc")
    assert not list(tmp_path.iterdir())


def test_nothing_of_a_file_is_parsed_before_its_digest_is_checked(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    (tmp_path / path.name).write_bytes(data)
    monkeypatch.setattr(h5py, "File", None)
    for read in (open_result_or_study, open_result, open_study):
        with pytest.raises(StoreError, match=r"its digest does not match its contents; use another copy"):
            read(tmp_path / path.name)


@pytest.mark.slow
def test_random_damage(script: ModuleType, folder: Path, tmp_path: Path) -> None:
    """Run a part of `scripts/validation/torture damage`; docs/durability.md has the results of all of it."""
    for name in ("family0.seed0.h5", "family1.seed0.h5"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    files = [folder / "result.nc", folder / "study.nc"]
    outcomes = {outcome for _, outcome in script.trials(files, script.DAMAGED, 120, 1, tmp_path)}
    assert "refused in one line" in outcomes
    assert outcomes <= {"refused in one line", "equal"}  # a byte that no array uses can change without harm
    outcomes = {outcome for _, outcome in script.trials(files, script.FORGED, 24, 1, tmp_path)}
    assert outcomes <= {"refused in one line", "read with other values", "equal"}


@pytest.mark.slow
def test_manipulated_heaps_with_a_matching_digest_are_not_read(path: Path, script: ModuleType, tmp_path: Path) -> None:
    """HDF5 would not finish reading a heap with such an object; repsim does not read heaps."""
    original = path.read_bytes()
    offsets = script.heap_objects(original)
    assert len(offsets) > 10
    for at in offsets[:: len(offsets) // 5]:
        for end in (struct.pack("<HHIQ", 0, 0, 0, 0), struct.pack("<HHIQ", 1, 1, 0, 2**64 - 16)):
            data = bytearray(original[: -digest.SIZE])
            data[at : at + 16] = end
            xr.testing.assert_identical(
                open_result_or_study(with_digest(tmp_path / path.name, data)), open_result_or_study(path)
            )


def external_link(file: h5py.File) -> None:
    file["cka"] = h5py.ExternalLink("secret.h5", "/x")


def in_another_file(file: h5py.File) -> None:
    file.create_dataset("cka", (3, 3), "f8", external=[("secret.h5", 0, 72)])


def larger_than_the_file(file: h5py.File) -> None:
    file.create_dataset("cka", (2**20, 2**20), "f8", chunks=(2**10, 2**10), compression="gzip")


def in_a_heap(file: h5py.File) -> None:
    file.create_dataset("cka", data=["a", "b"], dtype=h5py.string_dtype())


def in_a_group(file: h5py.File) -> None:
    file.create_group("cka")


def without_dimensions(file: h5py.File) -> None:
    file.create_dataset("cka", data=np.ones((3, 3)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (external_link, "a member is a link, perhaps to another file"),
        (in_another_file, "is not contiguous in this file"),
        (larger_than_the_file, "is not contiguous in this file"),
        (in_a_heap, "holds neither numbers nor characters"),
        (in_a_group, "is no variable"),
        (without_dimensions, "is not that of its dimensions"),
    ],
)
def test_a_malicious_result_opens_no_other_file_and_allocates_no_memory(
    tmp_path: Path, folder: Path, change: Callable[[h5py.File], None], message: str
) -> None:
    with h5py.File(tmp_path / "secret.h5", "w") as file:
        file["x"] = np.ones((3, 3))
    (tmp_path / "r.nc").write_bytes((folder / "result.nc").read_bytes())
    with h5py.File(tmp_path / "r.nc", "r+", libver=("v108", "v108")) as file:
        del file["cka"]
        change(file)
    with pytest.raises(StoreError, match=r"r\.nc is damaged, cut off, or was changed by another program: the digest"):
        open_result(tmp_path / "r.nc")
    with_digest(tmp_path / "r.nc", (tmp_path / "r.nc").read_bytes())
    with pytest.raises(StoreError, match=message):
        open_result(tmp_path / "r.nc")


def test_two_variables_with_the_same_bytes_are_refused(tmp_path: Path, folder: Path) -> None:
    """A thousand names for the same bytes would take a thousand times the size of the file in memory."""
    result = open_result(folder / "result.nc")
    result = result.assign_coords({f"further{k}_a": ("layer_a", np.arange(3)) for k in range(20)})
    with h5py.File(tmp_path / "r.h5", "w", libver=("v108", "v108"), track_order=True) as file:
        netcdf._write(file, result)
        file["big"] = np.zeros(10_000)
        for k in range(20):
            file[f"again{k}"] = file["big"]
    with pytest.raises(StoreError, match="two references, or a cycle, lead to one structure"):
        open_result(with_digest(tmp_path / "r.nc", (tmp_path / "r.h5").read_bytes()))


# The previous format


def in_previous_format(path: Path, target: Path) -> Path:
    """Write the file in the previous format: by xarray, with text in HDF5's heaps and without a digest."""
    data = open_result_or_study(path)
    data.encoding = {}
    data.attrs["format_version"] = {"repsim-comparison": 2, "repsim-study": 1}[data.attrs["format"]]
    data.to_netcdf(target, engine="h5netcdf")
    return target


@pytest.mark.slow
def test_a_file_of_the_previous_format_is_read_with_a_warning(path: Path, tmp_path: Path) -> None:
    old = in_previous_format(path, tmp_path / path.name)
    with pytest.warns(MissingDigestWarning, match="has no digest, so damage cannot be detected; save it again"):
        data = open_result_or_study(old)
    current = open_result_or_study(path)
    if path.stem == "study":  # the sentences of earlier studies are removed
        assert json.loads(data.attrs["summary"])[0].startswith("The sentences of this study are not shown")
        current = current.assign_attrs(summary=data.attrs["summary"], input_controls="[]")
    xr.testing.assert_identical(data, current)
    outcome = run("export", old)
    assert outcome.exit_code == 0
    assert outcome.stdout == run("export", path).stdout
    (line,) = outcome.stderr.splitlines()
    assert line.startswith(f"warning: {old} has ")


@pytest.mark.slow
def test_endless_heaps_in_a_file_of_the_previous_format(path: Path, script: ModuleType, tmp_path: Path) -> None:
    old = in_previous_format(path, tmp_path / path.name)
    original = old.read_bytes()
    offsets = script.heap_objects(original)
    assert len(offsets) > 50
    for at in offsets[:: len(offsets) // 10]:
        for end in (struct.pack("<HHIQ", 0, 0, 0, 0), struct.pack("<HHIQ", 1, 1, 0, 2**64 - 16)):
            old.write_bytes(original[:at] + end + original[at + 16 :])
            with pytest.raises(StoreError, match="a heap of texts in it has no end"):
                open_result_or_study(old)


def test_a_circular_list_of_free_blocks_is_refused(tmp_path: Path) -> None:
    """Groups of older files have a heap of names with a list of free blocks."""
    with h5py.File(tmp_path / "x.nc", "w") as file:
        for name in ("some long name", "another long name", "x"):
            file[name] = 1
        del file["another long name"]
    data = bytearray((tmp_path / "x.nc").read_bytes())
    heap = data.find(b"HEAP")
    free, segment = struct.unpack_from("<QQ", data, heap + 16)
    assert free != 1
    struct.pack_into("<Q", data, segment + free, free)
    (tmp_path / "x.nc").write_bytes(data)
    with pytest.raises(StoreError, match="a heap of texts in it has no end"):
        open_result(tmp_path / "x.nc")


@pytest.mark.slow
def test_a_process_that_does_not_end_is_stopped(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The process that reads has a time limit, for endless loops of HDF5 that are not detected before."""
    old = in_previous_format(folder / "result.nc", tmp_path / "old.nc")
    monkeypatch.setattr("repsim.results.earlier._has_valid_global_heaps", lambda _: True)
    data = bytearray(old.read_bytes())
    at = data.find(b"GCOL") + 16
    data[at : at + 16] = bytes(16)
    old.write_bytes(data)
    with pytest.raises(StoreError, match="HDF5 does not finish reading it"):
        open_result_or_study(old)


@pytest.mark.slow
def test_a_file_of_another_program(path: Path, tmp_path: Path) -> None:
    data = open_result_or_study(path)
    data.encoding = {}
    data.to_netcdf(tmp_path / path.name, engine="h5netcdf")
    with pytest.raises(StoreError, match=r"was written by another program and has no digest; save it with"):
        open_result_or_study(tmp_path / path.name)


# The schema


def wrong_attribute(name: str, value: Any, of: str | None = None) -> Callable[[xr.Dataset], xr.Dataset]:
    def change(data: xr.Dataset) -> xr.Dataset:
        attrs = data.attrs if of is None else data[of].attrs
        if value is None:
            del attrs[name]
        else:
            attrs[name] = value
        return data

    return change


def wrong_values(name: str, make: Callable[[Any], Any]) -> Callable[[xr.Dataset], xr.Dataset]:
    """Return a change of the values of a variable or coordinate, with the same dimensions."""

    def change(data: xr.Dataset) -> xr.Dataset:
        variable = data[name]
        changed = xr.Variable(variable.dims, make(variable.values.copy()), variable.attrs)
        return data.assign_coords({name: changed}) if name in data.coords else data.assign({name: changed})

    return change


def first(value: Any) -> Callable[[Any], Any]:
    def put(values: Any) -> Any:
        values.flat[0] = value
        return values

    return put


def corner(value: Any) -> Callable[[Any], Any]:
    """Put a value where the first layer and the last one are compared by the second measure, which is not CKA."""

    def put(values: Any) -> Any:
        values[1, 0, -1] = value
        return values

    return put


RESULTS: dict[str, tuple[Callable[[xr.Dataset], xr.Dataset], str]] = {
    "format version as text": (wrong_attribute("format_version", "3"), "format"),
    "left_out missing": (wrong_attribute("left_out", None), "attribute left_out is missing"),
    "left_out a number": (wrong_attribute("left_out", 3), "attribute left_out is 3; expected a list of texts, as JSON"),
    "left_out no JSON": (wrong_attribute("left_out", "[1"), "expected a list of texts, as JSON"),
    "left_out nested": (wrong_attribute("left_out", "[" * 100_000), "expected a list of texts, as JSON"),
    "stores a list of texts": (wrong_attribute("stores_a", '["a"]'), "expected a list of objects, as JSON"),
    "stores without checksum": (wrong_attribute("stores_b", '[{"model": "a"}]'), "expected a list of objects"),
    "tf32 is 2": (wrong_attribute("tf32", 2), "attribute tf32 is 2; expected an integer"),
    "created an array": (wrong_attribute("created", [1.0, 2.0]), "expected a text"),
    "cautions text": (wrong_attribute("cautions", "beware", "cka"), "attribute cautions of cka is 'beware'"),
    "cautions of numbers": (wrong_attribute("cautions", "[1, 2]", "cka"), "expected a list of texts"),
    "undefined missing": (wrong_attribute("undefined", None, "svcca"), "attribute undefined of svcca is missing"),
    "sense unknown": (wrong_attribute("sense", "likeness", "cka"), "expected 'similarity' or 'distance'"),
    "spec of another": (wrong_attribute("spec", "svcca", "cka"), "attribute spec of cka is 'svcca'"),
    "range upside down": (wrong_attribute("valid_range", [1.0, -1.0], "cka"), "two numbers, the smaller first"),
    "range of one": (wrong_attribute("valid_range", 1.0, "cka"), "two numbers, the smaller first"),
    "label a number": (wrong_attribute("label", 5, "cka"), "attribute label of cka is 5; expected a text"),
    "NaN for a value": (wrong_values("cka", first(np.nan)), r"cka has no value \(NaN\) for 1 pairs"),
    "a value out of range": (wrong_values("cka", first(1.5)), "cka holds 1.5; expected -1 to 1"),
    "an infinite value": (wrong_values("cka", first(np.inf)), "cka holds inf"),
    "values as text": (wrong_values("cka", lambda v: v.astype(str)), "cka is text .* expected float64"),
    "values as integers": (wrong_values("cka", lambda v: v.astype(int)), "cka is int64 .* expected float64"),
    "values in float32": (wrong_values("cka", lambda v: v.astype("f4")), "cka is float32 .* expected float64"),
    "values the other way round": (
        lambda data: data.assign(cka=data["cka"].T),
        "float64 .layer_b, layer_a.; expected",
    ),
    "one layer only": (lambda data: data.isel(layer_a=0), "layer_a"),
    "a further variable": (
        lambda data: data.assign(x=1.0),
        r"x is float64 \(\); expected float64",
    ),
    "no variable": (lambda data: data.drop_vars(["cka", "svcca"]), "it holds no variable"),
    "layers missing": (lambda data: data.drop_vars("layer_b"), "coordinate layer_b is missing"),
    "layers as numbers": (wrong_values("layer_a", lambda v: np.arange(len(v))), "layer_a is int64"),
    "layers twice": (wrong_values("layer_a", lambda v: [v[0]] * len(v)), "layer_a names 'l0' twice"),
    "features as text": (
        wrong_values("features_a", lambda v: v.astype(str)),
        "features_a is text .* integers",
    ),
    "features negative": (wrong_values("features_b", first(-2)), "features_b holds -2"),
    "samples negative": (wrong_values("n_samples", lambda _: np.array(-40)), "n_samples holds -40"),
    "samples in part": (wrong_values("n_samples", lambda _: np.array(40.5)), "n_samples is float64"),
    "data a number": (wrong_values("data", lambda _: np.array(3)), "data is int64"),
}
STUDIES: dict[str, tuple[Callable[[xr.Dataset], xr.Dataset], str]] = {
    "warnings a number": (wrong_attribute("warnings", 3), "attribute warnings is 3; expected a list of texts"),
    "summary of numbers": (wrong_attribute("summary", "[1]"), "attribute summary is"),
    "stores missing": (wrong_attribute("stores", None), "attribute stores is missing"),
    "draws negative": (wrong_attribute("draws", -1), "attribute draws is -1"),
    "seed a text": (wrong_attribute("seed", "0"), "attribute seed is '0'; expected an integer"),
    "value as text": (wrong_values("value", lambda v: v.astype(str)), "value is text .* expected float64"),
    "value missing": (lambda data: data.drop_vars("value"), "the variable value is missing"),
    "value lost": (wrong_values("value", lambda v: np.full_like(v, np.nan)), "value has no value .* where"),
    "index as text": (wrong_values("index", lambda v: v.astype(str)), "index is text .* expected float64"),
    "split_half lost": (wrong_values("split_half", first(np.nan)), "split_half has no value .* where split_half_low"),
    "p beyond 1": (wrong_values("p_index", first(1.5)), "p_index holds 1.5; expected number, 0 to 1"),
    "p below 0": (wrong_values("p", first(-0.1)), "p holds -0.1"),
    "low above high": (wrong_values("split_half_low", first(3.0)), "split_half_low is above split_half_high"),
    "an effect without a value": (
        wrong_values("effect_low", first(0.1)),
        "effect has no value .* where effect_low has",
    ),
    "p over networks beyond 1": (
        wrong_values("p_exchange", first(1.5)),
        "p_exchange holds 1.5; expected number, 0 to 1",
    ),
    "an unknown level": (
        wrong_values("claim_level", lambda v: ["everything"] * len(v)),
        "claim_level holds 'everything'; expected '' or 'networks' or 'architectures'",
    ),
    "an unknown control": (
        wrong_values("control_pair", lambda _: ["a", "b", "c"]),
        "control_pair holds 'a'; expected 'both untrained' or 'first trained' or 'second trained'",
    ),
    "an unknown control of a pair": (
        wrong_values("control_name", lambda v: np.full(v.shape, "one untrained")),
        "control_name holds 'one untrained'",
    ),
    "an unknown state": (wrong_values("network_state", lambda v: ["new"] * len(v)), "network_state holds 'new'"),
    "no claims": (lambda data: data.drop_vars("claim_level"), "the variable claim_level is missing"),
    "no networks": (lambda data: data.drop_vars("network_family"), "the coordinate network_family is missing"),
    "a value between layers of one model": (
        wrong_values("value", lambda v: np.where(np.isnan(v), 0.83, v)),
        "value has values for 36 entries that are not those of debiased CKA, or of layers of two models",
    ),
    "values that are not symmetric": (
        wrong_values("value", lambda v: v * np.linspace(1, 0.9, v.shape[-1])),
        "value differs for .* entries from those with its last two dimensions exchanged",
    ),
    "a p-value of another measure": (
        wrong_values("p", corner(0.5)),
        "p has values for .* entries that are not those of plain",
    ),
    "a network with itself": (
        wrong_values("network_similarity", lambda v: np.nan_to_num(v, nan=0.5)),
        "network_similarity has values for .* entries that are not those of two networks",
    ),
    "half of an interval": (
        wrong_values("low", corner(-0.5)),
        "low or high has no value .* where the other one has",
    ),
    "an energy of another measure": (
        wrong_values("energy", lambda v: np.full_like(v, 0.5)),
        "energy has values for .* entries that are not those of debiased CKA",
    ),
    "z of another value": (wrong_values("z", first(1e6)), "z is not"),
    "match beyond the layers": (wrong_values("match", first(99)), "match holds 99"),
    "match in part": (wrong_values("match", lambda v: v + 0.5), "match is float64"),
    "a cluster below 0": (wrong_values("cluster", first(-3)), "cluster holds -3"),
    "a negative spread": (wrong_values("chance_sd", first(-1.0)), "chance_sd holds -1"),
    "complex": (wrong_values("largest", lambda v: v.astype("f4")), "largest is float32"),
    "an unknown relation": (wrong_values("relation", lambda v: ["cousins"] * len(v)), "relation holds 'cousins'"),
    "an unknown model": (wrong_values("pair_a", lambda v: ["x"] * len(v)), "pair_a names 'x'"),
    "depth beyond 1": (wrong_values("depth", lambda v: v + 1), "depth holds 1.5"),
    "pairs twice": (wrong_values("pair", lambda v: [v[0]] * len(v)), "twice"),
    "one pair": (lambda data: data.isel(pair=0), "pair"),
    "a further variable": (lambda data: data.assign(x=1.0), "x is no variable of a study"),
    "no maps": (lambda data: data.drop_vars("model_similarity"), "the variable model_similarity is missing"),
    "a share that is not the mean": (wrong_values("mean_share", lambda v: v + 1), "mean_share is not"),
}


@pytest.mark.parametrize("name", [*(f"result: {name}" for name in RESULTS), *(f"study: {name}" for name in STUDIES)])
def test_invalid_data_are_refused_in_one_line(name: str, folder: Path, tmp_path: Path) -> None:
    """They are not saved, and not read from a file with a matching digest."""
    kind, _, case = name.partition(": ")
    change, message = (RESULTS if kind == "result" else STUDIES)[case]
    changed = change(open_result_or_study(folder / f"{kind}.nc"))
    if "format_version" not in message and case != "format version as text":
        with pytest.raises(InvalidInputError, match=message):
            save_result(changed, tmp_path / "x.nc")
        assert not list(tmp_path.iterdir())
    file = with_digest(tmp_path / "x.nc", netcdf.to_bytes(changed))
    with pytest.raises(StoreError, match=message):
        open_result_or_study(file)
    assert str(file) in refused("export", file)


def test_a_value_in_the_place_of_any_that_is_undefined_is_refused(folder: Path) -> None:
    """An attacker, or another program, can write a digest that matches."""
    study = open_result_or_study(folder / "study.nc")
    places = np.argwhere(np.isnan(study["value"].values))
    assert len(places) == 36
    for place in places:
        study["value"].values[tuple(place)] = 0.83
        assert schema.problem(study) is not None
        study["value"].values[tuple(place)] = np.nan
    assert schema.problem(study) is None


def test_every_command_refuses_invalid_data(folder: Path, tmp_path: Path, script: ModuleType) -> None:
    for name in ("family0.seed0.h5", "family1.seed0.h5"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    for kind, name in (("result", "cka"), ("study", "value")):
        data = wrong_values(name, lambda v: v.astype("f4"))(open_result_or_study(folder / f"{kind}.nc"))
        file = with_digest(tmp_path / f"{kind}.nc", netcdf.to_bytes(data))
        for command, arguments in script.commands(file, tmp_path).items():
            if command != "verify":
                assert f"{name} is float32" in refused(*arguments), command
        assert run("verify", file).exit_code == 1


def test_an_invalid_earlier_result_in_memory_is_refused(folder: Path) -> None:
    stores = folder / "family0.seed0.h5", folder / "family1.seed0.h5"
    result, study = open_result(folder / "result.nc"), open_study(folder / "study.nc")
    for earlier_result, message in (
        (study, "its 'format' is 'repsim-study'"),
        (result.drop_vars("layer_a"), "layer_a is missing"),
    ):
        with pytest.raises(InvalidInputError, match=f"the earlier result is no result of repsim.compare: .*{message}"):
            grow(*stores, ["cka"], earlier_result=earlier_result)


@pytest.mark.parametrize("value", [[1, 2], 3, 1.5, ""])
def test_a_format_that_is_no_text(value: Any, folder: Path, tmp_path: Path) -> None:
    data = open_result(folder / "result.nc").assign_attrs(format=value)
    assert "its 'format' is" in refused("export", with_digest(tmp_path / "x.nc", netcdf.to_bytes(data)))


def test_a_result_that_was_changed_can_be_saved(folder: Path, tmp_path: Path) -> None:
    result = open_result(folder / "result.nc")
    changed = result.drop_vars("svcca").isel(layer_a=[0, 2]).assign_attrs(note="mine", numbers=[1, 2])
    changed = changed.assign_coords(block=("layer_a", [1, 3]))
    save_result(changed, tmp_path / "changed.nc")
    xr.testing.assert_identical(open_result(tmp_path / "changed.nc"), changed)
    assert run("export", tmp_path / "changed.nc").exit_code == 0


def test_the_page_lists_all_variables_of_studies() -> None:
    """tests/scripts/test_metrics_docs.py checks that the generated tables of the pages are up to date."""
    page = (ROOT / "docs" / "study-format.md").read_text()
    for entry in variables.VARIABLES:
        assert all(f"`{name}`" in page for name in entry.names)
        assert f"| {entry.dims} | {entry.values} |" in page


def test_a_data_set_that_is_neither_result_nor_study(tmp_path: Path) -> None:
    assert schema.problem(xr.Dataset()) == "attribute format is missing"
    with pytest.raises(
        InvalidInputError, match="the data set is no valid result, study or series: attribute format is missing"
    ):
        save_result(xr.Dataset({"x": 1.0}), tmp_path / "x.nc")


# Commands


@pytest.mark.slow
def test_verify(folder: Path, tmp_path: Path) -> None:
    path = folder / "study.nc"
    assert verify_result_or_study(path)
    store = folder / "family0.seed0.h5"
    outcome = run("verify", path, store)
    assert outcome.exit_code == 0
    assert outcome.stdout == f"{path}: OK: the digest matches\n{store}: OK: all checksums match\n"
    damaged = tmp_path / "x.nc"
    damaged.write_bytes(path.read_bytes()[:-1])
    outcome = run("verify", damaged, path, tmp_path / "none.nc")
    assert outcome.exit_code == 1
    lines = outcome.stdout.splitlines()
    assert len(lines) == 3
    assert "the digest at its end is missing" in lines[0]
    assert lines[1] == f"{path}: OK: the digest matches"
    assert "no such file" in lines[2]
    old = in_previous_format(path, tmp_path / "old.nc")
    outcome = run("verify", old)
    assert (outcome.exit_code, "has no digest" in outcome.stdout) == (0, True)


def test_inspect(folder: Path) -> None:
    lines = run("inspect", folder / "result.nc").stdout.splitlines()
    assert lines[0] == f"{folder / 'result.nc'}: repsim-comparison on given, 40 samples"
    assert "cka: 3 layer_a x 3 layer_b" in lines
    facts = json.loads(run("inspect", folder / "study.nc", "--json").stdout)
    assert facts["samples"] == 40
    assert facts["variables"]["index"] == {"measure": 2, "pair": 6}
    assert facts["attributes"]["stores"][0]["model"] == "family0.seed0"


def test_no_warning_of_a_file_with_a_digest(path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        repsim.view(open_result_or_study(path))


# Changes by other programs, or by attackers


@pytest.mark.slow
def test_structures_with_circular_references(path: Path, tmp_path: Path) -> None:
    """The HDF5 library crashes or never returns if the checksums of such structures match."""
    original = path.read_bytes()[: -digest.SIZE]
    (root,) = struct.unpack_from("<Q", original, 36)
    marks = {b"OHDR", b"OCHK", b"BTLF", b"FRHP"}
    offsets = [at for at in range(len(original) - 8) if original[at : at + 4] in marks]
    refusals = []
    for at in offsets[:: max(1, len(offsets) // 40)]:
        for change in (b"\xff" * 8, bytes(8), struct.pack("<Q", root)):
            data = bytearray(original)
            data[at + 12 : at + 20] = change
            try:
                open_result_or_study(with_digest(tmp_path / path.name, data))
            except StoreError as error:
                refusals.append(str(error))
    assert len(refusals) > 40
    assert not any("\n" in text for text in refusals)


def test_many_attributes_and_long_ones_are_read_without_hdf5(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are stored in heaps with several rows of blocks, and in trees of several levels."""
    many = {f"a{k}": "é" * (k % 7 * 700 + 1) for k in range(700)} | {"long": "x" * 200_000}
    variables = {f"v {k}": (("x", "y"), np.full((2, 3), k + 0.5), many if k == 3 else {}) for k in range(120)}
    data = xr.Dataset(variables, attrs=many)
    file = netcdf.to_bytes(data)
    monkeypatch.setattr(h5py, "File", None)
    again = netcdf.from_bytes(file, "x")
    xr.testing.assert_identical(again, data)
    assert list(again.attrs) == list(data.attrs)
    assert list(again.data_vars) == list(data.data_vars)


@pytest.mark.parametrize("name", ["a\nb", "a/b", ""])
def test_names_that_netcdf_cannot_store_are_refused(name: str, folder: Path, tmp_path: Path) -> None:
    result = open_result(folder / "result.nc").assign_attrs({name: 1})
    with pytest.raises(InvalidInputError, match="netCDF has no attribute"):
        save_result(result, tmp_path / "r.nc")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["format", "format_version"])
@pytest.mark.parametrize("value", ["a\nb", "x" * 100_000])
def test_messages_are_one_short_line_for_long_formats_and_line_ends(
    name: str, value: str, folder: Path, tmp_path: Path
) -> None:
    result = open_result(folder / "result.nc").assign_attrs({name: value})
    with pytest.raises(StoreError) as refusal:
        open_result(with_digest(tmp_path / "r.nc", netcdf.to_bytes(result)))
    assert "\n" not in str(refusal.value)
    assert len(str(refusal.value)) < 300 + len(str(tmp_path))


def test_inspect_shows_notes_that_are_no_json(folder: Path, tmp_path: Path) -> None:
    notes = {"deep": "[" * 100_000, "none": float("nan"), "deep_too": "[" * 700 + "]" * 700}
    save_result(open_result(folder / "result.nc").assign_attrs(notes), tmp_path / "r.nc")
    assert run("inspect", tmp_path / "r.nc").exit_code == 0
    shown = run("inspect", tmp_path / "r.nc", "--json")
    facts = json.loads(shown.stdout, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert facts["attributes"]["deep"] == notes["deep"]
    assert facts["attributes"]["none"] is None


def test_bounds_that_are_infinite_are_null_in_json(folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("gudhi")
    stores = [folder / "family0.seed0.h5", folder / "family1.seed0.h5"]
    save_result(repsim.compare(stores[0], stores[1], ["rtd"]), tmp_path / "r.nc")
    outcome = run("export", tmp_path / "r.nc", "-o", tmp_path / "r.json")
    assert outcome.exit_code == 0, outcome.output
    shown = json.loads((tmp_path / "r.json").read_text(), parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert shown["metrics"]["rtd"]["valid_range"] == [0, None]


def test_a_result_in_another_order_grows_with_its_values_at_their_layers(folder: Path, tmp_path: Path) -> None:
    stores = [folder / "family0.seed0.h5", folder / "family1.seed0.h5"]
    result = open_result(folder / "result.nc")
    save_result(result.isel(layer_a=[2, 0, 1], layer_b=[1, 2, 0]), tmp_path / "r.nc")
    assert run("compare", *stores, "-m", "procrustes", "-o", tmp_path / "r.nc").exit_code == 0
    grown = open_result(tmp_path / "r.nc")
    assert grown["layer_a"].values.tolist() == ["l0", "l1", "l2"]
    for name in ("cka", "svcca", "svcca.components_a", "features_b"):
        np.testing.assert_array_equal(grown[name].values, result[name].values)


def test_a_part_of_a_result_does_not_grow(folder: Path, tmp_path: Path) -> None:
    stores = [folder / "family0.seed0.h5", folder / "family1.seed0.h5"]
    result = open_result(folder / "result.nc")
    for changed in (result.isel(layer_b=[0, 2]), result.assign_coords(layer_b=["l0", "x", "l2"])):
        save_result(changed, tmp_path / "r.nc", overwrite=True)
        line = refused("compare", *stores, "-m", "procrustes", "-o", tmp_path / "r.nc")
        assert "the earlier result holds a part of the layers, or others: 'l1' is not both in it and in" in line
        assert [path.name for path in tmp_path.iterdir()] == ["r.nc"]
