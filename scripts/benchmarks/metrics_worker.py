"""Time all measures on one set of layers in a process of its own: read settings as JSON, print one line of JSON."""

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from itertools import product
from typing import Any

import numpy as np
import torch
from compare_worker import RESNET50, VIT_B, activations
from machine_rates import gemm, timed
from metrics_floors import floors
from naive_measures import NAIVE, PEERS
from numpy.typing import NDArray

SLOW = 6
"""If all pairs would take repsim more than this many times the limit, only one layer of every width is compared."""
HOPELESS = 6
"""Number of limits: if a quarter of the samples takes a fourth of it, one pair would take longer, and is left out."""
Array = NDArray[Any]
Result = dict[str, Any]
Results = dict[str, Result]


@dataclass(frozen=True)
class Settings:
    """Settings of one run."""

    contender: str
    samples: int
    measures: tuple[str, ...]
    limit: float = 20.0
    """Seconds per measure for a loop over pairs; the time of the remaining pairs is estimated."""
    threads: int = 1
    """Threads that the floors are measured with."""
    few: bool = False
    """Whether to use four and three small layers, to test the benchmark."""


def sides(settings: Settings) -> list[list[Array]]:
    """Return the layers of both models, as in the other benchmarks."""
    widths: list[dict[str, int]] = [RESNET50, VIT_B]
    if settings.few:
        widths = [{"a": 8, "b": 16, "c": 24, "d": 40}, {"e": 12, "f": 20, "g": 20}]
    return [list(activations(side, settings.samples, seed).values()) for seed, side in enumerate(widths, 1)]


def by_repsim(settings: Settings) -> Results:
    """Time every measure alone; prepare every layer once and compare all pairs at once.

    If this would take long, only one layer of every width is prepared, or compared, and the time is scaled up.
    """
    from repsim import metrics  # noqa: PLC0415
    from repsim.metrics.base import as_samples  # noqa: PLC0415

    layers = [[as_samples(x) for x in side] for side in sides(settings)]
    widths = [[x.shape[1] for x in side] for side in layers]
    results: Results = {}
    for name in settings.measures:
        metric = metrics.get(name)
        metric.block(*([metric.recipe(x[:64])] for x, *_ in layers))  # warm up: imports and other one-time work
        first = [one_of_every_width(side) for side in layers]
        prepared, preparing = timed(lambda: prepare(metric, layers, first))  # noqa: B023
        share = sum(side[i] for side, chosen in zip(widths, first, strict=True) for i in chosen) / sum(map(sum, widths))
        if preparing["seconds"] / share <= SLOW * settings.limit:
            others = [[i for i in range(len(side)) if i not in done] for side, done in zip(layers, first, strict=True)]
            rest, more = timed(lambda: prepare(metric, layers, others))  # noqa: B023
            prepared = [dict(sorted((done | new).items())) for done, new in zip(prepared, rest, strict=True)]
            preparing, share = {key: preparing[key] + more[key] for key in more}, 1.0
        preparing = {key: spent / share for key, spent in preparing.items()}
        rows, columns = prepared
        middle = list(rows)[len(rows) // 2]
        _, probe = timed(lambda: metric.block([rows[middle]], list(columns.values())))  # noqa: B023
        if len(rows) * probe["seconds"] > SLOW * settings.limit:
            rows = {i: rows[i] for i in first[0]}
        block, comparing = timed(lambda: metric.block(list(rows.values()), list(columns.values())))  # noqa: B023
        values = np.full((len(layers[0]), len(layers[1])), np.nan)
        values[np.ix_(list(rows), list(columns))] = block
        done = sum(widths[0][i] for i in rows) * len(columns) / (sum(widths[0]) * len(layers[1]))
        total = {key: preparing[key] + comparing[key] / done for key in preparing}
        results[name] = {**total, "preparing": preparing["seconds"], "values": values.tolist()}
        prepared, rows, columns = [], {}, {}  # free the memory before the next measure
    return results


def prepare(metric: Any, layers: Sequence[Sequence[Any]], chosen: Sequence[Sequence[int]]) -> list[dict[int, Any]]:
    """Return the chosen layers of both sides, prepared."""
    return [{i: metric.recipe(side[i]) for i in indices} for side, indices in zip(layers, chosen, strict=True)]


def one_of_every_width(layers: Sequence[Any]) -> list[int]:
    """Return the index of the first layer of every width."""
    widths = [x.shape[1] for x in layers]
    return [widths.index(width) for width in sorted(set(widths))]


def pairs(left: Sequence[Array], right: Sequence[Array]) -> list[tuple[int, int]]:
    """Return all pairs of layers: first one pair for every width on the left, then the others in random order."""
    rng = np.random.default_rng(0)
    first = [(i, int(rng.integers(len(right)))) for i in rng.permutation(one_of_every_width(left)).tolist()]
    all_pairs = list(product(range(len(left)), range(len(right))))
    return first + [all_pairs[k] for k in rng.permutation(len(all_pairs)) if all_pairs[k] not in first]


def share_of_work(done: Sequence[tuple[int, int]], weight: Mapping[tuple[int, int], float]) -> float:
    """Return the share of the pairs ``done`` in the work for all pairs."""
    return sum(weight[pair] for pair in done) / sum(weight.values())


def pair_by_pair(measure_of: Callable[[str], Callable[[Array, Array], float]]) -> Callable[[Settings], Results]:
    """Return a run that times pairs one after the other until the limit, and scales the time up to all pairs.

    The work of a pair is taken as proportional to its multiplications, n (p + q) n.
    """

    def run(settings: Settings) -> Results:
        left, right = sides(settings)
        order = pairs(left, right)
        weight = {(i, j): float(left[i].shape[1] + right[j].shape[1]) for i, j in order}
        results: Results = {}
        for name in settings.measures:
            measure = measure_of(name)
            measure(left[0][:64], right[0][:64])  # warm up: imports and other one-time work
            i, j = order[0]
            quarter = slice(max(64, settings.samples // 4))
            _, probe = timed(lambda: measure(left[i][quarter], right[j][quarter]))  # noqa: B023
            if 4 * probe["seconds"] > max(1.0, HOPELESS * settings.limit):
                continue
            spent, values = {"seconds": 0.0, "cpu": 0.0}, {}
            for i, j in order:
                values[f"{i} {j}"], pair_time = timed(lambda: measure(left[i], right[j]))  # noqa: B023
                spent = {key: spent[key] + pair_time[key] for key in spent}
                if spent["seconds"] > settings.limit:
                    break
            share = share_of_work(order[: len(values)], weight)
            results[name] = {key: seconds / share for key, seconds in spent.items()} | {"values": values}
        return results

    return run


def by_floors(settings: Settings) -> Results:
    """Return the floor of every measure."""
    left, right = ([x.shape[1] for x in side] for side in sides(settings))
    seconds = floors(settings.measures, settings.samples, left, right, settings.threads)
    return {name: {"seconds": spent} for name, spent in seconds.items()}


CONTENDERS: dict[str, Callable[[Settings], Results]] = {
    "repsim": by_repsim,
    "floor": by_floors,
    "naive": pair_by_pair(NAIVE.__getitem__),
    "peers": pair_by_pair(lambda name: PEERS[name][1]),
}


def main(settings: Settings) -> Result:
    results = CONTENDERS[settings.contender](settings)
    if settings.contender == "peers":
        for name, result in results.items():
            result["peer"] = f"{PEERS[name][0]} {version(PEERS[name][0])}"
    return {"measures": results, "sgemm": gemm("cpu", torch.float32)}


def read(words: Sequence[str]) -> Settings:
    return Settings(**json.loads(words[1]))


if __name__ == "__main__":
    print(json.dumps(main(read(sys.argv))))
