"""Stores: what is written is read back, in plain HDF5 too; what is damaged is refused; nothing is half-written."""

import multiprocessing
import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import h5py
import numpy as np
import pytest

from repsim.errors import InvalidInputError, OutputError, StoreError, UnknownNameError
from repsim.labels import LayerKey, SampleIds
from repsim.store import ActivationStore, ArraySpec, StoreWriter, open_store, write_store

LAYERS = [f"blocks.{i}" for i in range(12)]


def arrays(rng: np.random.Generator, n: int = 7) -> dict[str, np.ndarray]:
    return {name: rng.normal(size=(n, 3, 2)).astype(np.float32) for name in LAYERS}


def writer(path: Path, n: int = 8, **options: object) -> StoreWriter:
    specs = [
        ArraySpec(LayerKey("m", layer, readout), (5,), {"type": "Block", "grid": None})
        for layer in ("b", "a")
        for readout in ("mean", "cls")
    ]
    given = {"source": "photos", "provenance": {"seed": 3}, "batch_size": 4, **options}
    return StoreWriter(path, specs, SampleIds(tuple(f"ü{i}.png" for i in range(n))), **given)  # type: ignore[arg-type]


def test_what_is_written_is_read_back_in_depth_order(tmp_path: Path, rng: np.random.Generator) -> None:
    given = arrays(rng)
    store = write_store(tmp_path / "s.h5", given, model="net", labels=range(7), sample_ids=[f"é/{i}" for i in range(7)])
    assert store.layers == tuple(LAYERS)  # blocks.2 before blocks.10
    assert list(store.sample_ids) == [f"é/{i}" for i in range(7)]
    assert store.labels is not None
    assert store.labels.tolist() == list(range(7))
    assert store.model == "net"
    for name, values in given.items():
        np.testing.assert_array_equal(store[name][:], values)
        np.testing.assert_array_equal(store[name][2:5], values[2:5])
        assert store[name].dtype == np.float32


def test_plain_h5py_reads_it(tmp_path: Path, rng: np.random.Generator) -> None:
    """As docs/store-format.md says."""
    given = arrays(rng)
    write_store(tmp_path / "s.h5", given, model="net", readout="mean").close()
    with h5py.File(tmp_path / "s.h5") as file:
        wanted = {"format": "repsim-activations", "format_version": 1, "state": "complete", "model": "net"}
        assert {key: file.attrs[key] for key in wanted} == wanted
        assert list(file["layers"]) == LAYERS
        assert file["samples/id"].asstr()[:].tolist() == [str(i) for i in range(7)]
        np.testing.assert_array_equal(file["layers/blocks.10/mean"][:], given["blocks.10"])
        dataset = file["layers/blocks.10/mean"]
        assert dataset.chunks == (7, 3, 2)  # whole rows
        assert dataset.compression is None


def test_rows_are_chunked_to_a_megabyte_at_most(tmp_path: Path) -> None:
    specs = [
        ArraySpec(LayerKey("m", "wide", "flatten"), (1000, 100), {}),
        ArraySpec(LayerKey("m", "narrow", "mean"), (8,), {}),
    ]
    ids = SampleIds(tuple(map(str, range(100))))
    with StoreWriter(tmp_path / "s.h5", specs, ids, source="", provenance={}, batch_size=32) as out:
        for spec in specs:
            out.write(spec.key, slice(0, 100), np.zeros((100, *spec.shape), np.float32))
    with h5py.File(tmp_path / "s.h5") as file:
        assert file["layers/wide/flatten"].chunks == (2, 1000, 100)
        assert file["layers/narrow/mean"].chunks == (32, 8)


def test_several_readouts_of_one_layer(tmp_path: Path, rng: np.random.Generator) -> None:
    values = rng.normal(size=(8, 5)).astype(np.float32)
    with writer(tmp_path / "s.h5") as out:
        for spec in out.arrays:
            for start in (0, 4):
                out.write(spec.key, slice(start, start + 4), values[start : start + 4])
    with open_store(tmp_path / "s.h5") as store:
        assert store.layers == ("b@mean", "b@cls", "a@mean", "a@cls")
        assert store["a@cls"].key == LayerKey("m", "a", "cls")
        assert store.facts("a@cls") == {"type": "Block"}
        np.testing.assert_array_equal(store["a@cls"][:], values)
        with pytest.raises(UnknownNameError, match=r"unknown layer 'a@clss'; did you mean a@cls"):
            store["a@clss"]


def test_no_metadata_changes_after_the_layout(tmp_path: Path) -> None:
    """Writing rows moves no byte outside the arrays: the file has its final size, and its arrays their final places."""
    with suppress(OutputError), writer(tmp_path / "s.h5") as out:
        before = (out.partial.stat().st_size, out.partial.read_bytes())
        out.write(out.arrays[0].key, slice(0, 8), np.ones((8, 5), np.float32))
        out.file.flush()
        after = (out.partial.stat().st_size, out.partial.read_bytes())
        changed = [i for i, (a, b) in enumerate(zip(before[1], after[1], strict=True)) if a != b]
    assert before[0] == after[0]
    assert changed
    assert max(changed) - min(changed) < 8 * 5 * 4


def test_rows_that_were_never_written_are_noticed(tmp_path: Path) -> None:
    def write_half_of_one() -> None:
        with writer(tmp_path / "s.h5") as out:
            for spec in out.arrays:
                rows = 4 if spec.key.label == "b@cls" else 8
                out.write(spec.key, slice(0, rows), np.ones((rows, 5), np.float32))

    with pytest.raises(OutputError, match="m b@cls: 4 rows were written for 8 samples"):
        write_half_of_one()
    assert list(tmp_path.iterdir()) == []


def test_a_long_provenance(tmp_path: Path) -> None:
    """As it is after thousands of pictures were skipped: more than 64 kB, which small HDF5 attributes cannot hold."""
    record = {"skipped": {f"photo{i}.png": "it is truncated" for i in range(10_000)}}
    store = write_store(tmp_path / "s.h5", {"a": np.ones((4, 2))}, model="m", provenance=record)
    assert store.provenance["skipped"] == record["skipped"]


def test_an_error_while_writing_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), writer(tmp_path / "s.h5"):
        raise ZeroDivisionError
    assert list(tmp_path.iterdir()) == []


def test_not_finite_is_refused_with_layer_and_sample(tmp_path: Path) -> None:
    values = np.ones((4, 5), np.float32)
    values[2, 1] = np.nan
    with (
        pytest.raises(InvalidInputError, match=r"m b@mean: 1 values are NaN or infinite, the first in sample ü6.png"),
        writer(tmp_path / "s.h5") as out,
    ):
        out.write(out.arrays[0].key, slice(4, 8), values)
    assert list(tmp_path.iterdir()) == []


def test_an_overflow_of_float16_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match="float32"), writer(tmp_path / "s.h5", dtype="float16") as out:
        out.write(out.arrays[0].key, slice(0, 4), np.full((4, 5), 70_000, np.float32))


def test_what_exists_is_kept_unless_overwritten(tmp_path: Path) -> None:
    write_store(tmp_path / "s.h5", {"a": np.ones((4, 2))}, model="old").close()
    with pytest.raises(OutputError, match="--overwrite"):
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
def test_what_cannot_be_a_store_is_refused(
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


def test_hdf5_of_somebody_else(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "s.h5", "w") as file:
        file["x"] = 1
    with pytest.raises(StoreError, match="no activation store"):
        open_store(tmp_path / "s.h5")


def test_a_newer_format(tmp_path: Path) -> None:
    write_store(tmp_path / "s.h5", {"a": np.ones((4, 2))}, model="m").close()
    with h5py.File(tmp_path / "s.h5", "r+") as file:
        file.attrs["format_version"] = 2
    with pytest.raises(StoreError, match="format 2; this repsim reads 1"):
        open_store(tmp_path / "s.h5")


@pytest.mark.parametrize("share", [0.1, 0.5, 0.999])
def test_a_file_that_is_cut_off(tmp_path: Path, share: float) -> None:
    path = tmp_path / "s.h5"
    write_store(path, {"a": np.ones((100, 200))}, model="m").close()
    os.truncate(path, int(path.stat().st_size * share))
    with pytest.raises(StoreError, match="cut off|damaged"):
        open_store(path)


@pytest.mark.parametrize("gone", ["samples/id", "samples", "layers", "layers/a"])
def test_a_store_that_lacks_something(tmp_path: Path, gone: str) -> None:
    write_store(tmp_path / "s.h5", {"a": np.ones((4, 2))}, model="m").close()
    with h5py.File(tmp_path / "s.h5", "r+") as file:
        del file[gone]
    with pytest.raises(StoreError):
        open_store(tmp_path / "s.h5")


def test_arrays_with_another_number_of_rows(tmp_path: Path) -> None:
    write_store(tmp_path / "s.h5", {"a": np.ones((4, 2))}, model="m").close()
    with h5py.File(tmp_path / "s.h5", "r+") as file:
        file["layers/a/more"] = np.ones((5, 2))
    with pytest.raises(StoreError, match="5 rows for 4 samples"):
        open_store(tmp_path / "s.h5")


KILLED = """
import os, signal, sys
from contextlib import suppress
from pathlib import Path
import numpy as np
from repsim.labels import LayerKey, SampleIds
from repsim.store import ArraySpec, StoreWriter
spec = ArraySpec(LayerKey("m", "a", "mean"), (5,), {})
with StoreWriter(Path(sys.argv[1]), [spec], SampleIds(tuple("abcd")), source="", provenance={}) as out:
    out.write(spec.key, slice(0, 2), np.ones((2, 5), np.float32))
    out.file.flush()
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_killed_while_writing(tmp_path: Path) -> None:
    """The name is not taken, what is left says that it is incomplete, and the next run replaces it."""
    path = tmp_path / "s.h5"
    done = subprocess.run([sys.executable, "-c", KILLED, str(path)], check=False)
    assert done.returncode == -signal.SIGKILL
    assert [p.name for p in tmp_path.iterdir()] == ["s.h5.partial"]
    with pytest.raises(StoreError, match="incomplete"):
        open_store(tmp_path / "s.h5.partial")
    write_store(path, {"a": np.ones((4, 2))}, model="m").close()
    assert [p.name for p in tmp_path.iterdir()] == ["s.h5"]


def _hold(path: str, ready: "multiprocessing.synchronize.Event", done: "multiprocessing.synchronize.Event") -> None:
    with writer(Path(path)) as out:
        ready.set()
        done.wait(60)
        for spec in out.arrays:
            out.write(spec.key, slice(0, 8), np.ones((8, 5), np.float32))


def test_a_second_process_is_refused_and_spoils_nothing(tmp_path: Path) -> None:
    path = tmp_path / "s.h5"
    context = multiprocessing.get_context("spawn")
    ready, done = context.Event(), context.Event()
    first = context.Process(target=_hold, args=(str(path), ready, done))
    first.start()
    assert ready.wait(60)
    with pytest.raises(OutputError, match="another process is writing"):
        write_store(path, {"a": np.ones((4, 2))}, model="second")
    done.set()
    first.join(60)
    assert first.exitcode == 0
    assert open_store(path).model == "m"


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot make the folder"):
        write_store(tmp_path / "file" / "s.h5", {"a": np.ones((4, 2))}, model="m")
    with pytest.raises(OutputError, match="is a folder"):
        write_store(tmp_path, {"a": np.ones((4, 2))}, model="m", overwrite=True)


def test_a_full_disk_is_one_line(tmp_path: Path) -> None:
    """Python's own limit on the size of files stands in for the disk's."""
    code = """
import resource, signal, sys, numpy as np, repsim
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    repsim.write_store(sys.argv[1], {"a": np.ones((1000, 100))}, model="m")
except repsim.RepsimError as error:
    print(type(error).__name__, error)
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "s.h5")], capture_output=True, text=True, check=True
    )
    assert done.stdout.startswith("OutputError cannot write")
    assert done.stdout.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_it_is_a_context_manager(tmp_path: Path) -> None:
    with write_store(tmp_path / "s.h5", {"a": np.ones((4, 2))}, model="m") as store:
        assert isinstance(store, ActivationStore)
    with pytest.raises(StoreError, match="closed"):
        store["a"][:]
