"""`scripts/bench large`: what is done with results and studies of many networks, after they are computed."""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import click
import numpy as np
from turns import show, table

import repsim
from repsim.testing.large import enlarged_study

LAYERS, N, WIDTH, FAMILIES = 12, 64, 16, 5
STEP = """
import json, sys, time
from pathlib import Path
import repsim
from repsim.results.export import export
from repsim.results.files import open_result_or_study
from repsim.results.summary import closest
from repsim.study.tables import all_tables
from repsim.figures import figure, plot_pairs, save
step, path, out = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
start = time.perf_counter(), time.process_time()
data = open_result_or_study(path)
if step != "open":
    start = time.perf_counter(), time.process_time()
is_study = "summary" in data.attrs
if step == "save": repsim.save_result(data, out / "x.nc", overwrite=True)
if step == "page": repsim.write_report(data, out / "x.html", overwrite=True)
if step == "csv": export(data, out / "x.csv", "layers", overwrite=True)
if step == "tables": all_tables(data) if is_study else [closest(data[name]) for name in data.data_vars]
if step == "figure": save(plot_pairs(data).figure if is_study else figure(data), out / "x.png")
spent = time.perf_counter() - start[0], time.process_time() - start[1]
file = {"save": "x.nc", "page": "x.html", "csv": "x.csv", "figure": "x.png"}.get(step)
size = (out / file).stat().st_size if file else path.stat().st_size
status = dict(line.split(":", 1) for line in open("/proc/self/status"))  # getrusage would include the parent
print(json.dumps([*spent, int(status["VmHWM"].split()[0]) / 2**20, size / 1e6]))
"""
STEPS = {
    "open": "open the file", "save": "save it again", "tables": "tables of the terminal", "csv": "export of all layers",
    "figure": "heatmap of a result, pairs of a study", "page": "report page",
}  # fmt: skip


def write_stores(folder: Path, models: int) -> list[Path]:
    """Write stores of synthetic models, which share their input and features of their family."""
    rng = np.random.default_rng(0)
    pixels, common = rng.normal(size=(N, 3, 4, 4)).astype(np.float32), rng.normal(size=(N, 12))
    own = rng.normal(size=(max(FAMILIES, models // 4), N, 8))
    paths = []
    for model in range(models):
        family, seed = model % len(own), model // len(own)
        acts = {}
        for k in range(LAYERS):
            t = k / (LAYERS - 1)
            parts = [pixels.reshape(N, -1) * (1 - t), t * common, t * own[family], rng.normal(size=(N, 10))]
            x = np.hstack(parts)
            acts[f"blocks.{k}"] = (x @ rng.normal(size=(x.shape[1], WIDTH))).astype(np.float32)
        name = f"family{family:02d}.seed{seed}"
        paths.append(folder / f"{name}.h5")
        repsim.write_store(paths[-1], acts, model=name, pixels=pixels, labels=np.arange(N) % 8, overwrite=True)
    return paths


@click.command()
@click.option("--models", multiple=True, default=(10, 30, 100), show_default=True, help="Numbers of models.")
def large(models: tuple[int, ...]) -> None:
    """Measure size, opening, tables, export, figures and the page of results and studies of many models.

    Every model has 12 layers of 16 features, and there are 64 samples: what is measured depends on the number of layers
    and pairs only. Results are those of `repsim.compare -m cka`. Studies are one of ten models, computed, and copies of
    its models beyond ten (`repsim.testing.large`). Every step runs in a process of its own.

    \b
    scripts/bench large                    as in docs/benchmarks.md
    scripts/bench large --models 30        another number
    """
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        ten = repsim.universality(write_stores(folder, 10), ["cka"], permutations=19, draws=20)
        for count in models:
            result = folder / f"result of {count}.nc"
            repsim.save_result(repsim.compare(write_stores(folder, count), metrics=["cka"]), result)
            study = folder / f"study of {count}.nc"
            repsim.save_result(enlarged_study(ten, count), study)
            for path in (result, study):
                rows = table(f"{path.stem} models, {count * LAYERS} layers", "seconds", "CPU seconds", "peak GiB", "MB")
                for step, what in STEPS.items():
                    command = [sys.executable, "-c", STEP, step, str(path), str(folder)]
                    run = subprocess.run(command, check=True, capture_output=True, text=True)
                    rows.add_row(what, *(f"{value:.2f}" for value in json.loads(run.stdout)))
                show(rows)
