"""The state machine of `repsim.testing.stateful`: our writer survives it, and writers with one fault each do not."""

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
        self.done(rows)


class ForgetsWhatIsThere(StoreWriter):
    def _take_up(self) -> bool:
        return False


class ResumesUnasked(StoreWriter):
    def __init__(self, path: Path, contents: Contents, **options: Any) -> None:
        super().__init__(path, contents, **{**options, "resume": True})


class DoesNotLock(StoreWriter):
    def _lock(self) -> None:
        pass


class NamesUnfinishedStores(StoreWriter):
    def _complete(self) -> None:
        self.done(slice(None))
        self.commit()
        super()._complete()


class RemovesBeforeItReplaces(StoreWriter):
    def _begin(self) -> None:
        self.path.unlink(missing_ok=True)
        super()._begin()


@pytest.mark.parametrize(
    ("writer", "message"),
    [
        (DoesNotSync, "counts, but its values are wrong|committed samples are lost"),
        (
            MarksUnfinishedSamples,
            "count that were not finished|not all that was committed counts, or more|a run of which nothing was kept",
        ),
        (ForgetsWhatIsThere, "assert set|an unfinished store is lost|committed samples are lost|DID NOT RAISE"),
        (ResumesUnasked, "a run that starts anew counts samples of another|was made with other settings"),
        (DoesNotLock, "DID NOT RAISE"),
        (NamesUnfinishedStores, "a store without some of its samples got the name"),
        (RemovesBeforeItReplaces, "the finished store changed"),
    ],
)
@pytest.mark.slow
def test_a_fault_of_a_writer_is_found(writer: type[StoreWriter], message: str) -> None:
    class Machine(StoreWriterMachine):
        def open_writer(self, path: Path, contents: Contents, **options: Any) -> StoreWriter:
            return writer(path, contents, **options)

    search = settings(max_examples=200, stateful_step_count=20, phases=[Phase.generate])
    with pytest.raises((Exception, pytest.fail.Exception), match=message):
        run_state_machine_as_test(Machine, settings=search)
