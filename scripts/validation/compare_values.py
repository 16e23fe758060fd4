#!/usr/bin/env python
"""Compare the values of all measures with those of another revision, on well-conditioned layers.

    scripts/validation/compare_values.py [REVISION]

The script checks out the revision into a temporary folder, and computes the same pairs of layers with both revisions,
in float32 and float64. It prints a table of the measures that differ by more than 1e-12; docs/conformance.md gives the
reasons for the differences.
"""

import json
import os
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path

import numpy as np

SHAPES = ((60, 12, 10), (120, 40, 30), (40, 70, 60), (700, 24, 20))
VARIANTS = (
    "cka:estimator=biased",
    "cka:estimator=minibatch,batch=20",
    "cka:kernel=rbf",
    "cka:kernel=rbf,estimator=biased",
    "cca:summary=r2",
    "svcca:summary=r2",
    "svcca:variance=0.9",
    "gulp:ridge=0.1",
    "mutual_knn:k=5",
    "geometry_score:landmarks=16,draws=20",
    "imd",
    "rtd:batch=40,trials=2",
)
TOLERANCE = 1e-12


def values() -> dict[str, float | str]:
    """Return the value, or the error message, of every measure on every pair of layers, by the name of the case."""
    from repsim import metrics  # noqa: PLC0415 - from the revision in which this process runs
    from repsim.errors import UndefinedValueError  # noqa: PLC0415

    specs = list(dict.fromkeys([*(metric.spec for metric in metrics.select("all")), *VARIANTS]))
    results: dict[str, float | str] = {}
    for n, p, q in SHAPES:
        rng = np.random.default_rng(n)
        signal = rng.normal(size=(n, 4))
        x, y = (signal @ rng.normal(size=(4, width)) + rng.normal(size=(n, width)) + 0.3 for width in (p, q))
        for dtype in ("float32", "float64"):
            for spec in specs:
                try:
                    value = metrics.get(spec)(x.astype(dtype), y.astype(dtype))
                except UndefinedValueError as error:
                    value = str(error)
                results[f"{spec}|{dtype}|{n} x {p}, {q}"] = value
    return results


def difference(old: float | str, new: float | str) -> float:
    """Return the difference, relative for values above 1; infinite if only one of them is a number."""
    if isinstance(old, str) or isinstance(new, str):
        return 0.0 if old == new else float("inf")
    return abs(old - new) / max(1.0, abs(old))


def values_of(tree: Path) -> dict[str, float | str]:
    """Return the values that the repsim in this folder computes, in a process of its own."""
    environment = os.environ | {"PYTHONPATH": str(tree), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(Path(__file__).resolve()), "--values"]
    done = subprocess.run(command, env=environment, cwd=tree, check=True, stdout=subprocess.PIPE, text=True)
    results: dict[str, float | str] = json.loads(done.stdout)
    return results


def main() -> None:
    if sys.argv[1:] == ["--values"]:
        warnings.simplefilter("ignore")
        json.dump(values(), sys.stdout)
        return
    revision, checkout = (sys.argv[1:] or ["HEAD"])[0], Path(__file__).resolve().parents[2]
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder) / "tree"
        subprocess.run(["git", "worktree", "add", "--detach", "-q", str(tree), revision], cwd=checkout, check=True)
        try:
            old = values_of(tree)
        finally:
            subprocess.run(["git", "worktree", "remove", "--force", str(tree)], cwd=checkout, check=True)
    new = values_of(checkout)
    worst: dict[tuple[str, str], tuple[float, str]] = {}
    for case in old:
        spec, dtype, shape = case.split("|")
        if case in new:
            worst[spec, dtype] = max(worst.get((spec, dtype), (0.0, "")), (difference(old[case], new[case]), shape))
    same = [key for key, (size, _) in worst.items() if size <= TOLERANCE]
    print(f"{len(same)} of {len(worst)} values equal those of {revision} to {TOLERANCE:.0e}; the others:\n")
    print("| measure | dtype | largest difference | layers |\n|---|---|---|---|")
    for (spec, dtype), (size, shape) in sorted(worst.items(), key=lambda item: -item[1][0]):
        if size > TOLERANCE:
            print(f"| `{spec}` | {dtype} | {size:.0e} | {shape} |")


if __name__ == "__main__":
    main()
