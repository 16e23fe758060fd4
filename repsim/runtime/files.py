"""Write files atomically: under a temporary name first, renamed when complete, locked against other processes."""

import errno
import hashlib
import os
import re
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from uuid import uuid4

from repsim.errors import Argument, OutputError, Remedy, reason
from repsim.runtime import interrupts

try:
    import fcntl
except ImportError:  # without fcntl (Windows), a second writer is not detected
    fcntl = None  # type: ignore[assignment]


NO_LINK = getattr(os, "O_NOFOLLOW", 0)
"""Flag of `os.open` that refuses a link: somebody else may have put one in the place of a temporary file."""
_LOCKS: dict[Path, tuple[tuple[int, int], bool]] = {}
"""Lock files that this process holds: the process id and the thread id of the owner, and whether the lock holds."""


_BEGINNING = 40
"""Characters of a name that a temporary name has which no other process has: at most 160 bytes."""


def partial_path(path: Path) -> Path:
    """Return the temporary path under which a file is written until it is complete."""
    return path.with_name(path.name + ".partial")


def _temporary(path: Path, *, alone: bool) -> Path:
    """Return the temporary path of a process that is alone with ``path`` by a lock, or one that no other process has.

    A name that is always the same is better: the next process replaces what a killed one left. The other one has only
    the beginning of a long name, so that it can be written wherever the name can.
    """
    return partial_path(path if alone else path.with_name(f"{path.name[:_BEGINNING]}.{uuid4().hex[:8]}"))


def expand_home(path: Path) -> Path:
    """Return a path with the home folder for ``~``; unchanged if there is no such user."""
    with suppress(RuntimeError):
        return path.expanduser()
    return path


def check_output(path: Path, *, overwrite: bool) -> None:
    """Create the folder of ``path``; raise `OutputError` if the file cannot be written or must not be replaced."""
    try:
        with suppress(FileNotFoundError, NotADirectoryError):
            partial_path(path).lstat()  # the longest of the names that will be needed
        folder = path.is_dir()
    except (OSError, ValueError) as error:  # too long, in a folder that may not be searched, or with a zero byte
        raise OutputError(f"cannot write {path}: {reason(error)}") from None
    if folder:
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


def lock(file: int, path: Path) -> bool:
    """Lock an open file until it is closed; raise `OutputError` if another process has locked it.

    Returns
    -------
    bool
        Whether the lock holds: some file systems have no locks.
    """
    if fcntl is None:
        return False
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise OutputError(f"another process is writing {path}; wait until it is done") from None
    except OSError:
        return False
    return True


def _lock_path(path: Path) -> Path:
    return path.parent.resolve() / f".{path.name}.lock"


@contextmanager
def locked(path: Path) -> Iterator[bool]:
    """Lock ``path`` against other processes during the block; raise `OutputError` if another process holds the lock.

    Yields whether the lock holds, as some file systems have no locks.

    The same thread may lock the path again inside the block. The lock is on a separate file, ``.NAME.lock``, because
    HDF5 locks the files that it writes. The lock of a killed process is released by the operating system; the next
    process removes the lock file.
    """
    lock_path = _lock_path(path)
    owner = os.getpid(), threading.get_ident()
    if (earlier := _LOCKS.get(lock_path)) is not None and earlier[0] == owner:
        yield earlier[1]
        return

    def remove() -> None:
        with suppress(OSError):
            lock_path.unlink()

    while True:
        try:
            file = os.open(lock_path, os.O_RDWR | os.O_CREAT | NO_LINK, 0o666)
        except OSError as error:
            raise OutputError(f"cannot write {path}: {reason(error)}") from None
        try:
            holds = lock(file, path)
            with suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(file), lock_path.stat()):
                    break
        except BaseException:
            os.close(file)
            raise
        os.close(file)  # its previous owner has just removed it
    try:
        _LOCKS[lock_path] = owner, holds
        with interrupts.cleaned_up(remove):
            yield holds
    finally:
        _LOCKS.pop(lock_path, None)
        remove()
        os.close(file)


@contextmanager
def reserved(path: Path, *, overwrite: bool) -> Iterator[bool]:
    """Lock ``path`` during the block, for work whose result will be saved there; remove what a killed process left.

    Yields whether the lock holds, as `locked` does.

    Raises
    ------
    OutputError
        If the file cannot be written, must not be replaced, or another process is writing it; before the work.
    """
    interrupts.check()
    try:
        check_output(path, overwrite=overwrite)
    except OutputError:
        remove_partial(path)  # of a process that was killed after it had finished the file
        raise
    with locked(path) as holds:
        check_output(path, overwrite=overwrite)  # another process may have written it in the meantime
        if holds:
            with suppress(OSError):
                partial_path(path).unlink()  # what a killed process left, or a link to another file
        yield holds


@contextmanager
def replacing(path: Path, *, overwrite: bool) -> Iterator[Path]:
    """Yield a temporary path to write to, and rename it to ``path`` if the block ends without an exception."""

    def remove() -> None:
        with suppress(OSError):  # an earlier exception is more useful
            partial.unlink()

    with reserved(path, overwrite=overwrite) as holds, interrupts.cleaned_up(remove):
        partial = _temporary(path, alone=holds)
        try:
            yield partial
            sync(partial)
            partial.replace(path)
            sync_folder(path.parent)
        except OSError as error:
            if isinstance(error, OutputError):
                raise
            raise OutputError(f"cannot write {path}: {reason(error)}") from None
        finally:
            remove()


@contextmanager
def replacing_folder(path: Path, *, overwrite: bool) -> Iterator[Path]:
    """Yield the path of a new folder to write to, and rename it to ``path`` if the block ends without an exception."""
    interrupts.check()

    def check() -> None:
        if path.is_dir():
            if not overwrite:
                raise OutputError(
                    f"{path} exists",
                    path=path,
                    remedy=Remedy("use ", Argument("overwrite", value=True), " to replace it, or name another"),
                )
        else:
            check_output(path, overwrite=False)

    def remove() -> None:
        shutil.rmtree(partial, ignore_errors=True)
        with suppress(OSError):  # a link, which rmtree leaves
            partial.unlink()

    check()
    with locked(path) as holds, interrupts.cleaned_up(remove):
        partial = _temporary(path, alone=holds)
        check()  # another process may have written it in the meantime
        remove()  # what a killed process left
        try:
            yield partial
            for file in partial.rglob("*"):
                if file.is_file():
                    sync(file)
            if path.is_dir():
                earlier = path.with_name(f"{path.name}.earlier")
                path.replace(earlier)
                partial.replace(path)
                shutil.rmtree(earlier)
            else:
                partial.replace(path)
        except OSError as error:
            if isinstance(error, OutputError):
                raise
            raise OutputError(f"cannot write {path}: {reason(error)}") from None
        finally:
            remove()


def sync(path: Path) -> None:
    """Wait until the contents of a file are on the disk, so that a loss of power cannot leave a name without them.

    Some file systems cannot do that; what they wrote is kept.
    """
    with path.open("rb+") as file:
        try:
            os.fsync(file.fileno())
        except OSError as error:
            if error.errno not in {errno.EINVAL, errno.ENOSYS, errno.ENOTSUP}:
                raise


def sync_folder(folder: Path) -> None:
    """Wait until the names of the files of a folder are on the disk, where the file system can do that."""
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def remove_partial(path: Path) -> None:
    """Remove the files that a killed process left beside ``path``, unless another process is writing it."""
    with suppress(OSError):  # also OutputError
        if os.path.lexists(partial_path(path)) or _lock_path(path).exists():
            with locked(path) as holds:  # which removes the lock file
                if holds:
                    partial_path(path).unlink(missing_ok=True)


def format_size(size: float) -> str:
    """Format a size in bytes with a readable unit.

    >>> format_size(1_234_567)
    '1.23 MB'
    """
    for unit in ("B", "kB", "MB", "GB"):
        if size < 999.5:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3g} TB"


def format_duration(seconds: float) -> str:
    """Format a duration in seconds with readable units.

    >>> format_duration(0.123), format_duration(75), format_duration(7500)
    ('0.12 s', '1 min 15 s', '2 h 5 min')
    """
    if seconds < 59.5:
        return f"{seconds:.2g} s" if seconds < 9.5 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def natural_key(text: str) -> list[tuple[int, int, str]]:
    """Return a key by which ``step_9`` comes before ``step_10``.

    >>> sorted(["layer10", "layer2"], key=natural_key)
    ['layer2', 'layer10']
    """
    return [(0, int(part), part) if part.isdecimal() else (1, 0, part) for part in re.split(r"(\d+)", text)]


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file, or of the names and contents of all files of a folder, as a hexadecimal number."""
    if path.is_dir():
        names = sorted(file.relative_to(path).as_posix() for file in path.rglob("*") if file.is_file())
        return hashlib.sha256("\n".join(f"{sha256_of(path / name)}  {name}" for name in names).encode()).hexdigest()
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
