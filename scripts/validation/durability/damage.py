"""Damage and forge results and studies, and the parts and stores of unfinished ones, and run commands on them."""

import os
import re
import shutil
import signal
import struct
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path

import click
import numpy as np
from click.testing import CliRunner
from rich.console import Console
from rich.table import Table

import repsim
from durability.commands import TARGETS, Subject, prepare, remove, tracebacks, undisturbed
from durability.helpers import Report, litter, relative, workplace
from repsim.cli import main as repsim_command
from repsim.errors import StoreError
from repsim.results import digest
from repsim.results.files import open_result_or_study

PATIENCE = 10
"""CPU seconds after which a command counts as hanging; the limit for wall time is twelve times as long."""
DAMAGED = ("a bit", "eight bytes", "truncated", "16 zeros", "512 zeros", "a value")
UNFINISHED = ("a bit", "eight bytes", "truncated", "16 zeros")
FORGED = (
    "a bit, correct digest",
    "eight bytes, correct digest",
    "heap object, correct digest",
    "16 zeros, correct digest",
    "512 zeros, correct digest",
    "a value, correct digest",
)
STRICT = {"heap object, correct digest", "a value, correct digest"}
"""Forgeries that must change nothing, or be refused."""
EXTREME = [0, 1, 16, 2**16, 2**32 - 1, 2**63, 2**64 - 16, 2**64 - 1]


def make_files(folder: Path) -> list[Path]:
    """Write a result and a study of four tiny networks, and return their paths."""
    rng = np.random.default_rng(0)
    x, stores = rng.normal(size=(40, 12)), []
    for k in range(4):
        name = f"family{k // 2}.seed{k % 2}"
        layers = {f"l{j}": np.tanh(x @ rng.normal(size=(12, 8)) * 0.5 + rng.normal(size=(40, 8)) / 3) for j in range(3)}
        stores.append(repsim.write_store(folder / f"{name}.h5", layers, model=name))
    repsim.save_result(repsim.compare(stores[0], stores[2], ["cka", "svcca"]), folder / "result.nc")
    study = repsim.universality(stores, ["cka", "mutual_knn"], permutations=19)
    repsim.save_result(study, folder / "study.nc")
    return [folder / "result.nc", folder / "study.nc"]


def heap_objects(data: bytes) -> list[int]:
    """Return the offsets of the objects in the global heaps of an HDF5 file."""
    offsets, start = [], data.find(b"GCOL")
    while start >= 0:
        at, end = start + 16, start + struct.unpack_from("<Q", data, start + 8)[0]
        while at + 16 <= end:
            offsets.append(at)
            index, _, _, size = struct.unpack_from("<HHIQ", data, at)
            if index == 0:
                break
            at += 16 + -(-size // 8) * 8
        start = data.find(b"GCOL", start + 4)
    return offsets


@cache
def similarities(data: bytes) -> list[int]:
    """Return the offsets of the similarities in a file that are defined."""
    with tempfile.NamedTemporaryFile(suffix=".nc") as file:
        Path(file.name).write_bytes(data)
        result = open_result_or_study(file.name)
    values = result["cka" if "cka" in result else "value"].values  # of a result, or of a study
    start = data.find(values.tobytes())
    if start < 0:
        raise click.ClickException("the values are not stored as plain bytes")
    return [start + 8 * int(k) for k in np.flatnonzero(np.isfinite(values))]


def damage(data: bytes, kind: str, rng: np.random.Generator) -> bytes:
    """Return the damaged or forged bytes of a file."""
    forged = kind in FORGED
    changed = bytearray(data[: -digest.SIZE] if forged else data)
    if kind.startswith("a bit"):
        at = int(rng.integers(len(changed)))
        changed[at] ^= 1 << int(rng.integers(8))
    elif kind.startswith("eight bytes"):
        at = int(rng.integers(len(changed) - 8))
        extreme = struct.pack("<Q", rng.choice(np.array(EXTREME, "u8")))
        changed[at : at + 8] = rng.bytes(8) if rng.random() < 0.5 else extreme
    elif "zeros" in kind:
        size = int(kind.split(maxsplit=1)[0])
        at = int(rng.integers(len(changed) - size))
        changed[at : at + size] = bytes(size)
    elif kind.startswith("a value"):  # a similarity, by another possible one; by an impossible one if forged
        struct.pack_into("<d", changed, int(rng.choice(similarities(data))), 1.5e308 if forged else 0.83)
    elif kind == "truncated":
        del changed[int(rng.integers(len(changed))) :]
    else:
        at = int(rng.choice(heap_objects(data)))
        index = int(rng.choice([0, *struct.unpack_from("<H", data, at)]))
        struct.pack_into("<HHIQ", changed, at, index, int(rng.integers(2)), 0, int(rng.choice(np.array(EXTREME, "u8"))))
    return bytes(changed) + (digest.digest_line(changed) if forged else b"")


def commands(path: Path, folder: Path) -> dict[str, list[object]]:
    """Return the arguments of every command that reads this file."""
    reading: dict[str, list[object]] = {
        "export": ["export", path],
        "export to JSON": ["export", path, "-o", folder / "out.json", "--overwrite"],
        "inspect": ["inspect", path],
        "verify": ["verify", path],
        "heatmap": ["heatmap", path, "-o", folder / "out.png"],
        "report": ["report", path, "-o", folder / "out.html", "--overwrite"],
    }
    if path.name.startswith("study"):
        return reading | {
            "figures": ["figures", path, "-o", folder / "figures"],
            "run --print-file": ["run", "--from", path],
        }
    return reading | {
        "compare": ["compare", folder / "family0.seed0.h5", folder / "family1.seed0.h5", "-m", "procrustes", "-o", path]
    }


def attempt(  # noqa: PLR0911 - one return per outcome
    path: Path, arguments: Sequence[object], original: Path, *, forged: bool
) -> str:
    """Run one command on a damaged file, and return the outcome. A forged file may be read with other values."""
    if not arguments:
        try:
            data = open_result_or_study(path)
        except StoreError as error:
            return "refused in one line" if "\n" not in str(error) else "SEVERAL LINES"
        except Exception as error:  # noqa: BLE001 - any other error is a finding
            return f"TRACEBACK {type(error).__name__}: {error}"
        if data.identical(open_result_or_study(original)):
            return "equal"
        return "read with other values" if forged else "OTHER VALUES"
    done = CliRunner().invoke(repsim_command, [str(argument) for argument in arguments])
    lines = done.stderr.strip().splitlines() or done.stdout.strip().splitlines()
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        return f"TRACEBACK {type(done.exception).__name__}: {done.exception}"
    if done.exit_code == (1 if arguments[0] == "verify" else 2):
        return "refused in one line" if len(lines) == 1 else f"{len(lines)} LINES: {lines[:2]}"
    if done.exit_code:
        return f"EXIT CODE {done.exit_code}"
    if forged:
        return "read with other values"
    try:
        data, before = open_result_or_study(path), open_result_or_study(original)
    except StoreError:
        return "READ, AND THEN REFUSED"
    # `compare` may have added a measure
    return "equal" if all(data[name].identical(before[name]) for name in before.variables) else "OTHER VALUES"


def trials(
    files: Sequence[Path], kinds: Sequence[str], count: int, seed: int, folder: Path, *, open_only: bool = False
) -> Iterator[tuple[str, str]]:
    """Damage ``count`` files and run a command on each in a child process; yield the kinds and outcomes."""
    originals = {path: path.read_bytes() for path in files}
    done = 0
    while done < count:
        read, write = os.pipe()
        child = os.fork()
        if not child:
            os.close(read)
            with os.fdopen(write, "w") as pipe:
                for k in range(done, count):
                    rng = np.random.default_rng([seed, k, len(kinds[0])])
                    path, kind = files[k % len(files)], kinds[k // len(files) % len(kinds)]
                    damaged = folder / f"{path.stem}.damaged.nc"
                    damaged.write_bytes(data := damage(originals[path], kind, rng))
                    if data == originals[path]:
                        print("equal", file=pipe, flush=True)
                        continue
                    readers = {"open": []} if open_only else commands(damaged, folder)
                    signal.setitimer(signal.ITIMER_PROF, PATIENCE)
                    signal.alarm(12 * PATIENCE)
                    outcome = attempt(
                        damaged, readers[rng.choice(list(readers))], path, forged=kind in FORGED and kind not in STRICT
                    )
                    signal.setitimer(signal.ITIMER_PROF, 0)
                    signal.alarm(0)
                    print(outcome.replace("\n", " ")[:150], file=pipe, flush=True)
            os._exit(0)
        os.close(write)
        with os.fdopen(read) as pipe:
            for line in pipe:
                yield kinds[done // len(files) % len(kinds)], line.strip()
                done += 1
        _, status = os.waitpid(child, 0)
        if os.WIFSIGNALED(status):
            hung = os.WTERMSIG(status) in {signal.SIGALRM, signal.SIGPROF}
            yield kinds[done // len(files) % len(kinds)], "HANGS" if hung else f"CRASHES ({os.WTERMSIG(status)})"
            done += 1


def resumed(subject: Subject, count: int, seed: int) -> Counter[str]:
    """Damage one of the files that an interrupted run has left, and run the command again; return the outcomes.

    It has to finish with the files of an undisturbed run, or to refuse the file in one line that names it.
    """
    name, out, check, whole = subject.name, subject.out, subject.report.check, subject.place / "whole"
    rng, outcomes = np.random.default_rng([seed, len(name)]), Counter[str]()
    subject.run()
    out.rename(whole)
    for k in range(count):
        shutil.copytree(whole, out)
        if name == "universality" or k % 2:
            (out / TARGETS[name]).unlink()  # as if it had been killed before
        files = sorted(path for path in relative(out) if path.suffix in {".part", ".h5", ".nc"})
        path, kind = out / files[int(rng.integers(len(files)))], UNFINISHED[k % len(UNFINISHED)]
        path.write_bytes(damage(path.read_bytes(), kind, rng))
        label = f"{name}, {path.relative_to(out)}, {kind}"
        saved = (out / TARGETS[name]).exists()
        code, stderr = subject.run()
        if saved and code == 0 and path.suffix == ".part":  # parts are not read again while the study is there
            subject.check_unfinished(label)
            (out / TARGETS[name]).unlink()
            code, stderr = subject.run()
        errors = [line for line in stderr.splitlines() if line.startswith("Error:")]
        named = len(errors) == 1 and path.name in errors[0]
        check(not tracebacks(stderr) and (code == 0 or (code == 2 and named)), f"{label}: {code}: {stderr}")
        check(not litter(out), f"{label}: left behind: {litter(out)}")
        if code == 0:
            subject.check_finished(label)
        outcomes[f"{path.suffix} {'refused in one line' if code else 'computed again: equal'}"] += 1
        click.echo(f"{label}: {code}: {errors[0] if errors else 'equal'}")
        remove(out)
    shutil.rmtree(whole)
    return outcomes


@click.command("damage")
@click.option("--count", default=5000, show_default=True, help="Number of damaged files.")
@click.option("--fitting", default=1000, show_default=True, help="Number of forged files, with a correct digest.")
@click.option("--folders", default=60, show_default=True, help="Number of damaged folders of unfinished studies.")
@click.option(
    "--of",
    "names",
    type=click.Choice(["universality", "run"]),
    multiple=True,
    default=["universality", "run"],
    show_default=True,
    help="Commands of the unfinished studies.",
)
@click.option("--open-only", is_flag=True, help="Only open the files, which takes seconds instead of minutes.")
@click.option("--seed", default=0, show_default=True, help="Seed of the random damage.")
def damage_files(count: int, fitting: int, folders: int, names: Sequence[str], seed: int, *, open_only: bool) -> None:
    """Damage results and studies at random, and forge others; give each file to one of the commands that read it.

    Damage is one bit, eight bytes, 16 or 512 zeros, another value, or a truncation. Of forged files the digest is
    corrected. A damaged file must be refused in one line, or be equal to the original. A forged file must be refused in
    one line, or be read. No command may hang, crash, or end in a traceback. Then files of unfinished studies of
    `universality` and `run` are damaged, and the command is run again: it has to refuse the file in one line, or to
    give the same study, bit for bit.

    \b
    scripts/validation/torture damage                                         as in docs/durability.md
    scripts/validation/torture damage --count 200 --fitting 50 --folders 5    a quick test
    """
    outcomes: Counter[tuple[str, str]] = Counter()
    report = Report("Damaged files of unfinished studies")
    with workplace() as folder:
        files = make_files(folder)
        with click.progressbar(length=count + fitting, label="damaging") as bar:
            for kinds, times in ((DAMAGED, count), (FORGED, fitting)):
                for outcome in trials(files, kinds, times, seed, folder, open_only=open_only):
                    outcomes[outcome] += 1
                    bar.update(1)
        inputs = prepare(folder) if folders else folder
        for name in names if folders else ():
            for result, times in sorted(resumed(undisturbed(name, report, inputs, folder), folders, seed).items()):
                report.table.add_row(f"{name}: {result}", str(times))
    table = Table("damage", "files", "outcome", title=f"{count} damaged and {fitting} forged files, seed {seed}")
    for (kind, result), times in sorted(outcomes.items()):
        table.add_row(kind, str(times), result)
        report.check(not re.search("[A-Z]{4}", result.partition(":")[0]), f"{kind}: {result}")
    Console(width=120).print(table)
    report.end()
