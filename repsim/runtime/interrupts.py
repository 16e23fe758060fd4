"""Ends long work cleanly when a batch system, a closed terminal or Ctrl-C asks the command line to stop.

Only the command line installs signal handlers (`install`); importing repsim, or calling it from Python, changes none.
A signal is noted, the work goes on to the end of its step, and `check` raises `Stopped`, so that everything is closed
and written as after any exception. A thread watches over that: when no step ends in time, or a second signal comes, it
runs the registered cleanups, prints the last line and ends the process.
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
"""How long the step that is on its way may take until it is given up."""
IDLE_SECONDS = 0.3
"""The same where nothing is being written: while libraries are imported, say."""
UNWIND_SECONDS = 10.0
"""How long closing and writing may take after that step."""
_CLEANUP_SECONDS = 3.0
"""How long the cleanups may take where the process is ended from outside its work."""
_SAME_SECONDS = 0.5
"""Signals so close together are one: a terminal, ``timeout`` and torchrun each send it again to the processes below."""
_PARENT_DEATH_SIGNAL = 1
"""Linux's PR_SET_PDEATHSIG."""

Cleanup = Callable[[], str | None]
"""Removes what is of no use to a later run; returns what is kept for it, in words."""
LastWords = Callable[[int, list[str]], str]
"""Makes the last line of the signal's number and of what the cleanups return; empty where another process speaks."""


class Stopped(KeyboardInterrupt):
    """A signal has asked the command line to stop, and the step that was on its way has ended."""

    def __init__(self, signum: int) -> None:
        super().__init__(signum)
        self.signum = signum


class _Guard:
    """The handlers of one process, and the thread that watches over them."""

    def __init__(self) -> None:
        self.pid = os.getpid()
        self.signum: int | None = None
        self.unwinding = False
        self.ending = False
        self.spoken = False
        self.speaking = threading.Lock()
        self.last_words: LastWords = stop_line
        self.handled = frozenset(
            signum
            for name in ("SIGTERM", "SIGHUP", "SIGINT")
            if (signum := getattr(signal, name, None)) is not None
            and signal.getsignal(signum) in {signal.SIG_DFL, signal.default_int_handler}
        )  # what is ignored stays ignored (nohup, jobs in the background), and what the program handles is its own
        for signum in self.handled:
            signal.signal(signum, self._note)
        if os.name == "posix":
            reading, writing = os.pipe()
            os.set_blocking(writing, False)
            signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
            threading.Thread(target=self._watch, args=(reading,), name="repsim-signals", daemon=True).start()
        atexit.register(self._ignore)  # registered first, so it runs last

    def _note(self, signum: int, _: FrameType | None) -> None:
        if os.getpid() != self.pid:
            return
        if self.signum is not None and os.name != "posix":  # no thread watches
            raise Stopped(signum)
        self.signum = self.signum or signum

    def _ignore(self) -> None:
        """From now on nothing is left to stop; the default action would change the exit code."""
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
                if signum not in self.handled:  # torch handles the ends of its workers so
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
        """End the process here and now."""
        self.ending = True
        code = exit_code(self.signum or signal.SIGTERM)
        last = threading.Timer(_CLEANUP_SECONDS, os._exit, (code,))  # a disk may answer no more
        last.daemon = True
        last.start()
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
            if sys.stderr.isatty():
                os.write(2, b"\r\x1b[2K\x1b[?25h")  # no rest of a progress bar, and the cursor again
        with suppress(BaseException):
            self.speaking.acquire(timeout=1)
            if not self.spoken and (line := self.last_words(self.signum or signal.SIGTERM, notes)):
                os.write(2, (line + "\n").encode(errors="backslashreplace"))
        os._exit(code)


_GUARD: _Guard | None = None
_CLEANUPS: dict[int, Cleanup] = {}
_KEYS = itertools.count()
_FORKED_FROM_GUARD = False


def install(last_words: LastWords | None = None) -> None:
    """Handle SIGTERM, SIGHUP and SIGINT in this process from now on; for the program itself, never for a library.

    Calling it again only replaces ``last_words``. Outside the main thread, where Python allows no handlers, nothing
    happens.
    """
    global _GUARD  # noqa: PLW0603 - a process has one set of signal handlers
    if _GUARD is None:
        if threading.current_thread() is not threading.main_thread():
            return
        _GUARD = _Guard()
    if last_words is not None:
        _GUARD.last_words = last_words


def pending_signal() -> int | None:
    """Return the signal that has asked this process to stop, if one has."""
    return None if _GUARD is None else _GUARD.signum


def check() -> None:
    """Raise `Stopped` where a signal has asked the command line to stop: to be called between two steps of long work.

    >>> check()  # no signal, or no command line
    """
    if _GUARD is None or _GUARD.signum is None:
        return
    _GUARD.unwinding = True
    wait_for_end()
    raise Stopped(_GUARD.signum)


def wait_for_end() -> None:
    """Wait for the end of the process where its watching thread is about to end it."""
    if _GUARD is not None and _GUARD.ending and threading.current_thread() is threading.main_thread():
        threading.Event().wait()


def print_last_line(line: Callable[[], None]) -> None:
    """Print the last line with ``line``, unless the watching thread does: there is one."""
    if _GUARD is None:
        line()
        return
    with _GUARD.speaking:
        wait_for_end()
        _GUARD.spoken = True
        line()


def register(cleanup: Cleanup) -> int:
    """Have ``cleanup`` run where the process ends without unwinding; returns what `unregister` takes."""
    _CLEANUPS[key := next(_KEYS)] = cleanup
    return key


def unregister(key: int) -> None:
    """Forget a cleanup: its work is done."""
    _CLEANUPS.pop(key, None)


@contextmanager
def cleaned_up(cleanup: Cleanup) -> Iterator[None]:
    """Have ``cleanup`` run where the process ends inside this block without unwinding. Otherwise it is not called."""
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
    """Make the line that tells the user what has happened, what is kept and how to go on.

    >>> stop_line(15, ["3 of 8 samples are kept in a.h5.partial"], "The same command goes on from there")
    'Stopped by SIGTERM (3 of 8 samples are kept in a.h5.partial). The same command goes on from there'
    """
    line = f"Stopped by {signal.Signals(signum).name}"
    if notes:
        line += f" ({'; '.join(notes)})"
    return f"{line}. {advice}" if advice else line


def leave_to_parent(_: int = 0) -> None:
    """In a worker process of the command line: leave signals to the parent, and do not outlive it.

    A batch system sends its signal to all processes at once; workers that died of it would end the batch that is on
    its way, with an error of theirs. The second SIGTERM ends the worker: Python sends it to one that does not answer.
    """
    if not _FORKED_FROM_GUARD:
        return
    seen = False

    def note(_: int, __: FrameType | None) -> None:
        nonlocal seen
        if seen:
            os._exit(0)
        seen = True

    signal.signal(signal.SIGTERM, note)
    if sys.platform == "linux":
        parent = os.getppid()
        with suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(_PARENT_DEATH_SIGNAL, signal.SIGKILL)
        if os.getppid() != parent:  # it died in between
            os._exit(0)


def _forget() -> None:
    """In a forked process: its signals are not those of the command line, and neither are its files."""
    global _GUARD, _FORKED_FROM_GUARD
    if _GUARD is not None:
        with suppress(ValueError):
            signal.set_wakeup_fd(-1)
        _GUARD, _FORKED_FROM_GUARD = None, True
    _CLEANUPS.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)
