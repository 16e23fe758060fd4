"""Tests of the coordinates of models: names, values, and how stores keep them."""

import json
import math
from decimal import Decimal
from pathlib import Path

import numpy as np
import pytest

import repsim
from repsim.errors import InvalidInputError
from repsim.stores.axes import StatedAxes, axes_of, check_axes, read_value
from tests.commands.calls import run

X = np.random.default_rng(0).normal(size=(6, 3)).astype(np.float32)


def test_a_store_keeps_axes_with_their_types(tmp_path: Path) -> None:
    axes: StatedAxes = {"step": np.int32(1000), "lr": np.float64(0.1), "width": 64, "run": "a"}
    repsim.write_store(tmp_path / "a.h5", {"out": X}, model="a", axes=axes).close()
    with repsim.open_store(tmp_path / "a.h5") as store:
        assert store.axes == {"step": 1000, "lr": 0.1, "width": 64, "run": "a"}
        assert [type(value) for value in store.axes.values()] == [int, float, int, str]
        assert store.provenance["axes"] == store.axes
        assert "step=1000" in store._repr_html_()


def test_a_store_without_axes_has_none(tmp_path: Path) -> None:
    store = repsim.write_store(tmp_path / "a.h5", {"out": X}, model="a", axes={})
    assert store.axes == {}
    assert "axes" not in store.provenance


@pytest.mark.parametrize(
    "axes",
    [
        {"Step": 1}, {"": 1}, {"1x": 1}, {"a b": 1}, {"a-b": 1}, {"_a": 1}, {3: 1}, {"a\n": 1}, {"é": 1},
        {"step": True}, {"step": np.bool_(0)}, {"step": math.nan}, {"step": -math.inf}, {"step": np.float32("nan")},
        {"step": None}, {"step": ""}, {"step": " "}, {"step": "a\nb"}, {"step": 10**400}, {"step": 2**63},
        {"step": 1j}, {"step": [1]}, {"step": np.array([3])}, {"step": Decimal(1)}, {"step": b"a"}, {"step": "x" * 201},
        [("step", 1)], "step=1", {"a" * 300: 1},
    ],
)  # fmt: skip
def test_other_names_and_values_are_refused_before_anything_is_written(axes: object, tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError) as caught:
        repsim.write_store(tmp_path / "a.h5", {"out": X}, model="a", axes=axes)  # type: ignore[arg-type]
    assert "axes" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_axes_in_the_provenance_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match="use axes"):
        repsim.write_store(tmp_path / "a.h5", {"out": X}, model="a", provenance={"axes": {"step": 1}})


@pytest.mark.parametrize("recorded", ["NCHW", ["a"], {"Step": 1}, {"step": None}, None])
def test_an_entry_of_another_meaning_is_no_error(recorded: object) -> None:
    assert axes_of({"axes": recorded}) == {}


def test_texts_are_read_as_numbers_where_they_write_one() -> None:
    texts = ["0", "007", "-3", "+4", "1.", ".5", "1.5e3", "1_000", "nan", "0x10", "a", '"7"', "1e5"]
    values = [0, 7, -3, 4, 1.0, 0.5, 1500.0, "1_000", "nan", "0x10", "a", "7", 100000.0]
    assert [read_value(text) for text in texts] == values
    assert [type(read_value(text)) for text in texts] == [type(value) for value in values]
    with pytest.raises(InvalidInputError, match="step is inf"):
        check_axes({"step": read_value("1e400")})
    with pytest.raises(InvalidInputError, match="takes 5,000 bytes"):
        check_axes({"step": read_value("9" * 5000)})


def test_inspect_shows_axes(tmp_path: Path) -> None:
    path = tmp_path / "a.h5"
    repsim.write_store(path, {"out": X}, model="a", axes={"step": 1000, "run": "a"}).close()
    assert "axes: step=1000, run=a\n" in run("inspect", path).stdout
    assert json.loads(run("inspect", path, "--json").stdout)["axes"] == {"step": 1000, "run": "a"}
