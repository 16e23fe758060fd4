"""Compute a sweep in units that are shared among processes, and keep finished units on disk until all are done.

Each unit is one file in a folder beside the result. It is written under a temporary name and renamed, so that it is
complete or absent, and it ends with a checksum. A hash in its name identifies the sweep and the stores. So an
interrupted run can be resumed with the missing units, with any number of processes.
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
from repsim.runtime.progress import Step, sharing


class Checkpoints:
    """Store of the finished units of sweeps, called parts.

    Parameters
    ----------
    folder : Path, optional
        The folder of the parts; without it, nothing is stored.
    keep : bool
        Whether parts are kept after the run, for a later one that needs the same and more.
    """

    def __init__(self, folder: Path | None = None, *, keep: bool = False) -> None:
        self.folder, self.keep = folder, keep

    @contextmanager
    def locked(self, *, first: bool = True) -> Iterator[None]:
        """Lock the folder against other runs during the block, and remove it if the block ends without an exception.

        The ``first`` process of a run does this for all. A folder without parts is removed in any case.
        """
        if self.folder is None:
            yield
            return
        if not first:
            with interrupts.cleaned_up(lambda: None):  # gives its unit the longer grace period
                yield
            return
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            file = os.open(self.folder / "lock", os.O_RDWR | os.O_CREAT, 0o666)
        except OSError as error:
            raise OutputError(f"cannot write into {self.folder}: {reason(error)}") from None
        try:
            lock(file, self.folder)
            for partial in self.folder.glob("*.partial"):  # left by killed runs
                partial.unlink(missing_ok=True)
            try:
                with interrupts.cleaned_up(self._keep_or_clear):
                    yield
            except BaseException as error:
                if note := self._keep_or_clear():
                    error.add_note(note)
                raise
            if not self.keep:
                self._clear()
        finally:
            os.close(file)

    def _keep_or_clear(self) -> Hint | None:
        """Return a hint that names the parts that are kept; remove the folder and return None if there are none."""
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
        """Return the stored parts of a sweep by unit; damaged parts and parts of another shape count as missing."""
        if self.folder is None or not self.folder.is_dir():
            return {}
        parts = {}
        for path in self.folder.glob(f"{_hash(sweep)}-*.part"):
            with suppress(OSError, ValueError, MemoryError):
                parts[int(path.stem.rpartition("-")[2])] = _read(path, shape)
        return parts

    def load_unit(self, sweep: str, unit: int, shape: tuple[int, ...]) -> NDArray[np.float64] | None:
        """Return one stored part; None if it is missing, damaged, or of another shape."""
        if self.folder is not None:
            with suppress(OSError, ValueError, MemoryError):
                return _read(self.folder / f"{_hash(sweep)}-{unit}.part", shape)
        return None

    def save(self, sweep: str, unit: int, part: NDArray[np.float64]) -> None:
        """Write one part to disk."""
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
    if len(data) > 8 * math.prod(shape) + 4096:  # before np.load allocates what the header asks for
        raise ValueError("the file is too long")
    part: NDArray[np.float64] = np.load(io.BytesIO(data[:-4]), allow_pickle=False, max_header_size=4000)
    if part.shape != shape or part.dtype != np.float64:
        raise ValueError("the array has another shape or dtype")
    return part


def compute_sweep(
    sweep: Sweep[Any],
    name: str,
    *,
    checkpoints: Checkpoints | None = None,
    me: Ranks = ALONE,
    step: Callable[[], None] = lambda: None,
) -> list[Float64[np.ndarray, "rows columns"]]:
    """Compute the units of a sweep, each in one of the processes, and return the matrix of every measure.

    Parameters
    ----------
    sweep : Sweep
        The sum over all pairs.
    name : str
        Name that identifies the sweep and its stores in ``checkpoints``.
    checkpoints : Checkpoints, optional
        Where finished units are stored, and from where those of an interrupted run are read.
    me : Ranks
        This process among those that share the work.
    step : callable
        Called after each unit that this process computes. A `Step` also receives the number of units that an earlier
        run has computed, and the share of the running unit that is done.

    Returns
    -------
    list of array of shape (rows, columns)
        One a measure; the same in every process.
    """
    checkpoints = checkpoints or Checkpoints()
    done = me.broadcast(checkpoints.load(name, (sweep.size,)) if me.first else {})
    done = {unit: part for unit, part in done.items() if unit in range(sweep.units)}
    missing = [unit for unit in sweep.order if unit not in done]
    units = missing[me.part(len(missing))]
    if done and isinstance(step, Step):
        step.skip(len(done))
    computed: dict[int, Any] = {}
    with sharing(step):
        for unit, part in zip(units, sweep.parts(units), strict=True):
            computed[unit] = part
            checkpoints.save(name, unit, part)
            step()
            interrupts.check()
    parts = done | {unit: part for of_process in me.gather(computed) for unit, part in of_process.items()}
    return sweep.values([parts[unit] for unit in range(sweep.units)])
