"""Tests of files in folders that may not be searched: every command refuses them in one line."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import repsim

ROOT = Path(__file__).parents[2]
DRIVER = """
import json, sys
from click.testing import CliRunner
from repsim.cli import main
for words in json.loads(sys.argv[1]):
    done = CliRunner().invoke(main, words)
    print(json.dumps([words, done.exit_code, done.stdout, done.stderr, repr(done.exception)]))
"""
DIGITS = ["--data", "digits", "--limit", "4"]
COMMANDS = [
    ["inspect", "SHUT/a.h5"],
    ["inspect", "SHUT"],
    ["verify", "SHUT/a.h5"],
    ["compare", "SHUT/a.h5", "OPEN/b.h5"],
    ["compare", "OPEN/b.h5", "OPEN/c.h5", "-o", "SHUT/new.nc"],
    ["universality", "SHUT/a.h5", "OPEN/b.h5"],
    ["series", "SHUT/a.h5", "OPEN/b.h5"],
    ["spans", "SHUT/a.nc"],
    ["export", "SHUT/a.nc"],
    ["heatmap", "SHUT/a.nc", "-o", "OPEN/x.png"],
    ["figures", "SHUT/a.nc", "-o", "OPEN/figures"],
    ["report", "SHUT/a.nc", "-o", "OPEN/x.html"],
    ["run", "SHUT/study.yaml"],
    ["run", "--from", "SHUT/a.nc"],
    ["run", "OPEN/study.yaml"],
    ["import", "SHUT/x.npz"],
    ["demo", "-o", "SHUT/demo"],
    ["extract", "digits_vit", "--data", "SHUT/pictures", "-o", "OPEN/acts"],
    ["extract", "digits_vit", "--data", "SHUT/pictures.tar", "-o", "OPEN/acts"],
    ["extract", "digits_vit", *DIGITS, "-o", "SHUT/acts"],
    ["extract", "digits_vit", *DIGITS, "-o", "SHUT"],
    ["extract", "digits_vit", *DIGITS, "--labels", "SHUT/labels.csv", "-o", "OPEN/acts"],
    ["extract", "digits_vit", *DIGITS, "--weights", "SHUT/weights.pt", "-o", "OPEN/acts"],
    ["extract", "digits_vit", *DIGITS, "--axes-file", "SHUT/axes.csv", "-o", "OPEN/acts"],
]


@pytest.fixture
def folders(tmp_path: Path, rng: np.random.Generator) -> Iterator[tuple[Path, Path]]:
    """Yield a folder that may not be searched, and another one."""
    shut, other = tmp_path / "shut", tmp_path / "other"
    for folder, name in ((shut, "a"), (other, "b"), (other, "c")):
        repsim.write_store(folder / f"{name}.h5", {"layer": rng.normal(size=(20, 3))}, model=name).close()
    (other / "study.yaml").write_text(f"models: [digits_vit]\ndata: {{source: digits, limit: 4}}\nout: {shut}/study\n")
    shut.chmod(0)
    yield shut, other
    shut.chmod(0o700)


@pytest.mark.slow
@pytest.mark.processes
@pytest.mark.skipif(os.name != "posix", reason="only POSIX has folders that may not be searched")
def test_files_in_a_folder_that_may_not_be_searched(folders: tuple[Path, Path]) -> None:
    shut, other = folders
    bound = []
    if os.geteuid() == 0:  # root may search every folder, unless it gives up these capabilities
        if shutil.which("setpriv") is None:
            pytest.skip("run by root, without setpriv")
        bound = ["setpriv", "--bounding-set=-dac_override,-dac_read_search"]
    commands = [[word.replace("SHUT", str(shut)).replace("OPEN", str(other)) for word in words] for words in COMMANDS]
    done = subprocess.run(
        [*bound, sys.executable, "-c", DRIVER, json.dumps(commands)],
        env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=True, timeout=600,
    )  # fmt: skip
    refused = list(map(json.loads, done.stdout.splitlines()))
    assert [words for words, *_ in refused] == commands
    for words, code, stdout, stderr, error in refused:
        assert (code, stdout, error) == (2, "", "SystemExit(2)"), words
        assert len(stderr.splitlines()) == 1, words
        assert stderr.startswith("Error: "), words
        assert "ermission denied" in stderr or f"{shut} is a folder" in stderr, words
    assert sorted(path.name for path in other.iterdir()) == ["b.h5", "c.h5", "study.yaml"]
