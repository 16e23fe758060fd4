"""Writing files so that nothing is ever lost or half-written: a temporary name first, the real name when complete."""

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from repsim.errors import Argument, OutputError, Remedy, reason
from repsim.runtime import interrupts

try:
    import fcntl
except ImportError:  # no such locks on this system: there a second writer goes unnoticed
    fcntl = None  # type: ignore[assignment]


_CLAIMED: dict[Path, tuple[int, int]] = {}
"""Lock files of this process, and the process and thread that hold them."""


def partial_path(path: Path) -> Path:
    """Where a file is written until it is complete."""
    return path.with_name(path.name + ".partial")


def check_output(path: Path, *, overwrite: bool) -> None:
    """Raise `OutputError` where ``path`` cannot be written or would lose what is there; make its folder."""
    if path.is_dir():
        raise OutputError(f"{path} is a folder; name a file")
    if path.exists() and not overwrite:
        raise OutputError(
            f"{path} exists",
            path=path,
            remedy=Remedy("use ", Argument("overwrite", value=True), " to replace it, or name another"),
        )
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"cannot make the folder {path.parent}: {reason(error)}") from None
    if not os.access(path.parent, os.W_OK):
        raise OutputError(f"cannot write into the folder {path.parent}: permission denied, or a read-only file system")


def lock(file: int, what: Path) -> None:
    """Lock an open file, until it is closed; `OutputError` where another process has."""
    if fcntl is not None:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise OutputError(f"another process is writing {what}; wait until it is done") from None
        except OSError:
            pass  # a file system without locks


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Keep other processes from writing ``path`` meanwhile; `OutputError` where one does.

    Inside such a block the same thread may claim it again. The lock is on a file of its own, ``.NAME.lock``: HDF5 locks
    what it writes itself. Where a process was killed its lock is gone, and the next one removes the file.
    """
    place = path.parent.resolve() / f".{path.name}.lock"
    owner = os.getpid(), threading.get_ident()
    if _CLAIMED.get(place) == owner:
        yield
        return

    def remove() -> None:
        with suppress(OSError):
            place.unlink()

    while True:
        try:
            file = os.open(place, os.O_RDWR | os.O_CREAT, 0o666)
        except OSError as error:
            raise OutputError(f"cannot write {path}: {reason(error)}") from None
        try:
            lock(file, path)
            with suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(file), place.stat()):
                    break
        except BaseException:
            os.close(file)
            raise
        os.close(file)  # its owner has just finished and removed it
    try:
        _CLAIMED[place] = owner
        with interrupts.cleaned_up(remove):
            yield
    finally:
        _CLAIMED.pop(place, None)
        remove()
        os.close(file)


@contextmanager
def replacing(path: Path, *, overwrite: bool) -> Iterator[Path]:
    """Give a temporary name beside ``path`` to write to; it becomes ``path`` when the block ends well."""
    interrupts.check()
    check_output(path, overwrite=overwrite)
    partial = partial_path(path)

    def remove() -> None:
        with suppress(OSError):  # what went wrong before is what to tell
            partial.unlink()

    with locked(path), interrupts.cleaned_up(remove):
        check_output(path, overwrite=overwrite)  # another process may have finished it just now
        try:
            yield partial
            partial.replace(path)
        except OSError as error:
            if isinstance(error, OutputError):
                raise
            raise OutputError(f"cannot write {path}: {reason(error)}") from None
        finally:
            remove()


def remove_partial(path: Path) -> None:
    """Remove what killed processes have left of writing ``path``, unless another process is writing it now."""
    with suppress(OutputError), locked(path):
        partial_path(path).unlink(missing_ok=True)


def format_size(size: float) -> str:
    """Bytes in a readable unit.

    >>> format_size(1_234_567)
    '1.23 MB'
    """
    for unit in ("B", "kB", "MB", "GB"):
        if size < 999.5:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3g} TB"


def format_duration(seconds: float) -> str:
    """Time in readable units.

    >>> format_duration(0.123), format_duration(75), format_duration(7500)
    ('0.12 s', '1 min 15 s', '2 h 5 min')
    """
    if seconds < 59.5:
        return f"{seconds:.2g} s" if seconds < 9.5 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"
