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
from naive_measures import NAIVE, PEERS, ROWWISE
from numpy.typing import NDArray

Array = NDArray[Any]
Result = dict[str, Any]
Found = dict[str, Result]
Job = tuple[list[int], list[int]]
"""Layers of one side, each of which is compared with each of some layers of the other."""

FEW = {"a": 8, "b": 16, "c": 24, "d": 40}, {"e": 12, "f": 20, "g": 20}


@dataclass(frozen=True)
class Settings:
    """One run."""

    contender: str
    samples: int
    measures: tuple[str, ...]
    limit: float = 20.0
    """Seconds for a measure; what is left is scaled up."""
    few: bool = False
    """Four layers by three, of small widths: to try it out."""
    stores: tuple[str, ...] = ()
    """Of the same layers, for what goes through `repsim.compare`."""


def widths(settings: Settings) -> tuple[Mapping[str, int], Mapping[str, int]]:
    return FEW if settings.few else (RESNET50, VIT_B)


def sides(settings: Settings) -> list[list[Array]]:
    """Those of the other benchmarks."""
    made = enumerate(widths(settings), 1)
    return [list(activations(side, settings.samples, seed).values()) for seed, side in made]


def spread(kinds: Sequence[int]) -> list[int]:
    """All layers, but first one of every width, the commonest width first: however few there is time for."""
    often = sorted(dict.fromkeys(kinds), key=kinds.count, reverse=True)
    first = [kinds.index(kind) for kind in often]
    return first + [k for k in range(len(kinds)) if k not in first]


def pairs(left: Sequence[int], right: Sequence[int]) -> list[Job]:
    """Each by itself: one of every width of the left first, the others anyhow."""
    rng = np.random.default_rng(0)
    order = spread(left)[: len(set(left))]
    first = [(i, int(rng.integers(len(right)))) for i in order]
    every = list(product(range(len(left)), range(len(right))))
    rest = [every[k] for k in rng.permutation(len(every)) if every[k] not in first]
    return [([i], [j]) for i, j in first + rest]


def scaled(spent: Sequence[tuple[int, float]], kinds: Sequence[int]) -> float:
    """The time for all layers from (width, time of one) of some: a width's mean, or by the widths where none was."""
    by_kind = {kind: [time for width, time in spent if width == kind] for kind in set(kinds)}
    rate = sum(time for _, time in spent) / sum(width for width, _ in spent)
    return float(sum(np.mean(by_kind[kind]) if by_kind[kind] else rate * kind for kind in kinds))


def until(limit: float, jobs: Sequence[Job], work: Callable[..., Any], left: Sequence[int], columns: int) -> Result:
    """Do one after the other until the time is up, the first whatever it takes; and what all would take."""
    values: dict[str, float] = {}
    times: dict[str, list[tuple[int, float]]] = {"seconds": [], "cpu": []}
    for rows, some in jobs:
        found, one = timed(lambda: work(rows, some))  # noqa: B023
        for (i, j), value in zip(product(rows, some), np.ravel(found), strict=True):
            values[f"{i} {j}"] = float(value)
        for key, each in times.items():
            each += [(left[i], one[key] / len(rows) / len(some)) for i in rows for _ in some]
        if len(values) < len(left) * columns and sum(time for _, time in times["seconds"]) > limit:
            break
    return {key: columns * scaled(each, left) for key, each in times.items()} | {"values": values}


def prepared(layers: Sequence[Sequence[Any]], recipe: Any, limit: float) -> tuple[list[dict[int, Any]], Result]:
    """Every layer by its place, both sides in turns until the time is up; and what all would take."""
    kinds = [[x.shape[1] for x in side] for side in layers]
    order = [[(s, k) for k in spread(side)] for s, side in enumerate(kinds)]
    turns = sorted((place, where) for each in order for place, where in enumerate(each))
    factors: list[dict[int, Any]] = [{}, {}]
    times: dict[str, list[tuple[int, float]]] = {"seconds": [], "cpu": []}
    for _, (side, k) in turns:
        if all(factors) and sum(time for _, time in times["seconds"]) > limit:
            break
        factors[side][k], one = timed(lambda: recipe(layers[side][k]))  # noqa: B023
        for key, each in times.items():
            each.append((kinds[side][k], one[key]))
    return factors, {key: scaled(each, sum(kinds, [])) for key, each in times.items()}  # noqa: RUF017 - two lists


def by_repsim(settings: Settings) -> Found:
    """Every measure by itself. Layers are prepared once; then all pairs at once, if a first row of them tells that
    there is time, or else row by row."""
    from repsim import metrics  # noqa: PLC0415
    from repsim.metrics.base import as_samples  # noqa: PLC0415

    layers = [[as_samples(x) for x in side] for side in sides(settings)]
    left = [x.shape[1] for x in layers[0]]
    found: Found = {}
    for name in settings.measures:
        metric = metrics.get(name)
        metric.block(*([metric.recipe(x[:64])] for x, *_ in layers))  # imports, and whatever else happens once
        (rows, columns), preparing = prepared(layers, metric.recipe, settings.limit)

        def work(some: list[int], others: list[int], metric: Any = metric, a: Any = rows, b: Any = columns) -> Array:
            return np.asarray(metric.block([a[i] for i in some], [b[j] for j in others]))

        def compared(jobs: Sequence[Job], limit: float, work: Any = work) -> Result:
            return until(limit, jobs, work, left, len(layers[1]))

        whole, row_by_row = (list(rows), list(columns)), [([i], list(columns)) for i in rows]
        at_once = "gram" in metric.roads or compared(row_by_row[:1], 0)["seconds"] < settings.limit  # see below
        comparing = compared([whole] if at_once else row_by_row, settings.limit)
        both = {key: preparing[key] + comparing[key] for key in preparing}
        found[name] = {**both, "preparing": preparing["seconds"], "values": comparing["values"]}
        rows.clear()  # before the next measure takes its memory
        columns.clear()
    return found


# Of the road "gram" a row would take the Gram matrices of all columns, which all rows share: it tells nothing.


def pair_by_pair(of: Callable[[str], Callable[[Array, Array], float]]) -> Callable[[Settings], Found]:
    """Every pair by itself, as far as time allows."""

    def run(settings: Settings) -> Found:
        left, right = sides(settings)
        kinds = [[x.shape[1] for x in side] for side in (left, right)]
        found: Found = {}
        for name in settings.measures:
            measure = of(name)
            measure(left[0][:64], right[0][:64])  # imports, and whatever else happens once
            found[name] = until(
                settings.limit,
                pairs(*kinds),
                lambda rows, columns: measure(left[rows[0]], right[columns[0]]),  # noqa: B023
                kinds[0],
                len(right),
            )
        return found

    return run


def by_peers(settings: Settings) -> Found:
    """Pair by pair; what takes a row of layers at once gets rows."""
    left, right = sides(settings)
    kinds = [x.shape[1] for x in left]
    found = pair_by_pair(lambda name: PEERS[name][1])(
        Settings(
            "peers",
            settings.samples,
            tuple(name for name in settings.measures if name in PEERS),
            settings.limit,
            settings.few,
        )
    )
    for name in settings.measures:
        if name in ROWWISE:
            measure = ROWWISE[name][1]
            measure(left[0][:64], [y[:64] for y in right[:1]])
            jobs = [([i], list(range(len(right)))) for i in spread(kinds)]
            found[name] = until(
                settings.limit,
                jobs,
                lambda rows, columns: measure(left[rows[0]], [right[j] for j in columns]),  # noqa: B023
                kinds,
                len(right),
            )
    for name, each in found.items():
        package = (ROWWISE.get(name) or PEERS[name])[0]
        each["peer"] = f"{package} {version(package)}"
    return found


def together(settings: Settings) -> Found:
    """All of the measures in one comparison from stores, as `repsim compare -m` does it: what they share is shared."""
    from repsim.comparison import Comparison  # noqa: PLC0415

    def work() -> Mapping[str, Any]:
        with Comparison(*settings.stores, list(settings.measures), device="cpu") as job:
            return job.run()

    dataset, spent = timed(work)
    values = {name: dataset[name].values for name in settings.measures}
    found = {f"{name} {i} {j}": float(x) for name, made in values.items() for (i, j), x in np.ndenumerate(made)}
    return {"together": {**spent, "values": found}}


CONTENDERS: dict[str, Callable[[Settings], Found]] = {
    "repsim": by_repsim,
    "together": together,
    "naive": pair_by_pair(NAIVE.__getitem__),
    "peers": by_peers,
}


def main(settings: Settings) -> Result:
    return {"measures": CONTENDERS[settings.contender](settings), "sgemm": gemm("cpu", torch.float32)}


def read(words: Sequence[str]) -> Settings:
    return Settings(**json.loads(words[1]))


if __name__ == "__main__":
    print(json.dumps(main(read(sys.argv))))
