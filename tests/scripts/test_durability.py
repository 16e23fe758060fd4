"""Tests of real commands that are killed, run out of disk space, or run in several processes.

This is a small part of scripts/validation/torture. The remaining data is compared bit for bit with an undisturbed
extraction.
"""

import importlib
import os
import resource
import signal
import subprocess
import sys
import time
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from torch.distributed import TCPStore  # type: ignore[attr-defined]

from repsim.errors import OutputError
from repsim.extraction import extract
from repsim.runtime import processes
from repsim.runtime.files import partial_path
from repsim.stores import extents, reader
from repsim.stores.store import open_store, verify

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="processes are watched through /proc"),
    pytest.mark.usefixtures("one_thread"),  # bits are compared with processes of one thread
]

QUICK = "from repsim import cli; from repsim.stores import writer; writer.COMMIT_SECONDS = 0.05; cli.main()"
MODEL = "digits_vit.seed0"
COUNT = 400
"""Samples: enough that a command is still running when it is stopped."""
OPTIONS = [MODEL, "--data", "digits", "--limit", COUNT, "--batch-size", 2, "--workers", 0]
SETTINGS: dict[str, Any] = {"limit": COUNT, "batch_size": 2, "workers": 0}
SCRIPTS = Path(__file__).parents[2] / "scripts" / "validation"
COMMAND = [sys.executable, "-c", QUICK, "extract", *OPTIONS]


@pytest.fixture(scope="module")
def torture() -> Iterator[ModuleType]:
    sys.path.insert(0, str(SCRIPTS))
    yield importlib.import_module("durability.stores")
    sys.path.remove(str(SCRIPTS))


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory, one_thread: None) -> Path:
    folder = tmp_path_factory.mktemp("reference")
    with extract(MODEL, "digits", folder, **SETTINGS) as store:
        return store.path


def resume(folder: Path) -> int:
    """Run the same extraction again in this process, and return how many samples were already done."""
    seen: list[int] = []
    extract(MODEL, "digits", folder, progress=lambda done, _: seen.append(done), **SETTINGS).close()
    return seen[0]


def poison(partial: Path, sample: int) -> None:
    """Replace the values of a sample, with correct checksums, to detect whether the sample is computed again."""
    with partial.open("r+b") as file:
        _, places = reader.read(partial)
        for key, extent in places.arrays.items():
            row = np.full(extent.shape[1:], 7, extent.dtype)
            extents.write_at(file.fileno(), extent.offset + sample * extent.row_bytes, row)
            crc = np.array([zlib.crc32(row.tobytes())], "<u4")
            extents.write_at(file.fileno(), places.checksums[key].offset + 4 * sample, crc)


def test_killed_again_and_again(tmp_path: Path, torture: ModuleType, reference: Path) -> None:
    """Committed samples are correct, kept, and not computed again (for file creation: tests/stores/test_writer.py)."""
    file = torture.Unfinished(tmp_path / reference.name)
    kept = 0
    for least in (50, 150):
        with torture.Run([*COMMAND, "-o", tmp_path]) as job:
            assert torture.wait_until(lambda least=least: file.marks().sum() > least, job), job.end()
            assert job.kill()
        marks = file.marks()
        assert marks.sum() >= kept
        assert file.right(reference)[marks].all()
        assert [path.name for path in tmp_path.iterdir()] == [partial_path(reference).name]
        kept = int(marks.sum())
    assert kept > 150
    poison(file.partial, 3)
    assert resume(tmp_path) == kept
    assert [path.name for path in tmp_path.iterdir()] == [reference.name]
    assert verify(file.path) == []
    others = np.arange(COUNT) != 3
    with open_store(file.path) as store, open_store(reference) as expected:
        for name in store.layers:
            assert (store[name][3] == 7).all(), "a committed sample was computed again"
            np.testing.assert_array_equal(store[name][others], expected[name][others])


def test_a_batch_system_stops_all_processes(tmp_path: Path, torture: ModuleType, reference: Path) -> None:
    """SIGTERM is sent to all processes: workers print nothing, and no process stays behind."""
    file = torture.Unfinished(tmp_path / reference.name)
    with torture.Run([*COMMAND[:-1], 2, "-o", tmp_path]) as job:
        assert torture.wait_until(lambda: file.marks().sum() > 20, job), job.end()
        os.killpg(job.process.pid, signal.SIGTERM)
        code, out, stderr = job.end()
        with pytest.raises(ProcessLookupError):
            os.killpg(job.process.pid, 0)
    kept = int(file.marks().sum())
    kept_words = f"Stopped by SIGTERM ({kept} of {COUNT} samples are kept in {file.partial}). "
    assert (code, out, stderr) == (143, "", kept_words + "The same command goes on where this one stopped.\n")
    assert 20 < kept < COUNT
    assert file.right(reference)[file.marks()].all()
    assert resume(tmp_path) == kept
    assert torture.bits(file.path) == torture.bits(reference)


def test_a_file_that_cannot_grow(tmp_path: Path, torture: ModuleType, reference: Path) -> None:
    """A lowered limit on the size of files simulates a full disk during the extraction."""
    file = torture.Unfinished(tmp_path / reference.name)
    with torture.Run([*COMMAND, "-o", tmp_path]) as job:
        assert torture.wait_until(lambda: file.marks().sum() > 50, job), job.end()
        resource.prlimit(job.process.pid, resource.RLIMIT_FSIZE, (1000, 1000))
        code, out, stderr = job.end()
    kept = int(file.marks().sum())
    assert (code, out, stderr.count("\n")) == (2, "", 1), stderr
    assert f"cannot write {file.path}: File too large ({kept} of {COUNT} samples are kept" in stderr
    assert 50 < kept < COUNT
    assert file.right(reference)[file.marks()].all()
    assert resume(tmp_path) == kept
    assert torture.bits(file.path) == torture.bits(reference)


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """Folder with a file system of 3 MB, in memory."""
    place = tmp_path / "small"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(place)]
    done = None
    with suppress(FileNotFoundError):
        done = subprocess.run(mount, check=False, capture_output=True, text=True)
    if done is None or done.returncode:
        pytest.skip("only root can mount a file system, and not in every container")
    try:
        yield place
    finally:
        subprocess.run(["umount", str(place)], check=True)  # noqa: S607


def test_a_disk_that_fills_up_and_one_that_is_read_only(small: Path, torture: ModuleType, reference: Path) -> None:
    file, filler = torture.Unfinished(small / reference.name), small / "filler"
    with torture.Run([*COMMAND, "-o", small]) as job:
        assert torture.wait_until(lambda: file.marks().sum() > 50, job), job.end()
        torture.fill_up(filler)
        code, out, stderr = job.end()
    kept = int(file.marks().sum())
    assert (code, out, stderr.count("\n")) == (2, "", 1), stderr
    assert f"cannot write {file.path}: No space left on device ({kept} of {COUNT} samples are kept" in stderr
    filler.unlink()
    torture.remount(small, "ro")
    with pytest.raises(OutputError, match=f"cannot write into the folder {small}: .*read-only file system"):
        resume(small)
    torture.remount(small, "rw")
    assert resume(small) == kept
    assert torture.bits(file.path) == torture.bits(reference)


def test_every_attempt_has_its_own_name() -> None:
    """A rank that starts the second attempt early reads the name of the first attempt, and must not use it."""
    server = TCPStore("localhost", 0, is_master=True, wait_for_workers=False)

    def attempt(rank: int) -> str:
        return processes._Meeting(TCPStore("localhost", server.port, is_master=False), rank, 3).attempt()

    with ThreadPoolExecutor(3) as pool:
        (first,) = set(pool.map(attempt, range(3)))
        late = [pool.submit(attempt, rank) for rank in (2, 1)]
        time.sleep(0.3)
        assert not any(future.done() for future in late), "they use the name of the first attempt"
        second = attempt(0)
        assert [future.result(60) for future in late] == [second, second]
    assert second != first


def test_a_rank_that_dies_is_started_again(tmp_path: Path, torture: ModuleType, reference: Path) -> None:
    """torchrun restarts all ranks; a second command is refused meanwhile; the finished store is the same."""
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "--max-restarts=1"]
    driver = tmp_path / "driver.py"
    driver.write_text(QUICK)
    out = tmp_path / "acts"
    file = torture.Unfinished(out / reference.name)
    with torture.Run([*launch, driver, "extract", *OPTIONS, "-o", out]) as job:
        assert torture.wait_until(lambda: file.marks().sum() > 20, job), job.end()
        pids = [torture.worker(job, rank) for rank in (0, 1)]
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)  # while the other command tries
        with pytest.raises(OutputError, match=f"another process is writing {file.partial}; wait until it is done"):
            resume(out)
        os.kill(pids[0], signal.SIGKILL)
        os.kill(pids[1], signal.SIGCONT)
        code, _, stderr = job.end()
    assert code == 0, stderr
    assert "going on after" in stderr
    assert torture.bits(file.path) == torture.bits(reference)


def test_stopping_torchrun(tmp_path: Path, torture: ModuleType, reference: Path) -> None:
    """torchrun sends SIGTERM to all ranks; only the first rank prints a line, and every rank keeps its rows."""
    driver = tmp_path / "driver.py"
    driver.write_text(QUICK)
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", driver]
    out = tmp_path / "acts"
    file = torture.Unfinished(out / reference.name)
    with torture.Run([*launch, "extract", *OPTIONS, "-o", out]) as job:
        assert torture.wait_until(lambda: all(half.any() for half in np.split(file.marks(), 2)), job), job.end()
        job.process.terminate()
        code, _, stderr = job.end()
    kept = int(file.marks().sum())
    assert code
    assert stderr.count("Stopped by") == 1
    assert "The same command goes on where this one stopped.\n" in stderr
    assert not any(line.startswith("Error:") for line in stderr.splitlines()), stderr
    assert file.right(reference)[file.marks()].all()
    assert resume(out) == kept
    assert torture.bits(file.path) == torture.bits(reference)


def test_a_rank_with_a_damaged_picture_ends_all(tmp_path: Path, torture: ModuleType) -> None:
    """One error names the image, at most one says that another process has ended, and no rank waits forever."""
    bad = torture.make_pictures(tmp_path / "bad", 24, damaged=20)
    command: list[Any] = [*torture.torchrun(3), "extract", MODEL, "--data", bad, "--batch-size", 4, "--workers", 0]
    code, _, stderr = torture.run(*command, "-o", tmp_path / "acts")
    assert code
    lines = [line for line in stderr.splitlines() if line.startswith("Error:")]
    assert sum("cannot read the picture p020.png" in line for line in lines) == 1
    assert sum("another process of this run has ended" in line for line in lines) <= 1
    assert len(lines) <= 2


@pytest.mark.parametrize(
    "words",
    [
        "kills compare report --kills 2",
        "stops compare --count 3",
        "pairs compare --times 1",
        "ranks report --ranks 2",
        "damage --count 12 --fitting 6 --folders 0",
    ],
)
def test_a_small_part_of_the_other_commands(words: str, tmp_path: Path) -> None:
    """docs/durability.md has the results of the long runs."""
    command = [sys.executable, str(SCRIPTS / "torture"), *words.split()]
    environment = os.environ | {"TMPDIR": str(tmp_path)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
