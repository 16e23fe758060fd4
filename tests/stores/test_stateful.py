"""Test `StoreWriter` with the state machine of `repsim.testing.stateful`, which also has to detect faulty writers."""

import os
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from hypothesis import settings

from repsim.labels import LayerKey
from repsim.stores.schema import Contents
from repsim.stores.writer import StoreWriter
from repsim.testing.stateful import Crash, StoreWriterMachine

TestStoreWriter = StoreWriterMachine.TestCase
TestStoreWriter.settings = settings(max_examples=40, stateful_step_count=20)


class DoesNotSync(StoreWriter):
    def commit(self) -> None:
        with mock.patch.object(os, "fsync"):
            super().commit()


class MarksUnfinishedSamples(StoreWriter):
    def write(self, key: LayerKey, rows: Any, values: Any) -> None:
        super().write(key, rows, values)
        self.mark_done(rows)


class DoesNotResume(StoreWriter):
    def _resume_run(self) -> bool:
        return False


class AlwaysResumes(StoreWriter):
    def __init__(self, path: Path, contents: Contents, **options: Any) -> None:
        super().__init__(path, contents, **{**options, "resume": True})


class DoesNotLock(StoreWriter):
    def _lock(self) -> None:
        pass


class CompletesUnfinishedStores(StoreWriter):
    def _complete(self) -> None:
        self.mark_done(slice(None))
        self.commit()
        super()._complete()


class RemovesTheOldStoreFirst(StoreWriter):
    def _start_run(self) -> None:
        self.path.unlink(missing_ok=True)
        super()._start_run()


Steps = tuple[tuple[str, dict[str, Any]], ...]
"""Names and arguments of steps of the machine."""

_OPEN = ("open", {"resume": True, "overwrite": False, "settings": 0, "crash": None})
_OPEN_AGAIN = ("open", {"resume": False, "overwrite": True, "settings": 0, "crash": None})
_WRITE = ("write", {"samples": [0, 2], "crash": None})
_WRITE_ONE_ARRAY = ("write_rows", {"keys": [LayerKey("model", "first", "mean")], "samples": [0], "crash": None})
_COMMIT = ("commit", {"crash": None})
_CLOSE = ("close", {"crash": None})
_KILL = ("kill", {"crash": Crash(0, torn=False, power=False, survivors=0)})
_LOSE_POWER = ("kill", {"crash": Crash(0, torn=False, power=True, survivors=0)})

# The steps are fixed: whether a random search reaches a fault within its examples would depend on chance.
_FAULTS: dict[type[StoreWriter], tuple[Steps, str]] = {
    DoesNotSync: ((_OPEN, _WRITE, _COMMIT, _LOSE_POWER), "committed samples are lost"),
    MarksUnfinishedSamples: ((_OPEN, _WRITE_ONE_ARRAY, _COMMIT), "not that of the committed ones"),
    DoesNotResume: ((_OPEN, _WRITE, _COMMIT, _KILL, _OPEN), "committed samples are lost"),
    AlwaysResumes: ((_OPEN, _WRITE, _COMMIT, _KILL, _OPEN_AGAIN), "counts samples of another run"),
    DoesNotLock: ((_OPEN, ("open_second", {"overwrite": True, "resume": True})), "DID NOT RAISE"),
    CompletesUnfinishedStores: ((_OPEN, _WRITE, _CLOSE), "a store with missing samples was completed"),
    RemovesTheOldStoreFirst: ((("start", {"finished": True}), _OPEN_AGAIN), "the finished store changed"),
}


def _run(writer: type[StoreWriter], steps: Steps) -> None:
    class Machine(StoreWriterMachine):
        def open_writer(self, path: Path, contents: Contents, **options: Any) -> StoreWriter:
            return writer(path, contents, **options)

    machine = Machine()
    try:
        for name, arguments in steps:
            getattr(machine, name)(**arguments)
            machine.finished_store_is_unchanged()
    finally:
        machine.teardown()


@pytest.mark.parametrize("writer", _FAULTS)
def test_faulty_writers_are_detected(writer: type[StoreWriter]) -> None:
    steps, message = _FAULTS[writer]
    with pytest.raises((Exception, pytest.fail.Exception), match=message):
        _run(writer, steps)


@pytest.mark.parametrize("writer", _FAULTS)
def test_the_steps_that_detect_a_fault_pass_without_it(writer: type[StoreWriter]) -> None:
    _run(StoreWriter, _FAULTS[writer][0])
