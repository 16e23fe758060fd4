"""All measures on one set of layers, alone in its process: settings as JSON in, a JSON line out."""

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
from naive_measures import NAIVE, PEERS
from numpy.typing import NDArray

SLOW = 6
"""Where all pairs would take so many times what a pair-by-pair contender is given, some are taken."""
Array = NDArray[Any]
Result = dict[str, Any]
Found = dict[str, Result]


@dataclass(frozen=True)
class Settings:
    """One run."""

    contender: str
    samples: int
    measures: tuple[str, ...]
    limit: float = 20.0
    """Seconds that a pair-by-pair contender is given for a measure; what is left is scaled up."""
    few: bool = False
    """Four layers by three, of small widths: to try it out."""


def sides(settings: Settings) -> list[list[Array]]:
    """Those of the other benchmarks."""
    widths: list[dict[str, int]] = [RESNET50, VIT_B]
    if settings.few:
        widths = [{"a": 8, "b": 16, "c": 24, "d": 40}, {"e": 12, "f": 20, "g": 20}]
    return [list(activations(side, settings.samples, seed).values()) for seed, side in enumerate(widths, 1)]


def by_repsim(settings: Settings) -> Found:
    """Every measure by itself, layers prepared once and all pairs at once."""
    from repsim import metrics  # noqa: PLC0415
    from repsim.metrics.base import as_samples  # noqa: PLC0415

    layers = [[as_samples(x) for x in side] for side in sides(settings)]
    found: Found = {}
    for name in settings.measures:
        metric = metrics.get(name)
        metric.block(*([metric.recipe(x[:64])] for x, *_ in layers))  # imports, and whatever else happens once
        prepared, preparing = timed(lambda: [[metric.recipe(x) for x in side] for side in layers])  # noqa: B023
        rows, columns = prepared
        middle = len(rows) // 2
        _, probe = timed(lambda: metric.block(rows[middle : middle + 1], columns))  # noqa: B023
        widths = [x.shape[1] for x in layers[0]]
        slow = len(rows) * probe["seconds"] > SLOW * settings.limit
        chosen = of_every_width(layers[0]) if slow else list(range(len(rows)))
        block, comparing = timed(lambda: metric.block([rows[i] for i in chosen], columns))  # noqa: B023
        values = np.full((len(rows), len(columns)), np.nan)
        values[chosen] = block
        share = sum(widths[i] for i in chosen) / sum(widths)
        both = {key: preparing[key] + comparing[key] / share for key in preparing}
        found[name] = {**both, "preparing": preparing["seconds"], "values": values.tolist()}
        prepared = rows = columns = []  # before the next measure takes its memory
    return found


def of_every_width(layers: Sequence[Any]) -> list[int]:
    """The first layer of each."""
    widths = [x.shape[1] for x in layers]
    return [widths.index(width) for width in sorted(set(widths))]


def pairs(left: Sequence[Array], right: Sequence[Array]) -> list[tuple[int, int]]:
    """All of them, in an order that begins with a pair of every width on the left, and is random from there on."""
    rng = np.random.default_rng(0)
    first = [(i, int(rng.integers(len(right)))) for i in rng.permutation(of_every_width(left)).tolist()]
    every = list(product(range(len(left)), range(len(right))))
    return first + [every[k] for k in rng.permutation(len(every)) if every[k] not in first]


def part(done: Sequence[tuple[int, int]], weight: Mapping[tuple[int, int], float]) -> float:
    """Of the work that all pairs take."""
    return sum(weight[pair] for pair in done) / sum(weight.values())


def pair_by_pair(of: Callable[[str], Callable[[Array, Array], float]]) -> Callable[[Settings], Found]:
    """Every pair by itself, as far as time allows, scaled up by the multiplications that a pair takes, n (p + q) n."""

    def run(settings: Settings) -> Found:
        left, right = sides(settings)
        order = pairs(left, right)
        weight = {(i, j): float(left[i].shape[1] + right[j].shape[1]) for i, j in order}
        found: Found = {}
        for name in settings.measures:
            measure = of(name)
            measure(left[0][:64], right[0][:64])  # imports, and whatever else happens once
            spent, values = {"seconds": 0.0, "cpu": 0.0}, {}
            for i, j in order:
                values[f"{i} {j}"], one = timed(lambda: measure(left[i], right[j]))  # noqa: B023
                spent = {key: spent[key] + one[key] for key in spent}
                if spent["seconds"] > settings.limit:
                    break
            done = part(order[: len(values)], weight)
            found[name] = {key: seconds / done for key, seconds in spent.items()} | {"values": values}
        return found

    return run


CONTENDERS: dict[str, Callable[[Settings], Found]] = {
    "repsim": by_repsim,
    "naive": pair_by_pair(NAIVE.__getitem__),
    "peers": pair_by_pair(lambda name: PEERS[name][1]),
}


def main(settings: Settings) -> Result:
    found = CONTENDERS[settings.contender](settings)
    if settings.contender == "peers":
        for name, each in found.items():
            each["peer"] = f"{PEERS[name][0]} {version(PEERS[name][0])}"
    return {"measures": found, "sgemm": gemm("cpu", torch.float32)}


def read(words: Sequence[str]) -> Settings:
    return Settings(**json.loads(words[1]))


if __name__ == "__main__":
    print(json.dumps(main(read(sys.argv))))
