"""Tests that every command can print names with any characters on any terminal."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

import repsim
from repsim.cli import main

NAMES = ("größer", "日本語の層")
ESCAPED = {"ascii": (r"gr\xf6\xdfer", r"\u65e5\u672c"), "latin-1": ("größer", r"\u65e5\u672c"), "utf-8": NAMES}


@pytest.fixture
def stores(tmp_path: Path, rng: np.random.Generator) -> list[str]:
    paths = [str(tmp_path / f"{name}.h5") for name in ("caf\udce9", "b")]  # a file name in Latin-1
    x = rng.normal(size=(40, 8))
    for path in paths:
        name = "modèle-α" if path == paths[0] else "b"
        repsim.write_store(path, {NAMES[0]: x, NAMES[1]: x[:, :4] ** 2}, model=name, source="Käse").close()
    return paths


@pytest.mark.slow
@pytest.mark.parametrize("charset", ESCAPED)
def test_names_that_the_terminal_cannot_show_are_escaped(stores: list[str], tmp_path: Path, charset: str) -> None:
    out = str(tmp_path / "größe.nc")
    for command in (
        ["inspect", stores[0]],
        ["verify", *stores],
        ["compare", *stores, "-m", "cka", "-m", "svcca", "--explain", "-o", out],
        ["compare", *stores],
        ["export", out],
        ["metrics"],
        ["metrics", "svcca"],
    ):
        done = CliRunner(charset=charset).invoke(main, command)
        assert done.exit_code == 0, done.output
        assert done.exception is None
        if command[0] in {"inspect", "compare", "export"}:
            shown = done.stdout_bytes.decode(charset)
            assert all(name in shown for name in ESCAPED[charset])
            assert ("lacks characters of some names" in done.stderr) == (command[0] == "export" and charset != "utf-8")
        if command[0] == "inspect":
            assert r"caf\udce9.h5" in shown


@pytest.mark.parametrize("charset", ESCAPED)
@pytest.mark.parametrize("command", [["inspect", "fehlt-é.h5"], ["models", "日本*"], ["metrics", "é\udce9"]])
def test_errors_are_one_line_in_any_encoding(charset: str, command: list[str]) -> None:
    done = CliRunner(charset=charset).invoke(main, command)
    assert done.exit_code == 2
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.slow
def test_a_process_whose_terminal_is_ascii(stores: list[str]) -> None:
    """Only a real process shows the combined effect of the environment on Python, click and rich."""
    surroundings = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    for settings in (surroundings, {"PYTHONIOENCODING": "ascii"}):
        done = subprocess.run(
            [sys.executable, "-m", "repsim", "inspect", os.fsencode(stores[0])],
            capture_output=True, check=True, env=os.environ | settings,
        )  # fmt: skip
        assert rb"gr\xf6\xdfer" in done.stdout.replace(b" ", b"")
        assert done.stdout.isascii()
        assert done.stderr == b""


@pytest.mark.slow
def test_a_reader_that_leaves_early() -> None:
    """A pipe such as `| head` closes before the end of the output."""
    command = [sys.executable, "-m", "repsim", "metrics"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == b""
