"""Tests of names, options and plug-ins, and of the errors for mistyped ones."""

import dataclasses
import subprocess
import sys
from pathlib import Path
from typing import Literal

import pytest

import repsim.errors
import repsim.metrics
from repsim.errors import InvalidInputError, RepsimError, UnknownNameError
from repsim.metrics.base import Metric
from repsim.registry import build, parse_spec


@dataclasses.dataclass(frozen=True)
class Options:
    count: int = 3
    share: float | None = None
    strict: bool = False
    mode: Literal["fast", "exact"] = "exact"


@pytest.mark.parametrize(
    ("spec", "parsed"),
    [
        ("cka", ("cka", {})),
        ("cka:", ("cka", {})),
        ("cka:kernel=rbf,bandwidth=0.5", ("cka", {"kernel": "rbf", "bandwidth": "0.5"})),
        ("a:path=x=y", ("a", {"path": "x=y"})),
    ],
)
def test_specs(spec: str, parsed: tuple[str, dict[str, str]]) -> None:
    assert parse_spec(spec) == parsed


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("cka:rbf", "cannot read 'rbf' in 'cka:rbf'; write name:option=value,option=value"),
        ("cka:kernel=", "cannot read 'kernel='"),
        ("cka:=rbf", "cannot read '=rbf'"),
        ("cka:kernel=rbf,kernel=linear", "option 'kernel' is given twice"),
    ],
)
def test_specs_that_cannot_be_read(spec: str, message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        parse_spec(spec)


def test_options_are_read_as_their_types() -> None:
    options = build(Options, {"count": "5", "share": "0.25", "strict": "True", "mode": "fast"})
    assert options == Options(5, 0.25, strict=True, mode="fast")
    assert build(Options, {}) == Options()


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"count": "many"}, InvalidInputError, "option count='many' should be a int"),
        ({"count": "2.5"}, InvalidInputError, "option count='2.5' should be a int"),
        ({"share": "half"}, InvalidInputError, "option share='half' should be a float"),
        ({"strict": "yes"}, InvalidInputError, "option strict='yes' should be a bool"),
        ({"mode": "fats"}, UnknownNameError, "unknown value of mode 'fats'; did you mean fast?"),
        ({"cuont": "1"}, UnknownNameError, r"unknown option 'cuont'; did you mean count\? \(options: count, share,"),
    ],
)
def test_options_that_cannot_be_read(options: dict[str, str], error: type[RepsimError], message: str) -> None:
    with pytest.raises(error, match=message):
        build(Options, options)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("ckaa", "unknown metric 'ckaa'; did you mean cka or cknna or cca? repsim.metrics.names lists them"),
        ("zzz", "unknown metric 'zzz'"),
        ("CKA", "unknown metric 'CKA'; did you mean cka? repsim"),
        ("Mutual-KNN", "unknown metric 'Mutual-KNN'; did you mean mutual_knn? repsim"),
        ("cka:Kernel=rbf", "unknown option 'Kernel'; did you mean kernel? (options"),
        ("cka:kernel=RBF", "unknown value of kernel 'RBF'; did you mean rbf?"),
        ("pwcca:variance=1", "unknown option 'variance' (options: none)"),
        ("cka:kernel=gauss", "unknown value of kernel 'gauss'; known: linear, rbf"),
    ],
)
def test_unknown_names(spec: str, message: str) -> None:
    with pytest.raises(UnknownNameError) as caught:
        repsim.metrics.get(spec)
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("word", "meant"), [("ALL", "all"), ("Alignment", "alignment"), ("group:CCA", "cca")])
def test_groups_in_another_case(word: str, meant: str) -> None:
    with pytest.raises(UnknownNameError, match=rf"{word.removeprefix('group:')}'; did you mean {meant}\?"):
        repsim.metrics.select(word)


def test_every_error_is_ours_and_a_builtin_too() -> None:
    ours = [e for e in vars(repsim.errors).values() if isinstance(e, type) and issubclass(e, RepsimError)]
    assert len(ours) > 5
    for error in ours:
        if error is not RepsimError:
            assert issubclass(error, (ValueError, LookupError, ArithmeticError, OSError, MemoryError, ImportError))


@pytest.mark.slow
def test_every_file_of_measures_is_found() -> None:
    """In a new interpreter no module of measures is imported yet."""
    code = "import repsim.metrics as m; print(*m.names())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == repsim.metrics.names() == sorted(Metric.registry)


@pytest.mark.slow
def test_a_distribution_can_announce_a_measure(tmp_path: Path) -> None:
    """An entry point of the group repsim.metrics registers the measure of another distribution."""
    (tmp_path / "measure.py").write_text(
        "from dataclasses import dataclass\n"
        "from repsim.metrics.cka import CKA\n"
        "@dataclass(frozen=True)\n"
        "class Mine(CKA):\n"
        "    name = 'mine'\n"
    )
    info = tmp_path / "measure-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: measure\nVersion: 1\n")
    (info / "entry_points.txt").write_text("[repsim.metrics]\nmine = measure\n")
    code = (
        f"import sys; sys.path.append({str(tmp_path)!r}); import repsim.metrics as m; print(m.get('mine:kernel=rbf'))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("Mine(kernel='rbf', estimator='debiased'")


@pytest.mark.slow
def test_plug_ins_that_cannot_be_loaded_are_left_out_with_a_note(tmp_path: Path) -> None:
    """Whatever they do at import; all other measures work, and a model of a broken plug-in is one line."""
    package = tmp_path / "broken-1.0.dist-info"
    package.mkdir()
    (package / "METADATA").write_text("Metadata-Version: 2.1\nName: broken\nVersion: 1.0\n")
    (package / "entry_points.txt").write_text(
        "[repsim.metrics]\nlacks = plug_lacks\nattribute = plug_empty:nothing\nexits = plug_exits\nmalformed = no no!\n"
        "works = plug_empty\n[repsim.extractors]\nzoo = plug_lacks:make\n"
    )
    (tmp_path / "plug_lacks.py").write_text("import a_module_that_is_not_there\n")
    (tmp_path / "plug_exits.py").write_text("import sys\nsys.exit(3)\n")
    (tmp_path / "plug_empty.py").write_text("")
    code = (
        "import sys; sys.path.insert(0, sys.argv.pop(1)); from click.testing import CliRunner; "
        "from repsim.cli import main; done = CliRunner().invoke(main, sys.argv[1:]); "
        "print(done.stdout); print(done.stderr, end='', file=sys.stderr); sys.exit(done.exit_code)"
    )

    def call(*words: str) -> "subprocess.CompletedProcess[str]":
        command = [sys.executable, "-c", code, str(tmp_path), *words]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    done = call("metrics", "cka")
    assert done.returncode == 0, done.stderr
    assert "cka" in done.stdout
    notes = done.stderr.splitlines()
    assert [line.partition(" = ")[0] for line in notes] == [
        f"note: repsim.metrics: the plug-in {name}" for name in ("lacks", "attribute", "exits", "malformed")
    ]
    assert all("cannot be loaded and is left out" in line for line in notes)
    done = call("layers", "zoo/net")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
    assert "zoo/net: the plug-in zoo = plug_lacks:make cannot be loaded (No module named" in done.stderr
