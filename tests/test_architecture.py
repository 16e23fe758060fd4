"""Tests of packaging, of the import contracts between rooms, and of the checks that enforce them."""

import importlib
import re
import shutil
import subprocess
import sys
import tomllib
from graphlib import TopologicalSorter
from pathlib import Path

import grimp
import pytest

import repsim
from tests import shapes

ROOT = Path(__file__).parents[1]
BIN = Path(sys.executable).parent


def test_the_packages_table_is_what_is_on_the_disk() -> None:
    table = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    packages = {}
    for top in ("repsim", "metrics", "extractors"):
        for path in (ROOT / top).glob("**/__init__.py"):
            folder = path.parent.relative_to(ROOT)
            if folder.parts[:2] not in {("repsim", "metrics"), ("repsim", "extractors")}:  # the links
                packages[".".join(folder.parts if top == "repsim" else ("repsim", *folder.parts))] = str(folder)
    assert table["package-dir"] == packages
    assert sorted(table["packages"]) == sorted(packages)
    for link in ("extractors", "metrics"):
        assert (ROOT / "repsim" / link).resolve() == ROOT / link


def test_the_top_floor_is_small() -> None:
    assert len(list((ROOT / "repsim").glob("*.py"))) <= 10


def test_no_import_runs_in_a_circle() -> None:
    """Imports for type checkers count; the lazy imports of `repsim` itself do not."""
    graph = grimp.build_graph("repsim", exclude_type_checking_imports=False, cache_dir=None)
    order = TopologicalSorter(
        {module: graph.find_modules_directly_imported_by(module) for module in graph.modules - {"repsim"}}
    )
    order.prepare()  # CycleError names the circle


def test_nothing_below_imports_the_whole_package() -> None:
    graph = grimp.build_graph("repsim", exclude_type_checking_imports=False, cache_dir=None)
    assert graph.find_modules_that_directly_import("repsim") == set()


def test_the_version_is_said_once_and_the_same_everywhere() -> None:
    assert tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"] == repsim.__version__
    assert f"version: {repsim.__version__}\n" in (ROOT / "CITATION.cff").read_text()


def test_every_dependency_says_what_it_is_for() -> None:
    lines = (ROOT / "pyproject.toml").read_text().split("dependencies = [\n")[1].split("]\n")[0].splitlines()
    assert lines
    assert [line for line in lines if "#" not in line] == []


def test_the_page_names_files_and_types_that_are_there() -> None:
    page = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")
    paths = set(re.findall(r"`((?:repsim|metrics|extractors|tests)/[\w/.]*)`", page))
    assert len(paths) > 60
    assert [path for path in sorted(paths) if not (ROOT / path).exists()] == []
    rows = re.findall(r"^\| (`\w[^|]*`) \| `([\w/]+)\.py` \|", page.partition("## Central types")[2], re.MULTILINE)
    assert len(rows) > 30
    for names, path in rows:
        home = importlib.import_module(path.removeprefix("repsim/").replace("/", ".").join(("repsim.", "")))
        for name in re.findall(r"`(\w+)`", names):
            assert hasattr(home, name), f"{name} is not in {path}.py"


def test_the_page_names_every_room() -> None:
    page = (ROOT / "docs/architecture.md").read_text(encoding="utf-8").partition("### Find your way")[0]
    rooms = {path.relative_to(ROOT).parts[1] for path in (ROOT / "repsim").glob("*/__init__.py")} - {
        "metrics",
        "extractors",
    }
    assert [room for room in sorted(rooms) if f"`repsim/{room}/`" not in page] == []


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
        ("metrics/recipes/gram.py", "from repsim.stores import store", "Rooms"),
        ("extractors/layers.py", "from repsim.metrics import get", "Rooms"),
        ("repsim/stores/store.py", "import rich", "Only the command line talks"),
        ("repsim/study/words.py", "import rich", "Only the command line talks"),
        ("repsim/study/words.py", "from repsim import figures", "Rooms"),
        ("repsim/newroom.py", "import os", "Rooms"),
    ],
)
@pytest.mark.slow
def test_the_import_contracts_bite(tmp_path: Path, where: str, what: str, contract: str) -> None:
    """A forbidden import, or a new room, in a copy of the sources breaks the contract."""
    for top, target in (("repsim", "repsim"), ("extractors", "repsim/extractors"), ("metrics", "repsim/metrics")):
        links = shutil.ignore_patterns("extractors", "metrics", "zoo", "__pycache__") if top == "repsim" else None
        shutil.copytree(ROOT / top, tmp_path / target, ignore=links)
    planted = tmp_path / (where if where.startswith("repsim") else f"repsim/{where}")
    planted.write_text((planted.read_text() if planted.exists() else "") + f"\n{what}\n")
    (tmp_path / "pyproject.toml").write_text((ROOT / "pyproject.toml").read_text())
    command = [str(BIN / "lint-imports"), "--no-logo", "--no-cache"]
    done = subprocess.run(
        command, cwd=tmp_path, capture_output=True, text=True, check=False, env={"PYTHONPATH": str(tmp_path)}
    )
    assert done.returncode == 1, done.stdout + done.stderr
    broken = [line for line in done.stdout.splitlines() if line.endswith("BROKEN") or "not configured" in line]
    assert any(contract in line for line in broken), done.stdout


def test_the_shape_checks_bite() -> None:
    """This test fails if the import hook is switched off."""
    import jaxtyping  # noqa: PLC0415
    import torch  # noqa: PLC0415
    from jaxtyping import TypeCheckError  # noqa: PLC0415

    from repsim.metrics.recipes.truncation import leading  # noqa: PLC0415

    jaxtyping.config.update("jaxtyping_disable", True)  # the state after a fixture that used all checks
    for _ in range(2):  # as in two tests
        with shapes.checks():
            for _ in range(2):
                with pytest.raises(TypeCheckError):
                    leading(torch.zeros(3, 3, dtype=torch.float64), 1.0, 0.5)
            for _ in range(shapes.CHECKS):
                leading(torch.ones(3, dtype=torch.float64), 1.0, 0.5)
            assert jaxtyping.config.jaxtyping_disable
