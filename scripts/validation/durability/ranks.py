"""Run commands in several processes of torchrun, with equal and with differing inputs."""

import json
import os
import signal
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import click
import numpy as np

from durability.commands import STUDY, Subject, arguments, contents, prepare, remove, tracebacks, undisturbed, which
from durability.helpers import Report, Run, wait_until, worker, workplace
from repsim.testing.examples import write_networks

DRIVER = """
import json, os, sys
from pathlib import Path
ranks = json.loads(Path(sys.argv[1]).read_text())
sys.argv[1:] = ranks[int(os.environ["RANK"])]
from repsim.__main__ import run
run()
"""
"""Program of every process, which gets the words of its own rank."""
STUDIES = {
    "models": ("seed: 3", "seed: 4"),
    "metrics": ("[cka]", "[cka, mutual_knn]"),
    "samples": ("limit: 64", "limit: 60"),
    "layers": ("blocks.*", "blocks.0"),
    "permutations": ("permutations: 19", "permutations: 20"),
}
"""Differences of study files: a text, and what is in its place in the last process."""


def variants(name: str, inputs: Path, other: Path, out: Path) -> dict[str, list[object]]:
    """Return the arguments of the last process by what differs in them."""
    words = arguments(name, inputs, out)
    if name == "run":
        cases: dict[str, list[object]] = {}
        for what, (old, new) in STUDIES.items():
            file = other / f"{what}.yaml"
            file.write_text(f"out: {out}\n{STUDY.replace(old, new)}")
            cases[what] = ["run", file]
        return cases
    elsewhere = [other / word.name if isinstance(word, Path) and word.parent == inputs else word for word in words]
    if name == "report":
        return {}  # only the first process makes the page
    fewer = [word for word in words if word != words[2]]
    at = words.index("mutual_knn")
    metrics = [*words[: at - 1], *words[at + 1 :]]
    cases = {"stores": elsewhere, "fewer stores": fewer, "metrics": metrics}
    if name == "compare":
        return cases | {"--interval": [*words, "--interval"], "--all": [*words[:3], *words[9:], "--all"]}
    return cases | {"--seed": [*words, "--seed", 5], "--family": [*words, "--family", "a=cnn*"]}


class Launch(Run):
    """torchrun, with the output of every process in a file of its own."""

    def __init__(self, place: Path, ranks: Sequence[Sequence[object]], restarts: int = 0) -> None:
        self.logs = place / f"logs{len(list(place.glob('logs*')))}"
        driver, words = place / "driver.py", place / "words.json"
        driver.write_text(DRIVER)
        words.write_text(json.dumps([[str(word) for word in rank] for rank in ranks]))
        options = [f"--nproc-per-node={len(ranks)}", f"--max-restarts={restarts}", "--log-dir", self.logs]
        launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--redirects=3"]
        super().__init__([*launch, *options, driver, words])

    def texts(self, stream: str = "stderr") -> list[str]:
        """Return what the processes have written to stderr or stdout, in the order of attempts and ranks."""
        return [path.read_text() for path in sorted(self.logs.glob(f"*/attempt_*/*/{stream}.log"))]


def differing(subject: Subject, what: str, world: int, last: Sequence[object]) -> str:
    """Run a command whose last process differs; check that it ends with one error and without a file."""
    label, check = f"{subject.name}, {world} processes, the last has other {what}", subject.report.check
    with Launch(subject.place, [*[subject.words] * (world - 1), last]) as job:
        code, _, stderr = job.end()
        texts, seconds = job.texts(), job.seconds
    errors = [line for text in texts for line in text.splitlines() if line.startswith("Error:")]
    shown = "\n".join(texts) or stderr
    check(code and len(errors) == 1, f"{label}: exit code {code}, {len(errors)} errors: {shown}")
    check(not any(map(tracebacks, texts)), f"{label}: {shown}")
    left = sorted(name for name in contents(subject.out) if not name.startswith("acts/"))
    check(not left, f"{label}: it has written {left}")
    click.echo(f"{label}, {seconds:.0f} s: {errors[0] if errors else shown}")
    remove(subject.out)
    return f"other {what}" if errors else "WRONG"


def equal(subject: Subject, world: int) -> None:
    """Run a command in several equal processes, and compare its files with those of the plain command."""
    with Launch(subject.place, [subject.words] * world) as job:
        code, _, stderr = job.end()
        texts, printed, seconds = job.texts(), job.texts("stdout"), job.seconds
    label = f"{world} equal processes"
    subject.report.check(code == 0, f"{subject.name}, {label}: exit code {code}: {texts or stderr}")
    only_first = len(printed) == world and printed[0] and not any(printed[1:])
    subject.report.check(only_first, f"{subject.name}, {label}: not only the first has printed a result: {printed}")
    subject.check_finished(label)
    click.echo(f"{subject.name}, {label}, {seconds:.0f} s: {code}")


def dying(subject: Subject, world: int) -> None:
    """Kill the last process as soon as there is a file; torchrun starts all of them again."""
    with Launch(subject.place, [subject.words] * world, restarts=2) as job:
        killed = wait_until(lambda: contents(subject.out, lambda name: not name.startswith(".")), job)
        if killed:
            os.kill(worker(job, world - 1), signal.SIGKILL)
        code, _, stderr = job.end()
        texts = job.texts()
    label = f"one of {world} processes killed"
    subject.report.check(killed and code == 0, f"{subject.name}, {label}: exit code {code}: {texts or stderr}")
    subject.check_finished(label)
    click.echo(f"{subject.name}, {label}: {code}")


@click.command()
@which
@click.option("--ranks", "worlds", multiple=True, default=[2, 3], show_default=True, help="Numbers of processes.")
def ranks(names: Sequence[str], worlds: Sequence[int]) -> None:
    """Run COMMANDS with torchrun, with equal and with differing arguments of its processes; kill one process.

    With equal arguments the folder has to equal that of the plain command. If the last process has other stores,
    metrics or options, all have to end, with one error of the first, and without any file. If one process is killed,
    torchrun starts all of them again, and the folder has to equal that of the plain command.

    \b
    scripts/validation/torture ranks                        as in docs/durability.md
    scripts/validation/torture ranks compare --ranks 2      a quick test
    """
    report = Report("Processes of torchrun")
    with workplace() as place:
        inputs, other = prepare(place), place / "other"
        other.mkdir()
        for store in write_networks(other, np.random.default_rng(1), 60, learned=0.7, seen=0.5, depth=4):
            store.close()
        for name in names:
            subject, refused = undisturbed(name, report, inputs, place), Counter[str]()
            for world in worlds:
                equal(subject, world)
                if name != "report":
                    dying(subject, world)
                for what, last in variants(name, inputs, other, subject.out).items():
                    refused[differing(subject, what, world, last)] += 1
            text = ", ".join(f"{count} with {what}" for what, count in refused.items())
            row = f"equal; refused: {text}" if text else "equal"
            report.table.add_row(f"{name}, {', '.join(map(str, worlds))} processes", row)
    report.end()
