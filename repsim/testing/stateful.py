"""A state machine for writers of stores: opens, writes, commits, kills, resumes, overwrites, and checks what is left.

Needs pytest and hypothesis, which finds a short sequence of steps for what goes wrong. A test file runs it with ::

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
from repsim.stores.writer import StoreWriter, stored

_SAMPLES = 4
_KEYS = tuple(LayerKey("model", layer, "mean") for layer in ("first", "second"))
_WIDTH = 3
_SECTOR = 2**9
"""Bytes that a disk writes as a whole, or not at all."""


@dataclass(frozen=True)
class Crash:
    """How a run ends without any clean-up."""

    calls: int
    """System calls of the step that are completed; the next one is not."""
    torn: bool
    """Whether that next one, if it writes, still writes about half of its bytes, up to the end of a disk's sector."""
    power: bool
    """Whether the machine loses power: then writes since the last fsync may be lost, and not the process alone."""
    survivors: int
    """With `power`: bit i tells whether write number i since the last fsync reached the disk all the same."""


_CRASHES = st.builds(Crash, st.integers(0, 8), st.booleans(), st.booleans(), st.integers(0, 2**10 - 1))
_MAYBE_CRASH = st.one_of(st.none(), st.none(), st.none(), _CRASHES)
_OFTEN = st.sampled_from([True, True, True, False])
_SOME = st.lists(st.integers(0, _SAMPLES - 1), unique=True, min_size=1)


class _Killed(BaseException):
    """The process has ended: whatever the code does from here on, the disk does not see it."""


class _Disk:
    """Watches the system calls that change files of a folder, and ends the process at one of them.

    It knows what is certain to survive a loss of power: what the file held at its last fsync.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._inode = 0
        self._synced = bytearray()
        self._writes: list[tuple[int, bytes]] = []
        self._rename: tuple[Path, Path, bytes | None] | None = None
        self._crash: Crash | None = None
        self._left = 0
        self._remains: dict[str, bytes] | None = None

    @contextmanager
    def crashing(self, crash: Crash | None) -> Iterator[None]:
        """End the process inside this block as ``crash`` says; afterwards the folder is what that left."""
        self._crash, self._left, self._remains = crash, 0 if crash is None else crash.calls, None
        calls: dict[str, Any] = {name: self._watched(name) for name in ("pwrite", "fsync", "ftruncate", "replace")}
        try:
            with mock.patch.multiple(os, **calls):
                yield
        finally:
            if self._remains is not None:
                self._restore(self._remains)
            self._crash = None

    def end(self, crash: Crash) -> None:
        """End the process here."""
        self._crash = crash
        self._die()

    def contents(self) -> dict[str, bytes]:
        """Every file of the folder, by name."""
        return {path.name: path.read_bytes() for path in self.folder.iterdir()}

    def _watched(self, name: str) -> Callable[..., Any]:
        call, record = getattr(os, name), getattr(self, f"_{name}")

        def watched(*args: Any) -> Any:
            if self._remains is not None:
                raise _Killed
            record_done = record(*args)
            if self._crash is not None:
                if self._left == 0:
                    if name == "pwrite" and self._crash.torn:
                        file, data, offset = args
                        part = bytes(data)[: max(0, (offset + len(data) // 2) // _SECTOR * _SECTOR - offset)]
                        call(file, part, offset)
                        self._writes.append((offset, part))
                    self._die()
                self._left -= 1
            result = None if name == "fsync" else call(*args)  # the disk is simulated, and need not be waited for
            record_done()
            return result

        return watched

    def _track(self, file: int) -> None:
        """Take what an unknown file holds as certain: it was left by an earlier run."""
        inode = os.fstat(file).st_ino
        if inode != self._inode:
            self._inode, self._writes = inode, []
            self._synced = bytearray(os.pread(file, os.fstat(file).st_size, 0))

    def _pwrite(self, file: int, data: Any, offset: int) -> Callable[[], None]:
        self._track(file)
        return lambda: self._writes.append((offset, bytes(data)))

    def _ftruncate(self, file: int, size: int) -> Callable[[], None]:
        self._track(file)

        def done() -> None:
            self._writes = [write for write in self._writes if write[0] < size]
            self._synced = self._synced[:size].ljust(size, b"\0")

        return done

    def _fsync(self, file: int) -> Callable[[], None]:
        if stat.S_ISDIR(os.fstat(file).st_mode):
            return lambda: setattr(self, "_rename", None)
        self._track(file)

        def done() -> None:
            self._synced, self._writes = bytearray(os.pread(file, os.fstat(file).st_size, 0)), []

        return done

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
        self._remains = {path.name: data for path, data in files.items()}
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
    """What is known of an unfinished store: which samples it has to hold, and which it may hold."""

    settings: int
    era: int
    """Number of the run that laid the file out; every value tells its era."""
    certain: set[int] = field(default_factory=set)
    possible: set[int] = field(default_factory=set)


class StoreWriterMachine(RuleBasedStateMachine):
    """Uses a writer in every order, ends its process at any system call, and checks what everybody relies on:

    - what has the store's name is a whole store, of one run, with every checksum right;
    - a sample counts as written only if all its values are on the disk, and it counts once `commit` has returned;
    - nothing that an earlier run left is lost or changed, unless the run overwrites it or starts anew;
    - a second writer of the same store is refused, and changes nothing.

    Calls of ``os.pwrite``, ``os.fsync``, ``os.ftruncate`` and ``os.replace`` are where a process can end; a loss of
    power takes any of the writes since the last fsync with it.

    Override `open_writer` to test a writer of your own.
    """

    def open_writer(self, path: Path, contents: Contents, *, overwrite: bool, resume: bool) -> StoreWriter:
        """Make the writer that is tested."""
        return StoreWriter(path, contents, overwrite=overwrite, resume=resume)

    def __init__(self) -> None:
        super().__init__()
        self.temporary = tempfile.TemporaryDirectory()
        folder = Path(self.temporary.name)
        self.disk, self.path, self.partial = _Disk(folder), folder / "store.h5", partial_path(folder / "store.h5")
        self.writer: StoreWriter | None = None
        self.unfinished: _Run | None = None
        """The unfinished store."""
        self.rows: set[tuple[LayerKey, int]] = set()
        """What the open writer has written."""
        self.done: set[int] = set()
        """Samples that the open writer has finished, and not committed yet."""
        self.finished: bytes | None = None
        """The store that has the name."""
        self.eras = 0

    def teardown(self) -> None:
        """Close what is open, and remove the folder."""
        try:
            if self.writer is not None:
                self._end(Crash(0, torn=False, power=False, survivors=0))
        finally:
            self.temporary.cleanup()

    # Steps

    @initialize(finished=st.booleans())
    def start(self, finished: bool) -> None:
        """Begin with an empty folder, or with a finished store."""
        if finished:
            self.open(resume=False, overwrite=False, settings=0, crash=None)
            self.write(samples=range(_SAMPLES), crash=None)
            self.close(crash=None)

    @precondition(lambda self: self.writer is None)
    @rule(resume=_OFTEN, overwrite=_OFTEN, settings=st.sampled_from([0, 0, 0, 1]), crash=_MAYBE_CRASH)
    def open(self, resume: bool, overwrite: bool, settings: int, crash: Crash | None) -> None:
        """Start a run: anew, where an earlier one ended, or not at all where something would be lost."""
        before, earlier = self.disk.contents(), self.unfinished
        writer = self.open_writer(self.path, _contents(settings), overwrite=overwrite, resume=resume)
        taken = self.finished is not None and not overwrite
        other = resume and not overwrite and earlier is not None and earlier.settings != settings
        if taken or other:
            with pytest.raises(OutputError, match="exists" if taken else "was made with other settings"):
                writer.__enter__()
            assert self.disk.contents() == before, "a run that was refused changed files"
            return
        again = resume and earlier is not None and earlier.settings == settings
        try:
            with self.disk.crashing(crash):
                writer.__enter__()
        except _Killed:
            unchanged = self.disk.contents().get(self.partial.name) == before.get(self.partial.name)
            self.unfinished = earlier if unchanged and earlier is not None else None
            return
        self.writer, self.rows, self.done = writer, set(), set()
        written = set(np.flatnonzero(writer.written).tolist())
        if again and earlier is not None:
            assert written == self._check_unfinished()
            self.unfinished = _Run(settings, earlier.era, set(written), set(written))
        else:
            self.eras += 1
            assert not written, "a run that starts anew counts samples of another"
            self.unfinished = _Run(settings, self.eras)

    @precondition(lambda self: self.writer is not None)
    @rule(samples=_SOME, crash=_MAYBE_CRASH)
    def write(self, samples: Sequence[int], crash: Crash | None) -> None:
        """Write all arrays of some samples, in any order, and report these as done."""
        self.write_rows(keys=_KEYS, samples=samples, crash=crash)
        if self.writer is not None:
            self.report_done(samples=samples)

    @precondition(lambda self: self.writer is not None)
    @rule(keys=st.lists(st.sampled_from(_KEYS), unique=True, min_size=1), samples=_SOME, crash=_MAYBE_CRASH)
    def write_rows(self, keys: Sequence[LayerKey], samples: Sequence[int], crash: Crash | None) -> None:
        """Write rows of some arrays."""

        def write(writer: StoreWriter) -> None:
            for key in keys:
                writer.write(key, list(samples), _values(self._unfinished.era, key, samples))

        if self._attempt(write, crash):
            self.rows |= {(key, sample) for key in keys for sample in samples}

    @precondition(lambda self: self.writer is not None)
    @rule(samples=_SOME)
    def report_done(self, samples: Sequence[int]) -> None:
        """Report those of the samples as done of which every array was written."""
        finished = [sample for sample in samples if all((key, sample) in self.rows for key in _KEYS)]
        if finished and self._attempt(lambda writer: writer.done(finished), None):
            self.done |= set(finished)
            self._unfinished.possible |= self.done

    @precondition(lambda self: self.writer is not None)
    @rule(crash=_MAYBE_CRASH)
    def commit(self, crash: Crash | None) -> None:
        """Make what was done count."""
        if self._attempt(lambda writer: writer.commit(), crash):
            self._unfinished.certain |= self.done
            self.done = set()
            count = stored(self.path, _contents(self._unfinished.settings), overwrite=True)
            assert count == len(self._unfinished.certain), "not all that was committed counts, or more"

    @precondition(lambda self: self.writer is not None)
    @rule(crash=_MAYBE_CRASH)
    def close(self, crash: Crash | None) -> None:
        """End the run well: the store gets its name if every sample is there."""
        whole = len(self._unfinished.certain | self.done) == _SAMPLES
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
            assert whole, "a store without some of its samples got the name"
            self._check_finished()
        elif not killed:
            assert not whole, f"a whole store did not get its name: {refusal}"
            assert "never written" in f"{refusal}"
        else:
            self._check_unfinished()

    @precondition(lambda self: self.writer is not None)
    @rule()
    def fail(self) -> None:
        """End the run by an error: what was done is kept, and nothing is left where nothing was done."""
        writer, self.writer = self._writer, None
        with self.disk.crashing(None):
            writer.__exit__(ZeroDivisionError, ZeroDivisionError(), None)
        self._unfinished.certain |= self.done
        if not self._unfinished.certain:
            self.unfinished = None
            assert not self.partial.exists(), "a run of which nothing was kept left a file"

    @precondition(lambda self: self.writer is not None)
    @rule(crash=_CRASHES)
    def kill(self, crash: Crash) -> None:
        """End the process between two calls."""
        self._end(crash)

    @precondition(lambda self: self.writer is not None)
    @rule(overwrite=st.booleans(), resume=st.booleans())
    def open_second(self, overwrite: bool, resume: bool) -> None:
        """Start another run meanwhile, which is refused."""
        before = self.disk.contents()
        second = self.open_writer(self.path, _contents(1), overwrite=overwrite, resume=resume)
        taken = self.finished is not None and not overwrite
        try:
            with pytest.raises(OutputError, match="exists" if taken else "another process is writing"):
                second.__enter__()
        finally:
            second._close()
        assert self.disk.contents() == before, "a second writer changed files"

    # What holds at any time

    @invariant()
    def what_has_the_name_is_a_whole_store(self) -> None:
        """No step but the end of a run changes it."""
        there = self.path.read_bytes() if self.path.exists() else None
        assert there == self.finished, "the finished store changed"

    @precondition(lambda self: self.partial.exists())
    @rule()
    def read_unfinished(self) -> None:
        """Open what is no store yet, which is refused."""
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
        """Call the writer; False where the process ended meanwhile."""
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
        """End the process of the open writer here."""
        self._attempt(lambda _: self.disk.end(crash), None)

    def _unwind(self, killed: _Killed) -> None:
        """Let the writer close its files, as the system does; what else it does changes nothing on the disk."""
        with suppress(_Killed):
            self._writer.__exit__(_Killed, killed, None)

    def _check_finished(self) -> None:
        """Check the store that has just got the name, and remember it."""
        era = self._unfinished.era
        damage = verify(self.path)
        assert not damage, f"a finished store is damaged: {damage}"
        self._check_rows(self.path, set(range(_SAMPLES)), era)
        with open_store(self.path) as store:
            assert not store.contents.difference(_contents(self._unfinished.settings))
        assert not self.partial.exists(), "the unfinished store is still there"
        self.finished, self.unfinished = self.path.read_bytes(), None

    def _check_unfinished(self) -> set[int]:
        """Check which samples of the unfinished store count, and their values; returns the samples."""
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
        self._check_rows(self.partial, counted, run.era)
        return counted

    def _check_rows(self, path: Path, samples: set[int], era: int) -> None:
        layout = reader.read(path)[1]
        with path.open("rb") as file:
            for key in _KEYS:
                rows = extents.read_rows(file.fileno(), layout.arrays[key], 0, _SAMPLES)
                for sample in samples:
                    expected = _values(era, key, [sample])[0]
                    assert (rows[sample] == expected).all(), f"{key}: sample {sample} counts, but its values are wrong"


def _contents(settings: int) -> Contents:
    specs = tuple(ArraySpec(key, (_WIDTH,)) for key in _KEYS)
    return Contents(specs, SampleIds(tuple(map(str, range(_SAMPLES)))), "examples", {"seed": settings})


def _values(era: int, key: LayerKey, samples: Sequence[int]) -> Array:
    """Values that tell where they belong: no two rows of any run are equal, and none is zero."""
    first = 1 + 1000 * era + 100 * _KEYS.index(key)
    return np.array([[first + 10 * sample + i for i in range(_WIDTH)] for sample in samples], np.float32)
