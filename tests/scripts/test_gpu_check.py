"""Tests of scripts/gpu_check, on a CPU with small sizes."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

SCRIPT = Path(__file__).parents[2] / "scripts" / "gpu_check"


def check(folder: Path, *options: str) -> "subprocess.CompletedProcess[str]":
    env = {key: value for key, value in os.environ.items() if key != "OUT"}
    command = [sys.executable, str(SCRIPT), "--out", str(folder), *options]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=env)


def cells(folder: Path) -> list[list[str]]:
    """Return the rows of the table."""
    lines = (folder / "gpu_check.md").read_text().splitlines()
    rows = [line.strip("| ").split(" | ") for line in lines if line.startswith("| ")]
    assert rows[0][:3] == ["part", "what", "figure"]
    return rows[1:]


@pytest.mark.skipif(torch.cuda.is_available(), reason="has a GPU")
def test_a_machine_without_a_gpu_gives_one_line(tmp_path: Path) -> None:
    done = check(tmp_path)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr == "scripts/gpu_check: this machine has no GPU that torch can use\n"
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_parts_without_time_are_left_out_and_named(tmp_path: Path) -> None:
    done = check(tmp_path, "--device", "cpu", "--minutes", "0", "--parts", "limits,study")
    assert done.returncode == 0
    assert [row[:3] for row in cells(tmp_path)] == [[part, "this part", "left out"] for part in ("limits", "study")]


@pytest.mark.slow
def test_all_parts_write_one_table(tmp_path: Path) -> None:
    parts = ("limits", "compare", "tiles", "stream", "extract", "study", "measures")
    done = check(tmp_path, "--device", "cpu", "--minutes", "30", "--parts", ",".join(parts))
    rows = cells(tmp_path)
    assert done.returncode == 0, done.stderr
    assert "FAILED" not in done.stdout
    assert tuple(dict.fromkeys(row[0] for row in rows)) == parts
    errors = [float(row[3].rpartition("error ")[2].strip("| ")) for row in rows if "error" in row[-1]]
    assert errors
    assert max(errors) < 1e-4  # float32 against float64


@pytest.mark.slow
def test_a_test_that_fails_is_reported(tmp_path: Path) -> None:
    """The tests of tests/test_gpu.py cannot run on a device that does not exist."""
    done = check(tmp_path, "--device", "nowhere", "--parts", "tests", "--minutes", "30")
    assert done.returncode == 1
    assert any(row[2] == "FAILED" for row in cells(tmp_path))
