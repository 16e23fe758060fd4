"""Tests of files that are replaced when they are complete: links, names, and what is on the disk after a power loss."""

import errno
import os
import re
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from threading import Event
from typing import Any

import numpy as np
import pytest

import repsim
from repsim.errors import OutputError
from repsim.runtime import files
from repsim.runtime.files import check_output, locked, partial_path, replacing, replacing_folder, reserved
from repsim.stores.writer import write_store


def test_a_link_in_the_place_of_the_temporary_file_is_not_followed(tmp_path: Path) -> None:
    victim, path = tmp_path / "victim", tmp_path / "out.csv"
    victim.write_text("precious")
    partial_path(path).symlink_to(victim)
    with replacing(path, overwrite=False) as partial:
        partial.write_text("new")
    assert (victim.read_text(), path.read_text(), path.is_symlink()) == ("precious", "new", False)


def test_a_link_in_the_place_of_a_temporary_folder_is_not_followed(tmp_path: Path) -> None:
    victim, path = tmp_path / "victim", tmp_path / "out.zarr"
    victim.mkdir()
    partial_path(path).symlink_to(victim)
    with replacing_folder(path, overwrite=False) as partial:
        partial.mkdir()
        (partial / "file").write_text("new")
    assert list(victim.iterdir()) == []
    assert (path / "file").read_text() == "new"
    assert not path.is_symlink()


@pytest.mark.skipif(not hasattr(os, "O_NOFOLLOW"), reason="this system cannot refuse links")
@pytest.mark.parametrize("name", ["net.h5.partial", ".net.csv.lock"])
def test_links_in_the_place_of_unfinished_stores_and_locks_are_refused(tmp_path: Path, name: str) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious")
    (tmp_path / name).symlink_to(victim)

    def write() -> None:
        if name.endswith(".partial"):
            write_store(tmp_path / "net.h5", {"a": np.eye(8)}, model="net")
        else:
            replacing(tmp_path / "net.csv", overwrite=False).__enter__()

    with pytest.raises(OutputError, match=r"cannot write .*symbolic links"):
        write()
    assert victim.read_text() == "precious"


def test_the_contents_are_on_the_disk_before_the_name_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise a loss of power may leave an empty file under the final name, whose parts were deleted."""
    path, calls = tmp_path / "out.csv", list[str]()
    fsync, replace = os.fsync, Path.replace

    def record_fsync(file: int) -> None:
        at = os.fstat(file)
        named = [name for name in tmp_path.iterdir() if os.path.samestat(name.stat(), at)]
        calls.append(f"fsync {named[0].name}, {at.st_size} bytes" if named else "fsync folder")
        fsync(file)

    def record_replace(self: Path, target: Any) -> Path:
        calls.append("replace")
        return replace(self, target)

    monkeypatch.setattr(os, "fsync", record_fsync)
    monkeypatch.setattr(Path, "replace", record_replace)
    with replacing(path, overwrite=False) as partial:
        partial.write_text("new")
    assert calls == ["fsync out.csv.partial, 3 bytes", "replace", "fsync folder"]


@pytest.mark.parametrize("name", ["a" * 248 + ".nc", "b" * 300, "c" * 300 + "/r.nc", "r\0.nc"])
def test_names_that_cannot_be_written_are_refused_before_anything_is_computed(tmp_path: Path, name: str) -> None:
    """The name of the temporary file is eight characters longer, so it is checked, too."""
    with pytest.raises(OutputError, match="cannot (write|make the folder)"):
        check_output(tmp_path / name, overwrite=False)
    assert list(tmp_path.iterdir()) == []


class WithoutLocks:
    """Module `fcntl` on a file system that has no locks."""

    LOCK_EX, LOCK_NB = 2, 4

    @staticmethod
    def flock(*_: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))


@pytest.mark.parametrize("locks", [None, WithoutLocks])  # Windows, and some network file systems
def test_without_locks_no_process_removes_what_another_writes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, locks: Any
) -> None:
    monkeypatch.setattr(files, "fcntl", locks)
    path, folder = tmp_path / "out.csv", tmp_path / "out.zarr"
    with replacing(path, overwrite=True) as first:
        first.write_text("first")
        with replacing(path, overwrite=True) as second:
            second.write_text("second")
        assert path.read_text() == "second"
    assert path.read_text() == "first"
    with replacing_folder(folder, overwrite=True) as first:
        first.mkdir()
        (first / "name").write_text("first")
        with replacing_folder(folder, overwrite=True) as second:
            second.mkdir()
        assert list(folder.iterdir()) == []
    assert (folder / "name").read_text() == "first"
    assert sorted(tmp_path.iterdir()) == [path, folder]


@pytest.mark.parametrize("name", ["a" * 244 + ".nc", "\N{SNOWMAN}" * 81 + ".nc"], ids=["letters", "snowmen"])
def test_without_locks_every_name_that_can_be_written_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """The temporary name that no other process has must not be too long: this was noticed after the work."""
    monkeypatch.setattr(files, "fcntl", WithoutLocks)
    path, folder = tmp_path / name, tmp_path / f"{name[:-3]}.zr"
    check_output(path, overwrite=False)
    with replacing(path, overwrite=False) as partial:
        partial.write_text("new")
    with replacing_folder(folder, overwrite=False) as partial:
        partial.mkdir()
    assert sorted(tmp_path.iterdir()) == [path, folder]


def test_with_locks_the_temporary_name_is_always_the_same(tmp_path: Path) -> None:
    """So a process replaces what a killed one left."""
    with replacing(tmp_path / "out.csv", overwrite=True) as partial:
        assert partial == partial_path(tmp_path / "out.csv")
        partial.touch()


def test_what_a_killed_process_left_beside_a_finished_file_is_removed(tmp_path: Path) -> None:
    """A kill between the renaming of the file and the removal of its lock; the same command refuses to replace it."""
    path = tmp_path / "study.nc"
    for name in ("study.nc", ".study.nc.lock", "study.nc.partial"):
        (tmp_path / name).touch()
    with pytest.raises(OutputError, match="exists"), reserved(path, overwrite=False):
        pass
    assert list(tmp_path.iterdir()) == [path]
    partial_path(path).touch()
    with reserved(path, overwrite=True):
        assert sorted(file.name for file in tmp_path.iterdir()) == [".study.nc.lock", "study.nc"]
        with replacing(path, overwrite=True) as partial:  # the same thread may save what it has locked
            partial.write_text("new")
    assert [(file.name, file.read_text()) for file in tmp_path.iterdir()] == [("study.nc", "new")]


@contextmanager
def locked_elsewhere(path: Path) -> Iterator[None]:
    """Lock a file in another thread during the block, as another process would."""
    entered, ended = Event(), Event()

    def hold() -> None:
        with locked(path):
            entered.set()
            ended.wait()

    with ThreadPoolExecutor(1) as pool:
        holding = pool.submit(hold)
        entered.wait()
        try:
            yield
        finally:
            ended.set()
            holding.result()


@pytest.mark.skipif(os.name != "posix", reason="no locks")
@pytest.mark.parametrize("name", ["r.nc", "s.nc", "t.nc", "r.html", "study/study.nc"])
def test_a_second_writer_is_refused_before_it_reads_or_computes(tmp_path: Path, name: str) -> None:
    """Nothing of the work is done: no parts, no stores, and the missing input is not noticed."""
    out = tmp_path / name
    values = np.random.default_rng(0).normal(size=(8, 3))
    stores = [tmp_path / f"{model}.h5" for model in ("a", "b")]
    for step, path in enumerate(stores):
        write_store(path, {"l": values}, model=path.stem, axes={"step": step}).close()
    out.parent.mkdir(exist_ok=True)
    (tmp_path / "study.yaml").write_text("models: [digits_vit.seed0]\ndata: {source: digits, limit: 8}\n")
    if name == "r.nc":
        out.touch()  # a result that would be extended is read when no other process can change it any more
    before = sorted(tmp_path.rglob("*"))
    calls: dict[str, Callable[[], object]] = {
        "r.nc": lambda: repsim.compare(stores, out=out),
        "s.nc": lambda: repsim.universality(stores, out=out),
        "t.nc": lambda: repsim.series(stores, "step", out=out),
        "r.html": lambda: repsim.write_report(tmp_path / "missing.nc", out),
        "study/study.nc": lambda: repsim.run_study(tmp_path / "study.yaml"),
    }
    message = f"another process is writing {out}; wait until it is done"
    with locked_elsewhere(out), pytest.raises(OutputError, match=re.escape(message)):
        calls[name]()
    assert sorted(tmp_path.rglob("*")) == before
