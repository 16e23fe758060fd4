"""Arrays and tensors: in memory, and files that are mapped to memory."""

import os
import pickle
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import zarr
from safetensors.torch import save_file

from repsim.errors import InvalidInputError, RepsimError, SampleError
from repsim.extractors.samples.arrays import Arrays
from repsim.extractors.samples.opening import examine, open_samples
from tests.extractors.samples.source_contract import check_one_change, check_source, digests

Array = Any


def write_zarr(path: Path, arrays: dict[str, Array]) -> None:
    group = zarr.open_group(str(path), mode="w")
    for name, values in arrays.items():
        group.create_array(name, data=values, chunks=(4, *values.shape[1:]))


SINGLE: dict[str, Callable[[Path, Array], Any]] = {
    "x.npy": np.save,
    "x.pt": lambda path, x: torch.save(torch.tensor(x), path),
    "x.zarr": lambda path, x: zarr.save_array(str(path), x, mode="w"),
}
SEVERAL: dict[str, Callable[[Path, dict[str, Array]], Any]] = {
    "x.npz": lambda path, arrays: np.savez_compressed(path, **arrays),
    "x.safetensors": lambda path, arrays: save_file({name: torch.tensor(x) for name, x in arrays.items()}, path),
    "x.pt": lambda path, arrays: torch.save({name: torch.tensor(x) for name, x in arrays.items()}, path),
    "x.zarr": write_zarr,
}


@pytest.mark.parametrize("name", SINGLE)
def test_files_of_one_array(tmp_path: Path, name: str, rng: np.random.Generator) -> None:
    x = rng.normal(size=(11, 3, 2)).astype(np.float32)
    SINGLE[name](tmp_path / name, x)
    source = open_samples(tmp_path / name)
    before = check_source(source, list(x), [f"{k:02}" for k in range(11)])
    assert (source.name, source.modality, source.record) == (name, "tensor", {"ids_from": "positions"})
    assert source.load(3).dtype == torch.float32
    assert len(set(before)) == 11
    x[7, 1, 1] = 5
    SINGLE[name](tmp_path / name, x)
    check_one_change(before, digests(open_samples(tmp_path / name)), 7)
    with pytest.raises(InvalidInputError, match=rf"column does not apply to {name}, which holds one array"):
        open_samples(tmp_path / name, column="x")
    assert list(open_samples(tmp_path / name, ids=range(11)).ids) == [str(k) for k in range(11)]


@pytest.mark.parametrize("name", SEVERAL)
def test_files_of_named_arrays(tmp_path: Path, name: str, rng: np.random.Generator) -> None:
    """The only array of numbers beside labels is read; another is named. Labels, ids and groups are arrays, too."""
    x, scenes = rng.normal(size=(6, 3)), np.array([4, 4, 5, 5, 6, 6])
    labels, ids = np.array([1, 0, 1, 0, 2, 2]), np.array([10, 11, 12, 13, 14, 15])
    SEVERAL[name](tmp_path / name, {"x": x, "label": labels, "id": ids})
    source = open_samples(tmp_path / name)
    assert len(set(check_source(source, list(x), [str(k) for k in ids]))) == 6
    assert source.labels is not None
    assert source.labels.tolist() == labels.tolist()
    assert source.name == f"{name} [x]"
    assert source.load(0).dtype == torch.float64
    SEVERAL[name](tmp_path / name, {"x": x, "z": -x, "scene": scenes, "short": x[:2]})
    with pytest.raises(
        SampleError, match=r"has 3 columns that can be read: .*\(arrays\).*; name the column with column"
    ):
        open_samples(tmp_path / name)
    source = open_samples(tmp_path / name, column="z", group_column="scene")
    check_source(source, list(-x), [str(k) for k in range(6)])
    assert source.groups is not None
    assert source.groups.tolist() == [0, 0, 1, 1, 2, 2]
    with pytest.raises(RepsimError, match=rf"{name}: short has the shape \(2, 3\), not one entry for each of 6"):
        open_samples(tmp_path / name, column="z", label_column="short")


def test_texts_in_an_archive(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", text=np.array(["a cat", "a dog"]), id=np.array(["u", "v"]))
    check_source(open_samples(tmp_path / "x.npz"), ["a cat", "a dog"], ["u", "v"])


def test_arrays_in_memory(rng: np.random.Generator) -> None:
    x = rng.normal(size=(4, 2))
    for values in (x, torch.tensor(x), x.astype(">f8"), torch.tensor(x, requires_grad=True)):
        source = open_samples(values, ids=["a", "b", "c", "d"])
        check_source(source, list(x), ["a", "b", "c", "d"])
        assert source.quick
    source.load(0)[:] = 7  # a copy
    assert source.load(0).tolist() == x[0].tolist()
    half = torch.tensor(x, dtype=torch.bfloat16)
    assert open_samples(half).load(1).dtype == torch.bfloat16
    assert len(set(digests(open_samples(half)))) == 4
    assert open_samples(np.array(["a", "b"])).modality == "text"


def test_files_are_mapped_and_not_read(tmp_path: Path) -> None:
    """A copy for a worker process holds no values."""
    x = np.zeros((1000, 1000), np.float32)
    np.save(tmp_path / "x.npy", x)
    save_file({"x": torch.tensor(x)}, tmp_path / "x.safetensors")
    torch.save(torch.tensor(x), tmp_path / "x.pt")
    for name in ("x.npy", "x.safetensors", "x.pt"):
        source = open_samples(tmp_path / name)
        source.load(0)
        assert isinstance(source, Arrays)
        source.ids = ()
        assert len(pickle.dumps(source)) < 2000
        assert source.quick
    assert isinstance(np.load(tmp_path / "x.npy", mmap_mode="r"), np.memmap)


@pytest.mark.parametrize("name", [*SINGLE, "x.npz"])
def test_values_that_are_not_finite(tmp_path: Path, name: str) -> None:
    x = np.ones((4, 3))
    x[1, 2], x[3] = np.nan, np.inf
    (SINGLE[name](tmp_path / name, x)) if name in SINGLE else np.savez(tmp_path / name, x=x)
    source = open_samples(tmp_path / name)
    with pytest.raises(SampleError, match=r"row 1 of x\..* \(id 1\) holds 1 values that are not finite \(nan\)"):
        examine(source, range(4))
    contents, bad = examine(source, range(4), skip_bad=True)
    assert list(contents) == [0, 2]
    assert "holds 3 values that are not finite (inf)" in bad[3]


class Opener:
    """An object that runs a program when it is unpickled."""

    def __reduce__(self) -> Any:
        return os.mkdir, ("unpickled",)


def test_nothing_is_unpickled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    objects = np.array([Opener(), 1], object)
    np.save("a.npy", objects)
    np.savez("b.npz", x=objects, y=np.ones(2))
    torch.save({"x": Opener()}, "c.pt")
    Path("d.pt").write_bytes(pickle.dumps(Opener()))
    for name in ("a.npy", "c.pt", "d.pt"):
        with pytest.raises(SampleError, match=r"Python objects, which repsim does not unpickle"):
            open_samples(name)
    with pytest.raises(SampleError, match="the column x of b.npz cannot be read"):
        open_samples("b.npz", column="x")
    assert list(open_samples("b.npz", column="y").ids) == ["0", "1"]
    assert not Path("unpickled").exists()


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda path: np.save(path / "x.npy", np.float64(3)), "has no samples"),
        (lambda path: np.save(path / "x.npy", np.ones((0, 3))), "has no samples"),
        (lambda path: np.save(path / "x.npy", np.ones((3, 0))), "have no values"),
        (lambda path: np.save(path / "x.npy", np.array(["2020-01-01"], "M8[D]")), "holds datetime64"),
        (lambda path: (path / "x.npy").write_bytes(b"damaged"), "cannot read x.npy"),
        (lambda path: (path / "x.npz").write_bytes(b"damaged"), "cannot read x.npz: File is not a zip file"),
        (lambda path: (path / "x.safetensors").write_bytes(b"damaged"), "cannot read x.safetensors"),
        (lambda path: (path / "x.pt").write_bytes(b"damaged"), "cannot be read as tensors alone: it is damaged"),
        (lambda path: torch.save([1, 2], path / "x.pt"), r"x.pt holds a list; save one tensor, or a dictionary"),
        (lambda path: torch.save({"a": 1}, path / "x.pt"), "x.pt holds no arrays"),
        (lambda path: zarr.open_group(str(path / "x.zarr"), mode="w"), "x.zarr holds no arrays"),
    ],
)
def test_files_that_hold_no_samples(tmp_path: Path, write: Callable[[Path], Any], message: str) -> None:
    write(tmp_path)
    with pytest.raises(SampleError, match=message):
        open_samples(next(tmp_path.iterdir()))


def test_a_file_that_is_cut_off_after_it_was_opened(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.ones((4, 3)))
    source = open_samples(tmp_path / "x.npy")
    (tmp_path / "x.npy").write_bytes(b"")
    with pytest.raises(SampleError, match=r"cannot read x\.npy"):
        source.load(0)


def test_other_objects(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match="no samples can be read from a dict"):
        open_samples({"x": np.ones(3)})
    with pytest.raises(InvalidInputError, match="it holds Python objects"):
        open_samples(np.array([{}, 1], object))
    (tmp_path / "x.docx").write_text("x")
    with pytest.raises(SampleError, match=r"cannot read .*x\.docx: samples are a folder of pictures"):
        open_samples(tmp_path / "x.docx")
    with pytest.raises(SampleError, match=r"no such folder or file: nowhere\.csv; samples are"):
        open_samples("nowhere.csv")
    with tarfile.open(tmp_path / "archive", "w"):
        pass
    with pytest.raises(SampleError, match="no picture found in archive"):
        open_samples(tmp_path / "archive")
