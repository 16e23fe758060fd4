"""Real commands in real processes, killed, starved of room, or multiplied: a little of what scripts/torture does.

What is left is held, bit for bit, against an extraction that nobody disturbed.
"""

import importlib.machinery
import importlib.util
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

from repsim import layout, ranks
from repsim.errors import OutputError
from repsim.extraction import extract
from repsim.files import partial_path
from repsim.store import open_store, verify

pytestmark = [
    pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="processes are watched through /proc"),
    pytest.mark.usefixtures("one_thread"),  # held to the bit against processes of one thread
]

QUICK = "from repsim import cli, writing; writing.COMMIT_SECONDS = 0.05; cli.main()"
MODEL = "digits_vit.seed0"
OPTIONS = [MODEL, "--data", "digits", "--limit", 600, "--batch-size", 2, "--workers", 0]
SETTINGS: dict[str, Any] = {"limit": 600, "batch_size": 2, "workers": 0}
COMMAND = [sys.executable, "-c", QUICK, "extract", *OPTIONS]


@pytest.fixture(scope="module")
def torture() -> ModuleType:
    path = Path(__file__).parent.parent / "scripts" / "torture"
    loader = importlib.machinery.SourceFileLoader("torture", str(path))
    spec = importlib.util.spec_from_loader("torture", loader)
    assert spec is not None
    module = sys.modules["torture"] = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, one_thread: None) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    with extract(MODEL, "digits", folder, **SETTINGS) as store:
        return store.path


def resume(folder: Path) -> int:
    """The same extraction again, here, which saves the start of a process; how many samples it found done."""
    seen: list[int] = []
    extract(MODEL, "digits", folder, progress=lambda done, _: seen.append(done), **SETTINGS).close()
    return seen[0]


def poison(partial: Path, sample: int) -> None:
    """Put other values, with checksums that fit, where a sample's are: who computes it again is given away."""
    with partial.open("r+b") as file:
        _, places = layout.read(partial)
        for key, extent in places.arrays.items():
            row = np.full(extent.shape[1:], 7, extent.dtype)
            layout.write_at(file.fileno(), extent.offset + sample * extent.row_bytes, row)
            crc = np.array([zlib.crc32(row.tobytes())], "<u4")
            layout.write_at(file.fileno(), places.checksums[key].offset + 4 * sample, crc)


def test_killed_again_and_again(tmp_path: Path, torture: ModuleType, whole: Path) -> None:
    """What was committed is right, kept, and not computed again. (While laying out: tests/test_writing.py.)"""
    file = torture.Unfinished(tmp_path / whole.name)
    kept = 0
    for least in (50, 200):
        with torture.Run([*COMMAND, "-o", tmp_path]) as one:
            assert torture.wait_until(lambda least=least: file.marks().sum() > least, one), one.end()
            assert one.kill()
        marks = file.marks()
        assert marks.sum() >= kept
        assert file.right(whole)[marks].all()
        assert [path.name for path in tmp_path.iterdir()] == [partial_path(whole).name]
        kept = int(marks.sum())
    assert kept > 200
    poison(file.partial, 3)
    assert resume(tmp_path) == kept
    assert [path.name for path in tmp_path.iterdir()] == [whole.name]
    assert verify(file.path) == []
    others = np.arange(600) != 3
    with open_store(file.path) as store, open_store(whole) as wanted:
        for name in store.layers:
            assert (store[name][3] == 7).all(), "what was committed was computed again"
            np.testing.assert_array_equal(store[name][others], wanted[name][others])


def test_a_batch_system_stops_all_processes(tmp_path: Path, torture: ModuleType, whole: Path) -> None:
    """SIGTERM to all of them; those that decode pictures neither die of it nor speak, and nothing stays behind."""
    file = torture.Unfinished(tmp_path / whole.name)
    with torture.Run([*COMMAND[:-1], 2, "-o", tmp_path]) as one:
        assert torture.wait_until(lambda: file.marks().sum() > 20, one), one.end()
        os.killpg(one.process.pid, signal.SIGTERM)
        code, out, said = one.end()
        with pytest.raises(ProcessLookupError):
            os.killpg(one.process.pid, 0)
    kept = int(file.marks().sum())
    kept_words = f"Stopped by SIGTERM ({kept} of 600 samples are kept in {file.partial}). "
    assert (code, out, said) == (143, "", kept_words + "The same command goes on where this one stopped.\n")
    assert 20 < kept < 600
    assert file.right(whole)[file.marks()].all()
    assert resume(tmp_path) == kept
    assert torture.bits(file.path) == torture.bits(whole)


def test_a_file_that_may_grow_no_more(tmp_path: Path, torture: ModuleType, whole: Path) -> None:
    """The system's limit on the size of files, lowered under the running process, stands in for a full disk."""
    file = torture.Unfinished(tmp_path / whole.name)
    with torture.Run([*COMMAND, "-o", tmp_path]) as one:
        assert torture.wait_until(lambda: file.marks().sum() > 50, one), one.end()
        resource.prlimit(one.process.pid, resource.RLIMIT_FSIZE, (1000, 1000))
        code, out, said = one.end()
    kept = int(file.marks().sum())
    assert (code, out, said.count("\n")) == (2, "", 1), said
    assert f"cannot write {file.path}: File too large ({kept} of 600 samples are kept" in said
    assert 50 < kept < 600
    assert file.right(whole)[file.marks()].all()
    assert resume(tmp_path) == kept
    assert torture.bits(file.path) == torture.bits(whole)


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """A file system of 3 MB, in memory."""
    place = tmp_path / "small"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(place)]
    done = None
    with suppress(FileNotFoundError):
        done = subprocess.run(mount, check=False, capture_output=True, text=True)
    if done is None or done.returncode:
        pytest.skip("a file system can be mounted by root only, and not in every container")
    try:
        yield place
    finally:
        subprocess.run(["umount", str(place)], check=True)  # noqa: S607


def test_a_disk_that_fills_up_and_one_that_is_read_only(small: Path, torture: ModuleType, whole: Path) -> None:
    file, filler = torture.Unfinished(small / whole.name), small / "filler"
    with torture.Run([*COMMAND, "-o", small]) as one:
        assert torture.wait_until(lambda: file.marks().sum() > 50, one), one.end()
        torture.fill_up(filler)
        code, out, said = one.end()
    kept = int(file.marks().sum())
    assert (code, out, said.count("\n")) == (2, "", 1), said
    assert f"cannot write {file.path}: No space left on device ({kept} of 600 samples are kept" in said
    filler.unlink()
    torture.remount(small, "ro")
    with pytest.raises(OutputError, match=f"cannot write into the folder {small}: .*read-only file system"):
        resume(small)
    torture.remount(small, "rw")
    assert resume(small) == kept
    assert torture.bits(file.path) == torture.bits(whole)


def test_an_attempt_has_a_name_of_its_own() -> None:
    """Whoever comes first to the second attempt meets the name of the first, and does not fall for it."""
    server = TCPStore("localhost", 0, is_master=True, wait_for_workers=False)

    def attempt(rank: int) -> str:
        return ranks._attempt(TCPStore("localhost", server.port, is_master=False), rank, 3)

    with ThreadPoolExecutor(3) as pool:
        (first,) = set(pool.map(attempt, range(3)))
        late = [pool.submit(attempt, rank) for rank in (2, 1)]
        time.sleep(0.3)
        assert not any(each.done() for each in late), "they have taken the name of the first attempt"
        second = attempt(0)
        assert [each.result(60) for each in late] == [second, second]
    assert second != first


def test_a_rank_that_dies_is_started_again(tmp_path: Path, torture: ModuleType, whole: Path) -> None:
    """By torchrun, with all others; a second command meanwhile is refused; in the end nobody can tell."""
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "--max-restarts=1"]
    driver = tmp_path / "driver.py"
    driver.write_text(QUICK)
    out = tmp_path / "acts"
    file = torture.Unfinished(out / whole.name)
    with torture.Run([*launch, driver, "extract", *OPTIONS, "-o", out]) as one:
        assert torture.wait_until(lambda: file.marks().sum() > 20, one), one.end()
        pids = [torture.worker(one, rank) for rank in (0, 1)]
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)  # while the other command tries
        with pytest.raises(OutputError, match=f"another process is writing {file.partial}; wait until it is done"):
            resume(out)
        os.kill(pids[0], signal.SIGKILL)
        os.kill(pids[1], signal.SIGCONT)
        code, _, said = one.end()
    assert code == 0, said
    assert "going on after" in said
    assert torture.bits(file.path) == torture.bits(whole)


def test_torchrun_that_is_stopped(tmp_path: Path, torture: ModuleType, whole: Path) -> None:
    """It sends SIGTERM to all ranks; the first speaks for all, and every rank keeps its rows."""
    driver = tmp_path / "driver.py"
    driver.write_text(QUICK)
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", driver]
    out = tmp_path / "acts"
    file = torture.Unfinished(out / whole.name)
    with torture.Run([*launch, "extract", *OPTIONS, "-o", out]) as one:
        assert torture.wait_until(lambda: file.marks()[:300].any() and file.marks()[300:].any(), one), one.end()
        one.process.terminate()
        code, _, said = one.end()
    kept = int(file.marks().sum())
    assert code
    assert said.count("Stopped by") == 1
    assert "The same command goes on where this one stopped.\n" in said
    assert not any(line.startswith("Error:") for line in said.splitlines()), said
    assert file.right(whole)[file.marks()].all()
    assert resume(out) == kept
    assert torture.bits(file.path) == torture.bits(whole)


def test_a_rank_with_a_damaged_picture_ends_all(tmp_path: Path, torture: ModuleType) -> None:
    """It is named once; the first says that another has ended, the rest nothing; and nobody waits for ever."""
    bad = torture.make_pictures(tmp_path / "bad", 24, damaged=20)
    command: list[Any] = [*torture.torchrun(3), "extract", MODEL, "--data", bad, "--batch-size", 4, "--workers", 0]
    code, _, said = torture.run(*command, "-o", tmp_path / "acts")
    assert code
    lines = [line for line in said.splitlines() if line.startswith("Error:")]
    assert sum("cannot read the picture p020.png" in line for line in lines) == 1
    assert sum("another process of this run has ended" in line for line in lines) <= 1
    assert len(lines) <= 2
