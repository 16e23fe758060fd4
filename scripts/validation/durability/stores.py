"""Kill extractions, fill their disk, and kill their ranks; check that stores keep all committed samples."""

import os
import re
import signal
import statistics
import subprocess
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click
import numpy as np
from PIL import Image

from durability.helpers import (
    REPSIM,
    Report,
    Run,
    fill_up,
    messages,
    mounted,
    one_line,
    remount,
    run,
    torchrun,
    wait_until,
    worker,
    workplace,
)
from repsim.errors import StoreError
from repsim.runtime.files import partial_path
from repsim.stores import extents, layout, reader
from repsim.stores.extents import Extent, Layout
from repsim.stores.schema import Array
from repsim.stores.store import Activations, ActivationStore, open_store, verify

MODELS = ["digits_resnet.seed0", "digits_vit.seed0"]


@click.group()
def stores() -> None:
    """Kill extractions, fill their disk, kill their ranks; flip bits of stores."""


def bits(path: Path) -> dict[str, Any]:
    """Return the contents of a store that must be equal however often its extraction was interrupted."""
    with open_store(path) as store:
        labels, order = store.labels, store.order
        rest = {"samples": store.sample_ids, "labels": labels is None or labels.tobytes()}
        rest |= {"order": order is None or order.tobytes(), "skipped": store.provenance["skipped"]}
        return {str(array.key): array[:].tobytes() for array in arrays(store)} | rest


def arrays(store: ActivationStore) -> list[Activations]:
    """Return the arrays of all layers, and of the pixels."""
    return [*(store[name] for name in store.layers), *([] if store.pixels is None else [store.pixels])]


class Unfinished:
    """Unfinished file of one store, read from outside the extraction."""

    def __init__(self, path: Path) -> None:
        self.path, self.partial = path, partial_path(path)
        self._places: Layout | None = None

    def _read(self, extent: Extent) -> Array:
        with self.partial.open("rb") as file:
            return extents.read_rows(file.fileno(), extent, 0, extent.shape[0])

    def places(self) -> Layout:
        if self._places is None:
            self._places = reader.read(self.partial)[1]
        return self._places

    def state(self) -> int:
        """Return `checks/structure`: 0 while the file does not exist or is being created."""
        try:
            return int(self._read(self.places().structure)[0])
        except (StoreError, OSError):
            return 0

    def marks(self) -> Array:
        """Return a mask of the committed samples; empty if there is no file."""
        if self.state() == 0:
            self._places = None
            return np.zeros(0, bool)
        try:
            return self._read(self.places().written).astype(bool)
        except (StoreError, OSError):
            return np.zeros(0, bool)

    def right(self, reference: Path) -> Array:
        """Return a mask of the rows that equal the reference store in every array, bit for bit, with checksums."""
        good = np.ones(len(self.marks()), bool)
        with open_store(reference) as store:
            for array in arrays(store):
                rows = self._read(self.places().arrays[array.key])
                sums = self._read(self.places().checksums[array.key])
                expected = array.read_and_check(0, len(array))[0]
                expected_sums = store._read(array._checksums, 0, len(rows))
                row_bytes, expected_bytes = (x.reshape(len(rows), -1).view(np.uint8) for x in (rows, expected))
                good &= (row_bytes == expected_bytes).all(1) & (sums == expected_sums)
        return good


# Kills


@dataclass
class Tally:
    """Counts of the kills so far, by aim and by interrupted phase."""

    aims: Counter[str] = field(default_factory=Counter)
    phases: Counter[str] = field(default_factory=Counter)
    lost: list[int] = field(default_factory=list)
    """For every kill, the number of written samples that must be computed again."""
    finished: int = 0


def aim(rng: np.random.Generator, files: Sequence[Unfinished], job: Run, how: str, expected: float) -> None:
    """Wait for the moment of the kill: a random time in the run, or a phase that only lasts milliseconds."""
    first = files[0]
    if how == "any moment":
        wait_until(lambda: False, job, rng.uniform(0, expected))
    elif how == "laying out":
        wait_until(first.partial.exists, job)
        time.sleep(rng.uniform(0, 0.03))
    elif how == "last commit":
        wait_until(lambda: (m := first.marks()).size and m.mean() > 0.8, job)
        wait_until(lambda: not first.partial.exists() or first.marks().all(), job, rng.uniform(0, 3), every=0)
    elif how == "closing":
        wait_until(lambda: first.path.exists() or (first.state() and first.marks().all()), job, every=0)
        time.sleep(rng.uniform(0, 0.01))
    else:
        wait_until(first.path.exists, job, every=0)
        time.sleep(rng.uniform(0, 0.003))


AIMS = {"any moment": 0.6, "laying out": 0.12, "last commit": 0.08, "closing": 0.1, "naming": 0.1}


def phase(files: Sequence[Unfinished]) -> str:
    """Return the phase that the kill interrupted, from the files on the disk."""
    states = [2 if f.path.exists() else 0 if not f.partial.exists() else 1 for f in files]
    if max(states) == 0:
        return "before there was a file"
    if any(f.partial.exists() and not f.state() for f in files):
        return "laying out"
    if min(states) == 2:
        return "after both had their names"
    if max(states) == 2:
        return "between two names"
    if all(f.state() >= layout.COMPLETE or f.marks().all() for f in files):
        return "all committed, no name yet"
    return "computing"


@dataclass
class Case:
    """State of the killed extraction, with the stores of the undisturbed run as reference."""

    report: Report
    reference: Path
    out: Path
    files: Sequence[Unfinished]
    wanted: dict[str, dict[str, Any]]
    kept: list[int]
    """Number of committed samples per file, after the last kill."""

    @property
    def n(self) -> int:
        return len(next(iter(self.wanted.values()))["samples"])

    def look(self, label: str) -> int:
        """Check after a kill that all committed samples are kept and correct.

        Return the number of written samples that must be computed again.
        """
        lost = 0
        for i, file in enumerate(self.files):
            what = f"{label}, {file.path.name}"
            if file.path.exists():
                self.report.check(bits(file.path) == self.wanted[file.path.name], f"{what}: finished, and wrong")
                self.kept[i] = self.n
                continue
            marks = file.marks()
            self.report.check(marks.sum() >= self.kept[i], f"{what}: {self.kept[i]} were committed, now {marks.sum()}")
            if marks.size:
                right = file.right(self.reference / file.path.name)
                self.report.check(right[marks].all(), f"{what}: {(~right[marks]).sum()} committed samples are wrong")
                lost = max(lost, int((right & ~marks).sum()))
            self.kept[i] = int(marks.sum())
        return lost

    def finish(self, job: Run) -> None:
        """Check a run that was not killed: its message about kept samples, its files and their contents."""
        check, out = self.report.check, self.out
        code, _, stderr = job.end()
        check(code == 0, f"a resumed run failed with exit code {code}: {stderr}")
        for file, had in zip(self.files, self.kept, strict=True):
            reported = f"{file.path.name}: going on after {had} of {self.n} pictures" in stderr
            reported |= had == self.n and f"{file.path.name} is complete already" in stderr
            check(reported or not had, f"{file.path.name}: {had} samples were kept, and the message was: {stderr}")
        check(sorted(p.name for p in out.iterdir()) == sorted(self.wanted), f"in the folder: {sorted(out.iterdir())}")
        for name, values in self.wanted.items():
            check(verify(out / name) == [], f"{name}: verify finds damage")
            check(bits(out / name) == values, f"{name} differs from the undisturbed run")
            (out / name).unlink()
        click.echo(f"finished: {len(self.wanted)} stores checked, {self.kept} samples were kept")
        self.kept = [0] * len(self.files)


@stores.command()
@click.option("--kills", default=50, show_default=True, help="Number of kills.")
@click.option("--data", default="digits", show_default=True, help="Images, as in `repsim extract`.")
@click.option("--model", "models", multiple=True, default=MODELS, show_default=True, help="Extracted together; repeat.")
@click.option("--batch-size", default=4, show_default=True, help="Small, so that the run takes long enough.")
@click.option("--seed", default=0, show_default=True, help="Seed of the random moments.")
def kills(kills: int, data: str, models: Sequence[str], batch_size: int, seed: int) -> None:
    """Send SIGKILL to an extraction at random moments, and run the same command again until it finishes.

    Most moments are uniform over the expected time of the run. The others are aimed at phases that last milliseconds:
    creating the file, the last commit, the final checksum, the two renames. After every kill, all committed samples
    must be kept and correct bit for bit. One run in three is not killed: then both stores must equal those of the
    undisturbed run, `repsim verify` must find no damage, and the folder must contain nothing else. Every second run
    decodes in worker processes, which must end with it.

    \b
    scripts/validation/torture kills                as in docs/durability.md
    scripts/validation/torture kills --kills 3      a quick test: a minute
    """
    rng, report, tally = np.random.default_rng(seed), Report(f"{kills} kills, seed {seed}"), Tally()
    with workplace() as place:
        reference, out = place / "reference", place / "out"
        command = [*REPSIM, "extract", *models, "--data", data, "--batch-size", batch_size]
        with Run([*command, "-o", reference]) as job:
            reached = wait_until(lambda: list(reference.glob("*.partial")), job)
            start = job.seconds
            code, _, stderr = job.end()
            total = job.seconds
        if code or not reached:
            raise click.ClickException(f"the undisturbed run failed: {stderr}")
        files = [Unfinished(out / path.name) for path in (reference / f"{m}.h5" for m in models)]
        case = Case(report, reference, out, files, {p.name: bits(p) for p in reference.iterdir()}, [0] * len(files))
        n = case.n
        click.echo(f"undisturbed: {total:.1f} s, of which {start:.1f} s before the first file; {n} samples")
        while len(tally.lost) < kills or any(f.partial.exists() for f in files):
            enough = len(tally.lost) >= kills or min(case.kept) == n
            finish = enough or (sum(case.kept) > 0 and rng.random() < 1 / 3)
            with Run([*command, "-o", out, "--workers", int(rng.integers(2))]) as job:
                how = str(rng.choice(list(AIMS), p=list(AIMS.values())))
                if not finish:
                    aim(rng, files, job, how, start + (total - start) * (1 - min(case.kept) / n))
                if finish or not (job.running() and job.kill()):  # the run may end before the kill
                    case.finish(job)
                    tally.finished += 1
                    continue
            interrupted_phase, lost = phase(files), case.look(f"kill {len(tally.lost) + 1} ({how})")
            tally.aims[how] += 1
            tally.phases[interrupted_phase] += 1
            tally.lost.append(lost)
            outcome = f"{interrupted_phase}; kept {case.kept}, lost {lost}"
            click.echo(f"kill {len(tally.lost)}: aimed at {how} after {job.seconds:.1f} s, {outcome}")
        rate = n / (total - start)
    rows = {
        "undisturbed run": f"{total:.1f} s, of which {start:.1f} s before the first file; {rate:.0f} samples/s",
        "kills": f"{len(tally.lost)}: " + ", ".join(f"{v} {k}" for k, v in tally.phases.most_common()),
        "aimed at": ", ".join(f"{v} {k}" for k, v in tally.aims.most_common()),
        "finished runs": f"{tally.finished}, all equal bit for bit" if not report.wrong else "see below",
        "samples to compute again, per kill": f"median {statistics.median(tally.lost):.0f}, most {max(tally.lost)}",
        "in seconds": f"median {statistics.median(tally.lost) / rate:.1f}, most {max(tally.lost) / rate:.1f}",
    }
    for row in rows.items():
        report.table.add_row(*row)
    report.end()


@stores.command()
def disk() -> None:
    """Fill a disk of 50 MB while a store is being written, and make it read-only. Needs root, for mount.

    A store that does not fit is refused before the first forward pass. If another program fills the disk during the
    extraction, the command must end with one line and exit code 2. Committed samples are kept. When there is space
    again, the same command continues, and the store must equal that of the undisturbed run bit for bit. The same is
    tested with a disk that is mounted read-only, and with an ext4 file system that turns read-only during extraction.

    \b
    scripts/validation/torture disk
    """
    if os.geteuid():
        raise click.ClickException("only root may mount file systems: sudo scripts/validation/torture disk")
    report = Report("A disk of 50 MB")
    model, flat = MODELS[0], [*REPSIM, "extract", MODELS[0], "--data", "digits", "--readout", "flatten"]
    command = [*flat, "--batch-size", 4, "--layers", "layer1.*,layer2.*"]  # 30 MB
    with workplace() as place:
        code, _, stderr = run(*command, "-o", place / "reference")
        if code:
            raise click.ClickException(f"the undisturbed run failed: {stderr}")
        reference = place / "reference" / f"{model}.h5"
        wanted = bits(reference)
        with mounted(place / "tmpfs", "tmpfs") as small:
            one_line(report, "86 MB on 50 MB", run(*flat, "-o", small), "needs 86 MB", "the disk has 52.4 MB free")
            report.check(not list(small.iterdir()), "a refused store leaves something behind")
            fills_up(report, command, reference, small, "tmpfs")
            remount(small, "ro")
            other = [*REPSIM, "extract", MODELS[1], "--data", "digits", "-o", small]
            one_line(report, "read-only before", run(*other), "ead-only file system", str(small))
            store = small / reference.name
            for reads in (["inspect", store], ["verify", store], ["compare", store, reference, "-o", place / "r.nc"]):
                code, _, stderr = run(*REPSIM, *reads)
                report.check(code == 0, f"repsim {reads[0]} from a read-only disk: {stderr}")
            report.check(bits(store) == wanted, "a store on a read-only disk reads differently")
            remount(small, "rw")
            store.unlink()
            turns_read_only(report, command, reference, small, None)
        with mounted(place / "ext4", "ext4") as small:
            fills_up(report, command, reference, small, "ext4")
            (small / reference.name).unlink()
            source = subprocess.check_output(["findmnt", "-no", "SOURCE", small], text=True).strip()
            turns_read_only(report, command, reference, small, Path("/sys/fs/ext4") / Path(source).name)
    report.end()


def fills_up(report: Report, command: Sequence[object], reference: Path, small: Path, kind: str) -> None:
    """Fill the disk twice, early and late in the extraction, and then free the space again."""
    file, filler = Unfinished(small / reference.name), small / "filler"
    kept = 0
    for late in (False, True):
        wrote = file.partial.stat().st_mtime_ns if late else 0
        with Run([*command, "-o", small]) as job:
            if late:
                wait_until(lambda wrote=wrote: file.partial.stat().st_mtime_ns > wrote, job)
            else:
                wait_until(lambda: file.marks().sum() > 0, job)
            fill_up(filler)
            before = int(file.marks().sum())
            one_line(report, f"{kind} full, after {before} samples", job.end(), "No space left on device", "are kept")
        marks, right = file.marks(), file.right(reference)
        report.check(marks.sum() >= before >= kept, f"{kind}: {before} samples were committed, now {marks.sum()}")
        report.check(right[marks].all(), f"{kind}: committed samples are wrong")
        kept = int(marks.sum())
        if not late:
            one_line(report, f"{kind} still full", run(*command, "-o", small), str(small))
            report.check(file.marks().sum() >= kept, f"{kind}: the second try has lost samples")
            kept = int(file.marks().sum())
        filler.unlink()
    resumed(report, command, reference, small, kept, kind=kind)


def turns_read_only(report: Report, command: Sequence[object], reference: Path, small: Path, ext4: Path | None) -> None:
    """Make the disk read-only: on ext4 by a file-system error during extraction, on tmpfs after a kill."""
    file, kind = Unfinished(small / reference.name), "tmpfs" if ext4 is None else "ext4"
    with Run([*command, "-o", small]) as job:
        wait_until(lambda: (m := file.marks()).size and m.mean() > 0.2, job)
        if ext4 is None:
            busy = subprocess.run(["mount", "-o", "remount,ro", small], check=False, capture_output=True)
            report.check(busy.returncode, "tmpfs can be made read-only while a file is open: change this test")
            job.kill()
            kept = int(file.marks().sum())
            remount(small, "ro")
        else:
            kept = int(file.marks().sum())
            (ext4 / "trigger_fs_error").write_text("1")
            one_line(report, f"{kind} turns read-only, after {kept} samples", job.end(), str(small))
    one_line(
        report, f"{kind} read-only, {kept} samples kept", run(*command, "-o", small), "ead-only file system", str(small)
    )
    if ext4 is None:
        remount(small, "rw")
    else:
        source = subprocess.check_output(["findmnt", "-no", "SOURCE", small], text=True).strip()
        backing = subprocess.check_output(["losetup", "-nO", "BACK-FILE", source], text=True).strip()
        subprocess.run(["umount", small], check=True)
        checked = subprocess.run(["fsck.ext4", "-fy", backing], check=False, capture_output=True)
        report.check(checked.returncode in {0, 1}, "fsck could not repair the file system")
        subprocess.run(["mount", "-o", "loop,errors=remount-ro", backing, small], check=True)
    resumed(report, command, reference, small, kept, kind=kind)


def resumed(report: Report, command: Sequence[object], reference: Path, small: Path, kept: int, *, kind: str) -> None:
    """Check that the same command now continues where it stopped, and finishes."""
    code, _, stderr = run(*command, "-o", small)
    report.check(code == 0, f"{kind}: resumed, exit code {code}: {stderr}")
    match = re.search(r"going on after (\d+) of", stderr)
    report.check(match and int(match[1]) >= kept, f"{kind}: {kept} samples were kept, and the message was: {stderr}")
    report.check(bits(small / reference.name) == bits(reference), f"{kind}: it differs from the undisturbed run")
    names = [path.name for path in small.iterdir() if path.name != "lost+found"]
    report.check(names == [reference.name], f"{kind}: other files are left: {names}")
    report.table.add_row(f"{kind}, resumed", f"{stderr.strip()}; equal bit for bit")


# Ranks


def make_pictures(folder: Path, count: int, damaged: int | None = None) -> Path:
    rng = np.random.default_rng(0)
    folder.mkdir()
    for i in range(count):
        path = folder / f"p{i:03d}.png"
        Image.fromarray(rng.integers(0, 256, (24, 32, 3), dtype=np.uint8)).save(path)
        if i == damaged:
            os.truncate(path, path.stat().st_size // 2)
    return folder


@stores.command()
def ranks() -> None:
    """Run an extraction in 1, 2 and 3 processes of torchrun; kill some of them; give them a damaged image.

    The stores must equal those of the plain command bit for bit: with two models that share images, with blocks of
    samples (gram:16), and with a damaged image that is left out. If a rank is killed, the other ranks end. Then
    torchrun starts all ranks again and they continue, or another number of ranks continues later. A second command on
    the same output is refused. The table shows the messages of repsim, for you to judge.

    \b
    scripts/validation/torture ranks
    """
    report = Report("Ranks")
    with workplace() as place:
        bad = make_pictures(place / "bad", 50, damaged=41)
        both = [*MODELS, "--data", "digits", "--limit", 150, "--batch-size", 4]
        cases: dict[str, list[object]] = {
            "two models": both,
            "mean,gram:16": [MODELS[0], "--data", "digits", "--limit", 150, "--readout", "mean,gram:16"],
            "--skip-bad": [MODELS[1], "--data", bad, "--skip-bad", "--batch-size", 4],
        }
        for name, options in cases.items():
            code, _, stderr = run(*REPSIM, "extract", *options, "-o", place / name / "0")
            report.check(code == 0, f"{name}, plain: {stderr}")
            for k in (1, 2, 3):
                code, _, stderr = run(*torchrun(k), "extract", *options, "-o", place / name / str(k))
                report.check(code == 0, f"{name}, {k} ranks: {stderr}")
                for path in (place / name / "0").iterdir():
                    equal = bits(path) == bits(place / name / str(k) / path.name)
                    report.check(equal, f"{name}: {path.name} by {k} ranks differs from the plain one")
                if k == 3:
                    report.table.add_row(name, f"0, 1, 2, 3 ranks compared; 3 print {messages(stderr) or 'nothing'}")
        code, _, stderr = run(*REPSIM, "extract", *both, "-o", place / "threads", threads=2)
        same = [bits(path) == bits(place / "two models" / "0" / path.name) for path in (place / "threads").iterdir()]
        report.table.add_row("2 threads against 1", f"equal bit for bit: {', '.join(map(str, same))} (not guaranteed)")

        with Run([*torchrun(3), "extract", MODELS[1], "--data", bad, "--batch-size", 4, "-o", place / "fails"]) as job:
            code, _, stderr = job.end()
            lines = messages(stderr)
            report.check(code, "exit code 0 with a damaged image")
            report.check(sum("p041.png" in line for line in lines) == 1, f"not named once: {stderr}")
            report.table.add_row("a damaged image", f"all 3 ended in {job.seconds:.0f} s:\n" + "\n".join(lines))

        long = ["resnet18", "--weights", "random", "--data", "digits", "--limit", 300, "--batch-size", 2]
        code, _, stderr = run(*REPSIM, "extract", *long, "-o", place / "long")
        report.check(code == 0, f"resnet18, plain: {stderr}")
        reference = next((place / "long").iterdir())
        for rank in (0, 1):
            dying(report, long, reference, place / f"dies{rank}", rank)
        interrupted(report, long, reference, place / "again")
    report.end()


def dying(report: Report, options: Sequence[object], reference: Path, out: Path, rank: int) -> None:
    """Kill one of two ranks, which torchrun restarts; check that a second command is refused meanwhile."""
    file = Unfinished(out / reference.name)
    with Run([*torchrun(2, restarts=3), "extract", *options, "-o", out]) as job:
        wait_until(lambda: file.marks().sum() > 0, job)
        pids = [worker(job, k) for k in (0, 1)]
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)  # pause the ranks while the second command runs
        one_line(report, "a second command", run(*REPSIM, "extract", *options, "-o", out), "another process is writing")
        for pid in pids:
            os.kill(pid, signal.SIGCONT)
        kept = int(file.marks().sum())
        os.kill(pids[rank], signal.SIGKILL)
        code, _, stderr = job.end()
    match = re.search(r"going on after (\d+) of", stderr)
    kept_message = f"rank {rank} killed after {kept} samples, and the message was: {stderr}"
    report.check(code == 0, f"rank {rank} killed: torchrun ended with {code}: {stderr}")
    report.check(match and int(match[1]) >= kept, kept_message)
    report.check(bits(file.path) == bits(reference), f"rank {rank} killed: it differs from the plain run")
    lines = "\n".join(messages(stderr))
    report.table.add_row(f"rank {rank} of 2 killed", f"after {kept} samples; equal bit for bit in the end:\n{lines}")


def interrupted(report: Report, options: Sequence[object], reference: Path, out: Path) -> None:
    """Kill one of 2 ranks without restarts, continue with 3 ranks, kill one again, and finish with one process."""
    file, kept = Unfinished(out / reference.name), 0
    for ranks in (2, 3):
        with Run([*torchrun(ranks), "extract", *options, "-o", out]) as job:
            wait_until(lambda kept=kept: file.marks().sum() > kept, job)
            had = int(file.marks().sum())
            os.kill(worker(job, ranks - 1), signal.SIGKILL)
            code, _, stderr = job.end()
        report.check(code, "exit code 0 although a rank was killed")
        report.check(int(file.marks().sum()) >= had > kept, f"{had} samples were kept, now {file.marks().sum()}")
        report.table.add_row(f"rank {ranks - 1} of {ranks} killed, no restart", "\n".join(messages(stderr)))
        kept = int(file.marks().sum())
    resumed(report, [*REPSIM, "extract", *options], reference, out, kept, kind="the plain command")
