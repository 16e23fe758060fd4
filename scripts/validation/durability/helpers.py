"""Helpers of the durability tests: processes that are killed, small file systems, and the report of what went wrong."""

import errno
import os
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, Self

import click
from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parents[3]
REPSIM = [sys.executable, "-m", "repsim"]
PATIENCE = 300.0
"""Seconds after which a command counts as hanging; those in which this process was stopped, too, do not count."""


# Processes


class Run:
    """A command that runs in a process group of its own; a context manager that ends all its processes."""

    process: "subprocess.Popen[str] | Child"
    waited = 0.0
    """Seconds for which `wait` has waited. Those in which this process was stopped as well count as one."""

    def __init__(self, command: Sequence[object], threads: int = 1) -> None:
        environment = os.environ | {"OMP_NUM_THREADS": str(threads), "PYTHONPATH": str(ROOT)}
        self._files = tempfile.TemporaryFile("w+"), tempfile.TemporaryFile("w+")  # noqa: SIM115 - closed in __exit__
        self.started = time.monotonic()
        self.process = subprocess.Popen(
            list(map(str, command)), stdout=self._files[0], stderr=self._files[1], env=environment,
            start_new_session=True, text=True,
        )  # fmt: skip

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.started

    def running(self) -> bool:
        return self.process.poll() is None

    def kill(self) -> bool:
        """Send SIGKILL to all processes, and return whether the command was still running."""
        child_ids = list(children(self.process.pid))  # children of torchrun have process groups of their own
        os.killpg(self.process.pid, signal.SIGKILL)
        for pid in child_ids:
            with suppress(ProcessLookupError):
                os.killpg(os.getpgid(pid), signal.SIGKILL)
        return self.wait() == -signal.SIGKILL

    def wait(self) -> int:
        """Wait until the process ends, at most PATIENCE seconds, and return its exit code."""
        before = time.monotonic()
        for _ in range(int(PATIENCE / 0.002)):
            if (code := self.process.poll()) is not None:
                return code
            time.sleep(0.002)
            before, last = time.monotonic(), before
            self.waited += min(before - last, 1.0)
        raise subprocess.TimeoutExpired(f"process {self.process.pid}", PATIENCE)

    def end(self) -> tuple[int, str, str]:
        """Wait for the end, at most PATIENCE seconds; return exit code, stdout and stderr."""
        code = self.wait()
        texts = []
        for file in self._files:
            file.seek(0)
            texts.append(file.read())
        return code, texts[0], texts[1]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self.running():
            self.kill()
        for file in self._files:
            file.close()


def children(parent: int) -> Iterator[int]:
    """Yield the process ids of the children of a process, from Linux's /proc."""
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            if int(path.read_text().rpartition(")")[2].split()[1]) == parent:
                yield int(path.parent.name)


def run(*command: object, threads: int = 1) -> tuple[int, str, str]:
    """Run a command; return exit code, stdout and stderr."""
    with Run(command, threads) as job:
        return job.end()


def wait_until(condition: Any, job: Run, seconds: float = PATIENCE, every: float = 0.002) -> bool:
    """Return whether the condition became true while the command was running."""
    end = time.monotonic() + seconds
    while job.running() and time.monotonic() < end:
        if condition():
            return True
        time.sleep(every)
    return False


class Fork(Run):
    """`repsim` in a fork of this process, which has already imported all modules; this saves the time of imports.

    Signals, messages and exit code are those of the command; the shutdown of the interpreter is left out.
    """

    def __init__(self, words: Sequence[object], log: Path) -> None:
        self.started, self.process, self._log = time.monotonic(), Child(os.fork()), log
        if self.process.pid == 0:
            self._command(list(map(str, words)))

    def _command(self, words: list[str]) -> NoReturn:
        code = 1
        try:
            os.setsid()
            for number in (1, 2):
                os.dup2(os.open(self._log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND, 0o666), number)
            sys.argv = ["repsim", *words]
            from repsim.__main__ import run as command  # noqa: PLC0415

            command()
        except SystemExit as end:
            code = int(end.code or 0)
        except BaseException:  # noqa: BLE001
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            os._exit(code)

    def end(self) -> tuple[int, str, str]:
        code = self.wait()
        return code, "", self._log.read_text()

    def __exit__(self, *_: object) -> None:
        if self.running():
            self.kill()


@dataclass
class Child:
    """A forked process with the methods of `subprocess.Popen` that are used here."""

    pid: int
    returncode: int | None = None

    def poll(self) -> int | None:
        if self.returncode is None and (ended := os.waitpid(self.pid, os.WNOHANG))[0]:
            self.returncode = os.waitstatus_to_exitcode(ended[1])
        return self.returncode


def torchrun(ranks: int, restarts: int = 0) -> list[str]:
    launch = ["--standalone", f"--nproc-per-node={ranks}", f"--max-restarts={restarts}", "-m", "repsim"]
    return [sys.executable, "-m", "torch.distributed.run", *launch]


def worker(job: Run, rank: int) -> int:
    """Return the process id of one rank that torchrun has started."""
    return next(
        pid
        for pid in children(job.process.pid)
        if f"RANK={rank}".encode() in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    )


def messages(stderr: str) -> list[str]:
    """Return the lines that repsim wrote, without those of torchrun."""
    return [
        line for line in stderr.splitlines() if line.startswith(("Error:", "skipped", "note:")) or ": going on" in line
    ]


# Reports


class Report:
    """Errors and result table of one command."""

    def __init__(self, title: str) -> None:
        self.table = Table("", "", title=title, title_justify="left", show_header=False)
        self.wrong: list[str] = []

    def check(self, good: object, what: str) -> bool:
        if not good:
            self.wrong.append(what)
            click.secho(f"WRONG: {what}", fg="red")
        return bool(good)

    def end(self) -> None:
        Console(width=120).print(self.table)
        for what in self.wrong:
            click.secho(f"WRONG: {what}", fg="red")
        if self.wrong:
            raise SystemExit(1)


@contextmanager
def workplace() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="torture-") as folder:
        yield Path(folder)


def one_line(report: Report, what: str, ended: tuple[int, str, str], *words: str) -> None:
    """Check that a command ended with code 2 and one line on stderr, and add the line to the table."""
    code, out, stderr = ended
    lines = [line for line in stderr.splitlines() if ": going on after" not in line]
    report.check(code == 2, f"{what}: exit code {code}")
    report.check(len(lines) == 1 and not out, f"{what}: not one line: {out}{stderr}")
    report.check(all(word in stderr for word in words), f"{what}: {words} not in: {stderr}")
    report.table.add_row(what, " ".join(lines))


def relative(folder: Path) -> list[Path]:
    return [path.relative_to(folder) for path in folder.rglob("*") if path.is_file()]


def litter(folder: Path) -> set[str]:
    """Return the temporary files and locks that a later run would not use."""
    names = map(str, relative(folder)) if folder.exists() else ()
    return {name for name in names if name.endswith((".partial", ".lock")) and not name.endswith(".h5.partial")}


# Small file systems


@contextmanager
def mounted(place: Path, kind: str, size: int = 50 * 2**20) -> Iterator[Path]:
    """Mount a small file system: in memory (tmpfs), or ext4 in a file, which turns read-only after an error."""
    place.mkdir()
    mount: list[str | Path]
    if kind == "tmpfs":
        mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", place]
    else:
        disk = place.with_suffix(".ext4")
        with disk.open("wb") as file:
            file.truncate(size)
        subprocess.run(["mkfs.ext4", "-q", "-m0", "-F", disk], check=True)
        mount = ["mount", "-o", "loop,errors=remount-ro", disk, place]
    subprocess.run(mount, check=True)
    try:
        yield place
    finally:
        subprocess.run(["umount", place], check=True)


def remount(place: Path, how: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{how}", place], check=True)


def fill_up(path: Path) -> None:
    """Fill the remaining space of the disk, as another program would."""
    with path.open("wb", buffering=0) as file:
        for size in (2**20, 4096, 512):
            try:
                while True:
                    file.write(bytes(size))
                    os.fsync(file.fileno())
            except OSError as error:
                if error.errno != errno.ENOSPC:
                    raise
