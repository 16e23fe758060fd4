"""Commands that the durability tests disturb: their input, their arguments, and the contents of what they write."""

import importlib
import pkgutil
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np

import repsim.metrics
from durability.helpers import Fork, Report, relative
from durability.stores import bits
from repsim.errors import StoreError
from repsim.results.files import open_result_or_study
from repsim.testing.examples import write_networks

TARGETS = {"compare": "result.nc", "universality": "study.nc", "run": "study.nc", "report": "report.html"}
"""Commands, each with the file in its folder that is locked while it runs."""
MEASURES = ["-m", "cka", "-m", "procrustes", "-m", "mutual_knn"]
STUDY = """\
models: [digits_vit.seed0, {name: digits_vit, weights: random, seed: 3}, digits_vit.seed1]
data: {source: digits, split: test, limit: 64}
layers: blocks.*
metrics: [cka]
batch_size: 4
together: 1
permutations: 19
draws: 20
"""
DATES = {"created", "command"}
"""Attributes that may differ between two runs: the date, and the path in the command."""
DATE = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(\+00:00|Z)?|\"[0-9a-f]{8}\"")
"""A date, or the checksum of a store, which covers the date in it."""


def prepare(place: Path) -> Path:
    """Write the input of all commands, and import what they need, so that their forks need not."""
    for name in (
        "repsim.cli",
        "repsim.extraction",
        "repsim.pipeline",
        "plotly.offline",
        "repsim.extractors.timm_models",
    ):
        importlib.import_module(name)
    for module in pkgutil.iter_modules(repsim.metrics.__path__):
        importlib.import_module(f"repsim.metrics.{module.name}")
    inputs = place / "inputs"
    inputs.mkdir()
    for store in write_networks(inputs, np.random.default_rng(0), 60, learned=0.7, seen=0.5, depth=4):
        store.close()
    words = ["universality", *sorted(inputs.glob("*.h5")), "-m", "cka", "--permutations", 99, "-o", inputs / "page.nc"]
    with Fork(words, place / "stderr") as job:  # no work in this process: threads of torch do not survive a fork
        code, _, stderr = job.end()
    if code:
        raise click.ClickException(f"the input cannot be made: {stderr}")
    shutil.rmtree(inputs / "page.nc.parts")
    return inputs


def arguments(name: str, inputs: Path, out: Path) -> list[object]:
    """Return the arguments of a command that writes into the folder ``out``, and only there."""
    stores = sorted(inputs.glob("*.h5"))
    target = out / TARGETS[name]
    if name == "compare":
        return ["compare", *stores, *MEASURES, "-o", target]
    if name == "universality":
        return ["universality", *stores[:4], "-m", "cka", "-m", "mutual_knn", "--permutations", 19, "-o", target]
    if name == "report":
        return ["report", inputs / "page.nc", "-o", target, "--overwrite"]
    file = out.with_suffix(".yaml")
    if not file.exists():
        file.write_text(STUDY)
    return ["run", file]


def contents(folder: Path, only: Callable[[str], bool] = lambda _: True) -> dict[str, Any]:
    """Return the contents of all files by name, without dates; they are equal however often a command is stopped.

    The names of parts depend on the checksums of stores, which `run` makes anew: its parts have one entry, "parts".
    """
    names = {str(path): folder / path for path in relative(folder)} if folder.exists() else {}
    values = {name: content(path, folder) for name, path in sorted(names.items()) if only(name)}
    if (folder / "acts").exists():
        parts = [values.pop(name) for name in list(values) if name.endswith(".part")]
        values |= {"parts": sorted(parts)} if parts else {}
    return values


def content(path: Path, folder: Path) -> Any:
    """Return what is in a file, without dates and the name of its folder: arrays to the bit. It is an error if damaged.

    ``folder`` is the one into which the command writes.
    """

    def plain(text: str) -> str:
        return DATE.sub("DATE", text).replace(str(folder), "FOLDER")

    if path.suffix == ".nc":
        try:
            data = open_result_or_study(path)
        except StoreError as error:
            return str(error)
        values: dict[str, Any] = {
            str(name): (variable.dims, str(variable.dtype), variable.values.tobytes())
            for name, variable in data.variables.items()
        }
        texts = {key: plain(str(value)) for key, value in data.attrs.items() if key not in DATES}
        return values | {f"attribute {key}": value for key, value in texts.items()}
    if path.suffix == ".h5":
        return bits(path)
    if path.suffix == ".html":
        return plain(path.read_text("utf-8"))
    return path.read_bytes()


def differences(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """Return the names of the files that differ, and of the values in them."""
    names = []
    for name in sorted({*one, *other}):
        a, b = one.get(name), other.get(name)
        if isinstance(a, dict) and isinstance(b, dict):
            names += [f"{name}: {key}" for key in sorted({*a, *b}) if a.get(key) != b.get(key)]
        elif a != b:
            names.append(f"{name} is {'missing' if a is None else 'left over' if b is None else 'different'}")
    return names


@dataclass(frozen=True)
class Subject:
    """One command that is disturbed, with what undisturbed runs of it have written."""

    name: str
    report: Report
    place: Path
    """Folder of everything."""
    inputs: Path
    wanted: dict[str, Any]
    """Contents of the files that it has to write."""
    seconds: float

    @property
    def out(self) -> Path:
        return self.place / self.name

    @property
    def words(self) -> list[object]:
        return arguments(self.name, self.inputs, self.out)

    def fork(self, log: str = "stderr") -> Fork:
        return Fork(self.words, self.place / log)

    def run(self) -> tuple[int, str]:
        """Run the command to its end; return exit code and stderr."""
        with self.fork() as job:
            code, _, stderr = job.end()
        return code, stderr

    def exists_already(self, code: int, stderr: str) -> bool:
        """Return whether the command was refused in one line because an earlier run has finished the file."""
        target = self.out / TARGETS[self.name]
        one = stderr.count("\n") == 1 and f"{target.name} exists; use --overwrite" in stderr
        return self.name == "universality" and code == 2 and one and target.exists()

    def check_finished(self, what: str) -> None:
        """Check that all files are those of an undisturbed run, and that there are no others; remove them."""
        names = differences(contents(self.out), self.wanted)
        self.report.check(not names, f"{self.name}, {what}: it differs from an undisturbed run: {names}")
        remove(self.out)

    def check_unfinished(self, what: str) -> None:
        """Check that files with their final names are those of an undisturbed run, as far as they are there."""
        whole = contents(self.out, lambda name: name in self.wanted)
        names = differences(whole, {name: self.wanted[name] for name in whole})
        self.report.check(not names, f"{self.name}, {what}: files have their names and are not finished: {names}")


def undisturbed(name: str, report: Report, inputs: Path, place: Path) -> Subject:
    """Run a command twice without disturbing it, and return what it has written."""
    runs: list[dict[str, Any]] = []
    for _ in range(2):
        subject = Subject(name, report, place, inputs, {}, 0.0)
        with subject.fork() as job:
            code, _, stderr = job.end()
            seconds = job.seconds
        if code:
            raise click.ClickException(f"repsim {name}, undisturbed, failed: {stderr}")
        runs.append(contents(subject.out))
        remove(subject.out)
    if names := differences(*runs):
        raise click.ClickException(f"two undisturbed runs of repsim {name} differ: {names}")
    click.echo(f"{name}, undisturbed: {seconds:.1f} s")
    return Subject(name, report, place, inputs, runs[0], seconds)


def remove(out: Path) -> None:
    """Remove the folder of a run, and its study file."""
    shutil.rmtree(out, ignore_errors=True)
    out.with_suffix(".yaml").unlink(missing_ok=True)


def which(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add the argument COMMANDS, which are all by default."""
    names = click.Choice(list(TARGETS))
    return click.argument(
        "names", nargs=-1, type=names, metavar="[COMMANDS]", callback=lambda _, __, v: v or names.choices
    )(function)


def tracebacks(stderr: str) -> bool:
    return "Traceback" in stderr or "Segmentation" in stderr or "HDF5-DIAG" in stderr
