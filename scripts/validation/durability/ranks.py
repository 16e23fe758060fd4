"""Run commands in several processes of torchrun, with equal and with differing inputs."""

import json
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

import click
import numpy as np

from durability.commands import (
    STUDY,
    arguments,
    contents,
    differences,
    prepare,
    remove,
    tracebacks,
    undisturbed,
    which,
)
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
        return {"study": elsewhere}
    fewer = [word for word in words if word != words[2]]
    metrics = [word for word in words if word != "mutual_knn"]
    del metrics[metrics.index("-o") - 1]  # its -m
    cases = {"stores": elsewhere, "fewer stores": fewer, "metrics": metrics}
    if name == "compare":
        return cases | {"--interval": [*words, "--interval"], "--all": [*words[:3], *words[9:], "--all"]}
    return cases | {"--seed": [*words, "--seed", 5], "--controls": [*words, "--family", "a=cnn*"]}


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

    def texts(self) -> list[str]:
        """Return what the processes have written to stderr, without warnings of torch."""
        return [path.read_text() for path in sorted(self.logs.glob("*/attempt_*/*/stderr.log"))]


def differing(
    name: str, what: str, report: Report, place: Path, ranks: Sequence[Sequence[object]], out: Path
) -> str:  # fmt: skip
    """Run a command whose processes differ; check that it ends with one error and without a file."""
    label = f"{name}, {len(ranks)} processes, the last has other {what}"
    with Launch(place, ranks) as job:
        code, _, stderr = job.end()
        texts, seconds = job.texts(), job.seconds
    errors = [line for text in texts for line in text.splitlines() if line.startswith("Error:")]
    shown = "\n".join(texts) or stderr
    report.check(code and len(errors) == 1, f"{label}: exit code {code}, {len(errors)} errors: {shown}")
    report.check(not any(map(tracebacks, texts)), f"{label}: {shown}")
    left = sorted(contents(out))
    report.check(not left, f"{label}: it has written {left}")
    click.echo(f"{label}, {seconds:.0f} s: {errors[0] if errors else shown}")
    remove(out)
    return errors[0].partition("differ: ")[2].partition(" than")[0] if errors else "WRONG"


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
        (other / "page.nc").write_bytes((inputs / "page.nc").read_bytes())
        for name in names:
            wanted, _ = undisturbed(name, inputs, place)
            out, refused = place / name, []
            for world in worlds:
                words = arguments(name, inputs, out)
                equal(name, report, place, [words] * world, out, wanted)
                if name != "report":
                    dying(name, report, place, [words] * world, out, wanted)
                for what, last in variants(name, inputs, other, out).items():
                    words = arguments(name, inputs, out)
                    refused.append(differing(name, what, report, place, [words] * (world - 1) + [last], out))
            report.table.add_row(f"{name}, {', '.join(map(str, worlds))} processes", "; ".join(refused))
    report.end()


def equal(
    name: str, report: Report, place: Path, ranks: Sequence[Sequence[object]], out: Path, wanted: dict[str, object]
) -> None:
    """Run a command in several equal processes, and compare its files with those of the plain command."""
    with Launch(place, ranks) as job:
        code, _, stderr = job.end()
        texts, seconds = job.texts(), job.seconds
    report.check(code == 0, f"{name}, {len(ranks)} processes: exit code {code}: {texts or stderr}")
    left = differences(contents(out), wanted)
    report.check(not left, f"{name}, {len(ranks)} processes: it differs from the plain command: {left}")
    click.echo(f"{name}, {len(ranks)} equal processes, {seconds:.0f} s: {left or 'equal'}")
    remove(out)


def dying(
    name: str, report: Report, place: Path, ranks: Sequence[Sequence[object]], out: Path, wanted: dict[str, object]
) -> None:
    """Kill the last process as soon as there is a file; torchrun starts all of them again."""
    with Launch(place, ranks, restarts=2) as job:
        killed = wait_until(lambda: contents(out, lambda name: not name.startswith(".")), job)
        if killed:
            os.kill(worker(job, len(ranks) - 1), signal.SIGKILL)
        code, _, stderr = job.end()
        texts = job.texts()
    label = f"{name}, one of {len(ranks)} processes killed"
    report.check(killed and code == 0, f"{label}: exit code {code}: {texts or stderr}")
    left = differences(contents(out), wanted)
    report.check(not left, f"{label}: it differs from the plain command: {left}")
    click.echo(f"{label}: {left or 'equal'}")
    remove(out)
