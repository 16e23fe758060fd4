"""Measure one part of `scripts/gpu_check` in a process of its own: read settings as JSON, print each row as JSON.

Rows are printed as soon as they are measured, so that a part that runs out of time keeps those that it has.
"""

import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from machine_rates import read
from torch import Tensor

ROOT = Path(__file__).resolve().parents[2]
RESNET50 = {"maxpool": 64}
RESNET50 |= {f"layer{i + 1}.{j}": 256 * 2**i for i, blocks in enumerate((3, 4, 6, 3)) for j in range(blocks)}
VIT_B = dict.fromkeys(["embedding", *(f"blocks.{i}" for i in range(12))], 768)
Program = Callable[[Sequence[Tensor], Sequence[Tensor]], np.ndarray[Any, Any]]
Row = tuple[str, str, str]
"""What was measured, the figure, and what it is compared with."""


@dataclass(frozen=True)
class Settings:
    """Settings of one part."""

    part: str
    device: str
    small: bool = False
    """Whether sizes are those of a test on a CPU."""
    folder: str = ""
    """Folder for stores and pictures; by default a temporary one."""

    def size(self, full: int, small: int) -> int:
        """Return the size to use."""
        return small if self.small else full


def wait(device: str) -> None:
    """Wait until the device has finished."""
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)


def seconds(work: Callable[[], object], device: str, times: int = 5) -> float:
    """Return the median time of several calls, after one that is not counted."""
    durations = []
    for k in range(times + 1):
        wait(device)
        start = time.perf_counter()
        work()
        wait(device)
        if k:
            durations.append(time.perf_counter() - start)
    return statistics.median(durations)


@contextmanager
def tf32(*, allowed: bool) -> Iterator[None]:
    """Allow products in TensorFloat-32 inside the block, or refuse them."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if allowed else "highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def layers_of(widths: Mapping[str, int], n: int, device: str, seed: int) -> list[Tensor]:
    """Return float32 layers: 64 directions that all models share, shifted from layer to layer, noise, and a mean."""
    signals = torch.Generator(device).manual_seed(0)
    own = torch.Generator(device).manual_seed(seed)
    strength = torch.arange(1, 65, device=device) ** -0.5
    signal = torch.randn(n, 64, generator=signals, device=device)
    layers = []
    for depth, p in enumerate(widths.values()):
        directions = torch.randn(64, p, generator=own, device=device) * strength.roll(depth)[:, None]
        x = torch.randn(n, p, generator=own, device=device).div_(2)
        layers.append(x.addmm_(signal, directions).add_(torch.rand(p, generator=own, device=device)))
    return layers


def sides(settings: Settings, n: int) -> tuple[list[Tensor], list[Tensor]]:
    """Return the layers of two models: 17 and 13, or 3 and 2 small ones."""
    widths = [{"a": 8, "b": 40, "c": 24}, {"d": 12, "e": 30}] if settings.small else [RESNET50, VIT_B]
    rows, columns = (layers_of(side, n, settings.device, seed) for seed, side in enumerate(widths, 1))
    return rows, columns


def rate(flop: float, spent: float) -> str:
    """Return a rate of operations as text."""
    return f"{flop / spent / 1e12:,.1f} TFLOP/s"


# --- what the machine can do


def limits(settings: Settings) -> Iterator[Row]:
    """Measure products of every precision, memory, copies, launches and decompositions."""
    device = settings.device
    side = settings.size(8192, 256)
    x = torch.randn(side, side, device=device)
    dtypes = {"float32": torch.float32, "TF32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    for name, dtype in dtypes.items():
        y = x.to(dtype)
        with tf32(allowed=name == "TF32"):
            spent = seconds(lambda: y @ y, device)  # noqa: B023
        yield f"product {side} x {side} x {side}, {name}", rate(2 * side**3, spent), f"{spent * 1e3:.2f} ms"
    small = side // 2
    y = torch.randn(small, small, dtype=torch.float64, device=device)
    spent = seconds(lambda: y @ y, device)
    yield f"product {small} x {small} x {small}, float64", rate(2 * small**3, spent), f"{spent * 1e3:.2f} ms"
    values, other = torch.empty(2, settings.size(2**29, 2**20), device=device)
    spent = seconds(lambda: other.copy_(values), device)
    yield "copy within the memory of the device", f"{8 * values.numel() / spent / 1e9:,.0f} GB/s", "read and written"
    host = torch.empty(settings.size(2**27, 2**18))
    target = torch.empty_like(host, device=device)
    kinds = {"pageable": host}
    if device.startswith("cuda"):
        kinds["pinned"] = host.pin_memory()
    for kind, source in kinds.items():
        spent = seconds(lambda: target.copy_(source, non_blocking=True), device)  # noqa: B023
        yield f"copy from {kind} memory to the device", f"{4 * host.numel() / spent / 1e9:,.1f} GB/s", ""
    spent = seconds(host.pin_memory, device) if device.startswith("cuda") else seconds(host.clone, device)
    yield "pinning (or copying) memory of the host", f"{4 * host.numel() / spent / 1e9:,.1f} GB/s", ""
    one = torch.zeros(1, device=device)
    launches = settings.size(1000, 100)
    spent = seconds(lambda: [one.add_(1) for _ in range(launches)], device) / launches
    yield "one launch of a tiny operation", f"{spent * 1e6:.1f} us", ""
    spent = seconds(lambda: [float(one) for _ in range(launches)], device) / launches
    yield "one number fetched (synchronisation)", f"{spent * 1e6:.1f} us", ""
    width = settings.size(2048, 64)
    square = torch.randn(width, width, dtype=torch.float64)
    square = square @ square.T
    for name, decompose in (("eigh", torch.linalg.eigh), ("svdvals", torch.linalg.svdvals)):
        times = [seconds(lambda: decompose(square.to(place)), place, 2) for place in (device, "cpu")]  # noqa: B023
        yield f"{name} of {width} x {width}, float64", f"{times[0] * 1e3:,.0f} ms", f"CPU: {times[1] * 1e3:,.0f} ms"


# --- tests


def tests(settings: Settings) -> Iterator[Row]:
    """Run the tests of tests/test_gpu.py on the device, and those that need CUDA elsewhere."""
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-x",
        "-n",
        "0",
        "-p",
        "no:cacheprovider",
        "--all",
        "tests/test_gpu.py",
    ]
    env = os.environ | {"REPSIM_TEST_DEVICE": settings.device}
    if settings.small:
        command += ["-k", "cka or stream"]
    else:
        command += ["tests/engine/test_arrays_in_memory.py", "--maxfail", "50"]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    lines = done.stdout.strip().splitlines()
    for line in lines:
        if line.startswith("FAILED"):
            yield line.removeprefix("FAILED ")[:150], "FAILED", ""
    summary = lines[-1].strip("= ") if lines else done.stderr.strip()[-200:]
    yield "pytest tests/test_gpu.py", "passed" if done.returncode == 0 else "FAILED", summary


# --- comparisons


def centred(x: Tensor) -> Tensor:
    """Return the U-centred Gram matrix of a layer, as a user would write it."""
    x = x - x.mean(0)
    gram = (x @ x.T).fill_diagonal_(0)
    sums = gram.sum(0)
    offsets = (sums - sums.sum() / (2 * (len(x) - 1))) / (len(x) - 2)
    return gram.sub_(offsets).sub_(offsets[:, None]).fill_diagonal_(0)


def by_pairs(rows: Sequence[Tensor], columns: Sequence[Tensor]) -> np.ndarray[Any, Any]:
    """Return debiased CKA by a plain loop that makes both Gram matrices of every pair anew."""
    values = np.empty((len(rows), len(columns)))
    for (i, x), (j, y) in itertools.product(enumerate(rows), enumerate(columns)):
        a, b = centred(x), centred(y)
        values[i, j] = float((a * b).sum() / a.norm() / b.norm())
    return values


def by_kept_grams(rows: Sequence[Tensor], columns: Sequence[Tensor]) -> np.ndarray[Any, Any]:
    """Return debiased CKA by a plain loop that keeps the Gram matrices of the columns."""
    values = np.empty((len(rows), len(columns)))
    right = [centred(y) for y in columns]
    norms = [b.norm() for b in right]
    for i, x in enumerate(rows):
        a = centred(x)
        of_row = [(a * b).sum() / a.norm() / norm for b, norm in zip(right, norms, strict=True)]
        values[i] = torch.stack(of_row).cpu().numpy()
    return values


def by_repsim(rows: Sequence[Any], columns: Sequence[Any]) -> np.ndarray[Any, Any]:
    """Return debiased CKA by repsim, from arrays on the device."""
    from repsim import metrics  # noqa: PLC0415

    cka = metrics.get("cka")
    with torch.inference_mode():
        values: np.ndarray[Any, Any] = cka.block(*([cka.recipe(x) for x in side] for side in (rows, columns)))
    return values


def compare(settings: Settings) -> Iterator[Row]:
    """Compare 17 x 13 layers with repsim, with two plain loops, and with the floor; errors against float64."""
    precisions = ("float32", "TF32") if settings.device.startswith("cuda") else ("float32",)
    side = settings.size(8192, 256)
    large = torch.randn(side, side, device=settings.device)
    rates: dict[str, float] = {}
    for precision in precisions:
        with tf32(allowed=precision == "TF32"):
            rates[precision] = 2 * side**3 / seconds(lambda: large @ large, settings.device)
    few, many = settings.size(2_000, 64), settings.size(10_000, 128)
    yield from compare_at(settings, few, rates, {"a plain loop over pairs": by_pairs})
    yield from compare_at(settings, many, rates, {})


def compare_at(settings: Settings, n: int, rates: Mapping[str, float], loops: Mapping[str, Program]) -> Iterator[Row]:
    """Compare n samples; ``rates`` are those of one large product in each precision."""
    rows, columns = sides(settings, n)
    flop = float(n) ** 2 * (sum(x.shape[1] for x in (*rows, *columns)) + len(rows) * len(columns))
    exact = by_repsim([x.double() for x in rows], [y.double() for y in columns])
    label = f"{len(rows)} x {len(columns)} layers, n = {n:,}"
    programs = {"repsim": by_repsim, "a plain loop that keeps Gram matrices": by_kept_grams, **loops}
    for precision, of_product in rates.items():
        floor = flop / of_product
        yield f"floor at the rate of one large product, {label}, {precision}", f"{floor * 1e3:,.1f} ms", ""
        with tf32(allowed=precision == "TF32"):
            for name, program in programs.items():
                spent = seconds(partial(program, rows, columns), settings.device, 3 if name == "repsim" else 1)
                error = np.abs(program(rows, columns) - exact).max()
                against = f"{spent / floor:,.1f} x the floor, error {error:.1e}"
                yield f"{name}, {label}, {precision}", f"{spent * 1e3:,.1f} ms", against


def tiles(settings: Settings) -> Iterator[Row]:
    """Compare in Gram space with all sizes of tiles and panels, and name the best."""
    from repsim.metrics.algorithms.gram_space import GramSweep, tile_side  # noqa: PLC0415
    from repsim.metrics.cka import CKA  # noqa: PLC0415

    n = settings.size(8192, 256)
    cka = CKA()
    left, right = sides(settings, n)
    rows, columns = ([cka.recipe(x) for x in side] for side in (left, right))
    times: dict[tuple[int, int], float] = {}
    sizes = [16, 32] if settings.small else [256, 512, 1024, 2048]
    for panel, tile in itertools.product([max(sizes), n], sizes):

        def work(panel: int = panel, tile: int = tile) -> object:
            with torch.inference_mode():
                return GramSweep(rows, columns, [cka], panel=panel, tile=tile).run()

        times[panel, tile] = seconds(work, settings.device, 3)
        yield f"tiles of {tile}, panels of {panel:,}, n = {n:,}", f"{times[panel, tile] * 1e3:,.1f} ms", ""
    panel, tile = min(times, key=times.__getitem__)
    used = tile_side(len(rows) + len(columns), 4)
    yield "best size", f"tiles of {tile}, panels of {panel:,}", f"tiles of repsim compare: {used}"


def stream(settings: Settings) -> Iterator[Row]:
    """Compare stores that are larger than the memory limit: layers are read again, through pinned memory."""
    from repsim import write_store  # noqa: PLC0415
    from repsim.engine.comparison import Comparison  # noqa: PLC0415

    n = settings.size(20_000, 400)
    memory = "1GiB" if settings.device.startswith("cuda") else "2GiB"
    with place(settings) as folder:
        paths = []
        widths = {"a": 40, "b": 24} if settings.small else dict.fromkeys("abcdefgh", 2048)
        for seed, model in enumerate(("left", "right"), 1):
            layers = zip(widths, layers_of(widths, n, settings.device, seed), strict=True)
            paths.append(folder / f"{model}.h5")
            write_store(paths[-1], {name: x.cpu().numpy() for name, x in layers}, model=model)
        size = sum(path.stat().st_size for path in paths)
        yield "plain read of one store", f"{read(str(paths[0])) / 1e9:,.1f} GB/s", "perhaps from the page cache"
        for limit in (memory, None):
            with Comparison(paths[0], paths[1], ["cka"], device=settings.device, memory=limit) as job:
                predicted = job.plan.seconds(job.rates())
                kept = "kept" if job.plan.stages[0].kept else "read again"
                start = time.perf_counter()
                job.run()
                spent = time.perf_counter() - start
            what = f"{size / 1e9:,.1f} GB of stores, " + ("no limit" if limit is None else f"--memory {limit}")
            peak = ""
            if settings.device.startswith("cuda"):
                peak = f", peak {torch.cuda.max_memory_allocated() / 2**30:.1f} GiB"
                torch.cuda.reset_peak_memory_stats()
            yield f"{what}, layers {kept}", f"{spent:.2f} s", f"predicted {predicted:.2f} s{peak}"


# --- extraction


def extract(settings: Settings) -> Iterator[Row]:
    """Time forward passes on one batch alone and with readouts, and whole extractions from files of pictures."""
    import timm  # noqa: PLC0415

    from repsim.extractors import hooks  # noqa: PLC0415
    from repsim.extractors.loading import _Copied  # noqa: PLC0415
    from repsim.extractors.timm_models import TimmExtractor  # noqa: PLC0415

    device = torch.device(settings.device)
    models = ["test_resnet.r160_in1k"] if settings.small else ["resnet50", "vit_base_patch16_224"]
    batch, passes = settings.size(256, 4), settings.size(10, 1)
    precisions: dict[str, torch.dtype | None] = {"float32": None, "bfloat16": torch.bfloat16}
    if device.type == "cuda":
        precisions["float16"] = torch.float16  # that of `repsim extract --amp` on a GPU
    for name in models:
        extractor = TimmExtractor(name, weights="random")
        model = extractor.model.to(device).eval()
        height = timm.data.resolve_model_data_config(model)["input_size"][-1]
        pixels = torch.randn(batch, 3, height, height, device=device)

        def forward(values: Any = None, *, half: Any, model: Any = model, pixels: Tensor = pixels) -> None:
            """Run passes; copy the readouts of each, and wait for those of the one before, as extraction does."""
            waiting: list[_Copied] = []
            with torch.no_grad(), nullcontext() if half is None else torch.autocast(device.type, half):
                for _ in range(passes):
                    model(pixels)
                    if values is not None:
                        before, waiting = waiting, [_Copied(tuple(range(batch)), dict(values), device)]
                        for copied in before:
                            copied.batch()
            for copied in waiting:
                copied.batch()

        for precision, half in precisions.items():
            alone = seconds(partial(forward, half=half), settings.device, 3)
            with hooks.evaluating(model), hooks.reading(model, extractor.readouts) as values:
                both = seconds(partial(forward, values, half=half), settings.device, 3)
            label = f"{name}, {len(extractor.readouts)} layers, batch {batch}, {precision}"
            yield f"bare passes, {label}", f"{batch * passes / alone:,.0f} images/s", ""
            against = f"{alone / both:.3f} of bare"
            yield f"passes with readouts, {label}", f"{batch * passes / both:,.0f} images/s", against
    yield from from_files(settings, models[0])


def from_files(settings: Settings, model: str) -> Iterator[Row]:
    """Time `repsim extract` and a bare loop from files of pictures, with workers on all processors."""
    from extraction_bench import make_pictures, stage  # noqa: PLC0415

    cpus = len(os.sched_getaffinity(0))
    images, batch = settings.size(4096, 24), settings.size(256, 4)
    workers = 0 if settings.small else max(1, cpus - 1)
    with place(settings) as folder:
        (folder / "made").mkdir()
        pictures = str(stage(folder, make_pictures(folder / "made", settings.size(64, 3)), images))
        for amp, contender in itertools.product((False, True), ("bare", "repsim")):
            if settings.small and amp:
                continue
            with tempfile.TemporaryDirectory(dir=folder) as out:
                values = {"contender": contender, "model": model, "pictures": pictures, "out": out, "amp": amp}
                values |= {"batch_size": batch, "workers": workers, "device": settings.device}
                command = [sys.executable, str(Path(__file__).with_name("extraction_worker.py")), json.dumps(values)]
                done = subprocess.run(command, capture_output=True, text=True, check=False)
            label = f"{contender}, {model}, {images:,} JPEG files, {workers} workers{', --amp' if amp else ''}"
            if done.returncode:
                yield label, "FAILED", (done.stderr.strip() or "no message").splitlines()[-1][:200]
                continue
            result = json.loads(done.stdout.splitlines()[-1])
            yield label, f"{result['steady']:,.0f} images/s", "steady state"


# --- all measures, and a study


def measures(settings: Settings) -> Iterator[Row]:
    """Time every measure on the device and on the CPU, and the largest difference of values."""
    from repsim import metrics  # noqa: PLC0415

    n = settings.size(1000, 60)
    names = ["cka", "svcca"] if settings.small else [metric.spec for metric in metrics.select("all")]
    widths = {"a": 64, "b": 256, "c": 1024}
    if settings.small:
        widths = {"a": 8, "b": 24}
    layers = layers_of(widths, n, "cpu", 1)
    for name in names:
        metric = metrics.get(name)
        values, times = [], []
        for where in (settings.device, "cpu"):
            own = [x.to(where) for x in layers]

            def work(own: list[Tensor] = own, metric: Any = metric) -> Any:
                with torch.inference_mode():
                    factors = [metric.recipe(x) for x in own]
                    return metric.block(factors, factors)

            times.append(seconds(work, where, 1))
            values.append(work())
        difference = np.nanmax(np.abs(values[0] - values[1]))
        against = f"CPU: {times[1] * 1e3:,.1f} ms, difference {difference:.1e}"
        yield f"{name}, {len(layers)} x {len(layers)} layers, n = {n:,}", f"{times[0] * 1e3:,.1f} ms", against


def study(settings: Settings) -> Iterator[Row]:
    """Compute one study on the device and on the CPU."""
    import universality_worker  # noqa: PLC0415

    from repsim import universality  # noqa: PLC0415

    n = settings.size(2_000, 60)
    with place(settings) as folder, ExitStack() as stack:
        if settings.small:
            small = {"resnet50": ({"a": 8, "b": 12}, 1), "vit_base": ({"c": 10}, 2)}
            stack.callback(setattr, universality_worker, "MODELS", universality_worker.MODELS)
            universality_worker.MODELS = small
        paths = universality_worker.stores(folder, n)
        results = []
        for where in (settings.device, "cpu"):
            starts: list[tuple[str, float]] = []
            start = time.perf_counter()
            results.append(
                universality(
                    paths, ["cka"], permutations=settings.size(999, 19), device=where,
                    progress=lambda name, starts=starts: starts.append((name, time.perf_counter())),  # type: ignore[misc]
                )
            )  # fmt: skip
            spent = time.perf_counter() - start
            ends = [*(begun for _, begun in starts[1:]), start + spent]
            longest = sorted(((end - begun, name) for (name, begun), end in zip(starts, ends, strict=True)))[-3:]
            steps = ", ".join(f"{name} {taken:.1f} s" for taken, name in reversed(longest))
            yield f"study of 2 networks and their twins, n = {n:,}, {where}", f"{spent:.1f} s", steps
        difference = float(np.nanmax(np.abs(results[0]["index"].values - results[1]["index"].values)))
        yield "largest difference of an index between the device and the CPU", f"{difference:.1e}", ""


@contextmanager
def place(settings: Settings) -> Iterator[Path]:
    """Yield a temporary folder."""
    with tempfile.TemporaryDirectory(prefix="repsim-gpu-", dir=settings.folder or None) as folder:
        yield Path(folder)


PARTS: dict[str, Callable[[Settings], Iterator[Row]]] = {
    "limits": limits,
    "tests": tests,
    "compare": compare,
    "tiles": tiles,
    "stream": stream,
    "extract": extract,
    "study": study,
    "measures": measures,
}


def main(settings: Settings) -> None:
    for row in PARTS[settings.part](settings):
        print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main(Settings(**json.loads(sys.argv[1])))
