"""Opening of all kinds of data: libraries that are not installed, and labels and groups from files."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from repsim.errors import MissingExtraError
from repsim.extractors.samples.opening import open_samples


@pytest.mark.parametrize(
    ("data", "column", "library"),
    [
        ("a.parquet", None, "pyarrow"),
        ("a.zarr", None, "zarr"),
        ("a.tar", "txt", "webdataset"),
        ("shard-{0..1}.tar", "txt", "webdataset"),
        ("saved", None, "datasets"),
    ],
)
def test_a_library_that_is_not_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, data: str, column: str | None, library: str
) -> None:
    for loaded in [name for name in sys.modules if name.partition(".")[0] == library]:
        monkeypatch.delitem(sys.modules, loaded)
    monkeypatch.setitem(sys.modules, library, None)
    for name in ("a.parquet", "a.tar"):
        (tmp_path / name).write_bytes(b"")
    for folder, file in (("a.zarr", "zarr.json"), ("saved", "state.json")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / file).write_text("{}")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(MissingExtraError, match=rf"needs {library}: pip install 'repsim-toolkit\[data\]'") as raised:
        open_samples(data, column=column)
    assert raised.value.extra == "data"


@pytest.mark.slow
def test_no_library_is_loaded_before_it_is_needed() -> None:
    code = (
        "import sys, repsim.extractors as e; e.open_samples(['a text']); "
        "print([name for name in ('datasets', 'pyarrow', 'webdataset', 'zarr') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_labels_and_groups_of_texts_from_files(tmp_path: Path) -> None:
    (tmp_path / "texts.txt").write_text("a cat\na dog\ntwo cats\n")
    (tmp_path / "labels.csv").write_text("key,label\n3,cat\n1,cat\n2,dog\n")
    source = open_samples(tmp_path / "texts.txt", labels=tmp_path / "labels.csv", groups=r"re:^(\d)")
    assert source.labels is not None
    assert source.groups is not None
    assert (list(source.classes), source.labels.tolist()) == (["cat", "dog"], [0, 1, 0])
    assert (source.label_record["matched_by"], source.groups.tolist()) == ("id", [0, 1, 2])


def test_labels_replace_those_of_the_data(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", x=np.eye(3), label=[0, 1, 2])
    source = open_samples(tmp_path / "x.npz", labels=["b", "a", "b"])
    assert source.labels is not None
    assert (list(source.classes), source.labels.tolist()) == (["a", "b"], [1, 0, 1])
    assert source.label_record == {"source": "given"}
