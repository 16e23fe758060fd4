"""End a command that a signal stopped: print one line on how to continue, and exit with the code of the signal."""

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

from repsim.commands.shared import echo, is_first_process
from repsim.errors import Hint, OtherProcessError, RepsimError
from repsim.runtime import interrupts

_RESUMES = "The same command goes on where this one stopped"
_MAX_COMMAND = 1500
"""Length, in characters, up to which the stop message repeats the command; a thousand stores would fill the screen."""


class StoppableGroup(click.Group):
    """Group whose commands end cleanly on SIGTERM, SIGHUP and SIGINT, with the exit codes 143, 129 and 130."""

    typed: Sequence[str] = ()
    """Words of the command line without the name of the program."""
    running = ""
    """Name of the running subcommand."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run as the main program, with signal handlers; `main` alone installs none."""
        if kwargs.get("standalone_mode", True):
            interrupts.install(self._stop_message)
        return super().__call__(*args, **kwargs)

    def main(self, args: Any = None, *more: Any, **options: Any) -> Any:
        """Run the group and record the typed words for the stop message."""
        self.typed = list(sys.argv[1:] if args is None else args)
        return super().main(args, *more, **options)

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; if a signal stops it, print one line."""
        self.running = next((word for word in self.typed if word in self.commands), "")
        try:
            result = super().invoke(ctx)
        except KeyboardInterrupt as stop:
            signum = getattr(stop, "signum", None) or interrupts.pending_signal() or signal.SIGINT
            self._stop(signum, getattr(stop, "__notes__", []))
        except Exception as error:
            signum = interrupts.pending_signal() or 0
            ended = isinstance(error, OtherProcessError) and not error.ended  # and torchrun sent the signal for it
            user_error = isinstance(error, RepsimError) and not ended
            if not signum or user_error:
                interrupts.wait_for_end()
                raise
            self._stop(signum, getattr(error, "__notes__", []))  # the terminal, or other processes, ended first
        if signum := interrupts.pending_signal():  # the signal came after the last step
            self._stop(signum, [], "Everything was done already.")
        return result

    def _stop(self, signum: int, notes: Sequence[str], advice: str | None = None) -> None:
        line = self._stop_message(signum, list(notes), advice)

        def print_line() -> None:
            try:
                if line:
                    echo(line, err=True)
            except OSError:  # after SIGHUP the terminal is gone
                sys.stderr = None  # otherwise the interpreter would fail to flush it at exit

        interrupts.print_last_line(print_line)
        raise SystemExit(interrupts.exit_code(signum)) from None

    def _stop_message(self, signum: int, notes: list[str], advice: str | None = None) -> str:
        if not is_first_process():
            return ""
        launched = "TORCHELASTIC_RUN_ID" in os.environ
        if advice is None:
            command = None if launched else _command_to_paste(self.typed)
            advice = _resume_advice(self.running, self.typed) + (f": {command}" if command else ".")
        kept = [note.problem if isinstance(note, Hint) else note for note in notes]  # the advice replaces the remedy
        return interrupts.stop_line(signum, kept, advice)


def _resume_advice(command: str, typed: Sequence[str]) -> str:
    """Describe what the same command would do; the text must hold at every moment of the run."""
    overwrite = "--overwrite" in typed
    saved = any(word.startswith(("-o", "--out")) for word in typed)
    nothing = "Nothing is kept without -o, so the same command starts again"
    return {
        "extract": "The same command starts again (--overwrite)" if overwrite else _RESUMES,
        "compare": _RESUMES if saved else nothing,
        "series": _RESUMES if saved else nothing,
        "universality": _RESUMES if saved else f"{nothing}; untrained networks that are extracted already are kept",
        "run": "The same command keeps the stores and starts the study again (--overwrite)"
        if overwrite
        else "The same command goes on: it keeps what is saved",
    }.get(command, "The same command starts again")


def _command_to_paste(typed: Sequence[str]) -> str | None:
    """Return the command quoted for a shell; None if it is unknown, unprintable or too long."""
    program = _program()
    line = None if program is None else shlex.join([*program, *typed])
    return line if line is not None and line.isprintable() and len(line) <= _MAX_COMMAND else None


def _program() -> list[str] | None:
    started, words = Path(sys.argv[0]), sys.orig_argv
    if started.name == "__main__.py" and ("-m", "repsim") in pairwise(words):
        return words[: words.index("-m") + 2]
    if started.name != "repsim":
        return None
    on_path = shutil.which("repsim")
    same = on_path is not None and started.exists() and Path(on_path).samefile(started)
    return ["repsim"] if same else [str(started)]
