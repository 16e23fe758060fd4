"""Test tables, CSV and JSON of results and studies: they contain all values of the file, exactly."""

import csv
import io
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from click.testing import CliRunner

import repsim
from repsim.cli import main
from repsim.errors import InvalidInputError, UnknownNameError
from repsim.results.export import STUDY_TABLES, to_csv, to_json

MODELS = ("net.seed0", "net.seed1", "other.seed0", "other.seed1")


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> list[repsim.ActivationStore]:
    rng = np.random.default_rng(0)
    folder = tmp_path_factory.mktemp("stores")
    shared = rng.normal(size=(24, 3))
    return [
        repsim.write_store(
            folder / f"{model}.h5",
            {f"layer{k}": np.hstack([shared, rng.normal(size=(24, 4))]) for k in range(2)},
            model=model,
        )
        for model in MODELS
    ]


@pytest.fixture(scope="module")
def study(stores: list[repsim.ActivationStore], tmp_path_factory: pytest.TempPathFactory) -> tuple[xr.Dataset, Path]:
    data = repsim.universality(stores, ["cka", "mutual_knn:k=3"], permutations=19, draws=50)
    path = tmp_path_factory.mktemp("study") / "study.nc"
    repsim.save_result(data, path)
    return data, path


@pytest.fixture(scope="module")
def result(stores: list[repsim.ActivationStore], tmp_path_factory: pytest.TempPathFactory) -> tuple[xr.Dataset, Path]:
    data = repsim.compare(stores, metrics=["cka", "svcca"])
    path = tmp_path_factory.mktemp("result") / "result.nc"
    repsim.save_result(data, path)
    return data, path


def run(*args: object) -> str:
    done = CliRunner().invoke(main, [str(arg) for arg in args], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.stdout


def test_every_number_of_a_study_is_in_a_table(study: tuple[xr.Dataset, Path]) -> None:
    data, _ = study
    missing = set(data.data_vars)
    for table, dims in STUDY_TABLES.items():
        frame = repsim.to_frame(data, table)
        assert len(frame) == np.prod([data.sizes[dim] for dim in dims])
        in_table = {name for name in missing if any(str(name) in {c, c.rpartition("_")[0]} for c in frame.columns)}
        for name in {name for name in in_table & set(frame.columns) if set(data[name].dims) == set(dims)}:
            np.testing.assert_array_equal(frame[name], data[name].transpose(*dims).values.ravel())
        missing -= in_table
    assert not missing


def test_a_row_of_families_has_the_effects_the_values_of_kernels_and_the_claim(study: tuple[xr.Dataset, Path]) -> None:
    data, _ = study
    frame = repsim.to_frame(data, "families")
    assert list(frame.columns[:4]) == ["measure", "families", "family_a", "family_b"]
    for row in frame.itertuples():
        at = data.sel(measure=row.measure, families=row.families)
        np.testing.assert_equal(row.effect_low, at["effect_low"].item())
        of_kernel = at["ratio"].sel(kernel=row.measure).item() if row.measure in data["kernel"].values else np.nan
        np.testing.assert_equal(row.ratio, of_kernel)
        assert row.claim_reason == at["claim_reason"].item()
    assert frame["ratio"].notna().any()
    controls = repsim.to_frame(data, "controls")
    assert controls["control_pair"].tolist()[:3] == data["control_pair"].values.tolist()
    networks = repsim.to_frame(data, "networks")
    np.testing.assert_array_equal(networks["effective_dimension"][: data.sizes["network"]], data["effective_dimension"])


def test_labels_of_a_row_select_its_value_in_the_file(study: tuple[xr.Dataset, Path]) -> None:
    data, _ = study
    for row in repsim.to_frame(data, "layers").itertuples():
        value = data["value"].sel(
            measure=row.measure, layer_a=f"{row.model_a}/{row.layer_a}", layer_b=f"{row.model_b}/{row.layer_b}"
        )
        np.testing.assert_equal(row.value, value.item())
    for row in repsim.to_frame(data, "models").itertuples():
        coordinates = data["map_coordinates"].sel({"map": row.map, "model": row.model})
        np.testing.assert_array_equal([row.map_coordinates_1, row.map_coordinates_2], coordinates.values[:2])


def test_columns_have_the_descriptions_of_the_study(study: tuple[xr.Dataset, Path]) -> None:
    data, _ = study
    for table in STUDY_TABLES:
        frame = repsim.to_frame(data, table)
        for column in (str(name) for name in data.data_vars if name in frame.columns):
            assert data[column].attrs["description"] in frame.attrs["columns"][column]
    assert "classical scaling" in repsim.to_frame(data, "models").attrs["columns"]["map_coordinates_2"]


def test_a_row_of_a_comparison_is_a_pair_of_layers(result: tuple[xr.Dataset, Path]) -> None:
    data, _ = result
    frame = repsim.to_frame(data)
    assert list(frame.columns[:3]) == ["model_a", "layer_a", "depth_a"]
    assert set(frame["layer_a"]) == {"layer0", "layer1"}
    assert set(frame["depth_b"]) == {0.0, 1.0}
    for row in frame.itertuples():
        layer = {side: f"{getattr(row, f'model_{side}')}/{getattr(row, f'layer_{side}')}" for side in "ab"}
        assert row.cka == data["cka"].sel(layer_a=layer["a"], layer_b=layer["b"]).item()
    assert frame.attrs["columns"]["svcca"].endswith("a similarity, from 0 to 1")
    assert frame.attrs["columns"]["depth_b"].startswith("relative depth of layer b")
    assert frame.attrs["samples"] == 24


@pytest.mark.parametrize("table", STUDY_TABLES)
def test_csv_reads_back_to_the_last_bit(study: tuple[xr.Dataset, Path], table: str) -> None:
    data, path = study
    frame = repsim.to_frame(data, table)
    numbers = {
        str(name): lambda text: float(text or "nan") for name, column in frame.items() if column.dtype.kind == "f"
    }
    again = pd.read_csv(
        io.StringIO(run("export", path, "--table", table)), converters=numbers, keep_default_na=False, na_values=[""]
    )  # Python's float is exact, and the parser of pandas rounds in several versions
    assert list(again.columns) == list(frame.columns)  # the file and the data in memory have the same columns
    for name, column in frame.items():
        if column.dtype.kind in "fiu":
            np.testing.assert_array_equal(again[name].astype(column.dtype), column)


def test_json_equals_the_output_of_the_other_commands(
    stores: list[repsim.ActivationStore], result: tuple[xr.Dataset, Path], tmp_path: Path
) -> None:
    _, path = result
    printed = run("compare", *(store.path for store in stores), "-m", "cka", "-m", "svcca", "--json")
    run("export", path, "-o", tmp_path / "all.json")
    assert (tmp_path / "all.json").read_text() == printed
    rows = json.loads(run("export", path, "--table", "layers", "--format", "json"))["rows"]
    assert [row["cka"] for row in rows] == np.ravel(json.loads(printed)["metrics"]["cka"]["values"]).tolist()


def test_json_has_null_and_never_nan(study: tuple[xr.Dataset, Path]) -> None:
    data, path = study
    json.loads(run("export", path, "--format", "json"), parse_constant=pytest.fail)
    frame, rows = repsim.to_frame(data, "families"), to_json(data, "families")["rows"]
    missing = frame.isna().to_numpy()
    assert [[value is None for value in row.values()] for row in rows] == missing.tolist()


@pytest.mark.parametrize("name", ["=cmd|' /C calc'!A0", "+1+1", "-2", "@SUM(A1)", "\t=1"])
def test_no_name_is_a_formula_in_a_spreadsheet(name: str, result: tuple[xr.Dataset, Path]) -> None:
    data = result[0].isel(layer_a=[0]).assign_coords(layer_a=[name], model_a=("layer_a", ["=a"]))
    cells = [cell for row in csv.reader(io.StringIO(to_csv(repsim.to_frame(data)), newline="")) for cell in row]
    assert f"'{name}" in cells
    assert "'=a" in cells
    assert not [cell for cell in cells if cell.startswith(("=", "+", "@", "\t", "\r", "-"))]
    assert to_json(data, "layers")["rows"][0]["layer_a"] == name  # only CSV is for spreadsheets


def test_line_ends_in_names_do_not_end_a_row() -> None:
    text = to_csv(pd.DataFrame({"layer": ["a\r\n=1", 'b,"c"'], "x": [1, 2]}))
    assert list(csv.reader(io.StringIO(text, newline=""))) == [["layer", "x"], ["a \n=1", "1"], ['b,"c"', "2"]]


def test_negative_numbers_stay_numbers() -> None:
    assert to_csv(pd.DataFrame({"x": [-1.5, float("nan")], "k": [-1, 2]})) == "x,k\n-1.5,-1\n,2\n"


def test_an_existing_file_is_kept_without_overwrite(result: tuple[xr.Dataset, Path], tmp_path: Path) -> None:
    _, path = result
    out = tmp_path / "out.csv"
    out.write_text("mine")
    refused = CliRunner().invoke(main, ["export", str(path), "-o", str(out)])
    assert refused.exit_code == 2
    assert "--overwrite" in refused.stderr
    assert out.read_text() == "mine"
    run("export", path, "-o", out, "--overwrite")
    assert out.read_text() == run("export", path) == run("export", path, "-o", "-")


def test_invalid_exports_are_refused(
    stores: list[repsim.ActivationStore], result: tuple[xr.Dataset, Path], study: tuple[xr.Dataset, Path]
) -> None:
    for args, message in {
        (result[1], "-o", result[1], "--overwrite"): "name a table .csv or .json",
        (result[1], "-o", "x.csv", "--format", "json"): "contradict",
        (result[1], "--table", "pairs"): "unknown table 'pairs'",
        (study[1], "--table", "payrs"): "did you mean pairs",
        ("nothing.nc",): "no such file",
        (stores[0].path,): "it is an activation store",
    }.items():
        refused = CliRunner().invoke(main, ["export", *map(str, args)])
        assert refused.exit_code == 2
        assert message in refused.stderr
    with pytest.raises(InvalidInputError, match="repsim.compare"):
        repsim.to_frame(xr.Dataset())
    with pytest.raises(UnknownNameError, match="did you mean layers"):
        repsim.to_frame(study[0], "layer")


def test_help_names_every_table() -> None:
    listed = " ".join(run("export", "--help").split())
    assert ", ".join(STUDY_TABLES) in listed


@pytest.mark.slow
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full on this system")
def test_a_full_disk_is_reported_in_one_line(result: tuple[xr.Dataset, Path]) -> None:
    command = [sys.executable, "-m", "repsim", "export", str(result[1])]
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert (done.returncode, done.stderr) == (2, "Error: cannot write: No space left on device\n")
