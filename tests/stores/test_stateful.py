"""Test `StoreWriter` with the state machine of `repsim.testing.stateful`, which also has to detect faulty writers."""

import os
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from hypothesis import Phase, settings
from hypothesis.stateful import run_state_machine_as_test

from repsim.labels import LayerKey
from repsim.stores.schema import Contents
from repsim.stores.writer import StoreWriter
from repsim.testing.stateful import StoreWriterMachine

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


@pytest.mark.parametrize(
    ("writer", "message"),
    [
        (DoesNotSync, "counts, but its values are wrong|committed samples are lost"),
        (
            MarksUnfinishedSamples,
            "count that were not finished|not that of the committed ones|a run without committed samples",
        ),
        (DoesNotResume, "assert set|committed samples are lost|an unfinished store is lost|DID NOT RAISE"),
        (AlwaysResumes, "a run that does not resume counts samples of another run|was made with other settings"),
        (DoesNotLock, "DID NOT RAISE"),
        (CompletesUnfinishedStores, "a store with missing samples was completed"),
        (RemovesTheOldStoreFirst, "the finished store changed"),
    ],
)
@pytest.mark.slow
def test_faulty_writers_are_detected(writer: type[StoreWriter], message: str) -> None:
    class Machine(StoreWriterMachine):
        def open_writer(self, path: Path, contents: Contents, **options: Any) -> StoreWriter:
            return writer(path, contents, **options)

    search = settings(max_examples=200, stateful_step_count=20, phases=[Phase.generate])
    with pytest.raises((Exception, pytest.fail.Exception), match=message):
        run_state_machine_as_test(Machine, settings=search)
