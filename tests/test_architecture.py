"""The house itself: packaging, imports, and that the guards which hold it up bite."""

import importlib
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import repsim
from tests import shapes

ROOT = Path(__file__).parents[1]
BIN = Path(sys.executable).parent


def test_the_packages_table_is_what_is_on_the_disk() -> None:
    table = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    assert {name: (ROOT / folder).resolve() for name, folder in table["package-dir"].items()} == {
        "repsim": ROOT / "repsim",
        "repsim.commands": ROOT / "repsim" / "commands",
        "repsim.extractors": ROOT / "extractors",
        "repsim.figures": ROOT / "repsim" / "figures",
        "repsim.metrics": ROOT / "metrics",
        "repsim.report": ROOT / "repsim" / "report",
        "repsim.study": ROOT / "repsim" / "study",
    }
    assert sorted(table["packages"]) == sorted(table["package-dir"])
    for folder in ("extractors", "metrics", "repsim/commands", "repsim/figures", "repsim/report", "repsim/study"):
        assert not [p for p in (ROOT / folder).iterdir() if p.is_dir() and p.name != "__pycache__"], (
            "the folders stay flat"
        )
    for folder in ("extractors", "metrics"):
        assert (ROOT / "repsim" / folder).resolve() == ROOT / folder


def test_the_version_is_said_once_and_the_same_everywhere() -> None:
    assert tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"] == repsim.__version__
    assert f"version: {repsim.__version__}\n" in (ROOT / "CITATION.cff").read_text()


def test_every_dependency_says_what_it_is_for() -> None:
    lines = (ROOT / "pyproject.toml").read_text().split("dependencies = [\n")[1].split("]\n")[0].splitlines()
    assert lines
    assert [line for line in lines if "#" not in line] == []


@pytest.mark.parametrize("name", ["metrics", "extractors"])
def test_the_folders_refuse_to_be_imported_under_their_bare_names(name: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", f"import {name}"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert f"is the package repsim.{name}" in done.stderr


def test_every_public_name_is_there() -> None:
    for name in repsim.__all__:
        assert getattr(repsim, name) is not None
        assert name in dir(repsim)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        repsim.nothing  # noqa: B018
    assert repsim.metrics is importlib.import_module("repsim.metrics")


@pytest.mark.parametrize(
    ("where", "what", "contract"),
    [
        ("metrics/recipes/gram.py", "import h5py", "Metrics know no models"),
        ("metrics/recipes/gram.py", "from repsim import store", "Layers"),
        ("extractors/layers.py", "from repsim.metrics import get", "know nothing of each other"),
        ("repsim/stores/store.py", "import rich", "Only the command line talks"),
        ("repsim/study/words.py", "import rich", "Only the command line talks"),
        ("repsim/study/words.py", "from repsim import figures", "Layers"),
    ],
)
def test_the_import_contracts_bite(tmp_path: Path, where: str, what: str, contract: str) -> None:
    """In a copy of the sources, plant a forbidden import: the contract must break."""
    for name in (
        "repsim",
        *(f"repsim/{name}" for name in ("commands", "figures", "report", "study")),
        "extractors",
        "metrics",
    ):
        for path in (ROOT / name).glob("*.py"):
            package = name if name.startswith("repsim") else f"repsim/{name}"
            target = tmp_path / package / path.name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(path.read_text() + (f"\n{what}\n" if f"{name}/{path.name}" == where else ""))
    (tmp_path / "pyproject.toml").write_text((ROOT / "pyproject.toml").read_text())
    command = [str(BIN / "lint-imports"), "--no-logo", "--no-cache"]
    done = subprocess.run(
        command, cwd=tmp_path, capture_output=True, text=True, check=False, env={"PYTHONPATH": str(tmp_path)}
    )
    assert done.returncode == 1, done.stdout
    broken = [line for line in done.stdout.splitlines() if line.endswith("BROKEN")]
    assert any(contract in line for line in broken), done.stdout


def test_the_shape_checks_bite() -> None:
    """Without this the import hook could be off and nobody would notice."""
    import jaxtyping  # noqa: PLC0415
    import torch  # noqa: PLC0415
    from jaxtyping import TypeCheckError  # noqa: PLC0415

    from repsim.metrics.recipes.subspace import leading  # noqa: PLC0415

    jaxtyping.config.update("jaxtyping_disable", True)  # as a fixture that used them up leaves it
    for _ in range(2):  # and again in the next test
        with shapes.checks():
            for _ in range(2):
                with pytest.raises(TypeCheckError):
                    leading(torch.zeros(3, 3, dtype=torch.float64), 1.0, 0.5)
            for _ in range(shapes.CHECKS):
                leading(torch.ones(3, dtype=torch.float64), 1.0, 0.5)
            assert jaxtyping.config.jaxtyping_disable
