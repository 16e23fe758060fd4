"""Test reading of stores: values are read back, also by plain h5py; damaged or malicious files are refused."""

import dataclasses
import json
import os
import zlib
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from click.testing import CliRunner

from repsim.cli import main
from repsim.errors import InvalidInputError, OutputError, StoreError
from repsim.extractors.text_controls import bag_of_characters
from repsim.labels import LayerKey, SampleIds
from repsim.stores.schema import ArraySpec, Contents
from repsim.stores.store import ActivationStore, open_store, verify
from repsim.stores.writer import StoreWriter, count_stored, write_store

LAYERS = [f"blocks.{i}" for i in range(12)]


def arrays(rng: np.random.Generator, n: int = 7) -> dict[str, np.ndarray]:
    return {name: rng.normal(size=(n, 3, 2)).astype(np.float32) for name in LAYERS}


def test_layers_are_read_back_in_depth_order(tmp_path: Path, rng: np.random.Generator) -> None:
    layers = arrays(rng)
    ids = [f"é/{i}" for i in range(7)]
    store = write_store(tmp_path / "s.h5", layers, model="net", labels=range(7), sample_ids=ids)
    assert store.layers == tuple(LAYERS)  # blocks.2 before blocks.10
    assert list(store.sample_ids) == ids
    assert store.labels is not None
    assert store.labels.tolist() == list(range(7))
    assert store.model == "net"
    for name, values in layers.items():
        np.testing.assert_array_equal(store[name][:], values)
        np.testing.assert_array_equal(store[name][2:5], values[2:5])
        assert store[name].dtype == np.float32


def test_plain_h5py_reads_it(tmp_path: Path, rng: np.random.Generator) -> None:
    """The file has the structure that docs/store-format.md describes."""
    layers = arrays(rng)
    write_store(tmp_path / "s.h5", layers, model="net", readout="mean").close()
    with h5py.File(tmp_path / "s.h5") as file:
        expected = {"format": b"repsim-activations", "format_version": 3, "model": b"net"}
        assert {key: file.attrs[key] for key in expected} == expected
        assert json.loads(file["provenance"].asstr()[0]) == {"extractor": "given"}
        assert list(file["layers"]) == LAYERS
        assert file["samples/id"].asstr()[:].tolist() == [str(i) for i in range(7)]
        np.testing.assert_array_equal(file["layers/blocks.10/mean"][:], layers["blocks.10"])
        dataset = file["layers/blocks.10/mean"]
        assert dataset.chunks is None  # contiguous
        assert dataset.compression is None
        assert (file["checks/written"][:] == 1).all()
        assert file["checks/structure"][0] >= 2**32
        sums = [zlib.crc32(row) for row in layers["blocks.10"]]
        assert file["checks/rows/blocks.10/mean"][:].tolist() == sums


def test_a_long_provenance(tmp_path: Path) -> None:
    """A run that skips thousands of pictures records more than 64 kB, too much for an HDF5 attribute."""
    record = {"skipped": {f"photo{i}.png": "it is truncated" for i in range(10_000)}}
    store = write_store(tmp_path / "s.h5", {"a": np.ones((4, 2))}, model="m", provenance=record)
    assert store.provenance["skipped"] == record["skipped"]


def test_an_existing_store_is_kept_unless_overwritten(tmp_path: Path) -> None:
    write_store(tmp_path / "s.h5", {"a": np.ones((4, 2))}, model="old").close()
    with pytest.raises(OutputError, match="use overwrite=True to replace it"):
        write_store(tmp_path / "s.h5", {"a": np.ones((4, 2))}, model="new")
    with pytest.raises(InvalidInputError):
        write_store(tmp_path / "s.h5", {"a": np.full((4, 2), np.inf)}, model="new", overwrite=True)
    assert open_store(tmp_path / "s.h5").model == "old"
    assert write_store(tmp_path / "s.h5", {"a": np.ones((4, 2))}, model="new", overwrite=True).model == "new"


@pytest.mark.parametrize(
    ("layers", "options", "message"),
    [
        ({}, {}, "at least one layer"),
        ({"a": np.ones((4, 2)), "b": np.ones((5, 2))}, {}, "same n"),
        ({"a": np.ones(4)}, {}, r"\(n samples, features ...\)"),
        ({"a": np.ones((4, 2), int)}, {}, "float16, float32 or float64"),
        ({"a": np.ones((4, 2)), "b": np.ones((4, 2), np.float32)}, {}, "float16, float32 or float64"),
        ({"a/b": np.ones((4, 2))}, {}, "slash"),
        ({"a": np.ones((4, 2))}, {"sample_ids": ["x", "y", "x", "z"]}, "'x' occurs twice"),
        ({"a": np.ones((4, 2))}, {"sample_ids": ["x"]}, "1 sample ids for 4 samples"),
        ({"a": np.ones((4, 2))}, {"sample_ids": ["a", "b", "c", "caf\udce9"]}, "not valid Unicode"),
        ({"a": np.ones((4, 2))}, {"labels": [1]}, "1 labels for 4 samples"),
    ],
)
def test_invalid_layers_or_options_are_refused(
    tmp_path: Path, layers: dict[str, np.ndarray], options: dict[str, object], message: str
) -> None:
    with pytest.raises(InvalidInputError, match=message):
        write_store(tmp_path / "s.h5", layers, model="m", **options)  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []


def test_a_missing_file_and_a_folder(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="no such file"):
        open_store(tmp_path / "s.h5")
    with pytest.raises(StoreError, match="is a folder"):
        open_store(tmp_path)


def test_a_file_that_is_no_hdf5(tmp_path: Path) -> None:
    (tmp_path / "s.h5").write_text("hello")
    with pytest.raises(StoreError, match="no HDF5 file"):
        open_store(tmp_path / "s.h5")


def test_an_hdf5_file_of_another_program_is_refused(tmp_path: Path) -> None:
    for kind in (None, "repsim-comparison", b"other"):
        with h5py.File(tmp_path / "s.h5", "w") as file:
            file["x"] = 1
            if kind:
                file.attrs["format"] = kind
        with pytest.raises(StoreError, match="no activation store"):
            open_store(tmp_path / "s.h5")


@pytest.mark.parametrize("share", [0.1, 0.5, 0.999])
def test_a_file_that_is_cut_off(tmp_path: Path, share: float) -> None:
    path = tmp_path / "s.h5"
    write_store(path, {"a": np.ones((100, 200))}, model="m").close()
    os.truncate(path, int(path.stat().st_size * share))
    with pytest.raises(StoreError, match="cut off|damaged"):
        open_store(path)


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot make the folder"):
        write_store(tmp_path / "file" / "s.h5", {"a": np.ones((4, 2))}, model="m")
    with pytest.raises(OutputError, match="is a folder"):
        write_store(tmp_path, {"a": np.ones((4, 2))}, model="m", overwrite=True)


def test_a_store_is_a_context_manager(tmp_path: Path) -> None:
    with write_store(tmp_path / "s.h5", {"a": np.ones((4, 2))}, model="m") as store:
        assert isinstance(store, ActivationStore)
    with pytest.raises(StoreError, match="closed"):
        store["a"][:]


ROWS = [
    0, -1, slice(2, 5), slice(None, None, 2), slice(None, None, -1), [3, 1, 1], np.array([True, False] * 3 + [True]),
    np.array([[0, 1], [5, 4]]), [], (slice(1, 3), 0), (slice(None), slice(None), 1), (2, 1), (..., 0), np.int64(3),
]  # fmt: skip


@pytest.mark.parametrize("rows", ROWS, ids=str)
def test_rows_are_chosen_as_in_numpy(tmp_path: Path, rng: np.random.Generator, rows: Any) -> None:
    values = arrays(rng)["blocks.0"]
    store = write_store(tmp_path / "s.h5", {"a": values}, model="m")
    np.testing.assert_array_equal(store["a"][rows], values[rows])


def test_a_row_beyond_the_last_is_an_index_error(tmp_path: Path, rng: np.random.Generator) -> None:
    store = write_store(tmp_path / "s.h5", arrays(rng), model="m")
    with pytest.raises(IndexError):
        store["blocks.0"][7]


Change = Callable[[h5py.File], object]


def edit(path: Path, change: Change) -> None:
    with h5py.File(path, "r+") as file:
        change(file)


def replace(name: str, **make: object) -> Change:
    """Return a change that replaces a dataset by another."""

    def change(file: h5py.File) -> None:
        del file[name]
        file.create_dataset(name, **make)

    return change


def attribute(owner: str, name: str, value: object) -> Change:
    return lambda file: file[owner].attrs.__setitem__(name, value)


def in_the_heap(item: h5py.Group) -> list[str]:
    """List attributes and datasets whose values HDF5 keeps in a heap."""
    names = [f"{item.name}@{key}" for key in item.attrs if item.attrs.get_id(key).dtype.kind == "O"]
    for child in item.values() if isinstance(item, h5py.Group) else ():
        names += in_the_heap(child) + (
            [child.name] if isinstance(child, h5py.Dataset) and child.dtype.kind == "O" else []
        )
    return names


def test_nothing_is_kept_in_the_heap_of_hdf5(tmp_path: Path) -> None:
    """One flipped bit in a heap can keep HDF5 1.14 and 2.0 in an endless loop."""
    facts = {"type": "Block", "output_shape": (3, 2), "grid": None, "class_token": True}
    contents = Contents(
        (ArraySpec(LayerKey("m", "a", "mean"), (2,), facts),),
        SampleIds(("x", "y")),
        "photos",
        {"seed": 1},
        labels=np.arange(2),
        classes=("cat", "Käse"),
    )
    with StoreWriter(tmp_path / "s.h5", contents) as out:
        out.write(contents.arrays[0].key, slice(None), np.ones((2, 2)))
        out.mark_done(slice(None))
    with h5py.File(tmp_path / "s.h5") as file:
        assert in_the_heap(file) == []
    with open_store(tmp_path / "s.h5") as store:
        assert store.classes == ("cat", "Käse")
        assert store.facts("a") == {"type": "Block", "output_shape": [3, 2], "class_token": True}
    assert b"GCOL" not in (tmp_path / "s.h5").read_bytes()


@pytest.mark.parametrize("version", [1, 4])
def test_another_format(tmp_path: Path, version: int) -> None:
    write_store(tmp_path / "s.h5", {"a": np.ones((4, 2))}, model="m").close()
    edit(tmp_path / "s.h5", attribute("/", "format_version", version))
    remedy = "extract it again" if version == 1 else "install a newer repsim"
    with pytest.raises(StoreError, match=f"format {version}; this repsim reads 2 and 3; {remedy}"):
        open_store(tmp_path / "s.h5")


def test_statistics_of_pictures_are_stored_with_their_names(tmp_path: Path, rng: np.random.Generator) -> None:
    """Of pictures from 16 x 16 on; vectors and small pictures have none, and the store can be verified."""
    x, pictures = rng.normal(size=(5, 2)).astype(np.float32), rng.integers(0, 256, (5, 3, 20, 16), dtype=np.uint8)
    with write_store(tmp_path / "s.h5", {"a": x}, model="net", pixels=pictures) as store:
        assert store.statistics is not None
        assert store.pixels is not None
        np.testing.assert_array_equal(store.pixels, pictures)
        values = dict(zip(store.statistic_names, store.statistics[:].T, strict=True))
        np.testing.assert_allclose(values["brightness: mean"], pictures.mean((1, 2, 3)), rtol=1e-5)
        assert store.layers == ("a",)
        assert len(store.table().rows) == 1
        assert f"{len(values)} statistics of the input" in store._repr_html_()
    assert not list(verify(tmp_path / "s.h5"))
    for k, pixels in enumerate((pictures[:, :, :15], pictures.reshape(5, -1), None)):
        with write_store(tmp_path / f"{k}.h5", {"a": x}, model="net", pixels=pixels) as store:
            assert store.statistics is None
            assert store.statistic_names == ()
    with pytest.raises(InvalidInputError, match="input@statistics is no layer"):
        write_store(tmp_path / "t.h5", {"input": x}, model="m", readout="statistics")


def test_names_of_statistics_are_those_of_the_columns(tmp_path: Path, rng: np.random.Generator) -> None:
    x, pictures = rng.normal(size=(5, 2)), rng.normal(size=(5, 3, 16, 16))
    write_store(tmp_path / "s.h5", {"a": x}, model="net", pixels=pictures).close()
    edit(tmp_path / "s.h5", attribute("/controls/input", "names", np.bytes_("one; two")))
    with pytest.raises(StoreError, match="names of net input@statistics are not those of its columns"):
        open_store(tmp_path / "s.h5")


def test_a_store_without_statistics_is_complete(tmp_path: Path, rng: np.random.Generator) -> None:
    """Stores of earlier versions are not extracted again, and interrupted runs of earlier versions go on without."""
    x, pictures = rng.normal(size=(5, 2)), rng.normal(size=(5, 3, 16, 16))
    with write_store(tmp_path / "new.h5", {"a": x}, model="m", pixels=pictures) as store:
        new = store.contents
    specs = tuple(spec for spec in new.arrays if spec.key.readout != "statistics")
    old = dataclasses.replace(new, arrays=specs)
    assert old.difference(new) is None
    assert "input@statistics" in str(new.difference(old))
    path = tmp_path / "old.h5"
    with suppress(KeyboardInterrupt), StoreWriter(path, old) as writer:  # an interrupted run
        for spec in specs:
            writer.write(spec.key, slice(0, 2), np.ones((2, *spec.shape)))
        writer.mark_done(slice(0, 2))
        raise KeyboardInterrupt
    assert count_stored(path, new) == 2
    with StoreWriter(path, new, resume=True) as writer:
        for spec in new.arrays:
            writer.write(spec.key, slice(2, 5), np.ones((3, *spec.shape)))
        writer.mark_done(slice(2, 5))
    with open_store(path) as store:
        assert store.statistics is None
        assert store.pixels is not None
    assert count_stored(path, new) == 5


def test_pixels_are_stored_beside_the_layers(tmp_path: Path, rng: np.random.Generator) -> None:
    """They have the dtype of the layers, a layer may be called ``input``, and without pixels the property is None."""
    pixels = rng.integers(0, 256, (7, 3, 4, 4), dtype=np.uint8)
    layers = {"input": rng.normal(size=(7, 2)), **arrays(rng)}
    layers = {name: values.astype(np.float16) for name, values in layers.items()}
    with write_store(tmp_path / "s.h5", layers, model="net", pixels=pixels) as store:
        assert store.layers == tuple(layers)
        assert store.pixels is not None
        assert store.pixels.dtype == np.float16
        np.testing.assert_array_equal(store.pixels, pixels)
        np.testing.assert_array_equal(store["input"], layers["input"])
    with h5py.File(tmp_path / "s.h5") as file:
        assert list(file["layers"]) == list(layers)
        np.testing.assert_array_equal(file["controls/input/pixels"][:], pixels)
        offset = file["controls/input/pixels"].id.get_offset()
    assert verify(tmp_path / "s.h5") == []
    flip(tmp_path / "s.h5", offset + 3 * 48 * 2)
    assert [str(damage) for damage in verify(tmp_path / "s.h5")] == ["net input@pixels is damaged in row 3"]
    assert write_store(tmp_path / "t.h5", layers, model="net").pixels is None


@pytest.mark.parametrize("pixels", [np.ones(4), np.ones((5, 3)), np.ones((4, 0)), np.full((4, 3), "a")])
def test_pixels_of_other_samples_are_refused(tmp_path: Path, pixels: np.ndarray) -> None:
    with pytest.raises(InvalidInputError, match=r"pixels must be numbers of shape \(n samples, ...\) for 4 samples"):
        write_store(tmp_path / "s.h5", {"a": np.ones((4, 2))}, model="m", pixels=pixels)
    with pytest.raises(InvalidInputError, match="input@pixels is no layer"):
        write_store(tmp_path / "s.h5", {"input": np.ones((4, 2))}, model="m", readout="pixels")
    with pytest.raises(InvalidInputError, match="at least one layer"):
        write_store(tmp_path / "s.h5", {}, model="m", pixels=np.ones((4, 2)))
    assert list(tmp_path.iterdir()) == []


def test_an_array_in_the_wrong_group_is_refused(tmp_path: Path) -> None:
    """Cases: a control among the layers, a layer among the controls, a store with controls only."""
    for change, message in (
        (lambda file: file.move("controls/input", "layers/input"), "input@pixels does not belong under layers"),
        (lambda file: file.move("layers/a", "controls/a"), "a@given does not belong under controls"),
        (lambda file: file.__delitem__("layers/a"), "holds no layer"),
    ):
        write_store(
            tmp_path / "s.h5", {"a": np.ones((4, 2))}, model="m", pixels=np.ones((4, 3)), overwrite=True
        ).close()
        edit(tmp_path / "s.h5", change)
        with pytest.raises(StoreError, match=message):
            open_store(tmp_path / "s.h5")


REQUIRED = ["samples/id", "samples", "layers", "layers/a", "checks", "checks/rows/a/given", "checks/written"]


@pytest.mark.parametrize("missing", REQUIRED)
def test_a_store_without_a_required_member_is_refused(tmp_path: Path, missing: str) -> None:
    write_store(tmp_path / "s.h5", {"a": np.ones((4, 2))}, model="m").close()
    edit(tmp_path / "s.h5", lambda file: file.__delitem__(missing))
    with pytest.raises(StoreError, match="missing|holds no layer"):
        open_store(tmp_path / "s.h5")


def renamed(file: h5py.File) -> None:
    file.move("layers/a", "layers/b")
    file.move("checks/rows/a", "checks/rows/b")


CHANGES: list[Change] = [
    attribute("/", "model", np.bytes_("other")),
    attribute("layers/a", "type", np.bytes_("Block")),
    lambda file: file["samples/label"].__setitem__(2, 9),
    lambda file: file["samples/id"].__setitem__(1, b"other"),
    renamed,
    lambda file: file["checks/rows/a/given"].__setitem__(0, 1),
    lambda file: file["checks/structure"].__setitem__(0, 2**32 + 5),
]


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_outside_the_arrays_is_detected(tmp_path: Path, change: Change) -> None:
    """HDF5's own structures stay valid, so that only the checksums can detect the change."""
    ids = [f"{name}.png" for name in "abcd"]
    write_store(tmp_path / "s.h5", {"a": np.ones((4, 2))}, model="m", labels=range(4), sample_ids=ids).close()
    edit(tmp_path / "s.h5", change)
    with pytest.raises(StoreError, match="does not match"):
        open_store(tmp_path / "s.h5")


def flip(path: Path, at: int, bit: int = 0) -> None:
    with path.open("r+b") as file:
        file.seek(at)
        byte = file.read(1)[0]
        file.seek(at)
        file.write(bytes([byte ^ 1 << bit]))


def test_flipped_bits_in_arrays_are_reported_by_layer_and_row(tmp_path: Path, rng: np.random.Generator) -> None:
    layers = arrays(rng, n=50)
    path = tmp_path / "s.h5"
    write_store(path, layers, model="net", readout="mean").close()
    with h5py.File(path) as file:
        offsets = {name: file[f"layers/{name}/mean"].id.get_offset() for name in LAYERS}
    for row in (7, 8, 31):
        flip(path, offsets["blocks.3"] + row * 24 + 5, bit=row % 8)
    flip(path, offsets["blocks.9"])
    assert [str(damage) for damage in verify(path)] == [
        "net blocks.3@mean is damaged in 3 rows (7-8, 31)",
        "net blocks.9@mean is damaged in row 0",
    ]
    with open_store(path) as store:
        np.testing.assert_array_equal(store["blocks.3"][9:31], layers["blocks.3"][9:31])  # undamaged rows
        np.testing.assert_array_equal(store["blocks.4"][:], layers["blocks.4"])
        with pytest.raises(StoreError, match=r"net blocks.3@mean is damaged in row 31: the checksum does not match"):
            store["blocks.3"][[1, 31]]


@pytest.mark.slow
def test_every_flipped_bit_is_detected(tmp_path: Path) -> None:
    """Checksums cover every byte of the file, and damage to HDF5's structures is an error."""
    path = tmp_path / "s.h5"
    layers = {"a": np.ones((4, 2)), "b": np.ones((4, 3))}
    write_store(path, layers, model="m", labels=range(4), pixels=np.ones((4, 2))).close()
    data = path.read_bytes()
    rng = np.random.default_rng(0)
    for at in sorted(rng.choice(len(data), 700, replace=False)):
        flip(path, int(at), int(rng.integers(8)))
        with suppress(StoreError):
            assert verify(path), f"the flipped bit at byte {at} was not detected"
        path.write_bytes(data)
    assert verify(path) == []


def test_a_truncated_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "s.h5"
    write_store(path, {"a": np.ones((100, 20))}, model="m").close()
    data = path.read_bytes()
    for size in np.linspace(0, len(data) - 1, 60).astype(int):
        path.write_bytes(data[:size])
        with pytest.raises(StoreError):
            verify(path)


def test_bytes_after_the_end_are_detected(tmp_path: Path) -> None:
    path = tmp_path / "s.h5"
    write_store(path, {"a": np.ones((4, 2))}, model="m").close()
    with path.open("ab") as file:
        file.write(b"more")
    with pytest.raises(StoreError, match="checksums does not match"):
        open_store(path)


# Malicious files


def external_link(file: h5py.File) -> None:
    del file["layers/a/given"]
    file["layers/a/given"] = h5py.ExternalLink("secret.h5", "/x")


def soft_link(file: h5py.File) -> None:
    file["layers/z"] = h5py.SoftLink("/layers/a")


def external_storage(file: h5py.File) -> None:
    del file["layers/a/given"]
    file.create_dataset("layers/a/given", (4, 2), "f8", external=[("secret.h5", 0, 64)])


def virtual(file: h5py.File) -> None:
    del file["layers/a/given"]
    sources = h5py.VirtualLayout((4, 2), "f8")
    sources[:] = h5py.VirtualSource("secret.h5", "x", (4, 2))
    file.create_virtual_dataset("layers/a/given", sources)


@pytest.mark.parametrize(
    "change",
    [
        external_link,
        soft_link,
        external_storage,
        virtual,
        replace("layers/a/given", shape=(4, 2**40), dtype="f8", chunks=(1, 1024)),  # a petabyte in a few bytes
        replace("layers/a/given", shape=(4, 2**40), dtype="f8"),
        replace("samples/id", shape=(2**50,), dtype="S8"),
        replace("samples/id", data=np.arange(4)),
        replace("layers/a/given", data=np.arange(8).reshape(4, 2)),
        replace("layers/a/given", data=np.ones(4)),
        replace("checks/rows/a/given", data=np.ones(3, "<u4")),
        attribute("layers/a", "grid", np.zeros(5_000)),
        lambda file: (file.move("samples", "old"), file.create_group("samples")),
        replace("provenance", data=np.array([b"{"])),
        replace("provenance", data=[3]),
        attribute("/", "model", "m"),  # of variable length
        attribute("/", "model", 3),
    ],
)
def test_a_malicious_file_is_refused_in_one_line(tmp_path: Path, change: Change) -> None:
    """The reader opens no other file and allocates no memory for shapes that the file cannot hold."""
    with h5py.File(tmp_path / "secret.h5", "w") as file:
        file["x"] = np.ones((4, 2))
    path = tmp_path / "s.h5"
    write_store(path, {"a": np.ones((4, 2))}, model="m").close()
    edit(path, change)
    with pytest.raises(StoreError, match="refused|damaged store|no floating-point rows") as caught:
        open_store(path)
    assert "\n" not in str(caught.value)


def test_arrays_with_another_number_of_rows(tmp_path: Path) -> None:
    write_store(tmp_path / "s.h5", {"a": np.ones((4, 2))}, model="m").close()

    def change(file: h5py.File) -> None:
        file["layers/a/more"] = np.ones((5, 2))
        file["layers/a/more"].attrs["block"] = 1

    edit(tmp_path / "s.h5", change)
    with pytest.raises(StoreError, match="5 rows for 4 samples"):
        open_store(tmp_path / "s.h5")


def test_groups_are_read_back(tmp_path: Path, rng: np.random.Generator) -> None:
    names = ["sea", "wood", "sea", "sea", "wood", "hill", "town"]
    store = write_store(tmp_path / "s.h5", arrays(rng), model="net", groups=names)
    assert store.groups is not None
    assert store.groups.tolist() == [0, 1, 0, 0, 1, 2, 3]
    assert store.group_names == ("sea", "wood", "hill", "town")
    assert "4 groups" in store._repr_html_()
    with h5py.File(tmp_path / "s.h5") as file:
        assert file["samples/group"][:].tolist() == [0, 1, 0, 0, 1, 2, 3]
        assert file["samples/groups"].asstr()[:].tolist() == ["sea", "wood", "hill", "town"]
    numbered = write_store(tmp_path / "n.h5", arrays(rng), model="net", groups=np.array([9, 9, 9, 4, 4, 1, 1]))
    assert numbered.group_names == ("9", "4", "1")
    without = write_store(tmp_path / "w.h5", arrays(rng), model="net")
    assert (without.groups, without.group_names) == (None, ())


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        ([0, 1], "2 groups for 7 samples"),
        (np.ones((7, 2), int), "groups of the shape"),
        ([0.5] * 7, "a group is an integer or a text"),
        (["a", 1, 1, 1, 1, 1, 1], "integers or texts, not both"),
        (["a", "", "c", "d", "e", "f", "g"], "sample 1 has ''"),
        ("abcdefg", "expected one a sample"),
        (["a\n"] * 7, "control character"),
    ],
)
def test_wrong_groups_are_refused(tmp_path: Path, rng: np.random.Generator, groups: Any, message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        write_store(tmp_path / "s.h5", arrays(rng), model="net", groups=groups)
    assert not list(tmp_path.iterdir())


def test_groups_without_names_are_damage(tmp_path: Path, rng: np.random.Generator) -> None:
    write_store(tmp_path / "s.h5", arrays(rng), model="net", groups=[0, 0, 1, 1, 2, 2, 3]).close()
    with h5py.File(tmp_path / "s.h5", "r+") as file:
        file["samples/group"][3] = 4
    with pytest.raises(StoreError, match="a sample is in a group without a name"):
        open_store(tmp_path / "s.h5")
    with h5py.File(tmp_path / "s.h5", "r+") as file:
        del file["samples/groups"]
    with pytest.raises(StoreError, match="group and groups of its samples go together"):
        open_store(tmp_path / "s.h5")


def test_a_change_of_the_groups_is_damage(tmp_path: Path, rng: np.random.Generator) -> None:
    write_store(tmp_path / "s.h5", arrays(rng), model="net", groups=[0, 0, 1, 1, 2, 2, 3]).close()
    with h5py.File(tmp_path / "s.h5", "r+") as file:
        file["samples/group"][0] = 1
    with pytest.raises(StoreError, match="damaged outside of its arrays"):
        open_store(tmp_path / "s.h5")


@pytest.mark.parametrize(
    ("provenance", "expected"),
    [
        ({"modality": "text", "extractor": "transformers"}, "text"),
        ({"extractor": "timm"}, "image"),  # an earlier version
        ({}, ""),
        ({"modality": "tensor"}, "tensor"),
    ],
)
def test_a_store_says_what_its_model_reads(tmp_path: Path, provenance: dict[str, Any], expected: str) -> None:
    store = write_store(tmp_path / "s.h5", {"out": np.ones((3, 2))}, model="net", provenance=provenance)
    assert store.modality == expected
    assert store.column == ""


def test_stored_pixels_of_pictures_say_that_the_model_reads_pictures(tmp_path: Path, rng: np.random.Generator) -> None:
    pictures, vectors = rng.normal(size=(3, 3, 8, 8)), rng.normal(size=(3, 8))
    layers, texts = {"out": np.ones((3, 2))}, {"texts": ["a", "b", "c"]}
    assert write_store(tmp_path / "texts.h5", layers, model="t", controls=texts).modality == "text"
    assert write_store(tmp_path / "both.h5", layers, model="b", controls=texts, pixels=pictures).modality == ""
    stores = {name: write_store(tmp_path / f"{name}.h5", {"out": np.ones((3, 2))}, model=name, pixels=pixels,
                               provenance={"column": name})
             for name, pixels in (("pictures", pictures), ("vectors", vectors))}  # fmt: skip
    assert {name: (store.modality, store.column) for name, store in stores.items()} == {
        "pictures": ("image", "pictures"),
        "vectors": ("", "vectors"),
    }


# The inputs of texts


def test_inputs_of_texts_are_stored_beside_the_layers(tmp_path: Path, rng: np.random.Generator) -> None:
    """Tokens are exact in half precision; characters and statistics are those of the texts, which are not stored."""
    texts, tokens = ["A dog!", "two cats", "", "x"], [[1, 250_000, -1], [3], [], [4, 5]]
    embeddings = rng.normal(size=(4, 3))
    layers = {"a": rng.normal(size=(4, 2)).astype(np.float16)}
    inputs = {"texts": texts, "tokens": tokens, "embeddings": embeddings, "values": np.arange(8).reshape(4, 2)}
    with write_store(tmp_path / "s.h5", layers, model="net", controls=inputs) as store:
        assert store.layers == ("a",)
        digits = np.asarray(store.control("input", "tokens"), np.float64)
        ids = np.where(digits[:, 0] < 0, -1, 2048 * digits[:, 0] + digits[:, 1])
        np.testing.assert_array_equal(ids, [[1, 250_000], [3, -1], [-1, -1], [4, 5]])
        np.testing.assert_array_equal(store.control("input", "characters"), bag_of_characters(texts))
        np.testing.assert_array_equal(store.control("input", "embeddings"), embeddings.astype(np.float16))
        np.testing.assert_array_equal(store.control("input", "values"), inputs["values"])
        assert store.statistics is not None
        by_name = dict(zip(store.statistic_names, store.statistics[:].T.tolist(), strict=True))
        assert by_name["length: tokens"] == [2, 1, 0, 2]
        assert by_name["length: characters"] == [6, 8, 0, 1]
        assert store.pixels is None
        assert store.control("output", "prediction") is None
    assert verify(tmp_path / "s.h5") == []
    assert b"two cats" not in (tmp_path / "s.h5").read_bytes()


def test_words_stand_for_tokens(tmp_path: Path, rng: np.random.Generator) -> None:
    controls = {"texts": ["A dog", "the a"]}
    with write_store(tmp_path / "s.h5", {"a": rng.normal(size=(2, 2))}, model="net", controls=controls) as store:
        digits = np.asarray(store.control("input", "tokens"))
        np.testing.assert_array_equal(digits[0, :, 0], digits[1, :, 1])
        assert (digits[0, :, 1] != digits[1, :, 0]).any()
        assert "length: tokens" not in store.statistic_names


def test_statistics_of_pictures_and_of_texts_stand_side_by_side(tmp_path: Path, rng: np.random.Generator) -> None:
    pictures, x = rng.normal(size=(3, 3, 16, 16)), rng.normal(size=(3, 2))
    with write_store(
        tmp_path / "s.h5", {"a": x}, model="m", pixels=pictures, controls={"texts": ["a", "b c", "d"]}
    ) as s:
        assert s.statistics is not None
        column = s.statistic_names.index("length: words")
        assert "contrast: standard deviation" in s.statistic_names[:column]
        assert s.statistics[:, column].tolist() == [1, 2, 1]


@pytest.mark.parametrize(
    ("controls", "message"),
    [
        ({"pixels": np.ones((3, 2))}, "'pixels' is none of them; they are texts, tokens, embeddings, values"),
        ({"texts": ["a", "b"]}, "2 texts for 3 samples"),
        ({"texts": "abc"}, "texts: expected a sequence of 3, got str"),
        ({"texts": ["a", "b", 3]}, "texts: expected texts, got int"),
        ({"tokens": [[1], [2], 3]}, "whole numbers for each sample; sample 2 has none"),
        ({"tokens": [[1], [2.5], [3]]}, "whole numbers for each sample; sample 1 has none"),
        ({"tokens": 7}, "tokens: expected a sequence of 3, got int"),
        ({"values": np.ones(3)}, "values must be numbers of shape"),
        ({"embeddings": np.ones((2, 3))}, "embeddings must be numbers of shape"),
        (["a"], "controls: expected a dictionary, got list"),
    ],
)
def test_wrong_inputs_are_refused(tmp_path: Path, rng: np.random.Generator, controls: Any, message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        write_store(tmp_path / "s.h5", {"a": rng.normal(size=(3, 2))}, model="net", controls=controls)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("control", ["tokens", "characters", "values"])
def test_a_store_without_a_new_control_is_complete(tmp_path: Path, rng: np.random.Generator, control: str) -> None:
    inputs = {"texts": ["a", "b c"], "values": rng.normal(size=(2, 3))}
    with write_store(tmp_path / "s.h5", {"a": rng.normal(size=(2, 2))}, model="net", controls=inputs) as store:
        new = store.contents
    old = dataclasses.replace(new, arrays=tuple(spec for spec in new.arrays if spec.key.readout != control))
    assert old.difference(new) is None
    assert f"input@{control}" in str(new.difference(old))


def test_the_display_of_a_store_names_its_samples_and_data(tmp_path: Path) -> None:
    record = {"modality": "text", "column": "caption"}
    store = write_store(
        tmp_path / "s.h5", {"out": np.ones((3, 2))}, model="net", provenance=record, source="pairs.jsonl [caption]"
    )
    assert "3 texts of pairs.jsonl [caption]" in repr(store)
    assert "3 texts of pairs.jsonl [caption]" in store._repr_html_()
    done = CliRunner().invoke(main, ["inspect", str(store.path)])
    assert done.output.splitlines()[0] == f"{store.path}: net on pairs.jsonl [caption], 3 texts (0 ... 2)"
    shown = json.loads(CliRunner().invoke(main, ["inspect", str(store.path), "--json"]).output)
    assert (shown["data"], shown["modality"], shown["column"]) == ("pairs.jsonl [caption]", "text", "caption")


@pytest.mark.parametrize("text", ["null", "[]", "3", '"text"'])
def test_a_provenance_without_keys_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    """The writer reads the structure that it has just written, as every reader does."""
    monkeypatch.setattr(json, "dumps", lambda *_: text)
    with pytest.raises(StoreError, match="is a damaged store: its provenance has no keys"):
        write_store(tmp_path / "a.h5", {"a": np.eye(8)}, model="a")
