"""Tests of the command line: help texts, output of every command, and errors of one line with exit code 2."""

import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any, get_args

import click
import h5py
import numpy as np
import pytest
import torch
import xarray as xr
from PIL import Image

import repsim.metrics
from repsim.cli import main
from repsim.engine.comparison import compare
from repsim.metrics.base import Group
from repsim.results.files import open_result, open_study
from repsim.stores.store import open_store
from repsim.stores.writer import write_store
from tests.commands import calls
from tests.commands.calls import fail, run

COMMANDS = [
    "compare", "completion", "demo", "export", "extract", "figures", "heatmap", "import", "inspect", "layers",
    "metrics", "models", "report", "run", "series", "spans", "universality", "verify",
]  # fmt: skip


def succeed(*args: object) -> str:
    return calls.succeed(*args).stdout


@pytest.fixture
def stores(tmp_path: Path) -> tuple[Path, Path]:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(30, 6))
    a = write_store(tmp_path / "a.h5", {f"layer{i}.0": x[:, : i + 2] for i in range(3)}, model="net_a", source="photos")
    b = write_store(tmp_path / "b.h5", {f"blocks.{i}": x[:, i:] for i in range(2)}, model="net_b", source="photos")
    a.close()
    b.close()
    return a.path, b.path


# --- help


def test_help_loads_nothing_heavy() -> None:
    """Heavy imports would make it slow; scripts/bench startup measures the time."""
    code = (
        "import sys; sys.argv = ['repsim', '--help']\n"
        "from repsim.cli import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'numpy', 'matplotlib', 'timm', 'h5py', 'xarray', 'rich', 'sklearn'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "repsim demo" in done.stdout


def test_importing_repsim_loads_nothing_heavy() -> None:
    code = (
        "import sys, repsim; assert not {'torch', 'numpy', 'matplotlib', 'timm', 'h5py'} & set(sys.modules);"
        "repsim.compare; assert not {'scipy', 'matplotlib', 'timm'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_an_example_that_names_it(name: str) -> None:
    text = succeed(name, "--help")
    assert "Example" in text
    assert f"  repsim {name}" in text


def test_every_command_is_tested_here() -> None:
    assert sorted(main.commands) == COMMANDS


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_explains_itself(name: str) -> None:
    for parameter in main.commands[name].params:
        if isinstance(parameter, click.Option):
            assert parameter.help, parameter.name


def test_python_m_repsim_is_the_command() -> None:
    done = subprocess.run([sys.executable, "-m", "repsim", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("repsim, version ")


# --- what it does


@pytest.mark.slow
def test_models_lists_timm_and_the_zoo() -> None:
    tags = json.loads(succeed("models", "*", "--json"))
    assert tags["digits_vit"] == ["seed0", "seed1", "seed2"]
    assert "a1_in1k" in tags["resnet50"]
    assert succeed("models", "resnet5*d").split()[0] == "resnet50d"


def test_layers_of_a_model() -> None:
    rows = json.loads(succeed("layers", "resnet18", "--layers", "layer?.*", "--json"))
    assert [row["name"] for row in rows] == [f"layer{stage}.{block}" for stage in (1, 2, 3, 4) for block in (0, 1)]
    assert [row["shape"] for row in rows][-1] == [512, 7, 7]
    text = succeed("layers", "resnet18")
    assert "layer4.1" in text
    assert "512 x 7 x 7" in text


def test_metrics_are_listed_by_group() -> None:
    listed = json.loads(succeed("metrics", "--json"))
    assert sorted(metric["name"] for metric in listed) == repsim.metrics.names()
    groups = [metric["group"] for metric in listed]
    assert list(dict.fromkeys(groups)) == [group for group in get_args(Group) if group in groups]  # each in one run
    rows = [line.split() for line in succeed("metrics").splitlines()]
    heads = [row[:2] for row in rows if len(row) > 1 and row[0] in get_args(Group) and row[1] in repsim.metrics.names()]
    assert heads == [[group, members[0]] for group, members in repsim.metrics.groups().items() if members]
    row = " ".join(succeed("metrics").split(" pwcca ")[1].split(" svcca ")[0].split("\n")[:2])
    for word in ("similarity,", "asymmetric", "[0, 1]", "P S T", "Do two layers span the same"):
        assert word in row


def test_a_metric_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    metric = repsim.metrics.get("cka:kernel=rbf")
    text = succeed("metrics", "cka:kernel=rbf")
    assert text.startswith("cka:kernel=rbf: CKA (rbf, debiased)\n")
    words = " ".join(text.split())  # independent of line breaks
    for part in (
        metric.question,
        metric.formula,
        metric.citation,
        metric.needs,
        *metric.others,
        *metric.others.values(),
    ):
        assert part in words
    for part in ("kernel=rbf, or linear", "-1 to 1", "JMLR 2012, eq. 5.", ">>> from repsim.metrics.cka import CKA"):
        assert part in words
    assert max(map(len, text.splitlines())) <= 100
    assert "\x1b" not in text  # no colours in a pipe
    monkeypatch.setattr("repsim.commands.terminal.PROSE", 50)
    assert len(succeed("metrics", "cka:kernel=rbf").splitlines()) > len(text.splitlines()) + 10


def test_a_metric_is_explained_to_programs() -> None:
    facts = json.loads(succeed("metrics", "svcca:variance=0.9", "--json"))
    assert (facts["spec"], facts["group"], facts["bounds"]) == ("svcca:variance=0.9", "cca", [0, 1])
    assert facts["samples_needed"] == {"64": 1281, "512": 10241, "2048": 40961}
    assert facts["chance"].endswith("Wachter's law for rho; k and m directions are kept")
    option = {"name": "variance", "default": 0.99, "value": 0.9, "choices": []}
    assert facts["parameters"][0] == {**option, "text": "Share of the variance to keep, in (0, 1]."}
    assert "did you mean svcca" in fail("metrics", "svca", "--json")


@pytest.mark.slow
def test_extract_inspect_compare_heatmap(tmp_path: Path) -> None:
    """The commands of the README work."""
    out = succeed(
        "extract",
        "digits_resnet.seed0",
        "digits_vit.seed0",
        "--data",
        "digits",
        "--split",
        "test",
        "--limit",
        40,
        "-o",
        tmp_path,
    )
    a, b = tmp_path / "digits_resnet.seed0.h5", tmp_path / "digits_vit.seed0.h5"
    assert str(a) in out
    assert "40 pictures" in out
    facts = json.loads(succeed("inspect", a, "--json"))
    assert (facts["model"], facts["samples"], facts["data"]) == ("digits_resnet.seed0", 40, "digits [test]")
    assert facts["layers"][1]["type"] == "BasicBlock"
    assert facts["provenance"]["weights"] == "pretrained"
    assert facts["provenance"]["command"].startswith("repsim")
    assert (facts["pixels"], "input" in [layer["layer"] for layer in facts["layers"]]) == ([40, 192], False)
    assert "digits [test], 40 pictures" in succeed("inspect", b)
    assert "\npixels of the input: 40 x 192, a control beside the layers\n" in succeed("inspect", b)
    text = succeed("compare", a, b, "-m", "cka", "-m", "svcca", "-o", tmp_path / "r.nc")
    result = open_result(tmp_path / "r.nc")
    assert list(result.data_vars) == ["cka", "svcca"]
    best = result["cka"].isel(layer_a=2)
    row = next(line for line in text.splitlines() if line.strip().startswith(str(best["layer_a"].item())))
    assert row.split()[1:] == [str(result["layer_b"].values[np.argmax(best.values)]), f"{best.max().item():.4f}"]
    succeed("heatmap", tmp_path / "r.nc", "-o", tmp_path / "r.png")
    assert (tmp_path / "r.png").read_bytes().startswith(b"\x89PNG")
    succeed("heatmap", tmp_path / "r.nc", "-m", "svcca", "-o", tmp_path / "r.svg")
    assert "SVCCA" in (tmp_path / "r.svg").read_text()


@pytest.mark.slow
def test_a_log_file_gets_a_line_of_progress_now_and_then(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = ("--data", "digits", "--limit", 6, "--batch-size", 2, "-o", tmp_path, "--overwrite")
    monkeypatch.setattr("repsim.commands.terminal.LOG_SECONDS", 1e9)  # however busy the machine is
    assert run("extract", "digits_vit.seed0", *options).stderr == ""  # it ended before the first line
    monkeypatch.setattr("repsim.commands.terminal.LOG_SECONDS", 0.0)
    lines = run("extract", "digits_vit.seed0", *options).stderr.splitlines()
    expected = [f"checking pictures: {done} of 6" for done in range(1, 7)]
    expected += [f"extracting digits_vit.seed0: {done} of 6" for done in (2, 4, 6)]
    assert list(dict.fromkeys(line.split(",")[0] for line in lines)) == expected  # a slow unit has several lines
    assert not any(re.search(r"\b0\.0\b|\b0 samples", line) for line in lines), "a rate is shown once it is known"


def test_dry_run_computes_nothing(tmp_path: Path) -> None:
    out = tmp_path / "acts"
    text = succeed(
        "extract",
        "resnet18",
        "--weights",
        "random",
        "--data",
        "digits",
        "--readout",
        "mean,grid:2",
        "-o",
        out,
        "--dry-run",
    )
    assert not out.exists()
    row = next(line.split() for line in text.splitlines() if "layer4.1" in line and "grid:2" in line)
    assert row == ["layer4.1", "BasicBlock", "512", "x", "7", "x", "7", "grid:2", "512", "x", "2", "x", "2", "8,192"]
    row = next(line.split() for line in text.splitlines() if "pixels" in line)
    assert row == ["input", "input", "3", "x", "224", "x", "224", "pixels", "192", "768"]
    assert "1797 pictures" in text
    assert "enough room" in text


def test_compare_prints_json(stores: tuple[Path, Path]) -> None:
    got = json.loads(succeed("compare", *stores, "-m", "cka", "--json"))
    wanted = compare(*stores)["cka"]
    np.testing.assert_array_equal(got["metrics"]["cka"]["values"], wanted.values)
    assert got["a"] == {"models": ["net_a"], "layers": ["layer0.0", "layer1.0", "layer2.0"], "readouts": ["given"] * 3}
    assert (got["samples"], got["data"]) == (30, "photos")


def test_compare_one_store_with_itself(stores: tuple[Path, Path]) -> None:
    got = json.loads(succeed("compare", stores[0], "--json"))
    np.testing.assert_allclose(np.diag(got["metrics"]["cka"]["values"]), 1, atol=1e-6)


def test_a_constant_layer_is_said_in_one_line_and_the_rest_is_shown(tmp_path: Path, stores: tuple[Path, Path]) -> None:
    live = np.random.default_rng(1).normal(size=(30, 3))
    write_store(tmp_path / "c.h5", {"dead": np.ones((30, 3)), "live": live}, model="c").close()
    result = run("compare", tmp_path / "c.h5", stores[0], "--json")
    assert result.exit_code == 0
    assert result.stderr.count("\n") == 1
    assert result.stderr.startswith("cka: no value: layer dead: the layer is constant")
    assert json.loads(result.stdout)["metrics"]["cka"]["values"][0] == [None, None, None]


def test_values_that_say_little_are_announced(tmp_path: Path) -> None:
    write_store(tmp_path / "w.h5", {"wide": np.random.default_rng(0).normal(size=(10, 20))}, model="w").close()
    result = run("compare", tmp_path / "w.h5", "-m", "cca")
    assert "cca: 1 of 1 values say little, for instance wide and wide: with n = 10 samples" in result.stderr


@pytest.mark.slow
def test_the_demo_makes_what_it_says(tmp_path: Path) -> None:
    text = succeed("demo", "-o", tmp_path / "demo")
    files = [line.split("  ")[0] for line in text.splitlines() if line.startswith(str(tmp_path))]
    assert [Path(file).relative_to(tmp_path / "demo").as_posix() for file in files] == [
        "acts", "resnet_seed0_vs_seed1.png", "vit_seed0_vs_seed1.png", "resnet_vs_vit.png", "resnet_vs_untrained.png",
        "study.nc",
        *(
            f"figures/{name}.png"
            for name in (
                "heatmaps", "depths", "similarity", "models", "pairs", "families", "shares", "map", "measures"
            )
        ),
        "report.html",
    ]  # fmt: skip
    assert all(Path(file).exists() for file in files)
    value = open_result(tmp_path / "demo" / "resnet_seed0_vs_seed1.nc")["cka"].values
    others = value[~np.eye(len(value), dtype=bool)].mean()
    assert np.diag(value).mean() > others + 0.15  # the diagonal that the description of the picture mentions
    untrained = open_result(tmp_path / "demo" / "resnet_vs_untrained.nc")["cka"].values
    assert np.diag(untrained).mean() < np.diag(value).mean()
    _zoo_shows_what_is_learned(open_study(tmp_path / "demo" / "study.nc"))
    answer = " ".join(text.split())
    assert "Given the input, networks of digits_resnet x digits_vit are more alike than the strongest control" in answer
    assert "but not beyond the classes" in answer


def _zoo_shows_what_is_learned(study: xr.Dataset) -> None:
    """Check that only partial similarity, given the input, separates trained from untrained networks."""
    across = study.sel(kind_of_pair="other family")
    raw, partial = (across.sel(kernel=kernel) for kernel in ("cka", "cka given input"))
    assert abs(raw["learned_mean"].item()) < 0.1 * raw["index_mean"].item()
    assert partial["control_mean"].item() < partial["index_mean"].item() / 2
    assert partial["learned_mean_low"].item() > 0.2
    trained, untrained = (study["mean_share"].sel(state=state) for state in ("trained", "untrained"))
    names = ("input", "family", "universal", "seed")
    assert max(names, key=lambda name: trained.sel(share_of=name).item()) == "input"
    assert untrained.sel(share_of="input").item() > 0.5
    assert abs(untrained.sel(share_of="universal").item()) < 0.1 < trained.sel(share_of="universal").item()
    for R in study["model_similarity"].values:
        assert np.linalg.eigvalsh(R).min() > -1e-10
    for state in (trained, untrained):
        assert sum(state.sel(share_of=name).item() for name in names) == pytest.approx(1, abs=1e-10)


# --- errors of the user


def test_no_such_model() -> None:
    assert fail("extract", "resnet5O", "--data", "digits").startswith("unknown model 'resnet5O'; did you mean resnet50")
    assert "did you mean resnet" in fail("layers", "resnet5O")
    assert "did you mean" in fail("models", "resnet5O")


def test_trained_networks_are_not_recalibrated(tmp_path: Path) -> None:
    command = ("extract", "digits_resnet", "--data", "digits", "--limit", 6, "-o", tmp_path, "--recalibrate")
    assert "--weights random" in fail(*command)
    assert list(tmp_path.iterdir()) == []
    succeed(*command, "--weights", "random")
    assert "\nbatch_norm: recalibrated on 6 samples\n" in succeed("inspect", tmp_path / "digits_resnet+random-seed0.h5")


def test_no_such_layer(tmp_path: Path) -> None:
    message = fail(
        "extract", "resnet18", "--weights", "random", "--data", "digits", "--layers", "layer3.2", "-o", tmp_path
    )
    assert message.startswith("unknown layer 'layer3.2'; did you mean layer3.")


def test_no_such_folder(tmp_path: Path) -> None:
    assert "no such folder or file: nowhere" in fail("extract", "resnet18", "--data", "nowhere", "-o", tmp_path)


def test_no_picture_in_the_folder(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "notes.md").write_text("hello")
    assert "no picture found in empty" in fail(
        "extract", "resnet18", "--data", tmp_path / "empty", "-o", tmp_path / "acts"
    )


def test_a_truncated_jpeg(tmp_path: Path) -> None:
    folder, out = tmp_path / "photos", tmp_path / "acts"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for name in "abcdef":
        Image.fromarray(rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(folder / f"{name}.jpg")
    path = folder / "d.jpg"
    path.write_bytes(path.read_bytes()[:1500])
    options = ("--weights", "random", "--data", folder, "-o", out)
    message = fail("extract", "test_resnet", *options)
    assert message.startswith("cannot read the picture d.jpg: ")
    assert "--skip-bad" in message
    assert list(out.iterdir()) == []
    result = run("extract", "test_resnet", *options, "--skip-bad")
    assert result.exit_code == 0
    assert result.stderr.startswith("skipped d.jpg: ")
    assert len(open_store(out / "test_resnet+random-seed0.h5")) == 5


def test_weights_that_cannot_be_had(tmp_path: Path) -> None:
    """HF_HUB_OFFLINE prevents a download."""
    message = fail("extract", "resnet18", "--data", "digits", "-o", tmp_path)
    for word in ("resnet18", "--weights FILE", "--weights random", "HF_HUB_OFFLINE"):
        assert word in message


def test_a_hostile_pickle(tmp_path: Path) -> None:
    class Hostile:
        def __reduce__(self) -> Any:
            return os.system, (f"touch {tmp_path}/ran",)

    torch.save({"state_dict": Hostile()}, tmp_path / "w.pth")
    message = fail("extract", "resnet18", "--weights", tmp_path / "w.pth", "--data", "digits", "-o", tmp_path / "acts")
    assert "w.pth" in message
    assert not (tmp_path / "ran").exists()


def test_a_tar_that_is_none(tmp_path: Path) -> None:
    (tmp_path / "photos.tar").write_text("hello")
    assert "no tar archive" in fail("extract", "resnet18", "--data", tmp_path / "photos.tar", "-o", tmp_path)
    with tarfile.open(tmp_path / "empty.tar", "w"):
        pass
    assert "no picture found" in fail("extract", "resnet18", "--data", tmp_path / "empty.tar", "-o", tmp_path)


def test_fewer_than_four_samples(tmp_path: Path) -> None:
    succeed("extract", "digits_vit.seed0", "--data", "digits", "--limit", 3, "-o", tmp_path)
    assert "3 samples are too few" in fail("compare", tmp_path / "digits_vit.seed0.h5")


def test_damage_is_found_by_whoever_reads_it(tmp_path: Path, stores: tuple[Path, Path]) -> None:
    assert succeed("verify", *stores) == f"{stores[0]}: OK: all checksums match\n{stores[1]}: OK: all checksums match\n"
    with h5py.File(stores[0], "r+") as file:
        file["layers/layer1.0/given"][3, 0] = np.nan
    message = fail("compare", *stores, "-o", tmp_path / "r.nc")
    assert "layer1.0@given is damaged in row 3: the checksum does not match" in message
    assert not (tmp_path / "r.nc").exists()
    outcome = run("verify", *stores, tmp_path / "not there.h5")
    assert outcome.exit_code == 1
    lines = outcome.stdout.splitlines()
    assert lines[0].startswith(f"{stores[0]}: ")
    assert lines[0].endswith("layer1.0@given is damaged in row 3")
    assert lines[1] == f"{stores[1]}: OK: all checksums match"
    assert lines[2].endswith(f"no such file: {tmp_path / 'not there.h5'}")


def test_the_same_command_again(tmp_path: Path) -> None:
    """Finished stores are kept; other settings are refused with the difference; --overwrite replaces a store."""
    command = ("extract", "digits_vit.seed0", "--data", "digits", "-o", tmp_path, "--limit", 6)
    succeed(*command)
    path = tmp_path / "digits_vit.seed0.h5"
    before = path.stat().st_mtime_ns
    again = run(*command)
    assert again.exit_code == 0
    assert again.stderr == f"{path} is complete already; --overwrite makes it again\n"
    assert path.stat().st_mtime_ns == before
    message = fail(*command, "--batch-size", 5)
    assert f"{path} was made with other settings: batch_size: 32 before, 5 now; use --overwrite" in message
    assert "samples: 5 of 6 only before" in fail(*command[:-1], 5)
    succeed(*command, "--batch-size", 5, "--overwrite")
    assert open_store(path).provenance["batch_size"] == 5


def test_models_that_prepare_pictures_alike_are_read_together(tmp_path: Path) -> None:
    names = ["digits_vit", "test_resnet", "digits_resnet"]
    options = ("--data", "digits", "--limit", 4, "--weights", "random")
    paths = [line.split("  ")[0] for line in succeed("extract", *names, *options, "-o", tmp_path).splitlines()]
    stems = [Path(path).name.partition("+")[0] for path in paths]
    assert stems == ["digits_vit", "digits_resnet", "test_resnet"]
    assert "would have the same store, digits_vit+random-seed0.h5" in fail(
        "extract", "digits_vit.seed0", "digits_vit.seed1", *options, "-o", tmp_path / "b"
    )


def test_nothing_but_constant_layers(tmp_path: Path) -> None:
    write_store(tmp_path / "c.h5", {"dead": np.ones((30, 3))}, model="c").close()
    assert "the layer is constant" in fail("compare", tmp_path / "c.h5", "-o", tmp_path / "r.nc")
    assert not (tmp_path / "r.nc").exists()


@pytest.mark.parametrize(("ids", "message"), [("abcdex", "only in the first"), ("abcdfe", "in another order")])
def test_other_samples_or_another_order(tmp_path: Path, ids: str, message: str) -> None:
    rng = np.random.default_rng(0)
    for name, chosen in (("a", "abcdef"), ("b", ids)):
        write_store(
            tmp_path / f"{name}.h5", {"x": rng.normal(size=(6, 2))}, model=name, sample_ids=list(chosen)
        ).close()
    assert message in fail("compare", tmp_path / "a.h5", tmp_path / "b.h5", "-o", tmp_path / "r.nc")
    assert not (tmp_path / "r.nc").exists()


def test_a_file_that_is_no_hdf5(tmp_path: Path, stores: tuple[Path, Path]) -> None:
    (tmp_path / "x.h5").write_text("hello")
    assert "no HDF5 file" in fail("compare", stores[0], tmp_path / "x.h5")
    assert "no HDF5 file" in fail("inspect", tmp_path / "x.h5")
    assert "no such file" in fail("inspect", tmp_path / "y.h5")


def test_a_store_that_is_cut_off(stores: tuple[Path, Path]) -> None:
    os.truncate(stores[0], 3000)
    assert "cut off" in fail("compare", *stores)


def test_an_interrupted_extraction(stores: tuple[Path, Path]) -> None:
    with h5py.File(stores[0], "r+") as file:
        file["checks/structure"][0] = 1
    assert "incomplete" in fail("compare", *stores)


def test_outputs_that_cannot_be_written(tmp_path: Path, stores: tuple[Path, Path]) -> None:
    (tmp_path / "file").write_text("keep me")
    assert "cannot make the folder" in fail(
        "extract", "digits_vit.seed0", "--data", "digits", "-o", tmp_path / "file" / "acts"
    )
    assert "cannot make the folder" in fail("compare", *stores, "-o", tmp_path / "file" / "r.nc")
    assert "name it .nc" in fail("compare", *stores, "-o", stores[0], "--overwrite")
    succeed("compare", *stores, "-o", tmp_path / "r.nc")
    assert "which would be lost" in fail("compare", stores[0], "-o", tmp_path / "r.nc")
    succeed("compare", stores[0], "-o", tmp_path / "r.nc", "--overwrite")
    assert (tmp_path / "file").read_text() == "keep me"
    (tmp_path / "r.png").mkdir()
    assert "is a folder" in fail("heatmap", tmp_path / "r.nc", "-o", tmp_path / "r.png")
    assert ".png" in fail("heatmap", tmp_path / "r.nc", "-o", tmp_path / "r.bmp")


def test_heatmaps_of_what_is_no_result(tmp_path: Path, stores: tuple[Path, Path]) -> None:
    assert "activation store" in fail("heatmap", stores[0], "-o", tmp_path / "r.png")
    succeed("compare", *stores, "-o", tmp_path / "r.nc")
    assert "cka" in fail("heatmap", tmp_path / "r.nc", "-m", "svcca", "-o", tmp_path / "r.png")
    assert not (tmp_path / "r.png").exists()


def test_unknown_metrics_and_options() -> None:
    assert "did you mean svcca" in fail("metrics", "svca")
    assert "did you mean kernel" in fail("metrics", "cka:kernl=rbf")


def test_stores_of_one_model_would_share_names(tmp_path: Path, stores: tuple[Path, Path]) -> None:
    copy = tmp_path / "copy.h5"
    shutil.copy(stores[0], copy)
    assert "are all of a model named 'net_a'" in fail("compare", *stores, copy)
