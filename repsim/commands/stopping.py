"""Ends a command that a signal has stopped: one line that says what is kept and how to go on, and its exit code."""

import os
import shlex
import shutil
import signal
import sys
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import click

from repsim.commands.shared import first_process
from repsim.errors import Hint, OtherProcessError, RepsimError
from repsim.runtime import interrupts

_GOES_ON = "The same command goes on where this one stopped"
_LONGEST = 1500
"""Characters: a command of a thousand stores is not repeated."""


class StoppableGroup(click.Group):
    """A group whose commands end cleanly on SIGTERM, SIGHUP and SIGINT, with the exit codes 143, 129 and 130."""

    typed: Sequence[str] = ()
    """What the command line consists of, without the program's name."""
    running = ""
    """The subcommand that runs."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run as the program itself, which handles signals; `main` on its own leaves handlers as they are."""
        if kwargs.get("standalone_mode", True):
            interrupts.install(self._last_words)
        return super().__call__(*args, **kwargs)

    def main(self, args: Any = None, *more: Any, **options: Any) -> Any:
        """Keep what was typed, for the last line."""
        self.typed = list(sys.argv[1:] if args is None else args)
        return super().main(args, *more, **options)

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; one that is stopped says so in one line."""
        self.running = next((word for word in self.typed if word in self.commands), "")
        try:
            result = super().invoke(ctx)
        except KeyboardInterrupt as stop:
            signum = getattr(stop, "signum", None) or interrupts.pending_signal() or signal.SIGINT
            self._stop(signum, getattr(stop, "__notes__", []))
        except Exception as error:
            signum = interrupts.pending_signal() or 0
            mendable = isinstance(error, RepsimError) and not isinstance(error, OtherProcessError)
            if not signum or mendable:
                interrupts.wait_for_end()
                raise
            self._stop(signum, getattr(error, "__notes__", []))  # the terminal, or other processes, ended first
        if signum := interrupts.pending_signal():  # too late to stop anything
            self._stop(signum, [], "Everything was done already.")
        return result

    def _stop(self, signum: int, notes: Sequence[str], advice: str | None = None) -> None:
        line = self._last_words(signum, list(notes), advice)

        def say() -> None:
            try:
                if line:
                    click.echo(line, err=True)
            except OSError:  # the terminal is gone: that is what SIGHUP says
                sys.stderr = None  # nor can the interpreter flush it at its end

        interrupts.print_last_line(say)
        raise SystemExit(interrupts.exit_code(signum)) from None

    def _last_words(self, signum: int, notes: list[str], advice: str | None = None) -> str:
        if not first_process():
            return ""
        launched = "TORCHELASTIC_RUN_ID" in os.environ
        if advice is None:
            again = None if launched else _repeated(self.typed)
            advice = _advice(self.running, self.typed) + (f": {again}" if again else ".")
        kept = [note.problem if isinstance(note, Hint) else note for note in notes]  # the advice says how to go on
        return interrupts.stop_line(signum, kept, advice)


def _advice(command: str, typed: Sequence[str]) -> str:
    """Say what the same command would do; it has to be true of every moment at which the command may be stopped."""
    anew = "--overwrite" in typed
    saved = any(word.startswith(("-o", "--out")) for word in typed)
    return {
        "extract": "The same command starts anew (--overwrite)" if anew else _GOES_ON,
        "compare": _GOES_ON if saved else "Nothing is kept without -o, so the same command starts again",
        "universality": "The same command starts again, but for untrained networks that are extracted already",
        "run": "The same command keeps the stores and starts the study anew (--overwrite)"
        if anew
        else "The same command goes on: it keeps what is saved, and starts an unfinished study again",
    }.get(command, "The same command starts again")


def _repeated(typed: Sequence[str]) -> str | None:
    """Repeat the command so that it can be pasted into a shell; None where that cannot be known, or is too long."""
    program = _program()
    line = None if program is None else shlex.join([*program, *typed])
    return line if line is not None and line.isprintable() and len(line) <= _LONGEST else None


def _program() -> list[str] | None:
    started, words = Path(sys.argv[0]), sys.orig_argv
    if started.name == "__main__.py" and ("-m", "repsim") in pairwise(words):
        return words[: words.index("-m") + 2]
    if started.name != "repsim":
        return None
    on_path = shutil.which("repsim")
    same = on_path is not None and started.exists() and Path(on_path).samefile(started)
    return ["repsim"] if same else [str(started)]
