"""Test files of series: what is written is read, what is no series is refused, and tables hold all values."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
from click.testing import CliRunner

import repsim
from repsim.cli import main
from repsim.errors import FormatVersionError, InvalidInputError, StoreError, UnknownNameError
from repsim.results import netcdf, schema
from repsim.results.digest import digest_line
from repsim.results.export import SERIES_TABLES, to_json
from repsim.results.series_variables import SERIES_ATTRIBUTES, SERIES_COORDINATES, SERIES_VARIABLES
from tests.series_example import training, widths

PAGE = Path(__file__).parents[2] / "docs" / "series-format.md"
EXAMPLES: dict[str, Callable[[], xr.Dataset]] = {
    "two runs": training,
    "one run": lambda: training(("",)),
    "all pairs of points": lambda: training(every_point=True),
    "widths": widths,
}


def run(*args: object) -> Any:
    return CliRunner().invoke(main, [str(arg) for arg in args])


def put(name: str, value: Any) -> Callable[[xr.Dataset], xr.Dataset]:
    """Return a change of the first value of a variable or coordinate."""

    def change(series: xr.Dataset) -> xr.Dataset:
        variable = series[name].copy(deep=True)
        values = variable.values.astype(object if isinstance(value, str) else variable.dtype)
        values.flat[0] = value
        changed = (variable.dims, values.astype(str) if isinstance(value, str) else values, variable.attrs)
        return series.assign_coords({name: changed}) if name in series.coords else series.assign({name: changed})

    return change


INVALID: dict[str, tuple[Callable[[xr.Dataset], xr.Dataset], str]] = {
    "no axis": (lambda series: series.assign_attrs(axis=3), "attribute axis is 3"),
    "settled beyond 1": (lambda series: series.assign_attrs(settled_at=1.5), "attribute settled_at is 1.5"),
    "settled a text": (lambda series: series.assign_attrs(settled_at="0.9"), "expected a number"),
    "no similarity": (lambda series: series.drop_vars("similarity"), "the variable similarity is missing"),
    "no values of the axis": (lambda series: series.drop_vars("value"), "the coordinate value is missing"),
    "an axis without a number": (put("value", np.nan), "value has entries that are NaN"),
    "a further variable": (lambda series: series.assign(x=1.0), "x is no variable of a series"),
    "in single precision": (lambda series: series.assign(speed=series["speed"].astype("f4")), "speed is float32"),
    "a low end above": (put("settled_low", 1e9), "settled_low is above settled_high"),
    "tau beyond 1": (put("trend_tau", -1.5), "trend_tau holds -1.5; expected number, -1 to 1"),
    "p below 0": (put("trend_p", -0.1), "trend_p holds -0.1"),
    "another calibration": (put("calibrated", 0.123), "calibrated is not"),
    "an unknown comparison": (put("comparison", "next"), "comparison holds 'next'; expected 'reference' or 'previous'"),
    "points twice": (lambda series: series.assign_coords(point=["a"] * series.sizes["point"]), "point names 'a' twice"),
    "other runs": (put("one_run", "c"), "one_run does not list the runs"),
    "a trend of another layer": (put("trend_of", "head"), "trend_of is not 'network' and then the layers"),
    "layer names by layer": (
        lambda series: series.assign_coords(layer_name=("own_layer", list("abcdef"))),
        r"layer_name is text .own_layer.; expected text, .point, own_layer.",
    ),
    "other points": (
        lambda series: series.assign_coords(other_point=series["point"].values[::-1]),
        "point and other_point are not the same",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", EXAMPLES)
def test_a_series_is_read_as_it_was_saved(name: str, tmp_path: Path) -> None:
    series, path = EXAMPLES[name](), tmp_path / "series.nc"
    repsim.save_result(series, path)
    xr.testing.assert_identical(repsim.open_series(path), series)
    assert run("verify", path).stdout == f"{path}: OK: the digest matches\n"
    inspected = run("inspect", path)
    assert inspected.exit_code == 0
    assert "repsim-series on cifar10-test" in inspected.stdout


@pytest.mark.parametrize("name", INVALID)
def test_an_invalid_series_is_neither_saved_nor_opened(name: str, tmp_path: Path) -> None:
    change, message = INVALID[name]
    series = change(training(every_point=name == "other points"))
    with pytest.raises(InvalidInputError, match=f"the data set is no valid series: .*{message}"):
        repsim.save_result(series, tmp_path / "x.nc")
    assert not list(tmp_path.iterdir())
    data = netcdf.to_bytes(series)
    (tmp_path / "x.nc").write_bytes(bytes(data) + digest_line(data))
    with pytest.raises(StoreError, match=message):
        repsim.open_series(tmp_path / "x.nc")


def test_other_files_are_no_series_and_a_series_is_no_study(tmp_path: Path) -> None:
    path = tmp_path / "series.nc"
    repsim.save_result(training(), path)
    for read in (repsim.open_result, repsim.open_study):
        with pytest.raises(StoreError, match=r"its 'format' is 'repsim-series'.*it is a series of repsim\.series"):
            read(path)
    (tmp_path / "x.nc").write_text("no file of numbers")
    with pytest.raises(StoreError, match=r"is no series of repsim\.series, or damaged: it is no HDF5 file"):
        repsim.open_series(tmp_path / "x.nc")
    data = netcdf.to_bytes(training().assign_attrs(format_version=2))
    path.write_bytes(bytes(data) + digest_line(data))
    with pytest.raises(FormatVersionError, match="has series format 2; this repsim reads 1; install a newer repsim"):
        repsim.open_series(path)


def test_the_page_lists_all_variables() -> None:
    page = PAGE.read_text()
    for entry in SERIES_VARIABLES:
        assert all(f"`{name}`" in page for name in entry.names)
    for name in (*SERIES_COORDINATES, *SERIES_ATTRIBUTES):
        assert f"| `{name}` |" in page


def test_everything_in_a_series_says_what_it_is() -> None:
    series = training(every_point=True)
    described = {name for entry in SERIES_VARIABLES for name in entry.names}
    assert described == set(series.data_vars)
    assert all(series[name].attrs["long_name"] and series[name].attrs["description"] for name in described)
    assert all(series[name].attrs["long_name"] for name in SERIES_COORDINATES)
    assert schema.problem(series.assign_coords(axis_width=("point", np.arange(16)))) is None  # a further axis


@pytest.mark.parametrize("table", SERIES_TABLES)
def test_every_value_is_in_its_table(table: str) -> None:
    series = training(every_point=True).assign_coords(axis_width=("point", np.arange(16)))
    frame, dims = repsim.to_frame(series, table), SERIES_TABLES[table]
    columns = [name for name in series.data_vars if series[name].dims == dims]
    assert columns
    for name in columns:
        np.testing.assert_array_equal(frame[name], series[name].values.ravel())
    for name in (name for name in series.data_vars if series[name].dims == (*dims, "over")):
        for over in ("pictures", "runs"):
            np.testing.assert_array_equal(frame[f"{name}_{over}"], series[name].sel(over=over).values.ravel())
            assert frame.attrs["columns"][f"{name}_{over}"]
    if "point" in dims:
        assert {"run", "value", "axis_width"} <= set(frame)


def test_layers_have_their_speed_and_points_are_the_default() -> None:
    series = training()
    layers = repsim.to_frame(series, "layers")
    one = layers[(layers["measure"] == "cka") & (layers["comparison"] == "previous")]
    np.testing.assert_array_equal(one["speed"], series["speed"].sel(measure="cka").values.ravel())
    assert repsim.to_frame(series).attrs["table"] == "points"
    with pytest.raises(InvalidInputError, match="this series has no table 'every_point'"):
        repsim.to_frame(series, "every_point")
    with pytest.raises(UnknownNameError, match="did you mean points"):
        repsim.to_frame(series, "point")


def test_export_writes_tables_and_json(tmp_path: Path) -> None:
    path = tmp_path / "series.nc"
    series = training()
    repsim.save_result(series, path)
    lines = run("export", path, "--table", "settled").stdout.splitlines()
    assert lines[0] == "measure,one_run,layer,depth,settled,settled_low,settled_high"
    assert len(lines) == 1 + series["settled"].size
    assert run("export", path, "-o", tmp_path / "series.json").exit_code == 0
    value = json.loads((tmp_path / "series.json").read_text())
    assert value == to_json(series)
    assert value["axis"] == "step"
    assert value["coordinates"]["value"]["values"] == series["value"].values.tolist()
    assert value["variables"]["trend_tau"]["dims"] == ["measure", "comparison", "trend_of"]
    assert "blocks" not in value["variables"]
    assert re.search("NaN", (tmp_path / "series.json").read_text()) is None
