"""Flip every bit of a store outside its arrays, and forge its metadata."""

import os
import signal
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import click
import numpy as np

from durability.helpers import Report, workplace
from durability.stores import arrays
from repsim.errors import StoreError
from repsim.stores import extents, layout, reader
from repsim.stores.store import open_store, verify
from repsim.stores.writer import write_store

Change = Sequence[tuple[int, bytes]]
"""Offsets in the file, and the bytes to write there."""


def small_store(path: Path) -> bytes:
    rng = np.random.default_rng(0)
    layers = {"layer1.0": rng.normal(size=(4, 3)), "layer2.0": rng.normal(size=(4, 2, 2))}
    ids = [f"p{i}.png" for i in range(4)]
    write_store(path, layers, model="m", labels=range(4), sample_ids=ids, pixels=np.ones((4, 2))).close()
    return path.read_bytes()


def outside(path: Path) -> list[int]:
    """Return the offsets of all bytes outside the arrays."""
    arrays = reader.read(path)[1].arrays.values()
    inside = {offset for extent in arrays for offset in range(extent.offset, extent.offset + extent.size)}
    return [offset for offset in range(path.stat().st_size) if offset not in inside]


def trial(path: Path, original: bytes, change: Change, *, forge: bool) -> str:
    """Change the file, open and read it, and return the outcome. If ``forge``, correct the checksum of the file."""
    path.write_bytes(original)
    with path.open("r+b") as file:
        for offset, data in change:
            os.pwrite(file.fileno(), data, offset)
        try:
            if forge:
                places = reader.read(path)[1]
                checksum = layout.COMPLETE + extents.structure_checksum(file.fileno(), places)
                extents.write_at(file.fileno(), places.structure.offset, np.array([checksum], "<u8"))
            if verify(path):
                return "rows refused"
            with open_store(path) as store:
                for array in arrays(store):
                    array[:]
                for name in store.layers:
                    store.facts(name)
                return "read" if forge else "UNNOTICED"
        except StoreError as error:
            return "refused" if "\n" not in str(error) and str(path) in str(error) else f"UNCLEAR: {error}"
        except Exception as error:  # noqa: BLE001 - any other error is a finding
            return f"RAISED {type(error).__name__}: {error}"


def in_children(path: Path, original: bytes, changes: Sequence[Change], *, forge: bool) -> tuple[Counter[str], int]:
    """Try all changes in child processes, which may crash or hang.

    Return the counts of the outcomes, and the largest memory of a child in MB.
    """
    outcomes: Counter[str] = Counter()
    most = done = 0
    with click.progressbar(length=len(changes), label="forging" if forge else "flipping") as bar:
        while done < len(changes):
            read, write = os.pipe()
            child = os.fork()
            if not child:
                with os.fdopen(write, "w") as pipe:
                    for change in changes[done:]:
                        signal.alarm(60)
                        signal.setitimer(signal.ITIMER_VIRTUAL, 2)  # CPU seconds; a trial takes milliseconds
                        print(trial(path, original, change, forge=forge).replace("\n", " "), file=pipe, flush=True)
                os._exit(0)
            os.close(write)
            with os.fdopen(read) as pipe:
                for line in pipe:
                    outcomes[line.strip()] += 1
                    done += 1
                    bar.update(1)
            _, status, used = os.wait4(child, 0)
            most = max(most, used.ru_maxrss // 1024)
            if os.WIFSIGNALED(status):
                hung = os.WTERMSIG(status) in {signal.SIGALRM, signal.SIGVTALRM}
                outcomes[f"{'HANGS' if hung else f'CRASHES ({os.WTERMSIG(status)})'}: {list(changes[done])}"] += 1
                done += 1
    return outcomes, most


def forgeries(original: bytes, offsets: Sequence[int], count: int, rng: np.random.Generator) -> list[Change]:
    """Draw changes: random bytes, extreme sizes and addresses, and copies of other parts of the file."""
    extreme = [0, 1, 2**16, 2**31, 2**32 - 1, 2**40, 2**63, 2**64 - 1, len(original), len(original) - 8]
    words = [offset for offset in offsets if offset % 8 == 0 and offset + 8 <= len(original)]
    used = [offset for offset in words if any(original[offset : offset + 8])]
    changes: list[Change] = []
    for k in range(count):
        change = []
        for _ in range(int(rng.integers(1, 4))):
            if k % 3 == 0:
                size = int(rng.integers(1, 9))
                change.append((int(rng.choice(offsets)), rng.integers(0, 256, size, dtype=np.uint8).tobytes()))
            elif k % 3 == 1:
                value = extreme[int(rng.integers(len(extreme)))] + int(rng.integers(-1, 2))
                size = int(rng.choice([1, 2, 4, 8]))
                offset = int(rng.choice(used)) + int(rng.integers(8 // size)) * size
                change.append((offset, (value % 2**64).to_bytes(8, "little")[:size]))
            else:
                source, size = int(rng.choice(used)), int(rng.choice([8, 16, 64]))
                change.append((int(rng.choice(used)), original[source : source + size]))
        changes.append([(offset, data[: len(original) - offset]) for offset, data in change])
    return changes


@click.command()
@click.option("--every", default=1, show_default=True, help="Only try every Nth bit.")
@click.option("--files", default=30_000, show_default=True, help="Number of forged files.")
@click.option("--seed", default=0, show_default=True, help="Seed of the forged files.")
def flips(every: int, files: int, seed: int) -> None:
    """Flip every bit of a small store outside its arrays, one at a time; then forge metadata.

    A flipped bit must give an error of one line that names the file: no crash, no hang, no unnoticed damage. Metadata
    that is changed on purpose, with a correct checksum, must be refused, or read as the file says, within 500 MB of
    memory. (Bits in the arrays have checksums of their own: tests/stores/test_store.py.)

    \b
    scripts/validation/torture flips                            as in docs/durability.md
    scripts/validation/torture flips --every 50 --files 1000    a quick test
    """
    report = Report("Flipped bits, and forged files")
    with workplace() as place:
        path = place / "s.h5"
        original = small_store(path)
        offsets = outside(path)
        single = [[(at, bytes([original[at] ^ 1 << bit]))] for at in offsets for bit in range(8)][::every]
        rng = np.random.default_rng(seed)
        for changes, forge in ((single, False), (forgeries(original, offsets, files, rng), True)):
            outcomes, most = in_children(path, original, changes, forge=forge)
            for outcome, times in outcomes.items():
                report.check(outcome in {"refused", "rows refused", "read"}, f"{times} times: {outcome}")
            report.check(most < 500, f"{most} MB of memory")
            counts = ", ".join(f"{times} {outcome}" for outcome, times in outcomes.most_common(4))
            name = "forged files" if forge else f"flipped bits, in {len(offsets)} of {len(original)} bytes"
            report.table.add_row(name, f"{len(changes)}: {counts}; at most {most} MB of memory")
    report.end()
