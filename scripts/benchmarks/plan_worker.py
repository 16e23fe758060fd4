"""Predict and time comparisons in a process of its own: read settings as JSON, print one line of JSON."""

import json
import sys
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from compare_worker import RESNET50, VIT_B, activations
from machine_rates import timed

Result = dict[str, Any]
Widths = Mapping[str, int]
SIDES: Mapping[str, tuple[Widths, Widths]] = {
    "17 x 13": (RESNET50, VIT_B),
    "5 x 2": ({"a": 64, "b": 256, "c": 512, "d": 1024, "e": 2048}, {"f": 768, "g": 768}),
    "3 x 2": ({"a": 64, "b": 256, "c": 512}, {"f": 192, "g": 192}),
    "2 x 2": ({"a": 64, "b": 256}, {"f": 192, "g": 192}),
}
"""Widths of the layers: the usual ones, and fewer and narrower ones for measures that would take too long."""


@dataclass(frozen=True)
class Settings:
    """Settings of one run."""

    samples: int
    measures: tuple[str, ...]
    limit: float = 60.0
    """Predicted seconds above which fewer layers are compared."""
    few: bool = False
    """Whether to use the fewest layers, to test the benchmark."""


def measure(name: str, settings: Settings) -> Result:
    """Predict and time one measure on the most layers that fit into memory and are predicted to end within the limit.

    Both times are those of the processor, so that other programs disturb them less. The rates are measured right
    before the comparison.
    """
    from repsim import compare  # noqa: PLC0415
    from repsim.engine.calibration import rates  # noqa: PLC0415
    from repsim.engine.comparison import Comparison  # noqa: PLC0415
    from repsim.errors import TooLittleMemoryError  # noqa: PLC0415

    tiny = [activations({"x": 64}, 200, seed) for seed in (1, 2)]
    compare(tiny[0], tiny[1], [name], progress=False)  # warm up: imports and other one-time work
    names = list(SIDES)[-1:] if settings.few else list(SIDES)
    for size in names:
        a, b = (activations(side, settings.samples, seed) for seed, side in enumerate(SIDES[size], 1))
        try:
            planned = Comparison(a, b, [name])
        except TooLittleMemoryError as error:
            if size == names[-1]:
                return {"refused": str(error)}
            continue
        with planned as comparison:
            speed, calibration = timed(lambda: rates("cpu", clock=time.process_time))
            predicted = comparison.plan.seconds(speed)
            if predicted > settings.limit and size != names[-1]:
                continue
            _, spent = timed(comparison.run)
            return {
                "layers": size,
                "algorithm": comparison.plan.stages[0].algorithm,
                "predicted": predicted,
                "corrected": comparison.plan.seconds(speed),
                "calibration": calibration["cpu"],
                **spent,
            }
    raise AssertionError("the last size is always measured")


def main(settings: Settings) -> Result:
    warnings.simplefilter("ignore")
    return {name: measure(name, settings) for name in settings.measures}


def read(words: Sequence[str]) -> Settings:
    return Settings(**json.loads(words[1]))


if __name__ == "__main__":
    print(json.dumps(main(read(sys.argv))))
