"""Predict and time comparisons in a process of its own: read settings as JSON, print one line of JSON."""

import json
import sys
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from compare_worker import RESNET50, VIT_B, activations
from machine_rates import timed
from numpy.typing import NDArray

Layers = Mapping[str, NDArray[Any]]
Result = dict[str, Any]
SIDES: Mapping[str, tuple[Mapping[str, int], Mapping[str, int]]] = {
    "17 x 13": (RESNET50, VIT_B),
    "5 x 2": (
        {"maxpool": 64, "layer1": 256, "layer2": 512, "layer3": 1024, "layer4": 2048},
        {"embedding": 768, "blocks.0": 768},
    ),
    "3 x 2": ({"maxpool": 64, "layer1": 256, "layer2": 512}, {"embedding": 192, "blocks.0": 192}),
    "2 x 2": ({"maxpool": 64, "layer1": 256}, {"embedding": 192, "blocks.0": 192}),
}
"""Widths of the layers, from the usual ones to fewer and narrower ones, for measures that would take too long."""


@dataclass(frozen=True)
class Settings:
    """Settings of one run."""

    samples: int
    measures: tuple[str, ...]
    limit: float = 60.0
    """Predicted seconds above which fewer layers are compared."""
    rounds: int = 1


def measure(name: str, settings: Settings) -> list[Result]:
    """Predict and time one measure, several times, on the most layers that the limit allows."""
    from repsim import compare  # noqa: PLC0415
    from repsim.engine.calibration import rates  # noqa: PLC0415
    from repsim.engine.comparison import Comparison  # noqa: PLC0415

    tiny = {side: activations({"x": 64}, 80, seed) for seed, side in enumerate("ab")}
    compare(tiny["a"], tiny["b"], [name], progress=False)  # warm up: imports and other one-time work
    results: list[Result] = []
    for size, sides in SIDES.items():
        a, b = (activations(side, settings.samples, seed) for seed, side in enumerate(sides, 1))
        with Comparison(a, b, [name]) as comparison:
            plan = comparison.plan
        if plan.seconds(rates("cpu", clock=time.process_time)) > settings.limit and size != list(SIDES)[-1]:
            continue
        stage = plan.stages[0]
        layers = [torch.as_tensor(x) for x in (*a.values(), *b.values())]
        for _ in range(settings.rounds):
            with Comparison(a, b, [name]) as comparison:
                speed = rates("cpu", clock=time.process_time)
                _, spent = timed(comparison.run)
                _, preparing = timed(lambda: [stage.recipe(x) for x in layers])  # noqa: B023
            results.append(
                {
                    "layers": size,
                    "algorithm": stage.algorithm,
                    "predicted": plan.seconds(speed),
                    "predicted preparing": stage.preparing.seconds(speed),
                    "preparing": preparing["cpu"],
                    **spent,
                }
            )
        return results
    return results


def main(settings: Settings) -> Result:
    warnings.simplefilter("ignore")
    results: Result = {}
    for name in settings.measures:
        results[name] = measure(name, settings)
        print(name, results[name][0], file=sys.stderr, flush=True)
    return {"measures": results}


def read(words: Sequence[str]) -> Settings:
    return Settings(**json.loads(words[1]))


if __name__ == "__main__":
    print(json.dumps(main(read(sys.argv))))
