"""Stop commands by signals at random moments, run them again, and compare their files with undisturbed ones."""

import os
import re
import signal
import statistics
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import click
import numpy as np

from durability.commands import TARGETS, Subject, prepare, tracebacks, undisturbed, which
from durability.helpers import REPSIM, Report, Run, litter, relative, wait_until, workplace
from repsim.runtime.files import partial_path

CODES = {signal.SIGTERM: 143, signal.SIGHUP: 129, signal.SIGINT: 130, signal.SIGKILL: -9}
"""Signals, each with the exit code of a command that it has ended."""
SHORT = {
    "compare": ["result.nc.parts/lock", "result.nc.partial", "result.nc"],
    "universality": ["study.nc.parts/lock", "study.nc.partial", "study.nc"],
    "run": ["study.nc.partial", "study.nc", "study.yaml.partial", "figures/map.png.partial", "report.html.partial"],
    "report": [".report.html.lock", "report.html.partial", "report.html"],
}
"""Files whose appearance is followed by steps of milliseconds, at which half of the signals are aimed."""


def stage(folder: Path, name: str) -> str:
    """Return the step that was interrupted, from the files in the folder."""
    names = {str(path) for path in relative(folder)} if folder.exists() else set()
    target = TARGETS[name]
    if not names:
        return "before the first file"
    if any(path.endswith(".h5.partial") for path in names):
        return "extracting"
    if name == "run" and target in names:
        return "after the last file" if "report.html" in names else "drawing"
    if str(partial_path(Path(target))) in names:
        return "saving"
    if target in names and f".{target}.lock" not in names:  # a page is made again although it exists
        return "after the last file"
    return "computing" if any(path.endswith(".part") for path in names) else "before the first part"


def changed(path: Path) -> tuple[int, int]:
    """Return what is different when a file has appeared, or was replaced."""
    try:
        status = path.stat()
    except OSError:
        return 0, 0
    return status.st_ino, status.st_mtime_ns


@dataclass
class Case:
    """State of a command that is stopped repeatedly, with the files of undisturbed runs as reference."""

    subject: Subject
    rng: np.random.Generator
    signals: Sequence[int]
    phases: Counter[str] = field(default_factory=Counter)
    seconds: list[float] = field(default_factory=list)
    """Seconds from each signal to the end of the process."""
    finished: int = 0
    late: int = 0

    @property
    def done(self) -> int:
        return len(self.seconds)

    @property
    def complete(self) -> bool:
        """Whether the last file of `universality` is there, which the same command would refuse to replace."""
        name = self.subject.name
        return name == "universality" and (self.subject.out / TARGETS[name]).exists()

    def finish(self, code: int, stderr: str, *, complete: bool = False) -> None:
        """Check that a run that was not stopped has the files of the undisturbed run, and no others."""
        subject, label = self.subject, f"after signal {self.done}"
        fine = code == 0 or (complete and subject.exists_already(code, stderr))
        ended = f"{subject.name}, {label}: a run that was not stopped ended with {code}: {stderr}"
        subject.report.check(fine and not tracebacks(stderr), ended)
        subject.check_finished(label)
        self.finished += 1

    def aim(self, job: Run) -> None:
        """Wait for the moment of the signal, but at least until the interpreter handles signals."""
        status = Path(f"/proc/{job.process.pid}/status")
        caught = re.compile(r"SigCgt:\s*(\w+)")
        if set(self.signals) != {signal.SIGKILL}:
            wait_until(lambda: (m := caught.search(status.read_text())) and int(m[1], 16) >> 14 & 1, job)
        if self.rng.random() < 0.5:
            wait_until(lambda: False, job, self.rng.uniform(0, self.subject.seconds))
        else:
            path = self.subject.out / str(self.rng.choice(SHORT[self.subject.name]))
            before = changed(path)
            wait_until(lambda: changed(path) != before, job, every=0.0002)
            time.sleep(self.rng.uniform(0, 0.005))

    def stop(self, signum: int, *, plain: bool) -> None:
        """Start the command and send a signal, unless the command ends before."""
        subject = self.subject
        out, before = subject.out, litter(subject.out)
        with Run([*REPSIM, *subject.words]) if plain else subject.fork() as job:
            self.aim(job)
            running = job.running()
            if running:
                step = stage(out, subject.name)  # a command that ends properly removes its temporary files
                if signum == signal.SIGKILL:
                    running = job.kill()
                else:
                    os.kill(job.process.pid, signum)
            code, _, stderr = job.end()
        if not running or code == 0:  # all work was done
            self.late += 1
            self.finish(code, stderr)
            return
        self.seconds.append(job.waited)
        if signum == signal.SIGKILL:
            step = stage(out, subject.name)
        self.phases[step] += 1
        label = f"{signal.Signals(signum).name} {self.done}: {step}"
        click.echo(f"{subject.name}, {label}; ended in {self.seconds[-1]:.2f} s")
        self.judge(f"{subject.name}, {label}", signum, code, stderr)
        if signum != signal.SIGKILL:
            left = litter(out) - before  # a later run removes the temporary files that a kill leaves
            subject.report.check(not left, f"{subject.name}, {label}: left behind: {left}")
        subject.check_unfinished(label)

    def judge(self, label: str, signum: int, code: int, stderr: str) -> None:
        """Check the exit code and that stderr has exactly one line about the signal."""
        check, lines = self.subject.report.check, stderr.splitlines()
        check(code == CODES[signal.Signals(signum)], f"{label}: exit code {code}: {stderr}")
        check(not tracebacks(stderr) and "Aborted" not in stderr, f"{label}: {stderr}")
        if signum != signal.SIGKILL:
            check(sum(line.startswith("Stopped by") for line in lines) == 1, f"{label}: not one line: {stderr}")
            last = lines[-1] if lines else ""
            check(last.startswith(f"Stopped by {signal.Signals(signum).name}"), f"{label}: not at the end: {stderr}")


def stop_commands(title: str, names: Sequence[str], signals: Sequence[int], count: int, seed: int) -> None:
    """Stop each of the commands ``count`` times, and print the table."""
    for signum in CODES:  # commands inherit ignored signals, such as those of a background process
        if signum != signal.SIGKILL:
            signal.signal(signum, signal.SIG_DFL)
    report = Report(f"{count} {title} of each command, seed {seed}")
    with workplace() as place:
        inputs = prepare(place)
        for name in names:
            subject = undisturbed(name, report, inputs, place)
            rng = np.random.default_rng([seed, list(TARGETS).index(name)])
            case, tries = Case(subject, rng, signals), 0
            while case.done < count or subject.out.exists():
                if case.done >= count or case.complete or (subject.out.exists() and rng.random() < 1 / 3):
                    complete = case.complete
                    case.finish(*subject.run(), complete=complete)
                else:
                    tries += 1
                    case.stop(signals[case.done % len(signals)], plain=tries % 6 == 0)
            steps = ", ".join(f"{times} {step}" for step, times in case.phases.most_common())
            ended = f"{statistics.median(case.seconds):.1f} s, at most {max(case.seconds):.1f} s"
            finished = f"{case.finished} runs finished, {case.late} of them before their signal came"
            report.table.add_row(name, f"{case.done}: {steps}; ended after {ended}; {finished}")
    report.end()


@click.command()
@which
@click.option("--kills", default=50, show_default=True, help="Number of kills of each command.")
@click.option("--seed", default=0, show_default=True, help="Seed of the random moments.")
def kills(names: Sequence[str], kills: int, seed: int) -> None:
    """Send SIGKILL to COMMANDS at random moments, and run each again until it finishes.

    Half of the moments are uniform over the time of a run. The others follow directly after a lock, a temporary file
    or the finished file has appeared. One run in three is not stopped: then the folder must equal that of an
    undisturbed run, bit for bit except for dates, with no other file in it. After every kill, all files that have their
    final names must be complete. Every sixth command is a new process; the others are forks of this one.

    \b
    scripts/validation/torture kills                     as in docs/durability.md
    scripts/validation/torture kills compare --kills 3   a quick test
    """
    stop_commands("kills", names, [signal.SIGKILL], kills, seed)


@click.command()
@which
@click.option("--count", default=50, show_default=True, help="Number of signals to each command.")
@click.option("--seed", default=0, show_default=True, help="Seed of the random moments.")
def stops(names: Sequence[str], count: int, seed: int) -> None:
    """Send SIGTERM, SIGHUP and SIGINT in turn to COMMANDS, and run each again until it finishes.

    As `kills`. In addition, a signal must give one line and its exit code, and must leave no temporary files except
    stores that the next run continues.

    \b
    scripts/validation/torture stops                     as in docs/durability.md
    scripts/validation/torture stops run --count 6       a quick test
    """
    stop_commands("signals", names, [signum for signum in CODES if signum != signal.SIGKILL], count, seed)
