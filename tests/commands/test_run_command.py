"""Tests of `repsim run`: it does what the commands do, resumes, and names the line of an error in a study file."""

import json
import re
from dataclasses import fields
from pathlib import Path

import pytest
import xarray as xr
from click.testing import CliRunner, Result

import repsim
from repsim.cli import main
from repsim.errors import InvalidInputError, UnknownNameError
from repsim.extraction.options import Data, Model
from repsim.runtime.options import markdown_table
from repsim.study.study_file import EXAMPLE, Protocol, parse_protocol, schema

SMALL = """\
models: [digits_vit.seed0, {name: digits_vit, weights: random, seed: 3}, digits_vit.seed1]
data: {source: digits, split: test, limit: 16}
layers: blocks.*
metrics: [cka]
permutations: 19
draws: 20
seed: 4
"""


def run(*args: object) -> Result:
    return CliRunner().invoke(main, ["run", *map(str, args)])


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run a small study file; return its path."""
    file = tmp_path_factory.mktemp("run") / "small.yaml"
    file.write_text(SMALL)
    outcome = run(file)
    assert outcome.exit_code == 0, outcome.output
    return file


def test_it_is_the_study_of_its_stores(done: Path) -> None:
    out = done.with_suffix("")
    stores = [
        out / "acts" / f"{name}.h5" for name in ("digits_vit.seed0", "digits_vit+random-seed3", "digits_vit.seed1")
    ]
    assert sorted(stores) == sorted((out / "acts").iterdir())
    by_hand = repsim.universality(stores, ["cka"], permutations=19, draws=20, seed=4)
    study = repsim.open_study(out / "study.nc")
    for dataset in (study, by_hand):
        for name in ("created", "command", "study_file"):
            dataset.attrs.pop(name, None)
    xr.testing.assert_identical(study.sortby("pair"), by_hand.sortby("pair"))
    with repsim.open_store(stores[0]) as store:
        assert (len(store), store.layers[0]) == (16, "blocks.0")


def test_the_file_can_be_had_back(done: Path, tmp_path: Path) -> None:
    out = done.with_suffix("")
    assert (out / "study.yaml").read_text() == SMALL == run("--from", out / "study.nc").stdout


@pytest.mark.slow
def test_again_it_computes_nothing_and_a_change_is_named(done: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = done.with_suffix("")
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*.*") if "figures" not in path.parts}
    before.pop(out / "report.html", None)

    def fails(*args: object, **options: object) -> None:
        pytest.fail("nothing is to be computed")

    monkeypatch.setattr("repsim.study.universality.universality", fails)
    done.write_text("# a comment changes nothing\n" + SMALL)
    again = run(done)
    assert again.exit_code == 0, again.output
    assert "holds this study already" in again.stderr
    for old, new, message in [("seed: 4", "seed: 5", "the key seed"), ("[cka]", "[svcca]", "the key metrics")]:
        done.write_text(SMALL.replace(old, new))
        refused = run(done)
        assert refused.exit_code == 2
        assert f"differences: {message}; use --overwrite" in refused.stderr
    done.write_text(SMALL.replace("limit: 16", "limit: 20"))
    refused = run(done)
    assert (refused.exit_code, "other settings" in refused.stderr, "delete it" in refused.stderr) == (2, True, True)
    done.write_text(SMALL)
    assert before == {path: path.stat().st_mtime_ns for path in before}


@pytest.mark.slow
def test_other_stores_are_another_study(done: Path) -> None:
    target = done.with_suffix("") / "study.nc"
    kept = target.read_bytes()
    study = repsim.open_study(target)
    stores = json.loads(study.attrs["stores"])
    stores[0]["checksum"] = "00000000"
    repsim.save_result(study.assign_attrs(stores=json.dumps(stores)), target, overwrite=True)
    refused = run(done)
    target.write_bytes(kept)
    assert refused.exit_code == 2
    assert f"differences: the store of {stores[0]['model']}" in refused.stderr


def test_a_dry_run_writes_nothing(tmp_path: Path) -> None:
    file = tmp_path / "small.yaml"
    file.write_text(SMALL)
    shown = run(file, "--dry-run")
    assert shown.exit_code == 0, shown.output
    assert "blocks.5" in shown.stdout
    assert ", 19 permutations: " in shown.stdout
    assert list(tmp_path.iterdir()) == [file]
    file.write_text(re.sub(r"^permutations.*\n", "", SMALL, flags=re.MULTILINE))
    assert ", the default number of permutations: " in run(file, "--dry-run").stdout


def test_a_slip_of_the_hand_costs_no_extraction(tmp_path: Path) -> None:
    file = tmp_path / "small.yaml"
    for old, new, message in [
        ("[cka]", "[ckaa]", "did you mean cka"),
        ("digits_vit.seed1", "digits_vti", "digits_vit"),
        ("metrics", "memory: lots\nmetrics", "write 2GiB"),
    ]:
        file.write_text(SMALL.replace(old, new))
        refused = run(file)
        assert refused.exit_code == 2
        assert message in refused.stderr
        assert list(tmp_path.iterdir()) == [file]


def test_the_example_is_a_study(tmp_path: Path) -> None:
    assert run("--example").stdout == EXAMPLE
    protocol = parse_protocol(EXAMPLE)
    assert [model.name for model in protocol.models][-1] == "digits_vit.seed1"
    assert protocol.families == {"resnet": ["digits_resnet*"], "vit": ["digits_vit*"]}
    page = Path(repsim.__file__).parents[1] / "docs" / "study-file.md"
    assert EXAMPLE in page.read_text()


def test_paths_are_relative_to_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").mkdir()  # a folder with the same name in the working folder is not used
    text = "models: [{name: resnet18, weights: w.pth}]\ndata: photos\nout: results"
    protocol = parse_protocol(text, folder / "study.yaml")
    assert protocol.models[0].weights == str(folder / "w.pth")
    assert (protocol.data.source, protocol.out) == (str(folder / "photos"), str(folder / "results"))
    for name in ("digits", "torch/cifar10"):
        assert parse_protocol(f"models: [a]\ndata: {name}", folder / "study.yaml").data.source == name


BASE = "models: [a]\ndata: digits\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty; repsim.study.study_file.EXAMPLE is a study file"),
        ("# nothing\n", "is empty"),
        ("models", "line 1: a study file is keys with values, not 'models'"),
        ("- a", "line 1: a study file is keys with values, not a list"),
        (BASE + "metric: [cka]", "unknown key 'metric'; did you mean metrics"),
        (BASE + "seed: 1\nseed: 2", "line 4: seed is already set in line 3"),
        ("models: [{name: a, name: b}]\ndata: x", "line 1: name is already set in line 1"),
        ("models: [a]", "needs the key data"),
        ("models: []\ndata: x", "name at least one"),
        ("models: a\ndata: x", "line 1: models is a list, not 'a'"),
        ("models: [no]\ndata: x", 'line 1: models is text, not `no`, which YAML takes for true or false; write "no"'),
        ("models: [a]\ndata:\n  source: x\n  split: on", 'line 4: split is text, not `on`'),
        ("models: [a]\ndata: 2024-01-01", "which YAML takes for a date"),
        (BASE + "families: {no: [a]}", "a key of families is text, not `no`"),
        (BASE + "families: {cnn: a*}", "families: cnn is a list, not 'a*'"),
        (BASE + "families: {cnn: [*a]}", "line 3: anchors and aliases"),
        (BASE + "seed: one", "line 3: seed is a whole number, not 'one'"),
        (BASE + "seed: 1.5", "line 3: seed is a whole number, not `1.5`"),
        (BASE + "seed: true", "line 3: seed is a whole number, not `true`"),
        (BASE + "permutations: 3", "line 3: permutations is at least 19, not 3"),
        (BASE + "report: 1", "line 3: report is true or false, not `1`"),
        (BASE + "controls: trained:3", "line 3: controls is written as in untrained:3, not 'trained:3'"),
        (BASE + "untrained: -1", "line 3: untrained is at least 0, not -1"),
        (BASE + "metrics: [cka,\n  3]", "line 4: metrics is text, not `3`"),
        (BASE + "dtype: float46", "did you mean float16"),
        (BASE + "device:", "line 3: device is text, not nothing"),
        (BASE + "readout: mean,max", "a study takes one readout, not 'mean,max'"),
        ("models: [a, b, a]\ndata: x", "a is listed twice"),
        (BASE + "layers: ''", "line 3: layers is empty"),
        (BASE + "layers:\n\t- a", "line 4: this is not valid YAML: a tab"),
        (BASE + "layers: [a", "this is not valid YAML"),
        (BASE + "layers: !!python/object/apply:os.system [x]", "layers is text"),
        (BASE + "---\n" + BASE, "a second document"),
        ("[" * 5000, "nested too deeply"),
        ("a: &a [x]\nb: &b [*a,*a]\nc: [*b,*b]", "anchors and aliases"),
        ("models: [a]\ndata: \x00", "this is not valid YAML"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said_with_its_line(text: str, message: str) -> None:
    with pytest.raises((InvalidInputError, UnknownNameError)) as caught:
        parse_protocol(text)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_is_no_study_file_is_refused(tmp_path: Path, done: Path) -> None:
    (tmp_path / "latin.yaml").write_bytes(b"models: [\xe9]")
    (tmp_path / "huge.yaml").write_bytes(b"#" * 2**21)
    for args, message in {
        (tmp_path / "no.yaml",): "No such file",
        (tmp_path,): "Is a directory",
        (tmp_path / "latin.yaml",): "not text in UTF-8",
        (tmp_path / "huge.yaml",): "more than a megabyte",
        (): "name one study file",
        (done, "--example"): "name one study file",
        ("--from", done): "is no study",
    }.items():
        refused = run(*args)
        assert (refused.exit_code, message in refused.stderr) == (2, True), refused.output


def test_numbers_and_words_are_those_of_yaml() -> None:
    read = parse_protocol(BASE + "seed: 0x10\namp: yes\nreport: off\nmemory: null\nfigures: False")
    assert (read.seed, read.amp, read.report, read.memory, read.figures) == (16, True, False, None, False)


def test_the_page_explains_every_key() -> None:
    page = (Path(repsim.__file__).parents[1] / "docs" / "study-file.md").read_text()
    for title, kind in {"## Keys": Protocol, "## Keys of a model": Model, "## Keys of the data": Data}.items():
        assert markdown_table(kind) in page.split(f"{title}\n")[1].split("\n#")[0]


def test_the_schema_and_the_reader_agree() -> None:
    """An editor with the schema and `repsim run` accept the same keys, short forms, choices and bounds."""
    printed = json.loads(run("--schema").stdout)
    assert printed == schema()
    for title, kind in {"Protocol": Protocol, "Model": Model, "Data": Data}.items():
        section = printed["$defs"][title]
        assert set(section["properties"]) - {"untrained"} == {field.name for field in fields(kind)}
        assert section["additionalProperties"] is False
        assert all(entry.get("description") for entry in section["properties"].values())
    keys = printed["$defs"]["Protocol"]["properties"]
    assert printed["$defs"]["Protocol"]["required"] == ["models", "data"]
    assert (keys["dtype"]["enum"], keys["together"]["minimum"]) == (["float16", "float32"], 1)
    assert "untrained:2" in re.findall(keys["controls"]["anyOf"][0]["pattern"], "untrained:2")
    assert {"type": "string", "pattern": r"\S"} in keys["models"]["items"]["anyOf"]


def test_the_earlier_spelling_of_controls_is_read() -> None:
    assert parse_protocol(BASE + "untrained: 2") == parse_protocol(BASE + "controls: untrained:2")
    assert parse_protocol(BASE + "untrained: 0") == parse_protocol(BASE)


def test_many_models_are_not_compared_with_one_another(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pairs of 60,000 models took hours, and a study file of a megabyte can name them."""
    calls: list[Model] = []

    def compare(model: Model, _: object) -> bool:
        calls.append(model)
        return False

    monkeypatch.setattr(Model, "__eq__", compare)
    models = ", ".join(f"m{k}" for k in range(300))
    assert len(parse_protocol(f"models: [{models}]\ndata: digits").models) == 300
    assert len(calls) < 300
