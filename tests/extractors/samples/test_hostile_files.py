"""Tests of files in folders and archives of pictures that are no pictures: none is run, none is waited for."""

import os
import tarfile
from pathlib import Path

import pytest

from repsim.errors import SampleError
from repsim.extraction.jobs import Samples, choose_samples
from repsim.extractors.samples.opening import open_samples
from repsim.testing.examples import write_pictures

SCRIPT = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 20 20\n(pwned) (w) file closefile\nshowpage\n%%EOF\n"
CLAIM = 2**50


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_pictures(tmp_path / "photos", [f"p{i}.png" for i in range(3)], size=(32, 32))


def chosen(path: Path, *, skip_bad: bool = False) -> Samples:
    samples = choose_samples(open_samples(path), limit=None, skip_bad=skip_bad)
    assert len(list(samples.source.read(samples.rows))) == 3
    return samples


def test_a_program_in_postscript_is_no_picture(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "x.png").write_bytes(SCRIPT)
    called = []
    monkeypatch.setattr(os, "posix_spawn", lambda *command: called.append(command))
    with pytest.raises(SampleError, match=r"cannot read the picture x.png: not a picture"):
        chosen(folder)
    assert list(chosen(folder, skip_bad=True).skipped) == ["x.png"]
    assert called == []


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no pipes in folders")
def test_pipes_and_devices_are_left_out(folder: Path) -> None:
    os.mkfifo(folder / "pipe.png")
    (folder / "endless.png").symlink_to("/dev/zero")
    assert chosen(folder).left_out.counts == {"no regular files": 2}


def test_names_in_another_encoding(folder: Path) -> None:
    (folder / "p2.png").rename(folder / "\udcff\udcfe.png")
    assert r"\xff\xfe.png" in chosen(folder).source.ids
    folder = folder.rename(folder.with_name("\udcff"))
    chosen(folder)


@pytest.mark.parametrize("kind", ["plain", "sparse"])
def test_an_archive_that_claims_a_petabyte(folder: Path, tmp_path: Path, kind: str) -> None:
    path, entry = tmp_path / "photos.tar", tarfile.TarInfo("big.png")
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as archive:
        for picture in sorted(folder.iterdir()):
            archive.add(picture, picture.name)
        if kind == "plain":
            entry.size = CLAIM
        else:
            entry.pax_headers = {"GNU.sparse.size": str(CLAIM), "GNU.sparse.map": "0,1", "GNU.sparse.name": "big.png"}
        archive.addfile(entry)
    if kind == "plain":
        with pytest.raises(SampleError, match="is damaged or cut off"):
            chosen(path)
    else:
        assert chosen(path).left_out.counts == {"no regular files": 1}
