"""Tests of commands that get SIGTERM, SIGHUP, SIGINT or SIGKILL: their output, exit code and files.

The tests send signals to real processes. Most of these are a small command that needs no torch; `repsim run` is killed
while it renames files.
"""

import os
import select
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

import repsim
from repsim.cli import main
from repsim.engine.checkpoints import Checkpoints
from repsim.errors import SAME_CALL, Hint, OutputError, Remedy
from repsim.runtime import interrupts
from repsim.runtime.files import locked, partial_path, remove_partial, replacing
from tests.commands.test_run_command import SMALL

pytestmark = pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")

SIGNALS = {signal.SIGTERM: 143, signal.SIGHUP: 129, signal.SIGINT: 130}
ROOT = Path(repsim.__file__).parents[1]
DEFAULT = """
import signal, sys
for signum in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):  # a shell ignores them in the background
    if "nohup" not in sys.argv:
        signal.signal(signum, signal.SIG_DFL)
"""
WORK = """
import os, sys, time, warnings
from pathlib import Path
import click
from repsim.runtime import interrupts
from repsim.commands.stopping import StoppableGroup
from repsim.runtime.files import replacing

@click.group(cls=StoppableGroup)
def main(): pass

@main.command()
@click.argument("way")
@click.argument("file", type=Path)
def export(way, file):
    if way == "quick":
        print("ready", flush=True)
        sys.stdin.readline()
        file.write_text("whole")
        return
    with replacing(file, overwrite=True) as partial:
        partial.write_text("half")
        # Python 3.12 warns of forks in a process with threads
        warnings.simplefilter("ignore", DeprecationWarning)
        if way == "worker" and (child := os.fork()) == 0:
            interrupts.leave_to_parent()
            print("ready", flush=True)
            time.sleep(600)
        if way != "worker":
            print("ready", flush=True)
        while way == "stuck":
            time.sleep(600)
        if way in ("last", "nohup"):
            sys.stdin.readline()
            partial.write_text("whole")
            return
        while True:
            time.sleep(0.01)
            if way == "worker" and interrupts.pending_signal():
                print("alive" if os.waitpid(child, os.WNOHANG) == (0, 0) else "dead", flush=True)
            interrupts.check()

main()
"""
Start = Callable[..., "subprocess.Popen[str]"]


def ready(process: "subprocess.Popen[str]") -> None:
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n", process.communicate()


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Start the small command in its own process group, and kill it after the test."""
    started = []

    def begin(way: str, *before: str, settings: str = "") -> "subprocess.Popen[str]":
        program = tmp_path / "repsim"
        program.write_text(DEFAULT + WORK.replace("\nmain()", f"\n{settings}\nmain()"))
        process = subprocess.Popen(
            [*before, sys.executable, program, "export", way, "a b.csv"],
            cwd=tmp_path, text=True, start_new_session=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
        )  # fmt: skip
        started.append(process)
        return process

    yield begin
    for process in started:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()


@pytest.mark.parametrize("signum", SIGNALS)
def test_a_stopped_command_says_in_one_line_how_to_start_again(start: Start, tmp_path: Path, signum: int) -> None:
    process = start("steps")
    ready(process)
    process.send_signal(signum)
    out, stderr = process.communicate(timeout=60)
    again = shlex.join([str(tmp_path / "repsim"), "export", "steps", "a b.csv"])
    assert stderr == f"Stopped by {signal.Signals(signum).name}. The same command starts again: {again}\n"
    assert (process.returncode, out) == (SIGNALS[signal.Signals(signum)], "")
    assert [path.name for path in tmp_path.iterdir()] == ["repsim"]


@pytest.mark.slow
def test_a_step_that_does_not_end_is_given_up(start: Start, tmp_path: Path) -> None:
    process = start("stuck")
    ready(process)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".a b.csv.lock", "a b.csv.partial", "repsim"]
    began = time.monotonic()
    process.terminate()
    _, stderr = process.communicate(timeout=60)
    assert time.monotonic() - began >= interrupts.GRACE_SECONDS, "the step had no time to end"
    assert (process.returncode, stderr.count("\n")) == (143, 1)
    assert stderr.startswith("Stopped by SIGTERM. The same command starts again: ")
    assert [path.name for path in tmp_path.iterdir()] == ["repsim"]


def test_a_second_signal_stops_at_once(start: Start, tmp_path: Path) -> None:
    process = start("stuck", settings="interrupts.GRACE_SECONDS, interrupts._SAME_SECONDS = 600, -1")
    ready(process)
    process.send_signal(signal.SIGHUP)
    process.send_signal(signal.SIGTERM)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode in {129, 143}, "which comes first is the system's choice where both are waiting"
    assert stderr.startswith("Stopped by SIG")
    assert stderr.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["repsim"]


@pytest.mark.slow
def test_the_same_signal_from_two_senders_is_one(start: Start) -> None:
    """``timeout``, torchrun and terminals send a signal a second time."""
    process = start("stuck", settings="interrupts.GRACE_SECONDS, interrupts._SAME_SECONDS = 600, 600")
    ready(process)
    process.terminate()
    process.send_signal(signal.SIGHUP)
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(1)


def test_what_is_ignored_at_the_start_stays_ignored(start: Start) -> None:
    process = start("nohup", "nohup")
    ready(process)
    process.send_signal(signal.SIGHUP)
    assert process.communicate("go on\n", timeout=60) == ("", "")
    assert process.returncode == 0


@pytest.mark.parametrize("way", ["last", "quick"])
def test_a_signal_during_the_last_step_loses_nothing(start: Start, tmp_path: Path, way: str) -> None:
    process = start(way)
    ready(process)
    process.terminate()
    _, stderr = process.communicate("go on\n", timeout=60)
    assert process.returncode == 143
    if stderr == "Stopped by SIGTERM. Everything was done already.\n":  # otherwise it waited too long for its input
        assert (tmp_path / "a b.csv").read_text() == "whole"
    else:
        assert stderr.startswith("Stopped by SIGTERM. The same command starts again: ")


@pytest.mark.parametrize("signum", SIGNALS)
def test_workers_leave_signals_to_their_parent(start: Start, signum: int) -> None:
    """A batch system sends its signal to all processes of a job."""
    process = start("worker")
    ready(process)
    os.killpg(process.pid, signum)
    out, stderr = process.communicate(timeout=60)  # also waits for the worker, which holds the pipes
    assert (process.returncode, stderr.count("\n"), out) == (SIGNALS[signal.Signals(signum)], 1, "alive\n")


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a process that its parent has died")
def test_workers_do_not_outlive_a_killed_parent(start: Start, tmp_path: Path) -> None:
    process = start("worker")
    ready(process)
    process.kill()
    process.communicate(timeout=60)  # returns when the worker, which would sleep for ten minutes, has closed the pipes
    assert sorted(path.name for path in tmp_path.iterdir()) == [".a b.csv.lock", "a b.csv.partial", "repsim"]
    with replacing(tmp_path / "a b.csv", overwrite=False) as partial:
        partial.write_text("whole")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a b.csv", "repsim"]


def test_two_processes_that_write_the_same_file(start: Start, tmp_path: Path) -> None:
    process = start("stuck")
    ready(process)
    file = tmp_path / "a b.csv"
    with pytest.raises(OutputError, match=f"another process is writing {file}; wait until it is done"):
        replacing(file, overwrite=True).__enter__()
    remove_partial(file)
    assert partial_path(file).read_text() == "half", "it belongs to the process that is writing"
    process.kill()
    process.communicate(timeout=60)
    remove_partial(file)
    assert [path.name for path in tmp_path.iterdir()] == ["repsim"]


def test_a_file_that_appears_meanwhile_is_not_replaced(tmp_path: Path) -> None:
    file = tmp_path / "a.csv"
    with locked(tmp_path / "b.csv"), replacing(file, overwrite=False) as partial:  # a lock concerns one file only
        partial.write_text("first")
    with pytest.raises(OutputError, match="exists; use overwrite=True"):
        replacing(file, overwrite=False).__enter__()
    assert [path.name for path in tmp_path.iterdir()] == ["a.csv"]


def test_the_terminal_has_its_cursor_again(tmp_path: Path) -> None:
    """A progress bar hides the cursor; both ways to end show it again."""
    pty = pytest.importorskip("pty")
    code = """
import os, time
from repsim.runtime import interrupts
from repsim.commands import terminal
from repsim.commands.stopping import StoppableGroup
import click
@click.group(cls=StoppableGroup)
def main(): pass
@main.command()
@click.argument("way")
def work(way):
    with terminal.progress_bar("working", "steps") as advance, interrupts.cleaned_up(lambda: None):
        advance(1, 10)
        os.write(1, b"ready\\n")  # print goes to the bar
        while True:
            time.sleep(600 if way == "stuck" else 0.01)
            interrupts.check()
interrupts.GRACE_SECONDS = 0.1
main()
"""
    for way in ("steps", "stuck"):
        leader, follower = pty.openpty()
        process = subprocess.Popen(
            [sys.executable, "-c", DEFAULT + code, "work", way],
            stdout=subprocess.PIPE,
            stderr=follower,
            text=True,
            env=os.environ | {"TERM": "xterm"},
            cwd=ROOT,
        )
        os.close(follower)
        shown = b""
        while b"\x1b[?25l" not in shown:
            shown += os.read(leader, 1000)
        ready(process)
        process.terminate()
        process.communicate(timeout=60)
        assert process.returncode == 143
        while select.select([leader], [], [], 0)[0]:
            try:
                shown += os.read(leader, 1000)
            except OSError:  # all has been read
                break
        os.close(leader)
        assert shown.rindex(b"\x1b[?25h") > shown.rindex(b"\x1b[?25l"), shown
        assert b"Traceback" not in shown
        assert shown.endswith(b"Stopped by SIGTERM. The same command starts again.\r\n")


def test_python_keeps_its_own_handlers() -> None:
    code = (
        "import signal; before = {s: signal.getsignal(s) for s in (1, 2, 15)}\n"
        "import repsim, repsim.cli, repsim.runtime.interrupts, repsim.commands.terminal, repsim.commands.stopping\n"
        "from click.testing import CliRunner; CliRunner().invoke(repsim.cli.main, ['run', '--example'])\n"
        "assert before == {s: signal.getsignal(s) for s in (1, 2, 15)}"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_from_python_an_interruption_stays_one_and_says_what_is_kept(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path / "r.nc.parts")
    with pytest.raises(KeyboardInterrupt) as caught, checkpoints.locked():  # noqa: PT012
        checkpoints.save("sweep", 0, np.zeros(3))
        (tmp_path / "r.nc.parts" / "x.0.partial").touch()  # left by a killed run
        raise KeyboardInterrupt
    assert type(caught.value) is KeyboardInterrupt
    note = f"1 parts are kept in {tmp_path}/r.nc.parts; the same call goes on from there"
    assert caught.value.__notes__ == [note]
    with checkpoints.locked():
        assert [path.suffix for path in sorted((tmp_path / "r.nc.parts").iterdir())] == [".part", ""]


NOTHING_KEPT = "Nothing is kept without -o, so the same command starts again"


@pytest.mark.parametrize(
    ("typed", "advice"),
    [
        ("extract a --data d", "The same command goes on where this one stopped"),
        ("extract a --data d --overwrite", "The same command starts again (--overwrite)"),
        ("compare a.h5", NOTHING_KEPT),
        ("compare a.h5 -o r.nc", "The same command goes on where this one stopped"),
        ("compare a.h5 --out=r.nc", "The same command goes on where this one stopped"),
        (
            "universality a.h5",
            f"{NOTHING_KEPT}; untrained networks that are extracted already are kept",
        ),
        ("universality a.h5 -o s.nc", "The same command goes on where this one stopped"),
        ("series a.h5", NOTHING_KEPT),
        ("series a.h5 -o s.nc", "The same command goes on where this one stopped"),
        ("run s.yaml", "The same command goes on: it keeps what is saved"),
        ("run s.yaml --overwrite", "The same command keeps the stores and starts the study again (--overwrite)"),
        ("verify a.h5", "The same command starts again"),
    ],
)
def test_every_command_says_what_it_will_do(typed: str, advice: str, monkeypatch: pytest.MonkeyPatch) -> None:
    name = typed.split(maxsplit=1)[0]

    def stop(**_: object) -> None:
        stop = KeyboardInterrupt()
        kept = "3 of 8 samples are kept in a.h5.partial"
        stop.add_note(Hint(kept, remedy=Remedy(SAME_CALL, " on the same pictures goes on from there")))
        raise stop

    monkeypatch.setattr(main.commands[name], "callback", stop)
    done = CliRunner().invoke(main, typed.split())
    assert done.exit_code == 130
    assert done.stderr == f"Stopped by SIGINT (3 of 8 samples are kept in a.h5.partial). {advice}.\n"


STUDY = """
import os, sys
victim, signum = sys.argv.pop(1), int(sys.argv.pop(1))

def watch(event, arguments):  # Python calls it before every rename
    if event == "os.rename" and os.fspath(arguments[1]).endswith(victim):
        os.kill(os.getpid(), signum)

sys.addaudithook(watch)
from repsim.__main__ import run
run()
"""


def contents(folder: Path) -> Mapping[str, object]:
    """Return the contents of the folder of a study that must not depend on interruptions."""
    study = repsim.open_study(folder / "study.nc")
    values: dict[str, object] = {str(name): variable.values.tobytes() for name, variable in study.variables.items()}
    for path in (folder / "acts").iterdir():
        with repsim.open_store(path) as store:
            values |= {f"{path.name}/{name}": store[name][:].tobytes() for name in store.layers}
    return values | {"files": sorted(path.relative_to(folder) for path in folder.rglob("*") if path.suffix != ".part")}


def of_session(session: int) -> list[str]:
    """Return the names of the processes of a session that are alive."""
    names = []
    for path in Path("/proc").iterdir():
        with suppress(OSError, ValueError):  # other files, and processes that end
            name, _, rest = (path / "stat").read_text().partition("(")[2].rpartition(")")
            state, _, _, of_process = rest.split()[:4]
            names += [f"{path.name} {name}"] if int(of_process) == session and state != "Z" else []
    return names


@pytest.mark.slow
@pytest.mark.processes
@pytest.mark.skipif(sys.platform != "linux", reason="only Linux shows the processes of a session")
@pytest.mark.parametrize("everyone", [True, False])
def test_a_second_interruption_while_workers_read_pictures(tmp_path: Path, everyone: bool) -> None:
    """The first one waits for a batch, which takes long, as workers decode large pictures."""
    (photos := tmp_path / "photos").mkdir()
    for k in range(6):
        Image.new("RGB", (6000, 6000), (k, k, k)).save(photos / f"{k}.png", compress_level=1)
    command = [sys.executable, "-m", "repsim", "extract", "digits_vit", "--weights", "random", "--data", str(photos)]
    process = subprocess.Popen(
        [*command, "--workers", "2", "--batch-size", "6", "-o", str(tmp_path / "acts")],
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}, text=True, start_new_session=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    while process.poll() is None and len(of_session(process.pid)) < 3:
        time.sleep(0.02)
    for _ in range(2):  # a terminal sends them to all processes
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGINT) if everyone else process.send_signal(signal.SIGINT)
        time.sleep(0.6)
    out, stderr = process.communicate(timeout=300)
    assert process.returncode == 130, stderr
    lines = [line for line in stderr.splitlines() if not line.startswith(("checking", "loading", "extracting", "note"))]
    assert len(lines) == 1, stderr
    assert lines[0].startswith("Stopped by SIGINT. The same command goes on where this one stopped: ")
    assert out == ""
    for _ in range(100):  # workers that lost their parent end by a signal
        if not (left := of_session(process.pid)):
            break
        time.sleep(0.1)
    assert not left
    assert not list((tmp_path / "acts").rglob("*"))


@pytest.mark.slow
def test_a_study_that_is_stopped_while_files_get_their_names(tmp_path: Path, one_thread: None) -> None:
    """Every run resumes and removes the rest of a killed one; the final study equals one without interruption."""
    text = SMALL.replace("limit: 16", "limit: 12") + "figures: false\nreport: false\n"
    for name in ("whole", "stopped"):
        (tmp_path / f"{name}.yaml").write_text(text)
    assert CliRunner().invoke(main, ["run", str(tmp_path / "whole.yaml")]).exit_code == 0
    out, file = tmp_path / "stopped", tmp_path / "stopped.yaml"
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}

    def run(victim: str, signum: int) -> tuple[int, str]:
        command = [sys.executable, "-c", DEFAULT + STUDY, victim, str(int(signum)), "run", str(file)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=300)
        return done.returncode, done.stderr

    code, stderr = run("digits_vit.seed0.h5", signal.SIGTERM)
    assert code == 143, stderr
    assert stderr.splitlines()[-1].startswith("Stopped by SIGTERM")
    assert stderr.count("Stopped by") == 1
    assert stderr.endswith("The same command goes on: it keeps what is saved.\n")
    assert "Traceback" not in stderr
    assert {path.name for path in out.iterdir()} == {"acts"}
    assert run("study.nc", signal.SIGKILL)[0] == -signal.SIGKILL
    assert {".study.nc.lock", "study.nc.partial"} < {path.name for path in out.iterdir()}
    done = CliRunner().invoke(main, ["run", str(file)])
    assert done.exit_code == 0, done.output
    assert contents(out) == contents(tmp_path / "whole")
    (out / ".study.yaml.lock").touch()  # the state after a kill between the last name and the removal of its lock
    done = CliRunner().invoke(main, ["run", str(file)])
    assert contents(out) == contents(tmp_path / "whole"), done.output
    (out / "study.yaml").rename(out / "study.yaml.partial")  # the state after a kill at the end
    (out / ".study.nc.lock").touch()
    (out / "study.nc.partial").touch()
    done = CliRunner().invoke(main, ["run", str(file)])
    assert "holds this study already" in done.stderr, done.output
    assert contents(out) == contents(tmp_path / "whole")
    assert (out / "study.yaml").read_text() == text
