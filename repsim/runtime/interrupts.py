"""Stop the command line cleanly on SIGTERM, SIGHUP and SIGINT (a batch system, a closed terminal, Ctrl-C).

Only the command line installs signal handlers (`install`); importing repsim, or calling it from Python, changes none.
A handler only records the signal. The computation goes on to the end of its step, where `check` raises `Stopped`, so
that files are closed and written as after any exception. A watcher thread enforces this: if no step ends in time, or a
second signal arrives, it runs the registered cleanups, prints the stop line and ends the process.
"""

import atexit
import ctypes
import itertools
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType

GRACE_SECONDS = 3.0
"""Seconds that the current step may take after the signal before it is aborted."""
IDLE_SECONDS = 0.3
"""The same while no cleanup is registered, that is, while nothing is being written: during imports, for example."""
UNWIND_SECONDS = 10.0
"""Seconds that closing and writing files may take after that step."""
_CLEANUP_SECONDS = 3.0
"""Seconds that the cleanups may take when the watcher thread ends the process."""
_SAME_SECONDS = 0.5
"""Signals within this many seconds count as one: a terminal, ``timeout`` and torchrun may all send the same signal."""
_PARENT_DEATH_SIGNAL = 1
"""Linux's PR_SET_PDEATHSIG."""

Cleanup = Callable[[], str | None]
"""Removes what a later run cannot use; returns a note about what is kept for it, or None."""
StopLine = Callable[[int, list[str]], str]
"""Makes the stop line from the signal number and the notes of the cleanups; empty if another process prints it."""


class Stopped(KeyboardInterrupt):
    """Exception raised at the end of the current step after a signal has asked the command line to stop."""

    def __init__(self, signum: int) -> None:
        super().__init__(signum)
        self.signum = signum


class _Guard:
    """Signal handlers of one process, with the watcher thread."""

    def __init__(self) -> None:
        self.pid = os.getpid()
        self.signum: int | None = None
        self.unwinding = False
        self.ending = False
        self.printed = False
        self.printing = threading.Lock()
        self.stop_line: StopLine = stop_line
        self.handled = frozenset(
            signum
            for name in ("SIGTERM", "SIGHUP", "SIGINT")
            if (signum := getattr(signal, name, None)) is not None
            and signal.getsignal(signum) in {signal.SIG_DFL, signal.default_int_handler}
        )  # signals that are ignored (nohup, background jobs) or that the program handles itself are left alone
        for signum in self.handled:
            signal.signal(signum, self._record)
        if os.name == "posix":
            reading, writing = os.pipe()
            os.set_blocking(writing, False)
            signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
            threading.Thread(target=self._watch, args=(reading,), name="repsim-signals", daemon=True).start()
        atexit.register(self._ignore)  # registered first, so it runs last

    def _record(self, signum: int, _: FrameType | None) -> None:
        if os.getpid() != self.pid:
            return
        if self.signum is not None and os.name != "posix":  # there is no watcher thread
            raise Stopped(signum)
        self.signum = self.signum or signum

    def _ignore(self) -> None:
        """Ignore further signals at exit, where their default action would only change the exit code."""
        if os.getpid() == self.pid:
            for signum in self.handled:
                signal.signal(signum, signal.SIG_IGN)

    def _watch(self, reading: int) -> None:
        started = 0.0
        while True:
            left = started + self._patience() - time.monotonic() if started else None
            if not select.select([reading], [], [], None if left is None else max(0.0, left))[0]:
                if time.monotonic() < started + self._patience():
                    continue  # a step has begun or ended meanwhile
                self._end()
            for signum in os.read(reading, 64):
                if signum not in self.handled:  # SIGCHLD, for example, which torch handles
                    continue
                if not started:
                    started = time.monotonic()
                    self.signum = signum
                elif time.monotonic() - started > _SAME_SECONDS:
                    self._end()

    def _patience(self) -> float:
        if self.unwinding:
            return GRACE_SECONDS + UNWIND_SECONDS
        return GRACE_SECONDS if _CLEANUPS else IDLE_SECONDS

    def _end(self) -> None:
        """Run the cleanups, print the stop line and end the process without unwinding."""
        self.ending = True
        code = exit_code(self.signum or signal.SIGTERM)
        timer = threading.Timer(_CLEANUP_SECONDS, os._exit, (code,))  # in case a cleanup hangs on a dead disk
        timer.daemon = True
        timer.start()
        notes = []
        for cleanup in reversed(list(_CLEANUPS.values())):
            with suppress(BaseException):
                if note := cleanup():
                    notes.append(note)
        with suppress(BaseException):
            if processes := sys.modules.get("multiprocessing"):
                for child in processes.active_children():
                    child.kill()
        with suppress(BaseException):
            if os.isatty(2):  # not sys.stderr: with rich 14.0 and before, a progress bar replaces it by no terminal
                os.write(2, b"\r\x1b[2K\x1b[?25h")  # clear the progress bar and show the cursor
        with suppress(BaseException):
            self.printing.acquire(timeout=1)
            if not self.printed and (line := self.stop_line(self.signum or signal.SIGTERM, notes)):
                os.write(2, (line + "\n").encode(errors="backslashreplace"))
        os._exit(code)


_GUARD: _Guard | None = None
_CLEANUPS: dict[int, Cleanup] = {}
_KEYS = itertools.count()
_FORKED_FROM_GUARD = False


def install(make_stop_line: StopLine | None = None) -> None:
    """Handle SIGTERM, SIGHUP and SIGINT in this process; to be called by programs, never by libraries.

    Calling it again only replaces ``make_stop_line``. Outside the main thread, where Python allows no handlers, it does
    nothing.
    """
    global _GUARD  # noqa: PLW0603 - a process has one set of signal handlers
    if _GUARD is None:
        if threading.current_thread() is not threading.main_thread():
            return
        _GUARD = _Guard()
    if make_stop_line is not None:
        _GUARD.stop_line = make_stop_line


def pending_signal() -> int | None:
    """Return the number of the signal that has asked this process to stop; None if there was none."""
    return None if _GUARD is None else _GUARD.signum


def check() -> None:
    """Raise `Stopped` if a signal has asked the command line to stop. Call this between two steps of long work.

    >>> check()  # does nothing without a signal
    """
    if _GUARD is None or _GUARD.signum is None:
        return
    _GUARD.unwinding = True
    wait_for_end()
    raise Stopped(_GUARD.signum)


def wait_for_end() -> None:
    """Block the main thread if the watcher thread is about to end the process."""
    if _GUARD is not None and _GUARD.ending and threading.current_thread() is threading.main_thread():
        threading.Event().wait()


def print_last_line(line: Callable[[], None]) -> None:
    """Call ``line``, which prints the stop line, unless the watcher thread prints it."""
    if _GUARD is None:
        line()
        return
    with _GUARD.printing:
        wait_for_end()
        _GUARD.printed = True
        line()


def register(cleanup: Cleanup) -> int:
    """Register ``cleanup`` to run if the process ends without unwinding; return its key for `unregister`."""
    _CLEANUPS[key := next(_KEYS)] = cleanup
    return key


def unregister(key: int) -> None:
    """Remove a cleanup that is no longer needed."""
    _CLEANUPS.pop(key, None)


@contextmanager
def cleaned_up(cleanup: Cleanup) -> Iterator[None]:
    """Register ``cleanup`` during the block: it runs only if the process ends inside the block without unwinding."""
    key = register(cleanup)
    try:
        yield
    finally:
        unregister(key)


def exit_code(signum: int) -> int:
    """Return the exit code that shells and batch systems read as "ended by this signal".

    >>> exit_code(15)
    143
    """
    return 128 + signum


def stop_line(signum: int, notes: list[str], advice: str = "") -> str:
    """Return the line that reports the signal, what is kept, and how to go on.

    >>> stop_line(15, ["3 of 8 samples are kept in a.h5.partial"], "The same command goes on from there")
    'Stopped by SIGTERM (3 of 8 samples are kept in a.h5.partial). The same command goes on from there'
    """
    line = f"Stopped by {signal.Signals(signum).name}"
    if notes:
        line += f" ({'; '.join(notes)})"
    return f"{line}. {advice}" if advice else line


def leave_to_parent(_: int = 0) -> None:
    """Make a worker process of the command line ignore the first SIGTERM, and end when its parent ends.

    A batch system sends its signal to all processes at once; workers that ended at once would make the current batch
    fail with an error. A second SIGTERM ends the worker: Python sends it to workers that do not end.
    """
    if not _FORKED_FROM_GUARD:
        return
    signalled = False

    def handle(_: int, __: FrameType | None) -> None:
        nonlocal signalled
        if signalled:
            os._exit(0)
        signalled = True

    signal.signal(signal.SIGTERM, handle)
    if sys.platform == "linux":
        parent = os.getppid()
        with suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(_PARENT_DEATH_SIGNAL, signal.SIGKILL)
        if os.getppid() != parent:  # the parent has ended in the meantime
            os._exit(0)


def _forget() -> None:
    """Reset the state after a fork: signals and cleanups belong to the parent process."""
    global _GUARD, _FORKED_FROM_GUARD
    if _GUARD is not None:
        with suppress(ValueError):
            signal.set_wakeup_fd(-1)
        _GUARD, _FORKED_FROM_GUARD = None, True
    _CLEANUPS.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)
