"""Time one series, or a loop, in a process of its own: read settings as JSON, print one line of JSON."""

import json
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from machine_rates import gemm, peak_mib
from naive_measures import cka as by_grams
from numpy.typing import NDArray

Array = NDArray[Any]


def by_features(x: Array, y: Array) -> float:
    """Return debiased CKA of x and y, (n, p) and (n, q), as in the code that Kornblith et al. (2019) published."""
    x, y = x - x.mean(0), y - y.mean(0)
    n = len(x)

    def debiased(xty: float, rows_x: Array, rows_y: Array, norm_x: float, norm_y: float) -> float:
        return xty - n / (n - 2) * float(rows_x @ rows_y) + norm_x * norm_y / ((n - 1) * (n - 2))

    rows_x, rows_y = np.einsum("ij,ij->i", x, x), np.einsum("ij,ij->i", y, y)
    norm_x, norm_y = float(rows_x.sum()), float(rows_y.sum())
    xy = debiased(float(np.linalg.norm(x.T @ y) ** 2), rows_x, rows_y, norm_x, norm_y)
    xx = debiased(float(np.linalg.norm(x.T @ x) ** 2), rows_x, rows_x, norm_x, norm_x)
    yy = debiased(float(np.linalg.norm(y.T @ y) ** 2), rows_y, rows_y, norm_y, norm_y)
    return float(xy / np.sqrt(xx * yy))


def write(settings: dict[str, Any]) -> None:
    """Write one store for every checkpoint, with input and without."""
    from repsim import write_store  # noqa: PLC0415

    rng = np.random.default_rng(0)
    n, p = settings["samples"], settings["width"]
    pixels = rng.standard_normal((n, 3, 8, 8), dtype=np.float32)
    flat = pixels.reshape(n, -1)
    layers = [f"layer{k:02d}" for k in range(settings["layers"])]
    ends: dict[str, list[Array]] = {
        name: [
            flat @ rng.standard_normal((192, p), dtype=np.float32) / 14,
            rng.standard_normal((n, p), dtype=np.float32),
        ]
        for name in layers
    }
    for inputs in (True, False):
        folder = Path(settings["folder"], "input" if inputs else "bare")
        folder.mkdir()
        for step in range(settings["checkpoints"]):
            values: dict[str, Array] = {}
            for k, (name, (start, end)) in enumerate(ends.items()):
                share = step / (step + 2 + k)
                noise = np.random.default_rng([step, k]).standard_normal((n, p), dtype=np.float32)
                values[name] = np.float32(1 - share) * start + np.float32(share) * end + np.float32(0.1) * noise
            write_store(
                folder / f"step{step:03d}.h5", values, model=f"step{step:03d}", axes={"step": step},
                pixels=pixels if inputs else None,
            ).close()  # fmt: skip


def loop(settings: dict[str, Any], *, function: Any, whole: bool) -> dict[tuple[int, str, str], float]:
    """Compare the layers of every checkpoint with those of the last, one pair after the other."""
    from repsim import open_store  # noqa: PLC0415

    paths = sorted(Path(settings["folder"], "input").glob("*.h5"))
    with open_store(paths[-1]) as store:
        last = {name: store[name][:].astype(np.float64) for name in store.layers}
    values = {}
    for step, path in enumerate(paths):
        with open_store(path) as store:
            layers = {name: store[name][:].astype(np.float64) for name in store.layers}
        for a, x in layers.items():
            for b, y in last.items():
                if whole or a == b:
                    values[step, a, b] = function(x, y)
    return values


def run_series(settings: dict[str, Any]) -> Any:
    """Compute the series, or add the middle checkpoint to a finished one."""
    from repsim import series  # noqa: PLC0415

    folder = Path(settings["folder"], "bare" if settings["contender"] == "series, raw" else "input")
    paths = sorted(folder.glob("*.h5"))
    if settings["contender"] != "series, grown":
        return series(paths)
    out = folder / "grown.nc"
    shutil.rmtree(f"{out}.parts", ignore_errors=True)
    middle = len(paths) // 2
    series(paths[:middle] + paths[middle + 1 :], out=out, overwrite=True)
    settings["start"] = time.perf_counter()
    return series(paths, out=out, overwrite=True)


def main(settings: dict[str, Any]) -> dict[str, Any]:
    contender, layers, checkpoints = settings["contender"], settings["layers"], settings["checkpoints"]
    if contender == "write":
        write(settings)
        single = gemm("cpu", torch.float32)
        return {"rate": single["seconds"]}
    import repsim.trends.series  # noqa: F401, PLC0415 - not timed, like numpy

    settings["start"] = time.perf_counter()
    if contender.startswith("series"):
        result = run_series(settings)
        seconds = time.perf_counter() - settings["start"]
        pairs = 3 if contender == "series, grown" else 3 * checkpoints - 2
        reference = result["blocks"].sel(measure="cka", comparison="reference").values
        x = loop({**settings, "folder": settings["folder"]}, function=by_features, whole=False)
        names = [str(name) for name in result["layer"].values]
        difference = max(abs(reference[k, names.index(a), names.index(a)] - value) for (k, a, _), value in x.items())
        return {"seconds": seconds, "pairs": pairs * layers**2, "peak": peak_mib(), "difference": float(difference)}
    which, _, extent = contender.partition(", ")
    values = loop(settings, function=by_features if which == "features" else by_grams, whole=extent == "all")
    return {"seconds": time.perf_counter() - settings["start"], "pairs": len(values), "peak": peak_mib()}


if __name__ == "__main__":
    print(json.dumps(main(json.loads(sys.argv[1]))))
