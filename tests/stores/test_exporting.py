"""Tests of writing layers to other formats: read back equal to the bit, by repsim and by the formats' own libraries."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file

import repsim
from repsim.errors import InvalidInputError, OutputError, UnknownNameError
from repsim.labels import LayerKey, SampleIds
from repsim.runtime import interrupts
from repsim.stores import exporting
from repsim.stores.schema import ArraySpec, Contents
from repsim.stores.writer import StoreWriter

N = 23
FORMS = ["safetensors", "parquet", "zarr"]


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exporting, "_PIECE", 300)


def make_store(folder: Path, dtype: str = "float32", **more: Any) -> repsim.ActivationStore:
    rng = np.random.default_rng(0)
    shapes = {"layer2": (2, 3, 3), "layer10": (5,), "é.norm": (4, 2)}
    layers = {name: rng.normal(size=(N, *shape)).astype(dtype) for name, shape in shapes.items()}
    settings: dict[str, Any] = {
        "model": "my net", "sample_ids": [f"photos/{k}.jpg" for k in range(N)], "labels": [*"baü" * 7, "a", "b"],
        "groups": [k // 2 for k in range(N)], "readout": "mean", "source": "photos", "provenance": {"weights": "w"},
        "pixels": rng.normal(size=(N, 4)),
    }  # fmt: skip
    return repsim.write_store(folder / "net.h5", layers, **(settings | more))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize("to_file", [True, False])
def test_stores_are_read_back(form: str, dtype: str, *, to_file: bool, tmp_path: Path) -> None:
    pytest.importorskip({"parquet": "pyarrow"}.get(form, form))
    store = make_store(tmp_path, dtype)
    path = tmp_path / f"other name.{form}"
    assert repsim.export_activations(store.path, path) == list(store.layers)
    again = repsim.read_activations(path, tmp_path / "again.h5" if to_file else None)
    assert again.model == "my net"
    assert again.layers == store.layers
    for name in store.layers:
        assert again[name].dtype == dtype
        assert again[name].shape == store[name].shape
        assert again[name].key.readout == "mean"
        np.testing.assert_array_equal(again[name][:], store[name][:])
    assert again.sample_ids == store.sample_ids
    assert again.data == "photos"
    assert (again.contents.class_of, again.contents.group_of) == (store.contents.class_of, store.contents.group_of)
    record = again.provenance["imported"]
    assert record["provenance"] == store.provenance
    assert record["left_out"] == {}
    assert sorted(file.name for file in tmp_path.iterdir() if file.name.startswith("other")) == [path.name]


@pytest.mark.parametrize("form", FORMS)
def test_numbered_samples_stay_numbered(form: str, tmp_path: Path) -> None:
    store = repsim.as_store({"x": np.ones((5, 2)) * np.arange(5)[:, None]}, model="net")
    repsim.export_activations(store, tmp_path / f"x.{form}")
    again = repsim.read_activations(tmp_path / f"x.{form}")
    assert again.provenance["sample_ids"] == "numbers of the rows"
    assert again.labels is None
    np.testing.assert_array_equal(again["x"][:], store["x"][:])


def test_safetensors_of_other_programs(tmp_path: Path) -> None:
    store = make_store(tmp_path)
    repsim.export_activations(store, tmp_path / "x.safetensors", layers=["layer*"])
    tensors = load_file(tmp_path / "x.safetensors")
    assert sorted(tensors) == ["layer10", "layer2"]
    for name, values in tensors.items():
        np.testing.assert_array_equal(values, store[name][:])
    with safe_open(tmp_path / "x.safetensors", "np") as file:
        metadata = file.metadata()
    assert metadata["model"] == "my net"
    assert metadata["ids_fingerprint"] == store.sample_ids.fingerprint
    assert json.loads(metadata["repsim"])["checksum"] == store.checksum


def test_parquet_of_other_programs(tmp_path: Path) -> None:
    pq = pytest.importorskip("pyarrow.parquet")
    store = make_store(tmp_path)
    repsim.export_activations(store, tmp_path / "x.parquet")
    table = pq.read_table(tmp_path / "x.parquet")
    assert table.column_names == ["id", "label", "group", *store.layers]
    assert table["id"].to_pylist() == list(store.sample_ids)
    assert table["label"].to_pylist() == store.contents.class_of
    np.testing.assert_array_equal(np.array(table["layer2"].to_pylist(), np.float32), store["layer2"][:].reshape(N, -1))


def test_zarr_of_other_programs(tmp_path: Path) -> None:
    zarr = pytest.importorskip("zarr")
    store = make_store(tmp_path)
    repsim.export_activations(store, tmp_path / "x.zarr")
    group = zarr.open_group(tmp_path / "x.zarr", mode="r")
    assert sorted(group) == sorted(store.layers)
    np.testing.assert_array_equal(group["layer2"][:], store["layer2"][:])
    assert group.attrs["repsim"]["ids"] == list(store.sample_ids)


def test_labels_that_are_numbers(tmp_path: Path) -> None:
    store = make_store(tmp_path, labels=[k % 3 for k in range(N)], groups=None)
    for form in FORMS:
        repsim.export_activations(store, tmp_path / f"x.{form}")
        again = repsim.read_activations(tmp_path / f"x.{form}")
        assert again.labels is not None
        assert again.labels.tolist() == [k % 3 for k in range(N)]
        assert (again.classes, again.groups) == ((), None)


@pytest.mark.parametrize("form", FORMS)
def test_nothing_is_replaced_or_half_written(form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = make_store(tmp_path)
    path = tmp_path / f"x.{form}"
    repsim.export_activations(store, path, layers="layer10")
    with pytest.raises(OutputError, match="exists"):
        repsim.export_activations(store, path)
    assert repsim.read_activations(path).layers == ("layer10",)
    calls = iter(range(100))

    def stop() -> None:
        if next(calls) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(interrupts, "check", stop)
    for target, overwrite in ((tmp_path / f"new.{form}", False), (path, True)):
        calls = iter(range(100))
        with pytest.raises(KeyboardInterrupt):
            repsim.export_activations(store, target, overwrite=overwrite)
    monkeypatch.undo()
    assert sorted(file.name for file in tmp_path.iterdir()) == ["net.h5", path.name]
    assert repsim.read_activations(path).layers == ("layer10",)  # the earlier file is still there
    repsim.export_activations(store, path, overwrite=True)
    assert repsim.read_activations(path).layers == store.layers
    assert sorted(file.name for file in tmp_path.iterdir()) == ["net.h5", path.name]


def test_other_input_is_one_clear_line(tmp_path: Path) -> None:
    store = make_store(tmp_path)
    with pytest.raises(InvalidInputError, match=r"name the file .safetensors, .parquet or .zarr, not x.nc"):
        repsim.export_activations(store, tmp_path / "x.nc")
    with pytest.raises(UnknownNameError, match="unknown layer 'layer3'"):
        repsim.export_activations(store, tmp_path / "x.zarr", layers="layer3")
    with pytest.raises(InvalidInputError, match="a layer is named 'id', like a column of the table"):
        repsim.export_activations(repsim.as_store({"id": np.eye(3)}, model="net"), tmp_path / "x.parquet")
    (tmp_path / "file.zarr").touch()
    with pytest.raises(OutputError, match=r"file.zarr exists"):
        repsim.export_activations(store, tmp_path / "file.zarr", overwrite=True)
    (tmp_path / "photos.zarr").mkdir()
    (tmp_path / "photos.zarr/photo.jpg").touch()
    with pytest.raises(OutputError, match=r"photos.zarr is a folder, and no zarr group"):
        repsim.export_activations(store, tmp_path / "photos.zarr", overwrite=True)
    assert (tmp_path / "photos.zarr/photo.jpg").exists()


def test_compressed_layers_are_refused(tmp_path: Path) -> None:
    keys = [LayerKey("net", "a", "gram:4"), LayerKey("net", "a", "mean")]
    specs = (ArraySpec(keys[0], (4, 4), block=4), ArraySpec(keys[1], (3,)))
    contents = Contents(specs, SampleIds(tuple(map(str, range(8)))), "photos", {}, order=np.arange(8))
    with StoreWriter(tmp_path / "net.h5", contents) as writer:
        writer.write(keys[0], slice(0, 2), np.ones((2, 4, 4)))
        writer.write(keys[1], slice(0, 8), np.ones((8, 3)))
        writer.mark_done(slice(None))
    with pytest.raises(InvalidInputError, match="a@gram:4 is read out by gram:4, which keeps no features of samples"):
        repsim.export_activations(tmp_path / "net.h5", tmp_path / "x.zarr")
    assert repsim.export_activations(tmp_path / "net.h5", tmp_path / "x.zarr", layers="*@mean") == ["a@mean"]
    assert repsim.read_activations(tmp_path / "x.zarr").layers == ("a@mean",)
