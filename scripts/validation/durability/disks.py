"""Run commands on disks with too little space, and again when there is space."""

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import click
import numpy as np

from durability.commands import TARGETS, Subject, prepare, tracebacks, undisturbed, which
from durability.helpers import Report, fill_up, litter, mounted, wait_until, workplace

SIZE = 16 * 2**20
"""Bytes of the file system; no command needs as much."""


@dataclass(frozen=True)
class OnDisk(Subject):
    """Command that writes on another disk than that of its input and its messages."""

    disk: Path

    @property
    def out(self) -> Path:
        return self.disk / "out"


def with_space(subject: Subject) -> int:
    """Run the command with enough space, check what it has written and remove it; return the most bytes it needed."""
    _ = subject.words  # writes the study file
    before = os.statvfs(subject.out.parent)
    free = [before.f_bavail]
    with subject.fork() as job:
        wait_until(lambda: free.append(os.statvfs(subject.out.parent).f_bavail), job)
        code, _, stderr = job.end()
    needed = (before.f_bavail - min(free)) * before.f_bsize
    fine = code == 0 or subject.exists_already(code, stderr)
    subject.report.check(fine, f"{subject.name}, with enough space: exit code {code}: {stderr}")
    subject.check_finished("with enough space")
    return needed


def full(subject: Subject, free: int, outcomes: Counter[str]) -> None:
    """Run the command twice with little space, and check that it ends in one line and leaves nothing."""
    _ = subject.words  # writes the study file
    filler, check, label = subject.out.parent / "filler", subject.report.check, f"{free // 1024} KiB free"
    fill_up(filler)
    os.truncate(filler, max(0, filler.stat().st_size - free))
    for _ in range(2):
        code, stderr = subject.run()
        errors = [line for line in stderr.splitlines() if line.startswith("Error:")]
        one = code == 2 and len(errors) == 1 and ("No space left" in errors[0] or "the disk has" in errors[0])
        ended = f"{subject.name}, {label}: exit code {code}: {stderr}"
        check(not tracebacks(stderr) and (one or code == 0), ended)
        subject.check_unfinished(label)
        check(not litter(subject.out), f"{subject.name}, {label}: left behind: {litter(subject.out)}")
        outcomes["ended in one line" if code else "had enough space"] += 1
        click.echo(f"{subject.name}, {label}: {code}: {errors[0] if errors else 'finished'}")
        if code == 0:
            break
    filler.unlink()


@click.command()
@which
@click.option("--times", default=15, show_default=True, help="Number of full disks for each command.")
@click.option("--seed", default=0, show_default=True, help="Seed of the amounts of free space.")
def disks(names: Sequence[str], times: int, seed: int) -> None:
    """Run COMMANDS on a file system in memory that is nearly full, and again when it is not. Needs root, for mount.

    The free space is a random share of what the command needs. It has to end with one line and exit code 2, without a
    file that is not finished. The same command is tried again while the disk is full. With free space it has to finish,
    and the folder to equal that of an undisturbed run.

    \b
    scripts/validation/torture disks                        as in docs/durability.md
    scripts/validation/torture disks report --times 2       a quick test
    """
    if os.geteuid():
        raise click.ClickException("only root may mount file systems: sudo scripts/validation/torture disks")
    report = Report(f"Full disks, seed {seed}")
    with workplace() as place:
        inputs = prepare(place)
        for name in names:
            rng = np.random.default_rng([seed, list(TARGETS).index(name)])
            elsewhere, outcomes = undisturbed(name, report, inputs, place), Counter[str]()
            with mounted(place / f"disk-{name}", "tmpfs", SIZE) as small:
                subject = OnDisk(**vars(elsewhere), disk=small)
                needed = with_space(subject)
                for _ in range(times):
                    full(subject, 4096 * int(rng.uniform(0, 1) * needed / 4096), outcomes)
                    with_space(subject)
            text = ", ".join(f"{count} {how}" for how, count in outcomes.items())
            report.table.add_row(name, f"{times} disks, {needed / 1000:.0f} kB needed: {text}; then equal bit for bit")
    report.end()
