"""Start two commands that write the same file, with a process that reads it all the time."""

import json
import os
import signal
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
import numpy as np

from durability.commands import MEASURES, TARGETS, Subject, content, prepare, remove, undisturbed, which
from durability.helpers import Fork, Report, relative, wait_until, workplace

REFUSED = "another process is writing "


@contextmanager
def reading(path: Path, wanted: Mapping[str, Any], counts: Counter[str], place: Path) -> Iterator[None]:
    """Read a file in a process of its own, as fast as possible, during the block, and count what it holds."""
    stop, result = place / "stop", place / "reads"
    pid = os.fork()
    if pid == 0:
        seen: Counter[str] = Counter()
        try:
            while not stop.exists():
                try:
                    value = content(path, path.parent)
                except FileNotFoundError:
                    value = "no such file"
                if value == wanted[path.name]:
                    seen["whole"] += 1
                else:
                    seen["no file" if str(value).startswith("no such file") else f"DAMAGED {str(value)[:80]}"] += 1
            result.write_text(json.dumps(seen))
        finally:
            os._exit(0)
    try:
        yield
    finally:
        stop.touch()
        os.waitpid(pid, 0)
        counts.update(json.loads(result.read_text()))
        stop.unlink()
        result.unlink()


def refused(code: int, stderr: str) -> bool:
    """Return whether a command ended in one line because another process writes the same file."""
    return code == 2 and stderr.count("\n") == 1 and stderr.startswith(f"Error: {REFUSED}")


def second_while_stopped(subject: Subject, rng: np.random.Generator) -> str:
    """Pause a command somewhere after its first file, and check that a second one is refused and changes nothing."""
    check, out, name = subject.report.check, subject.out, subject.name
    with subject.fork() as first:
        wait_until(lambda: out.exists() and relative(out), first, every=0.0005)
        wait_until(lambda: False, first, rng.uniform(0, 0.6 * subject.seconds))
        if not first.running():
            first.end()
            remove(out)
            return "late"
        os.kill(first.process.pid, signal.SIGSTOP)
        with subject.fork("stderr2") as second:
            try:
                code, _, stderr = second.end()
            finally:
                seconds = second.seconds
                os.kill(first.process.pid, signal.SIGCONT)
        ended, _, message = first.end()
    if ended == 0 and subject.exists_already(code, stderr):
        remove(out)
        return "late"  # the first had saved its file already
    check(refused(code, stderr), f"{name}: the second of two was not refused in one line: {code}: {stderr}")
    check(ended == 0, f"{name}: the first of two ended with {ended}: {message}")
    subject.check_finished("the first of two")
    return f"refused after {seconds:.1f} s"


def both(subject: Subject, rng: np.random.Generator) -> str:
    """Start two commands at random moments; one has to finish, and the other to finish or to be refused."""
    check, name = subject.report.check, subject.name
    with subject.fork() as first:
        time.sleep(rng.uniform(0, subject.seconds) if rng.random() < 0.5 else rng.uniform(0, 0.02))
        with subject.fork("stderr2") as second:
            ends = [first.end(), second.end()]
    words = []
    for code, _, stderr in ends:
        word = "finished" if code == 0 else "refused" if refused(code, stderr) else "WRONG"
        if word == "WRONG" and subject.exists_already(code, stderr):
            word = "exists"
        check(word != "WRONG", f"{name}: one of two ended with {code}: {stderr}")
        words.append(word)
    check("finished" in words, f"{name}: none of two finished: {ends}")
    subject.check_finished("two at random moments")
    return " and ".join(sorted(words))


def adding(report: Report, rng: np.random.Generator, place: Path, inputs: Path) -> str:
    """Add two measures to one result at the same time; both have to be there in the end."""
    out, stores = place / "grown", sorted(inputs.glob("*.h5"))[:4]
    target = out / "result.nc"
    out.mkdir()

    def words(*measures: str) -> list[object]:
        return ["compare", *stores, *measures, "-o", target]

    def finish(*measures: str) -> None:
        with Fork(words(*measures), place / "stderr") as job:
            code, _, stderr = job.end()
        report.check(code == 0, f"compare {measures}: {stderr}")

    finish(*MEASURES)
    wanted = content(target, target.parent)
    target.unlink()
    finish(*MEASURES[:2])
    outcomes = []
    with Fork(words(*MEASURES[2:4]), place / "stderr") as first:
        time.sleep(rng.uniform(0, 0.3))
        with Fork(words(*MEASURES[4:]), place / "stderr2") as second:
            ends = [first.end(), second.end()]
    for (code, _, stderr), measures in zip(ends, (MEASURES[2:4], MEASURES[4:]), strict=True):
        if refused(code, stderr):
            finish(*measures)
            outcomes.append("refused")
        else:
            report.check(code == 0, f"compare {measures}, of two: {code}: {stderr}")
            outcomes.append("added")
    held = content(target, target.parent)
    missing = [key for key in wanted if not key.startswith("attribute") and held.get(key) != wanted[key]]
    report.check(not missing, f"compare: of two that add measures, one has lost what the other added: {missing}")
    report.check([*map(str, relative(out))] == ["result.nc"], f"compare: left behind: {relative(out)}")
    remove(out)
    return " and ".join(sorted(outcomes))


@click.command()
@which
@click.option("--times", default=10, show_default=True, help="Number of pairs of each kind.")
@click.option("--seed", default=0, show_default=True, help="Seed of the random moments.")
def pairs(names: Sequence[str], times: int, seed: int) -> None:
    """Start two of the same command on one output, for each of COMMANDS, while a third process reads the output.

    First, a command is paused after its first file has appeared: the second has to be refused in one line, and the
    first to finish undisturbed. Then two start at random moments: one has to finish, and the other to finish as well,
    or to be refused. Then two add measures to one result: neither may lose what the other has added. The reader must
    never see a file that is not finished, and what is written must equal an undisturbed run.

    \b
    scripts/validation/torture pairs                        as in docs/durability.md
    scripts/validation/torture pairs compare --times 2      a quick test
    """
    report = Report(f"Pairs of processes, seed {seed}")
    with workplace() as place:
        inputs = prepare(place)
        for name in names:
            subject = undisturbed(name, report, inputs, place)
            rng = np.random.default_rng([seed, list(TARGETS).index(name)])
            paused: Counter[str] = Counter()
            started: Counter[str] = Counter()
            reads: Counter[str] = Counter()
            with reading(place / name / TARGETS[name], subject.wanted, reads, place):
                for _ in range(4 * times):
                    outcome = second_while_stopped(subject, rng)
                    paused[outcome.partition(" after")[0]] += 1
                    click.echo(f"{name}, the first is paused: {outcome}")
                    if paused["refused"] == times:
                        break
                for _ in range(times):
                    started[both(subject, rng)] += 1
            report.check(not any("DAMAGED" in what for what in reads), f"{name}: readers saw {reads}")
            texts = [", ".join(f"{count} {word}" for word, count in counts.items()) for counts in (paused, started)]
            seen = ", ".join(f"{count:,} {word}" for word, count in reads.items())
            report.table.add_row(name, f"paused: {texts[0]}; at random: {texts[1]}; readers: {seen}")
            if name == "compare":
                grown = Counter(adding(report, rng, place, inputs) for _ in range(times))
                text = ", ".join(f"{count} {word}" for word, count in grown.items())
                report.table.add_row("two that add measures", text)
    report.end()
