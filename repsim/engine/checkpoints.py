"""Doing a sweep: its units are shared among the processes of a run, and what is done stays on disk until all is.

One file a unit lies in a folder beside the result. It is written under a temporary name and renamed, so it is whole or
not there; it ends in a checksum; its name says, by a hash, which sweep over which stores it is a part of. So a run that
is killed goes on with the units that are missing, however many processes it has the next time.
"""

import hashlib
import io
import math
import os
import shutil
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
from jaxtyping import Float64
from numpy.typing import NDArray

from repsim.errors import SAME_CALL, Hint, OutputError, Remedy, reason
from repsim.metrics.algorithms.sweep import Sweep
from repsim.runtime import interrupts
from repsim.runtime.files import lock
from repsim.runtime.processes import ALONE, Ranks


class Checkpoints:
    """Parts of sweeps that are done: in the folder, or nowhere."""

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder

    @contextmanager
    def locked(self, *, first: bool = True) -> Iterator[None]:
        """Keep other runs away while this one works; the folder goes once the block has ended well.

        One process of a run does it for all; a folder in which nothing was kept goes whatever happens.
        """
        if self.folder is None:
            yield
            return
        if not first:
            with interrupts.cleaned_up(lambda: None):  # its unit is worth waiting for, too
                yield
            return
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            file = os.open(self.folder / "lock", os.O_RDWR | os.O_CREAT, 0o666)
        except OSError as error:
            raise OutputError(f"cannot write into {self.folder}: {reason(error)}") from None
        try:
            lock(file, self.folder)
            for litter in self.folder.glob("*.partial"):  # of runs that were killed
                litter.unlink(missing_ok=True)
            try:
                with interrupts.cleaned_up(self._keep_or_clear):
                    yield
            except BaseException as error:
                if note := self._keep_or_clear():
                    error.add_note(note)
                raise
            self._clear()
        finally:
            os.close(file)

    def _keep_or_clear(self) -> Hint | None:
        """After an interruption: say which parts are kept; where there are none, leave nothing."""
        assert self.folder is not None
        count = len(list(self.folder.glob("*.part")))
        if count:
            return Hint(
                f"{count} parts are kept in {self.folder}",
                remedy=Remedy(SAME_CALL, " goes on from there"),
            )
        self._clear()
        return None

    def _clear(self) -> None:
        assert self.folder is not None
        shutil.rmtree(self.folder, ignore_errors=True)

    def load(self, sweep: str, shape: tuple[int, ...]) -> dict[int, NDArray[np.float64]]:
        """Read the parts of the sweep of this name; damaged ones, and those of another shape, count as missing."""
        if self.folder is None or not self.folder.is_dir():
            return {}
        found = {}
        for path in self.folder.glob(f"{_hash(sweep)}-*.part"):
            with suppress(OSError, ValueError, MemoryError):
                found[int(path.stem.rpartition("-")[2])] = _read(path, shape)
        return found

    def save(self, sweep: str, unit: int, part: NDArray[np.float64]) -> None:
        """Write down one part."""
        if self.folder is None:
            return
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            path = self.folder / f"{_hash(sweep)}-{unit}.part"
            partial = path.with_suffix(f".{uuid4().hex}.partial")
            data = io.BytesIO()
            np.save(data, part)
            with interrupts.cleaned_up(lambda: partial.unlink(missing_ok=True)):
                try:
                    partial.write_bytes(data.getvalue() + zlib.crc32(data.getvalue()).to_bytes(4, "little"))
                    partial.replace(path)
                finally:
                    partial.unlink(missing_ok=True)
        except OSError as error:
            raise OutputError(f"cannot write into {self.folder}: {reason(error)}") from None


def _hash(sweep: str) -> str:
    return hashlib.sha256(sweep.encode()).hexdigest()[:16]


def _read(path: Path, shape: tuple[int, ...]) -> NDArray[np.float64]:
    data = path.read_bytes()
    if zlib.crc32(data[:-4]).to_bytes(4, "little") != data[-4:]:
        raise ValueError("the checksum does not match")
    if len(data) > 8 * math.prod(shape) + 4096:  # nothing is allocated that the file may claim
        raise ValueError("it is too long")
    part: NDArray[np.float64] = np.load(io.BytesIO(data[:-4]), allow_pickle=False, max_header_size=4000)
    if part.shape != shape or part.dtype != np.float64:
        raise ValueError("it is of another shape")
    return part


def compute_sweep(
    sweep: Sweep[Any],
    name: str,
    *,
    checkpoints: Checkpoints | None = None,
    me: Ranks = ALONE,
    step: Callable[[], None] = lambda: None,
) -> list[Float64[np.ndarray, "rows columns"]]:
    """Compute every unit once, by whichever process; the matrix of every measure, the same in each of them."""
    checkpoints = checkpoints or Checkpoints()
    done = me.broadcast(checkpoints.load(name, (sweep.size,)) if me.first else {})
    done = {unit: part for unit, part in done.items() if unit in range(sweep.units)}
    missing = [unit for unit in sweep.order if unit not in done]
    mine = missing[me.part(len(missing))]
    made: dict[int, Any] = {}
    for unit, part in zip(mine, sweep.parts(mine), strict=True):
        made[unit] = part
        checkpoints.save(name, unit, part)
        step()
        interrupts.check()
    parts = done | {unit: part for some in me.gather(made) for unit, part in some.items()}
    return sweep.values([parts[unit] for unit in range(sweep.units)])
