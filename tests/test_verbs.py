"""Functions in Python equal their commands: when they are killed, shared under torchrun, and to the bit."""

import inspect
import os
import signal
import subprocess
import sys
import typing
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import click
import numpy as np
import pytest
import torch
import xarray as xr
from click.testing import CliRunner
from torchvision.transforms import Compose, Resize, ToTensor

import repsim
from repsim.cli import main
from repsim.engine import comparison
from repsim.engine.options import CompareOptions
from repsim.errors import InvalidInputError, OutputError
from repsim.extraction.options import Choices, Data, ExtractOptions, Model
from repsim.extraction.runs import ExtractKeywords
from repsim.extractors.options import Choices as ChoiceKeywords
from repsim.runtime.options import options_of
from repsim.study.options import StatisticsOptions, UniversalityOptions
from repsim.study.study_file import Protocol
from repsim.study.universality import UniversalityKeywords
from tests.commands.test_compare_command import make
from tests.commands.test_run_command import SMALL
from tests.commands.test_stopping import ROOT, contents
from tests.scripts.test_durability import torture  # noqa: F401 - a fixture

pytestmark = pytest.mark.usefixtures("one_thread")  # compared to the bit with processes of one thread

METRIC = "cka:kernel=rbf,sigma=5.0"
COMPARE = f"""
import os, sys
import repsim
from repsim.engine import checkpoints
from repsim.runtime import tuning

out, done, *stores = sys.argv[1:]
save = checkpoints.Checkpoints.save

def noted(self, sweep, unit, part):
    with open(f"{{done}}.{{os.environ.get('RANK', 0)}}", "a") as file:
        print(unit, file=file)
    save(self, sweep, unit, part)

checkpoints.Checkpoints.save = noted
with tuning.using(panel=64):
    result = repsim.compare(stores, metrics=["{METRIC}"], out=out)
assert result.identical(repsim.open_result(out)), "every process has the result"
"""
EXTRACT = """
import sys
import repsim
from repsim.stores import writer

writer.COMMIT_SECONDS = 0.05
repsim.extract(["digits_vit.seed0", "digits_vit.seed1"], "digits", sys.argv[1], limit=400, batch_size=2, workers=0)
"""
STUDY = """
import os, sys, signal
import repsim

def watch(event, arguments):  # Python tells of every file that gets its name
    if event == "os.rename" and os.fspath(arguments[1]).endswith("study.nc"):
        os.kill(os.getpid(), signal.SIGKILL)

sys.addaudithook(watch)
repsim.run_study(sys.argv[1])
"""


def command(*args: object) -> None:
    done = CliRunner().invoke(main, [*map(str, args)], catch_exceptions=False)
    assert done.exit_code == 0, done.output


def launched(processes: int, script: str, *args: object) -> None:
    """Run a Python script under torchrun."""
    Path("script.py").write_text(script)
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*launch, "script.py", *map(str, args)],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr


def same(a: Path, b: Path) -> None:
    """Check that two results differ only in their time and command."""
    both = [repsim.open_result(path) for path in (a, b)]
    for result in both:
        del result.attrs["created"], result.attrs["command"]
    xr.testing.assert_identical(*both)


def same_stores(a: Path, b: Path) -> None:
    """Check that two stores differ only in the command that made them."""
    with repsim.open_store(a) as one, repsim.open_store(b) as other:
        assert {**one.provenance, "command": None} == {**other.provenance, "command": None}
        assert one.layers == other.layers
        for layer in one.layers:
            assert one[layer][:].tobytes() == other[layer][:].tobytes()


@pytest.mark.slow
def test_a_killed_comparison_goes_on(
    tmp_path: Path,
    torture: ModuleType,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
    tuned: Callable[..., None],
) -> None:
    paths = [make(tmp_path, name, n=3000, widths=(20, 30)) for name in "abc"]
    out, parts = tmp_path / "r.nc", tmp_path / "r.nc.parts"
    with torture.Run([sys.executable, "-c", COMPARE, out, tmp_path / "units", *paths]) as one:
        assert torture.wait_until(lambda: len(list(parts.glob("*.part"))) > 30, one), one.end()
        assert one.kill()
    assert not out.exists()
    left = {path.name: path.stat().st_mtime_ns for path in parts.glob("*.part")}
    later: dict[str, int] = {}

    def look(result: xr.Dataset, path: Path, **options: bool) -> None:
        later.update({path.name: path.stat().st_mtime_ns for path in parts.glob("*.part")})
        repsim.save_result(result, path, **options)

    monkeypatch.setattr(comparison, "save_result", look)
    tuned(panel=64)
    repsim.compare(paths, metrics=[METRIC], out=out)
    assert len(left) < len(later)
    assert {name: later[name] for name in left} == left, "what was done was done again"
    assert not parts.exists()
    command("compare", *paths, "-m", METRIC, "-o", tmp_path / "command.nc")
    same(out, tmp_path / "command.nc")


@pytest.mark.slow
def test_processes_of_torchrun_share_a_comparison(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tuned: Callable[..., None]
) -> None:
    monkeypatch.chdir(tmp_path)
    paths = [make(tmp_path, name, n=300, widths=(20, 30)) for name in "abc"]
    launched(2, COMPARE, tmp_path / "r.nc", tmp_path / "units", *paths)
    units = [set(Path(f"units.{rank}").read_text().split()) for rank in (0, 1)]
    assert all(units), "both did something"
    assert not units[0] & units[1], "and nothing twice"
    tuned(panel=64)
    command("compare", *paths, "-m", METRIC, "-o", "command.nc")
    same(tmp_path / "r.nc", tmp_path / "command.nc")


def test_a_result_grows_and_what_is_there_stays(tmp_path: Path) -> None:
    paths = [make(tmp_path, name) for name in "abc"]
    out = tmp_path / "r.nc"
    repsim.compare(paths[:2], None, ["cka"], out=out)
    before = out.read_bytes()
    again = repsim.compare(paths[:2], out=out)
    assert out.read_bytes() == before, "it holds all of this already"
    xr.testing.assert_equal(again, repsim.open_result(out))
    repsim.compare(paths, metrics=["cka", "svcca"], out=out)
    for args in (paths[:2], paths):
        command("compare", "--all", *args, "-m", "cka", *["-m", "svcca"] * (len(args) > 2), "-o", tmp_path / "c.nc")
    same(out, tmp_path / "c.nc")
    repsim.compare(paths[0], paths[1], out=out, overwrite=True)
    assert repsim.open_result(out).sizes["layer_a"] == 2
    with pytest.raises(InvalidInputError, match=r"name it \.nc"):
        repsim.compare(paths, out=paths[0])


@pytest.mark.slow
def test_killed_extractions_of_several_models_go_on(tmp_path: Path, torture: ModuleType) -> None:  # noqa: F811
    files = [torture.Unfinished(tmp_path / "acts" / f"digits_vit.seed{seed}.h5") for seed in (0, 1)]
    with torture.Run([sys.executable, "-c", EXTRACT, tmp_path / "acts"]) as one:
        assert torture.wait_until(lambda: all(file.marks().sum() > 50 for file in files), one), one.end()
        assert one.kill()
    kept = sum(int(file.marks().sum()) for file in files)
    done: list[tuple[int, int]] = []
    stores = repsim.extract(
        ["digits_vit.seed0", "digits_vit.seed1"], "digits", tmp_path / "acts", limit=400, batch_size=2, workers=0,
        progress=lambda *told: done.append(told),
    )  # fmt: skip
    assert done[0] == (kept, 800), "what was committed was computed again"
    command(
        "extract", "digits_vit.seed0", "digits_vit.seed1", "--data", "digits", "-o", tmp_path / "whole", "--limit", 400,
        "--batch-size", 2, "--workers", 0,
    )  # fmt: skip
    for store in stores:
        store.close()
        same_stores(store.path, tmp_path / "whole" / store.path.name)


@pytest.mark.slow
def test_processes_of_torchrun_share_extractions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    launched(2, EXTRACT.replace("400", "40"), "acts")
    command("extract", "digits_vit.seed0", "digits_vit.seed1", "--data", "digits", "--limit", 40, "--batch-size", 2,
            "--workers", 0, "-o", "whole")  # fmt: skip
    for name in ("digits_vit.seed0.h5", "digits_vit.seed1.h5"):
        same_stores(Path("acts", name), Path("whole", name))


@pytest.mark.slow
def test_several_models_are_those_one_by_one_in_their_order(tmp_path: Path) -> None:
    """Models with other preprocessing, which are read in another order, and torch modules are included."""
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(48, 2))
    prepared = Compose([Resize((4, 4)), ToTensor()])
    names = ["digits_vit.seed0", "test_vit", "digits_resnet.seed0"]
    stores = repsim.extract(
        names, "digits", tmp_path / "many", limit=8, weights=["pretrained", "random", "pretrained"], seed=[0, 3, 0],
        name=["b", "c", "a"], layers="all",
    )  # fmt: skip
    assert [store.model for store in stores] == ["b", "c", "a"]
    alone = repsim.extract(
        "test_vit", "digits", tmp_path, limit=8, weights="random", seed=3, name="alone", layers="all"
    )
    assert alone.layers == stores[1].layers
    np.testing.assert_allclose(alone[alone.layers[-1]][:], stores[1][alone.layers[-1]][:], rtol=1e-5)
    (own,) = repsim.extract([net], "digits", tmp_path, limit=8, layers="all", transform=prepared, name=["own"])
    assert own.path == tmp_path / "own.h5"
    for wrong in ({"weights": ["a.pth", "b.pth"]}, {"seed": [1, 2]}, {"name": ["a"]}):
        with pytest.raises(InvalidInputError, match="give one for"):
            repsim.extract(names, "digits", tmp_path, **wrong)
    with pytest.raises(InvalidInputError, match="is named twice"):
        repsim.extract(["digits_vit.seed0"] * 2, "digits", tmp_path)


def test_notes_of_an_extraction_are_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for _ in range(2):
        repsim.extract("digits_vit.seed0", "digits", tmp_path, limit=8).close()
    assert caplog.messages == []
    caplog.set_level("INFO", "repsim")
    repsim.extract("digits_vit.seed0", "digits", tmp_path, limit=8).close()
    assert caplog.messages == [f"{tmp_path}/digits_vit.seed0.h5 is complete already"]


@pytest.mark.slow
def test_a_killed_study_goes_on(tmp_path: Path) -> None:
    text = SMALL.replace("limit: 16", "limit: 12") + "figures: false\nreport: false\n"
    for name in ("whole", "killed"):
        (tmp_path / f"{name}.yaml").write_text(text)
    command("run", tmp_path / "whole.yaml")
    file = tmp_path / "killed.yaml"
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    killed = subprocess.run([sys.executable, "-c", STUDY, file], env=environment, check=False, timeout=300)
    assert killed.returncode == -signal.SIGKILL
    stores = {path: path.stat().st_mtime_ns for path in (tmp_path / "killed" / "acts").iterdir()}
    assert len(stores) == 3
    steps: list[str] = []
    study = repsim.run_study(file, progress=steps.append)
    assert "permuting samples" in steps
    assert {path: path.stat().st_mtime_ns for path in stores} == stores
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")
    xr.testing.assert_identical(study, repsim.open_study(tmp_path / "killed" / "study.nc"))
    steps.clear()
    xr.testing.assert_identical(study, repsim.run_study(str(file), progress=steps.append))
    assert "permuting samples" not in steps, "it was done already"
    file.write_text(text.replace("seed: 4", "seed: 5"))
    with pytest.raises(OutputError, match="differences: the key seed"):
        repsim.run_study(file)


@pytest.mark.slow
def test_processes_of_torchrun_share_a_study_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    text = SMALL.replace("limit: 16", "limit: 12") + "figures: false\nreport: false\n"
    for name in ("one", "two"):
        Path(f"{name}.yaml").write_text(text)
    launched(2, "import repsim\nassert repsim.run_study('two.yaml').attrs['study_file']")
    repsim.run_study("one.yaml")
    assert contents(Path("one")) == contents(Path("two"))


@pytest.fixture(scope="module")
def four(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder, rng = tmp_path_factory.mktemp("four"), np.random.default_rng(0)
    names = [f"{family}.seed{seed}" for family in ("cnn", "vit") for seed in (0, 1)]
    return [
        repsim.write_store(folder / f"{name}.h5", {"x": rng.normal(size=(30, 4))}, model=name).path for name in names
    ]


@pytest.mark.slow
def test_a_study_is_saved_as_the_command_saves_it(tmp_path: Path, four: list[Path]) -> None:
    options: dict[str, Any] = {"permutations": 19, "seed": 3, "families": {"net": ["cnn*"]}}
    study = repsim.universality(four, ["cka"], out=tmp_path / "s.nc", **options)
    command("universality", *four, "-m", "cka", "--permutations", 19, "--seed", 3, "--family", "net=cnn*",
            "-o", tmp_path / "c.nc")  # fmt: skip
    saved = [repsim.open_study(tmp_path / name) for name in ("s.nc", "c.nc")]
    for result in (*saved, study):
        del result.attrs["command"]
        result.attrs.pop("created", None)
    xr.testing.assert_identical(*saved)
    xr.testing.assert_equal(study, saved[0])
    with pytest.raises(OutputError, match="exists"):
        repsim.universality(four, ["cka"], out=tmp_path / "s.nc", permutations=19)


def test_renamed_keywords_warn_and_work(four: list[Path]) -> None:
    result = repsim.compare(four[:2], metrics="cka")
    for function in (repsim.to_frame, repsim.view):
        with pytest.warns(DeprecationWarning, match=r"\(found=\.\.\.\) is deprecated .* write dataset=") as warned:
            shown = function(found=result)  # type: ignore[call-arg]
        assert str(shown) == str(function(result))
        assert Path(warned[0].filename) == Path(__file__)
        with pytest.raises(TypeError, match="got both dataset and found, its earlier name"):
            function(dataset=result, found=result)  # type: ignore[call-arg]


@pytest.mark.slow
def test_one_word_is_a_list_of_one(four: list[Path]) -> None:
    single = repsim.compare(four[:2], metrics="cka", readouts="given")
    xr.testing.assert_identical(single["cka"], repsim.compare(four[:2], metrics=["cka"], readouts=["given"])["cka"])
    assert "nuclear" in repsim.universality(four, "nuclear", permutations=19)["measure"].values


def test_options_have_the_same_limits_in_python(tmp_path: Path, four: list[Path]) -> None:
    with pytest.raises(InvalidInputError, match="permutations is at least 19, not 3"):
        repsim.universality(four, permutations=3)
    with pytest.raises(InvalidInputError, match="seed is at least 0, not -1"):
        repsim.extract("digits_vit", "digits", tmp_path, weights="random", seed=-1)
    with pytest.raises(InvalidInputError, match="memory is a size above 0, not -1"):
        repsim.compare(four, memory=-1)
    with pytest.raises(InvalidInputError, match="controls is untrained:N, for example untrained:3, not 'foo'"):
        repsim.universality(four, controls="foo")
    with pytest.raises(TypeError, match="got both controls and untrained"):
        repsim.universality(four, controls="untrained:1", untrained=1)  # type: ignore[call-arg]


def test_weights_may_be_a_path(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="nothing.safetensors"):
        repsim.extract("digits_vit", "digits", tmp_path, weights=tmp_path / "nothing.safetensors")


def test_earlier_keywords_warn_and_work(tmp_path: Path, four: list[Path]) -> None:
    both = repsim.compare(four[:2], metrics=["cka"])
    message = r"compare\(known=\.\.\.\) is deprecated and will be removed in repsim 2\.0\.0; write out="
    with pytest.warns(DeprecationWarning, match=message):
        grown = repsim.compare(four[:3], known=both)  # type: ignore[call-arg]
    xr.testing.assert_allclose(grown, repsim.compare(four[:3], metrics=["cka"]))
    with pytest.warns(DeprecationWarning, match="parts"):
        repsim.compare(four[:2], parts=tmp_path / "parts")  # type: ignore[call-arg]
    with pytest.warns(DeprecationWarning, match="command"):
        result = repsim.compare(four[:2], command="by hand")  # type: ignore[call-arg]
    assert result.attrs["command"] == "by hand"
    steps: list[str] = []
    settings: dict[str, Any] = {"steps": steps.append, "untrained": 0, "folder": tmp_path, "command": "x"}
    with pytest.warns(DeprecationWarning, match=r"will be removed in repsim 2\.0\.0") as warned:
        study = repsim.universality(four, ["cka"], permutations=19, **settings)
    assert [str(w.message).split("(")[1].split("=")[0] for w in warned] == ["steps", "untrained", "folder", "command"]
    assert steps
    assert all(Path(w.filename) == Path(__file__) for w in warned), "of the caller's line"
    assert study.attrs["command"] == "x"


@pytest.mark.parametrize(
    ("verb", "keywords", "options", "apart"),
    [
        (repsim.compare, comparison.CompareKeywords, {CompareOptions: {}}, {"metrics"}),
        (repsim.universality, UniversalityKeywords, {UniversalityOptions: {}}, {"metrics"}),
        (
            repsim.extract,
            ExtractKeywords,
            {Model: {"store": "name"}, Data: {"root": "data_root"}, ExtractOptions: {}},
            {"source"},
        ),
    ],
)
def test_signatures_are_those_of_the_options(verb: Any, keywords: Any, options: Any, apart: set[str]) -> None:
    """Type checkers, ``help()`` and the options have the same keywords, with descriptions and defaults."""
    expected = {
        renamed.get(option.name, option.name): option
        for kind, renamed in options.items()
        for option in options_of(kind)
        if option.name not in apart and (kind, option.name) != (Model, "name")
    }
    assert set(typing.get_type_hints(keywords)) == set(expected)
    signature = inspect.signature(verb).parameters
    assert "{options}" not in verb.__doc__
    for name, option in expected.items():
        assert signature[name].default == option.default
        assert f"    {name}\n        " in verb.__doc__
        assert option.text, name
    with pytest.raises(TypeError, match=f"{verb.__name__}.. got an unexpected keyword argument 'progres'"):
        verb(
            *"abc"[: sum(parameter.default is parameter.empty for parameter in signature.values()) or 1], progres=print
        )


def test_commands_have_the_options_of_the_library() -> None:
    kinds = {
        "compare": (CompareOptions,), "universality": (UniversalityOptions,), "extract": (Model, Data, ExtractOptions),
    }  # fmt: skip
    for name, classes in kinds.items():
        shown = {option.help for option in main.commands[name].params if isinstance(option, click.Option)}
        for kind in classes:
            for option in options_of(kind):
                shown_help = any(text and text.startswith(option.text.replace("`", "")) for text in shown)
                assert shown_help or option.name in {"name", "controls_folder", "draws"}, (name, option.name)


def test_an_option_is_written_once() -> None:
    """Study files, `repsim.extract` and `repsim.universality` share the same options."""
    keys = {option.name: option for option in options_of(Protocol)}
    for kind in (ExtractOptions, StatisticsOptions):
        for option in options_of(kind):
            assert option.name == "overwrite" or keys[option.name] == option
    assert {option.name for option in options_of(Choices)} == set(ChoiceKeywords.__annotations__)
