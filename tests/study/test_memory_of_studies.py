"""The peak memory of a study in several blocks stays within its limit, and does not grow with the number of blocks."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from repsim.stores.writer import write_store

pytestmark = pytest.mark.slow
N, LAYERS, FEATURES = 3000, 16, 8
GROUP = 4
"""Models of a group, whose layers with those of another group are the largest block."""
SUMS = 8 * N * (GROUP * LAYERS) ** 2
"""Bytes of the sums of single samples of one block."""
DRIVER = """
import json, sys
from repsim.errors import TooLittleMemoryError
from repsim.runtime.memory import memory_peak
from repsim.study import universality as study

paths, groups = sys.argv[2:], int(sys.argv[1])
study.explain_plan(paths, study.UniversalityOptions(memory=2**40), metrics=["cka"])  # imports what a study needs
base = study.base_memory("cpu")
study.base_memory = lambda device: base  # planned alike below and in the study
plan_study, plans = study.plan_study, []

def planned(*args):
    plans.append(plan_study(*args))
    return plans[-1]

study.plan_study = planned
limit = base + 2**28
while True:  # the smallest limit with so many groups and without reading layers again
    options = study.UniversalityOptions(memory=limit, permutations=19)
    try:
        study.explain_plan(paths, options, metrics=["cka"])
    except TooLittleMemoryError:
        plans.append(None)
    if plans[-1] and len(plans[-1].groups) == groups and plans[-1].kept and plans[-1].panel == 512:
        break
    assert limit < base + 2**33, "no limit divides the models in this way"
    limit += 2**23
study.universality(paths, ["cka"], memory=limit, permutations=19, draws=50, progress=False)
made = plans[-1]
print(json.dumps({"limit": limit, "blocks": len(made.blocks), "base": base, "peak": memory_peak()}))
"""


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    rng, folder = np.random.default_rng(0), tmp_path_factory.mktemp("stores")
    signal, paths = rng.normal(size=(N, FEATURES)), []
    for model in range(3 * GROUP):
        layers = {
            f"layer{k}": np.float32(signal @ rng.normal(size=(FEATURES, FEATURES)) + rng.normal(size=(N, FEATURES)))
            for k in range(LAYERS)
        }
        store = write_store(folder / f"net{model}.h5", layers, model=f"net{model}")
        paths.append(store.path)
        store.close()
    return paths


def measured(stores: list[Path], groups: int) -> dict[str, Any]:
    """Conduct a study of so many groups of models in a process of its own, and return its limit and its peak."""
    call = [sys.executable, "-c", DRIVER, str(groups), *map(str, stores)]
    done = subprocess.run(call, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout.splitlines()[-1]))


def test_memory_does_not_grow_with_the_number_of_blocks(stores: list[Path]) -> None:
    """The sums of a block are freed before those of the next are made: six blocks take what three take, and results."""
    few, many = measured(stores[: 2 * GROUP], 2), measured(stores, 3)
    assert (few["blocks"], many["blocks"]) == (3, 6)
    for study in (few, many):
        assert study["peak"] <= study["limit"]
        assert study["peak"] - study["base"] > SUMS / 2  # the sums are what takes memory
    assert many["peak"] - few["peak"] < SUMS
