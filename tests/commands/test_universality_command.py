"""Tests of `repsim universality`: its output, the saved study, and errors of one line for bad input."""

import json
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from repsim import extract
from repsim.commands import terminal
from repsim.results.files import open_result, open_study, save_result
from repsim.stores.store import ActivationStore
from repsim.study.tables import all_tables
from repsim.testing.examples import TRAINED, UNTRAINED, small_study, write_networks
from repsim.testing.large import enlarged_study
from tests.commands import calls


@pytest.fixture(autouse=True)
def few_halves(tuned: Callable[..., None]) -> None:
    tuned(half_samples=8)


run = partial(calls.run, "universality")
succeed = partial(calls.succeed, "universality")
fail = partial(calls.fail, "universality")


def make(folder: Path, learned: float, seen: float, models: tuple[str, ...] = TRAINED + UNTRAINED) -> list[Path]:
    folder.mkdir(exist_ok=True)
    for store in write_networks(
        folder, np.random.default_rng(1), 40, learned=learned, seen=seen, models=models, depth=2
    ):
        store.close()
    return [folder / f"{model}.h5" for model in models]


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return make(tmp_path_factory.mktemp("stores"), learned=1.0, seen=0.5)


FAST = ("-m", "cka", "--permutations", 119)


def test_help() -> None:
    text = succeed("--help").stdout
    for word in ("--family", "--controls untrained:N", "--permutations", "--json", "Examples:"):
        assert word in text


@pytest.mark.slow
def test_it_prints_warnings_tables_and_the_summary(stores: list[Path]) -> None:
    outcome = succeed(*stores, *FAST, "-m", "procrustes", "--full")
    assert all(line.startswith("note: ") for line in outcome.stderr.splitlines() if "samples" in line)
    assert "note: 40 samples: intervals are wide" in outcome.stderr
    text = " ".join(outcome.stdout.split())
    for part in (
        "cka given input: mean along matching layers",
        "every measure, mean over",
        "what pairs of families share that was learned",
        "trained networks and each control, side by side",
        "where the energy of kernels",
    ):
        assert part in text
    assert "is universal across these families" in text
    assert "nan" not in text
    assert text.count("cnn.seed0 x vit.seed1") == 1


@pytest.mark.slow
def test_what_is_longer_than_a_screen_is_printed_on_request(stores: list[Path], tmp_path: Path) -> None:
    study = succeed(*stores, *FAST, "-o", tmp_path / "study.nc").stdout
    assert study.count("\n") <= terminal.SCREEN
    command = f"repsim inspect {tmp_path / 'study.nc'} --full"
    assert command in study
    everything = calls.run(*command.split()[1:])
    assert everything.exit_code == 0
    opened = open_study(tmp_path / "study.nc")
    text = " ".join(everything.stdout.split())
    for sentence in json.loads(opened.attrs["summary"]):
        assert sentence in text
    assert all(table.title in text for table in all_tables(opened))
    assert "--full prints them" in succeed(*stores, *FAST).stdout


def test_the_most_and_the_least_alike_pairs_of_a_large_study_fit_on_a_screen(
    capsys: pytest.CaptureFixture[str],
) -> None:
    study = enlarged_study(small_study(20, metrics=["cka"], draws=5), 30)
    terminal.print_study(study, path=Path("many.nc"))
    shown = capsys.readouterr()
    assert len(shown.out.splitlines()) + len(shown.err.splitlines()) <= terminal.SCREEN
    assert "the 3 most and the 3 least alike of 435 pairs of models" in " ".join(shown.out.split())
    values = study["split_half"].sel(measure="cka given input").values
    order = np.argsort(-values, kind="stable")
    rows = [
        line.split("  ")[0].strip()
        for line in shown.out.splitlines()
        if line.startswith(" ") and " x " in line.split("  ")[0]
    ]
    assert rows == study["pair"].values[np.r_[order[:3], order[-3:]]].tolist()
    assert json.loads(study.attrs["summary"])[0] in " ".join(shown.out.split())
    assert shown.out.splitlines()[-1].endswith("repsim inspect many.nc --full")
    terminal.print_study(study, full=True)
    assert len(capsys.readouterr().out.splitlines()) > 2 * terminal.SCREEN


@pytest.mark.slow
def test_the_study_is_saved(stores: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "new" / "study.nc"
    outcome = succeed(*stores, *FAST, "--full", "-o", out)
    assert outcome.stdout.endswith(f"saved {out}\n")
    study = open_study(out)
    assert study["pair"].size == 6
    assert study.attrs["permutations"] == 119
    summary = json.loads(study.attrs["summary"])
    assert all(" ".join(sentence.split()) in " ".join(outcome.stdout.split()) for sentence in summary)
    assert {path.name for path in out.parent.iterdir()} == {"study.nc", "study.nc.parts"}


@pytest.mark.slow
def test_json_is_json(stores: list[Path], tmp_path: Path) -> None:
    outcome = succeed(*stores[:3], *FAST, "--json", "-o", tmp_path / "study.nc")

    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    printed = json.loads(outcome.stdout, parse_constant=refuse)
    study = open_study(tmp_path / "study.nc")
    assert printed["samples"] == 40
    assert printed["summary"] == json.loads(study.attrs["summary"])
    assert printed["warnings"] == json.loads(study.attrs["warnings"])
    assert printed["coordinates"]["pair"] == study["pair"].values.tolist()
    assert printed["variables"]["index"]["dims"] == ["measure", "pair"]
    np.testing.assert_array_equal(printed["variables"]["index"]["values"], study["index"].values)
    missing = printed["variables"]["learned"]["values"]
    assert {value for row in missing for value in row} == {None}  # no untrained networks


@pytest.mark.parametrize("models", [TRAINED[:1], TRAINED[:2], TRAINED[::2]])
def test_few_models_are_printed_without_the_word(tmp_path: Path, models: tuple[str, ...]) -> None:
    outcome = succeed(*make(tmp_path, 1.0, 0.5, models), *FAST)
    assert "universal" not in outcome.output
    assert "nan" not in outcome.stdout


@pytest.mark.slow
def test_what_is_only_seen_is_printed_without_the_word(tmp_path: Path) -> None:
    out = tmp_path / "study.nc"
    outcome = succeed(*make(tmp_path / "acts", learned=0.0, seen=1.0), *FAST, "-o", out)
    low = float(open_study(out)["learned_mean_low"].sel(kernel="cka given input", kind_of_pair="other family"))
    assert low <= 0
    assert "universal" not in outcome.output
    everything = calls.run("inspect", str(out), "--full")
    assert "universal" not in everything.output
    assert "common to families" in " ".join(everything.stdout.split())


def test_what_stores_can_show_is_explained_without_a_study(stores: list[Path], tmp_path: Path) -> None:
    """Nothing is computed or written."""
    outcome = succeed(*stores, "--explain", "-o", tmp_path / "study.nc")
    assert not list(tmp_path.iterdir())
    lines = outcome.stdout.splitlines()
    assert lines[0].startswith("Family ")
    assert any(line.endswith("samples: intervals are tested from 200 samples on; take more.") for line in lines)
    assert "comparing all layers" in outcome.stdout  # the plan follows
    as_json = json.loads(succeed(*stores, "--explain", "--json").stdout)
    plan = next(k for k, line in enumerate(lines) if "controls of the input" in line)
    assert as_json[: plan + 1] == lines[: plan + 1]  # times and memory differ


@pytest.mark.slow
def test_families_by_hand(stores: list[Path], tmp_path: Path) -> None:
    succeed(*stores[:4], *FAST, "--family", "first=*.seed0", "--family", "second=cnn.seed1,vit.seed1", "-o",
            tmp_path / "study.nc")  # fmt: skip
    assert open_study(tmp_path / "study.nc")["family"].values.tolist() == ["first", "second", "first", "second"]


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("digits")
    for name, layers in (("digits_resnet", "layer1.1,layer4.1"), ("digits_vit", "blocks.0,blocks.5")):
        extract(f"{name}.seed0", data="digits", split="test", limit=40, layers=layers, out=folder).close()
    return sorted(folder.glob("*.h5"))


@pytest.mark.slow
def test_untrained_networks_on_demand(digits: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "study.nc"
    succeed(*digits, *FAST, "--controls", "untrained:1", "-o", out)
    kept = sorted((tmp_path / "study.controls").iterdir())
    assert [path.name for path in kept] == ["digits_resnet+random-seed0.h5", "digits_vit+random-seed0.h5"]
    study = open_study(out)
    assert json.loads(study.attrs["untrained"]) == ["digits_resnet+random-seed0", "digits_vit+random-seed0"]
    assert np.isfinite(study["learned"][:3]).all()
    assert np.isfinite(study["split_half_low"]).all()
    # given their untrained copies, nothing remains of untrained networks
    assert study["control_name"].sel(measure="cka given untrained").values.tolist() == [""]
    assert study["measure"].values.tolist() == [
        "cka", "cka given input", "cka given labels", "cka given input and labels", "cka given untrained",
    ]  # fmt: skip
    before = [path.stat().st_mtime_ns for path in kept]
    succeed(*digits, *FAST, "--controls", "untrained:1", "-o", out, "--overwrite")
    assert [path.stat().st_mtime_ns for path in kept] == before
    assert open_study(out).drop_attrs().identical(study.drop_attrs())


def test_controls_of_other_pictures(digits: list[Path], tmp_path: Path, pictures: Any) -> None:
    message = fail(*digits, "--controls", "untrained:1", "--data", pictures(3), "-o", tmp_path / "study.nc")
    assert re.search(r"photos lacks 40 of the 40 samples of .*digits_resnet\.seed0\.h5", message)
    assert not list(tmp_path.rglob("study*"))


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["missing.h5"], "no such file: missing.h5"),
        (["truncated.h5"], "truncated.h5"),
        (["cut.h5"], "cut.h5"),
        (["STORES", "flipped.h5"], "flipped.h5"),
        (["notes.txt"], "notes.txt"),
        (["STORES", "-o", "."], "a study is netCDF"),
        (["STORES", "--family", "cnn"], "--family takes NAME=GLOB"),
        (["STORES", "--family", "cnn=nothing*"], "no model's name matches"),
        (["STORES", "--controls", "junk"], "--controls is untrained:N, for example untrained:3, not 'junk'"),
        (["STORES", "--controls", "untrained:0"], "--controls is untrained:N"),
        (["STORES", "--controls", "untrained:1"], "was not extracted from a model's name"),
        (["STORES", "-m", "ckaa"], "unknown metric 'ckaa'; did you mean cka"),
        (["STORES", "--readout", "mean"], "holds no layer that is read out by mean, only by given"),
        (["STORES", "--memory", "much"], "much"),
        (["STORES", "-o", "study.png"], "a study is netCDF: name it .nc, not study.png"),
        (["STORES", "STORES"], "are all of a model named"),
        (["UNTRAINED"], "all of these networks are untrained"),
    ],
)
def test_bad_input_is_one_line(
    stores: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, args: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    data = stores[2].read_bytes()
    Path("truncated.h5").write_bytes(data[:3000])
    Path("cut.h5").write_bytes(data[:-100])
    at = data.index(ActivationStore(stores[2])["block1"][20].tobytes())
    Path("flipped.h5").write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
    Path("notes.txt").write_text("no store")
    words = [word for arg in args for word in {"STORES": stores[:2], "UNTRAINED": stores[4:6]}.get(arg, [arg])]
    out = [] if "-o" in args else ["-o", "study.nc"]
    assert message in fail(*words, *out)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cut.h5", "flipped.h5", "notes.txt", "truncated.h5"]


@pytest.mark.slow
def test_what_is_there_is_not_replaced(stores: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "study.nc"
    out.write_text("precious")
    assert fail(*stores[:2], *FAST, "-o", out).startswith(f"{out} exists; use --overwrite")
    assert out.read_text() == "precious"
    succeed(*stores[:2], *FAST, "-o", out, "--overwrite")
    assert open_study(out)["pair"].size == 1


@pytest.mark.slow
def test_a_comparison_command_refuses_a_study(stores: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "study.nc"
    succeed(*stores[:2], *FAST, "-o", out)
    with pytest.raises(OSError, match="it is a study of repsim.universality"):
        open_result(out)
    study = open_study(out)
    study.attrs["format_version"] = 99
    save_result(study, tmp_path / "new.nc")
    with pytest.raises(OSError, match="has study format 99; this repsim reads 1, 2 and 3; install a newer repsim"):
        open_study(tmp_path / "new.nc")


@pytest.mark.slow
def test_progress_in_a_log(stores: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a terminal, every step prints lines without control characters."""
    monkeypatch.setattr(terminal, "LOG_SECONDS", 0.0)
    log = succeed(*stores[:2], *FAST, "-m", "procrustes").stderr
    for line in (
        r"preparing layers: 11 of 11",
        r"comparing all layers: ",
        r"permuting samples: (\d+) of \1",
        r"permuting samples within classes: \d+ of \d+",
        r"measuring procrustes: ",
    ):
        assert re.search(rf"(?m)^{line}", log), line
    assert not re.search(r"[\x00-\x09\x0b-\x1f]", log)
