"""Tests of `repsim import` and of `repsim export --activations`."""

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

import repsim
from tests.commands.calls import fail, succeed


@pytest.fixture
def source(tmp_path: Path, rng: np.random.Generator) -> Path:
    """Make a folder of two layers, ids and a file that is no layer."""
    folder = tmp_path / "net"
    folder.mkdir()
    for name in ("layer2", "layer10"):
        np.save(folder / f"{name}.npy", rng.normal(size=(6, 3)).astype(np.float32))
    (folder / "file_names.txt").write_text("".join(f"{k}.jpg\n" for k in range(6)))
    (folder / "notes.md").touch()
    return folder


def test_import_and_export(tmp_path: Path, source: Path) -> None:
    acts = tmp_path / "acts"
    done = succeed("import", source, "-o", acts)
    assert done.stdout.startswith(f"{acts / 'net.h5'}  6 samples x 2 layers, ")
    assert done.stderr.splitlines() == [
        "note: 2 layers of 6 samples in net (folder of npy): layer2, layer10",
        "note: left out: notes.md (.md is not read)",
        "note: sample ids: file_names.txt",
    ]
    with repsim.open_store(acts / "net.h5") as store:
        assert store.layers == ("layer2", "layer10")
        np.testing.assert_array_equal(store["layer2"][:], np.load(source / "layer2.npy"))
        out = tmp_path / "net.safetensors"
        done = succeed("export", "--activations", store.path, "-o", out, "--layers", "layer1*")
        assert done.stdout == f"saved {out}: 1 layer\n"
        np.testing.assert_array_equal(load_file(out)["layer10"], store["layer10"][:])
    error = fail("import", out, "-o", acts, "--name", "net")
    assert error == f"{acts / 'net.h5'} exists; use --overwrite to replace it, or name another"
    succeed("import", out, "-o", acts, "--name", "net", "--overwrite")
    succeed("compare", acts / "net.h5", "--json")


def test_several_sources(tmp_path: Path, source: Path, rng: np.random.Generator) -> None:
    np.savez(tmp_path / "other.npz", x=rng.normal(size=(6, 4)))
    ids = source / "file_names.txt"
    done = succeed("import", source, tmp_path / "other.npz", "--ids", ids, "-o", tmp_path / "acts")
    assert len(done.stdout.splitlines()) == 2
    succeed("compare", tmp_path / "acts/net.h5", tmp_path / "acts/other.h5", "--json")
    succeed("import", source, tmp_path / "other.npz", "--name", "a", "--name", "b", "-o", tmp_path / "acts")
    assert sorted(file.name for file in (tmp_path / "acts").iterdir()) == ["a.h5", "b.h5", "net.h5", "other.h5"]


def test_errors_are_one_line(tmp_path: Path, source: Path) -> None:
    (tmp_path / "x.pkl").touch()
    assert "is a pickle, which is refused" in fail("import", tmp_path / "x.pkl", "-o", tmp_path / "acts")
    assert "2 names for 1 sources" in fail("import", source, "--name", "a", "--name", "b")
    assert "no such file or folder" in fail("import", tmp_path / "nowhere", "-o", tmp_path / "acts")
    np.savez(tmp_path / "other.npz", x=np.ones((5, 4)), y=np.ones((6, 4)))
    assert "choose layers with --layers" in fail("import", tmp_path / "other.npz", "-o", tmp_path / "acts")
    store = repsim.write_store(tmp_path / "s.h5", {"x": np.ones((4, 2))}, model="s")
    assert "name the file with -o" in fail("export", "--activations", store.path)
    assert "name the file .safetensors" in fail("export", "--activations", store.path, "-o", tmp_path / "x.csv")
    assert "neither --table nor" in fail("export", "--activations", store.path, "--table", "layers")
    assert "--layers is for --activations" in fail("export", store.path, "--layers", "x")
    assert not (tmp_path / "acts").exists() or not list((tmp_path / "acts").iterdir())
