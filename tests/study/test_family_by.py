"""Tests of families by the values of an axis, and of axes in results, studies and their tables."""

import csv
import json
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch

import repsim
from repsim.errors import InvalidInputError
from repsim.extractors import zoo as _zoo  # noqa: F401 - registers the networks of digits
from repsim.results.coordinates import axis_coordinates
from repsim.results.export import to_json
from repsim.stores.store import same_weights
from repsim.study.design import design
from repsim.study.feasibility import explain_study
from repsim.study.study_file import parse_protocol
from tests.commands.calls import fail, succeed

N = 40


def write(folder: Path, name: str, axes: dict[str, Any], seed: int = 0, weights: str = "file") -> Path:
    rng = np.random.default_rng(seed)
    shared = np.random.default_rng(99).normal(size=(N, 6))
    layers = {f"l{k}": shared @ rng.normal(size=(6, 8)) + rng.normal(size=(N, 8)) for k in range(2)}
    provenance = {"weights": weights, "architecture": "net"}
    repsim.write_store(folder / f"{name}.h5", layers, model=name, axes=axes, provenance=provenance).close()
    return folder / f"{name}.h5"


@pytest.fixture
def nets(tmp_path: Path) -> list[Path]:
    trained = [write(tmp_path, f"w{w}s{s}", {"width": w, "seed": s}, 10 * w + s) for w in (8, 16) for s in (0, 1)]
    untrained = [write(tmp_path, f"u{w}s{s}", {"width": w}, w + s, "random") for w in (8, 16) for s in (2, 3)]
    return [*trained, *untrained]


def opened(paths: list[Path]) -> list[repsim.ActivationStore]:
    return [repsim.open_store(path) for path in paths]


def test_families_are_the_values_of_an_axis(nets: list[Path]) -> None:
    study = design(opened(nets), family_by="width")
    assert [member.family for member in study.trained] == ["width=8", "width=8", "width=16", "width=16"]
    assert "families by the axis width: width=8 (2 models), width=16 (2 models)" in study.notes
    for member in study.trained:  # a wide network has wide untrained twins
        assert [twin.name for twin in study.twins_of(member)] == [f"u{member.store.axes['width']}s{s}" for s in (2, 3)]
    assert [member.architecture for member in study.untrained] == ["net width=8"] * 2 + ["net width=16"] * 2
    assert [member.family for member in study.untrained] == ["width=8"] * 2 + ["width=16"] * 2
    assert any("net width=8 (2 trained, 2 untrained)" in text for text in explain_study(nets, family_by="width"))


def test_other_axes_leave_architectures_as_they_are(nets: list[Path]) -> None:
    study = design(opened(nets), family_by="seed")
    assert [member.family for member in study.trained] == ["seed=0", "seed=1"] * 2
    assert {member.architecture for member in study.members} == {"net"}
    same = design(opened([*nets[:2], *nets[4:6]]), family_by="width")
    assert {member.architecture for member in same.members} == {"net"}, "one width is no variant"


@pytest.mark.slow
def test_the_verb_and_the_command_agree(tmp_path: Path, nets: list[Path]) -> None:
    study = repsim.universality(nets, ["cka"], family_by="width", permutations=19, draws=20)
    assert study["family"].values.tolist() == ["width=8", "width=8", "width=16", "width=16"]
    succeed("universality", *nets, "-m", "cka", "--family-by", "width", "--permutations", 19, "-o", tmp_path / "s.nc")
    saved = repsim.open_study(tmp_path / "s.nc")
    assert saved["family"].values.tolist() == study["family"].values.tolist()
    assert saved["axis_width"].values.tolist() == [8, 8, 16, 16]
    assert saved["axis_seed"].attrs["long_name"] == "seed of the model"
    pairs = repsim.to_frame(saved, "pairs")
    assert pairs["axis_width_a"].tolist() == [int(name[1:].split("s")[0]) for name in pairs["pair_a"]]
    assert pairs["axis_seed_b"].tolist() == [int(name[-1]) for name in pairs["pair_b"]]
    assert pairs.attrs["columns"]["axis_seed_b"] == "seed of model b"
    assert to_json(saved)["axes"]["w16s1"] == {"width": 16, "seed": 1}
    succeed("universality", *nets, "--family-by", "width", "--explain")


def test_what_cannot_be_meant_is_one_line(tmp_path: Path, nets: list[Path]) -> None:
    lacking = write(tmp_path, "plain", {"lr": 0.5}, 5)
    for paths, message in {
        (*nets, lacking): f"{lacking} has no axis width, which is to name its family; it has lr=0.5; state it with",
        (write(tmp_path, "none", {}, 6),): "it has no axes",
        (*nets[:4], write(tmp_path, "bare", {}, 7, "random")): "has no axis width, and net has several of them",
        (write(tmp_path, "odd", {"width": "a x b"}, 8),): "may not contain a separate x",
    }.items():
        assert message in fail("universality", *paths, "--family-by", "width")
    both = fail("universality", *nets, "--family-by", "width", "--family", "a=w8*")
    assert "--family and --family-by: state one of them" in both
    assert "'Width' cannot name an axis" in fail("universality", *nets, "--family-by", "Width")
    with pytest.raises(InvalidInputError, match="state one of them"):
        repsim.universality(nets, families={"a": ["w8*"]}, family_by="width")


def test_a_study_file_has_the_key(tmp_path: Path) -> None:
    text = "models: [a]\ndata: digits\nfamily_by: width\n"
    assert parse_protocol(text, tmp_path / "s.yaml").family_by == "width"
    assert parse_protocol(text).differences(parse_protocol("models: [a]\ndata: digits\n")) == ["family_by"]


@pytest.mark.slow
def test_untrained_networks_of_every_width_are_made(tmp_path: Path) -> None:
    for width in (32, 48):
        torch.manual_seed(width)
        torch.save(timm.create_model("test_vit", embed_dim=width).state_dict(), tmp_path / f"w{width}.pt")
        repsim.extract("test_vit", "digits", tmp_path, weights=tmp_path / f"w{width}.pt", limit=30, split="test",
                       layers="blocks.*", model_kwargs={"embed_dim": width}).close()  # fmt: skip
    stores = sorted(tmp_path.glob("*.h5"))
    study = repsim.universality(stores, ["cka"], family_by="width", controls="untrained:1", permutations=19, draws=20,
                                controls_folder=tmp_path / "controls")  # fmt: skip
    assert study["family"].values.tolist() == ["width=32", "width=48"]
    with ExitStack() as stack:
        made = [stack.enter_context(repsim.open_store(path)) for path in sorted((tmp_path / "controls").glob("*.h5"))]
        assert [store.axes["width"] for store in made] == [32, 48]
    architectures = study["network_architecture"].values.tolist()
    assert architectures == ["test_vit width=32", "test_vit width=48"] * 2


def test_results_have_the_axes_of_their_layers(tmp_path: Path) -> None:
    paths = [
        write(tmp_path, "a", {"step": 1, "run": "x", "lr": 0.5}, 1),
        write(tmp_path, "b", {"step": 20, "run": "y"}, 2),
        write(tmp_path, "c", {"step": "last"}, 3),
    ]
    result = repsim.compare(paths[:2], metrics=["cka"], out=tmp_path / "r.nc")
    for data in (result, repsim.open_result(tmp_path / "r.nc")):
        assert data["axis_step_a"].values.tolist() == [1, 1, 20, 20]
        assert data["axis_step_a"].dtype == np.int64
        assert data["axis_run_b"].values.tolist() == ["x", "x", "y", "y"]
        assert np.array_equal(data["axis_lr_a"].values, [0.5, 0.5, np.nan, np.nan], equal_nan=True)
        assert data["axis_lr_a"].attrs["long_name"] == "lr (a)"
        assert data["axis_step_a"].dims == ("layer_a",)
    frame = repsim.to_frame(result)
    assert frame["axis_step_a"].tolist() == [1] * 8 + [20] * 8
    assert to_json(result)["a"]["axes"] == {"a": {"lr": 0.5, "run": "x", "step": 1}, "b": {"run": "y", "step": 20}}
    succeed("export", tmp_path / "r.nc", "-o", tmp_path / "r.csv")
    rows = list(csv.DictReader((tmp_path / "r.csv").read_text().splitlines()))
    assert {(row["model_b"], row["axis_step_b"], row["axis_lr_b"]) for row in rows} == {
        ("a", "1", "0.5"),
        ("b", "20", ""),
    }
    grown = repsim.compare(paths, metrics=["cka"], out=tmp_path / "r.nc")
    assert grown["axis_step_a"].values.tolist() == ["1", "1", "20", "20", "last", "last"]
    assert json.loads(grown.attrs["stores_a"])[2]["provenance"]["axes"] == {"step": "last"}
    one = repsim.compare(paths[0], paths[2], metrics=["cka"])
    assert (one["axis_step_a"].values.tolist(), one["axis_step_b"].values.tolist()) == ([1, 1], ["last", "last"])
    plain = repsim.compare(write(tmp_path, "d", {}, 4), metrics=["cka"])
    assert not [name for name in plain.coords if str(name).startswith("axis_")]


def test_coordinates_have_the_type_that_all_values_fit() -> None:
    columns = axis_coordinates([{"a": 1, "b": 1, "c": 2}, {"a": 2.5, "c": "x", "b": 2}, {}])
    assert {name: values.dtype.kind for name, values in columns.items()} == {
        "axis_a": "f",
        "axis_b": "f",
        "axis_c": "O",
    }
    assert columns["axis_c"].tolist() == ["2", "x", ""]
    assert axis_coordinates([{}, {}]) == {}


def test_equal_weights_are_groups(tmp_path: Path) -> None:
    digests = {"a": "1", "b": "2", "c": "1", "d": "3", "e": "2", "f": None}
    for name, digest in digests.items():
        record = {} if digest is None else {"weights_sha256": digest}
        repsim.write_store(tmp_path / f"{name}.h5", {"x": np.ones((4, 2))}, model=name, provenance=record).close()
    stores = opened([tmp_path / f"{name}.h5" for name in digests])
    assert same_weights(stores) == [["a", "c"], ["b", "e"]]
    assert same_weights(stores[:2]) == []
