"""Writing files so that nothing is ever lost or half-written: a temporary name first, the real name when complete."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from repsim.errors import OutputError, reason

try:
    import fcntl
except ImportError:  # no such locks on this system: there a second writer goes unnoticed
    fcntl = None  # type: ignore[assignment]


def partial_path(path: Path) -> Path:
    """Where a file is written until it is complete."""
    return path.with_name(path.name + ".partial")


def check_output(path: Path, *, overwrite: bool) -> None:
    """Raise `OutputError` where ``path`` cannot be written or would lose what is there; make its folder."""
    if path.is_dir():
        raise OutputError(f"{path} is a folder; name a file")
    if path.exists() and not overwrite:
        raise OutputError(f"{path} exists; use --overwrite to replace it, or name another")
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
def replacing(path: Path, *, overwrite: bool) -> Iterator[Path]:
    """Give a temporary name beside ``path`` to write to; it becomes ``path`` when the block ends well."""
    check_output(path, overwrite=overwrite)
    partial = partial_path(path)
    try:
        yield partial
        partial.replace(path)
    except OSError as error:
        if isinstance(error, OutputError):
            raise
        raise OutputError(f"cannot write {path}: {reason(error)}") from None
    finally:
        with suppress(OSError):  # what went wrong above is what to tell
            partial.unlink()


def human(size: float) -> str:
    """Bytes in a readable unit.

    >>> human(1_234_567)
    '1.23 MB'
    """
    for unit in ("B", "kB", "MB", "GB"):
        if size < 999.5:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3g} TB"


def duration(seconds: float) -> str:
    """Time in readable units.

    >>> duration(0.123), duration(75), duration(7500)
    ('0.12 s', '1 min 15 s', '2 h 5 min')
    """
    if seconds < 59.5:
        return f"{seconds:.2g} s" if seconds < 9.5 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"
