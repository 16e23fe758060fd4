"""Test writing of stores: commits, resumption after errors and kills, locks, and refusal of other settings."""

import errno
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from repsim.errors import InvalidInputError, OutputError, StoreError, UnknownNameError
from repsim.labels import LayerKey, SampleIds
from repsim.stores import writer
from repsim.stores.schema import ArraySpec, Contents
from repsim.stores.store import open_store
from repsim.stores.writer import StoreWriter, count_stored, write_store

KEYS = [LayerKey("m", layer, readout) for layer in ("b", "a") for readout in ("mean", "cls")]


def contents(n: int = 8, **changes: Any) -> Contents:
    specs = tuple(ArraySpec(key, (5,), {"type": "Block", "grid": None}) for key in KEYS)
    default = Contents(specs, SampleIds(tuple(f"ü{i}.png" for i in range(n))), "photos", {"seed": 3, "command": "x"})
    return replace(default, **changes)


def fill(out: StoreWriter, samples: slice, value: float = 1.0) -> None:
    rows = np.arange(len(out.contents.sample_ids))[samples]
    for key in KEYS:
        out.write(key, rows, np.repeat(rows[:, None] + value, 5, axis=1).astype(np.float32))
    out.mark_done(rows)


def test_several_readouts_of_one_layer(tmp_path: Path, rng: np.random.Generator) -> None:
    values = rng.normal(size=(8, 5)).astype(np.float32)
    with StoreWriter(tmp_path / "s.h5", contents()) as out:
        for key in KEYS:
            out.write(key, slice(4, 8), values[4:])
            out.write(key, [1, 0, 3, 2], values[[1, 0, 3, 2]])
        out.mark_done(slice(None))
    with open_store(tmp_path / "s.h5") as store:
        assert store.layers == ("b@mean", "b@cls", "a@mean", "a@cls")
        assert store["a@cls"].key == LayerKey("m", "a", "cls")
        assert store.facts("a@cls") == {"type": "Block"}
        np.testing.assert_array_equal(store["a@cls"][:], values)
        with pytest.raises(UnknownNameError, match=r"unknown layer 'a@clss'; did you mean a@cls"):
            store["a@clss"]


def test_rows_that_are_made_of_several_samples(tmp_path: Path, rng: np.random.Generator) -> None:
    """The store keeps the order of the samples in blocks; samples that do not fill a block are left out."""
    order = np.array([3, 1, 4, 0, 2])
    spec = ArraySpec(LayerKey("m", "a", "gram:2"), (2, 2), block=2)
    plan = contents(5, arrays=(spec,), order=order)
    grams = rng.normal(size=(2, 2, 2)).astype(np.float32)
    with StoreWriter(tmp_path / "s.h5", plan) as out:
        out.write(spec.key, slice(0, 2), grams.reshape(2, 4))
        out.write(spec.key, slice(2, 2), np.empty((0, 4), np.float32))
        out.mark_done(order)
    with open_store(tmp_path / "s.h5") as store:
        assert store.order is not None
        assert store.order.tolist() == order.tolist()
        assert len(store) == 5
        np.testing.assert_array_equal(store["a"][:], grams)
    broken = np.full((1, 4), np.nan)
    with (
        pytest.raises(
            InvalidInputError, match="4 values are NaN or infinite, the first in the block that begins with ü4"
        ),
        StoreWriter(tmp_path / "t.h5", plan) as out,
    ):
        out.write(spec.key, slice(1, 2), broken)
    with pytest.raises(InvalidInputError, match="m a@gram:2 needs at least 2 samples, got 1"):
        StoreWriter(tmp_path / "t.h5", replace(plan, sample_ids=SampleIds(("x",))))


def test_writing_changes_no_byte_outside_its_rows(tmp_path: Path) -> None:
    with StoreWriter(tmp_path / "s.h5", contents()) as out:
        before = out.partial.read_bytes()
        out.write(KEYS[0], slice(2, 4), np.ones((2, 5), np.float32))
        after = out.partial.read_bytes()
        changed = [i for i, (a, b) in enumerate(zip(before, after, strict=True)) if a != b]
        with h5py.File(out.partial, locking=False) as file:
            array = file["layers/b/mean"].id.get_offset()
            sums = file["checks/rows/b/mean"].id.get_offset()
        expected = {*range(array + 40, array + 80), *range(sums + 8, sums + 16)}
        assert changed
        assert set(changed) <= expected
        fill(out, slice(None))


def test_a_store_with_missing_samples_is_not_completed(tmp_path: Path) -> None:
    def write_five() -> None:
        with StoreWriter(tmp_path / "s.h5", contents()) as out:
            fill(out, slice(0, 5))

    with pytest.raises(OutputError, match=r"3 samples were never written, the first ü5.png"):
        write_five()
    assert [path.name for path in tmp_path.iterdir()] == ["s.h5.partial"]


def interrupted(path: Path, plan: Contents, done: int = 6) -> None:
    def work() -> None:
        with StoreWriter(path, plan, resume=True) as out:
            fill(out, slice(0, done))
            out.write(KEYS[0], [7], np.full((1, 5), 9, np.float32))  # not marked as done: does not count
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError) as caught:
        work()
    assert f"{done} of 8 samples are kept in {path}.partial" in caught.value.__notes__[0]


def test_an_error_keeps_finished_samples_and_the_next_run_resumes(tmp_path: Path) -> None:
    path, plan = tmp_path / "s.h5", contents()
    interrupted(path, plan)
    assert [p.name for p in tmp_path.iterdir()] == ["s.h5.partial"]
    assert count_stored(path, plan) == 6
    with pytest.raises(StoreError, match="incomplete"):
        open_store(path.with_name("s.h5.partial"))
    again = contents(provenance={"command": "another", "seed": 3})
    with StoreWriter(path, again, resume=True) as out:
        assert out.written.tolist() == [True] * 6 + [False] * 2
        fill(out, slice(6, 8))
    assert [p.name for p in tmp_path.iterdir()] == ["s.h5"]
    assert count_stored(path, plan) == 8
    uninterrupted = tmp_path / "uninterrupted.h5"
    with StoreWriter(uninterrupted, plan) as out:
        fill(out, slice(None))
    with open_store(path) as resumed, open_store(uninterrupted) as reference:
        for name in resumed.layers:
            np.testing.assert_array_equal(resumed[name][:], reference[name][:])


def test_an_error_before_the_first_finished_sample_leaves_no_file(tmp_path: Path) -> None:
    def work() -> None:
        with StoreWriter(tmp_path / "s.h5", contents()) as out:
            out.write(KEYS[0], slice(0, 4), np.ones((4, 5), np.float32))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        work()
    assert list(tmp_path.iterdir()) == []


def test_a_new_version_of_repsim_resumes_what_an_earlier_one_wrote(tmp_path: Path) -> None:
    path = tmp_path / "s.h5"
    interrupted(path, contents(provenance={"seed": 3, "repsim_version": "0.1.0"}))
    assert count_stored(path, contents(provenance={"seed": 3, "repsim_version": "0.2.0"})) == 6


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"provenance": {"seed": 4}}, "seed: 3 before, 4 now"),
        ({"provenance": {"seed": 3, "amp": True}}, "amp: nothing before, true now"),
        ({"provenance": {"seed": {"a": [1, 2]}}}, "seed: 3 before"),
        ({"dtype": "float16"}, "dtype: float32 before, float16 now"),
        ({"arrays": contents().arrays[:3]}, r"layers: 4 before, 3 now \(not in both: a@cls\)"),
        ({"arrays": tuple(ArraySpec(key, (5, 1)) for key in KEYS)}, "shapes of layers: b@mean, b@cls, a@mean, ..."),
        ({"sample_ids": SampleIds(tuple(f"ü{i}.png" for i in range(1, 9)))}, "samples: 1 of 8 only before"),
        ({"sample_ids": SampleIds(contents().sample_ids.ids, "other pictures")}, None),
    ],
)
def test_other_settings_are_refused_with_the_difference(
    tmp_path: Path, changes: dict[str, Any], message: str | None
) -> None:
    path = tmp_path / "s.h5"
    interrupted(path, contents(sample_ids=SampleIds(contents().sample_ids.ids, "" if message is None else "pictures")))
    other = contents(**changes)
    if message is None:  # the interrupted run has no fingerprint to compare
        assert count_stored(path, other) == 6
        return
    before = path.with_name("s.h5.partial").read_bytes()
    with pytest.raises(OutputError, match=message + ".*overwrite=True"):
        count_stored(path, other)
    with pytest.raises(OutputError, match=message + ".*overwrite=True"), StoreWriter(path, other, resume=True):
        raise AssertionError("not reached")
    assert path.with_name("s.h5.partial").read_bytes() == before, "a refused run changed the file"
    if "arrays" not in changes:
        with StoreWriter(path, other) as out:  # does not resume
            assert not out.written.any()
            fill(out, slice(None))
        assert count_stored(path, other) == 8
        with pytest.raises(OutputError, match=f"{path.name} was made with other settings"):
            count_stored(path, contents(sample_ids=SampleIds(contents().sample_ids.ids, "pictures")))


def test_an_overwriting_run_can_be_resumed(tmp_path: Path) -> None:
    """A restart by torchrun resumes the interrupted run, and does not count the samples of the old store."""
    path = tmp_path / "s.h5"
    write_store(path, {"a": np.ones((4, 2))}, model="old").close()
    assert count_stored(path, contents(), overwrite=True) == 0

    def work() -> None:
        with StoreWriter(path, contents(), overwrite=True) as out:
            fill(out, slice(0, 5))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        work()
    assert open_store(path).model == "old"
    assert count_stored(path, contents(), overwrite=True) == 5
    assert count_stored(path, contents(provenance={}), overwrite=True) == 0
    with StoreWriter(path, contents(), overwrite=True, resume=True) as out:
        assert out.written.sum() == 5
        fill(out, slice(5, 8))
    assert open_store(path).model == "m"
    assert count_stored(path, contents(), overwrite=True) == 8


def test_commits_are_automatic_and_write_marks_after_the_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The order that survives a crash is: rows, fsync, marks."""
    calls: list[str] = []
    sync, write = os.fsync, os.pwrite

    def record_sync(fd: int) -> None:
        calls.append("sync")
        sync(fd)

    def record_write(fd: int, data: memoryview, at: int) -> int:
        calls.append(f"write {len(data)}")
        return write(fd, data, at)

    monkeypatch.setattr(os, "fsync", record_sync)
    monkeypatch.setattr(os, "pwrite", record_write)
    with StoreWriter(tmp_path / "s.h5", contents()) as out:
        calls.clear()
        fill(out, slice(0, 3))
        assert calls == ["write 60", "write 12"] * 4  # rows of 5 float32 and their checksums, four arrays
        assert count_stored(out.path, out.contents) == 0
        monkeypatch.setattr(writer, "COMMIT_SECONDS", 0.0)
        calls.clear()
        fill(out, slice(3, 5))
        assert calls == ["write 40", "write 8"] * 4 + ["sync", "write 5", "sync"]
        assert count_stored(out.path, out.contents) == 5
        fill(out, slice(5, 8))


def test_values_that_are_not_finite_are_refused_with_layer_and_sample(tmp_path: Path) -> None:
    values = np.ones((4, 5), np.float32)
    values[2, 1] = np.nan
    with (
        pytest.raises(InvalidInputError, match=r"m b@mean: 1 values are NaN or infinite, the first in sample ü6.png"),
        StoreWriter(tmp_path / "s.h5", contents()) as out,
    ):
        out.write(KEYS[0], slice(4, 8), values)
    assert list(tmp_path.iterdir()) == []


def test_an_overflow_of_float16_is_counted_and_named(tmp_path: Path) -> None:
    values = np.ones((4, 5), np.float32)
    values[1, 2:] = 70_000, -1e9, 65_504
    with (
        pytest.raises(
            InvalidInputError,
            match=r"m b@mean: 2 values overflow float16 \(beyond 65,504\), the first in sample ü1.png.*float32",
        ),
        StoreWriter(tmp_path / "s.h5", contents(dtype="float16")) as out,
    ):
        out.write(KEYS[0], slice(0, 4), values)


KILLED = """
import os, signal, sys
from pathlib import Path
from typing import Any
import numpy as np
from repsim.stores import writer
from repsim.labels import LayerKey, SampleIds
from repsim.stores.schema import ArraySpec, Contents
spec = ArraySpec(LayerKey("m", "a", "mean"), (5,))
contents = Contents((spec,), SampleIds(tuple("abcd")), "", {})
writer.COMMIT_SECONDS = 0
with writer.StoreWriter(Path(sys.argv[1]), contents) as out:
    out.write(spec.key, slice(0, 2), np.full((2, 5), 7, np.float32))
    out.mark_done(slice(0, 2))
    out.write(spec.key, slice(2, 3), np.full((1, 5), 8, np.float32))
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_killed_while_writing(tmp_path: Path) -> None:
    """The store has no final name yet, and the next run resumes from the committed samples."""
    path = tmp_path / "s.h5"
    done = subprocess.run([sys.executable, "-c", KILLED, str(path)], check=False)
    assert done.returncode == -signal.SIGKILL
    assert [p.name for p in tmp_path.iterdir()] == ["s.h5.partial"]
    spec = ArraySpec(LayerKey("m", "a", "mean"), (5,))
    plan = Contents((spec,), SampleIds(tuple("abcd")), "", {})
    with StoreWriter(path, plan, resume=True) as out:
        assert out.written.tolist() == [True, True, False, False]
        out.write(spec.key, slice(2, 4), np.full((2, 5), 9, np.float32))
        out.mark_done(slice(2, 4))
    assert open_store(path)["a"][:, 0].tolist() == [7, 7, 9, 9]


LAYING_OUT = """
import os, signal, sys
from pathlib import Path
from repsim.labels import LayerKey, SampleIds
from repsim.stores.schema import ArraySpec, Contents
from repsim.stores.writer import StoreWriter
calls, count, write = [], int(sys.argv[2]), os.pwrite
def killed(fd, data, at):
    calls.append(at)
    if len(calls) > count:
        os.kill(os.getpid(), signal.SIGKILL)
    return write(fd, data, at)
os.pwrite = killed
specs = tuple(ArraySpec(LayerKey("m", layer, readout), (5,)) for layer in "ba" for readout in ("mean", "cls"))
ids = SampleIds(tuple(f"ü{i}.png" for i in range(9000)))
with StoreWriter(Path(sys.argv[1]), Contents(specs, ids, "photos", {"seed": 3, "command": "x"})):
    print(len(calls), calls[-1])
    sys.stdout.flush()
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize("writes", [0, 1, 4, 7])
def test_killed_while_laying_out(tmp_path: Path, writes: int) -> None:
    """A run that is killed before the structure is complete is not resumed; the next run starts again."""
    path = tmp_path / "s.h5"
    command = [sys.executable, "-c", LAYING_OUT, str(path)]
    if not writes:
        output = subprocess.run([*command, "99"], capture_output=True, text=True, check=False).stdout
        count, last = map(int, output.split())
        assert count > 7, "expected several pages of 64 kB"
        assert last == 0, "the superblock has to be written last"
        path.with_name("s.h5.partial").unlink()
    done = subprocess.run([*command, str(writes)], capture_output=True, check=False)
    assert done.returncode == -signal.SIGKILL
    assert [p.name for p in tmp_path.iterdir()] == ["s.h5.partial"]
    assert count_stored(path, contents()) == 0
    with StoreWriter(path, contents(), resume=True) as out:
        assert not out.written.any()
        fill(out, slice(None))
    assert count_stored(path, contents()) == 8


def test_a_damaged_partial_file_is_not_replaced(tmp_path: Path) -> None:
    """The user decides, because it may hold many hours of work."""
    path = tmp_path / "s.h5"
    interrupted(path, contents())
    partial = path.with_name("s.h5.partial")
    os.truncate(partial, partial.stat().st_size - 100)
    before = partial.read_bytes()
    for attempt in (
        lambda: count_stored(path, contents()),
        lambda: StoreWriter(path, contents(), resume=True).__enter__(),
    ):
        with pytest.raises(StoreError, match="interrupted run is damaged: .* cut off; start again with overwrite=True"):
            attempt()
    assert partial.read_bytes() == before
    with StoreWriter(path, contents()) as out:
        fill(out, slice(None))


def test_a_sync_that_fails_marks_nothing_even_if_the_next_succeeds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a full disk the system reports an error for the lost rows only once."""
    sync = os.fsync

    def work() -> None:
        with StoreWriter(tmp_path / "s.h5", contents()) as out:
            fill(out, slice(0, 2))
            out.commit()
            fill(out, slice(2, 4))

            def failing(fd: int) -> None:
                monkeypatch.setattr(os, "fsync", sync)
                raise OSError(errno.ENOSPC, "...")

            monkeypatch.setattr(os, "fsync", failing)
            out.commit()

    with pytest.raises(OutputError, match="No space left on device"):
        work()
    assert count_stored(tmp_path / "s.h5", contents()) == 2


def test_a_forked_process_does_not_hold_the_lock(tmp_path: Path) -> None:
    """Processes that decode pictures run for seconds after the main process is killed; the next run does not wait."""
    path = tmp_path / "s.h5"
    first = StoreWriter(path, contents()).__enter__()
    read_end, write_end = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(write_end, b"!")
        time.sleep(60)
        os._exit(0)
    try:
        os.read(read_end, 1)
        with pytest.raises(OutputError, match="another process is writing"):
            StoreWriter(path, contents(), resume=True).__enter__()
        first._close()  # as a kill does
        with StoreWriter(path, contents(), resume=True) as again:
            fill(again, slice(None))
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        os.close(read_end)
        os.close(write_end)


def test_killed_between_the_last_row_and_the_renaming(tmp_path: Path) -> None:
    path = tmp_path / "s.h5"
    with StoreWriter(path, contents()) as out:
        fill(out, slice(None))
    path.rename(path.with_name("s.h5.partial"))
    with StoreWriter(path, contents(), resume=True) as out:
        assert out.written.all()
    assert len(open_store(path)) == 8


def test_two_processes_of_one_run_fill_one_file(tmp_path: Path) -> None:
    path = tmp_path / "s.h5"
    with StoreWriter(path, contents()) as out:
        with StoreWriter(path, contents(), first=False) as other:
            fill(other, slice(5, 8), value=3)
        assert count_stored(path, contents()) == 3
        fill(out, slice(0, 5))
    assert open_store(path)["b@mean"][:, 0].tolist() == [1, 2, 3, 4, 5, 8, 9, 10]


def _hold(path: str, ready: "multiprocessing.synchronize.Event", done: "multiprocessing.synchronize.Event") -> None:
    with StoreWriter(Path(path), contents()) as out:
        ready.set()
        done.wait(60)
        fill(out, slice(None))


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_second_process_is_refused_and_changes_nothing(
    tmp_path: Path, overwrite: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "s.h5"
    monkeypatch.syspath_prepend(Path(__file__).parents[2])  # where the new process finds this module
    context = multiprocessing.get_context("spawn")
    ready, done = context.Event(), context.Event()
    first = context.Process(target=_hold, args=(str(path), ready, done))
    first.start()
    assert ready.wait(60)
    with pytest.raises(OutputError, match="another process is writing"):
        write_store(path, {"a": np.ones((4, 2))}, model="second", overwrite=overwrite)
    done.set()
    first.join(60)
    assert first.exitcode == 0
    assert open_store(path).model == "m"


LIMITED = """
import resource, signal, sys, numpy as np, repsim
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    repsim.write_store(sys.argv[1], {"a": np.ones((1000, 100))}, model="m")
except repsim.RepsimError as error:
    print(type(error).__name__, error)
"""


def test_a_full_disk_is_reported_in_one_line(tmp_path: Path) -> None:
    """A limit on the size of files simulates the full disk."""
    command = [sys.executable, "-c", LIMITED, str(tmp_path / "s.h5")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("OutputError cannot write")
    assert done.stdout.count("\n") == 1
    assert done.stderr == ""
    assert list(tmp_path.iterdir()) == []
