"""Tests of names and places that users do not choose: nothing commands the terminal, and errors are one line."""

import os
import subprocess
import sys
import unicodedata
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import repsim
from repsim.runtime.visible_text import visible
from tests.commands.calls import fail, run, succeed

EVIL = "net\u202egnp.exe\ufeff\u2066x"
WORSE = "arch\x1b[31m\x9b31m\x1b]0;title\x07"
LONG = "a" * 300


@pytest.fixture
def hostile(tmp_path: Path, rng: np.random.Generator) -> list[str]:
    paths = [str(tmp_path / f"{name}.h5") for name in "ab"]
    for path in paths:
        layers = {EVIL: rng.normal(size=(20, 4)), "second": rng.normal(size=(20, 4))}
        ids = [f"{EVIL}{i}" for i in range(20)]
        more: dict[str, Any] = {
            "sample_ids": ids,
            "source": EVIL,
            "provenance": {"architecture": WORSE, "remark": WORSE},
        }
        repsim.write_store(path, layers, model=Path(path).stem, **more).close()
    return paths


def test_signs_that_are_shown_are_kept() -> None:
    """Flags of tag characters, joiners and signs around numbers are shown; tags elsewhere hide."""
    tags = "".join(chr(0xE0000 + ord(letter)) for letter in "gbsct") + "\U000e007f"
    family, word, number = "\U0001f468\u200d\U0001f469", "\u0645\u06cc\u200c\u062e", "\u0600\u0661\u06dd"
    for kept in (f"net \U0001f3f4{tags} {family}", word, number):
        assert visible(kept) == kept
    assert visible(f"a{tags}") == r"a\U000e0067\U000e0062\U000e0073\U000e0063\U000e0074\U000e007f"
    assert visible(f"\U0001f3f4{tags}{tags}".replace("\U000e0073", "\U000e0061", 1)).count("\\") == 2 * len(tags)
    hidden = "\xad\u200b\u2060\ufeff\u061c\u200f\u202e\u2069\x1b\x9b\ue000"
    assert visible(f"x{hidden}") == "x" + hidden.encode("unicode_escape").decode()


def test_names_of_strangers_do_not_command_the_terminal(hostile: list[str], tmp_path: Path) -> None:
    out, study = str(tmp_path / "r.nc"), str(tmp_path / "s.nc")
    repsim.write_store(tmp_path / "c.h5", {"a": np.eye(20)}, model="c").close()
    commands: list[list[Any]] = [
        ["inspect", hostile[0]],
        ["verify", *hostile],
        ["compare", *hostile, "-o", out, "--explain"],
        ["inspect", out],
        ["universality", *hostile, "-m", "cka", "--permutations", "19", "-o", study],
        ["inspect", study],
        ["compare", hostile[0], tmp_path / "c.h5"],  # an error that names samples
    ]
    for command in commands:
        shown = run(*command).output
        assert r"\u202e" in shown or command[0] == "verify", command
        raw = {c for c in shown if unicodedata.category(c) in {"Cc", "Cf"} and c != "\n"}
        assert not raw, (command, raw)
    assert WORSE in repsim.open_store(hostile[0]).provenance["remark"]


@pytest.mark.parametrize(
    "command",
    [
        ["compare", f"{LONG}.h5", "b.h5"],
        ["compare", "A", "B", "-o", f"{LONG}.nc"],
        ["compare", "A", "B", "-o", f"{LONG}/r.nc"],
        ["compare", "A", "B", "--device", "privateuseone"],
        ["compare", "A", "B", "--device", "hpu"],
        ["universality", "A", "B", "-o", "a" * 248 + ".nc"],
        ["universality", "A", "B", "--family", "\udcff=a", "--family", "b=b", "-o", "s.nc"],
        ["inspect", f"{LONG}.nc"],
        ["verify", f"{LONG}.nc"],
        ["export", f"{LONG}.nc"],
        ["heatmap", f"{LONG}.nc", "-o", "r.png"],
        ["report", f"{LONG}.nc", "-o", "r.html"],
        ["series", f"{LONG}.h5", "B"],
        ["import", f"{LONG}.npz"],
        ["run", f"{LONG}.yaml"],
        ["run", "long.yaml"],
        ["extract", "digits_vit", "--data", LONG],
        ["extract", "digits_vit", "--data", "digits", "--limit", "4", "-o", LONG],
        ["extract", "digits_vit", "--data", "digits", "--limit", "4", "--name", "a" * 248],
        ["extract", "digits_vit", "--data", "digits", "--limit", "4", "--weights", f"./{LONG}.pth"],
        ["extract", "digits_vit", "--data", "digits", "--limit", "4", "--labels", f"{LONG}.csv"],
    ],
    ids=lambda command: f"{command[0]}-{max(len(word) for word in command)}-{command[-1][:6]!r}",
)
def test_names_that_cannot_be_used_are_one_line(
    hostile: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("long.yaml").write_text(f"models: [digits_vit]\ndata: digits\nout: {LONG}\n")
    before = sorted(tmp_path.iterdir())
    fail(*({"A": hostile[0], "B": hostile[1]}.get(word, word) for word in command))
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.slow
def test_a_byte_that_is_no_utf_8_in_an_argument_costs_nothing(hostile: list[str], tmp_path: Path) -> None:
    out = tmp_path / "\udcff.nc"
    command: list[str | bytes] = [sys.executable, "-m", "repsim", "compare", *hostile, "-o", os.fsencode(out)]
    done = subprocess.run(command, capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (0, b"")
    assert repsim.open_result(out).attrs["command"].endswith(r"\udcff.nc'")


@pytest.mark.parametrize("command", ["universality", "series", "extract"])
def test_numbers_that_no_file_holds_are_refused_before_anything_is_computed(command: str, tmp_path: Path) -> None:
    for seed, what in (("99999999999999999999", "more than 9223372036854775807"), ("-1", "not in the range")):
        more: list[object] = ["--data", "digits", "-o", tmp_path / "acts"] if command == "extract" else []
        result = run(command, "name", "--seed", seed, *more)
        assert result.exit_code == 2
        assert what in result.stderr
    with pytest.raises(repsim.errors.InvalidArgumentError, match=r"seed is at most 9223372036854775807, not 1\d{19}"):
        repsim.universality([], seed=10**19)
    assert list(tmp_path.iterdir()) == []


def test_a_deleted_working_folder(hostile: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "gone"
    folder.mkdir()
    monkeypatch.chdir(folder)
    folder.rmdir()
    succeed("inspect", hostile[0])
    for command in (
        ["compare", *hostile, "-o", "r.nc"],
        ["inspect", "a.h5"],
        ["run", "s.yaml"],
        ["heatmap", "r.nc", "-o", "r.png"],
    ):
        assert "Traceback" not in fail(*command)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="no pseudo-terminals")
def test_a_terminal_gets_styles_and_not_their_escapes(hostile: list[str], tmp_path: Path) -> None:
    """Styles of repsim itself are no text of strangers."""
    out = str(tmp_path / "r.nc")
    for command in (["metrics", "cka"], ["compare", *hostile, "-o", out], ["inspect", out, "--full"]):
        terminal, other = os.openpty()
        environment = os.environ | {"TERM": "xterm-256color"}
        environment.pop("NO_COLOR", None)
        with subprocess.Popen([sys.executable, "-m", "repsim", *command], stdout=other, stderr=other, env=environment):
            os.close(other)
            shown = b""
            while part := _read(terminal):
                shown += part
        os.close(terminal)
        assert b"\x1b[1m" in shown or b"\x1b[3m" in shown, command
        assert rb"\x1b[1m" not in shown, command
        assert rb"\x1b[3m" not in shown, command


def _read(terminal: int) -> bytes:
    try:
        return os.read(terminal, 4096)
    except OSError:  # the other end is closed
        return b""
