"""Tests of commands that cannot write their file: one line, nothing half-written, and what was computed is kept."""

import resource
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

import repsim
from repsim.stores.writer import write_store
from repsim.testing.examples import write_networks

pytestmark = [pytest.mark.slow, pytest.mark.processes]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with stores, the result ``r.nc`` and the study ``s.nc``."""
    folder = tmp_path_factory.mktemp("stores")
    names = ["cnn.seed0", "vit.seed0"]
    for store in write_networks(folder, np.random.default_rng(3), 16, learned=0.7, seen=0.5, models=names, depth=2):
        store.close()
    values = np.random.default_rng(4).normal(size=(16, 6))
    for step in (1, 2, 3):
        write_store(folder / f"step{step}.h5", {"a": values**step}, model=f"step{step}", axes={"step": step}).close()
    repsim.compare(folder / "cnn.seed0.h5", folder / "vit.seed0.h5", out=folder / "r.nc")
    return folder


def call(folder: Path, words: Sequence[str], limit: int | None = None) -> tuple[int, str, str]:
    """Run ``repsim WORDS`` in the folder; no file may be longer than ``limit`` bytes, as on a disk that is full."""

    def set_limit() -> None:
        if limit is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    command = [sys.executable, "-m", "repsim", *words]
    done = subprocess.run(
        command, cwd=folder, capture_output=True, text=True, check=False, timeout=300, preexec_fn=set_limit
    )
    return done.returncode, done.stdout, done.stderr


NETWORKS = ("cnn.seed0.h5", "vit.seed0.h5")
STEPS = ("step1.h5", "step2.h5", "step3.h5")


@pytest.mark.parametrize(
    ("words", "limit"),
    [
        (("compare", *NETWORKS, "-m", "cka", "-m", "procrustes"), 8_000),
        (("universality", *NETWORKS, "-m", "cka", "--permutations", "19"), 50_000),
        (("series", *STEPS, "-m", "cka"), 20_000),
    ],
    ids=lambda value: value[0] if isinstance(value, tuple) else "",
)
def test_what_is_computed_is_kept_until_there_is_room(folder: Path, words: tuple[str, ...], limit: int) -> None:
    """The parts fit, and the file does not: the next run computes none of them again, and gives the same values."""
    out, alone = f"{words[0]}.nc", f"{words[0]}-alone.nc"
    code, stdout, stderr = call(folder, [*words, "-o", out], limit)
    assert (code, stdout) == (2, ""), stderr
    assert f"Error: cannot write {out}: File too large (" in stderr.splitlines()[-1]
    assert f"parts are kept in {out}.parts; the same command goes on from there)" in stderr
    assert "Traceback" not in stderr
    assert not [name for name in folder.iterdir() if name.name.startswith((out, f".{out}")) and name.is_file()]
    kept = {path: path.stat().st_mtime_ns for path in (folder / f"{out}.parts").glob("*.part")}
    assert kept
    for target in (out, alone):
        code, _, stderr = call(folder, [*words, "-o", target])
        assert code == 0, stderr
    assert all(not path.exists() or path.stat().st_mtime_ns == time for path, time in kept.items())
    saved, expected = (repsim.results.files.open_result_or_study(folder / name) for name in (out, alone))
    assert saved.drop_attrs().identical(expected.drop_attrs())


@pytest.mark.parametrize(
    "words",
    [
        ("heatmap", "r.nc", "-o", "r.png"),
        ("heatmap", "r.nc", "-o", "r.pdf"),
        ("heatmap", "r.nc", "-o", "r.svg"),
        ("heatmap", "r.nc", "-o", "r.tiff"),
        ("report", "r.nc", "-o", "r.html"),
        ("export", "r.nc", "-o", "r.csv"),
        ("export", "cnn.seed0.h5", "--activations", "-o", "a.safetensors"),
        ("import", "many.npy", "-o", "acts"),
    ],
    ids=" ".join,
)
def test_a_file_that_does_not_fit_leaves_nothing(folder: Path, words: tuple[str, ...]) -> None:
    np.save(folder / "many.npy", np.random.default_rng(0).normal(size=(40, 20)))
    (folder / "acts").mkdir(exist_ok=True)
    before = sorted(folder.rglob("*"))
    code, stdout, stderr = call(folder, words, 200)
    assert (code, stdout, stderr.count("\n")) == (2, "", 1), stderr
    assert "File too large" in stderr
    assert sorted(folder.rglob("*")) == before
