"""`scripts/bench compare`: the cases, as runs of compare_worker.py in turns, and their tables."""

import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from compare_worker import PEERS, RESNET50, VIT_B, runs
from turns import Result, fresh, median, ratios, show, table

from repsim.labels import LayerKey, SampleIds
from repsim.runtime.files import format_size
from repsim.stores.schema import ArraySpec, Contents
from repsim.stores.writer import StoreWriter

WORKER = Path(__file__).with_name("compare_worker.py")
BATCH = 256
FEW = 2
"""Permutations that the peer is given: each takes it as long as the one before."""
MODELS = (2, 4, 6, 8, 10)
FIFTEEN = {f"blocks.{i}": 768 for i in range(15)}
PAIR = {"resnet50": (RESNET50, 1), "vit": (VIT_B, 2)}
"""Widths and seeds of the two models."""
PAIR_WIDTHS = (RESNET50, VIT_B)


@dataclass(frozen=True)
class Job:
    """How everything is run."""

    rounds: int
    threads: int
    peer_python: str
    folder: Path
    samples: int | None = None
    memory: str | None = None
    permutations: int = 1000

    def run(self, contender: str, **settings: Any) -> Result:
        """Once, in a fresh process."""
        python = self.peer_python if contender in PEERS else sys.executable
        click.echo(f"  {contender} ...", err=True)
        return fresh(WORKER, {"contender": contender, **settings}, python=python, threads=self.threads, label=contender)

    def turns(self, **contenders: Mapping[str, Any]) -> dict[str, list[Result]]:
        """Every contender once a round, every other round in reverse: nobody is always first."""
        found: dict[str, list[Result]] = {name: [] for name in contenders}
        for turn in range(self.rounds):
            for name in list(contenders)[:: -1 if turn % 2 else 1]:
                found[name].append(self.run(**contenders[name]))
        return found

    def stores(self, models: Mapping[str, tuple[Mapping[str, int], int]], n: int) -> list[str]:
        """One store a model, of n samples: written a run of samples at a time, unless an earlier call has left it."""
        paths = {name: self.folder / f"{name}-{n}.h5" for name in models}
        missing = [name for name, path in paths.items() if not path.exists()]
        size = sum(4 * n * sum(models[name][0].values()) for name in missing)
        free = shutil.disk_usage(self.folder).free
        if size * 1.05 > free:
            raise click.ClickException(
                f"{format_size(size)} do not fit into {self.folder}, {format_size(free)} are free: --folder"
            )
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
                    writer.done(rows)
        return [str(path) for path in paths.values()]


class Report:
    """One case's table: floors, contenders, ratios."""

    COLUMNS = ("seconds", "CPU seconds", "peak MiB", "of it own", "largest error")

    def __init__(self, title: str, job: Job, *more: str) -> None:
        how = f"{job.threads} threads, medians of {job.rounds}"
        self.table = table(f"{title}; {how}", *self.COLUMNS, *more)

    def row(self, label: str, *cells: str) -> None:
        self.table.add_row(label, *cells)

    def floor(self, flop: Mapping[str, float], rates: Sequence[Result]) -> dict[str, float]:
        """The least time for the cheaper of several ways, at the measured rate of matrix products."""
        way = min(flop, key=lambda way: flop[way])
        rate = {key: float(np.median([run["sgemm"][key] for run in rates])) for key in ("seconds", "cpu")}
        least = {key: flop[way] / rate[key] for key in rate}
        label = f"floor: {way}, {flop[way] / 1e9:,.0f} GFLOP at {rate['seconds'] / 1e9:,.0f} GFLOP/s"
        self.row(label, f"{least['seconds']:.2f}", f"{least['cpu']:.2f}")
        return least

    def contender(self, label: str, results: Sequence[Result], exact: Any = None, *more: str) -> None:
        """Its medians, and how far its values are from exact ones."""
        if failure := next((result["failure"] for result in results if "failure" in result), None):
            self.row(label, failure)
            return
        cells = [f"{median(results, key):{form}}" for key, form in FORMS.items()]
        error = "" if exact is None else f"{max(apart(result['values'], exact) for result in results):.1e}"
        self.row(label, *cells, error, *more)

    def ratio(self, label: str, over: Sequence[Result], under: Sequence[Result], values: str = "") -> None:
        """Medians over the turns of one contender's times over another's."""
        if not any("failure" in result for result in (*over, *under)):
            self.row(label, *(f"{ratios(over, under, key):.1f} x" for key in ("seconds", "cpu")), "", "", values)

    def show(self, *remarks: str) -> None:
        """With what there is to say of all rows."""
        self.table.caption = "; ".join(remarks)
        show(self.table)


FORMS = {"seconds": ".2f", "cpu": ".2f", "mib": ",.0f", "own mib": ",.0f"}


def apart(values: Any, exact: Any) -> float:
    """The largest difference; that of what is not a number is none, so not a number."""
    return float(np.abs(np.asarray(values) - np.asarray(exact)).max())


def flop(sides: Sequence[Mapping[str, int]], n: int, batch: int | None = None) -> dict[str, float]:
    """Of all pairs of layers, by the space in which they are computed: what symmetry spares is not counted."""
    widths = [np.array(list(side.values()), float) for side in sides]
    pairs = float(np.prod([len(side) for side in widths]))
    found = {"Gram space": n * (batch or n) * (sum(side.sum() for side in widths) + pairs)}
    if batch is None:
        products = 2 * np.prod([side.sum() for side in widths]) + sum((side**2).sum() for side in widths)
        found["feature space"] = n * products
    return {way: float(count) for way, count in found.items()}


def kinds(a: Mapping[str, int], b: Mapping[str, int]) -> dict[tuple[str, str], int]:
    """A pair of layers of every two widths that there are, and how many pairs have these."""
    first: dict[tuple[int, int], tuple[str, str]] = {}
    counts: Counter[tuple[str, str]] = Counter()
    for one, p in a.items():
        for other, q in b.items():
            counts[first.setdefault((p, q), (one, other))] += 1
    return dict(counts)


def picked(result: Result, pairs: Sequence[tuple[str, str]], key: str = "values") -> list[float]:
    """The values of some pairs out of a matrix."""
    rows, columns = result["layers a"], result["layers b"]
    return [result[key][rows.index(a)][columns.index(b)] for a, b in pairs]


def in_memory(job: Job) -> None:
    """17 x 13 layers from arrays, debiased, beside torch-cka with all samples in one batch."""
    for n in (job.samples,) if job.samples else (2048, 4096):
        beside(job, f"CKA from memory, 17 x 13 layers, n = {n:,}", "torch-cka", n, flop(PAIR_WIDTHS, n))


def minibatch(job: Job) -> None:
    """The same in minibatches of 256: the same ones for torch-cka."""
    n = job.samples or 2048
    title = f"Minibatch CKA, 17 x 13 layers, n = {n:,}, batches of {BATCH}"
    batch = {"metric": f"cka:estimator=minibatch,batch={BATCH}", "batch": BATCH}
    beside(job, title, "torch-cka", n, flop(PAIR_WIDTHS, n // BATCH * BATCH, BATCH), **batch)


def rsa(job: Job) -> None:
    """Whitened cosine of squared Euclidean RDMs, which is biased linear CKA, beside rsatoolbox."""
    n = job.samples or 2048
    title = f"RSA, whitened cosine, 17 x 13 layers, n = {n:,}"
    beside(job, title, "rsatoolbox", n, flop(PAIR_WIDTHS, n), metric="cka:estimator=biased")


def beside(job: Job, title: str, peer: str, n: int, flop: Mapping[str, float], **settings: Any) -> None:
    """From arrays: the floor, repsim, a peer, and how many times slower that is."""
    settings = {"samples": n, **settings}
    found = job.turns(
        rates={"contender": "rates"},
        repsim={"contender": "repsim", **settings},
        peer={"contender": peer, **settings},
    )
    exact = job.run("float64", **settings)["values"]
    report = Report(title, job)
    report.floor(flop, found["rates"])
    report.contender("repsim", found["repsim"], exact)
    name = found["peer"][0].get("name", peer)
    report.contender(name, found["peer"], exact)
    if "values" in found["peer"][0]:
        values = f"{apart(found['peer'][0]['values'], found['repsim'][0]['values']):.0e} apart"
        report.ratio(f"{peer} / repsim", found["peer"], found["repsim"], values)
    report.show()


def disk(job: Job) -> None:
    """The same from stores on disk, n = 10,000, beside the floor."""
    from_disk(job, job.samples or 10_000, job.memory)


def large(job: Job) -> None:
    """n = 50,000 from stores on disk, within 2 GiB."""
    from_disk(job, job.samples or 50_000, job.memory or "2GiB")


def from_disk(job: Job, n: int, memory: str | None) -> None:
    stores, pairs = job.stores(PAIR, n), list(kinds(*PAIR_WIDTHS))
    found = job.turns(
        rates={"contender": "rates", "stores": stores},
        repsim={"contender": "stores", "stores": stores, "memory": memory},
    )
    exact = job.run("pairs in float64", stores=stores, pairs=pairs)["values"]
    results = [{**result, "values": picked(result, pairs)} for result in found["repsim"]]
    report = Report(f"CKA from disk, 17 x 13 layers, n = {n:,}, memory: {memory or 'half of the machine'}", job)
    least = report.floor(flop(PAIR_WIDTHS, n), found["rates"])
    report.contender("repsim", results, exact)
    report.row("repsim / floor", *(f"{median(results, key) / least[key]:.2f} x" for key in least))
    predicted, planned = median(results, "predicted"), median(results, "planned mib")
    report.row("predicted by the plan", f"{predicted:.2f}", "", f"{planned:,.0f}")
    times, memories = ratios(results, results, "seconds", "predicted"), ratios(results, results, "mib", "planned mib")
    report.row("repsim / predicted", f"{times:.2f} x", "", f"{memories:.2f} x")
    report.show(
        in_cache(results),
        f"plain reads: {median(found['rates'], 'read') / 1e6:,.0f} MB/s",
        f"errors of {len(pairs)} pairs, one of every two widths",
    )


def svcca(job: Job) -> None:
    """SVCCA of the same layers from stores on disk, n = 10,000, beside decompositions for every pair, and a floor."""
    n = job.samples or 10_000
    stores, counts = job.stores(PAIR, n), kinds(*PAIR_WIDTHS)
    pairs, widths = list(counts), sorted({min(n, p) for side in PAIR_WIDTHS for p in side.values()})
    others = ("pairs", "pairs by SVD", "pairs by SVD in float64")
    found: dict[str, list[Result]] = {name: [] for name in ("repsim", "rates", *others)}
    for _ in range(job.rounds):
        result = job.run("stores", stores=stores, metric="svcca")
        kept = [dict(zip(result[f"layers {side}"], result[f"components {side}"], strict=True)) for side in "ab"]
        shapes = [(kept[0][a], kept[1][b]) for a, b in pairs]
        found["repsim"].append({**result, "values": picked(result, pairs)})
        found["rates"].append(job.run("rates", stores=stores, widths=widths, shapes=shapes))
        for name in others:
            found[name].append(scaled(job.run(name, stores=stores, pairs=pairs, metric="svcca"), list(counts.values())))
    exact = found["pairs by SVD in float64"][0]["values"]
    report = Report(f"SVCCA from disk, 17 x 13 layers, n = {n:,}", job)
    parts = [
        svcca_floor(*each, n, widths, list(counts.values()))
        for each in zip(found["repsim"], found["rates"], strict=True)
    ]
    for what in parts[0]["seconds"]:
        report.row(f"  {what}", *(f"{median([part[key] for part in parts], what):.2f}" for key in ("seconds", "cpu")))
    least = [{key: sum(part[key].values()) for key in part} for part in parts]
    report.row("floor: their sum", *(f"{median(least, key):.2f}" for key in ("seconds", "cpu")))
    report.contender("repsim", found["repsim"], exact)
    report.ratio("repsim / floor", found["repsim"], least)
    for name, label in zip(others, ("repsim.similarity", "SVD in float32", "SVD in float64"), strict=True):
        report.contender(f"{label}, for every pair", found[name], exact)
        report.ratio(f"{label} / repsim", found[name], found["repsim"])
    report.show(
        in_cache(found["repsim"]),
        f"for every pair: {len(pairs)} pairs timed without reading, one of every two widths, times how many have these",
    )


def scaled(result: Result, counts: Sequence[int]) -> Result:
    """What all pairs would take, from what one of each kind took."""
    total = {
        key: sum(count * each[key] for count, each in zip(counts, result["each"], strict=True))
        for key in ("seconds", "cpu")
    }
    return {**result, **total}


def svcca_floor(
    result: Result, rates: Result, n: int, widths: Sequence[int], counts: Sequence[int]
) -> dict[str, dict[str, float]]:
    """Every layer decomposed once, every pair's bases multiplied once: seconds at the rates of this machine."""
    kept = [*result["components a"], *result["components b"]]
    layers = list(zip([p for side in PAIR_WIDTHS for p in side.values()], kept, strict=True))
    squares = sum(n * p * min(n, p) for p, _ in layers)
    bases = sum(2 * n * p * k for p, k in layers if p <= n)  # of a wider layer, the eigenvectors are the basis
    products = 2 * n * sum(result["components a"]) * sum(result["components b"])

    def at(key: str) -> dict[str, float]:
        decomposed = dict(zip(widths, (spent[key] for spent in rates["eigh"]), strict=True))
        values = (count * spent[key] for count, spent in zip(counts, rates["svdvals"], strict=True))
        return {
            f"X'X, {squares / 1e9:,.0f} GFLOP in float64": squares / rates["dgemm"][key],
            "its eigenvectors": sum(decomposed[min(n, p)] for p, _ in layers),
            f"bases, {bases / 1e9:,.0f} GFLOP in float64": bases / rates["dgemm"][key],
            f"products of bases, {products / 1e9:,.0f} GFLOP in float32": products / rates["sgemm"][key],
            "their singular values": sum(values),
        }

    return {key: at(key) for key in ("seconds", "cpu")}


def models(job: Job) -> None:
    """All layers of 2, 4, ... 10 models of 15 layers with one another, n = 5,000, from stores on disk."""
    n = job.samples or 5000
    stores = job.stores({f"m{seed}": (FIFTEEN, seed) for seed in range(1, MODELS[-1] + 1)}, n)
    found = job.turns(
        rates={"contender": "rates"},
        **{f"{k}": {"contender": "stores", "stores": stores[:k], "together": True} for k in MODELS},
    )
    first, *_, last = FIFTEEN
    exact = job.run("pairs in float64", stores=stores[:2], pairs=[(first, last)])["values"]
    rate = float(np.median([run["sgemm"]["seconds"] for run in found["rates"]]))
    report = Report(
        f"All layers of some models with one another, 15 layers of 768 each, n = {n:,}", job,
        "Gram TFLOP", "pair TFLOP", "of floor", "s a model",
    )  # fmt: skip
    for k in MODELS:
        results = [{**result, "values": picked(result, [(f"m1/{first}", f"m2/{last}")])} for result in found[f"{k}"]]
        grams, pairs = float(n) ** 2 * sum(FIFTEEN.values()) * k, float(n) ** 2 * (len(FIFTEEN) * k) ** 2
        seconds = median(results, "seconds")
        work = [f"{grams / 1e12:.2f}", f"{pairs / 1e12:.2f}"]
        floor = f"{seconds * rate / (grams + pairs):.2f} x"
        report.contender(f"{k} models, {15 * k} x {15 * k}", results, exact, *work, floor, f"{seconds / k:.2f}")
    report.show(in_cache(found[f"{MODELS[-1]}"]), f"floor: at {rate / 1e9:,.0f} GFLOP/s", "errors of one pair")


def permutations(job: Job) -> None:
    """1,000 permutations of all 17 x 13 pairs, n = 2,000, beside calibrated-similarity for a few of them."""
    n, count = job.samples or 2000, job.permutations
    ours, theirs = ({"samples": n, "permutations": number} for number in (count, FEW))
    found = job.turns(
        rates={"contender": "rates"},
        repsim={"contender": "permuted", **ours},
        peer={"contender": "calibrated-similarity", **theirs},
    )
    exact = job.run("float64", **theirs)["values"]
    report = Report(f"{count:,} permutations, CKA, 17 x 13 layers, n = {n:,}", job)
    grams = float(n) ** 2 * sum(sum(side.values()) for side in PAIR_WIDTHS)
    pairs = float(n) ** 2 * len(RESNET50) * len(VIT_B)
    report.floor({"Grams once, all pairs": grams + count * pairs}, found["rates"])
    report.contender("repsim", found["repsim"], exact)
    name, times = found["peer"][0]["name"], count / (FEW + 1)
    all_of_them = [{key: times * result[key] for key in ("seconds", "cpu")} for result in found["peer"]]
    report.contender(f"{name}, {FEW} and the order as it is", found["peer"], exact)
    report.row(f"  x {count:,} / {FEW + 1}", *(f"{median(all_of_them, key):,.0f}" for key in ("seconds", "cpu")))
    report.ratio("calibrated-similarity / repsim", all_of_them, found["repsim"])
    report.show("errors of the first permutation")


def leave_one_out(job: Job) -> None:
    """Every sample left out of all 17 x 13 pairs, n = 10,000, beside the comparison in the same process."""
    n = job.samples or 10_000
    found = job.turns(rates={"contender": "rates"}, repsim={"contender": "left out", "samples": n})
    exact = job.run("left out in float64", samples=n)["values"]
    comparison = [result["comparison"] for result in found["repsim"]]
    report = Report(f"Leave-one-out, CKA from memory, 17 x 13 layers, n = {n:,}", job)
    report.floor(flop(PAIR_WIDTHS, n), found["rates"])
    report.row("comparison", *(f"{median(comparison, key):.2f}" for key in ("seconds", "cpu")))
    report.contender("leave-one-out", found["repsim"], exact)
    report.ratio("leave-one-out / comparison", found["repsim"], comparison)
    report.show("floor: the comparison's", "both in one process", "errors without the first sample")


def in_cache(results: Sequence[Result]) -> str:
    """How much of the stores the system had in memory, in words."""
    shares = [result["cached"] for result in results]
    if None in shares:
        return "stores: in the page cache or not, the system does not tell"
    least, most = (f"{100 * share:.0f}" for share in (min(shares), max(shares)))
    return f"stores: {least if least == most else f'{least} to {most}'} % in the page cache"


CASES: dict[str, Callable[[Job], None]] = {
    "memory": in_memory,
    "minibatch": minibatch,
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
@click.option("--rounds", default=3, show_default=True, help="Turns; the medians are shown.")
@click.option("--threads", default=torch.get_num_threads(), show_default=True, help="Threads of every contender.")
@click.option("--samples", type=click.IntRange(8), help="Samples n, instead of each case's own.")
@click.option("--permutations", "count", default=1000, show_default=True, help="How many, of the case of that name.")
@click.option("--memory", help="What repsim may take from disk, such as 2GiB.")
@click.option("--folder", type=click.Path(path_type=Path, exists=True, file_okay=False), help="Keeps stores in there.")
@click.option("--peer-python", default=sys.executable, help="The python of an environment with the peers.")
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
    """The layers of a ResNet-50 (17) and a ViT-B (13), pooled, beside what else compares them, and beside floors.

    \b
    memory        debiased CKA from arrays, n = 2,048 and 4,096, and torch-cka with one batch
    minibatch     minibatch CKA from arrays, n = 2,048, batches of 256, and torch-cka
    disk          debiased CKA from stores, n = 10,000
    large         the same, n = 50,000, within 2 GiB (5 GB on the disk)
    svcca         SVCCA from stores, n = 10,000, and decompositions for every pair
    models        CKA of all layers of 2 to 10 models of 15 layers, n = 5,000
    permutations  CKA of permuted samples, n = 2,000, and calibrated-similarity
    leaveoneout   CKA with every sample left out, n = 10,000
    rsa           whitened cosine of RDMs, n = 2,048, and rsatoolbox

    Without a name: all but `large`. Floors are operations, one triangle of what is symmetric, at the rate that one
    large matrix product reaches on this machine in the same run. Memory is the peak of the process, and what of it came
    after its imports, the data with it. Errors are the largest against float64.

    \b
    scripts/bench compare                                      as in docs/benchmarks.md
    scripts/bench compare memory --samples 512 --rounds 1      a look: some seconds
    """
    with workplace(folder) as place:
        job = Job(rounds, threads, peer_python, place, samples, memory, count)
        for case in dict.fromkeys(cases) or [name for name in CASES if name != "large"]:
            click.echo(f"{case}:", err=True)
            CASES[case](job)


@contextmanager
def workplace(folder: Path | None) -> Iterator[Path]:
    """A folder that goes away, or one that stays."""
    if folder is not None:
        yield folder
        return
    with tempfile.TemporaryDirectory(prefix="repsim-bench-") as name:
        yield Path(name)
