"""Numbers of the tables, and the runs from which they are made."""

import json
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from simulations.studies import (
    Array,
)

Numbers = Mapping[str, float]
ANY = (-np.inf, np.inf)
COVERAGE = (0.93, 0.97)
"""Bounds of the coverage of intervals of 95 %, in as many runs as are made."""


@dataclass(frozen=True)
class Cell:
    """One number of a table, with its bounds if it has any."""

    part: str
    row: str
    column: str
    value: float
    low: float = -np.inf
    high: float = np.inf
    form: str = "{:.1%}"

    @property
    def kept(self) -> bool:
        """Whether the value is within its bounds."""
        return self.low <= self.value <= self.high

    @property
    def bounded(self) -> bool:
        """Whether the value has bounds."""
        return bool(np.isfinite(self.low))

    @property
    def text(self) -> str:
        """Text for the table: bold and with a cross if the value is out of bounds."""
        text = self.form.format(self.value)
        return text if self.kept else f"**{text}** ✗"


def tables(cells: Sequence[Cell], seconds: dict[str, float]) -> str:
    """Return one table in Markdown for every part."""
    blocks = []
    for part in dict.fromkeys(cell.part for cell in cells):
        texts = {(cell.row, cell.column): cell.text for cell in cells if cell.part == part}
        columns = list(dict.fromkeys(column for _, column in texts))
        lines = [[part, *columns], ["---", *["--:"] * len(columns)]]
        lines += [[row, *(texts.get((row, c), "") for c in columns)] for row in dict.fromkeys(row for row, _ in texts)]
        blocks.append("\n".join(f"| {' | '.join(line)} |" for line in lines))
    outside, bounded = sum(not cell.kept for cell in cells), sum(cell.bounded for cell in cells)
    spent = ", ".join(f"{name} {count:,.0f}" for name, count in seconds.items())
    return "\n\n".join([*blocks, f"Out of bounds (✗): {outside} of {bounded}. CPU seconds: {spent}."])


@dataclass(eq=False)
class Simulation:
    """Settings of all parts: what they say while they work, how many runs they make, where the numbers are kept."""

    say: Callable[[str], None]
    quick: bool = False
    share: float = 1.0
    """Share of the runs that is made."""
    only_kept: bool = False
    """Whether tables are made of the runs that are in the folder, without new ones."""
    folder: Path | None = None
    """Folder with a file for every case, to which each run adds a line; a later call continues."""
    seconds: float = 0.0
    """CPU seconds of earlier calls, whose runs are not repeated."""

    def runs(self, case: str, count: int, one: Callable[[int], Numbers]) -> dict[str, Array]:
        """Return the numbers of all runs of a case, by name (none without runs); each run is a function of its seed."""
        count = max(1, round(count * self.share))
        path = None if self.folder is None else self.folder / f"{re.sub(r'[^a-z0-9.]+', '-', case.lower())}.jsonl"
        lines = path.read_text().splitlines() if path is not None and path.exists() else []
        rows = {int(row.pop("run")): row for row in map(json.loads, lines)}
        rows = {run: row for run, row in rows.items() if run < count}
        self.seconds += sum(row["seconds"] for row in rows.values())
        for run in range(0 if self.only_kept else count):
            if run in rows:
                continue
            began = time.process_time()
            rows[run] = dict(one(run))
            rows[run]["seconds"] = round(time.process_time() - began, 3)
            if path is not None:
                path.parent.mkdir(parents=True, exist_ok=True)
                with path.open("a") as file:
                    file.write(json.dumps({"run": run} | rows[run]) + "\n")
            if (run + 1) % 50 == 0:
                self.say(f"{case}: {run + 1} of {count}")
        names = list(next(iter(rows.values()))) if rows else []
        return {name: np.array([rows[run][name] for run in sorted(rows)]) for name in names}
