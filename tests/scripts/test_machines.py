"""Tests of scripts/validation/machines, on small test files."""

import importlib.util
import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LIBRARIES = ("ATEN_", "MKL_", "ONEDNN_", "OPENBLAS_", "NPY_")
ORDER = """
from pathlib import Path
import pytest

@pytest.mark.parametrize("k", range(30))
def test_passes(k):
    with Path(__file__).with_name("order").open("a") as file:
        print(k, file=file)
"""
KINDS = """
import locale
import os
import numpy
import pytest
import torch
from threadpoolctl import threadpool_info

def test_processor():
    assert torch.backends.cpu.get_cpu_capability() == "DEFAULT"
    assert {pool["architecture"] for pool in threadpool_info() if pool.get("architecture")} == {"Nehalem"}

def test_threads():
    assert torch.get_num_threads() == 3

def test_locale():
    assert locale.setlocale(locale.LC_ALL) == "C"

def test_seed():
    assert os.environ["PYTHONHASHSEED"] == "4242"

def test_skipped():
    pytest.skip("as it is")

def test_fails():
    raise AssertionError
"""


def machines(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "scripts" / "validation" / "machines"), "--no-setup", *map(str, arguments)]
    inherited = {key: value for key, value in os.environ.items() if not key.startswith(LIBRARIES)}
    return subprocess.run(
        command, env=inherited | environment, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False
    )


@pytest.mark.skipif(platform.machine() not in {"x86_64", "AMD64"}, reason="the settings name x86 processors")
@pytest.mark.slow
def test_settings_take_effect_and_results_are_counted(tmp_path: Path) -> None:
    """One run with three settings combined."""
    file, out = tmp_path / "test_kinds.py", tmp_path / "table.md"
    file.write_text(KINDS)
    arguments = ["--", "-q", "-c", ROOT / "pyproject.toml", "-p", "no:cacheprovider", "-p", "conftest", file]
    done = machines("old-processor+c-locale+hash-seed", "-o", out, *arguments, OMP_NUM_THREADS="3")
    assert done.returncode == 1, done.stderr
    assert "ATen DEFAULT, OpenBLAS Nehalem" in done.stdout
    (row,) = [line for line in done.stdout.splitlines() if line.startswith("| `")]
    assert row.split(" | ")[2:5] == ["4", "1", "1"], done.stdout + done.stderr
    assert done.stdout.endswith("\n`old-processor+c-locale+hash-seed`: test_fails\n")
    assert out.read_text() == done.stdout


@pytest.mark.slow
def test_a_shuffled_order_depends_on_the_seed_only(tmp_path: Path) -> None:
    file = tmp_path / "test_order.py"
    file.write_text(ORDER)
    spec = importlib.util.spec_from_file_location("shuffling", ROOT / "conftest.py")
    assert spec is not None
    assert spec.loader is not None
    shuffling = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(shuffling)
    orders = []
    for seed in (1, 1, 2):
        options = ["-q", "-c", os.devnull, "--rootdir", tmp_path, "-p", "no:cacheprovider", "-p", "no:xdist"]
        assert pytest.main([*map(str, options), f"--shuffle={seed}", str(file)], [shuffling]) == 0
        orders.append([int(line) for line in (tmp_path / "order").read_text().split()])
        (tmp_path / "order").unlink()
    assert orders[0] == orders[1] != orders[2]
    assert sorted(orders[0]) == sorted(orders[2]) == list(range(30)) != orders[0]


@pytest.mark.parametrize("name", ["nothing", "plain+nothing"])
def test_an_unknown_setting_is_an_error_before_the_first_run(name: str) -> None:
    done = machines("plain", name)
    assert done.returncode == 2
    assert "no setting 'nothing'; choose from plain, " in done.stderr
    assert "---" not in done.stderr
