"""Test store writers with a hypothesis state machine that writes, commits, kills, resumes and overwrites.

hypothesis reduces a failure to a short sequence of steps. Needs pytest and hypothesis. A test file runs it with ::

    TestStoreWriter = repsim.testing.stateful.StoreWriterMachine.TestCase
"""

import os
import stat
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from repsim.errors import OutputError, StoreError
from repsim.labels import LayerKey, SampleIds
from repsim.runtime.files import partial_path
from repsim.stores import extents, reader
from repsim.stores.schema import Array, ArraySpec, Contents
from repsim.stores.store import open_store, verify
from repsim.stores.writer import StoreWriter, count_stored

_SAMPLES = 4
_KEYS = tuple(LayerKey("model", layer, "mean") for layer in ("first", "second"))
_WIDTH = 3
_SECTOR = 2**9
"""Bytes of a sector: a disk writes all of them or none."""


@dataclass(frozen=True)
class Crash:
    """End of a process without any clean-up."""

    calls: int
    """Number of system calls of the step that are completed; the next one is not."""
    torn: bool
    """Whether the next call, if it writes, still writes about half of its bytes, in whole sectors."""
    power: bool
    """Whether the machine loses power, so that writes since the last fsync may be lost."""
    survivors: int
    """Bits for a loss of power: bit i is 1 if write number i since the last fsync reached the disk."""


_CRASHES = st.builds(Crash, st.integers(0, 8), st.booleans(), st.booleans(), st.integers(0, 2**10 - 1))
_MAYBE_CRASH = st.one_of(st.none(), st.none(), st.none(), _CRASHES)
_OFTEN = st.sampled_from([True, True, True, False])
_SUBSET = st.lists(st.integers(0, _SAMPLES - 1), unique=True, min_size=1)


class _Killed(BaseException):
    """Signal that the simulated process has ended; later system calls do not change the disk."""


class _Disk:
    """Simulated disk, which records system calls that change the files of a folder and ends the process at one of them.

    It keeps the contents of the file at its last fsync, which are certain to survive a loss of power.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._inode = 0
        self._synced = bytearray()
        self._writes: list[tuple[int, bytes]] = []
        self._rename: tuple[Path, Path, bytes | None] | None = None
        self._crash: Crash | None = None
        self._calls_left = 0
        self._survived: dict[str, bytes] | None = None

    @contextmanager
    def crashing(self, crash: Crash | None) -> Iterator[None]:
        """End the process inside this block as ``crash`` describes, and restore the files that survived."""
        self._crash, self._calls_left, self._survived = crash, 0 if crash is None else crash.calls, None
        calls: dict[str, Any] = {name: self._recorded(name) for name in ("pwrite", "fsync", "ftruncate", "replace")}
        try:
            with mock.patch.multiple(os, **calls):
                yield
        finally:
            if self._survived is not None:
                self._restore(self._survived)
            self._crash = None

    def end(self, crash: Crash) -> None:
        """End the process at this point."""
        self._crash = crash
        self._die()

    def contents(self) -> dict[str, bytes]:
        """Read the files of the folder, by name."""
        return {path.name: path.read_bytes() for path in self.folder.iterdir()}

    def _recorded(self, name: str) -> Callable[..., Any]:
        """Return a replacement of ``os.name`` that records the call, and ends the process if it is the last one."""
        call, prepare = getattr(os, name), getattr(self, f"_{name}")

        def recorded(*args: Any) -> Any:
            if self._survived is not None:
                raise _Killed
            record = prepare(*args)
            if self._crash is not None:
                if self._calls_left == 0:
                    if name == "pwrite" and self._crash.torn:
                        file, data, offset = args
                        part = bytes(data)[: max(0, (offset + len(data) // 2) // _SECTOR * _SECTOR - offset)]
                        call(file, part, offset)
                        self._writes.append((offset, part))
                    self._die()
                self._calls_left -= 1
            result = None if name == "fsync" else call(*args)  # the simulated disk needs no fsync
            record()
            return result

        return recorded

    def _track(self, file: int) -> None:
        """Assume that the contents of a file that was not seen before are on the disk."""
        inode = os.fstat(file).st_ino
        if inode != self._inode:
            self._inode, self._writes = inode, []
            self._synced = bytearray(os.pread(file, os.fstat(file).st_size, 0))

    def _pwrite(self, file: int, data: Any, offset: int) -> Callable[[], None]:
        self._track(file)
        return lambda: self._writes.append((offset, bytes(data)))

    def _ftruncate(self, file: int, size: int) -> Callable[[], None]:
        self._track(file)

        def record() -> None:
            self._writes = [write for write in self._writes if write[0] < size]
            self._synced = self._synced[:size].ljust(size, b"\0")

        return record

    def _fsync(self, file: int) -> Callable[[], None]:
        if stat.S_ISDIR(os.fstat(file).st_mode):
            return lambda: setattr(self, "_rename", None)
        self._track(file)

        def record() -> None:
            self._synced, self._writes = bytearray(os.pread(file, os.fstat(file).st_size, 0)), []

        return record

    def _replace(self, source: Path, target: Path) -> Callable[[], None]:
        source, target = Path(source), Path(target)
        before = target.read_bytes() if target.exists() else None
        return lambda: setattr(self, "_rename", (source, target, before))

    def _die(self) -> None:
        assert self._crash is not None
        files = {path: path.read_bytes() for path in self.folder.iterdir()}
        if self._crash.power:
            for path in files:
                if path.stat().st_ino == self._inode:
                    files[path] = self._after_power_loss()
            if self._rename is not None and not self._crash.survivors & 1:
                source, target, before = self._rename
                files[source] = files.pop(target)
                if before is not None:
                    files[target] = before
        self._survived = {path.name: data for path, data in files.items()}
        raise _Killed

    def _after_power_loss(self) -> bytes:
        assert self._crash is not None
        data = bytearray(self._synced)
        for number, (offset, written) in enumerate(self._writes):
            if self._crash.survivors >> number % 10 & 1:
                data[offset : offset + len(written)] = written
        return bytes(data)

    def _restore(self, files: dict[str, bytes]) -> None:
        for path in self.folder.iterdir():
            path.unlink()
        for name, data in files.items():
            (self.folder / name).write_bytes(data)
        self._inode, self._rename = 0, None


@dataclass
class _Run:
    """Expected state of an unfinished store."""

    settings: int
    creator: int
    """Number of the run that created the file; every value depends on it."""
    certain: set[int] = field(default_factory=set)
    """Samples that have to be marked as written."""
    possible: set[int] = field(default_factory=set)
    """Samples that may be marked as written."""


class StoreWriterMachine(RuleBasedStateMachine):
    """State machine that calls a store writer in any order, ends its process at any system call, and checks that

    - a file with the name of the store is complete, comes from one run, and all its checksums match;
    - a sample is marked as written only if all its values are on the disk, and always once `commit` has returned;
    - the file of an interrupted run is not lost or changed, unless a run overwrites it or does not resume;
    - a second writer of the same store is refused and changes nothing.

    A process can end at calls of ``os.pwrite``, ``os.fsync``, ``os.ftruncate`` and ``os.replace``; a loss of power can
    lose any of the writes since the last fsync. Override `open_writer` to test another writer.
    """

    def open_writer(self, path: Path, contents: Contents, *, overwrite: bool, resume: bool) -> StoreWriter:
        """Return the writer that is tested."""
        return StoreWriter(path, contents, overwrite=overwrite, resume=resume)

    def __init__(self) -> None:
        super().__init__()
        self.temporary = tempfile.TemporaryDirectory()
        folder = Path(self.temporary.name)
        self.disk, self.path, self.partial = _Disk(folder), folder / "store.h5", partial_path(folder / "store.h5")
        self.writer: StoreWriter | None = None
        self.unfinished: _Run | None = None
        """Expected state of the unfinished store."""
        self.rows: set[tuple[LayerKey, int]] = set()
        """Rows that the open writer has written."""
        self.done: set[int] = set()
        """Samples that the open writer has finished but not committed."""
        self.finished: bytes | None = None
        """Bytes of the finished store."""
        self.runs = 0
        """Number of runs that have created a file."""

    def teardown(self) -> None:
        """Close the writer and remove the folder."""
        try:
            if self.writer is not None:
                self._end(Crash(0, torn=False, power=False, survivors=0))
        finally:
            self.temporary.cleanup()

    # Steps

    @initialize(finished=st.booleans())
    def start(self, finished: bool) -> None:
        """Start with an empty folder, or with a finished store."""
        if finished:
            self.open(resume=False, overwrite=False, settings=0, crash=None)
            self.write(samples=range(_SAMPLES), crash=None)
            self.close(crash=None)

    @precondition(lambda self: self.writer is None)
    @rule(resume=_OFTEN, overwrite=_OFTEN, settings=st.sampled_from([0, 0, 0, 1]), crash=_MAYBE_CRASH)
    def open(self, resume: bool, overwrite: bool, settings: int, crash: Crash | None) -> None:
        """Start a run, which resumes an earlier one, starts again, or is refused because files would be lost."""
        before, earlier = self.disk.contents(), self.unfinished
        writer = self.open_writer(self.path, _contents(settings), overwrite=overwrite, resume=resume)
        exists = self.finished is not None and not overwrite
        differs = resume and not overwrite and earlier is not None and earlier.settings != settings
        if exists or differs:
            with pytest.raises(OutputError, match="exists" if exists else "was made with other settings"):
                writer.__enter__()
            assert self.disk.contents() == before, "a run that was refused changed files"
            return
        resumes = resume and earlier is not None and earlier.settings == settings
        try:
            with self.disk.crashing(crash):
                writer.__enter__()
        except _Killed:
            unchanged = self.disk.contents().get(self.partial.name) == before.get(self.partial.name)
            self.unfinished = earlier if unchanged and earlier is not None else None
            return
        self.writer, self.rows, self.done = writer, set(), set()
        written = set(np.flatnonzero(writer.written).tolist())
        if resumes and earlier is not None:
            assert written == self._check_unfinished()
            self.unfinished = _Run(settings, earlier.creator, set(written), set(written))
        else:
            self.runs += 1
            assert not written, "a run that does not resume counts samples of another run"
            self.unfinished = _Run(settings, self.runs)

    @precondition(lambda self: self.writer is not None)
    @rule(samples=_SUBSET, crash=_MAYBE_CRASH)
    def write(self, samples: Sequence[int], crash: Crash | None) -> None:
        """Write all arrays of several samples, in any order, and mark the samples as done."""
        self.write_rows(keys=_KEYS, samples=samples, crash=crash)
        if self.writer is not None:
            self.report_done(samples=samples)

    @precondition(lambda self: self.writer is not None)
    @rule(keys=st.lists(st.sampled_from(_KEYS), unique=True, min_size=1), samples=_SUBSET, crash=_MAYBE_CRASH)
    def write_rows(self, keys: Sequence[LayerKey], samples: Sequence[int], crash: Crash | None) -> None:
        """Write rows of one array or both."""

        def write(writer: StoreWriter) -> None:
            for key in keys:
                writer.write(key, list(samples), _values(self._unfinished.creator, key, samples))

        if self._attempt(write, crash):
            self.rows |= {(key, sample) for key in keys for sample in samples}

    @precondition(lambda self: self.writer is not None)
    @rule(samples=_SUBSET)
    def report_done(self, samples: Sequence[int]) -> None:
        """Mark those samples as done whose rows are written in all arrays."""
        finished = [sample for sample in samples if all((key, sample) in self.rows for key in _KEYS)]
        if finished and self._attempt(lambda writer: writer.mark_done(finished), None):
            self.done |= set(finished)
            self._unfinished.possible |= self.done

    @precondition(lambda self: self.writer is not None)
    @rule(crash=_MAYBE_CRASH)
    def commit(self, crash: Crash | None) -> None:
        """Commit the samples that are done."""
        if self._attempt(lambda writer: writer.commit(), crash):
            self._unfinished.certain |= self.done
            self.done = set()
            count = count_stored(self.path, _contents(self._unfinished.settings), overwrite=True)
            assert count == len(self._unfinished.certain), (
                "the count of stored samples is not that of the committed ones"
            )

    @precondition(lambda self: self.writer is not None)
    @rule(crash=_MAYBE_CRASH)
    def close(self, crash: Crash | None) -> None:
        """End the run without an error: the store is completed if no sample is missing."""
        is_complete = len(self._unfinished.certain | self.done) == _SAMPLES
        before, killed, refusal = self.disk.contents().get(self.path.name), False, None
        writer, self.writer = self._writer, None
        try:
            with self.disk.crashing(crash):
                writer.__exit__(None, None, None)
        except _Killed:
            killed = True
        except OutputError as error:
            refusal = error
            self._unfinished.certain |= self.done
        if self.disk.contents().get(self.path.name) != before:
            assert is_complete, "a store with missing samples was completed"
            self._check_finished()
        elif not killed:
            assert not is_complete, f"a store without missing samples was not completed: {refusal}"
            assert "never written" in f"{refusal}"
        else:
            self._check_unfinished()

    @precondition(lambda self: self.writer is not None)
    @rule()
    def fail(self) -> None:
        """End the run by an error: samples that are done are kept; if there are none, the file is removed."""
        writer, self.writer = self._writer, None
        with self.disk.crashing(None):
            writer.__exit__(ZeroDivisionError, ZeroDivisionError(), None)
        self._unfinished.certain |= self.done
        if not self._unfinished.certain:
            self.unfinished = None
            assert not self.partial.exists(), "a run without committed samples left a file"

    @precondition(lambda self: self.writer is not None)
    @rule(crash=_CRASHES)
    def kill(self, crash: Crash) -> None:
        """End the process between two calls of the writer."""
        self._end(crash)

    @precondition(lambda self: self.writer is not None)
    @rule(overwrite=st.booleans(), resume=st.booleans())
    def open_second(self, overwrite: bool, resume: bool) -> None:
        """Start a second run while the first is open; it has to be refused."""
        before = self.disk.contents()
        second = self.open_writer(self.path, _contents(1), overwrite=overwrite, resume=resume)
        exists = self.finished is not None and not overwrite
        try:
            with pytest.raises(OutputError, match="exists" if exists else "another process is writing"):
                second.__enter__()
        finally:
            second._close()
        assert self.disk.contents() == before, "a second writer changed files"

    # Invariants

    @invariant()
    def finished_store_is_unchanged(self) -> None:
        """Check that no step except `close` changes the finished store."""
        data = self.path.read_bytes() if self.path.exists() else None
        assert data == self.finished, "the finished store changed"

    @precondition(lambda self: self.partial.exists())
    @rule()
    def read_unfinished(self) -> None:
        """Open the unfinished store for reading, which has to be refused."""
        with pytest.raises(StoreError):
            open_store(self.partial)

    # Parts of steps

    @property
    def _unfinished(self) -> _Run:
        assert self.unfinished is not None, "a writer is open"
        return self.unfinished

    @property
    def _writer(self) -> StoreWriter:
        assert self.writer is not None, "a rule's precondition"
        return self.writer

    def _attempt(self, call: Callable[[StoreWriter], None], crash: Crash | None) -> bool:
        """Call the writer; return False if the process ended during the call."""
        writer = self._writer
        try:
            with self.disk.crashing(crash):
                try:
                    call(writer)
                except _Killed as killed:
                    self._unwind(killed)
                    raise
        except _Killed:
            self.writer = None
            self._check_unfinished()
            return False
        return True

    def _end(self, crash: Crash) -> None:
        """End the process of the open writer at this point."""
        self._attempt(lambda _: self.disk.end(crash), None)

    def _unwind(self, killed: _Killed) -> None:
        """Let the writer close its files, as the system does; its other calls do not change the disk."""
        with suppress(_Killed):
            self._writer.__exit__(_Killed, killed, None)

    def _check_finished(self) -> None:
        """Check the store that was just completed, and keep its bytes."""
        damage = verify(self.path)
        assert not damage, f"a finished store is damaged: {damage}"
        self._check_rows(self.path, set(range(_SAMPLES)), self._unfinished.creator)
        with open_store(self.path) as store:
            assert not store.contents.difference(_contents(self._unfinished.settings))
        assert not self.partial.exists(), "the unfinished store is still there"
        self.finished, self.unfinished = self.path.read_bytes(), None

    def _check_unfinished(self) -> set[int]:
        """Check the marks and the values of the unfinished store; return the samples that are marked as written."""
        run = self._unfinished
        if not run.possible:
            return set()
        assert self.partial.exists(), "an unfinished store is lost"
        layout = reader.read(self.partial)[1]
        with self.partial.open("rb") as file:
            marks = extents.read_rows(file.fileno(), layout.written, 0, _SAMPLES)
        counted = set(np.flatnonzero(marks).tolist())
        assert run.certain <= counted, "committed samples are lost"
        assert counted <= run.possible, "samples count that were not finished"
        self._check_rows(self.partial, counted, run.creator)
        return counted

    def _check_rows(self, path: Path, samples: set[int], creator: int) -> None:
        layout = reader.read(path)[1]
        with path.open("rb") as file:
            for key in _KEYS:
                rows = extents.read_rows(file.fileno(), layout.arrays[key], 0, _SAMPLES)
                for sample in samples:
                    expected = _values(creator, key, [sample])[0]
                    assert (rows[sample] == expected).all(), f"{key}: sample {sample} counts, but its values are wrong"


def _contents(settings: int) -> Contents:
    specs = tuple(ArraySpec(key, (_WIDTH,)) for key in _KEYS)
    return Contents(specs, SampleIds(tuple(map(str, range(_SAMPLES)))), "examples", {"seed": settings})


def _values(creator: int, key: LayerKey, samples: Sequence[int]) -> Array:
    """Return the values of rows, (samples, 3); they differ between runs, arrays and samples, and none is zero."""
    first = 1 + 1000 * creator + 100 * _KEYS.index(key)
    return np.array([[first + 10 * sample + i for i in range(_WIDTH)] for sample in samples], np.float32)
