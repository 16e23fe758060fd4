"""Tests of reading what other programs have saved: every format, its layers, ids and columns, and what is refused."""

import json
import logging
import pickle
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.numpy import save_file
from scipy import sparse
from scipy.io import savemat

import repsim
from repsim.errors import InvalidInputError, OutputError, StoreError, UnknownNameError
from repsim.stores import importing

Layers = dict[str, Any]
N = 12
IDS = [f"photos/{k}.jpg" for k in range(N)]


@pytest.fixture
def layers(rng: np.random.Generator) -> Layers:
    """Make maps, vectors and tokens, whose natural order is not the alphabetical one."""
    shapes = {"layer2": (2, 3, 3), "layer10": (5,), "norm": (4, 2)}
    return {name: rng.normal(size=(N, *shape)).astype(np.float32) for name, shape in shapes.items()}


def write_npz(path: Path, layers: Layers) -> Path:
    np.savez(path / "net.npz", **layers)
    return path / "net.npz"


def write_packed_npz(path: Path, layers: Layers) -> Path:
    by_columns: Layers = {name: np.asfortranarray(x) for name, x in layers.items()}
    np.savez_compressed(path / "net.npz", **by_columns)
    return path / "net.npz"


def write_safetensors(path: Path, layers: Layers) -> Path:
    save_file(layers, path / "net.safetensors")
    return path / "net.safetensors"


def write_torch(path: Path, layers: Layers) -> Path:
    torch.save({name: torch.from_numpy(x) for name, x in layers.items()}, path / "net.pt")
    return path / "net.pt"


def write_early_torch(path: Path, layers: Layers) -> Path:
    tensors = {name: torch.from_numpy(x) for name, x in layers.items()}
    torch.save(tensors, path / "net.pth", _use_new_zipfile_serialization=False)
    return path / "net.pth"


def write_hooks(path: Path, layers: Layers) -> Path:
    """Write what hooks collect: lists of the batches of every layer, on a graph."""
    batches = {name: [*torch.from_numpy(x).requires_grad_().split(5)] for name, x in layers.items()}
    torch.save(batches, path / "net.pt")
    return path / "net.pt"


def write_hdf5(path: Path, layers: Layers) -> Path:
    with h5py.File(path / "net.h5", "w", track_order=True) as file:
        for name, values in layers.items():
            file[name] = values
    return path / "net.h5"


def write_packed_hdf5(path: Path, layers: Layers) -> Path:
    with h5py.File(path / "net.hdf5", "w") as file:
        for name, values in layers.items():
            file.create_dataset(name, data=values, chunks=True, compression="gzip")
    return path / "net.hdf5"


def write_zarr(path: Path, layers: Layers, version: Any = 3) -> Path:
    zarr = pytest.importorskip("zarr")
    group = zarr.create_group(path / "net.zarr", zarr_format=version)
    for name, values in layers.items():
        group.create_array(name, data=values)
    return path / "net.zarr"


def write_early_zarr(path: Path, layers: Layers) -> Path:
    return write_zarr(path, layers, 2)


def write_mat(path: Path, layers: Layers) -> Path:
    savemat(path / "net.mat", layers)
    return path / "net.mat"


def write_npy_folder(path: Path, layers: Layers) -> Path:
    (path / "net").mkdir()
    for name, values in layers.items():
        np.save(path / "net" / f"{name}.npy", values)
    return path / "net"


def write_mixed_folder(path: Path, layers: Layers) -> Path:
    (path / "net").mkdir()
    first, second, third = layers.items()
    np.save(path / f"net/{first[0]}.npy", first[1])
    torch.save(torch.from_numpy(second[1]), path / f"net/{second[0]}.pt")
    save_file({"activations": third[1]}, path / f"net/{third[0]}.safetensors")
    (path / "net/.hidden").touch()
    return path / "net"


def write_thingsvision(path: Path, layers: Layers) -> Path:
    """Write what `extract_features(output_dir=...)` writes: a folder for each module, with runs of the rows."""
    for name, values in layers.items():
        (path / "net" / name).mkdir(parents=True)
        for start, stop in ((0, 5), (5, 10), (10, 12)):
            np.save(path / f"net/{name}/features_{start}-{stop}.npy", values[start:stop])
    return path / "net"


WRITERS = [value for name, value in sorted(globals().items()) if name.startswith("write_")]


@pytest.mark.parametrize("writer", WRITERS, ids=lambda writer: writer.__name__)
@pytest.mark.parametrize("to_file", [True, False], ids=["file", "memory"])
def test_values_and_order_of_every_format(
    writer: Callable[[Path, Layers], Path], *, to_file: bool, tmp_path: Path, layers: Layers,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(importing, "_PIECE", 300)  # several blocks of each layer
    source = writer(tmp_path, layers)
    store = repsim.read_activations(source, tmp_path / "out.h5" if to_file else None)
    assert store.model == "net"
    assert store.layers == tuple(layers)  # layer2 before layer10
    for name, values in layers.items():
        np.testing.assert_array_equal(store[name][:], values)
        assert store[name].dtype == np.float32
    assert store.sample_ids.ids == tuple(map(str, range(N)))
    assert store.provenance["sample_ids"] == "numbers of the rows"
    assert list(store.provenance["imported"]["layers"]) == list(layers)
    assert store.provenance["imported"]["left_out"] == {}
    files = store.provenance["imported"]["files"]
    assert files[0]["name"].startswith("net")
    assert all(len(file["sha256"]) == 64 for file in files)
    assert str(tmp_path) not in json.dumps(store.provenance)
    if to_file:
        assert repsim.verify(tmp_path / "out.h5") == []


@pytest.mark.parametrize("writer", [write_npy_folder, write_safetensors, write_torch, write_hdf5])
def test_files_are_mapped_and_not_read(writer: Callable[[Path, Layers], Path], tmp_path: Path, layers: Layers) -> None:
    """Change the file behind the store: a mapped store sees the change, a copy would not."""
    source = writer(tmp_path, layers)
    store = repsim.read_activations(source)
    file = source / "layer10.npy" if source.is_dir() else source
    old, new = layers["layer10"].tobytes(), (-layers["layer10"]).tobytes()
    at = file.read_bytes().index(old)
    with file.open("r+b") as opened:
        opened.seek(at)
        opened.write(new)
    np.testing.assert_array_equal(store["layer10"][:], -layers["layer10"])


def test_memory_and_file_give_equal_results(tmp_path: Path, layers: Layers) -> None:
    source = write_safetensors(tmp_path, layers)
    memory, file = repsim.read_activations(source), repsim.read_activations(source, tmp_path / "acts")
    assert file.path == tmp_path / "acts/net.h5"
    np.testing.assert_array_equal(repsim.compare(memory)["cka"].values, repsim.compare(file)["cka"].values)


@pytest.mark.parametrize("form", ["npy", "pt", "mat", "hdf5", "txt"])
@pytest.mark.parametrize("split", [False, True])
def test_files_of_thingsvision(form: str, *, split: bool, tmp_path: Path, rng: np.random.Generator) -> None:
    """Write what `save_features` writes, in one file or in several, beside the names of the pictures."""
    values = rng.normal(size=(N, 4)).astype(np.float32)
    folder = tmp_path / "net"
    folder.mkdir()
    (folder / "file_names.txt").write_text("\n".join(IDS) + "\n")
    parts = {"features": values}
    if split:
        parts = {f"features_{k + 1:02}": part for k, part in enumerate(np.array_split(values, 3))}
    if form == "hdf5":
        with h5py.File(folder / "features.hdf5", "w") as file:
            for name, part in parts.items():
                file[name] = part
    for name, part in parts.items():
        if form == "npy":
            np.save(folder / f"{name}.npy", part)
        elif form == "pt":
            torch.save(torch.from_numpy(part), folder / f"{name}.pt")
        elif form == "txt":
            np.savetxt(folder / f"{name}.txt", part)
        elif form == "mat":
            savemat(folder / f"{name}.mat", {"features": part})
    store = repsim.read_activations(folder)
    assert store.layers == ("features",)
    np.testing.assert_array_equal(store["features"][:], values)
    assert store.sample_ids.ids == tuple(IDS)
    assert store.provenance["imported"]["ids"] == "file_names.txt"
    if not split:  # the file alone, with the names beside it
        alone = repsim.read_activations(next(folder.glob("features*")))
        assert alone.sample_ids.ids == tuple(IDS)


def test_names_of_samples_in_a_mat_file(tmp_path: Path, rng: np.random.Generator) -> None:
    values = rng.normal(size=(N, 4))
    savemat(tmp_path / "net.mat", {f"photo{k}": row for k, row in enumerate(values)})
    store = repsim.read_activations(tmp_path / "net.mat")
    np.testing.assert_array_equal(store["net"][:], values)
    assert store.sample_ids.ids == tuple(f"photo{k}" for k in range(N))


def test_numbered_features_without_ids_are_layers(tmp_path: Path, rng: np.random.Generator) -> None:
    """Check that the layers features_0 and features_3 of a network are not taken for parts of the rows of one."""
    for k in (1, 2):
        np.save(tmp_path / f"features_{k}.npy", rng.normal(size=(N, 4)))
    store = repsim.read_activations(tmp_path, model="vgg")
    assert store.layers == ("features_1", "features_2")
    assert len(store) == N


def test_a_missing_part_is_noticed(tmp_path: Path, layers: Layers) -> None:
    source = write_thingsvision(tmp_path, layers)
    (source / "layer10/features_5-10.npy").unlink()
    with pytest.raises(InvalidInputError, match="layer10: a file is missing"):
        repsim.read_activations(source)


def write_h5ad(path: Path, layers: Layers, x: Any) -> Path:
    anndata = pytest.importorskip("anndata")
    obs = pd.DataFrame({"kind": pd.Categorical(["b", "a"] * 6, categories=["b", "a"]), "size": range(N)}, index=IDS)
    data = anndata.AnnData(x, obs=obs)
    data.obsm["X_pca"] = layers["layer10"]
    data.obsm["table"] = pd.DataFrame({"p": np.arange(N)}, index=IDS)
    data.layers["counts"] = sparse.csr_matrix(np.asarray(layers["norm"].reshape(N, -1)))
    data.uns["note"] = "hello"
    data.write_h5ad(path / "net.h5ad")
    return path / "net.h5ad"


@pytest.mark.slow
@pytest.mark.parametrize("convert", [np.asarray, sparse.csr_matrix, sparse.csc_matrix])
def test_h5ad(convert: Callable[[Any], Any], tmp_path: Path, layers: Layers) -> None:
    x = np.round(layers["norm"].reshape(N, -1))
    source = write_h5ad(tmp_path, layers, convert(x))
    for out in (None, tmp_path / "out.h5"):
        store = repsim.read_activations(source, out, labels="kind")
        assert store.layers == ("X", "layers.counts", "obsm.X_pca")
        np.testing.assert_array_equal(store["X"][:], x)
        np.testing.assert_array_equal(store["obsm.X_pca"][:], layers["layer10"])
        np.testing.assert_array_equal(store["layers.counts"][:], layers["norm"].reshape(N, -1))
        assert store.sample_ids.ids == tuple(IDS)
        assert store.labels is not None
        assert (store.classes, store.labels.tolist()) == (("b", "a"), [0, 1] * 6)
        left_out = store.provenance["imported"]["left_out"]
        assert left_out == {"obsm.table": "a table"} | dict.fromkeys(("uns", "var"), "describes no sample by features")
        assert store.provenance["imported"]["labels"] == "the column kind"


def test_parquet_with_a_column_for_each_feature(tmp_path: Path, layers: Layers) -> None:
    pytest.importorskip("pyarrow")
    frame = pd.DataFrame(layers["layer10"], columns=[f"f{k}" for k in range(5)], index=pd.Index(IDS, name="photo"))
    frame["kind"], frame["count"] = ["b", "a"] * 6, range(N)
    frame.to_parquet(tmp_path / "net.parquet")
    store = repsim.read_activations(tmp_path / "net.parquet", tmp_path / "out.h5", labels="kind", groups="count")
    assert store.layers == ("net",)
    np.testing.assert_array_equal(store["net"][:], layers["layer10"])
    assert store.sample_ids.ids == tuple(IDS)
    assert store.classes == ("a", "b")
    assert len(store.group_names) == N
    assert store.provenance["imported"]["left_out"] == {}


def test_parquet_with_lists(tmp_path: Path, layers: Layers) -> None:
    pytest.importorskip("pyarrow")
    lists = {name: list(x.reshape(N, -1).astype(np.float64)) for name, x in layers.items()}
    pd.DataFrame(lists | {"id": IDS, "score": np.linspace(0, 1, N)}).to_parquet(tmp_path / "net.parquet")
    store = repsim.read_activations(tmp_path / "net.parquet")
    assert store.layers == tuple(layers)
    for name, values in layers.items():
        np.testing.assert_array_equal(store[name][:], values.reshape(N, -1))
    assert store.sample_ids.ids == tuple(IDS)
    assert store.provenance["imported"]["left_out"] == {"score": "one value a sample"}
    lists["norm"][3] = lists["norm"][3][:-1]
    pd.DataFrame(lists).to_parquet(tmp_path / "net.parquet")
    with pytest.raises(InvalidInputError, match="the rows of column 'norm' are not all lists of 8 numbers"):
        repsim.read_activations(tmp_path / "net.parquet", tmp_path / "out.h5")
    assert not [*tmp_path.glob("out*")]  # nothing half-written


@pytest.mark.parametrize("dtype", ["float16", "float64", "int8", "int64", "bool", ">f4"])
def test_dtypes(dtype: str, tmp_path: Path, rng: np.random.Generator) -> None:
    values = rng.integers(0, 2, size=(N, 3)).astype(dtype)
    np.savez(tmp_path / "net.npz", x=values, y=values.astype("float16"))
    expected = {"float16": "float16", "float64": "float64", "int64": "float64"}.get(dtype, "float32")
    store = repsim.read_activations(tmp_path / "net.npz", tmp_path / "out.h5")
    assert store["x"].dtype == expected
    np.testing.assert_array_equal(store["x"][:], values.astype(np.float64))
    np.testing.assert_array_equal(store["y"][:], values.astype(np.float64))
    memory = repsim.read_activations(tmp_path / "net.npz")
    np.testing.assert_array_equal(memory["x"][:], values.astype(np.float64))


def test_large_integers_are_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "net.npy", np.full((N, 2), 2**53 + 1))
    for out in (None, tmp_path / "out.h5"):
        with pytest.raises(InvalidInputError, match=r"layer 'net' holds whole numbers beyond 2\*\*53"):
            repsim.read_activations(tmp_path / "net.npy", out)


def test_half_precision_of_torch(tmp_path: Path, rng: np.random.Generator) -> None:
    x = torch.from_numpy(rng.normal(size=(N, 3))).bfloat16()
    torch.save({"x": x}, tmp_path / "net.pt")
    for out in (None, tmp_path / "out.h5"):
        store = repsim.read_activations(tmp_path / "net.pt", out)
        np.testing.assert_array_equal(store["x"][:], x.float().numpy())
        assert store.provenance["imported"]["layers"] == {"x": "bfloat16"}
    from safetensors.torch import save_file as save_tensors  # noqa: PLC0415

    save_tensors({"x": x}, tmp_path / "net.safetensors")
    store = repsim.read_activations(tmp_path / "net.safetensors", tmp_path / "net.h5")
    np.testing.assert_array_equal(store["x"][:], x.float().numpy())


def test_ids_labels_and_groups(tmp_path: Path, layers: Layers, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "repsim")
    source = write_npz(tmp_path, layers)
    names = tmp_path / "names.txt"
    names.write_text("\ufeff" + "\r\n".join(IDS), encoding="utf-8")
    (tmp_path / "labels.csv").write_text(
        "id,class\n" + "".join(f"{name},{'ab'[k % 2]}\n" for k, name in enumerate(IDS))
    )
    store = repsim.read_activations(
        source, tmp_path / "out.h5", ids=names, labels=tmp_path / "labels.csv", groups=[k // 3 for k in range(N)],
        axes={"step": 3}, model="mine", data="photos",
    )  # fmt: skip
    assert store.sample_ids.ids == tuple(IDS)
    assert store.classes == ("a", "b")
    assert store.group_names == ("0", "1", "2", "3")
    assert (store.axes, store.model, store.data) == ({"step": 3}, "mine", "photos")
    record = store.provenance["imported"]
    assert (record["ids"], record["labels"]["file"], record["groups"]) == (
        "names.txt",
        "labels.csv",
        {"source": "given"},
    )
    assert "3 layers of 12 samples in net.npz (npz): layer2, layer10, norm" in caplog.text
    assert "sample ids: names.txt" in caplog.text
    np.savez(tmp_path / "more.npz", **layers, ids=np.array(IDS), kind=np.arange(N) % 3, mean=np.float32(3))
    more = repsim.read_activations(tmp_path / "more.npz", labels="kind")
    assert more.sample_ids.ids == tuple(IDS)
    assert more.labels is not None
    assert more.labels.tolist() == [0, 1, 2] * 4
    assert more.provenance["imported"]["left_out"] == {"mean": "one number"}
    assert "no sample ids: row k" not in caplog.text
    repsim.read_activations(source)
    assert "no sample ids: row k" in caplog.text
    with pytest.raises(InvalidInputError, match="3 sample ids for 12 samples"):
        repsim.read_activations(source, ids=["a", "b", "c"])
    with pytest.raises(InvalidInputError, match="cannot read the sample ids from .*nowhere.txt: No such file"):
        repsim.read_activations(source, ids=tmp_path / "nowhere.txt")


def test_layers_are_chosen(tmp_path: Path, layers: Layers) -> None:
    source = write_npz(tmp_path, layers)
    store = repsim.read_activations(source, layers=["layer*"])
    assert store.layers == ("layer2", "layer10")
    assert store.provenance["imported"]["left_out"] == {"norm": "not among the chosen layers"}
    with pytest.raises(UnknownNameError, match="unknown layer 'layer3'; did you mean layer2"):
        repsim.read_activations(source, layers="layer3")
    np.savez(source, **layers, weight=np.ones((3, 4), np.float32))
    with pytest.raises(
        InvalidInputError, match=r"different numbers of rows.*: layer2 \(12, 2, 3, 3\), weight \(3, 4\)"
    ):
        repsim.read_activations(source)


def test_groups_of_datasets_are_joined_by_dots(tmp_path: Path, layers: Layers) -> None:
    with h5py.File(tmp_path / "net.h5", "w") as file:
        for name, values in layers.items():
            file[f"encoder/{name}/out"] = values
        file["ids"] = IDS
        file["kind"] = np.arange(N)
    store = repsim.read_activations(tmp_path / "net.h5", labels="kind")
    assert store.layers == tuple(f"encoder.{name}.out" for name in layers)
    assert store.sample_ids.ids == tuple(IDS)
    torch.save({"a": {"b": torch.ones(3, 2), "c/d": torch.ones(3, 2)}, "epoch": 3}, tmp_path / "net.pt")
    nested = repsim.read_activations(tmp_path / "net.pt")
    assert nested.layers == ("a.b", "a.c.d")
    assert nested.provenance["imported"]["left_out"] == {"epoch": "of type int"}


class Bomb:
    """Object whose pickle writes a file when it is opened."""

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (Path("exploded"),)


@pytest.mark.parametrize("name", ["net.npy", "net.npz", "net.pt", "net.pkl", "folder", "net.zarr"])
def test_no_file_runs_code(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / name
    bomb = np.array([Bomb()] * N, object)
    if name == "net.npy":
        np.save(path, bomb, allow_pickle=True)
    elif name == "net.npz":
        np.savez(path, x=bomb)
    elif name == "net.pt":
        torch.save({"x": Bomb()}, path)
    elif name == "net.pkl":
        path.write_bytes(pickle.dumps(Bomb()))
    elif name == "folder":
        path.mkdir()
        (path / "x.pkl").write_bytes(pickle.dumps(Bomb()))
    else:
        zarr = pytest.importorskip("zarr")
        zarr.create_group(path, zarr_format=2).create_array("x", data=np.ones((N, 2)))
        described = json.loads((path / "x/.zarray").read_text())
        described |= {"filters": [{"id": "pickle", "protocol": 5}], "compressor": None}
        (path / "x/.zarray").write_text(json.dumps(described).replace("pickle", "p\\u0069ckle"))
        (path / "x/0.0").write_bytes(pickle.dumps(Bomb()))
    with pytest.raises((InvalidInputError, StoreError), match=r"pickles? |Python objects") as caught:
        repsim.read_activations(path, tmp_path / "out.h5")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "exploded").exists()
    assert not [*tmp_path.glob("out*")]


def test_links_into_other_files_are_refused(tmp_path: Path, layers: Layers) -> None:
    secret = write_hdf5(tmp_path, layers)
    with h5py.File(tmp_path / "bad.h5", "w") as file:
        file["x"] = h5py.ExternalLink(secret.name, "norm")
    with pytest.raises(StoreError, match="is a link, perhaps to another file"):
        repsim.read_activations(tmp_path / "bad.h5")
    with h5py.File(tmp_path / "bad.h5", "w") as file:
        file.create_dataset("x", (N, 2), "f4", external=[(str(secret), 0, N * 8)])
    with pytest.raises(StoreError, match="stored in another file"):
        repsim.read_activations(tmp_path / "bad.h5")
    (tmp_path / "folder").mkdir()
    np.save(tmp_path / "x.npy", layers["norm"])
    (tmp_path / "folder/x.npy").symlink_to(tmp_path / "x.npy")
    with pytest.raises(StoreError, match="x.npy is a link to another file"):
        repsim.read_activations(tmp_path / "folder")
    source = write_zarr(tmp_path, layers)
    (source / "norm/c/9").symlink_to(tmp_path / "x.npy")
    with pytest.raises(StoreError, match="is a link, perhaps to another file"):
        repsim.read_activations(source)


@pytest.mark.parametrize("form", ["npy", "npz", "pt", "safetensors", "h5", "mat", "parquet", "txt", "h5ad"])
@pytest.mark.parametrize("content", [b"", b"no such format\n" * 99, struct.pack("<Q", 2**60) + b"{}"])
def test_damaged_files_are_one_clear_line(form: str, content: bytes, tmp_path: Path) -> None:
    name = f"net.{form}"
    (tmp_path / name).write_bytes(content)
    with pytest.raises((StoreError, InvalidInputError)) as caught:
        repsim.read_activations(tmp_path / name, tmp_path / "out.h5")
    assert name in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not [*tmp_path.glob("out*")]


def test_files_that_are_cut_off(tmp_path: Path, layers: Layers) -> None:
    for writer in (write_npy_folder, write_safetensors, write_torch, write_hdf5):
        source = writer(tmp_path, layers)
        file = source / "norm.npy" if source.is_dir() else source
        file.write_bytes(file.read_bytes()[:-200])
        with pytest.raises(StoreError):
            repsim.read_activations(source, tmp_path / "out.h5")
    with zipfile.ZipFile(tmp_path / "net.npz", "w") as archive:
        np.save(tmp_path / "x.npy", layers["norm"])
        archive.writestr("x.npy", (tmp_path / "x.npy").read_bytes()[:-8])
    with pytest.raises(StoreError, match="x.npy has fewer rows than its header says"):
        repsim.read_activations(tmp_path / "net.npz", tmp_path / "out.h5")
    assert not [*tmp_path.glob("out*")]


def test_other_input_is_one_clear_line(tmp_path: Path, layers: Layers) -> None:
    cases: list[tuple[Callable[[], Any], str]] = []
    (tmp_path / "notes.csv").write_text("a,b\n")
    cases.append((lambda: tmp_path / "notes.csv", "expected a folder, or a file of activations"))
    cases.append((lambda: tmp_path / "nowhere", "no such file or folder"))
    (tmp_path / "empty").mkdir()
    cases.append((lambda: tmp_path / "empty", "holds no layer, .*: it is empty"))
    (tmp_path / "many").mkdir()
    np.savez(tmp_path / "many/a.npz", **layers)
    cases.append((lambda: tmp_path / "many", "a.npz holds 3 layers, such as layer2; if each file .* is a model"))
    (tmp_path / "twice").mkdir()
    np.save(tmp_path / "twice/a.npy", layers["norm"])
    torch.save(torch.ones(N, 2), tmp_path / "twice/a.pt")
    cases.append((lambda: tmp_path / "twice", "holds two layers named 'a'"))
    np.savez(tmp_path / "nan.npz", x=np.where(np.arange(N)[:, None] == 4, np.nan, layers["layer10"]))
    cases.append((lambda: tmp_path / "nan.npz", "nan x@given: 5 values are NaN or infinite, the first in sample 4"))
    repsim.write_store(tmp_path / "store.h5", layers, model="net").close()
    cases.append((lambda: tmp_path / "store.h5", "is a store already; open it with repsim.open_store"))
    np.save(tmp_path / "flat.npy", layers["layer10"][:, 0])
    cases.append((lambda: tmp_path / "flat.npy", "holds no layer, .*: flat: one value a sample"))
    torch.save([torch.ones(3, 2), torch.ones(3, 4)], tmp_path / "batches.pt")
    cases.append((lambda: tmp_path / "batches.pt", "the batches of 'batches' have different shapes"))
    for source, message in cases:
        for out in (None, tmp_path / "out.h5"):
            with pytest.raises((InvalidInputError, StoreError), match=message) as caught:
                repsim.read_activations(source(), out)
            assert "\n" not in str(caught.value)
    assert not [*tmp_path.glob("out*")]
    (tmp_path / "out.h5").touch()
    with pytest.raises(OutputError, match="exists"):
        repsim.read_activations(write_npz(tmp_path, layers), tmp_path / "out.h5")
    assert repsim.read_activations(write_npz(tmp_path, layers), tmp_path / "out.h5", overwrite=True).layers


def test_texts_in_mat_files_are_ids(tmp_path: Path, rng: np.random.Generator) -> None:
    """Rows of letters are filled with spaces; a cell holds an array with one text."""
    x, ids = rng.normal(size=(11, 3)), [f"s{k}" for k in range(11)]
    for name, values in (("rows", np.array(ids)), ("cells", np.array(ids, dtype=object))):
        savemat(tmp_path / f"{name}.mat", {"x": x, "ids": values})
        store = repsim.read_activations(tmp_path / f"{name}.mat")
        assert store.sample_ids.ids == tuple(ids)
        np.testing.assert_array_equal(store["x"][:], x)


def test_arrays_of_records_are_no_layer(tmp_path: Path) -> None:
    np.save(tmp_path / "records.npy", np.zeros((12, 2), dtype=[("a", "f4"), ("b", "f4")]))
    with pytest.raises(InvalidInputError, match="no layer"):
        repsim.read_activations(tmp_path / "records.npy")


def test_links_to_files_of_ids_are_refused(tmp_path: Path, rng: np.random.Generator) -> None:
    folder = tmp_path / "net"
    folder.mkdir()
    np.save(folder / "layer1.npy", rng.normal(size=(2, 3)))
    (tmp_path / "secret.txt").write_text("one\ntwo\n")
    (folder / "ids.txt").symlink_to(tmp_path / "secret.txt")
    with pytest.raises(StoreError, match=r"ids.txt is a link to another file"):
        repsim.read_activations(folder)
