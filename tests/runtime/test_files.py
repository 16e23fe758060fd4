"""Tests of files that are replaced when they are complete: links, names, and what is on the disk after a power loss."""

import errno
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from repsim.errors import OutputError
from repsim.runtime import files
from repsim.runtime.files import check_output, partial_path, replacing, replacing_folder
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


def test_with_locks_the_temporary_name_is_always_the_same(tmp_path: Path) -> None:
    """So a process replaces what a killed one left."""
    with replacing(tmp_path / "out.csv", overwrite=True) as partial:
        assert partial == partial_path(tmp_path / "out.csv")
        partial.touch()
