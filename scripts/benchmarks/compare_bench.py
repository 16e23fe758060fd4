"""`scripts/bench compare`: run the cases with compare_worker.py, in turns, and print their tables."""

import os
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from compare_worker import PEERS, RESNET50, VIT_B, runs
from turns import Result, median, ratios, run_in_fresh_process, show, table

from repsim.labels import LayerKey, SampleIds
from repsim.runtime.files import format_size
from repsim.stores.schema import ArraySpec, Contents
from repsim.stores.writer import StoreWriter

WORKER = Path(__file__).with_name("compare_worker.py")
BATCH = 256
FEW = 2
"""Number of permutations for calibrated-similarity, whose time is proportional to their number."""
MODELS = (2, 4, 6, 8, 10)
FIFTEEN = {f"blocks.{i}": 768 for i in range(15)}
PAIR = {"resnet50": (RESNET50, 1), "vit": (VIT_B, 2)}
"""Widths and seeds of the two models."""
PAIR_WIDTHS = (RESNET50, VIT_B)


@dataclass(frozen=True)
class Job:
    """Settings that all cases share, and methods to run them."""

    rounds: int
    threads: int
    peer_python: str
    folder: Path
    samples: int | None = None
    memory: str | None = None
    permutations: int = 1000
    env: Mapping[str, str] = field(default_factory=dict)
    """Environment variables of the programs."""

    def run(self, contender: str, **settings: Any) -> Result:
        """Run one program once, in a new process, and return its result."""
        python = self.peer_python if contender in PEERS else sys.executable
        click.echo(f"  {contender} ...", err=True)
        return run_in_fresh_process(
            WORKER, {"contender": contender, **settings}, python=python, threads=self.threads, label=contender,
            env=self.env,
        )  # fmt: skip

    def run_in_turns(self, **contenders: Mapping[str, Any]) -> dict[str, list[Result]]:
        """Run every program once per round and return the results.

        Every second round has the reverse order, so that no program always runs first.
        """
        results: dict[str, list[Result]] = {name: [] for name in contenders}
        for turn in range(self.rounds):
            for name in list(contenders)[:: -1 if turn % 2 else 1]:
                results[name].append(self.run(**contenders[name]))
        return results

    def stores(self, models: Mapping[str, tuple[Mapping[str, int], int]], n: int) -> list[str]:
        """Write one store of n samples per model, unless the file exists already, and return the paths.

        The samples are written in blocks, so that the data need not fit into memory.
        """
        paths = {name: self.folder / f"{name}-{n}.h5" for name in models}
        missing = [name for name, path in paths.items() if not path.exists()]
        size = sum(4 * n * sum(models[name][0].values()) for name in missing)
        free = shutil.disk_usage(self.folder).free
        if size * 1.05 > free:
            sizes = f"{format_size(size)} do not fit into {self.folder}, {format_size(free)} are free"
            raise click.ClickException(f"{sizes}; choose another --folder")
        if missing:
            click.echo(f"  writing {format_size(size)} to {self.folder} ({format_size(free)} free) ...", err=True)
        for name in missing:
            widths, seed = models[name]
            specs = tuple(ArraySpec(LayerKey(name, layer, "given"), (p,)) for layer, p in widths.items())
            contents = Contents(specs, SampleIds(tuple(map(str, range(n)))), "made", {"extractor": "given"})
            with StoreWriter(paths[name], contents) as writer:
                for rows, layers in runs(widths, n, seed):
                    for spec in specs:
                        writer.write(spec.key, rows, layers[spec.key.layer])
                    writer.mark_done(rows)
        return [str(path) for path in paths.values()]


class Report:
    """Table of one case: floors, programs, ratios."""

    COLUMNS = ("seconds", "CPU seconds", "peak MiB", "added MiB", "largest error")

    def __init__(self, title: str, job: Job, *more: str) -> None:
        self.table = table(f"{title}; {job.threads} threads, medians of {job.rounds}", *self.COLUMNS, *more)

    def row(self, label: str, *cells: str) -> None:
        self.table.add_row(label, *cells)

    def floor(self, flop: Mapping[str, float], rates: Sequence[Result]) -> dict[str, float]:
        """Add the least possible time: the cheapest algorithm at the measured rate of matrix products."""
        algorithm = min(flop, key=lambda name: flop[name])
        rate = {key: float(np.median([run["sgemm"][key] for run in rates])) for key in ("seconds", "cpu")}
        least = {key: flop[algorithm] / rate[key] for key in rate}
        label = f"floor: {algorithm}, {flop[algorithm] / 1e9:,.0f} GFLOP at {rate['seconds'] / 1e9:,.0f} GFLOP/s"
        self.row(label, f"{least['seconds']:.2f}", f"{least['cpu']:.2f}")
        return least

    def contender(self, label: str, results: Sequence[Result], exact: Any = None, *more: str) -> None:
        """Add the medians of one program and the largest error of its values."""
        if failure := next((result["failure"] for result in results if "failure" in result), None):
            self.row(label, failure)
            return
        cells = [f"{median(results, key):{form}}" for key, form in FORMS.items()]
        error = "" if exact is None else f"{max(largest_difference(result['values'], exact) for result in results):.1e}"
        self.row(label, *cells, error, *more)

    def ratio(self, label: str, over: Sequence[Result], under: Sequence[Result], values: str = "") -> None:
        """Add the median ratios of the times of two programs."""
        if not any("failure" in result for result in (*over, *under)):
            self.row(label, *(f"{ratios(over, under, key):.1f} x" for key in ("seconds", "cpu")), "", "", values)

    def show(self, *remarks: str) -> None:
        """Print the table with remarks in its caption."""
        self.table.caption = "; ".join(remarks)
        show(self.table)


FORMS = {"seconds": ".2f", "cpu": ".2f", "mib": ",.0f", "added mib": ",.0f"}


def largest_difference(values: Any, exact: Any) -> float:
    """Return the largest absolute difference; NaN if a value is NaN."""
    return float(np.abs(np.asarray(values) - np.asarray(exact)).max())


def flop(sides: Sequence[Mapping[str, int]], n: int, batch: int | None = None) -> dict[str, float]:
    """Return the operations for all pairs of layers in Gram space and in feature space.

    Only one triangle of a symmetric matrix is counted.
    """
    widths = [np.array(list(side.values()), float) for side in sides]
    pairs = float(np.prod([len(side) for side in widths]))
    operations = {"Gram space": n * (batch or n) * (sum(side.sum() for side in widths) + pairs)}
    if batch is None:
        products = 2 * np.prod([side.sum() for side in widths]) + sum((side**2).sum() for side in widths)
        operations["feature space"] = n * products
    return {space: float(count) for space, count in operations.items()}


def width_combinations(a: Mapping[str, int], b: Mapping[str, int]) -> dict[tuple[str, str], int]:
    """Return one pair of layers for every combination of widths, with the number of pairs of these widths."""
    first: dict[tuple[int, int], tuple[str, str]] = {}
    counts: Counter[tuple[str, str]] = Counter()
    for layer_a, p in a.items():
        for layer_b, q in b.items():
            counts[first.setdefault((p, q), (layer_a, layer_b))] += 1
    return dict(counts)


def values_of_pairs(result: Result, pairs: Sequence[tuple[str, str]], key: str = "values") -> list[float]:
    """Return the values of some pairs of layers from the matrix of all pairs."""
    rows, columns = result["layers a"], result["layers b"]
    return [result[key][rows.index(a)][columns.index(b)] for a, b in pairs]


def in_memory(job: Job) -> None:
    """Compare 17 x 13 layers in memory with debiased CKA, and with torch-cka on all samples in one batch."""
    for n in (job.samples,) if job.samples else (256, 2048, 4096):
        compare_arrays(job, f"CKA from memory, 17 x 13 layers, n = {n:,}", "torch-cka", n, flop(PAIR_WIDTHS, n))


def minibatch(job: Job) -> None:
    """Compare 17 x 13 layers in minibatches of 256, and with torch-cka on the same minibatches."""
    batch = {"metric": f"cka:estimator=minibatch,batch={BATCH}", "batch": BATCH}
    for n in (job.samples,) if job.samples else (256, 2048):
        title = f"Minibatch CKA, 17 x 13 layers, n = {n:,}, batches of {BATCH}"
        compare_arrays(job, title, "torch-cka", n, flop(PAIR_WIDTHS, n // BATCH * BATCH, BATCH), **batch)


def processors(job: Job) -> None:
    """Compare 17 x 13 layers in memory with the instructions of two kinds of processors, idle and beside other work.

    The floor is measured under the same conditions. The neighbour is a process that multiplies numbers all the time.
    """
    n = job.samples or 2048
    kinds = {
        "all instructions": {},
        "AVX2 only": {"ATEN_CPU_CAPABILITY": "avx2", "MKL_ENABLE_INSTRUCTIONS": "AVX2"},
    }
    for kind, env in kinds.items():
        for busy in (False, True):
            variant = replace(job, env=env)
            with neighbour() if busy else nullcontext():
                timings = variant.run_in_turns(
                    rates={"contender": "rates"}, repsim={"contender": "repsim", "samples": n}
                )
            beside = "beside a busy process" if busy else "idle"
            report = Report(f"CKA from memory, 17 x 13 layers, n = {n:,}, {kind}, {beside}", variant)
            least = report.floor(flop(PAIR_WIDTHS, n), timings["rates"])
            report.contender("repsim", timings["repsim"])
            report.row("repsim / floor", *(f"{median(timings['repsim'], key) / least[key]:.2f} x" for key in least))
            report.show()


@contextmanager
def neighbour() -> Iterator[None]:
    """Run a process that keeps one core busy, also no longer than this process if it is killed."""
    program = "import os, sys\nwhile os.getppid() == int(sys.argv[1]): pass"
    with subprocess.Popen([sys.executable, "-c", program, str(os.getpid())]) as process:
        try:
            yield
        finally:
            process.kill()


def rsa(job: Job) -> None:
    """Compare biased linear CKA with the whitened cosine of squared Euclidean RDMs of rsatoolbox; both are equal."""
    n = job.samples or 2048
    title = f"RSA, whitened cosine, 17 x 13 layers, n = {n:,}"
    compare_arrays(job, title, "rsatoolbox", n, flop(PAIR_WIDTHS, n), metric="cka:estimator=biased")


def compare_arrays(job: Job, title: str, peer: str, n: int, flop: Mapping[str, float], **settings: Any) -> None:
    """Time repsim and another package on arrays in memory, and print the floor, both times and their ratio."""
    settings = {"samples": n, **settings}
    timings = job.run_in_turns(
        rates={"contender": "rates"},
        repsim={"contender": "repsim", **settings},
        peer={"contender": peer, **settings},
    )
    exact = job.run("float64", **settings)["values"]
    report = Report(title, job)
    report.floor(flop, timings["rates"])
    report.contender("repsim", timings["repsim"], exact)
    name = timings["peer"][0].get("name", peer)
    report.contender(name, timings["peer"], exact)
    if "values" in timings["peer"][0]:
        values = (
            f"{largest_difference(timings['peer'][0]['values'], timings['repsim'][0]['values']):.0e} largest_difference"
        )
        report.ratio(f"{peer} / repsim", timings["peer"], timings["repsim"], values)
    report.show()


def disk(job: Job) -> None:
    """Compare 17 x 13 layers from stores on disk, n = 10,000."""
    from_disk(job, job.samples or 10_000, job.memory)


def large(job: Job) -> None:
    """Compare 17 x 13 layers from stores on disk, n = 50,000, within 2 GiB."""
    from_disk(job, job.samples or 50_000, job.memory or "2GiB")


def from_disk(job: Job, n: int, memory: str | None) -> None:
    stores, pairs = job.stores(PAIR, n), list(width_combinations(*PAIR_WIDTHS))
    timings = job.run_in_turns(
        rates={"contender": "rates", "stores": stores},
        repsim={"contender": "stores", "stores": stores, "memory": memory},
    )
    exact = job.run("pairs in float64", stores=stores, pairs=pairs)["values"]
    results = [{**result, "values": values_of_pairs(result, pairs)} for result in timings["repsim"]]
    report = Report(f"CKA from disk, 17 x 13 layers, n = {n:,}, memory: {memory or 'half of the machine'}", job)
    least = report.floor(flop(PAIR_WIDTHS, n), timings["rates"])
    report.contender("repsim", results, exact)
    report.row("repsim / floor", *(f"{median(results, key) / least[key]:.2f} x" for key in least))
    predicted, planned = median(results, "predicted"), median(results, "planned mib")
    report.row("predicted by the plan", f"{predicted:.2f}", "", f"{planned:,.0f}")
    times, memories = ratios(results, results, "seconds", "predicted"), ratios(results, results, "mib", "planned mib")
    report.row("repsim / predicted", f"{times:.2f} x", "", f"{memories:.2f} x")
    report.show(
        in_cache(results),
        f"plain reads: {median(timings['rates'], 'read') / 1e6:,.0f} MB/s",
        f"errors of {len(pairs)} pairs, one for every combination of widths",
    )


def svcca(job: Job) -> None:
    """Compare SVCCA from stores on disk, n = 10,000, with decompositions for every pair and with a floor."""
    n = job.samples or 10_000
    stores, counts = job.stores(PAIR, n), width_combinations(*PAIR_WIDTHS)
    pairs, widths = list(counts), sorted({min(n, p) for side in PAIR_WIDTHS for p in side.values()})
    others = ("pairs", "pairs by SVD", "pairs by SVD in float64")
    timings: dict[str, list[Result]] = {name: [] for name in ("repsim", "rates", *others)}
    for _ in range(job.rounds):
        result = job.run("stores", stores=stores, metric="svcca")
        kept = [dict(zip(result[f"layers {side}"], result[f"components {side}"], strict=True)) for side in "ab"]
        shapes = [(kept[0][a], kept[1][b]) for a, b in pairs]
        timings["repsim"].append({**result, "values": values_of_pairs(result, pairs)})
        timings["rates"].append(job.run("rates", stores=stores, widths=widths, shapes=shapes))
        for name in others:
            timings[name].append(
                scale_to_all_pairs(job.run(name, stores=stores, pairs=pairs, metric="svcca"), list(counts.values()))
            )
    exact = timings["pairs by SVD in float64"][0]["values"]
    report = Report(f"SVCCA from disk, 17 x 13 layers, n = {n:,}", job)
    parts = [
        svcca_floor(result, rates, n, widths, list(counts.values()))
        for result, rates in zip(timings["repsim"], timings["rates"], strict=True)
    ]
    for step in parts[0]["seconds"]:
        report.row(f"  {step}", *(f"{median([part[key] for part in parts], step):.2f}" for key in ("seconds", "cpu")))
    least = [{key: sum(part[key].values()) for key in part} for part in parts]
    report.row("floor, total", *(f"{median(least, key):.2f}" for key in ("seconds", "cpu")))
    report.contender("repsim", timings["repsim"], exact)
    report.ratio("repsim / floor", timings["repsim"], least)
    for name, label in zip(others, ("repsim.similarity", "SVD in float32", "SVD in float64"), strict=True):
        report.contender(f"{label}, for every pair", timings[name], exact)
        report.ratio(f"{label} / repsim", timings[name], timings["repsim"])
    report.show(
        in_cache(timings["repsim"]),
        f"for every pair: scaled up from {len(pairs)} pairs, one of every combination of widths, without reading",
    )


def scale_to_all_pairs(result: Result, counts: Sequence[int]) -> Result:
    """Estimate the time of all pairs from the time of one pair for every combination of widths."""
    total = {
        key: sum(count * spent[key] for count, spent in zip(counts, result["times"], strict=True))
        for key in ("seconds", "cpu")
    }
    return {**result, **total}


def svcca_floor(
    result: Result, rates: Result, n: int, widths: Sequence[int], counts: Sequence[int]
) -> dict[str, dict[str, float]]:
    """Return the seconds to decompose every layer once and multiply the bases of every pair once.

    The times are computed from the rates of this machine.
    """
    kept = [*result["components a"], *result["components b"]]
    layers = list(zip([p for side in PAIR_WIDTHS for p in side.values()], kept, strict=True))
    squares = sum(n * p * min(n, p) for p, _ in layers)
    bases = sum(2 * n * p * k for p, k in layers if p <= n)  # if p > n, the eigenvectors are already the basis
    products = 2 * n * sum(result["components a"]) * sum(result["components b"])

    def steps(key: str) -> dict[str, float]:
        decomposed = dict(zip(widths, (spent[key] for spent in rates["eigh"]), strict=True))
        values = (count * spent[key] for count, spent in zip(counts, rates["svdvals"], strict=True))
        return {
            f"X'X, {squares / 1e9:,.0f} GFLOP in float64": squares / rates["dgemm"][key],
            "its eigenvectors": sum(decomposed[min(n, p)] for p, _ in layers),
            f"bases, {bases / 1e9:,.0f} GFLOP in float64": bases / rates["dgemm"][key],
            f"products of bases, {products / 1e9:,.0f} GFLOP in float32": products / rates["sgemm"][key],
            "their singular values": sum(values),
        }

    return {key: steps(key) for key in ("seconds", "cpu")}


def models(job: Job) -> None:
    """Compare all layers of 2, 4, ... 10 models of 15 layers with each other, n = 5,000, from stores on disk."""
    n = job.samples or 5000
    stores = job.stores({f"m{seed}": (FIFTEEN, seed) for seed in range(1, MODELS[-1] + 1)}, n)
    timings = job.run_in_turns(
        rates={"contender": "rates"},
        **{f"{k}": {"contender": "stores", "stores": stores[:k], "together": True} for k in MODELS},
    )
    first, *_, last = FIFTEEN
    exact = job.run("pairs in float64", stores=stores[:2], pairs=[(first, last)])["values"]
    rate = float(np.median([run["sgemm"]["seconds"] for run in timings["rates"]]))
    report = Report(
        f"All layers of several models with each other, 15 layers of 768 each, n = {n:,}", job,
        "Gram TFLOP", "pair TFLOP", "time / floor", "seconds per model",
    )  # fmt: skip
    for k in MODELS:
        results = [
            {**result, "values": values_of_pairs(result, [(f"m1/{first}", f"m2/{last}")])} for result in timings[f"{k}"]
        ]
        grams, pairs = float(n) ** 2 * sum(FIFTEEN.values()) * k, float(n) ** 2 * (len(FIFTEEN) * k) ** 2
        seconds = median(results, "seconds")
        work = [f"{grams / 1e12:.2f}", f"{pairs / 1e12:.2f}"]
        floor = f"{seconds * rate / (grams + pairs):.2f} x"
        report.contender(f"{k} models, {15 * k} x {15 * k}", results, exact, *work, floor, f"{seconds / k:.2f}")
    report.show(in_cache(timings[f"{MODELS[-1]}"]), f"floor: at {rate / 1e9:,.0f} GFLOP/s", "errors of one pair")


def permutations(job: Job) -> None:
    """Time 1,000 permutations of all 17 x 13 pairs, n = 2,000, and a few of them with calibrated-similarity."""
    n, count = job.samples or 2000, job.permutations
    ours, theirs = ({"samples": n, "permutations": number} for number in (count, FEW))
    timings = job.run_in_turns(
        rates={"contender": "rates"},
        repsim={"contender": "permuted", **ours},
        peer={"contender": "calibrated-similarity", **theirs},
    )
    exact = job.run("float64", **theirs)["values"]
    report = Report(f"{count:,} permutations, CKA, 17 x 13 layers, n = {n:,}", job)
    grams = float(n) ** 2 * sum(sum(side.values()) for side in PAIR_WIDTHS)
    pairs = float(n) ** 2 * len(RESNET50) * len(VIT_B)
    report.floor({"Grams once, all pairs": grams + count * pairs}, timings["rates"])
    report.contender("repsim", timings["repsim"], exact)
    name, factor = timings["peer"][0]["name"], count / (FEW + 1)
    estimates = [{key: factor * result[key] for key in ("seconds", "cpu")} for result in timings["peer"]]
    report.contender(f"{name}, {FEW} permutations and the original order", timings["peer"], exact)
    report.row(f"  x {count:,} / {FEW + 1}", *(f"{median(estimates, key):,.0f}" for key in ("seconds", "cpu")))
    report.ratio("calibrated-similarity / repsim", estimates, timings["repsim"])
    report.show("errors of the first permutation")


def leave_one_out(job: Job) -> None:
    """Time leave-one-out values of all 17 x 13 pairs, n = 10,000, and the comparison in the same process."""
    n = job.samples or 10_000
    timings = job.run_in_turns(rates={"contender": "rates"}, repsim={"contender": "left out", "samples": n})
    exact = job.run("left out in float64", samples=n)["values"]
    comparison = [result["comparison"] for result in timings["repsim"]]
    report = Report(f"Leave-one-out, CKA from memory, 17 x 13 layers, n = {n:,}", job)
    report.floor(flop(PAIR_WIDTHS, n), timings["rates"])
    report.row("comparison", *(f"{median(comparison, key):.2f}" for key in ("seconds", "cpu")))
    report.contender("leave-one-out", timings["repsim"], exact)
    report.ratio("leave-one-out / comparison", timings["repsim"], comparison)
    report.show("floor of the comparison", "both in one process", "errors of the values without the first sample")


def in_cache(results: Sequence[Result]) -> str:
    """Return a remark about the share of the stores in the page cache."""
    shares = [result["cached"] for result in results]
    if None in shares:
        return "stores: the system does not report whether they are in the page cache"
    least, most = (f"{100 * share:.0f}" for share in (min(shares), max(shares)))
    return f"stores: {least if least == most else f'{least} to {most}'} % in the page cache"


CASES: dict[str, Callable[[Job], None]] = {
    "memory": in_memory,
    "minibatch": minibatch,
    "processors": processors,
    "disk": disk,
    "large": large,
    "svcca": svcca,
    "models": models,
    "permutations": permutations,
    "leaveoneout": leave_one_out,
    "rsa": rsa,
}


@click.command()
@click.argument("cases", nargs=-1, type=click.Choice(list(CASES)))
@click.option("--rounds", default=3, show_default=True, help="Number of rounds; the tables show medians.")
@click.option("--threads", default=torch.get_num_threads(), show_default=True, help="Threads of every program.")
@click.option("--samples", type=click.IntRange(8), help="Number of samples n.  [default: depends on the case]")
@click.option("--permutations", "count", default=1000, show_default=True, help="Number of permutations.")
@click.option("--memory", help="Memory limit of repsim for stores on disk, such as 2GiB.")
@click.option("--folder", type=click.Path(path_type=Path, exists=True, file_okay=False), help="Keep the stores here.")
@click.option("--peer-python", default=sys.executable, help="Python of an environment with the other packages.")
def compare(  # noqa: PLR0917 - click passes by name
    cases: tuple[str, ...],
    rounds: int,
    threads: int,
    samples: int | None,
    count: int,
    memory: str | None,
    folder: Path | None,
    peer_python: str,
) -> None:
    """Compare the pooled layers of a ResNet-50 (17) and a ViT-B (13); time repsim, other packages and floors.

    \b
    memory        debiased CKA from arrays, n = 256, 2,048 and 4,096, and torch-cka with one batch
    minibatch     minibatch CKA from arrays, n = 256 and 2,048, batches of 256, and torch-cka
    processors    debiased CKA, n = 2,048, with all instructions and with AVX2, idle and beside a busy process
    disk          debiased CKA from stores, n = 10,000
    large         the same, n = 50,000, within 2 GiB (5 GB on disk)
    svcca         SVCCA from stores, n = 10,000, and decompositions for every pair
    models        CKA of all layers of 2 to 10 models of 15 layers, n = 5,000
    permutations  CKA of permuted samples, n = 2,000, and calibrated-similarity
    leaveoneout   CKA without every sample in turn, n = 10,000
    rsa           whitened cosine of RDMs, n = 2,048, and rsatoolbox

    Without a name, all cases except `large` run. A floor is the number of operations (one triangle of every symmetric
    matrix) at the rate that one large matrix product reaches on this machine in the same run. The memory columns show
    the peak of the process, and this peak minus the memory after its imports. Errors are the largest differences from
    float64.

    \b
    scripts/bench compare                                      as in docs/benchmarks.md
    scripts/bench compare memory --samples 512 --rounds 1      a quick test: some seconds
    """
    with workplace(folder) as place:
        job = Job(rounds, threads, peer_python, place, samples, memory, count)
        for case in dict.fromkeys(cases) or [name for name in CASES if name != "large"]:
            click.echo(f"{case}:", err=True)
            CASES[case](job)


@contextmanager
def workplace(folder: Path | None) -> Iterator[Path]:
    """Yield the folder of the user, or a temporary one that is deleted afterwards."""
    if folder is not None:
        yield folder
        return
    with tempfile.TemporaryDirectory(prefix="repsim-bench-") as name:
        yield Path(name)
