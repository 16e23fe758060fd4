"""Tests of processes that share work: those that differ in their stores or options are refused, all of them."""

import os
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier
from typing import Any

import numpy as np
import pytest

from repsim.engine.comparison import Comparison
from repsim.errors import UnequalProcessesError
from repsim.runtime.processes import ALONE
from repsim.stores.writer import write_store
from repsim.testing.examples import write_networks
from tests.study.test_estimation import Thread

ROOT = Path(__file__).parents[2]


def in_every_process(work: Callable[[Thread], Any], world: int = 2) -> list[Any]:
    """Return what every process gets, or the error that it raises."""
    values, barrier = [None] * world, Barrier(world)

    def result(rank: int) -> Any:
        try:
            return work(Thread(rank, world, values, barrier))
        except UnequalProcessesError as error:
            return error

    with ThreadPoolExecutor(world) as pool:
        return list(pool.map(result, range(world)))


def test_processes_that_agree_go_on_and_others_all_raise_an_error() -> None:
    ALONE.agree({"stores": object()})
    assert in_every_process(lambda me: me.agree({"stores": ["a"], "metrics": ["cka"]}), 3) == [None] * 3
    errors = in_every_process(lambda me: me.agree({"stores": ["a"], "metrics": [me.rank == 2], "seed": me.rank}), 3)
    assert [error.first for error in errors] == [True, False, False]
    assert {error.difference for error in errors} == {"process 1 has other seed than process 0"}
    errors = in_every_process(lambda me: me.agree({"stores": 1} if me.first else {"stores": 2, "plan": 3}))
    assert {error.difference for error in errors} == {"process 1 has other stores and plan than process 0"}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Pair of folders with stores of the same names and samples, and other values."""
    folders = [tmp_path_factory.mktemp(name) for name in ("first", "second")]
    for seed, folder in enumerate(folders):
        for store in write_networks(folder, np.random.default_rng(seed), 24, learned=0.7, seen=0.5, depth=2):
            store.close()
        values = np.random.default_rng(seed).normal(size=(24, 6))
        for step in (1, 2):
            write_store(folder / f"step{step}.h5", {"a": values * step}, model=f"step{step}", axes={"step": step})
    return folders


@pytest.mark.parametrize(
    ("differ", "what"),
    [
        (lambda rank: {"stores": rank}, "stores"),
        (lambda rank: {"metrics": ["cka", "procrustes"][: rank + 1]}, "metrics and a plan"),
        (lambda rank: {"names": ["vit.seed0", "cnn.seed0", "cnn.seed1"][: 2 + rank]}, "stores and a plan"),
        (lambda rank: {"tf32": bool(rank)}, "options"),
    ],
)
def test_a_comparison_refuses_processes_that_differ(
    folders: list[Path], differ: Callable[[int], dict[str, Any]], what: str
) -> None:
    def planned(me: Thread) -> str:
        settings: dict[str, Any] = {"stores": 0, "metrics": ["cka"], "names": ["vit.seed0", "cnn.seed0"], "tf32": False}
        settings |= differ(me.rank)
        paths = [folders[settings["stores"]] / f"{name}.h5" for name in settings["names"]]
        with Comparison(paths, None, settings["metrics"], tf32=settings["tf32"], me=me) as comparison:
            return repr(comparison.plan)

    errors = in_every_process(planned)
    assert [getattr(error, "difference", error) for error in errors] == [
        f"process 1 has other {what} than process 0"
    ] * 2


DRIVER = """
import os, sys
from repsim import cli
folders, out, *words = sys.argv[1:]
folder = folders.split(os.pathsep)[int(os.environ["RANK"])]
seed = os.environ["RANK"] if "--seed" in words else ""
sys.argv[1:] = [word.replace("FOLDER", folder).replace("SEED", seed) for word in words] + ["-o", out]
cli.main()
"""
COMMANDS = {
    "compare": ["compare", "FOLDER/vit.seed0.h5", "FOLDER/cnn.seed0.h5"],
    "universality": ["universality", *(f"FOLDER/{name}.h5" for name in ("vit.seed0", "cnn.seed0")),
                     "-m", "cka", "--permutations", "19"],
    "series": ["series", "FOLDER/step1.h5", "FOLDER/step2.h5"],
    "extract": ["extract", "digits_vit", "--weights", "random", "--seed", "SEED", "--name", "net", "--data", "digits",
                "--limit", "8"],
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.processes
@pytest.mark.parametrize("command", COMMANDS)
def test_nodes_with_other_copies_are_refused(folders: list[Path], tmp_path: Path, command: str) -> None:
    """One line, from the first process, no file, and no process that waits for ever."""
    driver = tmp_path / "driver.py"
    driver.write_text(DRIVER)
    out = tmp_path / ("acts" if command == "extract" else "out.nc")
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(driver)]
    done = subprocess.run(
        [*launch, os.pathsep.join(map(str, folders)), str(out), *COMMANDS[command]],
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, check=False,
        timeout=300,
    )  # fmt: skip
    assert done.returncode
    lines = [line for line in done.stderr.splitlines() if line.startswith("Error:")]
    what = "weights or options" if command == "extract" else "stores"
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith(f"Error: the processes of this run differ: process 1 has other {what}"), lines
    assert "give every process the same options and the same files" in lines[0]
    assert not out.is_file()
    assert not list(tmp_path.rglob("*.h5"))
