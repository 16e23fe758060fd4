"""Tests of comparisons of arrays in memory: equal to the bit to those of stores in files, and read in place."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import xarray as xr

import repsim
from repsim.engine.comparison import Comparison
from repsim.errors import InvalidInputError, SampleMismatchError
from repsim.runtime import tuning
from repsim.stores.alignment import AlignedView

METRICS = ["cka", "svcca", "mutual_knn", "procrustes"]
Layers = dict[str, Any]


@pytest.fixture
def models(rng: np.random.Generator) -> dict[str, Layers]:
    """Make two models: float32 vectors, maps (n, c, h, w) and a view with strides; and float64."""
    shared = rng.normal(size=(60, 6))
    maps = (shared @ rng.normal(size=(6, 18))).reshape(60, 2, 3, 3).astype(np.float32)
    wide = (shared @ rng.normal(size=(6, 20))).astype(np.float32)
    return {
        "net": {"conv": maps, "strided": wide[:, ::2], "fc": np.asfortranarray(wide[:, :5])},
        "other": {"hidden": shared @ rng.normal(size=(6, 9)), "out": shared[:, :3] + rng.normal(size=(60, 3))},
    }


def write(folder: Path, models: dict[str, Layers], **more: Any) -> list[repsim.ActivationStore]:
    return [repsim.write_store(folder / f"{name}.h5", layers, model=name, **more) for name, layers in models.items()]


def check_equal(result: xr.Dataset, expected: xr.Dataset) -> None:
    """Check that values, names and attributes are equal; only what tells memory from files may differ."""
    for name in set(expected.variables) - {"data"}:
        np.testing.assert_array_equal(result[name].values, expected[name].values)
        assert result[name].attrs == expected[name].attrs
    assert result.attrs["samples_fingerprint"] == expected.attrs["samples_fingerprint"]


def test_values_are_those_of_stores(tmp_path: Path, models: dict[str, Layers], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    expected = repsim.compare(write(tmp_path / "acts", models), metrics=METRICS)
    check_equal(repsim.compare(models, metrics=METRICS), expected)
    assert [path.name for path in tmp_path.iterdir()] == ["acts"]  # no file is written


@pytest.mark.parametrize("convert", [torch.from_numpy, lambda x: torch.from_numpy(x).requires_grad_(), list])
def test_arrays_of_other_libraries(convert: Any, models: dict[str, Layers]) -> None:
    plain = {name: {"x": np.ascontiguousarray(next(iter(layers.values())))} for name, layers in models.items()}
    converted = {name: {"x": convert(layers["x"])} for name, layers in plain.items()}
    if convert is list:  # lists of numbers are float64
        plain["net"]["x"] = plain["net"]["x"].astype(np.float64)
        converted = {name: {"x": layers["x"].tolist()} for name, layers in plain.items()}
    check_equal(repsim.compare(converted, metrics=METRICS), repsim.compare(plain, metrics=METRICS))


def test_values_are_those_of_stores_if_layers_are_read_again(
    tmp_path: Path, models: dict[str, Layers], tuned: Any
) -> None:
    """Compute with the plan for layers that do not fit into the memory, which reads them a few rows at a time."""
    tuned(piece=64)

    def compute(stores: Any) -> xr.Dataset:
        with Comparison(stores) as planned:
            stages = tuple(dataclasses.replace(stage, kept=False) for stage in planned.plan.stages)
            planned.plan = dataclasses.replace(planned.plan, stages=stages)
            return planned.run()

    result = compute(models)
    check_equal(result, compute(write(tmp_path, models)))
    np.testing.assert_allclose(result["cka"].values, repsim.compare(models)["cka"].values, atol=1e-6)


def test_two_dictionaries_of_layers_are_the_two_sides(models: dict[str, Layers]) -> None:
    result = repsim.compare(models["net"], models["other"])
    assert result["layer_a"].values.tolist() == ["conv", "strided", "fc"]
    assert result["layer_b"].values.tolist() == ["hidden", "out"]
    assert set(result["model_a"].values) | set(result["model_b"].values) == {"a", "b"}
    named = repsim.compare({"net": models["net"]}, {"other": models["other"]})
    assert set(named["model_a"].values) | set(named["model_b"].values) == {"net", "other"}
    np.testing.assert_array_equal(named["cka"].values, result["cka"].values)
    one = repsim.compare(models["net"])
    assert one["cka"].shape == (3, 3)


def test_the_result_says_what_was_compared(
    tmp_path: Path, models: dict[str, Layers], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "repsim")
    result = repsim.compare(models, out=tmp_path / "r.nc")
    assert "row k of every array is taken as the same sample" in caplog.text
    opened = repsim.open_result(tmp_path / "r.nc")
    assert opened["data"].item() == "arrays in memory"
    stores = json.loads(opened.attrs["stores_a"])
    assert [store["model"] for store in stores] == ["net", "other"]
    assert stores[0]["provenance"] == {"extractor": "given", "sample_ids": "numbers of the rows"}
    caplog.clear()
    again = repsim.compare(models, out=tmp_path / "r.nc", metrics=["svcca"])  # the same values: the result grows
    assert set(again.data_vars) == {"cka", "svcca"}
    np.testing.assert_array_equal(again["cka"].values, result["cka"].values)
    models["net"]["fc"] = models["net"]["fc"] + 1
    with pytest.raises(InvalidInputError, match="the store of net has changed"):
        repsim.compare(models, out=tmp_path / "r.nc")


def test_ids_and_stores_in_files(tmp_path: Path, models: dict[str, Layers], caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "repsim")
    ids = [f"photo{k}" for k in range(60)]
    stores = write(tmp_path, models, sample_ids=ids)
    expected = repsim.compare(stores)
    mixed = repsim.compare([{"net": models["net"]}, stores[1].path], ids=ids)
    check_equal(mixed, expected)
    check_equal(repsim.compare(models, ids=iter(ids)), expected)
    assert "row k of" not in caplog.text
    pair = repsim.compare(stores[0], models["other"], ids=stores[0].sample_ids)
    np.testing.assert_array_equal(pair["cka"].values, repsim.compare(stores[0], stores[1])["cka"].values)
    with pytest.raises(SampleMismatchError, match=r"do not hold the same samples: .*; arrays in memory take.* ids="):
        repsim.compare(models["net"], stores[1])
    with pytest.raises(InvalidInputError, match="ids are those of arrays in memory"):
        repsim.compare(stores[0], stores[1], ids=iter(ids))
    reordered = {"x": models["net"]["conv"][::-1]}
    paired = repsim.compare(stores[0], reordered, ids=ids[::-1], pair_by="id")
    assert paired["cka"].sel(layer_a="conv", layer_b="x").item() == pytest.approx(1)


def test_row_names_are_ids(models: dict[str, Layers]) -> None:
    names = [f"row{k}" for k in range(60)]
    frame = pd.DataFrame(models["other"]["hidden"], index=names)
    store = repsim.as_store({"x": frame}, model="net")
    assert store.sample_ids.ids == tuple(names)
    assert store.provenance["sample_ids"] == "given"
    with pytest.raises(InvalidInputError, match="name their rows differently"):
        repsim.as_store({"x": frame, "y": frame[::-1]}, model="net")


def test_arrays_are_read_in_place(models: dict[str, Layers]) -> None:
    layers = models["net"] | {"tensor": torch.from_numpy(models["net"]["conv"])}
    store = repsim.as_store(layers, model="net")
    view = AlignedView(store)
    for name, values in layers.items():
        assert np.shares_memory(store[name].read_rows(0, 60), np.asarray(values))
        if values is not layers["strided"]:
            assert view.stream(store, name, "cpu")[10:20].shape == (10, np.prod(values.shape[1:]))
    assert np.shares_memory(view.stream(store, "conv", "cpu")[:].numpy(), layers["conv"])


@pytest.mark.slow
def test_arrays_are_not_changed(models: dict[str, Layers]) -> None:
    before = {name: {layer: x.copy() for layer, x in layers.items()} for name, layers in models.items()}
    repsim.compare(models, metrics=["all"])
    for name, layers in models.items():
        for layer, values in layers.items():
            np.testing.assert_array_equal(values, before[name][layer])


@pytest.mark.parametrize("dtype", ["float16", "int64", "bool", ">f4"])
def test_other_dtypes(dtype: str, rng: np.random.Generator) -> None:
    x = rng.integers(0, 2, size=(40, 5)).astype(dtype)
    store = repsim.as_store({"x": x, "y": x[::-1]}, model="net")
    np.testing.assert_array_equal(store["x"][:], x.astype(np.float64))
    np.testing.assert_array_equal(store["y"][3:5], x[::-1][3:5].astype(np.float64))
    assert repsim.compare(store)["cka"].values[0, 0] == pytest.approx(1)


def test_half_precision_of_torch_is_recorded(rng: np.random.Generator) -> None:
    x = torch.from_numpy(rng.normal(size=(40, 5))).bfloat16()
    store = repsim.as_store({"x": x}, model="net")
    assert store.provenance["converted_from"] == {"x": "bfloat16"}
    np.testing.assert_array_equal(store["x"][:], x.float().numpy())


def test_arrays_that_cannot_be_written(rng: np.random.Generator) -> None:
    x = rng.normal(size=(30, 4))
    x.flags.writeable = False
    store = repsim.as_store({"x": x}, model="net")
    assert np.shares_memory(store["x"].read_rows(0, 30), x)
    np.testing.assert_array_equal(store["x"][[3, 1]], x[[3, 1]])


def test_a_folder_with_the_name_of_a_model_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, models: dict[str, Layers]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a").mkdir()
    one, two = repsim.as_store({"x": models["net"]["fc"]}, model="a"), repsim.as_store(models["other"], model="a")
    assert repsim.compare(one, two)["cka"].shape == (1, 2)


X = np.random.default_rng(0).normal(size=(20, 3))


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({}, "the dictionary of models is empty"),
        ({"net": {}}, "model 'net' has no layers"),
        ({"net": {"x": X}, "other": X}, "expected models, each a dictionary of layers, but 'other' is a ndarray"),
        ([{"x": X}], "expected models, each a dictionary of layers, but 'x' is a ndarray"),
        ({"x": np.where(np.arange(20)[:, None] == 7, np.nan, X)}, "a x@given: 3 values are NaN .* in sample 7"),
        ({"x": X, "y": X[:10]}, r"the same n, got \(20, 3\) for 'x', \(10, 3\) for 'y'"),
        ({"net": {"x": X}, "other": {"x": X[:10]}}, "do not hold the same samples: 10 of 20 only in the first"),
        ({"x": X[:, 0]}, r"every layer must be \(n samples, features ...\)"),
        ({"x": X + 1j}, "layer 'x' is complex"),
        ({1: X}, "layer: expected text, got 1"),
        ({"x": {"y": {"z": X}}}, "layer 'y': expected an array, got a dict"),
        ({"a/b": {"x": X}}, "cannot be a model's: it holds a slash"),
        ({"a": {"x/y": X}}, "may not hold a slash"),
        ([{"net": {"x": X}}, {"net": {"y": X}}], "are all of a model named 'net'"),
        (X, "got a ndarray; name arrays in a dictionary"),
    ],
)
def test_bad_input_is_one_clear_line(arrays: Any, message: str) -> None:
    with pytest.raises((InvalidInputError, SampleMismatchError), match=message) as caught:
        repsim.compare(arrays)
    assert "\n" not in str(caught.value)


def test_bad_ids(models: dict[str, Layers]) -> None:
    with pytest.raises(InvalidInputError, match="3 sample ids for 60 samples"):
        repsim.compare(models, ids=["a", "b", "c"])
    with pytest.raises(InvalidInputError, match="sample id 'a' occurs twice"):
        repsim.compare(models, ids=["a"] * 60)
    with pytest.raises(InvalidInputError, match="expected the layers of one model, got 2 models: net, other"):
        repsim.compare(models, models["net"])


@pytest.mark.slow
def test_a_study_takes_arrays(tmp_path: Path, rng: np.random.Generator) -> None:
    """Labels, groups and pixels come with `as_store`, and the study is that of stores in files."""
    shared = rng.normal(size=(80, 5))
    more: Layers = {
        "source": "points",
        "labels": [k % 4 for k in range(80)],
        "pixels": rng.integers(0, 255, (80, 12), dtype=np.uint8),
    }
    names = ("net.seed0", "net.seed1", "other.seed0", "other.seed1")
    models = {name: {f"layer{k}": shared @ rng.normal(size=(5, 9)) for k in range(2)} for name in names}
    stores = [repsim.as_store(layers, model=name, **more) for name, layers in models.items()]
    study = repsim.universality(stores, ["cka"], permutations=99)
    expected = repsim.universality(write(tmp_path, models, **more), ["cka"], permutations=99)
    assert study.attrs["summary"] == expected.attrs["summary"]
    for name in expected.data_vars:
        np.testing.assert_array_equal(study[name].values, expected[name].values)
    copies = {name: {layer: x.copy() for layer, x in layers.items()} for name, layers in models.items()}
    plain = repsim.universality(models, ["cka"], permutations=99)
    assert all((models[name][layer] == copies[name][layer]).all() for name in models for layer in models[name])
    assert plain.sizes["pair"] == study.sizes["pair"]


def test_the_store_shows_itself(models: dict[str, Layers]) -> None:
    store = repsim.as_store(models["net"], model="net")
    assert repr(store) == "<ActivationStore net: net, 3 layers, 60 samples of arrays in memory (7.92 kB in memory)>"
    assert "in memory" in store._repr_html_()
    with store as same:
        assert same is store
    assert store.checksum == repsim.as_store(models["net"], model="net").checksum
    assert store.checksum != repsim.as_store(models["net"], model="net", sample_ids=range(1, 61)).checksum


def test_other_functions_take_arrays(tmp_path: Path, models: dict[str, Layers]) -> None:
    memory = [repsim.as_store(layers, model=name, axes={"step": k}) for k, (name, layers) in enumerate(models.items())]
    files = write(tmp_path, models)
    np.testing.assert_array_equal(repsim.leave_one_out(memory[0], memory[1]), repsim.leave_one_out(files[0], files[1]))
    orders = repsim.random_permutations(60, 5)
    np.testing.assert_array_equal(
        repsim.permuted(memory[0], memory[1], "cka", orders), repsim.permuted(files[0], files[1], "cka", orders)
    )
    third = repsim.as_store(models["net"], model="third", axes={"step": 7})
    series = repsim.series([repsim.as_store(models["net"], model="first", axes={"step": 1}), third])
    assert series.sizes["point"] == 2


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_tensors_on_a_gpu_stay_there(models: dict[str, Layers]) -> None:
    on_gpu = {
        name: {layer: torch.tensor(x, device="cuda") for layer, x in layers.items()} for name, layers in models.items()
    }
    store = repsim.as_store(on_gpu["net"], model="net")
    rows = AlignedView(store).stream(store, "conv", "cuda")
    assert rows[:].data_ptr() == on_gpu["net"]["conv"].data_ptr()
    assert rows[torch.tensor([2, 0])].device.type == "cuda"
    for device in ("cuda", "cpu"):
        check_equal(
            repsim.compare(on_gpu, metrics=METRICS, device=device),
            repsim.compare(models, metrics=METRICS, device=device),
        )


def test_small_layers_are_prepared_several_at_a_time(models: dict[str, Layers]) -> None:
    constant = {"constant": np.ones((60, 3)), "varies": models["other"]["out"]}
    with tuning.using(small_layer=0, prepared_at_once=0):
        expected = repsim.compare(models["net"], constant, METRICS)
    result = repsim.compare(models["net"], constant, METRICS)
    check_equal(result, expected)
    assert np.isnan(result["cka"].sel(layer_b="constant")).all()
    assert "constant" in result["cka"].attrs["undefined"]
