"""Time one comparison in a process of its own: read settings as JSON, print the measurements as one line of JSON.

Other packages may need an environment of their own, so each function imports the package that it uses. For programs
that take arrays, a function does the preparation that is not timed, and returns the function that is timed.
"""

import functools
import json
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import numpy as np
import torch
from machine_rates import best, cached, gemm, now_mib, peak_mib, read, timed
from numpy.typing import NDArray
from torch import Tensor

Array = NDArray[Any]
Layers = Mapping[str, Array]
Work = Callable[[], Array]
Result = dict[str, Any]

RESNET50 = {"maxpool": 64}
RESNET50 |= {f"layer{i + 1}.{j}": 256 * 2**i for i, blocks in enumerate((3, 4, 6, 3)) for j in range(blocks)}
VIT_B = dict.fromkeys(["embedding", *(f"blocks.{i}" for i in range(12))], 768)
RUN = 1024
"""Number of samples that are generated at once."""


@dataclass(frozen=True)
class Settings:
    """Settings of one run, on generated arrays or on stores."""

    contender: str
    samples: int = 0
    metric: str = "cka"
    batch: int | None = None
    """Batch size of torch-cka; that of repsim is part of the metric."""
    permutations: int = 0
    stores: tuple[str, ...] = ()
    together: bool = False
    """Whether to compare all layers of all stores with each other, instead of one store with another."""
    memory: str | None = None
    pairs: tuple[tuple[str, str], ...] = ()
    """Pairs of layers to compare: one of the first store and one of the last."""
    widths: tuple[int, ...] = ()
    """Sizes of the matrices X'X whose eigenvalue decomposition is timed."""
    shapes: tuple[tuple[int, int], ...] = ()
    """Shapes of the matrices whose singular values are timed."""


def runs(widths: Mapping[str, int], n: int, seed: int) -> Iterator[tuple[slice, dict[str, Array]]]:
    """Yield blocks of samples of synthetic float32 layers, as pairs of row slice and arrays.

    A layer is the sum of 64 directions, noise, and a mean. All models share the 64 signals. Their strengths decrease,
    and are shifted from layer to layer.
    """
    rng = np.random.default_rng(seed)
    strengths = (np.roll(np.arange(1, 65, dtype=np.float32) ** -0.5, depth) for depth in range(len(widths)))
    mixing = {
        name: (rng.standard_normal((64, p), dtype=np.float32) * strength[:, None], rng.random(p, dtype=np.float32))
        for (name, p), strength in zip(widths.items(), strengths, strict=True)
    }
    for start in range(0, n, RUN):
        rows = slice(start, min(start + RUN, n))
        count = rows.stop - start
        signal = np.random.default_rng([0, start]).standard_normal((count, 64), dtype=np.float32)  # for every model
        noise = np.random.default_rng([seed, start])
        yield (
            rows,
            {
                name: noise.standard_normal((count, widths[name]), dtype=np.float32) / 2 + signal @ directions + mean
                for name, (directions, mean) in mixing.items()
            },
        )


def activations(widths: Mapping[str, int], n: int, seed: int) -> dict[str, Array]:
    """Return all samples of the layers that `runs` generates."""
    layers = {name: np.empty((n, p), np.float32) for name, p in widths.items()}
    for rows, block in runs(widths, n, seed):
        for name, values in block.items():
            layers[name][rows] = values
    return layers


def orders(n: int, count: int) -> NDArray[np.int64]:
    """Return ``count`` permutations of n samples, an array (count, n); smaller counts give the first of them."""
    rng = np.random.default_rng(0)
    return np.stack([rng.permutation(n) for _ in range(count)])


# --- from arrays


def by_repsim(a: Layers, b: Layers, settings: Settings) -> Work:
    """Prepare every layer and compare all pairs at once, as `repsim compare` does between reading and writing."""
    import repsim.metrics  # noqa: PLC0415
    from repsim.engine.preparation import Source, prepare  # noqa: PLC0415
    from repsim.metrics.base import as_samples  # noqa: PLC0415
    from repsim.metrics.recipes.cost import LayerSize  # noqa: PLC0415

    metric = repsim.metrics.get(settings.metric)
    sides = [
        [
            Source(f"{k} {name}", name, functools.partial(as_samples, x), LayerSize(len(x), x.shape[1], x.itemsize))
            for name, x in side.items()
        ]
        for k, side in enumerate((a, b))
    ]

    def work() -> Array:
        factors = prepare(metric.recipe, [source for side in sides for source in side]).factors
        return metric.block(*([factors[source.name] for source in side] for side in sides))

    return work


def in_float64(a: Layers, b: Layers, settings: Settings) -> Work:
    """Compute the reference values in float64; tests/metrics shows that they are exact to 1e-12.

    With permutations, the samples are permuted by the first one. For leave-one-out, the first sample is left out.
    """
    if settings.contender == "left out in float64":
        a, b = ({name: x[1:] for name, x in side.items()} for side in (a, b))
    if settings.permutations:
        (order,) = orders(len(next(iter(b.values()))), 1)
        b = {name: y[order] for name, y in b.items()}
    left, right = ({name: x.astype(np.float64) for name, x in side.items()} for side in (a, b))
    return by_repsim(left, right, settings)


def by_torch_cka(a: Layers, b: Layers, settings: Settings) -> Work:
    """Compute CKA with torch-cka.

    torch-cka compares models, so it gets two models whose layers return the arrays. Its batches are blocks of
    consecutive samples, so the samples are put into the order in which repsim draws its minibatches.
    """
    from torch_cka import CKA  # noqa: PLC0415

    from repsim.labels import partition  # noqa: PLC0415

    class Recorded(torch.nn.Module):
        def __init__(self, array: Array) -> None:
            super().__init__()
            self.array = torch.from_numpy(array)

        def forward(self, rows: Tensor) -> Tensor:
            return self.array[int(rows[0]) : int(rows[-1]) + 1]

    class Model(torch.nn.Sequential):
        def forward(self, rows: Tensor) -> None:
            for layer in self:
                layer(rows)

    n = len(next(iter(a.values())))
    if settings.batch:
        order = partition(n)[: n // settings.batch * settings.batch]
        a, b = ({name: x[order] for name, x in side.items()} for side in (a, b))
        n = len(order)
    models = [Model(*map(Recorded, side.values())) for side in (a, b)]
    names = [[f"{i}" for i in range(len(side))] for side in (a, b)]
    rows = torch.utils.data.TensorDataset(torch.arange(n))
    batches = torch.utils.data.DataLoader(rows, batch_size=settings.batch or n)

    def work() -> Array:
        peer = CKA(*models, "a", "b", *names)
        peer.compare(batches, batches)
        return np.asarray(peer.export()["CKA"])

    return work


def by_rsatoolbox(a: Layers, b: Layers, settings: Settings) -> Work:  # noqa: ARG001
    """Compute the whitened cosine of squared Euclidean RDMs: biased linear CKA (Diedrichsen et al. 2020)."""
    from rsatoolbox.data import Dataset  # noqa: PLC0415
    from rsatoolbox.rdm import calc_rdm, compare  # noqa: PLC0415

    left, right = ([Dataset(x) for x in side.values()] for side in (a, b))

    def work() -> Array:
        rdms = (calc_rdm(side, method="euclidean") for side in (left, right))
        return np.asarray(compare(*rdms, method="cosine_cov"))

    return work


def by_permuting(a: Layers, b: Layers, settings: Settings) -> Work:
    """Compute all pairs under all permutations with repsim."""
    from repsim.engine.resampling import permuted  # noqa: PLC0415

    drawn = orders(len(next(iter(a.values()))), settings.permutations)
    return lambda: permuted(list(a.values()), list(b.values()), settings.metric, drawn)


def by_calibrated_similarity(a: Layers, b: Layers, settings: Settings) -> Work:
    """Compute the same permutations with calibrated-similarity, which also computes the original order.

    It takes the measure as an argument: see `debiased_cka`.
    """
    from calibrated_similarity import calibrate_layers  # noqa: PLC0415

    left, right = ([torch.from_numpy(x) for x in side.values()] for side in (a, b))
    drawn = iter(orders(len(left[0]), settings.permutations))
    seen: list[Array] = []

    def keep(values: Tensor) -> Tensor:
        seen.append(values.numpy().copy())
        return values.max()

    def work() -> Array:
        calibrate_layers(
            left, right, debiased_cka, agg=keep, K=settings.permutations,
            perm_fn=lambda _, device: torch.from_numpy(next(drawn)).to(device),
        )  # fmt: skip
        return np.stack(seen[1:])

    return work


def debiased_cka(x: Tensor, y: Tensor) -> Tensor:
    """Return CKA of two Gram matrices as in the documentation of calibrated-similarity, but U-centred (debiased)."""

    def centred(x: Tensor) -> Tensor:
        x = x - x.mean(0)
        gram = (x @ x.T).fill_diagonal_(0)
        sums = gram.sum(0)
        offsets = (sums - sums.sum() / (2 * (len(x) - 1))) / (len(x) - 2)
        return gram.sub_(offsets).sub_(offsets[:, None]).fill_diagonal_(0)

    a, b = centred(x), centred(y)
    value: Tensor = (a * b).sum() / a.norm() / b.norm()
    return value


def from_arrays(prepare: Callable[[Layers, Layers, Settings], Work]) -> Callable[[Settings], Result]:
    """Return a run of a program that takes arrays; a first call on few samples is not timed."""

    def run(settings: Settings) -> Result:
        a, b = both_models(settings.samples)
        prepare(first_samples(a, settings), first_samples(b, settings), settings)()
        try:
            values, spent = timed(prepare(a, b, settings))
        except AssertionError as error:  # torch-cka reports NaN in this way
            return {"failure": str(error)}
        return {**spent, "values": (values if values.ndim == 2 else values[0]).tolist()}

    return run


def both_models(n: int) -> tuple[dict[str, Array], dict[str, Array]]:
    """Return the activations of both models."""
    return activations(RESNET50, n, seed=1), activations(VIT_B, n, seed=2)


def first_samples(side: Layers, settings: Settings) -> Layers:
    """Return the first samples of two layers, to run imports and one-time work before the timing."""
    return {name: side[name][: max(64, settings.batch or 0)] for name in list(side)[:2]}


def run_leave_one_out(settings: Settings) -> Result:
    """Time the comparison, and then all leave-one-out values, in one process."""
    from repsim.engine.resampling import leave_one_out  # noqa: PLC0415

    a, b = both_models(settings.samples)

    def work(a: Layers, b: Layers) -> Array:
        return leave_one_out(list(a.values()), list(b.values()), settings.metric)

    by_repsim(first_samples(a, settings), first_samples(b, settings), settings)()
    work(first_samples(a, settings), first_samples(b, settings))
    _, comparison = timed(by_repsim(a, b, settings))
    values, spent = timed(lambda: work(a, b))
    return {**spent, "comparison": comparison, "values": values[0].tolist()}


# --- from stores


def from_stores(settings: Settings) -> Result:
    """Time `repsim compare` from opening the stores to the matrix, without writing the result."""
    from repsim.engine.comparison import Comparison  # noqa: PLC0415

    by_repsim(activations({"few": 64}, 64, 1), activations({"few": 64}, 64, 2), settings)()
    a, b = (list(settings.stores), None) if settings.together else settings.stores
    shares = [cached(path) for path in settings.stores]

    def planned() -> Comparison:
        return Comparison(a, b, [settings.metric], device="cpu", memory=settings.memory)

    with planned() as first:
        predicted = first.plan.seconds(first.rates())

    def work() -> tuple[Any, int]:
        with planned() as job:
            return job.run(), job.plan.memory

    (dataset, memory), spent = timed(work)
    (spec,) = dataset.data_vars
    result = {**spent, "predicted": predicted, "planned mib": memory / 2**20, "values": dataset[spec].values.tolist()}
    for side in "ab":
        result[f"layers {side}"] = dataset[f"layer_{side}"].values.tolist()
        if f"{spec}.components_{side}" in dataset:
            result[f"components {side}"] = dataset[f"{spec}.components_{side}"].values.astype(int).tolist()
    return {**result, "cached": None if None in shares else sum(filter(None, shares)) / len(shares)}


def pair_by_pair(measure: Callable[[Tensor, Tensor, str], float], dtype: torch.dtype) -> Callable[[Settings], Result]:
    """Return a run that computes pairs of layers one by one, and times each of them without reading."""

    def run(settings: Settings) -> Result:
        from repsim.stores.store import open_store  # noqa: PLC0415

        x = torch.randn(64, 8, dtype=dtype)
        measure(x, x, settings.metric)
        result: Result = {"values": [], "times": []}
        with open_store(settings.stores[0]) as a, open_store(settings.stores[-1]) as b:
            for layer_a, layer_b in settings.pairs:
                x, y = (torch.from_numpy(layer[:]).to(dtype) for layer in (a[layer_a], b[layer_b]))
                value, spent = timed(lambda x=x, y=y: measure(x, y, settings.metric))  # type: ignore[misc]
                result["values"].append(float(value))
                result["times"].append(spent)
        return result

    return run


def by_similarity(x: Tensor, y: Tensor, metric: str) -> float:
    """Return the value of `repsim.similarity`, which prepares both layers for every pair."""
    from repsim.engine.comparison import similarity  # noqa: PLC0415

    return similarity(x, y, metric)


def by_svd(x: Tensor, y: Tensor, metric: str) -> float:
    """Return SVCCA as it was published, with a singular value decomposition of both layers."""
    del metric

    def leading(x: Tensor) -> Tensor:
        u, s, _ = torch.linalg.svd(x - x.mean(0), full_matrices=False)
        explained = s.double().square().cumsum(0)
        kept: Tensor = u[:, : int((explained < 0.99 * explained[-1]).sum()) + 1]
        return kept

    return float(torch.linalg.svdvals(leading(x).T @ leading(y)).mean())


def rates(settings: Settings) -> Result:
    """Measure the rates of the machine from which floors are computed."""
    result: Result = {"sgemm": gemm("cpu", torch.float32), "dgemm": gemm("cpu", torch.float64)}
    if settings.stores:
        result["read"] = read(settings.stores[0])
    squares = (torch.randn(p, p, dtype=torch.float64) for p in settings.widths)
    result["eigh"] = [best(lambda x=x @ x.T: torch.linalg.eigh(x), 2) for x in squares]  # type: ignore[misc]
    crosses = (torch.randn(k, m, dtype=torch.float64) for k, m in settings.shapes)
    result["svdvals"] = [best(lambda x=x: torch.linalg.svdvals(x), 2) for x in crosses]  # type: ignore[misc]
    return result


CONTENDERS: dict[str, Callable[[Settings], Result]] = {
    "repsim": from_arrays(by_repsim),
    "float64": from_arrays(in_float64),
    "torch-cka": from_arrays(by_torch_cka),
    "rsatoolbox": from_arrays(by_rsatoolbox),
    "permuted": from_arrays(by_permuting),
    "calibrated-similarity": from_arrays(by_calibrated_similarity),
    "left out": run_leave_one_out,
    "left out in float64": from_arrays(in_float64),
    "stores": from_stores,
    "pairs": pair_by_pair(by_similarity, torch.float32),
    "pairs in float64": pair_by_pair(by_similarity, torch.float64),
    "pairs by SVD": pair_by_pair(by_svd, torch.float32),
    "pairs by SVD in float64": pair_by_pair(by_svd, torch.float64),
    "rates": rates,
}
PEERS = {"torch-cka": "torch_cka", "rsatoolbox": "rsatoolbox", "calibrated-similarity": "calibrated_similarity"}
"""Programs that are other packages, with the names of their modules."""


def main(settings: Settings) -> Result:
    """Run one program; return its result, the peak memory, and the peak minus the memory after the imports."""
    peer = settings.contender in PEERS
    try:
        __import__(PEERS[settings.contender] if peer else "repsim.engine.comparison")
        before = now_mib()
        result = CONTENDERS[settings.contender](settings)
    except ModuleNotFoundError as missing:
        if not peer or missing.name != PEERS[settings.contender]:
            raise
        name = settings.contender
        sys.exit(f"{name} is not installed: pip install -e '.[bench]', or name a Python that has it with --peer-python")
    peak = peak_mib()
    label = f"{settings.contender} {version(settings.contender)}" if peer else settings.contender
    return {**result, "name": label, "mib": peak, "added mib": peak - before}


if __name__ == "__main__":
    print(json.dumps(main(Settings(**json.loads(sys.argv[1])))))
