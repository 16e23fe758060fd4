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
from repsim.extraction import choose_samples
from repsim.extractors.samples.opening import open_samples
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


@pytest.mark.parametrize("world", [2, 3])
def test_copies_of_pictures_that_differ_are_refused(pictures: Callable[..., Path], world: int) -> None:
    """Names and sizes of the files are equal; a picture differs that another process hashes."""
    copies = [pictures(7, folder=f"copy{rank}") for rank in range(world)]

    def chosen(me: Thread) -> Any:
        return choose_samples(open_samples(str(copies[me.rank])), me=me).ids.content

    alone = choose_samples(open_samples(str(copies[0]))).ids.content
    assert in_every_process(chosen, world) == [alone] * world
    for row in range(7):
        changed = copies[1] / f"photo{row:02d}.png"
        before = changed.read_bytes()
        changed.write_bytes(before[:-1] + bytes([before[-1] ^ 1]))
        errors = in_every_process(chosen, world)
        what = "process 1 has other contents of the samples than process 0"
        assert [getattr(error, "difference", error) for error in errors] == [what] * world
        changed.write_bytes(before)
    (copies[-1] / "photo03.png").write_bytes(b"no picture")
    assert {type(value) for value in in_every_process(chosen, world)} == {UnequalProcessesError}


DRIVER = """
import os, sys
from repsim import cli
folders, out, *words = sys.argv[1:]
folder = folders.split(os.pathsep)[int(os.environ["RANK"])]
seed = os.environ["RANK"] if "--seed" in words else ""
sys.argv[1:] = [word.replace("FOLDER", folder).replace("SEED", seed) for word in words]
sys.argv += [] if "run" in words else ["-o", out]
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


def in_two_processes(folders: list[Path], out: Path, words: list[str]) -> tuple[int, str]:
    """Run a command with torchrun, each process with a folder of its own; return the exit code and stderr."""
    (driver := out.parent / "driver.py").write_text(DRIVER)
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(driver)]
    done = subprocess.run(
        [*launch, os.pathsep.join(map(str, folders)), str(out), *words],
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, check=False,
        timeout=300,
    )  # fmt: skip
    return done.returncode, done.stderr


@pytest.mark.slow
@pytest.mark.processes
@pytest.mark.parametrize("command", COMMANDS)
def test_nodes_with_other_copies_are_refused(folders: list[Path], tmp_path: Path, command: str) -> None:
    """One line, from the first process, no file, and no process that waits for ever."""
    out = tmp_path / ("acts" if command == "extract" else "out.nc")
    code, stderr = in_two_processes(folders, out, COMMANDS[command])
    assert code
    lines = [line for line in stderr.splitlines() if line.startswith("Error:")]
    what = "weights or options" if command == "extract" else "stores"
    assert len(lines) == 1, stderr
    assert lines[0].startswith(f"Error: the processes of this run differ: process 1 has other {what}"), lines
    assert "give every process the same options and the same files" in lines[0]
    assert not out.is_file()
    assert not list(tmp_path.rglob("*.h5"))


@pytest.mark.slow
@pytest.mark.processes
@pytest.mark.parametrize(
    ("keys", "what"),
    [
        (["metrics: [cka]", "metrics: [cka, procrustes]"], "metrics"),
        (["seed: 1", "seed: 2\ndraws: 20"], "draws and seed"),
    ],
)
def test_a_run_with_other_study_files_is_refused_before_the_extraction(
    tmp_path: Path, keys: list[str], what: str
) -> None:
    folders = [tmp_path / name for name in ("first", "second")]
    for folder, more in zip(folders, keys, strict=True):
        folder.mkdir()
        text = f"models: [digits_vit.seed0, digits_vit.seed1]\ndata: {{source: digits, limit: 16}}\n{more}\n"
        (folder / "study.yaml").write_text(f"{text}out: {tmp_path / 'out'}\n")
    code, stderr = in_two_processes(folders, tmp_path / "out", ["run", "FOLDER/study.yaml"])
    lines = [line for line in stderr.splitlines() if line.startswith("Error:")]
    assert (code != 0, len(lines)) == (True, 1), stderr
    assert lines[0].startswith(f"Error: the processes of this run differ: process 1 has other {what} than process 0")
    assert not (tmp_path / "out").exists()


LAUNCHER = """
import os, subprocess, sys
names = {"TORCHELASTIC_RUN_ID": "a", "TORCHELASTIC_RESTART_COUNT": "0", "MASTER_PORT": "1", "GROUP_RANK": "0"}
def start(rank, *command, **more):
    ranks = {"RANK": str(4 + rank), "LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": "3"}
    return subprocess.Popen(command, env={**os.environ, **names, **ranks, **more}, stdin=subprocess.PIPE)
wait = (sys.executable, "-c", "input()")
gone = start(1, *wait, TORCHELASTIC_RESTART_COUNT=sys.argv[1])
others = [start(2, *wait), subprocess.Popen(["env", "-i", *sys.argv[2:], *wait], stdin=subprocess.PIPE)]
if sys.argv[1] == "0":
    gone.communicate(b"\\n")
program = "from repsim.runtime.ended_processes import ended_processes; print(sorted(ended_processes()))"
wrapper = "import subprocess, sys; subprocess.run([sys.executable, '-c', sys.argv[1]])"
start(0, sys.executable, "-c", wrapper, program).wait()
for process in (gone, *others):
    process.kill()
    process.wait()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells which processes are alive")
@pytest.mark.parametrize(
    ("restarts", "other", "ended"),
    [
        ("0", ["PATH=a"], "[5]"),
        ("1", ["PATH=a"], "[5]"),  # a process of another attempt is none of this
        ("0", [], "[]"),  # a process without an environment may be any of the processes
        ("0", ["title=a"], "[]"),  # as may one whose title is written over its environment
    ],
)
def test_a_process_has_ended_if_the_launcher_has_none_of_its_rank(restarts: str, other: list[str], ended: str) -> None:
    """The processes are those of ranks 4 to 6 of a machine; one of them runs in a process that a script started."""
    done = subprocess.run(
        [sys.executable, "-c", LAUNCHER, restarts, *other],
        env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=True, timeout=300,
    )  # fmt: skip
    assert done.stdout.strip() == ended, done.stderr


MISSING = """
import os, sys, time
from repsim import cli
rank, out, *words = sys.argv[1:]
if os.environ["RANK"] == rank and "late" not in words:
    sys.exit(0)
if "late" in words:
    from repsim.runtime import processes
    processes._START_SECONDS = 2.0
    time.sleep(6.0 if os.environ["RANK"] == rank else 0.0)
sys.argv[1:] = [word for word in words if word != "late"] + ([] if "run" in words else ["-o", out])
cli.main()
"""


def launched(tmp_path: Path, rank: int, out: Path, *words: str) -> "subprocess.CompletedProcess[str]":
    """Run a command in three processes, of which one ends at once, or comes late."""
    (driver := tmp_path / "driver.py").write_text(MISSING)
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=3", str(driver)]
    return subprocess.run(
        [*launch, str(rank), str(out), *words], env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True, text=True, check=False, timeout=600,
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.processes
@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells which processes are alive")
@pytest.mark.parametrize(("command", "rank"), [("compare", 1), ("universality", 0), ("extract", 2), ("run", 0)])
def test_processes_do_not_wait_for_one_that_has_ended(
    folders: list[Path], tmp_path: Path, command: str, rank: int
) -> None:
    """torchrun does not end them, as the exit code of the process that is missing is 0."""
    study = tmp_path / "study.yaml"
    study.write_text("models: [digits_vit.seed0, digits_vit.seed1]\ndata: {source: digits, limit: 16}\n")
    words = [word.replace("FOLDER", str(folders[0])).replace("SEED", "0") for word in COMMANDS.get(command, [])]
    out = tmp_path / ("acts" if command == "extract" else "out.nc")
    done = launched(tmp_path, rank, out, *(words or ["run", str(study)]))
    lines = [line for line in done.stderr.splitlines() if line.startswith(("Error", "Stopped"))]
    assert done.returncode
    ended = f"Error: process {rank} of this run ended before meeting the others, which need it"
    assert lines == [f"{ended}; make the same call in every process"], done.stderr
    assert {path.name for path in tmp_path.iterdir()} == {"driver.py", "study.yaml"}


@pytest.mark.slow
@pytest.mark.processes
def test_processes_wait_for_one_that_comes_late(folders: list[Path], tmp_path: Path) -> None:
    words = [word.replace("FOLDER", str(folders[0])) for word in COMMANDS["compare"]]
    done = launched(tmp_path, 1, out := tmp_path / "out.nc", "late", *words)
    assert (done.returncode, out.is_file()) == (0, True), done.stderr
