"""Run commands on disks with too little space, and again when there is space."""

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click
import numpy as np

from durability.commands import (
    TARGETS,
    arguments,
    contents,
    differences,
    exists_already,
    prepare,
    remove,
    tracebacks,
    undisturbed,
    which,
)
from durability.helpers import Fork, Report, fill_up, litter, mounted, workplace

SIZE = 16 * 2**20
"""Bytes of the file system; no command needs as much."""


@dataclass
class Case:
    """One command, on a small file system."""

    name: str
    report: Report
    place: Path
    inputs: Path
    small: Path
    wanted: dict[str, Any]
    outcomes: Counter[str] = field(default_factory=Counter)

    @property
    def out(self) -> Path:
        return self.small / "out"

    def call(self) -> tuple[int, str]:
        """Run the command; return exit code and stderr, which is on another disk."""
        with Fork(arguments(self.name, self.inputs, self.out), self.place / "stderr") as job:
            code, _, stderr = job.end()
        return code, stderr

    def with_space(self) -> int:
        """Run the command with enough space, check what it has written and remove it; return the bytes it needed."""
        arguments(self.name, self.inputs, self.out)  # writes the study file
        before = os.statvfs(self.small)
        code, stderr = self.call()
        needed = (before.f_bavail - os.statvfs(self.small).f_bavail) * before.f_bsize
        fine = code == 0 or exists_already(self.name, code, stderr, self.out)
        self.report.check(fine, f"{self.name}, with enough space: exit code {code}: {stderr}")
        names = differences(contents(self.out), self.wanted)
        self.report.check(not names, f"{self.name}, with enough space: it differs: {names}")
        remove(self.out)
        return needed

    def full(self, free: int) -> None:
        """Run the command twice with little space, and check that it ends in one line and leaves nothing."""
        arguments(self.name, self.inputs, self.out)
        filler, check, label = self.small / "filler", self.report.check, f"{self.name}, {free // 1024} KiB free"
        fill_up(filler)
        os.truncate(filler, max(0, filler.stat().st_size - free))
        for _ in range(2):
            code, stderr = self.call()
            errors = [line for line in stderr.splitlines() if line.startswith("Error:")]
            refused = (
                code == 2 and len(errors) == 1 and "No space left on device" in errors[0]
            ) or "the disk has" in stderr
            check(not tracebacks(stderr) and (refused or code == 0), f"{label}: exit code {code}: {stderr}")
            whole = contents(self.out, lambda name: name in self.wanted)
            names = differences(whole, {name: self.wanted[name] for name in whole})
            check(not names, f"{label}: files have their names and are not finished: {names}")
            check(not litter(self.out), f"{label}: left behind: {litter(self.out)}")
            self.outcomes["in one line" if code else "with enough space"] += 1
            click.echo(f"{label}: {code}: {errors[0] if errors else 'finished'}")
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
            wanted, _ = undisturbed(name, inputs, place)
            rng = np.random.default_rng([seed, list(TARGETS).index(name)])
            with mounted(place / f"disk-{name}", "tmpfs", SIZE) as small:
                case = Case(name, report, place, inputs, small, wanted)
                needed = case.with_space()
                for _ in range(times):
                    case.full(4096 * int(rng.uniform(0, 1) * needed / 4096))
                    case.with_space()
            text = ", ".join(f"{count} ended {how}" for how, count in case.outcomes.items())
            report.table.add_row(name, f"{times} disks, {needed / 1000:.0f} kB needed: {text}; then equal bit for bit")
    report.end()
