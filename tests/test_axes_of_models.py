"""Tests of axes at the extraction: stated, from names of files, from a CSV file, and in study files."""

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch

import repsim
from repsim.errors import InvalidInputError, OtherSettingsError
from repsim.extraction.options import Model
from repsim.extraction.patterns import expand_patterns
from repsim.extractors import zoo as _zoo  # noqa: F401 - registers the networks of digits
from repsim.pipeline import plan_study
from repsim.stores.axes import axes_of
from repsim.stores.axes_files import read_axes
from repsim.study.study_file import parse_protocol
from tests.commands.calls import fail, run, succeed

COMMON: dict[str, Any] = {"limit": 8, "layers": "blocks.0", "workers": 0}
OPTIONS = ("--data", "digits", "--limit", 8, "--layers", "blocks.0")


def touch(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


def expand(folder: Path, pattern: str, **keywords: Any) -> list[Model]:
    return expand_patterns([Model(name="digits_vit", weights=str(folder / pattern), **keywords)])


def stated(store: repsim.ActivationStore) -> dict[str, Any]:
    return dict(axes_of(store.provenance))


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make checkpoints of two runs, which start from the same weights."""
    folder = tmp_path_factory.mktemp("runs")
    for run_name, seeds in {"a": (0, 1, 2), "b": (0, 3)}.items():
        (folder / run_name).mkdir()
        for step, seed in zip((0, 90, 1000), seeds, strict=False):
            torch.manual_seed(seed)
            state = timm.create_model("digits_vit").state_dict()
            torch.save({"state_dict": state}, folder / run_name / f"step_{step:06}.pt")
    (folder / "notes.txt").write_text("")
    return folder


def test_axes_are_stated_for_all_models_or_for_each(tmp_path: Path) -> None:
    names = ["digits_vit.seed0", "digits_vit.seed1"]
    stores = repsim.extract(names, "digits", tmp_path, axes=[{"seed": 0, "lr": np.float32(0.5)}, {"seed": 1}], **COMMON)
    assert [stated(store) for store in stores] == [{"seed": 0, "lr": 0.5}, {"seed": 1}]
    again = repsim.extract(names[0], "digits", tmp_path / "all", axes={"width": 64}, **COMMON)
    assert stated(again) == {"width": 64}
    assert np.array_equal(again["blocks.0"][:], stores[0]["blocks.0"][:])
    with pytest.raises(InvalidInputError, match="2 axes for 1 model"):
        repsim.extract(names[:1], "digits", tmp_path, axes=[{}, {}], **COMMON)


def test_axes_of_the_command_line_are_numbers_or_texts(tmp_path: Path) -> None:
    succeed("extract", "digits_vit.seed0", *OPTIONS, "--axes", "step=001000", "--axes", "run='7'", "-o", tmp_path)
    with repsim.open_store(tmp_path / "digits_vit.seed0.h5") as store:
        assert stated(store) == {"step": 1000, "run": "7"}
    for axes, message in {
        ("step",): "--axes is NAME=VALUE (step=1000, run=a), not 'step'",
        ("step=",): "--axes is NAME=VALUE",
        ("step=1", "step=2"): "--axes: step is given twice",
        ("Step=1",): "'Step' cannot name an axis",
        ("step=1e999",): "step is inf; expected a finite number",
    }.items():
        flags = [part for text in axes for part in ("--axes", text)]
        assert message in fail("extract", "digits_vit.seed0", *OPTIONS, *flags, "-o", tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_a_store_with_other_axes_is_kept_and_named(tmp_path: Path) -> None:
    repsim.extract("digits_vit.seed0", "digits", tmp_path, axes={"step": 1}, **COMMON).close()
    before = (tmp_path / "digits_vit.seed0.h5").read_bytes()
    with pytest.raises(OtherSettingsError, match=r"axes\.step: 1 before, 2 now; use overwrite=True"):
        repsim.extract("digits_vit.seed0", "digits", tmp_path, axes={"step": 2}, **COMMON)
    with pytest.raises(OtherSettingsError, match="axes: .* before, nothing now"):
        repsim.extract("digits_vit.seed0", "digits", tmp_path, **COMMON)
    assert (tmp_path / "digits_vit.seed0.h5").read_bytes() == before
    repsim.extract("digits_vit.seed0", "digits", tmp_path, axes={"step": 1}, **COMMON).close()
    assert (tmp_path / "digits_vit.seed0.h5").read_bytes() == before


@pytest.mark.slow
def test_a_pattern_is_one_store_per_file(tmp_path: Path, runs: Path) -> None:
    pattern = runs / "{run}" / "step_{step}.pt"
    result = succeed("extract", "digits_vit", "--weights", pattern, *OPTIONS, "-o", tmp_path)
    names = [f"digits_vit.run-{r}.step-{s}" for r, s in (("a", 0), ("a", 90), ("a", 1000), ("b", 0), ("b", 90))]
    assert [Path(line.split()[0]).stem for line in result.stdout.splitlines()] == names
    assert f"note: {names[3]} has the same weights as {names[0]}\n" in result.stderr
    assert result.stderr.count("has the same weights") == 1
    for name, seed, axes in ((names[2], 2, {"run": "a", "step": 1000}), (names[4], 3, {"run": "b", "step": 90})):
        torch.manual_seed(seed)
        torch.save(timm.create_model("digits_vit").state_dict(), tmp_path / "alone.pt")
        weights = tmp_path / "alone.pt"
        alone = repsim.extract("digits_vit", "digits", tmp_path / "alone", weights=weights, overwrite=True, **COMMON)
        with repsim.open_store(tmp_path / f"{name}.h5") as store:
            assert stated(store) == axes
            assert np.array_equal(store["blocks.0"][:], alone["blocks.0"][:])
    again = succeed("extract", "digits_vit", "--weights", pattern, *OPTIONS, "-o", tmp_path)
    assert again.stderr.count("is complete already") == 5


def test_patterns_in_python_give_a_list(tmp_path: Path, runs: Path) -> None:
    pattern = str(runs / "a" / "step_{step}.pt")
    with pytest.raises(InvalidInputError, match=r"name the model in a list, \['digits_vit'\]"):
        repsim.extract("digits_vit", "digits", tmp_path, weights=pattern, **COMMON)
    stores = repsim.extract(["digits_vit"], "digits", tmp_path, weights=pattern, name=["net"], axes={"lr": 1}, **COMMON)
    assert [store.model for store in stores] == ["net.step-0", "net.step-90", "net.step-1000"]
    assert stated(stores[1]) == {"lr": 1, "step": 90}
    with pytest.raises(InvalidInputError, match="step is 5, but 0 in its name; state it once"):
        repsim.extract(["digits_vit"], "digits", tmp_path, weights=pattern, axes={"step": 5}, **COMMON)


def test_files_are_in_the_order_of_their_axes(tmp_path: Path) -> None:
    touch(tmp_path, *(f"step_{step}.pt" for step in ("9", "010", "1e3", "final", "2.5", "-1", "best")))
    models = expand(tmp_path, "step_{step}.pt")
    assert [model.axes["step"] for model in models] == [-1, 2.5, 9, 10, 1000, "best", "final"]
    assert models[3].store == "digits_vit.step-10"
    touch(tmp_path, *(f"plain/epoch{k}.pt" for k in (1, 10, 9)))
    assert [model.store for model in expand(tmp_path, "plain/*.pt")] == [f"digits_vit+epoch{k}" for k in (1, 9, 10)]
    assert [model.axes for model in expand(tmp_path, "plain/*.pt", axes={"a": 1})] == [{"a": 1}] * 3


def test_fields_read_names_in_one_way(tmp_path: Path) -> None:
    touch(tmp_path, "my_run_100.pt", "x/x_2.pt", "x/y_2.pt", "deep/er/w64.pt", "deep/w32.pt")
    touch(tmp_path, "z/1.0.pt")
    assert [model.axes for model in expand(tmp_path, "{run}_{step:d}.pt")] == [{"run": "my_run", "step": 100}]
    assert [model.axes for model in expand(tmp_path, "*_{step:d}.pt")] == [{"step": 100}]
    assert [model.axes for model in expand(tmp_path, "[xy]/{run}_?.pt")] == [{"run": "x"}, {"run": "y"}]
    assert [Path(model.weights).name for model in expand(tmp_path, "{run}/{run}_{step}.pt")] == ["x_2.pt"]
    assert [model.axes for model in expand(tmp_path, "deep/**/w{width}.pt")] == [{"width": 32}, {"width": 64}]
    assert [model.axes for model in expand(tmp_path, "z/{lr}.pt")] == [{"lr": 1.0}]
    with pytest.raises(InvalidInputError, match=r"in more than one way \(run=my, step=run_100; run=my_run, step=100\)"):
        expand(tmp_path, "{run}_{step}.pt")
    touch(tmp_path, "odd{name}.pt")
    assert expand(tmp_path, "odd{name}.pt")[0].axes == {}, "the name of a file that exists is no pattern"


def test_patterns_that_cannot_be_meant_are_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    touch(
        tmp_path,
        *(f"a/step_{k}.pt" for k in ("1", "01", "10", "9", "2", "3")),
        "b/step_4.pt",
        "one/c/w.pt",
        "two/c/w.pt",
    )
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    for pattern, message in {
        "a/step_{step}.pt": "a/step_01.pt and a/step_1.pt have the same axes, step=1; give the part that differs",
        "*/step_{step:d}.pt": "have the same axes, step=1",
        "*/c/w.pt": "one/c/w.pt and two/c/w.pt would have the same store, digits_vit+w.h5; give the part that differs",
        "a/epoch_{epoch}.pt": "no file fits a/epoch_{epoch}.pt; a holds step_01.pt, step_1.pt, step_2.pt, step_3.pt",
        "c/{run}/x_{step}.pt": f"no file fits c/{{run}}/x_{{step}}.pt; {tmp_path} holds a/, b/, empty/, one/, two/",
        "empty/*.pt": "no file fits empty/*.pt; empty is empty",
        "a/step_{Step}.pt": "weights: in a/step_{Step}.pt: 'Step' cannot name an axis",
        "a/step_{}.pt": "'' cannot name an axis",
        "a/step_{step:f}.pt": "the field {step:f} is of no kind; {step:d} is digits",
        "a/step_{step.pt": "has a brace without its other",
    }.items():
        line = fail("extract", "digits_vit", "--weights", pattern, *OPTIONS, "-o", tmp_path / "acts")
        assert message in line
    assert not (tmp_path / "acts").exists()


@pytest.mark.slow
def test_a_csv_file_says_axes_by_file_of_weights(tmp_path: Path, runs: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "repsim")
    table = runs / "runs.csv"
    table.write_text("weights,lr,note\na/*.pt,0.1,first\nb/step_000000.pt,1e-2,\nc/none.pt,3,x\n")
    stores = repsim.extract(["digits_vit"], "digits", tmp_path, weights=str(runs / "{run}" / "step_{step:d}.pt"),
                            axes_file=table, **COMMON)  # fmt: skip
    assert [store.axes.get("lr") for store in stores] == [0.1, 0.1, 0.1, 0.01, None]
    assert stated(stores[0]) == {"run": "a", "step": 0, "lr": 0.1, "note": "first"}
    assert stated(stores[3]) == {"run": "b", "step": 0, "lr": 0.01}
    assert "lines without a model: c/none.pt" in caplog.text
    assert "models without a line: digits_vit.run-b.step-90" in caplog.text


def test_a_csv_file_says_axes_by_model(tmp_path: Path) -> None:
    (tmp_path / "m.csv").write_text("width;model\n64;digits_vit.seed0\n032;net\n")
    succeed("extract", "digits_vit.seed0", *OPTIONS, "--axes-file", tmp_path / "m.csv", "-o", tmp_path)
    with repsim.open_store(tmp_path / "digits_vit.seed0.h5") as store:
        assert stated(store) == {"width": 64}
    assert read_axes(tmp_path / "m.csv") == {"digits_vit.seed0": {"width": 64}, "net": {"width": 32}}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("model,step\nother,1\n", "no line is about one of these models; the column model holds other, the models are"),
        ("model,step\ndigits_vit.seed0,1\ndigits_vit.seed0,2\n", "line 3: digits_vit.seed0 has a line already"),
        ("model,step\n,1\n", "line 2: the field model is empty"),
        ("name,step\ndigits_vit.seed0,1\n", "expected one column model, or one column weights"),
        ("model,weights,step\na,b,1\n", "keep one of the columns"),
        ("model,step,step\na,1,1\n", "has two columns step"),
        ("model,Step\ndigits_vit.seed0,1\n", "'Step' cannot name an axis"),
        ("model,step\n", "has no line below its header"),
        ("model\na\n", "is not a table of axes"),
        ("model,step\ndigits_vit.seed0,7\n", "step is 1, but 7 in"),
        ("model,lr\ndigits_vit.seed0,1e999\n", "line 2: lr is inf"),
    ],
)
def test_a_csv_file_that_cannot_be_meant_is_one_line(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "m.csv").write_text(text)
    line = fail("extract", "digits_vit.seed0", *OPTIONS, "--axes", "step=1", "--axes-file", tmp_path / "m.csv",
                "-o", tmp_path / "acts")  # fmt: skip
    assert message in line
    assert not (tmp_path / "acts").exists()


def test_a_csv_file_of_weights_is_no_file_of_stores(tmp_path: Path) -> None:
    (tmp_path / "w.csv").write_text("weights,step\na.pt,1\n")
    with pytest.raises(InvalidInputError, match="add the column model"):
        read_axes(tmp_path / "w.csv")


def test_two_lines_about_one_file_are_refused(tmp_path: Path, runs: Path) -> None:
    (runs / "two.csv").write_text("weights,lr\na/*.pt,1\na/step_000000.pt,2\n")
    line = fail("extract", "digits_vit", "--weights", runs / "a" / "step_{step}.pt", *OPTIONS, "--axes-file",
                runs / "two.csv", "-o", tmp_path / "acts")  # fmt: skip
    assert "two lines are about digits_vit.step-0: a/*.pt and a/step_000000.pt" in line


def test_models_of_a_study_file_have_axes_and_patterns(tmp_path: Path, runs: Path) -> None:
    text = (
        "models:\n"
        "  - {name: digits_vit.seed0, axes: {step: 1000, lr: 1e-3, run: a}}\n"
        f"  - {{name: digits_vit, weights: '{runs}/b/step_{{step}}.pt', axes: {{run: b}}}}\n"
        "data: digits\naxes_file: runs.csv\n"
    )
    (tmp_path / "study.yaml").write_text(text)
    plan = plan_study(tmp_path / "study.yaml")
    assert plan.protocol.models[0].axes == {"step": 1000, "lr": 0.001, "run": "a"}
    assert [model.axes for model in plan.models[1:]] == [{"run": "b", "step": 0}, {"run": "b", "step": 90}]
    assert plan.options.axes_file == str(tmp_path / "runs.csv")
    for axes, message in {
        "{step: true}": "line 2: axes: step is a number or text, not `true`",
        "{Step: 1}": "line 2: axes: 'Step' cannot name an axis",
        "{step: .inf}": "line 2: axes: step is inf",
        "[1]": "line 2: axes is keys with values, not a list",
    }.items():
        with pytest.raises(InvalidInputError, match=message):
            parse_protocol(f"models:\n  - {{name: net, axes: {axes}}}\ndata: digits\n", tmp_path / "study.yaml")


@pytest.mark.slow
def test_the_plan_of_a_pattern_lists_every_file(tmp_path: Path, runs: Path) -> None:
    result = run("extract", "digits_vit", "--weights", runs / "*" / "step_*.pt", *OPTIONS, "-o", tmp_path / "acts")
    assert "would have the same store" in result.stderr
    result = succeed("extract", "digits_vit", "--weights", runs / "{run}" / "step_{step}.pt", *OPTIONS, "--dry-run",
                     "-o", tmp_path / "acts")  # fmt: skip
    assert result.stdout.count("pictures;") == 5
    assert not (tmp_path / "acts").exists()
