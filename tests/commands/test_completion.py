"""Tests of shell completion in bash, with the script that users load."""

import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import timm

import repsim
from repsim import metrics
from repsim.extractors import zoo

BASH = shutil.which("bash") or ""
pytestmark = pytest.mark.skipif(not BASH, reason="there is no bash here")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    where = tmp_path_factory.mktemp("shell")
    command = where / "repsim"
    root = Path(repsim.__file__).parents[1]
    code = f"import sys; sys.path.insert(0, {str(root)!r}); from repsim.cli import main; main(prog_name='repsim')"
    command.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -c {shlex.quote(code)} "$@"\n')
    command.chmod(0o755)
    for name in ("one.h5", "two.h5", "result.nc", "notes.txt"):
        (where / name).touch()
    (where / "script").write_text(
        subprocess.run([command, "completion", "bash"], capture_output=True, check=True, text=True).stdout
    )
    return where


def complete(folder: Path, *words: str) -> list[str]:
    typed = " ".join(map(shlex.quote, words))
    script = f"""
        source ./script; PATH=$PWD:$PATH
        COMP_WORDS=({typed}); COMP_CWORD=$(({len(words)} - 1))
        _repsim_completion repsim; printf '%s\\n' "${{COMPREPLY[@]}}"
    """
    done = subprocess.run([BASH, "-c", script], cwd=folder, capture_output=True, text=True, check=True)
    # outside of a completion, `compopt` only complains
    return [line for line in done.stdout.splitlines() if line]


@pytest.mark.slow
def test_bash_completes_commands_options_models_and_files(folder: Path) -> None:
    assert complete(folder, "repsim", "ex") == ["export", "extract"]
    assert "--dry-run" in complete(folder, "repsim", "run", "--d")
    assert complete(folder, "repsim", "extract", "resnet5") == sorted(timm.list_models("resnet5*"))
    assert complete(folder, "repsim", "compare", "o") == ["one.h5"]
    assert complete(folder, "repsim", "export", "") == ["one.h5", "result.nc", "two.h5"]
    assert complete(folder, "repsim", "export", "./r") == ["./result.nc"]
    assert complete(folder, "repsim", "compare", "one.h5", "--metric", "mutual") == ["mutual_knn"]


@pytest.mark.slow
def test_models_and_measures_are_those_that_there_are(folder: Path) -> None:
    assert complete(folder, "repsim", "metrics", "") == metrics.names()
    modules = {name: timm.models.model_entrypoint(name).__module__ for name in timm.list_models()}
    models = {name for name, module in modules.items() if module.startswith(("timm.", "repsim."))}  # none of tests
    assert complete(folder, "repsim", "layers", "") == sorted(models | {*zoo.ZOO})
    assert complete(folder, "repsim", "layers", "vit_tiny_patch16_224.") == sorted(
        timm.list_pretrained("vit_tiny_patch16_224.*")
    )
    assert complete(folder, "repsim", "layers", "digits_vit.") == [name for name in zoo.ZOO if "vit" in name]
